//! The hosts of a cluster as balancers see them: by priority, by locality, by health.
//!
//! Lists are shared: where all hosts are healthy, the list of healthy hosts is the list of all
//! hosts. Localities are told apart only for balancers that ask for them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

use crate::cluster::lb::priority::Census;
use crate::cluster::worker_cluster::Host;
use crate::cluster::{HealthStatus, Locality};

/// A list of hosts that may be shared.
#[derive(Clone)]
pub(crate) struct HostList(Rc<[Rc<Host>]>);

impl Deref for HostList {
    type Target = [Rc<Host>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<Rc<Host>> for HostList {
    fn from_iter<I: IntoIterator<Item = Rc<Host>>>(hosts: I) -> Self {
        Self(hosts.into_iter().collect())
    }
}

impl Default for HostList {
    fn default() -> Self {
        Self(Rc::new([]))
    }
}

/// Hosts by health.
#[derive(Clone, Default)]
pub(crate) struct ByHealth {
    /// Whatever their health: for panic.
    pub(crate) all: HostList,
    /// Healthy ones.
    pub(crate) healthy: HostList,
    /// Degraded ones.
    pub(crate) degraded: HostList,
    /// How many are not counted, since nothing is known of them yet.
    pub(crate) excluded: u32,
}

impl ByHealth {
    fn new(all: HostList) -> Self {
        let of = |health| {
            if all.iter().all(|host| host.health() == health) {
                return all.clone();
            }
            all.iter().filter(|host| host.health() == health).cloned().collect()
        };
        let (healthy, degraded) = (of(HealthStatus::Healthy), of(HealthStatus::Degraded));
        let excluded = all.iter().filter(|host| host.is_excluded()).count() as u32;
        Self { healthy, degraded, excluded, all }
    }
}

/// All hosts that a balancer may choose from.
#[derive(Clone)]
pub(crate) struct Hosts {
    /// By priority; there is always a first one, even if it is empty.
    pub(crate) priorities: Vec<PriorityHosts>,
    /// `overprovisioning_factor`, percent.
    pub(crate) overprovisioning: u32,
    /// `weighted_priority_health`.
    pub(crate) weighted_health: bool,
}

/// The hosts of one priority.
#[derive(Clone, Default)]
pub(crate) struct PriorityHosts {
    /// All of them.
    pub(crate) hosts: ByHealth,
    /// The same by locality, if the balancer asks: this proxy's own first, then in order.
    pub(crate) localities: Vec<LocalityHosts>,
    /// Whether the first locality is this proxy's own.
    pub(crate) has_local: bool,
}

/// The hosts of one locality in one priority.
#[derive(Clone)]
pub(crate) struct LocalityHosts {
    /// Where they are.
    pub(crate) locality: Locality,
    /// `load_balancing_weight`; 0 where none is given.
    pub(crate) weight: u32,
    /// They.
    pub(crate) hosts: ByHealth,
}

/// What is put together to `Hosts`.
#[derive(Default)]
pub(crate) struct Gathering {
    #[allow(clippy::type_complexity, reason = "names for each part would say no more than this does")]
    priorities: Vec<(Vec<Rc<Host>>, BTreeMap<Locality, (u32, Vec<Rc<Host>>)>)>,
}

impl Gathering {
    /// One more locality, with those of its hosts that are not in the cluster elsewhere.
    pub(crate) fn add(
        &mut self,
        locality: &Locality,
        priority: u32,
        weight: Option<u32>,
        hosts: Vec<Rc<Host>>,
    ) {
        let priority = priority as usize;
        if self.priorities.len() <= priority {
            self.priorities.resize_with(priority + 1, Default::default);
        }
        let Some((all, localities)) = self.priorities.get_mut(priority) else { return };
        if hosts.is_empty() {
            // A locality without hosts is none, but its priority is there.
            return;
        }
        all.extend(hosts.iter().cloned());
        let entry = localities.entry(locality.clone()).or_default();
        entry.0 = weight.unwrap_or(0);
        entry.1.extend(hosts);
    }

    /// Done. `local`: localities are told apart, this one comes first.
    pub(crate) fn finish(
        mut self,
        local: Option<&Locality>,
        overprovisioning: u32,
        weighted_health: bool,
    ) -> Hosts {
        if self.priorities.is_empty() {
            self.priorities.push(Default::default());
        }
        let priorities = self.priorities.into_iter().map(|(all, mut localities)| {
            let mut priority =
                PriorityHosts { hosts: ByHealth::new(all.into_iter().collect()), ..PriorityHosts::default() };
            if let Some(local) = local {
                let own = localities.remove_entry(local);
                priority.has_local = own.is_some();
                let ordered = own.into_iter().chain(localities);
                priority.localities = ordered
                    .map(|(locality, (weight, hosts))| LocalityHosts {
                        locality,
                        weight,
                        hosts: ByHealth::new(hosts.into_iter().collect()),
                    })
                    .collect();
            }
            priority
        });
        Hosts { priorities: priorities.collect(), overprovisioning, weighted_health }
    }
}

impl Hosts {
    /// Those that `keep` wants, in the same order. Localities keep their places and weights.
    pub(crate) fn filtered(&self, keep: impl Fn(&Host) -> bool) -> Hosts {
        let list = |hosts: &ByHealth| {
            if hosts.all.iter().all(|host| keep(host)) {
                return hosts.clone();
            }
            ByHealth::new(hosts.all.iter().filter(|host| keep(host)).cloned().collect())
        };
        let priorities = self.priorities.iter().map(|priority| PriorityHosts {
            hosts: list(&priority.hosts),
            localities: priority
                .localities
                .iter()
                .map(|at| LocalityHosts {
                    locality: at.locality.clone(),
                    weight: at.weight,
                    hosts: list(&at.hosts),
                })
                .collect(),
            has_local: priority.has_local,
        });
        Hosts { priorities: priorities.collect(), ..*self }
    }

    /// One locality of the first priority, as if it were all there is.
    pub(crate) fn only_locality(&self, index: usize) -> Hosts {
        let first = self.priorities.first();
        let at = first.and_then(|first| first.localities.get(index));
        let hosts = at.map(|at| at.hosts.clone()).unwrap_or_default();
        let localities = at.cloned().into_iter().collect();
        let has_local = index == 0 && first.is_some_and(|first| first.has_local);
        Hosts { priorities: vec![PriorityHosts { hosts, localities, has_local }], ..*self }
    }

    /// All hosts of all priorities.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Rc<Host>> {
        self.priorities.iter().flat_map(|priority| priority.hosts.all.iter())
    }

    /// Whether there is no host at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.priorities.iter().all(|priority| priority.hosts.all.is_empty())
    }

    /// What the shares of the priorities are computed from.
    pub(crate) fn census(&self) -> Vec<Census> {
        let count = |hosts: &HostList| {
            if self.weighted_health {
                hosts.iter().map(|host| u64::from(host.config.weight)).sum()
            } else {
                hosts.len() as u64
            }
        };
        let priorities = self.priorities.iter().map(|priority| {
            let hosts = &priority.hosts;
            let excluded = hosts.all.iter().filter(|host| host.is_excluded());
            let excluded_weight = if self.weighted_health {
                excluded.map(|host| u64::from(host.config.weight)).sum()
            } else {
                u64::from(hosts.excluded)
            };
            Census {
                total: hosts.all.len() as u32,
                excluded: hosts.excluded,
                healthy: hosts.healthy.len() as u32,
                degraded: hosts.degraded.len() as u32,
                total_weight: count(&hosts.all) - excluded_weight,
                healthy_weight: count(&hosts.healthy),
                degraded_weight: count(&hosts.degraded),
                overprovisioning: self.overprovisioning,
            }
        });
        priorities.collect()
    }
}
