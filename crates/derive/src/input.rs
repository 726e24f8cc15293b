//! The table of one input: values by key, the keys in order, and the indexes over them.

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::erased::{Erased, downcast, downcast_mut};
use crate::explain::Source;
use crate::index::{IndexOf, IndexTable};
use crate::node::{LeafKind, Node, NodeId, Nodes};
use crate::{Index, Input, Revision};

pub(crate) struct InputTable<I: Input> {
    /// The facts, and the keys that were looked for in vain by a memo that still depends on it.
    entries: HashMap<Arc<I::Key>, Entry<I>>,
    present: BTreeSet<Arc<I::Key>>,
    key_set: NodeId,
    indexes: Vec<Box<dyn IndexOf<I>>>,
    /// The last revision in which a fact was removed: an absent key whose node is gone has not changed since.
    removed_at: Revision,
}

struct Entry<I: Input> {
    node: NodeId,
    value: Option<Arc<I::Value>>,
}

/// An input table without its type.
pub(crate) trait ErasedInputTable: Any + Send {
    /// Drops the table's reference to a leaf that is being freed.
    fn forget(&mut self, kind: &LeafKind, key: &Erased);
    fn count(&self) -> usize;
}

struct KindOf<I>(I);

impl<I: Input> KindOf<I> {
    const KEY: &'static LeafKind = &LeafKind {
        source: Source::Input,
        name: I::NAME,
        input: TypeId::of::<I>(),
        index: None,
        describe: |key| format!("{:?}", key.as_ref::<I::Key>()),
    };
    const KEY_SET: &'static LeafKind = &LeafKind {
        source: Source::Keys,
        name: I::NAME,
        input: TypeId::of::<I>(),
        index: None,
        describe: |_| String::new(),
    };
}

impl<I: Input> InputTable<I> {
    pub(crate) fn new(nodes: &mut Nodes) -> Self {
        let key_set =
            nodes.insert(Node::leaf(KindOf::<I>::KEY_SET, Erased::new(Arc::new(())), Revision::ZERO));
        Self {
            entries: HashMap::new(),
            present: BTreeSet::new(),
            key_set,
            indexes: Vec::new(),
            removed_at: Revision::ZERO,
        }
    }

    pub(crate) fn value(&self, key: &I::Key) -> Option<Arc<I::Value>> {
        self.entries.get(key)?.value.clone()
    }

    /// A value, present or not, and the node to depend on.
    pub(crate) fn read(&mut self, key: &I::Key, nodes: &mut Nodes) -> (NodeId, Option<Arc<I::Value>>) {
        match self.entries.get(key) {
            Some(entry) => (entry.node, entry.value.clone()),
            None => (self.insert_absent(Arc::new(key.clone()), nodes), None),
        }
    }

    pub(crate) fn key_set(&self) -> NodeId {
        self.key_set
    }

    /// All keys with a value, in order.
    pub(crate) fn keys(&self) -> Vec<I::Key> {
        self.present.iter().map(|key| I::Key::clone(key)).collect()
    }

    /// The keys of a bucket in order, found by looking at every fact: how [`crate::Mode::FromScratch`] reads.
    pub(crate) fn scan<Ix: Index<Of = I>>(&self, bucket: &Ix::Bucket) -> Vec<I::Key> {
        let facts = self.present.iter().filter_map(|key| Some((key, self.entries.get(key)?.value.as_ref()?)));
        let found = facts.filter(|(key, value)| Ix::buckets(key, value).contains(bucket));
        found.map(|(key, _)| I::Key::clone(key)).collect()
    }

    /// The table of an index; filled from the facts if it is not there yet.
    pub(crate) fn index<Ix: Index<Of = I>>(
        &mut self,
        nodes: &mut Nodes,
        now: Revision,
    ) -> &mut IndexTable<Ix> {
        let known = self.indexes.iter().position(|index| index.id() == TypeId::of::<Ix>());
        let at = known.unwrap_or_else(|| {
            let mut index = IndexTable::<Ix>::new();
            for key in &self.present {
                if let Some(Entry { value: Some(value), .. }) = self.entries.get(key) {
                    index.update(key, None, Some(value), nodes, now, &mut Vec::new());
                }
            }
            self.indexes.push(Box::new(index));
            self.indexes.len() - 1
        });
        let index: &mut dyn Any = self.indexes[at].as_mut();
        downcast_mut(index)
    }

    /// Sets or removes one fact. Does nothing if that is how it already is; else adds the leaves that changed to
    /// `touched`.
    pub(crate) fn apply(
        &mut self,
        key: I::Key,
        value: Option<I::Value>,
        nodes: &mut Nodes,
        now: Revision,
        touched: &mut Vec<NodeId>,
    ) {
        let old = self.value(&key);
        if old.as_deref() == value.as_ref() {
            return;
        }
        let new = value.map(Arc::new);
        let (key, node) = match self.entries.get_key_value(&key) {
            Some((key, entry)) => (Arc::clone(key), entry.node),
            None => {
                let key = Arc::new(key);
                (Arc::clone(&key), self.insert_absent(key, nodes))
            }
        };
        for index in &mut self.indexes {
            index.update(&key, old.as_deref(), new.as_deref(), nodes, now, touched);
        }
        nodes.touch(node, usize::from(new.is_some()), now, touched);
        if old.is_some() != new.is_some() {
            if new.is_some() {
                self.present.insert(Arc::clone(&key));
            } else {
                self.present.remove(&key);
                self.removed_at = now;
            }
            nodes.touch(self.key_set, self.present.len(), now, touched);
        }
        self.entries.insert(key, Entry { node, value: new });
    }

    fn insert_absent(&mut self, key: Arc<I::Key>, nodes: &mut Nodes) -> NodeId {
        let leaf = Node::leaf(KindOf::<I>::KEY, Erased::new(Arc::clone(&key)), self.removed_at);
        let node = nodes.insert(leaf);
        self.entries.insert(key, Entry { node, value: None });
        node
    }
}

impl<I: Input> ErasedInputTable for InputTable<I> {
    fn forget(&mut self, kind: &LeafKind, key: &Erased) {
        match kind.index {
            None => {
                self.entries.remove(key.as_ref::<I::Key>());
            }
            Some(id) => {
                if let Some(index) = self.indexes.iter_mut().find(|index| index.id() == id) {
                    index.forget(key);
                }
            }
        }
    }

    fn count(&self) -> usize {
        self.present.len()
    }
}

/// The typed table behind a `dyn`.
pub(crate) fn typed<I: Input>(table: &dyn ErasedInputTable) -> &InputTable<I> {
    downcast(table)
}

/// The typed table behind a `dyn`, to be changed.
pub(crate) fn typed_mut<I: Input>(table: &mut dyn ErasedInputTable) -> &mut InputTable<I> {
    downcast_mut(table)
}
