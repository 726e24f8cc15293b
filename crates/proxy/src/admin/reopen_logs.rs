//! `/reopen_logs`: what SIGUSR1 does.

use crate::admin::respond::Response;
use crate::admin::{Answer, Endpoint};
use crate::telemetry::access_log;

/// `/reopen_logs`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/reopen_logs",
    help: "reopen access logs",
    parameters: &[],
    mutates: true,
    answer: Answer::Now(|_, _| {
        access_log::reopen();
        Response::text("OK\n")
    }),
};
