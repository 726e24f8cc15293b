//! Nodes and edges: who read what.
//!
//! A node is a *leaf* (an input key, an index bucket, an input's key set) or a *memo* (a query's remembered value).
//! Each edge is stored at both ends, and each end knows the position of the other, so that an edge is added and
//! removed in constant time and none is ever left behind. Nodes are freed only between evaluations (see `store.rs`),
//! so that an id in the hands of a running derivation stays valid.

use std::any::TypeId;

use crate::Revision;
use crate::erased::Erased;
use crate::explain::Source;
use crate::memo::Memo;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(usize);

/// One end of an edge: the node at the other end, and where in that node's list the edge's other half is.
#[derive(Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) node: NodeId,
    twin: usize,
}

pub(crate) struct Node {
    pub(crate) key: Erased,
    /// The last revision in which the node's value (for a bucket or a key set: its members) changed.
    pub(crate) changed_at: Revision,
    pub(crate) body: Body,
    /// The memos that read this node.
    dependents: Vec<Edge>,
    /// Waits in one of the two queues of nodes that may have become garbage.
    queued: bool,
}

pub(crate) enum Body {
    Leaf(Leaf),
    Memo(Box<Memo>),
}

pub(crate) struct Leaf {
    pub(crate) kind: &'static LeafKind,
    /// Input key: 1 if present, 0 if absent. Bucket and key set: how many members.
    pub(crate) size: usize,
}

/// What all leaves of one input, index or key set have in common.
pub(crate) struct LeafKind {
    pub(crate) source: Source,
    pub(crate) name: &'static str,
    pub(crate) input: TypeId,
    /// Set for a bucket.
    pub(crate) index: Option<TypeId>,
    pub(crate) describe: fn(&Erased) -> String,
}

impl Node {
    pub(crate) fn leaf(kind: &'static LeafKind, key: Erased, changed_at: Revision) -> Self {
        Self {
            key,
            changed_at,
            body: Body::Leaf(Leaf { kind, size: 0 }),
            dependents: Vec::new(),
            queued: false,
        }
    }

    pub(crate) fn memo(key: Erased, memo: Memo) -> Self {
        let body = Body::Memo(Box::new(memo));
        Self { key, changed_at: Revision::ZERO, body, dependents: Vec::new(), queued: false }
    }

    pub(crate) fn as_memo(&self) -> Option<&Memo> {
        match &self.body {
            Body::Memo(memo) => Some(memo),
            Body::Leaf(_) => None,
        }
    }

    pub(crate) fn has_dependents(&self) -> bool {
        !self.dependents.is_empty()
    }

    pub(crate) fn dependents(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.dependents.iter().map(|edge| edge.node)
    }
}

#[derive(Default)]
pub(crate) struct Nodes {
    slots: Vec<Option<Node>>,
    free: Vec<NodeId>,
    edges: usize,
    memos: usize,
    idle_leaves: Vec<NodeId>,
    idle_memos: Vec<NodeId>,
}

impl Nodes {
    /// A new node has no dependents yet, so it is queued as possible garbage from the start.
    pub(crate) fn insert(&mut self, node: Node) -> NodeId {
        self.memos += usize::from(node.as_memo().is_some());
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0] = Some(node);
                id
            }
            None => {
                self.slots.push(Some(node));
                NodeId(self.slots.len() - 1)
            }
        };
        self.queue(id);
        id
    }

    /// Frees a node that has no edges left and is in no queue.
    pub(crate) fn remove(&mut self, id: NodeId) -> Node {
        let node = self.slots[id.0].take().expect("ids are taken from live nodes");
        debug_assert!(node.dependents.is_empty() && !node.queued);
        debug_assert!(node.as_memo().is_none_or(|memo| memo.reads.is_empty()));
        self.memos -= usize::from(node.as_memo().is_some());
        self.free.push(id);
        node
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.slots[id.0].as_ref().expect("ids are taken from live nodes")
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.slots[id.0].as_mut().expect("ids are taken from live nodes")
    }

    pub(crate) fn memo(&self, id: NodeId) -> &Memo {
        match &self.node(id).body {
            Body::Memo(memo) => memo,
            Body::Leaf(_) => unreachable!("only memos read"),
        }
    }

    pub(crate) fn memo_mut(&mut self, id: NodeId) -> &mut Memo {
        match &mut self.node_mut(id).body {
            Body::Memo(memo) => memo,
            Body::Leaf(_) => unreachable!("only memos read"),
        }
    }

    pub(crate) fn memo_ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        let is_memo = |slot: &Option<Node>| slot.as_ref().is_some_and(|node| node.as_memo().is_some());
        self.slots.iter().enumerate().filter(move |(_, slot)| is_memo(slot)).map(|(at, _)| NodeId(at))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn memo_count(&self) -> usize {
        self.memos
    }

    pub(crate) fn edge_count(&self) -> usize {
        self.edges
    }

    /// Notes that a leaf changed, and its new size; reports it in `touched` once per revision.
    pub(crate) fn touch(&mut self, id: NodeId, size: usize, now: Revision, touched: &mut Vec<NodeId>) {
        let node = self.node_mut(id);
        if let Body::Leaf(leaf) = &mut node.body {
            leaf.size = size;
        }
        let idle = size == 0 && !node.has_dependents();
        if node.changed_at < now {
            node.changed_at = now;
            touched.push(id);
        }
        if idle {
            self.queue(id);
        }
    }

    /// Replaces what a memo reads. The common prefix of the old and the new list, most often all of it, is left
    /// alone. `reads` names each node once.
    pub(crate) fn set_reads(&mut self, reader: NodeId, reads: &[NodeId]) {
        let old = &self.memo(reader).reads;
        let same = old.iter().zip(reads).take_while(|(edge, new)| edge.node == **new).count();
        while self.memo(reader).reads.len() > same {
            if let Some(edge) = self.memo_mut(reader).reads.pop() {
                self.unhook(edge);
            }
        }
        for read in &reads[same..] {
            let back = self.memo(reader).reads.len();
            let dependents = &mut self.node_mut(*read).dependents;
            let twin = dependents.len();
            dependents.push(Edge { node: reader, twin: back });
            self.memo_mut(reader).reads.push(Edge { node: *read, twin });
            self.edges += 1;
        }
    }

    /// Removes the half of an edge that is stored at the node that was read.
    fn unhook(&mut self, edge: Edge) {
        let dependents = &mut self.node_mut(edge.node).dependents;
        dependents.swap_remove(edge.twin);
        let moved = dependents.get(edge.twin).copied();
        let idle = dependents.is_empty();
        if let Some(moved) = moved {
            self.memo_mut(moved.node).reads[moved.twin].twin = edge.twin;
        }
        self.edges -= 1;
        if idle {
            self.queue(edge.node);
        }
    }

    /// Remembers a node as possible garbage.
    pub(crate) fn queue(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        if std::mem::replace(&mut node.queued, true) {
            return;
        }
        match node.body {
            Body::Leaf(_) => self.idle_leaves.push(id),
            Body::Memo(_) => self.idle_memos.push(id),
        }
    }

    /// Takes a leaf out of the queue.
    pub(crate) fn next_idle_leaf(&mut self) -> Option<NodeId> {
        let id = self.idle_leaves.pop()?;
        self.node_mut(id).queued = false;
        Some(id)
    }

    /// Takes a memo out of the queue.
    pub(crate) fn next_idle_memo(&mut self) -> Option<NodeId> {
        let id = self.idle_memos.pop()?;
        self.node_mut(id).queued = false;
        Some(id)
    }
}
