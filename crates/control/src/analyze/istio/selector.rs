//! Selectors of Sidecars, Telemetries and policies: whether they select anything, and whether others
//! select the same.

use std::collections::{BTreeMap, BTreeSet};

use leno_derive::Cx;

use crate::analyze::message::{Message, words};
use crate::analyze::raw::{Labels, Raw, RawKey, all, find, labels};
use crate::model::label::GATEWAY_NAME;

fn is_ambient_pod(pod: &Raw) -> bool {
    pod.annotations().find("ambient.istio.io/redirection") == Some("enabled")
}

fn is_ambient_namespace(namespace: &Raw) -> bool {
    let labels = namespace.labels();
    labels.find("istio-injection") != Some("enabled")
        && labels.find("istio.io/rev").is_none_or(str::is_empty)
        && labels.find("istio.io/dataplane-mode") == Some("ambient")
}

fn selector_path(prefix: &str, selector: &Labels<'_>) -> String {
    selector.0.keys().next().map_or_else(|| prefix.to_owned(), |name| format!("{prefix}[{name:?}]"))
}

/// Which objects select each pod of their namespace; those that select none are told so (IST0101).
fn chosen<'o>(
    cx: &Cx<'_>,
    objects: &'o [Raw],
    pointer: &str,
    out: &mut Vec<Message>,
) -> BTreeMap<RawKey, (Raw, Vec<&'o Raw>)> {
    let pods = all(cx, "Pod");
    let mut chosen: BTreeMap<RawKey, (Raw, Vec<&Raw>)> = BTreeMap::new();
    for object in objects {
        let selector = labels(object.at(pointer));
        if selector.is_empty() {
            continue;
        }
        let here = pods.iter().filter(|pod| pod.key.namespace == object.key.namespace);
        let mut any = false;
        for pod in here.filter(|pod| selector.selects(&pod.labels())) {
            any = true;
            chosen.entry(pod.key.clone()).or_insert_with(|| (pod.clone(), Vec::new())).1.push(object);
        }
        if !any {
            let path = selector_path(&pointer.trim_start_matches('/').replace('/', "."), &selector);
            out.push(Message::missing(&object.key, "selector", &selector.to_string()).at(path));
        }
    }
    chosen
}

fn names(objects: &[&Raw]) -> String {
    let mut names: Vec<&str> = objects.iter().map(|object| object.key.name.as_str()).collect();
    names.sort_unstable();
    words(&names)
}

fn without_selector<'o>(objects: &'o [Raw], pointer: &str) -> BTreeMap<&'o str, Vec<&'o Raw>> {
    let mut found: BTreeMap<&str, Vec<&Raw>> = BTreeMap::new();
    for object in objects.iter().filter(|object| labels(object.at(pointer)).is_empty()) {
        found.entry(&object.key.namespace).or_default().push(object);
    }
    found
}

/// Sidecars: IST0101, IST0110, IST0111, IST0167.
pub(super) fn sidecars(cx: &Cx<'_>, out: &mut Vec<Message>) {
    const SELECTOR: &str = "/spec/workloadSelector/labels";
    let sidecars = all(cx, "Sidecar");
    let mut told = BTreeSet::new();
    let mut ineffective = |object: &Raw, why: &str, out: &mut Vec<Message>| {
        if told.insert(object.key.clone()) {
            let message = format!("The policy has no impact: {why}, the policy has no impact.");
            out.push(Message::new("IST0167", &object.key, message));
        }
    };
    for (pod, objects) in chosen(cx, &sidecars, SELECTOR, out).values() {
        for object in objects {
            if is_ambient_pod(pod) {
                ineffective(object, "selected workload is in ambient mode", out);
            } else if objects.len() > 1 {
                let message = format!(
                    "The Sidecars {} in namespace {:?} select the same workload pod {:?}, which can lead to \
                     undefined behavior.",
                    names(objects),
                    pod.key.namespace,
                    pod.key.name
                );
                out.push(Message::new("IST0110", &object.key, message).at("metadata.name"));
            }
        }
    }
    for (namespace, objects) in without_selector(&sidecars, SELECTOR) {
        if find(cx, "Namespace", "", namespace).is_some_and(|namespace| is_ambient_namespace(&namespace)) {
            objects.iter().for_each(|object| ineffective(object, "namespace is in ambient mode", out));
        } else if objects.len() > 1 {
            for object in &objects {
                let message = format!(
                    "The Sidecars {} in namespace {namespace:?} have no workload selector, which can lead to \
                     undefined behavior.",
                    names(&objects)
                );
                out.push(Message::new("IST0111", &object.key, message));
            }
        }
    }
}

/// Telemetries with selectors: IST0101, IST0159.
pub(super) fn telemetries(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let telemetries = all(cx, "Telemetry");
    let chosen = chosen(cx, &telemetries, "/spec/selector/matchLabels", out);
    for (pod, objects) in chosen.values().filter(|(_, objects)| objects.len() > 1) {
        for object in objects {
            let message = format!(
                "The Telemetries {} in namespace {:?} select the same workload pod {:?}, which can lead to \
                 undefined behavior.",
                names(objects),
                pod.key.namespace,
                pod.key.name
            );
            out.push(Message::new("IST0159", &object.key, message).at("metadata.name"));
        }
    }
}

/// Telemetries without: IST0160.
pub(super) fn telemetry_defaults(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let telemetries = all(cx, "Telemetry");
    let plain: Vec<Raw> = telemetries
        .into_iter()
        .filter(|it| !it.at("/spec/targetRef").is_object() && !it.at("/spec/targetRefs").is_array())
        .collect();
    let found = without_selector(&plain, "/spec/selector/matchLabels");
    for (namespace, objects) in found.into_iter().filter(|(_, objects)| objects.len() > 1) {
        for object in &objects {
            let message = format!(
                "The Telemetries {} in namespace {namespace:?} have no workload selector, which can lead to \
                 undefined behavior.",
                names(&objects)
            );
            out.push(Message::new("IST0160", &object.key, message));
        }
    }
}

/// Selectors that mean pods of the Gateway API's gateways, which heed `targetRef` only: IST0166.
pub(super) fn gateway_api(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let pods = all(cx, "Pod");
    for kind in ["AuthorizationPolicy", "RequestAuthentication", "Telemetry", "WasmPlugin"] {
        for policy in all(cx, kind) {
            let targeted =
                policy.at("/spec/targetRef").is_object() || policy.at("/spec/targetRefs").is_array();
            let selector = labels(policy.at("/spec/selector/matchLabels"));
            if targeted || !policy.at("/spec/selector").is_object() {
                continue;
            }
            for pod in pods.iter().filter(|pod| pod.key.namespace == policy.key.namespace) {
                let own = pod.labels();
                if let Some(gateway) = own.find(GATEWAY_NAME).filter(|_| selector.selects(&own)) {
                    let message = format!(
                        "Ineffective selector on Kubernetes Gateway {gateway}. Use the TargetRef field instead."
                    );
                    out.push(Message::new("IST0166", &policy.key, message).at("spec.selector"));
                }
            }
        }
    }
}
