//! What kube-proxy does: connections of pods without a sidecar to the address of a Service go to
//! one of its endpoints. Pods with a sidecar never get here; theirs are redirected before.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::objects::{Key, Objects};
use super::plan::{Plan, PodPlan};
use super::state::Phase;

/// The TCP ports of all Services that have an address, with the pods that are ready.
pub(crate) fn of(
    objects: &Objects,
    plan: &Plan,
    pods: &BTreeMap<Key, (PodPlan, Phase)>,
) -> Vec<leno_node::Service> {
    let mut found = Vec::new();
    for (key, service) in &objects.services {
        let (Some(address), Some(spec)) = (plan.services.get(key), &service.object.spec) else { continue };
        let selector = spec.selector.clone().unwrap_or_default();
        if selector.is_empty() {
            continue;
        }
        let selected = |pod: &PodPlan| {
            pod.key.namespace == key.namespace
                && selector.iter().all(|(name, value)| pod.labels.get(name) == Some(value))
        };
        let ready = pods.values().filter(|(pod, phase)| *phase == Phase::Ready && selected(pod));
        let ready: Vec<&PodPlan> = ready.map(|(pod, _)| pod).collect();
        for port in spec.ports.iter().flatten() {
            let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            let Ok(number) = u16::try_from(port.port) else { continue };
            if !is_tcp {
                continue;
            }
            let endpoint = |pod: &&PodPlan| Some(SocketAddrV4::new(pod.address, target(pod, port, number)?));
            found.push(leno_node::Service {
                address: SocketAddrV4::new(*address, number),
                endpoints: ready.iter().filter_map(endpoint).collect(),
            });
        }
    }
    found
}

/// The port of a pod that a Service's port means; `None`: a name that the pod does not have.
fn target(pod: &PodPlan, port: &core::ServicePort, number: u16) -> Option<u16> {
    match &port.target_port {
        None => Some(number),
        Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
        Some(IntOrString::String(name)) => {
            let ports = pod.spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
            let named = ports.into_iter().find(|port| port.name.as_ref() == Some(name))?;
            u16::try_from(named.container_port).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Phase, of};
    use crate::up::image::Images;
    use crate::up::layout::Layout;
    use crate::up::objects::read_text;
    use crate::up::plan::{Settings, plan};

    #[test]
    fn ready_pods_are_endpoints_by_number_and_by_name() {
        let objects = read_text(
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: a}, ports: [{port: 80, \
             targetPort: web}, {port: 81, targetPort: 9000}, {port: 82}, {port: 53, protocol: UDP}]}\n---\n\
             apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 2, selector: {matchLabels: \
             {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: 'lenomesh/samples:0.1', \
             ports: [{name: web, containerPort: 8080}]}]}}}\n",
        );
        let settings = Settings { images: Images::default(), mounts: true };
        let plan = plan(&objects, &settings, &mut Layout::Loopback { ports: [1, 2] }.ranges());
        let mut phases = [Phase::Ready, Phase::NotReady].into_iter();
        let pods = plan.pods.values().map(|pod| (pod.key.clone(), (pod.clone(), phases.next().unwrap())));
        let pods: BTreeMap<_, _> = pods.collect();
        let ports: Vec<_> = of(&objects, &plan, &pods)
            .iter()
            .map(|service| {
                (service.address.port(), service.endpoints.iter().map(|it| it.port()).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(ports, [(80, vec![8080]), (81, vec![9000]), (82, vec![82])]);
    }
}
