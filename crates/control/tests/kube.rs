//! The whole control plane on a cluster: ready when it is known, what it serves, and status written
//! back. It is testkit's API server, or the real one that `LENO_TEST_KUBECONFIG` names.

use std::time::Duration;

use leno_control::server::{Config, Kubernetes, Server};
use leno_testkit::http::Client;
use leno_testkit::kube::{Cluster, Fault, definition};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane on a cluster.
struct Fixture {
    http: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(cluster: &Cluster) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        cluster.write_kubeconfig(&kubeconfig).unwrap();
        let mut config = Config::new(Vec::new());
        config.grpc_addr = "127.0.0.1:0".parse().unwrap();
        config.http_addr = "127.0.0.1:0".parse().unwrap();
        config.kubernetes = Some(Kubernetes {
            kubeconfig: Some(kubeconfig),
            // Each test has a leader of its own, as each has a root namespace.
            namespace: cluster.namespace().to_owned(),
            write_status: true,
            ..Kubernetes::default()
        });
        let server = Server::bind(config).await.unwrap();
        let http = server.http_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Fixture { http, stop, task, _folder: folder }
    }

    /// Ends it in order.
    async fn end(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut client = Client::connect(self.http).await.unwrap();
        client.call(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await.unwrap()
    }

    async fn until(&self, path: &str, holds: impl Fn(u16, &str) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (status, body) = self.get(path).await;
            if holds(status, &body) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path}: {status} {body}");
        }
    }
}

/// Waits until an object is stored so.
async fn until_stored(cluster: &Cluster, object: &Value, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = cluster.find(object).await;
        if holds(&found) {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{found:#}");
        tokio::task::yield_now().await;
    }
}

fn rule(cluster: &Cluster, name: &str, hosts: &Value) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": cluster.metadata(name),
        "spec": { "hosts": hosts, "http": [{ "route": [{ "destination": { "host": "kubernetes.default.svc.cluster.local" } }] }] } })
}

async fn istio() -> Cluster {
    let cluster = Cluster::start().await;
    let versions = ["v1", "v1beta1", "v1alpha3"];
    let rules =
        definition("networking.istio.io", "virtualservices", "VirtualService", "Namespaced", &versions);
    cluster.put(rules).await;
    cluster
}

/// The status of the condition of one of Istio's objects, and for which generation it is.
fn reconciled(found: &Value) -> (&str, Option<i64>) {
    let status = found.pointer("/status/conditions/0/status").and_then(Value::as_str).unwrap_or_default();
    (status, found.pointer("/status/observedGeneration").and_then(Value::as_i64))
}

#[tokio::test]
async fn a_cluster_is_served_and_told_what_is_wrong() {
    let cluster = istio().await;
    let good = cluster.put(rule(&cluster, "good", &json!(["a.example.com"]))).await;
    let bad = cluster.put(rule(&cluster, "bad", &json!("none"))).await;
    if let Some(server) = cluster.server() {
        server.fail(Fault::on(503, |seen| seen.path.contains("pods")));
    }
    let fixture = Fixture::new(&cluster).await;
    if let Some(server) = cluster.server() {
        assert_eq!(fixture.get("/ready").await.0, 503);
        server.heal();
    }
    fixture.until("/ready", |status, _| status == 200).await;
    let (_, registry) = fixture.get("/debug/registryz").await;
    assert!(registry.contains("kubernetes.default.svc"), "{registry}");
    let is_broken = |body: &str| {
        let all: Vec<Value> = serde_json::from_str(body).unwrap();
        let own = all.iter().filter(|it| it["namespace"] == cluster.namespace());
        own.into_iter().any(|it| it["name"] == "bad" && it["severity"] == "error")
    };
    fixture.until("/debug/diagnostics", |_, body| is_broken(body)).await;
    until_stored(&cluster, &bad, |found| {
        reconciled(found).0 == "False" && found["status"]["validationMessages"][0]["level"] == "ERROR"
    })
    .await;
    let mended = cluster.put(rule(&cluster, "bad", &json!(["b.example.com"]))).await;
    assert_ne!(mended["metadata"]["generation"], bad["metadata"]["generation"]);
    fixture.until("/debug/diagnostics", |_, body| !is_broken(body)).await;
    until_stored(&cluster, &bad, |found| {
        reconciled(found) == ("True", mended["metadata"]["generation"].as_i64())
    })
    .await;
    // What was read is shown, as far as people write it.
    let (_, config) = fixture.get("/debug/configz").await;
    let config: Vec<Value> = serde_json::from_str(&config).unwrap();
    let is_it = |object: &&Value| {
        object["metadata"]["name"] == "good" && object["metadata"]["namespace"] == cluster.namespace()
    };
    let shown = config.iter().find(is_it).unwrap();
    assert_eq!(shown["spec"]["hosts"][0], "a.example.com");
    assert_eq!(shown.pointer("/metadata/managedFields"), None);
    assert_eq!(cluster.find(&good).await["spec"]["hosts"][0], "a.example.com");
    fixture.end().await;
}

#[tokio::test]
async fn what_is_deleted_and_created_again_has_a_status_again() {
    let cluster = istio().await;
    let all = [
        rule(&cluster, "good", &json!(["a.example.com"])),
        rule(&cluster, "bad", &json!("none")),
        // In use, with something to be said of it.
        rule(&cluster, "warned", &json!(["a.example.com"])),
    ];
    let mut warned = all[2].clone();
    warned["spec"]["htpp"] = json!([]);
    let all = [&all[0], &all[1], &warned];
    for object in all {
        cluster.put(object.clone()).await;
    }
    let fixture = Fixture::new(&cluster).await;
    let mut before: Vec<Value> = Vec::new();
    // As often as there are ways: one is told of both, or of what is there in the end, or of nothing new.
    for round in 0..4 {
        for (number, object) in all.into_iter().enumerate() {
            let found = until_stored(&cluster, object, |found| !reconciled(found).0.is_empty()).await;
            match before.get(number) {
                None => before.push(found),
                Some(last) => {
                    assert_ne!(found["metadata"]["uid"], last["metadata"]["uid"], "round {round}");
                    assert_eq!(reconciled(&found).0, reconciled(last).0, "round {round}");
                    before[number] = found;
                }
            }
        }
        for object in all {
            cluster.remove(object).await;
            if round == 1 {
                // All that is known of the old one ends before the new one comes.
                let path = "/debug/diagnostics";
                fixture
                    .until(path, |_, body| {
                        let all: Vec<Value> = serde_json::from_str(body).unwrap();
                        !all.iter().any(|it| {
                            it["namespace"] == cluster.namespace() && it["name"] == object["metadata"]["name"]
                        })
                    })
                    .await;
            }
            if let (2, Some(server)) = (round, cluster.server()) {
                // It is told what there is, and nothing of what there was.
                server.drop_watches();
                server.compact();
            }
            let stored = cluster.put(object.clone()).await;
            assert_eq!(stored["status"], Value::Null);
        }
    }
    for (object, last) in all.into_iter().zip(&before) {
        let found = until_stored(&cluster, object, |found| !reconciled(found).0.is_empty()).await;
        assert_eq!(reconciled(&found).0, reconciled(last).0);
    }
    fixture.end().await;
}

#[tokio::test]
async fn the_next_leads_at_once_and_knows_what_is_wrong() {
    let cluster = istio().await;
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": cluster.metadata("leno-status-leader") });
    let object = cluster.put(rule(&cluster, "it", &json!("none"))).await;
    let first = Fixture::new(&cluster).await;
    until_stored(&cluster, &object, |found| reconciled(found).0 == "False").await;
    let second = Fixture::new(&cluster).await;
    second.until("/ready", |status, _| status == 200).await;
    let holder = cluster.find(&lease).await["spec"]["holderIdentity"].clone();
    first.end().await;
    let given = cluster.find(&lease).await["spec"]["holderIdentity"].clone();
    assert!(given != holder, "{given} still leads");
    // What is mended while nobody looks is said to be well by who comes next.
    second.end().await;
    cluster.put(rule(&cluster, "it", &json!(["a.example.com"]))).await;
    let third = Fixture::new(&cluster).await;
    until_stored(&cluster, &object, |found| reconciled(found).0 == "True").await;
    third.end().await;
}

#[tokio::test]
async fn our_definitions_are_good_ones() {
    let cluster = Cluster::start().await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/charts/base/files/crds");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let documents = leno_api::yaml::parse(&text, leno_api::yaml::Dialect::Kubernetes).unwrap();
        for document in documents.iter().filter(|document| !document.is_null()) {
            let stored = cluster.dry_run(document.to_json()).await;
            stored.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 13, "{count}");
}

#[tokio::test]
async fn what_became_of_the_gateway_apis_objects_is_written() {
    let cluster = Cluster::start().await;
    for (plural, kind, scope) in [
        ("gatewayclasses", "GatewayClass", "Cluster"),
        ("gateways", "Gateway", "Namespaced"),
        ("httproutes", "HTTPRoute", "Namespaced"),
    ] {
        cluster.put(definition("gateway.networking.k8s.io", plural, kind, scope, &["v1"])).await;
    }
    let name = cluster.namespace();
    let object = |kind: &str, spec: Value| {
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": cluster.metadata(name),
            "spec": spec })
    };
    let mut class = object("GatewayClass", json!({ "controllerName": "istio.io/gateway-controller" }));
    class["metadata"].as_object_mut().unwrap().remove("namespace");
    cluster.put(class.clone()).await;
    let listener = json!({ "name": "web", "port": 80, "protocol": "HTTP" });
    let gateway = object("Gateway", json!({ "gatewayClassName": name, "listeners": [listener.clone()] }));
    cluster.put(gateway.clone()).await;
    let mut route = object(
        "HTTPRoute",
        json!({ "parentRefs": [{ "name": name, "sectionName": "web" }],
            "rules": [{ "backendRefs": [{ "name": "nowhere", "port": 80 }] }] }),
    );
    // Another controller has something to say of the route too.
    let other =
        json!({ "parentRef": { "name": "x" }, "controllerName": "example.com/other", "conditions": [] });
    route["status"] = json!({ "parents": [other] });
    cluster.put(route.clone()).await;
    let fixture = Fixture::new(&cluster).await;
    until_stored(&cluster, &class, |found| {
        let condition = &found["status"]["conditions"][0];
        condition["type"] == "Accepted" && condition["observedGeneration"] == found["metadata"]["generation"]
    })
    .await;
    until_stored(&cluster, &gateway, |found| {
        let listener = &found["status"]["listeners"][0];
        listener["name"] == "web"
            && listener["attachedRoutes"] == 1
            && listener["supportedKinds"][0]["group"] == "gateway.networking.k8s.io"
    })
    .await;
    let parents = |found: &Value| found["status"]["parents"].as_array().cloned().unwrap_or_default();
    let of = |parents: &[Value], controller: &str| -> Option<Value> {
        parents.iter().find(|parent| parent["controllerName"] == controller).cloned()
    };
    until_stored(&cluster, &route, |found| {
        let parents = parents(found);
        let resolved = of(&parents, "istio.io/gateway-controller").is_some_and(|own| {
            own["parentRef"]["sectionName"] == "web"
                && own["conditions"][1]["reason"] == "BackendNotFound"
                && own["conditions"][1]["lastTransitionTime"].is_string()
        });
        resolved && of(&parents, "example.com/other").is_some()
    })
    .await;
    // It turns to another: what we said of it goes, and the other's word stays.
    let mut elsewhere =
        object("Gateway", json!({ "gatewayClassName": "elsewhere", "listeners": [listener] }));
    elsewhere["metadata"]["name"] = json!("x");
    cluster.put(elsewhere).await;
    route.as_object_mut().unwrap().remove("status");
    route["spec"]["parentRefs"] = json!([{ "name": "x" }]);
    cluster.put(route.clone()).await;
    until_stored(&cluster, &route, |found| {
        let parents = parents(found);
        of(&parents, "istio.io/gateway-controller").is_none() && of(&parents, "example.com/other").is_some()
    })
    .await;
    cluster.remove(&class).await;
    fixture.end().await;
}
