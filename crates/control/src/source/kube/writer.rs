//! Status written back to objects: what became of them, for whoever looks with `kubectl`.
//!
//! The seam is [`Statuses`]: whoever knows something (`book.rs`) says what an object's status *should be*, and
//! [`run`] sees to it, as long as this replica leads, at a rate that the API server can bear, and
//! again if a write fails. It is written by server-side apply of `status` alone, so that the spec
//! and what others write of the status are left in peace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::Cluster;
use super::client::Fault;
use super::discovery::watched;
use crate::model::ObjectRef;
use crate::model::label::GATEWAY_CONTROLLER;

/// Under which name fields are owned.
const MANAGER: &str = "leno-status";

/// How many writes may follow each other at once, and how many a second in the long run.
const BURST: u32 = 50;
const RATE: f64 = 20.0;

/// How long to wait after writes have failed.
const AGAIN: Duration = Duration::from_secs(5);

/// What the statuses of objects should be, in place of what was said of the same objects before.
#[derive(Debug, Default)]
pub(crate) struct Statuses(pub(crate) BTreeMap<ObjectRef, Value>);

/// What is to be written, and what was.
#[derive(Debug, Default)]
struct Ledger {
    wanted: BTreeMap<ObjectRef, Value>,
    /// Those whose status is not known to be as wanted.
    due: BTreeSet<ObjectRef>,
}

impl Ledger {
    fn want(&mut self, statuses: Statuses) {
        for (object, status) in statuses.0 {
            if self.wanted.get(&object) != Some(&status) {
                self.due.insert(object.clone());
                self.wanted.insert(object, status);
            }
        }
    }

    /// All is to be written again: a new leader does not know what the last one wrote.
    fn doubt(&mut self) {
        self.due = self.wanted.keys().cloned().collect();
    }

    fn next(&mut self) -> Option<(ObjectRef, Value)> {
        let object = self.due.pop_first()?;
        let status = self.wanted.get(&object)?.clone();
        Some((object, status))
    }
}

/// So many writes at once, so many a second.
#[derive(Debug)]
struct Allowance {
    tokens: f64,
    last: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Allowance {
        Allowance { tokens: f64::from(BURST), last: now }
    }

    /// Takes one; how long to wait if there is none.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let gained = now.duration_since(self.last).as_secs_f64() * RATE;
        self.tokens = (self.tokens + gained).min(f64::from(BURST));
        self.last = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / RATE))
    }
}

/// Writes until nobody says anything any more.
pub(crate) async fn run(
    cluster: Cluster,
    mut leads: watch::Receiver<bool>,
    mut statuses: mpsc::UnboundedReceiver<Statuses>,
) {
    let mut ledger = Ledger::default();
    let mut allowance = Allowance::new(Instant::now());
    let mut not_before = Instant::now();
    let mut led = false;
    loop {
        let leads_now = *leads.borrow_and_update();
        if leads_now && !led {
            ledger.doubt();
        }
        led = leads_now;
        let idle = !leads_now || ledger.due.is_empty();
        let wait = match (idle, not_before.checked_duration_since(Instant::now())) {
            (true, _) => None,
            (false, Some(wait)) if !wait.is_zero() => Some(wait),
            (false, _) => match allowance.take(Instant::now()) {
                Ok(()) => Some(Duration::ZERO),
                Err(wait) => Some(wait),
            },
        };
        if wait == Some(Duration::ZERO) {
            if let Some((object, status)) = ledger.next()
                && let Err(fault) = write(&cluster, &object, &status).await
            {
                tracing::debug!(%fault, %object, "its status cannot be written");
                if worth_again(&fault) {
                    ledger.due.insert(object);
                    not_before = Instant::now() + cluster.retry.1.min(AGAIN);
                }
            }
            // What was said meanwhile may make the next write needless.
            while let Ok(said) = statuses.try_recv() {
                ledger.want(said);
            }
            continue;
        }
        tokio::select! {
            said = statuses.recv() => match said {
                Some(said) => ledger.want(said),
                None => return,
            },
            changed = leads.changed() => if changed.is_err() { return },
            () = sleep(wait) => {}
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Whether a write that failed may do better later: not if the object is gone, has no status, or
/// must not be written.
fn worth_again(fault: &Fault) -> bool {
    !matches!(fault.code(), 400..=404 | 405 | 415 | 422)
}

async fn write(cluster: &Cluster, object: &ObjectRef, status: &Value) -> Result<(), Fault> {
    let known = watched().filter(|known| known.reads == Some(object.kind));
    let served = {
        let catalog = cluster.catalog.borrow();
        known.filter_map(|known| catalog.find(&known).cloned()).next()
    };
    let Some(served) = served else {
        return Err(Fault::Status {
            code: 404,
            message: "its kind is not served".to_owned(),
            retry_after: None,
        });
    };
    let place = format!("{}/{}", served.path(&object.namespace), object.name);
    let path = format!("{place}/status?fieldManager={MANAGER}&force=true");
    let mut status = status.clone();
    if let Some(parents) = status.get_mut("parents").and_then(Value::as_array_mut) {
        // A list that is written as a whole: what other controllers say of the same route must stay.
        let stored = cluster.api.get(&place, "application/json").await?;
        let stored: Value = serde_json::from_str(&stored).map_err(|error| Fault::broken(&error))?;
        let all = stored.pointer("/status/parents").and_then(Value::as_array);
        let others =
            all.into_iter().flatten().filter(|parent| parent["controllerName"] != GATEWAY_CONTROLLER);
        parents.extend(others.cloned());
    }
    let mut metadata = json!({ "name": object.name });
    if let (false, Some(metadata)) = (object.namespace.is_empty(), metadata.as_object_mut()) {
        metadata.insert("namespace".to_owned(), object.namespace.as_str().into());
    }
    let body = json!({ "apiVersion": served.api_version, "kind": served.kind, "metadata": metadata, "status": status });
    let body = body.to_string().into_bytes();
    cluster
        .api
        .call(Method::PATCH, &path, "application/json", "application/apply-patch+yaml", body)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::{Allowance, BURST, Ledger, Statuses};
    use crate::model::{Kind, ObjectRef};

    #[test]
    fn only_what_differs_is_written_and_the_last_word_counts() {
        let object =
            |name: &str| ObjectRef { kind: Kind::Gateway, namespace: "n".to_owned(), name: name.to_owned() };
        let say = |name: &str, generation: i64| {
            Statuses(BTreeMap::from([(object(name), json!({ "observedGeneration": generation }))]))
        };
        let mut ledger = Ledger::default();
        ledger.want(say("a", 1));
        ledger.want(say("b", 1));
        ledger.want(say("a", 2));
        assert_eq!(ledger.next().map(|(_, status)| status), Some(json!({ "observedGeneration": 2 })));
        assert_eq!(ledger.next().map(|(object, _)| object.name), Some("b".to_owned()));
        ledger.want(say("a", 2));
        assert_eq!(ledger.next(), None);
        ledger.doubt();
        assert_eq!(ledger.due.len(), 2);
    }

    #[test]
    fn writes_are_limited() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert!((0..BURST).all(|_| allowance.take(start).is_ok()));
        let wait = allowance.take(start).unwrap_err();
        assert!(wait > Duration::from_millis(40) && wait <= Duration::from_millis(50));
        assert!(allowance.take(start + Duration::from_millis(51)).is_ok());
    }
}
