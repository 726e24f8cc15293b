//! The command line and the environment of a container, as a kubelet would make them. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core;

use super::image::Program;
use super::layout::{HTTP_PROXY_PORT, Layout};
use super::objects::{Key, Objects};
use super::plan::{ContainerPlan, Plan, PodPlan, ProxyRole};

/// A command that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: Option<String>,
}

/// What this process passes on to commands of the user's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    /// The program that stands for the samples' image, as `/proc/self/exe`.
    pub(crate) executable: String,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) directory: Option<String>,
}

/// The names of variables that commands of the user's get from the one who called `leno up`.
pub(crate) const INHERITED: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ"];

/// The command of a container.
///
/// # Errors
/// Each variable whose source is missing, as field path within the container and message.
pub(crate) fn command(
    pod: &PodPlan,
    container: &ContainerPlan,
    objects: &Objects,
    plan: &Plan,
    layout: &Layout,
    inherited: &Inherited,
) -> Result<Command, Vec<(String, String)>> {
    let mut environment = Environment::default();
    if let Program::Command(_) = container.program {
        environment.extend(inherited.variables.iter().cloned());
    }
    environment.set("HOSTNAME", &pod.key.name);
    environment.extend(of_services(&pod.key.namespace, objects, plan));
    if layout.is_loopback() {
        environment.extend(of_loopback(pod));
    }
    let mut faults = Vec::new();
    of_sources(&mut environment, pod, &container.container, objects, &mut faults);
    of_container(&mut environment, pod, &container.container, objects, layout, &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let (mut argv, directory) = match &container.program {
        Program::Sample => (vec![inherited.executable.clone(), "sample".to_owned()], None),
        Program::Command(words) => (words.clone(), inherited.directory.clone()),
    };
    let args = container.container.args.iter().flatten();
    argv.extend(args.map(|argument| environment.expand(argument)));
    Ok(Command { argv, environment: environment.variables, directory })
}

/// Variables in the order of their declaration; a later one of the same name counts.
#[derive(Default)]
struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(other, _)| other != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    fn extend(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            self.set(&name, &value);
        }
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Kubernetes' `$(NAME)`: a name that is not known stays as it is, `$$(NAME)` is `$(NAME)`.
    fn expand(&self, text: &str) -> String {
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
}

/// The variables that Kubernetes makes of the Services of a pod's namespace.
fn of_services(namespace: &str, objects: &Objects, plan: &Plan) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for service in objects.services.values().filter(|service| service.key.namespace == namespace) {
        let Some(address) = plan.services.get(&service.key) else { continue };
        let spec = service.object.spec.as_ref();
        let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let name = variable_name(&service.key.name);
        variables.push((format!("{name}_SERVICE_HOST"), address.to_string()));
        variables.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.push((
                    format!("{name}_SERVICE_PORT_{}", variable_name(port_name)),
                    port.port.to_string(),
                ));
            }
        }
        variables.push((format!("{name}_PORT"), url(first, *address)));
        for port in ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            variables.push((prefix.clone(), url(port, *address)));
            variables.push((format!("{prefix}_PROTO"), protocol.to_ascii_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), address.to_string()));
        }
    }
    variables
}

fn url(port: &core::ServicePort, address: Ipv4Addr) -> String {
    format!("{}://{address}:{}", port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(), port.port)
}

fn variable_name(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

/// Where traffic is not redirected: which address to listen on, and where to send requests to.
fn of_loopback(pod: &PodPlan) -> Vec<(String, String)> {
    let mut variables = vec![("LISTEN_ADDRESS".to_owned(), pod.address.to_string())];
    if pod.proxy == ProxyRole::Sidecar {
        variables.push(("http_proxy".to_owned(), format!("http://{}:{HTTP_PROXY_PORT}", pod.address)));
        variables.push(("no_proxy".to_owned(), "localhost,127.0.0.1".to_owned()));
    }
    variables
}

/// `envFrom`.
fn of_sources(
    environment: &mut Environment,
    pod: &PodPlan,
    container: &core::Container,
    objects: &Objects,
    faults: &mut Vec<(String, String)>,
) {
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let (kind, name, optional, values) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), _) => {
                let key = Key::new(&pod.key.namespace, &reference.name);
                ("ConfigMap", &reference.name, reference.optional, objects.config_maps.get(&key))
            }
            (None, Some(reference)) => {
                let key = Key::new(&pod.key.namespace, &reference.name);
                ("Secret", &reference.name, reference.optional, objects.secrets.get(&key))
            }
            (None, None) => continue,
        };
        match values {
            Some(values) => {
                let prefix = source.prefix.as_deref().unwrap_or_default();
                environment
                    .extend(values.iter().map(|(name, value)| (format!("{prefix}{name}"), value.clone())));
            }
            None if optional == Some(true) => {}
            None => faults.push((format!("envFrom[{index}]"), format!("there is no {kind} {name:?}"))),
        }
    }
}

/// `env`.
fn of_container(
    environment: &mut Environment,
    pod: &PodPlan,
    container: &core::Container,
    objects: &Objects,
    layout: &Layout,
    faults: &mut Vec<(String, String)>,
) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let mut fault = |message: String| faults.push((format!("env[{index}].valueFrom"), message));
        let Some(source) = &variable.value_from else {
            let value = environment.expand(variable.value.as_deref().unwrap_or_default());
            environment.set(&variable.name, &value);
            continue;
        };
        let found = if let Some(field) = &source.field_ref {
            let value = field_of(pod, &field.field_path, layout);
            if value.is_none() {
                fault(format!("the field {:?} is not known", field.field_path));
            }
            value
        } else if let Some(reference) = &source.config_map_key_ref {
            let values = objects.config_maps.get(&Key::new(&pod.key.namespace, &reference.name));
            let value = lookup(values, &reference.key);
            if value.is_none() && reference.optional != Some(true) {
                fault(format!("there is no key {:?} in a ConfigMap {:?}", reference.key, reference.name));
            }
            value
        } else if let Some(reference) = &source.secret_key_ref {
            let values = objects.secrets.get(&Key::new(&pod.key.namespace, &reference.name));
            let value = lookup(values, &reference.key);
            if value.is_none() && reference.optional != Some(true) {
                fault(format!("there is no key {:?} in a Secret {:?}", reference.key, reference.name));
            }
            value
        } else {
            fault("resourceFieldRef is not supported by leno up".to_owned());
            None
        };
        if let Some(value) = found {
            environment.set(&variable.name, &value);
        }
    }
}

fn lookup(values: Option<&BTreeMap<String, String>>, key: &str) -> Option<String> {
    values?.get(key).cloned()
}

/// A field of a pod by the path that the downward API has for it.
fn field_of(pod: &PodPlan, path: &str, layout: &Layout) -> Option<String> {
    let subscript = |path: &str, field: &str| {
        let inner = path.strip_prefix(field)?.strip_prefix('[')?.strip_suffix(']')?;
        Some(inner.trim_matches(['\'', '"']).to_owned())
    };
    if let Some(name) = subscript(path, "metadata.labels") {
        return Some(pod.labels.get(&name).cloned().unwrap_or_default());
    }
    if let Some(name) = subscript(path, "metadata.annotations") {
        return Some(pod.annotations.get(&name).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => pod.key.name.clone(),
        "metadata.namespace" => pod.key.namespace.clone(),
        "metadata.uid" => pod.uid(),
        "spec.nodeName" => super::state::NODE_NAME.to_owned(),
        "spec.serviceAccountName" => pod.service_account().to_owned(),
        "status.podIP" | "status.podIPs" => pod.address.to_string(),
        "status.hostIP" | "status.hostIPs" => layout.node().to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{Environment, Inherited, command};
    use crate::up::image::Images;
    use crate::up::layout::Layout;
    use crate::up::objects::read_text;
    use crate::up::plan::{Settings, plan};

    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web, sidecar.istio.io/inject: 'true'}}
spec:
  serviceAccountName: shop
  containers:
  - name: web
    image: lenomesh/samples
    args: [bookinfo, $(WHAT), $$(WHAT), $(NOBODY)]
    envFrom: [{configMapRef: {name: settings}, prefix: S_}]
    env:
    - {name: WHAT, value: ratings}
    - {name: URL, value: 'http://$(ECHO_SERVICE_HOST):$(ECHO_SERVICE_PORT)/'}
    - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: key}}}
    - {name: NONE, valueFrom: {secretKeyRef: {name: keys, key: other, optional: true}}}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {clusterIP: 10.96.1.2, ports: [{name: grpc-a, port: 7070}, {port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
data: {key: c2VjcmV0}
";

    fn render(text: &str, layout: &Layout) -> String {
        let objects = read_text(text);
        let plan = plan(&objects, &Settings { images: Images::default() }, &mut layout.ranges());
        let pod = plan.pods.values().next().unwrap();
        let inherited = Inherited { executable: "leno".to_owned(), ..Inherited::default() };
        match command(pod, &pod.containers[0], &objects, &plan, layout, &inherited) {
            Ok(command) => {
                let variables = command.environment.iter().map(|(name, value)| format!("{name}={value}\n"));
                format!("{:?}\n{}", command.argv, variables.collect::<String>())
            }
            Err(faults) => format!("{faults:?}"),
        }
    }

    #[test]
    fn as_a_kubelet_makes_it() {
        let layout = Layout::Loopback { ports: [1, 2] };
        expect![[r#"
            ["leno", "sample", "bookinfo", "ratings", "$(WHAT)", "$(NOBODY)"]
            HOSTNAME=web-0
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
            LISTEN_ADDRESS=127.244.131.234
            http_proxy=http://127.244.131.234:15080
            no_proxy=localhost,127.0.0.1
            S_color=red
            WHAT=ratings
            URL=http://10.96.1.2:7070/
            ME=web-0
            IP=127.244.131.234
            APP=web
            KEY=secret
        "#]]
        .assert_eq(&render(POD, &layout));
    }

    #[test]
    fn missing_sources() {
        let text =
            POD.replace("{key: c2VjcmV0}", "{}").replace("metadata: {name: settings}", "metadata: {name: x}");
        let layout = Layout::Loopback { ports: [1, 2] };
        expect![[r#"[("envFrom[0]", "there is no ConfigMap \"settings\""), ("env[5].valueFrom", "there is no key \"key\" in a Secret \"keys\"")]"#]].assert_eq(&render(&text, &layout));
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
