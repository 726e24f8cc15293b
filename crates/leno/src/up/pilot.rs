//! The control plane of the mesh, as a process beside the pods, and what it finds wrong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leno_node::{Backoff, ProcessSpec, Restart, Supervisor};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::site::Site;

/// The name that its output has.
pub(crate) const NAME: &str = "istiod/discovery";

/// How often its diagnostics are read.
const POLL: Duration = Duration::from_millis(150);

/// A fault that the control plane reports, as on its page `/debug/diagnostics`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Diagnostic {
    file: String,
    line: u32,
    column: u32,
    kind: String,
    namespace: String,
    name: String,
    path: String,
    message: String,
    severity: String,
}

impl Default for Diagnostic {
    fn default() -> Diagnostic {
        let empty = String::new;
        Diagnostic {
            file: empty(),
            line: 0,
            column: 0,
            kind: empty(),
            namespace: empty(),
            name: empty(),
            path: empty(),
            message: empty(),
            severity: "error".to_owned(),
        }
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.severity)?;
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.kind.is_empty() {
            write!(f, "{} {}/{}: ", self.kind, self.namespace, self.name)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Starts it, on the user's folders and then the one with what is known about running pods: what is
/// in a later folder counts more.
pub(crate) fn start(site: &Site, folders: &[PathBuf], state: &Path) -> Supervisor {
    let [grpc, debug] = site.layout.control_plane();
    let mut argv = vec![site.inherited.executable.clone(), "pilot".to_owned()];
    for folder in folders.iter().map(PathBuf::as_path).chain([state]) {
        argv.extend(["--dir".to_owned(), folder.display().to_string()]);
    }
    for (flag, address) in [("--grpcAddr", grpc), ("--monitoringAddr", debug)] {
        argv.extend([flag.to_owned(), address.to_string()]);
    }
    // Only the pods of this mesh can connect, and they are the user's own.
    argv.push("--trustPlaintext".to_owned());
    // What its loop logs are the diagnostics, which are printed here.
    argv.extend(["--log_output_level".to_owned(), "default:warn,server:none".to_owned()]);
    let spec = ProcessSpec {
        name: NAME.to_owned(),
        argv,
        // The user's folders may be relative to where we were started.
        directory: site.inherited.directory.clone().map(PathBuf::from),
        ..ProcessSpec::default()
    };
    Supervisor::start(None, spec, Restart::Always, Backoff::default(), site.lines.clone())
}

/// What the control plane says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// What is wrong.
    pub(crate) diagnostics: BTreeSet<Diagnostic>,
    /// The services that it knows.
    pub(crate) services: Vec<KnownService>,
    /// Whether all that it has sent to proxies has been taken.
    pub(crate) is_in_sync: bool,
    /// How many proxies are connected.
    pub(crate) proxies: usize,
}

/// A service, as on the page `/debug/registryz`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct KnownService {
    pub(crate) hostname: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) endpoints: Vec<KnownEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct KnownEndpoint {
    pub(crate) address: String,
    /// Whether requests go there: its pod is ready, and that is known.
    pub(crate) healthy: bool,
}

/// A proxy, as on the page `/debug/syncz`.
#[derive(Deserialize)]
struct Synced {
    #[serde(default)]
    types: std::collections::BTreeMap<String, SyncedType>,
}

#[derive(Deserialize)]
struct SyncedType {
    status: String,
}

/// Sends what the control plane says of itself, whenever that differs.
pub(crate) async fn watch(site: std::sync::Arc<Site>, reports: mpsc::Sender<Report>) {
    let mut last = None;
    loop {
        if let Some(report) = read_report(&site).await
            && last.as_ref() != Some(&report)
        {
            if reports.send(report.clone()).await.is_err() {
                return;
            }
            last = Some(report);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn read_report(site: &Site) -> Option<Report> {
    let diagnostics = read_page(site, "/debug/diagnostics").await?;
    let services = read_page(site, "/debug/registryz").await?;
    let synced: Vec<Synced> = read_page(site, "/debug/syncz").await?;
    let is_in_sync = synced
        .iter()
        .all(|proxy| !proxy.types.is_empty() && proxy.types.values().all(|one| one.status != "STALE"));
    Some(Report { diagnostics, services, is_in_sync, proxies: synced.len() })
}

async fn read_page<T: serde::de::DeserializeOwned>(site: &Site, path: &str) -> Option<T> {
    let [_, address] = site.layout.control_plane();
    let limit = Duration::from_secs(2);
    let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await.ok()?.ok()?;
    let (status, body) =
        leno_kubelet::http::get(stream, &address.to_string(), path, &[], limit).await.ok()?;
    if status != 200 {
        return None;
    }
    serde_json::from_slice(&body).inspect_err(|e| tracing::debug!("{path}: {e}")).ok()
}
