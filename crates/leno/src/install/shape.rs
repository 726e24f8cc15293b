//! What may be said in an IstioOperator and in values, and what of it does nothing.
//!
//! [`SPEC`] is the shape of an IstioOperator's `spec`. Values have the shape of the charts' defaults
//! (`values.yaml`): a name that no chart has a default for is refused, and a map that is empty there
//! takes anything. [`INERT`] are names of Istio's that mean nothing here: they are reported.

use serde_json::Value;

use super::charts::Chart;

/// The form of a setting.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Anything.
    Any,
    /// true or false.
    Bool,
    /// Text.
    Text,
    /// Text, or what YAML takes for a number, as in `tag: 1.2`.
    TextOrNumber,
    /// A whole number.
    Number,
    /// An object with any fields.
    Object,
    /// A list of anything.
    Items,
    /// An object with these fields.
    Fields(&'static [(&'static str, Shape)]),
    /// A list of such.
    List(&'static Shape),
    /// The charts' values.
    Values,
    /// Not supported yet.
    Refused,
}

/// One thing that is wrong with settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Where, as `spec.components.pilot.enabled`; names with dots in `["..."]`.
    pub(crate) path: String,
    /// What.
    pub(crate) words: String,
    /// Whether it does no harm, as it does nothing.
    pub(crate) is_inert: bool,
}

const OVERLAY: Shape = Shape::Fields(&[
    ("apiVersion", Shape::Text),
    ("kind", Shape::Text),
    ("name", Shape::Text),
    ("patches", Shape::List(&Shape::Fields(&[("path", Shape::Text), ("value", Shape::Any)]))),
]);

/// Settings of a component's objects in Kubernetes.
const KUBERNETES: Shape = Shape::Fields(&[
    ("affinity", Shape::Object),
    ("env", Shape::Items),
    ("hpaSpec", Shape::Object),
    ("imagePullPolicy", Shape::Text),
    ("nodeSelector", Shape::Object),
    ("overlays", Shape::List(&OVERLAY)),
    ("podAnnotations", Shape::Object),
    ("podDisruptionBudget", Shape::Object),
    ("priorityClassName", Shape::Text),
    ("readinessProbe", Shape::Object),
    ("replicaCount", Shape::Number),
    ("resources", Shape::Object),
    ("securityContext", Shape::Object),
    ("service", Shape::Object),
    ("serviceAnnotations", Shape::Object),
    ("strategy", Shape::Object),
    ("tolerations", Shape::Items),
    ("volumeMounts", Shape::Items),
    ("volumes", Shape::Items),
]);

const COMPONENT: Shape = Shape::Fields(&[
    ("enabled", Shape::Bool),
    ("namespace", Shape::Text),
    ("hub", Shape::Text),
    ("tag", Shape::TextOrNumber),
    ("k8s", KUBERNETES),
]);

const GATEWAYS: Shape = Shape::List(&Shape::Fields(&[
    ("name", Shape::Text),
    ("enabled", Shape::Bool),
    ("namespace", Shape::Text),
    ("label", Shape::Object),
    ("hub", Shape::Refused),
    ("tag", Shape::Refused),
    ("k8s", KUBERNETES),
]));

const OFF: Shape = Shape::Fields(&[("enabled", Shape::Refused), ("namespace", Shape::Any)]);

/// An IstioOperator's `spec`.
pub(crate) const SPEC: Shape = Shape::Fields(&[
    ("profile", Shape::Text),
    ("hub", Shape::Text),
    ("tag", Shape::TextOrNumber),
    ("namespace", Shape::Text),
    ("revision", Shape::TextOrNumber),
    ("compatibilityVersion", Shape::Refused),
    ("installPackagePath", Shape::Refused),
    ("meshConfig", Shape::Object),
    (
        "components",
        Shape::Fields(&[
            ("base", Shape::Fields(&[("enabled", Shape::Bool), ("k8s", KUBERNETES)])),
            ("pilot", COMPONENT),
            ("cni", COMPONENT),
            ("ztunnel", OFF),
            ("istiodRemote", OFF),
            ("ingressGateways", GATEWAYS),
            ("egressGateways", GATEWAYS),
        ]),
    ),
    ("values", Shape::Values),
    ("unvalidatedValues", Shape::Object),
]);

/// Settings of `values.gateways.istio-ingressgateway` and `istio-egressgateway`, all of which
/// [`super::component`] turns into those of the chart gateway.
pub(crate) const GATEWAY_VALUES: &[(&str, Shape)] = &[
    ("additionalContainers", Shape::Items),
    ("autoscaleEnabled", Shape::Bool),
    ("autoscaleMax", Shape::Number),
    ("autoscaleMin", Shape::Number),
    ("cpu", Shape::Object),
    ("enabled", Shape::Bool),
    ("env", Shape::Object),
    ("externalTrafficPolicy", Shape::Text),
    ("injectionTemplate", Shape::Text),
    ("ipFamilies", Shape::Items),
    ("ipFamilyPolicy", Shape::Text),
    ("labels", Shape::Object),
    ("loadBalancerIP", Shape::Text),
    ("loadBalancerSourceRanges", Shape::Items),
    ("memory", Shape::Object),
    ("name", Shape::Text),
    ("nodeSelector", Shape::Object),
    ("podAnnotations", Shape::Object),
    ("ports", Shape::Items),
    ("replicaCount", Shape::Number),
    ("resources", Shape::Object),
    ("rollingMaxSurge", Shape::TextOrNumber),
    ("rollingMaxUnavailable", Shape::TextOrNumber),
    ("serviceAccount", Shape::Object),
    ("serviceAnnotations", Shape::Object),
    ("tolerations", Shape::Items),
    ("topologySpreadConstraints", Shape::Items),
    ("type", Shape::Text),
];

/// Values of Istio's charts that have no effect here, or are not supported yet, and why.
const INERT: &[(&str, &str)] = &[
    ("base.enableIstioConfigCRDs", "use base.enableCRDTemplates"),
    ("cni.cniNetnsDir", "nodes' network namespaces are not looked for by name"),
    ("cni.useAppArmorAnnotation", "no AppArmor profile is set"),
    ("experimental", "there is nothing experimental to be switched on"),
    ("gateways.istio-egressgateway.configVolumes", "the gateways' Pods are made by injection"),
    ("gateways.istio-egressgateway.runAsRoot", "gateways never run as root"),
    ("gateways.istio-egressgateway.secretVolumes", "gateways get Secrets from the control plane"),
    ("gateways.istio-ingressgateway.configVolumes", "the gateways' Pods are made by injection"),
    ("gateways.istio-ingressgateway.customService", "use type: None"),
    ("gateways.istio-ingressgateway.ingressPorts", "use ports"),
    ("gateways.istio-ingressgateway.runAsRoot", "gateways never run as root"),
    ("gateways.istio-ingressgateway.secretVolumes", "gateways get Secrets from the control plane"),
    ("global.arch", "Pods are not bound to processors; use nodeSelector or affinity"),
    ("global.configCluster", "there is one cluster"),
    ("global.defaultNodeSelector", "use nodeSelector of the components"),
    ("global.defaultTolerations", "use tolerations of the components"),
    ("global.jwtPolicy", "tokens are those of third parties always"),
    ("global.oneNamespace", "all namespaces are watched"),
    ("global.waypoint", "there are no waypoints"),
    ("pilot.configNamespace", "it is the root namespace"),
    ("pilot.configSource", "configuration comes from the API server"),
    ("pilot.crlConfigMapName", "it is istio-ca-crl"),
    ("pilot.jwksResolverExtraRootCA", "issuers' keys are fetched by proxies"),
    ("pilot.taint", "nodes are not untainted"),
    ("pilot.trustedZtunnelName", "set pilot.env.CA_TRUSTED_NODE_ACCOUNTS"),
    ("pilot.trustedZtunnelNamespace", "set pilot.env.CA_TRUSTED_NODE_ACCOUNTS"),
];

/// Checks an IstioOperator's `spec`.
pub(crate) fn check_spec(spec: &Value, out: &mut Vec<Wrong>) {
    check(spec, &SPEC, "spec", out);
}

/// Checks the charts' values, found at a path.
pub(crate) fn check_values(values: &Value, path: &str, out: &mut Vec<Wrong>) {
    let known = known_values();
    check_known(values, &known, path, "", out);
}

fn wrong(out: &mut Vec<Wrong>, path: &str, words: impl Into<String>) {
    out.push(Wrong { path: path.to_owned(), words: words.into(), is_inert: false });
}

/// The path of a field.
fn field(path: &str, name: &str) -> String {
    match (path, name.contains(['.', '['])) {
        (path, true) => format!("{path}[\"{name}\"]"),
        ("", false) => name.to_owned(),
        (path, false) => format!("{path}.{name}"),
    }
}

fn check(value: &Value, shape: &Shape, path: &str, out: &mut Vec<Wrong>) {
    // Null is what a field is that is not there.
    if value.is_null() {
        return;
    }
    match shape {
        Shape::Any => {}
        Shape::Bool if value.is_boolean() => {}
        Shape::Bool => wrong(out, path, format!("{value} must be true or false")),
        Shape::Text if value.is_string() => {}
        Shape::Text => wrong(out, path, format!("{value} must be text")),
        Shape::TextOrNumber if value.is_string() || value.is_number() => {}
        Shape::TextOrNumber => wrong(out, path, format!("{value} must be text")),
        Shape::Number if value.is_u64() => {}
        Shape::Number => wrong(out, path, format!("{value} must be a whole number")),
        Shape::Object if value.is_object() => {}
        Shape::Object => wrong(out, path, format!("{value} must be an object")),
        Shape::Items if value.is_array() => {}
        Shape::Items => wrong(out, path, format!("{value} must be a list")),
        Shape::Fields(fields) => {
            let Value::Object(object) = value else {
                return wrong(out, path, format!("{value} must be an object"));
            };
            for (name, inner) in object {
                let at = field(path, name);
                match fields.iter().find(|(known, _)| known == name) {
                    Some((_, shape)) => check(inner, shape, &at, out),
                    None => wrong(out, &at, format!("unknown field {name:?}")),
                }
            }
        }
        Shape::List(shape) => {
            let Value::Array(items) = value else {
                return wrong(out, path, format!("{value} must be a list"));
            };
            for (at, item) in items.iter().enumerate() {
                check(item, shape, &format!("{path}[{at}]"), out);
            }
        }
        Shape::Values => check_values(value, path, out),
        // What is off or empty asks for nothing.
        Shape::Refused if matches!(value, Value::Bool(false)) || value.as_str() == Some("") => {}
        Shape::Refused => wrong(out, path, "not supported yet"),
    }
}

/// Checks values by what is known; `below` is the path among the values.
fn check_known(value: &Value, known: &Value, path: &str, below: &str, out: &mut Vec<Wrong>) {
    match (known, value) {
        (_, Value::Null) => {}
        (Value::Object(known), Value::Object(object)) if !known.is_empty() => {
            for (name, inner) in object {
                let at = field(path, name);
                let key = field(below, name);
                if let Some((_, why)) = INERT.iter().find(|(inert, _)| *inert == key) {
                    out.push(Wrong { path: at, words: format!("has no effect: {why}"), is_inert: true });
                    continue;
                }
                match (key.as_str(), known.get(name)) {
                    ("gateways.istio-ingressgateway" | "gateways.istio-egressgateway", _) => {
                        check_gateway(inner, &at, &key, out);
                    }
                    ("ztunnel", _) => wrong(out, &at, "not supported yet"),
                    (_, Some(known)) => check_known(inner, known, &at, &key, out),
                    (_, None) => wrong(out, &at, format!("unknown value {name:?}")),
                }
            }
        }
        (Value::Object(_), Value::Object(_)) => {}
        (Value::Object(_), other) => wrong(out, path, format!("{other} must be an object")),
        (Value::Array(_), other) if !other.is_array() => wrong(out, path, format!("{other} must be a list")),
        (Value::Bool(_), other) if !other.is_boolean() => {
            wrong(out, path, format!("{other} must be true or false"));
        }
        (Value::String(_) | Value::Number(_), other) if other.is_object() || other.is_array() => {
            wrong(out, path, "must be a single value");
        }
        _ => {}
    }
}

/// Checks the values of a gateway.
fn check_gateway(value: &Value, path: &str, below: &str, out: &mut Vec<Wrong>) {
    let Value::Object(object) = value else {
        return check(value, &Shape::Object, path, out);
    };
    for (name, inner) in object {
        let (at, key) = (field(path, name), field(below, name));
        if let Some((_, why)) = INERT.iter().find(|(inert, _)| *inert == key) {
            out.push(Wrong { path: at, words: format!("has no effect: {why}"), is_inert: true });
            continue;
        }
        match GATEWAY_VALUES.iter().find(|(known, _)| known == name) {
            Some((_, shape)) => check(inner, shape, &at, out),
            None => wrong(out, &at, format!("unknown value {name:?}")),
        }
    }
}

/// All values that charts have defaults for, in the form in which an IstioOperator has them.
fn known_values() -> Value {
    let mut known = serde_json::Map::new();
    let mut global = Value::Object(serde_json::Map::new());
    let (mut pilot, mut cni) = (serde_json::Map::new(), serde_json::Map::new());
    for chart in [Chart::Base, Chart::Leno, Chart::Cni] {
        let Value::Object(defaults) = chart.defaults() else { continue };
        for (name, value) in defaults {
            match (chart, name.as_str()) {
                (_, "global") => super::tree::merge(&mut global, &value),
                (_, "ownerName") => {}
                (Chart::Base, _)
                | (
                    Chart::Leno,
                    "meshConfig"
                    | "revision"
                    | "revisionTags"
                    | "sidecarInjectorWebhook"
                    | "istiodRemote"
                    | "telemetry"
                    | "base",
                ) => match known.get_mut(&name) {
                    Some(there) => super::tree::merge(there, &value),
                    None => drop(known.insert(name, value)),
                },
                (Chart::Leno, "gateways") => {
                    known.insert(name, value);
                }
                (Chart::Cni, "revision") => {}
                (Chart::Cni, _) => drop(cni.insert(name, value)),
                _ => drop(pilot.insert(name, value)),
            }
        }
    }
    if let Value::Object(global) = &mut global {
        for name in ["platform", "profile"] {
            global.insert(name.to_owned(), Value::from(""));
        }
    }
    let open = || Value::Object(serde_json::Map::new());
    known.insert("meshConfig".to_owned(), open());
    for name in ["platform", "profile"] {
        known.insert(name.to_owned(), Value::from(""));
    }
    known.insert("global".to_owned(), global);
    known.insert("pilot".to_owned(), Value::Object(pilot));
    known.insert("cni".to_owned(), Value::Object(cni));
    Value::Object(known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{INERT, check_spec, known_values};
    use crate::install::tree;

    fn told(spec: &serde_json::Value) -> Vec<String> {
        let mut out = Vec::new();
        check_spec(spec, &mut out);
        out.iter().map(|wrong| format!("{}: {}", wrong.path, wrong.words)).collect()
    }

    #[test]
    fn what_is_refused() {
        let spec = json!({
            "hub": "h", "tag": 1, "profil": "demo", "compatibilityVersion": "1.20",
            "components": {
                "pilot": { "enabled": "yes", "k8s": { "replicaCount": -1, "overlays": [{ "patches": [{ "pfad": 1 }] }] } },
                "ztunnel": { "enabled": true },
                "ingressGateways": [{ "name": "x", "enabled": true }, { "names": "y" }],
            },
            "values": {
                "global": { "proxy": { "logLevel": "debug", "logLevle": "x", "resources": 1 }, "hubb": 1 },
                "pilot": { "env": { "ANY": "thing" }, "resource": {}, "autoscaleEnabled": "x" },
                "gateways": { "istio-ingressgateway": { "type": "NodePort", "typ": 1, "runAsRoot": true } },
                "meshConfig": { "anything": 1 },
                "ztunnel": {},
            },
        });
        let expected = expect_test::expect![[r#"
            spec.profil: unknown field "profil"
            spec.compatibilityVersion: not supported yet
            spec.components.pilot.enabled: "yes" must be true or false
            spec.components.pilot.k8s.replicaCount: -1 must be a whole number
            spec.components.pilot.k8s.overlays[0].patches[0].pfad: unknown field "pfad"
            spec.components.ztunnel.enabled: not supported yet
            spec.components.ingressGateways[1].names: unknown field "names"
            spec.values.global.proxy.logLevle: unknown value "logLevle"
            spec.values.global.proxy.resources: 1 must be an object
            spec.values.global.hubb: unknown value "hubb"
            spec.values.pilot.resource: unknown value "resource"
            spec.values.pilot.autoscaleEnabled: "x" must be true or false
            spec.values.gateways.istio-ingressgateway.typ: unknown value "typ"
            spec.values.gateways.istio-ingressgateway.runAsRoot: has no effect: gateways never run as root
            spec.values.ztunnel: not supported yet"#]];
        expected.assert_eq(&told(&spec).join("\n"));
    }

    #[test]
    fn what_is_inert_is_nowhere_else() {
        let known = known_values();
        for (path, _) in INERT {
            assert!(tree::find(&known, path).is_none(), "{path} has a default");
        }
    }
}
