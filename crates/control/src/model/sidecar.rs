//! `Sidecar`: what the proxies of a workload listen on, and which services they know.

use serde::Deserialize;

use super::destination_rule::ConnectionPool;
use super::gateway::ServerTls;
use super::selector::WorkloadLabels;
use super::virtual_service::Destination;

/// The `spec` of a Sidecar.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Sidecar {
    /// Pods it applies to; none = namespace default.
    pub(crate) workload_selector: Option<WorkloadLabels>,
    /// Explicit inbound listeners.
    pub(crate) ingress: Vec<IngressListener>,
    /// Explicit outbound scope.
    pub(crate) egress: Vec<EgressListener>,
    /// Inbound pool settings.
    pub(crate) inbound_connection_pool: Option<ConnectionPool>,
    /// Unknown destination policy.
    pub(crate) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// Where a workload takes connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IngressListener {
    /// Port to accept on.
    pub(crate) port: Option<SidecarPort>,
    /// IP to bind.
    pub(crate) bind: String,
    /// DEFAULT/IPTABLES/NONE.
    pub(crate) capture_mode: CaptureMode,
    /// 127.0.0.1:p, 0.0.0.0:p or unix://.
    pub(crate) default_endpoint: String,
    /// Terminate custom TLS (PeerAuth DISABLE).
    pub(crate) tls: Option<ServerTls>,
    /// Pool for this port.
    pub(crate) connection_pool: Option<ConnectionPool>,
}

/// A port of a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SidecarPort {
    /// Port number.
    pub(crate) number: u32,
    /// Protocol (adds HTTP_PROXY use).
    pub(crate) protocol: String,
    /// Name.
    pub(crate) name: String,
    /// Deprecated.
    pub(crate) target_port: u32,
}

/// How traffic gets to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum CaptureMode {
    #[default]
    Default,
    Iptables,
    None,
}

/// Through what a workload reaches others, and which of them it sees.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EgressListener {
    /// Port to accept on; none = all.
    pub(crate) port: Option<SidecarPort>,
    /// IP or unix socket.
    pub(crate) bind: String,
    /// DEFAULT/IPTABLES/NONE.
    pub(crate) capture_mode: CaptureMode,
    /// Ns/host list imported (./*, ~/*).
    pub(crate) hosts: Vec<String>,
}

/// What becomes of traffic to destinations that the mesh does not know.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OutboundTrafficPolicy {
    /// REGISTRY_ONLY or ALLOW_ANY.
    pub(crate) mode: OutboundMode,
    /// Send unknown traffic to this service.
    pub(crate) egress_proxy: Option<Destination>,
}

/// Whether unknown destinations may be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum OutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
}
