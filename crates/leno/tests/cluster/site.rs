//! What a user does to a cluster, and sees of it.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Discovery, verbs};
use leno_node::{Line, Node, Process, ProcessSpec};
use leno_testkit::kubelet::Machine;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A cluster, and who works with it.
pub(crate) struct Site<'m> {
    pub(crate) machine: &'m Machine,
    pub(crate) node: &'m Node,
    kubeconfig: PathBuf,
    started: Instant,
    restarts: AtomicU32,
}

impl<'m> Site<'m> {
    pub(crate) fn new(
        machine: &'m Machine,
        node: &'m Node,
        kubeconfig: PathBuf,
    ) -> Result<Site<'m>, Box<dyn Error>> {
        machine.write_kubeconfig(&kubeconfig)?;
        Ok(Site { machine, node, kubeconfig, started: Instant::now(), restarts: AtomicU32::new(0) })
    }

    /// Says what has been done.
    pub(crate) fn done(&self, what: &str) {
        println!("{:5.1} s: {what}", self.started.elapsed().as_secs_f32());
    }

    /// Where the ingress gateway's Service is, of the type LoadBalancer.
    pub(crate) fn gateway(&self) -> SocketAddr {
        SocketAddr::new(self.node.network().address.into(), 80)
    }

    /// Runs the program; what it says. It must end well.
    pub(crate) async fn leno(&self, arguments: &str) -> Result<String, Box<dyn Error>> {
        let argv = std::iter::once(env!("CARGO_BIN_EXE_leno")).chain(arguments.split_whitespace());
        let spec = ProcessSpec {
            name: "leno".to_owned(),
            argv: argv.map(str::to_owned).collect(),
            environment: vec![("KUBECONFIG".to_owned(), self.kubeconfig.display().to_string())],
            ..ProcessSpec::default()
        };
        let (lines, mut said) = mpsc::channel::<Line>(64);
        // Not a `std::process::Command`: this process is pid 1, which buries the children that it does not know.
        let process = Process::spawn(None, &spec, &lines).await?;
        drop(lines);
        let mut text = String::new();
        while let Some(line) = said.recv().await {
            text.push_str(&line.text);
            text.push('\n');
        }
        match process.wait().await {
            exit if exit.success() => Ok(text),
            exit => Err(format!("leno {arguments}: {exit}: {text}").into()),
        }
    }

    fn api(&self, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            "" => Api::all_with(self.machine.client(), &resource),
            namespace => Api::namespaced_with(self.machine.client(), namespace, &resource),
        }
    }

    /// As `kubectl apply --server-side`, in the namespace `default` if the object names none.
    pub(crate) async fn apply(&self, mut object: Value, is_dry_run: bool) -> Result<(), Box<dyn Error>> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let mut namespace = text("/metadata/namespace");
        if !["Namespace", "CustomResourceDefinition"].contains(&kind.as_str()) && namespace.is_empty() {
            "default".clone_into(&mut namespace);
            object["metadata"]["namespace"] = json!("default");
        }
        let mut parameters = PatchParams::apply("kubectl");
        parameters.dry_run = is_dry_run;
        let api = self.api(&version, &kind, &namespace);
        let applied = api.patch(&name, &parameters, &Patch::Apply(&object)).await;
        applied.map(drop).map_err(|error| format!("{kind} {name}: {error}").into())
    }

    /// As `kubectl patch --type merge`.
    pub(crate) async fn patch(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Result<(), Box<dyn Error>> {
        let api = self.api(version, kind, namespace);
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).map_err(|error| format!("{kind} {name}: {error}").into())
    }

    /// As `kubectl get -o json`; nothing if there is none, or its kind is not there.
    pub(crate) async fn find(&self, version: &str, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let found = self.api(version, kind, namespace).get(name).await.ok()?;
        serde_json::to_value(found).ok()
    }

    /// As `kubectl delete`, without waiting for the end.
    pub(crate) async fn delete(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Box<dyn Error>> {
        let deleted = self.api(version, kind, namespace).delete(name, &DeleteParams::default()).await;
        deleted.map(drop).map_err(|error| format!("{kind} {name}: {error}").into())
    }

    /// The Pods with a label, which are not on their way out.
    pub(crate) fn pods(&self, namespace: &str, label: &str, value: &str) -> Vec<Value> {
        let pods = self.machine.objects("pods", namespace).into_iter().map(|it| Value::clone(&it));
        pods.filter(|it| has_label(it, label, value) && it["metadata"]["deletionTimestamp"].is_null())
            .collect()
    }

    /// As `kubectl rollout restart` and `kubectl rollout status`, but for that this also waits until the old Pods are
    /// gone: `app` is the label of the Pods.
    pub(crate) async fn restart(
        &self,
        namespace: &str,
        deployment: &str,
        app: &str,
    ) -> Result<(), Box<dyn Error>> {
        let before = self.pods(namespace, "app", app);
        let number = self.restarts.fetch_add(1, Ordering::Relaxed).to_string();
        let now = json!({ "spec": { "template": { "metadata": { "annotations": {
            "kubectl.kubernetes.io/restartedAt": number } } } } });
        self.patch("apps/v1", "Deployment", namespace, deployment, now).await?;
        self.replaced(namespace, app, &before).await;
        Ok(())
    }

    /// Waits until others run in the place of some Pods, and these are gone.
    pub(crate) async fn replaced(&self, namespace: &str, app: &str, before: &[Value]) {
        let is_old = |it: &Value| before.iter().any(|old| old["metadata"]["uid"] == it["metadata"]["uid"]);
        self.machine
            .until_all("pods", namespace, |pods| {
                let all: Vec<_> = pods.iter().filter(|it| has_label(it, "app", app)).collect();
                all.len() == before.len() && all.iter().all(|it| !is_old(it) && is_ready(it))
            })
            .await;
    }

    /// Ends the process of a container by SIGKILL, and waits until kubelet has started another one that is ready.
    pub(crate) async fn kill(&self, pod: &Value, container: &str) -> Result<(), Box<dyn Error>> {
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let running = |pod: &Value| -> Option<(String, i64)> {
            let lists = ["/status/containerStatuses", "/status/initContainerStatuses"];
            let mut statuses = lists.iter().filter_map(|it| pod.pointer(it)?.as_array()).flatten();
            let status = statuses.find(|it| it["name"] == json!(container))?;
            Some((status["containerID"].as_str()?.to_owned(), status["restartCount"].as_i64()?))
        };
        let now = self.machine.until("pods", &namespace, &name, |_| true).await;
        let (id, restarts) = running(&now).ok_or("the container does not run")?;
        let number: i32 = id.trim_start_matches("process://").parse()?;
        kill_process(Pid::from_raw(number).ok_or("no process")?, Signal::KILL)?;
        let again =
            |it: &Value| is_ready(it) && running(it).is_some_and(|(_, restarted)| restarted > restarts);
        self.machine.until("pods", &namespace, &name, again).await;
        Ok(())
    }

    /// Waits until all Pods of a Deployment are ready.
    pub(crate) async fn ready(&self, namespace: &str, name: &str) {
        let is = |it: &Value| {
            let number = |path: &str| it.pointer(path).and_then(Value::as_i64).unwrap_or_default();
            number("/status/readyReplicas") >= number("/spec/replicas").max(1)
        };
        self.machine.until("deployments", namespace, name, is).await;
    }

    /// A page by way of the gateway and all services.
    pub(crate) async fn flows(&self) {
        let gateway = self.gateway();
        until("the gateway answers", || async move {
            let Ok((200, page)) = get(gateway, "/productpage").await else { return false };
            page.contains("Book Details") || page.contains("details")
        })
        .await;
    }

    /// All objects of the cluster, as `services istio-system/istiod`.
    pub(crate) async fn all(&self) -> Result<BTreeSet<String>, Box<dyn Error>> {
        let found = Discovery::new(self.machine.client()).run().await?;
        let mut all = BTreeSet::new();
        for group in found.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if !capabilities.supports_operation(verbs::LIST) {
                    continue;
                }
                let api: Api<DynamicObject> = Api::all_with(self.machine.client(), &resource);
                for object in api.list(&ListParams::default()).await? {
                    let metadata = object.metadata;
                    let namespace = metadata.namespace.unwrap_or_default();
                    let name = metadata.name.unwrap_or_default();
                    all.insert(format!("{} {namespace}/{name}", resource.plural));
                }
            }
        }
        Ok(all)
    }
}

pub(crate) fn has_label(object: &Value, label: &str, value: &str) -> bool {
    object["metadata"]["labels"][label] == json!(value)
}

/// What `kubectl get pods` shows as READY: how many containers are, of how many; native sidecars count.
pub(crate) fn shown(pod: &Value) -> (usize, usize) {
    let list = |path: &str| pod.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut inner = list("/spec/initContainers");
    inner.retain(|it| it["restartPolicy"] == json!("Always"));
    let mut statuses = list("/status/initContainerStatuses");
    statuses.retain(|status| inner.iter().any(|it| it["name"] == status["name"]));
    statuses.extend(list("/status/containerStatuses"));
    let ready = statuses.iter().filter(|it| it["ready"] == json!(true)).count();
    (ready, inner.len() + list("/spec/containers").len())
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|it| it["type"] == json!("Ready") && it["status"] == json!("True"))
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), Box<dyn Error>> {
    const LIMIT: Duration = Duration::from_secs(5);
    let stream = tokio::time::timeout(LIMIT, TcpStream::connect(address)).await??;
    let (status, body) = leno_kubelet::http::get(stream, "bookinfo.test", path, &[], LIMIT).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Tries until it holds: what other processes have learnt shows only by trying.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    while !holds().await {
        pause.tick().await;
    }
    println!("{what}");
}
