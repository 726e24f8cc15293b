//! Brings proxies up to date: who is connected, what each has, and what it must get next.
//!
//! - `node.rs`: who a proxy says it is;
//! - `view.rs`: proxies that are the same as clients share one [`View`] with what they call;
//! - `group.rs`: of these, proxies that are alike in all share one [`Group`], with what is theirs;
//! - `clearance.rs`: who it has proven to be, and which credentials it may have for that;
//! - `learnt.rs`: which clusters and virtual hosts workloads use, for proxies that are told of these only,
//!   with `picking.rs`, which are these;
//! - `named.rs`: the resources of one type;
//! - `session.rs`: one stream, and the order in which it is told things;
//! - `propagation.rs`: how far changes have come;
//! - `refusals.rs`: what proxies refuse.
//!
//! [`Push`] joins them. It is driven by the control loop and does nothing by itself. A change costs
//! what it changes in views and groups, and a look at each session that must be told of it.

pub(crate) mod about;
mod asked;
pub(crate) mod clearance;
pub(crate) mod group;
mod learnt;
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
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_derive::{Graph, Query};
use leno_xds::server::Resources;
use leno_xds::server::grpc::{Connected, StreamEvent, StreamId};
use leno_xds::{Mode, TypeUrl};
use tonic::Status;

use self::about::About;
use self::clearance::{Gate, Verdict};
use self::group::Group;
use self::learnt::{Kin, Learnt, What};
use self::propagation::Propagation;
use self::session::{Cause, Said, Session};
use self::view::View;
use crate::metrics::Counts;
use crate::model::ObjectRef;
use crate::model::identity::Account;
use crate::scope::client::ClientOf;
use crate::scope::patches::MetadataNames;
use crate::scope::{Abilities, ProxyFacts, ProxyKey};
use crate::translate::cluster::grpc::{GrpcCluster, GrpcEndpoints};
use crate::translate::cluster::lazy::{FixedClusters, NamedCluster};
use crate::translate::cluster::{OwnClusters, SharedClusters};
use crate::translate::credential::GivenTo;
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::grpc::GrpcListener;
use crate::translate::listener::{OwnListeners, SharedListeners};
use crate::translate::name;
use crate::translate::name_table::{self, NameTable};
use crate::translate::patch::Extensions;
use crate::translate::resource::Resource;
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

    /// Tells every proxy what has changed in the graph since the last time, by changes of objects.
    pub(crate) fn on_change(&mut self, graph: &Graph, news: &News, now: Instant) {
        let change = self.propagation.begin(&news.changed, &news.removed, news.at);
        let mut touched = Touched::by(Cause { change, at: news.at });
        for ((), names) in graph.changed::<MetadataNames>() {
            self.rekey(graph, &names, now, &mut touched);
        }
        for (key, client) in graph.changed::<ClientOf>() {
            self.move_group(graph, &key, &client, now, &mut touched);
        }
        self.on_whole::<SharedClusters>(graph, &TypeUrl::Cluster, &mut touched);
        self.on_whole::<FixedClusters>(graph, &TypeUrl::Cluster, &mut touched);
        self.on_own::<OwnClusters>(graph, &TypeUrl::Cluster, &mut touched);
        self.on_named::<NamedCluster>(graph, &TypeUrl::Cluster, now, &mut touched);
        self.on_named::<GrpcCluster>(graph, &TypeUrl::Cluster, now, &mut touched);
        self.on_named::<Endpoints>(graph, &TypeUrl::Endpoint, now, &mut touched);
        self.on_named::<GrpcEndpoints>(graph, &TypeUrl::Endpoint, now, &mut touched);
        self.on_whole::<SharedListeners>(graph, &TypeUrl::Listener, &mut touched);
        self.on_own::<OwnListeners>(graph, &TypeUrl::Listener, &mut touched);
        self.on_named::<GrpcListener>(graph, &TypeUrl::Listener, now, &mut touched);
        self.on_named::<Route>(graph, &TypeUrl::Route, now, &mut touched);
        self.on_named::<GrpcRoute>(graph, &TypeUrl::Route, now, &mut touched);
        self.on_hosts(graph, now, &mut touched);
        self.release_held(graph, now, &mut touched);
        self.on_whole::<Extensions>(graph, &TypeUrl::ExtensionConfig, &mut touched);
        self.on_secrets(graph, &mut touched);
        let version = version(graph);
        for (client, table) in graph.changed::<NameTable>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            let names = TypeUrl::from(name_table::TYPE_URL);
            view.set_whole(&names, view::single(&table), version.clone());
            self.mark_view(&client, &names, None, &version, &mut touched);
        }
        for ((), roots) in graph.changed::<TrustBundle>() {
            let told = |view: &mut View| view.set_roots(&roots, version.clone());
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
        self.pump_all(touched, now);
    }

    /// Of a type of which proxies get all something has changed.
    fn on_whole<Q>(&mut self, graph: &Graph, type_url: &TypeUrl, touched: &mut Touched)
    where
        Q: Query<Key = ProxyKey, Value = Vec<Arc<Resource>>>,
    {
        let version = version(graph);
        for (client, list) in graph.changed::<Q>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_whole(type_url, list, version.clone());
            self.mark_view(&client, type_url, None, &version, touched);
            self.follow_needs(graph, &client, touched);
        }
    }

    /// The same of what is proxies' own.
    fn on_own<Q>(&mut self, graph: &Graph, type_url: &TypeUrl, touched: &mut Touched)
    where
        Q: Query<Key = ProxyKey, Value = Vec<Arc<Resource>>>,
    {
        let version = version(graph);
        for (key, list) in graph.changed::<Q>() {
            let Some((key, group)) = self.groups.get_key_value(&key) else { continue };
            let (key, client) = (Arc::clone(key), Arc::clone(&group.client));
            let (Some(group), Some(view)) = (self.groups.get_mut(&key), self.views.get(&client)) else {
                continue;
            };
            group.set_own(type_url, list);
            group.combine(view, type_url, &version);
            mark(&mut self.sessions, group, type_url, None, touched);
            self.pick(graph, &key, touched);
        }
    }

    /// Resources have changed that were asked for by their names.
    fn on_named<Q>(&mut self, graph: &Graph, type_url: &TypeUrl, now: Instant, touched: &mut Touched)
    where
        Q: Query<Key = (ProxyKey, String), Value = Option<Arc<Resource>>>,
    {
        #[allow(clippy::mutable_key_type, reason = "a key does not change")]
        let mut by_client: HashMap<ProxyKey, Vec<_>> = HashMap::new();
        for ((client, name), found) in graph.changed::<Q>() {
            by_client.entry(client).or_default().push((name, found));
        }
        let version = version(graph);
        for (client, changed) in by_client {
            let Some(view) = self.views.get_mut(&client) else { continue };
            let mut told = Vec::new();
            for (name, found) in changed {
                let found = found.as_ref().as_ref();
                if view.set_named(graph, &client, type_url, (&name, found), &version, now) {
                    told.push(name);
                }
            }
            self.mark_view(&client, type_url, Some(&told), &version, touched);
            self.follow_needs(graph, &client, touched);
        }
    }

    /// Credentials have changed.
    fn on_secrets(&mut self, graph: &Graph, touched: &mut Touched) {
        let version = version(graph);
        for ((client, name), given) in graph.changed::<GivenTo>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            view.set_secret(&client, &name, &given, version.clone());
            self.mark_view(&client, &TypeUrl::Secret, Some(&[name]), &version, touched);
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
            if let Some(kin) = &group.kin {
                self.learnt.leave(kin, &key);
            }
            group.release(graph, &key);
        }
        self.forget(graph, now);
        for client in std::mem::take(&mut self.untidy) {
            let Some(view) = self.views.get_mut(&client) else { continue };
            if view.groups.is_empty() {
                if let Some(view) = self.views.remove(&client) {
                    view.release(graph, &client);
                }
                continue;
            }
            let groups: Vec<&Group> = view.groups.iter().filter_map(|key| self.groups.get(key)).collect();
            let members = groups.iter().flat_map(|group| &group.members);
            let members: Vec<&Session> = members.filter_map(|id| self.sessions.get(id)).collect();
            if members.is_empty() {
                // They may come again, and want the same.
                self.untidy.insert(client);
                continue;
            }
            view.release_unwanted(graph, &client, |type_url, name| {
                if client.is_lazy() && *type_url == TypeUrl::Cluster {
                    return groups.iter().any(|group| group.picks(name));
                }
                members.iter().any(|session| session.wants(type_url, name))
            });
            let learnt = &self.learnt;
            let kins: Vec<&Kin> = groups.iter().filter_map(|group| group.kin.as_ref()).collect();
            view.release_hosts(graph, &client, |name| {
                kins.iter().any(|kin| learnt.has(kin, What::Hosts, name))
            });
        }
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
        let mut facts = ProxyFacts::clone(&node.key);
        if mode == Mode::Sotw || (self.gate.proves && caller.is_none()) {
            // Neither can be asked for one by one there; and where proxies prove who they are nobody else
            // may say what workloads use.
            facts.options.abilities.remove(Abilities::ON_DEMAND);
            facts.options.abilities.remove(Abilities::HOSTS_ON_DEMAND);
        }
        let key = self.group_of(graph, ProxyKey::from(facts));
        self.join(id, &key);
        self.sessions.insert(id, Session::new(id, node, account, key, about, mode, sender));
    }

    /// The key of the group with this key, which there is from now on.
    fn group_of(&mut self, graph: &Graph, key: ProxyKey) -> Arc<ProxyKey> {
        if let Some((key, _)) = self.groups.get_key_value(&key) {
            return Arc::clone(key);
        }
        let key = Arc::new(key);
        let group = Group::new(graph, &key);
        let view = self.views.entry(Arc::clone(&group.client)).or_default();
        view.groups.insert(Arc::clone(&key));
        if let Some(kin) = &group.kin {
            self.learnt.join(kin, &key);
        }
        self.groups.insert(Arc::clone(&key), group);
        key
    }

    /// A session belongs to a group from now on.
    fn join(&mut self, id: StreamId, key: &ProxyKey) {
        if let Some(group) = self.groups.get_mut(key) {
            group.members.insert(id);
            group.empty_since = None;
        }
    }

    /// A session does not belong to a group any more.
    fn leave(&mut self, id: StreamId, key: &ProxyKey, now: Instant) {
        let Some(group) = self.groups.get_mut(key) else { return };
        group.members.remove(&id);
        if group.members.is_empty() {
            group.empty_since = Some(now);
        }
        if let Some(kin) = &group.kin {
            self.learnt.on_changed(kin);
        }
        self.untidy.insert(Arc::clone(&group.client));
    }

    /// A stream has ended, or is to end; gives its session, if there is one.
    fn disconnect(&mut self, id: StreamId, error: Option<&str>, now: Instant) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        tracing::info!(node = session.node, error, "proxy disconnected");
        self.propagation.leave(id, &session.tracks, now, &mut self.counts);
        self.refusals_changed |= self.refusing.remove(&id);
        self.waiting.remove(&id);
        if let Some(account) = &session.account
            && let Some(asking) = self.credentials.get_mut(account)
        {
            asking.remove(&id);
            if asking.is_empty() {
                self.credentials.remove(account);
            }
        }
        self.leave(id, &session.key, now);
        Some(session)
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

    /// A group's proxies have become other clients than they were: a rule has begun or ceased to
    /// tell them from others.
    fn move_group(
        &mut self,
        graph: &Graph,
        key: &ProxyKey,
        client: &Arc<ProxyKey>,
        now: Instant,
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
        self.views.entry(Arc::clone(client)).or_default().groups.insert(Arc::clone(&key));
        let members: Vec<StreamId> = group.members.iter().copied().collect();
        self.reload(graph, &key, &members, touched);
        // What the group has is of the view before, whether or not anything was new in this one.
        self.pick(graph, &key, touched);
        let version = version(graph);
        if let (Some(group), Some(view)) = (self.groups.get_mut(&key), self.views.get_mut(client)) {
            let picked = group.picked().clone();
            view.load_named(graph, client, &TypeUrl::Cluster, &picked, &version);
            for type_url in [TypeUrl::Cluster, TypeUrl::Listener] {
                group.combine(view, &type_url, &version);
            }
        }
        self.untidy.insert(Arc::clone(client));
        self.release_held(graph, now, touched);
    }

    /// Derives all that sessions want, which have come into a group or another view; they are told.
    fn reload(&mut self, graph: &Graph, key: &Arc<ProxyKey>, members: &[StreamId], touched: &mut Touched) {
        for id in members {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            let wanted = session.wanted();
            for (type_url, _) in &wanted {
                session.on_changed(type_url, None, touched.cause);
            }
            touched.ids.insert(*id);
            for (type_url, names) in wanted {
                self.load(graph, key, &type_url, &names, touched);
            }
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
