//! Virtual hosts by domain: exact names, wildcards at either end, and `*`.
//!
//! Exact names are found by one hash look-up, wildcards by one for each different length.

use std::collections::HashMap;

use leno_base::{FastHash, Name};

/// The domains of a table's own virtual hosts, which are known by their places.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: HashMap<Name, usize, FastHash>,
    wildcards: Wildcards<usize>,
}

/// Values by domains that stand for many hosts.
#[derive(Clone, Debug)]
pub(super) struct Wildcards<V> {
    /// `*.example.com`, as `.example.com`, by length, longest first.
    suffixes: Vec<(usize, HashMap<Name, V, FastHash>)>,
    /// `example.*`, as `example.`, likewise.
    prefixes: Vec<(usize, HashMap<Name, V, FastHash>)>,
    /// `*`
    pub(super) any: Option<V>,
}

/// What a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'d> {
    Exact,
    /// The part behind the star.
    Suffix(&'d str),
    /// The part in front of the star.
    Prefix(&'d str),
    Any,
}

impl<'d> Kind<'d> {
    pub(super) fn of(domain: &'d str) -> Self {
        if domain == "*" {
            Self::Any
        } else if let Some(suffix) = domain.strip_prefix('*') {
            Self::Suffix(suffix)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            Self::Prefix(prefix)
        } else {
            Self::Exact
        }
    }
}

impl Domains {
    /// Adds a domain in lower case; false: it is there already, and stays what it was.
    pub(super) fn insert(&mut self, domain: &Name, place: usize) -> bool {
        if self.contains(domain) {
            return false;
        }
        match Kind::of(domain) {
            Kind::Exact => drop(self.exact.insert(domain.clone(), place)),
            _ => self.wildcards.insert(domain, place),
        }
        true
    }

    /// Whether this very domain is there.
    pub(super) fn contains(&self, domain: &str) -> bool {
        match Kind::of(domain) {
            Kind::Exact => self.exact.contains_key(domain),
            _ => self.wildcards.get(domain).is_some(),
        }
    }

    /// The virtual host of a host name in lower case: exact, longest suffix, longest prefix, any.
    pub(super) fn find(&self, host: &str) -> Option<usize> {
        if host.is_empty() {
            return self.wildcards.any;
        }
        if let Some(place) = self.exact.get(host) {
            return Some(*place);
        }
        let Wildcards { any, .. } = self.wildcards;
        let found = self.wildcards.suffix(host).or_else(|| self.wildcards.prefix(host));
        found.map(|(_, place)| *place).or(any)
    }

    pub(super) fn exact(&self, host: &str) -> Option<usize> {
        self.exact.get(host).copied()
    }

    pub(super) fn wildcards(&self) -> &Wildcards<usize> {
        &self.wildcards
    }
}

impl<V> Wildcards<V> {
    /// The value of this very domain.
    pub(super) fn get(&self, domain: &str) -> Option<&V> {
        let find = |list: &'_ [(usize, HashMap<Name, V, FastHash>)], part: &str| {
            list.iter().position(|(length, _)| *length == part.len())
        };
        match Kind::of(domain) {
            Kind::Any => self.any.as_ref(),
            Kind::Suffix(part) => self.suffixes.get(find(&self.suffixes, part)?)?.1.get(part),
            Kind::Prefix(part) => self.prefixes.get(find(&self.prefixes, part)?)?.1.get(part),
            Kind::Exact => None,
        }
    }

    /// Sets the value of a domain that is a wildcard.
    pub(super) fn insert(&mut self, domain: &str, value: V) {
        let (list, part) = match Kind::of(domain) {
            Kind::Suffix(part) => (&mut self.suffixes, part),
            Kind::Prefix(part) => (&mut self.prefixes, part),
            Kind::Any | Kind::Exact => {
                self.any = Some(value);
                return;
            }
        };
        let place = list.iter().position(|(length, _)| *length <= part.len()).unwrap_or(list.len());
        if list.get(place).is_none_or(|(length, _)| *length != part.len()) {
            list.insert(place, (part.len(), HashMap::default()));
        }
        if let Some((_, values)) = list.get_mut(place) {
            values.insert(part.into(), value);
        }
    }

    /// Takes out a domain.
    pub(super) fn remove(&mut self, domain: &str) {
        let (list, part) = match Kind::of(domain) {
            Kind::Suffix(part) => (&mut self.suffixes, part),
            Kind::Prefix(part) => (&mut self.prefixes, part),
            Kind::Any => {
                self.any = None;
                return;
            }
            Kind::Exact => return,
        };
        list.retain_mut(|(length, values)| {
            if *length == part.len() {
                values.remove(part);
            }
            !values.is_empty()
        });
    }

    /// The longest wildcard at the beginning that a host in lower case ends with, and its length.
    pub(super) fn suffix(&self, host: &str) -> Option<(usize, &V)> {
        // A wildcard stands for at least one character.
        self.suffixes.iter().find_map(|(length, values)| {
            let start = host.len().checked_sub(*length).filter(|start| *start > 0)?;
            Some((*length, values.get(host.get(start..)?)?))
        })
    }

    /// Likewise the longest at the end.
    pub(super) fn prefix(&self, host: &str) -> Option<(usize, &V)> {
        self.prefixes.iter().find_map(|(length, values)| {
            if *length >= host.len() {
                return None;
            }
            Some((*length, values.get(host.get(..*length)?)?))
        })
    }
}

impl<V> Default for Wildcards<V> {
    fn default() -> Self {
        Self { suffixes: Vec::new(), prefixes: Vec::new(), any: None }
    }
}
