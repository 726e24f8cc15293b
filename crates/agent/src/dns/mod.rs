//! The DNS proxy: names of the mesh are answered here, all others by whom the machine asks otherwise.
//!
//! A workload's lookups are redirected to port 15053 (`ISTIO_META_DNS_CAPTURE`), over UDP and TCP. What is
//! in the [`table`] is answered with an authority's answer that holds for 30 seconds; a name that is known
//! and has no address of the family that is asked for has an empty answer, not none. Everything else goes
//! to the servers of `/etc/resolv.conf` as it is, and their answers come back as they are ([`forward`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_base::Rng;
use leno_xds::server::room::{Room, Use};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub mod forward;
pub mod table;

pub use forward::{Resolv, Upstream};
pub use table::{Place, Table};

use crate::metrics::Metrics;

/// How long an answer of ours holds, seconds.
const TTL: u32 = 30;
/// The most that is asked of others at a time; more are refused, as names of the mesh must not wait for them.
const MOST: usize = 1024;
/// The most connections at a time; then the one goes that has asked for nothing for longest.
const MOST_CONNECTIONS: usize = 256;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// What fits into a datagram, for who does not say more.
const DATAGRAM: usize = 512;

/// Answers.
#[derive(Debug)]
pub struct Resolver {
    /// Names of the mesh; absent before they have come.
    pub table: watch::Receiver<Option<Arc<Table>>>,
    /// Others.
    pub upstream: Upstream,
    /// Whether others are asked before the names of the mesh have come (on machines, where nothing but
    /// us resolves names).
    pub answers_at_once: bool,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The sockets of a resolver.
#[derive(Debug)]
pub struct Sockets(Vec<(UdpSocket, TcpListener)>);

/// Binds all addresses that `HOST:PORT` stands for; `localhost` is of both families, of which one may be missing
/// that no server of the machine has: lookups of either are redirected here, whoever would have answered them.
///
/// # Errors
/// What cannot be bound.
pub async fn bind(address: &str, servers: &[SocketAddr]) -> Result<Sockets, String> {
    let (host, port) = address.rsplit_once(':').ok_or_else(|| format!("{address}: it is not HOST:PORT"))?;
    let port: u16 = port.parse().map_err(|_| format!("{address}: it is not HOST:PORT"))?;
    // Each with whether it must be there.
    let hosts: Vec<(IpAddr, bool)> = match host.trim_matches(['[', ']']) {
        "localhost" => {
            let six = servers.iter().any(SocketAddr::is_ipv6);
            let four = servers.iter().any(SocketAddr::is_ipv4) || !six;
            vec![(IpAddr::from([127, 0, 0, 1]), four), (IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), six)]
        }
        "" => vec![(IpAddr::from([0u8; 4]), true)],
        host => vec![(host.parse().map_err(|_| format!("{address}: {host} is no address"))?, true)],
    };
    let mut sockets = Vec::new();
    for (host, is_needed) in hosts {
        match both(SocketAddr::new(host, port)).await {
            Ok(pair) => sockets.push(pair),
            Err(error) if is_needed => return Err(error),
            Err(error) => tracing::info!(error, "names are resolved without"),
        }
    }
    Ok(Sockets(sockets))
}

async fn both(at: SocketAddr) -> Result<(UdpSocket, TcpListener), String> {
    let failed = |at: SocketAddr| move |error: io::Error| format!("DNS at {at}: {error}");
    let stream = TcpListener::bind(at).await.map_err(failed(at))?;
    // The same port for both, also where any is fine.
    let at = stream.local_addr().map_err(failed(at))?;
    Ok((UdpSocket::bind(at).await.map_err(failed(at))?, stream))
}

impl Sockets {
    /// Where they are.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|(datagrams, _)| datagrams.local_addr().ok()).collect()
    }
}

/// Keeps the table of names as the control plane tells it.
pub async fn follow(
    mut names: watch::Receiver<Option<Arc<NameTable>>>,
    place: Place,
    say: watch::Sender<Option<Arc<Table>>>,
) {
    loop {
        let newest = names.borrow_and_update().clone();
        if let Some(names) = newest {
            say.send_replace(Some(Arc::new(Table::new(&names, &place))));
        }
        if names.changed().await.is_err() {
            return;
        }
    }
}

/// Serves until it is dropped.
pub async fn serve(sockets: Sockets, resolver: Arc<Resolver>) {
    let mut tasks = JoinSet::new();
    for (datagrams, stream) in sockets.0 {
        tasks.spawn(serve_datagrams(Arc::new(datagrams), Arc::clone(&resolver)));
        tasks.spawn(serve_streams(stream, Arc::clone(&resolver)));
    }
    // None ends by itself.
    tasks.join_next().await;
}

async fn serve_datagrams(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let room = Arc::new(Semaphore::new(MOST));
    let mut rng = Rng::from_entropy();
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Of an earlier answer whose receiver has gone, say.
                tracing::debug!(%error, "a datagram cannot be received");
                continue;
            }
        };
        let Some(query) = buffer.get(..length) else { continue };
        match resolver.own(query, &mut rng, false) {
            Own::Answer(answer) => drop(socket.send_to(&answer, peer).await),
            Own::Nothing => resolver.metrics.dns_malformed.add(1),
            Own::Others(message) => {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    resolver.metrics.dns_upstream_failures.add(1);
                    resolver.metrics.dns_crowded.add(1);
                    tracing::debug!("too many lookups wait for the machine's servers");
                    drop(socket.send_to(&failure(&message), peer).await);
                    continue;
                };
                let (socket, resolver, query) = (Arc::clone(&socket), Arc::clone(&resolver), query.to_vec());
                tokio::spawn(async move {
                    let answer = resolver.others(&query, &message, false).await;
                    let _ = socket.send_to(&answer, peer).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn serve_streams(listener: TcpListener, resolver: Arc<Resolver>) {
    let mut room = Room::new(MOST_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let resolver = Arc::clone(&resolver);
                room.seat(peer.ip().into(), |of| async move {
                    let _ = serve_stream(stream, &resolver, &of).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "DNS cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, resolver: &Resolver, of: &Use) -> io::Result<()> {
    let mut rng = Rng::from_entropy();
    loop {
        let length = tokio::time::timeout(SILENCE, stream.read_u16()).await.map_err(io::Error::other)??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(SILENCE, stream.read_exact(&mut query)).await.map_err(io::Error::other)??;
        let answer = {
            let _busy = of.begin();
            match resolver.own(&query, &mut rng, true) {
                Own::Answer(answer) => answer,
                Own::Nothing => {
                    resolver.metrics.dns_malformed.add(1);
                    return Ok(());
                }
                Own::Others(message) => resolver.others(&query, &message, true).await,
            }
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        // Who takes no answers gets no more.
        tokio::time::timeout(SILENCE, stream.write_all(&framed)).await.map_err(io::Error::other)??;
    }
}

/// What we say ourselves.
enum Own {
    Answer(Vec<u8>),
    /// It was no query.
    Nothing,
    /// Others must be asked.
    Others(Box<Message>),
}

impl Resolver {
    fn own(&self, query: &[u8], rng: &mut Rng, is_stream: bool) -> Own {
        let Ok(message) = Message::from_vec(query) else { return Own::Nothing };
        if message.metadata.message_type != hickory_proto::op::MessageType::Query {
            return Own::Nothing;
        }
        self.metrics.dns_requests.add(1);
        let most =
            if is_stream { usize::from(u16::MAX) } else { usize::from(message.max_payload()).max(DATAGRAM) };
        let Some(question) = message.queries.first() else {
            return Own::Answer(failure(&message));
        };
        let table = self.table.borrow().clone();
        let Some(table) = table else {
            return if self.answers_at_once {
                Own::Others(Box::new(message))
            } else {
                Own::Answer(failure(&message))
            };
        };
        let kind = question.query_type();
        let is_address = matches!(kind, RecordType::A | RecordType::AAAA);
        if message.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN || !is_address
        {
            return Own::Others(Box::new(message));
        }
        let mut name = question.name().to_ascii().to_ascii_lowercase();
        if !name.ends_with('.') {
            name.push('.');
        }
        let Some(found) = table.find(&name) else { return Own::Others(Box::new(message)) };
        let mut addresses: Vec<RData> = match kind {
            RecordType::A => found.addresses.v4.iter().map(|v4| RData::A(A(*v4))).collect(),
            _ => found.addresses.v6.iter().map(|v6| RData::AAAA(AAAA(*v6))).collect(),
        };
        // Many take the first.
        rng.shuffle(&mut addresses);
        let mut answer = reply(&message, ResponseCode::NoError);
        answer.metadata.authoritative = true;
        let asked = question.name().clone();
        let mut owner = asked.clone();
        if let Some(real) = found.alias_of.filter(|_| !addresses.is_empty())
            && let Ok(real) = Name::from_ascii(real)
        {
            answer.add_answer(Record::from_rdata(asked, TTL, RData::CNAME(CNAME(real.clone()))));
            owner = real;
        }
        for address in addresses {
            answer.add_answer(Record::from_rdata(owner.clone(), TTL, address));
        }
        Own::Answer(encode(answer, most))
    }

    async fn others(&self, query: &[u8], message: &Message, is_stream: bool) -> Vec<u8> {
        self.metrics.dns_upstream_requests.add(1);
        let began = std::time::Instant::now();
        let answer = self.upstream.ask(query, is_stream).await;
        self.metrics.dns_upstream_duration.add(began.elapsed());
        match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.metrics.dns_upstream_failures.add(1);
                tracing::info!(error, "no server knows an answer");
                failure(message)
            }
        }
    }
}

fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.checking_disabled = query.metadata.checking_disabled;
    answer.add_queries(query.queries.first().cloned());
    answer
}

fn failure(query: &Message) -> Vec<u8> {
    encode(reply(query, ResponseCode::ServFail), DATAGRAM)
}

/// In so many bytes: what does not fit is left out, and that is said.
fn encode(mut answer: Message, most: usize) -> Vec<u8> {
    loop {
        match answer.to_vec() {
            Ok(bytes) if bytes.len() <= most || answer.answers.is_empty() => return bytes,
            Ok(_) => {
                answer.metadata.truncation = true;
                answer.answers.truncate(answer.answers.len() * 3 / 4);
            }
            Err(error) => {
                tracing::warn!(%error, "an answer cannot be written");
                return Vec::new();
            }
        }
    }
}

/// Which file names the machine's servers, and whether names are answered at once: on a machine of its
/// own the agent is the only resolver, on port 53.
pub fn resolv_conf(address: &str, is_root: bool) -> (&'static Path, bool) {
    let (usual, moved) = (Path::new("/etc/resolv.conf"), Path::new("/var/lib/istio/resolv.conf"));
    match address.ends_with(":53") && is_root {
        true if moved.exists() => (moved, true),
        alone => (usual, alone),
    }
}
