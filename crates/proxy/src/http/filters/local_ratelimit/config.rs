//! Lowering of LocalRateLimit.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::route::v3 as route;
use leno_api::proto::envoy::extensions::common::ratelimit::v3 as common;
use leno_api::proto::envoy::extensions::filters::http::local_ratelimit::v3 as proto;
use leno_api::proto::envoy::r#type::v3 as types;

use super::buckets::{Limit, Plan, Rate};
use super::{HostLimits, LocalRateLimit, Settings};
use crate::config::lower::Lower;
use crate::config::token_bucket;
use crate::http::filters::FilterConfig;
use crate::http::route::config::runtime_fraction;
use crate::http::route::mutation::lower_added;
use crate::http::route::rate_limit;

/// `max_dynamic_descriptors` where nothing is configured.
const MAX_DYNAMIC: usize = 20;

/// Lowers the chain's LocalRateLimit.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    Some(Arc::new(lower_config(any, at)?))
}

/// Lowers a route's LocalRateLimit.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(lower_config(any, at)?))
}

fn lower_config(any: &prost_types::Any, at: &mut Lower) -> Option<LocalRateLimit> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let proto::LocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors,
        enable_retry_after_header,
    } = at.unpack(any)?;
    at.unsupported("local_cluster_rate_limit", local_cluster_rate_limit.is_some());
    if stat_prefix.is_empty() {
        at.error_at("stat_prefix", "value length must be at least 1 characters");
    }
    let default = match token_bucket {
        Some(proto) => Some(at.field("token_bucket", |at| rate(proto, at))?),
        None => None,
    };
    let limits: Vec<Limit> = at.each("descriptors", descriptors, limit);
    for (index, limit) in limits.iter().enumerate() {
        if limits.iter().take(index).any(|other| other.entries == limit.entries) {
            at.error_at(
                &format!("descriptors[{index}]"),
                format!("duplicate descriptor in the local rate limit descriptor: {}", named(limit)),
            );
        }
    }
    let share = |field: &str, proto: Option<core::RuntimeFractionalPercent>, at: &mut Lower| {
        at.optional(field, proto, runtime_fraction).unwrap_or((0, 100))
    };
    let plan = Plan {
        default,
        limits,
        always_default: always_consume_default_token_bucket.unwrap_or(true),
        max_dynamic: max_dynamic_descriptors.map_or(MAX_DYNAMIC, |max| max as usize),
    };
    use common::{VhRateLimitsOptions as Host, XRateLimitHeadersRfcVersion as Version};
    let tells_limits = match at.value::<Version>("enable_x_ratelimit_headers", enable_x_ratelimit_headers)? {
        Version::Off => false,
        Version::DraftVersion03 => true,
    };
    let host_limits = match at.value::<Host>("vh_rate_limits", vh_rate_limits)? {
        Host::Override => HostLimits::Override,
        Host::Include => HostLimits::Include,
        Host::Ignore => HostLimits::Ignore,
    };
    let rate_limits = at.each("rate_limits", rate_limits, own_limit);
    let settings = Settings {
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        stat_prefix: format!("{stat_prefix}.http_local_rate_limit.").into(),
        status: status.map_or(429, status_code),
        shared: plan.buckets(),
        plan,
        per_connection: local_rate_limit_per_downstream_connection,
        enabled: share("filter_enabled", filter_enabled, at),
        enforced: share("filter_enforced", filter_enforced, at),
        request_headers: lower_added(
            "request_headers_to_add_when_not_enforced",
            request_headers_to_add_when_not_enforced,
            at,
        ),
        response_headers: lower_added("response_headers_to_add", response_headers_to_add, at),
        stage,
        rate_limits,
        host_limits,
        tells_limits,
        tells_wait: enable_retry_after_header,
        as_resource_exhausted: rate_limited_as_resource_exhausted,
        stats: Default::default(),
    };
    Some(LocalRateLimit(Arc::new(settings)))
}

/// Anything but an error is no answer to what is refused.
fn status_code(proto: types::HttpStatus) -> u16 {
    u16::try_from(proto.code).ok().filter(|code| *code >= 400).unwrap_or(429)
}

fn rate(proto: types::TokenBucket, at: &mut Lower) -> Option<Rate> {
    let (max, per_fill, interval) = token_bucket::rate(proto, at)?;
    Some(Rate { max, per_fill, interval })
}

fn limit(proto: common::LocalRateLimitDescriptor, at: &mut Lower) -> Option<Limit> {
    let common::LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = proto;
    at.unsupported("shadow_mode", shadow_mode);
    if entries.is_empty() {
        at.error_at("entries", "value must contain at least 1 item(s)");
    }
    let entry = |common::rate_limit_descriptor::Entry { key, value }| (key, value);
    let rate = at.required("token_bucket", token_bucket, rate)?;
    Some(Limit { entries: entries.into_iter().map(entry).collect(), rate })
}

fn named(limit: &Limit) -> String {
    let entries: Vec<String> = limit.entries.iter().map(|(key, value)| format!("{key}={value}")).collect();
    entries.join(",")
}

/// Lowers a RateLimit of the filter itself, which is for it alone.
fn own_limit(proto: route::RateLimit, at: &mut Lower) -> Option<rate_limit::RateLimit> {
    for (field, set) in [
        ("stage", proto.stage.is_some()),
        ("disable_key", !proto.disable_key.is_empty()),
        ("limit", proto.limit.is_some()),
    ] {
        if set {
            at.error_at(field, "is not supported in rate_limits of a filter");
        }
    }
    rate_limit::lower(proto, at)
}
