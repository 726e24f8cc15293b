//! What a worker keeps of metrics and of peers.
//!
//! Clients have a say in labels: by the host that they ask for where no service is known, by what they
//! say of themselves, and by what expressions take of requests. So there are limits to both tables,
//! and label sets with something that no certificate has proven have a limit of their own, which
//! leaves room for the others. Beyond them requests are counted all the same, with less said of
//! them, and `istio_stats.label_sets_collapsed` counts how many. The length of a client's text is
//! limited where it is taken (`labels`, `telemetry::workload`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::labels::{Anchors, Facts, Identity, IdentityHasher, Seen, put};
use super::{Family, Series, Settings, UNKNOWN};
use crate::matching::facts::LogFacts;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::FilterState;
use crate::telemetry::workload::Workload;
use crate::worker::Worker;

/// Peers that a worker remembers by what they say of themselves.
const PEERS: usize = 500;
/// Bytes that a peer says of itself which are remembered; Istio's proxies say less than a kilobyte.
const SAID: usize = 8 << 10;
/// Bytes of a name that is remembered; `sidecar~10.0.0.1~POD.NAMESPACE~NAMESPACE.svc.DOMAIN` has a few
/// hundreds at most.
const CALLED: usize = 1 << 10;
/// Label sets of a worker. An Istio proxy has some hundreds.
const LABEL_SETS: usize = 10_000;
/// Those among them with something that anybody can choose.
const OF_CLIENTS: usize = 1_000;
/// Label sets that are found by the addresses of what they depend on; more than that are looked for
/// by all that they depend on.
pub(super) const RECENT: usize = 4_096;

stats_scope! {
    /// `istio_stats.`
    struct TableStats {
        counter label_sets_collapsed;
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Label sets that were counted, by what they depend on.
    series: RefCell<HashMap<Box<[u8]>, Kept>>,
    /// How many of them have something that anybody can choose.
    of_clients: Cell<usize>,
    /// The same, by the addresses of what they depend on.
    recent: RefCell<HashMap<Identity, Recent, BuildHasherDefault<IdentityHasher>>>,
    /// Where bytes of keys are put together.
    key: RefCell<Vec<u8>>,
    /// Peers by what they call themselves.
    peers: RefCell<HashMap<Box<[u8]>, Peer>>,
    stats: OnceCell<TableStats>,
}

/// A label set.
#[derive(Debug)]
struct Kept {
    series: Rc<Series>,
    settings: Weak<Settings>,
    /// Something that anybody can choose is among the labels.
    of_client: bool,
}

/// A label set that was counted not long ago.
#[derive(Debug)]
struct Recent {
    series: Rc<Series>,
    settings: Weak<Settings>,
    anchors: Anchors,
}

/// What somebody says of itself.
#[derive(Debug)]
struct Peer {
    said: Box<[u8]>,
    /// The labels that were looked for in it.
    labels: Arc<[Box<str>]>,
    /// `None`: it makes no sense.
    state: Option<Rc<FilterState>>,
}

impl Tables {
    /// The peer that says this of itself, with these further labels; it is made once as long as it
    /// calls itself the same.
    pub(crate) fn peer(
        &self,
        id: &[u8],
        said: &[u8],
        labels: &Arc<[Box<str>]>,
        read: impl FnOnce() -> Option<Workload>,
    ) -> Option<Rc<FilterState>> {
        let mut peers = self.peers.borrow_mut();
        // Who has no name is known by all that it says.
        let id = if id.is_empty() { said } else { id };
        if let Some(peer) = peers.get(id)
            && *peer.said == *said
            && (Arc::ptr_eq(&peer.labels, labels) || peer.labels == *labels)
        {
            return peer.state.clone();
        }
        let state = read().map(|workload| Rc::new(workload.into_state()));
        if said.len() > SAID || id.len() > CALLED {
            return state;
        }
        if peers.len() >= PEERS && !peers.contains_key(id) {
            // Any of them: those that are still there come again.
            let some: Vec<_> = peers.keys().take(PEERS / 4).cloned().collect();
            some.iter().for_each(|id| drop(peers.remove(id)));
        }
        let peer = Peer { said: said.into(), labels: Arc::clone(labels), state: state.clone() };
        peers.insert(id.into(), peer);
        state
    }

    /// Forgets label sets of which something was retired, and those of settings that nobody has
    /// any more.
    pub(crate) fn clean_up(&self) {
        let gone = |settings: &Weak<Settings>| settings.strong_count() == 0;
        self.recent.borrow_mut().retain(|_, recent| {
            !recent.series.is_retired() && !gone(&recent.settings) && !recent.anchors.are_gone()
        });
        let mut all = self.series.borrow_mut();
        all.retain(|_, kept| !kept.series.is_retired() && !gone(&kept.settings));
        self.of_clients.set(all.values().filter(|kept| kept.of_client).count());
    }

    /// The blocks of what was seen.
    pub(super) fn series(
        &self,
        settings: &Arc<Settings>,
        family: Family,
        seen: &Seen<'_>,
        log: LogFacts<'_>,
        worker: &Worker,
    ) -> Rc<Series> {
        let identity = seen.identity(settings, family);
        if let Some(identity) = &identity
            && let Some(recent) = self.recent.borrow().get(identity)
            && !recent.series.is_retired()
        {
            return Rc::clone(&recent.series);
        }
        let values = settings.values(log);
        let facts = seen.facts();
        if let Some(series) = self.find(settings, family, &facts, &values, worker) {
            if let Some(identity) = identity {
                let mut recent = self.recent.borrow_mut();
                if recent.len() >= RECENT {
                    make_room(&mut recent);
                }
                let settings = Arc::downgrade(settings);
                let anchors = seen.anchors();
                recent.insert(identity, Recent { series: Rc::clone(&series), settings, anchors });
            }
            return series;
        }
        let thread = worker.stats();
        self.stats.get_or_init(|| TableStats::kept(thread, "istio_stats.")).label_sets_collapsed().inc();
        let values = vec![UNKNOWN.to_owned(); values.len()];
        let believed = self.find(settings, family, &facts.believed(), &values, worker);
        believed.unwrap_or_else(|| self.make(settings, family, &facts.nobody(), &values, worker))
    }

    /// The blocks by all that the labels depend on; they are made if there is room for them.
    fn find(
        &self,
        settings: &Arc<Settings>,
        family: Family,
        facts: &Facts<'_>,
        values: &[String],
        worker: &Worker,
    ) -> Option<Rc<Series>> {
        if let Some(series) = self.known(settings, family, facts, values) {
            return Some(series);
        }
        let full = settings.are_of_client(facts, values) && self.of_clients.get() >= OF_CLIENTS;
        if full || self.series.borrow().len() >= LABEL_SETS {
            return None;
        }
        Some(self.make(settings, family, facts, values, worker))
    }

    fn known(
        &self,
        settings: &Settings,
        family: Family,
        facts: &Facts<'_>,
        values: &[String],
    ) -> Option<Rc<Series>> {
        let mut key = self.key.borrow_mut();
        key.clear();
        key.extend_from_slice(&settings.number.to_le_bytes());
        key.push(family as u8);
        facts.write(&mut key);
        values.iter().for_each(|value| put(&mut key, value.as_bytes()));
        let all = self.series.borrow();
        let kept = all.get(&**key).filter(|kept| !kept.series.is_retired())?;
        Some(Rc::clone(&kept.series))
    }

    fn make(
        &self,
        settings: &Arc<Settings>,
        family: Family,
        facts: &Facts<'_>,
        values: &[String],
        worker: &Worker,
    ) -> Rc<Series> {
        if let Some(series) = self.known(settings, family, facts, values) {
            return series;
        }
        let series = Rc::new(settings.make(family, facts, values, worker));
        let of_client = settings.are_of_client(facts, values);
        let kept = Kept { series: Rc::clone(&series), settings: Arc::downgrade(settings), of_client };
        let key = self.key.borrow();
        if self.series.borrow_mut().insert((&**key).into(), kept).is_none() && of_client {
            self.of_clients.set(self.of_clients.get() + 1);
        }
        series
    }

    /// Whether a label set is found by addresses.
    #[cfg(test)]
    pub(super) fn finds(&self, identity: &Identity) -> bool {
        self.recent.borrow().contains_key(identity)
    }

    /// How many label sets there are.
    #[cfg(test)]
    pub(super) fn label_sets(&self) -> usize {
        self.series.borrow().len()
    }
}

/// Forgets what will not come any more: a client whose every request says something else of itself
/// leaves much of that, and the label sets of others stay. If that is not enough all goes.
fn make_room(recent: &mut HashMap<Identity, Recent, BuildHasherDefault<IdentityHasher>>) {
    recent.retain(|_, recent| !recent.anchors.are_gone());
    if recent.len() > RECENT / 2 {
        recent.clear();
    }
}
