//! The objects, their revisions and the log of changes: etcd's part.
//!
//! One revision counts for all resources. Every change is an [`Event`] in the log until the log is
//! compacted; whoever watches keeps a cursor into it and is woken by a channel.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::status::Failure;

/// A resource without its version: `(group, plural)`.
pub(super) type ResourceName = (String, String);

/// An object among those of its resource: `(namespace, name)`; the namespace is empty for
/// resources of the cluster.
pub(super) type Key = (String, String);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Modified,
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) revision: u64,
    pub(super) resource: ResourceName,
    pub(super) kind: Kind,
    /// The object after the change; if it is deleted, as it was, with the revision of its deletion.
    pub(super) object: Arc<Value>,
    /// The object before.
    pub(super) before: Option<Arc<Value>>,
}

/// The rest of a list that is read in pages.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) revision: u64,
    pub(super) rest: Vec<Arc<Value>>,
}

#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    /// Watches from before this revision cannot be served.
    floor: u64,
    objects: BTreeMap<ResourceName, BTreeMap<Key, Arc<Value>>>,
    log: VecDeque<Event>,
    pages: HashMap<String, Page>,
    next_page: u64,
    changed: watch::Sender<u64>,
}

impl Store {
    pub(super) fn new() -> Store {
        Store {
            // As if something had been before: 0 and 1 mean other things to clients.
            revision: 100,
            floor: 100,
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            pages: HashMap::new(),
            next_page: 0,
            changed: watch::channel(100).0,
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Tells of every new revision.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn find(&self, resource: &ResourceName, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(resource)?.get(key)
    }

    /// All objects of a resource, or those in one namespace, in the order of their names.
    pub(super) fn list<'s>(
        &'s self,
        resource: &ResourceName,
        namespace: &'s str,
    ) -> impl Iterator<Item = &'s Arc<Value>> + use<'s> {
        let all = self.objects.get(resource).into_iter().flatten();
        all.filter(move |((own, _), _)| namespace.is_empty() || own == namespace).map(|(_, object)| object)
    }

    /// All objects of all resources.
    pub(super) fn everything(&self) -> impl Iterator<Item = (&ResourceName, &Key, &Arc<Value>)> {
        self.objects
            .iter()
            .flat_map(|(resource, all)| all.iter().map(move |(key, object)| (resource, key, object)))
    }

    /// Stores an object, new or changed, under a new revision, which it returns with it.
    pub(super) fn set(&mut self, resource: &ResourceName, key: &Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        stamp(&mut object, self.revision);
        let object = Arc::new(object);
        let all = self.objects.entry(resource.clone()).or_default();
        let before = all.insert(key.clone(), Arc::clone(&object));
        let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
        self.log_event(resource, kind, Arc::clone(&object), before);
        object
    }

    /// Removes an object; returns it as it was last, with the revision of its end.
    pub(super) fn remove(&mut self, resource: &ResourceName, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.get_mut(resource)?.remove(key)?;
        self.revision += 1;
        let mut last = Value::clone(&before);
        stamp(&mut last, self.revision);
        let last = Arc::new(last);
        self.log_event(resource, Kind::Deleted, Arc::clone(&last), Some(before));
        Some(last)
    }

    fn log_event(
        &mut self,
        resource: &ResourceName,
        kind: Kind,
        object: Arc<Value>,
        before: Option<Arc<Value>>,
    ) {
        let event = Event { revision: self.revision, resource: resource.clone(), kind, object, before };
        self.log.push_back(event);
        self.changed.send_replace(self.revision);
    }

    /// The changes of a resource after a revision.
    ///
    /// # Errors
    /// 410 if they have been forgotten.
    pub(super) fn events_after(&self, resource: &ResourceName, revision: u64) -> Result<Vec<Event>, Failure> {
        if revision < self.floor {
            return Err(Failure::expired(&format!("too old resource version: {revision} ({})", self.floor)));
        }
        let start = self.log.partition_point(|event| event.revision <= revision);
        Ok(self.log.iter().skip(start).filter(|event| event.resource == *resource).cloned().collect())
    }

    /// Forgets the log and all pages.
    pub(super) fn compact(&mut self) {
        // A watch that asks for exactly the last revision is not behind.
        self.floor = self.revision;
        self.log.clear();
        self.pages.clear();
    }

    /// Keeps the rest of a list; returns the token to go on with.
    pub(super) fn keep_page(&mut self, page: Page) -> String {
        self.next_page += 1;
        let token = format!("page-{}", self.next_page);
        self.pages.insert(token.clone(), page);
        token
    }

    /// The rest of a list.
    ///
    /// # Errors
    /// 410 if it has been forgotten.
    pub(super) fn take_page(&mut self, token: &str) -> Result<Page, Failure> {
        let gone = || {
            Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start \
                 a new list without the continue parameter.",
            )
        };
        self.pages.remove(token).ok_or_else(gone)
    }
}

fn stamp(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), Value::from(revision.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Kind, Store};

    #[test]
    fn every_change_is_an_event_until_compaction() {
        let mut store = Store::new();
        let pods = (String::new(), "pods".to_owned());
        let key = ("default".to_owned(), "a".to_owned());
        let start = store.revision();
        store.set(&pods, &key, json!({"metadata": {}}));
        let second = store.set(&pods, &key, json!({"metadata": {}, "spec": 1}));
        assert_eq!(second["metadata"]["resourceVersion"], "102");
        assert!(store.remove(&pods, &key).is_some());
        assert!(store.remove(&pods, &key).is_none());
        let kinds = |after| -> Vec<Kind> {
            store.events_after(&pods, after).unwrap().iter().map(|event| event.kind).collect()
        };
        assert_eq!(kinds(start), [Kind::Added, Kind::Modified, Kind::Deleted]);
        assert_eq!(kinds(start + 2), [Kind::Deleted]);
        assert!(store.events_after(&(String::new(), "nodes".to_owned()), start).unwrap().is_empty());
        store.compact();
        assert_eq!(store.events_after(&pods, start).unwrap_err().code, 410);
        assert!(store.events_after(&pods, start + 3).unwrap().is_empty());
    }
}
