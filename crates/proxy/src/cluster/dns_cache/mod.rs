//! The DNS cache of dynamic forward proxies: hosts that requests name, resolved when the first
//! request asks for them and kept fresh as long as requests do.
//!
//! A request's filter asks with [`DnsCache::load`] and may have to wait; the balancer of the
//! cluster then finds the [`Entry`]. `resolve` is the main thread's task that looks names up.
//! A worker remembers the entries that it uses, so that a request to a known host takes no lock.
//! Reading order: this file, `resolve`, `config`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::cluster::dns_cache::config::Settings;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::{ThreadStats, stats_scope};

pub(crate) mod config;
pub(crate) mod resolve;
#[cfg(test)]
mod tests;

stats_scope! {
    /// `dns_cache.NAME.`
    pub(crate) struct CacheStats {
        counter cache_load;
        counter dns_query_attempt;
        counter dns_query_failure;
        counter dns_query_success;
        counter dns_query_timeout;
        counter dns_rq_pending_overflow;
        counter host_added;
        counter host_address_changed;
        counter host_overflow;
        counter host_removed;
        gauge num_hosts;
    }
}

/// The hosts of one cluster, shared by all threads.
#[derive(Debug)]
pub(crate) struct DnsCache {
    pub(crate) settings: Arc<Settings>,
    hosts: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
    wishes: mpsc::UnboundedSender<Arc<Entry>>,
    /// For the one task that resolves.
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Arc<Entry>>>>,
    /// Requests that wait.
    pending: AtomicU32,
    began: Instant,
    /// The workers' counts.
    stats: PerThread<CacheStats>,
}

/// One host.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Name and port, as [`key`] makes it.
    pub(crate) key: Arc<str>,
    name: Arc<str>,
    port: u16,
    /// Milliseconds from the cache's beginning to its last use.
    used: AtomicU64,
    /// Not in the cache any more.
    gone: AtomicBool,
    /// Counts changes of `found`.
    version: AtomicU64,
    found: watch::Sender<Found>,
}

/// What is known of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// Whether it was looked up at least once.
    pub(crate) looked_up: bool,
    /// Empty: it could not be resolved.
    pub(crate) addresses: Arc<[SocketAddr]>,
}

/// What the cache has for a host.
#[derive(Debug)]
pub(crate) enum Load {
    /// It was looked up.
    Ready(Arc<Entry>),
    /// It is being looked up: see [`Entry::wait`].
    Loading(Arc<Entry>),
    /// There are too many hosts.
    Overflow,
}

/// Holds a place among the requests that wait.
pub(crate) struct Waiting(Arc<DnsCache>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DnsCache {
    /// An empty cache.
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        let (wishes, inbox) = mpsc::unbounded_channel();
        Self {
            settings,
            hosts: Mutex::default(),
            wishes,
            inbox: Mutex::new(Some(inbox)),
            pending: AtomicU32::new(0),
            began: Instant::now(),
            stats: PerThread::default(),
        }
    }

    /// The calling thread's counts.
    pub(crate) fn stats(&self, thread: &ThreadStats) -> &CacheStats {
        self.stats.of(thread, || CacheStats::new(thread, &format!("dns_cache.{}.", self.settings.name)))
    }

    /// Finds a host, or begins to look it up. `None`: the authority names none.
    pub(crate) fn load(&self, authority: &str) -> Option<Load> {
        let (key, name, port) = split(authority)?;
        let mut hosts = self.hosts();
        if let Some(entry) = hosts.get(&*key) {
            self.touch(entry);
            let entry = Arc::clone(entry);
            let looked_up = entry.found.borrow().looked_up;
            return Some(if looked_up { Load::Ready(entry) } else { Load::Loading(entry) });
        }
        if hosts.len() >= self.settings.max_hosts {
            return Some(Load::Overflow);
        }
        let key: Arc<str> = key.into();
        let entry = Arc::new(Entry {
            key: Arc::clone(&key),
            name: name.into(),
            port,
            used: AtomicU64::new(self.now()),
            gone: AtomicBool::new(false),
            version: AtomicU64::new(0),
            found: watch::Sender::new(Found::default()),
        });
        hosts.insert(key, Arc::clone(&entry));
        drop(hosts);
        // Nobody listens once the cluster is gone.
        let _ = self.wishes.send(Arc::clone(&entry));
        Some(Load::Loading(entry))
    }

    /// A host that was looked up, by its key.
    pub(crate) fn find(&self, key: &str) -> Option<Arc<Entry>> {
        self.hosts().get(key).filter(|entry| entry.found.borrow().looked_up).cloned()
    }

    /// Takes a place among the requests that wait; `None`: too many do.
    pub(crate) fn wait(self: &Arc<Self>) -> Option<Waiting> {
        if self.pending.fetch_add(1, Ordering::Relaxed) >= self.settings.max_pending {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Waiting(Arc::clone(self)))
    }

    /// How many more requests may wait.
    pub(crate) fn pending_left(&self) -> u64 {
        u64::from(self.settings.max_pending.saturating_sub(self.pending.load(Ordering::Relaxed)))
    }

    /// Notes that a host is used.
    pub(crate) fn touch(&self, entry: &Entry) {
        entry.used.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Entry>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, entry: &Entry) {
        entry.gone.store(true, Ordering::Relaxed);
        self.hosts().remove(&*entry.key);
    }
}

impl Entry {
    /// Whether the cache has forgotten it.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Changes whenever the addresses do.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The addresses; none: it could not be resolved.
    pub(crate) fn addresses(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.found.borrow().addresses)
    }

    /// Waits for the first lookup; the addresses.
    pub(crate) async fn wait(&self) -> Arc<[SocketAddr]> {
        let mut found = self.found.subscribe();
        match found.wait_for(|found| found.looked_up).await {
            Ok(found) => Arc::clone(&found.addresses),
            // The entry holds the sender.
            Err(_) => Arc::default(),
        }
    }

    fn set(&self, addresses: Arc<[SocketAddr]>) {
        self.found.send_replace(Found { looked_up: true, addresses });
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// The key of a host, its name and port: names in lower case, port 80 where there is none.
fn split(authority: &str) -> Option<(String, String, u16)> {
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if name.ends_with(']') || !name.contains(':') => (name, port.parse().ok()?),
        _ => (authority, 80),
    };
    if name.is_empty() {
        return None;
    }
    let name = name.to_ascii_lowercase();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    Some((format!("{name}:{port}"), bare.to_owned(), port))
}

/// The key of the host that an authority names.
pub(crate) fn key(authority: &str) -> Option<String> {
    split(authority).map(|(key, ..)| key)
}
