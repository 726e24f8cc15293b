//! The main thread's task for one cache: looks names up, again and again, and forgets those that
//! nobody uses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use tokio::sync::mpsc;

use crate::cluster::discovery::Task;
use crate::cluster::discovery::resolver::{Found, Resolve, Resolver};
use crate::cluster::dns_cache::{CacheStats, DnsCache, Entry, Load};
use crate::telemetry::stats::ThreadStats;

/// The time to live of answers that have none, as Envoy's resolvers say.
const UNKNOWN_TTL: Duration = Duration::from_secs(60);

/// Resolves for a cache until the task is dropped. `None`: somebody does already.
pub(crate) fn start(cache: &Arc<DnsCache>, thread: &ThreadStats) -> Option<Task> {
    let inbox = cache.inbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()?;
    let stats = CacheStats::new(thread, &format!("dns_cache.{}.", cache.settings.name));
    stats.num_hosts().add(0);
    let resolver = Resolver::new(&cache.settings.dns);
    Some(Task::spawn(run(Arc::clone(cache), inbox, stats, resolver, Rng::from_entropy())))
}

/// How a lookup ended.
enum Answer {
    Found(Found),
    Failed,
    TimedOut,
    /// It was not made: nobody has used the host for too long.
    Unused,
}

/// The task.
pub(super) async fn run(
    cache: Arc<DnsCache>,
    mut inbox: mpsc::UnboundedReceiver<Arc<Entry>>,
    stats: CacheStats,
    resolver: impl Resolve,
    mut rng: Rng,
) {
    for (name, port) in &cache.settings.preresolve {
        if let Some(Load::Overflow) = cache.load(&format!("{name}:{port}")) {
            stats.host_overflow().inc();
        }
    }
    let settings = &cache.settings;
    let mut lookups = FuturesUnordered::new();
    loop {
        tokio::select! {
            wish = inbox.recv() => {
                // The cache holds the other end, and this task holds the cache.
                let Some(entry) = wish else { return };
                stats.host_added().inc();
                stats.num_hosts().inc();
                stats.dns_query_attempt().inc();
                let failures = settings.dns.failure_refresh.map(|(base, max)| Backoff::new(base, max, rng.fork()));
                lookups.push(look_up(&cache, &resolver, entry, Duration::ZERO, failures));
            }
            Some((entry, answer, mut failures)) = lookups.next(), if !lookups.is_empty() => {
                let Some(wait) = conclude(&cache, &stats, &entry, answer, &mut failures) else {
                    cache.forget(&entry);
                    stats.host_removed().inc();
                    stats.num_hosts().dec();
                    continue;
                };
                stats.dns_query_attempt().inc();
                lookups.push(look_up(&cache, &resolver, entry, wait, failures));
            }
        }
    }
}

/// What follows from an answer: the time until the next lookup; `None`: the host is forgotten.
fn conclude(
    cache: &DnsCache,
    stats: &CacheStats,
    entry: &Entry,
    answer: Answer,
    failures: &mut Option<Backoff>,
) -> Option<Duration> {
    let settings = &cache.settings;
    match answer {
        Answer::Found(found) => {
            stats.dns_query_success().inc();
            let addresses: Arc<[SocketAddr]> =
                found.addresses.iter().map(|ip| SocketAddr::new(*ip, entry.port)).collect();
            let before = entry.addresses();
            // An answer without addresses is no reason to forget those that were good.
            if !addresses.is_empty() && addresses != before {
                stats.host_address_changed().inc();
                entry.set(addresses);
            } else if !entry.found.borrow().looked_up {
                entry.set(addresses);
            }
            if let Some(failures) = failures {
                failures.reset();
            }
            if found.addresses.is_empty() {
                return Some(settings.dns.refresh);
            }
            Some(found.ttl.unwrap_or(UNKNOWN_TTL).max(settings.dns.min_refresh))
        }
        Answer::Failed | Answer::TimedOut => {
            stats.dns_query_failure().inc();
            if let Answer::TimedOut = answer {
                stats.dns_query_timeout().inc();
            }
            let before = entry.addresses();
            if !entry.found.borrow().looked_up {
                entry.set(before);
            }
            if settings.forget_failed {
                return None;
            }
            Some(failures.as_mut().map_or(settings.dns.refresh, Backoff::next_wait))
        }
        Answer::Unused => None,
    }
}

/// One wait and one lookup.
async fn look_up(
    cache: &DnsCache,
    resolver: &impl Resolve,
    entry: Arc<Entry>,
    wait: Duration,
    failures: Option<Backoff>,
) -> (Arc<Entry>, Answer, Option<Backoff>) {
    let settings = &cache.settings;
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
        let unused = cache.now().saturating_sub(entry.used.load(Ordering::Relaxed));
        if u128::from(unused) > settings.host_ttl.as_millis() {
            return (entry, Answer::Unused, failures);
        }
    }
    if let Ok(ip) = entry.name.parse::<IpAddr>() {
        return (entry, Answer::Found(Found { addresses: vec![ip], ttl: None }), failures);
    }
    let lookup = async { resolver.lookup(&entry.name, settings.dns.family).await };
    let answer = match settings.query_timeout {
        Some(limit) => tokio::time::timeout(limit, lookup).await,
        None => Ok(lookup.await),
    };
    let answer = match answer {
        Ok(Ok(found)) => Answer::Found(found),
        Ok(Err(error)) => {
            tracing::debug!(target: "dns", host = &*entry.key, error = error.0, "cannot resolve");
            Answer::Failed
        }
        Err(_) => Answer::TimedOut,
    };
    (entry, answer, failures)
}
