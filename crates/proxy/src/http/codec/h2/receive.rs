//! The receiving half of a session: what each frame of the peer does to it (RFC 9113 section 6).
//!
//! Frames are checked in the order of arrival; what is wrong with a stream resets it, what is wrong
//! with the connection is a [`Fault`]. Bodies count against the windows of section 5.2 until whoever
//! reads them gives the bytes back.

use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{self, DEFAULT_MAX_FRAME, FrameHead, HEAD, Reason, flag, kind, setting};
use super::message::{self, Malformed, MessageFacts, MessageKind};
use super::session::{Accepted, DRAIN_PING, Fault, Role, Session};
use super::streams::{Inbound, Over, Slot};
use super::{LARGEST_WINDOW, PREFACE};
use crate::http::headers::HeaderMap;

/// Pieces up to this size are copied out of the read buffer, so that it can be used again at once.
const COPY_LIMIT: usize = 4096;
/// Interim responses that may wait to be read.
const MAX_INTERIM: usize = 64;

const PROTOCOL: Fault = Fault(Reason::PROTOCOL_ERROR);
const FRAME_SIZE: Fault = Fault(Reason::FRAME_SIZE_ERROR);
const FLOW_CONTROL: Fault = Fault(Reason::FLOW_CONTROL_ERROR);

/// A header block of which frames are still to come.
#[derive(Debug)]
pub(super) struct Block {
    head: FrameHead,
    bytes: Vec<u8>,
    continuations: usize,
}

impl Session {
    /// Takes in one frame, if it is there.
    pub(super) fn receive_one(&mut self, input: &mut BytesMut, now: Instant) -> Result<bool, Fault> {
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
}
