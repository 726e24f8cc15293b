//! A client of an API server for objects of any kind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::manifest::Id;
use super::tree;

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Where {
    /// The kubeconfig of the cluster
    #[arg(short = 'c', long = "kubeconfig", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long = "context", value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// The name under which fields of objects are owned.
const MANAGER: &str = "leno-install";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster.
pub(crate) struct Cluster {
    client: Client,
    /// Of each `apiVersion`, what kinds are called in paths, and whether they are in namespaces.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    served: Mutex<BTreeMap<String, Vec<(String, String, bool)>>>,
}

impl Cluster {
    /// Reads the configuration; nothing is asked of the cluster yet.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub(crate) async fn new(place: &Where) -> anyhow::Result<Cluster> {
        let options = KubeConfigOptions { context: place.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match (&place.kubeconfig, &place.context) {
            (Some(path), _) => {
                // What kube says names the file, and the cause that `{:#}` would add again.
                let file = Kubeconfig::read_from(path).map_err(|error| anyhow!("{error}"))?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await?,
            (None, None) => Config::infer().await?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        Ok(Cluster { client: Client::try_from(config)?, served: Mutex::new(BTreeMap::new()) })
    }

    /// Sends a request; `None` is 404.
    ///
    /// # Errors
    /// Whatever else is not a success.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: &Value,
    ) -> anyhow::Result<Option<Value>> {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let sending = self.client.request::<Value>(request.body(body)?);
        match tokio::time::timeout(PATIENCE, sending).await {
            Err(_) => bail!("the API server does not answer"),
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(Error::Api(status))) => bail!("{} (status {})", status.message, status.code),
            Ok(Err(error)) => Err(anyhow::Error::from(error).context("the API server cannot be reached")),
        }
    }

    /// The version of Kubernetes: major and minor.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub(crate) async fn version(&self) -> anyhow::Result<(u32, u32)> {
        let found = self.send(Method::GET, "/version", "", &Value::Null).await?.unwrap_or_default();
        let number = |name: &str| {
            let text = tree::text(&found, name);
            text.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or(0)
        };
        Ok((number("major"), number("minor")))
    }

    /// The path of the objects of a kind; `None`: the kind is not served.
    async fn path(&self, version: &str, kind: &str, namespace: &str) -> anyhow::Result<Option<String>> {
        let root = if version.contains('/') { "apis" } else { "api" };
        let mut served = self.served.lock().await;
        if !served.get(version).is_some_and(|all| all.iter().any(|(known, ..)| known == kind)) {
            let found = self.send(Method::GET, &format!("/{root}/{version}"), "", &Value::Null).await?;
            let mut all = Vec::new();
            for resource in found.iter().filter_map(|it| it.get("resources")?.as_array()).flatten() {
                let name = tree::text(resource, "name");
                if !name.contains('/') {
                    let namespaced = resource.get("namespaced") == Some(&Value::Bool(true));
                    all.push((tree::text(resource, "kind"), name, namespaced));
                }
            }
            served.insert(version.to_owned(), all);
        }
        let found = served.get(version).and_then(|all| all.iter().find(|(known, ..)| known == kind));
        Ok(found.map(|(_, plural, namespaced)| {
            let place = match namespace {
                namespace if *namespaced && !namespace.is_empty() => format!("namespaces/{namespace}/"),
                _ => String::new(),
            };
            format!("/{root}/{version}/{place}{plural}")
        }))
    }

    async fn path_of(&self, object: &Value) -> anyhow::Result<String> {
        let (version, id) = (tree::text(object, "apiVersion"), Id::of(object));
        let Some(path) = self.path(&version, &id.kind, &id.namespace).await? else {
            bail!("{id}: the cluster does not serve {} of {version}", id.kind);
        };
        Ok(format!("{path}/{}", id.name))
    }

    /// An object as it is in the cluster.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub(crate) async fn find(&self, version: &str, id: &Id) -> anyhow::Result<Option<Value>> {
        let Some(path) = self.path(version, &id.kind, &id.namespace).await? else { return Ok(None) };
        self.send(Method::GET, &format!("{path}/{}", id.name), "", &Value::Null).await
    }

    /// Makes an object be as given, as far as it says: by server-side apply. What it is then.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) async fn apply(&self, object: &Value) -> anyhow::Result<Value> {
        let path = format!("{}?fieldManager={MANAGER}&force=true", self.path_of(object).await?);
        let sent = self.send(Method::PATCH, &path, "application/apply-patch+yaml", object).await;
        let Some(applied) = sent.with_context(|| Id::of(object).to_string())? else {
            bail!("{}: its namespace is not there", Id::of(object));
        };
        Ok(applied)
    }

    /// Creates an object, unless it is there.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) async fn ensure(&self, object: &Value) -> anyhow::Result<()> {
        let id = Id::of(object);
        if self.find(&tree::text(object, "apiVersion"), &id).await?.is_none() {
            self.apply(object).await?;
        }
        Ok(())
    }

    /// The objects of a kind, of all namespaces or one, that labels select; none if the kind is not
    /// served.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub(crate) async fn list(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        selector: &str,
    ) -> anyhow::Result<Vec<Value>> {
        let Some(path) = self.path(version, kind, namespace).await? else { return Ok(Vec::new()) };
        let escaped: String = selector
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        let found =
            self.send(Method::GET, &format!("{path}?labelSelector={escaped}"), "", &Value::Null).await?;
        let Some(Value::Array(mut items)) = found.and_then(|mut it| it.get_mut("items").map(Value::take))
        else {
            return Ok(Vec::new());
        };
        // Elements of lists do not say what they are.
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.insert("apiVersion".to_owned(), Value::from(version));
            item.insert("kind".to_owned(), Value::from(kind));
        }
        Ok(items)
    }

    /// Takes an object away, and what it owns. Whether it was there.
    ///
    /// # Errors
    /// If the server refuses.
    pub(crate) async fn delete(&self, object: &Value) -> anyhow::Result<bool> {
        let path = self.path_of(object).await?;
        let options =
            json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background" });
        let gone = self.send(Method::DELETE, &path, "application/json", &options).await;
        Ok(gone.with_context(|| Id::of(object).to_string())?.is_some())
    }
}
