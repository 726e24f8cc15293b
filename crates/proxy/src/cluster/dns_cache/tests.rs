//! The cache with a resolver that is told what to say, on a paused clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_base::rng::Rng;
use tokio::time::{Instant, sleep};

use super::config::Settings;
use super::{CacheStats, DnsCache, Entry, Load, key, resolve};
use crate::cluster::discovery::Task;
use crate::cluster::discovery::resolver::{Found, LookupError, Resolve};
use crate::cluster::{Assignment, DnsDiscovery, DnsFamily};
use crate::telemetry::stats::StatsStore;

/// Says what it was told for a name, and notes when it was asked (s).
#[derive(Clone)]
struct Scripted {
    answers: Arc<Mutex<HashMap<String, Result<Found, LookupError>>>>,
    asked: Arc<Mutex<Vec<(String, u64)>>>,
    began: Instant,
}

impl Scripted {
    fn new() -> Self {
        Self { answers: Arc::default(), asked: Arc::default(), began: Instant::now() }
    }

    fn say(&self, name: &str, addresses: &[&str], ttl: u64) {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let found = Found { addresses, ttl: Some(Duration::from_secs(ttl)) };
        self.answers.lock().expect("no panics").insert(name.to_owned(), Ok(found));
    }

    fn asked(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut *self.asked.lock().expect("no panics"))
    }
}

impl Resolve for Scripted {
    async fn lookup(&self, name: &str, _: DnsFamily) -> Result<Found, LookupError> {
        self.asked.lock().expect("no panics").push((name.to_owned(), self.began.elapsed().as_secs()));
        let answer = self.answers.lock().expect("no panics").get(name).cloned();
        match answer {
            Some(answer) => answer,
            // Nobody told: it takes for ever.
            None => std::future::pending().await,
        }
    }
}

fn settings() -> Settings {
    Settings {
        name: "c".into(),
        dns: DnsDiscovery {
            assignment: Assignment::default(),
            refresh: Duration::from_secs(60),
            failure_refresh: None,
            respect_ttl: true,
            min_refresh: Duration::from_secs(5),
            tcp: false,
            jitter: Duration::ZERO,
            family: DnsFamily::Auto,
            resolvers: Vec::new(),
        },
        host_ttl: Duration::from_secs(100),
        max_hosts: 2,
        max_pending: 1,
        forget_failed: false,
        preresolve: Vec::new(),
        query_timeout: Some(Duration::from_secs(5)),
    }
}

fn start(settings: Settings, resolver: &Scripted) -> (Arc<DnsCache>, Task, Arc<StatsStore>) {
    let cache = Arc::new(DnsCache::new(settings.into()));
    let store = Arc::new(StatsStore::default());
    let stats = CacheStats::new(&store.thread(), "dns_cache.c.");
    let inbox = cache.inbox.lock().expect("no panics").take().expect("nobody resolves yet");
    let task = Task::spawn(resolve::run(Arc::clone(&cache), inbox, stats, resolver.clone(), Rng::new(1)));
    (cache, task, store)
}

fn stats(store: &StatsStore) -> String {
    let mut shown = String::new();
    for block in store.blocks() {
        for (index, (name, _)) in block.schema().0.iter().enumerate() {
            let value = block.cell(index).value();
            if value > 0 {
                shown += &format!("{name}={value} ");
            }
        }
    }
    shown
}

fn loading(load: Option<Load>) -> Arc<Entry> {
    match load {
        Some(Load::Loading(entry)) => entry,
        other => panic!("{other:?}"),
    }
}

async fn addresses(entry: &Entry) -> String {
    entry.wait().await.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn keys_are_names_and_ports() {
    let of = |authority: &str| key(authority).unwrap_or_default();
    assert_eq!(of("Foo.com"), "foo.com:80");
    assert_eq!(of("foo.com:8080"), "foo.com:8080");
    assert_eq!(of("[::1]"), "[::1]:80");
    assert_eq!(of("[::1]:81"), "[::1]:81");
    assert_eq!((of(""), of(":80"), of("foo:x")), (String::new(), String::new(), String::new()));
}

#[tokio::test(start_paused = true)]
async fn hosts_are_resolved_when_asked_for_and_kept_fresh_while_used() {
    let resolver = Scripted::new();
    let (cache, _task, store) = start(settings(), &resolver);
    resolver.say("a", &["10.0.0.1", "10.0.0.2"], 2);
    let entry = loading(cache.load("a:81"));
    assert_eq!(addresses(&entry).await, "10.0.0.1:81 10.0.0.2:81");
    assert!(matches!(cache.load("A:81"), Some(Load::Ready(_))));
    let version = entry.version();
    // A time to live below the least counts as that.
    resolver.say("a", &["10.0.0.3"], 20);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(resolver.asked(), [("a".to_owned(), 0), ("a".to_owned(), 5)]);
    assert!(entry.version() > version);
    assert_eq!(addresses(&entry).await, "10.0.0.3:81");
    // An answer without addresses changes nothing, and is asked for again after the refresh rate.
    resolver.say("a", &[], 20);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(resolver.asked(), [("a".to_owned(), 25)]);
    assert_eq!(addresses(&entry).await, "10.0.0.3:81");
    // Unused for longer than the host's time to live: forgotten at the next refresh.
    sleep(Duration::from_secs(100)).await;
    assert!(entry.is_gone() && cache.find("a:81").is_none());
    assert_eq!(
        stats(&store),
        "dns_query_attempt=5 dns_query_success=4 host_added=1 host_address_changed=2 host_removed=1 "
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_resolved_is_known_too() {
    let resolver = Scripted::new();
    let (cache, _task, store) = start(settings(), &resolver);
    let entry = loading(cache.load("never"));
    assert_eq!(addresses(&entry).await, "");
    assert_eq!(resolver.began.elapsed().as_secs(), 5);
    assert!(matches!(cache.load("never"), Some(Load::Ready(_))));
    resolver.say("never", &["10.0.0.1"], 60);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(entry.addresses().len(), 1);
    assert_eq!(
        stats(&store),
        "dns_query_attempt=3 dns_query_failure=1 dns_query_success=1 dns_query_timeout=1 host_added=1 \
         host_address_changed=1 num_hosts=1 "
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_host_may_be_forgotten_to_be_asked_for_anew() {
    let resolver = Scripted::new();
    let (cache, _task, store) = start(Settings { forget_failed: true, ..settings() }, &resolver);
    let entry = loading(cache.load("a"));
    assert_eq!(addresses(&entry).await, "");
    tokio::task::yield_now().await;
    assert!(entry.is_gone());
    resolver.say("a", &["10.0.0.1"], 60);
    assert_eq!(addresses(&loading(cache.load("a"))).await, "10.0.0.1:80");
    assert!(stats(&store).contains("host_added=2 host_address_changed=1 host_removed=1 num_hosts=1"));
}

#[tokio::test(start_paused = true)]
async fn hosts_and_waiting_requests_are_limited() {
    let resolver = Scripted::new();
    let preresolve = vec![("a".into(), 80)];
    let (cache, _task, _) = start(Settings { preresolve, ..settings() }, &resolver);
    tokio::task::yield_now().await;
    assert_eq!(resolver.asked().len(), 1);
    loading(cache.load("10.0.0.9:1"));
    assert!(matches!(cache.load("c"), Some(Load::Overflow)));
    let first = cache.wait();
    assert!(first.is_some() && cache.wait().is_none());
    drop(first);
    assert!(cache.wait().is_some());
    // Addresses need no lookup.
    let Some(Load::Ready(entry) | Load::Loading(entry)) = cache.load("10.0.0.9:1") else { panic!("unknown") };
    assert_eq!(addresses(&entry).await, "10.0.0.9:1");
    assert!(resolver.asked().is_empty());
}
