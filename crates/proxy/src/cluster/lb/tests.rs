//! Seeded simulations of the policies: what share of the load each host gets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use leno_base::rng::Rng;

use super::build;
use crate::cluster::worker_cluster::Host;
use crate::cluster::{Balancing, EndpointAddress, EndpointConfig};

fn hosts(weights: &[u32]) -> Vec<Rc<Host>> {
    let host = |(index, weight): (usize, &u32)| {
        let address = SocketAddr::from(([10, 0, 0, index as u8], 80));
        Rc::new(Host::new(EndpointConfig {
            weight: *weight,
            ..EndpointConfig::plain(EndpointAddress::Ip(address))
        }))
    };
    weights.iter().enumerate().map(host).collect()
}

/// Shares of `rounds` choices, in percent by host.
fn shares(balancing: &Balancing, hosts: &[Rc<Host>], rounds: u32, chosen: impl Fn(&Host)) -> Vec<u32> {
    let mut random = Rng::new(7);
    let mut balancer = build(balancing, hosts, 3);
    let mut counts: HashMap<usize, u32> = HashMap::new();
    for _ in 0..rounds {
        let index = balancer.choose(hosts, &mut || random.next_u64()).unwrap();
        chosen(&hosts[index]);
        *counts.entry(index).or_default() += 1;
    }
    let percent = |count: &u32| (count * 100 + rounds / 2) / rounds;
    (0..hosts.len()).map(|index| counts.get(&index).map_or(0, percent)).collect()
}

const LEAST_REQUEST: Balancing = Balancing::LeastRequest { choices: 2, bias: 1.0 };

#[test]
fn an_empty_list_has_no_choice() {
    for balancing in [Balancing::RoundRobin, LEAST_REQUEST, Balancing::Random] {
        assert_eq!(build(&balancing, &[], 1).choose(&[], &mut || 5), None, "{balancing:?}");
    }
}

#[test]
fn equal_weights_get_equal_shares() {
    let hosts = hosts(&[1, 1, 1, 1]);
    for balancing in [Balancing::RoundRobin, LEAST_REQUEST, Balancing::Random] {
        let shares = shares(&balancing, &hosts, 100_000, |_| {});
        assert!(shares.iter().all(|share| (24..=26).contains(share)), "{balancing:?} {shares:?}");
    }
}

#[test]
fn round_robin_goes_round() {
    let hosts = hosts(&[1, 1, 1]);
    let mut balancer = build(&Balancing::RoundRobin, &hosts, 1);
    let order: Vec<usize> = (0..6).filter_map(|_| balancer.choose(&hosts, &mut || 0)).collect();
    assert_eq!(order, [1, 2, 0, 1, 2, 0]);
}

#[test]
fn weights_are_kept_exactly_by_round_robin() {
    let shares = shares(&Balancing::RoundRobin, &hosts(&[1, 3, 6]), 1000, |_| {});
    assert_eq!(shares, [10, 30, 60]);
}

#[test]
fn random_ignores_weights() {
    let shares = shares(&Balancing::Random, &hosts(&[1, 9]), 100_000, |_| {});
    assert_eq!(shares, [50, 50]);
}

#[test]
fn least_request_avoids_the_busy_host() {
    let hosts = hosts(&[1, 1, 1, 1]);
    hosts[0].active.set(100);
    let shares = shares(&LEAST_REQUEST, &hosts, 100_000, |_| {});
    // The busy one is taken only when both random choices hit it: 1 in 16.
    assert_eq!(shares[0], 6);
}

#[test]
fn least_request_scales_weights_by_what_is_under_way() {
    let hosts = hosts(&[1, 2]);
    let idle = shares(&LEAST_REQUEST, &hosts, 3000, |_| {});
    assert_eq!(idle, [33, 67]);
    hosts[1].active.set(3);
    // 1/1 against 2/4.
    let busy = shares(&LEAST_REQUEST, &hosts, 3000, |_| {});
    assert_eq!(busy, [67, 33]);
}
