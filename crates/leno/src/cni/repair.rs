//! Pods that came to a node before the plugin was there: nothing of theirs is redirected, so `istio-validation` fails,
//! and with it their start. They are mended where they are, deleted, or labelled, as istio-cni's repair controller
//! does it; of the three the first that is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use leno_control::kubernetes::{Api, Fault};
use serde::Deserialize;
use serde_json::{Value, json};

use super::node;
use super::plugin::{Target, backend};
use super::serve::Health;

const JSON: &str = "application/json";
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Which pods are broken, and what is done with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) repair: bool,
    pub(crate) delete: bool,
    pub(crate) label: bool,
    pub(crate) label_key: String,
    pub(crate) label_value: String,
    /// The node whose pods are looked at; empty: those of all.
    pub(crate) node: String,
    /// Only pods with this annotation.
    pub(crate) annotation: String,
    /// The init container that fails; empty: any.
    pub(crate) container: String,
    /// What it says when it fails; empty: anything.
    pub(crate) message: String,
    /// The code that it ends with; 0: any.
    pub(crate) exit_code: i32,
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    pub(crate) native_nftables: bool,
    /// Where the processes of the node are seen.
    pub(crate) procfs: PathBuf,
}

impl Settings {
    /// Whether a pod cannot start because nothing redirects its connections.
    pub(crate) fn is_broken(&self, pod: &Pod) -> bool {
        let annotated =
            pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(&self.annotation));
        if !self.annotation.is_empty() && !annotated {
            return false;
        }
        let failed = |ended: &ContainerStateTerminated| {
            let said = ended.message.as_deref().unwrap_or_default().trim();
            let message = self.message.trim();
            (message.is_empty() || message == said)
                && (self.exit_code == 0 || self.exit_code == ended.exit_code)
        };
        let statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
        statuses.filter(|status| self.container.is_empty() || status.name == self.container).any(|status| {
            // One that has succeeded after all is not broken, whatever was before.
            let now = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            if now.is_some_and(|it| it.exit_code == 0 || it.reason.as_deref() == Some("Completed")) {
                return false;
            }
            let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            before.is_some_and(failed)
        })
    }

    fn query(&self) -> String {
        let mut fields = Vec::new();
        if !self.field_selector.is_empty() {
            fields.push(self.field_selector.clone());
        }
        if !self.node.is_empty() {
            fields.push(format!("spec.nodeName={}", self.node));
        }
        format!("fieldSelector={}&labelSelector={}", quote(&fields.join(",")), quote(&self.label_selector))
    }
}

/// Watches the pods of a node.
pub(crate) struct Controller {
    api: Api,
    settings: Settings,
    health: Arc<Health>,
    /// What was mended: it takes a while until its containers are started again.
    mended: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

impl Controller {
    pub(crate) fn new(api: Api, settings: Settings, health: Arc<Health>) -> Controller {
        Controller { api, settings, health, mended: BTreeMap::new() }
    }

    /// Lists and watches for ever.
    pub(crate) async fn run(mut self) {
        let mut delay = SHORTEST;
        loop {
            match self.follow(&mut delay).await {
                Ok(()) => {}
                Err(fault) => {
                    if fault.code() != 410 {
                        tracing::warn!("cannot watch the pods of this node: {fault}");
                    }
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST);
        }
    }

    async fn follow(&mut self, delay: &mut Duration) -> Result<(), Fault> {
        let query = self.settings.query();
        let text = self.api.get(&format!("/api/v1/pods?{query}"), JSON).await?;
        let list: List = serde_json::from_str(&text).map_err(|error| Fault::Broken(error.to_string()))?;
        self.mended.retain(|key, _| list.items.iter().any(|pod| key_of(pod) == *key));
        for pod in &list.items {
            self.look_at(pod).await;
        }
        let mut version = list.metadata.resource_version;
        loop {
            let watch = format!(
                "/api/v1/pods?{query}&watch=true&allowWatchBookmarks=true&resourceVersion={}",
                quote(&version)
            );
            let mut lines = self.api.lines(&watch, JSON).await?;
            let mut told = false;
            while let Some(line) = lines.next().await? {
                let event: Event =
                    serde_json::from_slice(&line).map_err(|error| Fault::Broken(error.to_string()))?;
                if event.kind == "ERROR" {
                    let code = event.object["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                    let message = event.object["message"].as_str().unwrap_or_default().to_owned();
                    let code = code.unwrap_or(500);
                    return Err(Fault::Status { code, message, cause: None, retry_after: None });
                }
                told = true;
                *delay = SHORTEST;
                if let Some(newer) = event.object["metadata"]["resourceVersion"].as_str() {
                    newer.clone_into(&mut version);
                }
                if event.kind == "BOOKMARK" {
                    continue;
                }
                let pod: Pod = match serde_json::from_value(event.object) {
                    Ok(pod) => pod,
                    Err(error) => {
                        tracing::warn!("a pod cannot be read: {error}");
                        continue;
                    }
                };
                if event.kind == "DELETED" {
                    self.mended.remove(&key_of(&pod));
                } else {
                    self.look_at(&pod).await;
                }
            }
            if !told {
                // A server that ends watches at once is not asked again at once.
                return Ok(());
            }
        }
    }

    async fn look_at(&mut self, pod: &Pod) {
        if !self.settings.is_broken(pod) {
            return;
        }
        if self.settings.repair {
            self.mend(pod).await;
        } else if self.settings.delete {
            self.delete(pod).await;
        } else if self.settings.label {
            self.label(pod).await;
        }
    }

    /// Puts the rules where they should have been; the pod goes on when its container is started again.
    async fn mend(&mut self, pod: &Pod) {
        let key = key_of(pod);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.mended.get(&key) == Some(&uid) {
            return;
        }
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse::<IpAddr>().ok());
        let (procfs, choice) = (self.settings.procfs.clone(), backend(self.settings.native_nftables));
        let target = Target::of(pod);
        let done = tokio::task::spawn_blocking(move || {
            let address = address.ok_or("it has no address")?;
            let Some(target) = target? else { return Err("it is not one that is redirected".to_owned()) };
            target.program(&node::namespace_of(&procfs, address)?, choice)
        });
        let done = done.await.unwrap_or_else(|error| Err(error.to_string()));
        match done {
            Ok(()) => {
                tracing::info!("pod {key}: mended");
                self.mended.insert(key, uid);
                self.health.repaired("repair", "success");
            }
            Err(why) => {
                tracing::error!("pod {key}: cannot be mended: {why}");
                self.health.repaired("repair", "fail");
            }
        }
    }

    async fn delete(&self, pod: &Pod) {
        // Only the very pod that was looked at.
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version },
        });
        let done =
            self.api.call(Method::DELETE, &path_of(pod), JSON, JSON, options.to_string().into_bytes()).await;
        self.tell(pod, "delete", "DeleteBrokenPod", "deleted", done.map(drop)).await;
    }

    async fn label(&self, pod: &Pod) {
        let labels = pod.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(&self.settings.label_key)) {
            self.health.repaired("label", "skip");
            return;
        }
        let patch =
            json!({ "metadata": { "labels": { &self.settings.label_key: self.settings.label_value } } });
        // To change the status takes fewer rights than to change the pod, and labels can be changed by it as well.
        let path = format!("{}/status", path_of(pod));
        let kind = "application/merge-patch+json";
        let done = self.api.call(Method::PATCH, &path, JSON, kind, patch.to_string().into_bytes()).await;
        self.tell(pod, "label", "LabelBrokenPod", "labeled", done.map(drop)).await;
    }

    /// Says what was done, in the log, in metrics, and as an event of the pod.
    async fn tell(
        &self,
        pod: &Pod,
        kind: &'static str,
        reason: &str,
        done: &str,
        outcome: Result<(), Fault>,
    ) {
        let key = key_of(pod);
        let message = match &outcome {
            Ok(()) => format!("pod detected as broken, {done}"),
            Err(fault) => format!("pod detected as broken, but failed to {kind}: {fault}"),
        };
        tracing::info!("pod {key}: {message}");
        self.health.repaired(kind, if outcome.is_ok() { "success" } else { "fail" });
        let (name, namespace) = (pod.metadata.name.clone(), pod.metadata.namespace.clone());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": format!("{}.{now:x}", name.as_deref().unwrap_or("pod")), "namespace": namespace },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": name,
                "namespace": namespace,
                "uid": pod.metadata.uid,
                "resourceVersion": pod.metadata.resource_version,
            },
            "reason": reason,
            "message": message,
            "type": "Warning",
            "count": 1,
            "source": { "component": "cni-repair" },
        });
        let namespace = namespace.unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/events");
        if let Err(fault) =
            self.api.call(Method::POST, &path, JSON, JSON, event.to_string().into_bytes()).await
        {
            tracing::warn!("pod {key}: cannot write an event: {fault}");
        }
    }
}

fn key_of(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

fn path_of(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

/// For a query: RFC 3986, section 2.1.
fn quote(text: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            quoted.push(char::from(byte));
        } else {
            quoted.push_str(&format!("%{byte:02X}"));
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Settings;

    fn settings() -> Settings {
        Settings {
            annotation: "sidecar.istio.io/status".to_owned(),
            container: "istio-validation".to_owned(),
            exit_code: 126,
            ..Settings::default()
        }
    }

    fn is_broken(settings: &Settings, container: &str, now: &Value, before: &Value) -> bool {
        let pod = json!({
            "metadata": {"annotations": {"sidecar.istio.io/status": "{}"}},
            "status": {"initContainerStatuses": [{
                "name": container, "image": "x", "imageID": "", "ready": false, "restartCount": 1,
                "state": now, "lastState": before,
            }]},
        });
        settings.is_broken(&serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn broken_pods() {
        let ended = |code: i32, message: &str| json!({"terminated": {"exitCode": code, "message": message}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let known = settings();
        assert!(is_broken(&known, "istio-validation", &waiting, &ended(126, "")));
        assert!(!is_broken(&known, "istio-validation", &waiting, &ended(1, "")));
        assert!(!is_broken(&known, "other", &waiting, &ended(126, "")));
        assert!(!is_broken(&known, "istio-validation", &waiting, &json!({})), "it has not failed yet");
        assert!(!is_broken(&known, "istio-validation", &ended(0, ""), &ended(126, "")), "it has succeeded");
        let all = Settings { container: String::new(), exit_code: 0, ..settings() };
        assert!(is_broken(&all, "other", &waiting, &ended(3, "")));
        let talking = Settings { message: "no rules".to_owned(), ..settings() };
        assert!(is_broken(&talking, "istio-validation", &waiting, &ended(126, " no rules\n")));
        assert!(!is_broken(&talking, "istio-validation", &waiting, &ended(126, "else")));
        let other = Settings { annotation: "other".to_owned(), ..settings() };
        assert!(!is_broken(&other, "istio-validation", &waiting, &ended(126, "")));
    }

    #[test]
    fn queries() {
        let settings = Settings {
            node: "a".to_owned(),
            field_selector: "x!=y".to_owned(),
            label_selector: "app in (b, c)".to_owned(),
            ..settings()
        };
        let expected = "fieldSelector=x%21%3Dy%2Cspec.nodeName%3Da&labelSelector=app%20in%20%28b%2C%20c%29";
        assert_eq!(settings.query(), expected);
    }
}
