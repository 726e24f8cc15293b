//! One kind of the store's resources, indexed so that an update costs what it changes: with ten
//! thousand clusters, who waits for a resource, what still warms and what is referred to are
//! answered without a look at the others.
//!
//! All that the indexes say follows from the slots; `Table::change`, the only way to a slot that may
//! be written to, keeps them true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;
use leno_xds::TypeUrl;

use crate::config::source::{Origin, ResourceKey};

/// A resource that comes by discovery, as others refer to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    /// Its type: endpoints, routes, a secret, a filter's configuration, or a cluster or virtual host
    /// that was asked for.
    pub(crate) type_url: TypeUrl,
    /// Which.
    pub(crate) key: ResourceKey,
}

impl Reference {
    /// To a cluster that was asked for.
    pub(crate) fn cluster(key: &ResourceKey) -> Self {
        Self { type_url: TypeUrl::Cluster, key: key.clone() }
    }

    /// To endpoints.
    pub(crate) fn endpoints(key: &ResourceKey) -> Self {
        Self { type_url: TypeUrl::Endpoint, key: key.clone() }
    }

    /// To a route table.
    pub(crate) fn routes(key: &ResourceKey) -> Self {
        Self { type_url: TypeUrl::Route, key: key.clone() }
    }

    /// To a virtual host by its name, `TABLE/HOST`; without a host: to those of the table.
    pub(crate) fn hosts(name: Name, origin: &Origin) -> Self {
        Self { type_url: TypeUrl::VirtualHost, key: ResourceKey { name, origin: origin.clone() } }
    }

    /// To the configuration of a filter.
    pub(crate) fn extension(key: &ResourceKey) -> Self {
        Self { type_url: TypeUrl::ExtensionConfig, key: key.clone() }
    }

    /// To a secret.
    pub(crate) fn secret(key: &ResourceKey) -> Self {
        Self { type_url: TypeUrl::Secret, key: key.clone() }
    }
}

/// How one user wants a resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Want {
    /// Which resource.
    pub(crate) reference: Reference,
    /// How long the user waits for it before going on without; `None`: for ever.
    pub(crate) timeout: Option<Duration>,
    /// The user's name in stats: a cluster's, or a connection manager's `stat_prefix`; empty for
    /// secrets and configurations of filters, which count for themselves.
    pub(crate) user: Name,
}

/// What clusters and listeners have in common.
pub(super) trait Versioned {
    fn name(&self) -> &Name;
    fn source(&self) -> &[u8];
    fn added_via_api(&self) -> bool;
    /// Whether it has taken from elsewhere what this other version of itself has.
    fn takes_same(&self, _other: &Self) -> bool {
        true
    }
    /// What it takes from elsewhere.
    fn wants(&self) -> Vec<Want>;
}

/// One resource: the version in force and the one that warms; there is one of them at least.
#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) active: Option<Arc<T>>,
    pub(super) warming: Option<Arc<T>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { active: None, warming: None }
    }
}

impl<T> Slot<T> {
    pub(super) fn newest(&self) -> Option<&Arc<T>> {
        self.warming.as_ref().or(self.active.as_ref())
    }

    /// The version in force, then the one that warms.
    pub(super) fn versions(&self) -> impl Iterator<Item = &Arc<T>> {
        self.active.iter().chain(&self.warming)
    }
}

impl<T: Versioned> Slot<T> {
    /// Whether a version that comes by xDS is to be taken. What the bootstrap defines cannot be
    /// changed by xDS; Envoy accepts such an update and lets it lie.
    fn takes(&self, source: &[u8]) -> bool {
        self.newest().is_none_or(|newest| newest.added_via_api() && newest.source() != source)
    }

    /// Puts a version that is to be taken, unless it is the one in force: then nothing warms.
    fn put(&mut self, version: Arc<T>) {
        let same = |active: &Arc<T>| active.source() == version.source() && active.takes_same(&version);
        let in_force = self.active.as_ref().is_some_and(same);
        self.warming = (!in_force).then_some(version);
    }
}

/// Resources by name.
#[derive(Debug)]
pub(super) struct Table<T> {
    slots: BTreeMap<Name, Slot<T>>,
    /// Those with a version that warms.
    warming: BTreeSet<Name>,
    /// How many have no version in force.
    waiting: usize,
    /// Who refers to what, in force or warming.
    users: BTreeSet<(Reference, Name)>,
    /// What has been referred to, or no more, since it was asked for last.
    moved: BTreeSet<Reference>,
    /// Those that something came for since it was asked for last: they may be warm.
    news: BTreeSet<Name>,
    /// How many slots were looked at: what an update costs.
    #[cfg(test)]
    visits: std::cell::Cell<usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            slots: BTreeMap::new(),
            warming: BTreeSet::new(),
            waiting: 0,
            users: BTreeSet::new(),
            moved: BTreeSet::new(),
            news: BTreeSet::new(),
            #[cfg(test)]
            visits: std::cell::Cell::default(),
        }
    }
}

impl<T: Versioned> Table<T> {
    /// Whether a message of this resource is news, so that it is worth lowering.
    pub(super) fn takes(&self, name: &str, source: &[u8]) -> bool {
        self.slot(name).is_none_or(|slot| slot.takes(source))
    }

    /// Takes a new or changed version; false: it is what we have, or not to be changed.
    pub(super) fn put(&mut self, version: Arc<T>) -> bool {
        if !self.takes(version.name(), version.source()) {
            return false;
        }
        let name = version.name().clone();
        self.change(&name, |slot| slot.put(version));
        self.news.insert(name);
        true
    }

    /// Takes out what came by xDS; `None`: there is none of that name.
    pub(super) fn remove(&mut self, name: &str) -> Option<Slot<T>> {
        let newest = self.slot(name)?.newest()?;
        if !newest.added_via_api() {
            return None;
        }
        let name = newest.name().clone();
        let slot = self.change(&name, std::mem::take);
        self.news.insert(name);
        Some(slot)
    }

    /// The version that warms is in force.
    pub(super) fn activate(&mut self, name: &Name) {
        self.change(name, |slot| slot.active = slot.warming.take().or(slot.active.take()));
    }

    /// Versions with something of theirs made anew take the place of those in force and warming. One
    /// in force stays until the other is warm, unless another version warms anyway. True: it is
    /// replaced at once.
    pub(super) fn renew(&mut self, name: &Name, active: Option<Arc<T>>, warming: Option<Arc<T>>) -> bool {
        self.news.insert(name.clone());
        self.change(name, |slot| {
            let Some(before) = &slot.warming else {
                slot.warming = active;
                return false;
            };
            let others = slot.active.as_ref().is_some_and(|active| active.source() != before.source());
            slot.warming = warming.or(slot.warming.take());
            let Some(active) = active.filter(|_| others) else { return false };
            slot.active = Some(active);
            true
        })
    }

    /// Changes a slot, and the indexes with it. A slot without versions is none.
    fn change<R>(&mut self, name: &Name, change: impl FnOnce(&mut Slot<T>) -> R) -> R {
        #[cfg(test)]
        self.visits.set(self.visits.get() + 1);
        let mut slot = self.slots.remove(name);
        if let Some(before) = &slot {
            self.waiting -= usize::from(before.active.is_none());
            for want in before.versions().flat_map(|version| version.wants()) {
                self.moved.insert(want.reference.clone());
                self.users.remove(&(want.reference, name.clone()));
            }
        }
        let result = change(slot.get_or_insert_default());
        self.warming.remove(name);
        let Some(slot) = slot.filter(|slot| slot.newest().is_some()) else { return result };
        for want in slot.versions().flat_map(|version| version.wants()) {
            self.moved.insert(want.reference.clone());
            self.users.insert((want.reference, name.clone()));
        }
        self.waiting += usize::from(slot.active.is_none());
        if slot.warming.is_some() {
            self.warming.insert(name.clone());
        }
        self.slots.insert(name.clone(), slot);
        result
    }

    /// How its users want a resource: those that wait for it first. Looks at no more of them than
    /// are taken.
    pub(super) fn wants(&self, reference: &Reference) -> impl Iterator<Item = Want> {
        let slots = self.users(reference).filter_map(|name| self.slot(name));
        let versions = slots.flat_map(|slot| slot.warming.iter().chain(&slot.active));
        versions.flat_map(|version| version.wants()).filter(move |want| want.reference == *reference)
    }
}

impl<T> Table<T> {
    /// Both versions of a resource.
    pub(super) fn slot(&self, name: &str) -> Option<&Slot<T>> {
        #[cfg(test)]
        self.visits.set(self.visits.get() + 1);
        self.slots.get(name)
    }

    /// All of them: for who asks about all of them.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&Name, &Slot<T>)> {
        #[cfg(test)]
        self.visits.set(self.visits.get() + self.slots.len());
        self.slots.iter()
    }

    /// The versions that warm.
    pub(super) fn warming(&self) -> impl Iterator<Item = &Arc<T>> {
        self.warming.iter().filter_map(|name| self.slot(name)?.warming.as_ref())
    }

    /// How many warm.
    pub(super) fn count_warming(&self) -> usize {
        self.warming.len()
    }

    /// Whether each of them has a version in force.
    pub(super) fn all_serve(&self) -> bool {
        self.waiting == 0
    }

    /// Those that refer to a resource.
    pub(super) fn users(&self, reference: &Reference) -> impl Iterator<Item = &Name> {
        // No name comes before the empty one.
        let from = (reference.clone(), Name::default());
        self.users.range(from..).take_while(move |(of, _)| of == reference).map(|(_, name)| name)
    }

    /// Whether anything refers to a resource.
    pub(super) fn refers_to(&self, reference: &Reference) -> bool {
        self.users(reference).next().is_some()
    }

    /// All that is referred to, once for each user.
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.users.iter().map(|(reference, _)| reference)
    }

    /// What has come to be referred to since the last call, or has ceased to be, or may have.
    pub(super) fn take_moved(&mut self) -> BTreeSet<Reference> {
        std::mem::take(&mut self.moved)
    }

    /// Something came that this one may have waited for.
    pub(super) fn note(&mut self, name: &Name) {
        self.news.insert(name.clone());
    }

    /// Something came for those that refer to this, which may be warm now; false: nothing refers to
    /// it.
    pub(super) fn note_users(&mut self, reference: &Reference) -> bool {
        let from = (reference.clone(), Name::default());
        let users = self.users.range(from..).take_while(|(of, _)| of == reference);
        let mut any = false;
        for (_, name) in users {
            any = true;
            if self.warming.contains(name) {
                self.news.insert(name.clone());
            }
        }
        any
    }

    /// Those that something came for, gone ones among them.
    pub(super) fn news(&self) -> &BTreeSet<Name> {
        &self.news
    }

    /// Likewise; begins anew.
    pub(super) fn take_news(&mut self) -> BTreeSet<Name> {
        std::mem::take(&mut self.news)
    }

    /// How many slots were looked at so far.
    #[cfg(test)]
    pub(super) fn visits(&self) -> usize {
        self.visits.get()
    }
}
