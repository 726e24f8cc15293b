//! What proxies refuse, and who may be to blame.

use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::grpc::StreamId;

use super::Push;
use super::session::Session;
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::model::{Kind, ObjectRef};
use crate::scope::ProxyKey;
use crate::scope::gateways::AttachedGateways;
use crate::translate::name;

/// A refusal by a proxy, and the objects that may be to blame.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The object with the field, or none if no resource could be identified.
    pub(crate) object: Option<ObjectRef>,
    pub(crate) finding: Finding,
}

impl Refusal {
    /// The refusal as people read it, not yet located.
    pub(crate) fn diagnostic(&self) -> Diagnostic {
        let nowhere = ObjectRef { kind: Kind::Gateway, namespace: String::new(), name: String::new() };
        match &self.object {
            Some(object) => Diagnostic::about(object, &self.finding),
            None => Diagnostic { kind: String::new(), ..Diagnostic::about(&nowhere, &self.finding) },
        }
    }
}

impl Push {
    /// The sessions whose proxies refuse something.
    pub(crate) fn refusing(&self) -> impl Iterator<Item = &Session> {
        self.refusing.iter().filter_map(|id| self.sessions.get(id))
    }

    /// Whether what is refused may have changed since the last call.
    pub(crate) fn take_refusals_changed(&mut self) -> bool {
        std::mem::take(&mut self.refusals_changed)
    }

    /// All refusals that stand.
    pub(crate) fn refusals(&self, graph: &Graph) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for session in self.refusing.iter().filter_map(|id| self.sessions.get(id)) {
            let Some(group) = self.groups.get(&session.key) else { continue };
            let Some(view) = self.views.get(&group.client) else { continue };
            for (type_url, message) in session.refusals() {
                let text = format!("{} refused the {} update: {message}", session.node, type_url.short());
                let origins = group.origins(view, type_url);
                let blamed = blame(graph, &session.key, &origins, type_url, message);
                let finding = |path: String| Finding {
                    severity: Severity::Error,
                    code: "nack",
                    path,
                    message: text.clone(),
                };
                if blamed.is_empty() {
                    refusals.push(Refusal { object: None, finding: finding(String::new()) });
                }
                for (object, path) in blamed {
                    refusals.push(Refusal { object: Some(object), finding: finding(path) });
                }
            }
        }
        refusals
    }

    /// Notes whether a session's proxy refuses something, when it has said something.
    pub(super) fn note_refusals(&mut self, id: StreamId) {
        let refuses = self.sessions.get(&id).is_some_and(|session| session.refusals().next().is_some());
        let refused = if refuses { !self.refusing.insert(id) } else { self.refusing.remove(&id) };
        self.refusals_changed |= refuses || refused;
    }
}

/// The objects behind the resources that a refusal names, with the field to look at.
fn blame(
    graph: &Graph,
    key: &ProxyKey,
    origins: &[(&str, &[ObjectRef])],
    type_url: &TypeUrl,
    message: &str,
) -> Vec<(ObjectRef, String)> {
    let mut blamed = Vec::new();
    for (name, origins) in origins {
        if !message.contains(name) {
            continue;
        }
        for object in *origins {
            blamed.push((object.clone(), String::new()));
        }
        if *type_url == TypeUrl::Listener {
            // A port that is in use is the fault of whoever asked for that port.
            let attached = graph.peek::<AttachedGateways>(&key.workload());
            for port in &attached.ports {
                let host = if port.bind.is_empty() { "0.0.0.0" } else { &port.bind };
                if name::listener(host, port.port) != **name {
                    continue;
                }
                for server in &port.servers {
                    let object = server.gateway.of(Kind::Gateway);
                    blamed.retain(|(present, path)| *present != object || !path.is_empty());
                    blamed.push((object, format!("spec.servers[{}].port.number", server.index)));
                }
            }
        }
    }
    blamed.sort();
    blamed.dedup();
    blamed
}
