//! Which clusters of services and which virtual hosts proxies are told of that ask for what they use:
//! those that their like are known to use (`learnt.rs`), the clusters that these virtual hosts lead to, and
//! those that must be there before something else is used.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use leno_base::Name;
use leno_derive::Graph;
use leno_xds::TypeUrl;

use super::asked::AskedHost;
use super::learnt::{Kin, What};
use super::{Push, Touched, mark, version};
use crate::scope::ProxyKey;
use crate::translate::route::on_demand::{self, NamedHost};

impl Push {
    /// Sees to it that proxies that ask for clusters have those that must be there beforehand.
    pub(super) fn follow_needs(&mut self, graph: &Graph, client: &ProxyKey, touched: &mut Touched) {
        if !client.is_lazy() {
            return;
        }
        let Some(view) = self.views.get_mut(client) else { return };
        if view.refresh_needed() {
            self.pick_all(graph, client, touched);
        }
    }

    /// Chooses anew what the proxies of all groups of a view are told of.
    pub(super) fn pick_all(&mut self, graph: &Graph, client: &ProxyKey, touched: &mut Touched) {
        let groups = self.views.get(client).into_iter().flat_map(|view| &view.groups);
        for key in groups.cloned().collect::<Vec<_>>() {
            self.pick(graph, &key, touched);
        }
    }

    /// A proxy asks for virtual hosts, by the hosts of requests; `held` are those that it has. Gives the
    /// answers, and the hosts that there is no room for.
    pub(super) fn on_hosts_asked(
        &mut self,
        graph: &Graph,
        key: &Arc<ProxyKey>,
        (names, held): (&[Name], &[Name]),
        now: Instant,
        touched: &mut Touched,
    ) -> (Vec<AskedHost>, Vec<Name>) {
        let (mut answers, mut denied, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
        let Some(group) = self.groups.get(key) else { return (answers, denied) };
        let Some(kin) = group.kin.clone() else { return (answers, denied) };
        let client = Arc::clone(&group.client);
        for asked in names {
            let learnt = on_demand::learnt_by(graph, &client, asked);
            let learnt = if *asked == *learnt { asked.clone() } else { Name::from(learnt) };
            let found = graph.peek::<NamedHost>(&(ProxyKey::clone(&client), learnt.to_string()));
            let found = found.as_ref().as_ref();
            let given = found.map(|found| &found.wire.name).filter(|given| **given != learnt);
            let given = given.unwrap_or(&learnt).clone();
            // What the answer is called is learnt too, by which the next asks who comes back with it.
            let used = [learnt.clone(), given.clone()];
            let exists = |name: &Name| *name == given && found.is_some_and(|found| !found.is_made_up);
            fresh.extend(self.learnt.on_asked(&kin, What::Hosts, &used, exists));
            let learnt = used.into_iter().find(|name| self.learnt.has(&kin, What::Hosts, name));
            match learnt {
                Some(learnt) => answers.push(AskedHost { asked: asked.clone(), learnt, given }),
                None => denied.push(asked.clone()),
            }
        }
        if self.learnt.on_held(&kin, What::Hosts, held, now) {
            self.limit_hosts(graph, &kin, &client);
            for key in self.learnt.groups(&kin) {
                self.pick(graph, &key, touched);
            }
            self.untidy.insert(client);
        } else if fresh.is_empty() {
            self.pick_more(graph, key, &fresh, What::Hosts, touched);
        } else {
            for key in self.learnt.groups(&kin) {
                self.pick_more(graph, &key, &fresh, What::Hosts, touched);
            }
            self.untidy.insert(client);
        }
        (answers, denied)
    }

    /// Forgets hosts that somebody may have made up and nobody asks for, if there are too many.
    fn limit_hosts(&mut self, graph: &Graph, kin: &Kin, client: &Arc<ProxyKey>) {
        let Some(view) = self.views.get_mut(client) else { return };
        let hosts: Vec<Name> = self.learnt.uses(kin, What::Hosts).cloned().collect();
        view.load_hosts(graph, client, &hosts);
        let is_made_up =
            |name: &Name| view.host(name).is_some_and(|host| host.is_made_up || host.wire.name != *name);
        self.learnt.limit(kin, is_made_up);
    }

    /// Virtual hosts that are asked for one by one have changed.
    pub(super) fn on_hosts(&mut self, graph: &Graph, now: Instant, touched: &mut Touched) {
        #[allow(clippy::mutable_key_type, reason = "a key does not change")]
        let mut concerned: HashMap<ProxyKey, Vec<String>> = HashMap::new();
        for ((client, name), found) in graph.changed::<NamedHost>() {
            let Some(view) = self.views.get_mut(&client) else { continue };
            if let Some(found) = found.as_ref()
                && view.set_host(graph, &client, &name, found, now)
            {
                concerned.entry(client).or_default().push(name);
            }
        }
        for (client, names) in concerned {
            let groups = self.views.get(&client).into_iter().flat_map(|view| &view.groups);
            for key in groups.cloned().collect::<Vec<_>>() {
                let kin = self.groups.get(&key).and_then(|group| group.kin.as_ref());
                if kin.is_some_and(|kin| self.learnt.has_any(kin, What::Hosts, &names)) {
                    self.pick(graph, &key, touched);
                }
            }
        }
    }

    /// Chooses anew which clusters of services and virtual hosts the proxies of a group are told of, if not
    /// of all.
    pub(super) fn pick(&mut self, graph: &Graph, key: &Arc<ProxyKey>, touched: &mut Touched) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let Some(kin) = &group.kin else { return };
        let Some(view) = self.views.get_mut(&group.client) else { return };
        let version = version(graph);
        let learnt: Vec<Name> = self.learnt.uses(kin, What::Clusters).cloned().collect();
        if key.asks_for_hosts() {
            let hosts: Vec<Name> = self.learnt.uses(kin, What::Hosts).cloned().collect();
            view.load_hosts(graph, &group.client, &hosts);
            if group.pick_hosts(view, &hosts, &version) {
                mark(&mut self.sessions, group, &TypeUrl::VirtualHost, None, touched);
            }
        }
        if !group.pick(view, learnt.into_iter()) {
            return;
        }
        view.load_named(graph, &group.client, &TypeUrl::Cluster, group.picked(), &version);
        let before = group.resources(view, &TypeUrl::Cluster).clone();
        group.combine(view, &TypeUrl::Cluster, &version);
        if !group.resources(view, &TypeUrl::Cluster).changes_since(&before).is_empty() {
            mark(&mut self.sessions, group, &TypeUrl::Cluster, None, touched);
        }
    }

    /// The proxies of a group are told of some more.
    pub(super) fn pick_more(
        &mut self,
        graph: &Graph,
        key: &Arc<ProxyKey>,
        fresh: &[Name],
        what: What,
        touched: &mut Touched,
    ) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if !group.has_picked() {
            return self.pick(graph, key, touched);
        }
        let Some(view) = self.views.get_mut(&group.client) else { return };
        let version = version(graph);
        let clusters = match what {
            What::Clusters => group.pick_clusters(fresh),
            What::Hosts => {
                view.load_hosts(graph, &group.client, fresh);
                let (changed, clusters) = group.pick_more_hosts(view, fresh, &version);
                if changed {
                    mark(&mut self.sessions, group, &TypeUrl::VirtualHost, None, touched);
                }
                clusters
            }
        };
        view.load_named(graph, &group.client, &TypeUrl::Cluster, &clusters, &version);
        if group.combine_more(view, &clusters, &version) {
            mark(&mut self.sessions, group, &TypeUrl::Cluster, None, touched);
        }
    }

    /// Forgets what nobody has asked for in a long time.
    pub(super) fn forget(&mut self, graph: &Graph, now: Instant) {
        let (groups, sessions, views) = (&self.groups, &self.sessions, &self.views);
        let is_named = |key: &Arc<ProxyKey>, what: What, name: &Name| {
            let members = groups.get(key).into_iter().flat_map(|group| &group.members);
            let mut members = members.filter_map(|id| sessions.get(id));
            members.any(|session| match what {
                What::Clusters => session.asks_for(&TypeUrl::Cluster, name),
                What::Hosts => session.asks_for_host(name),
            })
        };
        let exists = |key: &Arc<ProxyKey>, what: What, name: &Name| {
            let view = groups.get(key).and_then(|group| views.get(&group.client));
            view.is_some_and(|view| match what {
                What::Clusters => view.find(&TypeUrl::Cluster, name).is_some(),
                What::Hosts => view.host(name).is_some_and(|host| !host.is_made_up),
            })
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
