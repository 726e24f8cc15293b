//! `envoy.stat_sinks.statsd`: what is counted is told to a statsd server over UDP, every
//! `stats_flush_interval`, a datagram for each stat.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::metrics::v3 as proto;

use crate::config::address::ip_address;
use crate::config::lower::Lower;
use crate::telemetry::scrape::{Sample, Stat, scrape};
use crate::telemetry::stats::StatsStore;
use crate::telemetry::tags::StatsConfig;

/// `stats_flush_interval` where there is none.
const INTERVAL: Duration = Duration::from_secs(5);

/// Who is told of stats.
#[derive(Debug)]
pub(crate) struct Sinks {
    interval: Duration,
    servers: Vec<Server>,
    /// Which stats there are (`stats_config.stats_matcher`).
    shown: StatsConfig,
}

/// StatsdSink.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    address: SocketAddr,
    /// In front of each name.
    prefix: Box<str>,
}

impl Sinks {
    /// Lowers `stats_sinks`; none if there is nobody to tell.
    pub(crate) fn lower(
        sinks: Vec<proto::StatsSink>,
        interval: Option<prost_types::Duration>,
        shown: &StatsConfig,
        at: &mut Lower,
    ) -> Option<Self> {
        let interval = at.duration("stats_flush_interval", interval).unwrap_or(INTERVAL);
        let servers = at.each("stats_sinks", sinks, lower);
        (!servers.is_empty()).then(|| Self { interval, servers, shown: shown.clone() })
    }

    /// Tells them until the runtime ends.
    pub(crate) fn start(self, stats: Arc<StatsStore>) {
        let Sinks { interval, servers, shown } = self;
        let mut told = Told::default();
        let sockets: Vec<_> = servers.into_iter().filter_map(Server::connect).collect();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                let lines = told.lines(&scrape(&stats, |name| shown.shows(name)));
                for (socket, prefix) in &sockets {
                    for line in &lines {
                        // As with any datagram: nobody need be there.
                        let _ = socket.send(format!("{prefix}.{line}").as_bytes());
                    }
                }
            }
        });
    }
}

fn lower(sink: proto::StatsSink, at: &mut Lower) -> Option<Server> {
    let proto::StatsSink { name, config_type } = sink;
    let Some(proto::stats_sink::ConfigType::TypedConfig(any)) = config_type else {
        at.error_at("typed_config", "value is required");
        return None;
    };
    at.field("typed_config", |at| {
        let any = at.extension(any)?;
        if !leno_api::any::is::<proto::StatsdSink>(&any) {
            at.unsupported_extension(&name, &any.type_url);
            return None;
        }
        let proto::StatsdSink { prefix, statsd_specifier } = at.unpack(&any)?;
        use proto::statsd_sink::StatsdSpecifier as Specifier;
        let address = match statsd_specifier {
            Some(Specifier::Address(core::Address {
                address: Some(core::address::Address::SocketAddress(mut address)),
            })) => {
                // Datagrams are meant whatever it says.
                address.protocol = 0;
                at.field("address", |at| at.field("socket_address", |at| ip_address(address, at)))?
            }
            Some(Specifier::Address(_)) => {
                at.error_at("address", "only an IP address is supported yet");
                return None;
            }
            Some(Specifier::TcpClusterName(_)) => {
                at.unsupported("tcp_cluster_name", true);
                return None;
            }
            None => {
                at.error("one of address and tcp_cluster_name is required");
                return None;
            }
        };
        let prefix = if prefix.is_empty() { "envoy".into() } else { prefix.into() };
        Some(Server { address, prefix })
    })
}

impl Server {
    /// A socket that does not wait; none if the system refuses it, which is said.
    fn connect(self) -> Option<(UdpSocket, Box<str>)> {
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
            Ok(socket) => Some((socket, self.prefix)),
            Err(error) => {
                tracing::error!(target: "stats_sinks", address = %self.address, %error, "no way to the statsd server");
                None
            }
        }
    }
}

/// What was told before.
#[derive(Debug, Default)]
struct Told {
    counters: HashMap<String, u64>,
    /// Of histograms, by the lower bounds of buckets.
    recorded: HashMap<String, HashMap<u64, u64>>,
}

impl Told {
    /// What is to be told of stats that were ever written, without the prefix: gauges as they are, of
    /// the others what is new.
    fn lines(&mut self, stats: &[Stat]) -> Vec<String> {
        let mut lines = Vec::new();
        for stat in stats.iter().filter(|stat| stat.used) {
            // What separates the parts of a line cannot be in a name.
            let name = stat.name.replace([':', '|', '@', '#', '\n'], "_");
            match &stat.value {
                Sample::Counter(value) => {
                    let before = self.counters.insert(stat.name.clone(), *value).unwrap_or(0);
                    // After a reset it counts from 0 again.
                    let new = value.checked_sub(before).unwrap_or(*value);
                    lines.push(format!("{name}:{new}|c"));
                }
                Sample::Gauge(value) => lines.push(format!("{name}:{value}|g")),
                // Deviation: values are told with the next flush, equal ones together with the rate at
                // which they stand for all; Envoy sends each at once.
                Sample::Histogram(all) => {
                    let before = self.recorded.entry(stat.name.clone()).or_default();
                    for (lower, _, count) in all.buckets() {
                        let known = before.insert(lower, count).unwrap_or(0);
                        match count.saturating_sub(known) {
                            0 => {}
                            1 => lines.push(format!("{name}:{lower}|ms")),
                            new => lines.push(format!("{name}:{lower}|ms|@{}", 1.0 / new as f64)),
                        }
                    }
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::Arc;
    use std::time::Duration;

    use leno_api::proto::envoy::config::metrics::v3 as proto;

    use super::{Sinks, Told};
    use crate::config::lower::Lower;
    use crate::telemetry::scrape::scrape;
    use crate::telemetry::stats::{StatsStore, stats_scope};
    use crate::telemetry::tags::StatsConfig;

    stats_scope! {
        struct Scope { counter total; counter untouched; gauge active; histogram time; }
    }

    #[test]
    fn what_is_new_is_told() {
        let store = StatsStore::default();
        let (first, second) = (Scope::new(&store.thread(), "a:b."), Scope::new(&store.thread(), "a:b."));
        let mut told = Told::default();
        let mut lines = || told.lines(&scrape(&store, |_| true)).join(" ");
        assert_eq!(lines(), "");
        first.total().add(2);
        second.total().inc();
        second.active().set(7);
        first.time().record(5);
        first.time().record(5);
        second.time().record(5);
        second.time().record(5);
        second.time().record(1);
        assert_eq!(lines(), "a_b.active:7|g a_b.time:1|ms a_b.time:5|ms|@0.25 a_b.total:3|c");
        assert_eq!(lines(), "a_b.active:7|g a_b.total:0|c");
        first.time().record(5);
        first.total().inc();
        assert_eq!(lines(), "a_b.active:7|g a_b.time:5|ms a_b.total:1|c");
        store.reset_counters();
        second.total().inc();
        assert_eq!(lines(), "a_b.active:7|g a_b.total:1|c");
    }

    fn lowered(sink: &str) -> Result<Sinks, String> {
        let text = format!(
            "{{name: envoy.stat_sinks.statsd, typed_config: {{'@type': type.googleapis.com/envoy.config.metrics.v3.{sink}}}}}"
        );
        let sink: proto::StatsSink = leno_api::decode_text(&text, "sink").expect("it is a message");
        let interval = prost_types::Duration { seconds: 0, nanos: 1_000_000 };
        let lowered =
            Lower::resource(|at| Sinks::lower(vec![sink], Some(interval), &StatsConfig::default(), at));
        lowered.map_err(|rejected| rejected.to_string())
    }

    #[tokio::test]
    async fn a_server_is_told() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        server.set_read_timeout(Some(Duration::from_secs(60))).expect("an option");
        let port = server.local_addr().expect("an address").port();
        let sinks = lowered(&format!(
            "StatsdSink, prefix: mesh, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}"
        ));
        let store = Arc::new(StatsStore::default());
        let scope = Scope::new(&store.thread(), "scope.");
        scope.total().add(5);
        sinks.expect("they are taken").start(Arc::clone(&store));
        let received = tokio::task::spawn_blocking(move || {
            let mut datagram = [0; 100];
            let length = server.recv(&mut datagram).expect("a datagram");
            String::from_utf8_lossy(&datagram[..length]).into_owned()
        });
        assert_eq!(received.await.expect("it was received"), "mesh.scope.total:5|c");
    }

    #[test]
    fn what_is_refused() {
        let check = |sink: &str, expected: &str| {
            let refused = lowered(sink).expect_err("it is refused");
            assert!(refused.contains(expected), "{refused}");
        };
        check(
            "StatsdSink, tcp_cluster_name: c",
            "stats_sinks[0].typed_config.tcp_cluster_name: not supported yet",
        );
        check("StatsdSink, address: {pipe: {path: /p}}", "only an IP address");
        check(
            "StatsdSink, address: {socket_address: {address: localhost, port_value: 8125}}",
            "socket_address",
        );
        check("HystrixSink, num_buckets: 5", "is not supported yet");
    }
}
