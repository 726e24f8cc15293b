//! What is asked for when it is first needed. Clusters (ODCDS): a request or connection whose cluster
//! is not known waits until discovery has brought it, or says that there is none, or takes too long.
//! Virtual hosts (VHDS): a request without a route, whose table may get further virtual hosts, waits
//! until there is an answer for its host.
//!
//! Who waits is on a worker ([`Awaited`]), which asks the main thread once for each cluster; the main
//! thread subscribes to it by its name ([`crate::config::store::Store::demand`]) and stays subscribed,
//! so that changes and the end of the cluster come too. A worker that adopts a configuration wakes
//! those who have waited for something in it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::rc::Rc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::Name;
use tokio::sync::{Notify, mpsc};

use crate::config::lower::Lower;
use crate::config::source::{Origin, ResourceKey, config_source};
use crate::telemetry::stats::{ThreadStats, stats_scope};

/// What a worker asks the main thread for.
#[derive(Debug)]
pub(crate) enum Demand {
    /// A cluster.
    Cluster(ResourceKey),
    /// A virtual host.
    Host {
        /// The route table that it is for.
        table: ResourceKey,
        /// The host that was asked for, in lower case.
        host: Name,
    },
}

/// Where unknown clusters may be asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OnDemand {
    /// `source` (of a TCP proxy `odcds_config`).
    pub(crate) origin: Origin,
    /// `timeout`.
    pub(crate) timeout: Duration,
}

impl OnDemand {
    /// Lowers what HTTP filters and TCP proxies have in common; `field` is the name of the source.
    pub(crate) fn lower(
        field: &str,
        source: Option<core::ConfigSource>,
        resources_locator: &str,
        timeout: Option<prost_types::Duration>,
        default: Duration,
        at: &mut Lower,
    ) -> Option<OnDemand> {
        at.unsupported("resources_locator", !resources_locator.is_empty());
        let timeout = at.duration("timeout", timeout).unwrap_or(default);
        let source = at.required(field, source, config_source)?;
        if matches!(source.origin, Origin::File(_)) {
            at.error_at(field, "on-demand discovery from files is not supported yet");
        }
        Some(OnDemand { origin: source.origin, timeout })
    }
}

/// How waiting for a cluster ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is there.
    Found,
    /// There is none of that name.
    Missing,
    /// It did not come in time.
    Late,
}

stats_scope! {
    /// `tcp.STAT_PREFIX.`, once a TCP proxy has asked for a cluster.
    pub(crate) struct OnDemandStats {
        counter on_demand_cluster_attempt;
        counter on_demand_cluster_missing;
        counter on_demand_cluster_success;
        counter on_demand_cluster_timeout;
    }
}

/// What a worker waits for.
#[derive(Default)]
pub(crate) struct Awaited {
    clusters: Waiting<Name>,
    /// Virtual hosts: `TABLE/HOST`, and where the table comes from.
    hosts: Waiting<ResourceKey>,
    /// Stats of TCP proxies by prefix.
    scopes: RefCell<HashMap<Name, Rc<OnDemandStats>>>,
    /// Takes what is asked for to the main thread; `None`: nobody is there to ask.
    demands: Option<mpsc::UnboundedSender<Demand>>,
}

/// Who waits, by what they wait for.
struct Waiting<K>(Rc<RefCell<HashMap<K, Rc<Entry>>>>);

/// Something that somebody waits for.
#[derive(Default)]
struct Entry {
    notify: Notify,
    missing: Cell<bool>,
}

impl Awaited {
    /// Nothing, so far.
    pub(crate) fn new(demands: mpsc::UnboundedSender<Demand>) -> Rc<Awaited> {
        Rc::new(Awaited { demands: Some(demands), ..Awaited::default() })
    }

    /// Asks for a cluster that is not known, and waits for it.
    pub(crate) fn cluster(
        self: &Rc<Self>,
        on_demand: &OnDemand,
        name: &str,
    ) -> impl Future<Output = Arrival> + use<> {
        let name = Name::new(name);
        let key = || ResourceKey { name: name.clone(), origin: on_demand.origin.clone() };
        let ticket = self.clusters.join(&name, || self.ask(Demand::Cluster(key())));
        let timeout = on_demand.timeout;
        async move {
            let entry = &ticket.entry;
            match tokio::time::timeout(timeout, entry.notify.notified()).await {
                Ok(()) if entry.missing.get() => Arrival::Missing,
                Ok(()) => Arrival::Found,
                Err(_) => Arrival::Late,
            }
        }
    }

    /// Asks for a virtual host that a table does not have, and waits until there was an answer,
    /// whatever it is. As in Envoy, only the deadlines of the request end that earlier.
    pub(crate) fn host(
        self: &Rc<Self>,
        table: &ResourceKey,
        host: &Name,
    ) -> impl Future<Output = ()> + use<> {
        let key = table.host(host);
        let ticket =
            self.hosts.join(&key, || self.ask(Demand::Host { table: table.clone(), host: host.clone() }));
        async move { ticket.entry.notify.notified().await }
    }

    fn ask(&self, demand: Demand) {
        if let Some(demands) = &self.demands {
            // Nobody hears it if the proxy ends.
            let _ = demands.send(demand);
        }
    }

    /// What TCP proxies with a prefix count.
    pub(crate) fn stats(&self, thread: &ThreadStats, stat_prefix: &Name) -> Rc<OnDemandStats> {
        let mut scopes = self.scopes.borrow_mut();
        let scope = scopes.entry(stat_prefix.clone());
        let new = || Rc::new(OnDemandStats::new(thread, &format!("tcp.{stat_prefix}.")));
        Rc::clone(scope.or_insert_with(new))
    }

    /// Wakes who waits for clusters that are there now.
    pub(crate) fn arrived(&self, has: impl Fn(&str) -> bool) {
        let mut clusters = self.clusters.0.borrow_mut();
        if !clusters.is_empty() {
            clusters.extract_if(|name, _| has(name)).for_each(|(_, entry)| entry.notify.notify_waiters());
        }
    }

    /// Wakes who waits for a cluster that there is not.
    pub(crate) fn missing(&self, name: &str) {
        if let Some(entry) = self.clusters.0.borrow_mut().remove(name) {
            entry.missing.set(true);
            entry.notify.notify_waiters();
        }
    }

    /// Wakes who waits for these virtual hosts ([`ResourceKey::host`]). What has come is in force.
    pub(crate) fn answered(&self, keys: &[ResourceKey]) {
        let mut hosts = self.hosts.0.borrow_mut();
        for key in keys {
            if let Some(entry) = hosts.remove(key) {
                entry.notify.notify_waiters();
            }
        }
    }
}

impl<K> Default for Waiting<K> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<K: Clone + Eq + Hash> Waiting<K> {
    /// Waits beside others for the same; whoever is the first asks for it.
    fn join(&self, key: &K, ask: impl FnOnce()) -> Ticket<K> {
        let known = self.0.borrow().get(key).cloned();
        let entry = known.unwrap_or_else(|| {
            ask();
            let entry = Rc::<Entry>::default();
            self.0.borrow_mut().insert(key.clone(), Rc::clone(&entry));
            entry
        });
        Ticket { waiting: Self(Rc::clone(&self.0)), key: key.clone(), entry }
    }
}

/// Somebody who waits. The last one who goes away takes the entry along: the next asks anew.
struct Ticket<K: Eq + Hash> {
    waiting: Waiting<K>,
    key: K,
    entry: Rc<Entry>,
}

impl<K: Eq + Hash> Drop for Ticket<K> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.0.borrow_mut();
        let same = waiting.get(&self.key).is_some_and(|known| Rc::ptr_eq(known, &self.entry));
        // The entry's and this one.
        if same && Rc::strong_count(&self.entry) == 2 {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::{Arrival, Awaited, Demand, OnDemand};
    use crate::config::source::{Origin, ResourceKey};

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_in_one_of_three_ways() {
        let (demands, mut asked) = mpsc::unbounded_channel();
        let awaited = Awaited::new(demands);
        let on_demand = OnDemand { origin: Origin::Ads, timeout: Duration::from_secs(5) };
        let mut asked = || match asked.try_recv().ok()? {
            Demand::Cluster(key) => Some(key.name.to_string()),
            Demand::Host { table, host } => Some(format!("{host} of {}", table.name)),
        };

        // Two wait for the same: it is asked for once.
        let both = [awaited.cluster(&on_demand, "a"), awaited.cluster(&on_demand, "a")].map(Box::pin);
        assert_eq!(asked().as_deref(), Some("a"));
        assert_eq!(asked(), None);
        let [mut one, two] = both;
        assert!(futures_poll(&mut one).await.is_none());
        awaited.arrived(|name| name == "b");
        assert!(futures_poll(&mut one).await.is_none());
        awaited.arrived(|name| name == "a");
        assert_eq!(one.await, Arrival::Found);
        drop(two);

        let mut missing = Box::pin(awaited.cluster(&on_demand, "b"));
        assert_eq!(asked().as_deref(), Some("b"));
        assert!(futures_poll(&mut missing).await.is_none());
        awaited.missing("b");
        assert_eq!(missing.await, Arrival::Missing);

        let late = awaited.cluster(&on_demand, "c");
        assert_eq!(asked().as_deref(), Some("c"));
        assert_eq!(late.await, Arrival::Late);
        assert!(awaited.clusters.0.borrow().is_empty(), "nothing is kept of those who have gone");
        drop(awaited.cluster(&on_demand, "c"));
        assert_eq!(asked().as_deref(), Some("c"), "asked for anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_waited_for_until_there_is_an_answer() {
        let (demands, mut asked) = mpsc::unbounded_channel();
        let awaited = Awaited::new(demands);
        let table = ResourceKey::from("r");
        let [mut one, mut two] = ["a", "a"].map(|host| Box::pin(awaited.host(&table, &host.into())));
        assert!(matches!(asked.try_recv(), Ok(Demand::Host { host, .. }) if &*host == "a"));
        assert!(asked.try_recv().is_err(), "asked once");
        assert!(futures_poll(&mut one).await.is_none());
        awaited.answered(&["r/b".into(), "q/a".into()]);
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert!(futures_poll(&mut one).await.is_none() && futures_poll(&mut two).await.is_none());
        awaited.answered(&["r/a".into()]);
        one.await;
        two.await;
        // Who goes away is not kept.
        drop(Box::pin(awaited.host(&table, &"b".into())));
        assert!(awaited.hosts.0.borrow().is_empty());
    }

    /// Polls once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
