//! What the control plane knows, and what it does about each event.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use leno_base::clock::{Clock, System};
use leno_derive::{Batch, Graph};
use leno_xds::TypeUrl;
use leno_xds::server::grpc::StreamEvent;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::access::{Domains, Refusals};
use crate::analyze::Analysis;
use crate::analyze::validity::{Validities, outdated};
use crate::ca::{self, Ca};
use crate::debug::stream::Lookers;
use crate::debug::{self, Answer, Look, Question};
use crate::deploy::Desired;
use crate::inject::webhook::Webhook;
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::model::duration::seconds;
use crate::model::identity::Account;
use crate::model::switches::{SwitchInput, Switches, VariableInput};
use crate::model::{Change, Kind, ObjectRef, inputs};
use crate::push::clearance::{Gate, Verdict};
use crate::push::{News, Push};
use crate::registry::Mesh;
use crate::scope;
use crate::scope::gateway_api::status::AllStatuses;
use crate::source::kube::Wanted;
use crate::source::kube::book::{Book, Programmed};
use crate::source::kube::writer::Statuses;
use crate::source::located::Located;
use crate::source::{Origin, Update};
use crate::translate::security::keys::{IssuersToAsk, KeyAddressInput};
use crate::translate::trust_bundle::RootsInput;

/// How long to wait at least between two looks for faults.
const ANALYZE_EVERY: Duration = Duration::from_millis(200);

/// After how many ticks unused values are forgotten.
const COLLECT_EVERY: u32 = 40;

/// The state of the control plane.
pub(super) struct Loop {
    graph: Graph,
    push: Push,
    /// Who only looks, over xDS.
    lookers: Lookers,
    /// Where each object was read.
    origins: BTreeMap<ObjectRef, Origin>,
    /// What the sources could not use.
    source_diagnostics: Arc<Vec<Diagnostic>>,
    /// Faults found by analysis, located.
    analysis: Vec<Diagnostic>,
    /// Where these are.
    faults_at: Located,
    /// What proxies have refused, located.
    refusals: Vec<Diagnostic>,
    /// Where these are.
    refusals_at: Located,
    /// All that is wrong, as last printed.
    diagnostics: Vec<Diagnostic>,
    /// Something has changed since faults were last looked for.
    unanalyzed: bool,
    analyzed_at: Instant,
    /// When the next certificate that proxies are given begins or ends, in seconds since the epoch.
    outdates_at: Option<i64>,
    ready: Arc<AtomicBool>,
    /// Says once that the sources are known, so that proxies are served.
    know: watch::Sender<bool>,
    /// Which Secrets and ConfigMaps the sources are to read.
    want: watch::Sender<Wanted>,
    /// Whether that may have changed.
    unwanted: bool,
    /// The trust domains of the mesh, for those who verify callers.
    domains: Domains,
    /// Where to say what the status of objects should be, and what was said.
    statuses: Option<(mpsc::UnboundedSender<Statuses>, Book)>,
    /// The certificate authority, to tell of it.
    pub(super) ca: Option<Arc<Ca>>,
    /// The webhooks, if they are served.
    pub(super) webhook: Option<Arc<Webhook>>,
    /// How often somebody was refused.
    pub(super) strangers: Arc<Refusals>,
    /// Where to say which namespaces there are, for those who write into all.
    pub(super) namespaces: Option<watch::Sender<ca::Namespaces>>,
    /// Where to say which issuers of tokens are to be asked where their keys are.
    pub(super) issuers: watch::Sender<BTreeSet<String>>,
    /// Where to say which Gateways are to have gateways, for who deploys them.
    pub(super) gateways: Option<watch::Sender<Desired>>,
    ticks: u32,
}

impl Loop {
    pub(super) fn new(
        ready: Arc<AtomicBool>,
        know: watch::Sender<bool>,
        want: watch::Sender<Wanted>,
        statuses: Option<mpsc::UnboundedSender<Statuses>>,
        mut gate: Gate,
        domains: Domains,
    ) -> Loop {
        let mut graph = Graph::new();
        scope::register(&mut graph);
        let mut batch = Batch::new();
        let switches = Switches::read(|name| std::env::var(name).ok());
        gate.checks_identity = switches.checks_identity;
        batch.set::<SwitchInput>((), switches);
        for (name, value) in std::env::vars_os() {
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                batch.set::<VariableInput>(name, value);
            }
        }
        graph.commit(batch);
        Loop {
            graph,
            push: Push::new(gate),
            lookers: Lookers::default(),
            origins: BTreeMap::new(),
            source_diagnostics: Arc::default(),
            analysis: Vec::new(),
            faults_at: Located::default(),
            refusals: Vec::new(),
            refusals_at: Located::default(),
            diagnostics: Vec::new(),
            unanalyzed: false,
            analyzed_at: Instant::now(),
            outdates_at: None,
            ready,
            know,
            want,
            unwanted: false,
            domains,
            statuses: statuses.map(|say| (say, Book::default())),
            ca: None,
            webhook: None,
            strangers: Arc::default(),
            namespaces: None,
            issuers: watch::Sender::default(),
            gateways: None,
            ticks: 0,
        }
    }

    pub(super) fn on_changes(&mut self, update: Update) {
        let (before, now) = (self.graph.revision(), Instant::now());
        let count = update.changes.len();
        let at = update.since.unwrap_or(now);
        let known = |object: &ObjectRef| self.origins.contains_key(object);
        let waited = now.saturating_duration_since(at);
        self.push.counts_mut().on_changes(&update.changes, waited, known);
        let mut news = News { changed: Vec::new(), removed: Vec::new(), at };
        let mut batch = Batch::new();
        for change in update.changes {
            match &change {
                Change::Set(object, _, origin) => {
                    self.origins.insert(object.clone(), origin.clone());
                    news.changed.push(object.clone());
                }
                Change::Remove(object) => {
                    self.origins.remove(object);
                    news.removed.push(object.clone());
                }
            }
            inputs::apply(change, &mut batch);
        }
        let revision = self.graph.commit(batch);
        self.push.counts_mut().on_faults(&self.source_diagnostics, &update.diagnostics);
        self.source_diagnostics = update.diagnostics;
        if revision != before {
            tracing::info!(changes = count, %revision, "configuration changed");
            self.push.on_change(&self.graph, &news, Instant::now());
            let mesh = self.graph.get::<Mesh>(&());
            let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
            self.domains.set(domains.filter(|domain| !domain.is_empty()).cloned().collect());
            if let Some(ca) = &self.ca {
                let roots = mesh.ca_certificates.iter();
                ca.set_signers(roots.filter_map(|it| Some((it.pem.as_deref()?, it.cert_signers.as_slice()))));
            }
            self.ask_issuers();
        }
        let others = update.gone.iter().filter(|object| object.kind == Kind::Namespace);
        let others: BTreeSet<&str> = others.map(|object| object.name.as_str()).collect();
        let is_namespace = |object: &ObjectRef| object.kind == Kind::Namespace;
        if !others.is_empty() || news.changed.iter().chain(&news.removed).any(is_namespace) {
            self.tell_namespaces(&others);
        }
        if let Some(say) = &self.gateways
            && news.changed.iter().chain(&news.removed).any(Desired::concerns)
        {
            let desired = Desired::of(&self.graph, &self.origins);
            say.send_if_modified(|told| {
                let news = *told != desired;
                *told = desired;
                news
            });
        }
        if let Some((say, book)) = &mut self.statuses
            && !update.gone.is_empty()
        {
            // Who writes them ends with us.
            let _ = say.send(book.forget(&update.gone));
            update.gone.iter().for_each(|object| self.push.propagation_mut().retell(object));
        }
        // Proxies come first: what is wrong is found when they have been told.
        self.unanalyzed = true;
        if !self.ready.swap(true, Ordering::AcqRel) {
            self.know.send_replace(true);
            tracing::info!("ready");
        }
    }

    /// Has issuers of tokens asked where their keys are, and forgets what others have said.
    fn ask_issuers(&mut self) {
        let wanted = self.graph.get::<IssuersToAsk>(&());
        let changed = self.issuers.send_if_modified(|told| {
            let changed = *told != *wanted;
            told.clone_from(&wanted);
            changed
        });
        if changed {
            let mut batch = Batch::new();
            let known = self.graph.keys::<KeyAddressInput>().into_iter();
            known.filter(|issuer| !wanted.contains(issuer)).for_each(|issuer| {
                batch.remove::<KeyAddressInput>(&issuer);
            });
            // No policy asks for them any more, so nothing follows from that.
            self.graph.commit(batch);
        }
    }

    /// An issuer has said where its keys are.
    pub(super) fn on_discovered(&mut self, issuer: String, uri: String) {
        let is_wanted = self.issuers.borrow().contains(&issuer);
        if !is_wanted {
            return;
        }
        tracing::info!(issuer, uri, "an issuer has said where its keys are");
        let mut batch = Batch::new();
        batch.set::<KeyAddressInput>(issuer, uri);
        self.commit(batch);
    }

    /// An account was looked at: what it may have goes to its proxies.
    pub(super) fn on_reviewed(&mut self, account: &Account, verdict: Verdict) {
        self.push.on_reviewed(account, verdict, Instant::now());
    }

    /// The authority's certificates come from other roots.
    pub(super) fn on_roots(&mut self, roots: String) {
        let mut batch = Batch::new();
        batch.set::<RootsInput>((), roots);
        self.commit(batch);
    }

    /// Takes up what comes from no source.
    fn commit(&mut self, batch: Batch) {
        let before = self.graph.revision();
        let at = Instant::now();
        if self.graph.commit(batch) != before {
            let news = News { changed: Vec::new(), removed: Vec::new(), at };
            self.push.on_change(&self.graph, &news, at);
        }
    }

    /// Says which namespaces there are; `others`: of those that have gone, should they be there again.
    fn tell_namespaces(&self, others: &BTreeSet<&str>) {
        if let Some(say) = &self.namespaces {
            let all = self.graph.keys::<inputs::Namespaces>();
            say.send_modify(|told| told.follow(all.into_iter().map(|key| key.name), others));
        }
    }

    pub(super) fn on_stream(&mut self, event: StreamEvent) {
        if self.lookers.concerns(&event) {
            let mut lookers = std::mem::take(&mut self.lookers);
            lookers.on_stream(self.look(), event);
            self.lookers = lookers;
            return;
        }
        // Who leaves or changes his mind may have been the last to want a Secret.
        self.unwanted |= match &event {
            StreamEvent::Connected(_) | StreamEvent::Ready { .. } => false,
            StreamEvent::Request { request, .. } => request.type_url() == TypeUrl::Secret.as_str(),
            StreamEvent::Closed { .. } => !self.want.borrow().0.is_empty(),
        };
        self.push.on_stream(&self.graph, event, Instant::now());
    }

    pub(super) fn on_tick(&mut self) {
        if std::mem::take(&mut self.unwanted) {
            self.want_credentials();
        }
        self.push.on_tick(&self.graph, Instant::now());
        self.unanalyzed |= self.outdates_at.is_some_and(|at| at <= seconds(System.wall()));
        self.tell_progress();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(COLLECT_EVERY) {
            self.tell_matches();
            self.push.tidy(&mut self.graph, Instant::now());
            self.graph.collect();
        }
    }

    /// Has the credentials read that proxies ask for.
    fn want_credentials(&self) {
        let mut wanted = Wanted::default();
        for session in self.push.asking_for_credentials() {
            for (_, subscription) in session.stream().subscriptions().filter(|it| *it.0 == TypeUrl::Secret) {
                subscription.names().for_each(|name| wanted.add(&session.key.namespace, name));
            }
        }
        self.want.send_if_modified(|told| {
            let news = *told != wanted;
            *told = wanted;
            news
        });
    }

    /// Nothing else is to be done at the moment.
    pub(super) fn on_idle(&mut self) {
        // Looking takes long in a large mesh, and must not make everything else slow.
        if Instant::now().duration_since(self.analyzed_at) < ANALYZE_EVERY {
            return;
        }
        if self.unanalyzed {
            self.examine();
        } else if !self.hear_refusals() {
            return;
        }
        self.analyzed_at = Instant::now();
    }

    /// Tells what proxies refuse, if that may have changed: all else follows from the configuration.
    fn hear_refusals(&mut self) -> bool {
        let changed = self.push.take_refusals_changed();
        if changed {
            self.refusals = self.refused();
            self.tell_diagnostics();
        }
        changed
    }

    /// Looks for faults.
    fn examine(&mut self) {
        self.unanalyzed = false;
        self.push.take_refusals_changed();
        let (outdated, next) = outdated(&self.graph.get::<Validities>(&()), seconds(System.wall()));
        self.outdates_at = next;
        self.analysis = self.analyze(&outdated);
        self.refusals = self.refused();
        self.tell_diagnostics();
        if let Some((say, book)) = &mut self.statuses {
            let all = self.graph.get::<AllStatuses>(&());
            let all = all.iter().map(|(object, status)| (object.clone(), json!(status)));
            // Who writes them ends with us.
            let _ = say.send(book.derived(all, &self.origins, System.wall()));
        }
        self.tell_matches();
    }

    /// Has it written to EnvoyFilters what their patches have met with.
    fn tell_matches(&mut self) {
        let Some((say, book)) = &mut self.statuses else { return };
        let news =
            book.matched(self.push.patch_matches(&self.graph).into_iter(), &self.origins, System.wall());
        if !news.is_empty() {
            // Who writes them ends with us.
            let _ = say.send(news);
        }
    }

    /// Has it written to objects how far their changes have come.
    fn tell_progress(&mut self) {
        let news = self.push.propagation_mut().take_news(Instant::now());
        let Some((say, book)) = &mut self.statuses else { return };
        let reached = news.into_iter().filter_map(|object| {
            let reach = self.push.propagation().reach(&object)?;
            let sessions = reach.stragglers.iter().filter_map(|id| self.push.session(*id));
            let stragglers = sessions.map(|session| session.node.clone()).collect();
            Some((object, Programmed { concerned: reach.concerned, stragglers }))
        });
        let reached: Vec<(ObjectRef, Programmed)> = reached.collect();
        if !reached.is_empty() {
            // Who writes them ends with us.
            let _ = say.send(book.reached(reached, &self.origins, System.wall()));
        }
    }

    pub(super) fn on_ask(&mut self, question: &Question) -> Answer {
        if debug::needs_analysis(question) {
            if self.unanalyzed {
                self.examine();
            } else {
                self.hear_refusals();
            }
        }
        debug::answer_over_http(self.look(), question)
    }

    /// What there is to be seen.
    fn look(&self) -> Look<'_> {
        Look {
            graph: &self.graph,
            push: &self.push,
            origins: &self.origins,
            diagnostics: &self.diagnostics,
            ca: self.ca.as_deref(),
            webhook: self.webhook.as_deref(),
            refusals: &self.strangers,
            now: Instant::now(),
            wall: System.wall(),
        }
    }

    /// The faults of the configuration; `outdated` are those that time has brought.
    fn analyze(&mut self, outdated: &[(ObjectRef, Finding)]) -> Vec<Diagnostic> {
        let found = self.graph.get::<Analysis>(&());
        let about = |(object, finding): &(ObjectRef, Finding)| {
            (Some(object.clone()), Diagnostic::about(object, finding))
        };
        self.faults_at.locate(&self.origins, found.iter().chain(outdated).map(about))
    }

    fn refused(&mut self) -> Vec<Diagnostic> {
        let mut all = Vec::new();
        for (object, finding) in self.push.patch_faults(&self.graph) {
            let diagnostic = Diagnostic::about(&object, &finding);
            all.push((Some(object), diagnostic));
        }
        for refusal in self.push.refusals(&self.graph) {
            all.push((refusal.object.clone(), refusal.diagnostic()));
        }
        self.refusals_at.locate(&self.origins, all)
    }

    /// Gathers all that is wrong, and prints what is new and what is mended.
    fn tell_diagnostics(&mut self) {
        let parts = [self.source_diagnostics.as_ref(), &self.analysis, &self.refusals];
        let now: Vec<Diagnostic> = parts.into_iter().flatten().cloned().collect();
        let is_due = self.statuses.as_ref().is_some_and(|(_, book)| book.is_due());
        if now == self.diagnostics && !is_due {
            return;
        }
        let (old, new): (HashSet<&Diagnostic>, HashSet<&Diagnostic>) =
            (self.diagnostics.iter().collect(), now.iter().collect());
        for diagnostic in now.iter().filter(|diagnostic| !old.contains(diagnostic)) {
            match diagnostic.severity {
                Severity::Error => tracing::error!("{diagnostic}"),
                Severity::Warning => tracing::warn!("{diagnostic}"),
            }
        }
        for diagnostic in self.diagnostics.iter().filter(|diagnostic| !new.contains(diagnostic)) {
            tracing::info!("no longer: {diagnostic}");
        }
        self.diagnostics = now;
        if let Some((say, book)) = &mut self.statuses {
            let news = book.review(&self.diagnostics, &self.origins, System.wall());
            // Who writes them ends with us.
            let _ = say.send(news);
        }
    }
}
