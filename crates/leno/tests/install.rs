//! Installation against an API server (testkit's, or the real one that `LENO_TEST_KUBECONFIG` names): each
//! profile, upgrades, revisions, tags, what goes wrong, and that nothing is left behind; what is rendered
//! against what was recorded, and against Helm where it is there.
//!
//! Nobody runs Pods here: [`Site::start`] plays the controller that says that Deployments are available.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use expect_test::expect;
use http::Request;
use leno_testkit::kube::Cluster;
use serde_json::{Value, json};

/// What something in the cluster may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A cluster, and what makes workloads available in it.
struct Site {
    cluster: Cluster,
    folder: tempfile::TempDir,
    client: kube::Client,
    /// Whether workloads become available.
    runs: Arc<AtomicBool>,
    controller: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

/// The kinds that are looked for.
const KINDS: [&str; 18] = [
    "api/v1/services",
    "api/v1/configmaps",
    "api/v1/secrets",
    "api/v1/serviceaccounts",
    "api/v1/resourcequotas",
    "apis/apps/v1/deployments",
    "apis/apps/v1/daemonsets",
    "apis/autoscaling/v2/horizontalpodautoscalers",
    "apis/policy/v1/poddisruptionbudgets",
    "apis/networking.k8s.io/v1/networkpolicies",
    "apis/coordination.k8s.io/v1/leases",
    "apis/rbac.authorization.k8s.io/v1/roles",
    "apis/rbac.authorization.k8s.io/v1/rolebindings",
    "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "apis/apiextensions.k8s.io/v1/customresourcedefinitions",
];

impl Site {
    async fn start() -> Site {
        let cluster = Cluster::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        cluster.write_kubeconfig(&folder.path().join("config")).expect("a kubeconfig");
        let kubeconfig = kube::config::Kubeconfig::from_yaml(cluster.kubeconfig()).expect("it is good");
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.expect("good");
        let client = kube::Client::try_from(config).expect("a client");
        let runs = Arc::new(AtomicBool::new(true));
        let controller = tokio::spawn(control(client.clone(), Arc::clone(&runs)));
        let site = Site { cluster, folder, client, runs, controller };
        if site.cluster.server().is_none() {
            // What other tests have left there.
            site.leno("uninstall --purge -y").await;
            site.until("Istio's kinds are gone", async || {
                let kinds =
                    items(&site.client, "apis/apiextensions.k8s.io/v1/customresourcedefinitions").await;
                !kinds
                    .iter()
                    .any(|kind| kind["spec"]["group"].as_str().is_some_and(|it| it.ends_with("istio.io")))
            })
            .await;
        }
        site
    }

    /// Runs the program; what it says, and whether all was well.
    async fn leno(&self, arguments: &str) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
        command.args(arguments.split_whitespace()).env("KUBECONFIG", self.folder.path().join("config"));
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("it runs").expect("it runs");
        (output.status.success(), said(&output))
    }

    /// As [`Site::leno`], which must go well.
    async fn good(&self, arguments: &str) -> String {
        let (good, text) = self.leno(arguments).await;
        assert!(good, "leno {arguments}: {text}");
        text
    }

    /// As [`Site::leno`], which must not go well.
    async fn bad(&self, arguments: &str) -> String {
        let (good, text) = self.leno(arguments).await;
        assert!(!good, "leno {arguments}: {text}");
        text
    }

    /// Everything that is in the cluster, as `services istio-system/istiod`.
    async fn all(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for kind in KINDS {
            for object in items(&self.client, kind).await {
                let text =
                    |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
                let plural = kind.rsplit('/').next().unwrap_or_default();
                // What the cluster itself puts into every namespace says nothing.
                if !matches!(text("/metadata/name").as_str(), "default" | "kube-root-ca.crt") {
                    all.insert(format!(
                        "{plural} {}/{}",
                        text("/metadata/namespace"),
                        text("/metadata/name")
                    ));
                }
            }
        }
        all
    }

    async fn has(&self, kind: &str, name: &str) -> bool {
        !self.find(kind, name).await.is_null()
    }

    /// An object of the control plane's namespace, or of none; `null` if there is none.
    async fn find(&self, kind: &str, name: &str) -> Value {
        self.cluster.find(&object(kind, name)).await
    }

    /// Changes a webhook configuration as somebody else would: the first webhook's.
    async fn change(&self, plural: &str, name: &str, path: &str, value: &str) {
        let patch = json!([{ "op": "add", "path": format!("/webhooks/0/{path}"), "value": value }]);
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}/{name}");
        let request = Request::patch(path).header("content-type", "application/json-patch+json");
        let request = request.body(patch.to_string().into_bytes()).expect("good");
        self.client.request::<Value>(request).await.expect("it is changed");
    }

    /// Waits for what takes a real cluster a moment.
    async fn until(&self, what: &str, mut look: impl AsyncFnMut() -> bool) {
        let looking = async {
            while !look().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("{what}: not in time"));
    }

    /// All that is left is what was there before.
    async fn is_as(&self, before: &BTreeSet<String>) {
        let mut more = Vec::new();
        let looking = async {
            loop {
                let all = self.all().await;
                more = all.symmetric_difference(before).cloned().collect();
                if more.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(LIMIT, looking).await;
        assert!(found.is_ok(), "others than before: {more:?}");
    }
}

/// Which object of the control plane's is meant.
fn object(kind: &str, name: &str) -> Value {
    let version = match kind {
        "Deployment" | "DaemonSet" => "apps/v1",
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            "admissionregistration.k8s.io/v1"
        }
        "Lease" => "coordination.k8s.io/v1",
        _ => "v1",
    };
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name } });
    if !kind.ends_with("WebhookConfiguration") && kind != "Namespace" {
        object["metadata"]["namespace"] = json!("istio-system");
    }
    object
}

async fn items(client: &kube::Client, path: &str) -> Vec<Value> {
    let request = Request::get(format!("/{path}")).body(Vec::new()).expect("good");
    let found = client.request::<Value>(request).await.unwrap_or_default();
    found["items"].as_array().cloned().unwrap_or_default()
}

/// Plays the controllers of workloads, as long as it is to run them.
async fn control(client: kube::Client, runs: Arc<AtomicBool>) {
    let mut clock = tokio::time::interval(Duration::from_millis(50));
    loop {
        clock.tick().await;
        if !runs.load(Ordering::SeqCst) {
            continue;
        }
        for plural in ["daemonsets", "deployments"] {
            for object in items(&client, &format!("apis/apps/v1/{plural}")).await {
                let generation = &object["metadata"]["generation"];
                if object["status"]["observedGeneration"] == *generation {
                    continue;
                }
                let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
                let status = match plural {
                    "daemonsets" => json!({ "observedGeneration": generation, "desiredNumberScheduled": 0,
                        "updatedNumberScheduled": 0, "numberAvailable": 0, "currentNumberScheduled": 0,
                        "numberMisscheduled": 0, "numberReady": 0 }),
                    _ => {
                        json!({ "observedGeneration": generation, "replicas": wanted, "updatedReplicas": wanted,
                        "readyReplicas": wanted, "availableReplicas": wanted })
                    }
                };
                let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
                let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
                let path = format!("/apis/apps/v1/namespaces/{namespace}/{plural}/{name}/status");
                let request = Request::patch(path).header("content-type", "application/merge-patch+json");
                let body = json!({ "status": status }).to_string().into_bytes();
                // It may be gone.
                let _ = client.request::<Value>(request.body(body).expect("good")).await;
            }
        }
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    text.concat()
}

/// The lines that say that something is done.
fn done(text: &str) -> String {
    let lines = text.lines().filter(|line| line.starts_with(['\u{2714}', '\u{2718}']));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_profile() {
    let site = Site::start().await;
    let before = site.all().await;
    for (profile, expected) in [
        (
            "demo",
            expect![[r"
                ✔ Leno core installed
                ✔ Lenod installed
                ✔ Ingress gateways installed
                ✔ Egress gateways installed
                ✔ Installation complete"]],
        ),
        (
            "minimal",
            expect![[r"
                ✔ Leno core installed
                ✔ Lenod installed
                ✔ Installation complete"]],
        ),
        ("empty", expect!["✔ Installation complete"]),
        (
            "default",
            expect![[r"
                ✔ Leno core installed
                ✔ Lenod installed
                ✔ Ingress gateways installed
                ✔ Installation complete"]],
        ),
        (
            "preview",
            expect![[r"
                ✔ Leno core installed
                ✔ Lenod installed
                ✔ Ingress gateways installed
                ✔ Installation complete"]],
        ),
    ] {
        let text = site.good(&format!("install -y --set profile={profile}")).await;
        expected.assert_eq(&done(&text));
        let text = site.good("verify-install").await;
        assert!(text.contains("Leno is installed and verified successfully"), "{text}");
        // Each profile is installed over the one before: what it does not have went.
        let gateway = profile != "minimal" && profile != "empty";
        assert_eq!(site.has("Deployment", "istio-ingressgateway").await, gateway, "{profile}");
        assert_eq!(site.has("Service", "istio-egressgateway").await, profile == "demo");
        assert_eq!(site.has("Deployment", "istiod").await, profile != "empty");
    }
    // What control planes write goes too.
    for (kind, name) in [("Secret", "istio-ca-secret"), ("Lease", "leno-status-leader")] {
        site.cluster.put(object(kind, name)).await;
    }
    site.cluster
        .put(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio-ca-root-cert",
        "namespace": "default", "labels": { "istio.io/config": "true" } } }))
        .await;
    let text = site.good("uninstall --purge -y").await;
    assert_eq!(done(&text), "\u{2714} Uninstall complete");
    // The namespace stays.
    site.is_as(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openshift_and_the_plugin() {
    let site = Site::start().await;
    // There is no multus in this cluster.
    let text = site.bad("install -y --set profile=openshift").await;
    assert!(text.contains("NetworkAttachmentDefinition"), "{text}");
    let text = site.good("install -y --set profile=minimal --set components.cni.enabled=true").await;
    assert!(text.contains("\u{2714} CNI installed"), "{text}");
    assert!(site.has("DaemonSet", "istio-cni-node").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_keep_what_was_said() {
    let site = Site::start().await;
    assert!(site.bad("upgrade -y").await.contains("there is no installation of revision \"default\""));
    site.good("install -y --set profile=demo --set values.pilot.env.A=1").await;
    let was = site.find("Deployment", "istiod").await;
    // The control plane has closed its webhook meanwhile, and somebody has scaled it.
    let validator = ("ValidatingWebhookConfiguration", "istio-validator-istio-system");
    for (path, value) in [("failurePolicy", "Fail"), ("clientConfig/caBundle", "eA==")] {
        site.change("validatingwebhookconfigurations", validator.1, path, value).await;
    }
    site.good("upgrade -y").await;
    let is = site.find("Deployment", "istiod").await;
    let env = is["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    assert!(env.as_array().is_some_and(|all| all.contains(&json!({ "name": "A", "value": "1" }))), "{env}");
    assert_eq!(is["metadata"]["uid"], was["metadata"]["uid"]);
    let webhook = site.find(validator.0, validator.1).await;
    assert_eq!(webhook["webhooks"][0]["failurePolicy"], "Fail");
    assert_eq!(webhook["webhooks"][0]["clientConfig"]["caBundle"], "eA==");
    site.good("upgrade -y --set profile=minimal").await;
    assert!(!site.has("Deployment", "istio-egressgateway").await);
    // What was changed or taken away is found.
    site.cluster.remove(&object("Service", "istiod")).await;
    let text = site.bad("verify-install").await;
    assert!(text.contains("\u{2718} Service: istiod.istio-system: it is not there"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_side_by_side() {
    let site = Site::start().await;
    site.good("install -y --set profile=minimal").await;
    let first = site.all().await;
    site.good("install -y --set profile=minimal --revision canary").await;
    for name in ["istiod", "istiod-canary"] {
        assert!(site.has("Deployment", name).await, "{name}");
    }
    assert!(site.has("ConfigMap", "istio-canary").await);
    assert!(
        site.bad("tag set prod --revision other").await.contains("there is no control plane of revision")
    );
    site.good("tag set prod --revision canary").await;
    let mut shop = object("Namespace", "shop");
    shop["metadata"]["labels"] = json!({ "istio.io/rev": "prod" });
    site.cluster.put(shop).await;
    let text = site.good("tag list").await;
    expect![[r"
        TAG  REVISION NAMESPACES
        prod canary   shop
    "]]
    .assert_eq(&text);
    assert!(site.bad("tag set prod --revision default").await.contains("use --overwrite"));
    site.good("tag set prod --revision default --overwrite").await;
    let tag = site.find("MutatingWebhookConfiguration", "istio-revision-tag-prod").await;
    assert_eq!(tag["webhooks"][0]["clientConfig"]["service"]["name"], "istiod");
    assert!(site.good("tag generate x --revision canary").await.contains("istio-revision-tag-x"));
    site.good("tag remove prod -y").await;
    assert!(site.bad("tag remove prod -y").await.contains("there is no tag \"prod\""));
    assert!(site.bad("uninstall --revision other -y").await.contains("could not find target revision"));
    site.good("uninstall --revision canary -y").await;
    assert_eq!(site.all().await, first);
    assert!(site.good("verify-install").await.contains("verified successfully"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_of_several_is_the_default() {
    let site = Site::start().await;
    let text = site.good("install -y --set profile=minimal --revision one").await;
    assert!(text.contains("Revision \"one\" is the default one now"), "{text}");
    let text = site.good("tag list -o json").await;
    let tags: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(tags, json!([{ "tag": "default", "revision": "one", "namespaces": [] }]));
    let validator = site.find("ValidatingWebhookConfiguration", "istiod-default-validator").await;
    assert_eq!(validator["webhooks"][0]["clientConfig"]["service"]["name"], "istiod-one");
    let text = site.good("install -y --set profile=minimal --revision two").await;
    assert!(!text.contains("is the default one now"), "{text}");
    site.good("tag set default --revision two --overwrite").await;
    let tags = site.good("tag list").await;
    assert!(tags.contains("default two"), "{tags}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_run_is_said_with_reasons() {
    let site = Site::start().await;
    site.runs.store(false, Ordering::SeqCst);
    site.cluster.put(object("ServiceAccount", "default")).await;
    let mut pod = object("Pod", "istiod-1");
    pod["metadata"]["labels"] = json!({ "app": "istiod", "istio": "pilot" });
    pod["spec"] = json!({ "containers": [{ "name": "discovery", "image": "x" }] });
    pod["status"] = json!({ "containerStatuses": [{ "name": "discovery", "image": "x", "imageID": "",
        "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } } }] });
    site.cluster.put(pod.clone()).await;
    let mut event = object("Event", "e");
    event["type"] = json!("Warning");
    event["reason"] = json!("FailedCreate");
    event["message"] = json!("quota");
    event["involvedObject"] =
        json!({ "kind": "ReplicaSet", "name": "istiod-1", "namespace": "istio-system" });
    site.cluster.put(event.clone()).await;
    let text = site.bad("install -y --set profile=minimal --readiness-timeout 1s").await;
    // A real cluster is there for the next test too.
    site.cluster.remove(&pod).await;
    site.cluster.remove(&event).await;
    for words in [
        "\u{2718} Lenod encountered an error: not ready after 1s",
        "Deployment/istio-system/istiod: 0 of 1 replicas are available",
        "Pod istiod-1: container discovery: ImagePullBackOff: no such image",
        "ReplicaSet istiod-1: FailedCreate: quota",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_changed_without_a_yes() {
    let site = Site::start().await;
    let before = site.all().await;
    // Nobody answers.
    assert!(site.bad("install --set profile=minimal").await.contains("Cancelled."));
    site.good("install --set profile=minimal --dry-run").await;
    assert!(site.bad("uninstall -y").await.contains("at least one of"));
    assert_eq!(site.all().await, before);
    if let Some(server) = site.cluster.server() {
        server.deny("*", "*", "rbac.authorization.k8s.io", "clusterroles");
        let text = site.bad("install -y --set profile=minimal").await;
        assert!(text.contains("ClusterRole/istiod-clusterrole-istio-system"), "{text}");
    }
}

/// What is rendered of each of these is recorded.
const MANIFESTS: [(&str, &str); 10] = [
    ("default", ""),
    ("demo", "--set profile=demo"),
    ("minimal", "--set profile=minimal"),
    ("empty", "--set profile=empty"),
    ("preview", "--set profile=preview"),
    ("openshift", "--set profile=openshift"),
    (
        "revision",
        "--set profile=minimal --revision canary --set values.revisionTags=[\"prod\",\"default\"] --set hub=h --set tag=t",
    ),
    (
        "signers",
        "--set profile=minimal --set values.pilot.env.EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API \
         --set values.pilot.env.CERT_SIGNER_DOMAIN=clusterissuers.cert-manager.io \
         --set values.pilot.env.PILOT_CERT_PROVIDER=k8s.io/clusterissuers.cert-manager.io/istio-system \
         --set values.pilot.env.USE_CACERTS_FOR_SELF_SIGNED_CA=true \
         --set values.global.certSigners=[\"clusterissuers.cert-manager.io/*\"]",
    ),
    (
        "large",
        "--set values.pilot.autoscaleMin=2 --set values.gateways.istio-ingressgateway.autoscaleMin=2 \
         --set values.gateways.istio-ingressgateway.type=NodePort --set values.global.networkPolicy.enabled=true \
         --set values.sidecarInjectorWebhook.enableNamespacesByDefault=true \
         --set components.pilot.k8s.resources.limits.cpu=2 --set components.pilot.k8s.hpaSpec.maxReplicas=9 \
         --set components.pilot.k8s.env[0].name=X --set components.pilot.k8s.env[0].value=y \
         --set meshConfig.accessLogFile=/dev/stdout",
    ),
    (
        "elsewhere",
        "--set values.global.istioNamespace=mesh --set components.cni.enabled=true --set components.cni.namespace=kube-system \
         --set components.ingressGateways[name:inner].enabled=true --set components.ingressGateways[name:inner].label.istio=inner \
         --set components.ingressGateways[name:inner].namespace=gateways --set values.defaultRevision=",
    ),
];

fn generate(arguments: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
    let output =
        command.args(["manifest", "generate"]).args(arguments.split_whitespace()).output().expect("it runs");
    assert!(output.status.success(), "{arguments}: {}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// The ConfigMap of injection without the templates, and without the values unless they are wanted.
fn shortened(document: &str, with_values: bool) -> String {
    let mut text = String::new();
    // Lines further in than this are left out.
    let mut hidden = None;
    for line in document.lines() {
        let indent = line.len() - line.trim_start().len();
        if hidden.is_some_and(|depth| line.trim().is_empty() || indent > depth) {
            continue;
        }
        let is_template = indent == 6 && line.ends_with('|');
        hidden = (is_template || (!with_values && line == "  values: |-")).then_some(indent);
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[test]
fn what_is_rendered() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install"));
    let mut wrong = Vec::new();
    for (name, arguments) in MANIFESTS {
        let mut text = String::new();
        for document in generate(arguments).split("---\n").filter(|it| !it.trim().is_empty()) {
            // The kinds are in deploy/charts/base/files/crds, the templates of injection have tests of their own.
            if document.contains("kind: CustomResourceDefinition") {
                let name = document.lines().find(|line| line.starts_with("  name: ")).unwrap_or_default();
                text.push_str(&format!("# CustomResourceDefinition {}\n---\n", name.trim()));
            } else {
                let is_injector = document.contains("name: istio-sidecar-injector");
                text.push_str(&if is_injector {
                    shortened(document, name == "default")
                } else {
                    document.to_owned()
                });
                text.push_str("---\n");
            }
        }
        let path = folder.join(format!("{name}.yaml"));
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::create_dir_all(folder).expect("a folder");
            std::fs::write(&path, &text).expect("written");
        } else if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "other than recorded: {wrong:?}; UPDATE_GOLDENS=1 writes them");
}

#[test]
fn what_is_refused() {
    for (arguments, expected) in [
        ("--set values.global.pilotCertProvider=kubernetes", "global.pilotCertProvider: nothing but istiod"),
        (
            "--set values.global.pilotCertProvider=k8s.io/example.com/mesh",
            "a signer of Kubernetes without pilot.env.EXTERNAL_CA",
        ),
        (
            "--set values.pilot.env.EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API",
            "pilot.env.EXTERNAL_CA without global.certSigners",
        ),
        ("--set profile=demi", "profile \"demi\" is not known"),
        ("--set values.global.proxy.tracer=lightstep", "\"lightstep\" is not supported"),
        ("--set values.global.logAsJson=true", "not supported yet: global.logAsJson"),
        ("--set values.global.proxy.clusterDomain=a.b", "nothing but cluster.local"),
        ("--set values.profile=unheard", "unknown profile \"unheard\""),
        ("--set values.global.platform=moon", "unknown platform \"moon\""),
        ("--set components.ztunnel.enabled=true", "not supported yet"),
        ("--set components.base.k8s.replicaCount=1", "the component has no workload"),
        ("--set values.cni.ambient.enabled=true --set components.cni.enabled=true", "cni.ambient.enabled"),
        ("-f /nowhere.yaml", "/nowhere.yaml"),
        ("-d charts", "--manifests is not supported"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
        let output = command
            .args(["manifest", "generate"])
            .args(arguments.split_whitespace())
            .output()
            .expect("it runs");
        let text = said(&output);
        assert!(!output.status.success() && text.contains(expected), "{arguments}: {text}");
    }
}

/// Helm renders the same: `$HELM_BIN` is one.
#[test]
fn helm_renders_the_same() {
    let Some(helm) = std::env::var_os("HELM_BIN") else {
        println!("skipped: HELM_BIN names no helm");
        return;
    };
    let charts = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/charts"));
    for (name, arguments) in MANIFESTS {
        // What the installer lays over is not Helm's.
        if arguments.contains(".k8s.") {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let ours = folder.path().join("ours.yaml");
        std::fs::write(&ours, generate(arguments)).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
        command.args(["manifest", "translate", "-o"]).arg(folder.path().join("values"));
        let output = command.args(arguments.split_whitespace()).output().expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        let mut theirs = String::new();
        for line in said(&output).lines().filter(|line| line.starts_with("helm ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |flag: &str| words.iter().position(|it| *it == flag).and_then(|at| words.get(at + 1));
            let chart = words.get(4).and_then(|it| it.rsplit('/').next()).expect("a chart");
            let mut command = Command::new(&helm);
            command.args(["template", "istio", "--kube-version", "1.33.0"]).arg(charts.join(chart));
            command.args([
                "--namespace",
                after("--namespace").expect("one"),
                "-f",
                after("-f").expect("one"),
            ]);
            let output = command.output().expect("helm runs");
            assert!(output.status.success(), "{name}: {line}: {}", said(&output));
            theirs.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        let path = folder.path().join("theirs.yaml");
        std::fs::write(&path, theirs).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
        let output = command.args(["manifest", "diff"]).arg(&ours).arg(&path).output().expect("it runs");
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
}
