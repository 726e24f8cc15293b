//! Health checks of our proxy and of the real Envoy, side by side: hosts that answer both with
//! the same script must end with the same flags and counts.
//!
//! Each case is a cluster of one host of its own. When a script is at its end, the host answers
//! no more, and what the proxy has made of the answers until then is compared.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

mod support;

use support::{Proxy, wait};

/// Name, the check (YAML), thresholds (healthy, unhealthy), and what the host does, in order: a
/// status with flags (`d`: degraded, `x`: immediate failure), or `0`: it closes the connection.
const CASES: &[(&str, &str, (u32, u32), &str)] = &[
    ("first", "http_health_check: {path: /}", (3, 3), "200"),
    ("first_bad", "http_health_check: {path: /}", (3, 3), "500 200 200"),
    ("threshold", "http_health_check: {path: /}", (2, 2), "200 500 200 200"),
    ("network", "http_health_check: {path: /}", (2, 3), "200 0 0"),
    ("network_failed", "http_health_check: {path: /}", (2, 2), "200 0 0 200"),
    (
        "retriable",
        "http_health_check: {path: /, retriable_statuses: [{start: 503, end: 504}]}",
        (1, 2),
        "200 503",
    ),
    (
        "retried",
        "http_health_check: {path: /, retriable_statuses: [{start: 503, end: 504}]}",
        (1, 2),
        "200 503 503",
    ),
    (
        "expected",
        "http_health_check: {path: /, expected_statuses: [{start: 200, end: 300}]}",
        (1, 1),
        "204 300",
    ),
    ("degraded", "http_health_check: {path: /}", (1, 1), "200d 200 200d"),
    ("excluded", "http_health_check: {path: /}", (2, 1), "200 500x"),
    ("included", "http_health_check: {path: /}", (1, 1), "200 500x 200"),
    ("excluded_at_first", "http_health_check: {path: /}", (1, 1), "500x"),
    ("body", "http_health_check: {path: /, receive: [{text: '6869'}]}", (1, 1), "200 204"),
    ("tls", "http_health_check: {path: /}", (2, 2), "200 500 200 200"),
    ("tls_closing", "reuse_connection: false, http_health_check: {path: /}", (1, 1), "200 0 200"),
    ("tls_alpn", "tls_options: {alpn_protocols: [hc]}, http_health_check: {path: /}", (1, 1), "200 500"),
    (
        "tls_criteria",
        "transport_socket_match_criteria: {kind: secret}, http_health_check: {path: /}",
        (1, 1),
        "200 500 200",
    ),
    (
        "plain_criteria",
        "transport_socket_match_criteria: {kind: other}, http_health_check: {path: /}",
        (1, 1),
        "200 500 200",
    ),
    ("fresh", "reuse_connection: false, http_health_check: {path: /}", (2, 2), "200 500 200 200 0"),
];

/// What a host answers to its n-th request; `None`: nothing any more.
fn answer(script: &str, number: usize) -> Option<(Vec<u8>, bool)> {
    let step = script.split(' ').nth(number)?;
    let status: u16 = step.trim_end_matches(char::is_alphabetic).parse().expect("a status");
    if status == 0 {
        return Some((Vec::new(), true));
    }
    let mut head = format!("HTTP/1.1 {status} X\r\n");
    if step.ends_with('d') {
        head += "x-envoy-degraded: true\r\n";
    }
    if step.ends_with('x') {
        head += "x-envoy-immediate-health-check-fail: true\r\n";
    }
    head += if status == 204 { "\r\n" } else { "content-length: 2\r\n\r\nhi" };
    Some((head.into_bytes(), false))
}

/// What the cluster of a case says besides. Hosts whose names begin with `tls` speak nothing else,
/// and no other application protocol than `hc` if they are offered some.
fn transport(name: &str) -> &'static str {
    match name {
        "tls" | "tls_closing" => {
            "transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.\
             transport_sockets.tls.v3.UpstreamTlsContext, sni: host.test}},"
        }
        "tls_alpn" => {
            "transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.\
             transport_sockets.tls.v3.UpstreamTlsContext, sni: host.test, common_tls_context: \
             {alpn_protocols: [h9]}}},"
        }
        "tls_criteria" | "plain_criteria" => {
            "transport_socket_matches: [{name: secret, match: {kind: secret}, transport_socket: {name: tls, \
             typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.\
             UpstreamTlsContext, sni: host.test}}}],"
        }
        _ => "",
    }
}

/// A certificate that nobody has to trust.
fn server_config() -> Arc<rustls::ServerConfig> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["host.test".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .expect("a key that fits");
    config.alpn_protocols = vec![b"hc".to_vec()];
    Arc::new(config)
}

/// A host with a script.
fn host(name: &str, script: &'static str) -> SocketAddr {
    let tls = name.starts_with("tls").then(server_config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let asked = Arc::clone(&asked);
            let tls = tls.clone();
            std::thread::spawn(move || match tls {
                None => converse(stream, script, &asked),
                Some(tls) => {
                    let session = rustls::ServerConnection::new(tls).expect("a session");
                    converse(rustls::StreamOwned::new(session, stream), script, &asked);
                }
            });
        }
    });
    address
}

fn converse(mut stream: impl Read + Write, script: &str, asked: &AtomicUsize) {
    let mut head = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|count| count > 0) {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        head.clear();
        if let Some((bytes, close)) = answer(script, asked.fetch_add(1, Ordering::Relaxed)) {
            let _ = stream.write_all(&bytes);
            if close {
                return;
            }
        }
    }
}

/// A bootstrap with a cluster for each case.
fn bootstrap() -> String {
    let mut text = String::from(
        "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\nstatic_resources:\n  clusters:\n",
    );
    for (name, check, (healthy, unhealthy), script) in CASES {
        let (port, transport) = (host(name, script).port(), transport(name));
        writeln!(
            text,
            "  - {{name: {name}, type: STATIC, connect_timeout: 1s, {transport} health_checks: [{{timeout: 60s, interval: 0.01s, \
             no_traffic_interval: 0.01s, healthy_threshold: {healthy}, unhealthy_threshold: {unhealthy}, {check}}}], \
             load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}"
        )
        .expect("a String takes all");
    }
    text
}

/// What has come of each case, once all scripts are at their end.
fn outcomes_of(proxy: &Proxy) -> Vec<String> {
    let outcomes = CASES.iter().map(|(name, _, _, script)| {
        let attempts = script.split(' ').count() + 1;
        let path = format!("/stats?filter=cluster\\.{name}\\.");
        let attempt = format!("cluster.{name}.health_check.attempt: {attempts}");
        let stats = wait(|| {
            let stats = proxy.admin("GET", &path);
            stats.lines().any(|line| line == attempt).then_some(stats)
        })
        .unwrap_or_else(|| panic!("{name} takes too long"));
        let mut outcome = format!("{name}:");
        for stat in [
            "health_check.attempt",
            "health_check.failure",
            "health_check.healthy",
            "health_check.network_failure",
            "health_check.passive_failure",
            "health_check.success",
            "membership_degraded",
            "membership_excluded",
            "membership_healthy",
            "membership_total",
        ] {
            let value = stats.lines().find_map(|line| {
                line.strip_prefix(&format!("cluster.{name}."))?.strip_prefix(stat)?.strip_prefix(": ")
            });
            write!(outcome, " {stat}={}", value.unwrap_or("none")).expect("a String takes all");
        }
        let clusters = proxy.admin("GET", &format!("/clusters?filter=^{name}$"));
        let flags = clusters.lines().find_map(|line| line.split_once("::health_flags::"));
        write!(outcome, " {}", flags.map_or("none", |(_, flags)| flags)).expect("a String takes all");
        outcome
    });
    outcomes.collect()
}

#[test]
fn the_same_answers_lead_to_the_same_health() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ours = Proxy::start("ours", folder.path(), None, |_| bootstrap());
    let outcomes = outcomes_of(&ours);
    ours.stop();
    assert_eq!(outcomes.len(), CASES.len());
    for outcome in outcomes.iter().filter(|outcome| outcome.starts_with("tls")) {
        // One that closes its connection is meant to.
        let failures = if outcome.starts_with("tls_closing:") { 1 } else { 0 };
        assert!(outcome.contains(&format!("network_failure={failures} ")), "no session: {outcome}");
    }
    let Some(binary) = leno_testkit::envoy::binary() else {
        println!("skipped: no Envoy to compare with");
        return;
    };
    let envoy = Proxy::start("envoy", folder.path(), Some(&binary), |_| bootstrap());
    let theirs = outcomes_of(&envoy);
    envoy.stop();
    assert_eq!(outcomes.join("\n"), theirs.join("\n"));
}
