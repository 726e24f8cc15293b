//! The fault table: what goes wrong with an endpoint or a client, and what comes of it, ours and
//! the real Envoy's side by side: the client's bytes, the access log's status, flags and details,
//! and the cluster's counters must be the same.
//!
//! Each row has a cluster and an endpoint of its own, so that all rows run at once. `FAULTS=name`
//! runs the rows whose names contain that, and prints both sides.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

mod faults {
    pub(crate) mod rows;
    pub(crate) mod tls;
}
mod support;

use faults::rows::{Deviation, Endpoint, Row, rows};
use faults::tls;
use support::{Flag, Proxy, Wire, dead_port};

/// Counters of a cluster that are compared.
const COUNTERS: &[&str] = &[
    "membership_healthy",
    "membership_total",
    "outlier_detection.ejections_active",
    "outlier_detection.ejections_enforced_total",
    "ssl.connection_error",
    "ssl.fail_verify_cert_hash",
    "ssl.fail_verify_error",
    "ssl.fail_verify_no_cert",
    "ssl.fail_verify_san",
    "ssl.handshake",
    "upstream_cx_connect_fail",
    "upstream_cx_connect_timeout",
    "upstream_cx_destroy_local_with_active_rq",
    "upstream_cx_destroy_remote_with_active_rq",
    "upstream_cx_destroy_with_active_rq",
    "upstream_cx_none_healthy",
    "upstream_cx_overflow",
    "upstream_cx_pool_overflow",
    "upstream_cx_protocol_error",
    "upstream_cx_total",
    "upstream_rq_2xx",
    "upstream_rq_4xx",
    "upstream_rq_5xx",
    "upstream_rq_503",
    "upstream_rq_504",
    "upstream_rq_active",
    "upstream_rq_active_overflow",
    "upstream_rq_cancelled",
    "upstream_rq_completed",
    "upstream_rq_maintenance_mode",
    "upstream_rq_pending_failure_eject",
    "upstream_rq_pending_overflow",
    "upstream_rq_pending_total",
    "upstream_rq_per_try_idle_timeout",
    "upstream_rq_per_try_timeout",
    "upstream_rq_retry",
    "upstream_rq_retry_limit_exceeded",
    "upstream_rq_retry_overflow",
    "upstream_rq_retry_success",
    "upstream_rq_rx_reset",
    "upstream_rq_timeout",
    "upstream_rq_total",
    "upstream_rq_tx_reset",
];

/// Serves a row's endpoint; the threads end with the test's process.
fn start(row: &Row, dead: SocketAddr, arrived: &Arc<Flag>) -> SocketAddr {
    let endpoint = row.endpoint;
    match endpoint {
        Endpoint::Dead => return dead,
        Endpoint::Full => return full(),
        Endpoint::Serves(_) | Endpoint::Secure(_) => {}
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let arrived = Arc::clone(arrived);
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().flatten().enumerate() {
            let arrived = Arc::clone(&arrived);
            std::thread::spawn(move || match endpoint {
                Endpoint::Serves(serve) => serve(Wire::new(stream), index, &arrived),
                Endpoint::Secure(server) => server.serve(&Wire::new(stream)),
                Endpoint::Dead | Endpoint::Full => {}
            });
        }
    });
    address
}

/// Listens, and has no room for connections.
fn full() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    socket.listen(0).expect("it listens");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    // One is waiting to be accepted, and nobody accepts.
    std::mem::forget((TcpStream::connect(address).expect("there is room for one"), socket));
    address
}

fn bootstrap(rows: &[Row], flags: &[Arc<Flag>], folder: &Path, dead: SocketAddr) -> String {
    let ca = folder.join("ca.pem");
    tls::write_ca(&ca);
    let mut routes = String::new();
    let mut clusters = String::new();
    for (row, arrived) in rows.iter().zip(flags) {
        let (name, endpoint) = (row.name, start(row, dead, arrived));
        let _ = writeln!(
            routes,
            "              - {{match: {{prefix: \"/{name}/\"}}, route: {{cluster: \"{name}\", {}}}}}",
            row.route
        );
        let protocol = if row.http2 {
            "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
             {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
             explicit_http_config: {http2_protocol_options: {}}}}, "
        } else {
            ""
        };
        let connect = if row.connect_timeout { "0.3" } else { "8" };
        let discovery = if row.cluster.contains("type:") { "" } else { "type: STATIC, " };
        let hosts = if row.cluster.contains("load_assignment:") {
            String::new()
        } else {
            format!(
                "load_assignment: {{cluster_name: \"{name}\", endpoints: [{{lb_endpoints: [{{endpoint: \
                 {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}, ",
                endpoint.port()
            )
        };
        let _ = writeln!(
            clusters,
            "  - {{name: \"{name}\", connect_timeout: {connect}s, {discovery}{hosts}{protocol}{}}}",
            row.cluster.replace("CA_FILE", &ca.display().to_string())
        );
    }
    let log = folder.join("access.log");
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: main
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          codec_type: HTTP1
          stream_idle_timeout: 1.5s
          request_headers_timeout: 0.4s
          http_filters: [{{name: router, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
          access_log:
          - name: file
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: \"{}\"
              log_format: {{text_format_source: {{inline_string: \"%REQ(:PATH)% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% transport=%UPSTREAM_TRANSPORT_FAILURE_REASON% received=%BYTES_RECEIVED% sent=%BYTES_SENT% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\n\"}}}}
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
{routes}              - {{match: {{prefix: \"/\"}}, direct_response: {{status: 200}}}}
  clusters:
{clusters}",
        log.display()
    )
}

/// What comes of each row.
fn run(
    name: &'static str,
    rows: &[Row],
    folder: &Path,
    dead: SocketAddr,
    envoy: Option<&Path>,
) -> Vec<String> {
    let flags: Vec<Arc<Flag>> = rows.iter().map(|_| Arc::default()).collect();
    let proxy = Proxy::start(name, folder, envoy, |folder| bootstrap(rows, &flags, folder, dead));
    let port = proxy.port("main");
    let mut results: Vec<String> = std::thread::scope(|scope| {
        let running = rows.iter().zip(&flags).map(|(row, arrived)| {
            scope.spawn(move || {
                let mut wire = Wire::connect(port);
                let mut text = String::new();
                (row.client)(&mut wire, row.name, &mut text, arrived);
                let _ = wire.stream.shutdown(Shutdown::Write);
                while wire.fill() {}
                text
            })
        });
        let running: Vec<_> = running.collect();
        running.into_iter().map(|row| row.join().expect("it ran")).collect()
    });
    // Every row has a line in the log by now, or gets it when the proxy ends; counters are read
    // once nothing is under way any more.
    support::wait(|| {
        let active = proxy.admin("GET", "/stats?filter=upstream_rq_active|downstream_rq_active");
        active.lines().filter_map(|line| line.split_once("_rq_active: ")).all(|(_, n)| n == "0").then_some(())
    });
    let stats = proxy.admin("GET", "/stats?usedonly");
    for (row, result) in rows.iter().zip(&mut results).filter(|(row, _)| !row.answer_only) {
        *result += "--- counters\n";
        let prefix = format!("cluster.{}.", row.name);
        let mut lines: Vec<&str> = stats.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        lines.retain(|line| {
            line.split_once(": ").is_some_and(|(name, value)| COUNTERS.contains(&name) && value != "0")
        });
        lines.sort_unstable();
        for line in lines {
            let _ = writeln!(result, "{line}");
        }
    }
    let folder = proxy.stop();
    let log = std::fs::read_to_string(folder.join("access.log")).unwrap_or_default();
    for (row, result) in rows.iter().zip(&mut results).filter(|(row, _)| !row.answer_only) {
        let prefix = format!("/{}/", row.name);
        for line in log.lines().filter(|line| line.starts_with(&prefix)) {
            *result += "--- the log says\n";
            *result += &line.replace(' ', "\n");
            result.push('\n');
        }
    }
    results
}

/// The first line of a response.
fn status(result: &str) -> Option<&str> {
    result.lines().find(|line| line.starts_with("HTTP/"))
}

#[test]
fn same_as_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let only = std::env::var("FAULTS").unwrap_or_default();
    let mut rows = rows();
    rows.retain(|row| row.name.contains(&only));
    let (_socket, dead) = dead_port();
    let [ours, envoys] = std::thread::scope(|scope| {
        let (rows, folder) = (&rows, folder.path());
        let sides = [("ours", None), ("envoy", Some(envoy.as_path()))];
        let sides = sides.map(|(name, binary)| scope.spawn(move || run(name, rows, folder, dead, binary)));
        sides.map(|side| side.join().expect("it ran"))
    });
    let mut failures = String::new();
    let mut failed = 0;
    for ((row, ours), envoys) in rows.iter().zip(&ours).zip(&envoys) {
        let name = row.name;
        if !only.is_empty() {
            println!("=== {name}: ours\n{ours}\n=== {name}: Envoy\n{envoys}\n");
        }
        match row.deviation {
            Deviation::None if ours != envoys => {
                failed += 1;
                let _ = writeln!(failures, "\n=== {name}");
                for line in envoys.lines().filter(|line| !ours.lines().any(|other| other == *line)) {
                    let _ = writeln!(failures, "-{line}");
                }
                for line in ours.lines().filter(|line| !envoys.lines().any(|other| other == *line)) {
                    let _ = writeln!(failures, "+{line}");
                }
            }
            Deviation::Because(why) if ours == envoys => {
                failed += 1;
                let _ = writeln!(failures, "\n=== {name}: no deviation any more ({why})");
            }
            Deviation::Chance(why) if status(ours) != status(envoys) => {
                failed += 1;
                let _ = writeln!(failures, "\n=== {name}: {ours}\ninstead of\n{envoys}\n({why})");
            }
            Deviation::None | Deviation::Because(_) | Deviation::Chance(_) => {}
        }
    }
    println!("{} rows", rows.len());
    assert!(failed == 0, "{failed} of {} rows differ (- Envoy, + ours)\n{failures}", rows.len());
}
