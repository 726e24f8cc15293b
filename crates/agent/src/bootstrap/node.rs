//! Who a proxy is: the node that it shows to the control plane.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::Inputs;
use crate::environment::Environment;
use crate::proxy_config::{ProxyConfig, TracingServiceName};

/// The release of Istio whose agent this stands for; control planes look at it.
pub const ISTIO_VERSION: &str = "1.30.0";

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Beside a workload.
    Sidecar,
    /// A gateway.
    Router,
}

impl Role {
    /// As in the identifier of a node.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Sidecar => "sidecar",
            Role::Router => "router",
        }
    }
}

/// Who a proxy is.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `sidecar~10.0.0.1~web-0.shop~shop.svc.cluster.local`.
    pub id: String,
    /// What it is for.
    pub role: Role,
    /// The DNS domain of its names.
    pub domain: String,
    /// Its addresses, the Pod's first.
    pub addresses: Vec<IpAddr>,
    metadata: Map<String, Value>,
    labels: BTreeMap<String, String>,
    outlier_log: Option<String>,
}

impl Node {
    /// The node of a proxy. `found` are addresses of the machine; `domain` that of `--domain`.
    pub fn new(
        role: Role,
        domain: Option<&str>,
        config: &ProxyConfig,
        environment: &Environment,
        found: &[IpAddr],
        outlier_log: Option<&str>,
    ) -> Node {
        let default = || format!("{}.svc.cluster.local", environment.namespace);
        let domain = domain.filter(|domain| !domain.is_empty()).map_or_else(default, str::to_owned);
        let mut addresses: Vec<IpAddr> = environment.instance_ip.into_iter().collect();
        for address in found {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        if addresses.is_empty() {
            addresses = vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
        }
        let ip = addresses.first().map(IpAddr::to_string).unwrap_or_default();
        let Environment { pod_name, namespace, .. } = environment;
        let id = format!("{}~{ip}~{pod_name}.{namespace}~{domain}", role.as_str());
        let (metadata, labels) = (untyped(config, environment), labels(environment));
        let outlier_log = outlier_log.map(str::to_owned);
        Node { id, role, domain, addresses, metadata, labels, outlier_log }
    }

    /// A field of the metadata that came by the environment.
    pub(super) fn given(&self, name: &str) -> Option<&Value> {
        self.metadata.get(name)
    }

    /// The cluster of the node: who is called in traces, and the service of which it is.
    pub(super) fn cluster(&self, config: &ProxyConfig, environment: &Environment) -> String {
        let workload = self.metadata.get("WORKLOAD_NAME").and_then(Value::as_str).unwrap_or_default();
        let namespace = &environment.namespace;
        let or_default = |name: &str| {
            let app = ["app", "app.kubernetes.io/name"].iter().find_map(|name| self.labels.get(*name));
            match (app, workload) {
                _ if !name.is_empty() && name != "istio-proxy" => name.to_owned(),
                (Some(app), _) => format!("{app}.{namespace}"),
                (None, "") if namespace.is_empty() => "istio-proxy".to_owned(),
                (None, "") => format!("istio-proxy.{namespace}"),
                (None, workload) => format!("{workload}.{namespace}"),
            }
        };
        let canonical = || {
            let names = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
                .map(|name| self.labels.get(name));
            let fallback = if workload.is_empty() { "istio-proxy" } else { workload };
            names.into_iter().flatten().next().map_or(fallback, String::as_str).to_owned()
        };
        match config.tracing_service_name {
            None => or_default(config.service_cluster.as_deref().unwrap_or("istio-proxy")),
            Some(TracingServiceName::AppLabelAndNamespace) => or_default("istio-proxy"),
            Some(TracingServiceName::CanonicalNameOnly) => or_default(&canonical()),
            Some(TracingServiceName::CanonicalNameAndNamespace) if namespace.is_empty() => {
                or_default(&canonical())
            }
            Some(TracingServiceName::CanonicalNameAndNamespace) => format!("{}.{namespace}", canonical()),
        }
    }

    pub(super) fn to_json(&self, inputs: &Inputs<'_>) -> Value {
        let Inputs { config, environment, secrets, .. } = *inputs;
        let mut metadata = self.metadata.clone();
        let mut put = |name: &str, value: Value| drop(metadata.insert(name.to_owned(), value));
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        put("INSTANCE_IPS", json!(addresses.join(",")));
        put("ENVOY_STATUS_PORT", json!(environment.status_port));
        put("ENVOY_PROMETHEUS_PORT", json!(environment.prometheus_port));
        for (name, port) in [
            ("ENVOY_SECURE_METRICS_PORT", environment.secure_metrics_port),
            ("ENVOY_SECURE_MERGED_METRICS_PORT", environment.secure_merged_metrics_port),
        ] {
            if port != 0 {
                put(name, json!(port));
            }
        }
        if environment.exit_when_idle {
            put("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", json!("true"));
        }
        if environment.skip_deprecated_logs {
            put("ENVOY_SKIP_DEPRECATED_LOGS", json!("true"));
        }
        put("METADATA_DISCOVERY", json!("false"));
        put("WORKLOAD_IDENTITY_SOCKET_FILE", json!(environment.identity_socket));
        // Control planes name other clusters for these.
        for (name, is_so) in
            [("credential", secrets.has_credentials), ("file-credential", secrets.files.is_some())]
        {
            if is_so {
                put(name, json!("true"));
            }
        }
        put("PROXY_CONFIG", config.to_json());
        put("PILOT_SAN", json!([pilot_name(config)]));
        for (name, value) in [
            ("NAME", &environment.pod_name),
            ("NAMESPACE", &environment.namespace),
            ("SERVICE_ACCOUNT", &environment.service_account),
        ] {
            if !value.is_empty() {
                put(name, json!(value));
            }
        }
        if let Some(path) = &self.outlier_log {
            put("OUTLIER_LOG_PATH", json!(path));
        }
        if !self.labels.is_empty() {
            put("LABELS", json!(self.labels));
        }
        let fixed = static_labels(environment);
        if !fixed.is_empty() {
            put("STATIC_LABELS", json!(fixed));
        }
        if let Some(annotations) = environment.annotations.as_ref().filter(|all| !all.is_empty()) {
            put("ANNOTATIONS", json!(annotations));
        }
        if let Some(address) = environment.variables.get("DNS_PROXY_ADDR").filter(|text| !text.is_empty()) {
            put("DNS_PROXY_ADDR", json!(address));
        }
        if !metadata.contains_key("ISTIO_VERSION") {
            metadata.insert("ISTIO_VERSION".to_owned(), json!(ISTIO_VERSION));
        }
        metadata.sort_keys();
        json!({
            "id": self.id,
            "cluster": self.cluster(config, environment),
            "locality": self.locality(),
            "metadata": metadata,
        })
    }

    /// By the label of machines; in a cluster the control plane knows it by the Pod's node.
    fn locality(&self) -> Value {
        let names = ["topology.istio.io/locality", "istio-locality"];
        let Some(text) = names.iter().find_map(|name| self.labels.get(*name)).filter(|it| !it.is_empty())
        else {
            return json!({});
        };
        let text = if text.contains('/') { text.clone() } else { text.replace('.', "/") };
        let parts = ["region", "zone", "sub_zone"].into_iter().zip(text.splitn(3, '/'));
        let parts = parts.filter(|(_, part)| !part.is_empty());
        Value::Object(parts.map(|(name, part)| (name.to_owned(), json!(part))).collect())
    }
}

/// The name that the control plane has.
fn pilot_name(config: &ProxyConfig) -> &str {
    let host = config.discovery_address.split(':').next().unwrap_or_default();
    if host == "localhost" { "istiod.istio-system.svc" } else { host }
}

/// `ISTIO_META_*` and `ISTIO_METAJSON_*`: of ProxyConfig, and of the environment.
fn untyped(config: &ProxyConfig, environment: &Environment) -> Map<String, Value> {
    let mut metadata = Map::new();
    for (name, value) in config.proxy_metadata.iter().chain(&environment.variables) {
        if let Some(name) = name.strip_prefix("ISTIO_META_") {
            metadata.insert(name.to_owned(), json!(value));
        }
    }
    for (name, value) in &environment.variables {
        if name.starts_with("ISTIO_METAJSON_") {
            match serde_json::from_str::<Map<String, Value>>(value) {
                Ok(fields) => metadata.extend(fields),
                Err(error) => tracing::warn!("{name}: {error}"),
            }
        }
    }
    metadata
}

/// The labels that injection has written down.
fn static_labels(environment: &Environment) -> BTreeMap<String, String> {
    let text = environment.variables.get("ISTIO_METAJSON_LABELS");
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Those, and the Pod's as they are now.
fn labels(environment: &Environment) -> BTreeMap<String, String> {
    let mut all = static_labels(environment);
    let own = environment.labels.iter().flatten().filter(|(name, _)| *name != "pod-template-hash");
    all.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    all
}
