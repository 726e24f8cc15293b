//! `/hot_restart_version`: processes do not hand over to each other here.

use crate::admin::respond::Response;
use crate::admin::{Answer, Endpoint};

/// `/hot_restart_version`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/hot_restart_version",
    help: "print the hot restart compatibility version",
    parameters: &[],
    mutates: false,
    answer: Answer::Now(|_, _| Response::text("disabled")),
};
