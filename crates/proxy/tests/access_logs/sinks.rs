//! Sinks of stats, ours beside the real Envoy's: what they are told in all, whenever they are told it, must
//! be the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use leno_api::proto::envoy::service::metrics::v3 as service;
use leno_api::proto::io::prometheus::client::{LabelPair, MetricFamily};
use leno_api::proto::opentelemetry::proto::collector::metrics::v1 as collector;
use leno_api::proto::opentelemetry::proto::common::v1::{KeyValue, any_value};
use leno_api::proto::opentelemetry::proto::metrics::v1::{self as metrics, metric, number_data_point};
use prost::Message as _;
use serde_json::{Value, json};

use crate::support::{self, Proxy, exchange, wait};
use crate::{Sent, cluster, collect, collect_http, endpoint, grpc, listener, typed};

/// Lines of statsd, as they came.
type Lines = Arc<Mutex<Vec<String>>>;

/// A statsd server over UDP.
fn datagrams() -> (SocketAddr, Lines) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = socket.local_addr().expect("an address");
    let lines = Lines::default();
    let log = Arc::clone(&lines);
    std::thread::spawn(move || {
        let mut datagram = [0; 65_536];
        while let Ok(length) = socket.recv(&mut datagram) {
            let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
            log.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    });
    (address, lines)
}

/// A statsd server over TCP.
fn lines() -> (SocketAddr, Lines) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let lines = Lines::default();
    let log = Arc::clone(&lines);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
    });
    (address, lines)
}

fn sink(name: &str, kind: &str, config: Value) -> Value {
    typed(&format!("envoy.stat_sinks.{name}"), kind, config)
}

fn address(of: SocketAddr) -> Value {
    json!({"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": of.port()}})
}

/// Where all kinds of sinks are.
struct Servers {
    metrics: (SocketAddr, Sent),
    posts: (SocketAddr, Sent),
    plain: (SocketAddr, Lines),
    dog: (SocketAddr, Lines),
    graphite: (SocketAddr, Lines),
    tcp: (SocketAddr, Lines),
}

/// `when`: fields of the bootstrap.
fn bootstrap(up: SocketAddr, servers: &Servers, when: &Value) -> String {
    const OTEL: &str = "extensions.stat_sinks.open_telemetry.v3.SinkConfig";
    const METRICS: &str = "config.metrics.v3.MetricsServiceConfig";
    let manager = typed(
        "http",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "front",
            "http_filters": [typed("router", "extensions.filters.http.router.v3.Router", json!({}))],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                {"match": {"path": "/direct"}, "direct_response": {"status": 418}},
                {"match": {"prefix": "/up"}, "route": {"cluster": "up|80||x"}},
            ]}]},
        }),
    );
    let exact = [
        "http.front.downstream_rq_total",
        "http.front.downstream_rq_2xx",
        "http.front.downstream_rq_4xx",
        "http.front.downstream_rq_time",
        "http.front.downstream_rq_5xx",
        "cluster.up|80||x.upstream_rq_total",
        "cluster.up|80||x.upstream_rq_200",
        "cluster.up|80||x.membership_total",
        "cluster.up|80||x.membership_healthy",
    ];
    let exact: Vec<Value> = exact.iter().map(|name| json!({"exact": name})).collect();
    let mut bootstrap = json!({
        "node": {"id": "n", "cluster": "c", "locality": {"zone": "z"}, "metadata": {"a": "b"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "stats_config": {
            "stats_matcher": {"inclusion_list": {"patterns": exact}},
            "histogram_bucket_settings": [{"match": {"prefix": "http.front"}, "buckets": [1, 600_000]}],
        },
        "stats_sinks": [
            sink("metrics_service", METRICS, json!({
                "grpc_service": grpc("metrics"), "transport_api_version": "V3", "report_counters_as_deltas": true,
                "emit_tags_as_labels": true,
            })),
            sink("metrics_service", METRICS, json!({
                "grpc_service": {"envoy_grpc": {"cluster_name": "metrics"}, "initial_metadata": [{"key": "x-a", "value": "b"}]},
                "transport_api_version": "V3", "histogram_emit_mode": "HISTOGRAM", "batch_size": 2,
            })),
            sink("statsd", "config.metrics.v3.StatsdSink", json!({"address": address(servers.plain.0)})),
            sink("statsd", "config.metrics.v3.StatsdSink", json!({"tcp_cluster_name": "lines", "prefix": "tcp"})),
            sink("dog_statsd", "config.metrics.v3.DogStatsdSink", json!({
                "address": address(servers.dog.0), "prefix": "dog", "max_bytes_per_datagram": 150,
            })),
            sink("graphite_statsd", "extensions.stat_sinks.graphite_statsd.v3.GraphiteStatsdSink", json!({
                "address": address(servers.graphite.0),
            })),
            sink("open_telemetry", OTEL, json!({"grpc_service": grpc("metrics"), "prefix": "pre"})),
            sink("open_telemetry", OTEL, json!({
                "http_service": {
                    "http_uri": {"uri": "http://collector.test/v1/metrics", "cluster": "posts", "timeout": "5s"},
                    "request_headers_to_add": [{"header": {"key": "x-token", "value": "secret"}}],
                },
                "report_counters_as_deltas": true, "report_histograms_as_deltas": true, "emit_tags_as_attributes": false,
                "use_tag_extracted_name": false, "max_data_points_per_request": 3,
            })),
        ],
        "static_resources": {
            "listeners": [listener("front", &manager)],
            "clusters": [
                cluster("up|80||x", up, false), cluster("metrics", servers.metrics.0, true),
                cluster("posts", servers.posts.0, false), cluster("lines", servers.tcp.0, false),
            ],
        },
    });
    let fields = when.as_object().expect("fields").clone();
    bootstrap.as_object_mut().expect("an object").extend(fields);
    bootstrap.to_string()
}

/// What was told of each stat in all; by sink.
type Totals = BTreeMap<String, BTreeMap<String, String>>;

/// Adds, or replaces.
struct Sums(BTreeMap<String, BTreeMap<String, f64>>);

impl Sums {
    fn add(&mut self, sink: &str, stat: String, value: f64, delta: bool) {
        let sum = self.0.entry(sink.to_owned()).or_default().entry(stat).or_default();
        *sum = if delta { *sum + value } else { value };
    }
}

fn labels(pairs: &[LabelPair]) -> String {
    pairs.iter().map(|pair| format!(" {}={}", pair.name(), pair.value())).collect()
}

fn attributes(pairs: &[KeyValue]) -> String {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    pairs.iter().map(|pair| format!(" {}={}", pair.key, text(pair))).collect()
}

fn add_family(sums: &mut Sums, sink: &str, deltas: bool, family: &MetricFamily) {
    for metric in &family.metric {
        assert!(metric.timestamp_ms() > 1_700_000_000_000, "a time in milliseconds");
        let kind = format!("{:?} {}{}", family.r#type(), family.name(), labels(&metric.label));
        if let Some(counter) = &metric.counter {
            sums.add(sink, kind, counter.value(), deltas);
        } else if let Some(gauge) = &metric.gauge {
            sums.add(sink, kind, gauge.value(), false);
        } else if let Some(histogram) = &metric.histogram {
            let bounds: Vec<f64> = histogram.bucket.iter().map(|bucket| bucket.upper_bound()).collect();
            sums.add(sink, format!("{kind} {bounds:?}"), histogram.sample_count() as f64, true);
            let last = histogram.bucket.last().map_or(0, |bucket| bucket.cumulative_count());
            sums.add(sink, format!("{kind} last bucket"), last as f64, true);
        } else if let Some(summary) = &metric.summary {
            let shares: Vec<f64> = summary.quantile.iter().map(|quantile| quantile.quantile()).collect();
            sums.add(sink, format!("{kind} {shares:?}"), summary.sample_count() as f64, true);
        }
    }
}

fn add_metric(sums: &mut Sums, sink: &str, metric: &metrics::Metric) {
    const DELTA: i32 = metrics::AggregationTemporality::Delta as i32;
    let number = |point: &metrics::NumberDataPoint| match point.value {
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        _ => f64::NAN,
    };
    let name = &metric.name;
    match metric.data.as_ref().expect("data") {
        metric::Data::Gauge(gauge) => {
            for point in &gauge.data_points {
                sums.add(
                    sink,
                    format!("gauge {name}{}", attributes(&point.attributes)),
                    number(point),
                    false,
                );
            }
        }
        metric::Data::Sum(sum) => {
            let kind = (sum.aggregation_temporality, sum.is_monotonic);
            for point in &sum.data_points {
                assert!(point.time_unix_nano > point.start_time_unix_nano && point.start_time_unix_nano > 0);
                let stat = format!("sum {kind:?} {name}{}", attributes(&point.attributes));
                sums.add(sink, stat, number(point), kind.0 == DELTA);
            }
        }
        metric::Data::Histogram(histogram) => {
            let kind = histogram.aggregation_temporality;
            for point in &histogram.data_points {
                let attributes = attributes(&point.attributes);
                let stat = format!("histogram {kind} {name}{attributes} {:?}", point.explicit_bounds);
                sums.add(sink, stat.clone(), point.count as f64, kind == DELTA);
                let buckets: u64 = point.bucket_counts.iter().sum();
                sums.add(sink, format!("{stat} buckets"), buckets as f64, kind == DELTA);
            }
        }
    }
}

/// What the servers have been told so far, and how.
fn told(servers: &Servers) -> Totals {
    let mut sums = Sums(BTreeMap::new());
    let mut facts: BTreeSet<(String, String)> = BTreeSet::new();
    let sent = servers.metrics.1.lock().unwrap_or_else(PoisonError::into_inner);
    for (path, message) in sent.iter() {
        if path.ends_with("StreamMetrics") {
            let message = service::StreamMetricsMessage::decode(message.as_slice()).expect("a message");
            let batched = message.envoy_metrics.len() <= 2;
            let sink = if batched { "batches" } else { "metrics" };
            if let Some(node) = message.identifier.and_then(|identifier| identifier.node) {
                let zone = node.locality.unwrap_or_default().zone;
                let metadata = node.metadata.unwrap_or_default().fields.len();
                let text = format!("{} {} {zone} {metadata}", node.id, node.cluster);
                facts.insert((sink.to_owned(), text));
            }
            message.envoy_metrics.iter().for_each(|family| add_family(&mut sums, sink, !batched, family));
        } else {
            add_export(&mut sums, &mut facts, path, message);
        }
    }
    drop(sent);
    for (what, message) in servers.posts.1.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        add_export(&mut sums, &mut facts, what, message);
    }
    for (sink, (_, lines)) in [
        ("plain", &servers.plain),
        ("dog", &servers.dog),
        ("graphite", &servers.graphite),
        ("tcp", &servers.tcp),
    ] {
        for datagram in lines.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let several = datagram.contains('\n');
            facts.insert((sink.to_owned(), format!("several: {several}")));
            for line in datagram.lines() {
                // A gauge's value is behind its last colon, unless there are labels.
                let (line, tags) = line.split_once("|#").unwrap_or((line, ""));
                // A value that stands for several has a rate.
                let (line, rate) = line.split_once("|@").unwrap_or((line, "1"));
                let (stat, kind) = line.rsplit_once('|').expect("a kind");
                let (name, value) = stat.rsplit_once(':').expect("a value");
                let stands_for = 1.0 / rate.parse::<f64>().expect("a rate");
                let value = if kind == "ms" { stands_for } else { value.parse().expect("a number") };
                sums.add(sink, format!("{name} {kind} {tags}"), value.round(), kind != "g");
            }
        }
    }
    let mut totals = Totals::new();
    for (sink, stats) in sums.0 {
        let text = stats.into_iter().map(|(stat, sum)| (stat, sum.to_string())).collect();
        totals.insert(sink, text);
    }
    for (sink, fact) in facts {
        totals.entry(sink).or_default().insert(fact, "a fact".to_owned());
    }
    totals
}

fn add_export(sums: &mut Sums, facts: &mut BTreeSet<(String, String)>, path: &str, message: &[u8]) {
    let request = collector::ExportMetricsServiceRequest::decode(message).expect("a request");
    for resource in request.resource_metrics {
        let mut resource_attributes = resource.resource.unwrap_or_default().attributes;
        resource_attributes.sort_by(|a, b| a.key.cmp(&b.key));
        // In which language, and which version.
        resource_attributes
            .iter_mut()
            .filter(|pair| pair.key.ends_with("language") || pair.key.ends_with("version"))
            .for_each(|pair| pair.value = None);
        let attributes = attributes(&resource_attributes);
        for scope in resource.scope_metrics {
            let limited = scope.metrics.len() <= 3;
            facts.insert((path.to_owned(), format!("{attributes} limited: {limited} {:?}", scope.scope)));
            scope.metrics.iter().for_each(|metric| add_metric(sums, path, metric));
        }
    }
}

/// What all sinks of a proxy are told of three requests and, later, a fourth.
fn run(name: &'static str, folder: &Path, envoy: Option<&Path>, when: &Value) -> Totals {
    let servers = Servers {
        metrics: collect(),
        posts: collect_http(),
        plain: datagrams(),
        dog: datagrams(),
        graphite: datagrams(),
        tcp: lines(),
    };
    let up = endpoint();
    let proxy = Proxy::start(name, folder, envoy, |_| bootstrap(up, &servers, when));
    let port = proxy.port("front");
    let ask =
        |path: &str| exchange(port, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
    let mut last = Totals::new();
    for (paths, all) in [(&["/direct", "/up/a", "/up/b"][..], 3), (&["/up/c"], 4)] {
        for path in paths {
            ask(path);
        }
        // Everybody has been told of all of them: of counters first, and of histograms.
        let complete = wait(|| {
            proxy.admin("GET", "/stats?usedonly");
            last = told(&servers);
            let counted = |stats: &BTreeMap<String, String>| {
                let of = |part: &str| {
                    let mut found = stats.iter().filter(|(stat, _)| stat.contains(part));
                    found.clone().next().is_some() && found.all(|(_, sum)| *sum == all.to_string())
                };
                of("rq_total") | of("downstream_rq_total") && of("downstream_rq_time")
            };
            (last.len() >= 8 && last.values().all(counted)).then_some(())
        });
        assert!(complete.is_some(), "{name}: {last:#?}");
    }
    proxy.stop();
    last
}

fn compare(when: &Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = run("leno", folder.path(), None, when);
    let Some(envoy) = leno_testkit::envoy::binary() else {
        eprintln!("skipped: there is no Envoy to compare with");
        return;
    };
    let theirs = run("envoy", folder.path(), Some(&envoy), when);
    let mut differences = String::new();
    for sink in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let none = BTreeMap::new();
        let (ours, theirs) = (ours.get(sink).unwrap_or(&none), theirs.get(sink).unwrap_or(&none));
        for stat in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            let (ours, theirs) = (ours.get(stat), theirs.get(stat));
            if ours != theirs {
                let _ = writeln!(differences, "{sink}: {stat}: {ours:?} instead of {theirs:?}");
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn sinks_are_told_the_same_as_by_envoy() {
    compare(&json!({"stats_flush_interval": "0.1s"}));
}

#[test]
fn sinks_are_told_when_somebody_looks() {
    compare(&json!({"stats_flush_on_admin": true}));
}

/// A sink that is not there, or goes away, does no harm, and is told when it is there again.
#[test]
fn a_sink_that_is_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, dead) = support::dead_port();
    let config = json!({
        "node": {"id": "n", "cluster": "c"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "stats_flush_interval": "0.05s",
        "stats_sinks": [
            sink("metrics_service", "config.metrics.v3.MetricsServiceConfig", json!({
                "grpc_service": grpc("dead"), "transport_api_version": "V3",
            })),
            sink("statsd", "config.metrics.v3.StatsdSink", json!({"tcp_cluster_name": "dead"})),
        ],
        "static_resources": {"clusters": [cluster("dead", dead, true)]},
    });
    let proxy = Proxy::start("leno", folder.path(), None, |_| config.to_string());
    let failed = |proxy: &Proxy| {
        let stats = proxy.admin("GET", "/stats?filter=cluster.dead.upstream_cx_connect_fail");
        stats.lines().find_map(|line| {
            line.strip_prefix("cluster.dead.upstream_cx_connect_fail: ")?.parse::<u64>().ok()
        })
    };
    assert!(wait(|| failed(&proxy).filter(|failed| *failed > 1)).is_some(), "it is tried again");
    socket.listen(16).expect("it listens");
    let listener: TcpListener = socket.into();
    let (first, _) = listener.accept().expect("a connection");
    let (second, _) = listener.accept().expect("another one");
    drop((first, second));
    assert!(listener.accept().is_ok(), "they are made again");
    proxy.stop();
}
