//! TLS: keys, certificates, verification of peers, and the `rustls` configurations made of them.
//!
//! Knows nothing of Envoy's messages, sockets or runtimes: the proxy lowers its configuration
//! into this crate's types and drives the sessions that come out. The provider is always
//! aws-lc-rs, passed explicitly.
//!
//! Reading order: `context` (what a handshake needs), `identity` (our certificates), `verify`
//! (theirs) with `path`, `names` and `trust`, `session` (resumption), `peer` and `failure` (what
//! is told of it). Two stand apart: `jwt`, tokens and the keys that have signed them, and `issue`, which
//! makes certificates.

mod certificate;
mod context;
mod der;
mod failure;
mod identity;
pub mod issue;
pub mod jwt;
mod names;
mod ocsp;
mod params;
mod path;
mod peer;
mod pkcs8;
mod session;
mod trust;
mod verify;

pub use certificate::{AltName, Certificate, KeyKind};
pub use context::{ClientSettings, ServerContext, ServerSettings};
pub use failure::{describe, describe_socket, is_missing_certificate, is_refused_certificate, plain_http};
pub use identity::{Identity, IdentityError, Source};
pub use names::{NameKind, NameMatcher, TextMatcher};
pub use ocsp::StaplePolicy;
pub use params::{Parameters, Version, cipher_name, group_name, scheme_name, version_name};
pub use peer::PeerCertificates;
pub use session::{TicketKey, TicketKeys};
pub use trust::{Revocations, TrustBundle};
pub use verify::{Failure, Findings, PeerVerifier, Rule, Trust, ValidationRules, expect_name, take_findings};

/// Seconds since the epoch.
fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
