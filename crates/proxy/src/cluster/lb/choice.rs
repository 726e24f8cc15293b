//! A policy's choice in one list of hosts: ROUND_ROBIN, LEAST_REQUEST, RANDOM, client-side
//! weights, peak-EWMA.
//!
//! Where all weights are equal and no host starts slowly, the cheap variants do: an index that
//! goes round, the least busy of some random hosts. Otherwise an earliest-deadline schedule
//! hands hosts out by weight; for LEAST_REQUEST the weight shrinks with what the host is busy
//! with, `weight / (active + 1)^bias`, as in Envoy.

use std::rc::Rc;
use std::time::Instant;

use leno_base::rng::Rng;

use super::edf::Edf;
use super::hosts::HostList;
use super::settings::{LeastRequest, PeakEwma, Policy};
use crate::cluster::worker_cluster::Host;

/// A list of hosts with the policy's state for it.
pub(super) struct Group {
    pub(super) hosts: HostList,
    schedule: Schedule,
}

enum Schedule {
    /// Nothing was chosen yet.
    Unused,
    /// Weights do not matter: the next index of round robin.
    Even(usize),
    /// By weight.
    Weighted(Edf),
}

impl Group {
    pub(super) fn new(hosts: HostList) -> Self {
        Self { hosts, schedule: Schedule::Unused }
    }

    /// Weights have changed.
    pub(super) fn reschedule(&mut self) {
        self.schedule = Schedule::Unused;
    }

    /// Chooses a host; `None`: there is none.
    pub(super) fn choose(&mut self, policy: &Policy, seed: u64, random: &mut Rng) -> Option<Rc<Host>> {
        let hosts = &self.hosts;
        if hosts.len() <= 1 {
            return hosts.first().cloned();
        }
        let index = match (policy, &mut self.schedule) {
            (Policy::Random, _) => random.index(hosts.len())?,
            (Policy::PeakEwma(settings), _) => cheaper_of_two(hosts, settings, random)?,
            (_, Schedule::Unused) => {
                self.schedule = schedule(policy, hosts, seed);
                return self.choose(policy, seed, random);
            }
            (Policy::LeastRequest(settings), Schedule::Even(_)) => least_busy(hosts, settings, random)?,
            (_, Schedule::Even(next)) => {
                let index = if *next < hosts.len() { *next } else { 0 };
                *next = index + 1;
                index
            }
            (_, Schedule::Weighted(edf)) => {
                edf.next(|index| hosts.get(index).map_or(1.0, |host| weight(policy, host, None)))?
            }
        };
        hosts.get(index).cloned()
    }
}

fn schedule(policy: &Policy, hosts: &[Rc<Host>], seed: u64) -> Schedule {
    let now = policy.slow_start().map(|_| super::now());
    let starting = |host: &Host| match (policy.slow_start(), now) {
        (Some(slow), Some(now)) => host.facts.is_starting(slow, now),
        _ => false,
    };
    let base = |host: &Host| base_weight(policy, host);
    let equal = hosts.windows(2).all(|pair| match pair {
        [first, second] => base(first) == base(second),
        _ => true,
    });
    let start = seed % hosts.len().max(1) as u64;
    if equal && !hosts.iter().any(|host| starting(host)) {
        return Schedule::Even(start as usize);
    }
    Schedule::Weighted(Edf::new(hosts.iter().map(|host| weight(policy, host, now)), start))
}

fn base_weight(policy: &Policy, host: &Host) -> u32 {
    match policy {
        // Before the first reports all are alike.
        Policy::ClientWeighted(_) => host.facts.client_weight.get().max(1),
        _ => host.config.weight,
    }
}

/// A host's weight now.
fn weight(policy: &Policy, host: &Host, now: Option<Instant>) -> f64 {
    let mut weight = f64::from(base_weight(policy, host));
    if let Policy::LeastRequest(settings) = policy {
        let busy = f64::from(host.active.get()) + 1.0;
        weight /= if settings.bias == 1.0 { busy } else { busy.powf(settings.bias) };
    }
    match policy.slow_start() {
        Some(slow) => weight * host.facts.slow_start_factor(slow, now.unwrap_or_else(super::now)),
        None => weight,
    }
}

/// The host with the fewest requests under way, of some random ones or of all.
fn least_busy(hosts: &[Rc<Host>], settings: &LeastRequest, random: &mut Rng) -> Option<usize> {
    if settings.full_scan {
        let mut best: Option<(usize, u32)> = None;
        let mut tied = 0;
        for (index, host) in hosts.iter().enumerate() {
            let active = host.active.get();
            match best {
                Some((_, least)) if active > least => {}
                Some((_, least)) if active == least => {
                    // Each of those that are alike is taken with the same probability.
                    tied += 1;
                    if random.below(tied) == 0 {
                        best = Some((index, active));
                    }
                }
                _ => {
                    best = Some((index, active));
                    tied = 1;
                }
            }
        }
        return best.map(|(index, _)| index);
    }
    let mut best: Option<(usize, u32)> = None;
    for _ in 0..settings.choices {
        let index = random.index(hosts.len())?;
        let active = hosts.get(index)?.active.get();
        if best.is_none_or(|(_, least)| active < least) {
            best = Some((index, active));
        }
    }
    best.map(|(index, _)| index)
}

/// The one of two different random hosts that is expected to answer sooner.
fn cheaper_of_two(hosts: &[Rc<Host>], settings: &PeakEwma, random: &mut Rng) -> Option<usize> {
    let first = random.index(hosts.len())?;
    let mut second = random.index(hosts.len() - 1)?;
    if second >= first {
        second += 1;
    }
    let cost = |index: usize| hosts.get(index).map(|host| host.facts.cost(settings, host.active.get()));
    Some(if cost(second)? < cost(first)? { second } else { first })
}
