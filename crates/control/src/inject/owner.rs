//! What a Pod belongs to: the Deployment behind its ReplicaSet, and others.

use serde_json::Value as Json;

use super::pod;

/// A workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its name; empty if it is not known yet.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its kind.
    pub kind: String,
    /// Its apiVersion.
    pub api_version: String,
}

impl Owner {
    /// The workload that a Pod names as its controller, by Istio's rules of thumb; else the Pod.
    pub fn of(pod: &Json) -> Owner {
        let text = |path: &str| pod.pointer(path).and_then(Json::as_str).unwrap_or_default().to_owned();
        let mut owner = Owner {
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            kind: "Pod".to_owned(),
            api_version: "v1".to_owned(),
        };
        let references = pod.pointer("/metadata/ownerReferences").and_then(Json::as_array);
        let controller = references
            .into_iter()
            .flatten()
            .find(|reference| reference.get("controller") == Some(&Json::Bool(true)));
        let Some(controller) = controller.filter(|_| !text("/metadata/generateName").is_empty()) else {
            return owner;
        };
        let field = |name: &str| controller.get(name).and_then(Json::as_str).unwrap_or_default();
        owner.name = field("name").to_owned();
        owner.kind = field("kind").to_owned();
        owner.api_version = field("apiVersion").to_owned();
        let hashed = |label: &str| {
            let hash = pod::label(pod, label).filter(|hash| !hash.is_empty())?;
            Some(field("name").strip_suffix(hash)?.trim_end_matches('-').to_owned())
        };
        match field("kind") {
            "ReplicaSet" => {
                if let Some(name) = hashed("pod-template-hash") {
                    owner.name = name;
                    owner.kind = "Deployment".to_owned();
                } else if let Some(name) = hashed("rollouts-pod-template-hash") {
                    owner.name = name;
                    owner.kind = "Rollout".to_owned();
                    owner.api_version = "v1alpha1".to_owned();
                }
            }
            "ReplicationController" => {
                if let Some(name) = pod::label(pod, "deploymentconfig").filter(|name| !name.is_empty()) {
                    owner.name = name.to_owned();
                    owner.kind = "DeploymentConfig".to_owned();
                }
            }
            "Job" => {
                // CronJobs name their Jobs after the minute.
                let is_time =
                    |text: &str| (8..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
                if let Some((name, _)) = field("name").rsplit_once('-').filter(|(_, time)| is_time(time)) {
                    owner.name = name.to_owned();
                    owner.kind = "CronJob".to_owned();
                    owner.api_version = "batch/v1".to_owned();
                }
            }
            _ => {}
        }
        owner
    }
}
