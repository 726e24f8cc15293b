//! Requests that name the host they go to.

use std::net::{Ipv4Addr, SocketAddr};

use leno_testkit::http::{Action, Client, Scripted};

use super::{Proxy, run};
use crate::cluster::Discovery;
use crate::cluster::discovery::Task;
use crate::cluster::dns_cache::resolve;

const FILTER: &str = "- name: dfp
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig
    dns_cache_config: {name: c, max_hosts: 3, dns_lookup_family: V4_ONLY}";

const CLUSTER: &str = "name: up
connect_timeout: 1s
lb_policy: CLUSTER_PROVIDED
cluster_type:
  name: envoy.clusters.dynamic_forward_proxy
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig
    dns_cache_config: {name: c, max_hosts: 3, dns_lookup_family: V4_ONLY}";

/// A proxy, and what the main thread does for it.
async fn start(routes: &str) -> (Proxy, Task) {
    let proxy = Proxy::start_with(FILTER, routes, "", &[CLUSTER.to_owned()]).await;
    let cluster = proxy.worker.cluster("up").expect("the cluster");
    let Discovery::DynamicForwardProxy(cache) = &cluster.config.discovery else { panic!("another type") };
    let task = resolve::start(cache, &proxy.stats.thread()).expect("nobody resolves yet");
    (proxy, task)
}

async fn get(client: &mut Client, authority: &str, more: &str) -> (u16, String) {
    let request = format!("GET / HTTP/1.1\r\nhost: {authority}\r\n{more}\r\n");
    client.call(&request).await.expect("an answer")
}

#[test]
fn requests_go_to_the_hosts_that_they_name() {
    run(async {
        let host = |name: &'static str| Scripted::start(move |_| Action::ok(name));
        let (a, b) = (host("a").await.expect("a host"), host("b").await.expect("a host"));
        let (proxy, _task) = start("[{match: {prefix: /}, route: {cluster: up}}]").await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let (a, b) = (a.address.port(), b.address.port());
        assert_eq!(get(&mut client, &format!("localhost:{a}"), "").await, (200, "a".to_owned()));
        assert_eq!(get(&mut client, &format!("127.0.0.1:{b}"), "").await, (200, "b".to_owned()));
        assert_eq!(get(&mut client, &format!("LOCALHOST:{a}"), "").await, (200, "a".to_owned()));
        assert_eq!(proxy.stat("dns_cache.c.host_added"), 2);
        assert_eq!(proxy.stat("dns_cache.c.num_hosts"), 2);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_total"), 2, "connections are kept by host");

        let failed = (503, "DNS resolution failure".to_owned());
        assert_eq!(get(&mut client, "no-such-name.invalid", "").await, failed);
        // It is in the cache as one that has no address.
        assert_eq!(get(&mut client, "no-such-name.invalid", "").await, failed);
        assert_eq!(get(&mut client, "one-too.many", "").await, (503, "DNS cache overflow".to_owned()));
        assert_eq!(proxy.stat("dns_cache.c.host_overflow"), 1);
    });
}

#[test]
fn routes_may_name_another_host() {
    run(async {
        let upstream = Scripted::start(|seen| Action::ok(seen.header("host").unwrap_or("none"))).await;
        let upstream = upstream.expect("a host");
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, leno_testkit::ports::free()));
        let there = format!("127.0.0.1:{}", upstream.address.port());
        let settings = |text: &str| {
            format!(
                "typed_per_filter_config: {{dfp: {{'@type': type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig, {text}}}}}"
            )
        };
        let routes = format!(
            "[{{match: {{prefix: /, headers: [{{name: x-literal, present_match: true}}]}}, route: {{cluster: up}}, {}}}, \
             {{match: {{prefix: /}}, route: {{cluster: up}}, {}}}]",
            settings(&format!("host_rewrite_literal: '{there}'")),
            settings("host_rewrite_header: X-Where"),
        );
        let (proxy, _task) = start(&routes).await;
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let elsewhere = nobody.to_string();
        assert_eq!(get(&mut client, &elsewhere, "x-literal: 1\r\n").await, (200, there.clone()));
        assert_eq!(get(&mut client, &elsewhere, &format!("x-where: {there}\r\n")).await, (200, there));
        assert_eq!(get(&mut client, &elsewhere, "").await.0, 503);
    });
}
