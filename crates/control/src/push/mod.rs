//! Brings proxies up to date: who is connected, what each has, and what it must get next.
//!
//! - `node.rs`: who a proxy says it is;
//! - `group.rs`: proxies that are alike share one [`group::Group`] with all resources;
//! - `session.rs`: one stream, and the order in which it is told things.
//!
//! [`Push`] joins the three. It is driven by the control loop and does nothing by itself.

pub(crate) mod group;
pub(crate) mod node;
pub(crate) mod session;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::grpc::{Connected, StreamEvent, StreamId};
use tonic::Status;

use self::group::Group;
use self::session::{Said, Session};
use crate::model::ObjectRef;
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::scope::ProxyKey;
use crate::scope::gateways::AttachedGateways;
use crate::translate::cluster::Clusters;
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::Listeners;
use crate::translate::name;
use crate::translate::route::Route;

/// All connected proxies.
#[derive(Debug, Default)]
pub(crate) struct Push {
    sessions: BTreeMap<StreamId, Session>,
    groups: HashMap<ProxyKey, Group>,
}

/// A refusal by a proxy, and the objects that may be to blame.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The object with the field, or none if no resource could be identified.
    pub(crate) object: Option<ObjectRef>,
    pub(crate) finding: Finding,
}

impl Push {
    /// The sessions, for people to look at.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// What a session's proxy should have.
    pub(crate) fn group(&self, session: &Session) -> Option<&Group> {
        self.groups.get(&session.key)
    }

    /// Acts on what happened on a stream.
    pub(crate) fn on_stream(&mut self, graph: &mut Graph, event: StreamEvent, now: Instant) {
        match event {
            StreamEvent::Connected(connected) => self.connect(graph, *connected),
            StreamEvent::Request { id, request } => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                let said = session.on_request(*request);
                for said in said {
                    self.on_said(graph, id, said);
                }
                self.pump(id, now);
            }
            StreamEvent::Ready { id } => self.pump(id, now),
            StreamEvent::Closed { id, error } => self.disconnect(graph, id, error.as_deref()),
        }
    }

    /// Tells every proxy what has changed in the graph since the last time.
    pub(crate) fn on_change(&mut self, graph: &Graph, now: Instant) {
        let version = version(graph);
        let mut touched = BTreeSet::new();
        for (key, clusters) in graph.changed::<Clusters>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.set_clusters(clusters, version.clone());
            mark(&mut self.sessions, group, &TypeUrl::Cluster, None, &mut touched);
        }
        for ((key, name), endpoints) in graph.changed::<Endpoints>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.set_endpoints(endpoints.as_deref(), version.clone());
            mark(&mut self.sessions, group, &TypeUrl::Endpoint, Some(&name), &mut touched);
        }
        for (key, listeners) in graph.changed::<Listeners>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.set_listeners(listeners, version.clone());
            mark(&mut self.sessions, group, &TypeUrl::Listener, None, &mut touched);
        }
        for ((key, name), route) in graph.changed::<Route>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.set_route(&name, route.as_deref(), version.clone());
            mark(&mut self.sessions, group, &TypeUrl::Route, Some(&name), &mut touched);
        }
        for id in touched {
            self.pump(id, now);
        }
    }

    /// Sends what was held back for too long.
    pub(crate) fn on_tick(&mut self, now: Instant) {
        let waiting: Vec<StreamId> =
            self.sessions.values().filter(|session| session.is_waiting()).map(|session| session.id).collect();
        for id in waiting {
            self.pump(id, now);
        }
    }

    /// How many refusals stand.
    pub(crate) fn refusal_count(&self) -> usize {
        self.sessions.values().map(|session| session.refusals().count()).sum()
    }

    /// All refusals that stand.
    pub(crate) fn refusals(&self, graph: &Graph) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for session in self.sessions.values() {
            let Some(group) = self.groups.get(&session.key) else { continue };
            for (type_url, message) in session.refusals() {
                let text = format!("{} refused the {} update: {message}", session.node, type_url.short());
                let blamed = blame(graph, &session.key, group, type_url, message);
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

    fn connect(&mut self, graph: &Graph, connected: Connected) {
        let Connected { id, mode, node, peer, sender, .. } = connected;
        let parsed = node.ok_or(node::BadNode::Missing).and_then(|node| node::parse(graph, &node));
        let node = match parsed {
            Ok(node) => node,
            Err(error) => {
                tracing::warn!(?peer, %error, "refused a stream");
                return sender.close(Status::invalid_argument(error.to_string()));
            }
        };
        tracing::info!(node = node.id, ?mode, "proxy connected");
        let group = self.groups.entry(node.key.clone()).or_default();
        group.members.insert(id);
        self.sessions.insert(id, Session::new(id, node, mode, sender));
    }

    fn disconnect(&mut self, graph: &mut Graph, id: StreamId, error: Option<&str>) {
        let Some(session) = self.sessions.remove(&id) else { return };
        tracing::info!(node = session.node, error, "proxy disconnected");
        let Some(group) = self.groups.get_mut(&session.key) else { return };
        group.members.remove(&id);
        if group.members.is_empty() {
            group.release_all(graph, &session.key);
            self.groups.remove(&session.key);
        } else {
            self.release_unused(graph, &session.key);
        }
    }

    fn on_said(&mut self, graph: &mut Graph, id: StreamId, said: Said) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(group) = self.groups.get_mut(&session.key) else { return };
        match said {
            Said::Wants { type_url, names } => {
                group.load(graph, &session.key, &type_url, &names, &version(graph));
                session.owe(&type_url, &names);
            }
            Said::Unwanted => {
                let key = session.key.clone();
                self.release_unused(graph, &key);
            }
            Said::Refused { type_url, message } => {
                tracing::error!(
                    node = session.node,
                    r#type = type_url.short(),
                    message,
                    "proxy refused an update"
                );
            }
        }
    }

    /// Lets go of names that no session of a group wants any more.
    fn release_unused(&mut self, graph: &mut Graph, key: &ProxyKey) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let members: Vec<&Session> = group.members.iter().filter_map(|id| self.sessions.get(id)).collect();
        group.release(graph, key, |type_url, name| {
            members.iter().any(|session| session.wants(type_url, name))
        });
    }

    fn pump(&mut self, id: StreamId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(group) = self.groups.get(&session.key) {
            session.pump(group, now);
        }
    }
}

/// The version that people see on everything that is made in a revision of the graph.
fn version(graph: &Graph) -> Name {
    Name::from(graph.revision().to_string())
}

/// Notes that the sessions of a group have something to get.
fn mark(
    sessions: &mut BTreeMap<StreamId, Session>,
    group: &Group,
    type_url: &TypeUrl,
    name: Option<&str>,
    touched: &mut BTreeSet<StreamId>,
) {
    for id in &group.members {
        if let Some(session) = sessions.get_mut(id)
            && session.on_changed(type_url, name)
        {
            touched.insert(*id);
        }
    }
}

/// The objects behind the resources that a refusal names, with the field to look at.
fn blame(
    graph: &Graph,
    key: &ProxyKey,
    group: &Group,
    type_url: &TypeUrl,
    message: &str,
) -> Vec<(ObjectRef, String)> {
    let mut blamed = Vec::new();
    for (name, origins) in group.origins(type_url) {
        if !message.contains(name) {
            continue;
        }
        for object in origins {
            blamed.push((object.clone(), String::new()));
        }
        if *type_url == TypeUrl::Listener {
            // A port that is in use is the fault of whoever asked for that port.
            let attached = graph.peek::<AttachedGateways>(&key.workload());
            for port in &attached.ports {
                let host = if port.bind.is_empty() { "0.0.0.0" } else { &port.bind };
                if name::listener(host, port.port) != *name {
                    continue;
                }
                for server in &port.servers {
                    let object = server.gateway.of(crate::model::Kind::Gateway);
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

impl Refusal {
    /// The refusal as people read it, not yet located.
    pub(crate) fn diagnostic(&self) -> Diagnostic {
        let nowhere =
            ObjectRef { kind: crate::model::Kind::Gateway, namespace: String::new(), name: String::new() };
        match &self.object {
            Some(object) => Diagnostic::about(object, &self.finding),
            None => Diagnostic { kind: String::new(), ..Diagnostic::about(&nowhere, &self.finding) },
        }
    }
}
