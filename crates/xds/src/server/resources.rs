//! All resources of a type as an immutable state that many share.
//!
//! [`Resources`] is a sorted list in chunks. A clone shares all chunks, a change copies the one that
//! it falls into, and two states that have come from one another are compared by looking at the
//! chunks that differ. So thousands of streams can each keep the state that they have sent, at the
//! cost of a pointer, and learn what has changed since at the cost of the change.

use std::cmp::Ordering;
use std::sync::Arc;

use leno_base::Name;

use crate::types::Resource;

/// The most resources in a chunk: a change copies so many, and a comparison of states looks at one
/// pointer for so many.
const MOST: usize = 64;

/// All resources of a type that exist for a client, by name, or at least those that it may ask
/// for. Shares the resources' bytes with everyone else, and a clone shares everything.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    version: Name,
    /// Sorted, none empty.
    chunks: Arc<Vec<Arc<Vec<Resource>>>>,
    len: usize,
}

impl Resources {
    /// A state without resources. `version` goes into `version_info` or `system_version_info`,
    /// for people to read; what has changed is decided by the versions of the resources.
    pub fn new(version: Name) -> Self {
        Self { version, ..Self::default() }
    }

    /// Adds a resource, in place of one with the same name.
    pub fn insert(&mut self, resource: Resource) {
        let at = self.chunk_of(&resource.name);
        let chunks = Arc::make_mut(&mut self.chunks);
        // What comes behind all others goes into the last chunk.
        let at = at.min(chunks.len().saturating_sub(1));
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![resource]));
            self.len = 1;
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|present| present.name.cmp(&resource.name)) {
            Ok(place) => {
                if let Some(present) = chunk.get_mut(place) {
                    *present = resource;
                }
                return;
            }
            Err(place) => chunk.insert(place, resource),
        }
        self.len += 1;
        if chunk.len() > MOST {
            let upper = chunk.split_off(MOST / 2);
            chunks.insert(at + 1, Arc::new(upper));
        }
    }

    /// Takes a resource away; false if there was none.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some((at, place)) = self.place(name) else { return false };
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else { return false };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(place);
        if chunk.is_empty() {
            chunks.remove(at);
        }
        self.len -= 1;
        true
    }

    /// Becomes the state with exactly these resources (of two with one name the last counts), and
    /// goes on sharing what has not changed.
    pub fn replace(&mut self, resources: impl IntoIterator<Item = Resource>) {
        let next: Self = resources.into_iter().collect();
        if self.is_empty() {
            self.chunks = next.chunks;
            self.len = next.len;
            return;
        }
        for (name, resource) in next.changes_since(self) {
            match resource {
                Some(resource) => self.insert(resource.clone()),
                None => {
                    self.remove(&name);
                }
            }
        }
    }

    /// Sets the version of the whole.
    pub fn set_version(&mut self, version: Name) {
        self.version = version;
    }

    /// The version of the whole.
    pub fn version(&self) -> &Name {
        &self.version
    }

    /// The resource of this name.
    pub fn find(&self, name: &str) -> Option<&Resource> {
        let (at, place) = self.place(name)?;
        self.chunks.get(at)?.get(place)
    }

    /// All resources in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is different here from an earlier state, in order of the names: resources that are new
    /// or have another version, and names that are gone.
    pub fn changes_since<'n>(&'n self, earlier: &Self) -> Vec<(Name, Option<&'n Resource>)> {
        let mut changes = Vec::new();
        if Arc::ptr_eq(&self.chunks, &earlier.chunks) {
            return changes;
        }
        let (mut ours, mut theirs) = (Cursor::new(&self.chunks), Cursor::new(&earlier.chunks));
        loop {
            if ours.skip_shared(&mut theirs) {
                continue;
            }
            match (ours.get(), theirs.get()) {
                (None, None) => return changes,
                (Some(new), Some(old)) => match new.name.cmp(&old.name) {
                    Ordering::Less => {
                        changes.push((new.name.clone(), Some(new)));
                        ours.advance();
                    }
                    Ordering::Greater => {
                        changes.push((old.name.clone(), None));
                        theirs.advance();
                    }
                    Ordering::Equal => {
                        if new.version != old.version {
                            changes.push((new.name.clone(), Some(new)));
                        }
                        ours.advance();
                        theirs.advance();
                    }
                },
                (Some(new), None) => {
                    changes.push((new.name.clone(), Some(new)));
                    ours.advance();
                }
                (None, Some(old)) => {
                    changes.push((old.name.clone(), None));
                    theirs.advance();
                }
            }
        }
    }

    /// True if both are the same state, without looking inside.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks) && self.version == other.version
    }

    /// The first chunk that reaches as far as the name.
    fn chunk_of(&self, name: &str) -> usize {
        self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| last.name.as_str() < name))
    }

    fn place(&self, name: &str) -> Option<(usize, usize)> {
        let at = self.chunk_of(name);
        let place = self.chunks.get(at)?.binary_search_by(|present| present.name.as_str().cmp(name)).ok()?;
        Some((at, place))
    }
}

impl PartialEq for Resources {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for Resources {}

impl FromIterator<Resource> for Resources {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let mut all: Vec<Resource> = resources.into_iter().collect();
        // The last of a name first: it is the one that stays.
        all.reverse();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.dedup_by(|later, first| later.name == first.name);
        let len = all.len();
        let mut chunks = Vec::with_capacity(len.div_ceil(MOST / 2));
        let mut rest = all.into_iter().peekable();
        while rest.peek().is_some() {
            chunks.push(Arc::new(rest.by_ref().take(MOST / 2).collect()));
        }
        Self { version: Name::default(), chunks: Arc::new(chunks), len }
    }
}

/// A place in a list of chunks.
struct Cursor<'c> {
    chunks: &'c [Arc<Vec<Resource>>],
    chunk: usize,
    place: usize,
}

impl<'c> Cursor<'c> {
    fn new(chunks: &'c [Arc<Vec<Resource>>]) -> Self {
        Self { chunks, chunk: 0, place: 0 }
    }

    fn get(&self) -> Option<&'c Resource> {
        self.chunks.get(self.chunk)?.get(self.place)
    }

    fn advance(&mut self) {
        self.place += 1;
        if self.chunks.get(self.chunk).is_some_and(|chunk| self.place >= chunk.len()) {
            (self.chunk, self.place) = (self.chunk + 1, 0);
        }
    }

    /// Goes past a chunk that both share, if both stand before it.
    fn skip_shared(&mut self, other: &mut Cursor<'_>) -> bool {
        let shared = self.place == 0
            && other.place == 0
            && match (self.chunks.get(self.chunk), other.chunks.get(other.chunk)) {
                (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
                _ => false,
            };
        if shared {
            self.chunk += 1;
            other.chunk += 1;
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq};

    use super::*;

    fn resource(name: u16, version: u8) -> Resource {
        Resource::new(Name::from(format!("r{name}")), Name::from(version.to_string()), Bytes::new())
    }

    /// Set to a version, or removed.
    fn edits() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        proptest::collection::vec((0..400_u16, any::<Option<u8>>()), 0..600)
    }

    fn apply(state: &mut Resources, model: &mut BTreeMap<Name, Name>, edits: &[(u16, Option<u8>)]) {
        for (name, version) in edits {
            match version {
                Some(version) => {
                    let resource = resource(*name, *version);
                    model.insert(resource.name.clone(), resource.version.clone());
                    state.insert(resource);
                }
                None => {
                    let name = format!("r{name}");
                    let present = model.remove(name.as_str()).is_some();
                    assert_eq!(state.remove(&name), present);
                }
            }
        }
    }

    fn pairs(state: &Resources) -> Vec<(Name, Name)> {
        state.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn states_are_maps_and_know_what_has_changed(first in edits(), second in edits()) {
            let (mut state, mut model) = (Resources::default(), BTreeMap::new());
            apply(&mut state, &mut model, &first);
            let (earlier, earlier_model) = (state.clone(), model.clone());
            apply(&mut state, &mut model, &second);
            prop_assert_eq!(pairs(&state), model.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(pairs(&earlier), earlier_model.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(state.len(), model.len());
            prop_assert!(model.iter().all(|(name, version)| state.find(name).is_some_and(|found| found.version == *version)));
            // The changes, applied to the earlier state, make the later.
            let mut replayed = earlier_model;
            for (name, resource) in state.changes_since(&earlier) {
                let old = match resource {
                    Some(resource) => replayed.insert(name, resource.version.clone()),
                    None => replayed.remove(&name),
                };
                prop_assert!(old.as_ref() != resource.map(|resource| &resource.version));
            }
            prop_assert_eq!(&replayed, &model);
            // Built at once it is the same, and so is what an older state becomes.
            let mut built: Resources = state.iter().cloned().collect();
            prop_assert!(built.changes_since(&state).is_empty());
            built.replace(earlier.iter().cloned());
            prop_assert_eq!(pairs(&built), pairs(&earlier));
        }
    }

    #[test]
    fn what_has_not_changed_stays_shared() {
        let mut state: Resources = (0..1000).map(|name| resource(name, 1)).collect();
        let before = state.clone();
        state.replace((0..1000).map(|name| resource(name, if name == 500 { 2 } else { 1 })));
        let shared = state.chunks.iter().zip(before.chunks.iter()).filter(|(new, old)| Arc::ptr_eq(new, old));
        assert_eq!(shared.count(), before.chunks.len() - 1);
        assert_eq!(state.changes_since(&before).len(), 1);
    }

    #[test]
    fn of_one_name_the_last_counts() {
        let state: Resources = [resource(1, 1), resource(2, 1), resource(1, 2)].into_iter().collect();
        assert_eq!(pairs(&state), [("r1", "2"), ("r2", "1")].map(|(a, b)| (Name::new(a), Name::new(b))));
    }
}
