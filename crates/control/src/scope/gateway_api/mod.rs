//! The Gateway API as Istio does it: derived into the same shapes as Istio's own kinds, so that there
//! is one way from rules to routes.
//!
//! - `listeners.rs`: each listener of a Gateway becomes a Gateway of Istio's with one server, under
//!   the name that Istio gives it;
//! - `infrastructure.rs`: what runs for a Gateway, and where it is reached;
//! - `attach.rs`: which routes may attach to which listeners and services;
//! - `convert.rs` and `backend.rs`: rules of routes as those of VirtualServices;
//! - `status.rs`: what became of it all, as the Gateway API words it;
//! - here: the routes that are attached, merged by host and put in order, as [`Rule`]s.

pub(crate) mod attach;
mod backend;
mod convert;
pub(crate) mod infrastructure;
pub(crate) mod listeners;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Index, Query};

use self::attach::{Attached, Head};
use self::listeners::{Derived, with_name};
use super::rules::{Rule, RuleId, Semantics};
use crate::model::gateway_api::ParentReference;
use crate::model::gateway_api::route::{GrpcRoute, HttpRoute, TcpRoute, TlsRoute};
use crate::model::inputs::{GrpcRoutes, HttpRoutes, TcpRoutes, TlsRoutes};
use crate::model::string_match::StringMatch;
use crate::model::virtual_service as istio;
use crate::model::virtual_service::MESH;
use crate::model::{Config, Key, Kind, Meta, ObjectRef};
use crate::registry::{Export, kubernetes_host};

/// What a route attaches to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Parent {
    /// `Gateway`, `ListenerSet` or `Service`.
    pub(crate) kind: String,
    pub(crate) key: Key,
}

impl Parent {
    /// What a reference in a route of a namespace means.
    pub(crate) fn of(reference: &ParentReference, namespace: &str) -> Parent {
        let kind = match reference.kind.as_deref() {
            None => "Gateway",
            // What it was called at first.
            Some("XListenerSet") => listeners::LISTENER_SET,
            Some(kind) => kind,
        };
        Parent {
            kind: kind.to_owned(),
            key: Key {
                namespace: reference.namespace.clone().unwrap_or_else(|| namespace.to_owned()),
                name: reference.name.clone(),
            },
        }
    }
}

macro_rules! by_parent {
    ($($name:ident of $input:ident: $value:ty = $label:literal;)*) => {
        $(
            #[doc = concat!("The objects of `", stringify!($input), "` by what they attach to.")]
            pub(crate) struct $name;

            impl Index for $name {
                type Of = $input;
                type Bucket = Parent;
                const NAME: &'static str = $label;

                fn buckets(key: &Key, route: &Config<$value>) -> Vec<Parent> {
                    route.spec.parent_refs.iter().map(|parent| Parent::of(parent, &key.namespace)).collect()
                }
            }
        )*

        /// Tells the graph of these orders.
        pub(crate) fn register(graph: &mut leno_derive::Graph) {
            $(graph.register::<$name>();)*
            graph.register::<listeners::ListenerSetsByGateway>();
        }
    };
}

by_parent! {
    HttpRoutesByParent of HttpRoutes: HttpRoute = "http-routes-by-parent";
    GrpcRoutesByParent of GrpcRoutes: GrpcRoute = "grpc-routes-by-parent";
    TlsRoutesByParent of TlsRoutes: TlsRoute = "tls-routes-by-parent";
    TcpRoutesByParent of TcpRoutes: TcpRoute = "tcp-routes-by-parent";
}

/// HTTP rules with where they come from, before they are merged.
struct Part {
    meta: Meta,
    object: ObjectRef,
    rules: Vec<istio::HttpRoute>,
}

/// The rules that are attached to a listener, by the name (`namespace/name`) of the Gateway that was
/// derived from it; none for names of other Gateways.
pub(crate) struct ListenerRules;

impl Query for ListenerRules {
    type Key = String;
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "listener-rules";

    fn derive(cx: &Cx<'_>, name: &String) -> Vec<Arc<Rule>> {
        let Some(listeners) = with_name(cx, name) else { return Vec::new() };
        let Some(listener) = listeners.derived.iter().find(|derived| derived.key.to_string() == *name) else {
            return Vec::new();
        };
        let parent = &listener.parent;
        let mut rules = http_rules(cx, parent, listener, &listeners.derived);
        rules.extend(stream_rules(cx, parent, listener, &listeners.derived));
        rules.into_iter().map(Arc::new).collect()
    }
}

fn http_rules(cx: &Cx<'_>, parent: &Parent, listener: &Derived, all: &[Derived]) -> Vec<Rule> {
    let mut by_host: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    let mut add = |head: &Head<'_>, object: ObjectRef, rules: Vec<istio::HttpRoute>| {
        if !head.attaches_to(cx, parent, listener) || rules.is_empty() {
            return;
        }
        for host in head.hosts() {
            if attach::is_own_host(&host, listener, all) {
                let part = Part { meta: head.meta.clone(), object: object.clone(), rules: rules.clone() };
                by_host.entry(host).or_default().push(part);
            }
        }
    };
    for key in cx.bucket::<HttpRoutesByParent>(parent) {
        let Some(route) = cx.input::<HttpRoutes>(&key) else { continue };
        let head = Head::of_http(&route);
        add(&head, key.of(Kind::HttpRoute), convert::http(cx, &route, true));
    }
    for key in cx.bucket::<GrpcRoutesByParent>(parent) {
        let Some(route) = cx.input::<GrpcRoutes>(&key) else { continue };
        let head = Head::of_grpc(&route);
        add(&head, key.of(Kind::GrpcRoute), convert::grpc(cx, &route, true));
    }
    let gateway = listener.key.to_string();
    let rules = by_host.into_iter().map(|(host, parts)| {
        let id = RuleId::Listener { gateway: gateway.clone(), host: host.clone() };
        merged(id, &gateway, &format!("{gateway}/{host}"), host, parts)
    });
    rules.collect()
}

/// One rule of several routes for a host: all their rules, the most exact first.
fn merged(id: RuleId, gateway: &str, name: &str, host: String, mut parts: Vec<Part>) -> Rule {
    parts.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
    let mut meta = parts.first().map(|part| part.meta.clone()).unwrap_or_default();
    meta.name = name.replace('/', "~");
    let origins = parts.iter().map(|part| part.object.clone()).collect();
    let mut http: Vec<istio::HttpRoute> = parts.into_iter().flat_map(|part| part.rules).collect();
    http.sort_by_key(|rule| std::cmp::Reverse(precedence(rule)));
    let export_to = Export::new(&meta.namespace, &[], &[]);
    let spec = istio::VirtualService {
        hosts: vec![host],
        gateways: vec![gateway.to_owned()],
        http,
        ..istio::VirtualService::default()
    };
    Rule { id, meta, spec, export_to, semantics: Semantics::GatewayApi, origins }
}

/// How exact a rule is: the kind of its path, its length, the method, headers and parameters. Each
/// has one condition at most.
fn precedence(rule: &istio::HttpRoute) -> Option<(u8, usize, bool, usize, usize)> {
    let found = rule.r#match.first()?;
    let (kind, length) = match found.uri.as_ref() {
        Some(StringMatch { exact: Some(path), .. }) => (3, path.len()),
        Some(StringMatch { prefix: Some(path), .. }) => (2, path.len()),
        Some(StringMatch { regex: Some(path), .. }) => (1, path.len()),
        _ => (0, 0),
    };
    Some((kind, length, found.method.is_some(), found.headers.len(), found.query_params.len()))
}

fn stream_rules(cx: &Cx<'_>, parent: &Parent, listener: &Derived, all: &[Derived]) -> Vec<Rule> {
    let gateway = listener.key.to_string();
    let rule = |meta: &Meta, kind: &str, object: ObjectRef, spec: istio::VirtualService| {
        let mut meta = meta.clone();
        meta.name = format!("{}~{kind}~{}", meta.name, spec.hosts.join("~"));
        let id = RuleId::Listener { gateway: gateway.clone(), host: meta.name.clone() };
        let spec = istio::VirtualService { gateways: vec![gateway.clone()], ..spec };
        let export_to = Export::new(&meta.namespace, &[], &[]);
        Rule { id, meta, spec, export_to, semantics: Semantics::GatewayApi, origins: vec![object] }
    };
    let mut rules = Vec::new();
    for key in cx.bucket::<TcpRoutesByParent>(parent) {
        let Some(route) = cx.input::<TcpRoutes>(&key) else { continue };
        let head = Head::of_tcp(&route);
        if head.attaches_to(cx, parent, listener) {
            let spec = istio::VirtualService {
                hosts: vec!["*".to_owned()],
                tcp: convert::tcp(cx, &route, true),
                ..istio::VirtualService::default()
            };
            rules.push(rule(head.meta, "tcp", key.of(Kind::TcpRoute), spec));
        }
    }
    for key in cx.bucket::<TlsRoutesByParent>(parent) {
        let Some(route) = cx.input::<TlsRoutes>(&key) else { continue };
        let head = Head::of_tls(&route);
        if !head.attaches_to(cx, parent, listener) {
            continue;
        }
        for host in head.hosts().into_iter().filter(|host| attach::is_own_host(host, listener, all)) {
            let narrowed = match listener.hostname.as_deref() {
                Some(own) => super::intersection(own, &host).map(ToOwned::to_owned),
                None => Some(host),
            };
            let Some(narrowed) = narrowed else { continue };
            let tls = convert::tls(cx, &route, &narrowed, true);
            let spec =
                istio::VirtualService { hosts: vec![narrowed], tls, ..istio::VirtualService::default() };
            rules.push(rule(head.meta, "tls", key.of(Kind::TlsRoute), spec));
        }
    }
    rules.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
    rules
}

/// The rules of routes that are attached to a Kubernetes Service, for sidecars: one for each
/// namespace that has such routes, as those of the clients' own count before those of the service's.
pub(crate) struct ServiceRules;

impl Query for ServiceRules {
    type Key = Key;
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "service-rules";

    fn derive(cx: &Cx<'_>, service: &Key) -> Vec<Arc<Rule>> {
        let parent = Parent { kind: "Service".to_owned(), key: service.clone() };
        let mut by_namespace: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        let mut add = |head: &Head<'_>, object: ObjectRef, rules: Vec<istio::HttpRoute>| {
            for reference in head.references_to(&parent) {
                let rules = with_port(&rules, reference.port);
                let part = Part { meta: head.meta.clone(), object: object.clone(), rules };
                by_namespace.entry(head.meta.namespace.clone()).or_default().push(part);
            }
        };
        for key in cx.bucket::<HttpRoutesByParent>(&parent) {
            let Some(route) = cx.input::<HttpRoutes>(&key) else { continue };
            add(&Head::of_http(&route), key.of(Kind::HttpRoute), convert::http(cx, &route, false));
        }
        for key in cx.bucket::<GrpcRoutesByParent>(&parent) {
            let Some(route) = cx.input::<GrpcRoutes>(&key) else { continue };
            add(&Head::of_grpc(&route), key.of(Kind::GrpcRoute), convert::grpc(cx, &route, false));
        }
        let host = kubernetes_host(&service.name, &service.namespace);
        let mut rules: Vec<Rule> = by_namespace
            .into_iter()
            .map(|(namespace, parts)| {
                let id = RuleId::Service { service: service.clone(), route: namespace.clone() };
                merged(id, MESH, &format!("{namespace}/{host}"), host.clone(), parts)
            })
            .collect();
        for key in cx.bucket::<TcpRoutesByParent>(&parent) {
            let Some(route) = cx.input::<TcpRoutes>(&key) else { continue };
            let head = Head::of_tcp(&route);
            for reference in head.references_to(&parent) {
                let mut tcp = convert::tcp(cx, &route, false);
                if let Some(port) = reference.port {
                    let found = istio::L4Match { port: u32::from(port), ..istio::L4Match::default() };
                    tcp.iter_mut().for_each(|rule| rule.r#match = vec![found.clone()]);
                }
                let mut meta = head.meta.clone();
                meta.name = format!("{}~tcp~{}", meta.name, reference.port.unwrap_or_default());
                rules.push(Rule {
                    id: RuleId::Service { service: service.clone(), route: format!("{}/{}", key, meta.name) },
                    export_to: Export::new(&meta.namespace, &[], &[]),
                    meta,
                    spec: istio::VirtualService {
                        hosts: vec![host.clone()],
                        gateways: vec![MESH.to_owned()],
                        tcp,
                        ..istio::VirtualService::default()
                    },
                    semantics: Semantics::GatewayApi,
                    origins: vec![key.of(Kind::TcpRoute)],
                });
            }
        }
        rules.into_iter().map(Arc::new).collect()
    }
}

/// Rules for one port of a service only.
fn with_port(rules: &[istio::HttpRoute], port: Option<u16>) -> Vec<istio::HttpRoute> {
    let Some(port) = port else { return rules.to_vec() };
    let narrowed = |rule: &istio::HttpRoute| {
        let mut rule = rule.clone();
        if rule.r#match.is_empty() {
            rule.r#match.push(istio::HttpMatch::default());
        }
        rule.r#match.iter_mut().for_each(|found| found.port = u32::from(port));
        rule
    };
    rules.iter().map(narrowed).collect()
}

/// Does something with what all kinds of routes have; `None` if there is no such route.
fn with_head<T>(cx: &Cx<'_>, object: &ObjectRef, work: impl FnOnce(&Head<'_>) -> T) -> Option<T> {
    let key = object.key();
    match object.kind {
        Kind::HttpRoute => cx.input::<HttpRoutes>(&key).map(|route| work(&Head::of_http(&route))),
        Kind::GrpcRoute => cx.input::<GrpcRoutes>(&key).map(|route| work(&Head::of_grpc(&route))),
        Kind::TlsRoute => cx.input::<TlsRoutes>(&key).map(|route| work(&Head::of_tls(&route))),
        Kind::TcpRoute => cx.input::<TcpRoutes>(&key).map(|route| work(&Head::of_tcp(&route))),
        _ => None,
    }
}

/// Where a route says what has no effect: its parents that do not take it and its backends that
/// cannot be had, with paths.
pub(crate) fn problems(cx: &Cx<'_>, object: &ObjectRef) -> Vec<(String, String)> {
    let found = with_head(cx, object, |head| {
        let mut found: Vec<(String, String)> = Vec::new();
        for (index, attached) in head.attached(cx).into_iter().enumerate() {
            if let Attached::Refused(refusal) = attached {
                found.push((format!("spec.parentRefs[{index}]"), refusal.message));
            }
        }
        let backends = backend::problems(cx, head).into_iter();
        found.extend(backends.map(|(path, refusal)| (path, refusal.message)));
        found
    });
    found.unwrap_or_default()
}

/// How many routes a listener has.
fn attached_routes(cx: &Cx<'_>, listener: &Derived) -> usize {
    let parent = listener.parent.clone();
    let http = cx.bucket::<HttpRoutesByParent>(&parent).into_iter().map(|key| key.of(Kind::HttpRoute));
    let grpc = cx.bucket::<GrpcRoutesByParent>(&parent).into_iter().map(|key| key.of(Kind::GrpcRoute));
    let tls = cx.bucket::<TlsRoutesByParent>(&parent).into_iter().map(|key| key.of(Kind::TlsRoute));
    let tcp = cx.bucket::<TcpRoutesByParent>(&parent).into_iter().map(|key| key.of(Kind::TcpRoute));
    let routes = http.chain(grpc).chain(tls).chain(tcp);
    let attaches = |head: &Head<'_>| head.attaches_to(cx, &parent, listener);
    routes.filter(|route| with_head(cx, route, attaches) == Some(true)).count()
}
