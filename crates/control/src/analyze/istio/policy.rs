//! Policies of security, and what others have written into status.

use leno_derive::Cx;
use serde_json::Value;

use super::injection::is_in_mesh;
use crate::analyze::message::Message;
use crate::analyze::raw::{KUBERNETES_GATEWAY, Raw, all, at, labels, list, text, texts};

/// AuthorizationPolicies that are for nobody (IST0127), and namespaces in them that are not there
/// (IST0101).
pub(super) fn authorization(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let ambient = |pod: &Raw| pod.annotations().find("ambient.istio.io/redirection") == Some("enabled");
    let mut pods = all(cx, "Pod");
    pods.retain(|pod| is_in_mesh(cx, pod, "") || ambient(pod));
    let mesh = all(cx, "MeshConfig");
    let root = mesh.iter().map(|mesh| mesh.text("/rootNamespace")).find(|root| !root.is_empty());
    let root = root.unwrap_or("istio-system");
    let namespaces = all(cx, "Namespace");
    for policy in all(cx, "AuthorizationPolicy") {
        let has_selector = policy.at("/spec/selector").is_object();
        let selector = labels(policy.at("/spec/selector/matchLabels"));
        let whole_mesh = policy.key.namespace == root;
        let mut here = pods.iter().filter(|pod| whole_mesh || pod.key.namespace == policy.key.namespace);
        let found = (whole_mesh && !has_selector) || here.any(|pod| selector.selects(&pod.labels()));
        if !found {
            let message =
                format!("No matching workloads for this resource with the following labels: {selector}");
            out.push(Message::new("IST0127", &policy.key, message).at("spec.selector"));
        }
        for (rule, body) in list(policy.at("/spec/rules")).iter().enumerate() {
            for (from, body) in list(at(body, "/from")).iter().enumerate() {
                for field in ["namespaces", "notNamespaces"] {
                    for (index, name) in texts(at(body, &format!("/source/{field}"))).into_iter().enumerate()
                    {
                        if !namespaces.iter().any(|namespace| fits(name, &namespace.key.name)) {
                            let path = format!("spec.rules[{rule}].from[{from}].source.{field}[{index}]");
                            out.push(Message::missing(&policy.key, "namespace", name).at(path));
                        }
                    }
                }
            }
        }
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => name.ends_with(suffix),
        (_, Some(prefix)) => name.starts_with(prefix),
        (None, None) => pattern.eq_ignore_ascii_case(name),
    }
}

/// Fetches of keys that no list of forbidden ranges restricts: IST0175, for the control plane.
pub(super) fn blocked_ranges(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let names: Vec<String> = all(cx, "RequestAuthentication").iter().map(|it| it.key.full_name()).collect();
    if names.is_empty() {
        return;
    }
    let shown = names.get(..names.len().min(5)).unwrap_or_default().join(", ");
    let shown = if names.len() > 5 { format!("{shown}, and {} more", names.len() - 5) } else { shown };
    for deployment in all(cx, "Deployment").iter().filter(|it| it.labels().find("app") == Some("istiod")) {
        let containers = list(deployment.at("/spec/template/spec/containers")).iter();
        let mut variables = containers.flat_map(|container| list(at(container, "/env")));
        let is_set =
            |it: &Value| text(it, "/name") == "BLOCKED_CIDRS_IN_JWKS_URIS" && !text(it, "/value").is_empty();
        if !variables.any(is_set) {
            let message = format!(
                "BLOCKED_CIDRS_IN_JWKS_URIS is not configured but {} RequestAuthentication resource(s) exist \
                 ({shown}). It restricts from which networks keys may be fetched.",
                names.len()
            );
            out.push(Message::new("IST0175", &deployment.key, message));
        }
    }
}

/// Conditions in status that say that something is wrong: IST0171.
pub(super) fn conditions(cx: &Cx<'_>, out: &mut Vec<Message>) {
    const GATEWAYS: &[&str] = &["Accepted", "Programmed", "ResolvedRefs"];
    const WAYPOINTS: &[&str] = &["istio.io/WaypointBound"];
    const POLICIES: &[&str] = &["ZtunnelAccepted", "WaypointAccepted"];
    let kinds = [
        ("Service", WAYPOINTS),
        ("ServiceEntry", WAYPOINTS),
        ("WorkloadEntry", WAYPOINTS),
        ("AuthorizationPolicy", POLICIES),
        (KUBERNETES_GATEWAY, GATEWAYS),
        ("HTTPRoute", GATEWAYS),
        ("GRPCRoute", GATEWAYS),
    ];
    for (kind, types) in kinds {
        for object in all(cx, kind) {
            let own = list(object.at("/status/conditions")).iter();
            let parents = list(object.at("/status/parents")).iter();
            for condition in own.chain(parents.flat_map(|parent| list(at(parent, "/conditions")))) {
                let (name, reason) = (text(condition, "/type"), text(condition, "/reason"));
                let negative = types.contains(&name) && text(condition, "/status") == "False";
                let partly = name == "WaypointAccepted" && reason == "PartiallyInvalid";
                if negative || partly {
                    let message = format!(
                        "A condition with a negative status is present: type={name}, reason={reason}, \
                         message={}.",
                        text(condition, "/message")
                    );
                    out.push(Message::new("IST0171", &object.key, message));
                }
            }
        }
    }
}
