//! Namespaces and pods that are to have proxies: whether they have, and which.

use std::collections::BTreeMap;

use leno_derive::Cx;
use serde_json::Value;

use crate::analyze::message::{Message, words};
use crate::analyze::raw::{Labels, Raw, all, at, find, labels, list, text, texts};
use crate::model::label::REVISION;

/// The label of namespaces by which injection is switched.
const INJECTION: &str = "istio-injection";
/// The label of the ambient mode.
const MODE: &str = "istio.io/dataplane-mode";
/// The label, and the older annotation, of pods by which injection is switched.
const INJECT: &str = "sidecar.istio.io/inject";
/// The proxy's container.
const PROXY: &str = "istio-proxy";
/// The ConfigMaps of injection.
const INJECTOR: &str = "istio-sidecar-injector";

/// Whether a workload has, or will have, a proxy; `template` is where its pod is described.
pub(super) fn is_in_mesh(cx: &Cx<'_>, object: &Raw, template: &str) -> bool {
    let template = object.at(template);
    if containers(at(template, "/spec")).any(|container| text(container, "/name") == PROXY) {
        return true;
    }
    let switched = |pointer: &str| labels(at(template, pointer)).find(INJECT).map(|value| value == "true");
    switched("/metadata/labels").or_else(|| switched("/metadata/annotations")).unwrap_or_else(|| {
        let namespace = find(cx, "Namespace", "", &object.key.namespace);
        namespace.is_some_and(|namespace| namespace.labels().find(INJECTION) == Some("enabled"))
    })
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    list(at(spec, "/containers")).iter().chain(list(at(spec, "/initContainers")))
}

fn injector(revision: &str) -> String {
    if matches!(revision, "" | "default") { INJECTOR.to_owned() } else { format!("{INJECTOR}-{revision}") }
}

fn injector_values(map: &Raw) -> Value {
    serde_json::from_str(map.text("/data/values")).unwrap_or_default()
}

/// Namespaces that do not say whether they want proxies (IST0102, IST0148), or say it twice (IST0123),
/// and pods without the proxy that they should have (IST0103).
pub(super) fn injected(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mut enabled = Vec::new();
    for namespace in all(cx, "Namespace").into_iter().filter(|it| it.key.name != "istio-system") {
        let labels = namespace.labels();
        let switch = labels.find(INJECTION);
        let mut found: Vec<String> = switch.iter().map(|value| format!("{INJECTION}={value}")).collect();
        if switch.is_none_or(|value| value == "enabled") {
            let others = [REVISION, MODE].into_iter().filter_map(|name| Some((name, labels.find(name)?)));
            found.extend(others.map(|(name, value)| format!("{name}={value}")));
        }
        if found.len() > 1 {
            let message = format!(
                "The namespace has more than one type of injection labels {}, which may lead to undefined \
                 behavior. Only one should be there.",
                words(&found)
            );
            out.push(Message::new("IST0123", &namespace.key, message).at("metadata.labels"));
        }
        if labels.find(MODE) == Some("ambient") {
            continue;
        }
        let name = &namespace.key.name;
        if switch.unwrap_or_default().is_empty() && labels.find(REVISION).is_none() {
            let map = all(cx, "ConfigMap").into_iter().find(|map| map.key.name == injector(""));
            let by_default = map.is_some_and(|map| {
                at(&injector_values(&map), "/sidecarInjectorWebhook/enableNamespacesByDefault")
                    == &Value::Bool(true)
            });
            if by_default {
                let message = "is enabled for Istio injection, as Istio is installed with enableNamespacesByDefault as true.";
                out.push(Message::new("IST0148", &namespace.key, message.to_owned()));
            } else {
                let message = format!(
                    "The namespace is not enabled for Istio injection. Run 'kubectl label namespace {name} \
                     istio-injection=enabled' to enable it, or 'kubectl label namespace {name} \
                     istio-injection=disabled' to say that it needs none."
                );
                out.push(Message::new("IST0102", &namespace.key, message).at("metadata.name"));
            }
            continue;
        }
        if switch == Some("enabled") {
            enabled.push(name.clone());
        }
    }
    for pod in all(cx, "Pod").iter().filter(|pod| enabled.contains(&pod.key.namespace)) {
        let (labels, annotations) = (pod.labels(), pod.annotations());
        let switch = labels.find(INJECT).or_else(|| annotations.find(INJECT)).unwrap_or_default();
        let on_host = pod.at("/spec/hostNetwork") == &Value::Bool(true);
        let has_proxy = containers(pod.at("/spec"))
            .any(|container| text(container, "/name") == PROXY && !text(container, "/image").is_empty());
        if !switch.eq_ignore_ascii_case("false") && !on_host && !has_proxy {
            let message = format!(
                "The pod {} is missing the Istio proxy. Restarting or redeploying the workload usually brings it.",
                pod.key.full_name()
            );
            out.push(Message::new("IST0103", &pod.key, message));
        }
    }
}

/// Pods whose proxies are not those that are injected now: IST0158, for their namespace.
pub(super) fn images(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mut images: BTreeMap<String, String> = BTreeMap::new();
    for map in all(cx, "ConfigMap").iter().filter(|map| map.key.name.starts_with(INJECTOR)) {
        let values = injector_values(map);
        let image = text(&values, "/global/proxy/image");
        let image = if image.contains('/') {
            image.to_owned()
        } else {
            format!("{}/{image}:{}", text(&values, "/global/hub"), text(&values, "/global/tag"))
        };
        images.insert(map.key.name.clone(), image);
    }
    if images.is_empty() {
        return;
    }
    for namespace in all(cx, "Namespace") {
        let labels = namespace.labels();
        let revision = labels.find(REVISION);
        if labels.find(INJECTION) != Some("enabled") && revision.is_none() {
            continue;
        }
        let Some(image) = images.get(&injector(revision.unwrap_or_default())) else { continue };
        let differs = |pod: &&Raw| {
            let own = pod.annotations().find("sidecar.istio.io/proxyImage").is_some_and(|it| !it.is_empty());
            !own && containers(pod.at("/spec")).any(|container| {
                let used = text(container, "/image");
                let variant = used.strip_prefix(image.as_str());
                text(container, "/name") == PROXY
                    && variant.is_none_or(|variant| !["", "-distroless", "-debug"].contains(&variant))
            })
        };
        let pods = all(cx, "Pod");
        let here = pods.iter().filter(|pod| pod.key.namespace == namespace.key.name);
        let names: Vec<&str> = here.filter(differs).map(|pod| pod.key.name.as_str()).collect();
        if !names.is_empty() {
            let message = format!(
                "The Istio proxy images of the pods running in the namespace do not match the image defined in \
                 the injection configuration (pod names: {}), as after an upgrade of the control plane. \
                 Redeploying the pods mends it.",
                words(&names)
            );
            out.push(Message::new("IST0158", &namespace.key, message));
        }
    }
}

/// Proxies that are to be replaced when they are injected, and are not: IST0147 for pods, IST0146 for
/// Deployments that no webhook will look at.
pub(super) fn auto(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let is_auto = |spec: &Value| {
        list(at(spec, "/containers"))
            .iter()
            .any(|container| text(container, "/name") == PROXY && text(container, "/image") == "auto")
    };
    let words = |kind: &str, name: &str| {
        format!(
            "{kind} {name} contains `image: auto` but does not match any Istio injection webhook selectors."
        )
    };
    for pod in all(cx, "Pod").iter().filter(|pod| is_auto(pod.at("/spec"))) {
        out.push(Message::new("IST0147", &pod.key, words("Pod", &pod.key.name)));
    }
    let configurations = all(cx, "MutatingWebhookConfiguration");
    let webhooks = configurations.iter().flat_map(|configuration| list(configuration.at("/webhooks")));
    let webhooks: Vec<&Value> = webhooks.filter(|it| text(it, "/name").ends_with("istio.io")).collect();
    for deployment in all(cx, "Deployment") {
        if !is_auto(deployment.at("/spec/template/spec")) {
            continue;
        }
        let namespace = find(cx, "Namespace", "", &deployment.key.namespace);
        let namespace = namespace.as_ref().map(Raw::labels).unwrap_or_default();
        let own = labels(deployment.at("/spec/template/metadata/labels"));
        let matched = webhooks.iter().any(|webhook| {
            selector_fits(at(webhook, "/namespaceSelector"), &namespace)
                && selector_fits(at(webhook, "/objectSelector"), &own)
        });
        if !matched {
            let message = words("Deployment", &deployment.key.name);
            out.push(Message::new("IST0146", &deployment.key, message));
        }
    }
}

/// Whether Kubernetes' LabelSelector, with its expressions, selects labels; none selects all.
pub(super) fn selector_fits(selector: &Value, own: &Labels<'_>) -> bool {
    let expressions = list(at(selector, "/matchExpressions")).iter().all(|expression| {
        let value = own.find(text(expression, "/key"));
        let values = texts(at(expression, "/values"));
        match text(expression, "/operator") {
            "In" => value.is_some_and(|value| values.contains(&value)),
            "NotIn" => value.is_none_or(|value| !values.contains(&value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    expressions && labels(at(selector, "/matchLabels")).selects(own)
}
