//! What a client knows about one type of resource, and the requests that follow from it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use leno_api::proto::envoy::config::core::v3::Node;
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use leno_api::proto::google::rpc::Status;
use leno_base::Name;

use super::{Content, Interest, MAX_ERROR_LEN, Receipt, Rejection};
use crate::types::{Mode, Resource, TypeUrl, WILDCARD};

/// `google.rpc.Code.INTERNAL`, what Envoy puts into every NACK.
const INTERNAL: i32 = 13;

/// The state of one type.
#[derive(Debug)]
pub(super) struct Topic {
    mode: Mode,
    /// Virtual hosts: the wildcard brings some, names others, and what is not asked for by its name any
    /// more is not kept.
    by_prefix: bool,
    wildcard: bool,
    /// The wildcard has only ever been asked for alone on this stream: then it is said by an
    /// empty list of names, which servers that do not know `*` understand.
    legacy_wildcard: bool,
    names: BTreeSet<Name>,
    /// How many reasons there are to hold requests back.
    pub(super) paused: u32,
    /// Nothing was sent on this stream yet.
    fresh: bool,
    /// A request is due for another reason than an answer.
    dirty: bool,
    /// SotW: another request is due after the next answer, which alone asks for nothing.
    again: bool,
    /// Version of the last accepted response.
    pub(super) version: Option<Name>,
    /// Nonce of the last response on this stream.
    pub(super) nonce: Name,
    /// Versions of accepted resources. Empty where the proxy may hold another one than the
    /// server thinks, after a rejection.
    pub(super) versions: BTreeMap<Name, Name>,
    /// Verdicts to be sent. In SotW at most one, and of the last response: an answer to an older
    /// one means nothing once a newer one has come.
    pub(super) answers: VecDeque<Answer>,
    /// Updates that wait for a verdict.
    handed_out: VecDeque<HandedOut>,
    /// SotW: names that were dropped and are wanted again since the last request, which said both
    /// before and now the same list. One request goes out without them first.
    renewed: BTreeSet<Name>,
    /// Changes of the subscription since the last request.
    to_subscribe: BTreeSet<Name>,
    to_unsubscribe: BTreeSet<Name>,
    /// Deadlines of first answers.
    waiting: BTreeMap<Name, Instant>,
    waiting_wildcard: Option<Instant>,
    /// When resources with a time to live are to be forgotten.
    lives_until: BTreeMap<Name, Instant>,
}

/// A verdict to be sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) nonce: Name,
    pub(super) error: Option<String>,
}

/// What must be known of an update when its verdict comes.
#[derive(Debug)]
struct HandedOut {
    receipt: Receipt,
    nonce: Name,
    version: Name,
    added: Vec<(Name, Name)>,
    removed: Vec<Name>,
}

impl Topic {
    pub(super) fn new(mode: Mode, type_url: &TypeUrl) -> Self {
        Self {
            mode,
            by_prefix: *type_url == TypeUrl::VirtualHost,
            wildcard: false,
            legacy_wildcard: false,
            names: BTreeSet::new(),
            paused: 0,
            fresh: true,
            dirty: false,
            again: false,
            version: None,
            nonce: Name::default(),
            versions: BTreeMap::new(),
            answers: VecDeque::new(),
            handed_out: VecDeque::new(),
            renewed: BTreeSet::new(),
            to_subscribe: BTreeSet::new(),
            to_unsubscribe: BTreeSet::new(),
            waiting: BTreeMap::new(),
            waiting_wildcard: None,
            lives_until: BTreeMap::new(),
        }
    }

    /// Notes how long what came lives.
    pub(super) fn live(&mut self, now: Instant, content: &Content) {
        for (name, ttl) in &content.lives {
            match ttl {
                Some(ttl) => self.lives_until.insert(name.clone(), now + *ttl),
                None => self.lives_until.remove(name),
            };
        }
        for name in &content.removed {
            self.lives_until.remove(name);
        }
    }

    /// What has outlived its time to live; the server may send it again.
    pub(super) fn outlived(&mut self, now: Instant) -> Vec<Name> {
        let over = self.lives_until.extract_if(.., |_, until| *until <= now).map(|(name, _)| name);
        let over: Vec<Name> = over.collect();
        for name in &over {
            self.versions.remove(name);
        }
        // What nobody wants any more is gone already.
        over.into_iter().filter(|name| self.wildcard || self.names.contains(name)).collect()
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }

    pub(super) fn has_handed_out(&self) -> bool {
        !self.handed_out.is_empty()
    }

    pub(super) fn subscribe_wildcard(&mut self, deadline: Option<Instant>) {
        if self.wildcard {
            return;
        }
        self.legacy_wildcard = self.names.is_empty() && self.fresh;
        self.wildcard = true;
        self.waiting_wildcard = deadline;
        self.dirty = true;
        self.renew(&Name::new(WILDCARD));
        if !self.legacy_wildcard {
            self.to_subscribe.insert(Name::new(WILDCARD));
        }
    }

    pub(super) fn subscribe(&mut self, names: &[Name], deadline: Option<Instant>) {
        for name in names {
            if !self.names.insert(name.clone()) {
                continue;
            }
            self.dirty = true;
            self.renew(name);
            self.to_subscribe.insert(name.clone());
            if let Some(deadline) = deadline {
                self.waiting.insert(name.clone(), deadline);
            }
            // With other names beside it, the wildcard has to be spelt out.
            let was_legacy = std::mem::take(&mut self.legacy_wildcard);
            // Virtual hosts: it stays on this stream, as Envoy has it.
            if self.wildcard && was_legacy && (self.fresh || !self.by_prefix) {
                self.to_subscribe.insert(Name::new(WILDCARD));
            }
        }
    }

    /// Takes back that a name is to be unsubscribed. The server must not miss that it was.
    fn renew(&mut self, name: &Name) {
        if self.to_unsubscribe.remove(name) && self.mode == Mode::Sotw {
            self.renewed.insert(name.clone());
        }
    }

    pub(super) fn unsubscribe_wildcard(&mut self) {
        if !std::mem::take(&mut self.wildcard) {
            return;
        }
        self.legacy_wildcard = false;
        self.waiting_wildcard = None;
        self.dirty = true;
        self.to_subscribe.remove(WILDCARD);
        self.renewed.remove(WILDCARD);
        self.to_unsubscribe.insert(Name::new(WILDCARD));
        self.versions.retain(|name, _| self.names.contains(name));
    }

    pub(super) fn unsubscribe(&mut self, names: &[Name]) {
        for name in names {
            if !self.names.remove(name) {
                continue;
            }
            self.dirty = true;
            self.waiting.remove(name);
            self.lives_until.remove(name);
            self.to_subscribe.remove(name);
            self.renewed.remove(name);
            // Harmless if the server never saw the subscription, needed if it did.
            self.to_unsubscribe.insert(name.clone());
            if !self.wildcard || self.by_prefix {
                self.versions.remove(name);
            }
        }
    }

    pub(super) fn refresh(&mut self, names: &[Name]) {
        for name in names.iter().filter(|name| self.names.contains(*name)) {
            self.dirty = true;
            self.again = true;
            self.to_subscribe.insert(name.clone());
        }
    }

    pub(super) fn on_connected(&mut self) {
        self.fresh = true;
        self.dirty = true;
        self.again = false;
        self.nonce = Name::default();
        self.answers.clear();
        self.renewed.clear();
        self.to_subscribe.clear();
        self.to_unsubscribe.clear();
        self.legacy_wildcard = self.wildcard && self.names.is_empty();
    }

    /// A response with this nonce came.
    pub(super) fn on_nonce(&mut self, nonce: &Name) {
        self.nonce.clone_from(nonce);
        if self.mode == Mode::Sotw {
            self.answers.clear();
        }
    }

    /// Turns a response into an update and remembers it until its verdict.
    pub(super) fn hand_out(
        &mut self,
        content: Content,
        nonce: Name,
        receipt: &Receipt,
        full: bool,
    ) -> (Vec<Resource>, Vec<Name>) {
        let Content { version, resources: mut added, mut removed, lives, answered: _ } = content;
        // A server may send more than was asked for. Virtual hosts come under names that are made
        // from the ones asked for.
        if !self.wildcard && !self.by_prefix {
            added.retain(|resource| self.names.contains(&resource.name));
        }
        if full {
            removed = self.absent(&lives);
        }
        self.waiting_wildcard = None;
        for name in added.iter().map(|resource| &resource.name).chain(&removed) {
            self.waiting.remove(name);
        }
        for name in &removed {
            self.lives_until.remove(name);
        }
        self.handed_out.push_back(HandedOut {
            receipt: receipt.clone(),
            nonce,
            version,
            added: added.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect(),
            removed: removed.clone(),
        });
        (added, removed)
    }

    /// What the proxy holds or may hold and a whole state lacks. What has never come is not in it:
    /// the response may be older than the request for it.
    fn absent(&self, lives: &[(Name, Option<Duration>)]) -> Vec<Name> {
        // A heartbeat says that it is still there.
        let present: BTreeSet<&Name> = lives.iter().map(|(name, _)| name).collect();
        let underway = self.handed_out.iter().flat_map(|update| update.added.iter().map(|(name, _)| name));
        let held: BTreeSet<&Name> = self.versions.keys().chain(underway).collect();
        held.difference(&present).map(|name| (*name).clone()).collect()
    }

    /// Records a verdict; false if there is none to give.
    pub(super) fn settle(&mut self, receipt: &Receipt, rejection: Option<&Rejection>, answer: bool) -> bool {
        let Some(position) = self.handed_out.iter().position(|update| update.receipt == *receipt) else {
            return false;
        };
        let Some(update) = self.handed_out.remove(position) else { return false };
        for (name, version) in update.added {
            // Only what is still wanted: interest may have changed while the update was worked on.
            if !self.wildcard && !self.names.contains(&name) {
                continue;
            }
            let accepted = rejection.is_none_or(|rejection| {
                !rejection.rejected.is_empty() && !rejection.rejected.contains(&name)
            });
            self.versions.insert(name, if accepted { version } else { Name::default() });
        }
        for name in update.removed {
            self.versions.remove(&name);
        }
        if rejection.is_none() {
            self.version = Some(update.version);
        }
        if answer && (self.mode == Mode::Delta || update.nonce == self.nonce) {
            let error = rejection.map(|rejection| cut(&rejection.message));
            self.answers.push_back(Answer { nonce: update.nonce, error });
        }
        true
    }

    pub(super) fn has_request(&self) -> bool {
        if self.paused > 0 || (self.fresh && !self.is_wanted()) {
            return false;
        }
        !self.answers.is_empty() || (self.dirty && !self.must_wait_for_verdict())
    }

    /// A SotW request repeats the last nonce. While the verdict on that response is not known,
    /// such a request would read as one.
    fn must_wait_for_verdict(&self) -> bool {
        let open = |update: &HandedOut| !self.nonce.is_empty() && update.nonce == self.nonce;
        self.mode == Mode::Sotw && !self.fresh && self.handed_out.iter().any(open)
    }

    pub(super) fn sotw_request(&mut self, type_url: &TypeUrl, node: Option<Node>) -> DiscoveryRequest {
        let answer = self.answers.pop_front();
        let renewed = std::mem::take(&mut self.renewed);
        let again = !renewed.is_empty() || (std::mem::take(&mut self.again) && answer.is_some());
        let spelt_out = self.wildcard && !self.legacy_wildcard;
        let wildcard = Name::new(WILDCARD);
        let names = spelt_out.then_some(&wildcard).into_iter().chain(&self.names);
        let names = names.filter(|name| !renewed.contains(*name)).map(Name::to_string).collect();
        self.sent();
        self.dirty = again;
        DiscoveryRequest {
            version_info: self.version.as_ref().map(Name::to_string).unwrap_or_default(),
            node,
            resource_names: names,
            type_url: type_url.as_str().to_owned(),
            response_nonce: self.nonce.to_string(),
            error_detail: answer.and_then(|answer| answer.error).map(status),
            ..Default::default()
        }
    }

    pub(super) fn delta_request(&mut self, type_url: &TypeUrl, node: Option<Node>) -> DeltaDiscoveryRequest {
        let answer = self.answers.pop_front();
        let mut request =
            DeltaDiscoveryRequest { node, type_url: type_url.as_str().to_owned(), ..Default::default() };
        if self.fresh {
            request.initial_resource_versions = self.versions_to_state();
            request.resource_names_subscribe = self.names.iter().map(Name::to_string).collect();
            if self.wildcard && !self.legacy_wildcard {
                request.resource_names_subscribe.insert(0, WILDCARD.to_owned());
            }
        } else {
            request.resource_names_subscribe = self.to_subscribe.iter().map(Name::to_string).collect();
            request.resource_names_unsubscribe = self.to_unsubscribe.iter().map(Name::to_string).collect();
        }
        if let Some(answer) = answer {
            request.response_nonce = answer.nonce.to_string();
            request.error_detail = answer.error.map(status);
        }
        self.sent();
        request
    }

    /// What the proxy holds, as far as it is known. What it is working on it may hold soon: the
    /// server is told of it without a version, so that it sends it again or says that it is gone.
    fn versions_to_state(&self) -> HashMap<String, String> {
        let underway = self.handed_out.iter().flat_map(|update| update.added.iter().map(|(name, _)| name));
        let underway = underway.filter(|name| self.wildcard || self.names.contains(*name));
        let accepted = self.versions.iter().map(|(name, version)| (name.to_string(), version.to_string()));
        accepted.chain(underway.map(|name| (name.to_string(), String::new()))).collect()
    }

    fn sent(&mut self) {
        self.fresh = false;
        self.dirty = false;
        self.to_subscribe.clear();
        self.to_unsubscribe.clear();
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let lives = self.lives_until.values().copied();
        self.waiting.values().copied().chain(self.waiting_wildcard).chain(lives).min()
    }

    pub(super) fn expire(&mut self, now: Instant) -> Vec<Interest> {
        let mut expired = Vec::new();
        if self.waiting_wildcard.is_some_and(|deadline| deadline <= now) {
            self.waiting_wildcard = None;
            expired.push(Interest::Wildcard);
        }
        let late = self.waiting.extract_if(.., |_, deadline| *deadline <= now).map(|(name, _)| name);
        let late: Vec<Name> = late.collect();
        if !late.is_empty() {
            expired.push(Interest::Names(late));
        }
        expired
    }
}

fn status(message: String) -> Status {
    Status { code: INTERNAL, message, details: Vec::new() }
}

/// The text, cut between characters so that it has at most [`MAX_ERROR_LEN`] bytes.
fn cut(message: &str) -> String {
    const MARK: &str = "...truncated";
    if message.len() <= MAX_ERROR_LEN {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MAX_ERROR_LEN - MARK.len());
    format!("{}{MARK}", message.get(..end).unwrap_or_default())
}
