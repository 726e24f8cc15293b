//! The sending half of a session: what streams write, what waits for window, how streams end.
//!
//! A stream's bytes go straight to the output if both windows and the output have room, which is
//! the rule; otherwise they wait in the stream. What waits is bounded: per stream, and for all of
//! them together (`poll_room`), so that a peer that reads slowly makes nothing grow.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes};

use super::frame::{self, DEFAULT_MAX_FRAME, HEAD, Reason};
use super::keepalive::Due;
use super::message;
use super::session::{Role, Session};
use super::streams::{Outbound, Over, Slot};
use crate::http::codec::{Frame, ResetReason};
use crate::http::headers::{HeaderMap, Known};

/// Above this, streams' bytes wait in the streams.
const OUTPUT_LIMIT: usize = 128 * 1024;
/// Bytes that wait in one stream before it is given no more.
const STREAM_LIMIT: usize = 64 * 1024;
/// Bytes that wait in all streams before those that wait are given no more.
const TOTAL_LIMIT: usize = 1024 * 1024;

impl Session {
    /// Opens a stream of ours with a request's head.
    pub(super) fn open_request(
        &mut self,
        map: &HeaderMap,
        end: bool,
        now: Instant,
    ) -> Result<Slot, ResetReason> {
        if !self.takes_streams() {
            // Nothing of it has reached the endpoint.
            return Err(ResetReason::ConnectionTermination);
        }
        if let Some(payload) = self.keepalive.before_stream(now, self.last_read) {
            frame::ping(&mut self.out, payload, false);
            self.count_frame();
        }
        let id = self.next_local;
        self.next_local += 2;
        let slot = self.open_stream(id, now);
        let start = self.begin_headers();
        message::write_request(&mut self.encoder, &mut self.out, map);
        let wire = self.finish_headers(start, id, end);
        self.flood.opened();
        let (recv_window, send_window) = (i64::from(self.rules.settings.stream_window), self.peer_window);
        if let Some(stream) = self.streams.at(slot) {
            stream.recv_window = recv_window;
            stream.send_window = send_window;
            stream.to_head = map.method() == b"HEAD";
            stream.connect = map.method() == b"CONNECT" || map.contains(Known::Upgrade);
            stream.wire.1 += wire;
            stream.send_done = end;
            stream.sent_end = end;
        }
        self.want_write();
        Ok(slot)
    }

    /// Sends a response's head; gives its bytes on the wire.
    pub(super) fn respond(&mut self, slot: Slot, map: &HeaderMap, status: u16, end: bool) -> u64 {
        let Some(stream) = self.streams.at(slot) else { return 0 };
        if stream.over.is_some() || stream.send_done {
            return 0;
        }
        let id = stream.id;
        let start = self.begin_headers();
        message::write_response(&mut self.encoder, &mut self.out, map, status);
        let wire = self.finish_headers(start, id, end);
        if let Some(stream) = self.streams.at(slot) {
            stream.wire.1 += wire;
            stream.send_done = end;
            stream.sent_end = end;
        }
        if end {
            self.settle(slot);
        }
        self.want_write();
        wire
    }

    fn begin_headers(&mut self) -> usize {
        self.prepare_output();
        let start = self.out.len();
        self.out.resize(start + HEAD, 0);
        start
    }

    fn finish_headers(&mut self, start: usize, id: u32, end: bool) -> u64 {
        let frames = frame::finish_headers(&mut self.out, start, id, end, self.peer_max_frame);
        for _ in 0..frames {
            self.count_frame();
        }
        (self.out.len() - start) as u64
    }

    /// Sends body bytes.
    pub(super) fn send_data(&mut self, slot: Slot, data: Bytes, end: bool) {
        let room = self.out.len() < OUTPUT_LIMIT;
        let window = self.send_window;
        let max = self.peer_max_frame.min(DEFAULT_MAX_FRAME);
        let Some(stream) = self.streams.at(slot) else { return };
        if stream.over.is_some() || stream.send_done || (data.is_empty() && !end) {
            return;
        }
        stream.send_done = end;
        let len = data.len();
        let allowed = len as i64 <= window.min(stream.send_window) || len == 0;
        if stream.pending.is_empty() && len <= max && allowed && room {
            self.write_data(slot, &data, end);
            self.want_write();
            return;
        }
        if len > 0 {
            stream.pending_bytes += len;
            stream.pending.push_back(Outbound::Data(data));
            self.pending_total += len;
            self.stats.pending_send_bytes().add(len as u64);
        }
        self.enqueue(slot);
        self.pump();
        self.want_write();
    }

    /// Ends a message with trailers.
    pub(super) fn send_trailers(&mut self, slot: Slot, map: &HeaderMap) {
        let Some(stream) = self.streams.at(slot) else { return };
        if stream.over.is_some() || stream.send_done {
            return;
        }
        stream.send_done = true;
        if stream.pending.is_empty() {
            self.write_trailers(slot, map);
        } else {
            stream.pending.push_back(Outbound::Trailers(Box::new(map.clone())));
            self.enqueue(slot);
        }
        self.want_write();
    }

    fn write_data(&mut self, slot: Slot, data: &[u8], end: bool) {
        let Some(stream) = self.streams.at(slot) else { return };
        stream.send_window -= data.len() as i64;
        stream.wire.1 += (HEAD + data.len()) as u64;
        stream.sent_end = end;
        let id = stream.id;
        self.send_window -= data.len() as i64;
        frame::data(&mut self.out, id, data, end);
        self.flood.data();
        self.count_frame();
        if end {
            self.settle(slot);
        }
    }

    fn write_trailers(&mut self, slot: Slot, map: &HeaderMap) {
        let Some(id) = self.streams.at(slot).map(|stream| stream.id) else { return };
        let start = self.begin_headers();
        message::write_trailers(&mut self.encoder, &mut self.out, map);
        let wire = self.finish_headers(start, id, true);
        if let Some(stream) = self.streams.at(slot) {
            stream.wire.1 += wire;
            stream.sent_end = true;
        }
        self.settle(slot);
    }

    /// Puts a stream that can send into the queue.
    pub(super) fn enqueue(&mut self, slot: Slot) {
        let Some(stream) = self.streams.at(slot) else { return };
        if !stream.queued && stream.over.is_none() && stream.can_send() {
            stream.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// Writes what waits in the streams, one frame of each in turn, as far as there is window and
    /// room.
    pub(super) fn pump(&mut self) {
        let mut turns = self.ready.len();
        while self.out.len() < OUTPUT_LIMIT
            && turns > 0
            && let Some(slot) = self.ready.pop_front()
        {
            let before = self.out.len();
            self.send_one(slot);
            // Streams that the connection's window holds up stay in the queue and wait.
            turns = if self.out.len() > before { self.ready.len() } else { turns - 1 };
        }
    }

    /// Writes one frame of a stream's.
    fn send_one(&mut self, slot: Slot) {
        let window = self.send_window;
        let max = self.peer_max_frame.min(DEFAULT_MAX_FRAME) as i64;
        let Some(stream) = self.streams.at(slot) else { return };
        stream.queued = false;
        if stream.over.is_some() {
            return;
        }
        match stream.pending.pop_front() {
            Some(Outbound::Data(mut data)) => {
                let len = max.min(window).min(stream.send_window).min(data.len() as i64);
                if len <= 0 {
                    stream.pending.push_front(Outbound::Data(data));
                    self.enqueue(slot);
                    return;
                }
                let piece = data.split_to(len as usize);
                stream.pending_bytes -= piece.len();
                if data.has_remaining() {
                    stream.pending.push_front(Outbound::Data(data));
                }
                let end = stream.send_done && stream.pending.is_empty();
                stream.wake();
                self.pending_total -= piece.len();
                self.stats.pending_send_bytes().add((piece.len() as u64).wrapping_neg());
                self.write_data(slot, &piece, end);
            }
            Some(Outbound::Trailers(map)) => {
                stream.wake();
                self.write_trailers(slot, &map);
            }
            None => {
                if stream.send_done && !stream.sent_end {
                    stream.wake();
                    self.write_data(slot, &[], true);
                }
            }
        }
        self.enqueue(slot);
    }

    /// Ready when a stream may be given more to send, or is over.
    pub(super) fn poll_room(&mut self, slot: Slot, cx: &Context<'_>) -> Poll<Option<Over>> {
        let crowded = self.pending_total >= TOTAL_LIMIT;
        let Some(stream) = self.streams.at(slot) else { return Poll::Ready(Some(Over::Lost)) };
        let full = stream.pending_bytes >= STREAM_LIMIT || (crowded && stream.pending_bytes > 0);
        if stream.over.is_some() || !full {
            return Poll::Ready(stream.over);
        }
        stream.watch(cx);
        Poll::Pending
    }

    /// Ready when nothing of a stream waits any more, or it is over.
    pub(super) fn poll_sent(&mut self, slot: Slot, cx: &Context<'_>) -> Poll<Option<Over>> {
        let Some(stream) = self.streams.at(slot) else { return Poll::Ready(Some(Over::Lost)) };
        if stream.over.is_some() || (stream.pending.is_empty() && stream.send_done == stream.sent_end) {
            return Poll::Ready(stream.over);
        }
        stream.watch(cx);
        Poll::Pending
    }

    /// Ready when a stream is over before its end.
    pub(super) fn poll_over(&mut self, slot: Slot, cx: &Context<'_>) -> Poll<Over> {
        let Some(stream) = self.streams.at(slot) else { return Poll::Ready(Over::Lost) };
        if let Some(over) = stream.over {
            return Poll::Ready(over);
        }
        stream.watch(cx);
        Poll::Pending
    }

    /// The next piece of what the peer sends. What is taken counts as consumed: whoever asks has
    /// room for it on the other side.
    pub(super) fn poll_frame(&mut self, slot: Slot, cx: &Context<'_>) -> Poll<Result<Frame, Over>> {
        let Some(stream) = self.streams.at(slot) else { return Poll::Ready(Err(Over::Lost)) };
        match stream.inbox.pop_front() {
            Some(super::streams::Inbound::Data(data)) => {
                stream.inbox_bytes -= data.len();
                let end = stream.recv_done && stream.inbox.is_empty();
                self.give_back(slot, data.len());
                if !self.out.is_empty() {
                    self.want_write();
                }
                Poll::Ready(Ok(Frame::Data { data, end }))
            }
            Some(super::streams::Inbound::Trailers(map)) => Poll::Ready(Ok(Frame::Trailers(map))),
            None if stream.recv_done => Poll::Ready(Ok(Frame::End)),
            None => match stream.over {
                Some(over) => Poll::Ready(Err(over)),
                None => {
                    stream.watch(cx);
                    Poll::Pending
                }
            },
        }
    }

    /// The next response head; says whether the response ends with it.
    pub(super) fn poll_head(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
        map: &mut HeaderMap,
    ) -> Poll<Result<bool, Over>> {
        let Some(stream) = self.streams.at(slot) else { return Poll::Ready(Err(Over::Lost)) };
        if let Some(head) = stream.heads.pop_front() {
            *map = head;
            return Poll::Ready(Ok(stream.recv_done && stream.inbox.is_empty()));
        }
        match stream.over {
            Some(over) => Poll::Ready(Err(over)),
            None => {
                stream.watch(cx);
                Poll::Pending
            }
        }
    }

    /// Bytes of a stream's frames: (received, sent).
    pub(super) fn wire_bytes(&mut self, slot: Slot) -> (u64, u64) {
        self.streams.at(slot).map_or((0, 0), |stream| stream.wire)
    }

    /// Resets a stream.
    pub(super) fn reset(&mut self, slot: Slot, reason: Reason, over: Over) {
        let Some(stream) = self.streams.at(slot) else { return };
        if stream.over.is_some() {
            return;
        }
        stream.wire.1 += (HEAD + 4) as u64;
        let id = stream.id;
        self.write_reset(id, reason);
        self.end_stream(slot, over);
    }

    /// Writes RST_STREAM.
    pub(super) fn write_reset(&mut self, id: u32, reason: Reason) {
        frame::rst_stream(&mut self.out, id, reason);
        self.stats.tx_reset().inc();
        self.count_control();
        self.want_write();
    }

    /// A stream is over before its end; what the peer has sent of a complete message can still be
    /// read.
    pub(super) fn end_stream(&mut self, slot: Slot, over: Over) {
        let Some(stream) = self.streams.at(slot) else { return };
        if stream.over.is_some() {
            return;
        }
        stream.over = Some(over);
        stream.pending.clear();
        let unsent = std::mem::take(&mut stream.pending_bytes);
        stream.wake();
        self.pending_total -= unsent;
        self.stats.pending_send_bytes().add((unsent as u64).wrapping_neg());
        self.settle(slot);
    }

    /// Counts a stream off when both directions are over, and forgets it when nobody holds it.
    pub(super) fn settle(&mut self, slot: Slot) {
        let Some(stream) = self.streams.at(slot) else { return };
        let (held, over) = (stream.held, stream.over.is_some());
        if !(over || (stream.recv_done && stream.sent_end)) {
            if !held && stream.sent_end && self.role == Role::Server {
                // RFC 9113 section 8.1: the rest of the request is not needed.
                self.reset(slot, Reason::NO_ERROR, Over::Local);
            }
            return;
        }
        if !std::mem::replace(&mut stream.closed, true) {
            self.open = self.open.saturating_sub(1);
            self.note_ended();
            self.stats.streams_active().dec();
        }
        if !held {
            self.streams.remove(slot);
        }
    }

    /// A stream's handle is gone.
    pub(super) fn release(&mut self, slot: Slot) {
        let Some(stream) = self.streams.at(slot) else { return };
        stream.held = false;
        stream.waker = None;
        stream.inbox.clear();
        stream.heads.clear();
        let unread = std::mem::take(&mut stream.inbox_bytes);
        let (unfinished, over) = (!stream.send_done, stream.over.is_some());
        let unanswered = self.role == Role::Client && !stream.recv_done;
        self.give_back(slot, unread);
        if !over && (unfinished || unanswered) {
            let reason = if self.role == Role::Server { Reason::INTERNAL_ERROR } else { Reason::CANCEL };
            self.reset(slot, reason, Over::Local);
        } else {
            self.settle(slot);
        }
        if self.is_finished() {
            self.want_write();
        }
    }

    /// One frame more waits to be written.
    pub(super) fn count_frame(&mut self) {
        self.flood.outbound(false);
    }

    /// The same for frames that a peer can provoke at no cost.
    pub(super) fn count_control(&mut self) {
        self.flood.outbound(true);
    }

    /// Exchanges the (empty) buffer that was written with the one to write next; false: there is
    /// nothing.
    pub(crate) fn take_output(&mut self, written: &mut Vec<u8>) -> bool {
        self.flood.written();
        self.pump();
        if self.out.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.out, written);
        self.flood.handed_over();
        true
    }

    /// When `keep_alive` has something to do.
    pub(crate) fn keepalive_deadline(&self) -> Option<Instant> {
        self.keepalive.deadline(self.last_read)
    }

    /// Sends the ping that is due. False: the peer does not answer, and the connection is over.
    pub(crate) fn keep_alive(&mut self, now: Instant) -> bool {
        match self.keepalive.due(now, self.last_read) {
            Due::Nothing => true,
            Due::Ping(payload) => {
                frame::ping(&mut self.out, payload, false);
                self.count_frame();
                true
            }
            Due::TimedOut => {
                self.stats.keepalive_timeout().inc();
                false
            }
        }
    }
}
