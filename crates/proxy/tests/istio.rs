//! Two of our proxies as the sidecars of a client and of a server, configured as istiod does it:
//! what they tell each other, and Istio's standard metrics on both sides.

#![allow(clippy::needless_pass_by_value, reason = "it is JSON, written where it is passed")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use expect_test::{Expect, expect};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::{Value, json};

mod support;

use support::{Proxy, Wire, exchange, wait};

/// A service that answers with `text` to each request, and a session of TCP with what it got.
fn service(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut wire = Wire::new(stream.try_clone().expect("a handle"));
                while !wire.until(b"\n\n").is_empty() && stream.write_all(answer).is_ok() {}
            });
        }
    });
    address
}

/// The files of certificates by name: `(certificate, key)` of `front` and `cart`, and the root.
fn certificates(folder: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
    std::fs::write(folder.join("root.pem"), root.pem()).expect("written");
    for (name, namespace) in [("front", "shop"), ("cart", "db")] {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://td.test/ns/{namespace}/sa/{name}").try_into().expect("a URI");
        params.subject_alt_names = vec![SanType::URI(uri)];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &root).expect("signed");
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("written");
    }
}

fn typed(name: &str, kind: &str, value: Value) -> Value {
    let kind = format!("type.googleapis.com/{kind}");
    let config =
        json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": kind, "value": value});
    json!({"name": name, "typed_config": config})
}

fn plain(name: &str, kind: &str, mut value: Value) -> Value {
    value["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": name, "typed_config": value})
}

fn node(id: &str, workload: &str, namespace: &str, app: &str) -> Value {
    json!({"id": id, "cluster": app, "metadata": {
        "NAME": format!("{workload}-0"), "NAMESPACE": namespace, "WORKLOAD_NAME": workload,
        "CLUSTER_ID": "east", "ISTIO_VERSION": "1.30.0",
        "OWNER": format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{workload}"),
        "LABELS": {
            "app": app, "version": "v1", "service.istio.io/canonical-name": app,
            "service.istio.io/canonical-revision": "r1",
        },
    }})
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn cluster(name: &str, endpoint: SocketAddr, istio: Value, workload: &str, more: Value) -> Value {
    let mut cluster = json!({
        "name": name, "metadata": {"filter_metadata": {"istio": istio}},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{
            "endpoint": {"address": address(endpoint)},
            "metadata": {"filter_metadata": {"istio": {"workload": workload}}},
        }]}]},
    });
    if let (Value::Object(cluster), Value::Object(more)) = (&mut cluster, more) {
        cluster.extend(more);
    }
    cluster
}

fn http(direction: &str, name: &str, filters: Vec<Value>, routes: Value) -> Value {
    let mut filters = filters;
    filters.push(plain("router", "envoy.extensions.filters.http.router.v3.Router", json!({})));
    let log = plain(
        "file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({"path": "LOG", "log_format": {"text_format_source": {"inline_string":
            "%REQ(:PATH)% up=%FILTER_STATE(upstream_peer:PLAIN)% app=%FILTER_STATE(upstream_peer_obj:FIELD:app)% \
             down=%FILTER_STATE(downstream_peer:PLAIN)% id=%REQ(x-envoy-peer-metadata-id)%\n"}}}),
    );
    let manager = plain(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": name, "http_filters": filters, "access_log": [log],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
        }),
    );
    listener(direction, name, json!({"filters": [manager]}))
}

fn listener(direction: &str, name: &str, chain: Value) -> Value {
    json!({
        "name": name, "traffic_direction": direction, "filter_chains": [chain],
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
    })
}

fn bootstrap(folder: &Path, node: &Value, listeners: &[Value], clusters: &[Value]) -> String {
    let admin = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}});
    let resources = json!({"listeners": listeners, "clusters": clusters});
    // As istiod's bootstrap has it: what is named otherwise is not shown.
    let stats = json!({"use_all_default_tags": false, "stats_matcher": {"inclusion_list": {"patterns": [
        {"prefix": "istio"}, {"prefix": "metadata_exchange"}, {"prefix": "cluster."},
    ]}}});
    let text = json!({"node": node, "admin": admin, "static_resources": resources, "stats_config": stats});
    text.to_string().replace("LOG", &folder.join("log").display().to_string())
}

fn tcp_proxy(cluster: &str) -> Value {
    let kind = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    plain("tcp", kind, json!({"stat_prefix": "tcp", "cluster": cluster}))
}

/// TLS of a workload's, as client or server.
fn tls(folder: &Path, workload: &str, kind: &str, mut more: Value) -> Value {
    let file = |name: &str| json!({"filename": folder.join(name).display().to_string()});
    more["common_tls_context"] = json!({
        "alpn_protocols": ["istio-peer-exchange", "istio"],
        "tls_certificates": [{
            "certificate_chain": file(&format!("{workload}.pem")),
            "private_key": file(&format!("{workload}.key")),
        }],
        "validation_context": {"trusted_ca": file("root.pem")},
    });
    plain("tls", &format!("envoy.extensions.transport_sockets.tls.v3.{kind}"), more)
}

const METRICS: &str = "stats.PluginConfig";
const PEERS: &str = "io.istio.http.peer_metadata.Config";
const EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";

fn grpc_stats() -> Value {
    let kind = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
    plain("envoy.filters.http.grpc_stats", kind, json!({"emit_filter_state": true}))
}

/// The server's sidecar.
fn server(folder: &Path, web: SocketAddr, echo: SocketAddr) -> Proxy {
    let tls = tls(folder, "cart", "DownstreamTlsContext", json!({"require_client_certificate": true}));
    Proxy::start("server", folder, None, |folder| {
        let inbound = http(
            "INBOUND",
            "web",
            vec![
                typed(
                    "istio.metadata_exchange",
                    PEERS,
                    json!({"downstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
                        "downstream_propagation": [{"istio_headers": {}}]}),
                ),
                grpc_stats(),
                typed("istio.stats", METRICS, json!({"disable_host_header_fallback": true})),
            ],
            json!([
                {"match": {"path": "/none"}, "direct_response": {"status": 404}},
                {"match": {"prefix": "/"}, "route": {"cluster": "inbound|80||"}},
            ]),
        );
        let exchange = json!({"protocol": "istio-peer-exchange", "enable_discovery": true});
        let chain = json!({"transport_socket": tls, "filters": [
            typed("istio.metadata_exchange", EXCHANGE, exchange),
            typed("istio.stats", METRICS, json!({"disable_host_header_fallback": true})),
            tcp_proxy("inbound|90||"),
        ]});
        let service = json!({"services": [{"host": "cart.db.svc", "name": "cart", "namespace": "db"}]});
        let clusters = [
            cluster("inbound|80||", web, service.clone(), "", json!({})),
            cluster("inbound|90||", echo, service, "", json!({})),
        ];
        let listeners = [inbound, listener("INBOUND", "tcp", chain)];
        bootstrap(folder, &node("sidecar~cart", "cart-v1", "db", "cart"), &listeners, &clusters)
    })
}

/// The client's sidecar.
fn client(folder: &Path, web: SocketAddr, tcp: SocketAddr, dead: SocketAddr) -> Proxy {
    let tls = tls(folder, "front", "UpstreamTlsContext", json!({}));
    Proxy::start("client", folder, None, |folder| {
        let outbound = http(
            "OUTBOUND",
            "web",
            vec![
                typed(
                    "istio.metadata_exchange",
                    PEERS,
                    json!({"upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
                        "upstream_propagation": [{"istio_headers": {"skip_external_clusters": true}}]}),
                ),
                grpc_stats(),
                plain("istio.stats", METRICS, json!({})),
            ],
            json!([
                {"match": {"prefix": "/dead"}, "route": {"cluster": "outbound|81||cart.db.svc"}},
                {"match": {"prefix": "/out"}, "route": {"cluster": "PassthroughCluster"}},
                {"match": {"prefix": "/"}, "route": {"cluster": "outbound|80||cart.db.svc"}},
            ]),
        );
        let chain = json!({"filters": [
            typed("istio.stats", METRICS, json!({"tcp_reporting_duration": "0.05s"})),
            tcp_proxy("outbound|90||cart.db.svc"),
        ]});
        let service = json!({"services": [{"host": "cart.db.svc", "name": "cart", "namespace": "db"}]});
        let exchange = json!({"protocol": "istio-peer-exchange", "enable_discovery": true});
        let exchange = typed("istio.metadata_exchange", EXCHANGE, exchange);
        let more = json!({"transport_socket": tls, "filters": [exchange]});
        let clusters = [
            cluster("outbound|80||cart.db.svc", web, service.clone(), "", json!({})),
            cluster("outbound|81||cart.db.svc", dead, service.clone(), "cart-v9;db;cart;r9;west", json!({})),
            cluster("outbound|90||cart.db.svc", tcp, service, "", more),
            cluster("PassthroughCluster", web, json!({}), "", json!({})),
        ];
        let listeners = [outbound, listener("OUTBOUND", "tcp", chain)];
        bootstrap(folder, &node("sidecar~front", "front-v1", "shop", "front"), &listeners, &clusters)
    })
}

fn ask(address: SocketAddr, method: &str, path: &str, more: &str) -> String {
    let text = format!("{method} {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{more}\r\n");
    let answer = exchange(address, &text);
    assert!(!answer.contains("x-envoy-peer-metadata"), "{answer}");
    answer.lines().next().unwrap_or_default().to_owned()
}

/// Istio's metrics that are asked for; of histograms how many values there are.
fn check(proxy: &Proxy, wanted: &str, expected: &Expect) {
    let text = proxy.admin("GET", "/stats/prometheus");
    let lines = text.lines().filter(|line| {
        line.starts_with("istio_")
            && line.split(['{', ' ']).next().is_some_and(|name| name.contains(wanted))
            && !line.contains("_bucket{")
    });
    let shown = lines.map(|line| {
        let short = line.replace("destination_", "d_").replace("source_", "s_");
        format!("{}\n", short.replace("\",", "\" "))
    });
    expected.assert_eq(&shown.collect::<String>());
}

#[test]
fn sidecars_count_who_talks_to_whom() {
    let folder = tempfile::tempdir().expect("a folder");
    certificates(folder.path());
    let (_socket, dead) = support::dead_port();
    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let web_address = web.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in web.incoming().flatten() {
            std::thread::spawn(move || answer(&stream));
        }
    });
    let server = server(folder.path(), web_address, service(b"bye"));
    let client = client(folder.path(), server.port("web"), server.port("tcp"), dead);

    let web = client.port("web");
    for _ in 0..2 {
        assert_eq!(ask(web, "GET", "/a", ""), "HTTP/1.1 200 OK");
    }
    assert_eq!(ask(web, "GET", "/none", ""), "HTTP/1.1 404 Not Found");
    assert_eq!(ask(web, "GET", "/dead", ""), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(ask(web, "GET", "/out", ""), "HTTP/1.1 200 OK");
    let grpc = "content-type: application/grpc\r\ncontent-length: 10\r\n\r\n\0\0\0\0\0\0\0\0\0";
    assert_eq!(ask(web, "POST", "/s/m", &format!("{grpc}\0")), "HTTP/1.1 200 OK");
    check(
        &client,
        "requests_total",
        &expect![[r#"
        istio_requests_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="grpc" response_code="200" grpc_response_status="0" response_flags="-" connection_security_policy="unknown"} 1
        istio_requests_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="200" grpc_response_status="" response_flags="-" connection_security_policy="unknown"} 2
        istio_requests_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="404" grpc_response_status="" response_flags="-" connection_security_policy="unknown"} 1
        istio_requests_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v9" d_workload_namespace="db" d_principal="unknown" d_app="unknown" d_version="unknown" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r9" d_service_name="cart" d_service_namespace="db" d_cluster="west" request_protocol="http" response_code="503" grpc_response_status="" response_flags="UF" connection_security_policy="unknown"} 1
        istio_requests_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="unknown" d_workload_namespace="unknown" d_principal="unknown" d_app="unknown" d_version="unknown" d_service="a.test" d_canonical_service="unknown" d_canonical_revision="latest" d_service_name="PassthroughCluster" d_service_namespace="unknown" d_cluster="unknown" request_protocol="http" response_code="200" grpc_response_status="" response_flags="-" connection_security_policy="unknown"} 1
    "#]],
    );
    check(
        &server,
        "requests_total",
        &expect![[r#"
        istio_requests_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="grpc" response_code="200" grpc_response_status="0" response_flags="-" connection_security_policy="none"} 1
        istio_requests_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="200" grpc_response_status="" response_flags="-" connection_security_policy="none"} 2
        istio_requests_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="404" grpc_response_status="" response_flags="-" connection_security_policy="none"} 1
        istio_requests_total{reporter="destination" s_workload="unknown" s_canonical_service="unknown" s_canonical_revision="latest" s_workload_namespace="unknown" s_principal="unknown" s_app="unknown" s_version="unknown" s_cluster="unknown" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="200" grpc_response_status="" response_flags="-" connection_security_policy="none"} 1
    "#]],
    );
    check(
        &client,
        "messages_total",
        &expect![[r#"
        istio_request_messages_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east"} 2
        istio_response_messages_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east"} 1
    "#]],
    );
    check(
        &server,
        "request_duration_milliseconds_count",
        &expect![[r#"
        istio_request_duration_milliseconds_count{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="grpc" response_code="200" grpc_response_status="0" response_flags="-" connection_security_policy="none"} 1
        istio_request_duration_milliseconds_count{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="200" grpc_response_status="" response_flags="-" connection_security_policy="none"} 2
        istio_request_duration_milliseconds_count{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="unknown" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="404" grpc_response_status="" response_flags="-" connection_security_policy="none"} 1
        istio_request_duration_milliseconds_count{reporter="destination" s_workload="unknown" s_canonical_service="unknown" s_canonical_revision="latest" s_workload_namespace="unknown" s_principal="unknown" s_app="unknown" s_version="unknown" s_cluster="unknown" d_workload="cart-v1" d_workload_namespace="db" d_principal="unknown" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="http" response_code="200" grpc_response_status="" response_flags="-" connection_security_policy="none"} 1
    "#]],
    );
    check(
        &server,
        "build",
        &expect![[r#"
        istio_build{component="proxy" tag="1.30.0"} 1
    "#]],
    );

    // A session that goes on is counted every so often.
    let mut stream = TcpStream::connect(client.port("tcp")).expect("it listens");
    stream.write_all(b"hello\n\n").expect("sent");
    let mut got = [0; 3];
    stream.read_exact(&mut got).expect("an answer");
    assert_eq!(&got, b"bye");
    let counted = wait(|| {
        let text = client.admin("GET", "/stats/prometheus");
        text.lines()
            .any(|line| line.starts_with("istio_tcp_sent_bytes_total{") && line.ends_with(" 3"))
            .then_some(())
    });
    assert!(counted.is_some());
    check(
        &client,
        "tcp_",
        &expect![[r#"
        istio_tcp_connections_opened_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="unknown"} 1
        istio_tcp_received_bytes_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="unknown"} 7
        istio_tcp_sent_bytes_total{reporter="source" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="unknown"} 3
    "#]],
    );
    drop(stream);
    let closed = |proxy: &Proxy| {
        let shown =
            || proxy.admin("GET", "/stats/prometheus").contains("istio_tcp_connections_closed_total{");
        wait(|| shown().then_some(()))
    };
    assert!(closed(&client).is_some() && closed(&server).is_some());
    check(
        &server,
        "tcp_",
        &expect![[r#"
        istio_tcp_connections_closed_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="mutual_tls"} 1
        istio_tcp_connections_opened_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="mutual_tls"} 1
        istio_tcp_received_bytes_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="mutual_tls"} 7
        istio_tcp_sent_bytes_total{reporter="destination" s_workload="front-v1" s_canonical_service="front" s_canonical_revision="r1" s_workload_namespace="shop" s_principal="spiffe://td.test/ns/shop/sa/front" s_app="front" s_version="v1" s_cluster="east" d_workload="cart-v1" d_workload_namespace="db" d_principal="spiffe://td.test/ns/db/sa/cart" d_app="cart" d_version="v1" d_service="cart.db.svc" d_canonical_service="cart" d_canonical_revision="r1" d_service_name="cart" d_service_namespace="db" d_cluster="east" request_protocol="tcp" response_flags="-" connection_security_policy="mutual_tls"} 3
    "#]],
    );
    let exchanged = |proxy: &Proxy| {
        let text = proxy.admin("GET", "/stats?filter=metadata_exchange");
        text.lines().filter(|line| line.contains(": 1")).map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = ["metadata_exchange.alpn_protocol_found: 1", "metadata_exchange.metadata_added: 1"];
    assert_eq!(
        (exchanged(&client), exchanged(&server)),
        (expected.map(str::to_owned).to_vec(), expected.map(str::to_owned).to_vec())
    );

    for (proxy, expected) in [
        (
            client,
            expect![[r#"
        /a up=type=deployment,workload=cart-v1,name=cart-v1-0,cluster=east,namespace=db,service=cart,revision=r1,app=cart,version=v1 app=cart down=- id=sidecar~front
        /a up=type=deployment,workload=cart-v1,name=cart-v1-0,cluster=east,namespace=db,service=cart,revision=r1,app=cart,version=v1 app=cart down=- id=sidecar~front
        /none up=type=deployment,workload=cart-v1,name=cart-v1-0,cluster=east,namespace=db,service=cart,revision=r1,app=cart,version=v1 app=cart down=- id=sidecar~front
        /dead up=- app=- down=- id=sidecar~front
        /out up=- app=- down=- id=-
        /s/m up=type=deployment,workload=cart-v1,name=cart-v1-0,cluster=east,namespace=db,service=cart,revision=r1,app=cart,version=v1 app=cart down=- id=sidecar~front
    "#]],
        ),
        (
            server,
            expect![[r#"
        /a up=- app=- down=type=deployment,workload=front-v1,name=front-v1-0,cluster=east,namespace=shop,service=front,revision=r1,app=front,version=v1 id=-
        /a up=- app=- down=type=deployment,workload=front-v1,name=front-v1-0,cluster=east,namespace=shop,service=front,revision=r1,app=front,version=v1 id=-
        /none up=- app=- down=type=deployment,workload=front-v1,name=front-v1-0,cluster=east,namespace=shop,service=front,revision=r1,app=front,version=v1 id=-
        /out up=- app=- down=- id=-
        /s/m up=- app=- down=type=deployment,workload=front-v1,name=front-v1-0,cluster=east,namespace=shop,service=front,revision=r1,app=front,version=v1 id=-
    "#]],
        ),
    ] {
        let folder = proxy.stop();
        expected.assert_eq(&std::fs::read_to_string(folder.join("log")).unwrap_or_default());
    }
}

/// Answers one request after the other: to gRPC with one message.
fn answer(stream: &TcpStream) {
    let mut wire = Wire::new(stream.try_clone().expect("a handle"));
    loop {
        let head = wire.until(b"\r\n\r\n");
        if head.is_empty() {
            return;
        }
        let grpc = String::from_utf8_lossy(&head).contains("application/grpc");
        let text: &[u8] = match grpc {
            true => {
                wire.exactly(10);
                b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 0\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0"
            }
            false => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        };
        if wire.stream.write_all(text).is_err() {
            return;
        }
    }
}
