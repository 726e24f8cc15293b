//! Lowering of CsrfPolicy.

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::csrf::v3 as proto;

use super::{Csrf, Policy};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::http::route::config::runtime_fraction;
use crate::http::route::matcher::string;

/// Lowers the chain's CsrfPolicy.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    Some(Arc::new(Csrf { policy: policy(any, at)?, stats: Default::default() }))
}

/// Lowers a route's CsrfPolicy.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(policy(any, at)?))
}

fn policy(any: &prost_types::Any, at: &mut Lower) -> Option<Policy> {
    let proto::CsrfPolicy { filter_enabled, shadow_enabled, additional_origins } = at.unpack(any)?;
    let enabled = at.required("filter_enabled", filter_enabled, runtime_fraction);
    Some(Policy {
        enabled: enabled?,
        shadow: at.optional("shadow_enabled", shadow_enabled, runtime_fraction).unwrap_or((0, 100)),
        origins: at.each("additional_origins", additional_origins, string),
    })
}
