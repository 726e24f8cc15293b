//! One stream to one proxy: what it is owed, and in which order it gets it.
//!
//! The order is what keeps requests from being lost while things change. Something new is told
//! from the bottom up: clusters, their endpoints, then the listeners and routes that lead there,
//! each only when the proxy has taken what is below. Something that goes is told from the top
//! down: a cluster that is no longer wanted stays (it *lingers*) until the proxy has taken the
//! routes that do without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;
use leno_xds::server::grpc::{Sender, StreamId};
use leno_xds::server::{Event, Resources, Scope, Stream};
use leno_xds::wire::Request;
use leno_xds::{Mode, TypeUrl};

use super::group::Group;
use super::node::Node;
use crate::scope::ProxyKey;
use crate::translate::resource::Resource;

/// How long listeners and routes wait for a proxy to take clusters and endpoints, or a cluster
/// lingers. A proxy that does not answer in this time is told the rest all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the control plane calls itself to proxies.
const CONTROL_PLANE: &str = "leno";

/// What a request asks of the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Resources are wanted; for clusters and listeners all, whatever the names.
    Wants { type_url: TypeUrl, names: Vec<Name> },
    /// Some resources are not wanted any more.
    Unwanted,
    /// An update was refused.
    Refused { type_url: TypeUrl, message: String },
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: StreamId,
    /// `pod.namespace` of the proxy.
    pub(crate) node: String,
    /// The proxy's whole identifier.
    pub(crate) node_id: String,
    pub(crate) key: ProxyKey,
    stream: Stream,
    sender: Sender,
    /// What may be out of date at the proxy, by type in push order.
    pending: BTreeMap<TypeUrl, Pending>,
    /// The clusters last sent, to know which of them have gone since.
    sent_clusters: Arc<Vec<Arc<Resource>>>,
    /// Clusters that have gone but that the proxy may still have routes to.
    lingering: BTreeMap<Name, Arc<Resource>>,
    /// Since when something is held back.
    held_since: Option<Instant>,
}

/// What may be out of date of a type.
#[derive(Debug, Default)]
struct Pending {
    all: bool,
    names: BTreeSet<Name>,
}

impl Session {
    /// A session on which nothing was asked for yet.
    pub(crate) fn new(id: StreamId, node: Node, mode: Mode, sender: Sender) -> Session {
        Session {
            id,
            node: node.name,
            node_id: node.id,
            key: node.key,
            stream: Stream::new(mode, Name::new(CONTROL_PLANE)),
            sender,
            pending: BTreeMap::new(),
            sent_clusters: Arc::default(),
            lingering: BTreeMap::new(),
            held_since: None,
        }
    }

    /// The state of the stream, for people to look at.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Reads a request.
    pub(crate) fn on_request(&mut self, request: Request) -> Vec<Said> {
        let mut said = Vec::new();
        for event in self.stream.on_request(request) {
            match event {
                Event::Subscribed { type_url, names, .. } => said.push(Said::Wants { type_url, names }),
                Event::Unsubscribed { .. } => said.push(Said::Unwanted),
                Event::Ack { .. } => {}
                Event::Nack { type_url, message, .. } => said.push(Said::Refused { type_url, message }),
            }
        }
        said
    }

    /// Notes that the proxy has asked for resources.
    pub(crate) fn owe(&mut self, type_url: &TypeUrl, names: &[Name]) {
        let pending = self.pending.entry(type_url.clone()).or_default();
        pending.all |= matches!(type_url, TypeUrl::Cluster | TypeUrl::Listener);
        pending.names.extend(names.iter().cloned());
    }

    /// Notes that resources have changed; false if the proxy does not want them.
    pub(crate) fn on_changed(&mut self, type_url: &TypeUrl, name: Option<&str>) -> bool {
        let Some(subscription) = self.stream.subscription(type_url) else { return false };
        if name.is_some_and(|name| !subscription.wants(name)) {
            return false;
        }
        let pending = self.pending.entry(type_url.clone()).or_default();
        match name {
            Some(name) => drop(pending.names.insert(Name::new(name))),
            None => pending.all = true,
        }
        true
    }

    /// Whether the proxy wants a resource.
    pub(crate) fn wants(&self, type_url: &TypeUrl, name: &str) -> bool {
        self.stream.subscription(type_url).is_some_and(|subscription| subscription.wants(name))
    }

    /// Whether the proxy may not have the newest of a type: it was not told yet or has not answered.
    pub(crate) fn is_behind(&self, type_url: &TypeUrl) -> bool {
        self.pending.contains_key(type_url) || self.stream.is_outstanding(type_url)
    }

    /// Whether there is something to tell when time has passed.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty() || !self.lingering.is_empty()
    }

    /// The refusals that stand, by type.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&TypeUrl, &str)> {
        self.stream
            .subscriptions()
            .filter_map(|(type_url, subscription)| Some((type_url, subscription.rejection()?)))
    }

    /// Sends what can be sent now.
    pub(crate) fn pump(&mut self, group: &Group, now: Instant) {
        while self.sender.is_ready() {
            let Some(type_url) = self.next(group, now) else { return };
            let pending = self.pending.remove(&type_url).unwrap_or_default();
            let Some(response) = self.respond(group, &type_url, &pending) else { continue };
            if self.sender.send(response).is_err() {
                // The stream has ended; that it has will be told.
                return;
            }
        }
    }

    /// The type to tell about next, if there is one that need not wait.
    fn next(&mut self, group: &Group, now: Instant) -> Option<TypeUrl> {
        let settled = self.is_settled_below(group);
        let mut held = false;
        let mut next = None;
        for type_url in self.pending.keys() {
            // An answer that was asked for is given; anything else waits for the answer to the last.
            if self.stream.is_outstanding(type_url) && !self.stream.is_owed(type_url) {
                continue;
            }
            let upper = matches!(type_url, TypeUrl::Listener | TypeUrl::Route);
            if upper && !settled && !self.is_impatient(now) {
                held = true;
                continue;
            }
            next = Some(type_url.clone());
            break;
        }
        if next.is_none() && self.pending.is_empty() && !self.lingering.is_empty() {
            let taken = [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route];
            if taken.iter().all(|type_url| !self.stream.is_outstanding(type_url)) || self.is_impatient(now) {
                self.lingering.clear();
                self.held_since = None;
                self.pending.entry(TypeUrl::Cluster).or_default().all = true;
                return Some(TypeUrl::Cluster);
            }
            held = true;
        }
        match (held, next.is_some()) {
            (true, _) => drop(self.held_since.get_or_insert(now)),
            (false, false) if self.pending.is_empty() => self.held_since = None,
            (false, _) => {}
        }
        next
    }

    fn is_impatient(&self, now: Instant) -> bool {
        self.held_since.is_some_and(|since| now.duration_since(since) >= PATIENCE)
    }

    /// Whether the proxy has taken all clusters and their endpoints.
    fn is_settled_below(&self, group: &Group) -> bool {
        for type_url in [TypeUrl::Cluster, TypeUrl::Endpoint] {
            if self.pending.contains_key(&type_url)
                || self.stream.is_outstanding(&type_url)
                || self.stream.is_owed(&type_url)
            {
                return false;
            }
        }
        let Some(clusters) = self.stream.subscription(&TypeUrl::Cluster) else { return true };
        // A cluster whose endpoints were not asked for yet is still being taken in.
        let endpoints = self.stream.subscription(&TypeUrl::Endpoint);
        group
            .cluster_list()
            .iter()
            .filter(|cluster| cluster.needs_endpoints && clusters.wants(cluster.name()))
            .all(|cluster| endpoints.is_some_and(|endpoints| endpoints.wants(cluster.name())))
    }

    fn respond(
        &mut self,
        group: &Group,
        type_url: &TypeUrl,
        pending: &Pending,
    ) -> Option<leno_xds::wire::Response> {
        let resources = group.resources(type_url)?;
        if *type_url == TypeUrl::Cluster {
            self.note_gone(group);
            if !self.lingering.is_empty() {
                let mut resources: Resources = resources.clone();
                for cluster in self.lingering.values() {
                    resources.insert(cluster.wire.clone());
                }
                return self.stream.push(type_url, &resources, Scope::All);
            }
        }
        let names: Vec<Name> = pending.names.iter().cloned().collect();
        let scope = if pending.all { Scope::All } else { Scope::Changed(&names) };
        self.stream.push(type_url, resources, scope)
    }

    /// Compares the clusters with those last sent: what has gone lingers.
    fn note_gone(&mut self, group: &Group) {
        let now = group.cluster_list();
        if Arc::ptr_eq(now, &self.sent_clusters) {
            return;
        }
        let present: BTreeSet<&str> = now.iter().map(|cluster| cluster.name()).collect();
        for cluster in self.sent_clusters.iter().filter(|cluster| !present.contains(cluster.name())) {
            self.lingering.insert(cluster.wire.name.clone(), Arc::clone(cluster));
        }
        self.lingering.retain(|name, _| !present.contains(name.as_str()));
        self.sent_clusters = Arc::clone(now);
    }
}
