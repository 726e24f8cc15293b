//! LEAST_REQUEST: with equal weights the host with the fewest active requests out of
//! `choices` random ones; otherwise by a weight that shrinks with the active requests,
//! `weight / (active + 1)^bias`, as in Envoy.

use std::rc::Rc;

use super::LoadBalancer;
use super::edf::Edf;
use crate::cluster::worker_cluster::Host;

/// Least request over one list of hosts.
#[derive(Debug)]
pub(crate) struct LeastRequest {
    choices: u32,
    bias: f64,
    /// `None`: all weights are equal.
    schedule: Option<Edf>,
}

impl LeastRequest {
    /// For these hosts.
    pub(crate) fn new(hosts: &[Rc<Host>], choices: u32, bias: f64) -> Self {
        let weights = hosts.iter().map(|host| weight(host, bias));
        let schedule = (!super::equal_weights(hosts)).then(|| Edf::new(weights, 0));
        Self { choices: choices.max(2), bias, schedule }
    }
}

/// A host's weight, less for what it is busy with.
fn weight(host: &Host, bias: f64) -> f64 {
    let busy = f64::from(host.active.get()) + 1.0;
    let divisor = if bias == 1.0 { busy } else { busy.powf(bias) };
    f64::from(host.config.weight) / divisor
}

impl LoadBalancer for LeastRequest {
    fn choose(&mut self, hosts: &[Rc<Host>], random: &mut dyn FnMut() -> u64) -> Option<usize> {
        if let Some(schedule) = &mut self.schedule {
            let bias = self.bias;
            return schedule.next(|index| hosts.get(index).map_or(1.0, |host| weight(host, bias)));
        }
        let count = hosts.len() as u64;
        let mut best: Option<(usize, u32)> = None;
        for _ in 0..self.choices {
            let index = (random() % count.max(1)) as usize;
            let active = hosts.get(index)?.active.get();
            if best.is_none_or(|(_, least)| active < least) {
                best = Some((index, active));
            }
        }
        best.map(|(index, _)| index)
    }
}
