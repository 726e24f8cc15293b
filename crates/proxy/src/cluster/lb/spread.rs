//! The ordinary balancer: a priority by its share, a locality where localities matter, then a
//! host by the policy.

use std::rc::Rc;
use std::time::Instant;

use super::choice::Group;
use super::edf::Edf;
use super::hosts::{Hosts, LocalityHosts, PriorityHosts};
use super::priority::{self, Census, Share};
use super::settings::{ClientWeighted, Localities, Policy, Spread};
use super::zone::{Routing, Where};
use super::{Balancer, Surroundings, Turn};
use crate::cluster::worker_cluster::Host;

pub(super) struct SpreadBalancer {
    settings: Spread,
    shares: Vec<Share>,
    census: Vec<Census>,
    priorities: Vec<Priority>,
    /// With zone-aware routing: that of the first priority.
    routing: Option<Routing>,
    /// With weights from reports: when they are computed next.
    weights_due: Option<Instant>,
    seed: u64,
}

struct Priority {
    all: Group,
    healthy: Group,
    degraded: Group,
    /// Healthy and degraded hosts of each locality.
    localities: Vec<[Group; 2]>,
    /// Which locality is next for healthy and for degraded hosts, by weight.
    turns: [Option<Edf>; 2],
    /// Kept for `routing`.
    hosts: Option<PriorityHosts>,
}

impl SpreadBalancer {
    pub(super) fn new(settings: Spread, hosts: Hosts, around: &Surroundings, seed: u64) -> Self {
        let census = hosts.census();
        let overprovisioning = hosts.overprovisioning;
        let shares = priority::shares(&census, around.panic_threshold);
        let priorities =
            hosts.priorities.into_iter().map(|hosts| Priority::new(&settings, hosts, overprovisioning, seed));
        let priorities: Vec<Priority> = priorities.collect();
        let mut balancer =
            Self { settings, shares, census, priorities, routing: None, weights_due: None, seed };
        balancer.route(around);
        balancer
    }

    fn route(&mut self, around: &Surroundings) {
        if let Localities::ZoneAware(zone) = &self.settings.localities
            && let Some(hosts) = self.priorities.first().and_then(|first| first.hosts.as_ref())
        {
            self.routing = Some(Routing::new(zone, hosts, &around.local, &around.stats));
        }
    }

    fn pick_once(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let drawn = turn.context.drawn.filter(|drawn| drawn.priority < self.priorities.len());
        let (index, degraded) = match self.shares.as_slice() {
            _ if let Some(drawn) = drawn => (drawn.priority, drawn.degraded),
            [only] if only.healthy == 100 => (0, false),
            shares if turn.context.excluded_priorities.is_empty() => {
                priority::draw(shares, turn.random.below(100) as u32)?
            }
            shares => {
                let excluded = turn.context.excluded_priorities;
                let shares = priority::shares_without(excluded, &self.census, shares);
                priority::draw(&shares, turn.random.below(100) as u32)?
            }
        };
        let policy = &self.settings.policy;
        let seed = self.seed;
        let priority = self.priorities.get_mut(index)?;
        if self.shares.get(index).is_some_and(|share| share.panic) {
            turn.around.stats.lb_healthy_panic().inc();
            if self.settings.fail_on_panic {
                return None;
            }
            return priority.all.choose(policy, seed, turn.random);
        }
        match (&self.settings.localities, &self.routing) {
            (Localities::Weighted, _) => {
                let health = usize::from(degraded);
                let at = priority.turns.get_mut(health).and_then(Option::as_mut).and_then(Edf::next_fixed);
                if let Some(at) = at {
                    let group = priority.localities.get_mut(at)?.get_mut(health)?;
                    return group.choose(policy, seed, turn.random);
                }
            }
            (Localities::ZoneAware(zone), Some(routing)) if index == 0 => {
                let around = turn.around;
                let fail = self.settings.fail_on_panic;
                let threshold = around.panic_threshold;
                match routing.draw(zone, &around.local, threshold, fail, turn.random, &around.stats) {
                    Where::Anywhere => {}
                    Where::Nowhere => return None,
                    Where::Locality(at) => {
                        let group = priority.localities.get_mut(at)?.get_mut(usize::from(degraded))?;
                        return group.choose(policy, seed, turn.random);
                    }
                }
            }
            _ => {}
        }
        let group = if degraded { &mut priority.degraded } else { &mut priority.healthy };
        group.choose(policy, seed, turn.random)
    }

    /// Weights of all hosts from what they report: the median where nothing is known.
    fn update_weights(&mut self, settings: &ClientWeighted, now: Instant) {
        for priority in &mut self.priorities {
            let hosts = &priority.all.hosts;
            let reported: Vec<Option<u32>> =
                hosts.iter().map(|host| host.facts.reported_weight(settings, now)).collect();
            let mut known: Vec<u32> = reported.iter().flatten().copied().collect();
            let middle = known.len() / 2;
            let median = if known.is_empty() { 1 } else { *known.select_nth_unstable(middle).1 };
            let mut changed = false;
            for (host, weight) in hosts.iter().zip(reported) {
                let weight = weight.unwrap_or(median);
                changed |= host.facts.client_weight.replace(weight) != weight;
            }
            if changed {
                let Priority { all, healthy, degraded, localities, .. } = priority;
                let groups = [all, healthy, degraded].into_iter().chain(localities.iter_mut().flatten());
                groups.for_each(Group::reschedule);
            }
        }
    }
}

impl Priority {
    fn new(settings: &Spread, hosts: PriorityHosts, overprovisioning: u32, seed: u64) -> Self {
        let localities = hosts
            .localities
            .iter()
            .map(|at| [Group::new(at.hosts.healthy.clone()), Group::new(at.hosts.degraded.clone())]);
        let turns = if settings.localities == Localities::Weighted {
            let healthy = |at: &LocalityHosts| at.hosts.healthy.len();
            let degraded = |at: &LocalityHosts| at.hosts.degraded.len();
            [
                turns(&hosts.localities, healthy, overprovisioning, seed),
                turns(&hosts.localities, degraded, overprovisioning, seed),
            ]
        } else {
            [None, None]
        };
        Self {
            all: Group::new(hosts.hosts.all.clone()),
            healthy: Group::new(hosts.hosts.healthy.clone()),
            degraded: Group::new(hosts.hosts.degraded.clone()),
            localities: localities.collect(),
            turns,
            hosts: matches!(settings.localities, Localities::ZoneAware(_)).then_some(hosts),
        }
    }
}

/// A schedule of localities by effective weight: less where too few hosts are available.
/// `None`: no locality has any, so that localities play no part.
fn turns(
    localities: &[LocalityHosts],
    available: impl Fn(&LocalityHosts) -> usize,
    overprovisioning: u32,
    seed: u64,
) -> Option<Edf> {
    let weights: Vec<f64> = localities
        .iter()
        .map(|at| {
            let counted = at.hosts.all.len() - at.hosts.excluded as usize;
            if counted == 0 {
                return 0.0;
            }
            let part = available(at) as f64 / counted as f64;
            f64::from(at.weight) * (f64::from(overprovisioning) / 100.0 * part).min(1.0)
        })
        .collect();
    weights.iter().any(|weight| *weight > 0.0).then(|| Edf::fixed(&weights, seed % localities.len() as u64))
}

impl Balancer for SpreadBalancer {
    fn pick(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        if self.routing.as_ref().is_some_and(|routing| routing.is_outdated(&turn.around.local)) {
            self.route(turn.around);
        }
        if let Policy::ClientWeighted(settings) = &self.settings.policy {
            let now = super::now();
            if self.weights_due.is_none_or(|due| now >= due) {
                let settings = settings.clone();
                self.weights_due = Some(now + settings.update_period);
                self.update_weights(&settings, now);
            }
        }
        turn.unless_rejected(|turn, _| self.pick_once(turn))
    }
}
