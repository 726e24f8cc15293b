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
use super::discovery::{Served, watched};
use crate::model::ObjectRef;
use crate::model::label::GATEWAY_CONTROLLER;

/// Under which name fields are owned.
const MANAGER: &str = "leno-status";

/// How many writes may follow each other at once, and how many a second in the long run.
const BURST: u32 = 50;
const RATE: f64 = 20.0;

/// How long to wait after a write has failed: at first, and in the end.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_LAST: Duration = Duration::from_secs(300);

/// How long a write may take: whoever leads must notice that it leads no more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the statuses of objects should be, in place of what was said of the same objects before.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    /// Objects whose status is nobody's any more, or not what was written; this comes first.
    pub(crate) forget: BTreeSet<ObjectRef>,
    pub(crate) want: BTreeMap<ObjectRef, Value>,
}

impl Statuses {
    /// Whether they say nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.forget.is_empty() && self.want.is_empty()
    }
}

/// What is to be written, and what was.
#[derive(Debug, Default)]
struct Ledger {
    wanted: BTreeMap<ObjectRef, Value>,
    /// Those whose status is not known to be as wanted.
    due: BTreeSet<ObjectRef>,
    /// Of those that are due, whose writes have failed: how often, and when to try again. One that
    /// cannot be written holds up no other.
    failed: BTreeMap<ObjectRef, (u32, Instant)>,
}

impl Ledger {
    fn want(&mut self, statuses: Statuses) {
        for object in &statuses.forget {
            self.wanted.remove(object);
            self.due.remove(object);
            self.failed.remove(object);
        }
        for (object, status) in statuses.want {
            if self.wanted.get(&object) != Some(&status) {
                // Something else may do better.
                self.failed.remove(&object);
                self.due.insert(object.clone());
                self.wanted.insert(object, status);
            }
        }
    }

    /// All is to be written again: a new leader does not know what the last one wrote.
    fn doubt(&mut self) {
        self.due = self.wanted.keys().cloned().collect();
        self.failed.clear();
    }

    /// What to write now.
    fn next(&mut self, now: Instant) -> Option<(ObjectRef, Value)> {
        let waits = |object: &ObjectRef| self.failed.get(object).is_some_and(|(_, until)| now < *until);
        let object = self.due.iter().find(|object| !waits(object))?.clone();
        self.due.remove(&object);
        let status = self.wanted.get(&object)?.clone();
        Some((object, status))
    }

    /// When there will be something to write; `None` if all is as wanted.
    fn when(&self, now: Instant) -> Option<Instant> {
        if self.due.len() > self.failed.len() {
            return Some(now);
        }
        self.failed.values().map(|(_, until)| *until).min()
    }

    fn written(&mut self, object: &ObjectRef) {
        self.failed.remove(object);
    }

    /// A write failed that is worth another try, after a while that grows.
    fn failed(&mut self, object: ObjectRef, first: Duration, now: Instant) {
        let count = self.failed.get(&object).map_or(0, |(count, _)| *count);
        let wait = first.saturating_mul(1 << count.min(10)).min(AGAIN_AT_LAST);
        self.failed.insert(object.clone(), (count + 1, now + wait));
        self.due.insert(object);
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
    let again = cluster.retry.1.min(AGAIN);
    let mut led = false;
    let mut said = BTreeSet::new();
    loop {
        let leads_now = *leads.borrow_and_update();
        if leads_now && !led {
            ledger.doubt();
        }
        led = leads_now;
        let now = Instant::now();
        let due = if leads_now { ledger.when(now).map(|due| due.max(not_before)) } else { None };
        let wait = match due.map(|due| due.saturating_duration_since(now)) {
            Some(Duration::ZERO) => Some(allowance.take(now).err().unwrap_or_default()),
            wait => wait,
        };
        if wait == Some(Duration::ZERO) {
            if let Some((object, status)) = ledger.next(now) {
                let late = || Fault::Broken("no answer in time".to_owned());
                let written = tokio::time::timeout(PATIENCE, write(&cluster, &object, &status)).await;
                match written.unwrap_or_else(|_| Err(late())) {
                    Ok(()) => ledger.written(&object),
                    Err(fault) => {
                        // What goes wrong with one object often goes wrong with all of its kind.
                        if fault.code() != 404 && said.insert((object.kind, fault.code())) {
                            tracing::warn!(%fault, %object, "its status cannot be written");
                        } else {
                            tracing::debug!(%fault, %object, "its status cannot be written");
                        }
                        let now = Instant::now();
                        if is_away(&fault) {
                            not_before = now + again;
                            ledger.due.insert(object);
                        } else if worth_again(&fault) {
                            ledger.failed(object, again, now);
                        } else {
                            ledger.written(&object);
                        }
                    }
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

/// Whether the server cannot be had at all: other writes would do no better.
fn is_away(fault: &Fault) -> bool {
    matches!(fault.code(), 0 | 429 | 502..=504)
}

/// Whether a write that failed may do better later: not if the object is gone or has no status, or if
/// what is written cannot be right. What may not be written now may be allowed later.
fn worth_again(fault: &Fault) -> bool {
    !matches!(fault.code(), 400 | 404 | 405 | 415 | 422)
}

async fn write(cluster: &Cluster, object: &ObjectRef, status: &Value) -> Result<(), Fault> {
    let known = watched().filter(|known| known.reads == Some(object.kind));
    let served: Vec<Served> = {
        let catalog = cluster.catalog.borrow();
        known.filter_map(|known| catalog.find(&known).cloned()).collect()
    };
    let mut outcome = Err(Fault::Status {
        code: 404,
        message: "its kind is not served".to_owned(),
        cause: None,
        retry_after: None,
    });
    // Several kinds may be read as one: it is of the first that has it.
    for served in served {
        outcome = write_as(cluster, &served, object, status.clone()).await;
        if outcome.as_ref().err().is_none_or(|fault| fault.code() != 404) {
            break;
        }
    }
    outcome
}

async fn write_as(
    cluster: &Cluster,
    served: &Served,
    object: &ObjectRef,
    mut status: Value,
) -> Result<(), Fault> {
    let place = format!("{}/{}", served.path(&object.namespace), object.name);
    let path = format!("{place}/status?fieldManager={MANAGER}&force=true");
    let mut metadata = json!({ "name": object.name });
    if let (false, Some(metadata)) = (object.namespace.is_empty(), metadata.as_object_mut()) {
        metadata.insert("namespace".to_owned(), object.namespace.as_str().into());
    }
    if let Some(parents) = status.get_mut("parents").and_then(Value::as_array_mut) {
        // A list that is written as a whole: what other controllers say of the same route must stay.
        let stored = cluster.api.get(&place, "application/json").await?;
        let stored: Value = serde_json::from_str(&stored).map_err(|error| Fault::broken(&error))?;
        let all = stored.pointer("/status/parents").and_then(Value::as_array);
        let others =
            all.into_iter().flatten().filter(|parent| parent["controllerName"] != GATEWAY_CONTROLLER);
        parents.extend(others.cloned());
        if let (Some(metadata), Some(version)) =
            (metadata.as_object_mut(), stored.pointer("/metadata/resourceVersion"))
        {
            // What they say meanwhile must stay too: it is a conflict then.
            metadata.insert("resourceVersion".to_owned(), version.clone());
        }
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
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::{Allowance, BURST, Ledger, Statuses};
    use crate::model::{Kind, ObjectRef};

    #[test]
    fn only_what_differs_is_written_and_the_last_word_counts() {
        let object =
            |name: &str| ObjectRef { kind: Kind::Gateway, namespace: "n".to_owned(), name: name.to_owned() };
        let say = |name: &str, generation: i64| {
            let want = BTreeMap::from([(object(name), json!({ "observedGeneration": generation }))]);
            Statuses { want, ..Statuses::default() }
        };
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.want(say("a", 1));
        ledger.want(say("b", 1));
        ledger.want(say("a", 2));
        assert_eq!(ledger.next(now).map(|(_, status)| status), Some(json!({ "observedGeneration": 2 })));
        assert_eq!(ledger.next(now).map(|(object, _)| object.name), Some("b".to_owned()));
        ledger.want(say("a", 2));
        assert_eq!(ledger.next(now), None);
        ledger.doubt();
        assert_eq!(ledger.due.len(), 2);
        // What was written to one that is gone was not written to another of its name.
        let forget = |name: &str| Statuses { forget: BTreeSet::from([object(name)]), ..Statuses::default() };
        while ledger.next(now).is_some() {}
        ledger.want(Statuses { forget: forget("a").forget, ..say("a", 2) });
        assert_eq!(ledger.next(now).map(|(object, _)| object.name), Some("a".to_owned()));
        ledger.want(forget("a"));
        ledger.doubt();
        assert_eq!(ledger.next(now).map(|(object, _)| object.name), Some("b".to_owned()));
        assert_eq!((ledger.next(now), ledger.when(now)), (None, None));
    }

    #[test]
    fn one_that_cannot_be_written_holds_up_no_other() {
        let object =
            |name: &str| ObjectRef { kind: Kind::Gateway, namespace: "n".to_owned(), name: name.to_owned() };
        let want = ["a", "b"].map(|name| (object(name), json!({ "observedGeneration": 1 })));
        let mut ledger = Ledger::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        ledger.want(Statuses { want: BTreeMap::from(want), ..Statuses::default() });
        let next = |ledger: &mut Ledger, now| ledger.next(now).map(|(object, _)| object.name);
        assert_eq!(next(&mut ledger, now).as_deref(), Some("a"));
        ledger.failed(object("a"), second, now);
        assert_eq!(ledger.when(now), Some(now));
        assert_eq!(next(&mut ledger, now).as_deref(), Some("b"));
        ledger.written(&object("b"));
        assert_eq!((next(&mut ledger, now), ledger.when(now)), (None, Some(now + second)));
        assert_eq!(next(&mut ledger, now + second).as_deref(), Some("a"));
        ledger.failed(object("a"), second, now);
        assert_eq!(ledger.when(now), Some(now + second * 2), "longer each time");
        assert_eq!(next(&mut ledger, now + second * 2).as_deref(), Some("a"));
        ledger.written(&object("a"));
        assert_eq!(ledger.when(now), None);
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
