//! What is asked of VHDS: which route tables have virtual hosts that come one by one, which of these
//! were asked for because a request needed them, and which tables still wait for the first answer.
//!
//! The virtual hosts themselves lie in the tables (`http::route::discovered`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use leno_base::Name;
use leno_xds::TypeUrl;

use super::table::Reference;
use crate::config::source::{ConfigSource, Origin, ResourceKey};

/// How many names a table asks for at most.
///
/// Deviation: Envoy asks for every host that a client makes up, and never forgets one. Here the
/// oldest name goes when there are too many, one that there is no virtual host of if there is one; who
/// needs it again asks anew.
const MOST: usize = 10_000;

/// How many of the oldest names are looked at for one that there is no virtual host of.
const LOOKED_AT: usize = 64;

/// All tables that have `vhds`.
#[derive(Debug, Default)]
pub(super) struct HostDemands {
    tables: BTreeMap<ResourceKey, Demands>,
    /// Places that have answered once.
    came: BTreeSet<Origin>,
    /// Names that were answered, for those who wait for them.
    answered: Vec<Name>,
    /// What is wanted now and was not, or the other way round.
    moved: BTreeSet<Reference>,
}

/// What one of them asks for.
#[derive(Debug)]
struct Demands {
    origin: Origin,
    timeout: Option<Duration>,
    /// It is not in force: the first answer is awaited.
    waits: bool,
    /// Names (`TABLE/HOST`) that were asked for; whether there was an answer.
    asked: HashMap<Name, bool>,
    /// The same, the oldest first.
    order: VecDeque<Name>,
}

impl HostDemands {
    /// A table has come. One that was not there before waits for the first answer, unless there was
    /// one.
    ///
    /// Deviation: any first answer will do, an empty one too; Envoy waits for one that has something
    /// for this table, for `initial_fetch_timeout` otherwise.
    pub(super) fn put(&mut self, table: &ResourceKey, vhds: Option<&ConfigSource>, is_new: bool) {
        let Some(source) = vhds else {
            self.forget(table);
            return;
        };
        if let Some(demands) = self.tables.get_mut(table) {
            demands.timeout = source.initial_fetch_timeout;
            if demands.origin != source.origin {
                self.moved.extend(demands.references(table));
                demands.origin = source.origin.clone();
                self.moved.extend(demands.references(table));
            }
            return;
        }
        let demands = Demands {
            origin: source.origin.clone(),
            timeout: source.initial_fetch_timeout,
            waits: is_new && !self.came.contains(&source.origin),
            asked: HashMap::new(),
            order: VecDeque::new(),
        };
        self.moved.extend(demands.references(table));
        self.tables.insert(table.clone(), demands);
    }

    /// A table is gone, or has no `vhds` any more: nobody need wait for its hosts.
    pub(super) fn forget(&mut self, table: &ResourceKey) {
        let Some(demands) = self.tables.remove(table) else { return };
        self.moved.extend(demands.references(table));
        self.answered.extend(demands.order);
        if !self.tables.values().any(|other| other.origin == demands.origin) {
            self.came.remove(&demands.origin);
        }
    }

    /// Somebody waits for a host of a table. Returns a name that is to be forgotten, as there are too
    /// many. `has`: whether something has come under a name.
    pub(super) fn demand(
        &mut self,
        table: &ResourceKey,
        host: &str,
        has: impl Fn(&Name) -> bool,
    ) -> Option<Name> {
        let name = Name::from(format!("{}/{host}", table.name));
        let Some(demands) = self.tables.get_mut(table) else {
            self.answered.push(name);
            return None;
        };
        match demands.asked.get(&name) {
            Some(true) => self.answered.push(name),
            Some(false) => {}
            None => {
                self.moved.insert(Reference::hosts(name.clone(), &demands.origin));
                demands.asked.insert(name.clone(), false);
                demands.order.push_back(name);
                if demands.order.len() > MOST {
                    let mut oldest = demands.order.iter().take(LOOKED_AT);
                    let place = oldest.position(|name| !has(name)).unwrap_or(0);
                    let gone = demands.order.remove(place)?;
                    demands.asked.remove(&gone);
                    self.moved.insert(Reference::hosts(gone.clone(), &demands.origin));
                    self.answered.push(gone.clone());
                    return Some(gone);
                }
            }
        }
        None
    }

    /// The tables that what comes from a place under this name is for.
    pub(super) fn tables_of(&self, name: &str, origin: &Origin) -> Vec<ResourceKey> {
        let Some((table, _)) = name.rsplit_once('/') else { return Vec::new() };
        self.named(table)
            .filter(|(_, demands)| demands.origin == *origin)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Tables of this name, wherever they come from.
    fn named(&self, table: &str) -> impl Iterator<Item = (&ResourceKey, &Demands)> {
        let table = Name::new(table);
        // No origin comes before this one.
        let first = ResourceKey { name: table.clone(), origin: Origin::Ads };
        self.tables.range(first..).take_while(move |(key, _)| key.name == table)
    }

    /// These names were answered, whatever the answer was.
    pub(super) fn answer(&mut self, names: impl Iterator<Item = Name>, origin: &Origin) {
        for name in names {
            for table in self.tables_of(&name, origin) {
                let asked = self.tables.get_mut(&table).and_then(|demands| demands.asked.get_mut(&name));
                if asked.is_some_and(|answered| !std::mem::replace(answered, true)) {
                    self.answered.push(name.clone());
                }
            }
        }
    }

    /// A place has answered once, or did not in time. The tables that have waited for it.
    pub(super) fn came(&mut self, origin: &Origin) -> Vec<ResourceKey> {
        if !self.came.insert(origin.clone()) {
            return Vec::new();
        }
        let waiting =
            self.tables.iter_mut().filter(|(_, demands)| demands.waits && demands.origin == *origin);
        let waiting = waiting.map(|(table, demands)| {
            demands.waits = false;
            table.clone()
        });
        waiting.collect()
    }

    /// Whether a table is not to be in force yet.
    pub(super) fn waits(&self, table: &ResourceKey) -> bool {
        self.tables.get(table).is_some_and(|demands| demands.waits)
    }

    /// Whether anything is waited for by the table itself, or its users have changed.
    pub(super) fn users_moved(&mut self, table: &ResourceKey) {
        if let Some(demands) = self.tables.get(table) {
            self.moved.insert(demands.whole(table));
        }
    }

    /// The tables that refer to this, with how long each waits for the first answer.
    pub(super) fn users(
        &self,
        reference: &Reference,
    ) -> impl Iterator<Item = (&ResourceKey, Option<Duration>)> {
        let is_host = reference.type_url == TypeUrl::VirtualHost;
        let parts = reference.key.name.rsplit_once('/').filter(|_| is_host);
        let tables = parts
            .into_iter()
            .flat_map(|(table, host)| self.named(table).map(move |(key, demands)| (host, key, demands)));
        let users = tables.filter(|(host, _, demands)| {
            demands.origin == reference.key.origin
                && (host.is_empty() || demands.asked.contains_key(&*reference.key.name))
        });
        users.map(|(_, key, demands)| (key, demands.timeout))
    }

    pub(super) fn take_moved(&mut self) -> BTreeSet<Reference> {
        std::mem::take(&mut self.moved)
    }

    pub(super) fn take_answered(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.answered)
    }

    /// Whether somebody is to be told of something.
    pub(super) fn is_news(&self) -> bool {
        !self.answered.is_empty() || !self.moved.is_empty()
    }
}

impl Demands {
    /// To the table's hosts as a whole.
    fn whole(&self, table: &ResourceKey) -> Reference {
        Reference::hosts(Name::from(format!("{}/", table.name)), &self.origin)
    }

    fn references(&self, table: &ResourceKey) -> impl Iterator<Item = Reference> {
        let asked = self.order.iter().map(|name| Reference::hosts(name.clone(), &self.origin));
        std::iter::once(self.whole(table)).chain(asked)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{HostDemands, MOST};
    use crate::config::source::{ConfigSource, Origin, ResourceKey};

    fn source() -> ConfigSource {
        ConfigSource { origin: Origin::Ads, initial_fetch_timeout: Some(Duration::from_secs(15)) }
    }

    /// What is asked for now that was not, and the other way round.
    fn moved(demands: &mut HostDemands) -> Vec<String> {
        let moved = demands.take_moved().into_iter().map(|reference| {
            let sign = if demands.users(&reference).next().is_some() { '+' } else { '-' };
            format!("{sign}{}", reference.key.name)
        });
        moved.collect()
    }

    fn answered(demands: &mut HostDemands) -> Vec<String> {
        demands.take_answered().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_is_asked_for_once_and_its_answer_is_remembered() {
        let mut demands = HostDemands::default();
        let table = ResourceKey::from("a/r");
        demands.put(&table, Some(&source()), true);
        assert_eq!(moved(&mut demands), ["+a/r/"]);
        assert!(demands.waits(&table));
        assert_eq!(demands.came(&Origin::Ads).len(), 1);
        assert!(!demands.waits(&table));
        for _ in 0..2 {
            assert_eq!(demands.demand(&table, "x", |_| false), None);
        }
        assert_eq!(moved(&mut demands), ["+a/r/x"]);
        assert!(answered(&mut demands).is_empty());
        demands.answer(["a/r/x".into(), "a/r/y".into(), "r/x".into()].into_iter(), &Origin::Ads);
        assert_eq!(answered(&mut demands), ["a/r/x"], "nobody asked for the others");
        assert_eq!(demands.demand(&table, "x", |_| false), None);
        assert_eq!((moved(&mut demands).len(), answered(&mut demands)), (0, vec!["a/r/x".to_owned()]));
        // A later table of the same place waits for nothing.
        demands.put(&"b".into(), Some(&source()), true);
        assert!(!demands.waits(&"b".into()));
        // Without `vhds` it wants nothing any more, and who waits goes on.
        demands.demand(&table, "z", |_| false);
        moved(&mut demands);
        demands.put(&table, None, false);
        assert_eq!(moved(&mut demands), ["-a/r/", "-a/r/x", "-a/r/z"]);
        assert_eq!(answered(&mut demands), ["a/r/x", "a/r/z"]);
        demands.demand(&table, "z", |_| false);
        assert_eq!(answered(&mut demands), ["a/r/z"], "there is nobody to ask");
    }

    #[test]
    fn no_more_names_are_kept_than_may_be() {
        let mut demands = HostDemands::default();
        let table = ResourceKey::from("r");
        demands.put(&table, Some(&source()), true);
        for host in 0..MOST {
            assert_eq!(demands.demand(&table, &host.to_string(), |_| false), None);
        }
        moved(&mut demands);
        // The third is the oldest that there is no host of.
        let gone = demands.demand(&table, "a", |name| ["r/0", "r/1"].contains(&name.as_str()));
        assert_eq!(gone.as_deref(), Some("r/2"));
        assert_eq!(moved(&mut demands), ["-r/2", "+r/a"]);
        assert_eq!(answered(&mut demands), ["r/2"]);
        let gone = demands.demand(&table, "b", |_| true);
        assert_eq!(gone.as_deref(), Some("r/0"));
        assert_eq!(demands.demand(&table, "1", |_| true), None);
    }
}
