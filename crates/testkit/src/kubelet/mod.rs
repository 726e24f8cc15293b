//! A cluster of one node, in the namespaces of a test's inner process: an API server, the controllers of
//! Kubernetes as far as installing and using a mesh needs them, a kubelet that runs pods as processes, kube-proxy
//! and DNS. `kubectl`, and everything else that speaks to a cluster, works with it. Who is no administrator may do what
//! roles allow.
//!
//! START HERE: [`Machine::start`], in the process that [`leno_node::Node::enter`] has made a node. Inside:
//!
//! - `cache.rs`: the objects, by watches, and how they are changed;
//! - `controllers/`: Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, EndpointSlices, load balancers;
//! - `plane.rs`: the API server, ours or, with its own controllers, Kubernetes' ([`VARIABLE`]);
//! - `pods.rs`: the scheduler and the kubelet, on top of `leno_kubelet`;
//! - `dns.rs`: names of Services.
//!
//! Not there: autoscaling, disruption budgets, volumes that last, quotas, network policies, UDP by Services,
//! `minReadySeconds`, `partition` of StatefulSets, time limits of Jobs, CronJobs. A pod's downward API shows it as
//! it was when it started.

mod cache;
mod controllers;
mod dns;
mod plane;
mod pods;

use std::error::Error;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use leno_kubelet::Images;
use leno_node::{Line, Node};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::cache::{Cache, Write};
use self::plane::Plane;
pub use self::plane::VARIABLE;
use self::pods::Pods;

/// The name of the node.
const NODE: &str = "node";
/// After something could not be done.
const AGAIN: Duration = Duration::from_millis(250);

/// How a cluster is started.
#[derive(Debug)]
pub struct Setup {
    /// What stands for images.
    pub images: Images,
    /// A folder for files of pods; it must not be closed to other users.
    pub folder: PathBuf,
    /// Where the output of containers goes.
    pub lines: mpsc::Sender<Line>,
}

/// A running cluster. Dropping it kills its pods.
pub struct Machine {
    plane: Plane,
    client: Client,
    cache: Cache,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Machine {
    /// Starts it on a node, which must be root's.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn start(node: &Node, setup: Setup) -> Result<Machine, Box<dyn Error>> {
        let address = node.network().address;
        let plane = Plane::start(address, &setup.folder.join("kubernetes"), &setup.lines).await?;
        let kubeconfig = Kubeconfig::from_yaml(&plane.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        plane.ready(&client, &node_object(address)).await?;
        let cache = Cache::start(client.clone()).await;
        let dns = UdpSocket::bind((address, 53)).await?;
        let pods = Pods::new(node.clone(), cache.clone(), setup);
        let mut tasks = vec![
            tokio::spawn(dns::serve(dns, cache.clone())),
            tokio::spawn(run(cache.clone(), pods)),
            tokio::spawn(lead(node.clone(), cache.clone())),
            tokio::spawn({
                let node = address.to_string();
                control(cache.clone(), move |objects| controllers::balancers(objects, &node))
            }),
        ];
        if let Plane::Own { bundle, .. } = &plane {
            let bundle = bundle.clone();
            tasks.push(tokio::spawn(control(cache.clone(), |objects| controllers::slices(objects, NODE))));
            tasks.push(tokio::spawn(control(cache.clone(), move |objects| {
                controllers::due(objects, &bundle)
            })));
        }
        Ok(Machine { plane, client, cache, tasks })
    }

    /// Paths with queries of the requests to its API server since the start or since this was asked last.
    pub fn take_requests(&self) -> Vec<String> {
        self.plane.take_requests()
    }

    /// The requests that its API server has forbidden to service accounts.
    pub fn refused(&self) -> Vec<String> {
        self.plane.refused()
    }

    /// A client of its API server, which may do everything.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Writes a kubeconfig for it.
    ///
    /// # Errors
    /// As writing fails.
    pub fn write_kubeconfig(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, self.plane.kubeconfig())
    }

    /// All objects of a kind in a namespace.
    pub fn objects(&self, plural: &str, namespace: &str) -> Vec<Arc<Value>> {
        self.cache.objects().of(plural, namespace).cloned().collect()
    }

    /// Waits until something holds for an object, which it returns.
    pub async fn until(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Arc<Value> {
        let mut changes = self.cache.changes();
        loop {
            changes.borrow_and_update();
            if let Some(found) = self.cache.objects().find(plural, namespace, name).filter(|it| holds(it)) {
                return found.clone();
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until something holds for all objects of a kind in a namespace, which it returns.
    pub async fn until_all(
        &self,
        plural: &str,
        namespace: &str,
        holds: impl Fn(&[Arc<Value>]) -> bool,
    ) -> Vec<Arc<Value>> {
        let mut changes = self.cache.changes();
        loop {
            changes.borrow_and_update();
            let all: Vec<_> = self.cache.objects().of(plural, namespace).cloned().collect();
            if holds(&all) {
                return all;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A controller: after each change everything is looked at. That of endpoints, the others and the kubelet are apart, as
/// in a real cluster: much to do for one must not keep others from learning that a Pod ends.
async fn control(cache: Cache, due: impl Fn(&cache::Objects) -> Vec<Write>) {
    let mut changes = cache.changes();
    loop {
        changes.borrow_and_update();
        let mut failed = false;
        for write in due(&cache.objects()) {
            failed |= write_or_say(&cache, &write).await;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = again(failed) => {}
        }
    }
}

/// The scheduler and the kubelet.
async fn run(cache: Cache, mut pods: Pods) {
    let mut changes = cache.changes();
    loop {
        changes.borrow_and_update();
        let failed = pods.settle().await;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = pods.changed() => {}
            () = again(failed) => {}
        }
    }
}

/// kube-proxy.
async fn lead(node: Node, cache: Cache) {
    let mut changes = cache.changes();
    let mut services = Vec::new();
    loop {
        changes.borrow_and_update();
        let mut failed = false;
        let now = controllers::proxied(&cache.objects(), node.network().address);
        if now != services {
            match node.services(&now) {
                Ok(()) => services = now,
                Err(error) => {
                    tracing::warn!("services: {error}");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = again(failed) => {}
        }
    }
}

async fn again(failed: bool) {
    if failed { tokio::time::sleep(AGAIN).await } else { std::future::pending().await }
}

/// Makes a change; whether that failed.
async fn write_or_say(cache: &Cache, write: &Write) -> bool {
    match cache.write(write).await {
        Ok(()) => false,
        Err(error) => {
            tracing::info!("{write:?}: {error}");
            true
        }
    }
}

fn node_object(address: Ipv4Addr) -> Value {
    let (cpus, memory) = leno_kubelet::capacity();
    let capacity = json!({ "cpu": format!("{cpus}m"), "memory": memory.to_string(), "pods": "250" });
    json!({ "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NODE, "labels": { "kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux",
            "topology.kubernetes.io/region": "here", "topology.kubernetes.io/zone": "here-1" } },
        "status": { "capacity": capacity, "allocatable": capacity,
            "addresses": [{ "type": "InternalIP", "address": address.to_string() },
                { "type": "Hostname", "address": NODE }],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] } })
}
