//! ROUND_ROBIN: one after the other, by weight.

use std::rc::Rc;

use super::LoadBalancer;
use super::edf::Edf;
use crate::cluster::worker_cluster::Host;

/// Round robin over one list of hosts.
#[derive(Debug)]
pub(crate) enum RoundRobin {
    /// All weights are equal: an index that goes round.
    Plain(usize),
    /// By weight.
    Weighted(Edf),
}

impl RoundRobin {
    /// Starts at a place that depends on `start`, so that workers do not all begin with the
    /// first host.
    pub(crate) fn new(hosts: &[Rc<Host>], start: u64) -> Self {
        if super::equal_weights(hosts) {
            return RoundRobin::Plain(start as usize % hosts.len().max(1));
        }
        let weights = hosts.iter().map(|host| f64::from(host.config.weight));
        RoundRobin::Weighted(Edf::new(weights, start % hosts.len().max(1) as u64))
    }
}

impl LoadBalancer for RoundRobin {
    fn choose(&mut self, hosts: &[Rc<Host>], _random: &mut dyn FnMut() -> u64) -> Option<usize> {
        match self {
            RoundRobin::Plain(next) => {
                let index = *next % hosts.len().max(1);
                *next = index + 1;
                (!hosts.is_empty()).then_some(index)
            }
            RoundRobin::Weighted(schedule) => {
                schedule.next(|index| hosts.get(index).map_or(1.0, |host| f64::from(host.config.weight)))
            }
        }
    }
}
