//! Which clusters of services proxies are told of that ask for what they use: those that their like are
//! known to use (`learnt.rs`), and those that must be there before something else is used.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;

use super::{Push, Touched, mark, version};
use crate::scope::ProxyKey;

impl Push {
    /// Sees to it that proxies that ask for clusters have those that must be there beforehand.
    pub(super) fn follow_needs(&mut self, graph: &Graph, client: &ProxyKey, touched: &mut Touched) {
        if !client.is_lazy() {
            return;
        }
        let Some(view) = self.views.get_mut(client) else { return };
        if view.refresh_needed() {
            for key in view.groups.iter().cloned().collect::<Vec<_>>() {
                self.pick(graph, &key, touched);
            }
        }
    }

    /// Chooses anew which clusters of services the proxies of a group are told of, if not of all.
    pub(super) fn pick(&mut self, graph: &Graph, key: &Arc<ProxyKey>, touched: &mut Touched) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let Some(kin) = &group.kin else { return };
        let Some(view) = self.views.get_mut(&group.client) else { return };
        let learnt: Vec<Name> = self.learnt.clusters(kin).cloned().collect();
        if !group.pick(view, learnt.into_iter()) {
            return;
        }
        let version = version(graph);
        view.load_named(graph, &group.client, &TypeUrl::Cluster, group.picked(), &version);
        let before = group.resources(view, &TypeUrl::Cluster).clone();
        group.combine(view, &TypeUrl::Cluster, &version);
        if !group.resources(view, &TypeUrl::Cluster).changes_since(&before).is_empty() {
            mark(&mut self.sessions, group, &TypeUrl::Cluster, None, touched);
        }
    }

    /// Forgets clusters that nobody has asked for in a long time.
    pub(super) fn forget(&mut self, graph: &Graph, now: Instant) {
        let (groups, sessions, views) = (&self.groups, &self.sessions, &self.views);
        let is_named = |key: &Arc<ProxyKey>, name: &Name| {
            let members = groups.get(key).into_iter().flat_map(|group| &group.members);
            let mut members = members.filter_map(|id| sessions.get(id));
            members.any(|session| session.asks_for(&TypeUrl::Cluster, name))
        };
        let exists = |key: &Arc<ProxyKey>, name: &Name| {
            let view = groups.get(key).and_then(|group| views.get(&group.client));
            view.is_some_and(|view| view.find(&TypeUrl::Cluster, name).is_some())
        };
        let concerned = self.learnt.tidy(now, is_named, exists);
        let mut touched = Touched { ids: BTreeSet::new(), cause: None };
        for key in concerned {
            self.pick(graph, &key, &mut touched);
            if let Some(group) = self.groups.get(&key) {
                self.untidy.insert(Arc::clone(&group.client));
            }
        }
        self.pump_all(touched, now);
    }
}
