//! Status written back to objects: what became of them, for whoever looks with `kubectl`.
//!
//! The seam is [`Statuses`]: whoever knows something says what an object's status *should be*, and
//! [`run`] sees to it, as long as this replica leads, at a rate that the API server can bear, and
//! again if a write fails. It is written by server-side apply of `status` alone, so that the spec
//! and what others write of the status are left in peace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::Cluster;
use super::client::Fault;
use super::discovery::watched;
use crate::model::diagnostic::{Diagnostic, Severity};
use crate::model::{Kind, ObjectRef};
use crate::source::Origin;

/// Under which name fields are owned.
const MANAGER: &str = "leno-status";

/// How many writes may follow each other at once, and how many a second in the long run.
const BURST: u32 = 50;
const RATE: f64 = 20.0;

/// How long to wait after writes have failed.
const AGAIN: Duration = Duration::from_secs(5);

/// A condition, as Kubernetes and Istio have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    /// As `Reconciled`.
    pub(crate) r#type: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// RFC 3339; when the status became what it is.
    pub(crate) last_transition_time: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) observed_generation: i64,
}

/// A finding, as Istio's `status.validationMessages` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    pub(crate) r#type: MessageType,
    /// `ERROR`, `WARNING` or `INFO`.
    pub(crate) level: &'static str,
    /// What is wrong, with the path of the field.
    pub(crate) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MessageType {
    /// What sort of fault, in words.
    pub(crate) name: String,
    /// Its code; Istio's are as `IST0101`.
    pub(crate) code: String,
}

/// What the status of an object should say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) observed_generation: i64,
    pub(crate) conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) validation_messages: Vec<Message>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Message {
    /// A diagnostic about an object.
    pub(crate) fn of(diagnostic: &Diagnostic) -> Message {
        let path = if diagnostic.path.is_empty() { String::new() } else { format!("{}: ", diagnostic.path) };
        Message {
            r#type: MessageType { name: diagnostic.code.clone(), code: diagnostic.code.clone() },
            level: match diagnostic.severity {
                Severity::Error => "ERROR",
                Severity::Warning => "WARNING",
            },
            message: format!("{path}{}", diagnostic.message),
        }
    }
}

/// What the statuses of objects should be, in place of what was said of the same objects before.
#[derive(Debug, Default)]
pub(crate) struct Statuses(pub(crate) BTreeMap<ObjectRef, Status>);

/// Makes statuses of diagnostics, and remembers what was said: an object with which all is well again
/// is told so.
#[derive(Debug, Default)]
pub(crate) struct Book {
    said: BTreeMap<ObjectRef, Status>,
}

impl Book {
    /// What differs from what was said before, for objects of Istio's kinds in a cluster.
    pub(crate) fn review(
        &mut self,
        diagnostics: &[Diagnostic],
        origins: &BTreeMap<ObjectRef, Origin>,
        wall: SystemTime,
    ) -> Statuses {
        let mut found: BTreeMap<ObjectRef, Vec<&Diagnostic>> = BTreeMap::new();
        for diagnostic in diagnostics.iter().filter(|it| it.file.is_empty()) {
            if let Some(object) = subject(diagnostic, origins) {
                found.entry(object).or_default().push(diagnostic);
            }
        }
        let healed = self.said.keys().filter(|object| !found.contains_key(*object)).cloned();
        let healed: Vec<ObjectRef> = healed.collect();
        let mut news = Statuses::default();
        for object in healed {
            // One that is gone has no status.
            match origins.get(&object) {
                Some(origin) => self.say(object, &[], origin.generation, wall, &mut news),
                None => drop(self.said.remove(&object)),
            }
        }
        for (object, findings) in found {
            let generation = origins.get(&object).and_then(|origin| origin.generation);
            self.say(object, &findings, generation, wall, &mut news);
        }
        news
    }

    fn say(
        &mut self,
        object: ObjectRef,
        findings: &[&Diagnostic],
        generation: Option<i64>,
        wall: SystemTime,
        news: &mut Statuses,
    ) {
        let broken = findings.iter().any(|finding| finding.severity == Severity::Error);
        let (status, reason) = if broken { ("False", "Invalid") } else { ("True", "Accepted") };
        let old = self.said.get(&object);
        let last = old.and_then(|old| old.conditions.first()).filter(|last| last.status == status);
        let since = last.map_or_else(|| rfc3339(wall), |last| last.last_transition_time.clone());
        // Of an object that is not used, the version that is known is an older one.
        let generation = if broken { 0 } else { generation.unwrap_or(0) };
        let status = Status {
            observed_generation: generation,
            conditions: vec![Condition {
                r#type: "Reconciled".to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: findings.first().map(|finding| Message::of(finding).message).unwrap_or_default(),
                last_transition_time: since,
                observed_generation: generation,
            }],
            validation_messages: findings.iter().map(|finding| Message::of(finding)).collect(),
        };
        if old != Some(&status) {
            self.said.insert(object.clone(), status.clone());
            news.0.insert(object, status);
        }
    }
}

/// The object of Istio's kinds that a diagnostic is about.
fn subject(diagnostic: &Diagnostic, origins: &BTreeMap<ObjectRef, Origin>) -> Option<ObjectRef> {
    let known = watched().find(|known| known.group.ends_with("istio.io") && known.kind == diagnostic.kind)?;
    let reference =
        |kind| ObjectRef { kind, namespace: diagnostic.namespace.clone(), name: diagnostic.name.clone() };
    let object = reference(known.reads?);
    // The Gateway API has Gateways too: where both have the name, it is not clear which is meant.
    let ambiguous = object.kind == Kind::Gateway && origins.contains_key(&reference(Kind::KubernetesGateway));
    let in_cluster = origins.get(&object).is_none_or(|origin| origin.generation.is_some());
    (in_cluster && !ambiguous && !object.name.is_empty()).then_some(object)
}

fn rfc3339(wall: SystemTime) -> String {
    Timestamp::try_from(wall).map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

/// What is to be written, and what was.
#[derive(Debug, Default)]
struct Ledger {
    wanted: BTreeMap<ObjectRef, Status>,
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

    fn next(&mut self) -> Option<(ObjectRef, Status)> {
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

async fn write(cluster: &Cluster, object: &ObjectRef, status: &Status) -> Result<(), Fault> {
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
    let path = format!(
        "{}/{}/status?fieldManager={MANAGER}&force=true",
        served.path(&object.namespace),
        object.name
    );
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

    use super::{Allowance, BURST, Ledger, Status, Statuses};
    use crate::model::{Kind, ObjectRef};

    #[test]
    fn only_what_differs_is_written_and_the_last_word_counts() {
        let object =
            |name: &str| ObjectRef { kind: Kind::Gateway, namespace: "n".to_owned(), name: name.to_owned() };
        let say = |name: &str, generation| {
            let status = Status { observed_generation: generation, ..Status::default() };
            Statuses(BTreeMap::from([(object(name), status)]))
        };
        let mut ledger = Ledger::default();
        ledger.want(say("a", 1));
        ledger.want(say("b", 1));
        ledger.want(say("a", 2));
        assert_eq!(ledger.next().map(|(_, status)| status.observed_generation), Some(2));
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
