//! Lowering of Cors and CorsPolicy.

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::cors::v3 as proto;

use super::{Cors, Policy};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::http::route::config::runtime_fraction;
use crate::http::route::matcher::string;

/// Lowers Cors, which says nothing: what is allowed is said by routes.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::Cors {} = at.unpack(any)?;
    Some(Arc::new(Cors::default()))
}

/// Lowers CorsPolicy.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = at.unpack(any)?;
    let text = |text: String| (!text.is_empty()).then(|| text.into_boxed_str());
    Some(Arc::new(Policy {
        origins: at.each("allow_origin_string_match", allow_origin_string_match, string),
        methods: text(allow_methods),
        headers: text(allow_headers),
        expose: text(expose_headers),
        max_age: text(max_age),
        credentials: allow_credentials,
        enabled: at.optional("filter_enabled", filter_enabled, runtime_fraction),
        shadow: at.optional("shadow_enabled", shadow_enabled, runtime_fraction),
        private_network: allow_private_network_access,
        forward_not_matching: forward_not_matching_preflights,
    }))
}
