//! One HTTP/2 connection without its socket: bytes in, streams' state and bytes out.
//!
//! The task that drives the connection and its streams share a session: the driver feeds what it
//! reads to `receive` and writes what it finds in `take_output`; streams read and write through
//! their handles (`server`, `client`) and are woken when something has come for them. All that the
//! streams write until the driver writes goes out at once. This file holds the state and how a
//! connection begins, drains and ends; `receive` is what the peer's frames do to it, `send` the
//! sending half, `flood` the limits, `keepalive` the pings.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use bytes::BytesMut;

use super::flood::Flood;
use super::frame::{self, DEFAULT_MAX_FRAME, Reason};
use super::hpack::decoder::Decoder;
use super::hpack::encoder::Encoder;
use super::keepalive::Keepalive;
use super::message::HeadRules;
use super::receive::Block;
use super::stats::Http2Stats;
use super::streams::{Over, Slot, Streams};
use super::{LARGEST_WINDOW, PREFACE};
use crate::cluster::Http2Settings;
use crate::http::headers::HeaderMap;

/// Streams that a peer is assumed to allow before it says so.
const ASSUMED_STREAMS: u32 = 100;
/// The answer to this ping shows that the client has seen the first GOAWAY.
pub(super) const DRAIN_PING: [u8; 8] = *b"draining";

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Downstream.
    Server,
    /// Upstream.
    Client,
}

/// What a session obeys.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Http2ProtocolOptions.
    pub(crate) settings: Http2Settings,
    /// Limits of heads that we receive.
    pub(crate) heads: HeadRules,
    /// `override_stream_error_on_invalid_http_message`: an invalid message ends its stream only.
    pub(crate) stream_errors: bool,
}

/// The connection must end, with this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) Reason);

/// A request that has come.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Its stream.
    pub(super) slot: Slot,
    /// Its head.
    pub(crate) head: HeaderMap,
    /// The head is an extended CONNECT.
    pub(super) upgrade: bool,
    /// Bytes of the head's frames.
    pub(crate) wire: u64,
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) role: Role,
    pub(super) rules: Rules,
    pub(super) stats: Http2Stats,
    pub(super) streams: Streams,
    pub(super) flood: Flood,
    pub(super) keepalive: Keepalive,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    /// Frames to write.
    pub(super) out: Vec<u8>,
    /// Streams that have something to send, and window.
    pub(super) ready: VecDeque<Slot>,
    pub(super) accepted: VecDeque<Accepted>,
    pub(super) block: Option<Block>,
    /// Bytes of the client's preface that are still to come.
    pub(super) preface_left: usize,
    pub(super) settings_seen: bool,
    pub(super) settings_acked: bool,
    pub(super) max_frame: usize,
    pub(super) recv_window: i64,
    pub(super) recv_unacked: u32,
    pub(super) send_window: i64,
    pub(super) peer_window: i64,
    pub(super) peer_max_frame: usize,
    pub(super) peer_max_streams: u32,
    /// Body bytes that wait in all streams.
    pub(super) pending_total: usize,
    /// Streams of which not both directions are over.
    pub(super) open: usize,
    /// Streams that were open when the connection was lost.
    pub(super) cut: usize,
    /// The last stream of the peer.
    pub(super) last_peer: u32,
    /// The next stream of ours.
    pub(super) next_local: u32,
    /// Streams of the peer above this one are ignored (final GOAWAY).
    pub(super) goaway_sent: Option<u32>,
    pub(super) notice_sent: bool,
    pub(super) goaway_received: bool,
    /// The answer to the drain's ping has come.
    pub(super) drained: bool,
    /// No further frame is read.
    pub(super) dead: bool,
    /// The peer broke the protocol.
    pub(super) violated: bool,
    /// Nothing more is worth writing.
    pub(super) abort: bool,
    /// Wakes the driver to write.
    pub(super) driver: Option<Waker>,
    /// The driver runs, or will: it need not be woken.
    pub(super) driving: bool,
    /// When bytes were last read.
    pub(super) last_read: Instant,
    /// Streams that the client has reset, by and large before their time; and all that ended.
    pub(super) premature: u64,
    pub(super) ended: u64,
}

impl Session {
    /// A new connection; our SETTINGS are the first thing to write. `seed` varies the pings.
    pub(crate) fn new(role: Role, rules: Rules, stats: Http2Stats, now: Instant, seed: u64) -> Self {
        let settings = &rules.settings;
        let encoder = Encoder::new(settings.hpack_table_size as usize, settings.huffman);
        let mut session = Self {
            role,
            flood: Flood::new(&settings.flood, now),
            keepalive: Keepalive::new(settings.keepalive.clone(), now, seed),
            stats,
            streams: Streams::default(),
            decoder: Decoder::default(),
            encoder,
            out: super::take_output_buffer(),
            ready: VecDeque::new(),
            accepted: VecDeque::new(),
            block: None,
            preface_left: if role == Role::Server { PREFACE.len() } else { 0 },
            settings_seen: false,
            settings_acked: false,
            max_frame: settings.max_frame().max(DEFAULT_MAX_FRAME),
            recv_window: i64::from(settings.connection_window),
            recv_unacked: 0,
            send_window: 65_535,
            peer_window: 65_535,
            peer_max_frame: DEFAULT_MAX_FRAME,
            peer_max_streams: ASSUMED_STREAMS,
            pending_total: 0,
            open: 0,
            cut: 0,
            last_peer: 0,
            next_local: 1,
            goaway_sent: None,
            notice_sent: false,
            goaway_received: false,
            drained: false,
            dead: false,
            violated: false,
            abort: false,
            driver: None,
            driving: true,
            last_read: now,
            premature: 0,
            ended: 0,
            rules,
        };
        session.write_preface();
        session
    }

    fn write_preface(&mut self) {
        let settings = &self.rules.settings;
        if self.role == Role::Client {
            self.out.extend_from_slice(PREFACE);
        }
        let parameters = settings.parameters(self.role == Role::Client);
        frame::settings(&mut self.out, &parameters);
        self.decoder.offer(settings.hpack_table_size as usize);
        let more = settings.connection_window.saturating_sub(65_535);
        if more > 0 {
            frame::window_update(&mut self.out, 0, more);
        }
    }

    /// Takes in what was read; what is left of `input` is a frame that is not yet complete.
    pub(crate) fn receive(&mut self, input: &mut BytesMut, now: Instant) {
        self.last_read = now;
        while !self.dead {
            match self.receive_one(input, now) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Fault(reason)) => self.fail(reason),
            }
            if let Some(flooded) = self.flood.exceeded() {
                flooded.count(&self.stats);
                // A peer that does not read cannot be told anything either.
                self.abort = flooded.is_outbound();
                self.fail(flooded.reason());
            }
        }
        if self.dead {
            input.clear();
        }
    }

    /// Makes a place for a stream.
    pub(super) fn open_stream(&mut self, id: u32, now: Instant) -> Slot {
        self.open += 1;
        self.stats.streams_active().inc();
        self.streams.insert(id, now)
    }

    /// A stream was ended before its time by the peer, or for what it did: too many of those, and
    /// the connection ends, as Envoy does against rapid resets.
    pub(super) fn note_premature(&mut self) {
        self.premature += 1;
        if self.role == Role::Server && super::flood::is_rapid(self.premature, self.ended) {
            self.flood.rapid();
        }
    }

    /// Counts a stream that has ended.
    pub(super) fn note_ended(&mut self) {
        self.ended += 1;
    }

    /// The connection ends here, with this code.
    pub(super) fn fail(&mut self, reason: Reason) {
        if self.dead {
            return;
        }
        self.violated = true;
        frame::goaway(&mut self.out, self.last_peer, reason);
        self.stats.goaway_sent().inc();
        self.end_all(Over::Violation);
    }

    /// The connection is gone: all its streams are over.
    pub(crate) fn lost(&mut self) {
        self.abort = true;
        self.cut += self.open;
        self.end_all(Over::Lost);
    }

    /// Streams that ended because the connection was lost.
    pub(crate) fn cut(&self) -> usize {
        self.cut
    }

    pub(super) fn end_all(&mut self, over: Over) {
        self.dead = true;
        // Requests that nobody has taken yet are forgotten.
        for accepted in std::mem::take(&mut self.accepted) {
            if let Some(stream) = self.streams.at(accepted.slot) {
                stream.held = false;
            }
        }
        for slot in self.streams.all() {
            self.end_stream(slot, over);
            // Some were over before.
            self.settle(slot);
        }
    }

    /// The next request that has come.
    pub(crate) fn accept(&mut self) -> Option<Accepted> {
        self.accepted.pop_front()
    }

    /// Tells the peer to begin no further streams; those on their way are still served.
    pub(crate) fn shutdown_notice(&mut self) {
        if self.notice_sent || self.dead {
            return;
        }
        self.notice_sent = true;
        frame::goaway(&mut self.out, LARGEST_WINDOW as u32, Reason::NO_ERROR);
        frame::ping(&mut self.out, DRAIN_PING, false);
        self.stats.goaway_sent().inc();
        self.count_frame();
    }

    /// Whether the peer has seen the notice.
    pub(crate) fn notice_seen(&self) -> bool {
        self.drained
    }

    /// Tells the peer which of its streams was the last; later ones are ignored.
    pub(crate) fn goaway(&mut self) {
        if self.goaway_sent.is_some() || self.dead {
            return;
        }
        self.notice_sent = true;
        self.goaway_sent = Some(self.last_peer);
        frame::goaway(&mut self.out, self.last_peer, Reason::NO_ERROR);
        self.stats.goaway_sent().inc();
        self.count_frame();
        self.want_write();
    }

    /// The same before all streams that were not accepted yet: their client may try them elsewhere.
    pub(crate) fn goaway_unserved(&mut self) {
        let first = self.accepted.front().map(|accepted| accepted.slot);
        if let Some(stream) = first.and_then(|slot| self.streams.at(slot)) {
            self.last_peer = stream.id.saturating_sub(2);
        }
        self.goaway();
    }

    /// Whether nothing more will happen on the connection: it failed, or it said goodbye and its
    /// last stream has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.dead || (self.goaway_sent.is_some() && self.streams.len() == 0)
    }

    /// Whether what waits is not worth writing.
    pub(crate) fn is_aborted(&self) -> bool {
        self.abort
    }

    /// Whether the peer broke the protocol.
    pub(crate) fn is_violated(&self) -> bool {
        self.violated
    }

    /// Whether the connection ended because its client reset too many streams.
    pub(crate) fn is_rapidly_reset(&self) -> bool {
        self.flood.is_rapid()
    }

    /// Whether further streams of ours may begin.
    pub(crate) fn takes_streams(&self) -> bool {
        !self.dead && !self.goaway_received && !self.notice_sent && self.next_local < 0x7fff_ffff
    }

    /// Whether the peer has said goodbye.
    pub(crate) fn is_told_to_go(&self) -> bool {
        self.goaway_received
    }

    /// Streams that the peer allows at a time.
    pub(crate) fn peer_max_streams(&self) -> u32 {
        self.peer_max_streams
    }

    /// Streams that there are.
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The driver runs: what is written now needs no waking.
    pub(crate) fn begin_driving(&mut self, waker: &Waker) {
        self.driving = true;
        self.prepare_output();
        match &self.driver {
            Some(known) if known.will_wake(waker) => {}
            _ => self.driver = Some(waker.clone()),
        }
    }

    /// Makes sure that there is a buffer to write to.
    pub(super) fn prepare_output(&mut self) {
        if self.out.capacity() == 0 {
            self.out = super::take_output_buffer();
        }
    }

    /// The driver has written all it could.
    pub(crate) fn end_driving(&mut self) {
        self.driving = false;
        if self.streams.len() == 0 {
            self.streams.shrink();
            super::give_output_buffer(&mut self.out);
        }
    }

    /// Has the driver write.
    pub(super) fn want_write(&mut self) {
        if !self.driving {
            self.driving = true;
            if let Some(driver) = &self.driver {
                driver.wake_by_ref();
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stats.streams_active().add((self.open as u64).wrapping_neg());
        self.stats.pending_send_bytes().add((self.pending_total as u64).wrapping_neg());
    }
}
