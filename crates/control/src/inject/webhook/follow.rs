//! Keeps what injection is configured with: the ConfigMaps `istio-sidecar-injector` and `istio` (of
//! the revision) and ProxyConfig objects, of a cluster or of folders.
//!
//! They are few, and change hardly ever: when a watch of them says that something has happened, they are
//! read again. Folders are looked at every few seconds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tokio::sync::Notify;

use super::{Counts, Webhook};
use crate::inject::{BuiltIn, MeshSettings, ProxyRules, ProxySelection, Refused, Settings};
use crate::source::kube::Cluster;
use crate::source::kube::client::Fault;

/// How often folders are looked at.
const EVERY: Duration = Duration::from_secs(3);

/// The same until everything is as it should be.
pub(super) const SOON: Duration = Duration::from_millis(200);

/// How often a cluster is looked at though nothing is said to have changed, and its nodes.
const SELDOM: Duration = Duration::from_secs(300);

/// How long to wait after it could not be read.
const AGAIN: Duration = Duration::from_secs(5);

const RULES: &str = "/apis/networking.istio.io/v1beta1/proxyconfigs";

/// The ConfigMaps, without their revision.
const INJECTOR: &str = "istio-sidecar-injector";
const MESH: &str = "istio";

/// Native sidecars are stable from this minor version of kubelets on.
const NATIVE_SINCE: u32 = 33;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    /// Keys `config` and `values`.
    injector: Option<(String, String)>,
    /// Key `mesh`.
    mesh: Option<String>,
    /// ProxyConfig objects, the oldest first.
    rules: Vec<Json>,
}

/// Follows for ever.
pub(crate) async fn follow(webhook: Arc<Webhook>, cluster: Option<Cluster>, dirs: Vec<PathBuf>) {
    let mut state = State { webhook, known: None, said: String::new() };
    let Some(cluster) = cluster else {
        loop {
            let found = in_folders(&state.webhook, &dirs);
            state.take(found);
            state.webhook.configured.send_replace(true);
            tokio::time::sleep(EVERY).await;
        }
    };
    let hint = Notify::new();
    let map = |base| {
        let options = &state.webhook.options;
        let (namespace, name) = (&options.namespace, name(base, &options.revision));
        format!("/api/v1/namespaces/{namespace}/configmaps?fieldSelector=metadata.name%3D{name}")
    };
    let (injector, mesh) = (map(INJECTOR), map(MESH));
    let hints = async {
        let api = cluster.api();
        tokio::join!(api.hints(&injector, &hint), api.hints(&mesh, &hint), api.hints(RULES, &hint));
    };
    let reading = async {
        let mut nodes_at: Option<Instant> = None;
        loop {
            let mut patience = SELDOM;
            match in_cluster(&state.webhook, &cluster).await {
                Ok(found) => {
                    state.said.clear();
                    state.take(found);
                    state.webhook.configured.send_replace(true);
                }
                Err(fault) => {
                    if is_final(&fault) {
                        state.webhook.configured.send_replace(true);
                    }
                    patience = if state.webhook.is_ready() { AGAIN } else { SOON };
                    let message = fault.to_string();
                    if message != state.said {
                        tracing::warn!(message, "the configuration of injection cannot be read now");
                        state.said = message;
                    }
                }
            }
            if state.webhook.options.native.is_none() && nodes_at.is_none_or(|at| at.elapsed() >= SELDOM) {
                look_at_nodes(&state.webhook, &cluster).await;
                nodes_at = Some(Instant::now());
            }
            let _ = tokio::time::timeout(patience, hint.notified()).await;
        }
    };
    // Neither ends.
    tokio::join!(hints, reading);
}

/// What is known of it.
struct State {
    webhook: Arc<Webhook>,
    known: Option<Found>,
    /// Why it could not be read last.
    said: String,
}

impl State {
    /// What was found is used, if it is new and good.
    fn take(&mut self, found: Found) {
        if self.known.as_ref() == Some(&found) {
            return;
        }
        if let Err(Refused(message)) = install(&self.webhook, &found) {
            Counts::add(&self.webhook.counts.bad_configurations);
            tracing::error!(
                message,
                "the configuration of injection cannot be used: the last good one stays"
            );
        } else {
            let source = if found.injector.is_some() { "its ConfigMap" } else { "what is built in" };
            tracing::info!(source, "injection is configured");
        }
        self.known = Some(found);
    }
}

/// Whether waiting does not help: it is not ours to see.
pub(super) fn is_final(fault: &Fault) -> bool {
    fault.code() == 403
}

fn install(webhook: &Webhook, found: &Found) -> Result<(), Refused> {
    let revision = &webhook.options.revision;
    let settings = match &found.injector {
        Some((config, values)) => Settings::parse(config, values, revision)?,
        None => BuiltIn::settings(revision),
    };
    let mesh = found.mesh.as_deref().map_or_else(|| Ok(MeshSettings::default()), MeshSettings::parse)?;
    webhook.install(settings, mesh, ProxyRules(found.rules.iter().map(selection).collect()))
}

fn selection(object: &Json) -> ProxySelection {
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Json::as_object);
    let has_selector = object.pointer("/spec/selector").is_some_and(|selector| !selector.is_null());
    let labels: BTreeMap<String, String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    ProxySelection {
        namespace: object
            .pointer("/metadata/namespace")
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned(),
        labels: has_selector.then_some(labels),
        spec: object.get("spec").cloned().unwrap_or_default(),
    }
}

/// `istio` or `istio-REVISION`.
fn name(base: &str, revision: &str) -> String {
    match revision {
        "" | "default" => base.to_owned(),
        revision => format!("{base}-{revision}"),
    }
}

fn key(map: &Json, name: &str) -> Option<String> {
    map.get("data")?.get(name)?.as_str().map(str::to_owned)
}

async fn in_cluster(webhook: &Webhook, cluster: &Cluster) -> Result<Found, Fault> {
    let options = &webhook.options;
    let map = async |base: &str| {
        let (namespace, name) = (&options.namespace, name(base, &options.revision));
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        match cluster.api().get(&path, "application/json").await {
            Ok(text) => serde_json::from_str::<Json>(&text)
                .map(Some)
                .map_err(|error| Fault::Broken(error.to_string())),
            Err(fault) if fault.code() == 404 => Ok(None),
            Err(fault) => Err(fault),
        }
    };
    let injector = map(INJECTOR).await?;
    let mesh = map(MESH).await?;
    let list = cluster.api().get(RULES, "application/json").await;
    let mut rules = match list {
        Ok(text) => items(&text),
        // The kind may not be there, or not for us.
        Err(fault) if matches!(fault.code(), 403 | 404) => Vec::new(),
        Err(fault) => return Err(fault),
    };
    rules.sort_by_cached_key(|object| {
        let text = |name: &str| object.pointer(name).and_then(Json::as_str).unwrap_or_default().to_owned();
        (text("/metadata/creationTimestamp"), text("/metadata/name"))
    });
    // What changes without a change of meaning is left out.
    let rules = rules.into_iter().map(|object| {
        serde_json::json!({
            "metadata": {"namespace": object.pointer("/metadata/namespace")},
            "spec": object.get("spec"),
        })
    });
    Ok(Found {
        injector: injector.as_ref().and_then(|map| Some((key(map, "config")?, key(map, "values")?))),
        mesh: mesh.as_ref().and_then(|map| key(map, "mesh")),
        rules: rules.collect(),
    })
}

fn items(list: &str) -> Vec<Json> {
    let mut list: Json = serde_json::from_str(list).unwrap_or_default();
    match list.get_mut("items").map(Json::take) {
        Some(Json::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// The same of the YAML files in folders; of objects of one name the last counts.
fn in_folders(webhook: &Webhook, dirs: &[PathBuf]) -> Found {
    let options = &webhook.options;
    let mut found = Found::default();
    let injector = name(INJECTOR, &options.revision);
    let mesh = name(MESH, &options.revision);
    for path in crate::source::files::configuration_files(dirs) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Ok(documents) = leno_api::yaml::parse(&text, leno_api::yaml::Dialect::Kubernetes) else {
            continue;
        };
        for object in documents.iter().map(leno_api::yaml::Node::to_json) {
            let text = |path: &str| object.pointer(path).and_then(Json::as_str).unwrap_or_default();
            match (text("/kind"), text("/metadata/name")) {
                ("ConfigMap", name) if name == injector => {
                    found.injector = key(&object, "config").zip(key(&object, "values"));
                }
                ("ConfigMap", name) if name == mesh => found.mesh = key(&object, "mesh"),
                ("ProxyConfig", _) => found.rules.push(object),
                _ => {}
            }
        }
    }
    found
}

/// Native sidecars are used if all kubelets have them.
async fn look_at_nodes(webhook: &Webhook, cluster: &Cluster) {
    match cluster.api().get("/api/v1/nodes", "application/json").await {
        Ok(text) => {
            let nodes = items(&text);
            let mut versions = nodes.iter().map(|node| {
                node.pointer("/status/nodeInfo/kubeletVersion").and_then(Json::as_str).and_then(minor)
            });
            let all = versions.all(|minor| minor.is_some_and(|minor| minor >= NATIVE_SINCE));
            webhook.native.store(all, Ordering::Relaxed);
        }
        Err(fault) => tracing::debug!(%fault, "nodes cannot be read: native sidecars stay as they are"),
    }
}

/// The minor version of `v1.33.2`.
pub(super) fn minor(version: &str) -> Option<u32> {
    version.trim_start_matches('v').split('.').nth(1)?.parse().ok()
}
