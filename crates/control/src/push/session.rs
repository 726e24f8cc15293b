//! One stream to one proxy: what it is owed, and in which order it gets it.
//!
//! The order is what keeps requests from being lost while things change. Something new is told
//! from the bottom up: clusters, their endpoints, then the listeners and routes that lead there,
//! each only when the proxy has taken what is below. Something that goes is told from the top
//! down: a cluster that is no longer wanted stays (it *lingers*) until the proxy has taken the
//! routes that do without it. So does what a proxy has from an earlier stream, which may be from another
//! replica (in delta, where it says what it has). Routes that lead where nothing is are held back for a while, see
//! `view.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use leno_base::Name;
use leno_base::clock::{Clock, System};
use leno_xds::server::grpc::{Sender, StreamId};
use leno_xds::server::{Event, Resources, Scope, Stream};
use leno_xds::types::WILDCARD;
use leno_xds::wire::{Request, Response};
use leno_xds::{Mode, Resource, TypeUrl};
use tonic::Status;

use super::about::About;
use super::asked::{AskedHost, AskedHosts, MOST_HOST, MOST_HOSTS};
use super::clearance::Clearance;
use super::group::Group;
use super::node::Node;
use super::propagation::{Ends, Tracks};
use super::view::{REFERENCE_PATIENCE, View};
use crate::metrics::Counts;
use crate::model::identity::Account;
use crate::scope::ProxyKey;

/// How long listeners and routes wait for a proxy to take clusters and endpoints, or a cluster
/// lingers. A proxy that does not answer in this time is told the rest all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many types a proxy may ask for on one stream, and how long their URLs may be, bytes: proxies know
/// a dozen, and what a stranger makes up is remembered as long as his stream.
const MOST_TYPES: usize = 32;
const LONGEST_TYPE: usize = 256;

/// How the control plane calls itself to proxies.
const CONTROL_PLANE: &str = "leno";

/// What a request asks of the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Resources are wanted; for clusters and listeners all, whatever the names. `held` are clusters
    /// or virtual hosts that the proxy has from an earlier stream, if these are its first words about
    /// them.
    Wants { type_url: TypeUrl, names: Vec<Name>, held: Vec<Name> },
    /// Some resources are not wanted any more.
    Unwanted,
    /// An update was refused.
    Refused { type_url: TypeUrl, message: String },
}

/// The change of the sources that resources have changed by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause {
    /// What `Propagation` calls it.
    pub(crate) change: u64,
    /// When it came.
    pub(crate) at: Instant,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: StreamId,
    /// `pod.namespace` of the proxy.
    pub(crate) node: String,
    /// The proxy's whole identifier.
    pub(crate) node_id: String,
    pub(crate) key: Arc<ProxyKey>,
    /// What else is known of the proxy.
    pub(crate) about: Box<About>,
    /// Who it has proven to be.
    pub(crate) account: Option<Account>,
    /// Which credentials it may have.
    clearance: Clearance,
    stream: Stream,
    sender: Sender,
    /// Types of which something may be out of date at the proxy, in push order.
    pending: BTreeSet<TypeUrl>,
    /// The clusters last sent, to know which of them have gone since.
    sent_clusters: Resources,
    /// Clusters that have gone but that the proxy may still have routes to.
    lingering: BTreeMap<Name, Resource>,
    /// Since when there are such.
    lingering_since: Option<Instant>,
    /// Whether the proxy has clusters from an earlier stream, none of which is taken away before it has
    /// taken listeners and routes.
    resumes: bool,
    /// Since when.
    resumes_since: Option<Instant>,
    /// Clusters that were sent and whose endpoints were not asked for yet: they are still being
    /// taken in.
    awaiting: BTreeSet<Name>,
    /// The hosts by which it has asked for virtual hosts.
    asked_hosts: AskedHosts,
    /// Those of them that are to be answered.
    awaited_hosts: Vec<AskedHost>,
    /// Hosts of which it is to be told that there is nothing.
    denied_hosts: Vec<Name>,
    /// Since when something is held back.
    held_since: Option<Instant>,
    /// When a response was sent last, by type.
    sent_at: BTreeMap<TypeUrl, SystemTime>,
    /// Since when there is something to send.
    pending_since: Option<Instant>,
    /// The changes that the proxy has not taken yet, and since when there are such.
    pub(crate) tracks: Tracks,
    stale_since: Option<Instant>,
}

impl Session {
    /// A session on which nothing was asked for yet.
    pub(crate) fn new(
        id: StreamId,
        node: Node,
        account: Option<Account>,
        key: Arc<ProxyKey>,
        about: About,
        mode: Mode,
        sender: Sender,
    ) -> Session {
        Session {
            id,
            node: node.name,
            node_id: node.id,
            key,
            about: Box::new(about),
            account,
            clearance: Clearance::Nothing,
            stream: Stream::new(mode, Name::new(CONTROL_PLANE)),
            sender,
            pending: BTreeSet::new(),
            sent_clusters: Resources::default(),
            lingering: BTreeMap::new(),
            lingering_since: None,
            resumes: false,
            resumes_since: None,
            awaiting: BTreeSet::new(),
            asked_hosts: AskedHosts::default(),
            awaited_hosts: Vec::new(),
            denied_hosts: Vec::new(),
            held_since: None,
            sent_at: BTreeMap::new(),
            pending_since: None,
            tracks: Tracks::default(),
            stale_since: None,
        }
    }

    /// The state of the stream, for people to look at.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Whether a request may be read.
    ///
    /// # Errors
    /// The words for who asks for more types than there can be.
    pub(crate) fn admit(&self, request: &Request) -> Result<(), &'static str> {
        let type_url = request.type_url();
        if type_url.len() > LONGEST_TYPE {
            return Err("the type URL is too long");
        }
        let is_more = || self.stream.subscription(&TypeUrl::from(type_url)).is_none();
        if self.stream.subscriptions().nth(MOST_TYPES - 1).is_some() && is_more() {
            return Err("too many types are asked for on one stream");
        }
        Ok(())
    }

    /// Ends the stream.
    pub(crate) fn close(self, status: Status) {
        self.sender.close(status);
    }

    /// Reads a request.
    pub(crate) fn on_request(&mut self, mut request: Request, counts: &mut Counts) -> Vec<Said> {
        let mut said = Vec::new();
        let mut hosts = self.take_hosts(&mut request, &mut said);
        if self.stream.is_late(&request) {
            counts.on_expired(&TypeUrl::from(request.type_url()));
        }
        for event in self.stream.on_request(request) {
            match event {
                Event::Subscribed { type_url, names, is_new, .. } => {
                    if type_url == TypeUrl::Endpoint && !self.awaiting.is_empty() {
                        for name in &names {
                            self.awaiting.remove(name);
                        }
                    }
                    let is_learnt = matches!(type_url, TypeUrl::Cluster | TypeUrl::VirtualHost);
                    let held = match self.stream.subscription(&type_url) {
                        Some(sent) if is_new && is_learnt => {
                            let names = sent.sent_resources().map(|(name, _)| name);
                            names.filter(|name| name.len() <= MOST_HOST).take(MOST_HOSTS).cloned().collect()
                        }
                        _ => Vec::new(),
                    };
                    let names = match type_url {
                        TypeUrl::VirtualHost if !hosts.is_empty() => std::mem::take(&mut hosts),
                        _ => names,
                    };
                    self.resumes |= type_url == TypeUrl::Cluster && !held.is_empty();
                    if is_new && self.resumes && matches!(type_url, TypeUrl::Cluster | TypeUrl::Endpoint) {
                        self.stream.hold(&type_url, true);
                    }
                    said.push(Said::Wants { type_url, names, held });
                }
                Event::Unsubscribed { .. } => said.push(Said::Unwanted),
                Event::Ack { type_url, .. } => self.note_answer(&type_url, false),
                Event::Nack { type_url, message, .. } => {
                    counts.on_reject(&type_url);
                    self.note_answer(&type_url, true);
                    said.push(Said::Refused { type_url, message });
                }
            }
        }
        if !hosts.is_empty() {
            said.push(Said::Wants { type_url: TypeUrl::VirtualHost, names: hosts, held: Vec::new() });
        }
        said
    }

    /// Takes out of a request the hosts by which it asks for virtual hosts: what the stream knows is that
    /// the proxy takes all that its like are known to use.
    fn take_hosts(&mut self, request: &mut Request, said: &mut Vec<Said>) -> Vec<Name> {
        let Request::Delta(request) = request else { return Vec::new() };
        if request.type_url != TypeUrl::VirtualHost.as_str() || !self.key.asks_for_hosts() {
            return Vec::new();
        }
        let gone = std::mem::take(&mut request.resource_names_unsubscribe);
        gone.iter().for_each(|name| self.asked_hosts.remove(name));
        if !gone.is_empty() {
            said.push(Said::Unwanted);
        }
        let asked = std::mem::take(&mut request.resource_names_subscribe);
        if self.stream.subscription(&TypeUrl::VirtualHost).is_none() {
            request.resource_names_subscribe.push(WILDCARD.to_owned());
        }
        let asked = asked.into_iter().filter(|name| name != WILDCARD).map(Name::from);
        let mut room = MOST_HOSTS.saturating_sub(self.asked_hosts.len());
        let (asked, denied): (Vec<_>, Vec<_>) = asked.partition(|name| {
            let is_new = !self.asked_hosts.contains(name);
            let has_room = !is_new || (name.len() <= MOST_HOST && room > 0);
            room -= usize::from(is_new && has_room);
            has_room
        });
        if !denied.is_empty() {
            self.deny_hosts(denied);
            self.owe(&TypeUrl::VirtualHost);
        }
        asked
    }

    /// Notes hosts that the proxy has asked for.
    pub(crate) fn await_hosts(&mut self, answers: Vec<AskedHost>) {
        answers.iter().for_each(|answer| self.asked_hosts.insert(answer.clone()));
        self.awaited_hosts.extend(answers);
    }

    /// Notes hosts of which the proxy is to be told that there is nothing, which is all that is known of
    /// them.
    pub(crate) fn deny_hosts(&mut self, hosts: Vec<Name>) {
        tracing::debug!(node = self.node, hosts = hosts.len(), "too many or too long hosts are asked for");
        self.denied_hosts.extend(hosts);
    }

    /// Whether the proxy has asked for the virtual host that is learnt by a name: it does not ask again
    /// when it goes, and takes it that there is none from then on.
    pub(crate) fn asks_for_host(&self, name: &Name) -> bool {
        self.asked_hosts.names(name)
    }

    fn note_answer(&mut self, type_url: &TypeUrl, refused: bool) {
        if !self.stream.is_outstanding(type_url) {
            self.tracks.answered(type_url, refused);
        }
    }

    /// When a response of a type was sent last.
    pub(crate) fn sent_at(&self, type_url: &TypeUrl) -> Option<SystemTime> {
        self.sent_at.get(type_url).copied()
    }

    /// The changes that have come to an end here since this was asked last. Notes if it was the last
    /// that was open.
    pub(crate) fn take_ends(&mut self, now: Instant, counts: &mut Counts) -> Ends {
        let ends = self.tracks.take_ends();
        if self.tracks.is_empty()
            && let Some(since) = self.stale_since.take()
        {
            counts.on_converged(now.saturating_duration_since(since));
        }
        ends
    }

    /// Notes that the proxy has asked for resources.
    pub(crate) fn owe(&mut self, type_url: &TypeUrl) {
        self.pending.insert(type_url.clone());
    }

    /// Notes which credentials the proxy may have; true if that has changed and it wants some.
    pub(crate) fn set_clearance(&mut self, clearance: Clearance) -> bool {
        let changed = std::mem::replace(&mut self.clearance, clearance) != clearance;
        changed && self.on_changed(&TypeUrl::Secret, None, None)
    }

    /// Notes that resources have changed, those with some names or any, by a change of the sources if
    /// by one; false if the proxy does not want them.
    pub(crate) fn on_changed(
        &mut self,
        type_url: &TypeUrl,
        names: Option<&[String]>,
        cause: Option<Cause>,
    ) -> bool {
        let Some(subscription) = self.stream.subscription(type_url) else { return false };
        if names.is_some_and(|names| !names.iter().any(|name| subscription.wants(name))) {
            return false;
        }
        if !self.pending.contains(type_url) {
            self.pending.insert(type_url.clone());
        }
        if let Some(cause) = cause {
            self.tracks.mark(cause.change, type_url);
            self.stale_since.get_or_insert(cause.at);
        }
        true
    }

    /// All that the proxy has asked for.
    pub(crate) fn wanted(&self) -> Vec<(TypeUrl, Vec<Name>)> {
        let wanted = self.stream.subscriptions();
        wanted.map(|(type_url, wanted)| (type_url.clone(), wanted.names().cloned().collect())).collect()
    }

    /// Whether the proxy wants a resource.
    pub(crate) fn wants(&self, type_url: &TypeUrl, name: &str) -> bool {
        self.stream.subscription(type_url).is_some_and(|subscription| subscription.wants(name))
    }

    /// Whether the proxy asks for a resource by its name, whatever else it wants.
    pub(crate) fn asks_for(&self, type_url: &TypeUrl, name: &str) -> bool {
        self.stream.subscription(type_url).is_some_and(|subscription| subscription.names_one(name))
    }

    /// Whether the proxy may not have the newest of a type: it was not told yet or has not answered.
    pub(crate) fn is_behind(&self, type_url: &TypeUrl) -> bool {
        self.pending.contains(type_url) || self.stream.is_outstanding(type_url)
    }

    /// Whether there is something to tell when time has passed.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty() || !self.lingering.is_empty() || self.resumes
    }

    /// The refusals that stand, by type.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&TypeUrl, &str)> {
        self.stream
            .subscriptions()
            .filter_map(|(type_url, subscription)| Some((type_url, subscription.rejection()?)))
    }

    /// Sends what can be sent now.
    pub(crate) fn pump(&mut self, group: &Group, view: &View, now: Instant, counts: &mut Counts) {
        if !self.pending.is_empty() {
            self.pending_since.get_or_insert(now);
        }
        while self.sender.is_ready() {
            let Some(type_url) = self.next(view, now) else { break };
            self.pending.remove(&type_url);
            let start = System.now();
            let response = self.respond(group, view, &type_url);
            if type_url == TypeUrl::Cluster && self.stream.is_owed(&TypeUrl::Endpoint) {
                // A cluster that has changed needs its endpoints again, changed or not.
                self.pending.insert(TypeUrl::Endpoint);
            }
            self.tracks.sent(&type_url, response.is_some());
            let Some(response) = response else { continue };
            let bytes = response.resources.iter().map(|resource| resource.body.len()).sum();
            if self.sender.send(response).is_err() {
                // The stream has ended; that it has will be told.
                return;
            }
            counts.on_push(&type_url, start.elapsed(), bytes);
            self.sent_at.insert(type_url, System.wall());
        }
        if self.pending.is_empty()
            && let Some(since) = self.pending_since.take()
        {
            counts.on_sent(now.saturating_duration_since(since));
        }
    }

    /// The type to tell about next, if there is one that need not wait.
    fn next(&mut self, view: &View, now: Instant) -> Option<TypeUrl> {
        let mut held = false;
        let mut next = None;
        for type_url in &self.pending {
            // An answer that was asked for is given; anything else waits for the answer to the last.
            let is_owed =
                self.stream.is_owed(type_url) || (*type_url == TypeUrl::VirtualHost && self.owes_hosts());
            if self.stream.is_outstanding(type_url) && !is_owed {
                continue;
            }
            if *type_url == TypeUrl::Secret && self.clearance == Clearance::Pending {
                continue;
            }
            let upper = matches!(type_url, TypeUrl::Listener | TypeUrl::Route | TypeUrl::VirtualHost);
            if upper && !self.is_settled_below() && !self.is_impatient(now) {
                held = true;
                continue;
            }
            next = Some(type_url.clone());
            break;
        }
        if next.is_some() && self.is_impatient(now) {
            // What was waited for will not come.
            self.awaiting.clear();
        }
        if self.resumes && next.is_none() && self.has_resumed(now) {
            self.resumes = false;
            for type_url in [TypeUrl::Cluster, TypeUrl::Endpoint] {
                self.stream.hold(&type_url, false);
            }
            self.pending.insert(TypeUrl::Endpoint);
            return Some(TypeUrl::Cluster);
        }
        if next.is_none() && self.pending.is_empty() && !self.lingering.is_empty() {
            let mut upper = TypeUrl::KNOWN.iter().filter(|type_url| **type_url <= TypeUrl::VirtualHost);
            let taken = upper.all(|type_url| !self.stream.is_outstanding(type_url));
            if taken || self.is_impatient(now) {
                let since = *self.lingering_since.get_or_insert(now);
                let is_over = now.saturating_duration_since(since) >= REFERENCE_PATIENCE;
                // Those that the newest routes lead to stay until others come.
                if is_over || !self.lingering.keys().any(|name| view.leads_to(name)) {
                    self.lingering.clear();
                    self.lingering_since = None;
                    self.held_since = None;
                    return Some(TypeUrl::Cluster);
                }
            } else {
                held = true;
            }
        }
        match (held, next.is_some()) {
            (true, _) => drop(self.held_since.get_or_insert(now)),
            (false, false) if self.pending.is_empty() => self.held_since = None,
            (false, _) => {}
        }
        next
    }

    /// Whether hosts that were asked for are to be answered.
    fn owes_hosts(&self) -> bool {
        !self.awaited_hosts.is_empty() || !self.denied_hosts.is_empty()
    }

    /// Whether a proxy that has come back has all listeners and routes of now, or has had its time.
    fn has_resumed(&mut self, now: Instant) -> bool {
        let since = *self.resumes_since.get_or_insert(now);
        let has_taken = |type_url: &TypeUrl| {
            self.stream.subscription(type_url).is_some()
                && !self.stream.is_outstanding(type_url)
                && !self.stream.is_owed(type_url)
        };
        now.saturating_duration_since(since) >= REFERENCE_PATIENCE
            || (self.pending.is_empty() && [TypeUrl::Listener, TypeUrl::Route].iter().all(has_taken))
    }

    fn is_impatient(&self, now: Instant) -> bool {
        self.held_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE)
    }

    /// Whether the proxy has taken all clusters and their endpoints.
    fn is_settled_below(&self) -> bool {
        self.awaiting.is_empty()
            && [TypeUrl::Cluster, TypeUrl::Endpoint].iter().all(|type_url| {
                !self.pending.contains(type_url)
                    && !self.stream.is_outstanding(type_url)
                    && !self.stream.is_owed(type_url)
            })
    }

    /// What the proxy should have of a type, as far as it or its like have asked for it.
    pub(crate) fn resources<'r>(
        &self,
        group: &'r Group,
        view: &'r View,
        type_url: &TypeUrl,
    ) -> &'r Resources {
        match type_url {
            TypeUrl::Secret => view.secrets(self.clearance),
            _ => group.resources(view, type_url),
        }
    }

    fn respond(&mut self, group: &Group, view: &View, type_url: &TypeUrl) -> Option<Response> {
        let resources = self.resources(group, view, type_url);
        if *type_url == TypeUrl::VirtualHost {
            return self.respond_with_hosts(resources, view);
        }
        if *type_url != TypeUrl::Cluster {
            return self.stream.push(type_url, resources, Scope::All);
        }
        self.note_gone(resources);
        let response = if self.lingering.is_empty() {
            self.stream.push(type_url, resources, Scope::All)
        } else {
            let mut resources = resources.clone();
            for cluster in self.lingering.values() {
                resources.insert(cluster.clone());
            }
            self.stream.push(type_url, &resources, Scope::All)
        }?;
        self.note_awaited(view, &response);
        Some(response)
    }

    /// Answers hosts that were asked for, whether or not the proxy has the virtual hosts: who waits goes on
    /// when the answer names what he waits for.
    fn respond_with_hosts(&mut self, hosts: &Resources, view: &View) -> Option<Response> {
        let mut aliases: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
        for AskedHost { asked, learnt, .. } in std::mem::take(&mut self.awaited_hosts) {
            if let Some(host) = view.host(&learnt) {
                let aliases = aliases.entry(host.wire.name.clone()).or_default();
                if !aliases.contains(&asked) {
                    aliases.push(asked);
                }
            }
        }
        let names: Vec<Name> = aliases.keys().cloned().collect();
        self.stream.ask_again(&TypeUrl::VirtualHost, &names);
        self.stream.answer(&TypeUrl::VirtualHost, std::mem::take(&mut self.denied_hosts));
        let mut response = self.stream.push(&TypeUrl::VirtualHost, hosts, Scope::All)?;
        for (name, aliases) in &mut aliases {
            aliases.retain(|alias| alias != name);
        }
        response.aliases = aliases;
        Some(response)
    }

    /// Compares the clusters with those last sent: what has gone lingers.
    fn note_gone(&mut self, now: &Resources) {
        for (name, present) in now.changes_since(&self.sent_clusters) {
            if present.is_some() {
                self.lingering.remove(&name);
            } else if let Some(cluster) = self.sent_clusters.find(&name) {
                self.lingering.insert(name, cluster.clone());
                // Each that goes has its time.
                self.lingering_since = None;
            }
        }
        self.sent_clusters = now.clone();
    }

    /// Notes whose endpoints the proxy will ask for before it can use the clusters of a response.
    fn note_awaited(&mut self, view: &View, response: &Response) {
        let endpoints = self.stream.subscription(&TypeUrl::Endpoint);
        if response.mode == Mode::Sotw {
            self.awaiting.clear();
        }
        for name in &response.removed {
            self.awaiting.remove(name);
        }
        for cluster in &response.resources {
            let asked = endpoints.is_some_and(|endpoints| endpoints.wants(&cluster.name));
            if !asked && view.needs_endpoints(&cluster.name) {
                self.awaiting.insert(cluster.name.clone());
            }
        }
    }
}
