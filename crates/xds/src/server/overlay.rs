//! What one client wants or has, as the difference from a state that it shares with others.

use std::collections::BTreeMap;

use leno_base::Name;

use super::resources::Resources;

/// How much of a state a client must want, in eighths, for what it wants to be told by what is missing.
const MOST_OF_IT: usize = 7;

/// Names with versions. Most clients have exactly what there is for all of their kind: then this is a
/// shared state and nothing else. Reads as a map; costs memory for the difference.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    base: Resources,
    /// Names that are not as in `base`: with another version, or (`None`) absent.
    other: BTreeMap<Name, Option<Name>>,
    len: usize,
}

impl Overlay {
    /// Exactly what is in a state.
    pub(super) fn of(state: &Resources) -> Self {
        Self { base: state.clone(), other: BTreeMap::new(), len: state.len() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Name> {
        match self.other.get(name) {
            Some(version) => version.as_ref(),
            None => self.base.find(name).map(|resource| &resource.version),
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a version; false if the name was there before.
    pub(super) fn insert(&mut self, name: Name, version: Name) -> bool {
        let is_new = !self.contains(&name);
        self.len += usize::from(is_new);
        self.other.insert(name, Some(version));
        is_new
    }

    /// Takes a name away; false if it was not there.
    pub(super) fn remove(&mut self, name: &Name) -> bool {
        if !self.contains(name) {
            return false;
        }
        self.len -= 1;
        if self.base.find(name).is_some() {
            self.other.insert(name.clone(), None);
        } else {
            self.other.remove(name);
        }
        true
    }

    /// All names with their versions, sorted. Costs as much as there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Name)> {
        let mut base = self.base.iter().peekable();
        let mut other = self.other.iter().peekable();
        std::iter::from_fn(move || {
            loop {
                let from_base = match (base.peek(), other.peek()) {
                    (Some(resource), Some((name, _))) => {
                        if resource.name == **name {
                            base.next();
                            continue;
                        }
                        resource.name < **name
                    }
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if from_base {
                    let resource = base.next()?;
                    return Some((&resource.name, &resource.version));
                }
                let (name, version) = other.next()?;
                if let Some(version) = version {
                    return Some((name, version));
                }
            }
        })
    }

    /// Names that may have a version here that they do not have in `state`: all such, and few others.
    pub(super) fn suspects(&self, state: &Resources) -> Vec<Name> {
        let mut names: Vec<Name> =
            state.changes_since(&self.base).into_iter().map(|(name, _)| name).collect();
        names.extend(self.other.keys().cloned());
        names
    }

    /// Tells the same as the difference from `state`, if that is short: costs as much as has changed
    /// since the state that it was told by, and is different from it. With `versions` false only the
    /// names count.
    pub(super) fn rebase(&mut self, state: &Resources, versions: bool) {
        let most_of_it = self.len * 8 >= state.len() * MOST_OF_IT;
        if !most_of_it {
            // Few of many are told one by one.
            if !self.base.is_empty() {
                let all: Vec<_> =
                    self.iter().map(|(name, version)| (name.clone(), version.clone())).collect();
                self.other = all.into_iter().map(|(name, version)| (name, Some(version))).collect();
                self.base = Resources::default();
            }
            return;
        }
        let mut other = BTreeMap::new();
        for name in self.suspects(state) {
            let (here, there) = (self.get(&name), state.find(&name));
            match (here, there) {
                (Some(version), Some(resource)) if !versions || *version == resource.version => {}
                (None, None) => {}
                _ => {
                    let here = here.cloned();
                    other.insert(name, here);
                }
            }
        }
        self.other = other;
        self.base = state.clone();
    }
}

impl FromIterator<(Name, Name)> for Overlay {
    fn from_iter<I: IntoIterator<Item = (Name, Name)>>(pairs: I) -> Self {
        let other: BTreeMap<Name, Option<Name>> =
            pairs.into_iter().map(|(name, version)| (name, Some(version))).collect();
        Self { base: Resources::default(), len: other.len(), other }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof};

    use super::*;
    use crate::types::Resource;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u8),
        Remove(u8),
        State(Vec<(u8, u8)>),
        Rebase(bool),
        Adopt,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..24_u8, 0..3_u8).prop_map(|(name, version)| Step::Set(name, version)),
            3 => (0..24_u8).prop_map(Step::Remove),
            1 => proptest::collection::vec((0..24_u8, 0..3_u8), 0..40).prop_map(Step::State),
            3 => any::<bool>().prop_map(Step::Rebase),
            1 => proptest::strategy::Just(Step::Adopt),
        ];
        proptest::collection::vec(step, 0..60)
    }

    fn name(number: u8) -> Name {
        Name::from(format!("n{number}"))
    }

    fn version(number: u8) -> Name {
        Name::from(number.to_string())
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn an_overlay_is_a_map(steps in steps()) {
            let (mut overlay, mut model) = (Overlay::default(), BTreeMap::new());
            let mut state = Resources::default();
            // Where only names count, versions are those of the state.
            let mut names_only = false;
            for step in steps {
                match step {
                    Step::Set(number, kind) => {
                        let is_new = model.insert(name(number), version(kind)).is_none();
                        prop_assert_eq!(overlay.insert(name(number), version(kind)), is_new);
                    }
                    Step::Remove(number) => {
                        let present = model.remove(&name(number)).is_some();
                        prop_assert_eq!(overlay.remove(&name(number)), present);
                    }
                    Step::State(pairs) => {
                        state.replace(pairs.into_iter().map(|(number, kind)| {
                            Resource::new(name(number), version(kind), Bytes::new())
                        }));
                    }
                    Step::Rebase(versions) => {
                        overlay.rebase(&state, versions);
                        names_only |= !versions;
                    }
                    Step::Adopt => {
                        overlay = Overlay::of(&state);
                        model = state.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
                        names_only = false;
                    }
                }
                prop_assert_eq!(overlay.len(), model.len());
                let names: Vec<&Name> = overlay.iter().map(|(name, _)| name).collect();
                prop_assert_eq!(names, model.keys().collect::<Vec<_>>());
                if !names_only {
                    let all: Vec<(&Name, &Name)> = overlay.iter().collect();
                    prop_assert_eq!(all, model.iter().collect::<Vec<_>>());
                    let suspects = overlay.suspects(&state);
                    for number in 0..24 {
                        let name = name(number);
                        prop_assert_eq!(overlay.get(&name), model.get(&name));
                        let differs = model.get(&name) != state.find(&name).map(|resource| &resource.version);
                        prop_assert!(!differs || suspects.contains(&name));
                    }
                }
            }
        }
    }
}
