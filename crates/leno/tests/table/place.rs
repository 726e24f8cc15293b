//! Pods with proxies: their networks, and what is redirected in them.
//!
//! What an application sends goes to its sidecar, as under Istio. What a proxy sends goes to the
//! back ends of the test, which listen in every pod and ask the kernel where it was meant to go;
//! only other pods with proxies, and the control plane, are reached for real.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Cidr;
use leno_node::rules::{Chain, Family, Hook, Kind, Match, Owner, Rule, Ruleset, Table, Verdict};
use leno_node::{Line, Mode, Node, PodSpec, Process, ProcessSpec, Redirect};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::backend::Backend;
use crate::bootstrap::{Servers, bootstrap};
use crate::client;
use crate::mesh::{Mesh, Pod, Role};

/// The group of proxies, or the mark of their sockets.
pub(crate) const OWNER: u32 = 1337;
/// The port of proxies' admin interfaces.
pub(crate) const ADMIN: u16 = 15000;
/// The port of the back ends in each pod.
const BACK_ENDS: u16 = 65000;
/// Nobody has these addresses: connections to them are refused.
const NOBODY: &str = "10.99.0.0/16";
/// A port on which nothing listens.
const CLOSED: u16 = 1;
/// The chain for what a proxy sends.
const SENT: &str = "SENT";
/// A proxy that is not ready by then will never be.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod with a proxy that runs.
pub(crate) struct Place {
    pub(crate) pod: leno_node::Pod,
    pub(crate) namespace: String,
    name: String,
    process: Process,
    lines: mpsc::Receiver<Line>,
}

/// Whose proxy runs.
#[derive(Clone, Debug)]
pub(crate) enum Product {
    Ours,
    Envoy(String),
}

impl Product {
    /// As an argument of a process.
    pub(crate) fn text(&self) -> &str {
        match self {
            Product::Ours => "",
            Product::Envoy(path) => path,
        }
    }

    pub(crate) fn read(text: &str) -> Product {
        if text.is_empty() { Product::Ours } else { Product::Envoy(text.to_owned()) }
    }

    fn command(&self, config: &Path) -> Vec<String> {
        let program: &[&str] = match self {
            Product::Ours => &[env!("CARGO_BIN_EXE_leno"), "proxy"],
            // Base ids are for hot restart, which wants names that are unique on a machine.
            Product::Envoy(path) => &[path, "--disable-hot-restart"],
        };
        let more = [
            ["--concurrency", "1"],
            ["-l", "warning"],
            ["--component-log-level", "misc:error,main:error"],
            ["--file-flush-interval-msec", "20"],
        ];
        let more = more.as_flattened();
        let mut argv: Vec<String> = program.iter().chain(more).map(|&word| word.to_owned()).collect();
        argv.extend(["-c".to_owned(), config.display().to_string()]);
        argv
    }
}

impl Place {
    /// Makes a pod and starts its proxy.
    pub(crate) async fn start(
        node: &Node,
        mesh: &Mesh,
        pod: &Pod,
        product: &Product,
        servers: &Servers,
        backend: &Arc<Backend>,
        folder: &Path,
    ) -> Result<Place, Box<dyn std::error::Error>> {
        let role = pod.proxy.ok_or("a pod without a proxy")?;
        let hosts = folder.join(format!("{}.hosts", pod.name));
        mesh.write_hosts(&hosts)?;
        let spec =
            PodSpec { name: pod.name.clone(), address: pod.address, hosts: Some(hosts), resolv_conf: None };
        let place = leno_node::Pod::create(node, &spec)?;
        let others = mesh.pods.iter().filter(|it| it.proxy.is_some()).map(|it| it.address);
        place.install(&rules(role, node, others))?;
        let listener = place.within(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACK_ENDS)))??;
        listener.set_nonblocking(true)?;
        tokio::spawn(Arc::clone(backend).serve(TcpListener::from_std(listener)?));
        // The other family is not redirected: who means its loopback address connects to it.
        if pod.ip6.is_some() {
            let listener =
                place.within(|| std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, BACK_ENDS)))??;
            listener.set_nonblocking(true)?;
            tokio::spawn(Arc::clone(backend).serve(TcpListener::from_std(listener)?));
        }

        let config = folder.join(format!("{}.json", pod.name));
        std::fs::write(&config, bootstrap(pod, servers, node.mode()).to_string())?;
        let spec = ProcessSpec {
            name: pod.name.clone(),
            argv: product.command(&config),
            gid: (node.mode() == Mode::Root).then_some(OWNER),
            ..ProcessSpec::default()
        };
        let (sender, lines) = mpsc::channel(4096);
        let process = Process::spawn(Some(&place), &spec, &sender).await?;
        let (name, namespace) = (pod.name.clone(), pod.namespace.clone());
        Ok(Place { pod: place, namespace, name, process, lines })
    }

    /// Waits until the proxy serves.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let told = self.admin("/ready").await.unwrap_or_else(|error| error.to_string());
            if told.contains("LIVE") {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{}: not ready: {told}", self.name));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A page of the admin interface.
    pub(crate) async fn admin(&self, path: &str) -> io::Result<String> {
        use tokio::io::AsyncWriteExt;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
        let mut stream = client::connect(Some(&self.pod), to).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n").as_bytes()).await?;
        let answer = leno_testkit::http::read_message(&mut stream, &mut Vec::new()).await;
        let (_, body) = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// What the proxy has refused of what it was sent, from its statistics.
    pub(crate) async fn refusals(&self) -> Vec<String> {
        let page = self.admin("/stats?format=json&filter=update_rejected").await.unwrap_or_default();
        let Ok(page) = serde_json::from_str::<Value>(&page) else {
            return vec![format!("{}: no statistics: {page:?}", self.name)];
        };
        let stats = page["stats"].as_array().cloned().unwrap_or_default();
        let refused = stats.iter().filter(|stat| stat["value"].as_u64().is_none_or(|value| value > 0));
        let refused = refused.map(|stat| format!("{}: {stat}", self.name));
        let none = stats.is_empty().then(|| format!("{}: no statistics of updates", self.name));
        refused.chain(none).collect()
    }

    /// Ends the proxy; gives what it has said.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.process.stop(Duration::ZERO).await;
        let mut said = Vec::new();
        while let Ok(line) = self.lines.try_recv() {
            said.push(format!("{}: {}", self.name, line.text));
        }
        said
    }
}

/// What is redirected in a pod.
fn rules(role: Role, node: &Node, proxied: impl Iterator<Item = Ipv4Addr>) -> Ruleset {
    let (redirect, owner) = match node.mode() {
        Mode::Root => {
            let redirect = Redirect { proxy_uids: Vec::new(), ..Redirect::default() };
            (redirect, Owner::Gid(OWNER))
        }
        Mode::User => (Redirect::by_mark(), Owner::Mark(OWNER)),
    };
    let back_ends = || Verdict::Redirect(BACK_ENDS);
    let straight = |net| Rule { matches: vec![Match::To(net)], verdict: Verdict::Return };
    let mut rules = match role {
        Role::Sidecar => redirect.rules(),
        Role::Gateway => {
            let sent = Rule { matches: vec![Match::Tcp, Match::Owner(owner)], verdict: Verdict::Jump(SENT) };
            let hook = Hook::Output;
            let chains = vec![Chain { name: hook.chain(), hook: Some(hook), rules: vec![sent] }];
            Ruleset { tables: vec![Table { family: Family::V4, kind: Kind::Nat, chains }] }
        }
    };
    let Some(table) = rules.tables.first_mut() else { return rules };
    for chain in &mut table.chains {
        let mut changed = Vec::new();
        for rule in chain.rules.drain(..) {
            match rule.matches.as_slice() {
                // The proxy to its application.
                [Match::Out(_), Match::From(_)] => {
                    let matches = [Match::Tcp].into_iter().chain(rule.matches).collect();
                    changed.push(Rule { matches, verdict: back_ends() });
                }
                [Match::Owner(_)] if rule.verdict == Verdict::Return => {
                    changed.push(Rule { matches: rule.matches.clone(), verdict: Verdict::Jump(SENT) });
                    changed.push(rule);
                }
                _ => changed.push(rule),
            }
        }
        chain.rules = changed;
    }
    let here = [Ipv4Addr::LOCALHOST, node.network().address];
    let mut sent: Vec<Rule> =
        here.into_iter().chain(proxied).map(|address| straight(Cidr::host(address.into()))).collect();
    let nobody = NOBODY.parse().map(Match::To).into_iter();
    sent.push(Rule { matches: nobody.chain([Match::Tcp]).collect(), verdict: Verdict::Redirect(CLOSED) });
    sent.push(Rule { matches: vec![Match::Tcp], verdict: back_ends() });
    table.chains.insert(0, Chain { name: SENT, hook: None, rules: sent });
    rules
}
