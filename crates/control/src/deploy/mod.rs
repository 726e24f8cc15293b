//! Gateways that are deployed for Gateways of the Gateway API: a ServiceAccount, a Deployment and a Service for each
//! (and what else ConfigMaps ask for), and the GatewayClasses that Istio brings along.
//!
//! START HERE: [`run`]. The control loop says which Gateways there are ([`Desired`]); [`Injector::gateway`] says what
//! each needs, by the template, the settings and the ConfigMaps of now; `cluster.rs` brings it into the cluster, where
//! others' objects are never touched. The replica that leads does so, for the Gateways of its revision and its tags.
//! A Gateway is looked at again when it changes, when what its gateways are made by changes, when somebody else changes
//! what was made, and after a failure. Nothing is deleted: what was made belongs to its Gateway, and goes with it.
//!
//! [`Injector::gateway`]: crate::inject::Injector::gateway

mod cluster;
mod due;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_derive::Graph;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::cluster::{Heard, Hearer};
use self::due::{Due, Why};
use crate::inject::webhook::{Current, Webhook};
use crate::inject::{GatewayPort, GatewayRequest, Refused};
use crate::model::check::is_subdomain;
use crate::model::inputs::GatewayClasses;
use crate::model::switches::Switches;
use crate::model::{Key, Kind, ObjectRef};
use crate::scope::gateway_api::infrastructure::AllManaged;
use crate::source::Origin;
use crate::source::kube::client::Fault;
use crate::source::kube::{Cluster, lease};

/// The lease of the replica that deploys; that of a revision ends with its name.
const LEASE: &str = "leno-gateway-deployment-leader";

/// The name that one of several control planes has if it is given none.
const DEFAULT: &str = "default";

/// A Gateway that gateways are to be made for, as the control loop knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gateway {
    /// `metadata` as far as it is its author's, with the `uid`, and `spec`.
    object: Value,
    name: String,
    ports: Vec<GatewayPort>,
    /// As in [`crate::scope::gateway_api::infrastructure::Managed`].
    revision: Option<String>,
}

/// What is to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Desired {
    gateways: BTreeMap<Key, Arc<Gateway>>,
    /// The GatewayClasses that are there.
    classes: BTreeSet<String>,
}

impl Desired {
    /// Whether a change of an object may change it.
    pub(crate) fn concerns(object: &ObjectRef) -> bool {
        let kinds = [Kind::KubernetesGateway, Kind::ListenerSet, Kind::GatewayClass, Kind::Namespace];
        kinds.contains(&object.kind)
    }

    /// What the objects of the cluster ask for. Gateways of folders have no gateways made for them.
    pub(crate) fn of(graph: &Graph, origins: &BTreeMap<ObjectRef, Origin>) -> Desired {
        let managed = graph.get::<AllManaged>(&());
        let gateways = managed.iter().filter_map(|managed| {
            let origin = origins.get(&managed.key.of(Kind::KubernetesGateway))?;
            origin.generation?;
            let whole = origin.to_json()?;
            let mut metadata = json!({});
            for part in ["name", "namespace", "uid", "labels", "annotations"] {
                if let Some(value) = whole.get("metadata").and_then(|metadata| metadata.get(part)) {
                    metadata[part] = value.clone();
                }
            }
            let ports = managed.ports.iter().map(|port| GatewayPort {
                name: port.name.clone(),
                port: port.number,
                protocol: port.protocol.clone(),
            });
            let gateway = Gateway {
                object: json!({ "metadata": metadata, "spec": whole.get("spec") }),
                name: managed.name.clone(),
                ports: ports.collect(),
                revision: managed.revision.clone(),
            };
            Some((managed.key.clone(), Arc::new(gateway)))
        });
        let classes = graph.keys::<GatewayClasses>().into_iter().map(|key| key.name);
        Desired { gateways: gateways.collect(), classes: classes.collect() }
    }
}

/// Starts what deploys, if anything is to be; where to say what.
pub(crate) fn spawn(
    cluster: &Cluster,
    webhook: &Arc<Webhook>,
    switches: &Switches,
    tasks: &mut JoinSet<()>,
) -> Option<watch::Sender<Desired>> {
    if !switches.deploys_gateways && !switches.makes_classes {
        return None;
    }
    let (say, desired) = watch::channel(Desired::default());
    let (leads, leading) = watch::channel(false);
    let name = match webhook.options.revision.as_str() {
        "" | DEFAULT => LEASE.to_owned(),
        revision => format!("{LEASE}-{revision}"),
    };
    let candidate = cluster.clone();
    tasks.spawn(async move { lease::run(candidate, &name, leads).await });
    tasks.spawn(run(cluster.clone(), Arc::clone(webhook), switches.clone(), leading, desired));
    Some(say)
}

/// Deploys until nobody says anything any more.
async fn run(
    cluster: Cluster,
    webhook: Arc<Webhook>,
    switches: Switches,
    mut leads: watch::Receiver<bool>,
    mut desired: watch::Receiver<Desired>,
) {
    let mut over = desired.clone();
    let mut current = tokio::select! {
        current = webhook.subscribe() => current,
        // It was over before it began.
        () = ended(&mut over) => return,
    };
    let (tell, mut heard) = mpsc::channel(64);
    let mut served = cluster.served();
    let mut hearer = Hearer::new(cluster.clone(), &webhook.options, tell);
    let mut deployer =
        Deployer::new(cluster, switches, &webhook.options.revision, &webhook.options.namespace);
    let mut is_told = false;
    loop {
        if *leads.borrow_and_update() {
            hearer.begin();
        } else {
            hearer.end();
            deployer.rest();
            is_told = false;
        }
        let now = Instant::now();
        if !is_told || desired.has_changed().unwrap_or(false) {
            deployer.want(desired.borrow_and_update().clone(), now);
            is_told = true;
        }
        if current.has_changed().unwrap_or(false) {
            current.mark_unchanged();
            deployer.due.all(Why::Perhaps, now);
        }
        // Not as seen: should it have changed since, all is due once more.
        let settings = current.borrow().clone();
        if *leads.borrow() {
            hearer.follow(&deployer.parameters());
            deployer.make_classes(now).await;
            // One after the other: whoever leads must notice that it leads no more.
            if deployer.deploy_next(&settings, now).await {
                while let Ok(heard) = heard.try_recv() {
                    deployer.hear(heard, now);
                }
                continue;
            }
        }
        let next = deployer.next().filter(|_| *leads.borrow()).map(tokio::time::Instant::from_std);
        tokio::select! {
            changed = leads.changed() => if changed.is_err() { return },
            changed = desired.changed() => match changed {
                Ok(()) => is_told = false,
                Err(_) => return,
            },
            changed = current.changed() => match changed {
                Ok(()) => deployer.due.all(Why::Perhaps, Instant::now()),
                Err(_) => return,
            },
            // What is served may have become more: the kinds of the Gateway API.
            changed = served.changed() => match changed {
                Ok(()) => deployer.classes_due = Some(Instant::now()),
                Err(_) => return,
            },
            Some(heard) = heard.recv() => deployer.hear(heard, Instant::now()),
            () = sleep_until(next) => {}
        }
    }
}

async fn ended(desired: &mut watch::Receiver<Desired>) {
    while desired.changed().await.is_ok() {}
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// What is known, and what is to be done.
struct Deployer {
    cluster: Cluster,
    switches: Switches,
    revision: String,
    root_namespace: String,
    desired: Desired,
    due: Due,
    /// What was made last for each Gateway, so that what has not changed is not written again.
    made: BTreeMap<Key, Vec<Value>>,
    /// The objects that were made as they were then, by a hash.
    stored: BTreeMap<(&'static str, Key), u64>,
    /// The names that stand for the revision of this control plane; `None` until they are known.
    tags: Option<BTreeSet<String>>,
    kube_version: Option<u32>,
    /// When to make the classes that are missing.
    classes_due: Option<Instant>,
    /// What was said of each Gateway last that could not be done.
    said: BTreeMap<Key, String>,
}

impl Deployer {
    fn new(cluster: Cluster, switches: Switches, revision: &str, root_namespace: &str) -> Deployer {
        Deployer {
            cluster,
            switches,
            revision: if revision.is_empty() { DEFAULT.to_owned() } else { revision.to_owned() },
            root_namespace: root_namespace.to_owned(),
            desired: Desired::default(),
            due: Due::default(),
            made: BTreeMap::new(),
            stored: BTreeMap::new(),
            tags: None,
            kube_version: None,
            classes_due: None,
            said: BTreeMap::new(),
        }
    }

    /// Another leads: what is known will be old when this one leads again.
    fn rest(&mut self) {
        self.desired = Desired::default();
        self.due = Due::default();
        self.made.clear();
        self.stored.clear();
        self.tags = None;
    }

    /// This is to be made from now on.
    fn want(&mut self, desired: Desired, now: Instant) {
        if desired == self.desired {
            return;
        }
        for (key, gateway) in &desired.gateways {
            if self.desired.gateways.get(key) != Some(gateway) {
                self.due.add(key, Why::Perhaps, now);
            }
        }
        for key in self.desired.gateways.keys().filter(|key| !desired.gateways.contains_key(*key)) {
            self.due.remove(key);
            self.made.remove(key);
            self.said.remove(key);
            self.stored.retain(|(_, object), _| object.namespace != key.namespace);
        }
        if desired.classes != self.desired.classes || self.classes_due.is_none() {
            self.classes_due = Some(now);
        }
        self.desired = desired;
    }

    /// The ConfigMaps that Gateways name, each with the Gateways that name it.
    fn parameters(&self) -> BTreeSet<Key> {
        self.desired.gateways.values().filter_map(|gateway| parameters(gateway).ok().flatten()).collect()
    }

    /// Something has happened in the cluster.
    fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Object { plural, key, gateway, hash } => {
                let before = self.stored.get(&(plural, key));
                if hash.is_none() || before != hash.as_ref() {
                    self.due.add(&gateway, Why::Changed, now);
                }
            }
            Heard::Names(tags) => {
                if self.tags.as_ref() != Some(&tags) {
                    self.tags = Some(tags);
                    self.desired.gateways.keys().for_each(|key| self.due.add(key, Why::Perhaps, now));
                }
            }
            Heard::Missed => self.due.all(Why::Changed, now),
            Heard::Defaults => self.due.all(Why::Perhaps, now),
            Heard::Parameters(map) => {
                let naming = |gateway: &Gateway| parameters(gateway).ok().flatten().as_ref() == Some(&map);
                let concerned = self.desired.gateways.iter().filter(|(_, gateway)| naming(gateway));
                concerned.for_each(|(key, _)| self.due.add(key, Why::Perhaps, now));
            }
        }
    }

    /// When there is something to do; `None` if all is done.
    fn next(&self) -> Option<Instant> {
        let gateways = self.due.when().filter(|_| self.tags.is_some() && self.switches.deploys_gateways);
        [gateways, self.classes_due].into_iter().flatten().min()
    }

    /// Makes the classes that Istio brings along, should they be missing. What others make of them stays.
    async fn make_classes(&mut self, now: Instant) {
        if !self.switches.makes_classes || self.classes_due.is_none_or(|due| due > now) {
            return;
        }
        self.classes_due = None;
        match self.cluster.make_classes(&self.desired.classes).await {
            Ok(()) => {}
            Err(fault) => {
                tracing::warn!(%fault, "a GatewayClass cannot be made now");
                self.classes_due = Some(now + due::AGAIN_AT_LAST.min(self.cluster.patience()));
            }
        }
    }

    /// Sees to the next Gateway that is due; `false` if there is none.
    async fn deploy_next(&mut self, settings: &Current, now: Instant) -> bool {
        if !self.switches.deploys_gateways {
            return false;
        }
        let Some(tags) = self.tags.clone() else { return false };
        let Some((key, why)) = self.due.take(now) else { return false };
        let Some(gateway) = self.desired.gateways.get(&key).cloned() else { return true };
        if !is_mine(gateway.revision.as_deref(), &tags) {
            tracing::debug!(%key, revision = ?gateway.revision, "the Gateway is of another revision");
            self.due.done(&key);
            return true;
        }
        let version = match version(&gateway) {
            Version::Others => {
                tracing::debug!(%key, "the Gateway is looked after by a newer version");
                self.due.done(&key);
                return true;
            }
            version => version,
        };
        match self.deploy(&key, &gateway, why, version, settings).await {
            Ok(()) => {
                self.due.done(&key);
                self.said.remove(&key);
            }
            Err(Failure::Refused(Refused(message))) => {
                // It becomes no better by trying again.
                self.due.done(&key);
                self.say(&key, &message);
            }
            Err(Failure::Fault(fault)) => {
                self.say(&key, &fault.to_string());
                self.due.failed(&key, Instant::now());
            }
        }
        true
    }

    /// Says once why a Gateway has no gateways, or old ones.
    fn say(&mut self, key: &Key, message: &str) {
        if self.said.get(key).map(String::as_str) != Some(message) {
            tracing::error!(gateway = %key, message, "gateways cannot be deployed as they should be");
            self.said.insert(key.clone(), message.to_owned());
        }
    }

    async fn deploy(
        &mut self,
        key: &Key,
        gateway: &Gateway,
        why: Why,
        version: Version,
        settings: &Current,
    ) -> Result<(), Failure> {
        let class =
            gateway.object.pointer("/spec/gatewayClassName").and_then(Value::as_str).unwrap_or_default();
        let defaults = self.cluster.class_defaults(&self.root_namespace, &self.revision, class).await?;
        let mut overlays: Vec<_> = defaults.into_iter().collect();
        if let Some(map) = parameters(gateway).map_err(Failure::Refused)? {
            let found = self.cluster.overlay(&map).await?;
            overlays
                .push(found.ok_or_else(|| Refused(format!("parametersRef: there is no ConfigMap {map}")))?);
        }
        let kube_version = match self.kube_version {
            Some(version) => version,
            None => *self.kube_version.insert(self.cluster.version().await?),
        };
        let request = GatewayRequest {
            gateway: gateway.object.clone(),
            ports: gateway.ports.clone(),
            copies_metadata: self.switches.copies_metadata,
            kube_version,
            cluster: crate::scope::locality::CLUSTER_ID.to_owned(),
            overlays,
            rules: (*settings.rules).clone(),
        };
        let objects = settings.injector.gateway(&request).map_err(Failure::Refused)?;
        if why == Why::Perhaps && self.made.get(key) == Some(&objects) {
            return Ok(());
        }
        // If it fails in between, it is not made.
        self.made.remove(key);
        if version == Version::Old {
            self.cluster.claim(key, VERSION).await?;
        }
        for object in &objects {
            if let Some((plural, hash)) = self.cluster.apply(object).await? {
                let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let stored = Key { namespace: key.namespace.clone(), name: name.to_owned() };
                self.stored.insert((plural, stored), hash);
            }
        }
        tracing::info!(gateway = %key, name = gateway.name, revision = self.revision, "gateways are deployed");
        self.made.insert(key.clone(), objects);
        Ok(())
    }
}

/// Why something was not made.
enum Failure {
    /// It cannot be made.
    Refused(Refused),
    /// The API server did not do it.
    Fault(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Fault(fault)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        Failure::Refused(refused)
    }
}

/// The ConfigMap that a Gateway names.
fn parameters(gateway: &Gateway) -> Result<Option<Key>, Refused> {
    let Some(reference) = gateway.object.pointer("/spec/infrastructure/parametersRef") else {
        return Ok(None);
    };
    if reference.is_null() {
        return Ok(None);
    }
    let text = |name: &str| reference.get(name).and_then(Value::as_str).unwrap_or_default();
    if (text("group"), text("kind")) != ("", "ConfigMap") {
        return Err(Refused(format!(
            "parametersRef: {}/{} is not a ConfigMap of the group \"\"",
            text("group"),
            text("kind")
        )));
    }
    let namespace = gateway.object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let name = text("name");
    if !is_subdomain(name) {
        return Err(Refused(format!("parametersRef: {name:?} is not the name of a ConfigMap")));
    }
    Ok(Some(Key { namespace: namespace.to_owned(), name: name.to_owned() }))
}

/// Whether a Gateway is for a control plane that goes by some names: what is not marked is for the default one.
fn is_mine(revision: Option<&str>, names: &BTreeSet<String>) -> bool {
    match revision {
        None => true,
        Some("") => names.contains(DEFAULT),
        Some(revision) => names.contains(revision),
    }
}

/// The annotation of a Gateway with the version of the rules by which gateways are deployed for it, and our version:
/// Istio's from 1.18 on.
const VERSION_ANNOTATION: &str = "gateway.istio.io/controller-version";
const VERSION: u32 = 5;

/// Who looks after a Gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// One that goes by our rules.
    Ours,
    /// Nobody yet, or one that goes by older rules.
    Old,
    /// One whose rules are newer than ours, or not known.
    Others,
}

fn version(gateway: &Gateway) -> Version {
    let annotations = gateway.object.pointer("/metadata/annotations");
    let Some(text) = annotations.and_then(|it| it.get(VERSION_ANNOTATION)).and_then(Value::as_str) else {
        return Version::Old;
    };
    match text.parse::<i64>() {
        Ok(version) if version < i64::from(VERSION) => Version::Old,
        Ok(version) if version == i64::from(VERSION) => Version::Ours,
        _ => Version::Others,
    }
}

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::{Gateway, Version, is_mine, parameters, version};
    use crate::inject::Refused;

    fn gateway(annotations: &serde_json::Value, infrastructure: &serde_json::Value) -> Gateway {
        let object = json!({ "metadata": { "namespace": "n", "annotations": annotations },
            "spec": { "infrastructure": infrastructure } });
        Gateway { object, name: String::new(), ports: Vec::new(), revision: None }
    }

    #[test]
    fn the_newest_rules_count() {
        let of = |text: &str| {
            version(&gateway(&json!({ "gateway.istio.io/controller-version": text }), &json!({})))
        };
        assert_eq!(version(&gateway(&json!({}), &json!({}))), Version::Old);
        assert_eq!([of("1"), of("-1"), of("5")], [Version::Old, Version::Old, Version::Ours]);
        assert_eq!([of("6"), of("v6"), of("")], [Version::Others; 3]);
    }

    #[test]
    fn who_looks_after_a_gateway() {
        let names = |all: &[&str]| all.iter().map(|&it| it.to_owned()).collect::<BTreeSet<_>>();
        for (revision, own, expected) in [
            (None, &["canary"][..], true),
            (Some(""), &["canary"], false),
            (Some(""), &["default"], true),
            (Some(""), &["canary", "default"], true),
            (Some("canary"), &["default"], false),
            (Some("prod"), &["canary", "prod"], true),
        ] {
            assert_eq!(is_mine(revision, &names(own)), expected, "{revision:?} {own:?}");
        }
    }

    #[test]
    fn what_has_parameters() {
        let of = |reference: serde_json::Value| {
            parameters(&gateway(&json!({}), &json!({ "parametersRef": reference })))
        };
        let map = of(json!({ "group": "", "kind": "ConfigMap", "name": "m" })).unwrap().unwrap();
        assert_eq!((map.namespace.as_str(), map.name.as_str()), ("n", "m"));
        assert_eq!(of(json!(null)), Ok(None));
        let refused = of(json!({ "group": "example.com", "kind": "Settings", "name": "m" }));
        assert!(matches!(refused, Err(Refused(message)) if message.contains("example.com/Settings")));
    }
}
