//! Brings proxies up to date: who is connected, what each has, and what it must get next.
//!
//! - `node.rs`: who a proxy says it is; `about.rs`: what else it says of itself, for people to look at;
//! - `view.rs`: proxies that are the same as clients share one [`View`] with what they call;
//! - `group.rs`: of these, proxies that are alike in all share one [`Group`], with what is theirs;
//! - `clearance.rs`: who it has proven to be, and which credentials it may have for that;
//! - `learnt.rs`: which clusters and virtual hosts workloads use, for proxies that are told of these only,
//!   with `picking.rs`, which are these;
//! - `named.rs`: the resources of one type; `asked.rs`: the hosts that one proxy has asked for;
//! - `session.rs`: one stream, and the order in which it is told things;
//! - `changes.rs`: what has changed in the graph, type by type;
//! - `membership.rs`: proxies come and go, and what nobody wants any more is let go of;
//! - `patching.rs`: what EnvoyFilters ask of connected proxies, and what became of their patches;
//! - `propagation.rs`: how far changes have come;
//! - `refusals.rs`: what proxies refuse.
//!
//! [`Push`] joins them. It is driven by the control loop and does nothing by itself. A change costs
//! what it changes in views and groups, and a look at each session that must be told of it.

pub(crate) mod about;
mod asked;
mod changes;
pub(crate) mod clearance;
pub(crate) mod group;
mod learnt;
mod membership;
mod named;
pub(crate) mod node;
pub(crate) mod patching;
mod picking;
pub(crate) mod propagation;
mod refusals;
pub(crate) mod session;
pub(crate) mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::Resources;
use leno_xds::server::grpc::{StreamEvent, StreamId};
use tonic::Status;

use self::clearance::{Gate, Verdict};
use self::group::Group;
use self::learnt::{Learnt, What};
use self::propagation::Propagation;
use self::session::{Cause, Said, Session};
use self::view::View;
use crate::metrics::Counts;
use crate::model::ObjectRef;
use crate::model::identity::Account;
use crate::scope::ProxyKey;
use crate::translate::cluster::lazy::NamedCluster;
use crate::translate::name;

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
    /// Whether what is refused may have changed since somebody has looked.
    refusals_changed: bool,
    /// Sessions that have something to do when time has passed.
    waiting: BTreeSet<StreamId>,
    /// Sessions of authenticated proxies that have asked for credentials.
    credentials: BTreeMap<Account, BTreeSet<StreamId>>,
    /// Which clusters and virtual hosts workloads use.
    learnt: Learnt,
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

impl Push {
    /// No proxies yet.
    pub(crate) fn new(gate: Gate) -> Push {
        Push { gate, ..Push::default() }
    }

    /// The sessions, for people to look at.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
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
        Some(session.resources(group, self.views.get(&group.client)?, type_url))
    }

    /// The sessions of authenticated proxies that have asked for credentials.
    pub(crate) fn asking_for_credentials(&self) -> impl Iterator<Item = &Session> {
        self.credentials.values().flatten().filter_map(|id| self.sessions.get(id))
    }

    /// Acts on what happened on a stream.
    pub(crate) fn on_stream(&mut self, graph: &Graph, event: StreamEvent, now: Instant) {
        match event {
            StreamEvent::Connected(connected) => self.connect(graph, *connected, now),
            StreamEvent::Request { id, request } => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                if let Err(why) = session.admit(&request) {
                    if let Some(session) = self.disconnect(id, Some(why), now) {
                        session.close(Status::invalid_argument(why));
                    }
                    return;
                }
                let said = session.on_request(*request, &mut self.counts);
                self.note_refusals(id);
                let mut touched = Touched { ids: BTreeSet::from([id]), cause: None };
                for said in said {
                    self.on_said(graph, id, said, now, &mut touched);
                }
                self.pump_all(touched, now);
            }
            StreamEvent::Ready { id } => self.pump(id, now),
            StreamEvent::Closed { id, error } => drop(self.disconnect(id, error.as_deref(), now)),
        }
    }

    /// It has been found out whether a service account may read Secrets.
    pub(crate) fn on_reviewed(&mut self, account: &Account, verdict: Verdict, now: Instant) {
        self.gate.on_reviewed(account, verdict, now);
        let clearance = self.gate.clearance(Some(account));
        let asking = self.credentials.get(account).into_iter().flatten();
        let mut told = Touched { ids: BTreeSet::new(), cause: None };
        for id in asking {
            if self.sessions.get_mut(id).is_some_and(|session| session.set_clearance(clearance)) {
                told.ids.insert(*id);
            }
        }
        self.pump_all(told, now);
    }

    /// Sends what was held back for too long.
    pub(crate) fn on_tick(&mut self, graph: &Graph, now: Instant) {
        self.gate.on_tick(now, |account| self.credentials.contains_key(account));
        let mut waiting = Touched { ids: std::mem::take(&mut self.waiting), cause: None };
        self.release_held(graph, now, &mut waiting);
        self.pump_all(waiting, now);
    }

    /// Marks routes and virtual hosts whose clusters have come, or that have waited for them long enough.
    fn release_held(&mut self, graph: &Graph, now: Instant, touched: &mut Touched) {
        let holding = self.views.iter().filter(|(_, view)| view.holds_routes());
        let holding: Vec<Arc<ProxyKey>> = holding.map(|(client, _)| Arc::clone(client)).collect();
        let version = version(graph);
        for client in holding {
            let Some(view) = self.views.get_mut(&client) else { continue };
            let released = view.release_held(graph, &client, &version, now);
            let routes = released.iter().filter(|(type_url, _)| *type_url == TypeUrl::Route);
            let routes: Vec<String> = routes.map(|(_, name)| name.to_string()).collect();
            self.mark_view(&client, &TypeUrl::Route, Some(&routes), &version, touched);
            if routes.len() < released.len() {
                self.pick_all(graph, &client, touched);
            }
            self.follow_needs(graph, &client, touched);
        }
    }

    fn on_said(&mut self, graph: &Graph, id: StreamId, said: Said, now: Instant, touched: &mut Touched) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(group) = self.groups.get_mut(&session.key) else { return };
        match said {
            Said::Wants { type_url, names, mut held } => {
                if type_url == TypeUrl::Secret {
                    session.set_clearance(self.gate.clearance(session.account.as_ref()));
                    if let Some(account) = &session.account {
                        self.credentials.entry(account.clone()).or_default().insert(id);
                    }
                }
                session.owe(&type_url);
                self.counts.on_asked();
                let key = Arc::clone(&session.key);
                if type_url == TypeUrl::VirtualHost && key.asks_for_hosts() {
                    let (answers, denied) = self.on_hosts_asked(graph, &key, (&names, &held), now, touched);
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.await_hosts(answers);
                        if !denied.is_empty() {
                            session.deny_hosts(denied);
                        }
                    }
                    return;
                }
                if type_url == TypeUrl::Cluster
                    && let Some(kin) = &group.kin
                {
                    let client = ProxyKey::clone(&group.client);
                    let exists = |name: &Name| {
                        graph.peek::<NamedCluster>(&(client.clone(), name.to_string())).is_some()
                    };
                    let fresh = self.learnt.on_asked(kin, What::Clusters, &names, exists);
                    held.retain(|name| name::parse_outbound(name).is_some());
                    let holds_more = self.learnt.on_held(kin, What::Clusters, &held, now);
                    for key in self.learnt.groups(kin) {
                        if holds_more {
                            self.pick(graph, &key, touched);
                        } else if !fresh.is_empty() {
                            self.pick_more(graph, &key, &fresh, What::Clusters, touched);
                        }
                    }
                }
                self.load(graph, &key, &type_url, &names, touched);
            }
            Said::Unwanted => {
                if let Some(kin) = &group.kin {
                    self.learnt.on_changed(kin);
                }
                self.untidy.insert(Arc::clone(&group.client));
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

    /// Derives what a session of a group wants, as far as it is not there.
    fn load(
        &mut self,
        graph: &Graph,
        key: &Arc<ProxyKey>,
        type_url: &TypeUrl,
        names: &[Name],
        touched: &mut Touched,
    ) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let client = Arc::clone(&group.client);
        let Some(view) = self.views.get_mut(&client) else { return };
        let version = version(graph);
        let mut types = vec![(type_url, names)];
        if client.is_lazy() && *type_url == TypeUrl::Cluster {
            // These say which clusters must be there before them.
            types = vec![(&TypeUrl::Listener, &[]), (&TypeUrl::ExtensionConfig, &[]), (type_url, &[])];
        }
        let (mut is_any_new, mut shared) = (false, Vec::new());
        for (type_url, names) in types {
            let is_new = view.load(graph, &client, type_url, names, &version);
            let is_own_new = group.load(graph, key, type_url);
            is_any_new |= is_new || is_own_new;
            if is_new && matches!(type_url, TypeUrl::Cluster | TypeUrl::Listener) {
                shared.push(type_url);
            } else if is_own_new {
                // Others of the view may have asked before, for what is shared.
                let version = view.resources(type_url).version().clone();
                group.combine(view, type_url, &version);
            }
        }
        for type_url in shared {
            for key in &view.groups {
                if let Some(group) = self.groups.get_mut(key) {
                    group.combine(view, type_url, &version);
                }
            }
        }
        if is_any_new && client.is_lazy() {
            self.follow_needs(graph, &client, touched);
            self.pick(graph, key, touched);
        }
    }

    /// Notes that the sessions of a view have something to get: what has some names, or anything.
    fn mark_view(
        &mut self,
        client: &ProxyKey,
        type_url: &TypeUrl,
        names: Option<&[String]>,
        version: &Name,
        touched: &mut Touched,
    ) {
        let Some(view) = self.views.get(client).filter(|_| names.is_none_or(|names| !names.is_empty()))
        else {
            return;
        };
        for key in &view.groups {
            let Some(group) = self.groups.get_mut(key) else { continue };
            if group.kin.is_some() && *type_url == TypeUrl::Cluster {
                // These are not told of all.
                if names.is_some_and(|names| !names.iter().any(|name| group.picks(name))) {
                    continue;
                }
            }
            group.combine(view, type_url, version);
            mark(&mut self.sessions, group, type_url, names, touched);
        }
    }

    fn pump_all(&mut self, touched: Touched, now: Instant) {
        for id in touched.ids {
            self.pump(id, now);
        }
    }

    fn pump(&mut self, id: StreamId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(group) = self.groups.get(&session.key) else { return };
        if let Some(view) = self.views.get(&group.client) {
            session.pump(group, view, now, &mut self.counts);
        }
        if session.is_waiting() {
            self.waiting.insert(id);
        } else {
            self.waiting.remove(&id);
        }
        let ends = session.take_ends(now, &mut self.counts);
        self.propagation.end(id, &ends, now, &mut self.counts);
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
    names: Option<&[String]>,
    touched: &mut Touched,
) {
    for id in &group.members {
        if let Some(session) = sessions.get_mut(id)
            && session.on_changed(type_url, names, touched.cause)
        {
            touched.ids.insert(*id);
        }
    }
}
