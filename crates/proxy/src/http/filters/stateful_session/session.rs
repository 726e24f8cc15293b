//! Where a client keeps the address of its session's endpoint, and how it is written there.

use std::time::{Duration, SystemTime};

use leno_base::{Name, base64};
use prost::Message;

use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::cookie;

/// The part of an envelope that is what the endpoint itself has said.
const VALUE: &str = "UV:";

/// The kinds of sessions.
#[derive(Debug)]
pub(super) enum Session {
    Cookie(SessionCookie),
    /// HeaderBasedSessionState: the header is the address, in base64.
    Header(Name),
    /// EnvelopeSessionState: the header is the address, and what the endpoint has set it to.
    Envelope(Name),
}

/// CookieBasedSessionState.
#[derive(Debug)]
pub(super) struct SessionCookie {
    pub(super) name: Box<str>,
    pub(super) path: Box<str>,
    /// Zero: as long as the client runs.
    pub(super) ttl: Duration,
    /// What follows in `set-cookie`.
    pub(super) attributes: Box<str>,
}

/// What is in a cookie, in base64 (Envoy's `envoy.Cookie`).
// Deviation: the time at which a session's cookie expires is counted from 1970, so that proxies of
// several machines, and after a restart, agree on it. Envoy counts from when the machine was started.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    #[prost(string, tag = "1")]
    pub(super) address: String,
    /// Seconds; 0: never.
    #[prost(uint64, tag = "2")]
    pub(super) expires: u64,
}

impl Session {
    /// Whether requests with this head can belong to sessions.
    pub(super) fn covers(&self, head: &HeaderMap) -> bool {
        match self {
            Session::Cookie(cookie) => cookie.covers(head.path()),
            Session::Header(_) | Session::Envelope(_) => true,
        }
    }

    /// The endpoint that a request names. What the endpoint itself is to see of it stays.
    pub(super) fn read(&self, head: &mut HeaderMap, now: SystemTime) -> Option<Box<str>> {
        match self {
            Session::Cookie(session) => session.read(head, seconds(now)),
            Session::Header(name) => text(head.find(name)?),
            Session::Envelope(name) => {
                let value = head.find(name)?;
                let mut parts = value.split(|byte| *byte == b';').filter(|part| !part.is_empty());
                let address = text(parts.next()?);
                let value = parts.find_map(|part| part.strip_prefix(VALUE.as_bytes()))?;
                let value = base64::decode(value).filter(|value| !value.is_empty())?;
                head.set_named(name, &value);
                address
            }
        }
    }

    /// Tells the client the endpoint that has answered; `moved`: it has named another, or none.
    pub(super) fn write(&self, host: &str, moved: bool, now: SystemTime, head: &mut HeaderMap) {
        match self {
            Session::Cookie(session) if moved => {
                let line = session.line(host, seconds(now));
                head.append_known(Known::SetCookie, line.as_bytes());
            }
            Session::Header(name) if moved => {
                head.set_named(name, base64::encode(host.as_bytes()).as_bytes());
            }
            Session::Cookie(_) | Session::Header(_) => {}
            Session::Envelope(name) => {
                let mut values = head.find_all(name);
                let only = values.next().filter(|_| values.next().is_none());
                let envelope = only.map(|value| {
                    format!("{};{VALUE}{}", base64::encode(host.as_bytes()), base64::encode(value))
                });
                drop(values);
                if let Some(envelope) = envelope {
                    head.set_named(name, envelope.as_bytes());
                }
            }
        }
    }
}

impl SessionCookie {
    /// Whether a path is below the cookie's.
    fn covers(&self, path: &[u8]) -> bool {
        let own = self.path.as_bytes();
        match path.strip_prefix(own) {
            None => own.is_empty(),
            Some(rest) => {
                own.ends_with(b"/")
                    || own.is_empty()
                    || matches!(rest.first(), None | Some(b'/' | b'?' | b'#'))
            }
        }
    }

    fn read(&self, head: &HeaderMap, now: u64) -> Option<Box<str>> {
        let value = cookie(head, &self.name)?;
        let value = base64::decode(value).filter(|value| !value.is_empty())?;
        let Ok(Address { address, expires }) = Address::decode(value.as_slice()) else {
            // As older Envoys wrote it.
            return String::from_utf8(value).ok().map(Into::into);
        };
        let forever = expires == 0;
        if address.is_empty() || forever && !self.ttl.is_zero() || !forever && now > expires {
            return None;
        }
        Some(address.into())
    }

    fn line(&self, host: &str, now: u64) -> String {
        let ttl = self.ttl.as_secs();
        let expires = if ttl == 0 { 0 } else { now.saturating_add(ttl) };
        let value = base64::encode(&Address { address: host.to_owned(), expires }.encode_to_vec());
        let mut line = format!("{}=\"{value}\"", self.name);
        if ttl > 0 {
            line.push_str(&format!("; Max-Age={ttl}"));
        }
        if !self.path.is_empty() {
            line.push_str(&format!("; Path={}", self.path));
        }
        line.push_str(&self.attributes);
        line.push_str("; HttpOnly");
        line
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Text from base64; `None`: it is none, or empty.
fn text(value: &[u8]) -> Option<Box<str>> {
    let text = String::from_utf8(base64::decode(value)?).ok()?;
    (!text.is_empty()).then(|| text.into())
}
