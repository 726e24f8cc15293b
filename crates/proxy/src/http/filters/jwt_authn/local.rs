//! What a worker remembers for a provider: the keys as they were last published, and tokens that
//! were verified with them (`jwt_cache_config`).
//!
//! A worker reads the published keys again only when their version has changed, so that verifying
//! takes no lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use leno_base::FastHash;
use leno_tls::jwt::{KeySet, Token};

use super::remote::Published;

/// Names a provider in the memories of the workers, as long as it lives.
#[derive(Debug)]
pub(super) struct Identity {
    number: u64,
    alive: Arc<()>,
}

impl Default for Identity {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), alive: Arc::default() }
    }
}

/// A worker's memory of one provider.
#[derive(Default)]
pub(super) struct Local {
    owner: Weak<()>,
    /// The version of the published keys that these are.
    version: u64,
    keys: Option<Arc<KeySet>>,
    until: Option<Instant>,
    /// Verified tokens by their text.
    tokens: Generations,
}

/// Calls with the calling worker's memory of a provider.
pub(super) fn with<R>(identity: &Identity, act: impl FnOnce(&mut Local) -> R) -> R {
    thread_local! {
        static LOCAL: RefCell<HashMap<u64, Local, FastHash>> = RefCell::default();
    }
    LOCAL.with_borrow_mut(|all| {
        if !all.contains_key(&identity.number) {
            // Providers that are gone are forgotten when a new one comes.
            all.retain(|_, local| local.owner.strong_count() > 0);
            let local = Local { owner: Arc::downgrade(&identity.alive), ..Local::default() };
            all.insert(identity.number, local);
        }
        act(all.entry(identity.number).or_default())
    })
}

impl Local {
    /// The published keys, if there are any that are not too old.
    pub(super) fn keys(&mut self, published: &Published, now: Instant) -> Option<Arc<KeySet>> {
        let version = published.version();
        if version != self.version {
            self.version = version;
            (self.keys, self.until) = published.keys();
            // What another set has verified counts no longer.
            self.tokens = Generations::default();
        }
        self.keys.clone().filter(|_| self.until.is_none_or(|until| now < until))
    }

    /// A token that was verified.
    pub(super) fn token(&mut self, text: &str, limit: usize) -> Option<Rc<Token>> {
        self.tokens.find(text, limit)
    }

    /// Remembers a token that was verified; at most `limit` are kept.
    pub(super) fn remember(&mut self, text: &str, token: Rc<Token>, limit: usize) {
        self.tokens.insert(text, token, limit);
    }

    /// Forgets one.
    pub(super) fn forget(&mut self, text: &str) {
        self.tokens.remove(text);
    }
}

/// The tokens that were used last, in two generations: when the young one is full it becomes the
/// old one, and what was old goes.
#[derive(Default)]
struct Generations {
    young: HashMap<Box<str>, Rc<Token>>,
    old: HashMap<Box<str>, Rc<Token>>,
}

impl Generations {
    fn find(&mut self, text: &str, limit: usize) -> Option<Rc<Token>> {
        if let Some(token) = self.young.get(text) {
            return Some(Rc::clone(token));
        }
        let (text, token) = self.old.remove_entry(text)?;
        self.insert(&text, Rc::clone(&token), limit);
        Some(token)
    }

    fn insert(&mut self, text: &str, token: Rc<Token>, limit: usize) {
        if self.young.len() >= limit.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text.into(), token);
    }

    fn remove(&mut self, text: &str) {
        self.young.remove(text);
        self.old.remove(text);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use leno_tls::jwt::Token;

    use super::Generations;

    #[test]
    fn what_is_used_stays_and_there_are_never_too_many() {
        // {"alg":"HS256"} and {}
        let token = Rc::new(Token::parse("eyJhbGciOiJIUzI1NiJ9.e30.AA").expect("a token"));
        let mut tokens = Generations::default();
        for number in 0..100 {
            tokens.insert(&number.to_string(), Rc::clone(&token), 10);
            assert!(tokens.find("0", 10).is_some(), "{number}");
            assert!(tokens.young.len() + tokens.old.len() <= 10);
        }
        assert!(tokens.find("99", 10).is_some());
        assert!(tokens.find("50", 10).is_none());
        tokens.remove("99");
        assert!(tokens.find("99", 10).is_none());
    }
}
