//! Settings of the whole mesh: Istio's `MeshConfig` and `MeshNetworks`, from the ConfigMap `istio`
//! (keys `mesh` and `meshNetworks`).

pub(crate) mod network;
pub(crate) mod provider;
pub(crate) mod proxy;
mod validate;

use std::time::Duration;

use serde::Deserialize;

use self::network::MeshNetworks;
use self::provider::ExtensionProvider;
use self::proxy::ProxyConfig;
use super::destination_rule::{
    ClientTls, ConnectionPool, LocalityLb, OutlierDetection, TcpKeepalive, ZoneAwareLb,
};
use super::duration::Span;
use super::identity::TRUST_DOMAIN;
use super::selector::LabelSelector;
use super::virtual_service::Retries;

/// Settings of the whole mesh, of key `mesh`. What is not written has Istio's default.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MeshConfig {
    /// Outbound capture port, 15001.
    pub(crate) proxy_listen_port: i32,
    /// Inbound capture port, 15006.
    pub(crate) proxy_inbound_listen_port: i32,
    /// Explicit HTTP proxy port.
    pub(crate) proxy_http_port: i32,
    /// Upstream connect timeout, 10s.
    pub(crate) connect_timeout: Span,
    /// HBONE pool idle timeout, 1h.
    pub(crate) hbone_idle_timeout: Option<Span>,
    /// Sniffing wait, default 0s (none).
    pub(crate) protocol_detection_timeout: Span,
    /// Mesh TCP keepalive.
    pub(crate) tcp_keepalive: Option<TcpKeepalive>,
    /// K8s Ingress class handled, "istio".
    pub(crate) ingress_class: String,
    /// Service whose address goes to Ingress status.
    pub(crate) ingress_service: String,
    /// OFF / DEFAULT / STRICT.
    pub(crate) ingress_controller_mode: IngressControllerMode,
    /// Gateway label for Ingress.
    pub(crate) ingress_selector: String,
    /// Switch tracing on.
    pub(crate) enable_tracing: bool,
    /// Path, /dev/stdout.
    pub(crate) access_log_file: String,
    /// Text or JSON template.
    pub(crate) access_log_format: String,
    /// TEXT / JSON.
    pub(crate) access_log_encoding: AccessLogEncoding,
    /// ALS to envoy_accesslog_service.
    pub(crate) enable_envoy_access_log_service: bool,
    /// No listener-level NR log.
    pub(crate) disable_envoy_listener_log: bool,
    /// Default ProxyConfig.
    pub(crate) default_config: ProxyConfig,
    /// Unknown destinations.
    pub(crate) outbound_traffic_policy: OutboundTrafficPolicy,
    /// Unknown inbound ports.
    pub(crate) inbound_traffic_policy: InboundTrafficPolicy,
    /// Extra MCP-over-xDS / fs / k8s sources.
    pub(crate) config_sources: Vec<ConfigSource>,
    /// Client auto mTLS by endpoint label.
    pub(crate) enable_auto_mtls: bool,
    /// SPIFFE trust domain.
    pub(crate) trust_domain: String,
    /// Older trust domains accepted.
    pub(crate) trust_domain_aliases: Vec<String>,
    /// Extra trust anchors.
    pub(crate) ca_certificates: Vec<CertificateData>,
    /// Default Service visibility.
    pub(crate) default_service_export_to: Vec<String>,
    /// Default VS visibility.
    pub(crate) default_virtual_service_export_to: Vec<String>,
    /// Default DR visibility.
    pub(crate) default_destination_rule_export_to: Vec<String>,
    /// Namespace of mesh-wide policy.
    pub(crate) root_namespace: String,
    /// Mesh locality LB default.
    pub(crate) locality_lb_setting: Option<LocalityLb>,
    /// Mesh zone-aware LB default.
    pub(crate) zone_aware_lb_setting: Option<ZoneAwareLb>,
    /// STRICT_DNS refresh, 60s.
    pub(crate) dns_refresh_rate: Span,
    /// DO_NOT_UPGRADE / UPGRADE http1 to h2.
    pub(crate) h2_upgrade_policy: MeshH2Upgrade,
    /// Stat name template (%SERVICE% ...).
    pub(crate) inbound_cluster_stat_name: String,
    /// Stat name template.
    pub(crate) outbound_cluster_stat_name: String,
    /// Deprecated: DNS certs for CP components.
    pub(crate) certificates: Vec<Certificate>,
    /// Per-host settings.
    pub(crate) service_settings: Vec<ServiceSettings>,
    /// Ambient multicluster scope by selectors.
    pub(crate) service_scope_configs: Vec<ServiceScope>,
    /// Agent merges app + Envoy metrics.
    pub(crate) enable_prometheus_merge: bool,
    /// Deprecated: default root for simple TLS.
    pub(crate) verify_certificate_at_client: Option<bool>,
    /// External CA for istiod RA.
    pub(crate) ca: Option<Ca>,
    /// Named providers that Telemetry, AuthorizationPolicy and credentials refer to.
    pub(crate) extension_providers: Vec<ExtensionProvider>,
    /// Providers when Telemetry absent.
    pub(crate) default_providers: DefaultProviders,
    /// Namespaces istiod watches.
    pub(crate) discovery_selectors: Vec<LabelSelector>,
    /// URL normalization level.
    pub(crate) path_normalization: Option<PathNormalization>,
    /// Mesh default retries.
    pub(crate) default_http_retry_policy: Option<Retries>,
    /// Mesh mTLS TLS params.
    #[serde(rename = "meshMTLS")]
    pub(crate) mesh_mtls: Option<TlsParameters>,
    /// TLS defaults for non-mesh TLS.
    pub(crate) tls_defaults: Option<TlsParameters>,
    /// Mesh default connection pool / outlier.
    pub(crate) default_traffic_policy: Option<DefaultTrafficPolicy>,
    /// Who may define/see ServiceEntry publicly.
    pub(crate) service_entry_visibility: Option<ServiceEntryVisibility>,
    /// The key `meshNetworks` of the same ConfigMap; not a field of `MeshConfig`.
    #[serde(skip)]
    pub(crate) networks: MeshNetworks,
}

/// Which Ingresses count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum IngressControllerMode {
    #[default]
    Unspecified,
    Off,
    Default,
    Strict,
}

/// The form of access log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

/// What becomes of traffic to destinations that the mesh does not know.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct OutboundTrafficPolicy {
    /// REGISTRY_ONLY / ALLOW_ANY (default) / ALLOW_ANY_DYNAMIC_DNS.
    pub(crate) mode: OutboundMode,
    /// TLS settings for outbound pass-through.
    pub(crate) tls: Option<ClientTls>,
}

/// Whether unknown destinations may be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum OutboundMode {
    /// They are refused.
    RegistryOnly,
    /// They are reached as they are.
    #[default]
    AllowAny,
    /// They are reached by the names that clients use.
    AllowAnyDynamicDns,
}

/// What becomes of traffic to ports that no service has.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct InboundTrafficPolicy {
    /// PASSTHROUGH or LOCALHOST.
    pub(crate) mode: InboundMode,
}

/// Where such traffic goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum InboundMode {
    #[default]
    Passthrough,
    Localhost,
}

/// Another source of configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ConfigSource {
    /// Fs:///, k8s://, xds://.
    pub(crate) address: String,
    /// Client TLS.
    pub(crate) tls_settings: Option<ClientTls>,
    /// Resource kinds.
    pub(crate) subscribed_resources: Vec<SourceResource>,
}

/// What a source gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum SourceResource {
    #[default]
    ServiceRegistry,
}

/// A root of trust.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CertificateData {
    /// PEM roots.
    pub(crate) pem: Option<String>,
    /// SPIFFE bundle endpoint polled.
    pub(crate) spiffe_bundle_url: Option<String>,
    /// K8s signers bound to root.
    pub(crate) cert_signers: Vec<String>,
    /// Trust domains this root covers.
    pub(crate) trust_domains: Vec<String>,
}

/// Whether HTTP/1.1 is carried by HTTP/2 between proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum MeshH2Upgrade {
    #[default]
    DoNotUpgrade,
    Upgrade,
}

/// A certificate that the control plane provides.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Certificate {
    /// Secret to write.
    pub(crate) secret_name: String,
    /// DNS SANs.
    pub(crate) dns_names: Vec<String>,
}

/// Settings for services.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceSettings {
    /// Settings for hosts.
    pub(crate) settings: Option<ServiceLocality>,
    /// Host globs.
    pub(crate) hosts: Vec<String>,
}

/// Where a service is served from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceLocality {
    /// Keep traffic in the cluster.
    pub(crate) cluster_local: bool,
}

/// How far services reach in a mesh of several clusters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceScope {
    /// Namespace labels.
    pub(crate) namespace_selector: Option<LabelSelector>,
    /// Service labels.
    pub(crate) services_selector: Option<LabelSelector>,
    /// LOCAL or GLOBAL.
    pub(crate) scope: Scope,
}

/// How far a service reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Scope {
    #[default]
    Local,
    Global,
}

/// A certificate authority outside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Ca {
    /// External CA gRPC address.
    pub(crate) address: String,
    /// Client TLS to CA.
    pub(crate) tls_settings: Option<ClientTls>,
    /// CSR timeout, 10s.
    pub(crate) request_timeout: Option<Span>,
    /// Istiod proxies (true) or agent connects.
    pub(crate) istiod_side: bool,
}

/// Providers that are used where no Telemetry says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DefaultProviders {
    /// Default tracers.
    pub(crate) tracing: Vec<String>,
    /// Default metrics.
    pub(crate) metrics: Vec<String>,
    /// Default logs.
    pub(crate) access_logging: Vec<String>,
}

/// How request paths are brought into one form.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PathNormalization {
    /// NONE / BASE / MERGE_SLASHES / DECODE_AND_MERGE_SLASHES.
    pub(crate) normalization: Normalization,
}

/// How far paths are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Normalization {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// Parameters of TLS.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsParameters {
    /// TLSV1_2 / TLSV1_3.
    pub(crate) min_protocol_version: TlsProtocol,
    /// Allowed curves.
    pub(crate) ecdh_curves: Vec<String>,
    /// Allowed ciphers.
    pub(crate) cipher_suites: Vec<String>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum TlsProtocol {
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

/// Policies for all services that have none of their own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DefaultTrafficPolicy {
    /// Default limits.
    pub(crate) connection_pool: Option<ConnectionPool>,
    /// Default ejection.
    pub(crate) outlier_detection: Option<OutlierDetection>,
}

/// Who sees ServiceEntries.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceEntryVisibility {
    /// Visibility if no policy matches.
    pub(crate) default_visibility: Visibility,
    /// Apply to sidecars too.
    pub(crate) apply_to_sidecars: bool,
    /// Ordered policies.
    pub(crate) policies: Vec<VisibilityPolicy>,
}

/// Who sees a ServiceEntry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum Visibility {
    #[default]
    #[serde(rename = "VISIBILITY_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "NAMESPACE")]
    Namespace,
    #[serde(rename = "PUBLIC")]
    Public,
}

/// Who sees the ServiceEntries of some namespaces.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct VisibilityPolicy {
    /// Visibility granted.
    pub(crate) visibility: Visibility,
    /// Rules that select.
    pub(crate) matching_rules: Vec<VisibilityRule>,
}

/// Which namespaces a policy is for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct VisibilityRule {
    /// Namespaces matched.
    pub(crate) namespace_selector: Option<LabelSelector>,
}

impl Default for MeshConfig {
    /// Istio's defaults (`DefaultMeshConfig`). An empty `default*ExportTo` means all namespaces.
    fn default() -> MeshConfig {
        MeshConfig {
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            proxy_http_port: 0,
            connect_timeout: seconds(10),
            hbone_idle_timeout: None,
            protocol_detection_timeout: Span::default(),
            tcp_keepalive: None,
            ingress_class: "istio".to_owned(),
            ingress_service: "istio-ingressgateway".to_owned(),
            ingress_controller_mode: IngressControllerMode::Strict,
            ingress_selector: String::new(),
            enable_tracing: true,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::default(),
            enable_envoy_access_log_service: false,
            disable_envoy_listener_log: false,
            default_config: ProxyConfig::default(),
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            inbound_traffic_policy: InboundTrafficPolicy::default(),
            config_sources: Vec::new(),
            enable_auto_mtls: true,
            trust_domain: TRUST_DOMAIN.to_owned(),
            trust_domain_aliases: Vec::new(),
            ca_certificates: Vec::new(),
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            locality_lb_setting: Some(LocalityLb { enabled: Some(true), ..LocalityLb::default() }),
            zone_aware_lb_setting: None,
            dns_refresh_rate: seconds(60),
            h2_upgrade_policy: MeshH2Upgrade::default(),
            inbound_cluster_stat_name: String::new(),
            outbound_cluster_stat_name: String::new(),
            certificates: Vec::new(),
            service_settings: Vec::new(),
            service_scope_configs: Vec::new(),
            enable_prometheus_merge: true,
            verify_certificate_at_client: None,
            ca: None,
            extension_providers: Vec::new(),
            // Deviation: in Istio nothing counts unless the mesh says so, but the ConfigMap that it is
            // installed with does.
            default_providers: DefaultProviders {
                metrics: vec![provider::PROMETHEUS.to_owned()],
                ..DefaultProviders::default()
            },
            discovery_selectors: Vec::new(),
            path_normalization: None,
            default_http_retry_policy: None,
            mesh_mtls: None,
            tls_defaults: None,
            default_traffic_policy: None,
            service_entry_visibility: None,
            networks: MeshNetworks::default(),
        }
    }
}

/// Seconds as a span.
const fn seconds(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}
