//! Discovery of endpoints by DNS, on the main thread.
//!
//! [`start`] gives a task per cluster. Every name of the cluster's assignment is resolved on
//! its own, again and again; whenever an answer changes something, the whole assignment with
//! addresses in place of names is handed over. The first answer is handed over in any case,
//! even a failure, so that the cluster warms. `resolver` asks the system or given servers.

pub(crate) mod resolver;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use leno_base::Name;
use leno_base::backoff::Backoff;
use leno_base::rng::Rng;

use crate::cluster::discovery::resolver::{Found, LookupError, Resolve, Resolver};
use crate::cluster::{Assignment, DnsDiscovery, EndpointAddress, EndpointConfig, LocalityEndpoints};

/// Discovery at work; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Task(tokio::task::JoinHandle<()>);

impl Task {
    /// Runs until the task is dropped.
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Resolves the names of a cluster until the task is dropped. `logical`: of the addresses
/// found, only the first is an endpoint (LOGICAL_DNS).
pub(crate) fn start(
    cluster: Name,
    settings: Arc<DnsDiscovery>,
    logical: bool,
    found: impl Fn(Name, Arc<Assignment>) + Send + 'static,
) -> Task {
    let resolver = Resolver::new(&settings);
    let rng = Rng::from_entropy();
    Task::spawn(run(cluster, settings, logical, resolver, rng, found))
}

/// The task.
async fn run(
    cluster: Name,
    settings: Arc<DnsDiscovery>,
    logical: bool,
    resolver: impl Resolve,
    mut rng: Rng,
    found: impl Fn(Name, Arc<Assignment>) + Send,
) {
    let mut addresses: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
    let mut lookups = FuturesUnordered::new();
    for name in names(&settings.assignment) {
        let schedule = Schedule::new(&settings, rng.fork());
        lookups.push(resolve(&resolver, &settings, name, Duration::ZERO, schedule));
    }
    if lookups.is_empty() {
        found(cluster, Arc::new(settings.assignment.clone()));
        return;
    }
    let mut last = None;
    while let Some((name, answer, mut schedule)) = lookups.next().await {
        let wait = schedule.next_wait(&settings, &answer);
        match answer {
            // A service whose last instance went away for a moment is no reason to forget the
            // address of a LOGICAL_DNS cluster: connections would have nowhere to go.
            Ok(Found { addresses: none, .. }) if none.is_empty() && logical => {}
            Ok(Found { addresses: now, .. }) => {
                addresses.insert(Arc::clone(&name), now);
            }
            Err(LookupError(error)) => {
                tracing::debug!(target: "dns", cluster = cluster.as_str(), name = &*name, error, "cannot resolve");
            }
        }
        let assignment = Arc::new(resolved(&settings.assignment, &addresses, logical));
        if last.as_ref() != Some(&assignment) {
            last = Some(Arc::clone(&assignment));
            found(cluster.clone(), assignment);
        }
        lookups.push(resolve(&resolver, &settings, name, wait, schedule));
    }
}

/// One wait and one lookup.
async fn resolve(
    resolver: &impl Resolve,
    settings: &DnsDiscovery,
    name: Arc<str>,
    wait: Duration,
    schedule: Schedule,
) -> (Arc<str>, Result<Found, LookupError>, Schedule) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let answer = resolver.lookup(&name, settings.family).await;
    (name, answer, schedule)
}

/// When a name is resolved again.
struct Schedule {
    failures: Option<Backoff>,
    rng: Rng,
}

impl Schedule {
    fn new(settings: &DnsDiscovery, mut rng: Rng) -> Self {
        let failures = settings.failure_refresh.map(|(base, max)| Backoff::new(base, max, rng.fork()));
        Self { failures, rng }
    }

    /// How long to wait after an answer.
    fn next_wait(&mut self, settings: &DnsDiscovery, answer: &Result<Found, LookupError>) -> Duration {
        let wait = match (answer, &mut self.failures) {
            (Err(_), Some(failures)) => failures.next_wait(),
            (Err(_), None) => settings.refresh,
            (Ok(found), failures) => {
                if let Some(failures) = failures {
                    failures.reset();
                }
                let ttl = found
                    .ttl
                    .filter(|ttl| settings.respect_ttl && !ttl.is_zero() && !found.addresses.is_empty());
                ttl.map_or(settings.refresh, |ttl| ttl.max(settings.min_refresh))
            }
        };
        let jitter = u64::try_from(settings.jitter.as_millis()).unwrap_or(u64::MAX);
        // Never at once: a refresh rate of zero would be a busy loop.
        (wait + Duration::from_millis(self.rng.below(jitter))).max(Duration::from_millis(1))
    }
}

/// All names of an assignment, each once.
fn names(assignment: &Assignment) -> Vec<Arc<str>> {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    let mut names: Vec<Arc<str>> = endpoints
        .filter_map(|endpoint| match &endpoint.address {
            EndpointAddress::Name(name, _) => Some(Arc::clone(name)),
            EndpointAddress::Ip(_) | EndpointAddress::Pipe(_) | EndpointAddress::Internal(..) => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The assignment with the addresses known so far in place of names.
fn resolved(
    assignment: &Assignment,
    addresses: &HashMap<Arc<str>, Vec<IpAddr>>,
    logical: bool,
) -> Assignment {
    let localities = assignment.localities.iter().map(|locality| {
        let mut endpoints: Vec<EndpointConfig> = Vec::new();
        for endpoint in &locality.endpoints {
            let EndpointAddress::Name(name, port) = &endpoint.address else {
                endpoints.push(endpoint.clone());
                continue;
            };
            let known = addresses.get(name).map(Vec::as_slice).unwrap_or_default();
            let (known, others) = match known {
                [first, others @ ..] if logical => (std::slice::from_ref(first), others),
                all => (all, &[][..]),
            };
            let others: Arc<[SocketAddr]> = others.iter().map(|ip| SocketAddr::new(*ip, *port)).collect();
            for ip in known {
                let address = EndpointAddress::Ip(SocketAddr::new(*ip, *port));
                // Envoy's hosts have the name that they were resolved from.
                let hostname = endpoint.hostname.clone().filter(|hostname| !hostname.is_empty());
                let hostname = Some(hostname.unwrap_or_else(|| Arc::clone(name)));
                if !endpoints.iter().any(|other| other.address == address) {
                    let others = Arc::clone(&others);
                    endpoints.push(EndpointConfig { address, hostname, others, ..endpoint.clone() });
                }
            }
        }
        LocalityEndpoints { endpoints, ..locality.clone() }
    });
    Assignment { localities: localities.collect(), ..assignment.clone() }
}
