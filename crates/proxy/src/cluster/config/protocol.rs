//! Lowering of how HTTP is spoken to a cluster's endpoints.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::collections::BTreeMap;
use std::time::Duration;

use leno_api::proto::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::upstreams::http::v3 as http;
use prost_types::Any;

use super::extras;
use crate::cluster::extras::AnswerMatch;
use crate::cluster::{ClusterHttp, PoolLimits, ServerNames, UpstreamProtocol};
use crate::config::lower::Lower;
use crate::http::config::Http1Settings;
use crate::http::config::lower::{http1_options, http2_options, upstream_filters};
use crate::http::route::hash_policy::HashPolicies;
use crate::http::route::policy;

/// The fields of a Cluster that concern HTTP; all but the last are deprecated.
pub(super) struct Fields {
    pub(super) common_http_protocol_options: Option<core::HttpProtocolOptions>,
    pub(super) http_protocol_options: Option<core::Http1ProtocolOptions>,
    pub(super) http2_protocol_options: Option<core::Http2ProtocolOptions>,
    pub(super) protocol_selection: i32,
    pub(super) max_requests_per_connection: Option<u32>,
    pub(super) typed_extension_protocol_options: BTreeMap<String, Any>,
    pub(super) upstream_http_protocol_options: Option<core::UpstreamHttpProtocolOptions>,
    /// Whether TLS is spoken to some of its endpoints.
    pub(super) tls: bool,
}

/// Protocol and pool limits.
pub(super) struct Http {
    pub(super) protocol: UpstreamProtocol,
    pub(super) pool: PoolLimits,
    pub(super) overrides: ClusterHttp,
    /// Which answers are errors to outlier detection.
    pub(super) errors: Option<AnswerMatch>,
    /// `hash_policy`.
    pub(super) hashing: Option<HashPolicies>,
}

/// Lowers HttpProtocolOptions, or the deprecated fields where there are none.
pub(super) fn lower(fields: Fields, at: &mut Lower) -> Option<Http> {
    let Fields {
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        protocol_selection,
        max_requests_per_connection,
        typed_extension_protocol_options,
        upstream_http_protocol_options,
        tls,
    } = fields;
    let mut options = None;
    for (name, any) in typed_extension_protocol_options {
        at.field(&format!("typed_extension_protocol_options[\"{name}\"]"), |at| {
            let any = at.extension(any)?;
            if leno_api::any::is::<http::HttpProtocolOptions>(&any) {
                options = at.unpack::<http::HttpProtocolOptions>(&any);
                return options.clone().map(|options| (name, options));
            }
            at.unsupported_extension(&name, &any.type_url);
            None
        });
    }
    if let Some(options) = options {
        if max_requests_per_connection.is_some()
            && options
                .common_http_protocol_options
                .as_ref()
                .is_some_and(|c| c.max_requests_per_connection.is_some())
        {
            at.error_at(
                "max_requests_per_connection",
                "only one of max_requests_per_connection from Cluster or HttpProtocolOptions can be specified",
            );
        }
        let key =
            "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"]";
        return at.field(key, |at| lower_options(options, max_requests_per_connection, tls, at));
    }
    let (pool, max_stream_duration) = at.field("common_http_protocol_options", |at| {
        pool(common_http_protocol_options.unwrap_or_default(), max_requests_per_connection, at)
    });
    let mut http1 = Http1Settings::default();
    let selection = at.value::<ClusterProtocolSelection>("protocol_selection", protocol_selection)?;
    let protocol = if selection == ClusterProtocolSelection::UseDownstreamProtocol {
        let http2 = at.field("http2_protocol_options", |at| http2_options(http2_protocol_options, at))?;
        UpstreamProtocol::Downstream(Box::new(http2))
    } else if http2_protocol_options.is_some() {
        let http2 = at.field("http2_protocol_options", |at| http2_options(http2_protocol_options, at))?;
        UpstreamProtocol::Http2(Box::new(http2))
    } else {
        if let Some(options) = http_protocol_options {
            http1 = at.field("http_protocol_options", |at| upstream_http1(options, at))?;
        }
        UpstreamProtocol::Http1
    };
    let server_names = server_names(upstream_http_protocol_options, tls);
    let overrides = ClusterHttp { http1, max_stream_duration, server_names, ..ClusterHttp::default() };
    Some(Http { protocol, pool, overrides, errors: None, hashing: None })
}

fn upstream_http1(proto: core::Http1ProtocolOptions, at: &mut Lower) -> Option<Http1Settings> {
    at.unsupported("ignore_http_11_upgrade", !proto.ignore_http_11_upgrade.is_empty());
    http1_options(proto, at)
}

/// Server names that follow requests; they matter for TLS only.
fn server_names(proto: Option<core::UpstreamHttpProtocolOptions>, tls: bool) -> Option<ServerNames> {
    let core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } =
        proto?;
    // Without one of the two a header means nothing.
    let wanted = tls && (auto_sni || auto_san_validation);
    let header =
        (!override_auto_sni_header.is_empty()).then(|| override_auto_sni_header.to_ascii_lowercase().into());
    wanted.then_some(ServerNames { sni: auto_sni, san: auto_san_validation, header })
}

fn lower_options(
    proto: http::HttpProtocolOptions,
    max_requests: Option<u32>,
    tls: bool,
    at: &mut Lower,
) -> Option<Http> {
    let http::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = proto;
    let server_names = server_names(upstream_http_protocol_options, tls);
    at.unsupported("header_validation_config", header_validation_config.is_some());
    let errors = at.optional("outlier_detection", outlier_detection, extras::errors);
    let mirrors = at.each("request_mirror_policies", request_mirror_policies, policy::mirror);
    let hashing = HashPolicies::lower("hash_policy", hash_policy, at);
    let retry = at.optional("retry_policy", retry_policy, policy::retry);
    upstream_filters("http_filters", http_filters, at);
    let (pool, max_stream_duration) = at.field("common_http_protocol_options", |at| {
        pool(common_http_protocol_options.unwrap_or_default(), max_requests, at)
    });
    let mut http1 = Http1Settings::default();
    use http::http_protocol_options::UpstreamProtocolOptions as Options;
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    let protocol = match upstream_protocol_options {
        Some(Options::ExplicitHttpConfig(config)) => {
            at.field("explicit_http_config", |at| match config.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    http1 = at.field("http_protocol_options", |at| upstream_http1(options, at))?;
                    Some(UpstreamProtocol::Http1)
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    let options =
                        at.field("http2_protocol_options", |at| http2_options(Some(options), at))?;
                    Some(UpstreamProtocol::Http2(Box::new(options)))
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    at.unsupported("http3_protocol_options", true);
                    None
                }
                None => {
                    at.error("a protocol is required");
                    None
                }
            })?
        }
        Some(Options::UseDownstreamProtocolConfig(config)) => {
            at.field("use_downstream_protocol_config", |at| {
                let http::http_protocol_options::UseDownstreamHttpConfig {
                    http_protocol_options,
                    http2_protocol_options,
                    http3_protocol_options,
                } = config;
                at.unsupported("http3_protocol_options", http3_protocol_options.is_some());
                if let Some(options) = http_protocol_options {
                    http1 = at.field("http_protocol_options", |at| upstream_http1(options, at))?;
                }
                let http2 =
                    at.field("http2_protocol_options", |at| http2_options(http2_protocol_options, at))?;
                Some(UpstreamProtocol::Downstream(Box::new(http2)))
            })?
        }
        Some(Options::AutoConfig(config)) => at.field("auto_config", |at| {
            let http::http_protocol_options::AutoHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
                alternate_protocols_cache_options,
            } = config;
            at.unsupported("http3_protocol_options", http3_protocol_options.is_some());
            at.unsupported("alternate_protocols_cache_options", alternate_protocols_cache_options.is_some());
            if let Some(options) = http_protocol_options {
                http1 = at.field("http_protocol_options", |at| upstream_http1(options, at))?;
            }
            let http2 = at.field("http2_protocol_options", |at| http2_options(http2_protocol_options, at))?;
            Some(UpstreamProtocol::Auto(Box::new(http2)))
        })?,
        None => {
            at.error("upstream_protocol_options: value is required");
            return None;
        }
    };
    let overrides = ClusterHttp { retry, mirrors, http1, max_stream_duration, server_names };
    Some(Http { protocol, pool, overrides, errors, hashing })
}

/// Gives the pool's limits, and the longest that a request may take.
fn pool(
    proto: core::HttpProtocolOptions,
    max_requests: Option<u32>,
    at: &mut Lower,
) -> (PoolLimits, Option<Duration>) {
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        // Envoy has it for downstream connections only.
        max_connection_duration_jitter: _,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = proto;
    let max_stream_duration = at.timeout("max_stream_duration", max_stream_duration, None);
    at.unsupported("headers_with_underscores_action", headers_with_underscores_action != 0);
    let limits = PoolLimits {
        max_requests_per_connection: max_requests_per_connection.or(max_requests).unwrap_or(0),
        idle_timeout: at.timeout("idle_timeout", idle_timeout, Some(Duration::from_secs(3600))),
        max_connection_duration: at.timeout("max_connection_duration", max_connection_duration, None),
        max_response_head_bytes: max_response_headers_kb.unwrap_or(60) as usize * 1024,
        max_headers: max_headers_count.unwrap_or(100) as usize,
    };
    (limits, max_stream_duration)
}
