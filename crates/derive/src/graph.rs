//! The engine's interface: commit changes, ask for values, learn what changed, let go. How a value is brought up to
//! date is told in `eval.rs`.

use std::any::TypeId;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use crate::erased::Erased;
use crate::explain::Trace;
use crate::node::NodeId;
use crate::store::Store;
use crate::{Batch, Index, Input, Query, Revision};

/// Inputs, and the memos of all queries that were asked for. `Send`, so that it can live in a task; not `Sync`: it
/// has one owner.
#[derive(Default)]
pub struct Graph {
    pub(crate) store: RefCell<Store>,
}

/// How values are kept up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Derive again only what a change may concern.
    #[default]
    Incremental,
    /// Derive everything again after each commit, and scan the facts in place of reading an index. Gives the same
    /// values, slowly: the oracle for the other mode. Here every root counts as dirty after a commit.
    FromScratch,
}

/// The size of a graph and the work that it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Remembered values.
    pub memos: usize,
    /// Memos that [`Graph::get`] has made roots.
    pub roots: usize,
    /// Facts.
    pub inputs: usize,
    /// What memos can depend on other than memos: the facts, the keys that were looked for in vain, the buckets, and
    /// one key set for each input that was ever mentioned.
    pub leaves: usize,
    /// Dependencies between all these.
    pub edges: usize,
    /// How many times a derivation has run, ever.
    pub recomputations: u64,
    /// How many times a stale memo was found to be still right without a derivation, ever.
    pub verifications: u64,
    /// How many times a value was asked for, from outside, by a derivation or to verify another, and was at hand.
    pub hits: u64,
}

impl Graph {
    /// An empty incremental graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty graph of either kind.
    #[must_use]
    pub fn with_mode(mode: Mode) -> Self {
        let mut store = Store::default();
        store.mode = mode;
        Self { store: RefCell::new(store) }
    }

    /// Sets up an index, before or after there are facts to put in order. The first derivation that reads an index
    /// sets it up as well; registering it early saves that derivation the pass over the facts.
    pub fn register<Ix: Index>(&mut self) {
        let store = self.store.get_mut();
        let now = store.revision;
        let (table, nodes) = store.input_mut::<Ix::Of>();
        table.index::<Ix>(nodes, now);
    }

    /// Makes the changes of a batch, all at once, and marks what depends on them. Costs what the changes reach; no
    /// derivation runs yet. Returns the new revision, or the present one if every change left things as they were.
    pub fn commit(&mut self, batch: Batch) -> Revision {
        let store = self.store.get_mut();
        let before = store.revision;
        store.revision = before.next();
        let mut touched = Vec::new();
        batch.apply(store, &mut touched);
        if touched.is_empty() {
            store.revision = before;
        } else {
            match store.mode {
                Mode::Incremental => store.spread(&touched),
                Mode::FromScratch => store.spread_everywhere(),
            }
        }
        store.collect_leaves();
        store.revision
    }

    /// The latest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.store.borrow().revision
    }

    /// A query's value, which is remembered and made a root: [`Graph::dirty`] reports on it, and it is kept until
    /// [`Graph::release`]. An unchanged value is the same `Arc` each time.
    pub fn get<Q: Query>(&self, key: &Q::Key) -> Arc<Q::Value> {
        let (id, value) = self.bring_up::<Q>(key);
        self.store.borrow_mut().pin(id);
        value.into_arc()
    }

    /// A query's value, without making it a root. It is remembered until the next [`Graph::collect`].
    pub fn peek<Q: Query>(&self, key: &Q::Key) -> Arc<Q::Value> {
        self.bring_up::<Q>(key).1.into_arc()
    }

    /// A fact.
    #[must_use]
    pub fn input<I: Input>(&self, key: &I::Key) -> Option<Arc<I::Value>> {
        self.store.borrow().input::<I>()?.value(key)
    }

    /// The keys of all facts of an input, sorted.
    #[must_use]
    pub fn keys<I: Input>(&self) -> Vec<I::Key> {
        self.store.borrow().input::<I>().map(|table| table.keys()).unwrap_or_default()
    }

    /// The revision in which a query's value last changed. Brings the value up to date first; does not make it a
    /// root. For a value that changed and changed back unobserved, or that was collected in between, the revision
    /// may be a later one than strictly needed; two different values that were observed never share one.
    #[must_use]
    pub fn changed_at<Q: Query>(&self, key: &Q::Key) -> Revision {
        let (id, _) = self.bring_up::<Q>(key);
        self.store.borrow().nodes.node(id).changed_at
    }

    /// What a query's value was computed from. Brings the value up to date first; does not make it a root.
    #[must_use]
    pub fn explain<Q: Query>(&self, key: &Q::Key) -> Trace {
        let (id, _) = self.bring_up::<Q>(key);
        Trace::new(&self.store.borrow(), id)
    }

    /// The roots of a query whose value may have changed, because something upstream has, since the last call of
    /// this or of [`Graph::changed`] for the query. A root that is not asked for, with [`Graph::get`], is reported
    /// again by the next call. In an order that is the same in each run; costs what it returns.
    #[must_use]
    pub fn dirty<Q: Query>(&self) -> Vec<Q::Key> {
        let mut store = self.store.borrow_mut();
        let dirty = store.take_dirty::<Q>();
        dirty.into_iter().map(|id| store.nodes.node(id).key.as_ref::<Q::Key>().clone()).collect()
    }

    /// Brings the dirty roots of a query up to date, and returns those whose value is not the one that was last
    /// reported here or, the first time, that [`Graph::get`] made a root. Shares its place with [`Graph::dirty`]: a
    /// root that is reported there and then asked for does not appear here. Use one of the two for a query.
    #[must_use]
    pub fn changed<Q: Query>(&self) -> Vec<(Q::Key, Arc<Q::Value>)> {
        let dirty = self.store.borrow_mut().take_dirty::<Q>();
        let mut changed = Vec::new();
        for id in dirty {
            let value = self.demand(id);
            let mut store = self.store.borrow_mut();
            let changed_at = store.nodes.node(id).changed_at;
            store.pin(id);
            let reported = std::mem::replace(&mut store.nodes.memo_mut(id).reported, changed_at);
            if changed_at > reported {
                changed.push((store.nodes.node(id).key.as_ref::<Q::Key>().clone(), value.into_arc()));
            }
        }
        changed
    }

    /// Ends the interest in a query's value. It is forgotten at the next [`Graph::collect`] unless something else
    /// reads it. No error if it is no root.
    pub fn release<Q: Query>(&mut self, key: &Q::Key) {
        let store = self.store.get_mut();
        if let Some(id) = store.find_memo::<Q>(key) {
            store.unpin(id);
        }
    }

    /// For how many revisions a value that no root leads to is kept after its last use, in case it is asked for
    /// again. At first 0: [`Graph::collect`] forgets it at once.
    pub fn keep_unused(&mut self, revisions: u64) {
        self.store.get_mut().keep_unused = revisions;
    }

    /// Forgets the values that no root leads to and that were not used lately, and returns how many. Costs what it
    /// forgets, and what has been derived since the last time; while some query depends on itself, a look at every
    /// value.
    pub fn collect(&mut self) -> usize {
        let store = self.store.get_mut();
        let freed = store.collect_memos();
        store.collect_leaves();
        freed
    }

    /// Sizes and counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let store = self.store.borrow();
        Stats {
            memos: store.nodes.memo_count(),
            roots: store.roots,
            inputs: store.input_count(),
            leaves: store.nodes.len() - store.nodes.memo_count(),
            edges: store.nodes.edge_count(),
            recomputations: store.recomputations,
            verifications: store.verifications,
            hits: store.hits,
        }
    }

    /// How many times the derivation of one query has run, ever.
    #[must_use]
    pub fn recomputations<Q: Query>(&self) -> u64 {
        self.store.borrow().queries(TypeId::of::<Q>()).map_or(0, |table| table.recomputations)
    }

    fn bring_up<Q: Query>(&self, key: &Q::Key) -> (NodeId, Erased) {
        let id = self.store.borrow_mut().memo_id::<Q>(key);
        (id, self.demand(id))
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("revision", &self.revision()).field("stats", &self.stats()).finish()
    }
}
