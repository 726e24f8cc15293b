//! `%GRPC_STATUS%`: where a gRPC status is found and how it is called.

use std::borrow::Cow;

use crate::http::headers::Known;
use crate::telemetry::access_log::command::{FormatContext, Value};

/// How a status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `DeadlineExceeded`.
    Camel,
    /// `DEADLINE_EXCEEDED`.
    Snake,
    /// `4`.
    Number,
}

/// By number: camel case and snake case.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

impl Style {
    /// The style that an argument of the command names.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "CAMEL_STRING" => Ok(Style::Camel),
            "SNAKE_STRING" => Ok(Style::Snake),
            "NUMBER" => Ok(Style::Number),
            other => Err(format!(
                "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER, not '{other}'"
            )),
        }
    }

    /// A status in this style; one without a name is a number.
    pub(crate) fn value<'a>(self, status: u32) -> Value<'a> {
        match (self, NAMES.get(status as usize)) {
            (Style::Camel, Some((name, _))) | (Style::Snake, Some((_, name))) => {
                Value::Text(Cow::Borrowed(name.as_bytes()))
            }
            (Style::Camel | Style::Snake, None) => Value::Text(Cow::Owned(status.to_string().into_bytes())),
            (Style::Number, _) => Value::Number(u64::from(status)),
        }
    }
}

/// The gRPC status of a gRPC request: in the trailers, the response head, or what the HTTP
/// status stands for.
pub(crate) fn status(cx: &FormatContext<'_>) -> Option<u32> {
    if !cx.request?.is_grpc() {
        return None;
    }
    let sent =
        [cx.trailers, cx.response].into_iter().flatten().find_map(|block| block.get_str(Known::GrpcStatus));
    match sent {
        // What is not a number stands for Unknown.
        Some(text) => Some(text.parse().unwrap_or(2)),
        None => (cx.info.response_code != 0).then(|| from_http(cx.info.response_code)),
    }
}

/// The table of gRPC over HTTP/2 ("HTTP to gRPC Status Code Mapping").
fn from_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
