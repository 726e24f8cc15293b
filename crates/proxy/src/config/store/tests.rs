//! Warming, as a story of what comes and what is in force after it.

#![allow(clippy::needless_pass_by_value, reason = "expectations are written in place")]

use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use leno_base::Name;

use super::{Reference, Store};
use crate::cluster::Discovery;
use crate::config::lower::Lower;
use crate::fixtures::{assignment, at_port, cluster, listener, rds_filters, static_cluster, tcp_filters};
use crate::http::route::RouteTable;
use crate::snapshot::Snapshot;

const EDS: &str =
    "type: EDS, eds_cluster_config: {service_name: s, eds_config: {ads: {}, initial_fetch_timeout: 7s}}";
const PLAIN: &str = "type: STATIC";

fn dns(host: &str) -> String {
    format!(
        "type: STRICT_DNS, load_assignment: {{cluster_name: d, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: {host}, port_value: 80}}}}}}}}]}}]}}"
    )
}

/// A cluster `name` whose versions are told apart by their connect timeout.
fn version(name: &str, seconds: u32, kind: &str) -> crate::cluster::Cluster {
    cluster(&format!("name: {name}, connect_timeout: {seconds}s, {kind}"))
}

fn rds_listener(name: &str, prefix: &str, routes: &str) -> Arc<crate::listener::Listener> {
    let filters = rds_filters(routes);
    listener(
        &format!("name: {name}, stat_prefix: '{prefix}', {}, filter_chains: [{{{filters}}}]", at_port(0)),
        None,
    )
}

fn tcp_listener(name: &str, prefix: &str) -> Arc<crate::listener::Listener> {
    let filters = tcp_filters("cluster: a");
    listener(
        &format!("name: {name}, stat_prefix: '{prefix}', {}, filter_chains: [{{{filters}}}]", at_port(0)),
        None,
    )
}

fn table() -> Arc<RouteTable> {
    let proto: leno_api::proto::envoy::config::route::v3::RouteConfiguration =
        leno_api::decode_text("name: r", "routes").unwrap();
    let source = leno_api::any::pack(&proto);
    Arc::new(Lower::resource(|at| RouteTable::lower(&source, None, false, at)).unwrap())
}

fn show(snapshot: &Snapshot) -> String {
    let mut lines = Vec::new();
    for (name, cluster) in snapshot.clusters.iter() {
        let hosts = snapshot.endpoints.get(name).map(|endpoints| {
            let endpoints = endpoints.localities.iter().flat_map(|locality| &locality.endpoints);
            endpoints.map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>().join(" ")
        });
        let hosts = hosts.unwrap_or_else(|| "nothing".to_owned());
        lines.push(format!("cluster {name}/{}: {hosts}", cluster.connect_timeout.as_secs()));
    }
    lines.extend(
        snapshot.listeners.iter().map(|(name, listener)| format!("listener {name}/{}", listener.stat_prefix)),
    );
    lines.extend(snapshot.routes.keys().map(|key| format!("routes {}", key.name)));
    lines.sort();
    lines.join("\n")
}

/// Settles, and checks the new snapshot (`none`: there is none).
fn check(store: &mut Store, expected: Expect) {
    let settled = store.settle();
    assert!(store.is_settled());
    let shown = settled.map_or_else(|| "none".to_owned(), |snapshot| show(&snapshot));
    expected.assert_eq(&shown);
}

fn settings(store: &Store, name: &str) -> Arc<crate::cluster::DnsDiscovery> {
    match &store.dns_cluster(name).expect("a DNS cluster").discovery {
        Discovery::StrictDns(settings) => Arc::clone(settings),
        other => panic!("{other:?}"),
    }
}

/// What is referred to, in order.
fn referred(store: &Store) -> Vec<String> {
    let all = store.references().map(|of| format!("{} {}", of.type_url.short(), of.key.name));
    all.collect()
}

fn timeout(store: &Store, reference: &Reference) -> Option<Duration> {
    store.wants(reference).next().expect("somebody wants it").timeout
}

#[test]
fn a_cluster_waits_for_its_endpoints() {
    let mut store = Store::new(false, false);
    assert!(store.put_cluster(version("a", 1, EDS)));
    check(&mut store, expect!["none"]);
    assert_eq!(referred(&store), ["EDS s"]);
    assert_eq!(timeout(&store, &Reference::endpoints(&"s".into())), Some(Duration::from_secs(7)));
    assert_eq!(store.warming_clusters().count(), 1);
    assert!(!store.is_live());
    assert!(store.put_assignment("s".into(), assignment(&["10.0.0.1:80"])).is_empty());
    check(&mut store, expect!["cluster a/1: 10.0.0.1:80"]);
    assert!(store.is_live());
    check(&mut store, expect!["none"]);
}

#[test]
fn a_changed_cluster_serves_when_it_is_warm_and_its_predecessor_until_then() {
    let other = EDS.replace("service_name: s", "service_name: other");
    let mut store = Store::new(false, false);
    store.put_cluster(version("a", 1, EDS));
    store.put_assignment("s".into(), assignment(&["10.0.0.1:80"]));
    check(&mut store, expect!["cluster a/1: 10.0.0.1:80"]);
    assert!(store.put_cluster(version("a", 2, &other)));
    assert!(!store.put_cluster(version("a", 2, &other)), "it is what we have");
    check(&mut store, expect!["none"]);
    // The predecessor's endpoints still reach it.
    assert_eq!(store.put_assignment("s".into(), assignment(&["10.0.0.2:80"])), ["a".into()] as [Name; 1]);
    assert!(store.is_settled(), "nobody but the workers has to know");
    expect!["cluster a/1: 10.0.0.2:80"].assert_eq(&show(store.snapshot()));
    assert_eq!(referred(&store), ["EDS other", "EDS s"]);
    store.put_assignment("other".into(), assignment(&["10.0.0.3:80"]));
    check(&mut store, expect!["cluster a/2: 10.0.0.3:80"]);
    assert_eq!(referred(&store), ["EDS other"]);
    assert!(store.is_live());
}

#[test]
fn a_cluster_that_goes_back_to_what_is_in_force_warms_no_more() {
    let other = EDS.replace("service_name: s", "service_name: other");
    let mut store = Store::new(false, false);
    store.put_cluster(version("a", 1, EDS));
    store.put_assignment("s".into(), assignment(&["10.0.0.1:80"]));
    store.settle();
    let before = Arc::clone(&store.snapshot().clusters["a"]);
    store.put_cluster(version("a", 2, &other));
    assert!(store.put_cluster(version("a", 1, EDS)));
    check(&mut store, expect!["none"]);
    assert_eq!(store.warming_clusters().count(), 0);
    assert!(Arc::ptr_eq(&before, &store.snapshot().clusters["a"]), "connections stay");
}

#[test]
fn endpoints_that_do_not_come_hold_up_nothing_for_ever() {
    let mut store = Store::new(false, false);
    store.put_cluster(version("a", 1, EDS));
    store.settle();
    store.expire_endpoints("s".into());
    check(&mut store, expect!["cluster a/1: nothing"]);
    // They come at last.
    assert_eq!(store.put_assignment("s".into(), assignment(&["10.0.0.1:80"])), ["a".into()] as [Name; 1]);
    expect!["cluster a/1: 10.0.0.1:80"].assert_eq(&show(store.snapshot()));
}

#[test]
fn the_short_cut_for_endpoints_keeps_the_snapshot_true() {
    let mut store = Store::new(false, false);
    store.put_cluster(version("a", 1, EDS));
    store.put_cluster(version("b", 1, EDS));
    store.put_cluster(version("c", 1, PLAIN));
    store.put_assignment("s".into(), assignment(&["10.0.0.1:80"]));
    let adopted = store.settle().expect("all are warm");
    let users = store.put_assignment("s".into(), assignment(&["10.0.0.2:80"]));
    assert_eq!(users, ["a".into(), "b".into()] as [Name; 2]);
    assert!(store.put_assignment("s".into(), assignment(&["10.0.0.2:80"])).is_empty(), "nothing new");
    expect![[r#"
        cluster a/1: 10.0.0.1:80
        cluster b/1: 10.0.0.1:80
        cluster c/1: "#]]
    .assert_eq(&show(&adopted));
    // What comes next does not bring the old ones back.
    store.put_cluster(version("c", 2, PLAIN));
    check(
        &mut store,
        expect![[r#"
            cluster a/1: 10.0.0.2:80
            cluster b/1: 10.0.0.2:80
            cluster c/2: "#]],
    );
}

#[test]
fn dns_clusters_wait_for_the_first_answer_to_their_own_names() {
    let mut store = Store::new(false, false);
    store.put_cluster(version("d", 1, &dns("one.test")));
    check(&mut store, expect!["none"]);
    let first = settings(&store, "d");
    assert!(!store.put_resolved(&"d".into(), &first, &assignment(&["10.0.0.1:80"])), "nobody has it yet");
    check(&mut store, expect!["cluster d/1: 10.0.0.1:80"]);
    assert!(store.put_resolved(&"d".into(), &first, &assignment(&["10.0.0.2:80"])));
    assert!(store.is_settled());

    // Another name: the old answer is not for it, and not lost while it is looked up.
    store.put_cluster(version("d", 2, &dns("two.test")));
    store.put_cluster(version("e", 1, PLAIN));
    check(
        &mut store,
        expect![[r#"
            cluster d/1: 10.0.0.2:80
            cluster e/1: "#]],
    );
    let second = settings(&store, "d");
    assert!(
        store.put_resolved(&"d".into(), &first, &assignment(&["10.0.0.3:80"])),
        "late, but for what serves"
    );
    assert!(!store.put_resolved(&"d".into(), &second, &assignment(&["10.0.0.4:80"])));
    check(
        &mut store,
        expect![[r#"
            cluster d/2: 10.0.0.4:80
            cluster e/1: "#]],
    );
    assert!(
        !store.put_resolved(&"d".into(), &first, &assignment(&["10.0.0.5:80"])),
        "nobody wants it any more"
    );
    assert!(!store.put_resolved(&"x".into(), &first, &assignment(&["10.0.0.5:80"])), "no such cluster");

    // The same names: the answer is still good.
    store.put_cluster(version("d", 3, &dns("two.test")));
    check(
        &mut store,
        expect![[r#"
            cluster d/3: 10.0.0.4:80
            cluster e/1: "#]],
    );
}

#[test]
fn listeners_wait_for_the_first_clusters_and_for_their_routes() {
    let mut store = Store::new(true, true);
    store.put_cluster(static_cluster("name: xds, connect_timeout: 1s"));
    store.put_listener(tcp_listener("t", "1"));
    store.put_listener(rds_listener("l", "1", "r"));
    check(&mut store, expect!["cluster xds/1: "]);
    assert!(!store.is_live());
    store.put_cluster(version("a", 1, EDS));
    store.clusters_came();
    check(&mut store, expect!["none"]);
    store.put_assignment("s".into(), assignment(&[]));
    check(
        &mut store,
        expect![[r#"
            cluster a/1: 
            cluster xds/1: 
            listener t/1"#]],
    );
    store.listeners_came();
    assert_eq!(referred(&store), ["EDS s", "RDS r"]);
    assert_eq!(timeout(&store, &Reference::routes(&"r".into())), Some(Duration::from_secs(3)));
    expect![[r#"
        [("init manager Listener-init-target l", ["target RdsRouteConfigSubscription init r"])]"#]]
    .assert_eq(&format!("{:?}", store.unready()));
    check(&mut store, expect!["none"]);
    assert!(!store.is_live());
    store.put_routes("r".into(), table());
    check(
        &mut store,
        expect![[r#"
            cluster a/1: 
            cluster xds/1: 
            listener l/1
            listener t/1
            routes r"#]],
    );
    assert!(store.is_live());

    // Once it lives it goes on to, whatever warms: readiness must not flap.
    store.put_listener(rds_listener("l", "2", "q"));
    store.put_cluster(version("b", 1, &EDS.replace("service_name: s", "service_name: q")));
    check(&mut store, expect!["none"]);
    assert!(store.is_live());
    assert_eq!(store.warming_listeners().count(), 1);
    store.expire_routes("q".into());
    check(
        &mut store,
        expect![[r#"
            cluster a/1: 
            cluster xds/1: 
            listener l/2
            listener t/1"#]],
    );
    assert_eq!(referred(&store), ["EDS q", "EDS s", "RDS q"]);
    assert!(store.routes(&"r".into()).is_none(), "nothing refers to it");
}

#[test]
fn without_clusters_by_xds_listeners_start_at_once() {
    let mut store = Store::new(false, false);
    store.put_listener(tcp_listener("t", "1"));
    check(&mut store, expect!["listener t/1"]);
    assert!(store.is_live());
}

#[test]
fn an_empty_configuration_is_live() {
    let mut store = Store::new(false, false);
    check(&mut store, expect!["none"]);
    assert!(store.is_live());
}

#[test]
fn what_is_removed_is_gone_with_what_only_it_referred_to() {
    let mut store = Store::new(false, false);
    store.put_cluster(version("a", 1, EDS));
    store.put_cluster(version("d", 1, &dns("one.test")));
    let names = settings(&store, "d");
    store.put_resolved(&"d".into(), &names, &assignment(&["10.0.0.1:80"]));
    store.put_assignment("s".into(), assignment(&["10.0.0.1:80"]));
    store.put_listener(rds_listener("l", "1", "r"));
    store.put_routes("r".into(), table());
    store.settle();
    assert!(store.remove_cluster("a") && store.remove_cluster("d") && store.remove_listener("l"));
    assert!(!store.remove_cluster("a") && !store.remove_listener("l"), "they are gone");
    check(&mut store, expect![""]);
    assert!(store.dns_cluster("d").is_none() && referred(&store).is_empty());
    assert!(store.assignments.is_empty() && store.resolved.is_empty() && store.routes.is_empty());
    // One that only warms leaves no trace.
    store.put_cluster(version("a", 1, EDS));
    check(&mut store, expect!["none"]);
    store.remove_cluster("a");
    check(&mut store, expect!["none"]);
}

#[test]
fn what_the_bootstrap_has_is_not_changed_by_xds() {
    let mut store = Store::new(true, false);
    store.put_cluster(static_cluster("name: a, connect_timeout: 1s"));
    store.settle();
    assert!(!store.put_cluster(version("a", 2, PLAIN)));
    assert!(!store.remove_cluster("a"));
    check(&mut store, expect!["none"]);
    expect!["cluster a/1: "].assert_eq(&show(store.snapshot()));
}

/// How many clusters are looked at when, among so many, endpoints of one change, it is changed
/// itself, its endpoints come, and one goes; with what is asked of discovery after each.
fn visits(clusters: usize) -> Vec<usize> {
    let kind = |number: usize| EDS.replace("service_name: s", &format!("service_name: s{number}"));
    let mut store = Store::new(false, false);
    for number in 0..clusters {
        store.put_cluster(version(&format!("c{number}"), 1, &kind(number)));
        let moved = store.put_assignment(format!("s{number}").as_str().into(), assignment(&[]));
        assert!(moved.is_empty());
    }
    store.put_listener(tcp_listener("t", "1"));
    assert_eq!(store.settle().expect("all are warm").clusters.len(), clusters);
    store.take_moved();
    let mut visits = Vec::new();
    let mut step = |change: &dyn Fn(&mut Store)| {
        let before = store.visits();
        change(&mut store);
        for name in store.news() {
            store.checked(&name);
            store.dns_cluster(&name);
        }
        store.settle();
        let moved = store.take_moved();
        let wants = moved.iter().flat_map(|reference| store.wants(reference)).count();
        assert!(wants <= 3 && store.count_warming().0 <= 1);
        visits.push(store.visits() - before);
    };
    step(&|store| {
        assert_eq!(store.put_assignment("s5".into(), assignment(&["10.0.0.1:80"])).len(), 1);
    });
    step(&|store| assert!(store.put_cluster(version("c5", 2, &kind(99_999)))));
    step(&|store| assert!(store.put_assignment("s99999".into(), assignment(&["10.0.0.2:80"])).is_empty()));
    step(&|store| store.expire_secret("x".into()));
    step(&|store| assert!(store.remove_cluster("c7")));
    visits
}

#[test]
fn an_update_costs_what_it_changes_however_many_clusters_there_are() {
    let few = visits(10);
    assert_eq!(few, visits(10_000));
    assert!(few.iter().all(|visits| *visits < 20), "{few:?}");
}
