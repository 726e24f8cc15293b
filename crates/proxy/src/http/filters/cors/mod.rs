//! `envoy.filters.http.cors`: cross-origin resource sharing. Preflights are answered here, and
//! answers to other requests say which origins may read them.
//!
//! The policy comes from the route's settings; each of its fields is taken from the most
//! specific level that sets it.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use smallvec::SmallVec;

use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::Action;
use crate::http::route::matcher::StringMatcher;
use crate::http::stream::Stream;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.cors",
    config_type: "envoy.extensions.filters.http.cors.v3.Cors",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.cors.v3.CorsPolicy"),
    lower_route: Some(config::lower_route),
};

stats_scope! {
    /// `http.STAT_PREFIX.cors.`
    struct CorsStats {
        counter origin_invalid;
        counter origin_valid;
    }
}

/// Cors.
#[derive(Debug, Default)]
struct Cors {
    stats: PerThread<CorsStats>,
}

/// CorsPolicy of one level.
#[derive(Debug)]
struct Policy {
    /// `allow_origin_string_match`.
    origins: Vec<StringMatcher>,
    /// `allow_methods`; `*`: what the preflight asks for.
    methods: Option<Box<str>>,
    /// `allow_headers`, likewise.
    headers: Option<Box<str>>,
    /// `expose_headers`.
    expose: Option<Box<str>>,
    /// `max_age`.
    max_age: Option<Box<str>>,
    /// `allow_credentials`.
    credentials: Option<bool>,
    /// `filter_enabled`: share (numerator, denominator), all by default.
    enabled: Option<(u32, u32)>,
    /// `shadow_enabled`: share that is counted only, none by default.
    shadow: Option<(u32, u32)>,
    /// `allow_private_network_access`.
    private_network: Option<bool>,
    /// `forward_not_matching_preflights`, true by default.
    forward_not_matching: Option<bool>,
}

/// The policies of all levels, the most specific first.
#[derive(Debug)]
struct Policies(SmallVec<[Arc<Policy>; 2]>);

impl Policies {
    /// The first value that a level sets.
    fn first<'p, T>(&'p self, field: impl Fn(&'p Policy) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(|policy| field(policy))
    }

    fn allows(&self, origin: &[u8]) -> bool {
        let origins = self.first(|policy| Some(&policy.origins).filter(|origins| !origins.is_empty()));
        origins.is_some_and(|origins| {
            origins.iter().any(|allowed| allowed.matches(b"*") || allowed.matches(origin))
        })
    }

    fn credentials(&self) -> bool {
        self.first(|policy| policy.credentials).unwrap_or(false)
    }

    /// Whether the filter works for a request with this random number, and whether it counts.
    fn enabled(&self, random: u64) -> (bool, bool) {
        let hit = |(numerator, denominator): (u32, u32)| {
            random % u64::from(denominator.max(1)) < u64::from(numerator)
        };
        let Some(policy) = self.0.first() else { return (false, false) };
        let enabled = policy.enabled.is_none_or(hit);
        (enabled, enabled || policy.shadow.is_some_and(hit))
    }
}

impl FilterConfig for Cors {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let (Some(settings), Some(selected)) = (settings, &stream.selected) else { return Opening::PASS };
        if !head.contains(Known::Origin) {
            return Opening::PASS;
        }
        // Redirects and direct responses are no resources.
        match selected.route.action {
            Action::Forward(_) | Action::NonForwarding => {}
            Action::Redirect(_) | Action::Direct { .. } => return Opening::PASS,
        }
        let policies = Policies(settings.levels());
        if policies.0.is_empty() {
            return Opening::PASS;
        }
        let mut sharing = Sharing { policies, origin: None, reply: None };
        let thread = stream.worker.stats();
        let stats = self
            .stats
            .of(thread, || CorsStats::kept(thread, &format!("http.{}.cors.", stream.manager.stat_prefix)));
        sharing.reply = sharing.request(head, stream.worker.random(), stats);
        if sharing.origin.is_none() {
            // The response says nothing then.
            return Opening::Done(sharing.reply.map_or(Step::Continue, Step::Reply));
        }
        Opening::Open(Box::new(sharing))
    }
}

/// The filter at work.
struct Sharing {
    policies: Policies,
    /// The request's origin, if it is allowed.
    origin: Option<Box<[u8]>>,
    /// The answer to a preflight.
    reply: Option<Reply>,
}

impl HttpStreamFilter for Sharing {
    fn on_request(&mut self, _stream: &mut Stream, _head: &mut HeaderMap, _end: bool) -> Step {
        self.reply.take().map_or(Step::Continue, Step::Reply)
    }

    fn on_response(&mut self, _stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        self.response(head);
        Step::Continue
    }
}

impl Sharing {
    /// Looks at a request; a preflight is answered.
    fn request(&mut self, head: &HeaderMap, random: u64, stats: &CorsStats) -> Option<Reply> {
        let (enabled, counted) = self.policies.enabled(random);
        let origin = head.get(Known::Origin).filter(|origin| counted && !origin.is_empty())?;
        let allowed = self.policies.allows(origin);
        if allowed {
            stats.origin_valid().inc();
        } else {
            stats.origin_invalid().inc();
        }
        if !enabled {
            return None;
        }
        self.origin = allowed.then(|| origin.into());
        let method = head.find("access-control-request-method").filter(|method| !method.is_empty())?;
        if head.method() != b"OPTIONS" {
            return None;
        }
        if !allowed && self.policies.first(|policy| policy.forward_not_matching).unwrap_or(true) {
            return None;
        }
        Some(self.answer(head, method))
    }

    /// The answer to a preflight. What all responses get, `response` adds.
    fn answer(&self, head: &HeaderMap, method: &[u8]) -> Reply {
        let or_requested = |text: &str, requested: &[u8]| match text {
            "*" => requested.to_vec(),
            text => text.as_bytes().to_vec(),
        };
        let mut reply = Reply::new(200, "cors_response", "");
        if let Some(origin) = &self.origin {
            reply = reply.header("access-control-allow-origin", origin.to_vec());
        }
        if self.policies.credentials() {
            reply = reply.header("access-control-allow-credentials", b"true".as_slice());
        }
        if let Some(methods) = self.policies.first(|policy| policy.methods.as_deref()) {
            reply = reply.header("access-control-allow-methods", or_requested(methods, method));
        }
        if let Some(headers) = self.policies.first(|policy| policy.headers.as_deref()) {
            let requested = head.find("access-control-request-headers").unwrap_or_default();
            reply = reply.header("access-control-allow-headers", or_requested(headers, requested));
        }
        if let Some(max_age) = self.policies.first(|policy| policy.max_age.as_deref()) {
            reply = reply.header("access-control-max-age", max_age.as_bytes().to_vec());
        }
        let private = self.policies.first(|policy| policy.private_network).unwrap_or(false);
        if private && head.find("access-control-request-private-network") == Some(b"true") {
            reply = reply.header("access-control-allow-private-network", b"true".as_slice());
        }
        reply
    }

    /// Says in a response that the request's origin may read it.
    fn response(&self, head: &mut HeaderMap) {
        let Some(origin) = &self.origin else { return };
        head.set_named("access-control-allow-origin", origin);
        if self.policies.credentials() {
            head.set_named("access-control-allow-credentials", b"true");
        }
        if let Some(expose) = self.policies.first(|policy| policy.expose.as_deref()) {
            head.set_named("access-control-expose-headers", expose.as_bytes());
        }
    }
}
