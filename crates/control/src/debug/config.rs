//! Pages about configuration: the objects, and what is derived of them for the whole mesh.

use std::collections::BTreeMap;

use ::http::StatusCode;
use leno_api::yaml::{self, Dialect, Node};
use leno_derive::Graph;
use serde_json::{Map, Value, json};

use super::{Answer, Look, Question, registry};
use crate::metrics::faults::FAULTS;
use crate::model::read::known;
use crate::model::{Kind, ObjectRef};
use crate::registry::Mesh;
use crate::scope::gateway_api::status::AllStatuses;
use crate::source::{Origin, Places};

/// `/debug/configz`: the objects in use, as far as their text is at hand, and where they were read.
pub(super) fn configz(look: Look<'_>, _: &Question) -> Answer {
    let objects = objects(look, |kind| kind != Kind::Secret);
    Answer::later(move || {
        let mut texts = Places::default();
        Answer::Json(objects.iter().map(|(object, origin)| whole(&mut texts, object, origin)).collect())
    })
}

/// Objects of some kinds, and where they were read.
fn objects(look: Look<'_>, wanted: impl Fn(Kind) -> bool) -> Vec<(ObjectRef, Origin)> {
    let all = look.origins.iter().filter(|(object, _)| wanted(object.kind));
    all.map(|(object, origin)| (object.clone(), origin.clone())).collect()
}

fn whole<'o>(texts: &mut Places<'o>, object: &ObjectRef, origin: &'o Origin) -> Value {
    let mut whole = texts
        .json_of(origin)
        .unwrap_or_else(|| json!({ "metadata": { "name": object.name, "namespace": object.namespace } }));
    if let Some(fields) = whole.as_object_mut() {
        fields.insert("kind".to_owned(), Value::from(object.kind.to_string()));
        fields.insert("namespace".to_owned(), Value::from(object.namespace.as_str()));
        fields.insert("name".to_owned(), Value::from(object.name.as_str()));
        fields.insert("file".to_owned(), Value::from(origin.file.as_ref()));
    }
    whole
}

/// `/debug/resourcesz`: the kinds that are read.
pub(super) fn resourcesz(_: Look<'_>, _: &Question) -> Answer {
    let kinds = known().filter(|known| known.reads.is_some()).map(|known| {
        let version = known.versions.first().copied().unwrap_or_default();
        json!({ "Group": known.group, "Version": version, "Kind": known.kind })
    });
    Answer::Json(kinds.collect())
}

/// Objects by namespace, in istiod's form for policies.
fn by_namespace(objects: &[(ObjectRef, Origin)]) -> Map<String, Value> {
    let mut texts = Places::default();
    let mut namespaces: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (object, origin) in objects {
        let whole = texts.json_of(origin).unwrap_or_default();
        let part = |path: &str| whole.pointer(path).cloned().unwrap_or_else(|| json!({}));
        namespaces.entry(&object.namespace).or_default().push(json!({
            "name": object.name,
            "namespace": object.namespace,
            "annotations": part("/metadata/annotations"),
            "spec": part("/spec"),
        }));
    }
    namespaces.into_iter().map(|(namespace, policies)| (namespace.to_owned(), policies.into())).collect()
}

/// The objects of a kind, and the root namespace, to be written in istiod's form.
fn policies(look: Look<'_>, kind: Kind, name: &'static str) -> impl FnOnce() -> Value + Send + 'static {
    let objects = objects(look, |other| other == kind);
    let root = look.graph.peek::<Mesh>(&()).root_namespace.clone();
    move || json!({ name: by_namespace(&objects), "root_namespace": root })
}

/// `/debug/authorizationz`.
pub(super) fn authorizationz(look: Look<'_>, _: &Question) -> Answer {
    let policies = policies(look, Kind::AuthorizationPolicy, "namespace_to_policies");
    Answer::later(move || Answer::Json(json!({ "authorization_policies": policies() })))
}

/// `/debug/telemetryz`.
pub(super) fn telemetryz(look: Look<'_>, _: &Question) -> Answer {
    let telemetries = policies(look, Kind::Telemetry, "namespace_to_telemetries");
    Answer::later(move || Answer::Json(json!({ "telemetries": telemetries() })))
}

/// `/debug/pushcontext`: what is derived for the whole mesh.
pub(super) fn pushcontext(look: Look<'_>, _: &Question) -> Answer {
    let policies = policies(look, Kind::AuthorizationPolicy, "namespace_to_policies");
    let gateways = registry::gateways(look);
    Answer::later(move || {
        Answer::Json(json!({
            "AuthorizationPolicies": policies(),
            "NetworkGateways": gateways,
            "UnresolvedGateways": [],
        }))
    })
}

/// `/debug/mesh`: what is written of the MeshConfig, over the defaults of what people look for.
pub(super) fn mesh(look: Look<'_>, _: &Question) -> Answer {
    let mesh = look.graph.peek::<Mesh>(&());
    let mut page = json!({
        "proxyListenPort": mesh.proxy_listen_port,
        "proxyInboundListenPort": mesh.proxy_inbound_listen_port,
        "ingressClass": mesh.ingress_class,
        "ingressService": mesh.ingress_service,
        "ingressSelector": mesh.ingress_selector,
        "enableTracing": mesh.enable_tracing,
        "accessLogFile": mesh.access_log_file,
        "rootNamespace": mesh.root_namespace,
        "trustDomain": mesh.trust_domain,
    });
    let written = look
        .origins
        .iter()
        .filter(|(object, _)| object.kind == Kind::MeshConfig)
        .max_by_key(|(object, _)| object.namespace == mesh.root_namespace)
        .map(|(_, origin)| origin.clone());
    // It may be part of a large file.
    Answer::later(move || {
        let written = written.and_then(|origin| origin.to_json());
        let text = written.as_ref().and_then(|map| map.pointer("/data/mesh")).and_then(Value::as_str);
        let documents = text.and_then(|text| yaml::parse(text, Dialect::Kubernetes).ok()).unwrap_or_default();
        if let (Some(page), Some(Value::Object(written))) =
            (page.as_object_mut(), documents.first().map(Node::to_json))
        {
            page.extend(written);
        }
        Answer::Json(page)
    })
}

/// `/debug/inject`: there is no injection here.
pub(super) fn inject(look: Look<'_>, _: &Question) -> Answer {
    match look.webhook {
        Some(webhook) => Answer::Json(webhook.shown()),
        None => {
            let text = "this control plane serves no webhooks, so it has no templates\n".to_owned();
            Answer::Fault(StatusCode::NOT_FOUND, text)
        }
    }
}

/// `/debug/gatewayz`: what became of the Gateway API's objects.
pub(super) fn gatewayz(look: Look<'_>, _: &Question) -> Answer {
    Answer::Json(statuses(look.graph))
}

/// What became of the Gateway API's objects.
pub(crate) fn statuses(graph: &Graph) -> Value {
    let statuses = graph.peek::<AllStatuses>(&());
    let all = statuses.iter().map(|(object, status)| {
        json!({
            "kind": object.kind.to_string(),
            "namespace": object.namespace,
            "name": object.name,
            "status": status,
        })
    });
    all.collect()
}

/// `/debug/diagnostics`: all that is wrong.
pub(super) fn diagnostics(look: Look<'_>, _: &Question) -> Answer {
    Answer::Json(serde_json::to_value(look.diagnostics).unwrap_or_default())
}

/// `/debug/push_status`: what is noteworthy, under the names of istiod's metrics: for each an object,
/// by what it is about.
pub(super) fn push_status(look: Look<'_>, _: &Question) -> Answer {
    let mut page: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for diagnostic in look.diagnostics {
        let metric = match FAULTS.iter().find(|fault| fault.is(diagnostic)) {
            Some(fault) => fault.metric,
            None if diagnostic.code == "nack" => "pilot_total_xds_rejects",
            None => continue,
        };
        let about = format!("{}/{}", diagnostic.namespace, diagnostic.name);
        page.entry(metric).or_default().insert(about, json!({ "message": diagnostic.message }));
    }
    Answer::Json(json!(page))
}
