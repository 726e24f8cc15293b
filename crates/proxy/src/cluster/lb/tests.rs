//! Seeded simulations of the policies: what share of the load each host gets.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::rng::Rng;
use proptest::prelude::{ProptestConfig, proptest};
use serde_json::{Value, json};

use super::hosts::{Gathering, Hosts};
use super::metadata::{MetadataMatch, NAMESPACE};
use super::settings::{
    Balancing, Fallback, LeastRequest, Localities, OverrideHosts, OverrideSource, PeakEwma, Policy, Selector,
    SelectorFallback, SlowStart, Spread, Subsets,
};
use super::zone::LocalHosts;
use super::{Balancer, Surroundings, Turn, build};
use crate::cluster::stats::ClusterStats;
use crate::cluster::worker_cluster::Host;
use crate::cluster::{EndpointAddress, EndpointConfig, HealthStatus, Locality, PickContext};
use crate::http::headers::HeaderMap;
use crate::telemetry::metadata::DynamicMetadata;
use crate::telemetry::stats::StatsStore;

pub(super) fn stats() -> ClusterStats {
    ClusterStats::new(&StatsStore::default().thread(), "cluster.a.")
}

fn host(index: u8, with: impl FnOnce(&mut EndpointConfig)) -> Rc<Host> {
    let mut config = EndpointConfig::plain(EndpointAddress::Ip(SocketAddr::from(([10, 0, 0, index], 80))));
    with(&mut config);
    Rc::new(Host::new(config))
}

pub(super) fn hosts(weights: &[u32]) -> Vec<Rc<Host>> {
    weights
        .iter()
        .enumerate()
        .map(|(index, weight)| host(index as u8, |config| config.weight = *weight))
        .collect()
}

/// So many healthy hosts in each locality z0, z1, ...
pub(super) fn located(counts: &[u8], local: Option<&Locality>) -> Hosts {
    let mut gathering = Gathering::default();
    let mut next = 0;
    for (index, count) in counts.iter().enumerate() {
        let locality = Locality { zone: format!("z{index}").into(), ..Locality::default() };
        let hosts = (next..next + count).map(|index| host(index, |_| {})).collect();
        next += count;
        gathering.add(&locality, 0, None, hosts);
    }
    gathering.finish(local, 140, false)
}

fn flat(hosts: Vec<Rc<Host>>) -> Hosts {
    let mut gathering = Gathering::default();
    gathering.add(&Locality::default(), 0, None, hosts);
    gathering.finish(None, 140, false)
}

/// A balancer with all that it needs for picks.
struct Bench {
    balancer: Box<dyn Balancer>,
    random: Rng,
    around: Surroundings,
}

impl Bench {
    fn new(balancing: &Balancing, hosts: Hosts) -> Self {
        let around =
            Surroundings { stats: stats(), panic_threshold: 50.0, local: Rc::new(LocalHosts::default()) };
        Self { balancer: build(balancing, hosts, &around, 3), random: Rng::new(7), around }
    }

    fn pick(&mut self, context: &PickContext<'_>) -> Option<Rc<Host>> {
        let Self { balancer, random, around } = self;
        balancer.pick(&mut Turn { context, random, around })
    }

    /// The last byte of the picked host's address.
    fn picked(&mut self, context: &PickContext<'_>) -> Option<u8> {
        match self.pick(context)?.address? {
            SocketAddr::V4(address) => Some(address.ip().octets()[3]),
            SocketAddr::V6(_) => None,
        }
    }

    /// Shares of `rounds` picks, in percent by host.
    fn shares(&mut self, count: usize, rounds: u32) -> Vec<u32> {
        let mut counts: HashMap<u8, u32> = HashMap::new();
        for _ in 0..rounds {
            *counts.entry(self.picked(&PickContext::default()).unwrap()).or_default() += 1;
        }
        let percent = |count: &u32| (count * 100 + rounds / 2) / rounds;
        (0..count).map(|index| counts.get(&(index as u8)).map_or(0, percent)).collect()
    }
}

fn spread(policy: Policy) -> Balancing {
    Balancing::Spread(Spread::plain(policy))
}

fn least_request(with: impl FnOnce(&mut LeastRequest)) -> Balancing {
    let mut settings = LeastRequest::default();
    with(&mut settings);
    spread(Policy::LeastRequest(settings))
}

fn shares(balancing: &Balancing, hosts: &[Rc<Host>], rounds: u32) -> Vec<u32> {
    Bench::new(balancing, flat(hosts.to_vec())).shares(hosts.len(), rounds)
}

fn all_policies() -> [Balancing; 4] {
    let peak = PeakEwma { decay: Duration::from_secs(10), default_rtt: 0.01, penalty: 1e6 };
    [
        Balancing::round_robin(),
        least_request(|_| {}),
        spread(Policy::Random),
        spread(Policy::PeakEwma(Arc::new(peak))),
    ]
}

#[test]
fn an_empty_list_has_no_choice() {
    for balancing in all_policies() {
        assert!(Bench::new(&balancing, flat(Vec::new())).pick(&PickContext::default()).is_none());
    }
}

#[test]
fn equal_weights_get_equal_shares() {
    for balancing in all_policies() {
        let shares = shares(&balancing, &hosts(&[1, 1, 1, 1]), 50_000);
        assert!(shares.iter().all(|share| (24..=26).contains(share)), "{balancing:?} {shares:?}");
    }
}

#[test]
fn round_robin_goes_round() {
    let mut bench = Bench::new(&Balancing::round_robin(), flat(hosts(&[1, 1, 1])));
    let order: Vec<u8> = (0..6).filter_map(|_| bench.picked(&PickContext::default())).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Within one round of all weights every host gets exactly its part.
    #[test]
    fn weights_are_kept_exactly_by_round_robin(weights in proptest::collection::vec(1u32..9, 2..12)) {
        let sum: u32 = weights.iter().sum();
        let mut bench = Bench::new(&Balancing::round_robin(), flat(hosts(&weights)));
        let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
        for _ in 0..sum * 10 {
            *counts.entry(bench.picked(&PickContext::default()).unwrap()).or_default() += 1;
        }
        for (index, weight) in weights.iter().enumerate() {
            let got = counts.get(&(index as u8)).copied().unwrap_or_default();
            assert!(got.abs_diff(weight * 10) <= 1, "{weights:?}: {counts:?}");
        }
    }
}

#[test]
fn random_ignores_weights() {
    assert_eq!(shares(&spread(Policy::Random), &hosts(&[1, 9]), 100_000), [50, 50]);
}

#[test]
fn least_request_avoids_the_busy_host() {
    let hosts = hosts(&[1, 1, 1, 1]);
    hosts[0].active.set(100);
    // The busy one is taken only when both random choices hit it: 1 in 16.
    assert_eq!(shares(&least_request(|_| {}), &hosts, 100_000)[0], 6);
    // Of three: 1 in 64.
    assert!((1..=2).contains(&shares(&least_request(|least| least.choices = 3), &hosts, 100_000)[0]));
    let full = shares(&least_request(|least| least.full_scan = true), &hosts, 100_000);
    assert_eq!(full, [0, 33, 33, 33]);
}

#[test]
fn least_request_scales_weights_by_what_is_under_way() {
    let hosts = hosts(&[1, 2]);
    assert_eq!(shares(&least_request(|_| {}), &hosts, 3000), [33, 67]);
    hosts[1].active.set(3);
    // 1/1 against 2/4; without bias 1 against 2; with twice the bias 1/1 against 2/16.
    assert_eq!(shares(&least_request(|_| {}), &hosts, 3000), [67, 33]);
    assert_eq!(shares(&least_request(|least| least.bias = 0.0), &hosts, 3000), [33, 67]);
    assert_eq!(shares(&least_request(|least| least.bias = 2.0), &hosts, 3000), [89, 11]);
}

#[tokio::test(start_paused = true)]
async fn a_new_host_gets_less_at_first() {
    let slow = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min_weight: 0.1 };
    let policy = Policy::RoundRobin { slow_start: Some(slow.into()) };
    let hosts = hosts(&[1, 1]);
    let now = super::now();
    hosts[0].facts.healthy(now - Duration::from_secs(60), false);
    hosts[1].facts.healthy(now, false);
    assert_eq!(shares(&spread(policy.clone()), &hosts, 1100), [91, 9]);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(shares(&spread(policy.clone()), &hosts, 1500), [67, 33]);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(shares(&spread(policy), &hosts, 1000), [50, 50]);
}

#[test]
fn the_quicker_host_is_preferred() {
    let settings = PeakEwma { decay: Duration::from_secs(10), default_rtt: 0.01, penalty: 1e6 };
    let hosts = hosts(&[1, 1, 1]);
    let now = Instant::now();
    for (host, latency) in hosts.iter().zip([5, 20, 80]) {
        host.facts.answered_after(Duration::from_millis(latency), &settings, now);
    }
    let balancing = spread(Policy::PeakEwma(Arc::new(settings)));
    // Of two random ones the quicker: the first in two of three cases, the last never.
    assert_eq!(shares(&balancing, &hosts, 10_000), [67, 33, 0]);
    hosts[0].active.set(30);
    assert_eq!(shares(&balancing, &hosts, 10_000), [0, 67, 33]);
}

#[test]
fn localities_get_load_by_weight_and_health() {
    let build = |unhealthy: u8| {
        let mut gathering = Gathering::default();
        for (zone, weight, from) in [("a", 1, 0), ("b", 3, 10), ("c", 0, 20)] {
            let locality = Locality { zone: zone.into(), ..Locality::default() };
            let hosts = (from..from + 2u8).map(|index| {
                host(index, |config| {
                    if (10..10 + unhealthy).contains(&index) {
                        config.health = HealthStatus::Unhealthy;
                    }
                })
            });
            gathering.add(&locality, 0, Some(weight).filter(|weight| *weight > 0), hosts.collect());
        }
        gathering.finish(Some(&Locality::default()), 140, false)
    };
    let policy = Policy::RoundRobin { slow_start: None };
    let settings = Spread { policy, localities: Localities::Weighted, fail_on_panic: false };
    let balancing = Balancing::Spread(settings);
    let by_zone = |unhealthy| {
        let shares = Bench::new(&balancing, build(unhealthy)).shares(30, 4000);
        [0, 10, 20].map(|from| shares[from] + shares[from + 1])
    };
    assert_eq!(by_zone(0), [26, 76, 0], "rounded up");
    // Half of b's hosts: 3 * 1.4 * 0.5 = 2.1 against 1.
    assert_eq!(by_zone(1), [32, 68, 0]);
    assert_eq!(by_zone(2), [100, 0, 0]);
}

fn labelled(labels: &[Value]) -> Hosts {
    let host = |(index, labels): (usize, &Value)| {
        host(index as u8, |config| {
            config.metadata = BTreeMap::from([(NAMESPACE.to_owned(), labels.clone())]).into();
        })
    };
    flat(labels.iter().enumerate().map(host).collect())
}

fn selector(keys: &[&str], fallback: Option<SelectorFallback>) -> Selector {
    Selector { keys: keys.iter().map(|key| (*key).to_owned()).collect(), fallback, single_host: false }
}

fn subsets(with: impl FnOnce(&mut Subsets)) -> Balancing {
    let mut subsets = Subsets {
        fallback: Fallback::None,
        default_subset: json!({"default": true}).as_object().unwrap().clone(),
        selectors: vec![selector(&["v"], None), selector(&["stage", "v"], None)],
        allow_redundant_keys: false,
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
        fallback_list: false,
        inner: Balancing::round_robin(),
    };
    with(&mut subsets);
    Balancing::Subset(Arc::new(subsets))
}

/// Which hosts a request with these criteria gets.
fn found(balancing: &Balancing, criteria: &Value) -> Vec<u8> {
    let hosts = [
        json!({"v": "1", "stage": "prod", "default": true}),
        json!({"v": "1", "stage": "dev"}),
        json!({"v": "2", "stage": "prod"}),
        json!({"v": ["3", "4"]}),
        json!({}),
    ];
    let mut bench = Bench::new(balancing, labelled(&hosts));
    let criteria = criteria.as_object().map(MetadataMatch::from_object);
    let context = PickContext { metadata_match: criteria.as_ref(), ..PickContext::default() };
    let mut found: Vec<u8> = (0..20).filter_map(|_| bench.picked(&context)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn subsets_are_found_by_all_their_keys() {
    let none = subsets(|_| {});
    let check =
        |criteria: Value, expected: &[u8]| assert_eq!(found(&none, &criteria), expected, "{criteria}");
    check(json!({"v": "1"}), &[0, 1]);
    check(json!({"v": "1", "stage": "prod"}), &[0]);
    check(json!({"v": ["3", "4"]}), &[3]);
    // No such value, no such keys, more keys, nothing asked for.
    check(json!({"v": "9"}), &[]);
    check(json!({"v": 1}), &[]);
    check(json!({"stage": "prod"}), &[]);
    check(json!({"v": "1", "x": "y"}), &[]);
    check(json!({}), &[]);
    check(Value::Null, &[]);
}

#[test]
fn subsets_have_their_options() {
    let redundant = subsets(|subsets| subsets.allow_redundant_keys = true);
    assert_eq!(found(&redundant, &json!({"v": "2", "x": "y"})), [2]);
    let lists = subsets(|subsets| subsets.list_as_any = true);
    assert_eq!(found(&lists, &json!({"v": "3"})), [3]);
    assert_eq!(found(&lists, &json!({"v": ["3", "4"]})), [0u8; 0]);
    let single = subsets(|subsets| {
        subsets.selectors = vec![Selector { single_host: true, ..selector(&["v"], None) }];
    });
    assert_eq!(found(&single, &json!({"v": "1"})), [0]);
}

#[test]
fn what_is_not_found_falls_back() {
    let check = |fallback, criteria: Value, expected: &[u8]| {
        let balancing = subsets(|subsets| subsets.fallback = fallback);
        assert_eq!(found(&balancing, &criteria), expected, "{fallback:?} {criteria}");
    };
    for criteria in [json!({"v": "9"}), json!({"x": "y"}), Value::Null] {
        check(Fallback::None, criteria.clone(), &[]);
        check(Fallback::Any, criteria.clone(), &[0, 1, 2, 3, 4]);
        check(Fallback::Default, criteria, &[0]);
    }
    let nobody = |panic_mode_any| {
        subsets(|subsets| {
            subsets.fallback = Fallback::Default;
            subsets.default_subset = json!({"no": "body"}).as_object().unwrap().clone();
            subsets.panic_mode_any = panic_mode_any;
        })
    };
    assert_eq!(found(&nobody(false), &Value::Null), [0u8; 0]);
    assert_eq!(found(&nobody(true), &Value::Null), [0, 1, 2, 3, 4]);
}

#[test]
fn a_selector_may_fall_back_otherwise() {
    let check = |fallback: Option<SelectorFallback>, expected: &[u8]| {
        let balancing = subsets(|subsets| {
            subsets.fallback = Fallback::Default;
            subsets.selectors = vec![selector(&["v"], None), selector(&["stage", "v"], fallback.clone())];
        });
        assert_eq!(found(&balancing, &json!({"v": "2", "stage": "dev"})), expected, "{fallback:?}");
    };
    check(None, &[0]);
    check(Some(SelectorFallback::Common(Fallback::None)), &[]);
    check(Some(SelectorFallback::Common(Fallback::Any)), &[0, 1, 2, 3, 4]);
    check(Some(SelectorFallback::Common(Fallback::Default)), &[0]);
    check(Some(SelectorFallback::Keys(["v".to_owned()].into())), &[2]);
}

#[test]
fn criteria_may_bring_others_to_try() {
    let balancing = subsets(|subsets| subsets.fallback_list = true);
    let list = json!({"v": "9", "fallback_list": [{"v": "8"}, {"v": "2"}, {"v": "1"}]});
    assert_eq!(found(&balancing, &list), [2]);
    assert_eq!(found(&balancing, &json!({"v": "1", "fallback_list": []})), [0, 1]);
}

#[test]
fn the_request_may_name_its_hosts() {
    let balancing = Balancing::OverrideHost(Arc::new(OverrideHosts {
        sources: vec![
            OverrideSource::Header("x-hosts".into()),
            OverrideSource::Metadata("lb".to_owned(), vec!["hosts".to_owned(), "list".to_owned()]),
        ],
        selected_key: None,
        inner: Balancing::round_robin(),
    }));
    let mut bench = Bench::new(&balancing, flat(hosts(&[1, 1, 1, 1])));
    let mut headers = HeaderMap::default();
    headers.append(b"x-hosts", b"10.0.0.2:80, 10.9.9.9:80,10.0.0.1:80");
    let mut metadata = DynamicMetadata::new();
    metadata.values_mut("lb").insert("hosts".to_owned(), json!({"list": "10.0.0.3:80"}));
    let mut pick = |earlier_picks| {
        let (headers, metadata) = (Some(&headers), Some(&metadata));
        bench.picked(&PickContext { headers, metadata, earlier_picks, ..PickContext::default() })
    };
    assert_eq!([pick(0), pick(1), pick(2)], [Some(2), Some(1), Some(3)]);
    assert_eq!([pick(3), pick(4)], [Some(3), Some(0)], "the fallback goes round");
}
