//! `/healthcheck/fail` and `/healthcheck/ok`: leave a load balancer's rotation, and come back.

use crate::admin::{Answer, Command, Endpoint};

/// `/healthcheck/fail`
pub(super) const FAIL: Endpoint = Endpoint {
    path: "/healthcheck/fail",
    help: "cause the server to fail health checks",
    parameters: &[],
    mutates: true,
    answer: Answer::Now(|context, _| context.order(Command::FailHealthChecks(true))),
};

/// `/healthcheck/ok`
pub(super) const OK: Endpoint = Endpoint {
    path: "/healthcheck/ok",
    help: "cause the server to pass health checks",
    parameters: &[],
    mutates: true,
    answer: Answer::Now(|context, _| context.order(Command::FailHealthChecks(false))),
};
