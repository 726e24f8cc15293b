//! The streams of one connection, in places that are used again.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;

use super::frame::Reason;
use crate::http::headers::HeaderMap;

/// Why a stream is over before both messages were complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The peer has reset it.
    Remote(Reason),
    /// The peer will not look at it (GOAWAY).
    Unprocessed,
    /// The peer broke the protocol.
    Violation,
    /// We have reset it.
    Local,
    /// The connection is gone.
    Lost,
}

/// What came behind a head.
#[derive(Debug)]
pub(super) enum Inbound {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

/// What waits for window or room.
#[derive(Debug)]
pub(super) enum Outbound {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// Its handle exists.
    pub(super) held: bool,
    pub(super) over: Option<Over>,
    pub(super) waker: Option<Waker>,
    pub(super) opened: Instant,
    /// The peer has ended its message.
    pub(super) recv_done: bool,
    /// How much more the peer may send.
    pub(super) recv_window: i64,
    /// Consumed, and not yet given back.
    pub(super) unacked: u32,
    pub(super) inbox: VecDeque<Inbound>,
    /// Bytes in `inbox`.
    pub(super) inbox_bytes: usize,
    /// What is left of the announced `content-length`.
    pub(super) content_left: Option<u64>,
    /// Response heads that wait to be read (client), interim ones first.
    pub(super) heads: VecDeque<HeaderMap>,
    /// The final response head has come (client).
    pub(super) answered: bool,
    /// The answer has no body, whatever it says: to HEAD (client).
    pub(super) to_head: bool,
    /// The request was CONNECT, plain or extended.
    pub(super) connect: bool,
    /// How much more we may send.
    pub(super) send_window: i64,
    pub(super) pending: VecDeque<Outbound>,
    /// Body bytes in `pending`.
    pub(super) pending_bytes: usize,
    /// Our message is complete, behind what is pending.
    pub(super) send_done: bool,
    /// END_STREAM was written.
    pub(super) sent_end: bool,
    /// It is in the queue of those that may send.
    pub(super) queued: bool,
    /// Both directions are over: it counts no longer.
    pub(super) closed: bool,
    /// Bytes of its frames, received and sent.
    pub(super) wire: (u64, u64),
}

impl Stream {
    fn new(id: u32, now: Instant) -> Self {
        Self {
            id,
            held: true,
            over: None,
            waker: None,
            opened: now,
            recv_done: false,
            recv_window: 0,
            unacked: 0,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            content_left: None,
            heads: VecDeque::new(),
            answered: false,
            to_head: false,
            connect: false,
            send_window: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            send_done: false,
            sent_end: false,
            queued: false,
            closed: false,
            wire: (0, 0),
        }
    }

    /// Something has changed for whoever holds it.
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Wakes this task at the next change.
    pub(super) fn watch(&mut self, cx: &Context<'_>) {
        match &self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.waker = Some(cx.waker().clone()),
        }
    }

    /// Whether a frame for it can be written now, as far as it goes by itself.
    pub(super) fn can_send(&self) -> bool {
        match self.pending.front() {
            Some(Outbound::Data(data)) => self.send_window > 0 || data.is_empty(),
            Some(Outbound::Trailers(_)) => true,
            None => self.send_done && !self.sent_end,
        }
    }
}

/// Mixes stream numbers: they are small and regular.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// Where a stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(usize);

/// All streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    free: Vec<Slot>,
    by_id: HashMap<u32, Slot, BuildHasherDefault<NumberHasher>>,
    /// Queues of streams that are gone, to be used again.
    inboxes: Vec<(VecDeque<Inbound>, VecDeque<HeaderMap>)>,
}

impl Streams {
    /// A new stream.
    pub(super) fn insert(&mut self, id: u32, now: Instant) -> Slot {
        let mut stream = Stream::new(id, now);
        if let Some((inbox, heads)) = self.inboxes.pop() {
            stream.inbox = inbox;
            stream.heads = heads;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                Slot(self.slots.len() - 1)
            }
        };
        if let Some(place) = self.slots.get_mut(slot.0) {
            *place = Some(stream);
        }
        self.by_id.insert(id, slot);
        slot
    }

    /// Forgets a stream.
    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(mut stream) = self.slots.get_mut(slot.0).and_then(Option::take) else { return };
        self.by_id.remove(&stream.id);
        self.free.push(slot);
        if self.inboxes.len() < 64 && stream.inbox.capacity() <= 8 {
            stream.inbox.clear();
            stream.heads.clear();
            self.inboxes.push((std::mem::take(&mut stream.inbox), std::mem::take(&mut stream.heads)));
        }
    }

    /// The stream at a place.
    pub(super) fn at(&mut self, slot: Slot) -> Option<&mut Stream> {
        self.slots.get_mut(slot.0).and_then(Option::as_mut)
    }

    /// The place of a stream.
    pub(super) fn find(&self, id: u32) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All places that are in use.
    pub(super) fn all(&self) -> Vec<Slot> {
        self.by_id.values().copied().collect()
    }

    /// Gives memory back that a connection without streams does not need.
    pub(super) fn shrink(&mut self) {
        if self.by_id.is_empty() && self.slots.len() > 4 {
            *self = Self::default();
        }
    }
}
