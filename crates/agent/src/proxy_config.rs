//! ProxyConfig: what a proxy is started with, put together from all places that say something of it.
//!
//! Later places win, field by field, as with pilot-agent: defaults, `defaultConfig` of the mesh
//! configuration's file, the variable `PROXY_CONFIG`, the annotation `proxy.istio.io/config`; single
//! annotations last. Only `proxyMetadata` is merged key by key. The fields are those of Istio's API; a
//! field of which nothing is made is reported by name, as is one that does not exist.

use std::collections::BTreeMap;
use std::time::Duration;

use leno_api::yaml::{Dialect, from_node, parse};
use leno_base::duration::{parse_go, parse_proto};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

/// Where pilot-agent would find Envoy; who says that has said nothing.
pub const DEFAULT_BINARY: &str = "/usr/local/bin/envoy";

/// A place that says something of the configuration.
#[derive(Clone, Copy, Debug)]
pub enum Layer<'t> {
    /// A mesh configuration, of which `defaultConfig` counts.
    Mesh(&'t str),
    /// A ProxyConfig.
    Proxy(&'t str),
}

/// What a proxy is started with.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    /// The folder of the socket for xDS and of the bootstrap.
    pub config_path: String,
    /// Envoy's, if it is to be the proxy; see [`ProxyConfig::envoy`].
    pub binary_path: String,
    /// The cluster of the node.
    pub service_cluster: Option<String>,
    /// What that cluster is made of otherwise.
    pub tracing_service_name: Option<TracingServiceName>,
    /// How long connections have to end.
    #[serde(deserialize_with = "duration")]
    pub drain_duration: Duration,
    /// `HOST:PORT` of the control plane.
    pub discovery_address: String,
    /// A statsd sink.
    pub statsd_udp_address: String,
    /// The port of the admin interface.
    pub proxy_admin_port: u16,
    /// Whether the control plane is spoken to by TLS.
    pub control_plane_auth_policy: AuthenticationPolicy,
    /// A bootstrap to use as it is.
    pub custom_config_file: String,
    /// Worker threads; 0: as many as there are processors.
    pub concurrency: Option<u32>,
    /// Where spans go.
    pub tracing: Option<Tracing>,
    /// Where access logs go.
    pub envoy_access_log_service: Option<Remote>,
    /// Where metrics go.
    pub envoy_metrics_service: Option<Remote>,
    /// Variables for agent and node.
    pub proxy_metadata: BTreeMap<String, String>,
    /// Values of the runtime; an empty one takes a default away.
    pub runtime_values: BTreeMap<String, String>,
    /// Our own port, 15020; 0: none.
    pub status_port: u16,
    /// Tags of stats beside those that there always are.
    pub extra_stat_tags: Vec<String>,
    /// How long to wait for connections to end when terminated.
    #[serde(deserialize_with = "duration")]
    pub termination_drain_duration: Duration,
    /// Which stats there are.
    pub proxy_stats_matcher: Option<StatsMatcher>,
    /// How often access logs are written out.
    #[serde(deserialize_with = "optional_duration")]
    pub file_flush_interval: Option<Duration>,
    /// How much an access log gathers, KiB.
    pub file_flush_min_size_kb: u32,
    /// Whether metrics are compressed.
    pub stats_compression: Option<bool>,
    /// Limits.
    pub connection_settings: Option<ConnectionSettings>,
    /// Everything as it was written, for the metadata of the node.
    #[serde(skip)]
    pub written: Map<String, Value>,
    /// Whether a flag names the binary, which means it whatever it is.
    #[serde(skip)]
    binary_is_meant: bool,
}

/// How the service of a trace is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TracingServiceName {
    /// `app.namespace`.
    AppLabelAndNamespace,
    /// The canonical name.
    CanonicalNameOnly,
    /// The canonical name, and the namespace.
    CanonicalNameAndNamespace,
}

/// How the control plane is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthenticationPolicy {
    /// In plain text.
    None,
    /// By TLS.
    MutualTls,
    /// As the mesh has it: by TLS.
    Inherit,
}

/// Where spans go.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    /// To Zipkin.
    pub zipkin: Option<Address>,
    /// To Datadog.
    pub datadog: Option<Address>,
    /// By TLS.
    pub tls_settings: Option<Value>,
}

/// `HOST:PORT`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Address {
    /// `HOST:PORT`.
    pub address: String,
}

/// A service that is spoken to by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Remote {
    /// `HOST:PORT`.
    pub address: String,
    /// By TLS.
    pub tls_settings: Option<Value>,
    /// Keep-alive.
    pub tcp_keepalive: Option<Keepalive>,
}

/// TCP's keep-alive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Keepalive {
    /// How many probes.
    pub probes: u32,
    /// After what time.
    #[serde(deserialize_with = "optional_duration")]
    pub time: Option<Duration>,
    /// How far apart.
    #[serde(deserialize_with = "optional_duration")]
    pub interval: Option<Duration>,
}

/// Which stats there are beside those that there must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatsMatcher {
    /// By prefix.
    pub inclusion_prefixes: Option<Vec<String>>,
    /// By suffix.
    pub inclusion_suffixes: Option<Vec<String>>,
    /// By expression.
    pub inclusion_regexps: Option<Vec<String>>,
}

/// Limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionSettings {
    /// The most connections of the whole proxy.
    pub global_downstream_connection_limit: Option<u32>,
}

impl Default for ProxyConfig {
    /// Istio's.
    fn default() -> ProxyConfig {
        ProxyConfig {
            config_path: "./etc/istio/proxy".to_owned(),
            binary_path: DEFAULT_BINARY.to_owned(),
            service_cluster: None,
            tracing_service_name: None,
            drain_duration: Duration::from_secs(45),
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            statsd_udp_address: String::new(),
            proxy_admin_port: 15000,
            control_plane_auth_policy: AuthenticationPolicy::MutualTls,
            custom_config_file: String::new(),
            concurrency: None,
            tracing: None,
            envoy_access_log_service: None,
            envoy_metrics_service: None,
            proxy_metadata: BTreeMap::new(),
            runtime_values: BTreeMap::new(),
            status_port: 15020,
            extra_stat_tags: Vec::new(),
            termination_drain_duration: Duration::from_secs(5),
            proxy_stats_matcher: None,
            file_flush_interval: None,
            file_flush_min_size_kb: 0,
            stats_compression: None,
            connection_settings: None,
            written: Map::new(),
            binary_is_meant: false,
        }
    }
}

/// Fields of which the agent makes nothing, and why.
const WITHOUT_EFFECT: [(&str, &str); 7] = [
    ("statNameLength", "Envoy has no such limit any more"),
    ("readinessProbe", "the health of machines is not supported yet"),
    ("privateKeyProvider", "private key providers are not supported yet"),
    ("caCertificatesPem", "further roots come by discovery only (PROXY_CONFIG_XDS_AGENT)"),
    ("sds", "Istio has none either any more"),
    ("discoveryRefreshDelay", "Istio has none either any more"),
    ("availabilityZone", "Istio has none either any more"),
];

/// Fields that others look at: the injector, and the control plane.
const OF_OTHERS: [&str; 6] = [
    "interceptionMode",
    "holdApplicationUntilProxyStarts",
    "image",
    "meshId",
    "proxyHeaders",
    "gatewayTopology",
];

/// Fields that we cannot do without.
const REFUSED: [&str; 3] = ["proxyBootstrapTemplatePath", "zipkinAddress", "envoyMetricsServiceAddress"];

/// Settings of tracing that the control plane looks at.
const TRACING_OF_OTHERS: [&str; 4] = ["customTags", "maxPathTagLength", "sampling", "enableIstioTags"];

impl ProxyConfig {
    /// Puts it together. The layers are named for what is said of them.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn read(layers: &[(&str, Layer<'_>)]) -> Result<ProxyConfig, Vec<String>> {
        let mut faults = Vec::new();
        let mut written = Map::new();
        for (source, layer) in layers {
            match one(source, *layer) {
                Ok(fields) => lay_over(&mut written, fields),
                Err(more) => faults.extend(more),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut config: ProxyConfig = serde_json::from_value(Value::Object(written.clone()))
            .map_err(|error| vec![format!("ProxyConfig: {error}")])?;
        config.written = written;
        config.check()?;
        Ok(config)
    }

    /// Takes annotations over that set single fields.
    ///
    /// # Errors
    /// If one is no port, or no address.
    pub fn annotate(&mut self, annotation: impl Fn(&str) -> Option<String>) -> Result<(), Vec<String>> {
        if let Some(address) = annotation("sidecar.istio.io/discoveryAddress") {
            self.written.insert("discoveryAddress".to_owned(), json!(address));
            self.discovery_address = address;
        }
        if let Some(port) = annotation("status.sidecar.istio.io/port") {
            self.status_port =
                port.parse().map_err(|_| vec![format!("status.sidecar.istio.io/port: {port} is no port")])?;
            self.written.insert("statusPort".to_owned(), json!(self.status_port));
        }
        self.check()
    }

    /// Takes over what a flag names as the proxy (`--binaryPath`); nothing if it is empty.
    pub fn set_binary(&mut self, path: &str) {
        if !path.is_empty() {
            path.clone_into(&mut self.binary_path);
            self.written.insert("binaryPath".to_owned(), json!(path));
            self.binary_is_meant = true;
        }
    }

    /// Envoy's binary, if somebody has said that it is to be the proxy.
    pub fn envoy(&self) -> Option<&str> {
        let is_meant = self.binary_is_meant || self.binary_path != DEFAULT_BINARY;
        Some(self.binary_path.as_str()).filter(|path| is_meant && !path.is_empty())
    }

    /// As it is shown to the control plane: with the defaults that are not written.
    pub fn to_json(&self) -> Value {
        let mut all = json!({
            "configPath": self.config_path,
            "binaryPath": self.binary_path,
            "serviceCluster": "istio-proxy",
            "drainDuration": "45s",
            "discoveryAddress": self.discovery_address,
            "proxyAdminPort": self.proxy_admin_port,
            "controlPlaneAuthPolicy": "MUTUAL_TLS",
            "statNameLength": 189,
            "statusPort": self.status_port,
            "terminationDrainDuration": "5s",
        });
        if let Value::Object(map) = &mut all {
            if self.tracing_service_name.is_some() {
                map.remove("serviceCluster");
            }
            for (name, value) in &self.written {
                map.insert(name.clone(), value.clone());
            }
            if let Some(concurrency) = self.concurrency {
                map.insert("concurrency".to_owned(), json!(concurrency));
            }
            map.sort_keys();
        }
        all
    }

    fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        let mut need = |good: bool, words: String| {
            if !good {
                faults.push(words);
            }
        };
        let is_address = |text: &str| {
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        need(!self.config_path.is_empty(), "configPath must not be empty".to_owned());
        need(
            is_address(&self.discovery_address),
            format!("discoveryAddress: {:?} is not HOST:PORT", self.discovery_address),
        );
        need(self.proxy_admin_port != 0, "proxyAdminPort must not be 0".to_owned());
        need(
            self.service_cluster.is_none() || self.tracing_service_name.is_none(),
            "serviceCluster and tracingServiceName exclude each other".to_owned(),
        );
        let tracing = self.tracing.iter().flat_map(|tracing| [&tracing.zipkin, &tracing.datadog]).flatten();
        let services = [&self.envoy_access_log_service, &self.envoy_metrics_service].into_iter().flatten();
        let statsd = Some(&self.statsd_udp_address).filter(|address| !address.is_empty());
        for address in tracing.map(|it| &it.address).chain(services.map(|it| &it.address)).chain(statsd) {
            need(is_address(address), format!("{address:?} is not HOST:PORT"));
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

/// Other names of the mesh's trust domain, as a mesh configuration has them.
///
/// # Errors
/// What is wrong with it.
pub fn trust_domain_aliases(source: &str, mesh: &str) -> Result<Vec<String>, String> {
    let documents = parse(mesh, Dialect::Kubernetes).map_err(|error| error.in_file(source).to_string())?;
    let Some(node) = documents.first().and_then(|document| document.find("trustDomainAliases")) else {
        return Ok(Vec::new());
    };
    let read = from_node::<Option<Vec<String>>>(node).map_err(|error| error.in_file(source).to_string())?;
    Ok(read.0.unwrap_or_default())
}

/// Reads one place, and reports what is not made use of.
fn one(source: &str, layer: Layer<'_>) -> Result<Map<String, Value>, Vec<String>> {
    let text = match layer {
        Layer::Mesh(text) | Layer::Proxy(text) => text,
    };
    let documents =
        parse(text, Dialect::Kubernetes).map_err(|error| vec![error.in_file(source).to_string()])?;
    let Some(document) = documents.first() else { return Ok(Map::new()) };
    let node = match layer {
        Layer::Proxy(_) => document,
        Layer::Mesh(_) => match document.find("defaultConfig") {
            Some(node) => node,
            None => return Ok(Map::new()),
        },
    };
    if node.is_null() {
        return Ok(Map::new());
    }
    let mut faults = Vec::new();
    if let Err(error) = from_node::<ProxyConfig>(node) {
        faults.push(error.in_file(source).to_string());
    }
    let Value::Object(fields) = node.to_json() else {
        return Err(vec![format!("{source}: a ProxyConfig is an object")]);
    };
    for name in fields.keys() {
        let at = node.locate_nearest(name);
        let place = format!("{source}:{}:{}", at.line, at.column);
        if REFUSED.contains(&name.as_str()) {
            faults.push(format!("{place}: {name} is not supported yet"));
        } else if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(known, _)| known == name) {
            tracing::warn!("{place}: {name} has no effect: {why}");
        } else if !is_known(name) {
            tracing::warn!("{place}: {name} has no effect: there is no such field");
        }
    }
    if let Some(Value::Object(tracing)) = fields.get("tracing") {
        for name in tracing.keys() {
            match name.as_str() {
                "zipkin" | "datadog" | "tlsSettings" => {}
                name if TRACING_OF_OTHERS.contains(&name) => {}
                name => faults.push(format!("{source}: tracing.{name} is not supported yet")),
            }
        }
    }
    if faults.is_empty() { Ok(fields) } else { Err(faults) }
}

/// Fields that are read here.
fn is_known(name: &str) -> bool {
    const READ: [&str; 25] = [
        "configPath",
        "binaryPath",
        "serviceCluster",
        "tracingServiceName",
        "drainDuration",
        "discoveryAddress",
        "statsdUdpAddress",
        "proxyAdminPort",
        "controlPlaneAuthPolicy",
        "customConfigFile",
        "concurrency",
        "tracing",
        "envoyAccessLogService",
        "envoyMetricsService",
        "proxyMetadata",
        "runtimeValues",
        "statusPort",
        "extraStatTags",
        "terminationDrainDuration",
        "proxyStatsMatcher",
        "fileFlushInterval",
        "fileFlushMinSizeKb",
        "statsCompression",
        "connectionSettings",
        "parentShutdownDuration",
    ];
    READ.contains(&name) || OF_OTHERS.contains(&name)
}

/// Lays fields over others.
fn lay_over(written: &mut Map<String, Value>, fields: Map<String, Value>) {
    for (name, value) in fields {
        match (name.as_str(), written.get_mut(&name), value) {
            ("proxyMetadata", Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            // One of two.
            ("serviceCluster", _, value) => {
                written.remove("tracingServiceName");
                written.insert(name, value);
            }
            ("tracingServiceName", _, value) => {
                written.remove("serviceCluster");
                written.insert(name, value);
            }
            (_, _, value) => drop(written.insert(name, value)),
        }
    }
}

fn span(text: &str) -> Result<Duration, String> {
    parse_proto(text).or_else(|_| parse_go(text)).map_err(|error| format!("{text:?}: {error}"))
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    span(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| span(&text)).transpose().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Layer, ProxyConfig};

    #[test]
    fn later_places_win() {
        let mesh = "defaultConfig: {concurrency: 4, drainDuration: 10s, proxyMetadata: {A: a, B: b}}\nx: y";
        let variable = "{\"concurrency\": 0, \"proxyMetadata\": {\"B\": \"c\"}}";
        let annotation = "statusPort: 15030\ntracing: {zipkin: {address: 'zipkin:9411'}, sampling: 10}";
        let config = ProxyConfig::read(&[
            ("mesh", Layer::Mesh(mesh)),
            ("PROXY_CONFIG", Layer::Proxy(variable)),
            ("annotation", Layer::Proxy(annotation)),
        ])
        .expect("fine");
        assert_eq!(config.concurrency, Some(0));
        assert_eq!(config.drain_duration, Duration::from_secs(10));
        assert_eq!(config.status_port, 15030);
        assert_eq!(config.proxy_admin_port, 15000);
        let metadata: Vec<_> = config.proxy_metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(metadata, ["A=a", "B=c"]);
        assert!(config.envoy().is_none());
        assert_eq!(config.to_json()["drainDuration"], "10s");
    }

    #[test]
    fn flags_and_annotations_come_last() {
        let mut config = ProxyConfig::read(&[]).expect("fine");
        config.set_binary("");
        assert!(config.envoy().is_none());
        config.set_binary("/usr/local/bin/envoy");
        assert_eq!(config.envoy(), Some("/usr/local/bin/envoy"));
        for (address, good) in [("istiod.edge.svc:15012", true), ("istiod", false), (":1", false)] {
            let annotation =
                |name: &str| (name == "sidecar.istio.io/discoveryAddress").then(|| address.to_owned());
            assert_eq!(config.annotate(annotation).is_ok(), good, "{address}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, words) in [
            (
                "proxyBootstrapTemplatePath: /x",
                "PROXY_CONFIG:1:1: proxyBootstrapTemplatePath is not supported yet",
            ),
            ("tracing: {lightstep: {address: a:1}}", "tracing.lightstep is not supported yet"),
            ("concurrency: many", "concurrency"),
            ("discoveryAddress: istiod", "\"istiod\" is not HOST:PORT"),
            ("drainDuration: soon", "drainDuration"),
            ("proxyAdminPort: 70000", "proxyAdminPort"),
            ("[1]", "PROXY_CONFIG"),
        ] {
            let faults = ProxyConfig::read(&[("PROXY_CONFIG", Layer::Proxy(text))]).expect_err(text);
            assert!(faults.iter().any(|fault| fault.contains(words)), "{text}: {faults:?}");
        }
    }
}
