//! Requirements, and whether a request meets them.
//!
//! Judging is synchronous and changes the request as it goes: headers made of claims are added,
//! tokens are taken out, claims are told in dynamic metadata, also by requirements that are met
//! before another one is not (as in Envoy). Keys that are not there yet end it with
//! [`Verdict::Fetch`]; who calls then judges a copy first.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_tls::jwt::{KeySet, Status, Token};
use serde_json::{Map, Value, json};

use super::local::{self, Identity};
use super::locations::{Found, Locations, padded};
use super::remote::RemoteKeys;
use super::{JwtStats, NAMESPACE};
use crate::http::headers::HeaderMap;
use crate::http::route::matcher::StringMatcher;
use crate::telemetry::metadata::DynamicMetadata;

/// JwtProvider.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) identity: Identity,
    /// `issuer`; empty: any.
    pub(super) issuer: Box<str>,
    pub(super) audiences: Audiences,
    pub(super) subjects: Option<StringMatcher>,
    /// `max_lifetime`, or for ever with `require_expiration`; `None`: `exp` need not be there.
    pub(super) lifetime: Option<Duration>,
    pub(super) keys: Keys,
    pub(super) forward: bool,
    /// `forward_payload_header`, and whether it is padded.
    pub(super) payload_header: Option<(Name, bool)>,
    pub(super) claim_headers: Vec<(Name, ClaimPath)>,
    pub(super) payload_metadata: Option<Box<str>>,
    pub(super) header_metadata: Option<Box<str>>,
    pub(super) failure_metadata: Option<Box<str>>,
    /// `space_delimited_claims`
    pub(super) lists: Vec<Box<str>>,
    /// Seconds.
    pub(super) clock_skew: u64,
    /// `jwt_cache_config`: how many tokens, and of which length at most.
    pub(super) cache: Option<(usize, usize)>,
    pub(super) clear_route_cache: bool,
}

/// Where a claim is found: the steps down the tree of claims.
#[derive(Debug)]
pub(super) struct ClaimPath(pub(super) Vec<Box<str>>);

/// The keys of a provider.
#[derive(Debug)]
pub(super) enum Keys {
    /// `local_jwks`
    Local(Arc<KeySet>),
    /// `local_jwks` that is empty.
    None,
    /// `remote_jwks`
    Remote(Arc<RemoteKeys>),
}

/// Audiences that are wanted; none: any will do.
#[derive(Debug, Default)]
pub(super) struct Audiences(Vec<Box<str>>);

impl Audiences {
    /// These.
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| bare(name).into()).collect())
    }

    fn allow(&self, audiences: &[String]) -> bool {
        self.0.is_empty()
            || audiences.iter().any(|audience| self.0.iter().any(|wanted| **wanted == *bare(audience)))
    }
}

/// An audience without a scheme in front and a slash at the end, which do not count.
fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// JwtRequirement.
#[derive(Debug)]
pub(super) enum Requirement {
    /// Nothing is asked for.
    Nothing,
    /// A token of this provider (by index), for these audiences instead of the provider's.
    Provider { index: usize, locations: Locations, audiences: Option<Audiences> },
    /// `requires_any`; the flag: or no token at all (`allow_missing` among them).
    Any(Vec<Requirement>, bool),
    /// `requires_all`
    All(Vec<Requirement>),
    /// `allow_missing`: tokens of any provider must be good.
    AllowMissing(Locations),
    /// `allow_missing_or_failed`, or `extract_only_without_validation` with a header that says so
    /// when a token is not good.
    AllowFailed(Locations, Option<Name>),
}

/// How judging ends.
pub(super) enum Verdict {
    /// The requirement is met.
    Met,
    /// It is not.
    Refused(Status),
    /// The keys of this provider are needed.
    Fetch(usize),
}

/// A request that is judged.
pub(super) struct Judged<'a> {
    pub(super) providers: &'a [Provider],
    pub(super) head: &'a mut HeaderMap,
    pub(super) metadata: &'a mut DynamicMetadata,
    /// `None`: nothing is counted, because it is judged again.
    pub(super) stats: Option<&'a JwtStats>,
    /// Seconds since the epoch.
    pub(super) wall: u64,
    pub(super) now: Instant,
    /// Providers whose keys could not be fetched.
    pub(super) failed: &'a [usize],
    /// Whether the route is to be looked up again.
    pub(super) refresh: bool,
}

/// Why a token is not taken.
enum Refusal {
    Status(Status),
    Fetch(usize),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Status(status)
    }
}

/// Whose token is looked for.
#[derive(Clone, Copy)]
struct Wanted<'r> {
    provider: Option<usize>,
    audiences: Option<&'r Audiences>,
    /// One that is not good is passed over.
    allow_failed: bool,
    allow_missing: bool,
    /// The header that says that one was not good.
    failure_header: Option<&'r Name>,
}

impl<'a> Judged<'a> {
    /// Judges.
    pub(super) fn judge(&mut self, requirement: &Requirement) -> Verdict {
        match requirement {
            Requirement::Nothing => Verdict::Met,
            Requirement::Provider { index, locations, audiences } => {
                let wanted = Wanted {
                    provider: Some(*index),
                    audiences: audiences.as_ref(),
                    allow_failed: false,
                    allow_missing: false,
                    failure_header: None,
                };
                self.tokens(wanted, locations)
            }
            Requirement::AllowMissing(locations) => {
                let wanted = Wanted {
                    provider: None,
                    audiences: None,
                    allow_failed: false,
                    allow_missing: true,
                    failure_header: None,
                };
                self.tokens(wanted, locations)
            }
            Requirement::AllowFailed(locations, failure_header) => {
                let wanted = Wanted {
                    provider: None,
                    audiences: None,
                    allow_failed: true,
                    allow_missing: true,
                    failure_header: failure_header.as_ref(),
                };
                self.tokens(wanted, locations)
            }
            Requirement::All(all) => {
                for requirement in all {
                    match self.judge(requirement) {
                        Verdict::Met => {}
                        other => return other,
                    }
                }
                Verdict::Met
            }
            Requirement::Any(any, or_missing) => {
                let (mut worst, mut needed) = (Status::Missing, None);
                for requirement in any {
                    match self.judge(requirement) {
                        Verdict::Refused(status) if weight(status) >= weight(worst) => worst = status,
                        Verdict::Refused(_) => {}
                        // Another one may be met without.
                        Verdict::Fetch(provider) => needed = needed.or(Some(provider)),
                        Verdict::Met => return Verdict::Met,
                    }
                }
                if let Some(provider) = needed {
                    return Verdict::Fetch(provider);
                }
                if *or_missing && worst == Status::Missing { Verdict::Met } else { Verdict::Refused(worst) }
            }
        }
    }

    /// All tokens that are there must be good; the last one found is looked at first.
    fn tokens(&mut self, wanted: Wanted<'_>, locations: &Locations) -> Verdict {
        locations.sanitize(self.head);
        let mut found = locations.find(self.head);
        if found.is_empty() {
            return if wanted.allow_missing { Verdict::Met } else { Verdict::Refused(Status::Missing) };
        }
        while let Some(token) = found.pop() {
            let mut by = wanted.provider;
            let status = match self.token(wanted, &token, &mut by) {
                Ok(()) => continue,
                Err(Refusal::Fetch(provider)) => return Verdict::Fetch(provider),
                Err(Refusal::Status(status)) => status,
            };
            self.tell_failure(by, status);
            if let Some(name) = wanted.failure_header {
                self.head.set_named(name, b"false");
            }
            // One that is not good may be followed by others where that is allowed.
            let forgiven = wanted.allow_failed || wanted.allow_missing && !found.is_empty();
            if !forgiven {
                return Verdict::Refused(status);
            }
        }
        Verdict::Met
    }

    /// Tells of a token that is not good, as its provider wants it, or the only one.
    fn tell_failure(&mut self, by: Option<usize>, status: Status) {
        let single = if self.providers.len() == 1 { Some(0) } else { None };
        let provider = by.or(single).and_then(|index| self.providers.get(index));
        if let Some(key) = provider.and_then(|provider| provider.failure_metadata.as_deref()) {
            let failure = json!({"code": status as u32, "message": status.text()});
            self.metadata.values_mut(NAMESPACE).insert(key.to_owned(), failure);
        }
    }

    /// Judges one token; `by`: the provider who does, once it is known.
    fn token(
        &mut self,
        wanted: Wanted<'_>,
        found: &Found<'_>,
        by: &mut Option<usize>,
    ) -> Result<(), Refusal> {
        let providers = self.providers;
        let given = wanted.provider.and_then(|index| Some((index, providers.get(index)?)));
        let known = given.and_then(|(_, provider)| self.remembered(provider, &found.text));
        let verified = known.is_some();
        let token = match known {
            Some(token) => token,
            None => Rc::new(Token::parse(&found.text)?),
        };
        if !found.issuers.allow(&token.issuer) {
            return Err(Status::UnknownIssuer.into());
        }
        let (index, provider) = match given {
            Some(given) => given,
            None => self.by_issuer(&token.issuer).ok_or(Status::UnknownIssuer)?,
        };
        *by = Some(index);
        token.check_time(self.wall, provider.clock_skew)?;
        if !wanted.audiences.unwrap_or(&provider.audiences).allow(&token.audiences) {
            return Err(Status::AudienceNotAllowed.into());
        }
        if provider.subjects.as_ref().is_some_and(|subjects| !subjects.matches(token.subject.as_bytes())) {
            return Err(Status::VerificationFailed.into());
        }
        if let Some(lifetime) = provider.lifetime {
            let left = token.expires.saturating_sub(self.wall);
            if token.expires == 0 || Duration::from_secs(left) >= lifetime {
                return Err(Status::VerificationFailed.into());
            }
        }
        if !verified {
            let keys = match &provider.keys {
                Keys::Local(keys) => Arc::clone(keys),
                Keys::None => return Err(Status::NoValidKeys.into()),
                Keys::Remote(remote) => {
                    let current =
                        local::with(&provider.identity, |local| local.keys(&remote.published, self.now));
                    match current {
                        Some(keys) => keys,
                        None if self.failed.contains(&index) => return Err(Status::FetchFailed.into()),
                        None => return Err(Refusal::Fetch(index)),
                    }
                }
            };
            keys.verify(&token)?;
        }
        self.accept(provider, &token, found);
        if !verified
            && wanted.provider.is_some()
            && let Some((limit, longest)) = provider.cache
            && found.text.len() <= longest
        {
            local::with(&provider.identity, |local| local.remember(&found.text, token, limit));
        }
        Ok(())
    }

    /// A token that was verified before and is still good.
    fn remembered(&self, provider: &Provider, text: &str) -> Option<Rc<Token>> {
        let known = provider.cache.and_then(|(limit, _)| {
            local::with(&provider.identity, |local| {
                if let Keys::Remote(remote) = &provider.keys {
                    // With keys that are too old nothing is known.
                    local.keys(&remote.published, self.now)?;
                }
                let token = local.token(text, limit)?;
                if token.check_time(self.wall, provider.clock_skew) == Err(Status::Expired) {
                    local.forget(text);
                    return None;
                }
                Some(token)
            })
        });
        if let Some(stats) = self.stats {
            if known.is_some() { stats.jwt_cache_hit().inc() } else { stats.jwt_cache_miss().inc() }
        }
        known
    }

    /// The first provider of an issuer, else the first one of any issuer.
    fn by_issuer(&self, issuer: &str) -> Option<(usize, &'a Provider)> {
        let mut providers = self.providers.iter().enumerate();
        let named = providers.clone().find(|(_, provider)| *provider.issuer == *issuer);
        named.or_else(|| providers.find(|(_, provider)| provider.issuer.is_empty()))
    }

    /// Tells of a token that is good, and takes it out of the request.
    fn accept(&mut self, provider: &Provider, token: &Token, found: &Found<'_>) {
        if let Some((name, pad)) = &provider.payload_header {
            let text = if *pad { padded(&token.payload) } else { (&*token.payload).into() };
            self.head.append(name.as_bytes(), text.as_bytes());
        }
        let mut changed = provider.payload_metadata.is_some();
        for (name, path) in &provider.claim_headers {
            if let Some(text) = path.find(&token.claims).and_then(header_text) {
                self.head.append(name.as_bytes(), text.as_bytes());
                changed = true;
            }
        }
        if !provider.forward {
            found.place.clear(self.head);
        }
        if let Some(key) = &provider.header_metadata {
            let header = Value::Object(token.header.clone());
            self.metadata.values_mut(NAMESPACE).insert(key.to_string(), header);
        }
        if let Some(key) = &provider.payload_metadata {
            let mut claims = token.claims.clone();
            split_lists(&mut claims, &provider.lists);
            self.metadata.values_mut(NAMESPACE).insert(key.to_string(), Value::Object(claims));
        }
        self.refresh |= provider.clear_route_cache && changed;
    }
}

/// What outweighs what when none of several requirements is met.
fn weight(status: Status) -> u8 {
    match status {
        Status::Missing => 0,
        Status::UnknownIssuer => 1,
        _ => 2,
    }
}

/// Claims that are words with spaces between become lists of words.
fn split_lists(claims: &mut Map<String, Value>, names: &[Box<str>]) {
    for name in names {
        if let Some(value) = claims.get_mut(&**name)
            && let Value::String(text) = value
        {
            *value = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
        }
    }
}

impl ClaimPath {
    fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        let (last, steps) = self.0.split_last()?;
        let innermost = steps.iter().try_fold(claims, |object, step| object.get(&**step)?.as_object())?;
        innermost.get(&**last)
    }
}

/// A claim as the value of a header; `None`: it has none.
fn header_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            let number = number.as_f64()?;
            if number >= 0.0 && number < u64::MAX as f64 && number.fract() == 0.0 {
                (number as u64).to_string()
            } else {
                format!("{number:.6}")
            }
        }
        // Objects and lists: their JSON in base64.
        Value::Array(_) | Value::Object(_) => leno_base::base64::encode(value.to_string().as_bytes()),
    };
    (!text.is_empty()).then_some(text)
}
