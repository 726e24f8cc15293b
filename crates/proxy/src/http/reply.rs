//! Answers that the proxy makes itself: the only place where a failure becomes a status.
//!
//! A `Reply` says status, body, response flag and details as Envoy's local replies do. For a
//! gRPC request the codec layer turns it into `200` with `grpc-status` (see `for_grpc`).

use std::borrow::Cow;

use bytes::Bytes;

use crate::telemetry::stream_info::ResponseFlags;

/// A local reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// HTTP status.
    pub(crate) status: u16,
    /// Text body; empty: none.
    pub(crate) body: Bytes,
    /// gRPC status to use instead of the one that follows from `status`.
    pub(crate) grpc_status: Option<u32>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub(crate) details: Cow<'static, str>,
    /// Response flags that it sets.
    pub(crate) flags: ResponseFlags,
    /// Headers added to it.
    pub(crate) headers: Vec<(Cow<'static, str>, Cow<'static, [u8]>)>,
}

impl Reply {
    /// A reply with a plain-text body.
    pub(crate) fn new(status: u16, details: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            body: body.into(),
            grpc_status: None,
            details: details.into(),
            flags: ResponseFlags::default(),
            headers: Vec::new(),
        }
    }

    /// The same with a response flag.
    #[must_use]
    pub(crate) fn flag(mut self, flag: ResponseFlags) -> Self {
        self.flags.insert(flag);
        self
    }

    /// The same with a header.
    #[must_use]
    pub(crate) fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, [u8]>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}
