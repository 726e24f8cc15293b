//! The control plane's side of xDS: what one stream asks for, has been sent and has accepted.
//!
//! [`Stream`] is a state machine, one for each connected proxy. The control loop feeds it requests
//! ([`Stream::on_request`]), acts on the [`Event`]s, and asks it what to send with
//! [`Stream::push`], handing it the resources as they are now: the stream knows what its client
//! has, and makes the smallest response that brings it up to date, or none. Pushing too often is
//! therefore harmless, and a push may be put off at will: only the last state counts.
//!
//! What is easy to get wrong, and is done here:
//!
//! - a SotW request with a stale nonce is not answered, though its list of names counts; in delta
//!   the nonce only concerns the acknowledgement;
//! - in delta a client that subscribes to what it has, wants it again, and one that asks for what
//!   does not exist is told so by `removed_resources`; in SotW it waits;
//! - the first request of a delta stream may say what the client still has from another stream;
//! - an empty list of names means everything in the first request of a type, and later nothing;
//! - Envoy needs a cluster's endpoints again when the cluster has changed, even if they have not.
//!   In SotW it asks for them, but the request may look like an acknowledgement or be stale; in
//!   delta it does not even ask. So after clusters were sent, endpoints are sent again.
//!
//! What thousands of streams know of thousands of resources would be large if each kept lists of its
//! own. Nearly all know the same, so each keeps the state that it was last brought up to, which is
//! shared, and the difference from it; see [`Resources`].
//!
//! Read next: [`subscription`] (private), the state of one type; [`grpc`], the shell,
//! and [`listen`], the server around it; [`room`] bounds the connections of other ports,
//! and [`unix_authority`] is for the clients of Unix sockets.

pub mod grpc;
pub mod listen;
mod overlay;
mod requests;
mod resources;
pub mod room;
mod subscription;
pub mod unix_authority;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use leno_base::Name;

use crate::types::{Mode, TypeUrl, WILDCARD};
use crate::wire::{Request, Response};
pub use resources::Resources;
use subscription::SotwRequest;
pub use subscription::Subscription;

/// Which resources a push has to look at.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Any may have changed.
    All,
    /// Only these may have changed, appeared or gone since the last push of the type; what the
    /// client is still owed is looked at as well. For SotW of LDS and CDS the resources handed
    /// over must be complete all the same.
    Changed(&'a [Name]),
}

/// What a request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client wants something that it has not been sent on this stream, or wants it again:
    /// push the type.
    Subscribed {
        /// The type.
        type_url: TypeUrl,
        /// Names that are wanted now, new or again.
        names: Vec<Name>,
        /// True if everything is wanted now, new or again.
        wildcard: bool,
        /// True for the first request of the type on this stream.
        is_new: bool,
    },
    /// The client does not want something any more. Nothing has to be sent, unless
    /// [`Stream::is_owed`] says so.
    Unsubscribed {
        /// The type.
        type_url: TypeUrl,
        /// Names that are not wanted any more.
        names: Vec<Name>,
        /// True if not everything is wanted any more.
        wildcard: bool,
    },
    /// The client accepted the last response, or (delta) one of them.
    Ack {
        /// The type.
        type_url: TypeUrl,
        /// Version of the accepted response.
        version: Name,
        /// Its nonce.
        nonce: Name,
    },
    /// The client rejected a response and keeps what it had. The resources are not sent again
    /// until they change.
    Nack {
        /// The type.
        type_url: TypeUrl,
        /// Version of the rejected response.
        version: Name,
        /// Its nonce.
        nonce: Name,
        /// The client's words.
        message: String,
    },
}

/// The state of one stream.
#[derive(Debug)]
pub struct Stream {
    mode: Mode,
    control_plane: Name,
    subscriptions: BTreeMap<TypeUrl, Subscription>,
    next_nonce: u64,
}

impl Stream {
    /// A stream on which nothing was asked for yet. `control_plane` is sent as
    /// `control_plane.identifier` unless it is empty.
    pub fn new(mode: Mode, control_plane: Name) -> Self {
        Self { mode, control_plane, subscriptions: BTreeMap::new(), next_nonce: 1 }
    }

    /// The variant that the client speaks.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What was asked for, by type in push order.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&TypeUrl, &Subscription)> {
        self.subscriptions.iter()
    }

    /// What was asked for of one type.
    pub fn subscription(&self, type_url: &TypeUrl) -> Option<&Subscription> {
        self.subscriptions.get(type_url)
    }

    /// True if the client waits for an answer that a push would give, whether or not any resource
    /// has changed.
    pub fn is_owed(&self, type_url: &TypeUrl) -> bool {
        self.subscriptions.get(type_url).is_some_and(Subscription::is_owed)
    }

    /// True if the last response of this type has been neither accepted nor rejected. A control
    /// loop may wait for that before it sends another: then a slow proxy gets the newest state
    /// and none of those in between.
    pub fn is_outstanding(&self, type_url: &TypeUrl) -> bool {
        self.subscriptions.get(type_url).is_some_and(Subscription::is_outstanding)
    }

    /// True if a request answers a response that is not the last of its type.
    pub fn is_late(&self, request: &Request) -> bool {
        let nonce = match request {
            Request::Sotw(request) => &request.response_nonce,
            Request::Delta(request) => &request.response_nonce,
        };
        let last = self.subscriptions.get(&TypeUrl::from(request.type_url())).map(Subscription::nonce);
        !nonce.is_empty() && last.is_some_and(|last| !last.is_empty() && last.as_str() != nonce)
    }

    /// Reads a request. A request of the other variant, which no transport delivers, is ignored.
    pub fn on_request(&mut self, request: Request) -> Vec<Event> {
        match (self.mode, request) {
            (Mode::Sotw, Request::Sotw(request)) => self.on_sotw(request),
            (Mode::Delta, Request::Delta(request)) => self.on_delta(request),
            _ => Vec::new(),
        }
    }

    fn on_sotw(&mut self, request: DiscoveryRequest) -> Vec<Event> {
        let type_url = TypeUrl::from(request.type_url.as_str());
        let is_new = !self.subscriptions.contains_key(&type_url);
        let subscription = self.subscriptions.entry(type_url.clone()).or_default();
        let mut events = Vec::new();
        let names: Vec<Name> = request.resource_names.into_iter().map(Name::from).collect();
        let kind = if is_new {
            // A nonce on a new stream is from an old one (a client that resumes): nothing to settle.
            SotwRequest::First
        } else if request.response_nonce.is_empty() {
            SotwRequest::Current
        } else if request.response_nonce != subscription.nonce().as_str() {
            SotwRequest::Stale
        } else {
            let error = request.error_detail.map(|status| status.message);
            let repeated = !subscription.is_outstanding() && error.is_none();
            events.extend(subscription.settle(&type_url, &request.response_nonce, error));
            if repeated { SotwRequest::Repeated } else { SotwRequest::Current }
        };
        let change = subscription.replace_names(names, kind);
        events.extend(change.into_events(type_url, is_new));
        events
    }

    fn on_delta(&mut self, request: DeltaDiscoveryRequest) -> Vec<Event> {
        let type_url = TypeUrl::from(request.type_url.as_str());
        let is_new = !self.subscriptions.contains_key(&type_url);
        let subscription = self.subscriptions.entry(type_url.clone()).or_default();
        let mut events = Vec::new();
        if !request.response_nonce.is_empty() {
            let error = request.error_detail.map(|status| status.message);
            events.extend(subscription.settle(&type_url, &request.response_nonce, error));
        }
        if is_new {
            let known = request.initial_resource_versions.into_iter();
            subscription.resume(known.map(|(name, version)| (Name::from(name), Name::from(version))));
        }
        let subscribe = request.resource_names_subscribe.into_iter().map(Name::from).collect();
        let unsubscribe = request.resource_names_unsubscribe.into_iter().map(Name::from).collect();
        let change = subscription.change_names(subscribe, unsubscribe, is_new);
        events.extend(change.into_events(type_url, is_new));
        events
    }

    /// Makes the response that brings the client up to date with `resources`, if it needs one.
    /// The stream takes it as sent: a response that is not sent afterwards is lost, and so is
    /// the stream.
    pub fn push(&mut self, type_url: &TypeUrl, resources: &Resources, scope: Scope<'_>) -> Option<Response> {
        let whole = self.mode == Mode::Sotw && type_url.is_whole_in_sotw();
        let subscription = self.subscriptions.get_mut(type_url)?;
        let (added, removed, changed) = match (self.mode, whole) {
            (Mode::Delta, _) => subscription.plan_delta(resources, scope)?,
            (Mode::Sotw, true) => subscription.plan_whole(resources)?,
            (Mode::Sotw, false) => subscription.plan_some(resources, scope)?,
        };
        let nonce = Name::from(self.next_nonce.to_string());
        self.next_nonce += 1;
        subscription.sent(nonce.clone(), resources.version().clone());
        if *type_url == TypeUrl::Cluster
            && let Some(endpoints) = self.subscriptions.get_mut(&TypeUrl::Endpoint)
        {
            match self.mode {
                Mode::Sotw => endpoints.clusters_sent(),
                Mode::Delta => endpoints.ask_again(&changed),
            }
        }
        Some(Response {
            mode: self.mode,
            type_url: type_url.clone(),
            version: resources.version().clone(),
            nonce,
            resources: added,
            removed,
            aliases: BTreeMap::new(),
            control_plane: self.control_plane.clone(),
            packed: false,
        })
    }

    /// Delta: whether nothing is taken away for now of what the client has of a type, though it has gone:
    /// a client that comes back may use it until it has been told of what does without.
    pub fn hold(&mut self, type_url: &TypeUrl, holds: bool) {
        if let Some(subscription) = self.subscriptions.get_mut(type_url) {
            subscription.hold(holds);
        }
    }

    /// Makes the next push of a type send these again, as far as they are subscribed, although
    /// the client has them.
    pub fn ask_again(&mut self, type_url: &TypeUrl, names: &[Name]) {
        if let Some(subscription) = self.subscriptions.get_mut(type_url) {
            subscription.ask_again(names);
        }
    }

    /// Makes the next push of a type answer these, as if they were asked for this once and not subscribed.
    pub fn answer(&mut self, type_url: &TypeUrl, names: Vec<Name>) {
        if let Some(subscription) = self.subscriptions.get_mut(type_url) {
            subscription.answer(names);
        }
    }
}

/// What a request changes in a subscription.
#[derive(Debug, Default)]
struct Change {
    wanted: Vec<Name>,
    unwanted: Vec<Name>,
    wildcard_wanted: bool,
    wildcard_unwanted: bool,
}

impl Change {
    fn into_events(self, type_url: TypeUrl, is_new: bool) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.unwanted.is_empty() || self.wildcard_unwanted {
            events.push(Event::Unsubscribed {
                type_url: type_url.clone(),
                names: self.unwanted,
                wildcard: self.wildcard_unwanted,
            });
        }
        if is_new || !self.wanted.is_empty() || self.wildcard_wanted {
            events.push(Event::Subscribed {
                type_url,
                names: self.wanted,
                wildcard: self.wildcard_wanted,
                is_new,
            });
        }
        events
    }
}

fn is_wildcard(name: &Name) -> bool {
    name.as_str() == WILDCARD
}
