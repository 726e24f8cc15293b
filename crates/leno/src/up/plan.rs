//! What is to run, worked out from the objects: pods with their containers, addresses and proxies,
//! services with their virtual addresses, and the ports of gateways to publish. Pure.
//!
//! `cluster.rs` compares a plan with what runs and carries out the difference.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::address::{self, Addresses};
use super::image::{Images, Program};
use super::objects::{Gateway, Key, Objects, Problem, Service, Workload, WorkloadKind};
use crate::capture::{self, Capture};

/// Where gateways live that nobody declares.
pub(crate) const ROOT_NAMESPACE: &str = "istio-system";

/// The annotation of pods with the templates that they are injected by, and the one of gateways.
pub(crate) const TEMPLATES: &str = "inject.istio.io/templates";
pub(crate) const GATEWAY_TEMPLATE: &str = "gateway";

/// Everything that is to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) pods: BTreeMap<Key, PodPlan>,
    /// The virtual address of each Service that has one.
    pub(crate) services: BTreeMap<Key, Ipv4Addr>,
    /// Host ports, each with the Gateway's server that asks for it.
    pub(crate) publications: BTreeMap<u16, Publication>,
    pub(crate) problems: Vec<Problem>,
}

/// A pod to run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodPlan {
    pub(crate) key: Key,
    pub(crate) address: Ipv4Addr,
    /// What made it: kind and name; a Deployment, not its ReplicaSet.
    pub(crate) owner: (WorkloadKind, String),
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) proxy: ProxyRole,
    pub(crate) init_containers: Vec<ContainerPlan>,
    pub(crate) containers: Vec<ContainerPlan>,
    /// The specification that it is made of, for what others read of it.
    pub(crate) spec: core::PodSpec,
    /// A StatefulSet's governing Service, in which the pod has a name of its own.
    pub(crate) subdomain: String,
    /// Which connections go through the sidecar.
    pub(crate) capture: Capture,
}

/// The proxy of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyRole {
    /// It has none.
    None,
    /// It is beside the applications.
    Sidecar,
    /// It is all there is.
    Gateway,
}

/// A process to run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    pub(crate) program: Program,
    /// As declared: sources and names, to be resolved when it starts.
    pub(crate) container: core::Container,
}

/// A port of the host that leads to a gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Publication {
    /// The gateway pod.
    pub(crate) pod: Key,
    /// The port there.
    pub(crate) target: u16,
    /// As declared: HTTP, TCP, ...
    pub(crate) protocol: String,
    /// The Gateway, and the place of its server, for messages.
    pub(crate) gateway: Key,
    pub(crate) place: Problem,
}

/// What the plan depends on besides the objects.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) images: Images,
    /// Whether volumes can be mounted.
    pub(crate) mounts: bool,
}

/// The addresses given so far.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) pods: Addresses,
    pub(crate) services: Addresses,
}

/// Works out what is to run.
pub(crate) fn plan(objects: &Objects, settings: &Settings, given: &mut Given) -> Plan {
    let mut plan = Plan { problems: objects.problems.clone(), ..Plan::default() };
    for workload in &objects.workloads {
        add_workload(&mut plan, workload, objects, settings, given);
    }
    for service in objects.services.values() {
        add_service(&mut plan, service, given);
    }
    for gateway in &objects.gateways {
        add_gateway(&mut plan, gateway, objects, given);
    }
    plan
}

fn add_workload(
    plan: &mut Plan,
    workload: &Workload,
    objects: &Objects,
    settings: &Settings,
    given: &mut Given,
) {
    let prefix = workload.kind.template_path();
    let proxy = proxy_role(workload, objects);
    let mut containers = Vec::new();
    let mut init_containers = Vec::new();
    if proxy != ProxyRole::Gateway {
        let problems = &mut plan.problems;
        let init = workload.spec.init_containers.as_deref().unwrap_or_default();
        let complete =
            add_containers(&mut init_containers, workload, init, "initContainers", settings, problems)
                & add_containers(
                    &mut containers,
                    workload,
                    &workload.spec.containers,
                    "containers",
                    settings,
                    problems,
                );
        if !complete {
            return; // reported; a pod with a part missing would only mislead
        }
    }
    if workload.spec.host_network == Some(true) {
        let path = format!("{prefix}spec.hostNetwork");
        plan.problems.push(workload.origin.problem(&path, "is not supported by leno up, has no effect"));
    }
    let (mut capture, mut faults) = capture::of_annotations(&workload.annotations);
    if capture.is_tproxy() {
        // The proxy has no right to transparent sockets here.
        capture.redirect_instead();
        let words = "TPROXY is not supported by leno up, REDIRECT is used";
        faults.push((capture::MODE.to_owned(), words.to_owned()));
    }
    for (annotation, message) in faults {
        let path = format!("{prefix}metadata.annotations[\"{annotation}\"]");
        plan.problems.push(workload.origin.problem(&path, message));
    }
    let template_hash = template_hash(workload, &containers, &init_containers, proxy);
    for index in 0..workload.replicas {
        let name = pod_name(workload, template_hash, index);
        let key = Key::new(&workload.key.namespace, &name);
        let mut labels = workload.labels.clone();
        match workload.kind {
            WorkloadKind::Deployment | WorkloadKind::ReplicaSet => {
                labels.insert("pod-template-hash".to_owned(), address::word(template_hash, 10));
            }
            WorkloadKind::StatefulSet => {
                labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name);
                labels.insert("apps.kubernetes.io/pod-index".to_owned(), index.to_string());
            }
            WorkloadKind::Job => {
                labels.insert("job-name".to_owned(), workload.key.name.clone());
                labels.insert("batch.kubernetes.io/job-name".to_owned(), workload.key.name.clone());
            }
            WorkloadKind::DaemonSet | WorkloadKind::Pod => {}
        }
        let pod = PodPlan {
            address: given.pods.give(&key.to_string()),
            owner: (workload.kind, workload.key.name.clone()),
            labels,
            annotations: workload.annotations.clone(),
            proxy,
            init_containers: init_containers.clone(),
            containers: containers.clone(),
            spec: workload.spec.clone(),
            subdomain: workload.service_name.clone(),
            capture: capture.clone(),
            key: key.clone(),
        };
        plan.pods.insert(key, pod);
    }
}

/// Adds the containers of a pod; tells whether all can be run.
fn add_containers(
    plans: &mut Vec<ContainerPlan>,
    workload: &Workload,
    containers: &[core::Container],
    list: &str,
    settings: &Settings,
    problems: &mut Vec<Problem>,
) -> bool {
    let mut complete = true;
    for (index, container) in containers.iter().enumerate() {
        let path = format!("{}spec.{list}[{index}]", workload.kind.template_path());
        let image = container.image.as_deref().unwrap_or_default();
        let Some(program) = settings.images.find(image) else {
            let message = format!(
                "no local command is known for {image:?}, so {} {} is not run; name one with --image {}=COMMAND",
                workload.kind,
                workload.key,
                leno_kubelet::repository(image),
            );
            problems.push(workload.origin.problem(&format!("{path}.image"), message));
            complete = false;
            continue;
        };
        let mut ignored = |field: &str, present: bool, why: &str| {
            if present {
                problems.push(
                    workload.origin.problem(&format!("{path}.{field}"), format!("{why}, has no effect")),
                );
            }
        };
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        let cannot = !mounts.is_empty() && !settings.mounts;
        ignored("volumeMounts", cannot, "leno up mounts volumes only as root and in namespaces");
        plans.push(ContainerPlan { name: container.name.clone(), program, container: container.clone() });
    }
    complete
}

/// Istio's rule for injection: the pod's label before its namespace's, where the pod may only say no
/// or yes and annotations are the older way to say it.
fn proxy_role(workload: &Workload, objects: &Objects) -> ProxyRole {
    const INJECT: &str = "sidecar.istio.io/inject";
    let templates = workload.annotations.get(TEMPLATES);
    let is_automatic = |container: &core::Container| container.image.as_deref() == Some("auto");
    if templates.is_some_and(|templates| templates.split(',').any(|name| name.trim() == GATEWAY_TEMPLATE))
        && workload.spec.containers.iter().any(is_automatic)
    {
        return ProxyRole::Gateway;
    }
    let of_namespace = || {
        let labels = objects.namespaces.get(&workload.key.namespace);
        let label = |name| labels.and_then(|labels| labels.get(name)).map(String::as_str);
        label("istio-injection").map_or(label("istio.io/rev").is_some(), |value| value == "enabled")
    };
    let wanted = match workload.labels.get(INJECT).or(workload.annotations.get(INJECT)) {
        Some(value) => matches!(value.as_str(), "true" | "yes" | "on" | "y"),
        None => of_namespace(),
    };
    let host_network = workload.spec.host_network == Some(true);
    if wanted && !host_network { ProxyRole::Sidecar } else { ProxyRole::None }
}

/// Changes with everything that a running pod cannot take over.
fn template_hash(
    workload: &Workload,
    containers: &[ContainerPlan],
    init_containers: &[ContainerPlan],
    proxy: ProxyRole,
) -> u64 {
    let programs: Vec<&Program> = containers.iter().chain(init_containers).map(|it| &it.program).collect();
    let text = format!(
        "{}\n{:?}\n{:?}\n{programs:?}\n{proxy:?}",
        serde_json::to_string(&workload.spec).unwrap_or_default(),
        workload.labels,
        workload.annotations,
    );
    address::hash(text.as_bytes())
}

fn pod_name(workload: &Workload, template_hash: u64, index: u32) -> String {
    let name = &workload.key.name;
    let suffix = || address::word(address::hash(format!("{name} {template_hash} {index}").as_bytes()), 5);
    match workload.kind {
        WorkloadKind::Deployment => format!("{name}-{}-{}", address::word(template_hash, 10), suffix()),
        WorkloadKind::ReplicaSet | WorkloadKind::DaemonSet | WorkloadKind::Job => {
            format!("{name}-{}", suffix())
        }
        WorkloadKind::StatefulSet => format!("{name}-{index}"),
        WorkloadKind::Pod => name.clone(),
    }
}

fn add_service(plan: &mut Plan, service: &Service, given: &mut Given) {
    let spec = service.object.spec.as_ref();
    let chosen = spec.and_then(|spec| spec.cluster_ip.as_deref()).filter(|ip| !ip.is_empty());
    if chosen == Some("None") {
        return;
    }
    let name = service.key.to_string();
    let address = match chosen.and_then(|ip| ip.parse().ok()) {
        Some(address) => {
            given.services.reserve(&name, address);
            address
        }
        None => given.services.give(&name),
    };
    plan.services.insert(service.key.clone(), address);
}

fn add_gateway(plan: &mut Plan, gateway: &Gateway, objects: &Objects, given: &mut Given) {
    if gateway.selector.is_empty() {
        return; // it binds nothing by itself
    }
    let selects = |pod: &PodPlan| {
        gateway.namespace.as_ref().is_none_or(|namespace| *namespace == pod.key.namespace)
            && matches(&gateway.selector, &pod.labels)
    };
    let pod = match plan.pods.values().find(|pod| pod.proxy != ProxyRole::None && selects(pod)) {
        Some(pod) => pod.key.clone(),
        None if gateway.namespace.is_some() => return, // its Service leads nowhere
        None => {
            let pod = gateway_pod(&gateway.selector, given);
            plan.pods.entry(pod.key.clone()).or_insert(pod).key.clone()
        }
    };
    let Some(labels) = plan.pods.get(&pod).map(|pod| pod.labels.clone()) else { return };
    for port in &gateway.ports {
        // As Istio does it, a server's port is that of the gateway's Service, which leads to another.
        let target = target_port(objects, &pod, &labels, port.number).unwrap_or(port.number);
        let publication = plan.publications.entry(port.number).or_insert_with(|| Publication {
            pod: pod.clone(),
            target,
            protocol: port.protocol.clone(),
            gateway: gateway.key.clone(),
            place: port.place.clone(),
        });
        if publication.pod != pod {
            let message = format!(
                "port {} is published for {}, so not for this gateway",
                port.number, publication.gateway
            );
            plan.problems.push(Problem { message, ..port.place.clone() });
        }
    }
}

/// The gateway pod that the runner adds for a selector that chooses none of the user's own.
fn gateway_pod(selector: &BTreeMap<String, String>, given: &mut Given) -> PodPlan {
    let istio = selector.get("istio").map_or("gateway", String::as_str);
    let app = selector.get("app").cloned().unwrap_or_else(|| format!("istio-{istio}"));
    let mut labels = selector.clone();
    labels.entry("istio".to_owned()).or_insert_with(|| istio.to_owned());
    labels.insert("app".to_owned(), app.clone());
    let hash = address::hash(format!("{labels:?}").as_bytes());
    let key = Key::new(ROOT_NAMESPACE, &format!("{app}-{}", address::word(hash, 5)));
    let account = format!("{app}-service-account");
    PodPlan {
        address: given.pods.give(&key.to_string()),
        owner: (WorkloadKind::Deployment, app),
        labels,
        annotations: BTreeMap::new(),
        proxy: ProxyRole::Gateway,
        init_containers: Vec::new(),
        containers: Vec::new(),
        spec: core::PodSpec { service_account_name: Some(account), ..core::PodSpec::default() },
        subdomain: String::new(),
        capture: Capture::default(),
        key,
    }
}

fn target_port(objects: &Objects, pod: &Key, labels: &BTreeMap<String, String>, port: u16) -> Option<u16> {
    let services = objects.services.values().filter(|service| service.key.namespace == pod.namespace);
    let spec = services.filter_map(|service| service.object.spec.as_ref()).find(|spec| {
        spec.selector.as_ref().is_some_and(|selector| !selector.is_empty() && matches(selector, labels))
    })?;
    let port = spec.ports.iter().flatten().find(|candidate| candidate.port == i32::from(port))?;
    match port.target_port {
        Some(IntOrString::Int(target)) => u16::try_from(target).ok(),
        _ => None,
    }
}

/// Whether labels carry all that a selector asks for.
pub(crate) fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
