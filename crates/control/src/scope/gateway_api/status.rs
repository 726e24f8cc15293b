//! What became of the Gateway API's objects, as their `status` says it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use leno_derive::{Cx, Query};
use serde::Serialize;

use super::attach::{Attached, Head, Refusal};
use super::infrastructure::{self, Reach, Services};
use super::listeners::{LeftOut, Listeners, ListenersOf, controller, gateway_of_set};
use super::{attached_routes, backend, with_head};
use crate::model::gateway_api::gateway::{Gateway, Listener};
use crate::model::inputs::{
    GatewayClasses, GrpcRoutes, HttpRoutes, Ingresses, KubernetesGateways, ListenerSets, TcpRoutes, TlsRoutes,
};
use crate::model::label::{GATEWAY_CONTROLLER, REMOTE_CONTROLLER};
use crate::model::{Config, Kind, ObjectRef};
use crate::scope::ingress;

/// One fact about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Condition {
    r#type: &'static str,
    /// `True` or `False`.
    status: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// What became of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerStatus {
    name: String,
    supported_kinds: Vec<&'static str>,
    attached_routes: usize,
    conditions: Vec<Condition>,
}

/// What a parent made of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParentStatus {
    /// The index in `spec.parentRefs`.
    parent_ref: usize,
    conditions: Vec<Condition>,
}

/// What became of an object: a Gateway has conditions and listeners, a route has parents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// Of a Gateway: where it is reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    listeners: Vec<ListenerStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parents: Vec<ParentStatus>,
    /// Of a Gateway: how many ListenerSets add listeners to it.
    #[serde(skip_serializing_if = "is_zero")]
    attached_listener_sets: usize,
    /// Of an Ingress.
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancer>,
}

/// Where a Gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Address {
    /// `IPAddress` or `Hostname`.
    r#type: &'static str,
    value: String,
}

impl Address {
    fn new(value: &str) -> Address {
        let r#type = if value.parse::<IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        Address { r#type, value: value.to_owned() }
    }
}

/// Where an Ingress is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LoadBalancer {
    ingress: Vec<Entrance>,
}

/// One way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Entrance {
    Ip(String),
    Hostname(String),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The status of a Gateway or a route; `None` if it is not ours.
pub(crate) struct GatewayStatus;

impl Query for GatewayStatus {
    type Key = ObjectRef;
    type Value = Option<Status>;
    const NAME: &'static str = "gateway-status";

    fn derive(cx: &Cx<'_>, object: &ObjectRef) -> Option<Status> {
        match object.kind {
            Kind::KubernetesGateway => of_gateway(cx, object),
            Kind::ListenerSet => of_set(cx, object),
            Kind::Ingress => {
                let entrance = |address: String| match address.parse::<IpAddr>() {
                    Ok(_) => Entrance::Ip(address),
                    Err(_) => Entrance::Hostname(address),
                };
                let addresses = ingress::addresses(cx, &object.key()).into_iter();
                let ingress: Vec<Entrance> = addresses.map(entrance).collect();
                let load_balancer = (!ingress.is_empty()).then_some(LoadBalancer { ingress })?;
                Some(Status { load_balancer: Some(load_balancer), ..Status::default() })
            }
            _ => {
                let parents = with_head(cx, object, |head| of_route(cx, head))?;
                (!parents.is_empty()).then(|| Status { parents, ..Status::default() })
            }
        }
    }
}

/// All objects that have a status.
pub(crate) struct AllStatuses;

impl Query for AllStatuses {
    type Key = ();
    type Value = Vec<(ObjectRef, Status)>;
    const NAME: &'static str = "all-statuses";

    fn derive(cx: &Cx<'_>, (): &()) -> Vec<(ObjectRef, Status)> {
        let classes = cx.all::<GatewayClasses>().into_iter().filter_map(|key| {
            let class = cx.input::<GatewayClasses>(&key)?;
            let is_known =
                [GATEWAY_CONTROLLER, REMOTE_CONTROLLER].contains(&class.spec.controller_name.as_str());
            is_known.then(|| (key.of(Kind::GatewayClass), of_class()))
        });
        let classes: Vec<_> = classes.collect();
        let ingresses = cx.all::<Ingresses>().into_iter().map(|key| key.of(Kind::Ingress));
        let objects = objects(cx).into_iter().chain(ingresses);
        let others = objects.filter_map(|object| {
            let status = cx.get::<GatewayStatus>(&object).as_ref().clone()?;
            Some((object, status))
        });
        classes.into_iter().chain(others).collect()
    }
}

/// A class that names us is ours, whatever its parameters.
fn of_class() -> Status {
    let message = "Handled by Istio controller".to_owned();
    Status { conditions: vec![Condition { message, ..holds("Accepted") }], ..Status::default() }
}

/// All Gateways, ListenerSets and routes.
pub(crate) fn objects(cx: &Cx<'_>) -> Vec<ObjectRef> {
    let gateways = cx.all::<KubernetesGateways>().into_iter().map(|key| key.of(Kind::KubernetesGateway));
    let sets = cx.all::<ListenerSets>().into_iter().map(|key| key.of(Kind::ListenerSet));
    let http = cx.all::<HttpRoutes>().into_iter().map(|key| key.of(Kind::HttpRoute));
    let grpc = cx.all::<GrpcRoutes>().into_iter().map(|key| key.of(Kind::GrpcRoute));
    let tls = cx.all::<TlsRoutes>().into_iter().map(|key| key.of(Kind::TlsRoute));
    let tcp = cx.all::<TcpRoutes>().into_iter().map(|key| key.of(Kind::TcpRoute));
    gateways.chain(sets).chain(http).chain(grpc).chain(tls).chain(tcp).collect()
}

fn holds(r#type: &'static str) -> Condition {
    // The Gateway API calls the reason as the condition where all is well.
    Condition { r#type, status: "True", reason: r#type, message: String::new() }
}

fn fails(r#type: &'static str, reason: &'static str, message: &str) -> Condition {
    Condition { r#type, status: "False", reason, message: message.to_owned() }
}

fn of_gateway(cx: &Cx<'_>, object: &ObjectRef) -> Option<Status> {
    let gateway = cx.input::<KubernetesGateways>(&object.key())?;
    if controller(cx, &gateway.spec.gateway_class_name) == REMOTE_CONTROLLER {
        return Some(of_remote(&gateway.spec));
    }
    let found = cx.get::<ListenersOf>(&object.key());
    if !found.is_ours {
        return None;
    }
    let (services, reach) = reach(cx, object, &gateway, &found);
    let mut status =
        of_listeners(cx, object, &gateway.spec.listeners, &found, &programmed(&services, &reach));
    if let (Some((reason, message)), Some(accepted)) = (services.refused, status.conditions.first_mut()) {
        *accepted = fails("Accepted", reason, &message);
    }
    status.addresses = reach.addresses.iter().map(|address| Address::new(address)).collect();
    status.attached_listener_sets = found.sets.len();
    Some(status)
}

/// A Gateway of another cluster is as it says.
fn of_remote(gateway: &Gateway) -> Status {
    let message = "it is of another cluster, where it is programmed".to_owned();
    let addresses = gateway.addresses.iter().map(|address| Address::new(&address.value));
    Status {
        addresses: addresses.collect(),
        conditions: vec![holds("Accepted"), Condition { message, ..holds("Programmed") }],
        ..Status::default()
    }
}

/// Where the listeners of a Gateway, or of a ListenerSet that adds to it, are reached.
fn reach(cx: &Cx<'_>, object: &ObjectRef, gateway: &Config<Gateway>, found: &Listeners) -> (Services, Reach) {
    let services = infrastructure::services(cx, gateway);
    let ports: BTreeSet<u16> = found.derived_of(object).map(|derived| derived.port).collect();
    let reach = infrastructure::reach(cx, gateway, &services.hosts, &ports);
    (services, reach)
}

/// Whether requests arrive.
fn programmed(services: &Services, reach: &Reach) -> Condition {
    let list = |all: &BTreeSet<String>| all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if services.hosts.is_empty() {
        return fails("Programmed", "UnsupportedAddress", "none of its addresses is the name of a Service");
    }
    if !reach.problems.is_empty() {
        let reason = if reach.is_unusable { "AddressNotUsable" } else { "AddressNotAssigned" };
        let mut message = list(&reach.problems);
        if !reach.assigned.is_empty() {
            message = format!("{message}; reached by {}", list(&reach.assigned));
        }
        return fails("Programmed", reason, &message);
    }
    let message = if reach.assigned.is_empty() {
        String::new()
    } else {
        format!("reached by {}", list(&reach.assigned))
    };
    Condition { message, ..holds("Programmed") }
}

/// What became of the listeners of a Gateway or a ListenerSet; `programmed` is what is the case if any of them is
/// good.
fn of_listeners(
    cx: &Cx<'_>,
    object: &ObjectRef,
    listeners: &[Listener],
    found: &Listeners,
    programmed: &Condition,
) -> Status {
    let listeners = listeners.iter().map(|listener| {
        let derived = found.derived_of(object).find(|derived| derived.section == listener.name);
        let left_out = found.left_out_of(object).find(|left_out| left_out.section == listener.name);
        ListenerStatus {
            name: listener.name.clone(),
            supported_kinds: derived.map(|derived| derived.kinds.clone()).unwrap_or_default(),
            attached_routes: derived.map_or(0, |derived| attached_routes(cx, derived)),
            conditions: of_listener(left_out, derived.is_some()),
        }
    });
    let any = found.derived_of(object).next().is_some();
    let is_derived =
        |left_out: &&LeftOut| found.derived_of(object).any(|derived| derived.section == left_out.section);
    let conditions = match (any, found.left_out_of(object).find(|left_out| !is_derived(left_out))) {
        (_, None) => vec![holds("Accepted"), programmed.clone()],
        (true, Some(_)) => {
            let message = "some listeners are left out".to_owned();
            let accepted = Condition { reason: "ListenersNotValid", message, ..holds("Accepted") };
            vec![accepted, programmed.clone()]
        }
        (false, Some(_)) => {
            let message = "all listeners are left out";
            vec![fails("Accepted", "ListenersNotValid", message), fails("Programmed", "Invalid", message)]
        }
    };
    Status { conditions, listeners: listeners.collect(), ..Status::default() }
}

/// What became of a ListenerSet; `None` if its Gateway is not ours.
fn of_set(cx: &Cx<'_>, object: &ObjectRef) -> Option<Status> {
    let set = cx.input::<ListenerSets>(&object.key())?;
    let gateway = gateway_of_set(&set)?;
    let found = cx.get::<ListenersOf>(&gateway);
    if !found.is_ours {
        return None;
    }
    if !found.sets.contains(&object.key()) {
        let message = format!("the Gateway {gateway} takes no ListenerSets of this namespace");
        let conditions =
            vec![fails("Accepted", "NotAllowed", &message), fails("Programmed", "NotAllowed", &message)];
        return Some(Status { conditions, ..Status::default() });
    }
    let gateway = cx.input::<KubernetesGateways>(&gateway)?;
    let (services, reach) = reach(cx, object, &gateway, &found);
    Some(of_listeners(cx, object, &set.spec.listeners, &found, &programmed(&services, &reach)))
}

/// `derived` says whether it is there all the same.
fn of_listener(left_out: Option<&LeftOut>, derived: bool) -> Vec<Condition> {
    let no_conflict = Condition { status: "False", reason: "NoConflicts", ..holds("Conflicted") };
    let resolved = holds("ResolvedRefs");
    let Some(LeftOut { reason, message, .. }) = left_out else {
        return vec![holds("Accepted"), no_conflict, holds("Programmed"), resolved];
    };
    let programmed = if derived { holds("Programmed") } else { fails("Programmed", "Invalid", message) };
    match *reason {
        "HostnameConflict" => {
            let conflict = Condition { reason, message: message.clone(), ..holds("Conflicted") };
            vec![fails("Accepted", reason, message), conflict, programmed, resolved]
        }
        "InvalidRouteKinds" | "InvalidCertificateRef" | "RefNotPermitted" => {
            vec![holds("Accepted"), no_conflict, programmed, fails("ResolvedRefs", reason, message)]
        }
        reason => vec![fails("Accepted", reason, message), no_conflict, programmed, resolved],
    }
}

fn of_route(cx: &Cx<'_>, head: &Head<'_>) -> Vec<ParentStatus> {
    let backends = backend::problems(cx, head);
    let resolved = match backends.first() {
        None => holds("ResolvedRefs"),
        Some((path, Refusal { reason, message })) => {
            fails("ResolvedRefs", reason, &format!("{path}: {message}"))
        }
    };
    let parents = head.attached(cx).into_iter().enumerate();
    parents
        .filter_map(|(parent_ref, attached)| {
            let accepted = match attached {
                Attached::Taken => holds("Accepted"),
                Attached::Refused(Refusal { reason, message }) => fails("Accepted", reason, &message),
                Attached::Foreign => return None,
            };
            Some(ParentStatus { parent_ref, conditions: vec![accepted, resolved.clone()] })
        })
        .collect()
}
