//! `EnvoyFilter`: changes to what proxies are sent, in Envoy's own terms.
//!
//! `validate.rs` holds what a patch must look like.

mod validate;

use std::collections::BTreeMap;

use bytes::Bytes;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::selector::{PolicyTargetReference, WorkloadLabels};

/// The `spec` of an EnvoyFilter.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EnvoyFilter {
    /// Pods it applies to.
    pub(crate) workload_selector: Option<WorkloadLabels>,
    /// Gateway/waypoint/GatewayClass/Service targets.
    pub(crate) target_refs: Vec<PolicyTargetReference>,
    /// Patches.
    pub(crate) config_patches: Vec<ConfigPatch>,
    /// Order among EnvoyFilters (low first).
    pub(crate) priority: i32,
}

/// One change, and where it applies.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConfigPatch {
    ///
    /// LISTENER/FILTER_CHAIN/NETWORK_FILTER/HTTP_FILTER/ROUTE_CONFIGURATION/VIRTUAL_HOST/HTTP_ROUTE/CLUSTER/EXTENSION_CONFIG/BOOTSTRAP/LISTENER_FILTER.
    pub(crate) apply_to: ApplyTo,
    /// Conditions.
    pub(crate) r#match: Option<ObjectMatch>,
    /// Operation and value.
    pub(crate) patch: Option<Patch>,
}

/// What sort of object a change is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ApplyTo {
    #[default]
    Invalid,
    Listener,
    FilterChain,
    NetworkFilter,
    HttpFilter,
    RouteConfiguration,
    VirtualHost,
    HttpRoute,
    Cluster,
    ExtensionConfig,
    Bootstrap,
    ListenerFilter,
}

/// Which objects a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ObjectMatch {
    /// ANY/SIDECAR_INBOUND/SIDECAR_OUTBOUND/GATEWAY/WAYPOINT.
    pub(crate) context: PatchContext,
    /// Proxy version/metadata filter.
    pub(crate) proxy: Option<ProxyMatch>,
    /// Listener match.
    pub(crate) listener: Option<ListenerMatch>,
    /// Route match.
    pub(crate) route_configuration: Option<RouteConfigurationMatch>,
    /// Cluster match.
    pub(crate) cluster: Option<ClusterMatch>,
    /// Waypoint object match.
    pub(crate) waypoint: Option<WaypointMatch>,
}

/// Which listeners a change is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum PatchContext {
    #[default]
    Any,
    SidecarInbound,
    SidecarOutbound,
    Gateway,
    Waypoint,
}

/// Which proxies a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProxyMatch {
    /// Regex on ISTIO_VERSION.
    pub(crate) proxy_version: String,
    /// Node metadata equality.
    pub(crate) metadata: BTreeMap<String, String>,
    /// `proxy_version`, compiled when the object is read.
    #[serde(skip)]
    pub(crate) version: VersionPattern,
}

/// Which versions of proxies a change is for.
#[derive(Clone, Debug, Default)]
pub(crate) enum VersionPattern {
    #[default]
    All,
    /// The pattern is not one that is compiled: it is too long.
    None,
    Pattern(Regex),
}

impl PartialEq for VersionPattern {
    fn eq(&self, other: &VersionPattern) -> bool {
        match (self, other) {
            (VersionPattern::All, VersionPattern::All) | (VersionPattern::None, VersionPattern::None) => true,
            (VersionPattern::Pattern(a), VersionPattern::Pattern(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// Which listeners a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerMatch {
    /// Listener port.
    pub(crate) port_number: u32,
    /// Unused.
    pub(crate) port_name: String,
    /// Filter chain match.
    pub(crate) filter_chain: Option<FilterChainMatch>,
    /// Listener filter name.
    pub(crate) listener_filter: String,
    /// Listener name.
    pub(crate) name: String,
}

/// Which filter chains a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FilterChainMatch {
    /// Chain name.
    pub(crate) name: String,
    /// SNI in match.
    pub(crate) sni: String,
    /// Tls/raw_buffer.
    pub(crate) transport_protocol: String,
    /// Comma list ALPN.
    pub(crate) application_protocols: String,
    /// Network filter match.
    pub(crate) filter: Option<FilterMatch>,
    /// Dest port.
    pub(crate) destination_port: u32,
}

/// Which network filters a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FilterMatch {
    /// Network filter name.
    pub(crate) name: String,
    /// HTTP filter inside HCM.
    pub(crate) sub_filter: Option<SubFilterMatch>,
}

/// Which HTTP filters a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SubFilterMatch {
    /// HTTP filter name.
    pub(crate) name: String,
}

/// Which route configurations a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RouteConfigurationMatch {
    /// Port served.
    pub(crate) port_number: u32,
    /// Gateway server port name.
    pub(crate) port_name: String,
    /// Ns/name of Gateway.
    pub(crate) gateway: String,
    /// Virtual host match.
    pub(crate) vhost: Option<VirtualHostMatch>,
    /// Route config name.
    pub(crate) name: String,
}

/// Which virtual hosts a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct VirtualHostMatch {
    /// Host:port vhost name.
    pub(crate) name: String,
    /// Any of the domains.
    pub(crate) domain_name: String,
    /// Route match.
    pub(crate) route: Option<RouteMatch>,
}

/// Which routes a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RouteMatch {
    /// Route name.
    pub(crate) name: String,
    /// ANY/ROUTE/REDIRECT/DIRECT_RESPONSE.
    pub(crate) action: RouteAction,
}

/// What a route does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum RouteAction {
    #[default]
    Any,
    Route,
    Redirect,
    DirectResponse,
}

/// Which clusters a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClusterMatch {
    /// Service port (target for inbound).
    pub(crate) port_number: u32,
    /// FQDN.
    pub(crate) service: String,
    /// Subset.
    pub(crate) subset: String,
    /// Exact cluster name.
    pub(crate) name: String,
}

/// Which of a waypoint's objects a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WaypointMatch {
    /// Service port.
    pub(crate) port_number: u32,
    /// Route match.
    pub(crate) route: Option<WaypointRouteMatch>,
    /// Filter match.
    pub(crate) filter: Option<WaypointFilterMatch>,
}

/// Which of a waypoint's routes a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WaypointRouteMatch {
    /// Route name.
    pub(crate) name: String,
}

/// Which of a waypoint's network filters a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WaypointFilterMatch {
    /// Network filter name.
    pub(crate) name: String,
    /// HTTP filter.
    pub(crate) sub_filter: Option<WaypointSubFilterMatch>,
}

/// Which of a waypoint's HTTP filters a change is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WaypointSubFilterMatch {
    /// HTTP filter name.
    pub(crate) name: String,
}

/// The change itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Patch {
    /// MERGE/ADD/REMOVE/INSERT_BEFORE/INSERT_AFTER/INSERT_FIRST/REPLACE/MERGE_AND_REPLACE_LIST.
    pub(crate) operation: Operation,
    /// JSON of the Envoy object.
    pub(crate) value: Option<serde_json::Map<String, Value>>,
    /// AUTHN/AUTHZ/STATS position for ADD.
    pub(crate) filter_class: FilterClass,
    /// `value` as the message that it is (a part of), read when the object is; empty without one.
    #[serde(skip)]
    pub(crate) wire: Bytes,
}

/// How the value meets the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Operation {
    #[default]
    Invalid,
    Merge,
    Add,
    Remove,
    InsertBefore,
    InsertAfter,
    InsertFirst,
    Replace,
    MergeAndReplaceList,
}

/// Which place of the filter chain an added filter gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum FilterClass {
    #[default]
    Unspecified,
    Authn,
    Authz,
    Stats,
}
