//! Role-based access control (envoy.config.rbac.v3): policies and match trees that judge a
//! connection or a request.
//!
//! An [`Engine`] is lowered once and judges any [`Facts`], so that the HTTP filter and the network
//! filter share it. Policies are compiled: permissions and principals are trees of one kind of
//! [`Rule`], alternatives of one kind are merged into sets (names into a hash set, addresses into
//! ranges), and what is cheap and says no most often is asked first. What the judgement says in
//! dynamic metadata is made when lowering. Judging allocates nothing.
//! Reading order: this file, `lower`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use leno_base::{CidrSet, Name};
use regex::bytes::Regex;

use crate::http::headers::Known;
use crate::http::route::matcher::{HeaderMatcher, StringMatcher};
use crate::matching::cel::Condition;
use crate::matching::facts::PeerName;
use crate::matching::value::{FilterStateMatcher, MetadataMatcher};
use crate::matching::{Facts, Matcher};
use crate::telemetry::metadata::Namespace;

mod lower;
#[cfg(test)]
mod tests;

pub(crate) use self::lower::{Labels, from_matcher, from_rules};

/// Judges connections or requests.
#[derive(Debug)]
pub(crate) struct Engine {
    decide: Decide,
    /// The judgement where nothing matches.
    otherwise: Outcome,
}

#[derive(Debug)]
enum Decide {
    /// `rules`: the first policy that matches, in the order of their names.
    Policies(Vec<Policy>),
    /// `matcher`.
    Matcher(Matcher<Outcome>),
}

/// A judgement.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The policy that decided.
    pub(crate) policy: Option<Name>,
    /// Whether the request may go on.
    pub(crate) allowed: bool,
    /// What it says of itself in dynamic metadata.
    pub(crate) note: Arc<Namespace>,
    /// With the action LOG: what it tells access logs.
    pub(crate) log_hint: Option<Arc<Namespace>>,
}

/// A policy: both parts must hold; the cheaper is the first.
#[derive(Debug)]
struct Policy {
    parts: [Rule; 2],
    /// `condition`: it must hold too.
    condition: Option<Condition>,
    outcome: Outcome,
}

/// A Permission or a Principal.
#[derive(Debug)]
enum Rule {
    Any,
    And(Vec<Rule>),
    Or(Vec<Rule>),
    Not(Box<Rule>),
    Header(HeaderMatcher),
    /// The path without query and fragment.
    Path(Texts),
    /// The same against a template.
    Template(Regex),
    Ip(Which, CidrSet),
    /// The destination's port, in start..end.
    Port(u32, u32),
    Metadata(MetadataMatcher),
    RouteMetadata(MetadataMatcher),
    FilterState(FilterStateMatcher),
    ServerName(Texts),
    /// The address that a filter chose to forward to: ranges and ports (start..=end).
    Upstream(Option<CidrSet>, Option<(i64, i64)>),
    /// A certificate was presented.
    Certificate,
    /// Its URIs or DNS names, else its subject.
    Principal(Texts),
    /// A certificate was verified, and has such a name.
    Verified(Option<(PeerName, StringMatcher)>),
}

/// Whose address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Destination,
    /// The connection's peer.
    Connection,
    /// The socket's peer.
    Direct,
    /// The peer as far as trusted headers know it.
    Remote,
}

/// Alternative texts.
#[derive(Debug, Default)]
struct Texts {
    exact: HashSet<Box<[u8]>>,
    others: Vec<StringMatcher>,
}

impl Engine {
    /// The judgement of a connection or request.
    pub(crate) fn judge(&self, facts: &impl Facts) -> &Outcome {
        let found = match &self.decide {
            Decide::Policies(policies) => {
                let matched = |policy: &&Policy| {
                    policy.parts.iter().all(|rule| rule.holds(facts))
                        && policy.condition.as_ref().is_none_or(|condition| condition.holds(facts))
                };
                policies.iter().find(matched).map(|policy| &policy.outcome)
            }
            Decide::Matcher(matcher) => matcher.find(facts),
        };
        found.unwrap_or(&self.otherwise)
    }
}

impl Outcome {
    /// `%RESPONSE_CODE_DETAILS%` or `%CONNECTION_TERMINATION_DETAILS%` of a refusal.
    pub(crate) fn details(&self) -> String {
        let policy = self.policy.as_deref().unwrap_or("none");
        format!("rbac_access_denied_matched_policy[{}]", policy.replace(char::is_whitespace, "_"))
    }
}

impl Texts {
    fn matches(&self, text: &[u8]) -> bool {
        (!self.exact.is_empty() && self.exact.contains(text))
            || self.others.iter().any(|matcher| matcher.matches(text))
    }
}

impl Rule {
    fn holds(&self, facts: &impl Facts) -> bool {
        match self {
            Rule::Any => true,
            Rule::And(rules) => rules.iter().all(|rule| rule.holds(facts)),
            Rule::Or(rules) => rules.iter().any(|rule| rule.holds(facts)),
            Rule::Not(rule) => !rule.holds(facts),
            Rule::Header(matcher) => facts.request().is_some_and(|head| matcher.matches(head)),
            Rule::Path(texts) => path(facts).is_some_and(|path| texts.matches(path)),
            Rule::Template(regex) => path(facts).is_some_and(|path| regex.is_match(path)),
            Rule::Ip(which, ranges) => {
                let address = match which {
                    Which::Destination => facts.destination(),
                    Which::Connection => facts.connection_source(),
                    Which::Direct => facts.direct_source(),
                    Which::Remote => facts.source(),
                };
                address.is_some_and(|address| ranges.contains(address.ip()))
            }
            Rule::Port(start, end) => {
                facts.destination().is_some_and(|address| (*start..*end).contains(&address.port().into()))
            }
            Rule::Metadata(matcher) => match facts.metadata() {
                Some(metadata) => matcher.matches(metadata),
                None => matcher.matches_nothing(),
            },
            Rule::RouteMetadata(matcher) => match facts.route_metadata() {
                Some(metadata) => matcher.matches_configured(metadata),
                None => matcher.matches_nothing(),
            },
            Rule::FilterState(matcher) => matcher.matches(facts.filter_state(&matcher.key)),
            Rule::ServerName(texts) => texts.matches(facts.server_name().as_bytes()),
            Rule::Upstream(ranges, ports) => {
                let state = facts.filter_state("envoy.stream.upstream_address");
                state.and_then(|state| state.text.parse::<SocketAddr>().ok()).is_some_and(|address| {
                    ranges.as_ref().is_none_or(|ranges| ranges.contains(address.ip()))
                        && ports.is_none_or(|(start, end)| (start..=end).contains(&address.port().into()))
                })
            }
            Rule::Certificate => facts.is_secure(),
            Rule::Principal(texts) => principal(texts, facts),
            Rule::Verified(name) => {
                facts.is_verified()
                    && name.as_ref().is_none_or(|(kind, matcher)| {
                        facts.find_peer_name(*kind, &mut |name| matcher.matches(name.as_bytes()))
                    })
            }
        }
    }

    /// How costly it is to ask, in about nanoseconds.
    fn cost(&self) -> u32 {
        let texts = |texts: &Texts| 4 + texts.others.iter().map(text_cost).sum::<u32>();
        match self {
            Rule::Any => 0,
            Rule::And(rules) | Rule::Or(rules) => rules.iter().map(Rule::cost).sum(),
            Rule::Not(rule) => rule.cost(),
            Rule::Port(..) | Rule::Certificate => 1,
            Rule::Ip(..) | Rule::Upstream(..) => 8,
            Rule::Path(paths) => 2 + texts(paths),
            Rule::ServerName(names) => texts(names),
            Rule::Principal(names) => 10 + texts(names),
            Rule::Verified(_) => 20,
            Rule::Header(_) => 12,
            Rule::Metadata(_) | Rule::RouteMetadata(_) | Rule::FilterState(_) => 15,
            Rule::Template(_) => 60,
        }
    }
}

fn text_cost(matcher: &StringMatcher) -> u32 {
    match matcher {
        StringMatcher::Regex(_) => 60,
        StringMatcher::Contains(..) => 10,
        StringMatcher::Exact(..) | StringMatcher::Prefix(..) | StringMatcher::Suffix(..) => 3,
    }
}

/// The request's path without query and fragment.
fn path(facts: &impl Facts) -> Option<&[u8]> {
    let path = facts.request()?.get(Known::Path)?;
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
    path.get(..end)
}

/// One of the certificate's URIs, DNS names or its subject, in this order, as Envoy does whatever
/// its documentation says of the subject.
fn principal(texts: &Texts, facts: &impl Facts) -> bool {
    let mut accept = |name: &str| texts.matches(name.as_bytes());
    facts.is_secure()
        && (facts.find_peer_name(PeerName::Uri, &mut accept)
            || facts.find_peer_name(PeerName::Dns, &mut accept)
            || facts.find_peer_name(PeerName::Subject, &mut accept))
}

/// A set of one address range or more.
fn ranges(ranges: impl IntoIterator<Item = leno_base::Cidr>) -> CidrSet {
    ranges.into_iter().collect()
}
