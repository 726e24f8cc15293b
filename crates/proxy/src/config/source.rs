//! Lowering of ConfigSource: where dynamic resources come from.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::path::PathBuf;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::Name;

use crate::config::lower::Lower;

/// Where resources of one type come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConfigSource {
    /// The place.
    pub(crate) origin: Origin,
    /// How long to wait for the first answer before going on without; `None`: for ever.
    /// 15 s by default.
    pub(crate) initial_fetch_timeout: Option<Duration>,
}

/// The place that resources come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The aggregated stream of the bootstrap's `ads_config`.
    Ads,
    /// A stream of its own.
    Grpc(XdsServer),
    /// A file with a DiscoveryResponse, watched.
    File(PathBuf),
}

/// An xDS server and how to talk to it (ApiConfigSource).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct XdsServer {
    /// The cluster that it is reached by.
    pub(crate) cluster: Name,
    /// `authority` instead of the cluster's name.
    pub(crate) authority: Option<Box<str>>,
    /// Incremental (`DELTA_GRPC`) instead of state of the world (`GRPC`).
    pub(crate) delta: bool,
    /// `initial_metadata`: headers of the stream.
    pub(crate) metadata: Vec<(Box<str>, Box<str>)>,
    /// `set_node_on_first_message_only`.
    pub(crate) node_on_first_only: bool,
}

/// Lowers a ConfigSource.
pub(crate) fn config_source(proto: core::ConfigSource, at: &mut Lower) -> Option<ConfigSource> {
    let core::ConfigSource {
        authorities,
        initial_fetch_timeout,
        // Resources are V3, whatever this says: so it is in Envoy too.
        resource_api_version: _,
        config_source_specifier,
    } = proto;
    at.unsupported("authorities", !authorities.is_empty());
    let initial_fetch_timeout =
        at.timeout("initial_fetch_timeout", initial_fetch_timeout, Some(Duration::from_secs(15)));
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let origin = match config_source_specifier {
        // Without an aggregated stream nothing ever comes, but Envoy accepts that.
        Some(Specifier::Ads(core::AggregatedConfigSource {})) => Origin::Ads,
        Some(Specifier::Path(path)) => file("path", path, at)?,
        Some(Specifier::PathConfigSource(source)) => at.field("path_config_source", |at| {
            let core::PathConfigSource { path, watched_directory, poll_interval } = source;
            at.unsupported("watched_directory", watched_directory.is_some());
            at.unsupported("poll_interval", poll_interval.is_some());
            file("path", path, at)
        })?,
        Some(Specifier::ApiConfigSource(source)) => {
            Origin::Grpc(at.field("api_config_source", |at| xds_server(source, at))?)
        }
        Some(Specifier::Self_(_)) => {
            at.unsupported("self", true);
            return None;
        }
        None => {
            at.error("one of ads, api_config_source, path_config_source and self is required");
            return None;
        }
    };
    Some(ConfigSource { origin, initial_fetch_timeout })
}

fn file(field: &str, path: String, at: &mut Lower) -> Option<Origin> {
    let path = PathBuf::from(path);
    if !path.exists() {
        at.error_at(
            field,
            format!(
                "paths must refer to an existing path in the system: '{}' does not exist",
                path.display()
            ),
        );
        return None;
    }
    Some(Origin::File(path))
}

/// Lowers an ApiConfigSource.
pub(crate) fn xds_server(proto: core::ApiConfigSource, at: &mut Lower) -> Option<XdsServer> {
    let core::ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        mut grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        set_node_on_first_message_only,
        config_validators,
    } = proto;
    use core::api_config_source::ApiType;
    let delta = match at.value::<ApiType>("api_type", api_type)? {
        ApiType::Grpc => false,
        ApiType::DeltaGrpc => true,
        ApiType::DeprecatedAndUnavailableDoNotUse => {
            at.error_at("api_type", "REST_LEGACY is no longer supported");
            return None;
        }
        ApiType::Rest | ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc => {
            at.unsupported("api_type", true);
            return None;
        }
    };
    if transport_api_version == core::ApiVersion::V2 as i32 {
        at.error_at("transport_api_version", "the V2 xDS transport protocol version is no longer supported");
    }
    if !cluster_names.is_empty() {
        at.error_at("cluster_names", "a gRPC source must not have cluster names");
    }
    if refresh_delay.is_some() {
        // Only REST polls; Envoy ignores it here.
        at.duration("refresh_delay", refresh_delay);
    }
    at.duration("request_timeout", request_timeout);
    at.unsupported("rate_limit_settings", rate_limit_settings.is_some());
    at.unsupported("config_validators", !config_validators.is_empty());
    if grpc_services.len() > 1 {
        at.error_at("grpc_services", "must have a single gRPC service");
        return None;
    }
    let Some(service) = grpc_services.pop() else {
        at.error_at("grpc_services", "must have a gRPC service");
        return None;
    };
    at.field("grpc_services[0]", |at| {
        let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = service;
        at.duration("timeout", timeout);
        at.unsupported("retry_policy", retry_policy.is_some());
        let metadata = at.each("initial_metadata", initial_metadata, |header, at| {
            let core::HeaderValue { key, value, raw_value } = header;
            at.unsupported("raw_value", !raw_value.is_empty());
            Some((key.into(), value.into()))
        });
        let envoy = match target_specifier {
            Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
            Some(core::grpc_service::TargetSpecifier::GoogleGrpc(_)) => {
                at.unsupported("google_grpc", true);
                return None;
            }
            None => {
                at.error("one of envoy_grpc and google_grpc is required");
                return None;
            }
        };
        at.field("envoy_grpc", |at| {
            let core::grpc_service::EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy,
                max_receive_message_length,
                skip_envoy_headers,
            } = envoy;
            at.unsupported("retry_policy", retry_policy.is_some());
            at.unsupported("max_receive_message_length", max_receive_message_length.is_some());
            at.unsupported("skip_envoy_headers", skip_envoy_headers);
            if let Some(clusters) = &at.scope().clusters
                && !clusters.contains(cluster_name.as_str())
            {
                at.error_at("cluster_name", format!("unknown gRPC client cluster '{cluster_name}'"));
            }
            Some(XdsServer {
                cluster: cluster_name.into(),
                authority: (!authority.is_empty()).then(|| authority.into()),
                delta,
                metadata,
                node_on_first_only: set_node_on_first_message_only,
            })
        })
    })
}
