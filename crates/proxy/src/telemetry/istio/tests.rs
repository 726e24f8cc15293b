//! Labels of tables of what was seen: Istio's rules for what is not known.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use expect_test::{Expect, expect};
use leno_api::proto::stats as proto;
use serde_json::json;

use super::config::lower;
use super::tables::RECENT;
use super::{Family, Request, Seen, Settings, Spoken, Tables};
use crate::cluster::{EndpointAddress, EndpointConfig, Metadata};
use crate::config::lower::{Lower, Scope};
use crate::http::headers::HeaderMap;
use crate::listener::Direction;
use crate::listener::accept::GlobalConnections;
use crate::matching::facts::LogFacts;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::scrape::{Sample, scrape};
use crate::telemetry::stats::StatsStore;
use crate::telemetry::stream_info::{
    ClusterFacts, ConnectionInfo, FilterState, Protocol, ResponseFlags, RouteNames, StreamInfo,
};
use crate::telemetry::workload::{DOWNSTREAM_PEER, UPSTREAM_PEER, Workload};
use crate::worker::Worker;

fn settings(config: &str, direction: Direction) -> Result<Arc<Settings>, String> {
    let node = json!({
        "WORKLOAD_NAME": "front-v1", "NAMESPACE": "shop", "CLUSTER_ID": "c1", "ISTIO_VERSION": "1.30.0",
        "LABELS": {
            "app": "front", "version": "v1", "service.istio.io/canonical-name": "front",
            "service.istio.io/canonical-revision": "r1",
        },
    });
    let scope = Scope { node_metadata: Arc::new(node), direction, ..Scope::default() };
    let proto: proto::PluginConfig =
        leno_api::decode_text(&format!("{{{config}}}"), "filter").map_err(|errors| format!("{errors}"))?;
    Lower::resource_in(scope, |at| lower(proto, at)).map_err(|error| error.to_string())
}

/// A request that has come and gone, without anything known of it.
fn info(protocol: Option<Protocol>) -> StreamInfo {
    let (remote, local) = ("10.0.0.9:5".parse(), "10.0.0.1:80".parse());
    let connection =
        ConnectionInfo::plain(1, remote.expect("an address"), local.expect("an address"), Instant::now());
    let mut info = StreamInfo::new(Rc::new(connection), protocol, Instant::now(), SystemTime::now());
    info.response_code = if protocol.is_some() { 200 } else { 0 };
    info
}

fn peer() -> Workload {
    Workload {
        workload: "cart-v2".into(),
        namespace: "db".into(),
        canonical_name: "cart".into(),
        app: "cart".into(),
        cluster: "c2".into(),
        ..Workload::default()
    }
}

fn text(text: &str) -> FilterState {
    FilterState { text: text.to_owned(), typed: None, peer: None }
}

/// The labels of a request, and of a session, that says this of itself.
fn check(config: &str, direction: Direction, tell: impl Fn(&mut StreamInfo), expected: &Expect) {
    let settings = settings(config, direction).expect("a configuration");
    let mut head = HeaderMap::new();
    head.append(b":authority", b"host.test");
    let store = StatsStore::default();
    let worker = Worker::new(store.thread(), GlobalConnections::new(None));
    let mut shown = String::new();
    for (protocol, spoken) in [(Some(Protocol::Http11), Spoken::Http), (None, Spoken::Tcp)] {
        let mut info = info(protocol);
        tell(&mut info);
        let head = protocol.map(|_| &head);
        let seen = Seen::new(&settings, &info, head, spoken, None);
        let context = FormatContext { request: head, ..FormatContext::new(&info) };
        let facts = LogFacts { context, node: None };
        if protocol.is_some() {
            let request = Request { duration: std::time::Duration::from_millis(7), received: 1, sent: 2 };
            settings.request(&worker, &seen, facts, request);
            settings.request(&worker, &seen, facts, request);
        } else {
            drop(settings.open_session(&worker, &seen, facts));
        }
    }
    for stat in scrape(&store, |name| name.contains("requests_total") || name.contains("opened")) {
        let labels = stat.labels.expect("labels");
        let Sample::Counter(value) = stat.value else { panic!("{labels:?}") };
        let _ = write!(shown, "{} {value}\n ", labels.name.trim_start_matches("istiocustom."));
        for (label, value) in &labels.pairs {
            let short = label.replace("destination_", "d_").replace("source_", "s_");
            let _ = write!(shown, " {short}={value}");
        }
        shown.push('\n');
    }
    expected.assert_eq(&shown);
}

#[test]
fn nothing_is_known() {
    check(
        "",
        Direction::Outbound,
        |_| {},
        &expect![[r#"
        istio_requests_total 2
          reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=host.test d_canonical_service=unknown d_canonical_revision=latest d_service_name=host.test d_service_namespace=unknown d_cluster=unknown request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=unknown
        istio_tcp_connections_opened_total 1
          reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=unknown d_canonical_service=unknown d_canonical_revision=latest d_service_name=unknown d_service_namespace=unknown d_cluster=unknown request_protocol=tcp response_flags=- connection_security_policy=unknown
    "#]],
    );
    check(
        "disable_host_header_fallback: true",
        Direction::Inbound,
        |_| {},
        &expect![[r#"
        istio_requests_total 2
          reporter=destination s_workload=unknown s_canonical_service=unknown s_canonical_revision=latest s_workload_namespace=unknown s_principal=unknown s_app=unknown s_version=unknown s_cluster=unknown d_workload=front-v1 d_workload_namespace=shop d_principal=unknown d_app=front d_version=v1 d_service=front d_canonical_service=front d_canonical_revision=r1 d_service_name=front d_service_namespace=shop d_cluster=c1 request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=none
        istio_tcp_connections_opened_total 1
          reporter=destination s_workload=unknown s_canonical_service=unknown s_canonical_revision=latest s_workload_namespace=unknown s_principal=unknown s_app=unknown s_version=unknown s_cluster=unknown d_workload=front-v1 d_workload_namespace=shop d_principal=unknown d_app=front d_version=v1 d_service=front d_canonical_service=front d_canonical_revision=r1 d_service_name=front d_service_namespace=shop d_cluster=c1 request_protocol=tcp response_flags=- connection_security_policy=none
    "#]],
    );
    check(
        "reporter: SERVER_GATEWAY",
        Direction::Inbound,
        |_| {},
        &expect![[r#"
        istio_requests_total 2
          reporter=waypoint s_workload=unknown s_canonical_service=unknown s_canonical_revision=latest s_workload_namespace=unknown s_principal=unknown s_app=unknown s_version=unknown s_cluster=unknown d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=host.test d_canonical_service=unknown d_canonical_revision=unknown d_service_name=host.test d_service_namespace=unknown d_cluster=unknown request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=none
        istio_tcp_connections_opened_total 1
          reporter=waypoint s_workload=unknown s_canonical_service=unknown s_canonical_revision=latest s_workload_namespace=unknown s_principal=unknown s_app=unknown s_version=unknown s_cluster=unknown d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=unknown d_canonical_service=unknown d_canonical_revision=unknown d_service_name=unknown d_service_namespace=unknown d_cluster=unknown request_protocol=tcp response_flags=- connection_security_policy=none
    "#]],
    );
}

#[test]
fn clients_know_servers() {
    check(
        "",
        Direction::Outbound,
        |info| {
            let state =
                Rc::new(Workload { identity: "spiffe://td/ns/own/sa/x".into(), ..peer() }.into_state());
            info.filter_state.insert(UPSTREAM_PEER, Rc::clone(&state));
            info.upstream.filter_state.insert(UPSTREAM_PEER, state);
            let metadata = json!({"services": [{"host": "cart.db.svc", "name": "cart", "namespace": "far"}]});
            let metadata = BTreeMap::from([("istio".to_owned(), metadata)]).into();
            info.upstream.cluster =
                Some(Rc::new(ClusterFacts::new("c".into(), "outbound|80||cart.db.svc".into(), metadata)));
        },
        &expect![[r#"
            istio_requests_total 2
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=cart-v2 d_workload_namespace=own d_principal=spiffe://td/ns/own/sa/x d_app=cart d_version=unknown d_service=cart.db.svc d_canonical_service=cart d_canonical_revision=latest d_service_name=cart d_service_namespace=far d_cluster=c2 request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=unknown
            istio_tcp_connections_opened_total 1
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=cart-v2 d_workload_namespace=own d_principal=spiffe://td/ns/own/sa/x d_app=cart d_version=unknown d_service=cart.db.svc d_canonical_service=cart d_canonical_revision=latest d_service_name=cart d_service_namespace=far d_cluster=c2 request_protocol=tcp response_flags=- connection_security_policy=unknown
        "#]],
    );
    // What the control plane says of the endpoint, and a service without a name.
    check(
        "",
        Direction::Outbound,
        |info| {
            let address = EndpointAddress::Ip("10.1.1.1:80".parse().expect("an address"));
            let metadata = BTreeMap::from([("istio".to_owned(), json!({"workload": "cart-v2;db;cart;;c2"}))]);
            let endpoint = EndpointConfig { metadata: metadata.into(), ..EndpointConfig::plain(address) };
            info.upstream.endpoint = Some(Rc::new(endpoint));
            let metadata = json!({"services": [{"host": "cart.db.svc"}]});
            let metadata = BTreeMap::from([("istio".to_owned(), metadata)]).into();
            info.upstream.cluster = Some(Rc::new(ClusterFacts::new("c".into(), "c".into(), metadata)));
            info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        },
        &expect![[r#"
            istio_requests_total 2
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=cart-v2 d_workload_namespace=db d_principal=unknown d_app=unknown d_version=unknown d_service=cart.db.svc d_canonical_service=cart d_canonical_revision=latest d_service_name=cart d_service_namespace=db d_cluster=c2 request_protocol=http response_code=200 grpc_response_status= response_flags=UF connection_security_policy=unknown
            istio_tcp_connections_opened_total 1
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=cart-v2 d_workload_namespace=db d_principal=unknown d_app=unknown d_version=unknown d_service=cart.db.svc d_canonical_service=cart d_canonical_revision=latest d_service_name=cart d_service_namespace=db d_cluster=c2 request_protocol=tcp response_flags=UF connection_security_policy=unknown
        "#]],
    );
    check(
        "",
        Direction::Outbound,
        |info| {
            let cluster = ClusterFacts::new("c".into(), "PassthroughCluster".into(), Metadata::default());
            info.upstream.cluster = Some(Rc::new(cluster));
        },
        &expect![[r#"
            istio_requests_total 2
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=host.test d_canonical_service=unknown d_canonical_revision=latest d_service_name=PassthroughCluster d_service_namespace=unknown d_cluster=unknown request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=unknown
            istio_tcp_connections_opened_total 1
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=unknown d_canonical_service=unknown d_canonical_revision=latest d_service_name=PassthroughCluster d_service_namespace=unknown d_cluster=unknown request_protocol=tcp response_flags=- connection_security_policy=unknown
        "#]],
    );
    check(
        "",
        Direction::Outbound,
        |info| {
            let names = RouteNames { route: "block_all".into(), virtual_host: "block_all".into() };
            info.route = Some(Rc::new(names));
        },
        &expect![[r#"
            istio_requests_total 2
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=host.test d_canonical_service=unknown d_canonical_revision=latest d_service_name=BlackHoleCluster d_service_namespace=unknown d_cluster=unknown request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=unknown
            istio_tcp_connections_opened_total 1
              reporter=source s_workload=front-v1 s_canonical_service=front s_canonical_revision=r1 s_workload_namespace=shop s_principal=unknown s_app=front s_version=v1 s_cluster=c1 d_workload=unknown d_workload_namespace=unknown d_principal=unknown d_app=unknown d_version=unknown d_service=unknown d_canonical_service=unknown d_canonical_revision=latest d_service_name=BlackHoleCluster d_service_namespace=unknown d_cluster=unknown request_protocol=tcp response_flags=- connection_security_policy=unknown
        "#]],
    );
}

#[test]
fn servers_know_clients() {
    check(
        "disable_host_header_fallback: true",
        Direction::Inbound,
        |info| {
            info.filter_state.insert(DOWNSTREAM_PEER, peer().into_state());
            info.filter_state.insert("io.istio.peer_principal", text("spiffe://td/ns/else/sa/cart"));
            info.filter_state.insert("io.istio.local_principal", text("spiffe://td/ns/shop/sa/front"));
        },
        &expect![[r#"
            istio_requests_total 2
              reporter=destination s_workload=cart-v2 s_canonical_service=cart s_canonical_revision=latest s_workload_namespace=else s_principal=spiffe://td/ns/else/sa/cart s_app=cart s_version=unknown s_cluster=c2 d_workload=front-v1 d_workload_namespace=shop d_principal=spiffe://td/ns/shop/sa/front d_app=front d_version=v1 d_service=front d_canonical_service=front d_canonical_revision=r1 d_service_name=front d_service_namespace=shop d_cluster=c1 request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=mutual_tls
            istio_tcp_connections_opened_total 1
              reporter=destination s_workload=cart-v2 s_canonical_service=cart s_canonical_revision=latest s_workload_namespace=else s_principal=spiffe://td/ns/else/sa/cart s_app=cart s_version=unknown s_cluster=c2 d_workload=front-v1 d_workload_namespace=shop d_principal=spiffe://td/ns/shop/sa/front d_app=front d_version=v1 d_service=front d_canonical_service=front d_canonical_revision=r1 d_service_name=front d_service_namespace=shop d_cluster=c1 request_protocol=tcp response_flags=- connection_security_policy=mutual_tls
        "#]],
    );
}

#[test]
fn labels_are_changed() {
    let told = |info: &mut StreamInfo| {
        info.filter_state.insert(DOWNSTREAM_PEER, peer().into_state());
    };
    check(
        "metrics: [{dimensions: {request_host: request.host, source_app: \"'x' + string(response.code)\", \
         peer: filter_state.downstream_peer.workload, none: request.headers.nope, broken: '((', \
         build: xds.node.metadata.ISTIO_VERSION}, tags_to_remove: [source_principal, nope, destination_principal]}, \
         {name: requests_total, dimensions: {only: \"'here'\", response_flags: '(('}}, \
         {name: tcp_connections_opened_total, drop: true}]",
        Direction::Inbound,
        told,
        &expect![[r#"
            istio_requests_total 2
              reporter=destination s_workload=cart-v2 s_canonical_service=cart s_canonical_revision=latest s_workload_namespace=db s_app=x200 s_version=unknown s_cluster=c2 d_workload=front-v1 d_workload_namespace=shop d_app=front d_version=v1 d_service=host.test d_canonical_service=front d_canonical_revision=r1 d_service_name=host.test d_service_namespace=shop d_cluster=c1 request_protocol=http response_code=200 grpc_response_status= connection_security_policy=none build=1.30.0 none=unknown peer=cart-v2 request_host=host.test only=here
        "#]],
    );
}

#[test]
fn metrics_of_users() {
    let settings = settings(
        "definitions: [{name: bytes, value: response.size * 2, type: HISTOGRAM}, {name: asked, value: '3'}, \
         {name: requests_total, value: '1'}], metrics: [{dimensions: {method: request.method}}, \
         {name: asked, dimensions: {reporter: \"'me'\"}}]",
        Direction::Inbound,
    )
    .expect("a configuration");
    let store = StatsStore::default();
    let worker = Worker::new(store.thread(), GlobalConnections::new(None));
    let mut info = info(Some(Protocol::Http2));
    info.bytes_sent = 21;
    let mut head = HeaderMap::new();
    head.append(b":method", b"PUT");
    let seen = Seen::new(&settings, &info, Some(&head), Spoken::Http, None);
    let context = FormatContext { request: Some(&head), ..FormatContext::new(&info) };
    let facts = LogFacts { context, node: None };
    let request = Request { duration: std::time::Duration::from_millis(7), received: 1, sent: 2 };
    settings.request(&worker, &seen, facts, request);
    let stats = scrape(&store, |name| name.contains("istio_bytes") || name.contains("istio_asked"));
    let shown = stats.iter().map(|stat| {
        let value = match &stat.value {
            Sample::Histogram(all) => format!("sum {}", all.sum),
            value => format!("{value:?}"),
        };
        format!("{} {value} {:?}\n", stat.name, stat.labels.as_ref().map(|labels| &labels.pairs))
    });
    expect![[r#"
        istiocustom.istio_asked.method.PUT.reporter.me Counter(3) Some([("method", "PUT"), ("reporter", "me")])
        istiocustom.istio_bytes.method.PUT sum 42 Some([("method", "PUT")])
    "#]].assert_eq(&shown.collect::<String>());
}

#[test]
fn configurations_that_are_refused() {
    let check = |config: &str, expected: Expect| {
        expected.assert_eq(&settings(config, Direction::Inbound).map(|_| ()).expect_err("it is refused"));
    };
    check(
        "metrics: [{dimensions: {a: '[1].all(x, x > 0)'}}]",
        expect!["metrics[0].dimensions: failed to create an expression: Comprehension support is disabled"],
    );
    check(
        "definitions: [{name: a, value: 'duration(\"1s\")'}]",
        expect!["definitions[0].value.call_expr.function 'duration': not supported yet"],
    );
    check(
        "graceful_deletion_interval: 0.5s",
        expect!["graceful_deletion_interval: value must be greater than or equal to 1s"],
    );
}

#[test]
fn label_sets_are_made_once() {
    let settings = settings("", Direction::Inbound).expect("a configuration");
    let store = StatsStore::default();
    let worker = Worker::new(store.thread(), GlobalConnections::new(None));
    let mut info = info(Some(Protocol::Http11));
    let request = Request { duration: std::time::Duration::from_millis(7), received: 1, sent: 2 };
    let ask = |info: &StreamInfo| {
        let seen = Seen::new(&settings, info, None, Spoken::Http, None);
        let facts = LogFacts { context: FormatContext::new(info), node: None };
        settings.request(&worker, &seen, facts, request);
        worker.istio().label_sets()
    };
    assert_eq!((ask(&info), ask(&info)), (1, 1));
    info.response_code = 500;
    assert_eq!(ask(&info), 2);
    // What is retired is counted anew.
    let before = worker.stats().activity();
    assert_eq!(ask(&info), 2);
    worker.stats().retire_idle(&before);
    worker.istio().clean_up();
    assert_eq!(worker.istio().label_sets(), 1);
    info.response_code = 200;
    assert_eq!(ask(&info), 2);
    let total = scrape(&store, |name| name.contains("requests_total"));
    let values: Vec<_> = total.iter().map(|stat| stat.value.clone()).collect();
    assert_eq!(values, [Sample::Counter(1), Sample::Counter(2)]);
}

/// The facts of a cluster of which the control plane says this.
fn cluster(istio: serde_json::Value) -> Rc<ClusterFacts> {
    let metadata = BTreeMap::from([("istio".to_owned(), istio)]).into();
    Rc::new(ClusterFacts::new("c".into(), "outbound|80||cart.db.svc".into(), metadata))
}

/// Asks for so many hosts of a cluster; the label sets that come of it, and what was counted under
/// how many hosts.
fn ask_for_hosts(count: usize, istio: serde_json::Value) -> (usize, usize, u64, u64) {
    let settings = settings("", Direction::Outbound).expect("a configuration");
    let store = StatsStore::default();
    let worker = Worker::new(store.thread(), GlobalConnections::new(None));
    let mut info = info(Some(Protocol::Http11));
    info.upstream.cluster = Some(cluster(istio));
    let request = Request { duration: std::time::Duration::from_millis(7), received: 1, sent: 2 };
    for number in 0..count {
        let mut head = HeaderMap::new();
        head.append(b":authority", format!("host-{number}.test").as_bytes());
        let seen = Seen::new(&settings, &info, Some(&head), Spoken::Http, None);
        let context = FormatContext { request: Some(&head), ..FormatContext::new(&info) };
        settings.request(&worker, &seen, LogFacts { context, node: None }, request);
    }
    let total = scrape(&store, |name| name.contains("requests_total"));
    let counted = total.iter().map(|stat| match stat.value {
        Sample::Counter(value) => value,
        _ => 0,
    });
    let collapsed = scrape(&store, |name| name == "istio_stats.label_sets_collapsed");
    let collapsed = match collapsed.first().map(|stat| &stat.value) {
        Some(Sample::Counter(value)) => *value,
        _ => 0,
    };
    (worker.istio().label_sets(), total.len(), counted.sum(), collapsed)
}

#[test]
fn hosts_of_clients_do_not_fill_the_table() {
    // The service is known: the host that was asked for says nothing.
    let known = json!({"services": [{"host": "cart.db.svc", "name": "cart", "namespace": "db"}]});
    assert_eq!(ask_for_hosts(50, known), (1, 1, 50, 0));
    // It is not: each host is a label, up to a limit. Nothing is lost beyond.
    assert_eq!(ask_for_hosts(50, json!({})), (50, 50, 50, 0));
    assert_eq!(ask_for_hosts(1200, json!({})), (1001, 1001, 1200, 200));
}

#[test]
fn settings_that_say_the_same_are_shared() {
    let scope = Scope { node_metadata: Arc::new(json!({"NAMESPACE": "shared"})), ..Scope::default() };
    let lowered = |config: &str, direction| {
        let scope = Scope { direction, ..scope.clone() };
        let proto: proto::PluginConfig = leno_api::decode_text(config, "filter").expect("a message");
        Lower::resource_in(scope, |at| lower(proto, at)).expect("a configuration")
    };
    let first = lowered("{}", Direction::Inbound);
    assert!(Arc::ptr_eq(&first, &lowered("{}", Direction::Inbound)));
    let others = [
        lowered("{}", Direction::Outbound),
        lowered("{disable_host_header_fallback: true}", Direction::Inbound),
    ];
    assert!(others.iter().all(|other| !Arc::ptr_eq(&first, other)));
    // One task serves all of them.
    assert!(others.iter().all(|other| Arc::ptr_eq(&first.rotation, &other.rotation)));
    assert!(first.background().claim() && !others[0].background().claim());
    // What was counted under settings that nobody has any more is forgotten, the counts are not.
    let store = StatsStore::default();
    let worker = Worker::new(store.thread(), GlobalConnections::new(None));
    let info = info(Some(Protocol::Http11));
    let request = Request { duration: std::time::Duration::from_millis(7), received: 1, sent: 2 };
    for settings in [&first, &others[0]] {
        let seen = Seen::new(settings, &info, None, Spoken::Http, None);
        let facts = LogFacts { context: FormatContext::new(&info), node: None };
        settings.request(&worker, &seen, facts, request);
    }
    worker.istio().clean_up();
    assert_eq!(worker.istio().label_sets(), 2);
    drop(others);
    worker.istio().clean_up();
    assert_eq!(worker.istio().label_sets(), 1);
    assert_eq!(scrape(&store, |name| name.contains("requests_total")).len(), 2);
}

#[test]
fn what_peers_say_is_read_once_for_each_set_of_labels() {
    let tables = Tables::default();
    let none: Arc<[Box<str>]> = [].into();
    let role: Arc<[Box<str>]> = ["role".into()].into();
    let mut read = 0;
    let mut peer = |id: &[u8], said: &[u8], labels: &Arc<[Box<str>]>, makes_sense: bool| {
        let before = read;
        let state = tables.peer(id, said, labels, || {
            read += 1;
            makes_sense.then(peer)
        });
        (state, read - before)
    };
    let (first, times) = peer(b"id", b"said", &none, true);
    let first = first.expect("a peer");
    assert_eq!(times, 1);
    let (again, times) = peer(b"id", b"said", &none, true);
    assert!(Rc::ptr_eq(&first, &again.expect("a peer")) && times == 0);
    // With other labels it is another.
    assert_eq!(peer(b"id", b"said", &role, true).1, 1);
    assert_eq!(peer(b"id", b"said", &Arc::from(["role".into()]), true).1, 0);
    // What makes no sense is remembered too.
    for times in [1, 0] {
        assert_eq!(peer(b"other", b"nonsense", &none, false), (None, times));
    }
    // Nothing is remembered of who says or calls itself too much.
    let (long, name) = (vec![b'x'; 9 << 10], vec![b'x'; 2 << 10]);
    for (id, said) in [(b"long".as_slice(), long.as_slice()), (name.as_slice(), b"said".as_slice())] {
        assert_eq!([1, 1], [(); 2].map(|()| peer(id, said, &none, true).1), "{}", id.len());
    }
    // Who has no name is known by what it says.
    for (said, times) in [(b"a", 1), (b"b", 1), (b"a", 0), (b"b", 0)] {
        assert_eq!(peer(b"", said, &none, true).1, times);
    }
}

#[test]
fn label_sets_are_found_by_what_requests_share() {
    let settings = settings("", Direction::Outbound).expect("a configuration");
    let mut info = info(Some(Protocol::Http11));
    let identity = |info: &StreamInfo, grpc| {
        let seen = Seen::new(&settings, info, None, if grpc { Spoken::Grpc } else { Spoken::Http }, None);
        seen.identity(&settings, Family::Request)
    };
    let mut all = vec![identity(&info, false), identity(&info, true)];
    info.upstream.cluster = Some(cluster(json!({"services": [{"host": "h"}]})));
    all.push(identity(&info, false));
    info.upstream.cluster = Some(cluster(json!({"services": [{"host": "h"}]})));
    all.push(identity(&info, false));
    info.filter_state.insert(UPSTREAM_PEER, peer().into_state());
    all.push(identity(&info, false));
    info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    all.push(identity(&info, false));
    info.response_code = 503;
    all.push(identity(&info, false));
    for (place, one) in all.iter().enumerate() {
        assert!(one.is_some() && !all[place + 1..].contains(one), "{place}");
    }
    assert_eq!(identity(&info, false), all[all.len() - 1]);
    // Names of the same length, and a status that a server may send.
    let mut ways = Vec::new();
    for name in ["InboundPassthroughClusterIpv4", "InboundPassthroughClusterIpv6"] {
        let facts = ClusterFacts::new("c".into(), name.into(), Metadata::default());
        info.upstream.cluster = Some(Rc::new(facts));
        ways.push(identity(&info, false));
    }
    for status in [None, Some(0), Some(u32::MAX)] {
        let seen = Seen::new(&settings, &info, None, Spoken::Http, status);
        ways.push(seen.identity(&settings, Family::Request));
    }
    assert_eq!(ways.remove(2), ways[1]);
    for (place, one) in ways.iter().enumerate() {
        assert!(one.is_some() && !ways[place + 1..].contains(one), "{place}");
    }
    // The host is the client's: nothing that it shares tells its requests apart.
    let mut head = HeaderMap::new();
    head.append(b":authority", b"host.test");
    info.upstream.cluster = None;
    let seen = Seen::new(&settings, &info, Some(&head), Spoken::Http, None);
    assert_eq!(seen.identity(&settings, Family::Request), None);
}

/// A proxy that counts requests.
struct Counter {
    settings: Arc<Settings>,
    store: StatsStore,
    worker: Worker,
}

impl Counter {
    fn new(config: &str, direction: Direction) -> Self {
        let store = StatsStore::default();
        let worker = Worker::new(store.thread(), GlobalConnections::new(None));
        Self { settings: settings(config, direction).expect("a configuration"), store, worker }
    }

    /// Counts a request with these headers; how many label sets there are.
    fn count(&self, info: &StreamInfo, headers: &[(&str, &str)]) -> usize {
        let mut head = HeaderMap::new();
        headers.iter().for_each(|(name, value)| head.append(name.as_bytes(), value.as_bytes()));
        let seen = Seen::new(&self.settings, info, Some(&head), Spoken::Http, None);
        let context = FormatContext { request: Some(&head), ..FormatContext::new(info) };
        let request = Request { duration: std::time::Duration::from_millis(7), received: 1, sent: 2 };
        self.settings.request(&self.worker, &seen, LogFacts { context, node: None }, request);
        self.worker.istio().label_sets()
    }

    /// The values of a label, of all that was counted.
    fn values(&self, label: &str) -> Vec<String> {
        let all = scrape(&self.store, |name| name.contains("requests_total"));
        let labels = all.iter().filter_map(|stat| stat.labels.as_ref());
        let value = labels.filter_map(|all| all.pairs.iter().find(|(name, _)| **name == *label));
        value.map(|(_, value)| value.to_string()).collect()
    }

    /// How many requests were counted with less said of them.
    fn collapsed(&self) -> u64 {
        let stats = scrape(&self.store, |name| name == "istio_stats.label_sets_collapsed");
        match stats.first().map(|stat| &stat.value) {
            Some(Sample::Counter(value)) => *value,
            _ => 0,
        }
    }
}

#[test]
fn long_texts_of_clients_are_not_shown() {
    let info = info(Some(Protocol::Http11));
    let (longest, longer) = ("a".repeat(259), "a".repeat(260));
    let counter =
        Counter::new("metrics: [{dimensions: {said: \"request.headers['x-said']\"}}]", Direction::Outbound);
    counter.count(&info, &[(":authority", &longest), ("x-said", &longest)]);
    counter.count(&info, &[(":authority", &longer), ("x-said", &longer)]);
    counter.count(&info, &[]);
    for label in ["destination_service", "said"] {
        let mut values = counter.values(label);
        values.sort();
        assert_eq!(values, [longest.as_str(), "unknown"], "{label}");
    }
}

#[test]
fn claims_of_peers_leave_room_for_others() {
    let counter = Counter::new("disable_host_header_fallback: true", Direction::Inbound);
    let told = |name: &str, principal: Option<&str>| {
        let mut info = info(Some(Protocol::Http11));
        info.filter_state.insert(DOWNSTREAM_PEER, Workload { workload: name.into(), ..peer() }.into_state());
        if let Some(principal) = principal {
            info.filter_state.insert("io.istio.peer_principal", text(principal));
        }
        info
    };
    for number in 0..1200 {
        counter.count(&told(&format!("forged-{number}"), None), &[]);
    }
    // One more stands for those that there was no room for.
    assert_eq!((counter.worker.istio().label_sets(), counter.collapsed()), (1001, 200));
    assert!(counter.values("source_workload").contains(&"unknown".to_owned()));
    // Who has proven who it is is told apart all the same.
    for number in 0..3 {
        counter.count(&told(&format!("proven-{number}"), Some("spiffe://td/ns/db/sa/cart")), &[]);
    }
    assert_eq!((counter.worker.istio().label_sets(), counter.collapsed()), (1004, 200));
    assert!(counter.values("source_workload").contains(&"proven-2".to_owned()));
}

#[test]
fn values_of_expressions_leave_room_for_others() {
    let config = "disable_host_header_fallback: true, metrics: [{dimensions: {path: request.path, \
                  build: xds.node.metadata.ISTIO_VERSION, secure: request.scheme == 'https'}}]";
    let counter = Counter::new(config, Direction::Inbound);
    let mut info = info(Some(Protocol::Http11));
    for number in 0..1200 {
        counter.count(&info, &[(":path", &format!("/{number}"))]);
    }
    assert_eq!((counter.worker.istio().label_sets(), counter.collapsed()), (1001, 200));
    // What configuration says does not count.
    let configured = config.replace("path: request.path, ", "");
    let counter = Counter::new(&configured, Direction::Inbound);
    for code in 0..1100 {
        info.response_code = code;
        counter.count(&info, &[]);
    }
    assert_eq!((counter.worker.istio().label_sets(), counter.collapsed()), (1100, 0));
}

#[test]
fn who_changes_what_it_says_does_not_crowd_out_others() {
    let counter = Counter::new("disable_host_header_fallback: true", Direction::Inbound);
    let told = || {
        let mut info = info(Some(Protocol::Http11));
        info.filter_state.insert(DOWNSTREAM_PEER, peer().into_state());
        info
    };
    let lasting = told();
    counter.count(&lasting, &[]);
    let seen = Seen::new(&counter.settings, &lasting, None, Spoken::Http, None);
    let identity = seen.identity(&counter.settings, Family::Request).expect("an identity");
    for _ in 0..RECENT + 10 {
        counter.count(&told(), &[]);
    }
    assert!(counter.worker.istio().finds(&identity));
    assert_eq!(counter.worker.istio().label_sets(), 1);
}
