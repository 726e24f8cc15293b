//! The proxy's side of xDS: what to ask for, what came, what was accepted.
//!
//! [`Client`] is a state machine: the shell ([`grpc`]) tells it what happens, with the time, and
//! takes requests from [`Client::next_request`]. Its behaviour is that of Envoy's gRPC mux:
//!
//! - an [`Update`] is handed out and must be answered, once it has been lowered, with
//!   [`Client::ack`] or [`Client::nack`]; a rejected one leaves the accepted version in force;
//! - after a reconnect the first request of a type tells what is already held (the accepted
//!   `version_info` in SotW, `initial_resource_versions` in delta);
//! - while an update of a type is worked on, requests of the types that depend on it wait
//!   ([`TypeUrl::pauses`]), so that they go out once, with the final list of names;
//! - a subscription that gets no answer in time is reported by [`Client::on_deadline`], and stays;
//! - a resource with a time to live (`Resource.ttl`) that is not sent again in time is reported by
//!   [`Client::outlived`]; a heartbeat, which is a resource without a message, only prolongs it.
//!
//! Read next: [`topic`] (private) for the state of one type.

pub mod grpc;
mod topic;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use leno_api::proto::envoy::config::core::v3::Node;
use leno_base::{Backoff, Name, Rng};

use crate::types::{Mode, Resource, TypeUrl};
use crate::wire::{Any, Received, ReceivedDelta, ReceivedSotw, Request, peek_name};
use topic::{Answer, Topic};

/// Longest error text in a NACK, in bytes; Envoy cuts at the same length.
const MAX_ERROR_LEN: usize = 4096;

/// How a client introduces itself and behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Variant of the protocol (`api_type` `GRPC` or `DELTA_GRPC`).
    pub mode: Mode,
    /// Who the proxy is.
    pub node: Node,
    /// Send the node in the first request of a stream only
    /// (`ApiConfigSource.set_node_on_first_message_only`).
    pub node_on_first_message_only: bool,
    /// Bound of the first wait before a reconnect (Envoy: 500 ms).
    pub backoff_base: Duration,
    /// Bound of every wait before a reconnect (Envoy: 30 s).
    pub backoff_max: Duration,
}

impl Config {
    /// Envoy's defaults for the given variant and node.
    pub fn new(mode: Mode, node: Node) -> Self {
        Self {
            mode,
            node,
            node_on_first_message_only: false,
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
        }
    }
}

/// What of a type is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Everything that the server has for this node.
    Wildcard,
    /// The resources of these names.
    Names(Vec<Name>),
}

impl Interest {
    /// Interest in one resource.
    pub fn name(name: impl Into<Name>) -> Self {
        Self::Names(vec![name.into()])
    }
}

/// What a response changes. Must be answered with its receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The type of everything in it.
    pub type_url: TypeUrl,
    /// Version of the response.
    pub version: Name,
    /// Added and changed resources. In SotW, unchanged ones are among them.
    pub added: Vec<Resource>,
    /// What does not exist (any more). In SotW this is computed from absence, for LDS and CDS.
    pub removed: Vec<Name>,
    /// Virtual hosts that were asked for under other names than those of `added` and `removed`, with what
    /// they are called; that there may be none of.
    pub answered: Vec<(Name, Name)>,
    /// True if `added` is the whole state of the type (SotW of LDS and CDS).
    pub full: bool,
    /// For [`Client::ack`] and [`Client::nack`].
    pub receipt: Receipt,
}

/// Identifies an update. One that outlives its stream is still good: it records what the proxy
/// holds, and nothing is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The type of the update.
    pub type_url: TypeUrl,
    stream: u64,
    serial: u64,
}

/// Why an update was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What the server is told (`error_detail.message`); cut at 4096 bytes.
    pub message: String,
    /// The resources that were rejected; the others of the update are in force. Empty: all were
    /// rejected.
    pub rejected: Vec<Name>,
}

impl Rejection {
    /// Nothing of the update was accepted.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { message: message.into(), rejected: Vec::new() }
    }

    /// Some resources were rejected, each for a reason of its own.
    pub fn of_resources(errors: Vec<(Name, String)>) -> Self {
        let message = errors.iter().map(|(name, error)| format!("{name}: {error}"));
        let message = message.collect::<Vec<_>>().join("\n");
        Self { message, rejected: errors.into_iter().map(|(name, _)| name).collect() }
    }
}

/// A subscription that had no answer within its `initial_fetch_timeout`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The type that was subscribed.
    pub type_url: TypeUrl,
    /// What did not come. The subscription goes on.
    pub interest: Interest,
}

/// The client's state, over all streams of its life.
#[derive(Debug)]
pub struct Client {
    config: Config,
    topics: BTreeMap<TypeUrl, Topic>,
    backoff: Backoff,
    /// Number of the current or last stream; the first is 1.
    stream: u64,
    connected: bool,
    node_sent: bool,
    next_serial: u64,
}

impl Client {
    /// A client that is not connected and wants nothing. `rng` is for the jitter of reconnects.
    pub fn new(config: Config, rng: Rng) -> Self {
        let backoff = Backoff::new(config.backoff_base, config.backoff_max, rng);
        Self {
            config,
            topics: BTreeMap::new(),
            backoff,
            stream: 0,
            connected: false,
            node_sent: false,
            next_serial: 0,
        }
    }

    /// The variant that this client speaks.
    pub fn mode(&self) -> Mode {
        self.config.mode
    }

    /// True between [`Client::on_connected`] and [`Client::on_disconnected`].
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Adds to what is wanted; what was wanted before stays as it is. If `timeout`
    /// (`initial_fetch_timeout`) is given and not zero, what has not been answered by then is
    /// reported once by [`Client::on_deadline`].
    pub fn subscribe(
        &mut self,
        now: Instant,
        type_url: &TypeUrl,
        interest: &Interest,
        timeout: Option<Duration>,
    ) {
        let deadline = timeout.filter(|timeout| !timeout.is_zero()).map(|timeout| now + timeout);
        let topic = self.topic(type_url);
        match interest {
            Interest::Wildcard => topic.subscribe_wildcard(deadline),
            Interest::Names(names) => topic.subscribe(names, deadline),
        }
    }

    /// Takes from what is wanted, and forgets the versions of what is not wanted any more.
    pub fn unsubscribe(&mut self, type_url: &TypeUrl, interest: &Interest) {
        let Some(topic) = self.topics.get_mut(type_url) else { return };
        match interest {
            Interest::Wildcard => topic.unsubscribe_wildcard(),
            Interest::Names(names) => topic.unsubscribe(names),
        }
    }

    /// Asks the server to send subscribed resources again although it has sent them before.
    pub fn refresh(&mut self, type_url: &TypeUrl, names: &[Name]) {
        if let Some(topic) = self.topics.get_mut(type_url) {
            topic.refresh(names);
        }
    }

    /// Holds back requests of a type, acknowledgements included, until as many calls of
    /// [`Client::resume`] were made.
    pub fn pause(&mut self, type_url: &TypeUrl) {
        self.topic(type_url).paused += 1;
    }

    /// Takes back one [`Client::pause`].
    pub fn resume(&mut self, type_url: &TypeUrl) {
        if let Some(topic) = self.topics.get_mut(type_url) {
            topic.paused = topic.paused.saturating_sub(1);
        }
    }

    /// A stream is open: every subscription is to be stated on it.
    pub fn on_connected(&mut self) {
        self.stream += 1;
        self.connected = true;
        self.node_sent = false;
        for topic in self.topics.values_mut() {
            topic.on_connected();
        }
    }

    /// The stream ended, or could not be opened. Returns how long to wait before the next try.
    pub fn on_disconnected(&mut self) -> Duration {
        self.connected = false;
        self.backoff.next_wait()
    }

    /// A response came. Returns what it changes; nothing if it was malformed (then a NACK is due)
    /// or about something that nobody wants.
    pub fn on_response(&mut self, now: Instant, response: Received) -> Option<Update> {
        // The server works: the next loss starts with the shortest wait.
        self.backoff.reset();
        let (type_url, nonce, content) = match response {
            Received::Sotw(response) => {
                (TypeUrl::from(response.type_url.as_str()), Name::new(&response.nonce), read_sotw(response))
            }
            Received::Delta(response) => {
                let (type_url, nonce) =
                    (TypeUrl::from(response.type_url.as_str()), Name::new(&response.nonce));
                (type_url, nonce, read_delta(response))
            }
        };
        let Some(topic) = self.topics.get_mut(&type_url) else {
            tracing::warn!(%type_url, "xDS response of a type that was never subscribed: ignored");
            return None;
        };
        topic.on_nonce(&nonce);
        let mut content = match content {
            Ok(content) => content,
            Err(message) => {
                tracing::warn!(%type_url, %nonce, message, "malformed xDS response");
                topic.answers.push_back(Answer { nonce, error: Some(message) });
                return None;
            }
        };
        topic.live(now, &content);
        // While an update is worked on, what has gone since must be told, wanted or not: it may be
        // wanted again by the time of the verdict.
        if !topic.is_wanted() && !topic.has_handed_out() {
            topic.answers.push_back(Answer { nonce, error: None });
            return None;
        }
        let full = self.config.mode == Mode::Sotw && type_url.is_whole_in_sotw();
        self.next_serial += 1;
        let receipt = Receipt { type_url: type_url.clone(), stream: self.stream, serial: self.next_serial };
        let version = content.version.clone();
        let answered = std::mem::take(&mut content.answered);
        let (added, removed) = topic.hand_out(content, nonce, &receipt, full);
        for dependent in type_url.pauses() {
            self.pause(dependent);
        }
        Some(Update { type_url, version, added, removed, answered, full, receipt })
    }

    /// The update is in force. Receipts of one type are to be answered in the order of the
    /// updates; a second answer is ignored.
    pub fn ack(&mut self, receipt: &Receipt) {
        self.answer(receipt, None);
    }

    /// The update, or a part of it, was rejected; what was accepted before stays in force.
    pub fn nack(&mut self, receipt: &Receipt, rejection: &Rejection) {
        self.answer(receipt, Some(rejection));
    }

    fn answer(&mut self, receipt: &Receipt, rejection: Option<&Rejection>) {
        let on_this_stream = self.connected && receipt.stream == self.stream;
        let Some(topic) = self.topics.get_mut(&receipt.type_url) else { return };
        if !topic.settle(receipt, rejection, on_this_stream) {
            return;
        }
        for dependent in receipt.type_url.pauses() {
            self.resume(dependent);
        }
    }

    fn topic(&mut self, type_url: &TypeUrl) -> &mut Topic {
        let mode = self.config.mode;
        self.topics.entry(type_url.clone()).or_insert_with(|| Topic::new(mode, type_url))
    }

    /// True if [`Client::next_request`] has something.
    pub fn has_request(&self) -> bool {
        self.connected && self.topics.values().any(Topic::has_request)
    }

    /// The next request to send, types in push order. Call it until it is `None`, or as the
    /// transport has room: what is not taken is merged with what comes later.
    pub fn next_request(&mut self) -> Option<Request> {
        if !self.connected {
            return None;
        }
        let (type_url, topic) = self.topics.iter_mut().find(|(_, topic)| topic.has_request())?;
        let node =
            (!self.config.node_on_first_message_only || !self.node_sent).then(|| self.config.node.clone());
        self.node_sent = true;
        Some(match self.config.mode {
            Mode::Sotw => Request::Sotw(topic.sotw_request(type_url, node)),
            Mode::Delta => Request::Delta(topic.delta_request(type_url, node)),
        })
    }

    /// When [`Client::on_deadline`] and [`Client::outlived`] want to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.topics.values().filter_map(Topic::deadline).min()
    }

    /// What has outlived its time to live, each once. Call it when [`Client::deadline`] has come.
    pub fn outlived(&mut self, now: Instant) -> Vec<(TypeUrl, Vec<Name>)> {
        let outlived =
            self.topics.iter_mut().map(|(type_url, topic)| (type_url.clone(), topic.outlived(now)));
        outlived.filter(|(_, names)| !names.is_empty()).collect()
    }

    /// Reports subscriptions whose time is up, each once.
    pub fn on_deadline(&mut self, now: Instant) -> Vec<Expired> {
        let mut expired = Vec::new();
        for (type_url, topic) in &mut self.topics {
            expired.extend(
                topic
                    .expire(now)
                    .into_iter()
                    .map(|interest| Expired { type_url: type_url.clone(), interest }),
            );
        }
        expired
    }

    /// Names and versions that were accepted, in order of the names. An empty version: the last
    /// update of the resource was rejected.
    pub fn accepted(&self, type_url: &TypeUrl) -> impl Iterator<Item = (&Name, &Name)> {
        self.topics.get(type_url).into_iter().flat_map(|topic| topic.versions.iter())
    }

    /// The version of the last response of this type that was accepted.
    pub fn accepted_version(&self, type_url: &TypeUrl) -> Option<&Name> {
        self.topics.get(type_url).and_then(|topic| topic.version.as_ref())
    }
}

/// What a well-formed response says, in either variant.
#[derive(Debug)]
struct Content {
    version: Name,
    resources: Vec<Resource>,
    removed: Vec<Name>,
    /// See [`Update::answered`].
    answered: Vec<(Name, Name)>,
    /// How long what is in it lives, heartbeats included; `None`: for ever.
    lives: Vec<(Name, Option<Duration>)>,
}

/// The version and the resources of a `DiscoveryResponse` that lies in a file: all of them must be
/// of this type.
///
/// # Errors
/// What is malformed.
pub fn read_file(type_url: &TypeUrl, mut response: ReceivedSotw) -> Result<(Name, Vec<Resource>), String> {
    type_url.as_str().clone_into(&mut response.type_url);
    let content = read_sotw(response)?;
    Ok((content.version, content.resources))
}

fn read_sotw(response: ReceivedSotw) -> Result<Content, String> {
    const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";
    let version = Name::from(response.version_info);
    let mut content = Content {
        version: version.clone(),
        resources: Vec::new(),
        removed: Vec::new(),
        answered: Vec::new(),
        lives: Vec::new(),
    };
    let mut seen = HashSet::new();
    for any in response.resources {
        // A SotW resource comes bare, or in a wrapper that adds a name and a time to live.
        let (name, ttl, any) = if any.type_url == WRAPPER {
            let wrapper: crate::wire::ReceivedResource = prost::Message::decode(any.value)
                .map_err(|error| format!("malformed resource wrapper: {error}"))?;
            let (name, ttl) = (Name::from(wrapper.name), wrapper.ttl.map(time_to_live));
            match wrapper.resource {
                Some(inner) => (name, ttl, inner),
                None => {
                    content.lives.push((name, ttl));
                    continue;
                }
            }
        } else {
            (Name::default(), None, any)
        };
        check_type(&any, &response.type_url)?;
        let name = if name.is_empty() {
            peek_name(&any.value).ok_or_else(|| format!("malformed {} in response", response.type_url))?
        } else {
            name
        };
        if !seen.insert(name.clone()) {
            return Err(format!("duplicate resource {name} found in response"));
        }
        content.lives.push((name.clone(), ttl));
        content.resources.push(Resource::new(name, version.clone(), any.value));
    }
    Ok(content)
}

/// Negative ones are over at once.
fn time_to_live(ttl: prost_types::Duration) -> Duration {
    Duration::try_from(ttl).unwrap_or_default()
}

fn read_delta(response: ReceivedDelta) -> Result<Content, String> {
    let mut content = Content {
        version: Name::from(response.system_version_info),
        resources: Vec::new(),
        removed: response.removed_resources.into_iter().map(Name::from).collect(),
        answered: Vec::new(),
        lives: Vec::new(),
    };
    let mut seen = HashSet::new();
    for resource in response.resources {
        let name = Name::from(resource.name);
        content.lives.push((name.clone(), resource.ttl.map(time_to_live)));
        // Without a resource: there is none under these names. Virtual hosts have no heartbeats.
        let is_host = response.type_url == TypeUrl::VirtualHost.as_str();
        if !resource.aliases.is_empty() || (is_host && resource.resource.is_none()) {
            content.answered.push((name.clone(), name.clone()));
            let aliases = resource.aliases.into_iter().map(|alias| (Name::from(alias), name.clone()));
            content.answered.extend(aliases);
        }
        let Some(any) = resource.resource else { continue };
        check_type(&any, &response.type_url)?;
        if !seen.insert(name.clone()) {
            return Err(format!("duplicate name {name} found among added/updated resources"));
        }
        content.resources.push(Resource::new(name, Name::from(resource.version), any.value));
    }
    if let Some(both) = content.removed.iter().find(|name| seen.contains(*name)) {
        return Err(format!("duplicate name {both} found in the union of added and removed resources"));
    }
    Ok(content)
}

fn check_type(any: &Any, expected: &str) -> Result<(), String> {
    if any.type_url == expected {
        return Ok(());
    }
    Err(format!("type URL {} of a resource does not match the response's type URL {expected}", any.type_url))
}
