//! The little of epoll that load generator and back end need: level-triggered, one token a socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

/// Events taken in one wait.
const EVENTS: usize = 512;

/// A set of sockets that are waited for.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(EVENTS) })
    }

    /// Reports `socket` as `token` while it is readable. Closing the socket ends this.
    pub(crate) fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token as u64), epoll::EventFlags::IN)?)
    }

    /// Reports it also while it is writable, or no longer.
    pub(crate) fn watch_writable(&self, socket: impl AsFd, token: usize, also: bool) -> io::Result<()> {
        let flags = if also { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token as u64), flags)?)
    }

    /// Waits for at most `timeout`, to the nanosecond; appends the tokens that are ready.
    pub(crate) fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        self.take()?;
        if self.events.is_empty() {
            // epoll counts in milliseconds, which is longer than a request takes: at a fixed rate
            // requests would be sent late, in bursts, and the generator be what is measured.
            let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
            let mut sets = [PollFd::new(&self.epoll, PollFlags::IN)];
            match poll(&mut sets, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => self.take()?,
                Err(error) => return Err(error.into()),
            }
        }
        ready.extend(self.events.iter().filter_map(|event| usize::try_from(event.data.u64()).ok()));
        Ok(())
    }

    /// Replaces the events by those that there are now.
    fn take(&mut self) -> io::Result<()> {
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&Timespec::default())) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
