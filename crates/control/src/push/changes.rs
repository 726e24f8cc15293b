//! What has changed in the graph, type by type: views and groups take it, and their sessions are to be told.
//!
//! START HERE: [`Push::on_change`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use leno_derive::{Graph, Query};
use leno_xds::TypeUrl;

use super::session::Cause;
use super::view::{self, View};
use super::{News, Push, Touched, mark, version};
use crate::scope::ProxyKey;
use crate::scope::client::ClientOf;
use crate::scope::patches::MetadataNames;
use crate::translate::cluster::grpc::{GrpcCluster, GrpcEndpoints};
use crate::translate::cluster::lazy::{FixedClusters, NamedCluster};
use crate::translate::cluster::{OwnClusters, SharedClusters};
use crate::translate::credential::GivenTo;
use crate::translate::endpoint::Endpoints;
use crate::translate::listener::grpc::GrpcListener;
use crate::translate::listener::{OwnListeners, SharedListeners};
use crate::translate::name_table::{self, NameTable};
use crate::translate::patch::Extensions;
use crate::translate::resource::Resource;
use crate::translate::route::Route;
use crate::translate::route::grpc::GrpcRoute;
use crate::translate::trust_bundle::{self, TrustBundle};

impl Push {
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
}
