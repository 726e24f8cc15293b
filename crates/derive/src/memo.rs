//! Memos: the remembered value of a query for one key, what it was computed from and how fresh it is; and the table
//! that finds the memos of one query by key.

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::erased::{Erased, downcast, downcast_mut};
use crate::node::{Edge, Node, NodeId, Nodes};
use crate::{Cx, Query, Revision};

pub(crate) struct Memo {
    pub(crate) kind: &'static QueryKind,
    /// `None` until it has been derived for the first time.
    pub(crate) value: Option<Erased>,
    /// What the value was computed from, in the order of the first reads.
    pub(crate) reads: Vec<Edge>,
    /// Something upstream has changed since `verified_at`. Invariant: what reads a stale memo is stale, so a wave of
    /// marking stops at stale memos and a memo that is not stale needs no second look.
    pub(crate) stale: bool,
    /// The revision in which the value was last derived, or found to be still right.
    pub(crate) verified_at: Revision,
    /// The revision in which somebody last asked.
    pub(crate) used_at: Revision,
    /// The outside wants this memo kept and reported when dirty.
    pub(crate) root: bool,
    /// As a root: became stale since it was last reported.
    pub(crate) unreported: bool,
    /// As a root: became stale since its value was last handed out as one.
    pub(crate) unseen: bool,
    /// As a root: the change that [`crate::Graph::changed`] has reported last.
    pub(crate) reported: Revision,
    /// The value is the query's [`Query::cycle`] value.
    pub(crate) cyclic: bool,
    /// The position of the evaluation that is bringing this memo up to date, if one is.
    pub(crate) running_at: Option<usize>,
    /// Derived, but part of a cycle that begins at this position of the evaluation stack and is still open.
    pub(crate) open_cycle: Option<usize>,
}

/// A query without its type: what the engine does to memos that it knows by id only.
pub(crate) struct QueryKind {
    pub(crate) id: TypeId,
    pub(crate) name: &'static str,
    pub(crate) derive: fn(&Cx<'_>, &Erased) -> Erased,
    pub(crate) cycle: fn(&Erased) -> Option<Erased>,
    pub(crate) equal: fn(&Erased, &Erased) -> bool,
    pub(crate) describe: fn(&Erased) -> String,
    /// Drops a key from the query's [`MemoTable`].
    forget: fn(&mut dyn Any, &Erased),
}

struct KindOf<Q>(Q);

impl<Q: Query> KindOf<Q> {
    const KIND: &'static QueryKind = &QueryKind {
        id: TypeId::of::<Q>(),
        name: Q::NAME,
        derive: |cx, key| Erased::new(Arc::new(Q::derive(cx, key.as_ref()))),
        cycle: |key| Q::cycle(key.as_ref()).map(|value| Erased::new(Arc::new(value))),
        equal: |left, right| left.as_ref::<Q::Value>() == right.as_ref::<Q::Value>(),
        describe: |key| format!("{:?}", key.as_ref::<Q::Key>()),
        forget: |ids, key| {
            downcast_mut::<HashMap<Arc<Q::Key>, NodeId>>(ids).remove(key.as_ref::<Q::Key>());
        },
    };
}

/// The memos of one query.
pub(crate) struct MemoTable {
    /// A `HashMap<Arc<Q::Key>, NodeId>`.
    ids: Box<dyn Any + Send>,
    /// The roots that are unreported or unseen.
    pub(crate) dirty: BTreeSet<NodeId>,
    pub(crate) recomputations: u64,
}

impl MemoTable {
    pub(crate) fn new<Q: Query>() -> Self {
        let ids: HashMap<Arc<Q::Key>, NodeId> = HashMap::new();
        Self { ids: Box::new(ids), dirty: BTreeSet::new(), recomputations: 0 }
    }

    pub(crate) fn find<Q: Query>(&self, key: &Q::Key) -> Option<NodeId> {
        downcast::<HashMap<Arc<Q::Key>, NodeId>>(self.ids.as_ref()).get(key).copied()
    }

    pub(crate) fn find_or_insert<Q: Query>(&mut self, key: &Q::Key, nodes: &mut Nodes) -> NodeId {
        let ids = downcast_mut::<HashMap<Arc<Q::Key>, NodeId>>(self.ids.as_mut());
        if let Some(id) = ids.get(key) {
            return *id;
        }
        let key = Arc::new(key.clone());
        let id = nodes.insert(Node::memo(Erased::new(Arc::clone(&key)), Memo::new(KindOf::<Q>::KIND)));
        ids.insert(key, id);
        id
    }

    /// Drops the table's reference to a memo that is being freed. It is no root, so it is not listed as dirty.
    pub(crate) fn forget(&mut self, kind: &QueryKind, key: &Erased) {
        (kind.forget)(self.ids.as_mut(), key);
    }
}

impl Memo {
    fn new(kind: &'static QueryKind) -> Self {
        Self {
            kind,
            value: None,
            reads: Vec::new(),
            stale: true,
            verified_at: Revision::ZERO,
            used_at: Revision::ZERO,
            root: false,
            unreported: false,
            unseen: false,
            reported: Revision::ZERO,
            cyclic: false,
            running_at: None,
            open_cycle: None,
        }
    }
}
