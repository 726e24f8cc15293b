//! Resumption: session tickets and session stores.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::{ProducesTickets, StoresServerSessions};

/// Where a server's tickets are sealed.
#[derive(Clone, Debug)]
pub enum TicketKeys {
    /// With keys of our own that change by themselves.
    Automatic,
    /// With these (`session_ticket_keys`): the first seals, all open.
    Given(Vec<TicketKey>),
    /// There are no tickets (`disable_stateless_session_resumption`).
    None,
}

/// One of the `session_ticket_keys`: name, HMAC key and AES key, 80 bytes.
#[derive(Clone)]
pub struct TicketKey([u8; TicketKey::LENGTH]);

impl TicketKey {
    /// Its length in bytes.
    pub const LENGTH: usize = 80;

    /// A key from its bytes.
    ///
    /// # Errors
    /// There are more or fewer than 80.
    pub fn new(bytes: &[u8], place: &str) -> Result<Self, String> {
        bytes.try_into().map(Self).map_err(|_| {
            format!(
                "Incorrect TLS session ticket key length. Length {} of {place}, expected length {}.",
                bytes.len(),
                Self::LENGTH
            )
        })
    }
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey")
    }
}

const NAME: usize = 16;
const NONCE: usize = 12;
const TIME: usize = 8;

/// Seals tickets for one context: a ticket opens in no other, so that whoever passed a laxer
/// context's checks cannot resume in a stricter one.
pub(crate) struct Tickets {
    keys: Vec<([u8; NAME], LessSafeKey)>,
    lifetime: u32,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Tickets {
    /// Tickets of the context with this digest.
    pub(crate) fn new(keys: &[TicketKey], context: &[u8], lifetime: Duration) -> Option<Self> {
        let derived = keys.iter().map(|TicketKey(key)| {
            let (name, rest) = key.split_at(NAME);
            let (hmac_key, aes_key) = rest.split_at(32);
            // Both parts and the context make the key that seals.
            let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, hmac_key));
            mac.update(aes_key);
            mac.update(context);
            let key = UnboundKey::new(&AES_256_GCM, mac.sign().as_ref()).ok()?;
            Some((name.try_into().ok()?, LessSafeKey::new(key)))
        });
        Some(Self { keys: derived.collect::<Option<_>>()?, lifetime: seconds(lifetime) })
    }
}

fn seconds(lifetime: Duration) -> u32 {
    // RFC 8446 section 4.6.1: at most seven days.
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).min(7 * 86_400)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let (name, key) = self.keys.first()?;
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME + NONCE + TIME + plain.len() + 16);
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(&nonce);
        let mut sealed = crate::now().to_be_bytes().to_vec();
        sealed.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(name), &mut sealed).ok()?;
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (wanted, rest) = cipher.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let (name, key) = self.keys.iter().find(|(name, _)| name[..] == *wanted)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let plain = key.open_in_place(nonce, Aad::from(name), &mut sealed).ok()?;
        let (time, plain) = plain.split_at_checked(TIME)?;
        let age = crate::now() - i64::from_be_bytes(time.try_into().ok()?);
        (0..=i64::from(self.lifetime)).contains(&age).then(|| plain.to_vec())
    }
}

/// Tickets with rustls' own changing keys, and a lifetime.
#[derive(Debug)]
pub(crate) struct AutomaticTickets {
    pub(crate) inner: Arc<dyn ProducesTickets>,
    pub(crate) lifetime: Duration,
}

impl ProducesTickets for AutomaticTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.inner.lifetime().min(seconds(self.lifetime))
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut stamped = crate::now().to_be_bytes().to_vec();
        stamped.extend_from_slice(plain);
        self.inner.encrypt(&stamped)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.inner.decrypt(cipher)?;
        let time = plain.get(..TIME)?.try_into().ok()?;
        let age = crate::now() - i64::from_be_bytes(time);
        if !(0..=i64::from(self.lifetime())).contains(&age) {
            return None;
        }
        plain.drain(..TIME);
        Some(plain)
    }
}

/// No tickets.
#[derive(Debug)]
pub(crate) struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// Sessions that a server keeps (TLS 1.2 clients without tickets).
#[derive(Debug)]
pub(crate) struct ServerSessions {
    lifetime: i64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<Vec<u8>, (i64, Vec<u8>)>,
    order: VecDeque<Vec<u8>>,
}

/// Sessions kept at most.
const SESSIONS: usize = 1024;

impl ServerSessions {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime: i64::from(seconds(lifetime)), kept: Mutex::default() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut kept = self.kept();
        if kept.by_id.insert(key.clone(), (crate::now() + self.lifetime, value)).is_none() {
            kept.order.push_back(key);
        }
        while kept.order.len() > SESSIONS
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.by_id.remove(&oldest);
        }
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let kept = self.kept();
        let (until, value) = kept.by_id.get(key)?;
        (*until >= crate::now()).then(|| value.clone())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut kept = self.kept();
        let (until, value) = kept.by_id.remove(key)?;
        kept.order.retain(|other| other != key);
        (until >= crate::now()).then_some(value)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// Sessions that a client may resume, at most so many (`max_session_keys`).
pub(crate) struct ClientSessions {
    limit: usize,
    sessions: Mutex<VecDeque<(ServerName<'static>, Session)>>,
    /// The group that was agreed upon last: the servers of a cluster are alike.
    group: AtomicU16,
}

enum Session {
    Tls12(Box<Tls12ClientSessionValue>),
    Tls13(Box<Tls13ClientSessionValue>),
}

impl std::fmt::Debug for ClientSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSessions").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl ClientSessions {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit: limit as usize, sessions: Mutex::default(), group: AtomicU16::new(0) }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, VecDeque<(ServerName<'static>, Session)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: ServerName<'static>, session: Session) {
        let mut sessions = self.sessions();
        sessions.push_front((name, session));
        sessions.truncate(self.limit);
    }
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, _server_name: ServerName<'static>, group: NamedGroup) {
        self.group.store(group.into(), Ordering::Relaxed);
    }

    fn kx_hint(&self, _server_name: &ServerName<'_>) -> Option<NamedGroup> {
        let group = self.group.load(Ordering::Relaxed);
        (group != 0).then(|| NamedGroup::from(group))
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.remove_tls12_session(&server_name);
        self.add(server_name, Session::Tls12(Box::new(value)));
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions().iter().find_map(|(name, session)| match session {
            Session::Tls12(session) if name == server_name => Some((**session).clone()),
            _ => None,
        })
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.sessions().retain(|(name, session)| name != server_name || matches!(session, Session::Tls13(_)));
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.add(server_name, Session::Tls13(Box::new(value)));
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut sessions = self.sessions();
        let found = sessions
            .iter()
            .position(|(name, session)| name == server_name && matches!(session, Session::Tls13(_)))?;
        match sessions.remove(found) {
            Some((_, Session::Tls13(session))) => Some(*session),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::server::ProducesTickets;

    use super::{TicketKey, Tickets};

    #[test]
    fn the_first_key_seals_and_all_open() {
        let key = |fill: u8| TicketKey::new(&[fill; 80], "<inline>").unwrap();
        let hour = Duration::from_secs(3600);
        let tickets = |keys: &[TicketKey], context: &[u8]| Tickets::new(keys, context, hour).unwrap();
        let before = tickets(&[key(1)], b"context");
        let sealed = before.encrypt(b"session").unwrap();
        assert_eq!(tickets(&[key(2), key(1)], b"context").decrypt(&sealed).unwrap(), b"session");
        assert_eq!(tickets(&[key(2)], b"context").decrypt(&sealed), None);
        assert_eq!(tickets(&[key(1)], b"other").decrypt(&sealed), None, "another context's");
        let mut forged = sealed.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(before.decrypt(&forged), None);
        assert_eq!(before.decrypt(&sealed[..20]), None);
        let newer = tickets(&[key(2), key(1)], b"context").encrypt(b"session").unwrap();
        assert_eq!(before.decrypt(&newer), None);
        assert!(TicketKey::new(&[0; 79], "<inline>").is_err());
    }
}
