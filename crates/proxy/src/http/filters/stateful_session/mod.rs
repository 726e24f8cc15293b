//! `envoy.filters.http.stateful_session`: requests of a session go to the endpoint that answered
//! its first one. The client brings the endpoint's address along, in a cookie or a header.
//!
//! The balancer does the rest (`StreamInfo::upstream.override_host`).

mod config;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::session::Session;
use crate::http::filters::{FilterConfig, HttpStreamFilter, Opening, Registration, RouteSettings, Step};
use crate::http::headers::HeaderMap;
use crate::http::stream::Stream;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{ResponseFlags, StickyHost};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.stateful_session",
    config_type: "envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute"),
    lower_route: Some(config::lower_route),
};

stats_scope! {
    /// `http.STAT_PREFIX.stateful_session.OWN_PREFIX.`; of a route, `stateful_session.OWN_PREFIX.`
    struct SessionStats {
        counter failed_closed;
        counter failed_open;
        counter no_session;
        counter routed;
    }
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct StatefulSession(Arc<Settings>);

/// StatefulSession, of the chain or of a route.
#[derive(Debug)]
struct Settings {
    /// `None`: there are no sessions.
    session: Option<Session>,
    strict: bool,
    /// What is answered in place of 503 where a strict session's endpoint is gone.
    status: Option<u16>,
    /// `stat_prefix`; `None`: nothing is counted.
    stat_prefix: Option<Box<str>>,
    of_route: bool,
}

/// StatefulSessionPerRoute; `None`: disabled.
#[derive(Debug)]
struct RouteSession(Option<Arc<Settings>>);

impl FilterConfig for StatefulSession {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let config = match settings.and_then(RouteSettings::first::<RouteSession>) {
            Some(RouteSession(None)) => return Opening::PASS,
            Some(RouteSession(Some(config))) => config,
            None => &self.0,
        };
        let stats = config.stat_prefix.as_ref().map(|own| {
            let prefix = match config.of_route {
                false => format!("http.{}.stateful_session.{own}.", stream.manager.stat_prefix),
                true => format!("stateful_session.{own}."),
            };
            SessionStats::kept(stream.worker.stats(), &prefix)
        });
        let session = config.session.as_ref().filter(|session| session.covers(head));
        if session.is_none() && stats.is_none() {
            return Opening::PASS;
        }
        let address = session.and_then(|session| session.read(head, stream.info.start_time));
        if let Some(address) = &address {
            let host = StickyHost { address: address.clone(), strict: config.strict };
            stream.info.upstream.override_host = Some(Box::new(host));
        }
        let in_session = session.is_some();
        Opening::Open(Box::new(InSession { settings: Arc::clone(config), in_session, address, stats }))
    }
}

/// The filter at work on one request.
struct InSession {
    settings: Arc<Settings>,
    in_session: bool,
    /// The endpoint that the client has named.
    address: Option<Box<str>>,
    stats: Option<SessionStats>,
}

impl HttpStreamFilter for InSession {
    fn on_response(&mut self, stream: &mut Stream, head: &mut HeaderMap, _end: bool) -> Step {
        let count = |counter: fn(&SessionStats)| self.stats.as_ref().into_iter().for_each(counter);
        let host = stream.info.upstream.host;
        let session = self.settings.session.as_ref().filter(|_| self.in_session);
        let Some(session) = session else {
            if host.is_some() {
                count(|stats| stats.no_session().inc());
            }
            return Step::Continue;
        };
        let Some(host) = host else {
            let gone = stream.info.flags.intersects(ResponseFlags::NO_HEALTHY_UPSTREAM);
            if gone && self.settings.strict {
                count(|stats| stats.failed_closed().inc());
                if let Some(status) = self.settings.status
                    && head.status() == 503
                    && self.address.is_some()
                {
                    head.set_status(status);
                }
            }
            return Step::Continue;
        };
        let host = host.to_string();
        let moved = self.address.as_deref() != Some(host.as_str());
        session.write(&host, moved, stream.info.start_time, head);
        // Envelopes are written anew with each answer, which Envoy does not count as a move.
        if !moved || matches!(session, Session::Envelope(_)) {
            count(|stats| stats.routed().inc());
        } else if !self.settings.strict {
            count(|stats| stats.failed_open().inc());
        }
        Step::Continue
    }
}
