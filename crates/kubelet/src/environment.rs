//! The environment of a container, as a kubelet makes it. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core;

use crate::quantity::Quantity;
use crate::sources::{ServiceAddress, Sources};

/// Variables in the order of their declaration; a later one of the same name counts.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
}

/// What the downward API tells besides the pod's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The node's name.
    pub node: String,
    /// The node's address.
    pub node_address: Ipv4Addr,
    /// What a container without limits may use: processors in thousandths, and bytes.
    pub capacity: (u64, u64),
}

/// What this machine has: processors in thousandths, and bytes of memory.
pub fn capacity() -> (u64, u64) {
    let processors =
        std::thread::available_parallelism().map_or(1, |it| u64::try_from(it.get()).unwrap_or(1));
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = table.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let memory = total.and_then(|it| it.trim().parse::<u64>().ok()).unwrap_or_default();
    (processors * 1000, memory * 1024)
}

/// Something that a container refers to and that is not there: field path within the container, and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As `env[3].valueFrom`.
    pub path: String,
    /// In words.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Environment {
    /// Sets a variable, in place of an earlier one.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(other, _)| other != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Sets several.
    pub fn extend(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            self.set(&name, &value);
        }
    }

    /// All, in their order.
    pub fn into_variables(self) -> Vec<(String, String)> {
        self.variables
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Kubernetes' `$(NAME)`: a name that is not known stays as it is, `$$(NAME)` is `$(NAME)`.
    pub fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            if let Some(escaped) = after.strip_prefix('$') {
                expanded.push('$');
                rest = escaped;
                continue;
            }
            let name = after.strip_prefix('(').and_then(|after| after.split_once(')'));
            match name.and_then(|(name, after)| Some((self.find(name)?, after))) {
                Some((value, after)) => {
                    expanded.push_str(value);
                    rest = after;
                }
                None => {
                    expanded.push('$');
                    rest = after;
                }
            }
        }
        expanded + rest
    }

    /// The variables that Kubernetes makes of the Services of a pod's namespace.
    pub fn add_services(&mut self, services: &[ServiceAddress]) {
        for ServiceAddress { name, address, ports } in services {
            let Some(first) = ports.first() else { continue };
            let name = variable_name(name);
            self.set(&format!("{name}_SERVICE_HOST"), &address.to_string());
            self.set(&format!("{name}_SERVICE_PORT"), &first.port.to_string());
            for port in ports {
                if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                    let variable = format!("{name}_SERVICE_PORT_{}", variable_name(port_name));
                    self.set(&variable, &port.port.to_string());
                }
            }
            self.set(&format!("{name}_PORT"), &url(first, *address));
            for port in ports {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
                self.set(&prefix, &url(port, *address));
                self.set(&format!("{prefix}_PROTO"), &protocol.to_ascii_lowercase());
                self.set(&format!("{prefix}_PORT"), &port.port.to_string());
                self.set(&format!("{prefix}_ADDR"), &address.to_string());
            }
        }
    }

    /// `envFrom` and `env` of a container. What is missing is returned.
    pub fn add_container(
        &mut self,
        pod: &core::Pod,
        container: &core::Container,
        facts: &Facts,
        sources: &dyn Sources,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        for (index, source) in container.env_from.iter().flatten().enumerate() {
            let found = match (&source.config_map_ref, &source.secret_ref) {
                (Some(it), _) => {
                    ("ConfigMap", &it.name, it.optional, sources.config_map(namespace, &it.name))
                }
                (None, Some(it)) => ("Secret", &it.name, it.optional, sources.secret(namespace, &it.name)),
                (None, None) => continue,
            };
            let prefix = source.prefix.as_deref().unwrap_or_default();
            match found {
                (_, _, _, Some(values)) => {
                    for (name, value) in values {
                        self.set(&format!("{prefix}{name}"), &String::from_utf8_lossy(&value));
                    }
                }
                (_, _, Some(true), None) => {}
                (kind, name, _, None) => faults.push(Fault {
                    path: format!("envFrom[{index}]"),
                    message: format!("there is no {kind} {name:?}"),
                }),
            }
        }
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let value = match &variable.value_from {
                None => Ok(Some(self.expand(variable.value.as_deref().unwrap_or_default()))),
                Some(source) => value_from(source, pod, container, namespace, facts, sources),
            };
            match value {
                Ok(Some(value)) => self.set(&variable.name, &value),
                Ok(None) => {}
                Err(message) => faults.push(Fault { path: format!("env[{index}].valueFrom"), message }),
            }
        }
        faults
    }
}

fn value_from(
    source: &core::EnvVarSource,
    pod: &core::Pod,
    container: &core::Container,
    namespace: &str,
    facts: &Facts,
    sources: &dyn Sources,
) -> Result<Option<String>, String> {
    let key_of =
        |values: Option<BTreeMap<String, Vec<u8>>>, kind: &str, name: &str, key: &str, optional| match values
            .and_then(|mut values| values.remove(key))
        {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if optional == Some(true) => Ok(None),
            None => Err(format!("there is no key {key:?} in a {kind} {name:?}")),
        };
    if let Some(field) = &source.field_ref {
        let value = field_of(pod, &field.field_path, facts);
        return match value {
            Some(value) => Ok(Some(value)),
            None => Err(format!("the field {:?} is not known", field.field_path)),
        };
    }
    if let Some(it) = &source.config_map_key_ref {
        return key_of(sources.config_map(namespace, &it.name), "ConfigMap", &it.name, &it.key, it.optional);
    }
    if let Some(it) = &source.secret_key_ref {
        return key_of(sources.secret(namespace, &it.name), "Secret", &it.name, &it.key, it.optional);
    }
    match &source.resource_field_ref {
        Some(selector) => resource_of(pod, Some(container), selector, facts).map(Some),
        None => Err("it has no source".to_owned()),
    }
}

/// A field of a pod by the path that the downward API has for it.
pub(crate) fn field_of(pod: &core::Pod, path: &str, facts: &Facts) -> Option<String> {
    let subscript = |field: &str| {
        let inner = path.strip_prefix(field)?.strip_prefix('[')?.strip_suffix(']')?;
        Some(inner.trim_matches(['\'', '"']).to_owned())
    };
    let metadata = &pod.metadata;
    for (field, map) in
        [("metadata.labels", &metadata.labels), ("metadata.annotations", &metadata.annotations)]
    {
        if let Some(name) = subscript(field) {
            return Some(map.as_ref().and_then(|map| map.get(&name)).cloned().unwrap_or_default());
        }
        if path == field {
            let lines = map.iter().flatten().map(|(name, value)| format!("{name}={value:?}"));
            return Some(lines.collect::<Vec<_>>().join("\n"));
        }
    }
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    Some(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "spec.nodeName" => facts.node.clone(),
        "spec.serviceAccountName" => account.filter(|it| !it.is_empty()).unwrap_or("default").to_owned(),
        "status.podIP" | "status.podIPs" => facts.address.to_string(),
        "status.hostIP" | "status.hostIPs" => facts.node_address.to_string(),
        _ => return None,
    })
}

/// A limit or request of a container, in units of the divisor and rounded up.
///
/// # Errors
/// What is wrong with the selector, in words.
pub(crate) fn resource_of(
    pod: &core::Pod,
    own: Option<&core::Container>,
    selector: &core::ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let all =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match named {
        Some(name) => all.into_iter().find(|it| it.name == name),
        None => own,
    };
    let container = container.ok_or_else(|| format!("there is no container {named:?}"))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|it| it.limits.as_ref());
    let requests = resources.and_then(|it| it.requests.as_ref());
    let (of, resource) = match selector.resource.split_once('.') {
        Some(("limits", resource)) => (limits, resource),
        // Without a request the limit counts.
        Some(("requests", resource)) => {
            (requests.filter(|it| it.contains_key(resource)).or(limits), resource)
        }
        _ => return Err(format!("the resource {:?} is not known", selector.resource)),
    };
    let read = |text: &str| Quantity::read(text).ok_or_else(|| format!("{text:?} is no quantity"));
    let declared = of.and_then(|it| it.get(resource)).map(|it| read(&it.0)).transpose()?;
    let value = match (declared, resource) {
        (Some(value), _) => value,
        (None, "cpu") if selector.resource.starts_with("limits") => Quantity::thousandths(facts.capacity.0),
        (None, "memory") if selector.resource.starts_with("limits") => Quantity::units(facts.capacity.1),
        (None, _) => Quantity::units(0),
    };
    let divisor = selector.divisor.as_ref().filter(|it| !it.0.is_empty());
    let divisor = divisor.map(|it| read(&it.0)).transpose()?;
    let divisor = divisor.filter(|it| *it != Quantity::units(0)).unwrap_or(Quantity::units(1));
    Ok(value.in_units_of(divisor).to_string())
}

fn url(port: &core::ServicePort, address: Ipv4Addr) -> String {
    format!("{}://{address}:{}", port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(), port.port)
}

fn variable_name(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use futures_util::future::BoxFuture;
    use serde_json::{Value, json};
    use tokio::sync::watch;

    use super::{Environment, Facts};
    use crate::sources::{ServiceAddress, Sources, Token, TokenRequest};

    struct Fixed;

    impl Sources for Fixed {
        fn config_map(&self, _: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
            (name == "settings").then(|| [("color".to_owned(), b"red".to_vec())].into())
        }

        fn secret(&self, _: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
            (name == "keys").then(|| [("key".to_owned(), b"secret".to_vec())].into())
        }

        fn services(&self, _: &str) -> Vec<ServiceAddress> {
            let ports = json!([{ "name": "grpc-a", "port": 7070 }, { "port": 80 }]);
            let ports = serde_json::from_value(ports).unwrap();
            vec![ServiceAddress { name: "echo".to_owned(), address: [10, 96, 1, 2].into(), ports }]
        }

        fn token(&self, _: TokenRequest) -> BoxFuture<'_, Result<Token, String>> {
            Box::pin(async { Err("there are none".to_owned()) })
        }

        fn changes(&self) -> watch::Receiver<u64> {
            watch::channel(0).1
        }
    }

    fn check(container: &Value, expected: &Expect) {
        let pod = json!({
            "metadata": { "name": "web-0", "namespace": "shop", "uid": "u", "labels": { "app": "web" },
                "annotations": { "a": "1", "b": "x\"y" } },
            "spec": { "serviceAccountName": "shop", "containers": [container] },
        });
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod).unwrap();
        let facts = Facts {
            address: [10, 244, 0, 9].into(),
            node: "node".to_owned(),
            node_address: [10, 244, 0, 1].into(),
            capacity: (4000, 8 << 30),
        };
        let mut environment = Environment::default();
        environment.add_services(&Fixed.services("shop"));
        let container = pod.spec.as_ref().unwrap().containers.first().unwrap();
        let faults = environment.add_container(&pod, container, &facts, &Fixed);
        let mut text: String =
            environment.into_variables().iter().map(|(n, v)| format!("{n}={v}\n")).collect();
        text.extend(faults.iter().map(|it| format!("! {it}\n")));
        expected.assert_eq(&text);
    }

    #[test]
    fn as_a_kubelet_makes_it() {
        let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
        let resource = |name: &str, divisor: &str| json!({ "resourceFieldRef": { "resource": name, "divisor": divisor } });
        check(
            &json!({
                "name": "web",
                "resources": { "limits": { "cpu": "1500m" }, "requests": { "memory": "64Mi" } },
                "envFrom": [{ "configMapRef": { "name": "settings" }, "prefix": "S_" }],
                "env": [
                    { "name": "URL", "value": "http://$(ECHO_SERVICE_HOST):$(ECHO_SERVICE_PORT)/$(NOBODY)" },
                    { "name": "ME", "valueFrom": field("metadata.name") },
                    { "name": "IP", "valueFrom": field("status.podIP") },
                    { "name": "HOST", "valueFrom": field("status.hostIP") },
                    { "name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName") },
                    { "name": "APP", "valueFrom": field("metadata.labels['app']") },
                    { "name": "ALL", "valueFrom": field("metadata.annotations") },
                    { "name": "CPUS", "valueFrom": resource("limits.cpu", "") },
                    { "name": "MILLIS", "valueFrom": resource("requests.cpu", "1m") },
                    { "name": "MEMORY", "valueFrom": resource("limits.memory", "1Gi") },
                    { "name": "ASKED", "valueFrom": resource("requests.memory", "1Ki") },
                    { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "key" } } },
                    { "name": "NONE",
                        "valueFrom": { "secretKeyRef": { "name": "keys", "key": "x", "optional": true } } },
                ],
            }),
            &expect![[r#"
                ECHO_SERVICE_HOST=10.96.1.2
                ECHO_SERVICE_PORT=7070
                ECHO_SERVICE_PORT_GRPC_A=7070
                ECHO_PORT=tcp://10.96.1.2:7070
                ECHO_PORT_7070_TCP=tcp://10.96.1.2:7070
                ECHO_PORT_7070_TCP_PROTO=tcp
                ECHO_PORT_7070_TCP_PORT=7070
                ECHO_PORT_7070_TCP_ADDR=10.96.1.2
                ECHO_PORT_80_TCP=tcp://10.96.1.2:80
                ECHO_PORT_80_TCP_PROTO=tcp
                ECHO_PORT_80_TCP_PORT=80
                ECHO_PORT_80_TCP_ADDR=10.96.1.2
                S_color=red
                URL=http://10.96.1.2:7070/$(NOBODY)
                ME=web-0
                IP=10.244.0.9
                HOST=10.244.0.1
                ACCOUNT=shop
                APP=web
                ALL=a="1"
                b="x\"y"
                CPUS=2
                MILLIS=1500
                MEMORY=8
                ASKED=65536
                KEY=secret
            "#]],
        );
    }

    #[test]
    fn what_is_missing() {
        check(
            &json!({
                "name": "web",
                "envFrom": [{ "secretRef": { "name": "no" } }, { "secretRef": { "name": "no", "optional": true } }],
                "env": [
                    { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "x" } } },
                    { "name": "B", "valueFrom": { "fieldRef": { "fieldPath": "spec.x" } } },
                    { "name": "C", "valueFrom": { "resourceFieldRef": { "resource": "cpu" } } },
                ],
            }),
            &expect![[r#"
                ECHO_SERVICE_HOST=10.96.1.2
                ECHO_SERVICE_PORT=7070
                ECHO_SERVICE_PORT_GRPC_A=7070
                ECHO_PORT=tcp://10.96.1.2:7070
                ECHO_PORT_7070_TCP=tcp://10.96.1.2:7070
                ECHO_PORT_7070_TCP_PROTO=tcp
                ECHO_PORT_7070_TCP_PORT=7070
                ECHO_PORT_7070_TCP_ADDR=10.96.1.2
                ECHO_PORT_80_TCP=tcp://10.96.1.2:80
                ECHO_PORT_80_TCP_PROTO=tcp
                ECHO_PORT_80_TCP_PORT=80
                ECHO_PORT_80_TCP_ADDR=10.96.1.2
                ! envFrom[0]: there is no Secret "no"
                ! env[0].valueFrom: there is no key "x" in a ConfigMap "settings"
                ! env[1].valueFrom: the field "spec.x" is not known
                ! env[2].valueFrom: the resource "cpu" is not known
            "#]],
        );
    }

    #[test]
    fn expansion() {
        let mut environment = Environment::default();
        environment.set("A", "1");
        for (text, expected) in
            [("$(A)$(B)", "1$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A"), ("a$(A)b", "a1b")]
        {
            assert_eq!(environment.expand(text), expected, "{text}");
        }
    }
}
