//! The table of one index: the members of each bucket, kept as facts come, change and go.

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::erased::Erased;
use crate::explain::Source;
use crate::node::{LeafKind, Node, NodeId, Nodes};
use crate::{Index, Input, Revision};

pub(crate) struct IndexTable<Ix: Index> {
    /// Buckets with members, and empty ones that some memo depends on.
    buckets: HashMap<Arc<Ix::Bucket>, Bucket<<Ix::Of as Input>::Key>>,
    /// The last revision in which a bucket lost a member: an empty one whose node is gone has not changed since.
    removed_at: Revision,
}

struct Bucket<K> {
    node: NodeId,
    members: BTreeSet<Arc<K>>,
}

/// An index over `I`, without its own type.
pub(crate) trait IndexOf<I: Input>: Any + Send {
    /// The `TypeId` of the [`Index`].
    fn id(&self) -> TypeId;

    /// Moves one fact from the buckets of its old value to those of the new. A bucket that the fact stays in is not
    /// touched.
    fn update(
        &mut self,
        key: &Arc<I::Key>,
        old: Option<&I::Value>,
        new: Option<&I::Value>,
        nodes: &mut Nodes,
        now: Revision,
        touched: &mut Vec<NodeId>,
    );

    /// Drops the table's reference to a bucket that is being freed.
    fn forget(&mut self, bucket: &Erased);
}

struct KindOf<Ix>(Ix);

impl<Ix: Index> KindOf<Ix> {
    const BUCKET: &'static LeafKind = &LeafKind {
        source: Source::Index,
        name: Ix::NAME,
        input: TypeId::of::<Ix::Of>(),
        index: Some(TypeId::of::<Ix>()),
        describe: |bucket| format!("{:?}", bucket.as_ref::<Ix::Bucket>()),
    };
}

impl<Ix: Index> IndexTable<Ix> {
    pub(crate) fn new() -> Self {
        Self { buckets: HashMap::new(), removed_at: Revision::ZERO }
    }

    /// The node of a bucket, made if need be, to depend on; and the members in order.
    pub(crate) fn read(
        &mut self,
        bucket: &Ix::Bucket,
        nodes: &mut Nodes,
    ) -> (NodeId, Vec<<Ix::Of as Input>::Key>) {
        match self.buckets.get(bucket) {
            Some(found) => (found.node, found.members.iter().map(|key| Clone::clone(key.as_ref())).collect()),
            None => (self.insert_empty(bucket.clone(), nodes).node, Vec::new()),
        }
    }

    fn insert_empty(&mut self, bucket: Ix::Bucket, nodes: &mut Nodes) -> &mut Bucket<<Ix::Of as Input>::Key> {
        let bucket = Arc::new(bucket);
        let leaf = Node::leaf(KindOf::<Ix>::BUCKET, Erased::new(Arc::clone(&bucket)), self.removed_at);
        let empty = || Bucket { node: nodes.insert(leaf), members: BTreeSet::new() };
        self.buckets.entry(bucket).or_insert_with(empty)
    }
}

impl<Ix: Index> IndexOf<Ix::Of> for IndexTable<Ix> {
    fn id(&self) -> TypeId {
        TypeId::of::<Ix>()
    }

    fn update(
        &mut self,
        key: &Arc<<Ix::Of as Input>::Key>,
        old: Option<&<Ix::Of as Input>::Value>,
        new: Option<&<Ix::Of as Input>::Value>,
        nodes: &mut Nodes,
        now: Revision,
        touched: &mut Vec<NodeId>,
    ) {
        let left = old.map_or_else(Vec::new, |value| Ix::buckets(key, value));
        let joined = new.map_or_else(Vec::new, |value| Ix::buckets(key, value));
        let staying: HashSet<Ix::Bucket> = joined.iter().cloned().collect();
        for bucket in left.iter().filter(|bucket| !staying.contains(*bucket)) {
            if let Some(found) = self.buckets.get_mut(bucket)
                && found.members.remove(key)
            {
                self.removed_at = now;
                nodes.touch(found.node, found.members.len(), now, touched);
            }
        }
        for bucket in joined {
            let found = match self.buckets.get_mut(&bucket) {
                Some(found) => found,
                None => self.insert_empty(bucket, nodes),
            };
            if found.members.insert(Arc::clone(key)) {
                nodes.touch(found.node, found.members.len(), now, touched);
            }
        }
    }

    fn forget(&mut self, bucket: &Erased) {
        self.buckets.remove(bucket.as_ref::<Ix::Bucket>());
    }
}
