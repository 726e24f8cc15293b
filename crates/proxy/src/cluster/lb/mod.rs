//! Load balancing: which host of a cluster gets the next request.
//!
//! A `Balancer` is built of `Balancing` (the settings) and `Hosts` when a worker first picks of a
//! cluster, and anew when hosts change; it is the worker's alone. Most are a `spread`: a priority
//! is drawn by its share (`priority`), then a locality where they matter (weights, `zone`), then
//! the policy chooses in a list (`choice`). Hashing balancers look the request up in a table
//! that workers share (`hashing`). The others narrow down the hosts, and leave the rest to a
//! balancer inside: `subset`, `override_host`, `load_aware`.
//!
//! What a pick costs, without allocation: plain round robin a few ns, two random numbers more
//! with least request; a weighted schedule costs two operations on a heap, a ring a binary
//! search, Maglev one look-up. Full scans, and hashing with bounded load where the host is too
//! busy, grow with the number of hosts.

use std::rc::Rc;
use std::time::Instant;

use leno_base::rng::Rng;

use crate::cluster::PickContext;
use crate::cluster::stats::ClusterStats;
use crate::cluster::worker_cluster::Host;
use hosts::Hosts;
pub(crate) use override_host::address;
use settings::Balancing;
use zone::LocalHosts;

mod choice;
pub(crate) mod edf;
pub(crate) mod facts;
pub(crate) mod hashing;
pub(crate) mod hosts;
mod load_aware;
pub(crate) mod metadata;
pub(crate) mod orca;
mod override_host;
pub(crate) mod priority;
pub(crate) mod settings;
mod spread;
mod subset;
pub(crate) mod zone;

#[cfg(test)]
mod tests;

/// Chooses among the hosts that it was built of.
pub(crate) trait Balancer {
    /// One pick; `None`: no host can be had.
    fn pick(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>>;
}

/// One pick under way.
pub(crate) struct Turn<'t, 'c> {
    /// What is known of the request.
    pub(crate) context: &'t PickContext<'c>,
    /// The worker's random numbers.
    pub(crate) random: &'t mut Rng,
    /// What surrounds the balancer.
    pub(crate) around: &'t Surroundings,
}

/// What surrounds a cluster's balancer on a worker.
pub(crate) struct Surroundings {
    /// The cluster's stats.
    pub(crate) stats: ClusterStats,
    /// `healthy_panic_threshold`, percent.
    pub(crate) panic_threshold: f64,
    /// The hosts of the local cluster, for zone-aware routing.
    pub(crate) local: Rc<LocalHosts>,
}

impl Turn<'_, '_> {
    /// Picks until a host is found that a retry does not reject, or tries are used up.
    fn unless_rejected(
        &mut self,
        mut pick: impl FnMut(&mut Self, u32) -> Option<Rc<Host>>,
    ) -> Option<Rc<Host>> {
        let mut attempt = 0;
        loop {
            let host = pick(self, attempt)?;
            let accepted = self.context.rejects.is_none_or(|rejects| !rejects(&host));
            if accepted || attempt >= self.context.attempts {
                return Some(host);
            }
            attempt += 1;
        }
    }
}

/// A balancer for these hosts; `seed` spreads the workers' first choices.
pub(crate) fn build(
    balancing: &Balancing,
    hosts: Hosts,
    around: &Surroundings,
    seed: u64,
) -> Box<dyn Balancer> {
    match balancing {
        Balancing::Spread(settings) => {
            Box::new(spread::SpreadBalancer::new(settings.clone(), hosts, around, seed))
        }
        Balancing::Hash(settings) => Box::new(hashing::HashBalancer::new(settings.clone(), hosts, around)),
        Balancing::Subset(settings) => {
            Box::new(subset::SubsetBalancer::new(settings.clone(), hosts, around, seed))
        }
        Balancing::OverrideHost(settings) => {
            Box::new(override_host::OverrideHostBalancer::new(settings.clone(), hosts, around, seed))
        }
        Balancing::LoadAware(settings) => {
            Box::new(load_aware::LoadAwareBalancer::new(settings.clone(), hosts, seed))
        }
        Balancing::ClusterProvided => Box::new(Nobody),
    }
}

/// The discovery itself names the host (`WorkerCluster::pick`): there is nothing to choose.
struct Nobody;

impl Balancer for Nobody {
    fn pick(&mut self, _turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        None
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
