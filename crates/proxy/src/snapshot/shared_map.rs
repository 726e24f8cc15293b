//! A map that is copied cheaply and then differs little: snapshots of ten thousand clusters follow
//! on each other, and one of the clusters has changed.
//!
//! Entries lie in shards, each behind a pointer of its own. A copy shares all shards; a change
//! copies one of them, if it is shared. Comparing two copies looks at no more than the shards that
//! are not shared.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::ops::Index;
use std::sync::Arc;

use leno_base::{FastHash, Name};

/// A power of two; with ten thousand entries a shard has forty.
const SHARDS: usize = 256;

/// Values by name.
#[derive(Debug)]
pub(crate) struct SharedMap<T> {
    shards: Box<[Shard<T>]>,
    len: usize,
}

#[derive(Debug)]
struct Shard<T>(Arc<HashMap<Name, Arc<T>, FastHash>>);

/// What one map has under a name, and what another one has.
#[derive(Debug)]
pub(crate) struct Change<'a, T> {
    /// The name.
    pub(crate) name: &'a Name,
    /// What the first one has.
    pub(crate) before: Option<&'a Arc<T>>,
    /// What the second one has.
    pub(crate) after: Option<&'a Arc<T>>,
}

impl<T> SharedMap<T> {
    /// The value of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.shards.get(place(name)?)?.0.get(name)
    }

    /// Whether there is one.
    pub(crate) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &Arc<T>)> {
        self.shards.iter().flat_map(|shard| &*shard.0)
    }

    /// All values, in no particular order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.iter().map(|(_, value)| value)
    }

    /// Sets the value of a name.
    pub(crate) fn insert(&mut self, name: Name, value: Arc<T>) {
        if self.shards.is_empty() {
            let empty = Shard(Arc::default());
            self.shards = (0..SHARDS).map(|_| empty.clone()).collect();
        }
        if let Some(shard) = place(&name).and_then(|place| self.shards.get_mut(place)) {
            let before = Arc::make_mut(&mut shard.0).insert(name, value);
            self.len += usize::from(before.is_none());
        }
    }

    /// Takes out the value of a name.
    pub(crate) fn remove(&mut self, name: &str) {
        if !self.contains_key(name) {
            return;
        }
        if let Some(shard) = place(name).and_then(|place| self.shards.get_mut(place)) {
            let before = Arc::make_mut(&mut shard.0).remove(name);
            self.len -= usize::from(before.is_some());
        }
    }

    /// Where `after` differs: another value, none any more, or one that is new.
    pub(crate) fn changes<'a>(&'a self, after: &'a Self) -> impl Iterator<Item = Change<'a, T>> {
        let shards = (0..SHARDS).map(|place| (self.shards.get(place), after.shards.get(place)));
        let shards = shards.filter(|both| !matches!(both, (Some(a), Some(b)) if Arc::ptr_eq(&a.0, &b.0)));
        shards.flat_map(|(before, after)| {
            let find = |shard: Option<&'a Shard<T>>, name: &str| shard.and_then(|shard| shard.0.get(name));
            let left = before.into_iter().flat_map(|shard| &*shard.0).filter_map(move |(name, value)| {
                let now = find(after, name);
                let same = now.is_some_and(|now| Arc::ptr_eq(now, value));
                (!same).then_some(Change { name, before: Some(value), after: now })
            });
            let new = after.into_iter().flat_map(|shard| &*shard.0).filter_map(move |(name, value)| {
                let is_new = find(before, name).is_none();
                is_new.then_some(Change { name, before: None, after: Some(value) })
            });
            left.chain(new)
        })
    }
}

/// The shard of a name. A shard's own table reads the low bits and the highest ones.
fn place(name: &str) -> Option<usize> {
    usize::try_from(FastHash.hash_one(name) >> 32).ok().map(|hash| hash % SHARDS)
}

impl<T> Clone for Shard<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for SharedMap<T> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), len: self.len }
    }
}

impl<T> Default for SharedMap<T> {
    fn default() -> Self {
        Self { shards: Box::default(), len: 0 }
    }
}

impl<T> Index<&str> for SharedMap<T> {
    type Output = Arc<T>;

    /// The value of a name that is there.
    fn index(&self, name: &str) -> &Arc<T> {
        match self.get(name) {
            Some(value) => value,
            None => panic!("there is no {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use leno_base::{Name, Rng};

    use super::{SharedMap, place};

    /// Names and what changed of them, sorted.
    fn changes(before: &SharedMap<u64>, after: &SharedMap<u64>) -> Vec<(Name, Option<u64>, Option<u64>)> {
        let value = |value: Option<&Arc<u64>>| value.map(|value| **value);
        let all = before.changes(after);
        let mut all: Vec<_> =
            all.map(|change| (change.name.clone(), value(change.before), value(change.after))).collect();
        all.sort();
        all
    }

    #[test]
    fn it_holds_what_a_map_holds_and_knows_what_changed() {
        let mut random = Rng::new(7);
        let (mut map, mut model) = (SharedMap::default(), BTreeMap::<Name, u64>::new());
        assert!(map.is_empty() && map.get("x").is_none());
        for step in 0..2000 {
            let (before, old) = (map.clone(), model.clone());
            for _ in 0..random.next_u64() % 4 {
                let name = Name::from(format!("n{}", random.next_u64() % 600));
                if random.next_u64().is_multiple_of(3) {
                    map.remove(&name);
                    model.remove(&name);
                } else {
                    map.insert(name.clone(), Arc::new(step));
                    model.insert(name, step);
                }
            }
            let names = old.keys().chain(model.keys()).collect::<std::collections::BTreeSet<_>>();
            let expected = names.into_iter().map(|name| (name.clone(), old.get(name), model.get(name)));
            let expected = expected.filter(|(_, before, after)| before != after);
            let expected: Vec<_> =
                expected.map(|(name, before, after)| (name, before.copied(), after.copied())).collect();
            assert_eq!(changes(&before, &map), expected);
            assert_eq!(map.len(), model.len());
        }
        let held: BTreeMap<Name, u64> = map.iter().map(|(name, value)| (name.clone(), **value)).collect();
        assert_eq!(held, model);
        assert!(model.iter().all(|(name, value)| *map[name] == *value));
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut map = SharedMap::default();
        (0..1000).for_each(|number: u64| map.insert(format!("n{number}").into(), Arc::new(number)));
        let before = map.clone();
        map.insert("n5".into(), Arc::new(0));
        let copied = before.shards.iter().zip(&map.shards).filter(|(a, b)| !Arc::ptr_eq(&a.0, &b.0));
        assert_eq!(copied.count(), 1);
        assert_eq!(changes(&before, &map), [("n5".into(), Some(5), Some(0))]);
        assert_eq!(changes(&map, &map.clone()), []);
        let used: std::collections::HashSet<_> = (0..1000).filter_map(|n| place(&format!("n{n}"))).collect();
        assert!(used.len() > 200, "names are spread: {}", used.len());
    }
}
