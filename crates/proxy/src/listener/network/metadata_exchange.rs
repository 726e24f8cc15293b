//! `istio.metadata_exchange` of TCP: on connections for which both sides have agreed upon it by ALPN,
//! each proxy begins with what it is, in front of the bytes that it carries
//! (`telemetry::workload`). In front of a listener's chain it reads what the client says, in a
//! cluster's `filters` what the server says.
//!
//! On the wire: a magic number and a length, both big endian in 32 bits, and an `Any` with a
//! `Struct` that has the proxy's metadata and its name.
//!
//! Deviation: both sides speak at once, not only when there is something to carry, and a listener's
//! chain waits for the client to do so; Istio's proxies answer it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leno_api::proto::envoy::tcp::metadataexchange::config as proto;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{NetworkFilter, NetworkFilterConfig};
use crate::config::lower::Lower;
use crate::io::{Accepted, Socket};
use crate::telemetry::istio::Tables;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ConnectionInfo, FilterState, FilterStates};
use crate::telemetry::workload::{DOWNSTREAM_PEER, NO_PEER, UPSTREAM_PEER, Workload};
use crate::tls::TlsInfo;
use crate::worker::Worker;

const MAGIC: u32 = 0x3d23_0467;
/// The magic number and the length.
const HEADER: usize = 8;
/// The longest that is read; Istio's proxies send less than a kilobyte.
const LIMIT: usize = 1 << 20;
const METADATA: &str = "x-envoy-peer-metadata";
const METADATA_ID: &str = "x-envoy-peer-metadata-id";
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

stats_scope! {
    /// `metadata_exchange.`
    struct ExchangeStats {
        counter alpn_protocol_not_found;
        counter alpn_protocol_found;
        counter initial_header_not_found;
        counter header_not_found;
        counter metadata_added;
    }
}

/// MetadataExchange.
#[derive(Debug)]
pub(crate) struct MetadataExchange {
    /// `protocol`
    protocol: Box<str>,
    /// `additional_labels`
    labels: Arc<[Box<str>]>,
    /// What this proxy says, with its header.
    own: Bytes,
    stats: PerThread<ExchangeStats>,
}

/// What a peer's first bytes are.
#[derive(Debug, PartialEq)]
enum Begin {
    /// More of them must come.
    More,
    /// So many bytes that say what it is.
    Says(usize, Rc<FilterState>),
    /// So many bytes that should, but do not.
    Nothing(usize),
    /// Bytes that are to be carried: it does not exchange metadata.
    Other,
}

impl MetadataExchange {
    fn stats(&self, worker: &Worker) -> &ExchangeStats {
        let thread = worker.stats();
        self.stats.of(thread, || ExchangeStats::kept(thread, "metadata_exchange."))
    }

    /// Whether a connection's sides have agreed upon it; else that is noted.
    fn applies(&self, tls: Option<&TlsInfo>, states: &mut FilterStates, worker: &Worker) -> bool {
        let agreed = tls.and_then(|tls| tls.alpn.as_deref()) == Some(&*self.protocol);
        if agreed {
            self.stats(worker).alpn_protocol_found().inc();
        } else {
            self.stats(worker).alpn_protocol_not_found().inc();
            states.insert(NO_PEER, no_peer());
        }
        agreed
    }

    /// Takes what a peer has said off its bytes; false: more must come.
    fn take(
        &self,
        bytes: &mut BytesMut,
        key: &'static str,
        states: &mut FilterStates,
        worker: &Worker,
    ) -> bool {
        let stats = self.stats(worker);
        match self.read(bytes, worker.istio()) {
            Begin::More => return false,
            Begin::Says(length, peer) => {
                bytes.advance(length);
                states.insert(key, peer);
            }
            Begin::Nothing(length) => {
                bytes.advance(length);
                stats.header_not_found().inc();
                states.insert(NO_PEER, no_peer());
            }
            Begin::Other => {
                stats.initial_header_not_found().inc();
                states.insert(NO_PEER, no_peer());
            }
        }
        true
    }

    /// Peers that say the same are decoded once.
    fn read(&self, bytes: &[u8], known: &Tables) -> Begin {
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            Some(bytes.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
        };
        match number(0) {
            None if MAGIC.to_be_bytes().starts_with(bytes) => return Begin::More,
            Some(MAGIC) => {}
            _ => return Begin::Other,
        }
        let Some(length) = number(4) else { return Begin::More };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LIMIT {
            return Begin::Other;
        }
        let Some(message) = bytes.get(HEADER..HEADER + length) else { return Begin::More };
        let decode = || {
            let any = Any::decode(message).ok()?;
            let said = Struct::decode(any.value.as_slice()).ok()?;
            match said.fields.get(METADATA)?.kind.as_ref()? {
                Kind::StructValue(metadata) => Some(Workload::of_struct(metadata, &self.labels)),
                _ => None,
            }
        };
        match known.peer(&[], message, &self.labels, decode) {
            Some(peer) => Begin::Says(HEADER + length, peer),
            None => Begin::Nothing(HEADER + length),
        }
    }

    /// The same towards a server that was connected to: bytes of the client are carried meanwhile
    /// (`moved` is told how many), so that nobody waits. What came of the server behind its
    /// metadata is left in `rest`. `None`: either side is gone.
    pub(crate) async fn with_server(
        &self,
        worker: &Worker,
        tls: Option<&TlsInfo>,
        states: &mut FilterStates,
        sides: Sides<'_>,
        mut moved: impl FnMut(u64),
    ) -> Option<()> {
        if !self.applies(tls, states, worker) {
            return Some(());
        }
        let Sides { downstream, upstream, early, rest } = sides;
        upstream.write_all(&self.own).await.ok()?;
        upstream.flush().await.ok()?;
        self.stats(worker).metadata_added().inc();
        let mut ended = false;
        while !self.take(rest, UPSTREAM_PEER, states, worker) {
            if !early.is_empty() {
                upstream.write_all(early).await.ok()?;
                upstream.flush().await.ok()?;
                moved(early.len() as u64);
                early.clear();
            }
            let came = poll_fn(|cx| {
                if let Poll::Ready(read) = poll_read(cx, upstream, rest) {
                    return Poll::Ready((read, true));
                }
                match ended {
                    true => Poll::Pending,
                    false => poll_read(cx, downstream, early).map(|read| (read, false)),
                }
            });
            match came.await {
                // It has said all that it will; the server may still answer.
                (Ok(0), false) => ended = true,
                (Ok(0) | Err(_), _) => return None,
                (Ok(_), _) => {}
            }
        }
        Some(())
    }
}

/// The two sides of a session that has a new upstream connection.
pub(crate) struct Sides<'a> {
    /// The client.
    pub(crate) downstream: &'a mut Socket,
    /// The server.
    pub(crate) upstream: &'a mut Socket,
    /// Bytes of the client that were read already.
    pub(crate) early: &'a mut BytesMut,
    /// Bytes of the server.
    pub(crate) rest: &'a mut BytesMut,
}

/// Reads what is there.
fn poll_read(
    cx: &mut std::task::Context<'_>,
    socket: &mut Socket,
    into: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    let mut read = std::pin::pin!(socket.read_buf(into));
    read.as_mut().poll(cx)
}

fn no_peer() -> Rc<FilterState> {
    thread_local! {
        static NOBODY: Rc<FilterState> =
            Rc::new(FilterState { text: "true".to_owned(), typed: Some(true.into()), peer: None });
    }
    NOBODY.with(Rc::clone)
}

/// In front of a listener's chain.
#[derive(Debug)]
struct OfClients(Arc<MetadataExchange>);

impl NetworkFilterConfig for OfClients {
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(WithClient { config: Arc::clone(&self.0), worker: Rc::clone(worker) }))
    }
}

/// The filter at work on one connection.
struct WithClient {
    config: Arc<MetadataExchange>,
    worker: Rc<Worker>,
}

impl NetworkFilter for WithClient {
    fn exchange<'a>(
        &'a mut self,
        connection: &'a mut ConnectionInfo,
        accepted: &'a mut Accepted,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + 'a>>> {
        let Self { config, worker } = self;
        let ConnectionInfo { tls, found, .. } = connection;
        if !config.applies(tls.as_deref(), &mut found.filter_state, worker) {
            return None;
        }
        Some(Box::pin(async move {
            let Accepted { socket, buffered, .. } = accepted;
            if socket.write_all(&config.own).await.is_err() || socket.flush().await.is_err() {
                // Whoever reads next finds that the client is gone.
                return;
            }
            config.stats(worker).metadata_added().inc();
            while !config.take(buffered, DOWNSTREAM_PEER, &mut found.filter_state, worker) {
                if matches!(socket.read_buf(buffered).await, Ok(0) | Err(_)) {
                    return;
                }
            }
        }))
    }
}

/// Lowers a listener's MetadataExchange.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    Some(Arc::new(OfClients(Arc::new(config(any, at)?))))
}

/// Lowers a MetadataExchange.
pub(crate) fn config(any: &Any, at: &mut Lower) -> Option<MetadataExchange> {
    let proto::MetadataExchange {
        protocol,
        // Nothing is found so without the bootstrap extension, which is refused by name.
        enable_discovery: _,
        additional_labels,
    } = at.unpack(any)?;
    if protocol.is_empty() {
        at.error_at("protocol", "value length must be at least 1 characters");
    }
    let labels: Vec<Box<str>> = additional_labels.into_iter().map(Into::into).collect();
    let scope = at.scope();
    let own = Workload::of_node(&scope.node_metadata, &scope.here.locality, &labels);
    let own = preamble(&own, &scope.node_id);
    Some(MetadataExchange {
        protocol: protocol.into(),
        labels: labels.into(),
        own,
        stats: PerThread::default(),
    })
}

/// What a proxy says of itself at the beginning of a connection.
fn preamble(own: &Workload, id: &str) -> Bytes {
    let mut said = Struct::default();
    let value = |kind| Value { kind: Some(kind) };
    said.fields.insert(METADATA.to_owned(), value(Kind::StructValue(own.to_struct())));
    if !id.is_empty() {
        said.fields.insert(METADATA_ID.to_owned(), value(Kind::StringValue(id.to_owned())));
    }
    let message = Any { type_url: STRUCT.to_owned(), value: said.encode_to_vec() }.encode_to_vec();
    let mut bytes = BytesMut::with_capacity(HEADER + message.len());
    bytes.put_u32(MAGIC);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use bytes::{BufMut, Bytes, BytesMut};

    use super::{Begin, MAGIC, MetadataExchange, preamble};
    use crate::telemetry::istio::Tables;
    use crate::telemetry::per_thread::PerThread;
    use crate::telemetry::workload::Workload;

    #[test]
    fn beginnings_of_connections() {
        let exchange = MetadataExchange {
            protocol: "p".into(),
            labels: [].into(),
            own: Bytes::new(),
            stats: PerThread::default(),
        };
        let peer = Workload { namespace: "ns".into(), workload: "w".into(), ..Workload::default() };
        let said = preamble(&peer, "id");
        let mut bytes = BytesMut::from(&*said);
        bytes.extend_from_slice(b"hello");
        let known = Tables::default();
        let read = |bytes: &[u8]| exchange.read(bytes, &known);
        let Begin::Says(length, state) = read(&bytes) else { panic!("it says what it is") };
        assert_eq!((length, state.peer.as_deref()), (said.len(), Some(&peer)));
        // The same is not decoded again.
        assert!(matches!(read(&said), Begin::Says(_, again) if Rc::ptr_eq(&again, &state)));
        for length in 0..said.len() {
            assert_eq!(read(&bytes[..length]), Begin::More, "{length}");
        }
        assert_eq!(read(b"GET / HTTP/1.1"), Begin::Other);
        let message = |length: u32, text: &[u8]| {
            let mut bytes = BytesMut::new();
            bytes.put_u32(MAGIC);
            bytes.put_u32(length);
            bytes.extend_from_slice(text);
            bytes
        };
        assert_eq!(read(&message(3, b"\xff\xff\xffabc")), Begin::Nothing(11));
        assert_eq!(read(&message(u32::MAX, b"abc")), Begin::Other);
    }
}
