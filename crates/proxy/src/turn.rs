//! Small messages wait for the end of the worker's turn: they go out one behind the other.
//!
//! A turn of a worker is what it does between two questions for events. Sending costs more than
//! all the rest of a request, and most of that is the processor fetching the kernel's
//! instructions: after each message it has forgotten them, as the proxy's own fill its cache. So
//! a message that is complete is left here (`Letter`), and the runtime sends all of them in a row
//! before it waits (`end`), or as soon as there are `MOST`. Whoever left it goes on as if it had
//! been sent; what the socket did not take comes back with the next attempt to write, for which
//! the task is woken. Nothing waits for longer than a turn: a turn that does not end, as some
//! task is always ready, is cut by `tick`.
//!
//! Only worker threads do so (`begin`); elsewhere messages are sent at once. Read next:
//! `http::codec::buffer`.

use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Waker};

use rustix::net::{SendFlags, send};

use crate::http::codec::buffer::give_write_buffer;

/// So many messages are not kept waiting for more.
const MOST: usize = 16;
/// So often may sockets be looked at while a message waits.
const PATIENCE: u32 = 64;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static TICKS: Cell<u32> = const { Cell::new(0) };
    static WAITING: RefCell<Vec<Rc<Letter>>> = const { RefCell::new(Vec::new()) };
}

/// Messages may wait on this thread from now on: `end` is called before it waits for events.
pub(crate) fn begin() {
    ON.set(true);
}

/// As `begin`, for a test: until this is dropped.
#[cfg(test)]
pub(crate) struct Kept;

#[cfg(test)]
impl Kept {
    pub(crate) fn new() -> Self {
        begin();
        Self
    }
}

#[cfg(test)]
impl Drop for Kept {
    fn drop(&mut self) {
        ON.set(false);
        end();
    }
}

/// Whether messages may wait here.
pub(crate) fn is_kept() -> bool {
    ON.get()
}

/// Sends what waits.
pub(crate) fn end() {
    if COUNT.replace(0) == 0 {
        return;
    }
    TICKS.set(0);
    // Whoever is woken runs later: nothing is added meanwhile.
    let mut waiting = WAITING.take();
    for letter in waiting.drain(..) {
        letter.listed.set(false);
        letter.send();
    }
    WAITING.set(waiting);
}

/// Some task looks at its socket: a message must not wait for ever while tasks do.
#[inline]
pub(crate) fn tick() {
    if COUNT.get() > 0 {
        let ticks = TICKS.get() + 1;
        TICKS.set(ticks);
        if ticks > PATIENCE {
            end();
        }
    }
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none, or it was sent.
    Sent,
    /// It waits.
    Waiting,
    /// The socket did not take all of it.
    Back,
}

/// A message of one connection.
#[derive(Debug)]
struct Letter {
    state: Cell<State>,
    /// Its bytes, and how many of them were sent.
    bytes: RefCell<Vec<u8>>,
    sent: Cell<usize>,
    /// The socket; open as long as the message waits.
    socket: Cell<RawFd>,
    /// Whom to wake when it comes back.
    sender: RefCell<Option<Waker>>,
    /// It is among those that wait.
    listed: Cell<bool>,
}

impl Letter {
    fn send(&self) {
        if self.state.get() != State::Waiting {
            return;
        }
        let bytes = self.bytes.take();
        // SAFETY: a message waits only as long as the `Outbox` that it was left in, which is
        // dropped before the socket is closed and sends it, or takes it back, then.
        #[allow(unsafe_code, reason = "the socket is its connection's, which may be anywhere")]
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket.get()) };
        match send(socket, &bytes, SendFlags::NOSIGNAL) {
            Ok(count) if count == bytes.len() => {
                self.state.set(State::Sent);
                give_write_buffer(bytes);
            }
            outcome => {
                // An error is found again by whoever sends the rest.
                self.sent.set(outcome.unwrap_or(0));
                self.bytes.replace(bytes);
                self.state.set(State::Back);
                if let Some(sender) = &*self.sender.borrow() {
                    sender.wake_by_ref();
                }
            }
        }
    }
}

/// A connection's place for a message that waits. It belongs in front of the socket: dropped, it
/// sends what still waits.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Option<Rc<Letter>>);

impl Outbox {
    fn state(&self) -> State {
        self.0.as_ref().map_or(State::Sent, |letter| letter.state.get())
    }

    /// Whether a message is here that was not sent.
    pub(crate) fn is_occupied(&self) -> bool {
        self.state() != State::Sent
    }

    /// Whether a message waits here.
    pub(crate) fn is_waiting(&self) -> bool {
        self.state() == State::Waiting
    }

    /// Leaves a message here, where none is, that goes out through this socket, which is open
    /// until this is dropped.
    pub(crate) fn leave(&mut self, cx: &Context<'_>, socket: RawFd, message: Vec<u8>) {
        let letter = self.0.get_or_insert_with(|| {
            Rc::new(Letter {
                state: Cell::new(State::Sent),
                bytes: RefCell::default(),
                sent: Cell::new(0),
                socket: Cell::new(socket),
                sender: RefCell::default(),
                listed: Cell::new(false),
            })
        });
        debug_assert_eq!(letter.state.get(), State::Sent, "one message at a time");
        letter.socket.set(socket);
        letter.bytes.replace(message);
        letter.sent.set(0);
        letter.state.set(State::Waiting);
        match &mut *letter.sender.borrow_mut() {
            Some(sender) => sender.clone_from(cx.waker()),
            sender => *sender = Some(cx.waker().clone()),
        }
        if letter.listed.replace(true) {
            return;
        }
        let count = WAITING.with_borrow_mut(|waiting| {
            waiting.push(Rc::clone(letter));
            waiting.len()
        });
        COUNT.set(count);
        if count >= MOST {
            end();
        }
    }

    /// What was left here and not sent, and how much of it was.
    pub(crate) fn take_back(&mut self) -> Option<(Vec<u8>, usize)> {
        let letter = self.0.as_ref().filter(|letter| letter.state.get() != State::Sent)?;
        letter.state.set(State::Sent);
        Some((letter.bytes.take(), letter.sent.get()))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(letter) = &self.0 {
            letter.send();
            letter.state.set(State::Sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::task::{Context, Waker};

    use super::{MOST, Outbox, PATIENCE, end, tick};

    fn pair() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        near.set_nonblocking(true).unwrap();
        (near, far)
    }

    fn received(far: &mut UnixStream) -> String {
        let mut bytes = [0; 100];
        match far.read(&mut bytes) {
            Ok(count) => String::from_utf8(bytes[..count].to_vec()).unwrap(),
            Err(error) => format!("{:?}", error.kind()),
        }
    }

    fn leave(outbox: &mut Outbox, near: &UnixStream, text: &str) {
        outbox.leave(&Context::from_waker(Waker::noop()), near.as_raw_fd(), text.into());
    }

    #[test]
    fn a_message_goes_out_at_the_end_of_the_turn() {
        let (near, mut far) = pair();
        let mut outbox = Outbox::default();
        leave(&mut outbox, &near, "one");
        assert!(outbox.is_waiting());
        assert_eq!(received(&mut far), "WouldBlock");
        end();
        assert!(!outbox.is_occupied());
        assert_eq!(received(&mut far), "one");
        end();
        assert_eq!(received(&mut far), "WouldBlock");
    }

    #[test]
    fn a_message_is_not_sent_once_it_was_taken_back() {
        let (near, mut far) = pair();
        let mut outbox = Outbox::default();
        leave(&mut outbox, &near, "one");
        assert_eq!(outbox.take_back(), Some((b"one".to_vec(), 0)));
        leave(&mut outbox, &near, "two");
        end();
        assert_eq!(outbox.take_back(), None);
        assert_eq!(received(&mut far), "two");
    }

    #[test]
    fn it_does_not_wait_for_ever() {
        let (near, mut far) = pair();
        let mut outbox = Outbox::default();
        leave(&mut outbox, &near, "one");
        (0..PATIENCE).for_each(|_| tick());
        assert_eq!(received(&mut far), "WouldBlock");
        tick();
        assert_eq!(received(&mut far), "one");
        // Nor for many others.
        let mut outboxes: Vec<Outbox> = (0..MOST).map(|_| Outbox::default()).collect();
        for outbox in &mut outboxes {
            assert_eq!(received(&mut far), "WouldBlock");
            leave(outbox, &near, "two");
        }
        assert_eq!(received(&mut far), "two".repeat(MOST));
    }

    #[test]
    fn a_connection_that_goes_sends_it() {
        let (near, mut far) = pair();
        let mut outbox = Outbox::default();
        leave(&mut outbox, &near, "one");
        drop(outbox);
        drop(near);
        assert_eq!(received(&mut far), "one");
        end();
        assert_eq!(received(&mut far), "");
    }

    #[test]
    fn what_the_socket_does_not_take_comes_back() {
        let (mut near, far) = pair();
        let mut outbox = Outbox::default();
        while near.write(&[b'x'; 4096]).is_ok() {}
        leave(&mut outbox, &near, "one");
        end();
        assert!(outbox.is_occupied() && !outbox.is_waiting());
        assert_eq!(outbox.take_back(), Some((b"one".to_vec(), 0)));
        drop(far);
        leave(&mut outbox, &near, "two");
        end();
        assert_eq!(outbox.take_back(), Some((b"two".to_vec(), 0)));
        assert_eq!(near.write(b"two").map_err(|error| error.kind()), Err(ErrorKind::BrokenPipe));
    }
}
