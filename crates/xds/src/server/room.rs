//! Room for the connections of a port that everybody may connect to, in which no caller takes what is for others.
//!
//! [`Room`] is for short connections: when it is full, whoever has most of it loses one, that which has waited
//! longest for nothing, so that strangers cannot keep kubelet's probes out. [`Shares`] is for connections that last
//! and must not be cut: a caller has at most so many. Callers are told apart by their addresses ([`Caller`]).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Sleep, sleep};

/// Who is taken for one: an address, of IPv6 the network that a machine is given (/64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(IpAddr);

impl From<IpAddr> for Caller {
    fn from(address: IpAddr) -> Caller {
        Caller(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address => address,
        })
    }
}

/// How many connections callers have, of which each may have so many.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    /// For each that has any: how many, and whether one was refused since there were none.
    taken: Mutex<HashMap<Caller, (usize, bool)>>,
}

/// A connection of a caller's; it is over when this is gone.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    caller: Caller,
}

impl Shares {
    /// Of so many for each.
    pub fn new(most: usize) -> Arc<Shares> {
        Arc::new(Shares { most, taken: Mutex::default() })
    }

    /// Takes one; none if the caller has all that he may have, which is said in the log once until he has none.
    pub fn take(self: &Arc<Shares>, caller: Caller) -> Option<Share> {
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, is_told) = all.entry(caller).or_default();
        if *count >= self.most {
            if !std::mem::replace(is_told, true) {
                tracing::warn!(address = %caller.0, most = self.most, "too many connections of one caller: more are refused");
            }
            return None;
        }
        *count += 1;
        Some(Share { of: Arc::clone(self), caller })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = all.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.caller);
            }
        }
    }
}

/// The connections that there are.
#[derive(Debug)]
pub struct Room {
    most: usize,
    /// Counts what happens.
    now: Arc<AtomicU64>,
    seats: HashMap<Id, Seat>,
    /// How many each caller has.
    held: HashMap<Caller, usize>,
    tasks: JoinSet<()>,
    /// Counts those that had to go for others.
    closed: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Seat {
    caller: Caller,
    task: AbortHandle,
    of: Arc<Use>,
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
        Room {
            most,
            now: Arc::default(),
            seats: HashMap::new(),
            held: HashMap::new(),
            tasks: JoinSet::new(),
            closed: Arc::default(),
        }
    }

    /// The same, which adds to `closed` for each connection that has to go for another.
    pub fn counting(most: usize, closed: Arc<AtomicU64>) -> Room {
        Room { closed, ..Room::new(most) }
    }

    /// Lets a connection in, in the place of another one if need be.
    pub fn seat<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        caller: Caller,
        serve: impl FnOnce(Arc<Use>) -> F,
    ) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.leave(&ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
        while self.seats.len() >= self.most {
            let Some(id) = self.to_go(caller) else { break };
            if let Some(seat) = self.leave(&id) {
                tracing::debug!(address = %seat.caller.0, "there are too many connections: one is closed");
                self.closed.fetch_add(1, Ordering::Relaxed);
                seat.task.abort();
            }
        }
        let of = Arc::new(Use {
            now: Arc::clone(&self.now),
            last: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
        });
        of.touch();
        let task = self.tasks.spawn(serve(Arc::clone(&of)));
        *self.held.entry(caller).or_default() += 1;
        self.seats.insert(task.id(), Seat { caller, task, of });
    }

    /// Which one goes when another caller comes: of those who have most of all, the newcomer counted, one that is
    /// idle, and of these the one of which nothing was heard for longest.
    fn to_go(&self, newcomer: Caller) -> Option<Id> {
        let after =
            |caller: Caller| self.held.get(&caller).map_or(0, |held| held + usize::from(caller == newcomer));
        let most = self.held.keys().map(|caller| after(*caller)).max()?;
        let crowding = self.seats.iter().filter(|(_, seat)| after(seat.caller) == most);
        let longest = |seat: &Seat| (seat.of.is_busy(), seat.of.last.load(Ordering::Relaxed));
        crowding.min_by_key(|(_, seat)| longest(seat)).map(|(id, _)| *id)
    }

    fn leave(&mut self, id: &Id) -> Option<Seat> {
        let seat = self.seats.remove(id)?;
        if let Some(held) = self.held.get_mut(&seat.caller) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&seat.caller);
            }
        }
        Some(seat)
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::{Caller, Room, Shares, Taken};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address"));
        let (client, accepted) = tokio::join!(client, listener.accept());
        (client.expect("it connects"), accepted.expect("it accepts").0)
    }

    fn caller(address: &str) -> Caller {
        Caller::from(address.parse::<std::net::IpAddr>().expect("an address"))
    }

    #[test]
    fn callers_have_shares() {
        assert_eq!(caller("::ffff:10.0.0.1"), caller("10.0.0.1"));
        assert_eq!(caller("2001:db8::1"), caller("2001:db8::ffff:1"));
        assert_ne!(caller("2001:db8::1"), caller("2001:db8:0:1::1"));
        let shares = Shares::new(2);
        let (one, other) = (caller("10.0.0.1"), caller("10.0.0.2"));
        let first = shares.take(one).expect("there is room");
        let _second = shares.take(one).expect("there is room");
        assert!(shares.take(one).is_none());
        let third = shares.take(other).expect("it is another one's");
        drop(first);
        assert!(shares.take(one).is_some(), "one is over");
        drop(third);
        assert_eq!(shares.taken.lock().expect("no panic").len(), 1, "who has none is forgotten");
    }

    #[tokio::test]
    async fn who_has_most_makes_room() {
        let closed = Arc::new(AtomicU64::new(0));
        let mut room = Room::counting(4, Arc::clone(&closed));
        let busy = Arc::new(Notify::new());
        let mut clients = Vec::new();
        // Those of the second are busy, one of the first is idle and was there before all others.
        for (address, works) in [
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("10.0.0.2", true),
            ("10.0.0.2", true),
            ("10.0.0.3", false),
        ] {
            let (client, mut server) = pair().await;
            let (over, began) = (Arc::clone(&busy), Arc::new(Notify::new()));
            let begun = Arc::clone(&began);
            room.seat(caller(address), |of| async move {
                let busy = works.then(|| of.begin());
                begun.notify_one();
                over.notified().await;
                drop(busy);
                let _ = server.write_all(b"x").await;
            });
            began.notified().await;
            clients.push(client);
        }
        let mut byte = [0];
        let gone = clients[1].read(&mut byte).await;
        assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
        assert_eq!(closed.load(Ordering::Relaxed), 1);
        busy.notify_waiters();
        for place in [0, 2, 3, 4] {
            assert_eq!(clients[place].read(&mut byte).await.expect("an answer"), 1);
        }
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
            room.seat(caller("10.0.0.1"), |of| async move {
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
