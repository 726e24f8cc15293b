//! A cluster for tests over the wire: the API server of this folder, or a real one.
//!
//! The seam is [`Cluster`]: whatever a test does to it is said over HTTP, so that it means the same to
//! both. The variable [`VARIABLE`] names the kubeconfig of a real cluster; without it each cluster is an
//! [`ApiServer`] of its own, which [`Cluster::server`] gives to tests that let it fail. Of a real one all
//! tests share the definitions of kinds, and each has a namespace of its own.

use std::path::Path;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config, Error};
use http::{Method, Request};
use leno_base::rng::Rng;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use super::ApiServer;

/// Names the kubeconfig of a real cluster. It is filled and not cleaned: it should be there for tests
/// alone.
pub const VARIABLE: &str = "LENO_TEST_KUBECONFIG";

/// How long to try something: a kind that was just defined is served a moment later.
const PATIENCE: Duration = Duration::from_secs(30);

/// Under which name the fields of objects are owned.
const MANAGER: &str = "leno-testkit";

/// What only the server says of an object.
const SERVERS: [&str; 5] = ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"];

/// Who has the real cluster: what control planes write of one test's objects would disturb another.
static TURN: Mutex<()> = Mutex::const_new(());

/// A cluster with a namespace for one test.
pub struct Cluster {
    client: Client,
    kubeconfig: String,
    namespace: String,
    server: Option<ApiServer>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// The cluster that [`VARIABLE`] names, or a new API server.
    ///
    /// # Panics
    /// If it cannot be reached.
    pub async fn start() -> Cluster {
        match std::env::var_os(VARIABLE) {
            Some(path) => {
                let text = std::fs::read_to_string(&path);
                let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                Cluster::new(text, None).await
            }
            None => {
                let server = ApiServer::start().await.unwrap_or_else(|error| panic!("{error}"));
                Cluster::new(server.kubeconfig(), Some(server)).await
            }
        }
    }

    async fn new(kubeconfig: String, server: Option<ApiServer>) -> Cluster {
        let parsed = Kubeconfig::from_yaml(&kubeconfig).unwrap_or_else(|error| panic!("{error}"));
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(parsed, &options).await;
        let client = Client::try_from(config.unwrap_or_else(|error| panic!("{error}")));
        let client = client.unwrap_or_else(|error| panic!("{error}"));
        let namespace = format!("leno-{:016x}", Rng::from_entropy().next_u64());
        let turn = match &server {
            Some(_) => None,
            None => Some(TURN.lock().await),
        };
        let cluster = Cluster { client, kubeconfig, namespace, server, _turn: turn };
        for name in [cluster.namespace.as_str(), "istio-system"] {
            cluster
                .put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))
                .await;
        }
        // Where controllers run they make it, a moment later.
        cluster.account("default").await;
        cluster
    }

    /// The namespace that is this test's own.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The API server, if it is not a real one: what a test does to it has no meaning elsewhere.
    pub fn server(&self) -> Option<&ApiServer> {
        self.server.as_ref()
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Writes a kubeconfig for it into a file.
    ///
    /// # Errors
    /// As writing fails.
    pub fn write_kubeconfig(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, &self.kubeconfig)
    }

    /// Makes an object be as given, its status too; what is stored then. Nobody else's fields are
    /// touched.
    ///
    /// # Panics
    /// If the server refuses it.
    pub async fn put(&self, object: Value) -> Value {
        self.try_put(object, "").await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What would be stored for an object, or why it would be refused; nothing happens.
    ///
    /// # Errors
    /// The words of the server.
    pub async fn dry_run(&self, object: Value) -> Result<Value, String> {
        self.try_put(object, "&dryRun=All&fieldValidation=Strict").await
    }

    async fn try_put(&self, mut object: Value, options: &str) -> Result<Value, String> {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            SERVERS.iter().for_each(|field| drop(metadata.remove(*field)));
        }
        let status = object.as_object_mut().and_then(|object| object.remove("status"));
        let path = path_of(&object);
        let apply = format!("{path}?fieldManager={MANAGER}&force=true{options}");
        let mut stored = self.call(Method::PATCH, &apply, "application/apply-patch+yaml", &object).await?;
        if let Some(status) = status {
            let body = json!({ "status": status });
            let path = format!("{path}/status");
            stored = self.call(Method::PATCH, &path, "application/merge-patch+json", &body).await?;
        }
        if let Some(metadata) = stored.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        Ok(stored)
    }

    /// Deletes an object, of which kind, name and namespace count.
    ///
    /// # Panics
    /// If the server refuses that, or there is none.
    pub async fn remove(&self, object: &Value) {
        let gone = self.call(Method::DELETE, &path_of(object), "", &Value::Null).await;
        gone.unwrap_or_else(|error| panic!("{error}"));
    }

    /// An object as it is stored, by its kind, name and namespace; `null` if there is none.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn find(&self, object: &Value) -> Value {
        match self.once(Method::GET, &path_of(object), "", &Value::Null).await {
            Ok(found) => found,
            Err((404, _)) => Value::Null,
            Err((_, words)) => panic!("{words}"),
        }
    }

    /// Makes a service account of the test's namespace.
    pub async fn account(&self, name: &str) {
        self.put(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": self.metadata(name) }))
            .await;
    }

    /// A token of a service account for an audience; the server's own if that is empty.
    ///
    /// # Panics
    /// If the server gives none.
    pub async fn token(&self, account: &str, audience: &str) -> String {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", self.namespace);
        let audiences: Vec<&str> = Some(audience).filter(|it| !it.is_empty()).into_iter().collect();
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": audiences } });
        let answer = self.call(Method::POST, &path, "application/json", &body).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        answer.pointer("/status/token").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The metadata of an object of the test's namespace.
    pub fn metadata(&self, name: &str) -> Value {
        json!({ "name": name, "namespace": self.namespace })
    }

    /// Asks until there is an answer that will not be another in a moment.
    async fn call(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Value, String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.once(method.clone(), path, content, body).await {
                Ok(answer) => return Ok(answer),
                // Conflicts are with those who write at the same time; what is not found may be on its way.
                Err((404 | 409 | 429 | 500..=599, _)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err((_, words)) => return Err(format!("{method} {path}: {words}")),
            }
        }
    }

    async fn once(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, (u16, String)> {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = request.body(body).map_err(|error| (0, error.to_string()))?;
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(answer),
            Err(Error::Api(status)) => Err((status.code, status.message.clone())),
            Err(error) => Err((0, error.to_string())),
        }
    }
}

/// The definition of a kind that takes any object, with a status.
pub fn definition(group: &str, plural: &str, kind: &str, scope: &str, versions: &[&str]) -> Value {
    let schema =
        json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(at, name)| json!({ "name": name, "served": true, "storage": at == 0, "schema": schema, "subresources": { "status": {} } }))
        .collect();
    let mut definition = json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": { "group": group, "scope": scope, "names": { "plural": plural, "kind": kind }, "versions": versions } });
    if let (true, Some(metadata)) = (group.ends_with(".k8s.io"), definition.get_mut("metadata")) {
        // Groups of Kubernetes' own are not for everybody.
        metadata["annotations"] = json!({ "api-approved.kubernetes.io": "unapproved, for tests" });
    }
    definition
}

/// Where an object is.
fn path_of(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let root = if version.contains('/') { "apis" } else { "api" };
    let place = match text("/metadata/namespace") {
        "" => String::new(),
        namespace => format!("namespaces/{namespace}/"),
    };
    format!("/{root}/{version}/{place}{}/{name}", plural(kind))
}

/// What the objects of a kind are called in paths.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
        _ if kind.ends_with('s') => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::plural;

    #[test]
    fn the_names_of_kinds_in_paths() {
        for (kind, expected) in [
            ("VirtualService", "virtualservices"),
            ("ServiceEntry", "serviceentries"),
            ("Gateway", "gateways"),
            ("GatewayClass", "gatewayclasses"),
            ("Ingress", "ingresses"),
            ("AuthorizationPolicy", "authorizationpolicies"),
            ("BackendTLSPolicy", "backendtlspolicies"),
        ] {
            assert_eq!(plural(kind), expected);
        }
    }
}
