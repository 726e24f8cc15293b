//! Brings proxies up to date: who is connected, what each has, and what it must get next.
//!
//! - `node.rs`: who a proxy says it is;
//! - `view.rs`: proxies that are the same as clients share one [`View`] with what they call;
//! - `group.rs`: of these, proxies that are alike in all share one [`Group`], with what is theirs;
//! - `clearance.rs`: who it has proven to be, and which credentials it may have for that;
//! - `named.rs`: resources that are asked for one by one;
//! - `session.rs`: one stream, and the order in which it is told things;
//! - `propagation.rs`: how far changes have come.
//!
//! [`Push`] joins them. It is driven by the control loop and does nothing by itself. A change costs
//! what it changes in views and groups, and a look at each session that must be told of it.

pub(crate) mod about;
pub(crate) mod clearance;
pub(crate) mod group;
mod named;
pub(crate) mod node;
pub(crate) mod patching;
pub(crate) mod propagation;
pub(crate) mod session;
pub(crate) mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;
use leno_xds::server::grpc::{Connected, StreamEvent, StreamId};
use tonic::Status;

use self::about::About;
use self::clearance::{Account, Gate};
use self::group::Group;
use self::propagation::Propagation;
use self::session::{Cause, Said, Session};
use self::view::View;
use crate::metrics::Counts;
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::model::{Kind, ObjectRef};
use crate::scope::ProxyKey;
use crate::scope::client::ClientOf;
use crate::scope::gateways::AttachedGateways;
use crate::scope::patches::MetadataNames;
use crate::translate::cluster::grpc::{GrpcCluster, GrpcEndpoints};
use crate::translate::cluster::{OwnClusters, SharedClusters};
use crate::translate::credential::GivenTo;
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::grpc::GrpcListener;
use crate::translate::listener::{OwnListeners, SharedListeners};
use crate::translate::name;
use crate::translate::name_table::{self, NameTable};
use crate::translate::patch::Extensions;
use crate::translate::route::Route;
use crate::translate::route::grpc::GrpcRoute;
use crate::translate::trust_bundle::{self, TrustBundle};

/// How long what was made for a kind of proxy is kept without any: a connection that was lost is
/// mostly made again at once, and most of them together.
const KEEP: Duration = Duration::from_secs(30);

/// All connected proxies.
#[derive(Debug, Default)]
pub(crate) struct Push {
    sessions: BTreeMap<StreamId, Session>,
    groups: HashMap<Arc<ProxyKey>, Group>,
    /// By what their proxies are as clients.
    views: HashMap<Arc<ProxyKey>, View>,
    /// Those in which something may not be wanted any more.
    untidy: HashSet<Arc<ProxyKey>>,
    /// Sessions whose proxies refuse something.
    refusing: BTreeSet<StreamId>,
    /// How often what is refused may have changed.
    refusal_changes: u64,
    propagation: Propagation,
    counts: Counts,
    /// Who may have which credentials.
    gate: Gate,
}

/// Objects that have changed, and when.
#[derive(Debug)]
pub(crate) struct News {
    /// New or different ones.
    pub(crate) changed: Vec<ObjectRef>,
    pub(crate) removed: Vec<ObjectRef>,
    /// When the first of the changes came.
    pub(crate) at: Instant,
}

/// A refusal by a proxy, and the objects that may be to blame.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The object with the field, or none if no resource could be identified.
    pub(crate) object: Option<ObjectRef>,
    pub(crate) finding: Finding,
}

impl Push {
    /// No proxies yet.
    pub(crate) fn new(gate: Gate) -> Push {
        Push { gate, ..Push::default() }
    }

    /// The sessions, for people to look at.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// The sessions whose proxies refuse something.
    pub(crate) fn refusing(&self) -> impl Iterator<Item = &Session> {
        self.refusing.iter().filter_map(|id| self.sessions.get(id))
    }

    /// The session on a stream.
    pub(crate) fn session(&self, id: StreamId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// To count what happens elsewhere.
    pub(crate) fn counts_mut(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// How far changes have come.
    pub(crate) fn propagation(&self) -> &Propagation {
        &self.propagation
    }

    /// The same, to ask for what is new.
    pub(crate) fn propagation_mut(&mut self) -> &mut Propagation {
        &mut self.propagation
    }

    /// The names of the resources that a session's proxy should have of a type, and the objects that
    /// each comes from.
    pub(crate) fn origins(&self, session: &Session, type_url: &TypeUrl) -> Vec<(&str, &[ObjectRef])> {
        let group = self.groups.get(&session.key);
        let view = group.and_then(|group| self.views.get(&group.client));
        group.zip(view).map(|(group, view)| group.origins(view, type_url)).unwrap_or_default()
    }

    /// What a session's proxy should have of a type, as far as it or its like have asked for it.
    pub(crate) fn resources(&self, session: &Session, type_url: &TypeUrl) -> Option<&Resources> {
        let group = self.groups.get(&session.key)?;
        Some(group.resources(self.views.get(&group.client)?, type_url))
    }

    /// Acts on what happened on a stream.
    pub(crate) fn on_stream(&mut self, graph: &Graph, event: StreamEvent, now: Instant) {
        match event {
            StreamEvent::Connected(connected) => self.connect(graph, *connected, now),
            StreamEvent::Request { id, request } => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                let said = session.on_request(*request, &mut self.counts);
                self.note_refusals(id);
                for said in said {
                    self.on_said(graph, id, said);
                }
                self.pump(id, now);
            }
            StreamEvent::Ready { id } => self.pump(id, now),
            StreamEvent::Closed { id, error } => self.disconnect(id, error.as_deref(), now),
        }
    }

    /// Tells every proxy what has changed in the graph since the last time, by changes of objects.
    pub(crate) fn on_change(&mut self, graph: &Graph, news: &News, now: Instant) {
        let version = version(graph);
        let change = self.propagation.begin(&news.changed, &news.removed, news.at);
        let mut touched = Touched::by(Cause { change, at: news.at });
        for ((), names) in graph.changed::<MetadataNames>() {
            self.rekey(graph, &names, now, &mut touched);
        }
        for (key, client) in graph.changed::<ClientOf>() {
            self.move_group(graph, &key, &client, &version, &mut touched);
        }
        for (client, clusters) in graph.changed::<SharedClusters>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_clusters(clusters, version.clone());
            self.mark_view(&client, &TypeUrl::Cluster, None, &version, &mut touched);
        }
        for (key, clusters) in graph.changed::<OwnClusters>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.set_clusters(clusters);
            self.mark_group(&key, &TypeUrl::Cluster, None, &version, &mut touched);
        }
        for ((client, name), endpoints) in graph.changed::<Endpoints>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_endpoints(endpoints.as_deref(), version.clone());
            self.mark_view(&client, &TypeUrl::Endpoint, Some(&name), &version, &mut touched);
        }
        for (client, listeners) in graph.changed::<SharedListeners>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_listeners(listeners, version.clone());
            self.mark_view(&client, &TypeUrl::Listener, None, &version, &mut touched);
        }
        for (key, listeners) in graph.changed::<OwnListeners>() {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.set_listeners(listeners);
            self.mark_group(&key, &TypeUrl::Listener, None, &version, &mut touched);
        }
        for ((client, name), route) in graph.changed::<Route>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            if view.set_route(&name, route.as_ref().as_ref(), version.clone(), now) {
                self.mark_view(&client, &TypeUrl::Route, Some(&name), &version, &mut touched);
            }
        }
        self.release_held(&version, now, &mut touched);
        for (client, extensions) in graph.changed::<Extensions>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_extensions(&extensions, version.clone());
            self.mark_view(&client, &TypeUrl::ExtensionConfig, None, &version, &mut touched);
        }
        for ((client, name), given) in graph.changed::<GivenTo>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_secret(&client, &name, &given, version.clone());
            self.mark_view(&client, &TypeUrl::Secret, Some(&name), &version, &mut touched);
        }
        for (client, table) in graph.changed::<NameTable>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_names(table.as_ref().as_ref(), version.clone());
            let names = TypeUrl::from(name_table::TYPE_URL);
            self.mark_view(&client, &names, None, &version, &mut touched);
        }
        for (type_url, changed) in [
            (TypeUrl::Cluster, graph.changed::<GrpcCluster>()),
            (TypeUrl::Endpoint, graph.changed::<GrpcEndpoints>()),
            (TypeUrl::Listener, graph.changed::<GrpcListener>()),
            (TypeUrl::Route, graph.changed::<GrpcRoute>()),
        ] {
            for ((client, name), resource) in changed {
                let Some(view) = self.views.get_mut(&client) else { continue };
                view.set_grpc(&type_url, &name, resource.as_ref().as_ref(), version.clone());
                self.mark_view(&client, &type_url, Some(&name), &version, &mut touched);
            }
        }
        for ((), roots) in graph.changed::<TrustBundle>() {
            let told = |view: &mut View| view.set_roots(roots.as_ref().as_ref(), version.clone());
            let clients = self.views.iter_mut().filter_map(|(client, view)| told(view).then_some(client));
            for client in clients.cloned().collect::<Vec<_>>() {
                let roots = TypeUrl::from(trust_bundle::TYPE_URL);
                self.mark_view(&client, &roots, None, &version, &mut touched);
            }
        }
        for id in &touched.ids {
            if let Some(session) = self.sessions.get(id) {
                self.propagation.concern(change, *id, &session.tracks);
            }
        }
        self.propagation.begun(change);
        for id in touched.ids {
            self.pump(id, now);
        }
    }

    /// It has been found out whether a service account may read Secrets.
    pub(crate) fn on_reviewed(&mut self, account: &Account, may: bool, now: Instant) {
        self.gate.on_reviewed(account, may, now);
        let clearance = self.gate.clearance(Some(account));
        let of_account =
            self.sessions.values_mut().filter(|session| session.account.as_ref() == Some(account));
        let told = of_account.filter_map(|session| session.set_clearance(clearance).then_some(session.id));
        for id in told.collect::<Vec<_>>() {
            self.pump(id, now);
        }
    }

    /// Sends what was held back for too long.
    pub(crate) fn on_tick(&mut self, graph: &Graph, now: Instant) {
        let sessions = &self.sessions;
        self.gate.on_tick(now, |account| {
            sessions.values().any(|session| {
                session.account.as_ref() == Some(account)
                    && session.stream().subscription(&TypeUrl::Secret).is_some()
            })
        });
        let waiting = self.sessions.values().filter(|session| session.is_waiting()).map(|session| session.id);
        let mut waiting = Touched { ids: waiting.collect(), cause: None };
        self.release_held(&version(graph), now, &mut waiting);
        for id in waiting.ids {
            self.pump(id, now);
        }
    }

    /// Marks routes whose clusters have come, or that have waited for them long enough.
    fn release_held(&mut self, version: &Name, now: Instant, touched: &mut Touched) {
        let holding = self.views.iter().filter(|(_, view)| view.holds_routes());
        let holding: Vec<Arc<ProxyKey>> = holding.map(|(client, _)| Arc::clone(client)).collect();
        for client in holding {
            let Some(view) = self.views.get_mut(&client) else { continue };
            for name in view.release_held(version, now) {
                self.mark_view(&client, &TypeUrl::Route, Some(&name), version, touched);
            }
        }
    }

    /// Lets go of what nobody has wanted for a while.
    pub(crate) fn tidy(&mut self, graph: &mut Graph, now: Instant) {
        let is_over = |group: &Group| {
            group.empty_since.is_some_and(|since| now.saturating_duration_since(since) >= KEEP)
        };
        for (key, group) in self.groups.extract_if(|_, group| is_over(group)) {
            if let Some(view) = self.views.get_mut(&group.client) {
                view.groups.remove(&key);
                self.untidy.insert(Arc::clone(&group.client));
            }
            group.release(graph, &key);
        }
        for client in std::mem::take(&mut self.untidy) {
            let Some(view) = self.views.get_mut(&client) else { continue };
            if view.groups.is_empty() {
                if let Some(view) = self.views.remove(&client) {
                    view.release(graph, &client);
                }
                continue;
            }
            let groups = view.groups.iter().filter_map(|key| self.groups.get(key));
            let members: Vec<&Session> =
                groups.flat_map(|group| &group.members).filter_map(|id| self.sessions.get(id)).collect();
            if members.is_empty() {
                // They may come again, and want the same.
                self.untidy.insert(client);
                continue;
            }
            view.release_unwanted(graph, &client, |type_url, name| {
                members.iter().any(|session| session.wants(type_url, name))
            });
        }
    }

    /// A number that is another one when what is refused may have changed.
    pub(crate) fn refusal_changes(&self) -> u64 {
        self.refusal_changes
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

    fn connect(&mut self, graph: &Graph, connected: Connected, now: Instant) {
        let Connected { id, mode, node, peer, caller, sender, .. } = connected;
        let parsed = node.ok_or(node::BadNode::Missing);
        let parsed = parsed.and_then(|node| Ok((About::new(&node, peer, now), node::parse(graph, &node)?)));
        let (about, node) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(?peer, %error, "refused a stream");
                return sender.close(Status::invalid_argument(error.to_string()));
            }
        };
        let account = match self.gate.admit(&node, caller.as_ref()) {
            Ok(account) => account,
            Err(error) => {
                tracing::warn!(?peer, node = node.id, %error, "refused a stream");
                return sender.close(Status::permission_denied(error));
            }
        };
        tracing::info!(node = node.id, ?mode, "proxy connected");
        let key = match self.groups.get_key_value(&node.key) {
            Some((key, _)) => Arc::clone(key),
            None => self.add_group(graph, Arc::new(node.key.clone())),
        };
        if let Some(group) = self.groups.get_mut(&key) {
            group.members.insert(id);
            group.empty_since = None;
        }
        self.sessions.insert(id, Session::new(id, node, account, key, about, mode, sender));
    }

    fn add_group(&mut self, graph: &Graph, key: Arc<ProxyKey>) -> Arc<ProxyKey> {
        let group = Group::new(graph, &key);
        let view = self.views.entry(Arc::clone(&group.client)).or_default();
        view.groups.insert(Arc::clone(&key));
        self.groups.insert(Arc::clone(&key), group);
        key
    }

    fn disconnect(&mut self, id: StreamId, error: Option<&str>, now: Instant) {
        let Some(session) = self.sessions.remove(&id) else { return };
        tracing::info!(node = session.node, error, "proxy disconnected");
        self.propagation.leave(id, &session.tracks, now, &mut self.counts);
        if self.refusing.remove(&id) {
            self.refusal_changes += 1;
        }
        let Some(group) = self.groups.get_mut(&session.key) else { return };
        group.members.remove(&id);
        if group.members.is_empty() {
            group.empty_since = Some(now);
        }
        self.untidy.insert(Arc::clone(&group.client));
    }

    fn note_refusals(&mut self, id: StreamId) {
        let refuses = self.sessions.get(&id).is_some_and(|session| session.refusals().next().is_some());
        let refused = if refuses { !self.refusing.insert(id) } else { self.refusing.remove(&id) };
        if refuses || refused {
            self.refusal_changes += 1;
        }
    }

    fn on_said(&mut self, graph: &Graph, id: StreamId, said: Said) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(group) = self.groups.get_mut(&session.key) else { return };
        match said {
            Said::Wants { type_url, names } => {
                let Some(view) = self.views.get_mut(&group.client) else { return };
                if type_url == TypeUrl::Secret {
                    session.set_clearance(self.gate.clearance(session.account.as_ref()));
                }
                let version = version(graph);
                let is_new = view.load(graph, &group.client, &type_url, &names, &version);
                let is_own_new = group.load(graph, &session.key, &type_url);
                session.owe(&type_url);
                self.counts.on_asked();
                if is_new && matches!(type_url, TypeUrl::Cluster | TypeUrl::Listener) {
                    for key in &view.groups {
                        if let Some(group) = self.groups.get_mut(key) {
                            group.combine(view, &type_url, &version);
                        }
                    }
                } else if is_own_new {
                    // Others of the view may have asked before, for what is shared.
                    let version = view.resources(&type_url).version().clone();
                    group.combine(view, &type_url, &version);
                }
            }
            Said::Unwanted => drop(self.untidy.insert(Arc::clone(&group.client))),
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

    /// A group's proxies have become other clients than they were: a rule has begun or ceased to
    /// tell them from others.
    fn move_group(
        &mut self,
        graph: &Graph,
        key: &ProxyKey,
        client: &Arc<ProxyKey>,
        version: &Name,
        touched: &mut Touched,
    ) {
        let Some((key, _)) = self.groups.get_key_value(key) else { return };
        let key = Arc::clone(key);
        let Some(group) = self.groups.get_mut(&key) else { return };
        let before = std::mem::replace(&mut group.client, Arc::clone(client));
        if let Some(view) = self.views.get_mut(&before) {
            view.groups.remove(&key);
            self.untidy.insert(before);
        }
        let view = self.views.entry(Arc::clone(client)).or_default();
        view.groups.insert(key);
        for id in &group.members {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            for (type_url, names) in session.wanted() {
                view.load(graph, client, &type_url, &names, version);
                session.on_changed(&type_url, None, touched.cause);
            }
            touched.ids.insert(session.id);
        }
        for type_url in [TypeUrl::Cluster, TypeUrl::Listener] {
            group.combine(view, &type_url, version);
        }
    }

    /// Notes that the sessions of a view have something to get.
    fn mark_view(
        &mut self,
        client: &ProxyKey,
        type_url: &TypeUrl,
        name: Option<&str>,
        version: &Name,
        touched: &mut Touched,
    ) {
        let Some(view) = self.views.get(client) else { return };
        for key in &view.groups {
            let Some(group) = self.groups.get_mut(key) else { continue };
            group.combine(view, type_url, version);
            mark(&mut self.sessions, group, type_url, name, touched);
        }
    }

    /// Notes that the sessions of a group have something to get.
    fn mark_group(
        &mut self,
        key: &ProxyKey,
        type_url: &TypeUrl,
        name: Option<&str>,
        version: &Name,
        touched: &mut Touched,
    ) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let Some(view) = self.views.get(&group.client) else { return };
        group.combine(view, type_url, version);
        mark(&mut self.sessions, group, type_url, name, touched);
    }

    fn pump(&mut self, id: StreamId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(group) = self.groups.get(&session.key) else { return };
        if let Some(view) = self.views.get(&group.client) {
            session.pump(group, view, now, &mut self.counts);
        }
        let ended = session.take_ended(now, &mut self.counts);
        self.propagation.end(id, &ended, now, &mut self.counts);
    }
}

/// Sessions that have something to get, and by which change of the sources, if by one.
#[derive(Debug)]
struct Touched {
    ids: BTreeSet<StreamId>,
    cause: Option<Cause>,
}

impl Touched {
    fn by(cause: Cause) -> Touched {
        Touched { ids: BTreeSet::new(), cause: Some(cause) }
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
    touched: &mut Touched,
) {
    for id in &group.members {
        if let Some(session) = sessions.get_mut(id)
            && session.on_changed(type_url, name, touched.cause)
        {
            touched.ids.insert(*id);
        }
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
