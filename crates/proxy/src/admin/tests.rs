//! Endpoints asked as a client would, with a main loop that answers from a fixed view.

use std::sync::Arc;
use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use hyper::Method;
use leno_api::proto::envoy::config::bootstrap::v3 as bootstrap;
use leno_api::proto::envoy::config::core::v3 as core;
use prost::{Message, Name as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::json::masked;
use super::respond::{Query, Response};
use super::{AdminConfig, Command, Context, HostTable, RefusedResource, ResourceKind, ServerState, View};
use crate::cluster::{Assignment, EndpointAddress, EndpointConfig, LocalityEndpoints};
use crate::listener::ListenAddress;
use crate::options::Options;
use crate::snapshot::Snapshot;
use crate::telemetry::stats::{StatsStore, stats_scope};
use crate::worker::HostReport;

stats_scope! {
    struct Sample {
        counter total = "upstream_rq_total";
        counter class = "upstream_rq_2xx";
        gauge active = "upstream_cx_active";
        histogram time = "upstream_rq_time";
        counter never = "upstream_rq_never";
    }
}

/// A context whose main loop has the given view; and the orders that it was given.
fn context(view: View) -> (Arc<Context>, mpsc::UnboundedReceiver<String>, Sample) {
    let (commands, mut asked) = mpsc::unbounded_channel();
    let (orders, ordered) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            match command {
                Command::View(reply) => drop(reply.send(view.clone())),
                Command::Hosts(reply) => {
                    let mut table = HostTable::default();
                    let report = HostReport {
                        cluster: "c".into(),
                        address: EndpointAddress::Ip("10.0.0.1:80".parse().unwrap()),
                        connections: [1, 2, 0],
                        requests: [0, 5, 4, 1, 0],
                    };
                    table.add(&[report.clone(), report]);
                    drop(reply.send(table));
                }
                order => drop(orders.send(format!("{order:?}"))),
            }
        }
    });
    let message = bootstrap::Bootstrap {
        node: Some(core::Node { id: "n1".into(), ..core::Node::default() }),
        ..bootstrap::Bootstrap::default()
    };
    let config = AdminConfig {
        bootstrap: prost_types::Any { type_url: bootstrap::Bootstrap::type_url(), value: message.encode_to_vec() },
        runtime_layers: vec![
            ("low".into(), json!({"a": {"b": 1}, "c": "x"})),
            ("high".into(), json!({"a.b": 2})),
        ],
        ..AdminConfig::default()
    };
    let stats = Arc::new(StatsStore::default());
    let sample = Sample::new(&stats.thread(), "cluster.c.");
    sample.total().add(5);
    sample.class().add(5);
    sample.block().count_status(200);
    sample.active().inc();
    sample.time().record(3);
    let context = Context::new(&Options::default(), config, stats, 2, commands, Instant::now());
    (Arc::new(context), ordered, sample)
}

fn view() -> View {
    let endpoint = EndpointConfig {
        hostname: Some("hn".into()),
        ..EndpointConfig::plain(EndpointAddress::Ip("10.0.0.1:80".parse().unwrap()))
    };
    let place = LocalityEndpoints { endpoints: vec![endpoint], priority: 1, ..LocalityEndpoints::default() };
    let assignment = Assignment { localities: vec![place], overprovisioning_factor: 140 };
    let mut snapshot = Snapshot::default();
    let cluster = leno_api::proto::envoy::config::cluster::v3::Cluster {
        name: "c".into(),
        connect_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let source = prost_types::Any {
        type_url: leno_api::proto::envoy::config::cluster::v3::Cluster::type_url(),
        value: cluster.encode_to_vec(),
    };
    let lowered = crate::config::lower::Lower::resource(|at| crate::cluster::config::lower(&source, at));
    snapshot.clusters.insert("c".into(), Arc::new(lowered.unwrap()));
    snapshot.endpoints.insert("c".into(), Arc::new(assignment));
    View {
        state: ServerState::Live,
        snapshot: Arc::new(snapshot),
        refused: vec![RefusedResource {
            kind: ResourceKind::Listener,
            name: "bad".into(),
            source: None,
            version: "7".into(),
            details: "no".into(),
            at: std::time::UNIX_EPOCH + Duration::from_secs(1),
        }],
        bound: [("l".into(), vec![ListenAddress::Ip("127.0.0.1:8080".parse().unwrap())])].into(),
        lds_version: "6".into(),
        ..View::default()
    }
}

async fn ask(context: &Context, method: Method, target: &str) -> Response {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    super::http::answer(&method, path, &Query::parse(query), context).await
}

async fn check(context: &Context, target: &str, expected: &Expect) {
    let response = ask(context, Method::GET, target).await;
    let body = String::from_utf8_lossy(&response.body).into_owned();
    expected.assert_eq(&format!("{}\n{body}", response.status));
}

#[tokio::test]
async fn state_and_lists() {
    let (context, _orders, _sample) = context(view());
    check(&context, "/ready", &expect![[r#"
        200
        LIVE
    "#]]).await;
    check(&context, "/listeners", &expect![[r#"
        200
        l::127.0.0.1:8080
    "#]]).await;
    check(&context, "/certs", &expect![[]]).await;
    check(&context, "/runtime", &expect![[]]).await;
    check(&context, "/clusters", &expect![[]]).await;
    check(&context, "/clusters?filter=x", &expect![[]]).await;
    check(&context, "/clusters?filter=[", &expect![[]]).await;
    check(&context, "/clusters?format=json", &expect![[]]).await;
    let not_ready = View { state: ServerState::Initializing, ..View::default() };
    let (context, _orders, _sample) = self::context(not_ready);
    check(&context, "/ready", &expect![[]]).await;
}

#[tokio::test]
async fn stats_as_text_and_json() {
    let (context, _orders, sample) = context(view());
    check(&context, "/stats?filter=%5Ecluster", &expect![[]]).await;
    check(&context, "/stats?filter=%5Ecluster&usedonly&type=Counters", &expect![[]]).await;
    check(&context, "/stats?filter=%5Ecluster&type=Histograms&histogram_buckets=cumulative", &expect![[]]).await;
    check(&context, "/stats?filter=%5Ecluster&type=Histograms&histogram_buckets=detailed", &expect![[]]).await;
    check(&context, "/stats?filter=rq_t&format=json", &expect![[]]).await;
    check(&context, "/stats?format=yaml", &expect![[]]).await;
    let server = ask(&context, Method::GET, "/stats?filter=memory_allocated").await;
    assert!(server.body.starts_with(b"server.memory_allocated: ") && server.body != "server.memory_allocated: 0\n");
    ask(&context, Method::POST, "/reset_counters").await;
    sample.total().inc();
    check(&context, "/stats?filter=rq_(total|200)|cx_active", &expect![[]]).await;
}

#[tokio::test]
async fn prometheus_text() {
    let (context, _orders, _sample) = context(view());
    check(&context, "/stats/prometheus?filter=%5Ecluster&usedonly", &expect![[]]).await;
    check(&context, "/stats?format=prometheus&filter=rq_time&histogram_buckets=summary", &expect![[]]).await;
}

#[tokio::test]
async fn orders_want_post() {
    let (context, mut orders, _sample) = context(view());
    check(&context, "/quitquitquit", &expect![[r#"
        405
        Method GET not allowed, POST required."#]]).await;
    for target in [
        "/quitquitquit",
        "/drain_listeners?inboundonly&graceful",
        "/healthcheck/fail",
        "/healthcheck/ok",
        "/logging?paths=http:debug,pool:trace",
    ] {
        let response = ask(&context, Method::POST, target).await;
        assert_eq!(response.status, 200, "{target}");
    }
    for expected in [
        "Quit",
        "DrainListeners { inbound_only: true, graceful: true, skip_exit: false }",
        "FailHealthChecks(true)",
        "FailHealthChecks(false)",
    ] {
        assert_eq!(orders.recv().await.unwrap(), expected);
    }
    let filter = orders.recv().await.unwrap();
    assert!(filter.contains(",http=debug,") && filter.contains(",pool=trace,") && filter.contains(",router=info,"));
    let refused = ask(&context, Method::POST, "/logging?nope=info").await;
    assert!(refused.status == 400 && refused.body.starts_with(b"error: unknown logger name\n"));
    let shown = ask(&context, Method::POST, "/logging").await;
    assert!(String::from_utf8_lossy(&shown.body).contains("  http: debug\n"));
    assert!(orders.try_recv().is_err());
}

#[tokio::test]
async fn configuration() {
    let (context, _orders, _sample) = context(view());
    let response = ask(&context, Method::GET, "/config_dump?include_eds").await;
    let mut dump: Value = serde_json::from_slice(&response.body).unwrap();
    hide_dates(&mut dump);
    expect![[]].assert_eq(&serde_json::to_string_pretty(&dump).unwrap());
    check(&context, "/config_dump?resource=static_clusters&mask=cluster.name", &expect![[]]).await;
    check(&context, "/config_dump?resource=static_clusters&mask=name", &expect![[]]).await;
    check(&context, "/config_dump?resource=nope", &expect![[]]).await;
    check(&context, "/config_dump?mask=bootstrap.node", &expect![[]]).await;
    check(&context, "/config_dump?name_regex=x&resource=static_clusters", &expect![[]]).await;
    let info = ask(&context, Method::GET, "/server_info").await;
    let info: Value = serde_json::from_slice(&info.body).unwrap();
    assert_eq!((&info["state"], &info["node"]["id"]), (&json!("LIVE"), &json!("n1")));
    assert_eq!(info["command_line_options"]["drain_time"], "600s");
}

fn hide_dates(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match name.as_str() {
                    "last_updated" => *field = "DATE".into(),
                    _ => hide_dates(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_dates),
        _ => {}
    }
}

#[test]
fn masks_and_queries() {
    let value = json!({"@type": "t", "a": [{"b": 1, "c": 2}, {"c": 3}], "d": {"e": 1}});
    assert_eq!(masked(&value, "a.b,d", &["a", "d"]), Some(json!({"@type": "t", "a": [{"b": 1}, {}], "d": {"e": 1}})));
    assert_eq!(masked(&value, "x", &["a"]), None);
    let query = Query::parse("a=1%2B2&b&c=x+y&d=%zz");
    assert_eq!(query.find("a"), Some("1+2"));
    assert_eq!((query.find("b"), query.find("c"), query.find("d")), (Some(""), Some("x y"), Some("%zz")));
    assert!(!query.has("e"));
}

#[tokio::test]
async fn requests_over_tcp() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (context, _orders, _sample) = context(view());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(super::serve(super::http::Socket::Tcp(listener), context));
    let exchange = async |request: &str| {
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        response
    };
    let ready = exchange("GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 200 OK\r\n") && ready.ends_with("\r\n\r\nLIVE\n"), "{ready}");
    assert!(ready.contains("content-type: text/plain; charset=UTF-8\r\n") && ready.contains("server: envoy\r\n"));
    let form = "POST /logging HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 10\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\nhttp=error";
    assert!(exchange(form).await.contains("  http: error\n"));
    let unknown = exchange("GET /nope HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("invalid path. admin commands are:\n  /: Admin home"));
    server.abort();
}
