//! The components of an installation: which there are, and with which values their charts are rendered.
//!
//! [`components`] is the translation of an IstioOperator into charts and values; it is the same for
//! everything that installs, prints or compares.

use serde_json::{Map, Value, json};

use super::charts::Chart;
use super::operator::Operator;
use super::tree::{self, merge};

/// What a component is, in the order of installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Kinds and what else a cluster has once.
    Base,
    /// The control plane.
    Pilot,
    /// The CNI plugin.
    Cni,
    /// Gateways for what comes in.
    IngressGateways,
    /// Gateways for what goes out.
    EgressGateways,
}

impl Kind {
    /// All, in the order of installation.
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Base, Kind::Pilot, Kind::Cni, Kind::IngressGateways, Kind::EgressGateways];

    /// The value of the label `operator.istio.io/component`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Base => "Base",
            Kind::Pilot => "Pilot",
            Kind::Cni => "Cni",
            Kind::IngressGateways => "IngressGateways",
            Kind::EgressGateways => "EgressGateways",
        }
    }

    /// What people are told that was installed.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Base => "Leno core",
            Kind::Pilot => "Lenod",
            Kind::Cni => "CNI",
            Kind::IngressGateways => "Ingress gateways",
            Kind::EgressGateways => "Egress gateways",
        }
    }

    /// Its field of `spec.components`.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Kind::Base => "base",
            Kind::Pilot => "pilot",
            Kind::Cni => "cni",
            Kind::IngressGateways => "ingressGateways",
            Kind::EgressGateways => "egressGateways",
        }
    }
}

/// One component that is to be installed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Component {
    pub(crate) kind: Kind,
    pub(crate) chart: Chart,
    /// Where it is.
    pub(crate) namespace: String,
    /// The values for its chart, over the chart's defaults.
    pub(crate) values: Value,
    /// Its `k8s` settings, and where they are in the IstioOperator.
    pub(crate) kubernetes: Value,
    pub(crate) path: String,
    /// The kind, name and container of what runs.
    pub(crate) workload: (&'static str, String, &'static str),
}

/// What the release of the charts is called, as with istioctl.
pub(crate) const RELEASE: &str = "istio";

/// The components that an operator asks for, in the order of installation.
pub(crate) fn components(operator: &Operator) -> Vec<Component> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let path = format!("spec.components.{}", kind.field());
        let said = tree::find(&operator.spec, &format!("components.{}", kind.field()));
        match kind {
            Kind::Base | Kind::Pilot | Kind::Cni => {
                let said = said.cloned().unwrap_or_else(|| json!({ "enabled": kind != Kind::Cni }));
                if is_enabled(&said) {
                    all.push(single(operator, kind, &said, path));
                }
            }
            Kind::IngressGateways | Kind::EgressGateways => {
                for (at, said) in said.and_then(Value::as_array).into_iter().flatten().enumerate() {
                    let section = section(kind);
                    let also = operator.values().pointer(&format!("/gateways/{section}/enabled"));
                    if is_enabled(said) || also == Some(&Value::Bool(true)) {
                        all.push(gateway(operator, kind, said, format!("{path}[{at}]")));
                    }
                }
            }
        }
    }
    all
}

fn is_enabled(said: &Value) -> bool {
    said.get("enabled").and_then(Value::as_bool) != Some(false)
}

/// The section of `values.gateways`.
fn section(kind: Kind) -> &'static str {
    if kind == Kind::EgressGateways { "istio-egressgateway" } else { "istio-ingressgateway" }
}

fn namespace(operator: &Operator, said: &Value) -> String {
    match tree::text(said, "namespace") {
        own if own.is_empty() => operator.namespace.clone(),
        own => own,
    }
}

/// The values under some names.
fn pick(values: &Value, names: &[&str]) -> Map<String, Value> {
    let found =
        names.iter().filter_map(|name| values.get(*name).map(|value| ((*name).to_owned(), value.clone())));
    found.collect()
}

fn single(operator: &Operator, kind: Kind, said: &Value, path: String) -> Component {
    let all = operator.values();
    let (chart, mut values, workload) = match kind {
        Kind::Base => {
            let mut values = pick(all, &["global", "base", "defaultRevision"]);
            // A control plane with a name checks what names it, until it is made the default.
            let default = if operator.revision.is_empty() { "default" } else { "" };
            values.entry("defaultRevision").or_insert_with(|| Value::from(default));
            (Chart::Base, Value::Object(values), ("", String::new(), ""))
        }
        Kind::Cni => {
            let mut values = Value::Object(pick(all, &["global", "cni", "profile", "platform", "revision"]));
            hub_and_tag(&mut values, "cni", said);
            (Chart::Cni, values, ("DaemonSet", "istio-cni-node".to_owned(), "install-cni"))
        }
        _ => {
            let others = ["cni", "gateways", "defaultRevision"];
            let mut values = all.as_object().cloned().unwrap_or_default();
            values.retain(|name, _| !others.contains(&name.as_str()));
            let gateways = all.get("gateways").map(|it| pick(it, &["securityContext", "seccompProfile"]));
            if let Some(gateways) = gateways.filter(|gateways| !gateways.is_empty()) {
                values.insert("gateways".to_owned(), Value::Object(gateways));
            }
            let mut values = Value::Object(values);
            hub_and_tag(&mut values, "pilot", said);
            let suffix = match operator.revision.as_str() {
                "" => String::new(),
                revision => format!("-{revision}"),
            };
            (Chart::Leno, values, ("Deployment", format!("istiod{suffix}"), "discovery"))
        }
    };
    if kind != Kind::Base
        && let Value::Object(values) = &mut values
    {
        values.insert("ownerName".to_owned(), Value::from(operator.name.as_str()));
    }
    let kubernetes = said.get("k8s").cloned().unwrap_or_default();
    let namespace = namespace(operator, said);
    Component { kind, chart, namespace, values, kubernetes, path, workload }
}

/// A component's own image comes over that of all.
fn hub_and_tag(values: &mut Value, section: &str, said: &Value) {
    for name in ["hub", "tag"] {
        let text = tree::text(said, name);
        if !text.is_empty() {
            merge(values, &json!({ section: { name: text } }));
        }
    }
}

/// A gateway: its chart's values from those that Istio has for it.
fn gateway(operator: &Operator, kind: Kind, said: &Value, path: String) -> Component {
    let all = operator.values();
    let empty = Value::Object(Map::new());
    let old = all.pointer(&format!("/gateways/{}", section(kind))).unwrap_or(&empty);
    let name = [tree::text(said, "name"), tree::text(old, "name")].into_iter().find(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| section(kind).to_owned());
    let mut values = json!({
        "name": name,
        "revision": operator.revision,
        "ownerName": operator.name,
        "component": kind.label(),
        "serviceAccount": { "name": format!("{name}-service-account") },
        "labels": { "app": name, "istio": section(kind).trim_start_matches("istio-") },
        // As Istio's gateways of an IstioOperator have it.
        "podDisruptionBudget": { "minAvailable": 1 },
        "strategy": { "rollingUpdate": { "maxSurge": "100%", "maxUnavailable": "25%" } },
        "service": { "ports": ports(kind) },
    });
    if kind == Kind::EgressGateways {
        // The way out is for the mesh alone: no load balancer lets others in.
        merge(&mut values, &json!({ "service": { "type": "ClusterIP" } }));
    }
    for (field, value) in old.as_object().into_iter().flatten() {
        let over = match field.as_str() {
            "autoscaleEnabled" => json!({ "autoscaling": { "enabled": value } }),
            "autoscaleMin" => json!({ "autoscaling": { "minReplicas": value } }),
            "autoscaleMax" => json!({ "autoscaling": { "maxReplicas": value } }),
            "cpu" => {
                let most = value.get("targetAverageUtilization");
                json!({ "autoscaling": { "targetCPUUtilizationPercentage": most } })
            }
            "memory" => {
                let most = value.get("targetAverageUtilization");
                json!({ "autoscaling": { "targetMemoryUtilizationPercentage": most } })
            }
            "rollingMaxSurge" => json!({ "strategy": { "rollingUpdate": { "maxSurge": value } } }),
            "rollingMaxUnavailable" => {
                json!({ "strategy": { "rollingUpdate": { "maxUnavailable": value } } })
            }
            "serviceAnnotations" => json!({ "service": { "annotations": value } }),
            "injectionTemplate" => match value.as_str() {
                Some("") | None => continue,
                Some(template) => json!({ "podAnnotations": { "inject.istio.io/templates": template } }),
            },
            "externalTrafficPolicy"
            | "ipFamilies"
            | "ipFamilyPolicy"
            | "loadBalancerIP"
            | "loadBalancerSourceRanges"
            | "ports"
            | "type" => json!({ "service": { field: value } }),
            // Known by now, or whether it is there at all.
            "enabled" | "name" => continue,
            // These have the same name and form.
            _ => json!({ field: value }),
        };
        merge(&mut values, &over);
    }
    if let Some(labels) = said.get("label") {
        merge(&mut values, &json!({ "labels": labels }));
    }
    // Strategic merges cannot take a port away: those of the Service are the chart's.
    let mut kubernetes = said.get("k8s").cloned().unwrap_or_default();
    if let Some(ports) =
        kubernetes.get_mut("service").and_then(|it| it.as_object_mut()?.shift_remove("ports"))
    {
        merge(&mut values, &json!({ "service": { "ports": ports } }));
    }
    let global = all.get("global");
    if let Some(policy) = global.and_then(|it| it.get("networkPolicy")) {
        merge(&mut values, &json!({ "global": { "networkPolicy": policy } }));
    }
    if global.and_then(|it| it.pointer("/defaultPodDisruptionBudget/enabled")) == Some(&Value::Bool(false)) {
        merge(&mut values, &json!({ "podDisruptionBudget": null }));
    }
    for name in ["priorityClassName", "imagePullPolicy"] {
        if let Some(value) = global.and_then(|it| it.get(name)) {
            merge(&mut values, &json!({ name: value }));
        }
    }
    if let Some(Value::Array(secrets)) = global.and_then(|it| it.get("imagePullSecrets")) {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
        merge(&mut values, &json!({ "imagePullSecrets": secrets }));
    }
    Component {
        kind,
        chart: Chart::Gateway,
        namespace: namespace(operator, said),
        values,
        kubernetes,
        path,
        workload: ("Deployment", name, "istio-proxy"),
    }
}

/// The ports of a gateway, to which its Pods listen without being root.
fn ports(kind: Kind) -> Value {
    let port = |name: &str, port: u16, target: u16| json!({ "name": name, "port": port, "protocol": "TCP", "targetPort": target });
    match kind {
        Kind::EgressGateways => json!([port("http2", 80, 8080), port("https", 443, 8443)]),
        _ => json!([port("status-port", 15021, 15021), port("http2", 80, 8080), port("https", 443, 8443)]),
    }
}
