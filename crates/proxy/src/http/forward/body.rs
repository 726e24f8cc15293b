//! The request's body on its way up: what was sent is kept as long as it may have to be sent
//! again.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::http::codec::Frame;
use crate::http::codec::side::Upstream;
use crate::http::headers::HeaderMap;

/// What was read of the request so far.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    kept: Vec<Bytes>,
    kept_len: usize,
    trailers: Option<Box<HeaderMap>>,
    limit: usize,
    /// More came than is kept: no further attempt is possible.
    overflowed: bool,
    /// Read to its end.
    pub(crate) complete: bool,
}

impl RequestBody {
    /// Keeps up to `limit` bytes.
    pub(crate) fn new(limit: usize, complete: bool) -> Self {
        Self { limit, complete, ..Self::default() }
    }

    /// A request that is forwarded again brings the body that was read before.
    pub(crate) fn begin_with(&mut self, pieces: VecDeque<Bytes>) {
        self.kept_len = pieces.iter().map(Bytes::len).sum();
        self.kept = pieces.into();
    }

    /// Sends a piece, and keeps it.
    pub(crate) fn forward(&mut self, frame: Frame, upstream: Option<&mut Upstream>) {
        self.complete |= frame.is_last();
        match frame {
            Frame::Data { data, end } => {
                if !data.is_empty() && !self.overflowed {
                    self.kept_len += data.len();
                    if self.kept_len > self.limit {
                        self.overflowed = true;
                        self.kept = Vec::new();
                    } else {
                        self.kept.push(data.clone());
                    }
                }
                if let Some(upstream) = upstream {
                    upstream.send_data(data, end);
                }
            }
            Frame::End => {
                if let Some(upstream) = upstream {
                    upstream.send_data(Bytes::new(), true);
                }
            }
            Frame::Trailers(trailers) => {
                if let Some(upstream) = upstream {
                    upstream.send_trailers(&trailers);
                }
                self.trailers = Some(trailers);
            }
        }
    }

    /// Whether what comes has to be looked at: it is kept for a further attempt.
    pub(crate) fn keeps(&self) -> bool {
        !self.overflowed && self.limit > 0
    }

    /// Bytes went by that were not kept.
    pub(crate) fn passed(&mut self) {
        self.overflowed = true;
    }

    /// Sends again what was kept.
    pub(crate) fn replay(&self, upstream: &mut Upstream) {
        let last = self.kept.len().checked_sub(1);
        let ends_with_data = self.complete && self.trailers.is_none();
        for (index, data) in self.kept.iter().enumerate() {
            upstream.send_data(data.clone(), ends_with_data && Some(index) == last);
        }
        if let Some(trailers) = &self.trailers {
            upstream.send_trailers(trailers);
        } else if ends_with_data && last.is_none() {
            upstream.send_data(Bytes::new(), true);
        }
    }

    /// Whether another attempt can send the whole request.
    pub(crate) fn can_replay(&self) -> bool {
        !self.overflowed
    }

    /// No further attempt will be made.
    pub(crate) fn forget(&mut self) {
        self.limit = 0;
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.overflowed = true;
        }
    }

    /// Whether anything was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.trailers.is_none() && !self.overflowed
    }

    /// How many bytes are kept.
    pub(crate) fn kept_len(&self) -> usize {
        self.kept.iter().map(Bytes::len).sum()
    }

    /// All of a complete, kept body.
    pub(crate) fn pieces(&self) -> &[Bytes] {
        &self.kept
    }
}
