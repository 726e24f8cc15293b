//! Upgrades, two control planes side by side, and the end of all.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::load::Load;
use crate::site::{Site, get, until};

/// How long what was uninstalled may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// An upgrade, and a move from one revision to another, under load.
pub(crate) async fn story(site: &Site<'_>, load: &Load, settings: &str) -> Result<(), Box<dyn Error>> {
    let before = [site.pods("istio-system", "app", "istiod"), gateways(site)];
    let changed = format!(
        "upgrade {settings} -y --set values.pilot.env.UPGRADED=yes \
         --set components.ingressGateways[name:istio-ingressgateway].k8s.podAnnotations.upgraded=yes"
    );
    site.leno(&changed).await?;
    site.replaced("istio-system", "istiod", &before[0]).await;
    site.replaced("istio-system", "istio-ingressgateway", &before[1]).await;
    load.phase().await.none()?;
    site.done("an upgrade loses nothing");

    site.leno("install --revision canary --set profile=minimal --set values.pilot.autoscaleEnabled=false -y")
        .await?;
    site.leno("tag set prod --revision canary").await?;
    let canary = site.pods("istio-system", "istio.io/rev", "canary");
    let [canary] = canary.as_slice() else { return Err("there is no canary".into()) };
    apart(site, load).await?;
    site.done("the webhooks of two revisions let each other alone");

    let labels = json!({ "metadata": { "labels": { "istio-injection": null, "istio.io/rev": "prod" } } });
    site.patch("v1", "Namespace", "", "default", labels).await?;
    tokio::try_join!(
        site.restart("default", "productpage-v1", "productpage"),
        site.restart("default", "details-v1", "details"),
    )?;
    load.phase().await.none()?;
    for app in ["productpage", "details"] {
        for pod in site.pods("default", "app", app) {
            belongs(&pod, "canary")?;
        }
    }
    belongs(gateways(site).first().ok_or("no gateway")?, "default")?;
    let address = canary["status"]["podIP"].as_str().ok_or("the canary has no address")?;
    let metrics = SocketAddr::new(address.parse()?, 15014);
    until("four sidecars are connected to the canary", || async move {
        let Ok((200, text)) = get(metrics, "/metrics").await else { return false };
        let mut lines = text.lines().filter(|line| line.starts_with("pilot_xds{"));
        lines.any(|line| line.ends_with(" 4"))
    })
    .await;
    site.done("a namespace has moved from one revision to the other, and lost nothing");
    Ok(())
}

fn gateways(site: &Site<'_>) -> Vec<Value> {
    site.pods("istio-system", "app", "istio-ingressgateway")
}

/// A Pod was injected once, by the control plane of this revision, whose it is.
fn belongs(pod: &Value, revision: &str) -> Result<(), Box<dyn Error>> {
    let name = &pod["metadata"]["name"];
    let found = &pod["metadata"]["annotations"]["istio.io/rev"];
    if *found != json!(revision) {
        return Err(format!("{name} is of the revision {found}, not {revision}").into());
    }
    let lists = ["/spec/containers", "/spec/initContainers"];
    let containers = lists.iter().filter_map(|it| pod.pointer(it)?.as_array()).flatten();
    let proxies = containers.filter(|it| it["name"] == json!("istio-proxy"));
    let [proxy] = proxies.collect::<Vec<_>>()[..] else { return Err(format!("{name}: one proxy").into()) };
    let variables = proxy["env"].as_array();
    let value = |name: &str| {
        let found = variables.into_iter().flatten().find(|it| it["name"] == json!(name));
        found.and_then(|it| it["value"].as_str()).unwrap_or_default()
    };
    let host = if revision == "default" { "istiod.".to_owned() } else { format!("istiod-{revision}.") };
    // What is the default of agents is not said.
    let discovery = revision == "default" || value("PROXY_CONFIG").contains(&format!("\"{host}"));
    if discovery && value("CA_ADDR").starts_with(&host) {
        return Ok(());
    }
    Err(format!("{name} asks {} and {}, not {host}", value("CA_ADDR"), value("PROXY_CONFIG")).into())
}

/// After each control plane has looked at its webhook configurations again, none has been written.
async fn apart(site: &Site<'_>, load: &Load) -> Result<(), Box<dyn Error>> {
    let group = "admissionregistration.k8s.io";
    let looked = async || {
        let mut seen = [0, 0];
        until("both control planes have looked at their webhooks", || {
            for request in site.machine.take_requests().iter().filter(|it| it.contains(group)) {
                for (count, revision) in seen.iter_mut().zip(["default", "canary"]) {
                    let selector = format!("?labelSelector=istio.io%2Frev%3D{revision}");
                    *count += usize::from(request.ends_with(&selector));
                }
            }
            // Each looks at those that change and at those that judge.
            let enough = seen.iter().all(|count| *count >= 2);
            async move { enough }
        })
        .await;
    };
    // What the installation has written is mended first.
    looked().await;
    let versions = async || {
        let mut versions = Vec::new();
        for name in ["istio-sidecar-injector", "istio-sidecar-injector-canary", "istio-revision-tag-prod"] {
            let kind = "MutatingWebhookConfiguration";
            let found = site.find(&format!("{group}/v1"), kind, "", name).await;
            versions.push(found.map(|it| it["metadata"]["resourceVersion"].to_string()));
        }
        versions
    };
    let before = versions().await;
    looked().await;
    let after = versions().await;
    if before != after || before.iter().any(Option::is_none) {
        return Err(format!("webhook configurations are written again: {before:?}, {after:?}").into());
    }
    load.phase().await.none()
}

/// After everything is uninstalled there is what was there before, and what users made.
pub(crate) async fn end(site: &Site<'_>, before: &BTreeSet<String>) -> Result<(), Box<dyn Error>> {
    // All that the mesh needs of the API server it may do.
    let refused = site.machine.refused();
    if !refused.is_empty() {
        return Err(format!("its roles do not allow {refused:?}").into());
    }
    site.leno("uninstall --purge -y").await?;
    let is_users = |it: &str| {
        let (plural, name) = it.split_once(' ').unwrap_or_default();
        let kinds = [
            "deployments",
            "replicasets",
            "pods",
            "services",
            "endpoints",
            "endpointslices",
            "serviceaccounts",
        ];
        // Addresses are of Services, and named by themselves.
        (name.starts_with("default/") && kinds.contains(&plural)) || plural == "ipaddresses"
    };
    let is_of_namespace = |it: &str| {
        [
            "namespaces /istio-system",
            "configmaps istio-system/kube-root-ca.crt",
            "serviceaccounts istio-system/default",
        ]
        .contains(&it)
    };
    // What Kubernetes' programs say of themselves and of what has happened.
    let is_of_cluster = |it: &str| it.starts_with("events ") || it.contains(" kube-");
    // Pods end, and slices go with their Services, in their own time.
    let mut pause = tokio::time::interval(Duration::from_millis(200));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = site.all().await?;
        // What a distribution's controllers put into every namespace.
        let is_everywhere = |it: &str| {
            let name = it.strip_prefix("configmaps istio-system/");
            name.is_some_and(|name| now.contains(&format!("configmaps default/{name}")))
        };
        let new = now
            .difference(before)
            .filter(|it| !is_users(it) && !is_of_namespace(it) && !is_of_cluster(it) && !is_everywhere(it));
        let left: Vec<_> = new.collect();
        if left.is_empty() {
            site.done("nothing is left after uninstall --purge");
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("after uninstall --purge there are {left:?}").into());
        }
        pause.tick().await;
    }
}
