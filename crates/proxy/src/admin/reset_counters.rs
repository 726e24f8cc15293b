//! `/reset_counters`

use crate::admin::respond::Response;
use crate::admin::{Answer, Endpoint};

/// `/reset_counters`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/reset_counters",
    help: "reset all counters to zero",
    parameters: &[],
    mutates: true,
    answer: Answer::Now(|context, _| {
        context.stats.reset_counters();
        Response::text("OK\n")
    }),
};
