//! Everything that a [`crate::Graph`] owns, and the steps that touch several of its parts: finding nodes, marking
//! what a change reaches, reporting dirty roots, and freeing garbage.
//!
//! The store sits in a `RefCell`, because a derivation reads and remembers through a shared [`crate::Cx`]. It is
//! never borrowed while a derivation runs.

use std::any::TypeId;
use std::collections::{BTreeSet, HashMap, HashSet};

use crate::eval::Frame;
use crate::explain::Source;
use crate::graph::Mode;
use crate::input::{ErasedInputTable, InputTable, typed, typed_mut};
use crate::memo::MemoTable;
use crate::node::{Body, NodeId, Nodes};
use crate::{Input, Query, Revision};

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) mode: Mode,
    pub(crate) revision: Revision,
    pub(crate) nodes: Nodes,
    inputs: HashMap<TypeId, Box<dyn ErasedInputTable>>,
    queries: HashMap<TypeId, MemoTable>,
    /// The evaluations under way, outermost first.
    pub(crate) frames: Vec<Frame>,
    /// Memos that are derived, but part of a cycle whose first memo is still being derived.
    pub(crate) open: Vec<NodeId>,
    pub(crate) roots: usize,
    /// How many memos hold a [`Query::cycle`] value.
    pub(crate) cyclic: usize,
    /// For how many revisions a memo that no root leads to is kept after its last use.
    pub(crate) keep_unused: u64,
    pub(crate) recomputations: u64,
    pub(crate) verifications: u64,
    pub(crate) hits: u64,
}

impl Store {
    pub(crate) fn input<I: Input>(&self) -> Option<&InputTable<I>> {
        self.inputs.get(&TypeId::of::<I>()).map(|table| typed(table.as_ref()))
    }

    /// The table of an input, made if need be; and the nodes, which its changes go along with.
    pub(crate) fn input_mut<I: Input>(&mut self) -> (&mut InputTable<I>, &mut Nodes) {
        let nodes = &mut self.nodes;
        let table =
            self.inputs.entry(TypeId::of::<I>()).or_insert_with(|| Box::new(InputTable::<I>::new(nodes)));
        (typed_mut(table.as_mut()), nodes)
    }

    pub(crate) fn memo_id<Q: Query>(&mut self, key: &Q::Key) -> NodeId {
        let table = self.queries.entry(TypeId::of::<Q>()).or_insert_with(MemoTable::new::<Q>);
        table.find_or_insert::<Q>(key, &mut self.nodes)
    }

    pub(crate) fn find_memo<Q: Query>(&self, key: &Q::Key) -> Option<NodeId> {
        self.queries.get(&TypeId::of::<Q>())?.find::<Q>(key)
    }

    pub(crate) fn queries(&self, id: TypeId) -> Option<&MemoTable> {
        self.queries.get(&id)
    }

    pub(crate) fn queries_mut(&mut self, id: TypeId) -> Option<&mut MemoTable> {
        self.queries.get_mut(&id)
    }

    pub(crate) fn input_count(&self) -> usize {
        self.inputs.values().map(|table| table.count()).sum()
    }

    /// Marks all memos that a change of `touched` can reach, each once.
    pub(crate) fn spread(&mut self, touched: &[NodeId]) {
        let mut wave: Vec<NodeId> = Vec::new();
        for leaf in touched {
            wave.extend(self.nodes.node(*leaf).dependents());
        }
        while let Some(id) = wave.pop() {
            if self.mark_stale(id) {
                wave.extend(self.nodes.node(id).dependents());
            }
        }
    }

    /// Marks all memos there are.
    pub(crate) fn spread_everywhere(&mut self) {
        let all: Vec<NodeId> = self.nodes.memo_ids().collect();
        for id in all {
            self.mark_stale(id);
        }
    }

    /// Whether this is news.
    fn mark_stale(&mut self, id: NodeId) -> bool {
        let memo = self.nodes.memo_mut(id);
        if memo.stale {
            return false;
        }
        memo.stale = true;
        if memo.root {
            memo.unreported = true;
            memo.unseen = true;
            if let Some(table) = self.queries.get_mut(&memo.kind.id) {
                table.dirty.insert(id);
            }
        }
        true
    }

    /// The roots of a query that became stale since the last call, or before it and were not handed out since. The
    /// latter stay on the list: if they are stale still, no wave will come by to put them there again.
    pub(crate) fn take_dirty<Q: Query>(&mut self) -> Vec<NodeId> {
        let Some(table) = self.queries.get_mut(&TypeId::of::<Q>()) else { return Vec::new() };
        let listed = std::mem::take(&mut table.dirty);
        let mut still = BTreeSet::new();
        let mut dirty = Vec::new();
        for id in listed {
            let memo = self.nodes.memo_mut(id);
            if memo.unseen {
                still.insert(id);
            }
            if std::mem::take(&mut memo.unreported) || memo.unseen {
                dirty.push(id);
            }
        }
        table.dirty = still;
        dirty
    }

    /// Makes a memo a root if it is not one yet, and notes that its value is handed out.
    pub(crate) fn pin(&mut self, id: NodeId) {
        let changed_at = self.nodes.node(id).changed_at;
        let memo = self.nodes.memo_mut(id);
        memo.unseen = false;
        if !memo.root {
            memo.root = true;
            memo.unreported = false;
            memo.reported = changed_at;
            self.roots += 1;
        }
    }

    pub(crate) fn unpin(&mut self, id: NodeId) {
        let memo = self.nodes.memo_mut(id);
        if !std::mem::take(&mut memo.root) {
            return;
        }
        let kind = memo.kind.id;
        if let Some(table) = self.queries.get_mut(&kind) {
            table.dirty.remove(&id);
        }
        self.roots -= 1;
        self.nodes.queue(id);
    }

    /// Frees the memos that are no root, that nothing reads, and that nobody has asked for lately; then those that
    /// only they read, and so on. Returns how many.
    pub(crate) fn collect_memos(&mut self) -> usize {
        if self.cyclic > 0 {
            self.untie_dead_cycles();
        }
        let mut freed = 0;
        let mut kept = Vec::new();
        while let Some(id) = self.nodes.next_idle_memo() {
            if self.nodes.node(id).has_dependents() || self.nodes.memo(id).root {
                continue;
            }
            if self.is_warm(id) {
                kept.push(id);
                continue;
            }
            self.nodes.set_reads(id, &[]);
            let node = self.nodes.remove(id);
            if let Body::Memo(memo) = &node.body {
                self.cyclic -= usize::from(memo.cyclic);
                if let Some(table) = self.queries.get_mut(&memo.kind.id) {
                    table.forget(memo.kind, &node.key);
                }
            }
            freed += 1;
        }
        for id in kept {
            self.nodes.queue(id);
        }
        freed
    }

    /// Memos on a cycle read each other, so none of them would ever be without a reader. Cuts the edges of those
    /// that nothing alive leads to. Looks at every memo, but only while there are cycles at all.
    fn untie_dead_cycles(&mut self) {
        let mut wave: Vec<NodeId> =
            self.nodes.memo_ids().filter(|id| self.nodes.memo(*id).root || self.is_warm(*id)).collect();
        let mut alive: HashSet<NodeId> = wave.iter().copied().collect();
        while let Some(id) = wave.pop() {
            for edge in &self.nodes.memo(id).reads {
                if self.nodes.node(edge.node).as_memo().is_some() && alive.insert(edge.node) {
                    wave.push(edge.node);
                }
            }
        }
        let dead: Vec<NodeId> = self.nodes.memo_ids().filter(|id| !alive.contains(id)).collect();
        for id in dead {
            self.nodes.set_reads(id, &[]);
        }
    }

    fn is_warm(&self, id: NodeId) -> bool {
        self.revision.number() - self.nodes.memo(id).used_at.number() < self.keep_unused
    }

    /// Frees the absent keys and empty buckets that no memo depends on any more.
    pub(crate) fn collect_leaves(&mut self) {
        while let Some(id) = self.nodes.next_idle_leaf() {
            let node = self.nodes.node(id);
            let Body::Leaf(leaf) = &node.body else { continue };
            let kind = leaf.kind;
            if leaf.size > 0 || node.has_dependents() || matches!(kind.source, Source::Keys) {
                continue;
            }
            let node = self.nodes.remove(id);
            if let Some(table) = self.inputs.get_mut(&kind.input) {
                table.forget(kind, &node.key);
            }
        }
    }
}
