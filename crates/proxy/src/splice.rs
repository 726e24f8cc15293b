//! Bytes that pass from one socket to another inside the kernel: splice(2) through a pipe.
//!
//! Copying a body costs two copies of each byte; a pipe hands over pages instead. It pays from
//! about 64 KiB on (docs/performance.md), for bytes that nobody here has to see, between sockets without TLS. Whoever
//! moves bytes ([`forward`](crate::http), [`copy`](crate::tcp::copy)) takes a pipe when there is
//! much to move, and gives it back (drops it) when nothing is under way: idle transfers hold
//! none. A worker has few pipes; when they are all in use, or the kernel refuses, it copies.
//!
//! The last byte of what is spliced must not wait for more: `SPLICE_F_MORE` is never set, as it
//! holds back what follows late by up to 200 ms.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, SpliceFlags};
use tokio::io::Interest;

use crate::io::Socket;
use crate::turn;

/// Bytes that are taken from a socket at once, and that a pipe is made to hold (in pages: what
/// comes from a network card in small packets fills it sooner).
pub(crate) const CHUNK: usize = 256 * 1024;
/// With fewer bytes to come a pipe is not worth its system calls.
pub(crate) const WORTH: u64 = 64 * 1024;
/// A pipe that the kernel allows less than that to is of no use: the user has too many.
const LEAST: usize = 64 * 1024;
/// Empty pipes that a worker keeps.
const KEPT: usize = 16;
/// Pipes of a worker that are in use at once.
const IN_USE: usize = 128;
/// After a pipe could not be made, so many transfers copy before one tries again.
const PAUSE: u32 = 1000;

thread_local! {
    static PIPES: RefCell<Pipes> = const {
        RefCell::new(Pipes { kept: Vec::new(), in_use: 0, pause: 0, refused: false })
    };
}

/// The pipes of a worker.
struct Pipes {
    kept: Vec<Ends>,
    in_use: usize,
    /// Transfers that do not try to make one.
    pause: u32,
    /// The kernel does not splice here at all.
    refused: bool,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe with the bytes that are under way in it. Dropped empty it serves the next transfer.
#[derive(Debug)]
pub(crate) struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Ends {
    fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // An ordinary user's pipes together are limited: the size it has may do.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, CHUNK);
        if rustix::pipe::fcntl_getpipe_size(&write)? < LEAST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self { read, write })
    }
}

/// Whether bytes can pass between two sockets unseen.
pub(crate) fn possible(from: &Socket, to: &Socket) -> bool {
    Plain::of(from).is_some() && Plain::of(to).is_some() && !PIPES.with_borrow(|pipes| pipes.refused)
}

impl Pipe {
    /// An empty pipe, if there is one.
    pub(crate) fn take() -> Option<Self> {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.refused || pipes.in_use >= IN_USE {
                return None;
            }
            let ends = match pipes.kept.pop() {
                Some(ends) => ends,
                None if pipes.pause > 0 => {
                    pipes.pause -= 1;
                    return None;
                }
                None => match Ends::new() {
                    Ok(ends) => ends,
                    Err(_) => {
                        pipes.pause = PAUSE;
                        return None;
                    }
                },
            };
            pipes.in_use += 1;
            Some(Self { ends: Some(ends), held: 0 })
        })
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes up to `limit` bytes out of a socket into the pipe, which is empty: how many, 0 at the
    /// end of the stream. `ErrorKind::Unsupported`: they have to be copied; none was taken.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &Socket,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        // A pipe that holds bytes may be full, which is told apart from an empty socket by nobody.
        debug_assert!(self.is_empty(), "filled while full");
        let (Some(from), Some(ends)) = (Plain::of(from), &self.ends) else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        turn::tick();
        loop {
            ready!(from.poll_ready(cx, Interest::READABLE))?;
            let outcome =
                from.try_io(Interest::READABLE, || splice(from.fd(), &ends.write, limit.min(CHUNK)));
            match outcome {
                Ok(count) => {
                    self.held = count;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(refusal(error))),
            }
        }
    }

    /// Hands over what is under way to a socket; ready when all of it is out. `sent` counts what
    /// went, also before a failure. `ErrorKind::Unsupported`: the rest has to be copied
    /// ([`Pipe::into_bytes`]).
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &Socket,
        sent: &mut u64,
    ) -> Poll<io::Result<()>> {
        let (Some(to), Some(ends)) = (Plain::of(to), &self.ends) else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        while self.held > 0 {
            ready!(to.poll_ready(cx, Interest::WRITABLE))?;
            let outcome = to.try_io(Interest::WRITABLE, || splice(&ends.read, to.fd(), self.held));
            match outcome {
                Ok(count) => {
                    self.held -= count.min(self.held);
                    *sent += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(refusal(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes back what is under way, to be copied.
    pub(crate) fn into_bytes(mut self) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(self.held);
        let mut filled = 0;
        while let (Some(ends), Some(room)) = (&self.ends, bytes.get_mut(filled..))
            && !room.is_empty()
        {
            match rustix::io::read(&ends.read, room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        self.held = 0;
        Ok(bytes.freeze())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let ends = self.ends.take().filter(|_| self.held == 0);
        // While a thread ends there may be no list any more.
        let _ = PIPES.try_with(|pipes| {
            let mut pipes = pipes.borrow_mut();
            pipes.in_use = pipes.in_use.saturating_sub(1);
            if pipes.kept.len() < KEPT
                && let Some(ends) = ends
            {
                pipes.kept.push(ends);
            }
        });
    }
}

fn splice(from: impl AsFd, to: impl AsFd, limit: usize) -> io::Result<usize> {
    Ok(rustix::pipe::splice(from, None, to, None, limit, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
}

/// What the kernel refuses it refuses always: nobody on this thread tries again.
fn refusal(error: io::Error) -> io::Error {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) {
        PIPES.with_borrow_mut(|pipes| pipes.refused = true);
        return Unsupported.into();
    }
    error
}

/// A socket whose bytes are those of the stream.
#[derive(Clone, Copy)]
enum Plain<'a> {
    Tcp(&'a tokio::net::TcpStream),
    Unix(&'a tokio::net::UnixStream),
}

impl<'a> Plain<'a> {
    fn of(socket: &'a Socket) -> Option<Self> {
        match socket {
            Socket::Tcp(stream) => Some(Plain::Tcp(stream)),
            Socket::Unix(stream) => Some(Plain::Unix(stream)),
            Socket::Tls(_) => None,
        }
    }

    fn fd(self) -> BorrowedFd<'a> {
        match self {
            Plain::Tcp(stream) => stream.as_fd(),
            Plain::Unix(stream) => stream.as_fd(),
        }
    }

    fn poll_ready(self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<()>> {
        match (self, interest.is_readable()) {
            (Plain::Tcp(stream), true) => stream.poll_read_ready(cx),
            (Plain::Tcp(stream), false) => stream.poll_write_ready(cx),
            (Plain::Unix(stream), true) => stream.poll_read_ready(cx),
            (Plain::Unix(stream), false) => stream.poll_write_ready(cx),
        }
    }

    fn try_io<R>(self, interest: Interest, step: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        match self {
            Plain::Tcp(stream) => stream.try_io(interest, step),
            Plain::Unix(stream) => stream.try_io(interest, step),
        }
    }
}

/// Pipes that were used on this thread and wait for the next transfer.
#[cfg(test)]
pub(crate) fn idle_pipes() -> usize {
    PIPES.with_borrow(|pipes| pipes.kept.len())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::{CHUNK, IN_USE, PIPES, Pipe, idle_pipes, possible};
    use crate::io::Socket;

    async fn pair() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), Socket::Tcp(far.unwrap().0))
    }

    fn in_use() -> usize {
        PIPES.with_borrow(|pipes| pipes.in_use)
    }

    #[tokio::test]
    async fn bytes_pass_and_the_end_is_seen() {
        let (mut client, from) = pair().await;
        let (mut server, to) = pair().await;
        assert!(possible(&from, &to));
        let body: Vec<u8> = (0..3 * CHUNK + 17).map(|at| (at % 251) as u8).collect();
        let expected = body.clone();
        let moving = async {
            let (mut taken, mut sent) = (0, 0);
            loop {
                let mut pipe = Pipe::take().unwrap();
                let count = poll_fn(|cx| pipe.poll_fill(cx, &from, usize::MAX)).await.unwrap();
                if count == 0 {
                    return (taken, sent);
                }
                taken += count;
                poll_fn(|cx| pipe.poll_drain(cx, &to, &mut sent)).await.unwrap();
                assert!(pipe.is_empty());
            }
        };
        let writing = async {
            client.write_all(&body).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let mut read = vec![0; expected.len()];
        let ((taken, sent), (), _) = tokio::join!(moving, writing, server.read_exact(&mut read));
        assert_eq!((taken, sent), (expected.len(), expected.len() as u64));
        assert!(read == expected);
        assert_eq!(in_use(), 0);
    }

    #[tokio::test]
    async fn no_more_is_taken_than_asked_for_and_it_can_be_taken_back() {
        let (mut client, from) = pair().await;
        client.write_all(b"onetwo").await.unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &from, 3)).await.unwrap(), 3);
        assert_eq!(pipe.into_bytes().unwrap(), "one");
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &from, 300)).await.unwrap(), 3);
        assert_eq!(pipe.into_bytes().unwrap(), "two");
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let (mut client, from) = pair().await;
        let (mut server, to) = pair().await;
        let (mut read, mut total) = (vec![0; 1 << 20], 0);
        let (mut sent, mut taken) = (0, 0);
        let feed = vec![7; 1 << 16];
        let mut pipe = Pipe::take().unwrap();
        // Nobody reads: at some time the pipe cannot be emptied.
        loop {
            client.write_all(&feed).await.unwrap();
            while taken < sent as usize + CHUNK && pipe.is_empty() {
                let filled = poll_fn(|cx| pipe.poll_fill(cx, &from, CHUNK)).await.unwrap();
                taken += filled;
                let drained = poll_fn(|cx| std::task::Poll::Ready(pipe.poll_drain(cx, &to, &mut sent))).await;
                if drained.is_ready() {
                    break;
                }
            }
            if !pipe.is_empty() {
                break;
            }
        }
        let reading = async {
            while total < taken {
                total += server.read(&mut read).await.unwrap();
            }
        };
        let (drained, ()) = tokio::join!(poll_fn(|cx| pipe.poll_drain(cx, &to, &mut sent)), reading);
        drained.unwrap();
        assert_eq!((sent as usize, total), (taken, taken));
    }

    #[tokio::test]
    async fn pipes_are_few_and_only_empty_ones_are_kept() {
        let (mut client, from) = pair().await;
        client.write_all(b"lost").await.unwrap();
        let mut pipe = Pipe::take().unwrap();
        poll_fn(|cx| pipe.poll_fill(cx, &from, 300)).await.unwrap();
        drop(pipe);
        assert_eq!(idle_pipes(), 0);
        let all: Vec<Pipe> = std::iter::from_fn(Pipe::take).collect();
        assert_eq!(all.len(), IN_USE);
        drop(all);
        assert_eq!(in_use(), 0);
        assert!(Pipe::take().is_some());
    }
}
