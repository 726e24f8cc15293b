//! A set of changes that take effect together.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;

use crate::Input;
use crate::erased::downcast_mut;
use crate::node::NodeId;
use crate::store::Store;

/// Changes to inputs that take effect together, as one revision; see [`crate::Graph::commit`].
///
/// At most one change per key: a later one takes the place of an earlier one, so a batch can gather events for a
/// while and then cost what they came to.
#[derive(Default)]
pub struct Batch {
    /// By input, in the order of first mention: few enough to search, and the same order in every run.
    changes: Vec<(TypeId, Box<dyn Changes>)>,
}

/// Changes to one input.
struct ChangesTo<I: Input>(BTreeMap<I::Key, Option<I::Value>>);

/// Changes to one input, without its type.
trait Changes: Any + Send {
    fn apply(self: Box<Self>, store: &mut Store, touched: &mut Vec<NodeId>);
    fn merge(&mut self, later: Box<dyn Changes>);
    fn count(&self) -> usize;
    fn name(&self) -> &'static str;
}

impl Batch {
    /// A batch that changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fact, or replaces it.
    pub fn set<I: Input>(&mut self, key: I::Key, value: I::Value) {
        self.changes_to::<I>().0.insert(key, Some(value));
    }

    /// Removes a fact; no error if there is none.
    pub fn remove<I: Input>(&mut self, key: &I::Key) {
        self.changes_to::<I>().0.insert(key.clone(), None);
    }

    /// Adds the changes of a later batch, which win over this one's.
    pub fn merge(&mut self, later: Self) {
        for (id, changes) in later.changes {
            match self.changes.iter_mut().find(|(known, _)| *known == id) {
                Some((_, earlier)) => earlier.merge(changes),
                None => self.changes.push((id, changes)),
            }
        }
    }

    /// Whether there is no change to make.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many keys are set or removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.iter().map(|(_, changes)| changes.count()).sum()
    }

    /// Makes the changes and adds the leaves that are different now to `touched`.
    pub(crate) fn apply(self, store: &mut Store, touched: &mut Vec<NodeId>) {
        for (_, changes) in self.changes {
            changes.apply(store, touched);
        }
    }

    fn changes_to<I: Input>(&mut self) -> &mut ChangesTo<I> {
        let id = TypeId::of::<I>();
        let at = self.changes.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
            self.changes.push((id, Box::new(ChangesTo::<I>(BTreeMap::new()))));
            self.changes.len() - 1
        });
        let changes: &mut dyn Any = self.changes[at].1.as_mut();
        downcast_mut(changes)
    }
}

impl<I: Input> Changes for ChangesTo<I> {
    fn apply(self: Box<Self>, store: &mut Store, touched: &mut Vec<NodeId>) {
        let now = store.revision;
        let (table, nodes) = store.input_mut::<I>();
        for (key, value) in self.0 {
            table.apply(key, value, nodes, now, touched);
        }
    }

    fn merge(&mut self, later: Box<dyn Changes>) {
        let mut later: Box<dyn Any> = later;
        self.0.append(&mut downcast_mut::<Self>(later.as_mut()).0);
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn name(&self) -> &'static str {
        I::NAME
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.changes.iter().map(|(_, changes)| (changes.name(), changes.count())))
            .finish()
    }
}
