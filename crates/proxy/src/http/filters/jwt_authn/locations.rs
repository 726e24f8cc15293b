//! Where tokens are found in a request, and how they are taken out of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use leno_base::Name;

use crate::http::filters::header_mutation::query;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::{cookie, joined, query_value};
use crate::matching::percent_decode;

/// Where the tokens of some providers are looked for.
#[derive(Debug, Default)]
pub(super) struct Locations {
    /// By name and prefix, in Envoy's order.
    headers: BTreeMap<(Name, Box<str>), Issuers>,
    parameters: BTreeMap<Box<str>, Issuers>,
    cookies: BTreeMap<Box<str>, Issuers>,
    /// Headers that only this filter may set.
    reserved: Vec<Name>,
}

/// The issuers of which a location may hold tokens.
#[derive(Debug, Default)]
pub(super) struct Issuers {
    any: bool,
    named: Vec<Box<str>>,
}

impl Issuers {
    fn add(&mut self, issuer: &str) {
        if issuer.is_empty() {
            self.any = true;
        } else {
            self.named.push(issuer.into());
        }
    }

    /// Whether a token of this issuer may be there.
    pub(super) fn allow(&self, issuer: &str) -> bool {
        self.any || self.named.iter().any(|named| **named == *issuer)
    }
}

/// A place where a token was found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'l> {
    /// A header.
    Header(&'l Name),
    /// A query parameter.
    Parameter(&'l str),
    /// A cookie.
    Cookie,
}

/// A token that was found.
#[derive(Debug)]
pub(super) struct Found<'l> {
    /// Its text.
    pub(super) text: String,
    /// Where it was.
    pub(super) place: Place<'l>,
    /// Whose it may be.
    pub(super) issuers: &'l Issuers,
}

impl Locations {
    /// Adds a header, of which the token follows `prefix`.
    pub(super) fn add_header(&mut self, name: Name, prefix: &str, issuer: &str) {
        self.headers.entry((name, prefix.into())).or_default().add(issuer);
    }

    /// Adds a query parameter.
    pub(super) fn add_parameter(&mut self, name: &str, issuer: &str) {
        self.parameters.entry(name.into()).or_default().add(issuer);
    }

    /// Adds a cookie.
    pub(super) fn add_cookie(&mut self, name: &str, issuer: &str) {
        self.cookies.entry(name.into()).or_default().add(issuer);
    }

    /// Nobody but the filter may set this header.
    pub(super) fn reserve(&mut self, name: Name) {
        self.reserved.push(name);
    }

    /// Removes the headers that only this filter may set.
    pub(super) fn sanitize(&self, head: &mut HeaderMap) {
        for name in &self.reserved {
            head.remove_named(name);
        }
    }

    /// The tokens of a request, in the order of locations.
    pub(super) fn find(&self, head: &HeaderMap) -> Vec<Found<'_>> {
        let mut found = Vec::new();
        for ((name, prefix), issuers) in &self.headers {
            let place = Place::Header(name);
            let mut add = |value: &[u8]| {
                let Some(token) = token(value, prefix.as_bytes()) else { return };
                let text = String::from_utf8_lossy(token).into_owned();
                found.push(Found { text, place, issuers });
            };
            if **name == *Known::Authorization.text() {
                // Envoy has made one of several by now.
                let mut values = head.find_all(name);
                if let Some(first) = values.next() {
                    add(&joined(first, values));
                }
            } else {
                head.find_all(name).for_each(add);
            }
        }
        if !self.parameters.is_empty()
            && let Some(mark) = head.path().iter().position(|byte| *byte == b'?')
        {
            let query = head.path().get(mark + 1..).unwrap_or_default();
            for (name, issuers) in &self.parameters {
                if let Some(value) = query_value(query, name.as_bytes()) {
                    let text = String::from_utf8_lossy(&percent_decode(value)).into_owned();
                    found.push(Found { text, place: Place::Parameter(name), issuers });
                }
            }
        }
        for (name, issuers) in &self.cookies {
            if let Some(value) = cookie(head, name) {
                let text = String::from_utf8_lossy(value).into_owned();
                found.push(Found { text, place: Place::Cookie, issuers });
            }
        }
        found
    }
}

impl Place<'_> {
    /// Takes the token out of the request. As in Envoy, cookies stay.
    pub(super) fn clear(self, head: &mut HeaderMap) {
        match self {
            Place::Header(name) => {
                head.remove_named(name);
            }
            Place::Parameter(name) => {
                let path = query::without(head.path(), name);
                head.set(Known::Path, &path);
            }
            Place::Cookie => {}
        }
    }
}

/// The token in a header's value; `None`: it has not the prefix.
fn token<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let start = memchr::memmem::find(value, prefix)? + prefix.len();
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let rest = value.get(start..)?;
    // Where nothing looks like a token, all of it is one that will be found wrong.
    Some(rest.iter().position(part).map_or(value, |at| &rest[at..]))
}

/// Base64 without padding, with it.
pub(super) fn padded(text: &str) -> Cow<'_, str> {
    match text.len() % 4 {
        0 => Cow::Borrowed(text),
        rest => Cow::Owned(format!("{text}{}", "=".repeat(4 - rest))),
    }
}
