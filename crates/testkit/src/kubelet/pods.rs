//! The scheduler and the kubelet: pods of the API server are put on the node, run, told of, and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use http::Request;
use k8s_openapi::api::core::v1 as core;
use leno_kubelet::{
    Facts, Handle, Place, ServiceAddress, Settings, Sources, Start, Token, TokenRequest, sandbox, status,
};
use leno_node::Node;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::cache::{Cache, Write, text};
use super::{NODE, Setup, write_or_say};

/// How often to look whether something that starts is ready.
const LOOK: Duration = Duration::from_millis(50);

/// The pods of the node.
pub(super) struct Pods {
    node: Node,
    cache: Cache,
    setup: Setup,
    images: Arc<leno_kubelet::Images>,
    running: BTreeMap<String, Running>,
    /// How many addresses were given.
    given: u32,
    notify: Arc<Notify>,
}

struct Running {
    namespace: String,
    name: String,
    address: Ipv4Addr,
    handle: Result<Handle, String>,
    /// What the API server was told last.
    written: Value,
    /// Tells when its state changes.
    teller: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(teller) = &self.teller {
            teller.abort();
        }
    }
}

impl Pods {
    pub(super) fn new(node: Node, cache: Cache, setup: Setup) -> Pods {
        let images = Arc::new(setup.images.clone());
        Pods { node, cache, setup, images, running: BTreeMap::new(), given: 0, notify: Arc::default() }
    }

    /// Waits until a pod has something new to tell.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Carries out the difference between what should run and what does; whether something failed.
    pub(super) async fn settle(&mut self) -> bool {
        let mut failed = false;
        let objects = self.cache.objects();
        for pod in objects.all("pods") {
            if text(pod, "/spec/nodeName").is_empty() && text(pod, "/metadata/deletionTimestamp").is_empty() {
                let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
                let write =
                    Write::Bind { namespace: namespace.to_owned(), name: name.to_owned(), node: NODE };
                failed |= write_or_say(&self.cache, &write).await;
            }
        }
        let objects = self.cache.objects();
        let mut wanted = BTreeSet::new();
        for pod in objects.all("pods").filter(|it| text(it, "/spec/nodeName") == NODE) {
            let uid = text(pod, "/metadata/uid").to_owned();
            wanted.insert(uid.clone());
            let deleted = !text(pod, "/metadata/deletionTimestamp").is_empty();
            match self.running.get(&uid) {
                // One that has ended, and is only remembered.
                None if deleted => failed |= self.forget(pod).await,
                None => self.start(uid, pod).await,
                Some(running) if deleted => match &running.handle {
                    Ok(handle) => {
                        let seconds =
                            pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64);
                        handle.end(seconds.map(Duration::from_secs));
                        if handle.state().borrow().gone {
                            // Before it is forgotten, others learn that it has ended.
                            self.running.remove(&uid);
                            failed |= self.forget(pod).await;
                        }
                    }
                    Err(_) => {
                        self.running.remove(&uid);
                        failed |= self.forget(pod).await;
                    }
                },
                Some(_) => {}
            }
        }
        for (uid, running) in &self.running {
            if !wanted.contains(uid)
                && let Ok(handle) = &running.handle
            {
                handle.end(Some(Duration::ZERO)); // it was deleted by force
            }
        }
        let gone = |running: &Running| running.handle.as_ref().map_or(true, |it| it.state().borrow().gone);
        self.running.retain(|uid, running| wanted.contains(uid) || !gone(running));
        failed | self.tell().await
    }

    /// Removes a pod that has ended.
    async fn forget(&self, pod: &Value) -> bool {
        let write = Write::Delete {
            plural: "pods",
            namespace: text(pod, "/metadata/namespace").to_owned(),
            name: text(pod, "/metadata/name").to_owned(),
            uid: text(pod, "/metadata/uid").to_owned(),
            grace: Some(0),
        };
        write_or_say(&self.cache, &write).await
    }

    async fn start(&mut self, uid: String, object: &Value) {
        let address = self.address();
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let made = self.try_start(&uid, object, address).await;
        let teller = made.as_ref().ok().map(|handle| {
            let (mut state, notify) = (handle.state(), self.notify.clone());
            tokio::spawn(async move {
                while state.changed().await.is_ok() {
                    notify.notify_one();
                }
                notify.notify_one();
            })
        });
        let running = Running {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address,
            handle: made.map_err(|error| format!("{error:#}")),
            written: Value::Null,
            teller,
        };
        self.running.insert(uid, running);
    }

    async fn try_start(&self, uid: &str, object: &Value, address: Ipv4Addr) -> anyhow::Result<Handle> {
        let pod: core::Pod = serde_json::from_value(object.clone())?;
        let folder: PathBuf = self.setup.folder.join(uid);
        let node = self.node.network().address;
        let made = sandbox::create(&self.node, &pod, address, node, &folder).await?;
        Ok(leno_kubelet::start(Start {
            pod,
            place: Place::Namespace(made),
            probes_from: Place::Here,
            facts: Facts {
                address,
                node: NODE.to_owned(),
                node_address: node,
                capacity: leno_kubelet::capacity(),
            },
            images: self.images.clone(),
            sources: Arc::new(OfCache(self.cache.clone())),
            folder,
            service_ports: Vec::new(),
            settings: Settings { look: Some(LOOK), ..Settings::default() },
            lines: self.setup.lines.clone(),
        }))
    }

    /// An address that no pod has.
    fn address(&mut self) -> Ipv4Addr {
        loop {
            self.given = self.given % 60_000 + 1;
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 1, 0)) + self.given);
            let [.., last] = address.octets();
            let taken = self.running.values().any(|it| it.address == address);
            if !taken && last != 0 && last != 255 {
                return address;
            }
        }
    }

    /// Tells the API server what is new.
    async fn tell(&mut self) -> bool {
        let mut failed = false;
        let objects = self.cache.objects();
        let node = self.node.network().address;
        for (uid, running) in &mut self.running {
            let Some(object) = objects.find("pods", &running.namespace, &running.name) else { continue };
            if text(object, "/metadata/uid") != uid {
                continue;
            }
            let Ok(pod) = serde_json::from_value::<core::Pod>(Value::clone(object)) else { continue };
            let new = match &running.handle {
                Ok(handle) => {
                    let state = handle.state().borrow().clone();
                    let now = SystemTime::now();
                    status(&pod, &state, Some(running.address), node, &running.written, now)
                }
                Err(message) => {
                    json!({ "phase": "Failed", "reason": "CreatePodSandboxError", "message": message })
                }
            };
            if new == running.written {
                continue;
            }
            let write = Write::Patch {
                plural: "pods",
                namespace: running.namespace.clone(),
                name: running.name.clone(),
                subresource: "status",
                patch: json!({ "status": new }),
            };
            if write_or_say(&self.cache, &write).await {
                failed = true;
            } else {
                running.written = new;
            }
        }
        failed
    }
}

/// The objects of the cluster as the source of pods.
struct OfCache(Cache);

impl OfCache {
    fn values(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        plain: Option<&str>,
        encoded: &str,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        let objects = self.0.objects();
        let object = objects.find(plural, namespace, name)?;
        let entries = |field: &str| object.get(field).and_then(Value::as_object).into_iter().flatten();
        let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (key, value) in plain.into_iter().flat_map(entries) {
            values.insert(key.clone(), value.as_str().unwrap_or_default().as_bytes().to_vec());
        }
        for (key, value) in entries(encoded) {
            let bytes = leno_base::base64::decode(value.as_str().unwrap_or_default().as_bytes());
            values.insert(key.clone(), bytes.unwrap_or_default());
        }
        Some(values)
    }

    async fn ask(&self, request: TokenRequest) -> Result<Token, String> {
        let (name, uid) = &request.pod;
        let mut spec = json!({
            "expirationSeconds": request.seconds,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid },
        });
        if !request.audience.is_empty() {
            spec["audiences"] = json!([request.audience]);
        }
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let url =
            format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", request.namespace, request.account);
        let asked = Request::post(url).header("content-type", "application/json");
        let asked = asked.body(body.to_string().into_bytes()).map_err(|e| e.to_string())?;
        let answer = self.0.request(asked).await?;
        let text = text(&answer, "/status/token").to_owned();
        let seconds = answer.pointer("/spec/expirationSeconds").and_then(Value::as_u64).unwrap_or(3600);
        Ok(Token { text, end: SystemTime::now().max(UNIX_EPOCH) + Duration::from_secs(seconds) })
    }
}

impl Sources for OfCache {
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.values("configmaps", namespace, name, Some("data"), "binaryData")
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.values("secrets", namespace, name, None, "data")
    }

    fn services(&self, namespace: &str) -> Vec<ServiceAddress> {
        let objects = self.0.objects();
        let of_namespace = objects.of("services", namespace);
        // That of the API server is told of everywhere.
        let own = objects.find("services", "default", "kubernetes").filter(|_| namespace != "default");
        let address = |service: &Arc<Value>| {
            let ports = service.pointer("/spec/ports").cloned().unwrap_or_default();
            Some(ServiceAddress {
                name: text(service, "/metadata/name").to_owned(),
                address: text(service, "/spec/clusterIP").parse().ok()?,
                ports: serde_json::from_value(ports).ok()?,
            })
        };
        of_namespace.chain(own).filter_map(address).collect()
    }

    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Token, String>> {
        Box::pin(self.ask(request))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }
}
