//! Aggregate clusters (envoy.clusters.aggregate): the priorities of several clusters strung
//! together, for fail-over from one to the next.
//!
//! Such a cluster has no hosts. A pick draws among the priorities of all its members, in order,
//! with shares as `lb::priority` computes them of one cluster with so many priorities; the member
//! that the priority belongs to picks the host there with its own balancer. Connections, circuit
//! breakers and what is counted of them are the member's; answers, retries and time limits are
//! the aggregate cluster's, as in Envoy. Members that are not there (yet), and priorities without
//! hosts, are left out; so are members that are aggregate clusters themselves, which have no
//! hosts: nothing can go in circles.

use std::rc::Rc;

use crate::cluster::lb::priority::{self, Census, Share};
use crate::cluster::lb::settings::Hashing;
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::cluster::{Discovery, Drawn, HealthStatus, PickContext};
use crate::worker::Worker;

/// A worker's view of an aggregate cluster: made anew whenever hosts of any cluster have changed.
#[derive(Default)]
pub(crate) struct Chain {
    /// The worker's count of host changes that it was made at; `None`: never.
    made_at: Option<u64>,
    links: Vec<Link>,
    census: Vec<Census>,
    shares: Vec<Share>,
}

/// An endpoint that was picked.
pub(crate) struct Picked {
    /// Whose it is: the cluster that was asked, or a member of it.
    pub(crate) cluster: Rc<WorkerCluster>,
    /// It.
    pub(crate) host: Rc<Host>,
    /// Its priority in the cluster that was asked.
    pub(crate) priority: u32,
}

/// One priority of a member.
struct Link {
    cluster: Rc<WorkerCluster>,
    /// Its index there.
    priority: usize,
}

impl Worker {
    /// Picks an endpoint of a cluster, which is a member's if it is an aggregate cluster. `None`:
    /// none can be had (`UH`).
    pub(crate) fn pick(&self, cluster: &Rc<WorkerCluster>, context: &PickContext<'_>) -> Option<Picked> {
        let Discovery::Aggregate(_) = &cluster.config.discovery else {
            let host = cluster.pick(context)?;
            let priority = host.priority;
            return Some(Picked { cluster: Rc::clone(cluster), host, priority });
        };
        // Sessions stick to hosts of the cluster itself, of which there are none.
        if context.override_host.is_some_and(|wanted| wanted.strict) {
            return None;
        }
        self.refresh(cluster);
        let point = (self.random() % 100) as u32;
        let (index, member, drawn) = {
            let chain = cluster.chain.borrow();
            let (index, degraded) = match context.excluded_priorities {
                [] => priority::draw(&chain.shares, point)?,
                excluded => {
                    priority::draw(&priority::shares_without(excluded, &chain.census, &chain.shares), point)?
                }
            };
            let link = chain.links.get(index)?;
            (index, Rc::clone(&link.cluster), Drawn { priority: link.priority, degraded })
        };
        let context =
            PickContext { drawn: Some(drawn), override_host: None, excluded_priorities: &[], ..*context };
        let host = member.pick(&context)?;
        Some(Picked { cluster: member, host, priority: index as u32 })
    }

    /// The priorities of a cluster that have hosts which are well, some of them more than once.
    pub(crate) fn priorities(&self, cluster: &Rc<WorkerCluster>) -> Vec<u32> {
        if let Discovery::Aggregate(_) = &cluster.config.discovery {
            self.refresh(cluster);
            let chain = cluster.chain.borrow();
            let well = (0..).zip(&chain.census).filter(|(_, one)| one.healthy + one.degraded > 0);
            return well.map(|(index, _)| index).collect();
        }
        let well = |host: &Rc<Host>| matches!(host.health(), HealthStatus::Healthy | HealthStatus::Degraded);
        cluster.hosts().iter().filter(|host| well(host)).map(|host| host.priority).collect()
    }

    /// Gives what reads the request's hash for a cluster's balancer to a function, if there is
    /// anything that does.
    ///
    /// Deviation: all members of an aggregate cluster get the same hash, as the first of them wants
    /// it whose balancer hashes; Envoy hashes for the member that was drawn. It only matters where
    /// members' balancers have hash policies of their own, and different ones.
    pub(crate) fn with_hashing<T>(
        &self,
        cluster: &Rc<WorkerCluster>,
        read: impl FnOnce(&Hashing) -> Option<T>,
    ) -> Option<T> {
        if !matches!(cluster.config.discovery, Discovery::Aggregate(_)) {
            return read(cluster.config.balancing.hashing()?);
        }
        self.refresh(cluster);
        let chain = cluster.chain.borrow();
        read(chain.links.iter().find_map(|link| link.cluster.config.balancing.hashing())?)
    }

    fn refresh(&self, cluster: &WorkerCluster) {
        let now = self.host_changes();
        let Discovery::Aggregate(names) = &cluster.config.discovery else { return };
        if cluster.chain.borrow().made_at == Some(now) {
            return;
        }
        let members = names.iter().filter_map(|name| self.cluster(name));
        let chain = Chain::new(members, cluster.config.panic_threshold);
        // Asking for members may have made some of them: only now is the count what it will be.
        cluster.chain.replace(Chain { made_at: Some(self.host_changes()), ..chain });
        self.note_chain(&cluster.config.name);
    }
}

impl Chain {
    fn new(members: impl Iterator<Item = Rc<WorkerCluster>>, panic_threshold: f64) -> Self {
        let mut links = Vec::new();
        let mut census: Vec<Census> = Vec::new();
        for cluster in members {
            for (priority, one) in cluster.census().into_iter().enumerate() {
                if one.total > 0 {
                    links.push(Link { cluster: Rc::clone(&cluster), priority });
                    census.push(one);
                }
            }
        }
        let shares = priority::shares(&census, panic_threshold);
        Self { made_at: None, links, census, shares }
    }
}
