//! Which routes attach to which listeners and services.

use std::borrow::Cow;

use leno_derive::Cx;

use super::Parent;
use super::listeners::{Derived, LISTENER_SET, ListenersOf, gateway_of_set};
use crate::model::gateway_api::ParentReference;
use crate::model::gateway_api::route::{
    GrpcRoute, HttpBackend, HttpRoute, StreamBackend, TcpRoute, TlsRoute,
};
use crate::model::inputs::{KubernetesGateways, ListenerSets, Services};
use crate::model::{Config, Key, Meta};
use crate::scope::{fit, intersection};

/// What all kinds of routes have.
pub(crate) struct Head<'a> {
    /// As in `allowedRoutes.kinds`.
    pub(super) kind: &'static str,
    pub(super) meta: &'a Meta,
    parents: &'a [ParentReference],
    hostnames: Cow<'a, [String]>,
    /// Each with its path.
    pub(super) backends: Vec<(String, StreamBackend)>,
}

/// What became of a reference to a parent.
pub(crate) enum Attached {
    Taken,
    Refused(Refusal),
    /// It is another controller's.
    Foreign,
}

/// Why a parent does not take a route.
pub(crate) struct Refusal {
    /// A reason of the Gateway API's, for its status.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn refused(reason: &'static str, message: String) -> Attached {
    Attached::Refused(Refusal { reason, message })
}

impl<'a> Head<'a> {
    pub(super) fn of_http(route: &'a Config<HttpRoute>) -> Head<'a> {
        let rules = route.spec.rules.iter().map(|rule| rule.backend_refs.as_slice());
        Head {
            kind: "HTTPRoute",
            meta: &route.meta,
            parents: &route.spec.parent_refs,
            hostnames: Cow::Borrowed(&route.spec.hostnames),
            backends: http_backends(rules),
        }
    }

    pub(super) fn of_grpc(route: &'a Config<GrpcRoute>) -> Head<'a> {
        let rules = route.spec.rules.iter().map(|rule| rule.backend_refs.as_slice());
        Head {
            kind: "GRPCRoute",
            meta: &route.meta,
            parents: &route.spec.parent_refs,
            hostnames: Cow::Borrowed(&route.spec.hostnames),
            backends: http_backends(rules),
        }
    }

    pub(super) fn of_tls(route: &'a Config<TlsRoute>) -> Head<'a> {
        let rules = route.spec.rules.iter().map(|rule| rule.backend_refs.as_slice());
        Head {
            kind: "TLSRoute",
            meta: &route.meta,
            parents: &route.spec.parent_refs,
            hostnames: Cow::Borrowed(&route.spec.hostnames),
            backends: stream_backends(rules),
        }
    }

    pub(super) fn of_tcp(route: &'a Config<TcpRoute>) -> Head<'a> {
        let rules = route.spec.rules.iter().map(|rule| rule.backend_refs.as_slice());
        Head {
            kind: "TCPRoute",
            meta: &route.meta,
            parents: &route.spec.parent_refs,
            hostnames: Cow::Owned(Vec::new()),
            backends: stream_backends(rules),
        }
    }

    /// The hosts that it is for; all, if it names none.
    pub(super) fn hosts(&self) -> Vec<String> {
        if self.hostnames.is_empty() { vec!["*".to_owned()] } else { self.hostnames.to_vec() }
    }

    /// Its references to a parent.
    pub(super) fn references_to<'s>(
        &'s self,
        parent: &'s Parent,
    ) -> impl Iterator<Item = &'a ParentReference> + 's {
        self.parents.iter().filter(move |reference| Parent::of(reference, &self.meta.namespace) == *parent)
    }

    /// Whether one of its references to a Gateway attaches it to a listener.
    pub(super) fn attaches_to(&self, cx: &Cx<'_>, parent: &Parent, listener: &Derived) -> bool {
        self.references_to(parent).any(|reference| self.refusal(cx, reference, listener).is_none())
    }

    /// Whether it refers to any Gateway, or to listeners of one.
    pub(super) fn has_gateway(&self) -> bool {
        self.parents.iter().any(|reference| {
            matches!(reference.kind.as_deref(), None | Some("Gateway" | "ListenerSet" | "XListenerSet"))
        })
    }

    /// What becomes of each of its references.
    pub(super) fn attached(&self, cx: &Cx<'_>) -> Vec<Attached> {
        let one = |reference: &ParentReference| {
            let parent = Parent::of(reference, &self.meta.namespace);
            match parent.kind.as_str() {
                "Gateway" if cx.input::<KubernetesGateways>(&parent.key).is_none() => {
                    refused("NoMatchingParent", format!("there is no Gateway {}", parent.key))
                }
                "Gateway" => self.attached_to(cx, reference, &parent, &parent.key),
                LISTENER_SET => match cx.input::<ListenerSets>(&parent.key) {
                    None => refused("NoMatchingParent", format!("there is no ListenerSet {}", parent.key)),
                    Some(set) => match gateway_of_set(&set) {
                        Some(gateway) => self.attached_to(cx, reference, &parent, &gateway),
                        None => Attached::Foreign,
                    },
                },
                "Service" if cx.input::<Services>(&parent.key).is_none() => {
                    refused("NoMatchingParent", format!("there is no Service {}", parent.key))
                }
                "Service" => Attached::Taken,
                other => {
                    refused("NoMatchingParent", format!("a parent of kind {other} is not supported yet"))
                }
            }
        };
        self.parents.iter().map(one).collect()
    }

    /// What becomes of a reference to the listeners of a Gateway, or to those that a ListenerSet adds.
    fn attached_to(
        &self,
        cx: &Cx<'_>,
        reference: &ParentReference,
        parent: &Parent,
        gateway: &Key,
    ) -> Attached {
        let listeners = cx.get::<ListenersOf>(gateway);
        if !listeners.is_ours {
            return Attached::Foreign;
        }
        let own = listeners.derived.iter().filter(|listener| listener.parent == *parent);
        let meant = own.filter(|listener| is_meant(reference, listener));
        let mut refusals = Vec::new();
        for listener in meant {
            match self.refusal(cx, reference, listener) {
                None => return Attached::Taken,
                Some(refusal) => refusals.push(refusal),
            }
        }
        let reason = refusals.first().map_or("NoMatchingParent", |refusal| refusal.reason);
        let why: Vec<String> = refusals.into_iter().map(|refusal| refusal.message).collect();
        let why = if why.is_empty() { "it has no such listener".to_owned() } else { why.join("; ") };
        refused(reason, format!("the {} {} does not take it: {why}", parent.kind, parent.key))
    }

    /// Why a listener does not take it; `None` if it does.
    fn refusal(&self, cx: &Cx<'_>, reference: &ParentReference, listener: &Derived) -> Option<Refusal> {
        let section = &listener.section;
        if !is_meant(reference, listener) {
            let message = "another listener is meant".to_owned();
            return Some(Refusal { reason: "NoMatchingParent", message });
        }
        if !listener.kinds.contains(&self.kind) {
            let message = format!("the listener {section:?} takes no {}", self.kind);
            return Some(Refusal { reason: "NotAllowedByListeners", message });
        }
        if !listener.namespaces.includes(cx, &listener.parent.key.namespace, &self.meta.namespace) {
            let own = &self.meta.namespace;
            let message = format!("the listener {section:?} takes no routes of the namespace {own}");
            return Some(Refusal { reason: "NotAllowedByListeners", message });
        }
        let own = listener.hostname.as_deref()?;
        let meets = self.hosts().iter().any(|host| intersection(own, host).is_some());
        let message = || format!("no hostname is within {own:?} of the listener {section:?}");
        (!meets).then(|| Refusal { reason: "NoMatchingListenerHostname", message: message() })
    }
}

/// Whether a reference is to a listener, or to all.
fn is_meant(reference: &ParentReference, listener: &Derived) -> bool {
    reference.port.is_none_or(|port| port == listener.port)
        && reference.section_name.as_ref().is_none_or(|section| *section == listener.section)
}

fn http_backends<'b>(rules: impl Iterator<Item = &'b [HttpBackend]>) -> Vec<(String, StreamBackend)> {
    let stream = |backend: &HttpBackend| StreamBackend {
        group: backend.group.clone(),
        kind: backend.kind.clone(),
        name: backend.name.clone(),
        namespace: backend.namespace.clone(),
        port: backend.port,
        weight: backend.weight,
    };
    let rules: Vec<Vec<StreamBackend>> = rules.map(|rule| rule.iter().map(stream).collect()).collect();
    stream_backends(rules.iter().map(Vec::as_slice))
}

fn stream_backends<'b>(rules: impl Iterator<Item = &'b [StreamBackend]>) -> Vec<(String, StreamBackend)> {
    let mut backends = Vec::new();
    for (i, rule) in rules.enumerate() {
        for (j, backend) in rule.iter().enumerate() {
            backends.push((format!("spec.rules[{i}].backendRefs[{j}]"), backend.clone()));
        }
    }
    backends
}

/// Whether requests to a host of a route are a listener's own: those that a narrower listener on the
/// same port would take are that one's.
pub(super) fn is_own_host(host: &str, listener: &Derived, all: &[Derived]) -> bool {
    let own = listener.hostname.as_deref().unwrap_or("*");
    if !own.starts_with('*') {
        return true;
    }
    let rivals = all.iter().filter(|other| {
        other.key != listener.key && other.port == listener.port && other.protocol == listener.protocol
    });
    let width = |host: &str| (host.starts_with('*'), std::cmp::Reverse(host.len()));
    rivals
        .map(|other| other.hostname.as_deref().unwrap_or("*"))
        .all(|other| other == own || fit(other, host).is_none() || width(other) > width(own))
}
