//! statsd servers: `envoy.stat_sinks.statsd` over UDP or to a cluster over TCP, and its kin with labels,
//! `envoy.stat_sinks.dog_statsd` and `envoy.stat_sinks.graphite_statsd`.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::rc::{Rc, Weak};
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::metrics::v3 as proto;
use leno_api::proto::envoy::extensions::stat_sinks::graphite_statsd::v3 as graphite;
use leno_base::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::snapshot::{Metric, Recorded, Snapshot};
use super::{Message, Sink};
use crate::cluster::aggregate::Picked;
use crate::cluster::pool::connect::{Peer, open};
use crate::cluster::{EndpointConfig, PickContext};
use crate::config::address::ip_address;
use crate::config::lower::Lower;
use crate::io::Socket;
use crate::telemetry::stats::stats_scope;
use crate::tls::Offer;
use crate::worker::Worker;

/// How long a server may take for what it is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// How stats are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// Labels are parts of names.
    Plain,
    /// Labels are behind the value: `name:1|c|#label:value,...`.
    Datadog,
    /// Labels are behind the name: `name;label=value;...:1|c`.
    Graphite,
}

/// A server over UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagrams {
    address: SocketAddr,
    /// In front of each name.
    prefix: Box<str>,
    dialect: Dialect,
    /// How long a datagram of several stats may be, in bytes; 0: there is one for each.
    most: usize,
}

/// A server over TCP.
#[derive(Debug)]
pub(super) struct TcpStatsd {
    cluster: Name,
    prefix: Box<str>,
}

stats_scope! {
    /// Of a server over TCP.
    struct TcpStats {
        counter cx_overflow;
    }
}

/// Lowers StatsdSink.
pub(super) fn lower(proto: proto::StatsdSink, at: &mut Lower) -> Option<Sink> {
    use proto::statsd_sink::StatsdSpecifier as Specifier;
    let proto::StatsdSink { prefix, statsd_specifier } = proto;
    match statsd_specifier {
        Some(Specifier::Address(address)) => {
            let address = lower_address(address, at)?;
            let (prefix, dialect) = (lower_prefix(prefix), Dialect::Plain);
            Some(Sink::Datagrams(Datagrams { address, prefix, dialect, most: 0 }))
        }
        Some(Specifier::TcpClusterName(name)) => {
            let cluster = at.cluster_name(name);
            if at.scope().node_id.is_empty() || at.scope().node_cluster.is_empty() {
                at.error("tcp statsd: node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and --service-cluster options.");
            }
            if at.scope().clusters.as_ref().is_some_and(|known| !known.contains(&cluster)) {
                at.error_at("tcp_cluster_name", format!("tcp statsd: unknown cluster '{cluster}'"));
            }
            Some(Sink::Tcp(TcpStatsd { cluster, prefix: lower_prefix(prefix) }))
        }
        None => {
            at.error("one of address and tcp_cluster_name is required");
            None
        }
    }
}

/// Lowers DogStatsdSink.
pub(super) fn lower_dog(proto: proto::DogStatsdSink, at: &mut Lower) -> Option<Datagrams> {
    use proto::dog_statsd_sink::DogStatsdSpecifier as Specifier;
    let proto::DogStatsdSink { prefix, max_bytes_per_datagram, dog_statsd_specifier } = proto;
    let address = dog_statsd_specifier.map(|Specifier::Address(address)| address);
    tagged(address, prefix, max_bytes_per_datagram, Dialect::Datadog, at)
}

/// Lowers GraphiteStatsdSink.
pub(super) fn lower_graphite(proto: graphite::GraphiteStatsdSink, at: &mut Lower) -> Option<Datagrams> {
    use graphite::graphite_statsd_sink::StatsdSpecifier as Specifier;
    let graphite::GraphiteStatsdSink { prefix, max_bytes_per_datagram, statsd_specifier } = proto;
    let address = statsd_specifier.map(|Specifier::Address(address)| address);
    tagged(address, prefix, max_bytes_per_datagram, Dialect::Graphite, at)
}

fn tagged(
    address: Option<core::Address>,
    prefix: String,
    most: Option<u64>,
    dialect: Dialect,
    at: &mut Lower,
) -> Option<Datagrams> {
    let Some(address) = address else {
        at.error_at("address", "value is required");
        return None;
    };
    let address = lower_address(address, at)?;
    let most = at.narrow("max_bytes_per_datagram", most.unwrap_or(0))?;
    Some(Datagrams { address, prefix: lower_prefix(prefix), dialect, most })
}

fn lower_address(address: core::Address, at: &mut Lower) -> Option<SocketAddr> {
    match address.address {
        Some(core::address::Address::SocketAddress(mut address)) => {
            // Datagrams are meant whatever it says.
            address.protocol = 0;
            at.field("address.socket_address", |at| ip_address(address, at))
        }
        _ => {
            at.error_at("address", "only an IP address is supported yet");
            None
        }
    }
}

fn lower_prefix(prefix: String) -> Box<str> {
    if prefix.is_empty() { "envoy".into() } else { prefix.into() }
}

impl Datagrams {
    /// A socket that does not wait; none if the system refuses it, which is said.
    pub(super) fn connect(&self) -> Option<UdpSocket> {
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let connected = UdpSocket::bind(any).and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect(self.address)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::error!(target: "stats_sinks", address = %self.address, %error, "no way to the statsd server");
                None
            }
        }
    }

    /// What the server is told.
    pub(super) fn datagrams(&self, snapshot: &Snapshot) -> Vec<String> {
        let mut datagrams: Vec<String> = Vec::new();
        lines(snapshot, self.dialect, |line, timer| {
            let length = self.prefix.len() + 1 + line.len();
            // Envoy sends timers one by one, at once.
            if let Some(last) = datagrams.last_mut()
                && !timer
                && last.len() + 1 + length <= self.most
            {
                let _ = write!(last, "\n{}.{line}", self.prefix);
            } else {
                datagrams.push(format!("{}.{line}", self.prefix));
            }
        });
        datagrams
    }
}

impl TcpStatsd {
    /// What the server is told, a line for each stat.
    pub(super) fn lines(&self, snapshot: &Snapshot) -> String {
        let mut text = String::new();
        lines(snapshot, Dialect::Plain, |line, _| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}.{line}", self.prefix);
        });
        text
    }

    /// Sends what comes, by a connection that is opened when there is something to be sent.
    pub(super) async fn run(&self, mut messages: mpsc::Receiver<Message>, worker: Weak<Worker>) {
        let Some(stats) = worker.upgrade().map(|worker| TcpStats::kept(worker.stats(), "statsd.")) else {
            return;
        };
        let mut connection: Option<Socket> = None;
        loop {
            let mut ignored = [0; 512];
            let ended = async {
                match &mut connection {
                    Some(socket) => !matches!(socket.read(&mut ignored).await, Ok(1..)),
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                ended = ended => {
                    if ended {
                        connection = None;
                    }
                    continue;
                }
                message = messages.recv() => message,
            };
            let (Some(message), Some(worker)) = (message, worker.upgrade()) else { return };
            if connection.is_none() {
                connection = self.connect(&worker).await;
            }
            let Some(socket) = &mut connection else { continue };
            match tokio::time::timeout(PATIENCE, socket.write_all(&message)).await {
                Ok(Ok(())) => {
                    if let Some(cluster) = worker.cluster(&self.cluster) {
                        cluster.stats.upstream_cx_tx_bytes_total().add(message.len() as u64);
                    }
                }
                Ok(Err(_)) => connection = None,
                Err(_) => {
                    stats.cx_overflow().inc();
                    connection = None;
                }
            }
        }
    }

    async fn connect(&self, worker: &Rc<Worker>) -> Option<Socket> {
        let cluster = worker.cluster(&self.cluster)?;
        let Picked { cluster, host, .. } = worker.pick(&cluster, &PickContext::default())?;
        let EndpointConfig { address, others, metadata, hostname, .. } = &*host.config;
        let peer = Peer {
            cluster: &cluster.config,
            address,
            others,
            metadata,
            via: None,
            hostname: hostname.as_deref(),
            transport: &host.transport,
            offer: Offer::Configured,
            stats: cluster.tls_stats.as_deref(),
        };
        match open(peer).await {
            Ok((socket, _)) => Some(socket),
            Err(error) => {
                tracing::debug!(target: "stats_sinks", %error, cluster = &*self.cluster, "no way to the statsd server");
                None
            }
        }
    }
}

/// All lines for a server, without the prefix; and which of them are timers.
fn lines(snapshot: &Snapshot, dialect: Dialect, mut say: impl FnMut(&str, bool)) {
    let mut line = String::new();
    for counter in &snapshot.counters {
        put(&mut line, counter, counter.value.new, "c", dialect);
        say(&line, false);
    }
    for gauge in &snapshot.gauges {
        put(&mut line, gauge, gauge.value, "g", dialect);
        say(&line, false);
    }
    // Deviation: values are told with the next flush, equal ones together with the rate at which they
    // stand for all; Envoy sends each at once.
    for histogram in &snapshot.histograms {
        let Recorded { new, .. } = &histogram.value;
        for (lower, _, count) in new.buckets() {
            let kind = if count == 1 { "ms".to_owned() } else { format!("ms|@{}", 1.0 / count as f64) };
            put(&mut line, histogram, lower, &kind, dialect);
            say(&line, true);
        }
    }
}

fn put<V>(line: &mut String, metric: &Metric<V>, value: u64, kind: &str, dialect: Dialect) {
    line.clear();
    let pairs = &metric.tagged.tags;
    // Writing to a String cannot fail.
    let _ = match dialect {
        Dialect::Plain => write!(line, "{}:{value}|{kind}", metric.name),
        Dialect::Datadog => {
            let _ = write!(line, "{}:{value}|{kind}", metric.tagged.name);
            for (index, (name, value)) in pairs.iter().enumerate() {
                let _ = write!(line, "{}{name}:{value}", if index == 0 { "|#" } else { "," });
            }
            Ok(())
        }
        Dialect::Graphite => {
            line.push_str(&metric.tagged.name);
            for (name, value) in pairs {
                let _ = write!(line, ";{name}={value}");
            }
            write!(line, ":{value}|{kind}")
        }
    };
}
