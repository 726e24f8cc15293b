//! What all pods of a running mesh share.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use leno_node::{Capabilities, Line, Node, ProcessSpec, Publisher};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::image::Inherited;
use super::layout::{Layout, Owner, PROXY_ID};
use crate::verb::up::ProxyProgram;

/// The fixed facts of a running mesh.
#[derive(Debug)]
pub(crate) struct Site {
    /// The mesh's name.
    pub(crate) mesh: String,
    pub(crate) layout: Layout,
    /// The node, where there are namespaces.
    pub(crate) node: Option<Node>,
    /// Where hosts files and bootstraps are kept.
    pub(crate) folder: PathBuf,
    /// Whether any user may read files there.
    pub(crate) folder_is_open: bool,
    pub(crate) proxy: ProxyProgram,
    pub(crate) proxy_log_level: String,
    pub(crate) inherited: Inherited,
    /// Where output of processes goes.
    pub(crate) lines: mpsc::Sender<Line>,
}

impl Site {
    /// Listens on an address of the host.
    pub(crate) async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let publisher: Option<Publisher> = self.node.as_ref().map(Node::publisher);
        match publisher {
            Some(publisher) => TcpListener::from_std(publisher.bind(address).await?),
            None => TcpListener::bind(address).await,
        }
    }

    /// How to run a proxy with a bootstrap.
    pub(crate) fn proxy(&self, pod: &str, bootstrap: &str, file: &std::path::Path) -> ProcessSpec {
        let mut argv = match &self.proxy {
            ProxyProgram::Leno => vec![self.inherited.executable.clone(), "proxy".to_owned()],
            ProxyProgram::Envoy(path) => vec![path.display().to_string()],
        };
        if self.folder_is_open {
            argv.extend(["-c".to_owned(), file.display().to_string()]);
        } else {
            argv.extend(["--config-yaml".to_owned(), bootstrap.to_owned()]);
        }
        let flags = ["--concurrency", "1", "--drain-time-s", "2", "--drain-strategy", "immediate"];
        argv.extend(flags.map(str::to_owned));
        argv.extend(["--disable-hot-restart".to_owned(), "-l".to_owned(), self.proxy_log_level.clone()]);
        if let ProxyProgram::Envoy(_) = self.proxy {
            // As pilot-agent does it: Envoy warns of deprecated fields that Istio's configuration has, and
            // of limits that it does not have.
            argv.extend(["--component-log-level", "misc:error,main:error"].map(str::to_owned));
        }
        let mut spec = ProcessSpec {
            name: format!("{pod}/istio-proxy"),
            argv,
            environment: Vec::new(),
            capabilities: Some(Capabilities::NONE),
            ..ProcessSpec::default()
        };
        match &self.layout {
            Layout::Namespaces { owner: Owner::User, .. } => {
                (spec.uid, spec.gid) = (Some(PROXY_ID), Some(PROXY_ID));
            }
            Layout::Namespaces { owner: Owner::Mark, .. } => {
                spec.capabilities = Some(Capabilities::NET_ADMIN);
            }
            Layout::Loopback { .. } => spec.capabilities = None,
        }
        spec
    }
}
