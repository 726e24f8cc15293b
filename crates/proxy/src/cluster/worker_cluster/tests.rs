//! Which hosts are picked, and what an update keeps.

use std::rc::Rc;

use super::{Host, WorkerCluster};
use crate::cluster::{
    Assignment, EndpointAddress, EndpointConfig, HealthStatus, LocalityEndpoints, PickContext,
};
use crate::fixtures::{assignment, cluster};
use crate::telemetry::stats::StatsStore;

fn worker_cluster(more: &str) -> WorkerCluster {
    let config = cluster(&format!("name: a, connect_timeout: 1s, {more}"));
    WorkerCluster::new(config.into(), &StatsStore::default().thread(), 1, &Default::default())
}

fn healths(statuses: &[HealthStatus]) -> Assignment {
    let endpoint = |(index, health): (usize, &HealthStatus)| {
        let address = EndpointAddress::Ip(([10, 0, 0, index as u8], 80).into());
        EndpointConfig { health: *health, ..EndpointConfig::plain(address) }
    };
    let endpoints = statuses.iter().enumerate().map(endpoint).collect();
    Assignment {
        localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
        overprovisioning_factor: 140,
        ..Assignment::default()
    }
}

/// Which hosts are picked, by their last byte, in order.
fn picked(cluster: &WorkerCluster) -> Vec<u8> {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        if let Some(std::net::IpAddr::V4(ip)) =
            cluster.pick(&PickContext::default()).and_then(|host| host.address).map(|address| address.ip())
        {
            seen.insert(ip.octets()[3]);
        }
    }
    seen.into_iter().collect()
}

#[test]
fn healthy_hosts_are_picked_and_all_of_them_in_panic() {
    use HealthStatus::{Draining, Healthy, Unhealthy};
    let cluster = worker_cluster("common_lb_config: {healthy_panic_threshold: {value: 50}}");
    cluster.update_hosts(&healths(&[Healthy, Healthy, Unhealthy, Draining]));
    assert_eq!(picked(&cluster), [0, 1]);
    assert_eq!(cluster.stats.lb_healthy_panic().value(), 0);
    cluster.update_hosts(&healths(&[Healthy, Unhealthy, Unhealthy, Draining]));
    assert_eq!(picked(&cluster), [0, 1, 2, 3]);
    assert_eq!(cluster.stats.lb_healthy_panic().value(), 200);
}

#[test]
fn without_panic_nobody_is_better_than_somebody_unhealthy() {
    let cluster = worker_cluster("common_lb_config: {healthy_panic_threshold: {value: 0}}");
    cluster.update_hosts(&healths(&[HealthStatus::Unhealthy]));
    assert_eq!(picked(&cluster), [0u8; 0]);
    assert_eq!(cluster.stats.lb_healthy_panic().value(), 0);
}

#[test]
fn a_cluster_without_hosts_panics_in_vain() {
    let cluster = worker_cluster("type: STATIC");
    assert!(cluster.pick(&PickContext::default()).is_none());
    assert_eq!(cluster.stats.lb_healthy_panic().value(), 1);
}

#[test]
fn hosts_keep_their_state_over_updates() {
    let cluster = worker_cluster("type: STATIC");
    cluster.update_hosts(&assignment(&["10.0.0.1:80", "10.0.0.2:80"]));
    let before: Vec<_> = cluster.hosts();
    before.iter().for_each(|host| host.counts.rq_total.set(7));
    let mut changed = (*assignment(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.2:80", "10.0.0.3:80"])).clone();
    changed.localities[0].endpoints[1].weight = 5;
    cluster.update_hosts(&changed);
    let mut after = cluster.hosts();
    after.sort_by_key(|host| host.address);
    let counts: Vec<_> = after.iter().map(|host| host.counts.rq_total.get()).collect();
    assert_eq!(counts, [7, 7, 0], "an address is one host");
    assert!(before.iter().any(|host| Rc::ptr_eq(host, &after[0])), "nothing changed");
    assert!(!before.iter().any(|host| Rc::ptr_eq(host, &after[1])), "its weight changed");
    assert_eq!(after[1].config.weight, 5);
}

#[test]
fn hosts_to_avoid_are_picked_only_if_there_is_no_other() {
    let cluster = worker_cluster("lb_policy: ROUND_ROBIN");
    cluster.update_hosts(&assignment(&["10.0.0.1:80", "10.0.0.2:80"]));
    let rejected = Some("10.0.0.1:80".parse().unwrap());
    let rejects = |host: &Host| host.address == rejected;
    let context = PickContext { rejects: Some(&rejects), attempts: 3, ..PickContext::default() };
    for _ in 0..10 {
        assert_eq!(cluster.pick(&context).unwrap().address, Some("10.0.0.2:80".parse().unwrap()));
    }
    cluster.update_hosts(&assignment(&["10.0.0.1:80"]));
    assert!(cluster.pick(&context).is_some());
}

#[test]
fn original_destinations_are_hosts_while_they_are_used() {
    let cluster = worker_cluster("type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED");
    assert!(cluster.pick(&PickContext::default()).is_none(), "the connection was not redirected");
    let context =
        PickContext { original_dst: Some("10.0.0.1:80".parse().unwrap()), ..PickContext::default() };
    let host = cluster.pick(&context).unwrap();
    assert!(Rc::ptr_eq(&host, &cluster.pick(&context).unwrap()));
    host.active.set(1);
    let start = tokio::time::Instant::now();
    let after = |seconds| start + std::time::Duration::from_secs(seconds);
    cluster.forget_unused_hosts(after(6));
    assert_eq!(cluster.hosts().len(), 1);
    host.active.set(0);
    // `cleanup_interval` has not passed since the last time.
    cluster.forget_unused_hosts(after(10));
    assert_eq!(cluster.hosts().len(), 1);
    cluster.forget_unused_hosts(after(11));
    assert_eq!(cluster.hosts().len(), 0);
}

#[test]
fn dynamic_metadata_may_name_the_original_destination() {
    let cluster = worker_cluster(
        "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {metadata_key: {key: ns, path: [{key: a}, {key: b}]}}",
    );
    let picked = |metadata: &serde_json::Value| {
        let mut said = crate::telemetry::metadata::DynamicMetadata::new();
        *said.values_mut("ns") = metadata["ns"].as_object().cloned().expect("an object");
        let original_dst = Some("10.0.0.1:80".parse().expect("an address"));
        let context = PickContext { original_dst, metadata: Some(&said), ..PickContext::default() };
        cluster.pick(&context).and_then(|host| host.address).expect("a host").to_string()
    };
    assert_eq!(picked(&serde_json::json!({"ns": {"a": {"b": "10.0.0.9:81"}}})), "10.0.0.9:81");
    assert_eq!(picked(&serde_json::json!({"ns": {"a": "10.0.0.9:81"}})), "10.0.0.1:80");
    assert_eq!(cluster.stats.original_dst_host_invalid().value(), 0);
    assert_eq!(picked(&serde_json::json!({"ns": {"a": {"b": "nowhere"}}})), "10.0.0.1:80");
    assert_eq!(cluster.stats.original_dst_host_invalid().value(), 1);
}
