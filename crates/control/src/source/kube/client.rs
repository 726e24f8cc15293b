//! Requests to an API server, and how it is found.
//!
//! `kube` brings what takes care of credentials (kubeconfig, exec plugins, tokens that are renewed,
//! service accounts) and TLS. Retries are ours: whoever asks knows whether it is worth it.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use tokio::sync::Notify;

use crate::model::read::MESH_CONFIG_MAP;

/// Which cluster, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// The kubeconfig; without one it is looked for as `kubectl` does, and then the service account
    /// of the Pod is used.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; `None` is the current one.
    pub context: Option<String>,
    /// The root namespace, where the ConfigMap `istio` is and leases are held; empty is
    /// `istio-system`.
    pub namespace: String,
    /// Whether what is found wrong with objects is written into their status, by the replica that
    /// leads.
    pub write_status: bool,
    /// The revision of the control plane: it has a mesh configuration of its own (`istio-REVISION`), and objects
    /// with the label of another revision are none of its. `None`: all objects count.
    pub revision: Option<String>,
    /// What this replica is called among its like; empty is a name of chance.
    pub identity: String,
}

impl Kubernetes {
    /// The root namespace.
    pub(crate) fn root_namespace(&self) -> &str {
        if self.namespace.is_empty() { "istio-system" } else { &self.namespace }
    }

    /// The name of the ConfigMap with the mesh configuration.
    pub(crate) fn mesh_config_map(&self) -> String {
        match self.revision.as_deref() {
            None | Some("" | "default") => MESH_CONFIG_MAP.to_owned(),
            Some(revision) => format!("{MESH_CONFIG_MAP}-{revision}"),
        }
    }
}

/// How long an answer that ends may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a watch may be silent. Servers send a bookmark every minute or so; a connection that says
/// nothing for longer may lead nowhere, which its other end cannot tell.
const SILENCE: Duration = Duration::from_secs(150);

/// A line longer than this is no object that an API server would store.
const LONGEST_LINE: usize = 64 << 20;

/// Why a request had no good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server said no.
    Status {
        /// HTTP's status.
        code: u16,
        /// In its own words.
        message: String,
        /// The first of the causes that it names, in one word.
        cause: Option<String>,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// There was no answer, or none that can be read.
    Broken(String),
}

impl Fault {
    /// The status of the answer; 0 if there was none.
    pub fn code(&self) -> u16 {
        match self {
            Fault::Status { code, .. } => *code,
            Fault::Broken(_) => 0,
        }
    }

    pub(super) fn broken(error: &dyn std::error::Error) -> Fault {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Fault::Broken(text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Status { code, message, .. } => write!(f, "{message} (status {code})"),
            Fault::Broken(message) => f.write_str(message),
        }
    }
}

/// A client of one API server.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
}

impl Api {
    /// Reads the configuration. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub async fn new(cluster: &Kubernetes) -> Result<Api, String> {
        let options = KubeConfigOptions { context: cluster.context.clone(), ..KubeConfigOptions::default() };
        let told = |error: &dyn std::error::Error| match Fault::broken(error) {
            Fault::Broken(text) => text,
            Fault::Status { message, .. } => message,
        };
        let mut config = match (&cluster.kubeconfig, &cluster.context) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path).map_err(|error| told(&error))?;
                let config = kube::Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| format!("{}: {}", path.display(), told(&error)))?
            }
            (None, Some(_)) => kube::Config::from_kubeconfig(&options).await.map_err(|error| told(&error))?,
            (None, None) => kube::Config::infer().await.map_err(|error| told(&error))?,
        };
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(10));
        let client = kube::Client::try_from(config).map_err(|error| told(&error))?;
        Ok(Api { client })
    }

    /// The body of an answer to GET.
    ///
    /// # Errors
    /// Whatever is not a success.
    pub async fn get(&self, path: &str, accept: &str) -> Result<String, Fault> {
        self.call(Method::GET, path, accept, "", Vec::new()).await
    }

    /// The body of an answer.
    ///
    /// # Errors
    /// Whatever is not a success.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<String, Fault> {
        let whole = async {
            let response = self.send(method, path, accept, content_type, body).await?;
            let bytes =
                response.into_body().collect().await.map_err(|error| Fault::broken(&error))?.to_bytes();
            String::from_utf8(bytes.into()).map_err(|error| Fault::broken(&error))
        };
        let late = |_| Fault::Broken("no answer in time".to_owned());
        tokio::time::timeout(PATIENCE, whole).await.map_err(late)?
    }

    /// An answer that comes line by line.
    ///
    /// # Errors
    /// Whatever is not a success.
    pub async fn lines(&self, path: &str, accept: &str) -> Result<Lines, Fault> {
        let late = |_| Fault::Broken("no answer in time".to_owned());
        let sending = self.send(Method::GET, path, accept, "", Vec::new());
        let response = tokio::time::timeout(PATIENCE, sending).await.map_err(late)??;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), searched: 0 })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Response<Body>, Fault> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
        if !content_type.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(Body::from(body)).map_err(|error| Fault::broken(&error))?;
        let response = self.client.send(request).await.map_err(|error| Fault::broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = response.into_body().collect().await.map_err(|error| Fault::broken(&error))?.to_bytes();
        let status = serde_json::from_slice::<Status>(&bytes).unwrap_or_default();
        let message = match status.message {
            message if message.is_empty() => {
                String::from_utf8_lossy(bytes.get(..bytes.len().min(200)).unwrap_or_default()).into_owned()
            }
            message => message,
        };
        let cause = status.details.causes.into_iter().map(|cause| cause.reason).next();
        Err(Fault::Status { code, message, cause, retry_after: seconds.map(Duration::from_secs) })
    }
}

/// How long to wait before a watch that has ended, or could not begin, is asked for again.
const PAUSE: Duration = Duration::from_secs(5);

/// How long a watch is asked to last, in seconds.
const WATCH_SECONDS: u64 = 300;

impl Api {
    /// Says that a list may have changed, again and again, as long as it is polled: at the beginning of each
    /// watch of it, with each of its events, and while it cannot be watched every few seconds. `path` is a
    /// list's, with its query. For who reads few objects and would as well read them again.
    pub async fn hints(&self, path: &str, hint: &Notify) {
        let joint = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joint}watch=true&timeoutSeconds={WATCH_SECONDS}");
        loop {
            let begun = Instant::now();
            match self.lines(&path, "application/json").await {
                Ok(mut lines) => {
                    // What has changed since the last reading is not told by this watch.
                    hint.notify_one();
                    while let Ok(Some(_)) = lines.next().await {
                        hint.notify_one();
                    }
                }
                Err(fault) => tracing::debug!(%fault, path, "it cannot be watched"),
            }
            hint.notify_one();
            tokio::time::sleep(PAUSE.saturating_sub(begun.elapsed())).await;
        }
    }
}

/// Kubernetes' `Status`, as far as it matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

/// The lines of an answer that goes on.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer has no end of line in it.
    searched: usize,
}

impl Lines {
    /// The next line; `None` at the end, or if it has been silent for so long that asking again is
    /// better. May be dropped while it waits.
    ///
    /// # Errors
    /// If the connection breaks, or sends a line without end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(line) = self.ready() {
                return Ok(Some(line));
            }
            match tokio::time::timeout(SILENCE, self.body.frame()).await.unwrap_or_default() {
                None => return Ok(None),
                Some(Err(error)) => return Err(Fault::broken(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                    if self.buffer.len() > LONGEST_LINE {
                        return Err(Fault::Broken("a line is too long".to_owned()));
                    }
                }
            }
        }
    }

    /// The next line, if it has come already.
    pub fn ready(&mut self) -> Option<Bytes> {
        let rest = self.buffer.get(self.searched..)?;
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.searched + end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Some(line)
    }
}
