//! Annotations of Istio on Kubernetes' objects: whether they are known, where they belong, what they
//! may say, and how settled their features are.

use std::net::IpAddr;

use leno_derive::Cx;

use crate::analyze::message::Message;
use crate::analyze::raw::{all, list, text};

/// How settled a feature is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Settled,
    Alpha,
}

/// An annotation: its name, how settled it is, whether it is deprecated, and which kinds have it; no
/// kinds stand for any.
struct Known(&'static str, Status, bool, &'static [&'static str]);

use Status::{Alpha, Settled};

const POD: &[&str] = &["Pod"];
const SERVICE: &[&str] = &["Service"];
const ENTRY: &[&str] = &["WorkloadEntry"];
const GATEWAY: &[&str] = &["Gateway"];

const KNOWN: &[Known] = &[
    Known("alpha.istio.io/canonical-serviceaccounts", Alpha, true, SERVICE),
    Known("alpha.istio.io/kubernetes-serviceaccounts", Alpha, true, SERVICE),
    Known("ambient.istio.io/bypass-inbound-capture", Alpha, false, POD),
    Known("ambient.istio.io/dns-capture", Alpha, false, POD),
    Known("ambient.istio.io/redirection", Settled, false, POD),
    Known("ambient.istio.io/waypoint-inbound-binding", Alpha, false, &["GatewayClass", "Gateway"]),
    Known("galley.istio.io/analyze-suppress", Alpha, false, &[]),
    Known("gateway.istio.io/controller-version", Alpha, false, &[]),
    Known("gateway.istio.io/name-override", Alpha, false, GATEWAY),
    Known("gateway.istio.io/service-account", Alpha, false, GATEWAY),
    Known("inject.istio.io/templates", Alpha, false, POD),
    Known("istio.io/autoRegistrationGroup", Alpha, false, ENTRY),
    Known("istio.io/connectedAt", Alpha, false, ENTRY),
    Known("istio.io/disconnectedAt", Alpha, false, ENTRY),
    Known("istio.io/dry-run", Alpha, false, &["AuthorizationPolicy"]),
    Known("istio.io/reroute-virtual-interfaces", Alpha, false, POD),
    Known("istio.io/rev", Alpha, false, POD),
    Known("istio.io/use-waypoint-canary-weight", Alpha, false, &["Service", "ServiceEntry", "Namespace"]),
    Known("istio.io/workloadController", Alpha, false, ENTRY),
    Known("kubernetes.io/ingress.class", Settled, false, &["Ingress"]),
    Known("networking.istio.io/exportTo", Alpha, false, SERVICE),
    Known("networking.istio.io/service-type", Alpha, false, GATEWAY),
    Known(
        "networking.istio.io/traffic-distribution",
        Alpha,
        false,
        &["Namespace", "Service", "ServiceEntry"],
    ),
    Known("prometheus.istio.io/merge-metrics", Alpha, false, POD),
    Known("proxy.istio.io/config", Settled, false, POD),
    Known("proxy.istio.io/overrides", Alpha, false, POD),
    Known("readiness.status.sidecar.istio.io/applicationPorts", Alpha, false, POD),
    Known("readiness.status.sidecar.istio.io/failureThreshold", Alpha, false, POD),
    Known("readiness.status.sidecar.istio.io/initialDelaySeconds", Alpha, false, POD),
    Known("readiness.status.sidecar.istio.io/periodSeconds", Alpha, false, POD),
    Known("sidecar.istio.io/agentLogLevel", Alpha, false, POD),
    Known("sidecar.istio.io/bootstrapOverride", Alpha, false, POD),
    Known("sidecar.istio.io/componentLogLevel", Alpha, false, POD),
    Known("sidecar.istio.io/discoveryAddress", Alpha, true, POD),
    Known("sidecar.istio.io/extraStatTags", Alpha, true, POD),
    Known("sidecar.istio.io/inject", Settled, true, POD),
    Known("sidecar.istio.io/interceptionMode", Alpha, false, POD),
    Known("sidecar.istio.io/logLevel", Alpha, false, POD),
    Known("sidecar.istio.io/nativeSidecar", Alpha, false, POD),
    Known("sidecar.istio.io/proxyCPU", Alpha, false, POD),
    Known("sidecar.istio.io/proxyCPULimit", Alpha, false, POD),
    Known("sidecar.istio.io/proxyImage", Alpha, false, POD),
    Known("sidecar.istio.io/proxyImageType", Alpha, false, POD),
    Known("sidecar.istio.io/proxyMemory", Alpha, false, POD),
    Known("sidecar.istio.io/proxyMemoryLimit", Settled, false, POD),
    Known("sidecar.istio.io/rewriteAppHTTPProbers", Alpha, false, POD),
    Known("sidecar.istio.io/statsCompression", Alpha, true, POD),
    Known("sidecar.istio.io/statsEvictionInterval", Alpha, false, POD),
    Known("sidecar.istio.io/statsFlushInterval", Alpha, false, POD),
    Known("sidecar.istio.io/statsHistogramBins", Alpha, false, POD),
    Known("sidecar.istio.io/statsHistogramBuckets", Alpha, false, POD),
    Known("sidecar.istio.io/statsInclusionPrefixes", Alpha, true, POD),
    Known("sidecar.istio.io/statsInclusionRegexps", Alpha, true, POD),
    Known("sidecar.istio.io/statsInclusionSuffixes", Alpha, true, POD),
    Known("sidecar.istio.io/status", Alpha, false, POD),
    Known("sidecar.istio.io/userVolume", Alpha, false, POD),
    Known("sidecar.istio.io/userVolumeMount", Settled, false, POD),
    Known("status.sidecar.istio.io/port", Alpha, false, POD),
    Known("topology.istio.io/controlPlaneClusters", Alpha, false, &["Namespace"]),
    Known("traffic.istio.io/nodeSelector", Settled, false, SERVICE),
    Known("traffic.sidecar.istio.io/excludeInboundPorts", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/excludeInterfaces", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/excludeOutboundIPRanges", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/excludeOutboundPorts", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/includeInboundPorts", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/includeOutboundIPRanges", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/includeOutboundPorts", Alpha, false, POD),
    Known("traffic.sidecar.istio.io/kubevirtInterfaces", Alpha, true, POD),
];

/// Written by controllers, not by people.
const WRITTEN: [&str; 3] = ["sidecar.istio.io/status", "gateway.istio.io/controller-version", "istio.io/rev"];

/// Written by injection where no init container redirects.
const INJECTED: [&str; 4] = [
    "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
];

/// The kinds whose annotations are looked at.
const KINDS: [&str; 4] = ["Namespace", "Service", "Pod", "Deployment"];

fn is_istios(name: &str) -> bool {
    let domain = name.split('/').next().unwrap_or_default();
    name == "kubernetes.io/ingress.class" || domain.ends_with("istio.io")
}

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.0 == name)
}

fn path(name: &str) -> String {
    format!("metadata.annotations[{name:?}]")
}

/// Annotations that are unknown (IST0108), deprecated (IST0135), in the wrong place (IST0107) or
/// unreadable (IST0125).
pub(super) fn placed(cx: &Cx<'_>, out: &mut Vec<Message>) {
    for object in KINDS.into_iter().flat_map(|kind| all(cx, kind)) {
        for (name, value) in object.annotations().0 {
            if !is_istios(name) || WRITTEN.contains(&name) {
                continue;
            }
            let mut tell = |code: &'static str, words: String| {
                out.push(Message::new(code, &object.key, words).at(path(name)));
            };
            let Some(Known(_, _, deprecated, kinds)) = known(name) else {
                tell("IST0108", format!("Unknown annotation: {name}"));
                continue;
            };
            let replaced = name == "sidecar.istio.io/inject" && object.labels().find(name).is_some();
            if *deprecated && !replaced {
                let instead = match name {
                    "sidecar.istio.io/inject" => " in favor of the \"sidecar.istio.io/inject\" label",
                    _ => "",
                };
                let words = "has been deprecated";
                let end = "and may not work in future Istio versions.";
                tell("IST0135", format!("Annotation {name:?} {words}{instead} {end}"));
            }
            if kinds.is_empty() {
                continue;
            }
            if !kinds.contains(&object.key.kind.as_str()) {
                let words =
                    format!("Misplaced annotation: {name} can only be applied to {}", kinds.join(", "));
                tell("IST0107", words);
            } else if let Some(problem) = problem(name, value) {
                tell("IST0125", format!("Invalid annotation {name}: {problem}"));
            }
        }
    }
}

/// Annotations of features that are not settled: IST0136.
pub(super) fn alpha(cx: &Cx<'_>, out: &mut Vec<Message>) {
    for object in KINDS.into_iter().flat_map(|kind| all(cx, kind)) {
        let init = list(object.at("/spec/initContainers")).iter();
        let redirects = init.clone().any(|container| text(container, "/name") == "istio-init");
        let by_plugin = object.key.kind == "Pod" && !redirects;
        for (name, _) in object.annotations().0 {
            let is_alpha = known(name).is_some_and(|known| known.1 == Alpha);
            if !is_alpha || WRITTEN.contains(&name) || (by_plugin && INJECTED.contains(&name)) {
                continue;
            }
            let words = format!(
                "Annotation {name:?} is part of an alpha-phase feature and may be incompletely supported."
            );
            out.push(Message::new("IST0136", &object.key, words).at(path(name)));
        }
    }
}

/// What is wrong with an annotation's value.
fn problem(name: &str, value: &str) -> Option<String> {
    let ports = |all: bool| -> Option<String> {
        let bad = value.split(',').map(str::trim).filter(|port| !port.is_empty());
        let mut bad = bad.filter(|port| port.parse::<u16>().is_err());
        if all && value == "*" { None } else { bad.next().map(|port| format!("{port:?} is no port")) }
    };
    let ranges = |all: bool| -> Option<String> {
        let is_range = |text: &str| {
            let Some((address, length)) = text.split_once('/') else { return false };
            let most = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|length| length <= most)
        };
        let mut bad = value.split(',').map(str::trim).filter(|it| !it.is_empty()).filter(|it| !is_range(it));
        if all && value == "*" {
            None
        } else {
            bad.next().map(|it| format!("{it:?} is no range of addresses"))
        }
    };
    let (domain, last) = name.rsplit_once('/')?;
    match (domain, last) {
        ("traffic.sidecar.istio.io", "includeOutboundIPRanges") => ranges(true),
        ("traffic.sidecar.istio.io", "excludeOutboundIPRanges") => ranges(false),
        ("traffic.sidecar.istio.io", "includeInboundPorts") => ports(true),
        ("traffic.sidecar.istio.io", "excludeInboundPorts" | "excludeOutboundPorts") => ports(false),
        ("sidecar.istio.io", "interceptionMode") => (!["REDIRECT", "TPROXY", "NONE"].contains(&value))
            .then(|| format!("interceptionMode invalid, use REDIRECT,TPROXY,NONE: {value}")),
        ("status.sidecar.istio.io", "port") => {
            value.parse::<u16>().is_err().then(|| format!("{value:?} is no port"))
        }
        ("readiness.status.sidecar.istio.io", "applicationPorts") => ports(false),
        ("readiness.status.sidecar.istio.io", _) => {
            value.parse::<u32>().is_err().then(|| format!("{value:?} is no number"))
        }
        ("prometheus.istio.io", "merge-metrics") => {
            let is_bool =
                ["1", "t", "true", "0", "f", "false"].contains(&value.to_ascii_lowercase().as_str());
            (!is_bool).then(|| format!("{value:?} is neither true nor false"))
        }
        ("sidecar.istio.io", "proxyCPU" | "proxyCPULimit" | "proxyMemory" | "proxyMemoryLimit") => {
            let number = value.trim_end_matches(|character: char| character.is_ascii_alphabetic());
            number.parse::<f64>().is_err().then(|| format!("{value:?} is no quantity"))
        }
        _ => None,
    }
}
