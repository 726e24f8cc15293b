//! Room for the connections of a port that everybody may connect to: when it is full the one goes that has
//! waited longest for nothing, so that strangers cannot keep kubelet's probes out.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Sleep, sleep};

/// The connections that there are.
#[derive(Debug)]
pub struct Room {
    most: usize,
    /// Counts what happens.
    now: Arc<AtomicU64>,
    seats: HashMap<Id, (AbortHandle, Arc<Use>)>,
    tasks: JoinSet<()>,
}

/// What happens on a connection.
#[derive(Debug)]
pub struct Use {
    now: Arc<AtomicU64>,
    last: AtomicU64,
    is_busy: AtomicBool,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Busy<'u>(&'u Use);

impl Room {
    /// For so many.
    pub fn new(most: usize) -> Room {
        Room { most, now: Arc::default(), seats: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Lets a connection in, in the place of another one if need be.
    pub fn seat<F: Future<Output = ()> + Send + 'static>(&mut self, serve: impl FnOnce(Arc<Use>) -> F) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.seats.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
        while self.seats.len() >= self.most {
            let longest = |(_, of): &(AbortHandle, Arc<Use>)| (of.is_busy(), of.last.load(Ordering::Relaxed));
            let Some(id) = self.seats.iter().min_by_key(|(_, seat)| longest(seat)).map(|(id, _)| *id) else {
                break;
            };
            if let Some((task, _)) = self.seats.remove(&id) {
                tracing::debug!("there are too many connections: one is closed");
                task.abort();
            }
        }
        let of = Arc::new(Use {
            now: Arc::clone(&self.now),
            last: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
        });
        of.touch();
        let task = self.tasks.spawn(serve(Arc::clone(&of)));
        self.seats.insert(task.id(), (task, of));
    }
}

impl Use {
    fn touch(&self) {
        self.last.store(self.now.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// A request has come.
    pub fn begin(&self) -> Busy<'_> {
        self.touch();
        self.is_busy.store(true, Ordering::Relaxed);
        Busy(self)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.is_busy.store(false, Ordering::Relaxed);
    }
}

/// A connection whose client must take what it is sent: if it takes nothing for a while, writing fails.
#[derive(Debug)]
pub struct Taken {
    stream: TcpStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Taken {
    /// `patience`: how long it may take nothing.
    pub fn new(stream: TcpStream, patience: Duration) -> Taken {
        Taken { stream, patience, stalled: None }
    }

    fn or_late<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Taken {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.or_late(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bytes);
        this.or_late(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::{Room, Taken};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address"));
        let (client, accepted) = tokio::join!(client, listener.accept());
        (client.expect("it connects"), accepted.expect("it accepts").0)
    }

    #[tokio::test]
    async fn the_longest_idle_goes_when_there_is_no_room() {
        let mut room = Room::new(2);
        let busy = Arc::new(Notify::new());
        let mut clients = Vec::new();
        for works in [true, false, false] {
            let (client, mut server) = pair().await;
            let (is_busy, began) = (Arc::clone(&busy), Arc::new(Notify::new()));
            let begun = Arc::clone(&began);
            room.seat(|of| async move {
                let busy = works.then(|| of.begin());
                begun.notify_one();
                is_busy.notified().await;
                drop(busy);
                let _ = server.write_all(b"x").await;
            });
            began.notified().await;
            clients.push(client);
        }
        // The first is being answered, the second has said nothing for longer than the third.
        let mut byte = [0];
        let gone = clients[1].read(&mut byte).await;
        assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
        busy.notify_waiters();
        for place in [0, 2] {
            assert_eq!(clients[place].read(&mut byte).await.expect("an answer"), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_left() {
        let (_client, server) = pair().await;
        let mut server = Taken::new(server, Duration::from_secs(10));
        let error = server.write_all(&vec![0; 64 << 20]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
