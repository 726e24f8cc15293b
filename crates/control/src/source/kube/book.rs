//! What the status of each object should be, and what of that is new.
//!
//! Objects of Istio's kinds have the condition `Reconciled`, which says whether the object is used and
//! how many of the proxies that its last change concerns have it, and what is wrong in
//! `validationMessages`. Those of the Gateway API have what is derived for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::discovery::watched;
use super::writer::Statuses;
use crate::analyze::message::of_finding;
use crate::model::diagnostic::{Diagnostic, Severity};
use crate::model::duration::rfc3339_seconds;
use crate::model::label::GATEWAY_CONTROLLER;
use crate::model::read::Known;
use crate::model::{Kind, ObjectRef};
use crate::source::Origin;

/// How many stragglers are named.
const MOST_NAMED: usize = 5;

/// A condition, as Kubernetes and Istio have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    /// As `Reconciled`.
    r#type: &'static str,
    /// `True`, `False` or `Unknown`.
    status: &'static str,
    reason: &'static str,
    message: String,
    /// RFC 3339; when the status became what it is.
    last_transition_time: String,
    #[serde(skip_serializing_if = "is_zero")]
    observed_generation: i64,
}

impl Condition {
    /// What is the case (`status` and `reason`), since it was said first.
    fn new(
        r#type: &'static str,
        (status, reason): (&'static str, &'static str),
        message: String,
        old: Option<&Status>,
        observed_generation: i64,
        wall: SystemTime,
    ) -> Condition {
        let last = old.into_iter().flat_map(|old| &old.conditions);
        let last = last.into_iter().find(|last| last.r#type == r#type && last.status == status);
        let last_transition_time =
            last.map_or_else(|| rfc3339_seconds(wall), |last| last.last_transition_time.clone());
        Condition { r#type, status, reason, message, last_transition_time, observed_generation }
    }
}

/// A finding, as Istio's `status.validationMessages` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    r#type: MessageType,
    /// `ERROR`, `WARNING` or `INFO`.
    level: &'static str,
    /// What is wrong, with the path of the field.
    message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MessageType {
    /// What sort of fault, in words.
    name: String,
    /// Its code; Istio's are as `IST0101`.
    code: String,
}

/// The status of an object of Istio's kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(skip_serializing_if = "is_zero")]
    observed_generation: i64,
    conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    validation_messages: Vec<Message>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Message {
    /// A diagnostic about an object.
    fn of(diagnostic: &Diagnostic) -> Message {
        let path = if diagnostic.path.is_empty() { String::new() } else { format!("{}: ", diagnostic.path) };
        let is_error = diagnostic.severity == Severity::Error;
        let code = of_finding(&diagnostic.code, &diagnostic.kind, is_error);
        Message {
            r#type: MessageType { name: code.name.to_owned(), code: code.code.to_owned() },
            level: match diagnostic.severity {
                Severity::Error => "ERROR",
                Severity::Warning => "WARNING",
            },
            message: format!("{path}{}", diagnostic.message),
        }
    }
}

/// How far the last change of an object has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Programmed {
    /// How many proxies it concerns.
    pub(crate) concerned: usize,
    /// The names of those that have not taken it.
    pub(crate) stragglers: Vec<String>,
}

impl Programmed {
    fn words(&self) -> String {
        let taken = self.concerned.saturating_sub(self.stragglers.len());
        let mut words = format!("programmed on {taken}/{} proxies", self.concerned);
        if let Some(first) = self.stragglers.get(..self.stragglers.len().min(MOST_NAMED))
            && !first.is_empty()
        {
            words.push_str(", not on ");
            words.push_str(&first.join(", "));
            let more = self.stragglers.len() - first.len();
            if more > 0 {
                words.push_str(&format!(" and {more} more"));
            }
        }
        words
    }
}

/// What the patches of an EnvoyFilter have met with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Matches(pub(crate) Vec<Match>);

/// What a patch has met with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Match {
    /// At how many proxies it applies.
    pub(crate) proxies: usize,
    /// How many resources it has changed, removed or added; those that proxies share count once.
    pub(crate) resources: usize,
}

impl Matches {
    fn words(&self) -> String {
        let patches = self.0.iter().enumerate().map(|(index, found)| match found {
            Match { proxies: 0, .. } => format!("configPatches[{index}]: no proxy"),
            Match { proxies, resources } => {
                format!("configPatches[{index}]: {resources} resources at {proxies} proxies")
            }
        });
        patches.collect::<Vec<String>>().join(", ")
    }

    /// The condition that tells of it. A patch that meets with nothing where it applies is mostly a
    /// mistake.
    fn condition(&self, old: Option<&Status>, generation: i64, wall: SystemTime) -> Condition {
        let idle = self.0.iter().any(|found| found.proxies > 0 && found.resources == 0);
        let unused = self.0.iter().all(|found| found.proxies == 0);
        let (status, reason) = match (idle, unused) {
            (true, _) => ("False", "NoMatch"),
            (false, true) => ("Unknown", "NoProxy"),
            (false, false) => ("True", "Matched"),
        };
        Condition::new("PatchesMatched", (status, reason), self.words(), old, generation, wall)
    }
}

/// Makes statuses of what is known of objects, and remembers what was said: an object with which all is
/// well again is told so.
#[derive(Debug, Default)]
pub(crate) struct Book {
    said: BTreeMap<ObjectRef, Status>,
    /// What is wrong with objects.
    findings: BTreeMap<ObjectRef, Vec<Diagnostic>>,
    /// How far their last changes have come.
    programmed: BTreeMap<ObjectRef, Programmed>,
    /// What the patches of EnvoyFilters have met with.
    matches: BTreeMap<ObjectRef, Matches>,
    /// What was derived for objects of the Gateway API, for which generation, and what was made of it.
    derived: BTreeMap<ObjectRef, (Value, i64, Value)>,
    /// Objects were forgotten with which something may be wrong that is to be said again.
    due: bool,
}

impl Book {
    /// What differs from what was said before, as other things are wrong now with objects of Istio's
    /// kinds in a cluster.
    pub(crate) fn review(
        &mut self,
        diagnostics: &[Diagnostic],
        origins: &BTreeMap<ObjectRef, Origin>,
        wall: SystemTime,
    ) -> Statuses {
        let mut found: BTreeMap<ObjectRef, Vec<Diagnostic>> = BTreeMap::new();
        for diagnostic in diagnostics.iter().filter(|it| it.file.is_empty()) {
            if let Some(object) = subject(diagnostic, origins) {
                found.entry(object).or_default().push(diagnostic.clone());
            }
        }
        self.due = false;
        let before = std::mem::replace(&mut self.findings, found);
        let mut touched: BTreeSet<ObjectRef> = before.into_keys().collect();
        touched.extend(self.findings.keys().cloned());
        let mut news = Statuses::default();
        touched.into_iter().for_each(|object| self.say(object, origins, wall, &mut news));
        news
    }

    /// Forgets what was said of objects that are gone: what has come under their names has no status yet,
    /// be it as the last one or not.
    pub(crate) fn forget(&mut self, gone: &[ObjectRef]) -> Statuses {
        for object in gone {
            self.said.remove(object);
            self.programmed.remove(object);
            self.derived.remove(object);
            self.matches.remove(object);
            self.due |= self.findings.contains_key(object);
        }
        Statuses { forget: gone.iter().cloned().collect(), ..Statuses::default() }
    }

    /// Whether [`Book::review`] has something to say though nothing else is wrong than before.
    pub(crate) fn is_due(&self) -> bool {
        self.due
    }

    /// The same, as changes of objects have come to proxies.
    pub(crate) fn reached(
        &mut self,
        reached: Vec<(ObjectRef, Programmed)>,
        origins: &BTreeMap<ObjectRef, Origin>,
        wall: SystemTime,
    ) -> Statuses {
        let mut news = Statuses::default();
        for (object, programmed) in reached {
            let in_cluster = origins.get(&object).is_some_and(|origin| origin.generation.is_some());
            if in_cluster && is_istios(object.kind) {
                self.programmed.insert(object.clone(), programmed);
                self.say(object, origins, wall, &mut news);
            }
        }
        news
    }

    /// The same for what the patches of EnvoyFilters have met with, of which these are all.
    pub(crate) fn matched(
        &mut self,
        all: impl Iterator<Item = (ObjectRef, Matches)>,
        origins: &BTreeMap<ObjectRef, Origin>,
        wall: SystemTime,
    ) -> Statuses {
        let mut news = Statuses::default();
        for (object, matches) in all {
            let in_cluster = origins.get(&object).is_some_and(|origin| origin.generation.is_some());
            if in_cluster && self.matches.get(&object) != Some(&matches) {
                self.matches.insert(object.clone(), matches);
                self.say(object, origins, wall, &mut news);
            }
        }
        news
    }

    /// The same for what was derived for objects of the Gateway API, of which these are all.
    pub(crate) fn derived(
        &mut self,
        all: impl Iterator<Item = (ObjectRef, Value)>,
        origins: &BTreeMap<ObjectRef, Origin>,
        wall: SystemTime,
    ) -> Statuses {
        let mut news = Statuses::default();
        let mut present = BTreeSet::new();
        for (object, derived) in all {
            let Some(origin) = origins.get(&object) else { continue };
            let Some(generation) = origin.generation else { continue };
            present.insert(object.clone());
            let last = self.derived.get(&object);
            if last.is_some_and(|(before, at, _)| *before == derived && *at == generation) {
                continue;
            }
            let status = completed(derived.clone(), origin, last.map(|(_, _, said)| said), wall);
            self.derived.insert(object.clone(), (derived, generation, status.clone()));
            news.want.insert(object, status);
        }
        // Those that we have nothing to say of any more are others' business: what we said is taken back.
        self.derived.retain(|object, (.., said)| {
            let stays = present.contains(object);
            if !stays {
                news.forget.insert(object.clone());
                if origins.get(object).is_some_and(|origin| origin.generation.is_some()) {
                    let nothing =
                        if said.get("parents").is_some() { json!({ "parents": [] }) } else { json!({}) };
                    news.want.insert(object.clone(), nothing);
                }
            }
            stays
        });
        news
    }

    fn say(
        &mut self,
        object: ObjectRef,
        origins: &BTreeMap<ObjectRef, Origin>,
        wall: SystemTime,
        news: &mut Statuses,
    ) {
        let findings = self.findings.get(&object).map(Vec::as_slice).unwrap_or_default();
        let origin = origins.get(&object);
        if origin.is_none() {
            // How far one came that is gone, or that was never used, does not matter.
            self.programmed.remove(&object);
            self.matches.remove(&object);
            if findings.is_empty() {
                self.said.remove(&object);
                news.forget.insert(object);
                return;
            }
        }
        let programmed = self.programmed.get(&object).filter(|programmed| programmed.concerned > 0);
        let broken = findings.iter().any(|finding| finding.severity == Severity::Error);
        let (status, reason) = match programmed {
            _ if broken => ("False", "Invalid"),
            Some(programmed) if !programmed.stragglers.is_empty() => ("False", "Stragglers"),
            Some(_) => ("True", "Programmed"),
            None => ("True", "Accepted"),
        };
        let first = findings.first().map(|finding| Message::of(finding).message).unwrap_or_default();
        let message = match programmed {
            Some(programmed) if !broken => programmed.words(),
            _ => first,
        };
        let old = self.said.get(&object);
        // Of an object that is not used, the version that is known is an older one.
        let generation =
            if broken { 0 } else { origin.and_then(|origin| origin.generation).unwrap_or_default() };
        let mut conditions =
            vec![Condition::new("Reconciled", (status, reason), message, old, generation, wall)];
        let matches = self.matches.get(&object).filter(|_| !broken);
        conditions.extend(matches.map(|matches| matches.condition(old, generation, wall)));
        let status = Status {
            observed_generation: generation,
            conditions,
            validation_messages: findings.iter().map(Message::of).collect(),
        };
        if old != Some(&status) {
            news.want.insert(object.clone(), json!(status));
            self.said.insert(object, status);
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

fn is_istios(kind: Kind) -> bool {
    watched().any(|known| known.group.ends_with("istio.io") && known.reads == Some(kind))
}

/// Whether objects of a kind have a status that is ours to write.
pub(super) fn tells(known: &Known) -> bool {
    known.group.ends_with("istio.io")
        || known.group.starts_with("gateway.networking.")
        || known.reads == Some(Kind::Ingress)
}

/// What was derived, with what the Gateway API's form of it has in addition.
fn completed(mut status: Value, origin: &Origin, old: Option<&Value>, wall: SystemTime) -> Value {
    let generation = origin.generation.unwrap_or_default();
    let at = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_array).cloned();
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    complete_conditions(&mut status, old, generation, wall);
    let old_listeners = list(old.and_then(|old| old.get("listeners")));
    for listener in items(&mut status, "listeners") {
        let same = |other: &&Value| other.get("name") == listener.get("name");
        let before = old_listeners.iter().find(same).cloned();
        complete_conditions(listener, before.as_ref(), generation, wall);
        let kinds = at(listener, "/supportedKinds").unwrap_or_default();
        let kinds: Vec<Value> = kinds
            .into_iter()
            .map(|kind| json!({ "group": "gateway.networking.k8s.io", "kind": kind }))
            .collect();
        if let Some(fields) = listener.as_object_mut() {
            fields.insert("supportedKinds".to_owned(), Value::from(kinds));
        }
    }
    let references = origin.to_json().and_then(|object| at(&object, "/spec/parentRefs")).unwrap_or_default();
    let old_parents = list(old.and_then(|old| old.get("parents")));
    for parent in items(&mut status, "parents") {
        let index = parent.get("parentRef").and_then(Value::as_u64).and_then(|it| usize::try_from(it).ok());
        let reference = index.and_then(|index| references.get(index)).cloned().unwrap_or_default();
        let before = old_parents.iter().find(|other| other.get("parentRef") == Some(&reference)).cloned();
        if let Some(fields) = parent.as_object_mut() {
            fields.insert("parentRef".to_owned(), reference);
            fields.insert("controllerName".to_owned(), Value::from(GATEWAY_CONTROLLER));
        }
        complete_conditions(parent, before.as_ref(), generation, wall);
    }
    status
}

fn items<'v>(value: &'v mut Value, name: &str) -> impl Iterator<Item = &'v mut Value> {
    value.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Adds to conditions since when they hold, and for which version of the object.
fn complete_conditions(holder: &mut Value, old: Option<&Value>, generation: i64, wall: SystemTime) {
    let before = old.and_then(|old| old.get("conditions")).and_then(Value::as_array);
    for condition in items(holder, "conditions") {
        let Some(fields) = condition.as_object_mut() else { continue };
        let same = |other: &&Value| {
            other.get("type") == fields.get("type") && other.get("status") == fields.get("status")
        };
        let last = before.and_then(|before| before.iter().find(same));
        let since = last.and_then(|last| last.get("lastTransitionTime")).cloned();
        let since = since.unwrap_or_else(|| Value::from(rfc3339_seconds(wall)));
        let defaults: Map<String, Value> = Map::from_iter([
            ("lastTransitionTime".to_owned(), since),
            ("observedGeneration".to_owned(), Value::from(generation)),
        ]);
        fields.extend(defaults);
        fields.entry("message").or_insert_with(|| Value::from(""));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use expect_test::expect;
    use serde_json::{Value, json};

    use super::{Book, Match, Matches, Programmed};
    use crate::model::diagnostic::{Diagnostic, Finding, Severity};
    use crate::model::{Kind, ObjectRef};
    use crate::source::Origin;

    fn object(kind: Kind) -> ObjectRef {
        ObjectRef { kind, namespace: "n".to_owned(), name: "a".to_owned() }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn condition(status: Option<&Value>) -> String {
        let condition = &status.expect("a status")["conditions"][0];
        let field = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
        format!(
            "{} {} {} {:?}",
            field("lastTransitionTime"),
            field("status"),
            field("reason"),
            field("message")
        )
    }

    #[test]
    fn a_rule_is_told_how_far_it_came_and_what_is_wrong_with_it() {
        let rule = object(Kind::VirtualService);
        let mut origins = BTreeMap::from([(rule.clone(), Origin::object(4, Arc::from("")))]);
        let mut book = Book::default();
        let programmed = |stragglers: usize| Programmed {
            concerned: 9,
            stragglers: (0..stragglers).map(|number| format!("p{number}.n")).collect(),
        };
        let said = book.reached(vec![(rule.clone(), programmed(7))], &origins, at(0));
        let first = condition(said.want.get(&rule));
        expect![[r#"1970-01-01T00:00:00Z False Stragglers "programmed on 2/9 proxies, not on p0.n, p1.n, p2.n, p3.n, p4.n and 2 more""#]].assert_eq(&first);
        let said = book.reached(vec![(rule.clone(), programmed(0))], &origins, at(5));
        expect![[r#"1970-01-01T00:00:05Z True Programmed "programmed on 9/9 proxies""#]]
            .assert_eq(&condition(said.want.get(&rule)));
        assert_eq!(said.want[&rule]["observedGeneration"], 4);
        assert!(book.reached(vec![(rule.clone(), programmed(0))], &origins, at(6)).want.is_empty());
        let finding = |severity| Finding {
            severity,
            code: "unknown-host",
            path: "spec.hosts[0]".to_owned(),
            message: "there is no x".to_owned(),
        };
        let wrong = |severity| vec![Diagnostic::about(&rule, &finding(severity))];
        let said = book.review(&wrong(Severity::Warning), &origins, at(7));
        expect![[r#"1970-01-01T00:00:05Z True Programmed "programmed on 9/9 proxies""#]]
            .assert_eq(&condition(said.want.get(&rule)));
        assert_eq!(said.want[&rule]["validationMessages"][0]["message"], "spec.hosts[0]: there is no x");
        let said = book.review(&wrong(Severity::Error), &origins, at(8));
        expect![[r#"1970-01-01T00:00:08Z False Invalid "spec.hosts[0]: there is no x""#]]
            .assert_eq(&condition(said.want.get(&rule)));
        let said = book.review(&[], &origins, at(9));
        assert!(said.want[&rule].get("validationMessages").is_none(), "{said:?}");
        origins.clear();
        assert!(book.review(&[], &origins, at(9)).want.is_empty());
        // What comes from a file has no status.
        let origins = BTreeMap::from([(rule.clone(), Origin::nowhere())]);
        assert!(book.reached(vec![(rule, programmed(0))], &origins, at(0)).want.is_empty());
    }

    #[test]
    fn an_object_that_was_created_again_is_told_anew() {
        let (rule, route) = (object(Kind::VirtualService), object(Kind::HttpRoute));
        let origins =
            BTreeMap::from([&rule, &route].map(|object| (object.clone(), Origin::object(1, Arc::from("")))));
        let wrong = Finding {
            severity: Severity::Error,
            code: "unknown-host",
            path: "spec.hosts[0]".to_owned(),
            message: "there is no x".to_owned(),
        };
        let wrong = vec![Diagnostic::about(&rule, &wrong)];
        let mut book = Book::default();
        let tell = |book: &mut Book| {
            let said = [
                book.review(&wrong, &origins, at(0)),
                book.reached(vec![(rule.clone(), Programmed::default())], &origins, at(0)),
                book.derived(std::iter::once((route.clone(), json!({ "conditions": [] }))), &origins, at(0)),
            ];
            said.map(|said| said.want.len())
        };
        assert_eq!(tell(&mut book), [1, 0, 1]);
        assert_eq!(tell(&mut book), [0, 0, 0]);
        assert!(!book.is_due());
        let said = book.forget(&[rule.clone(), route.clone()]);
        assert_eq!((said.forget.len(), said.want.len(), book.is_due()), (2, 0, true));
        assert_eq!(tell(&mut book), [1, 0, 1]);
        assert!(!book.is_due());
    }

    #[test]
    fn what_is_not_ours_any_more_is_taken_back() {
        let (route, gateway) = (object(Kind::HttpRoute), object(Kind::KubernetesGateway));
        let mut origins = BTreeMap::from(
            [&route, &gateway].map(|object| (object.clone(), Origin::object(1, Arc::from("")))),
        );
        let all = || {
            let ours = json!({ "parents": [{ "parentRef": 0, "conditions": [] }] });
            [(route.clone(), ours), (gateway.clone(), json!({ "conditions": [] }))].into_iter()
        };
        let mut book = Book::default();
        assert_eq!(book.derived(all(), &origins, at(0)).want.len(), 2);
        let said = book.derived(std::iter::empty(), &origins, at(1));
        assert_eq!((&said.want[&route], &said.want[&gateway]), (&json!({ "parents": [] }), &json!({})));
        assert!(book.derived(std::iter::empty(), &origins, at(1)).want.is_empty());
        // Of what is gone nothing is left to be taken back.
        book.derived(all(), &origins, at(2));
        origins.clear();
        let said = book.derived(std::iter::empty(), &origins, at(3));
        assert_eq!((said.forget.len(), said.want.len()), (2, 0));
    }

    #[test]
    fn the_gateway_apis_form() {
        let route = object(Kind::HttpRoute);
        let text = r#"{"spec": {"parentRefs": [{"name": "x"}, {"name": "gw", "sectionName": "web"}]}}"#;
        let origin = |generation| Origin::object(generation, Arc::from(text));
        let derived = |status: &str| {
            json!({ "parents": [{ "parentRef": 1,
                "conditions": [{ "type": "Accepted", "status": status, "reason": "Accepted" }] }] })
        };
        let mut book = Book::default();
        let mut tell = |status: &str, generation, seconds| {
            let origins = BTreeMap::from([(route.clone(), origin(generation))]);
            let all = std::iter::once((route.clone(), derived(status)));
            book.derived(all, &origins, at(seconds)).want.remove(&route)
        };
        let condition = json!({ "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "1970-01-01T00:00:00Z", "observedGeneration": 1 });
        let parent = json!({ "parentRef": { "name": "gw", "sectionName": "web" },
            "controllerName": "istio.io/gateway-controller", "conditions": [condition] });
        assert_eq!(tell("True", 1, 0), Some(json!({ "parents": [parent] })));
        assert_eq!(tell("True", 1, 1), None);
        let condition = |status: Option<Value>| status.unwrap()["parents"][0]["conditions"][0].clone();
        let later = condition(tell("True", 2, 2));
        assert_eq!(
            (&later["lastTransitionTime"], &later["observedGeneration"]),
            (&json!("1970-01-01T00:00:00Z"), &json!(2))
        );
        assert_eq!(condition(tell("False", 2, 3))["lastTransitionTime"], "1970-01-01T00:00:03Z");
    }

    #[test]
    fn envoy_filters_tell_what_their_patches_have_met_with() {
        let filter = ObjectRef { kind: Kind::EnvoyFilter, namespace: "n".to_owned(), name: "f".to_owned() };
        let origins = BTreeMap::from([(filter.clone(), Origin::object(3, Arc::from("")))]);
        let mut book = Book::default();
        let mut said = |patches: &[(usize, usize)]| {
            let patches = patches.iter().map(|&(proxies, resources)| Match { proxies, resources }).collect();
            let all = std::iter::once((filter.clone(), Matches(patches)));
            let news = book.matched(all, &origins, SystemTime::UNIX_EPOCH);
            let condition = news.want.get(&filter).map(|status| status["conditions"][1].clone());
            condition.map(|it| format!("{} {} {}", it["status"], it["reason"], it["message"]))
        };
        for (patches, expected) in [
            (
                &[(2, 3), (0, 0)][..],
                Some("True Matched configPatches[0]: 3 resources at 2 proxies, configPatches[1]: no proxy"),
            ),
            (&[(2, 3), (0, 0)], None),
            (&[(2, 0)], Some("False NoMatch configPatches[0]: 0 resources at 2 proxies")),
            (&[(0, 0)], Some("Unknown NoProxy configPatches[0]: no proxy")),
        ] {
            assert_eq!(said(patches).map(|words| words.replace('"', "")).as_deref(), expected);
        }
    }
}
