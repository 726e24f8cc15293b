//! The objects of an API server as its watches tell of them, and the one way to change them. What the server
//! answers to a change is in the cache at once, so that who decides by the cache never decides twice.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::kube::Client;
use futures_util::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Kinds that are watched: folder of the API, and plural.
pub(super) const KINDS: [(&str, &str); 12] = [
    ("api/v1", "configmaps"),
    ("api/v1", "namespaces"),
    ("api/v1", "nodes"),
    ("api/v1", "pods"),
    ("api/v1", "secrets"),
    ("api/v1", "services"),
    ("apis/apps/v1", "daemonsets"),
    ("apis/apps/v1", "deployments"),
    ("apis/apps/v1", "replicasets"),
    ("apis/apps/v1", "statefulsets"),
    ("apis/batch/v1", "jobs"),
    ("apis/discovery.k8s.io/v1", "endpointslices"),
];
/// After something failed.
const AGAIN: Duration = Duration::from_millis(100);

/// Namespace and name.
pub(super) type Key = (String, String);

/// Objects by plural.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    by_plural: BTreeMap<&'static str, BTreeMap<Key, Arc<Value>>>,
}

impl Objects {
    /// All of a kind.
    pub(super) fn all(&self, plural: &str) -> impl Iterator<Item = &Arc<Value>> {
        self.by_plural.get(plural).into_iter().flat_map(BTreeMap::values)
    }

    /// All of a kind in a namespace.
    pub(super) fn of(&self, plural: &str, namespace: &str) -> impl Iterator<Item = &Arc<Value>> {
        self.all(plural).filter(move |it| text(it, "/metadata/namespace") == namespace)
    }

    /// One object.
    pub(super) fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.by_plural.get(plural)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    #[cfg(test)]
    pub(super) fn put(&mut self, plural: &'static str, object: Value) {
        let key = key(&object);
        self.by_plural.entry(plural).or_default().insert(key, Arc::new(object));
    }

    #[cfg(test)]
    pub(super) fn remove(&mut self, plural: &str, namespace: &str, name: &str) {
        if let Some(known) = self.by_plural.get_mut(plural) {
            known.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }
}

/// A text of an object, or nothing.
pub(super) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn key(object: &Value) -> Key {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

/// A change to make.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    Create {
        plural: &'static str,
        object: Value,
    },
    /// A merge patch, of `status` or of the rest.
    Patch {
        plural: &'static str,
        namespace: String,
        name: String,
        subresource: &'static str,
        patch: Value,
    },
    /// Puts a pod on a node.
    Bind {
        namespace: String,
        name: String,
        node: &'static str,
    },
    Delete {
        plural: &'static str,
        namespace: String,
        name: String,
        uid: String,
        grace: Option<u64>,
    },
}

/// The cache. It ends with the last of its clones.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    objects: Mutex<Objects>,
    changes: watch::Sender<u64>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(JoinHandle::abort);
    }
}

impl Cache {
    /// Begins to watch, and waits until everything has been listed.
    pub(super) async fn start(client: Client) -> Cache {
        let shared = Arc::new(Shared {
            client,
            objects: Mutex::default(),
            changes: watch::channel(0).0,
            tasks: Mutex::default(),
        });
        for (group, plural) in KINDS {
            let (listed, is_listed) = tokio::sync::oneshot::channel();
            let weak = Arc::downgrade(&shared);
            let client = shared.client.clone();
            let task = tokio::spawn(async move {
                let mut listed = Some(listed);
                loop {
                    let result = follow(&client, group, plural, &weak, &mut listed).await;
                    if let Err(error) = result {
                        tracing::debug!(plural, "watch: {error}");
                    }
                    if weak.strong_count() == 0 {
                        return;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
            shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
            let _ = is_listed.await;
        }
        Cache { shared }
    }

    /// All objects as they are now.
    pub(super) fn objects(&self) -> Objects {
        self.shared.lock().clone()
    }

    /// Counts changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Makes a change.
    pub(super) async fn write(&self, write: &Write) -> Result<(), String> {
        let url = |plural: &str, namespace: &str, rest: &str| {
            let group = KINDS.iter().find(|(_, it)| *it == plural).map_or("api/v1", |(group, _)| group);
            match namespace {
                "" => format!("/{group}/{plural}{rest}"),
                namespace => format!("/{group}/namespaces/{namespace}/{plural}{rest}"),
            }
        };
        let (plural, request) = match write {
            Write::Create { plural, object } => {
                let url = url(plural, text(object, "/metadata/namespace"), "");
                (plural, Request::post(url).header("content-type", "application/json").body(bytes(object)))
            }
            Write::Patch { plural, namespace, name, subresource, patch } => {
                let rest = match *subresource {
                    "" => format!("/{name}"),
                    subresource => format!("/{name}/{subresource}"),
                };
                let request = Request::patch(url(plural, namespace, &rest));
                (plural, request.header("content-type", "application/merge-patch+json").body(bytes(patch)))
            }
            Write::Bind { namespace, name, node } => {
                let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
                    "target": { "apiVersion": "v1", "kind": "Node", "name": node } });
                let request = Request::post(url("pods", namespace, &format!("/{name}/binding")));
                (&"pods", request.header("content-type", "application/json").body(bytes(&binding)))
            }
            Write::Delete { plural, namespace, name, uid, grace } => {
                let mut options = json!({ "preconditions": { "uid": uid } });
                if let (Some(grace), Some(map)) = (grace, options.as_object_mut()) {
                    map.insert("gracePeriodSeconds".to_owned(), json!(grace));
                }
                let request = Request::delete(url(plural, namespace, &format!("/{name}")));
                (plural, request.header("content-type", "application/json").body(bytes(&options)))
            }
        };
        let request = request.map_err(|e| e.to_string())?;
        let answer: Value = match self.shared.client.request(request).await {
            Ok(answer) => answer,
            // It is as it should be.
            Err(::kube::Error::Api(status))
                if matches!(write, Write::Delete { .. }) && status.code == 404 =>
            {
                if let Write::Delete { plural, namespace, name, .. } = write {
                    self.shared.remove(plural, &(namespace.clone(), name.clone()));
                }
                return Ok(());
            }
            // It is on its node, which the watch has not told yet.
            Err(::kube::Error::Api(status)) if matches!(write, Write::Bind { .. }) && status.code == 409 => {
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        match write {
            // The answer to a deletion is what was deleted, unless it has to end first.
            Write::Delete { namespace, name, .. }
                if text(&answer, "/metadata/deletionTimestamp").is_empty() =>
            {
                self.shared.remove(plural, &(namespace.clone(), name.clone()));
            }
            Write::Delete { grace: Some(0), namespace, name, .. } => {
                self.shared.remove(plural, &(namespace.clone(), name.clone()));
            }
            _ => self.shared.put(plural, answer),
        }
        Ok(())
    }

    /// A request of any kind.
    pub(super) async fn request(&self, request: Request<Vec<u8>>) -> Result<Value, String> {
        self.shared.client.request(request).await.map_err(|e| e.to_string())
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, plural: &'static str, object: Value) {
        let key = key(&object);
        if key.1.is_empty() || text(&object, "/kind") == "Status" {
            return;
        }
        let mut objects = self.lock();
        let known = objects.by_plural.entry(plural).or_default();
        if known.get(&key).is_some_and(|before| version(before) >= version(&object)) {
            return;
        }
        known.insert(key, Arc::new(object));
        drop(objects);
        self.changes.send_modify(|count| *count += 1);
    }

    fn remove(&self, plural: &str, key: &Key) {
        let removed = self.lock().by_plural.get_mut(plural).and_then(|known| known.remove(key));
        if removed.is_some() {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

fn version(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or_default()
}

/// Lists, and watches until that ends.
async fn follow(
    client: &Client,
    group: &str,
    plural: &'static str,
    weak: &std::sync::Weak<Shared>,
    listed: &mut Option<tokio::sync::oneshot::Sender<()>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let list: Value = client.request(Request::get(format!("/{group}/{plural}")).body(Vec::new())?).await?;
    let Some(shared) = weak.upgrade() else { return Ok(()) };
    let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let there: BTreeMap<Key, ()> = items.iter().map(|it| (key(it), ())).collect();
    let known: Vec<Key> = {
        let objects = shared.lock();
        objects.by_plural.get(plural).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    };
    known.iter().filter(|key| !there.contains_key(*key)).for_each(|key| shared.remove(plural, key));
    items.into_iter().for_each(|item| shared.put(plural, item));
    drop(shared);
    if let Some(listed) = listed.take() {
        let _ = listed.send(());
    }
    let from = text(&list, "/metadata/resourceVersion");
    let url = format!("/{group}/{plural}?watch=true&resourceVersion={from}");
    let stream = client.request_stream(Request::get(url).body(Vec::new())?).await?;
    let mut lines = pin!(stream.lines());
    while let Some(line) = lines.try_next().await? {
        let mut event: Value = serde_json::from_str(&line)?;
        let Some(shared) = weak.upgrade() else { return Ok(()) };
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        match text(&event, "/type") {
            "ADDED" | "MODIFIED" => shared.put(plural, object),
            "DELETED" => {
                let key = key(&object);
                // One of the same name may have come since.
                let same = shared
                    .lock()
                    .by_plural
                    .get(plural)
                    .and_then(|known| known.get(&key))
                    .is_some_and(|known| text(known, "/metadata/uid") == text(&object, "/metadata/uid"));
                if same {
                    shared.remove(plural, &key);
                }
            }
            "ERROR" => return Err(object.to_string().into()),
            _ => {}
        }
    }
    Ok(())
}
