//! Settings of the mesh, and what is deprecated.

use leno_derive::Cx;

use crate::analyze::message::Message;
use crate::analyze::raw::{Raw, all, at, list, text};

/// The lowest versions of the Gateway API's kinds that istiod reads.
const LOWEST: [(&str, [u32; 3]); 4] = [
    ("grpcroutes.gateway.networking.k8s.io", [1, 1, 0]),
    ("backendtlspolicies.gateway.networking.k8s.io", [1, 4, 0]),
    ("tlsroutes.gateway.networking.k8s.io", [1, 5, 0]),
    ("tcproutes.gateway.networking.k8s.io", [1, 6, 0]),
];

/// Fields and kinds that are deprecated: IST0002.
pub(super) fn deprecation(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mut tell = |object: &Raw, words: &str, path: String| {
        out.push(Message::new("IST0002", &object.key, format!("Deprecated: {words}")).at(path));
    };
    for rule in all(cx, "VirtualService") {
        for (index, http) in list(rule.at("/spec/http")).iter().enumerate() {
            if at(http, "/fault/delay/percent").as_i64().unwrap_or(0) > 0 {
                let words =
                    "HTTPRoute.fault.delay.percent is deprecated; use HTTPRoute.fault.delay.percentage";
                tell(&rule, words, format!("spec.http[{index}].fault.delay.percent"));
            }
        }
    }
    for sidecar in all(cx, "Sidecar") {
        if sidecar.at("/spec/outboundTrafficPolicy/egressProxy").is_object() {
            let path = "spec.outboundTrafficPolicy.egressProxy".to_owned();
            tell(&sidecar, "OutboundTrafficPolicy.EgressProxy ignored", path);
        }
    }
    for definition in all(cx, "CustomResourceDefinition") {
        let (group, kind) = (definition.text("/spec/group"), definition.text("/spec/names/kind"));
        let old = ["ClusterRbacConfig", "RbacConfig", "ServiceRole", "ServiceRoleBinding"];
        if group == "rbac.istio.io" && old.contains(&kind) {
            tell(&definition, &format!("Custom resource type {group} {kind} is removed"), String::new());
        }
    }
}

/// Definitions of the Gateway API that are too old: IST0176.
pub(super) fn definitions(cx: &Cx<'_>, out: &mut Vec<Message>) {
    for definition in all(cx, "CustomResourceDefinition") {
        let name = &definition.key.name;
        let Some((_, lowest)) = LOWEST.iter().find(|(known, _)| known == name) else { continue };
        let annotations = definition.annotations();
        let Some(version) = annotations.find("gateway.networking.k8s.io/bundle-version") else { continue };
        let bare = version.trim_start_matches('v');
        let numbers: Vec<u32> = bare
            .split(['-', '+'])
            .next()
            .unwrap_or_default()
            .split('.')
            .filter_map(|number| number.parse().ok())
            .collect();
        if numbers.len() == 3 && numbers.as_slice() < lowest.as_slice() {
            let [major, minor, patch] = lowest;
            let message = format!(
                "Gateway API CRD {name:?} is at version {bare:?} but Istio requires at least \
                 \"{major}.{minor}.{patch}\": resources of this kind are not processed until it is upgraded."
            );
            out.push(Message::new("IST0176", &definition.key, message));
        }
    }
}

/// Versions in which kinds of the Gateway API must be served, now and later.
const SERVED: [(&str, &str, &[&str]); 2] = [
    ("IST0156", "v1beta1", &["Gateway", "GatewayClass", "HTTPRoute", "ReferenceGrant"]),
    ("IST0172", "v1", &["Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute"]),
];

/// Definitions of the Gateway API that do not serve these: IST0156 and IST0172, as `istioctl experimental
/// precheck` finds them.
pub(super) fn served(cx: &Cx<'_>, out: &mut Vec<Message>) {
    for definition in all(cx, "CustomResourceDefinition") {
        if definition.text("/spec/group") != "gateway.networking.k8s.io" {
            continue;
        }
        let versions = list(definition.at("/spec/versions")).iter();
        let served = versions.filter(|version| at(version, "/served").as_bool() == Some(true));
        let mut served: Vec<&str> = served.map(|version| text(version, "/name")).collect();
        served.sort_unstable();
        for (code, wanted, kinds) in SERVED {
            if kinds.contains(&definition.text("/spec/names/kind")) && !served.contains(&wanted) {
                let has = if served.is_empty() { "none".to_owned() } else { served.join(",") };
                let message =
                    format!("The Gateway API CRD version {has} is lower than the minimum version: {wanted}");
                out.push(Message::new(code, &definition.key, message).at("spec.versions"));
            }
        }
    }
}

/// Registries of networks that are not there: IST0126.
pub(super) fn networks(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mut known = vec!["Mock".to_owned(), "Kubernetes".to_owned(), "External".to_owned()];
    for secret in all(cx, "Secret") {
        if secret.labels().find("istio/multiCluster") == Some("true") {
            let data = [secret.at("/data"), secret.at("/stringData")];
            known.extend(data.into_iter().filter_map(|it| it.as_object()).flat_map(|it| it.keys().cloned()));
        }
    }
    for networks in all(cx, "MeshNetworks") {
        for (name, network) in networks.at("/networks").as_object().into_iter().flatten() {
            for (index, endpoints) in list(at(network, "/endpoints")).iter().enumerate() {
                let registry = text(endpoints, "/fromRegistry");
                if !registry.is_empty() && !known.iter().any(|known| known == registry) {
                    let message = format!("Unknown service registry {registry} in network {name}");
                    let path = format!("networks.{name}.endpoints[{index}].fromRegistry");
                    out.push(Message::new("IST0126", &networks.key, message).at(path));
                }
            }
        }
    }
}

/// Providers of traces that are deprecated: IST0002.
pub(super) fn lightstep(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mesh = all(cx, "MeshConfig");
    let providers = mesh.iter().flat_map(|mesh| list(mesh.at("/extensionProviders")));
    let providers = providers.filter(|provider| provider.get("lightstep").is_some());
    let names: Vec<&str> = providers.map(|provider| text(provider, "/name")).collect();
    for telemetry in all(cx, "Telemetry") {
        for (index, tracing) in list(telemetry.at("/spec/tracing")).iter().enumerate() {
            for provider in list(at(tracing, "/providers")) {
                let name = text(provider, "/name");
                if names.contains(&name) {
                    let message = format!(
                        "Deprecated: The Lightstep provider {name} is deprecated, please migrate to OpenTelemetry \
                         provider."
                    );
                    let path = format!("spec.tracing[{index}].providers");
                    out.push(Message::new("IST0002", &telemetry.key, message).at(path));
                }
            }
        }
    }
}

/// Access logs without any provider: IST0157.
pub(super) fn providers(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let has_default =
        all(cx, "MeshConfig").iter().any(|mesh| !list(mesh.at("/defaultProviders/accessLogging")).is_empty());
    if has_default {
        return;
    }
    for telemetry in all(cx, "Telemetry") {
        for (index, log) in list(telemetry.at("/spec/accessLogging")).iter().enumerate() {
            let disabled = at(log, "/disabled").as_bool().unwrap_or(false);
            if !disabled && list(at(log, "/providers")).is_empty() {
                let message = format!(
                    "The Telemetry {} in namespace {:?} with empty providers will be ignored.",
                    telemetry.key.name, telemetry.key.namespace
                );
                let path = format!("spec.accessLogging[{index}]");
                out.push(Message::new("IST0157", &telemetry.key, message).at(path));
            }
        }
    }
}
