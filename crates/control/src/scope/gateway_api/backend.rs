//! Backends of routes as destinations, and who may refer to what.

use leno_derive::Cx;

use super::attach::{Head, Refusal};
use crate::model::Key;
use crate::model::gateway_api::GROUP;
use crate::model::gateway_api::route::StreamBackend;
use crate::model::inputs::{ReferenceGrants, ReferenceGrantsByNamespace, Services};
use crate::model::virtual_service::{Destination, PortSelector};
use crate::registry::{is_declared, kubernetes_host};

/// The group of the kind `Hostname`, by which a route names any host of the mesh.
const ISTIO_GROUP: &str = "networking.istio.io";

/// Why a backend cannot be had. Requests that would go there get 500.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// It is in another namespace, and no ReferenceGrant there allows it.
    NotGranted,
    /// It does not exist.
    Missing,
    /// It is of a kind that is not supported.
    Kind,
    /// It has no port, or what else makes it nonsense: the rule cannot be used at all.
    Invalid(&'static str),
}

impl Problem {
    /// A reason of the Gateway API's, for its status.
    fn reason(&self) -> &'static str {
        match self {
            Problem::NotGranted => "RefNotPermitted",
            Problem::Missing => "BackendNotFound",
            Problem::Kind => "InvalidKind",
            Problem::Invalid(_) => "UnsupportedValue",
        }
    }

    /// Whether the rule stands, and only this backend fails.
    fn is_soft(&self) -> bool {
        !matches!(self, Problem::Invalid(_))
    }
}

/// The destination of a backend; an empty one for a backend that cannot be had. `None` if the rule
/// makes no sense.
pub(super) fn destination(
    cx: &Cx<'_>,
    kind: &str,
    namespace: &str,
    backend: &StreamBackend,
    enforce: bool,
) -> Option<Destination> {
    match resolve(cx, kind, namespace, backend, enforce) {
        (_, Some(problem)) if !problem.is_soft() => None,
        // What is missing keeps its name, so that it works as soon as it comes.
        (destination, Some(Problem::Missing) | None) => Some(destination),
        _ => Some(Destination::default()),
    }
}

fn resolve(
    cx: &Cx<'_>,
    kind: &str,
    namespace: &str,
    backend: &StreamBackend,
    enforce: bool,
) -> (Destination, Option<Problem>) {
    let own = backend.namespace.as_deref().unwrap_or(namespace);
    let group = backend.group.as_deref().unwrap_or_default();
    let backend_kind = backend.kind.as_deref().unwrap_or("Service");
    if enforce && !is_granted(cx, (kind, namespace), (group, backend_kind, &backend.name), own) {
        return (Destination::default(), Some(Problem::NotGranted));
    }
    let (host, missing) = match (group, backend_kind) {
        ("", "Service") => {
            if backend.name.contains('.') {
                let why = "a Service is meant by its name, not by its host";
                return (Destination::default(), Some(Problem::Invalid(why)));
            }
            let key = Key { namespace: own.to_owned(), name: backend.name.clone() };
            (kubernetes_host(&backend.name, own), cx.input::<Services>(&key).is_none())
        }
        (ISTIO_GROUP, "Hostname") if backend.namespace.is_some() => {
            let why = "a Hostname has no namespace";
            return (Destination::default(), Some(Problem::Invalid(why)));
        }
        (ISTIO_GROUP, "Hostname") => (backend.name.clone(), !is_declared(cx, &backend.name)),
        _ => return (Destination::default(), Some(Problem::Kind)),
    };
    let Some(port) = backend.port else {
        return (Destination::default(), Some(Problem::Invalid("a port is needed")));
    };
    let port = Some(PortSelector { number: u32::from(port) });
    (Destination { host, port, ..Destination::default() }, missing.then_some(Problem::Missing))
}

/// Whether an object of a Gateway API kind in one namespace may refer to another object: in its own
/// namespace always, else where a ReferenceGrant says so.
pub(super) fn is_granted(
    cx: &Cx<'_>,
    (from_kind, from): (&str, &str),
    (group, kind, name): (&str, &str, &str),
    namespace: &str,
) -> bool {
    from == namespace
        || cx.bucket::<ReferenceGrantsByNamespace>(&namespace.to_owned()).iter().any(|key| {
            let Some(grant) = cx.input::<ReferenceGrants>(key) else { return false };
            let mut sources = grant.spec.from.iter();
            let mut goals = grant.spec.to.iter();
            sources
                .any(|source| source.group == GROUP && source.kind == from_kind && source.namespace == from)
                && goals.any(|goal| {
                    goal.group == group
                        && goal.kind == kind
                        && goal.name.as_ref().is_none_or(|wanted| wanted.is_empty() || wanted == name)
                })
        })
}

/// The backends of a route that cannot be had, with paths and reasons. Routes of the mesh need no grants.
pub(super) fn problems(cx: &Cx<'_>, head: &Head<'_>) -> Vec<(String, Refusal)> {
    let namespace = &head.meta.namespace;
    let enforce = head.has_gateway();
    let mut found = Vec::new();
    for (path, backend) in &head.backends {
        let own = backend.namespace.as_deref().unwrap_or(namespace);
        let name = &backend.name;
        let (_, problem) = resolve(cx, head.kind, namespace, backend, enforce);
        let Some(problem) = problem else { continue };
        let message = match &problem {
            Problem::NotGranted => {
                format!("no ReferenceGrant in the namespace {own} lets it have {name}: requests get 500")
            }
            Problem::Missing => format!("there is no {own}/{name}: requests get 500"),
            Problem::Kind => {
                let kind = backend.kind.as_deref().unwrap_or("Service");
                format!("the kind {kind} is not supported yet: requests get 500")
            }
            Problem::Invalid(why) => format!("{why}: the route is left out"),
        };
        found.push((path.clone(), Refusal { reason: problem.reason(), message }));
    }
    found
}
