//! All that a server holds, and the knobs of tests.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::certificates::Signers;
use super::rbac::{self, Attributes};
use super::resource::{self, Resource};
use super::status::Failure;
use super::store::{Key, Store};

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As `system:serviceaccount:default:app`.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// A request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query, as it was sent.
    pub query: String,
    /// The header `user-agent`.
    pub user_agent: String,
}

/// Lets some requests fail.
pub struct Fault {
    /// How many requests yet.
    remaining: usize,
    status: u16,
    applies: Box<dyn Fn(&Seen) -> bool + Send>,
}

impl Fault {
    /// The next `count` requests, whatever they are, are answered with this status.
    pub fn next(count: usize, status: u16) -> Fault {
        Fault { remaining: count, status, applies: Box::new(|_| true) }
    }

    /// All requests of which this is true are answered with this status.
    pub fn on(status: u16, applies: impl Fn(&Seen) -> bool + Send + 'static) -> Fault {
        Fault { remaining: usize::MAX, status, applies: Box::new(applies) }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("remaining", &self.remaining).field("status", &self.status).finish()
    }
}

/// What a user may not do; `*` stands for anything.
#[derive(Clone, Debug)]
pub(super) struct Denial {
    pub(super) user: String,
    pub(super) verb: String,
    pub(super) group: String,
    pub(super) plural: String,
}

pub(super) struct State {
    pub(super) store: Store,
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) authenticate: bool,
    /// Whether roles count.
    pub(super) authorize: bool,
    pub(super) tokens: HashMap<String, User>,
    pub(super) denials: Vec<Denial>,
    pub(super) delay: Duration,
    pub(super) faults: Vec<Fault>,
    pub(super) clock_offset: Duration,
    pub(super) services: HashMap<String, SocketAddr>,
    pub(super) seen: Vec<Seen>,
    /// What was forbidden, and to whom.
    pub(super) refused: Vec<String>,
    /// Whether something plays kubelet, and removes Pods that are being deleted.
    pub(super) kubelet: bool,
    /// Who signs requests for certificates.
    pub(super) signers: Option<Signers>,
    rng: leno_base::rng::Rng,
    pub(super) next_address: u32,
    pub(super) next_node_port: u16,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("store", &self.store).finish_non_exhaustive()
    }
}

impl State {
    fn new() -> State {
        State {
            store: Store::new(),
            resources: resource::built_in().into_iter().map(Arc::new).collect(),
            authenticate: false,
            authorize: false,
            tokens: HashMap::new(),
            denials: Vec::new(),
            delay: Duration::ZERO,
            faults: Vec::new(),
            clock_offset: Duration::ZERO,
            services: HashMap::new(),
            seen: Vec::new(),
            refused: Vec::new(),
            kubelet: false,
            signers: None,
            rng: leno_base::rng::Rng::from_entropy(),
            next_address: 10,
            next_node_port: 30_000,
        }
    }

    /// What every cluster has.
    pub(super) fn seed(&mut self) {
        let namespaces = (String::new(), "namespaces".to_owned());
        if self.store.list(&namespaces, "").next().is_some() {
            return;
        }
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            // The table of resources has namespaces.
            self.put_raw(namespace).unwrap_or_else(|failure| panic!("{}", failure.message));
        }
        let service = json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "component": "apiserver", "provider": "kubernetes" } },
            "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "type": "ClusterIP",
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443 }] } });
        self.put_raw(service).unwrap_or_else(|failure| panic!("{}", failure.message));
    }

    pub(super) fn admin_token(&mut self) -> String {
        let token = format!("admin-{:016x}", self.rng.next_u64());
        let user = User { name: "kubernetes-admin".to_owned(), groups: vec!["system:masters".to_owned()] };
        self.tokens.insert(token.clone(), user);
        token
    }

    pub(super) fn now(&self) -> SystemTime {
        SystemTime::now() + self.clock_offset
    }

    pub(super) fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }

    pub(super) fn uid(&mut self) -> String {
        let (high, low) = (self.rng.next_u64(), self.rng.next_u64());
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            low >> 52,
            low & 0xffff_ffff_ffff
        )
    }

    /// Five characters for `generateName`.
    pub(super) fn suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5)
            .filter_map(|_| {
                let at = self.rng.index(LETTERS.len())?;
                LETTERS.get(at).map(|byte| char::from(*byte))
            })
            .collect()
    }

    /// The resource with this plural, in this version if it is served.
    pub(super) fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let mut found = self.resources.iter().filter(|it| it.group == group && it.plural == plural);
        found.find(|it| it.version(version).is_some()).cloned()
    }

    pub(super) fn resource_of_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let mut found = self.resources.iter().filter(|it| it.group == group && it.kind == kind);
        found.find(|it| it.version(version).is_some()).cloned()
    }

    /// Takes up, changes or forgets the resource of a CustomResourceDefinition.
    pub(super) fn define(&mut self, definition: &Value, exists: bool) {
        let text = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (group, plural) = (text("/spec/group"), text("/spec/names/plural"));
        self.resources.retain(|it| !(it.custom && it.group == group && it.plural == plural));
        if let (true, Some(resource)) = (exists, resource::custom(definition)) {
            self.resources.push(Arc::new(resource));
        }
    }

    /// Whether a test forbids it, or, where roles count, none allows it.
    pub(super) fn is_denied(&self, user: &User, wanted: &Attributes<'_>) -> bool {
        let is = |rule: &str, value: &str| rule == "*" || rule == value;
        let denied = self.denials.iter().any(|it| {
            is(&it.user, &user.name)
                && is(&it.verb, wanted.verb)
                && is(&it.group, wanted.group)
                && is(&it.plural, wanted.resource)
        });
        denied || (self.authorize && !rbac::allows(self, user, wanted))
    }

    /// Refuses what is denied, and remembers it.
    pub(super) fn check(&mut self, user: &User, wanted: &Attributes<'_>) -> Result<(), Failure> {
        if !self.is_denied(user, wanted) {
            return Ok(());
        }
        let Attributes { verb, group, resource, subresource, namespace, name } = *wanted;
        let failure = Failure::forbidden(&user.name, verb, group, resource, namespace);
        self.refused.push(format!("{} ({resource}/{subresource} {name:?})", failure.message));
        Err(failure)
    }

    /// Notes a request; the failure that a test wants for it.
    pub(super) fn observe(&mut self, seen: Seen) -> Option<Failure> {
        let fault = self.faults.iter_mut().find(|fault| fault.remaining > 0 && (fault.applies)(&seen));
        let failure = fault.map(|fault| {
            fault.remaining -= 1;
            let reason = match fault.status {
                401 => "Unauthorized",
                403 => "Forbidden",
                404 => "NotFound",
                409 => "Conflict",
                410 => "Expired",
                429 => "TooManyRequests",
                503 => "ServiceUnavailable",
                504 => "Timeout",
                _ => "InternalError",
            };
            Failure::new(fault.status, reason, "a test wants this to fail")
        });
        self.faults.retain(|fault| fault.remaining > 0);
        self.seen.push(seen);
        failure
    }

    fn key(&self, resource: &Resource, namespace: &str, name: &str) -> Key {
        let namespace = match (resource.namespaced, namespace) {
            (false, _) => "",
            (true, "") => "default",
            (true, namespace) => namespace,
        };
        (namespace.to_owned(), name.to_owned())
    }

    pub(super) fn put_raw(&mut self, mut object: Value) -> Result<(), Failure> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("/apiVersion"), text("/kind"));
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let Some(resource) = self.resource_of_kind(&api_version, &kind) else {
            return Err(Failure::bad_request(format!("no resource for {api_version} {kind}")));
        };
        if name.is_empty() {
            return Err(Failure::bad_request(format!("{kind}: a name is needed")));
        }
        let key = self.key(&resource, &namespace, &name);
        let live = self.store.find(&resource.name(), &key).cloned();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if resource.namespaced {
                metadata.insert("namespace".to_owned(), Value::from(key.0.as_str()));
            }
            for kept in ["uid", "creationTimestamp"] {
                if let Some(value) = live.as_ref().and_then(|live| live.get("metadata")?.get(kept)) {
                    metadata.insert(kept.to_owned(), value.clone());
                }
            }
        }
        self.fill_metadata(&mut object);
        super::defaults::fill(self, &resource, &mut object);
        self.commit(&resource, &key, object);
        Ok(())
    }

    pub(super) fn remove_raw(&mut self, group: &str, plural: &str, namespace: &str, name: &str) -> bool {
        let found = self.resources.iter().find(|it| it.group == group && it.plural == plural).cloned();
        let Some(resource) = found else { return false };
        let key = self.key(&resource, namespace, name);
        self.commit_removal(&resource, &key).is_some()
    }

    pub(super) fn find_raw(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = self.resources.iter().find(|it| it.group == group && it.plural == plural)?;
        let key = self.key(resource, namespace, name);
        self.store.find(&resource.name(), &key).map(|object| Value::clone(object))
    }
}

/// What connections are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals {
    /// Counts how often all watches were to end.
    pub(super) drops: u64,
    /// Counts how often all connections were to end.
    pub(super) hang_ups: u64,
    /// Counts how often bookmarks were to be sent.
    pub(super) bookmarks: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    signals: watch::Sender<Signals>,
    watches: AtomicUsize,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            state: Mutex::new(State::new()),
            signals: watch::channel(Signals::default()).0,
            watches: AtomicUsize::new(0),
        }
    }

    pub(super) fn signals(&self) -> watch::Receiver<Signals> {
        self.signals.subscribe()
    }

    pub(super) fn drop_watches(&self) {
        self.signals.send_modify(|signals| signals.drops += 1);
    }

    pub(super) fn hang_up(&self) {
        self.signals.send_modify(|signals| signals.hang_ups += 1);
    }

    pub(super) fn bookmark(&self) {
        self.signals.send_modify(|signals| signals.bookmarks += 1);
    }

    pub(super) fn watches(&self) -> usize {
        self.watches.load(Ordering::Acquire)
    }

    /// Counts a watch for as long as what is returned lives.
    pub(super) fn count_watch(self: &Arc<Shared>) -> OpenWatch {
        self.watches.fetch_add(1, Ordering::AcqRel);
        OpenWatch(Arc::clone(self))
    }
}

#[derive(Debug)]
pub(super) struct OpenWatch(Arc<Shared>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The state; a test that panicked while it held it does not spoil it for others.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
