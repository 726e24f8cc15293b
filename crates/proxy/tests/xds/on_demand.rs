//! Clusters that are asked for when they are first needed, compared with the real Envoy: the first
//! request to one succeeds, what there is not ends as it does without, changes and ends arrive.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3::Cluster;
use leno_xds::{Mode, Resource, TypeUrl};
use tokio::task::spawn_blocking;

use super::proxies::{self, wait};
use super::sources::Tested;
use super::{Action, Scripted, Server, ads, resource};

/// A cluster with one endpoint.
fn cluster(name: &str, address: SocketAddr) -> Resource {
    let (ip, port) = (address.ip(), address.port());
    let text = format!(
        "{{name: {name}, connect_timeout: 5s, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}}}"
    );
    resource::<Cluster>(name, &text)
}

fn bootstrap(source: &str, control_plane: SocketAddr) -> String {
    let on_demand = "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3";
    let listeners = format!(
        r#"  listeners:
  - name: http
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          route_config:
            name: r
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /direct}}
                direct_response: {{status: 202}}
              - match: {{prefix: /off}}
                route: {{cluster_header: x-cluster}}
                typed_per_filter_config:
                  envoy.filters.http.on_demand: {{"@type": {on_demand}.PerRouteConfig}}
              - match: {{prefix: /}}
                route: {{cluster_header: x-cluster}}
          http_filters:
          - name: envoy.filters.http.on_demand
            typed_config: {{"@type": {on_demand}.OnDemand, odcds: {{source: {source}, timeout: 10s}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: bytes
          on_demand: {{odcds_config: {source}}}
"#
    );
    ads::bootstrap(Mode::Delta, &[], control_plane, &listeners)
}

/// What a request for a cluster gets.
fn ask(proxy: &proxies::Proxy, listener: &str, path: &str, cluster: &str, body: &str) -> (u16, String) {
    let mut stream = proxies::Wire::connect(proxy.port(listener)).stream;
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nx-cluster: {cluster}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(body.as_bytes()).expect("sent");
    // Through a TCP proxy the connection stays after the answer.
    let (mut text, mut bytes) = (String::new(), [0; 1024]);
    while !is_whole(&text) {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(read) => text.push_str(&String::from_utf8_lossy(&bytes[..read])),
        }
    }
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Whether an answer has come with all of its body.
fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let mut lengths = head.lines().filter_map(|line| line.split_once(": "));
    let length = lengths.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .is_some_and(|length| body.len() >= length)
}

/// The same for all proxies: what was answered, in order.
fn story(proxy: Tested, set: impl Fn(&[(&str, usize)])) {
    let Tested(running) = &proxy;
    let name = running.name;
    let is = |listener: &str, path: &str, cluster: &str, body: &str, expected: (u16, &str)| {
        let (status, answer) = ask(running, listener, path, cluster, body);
        // What our own answers say is not compared.
        let answer = if status == 200 { answer.as_str() } else { "" };
        assert_eq!((status, answer), expected, "{name}: {path} to {cluster}");
    };
    let until = |cluster: &str, expected: (u16, &str)| {
        let reached = wait(|| {
            let (status, answer) = ask(running, "http", "/", cluster, "");
            (status == expected.0 && (status != 200 || answer == expected.1)).then_some(())
        });
        assert!(reached.is_some(), "{name}: {cluster} never answers {expected:?}");
    };
    set(&[("a", 0), ("b", 1), ("c", 0), ("bytes", 1)]);
    // The first request waits for its cluster, with its body if it has one.
    is("http", "/", "a", "", (200, "one"));
    is("http", "/", "a", "again", (200, "one"));
    is("http", "/", "b", "with a body", (200, "two"));
    // What there is not ends as without; what is not asked for too.
    is("http", "/", "nowhere", "", (503, ""));
    is("http", "/", "nowhere", "once more", (503, ""));
    is("http", "/off", "c", "", (503, ""));
    is("http", "/direct", "c", "", (202, ""));
    proxy.until_stat("cluster_manager.active_clusters", 3);
    is("http", "/off", "a", "", (200, "one"));
    // A connection waits like a request.
    is("tcp", "/", "any", "", (200, "two"));
    is("tcp", "/", "any", "", (200, "two"));
    proxy.until_stat("tcp.t.on_demand_cluster_attempt", 1);
    proxy.until_stat("tcp.t.on_demand_cluster_success", 1);
    // What has come changes, goes, and comes again.
    set(&[("a", 1), ("b", 1), ("c", 0), ("bytes", 1)]);
    until("a", (200, "two"));
    set(&[("b", 1), ("c", 0), ("bytes", 1)]);
    until("a", (503, ""));
    is("http", "/", "b", "", (200, "two"));
    set(&[("a", 0), ("b", 1), ("c", 0), ("bytes", 1)]);
    until("a", (200, "one"));
    // Somewhere that was asked for in vain may come to be.
    set(&[("a", 0), ("nowhere", 1)]);
    until("nowhere", (200, "two"));
    proxy.0.stop();
}

async fn on_demand(source: &'static str) {
    let one = Scripted::start(|_| Action::ok("one")).await.expect("an upstream");
    let two = Scripted::start(|_| Action::ok("two")).await.expect("an upstream");
    let upstreams = [one.address, two.address];
    let folder = tempfile::tempdir().expect("a folder");
    for (name, envoy) in Tested::kinds() {
        // Each begins with a control plane that knows nothing of the other.
        let server = Server::start(([127, 0, 0, 1], 0).into()).await;
        let (path, control_plane) = (folder.path().to_owned(), server.address);
        let tested = spawn_blocking(move || {
            let bootstrap = bootstrap(source, control_plane);
            let proxy = proxies::Proxy::start(name, &path, envoy.as_deref(), |_| bootstrap);
            story(Tested(proxy), |clusters| {
                let clusters = clusters.iter().map(|(name, upstream)| cluster(name, upstreams[*upstream]));
                server.control.set(TypeUrl::Cluster, clusters.collect());
            });
        });
        tested.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_aggregated_stream() {
    on_demand("{ads: {}, resource_api_version: V3}").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_stream_of_their_own() {
    on_demand(
        "{resource_api_version: V3, api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, \
         grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}",
    )
    .await;
}
