//! What sinks are told of what was counted, and which configurations are taken.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap;
use leno_api::proto::envoy::service::metrics::v3 as service;
use leno_api::proto::io::prometheus::client::MetricType;
use prost::Message as _;

use super::snapshot::Told;
use super::{Proto, Sink, Sinks};
use crate::config::lower::Lower;
use crate::telemetry::scrape::scrape;
use crate::telemetry::server_stats::Sampled;
use crate::telemetry::stats::{Kind, Labels, StatsStore, stats_scope};
use crate::telemetry::tags::StatsConfig;

stats_scope! {
    struct Scope { counter total; counter untouched; gauge active; histogram time; }
}

/// The sinks of a bootstrap with these fields.
fn lowered(fields: &str) -> Result<Sinks, String> {
    let proto: Bootstrap =
        leno_api::decode_text(&format!("{{{fields}}}"), "bootstrap").map_err(|errors| errors.to_string())?;
    let proto = Proto {
        sinks: proto.stats_sinks,
        interval: proto.stats_flush_interval,
        flush: proto.stats_flush,
        eviction: proto.stats_eviction,
    };
    let lowered = Lower::resource(|at| Sinks::lower(proto, &StatsConfig::default(), at));
    lowered.map_err(|rejected| rejected.to_string())
}

/// One sink, of this type.
fn sink(kind: &str, fields: &str) -> Result<Sinks, String> {
    lowered(&format!(
        "stats_sinks: [{{name: s, typed_config: {{'@type': type.googleapis.com/envoy.{kind}{}{fields}}}}}]",
        if fields.is_empty() { "" } else { ", " },
    ))
}

const ADDRESS: &str = "address: {socket_address: {address: 127.0.0.1, port_value: 1}}";

#[test]
fn what_is_new_is_told() {
    let store = StatsStore::default();
    let config = StatsConfig::default();
    let (first, second) =
        (Scope::new(&store.thread(), "cluster.a."), Scope::new(&store.thread(), "cluster.a."));
    let sinks = [
        sink("config.metrics.v3.StatsdSink", ADDRESS),
        sink(
            "config.metrics.v3.DogStatsdSink",
            &format!("{ADDRESS}, prefix: dog, max_bytes_per_datagram: 90"),
        ),
        sink("extensions.stat_sinks.graphite_statsd.v3.GraphiteStatsdSink", ADDRESS),
    ];
    let sinks = sinks.map(|sink| match sink.expect("it is taken").sinks.pop() {
        Some(Sink::Datagrams(datagrams)) => datagrams,
        other => panic!("{other:?}"),
    });
    let mut told = Told::default();
    let mut lines = |which: usize| {
        let snapshot = told.snapshot(scrape(&store, |_| true), &config);
        sinks[which]
            .datagrams(&snapshot)
            .join(" ")
            .replace("envoy.cluster.a.", "")
            .replace("envoy.cluster.", "")
    };
    assert_eq!(lines(0), "");
    first.total().add(2);
    second.total().inc();
    second.active().set(7);
    first.time().record(5);
    first.time().record(5);
    second.time().record(5);
    second.time().record(5);
    second.time().record(1);
    assert_eq!(lines(0), "total:3|c active:7|g time:1|ms time:5|ms|@0.25");
    assert_eq!(lines(0), "total:0|c active:7|g");
    first.time().record(5);
    first.total().inc();
    assert_eq!(
        lines(1),
        "dog.cluster.total:1|c|#envoy.cluster_name:a\ndog.cluster.active:7|g|#envoy.cluster_name:a dog.cluster.time:5|ms|#envoy.cluster_name:a"
    );
    store.reset_counters();
    second.total().inc();
    assert_eq!(lines(2), "total;envoy.cluster_name=a:1|c active;envoy.cluster_name=a:7|g");
}

#[tokio::test]
async fn a_server_is_told() {
    told_by("0.001s", false).await;
}

#[tokio::test]
async fn a_server_is_told_at_the_end() {
    told_by("299s", true).await;
}

/// What a server is told, every `interval` or when the proxy ends.
async fn told_by(interval: &str, ends: bool) {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    server.set_read_timeout(Some(Duration::from_secs(60))).expect("an option");
    let port = server.local_addr().expect("an address").port();
    let sinks = lowered(&format!(
        "stats_flush_interval: {interval}, stats_sinks: [{{name: s, typed_config: {{'@type': type.googleapis.com/envoy.config.metrics.v3.StatsdSink, prefix: mesh, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]"
    ));
    let store = Arc::new(StatsStore::default());
    let thread = store.thread();
    let scope = Scope::new(&thread, "scope.");
    scope.total().add(5);
    // In a store of its own, as its stats would be told too.
    let sampled = Arc::new(Sampled::new(&StatsStore::default().thread()));
    let (couriers, last) = sinks.expect("they are taken").start(Arc::clone(&store), thread, sampled);
    assert!(couriers.is_empty());
    if ends {
        last.expect("there is an interval").flush();
    }
    let received = tokio::task::spawn_blocking(move || {
        let mut datagram = [0; 100];
        let length = server.recv(&mut datagram).expect("a datagram");
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    });
    assert_eq!(received.await.expect("it was received"), "mesh.scope.total:5|c");
}

#[test]
fn metrics_of_the_service() {
    let store = StatsStore::default();
    let config = StatsConfig::default();
    let scope = Scope::new(&store.thread(), "cluster.a.");
    let messages = |fields: &str, told: &mut Told| {
        let grpc = "grpc_service: {envoy_grpc: {cluster_name: c}}";
        let sinks = sink("config.metrics.v3.MetricsServiceConfig", &format!("{grpc}{fields}"));
        let Some(Sink::Metrics(metrics)) = sinks.expect("it is taken").sinks.pop() else { panic!("no sink") };
        let snapshot = told.snapshot(scrape(&store, |_| true), &config);
        let messages = metrics.messages(&snapshot).into_iter().map(|message| {
            let message = service::StreamMetricsMessage::decode(message.as_slice()).expect("a message");
            assert!(message.identifier.is_none());
            message.envoy_metrics
        });
        messages.collect::<Vec<_>>()
    };
    scope.total().add(2);
    scope.time().record(5);
    let mut told = Told::default();
    let all = messages("", &mut told);
    assert_eq!(all.len(), 1);
    let kinds: Vec<_> = all[0].iter().map(|family| (family.name(), family.r#type())).collect();
    assert_eq!(
        kinds,
        [
            ("cluster.a.total", MetricType::Counter),
            ("cluster.a.time", MetricType::Summary),
            ("cluster.a.time", MetricType::Histogram),
        ]
    );
    scope.total().add(3);
    let all = messages(
        ", report_counters_as_deltas: true, emit_tags_as_labels: true, batch_size: 1, histogram_emit_mode: HISTOGRAM",
        &mut told,
    );
    assert_eq!(all.len(), 2);
    assert_eq!((all[0][0].name(), all[1][0].name()), ("cluster.total", "cluster.time"));
    let metric = &all[0][0].metric[0];
    assert_eq!(metric.counter.as_ref().and_then(|counter| counter.value), Some(3.0));
    assert_eq!((metric.label[0].name(), metric.label[0].value()), ("envoy.cluster_name", "a"));
    // Nothing new was recorded.
    let histogram = all[1][0].metric[0].histogram.as_ref().expect("a histogram");
    assert_eq!((histogram.sample_count(), histogram.bucket.len()), (0, 19));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_counted_any_more_is_given_up() {
    let sinks = lowered("stats_flush_interval: 1s, stats_eviction_interval: 10s").expect("it is taken");
    let store = Arc::new(StatsStore::default());
    let (main, worker) = (store.thread(), store.thread());
    let labels = |value: &str| Labels { name: "n".into(), pairs: vec![("l".into(), value.into())] };
    let busy = worker.labelled(Kind::Counter, labels("busy"));
    let idle = worker.labelled(Kind::Counter, labels("idle"));
    let plain = Scope::new(&worker, "plain.");
    busy.cell(0).inc();
    idle.cell(0).inc();
    plain.total().inc();
    let sampled = Arc::new(Sampled::new(&StatsStore::default().thread()));
    sinks.start(Arc::clone(&store), main, sampled);
    let shown = || scrape(&store, |name| name.starts_with("n.") || name == "plain.total").len();
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    assert_eq!(shown(), 3, "all were counted in the first interval");
    busy.cell(0).inc();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(shown(), 2);
    assert!(idle.is_retired() && !busy.is_retired());
}

#[test]
fn what_is_refused() {
    let check = |lowered: Result<Sinks, String>, expected: &str| {
        let refused = lowered.expect_err("it is refused");
        assert!(refused.contains(expected), "{refused}");
    };
    check(sink("config.metrics.v3.StatsdSink", "address: {pipe: {path: /p}}"), "only an IP address");
    check(
        sink(
            "config.metrics.v3.StatsdSink",
            "address: {socket_address: {address: localhost, port_value: 8125}}",
        ),
        "socket_address",
    );
    check(
        sink("config.metrics.v3.StatsdSink", "tcp_cluster_name: c"),
        "tcp statsd: node 'id' and 'cluster' are required",
    );
    check(sink("config.metrics.v3.HystrixSink", "num_buckets: 5"), "is not supported yet");
    check(
        lowered("stats_flush_interval: 5s, stats_eviction_interval: 12s"),
        "stats_eviction_interval must be a multiple of stats_flush_interval",
    );
    check(
        lowered("stats_flush_interval: 5s, stats_flush_on_admin: true, stats_sinks: []"),
        "Only one of stats_flush_interval or stats_flush_on_admin should be set!",
    );
}
