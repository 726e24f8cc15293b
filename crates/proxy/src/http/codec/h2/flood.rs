//! Limits against peers that keep us busy for nothing, as Envoy's (Http2ProtocolOptions).

use std::time::{Duration, Instant};

use super::frame::Reason;
use super::stats::Http2Stats;
use crate::cluster::FloodLimits;

/// A stream that its client resets earlier is reset prematurely
/// (`overload.premature_reset_min_stream_lifetime_seconds`).
pub(super) const PREMATURE: Duration = Duration::from_secs(1);
/// So many streams are looked at (`overload.premature_reset_total_stream_count`).
const PREMATURE_TOTAL: u64 = 500;

/// Whether half of the streams were reset prematurely, or will have been whatever comes.
pub(super) fn is_rapid(premature: u64, ended: u64) -> bool {
    premature * 2 >= ended.max(PREMATURE_TOTAL)
}

/// Which limit was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flooded {
    Outbound,
    OutboundControl,
    EmptyPayload,
    Priority,
    WindowUpdate,
    Rapid,
    Resets,
}

impl Flooded {
    /// Whether the peer does not read what we write.
    pub(super) fn is_outbound(self) -> bool {
        matches!(self, Flooded::Outbound | Flooded::OutboundControl)
    }

    /// What the GOAWAY says; of resets as nghttp2 does.
    pub(super) fn reason(self) -> Reason {
        if self == Flooded::Resets { Reason::INTERNAL_ERROR } else { Reason::ENHANCE_YOUR_CALM }
    }

    /// Counts it where Envoy does.
    pub(super) fn count(self, stats: &Http2Stats) {
        match self {
            Flooded::Outbound => stats.outbound_flood().inc(),
            Flooded::OutboundControl => stats.outbound_control_flood().inc(),
            Flooded::EmptyPayload => stats.inbound_empty_frames_flood().inc(),
            Flooded::Priority => stats.inbound_priority_frames_flood().inc(),
            Flooded::WindowUpdate => stats.inbound_window_update_frames_flood().inc(),
            Flooded::Rapid | Flooded::Resets => {}
        }
    }
}

/// Counts of one connection.
#[derive(Debug)]
pub(super) struct Flood {
    limits: FloodLimits,
    exceeded: Option<Flooded>,
    /// Frames that wait to be written: (all, control); those that the socket has been given, and
    /// those behind them.
    writing: (u32, u32),
    waiting: (u32, u32),
    empty: u32,
    priorities: u64,
    window_updates: u64,
    opened: u64,
    data: u64,
    /// Resets that the client may still send, and when that was.
    resets: (f64, Instant),
}

impl Flood {
    pub(super) fn new(limits: &FloodLimits, now: Instant) -> Self {
        Self {
            limits: limits.clone(),
            exceeded: None,
            writing: (0, 0),
            waiting: (0, 0),
            empty: 0,
            priorities: 0,
            window_updates: 0,
            opened: 0,
            data: 0,
            resets: (limits.reset_burst as f64, now),
        }
    }

    /// The limit that was exceeded, told once.
    pub(super) fn exceeded(&mut self) -> Option<Flooded> {
        let exceeded = self.exceeded?;
        if exceeded != Flooded::Rapid || !self.is_rapid() {
            self.exceeded = None;
        }
        Some(exceeded)
    }

    pub(super) fn is_rapid(&self) -> bool {
        self.exceeded == Some(Flooded::Rapid)
    }

    pub(super) fn rapid(&mut self) {
        self.exceeded.get_or_insert(Flooded::Rapid);
    }

    /// One more frame waits to be written.
    pub(super) fn outbound(&mut self, control: bool) {
        self.waiting.0 += 1;
        self.waiting.1 += u32::from(control);
        if self.writing.0 + self.waiting.0 > self.limits.outbound_frames {
            self.exceeded.get_or_insert(Flooded::Outbound);
        }
        if control && self.writing.1 + self.waiting.1 > self.limits.outbound_control_frames {
            self.exceeded.get_or_insert(Flooded::OutboundControl);
        }
    }

    /// DATA was written: window updates may answer it.
    pub(super) fn data(&mut self) {
        self.data += 1;
    }

    /// All that was given to the socket is written; it is given what waits.
    pub(super) fn handed_over(&mut self) {
        self.writing = std::mem::take(&mut self.waiting);
    }

    /// All that was given to the socket is written.
    pub(super) fn written(&mut self) {
        self.writing = (0, 0);
    }

    /// HEADERS, CONTINUATION or DATA came; `empty`: without payload, and ending nothing.
    pub(super) fn payload(&mut self, empty: bool) {
        self.empty = if empty { self.empty + 1 } else { 0 };
        if self.empty > self.limits.consecutive_empty_frames {
            self.exceeded.get_or_insert(Flooded::EmptyPayload);
        }
    }

    /// A stream has begun.
    pub(super) fn opened(&mut self) {
        self.opened += 1;
    }

    /// PRIORITY came.
    pub(super) fn priority(&mut self) {
        self.priorities += 1;
        if self.priorities > u64::from(self.limits.priority_frames_per_stream) * (1 + self.opened) {
            self.exceeded.get_or_insert(Flooded::Priority);
        }
    }

    /// RST_STREAM came from a client.
    pub(super) fn reset(&mut self, now: Instant) {
        let (left, then) = self.resets;
        let more = now.saturating_duration_since(then).as_secs_f64() * self.limits.reset_rate as f64;
        let left = (left + more).min(self.limits.reset_burst as f64) - 1.0;
        self.resets = (left, now);
        if left < 0.0 {
            self.exceeded.get_or_insert(Flooded::Resets);
        }
    }

    /// WINDOW_UPDATE came.
    pub(super) fn window_update(&mut self) {
        self.window_updates += 1;
        let per_data = u64::from(self.limits.window_updates_per_data_frame);
        if self.window_updates > 5 + 2 * (self.opened + per_data * self.data) {
            self.exceeded.get_or_insert(Flooded::WindowUpdate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_rapid;

    #[test]
    fn half_of_the_streams_may_be_reset_prematurely() {
        for (premature, ended, rapid) in [
            (0, 0, false),
            (249, 249, false),
            (250, 250, true),
            (250, 400, true),
            (250, 501, false),
            (300, 600, true),
        ] {
            assert_eq!(is_rapid(premature, ended), rapid, "{premature} of {ended}");
        }
    }
}
