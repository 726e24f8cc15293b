//! What a value was computed from, as a tree to print or to walk.

use std::collections::HashSet;
use std::fmt;

use crate::Revision;
use crate::node::{Body, NodeId};
use crate::store::Store;

/// What kind of thing a [`Trace`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A derived value.
    Query,
    /// One key of an input, with or without a fact.
    Input,
    /// A bucket of an index.
    Index,
    /// The set of keys of an input.
    Keys,
}

/// A value and what it was computed from; see [`crate::Graph::explain`]. Prints as an indented tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What kind of thing this is.
    pub source: Source,
    /// The `NAME` of the query, input or index.
    pub name: &'static str,
    /// The key or bucket, in its `Debug` form; empty for [`Source::Keys`].
    pub key: String,
    /// For an input 1 if there is a fact and 0 if not; for an index bucket or the keys of an input their number; for
    /// a query how many things it read.
    pub size: usize,
    /// The revision in which it last changed; [`Revision::ZERO`] if it was never anything else.
    pub changed_at: Revision,
    /// The value is the one for queries that depend on themselves, [`crate::Query::cycle`].
    pub cyclic: bool,
    /// What it was computed from is shown elsewhere in the tree, before this, and left out here.
    pub repeated: bool,
    /// What it was computed from, in the order in which it was read.
    pub reads: Vec<Trace>,
}

impl Trace {
    pub(crate) fn new(store: &Store, id: NodeId) -> Self {
        Self::build(store, id, &mut HashSet::new())
    }

    /// Only what changed after a revision: why the value is not what it was then. `None` if it still is.
    #[must_use]
    pub fn changed_after(&self, revision: Revision) -> Option<Self> {
        if self.changed_at <= revision {
            return None;
        }
        let reads = self.reads.iter().filter_map(|read| read.changed_after(revision)).collect();
        Some(Self { key: self.key.clone(), reads, ..*self })
    }

    fn build(store: &Store, id: NodeId, shown: &mut HashSet<NodeId>) -> Self {
        let node = store.nodes.node(id);
        let changed_at = node.changed_at;
        match &node.body {
            Body::Leaf(leaf) => Self {
                source: leaf.kind.source,
                name: leaf.kind.name,
                key: (leaf.kind.describe)(&node.key),
                size: leaf.size,
                changed_at,
                cyclic: false,
                repeated: false,
                reads: Vec::new(),
            },
            Body::Memo(memo) => {
                let repeated = !shown.insert(id) && !memo.reads.is_empty();
                let reads = if repeated { &[][..] } else { &memo.reads[..] };
                Self {
                    source: Source::Query,
                    name: memo.kind.name,
                    key: (memo.kind.describe)(&node.key),
                    size: memo.reads.len(),
                    changed_at,
                    cyclic: memo.cyclic,
                    repeated,
                    reads: reads.iter().map(|edge| Self::build(store, edge.node, shown)).collect(),
                }
            }
        }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let kind = match self.source {
            Source::Query => "query",
            Source::Input => "input",
            Source::Index => "index",
            Source::Keys => "keys of",
        };
        write!(f, "{:indent$}{kind} {}", "", self.name, indent = 2 * depth)?;
        if self.source != Source::Keys {
            write!(f, " {}", self.key)?;
        }
        match (self.source, self.size) {
            (Source::Input, 0) => write!(f, ", absent")?,
            (Source::Index | Source::Keys, 1) => write!(f, ", 1 key")?,
            (Source::Index | Source::Keys, keys) => write!(f, ", {keys} keys")?,
            _ => {}
        }
        match self.changed_at {
            Revision::ZERO => write!(f, ", never changed")?,
            revision => write!(f, ", changed in revision {revision}")?,
        }
        if self.cyclic {
            write!(f, ", depends on itself")?;
        }
        if self.repeated {
            write!(f, ", see above")?;
        }
        writeln!(f)?;
        self.reads.iter().try_for_each(|read| read.print(f, depth + 1))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}
