//! Gateways that are deployed for Gateways of the Gateway API, against an API server: what is made exactly
//! (`tests/gateways/cases.yaml` and `.expected`: of the first case all of it, of the others in which lines they differ
//! from the first; `UPDATE_GOLDENS=1` writes them), and what becomes of it as things change.

#[path = "support/difference.rs"]
mod difference;
#[allow(dead_code)] // each test file uses a part of it
#[path = "support/site.rs"]
mod site;

use std::fmt::Write as _;
use std::path::Path;

use difference::difference;
use leno_control::server::Server;
use leno_testkit::kube::{ApiServer, definition};
use serde_json::{Value, json};
use site::{Site, until};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Group, plural and kind of what is made, in the order of the template.
const MADE: [(&str, &str, &str); 5] = [
    ("", "serviceaccounts", "ServiceAccount"),
    ("apps", "deployments", "Deployment"),
    ("", "services", "Service"),
    ("autoscaling", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    ("policy", "poddisruptionbudgets", "PodDisruptionBudget"),
];

/// A cluster with the kinds of the Gateway API.
async fn cluster() -> Site {
    let site = Site::start(&[]).await;
    for (plural, kind, scope) in [
        ("gatewayclasses", "GatewayClass", "Cluster"),
        ("gateways", "Gateway", "Namespaced"),
        ("listenersets", "ListenerSet", "Namespaced"),
    ] {
        site.api.put(definition("gateway.networking.k8s.io", plural, kind, scope, &["v1"]));
    }
    let group = "networking.istio.io";
    site.api.put(definition(group, "proxyconfigs", "ProxyConfig", "Namespaced", &["v1beta1"]));
    site
}

fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn gateway(namespace: &str) -> Value {
    json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "edge", "namespace": namespace },
        "spec": { "gatewayClassName": "istio", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] } })
}

/// Maps are merged, all else replaces.
fn over(base: &mut Value, changes: &Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) => {
            for (key, value) in changes {
                match base.get_mut(key) {
                    Some(old) => over(old, value),
                    None => drop(base.insert(key.clone(), value.clone())),
                }
            }
        }
        (base, changes) => *base = changes.clone(),
    }
}

/// An object as it was asked for: without what the server adds.
fn wish(mut object: Value, namespace: &str, uid: &str) -> String {
    object.as_object_mut().expect("an object").shift_remove("status");
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    for field in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"] {
        metadata.shift_remove(field);
    }
    if object["kind"] == "Service" {
        let spec = object["spec"].as_object_mut().expect("a spec");
        for field in ["clusterIP", "clusterIPs"] {
            spec.shift_remove(field);
        }
        for port in spec["ports"].as_array_mut().expect("ports") {
            // Those of the API server's choice differ from run to run.
            if port["nodePort"] != json!(30080) {
                port.as_object_mut().expect("a port").shift_remove("nodePort");
            }
        }
    }
    leno_gotemplate::yaml::text(&object).replace(namespace, "shop").replace(uid, "UID")
}

/// All that was made in a namespace.
fn made(api: &ApiServer, namespace: &str, names: &[String]) -> String {
    let uid = uid(api, namespace);
    let mut out = String::new();
    for (group, plural, _) in MADE {
        for name in names {
            if let Some(object) = api.find(group, plural, namespace, name) {
                let _ = writeln!(out, "{}---", wish(object, namespace, &uid));
            }
        }
    }
    out
}

fn uid(api: &ApiServer, namespace: &str) -> String {
    let gateway = api.find("gateway.networking.k8s.io", "gateways", namespace, "edge").expect("the Gateway");
    gateway["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

#[tokio::test]
async fn what_is_made_is_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateways");
    let text = std::fs::read_to_string(folder.join("cases.yaml")).expect("cases");
    let documents = leno_api::yaml::parse(&text, leno_api::yaml::Dialect::Kubernetes).expect("YAML");
    let cases: Vec<Value> = documents.iter().map(leno_api::yaml::Node::to_json).collect();
    assert!(cases.len() >= 15, "{} cases", cases.len());
    let site = cluster().await;
    for (index, case) in cases.iter().enumerate() {
        for key in case.as_object().expect("a mapping").keys() {
            assert!(
                ["case", "nothing", "gateway", "namespace", "objects", "shared"].contains(&key.as_str()),
                "{key}"
            );
        }
        let name = place(index);
        site.api.put(namespace(&name, case.get("namespace").unwrap_or(&json!({}))));
        for object in case["shared"].as_array().into_iter().flatten() {
            site.api
                .put(serde_json::from_str(&object.to_string().replace("NAMESPACE", &name)).expect("JSON"));
        }
        for object in case["objects"].as_array().into_iter().flatten() {
            let mut object = object.clone();
            object["metadata"]["namespace"] = json!(name);
            site.api.put(object);
        }
        let mut object = gateway(&name);
        over(&mut object, case.get("gateway").unwrap_or(&json!({})));
        site.api.put(object);
    }
    site.pilot().await;
    // They are seen to in the order of their names, so this one is the last.
    site.api.put(namespace("zzz", &json!({})));
    site.api.put(gateway("zzz"));
    until("the last Service", async || site.api.find("", "services", "zzz", "edge-istio")).await;
    let mut found = String::new();
    let mut first: Option<String> = None;
    for (index, case) in cases.iter().enumerate() {
        let namespace = place(index);
        let names = ["edge-istio", "edge-own", "front", "edge-account", "own"].map(str::to_owned);
        let outcome = made(&site.api, &namespace, &names);
        assert_eq!(outcome.is_empty(), case["nothing"] == json!(true), "{}", case["case"]);
        let shown = match &first {
            Some(first) if !outcome.is_empty() => difference(first, &outcome),
            _ => outcome.clone(),
        };
        first.get_or_insert(outcome);
        let _ = write!(found, "== {}\n{shown}\n", case["case"].as_str().expect("a name"));
    }
    let golden = folder.join("cases.expected");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&golden, &found).expect("written");
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(expected == found, "{}", difference(&expected, &found));
}

/// The namespace of a case.
fn place(index: usize) -> String {
    format!("case-{index:02}")
}

/// A running control plane that can be ended.
struct Replica {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Replica {
    async fn start(site: &Site) -> Replica {
        let server = Server::bind(site.config.clone()).await.expect("free ports");
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Replica { stop, task }
    }

    async fn end(self) {
        self.stop.send(()).expect("it runs");
        self.task.await.expect("it ends");
    }
}

/// Waits until a field of an object is so.
async fn until_field(site: &Site, what: (&str, &str), namespace: &str, path: &str, value: &Value) {
    until(&format!("{what:?} {path} {value}"), async || {
        let object = site.api.find(what.0, what.1, namespace, "edge-istio")?;
        (object.pointer(path) == Some(value)).then_some(())
    })
    .await;
}

const SERVICE: (&str, &str) = ("", "services");
const DEPLOYMENT: (&str, &str) = ("apps", "deployments");
const IMAGE: &str = "/spec/template/spec/containers/0/image";

#[tokio::test]
async fn what_was_made_follows() {
    let site = cluster().await;
    let api = &site.api;
    let first = Replica::start(&site).await;
    // The classes, once there are classes.
    for class in ["istio", "istio-remote"] {
        let find = async || api.find("gateway.networking.k8s.io", "gatewayclasses", "", class);
        let made = until(class, find).await;
        let controller = made["spec"]["controllerName"].as_str();
        assert!(controller.is_some_and(|it| it.starts_with("istio.io/")), "{made}");
        api.remove("gateway.networking.k8s.io", "gatewayclasses", "", class);
        until("it is made again", find).await;
    }
    let mut edge = gateway("default");
    api.put(edge.clone());
    until_field(&site, SERVICE, "default", "/spec/type", &json!("LoadBalancer")).await;
    let lease = api.find("coordination.k8s.io", "leases", "istio-system", "leno-gateway-deployment-leader");
    assert!(lease.is_some(), "only the leader acts");
    let owned =
        until("the Deployment", async || api.find("apps", "deployments", "default", "edge-istio")).await;
    let managers = owned["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let manager = |it: &Value| it["manager"] == "istio.io/gateway-controller" && it["operation"] == "Apply";
    assert!(managers.iter().any(manager), "{managers:?}");
    // It says by which rules, where istiod does.
    let claimed = api.take_seen();
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways/edge/status";
    assert!(claimed.iter().any(|it| it.method == "PATCH" && it.path == path), "{claimed:?}");

    // Listeners, annotations.
    edge["spec"]["listeners"] = json!([{ "name": "web", "port": 8080, "protocol": "HTTP" }]);
    edge["metadata"]["annotations"] = json!({ "networking.istio.io/service-type": "ClusterIP" });
    api.put(edge.clone());
    until_field(&site, SERVICE, "default", "/spec/type", &json!("ClusterIP")).await;
    let service = api.find("", "services", "default", "edge-istio").expect("it is there");
    let ports = service["spec"]["ports"].as_array().expect("ports");
    let ports: Vec<_> = ports.iter().map(|port| (port["name"].clone(), port["port"].clone())).collect();
    assert_eq!(ports, [(json!("status-port"), json!(15021)), (json!("web"), json!(8080))]);

    // What somebody else changes of ours is mended, what he adds stays, what he takes away comes again.
    let mut object = api.find("apps", "deployments", "default", "edge-istio").expect("it is there");
    object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("example/other:1");
    object["metadata"]["annotations"]["added"] = json!("yes");
    api.put(object);
    until("our image", async || {
        let object = api.find("apps", "deployments", "default", "edge-istio")?;
        let image = object.pointer(IMAGE)?.as_str()?;
        assert_eq!(object["metadata"]["annotations"]["added"], "yes");
        image.contains("leno").then_some(())
    })
    .await;
    api.remove("", "services", "default", "edge-istio");
    until_field(&site, SERVICE, "default", "/spec/type", &json!("ClusterIP")).await;

    // A ConfigMap comes, changes, and goes.
    edge["spec"]["infrastructure"] =
        json!({ "parametersRef": { "group": "", "kind": "ConfigMap", "name": "more" } });
    api.put(edge.clone());
    for replicas in [2, 3] {
        let overlay = format!("spec: {{replicas: {replicas}}}");
        api.put(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "more", "namespace": "default" },
            "data": { "deployment": overlay } }));
        until_field(&site, DEPLOYMENT, "default", "/spec/replicas", &json!(replicas)).await;
    }

    // The settings of injection.
    let mesh = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio", "namespace": "istio-system" },
        "data": { "mesh": "defaultConfig: {image: {imageType: debug}}" } });
    api.put(mesh);
    until("the image of now", async || {
        let object = api.find("apps", "deployments", "default", "edge-istio")?;
        object.pointer(IMAGE)?.as_str()?.ends_with("-debug").then_some(())
    })
    .await;

    // An API server that does not do it is asked again; and the one after the leader goes on.
    api.fail(leno_testkit::kube::Fault::on(500, |seen| {
        seen.method == "PATCH" && seen.path.contains("/namespaces/other/services")
    }));
    let second = Replica::start(&site).await;
    api.put(gateway("other"));
    until("all that can be made", async || api.find("apps", "deployments", "other", "edge-istio")).await;
    first.end().await;
    api.heal();
    until_field(&site, SERVICE, "other", "/spec/type", &json!("LoadBalancer")).await;

    // All goes with the Gateway.
    api.remove("gateway.networking.k8s.io", "gateways", "default", "edge");
    until("nothing is left", async || {
        let left =
            MADE.iter().any(|(group, plural, _)| api.find(group, plural, "default", "edge-istio").is_some());
        (!left).then_some(())
    })
    .await;
    second.end().await;
}

/// Names lead nowhere but to objects of their namespace, and what cannot be made holds up nobody.
#[tokio::test]
async fn names_lead_nowhere_else() {
    let site = cluster().await;
    let api = &site.api;
    let replica = Replica::start(&site).await;
    let names = [
        "../../../kube-system/deployments/dns",
        "..",
        "edge?fieldManager=x&",
        "edge%2f..%2f..",
        "edge/status",
        "Edge",
        "edge\n  namespace: kube-system",
    ];
    for (index, name) in names.iter().enumerate() {
        let mut named = gateway("default");
        named["metadata"]["name"] = json!(format!("a{index}"));
        named["metadata"]["annotations"] = json!({ "gateway.istio.io/name-override": name });
        api.put(named);
        let mut account = gateway("default");
        account["metadata"]["name"] = json!(format!("b{index}"));
        account["metadata"]["annotations"] = json!({ "gateway.istio.io/service-account": name });
        api.put(account);
        let mut overlaid = gateway("default");
        overlaid["metadata"]["name"] = json!(format!("c{index}"));
        overlaid["spec"]["infrastructure"] =
            json!({ "parametersRef": { "group": "", "kind": "ConfigMap", "name": name } });
        api.put(overlaid);
    }
    let mut seen = Vec::new();
    api.put(gateway("default"));
    until("the one that can be made", async || {
        seen.extend(api.take_seen());
        api.find("", "services", "default", "edge-istio")
    })
    .await;
    seen.extend(api.take_seen());
    for it in &seen {
        let is_clean =
            !it.path.contains("..") && !it.path.contains('%') && !it.path.ends_with("/edge/status");
        let is_claim = it.method == "PATCH" && it.path.ends_with("/gateways/edge/status");
        assert!(is_clean || is_claim, "{it:?}");
        assert!(!it.query.contains("..") && !it.query.contains("fieldManager=x"), "{it:?}");
    }
    assert_eq!(api.count("apps", "deployments"), 1);
    replica.end().await;
}
