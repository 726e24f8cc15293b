//! Bringing a memo up to date: the heart of the engine.
//!
//! `demand` is the way in, for the outside and for derivations alike. A memo that is not stale is answered at once.
//! Otherwise `run` puts a [`Frame`] on the stack and tries `verify`, which brings up to date what the memo read last
//! time, and if that has changed `derive_anew`.
//!
//! `verify` goes through the reads in the order in which they were made, and stops at the first that changed. What
//! comes after might never be read again: a derivation looks whether a thing exists before it asks for its parts.
//!
//! **Cycles.** A memo that is demanded while it has a frame on the stack closes a cycle: all frames from there to
//! the top belong to it. They run on, with [`Query::cycle`] values in place of each other, and each takes its own
//! such value in the end. For the result not to depend on which memo of a knot of cycles was asked first, exactly
//! the strongly connected ones must be treated so; as in Tarjan's algorithm, a finished memo whose cycle begins at a
//! frame that is still on the stack (`open_cycle`) ties whoever reads it into that cycle.

use std::collections::HashSet;
use std::sync::Arc;

use crate::erased::Erased;
use crate::graph::{Graph, Mode};
use crate::node::NodeId;
use crate::store::Store;
use crate::{Index, Input, Query, Revision};

/// What a derivation reads from. Everything read is recorded as what the derived value depends on.
pub struct Cx<'g> {
    graph: &'g Graph,
    frame: usize,
}

/// A memo that is being brought up to date.
pub(crate) struct Frame {
    node: NodeId,
    /// What the derivation has read so far, each once, in order.
    reads: Vec<NodeId>,
    seen: HashSet<NodeId>,
    /// Part of a cycle that begins at this position of the stack, or further in.
    cycle: Option<usize>,
}

impl Cx<'_> {
    /// A fact, or `None` if there is none; the derivation then depends on that there is none.
    #[must_use]
    pub fn input<I: Input>(&self, key: &I::Key) -> Option<Arc<I::Value>> {
        let mut store = self.graph.store.borrow_mut();
        let (table, nodes) = store.input_mut::<I>();
        let (node, value) = table.read(key, nodes);
        store.record(self.frame, node);
        value
    }

    /// The keys of the facts in a bucket, sorted. Depends on which keys these are, not on the facts.
    #[must_use]
    pub fn bucket<Ix: Index>(&self, bucket: &Ix::Bucket) -> Vec<<Ix::Of as Input>::Key> {
        let mut store = self.graph.store.borrow_mut();
        let (now, mode) = (store.revision, store.mode);
        let (table, nodes) = store.input_mut::<Ix::Of>();
        let (node, indexed) = table.index::<Ix>(nodes, now).read(bucket, nodes);
        let keys = match mode {
            Mode::Incremental => indexed,
            Mode::FromScratch => table.scan::<Ix>(bucket),
        };
        store.record(self.frame, node);
        keys
    }

    /// The keys of all facts, sorted. Depends on the set of keys, not on the facts.
    #[must_use]
    pub fn all<I: Input>(&self) -> Vec<I::Key> {
        let mut store = self.graph.store.borrow_mut();
        let (table, _) = store.input_mut::<I>();
        let (node, keys) = (table.key_set(), table.keys());
        store.record(self.frame, node);
        keys
    }

    /// The value of another query.
    #[must_use]
    pub fn get<Q: Query>(&self, key: &Q::Key) -> Arc<Q::Value> {
        let id = {
            let mut store = self.graph.store.borrow_mut();
            let id = store.memo_id::<Q>(key);
            store.record(self.frame, id);
            id
        };
        self.graph.demand(id).into_arc()
    }
}

/// What `demand` finds.
enum State {
    Fresh(Erased),
    Stale,
    /// Has a frame on the stack itself.
    Running,
}

impl Graph {
    /// The value of a memo, brought up to date if need be.
    pub(crate) fn demand(&self, id: NodeId) -> Erased {
        let state = self.store.borrow_mut().look_up(id);
        match state {
            State::Fresh(value) => value,
            State::Stale => self.run(id),
            State::Running => {
                let store = self.store.borrow();
                let cycle_value = cycle_value(&store, id);
                cycle_value.unwrap_or_else(|| panic!("{}", describe_cycle(&store, id)))
            }
        }
    }

    fn run(&self, id: NodeId) -> Erased {
        let frame = self.store.borrow_mut().enter(id);
        let _leave = Leave { graph: self, id };
        if self.verify(id, frame) {
            self.store.borrow_mut().mark_verified(id);
        } else {
            let value = self.derive_anew(id, frame);
            self.store.borrow_mut().finish(id, frame, value);
        }
        let store = self.store.borrow();
        store.nodes.memo(id).value.clone().expect("a memo has a value once it was run")
    }

    /// Whether nothing has changed that the memo was derived from.
    fn verify(&self, id: NodeId, frame: usize) -> bool {
        let Some(verified_at) = self.store.borrow().verifiable_since(id) else { return false };
        for at in 0.. {
            let (read, is_memo) = {
                let store = self.store.borrow();
                let Some(edge) = store.nodes.memo(id).reads.get(at) else { break };
                (edge.node, store.nodes.node(edge.node).as_memo().is_some())
            };
            if is_memo {
                self.demand(read);
            }
            let store = self.store.borrow();
            if store.frames[frame].cycle.is_some() || store.nodes.node(read).changed_at > verified_at {
                return false;
            }
        }
        true
    }

    fn derive_anew(&self, id: NodeId, frame: usize) -> Erased {
        let (kind, key) = {
            let mut store = self.store.borrow_mut();
            let kind = store.nodes.memo(id).kind;
            store.recomputations += 1;
            if let Some(table) = store.queries_mut(kind.id) {
                table.recomputations += 1;
            }
            (kind, store.nodes.node(id).key.clone())
        };
        let value = (kind.derive)(&Cx { graph: self, frame }, &key);
        if self.store.borrow().frames[frame].cycle.is_some() {
            // `join_cycle` has made sure that there is one.
            return (kind.cycle)(&key).unwrap_or(value);
        }
        value
    }
}

/// Takes a memo's frame off the stack, also when its derivation panics: the memo then stays stale.
struct Leave<'g> {
    graph: &'g Graph,
    id: NodeId,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.graph.store.borrow_mut().leave(self.id);
    }
}

impl Store {
    fn look_up(&mut self, id: NodeId) -> State {
        let now = self.revision;
        let memo = self.nodes.memo_mut(id);
        memo.used_at = now;
        if let Some(frame) = memo.running_at {
            self.join_cycle(frame, id);
            return State::Running;
        }
        let open_cycle = memo.open_cycle;
        let fresh = if memo.stale { None } else { memo.value.clone() };
        let Some(value) = fresh else { return State::Stale };
        if let Some(frame) = open_cycle {
            self.join_cycle(frame, id);
        }
        self.hits += 1;
        State::Fresh(value)
    }

    fn enter(&mut self, id: NodeId) -> usize {
        let at = self.frames.len();
        self.nodes.memo_mut(id).running_at = Some(at);
        self.frames.push(Frame { node: id, reads: Vec::new(), seen: HashSet::new(), cycle: None });
        at
    }

    fn leave(&mut self, id: NodeId) {
        self.frames.pop();
        self.nodes.memo_mut(id).running_at = None;
        if self.frames.is_empty() {
            // Cycles are closed by the memo that they begin at; what is left over lost that memo to a panic.
            for member in std::mem::take(&mut self.open) {
                let memo = self.nodes.memo_mut(member);
                memo.open_cycle = None;
                memo.stale = true;
            }
        }
    }

    fn record(&mut self, frame: usize, read: NodeId) {
        if let Some(frame) = self.frames.get_mut(frame)
            && frame.seen.insert(read)
        {
            frame.reads.push(read);
        }
    }

    /// The revision whose reads to compare with, or `None` if the memo must be derived in any case. One on a cycle
    /// must: whether the cycle is still there shows only when all of it runs.
    fn verifiable_since(&self, id: NodeId) -> Option<Revision> {
        let memo = self.nodes.memo(id);
        let verifiable = self.mode == Mode::Incremental && memo.value.is_some() && !memo.cyclic;
        verifiable.then_some(memo.verified_at)
    }

    fn mark_verified(&mut self, id: NodeId) {
        let now = self.revision;
        let memo = self.nodes.memo_mut(id);
        memo.stale = false;
        memo.verified_at = now;
        self.verifications += 1;
    }

    /// Remembers a derived value and what it was derived from.
    fn finish(&mut self, id: NodeId, frame: usize, value: Erased) {
        let reads = std::mem::take(&mut self.frames[frame].reads);
        let cycle = self.frames[frame].cycle;
        let now = self.revision;
        let newest = reads.iter().map(|read| self.nodes.node(*read).changed_at).max().unwrap_or_default();
        self.nodes.set_reads(id, &reads);

        let memo = self.nodes.memo_mut(id);
        let was_cyclic = std::mem::replace(&mut memo.cyclic, cycle.is_some());
        let verified_at = std::mem::replace(&mut memo.verified_at, now);
        memo.stale = false;
        self.cyclic = self.cyclic + usize::from(cycle.is_some()) - usize::from(was_cyclic);
        let unchanged = memo.value.as_ref().is_some_and(|old| (memo.kind.equal)(old, &value));
        if !unchanged {
            let first = memo.value.replace(value).is_none();
            // The value is what it is since the newest of its reads. It must also be later than the value before it,
            // which this says by itself except around cycles, whose members read each other half done.
            let plain = !was_cyclic && cycle.is_none() && (first || newest > verified_at);
            self.nodes.node_mut(id).changed_at = if plain { newest } else { now };
        }
        if let Some(start) = cycle {
            self.settle_cycle(id, frame, start);
        }
    }

    /// Ties all frames from `start` to the top into one cycle, which the demand for `closing` has closed.
    fn join_cycle(&mut self, start: usize, closing: NodeId) {
        let frames = &self.frames[start..];
        if frames.iter().any(|frame| cycle_value(self, frame.node).is_none()) {
            panic!("{}", describe_cycle(self, closing));
        }
        for frame in &mut self.frames[start..] {
            frame.cycle = Some(frame.cycle.map_or(start, |known| known.min(start)));
        }
    }

    /// A memo of a cycle is done. If the cycle begins with it, the whole cycle is; else it stays open.
    fn settle_cycle(&mut self, id: NodeId, frame: usize, start: usize) {
        let begins_here = start == frame;
        let nodes = &mut self.nodes;
        self.open.retain(|member| {
            let memo = nodes.memo_mut(*member);
            // Whatever began at this frame or above it belongs to the same cycle as this memo.
            if memo.open_cycle.is_some_and(|open| open >= frame) {
                memo.open_cycle = (!begins_here).then_some(start);
            }
            memo.open_cycle.is_some()
        });
        if !begins_here {
            self.nodes.memo_mut(id).open_cycle = Some(start);
            self.open.push(id);
        }
    }
}

fn cycle_value(store: &Store, id: NodeId) -> Option<Erased> {
    (store.nodes.memo(id).kind.cycle)(&store.nodes.node(id).key)
}

/// The chain of queries from `closing`, or from the start of its cycle, to the demand for it.
fn describe_cycle(store: &Store, closing: NodeId) -> String {
    let memo = store.nodes.memo(closing);
    let start = memo.running_at.or(memo.open_cycle).unwrap_or_default();
    let mut chain = String::new();
    for id in store.frames[start..].iter().map(|frame| frame.node).chain([closing]) {
        let kind = store.nodes.memo(id).kind;
        let arrow = if chain.is_empty() { "" } else { " -> " };
        let lacking = if cycle_value(store, id).is_none() { " (has no `Query::cycle` value)" } else { "" };
        chain += &format!("{arrow}{} {}{lacking}", kind.name, (kind.describe)(&store.nodes.node(id).key));
    }
    format!("a query depends on itself: {chain}")
}
