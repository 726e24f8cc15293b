//! Load balancing: which host of a cluster gets the next request.
//!
//! First a priority is drawn (`priority`): load spills over to the next one as soon as a
//! priority's healthy share times the overprovisioning factor drops below 100 %. Then the
//! policy chooses among that priority's healthy hosts, or among all of them if too few are
//! healthy (panic). A policy keeps its state per worker and is rebuilt when hosts change.

use std::rc::Rc;

use crate::cluster::Balancing;
use crate::cluster::worker_cluster::Host;

pub(crate) mod edf;
pub(crate) mod least_request;
pub(crate) mod metadata;
pub(crate) mod priority;
pub(crate) mod random;
pub(crate) mod round_robin;

#[cfg(test)]
mod tests;

/// A policy at work on one list of hosts.
pub(crate) trait LoadBalancer {
    /// Chooses a host by index; `random` yields uniformly random numbers. `None`: no host.
    fn choose(&mut self, hosts: &[Rc<Host>], random: &mut dyn FnMut() -> u64) -> Option<usize>;
}

/// A policy for a list of hosts; `start` spreads the workers' first choices.
pub(crate) fn build(balancing: &Balancing, hosts: &[Rc<Host>], start: u64) -> Box<dyn LoadBalancer> {
    match balancing {
        Balancing::RoundRobin | Balancing::ClusterProvided => {
            Box::new(round_robin::RoundRobin::new(hosts, start))
        }
        Balancing::LeastRequest { choices, bias } => {
            Box::new(least_request::LeastRequest::new(hosts, *choices, *bias))
        }
        Balancing::Random => Box::new(random::Random),
    }
}

/// Whether all hosts have the same weight, so that the cheap variants do.
fn equal_weights(hosts: &[Rc<Host>]) -> bool {
    hosts.windows(2).all(|pair| match pair {
        [first, second] => first.config.weight == second.config.weight,
        _ => true,
    })
}
