//! What the API server of a cluster would know about running pods, as files for the control plane:
//! Pods with address and readiness, Services with their virtual address. Each object is a file that is
//! replaced as a whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::address;
use super::layout::Layout;
use super::objects::{Key, Objects};
use super::plan::{Plan, PodPlan};

/// The name of the one node.
pub(crate) const NODE_NAME: &str = "leno";

/// What is known about a pod besides its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is being started, or has crashed.
    NotReady,
    /// It can be called.
    Ready,
    /// It is on its way out, and not to be called any more.
    Terminating,
    /// It has done its work.
    Succeeded,
    /// It has ended with a failure, and is not started again.
    Failed,
}

/// The folder with the files.
#[derive(Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    /// What the files hold, by name.
    written: BTreeMap<String, String>,
}

impl StateFolder {
    /// Makes the folder, or empties it.
    pub(crate) fn create(path: PathBuf) -> io::Result<StateFolder> {
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir_all(&path)?;
        Ok(StateFolder { path, written: BTreeMap::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the files say what is given, touching only those that differ.
    pub(crate) fn write(
        &mut self,
        pods: &BTreeMap<Key, (PodPlan, Phase)>,
        plan: &Plan,
        objects: &Objects,
        layout: &Layout,
    ) -> io::Result<()> {
        let mut wanted = BTreeMap::new();
        for (key, (pod, phase)) in pods {
            let object = pod_object(pod, *phase, layout);
            wanted.insert(format!("pod-{}-{}.yaml", key.namespace, key.name), text(&object));
        }
        for (key, service) in &objects.services {
            if let Some(object) = service_object(key, &service.object, plan) {
                wanted.insert(format!("service-{}-{}.yaml", key.namespace, key.name), text(&object));
            }
        }
        for (name, text) in &wanted {
            if self.written.get(name) != Some(text) {
                self.replace(name, text)?;
            }
        }
        for name in self.written.keys().filter(|name| !wanted.contains_key(*name)) {
            match std::fs::remove_file(self.path.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.written = wanted;
        Ok(())
    }

    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let unfinished = self.path.join(format!(".{name}.unfinished"));
        std::fs::write(&unfinished, text)?;
        std::fs::rename(&unfinished, self.path.join(name))
    }
}

/// JSON, which is YAML.
fn text(object: &Value) -> String {
    format!("{object:#}\n")
}

/// A Service that has no address in its manifest, with the one that it was given.
fn service_object(key: &Key, service: &core::Service, plan: &Plan) -> Option<Value> {
    let spec = service.spec.as_ref()?;
    let has_one = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty());
    if has_one || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let address = plan.services.get(key)?;
    let mut service = service.clone();
    service.metadata.namespace = Some(key.namespace.clone());
    let spec = service.spec.as_mut()?;
    spec.cluster_ip = Some(address.to_string());
    spec.cluster_ips = Some(vec![address.to_string()]);
    serde_json::to_value(service).ok()
}

fn pod_object(pod: &PodPlan, phase: Phase, layout: &Layout) -> Value {
    let mut spec = pod.spec.clone();
    spec.node_name = Some(NODE_NAME.to_owned());
    spec.service_account_name = Some(pod.service_account().to_owned());
    let phase_name = match phase {
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::NotReady | Phase::Ready | Phase::Terminating => "Running",
    };
    let ready = if phase == Phase::Ready { "True" } else { "False" };
    let (kind, owner) = &pod.owner;
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.key.name,
            "namespace": pod.key.namespace,
            "uid": pod.uid(),
            "labels": pod.labels,
            "annotations": pod.annotations,
            "ownerReferences": [{
                "apiVersion": kind.api_version(),
                "kind": kind.to_string(),
                "name": owner,
                "uid": uid(&format!("{kind} {}/{owner}", pod.key.namespace)),
                "controller": true,
            }],
        },
        "spec": spec,
        "status": {
            "phase": phase_name,
            "hostIP": layout.node().to_string(),
            "podIP": pod.address.to_string(),
            "podIPs": [{ "ip": pod.address.to_string() }],
            "conditions": [
                { "type": "Ready", "status": ready },
                { "type": "ContainersReady", "status": ready },
            ],
        },
    });
    if phase == Phase::Terminating {
        // Any time will do: that there is one says that the pod is on its way out.
        object["metadata"]["deletionTimestamp"] = json!("2000-01-01T00:00:00Z");
    }
    object
}

impl PodPlan {
    /// An identifier in the form of a UUID, always the same for the same pod.
    pub(crate) fn uid(&self) -> String {
        uid(&self.key.to_string())
    }

    /// The service account, by Kubernetes' default for it.
    pub(crate) fn service_account(&self) -> &str {
        self.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
    }
}

fn uid(name: &str) -> String {
    let high = address::hash(name.as_bytes());
    let low = address::hash(format!("{name} again").as_bytes());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff,
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Phase, StateFolder};
    use crate::up::image::Images;
    use crate::up::layout::Layout;
    use crate::up::objects::read_text;
    use crate::up::plan::{Settings, plan};

    #[test]
    fn writes_what_changes_and_removes_what_goes() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::Loopback { ports: [1, 2] };
        let objects = read_text(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: lenomesh/samples}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n",
        );
        let plan =
            plan(&objects, &Settings { images: Images::default(), mounts: true }, &mut layout.ranges());
        let mut state = StateFolder::create(folder.path().join("state")).unwrap();
        let mut pods: BTreeMap<_, _> =
            plan.pods.iter().map(|(key, pod)| (key.clone(), (pod.clone(), Phase::Ready))).collect();
        let read = |state: &StateFolder| {
            let names = std::fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        state.write(&pods, &plan, &objects, &layout).unwrap();
        assert_eq!(read(&state), ["pod-default-a.yaml", "service-default-s.yaml"]);
        let text = std::fs::read_to_string(state.path().join("pod-default-a.yaml")).unwrap();
        assert!(text.contains("\"status\": \"True\""), "{text}");

        pods.clear();
        state.write(&pods, &plan, &objects, &layout).unwrap();
        assert_eq!(read(&state), ["service-default-s.yaml"]);
    }
}
