//! Lowering of FilterConfig and PerRouteConfig.

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as proto;
use proto::filter_config::ImplementationSpecifier;
use proto::per_route_config::HostRewriteSpecifier;

use super::{DynamicForwardProxy, HostRewrite};
use crate::cluster::dns_cache;
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::http::route::matcher::header_name;

/// Lowers FilterConfig.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::FilterConfig {
        save_upstream_address,
        allow_dynamic_host_from_filter_state,
        implementation_specifier,
    } = at.unpack(any)?;
    at.unsupported("save_upstream_address", save_upstream_address);
    at.unsupported("allow_dynamic_host_from_filter_state", allow_dynamic_host_from_filter_state);
    let cache = match implementation_specifier {
        Some(ImplementationSpecifier::DnsCacheConfig(config)) => {
            at.field("dns_cache_config", |at| dns_cache::config::lower(config, at))?
        }
        Some(ImplementationSpecifier::SubClusterConfig(_)) => {
            at.unsupported("sub_cluster_config", true);
            return None;
        }
        None => {
            at.unsupported("implementation_specifier that is not set", true);
            return None;
        }
    };
    Some(Arc::new(DynamicForwardProxy { cache }))
}

/// Lowers PerRouteConfig.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::PerRouteConfig { host_rewrite_specifier } = at.unpack(any)?;
    Some(Arc::new(match host_rewrite_specifier? {
        HostRewriteSpecifier::HostRewriteLiteral(host) => HostRewrite::Literal(host.into()),
        HostRewriteSpecifier::HostRewriteHeader(name) => HostRewrite::Header(header_name(&name)),
    }))
}
