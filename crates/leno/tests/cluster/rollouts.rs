//! What a mesh promises while parts of it come and go under load: rolling restarts lose nothing, and the death of a
//! process loses what was in flight to it, as far as nobody may repeat that.
//!
//! A client sees of the death of
//!
//! - an application: nothing, if the route retries 503; by Istio's default policy it is 503 until the endpoints are
//!   updated, as the sidecar answers for its application then, and 503 is not retried;
//! - a sidecar: nothing, if the route retries resets; by the default policy, which retries only what has not begun,
//!   what was in flight may be 503, once for each request;
//! - a gateway's proxy: the end of its connections, until the endpoints are updated; nobody stands before it who
//!   could try again. Never a wrong answer;
//! - the control plane: nothing.

use std::error::Error;

use serde_json::{Value, json};

use crate::load::{CLIENTS, Load, Route};
use crate::site::Site;

/// How an application is written whose restarts lose nothing: it says when it is ready, and goes on to serve while
/// others learn that it ends.
pub(crate) fn prepared(mut deployment: Value) -> Value {
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/health", "port": 9080 }, "periodSeconds": 1 });
    container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 3 } } });
    deployment["spec"]["replicas"] = json!(2);
    // The one's sidecar is beside it and ends when nobody is connected any more, not after a fixed time; the other's
    // is a native one, which ends after the application.
    let annotations = if deployment["metadata"]["name"] == json!("details-v1") {
        json!({ "sidecar.istio.io/nativeSidecar": "true" })
    } else {
        json!({ "proxy.istio.io/config":
            "proxyMetadata: {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: 'true', MINIMUM_DRAIN_DURATION: 2s}" })
    };
    deployment["spec"]["template"]["metadata"]["annotations"] = annotations;
    deployment
}

/// The rules of the load's two routes.
pub(crate) fn rules() -> [Value; 2] {
    let retries = json!({ "attempts": 3, "retryOn": "connect-failure,refused-stream,reset,503" });
    let to = |host: &str| json!([{ "destination": { "host": host, "port": { "number": 9080 } } }]);
    let object = |name: &str, spec: Value| {
        json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": name, "namespace": "default" }, "spec": spec })
    };
    let page = json!({ "hosts": ["*"], "gateways": ["bookinfo-gateway"], "http": [
        { "match": [{ "uri": { "prefix": "/api/v1/products/" } }], "route": to("productpage"),
            "retries": retries },
        { "match": [{ "uri": { "exact": "/productpage" } }, { "uri": { "exact": "/api/v1/products" } }],
            "route": to("productpage") },
    ] });
    let details = json!({ "hosts": ["details"], "http": [{ "route": to("details"), "retries": retries }] });
    [object("bookinfo", page), object("details", details)]
}

/// Everything is restarted, and every process dies once.
pub(crate) async fn story(site: &Site<'_>, load: &Load) -> Result<(), Box<dyn Error>> {
    load.phase().await.none()?;
    site.restart("default", "productpage-v1", "productpage").await?;
    load.phase().await.none()?;
    site.done("a rolling restart of productpage loses nothing");
    tokio::try_join!(
        site.restart("default", "details-v1", "details"),
        site.restart("istio-system", "istio-ingressgateway", "istio-ingressgateway"),
        site.restart("istio-system", "istiod", "istiod"),
    )?;
    load.phase().await.none()?;
    site.done("rolling restarts of details, the gateway and istiod at a time lose nothing");

    let one = |namespace: &str, app: &str| -> Result<Value, Box<dyn Error>> {
        site.pods(namespace, "app", app).into_iter().next().ok_or_else(|| format!("no {app}").into())
    };
    site.kill(&one("istio-system", "istiod")?, "discovery").await?;
    load.phase().await.none()?;
    site.done("the death of istiod loses nothing");

    for app in ["productpage", "details"] {
        let pod = one("default", app)?;
        site.kill(&pod, "istio-proxy").await?;
        let tally = load.phase().await;
        let in_flight = tally.failed.iter().filter(|it| it.route == Route::Default).count();
        tally.only("only what was in flight may be 503, and only where resets are not retried", |it| {
            (it.route, it.status) == (Route::Default, Some(503))
                && in_flight <= CLIENTS
                && app == "productpage"
        })?;
        site.done(&format!("the death of {app}'s sidecar: {in_flight} of {} in flight", tally.good));

        site.kill(&pod, app).await?;
        let tally = load.phase().await;
        tally.only("only 503 of its sidecar may come, and only where 503 is not retried", |it| {
            (it.route, it.status) == (Route::Default, Some(503)) && app == "productpage"
        })?;
        site.done(&format!("the death of {app}: {} of {}", tally.failed.len(), tally.good));
    }

    site.kill(&one("istio-system", "istio-ingressgateway")?, "istio-proxy").await?;
    let tally = load.phase().await;
    tally.only("a gateway that dies may break its connections, and no more", |it| it.status.is_none())?;
    load.phase().await.none()?;
    site.done(&format!("the death of a gateway: {} of {}", tally.failed.len(), tally.good));
    Ok(())
}
