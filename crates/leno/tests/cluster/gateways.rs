//! The way in by the Gateway API, as Istio's tutorial has it: a Gateway and a route are applied, a gateway is deployed
//! for them, and says where it is when it serves.

use std::error::Error;
use std::net::SocketAddr;

use leno_api::yaml::{Dialect, parse};
use leno_testkit::kube::definition;
use serde_json::{Value, json};

use crate::site::{Site, get, until};

const GROUP: &str = "gateway.networking.k8s.io";
const VERSION: &str = "gateway.networking.k8s.io/v1";
const CRDS: &str = "apiextensions.k8s.io/v1";
const KINDS: [(&str, &str, &str); 3] = [
    ("gatewayclasses", "GatewayClass", "Cluster"),
    ("gateways", "Gateway", "Namespaced"),
    ("httproutes", "HTTPRoute", "Namespaced"),
];

pub(crate) async fn story(site: &Site<'_>) -> Result<(), Box<dyn Error>> {
    for (plural, kind, scope) in KINDS {
        site.apply(definition(GROUP, plural, kind, scope, &["v1"]), false).await?;
    }
    let class = || async { site.find(VERSION, "GatewayClass", "", "istio").await.is_some() };
    until("the control plane makes its GatewayClass", class).await;

    let sample =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo/gateway-api/bookinfo-gateway.yaml");
    let text = std::fs::read_to_string(sample)?;
    let documents = parse(&text, Dialect::Kubernetes).map_err(|error| error.to_string())?;
    for document in documents.iter().filter(|it| !it.is_null()) {
        let mut object = document.to_json();
        if object["kind"] == json!("Gateway") {
            // The port of the only node is the other gateway's.
            object["metadata"]["annotations"] = json!({ "networking.istio.io/service-type": "ClusterIP" });
        }
        site.apply(object, false).await?;
    }
    // As `kubectl wait --for=condition=programmed gtw bookinfo-gateway`.
    let programmed = || async {
        let gateway = site.find(VERSION, "Gateway", "default", "bookinfo-gateway").await;
        let conditions = gateway.as_ref().and_then(|it| it.pointer("/status/conditions")?.as_array());
        conditions.is_some_and(|all| {
            all.iter().any(|it| it["type"] == json!("Programmed") && it["status"] == json!("True"))
        })
    };
    until("the Gateway is programmed", programmed).await;
    let gateway = site.find(VERSION, "Gateway", "default", "bookinfo-gateway").await.ok_or("no Gateway")?;
    let address = gateway.pointer("/status/addresses/0/value").and_then(Value::as_str);
    if address != Some("bookinfo-gateway-istio.default.svc.cluster.local") {
        return Err(format!("the Gateway is at {address:?}: {}", gateway["status"]).into());
    }
    if gateway.pointer("/status/listeners/0/attachedRoutes") != Some(&json!(1)) {
        return Err(format!("no route is attached: {}", gateway["status"]).into());
    }
    let service =
        site.find("v1", "Service", "default", "bookinfo-gateway-istio").await.ok_or("no Service")?;
    let address = service["spec"]["clusterIP"].as_str().ok_or("the Service has no address")?;
    let address = SocketAddr::new(address.parse()?, 80);
    until("the deployed gateway answers", || async move {
        let Ok((200, page)) = get(address, "/productpage").await else { return false };
        page.contains("details")
    })
    .await;
    let (status, _) = get(address, "/nowhere").await?;
    if status != 404 {
        return Err(format!("what no route leads to is answered {status}").into());
    }

    site.delete(VERSION, "Gateway", "default", "bookinfo-gateway").await?;
    site.machine
        .until_all("pods", "default", |pods| {
            let is_its = |it: &&std::sync::Arc<Value>| {
                it["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"]
                    == json!("bookinfo-gateway")
            };
            pods.iter().find(is_its).is_none()
        })
        .await;
    let gone = || async {
        let mut found = Vec::new();
        for (version, kind) in [("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "ServiceAccount")] {
            found.extend(site.find(version, kind, "default", "bookinfo-gateway-istio").await);
        }
        found.is_empty()
    };
    until("what was made for the Gateway goes with it", gone).await;
    for (plural, ..) in KINDS {
        site.delete(CRDS, "CustomResourceDefinition", "", &format!("{plural}.{GROUP}")).await?;
    }
    site.done("a gateway is deployed for a Gateway of the Gateway API, serves, and goes with it");
    Ok(())
}
