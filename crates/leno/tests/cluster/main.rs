//! A mesh in a cluster, as its user sees it: `leno install`, a namespace with a label, samples/bookinfo. Beneath are
//! an API server with controllers and a kubelet (`testkit::kubelet`). Pods show 2/2, requests flow, also with STRICT
//! mTLS; what is wrong is refused; a gateway is deployed for a Gateway of the Gateway API (`gateways.rs`). Then, under
//! load (`load.rs`), everything is restarted and dies (`rollouts.rs`), is upgraded and moved to another revision (`revisions.rs`), and in the end nothing is left.
//!
//! Everything runs in namespaces of its own; this binary is the runner and the process inside, depending on its
//! arguments, hence its own `main`. Nothing is put past the API server: admission runs as it does for users.

#![cfg(target_os = "linux")]

mod gateways;
mod load;
mod revisions;
mod rollouts;
mod site;

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leno_api::yaml::{Dialect, parse};
use leno_kubelet::{Image, Images};
use leno_node::{Bind, InnerSpec, Line, Mode, Network, Node, Outer, Support, support};
use leno_testkit::kubelet::{Machine, Setup};
use serde_json::json;
use tokio::sync::mpsc;

use self::load::Load;
use self::site::{Site, get, has_label, shown, until};

/// Everything together; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(480);
/// The same with Kubernetes' own programs, which are slower.
const LIMIT_REAL: Duration = Duration::from_secs(900);

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
        let machine = Machine::start(&node, setup).await;
        if machine.is_err() {
            for line in said.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                eprintln!("{line}");
            }
        }
        let machine = machine?;
        let limit =
            if std::env::var_os(leno_testkit::kubelet::VARIABLE).is_some() { LIMIT_REAL } else { LIMIT };
        let outcome = match tokio::time::timeout(limit, story(&machine, &node, folder.path())).await {
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

/// What is installed: small, two of everything.
const SETTINGS: &str = "--set profile=demo --set components.egressGateways[name:istio-egressgateway].enabled=false \
    --set meshConfig.defaultConfig.terminationDrainDuration=3s --set components.pilot.k8s.replicaCount=2 \
    --set components.ingressGateways[name:istio-ingressgateway].k8s.replicaCount=2";

async fn story(machine: &Machine, node: &Node, folder: &Path) -> Result<(), Box<dyn Error>> {
    let site = Site::new(machine, node, folder.join("kubeconfig"))?;
    let before = site.all().await?;
    let text = site.leno(&format!("install {SETTINGS} -y")).await?;
    for line in ["Leno core installed", "Ingress gateways installed", "Installation complete"] {
        if !text.contains(line) {
            return Err(format!("leno install does not say {line:?}: {text}").into());
        }
    }
    site.done("installed");
    bookinfo(&site).await?;
    gateways::story(&site).await?;
    let load = Load::start(site.gateway());
    rollouts::story(&site, &load).await?;
    revisions::story(&site, &load, SETTINGS).await?;
    drop(load);
    revisions::end(&site, &before).await
}

/// The sample, first with what Istio's tutorial does to it.
async fn bookinfo(site: &Site<'_>) -> Result<(), Box<dyn Error>> {
    let label = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "default", "labels": { "istio-injection": "enabled" } } });
    site.apply(label, false).await?;
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo");
    for file in ["bookinfo.yaml", "gateway.yaml"] {
        let text = std::fs::read_to_string(format!("{samples}/{file}"))?;
        let documents = parse(&text, Dialect::Kubernetes).map_err(|error| error.to_string())?;
        for document in documents.iter().filter(|it| !it.is_null()) {
            let mut object = document.to_json();
            if [json!("productpage-v1"), json!("details-v1")].contains(&object["metadata"]["name"]) {
                object = rollouts::prepared(object);
            }
            site.apply(object, false).await?;
        }
    }
    let names = ["details-v1", "productpage-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
    for name in names {
        site.ready("default", name).await;
    }
    // The first try of a Pod may have failed before the injector was there; none must have come through without it.
    let pods = site.machine.objects("pods", "default");
    for pod in &pods {
        if shown(pod) != (2, 2) {
            return Err(format!("{}: {:?}", pod["metadata"]["name"], shown(pod)).into());
        }
    }
    site.done(&format!("{} pods show 2/2", pods.len()));
    site.flows().await;
    site.done("requests flow");

    // No route at all.
    let wrong = json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "wrong", "namespace": "default" }, "spec": { "hosts": ["details"] } });
    until("a VirtualService without routes is refused", || async {
        let refused = site.apply(wrong.clone(), true).await.err().map(|error| error.to_string());
        refused.is_some_and(|words| words.contains("denied the request"))
    })
    .await;

    let strict = json!({ "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": "istio-system" },
        "spec": { "mtls": { "mode": "STRICT" } } });
    site.apply(strict, false).await?;
    let address = pods.iter().find(|it| has_label(it, "app", "details"));
    let address = address.and_then(|it| it["status"]["podIP"].as_str()).ok_or("details has no address")?;
    let plain = SocketAddr::new(address.parse()?, 9080);
    until("plaintext is refused", || async move { get(plain, "/details/0").await.is_err() }).await;
    for rule in rollouts::rules() {
        site.apply(rule, false).await?;
    }
    site.flows().await;
    site.done("with STRICT mTLS plaintext is refused, and requests flow");
    Ok(())
}
