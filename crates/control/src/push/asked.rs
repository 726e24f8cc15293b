//! The hosts by which one proxy has asked for virtual hosts.

use std::collections::BTreeMap;

use leno_base::Name;

/// How many of them there may be. Leno's proxies forget the oldest of 10,000 for a port, so that only who
/// makes hosts up gets there; what he asks for then he is told there is none of.
pub(super) const MOST_HOSTS: usize = 20_000;

/// How long one may be, in bytes, with the name of the route configuration: longer than any that exists.
pub(super) const MOST_HOST: usize = 512;

/// A host by which a proxy has asked for a virtual host.
#[derive(Clone, Debug)]
pub(crate) struct AskedHost {
    /// As it spells it.
    pub(crate) asked: Name,
    /// What the answer is learnt by.
    pub(crate) learnt: Name,
    /// What the virtual host was called that it was given.
    pub(crate) given: Name,
}

/// All of a proxy's.
#[derive(Debug, Default)]
pub(super) struct AskedHosts {
    /// By what it spells them.
    all: BTreeMap<Name, AskedHost>,
    /// By how many of them a virtual host is asked for, by what it is learnt by and by what it is called.
    named: BTreeMap<Name, usize>,
}

impl AskedHosts {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether this is one of them.
    pub(super) fn contains(&self, asked: &str) -> bool {
        self.all.contains_key(asked)
    }

    /// One more, in place of what was asked for by the same host.
    pub(super) fn insert(&mut self, host: AskedHost) {
        self.remove(&host.asked);
        for name in host.names() {
            *self.named.entry(name.clone()).or_default() += 1;
        }
        self.all.insert(host.asked.clone(), host);
    }

    /// One is not asked for any more.
    pub(super) fn remove(&mut self, asked: &str) {
        let Some(host) = self.all.remove(asked) else { return };
        for name in host.names() {
            if let Some(count) = self.named.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(name);
                }
            }
        }
    }

    /// Whether a virtual host is asked for, by what it is learnt by or called.
    pub(super) fn names(&self, name: &Name) -> bool {
        self.named.contains_key(name)
    }
}

impl AskedHost {
    fn names(&self) -> [&Name; 2] {
        [&self.learnt, &self.given]
    }
}

#[cfg(test)]
mod tests {
    use leno_base::Name;

    use super::{AskedHost, AskedHosts};

    fn host(asked: &str, learnt: &str, given: &str) -> AskedHost {
        AskedHost { asked: Name::new(asked), learnt: Name::new(learnt), given: Name::new(given) }
    }

    #[test]
    fn what_is_asked_for_twice_goes_with_the_second() {
        let mut hosts = AskedHosts::default();
        hosts.insert(host("80/A", "80/a", "80/a.x"));
        hosts.insert(host("80/a.x", "80/a.x", "80/a.x"));
        hosts.insert(host("80/a.x", "80/a.x", "80/a.x"));
        let (learnt, given) = (Name::new("80/a"), Name::new("80/a.x"));
        assert!(hosts.contains("80/A") && !hosts.contains("80/a"));
        assert!(hosts.len() == 2 && hosts.names(&learnt) && hosts.names(&given));
        assert!(!hosts.names(&Name::new("80/A")));
        hosts.remove("80/A");
        hosts.remove("80/b");
        assert!(hosts.len() == 1 && !hosts.names(&learnt) && hosts.names(&given));
        hosts.remove("80/a.x");
        assert!(hosts.len() == 0 && !hosts.names(&given) && hosts.named.is_empty());
    }
}
