//! What is asked of the cluster, and heard from it, to deploy gateways.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::{DEFAULT, PATIENCE, VERSION_ANNOTATION};
use crate::inject::{MADE, WebhookOptions};
use crate::model::label::{GATEWAY_CONTROLLER, GATEWAY_MANAGED, GATEWAY_NAME, REMOTE_CONTROLLER, REVISION};
use crate::model::{Key, Kind};
use crate::scope::gateway_api::listeners::{CLASS, REMOTE_CLASS};
use crate::source::kube::Cluster;
use crate::source::kube::client::{Api, Fault};
use crate::source::kube::discovery::{Served, watched};

const JSON: &str = "application/json";
const APPLY: &str = "application/apply-patch+yaml";

/// The label of ConfigMaps with what holds for all Gateways of a class.
const CLASS_DEFAULTS: &str = "gateway.istio.io/defaults-for-class";

/// The label that gives the control plane of a revision another name.
const TAG: &str = "istio.io/tag";

/// What says which revision is the default one, if no tag does.
const DEFAULT_VALIDATOR: &str = "istiod-default-validator";

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// How long to wait before a watch that has ended badly, or what could not be read, is asked for again.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a watch is asked to last, in seconds.
const WATCH_SECONDS: u64 = 300;

impl Cluster {
    /// How long to wait at most before the API server is asked again for what it did not do.
    pub(super) fn patience(&self) -> Duration {
        PAUSE
    }

    async fn ask(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Value, Fault> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let asking = self.api().call(method, path, JSON, content, body);
        let late = |_| Fault::Broken("no answer in time".to_owned());
        let text = tokio::time::timeout(PATIENCE, asking).await.map_err(late)??;
        serde_json::from_str(&text).map_err(|error| Fault::Broken(error.to_string()))
    }

    /// An object, or a list; `None` if there is none.
    async fn read(&self, path: &str) -> Result<Option<Value>, Fault> {
        match self.ask(Method::GET, path, "", &Value::Null).await {
            Ok(found) => Ok(Some(found)),
            Err(fault) if fault.code() == 404 => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Where the objects of a kind of the Gateway API are, if it is served.
    fn place_of(&self, kind: Kind) -> Option<Served> {
        let known = watched().find(|known| known.reads == Some(kind))?;
        self.served().borrow().find(&known).cloned()
    }

    /// Makes the classes that are missing, if there are classes at all.
    pub(super) async fn make_classes(&self, present: &BTreeSet<String>) -> Result<(), Fault> {
        let Some(served) = self.place_of(Kind::GatewayClass) else { return Ok(()) };
        let classes = [
            (CLASS, GATEWAY_CONTROLLER, "Gateways that are deployed by the mesh"),
            (
                REMOTE_CLASS,
                REMOTE_CONTROLLER,
                "Gateways of another cluster: nothing is deployed or configured for them",
            ),
        ];
        for (name, controller, description) in classes.iter().filter(|(name, ..)| !present.contains(*name)) {
            let class = json!({ "apiVersion": served.api_version, "kind": "GatewayClass",
                "metadata": { "name": name }, "spec": { "controllerName": controller, "description": description } });
            match self.ask(Method::POST, &served.path(""), JSON, &class).await {
                Ok(_) => tracing::info!(name, "the GatewayClass is made"),
                // Somebody else was faster.
                Err(fault) if fault.code() == 409 => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// The version of Kubernetes: 133 for 1.33.
    pub(super) async fn version(&self) -> Result<u32, Fault> {
        let found = self.ask(Method::GET, "/version", "", &Value::Null).await?;
        let number = |name: &str| -> Option<u32> {
            let text = found.get(name)?.as_str()?;
            text.trim_end_matches(|letter: char| !letter.is_ascii_digit()).parse().ok()
        };
        let version = number("major").zip(number("minor")).map(|(major, minor)| major * 100 + minor);
        version.ok_or_else(|| Fault::Broken(format!("/version: {found}")))
    }

    /// What holds for all Gateways of a class: the oldest ConfigMap that says so.
    pub(super) async fn class_defaults(
        &self,
        root_namespace: &str,
        revision: &str,
        class: &str,
    ) -> Result<Option<BTreeMap<String, String>>, Fault> {
        let label = format!("{CLASS_DEFAULTS}={class}").replace('/', "%2F").replace('=', "%3D");
        let path = format!("/api/v1/namespaces/{root_namespace}/configmaps?labelSelector={label}");
        let list = self.read(&path).await?.unwrap_or_default();
        let of = |map: &&Value, path: &str| {
            map.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let maps = list.get("items").and_then(Value::as_array).into_iter().flatten();
        // Deviation: istiod takes the oldest whatever revision it is of; ours are of the revision that they name.
        let maps = maps.filter(|map| {
            let of = map.pointer("/metadata/labels").and_then(|it| it.get(REVISION)).and_then(Value::as_str);
            of.is_none_or(|of| of == revision)
        });
        let oldest =
            maps.min_by_key(|map| (of(map, "/metadata/creationTimestamp"), of(map, "/metadata/name")));
        Ok(oldest.map(data))
    }

    /// What a ConfigMap says; `None` if there is none.
    pub(super) async fn overlay(&self, key: &Key) -> Result<Option<BTreeMap<String, String>>, Fault> {
        let path = format!("/api/v1/namespaces/{}/configmaps/{}", key.namespace, key.name);
        Ok(self.read(&path).await?.as_ref().map(data))
    }

    /// Says that a Gateway is looked after by our rules.
    pub(super) async fn claim(&self, key: &Key, version: u32) -> Result<(), Fault> {
        let Some(served) = self.place_of(Kind::KubernetesGateway) else { return Ok(()) };
        let object = json!({ "apiVersion": served.api_version, "kind": "Gateway",
            "metadata": { "name": key.name, "namespace": key.namespace,
                "annotations": { VERSION_ANNOTATION: version.to_string() } } });
        // As istiod does it, which may write no more of a Gateway than its status. API servers of today leave the
        // annotation out then.
        let path = format!("{}/{}/status?{}", served.path(&key.namespace), key.name, force());
        self.ask(Method::PATCH, &path, APPLY, &object).await.map(drop)
    }

    /// Brings an object into the cluster, unless there is one of its name that is somebody else's: `None` then. Else
    /// what it is called, and a hash of it as it is stored.
    pub(super) async fn apply(&self, object: &Value) -> Result<Option<(&'static str, u64)>, Fault> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let Some(made) = MADE.iter().find(|made| made.kind == text("/kind")) else {
            return Err(Fault::Broken(format!("{} is never made", text("/kind"))));
        };
        let root = if made.api_version.contains('/') { "apis" } else { "api" };
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let place = format!("/{root}/{}/namespaces/{namespace}/{}/{name}", made.api_version, made.plural);
        let mut object = object.clone();
        if let Some(there) = self.read(&place).await? {
            if there.pointer("/metadata/labels").and_then(|labels| labels.get(GATEWAY_MANAGED)).is_none() {
                tracing::info!(kind = made.kind, namespace, name, "is not ours, and stays as it is");
                return Ok(None);
            }
            // Should somebody take the label away meanwhile, it is a conflict.
            object["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
            keep_selector(&there, &mut object);
        }
        let stored = self.ask(Method::PATCH, &format!("{place}?{}", force()), APPLY, &object).await?;
        Ok(Some((made.plural, hash(stored))))
    }

    /// The names that the control plane of a revision goes by: its own, its tags, and `default` if it is that.
    async fn names(&self, revision: &str, root_namespace: &str) -> Result<BTreeSet<String>, Fault> {
        let mut names = BTreeSet::from([revision.to_owned()]);
        let mut is_others = false;
        let tag = TAG.replace('/', "%2F");
        for path in [
            format!("{ADMISSION}/mutatingwebhookconfigurations?labelSelector={tag}"),
            format!("/api/v1/namespaces/{root_namespace}/services?labelSelector={tag}"),
        ] {
            let list = match self.read(&path).await {
                // Where webhooks are others' business, so are tags.
                Err(fault) if fault.code() == 403 => None,
                found => found?,
            };
            let list = list.unwrap_or_default();
            for object in list.get("items").and_then(Value::as_array).into_iter().flatten() {
                let label = |name: &str| {
                    let labels = object.pointer("/metadata/labels");
                    labels.and_then(|it| it.get(name)).and_then(Value::as_str).unwrap_or_default().to_owned()
                };
                match label(REVISION) == revision {
                    true => drop(names.insert(label(TAG))),
                    false => is_others |= label(TAG) == DEFAULT,
                }
            }
        }
        if !is_others && !names.contains(DEFAULT) {
            let path = format!("{ADMISSION}/validatingwebhookconfigurations/{DEFAULT_VALIDATOR}");
            let found = match self.read(&path).await {
                Err(fault) if fault.code() == 403 => None,
                found => found?,
            };
            let labels = found.as_ref().and_then(|found| found.pointer("/metadata/labels"));
            if labels.and_then(|it| it.get(REVISION)).and_then(Value::as_str) == Some(revision) {
                names.insert(DEFAULT.to_owned());
            }
        }
        Ok(names)
    }
}

/// Who owns the fields that are written: istiod's name, so that either can go on with what the other has made.
fn force() -> String {
    format!("fieldManager={}&force=true", GATEWAY_CONTROLLER.replace('/', "%2F"))
}

fn data(map: &Value) -> BTreeMap<String, String> {
    let data = map.get("data").and_then(Value::as_object).into_iter().flatten();
    data.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// A Deployment cannot change by which labels it knows its Pods: those that istiod made before 1.24 keep theirs.
fn keep_selector(there: &Value, object: &mut Value) {
    const OLD: &str = "istio.io/gateway-name";
    let selector = there.pointer("/spec/selector");
    let old = selector.and_then(|it| it.get("matchLabels")).and_then(|it| it.get(OLD));
    let (Some(selector), Some(old)) = (selector, old) else { return };
    // What a ConfigMap has made of it may have no such places, which the API server will say.
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("selector".to_owned(), selector.clone());
    }
    if let Some(labels) = object.pointer_mut("/spec/template/metadata/labels").and_then(Value::as_object_mut)
    {
        labels.insert(OLD.to_owned(), old.clone());
    }
}

/// What of an object is somebody's wish.
fn hash(mut object: Value) -> u64 {
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in ["managedFields", "resourceVersion", "generation"] {
            metadata.shift_remove(name);
        }
        // Controllers write what they have seen.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.shift_remove("deployment.kubernetes.io/revision");
        }
    }
    object.sort_all_objects();
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}

/// What has happened in the cluster.
#[derive(Debug)]
pub(super) enum Heard {
    /// An object that was made for a Gateway is so now; no hash: it is gone.
    Object { plural: &'static str, key: Key, gateway: Key, hash: Option<u64> },
    /// Objects of a kind may have changed that were not told.
    Missed,
    /// The names of this control plane.
    Names(BTreeSet<String>),
    /// ConfigMaps of classes may have changed.
    Defaults,
    /// A ConfigMap that Gateways name may have changed.
    Parameters(Key),
}

/// Listens to the cluster.
pub(super) struct Hearer {
    cluster: Cluster,
    revision: String,
    root_namespace: String,
    tell: mpsc::Sender<Heard>,
    tasks: JoinSet<()>,
    parameters: BTreeMap<Key, AbortHandle>,
}

impl Hearer {
    pub(super) fn new(cluster: Cluster, options: &WebhookOptions, tell: mpsc::Sender<Heard>) -> Hearer {
        let revision = match options.revision.as_str() {
            "" => DEFAULT,
            revision => revision,
        };
        Hearer {
            cluster,
            revision: revision.to_owned(),
            root_namespace: options.namespace.clone(),
            tell,
            tasks: JoinSet::new(),
            parameters: BTreeMap::new(),
        }
    }

    /// Listens, if it does not yet.
    pub(super) fn begin(&mut self) {
        if !self.tasks.is_empty() {
            return;
        }
        for made in &MADE {
            let root = if made.api_version.contains('/') { "apis" } else { "api" };
            let label = GATEWAY_MANAGED.replace('/', "%2F");
            let path = format!("/{root}/{}/{}?labelSelector={label}", made.api_version, made.plural);
            self.tasks.spawn(follow(self.cluster.api().clone(), made.plural, path, self.tell.clone()));
        }
        let (root, label) = (&self.root_namespace, CLASS_DEFAULTS.replace('/', "%2F"));
        let path = format!("/api/v1/namespaces/{root}/configmaps?labelSelector={label}");
        self.tasks.spawn(hint(self.cluster.api().clone(), path, self.tell.clone(), || Heard::Defaults));
        let (cluster, tell) = (self.cluster.clone(), self.tell.clone());
        self.tasks.spawn(names(cluster, self.revision.clone(), root.clone(), tell));
    }

    /// Does not listen any more.
    pub(super) fn end(&mut self) {
        self.tasks.abort_all();
        self.tasks = JoinSet::new();
        self.parameters.clear();
    }

    /// Listens to these ConfigMaps.
    pub(super) fn follow(&mut self, maps: &BTreeSet<Key>) {
        self.parameters.retain(|key, task| {
            let stays = maps.contains(key);
            if !stays {
                task.abort();
            }
            stays
        });
        for key in maps.iter().filter(|key| !self.parameters.contains_key(*key)).cloned().collect::<Vec<_>>()
        {
            let path = format!(
                "/api/v1/namespaces/{}/configmaps?fieldSelector=metadata.name%3D{}",
                key.namespace, key.name
            );
            let named = key.clone();
            let telling = hint(self.cluster.api().clone(), path, self.tell.clone(), move || {
                Heard::Parameters(named.clone())
            });
            self.parameters.insert(key, self.tasks.spawn(telling));
        }
    }
}

/// Says that something may have changed.
async fn hint(api: Api, path: String, tell: mpsc::Sender<Heard>, what: impl Fn() -> Heard) {
    let hint = Notify::new();
    let telling = async {
        loop {
            hint.notified().await;
            if tell.send(what()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = api.hints(&path, &hint) => {}
        () = telling => {}
    }
}

/// Says what the control plane is called, whenever that may have changed.
async fn names(cluster: Cluster, revision: String, root_namespace: String, tell: mpsc::Sender<Heard>) {
    let hint = Notify::new();
    let tag = TAG.replace('/', "%2F");
    let api = cluster.api();
    let paths = [
        format!("{ADMISSION}/mutatingwebhookconfigurations?labelSelector={tag}"),
        format!("/api/v1/namespaces/{root_namespace}/services?labelSelector={tag}"),
        format!(
            "{ADMISSION}/validatingwebhookconfigurations?fieldSelector=metadata.name%3D{DEFAULT_VALIDATOR}"
        ),
    ];
    let hints = async {
        tokio::join!(api.hints(&paths[0], &hint), api.hints(&paths[1], &hint), api.hints(&paths[2], &hint));
    };
    let telling = async {
        loop {
            let patience = match cluster.names(&revision, &root_namespace).await {
                Ok(names) => {
                    if tell.send(Heard::Names(names)).await.is_err() {
                        return;
                    }
                    None
                }
                Err(fault) => {
                    tracing::warn!(%fault, "the tags of the control plane cannot be read now");
                    Some(PAUSE)
                }
            };
            tokio::select! {
                () = hint.notified() => {}
                () = async {
                    match patience {
                        Some(patience) => tokio::time::sleep(patience).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    };
    tokio::select! {
        () = hints => {}
        () = telling => {}
    }
}

/// Tells of the objects of one kind that were made for Gateways.
async fn follow(api: Api, plural: &'static str, list: String, tell: mpsc::Sender<Heard>) {
    // Where the last watch has ended; and whether something may have been missed since.
    let mut version: Option<String> = None;
    let mut is_behind = false;
    loop {
        let from = version.as_ref().map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
        let path = format!("{list}&watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}{from}");
        let begun = Instant::now();
        match api.lines(&path, JSON).await {
            Ok(mut lines) => {
                if std::mem::take(&mut is_behind) && tell.send(Heard::Missed).await.is_err() {
                    return;
                }
                while let Ok(Some(line)) = lines.next().await {
                    let Ok(event) = serde_json::from_slice::<Value>(&line) else { break };
                    if event.get("type").and_then(Value::as_str) == Some("ERROR") {
                        version = None;
                        break;
                    }
                    let now = event.pointer("/object/metadata/resourceVersion").and_then(Value::as_str);
                    version = now.map(str::to_owned).or(version);
                    if let Some(heard) = heard(plural, &event)
                        && tell.send(heard).await.is_err()
                    {
                        return;
                    }
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, plural, "they cannot be watched");
                if fault.code() == 410 {
                    version = None;
                }
            }
        }
        is_behind |= version.is_none();
        tokio::time::sleep(PAUSE.saturating_sub(begun.elapsed())).await;
    }
}

/// What an event of a watch says.
fn heard(plural: &'static str, event: &Value) -> Option<Heard> {
    let object = event.get("object")?;
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let gateway = object.pointer("/metadata/labels")?.get(GATEWAY_NAME)?.as_str()?.to_owned();
    let namespace = text("/metadata/namespace");
    let hash = match event.get("type").and_then(Value::as_str)? {
        "ADDED" | "MODIFIED" => Some(hash(object.clone())),
        "DELETED" => None,
        _ => return None,
    };
    Some(Heard::Object {
        plural,
        key: Key { namespace: namespace.clone(), name: text("/metadata/name") },
        gateway: Key { namespace, name: gateway },
        hash,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{hash, keep_selector};

    #[test]
    fn what_counts_of_an_object() {
        let object = json!({ "metadata": { "name": "a", "labels": { "x": "1" }, "resourceVersion": "7" },
            "spec": { "replicas": 1 }, "status": { "replicas": 1 } });
        let mut same = object.clone();
        same["metadata"]["resourceVersion"] = json!("8");
        same["metadata"]["managedFields"] = json!([{}]);
        same["status"]["replicas"] = json!(2);
        assert_eq!(hash(object.clone()), hash(same));
        for (path, value) in [("/spec/replicas", json!(2)), ("/metadata/labels/x", json!("2"))] {
            let mut other = object.clone();
            *other.pointer_mut(path).unwrap() = value;
            assert_ne!(hash(object.clone()), hash(other), "{path}");
        }
    }

    #[test]
    fn selectors_of_old_deployments_stay() {
        let new = json!({ "spec": { "selector": { "matchLabels": { "gateway.networking.k8s.io/gateway-name": "g" } },
            "template": { "metadata": { "labels": { "gateway.networking.k8s.io/gateway-name": "g" } } } } });
        let mut object = new.clone();
        keep_selector(&new, &mut object);
        assert_eq!(object, new);
        let old = json!({ "spec": { "selector": { "matchLabels": { "istio.io/gateway-name": "g" } } } });
        keep_selector(&old, &mut object);
        assert_eq!(object["spec"]["selector"], old["spec"]["selector"]);
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["istio.io/gateway-name"], "g");
        // ConfigMaps may make anything of it.
        for mut object in [
            json!({}),
            json!({ "spec": "x" }),
            json!({ "spec": { "template": [] } }),
            json!({ "spec": { "template": { "metadata": { "labels": 1 } } } }),
        ] {
            let template = object.pointer("/spec/template").cloned();
            keep_selector(&old, &mut object);
            assert_eq!(object.pointer("/spec/template"), template.as_ref());
        }
    }
}
