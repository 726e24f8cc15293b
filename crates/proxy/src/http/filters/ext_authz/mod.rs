//! `envoy.filters.http.ext_authz`: asks a service whether a request may go on, and changes the
//! request as the service says.
//!
//! A request that is to be asked for waits (`Checking`): for its body first, where that is sent
//! along, then for the answer. `check` makes the question, `service` asks it, `answer` says what
//! an answer is, `apply` does what it says.
//! Reading order: this file, `check`, `service`, `answer`, `apply`, `config`.

mod answer;
mod apply;
pub(crate) mod check;
mod config;
mod service;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use leno_base::Name;

use self::answer::Answer;
pub(crate) use self::answer::{Verdict, decode};
use self::apply::MutationRules;
use self::check::Content;
pub(crate) use self::config::check_version;
use self::service::Service;
pub(crate) use self::service::TIMEOUT;
use crate::http::filters::{
    FilterConfig, HttpStreamFilter, Opening, Outcome, Registration, RouteSettings, Step,
};
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::route::matcher::StringMatcher;
use crate::http::stream::{Stream, now};
use crate::http::upgrade;
use crate::matching::value::MetadataMatcher;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::ResponseFlags;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: NAMESPACE,
    config_type: "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"),
    lower_route: Some(config::lower_route),
};

/// Of dynamic metadata, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";

stats_scope! {
    /// `http.STAT_PREFIX.ext_authz.OWN_PREFIX.`
    struct AuthzStats {
        counter denied;
        counter disabled;
        counter error;
        counter failure_mode_allowed;
        counter ignored_dynamic_metadata;
        counter invalid;
        counter ok;
    }
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct ExtAuthz {
    settings: Arc<Settings>,
    stats: PerThread<AuthzStats>,
}

/// ExtAuthz.
#[derive(Debug)]
struct Settings {
    service: Arc<Service>,
    failure_mode_allow: bool,
    failure_mode_allow_header: bool,
    /// `with_request_body`
    body: Option<BodySettings>,
    /// `pack_as_bytes`
    pack_as_bytes: bool,
    clear_route_cache: bool,
    status_on_error: u16,
    validate_mutations: bool,
    /// Namespaces of dynamic metadata, and of the route's metadata.
    namespaces: Vec<Box<str>>,
    route_namespaces: Vec<Box<str>>,
    /// `filter_enabled`: numerator and denominator.
    enabled: Option<(u32, u32)>,
    enabled_metadata: Option<MetadataMatcher>,
    deny_at_disable: bool,
    include_certificate: bool,
    include_tls_session: bool,
    /// `stat_prefix`, with a dot at the end if there is one.
    stat_prefix: Box<str>,
    /// Of `node.metadata`, by `bootstrap_metadata_labels_key`.
    labels: Vec<(Box<str>, Box<str>)>,
    /// `None`: all.
    allowed_headers: Option<Vec<StringMatcher>>,
    disallowed_headers: Vec<StringMatcher>,
    charge_cluster: bool,
    raw_headers: bool,
    /// `decoder_header_mutation_rules`
    rules: Option<MutationRules>,
    /// `enable_dynamic_metadata_ingestion`
    takes_metadata: bool,
    /// `max_denied_response_body_bytes`; 0: no limit.
    longest_denial: usize,
    /// `emit_client_span`, true by default: calls have spans.
    emits_span: bool,
}

/// BufferSettings.
#[derive(Clone, Copy, Debug)]
struct BodySettings {
    max: usize,
    partial: bool,
}

/// ExtAuthzPerRoute.
#[derive(Debug)]
struct RouteAuthz {
    disabled: bool,
    /// Less specific levels have theirs too.
    extensions: Vec<(Box<str>, Box<str>)>,
    /// `disable_request_body_buffering`
    no_body: bool,
    body: Option<BodySettings>,
    service: Option<Arc<Service>>,
    /// `emit_client_span`
    emits_span: Option<bool>,
}

impl FilterConfig for ExtAuthz {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        end: bool,
    ) -> Opening {
        let config = &self.settings;
        let route = settings.and_then(RouteSettings::first::<RouteAuthz>);
        // As in Envoy, nobody is asked where there is no route.
        if stream.selected.is_none() || route.is_some_and(|route| route.disabled) {
            return Opening::PASS;
        }
        let thread = stream.worker.stats();
        let stats = self.stats.of(thread, || {
            let prefix = format!("http.{}.ext_authz.{}", stream.manager.stat_prefix, config.stat_prefix);
            AuthzStats::kept(thread, &prefix)
        });
        if !config.is_enabled(stream) {
            stats.disabled().inc();
            if !config.deny_at_disable {
                return Opening::PASS;
            }
            return Opening::Done(Step::Reply(refusal(config.status_on_error, "ext_authz_error")));
        }
        let mut checking = Checking {
            settings: Arc::clone(config),
            service: Arc::clone(route.and_then(|route| route.service.as_ref()).unwrap_or(&config.service)),
            stats: stats.clone(),
            emits_span: route.and_then(|route| route.emits_span).unwrap_or(config.emits_span),
            extensions: settings.map(extensions).unwrap_or_default(),
            buffering: None,
            content: Content::default(),
            answer: Rc::default(),
            asked: None,
            later: Vec::new(),
        };
        let body = route.and_then(|route| route.body).or(config.body);
        let no_body = end || route.is_some_and(|route| route.no_body) || is_upgrade(head);
        if let Some(body) = body.filter(|_| !no_body) {
            if !body.partial {
                stream.request_buffer_limit = body.max;
            }
            checking.buffering = Some(body);
        }
        Opening::Open(Box::new(checking))
    }
}

fn is_upgrade(head: &HeaderMap) -> bool {
    upgrade::requested(head).is_some()
}

/// `context_extensions` of all levels; the most specific wins.
fn extensions(settings: &RouteSettings) -> Vec<(Box<str>, Box<str>)> {
    let mut merged: Vec<(Box<str>, Box<str>)> = Vec::new();
    for level in settings.levels::<RouteAuthz>() {
        for (key, value) in &level.extensions {
            if !merged.iter().any(|(known, _)| known == key) {
                merged.push((key.clone(), value.clone()));
            }
        }
    }
    merged
}

/// An answer without body in the service's place.
fn refusal(status: u16, details: &'static str) -> Reply {
    Reply::new(status, details, "").flag(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE)
}

/// A request that the service is asked for.
struct Checking {
    settings: Arc<Settings>,
    service: Arc<Service>,
    stats: AuthzStats,
    /// The call has a span, if the request has one.
    emits_span: bool,
    extensions: Vec<(Box<str>, Box<str>)>,
    /// The body is gathered first.
    buffering: Option<BodySettings>,
    content: Content,
    /// What the service has said.
    answer: Rc<RefCell<Option<Answer>>>,
    /// When it was asked.
    asked: Option<std::time::Instant>,
    /// What the response's head is to be changed by.
    later: Vec<answer::Change>,
}

impl HttpStreamFilter for Checking {
    fn on_request(&mut self, stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        if self.buffering.is_some() { Step::Hold } else { self.go_on(stream, head) }
    }

    fn on_request_data(&mut self, stream: &mut Stream, data: &mut Bytes, end: bool) -> Step {
        let Some(body) = self.buffering else { return Step::Continue };
        if self.asked.is_none() {
            self.content.push(data);
            let full = body.partial && self.content.len() >= body.max;
            if !body.partial && self.content.len() > body.max {
                return Step::Reply(stream.request_too_large());
            }
            if !end && !full {
                return Step::Hold;
            }
        }
        self.go_on_held(stream)
    }

    fn on_request_trailers(
        &mut self,
        stream: &mut Stream,
        _trailers: &mut HeaderMap,
        _data: &mut Bytes,
    ) -> Step {
        if self.buffering.is_none() { Step::Continue } else { self.go_on_held(stream) }
    }

    fn on_response(&mut self, _stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        for change in &self.later {
            change.apply_to_response(head);
        }
        Step::Continue
    }
}

impl Checking {
    /// The same while the head is held.
    fn go_on_held(&mut self, stream: &mut Stream) -> Step {
        let mut head = std::mem::take(&mut stream.request);
        let step = self.go_on(stream, &mut head);
        stream.request = head;
        step
    }

    /// Asks, or follows the answer.
    fn go_on(&mut self, stream: &mut Stream, head: &mut HeaderMap) -> Step {
        if let Some(asked) = self.asked {
            self.buffering = None;
            let Some(answer) = self.answer.borrow_mut().take() else { return Step::Continue };
            let took = now().saturating_duration_since(asked);
            return apply::Applying {
                cluster: cluster_of(stream, head),
                settings: &self.settings,
                stats: &self.stats,
                stream,
                head,
                later: &mut self.later,
            }
            .follow(answer, took);
        }
        self.asked = Some(now());
        let question = check::Question {
            settings: check::Wanted::of(&self.settings),
            extensions: &self.extensions,
            content: self.buffering.map(|body| (&self.content, body.max)),
        };
        let call = self.service.ask(&question, stream, head, self.emits_span);
        let answer = Rc::clone(&self.answer);
        Step::wait(async move {
            let said = call.await;
            *answer.borrow_mut() = Some(said);
            Outcome::Again
        })
    }
}

impl Settings {
    fn is_enabled(&self, stream: &Stream) -> bool {
        let by_share = self
            .enabled
            .is_none_or(|(share, of)| stream.worker.random() % u64::from(of.max(1)) < u64::from(share));
        by_share
            && self.enabled_metadata.as_ref().is_none_or(|matcher| matcher.matches(&stream.info.metadata))
    }
}

/// The name of the stats of the cluster that a request goes to, as the filter counts there.
fn cluster_of(stream: &Stream, head: &HeaderMap) -> Option<Name> {
    let name = stream.selected.as_ref().and_then(|selected| selected.cluster(head))?;
    Some(stream.worker.cluster(name)?.config.stat_name.clone())
}
