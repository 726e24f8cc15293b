//! Hash policies: what of a request a hashing balancer goes by, as Envoy computes it, so that a
//! mixed fleet sends a request to the same endpoint.
//!
//! Each policy that finds something contributes an XXH64 hash; they are combined by rotating what
//! is there by one bit and xor. A cookie with a `ttl` that the client does not have yet is made
//! up from the connection's addresses, and set with the response.

use std::fmt::Write;

use leno_api::proto::envoy::config::route::v3::route_action as proto;
use leno_base::Name;
use proto::hash_policy::{
    ConnectionProperties, Cookie, FilterState, Header, PolicySpecifier, QueryParameter,
};
use regex::bytes::Regex;
use smallvec::SmallVec;
use twox_hash::XxHash64;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::route::matcher::{self, header_name};
use crate::telemetry::stream_info::StreamInfo;

/// `hash_policy`, at least one.
#[derive(Debug)]
pub(crate) struct HashPolicies(Box<[HashPolicy]>);

#[derive(Debug)]
struct HashPolicy {
    source: Source,
    /// Nothing behind it is looked at if anything was found so far.
    terminal: bool,
}

#[derive(Debug)]
enum Source {
    /// All values of a request header, in order, rewritten first.
    Header(Name, Option<(Regex, Box<str>)>),
    Cookie(Box<CookieSource>),
    /// The client's address without port.
    Address,
    /// The first value of a query parameter.
    Query(Box<str>),
    /// An object that a filter left.
    FilterState(Box<str>),
}

#[derive(Debug)]
struct CookieSource {
    name: Box<str>,
    /// Seconds; `None`: none is made up. 0: it lasts as long as the client's session.
    ttl: Option<u64>,
    path: Box<str>,
    /// What follows in `set-cookie`, as text.
    attributes: Box<str>,
}

/// What policies find, beside the hash.
#[derive(Debug, Default)]
pub(crate) struct Hashed {
    /// The hash, if anything was found.
    pub(crate) hash: Option<u64>,
    /// Values of `set-cookie` for the response.
    pub(crate) cookies: SmallVec<[Box<str>; 1]>,
}

impl HashPolicies {
    /// Lowers a list of policies; `None`: it is empty.
    pub(crate) fn lower(field: &str, protos: Vec<proto::HashPolicy>, at: &mut Lower) -> Option<Self> {
        let policies: Vec<HashPolicy> = at.each(field, protos, lower);
        (!policies.is_empty()).then(|| Self(policies.into()))
    }

    /// What these policies make of a request; without `headers`, of a connection.
    pub(crate) fn hash(&self, headers: Option<&HeaderMap>, info: &StreamInfo) -> Hashed {
        let mut hashed = Hashed::default();
        for policy in &self.0 {
            if let Some(new) = policy.source.hash(headers, info, &mut hashed.cookies) {
                hashed.hash = Some(hashed.hash.map_or(new, |before| before.rotate_left(1) ^ new));
            }
            if policy.terminal && hashed.hash.is_some() {
                break;
            }
        }
        hashed
    }
}

impl Source {
    fn hash(
        &self,
        headers: Option<&HeaderMap>,
        info: &StreamInfo,
        cookies: &mut SmallVec<[Box<str>; 1]>,
    ) -> Option<u64> {
        match self {
            Source::Header(name, rewrite) => hash_header(headers?, name, rewrite.as_ref()),
            Source::Cookie(cookie) => {
                let found = matcher::cookie(headers?, &cookie.name).filter(|value| !value.is_empty());
                if let Some(value) = found {
                    return Some(hash_bytes(value));
                }
                let ttl = cookie.ttl?;
                let connection = &info.connection;
                let addresses = format!("{}{}", connection.direct_remote, connection.local);
                let value = format!("{:016x}", hash_bytes(addresses.as_bytes()));
                cookies.push(cookie.set(&value, ttl));
                Some(hash_bytes(value.as_bytes()))
            }
            Source::Address => Some(hash_ip(info.connection.remote.ip())),
            Source::Query(name) => {
                // As it is written, without percent-decoding, as in Envoy.
                let path = headers?.path();
                let start = path.iter().position(|byte| *byte == b'?')? + 1;
                let query = path.get(start..)?.split(|byte| *byte == b'#').next()?;
                matcher::query_value(query, name.as_bytes()).map(hash_bytes)
            }
            // Deviation: any text that a filter left will do, not only objects made for hashing.
            Source::FilterState(key) => {
                info.filter_state.get(key).map(|object| hash_bytes(object.text.as_bytes()))
            }
        }
    }
}

/// The hash of an IP address.
pub(crate) fn hash_ip(ip: std::net::IpAddr) -> u64 {
    // 39 bytes hold any address as text.
    let mut text = [0; 46];
    let mut rest = text.as_mut_slice();
    // It fits.
    let _ = std::io::Write::write_fmt(&mut rest, format_args!("{ip}"));
    let length = 46 - rest.len();
    hash_bytes(text.get(..length).unwrap_or_default())
}

/// The hash of a text.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

fn hash_header(headers: &HeaderMap, name: &str, rewrite: Option<&(Regex, Box<str>)>) -> Option<u64> {
    let mut values = headers.find_all(name);
    let first = values.next()?;
    let second = values.next();
    let rewritten = |value| match rewrite {
        Some((pattern, with)) => pattern.replace_all(value, with.as_bytes()),
        None => std::borrow::Cow::Borrowed(value),
    };
    let Some(second) = second else { return Some(hash_bytes(&rewritten(first))) };
    let mut all: SmallVec<[_; 4]> = [first, second].into_iter().chain(values).map(rewritten).collect();
    // In whichever order they come, the hash is the same.
    all.sort();
    Some(all.iter().fold(0, |seed, value| XxHash64::oneshot(seed, value)))
}

impl CookieSource {
    fn set(&self, value: &str, ttl: u64) -> Box<str> {
        let mut text = format!("{}=\"{value}\"", self.name);
        // Writing to a string does not fail.
        if ttl > 0 {
            let _ = write!(text, "; Max-Age={ttl}");
        }
        if !self.path.is_empty() {
            let _ = write!(text, "; Path={}", self.path);
        }
        text.push_str(&self.attributes);
        text.push_str("; HttpOnly");
        text.into()
    }
}

fn lower(proto: proto::HashPolicy, at: &mut Lower) -> Option<HashPolicy> {
    let proto::HashPolicy { terminal, policy_specifier } = proto;
    let source = match policy_specifier {
        Some(PolicySpecifier::Header(Header { header_name: name, regex_rewrite })) => {
            let rewrite = match regex_rewrite {
                Some(rewrite) => {
                    Some(at.field("header.regex_rewrite", |at| matcher::substitution(rewrite, at))?)
                }
                None => None,
            };
            Source::Header(header_name(&name), rewrite)
        }
        Some(PolicySpecifier::Cookie(Cookie { name, ttl, path, attributes })) => {
            let ttl = at.duration("cookie.ttl", ttl).map(|ttl| ttl.as_secs());
            let attribute = |text: String, one: proto::hash_policy::CookieAttribute| {
                let proto::hash_policy::CookieAttribute { name, value } = one;
                if value.is_empty() { format!("{text}; {name}") } else { format!("{text}; {name}={value}") }
            };
            let attributes = attributes.into_iter().fold(String::new(), attribute).into();
            Source::Cookie(Box::new(CookieSource { name: name.into(), ttl, path: path.into(), attributes }))
        }
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })) => {
            Source::Address
        }
        // It says that nothing of the connection counts.
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: false })) => {
            return None;
        }
        Some(PolicySpecifier::QueryParameter(QueryParameter { name })) => Source::Query(name.into()),
        Some(PolicySpecifier::FilterState(FilterState { key })) => Source::FilterState(key.into()),
        None => {
            at.error("a policy is required");
            return None;
        }
    };
    Some(HashPolicy { source, terminal })
}
