//! The generic matcher (`xds.type.matcher.v3.Matcher`): a tree of predicates and maps over named
//! inputs, whose leaves are actions of the place that uses it.
//!
//! A matcher is lowered once for its place (`Place` says which inputs exist there, a closure
//! lowers the actions) and evaluated against [`Facts`], which each kind of data implements:
//! connections whose filter chain is chosen, requests that a policy judges. Maps are found by
//! hashing, prefixes and address ranges by one look-up per length in use.
//! Reading order: this file (evaluation), `facts`, `input`, `lower`; `cel` (conditions); `value` holds the matchers
//! of single values, which route conditions and RBAC use too.

use std::collections::HashMap;

use leno_base::{CidrMap, CidrSet};
use twox_hash::XxHash64;

pub(crate) use self::facts::Facts;
pub(crate) use self::input::percent_decode;
use self::input::{Input, Value};
use self::value::ValueMatcher;
use crate::http::route::matcher::StringMatcher;

pub(crate) mod cel;
pub(crate) mod facts;
mod input;
mod lower;
#[cfg(test)]
mod tests;
pub(crate) mod value;

pub(crate) use self::lower::{Place, lower};

/// A matcher whose leaves are actions.
#[derive(Debug)]
pub(crate) struct Matcher<A> {
    node: Node<A>,
    /// `on_no_match`.
    otherwise: Option<Box<OnMatch<A>>>,
}

/// `matcher_type`.
#[derive(Debug)]
enum Node<A> {
    /// Nothing to ask: only `on_no_match` is left.
    Empty,
    /// `matcher_list`: the first that matches.
    List(Vec<(Predicate, OnMatch<A>)>),
    /// `matcher_tree` with `exact_match_map`.
    Exact(Input, HashMap<Box<[u8]>, OnMatch<A>>),
    /// `matcher_tree` with `prefix_match_map`.
    Prefix(Input, Prefixes<A>),
    /// `matcher_tree` with IPMatcher.
    Ip(Input, Ranges<A>),
    /// `matcher_tree` with ServerNameMatcher.
    ServerName(Input, Domains<A>),
}

/// What follows from a match.
#[derive(Debug)]
struct OnMatch<A> {
    then: Then<A>,
    /// `keep_matching`: matching goes on as if it had not matched.
    keep_matching: bool,
}

#[derive(Debug)]
enum Then<A> {
    Action(A),
    Matcher(Box<Matcher<A>>),
}

/// Prefixes, and their lengths in use, longest first.
#[derive(Debug)]
struct Prefixes<A> {
    lengths: Vec<usize>,
    map: HashMap<Box<[u8]>, OnMatch<A>>,
}

/// IPMatcher: what follows by range; a range may lie in several entries.
#[derive(Debug)]
struct Ranges<A> {
    /// Indexes into `entries`, in the order of the configuration.
    ranges: CidrMap<Vec<usize>>,
    entries: Vec<RangeEntry<A>>,
}

#[derive(Debug)]
struct RangeEntry<A> {
    on_match: OnMatch<A>,
    /// Only if none of its ranges lies around a more specific one that was tried.
    exclusive: bool,
}

/// ServerNameMatcher: exact names and wildcards, as indexes into `entries`.
#[derive(Debug)]
struct Domains<A> {
    /// `*.example.com` as `.example.com`.
    names: HashMap<Box<[u8]>, usize>,
    /// `*`.
    any: Option<usize>,
    entries: Vec<OnMatch<A>>,
}

/// `MatcherList.Predicate`.
#[derive(Debug)]
enum Predicate {
    Single(Input, Test),
    Or(Vec<Predicate>),
    And(Vec<Predicate>),
    Not(Box<Predicate>),
}

/// What is asked of an input's value. An input that has none passes no test.
#[derive(Debug)]
enum Test {
    /// `value_match`.
    Text(StringMatcher),
    /// envoy.matching.matchers.ip.
    Ip(CidrSet),
    /// envoy.matching.matchers.runtime_fraction: share (numerator, denominator) and seed.
    Fraction((u32, u32), u64),
    /// envoy.matching.matchers.consistent_hashing.
    Hash { threshold: u64, modulo: u64, seed: u64 },
    /// envoy.matching.matchers.metadata_matcher; whether it is inverted.
    Metadata(ValueMatcher, bool),
}

impl<A> Matcher<A> {
    /// The action for these facts; `None`: nothing matches.
    pub(crate) fn find(&self, facts: &impl Facts) -> Option<&A> {
        let found = match &self.node {
            Node::Empty => None,
            Node::List(entries) => entries
                .iter()
                .filter(|(predicate, _)| predicate.holds(facts))
                .find_map(|(_, on_match)| on_match.resolve(facts)),
            Node::Exact(input, map) => input
                .value(facts)
                .with_text(|text| map.get(text?))
                .and_then(|on_match| on_match.resolve(facts)),
            Node::Prefix(input, prefixes) => input.value(facts).with_text(|text| prefixes.find(text?, facts)),
            Node::Ip(input, ranges) => input.value(facts).ip().and_then(|ip| ranges.find(ip, facts)),
            Node::ServerName(input, domains) => {
                input.value(facts).with_text(|text| domains.find(text?, facts))
            }
        };
        // What nested matchers do not decide goes back to this one.
        found.or_else(|| self.otherwise.as_ref()?.resolve(facts))
    }

    /// All actions, in the order of the configuration where it has one.
    pub(crate) fn actions(&self) -> Vec<&A> {
        let mut actions = Vec::new();
        self.collect(&mut actions);
        actions
    }

    fn collect<'m>(&'m self, actions: &mut Vec<&'m A>) {
        let mut add = |on_match: &'m OnMatch<A>| match &on_match.then {
            Then::Action(action) => actions.push(action),
            Then::Matcher(matcher) => matcher.collect(actions),
        };
        match &self.node {
            Node::Empty => {}
            Node::List(entries) => entries.iter().for_each(|(_, on_match)| add(on_match)),
            Node::Exact(_, map) => map.values().for_each(add),
            Node::Prefix(_, prefixes) => prefixes.map.values().for_each(add),
            Node::Ip(_, ranges) => ranges.entries.iter().for_each(|entry| add(&entry.on_match)),
            Node::ServerName(_, domains) => domains.entries.iter().for_each(add),
        }
        if let Some(otherwise) = &self.otherwise {
            match &otherwise.then {
                Then::Action(action) => actions.push(action),
                Then::Matcher(matcher) => matcher.collect(actions),
            }
        }
    }
}

impl<A> OnMatch<A> {
    /// The action; `None`: a nested matcher finds none, or matching is to go on.
    fn resolve(&self, facts: &impl Facts) -> Option<&A> {
        if self.keep_matching {
            return None;
        }
        match &self.then {
            Then::Action(action) => Some(action),
            Then::Matcher(matcher) => matcher.find(facts),
        }
    }
}

impl<A> Prefixes<A> {
    /// The longest prefix whose subtree decides.
    fn find(&self, text: &[u8], facts: &impl Facts) -> Option<&A> {
        let found = self.lengths.iter().filter_map(|length| self.map.get(text.get(..*length)?));
        found.into_iter().find_map(|on_match| on_match.resolve(facts))
    }
}

impl<A> Ranges<A> {
    /// The most specific range whose subtree decides.
    fn find(&self, ip: std::net::IpAddr, facts: &impl Facts) -> Option<&A> {
        let indexes = self.ranges.matches(ip).flat_map(|(_, indexes)| indexes);
        let mut first = true;
        for entry in indexes.filter_map(|index| self.entries.get(*index)) {
            if first || !entry.exclusive {
                let found = entry.on_match.resolve(facts);
                if found.is_some() {
                    return found;
                }
            }
            first = false;
        }
        None
    }
}

impl<A> Domains<A> {
    /// The most specific name whose subtree decides: exact, longest wildcard, any.
    fn find(&self, name: &[u8], facts: &impl Facts) -> Option<&A> {
        let lower = name.to_ascii_lowercase();
        let dots = memchr::memchr_iter(b'.', &lower).filter(|dot| *dot > 0);
        let suffixes = dots.filter_map(|dot| self.names.get(lower.get(dot..)?));
        let indexes = self.names.get(&*lower).into_iter().chain(suffixes).chain(&self.any);
        indexes.filter_map(|index| self.entries.get(*index)).find_map(|on_match| on_match.resolve(facts))
    }
}

impl Predicate {
    fn holds(&self, facts: &impl Facts) -> bool {
        match self {
            Predicate::Single(input, test) => test.holds(&input.value(facts)),
            Predicate::Or(any) => any.iter().any(|predicate| predicate.holds(facts)),
            Predicate::And(all) => all.iter().all(|predicate| predicate.holds(facts)),
            Predicate::Not(predicate) => !predicate.holds(facts),
        }
    }
}

impl Test {
    fn holds(&self, value: &Value<'_>) -> bool {
        match self {
            Test::Text(matcher) => value.with_text(|text| text.is_some_and(|text| matcher.matches(text))),
            Test::Ip(ranges) => value.ip().is_some_and(|ip| ranges.contains(ip)),
            Test::Fraction((numerator, denominator), seed) => value.with_text(|text| {
                text.is_some_and(|text| {
                    hash(text, *seed) % u64::from((*denominator).max(1)) < u64::from(*numerator)
                })
            }),
            Test::Hash { threshold, modulo, seed } => value.with_text(|text| {
                text.is_some_and(|text| hash(text, *seed) % (*modulo).max(1) >= *threshold)
            }),
            Test::Metadata(matcher, invert) => match value {
                Value::Json(json) => matcher.matches(*json) != *invert,
                Value::Absent | Value::Text(_) | Value::Port(_) | Value::Ip(_) => false,
            },
        }
    }
}

/// Envoy's hash of an input.
fn hash(text: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, text)
}
