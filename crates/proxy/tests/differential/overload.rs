//! What overload actions and load shed points do to connections and requests, beside Envoy. The
//! pressure is injected, and full from the beginning.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use crate::normalise;
use crate::support::{Proxy, Wire, wait};

const POINTS: &[(&str, &str)] = &[
    ("loadshed_points", "envoy.load_shed_points.tcp_listener_accept"),
    ("loadshed_points", "envoy.load_shed_points.http_connection_manager_decode_headers"),
    ("loadshed_points", "envoy.load_shed_points.hcm_ondata_creating_codec"),
    ("loadshed_points", "envoy.load_shed_points.http1_server_abort_dispatch"),
    ("loadshed_points", "envoy.load_shed_points.http2_server_go_away_on_dispatch"),
    ("loadshed_points", "envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch"),
    ("loadshed_points", "envoy.load_shed_points.http_downstream_filter_check"),
    ("loadshed_points", "envoy.load_shed_points.connection_pool_new_connection"),
    ("loadshed_points", "envoy.load_shed_points.tcp_proxy_upstream_connect"),
    ("actions", "envoy.overload_actions.stop_accepting_requests"),
    ("actions", "envoy.overload_actions.disable_http_keepalive"),
    ("actions", "envoy.overload_actions.reject_incoming_connections"),
];

/// A server that answers every request.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut wire = Wire::new(stream);
                while !wire.until(b"\r\n\r\n").is_empty() {
                    if wire.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn bootstrap(kind: &str, point: &str, folder: &Path, backend: SocketAddr) -> String {
    let pressure = folder.join("pressure");
    std::fs::write(&pressure, "1.0").expect("written");
    let pressure = pressure.display();
    let port = backend.port();
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
overload_manager:
  refresh_interval: 0.05s
  resource_monitors:
  - name: injected
    typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: "{pressure}"}}
  {kind}:
  - {{name: {point}, triggers: [{{name: injected, threshold: {{value: 0.9}}}}]}}
static_resources:
  clusters:
  - name: backend
    connect_timeout: 1s
    load_assignment:
      cluster_name: backend
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
  listeners:
  - name: http
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          append_local_overload: true
          delayed_close_timeout: 0.05s
          route_config: {{virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: backend}}}}]}}]}}
          http_filters: [{{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - {{name: tcp, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: backend}}}}
"#
    )
}

/// What an HTTP/1 client sees of a request on a new connection.
fn http1(address: SocketAddr) -> String {
    let mut wire = Wire::connect(address);
    let _ = wire.stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    let head = wire.until(b"\r\n\r\n");
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let fields: BTreeSet<String> = lines.map(normalise).collect();
    let length = fields.iter().find_map(|field| field.strip_prefix("content-length: ")?.parse().ok());
    let body = wire.exactly(length.unwrap_or(0));
    format!("{first} {fields:?} {}", String::from_utf8_lossy(&body))
}

/// What an HTTP/2 client sees: last streams of GOAWAYs, and the body of its answer, to the answer's
/// or the connection's end.
fn http2(address: SocketAddr) -> String {
    let mut wire = Wire::connect(address);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // GET / with http, and an authority.
    bytes.extend_from_slice(&[0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x84, 0x86, 0x01, 0x01, b'h']);
    let _ = wire.stream.write_all(&bytes);
    let mut seen = String::new();
    loop {
        let head = wire.exactly(9);
        let [a, b, c, kind, flags, _, _, _, stream] = head.as_slice() else {
            seen.push_str(" end");
            return seen;
        };
        let payload = wire.exactly(usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
        match kind {
            0 if !payload.is_empty() => seen += &format!(" data {}", String::from_utf8_lossy(&payload)),
            7 => seen += &format!(" goaway {:?}", payload.get(..8).unwrap_or_default()),
            _ => {}
        }
        if matches!(kind, 0 | 1) && flags & 1 != 0 && *stream == 1 {
            return seen;
        }
    }
}

/// What comes through a TCP proxy.
fn tcp(address: SocketAddr) -> String {
    let mut wire = Wire::connect(address);
    let _ = wire.stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    String::from_utf8_lossy(&wire.until(b"\r\n\r\nok")).into_owned()
}

/// What all of them see, and what is counted of it.
fn story(name: &'static str, folder: &Path, envoy: Option<&Path>, kind: &str, point: &str) -> String {
    let backend = backend();
    let proxy = Proxy::start(name, folder, envoy, |folder| bootstrap(kind, point, folder, backend));
    let full = format!("overload.{point}.scale_percent: 100");
    let stats = |filter: &str| proxy.admin("GET", &format!("/stats?filter={filter}"));
    wait(|| stats("scale_percent").contains(&full).then_some(())).expect("the pressure is noticed");
    let (http, session) = (proxy.port("http"), proxy.port("tcp"));
    // Workers learn of it a moment after the main thread.
    let mut looks = 0;
    let _ = wait(|| {
        looks += 1;
        (looks > 8).then_some(())
    });
    let mut seen = String::new();
    let _ = writeln!(seen, "http/1: {}", http1(http));
    let _ = writeln!(seen, "http/2:{}", http2(http));
    let _ = writeln!(seen, "tcp: {}", tcp(session));
    let counted =
        "(shed_load_count|rq_overload_local_reply|overload_close|overload_disable_keepalive|overload_reject)";
    for line in stats(counted).lines().filter(|line| line.contains(": ") && !line.ends_with(": 0")) {
        // Once for each time that bytes come; how many times that is, differs.
        let line = if line.contains("go_away") { line.split(": ").next().unwrap_or_default() } else { line };
        if line.starts_with("overload.") || line.starts_with("http.http.") || line.starts_with("tcp.tcp.") {
            let _ = writeln!(seen, "{line}");
        }
    }
    proxy.stop();
    seen
}

#[test]
fn overload_does_what_it_does_in_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else {
        println!("skipped: there is no Envoy to compare with");
        return;
    };
    let mut differences = String::new();
    for (kind, point) in POINTS {
        let folder = tempfile::tempdir().expect("a folder");
        let theirs = story("envoy", folder.path(), Some(&envoy), kind, point);
        let ours = story("ours", folder.path(), None, kind, point);
        if theirs != ours {
            let _ = writeln!(differences, "= {point}\n{theirs}--- ours\n{ours}");
        }
    }
    assert!(differences.is_empty(), "\n{differences}");
}
