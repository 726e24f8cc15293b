//! The load_aware_locality extension: localities get load by the room that their hosts report
//! (ORCA). As long as this proxy's own locality is not busier than the others by more than a
//! threshold, everything stays there, apart from a small part that keeps reports coming.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::hosts::Hosts;
use super::settings::LoadAware;
use super::{Balancer, Turn, build};
use crate::cluster::worker_cluster::Host;

pub(super) struct LoadAwareBalancer {
    settings: Arc<LoadAware>,
    hosts: Hosts,
    /// One for each locality of the first priority, built when it is used.
    inner: Vec<Option<Box<dyn Balancer>>>,
    smoothed: Option<Vec<f64>>,
    weights: Vec<f64>,
    due: Option<Instant>,
    seed: u64,
}

impl LoadAwareBalancer {
    pub(super) fn new(settings: Arc<LoadAware>, hosts: Hosts, seed: u64) -> Self {
        let localities = hosts.priorities.first().map_or(0, |first| first.localities.len());
        let inner = std::iter::repeat_with(|| None).take(localities).collect();
        Self { settings, hosts, inner, smoothed: None, weights: Vec::new(), due: None, seed }
    }

    fn weigh(&mut self, now: Instant) {
        let Some(first) = self.hosts.priorities.first() else { return };
        let settings = &self.settings;
        let counts: Vec<f64> = first.localities.iter().map(|at| at.hosts.healthy.len() as f64).collect();
        let reported: Vec<Option<f64>> = first
            .localities
            .iter()
            .map(|at| {
                let known = at.hosts.healthy.iter().filter_map(|host| host.facts.utilization(settings, now));
                let (sum, count) = known.fold((0.0, 0.0), |(sum, count), one| (sum + one, count + 1.0));
                (count > 0.0).then(|| sum / count)
            })
            .collect();
        let fresh = 1.0 - (-settings.update_period.as_secs_f64() / settings.smoothing.as_secs_f64()).exp();
        match &mut self.smoothed {
            Some(smoothed) => {
                for (before, now) in smoothed.iter_mut().zip(&reported) {
                    // Where nothing is reported, what was known stays.
                    *before = now.map_or(*before, |now| fresh * now + (1.0 - fresh) * *before);
                }
            }
            None if reported.iter().any(Option::is_some) => {
                self.smoothed = Some(reported.iter().map(|now| now.unwrap_or(0.0)).collect());
            }
            None => {}
        }
        let none = vec![0.0; counts.len()];
        let used = self.smoothed.as_ref().unwrap_or(&none);
        self.weights = weights(&counts, used, first.has_local, settings);
    }
}

/// Weights of localities from their counts of healthy hosts and how much of them is used.
fn weights(counts: &[f64], used: &[f64], has_local: bool, settings: &LoadAware) -> Vec<f64> {
    let room = counts.iter().zip(used).map(|(count, used)| count * (1.0 - used).max(0.0));
    let mut weights: Vec<f64> = room.collect();
    let total: f64 = counts.iter().sum();
    if has_local
        && let ([own, ..], [own_used, others_used @ ..], [_, others @ ..]) = (&mut weights[..], used, counts)
    {
        let remote: f64 = others.iter().sum();
        let busy: f64 = others.iter().zip(others_used).map(|(count, used)| count * used).sum();
        let target = if remote > 0.0 { busy / remote } else { 0.0 };
        if total == 0.0 || (*own > 0.0 && *own_used <= target + settings.variance) {
            weights.fill(0.0);
            if let Some(own) = weights.first_mut() {
                *own = 1.0;
            }
        }
        probe(&mut weights, others, remote, settings.probe);
    }
    if weights.iter().sum::<f64>() == 0.0 {
        // All are full: each gets as much as it has hosts.
        return counts.to_vec();
    }
    weights
}

/// The others get at least a part, by their healthy hosts.
fn probe(weights: &mut [f64], others: &[f64], remote: f64, part: f64) {
    let total: f64 = weights.iter().sum();
    let Some((own, rest)) = weights.split_first_mut() else { return };
    let missing = total * part - rest.iter().sum::<f64>();
    if missing > 0.0 && remote > 0.0 {
        *own = (*own - missing).max(0.0);
        rest.iter_mut().zip(others).for_each(|(weight, count)| *weight += missing * count / remote);
    }
}

impl Balancer for LoadAwareBalancer {
    fn pick(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let now = super::now();
        if self.due.is_none_or(|due| now >= due) {
            self.due = Some(now + self.settings.update_period);
            turn.around.stats.lb_recalculate_zone_structures().inc();
            self.weigh(now);
        }
        let mut point = turn.random.fraction() * self.weights.iter().sum::<f64>();
        let drawn = self.weights.iter().position(|weight| {
            let hit = point < *weight;
            point -= weight;
            hit
        });
        let at = drawn.or_else(|| self.weights.iter().rposition(|weight| *weight > 0.0))?;
        let (settings, hosts, seed) = (&self.settings, &self.hosts, self.seed);
        let inner = self.inner.get_mut(at)?;
        let inner =
            inner.get_or_insert_with(|| build(&settings.inner, hosts.only_locality(at), turn.around, seed));
        inner.pick(turn)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::weights;
    use crate::cluster::lb::settings::{Balancing, LoadAware};

    fn check(counts: &[f64], used: &[f64], has_local: bool) -> Vec<i64> {
        let settings = LoadAware {
            inner: Balancing::round_robin(),
            update_period: Duration::from_secs(1),
            metrics: Vec::new(),
            variance: 0.1,
            smoothing: Duration::from_secs(5),
            probe: 0.1,
            expiration: None,
        };
        weights(counts, used, has_local, &settings)
            .iter()
            .map(|weight| (weight * 1000.0).round() as i64)
            .collect()
    }

    #[test]
    fn load_stays_until_it_is_too_much() {
        assert_eq!(check(&[2.0, 2.0], &[0.5, 0.45], true), [900, 100]);
        assert_eq!(check(&[2.0, 2.0], &[0.8, 0.2], true), [400, 1600]);
        assert_eq!(check(&[1.0, 1.0, 3.0], &[0.0, 0.0, 0.0], true), [900, 25, 75]);
        assert_eq!(check(&[2.0, 2.0], &[0.8, 0.2], false), [400, 1600]);
        assert_eq!(check(&[2.0, 3.0], &[1.2, 1.0], true), [2000, 3000], "all are full");
        assert_eq!(check(&[0.0, 3.0], &[0.0, 0.5], true), [0, 1500]);
    }
}
