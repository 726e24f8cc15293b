//! What listens: GatewayClass, Gateway and ListenerSet.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{DefaultScope, LocalObjectReference, ObjectReference, SecretReference};
use crate::model::selector::LabelSelector;

/// The `spec` of a GatewayClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GatewayClass {
    /// Who makes the gateways, such as `istio.io/gateway-controller`.
    pub(crate) controller_name: String,
    /// An object with parameters for all gateways of the class.
    pub(crate) parameters_ref: Option<ObjectReference>,
    /// For people.
    pub(crate) description: Option<String>,
}

/// The `spec` of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Gateway {
    /// The GatewayClass.
    pub(crate) gateway_class_name: String,
    /// What it listens on.
    pub(crate) listeners: Vec<Listener>,
    /// Where it is reached; absent for an address that is assigned.
    pub(crate) addresses: Vec<GatewayAddress>,
    /// What the objects that are made for it carry.
    pub(crate) infrastructure: Option<Infrastructure>,
    /// Which ListenerSets may add listeners.
    pub(crate) allowed_listeners: Option<AllowedListeners>,
    /// TLS of all listeners, and towards backends.
    pub(crate) tls: Option<GatewayTls>,
    /// Which routes without parents attach to it.
    pub(crate) default_scope: Option<DefaultScope>,
}

/// A port with the host names that it serves.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Listener {
    /// Name, unique within the Gateway.
    pub(crate) name: String,
    /// Host name, perhaps with a wildcard in front; absent for all.
    pub(crate) hostname: Option<String>,
    /// Port.
    pub(crate) port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP` or a name with a domain.
    pub(crate) protocol: String,
    /// TLS; needed for `HTTPS` and `TLS`.
    pub(crate) tls: Option<ListenerTls>,
    /// Which routes may attach.
    pub(crate) allowed_routes: Option<AllowedRoutes>,
}

/// TLS of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerTls {
    /// Absent for `Terminate`.
    pub(crate) mode: Option<TlsMode>,
    /// Certificates with keys.
    pub(crate) certificate_refs: Vec<SecretReference>,
    /// Settings of the implementation.
    pub(crate) options: BTreeMap<String, String>,
}

/// Where TLS ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum TlsMode {
    /// At the gateway.
    Terminate,
    /// Behind it.
    Passthrough,
}

/// TLS of all listeners, and towards backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GatewayTls {
    /// Towards backends.
    pub(crate) backend: Option<BackendTls>,
    /// Towards clients.
    pub(crate) frontend: Option<FrontendTls>,
}

/// TLS towards backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendTls {
    /// The gateway's own certificate.
    pub(crate) client_certificate_ref: Option<SecretReference>,
}

/// How certificates of clients are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FrontendTls {
    /// On ports that `perPort` does not name.
    pub(crate) default: Option<FrontendTlsConfig>,
    /// On some ports.
    pub(crate) per_port: Vec<FrontendTlsPort>,
}

/// How certificates of clients are checked on one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FrontendTlsPort {
    /// Port of listeners.
    pub(crate) port: u16,
    /// What holds there.
    pub(crate) tls: Option<FrontendTlsConfig>,
}

/// How certificates of clients are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FrontendTlsConfig {
    /// Absent if none are asked for.
    pub(crate) validation: Option<FrontendValidation>,
}

/// Who may have signed a client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FrontendValidation {
    /// ConfigMaps or Secrets with roots.
    pub(crate) ca_certificate_refs: Vec<ObjectReference>,
    /// Absent for `AllowValidOnly`.
    pub(crate) mode: Option<FrontendValidationMode>,
}

/// What becomes of clients without a good certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum FrontendValidationMode {
    /// They are refused.
    AllowValidOnly,
    /// They are let in.
    AllowInsecureFallback,
}

/// Which routes may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AllowedRoutes {
    /// From which namespaces; absent for the Gateway's own.
    pub(crate) namespaces: Option<AllowedNamespaces>,
    /// Of which kinds; empty for those that fit the protocol.
    pub(crate) kinds: Vec<RouteKind>,
}

/// Which ListenerSets may add listeners.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AllowedListeners {
    /// From which namespaces; absent for none.
    pub(crate) namespaces: Option<AllowedNamespaces>,
}

/// A choice of namespaces.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AllowedNamespaces {
    /// How they are chosen.
    pub(crate) from: Option<FromNamespaces>,
    /// By their labels, if `from` is `Selector`.
    pub(crate) selector: Option<LabelSelector>,
}

/// How namespaces are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum FromNamespaces {
    /// All.
    All,
    /// By their labels.
    Selector,
    /// The Gateway's own.
    Same,
    /// None.
    None,
}

/// A kind of route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RouteKind {
    /// API group; absent for `gateway.networking.k8s.io`.
    pub(crate) group: Option<String>,
    /// Kind.
    pub(crate) kind: String,
}

/// Where a Gateway is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GatewayAddress {
    /// `IPAddress` (if absent), `Hostname`, `NamedAddress` or a name with a domain.
    pub(crate) r#type: Option<String>,
    /// The address or name; empty for one that is assigned.
    pub(crate) value: String,
}

/// What the objects that are made for a Gateway carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Infrastructure {
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// An object with parameters.
    pub(crate) parameters_ref: Option<LocalObjectReference>,
}

/// The `spec` of a ListenerSet: listeners that a Gateway gets from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerSet {
    /// The Gateway.
    pub(crate) parent_ref: ParentGateway,
    /// What it adds.
    pub(crate) listeners: Vec<Listener>,
}

/// The Gateway of a ListenerSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ParentGateway {
    /// API group; absent for `gateway.networking.k8s.io`.
    pub(crate) group: Option<String>,
    /// Kind; absent for Gateway.
    pub(crate) kind: Option<String>,
    /// Name.
    pub(crate) name: String,
    /// Namespace; absent for the ListenerSet's.
    pub(crate) namespace: Option<String>,
}
