//! Lowering of what a route may say about retries, hashing and mirroring.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::route::v3 as proto;
use leno_api::proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use proto::route_action::hash_policy::{self, PolicySpecifier};
use proto::route_action::{HashPolicy as HashPolicyProto, RequestMirrorPolicy};

use crate::config::lower::Lower;
use crate::http::route::config::runtime_fraction;
use crate::http::route::matcher::{self, header_name};
use crate::http::route::{ClusterChoice, Mirror, RetryOn, RetryPolicy};

/// Envoy's back-off base where none is given.
const DEFAULT_BACK_OFF: Duration = Duration::from_millis(25);

/// The conditions of `retry_on`, HTTP and gRPC in one list, as Envoy reads them from the field.
const CONDITIONS: &[(&str, RetryOn)] = &[
    ("5xx", RetryOn::SERVER_ERROR),
    ("gateway-error", RetryOn::GATEWAY_ERROR),
    ("reset", RetryOn::RESET),
    ("reset-before-request", RetryOn::RESET_BEFORE_REQUEST),
    ("connect-failure", RetryOn::CONNECT_FAILURE),
    ("envoy-ratelimited", RetryOn::ENVOY_RATELIMITED),
    ("retriable-4xx", RetryOn::RETRIABLE_4XX),
    ("refused-stream", RetryOn::REFUSED_STREAM),
    ("retriable-status-codes", RetryOn::RETRIABLE_STATUS_CODES),
    ("retriable-headers", RetryOn::RETRIABLE_HEADERS),
    ("http3-post-connect-failure", RetryOn::HTTP3_POST_CONNECT_FAILURE),
    ("cancelled", RetryOn::GRPC_CANCELLED),
    ("deadline-exceeded", RetryOn::GRPC_DEADLINE_EXCEEDED),
    ("internal", RetryOn::GRPC_INTERNAL),
    ("resource-exhausted", RetryOn::GRPC_RESOURCE_EXHAUSTED),
    ("unavailable", RetryOn::GRPC_UNAVAILABLE),
];

/// Reads a list of conditions, separated by commas; unknown ones are skipped, as Envoy does
/// here and in the request headers `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
pub(crate) fn retry_on(text: &str) -> RetryOn {
    let condition = |name: &str| CONDITIONS.iter().find(|(known, _)| *known == name).map(|(_, on)| *on);
    text.split(',').filter_map(|name| condition(name.trim())).fold(RetryOn::default(), RetryOn::union)
}

/// Lowers a RetryPolicy.
pub(super) fn retry(proto: proto::RetryPolicy, at: &mut Lower) -> Option<Arc<RetryPolicy>> {
    let proto::RetryPolicy {
        retry_on: on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = proto;
    at.unsupported("retry_priority", retry_priority.is_some());
    at.unsupported("retry_options_predicates", !retry_options_predicates.is_empty());
    at.unsupported("rate_limited_retry_back_off", rate_limited_retry_back_off.is_some());
    at.unsupported("refresh_cluster_on_retry", refresh_cluster_on_retry);
    let predicates = at.each("retry_host_predicate", retry_host_predicate, |predicate, at| {
        let proto::retry_policy::RetryHostPredicate { name, config_type } = predicate;
        let Some(proto::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)) = config_type
        else {
            at.error_at("typed_config", format!("retry host predicate '{name}' must have a typed config"));
            return None;
        };
        at.field("typed_config", |at| {
            let any = at.extension(any)?;
            if leno_api::any::is::<PreviousHostsPredicate>(&any) {
                return at.unpack::<PreviousHostsPredicate>(&any).map(|PreviousHostsPredicate {}| ());
            }
            at.unsupported_extension(&name, &any.type_url);
            None
        })
    });
    let back_off = at.optional("retry_back_off", retry_back_off, |proto, at| {
        let proto::retry_policy::RetryBackOff { base_interval, max_interval } = proto;
        // As Envoy, whose timers count milliseconds.
        let at_least = |interval: Duration| interval.max(Duration::from_millis(1));
        let base = at_least(at.duration("base_interval", base_interval)?);
        let max = at.duration("max_interval", max_interval).map_or(base * 10, at_least);
        if max < base {
            at.error_at("max_interval", "must be greater than or equal to the base_interval");
        }
        Some((base, max))
    });
    // What cannot be a status never matches.
    let status_codes =
        retriable_status_codes.into_iter().filter_map(|code| u16::try_from(code).ok()).collect();
    Some(Arc::new(RetryPolicy {
        on: retry_on(&on),
        max_retries: num_retries.unwrap_or(1),
        per_try_timeout: at.timeout("per_try_timeout", per_try_timeout, None),
        per_try_idle_timeout: at.timeout("per_try_idle_timeout", per_try_idle_timeout, None),
        status_codes,
        headers: at.each("retriable_headers", retriable_headers, matcher::header),
        request_headers: at.each("retriable_request_headers", retriable_request_headers, matcher::header),
        back_off: back_off.unwrap_or((DEFAULT_BACK_OFF, DEFAULT_BACK_OFF * 10)),
        previous_hosts: !predicates.is_empty(),
        host_selection_attempts: match u32::try_from(host_selection_retry_max_attempts) {
            Ok(0) | Err(_) => 1,
            Ok(attempts) => attempts,
        },
    }))
}

/// Checks a HashPolicy. Only hashing balancers read one (RING_HASH, MAGLEV, which are refused as
/// long as there are none); all others ignore it, as in Envoy.
pub(super) fn check_hash(proto: HashPolicyProto, at: &mut Lower) {
    let HashPolicyProto { terminal: _, policy_specifier } = proto;
    match policy_specifier {
        Some(PolicySpecifier::Header(hash_policy::Header { header_name: _, regex_rewrite })) => {
            at.unsupported("header.regex_rewrite", regex_rewrite.is_some());
        }
        Some(PolicySpecifier::Cookie(hash_policy::Cookie { name: _, ttl, path: _, attributes })) => {
            at.unsupported("cookie.attributes", !attributes.is_empty());
            at.duration("cookie.ttl", ttl);
        }
        Some(PolicySpecifier::ConnectionProperties(_) | PolicySpecifier::QueryParameter(_)) => {}
        Some(PolicySpecifier::FilterState(_)) => at.unsupported("filter_state", true),
        None => at.error("a policy is required"),
    }
}

/// Lowers a RequestMirrorPolicy.
pub(super) fn mirror(proto: RequestMirrorPolicy, at: &mut Lower) -> Option<Arc<Mirror>> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction: fraction,
        // Nothing is traced, so nothing is sampled.
        trace_sampled: _,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = proto;
    at.unsupported("disable_shadow_host_suffix_append", disable_shadow_host_suffix_append);
    at.unsupported("request_headers_mutations", !request_headers_mutations.is_empty());
    at.unsupported("host_rewrite_literal", !host_rewrite_literal.is_empty());
    let cluster = match (cluster.is_empty(), cluster_header.is_empty()) {
        (false, true) => ClusterChoice::Name(cluster.into()),
        (true, false) => ClusterChoice::Header(header_name(&cluster_header)),
        _ => {
            at.error(
                "exactly one of cluster and cluster_header must be specified in request_mirror_policies",
            );
            return None;
        }
    };
    let fraction = match fraction {
        Some(fraction) => at.field("runtime_fraction", |at| runtime_fraction(fraction, at))?,
        None => (100, 100),
    };
    Some(Arc::new(Mirror { cluster, fraction }))
}
