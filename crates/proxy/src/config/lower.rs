//! Lowering: from protobuf messages to the typed, immutable configuration that the data path
//! reads. Parse, don't validate: defaults are applied, regexes compiled, names interned,
//! references resolved, and *all* errors are collected, each with the path of its field.
//!
//! Each feature lowers its own message in its own `config.rs`, by a function
//! `fn lower(proto: P, at: &mut Lower) -> Option<Typed>` that destructures the message
//! *exhaustively* (no `..`): a field that the API gains breaks the build until it is lowered or
//! named in `unsupported`. Nothing is ignored silently. Lowering is pure: `--mode validate`,
//! xDS updates, tests and fuzz targets call the same functions.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leno_api::proto::envoy::config::trace::v3::tracing::Http as TracingProvider;
use leno_base::Name;
use leno_xds::Mode;

use crate::cluster::lb::settings::Here;
use crate::cluster::{BindConfig, dns_cache};
use crate::config::discovery::control_plane::XdsClusters;
use crate::config::runtime::Runtime;
use crate::config::shared::Shared;
use crate::listener::Direction;
use crate::tls::secrets::Secret;

/// One refused field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    /// Where in the message, e.g. `virtual_hosts[2].routes[5].match.safe_regex`.
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// A resource that was refused, with all reasons; the last good version keeps serving.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Rejected(pub(crate) Vec<ConfigError>);

impl Rejected {
    /// Refused as a whole, for one reason.
    pub(crate) fn because(message: impl Into<String>) -> Self {
        Self(vec![ConfigError { path: String::new(), message: message.into() }])
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// What lowering may know apart from the message itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// `node.id`.
    pub(crate) node_id: Arc<str>,
    /// `node.cluster`.
    pub(crate) node_cluster: Arc<str>,
    /// `node.metadata`.
    pub(crate) node_metadata: Arc<serde_json::Value>,
    /// Clusters that exist, for `validate_clusters`; `None`: nothing is checked.
    pub(crate) clusters: Option<Arc<HashSet<Name>>>,
    /// The layered runtime, for fields with a `runtime_key`.
    pub(crate) runtime: Arc<Runtime>,
    /// Where this proxy is: `node.locality` and `cluster_manager.local_cluster_name`.
    pub(crate) here: Arc<Here>,
    /// `cluster_manager.upstream_bind_config`, for clusters without their own.
    pub(crate) bind: Option<Arc<BindConfig>>,
    /// Whether there may be internal listeners (envoy.bootstrap.internal_listener), and the size of
    /// their buffers in bytes (`buffer_size_kb`, 1 MiB by default).
    pub(crate) internal_buffer: Option<usize>,
    /// `static_resources.secrets`.
    pub(crate) secrets: Arc<HashMap<Name, Secret>>,
    /// What xDS servers can be reached by; `None` while the bootstrap is lowered, which is checked
    /// as a whole.
    pub(crate) xds_clusters: Option<Arc<XdsClusters>>,
    /// How the aggregated stream of the bootstrap speaks; `None`: there is none.
    pub(crate) ads: Option<Mode>,
    /// `tracing.http` of the bootstrap: who traces for connection managers that do not say. Like
    /// Envoy's, it is looked at when one needs it.
    pub(crate) tracer: Option<Arc<TracingProvider>>,
    /// Whether the listener that is being lowered has the `traffic_direction` OUTBOUND.
    pub(crate) outbound: bool,
    /// Whether the resource came by xDS.
    pub(crate) added_via_api: bool,
    /// `version_info` of the update that brought it; empty for static ones.
    pub(crate) version: String,
    /// `traffic_direction` of the listener that is being lowered.
    pub(crate) direction: Direction,
    /// The name of the HTTP filter that is being lowered.
    pub(crate) filter_name: Name,
    /// What to do about unknown fields of resources that come by xDS.
    pub(crate) unknown_fields: UnknownFields,
    /// The DNS caches of dynamic forward proxies by name, which must agree on each.
    pub(crate) dns_caches: Arc<dns_cache::config::Known>,
    /// What equal messages of all resources were lowered to.
    pub(crate) shared: Arc<Shared>,
}

impl Scope {
    /// Tells proxies of one process apart.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.here).addr()
    }
}

/// What to do about fields that the API of this proxy does not have. In files they are refused
/// before anything is lowered.
#[derive(Clone, Debug, Default)]
pub(crate) enum UnknownFields {
    /// Nothing (`--ignore-unknown-dynamic-fields`).
    #[default]
    Ignore,
    /// Say so in the log, and count them here.
    Warn(Arc<AtomicU64>),
    /// Refuse the resource (`--reject-unknown-dynamic-fields`).
    Reject,
}

/// The place in the message that is being lowered, and the errors found so far.
#[derive(Debug, Default)]
pub(crate) struct Lower {
    path: String,
    errors: Vec<ConfigError>,
    scope: Scope,
}

impl Lower {
    /// The beginning of a message, in a scope.
    pub(crate) fn new(scope: Scope) -> Lower {
        Lower { scope, ..Lower::default() }
    }

    /// What is known apart from the message.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Changes what is known apart from the message, for what is lowered from now on.
    pub(crate) fn scope_mut(&mut self) -> &mut Scope {
        &mut self.scope
    }

    /// Ends lowering: the value, or everything that was refused.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Rejected> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ if self.errors.is_empty() => {
                Err(Rejected(vec![ConfigError { path: self.path, message: "refused".to_owned() }]))
            }
            _ => Err(Rejected(self.errors)),
        }
    }

    /// Lowers one resource: `Ok` only if nothing was refused.
    pub(crate) fn resource<T>(lower: impl FnOnce(&mut Lower) -> Option<T>) -> Result<T, Rejected> {
        let mut at = Lower::default();
        let lowered = lower(&mut at);
        at.finish(lowered)
    }

    /// [`Lower::resource`] in a scope.
    pub(crate) fn resource_in<T>(
        scope: Scope,
        lower: impl FnOnce(&mut Lower) -> Option<T>,
    ) -> Result<T, Rejected> {
        let mut at = Lower::new(scope);
        let lowered = lower(&mut at);
        at.finish(lowered)
    }

    /// Lowers what lies in `field`; empty: the current place itself.
    pub(crate) fn field<T>(&mut self, field: &str, lower: impl FnOnce(&mut Lower) -> T) -> T {
        let length = self.path.len();
        if length > 0 && !field.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(field);
        let value = lower(self);
        self.path.truncate(length);
        value
    }

    /// Lowers every element of a repeated field; elements that are refused are left out.
    pub(crate) fn each<P, T>(
        &mut self,
        field: &str,
        items: Vec<P>,
        mut lower: impl FnMut(P, &mut Lower) -> Option<T>,
    ) -> Vec<T> {
        // Not by `collect`: it would keep the allocation of the messages, which are many times the
        // size of what they are lowered to.
        let mut lowered = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            lowered.extend(self.field(&format!("{field}[{index}]"), |at| lower(item, at)));
        }
        lowered.shrink_to_fit();
        lowered
    }

    /// Lowers a message that is the same in many places of a large configuration; equal ones share
    /// what they are lowered to. Lowering must follow from the message, and what is the same for all
    /// resources of the proxy.
    pub(crate) fn shared<P: prost::Message, T: Send + Sync + 'static>(
        &mut self,
        proto: P,
        lower: impl FnOnce(P, &mut Lower) -> Option<T>,
    ) -> Option<Arc<T>> {
        self.shared_with(0, proto, lower)
    }

    /// The same for what depends on something else beside the message, which `also` is a number of.
    pub(crate) fn shared_with<P: prost::Message, T: Send + Sync + 'static>(
        &mut self,
        also: u8,
        proto: P,
        lower: impl FnOnce(P, &mut Lower) -> Option<T>,
    ) -> Option<Arc<T>> {
        let wire = proto.encode_to_vec();
        if let Some(known) = self.scope.shared.find(also, &wire) {
            return Some(known);
        }
        let before = self.errors.len();
        let lowered = Arc::new(lower(proto, self)?);
        if self.errors.len() == before {
            self.scope.shared.add(also, &wire, &lowered);
        }
        Some(lowered)
    }

    /// A cluster's name; known clusters' names are not stored again.
    pub(crate) fn cluster_name(&self, name: String) -> Name {
        let known = self.scope.clusters.as_ref().and_then(|clusters| clusters.get(name.as_str()));
        known.cloned().unwrap_or_else(|| name.into())
    }

    /// Lowers an optional message field.
    pub(crate) fn optional<P, T>(
        &mut self,
        field: &str,
        item: Option<P>,
        lower: impl FnOnce(P, &mut Lower) -> Option<T>,
    ) -> Option<T> {
        item.and_then(|item| self.field(field, |at| lower(item, at)))
    }

    /// Refuses the current place.
    pub(crate) fn error(&mut self, message: impl Into<String>) {
        self.errors.push(ConfigError { path: self.path.clone(), message: message.into() });
    }

    /// Refuses `field` of the current place.
    pub(crate) fn error_at(&mut self, field: &str, message: impl Into<String>) {
        self.field(field, |at| at.error(message));
    }

    /// Refuses a field that Envoy has and we do not, if it is set.
    pub(crate) fn unsupported(&mut self, field: &str, set: bool) {
        if set {
            self.error_at(field, "not supported yet");
        }
    }

    /// Refuses an extension that Envoy has and we do not.
    pub(crate) fn unsupported_extension(&mut self, name: &str, type_url: &str) {
        self.error(format!("extension '{name}' ({type_url}) is not supported yet"));
    }

    /// Unpacks a typed extension config of the expected type.
    pub(crate) fn unpack<T: prost::Message + prost::Name + Default>(
        &mut self,
        any: &prost_types::Any,
    ) -> Option<T> {
        if any.type_url.rsplit('/').next() != Some(T::full_name().as_str()) {
            self.error(format!("expected {}, got {}", T::full_name(), any.type_url));
            return None;
        }
        match T::decode(any.value.as_slice()) {
            Ok(message) => Some(message),
            Err(error) => {
                self.error(format!("cannot decode {}: {error}", T::full_name()));
                None
            }
        }
    }

    /// Unpacks the `typed_config` of an extension, whatever type it is expected to be, looking
    /// through `TypedStruct`.
    pub(crate) fn extension(&mut self, any: prost_types::Any) -> Option<prost_types::Any> {
        if !any.type_url.ends_with(".TypedStruct") {
            return Some(any);
        }
        match leno_api::typed_struct::resolve(&any) {
            Ok(resolved) => Some(resolved),
            Err(errors) => {
                for error in errors {
                    self.field_error(&error.path, error.message);
                }
                None
            }
        }
    }

    /// Refuses the field with this path below the current place.
    fn field_error(&mut self, path: &str, message: String) {
        if path.is_empty() { self.error(message) } else { self.error_at(path, message) }
    }

    /// Decodes a resource as it came by xDS and checks its `validate.rules`.
    pub(crate) fn decode<T: prost::Message + prost::Name + Default>(
        &mut self,
        any: &prost_types::Any,
    ) -> Option<T> {
        let message = self.unpack(any)?;
        let before = self.errors.len();
        let report = leno_api::validate::inspect(&T::full_name(), &any.value);
        for violation in report.violations {
            self.field_error(&violation.path, violation.message);
        }
        for unknown in report.unknown {
            match &self.scope.unknown_fields {
                UnknownFields::Ignore => {}
                UnknownFields::Warn(count) => {
                    count.fetch_add(1, Ordering::Relaxed);
                    let (kind, at) = (T::NAME, [self.path.as_str(), unknown.path.as_str()].join("."));
                    tracing::warn!(target: "config", kind, at, "{}", unknown.message);
                }
                UnknownFields::Reject => self.field_error(&unknown.path, unknown.message),
            }
        }
        (self.errors.len() == before).then_some(message)
    }

    /// The message of a field that must be there.
    pub(crate) fn required<P, T>(
        &mut self,
        field: &str,
        item: Option<P>,
        lower: impl FnOnce(P, &mut Lower) -> Option<T>,
    ) -> Option<T> {
        match item {
            Some(item) => self.field(field, |at| lower(item, at)),
            None => {
                self.error_at(field, "value is required");
                None
            }
        }
    }

    /// A `google.protobuf.UInt32Value` or the like that must fit a smaller type.
    pub(crate) fn narrow<S: Copy + fmt::Display, T: TryFrom<S>>(
        &mut self,
        field: &str,
        value: S,
    ) -> Option<T> {
        match T::try_from(value) {
            Ok(value) => Some(value),
            Err(_) => {
                self.error_at(field, format!("{value} is out of range"));
                None
            }
        }
    }

    /// The value of an enum field; numbers that the enum does not have are refused.
    pub(crate) fn value<T: TryFrom<i32>>(&mut self, field: &str, value: i32) -> Option<T> {
        match T::try_from(value) {
            Ok(value) => Some(value),
            Err(_) => {
                self.error_at(field, "value must be one of the defined enum values");
                None
            }
        }
    }

    /// A duration of which zero means none.
    pub(crate) fn timeout(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        match value {
            Some(value) => self.duration(field, Some(value)).filter(|duration| !duration.is_zero()),
            None => default,
        }
    }

    /// A duration; negative ones are refused.
    pub(crate) fn duration(&mut self, field: &str, value: Option<prost_types::Duration>) -> Option<Duration> {
        let value = value?;
        match Duration::try_from(value) {
            Ok(duration) => Some(duration),
            Err(_) => {
                self.error_at(field, "must not be negative");
                None
            }
        }
    }
}
