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
    /// What was answered ([`ResourceKey::host`]), for those who wait for it.
    answered: Vec<ResourceKey>,
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
    /// Names (`TABLE/HOST`) that were asked for; if there was an answer, under which name it came.
    asked: HashMap<Name, Option<Name>>,
    /// The same, the oldest first.
    order: VecDeque<Name>,
}

impl HostDemands {
    /// A table has come. One that was not there before waits for the first answer, unless there was
    /// one.
    ///
    /// Deviation: any first answer of the place will do, an empty one too, and a later table of the same
    /// place waits for none; Envoy waits for one that has something for this table, for
    /// `initial_fetch_timeout` otherwise.
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
        let answered = demands.order.into_iter();
        self.answered.extend(answered.map(|name| ResourceKey { name, origin: table.origin.clone() }));
        if !self.tables.values().any(|other| other.origin == demands.origin) {
            self.came.remove(&demands.origin);
        }
    }

    /// Somebody waits for a host of a table. If there are too many, one is not asked for any more: returns
    /// the name of what is to be forgotten with it. `has`: whether something has come under a name.
    pub(super) fn demand(
        &mut self,
        table: &ResourceKey,
        host: &str,
        has: impl Fn(&Name) -> bool,
    ) -> Option<Name> {
        let awaited = table.host(host);
        let Some(demands) = self.tables.get_mut(table) else {
            self.answered.push(awaited);
            return None;
        };
        match demands.asked.get(&awaited.name) {
            Some(Some(_)) => self.answered.push(awaited),
            Some(None) => {}
            None => {
                self.moved.insert(Reference::hosts(awaited.name.clone(), &demands.origin));
                demands.asked.insert(awaited.name.clone(), None);
                demands.order.push_back(awaited.name);
                if demands.order.len() > MOST {
                    return self.forget_one(table, has);
                }
            }
        }
        None
    }

    /// Asks no more for one of the oldest names of a table.
    fn forget_one(&mut self, table: &ResourceKey, has: impl Fn(&Name) -> bool) -> Option<Name> {
        let demands = self.tables.get_mut(table)?;
        let found = |name: &Name| demands.asked.get(name).and_then(Option::as_ref).is_some_and(&has);
        let place = demands.order.iter().take(LOOKED_AT).position(|name| !found(name)).unwrap_or(0);
        let gone = demands.order.remove(place)?;
        let given = demands.asked.remove(&gone).flatten();
        self.moved.insert(Reference::hosts(gone.clone(), &demands.origin));
        self.answered.push(ResourceKey { name: gone, origin: table.origin.clone() });
        // Another name may stand for it as well.
        given.filter(|given| !demands.asked.values().any(|other| other.as_ref() == Some(given)))
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

    /// These names were answered, whatever the answer was, each under a name.
    pub(super) fn answer(&mut self, names: impl Iterator<Item = (Name, Name)>, origin: &Origin) {
        for (name, given) in names {
            for table in self.tables_of(&name, origin) {
                let asked = self.tables.get_mut(&table).and_then(|demands| demands.asked.get_mut(&name));
                if asked.is_some_and(|answered| answered.replace(given.clone()).is_none()) {
                    self.answered.push(ResourceKey { name: name.clone(), origin: table.origin });
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

    /// The tables that refer to this, with how long each waits for the first answer; who waits for one
    /// host has a time of its own.
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
        users.map(|(host, key, demands)| (key, demands.timeout.filter(|_| host.is_empty())))
    }

    pub(super) fn take_moved(&mut self) -> BTreeSet<Reference> {
        std::mem::take(&mut self.moved)
    }

    pub(super) fn take_answered(&mut self) -> Vec<ResourceKey> {
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

    use leno_base::Name;

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
        demands.take_answered().iter().map(|key| key.name.to_string()).collect()
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
        let names = ["a/r/x", "a/r/y", "r/x"].map(|name| (name.into(), name.into()));
        demands.answer(names.into_iter(), &Origin::Ads);
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
        // The first three came under other names, two of them under the same.
        let names = [("r/0", "r/x"), ("r/1", "r/x"), ("r/2", "r/y"), ("r/3", "r/z")];
        let names = names.map(|(name, given)| (name.into(), given.into()));
        demands.answer(names.into_iter(), &Origin::Ads);
        answered(&mut demands);
        // The fourth is the oldest that there is no host of.
        let has = |name: &Name| ["r/x", "r/y"].contains(&name.as_str());
        assert_eq!(demands.demand(&table, "a", has).as_deref(), Some("r/z"));
        assert_eq!(moved(&mut demands), ["-r/3", "+r/a"]);
        assert_eq!(answered(&mut demands), ["r/3"]);
        assert_eq!(demands.demand(&table, "b", has), None, "r/4 was not answered");
        let all = |_: &Name| true;
        demands.answer(
            (5..MOST).map(|host| format!("r/{host}")).map(|name| ((&*name).into(), (&*name).into())),
            &Origin::Ads,
        );
        assert_eq!(demands.demand(&table, "c", all), None, "r/1 stands for what r/0 stood for");
        assert_eq!(demands.demand(&table, "d", all).as_deref(), Some("r/x"));
        assert_eq!(demands.demand(&table, "1", all).as_deref(), Some("r/y"));
    }
}
