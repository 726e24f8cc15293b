//! Proxies come and go: which group a session belongs to, which view a group, and what is let go of
//! when nobody has wanted it for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_derive::Graph;
use leno_xds::server::grpc::{Connected, StreamId};
use leno_xds::{Mode, TypeUrl};
use tonic::Status;

use super::about::About;
use super::group::Group;
use super::learnt::{Kin, What};
use super::session::Session;
use super::{Push, Touched, node, version};
use crate::scope::{Abilities, ProxyFacts, ProxyKey};

/// How long what was made for a kind of proxy is kept without any: a connection that was lost is
/// mostly made again at once, and most of them together.
const KEEP: Duration = Duration::from_secs(30);

impl Push {
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

    pub(super) fn connect(&mut self, graph: &Graph, connected: Connected, now: Instant) {
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
    pub(super) fn group_of(&mut self, graph: &Graph, key: ProxyKey) -> Arc<ProxyKey> {
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
    pub(super) fn join(&mut self, id: StreamId, key: &ProxyKey) {
        if let Some(group) = self.groups.get_mut(key) {
            group.members.insert(id);
            group.empty_since = None;
        }
    }

    /// A session does not belong to a group any more.
    pub(super) fn leave(&mut self, id: StreamId, key: &ProxyKey, now: Instant) {
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
    pub(super) fn disconnect(&mut self, id: StreamId, error: Option<&str>, now: Instant) -> Option<Session> {
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

    /// A group's proxies have become other clients than they were: a rule has begun or ceased to
    /// tell them from others.
    pub(super) fn move_group(
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
    pub(super) fn reload(
        &mut self,
        graph: &Graph,
        key: &Arc<ProxyKey>,
        members: &[StreamId],
        touched: &mut Touched,
    ) {
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
}
