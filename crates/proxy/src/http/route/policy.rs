//! Lowering of what a route may say about retries, endpoints and mirroring.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3::Metadata;
use leno_api::proto::envoy::config::route::v3 as proto;
use leno_api::proto::envoy::extensions::internal_redirect as predicates;
use leno_api::proto::envoy::extensions::retry::host::omit_canary_hosts::v3::OmitCanaryHostsPredicate;
use leno_api::proto::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use leno_api::proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use leno_api::proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use leno_base::Name;
use proto::route_action::RequestMirrorPolicy;

use crate::cluster::lb::metadata::MetadataMatch;
use crate::config::address;
use crate::config::lower::Lower;
use crate::http::route::config::runtime_fraction;
use crate::http::route::matcher::{self, header_name};
use crate::http::route::mutation::change;
use crate::http::route::{
    ClusterChoice, InternalRedirects, Mirror, OmitHost, RateLimited, RedirectPredicate, ResetHeader, RetryOn,
    RetryPolicy,
};

/// Envoy's back-off base where none is given.
const DEFAULT_BACK_OFF: Duration = Duration::from_millis(25);

/// How long Envoy believes a rate limit to last at most where nothing is configured.
const DEFAULT_RESET_LIMIT: Duration = Duration::from_secs(300);

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

/// Whether `x-envoy-retry-on` may name this condition.
pub(crate) fn is_http_retry_on(name: &str) -> bool {
    retry_on(name).intersects(RetryOn::HTTP)
}

/// Whether `x-envoy-retry-grpc-on` may name this condition.
pub(crate) fn is_grpc_retry_on(name: &str) -> bool {
    retry_on(name).intersects(RetryOn::GRPC)
}

/// Lowers a RetryPolicy, of which large configurations have many that are equal.
pub(crate) fn retry(proto: proto::RetryPolicy, at: &mut Lower) -> Option<Arc<RetryPolicy>> {
    at.shared(proto, lower_retry)
}

fn lower_retry(proto: proto::RetryPolicy, at: &mut Lower) -> Option<RetryPolicy> {
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
    let previous_priorities = at.optional("retry_priority", retry_priority, previous_priorities);
    at.each("retry_options_predicates", retry_options_predicates, |predicate, at| {
        // There are none that come with Envoy either.
        let type_url = predicate.typed_config.map(|any| any.type_url).unwrap_or_default();
        at.unsupported_extension(&predicate.name, &type_url);
        None::<()>
    });
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
                let PreviousHostsPredicate {} = at.unpack(&any)?;
                return Some(OmitHost::Previous);
            }
            if leno_api::any::is::<OmitCanaryHostsPredicate>(&any) {
                let OmitCanaryHostsPredicate {} = at.unpack(&any)?;
                return Some(OmitHost::Canary);
            }
            if leno_api::any::is::<OmitHostMetadataConfig>(&any) {
                let OmitHostMetadataConfig { metadata_match } = at.unpack(&any)?;
                let metadata = address::metadata("metadata_match", metadata_match, at);
                let labels = metadata.get("envoy.lb").and_then(|labels| labels.as_object());
                let labels = labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
                return Some(OmitHost::Metadata(labels.collect()));
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
    let rate_limited =
        at.optional("rate_limited_retry_back_off", rate_limited_retry_back_off, |proto, at| {
            let proto::retry_policy::RateLimitedRetryBackOff { reset_headers, max_interval } = proto;
            let headers = at.each("reset_headers", reset_headers, |proto, at| {
                let proto::retry_policy::ResetHeader { name, format } = proto;
                use proto::retry_policy::ResetHeaderFormat as Format;
                let unix_timestamp = at.value::<Format>("format", format)? == Format::UnixTimestamp;
                Some(ResetHeader { name: header_name(&name), unix_timestamp })
            });
            let max = at.duration("max_interval", max_interval).unwrap_or(DEFAULT_RESET_LIMIT);
            Some(RateLimited { headers, max })
        });
    // What cannot be a status never matches.
    let status_codes =
        retriable_status_codes.into_iter().filter_map(|code| u16::try_from(code).ok()).collect();
    Some(RetryPolicy {
        on: retry_on(&on),
        max_retries: num_retries.unwrap_or(1),
        per_try_timeout: at.timeout("per_try_timeout", per_try_timeout, None),
        per_try_idle_timeout: at.timeout("per_try_idle_timeout", per_try_idle_timeout, None),
        status_codes,
        headers: at.each("retriable_headers", retriable_headers, matcher::header),
        request_headers: at.each("retriable_request_headers", retriable_request_headers, matcher::header),
        back_off: back_off.unwrap_or((DEFAULT_BACK_OFF, DEFAULT_BACK_OFF * 10)),
        rate_limited,
        omit: predicates,
        host_selection_attempts: match u32::try_from(host_selection_retry_max_attempts) {
            Ok(0) | Err(_) => 1,
            Ok(attempts) => attempts,
        },
        previous_priorities,
    })
}

fn previous_priorities(proto: proto::retry_policy::RetryPriority, at: &mut Lower) -> Option<NonZeroU32> {
    let proto::retry_policy::RetryPriority { name, config_type } = proto;
    let Some(proto::retry_policy::retry_priority::ConfigType::TypedConfig(any)) = config_type else {
        at.error_at("typed_config", format!("retry priority '{name}' must have a typed config"));
        return None;
    };
    at.field("typed_config", |at| {
        let any = at.extension(any)?;
        if !leno_api::any::is::<PreviousPrioritiesConfig>(&any) {
            at.unsupported_extension(&name, &any.type_url);
            return None;
        }
        let PreviousPrioritiesConfig { update_frequency } = at.unpack(&any)?;
        let frequency = u32::try_from(update_frequency).ok().and_then(NonZeroU32::new);
        if frequency.is_none() {
            // Deviation: Envoy notices when a request is to be tried again, and ends then.
            at.error_at("update_frequency", "value must be greater than 0");
        }
        frequency
    })
}

/// Lowers `metadata_match`; `None`: it says nothing to balancers.
pub(super) fn metadata_match(proto: Option<Metadata>, at: &mut Lower) -> Option<Box<MetadataMatch>> {
    let metadata = address::metadata("metadata_match", proto, at);
    MetadataMatch::merge(None, &metadata)
}

/// Lowers a RequestMirrorPolicy.
pub(crate) fn mirror(proto: RequestMirrorPolicy, at: &mut Lower) -> Option<Arc<Mirror>> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction: fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = proto;
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
    Some(Arc::new(Mirror {
        cluster,
        fraction,
        sampled: trace_sampled != Some(false),
        host_suffix: !disable_shadow_host_suffix_append,
        host_rewrite: (!host_rewrite_literal.is_empty()).then(|| host_rewrite_literal.into()),
        changes: at.each("request_headers_mutations", request_headers_mutations, change),
    }))
}

/// Lowers an InternalRedirectPolicy, or the deprecated fields in its place.
pub(super) fn internal_redirects(
    policy: Option<proto::InternalRedirectPolicy>,
    action: i32,
    max: Option<u32>,
    at: &mut Lower,
) -> Option<Box<InternalRedirects>> {
    use proto::route_action::InternalRedirectAction as Action;
    let Some(policy) = policy else {
        let action = at.value::<Action>("internal_redirect_action", action)?;
        return (action == Action::HandleInternalRedirect).then(|| {
            Box::new(InternalRedirects {
                max: max.unwrap_or(1),
                codes: vec![302],
                cross_scheme: false,
                predicates: Vec::new(),
                copied: Vec::new(),
            })
        });
    };
    at.field("internal_redirect_policy", |at| {
        let proto::InternalRedirectPolicy {
            max_internal_redirects,
            redirect_response_codes,
            predicates,
            allow_cross_scheme_redirect,
            response_headers_to_copy,
        } = policy;
        let known = |code: &u32| matches!(code, 301 | 302 | 303 | 307 | 308);
        // As Envoy: codes that are no redirects are left out, and nothing left means the default.
        let codes = redirect_response_codes.iter().filter(|code| known(code));
        let mut codes: Vec<u16> = codes.filter_map(|code| u16::try_from(*code).ok()).collect();
        if codes.is_empty() {
            codes.push(302);
        }
        let copied = at.each("response_headers_to_copy", response_headers_to_copy, |name, at| {
            if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
                at.error(":-prefixed headers or Hosts may not be specified here.");
                return None;
            }
            Some(Name::from(name.to_ascii_lowercase()))
        });
        Some(Box::new(InternalRedirects {
            max: max_internal_redirects.unwrap_or(1),
            codes,
            cross_scheme: allow_cross_scheme_redirect,
            predicates: at.each("predicates", predicates, redirect_predicate),
            copied,
        }))
    })
}

fn redirect_predicate(
    extension: leno_api::proto::envoy::config::core::v3::TypedExtensionConfig,
    at: &mut Lower,
) -> Option<RedirectPredicate> {
    let name = extension.name;
    let any = at.required("typed_config", extension.typed_config, |any, at| at.extension(any))?;
    at.field("typed_config", |at| match leno_api::any::type_name(&any.type_url) {
        "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig" => {
            let predicates::previous_routes::v3::PreviousRoutesConfig {} = at.unpack(&any)?;
            Some(RedirectPredicate::Previous)
        }
        "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig" => {
            let predicates::allow_listed_routes::v3::AllowListedRoutesConfig { allowed_route_names } =
                at.unpack(&any)?;
            Some(RedirectPredicate::Listed(allowed_route_names.into_iter().map(Into::into).collect()))
        }
        "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig" => {
            let predicates::safe_cross_scheme::v3::SafeCrossSchemeConfig {} = at.unpack(&any)?;
            Some(RedirectPredicate::SafeCrossScheme)
        }
        _ => {
            at.unsupported_extension(&name, &any.type_url);
            None
        }
    })
}
