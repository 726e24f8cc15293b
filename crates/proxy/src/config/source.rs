//! Lowering of ConfigSource: where dynamic resources come from.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
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

/// The place that resources come from. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The aggregated stream of the bootstrap's `ads_config`.
    Ads,
    /// A stream of its own for each type of resource.
    Grpc(Arc<XdsServer>),
    /// A file with a DiscoveryResponse, watched.
    File(Arc<FileSource>),
}

/// What tells resources of a type apart: the same name means something else elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ResourceKey {
    /// Its name.
    pub(crate) name: Name,
    /// Where it comes from.
    pub(crate) origin: Origin,
}

impl ResourceKey {
    /// What somebody waits for who asks for a virtual host of this route table.
    pub(crate) fn host(&self, host: &str) -> ResourceKey {
        ResourceKey { name: Name::from(format!("{}/{host}", self.name)), origin: self.origin.clone() }
    }
}

impl Hash for ResourceKey {
    /// By name: hardly ever are there two of the same name.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

#[cfg(test)]
impl From<&str> for ResourceKey {
    /// One of the aggregated stream.
    fn from(name: &str) -> Self {
        Self { name: name.into(), origin: Origin::Ads }
    }
}

/// A file with resources (PathConfigSource).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileSource {
    /// `path`.
    pub(crate) path: PathBuf,
    /// `watched_directory`: the file is read again when anything is moved into this folder, rather
    /// than when the file itself is moved into its place.
    pub(crate) directory: Option<WatchedDirectory>,
}

/// A folder that is watched in place of the files in it (WatchedDirectory).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatchedDirectory {
    /// `path`.
    pub(crate) path: PathBuf,
    /// `watch_modify`: files that are written in place count too.
    pub(crate) modify: bool,
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
        Some(Specifier::Path(path)) => file("path", path, None, at)?,
        Some(Specifier::PathConfigSource(source)) => at.field("path_config_source", |at| {
            let core::PathConfigSource { path, watched_directory, poll_interval } = source;
            at.unsupported("poll_interval", poll_interval.is_some());
            file("path", path, watched_directory, at)
        })?,
        Some(Specifier::ApiConfigSource(source)) => {
            Origin::Grpc(Arc::new(at.field("api_config_source", |at| xds_server(source, at))?))
        }
        // Envoy does not know `self` either, and says the same.
        Some(Specifier::Self_(_)) | None => {
            at.error("missing config source specifier: one of ads, api_config_source and path_config_source");
            return None;
        }
    };
    Some(ConfigSource { origin, initial_fetch_timeout })
}

fn file(
    field: &str,
    path: String,
    directory: Option<core::WatchedDirectory>,
    at: &mut Lower,
) -> Option<Origin> {
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
    let directory = match directory {
        None => None,
        Some(directory) => Some(at.field("watched_directory", |at| watched_directory(directory, at))?),
    };
    Some(Origin::File(Arc::new(FileSource { path, directory })))
}

/// Lowers a WatchedDirectory.
pub(crate) fn watched_directory(proto: core::WatchedDirectory, at: &mut Lower) -> Option<WatchedDirectory> {
    let core::WatchedDirectory { path, watch_modify } = proto;
    let path = PathBuf::from(path);
    if !path.is_dir() {
        at.error_at("path", format!("unable to watch '{}': there is no such folder", path.display()));
        return None;
    }
    Some(WatchedDirectory { path, modify: watch_modify })
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
        let metadata = at.each("initial_metadata", initial_metadata, metadata);
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
            if let Some(Err(error)) = at.scope().xds_clusters.as_ref().map(|known| known.check(&cluster_name))
            {
                at.error_at("cluster_name", error);
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

/// A header of streams. What Envoy would put in for `%COMMANDS%` is not known here.
fn metadata(header: core::HeaderValue, at: &mut Lower) -> Option<(Box<str>, Box<str>)> {
    let core::HeaderValue { key, value, raw_value } = header;
    at.unsupported("raw_value", !raw_value.is_empty());
    at.unsupported("value", value.contains('%'));
    if http::HeaderName::try_from(&key).is_err() {
        at.error_at("key", format!("'{key}' is not a header name"));
    }
    if http::HeaderValue::try_from(&value).is_err() {
        at.error_at("value", "is not a header value");
    }
    Some((key.into(), value.into()))
}
