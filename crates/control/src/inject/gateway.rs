//! What is made for a Gateway of the Gateway API: the template `kube-gateway` rendered for it, and changed as
//! ConfigMaps of the user ask. A pure function, [`Injector::gateway`].
//!
//! A template may make the five kinds of [`MADE`], of which the last two are kept only if a ConfigMap has something
//! to say of them, in the Gateway's namespace and under its names.

use std::collections::BTreeMap;
use std::rc::Rc;

use leno_api::yaml::{Dialect, Node};
use leno_gotemplate::{Heap, Limits, Value};
use serde_json::{Map, Value as Json, json};

use super::data::{PROXY_ID, go, image};
use super::{Injector, ProxyRules, Refused, merge, pod};
use crate::model::check::is_subdomain;
use crate::model::label::{GATEWAY_CONTROLLER, GATEWAY_MANAGED, GATEWAY_NAME};
use crate::scope::gateway_api::infrastructure::{NAME_OVERRIDE, SERVICE_TYPE};

/// The template.
const TEMPLATE: &str = "kube-gateway";

/// The annotation of a Gateway with the name of its service account.
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";

/// The type of Services that nothing is said of.
const DEFAULT_TYPE: &str = "LoadBalancer";

/// Labels and annotations that only controllers of the Gateway API write.
const RESERVED: &str = "gateway.networking.k8s.io/";

/// A kind that is made for Gateways.
pub(crate) struct Made {
    pub(crate) kind: &'static str,
    pub(crate) api_version: &'static str,
    pub(crate) plural: &'static str,
    /// What ConfigMaps call it.
    overlay: &'static str,
    /// Whether it is left out if no ConfigMap says something of it.
    on_demand: bool,
}

/// All kinds that are made.
pub(crate) const MADE: [Made; 5] = [
    Made {
        kind: "ServiceAccount",
        api_version: "v1",
        plural: "serviceaccounts",
        overlay: "serviceAccount",
        on_demand: false,
    },
    Made {
        kind: "Deployment",
        api_version: "apps/v1",
        plural: "deployments",
        overlay: "deployment",
        on_demand: false,
    },
    Made { kind: "Service", api_version: "v1", plural: "services", overlay: "service", on_demand: false },
    Made {
        kind: "HorizontalPodAutoscaler",
        api_version: "autoscaling/v2",
        plural: "horizontalpodautoscalers",
        overlay: "horizontalPodAutoscaler",
        on_demand: true,
    },
    Made {
        kind: "PodDisruptionBudget",
        api_version: "policy/v1",
        plural: "poddisruptionbudgets",
        overlay: "podDisruptionBudget",
        on_demand: true,
    },
];

/// A port of the Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `appProtocol`.
    pub protocol: String,
}

/// A Gateway, and what its gateways depend on.
#[derive(Clone, Debug, Default)]
pub struct GatewayRequest {
    /// Its `metadata` (name, namespace, uid, labels, annotations) and `spec`.
    pub gateway: Json,
    /// The ports of the Service.
    pub ports: Vec<GatewayPort>,
    /// Whether labels and annotations of the Gateway are those of what is made, if its `infrastructure` has none.
    pub copies_metadata: bool,
    /// The version of Kubernetes, 129 for 1.29.
    pub kube_version: u32,
    /// What the cluster is called, if the values do not say.
    pub cluster: String,
    /// What ConfigMaps say of what is made, by its kind (`deployment`, `service`, ...); the later wins.
    pub overlays: Vec<BTreeMap<String, String>>,
    /// What ProxyConfig objects say.
    pub rules: ProxyRules,
}

impl GatewayRequest {
    fn text(&self, path: &str) -> &str {
        self.gateway.pointer(path).and_then(Json::as_str).unwrap_or_default()
    }

    /// An annotation of the Gateway, or the name of what is made by default.
    fn named(&self, annotation: &str) -> String {
        let asked = pod::annotation(&self.gateway, annotation).filter(|name| !name.is_empty());
        let default = || format!("{}-{}", self.text("/metadata/name"), self.text("/spec/gatewayClassName"));
        asked.map_or_else(default, str::to_owned)
    }

    /// Labels or annotations of what is made.
    fn metadata(&self, part: &str) -> Map<String, Json> {
        let own = self.gateway.pointer(&format!("/spec/infrastructure/{part}")).and_then(Json::as_object);
        if let Some(own) = own {
            let kept = own.iter().filter(|(name, _)| !name.starts_with(RESERVED));
            return kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        let copied = self.gateway.pointer(&format!("/metadata/{part}")).filter(|_| self.copies_metadata);
        copied.and_then(Json::as_object).cloned().unwrap_or_default()
    }
}

impl Injector {
    /// The objects to be made for a Gateway, in the order of the template.
    ///
    /// # Errors
    /// If there is no template, or what it and the overlays make cannot be used.
    pub fn gateway(&self, request: &GatewayRequest) -> Result<Vec<Json>, Refused> {
        let template = self.templates.get(TEMPLATE);
        let template = template.ok_or_else(|| Refused(format!("there is no template {TEMPLATE:?}")))?;
        let known = |name: &str| MADE.iter().any(|made| made.overlay == name);
        if let Some(unknown) = request.overlays.iter().flat_map(BTreeMap::keys).find(|name| !known(name)) {
            let names = MADE.map(|made| made.overlay).join(", ");
            return Err(Refused(format!("{unknown:?} is none of {names}")));
        }
        let heap = Limits::default().heap();
        let dot = self.gateway_dot(request, &heap)?;
        let text = template.render(&heap, "inject", &dot).map_err(|error| Refused(error.to_string()))?;
        let documents = leno_api::yaml::parse(&text, Dialect::Kubernetes)
            .map_err(|error| Refused(format!("template {TEMPLATE:?} makes no YAML: {error}")))?;
        let objects = documents.iter().filter(|node| !node.is_null()).map(Node::to_json);
        objects.filter_map(|object| made(object, request).transpose()).collect()
    }

    /// The template's dot: Istio's names of things.
    fn gateway_dot(&self, request: &GatewayRequest, heap: &Heap) -> Result<Value, Refused> {
        let metadata = request.gateway.get("metadata").cloned().unwrap_or_else(|| json!({}));
        let spec = request.gateway.get("spec").cloned().unwrap_or_else(|| json!({}));
        // ProxyConfig objects select gateways by the label that all their Pods have.
        let name = request.text("/metadata/name");
        let pods = json!({"metadata": {"namespace": request.text("/metadata/namespace"),
            "labels": {GATEWAY_NAME: name}}});
        let proxy_config = self.mesh.effective(&pods, &request.rules)?;
        let values = heap.json(&self.settings.values, leno_gotemplate::Numbers::Floats)?;
        let image = image(&self.settings.values, &proxy_config, &request.gateway);
        let service_type = pod::annotation(&request.gateway, SERVICE_TYPE).unwrap_or(DEFAULT_TYPE);
        let texts = |part: &str| {
            let entries = request.metadata(part).into_iter();
            let entries = entries.map(|(name, value)| {
                (Rc::from(name.as_str()), Value::text(value.as_str().unwrap_or_default()))
            });
            Value::Map(heap.strings(entries.collect()))
        };
        let ports = request.ports.iter().map(|port| {
            let json = json!({"name": port.name, "port": port.port, "appProtocol": port.protocol});
            go(json, "v1.ServicePort")
        });
        let ports = heap.list(ports.collect())?;
        let text = Value::text;
        let entries: BTreeMap<Rc<str>, Value> = [
            (
                "TypeMeta",
                go(json!({"kind": "Gateway", "apiVersion": "gateway.networking.k8s.io/v1"}), "v1.TypeMeta"),
            ),
            ("Name", text(name)),
            ("Namespace", text(request.text("/metadata/namespace"))),
            ("UID", text(request.text("/metadata/uid"))),
            ("ObjectMeta", go(metadata, "v1.ObjectMeta")),
            ("Spec", go(spec, "v1.GatewaySpec")),
            ("GatewayClass", text(request.text("/spec/gatewayClassName"))),
            ("DeploymentName", text(&request.named(NAME_OVERRIDE))),
            ("ServiceAccount", text(&request.named(SERVICE_ACCOUNT))),
            ("Ports", ports),
            ("ServiceType", text(service_type)),
            ("ClusterID", text(&request.cluster)),
            ("KubeVersion", Value::Int(i64::from(request.kube_version))),
            ("Revision", text(&self.settings.revision)),
            ("NativeSidecars", Value::Bool(true)),
            ("ProxyImage", text(&image)),
            ("ProxyUID", Value::Int(PROXY_ID)),
            ("ProxyGID", Value::Int(PROXY_ID)),
            ("CompliancePolicy", text(&std::env::var("COMPLIANCE_POLICY").unwrap_or_default())),
            ("InfrastructureLabels", texts("labels")),
            ("InfrastructureAnnotations", texts("annotations")),
            ("GatewayNameLabel", text(GATEWAY_NAME)),
            ("IsEastWestGateway", Value::Bool(false)),
            ("ControllerLabel", text(&managed())),
            ("ProxyConfig", go(proxy_config, "*v1alpha1.ProxyConfig")),
            ("MeshConfig", go(self.mesh.json().clone(), "*v1alpha1.MeshConfig")),
            ("Values", values),
        ]
        .into_iter()
        .map(|(key, value)| (key.into(), value))
        .collect();
        Ok(Value::Map(heap.map(entries)))
    }
}

/// The value of the label by which what is made is known.
fn managed() -> String {
    GATEWAY_CONTROLLER.replace('/', "-")
}

/// An object of the template as it is to be; `None` if nobody asks for it.
fn made(mut object: Json, request: &GatewayRequest) -> Result<Option<Json>, Refused> {
    let text = |object: &Json, path: &str| {
        object.pointer(path).and_then(Json::as_str).unwrap_or_default().to_owned()
    };
    let (kind, api_version) = (text(&object, "/kind"), text(&object, "/apiVersion"));
    let Some(made) = MADE.iter().find(|made| made.kind == kind && made.api_version == api_version) else {
        return Err(Refused(format!(
            "template {TEMPLATE:?} makes a {kind} of {api_version:?}, which is not allowed"
        )));
    };
    let before = identity(&object);
    let overlays: Vec<&String> = request.overlays.iter().filter_map(|it| it.get(made.overlay)).collect();
    if overlays.is_empty() && made.on_demand {
        return Ok(None);
    }
    for overlay in overlays {
        let overlay = leno_gotemplate::yaml::parse(overlay)
            .map_err(|error| Refused(format!("{}: {error}", made.overlay)))?;
        merge::pod(&mut object, &overlay)
            .map_err(|Refused(error)| Refused(format!("{}: {error}", made.overlay)))?;
    }
    if identity(&object) != before || object.pointer("/metadata/managedFields").is_some() {
        return Err(Refused(format!("{}: it changes what the object is known by", made.overlay)));
    }
    let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
    let gateway = request.text("/metadata/name");
    let named = [request.named(NAME_OVERRIDE), request.named(SERVICE_ACCOUNT)];
    if namespace != request.text("/metadata/namespace")
        || !(named.contains(&name) || name.starts_with(gateway))
    {
        return Err(Refused(format!(
            "template {TEMPLATE:?} makes {kind} {namespace}/{name}, which is another's"
        )));
    }
    if !is_subdomain(&name) {
        return Err(Refused(format!("{name:?} is not a name that a {kind} can have")));
    }
    pod::set_label(&mut object, GATEWAY_MANAGED, &managed());
    Ok(Some(object))
}

/// What of an object nobody may change.
fn identity(object: &Json) -> Vec<Option<Json>> {
    let fields = [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
    ];
    let field = |name: &&str| object.get("metadata").and_then(|metadata| metadata.get(*name)).cloned();
    let kind = ["apiVersion", "kind"].map(|name| object.get(name).cloned());
    fields.iter().map(field).chain(kind).collect()
}
