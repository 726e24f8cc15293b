//! `envoy.filters.http.set_filter_state`: leaves objects made of a format string in the stream's
//! filter state, and has the route looked up again if that may depend on them.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::common::set_filter_state::v3 as common;
use leno_api::proto::envoy::extensions::filters::http::set_filter_state::v3 as proto;

use crate::config::lower::Lower;
use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings};
use crate::http::headers::HeaderMap;
use crate::http::stream::Stream;
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::config::substitution_format;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::stream_info::{FilterState, StreamInfo};

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.set_filter_state",
    config_type: "envoy.extensions.filters.http.set_filter_state.v3.Config",
    lower,
    route_type: Some("envoy.extensions.filters.http.set_filter_state.v3.Config"),
    lower_route: Some(lower_route),
};

/// Config.
#[derive(Debug)]
struct SetFilterState {
    values: Vec<StateValue>,
    clear_route_cache: bool,
}

/// FilterStateValue.
#[derive(Debug)]
pub(crate) struct StateValue {
    key: Box<str>,
    kind: ObjectKind,
    format: Format,
    /// What stands for an absent value.
    absent: &'static str,
    skip_if_empty: bool,
}

/// What an object's text must be. A text that is not leaves the object out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ObjectKind {
    Text,
    Ip,
    Address,
    Number,
}

/// The factories that Envoy has for objects.
const FACTORIES: &[(&str, ObjectKind)] = &[
    ("envoy.filters.listener.original_dst.local_ip", ObjectKind::Address),
    ("envoy.filters.listener.original_dst.remote_ip", ObjectKind::Address),
    ("envoy.hashable_string", ObjectKind::Text),
    ("envoy.network.application_protocols", ObjectKind::Text),
    ("envoy.network.ip", ObjectKind::Ip),
    ("envoy.network.network_namespace", ObjectKind::Text),
    ("envoy.network.transport_socket.original_dst_address", ObjectKind::Address),
    ("envoy.network.upstream_server_name", ObjectKind::Text),
    ("envoy.network.upstream_subject_alt_names", ObjectKind::Text),
    ("envoy.ratelimit.hits_addend", ObjectKind::Number),
    ("envoy.string", ObjectKind::Text),
    ("envoy.tcp_proxy.cluster", ObjectKind::Text),
    ("envoy.tcp_proxy.disable_tunneling", ObjectKind::Text),
    ("envoy.tcp_proxy.per_connection_idle_timeout_ms", ObjectKind::Number),
    ("envoy.upstream.dynamic_host", ObjectKind::Text),
    ("envoy.upstream.dynamic_port", ObjectKind::Number),
];

impl ObjectKind {
    fn takes(self, text: &str) -> bool {
        match self {
            ObjectKind::Text => true,
            ObjectKind::Ip => text.parse::<IpAddr>().is_ok(),
            ObjectKind::Address => text.parse::<SocketAddr>().is_ok(),
            ObjectKind::Number => text.parse::<u64>().is_ok(),
        }
    }
}

impl FilterConfig for SetFilterState {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        // The filter's own values first, then those of the route, the least specific level first.
        let levels = settings.map(RouteSettings::levels::<SetFilterState>).unwrap_or_default();
        let mut refresh = self.clear_route_cache;
        self.set(stream, head);
        for level in levels.iter().rev() {
            level.set(stream, head);
            refresh |= level.clear_route_cache;
        }
        if refresh {
            stream.refresh_route(head);
        }
        Opening::PASS
    }
}

impl SetFilterState {
    fn set(&self, stream: &mut Stream, head: &HeaderMap) {
        self.values.iter().for_each(|value| value.set(&mut stream.info, Some(head)));
    }
}

impl StateValue {
    /// Leaves the object in a stream's filter state.
    pub(crate) fn set(&self, info: &mut StreamInfo, request: Option<&HeaderMap>) {
        let mut text = Vec::new();
        self.format.format(&FormatContext { request, ..FormatContext::new(info) }, self.absent, &mut text);
        if text.is_empty() && self.skip_if_empty {
            return;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        if self.kind.takes(&text) {
            info.filter_state.insert(self.key.to_string(), FilterState { text, typed: None, peer: None });
        }
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    Some(Arc::new(lower_config(any, at)?))
}

fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
    Some(Arc::new(lower_config(any, at)?))
}

fn lower_config(any: &prost_types::Any, at: &mut Lower) -> Option<SetFilterState> {
    let proto::Config { on_request_headers, clear_route_cache } = at.unpack(any)?;
    let values = at.each("on_request_headers", on_request_headers, value);
    Some(SetFilterState { values, clear_route_cache })
}

/// Lowers a FilterStateValue.
pub(crate) fn value(proto: common::FilterStateValue, at: &mut Lower) -> Option<StateValue> {
    let common::FilterStateValue {
        factory_key,
        // Has no effect in Envoy either.
        read_only: _,
        shared_with_upstream,
        skip_if_empty,
        key,
        value,
    } = proto;
    // Objects stay with their stream: none goes along to internal listeners.
    at.unsupported("shared_with_upstream", shared_with_upstream != 0);
    let Some(common::filter_state_value::Key::ObjectKey(key)) = key else {
        at.error_at("key", "value is required");
        return None;
    };
    let factory = if factory_key.is_empty() { key.as_str() } else { factory_key.as_str() };
    let Some((_, kind)) = FACTORIES.iter().find(|(name, _)| *name == factory) else {
        at.error(format!("'{factory}' does not have an object factory"));
        return None;
    };
    let format = value.map(|common::filter_state_value::Value::FormatString(format)| format);
    let format = at.required("format_string", format, substitution_format)?;
    let LogFormat::Text { format, omit_empty } = format else {
        at.unsupported("format_string.json_format", true);
        return None;
    };
    let absent = if omit_empty { "" } else { "-" };
    Some(StateValue { key: key.into(), kind: *kind, format, absent, skip_if_empty })
}
