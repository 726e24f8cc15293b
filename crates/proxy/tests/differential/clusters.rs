//! What clusters do besides answering: connections that are opened ahead, or for one client alone;
//! errors that outlier detection is told of; tables of balancers; and the names of all stats.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::support::{PATIENCE, Proxy, Wire, wait};

/// How many requests are to be there before they are answered.
#[derive(Default)]
struct Gate {
    /// Those that wait, and those that are waited for.
    state: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Gate {
    fn expect(&self, count: usize) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (0, count);
    }

    /// A request is there: returns when all are.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        self.changed.notify_all();
        let all = self.changed.wait_timeout_while(state, PATIENCE, |(there, wanted)| there < wanted);
        drop(all);
    }
}

/// Servers that answer when the gate lets them, with a header that the request asks for.
fn backends(count: usize, gate: &Arc<Gate>) -> Vec<SocketAddr> {
    let one = |_| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let gate = Arc::clone(gate);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || serve(stream, &gate));
            }
        });
        address
    };
    (0..count).map(one).collect()
}

fn serve(stream: TcpStream, gate: &Gate) {
    let mut wire = Wire::new(stream);
    loop {
        let head = wire.until(b"\r\n\r\n");
        if head.is_empty() {
            return;
        }
        gate.pass();
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let wanted = head.lines().find_map(|line| line.strip_prefix("x-want: ")).unwrap_or("x-none");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{wanted}: 1\r\n\r\nok");
        if wire.stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Clusters: how many servers each has, and what is special about it.
const CLUSTERS: &[(&str, usize, &str)] = &[
    ("predictive", 3, "preconnect_policy: {predictive_preconnect_ratio: 2}"),
    ("twice", 1, "preconnect_policy: {per_upstream_preconnect_ratio: 2}"),
    ("half", 1, "preconnect_policy: {per_upstream_preconnect_ratio: 1.5}"),
    (
        "bounded",
        1,
        "{preconnect_policy: {per_upstream_preconnect_ratio: 3}, circuit_breakers: {thresholds: [{max_connections: 2}]}}",
    ),
    ("own", 1, "connection_pool_per_downstream_connection: true"),
    ("ring", 3, "{lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 100}}"),
    ("maglev", 3, "{lb_policy: MAGLEV, maglev_lb_config: {table_size: 101}}"),
    ("tracked", 1, "track_cluster_stats: {request_response_sizes: true, timeout_budgets: true}"),
    (
        "errors",
        2,
        "{outlier_detection: {consecutive_5xx: 2, max_ejection_percent: 100}, typed_extension_protocol_options: \
         {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
         {http_protocol_options: {}}, outlier_detection: {error_matcher: {http_response_headers_match: \
         {headers: [{name: x-bad, present_match: true}]}}}}}}",
    ),
    ("degraded", 2, "outlier_detection: {detect_degraded_hosts: true}"),
    (
        "watched",
        1,
        "{circuit_breakers: {thresholds: [{track_remaining: true}, {priority: HIGH, track_remaining: true}]}, \
         health_checks: [{timeout: 1s, interval: 60s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}], \
         lb_subset_config: {fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [a]}]}}",
    ),
];

/// Requests at the same time, to a cluster, with a header that is wanted of the answers.
const STEPS: &[(&str, usize, &str)] = &[
    ("predictive", 1, ""),
    ("predictive", 1, ""),
    ("predictive", 2, ""),
    ("twice", 1, ""),
    ("twice", 1, ""),
    ("twice", 2, ""),
    ("twice", 3, ""),
    ("half", 1, ""),
    ("half", 1, ""),
    ("half", 2, ""),
    ("half", 3, ""),
    ("bounded", 1, ""),
    ("bounded", 2, ""),
    ("own", 1, ""),
    ("own", 1, ""),
    ("ring", 1, ""),
    ("maglev", 1, ""),
    ("tracked", 1, ""),
    ("errors", 1, "x-bad"),
    ("errors", 1, ""),
    ("errors", 1, "x-bad"),
    ("errors", 1, "x-bad"),
    ("errors", 1, "x-bad"),
    ("degraded", 1, "x-envoy-degraded"),
    ("watched", 1, ""),
];

/// What is compared of a cluster after each step.
const COMPARED: &str = "(upstream_cx_total|upstream_cx_overflow|upstream_rq_total|upstream_rq_pending_total|_lb\\.\
    |ejections_(detected|enforced)_[a-z0-9_]*|membership_degraded|membership_healthy)";

fn bootstrap(servers: &BTreeMap<&str, Vec<SocketAddr>>) -> String {
    let mut text = "node: {id: node, cluster: group}\nadmin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n\
                    static_resources:\n  listeners:\n"
        .to_owned();
    for (name, ..) in CLUSTERS {
        text += &format!(
            "  - name: {name}\n    stat_prefix: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    \
             filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: {name}, route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: {name}}}}}]}}]}}, http_filters: [{{name: r, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]\n"
        );
    }
    text += "  clusters:\n";
    for (name, _, more) in CLUSTERS {
        let endpoints: Vec<String> = servers[name]
            .iter()
            .map(|address| {
                let port = address.port();
                format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
            })
            .collect();
        let more = crate::yaml(more);
        let mut cluster = serde_json::json!({"name": name, "connect_timeout": "1s"});
        let object = cluster.as_object_mut().expect("an object");
        let endpoints = crate::yaml(&format!("[{}]", endpoints.join(", ")));
        let assignment =
            serde_json::json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
        object.insert("load_assignment".into(), assignment);
        object.extend(more.as_object().expect("an object").clone());
        text += &format!("  - {cluster}\n");
    }
    text
}

/// A proxy with servers of its own.
struct Side {
    proxy: Proxy,
    gate: Arc<Gate>,
}

impl Side {
    fn start(name: &'static str, folder: &Path, envoy: Option<&Path>) -> Self {
        let gate = Arc::new(Gate::default());
        let servers: BTreeMap<&str, Vec<SocketAddr>> =
            CLUSTERS.iter().map(|(name, count, _)| (*name, backends(*count, &gate))).collect();
        let proxy = Proxy::start(name, folder, envoy, |_| bootstrap(&servers));
        Self { proxy, gate }
    }

    fn step(&self, cluster: &str, count: usize, wanted: &str) {
        self.gate.expect(count);
        let address = self.proxy.port(cluster);
        let want = if wanted.is_empty() { String::new() } else { format!("x-want: {wanted}\r\n") };
        let mut wires: Vec<Wire> = (0..count)
            .map(|_| {
                let mut wire = Wire::connect(address);
                let head = format!("GET / HTTP/1.1\r\nhost: h\r\n{want}\r\n");
                wire.stream.write_all(head.as_bytes()).expect("sent");
                wire
            })
            .collect();
        for wire in &mut wires {
            assert!(wire.until(b"\r\n\r\nok").starts_with(b"HTTP/1.1 200"), "{cluster}");
        }
    }

    fn stats(&self, filter: &str) -> BTreeMap<String, String> {
        let text = self.proxy.admin("GET", &format!("/stats?filter={filter}"));
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        // Chunked or not: lines of chunk sizes have no colon.
        let lines = body.lines().filter_map(|line| line.split_once(": "));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The numbers that are compared of a cluster.
    fn numbers(&self, cluster: &str) -> BTreeMap<String, String> {
        self.stats(&format!("^cluster\\.{cluster}\\..*{COMPARED}"))
    }
}

/// Names that only Envoy has, and why; a name matches if it ends so, or, with a dot behind, begins so.
const ONLY_ENVOY: &[&str] = &[
    // Of the sources of endpoints, sampled otherwise here or told by /config_dump.
    ".assignment_timeout_received",
    ".assignment_use_cached",
    ".version",
    ".warming_state",
    // HTTP/3 and early data.
    ".upstream_cx_connect_with_0_rtt",
    ".upstream_cx_http3_total",
    ".upstream_http3_broken",
    ".upstream_rq_0rtt",
    ".downstream_cx_http3_active",
    ".downstream_cx_http3_total",
    ".downstream_rq_http3_total",
    // Buffers belong to tasks that are not asked.
    ".upstream_cx_rx_bytes_buffered",
    ".upstream_cx_tx_bytes_buffered",
    ".downstream_cx_rx_bytes_buffered",
    ".downstream_cx_tx_bytes_buffered",
    ".upstream_flow_control_backed_up_total",
    ".upstream_flow_control_drained_total",
    // Codecs' own counts of what is refused.
    ".http1.dropped_headers_with_underscores",
    ".http1.metadata_not_supported_error",
    ".http1.requests_rejected_with_underscores_in_headers",
    ".http1.response_flood",
    ".default.total_match_count",
    ".max_host_weight",
    ".upstream_cx_preconnect_skipped",
    ".upstream_queue_overloaded",
    ".upstream_rq_per_cx",
    ".upstream_rq_rx_reset_no_error",
    // Counted here whatever the reason.
    ".downstream_rq_rejected_via_ip_detection",
    // Of listeners: batches of accepts; extensions by discovery.
    ".connections_accepted_per_socket_event",
    ".extension_config_missing",
    ".network_extension_config_missing",
    // The admin interface is no listener here.
    "http.admin.",
    "listener.admin.",
    "http.async-client.",
    // Of the machinery.
    "cluster_manager.",
    "dns.",
    "envoy.",
    "filesystem.",
    "listener_manager.",
    "main_thread.",
    "runtime.",
    "server.",
    "thread_local_cluster_manager.",
    "workers.",
    "dispatcher.",
    "overload.",
    "tls_inspector.",
    "http1.",
    "http2.",
    // Of tracing.
    ".tracing.client_enabled",
    ".tracing.health_check",
    ".tracing.not_traceable",
    ".tracing.random_sampling",
    ".tracing.service_forced",
];

/// Names that only ours has.
const ONLY_OURS: &[&str] = &[
    "cluster_manager.",
    "control_plane.",
    "filesystem.",
    "listener_manager.",
    "server.",
    "runtime.",
    "main_thread.",
    "overload.",
    "workers.",
];

fn left(names: &BTreeSet<String>, others: &BTreeSet<String>, known: &[&str]) -> Vec<String> {
    let known = |name: &String| {
        // The same counts once more for each listener.
        let of_listener = name.starts_with("listener.") && name.contains(".http.");
        of_listener
            || known
                .iter()
                .any(|rule| if rule.ends_with('.') { name.starts_with(rule) } else { name.ends_with(rule) })
    };
    names.difference(others).filter(|name| !known(name)).cloned().collect()
}

#[test]
fn clusters_count_as_in_envoy() {
    let Some(envoy) = leno_testkit::envoy::binary() else {
        println!("skipped: there is no Envoy to compare with");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let envoy = Side::start("envoy", folder.path(), Some(&envoy));
    let ours = Side::start("ours", folder.path(), None);
    let mut differences = String::new();
    for (cluster, count, wanted) in STEPS {
        envoy.step(cluster, *count, wanted);
        ours.step(cluster, *count, wanted);
        // Connections are counted when they are there, gauges now and then.
        let same = wait(|| {
            let (theirs, ours) = (envoy.numbers(cluster), ours.numbers(cluster));
            (theirs == ours).then_some(())
        });
        if same.is_none() {
            let (theirs, ours) = (envoy.numbers(cluster), ours.numbers(cluster));
            for (name, value) in &theirs {
                if ours.get(name) != Some(value) {
                    differences +=
                        &format!("{cluster} {count}: {name}: {value}, ours {:?}\n", ours.get(name));
                }
            }
            for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
                differences += &format!("{cluster} {count}: only ours has {name}\n");
            }
        }
    }
    let names = |side: &Side| side.stats("").into_keys().collect::<BTreeSet<_>>();
    let (theirs, mine) = (names(&envoy), names(&ours));
    assert!(theirs.len() > 500, "{} names", theirs.len());
    for name in left(&theirs, &mine, ONLY_ENVOY) {
        differences += &format!("only Envoy has {name}\n");
    }
    for name in left(&mine, &theirs, ONLY_OURS) {
        differences += &format!("only ours has {name}\n");
    }
    assert!(differences.is_empty(), "\n{differences}");
    envoy.proxy.stop();
    ours.proxy.stop();
}
