//! What the control plane says of itself: JSON over HTTP, on Istio's port (15014) and under Istio's
//! paths.
//!
//! `http.rs` is the HTTP server; it asks the control loop, which answers with the functions here.

pub(crate) mod http;

use std::collections::BTreeMap;

use leno_api::encode::{self, Style};
use leno_derive::Graph;
use leno_xds::{Mode, TypeUrl};
use serde_json::{Value, json};

use crate::model::ObjectRef;
use crate::push::Push;
use crate::push::session::Session;
use crate::registry::instances::Instances;
use crate::registry::{AllServices, Resolution};
use crate::scope::gateway_api::status::AllStatuses;
use crate::source::Origin;

/// `/debug/syncz`: what each proxy has been sent and has taken.
pub(crate) fn syncz(push: &Push) -> Value {
    push.sessions().map(sync_of).collect()
}

fn sync_of(session: &Session) -> Value {
    let types: serde_json::Map<String, Value> = session
        .stream()
        .subscriptions()
        .map(|(type_url, subscription)| {
            let status = if subscription.rejection().is_some() {
                "ERROR"
            } else if subscription.nonce().is_empty() {
                "NOT SENT"
            } else if session.is_behind(type_url) {
                "STALE"
            } else {
                "SYNCED"
            };
            let mut fields = json!({
                "status": status,
                "sent": subscription.version().as_str(),
                "acked": subscription.acked_version().as_str(),
                "resources": subscription.sent_count(),
            });
            if let (Some(message), Some(fields)) = (subscription.rejection(), fields.as_object_mut()) {
                fields.insert("error".to_owned(), Value::from(message));
            }
            (type_url.short().to_owned(), fields)
        })
        .collect();
    json!({
        "proxy": session.node,
        "id": session.node_id,
        "protocol": if session.stream().mode() == Mode::Delta { "delta" } else { "sotw" },
        "types": types,
    })
}

/// `/debug/configz`: the objects in use and where they were read.
pub(crate) fn configz(origins: &BTreeMap<ObjectRef, Origin>) -> Value {
    origins
        .iter()
        .map(|(object, origin)| {
            json!({
                "kind": object.kind.to_string(),
                "namespace": object.namespace,
                "name": object.name,
                "file": origin.file.as_ref(),
            })
        })
        .collect()
}

/// `/debug/registryz`: the services, with the addresses that DNS should give for them and the
/// endpoints behind them.
pub(crate) fn registryz(graph: &Graph) -> Value {
    let services = graph.peek::<AllServices>(&());
    services
        .iter()
        .map(|service| {
            let ports: Vec<Value> = service
                .ports
                .iter()
                .map(|port| {
                    json!({ "number": port.number, "name": port.name, "protocol": format!("{:?}", port.protocol) })
                })
                .collect();
            let instances = graph.peek::<Instances>(&service.id);
            let endpoints: Vec<Value> = instances
                .iter()
                .map(|instance| json!({ "address": instance.address, "ports": instance.ports }))
                .collect();
            json!({
                "hostname": service.id.host,
                "namespace": service.namespace(),
                "name": service.name,
                "kind": service.id.object.kind.to_string(),
                "addresses": service.addresses,
                "headless": service.is_kubernetes() && service.resolution == Resolution::OriginalDst,
                "resolution": format!("{:?}", service.resolution),
                "external": service.external,
                "ports": ports,
                "endpoints": endpoints,
            })
        })
        .collect()
}

/// `/debug/gatewayz`: what became of the Gateway API's objects.
pub(crate) fn gatewayz(graph: &Graph) -> Value {
    let statuses = graph.peek::<AllStatuses>(&());
    statuses
        .iter()
        .map(|(object, status)| {
            json!({
                "kind": object.kind.to_string(),
                "namespace": object.namespace,
                "name": object.name,
                "status": status,
            })
        })
        .collect()
}

/// `/debug/config_dump?proxyID=`: all that a proxy should have; `None` if it is not connected.
pub(crate) fn config_dump(push: &Push, proxy: &str) -> Option<Value> {
    let session = push.sessions().find(|session| session.node == proxy || session.node_id == proxy)?;
    let mut dump = serde_json::Map::new();
    for type_url in [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route] {
        let resources = push.resources(session, &type_url)?;
        let name = type_url.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        let all: Vec<Value> = resources
            .iter()
            .filter(|resource| session.wants(&type_url, &resource.name))
            .map(|resource| {
                // What was encoded here can be read; if not, the dump should show that, not fail.
                let style = Style { redact: true, ..Style::default() };
                encode::to_value(&name, &resource.body, style)
                    .unwrap_or_else(|error| Value::from(error.to_string()))
            })
            .collect();
        dump.insert(type_url.short().to_owned(), Value::from(all));
    }
    Some(Value::from(dump))
}
