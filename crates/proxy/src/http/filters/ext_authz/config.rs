//! Lowering of ExtAuthz and ExtAuthzPerRoute.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::proto::envoy::config::common::mutation_rules::v3 as rules;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::ext_authz::v3 as proto;
use leno_api::proto::envoy::r#type::matcher::v3 as matcher;
use leno_api::proto::envoy::r#type::v3 as types;
use proto::check_settings::ServiceOverride;
use proto::ext_authz::Services;
use proto::ext_authz_per_route::Override;

use super::apply::MutationRules;
use super::service::{HttpService, Service, TIMEOUT};
use super::{BodySettings, ExtAuthz, RouteAuthz, Settings, check};
use crate::config::lower::Lower;
use crate::config::runtime;
use crate::http::client::config::{grpc, http_uri};
use crate::http::filters::FilterConfig;
use crate::http::route::config::runtime_fraction;
use crate::http::route::matcher::{StringMatcher, full_regex, string};
use crate::http::route::mutation::{HeaderMutations, lower_added};
use crate::matching::value;

/// Lowers ExtAuthz.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::ExtAuthz {
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        validate_mutations,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
        shadow_mode,
        emit_client_span,
        services,
    } = at.unpack(any)?;
    at.unsupported("typed_metadata_context_namespaces", !typed_metadata_context_namespaces.is_empty());
    at.unsupported(
        "route_typed_metadata_context_namespaces",
        !route_typed_metadata_context_namespaces.is_empty(),
    );
    at.unsupported("filter_metadata", filter_metadata.is_some());
    at.unsupported("emit_filter_state_stats", emit_filter_state_stats);
    at.unsupported("enforce_response_header_limits", enforce_response_header_limits);
    at.unsupported("shadow_mode", shadow_mode);
    let is_http = matches!(services, Some(Services::HttpService(_)));
    if !is_http {
        check_version(transport_api_version, at);
    }
    let mut allowed = allowed_headers.map(|list| strings("allowed_headers", Some(list), at));
    let service = match services {
        Some(Services::GrpcService(service)) => {
            at.field("grpc_service", |at| grpc(service, at)).map(|target| Service::Grpc(Arc::new(target)))
        }
        Some(Services::HttpService(service)) => at.field("http_service", |at| {
            let (service, own) = http_service(service, at)?;
            if own.is_some() && allowed.is_some() {
                at.error("invalid duplicate configuration for allowed_headers");
            }
            allowed = Some(allowed.take().or(own).unwrap_or_default());
            Some(Service::Http(Arc::new(service)))
        }),
        None => {
            // Envoy takes it, and fails at the first request.
            at.unsupported("grpc_service", true);
            None
        }
    };
    let pack_as_bytes = with_request_body.as_ref().is_some_and(|body| body.pack_as_bytes);
    let labels = check::labels(&bootstrap_metadata_labels_key, at);
    let enabled_metadata = match filter_enabled_metadata {
        Some(proto) => Some(at.field("filter_enabled_metadata", |at| value::metadata(proto, at))?),
        None => None,
    };
    let service = service?;
    if emit_client_span == Some(false) && matches!(service, Service::Grpc(_)) {
        tracing::warn!(target: "config", "ext_authz: emit_client_span has no effect on calls by gRPC, as in Envoy");
    }
    let settings = Settings {
        service: Arc::new(service),
        failure_mode_allow,
        failure_mode_allow_header: failure_mode_allow_header_add,
        body: with_request_body.and_then(|proto| at.field("with_request_body", |at| body(proto, at))),
        pack_as_bytes,
        clear_route_cache,
        status_on_error: status_on_error.map_or(403, status),
        validate_mutations,
        namespaces: metadata_context_namespaces.into_iter().map(Into::into).collect(),
        route_namespaces: route_metadata_context_namespaces.into_iter().map(Into::into).collect(),
        enabled: at.optional("filter_enabled", filter_enabled, runtime_fraction),
        enabled_metadata,
        deny_at_disable: deny_at_disable.is_some() && runtime::flag(deny_at_disable, at),
        include_certificate: include_peer_certificate,
        include_tls_session,
        stat_prefix: match stat_prefix.is_empty() {
            true => Box::default(),
            false => format!("{stat_prefix}.").into(),
        },
        labels,
        allowed_headers: allowed,
        disallowed_headers: strings("disallowed_headers", disallowed_headers, at),
        charge_cluster: charge_cluster_response_stats.unwrap_or(true),
        raw_headers: encode_raw_headers,
        rules: at.optional("decoder_header_mutation_rules", decoder_header_mutation_rules, mutation_rules),
        takes_metadata: enable_dynamic_metadata_ingestion.unwrap_or(true),
        emits_span: emit_client_span != Some(false),
        longest_denial: max_denied_response_body_bytes as usize,
    };
    Some(Arc::new(ExtAuthz { settings: Arc::new(settings), stats: Default::default() }))
}

/// Lowers ExtAuthzPerRoute.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::ExtAuthzPerRoute { r#override } = at.unpack(any)?;
    let nothing = || RouteAuthz {
        disabled: false,
        extensions: Vec::new(),
        no_body: false,
        body: None,
        service: None,
        emits_span: None,
    };
    Some(Arc::new(match r#override {
        Some(Override::Disabled(disabled)) => RouteAuthz { disabled, ..nothing() },
        Some(Override::CheckSettings(settings)) => at.field("check_settings", |at| {
            let proto::CheckSettings {
                context_extensions,
                disable_request_body_buffering,
                with_request_body,
                emit_client_span,
                service_override,
            } = settings;
            if disable_request_body_buffering && with_request_body.is_some() {
                at.error(
                    "invalid configuration for check_settings: only one of disable_request_body_buffering or \
                     with_request_body can be set",
                );
            }
            let extensions: BTreeMap<_, _> = context_extensions.into_iter().collect();
            let service = match service_override {
                Some(ServiceOverride::GrpcService(service)) => {
                    let target = at.field("grpc_service", |at| grpc(service, at))?;
                    Some(Arc::new(Service::Grpc(Arc::new(target))))
                }
                Some(ServiceOverride::HttpService(service)) => {
                    let (service, own) = at.field("http_service", |at| http_service(service, at))?;
                    // What a service is told of headers is the filter's matter.
                    at.unsupported("http_service.authorization_request.allowed_headers", own.is_some());
                    Some(Arc::new(Service::Http(Arc::new(service))))
                }
                None => None,
            };
            Some(RouteAuthz {
                extensions: extensions.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
                no_body: disable_request_body_buffering,
                emits_span: emit_client_span,
                body: with_request_body.and_then(|proto| at.field("with_request_body", |at| body(proto, at))),
                service,
                ..nothing()
            })
        })?,
        None => {
            at.error("one of disabled and check_settings is required");
            return None;
        }
    }))
}

/// Refuses the versions of the protocol that Envoy does not speak any more.
pub(crate) fn check_version(version: i32, at: &mut Lower) {
    use core::ApiVersion;
    match at.value::<ApiVersion>("transport_api_version", version) {
        Some(ApiVersion::V3) | None => {}
        Some(ApiVersion::Auto | ApiVersion::V2) => {
            at.error_at(
                "transport_api_version",
                "V2 (and AUTO) xDS transport protocol versions are deprecated",
            );
        }
    }
}

fn status(proto: types::HttpStatus) -> u16 {
    let code = u16::try_from(proto.code).unwrap_or(0);
    if (100..=511).contains(&code) { code } else { 403 }
}

fn body(proto: proto::BufferSettings, at: &mut Lower) -> Option<BodySettings> {
    let proto::BufferSettings {
        max_request_bytes,
        allow_partial_message,
        // Of the filter's settings alone, as in Envoy.
        pack_as_bytes: _,
    } = proto;
    if max_request_bytes == 0 {
        at.error_at("max_request_bytes", "value must be greater than 0");
    }
    Some(BodySettings { max: max_request_bytes as usize, partial: allow_partial_message })
}

fn strings(field: &str, list: Option<matcher::ListStringMatcher>, at: &mut Lower) -> Vec<StringMatcher> {
    let matcher::ListStringMatcher { patterns } = list.unwrap_or_default();
    at.each(&format!("{field}.patterns"), patterns, string)
}

/// The service, and the headers that it is told of, where it says that itself.
#[allow(clippy::type_complexity, reason = "a name for it would say no more")]
fn http_service(
    proto: proto::HttpService,
    at: &mut Lower,
) -> Option<(HttpService, Option<Vec<StringMatcher>>)> {
    let proto::HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = proto;
    at.unsupported("retry_policy", retry_policy.is_some());
    for (field, path) in [("path_prefix", &path_prefix), ("path_override", &path_override)] {
        if !path.is_empty() && !path.starts_with('/') {
            at.error_at(field, format!("{field} should start with \"/\""));
        }
    }
    if !path_prefix.is_empty() && !path_override.is_empty() {
        at.error("only one of path_prefix or path_override may be set");
    }
    let has_timeout = server_uri.as_ref().is_some_and(|uri| uri.timeout.is_some());
    let mut target = at.required("server_uri", server_uri, http_uri)?;
    if !has_timeout {
        target.timeout = Some(TIMEOUT);
    }
    let (own, added) = match authorization_request {
        Some(proto::AuthorizationRequest { allowed_headers, headers_to_add }) => {
            let own =
                allowed_headers.map(|list| strings("authorization_request.allowed_headers", Some(list), at));
            (own, headers(headers_to_add, at))
        }
        None => (None, HeaderMutations::default()),
    };
    let proto::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = authorization_response.unwrap_or_default();
    let service = at.field("authorization_response", |at| HttpService {
        target,
        path_prefix: path_prefix.into(),
        path_override: path_override.into(),
        added,
        to_upstream: strings("allowed_upstream_headers", allowed_upstream_headers, at),
        to_upstream_appended: strings(
            "allowed_upstream_headers_to_append",
            allowed_upstream_headers_to_append,
            at,
        ),
        to_client: strings("allowed_client_headers", allowed_client_headers, at),
        to_client_on_success: strings(
            "allowed_client_headers_on_success",
            allowed_client_headers_on_success,
            at,
        ),
        to_metadata: strings("dynamic_metadata_from_headers", dynamic_metadata_from_headers, at),
    });
    Some((service, own))
}

/// Headers that are set in the question.
fn headers(protos: Vec<core::HeaderValue>, at: &mut Lower) -> HeaderMutations {
    let overwrite = core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;
    let options = protos.into_iter().map(|header| core::HeaderValueOption {
        header: Some(header),
        append_action: overwrite.into(),
        ..Default::default()
    });
    lower_added("authorization_request.headers_to_add", options.collect(), at)
}

fn mutation_rules(proto: rules::HeaderMutationRules, at: &mut Lower) -> Option<MutationRules> {
    let rules::HeaderMutationRules {
        allow_all_routing,
        allow_envoy,
        disallow_system,
        disallow_all,
        allow_expression,
        disallow_expression,
        disallow_is_error,
    } = proto;
    let is = |value: Option<bool>| value.unwrap_or(false);
    Some(MutationRules {
        allow_all_routing: is(allow_all_routing),
        allow_envoy: is(allow_envoy),
        disallow_system: is(disallow_system),
        disallow_all: is(disallow_all),
        allow: at.optional("allow_expression", allow_expression, full_regex),
        disallow: at.optional("disallow_expression", disallow_expression, full_regex),
        disallow_is_error: is(disallow_is_error),
    })
}
