//! Injection: what a Pod needs to be in the mesh, added to it when it is made.
//!
//! [`Injector::inject`] is the story, a pure function: the Pod is stripped of what was injected
//! before, templates (`config`, `data`, `functions`) are rendered for it and merged into it
//! (`merge`), what its author wrote of the proxy's container wins (`overrides`), and the rest is
//! put right (`process`, `probes`). `needed` decides which Pods, `annotations` checks what they
//! ask for, `patch` says the difference, `manifest` does it for files. `webhook` serves it. `gateway` is
//! another thing that the same templates and settings are for: what is made for Gateways of the Gateway API.

mod annotations;
mod config;
mod data;
mod functions;
mod gateway;
pub mod manifest;
mod merge;
mod needed;
mod overrides;
mod owner;
pub mod patch;
mod pod;
mod probes;
mod process;
mod proxy;
pub(crate) mod webhook;

use std::collections::BTreeMap;

use leno_gotemplate::{Limits, Templates};
use serde_json::{Value as Json, json};

pub use config::{BuiltIn, Config, Settings};
pub(crate) use gateway::MADE;
pub use gateway::{GatewayPort, GatewayRequest};
pub use needed::Policy;
pub use owner::Owner;
pub use proxy::{MeshSettings, ProxyRules, ProxySelection};
pub use webhook::WebhookOptions;

/// The name of the proxy's container.
pub(crate) const PROXY: &str = "istio-proxy";
/// The init container that redirects.
pub(crate) const INIT: &str = "istio-init";
/// The init container that checks what the CNI plugin has redirected.
pub(crate) const VALIDATION: &str = "istio-validation";

/// Why a Pod cannot be injected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl From<String> for Refused {
    fn from(message: String) -> Refused {
        Refused(message)
    }
}

/// What is known of a Pod beside itself.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What the Pod belongs to; found in the Pod if it is not given.
    pub owner: Option<Owner>,
    /// Variables from the webhook's path: `ISTIO_META_CLUSTER_ID`, `ISTIO_META_NETWORK`, others.
    pub variables: BTreeMap<String, String>,
    /// Whether the cluster runs native sidecars.
    pub native: bool,
    /// What ProxyConfig objects say for this Pod.
    pub rules: ProxyRules,
}

/// Injects Pods, as configured.
pub struct Injector {
    settings: Settings,
    mesh: MeshSettings,
    templates: BTreeMap<String, Templates>,
}

impl Injector {
    /// An injector; an error if a template cannot be parsed.
    pub fn new(settings: Settings, mesh: MeshSettings) -> Result<Injector, Refused> {
        let functions = functions::all();
        let mut templates = BTreeMap::new();
        for (name, text) in &settings.config.templates {
            let mut parsed = Templates::new(functions.clone());
            parsed.add("inject", text).map_err(|error| Refused(format!("template {name:?}: {error}")))?;
            templates.insert(name.clone(), parsed);
        }
        Ok(Injector { settings, mesh, templates })
    }

    /// What it is configured with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What it knows of the mesh.
    pub fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// Whether a Pod is to be injected.
    pub fn wants(&self, pod: &Json) -> bool {
        needed::is_needed(&self.settings.config, pod)
    }

    /// The Pod with all that it needs.
    pub fn inject(&self, pod: &Json, request: &Request) -> Result<Json, Refused> {
        let mut pod = pod.clone();
        pod::tidy(&mut pod);
        let original = pod.clone();
        annotations::validate(&original)?;
        let proxy_config = self.mesh.effective(&original, &request.rules)?;
        let mut variables = request.variables.clone();
        let (cluster, network) = self.place(&original, &variables);
        for (name, value) in [("ISTIO_META_CLUSTER_ID", cluster), ("ISTIO_META_NETWORK", network)] {
            if !value.is_empty() {
                variables.insert(name.to_owned(), value);
            }
        }
        let stripped = overrides::strip(&original, self.mesh.status_port());
        let owner = request.owner.clone().unwrap_or_else(|| Owner::of(&original));
        let view = data::View {
            pod: &stripped,
            owner: &owner,
            proxy_config: &proxy_config,
            mesh: self.mesh.json(),
            settings: &self.settings,
            native: request.native,
        };
        let (mut pod, injected) = self.render(pod, &view)?;
        overrides::reapply(&mut pod, &original, &injected)?;
        overrides::adjust_user(&mut pod, &original, &proxy_config);
        process::variables(&mut pod, &variables);
        process::prometheus(&mut pod, &self.mesh)?;
        probes::rewrite(&mut pod, &self.settings.values, self.mesh.status_port());
        if let Some(network) = variables.get("ISTIO_META_NETWORK") {
            pod::set_label(&mut pod, "topology.istio.io/network", network);
        }
        process::status(&mut pod, &injected, &self.settings);
        process::order(&mut pod, &original, &self.mesh, &self.settings.values)?;
        Ok(pod)
    }

    /// Cluster and network of a Pod: its label, then the path of the webhook, then the values.
    fn place(&self, pod: &Json, variables: &BTreeMap<String, String>) -> (String, String) {
        let value =
            |path: &str| self.settings.values.pointer(path).and_then(Json::as_str).unwrap_or_default();
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let cluster = given("ISTIO_META_CLUSTER_ID");
        let network = given("ISTIO_META_NETWORK");
        let label = pod::label(pod, "topology.istio.io/network").map(str::to_owned);
        (
            cluster.unwrap_or_else(|| value("/global/multiCluster/clusterName").to_owned()),
            label.or(network).unwrap_or_else(|| value("/global/network").to_owned()),
        )
    }

    /// Renders the Pod's templates, one after the other, into the Pod and into an empty one.
    fn render(&self, mut pod: Json, view: &data::View<'_>) -> Result<(Json, Json), Refused> {
        let mut injected = json!({});
        for name in self.settings.config.chosen(&pod)? {
            let Some(template) = self.templates.get(&name) else {
                let known: Vec<_> = self.templates.keys().map(String::as_str).collect();
                return Err(Refused(format!(
                    "requested template {name:?} not found; have {}",
                    known.join(", ")
                )));
            };
            let heap = Limits::default().heap();
            let dot = view.value(&heap)?;
            let text = template.render(&heap, "inject", &dot).map_err(|error| Refused(error.to_string()))?;
            let overlay = leno_gotemplate::yaml::parse(&text)
                .map_err(|error| Refused(format!("template {name:?} makes no YAML: {error}")))?;
            merge::pod(&mut injected, &overlay)?;
            let native = match pod::annotation(&pod, "sidecar.istio.io/nativeSidecar") {
                Some("true") => true,
                Some("false") => false,
                _ => view.native,
            };
            // What users write of the proxy stands in `containers`, where the proxy may not be.
            if native && pod::find(&injected, "initContainers", PROXY).is_some() {
                pod::move_container(&mut pod, PROXY, "containers", "initContainers");
            }
            merge::pod(&mut pod, &overlay)?;
        }
        Ok((pod, injected))
    }
}
