//! What becomes of updates, resource by resource.

#![allow(clippy::needless_pass_by_value, reason = "expectations are written in place")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use expect_test::{Expect, expect};
use leno_base::{Name, Rng};
use leno_xds::client::{Client, Config, Interest, grpc};
use leno_xds::wire::{self, Received, ReceivedSotw};
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use prost_types::Any;

use super::sources::{Feed, moves};
use super::{Applied, Discovery};
use crate::config::lower::{Scope, UnknownFields};
use crate::config::source::Origin;
use crate::config::store::Store;
use crate::fixtures::{at_port, listener_message, rds_filters, tcp_filters};
use crate::listener::sockets::Sockets;

/// A subscription with its store, and a client that makes updates of responses.
struct Proxy {
    discovery: Discovery,
    client: Client,
    store: Store,
    sockets: Sockets,
    version: u32,
}

impl Proxy {
    fn new(unknown_fields: UnknownFields) -> Self {
        let mut client = Client::new(Config::new(Mode::Sotw, Default::default()), Rng::new(1));
        let now = Instant::now();
        for type_url in [TypeUrl::Cluster, TypeUrl::Listener] {
            client.subscribe(now, &type_url, &Interest::Wildcard, None);
        }
        for (type_url, name) in [(TypeUrl::Route, "r"), (TypeUrl::Endpoint, "s")] {
            client.subscribe(now, &type_url, &Interest::name(name), None);
        }
        client.on_connected();
        let (commander, _) = grpc::commands();
        let (xds_clusters, ads) = (Some(Arc::default()), Some(Mode::Delta));
        let scope = Scope { unknown_fields, xds_clusters, ads, ..Scope::default() };
        let discovery = Discovery::new(Some(commander), Origin::Ads, scope);
        Self { discovery, client, store: Store::new(true, true), sockets: Sockets::new(1), version: 0 }
    }

    /// Asks for what the store refers to now.
    fn follow(&mut self) {
        let moved = self.store.take_moved();
        let moves = moves(&self.store, &moved).remove(&Feed::Ads).unwrap_or_default();
        self.discovery.follow(moves);
    }

    fn asked(&self) -> Vec<String> {
        let asked = self.discovery.asked.keys();
        asked.map(|(type_url, name)| format!("{} {name}", type_url.short())).collect()
    }

    /// Takes virtual hosts: the names that they come under, and their domains.
    fn take_hosts(&mut self, added: &[(&str, &[&str])], removed: &[&str], answered: &[&str]) -> Applied {
        let added = added.iter().map(|(name, domains)| {
            let proto = leno_api::proto::envoy::config::route::v3::VirtualHost {
                name: (*name).to_owned(),
                domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
                ..Default::default()
            };
            Resource::hashed(Name::new(name), proto.encode_to_vec().into())
        });
        let (version, store) = (Name::new("1"), &mut self.store);
        let answered = answered.iter().map(|name| (Name::new(name), Name::new(name))).collect();
        let removed = removed.iter().map(|name| Name::new(name)).collect();
        let applied = self.discovery.take_hosts(&version, added.collect(), removed, answered, store);
        self.store.settle();
        applied
    }

    /// The names that virtual hosts of the table in force came under, with their domains.
    fn hosts(&self) -> Vec<String> {
        let Some(table) = self.store.snapshot().routes.get(&"r".into()) else { return Vec::new() };
        let mut wire = Vec::new();
        table.append_discovered(&mut wire);
        let shown = leno_api::proto::envoy::config::route::v3::RouteConfiguration::decode(&*wire);
        let hosts = shown.expect("a table").virtual_hosts.into_iter();
        hosts.map(|host| format!("{}: {}", host.name, host.domains.join(" "))).collect()
    }

    fn answered(&mut self) -> Vec<String> {
        self.store.take_answered().iter().map(|key| key.name.to_string()).collect()
    }

    /// Takes a response with the whole state of a type, as the control plane would send it.
    fn take(&mut self, type_url: &TypeUrl, resources: Vec<Any>) -> Applied {
        self.version += 1;
        let response = ReceivedSotw {
            version_info: self.version.to_string(),
            resources: resources
                .into_iter()
                .map(|any| wire::Any { type_url: any.type_url, value: any.value.into() })
                .collect(),
            type_url: type_url.as_str().to_owned(),
            nonce: self.version.to_string(),
        };
        let update = self.client.on_response(Instant::now(), Received::Sotw(response)).expect("an update");
        self.client.ack(&update.receipt);
        let applied = self.discovery.apply(update, &mut self.store, &mut self.sockets);
        self.store.settle();
        applied
    }
}

/// `name: accepted` or `name: why not`, one a line; then what is gone.
fn check(applied: &Applied, expected: Expect) {
    let mut lines: Vec<String> = Vec::new();
    for outcome in &applied.outcomes {
        lines.push(format!("{}: {}", outcome.name, outcome.refused.as_deref().unwrap_or("accepted")));
    }
    lines.extend(applied.removed.iter().map(|name| format!("{name}: removed")));
    expected.assert_eq(&lines.join("\n"));
}

fn cluster(text: &str) -> Any {
    let proto: leno_api::proto::envoy::config::cluster::v3::Cluster =
        leno_api::decode_text(&format!("{{{text}}}"), "cluster").unwrap_or_else(|errors| panic!("{errors}"));
    leno_api::any::pack(&proto)
}

/// A cluster that violates its `validate.rules`.
fn without_timeout(name: &str) -> Any {
    let proto = leno_api::proto::envoy::config::cluster::v3::Cluster {
        name: name.to_owned(),
        connect_timeout: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    leno_api::any::pack(&proto)
}

/// The same message with a field that no API has.
fn with_unknown_field(mut any: Any) -> Any {
    prost::encoding::string::encode(9999, &"what".to_owned(), &mut any.value);
    any
}

fn tcp_listener(name: &str, more: &str) -> Any {
    listener_message(&format!(
        "name: {name}, {}, {more} filter_chains: [{{{}}}]",
        at_port(0),
        tcp_filters("cluster: a")
    ))
}

#[test]
fn each_resource_is_judged_for_itself_and_the_last_good_version_stays() {
    let mut proxy = Proxy::new(UnknownFields::Ignore);
    let good = cluster("name: a, connect_timeout: 1s");
    let applied = proxy.take(
        &TypeUrl::Cluster,
        vec![
            good,
            without_timeout("b"),
            cluster(
                "name: c, type: EDS, eds_cluster_config: {eds_config: {api_config_source: {api_type: GRPC, \
                     grpc_services: [{envoy_grpc: {cluster_name: x}}]}}}",
            ),
        ],
    );
    check(
        &applied,
        expect![[r#"
            a: accepted
            b: connect_timeout: value must be greater than 0s
            c: eds_cluster_config.eds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name: unknown gRPC client cluster 'x'"#]],
    );
    assert!(proxy.store.snapshot().clusters.contains_key("a"));
    // The refused change leaves what serves; what is not there any more goes.
    let applied = proxy.take(&TypeUrl::Cluster, vec![without_timeout("a")]);
    check(&applied, expect!["a: connect_timeout: value must be greater than 0s"]);
    assert_eq!(proxy.store.snapshot().clusters["a"].connect_timeout.as_secs(), 1);
    let applied = proxy.take(&TypeUrl::Cluster, Vec::new());
    check(&applied, expect!["a: removed"]);
    assert!(proxy.store.snapshot().clusters.is_empty());
}

#[test]
fn what_did_not_change_is_not_made_anew() {
    let mut proxy = Proxy::new(UnknownFields::Ignore);
    let resources = vec![cluster("name: a, connect_timeout: 1s")];
    proxy.take(&TypeUrl::Cluster, resources.clone());
    let before = Arc::clone(proxy.store.snapshot());
    let applied = proxy.take(&TypeUrl::Cluster, resources);
    check(&applied, expect!["a: accepted"]);
    assert!(Arc::ptr_eq(&before, proxy.store.snapshot()));
}

#[test]
fn listeners_with_an_address_that_another_has_are_refused() {
    let mut proxy = Proxy::new(UnknownFields::Ignore);
    proxy.take(&TypeUrl::Cluster, Vec::new());
    let at = |name: &str, port: u16| {
        let filters = tcp_filters("cluster: a");
        let address = format!("address: {{socket_address: {{address: 10.9.9.9, port_value: {port}}}}}");
        listener_message(&format!(
            "name: {name}, {address}, bind_to_port: false, filter_chains: [{{{filters}}}]"
        ))
    };
    let applied = proxy.take(&TypeUrl::Listener, vec![at("one", 80), at("two", 80), at("three", 81)]);
    check(
        &applied,
        expect![[r#"
            one: accepted
            two: error adding listener: 'two' has duplicate address '10.9.9.9:80' as existing listener
            three: accepted"#]],
    );
    // The address is free once its owner is gone, or elsewhere.
    let applied = proxy.take(&TypeUrl::Listener, vec![at("two", 80), at("three", 82), at("four", 81)]);
    check(
        &applied,
        expect![[r#"
            two: accepted
            three: accepted
            four: accepted
            one: removed"#]],
    );
    // Any two may ask for a port of the system's choice.
    let applied = proxy.take(&TypeUrl::Listener, vec![tcp_listener("five", ""), tcp_listener("six", "")]);
    check(
        &applied,
        expect![[r#"
            five: accepted
            six: accepted
            four: removed
            three: removed
            two: removed"#]],
    );
}

#[test]
fn unknown_fields_are_refused_counted_or_nothing() {
    let unknown = || vec![with_unknown_field(cluster("name: a, connect_timeout: 1s"))];
    let mut proxy = Proxy::new(UnknownFields::Reject);
    check(
        &proxy.take(&TypeUrl::Cluster, unknown()),
        expect!["a: 9999: unknown field of envoy.config.cluster.v3.Cluster"],
    );
    let count = Arc::new(AtomicU64::new(0));
    let mut proxy = Proxy::new(UnknownFields::Warn(Arc::clone(&count)));
    check(&proxy.take(&TypeUrl::Cluster, unknown()), expect!["a: accepted"]);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let mut proxy = Proxy::new(UnknownFields::Ignore);
    check(&proxy.take(&TypeUrl::Cluster, unknown()), expect!["a: accepted"]);
}

#[test]
fn endpoints_go_to_the_clusters_in_force_and_references_are_followed() {
    let mut proxy = Proxy::new(UnknownFields::Ignore);
    let eds = cluster("name: a, type: EDS, eds_cluster_config: {service_name: s, eds_config: {ads: {}}}");
    proxy.take(&TypeUrl::Cluster, vec![eds]);
    proxy.follow();
    assert_eq!(proxy.asked(), ["EDS s"]);
    let endpoints = |port: u16| {
        let text = format!(
            "{{cluster_name: s, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 10.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
        );
        let proto: leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment =
            leno_api::decode_text(&text, "endpoints").unwrap_or_else(|errors| panic!("{errors}"));
        Any { type_url: TypeUrl::Endpoint.as_str().to_owned(), value: proto.encode_to_vec() }
    };
    let applied = proxy.take(&TypeUrl::Endpoint, vec![endpoints(80)]);
    assert!(applied.endpoints.is_empty(), "the cluster was waiting: the snapshot brings them");
    let applied = proxy.take(&TypeUrl::Endpoint, vec![endpoints(81)]);
    let told: Vec<&[Name]> = applied.endpoints.iter().map(|(users, _)| users.as_slice()).collect();
    assert_eq!(told, [[Name::from("a")].as_slice()]);

    let rds =
        listener_message(&format!("name: l, {}, filter_chains: [{{{}}}]", at_port(0), rds_filters("r")));
    proxy.take(&TypeUrl::Listener, vec![rds]);
    proxy.take(&TypeUrl::Cluster, Vec::new());
    proxy.follow();
    assert_eq!(proxy.asked(), ["RDS r"], "nothing refers to the endpoints any more");
}

#[test]
fn virtual_hosts_go_into_the_tables_that_they_are_for() {
    let mut proxy = Proxy::new(UnknownFields::Ignore);
    proxy.take(&TypeUrl::Cluster, Vec::new());
    let listener = format!("name: l, {}, filter_chains: [{{{}}}]", at_port(0), rds_filters("r"));
    proxy.take(&TypeUrl::Listener, vec![listener_message(&listener)]);
    let table = |more: &str| {
        let text = format!("{{name: r, virtual_hosts: [{{name: own, domains: [own]}}], {more}}}");
        let proto: leno_api::proto::envoy::config::route::v3::RouteConfiguration =
            leno_api::decode_text(&text, "table").unwrap_or_else(|errors| panic!("{errors}"));
        leno_api::any::pack(&proto)
    };
    let with_vhds = "vhds: {config_source: {ads: {}}}";
    check(&proxy.take(&TypeUrl::Route, vec![table(with_vhds)]), expect!["r: accepted"]);
    // The first answer is waited for, whatever is in it.
    proxy.follow();
    assert_eq!(proxy.asked(), ["RDS r", "VHDS r/"]);
    assert!(!proxy.store.is_live() && proxy.store.snapshot().routes.is_empty());
    proxy.take_hosts(&[], &[], &[]);
    assert!(proxy.store.is_live());
    // Each is judged for itself; what is not for a table that is there lies.
    let added: &[(&str, &[&str])] =
        &[("r/a", &["a"]), ("r/b", &["own"]), ("r/c", &["*.c"]), ("q/d", &["d"]), ("e", &["e"])];
    check(
        &proxy.take_hosts(added, &[], &[]),
        expect![[r#"
            r/a: accepted
            r/b: domains[0]: Only unique values for domains are permitted. Duplicate entry of domain own in route r
            r/c: accepted
            q/d: accepted
            e: accepted"#]],
    );
    assert_eq!(proxy.hosts(), ["r/a: a", "r/c: *.c"]);
    // Who waits goes on, even if what came is refused; the last good version stays.
    for host in ["a", "b", "x", "y"] {
        proxy.store.demand_host(&"r".into(), host);
    }
    proxy.follow();
    assert_eq!(proxy.asked(), ["RDS r", "VHDS r/", "VHDS r/a", "VHDS r/b", "VHDS r/x", "VHDS r/y"]);
    assert!(proxy.answered().is_empty());
    let before = Arc::clone(proxy.store.snapshot());
    proxy.take_hosts(&[("r/a", &["own"]), ("r/c", &["*.c"])], &["r/x"], &["r/y", "r/z"]);
    assert_eq!(proxy.answered(), ["r/a", "r/x", "r/y"]);
    assert!(Arc::ptr_eq(&before, proxy.store.snapshot()), "nothing has changed");
    let applied = proxy.take_hosts(&[("r/b", &["b", "a"])], &["r/a"], &[]);
    assert_eq!((applied.tables.len(), applied.tables[0].changed), (1, true));
    assert_eq!(
        (proxy.hosts(), proxy.answered()),
        (vec!["r/b: b a".into(), "r/c: *.c".into()], vec!["r/b".into()])
    );
    // A domain may go from one to another, in any order; if the other is refused, nothing moves.
    check(
        &proxy.take_hosts(&[("r/a", &["a"]), ("r/b", &["b"]), ("r/c", &["*.c", "own"])], &[], &[]),
        expect![[r#"
            r/a: accepted
            r/b: accepted
            r/c: domains[1]: Only unique values for domains are permitted. Duplicate entry of domain own in route r"#]],
    );
    assert_eq!(proxy.hosts(), ["r/a: a", "r/b: b", "r/c: *.c"]);
    check(
        &proxy.take_hosts(&[("r/a", &["b"]), ("r/b", &["a"])], &[], &[]),
        expect![[r#"
        r/a: accepted
        r/b: accepted"#]],
    );
    assert_eq!(proxy.hosts(), ["r/a: b", "r/b: a", "r/c: *.c"]);
    check(
        &proxy.take_hosts(&[("r/a", &["*.c", "new"]), ("r/c", &["own"])], &[], &[]),
        expect![[r#"
            r/a: domains[0]: Only unique values for domains are permitted. Duplicate entry of domain *.c in route r
            r/c: domains[0]: Only unique values for domains are permitted. Duplicate entry of domain own in route r"#]],
    );
    assert_eq!(proxy.hosts(), ["r/a: b", "r/b: a", "r/c: *.c"]);
    proxy.take_hosts(&[("r/b", &["b", "a"])], &["r/a"], &[]);
    // The table changes, and keeps them, also one that has a domain of theirs.
    proxy.take(&TypeUrl::Route, vec![table(&format!("request_headers_to_remove: [x], {with_vhds}"))]);
    assert_eq!(proxy.hosts(), ["r/b: b a", "r/c: *.c"]);
    let mut taken = table(with_vhds);
    let host = leno_api::proto::envoy::config::route::v3::VirtualHost {
        name: "n".into(),
        domains: vec!["b".into()],
        ..Default::default()
    };
    prost::encoding::message::encode(2, &host, &mut taken.value);
    check(&proxy.take(&TypeUrl::Route, vec![taken]), expect!["r: accepted"]);
    assert_eq!(proxy.hosts(), ["r/b: b a", "r/c: *.c"]);
    // Without `vhds` it has none, and nothing is asked for; nor when it is gone.
    proxy.take(&TypeUrl::Route, vec![table("")]);
    proxy.follow();
    assert_eq!((proxy.hosts().len(), proxy.asked()), (0, vec!["RDS r".to_owned()]));
    proxy.take(&TypeUrl::Route, vec![table(with_vhds)]);
    assert!(proxy.store.snapshot().routes.contains_key(&"r".into()), "it was in force: nothing waits");
    proxy.follow();
    assert_eq!(proxy.asked(), ["RDS r", "VHDS r/"]);
    proxy.take(&TypeUrl::Listener, Vec::new());
    proxy.follow();
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}
