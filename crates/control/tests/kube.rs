//! The whole control plane on a cluster: ready when it is known, what it serves, and status written
//! back.

use std::time::Duration;

use leno_control::server::{Config, Kubernetes, Server};
use leno_testkit::http::Client;
use leno_testkit::kube::{ApiServer, Fault};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(60);

struct Fixture {
    api: ApiServer,
    http: std::net::SocketAddr,
    _stop: oneshot::Sender<()>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(api: ApiServer) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig).unwrap();
        let mut config = Config::new(Vec::new());
        config.grpc_addr = "127.0.0.1:0".parse().unwrap();
        config.http_addr = "127.0.0.1:0".parse().unwrap();
        config.kubernetes =
            Some(Kubernetes { kubeconfig: Some(kubeconfig), write_status: true, ..Kubernetes::default() });
        let server = Server::bind(config).await.unwrap();
        let http = server.http_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Fixture { api, http, _stop: stop, _folder: folder }
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

    async fn until_stored(&self, name: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found =
                self.api.find("networking.istio.io", "virtualservices", "default", name).unwrap_or_default();
            if holds(&found) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found}");
            tokio::task::yield_now().await;
        }
    }
}

fn rule(name: &str, hosts: &Value) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": name, "namespace": "default", "generation": 3 },
        "spec": { "hosts": hosts, "http": [{ "route": [{ "destination": { "host": "kubernetes" } }] }] } })
}

#[tokio::test]
async fn a_cluster_is_served_and_told_what_is_wrong() {
    let api = ApiServer::start().await.unwrap();
    api.put(json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "virtualservices.networking.istio.io" },
        "spec": { "group": "networking.istio.io", "scope": "Namespaced",
            "names": { "plural": "virtualservices", "kind": "VirtualService" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } }));
    api.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}");
    api.put(rule("good", &json!(["kubernetes"])));
    api.put(rule("bad", &json!("none")));
    api.fail(Fault::on(503, |seen| seen.path.contains("pods")));
    let fixture = Fixture::new(api).await;
    assert_eq!(fixture.get("/ready").await.0, 503);
    fixture.api.heal();
    fixture.until("/ready", |status, _| status == 200).await;
    let (_, registry) = fixture.get("/debug/registryz").await;
    assert!(registry.contains("kubernetes.default.svc"), "{registry}");
    let is_broken = |body: &str| {
        let all: Vec<Value> = serde_json::from_str(body).unwrap();
        all.iter().any(|it| it["name"] == "bad" && it["severity"] == "error")
    };
    fixture.until("/debug/diagnostics", |_, body| is_broken(body)).await;
    fixture
        .until_stored("bad", |found| {
            found["status"]["conditions"][0]["status"] == "False"
                && found["status"]["validationMessages"][0]["level"] == "ERROR"
        })
        .await;
    fixture.api.put(rule("bad", &json!(["kubernetes.default"])));
    fixture.until("/debug/diagnostics", |_, body| !is_broken(body)).await;
    fixture
        .until_stored("bad", |found| {
            found["status"]["conditions"][0]["status"] == "True" && found["status"]["observedGeneration"] == 3
        })
        .await;
    // What was read is shown, as far as people write it.
    let (_, config) = fixture.get("/debug/configz").await;
    let config: Vec<Value> = serde_json::from_str(&config).unwrap();
    let shown = config.iter().find(|object| object["metadata"]["name"] == "good").unwrap();
    assert_eq!(shown["spec"]["hosts"][0], "kubernetes");
    assert_eq!(shown.pointer("/metadata/managedFields"), None);
    assert_eq!(
        fixture.api.find("networking.istio.io", "virtualservices", "default", "good").unwrap()["spec"]["hosts"]
            [0],
        "kubernetes"
    );
}

#[tokio::test]
async fn what_became_of_the_gateway_apis_objects_is_written() {
    let api = ApiServer::start().await.unwrap();
    for (plural, kind, scope) in [
        ("gatewayclasses", "GatewayClass", "Cluster"),
        ("gateways", "Gateway", "Namespaced"),
        ("httproutes", "HTTPRoute", "Namespaced"),
    ] {
        api.put(json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.gateway.networking.k8s.io") },
            "spec": { "group": "gateway.networking.k8s.io", "scope": scope,
                "names": { "plural": plural, "kind": kind },
                "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } }));
    }
    api.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}");
    let object = |kind: &str, spec: Value| {
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": { "name": "it", "namespace": "default", "generation": 2 }, "spec": spec })
    };
    let mut class = object("GatewayClass", json!({ "controllerName": "istio.io/gateway-controller" }));
    class["metadata"].as_object_mut().unwrap().remove("namespace");
    api.put(class);
    let listener = json!({ "name": "web", "port": 80, "protocol": "HTTP" });
    api.put(object("Gateway", json!({ "gatewayClassName": "it", "listeners": [listener] })));
    let mut route = object(
        "HTTPRoute",
        json!({ "parentRefs": [{ "name": "it", "sectionName": "web" }],
            "rules": [{ "backendRefs": [{ "name": "nowhere", "port": 80 }] }] }),
    );
    // Another controller has something to say of the route too.
    let other =
        json!({ "parentRef": { "name": "x" }, "controllerName": "example.com/other", "conditions": [] });
    route["status"] = json!({ "parents": [other] });
    api.put(route);
    let fixture = Fixture::new(api).await;
    let until = async |plural: &str, namespace: &str, holds: &dyn Fn(&Value) -> bool| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found =
                fixture.api.find("gateway.networking.k8s.io", plural, namespace, "it").unwrap_or_default();
            if holds(&found["status"]) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found}");
            tokio::task::yield_now().await;
        }
    };
    until("gatewayclasses", "", &|status| {
        status["conditions"][0]["type"] == "Accepted" && status["conditions"][0]["observedGeneration"] == 2
    })
    .await;
    until("gateways", "default", &|status| {
        let listener = &status["listeners"][0];
        listener["name"] == "web"
            && listener["attachedRoutes"] == 1
            && listener["supportedKinds"][0]["group"] == "gateway.networking.k8s.io"
    })
    .await;
    until("httproutes", "default", &|status| {
        let parents = status["parents"].as_array().cloned().unwrap_or_default();
        let own = parents.iter().find(|parent| parent["controllerName"] == "istio.io/gateway-controller");
        let resolved = own.is_some_and(|own| {
            own["parentRef"]["sectionName"] == "web"
                && own["conditions"][1]["reason"] == "BackendNotFound"
                && own["conditions"][1]["lastTransitionTime"].is_string()
        });
        resolved && parents.iter().any(|parent| parent["controllerName"] == "example.com/other")
    })
    .await;
}
