//! What one stream's client wants of one type, what it has been sent, and what is due.

use std::collections::{BTreeSet, VecDeque};

use leno_base::Name;

use super::overlay::Overlay;
use super::{Change, Event, Resources, Scope, is_wildcard};
use crate::types::{Resource, TypeUrl};

/// How many unanswered delta responses are remembered by nonce, against clients that never answer.
const MAX_UNANSWERED: usize = 64;

/// Up to so many names each is looked at, rather than what has changed among all resources.
const FEW: usize = 64;

/// The state of one type on one stream.
#[derive(Debug, Default)]
pub struct Subscription {
    wildcard: bool,
    /// A name was given at some time: an empty list means nothing from then on.
    named: bool,
    /// Without versions.
    names: Overlay,
    /// What the client has, or will have when it has read everything. Only what is wanted.
    sent: Overlay,
    /// What was unsubscribed while responses were under way. If the client wants everything before
    /// it has read them, it takes these as well, and must learn if they are gone.
    dropped: BTreeSet<Name>,
    /// Names that are to be answered even if nothing has changed.
    asked: BTreeSet<Name>,
    /// A response is due even if it is empty.
    asked_all: bool,
    /// What the client said that it has was not compared with what there is yet.
    unchecked: bool,
    /// Delta: nothing is taken away that the client has.
    holds: bool,
    /// SotW: the wildcard is spelt out.
    explicit_wildcard: bool,
    /// SotW: what stale requests asked for, until one comes that may be answered.
    deferred: Vec<Name>,
    deferred_wildcard: bool,
    /// SotW endpoints: clusters went out, and Envoy may need every endpoint again.
    clusters_sent: bool,
    nonce: Name,
    version: Name,
    /// Responses without an answer, oldest first.
    unanswered: VecDeque<(Name, Name)>,
    acked_version: Name,
    acked_nonce: Name,
    rejection: Option<String>,
}

/// How a SotW request relates to what was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SotwRequest {
    /// The first of its type on the stream.
    First,
    /// It answers the last response, or came before the client has seen any.
    Current,
    /// The last response was answered before: the client asks something.
    Repeated,
    /// It was sent before the client has seen the last response. The list of names counts, but
    /// nothing is answered: the answer to the last response will say it again.
    Stale,
}

/// Resources to send, names that are gone, and names that the client had in another version.
type Plan = (Vec<Resource>, Vec<Name>, Vec<Name>);

impl Subscription {
    /// True if everything is wanted.
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// The names that are wanted, without the wildcard.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.names.iter().map(|(name, _)| name)
    }

    /// True if a resource is asked for by this name, whether or not everything is wanted.
    pub fn names_one(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// True if a resource of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Names and versions of what the client has been sent, or said that it has.
    pub fn sent_resources(&self) -> impl Iterator<Item = (&Name, &Name)> {
        self.sent.iter()
    }

    /// How many resources the client has been sent, or said that it has.
    pub fn sent_count(&self) -> usize {
        self.sent.len()
    }

    /// Nonce of the last response; empty if there was none.
    pub fn nonce(&self) -> &Name {
        &self.nonce
    }

    /// Version of the last response; empty if there was none.
    pub fn version(&self) -> &Name {
        &self.version
    }

    /// Version of the last accepted response; empty if there was none.
    pub fn acked_version(&self) -> &Name {
        &self.acked_version
    }

    /// Nonce of the last accepted response; empty if there was none.
    pub fn acked_nonce(&self) -> &Name {
        &self.acked_nonce
    }

    /// What the client said when it rejected the last response that it answered.
    pub fn rejection(&self) -> Option<&str> {
        self.rejection.as_deref()
    }

    pub(super) fn is_owed(&self) -> bool {
        self.asked_all || !self.asked.is_empty()
    }

    pub(super) fn is_outstanding(&self) -> bool {
        self.unanswered.back().is_some_and(|(nonce, _)| *nonce == self.nonce)
    }

    /// SotW: the list of names, which replaces the one before.
    pub(super) fn replace_names(&mut self, names: Vec<Name>, kind: SotwRequest) -> Change {
        let is_new = kind == SotwRequest::First;
        let explicit = names.iter().any(is_wildcard);
        let mut names: Vec<Name> = names.into_iter().filter(|name| !is_wildcard(name)).collect();
        names.sort_unstable();
        names.dedup();
        self.named |= explicit || !names.is_empty();
        let wildcard = explicit || !self.named;
        let (unwanted, added) = self.compare_names(&names);
        let unchanged = added.is_empty() && unwanted.is_empty() && wildcard == self.wildcard;
        let follows_clusters = kind != SotwRequest::Stale && std::mem::take(&mut self.clusters_sent);
        let again = (kind == SotwRequest::Repeated && unchanged) || follows_clusters;
        let wildcard_is_new = !self.wildcard || (explicit && !self.explicit_wildcard);
        let mut change = Change {
            wanted: if again { names } else { added.clone() },
            unwanted,
            wildcard_wanted: wildcard && (again || is_new || wildcard_is_new),
            wildcard_unwanted: self.wildcard && !wildcard,
        };
        for name in added {
            self.names.insert(name, Name::default());
        }
        for name in &change.unwanted {
            self.names.remove(name);
        }
        self.wildcard = wildcard;
        self.explicit_wildcard = explicit;
        self.asked.retain(|name| self.names.contains(name));
        self.asked_all &= wildcard;
        self.forget_unwanted(&change);
        self.note_wanted(&change, is_new);
        if change.wildcard_wanted {
            self.send_all_again();
        }
        if kind == SotwRequest::Stale {
            self.deferred.append(&mut change.wanted);
            self.deferred_wildcard |= std::mem::take(&mut change.wildcard_wanted);
        } else {
            let deferred = std::mem::take(&mut self.deferred);
            change.wanted.extend(deferred.into_iter().filter(|name| self.asked.contains(name)));
            change.wanted.sort();
            change.wanted.dedup();
            change.wildcard_wanted |= std::mem::take(&mut self.deferred_wildcard) && self.asked_all;
        }
        change
    }

    /// Names that are wanted so far and not in a sorted list, and those of the list that are new.
    fn compare_names(&self, names: &[Name]) -> (Vec<Name>, Vec<Name>) {
        let added: Vec<Name> = names.iter().filter(|name| !self.names.contains(name)).cloned().collect();
        if self.names.len() + added.len() == names.len() {
            return (Vec::new(), added);
        }
        let gone = self.names().filter(|name| names.binary_search(name).is_err());
        (gone.cloned().collect(), added)
    }

    /// The client wants everything again. What it has been sent is not forgotten: it must still
    /// learn of what is gone.
    fn send_all_again(&mut self) {
        self.sent = self.sent.iter().map(|(name, _)| (name.clone(), Name::default())).collect();
    }

    /// Delta, first request: what the client has from another stream.
    pub(super) fn resume(&mut self, known: impl Iterator<Item = (Name, Name)>) {
        self.sent = known.collect();
        self.unchecked = true;
    }

    /// Delta: from now on nothing is taken away that the client has, or it is again.
    pub(super) fn hold(&mut self, holds: bool) {
        // What has gone meanwhile is found out then.
        self.unchecked |= self.holds && !holds;
        self.holds = holds;
    }

    /// Delta: changes of the list of names.
    pub(super) fn change_names(
        &mut self,
        subscribe: Vec<Name>,
        unsubscribe: Vec<Name>,
        is_new: bool,
    ) -> Change {
        let explicit = subscribe.iter().any(is_wildcard);
        let mut change =
            Change { wildcard_wanted: explicit || (is_new && subscribe.is_empty()), ..Change::default() };
        for name in unsubscribe {
            if is_wildcard(&name) {
                change.wildcard_unwanted = self.wildcard && !change.wildcard_wanted;
                self.wildcard = false;
                self.asked_all = false;
            } else if self.names.remove(&name) {
                self.asked.remove(&name);
                change.unwanted.push(name);
            }
        }
        if change.wildcard_wanted {
            if self.wildcard {
                self.send_all_again();
            }
            for name in std::mem::take(&mut self.dropped) {
                if !self.sent.contains(&name) {
                    self.sent.insert(name, Name::default());
                }
            }
        }
        self.wildcard |= change.wildcard_wanted;
        for name in subscribe.into_iter().filter(|name| !is_wildcard(name)) {
            self.names.insert(name.clone(), Name::default());
            change.wanted.push(name);
        }
        self.forget_unwanted(&change);
        if self.wildcard {
            // Whether the client keeps what the wildcard still covers is not laid down: answer.
            for name in &change.unwanted {
                if self.sent.contains(name) {
                    self.sent.insert(name.clone(), Name::default());
                }
                self.asked.insert(name.clone());
            }
        }
        self.note_wanted(&change, is_new);
        if !self.wildcard && (is_new || change.wildcard_unwanted) {
            let unwanted: Vec<Name> = self
                .sent
                .iter()
                .map(|(name, _)| name)
                .filter(|name| !self.names.contains(name))
                .cloned()
                .collect();
            for name in unwanted {
                self.sent.remove(&name);
            }
            self.asked.retain(|name| self.names.contains(name));
        }
        if self.unanswered.is_empty() {
            self.dropped.clear();
        }
        change
    }

    fn forget_unwanted(&mut self, change: &Change) {
        if self.wildcard {
            // What the wildcard still covers, the client still has.
            return;
        }
        let forgotten: Vec<Name> = if change.wildcard_unwanted {
            self.sent
                .iter()
                .map(|(name, _)| name)
                .filter(|name| !self.names.contains(name))
                .cloned()
                .collect()
        } else {
            change.unwanted.iter().filter(|name| !self.names.contains(name)).cloned().collect()
        };
        for name in forgotten {
            if self.sent.remove(&name) && !self.unanswered.is_empty() {
                self.dropped.insert(name);
            }
        }
    }

    fn note_wanted(&mut self, change: &Change, is_new: bool) {
        self.asked_all |= change.wildcard_wanted;
        for name in &change.wanted {
            // On a new stream the client has said what it has; otherwise it has nothing, or wants
            // it again.
            if !is_new {
                self.sent.remove(name);
            }
            if !self.sent.contains(name) {
                self.asked.insert(name.clone());
            }
        }
    }

    /// Records an answer; `None` if it answers nothing that is known.
    pub(super) fn settle(&mut self, type_url: &TypeUrl, nonce: &str, error: Option<String>) -> Option<Event> {
        let position = self.unanswered.iter().position(|(unanswered, _)| unanswered.as_str() == nonce)?;
        // Answers come in order: what is older will not be answered any more.
        let (nonce, version) = self.unanswered.drain(..=position).next_back()?;
        let type_url = type_url.clone();
        Some(match error {
            None => {
                self.acked_version.clone_from(&version);
                self.acked_nonce.clone_from(&nonce);
                self.rejection = None;
                Event::Ack { type_url, version, nonce }
            }
            Some(message) => {
                self.rejection = Some(message.clone());
                Event::Nack { type_url, version, nonce, message }
            }
        })
    }

    pub(super) fn sent(&mut self, nonce: Name, version: Name) {
        self.nonce.clone_from(&nonce);
        self.version.clone_from(&version);
        self.asked_all = false;
        self.unchecked = false;
        if self.unanswered.len() == MAX_UNANSWERED {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back((nonce, version));
    }

    pub(super) fn clusters_sent(&mut self) {
        self.clusters_sent = true;
    }

    pub(super) fn ask_again(&mut self, names: &[Name]) {
        for name in names {
            let has = self.sent.remove(name);
            if has || self.names.contains(name) {
                self.asked.insert(name.clone());
            }
        }
    }

    pub(super) fn answer(&mut self, names: Vec<Name>) {
        self.asked.extend(names);
    }

    /// Delta: what has changed, and what is gone or was asked for and does not exist.
    pub(super) fn plan_delta(&mut self, resources: &Resources, scope: Scope<'_>) -> Option<Plan> {
        if self.takes_everything() {
            let due = self.asked_all || !resources.is_empty();
            return due.then(|| (self.take_everything(resources), Vec::new(), Vec::new()));
        }
        if self.asks_for_all_of(resources) {
            self.asked.clear();
            self.names = Overlay::of(resources);
            return Some((self.take_everything(resources), Vec::new(), Vec::new()));
        }
        let mut plan = Plan::default();
        for name in self.candidates(resources, scope) {
            let asked = self.asked.remove(&name);
            match resources.find(&name) {
                Some(resource) => self.plan_resource(resource, &mut plan),
                None if self.holds && self.sent.contains(&name) => {}
                None if self.sent.remove(&name) || asked => plan.1.push(name),
                None => {}
            }
        }
        self.unchecked = false;
        self.share(resources);
        (self.asked_all || !plan.0.is_empty() || !plan.1.is_empty()).then_some(plan)
    }

    /// Whether the client has nothing yet and wants all there is.
    fn takes_everything(&self) -> bool {
        self.wildcard && self.sent.is_empty() && self.names.is_empty() && self.asked.is_empty()
    }

    /// Whether the client has nothing yet and asks for each of these by its name: so it is with the
    /// endpoints of all clusters after connecting.
    fn asks_for_all_of(&self, resources: &Resources) -> bool {
        !self.wildcard
            && self.sent.is_empty()
            && !resources.is_empty()
            && self.names.len() == resources.len()
            && self.asked.iter().eq(resources.iter().map(|resource| &resource.name))
    }

    fn take_everything(&mut self, resources: &Resources) -> Vec<Resource> {
        self.unchecked = false;
        self.sent = Overlay::of(resources);
        resources.iter().cloned().collect()
    }

    /// Tells what is wanted and has been sent by the state that others share.
    fn share(&mut self, resources: &Resources) {
        self.sent.rebase(resources, true);
        self.names.rebase(resources, false);
    }

    /// SotW of LDS and CDS: everything, if anything has changed.
    pub(super) fn plan_whole(&mut self, resources: &Resources) -> Option<Plan> {
        if self.takes_everything() {
            let due = self.asked_all || !resources.is_empty();
            return due.then(|| (self.take_everything(resources), Vec::new(), Vec::new()));
        }
        let mut plan = Plan::default();
        let mut gone = false;
        for name in self.candidates(resources, Scope::All) {
            match resources.find(&name) {
                Some(resource) if self.wants(&name) => self.plan_resource(resource, &mut plan),
                _ => gone |= self.sent.remove(&name),
            }
        }
        let due = self.is_owed() || gone || !plan.0.is_empty();
        self.asked.clear();
        self.share(resources);
        due.then(|| {
            let wanted = resources.iter().filter(|resource| self.wants(&resource.name));
            (wanted.cloned().collect(), Vec::new(), plan.2)
        })
    }

    /// SotW of the other types: what has changed or is new. What is gone cannot be said.
    pub(super) fn plan_some(&mut self, resources: &Resources, scope: Scope<'_>) -> Option<Plan> {
        let mut plan = Plan::default();
        for name in self.candidates(resources, scope) {
            match resources.find(&name) {
                Some(resource) => {
                    self.asked.remove(&name);
                    self.plan_resource(resource, &mut plan);
                }
                None => {
                    self.sent.remove(&name);
                }
            }
        }
        if plan.0.is_empty() {
            self.share(resources);
            return self.asked_all.then_some(plan);
        }
        if self.clusters_sent {
            // These arrive after the clusters, whose request for endpoints may be stale by then.
            self.clusters_sent = false;
            let all = resources.iter().filter(|resource| self.wants(&resource.name));
            plan.0 = all.cloned().collect();
            for resource in &plan.0 {
                self.asked.remove(&resource.name);
                self.sent.insert(resource.name.clone(), resource.version.clone());
            }
        }
        self.share(resources);
        Some(plan)
    }

    /// Adds a resource to the plan unless the client has it in this version.
    fn plan_resource(&mut self, resource: &Resource, plan: &mut Plan) {
        match self.sent.get(&resource.name) {
            Some(version) if *version == resource.version && !version.is_empty() => return,
            Some(_) => plan.2.push(resource.name.clone()),
            None => {}
        }
        self.sent.insert(resource.name.clone(), resource.version.clone());
        plan.0.push(resource.clone());
    }

    /// The names that may have to be sent, in order, each once.
    fn candidates(&self, resources: &Resources, scope: Scope<'_>) -> Vec<Name> {
        let mut candidates: Vec<Name> = self.asked.iter().cloned().collect();
        match scope {
            Scope::Changed(changed) if !self.asked_all && !self.unchecked => {
                candidates.extend(changed.iter().filter(|name| self.wants(name)).cloned());
            }
            _ if !self.wildcard && self.names.len() <= FEW.min(resources.len()) => {
                candidates.extend(self.names().cloned());
                candidates.extend(self.sent.iter().map(|(name, _)| name.clone()));
            }
            _ => {
                let suspects = self.sent.suspects(resources).into_iter();
                candidates.extend(suspects.filter(|name| self.wants(name) || self.sent.contains(name)));
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }
}
