//! Copies bytes both ways between two sockets until both directions have ended.
//!
//! Each direction owns a buffer only while it has bytes to carry, so an idle session holds
//! none; the worker keeps some for the next that has bytes. Where much comes at once, and neither
//! side is TLS, bytes pass inside the kernel instead ([`crate::splice`]). The end of one direction
//! is passed on as a half-close; the other goes on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::io::Socket;
use crate::splice::{self, Pipe};

/// Bytes carried at once.
const CHUNK: usize = 64 * 1024;
/// A read of so many bytes announces more: they are spliced. One of fewer is copied again.
const MUCH: usize = 16 * 1024;
/// Buffers that a worker keeps for reuse.
const KEPT: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> BytesMut {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(CHUNK))
}

fn give_buffer(mut buffer: BytesMut) {
    buffer.clear();
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT && buffer.try_reclaim(CHUNK) {
            kept.push(buffer);
        }
    });
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides have closed, this one first.
    Finished(Who),
    /// Nothing moved for the idle timeout.
    Idle,
    /// Downstream failed; how is of no interest to anybody.
    Downstream,
    /// Upstream failed.
    Upstream(io::Error),
}

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The client's.
    Downstream,
    /// The endpoint's.
    Upstream,
}

/// Bytes moved so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    /// From downstream to upstream.
    pub(crate) sent: u64,
    /// From upstream to downstream.
    pub(crate) received: u64,
}

/// Copies until the end. `early` are bytes of downstream that were read already; no more than
/// `limit` are under way in a pipe; `moved` is kept up to date so that a cancelled session can still be accounted.
pub(crate) async fn bidirectional(
    downstream: &mut Socket,
    upstream: &mut Socket,
    early: BytesMut,
    limit: usize,
    idle: Option<Duration>,
    mut moved: impl FnMut(Moved),
) -> End {
    let mut to_upstream = Direction::new(early, limit);
    let mut to_downstream = Direction::new(BytesMut::new(), limit);
    let mut total = Moved::default();
    let mut first_to_end = None;
    let mut timer = idle.map(|limit| (limit, Box::pin(tokio::time::sleep(limit))));
    poll_fn(|cx| {
        let before = (total.sent, total.received);
        let first = to_upstream.poll(cx, downstream, upstream, &mut total.sent);
        let second = to_downstream.poll(cx, upstream, downstream, &mut total.received);
        if first_to_end.is_none() && to_upstream.ended != Ended::No {
            first_to_end = Some(Who::Downstream);
        } else if first_to_end.is_none() && to_downstream.ended != Ended::No {
            first_to_end = Some(Who::Upstream);
        }
        if before != (total.sent, total.received) {
            moved(total);
            if let Some((limit, timer)) = &mut timer {
                timer.as_mut().reset(Instant::now() + *limit);
            }
        }
        match (first, second) {
            (Poll::Ready(Err(Side::Read(_))), _) | (_, Poll::Ready(Err(Side::Write(_)))) => {
                return Poll::Ready(End::Downstream);
            }
            (Poll::Ready(Err(Side::Write(error))), _) | (_, Poll::Ready(Err(Side::Read(error)))) => {
                return Poll::Ready(End::Upstream(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                return Poll::Ready(End::Finished(first_to_end.unwrap_or(Who::Downstream)));
            }
            _ => {}
        }
        match &mut timer {
            Some((_, timer)) => timer.as_mut().poll(cx).map(|()| End::Idle),
            None => Poll::Pending,
        }
    })
    .await
}

/// Which side of a direction failed.
enum Side {
    Read(io::Error),
    Write(io::Error),
}

#[derive(Clone, Copy, PartialEq)]
enum Ended {
    No,
    /// The reader has ended; what is buffered goes out, then the writer is closed.
    Reading,
    /// Closed for good.
    Yes,
}

struct Direction {
    buffer: BytesMut,
    /// With bytes that passed by; the buffer is empty then.
    pipe: Option<Pipe>,
    /// The last read brought much.
    bulky: bool,
    /// Bytes that may be in the pipe.
    limit: usize,
    ended: Ended,
}

impl Direction {
    fn new(early: BytesMut, limit: usize) -> Self {
        Self { buffer: early, pipe: None, bulky: false, limit: limit.min(splice::CHUNK), ended: Ended::No }
    }

    /// Moves what can be moved now; ready when this direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        to: &mut Socket,
        moved: &mut u64,
    ) -> Poll<Result<(), Side>> {
        loop {
            if self.ended == Ended::Yes {
                return Poll::Ready(Ok(()));
            }
            while !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer)).map_err(Side::Write)?;
                if written == 0 {
                    return Poll::Ready(Err(Side::Write(io::ErrorKind::WriteZero.into())));
                }
                self.buffer.advance(written);
                *moved += written as u64;
            }
            if let Some(pipe) = &mut self.pipe {
                match ready!(pipe.poll_drain(cx, to, moved)) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        if let Some(pipe) = self.pipe.take() {
                            self.buffer = pipe.into_bytes().map_err(Side::Write)?.into();
                        }
                        continue;
                    }
                    Err(error) => return Poll::Ready(Err(Side::Write(error))),
                }
            }
            // TLS may hold sealed bytes that the socket did not take.
            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Side::Write)?;
            if self.ended == Ended::Reading {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Side::Write)?;
                self.ended = Ended::Yes;
                return Poll::Ready(Ok(()));
            }
            let filled = if self.bulky { self.poll_splice(cx, from, to) } else { self.poll_fill(cx, from) };
            match filled {
                Poll::Pending => {
                    self.pipe = None;
                    if self.buffer.capacity() > 0 {
                        give_buffer(std::mem::take(&mut self.buffer));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => self.ended = Ended::Reading,
                Poll::Ready(Ok(count)) => self.bulky = count >= MUCH,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Read(error))),
            }
        }
    }

    /// Takes bytes into a pipe, or copies them if they cannot be spliced.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        to: &Socket,
    ) -> Poll<io::Result<usize>> {
        if (self.limit as u64) < splice::WORTH || !splice::possible(from, to) {
            return self.poll_fill(cx, from);
        }
        let Some(pipe) = self.pipe.take().or_else(Pipe::take) else { return self.poll_fill(cx, from) };
        match self.pipe.insert(pipe).poll_fill(cx, from, self.limit) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Unsupported => {
                self.pipe = None;
                self.poll_fill(cx, from)
            }
            other => other,
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut Socket) -> Poll<io::Result<usize>> {
        ready!(from.poll_read_ready(cx))?;
        if self.buffer.capacity() == 0 {
            self.buffer = take_buffer();
        } else if !self.buffer.try_reclaim(CHUNK) {
            self.buffer.reserve(CHUNK);
        }
        from.poll_read_buf(cx, &mut self.buffer, true)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    use super::{End, Moved, Who, bidirectional};
    use crate::io::Socket;
    use crate::splice;

    #[tokio::test]
    async fn both_directions_and_half_close_are_carried() {
        let (mut client, proxy_down) = UnixStream::pair().unwrap();
        let (mut server, proxy_up) = UnixStream::pair().unwrap();
        let copying = tokio::spawn(async move {
            let (mut down, mut up) = (Socket::Unix(proxy_down), Socket::Unix(proxy_up));
            let mut moved = Default::default();
            let end =
                bidirectional(&mut down, &mut up, BytesMut::from("ab"), usize::MAX, None, |now| moved = now)
                    .await;
            (end, moved)
        });
        client.write_all(b"cd").await.unwrap();
        client.shutdown().await.unwrap();
        let mut seen = String::new();
        server.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "abcd");
        server.write_all(b"late").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "late");
        let (end, moved) = copying.await.unwrap();
        assert!(matches!(end, End::Finished(Who::Downstream)), "{end:?}");
        assert_eq!((moved.sent, moved.received), (4, 4));
    }

    async fn connection() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), Socket::Tcp(far.unwrap().0))
    }

    #[tokio::test]
    async fn much_passes_by_and_is_counted() {
        const MANY: usize = 4 << 20;
        let pattern = |salt: usize| (0..MANY).map(|at| ((at * 7 + at / 251 + salt) % 256) as u8).collect();
        let (up, down): (Vec<u8>, Vec<u8>) = (pattern(1), pattern(2));
        let (client, mut near) = connection().await;
        let (server, mut far) = connection().await;
        let mut moved = Moved::default();
        let copying = async {
            let end = bidirectional(&mut near, &mut far, BytesMut::from("early"), usize::MAX, None, |now| {
                moved = now;
            })
            .await;
            assert!(matches!(end, End::Finished(Who::Downstream)), "{end:?}");
            drop((near, far));
        };
        let (mut client_in, mut client_out) = client.into_split();
        let (mut server_in, mut server_out) = server.into_split();
        let sending = async {
            client_out.write_all(&up).await.unwrap();
            client_out.shutdown().await.unwrap();
        };
        let answering = async {
            // The first half while the request is still coming, the other when it has ended.
            server_out.write_all(&down[..MANY / 2]).await.unwrap();
            let mut seen = Vec::new();
            server_in.read_to_end(&mut seen).await.unwrap();
            server_out.write_all(&down[MANY / 2..]).await.unwrap();
            server_out.shutdown().await.unwrap();
            seen
        };
        let receiving = async {
            let mut seen = Vec::new();
            client_in.read_to_end(&mut seen).await.unwrap();
            seen
        };
        let ((), (), sent, received) = tokio::join!(copying, sending, answering, receiving);
        assert!(sent[..5] == *b"early" && sent[5..] == up && received == down);
        assert_eq!((moved.sent, moved.received), (MANY as u64 + 5, MANY as u64));
        assert!(splice::idle_pipes() > 0, "nothing was spliced");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_session_ends() {
        let (_client, proxy_down) = UnixStream::pair().unwrap();
        let (_server, proxy_up) = UnixStream::pair().unwrap();
        let (mut down, mut up) = (Socket::Unix(proxy_down), Socket::Unix(proxy_up));
        let idle = Some(Duration::from_secs(60));
        let end = bidirectional(&mut down, &mut up, BytesMut::new(), usize::MAX, idle, |_| {}).await;
        assert!(matches!(end, End::Idle), "{end:?}");
    }
}
