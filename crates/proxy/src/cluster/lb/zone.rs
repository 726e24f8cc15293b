//! Zone-aware routing: how much of the load stays in this proxy's own locality.
//!
//! The local cluster (`cluster_manager.local_cluster_name`) says how many proxies like this one
//! there are in each locality. Where the upstream has as great a share of its healthy hosts here
//! as we are of all proxies, all load stays; otherwise as much as the share allows, and the rest
//! goes to localities that have more upstream hosts than proxies, by how much more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use leno_base::rng::Rng;

use super::hosts::{HostList, Hosts, PriorityHosts};
use super::settings::ZoneAware;
use crate::cluster::Locality;
use crate::cluster::stats::ClusterStats;

/// What a worker knows of the local cluster's hosts.
#[derive(Default)]
pub(crate) struct LocalHosts {
    /// Changes with the hosts.
    generation: Cell<u64>,
    census: RefCell<Option<LocalCensus>>,
}

/// The local cluster's first priority.
struct LocalCensus {
    localities: usize,
    /// There are hosts in this proxy's own locality.
    own: bool,
    /// Healthy hosts and the sum of their weights, by locality.
    healthy: BTreeMap<Locality, (u64, u64)>,
    /// Percentage of hosts that are healthy or degraded.
    available_percent: f64,
}

impl LocalHosts {
    /// These are the local cluster's hosts now; localities are told apart in them.
    pub(crate) fn follow(&self, hosts: &Hosts) {
        let Some(first) = hosts.priorities.first() else { return };
        let healthy = first.localities.iter().map(|at| {
            let weight = at.hosts.healthy.iter().map(|host| u64::from(host.config.weight)).sum();
            (at.locality.clone(), (at.hosts.healthy.len() as u64, weight))
        });
        let own = first.localities.first().is_some_and(|at| !at.hosts.all.is_empty());
        let census = LocalCensus {
            localities: first.localities.len(),
            own: first.has_local && own,
            healthy: healthy.collect(),
            available_percent: hosts.census().first().map_or(0.0, |census| census.available_percent()),
        };
        *self.census.borrow_mut() = Some(census);
        self.generation.set(self.generation.get() + 1);
    }
}

/// How load of the first priority goes to its localities.
pub(super) struct Routing {
    /// The local hosts that it was computed for.
    generation: u64,
    way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// Localities play no part.
    Off,
    /// All load stays.
    Direct,
    /// Part of the load stays.
    Residual {
        /// That part, of 10,000.
        stays: u64,
        /// Room in each locality and in those before it.
        room: Vec<u64>,
    },
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// Anywhere.
    Anywhere,
    /// To the locality with this index.
    Locality(usize),
    /// Nowhere: the local cluster is in panic, and traffic is to fail then.
    Nowhere,
}

impl Routing {
    /// For these hosts and the local cluster as it is.
    pub(super) fn new(
        settings: &ZoneAware,
        hosts: &PriorityHosts,
        local: &LocalHosts,
        stats: &ClusterStats,
    ) -> Self {
        let census = local.census.borrow();
        let way = match &*census {
            Some(census) => {
                stats.lb_recalculate_zone_structures().inc();
                way(settings, hosts, census, stats)
            }
            None => Way::Off,
        };
        Self { generation: local.generation.get(), way }
    }

    /// Whether the local cluster has other hosts by now.
    pub(super) fn is_outdated(&self, local: &LocalHosts) -> bool {
        self.generation != local.generation.get()
    }

    /// Draws for one request.
    pub(super) fn draw(
        &self,
        settings: &ZoneAware,
        local: &LocalHosts,
        panic_threshold: f64,
        fail_on_panic: bool,
        random: &mut Rng,
        stats: &ClusterStats,
    ) -> Where {
        if self.way == Way::Off {
            return Where::Anywhere;
        }
        if settings.routing_enabled < 100 && random.below(100) >= settings.routing_enabled {
            return Where::Anywhere;
        }
        let in_panic =
            local.census.borrow().as_ref().is_none_or(|census| census.available_percent < panic_threshold);
        if in_panic {
            stats.lb_local_cluster_not_ok().inc();
            return if fail_on_panic { Where::Nowhere } else { Where::Anywhere };
        }
        match &self.way {
            Way::Off => Where::Anywhere,
            Way::Direct => {
                stats.lb_zone_routing_all_directly().inc();
                Where::Locality(0)
            }
            Way::Residual { stays, room } => {
                if random.below(10_000) < *stays {
                    stats.lb_zone_routing_sampled().inc();
                    return Where::Locality(0);
                }
                stats.lb_zone_routing_cross_zone().inc();
                let total = room.last().copied().unwrap_or(0);
                if total == 0 {
                    // Percentages were rounded down.
                    stats.lb_zone_no_capacity_left().inc();
                    return random.index(room.len()).map_or(Where::Anywhere, Where::Locality);
                }
                let point = random.below(total);
                Where::Locality(room.partition_point(|upto| *upto <= point))
            }
        }
    }
}

fn way(settings: &ZoneAware, hosts: &PriorityHosts, local: &LocalCensus, stats: &ClusterStats) -> Way {
    if hosts.localities.len() < 2 || (local.localities < 2 && settings.force_local.is_none()) {
        return Way::Off;
    }
    if !local.own {
        stats.lb_local_cluster_not_ok().inc();
        return Way::Off;
    }
    if (hosts.hosts.healthy.len() as u64) < settings.min_cluster_size {
        stats.lb_zone_cluster_too_small().inc();
        return Way::Off;
    }
    let size = |hosts: &HostList| {
        if settings.by_weight {
            hosts.iter().map(|host| u64::from(host.config.weight)).sum()
        } else {
            hosts.len() as u64
        }
    };
    let here = |place: &(u64, u64)| if settings.by_weight { place.1 } else { place.0 };
    let all_here: u64 = local.healthy.values().map(here).sum();
    let all_there: u64 = hosts.localities.iter().map(|at| size(&at.hosts.healthy)).sum();
    let share = |part: u64, all: u64| (10_000 * part).checked_div(all).unwrap_or(0);
    // For each upstream locality: our share of the proxies, its share of the upstream hosts.
    let shares: Vec<(u64, u64)> = hosts
        .localities
        .iter()
        .map(|at| {
            if at.hosts.healthy.is_empty() {
                return (0, 0);
            }
            let ours = local.healthy.get(&at.locality).map_or(0, here);
            (share(ours, all_here), share(size(&at.hosts.healthy), all_there))
        })
        .collect();
    let own = hosts.localities.first().filter(|_| hosts.has_local).zip(shares.first());
    if let Some((at, (ours, theirs))) = own {
        let forced =
            settings.force_local.is_some_and(|least| at.hosts.healthy.len() as u64 >= u64::from(least));
        if (*theirs > 0 && theirs >= ours) || forced {
            return Way::Direct;
        }
    }
    let stays = own.map_or(0, |(_, (ours, theirs))| (theirs * 10_000).checked_div(*ours).unwrap_or(0));
    let mut sum = 0;
    let room = shares.iter().enumerate().map(|(index, (ours, theirs))| {
        // What our own locality can take it has got already.
        if index > 0 || own.is_none() {
            sum += theirs.saturating_sub(*ours);
        }
        sum
    });
    Way::Residual { stays, room: room.collect() }
}

#[cfg(test)]
mod tests {
    use super::{LocalHosts, Routing, Way};
    use crate::cluster::Locality;
    use crate::cluster::lb::settings::ZoneAware;
    use crate::cluster::lb::tests::{located, stats};

    /// Upstream and local hosts by locality, this proxy's own first.
    fn way(upstream: &[u8], local: &[u8], settings: &ZoneAware) -> Way {
        let here = Locality { zone: "z0".into(), ..Locality::default() };
        let hosts = located(upstream, Some(&here));
        let local_hosts = LocalHosts::default();
        local_hosts.follow(&located(local, Some(&here)));
        Routing::new(settings, &hosts.priorities[0], &local_hosts, &stats()).way
    }

    const DEFAULT: ZoneAware =
        ZoneAware { routing_enabled: 100, min_cluster_size: 6, force_local: None, by_weight: false };

    #[test]
    fn load_stays_where_there_is_room() {
        assert_eq!(way(&[5, 5], &[1, 1], &DEFAULT), Way::Direct);
        assert_eq!(way(&[6, 3], &[1, 1], &DEFAULT), Way::Direct);
        // 25, 50, 25 % of the hosts for 40, 40, 20 % of the proxies.
        let residual = way(&[5, 10, 5], &[2, 2, 1], &DEFAULT);
        assert_eq!(residual, Way::Residual { stays: 6250, room: vec![0, 1000, 1500] });
        // None here: all of it goes elsewhere.
        assert_eq!(way(&[0, 6, 2], &[1, 1], &DEFAULT), Way::Residual { stays: 0, room: vec![2500, 5000] });
    }

    #[test]
    fn some_clusters_are_not_for_zones() {
        assert_eq!(way(&[5], &[1, 1], &DEFAULT), Way::Off, "one locality upstream");
        assert_eq!(way(&[5, 5], &[1], &DEFAULT), Way::Off, "one locality here");
        assert_eq!(way(&[5, 5], &[0, 1], &DEFAULT), Way::Off, "we are not in the local cluster");
        assert_eq!(way(&[2, 3], &[1, 1], &DEFAULT), Way::Off, "too small");
        let force = ZoneAware { force_local: Some(2), ..DEFAULT };
        assert_eq!(way(&[2, 10], &[1], &force), Way::Direct);
        assert_eq!(way(&[1, 10], &[1], &force), Way::Residual { stays: 909, room: vec![0, 9090] });
    }
}
