//! The incremental derivation engine of the control plane.
//!
//! What a mesh's configuration *means* is a large pure function of its resources. This crate keeps the value of
//! such a function up to date while the resources change one at a time, at a cost in proportion to the change
//! rather than to the mesh. It knows nothing of meshes: only of
//!
//! - [`Input`]s: tables of keyed facts, changed by committing a [`Batch`]; each commit that changes anything is one
//!   [`Revision`];
//! - [`Index`]es: secondary orders over an input ("pods by label"), kept by the engine;
//! - [`Query`]s: functions of a key that read inputs, indexes and other queries through a [`Cx`], and nothing else.
//!
//! A [`Graph`] holds all three and remembers the value of each query it has computed (a *memo*), together with what
//! was read on the way. The key is the only other argument of a derivation, so a cache keyed too coarsely, the
//! classic bug of hand-written configuration caches, cannot be expressed.
//!
//! # How a change travels
//!
//! Each read leaves an edge between the memo and what it read: an input key (present or *absent*: a lookup that
//! found nothing is a dependency too), an index bucket, the key set of an input, or another memo. Edges are exact
//! and two-way.
//!
//! 1. [`Graph::commit`] compares each new value with the old one; equal ones are dropped. From those that differ it
//!    follows the edges and marks the memos downstream *stale*, each once. Nothing is computed.
//! 2. Asking for a stale memo first brings up to date what it read last time, in the order in which it read. If
//!    none of it changed, neither did the memo, and its derivation does not run.
//! 3. Otherwise it is derived again. If the result equals the old one it keeps its old `Arc` and its old
//!    [`Graph::changed_at`], so the wave stops there: this is the early cut-off, and the reason why
//!    [`Query::Value`] is `PartialEq`.
//!
//! [`Mode::FromScratch`] keeps none of this cleverness: it derives everything anew after each commit and scans where
//! the incremental mode keeps an index. It is the oracle that the property tests compare with, and a switch to
//! reach for when a wrong value might be the engine's fault.
//!
//! # Roots, dirt and garbage
//!
//! [`Graph::get`] makes the query a *root*: something that the outside wants kept. [`Graph::dirty`] lists the roots
//! whose inputs have changed since the last call, and [`Graph::changed`] those whose values have, both without
//! looking at the others. [`Graph::release`] ends the interest, and [`Graph::collect`] frees what no root leads to;
//! both cost what they free. Use [`Graph::peek`] for a question asked in passing.
//!
//! # Cycles
//!
//! A query that (through others) asks for itself has no value. Where the chain is laid by configuration, such as
//! one resource that delegates to the next, users *will* write a cycle, and the query must implement
//! [`Query::cycle`]: every query on the cycle then takes that value, whichever of them was asked first. A cycle
//! through a query without it is a mistake of the query's author, for which there is no value to return: the engine
//! panics, in every build, with the chain in the message (undetected it would overflow the stack, which ends the
//! process too but does not say why). This is the only panic that a caller can provoke.
//!
//! Evaluation recurses, one level for each query on the chain, so a query that follows references written by users
//! must also bound how far, by reading a key that counts the steps or by a limit in what it follows.
//!
//! # Example
//!
//! ```
//! use leno_derive::{Batch, Cx, Graph, Index, Input, Query};
//!
//! /// Pods by name.
//! struct Pods;
//! #[derive(PartialEq)]
//! struct Pod {
//!     app: &'static str,
//!     ready: bool,
//! }
//! impl Input for Pods {
//!     type Key = String;
//!     type Value = Pod;
//!     const NAME: &'static str = "pod";
//! }
//!
//! struct ByApp;
//! impl Index for ByApp {
//!     type Of = Pods;
//!     type Bucket = &'static str;
//!     const NAME: &'static str = "pods-by-app";
//!     fn buckets(_: &String, pod: &Pod) -> Vec<&'static str> {
//!         vec![pod.app]
//!     }
//! }
//!
//! /// The names of an application's ready pods.
//! struct Ready;
//! impl Query for Ready {
//!     type Key = &'static str;
//!     type Value = Vec<String>;
//!     const NAME: &'static str = "ready";
//!     fn derive(cx: &Cx<'_>, app: &&'static str) -> Vec<String> {
//!         let is_ready = |name: &String| cx.input::<Pods>(name).is_some_and(|pod| pod.ready);
//!         cx.bucket::<ByApp>(app).into_iter().filter(is_ready).collect()
//!     }
//! }
//!
//! let mut graph = Graph::new();
//! graph.register::<ByApp>();
//! let mut batch = Batch::new();
//! batch.set::<Pods>("web-1".into(), Pod { app: "web", ready: true });
//! batch.set::<Pods>("web-2".into(), Pod { app: "web", ready: false });
//! batch.set::<Pods>("db-1".into(), Pod { app: "db", ready: true });
//! let first = graph.commit(batch);
//! assert_eq!(*graph.get::<Ready>(&"web"), ["web-1"]);
//! assert_eq!(*graph.get::<Ready>(&"db"), ["db-1"]);
//!
//! let mut batch = Batch::new();
//! batch.set::<Pods>("web-2".into(), Pod { app: "web", ready: true });
//! graph.commit(batch);
//! assert_eq!(graph.dirty::<Ready>(), ["web"]); // "db" is not even looked at
//! assert_eq!(*graph.get::<Ready>(&"web"), ["web-1", "web-2"]);
//! assert_eq!(graph.changed_at::<Ready>(&"db"), first);
//! assert_eq!(
//!     graph.explain::<Ready>(&"web").to_string(),
//!     r#"query ready "web", changed in revision 2
//!   index pods-by-app "web", 2 keys, changed in revision 1
//!   input pod "web-1", changed in revision 1
//!   input pod "web-2", changed in revision 2
//! "#
//! );
//! ```
//!
//! # Reading the code
//!
//! `graph.rs` is the interface and the garbage collection; `eval.rs` is the heart: how a memo is verified, derived
//! and found to be on a cycle. `store.rs` joins the parts they work on: `node.rs` (nodes and edges), `memo.rs`,
//! `input.rs`, `index.rs`. `batch.rs` and `explain.rs` stand alone.

use std::fmt;
use std::fmt::Debug;
use std::hash::Hash;

mod batch;
mod erased;
mod eval;
mod explain;
mod graph;
mod index;
mod input;
mod memo;
mod node;
mod store;

pub use batch::Batch;
pub use eval::Cx;
pub use explain::{Source, Trace};
pub use graph::{Graph, Mode, Stats};

/// A table of facts from outside, changed by [`Graph::commit`]. The type itself is only a name for the table.
pub trait Input: 'static {
    /// What a fact is found by.
    type Key: Clone + Eq + Hash + Ord + Debug + Send + Sync + 'static;
    /// The fact. Setting a value equal to the present one changes nothing.
    type Value: PartialEq + Send + Sync + 'static;
    /// The table's name in traces.
    const NAME: &'static str;
}

/// A secondary order over an input: each of its facts lies in zero or more buckets.
///
/// A reader of a bucket depends on *which* keys lie in it and not on their values: it reads those that it needs with
/// [`Cx::input`].
pub trait Index: 'static {
    /// The input that is put in order.
    type Of: Input;
    /// What a group of facts is found by.
    type Bucket: Clone + Eq + Hash + Debug + Send + Sync + 'static;
    /// The index's name in traces.
    const NAME: &'static str;

    /// The buckets of one fact; a bucket named twice counts once. Must depend on nothing but the arguments: it is
    /// asked again for the old value when a fact changes.
    fn buckets(key: &<Self::Of as Input>::Key, value: &<Self::Of as Input>::Value) -> Vec<Self::Bucket>;
}

/// A derived value: a function of a key and of what it reads.
pub trait Query: 'static {
    /// The function's argument.
    type Key: Clone + Eq + Hash + Debug + Send + Sync + 'static;
    /// The function's result. Its equality is the early cut-off: an equal result does not disturb what reads it.
    type Value: PartialEq + Send + Sync + 'static;
    /// The query's name in traces.
    const NAME: &'static str;

    /// Computes the value. Must be total and deterministic, and read nothing but `cx`: no clock, no randomness, no
    /// global state, no iteration over randomly ordered maps.
    fn derive(cx: &Cx<'_>, key: &Self::Key) -> Self::Value;

    /// The value of a query that is part of a cycle, for queries that follow references written by users. The
    /// derivation has run by then, with this value in place of each query of the cycle that it read; its result is
    /// not used. With `None`, the default, a cycle is a panic.
    fn cycle(key: &Self::Key) -> Option<Self::Value> {
        let _ = key;
        None
    }
}

/// A version of the inputs: the number of commits that have changed anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);

    /// The number of changing commits up to this revision.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
