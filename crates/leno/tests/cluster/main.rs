//! A mesh in a cluster, as its user sees it: `leno install`, a namespace with a label, samples/bookinfo. Beneath are
//! an API server with controllers and a kubelet (`testkit::kubelet`). Pods show 2/2, requests flow, also with STRICT
//! mTLS and over a rolling restart; what is wrong is refused.
//!
//! Everything runs in namespaces of its own; this binary is the runner and the process inside, depending on its
//! arguments, hence its own `main`. Nothing is put past the API server: admission runs as it does for users.

#![cfg(target_os = "linux")]

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use leno_api::yaml::{Dialect, parse};
use leno_kubelet::{Image, Images};
use leno_node::{Bind, InnerSpec, Line, Mode, Network, Node, Outer, Process, ProcessSpec, Support, support};
use leno_testkit::kubelet::{Machine, Setup};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Everything together; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    if Node::is_inner() {
        return end(inside());
    }
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    end(outside())
}

fn end(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn outside() -> Result<(), Box<dyn Error>> {
    match support() {
        Support::Namespaces(Mode::Root) => {}
        Support::Namespaces(Mode::User) => {
            println!("skipped: a cluster: this is an ordinary user");
            return Ok(());
        }
        Support::None { reason } => {
            println!("skipped: a cluster: {}", reason.replace('\n', "; "));
            return Ok(());
        }
    }
    let spec = InnerSpec { mode: Mode::Root, argv: vec!["cluster".into()], environment: Vec::new() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut outer = Outer::start(spec).await?;
        let exit = outer.wait().await?;
        if exit.success() { Ok(()) } else { Err(format!("the inner process: {exit}").into()) }
    })
}

fn inside() -> Result<(), Box<dyn Error>> {
    let node = Node::enter(Network::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let folder = tempfile::tempdir()?;
        let said = Arc::new(Mutex::new(Vec::<String>::new()));
        let (lines, mut heard) = mpsc::channel::<Line>(1024);
        let notes = said.clone();
        tokio::spawn(async move {
            while let Some(line) = heard.recv().await {
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                notes.push(format!("{}: {}", line.source, line.text));
            }
        });
        let setup = Setup { images: images(), folder: folder.path().join("pods"), lines };
        let machine = Machine::start(&node, setup).await?;
        let outcome = match tokio::time::timeout(LIMIT, story(&machine, &node, folder.path())).await {
            Ok(outcome) => outcome,
            Err(_) => Err("it takes too long".into()),
        };
        if outcome.is_err() {
            for line in said.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                eprintln!("{line}");
            }
            for pod in ["istio-system", "default"].iter().flat_map(|it| machine.objects("pods", it)) {
                eprintln!("{}: {}", pod["metadata"]["name"], pod["status"]);
            }
        }
        outcome
    })
}

/// Our image, with the names that manifests call it by, and that of the samples are our executable.
fn images() -> Images {
    let names = ["leno", "pilot-agent", "pilot-discovery"];
    let file = |name: &str| Bind {
        source: env!("CARGO_BIN_EXE_leno").into(),
        target: format!("/usr/local/bin/{name}").into(),
        read_only: true,
    };
    let own = |entrypoint: &[&str], user| Image {
        entrypoint: entrypoint.iter().map(|&it| it.to_owned()).collect(),
        environment: vec![("PATH".to_owned(), "/usr/local/bin".to_owned())],
        files: names.map(file).to_vec(),
        user,
        ..Image::default()
    };
    let mut images = Images::default();
    images.add("leno", own(&["/usr/local/bin/pilot-agent"], Some(1337)));
    images.add("lenomesh/samples", own(&["/usr/local/bin/leno", "sample"], None));
    images
}

async fn story(machine: &Machine, node: &Node, folder: &Path) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let done = |what: &str| println!("{:5.1} s: {what}", started.elapsed().as_secs_f32());
    let kubeconfig = folder.join("kubeconfig");
    machine.write_kubeconfig(&kubeconfig)?;
    let text = leno(&kubeconfig, "install --set profile=demo -y").await?;
    for line in ["Leno core installed", "Ingress gateways installed", "Installation complete"] {
        if !text.contains(line) {
            return Err(format!("leno install does not say {line:?}: {text}").into());
        }
    }
    done("installed");

    let label = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "default", "labels": { "istio-injection": "enabled" } } });
    apply(machine, label, false).await?;
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo");
    for file in ["bookinfo.yaml", "gateway.yaml"] {
        let text = std::fs::read_to_string(format!("{samples}/{file}"))?;
        let documents = parse(&text, Dialect::Kubernetes).map_err(|error| error.to_string())?;
        for document in documents.iter().filter(|it| !it.is_null()) {
            apply(machine, document.to_json(), false).await?;
        }
    }
    let names = ["details-v1", "productpage-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
    for name in names {
        ready(machine, "default", name).await;
    }
    let pods = machine.objects("pods", "default");
    for pod in &pods {
        if shown(pod) != (2, 2) {
            return Err(format!("{}: {:?}", pod["metadata"]["name"], shown(pod)).into());
        }
    }
    done(&format!("{} pods show 2/2", pods.len()));
    flows(node).await?;
    done("requests flow");

    // No route at all.
    let wrong = json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "wrong", "namespace": "default" }, "spec": { "hosts": ["details"] } });
    until("a VirtualService without routes is refused", || async {
        let refused = apply(machine, wrong.clone(), true).await.err().map(|error| error.to_string());
        refused.is_some_and(|words| words.contains("denied the request"))
    })
    .await;

    let strict = json!({ "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": "istio-system" },
        "spec": { "mtls": { "mode": "STRICT" } } });
    apply(machine, strict, false).await?;
    let address = pods.iter().find(|it| it["metadata"]["labels"]["app"] == json!("details"));
    let address = address.and_then(|it| it["status"]["podIP"].as_str()).ok_or("details has no address")?;
    let plain = SocketAddr::new(address.parse()?, 9080);
    until("plaintext is refused", || async move { get(plain, "/details/0").await.is_err() }).await;
    flows(node).await?;
    done("with STRICT mTLS plaintext is refused, and requests flow");

    // As `kubectl rollout restart`.
    let before: Vec<Value> = of_app(machine, "productpage");
    let now = json!({ "spec": { "template": { "metadata": { "annotations": {
        "kubectl.kubernetes.io/restartedAt": "now" } } } } });
    let kind = GroupVersionKind::gvk("apps", "v1", "Deployment");
    Api::<DynamicObject>::namespaced_with(machine.client(), "default", &ApiResource::from_gvk(&kind))
        .patch("productpage-v1", &PatchParams::default(), &Patch::Merge(now))
        .await?;
    machine
        .until_all("pods", "default", |pods| {
            let of_app: Vec<_> =
                pods.iter().filter(|it| it["metadata"]["labels"]["app"] == json!("productpage")).collect();
            let old = |it: &Value| before.iter().any(|old| old["metadata"]["uid"] == it["metadata"]["uid"]);
            of_app.len() == before.len()
                && !of_app.iter().any(|it| old(it))
                && of_app.iter().all(|it| is_ready(it) && shown(it) == (2, 2))
        })
        .await;
    flows(node).await?;
    done("a rolling restart has replaced productpage");
    Ok(())
}

/// Runs the program; what it says. It must end well.
async fn leno(kubeconfig: &Path, arguments: &str) -> Result<String, Box<dyn Error>> {
    let argv = std::iter::once(env!("CARGO_BIN_EXE_leno")).chain(arguments.split(' '));
    let spec = ProcessSpec {
        name: "leno".to_owned(),
        argv: argv.map(str::to_owned).collect(),
        environment: vec![("KUBECONFIG".to_owned(), kubeconfig.display().to_string())],
        ..ProcessSpec::default()
    };
    let (lines, mut said) = mpsc::channel(64);
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

/// As `kubectl apply --server-side`, in the namespace `default` if the object names none.
async fn apply(machine: &Machine, mut object: Value, is_dry_run: bool) -> Result<(), Box<dyn Error>> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = if kind == "Namespace" {
        Api::all_with(machine.client(), &resource)
    } else {
        if text("/metadata/namespace").is_empty() {
            object["metadata"]["namespace"] = json!("default");
        }
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        Api::namespaced_with(machine.client(), namespace, &resource)
    };
    let mut parameters = PatchParams::apply("kubectl");
    parameters.dry_run = is_dry_run;
    api.patch(&name, &parameters, &Patch::Apply(&object))
        .await
        .map(drop)
        .map_err(|error| format!("{kind} {name}: {error}").into())
}

/// What `kubectl get pods` shows as READY: how many containers are, of how many; native sidecars count.
fn shown(pod: &Value) -> (usize, usize) {
    let list = |path: &str| pod.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut inner = list("/spec/initContainers");
    inner.retain(|it| it["restartPolicy"] == json!("Always"));
    let mut statuses = list("/status/initContainerStatuses");
    statuses.retain(|status| inner.iter().any(|it| it["name"] == status["name"]));
    statuses.extend(list("/status/containerStatuses"));
    let ready = statuses.iter().filter(|it| it["ready"] == json!(true)).count();
    (ready, inner.len() + list("/spec/containers").len())
}

fn of_app(machine: &Machine, app: &str) -> Vec<Value> {
    let pods = machine.objects("pods", "default").into_iter();
    pods.filter(|it| it["metadata"]["labels"]["app"] == json!(app)).map(|it| Value::clone(&it)).collect()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|it| it["type"] == json!("Ready") && it["status"] == json!("True"))
}

/// Waits until all pods of a Deployment are.
async fn ready(machine: &Machine, namespace: &str, name: &str) {
    let is = |it: &Value| {
        let number = |path: &str| it.pointer(path).and_then(Value::as_i64).unwrap_or_default();
        number("/status/readyReplicas") >= number("/spec/replicas").max(1)
    };
    machine.until("deployments", namespace, name, is).await;
}

/// A page by way of the gateway and all services.
async fn flows(node: &Node) -> Result<(), Box<dyn Error>> {
    let gateway = SocketAddr::new(node.network().address.into(), 80);
    until("the gateway answers", || async move {
        let Ok((200, page)) = get(gateway, "/productpage").await else { return false };
        page.contains("Book Details") || page.contains("details")
    })
    .await;
    Ok(())
}

async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), Box<dyn Error>> {
    const LIMIT: Duration = Duration::from_secs(5);
    let stream = tokio::time::timeout(LIMIT, TcpStream::connect(address)).await??;
    let (status, body) = leno_kubelet::http::get(stream, "bookinfo.test", path, &[], LIMIT).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Tries until it holds: what other processes have learnt shows only by trying.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    while !holds().await {
        pause.tick().await;
    }
    println!("{what}");
}
