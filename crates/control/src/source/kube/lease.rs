//! Which of several replicas leads: a Lease in the root namespace that its holder renews.
//!
//! As other controllers of Kubernetes do it: who finds the lease free, or not renewed for as long as
//! it says, takes it, and the `resourceVersion` decides between two that try at once. How long it was
//! not renewed is measured with the own clock from when the last renewal was *seen*, so clocks that
//! differ or jump make nobody lead too early. A holder that cannot renew stops leading before others
//! may begin. [`Election`] decides and does no I/O; [`run`] asks and writes.

use std::time::{Duration, Instant, SystemTime};

use http::Method;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use leno_base::clock::{Clock, System};
use leno_base::rng::Rng;
use tokio::sync::watch;

use super::Cluster;
use super::client::{Api, Fault};

/// How long a lease holds after it was renewed.
const DURATION: Duration = Duration::from_secs(15);

/// For how long after a renewal its holder believes to lead.
const BELIEF: Duration = Duration::from_secs(10);

/// How often to look, and to renew.
const PERIOD: Duration = Duration::from_secs(2);

/// What is to be written.
#[derive(Debug, PartialEq)]
enum Step {
    /// Nothing: another leads.
    Wait,
    /// A new lease.
    Create(Lease),
    /// This one in place of the one that was seen.
    Replace(Lease),
}

/// Who leads, as far as one of the candidates knows.
#[derive(Debug)]
struct Election {
    name: String,
    identity: String,
    /// The lease as it was last, and when it was first seen so.
    seen: Option<(LeaseSpec, Instant)>,
    /// Until when to believe to lead.
    leads_until: Option<Instant>,
}

impl Election {
    fn new(name: &str, identity: &str) -> Election {
        Election { name: name.to_owned(), identity: identity.to_owned(), seen: None, leads_until: None }
    }

    /// How long the next step may take: a leader must notice in time that it leads no more.
    fn patience(&self, now: Instant, at_most: Duration) -> Duration {
        let left = self.leads_until.map(|until| until.saturating_duration_since(now));
        left.filter(|left| !left.is_zero()).map_or(at_most, |left| left.min(at_most))
    }

    fn leads(&self, now: Instant) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// What to do about the lease as it is.
    fn decide(&mut self, lease: Option<Lease>, now: Instant, wall: SystemTime) -> Step {
        let time = Timestamp::try_from(wall).ok().map(MicroTime);
        let Some(mut lease) = lease else {
            let spec = self.claim(&LeaseSpec::default(), time);
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            return Step::Create(Lease { metadata, spec: Some(spec) });
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((last, since)) if *last == spec => *since,
            _ => {
                self.seen = Some((spec.clone(), now));
                now
            }
        };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|it| u64::try_from(it).ok());
        let holds = seconds.map_or(DURATION, Duration::from_secs);
        if !holder.is_empty() && holder != self.identity && now.duration_since(since) < holds {
            self.leads_until = None;
            return Step::Wait;
        }
        lease.spec = Some(self.claim(&spec, time));
        Step::Replace(lease)
    }

    fn claim(&self, before: &LeaseSpec, time: Option<MicroTime>) -> LeaseSpec {
        let holds = before.holder_identity.as_deref() == Some(&self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if holds { before.acquire_time.clone() } else { time.clone() },
            renew_time: time,
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!holds)),
            ..before.clone()
        }
    }

    /// The claim was written; it counts from when it was begun.
    fn claimed(&mut self, begun: Instant) {
        self.leads_until = Some(begun + BELIEF);
    }
}

/// Takes part in the election of a leader, and says in `leads` whether it is this one. Runs until
/// nobody wants to know, and gives the lease back then.
pub(crate) async fn run(cluster: Cluster, name: &str, leads: watch::Sender<bool>) {
    let namespace = &cluster.root_namespace;
    let all = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    let one = format!("{all}/{name}");
    let mut election = Election::new(name, &cluster.identity);
    let mut rng = Rng::from_entropy();
    let mut said = None;
    loop {
        let begun = Instant::now();
        let patience = election.patience(begun, BELIEF / 2);
        let attempt = tokio::time::timeout(patience, attempt(&cluster.api, &mut election, &all, &one)).await;
        match attempt.unwrap_or_else(|_| Err(Fault::Broken("no answer in time".to_owned()))) {
            Ok(true) => {
                election.claimed(begun);
                said = None;
            }
            Ok(false) => said = None,
            // As long as it is the same it is said once: without its namespace, or the permission, this
            // goes on for ever.
            Err(fault) if said.as_ref() != Some(&fault) => {
                tracing::warn!(%fault, lease = name, "the lease of the leader can be neither had nor renewed");
                said = Some(fault);
            }
            Err(_) => {}
        }
        let now = election.leads(Instant::now());
        if leads.send_if_modified(|told| std::mem::replace(told, now) != now) {
            tracing::info!(lease = name, leads = now, "leadership");
        }
        // Not all at the same moment; and a leader that cannot renew stops in time.
        let period = cluster.retry.1.min(PERIOD);
        let wait = election.patience(Instant::now(), period.mul_f64(0.8 + 0.4 * rng.fraction()));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = leads.closed() => break,
        }
    }
    if election.leads(Instant::now()) {
        release(&cluster.api, &election, &one).await;
    }
}

/// Reads the lease and claims it if it may; whether it was claimed.
async fn attempt(api: &Api, election: &mut Election, all: &str, one: &str) -> Result<bool, Fault> {
    let lease = match api.get(one, "application/json").await {
        Ok(text) => Some(parse(&text)?),
        Err(fault) if fault.code() == 404 => None,
        Err(fault) => return Err(fault),
    };
    let (method, path, lease) = match election.decide(lease, Instant::now(), System.wall()) {
        Step::Wait => return Ok(false),
        Step::Create(lease) => (Method::POST, all, lease),
        Step::Replace(lease) => (Method::PUT, one, lease),
    };
    match write(api, method, path, &lease).await {
        Ok(()) => Ok(true),
        // Another was first.
        Err(fault) if fault.code() == 409 => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Lets the next one lead at once.
async fn release(api: &Api, election: &Election, one: &str) {
    let Ok(text) = api.get(one, "application/json").await else { return };
    let Ok(mut lease) = parse(&text) else { return };
    if let Some(spec) = &mut lease.spec
        && spec.holder_identity.as_deref() == Some(&election.identity)
    {
        spec.holder_identity = Some(String::new());
        // If it fails, the lease runs out by itself.
        let _ = write(api, Method::PUT, one, &lease).await;
    }
}

fn parse(text: &str) -> Result<Lease, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::broken(&error))
}

async fn write(api: &Api, method: Method, path: &str, lease: &Lease) -> Result<(), Fault> {
    let body = serde_json::to_vec(lease).map_err(|error| Fault::broken(&error))?;
    api.call(method, path, "application/json", "application/json", body).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use k8s_openapi::api::coordination::v1::Lease;

    use super::{BELIEF, DURATION, Election, Step};

    fn lease(step: Step) -> Lease {
        match step {
            Step::Create(lease) | Step::Replace(lease) => lease,
            Step::Wait => panic!("another leads"),
        }
    }

    #[test]
    fn one_leads_until_it_is_silent_for_too_long() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let wall = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        let [mut a, mut b] = ["a", "b"].map(|name| Election::new("lease", name));
        let first = lease(a.decide(None, at(0), wall(0)));
        a.claimed(at(0));
        assert!(a.leads(at(9)) && !a.leads(at(10)));
        // Another sees it, with a clock that is far ahead.
        assert_eq!(b.decide(Some(first.clone()), at(1), wall(100_000)), Step::Wait);
        let renewed = lease(a.decide(Some(first.clone()), at(5), wall(5)));
        a.claimed(at(5));
        let spec = renewed.spec.clone().unwrap();
        assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(1), first.spec.unwrap().acquire_time));
        // Silence counts from when the renewal was seen.
        assert_eq!(b.decide(Some(renewed.clone()), at(10), wall(0)), Step::Wait);
        assert_eq!(b.decide(Some(renewed.clone()), at(24), wall(0)), Step::Wait);
        assert!(!a.leads(at(15)), "it stops before the other begins");
        let taken = lease(b.decide(Some(renewed), at(25), wall(0)));
        b.claimed(at(25));
        assert_eq!(taken.spec.clone().unwrap().holder_identity.as_deref(), Some("b"));
        assert_eq!(taken.spec.clone().unwrap().lease_transitions, Some(2));
        assert_eq!(a.decide(Some(taken.clone()), at(26), wall(26)), Step::Wait);
        // One that was given back is free at once.
        let mut free = taken;
        free.spec.as_mut().unwrap().holder_identity = Some(String::new());
        assert!(matches!(a.decide(Some(free), at(27), wall(27)), Step::Replace(_)));
        assert!(BELIEF < DURATION);
    }
}
