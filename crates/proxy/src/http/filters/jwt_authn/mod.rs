//! `envoy.filters.http.jwt_authn`: answers 401 or 403 to requests without the tokens that they
//! need, and tells what good tokens claim in headers and dynamic metadata.
//!
//! A requirement is found for a request by its route's settings, by rules, or by filter state, and
//! judged at once (`verify`), as keys are mostly at hand. Only where a service has to be asked for
//! keys first does the request wait (`remote`).
//! Reading order: this file, `verify`, `locations`, `remote`, `local`, `config`.

mod config;
mod local;
mod locations;
mod remote;
#[cfg(test)]
mod tests;
mod verify;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use leno_base::Name;
use leno_tls::jwt::Status;

use self::remote::RemoteKeys;
use self::verify::{Judged, Keys, Provider, Requirement, Verdict};
use crate::config::filter_id::FilterId;
use crate::http::filters::{
    Background, FilterConfig, HttpStreamFilter, Opening, Outcome, Registration, RouteSettings, Step,
};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::MatchContext;
use crate::http::route::table::Condition;
use crate::http::stream::{Stream, now};
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: NAMESPACE,
    config_type: "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"),
    lower_route: Some(config::lower_route),
};

/// Of dynamic metadata, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Why a request was refused, in the details of its response, which have no spaces.
fn details(status: Status) -> String {
    format!("jwt_authn_access_denied{{{}}}", status.text().replace(' ', "_"))
}

/// What of a path the client is told at most.
const LONGEST_PATH: usize = 256;

stats_scope! {
    /// `http.STAT_PREFIX.jwt_authn.OWN_PREFIX.`
    pub(super) struct JwtStats {
        counter allowed;
        counter cors_preflight_bypassed;
        counter denied;
        counter jwks_fetch_failed;
        counter jwks_fetch_success;
        counter jwt_cache_hit;
        counter jwt_cache_miss;
    }
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct JwtAuthn {
    settings: Arc<Settings>,
    /// All keys that services publish.
    remote: Vec<Arc<RemoteKeys>>,
    stats: PerThread<JwtStats>,
}

/// JwtAuthentication.
#[derive(Debug)]
struct Settings {
    /// In the order of their names.
    providers: Vec<Provider>,
    /// `rules`: the first that matches counts; `None`: it asks for nothing.
    rules: Vec<(Condition, Option<Arc<Rule>>)>,
    /// `requirement_map`, and its names for messages.
    named: Vec<(FilterId, Arc<Rule>)>,
    names: Box<str>,
    /// `filter_state_rules`
    state: Option<StateRules>,
    bypass_cors_preflight: bool,
    strip_failure_response: bool,
    /// With a dot at the end if there is one.
    stat_prefix: Box<str>,
    /// Headers made of claims and payloads: nobody else may set them, whatever the request needs.
    reserved: Vec<Name>,
}

/// A requirement.
#[derive(Debug)]
struct Rule {
    requirement: Requirement,
    /// The providers (by index) that it may need keys of that a service publishes.
    remote: Vec<usize>,
}

/// FilterStateRule.
#[derive(Debug)]
struct StateRules {
    key: Box<str>,
    rules: BTreeMap<String, Arc<Rule>>,
}

/// PerRouteConfig.
#[derive(Debug)]
enum RouteRequirement {
    /// Nothing is asked for.
    Disabled,
    /// The requirement of this name.
    Named(FilterId, Box<str>),
}

impl FilterConfig for JwtAuthn {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let config = &self.settings;
        for name in &config.reserved {
            head.remove_named(name);
        }
        let thread = stream.worker.stats();
        let stats = self.stats.of(thread, || {
            let prefix = format!("http.{}.jwt_authn.{}", stream.manager.stat_prefix, config.stat_prefix);
            JwtStats::kept(thread, &prefix)
        });
        if config.bypass_cors_preflight && is_preflight(head) {
            stats.cors_preflight_bypassed().inc();
            stats.allowed().inc();
            return Opening::PASS;
        }
        let rule = match settings.and_then(RouteSettings::first::<RouteRequirement>) {
            Some(RouteRequirement::Disabled) => None,
            Some(RouteRequirement::Named(id, name)) => {
                let Some((_, rule)) = config.named.iter().find(|(named, _)| named == id) else {
                    stats.denied().inc();
                    return Opening::Done(Step::Reply(config.unknown_name(name)));
                };
                Some(rule)
            }
            None => config.find(stream, head),
        };
        let Some(rule) = rule else {
            stats.allowed().inc();
            return Opening::PASS;
        };
        let stats = stats.clone();
        if rule.remote.iter().any(|index| config.lacks_keys(*index)) {
            return Opening::Open(Box::new(Waiting {
                settings: Arc::clone(config),
                rule: Arc::clone(rule),
                stats,
                failed: Rc::default(),
            }));
        }
        Opening::Done(config.judge(rule, &stats, &[], stream, head))
    }

    fn background(&self) -> Vec<Arc<dyn Background>> {
        let ahead = self.remote.iter().filter(|remote| remote.ahead.is_some());
        ahead.map(|remote| -> Arc<dyn Background> { Arc::clone(remote) as _ }).collect()
    }
}

/// A request that may have to wait for keys.
struct Waiting {
    settings: Arc<Settings>,
    rule: Arc<Rule>,
    stats: JwtStats,
    /// Providers whose keys did not come.
    failed: Rc<RefCell<Vec<usize>>>,
}

impl HttpStreamFilter for Waiting {
    fn on_request(&mut self, stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        let failed = self.failed.borrow().clone();
        let needed = self.settings.needs_keys(&self.rule, &failed, stream, head);
        let remote = needed.and_then(|index| match &self.settings.providers.get(index)?.keys {
            Keys::Remote(remote) => Some((index, remote)),
            Keys::Local(_) | Keys::None => None,
        });
        let Some((index, remote)) = remote else {
            return self.settings.judge(&self.rule, &self.stats, &failed, stream, head);
        };
        let fetched = remote.fetch(&stream.worker, &self.stats, stream.info.connection.local.ip());
        let failed = Rc::clone(&self.failed);
        Step::wait(async move {
            if !fetched.await {
                failed.borrow_mut().push(index);
            }
            Outcome::Again
        })
    }
}

impl Settings {
    /// The requirement of a request whose route says nothing.
    fn find(&self, stream: &Stream, head: &HeaderMap) -> Option<&Arc<Rule>> {
        let context =
            MatchContext { random: stream.random, is_internal: stream.internal, info: Some(&stream.info) };
        let mut rules = self.rules.iter();
        if let Some((_, rule)) = rules.find(|(condition, _)| condition.matches_request(head, &context)) {
            return rule.as_ref();
        }
        let state = self.state.as_ref()?;
        state.rules.get(&stream.info.filter_state.get(&state.key)?.text)
    }

    /// Whether this provider's keys are not at hand.
    fn lacks_keys(&self, index: usize) -> bool {
        let Some(provider) = self.providers.get(index) else { return false };
        let Keys::Remote(remote) = &provider.keys else { return false };
        local::with(&provider.identity, |local| local.keys(&remote.published, now())).is_none()
    }

    /// The provider whose keys a request needs that are not at hand; nothing is changed.
    fn needs_keys(&self, rule: &Rule, failed: &[usize], stream: &Stream, head: &HeaderMap) -> Option<usize> {
        let (mut head, mut metadata) = (head.clone(), stream.info.metadata.clone());
        let mut judged = Judged {
            providers: &self.providers,
            head: &mut head,
            metadata: &mut metadata,
            stats: None,
            wall: seconds(stream.info.start_time),
            now: now(),
            failed,
            refresh: false,
        };
        match judged.judge(&rule.requirement) {
            Verdict::Fetch(index) => Some(index),
            Verdict::Met | Verdict::Refused(_) => None,
        }
    }

    fn judge(
        &self,
        rule: &Rule,
        stats: &JwtStats,
        failed: &[usize],
        stream: &mut Stream,
        head: &mut HeaderMap,
    ) -> Step {
        let mut judged = Judged {
            providers: &self.providers,
            head,
            metadata: &mut stream.info.metadata,
            stats: Some(stats),
            wall: seconds(stream.info.start_time),
            now: now(),
            failed,
            refresh: false,
        };
        let verdict = judged.judge(&rule.requirement);
        let refresh = judged.refresh;
        let status = match verdict {
            Verdict::Met => {
                stats.allowed().inc();
                if refresh {
                    stream.refresh_route(head);
                }
                return Step::Continue;
            }
            Verdict::Refused(status) => status,
            // They were at hand a moment ago.
            Verdict::Fetch(_) => Status::FetchFailed,
        };
        stats.denied().inc();
        Step::Reply(self.refusal(status, head))
    }

    fn refusal(&self, status: Status, head: &HeaderMap) -> Reply {
        let code = if status == Status::AudienceNotAllowed { 403 } else { 401 };
        if self.strip_failure_response {
            return Reply::new(code, details(status), "");
        }
        let mut said = format!("Bearer realm=\"{}\"", original_uri(head));
        if status != Status::Missing {
            said.push_str(", error=\"invalid_token\"");
        }
        Reply::new(code, details(status), status.text()).header("www-authenticate", said.into_bytes())
    }

    fn unknown_name(&self, name: &str) -> Reply {
        let why = format!("Wrong requirement_name: {name}. It should be one of [{}]", self.names);
        let details = format!("jwt_authn_access_denied{{{}}}", why.replace(' ', "_"));
        let body = match self.strip_failure_response {
            true => String::new(),
            false => format!("Failed JWT authentication: {why}"),
        };
        Reply::new(403, details, body)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn is_preflight(head: &HeaderMap) -> bool {
    head.method() == b"OPTIONS"
        && head.get(Known::Origin).is_some_and(|origin| !origin.is_empty())
        && head.find("access-control-request-method").is_some_and(|method| !method.is_empty())
}

/// What the client has asked for.
fn original_uri(head: &HeaderMap) -> String {
    let path = head.get(Known::EnvoyOriginalPath).unwrap_or(head.path());
    let path = path.get(..LONGEST_PATH).unwrap_or(path);
    let text = |bytes| String::from_utf8_lossy(bytes);
    let scheme = head.get(Known::XForwardedProto).unwrap_or_default();
    format!("{}://{}{}", text(scheme), text(head.authority()), text(path))
}
