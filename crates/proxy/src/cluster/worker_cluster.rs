//! A worker's side of a cluster: current hosts, balancer, connection pools, stats.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leno_base::rng::Rng;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::aggregate::Chain;
use crate::cluster::dns_cache::{self, DnsCache};
use crate::cluster::extras::Tracked;
use crate::cluster::health::Vitals;
use crate::cluster::lb::facts::HostFacts;
use crate::cluster::lb::hosts::{Gathering, Hosts};
use crate::cluster::lb::orca::LoadReport;
use crate::cluster::lb::priority::Census;
use crate::cluster::lb::settings::{Balancing, Localities, Policy, Spread};
use crate::cluster::lb::zone::LocalHosts;
use crate::cluster::lb::{Balancer, Surroundings, Turn, build};
use crate::cluster::outlier::{Report, Watched};
use crate::cluster::pool::via::{OwnPools, Wanted};
use crate::cluster::pool::{self, Pool};
use crate::cluster::stats::{AnswerStats, ClusterStats};
use crate::cluster::{
    Assignment, Cluster, Discovery, EndpointAddress, EndpointConfig, HealthStatus, Metadata, OverrideHost,
    PickContext, UpstreamProtocol,
};
use crate::http::codec::h2::stats::Http2Stats;
use crate::http::headers::HeaderMap;
use crate::telemetry::stats::ThreadStats;
use crate::telemetry::stream_info::ClusterFacts;
use crate::tls::stats::TlsStats;
use crate::tls::{Transport, UpstreamTls};

/// One cluster on one worker.
pub(crate) struct WorkerCluster {
    /// Its configuration.
    pub(crate) config: Arc<Cluster>,
    /// What logs say of it.
    pub(crate) facts: Rc<ClusterFacts>,
    /// This worker's counts.
    pub(crate) stats: ClusterStats,
    /// The same of its answers, by who asked whom: made when first used.
    answers: [OnceCell<AnswerStats>; 4],
    /// Counts of its HTTP/2 connections, if it may have some.
    pub(crate) http2: Option<Http2Stats>,
    around: Surroundings,
    /// Those of handshakes, if there are any.
    pub(crate) tls_stats: Option<Rc<TlsStats>>,
    hosts: RefCell<HostSet>,
    random: RefCell<Rng>,
    /// Hosts of a dynamic forward proxy that were used here, by their keys.
    dynamic: RefCell<HashMap<Arc<str>, DynamicHost>>,
    /// When unused hosts were forgotten the last time.
    cleaned: Cell<Instant>,
    /// What it counts besides, if anything.
    pub(crate) tracked: Option<Box<Tracked>>,
    /// Of a million requests so many are turned away.
    pub(crate) drops: Cell<u32>,
    /// Of an aggregate cluster: its members.
    pub(crate) chain: RefCell<Chain>,
}

/// Who asked, or whom: how answers are told apart in stats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A request from inside (`x-envoy-internal`).
    Internal,
    /// Any other.
    External,
    /// Whoever, but a canary answered.
    Canary,
    /// Whoever, but the answer was not taken: the request is tried again.
    Retry,
}

impl Asker {
    /// The name of the scope.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Asker::Internal => "internal",
            Asker::External => "external",
            Asker::Canary => "canary",
            Asker::Retry => "retry",
        }
    }
}

/// One endpoint on one worker: what pools and balancers count per host.
pub(crate) struct Host {
    /// As configured, address resolved.
    pub(crate) config: Rc<EndpointConfig>,
    /// Whether its `envoy.lb` metadata calls it a canary.
    canary: bool,
    /// Its IP address, or `None` for a pipe.
    pub(crate) address: Option<SocketAddr>,
    /// Its priority.
    pub(crate) priority: u32,
    /// What lies between.
    pub(crate) transport: Transport<UpstreamTls>,
    /// Connections to it. An update of the endpoint's settings keeps them.
    pub(crate) pool: Rc<RefCell<Pool>>,
    /// Connections to it that are not for all requests.
    own_pools: Rc<OwnPools>,
    /// The same host with connections that offer this by ALPN, as requests have asked for them.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    offering: OnceCell<Box<RefCell<Vec<(Arc<[Vec<u8>]>, Rc<Host>)>>>>,
    /// Requests and sessions under way.
    pub(crate) active: Rc<Cell<u32>>,
    /// What `/clusters` shows of it.
    pub(crate) counts: Rc<HostCounts>,
    /// What balancers have learnt of it.
    pub(crate) facts: Rc<HostFacts>,
    /// Who is told how it does, if the cluster has outlier detection.
    outlier: Option<Watched>,
    /// What active health checks know of it, if it is checked.
    vitals: Option<Arc<Vitals>>,
    /// Whether it was failing when the hosts were grouped last.
    failing: Cell<bool>,
    /// Wakes TCP sessions that must not outlive the host's health
    /// (`close_connections_on_host_health_failure`).
    pub(crate) failed: Rc<Notify>,
}

/// One worker's counts of one host (`/clusters`).
#[derive(Debug, Default)]
pub(crate) struct HostCounts {
    /// Connections that are open.
    pub(crate) cx_active: Cell<u64>,
    /// Connections made.
    pub(crate) cx_total: Cell<u64>,
    /// Connections that could not be made.
    pub(crate) cx_connect_fail: Cell<u64>,
    /// Requests sent.
    pub(crate) rq_total: Cell<u64>,
    /// Answers below 500.
    pub(crate) rq_success: Cell<u64>,
    /// Resets and answers from 500.
    pub(crate) rq_error: Cell<u64>,
    /// Requests that timed out.
    pub(crate) rq_timeout: Cell<u64>,
}

/// One host of a dynamic forward proxy.
struct DynamicHost {
    entry: Arc<dns_cache::Entry>,
    /// The entry's version that the host was made of.
    version: u64,
    host: Rc<Host>,
}

/// The hosts of one cluster.
#[derive(Default)]
struct HostSet {
    by_address: HashMap<EndpointAddress, Rc<Host>>,
    /// As balancers see them; `None`: the balancer has taken them.
    hosts: Option<Hosts>,
    /// Made of the hosts when the first of them is picked.
    balancer: Option<Box<dyn Balancer>>,
    /// `overprovisioning_factor`, percent.
    overprovisioning: u32,
    /// `weighted_priority_health`.
    weighted_health: bool,
    /// Picks that were made ahead of their requests (`predictive_preconnect_ratio`).
    foreseen: VecDeque<Rc<Host>>,
}

impl WorkerCluster {
    /// A cluster without hosts yet; `seed` differs by worker.
    pub(crate) fn new(
        config: Arc<Cluster>,
        thread: &Arc<ThreadStats>,
        seed: u64,
        local: &Rc<LocalHosts>,
    ) -> Self {
        let scope = format!("cluster.{}.", config.stat_name);
        let stats = ClusterStats::new(thread, &scope);
        let tls_stats = config.tls().next().map(|_| Rc::new(TlsStats::new(thread, &scope, false)));
        let http2 = (config.protocol != UpstreamProtocol::Http1)
            .then(|| Http2Stats::new(thread, &format!("cluster.{}.http2.", config.stat_name)));
        let around = Surroundings {
            stats: stats.clone(),
            panic_threshold: config.panic_threshold,
            local: Rc::clone(local),
        };
        if matches!(config.balancing, Balancing::Subset(_)) {
            stats.lb_subsets_single_host_per_subset_duplicate().add(0);
        }
        let tracked = Tracked::new(config.extras.as_deref(), thread, &scope);
        let cluster = Self {
            facts: Rc::new(ClusterFacts::from(&*config)),
            config,
            stats,
            tracked,
            drops: Cell::new(0),
            answers: Default::default(),
            http2,
            around,
            tls_stats,
            hosts: RefCell::default(),
            random: RefCell::new(Rng::new(seed)),
            dynamic: RefCell::default(),
            cleaned: Cell::new(Instant::now()),
            chain: RefCell::default(),
        };
        cluster.update_hosts(&Assignment::default());
        cluster
    }

    /// Counts of answers by who asked whom.
    pub(crate) fn answers(&self, thread: &ThreadStats, asker: Asker) -> &AnswerStats {
        let [internal, external, canary, retry] = &self.answers;
        let cell = match asker {
            Asker::Internal => internal,
            Asker::External => external,
            Asker::Canary => canary,
            Asker::Retry => retry,
        };
        cell.get_or_init(|| {
            AnswerStats::new(thread, &format!("cluster.{}.{}.", self.config.stat_name, asker.text()))
        })
    }

    /// Takes over a new set of endpoints. Hosts that stay keep their connections; those of
    /// hosts that go are closed when their last request ends.
    pub(crate) fn update_hosts(&self, assignment: &Assignment) {
        self.drops.set(assignment.drops);
        let previous = std::mem::take(&mut self.hosts.borrow_mut().by_address);
        let mut by_address: HashMap<EndpointAddress, Rc<Host>> = HashMap::with_capacity(previous.len());
        let mut gathering = Gathering::default();
        let renew = self.config.close_on_host_change && differs(&previous, assignment);
        let now = Instant::now().into_std();
        for locality in &assignment.localities {
            let mut hosts = Vec::with_capacity(locality.endpoints.len());
            for endpoint in &locality.endpoints {
                if by_address.contains_key(&endpoint.address) {
                    continue;
                }
                let before = previous.get(&endpoint.address);
                let priority = locality.priority;
                let vitals = self.config.health.as_ref().and_then(|health| health.vitals(&endpoint.address));
                let transport = self.config.transport_to(&endpoint.metadata);
                let host = match before {
                    // Connections of another kind are not the same host's.
                    Some(host) if !host.transport.is_same(transport) => Rc::new(Host {
                        pool: Rc::default(),
                        own_pools: Rc::default(),
                        transport: transport.clone(),
                        vitals,
                        ..host.reconfigured(endpoint.clone(), priority)
                    }),
                    // Requests under way end on the connections that they have.
                    Some(host) if renew => Rc::new(Host {
                        pool: Rc::default(),
                        vitals,
                        ..host.reconfigured(endpoint.clone(), priority)
                    }),
                    Some(host)
                        if *host.config == *endpoint
                            && host.priority == priority
                            && same(&host.vitals, &vitals) =>
                    {
                        Rc::clone(host)
                    }
                    Some(host) => Rc::new(Host { vitals, ..host.reconfigured(endpoint.clone(), priority) }),
                    None => Rc::new(Host {
                        transport: self.config.transport_to(&endpoint.metadata).clone(),
                        outlier: self.watched(&endpoint.address),
                        vitals,
                        priority,
                        ..Host::new(endpoint.clone())
                    }),
                };
                if host.health() == HealthStatus::Healthy {
                    // Whoever passes its checks again starts slowly again.
                    host.facts.healthy(now, host.vitals.is_some() && host.failing.get());
                }
                host.drop_connections_if_failing(self.config.close_on_failure);
                by_address.insert(endpoint.address.clone(), Rc::clone(&host));
                hosts.push(host);
            }
            gathering.add(&locality.locality, locality.priority, locality.weight, hosts);
        }
        let is_local = self.config.here.cluster.as_ref() == Some(&self.config.name);
        let local =
            (is_local || tells_localities(&self.config.balancing)).then_some(&self.config.here.locality);
        let (factor, weighted) = (assignment.overprovisioning_factor, assignment.weighted_priority_health);
        let hosts = gathering.finish(local, factor, weighted);
        if is_local {
            self.around.local.follow(&hosts);
        }
        *self.hosts.borrow_mut() = HostSet {
            by_address,
            hosts: Some(hosts),
            balancer: None,
            overprovisioning: factor,
            weighted_health: weighted,
            foreseen: VecDeque::new(),
        };
    }

    fn watched(&self, address: &EndpointAddress) -> Option<Watched> {
        self.config.outlier.as_ref()?.watched(address)
    }

    /// Picks an endpoint; `None`: none can be had (`UH`). Aggregate clusters have none of their own:
    /// `Worker::pick` asks their members.
    pub(crate) fn pick(&self, context: &PickContext<'_>) -> Option<Rc<Host>> {
        match &self.config.discovery {
            Discovery::OriginalDst { .. } => return self.pick_original_dst(context),
            Discovery::DynamicForwardProxy(cache) => return self.pick_dynamic(cache, context),
            _ => {}
        }
        if let Some(wanted) = context.override_host {
            match self.find_override(wanted) {
                Some(host) => return Some(host),
                None if wanted.strict => return None,
                None => {}
            }
        }
        let mut set = self.hosts.borrow_mut();
        // Only what asks for nothing special takes what was foreseen.
        if !set.foreseen.is_empty()
            && context.metadata_match.is_none()
            && context.rejects.is_none()
            && context.excluded_priorities.is_empty()
            && context.drawn.is_none()
            && let Some(host) = set.foreseen.pop_front()
        {
            return Some(host);
        }
        self.pick_of(&mut set, context)
    }

    fn pick_of(&self, set: &mut HostSet, context: &PickContext<'_>) -> Option<Rc<Host>> {
        let random = &mut *self.random.borrow_mut();
        if let Some(hosts) = set.hosts.take() {
            set.balancer = Some(build(&self.config.balancing, hosts, &self.around, random.next_u64()));
        }
        set.balancer.as_mut()?.pick(&mut Turn { context, random, around: &self.around })
    }

    /// The host that a request to come will be given. `None`: the policy cannot tell, or as many are
    /// foreseen as there are hosts.
    pub(crate) fn peek(&self) -> Option<Rc<Host>> {
        let Balancing::Spread(Spread { policy: Policy::RoundRobin { .. } | Policy::Random, .. }) =
            &self.config.balancing
        else {
            return None;
        };
        let mut set = self.hosts.borrow_mut();
        let healthy = set.by_address.values().filter(|host| host.health() == HealthStatus::Healthy).count();
        if set.foreseen.len() >= healthy {
            return None;
        }
        let host = self.pick_of(&mut set, &PickContext::default())?;
        set.foreseen.push_back(Rc::clone(&host));
        Some(host)
    }

    /// What is known of its priorities, for aggregate clusters. Original-destination clusters and
    /// dynamic forward proxies have none.
    pub(crate) fn census(&self) -> Vec<Census> {
        if self.config.discovery.is_open_ended() {
            return Vec::new();
        }
        let set = self.hosts.borrow();
        let mut census: Vec<Census> = Vec::new();
        for host in set.by_address.values() {
            let priority = host.priority as usize;
            if census.len() <= priority {
                let empty = Census { overprovisioning: set.overprovisioning, ..Census::default() };
                census.resize(priority + 1, empty);
            }
            if let Some(census) = census.get_mut(priority) {
                let weight = if set.weighted_health { u64::from(host.config.weight) } else { 1 };
                census.count(host.health(), host.is_excluded(), weight);
            }
        }
        census
    }

    /// The host that a session sticks to, if its health allows.
    fn find_override(&self, wanted: OverrideHost<'_>) -> Option<Rc<Host>> {
        let set = self.hosts.borrow();
        let host = set.by_address.get(&crate::cluster::lb::address(wanted.address))?;
        let allowed = self.config.override_status;
        let fits = match host.health() {
            HealthStatus::Healthy => allowed.healthy,
            HealthStatus::Degraded => allowed.degraded,
            HealthStatus::Unhealthy => allowed.unhealthy,
            HealthStatus::Draining => allowed.draining,
        };
        fits.then(|| Rc::clone(host))
    }

    /// Whether what endpoints report of their load is read.
    pub(crate) fn wants_load_reports(&self) -> bool {
        self.config.balancing.load_reports().is_some()
    }

    /// Reads what a response's headers or trailers report of the endpoint's load; false: nothing.
    pub(crate) fn note_load(&self, host: &Host, headers: &HeaderMap) -> bool {
        let Some(wanted) = self.config.balancing.load_reports() else { return false };
        let Some(report) = LoadReport::read(headers) else { return false };
        host.facts.report(&report, wanted, Instant::now().into_std());
        true
    }

    /// An endpoint took so long to answer.
    pub(crate) fn note_latency(&self, host: &Host, latency: Duration) {
        if let Some(settings) = self.config.balancing.latencies() {
            host.facts.answered_after(latency, settings, Instant::now().into_std());
        }
    }

    /// All hosts, in no particular order.
    pub(crate) fn hosts(&self) -> Vec<Rc<Host>> {
        let set = self.hosts.borrow();
        let dynamic = self.dynamic.borrow();
        set.by_address.values().chain(dynamic.values().map(|known| &known.host)).cloned().collect()
    }

    /// Whether a dynamic forward proxy's host was used before and has an address, so that the
    /// cache need not be asked.
    pub(crate) fn knows(&self, cache: &DnsCache, authority: &[u8]) -> bool {
        let key = std::str::from_utf8(authority).ok().and_then(dns_cache::key);
        let dynamic = self.dynamic.borrow();
        let known = key.and_then(|key| dynamic.get(&*key)).filter(|known| !known.entry.is_gone());
        known.is_some_and(|known| {
            cache.touch(&known.entry);
            true
        })
    }

    /// The host that the request names, if its name is resolved. An address that changes moves
    /// new connections only.
    fn pick_dynamic(&self, cache: &DnsCache, context: &PickContext<'_>) -> Option<Rc<Host>> {
        let key = dns_cache::key(std::str::from_utf8(context.headers?.authority()).ok()?)?;
        let mut dynamic = self.dynamic.borrow_mut();
        let known = dynamic.get(&*key).filter(|known| !known.entry.is_gone());
        let entry = match known {
            Some(known) if known.version == known.entry.version() => {
                cache.touch(&known.entry);
                return Some(Rc::clone(&known.host));
            }
            Some(known) => Arc::clone(&known.entry),
            None => cache.find(&key)?,
        };
        // Read first: whatever changes then makes another version.
        let version = entry.version();
        let addresses = entry.addresses();
        let (first, others) = addresses.split_first()?;
        let config = EndpointConfig {
            hostname: Some(Arc::clone(&entry.key)),
            others: others.into(),
            ..EndpointConfig::plain(EndpointAddress::Ip(*first))
        };
        let host = Rc::new(match known {
            Some(known) => Host { address: Some(*first), ..known.host.reconfigured(config, 0) },
            None => Host::new(config),
        });
        cache.touch(&entry);
        dynamic.insert(Arc::clone(&entry.key), DynamicHost { version, host: Rc::clone(&host), entry });
        Some(host)
    }

    /// The original destination as a host, made on first use.
    fn pick_original_dst(&self, context: &PickContext<'_>) -> Option<Rc<Host>> {
        let Discovery::OriginalDst { port_override, http_header, metadata_key, .. } = &self.config.discovery
        else {
            return None;
        };
        let from_header = http_header.as_ref().and_then(|name| {
            let value = context.headers?.find(name)?;
            let address = std::str::from_utf8(value).ok().and_then(|value| value.parse::<SocketAddr>().ok());
            if address.is_none() {
                self.stats.original_dst_host_invalid().inc();
            }
            address
        });
        let from_metadata = || {
            let (name, path) = metadata_key.as_ref()?;
            let value = value_at(context.metadata?.get(name)?, path)?.as_str()?;
            let address = value.parse::<SocketAddr>().ok();
            if address.is_none() {
                self.stats.original_dst_host_invalid().inc();
            }
            address
        };
        let mut address = from_header.or_else(from_metadata).or(context.original_dst)?;
        if let Some(port) = port_override {
            address.set_port(*port);
        }
        let mut set = self.hosts.borrow_mut();
        let new = || {
            let config = EndpointConfig::plain(EndpointAddress::Ip(address));
            let transport = self.config.transport_to(&config.metadata).clone();
            Rc::new(Host { transport, ..Host::new(config) })
        };
        let host = set.by_address.entry(EndpointAddress::Ip(address)).or_insert_with(new);
        Some(Rc::clone(host))
    }

    /// Forgets original-destination hosts without connections or requests, if `cleanup_interval`
    /// has passed since the last time.
    pub(crate) fn forget_unused_hosts(&self, now: Instant) {
        self.dynamic.borrow_mut().retain(|_, known| !known.entry.is_gone());
        if let Discovery::OriginalDst { cleanup_interval, .. } = self.config.discovery {
            if now.saturating_duration_since(self.cleaned.get()) < cleanup_interval {
                return;
            }
            self.cleaned.set(now);
            let mut set = self.hosts.borrow_mut();
            let used = |host: &Host| !host.pool.borrow().is_unused() || !host.own_pools.are_unused();
            set.by_address.retain(|_, host| host.active.get() > 0 || used(host));
        }
    }
}

/// Whether an assignment has other hosts.
fn differs(hosts: &HashMap<EndpointAddress, Rc<Host>>, assignment: &Assignment) -> bool {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    let addresses: std::collections::HashSet<_> = endpoints.map(|endpoint| &endpoint.address).collect();
    addresses.len() != hosts.len() || !addresses.into_iter().all(|address| hosts.contains_key(address))
}

/// Whether the balancer wants to know which host is where.
fn tells_localities(balancing: &Balancing) -> bool {
    match balancing {
        Balancing::Spread(Spread { localities, .. }) => *localities != Localities::Ignored,
        Balancing::Hash(hashing) => hashing.locality_weighted,
        Balancing::Subset(subsets) => tells_localities(&subsets.inner),
        Balancing::OverrideHost(overrides) => tells_localities(&overrides.inner),
        Balancing::LoadAware(_) => true,
        Balancing::ClusterProvided => false,
    }
}

impl Host {
    /// A host that was never connected to, in plain text.
    pub(crate) fn new(config: EndpointConfig) -> Self {
        let address = match config.address {
            EndpointAddress::Ip(address) => Some(address),
            EndpointAddress::Name(..) | EndpointAddress::Pipe(_) | EndpointAddress::Internal(..) => None,
        };
        let (pool, active, counts) = (Rc::default(), Rc::default(), Rc::default());
        let (failing, failed) = (Cell::new(false), Rc::default());
        let (facts, own_pools) = (Rc::default(), Rc::default());
        let (outlier, vitals) = (None, None);
        Self {
            canary: config.metadata.is_canary(),
            config: Rc::new(config),
            address,
            priority: 0,
            transport: Transport::Raw,
            pool,
            own_pools,
            offering: OnceCell::new(),
            active,
            counts,
            facts,
            outlier,
            vitals,
            failing,
            failed,
        }
    }

    /// The same host with other settings (weight, health, metadata, priority).
    fn reconfigured(&self, config: EndpointConfig, priority: u32) -> Self {
        Self { canary: config.metadata.is_canary(), config: Rc::new(config), priority, ..self.another() }
    }

    /// The same host once more: what it counts and what is known of it is shared.
    fn another(&self) -> Self {
        Self {
            config: Rc::clone(&self.config),
            canary: self.canary,
            address: self.address,
            priority: self.priority,
            transport: self.transport.clone(),
            pool: Rc::clone(&self.pool),
            own_pools: Rc::clone(&self.own_pools),
            offering: OnceCell::new(),
            active: Rc::clone(&self.active),
            counts: Rc::clone(&self.counts),
            facts: Rc::clone(&self.facts),
            outlier: self.outlier.clone(),
            vitals: self.vitals.clone(),
            failing: self.failing.clone(),
            failed: Rc::clone(&self.failed),
        }
    }

    /// The same host with connections that take something over of a downstream connection.
    pub(crate) fn via(&self, wanted: Wanted<'_>) -> Rc<Self> {
        // More lists than protocols are those of configurations that are gone.
        const KEPT: usize = 4;
        let (None, Some(alpn)) = (&wanted.own, wanted.alpn) else { return self.taking_over(wanted) };
        let offering = self.offering.get_or_init(Box::default);
        let same = |names: &Arc<[Vec<u8>]>| Arc::ptr_eq(names, alpn) || names == alpn;
        if let Some((_, host)) = offering.borrow().iter().find(|(names, _)| same(names)) {
            return Rc::clone(host);
        }
        let host = self.taking_over(wanted);
        let mut offering = offering.borrow_mut();
        if offering.len() >= KEPT {
            offering.remove(0);
        }
        offering.push((Arc::clone(alpn), Rc::clone(&host)));
        host
    }

    fn taking_over(&self, wanted: Wanted<'_>) -> Rc<Self> {
        let pool = self.own_pools.find(wanted.into_via());
        Rc::new(Self { pool, ..self.another() })
    }

    /// Tells outlier detection, if there is any, how something ended.
    pub(crate) fn report(&self, report: Report) {
        self.report_with(|| report);
    }

    /// The same of what has to be found out first.
    pub(crate) fn report_with(&self, report: impl FnOnce() -> Report) {
        if let Some(outlier) = &self.outlier {
            outlier.report(report());
        }
    }

    /// An answer said `x-envoy-degraded`.
    pub(crate) fn note_degraded(&self) {
        if let Some(outlier) = &self.outlier {
            outlier.note_degraded();
        }
    }

    /// Health as balancers see it: what discovery, health checks and outlier detection say.
    pub(crate) fn health(&self) -> HealthStatus {
        // Ejected hosts are chosen in panic only, as unhealthy ones.
        if self.is_ejected() {
            return HealthStatus::Unhealthy;
        }
        let health =
            self.vitals.as_ref().map_or(self.config.health, |vitals| vitals.health(self.config.health));
        if health == HealthStatus::Healthy && self.outlier.as_ref().is_some_and(Watched::is_degraded) {
            return HealthStatus::Degraded;
        }
        health
    }

    /// Whether it counts for nothing, not even as a host that is there.
    pub(crate) fn is_excluded(&self) -> bool {
        self.config.health == HealthStatus::Draining
            || self.vitals.as_ref().is_some_and(|vitals| vitals.is_excluded())
    }

    /// An answer said `x-envoy-immediate-health-check-fail`: the host fails its health checks
    /// from now on. Without health checks nothing would ever let it in again.
    pub(crate) fn fail_health_check(&self) {
        if let Some(vitals) = &self.vitals {
            vitals.fail_now();
        }
    }

    /// Once when it begins to fail: new connections may lead to somebody who is well, so idle
    /// ones are closed, and those in use are not used again.
    fn drop_connections_if_failing(&self, sessions_too: bool) {
        let failing = matches!(self.health(), HealthStatus::Unhealthy | HealthStatus::Draining);
        if !self.failing.replace(failing) && failing {
            pool::drain(&self.pool);
            self.own_pools.drain();
            if sessions_too {
                self.failed.notify_waiters();
            }
        }
    }

    /// Whether its `envoy.lb` metadata calls it a canary.
    pub(crate) fn is_canary(&self) -> bool {
        self.canary
    }

    /// Whether outlier detection leaves it out now.
    pub(crate) fn is_ejected(&self) -> bool {
        self.outlier.as_ref().is_some_and(Watched::is_ejected)
    }
}

/// What lies in an object at a path.
fn value_at<'a>(
    object: &'a serde_json::Map<String, serde_json::Value>,
    path: &[String],
) -> Option<&'a serde_json::Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(object.get(first)?, |value, key| value.get(key))
}

/// Whether both are what is known of one host.
fn same(a: &Option<Arc<Vitals>>, b: &Option<Arc<Vitals>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl EndpointConfig {
    /// An endpoint of which only the address is known.
    pub(crate) fn plain(address: EndpointAddress) -> Self {
        Self {
            address,
            hostname: None,
            weight: 1,
            health: HealthStatus::Healthy,
            metadata: Metadata::default(),
            check: None,
            others: Arc::default(),
        }
    }
}

#[cfg(test)]
#[path = "worker_cluster/tests.rs"]
mod tests;
