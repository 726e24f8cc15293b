//! Thresholds and intervals as a table; checks of scripted hosts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use leno_base::rng::Rng;
use leno_testkit::http::{Action, Scripted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::session::{Failure, HealthStats, Outcome, Session, jittered};
use super::watch::{Report, Watch};
use super::{Checkup, Flag, Vitals};
use crate::cluster::config::lower_proto;
use crate::cluster::{Assignment, Cluster, Discovery, EndpointAddress, EndpointConfig, HealthStatus};
use crate::config::lower::Lower;
use crate::telemetry::stats::StatsStore;

/// A cluster of these hosts with this check (YAML in flow style) and further YAML.
fn cluster(hosts: &[SocketAddr], check: &str, more: &str) -> Result<Arc<Cluster>, String> {
    let endpoint = |host: &SocketAddr| {
        let (ip, port) = (host.ip(), host.port());
        format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
    };
    let endpoints: Vec<String> = hosts.iter().map(endpoint).collect();
    let text = format!(
        "name: up\ntype: STATIC\nconnect_timeout: 1s\nhealth_checks: [{check}]\nload_assignment: {{cluster_name: \
         up, endpoints: [{{lb_endpoints: [{}]}}]}}\n{more}\n",
        endpoints.join(", ")
    );
    let proto = leno_api::decode_text(&text, "cluster").map_err(|errors| errors.to_string())?;
    let cluster = Lower::resource(|at| lower_proto(proto, bytes::Bytes::new(), at));
    cluster.map(Arc::new).map_err(|why| why.to_string())
}

const PLAIN: &str =
    "timeout: 1s, interval: 10s, healthy_threshold: 2, unhealthy_threshold: 2, tcp_health_check: {}";

fn checkup(cluster: &Cluster) -> Arc<Checkup> {
    Arc::clone(cluster.health.as_ref().expect("health checks"))
}

fn flags(vitals: &Vitals) -> String {
    let all = [
        (Flag::FAILED, 'F'),
        (Flag::DEGRADED, 'D'),
        (Flag::PENDING_REMOVAL, 'R'),
        (Flag::PENDING, 'P'),
        (Flag::EXCLUDED, 'X'),
        (Flag::TIMED_OUT, 'T'),
    ];
    all.into_iter().filter(|(flag, _)| vitals.has(*flag)).map(|(_, letter)| letter).collect()
}

/// A stat of the cluster's health checks.
fn value(store: &StatsStore, stat: &str) -> u64 {
    let blocks = store.blocks();
    let cells = blocks.iter().flat_map(|block| {
        let names = block.schema().0.iter().enumerate();
        let named = names.filter(|(_, (name, _))| {
            format!("{}{name}", block.prefix()) == format!("cluster.up.health_check.{stat}")
        });
        named.map(|(index, _)| block.cell(index).value())
    });
    cells.sum()
}

/// What each of these checks (letters) leads to: flags, events, wait with traffic, and without.
fn play(check: &str, more: &str, checks: &str, expected: &Expect) {
    let hosts = ["10.0.0.1:80".parse().expect("an address")];
    let cluster = cluster(&hosts, &format!("{{{check}}}"), more).expect("a cluster");
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("not static") };
    let checkup = checkup(&cluster);
    checkup.follow(assignment, |_| true);
    let vitals = checkup.vitals(&EndpointAddress::Ip(hosts[0])).expect("it is checked");
    let store = Arc::new(StatsStore::default());
    let stats = HealthStats::new(&store.thread(), "cluster.up.health_check.");
    let mut session = Session::new(Arc::clone(&checkup.settings), Arc::clone(&vitals), stats.clone());
    let mut rng = Rng::new(1);
    let mut told = format!("{:2} begin\n", flags(&vitals));
    for letter in checks.chars() {
        let active = |retriable| Outcome::Failed { failure: Failure::Active, retriable, status: 503 };
        let outcome = match letter {
            '+' => Outcome::Passed { degraded: false },
            'd' => Outcome::Passed { degraded: true },
            '-' => active(false),
            'r' => active(true),
            'n' => Outcome::NETWORK,
            't' => Outcome::TIMEOUT,
            'p' => Outcome::PASSIVE,
            other => panic!("{other}"),
        };
        let mut events = Vec::new();
        let transition = session.conclude(outcome, &mut |event| events.push(format!("{event:?}")));
        let passed = matches!(outcome, Outcome::Passed { .. });
        let mut wait = |traffic| session.wait(passed, transition, traffic, &mut rng).as_millis();
        told += &format!("{letter} {:2} {transition:?} {} {}", flags(&vitals), wait(true), wait(false));
        for event in events {
            told += &format!(" {event}");
        }
        told += "\n";
    }
    for stat in ["success", "failure", "network_failure", "passive_failure", "healthy", "degraded"] {
        told += &format!("{stat}={} ", value(&store, stat));
    }
    drop(session);
    assert_eq!((stats.healthy().value(), stats.degraded().value()), (0, 0), "nobody is checked any more");
    expected.assert_eq(&told);
}

const EDGES: &str = "timeout: 1s, interval: 10s, healthy_threshold: 2, unhealthy_threshold: 3, unhealthy_interval: 20s, \
                     unhealthy_edge_interval: 3s, healthy_edge_interval: 4s, no_traffic_interval: 60s, \
                     no_traffic_healthy_interval: 70s, always_log_health_check_failures: true, tcp_health_check: {}";

#[test]
fn the_first_check_decides_alone_and_then_thresholds_count() {
    play(
        PLAIN,
        "",
        "+n+nn++",
        &expect![[r#"
            F  begin
            +    Changed 10000 60000 AddHealthy { first: true }
            n    Pending 10000 60000
            +    Unchanged 10000 60000
            n    Pending 10000 60000
            n F  Changed 10000 60000 EjectUnhealthy { failure: Network, status: 0 }
            + F  Pending 10000 60000
            +    Changed 10000 60000 AddHealthy { first: false }
            success=4 failure=3 network_failure=3 passive_failure=0 healthy=1 degraded=0 "#]],
    );
    play(
        PLAIN,
        "",
        "-++",
        &expect![[r#"
            F  begin
            - F  Unchanged 10000 60000 Failed { failure: Active, first: true, status: 503 }
            + F  Pending 10000 60000
            +    Changed 10000 60000 AddHealthy { first: false }
            success=2 failure=1 network_failure=0 passive_failure=0 healthy=1 degraded=0 "#]],
    );
}

#[test]
fn edge_and_no_traffic_intervals() {
    play(
        EDGES,
        "",
        "+nnn-t+++",
        &expect![[r#"
            F  begin
            +    Changed 10000 70000 AddHealthy { first: true }
            n    Pending 3000 60000 Failed { failure: Network, first: false, status: 0 }
            n    Pending 3000 60000 Failed { failure: Network, first: false, status: 0 }
            n F  Changed 20000 60000 EjectUnhealthy { failure: Network, status: 0 } Failed { failure: Network, first: false, status: 0 }
            - F  Unchanged 20000 60000 Failed { failure: Active, first: false, status: 503 }
            t FT Unchanged 20000 60000 Failed { failure: NetworkTimeout, first: false, status: 0 }
            + FT Pending 4000 60000
            +    Changed 10000 70000 AddHealthy { first: false }
            +    Unchanged 10000 70000
            success=4 failure=5 network_failure=4 passive_failure=0 healthy=1 degraded=0 "#]],
    );
}

#[test]
fn an_answer_that_is_bad_counts_at_once_unless_it_is_retriable() {
    play(
        PLAIN,
        "",
        "+-++rr",
        &expect![[r#"
            F  begin
            +    Changed 10000 60000 AddHealthy { first: true }
            - F  Changed 10000 60000 EjectUnhealthy { failure: Active, status: 503 }
            + F  Pending 10000 60000
            +    Changed 10000 60000 AddHealthy { first: false }
            r    Pending 10000 60000
            r F  Changed 10000 60000 EjectUnhealthy { failure: Active, status: 503 }
            success=3 failure=3 network_failure=0 passive_failure=0 healthy=0 degraded=0 "#]],
    );
}

#[test]
fn degraded_hosts_and_requests_that_fail() {
    play(
        PLAIN,
        "",
        "dd+dpd+",
        &expect![[r#"
            F  begin
            d D  Changed 10000 60000 AddHealthy { first: true } Degraded
            d D  Unchanged 10000 60000
            +    Changed 10000 60000 NoLongerDegraded
            d D  Changed 10000 60000 Degraded
            p FD Changed 10000 60000 EjectUnhealthy { failure: Passive, status: 0 }
            d FD Pending 10000 60000
            +    Changed 10000 60000 AddHealthy { first: false } NoLongerDegraded
            success=6 failure=1 network_failure=0 passive_failure=1 healthy=1 degraded=0 "#]],
    );
}

#[test]
fn new_hosts_may_be_left_out_of_all_counts_until_they_are_checked() {
    play(
        PLAIN,
        "common_lb_config: {ignore_new_hosts_until_first_hc: true}",
        "n+",
        &expect![[r#"
            FP begin
            n F  Changed 10000 60000 Failed { failure: Network, first: true, status: 0 }
            + F  Pending 10000 60000
            success=1 failure=1 network_failure=1 passive_failure=0 healthy=0 degraded=0 "#]],
    );
}

#[test]
fn jitter_keeps_its_bounds() {
    let check = "timeout: 1s, interval: 1s, interval_jitter: 0.1s, interval_jitter_percent: 50, healthy_threshold: 1, \
                 unhealthy_threshold: 1, tcp_health_check: {}";
    let cluster = cluster(&[], &format!("{{{check}}}"), "").expect("a cluster");
    let settings = Arc::clone(&checkup(&cluster).settings);
    let mut rng = Rng::new(7);
    let waits: Vec<u128> = (0..1000)
        .map(|_| jittered(settings.interval, settings.interval_jitter, &settings, &mut rng).as_millis())
        .collect();
    let (min, max) = (*waits.iter().min().expect("some"), *waits.iter().max().expect("some"));
    assert!((1000..1050).contains(&min) && (1500..1600).contains(&max), "{min} {max}");
}

#[test]
fn what_cannot_be_is_refused() {
    fn check(text: &str, more: &str, expected: &Expect) {
        let refused = cluster(&[], text, more).expect_err("refused");
        expected.assert_eq(&refused);
    }
    check(&format!("{{{PLAIN}}}, {{{PLAIN}}}"), "", &expect!["health_checks[1]: not supported yet"]);
    let common = "timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1";
    check(
        &format!("{{{common}, grpc_health_check: {{}}}}"),
        "",
        &expect![
            "health_checks[0].grpc_health_check: up cluster must support HTTP/2 for gRPC healthchecking"
        ],
    );
    check(
        &format!(
            "{{{common}, http_health_check: {{path: /, send: {{text: '00'}}, expected_statuses: [{{start: 1, end: 2}}, {{start: 300, end: 200}}, {{start: 500, end: 601}}]}}}}"
        ),
        "",
        &expect![
            "health_checks[0].http_health_check.send: HTTP health check cannot specify a request payload with method 'GET'. Only methods that support a request body (POST, PUT, PATCH, OPTIONS) can be used with payload.; health_checks[0].http_health_check.expected_statuses[0]: Invalid http expected status range: expecting start >= 100, but found start=1; health_checks[0].http_health_check.expected_statuses[1]: Invalid http expected status range: expecting start < end, but found start=300 and end=200; health_checks[0].http_health_check.expected_statuses[2]: Invalid http expected status range: expecting end <= 600, but found end=601"
        ],
    );
    check(
        &format!("{{{common}, tcp_health_check: {{send: {{text: xy}}, receive: [{{text: '0'}}]}}}}"),
        "",
        &expect![
            "health_checks[0].tcp_health_check.send.text: invalid hex string 'xy'; health_checks[0].tcp_health_check.receive[0].text: invalid hex string '0'"
        ],
    );
    check(
        &format!(
            "{{{common}, tls_options: {{alpn_protocols: [h2]}}, custom_health_check: {{name: envoy.health_checkers.redis}}}}"
        ),
        "",
        &expect![
            "health_checks[0].custom_health_check: extension 'envoy.health_checkers.redis' () is not supported yet"
        ],
    );
}

/// A watch of a cluster, its reports, and the stats.
fn watch(cluster: &Arc<Cluster>) -> (Watch, mpsc::UnboundedReceiver<Report>, Arc<StatsStore>) {
    let store = Arc::new(StatsStore::default());
    let (send, reports) = mpsc::unbounded_channel();
    let watch = Watch::new(cluster, &store.thread(), move |report| {
        let _ = send.send(report);
    });
    (watch.expect("health checks"), reports, store)
}

fn assignment(cluster: &Cluster) -> Arc<Assignment> {
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("not static") };
    Arc::clone(assignment)
}

/// The outcome of the first check of one host, by its flags.
async fn first(address: SocketAddr, check: &str, more: &str) -> String {
    let common = "timeout: 5s, interval: 60s, healthy_threshold: 1, unhealthy_threshold: 1";
    let cluster = cluster(&[address], &format!("{{{common}, {check}}}"), more).expect("a cluster");
    let (mut watch, mut reports, store) = watch(&cluster);
    watch.follow(&assignment(&cluster));
    while reports.recv().await != Some(Report::First) {}
    let vitals = checkup(&cluster).vitals(&EndpointAddress::Ip(address)).expect("it is checked");
    assert!(checkup(&cluster).is_warm());
    assert_eq!(value(&store, "attempt"), 1);
    format!("{}{}", flags(&vitals), if value(&store, "network_failure") > 0 { " network" } else { "" })
}

#[tokio::test]
async fn http_checks() {
    let host = Scripted::start(|seen| {
        let path = seen.head.split(' ').nth(1).unwrap_or_default().to_owned();
        let head = |status: u16, more: &str| {
            Action::Send(format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n{more}\r\nhi").into_bytes())
        };
        match path.as_str() {
            "/degraded" => head(200, "x-envoy-degraded: true\r\n"),
            "/excluded" => head(500, "x-envoy-immediate-health-check-fail: true\r\n"),
            "/named" => head(200, "x-envoy-upstream-healthchecked-cluster: good-1\r\n"),
            "/204" => Action::Send(b"HTTP/1.1 204 X\r\n\r\n".to_vec()),
            "/broken" => Action::SendAndClose(b"HTTP/1.1 200 X\r\ncontent-length: 5\r\n\r\nhi".to_vec()),
            _ => head(200, ""),
        }
    })
    .await
    .expect("a host");
    let address = host.address;
    for (check, expected) in [
        ("path: /", ""),
        ("path: /204", "F"),
        ("path: /204, expected_statuses: [{start: 200, end: 300}]", ""),
        ("path: /degraded", "D"),
        ("path: /excluded", "FX"),
        ("path: /broken", "F network"),
        ("path: /, receive: [{text: '6869'}]", ""),
        ("path: /, receive: [{text: '6969'}]", "F"),
        ("path: /, receive: [{text: '68'}], response_buffer_size: 1", ""),
        ("path: /named, service_name_matcher: {prefix: good}", ""),
        ("path: /named, service_name_matcher: {prefix: bad}", "F"),
        ("path: /, service_name_matcher: {prefix: good}", "F"),
    ] {
        assert_eq!(first(address, &format!("http_health_check: {{{check}}}"), "").await, expected, "{check}");
    }
    let check = "http_health_check: {path: '/p?q=1', host: h, method: POST, send: {text: '616263'}, \
                 request_headers_to_add: [{header: {key: x-a, value: '%UPSTREAM_CLUSTER%'}}], \
                 request_headers_to_remove: [user-agent]}";
    assert_eq!(first(address, check, "").await, "");
    let last = host.seen().pop().expect("a request");
    expect![[r#"
        POST /p?q=1 HTTP/1.1
        host: h
        content-length: 3
        x-a: up

        abc"#]]
    .assert_eq(&format!("{}{}", last.head.replace("\r\n", "\n"), String::from_utf8_lossy(&last.body)));
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, leno_testkit::ports::free()));
    assert_eq!(first(nobody, "http_health_check: {path: /}", "").await, "F network");
}

const HTTP2: &str = "http2_protocol_options: {}";

/// A gRPC server that answers each call with these bytes and status.
async fn grpc_server(message: &'static [u8], status: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.expect("a preface");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let told = format!(
                        "{} {} {} {:?}",
                        request.method(),
                        request.uri(),
                        request.headers()["user-agent"].to_str().expect("text"),
                        request.headers().get("grpc-timeout")
                    );
                    assert_eq!(told, "POST http://up/grpc.health.v1.Health/Check Envoy/HC Some(\"5000m\")");
                    let mut head = http::Response::new(());
                    head.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
                    let mut body = respond.send_response(head, false).expect("sent");
                    body.send_data(message.into(), status.is_none()).expect("sent");
                    if let Some(status) = status {
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", status.parse().expect("a value"));
                        body.send_trailers(trailers).expect("sent");
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn grpc_checks() {
    for (message, status, expected) in [
        (&b"\0\0\0\0\x02\x08\x01"[..], Some("0"), ""),
        (b"\0\0\0\0\x02\x08\x02", Some("0"), "F"),
        (b"\0\0\0\0\x02\x08\x01", Some("14"), "F"),
        (b"\0\0\0\0\x02\x08\x01", None, "F"),
        (b"\x01\0\0\0\x02\x08\x01", Some("0"), "F"),
        (b"", Some("12"), "F"),
    ] {
        let address = grpc_server(message, status).await;
        assert_eq!(first(address, "grpc_health_check: {}", HTTP2).await, expected, "{message:?} {status:?}");
    }
}

#[tokio::test]
async fn tcp_checks() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, from)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 256];
                while let Ok(count) = socket.read(&mut bytes).await
                    && count > 0
                {
                    let text =
                        String::from_utf8_lossy(&bytes[..count]).replace(&from.port().to_string(), "PORT");
                    let _ = socket.write_all(format!("[{text}]").as_bytes()).await;
                }
            });
        }
    });
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(first(address, "tcp_health_check: {}", "").await, "");
    let echo = format!(
        "send: {{text: '{}'}}, receive: [{{text: '{}'}}, {{text: '{}'}}]",
        hex("ping"),
        hex("pi"),
        hex("g]")
    );
    assert_eq!(first(address, &format!("tcp_health_check: {{{echo}}}"), "").await, "");
    let header = format!("[PROXY TCP4 127.0.0.1 127.0.0.1 PORT {}", address.port());
    let v1 = format!("proxy_protocol_config: {{version: V1}}, receive: [{{text: '{}'}}]", hex(&header));
    assert_eq!(first(address, &format!("tcp_health_check: {{{v1}}}"), "").await, "");
    let v2 =
        format!("proxy_protocol_config: {{version: V2}}, receive: [{{text: '{}'}}]", hex("\nQUIT\n \0\0\0]"));
    assert_eq!(first(address, &format!("tcp_health_check: {{{v2}}}"), "").await, "");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_in_time_fails_and_comes_again_after_the_interval() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let check = "{timeout: 2s, interval: 10s, no_traffic_interval: 30s, healthy_threshold: 1, unhealthy_threshold: 1, \
                 tcp_health_check: {receive: [{text: '00'}]}}";
    let cluster = cluster(&[address], check, "").expect("a cluster");
    let (mut watch, mut reports, store) = watch(&cluster);
    let start = tokio::time::Instant::now();
    watch.follow(&assignment(&cluster));
    while reports.recv().await != Some(Report::First) {}
    assert_eq!(start.elapsed().as_secs(), 2);
    let vitals = checkup(&cluster).vitals(&EndpointAddress::Ip(address)).expect("it is checked");
    assert_eq!(flags(&vitals), "FT");
    let attempts = |elapsed| {
        let store = Arc::clone(&store);
        async move {
            tokio::time::sleep_until(start + Duration::from_secs(elapsed)).await;
            value(&store, "attempt")
        }
    };
    assert_eq!((attempts(31).await, attempts(33).await), (1, 2));
    drop(listener);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_says_so_fails_the_host_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let cluster = cluster(&[address], &format!("{{{PLAIN}}}"), "").expect("a cluster");
    let (mut watch, mut reports, store) = watch(&cluster);
    watch.follow(&assignment(&cluster));
    while reports.recv().await != Some(Report::First) {}
    let vitals = checkup(&cluster).vitals(&EndpointAddress::Ip(address)).expect("it is checked");
    assert_eq!((flags(&vitals), vitals.is_excluded()), (String::new(), false));
    vitals.fail_now();
    assert_eq!(reports.recv().await, Some(Report::Changed));
    assert_eq!((flags(&vitals), vitals.is_excluded()), ("FX".to_owned(), true));
    assert_eq!((value(&store, "passive_failure"), value(&store, "attempt")), (1, 1));
    // Two good checks later it is back.
    assert_eq!(reports.recv().await, Some(Report::Changed));
    assert_eq!((flags(&vitals), value(&store, "attempt")), (String::new(), 3));
}

#[tokio::test]
async fn hosts_that_are_well_outlive_what_discovery_says() {
    let good = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = good.local_addr().expect("an address");
    let eds = |more: &str| {
        let text = format!(
            "name: up\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\nhealth_checks: [{{{PLAIN}}}]\n{more}"
        );
        let proto = leno_api::decode_text(&text, "cluster").unwrap_or_else(|errors| panic!("{errors}"));
        Arc::new(Lower::resource(|at| lower_proto(proto, bytes::Bytes::new(), at)).expect("a cluster"))
    };
    let of = |addresses: &[SocketAddr]| {
        let endpoints = addresses.iter().map(|address| EndpointConfig::plain(EndpointAddress::Ip(*address)));
        let locality =
            crate::cluster::LocalityEndpoints { endpoints: endpoints.collect(), ..Default::default() };
        Arc::new(Assignment {
            localities: vec![locality],
            overprovisioning_factor: 140,
            ..Assignment::default()
        })
    };
    let count = |assignment: &Assignment| -> usize {
        assignment.localities.iter().map(|locality| locality.endpoints.len()).sum()
    };
    let cluster = eds("");
    let (mut checks, mut reports, _store) = watch(&cluster);
    checks.follow(&of(&[address]));
    while reports.recv().await != Some(Report::First) {}
    assert_eq!(count(&checks.follow(&of(&[]))), 1);
    let vitals = checkup(&cluster).vitals(&EndpointAddress::Ip(address)).expect("it is checked");
    assert_eq!(
        (flags(&vitals), vitals.health(HealthStatus::Healthy)),
        ("R".to_owned(), HealthStatus::Healthy)
    );
    assert!(checks.drop_failed().is_none());
    vitals.fail_now();
    while reports.recv().await != Some(Report::Changed) {}
    assert_eq!(checks.drop_failed().map(|(_, in_force)| count(&in_force)), Some(0));
    assert!(checkup(&cluster).vitals(&EndpointAddress::Ip(address)).is_none());

    let cluster = eds("ignore_health_on_host_removal: true");
    let (mut checks, mut reports, _store) = watch(&cluster);
    checks.follow(&of(&[address]));
    while reports.recv().await != Some(Report::First) {}
    assert_eq!(count(&checks.follow(&of(&[]))), 0);
    drop(good);
}
