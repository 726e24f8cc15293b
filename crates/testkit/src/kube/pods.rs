//! What the server refuses of a Pod, as far as somebody who changes Pods can get it wrong: names that are
//! missing or twice, mounts without volumes, ports, probes, fields that exclude each other.
//!
//! Sources: Kubernetes' documentation of its API (PodSpec v1 core).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::object::text;

/// A field's path, and what is wrong with it.
type Faults = Vec<(String, String)>;

/// The environment of a Pod's containers may be taken of these fields.
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// All that is wrong with a Pod.
pub fn pod_faults(pod: &Value) -> Faults {
    let mut found = Checks::default();
    found.metadata(&pod["metadata"]);
    let spec = &pod["spec"];
    let mut volumes = BTreeSet::new();
    for (index, volume) in items(spec, "volumes").enumerate() {
        let at = format!("spec.volumes[{index}]");
        found.unique(&at, volume, "name", &mut volumes);
        found.label(&format!("{at}.name"), text(volume, &["name"]));
        found.volume(&at, volume);
    }
    found.when(items(spec, "containers").next().is_none(), "spec.containers", "Required value");
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in items(spec, list).enumerate() {
            let at = format!("spec.{list}[{index}]");
            found.unique(&at, container, "name", &mut names);
            found.container(&at, container, list == "initContainers", &volumes);
        }
    }
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    found.when(grace.is_some_and(|it| it < 0), "spec.terminationGracePeriodSeconds", "must be non-negative");
    found.ids("spec.securityContext", &spec["securityContext"]);
    found.0
}

#[derive(Default)]
struct Checks(Faults);

impl Checks {
    fn when(&mut self, is_wrong: bool, at: &str, words: &str) {
        if is_wrong {
            self.0.push((at.to_owned(), words.to_owned()));
        }
    }

    fn unique<'v>(&mut self, at: &str, item: &'v Value, key: &str, seen: &mut BTreeSet<&'v str>) {
        let value = text(item, &[key]);
        self.when(value.is_empty(), &format!("{at}.{key}"), "Required value");
        self.when(!seen.insert(value), &format!("{at}.{key}"), &format!("Duplicate value: {value:?}"));
    }

    fn label(&mut self, at: &str, name: &str) {
        self.when(!is_label(name), at, &format!("Invalid value: {name:?}: it is no DNS label"));
    }

    fn metadata(&mut self, metadata: &Value) {
        for (key, value) in entries(metadata, "labels") {
            let at = format!("metadata.labels[{key}]");
            let value = value.as_str().unwrap_or("?!");
            let fits = value.len() <= 63 && (value.is_empty() || is_qualified(value));
            self.when(!is_key(key) || !fits, &at, &format!("Invalid value: {value:?}"));
        }
        let mut size = 0;
        for (key, value) in entries(metadata, "annotations") {
            let at = format!("metadata.annotations[{key}]");
            self.when(!is_key(&key.to_lowercase()) || !value.is_string(), &at, "Invalid value");
            size += key.len() + value.as_str().map_or(0, str::len);
        }
        self.when(size > 256 << 10, "metadata.annotations", "Too long: must have at most 262144 bytes");
    }

    fn volume(&mut self, at: &str, volume: &Value) {
        let sources =
            volume.as_object().into_iter().flatten().filter(|(key, it)| *key != "name" && !it.is_null());
        self.when(sources.count() > 1, at, "may not specify more than 1 volume type");
        for (index, source) in items(&volume["projected"], "sources").enumerate() {
            let at = format!("{at}.projected.sources[{index}]");
            let kinds = source.as_object().into_iter().flatten().filter(|(_, it)| !it.is_null()).count();
            self.when(kinds != 1, &at, "must specify exactly 1 source");
            let token = &source["serviceAccountToken"];
            let life = token.get("expirationSeconds").and_then(Value::as_i64);
            self.when(
                life.is_some_and(|it| it < 600),
                &at,
                "may not specify a duration less than 10 minutes",
            );
            self.when(token.is_object() && !is_inside(text(token, &["path"])), &at, "path");
        }
        for list in ["downwardAPI", "configMap", "secret"] {
            for item in items(&volume[list], "items") {
                let path = text(item, &["path"]);
                self.when(!is_inside(path), &format!("{at}.{list}.items"), &format!("path {path:?}"));
                let field = text(item, &["fieldRef", "fieldPath"]);
                let known = is_field(field) || ["metadata.labels", "metadata.annotations"].contains(&field);
                self.when(!field.is_empty() && !known, at, &format!("Unsupported value: {field:?}"));
            }
        }
    }

    fn container(&mut self, at: &str, container: &Value, is_init: bool, volumes: &BTreeSet<&str>) {
        self.label(&format!("{at}.name"), text(container, &["name"]));
        let image = text(container, &["image"]);
        self.when(image.trim() != image || image.is_empty(), &format!("{at}.image"), "Required value");
        let policy = text(container, &["restartPolicy"]);
        let lasts = policy == "Always";
        let fits = policy.is_empty() || (is_init && lasts);
        self.when(!fits, &format!("{at}.restartPolicy"), &format!("Unsupported value: {policy:?}"));
        self.ports(at, container);
        self.environment(at, container);
        let mut paths = BTreeSet::new();
        for (index, mount) in items(container, "volumeMounts").enumerate() {
            let at = format!("{at}.volumeMounts[{index}]");
            self.unique(&at, mount, "mountPath", &mut paths);
            let name = text(mount, &["name"]);
            self.when(!volumes.contains(name), &format!("{at}.name"), &format!("Not found: {name:?}"));
            self.when(text(mount, &["mountPath"]).contains(':'), &at, "must not contain ':'");
            let inner = text(mount, &["subPath"]);
            self.when(!inner.is_empty() && !is_inside(inner), &at, "subPath must be a relative path");
        }
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let Some(value) = container.get(probe).filter(|it| !it.is_null()) else { continue };
            let at = format!("{at}.{probe}");
            self.when(
                is_init && !lasts,
                &at,
                "may not be set for init containers without restartPolicy=Always",
            );
            self.handler(&at, value, &["exec", "httpGet", "tcpSocket", "grpc"]);
            let once = value.get("successThreshold").and_then(Value::as_i64).is_none_or(|it| it == 1);
            self.when(probe != "readinessProbe" && !once, &at, "successThreshold must be 1");
            for (key, number) in value.as_object().into_iter().flatten() {
                let is_negative = number.as_i64().is_some_and(|it| it < 0);
                self.when(is_negative, &format!("{at}.{key}"), "must be greater than or equal to 0");
            }
        }
        for hook in ["postStart", "preStop"] {
            let Some(value) = container["lifecycle"].get(hook).filter(|it| !it.is_null()) else { continue };
            let at = format!("{at}.lifecycle.{hook}");
            self.when(
                is_init && !lasts,
                &at,
                "may not be set for init containers without restartPolicy=Always",
            );
            self.handler(&at, value, &["exec", "httpGet", "tcpSocket", "sleep"]);
        }
        self.resources(at, &container["resources"]);
        let security = &container["securityContext"];
        self.ids(&format!("{at}.securityContext"), security);
        let stays = security.get("allowPrivilegeEscalation") == Some(&Value::Bool(false));
        let privileged = security.get("privileged") == Some(&Value::Bool(true));
        let words = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        self.when(stays && privileged, at, words);
        let mut added = items(&security["capabilities"], "add").filter_map(Value::as_str);
        let words = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        self.when(stays && added.any(|it| it == "CAP_SYS_ADMIN"), at, words);
    }

    fn ports(&mut self, at: &str, container: &Value) {
        let mut names = BTreeSet::new();
        for (index, port) in items(container, "ports").enumerate() {
            let at = format!("{at}.ports[{index}]");
            self.when(!is_port(&port["containerPort"]), &at, "containerPort must be between 1 and 65535");
            let known = ["", "TCP", "UDP", "SCTP"].contains(&text(port, &["protocol"]));
            self.when(!known, &at, "Unsupported value: protocol");
            let name = text(port, &["name"]);
            self.when(!name.is_empty() && !is_port_name(name), &at, &format!("Invalid value: {name:?}"));
            self.when(!name.is_empty() && !names.insert(name), &at, &format!("Duplicate value: {name:?}"));
        }
    }

    fn environment(&mut self, at: &str, container: &Value) {
        for (index, variable) in items(container, "env").enumerate() {
            let at = format!("{at}.env[{index}]");
            let name = text(variable, &["name"]);
            let printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=');
            self.when(name.is_empty() || !printable, &at, &format!("Invalid value: {name:?}"));
            let value = &variable["value"];
            self.when(!value.is_null() && !value.is_string(), &at, "value must be a string");
            let Some(from) = variable.get("valueFrom").and_then(Value::as_object) else { continue };
            self.when(from.len() != 1, &at, "must specify exactly one source");
            self.when(
                !text(variable, &["value"]).is_empty(),
                &at,
                "may not be specified when `value` is not empty",
            );
            let field = text(variable, &["valueFrom", "fieldRef", "fieldPath"]);
            self.when(
                from.contains_key("fieldRef") && !is_field(field),
                &at,
                &format!("Unsupported value: {field:?}"),
            );
        }
    }

    /// A handler has exactly one action.
    fn handler(&mut self, at: &str, handler: &Value, kinds: &[&str]) {
        let present = |kind: &&&str| handler.get(**kind).is_some_and(|it| !it.is_null());
        let count = kinds.iter().filter(present).count();
        self.when(count == 0, at, "must specify a handler type");
        self.when(count > 1, at, "may not specify more than 1 handler type");
        for kind in ["httpGet", "tcpSocket", "grpc"] {
            let Some(action) = handler.get(kind).filter(|it| it.is_object()) else { continue };
            let port = &action["port"];
            let named = kind != "grpc" && port.as_str().is_some_and(is_port_name);
            self.when(!named && !is_port(port), &format!("{at}.{kind}.port"), "must be between 1 and 65535");
            let scheme = ["", "HTTP", "HTTPS"].contains(&text(action, &["scheme"]));
            self.when(!scheme, &format!("{at}.{kind}.scheme"), "Unsupported value");
        }
        let command = items(&handler["exec"], "command").next().is_some();
        self.when(handler["exec"].is_object() && !command, &format!("{at}.exec.command"), "Required value");
    }

    fn resources(&mut self, at: &str, resources: &Value) {
        for (key, value) in entries(resources, "requests").chain(entries(resources, "limits")) {
            let wrong = quantity(value).is_none_or(|it| it < 0.0);
            self.when(wrong, &format!("{at}.resources[{key}]"), &format!("Invalid value: {value}"));
        }
        for (key, request) in entries(resources, "requests") {
            let limit = resources["limits"].get(key).and_then(quantity);
            let more = limit.zip(quantity(request)).is_some_and(|(limit, request)| request > limit);
            let words = format!("must be less than or equal to {key} limit");
            self.when(more, &format!("{at}.resources.requests[{key}]"), &words);
        }
    }

    fn ids(&mut self, at: &str, security: &Value) {
        for key in ["runAsUser", "runAsGroup", "fsGroup"] {
            let Some(value) = security.get(key).filter(|it| !it.is_null()) else { continue };
            let fits = value.as_i64().is_some_and(|it| (0..=i64::from(i32::MAX)).contains(&it));
            self.when(!fits, &format!("{at}.{key}"), "must be between 0 and 2147483647, inclusive");
        }
    }
}

fn items<'v>(value: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    value.get(list).and_then(Value::as_array).into_iter().flatten()
}

fn entries<'v>(value: &'v Value, map: &str) -> impl Iterator<Item = (&'v String, &'v Value)> + use<'v> {
    value.get(map).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn is_label(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = [name.bytes().next(), name.bytes().last()];
    let framed = ends.into_iter().all(|byte| byte.is_some_and(|byte| byte != b'-'));
    name.len() <= 63 && framed && name.bytes().all(known)
}

/// Letters, digits, `-`, `_` and `.`, and at both ends a letter or a digit.
fn is_qualified(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = [name.bytes().next(), name.bytes().last()];
    let framed = ends.into_iter().all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    name.len() <= 63 && framed && name.bytes().all(known)
}

/// A key of labels, with or without a prefix.
fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => prefix.split('.').all(is_label) && is_qualified(name),
        None => is_qualified(key),
    }
}

fn is_port(value: &Value) -> bool {
    value.as_i64().is_some_and(|port| (1..=65535).contains(&port))
}

fn is_port_name(name: &str) -> bool {
    is_label(name)
        && name.len() <= 15
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
}

/// A path below a folder.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('/') && path.split('/').all(|part| part != "..")
}

fn is_field(path: &str) -> bool {
    let keyed = ["metadata.labels['", "metadata.annotations['"];
    FIELDS.contains(&path) || keyed.iter().any(|start| path.starts_with(start) && path.ends_with("']"))
}

/// A quantity of Kubernetes: a number with an exponent, or with a suffix.
fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let split = text
        .find(|letter: char| letter.is_ascii_alphabetic() && !matches!(letter, 'e'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * scale)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::pod_faults;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "a", "labels": {"app": "a", "example.com/x": ""}},
            "spec": {
                "volumes": [{"name": "data", "emptyDir": {}}],
                "initContainers": [{"name": "side", "image": "s", "restartPolicy": "Always",
                    "startupProbe": {"tcpSocket": {"port": 80}}}],
                "containers": [{
                    "name": "app", "image": "a:1",
                    "ports": [{"name": "http", "containerPort": 80}],
                    "env": [{"name": "A", "value": "b"},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                    "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
                    "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": 1}},
                    "securityContext": {"runAsUser": 1337},
                }],
            },
        })
    }

    #[test]
    fn each_rule_refuses() {
        assert_eq!(pod_faults(&pod()), []);
        let cases = [
            ("/metadata/labels/app", json!("a b"), "labels[app]"),
            ("/spec/containers", json!([]), "spec.containers"),
            ("/spec/containers/0/name", json!("A"), "DNS label"),
            ("/spec/containers/0/name", json!("side"), "Duplicate"),
            ("/spec/containers/0/image", json!(""), "image"),
            ("/spec/containers/0/restartPolicy", json!("Always"), "restartPolicy"),
            ("/spec/initContainers/0/restartPolicy", json!("Never"), "restartPolicy"),
            ("/spec/initContainers/0/restartPolicy", Value::Null, "without restartPolicy=Always"),
            ("/spec/containers/0/ports/0/containerPort", json!(70_000), "65535"),
            ("/spec/containers/0/ports/0/name", json!("a-name-that-is-too-long"), "ports[0]"),
            ("/spec/containers/0/env/0/name", json!("A=B"), "env[0]"),
            ("/spec/containers/0/env/0/value", json!(7), "must be a string"),
            ("/spec/containers/0/env/1/value", json!("x"), "may not be specified"),
            ("/spec/containers/0/env/1/valueFrom/fieldRef/fieldPath", json!("spec.x"), "Unsupported"),
            ("/spec/containers/0/volumeMounts/0/name", json!("other"), "Not found"),
            ("/spec/containers/0/volumeMounts/0/mountPath", json!(""), "mountPath"),
            ("/spec/containers/0/readinessProbe/exec", json!({"command": ["x"]}), "more than 1"),
            ("/spec/containers/0/readinessProbe/httpGet", Value::Null, "must specify a handler"),
            ("/spec/containers/0/readinessProbe/httpGet/port", json!(0), "httpGet.port"),
            ("/spec/containers/0/readinessProbe/periodSeconds", json!(-1), "periodSeconds"),
            ("/spec/containers/0/lifecycle/preStop/exec/command", json!([]), "command"),
            ("/spec/containers/0/resources/requests/cpu", json!("much"), "Invalid value"),
            ("/spec/containers/0/resources/requests/cpu", json!("2"), "less than or equal"),
            ("/spec/containers/0/securityContext/runAsUser", json!(-1), "runAsUser"),
            ("/spec/volumes/0/configMap", json!({"name": "x"}), "more than 1 volume type"),
            ("/spec/volumes/0/name", json!("d_a"), "DNS label"),
        ];
        for (path, value, words) in cases {
            let mut bad = pod();
            let (parent, key) = path.rsplit_once('/').expect("a path");
            match bad.pointer_mut(parent).unwrap_or_else(|| panic!("{path}")) {
                Value::Object(map) => drop(map.insert(key.to_owned(), value.clone())),
                other => panic!("{path}: {other}"),
            }
            let found = format!("{:?}", pod_faults(&bad));
            assert!(found.contains(words), "{path}: {found}");
        }
    }
}
