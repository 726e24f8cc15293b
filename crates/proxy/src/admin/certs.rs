//! `/certs`: certificates in use. There is no TLS in this proxy yet, so there are none.

use serde_json::json;

use crate::admin::respond::Response;
use crate::admin::{Answer, Endpoint};

/// `/certs`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/certs",
    help: "print certs on machine",
    parameters: &[],
    mutates: false,
    answer: Answer::Now(|_, _| Response::json(&json!({"certificates": []}))),
};
