//! Codecs: the two HTTP versions behind one vocabulary.
//!
//! `h1` is our own codec over byte buffers, `h2` sits on the `h2` crate. A stream sees neither:
//! it drives a [`Downstream`](side::Downstream) and an [`Upstream`](side::Upstream), closed enums
//! with poll-style methods, so that one task with exclusive access moves both directions of a
//! request without channels. Reading order: this file, `side`, `h1`, `h2`, `buffer`.

use bytes::Bytes;

use crate::http::headers::HeaderMap;
use crate::telemetry::stream_info::ResponseFlags;

pub(crate) mod buffer;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod side;

/// A piece of a message after its head.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Body bytes; `end`: known to be the last ones, no trailers follow.
    Data {
        /// The bytes, possibly none.
        data: Bytes,
        /// Whether the message ends here.
        end: bool,
    },
    /// Trailers, which end the message.
    Trailers(Box<HeaderMap>),
    /// The message ends.
    End,
}

impl Frame {
    /// Whether it says nothing: no bytes, and no end.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self, Frame::Data { data, end: false } if data.is_empty())
    }

    /// Whether the message ends with this piece.
    pub(crate) fn is_last(&self) -> bool {
        !matches!(self, Frame::Data { end: false, .. })
    }
}

/// A message from downstream that breaks the protocol: how it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodecError {
    /// The status of the answer, if one can still be given.
    pub(crate) status: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub(crate) details: &'static str,
}

impl CodecError {
    /// What most malformed messages are: 400 with these details.
    pub(crate) const fn bad(details: &'static str) -> Self {
        Self { status: 400, details }
    }
}

/// Envoy's name for a message that its HTTP/1 parser refused.
pub(crate) const CODEC_ERROR: CodecError = CodecError::bad("http1.codec_error");

/// Why the downstream side of a stream is over before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DownstreamError {
    /// The request breaks the protocol.
    Protocol(CodecError),
    /// The connection is gone.
    Disconnected,
    /// The client reset the stream (HTTP/2).
    Reset,
}

/// Why the upstream side of a stream is over before its end (Envoy's StreamResetReason).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetReason {
    /// We gave up.
    LocalReset,
    /// The endpoint reset the stream.
    RemoteReset,
    /// The endpoint refused the stream before it looked at it.
    RemoteRefused,
    /// The connection could not even be attempted.
    LocalConnectionFailure,
    /// The connection was refused or lost before it was ready.
    RemoteConnectionFailure,
    /// No connection within `connect_timeout`.
    ConnectionTimeout,
    /// The connection closed in the middle.
    ConnectionTermination,
    /// A circuit breaker is open.
    Overflow,
    /// The endpoint's answer breaks the protocol.
    ProtocolError,
}

impl ResetReason {
    /// Envoy's words, used in bodies and (with underscores) in details.
    pub(crate) fn text(self) -> &'static str {
        match self {
            ResetReason::LocalReset => "local reset",
            ResetReason::RemoteReset => "remote reset",
            ResetReason::RemoteRefused => "remote refused stream reset",
            ResetReason::LocalConnectionFailure => "local connection failure",
            ResetReason::RemoteConnectionFailure => "remote connection failure",
            ResetReason::ConnectionTimeout => "connection timeout",
            ResetReason::ConnectionTermination => "connection termination",
            ResetReason::Overflow => "overflow",
            ResetReason::ProtocolError => "protocol error",
        }
    }

    /// The response flag that stands for it.
    pub(crate) fn flag(self) -> ResponseFlags {
        match self {
            ResetReason::LocalReset => ResponseFlags::LOCAL_RESET,
            ResetReason::RemoteReset | ResetReason::RemoteRefused => ResponseFlags::UPSTREAM_REMOTE_RESET,
            ResetReason::LocalConnectionFailure
            | ResetReason::RemoteConnectionFailure
            | ResetReason::ConnectionTimeout => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            ResetReason::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            ResetReason::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            ResetReason::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        }
    }

    /// Whether there never was a connection.
    pub(crate) fn is_connect_failure(self) -> bool {
        self.flag() == ResponseFlags::UPSTREAM_CONNECTION_FAILURE
    }
}

/// How the length of a message body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// There is no body.
    Empty,
    /// So many bytes.
    Known(u64),
    /// `transfer-encoding: chunked`, or whatever HTTP/2 frames bring.
    Chunked,
    /// All until the connection closes; also the two streams of bytes after an upgrade.
    UntilClose,
}
