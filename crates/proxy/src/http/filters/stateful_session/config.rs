//! Lowering of StatefulSession and StatefulSessionPerRoute.

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::stateful_session::v3 as proto;
use leno_api::proto::envoy::extensions::http::stateful_session as sessions;
use leno_api::proto::envoy::r#type::http::v3 as http;

use super::session::{Session, SessionCookie};
use super::{RouteSession, Settings, StatefulSession};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::http::route::matcher::header_name;

/// Lowers StatefulSession.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto = at.unpack(any)?;
    Some(Arc::new(StatefulSession(Arc::new(settings(proto, false, at)?))))
}

/// Lowers StatefulSessionPerRoute.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    use proto::stateful_session_per_route::Override;
    let proto::StatefulSessionPerRoute { r#override } = at.unpack(any)?;
    Some(Arc::new(match r#override {
        Some(Override::Disabled(disabled)) => {
            if !disabled {
                at.error_at("disabled", "value must equal true");
            }
            RouteSession(None)
        }
        Some(Override::StatefulSession(proto)) => {
            let settings = at.field("stateful_session", |at| settings(proto, true, at))?;
            RouteSession(Some(Arc::new(settings)))
        }
        None => {
            at.error("one of disabled and stateful_session is required");
            return None;
        }
    }))
}

fn settings(proto: proto::StatefulSession, of_route: bool, at: &mut Lower) -> Option<Settings> {
    let proto::StatefulSession {
        session_state,
        strict,
        stat_prefix,
        status_on_strict_destination_not_found: status,
    } = proto;
    let session = match session_state {
        None => None,
        Some(extension) => Some(at.field("session_state.typed_config", |at| {
            let Some(any) = extension.typed_config else {
                at.error("value is required");
                return None;
            };
            let any = at.extension(any)?;
            session(&extension.name, &any, at)
        })?),
    };
    let status = u16::try_from(status).ok().filter(|status| strict && *status > 0);
    let stat_prefix = (!stat_prefix.is_empty()).then(|| stat_prefix.into());
    Some(Settings { session, strict, status, stat_prefix, of_route })
}

fn session(name: &str, any: &prost_types::Any, at: &mut Lower) -> Option<Session> {
    let session = session_state(name, any, at)?;
    // Envoy finds these by their names.
    let expected = match session {
        Session::Cookie(_) => "envoy.http.stateful_session.cookie",
        Session::Header(_) => "envoy.http.stateful_session.header",
        Session::Envelope(_) => "envoy.http.stateful_session.envelope",
    };
    if name != expected {
        at.error(format!("expected the name '{expected}', got '{name}'"));
    }
    Some(session)
}

fn session_state(name: &str, any: &prost_types::Any, at: &mut Lower) -> Option<Session> {
    use sessions::cookie::v3::CookieBasedSessionState;
    use sessions::envelope::v3::{EnvelopeSessionState, envelope_session_state};
    use sessions::header::v3::HeaderBasedSessionState;
    if leno_api::any::is::<CookieBasedSessionState>(any) {
        let CookieBasedSessionState { cookie } = at.unpack(any)?;
        return at.required("cookie", cookie, lower_cookie).map(Session::Cookie);
    }
    if leno_api::any::is::<HeaderBasedSessionState>(any) {
        let HeaderBasedSessionState { name } = at.unpack(any)?;
        if name.is_empty() {
            at.error_at("name", "value length must be at least 1 characters");
        }
        return Some(Session::Header(header_name(&name)));
    }
    if leno_api::any::is::<EnvelopeSessionState>(any) {
        let EnvelopeSessionState { header } = at.unpack(any)?;
        return at.required("header", header, |envelope_session_state::Header { name }, at| {
            if name.is_empty() {
                at.error_at("name", "value length must be at least 1 characters");
            }
            Some(Session::Envelope(header_name(&name)))
        });
    }
    at.unsupported_extension(name, &any.type_url);
    None
}

fn lower_cookie(proto: http::Cookie, at: &mut Lower) -> Option<SessionCookie> {
    let http::Cookie { name, ttl, path, attributes } = proto;
    if name.is_empty() {
        at.error_at("name", "value length must be at least 1 characters");
    }
    let ttl = at.duration("ttl", ttl).unwrap_or_default();
    let mut text = String::new();
    for http::CookieAttribute { name, value } in attributes {
        text.push_str("; ");
        text.push_str(&name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(&value);
        }
    }
    Some(SessionCookie { name: name.into(), path: path.into(), ttl, attributes: text.into() })
}
