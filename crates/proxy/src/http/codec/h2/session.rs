//! One HTTP/2 connection without its socket: bytes in, streams' state and bytes out.
//!
//! The task that drives the connection and its streams share a session: the driver feeds what it
//! reads to `receive` and writes what it finds in `take_output`; streams read and write through
//! their handles (`server`, `client`) and are woken when something has come for them. All that the
//! streams write until the driver writes goes out at once. This file holds the state and what
//! frames do to it; `send` is the sending half, `flood` the limits, `keepalive` the pings.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::flood::Flood;
use super::frame::{self, DEFAULT_MAX_FRAME, FrameHead, HEAD, Reason, flag, kind, setting};
use super::hpack::decoder::Decoder;
use super::hpack::encoder::Encoder;
use super::keepalive::Keepalive;
use super::message::{self, HeadRules, Malformed, MessageFacts, MessageKind};
use super::stats::Http2Stats;
use super::streams::{Inbound, Over, Slot, Streams};
use super::{LARGEST_WINDOW, PREFACE};
use crate::cluster::Http2Settings;
use crate::http::headers::HeaderMap;

/// Pieces up to this size are copied out of the read buffer, so that it can be used again at once.
const COPY_LIMIT: usize = 4096;
/// Interim responses that may wait to be read.
const MAX_INTERIM: usize = 64;
/// Streams that a peer is assumed to allow before it says so.
const ASSUMED_STREAMS: u32 = 100;
/// The answer to this ping shows that the client has seen the first GOAWAY.
const DRAIN_PING: [u8; 8] = *b"draining";

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

const PROTOCOL: Fault = Fault(Reason::PROTOCOL_ERROR);
const FRAME_SIZE: Fault = Fault(Reason::FRAME_SIZE_ERROR);
const FLOW_CONTROL: Fault = Fault(Reason::FLOW_CONTROL_ERROR);

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

/// A header block of which frames are still to come.
#[derive(Debug)]
struct Block {
    head: FrameHead,
    bytes: Vec<u8>,
    continuations: usize,
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
    decoder: Decoder,
    pub(super) encoder: Encoder,
    /// Frames to write.
    pub(super) out: Vec<u8>,
    /// Streams that have something to send, and window.
    pub(super) ready: VecDeque<Slot>,
    accepted: VecDeque<Accepted>,
    block: Option<Block>,
    /// Bytes of the client's preface that are still to come.
    preface_left: usize,
    settings_seen: bool,
    settings_acked: bool,
    max_frame: usize,
    recv_window: i64,
    recv_unacked: u32,
    pub(super) send_window: i64,
    pub(super) peer_window: i64,
    pub(super) peer_max_frame: usize,
    peer_max_streams: u32,
    /// Body bytes that wait in all streams.
    pub(super) pending_total: usize,
    /// Streams of which not both directions are over.
    pub(super) open: usize,
    /// Streams that were open when the connection was lost.
    cut: usize,
    /// The last stream of the peer.
    last_peer: u32,
    /// The next stream of ours.
    pub(super) next_local: u32,
    /// Streams of the peer above this one are ignored (final GOAWAY).
    goaway_sent: Option<u32>,
    notice_sent: bool,
    goaway_received: bool,
    /// The answer to the drain's ping has come.
    drained: bool,
    /// No further frame is read.
    dead: bool,
    /// The peer broke the protocol.
    violated: bool,
    /// Nothing more is worth writing.
    abort: bool,
    /// Wakes the driver to write.
    driver: Option<Waker>,
    /// The driver runs, or will: it need not be woken.
    pub(super) driving: bool,
    /// When bytes were last read.
    pub(super) last_read: Instant,
    /// Streams that the client has reset, by and large before their time; and all that ended.
    premature: u64,
    ended: u64,
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

    /// Takes in one frame, if it is there.
    fn receive_one(&mut self, input: &mut BytesMut, now: Instant) -> Result<bool, Fault> {
        if self.preface_left > 0 {
            let expected = PREFACE.get(PREFACE.len() - self.preface_left..).unwrap_or_default();
            let common = input.len().min(expected.len());
            if input.get(..common) != expected.get(..common) {
                return Err(PROTOCOL);
            }
            self.preface_left -= common;
            input.advance(common);
            return Ok(self.preface_left == 0);
        }
        let Some(head) = FrameHead::parse(input) else { return Ok(false) };
        if head.len > self.max_frame {
            return Err(FRAME_SIZE);
        }
        if !self.settings_seen && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(PROTOCOL);
        }
        if self
            .block
            .as_ref()
            .is_some_and(|block| head.kind != kind::CONTINUATION || head.stream != block.head.stream)
        {
            return Err(PROTOCOL);
        }
        if input.len() < HEAD + head.len {
            return Ok(false);
        }
        input.advance(HEAD);
        if matches!(head.kind, kind::DATA | kind::HEADERS | kind::CONTINUATION) {
            let end = head.kind != kind::CONTINUATION && head.has(flag::END_STREAM);
            self.flood.payload(head.len == 0 && !end);
        }
        if head.kind == kind::DATA {
            self.on_data(head, input)?;
            return Ok(true);
        }
        let payload = input.get(..head.len).unwrap_or_default();
        match head.kind {
            kind::HEADERS => self.on_headers(head, payload, now),
            kind::CONTINUATION => self.on_continuation(head, payload, now),
            kind::RST_STREAM => self.on_reset(head, payload, now),
            kind::SETTINGS => self.on_settings(head, payload),
            kind::PING => self.on_ping(head, payload, now),
            kind::GOAWAY => self.on_goaway(head, payload),
            kind::WINDOW_UPDATE => self.on_window_update(head, payload),
            kind::PRIORITY => self.on_priority(head),
            // We have not allowed them, and a client must not send them.
            kind::PUSH_PROMISE => Err(PROTOCOL),
            _ => Ok(()),
        }?;
        input.advance(head.len);
        Ok(true)
    }

    fn on_data(&mut self, head: FrameHead, input: &mut BytesMut) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(PROTOCOL);
        }
        let flow = head.len as i64;
        if flow > self.recv_window {
            return Err(FLOW_CONTROL);
        }
        self.recv_window -= flow;
        let payload = input.get(..head.len).unwrap_or_default();
        let data = frame::unpad(payload, head.has(flag::PADDED)).ok_or(PROTOCOL)?;
        let (offset, len) = (usize::from(head.has(flag::PADDED)), data.len());
        let slot = match self.streams.find(head.stream) {
            Some(slot) => slot,
            None if self.is_idle(head.stream) => return Err(PROTOCOL),
            None => {
                input.advance(head.len);
                self.give_back_connection(head.len);
                return Ok(());
            }
        };
        let end = head.has(flag::END_STREAM);
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        if stream.over.is_some() {
            input.advance(head.len);
            self.give_back_connection(head.len);
            return Ok(());
        }
        if stream.recv_done {
            return Err(Fault(Reason::STREAM_CLOSED));
        }
        stream.wire.0 += (HEAD + head.len) as u64;
        if flow > stream.recv_window {
            input.advance(head.len);
            self.give_back_connection(head.len);
            self.reset(slot, Reason::FLOW_CONTROL_ERROR, Over::Violation);
            return Ok(());
        }
        stream.recv_window -= flow;
        let unexpected = self.role == Role::Client && !stream.answered;
        let mismatch = match &mut stream.content_left {
            Some(left) => {
                let excess = len as u64 > *left;
                *left = left.saturating_sub(len as u64);
                excess || (end && *left > 0)
            }
            None => false,
        };
        if unexpected || mismatch {
            input.advance(head.len);
            self.give_back_connection(head.len);
            self.mismatched(slot);
            return Ok(());
        }
        stream.recv_done |= end;
        if stream.held && len > 0 {
            let data = if len <= COPY_LIMIT {
                let data = Bytes::copy_from_slice(input.get(offset..offset + len).unwrap_or_default());
                input.advance(head.len);
                data
            } else {
                let mut payload = input.split_to(head.len).freeze();
                payload.advance(offset);
                payload.truncate(len);
                payload
            };
            stream.inbox_bytes += len;
            stream.inbox.push_back(Inbound::Data(data));
            stream.wake();
            // Padding is consumed as it comes.
            self.give_back(slot, head.len - len);
        } else {
            input.advance(head.len);
            stream.wake();
            self.give_back(slot, head.len);
        }
        if end {
            self.settle(slot);
        }
        Ok(())
    }

    fn on_headers(&mut self, head: FrameHead, payload: &[u8], now: Instant) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(PROTOCOL);
        }
        let mut payload = frame::unpad(payload, head.has(flag::PADDED)).ok_or(PROTOCOL)?;
        if head.has(flag::PRIORITY) {
            // Priorities are ignored (RFC 9113 section 5.3.2).
            payload = payload.get(5..).ok_or(FRAME_SIZE)?;
        }
        if head.has(flag::END_HEADERS) {
            return self.on_block(head, payload, (HEAD + head.len) as u64, now);
        }
        self.block = Some(Block { head, bytes: payload.to_vec(), continuations: 0 });
        Ok(())
    }

    fn on_continuation(&mut self, head: FrameHead, payload: &[u8], now: Instant) -> Result<(), Fault> {
        let Some(mut block) = self.block.take() else { return Err(PROTOCOL) };
        block.bytes.extend_from_slice(payload);
        block.continuations += 1;
        if head.has(flag::END_HEADERS) {
            let wire = block.bytes.len() + HEAD * (1 + block.continuations);
            return self.on_block(block.head, &block.bytes, wire as u64, now);
        }
        // As many as the largest head needs, compressed as badly as can be.
        let limit = self.rules.heads.max_bytes + 32 * self.rules.heads.max_fields;
        if block.bytes.len() > limit + DEFAULT_MAX_FRAME
            || block.continuations > 8 + limit / DEFAULT_MAX_FRAME
        {
            return Err(Fault(Reason::ENHANCE_YOUR_CALM));
        }
        self.block = Some(block);
        Ok(())
    }

    /// A header block is complete.
    fn on_block(&mut self, head: FrameHead, block: &[u8], wire: u64, now: Instant) -> Result<(), Fault> {
        let end = head.has(flag::END_STREAM);
        if let Some(slot) = self.streams.find(head.stream) {
            return self.on_stream_block(slot, block, wire, end);
        }
        let fresh = self.role == Role::Server && head.stream % 2 == 1 && head.stream > self.last_peer;
        if !fresh {
            if self.is_idle(head.stream) || (self.role == Role::Server && head.stream.is_multiple_of(2)) {
                return Err(PROTOCOL);
            }
            // Of a stream that is over: only the compression state must follow.
            self.stats.headers_cb_no_stream().inc();
            return self.skip_block(block);
        }
        self.last_peer = head.stream;
        if self.goaway_sent.is_some() {
            return self.skip_block(block);
        }
        let mut map = HeaderMap::default();
        let facts =
            message::read(&mut self.decoder, block, MessageKind::Request, &self.rules.heads, &mut map)
                .map_err(|_| Fault(Reason::COMPRESSION_ERROR))?;
        if self.open >= self.rules.settings.max_concurrent_streams as usize {
            self.write_reset(head.stream, Reason::REFUSED_STREAM);
            self.note_premature();
            return Ok(());
        }
        let slot = self.open_stream(head.stream, now);
        let window = i64::from(self.rules.settings.stream_window);
        let send_window = self.peer_window;
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        stream.recv_window = window;
        stream.send_window = send_window;
        stream.wire.0 = wire;
        stream.held = false;
        let facts = match facts {
            Ok(facts) => facts,
            Err(malformed) => return self.malformed(slot, malformed),
        };
        stream.recv_done = end;
        stream.connect = facts.upgrade || map.method() == b"CONNECT";
        stream.content_left = facts.content_length.filter(|_| !stream.connect);
        if end && stream.content_left.is_some_and(|left| left > 0) {
            return self.malformed(slot, Malformed::Messaging("http2.violation.of.messaging.rule"));
        }
        stream.held = true;
        self.flood.opened();
        self.accepted.push_back(Accepted { slot, head: map, upgrade: facts.upgrade, wire });
        Ok(())
    }

    /// A block on a stream that exists: a response, or trailers.
    fn on_stream_block(&mut self, slot: Slot, block: &[u8], wire: u64, end: bool) -> Result<(), Fault> {
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        stream.wire.0 += wire;
        let (over, recv_done, answered) = (stream.over.is_some(), stream.recv_done, stream.answered);
        if over {
            return self.skip_block(block);
        }
        if recv_done {
            return Err(Fault(Reason::STREAM_CLOSED));
        }
        let response = self.role == Role::Client && !answered;
        let kind = if response { MessageKind::Response } else { MessageKind::Trailers };
        let mut map = HeaderMap::default();
        let facts = message::read(&mut self.decoder, block, kind, &self.rules.heads, &mut map)
            .map_err(|_| Fault(Reason::COMPRESSION_ERROR))?;
        let facts = match facts {
            Ok(facts) => facts,
            Err(malformed) => return self.malformed(slot, malformed),
        };
        if response {
            return self.on_response(slot, map, facts, end);
        }
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        if !end || stream.content_left.is_some_and(|left| left > 0) {
            return self.malformed(slot, Malformed::Messaging("http2.violation.of.messaging.rule"));
        }
        stream.recv_done = true;
        if stream.held {
            self.stats.trailers().inc();
            stream.inbox.push_back(Inbound::Trailers(Box::new(map)));
            stream.wake();
        }
        self.settle(slot);
        Ok(())
    }

    fn on_response(
        &mut self,
        slot: Slot,
        map: HeaderMap,
        facts: MessageFacts,
        end: bool,
    ) -> Result<(), Fault> {
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        let status = map.status();
        let interim = (100..200).contains(&status);
        // There is no 101 in HTTP/2 (RFC 9113 section 8.6), and interim responses end nothing.
        let wrong = status < 100 || status == 101 || (interim && (end || stream.heads.len() >= MAX_INTERIM));
        let bodiless = stream.to_head || status == 304 || status == 204;
        let tunnel = stream.connect && (200..300).contains(&status);
        if !interim {
            stream.answered = true;
            stream.content_left = if bodiless { Some(0) } else { facts.content_length.filter(|_| !tunnel) };
        }
        if wrong || (end && !bodiless && stream.content_left.is_some_and(|left| left > 0)) {
            return self.malformed(slot, Malformed::Messaging("http2.violation.of.messaging.rule"));
        }
        stream.recv_done = end;
        if stream.held {
            stream.heads.push_back(map);
            stream.wake();
        }
        if end {
            self.settle(slot);
        }
        Ok(())
    }

    fn skip_block(&mut self, block: &[u8]) -> Result<(), Fault> {
        self.decoder.decode(block, |_| ()).map_err(|_| Fault(Reason::COMPRESSION_ERROR))
    }

    /// A message is invalid: its stream ends, or the connection.
    fn malformed(&mut self, slot: Slot, malformed: Malformed) -> Result<(), Fault> {
        match malformed {
            Malformed::TooLarge => {
                self.stats.header_overflow().inc();
                self.note_premature();
                // Whoever waits for the message is told that the peer has reset it, as in Envoy.
                self.reset(slot, Reason::INTERNAL_ERROR, Over::Remote(Reason::INTERNAL_ERROR));
                Ok(())
            }
            Malformed::Messaging(_) => {
                self.stats.rx_messaging_error().inc();
                if !self.rules.stream_errors {
                    return Err(PROTOCOL);
                }
                self.note_premature();
                self.reset(slot, Reason::PROTOCOL_ERROR, Over::Violation);
                Ok(())
            }
        }
    }

    /// A body is not what its head announced: that ends its stream only, in Envoy too.
    fn mismatched(&mut self, slot: Slot) {
        self.stats.rx_messaging_error().inc();
        self.note_premature();
        self.reset(slot, Reason::PROTOCOL_ERROR, Over::Violation);
    }

    fn on_reset(&mut self, head: FrameHead, payload: &[u8], now: Instant) -> Result<(), Fault> {
        if head.len != 4 {
            return Err(FRAME_SIZE);
        }
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(PROTOCOL);
        }
        self.stats.rx_reset().inc();
        if self.role == Role::Server {
            self.flood.reset(now);
        }
        let reason = Reason(frame::number(payload).unwrap_or(0));
        let Some(slot) = self.streams.find(head.stream) else { return Ok(()) };
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        if stream.over.is_some() {
            return Ok(());
        }
        stream.wire.0 += (HEAD + head.len) as u64;
        let young = now.saturating_duration_since(stream.opened) < super::flood::PREMATURE;
        let premature = self.role == Role::Server && !stream.send_done && young;
        if reason == Reason::REFUSED_STREAM {
            self.stats.stream_refused_errors().inc();
        }
        self.end_stream(slot, Over::Remote(reason));
        if premature {
            self.note_premature();
        }
        Ok(())
    }

    fn on_settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL);
        }
        if head.has(flag::ACK) {
            if head.len > 0 {
                return Err(FRAME_SIZE);
            }
            if !self.settings_acked {
                self.settings_acked = true;
                self.decoder.acknowledged(self.rules.settings.hpack_table_size as usize);
            }
            return Ok(());
        }
        let (parameters, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(FRAME_SIZE);
        }
        if !self.settings_seen {
            // What is assumed holds until the first SETTINGS only.
            self.settings_seen = true;
            self.peer_max_streams = u32::MAX;
        }
        let mut window = self.peer_window;
        for [a, b, value @ ..] in parameters {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                setting::HEADER_TABLE_SIZE => self.encoder.allow(value as usize),
                setting::ENABLE_PUSH if value > u32::from(self.role == Role::Server) => return Err(PROTOCOL),
                setting::MAX_CONCURRENT_STREAMS => self.peer_max_streams = value,
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > LARGEST_WINDOW => {
                    return Err(FLOW_CONTROL);
                }
                setting::INITIAL_WINDOW_SIZE => window = i64::from(value),
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => return Err(PROTOCOL),
                setting::MAX_FRAME_SIZE => self.peer_max_frame = value as usize,
                setting::ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(PROTOCOL),
                _ => {}
            }
        }
        self.change_peer_window(window)?;
        frame::settings_ack(&mut self.out);
        self.count_control();
        Ok(())
    }

    fn change_peer_window(&mut self, window: i64) -> Result<(), Fault> {
        let delta = window - self.peer_window;
        self.peer_window = window;
        if delta == 0 {
            return Ok(());
        }
        for slot in self.streams.all() {
            let Some(stream) = self.streams.at(slot) else { continue };
            stream.send_window += delta;
            if stream.send_window > LARGEST_WINDOW {
                return Err(FLOW_CONTROL);
            }
            self.enqueue(slot);
        }
        Ok(())
    }

    fn on_ping(&mut self, head: FrameHead, payload: &[u8], now: Instant) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL);
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else { return Err(FRAME_SIZE) };
        if !head.has(flag::ACK) {
            frame::ping(&mut self.out, payload, true);
            self.count_control();
        } else if payload == DRAIN_PING {
            self.drained = true;
        } else {
            self.keepalive.answered(payload, now);
        }
        Ok(())
    }

    fn on_goaway(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL);
        }
        if head.len < 8 {
            return Err(FRAME_SIZE);
        }
        self.goaway_received = true;
        let last = frame::number(payload).unwrap_or(0) & 0x7fff_ffff;
        if self.role == Role::Client {
            for slot in self.streams.all() {
                if self.streams.at(slot).is_some_and(|stream| stream.id > last && stream.over.is_none()) {
                    self.end_stream(slot, Over::Unprocessed);
                }
            }
        }
        Ok(())
    }

    fn on_window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        if head.len != 4 {
            return Err(FRAME_SIZE);
        }
        let increment = i64::from(frame::number(payload).unwrap_or(0) & 0x7fff_ffff);
        self.flood.window_update();
        if head.stream == 0 {
            if increment == 0 {
                return Err(PROTOCOL);
            }
            self.send_window += increment;
            return if self.send_window > LARGEST_WINDOW { Err(FLOW_CONTROL) } else { Ok(()) };
        }
        let slot = match self.streams.find(head.stream) {
            Some(slot) => slot,
            None if self.is_idle(head.stream) => return Err(PROTOCOL),
            None => return Ok(()),
        };
        let Some(stream) = self.streams.at(slot) else { return Ok(()) };
        stream.wire.0 += (HEAD + head.len) as u64;
        if stream.over.is_some() {
            return Ok(());
        }
        if increment == 0 {
            return Err(PROTOCOL);
        }
        stream.send_window += increment;
        if stream.send_window > LARGEST_WINDOW {
            self.note_premature();
            self.reset(slot, Reason::FLOW_CONTROL_ERROR, Over::Violation);
            return Ok(());
        }
        self.enqueue(slot);
        Ok(())
    }

    fn on_priority(&mut self, head: FrameHead) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(PROTOCOL);
        }
        if head.len != 5 {
            return Err(FRAME_SIZE);
        }
        self.flood.priority();
        Ok(())
    }

    /// Whether nobody has begun this stream yet.
    fn is_idle(&self, id: u32) -> bool {
        let ours = id.is_multiple_of(2) == (self.role == Role::Server);
        if ours { self.role == Role::Server || id >= self.next_local } else { id > self.last_peer }
    }

    /// Makes a place for a stream.
    pub(super) fn open_stream(&mut self, id: u32, now: Instant) -> Slot {
        self.open += 1;
        self.stats.streams_active().inc();
        self.streams.insert(id, now)
    }

    /// Counts body bytes that were consumed: window is given back in large steps.
    pub(super) fn give_back(&mut self, slot: Slot, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.give_back_connection(bytes);
        let size = self.rules.settings.stream_window;
        let Some(stream) = self.streams.at(slot) else { return };
        stream.unacked += bytes as u32;
        if stream.unacked < size / 2 || stream.recv_done || stream.over.is_some() {
            return;
        }
        let increment = std::mem::take(&mut stream.unacked);
        stream.recv_window += i64::from(increment);
        stream.wire.1 += (HEAD + 4) as u64;
        let id = stream.id;
        frame::window_update(&mut self.out, id, increment);
        self.count_frame();
    }

    /// The same of the connection alone.
    fn give_back_connection(&mut self, bytes: usize) {
        self.recv_unacked += bytes as u32;
        if self.recv_unacked >= self.rules.settings.connection_window / 2 {
            let increment = std::mem::take(&mut self.recv_unacked);
            self.recv_window += i64::from(increment);
            frame::window_update(&mut self.out, 0, increment);
            self.count_frame();
        }
    }

    /// A stream was ended before its time by the peer, or for what it did: too many of those, and
    /// the connection ends, as Envoy does against rapid resets.
    fn note_premature(&mut self) {
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
    fn fail(&mut self, reason: Reason) {
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

    fn end_all(&mut self, over: Over) {
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
