//! What the agent is told: variables of its environment, and files of the downward API.
//!
//! Names and defaults are pilot-agent's. Nothing else of the crate looks at the environment. What is
//! wrong is reported all at once; what pilot-agent has and we do not is refused by name, or reported if
//! it only makes things better.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use leno_base::duration::parse_go;
use leno_tls::issue::KeyType;

use crate::control_plane::header;
use crate::sds;

/// Where the downward API puts the labels of the Pod.
pub const LABELS: &str = "./etc/istio/pod/labels";
/// Where it puts its annotations.
pub const ANNOTATIONS: &str = "./etc/istio/pod/annotations";
/// The token of the service account.
pub const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// Variables that ask for what there is not, with the values that ask for nothing.
const REFUSED: [(&str, &[&str]); 7] = [
    ("ISTIO_BOOTSTRAP", &[""]),
    ("CA_PROVIDER", &["", "Citadel"]),
    ("XDS_AUTH_PROVIDER", &[""]),
    ("CREDENTIAL_FETCHER_TYPE", &["", "JWT"]),
    ("DISABLE_ENVOY", &["", "false", "0"]),
    ("COMPLIANCE_POLICY", &[""]),
    ("PEER_METADATA_DISCOVERY", &["", "false", "0"]),
];

/// Variables that have no effect.
const WITHOUT_EFFECT: [&str; 16] = [
    // Keys are in PKCS #8 always, and tokens a third party's.
    "PKCS8_KEY",
    "JWT_POLICY",
    // There is no metadata of platforms.
    "CLOUD_PLATFORM",
    "GCP_METADATA",
    "GCP_QUOTA_PROJECT",
    "GCP_ZONE",
    "GRPC_XDS_BOOTSTRAP",
    "WASM_INSECURE_REGISTRIES",
    "WASM_MODULE_EXPIRY",
    "WASM_PURGE_INTERVAL",
    "WASM_HTTP_REQUEST_TIMEOUT",
    "WASM_HTTP_REQUEST_MAX_RETRIES",
    "FILE_DEBOUNCE_DURATION",
    "CREDENTIAL_IDENTITY_PROVIDER",
    "ISTIO_ENVOY_ENABLE_CORE_DUMP",
    "ENABLE_PROBE_KEEPALIVE_CONNECTIONS",
];

/// Whom the control plane's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Whoever the system trusts (`SYSTEM`).
    System,
    /// The roots in a file.
    File(PathBuf),
}

/// What the agent is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Environment {
    /// `POD_NAME`.
    pub pod_name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `INSTANCE_IP`, the Pod's address.
    pub instance_ip: Option<IpAddr>,
    /// `HOST_IP`, the node's address, put in place of `$(HOST_IP)` in addresses.
    pub host_ip: String,
    /// `SERVICE_ACCOUNT`.
    pub service_account: String,
    /// `PROXY_CONFIG`: ProxyConfig as YAML or JSON.
    pub proxy_config: String,
    /// `ISTIO_CPU_LIMIT`: processors that we may use; 0: as many as there are.
    pub cpu_limit: usize,
    /// `TRUST_DOMAIN`.
    pub trust_domain: String,
    /// `ISTIO_META_CLUSTER_ID`.
    pub cluster_id: String,
    /// `ISTIO_META_CERT_SIGNER`: which of the authority's signers is to sign.
    pub cert_signer: Option<String>,
    /// `CA_ADDR`; the control plane's address if it is absent.
    pub ca_address: Option<String>,
    /// `CA_ROOT_CA`.
    pub ca_roots: Option<Roots>,
    /// `XDS_ROOT_CA`.
    pub xds_roots: Option<Roots>,
    /// `PILOT_CERT_PROVIDER`.
    pub cert_provider: String,
    /// `ISTIOD_SAN`: the name that the control plane's certificate must be for.
    pub istiod_san: Option<String>,
    /// `PROV_CERT`: a folder with a certificate that lets us ask for others.
    pub provisioned: Option<PathBuf>,
    /// `OUTPUT_CERTS`: a folder that certificates are written to.
    pub output: Option<PathBuf>,
    /// `FILE_MOUNTED_CERTS`: the workload's certificate is in files that somebody else renews.
    pub file_mounted: bool,
    /// `SECRET_TTL`.
    pub ttl: Duration,
    /// `SECRET_GRACE_PERIOD_RATIO`.
    pub grace: f64,
    /// `SECRET_GRACE_PERIOD_RATIO_JITTER`.
    pub jitter: f64,
    /// `ECC_SIGNATURE_ALGORITHM`, `ECC_CURVE` and `WORKLOAD_RSA_KEY_SIZE`.
    pub key: KeyType,
    /// `CA_HEADER_*`: headers of each request for a certificate.
    pub ca_headers: BTreeMap<String, String>,
    /// `XDS_HEADER_*`.
    pub xds_headers: BTreeMap<String, String>,
    /// `PROXY_CONFIG_XDS_AGENT`: roots come by discovery too.
    pub dynamic_proxy_config: bool,
    /// `ISTIO_DELTA_XDS`.
    pub delta: bool,
    /// `ISTIO_DUAL_STACK`.
    pub dual_stack: bool,
    /// `ENVOY_STATUS_PORT`.
    pub status_port: u16,
    /// `ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL`.
    pub status_proxy_protocol: bool,
    /// `ENVOY_PROMETHEUS_PORT`.
    pub prometheus_port: u16,
    /// `ENVOY_SECURE_METRICS_PORT`; 0: none.
    pub secure_metrics_port: u16,
    /// `ENVOY_SECURE_MERGED_METRICS_PORT`; 0: none.
    pub secure_merged_metrics_port: u16,
    /// `METRICS_LOCALHOST_ACCESS_ONLY`.
    pub metrics_localhost_only: bool,
    /// `ENVOY_SKIP_DEPRECATED_LOGS`.
    pub skip_deprecated_logs: bool,
    /// `MINIMUM_DRAIN_DURATION`.
    pub minimum_drain: Duration,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`.
    pub exit_when_idle: bool,
    /// `ISTIO_BOOTSTRAP_OVERRIDE`: a file merged over the bootstrap.
    pub bootstrap_override: Option<PathBuf>,
    /// `ISTIO_KUBE_APP_PROBERS`.
    pub app_probers: String,
    /// `REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION`.
    pub probe_localhost: bool,
    /// `ISTIO_ENABLE_HTTP2_PROBING`: whether probes by HTTPS may be HTTP/2.
    pub probe_h2: bool,
    /// `WORKLOAD_IDENTITY_SOCKET_FILE`: the name of the socket on which the workload's certificate is, that of
    /// another agent if it is not `socket`.
    pub identity_socket: String,
    /// `ISTIO_PROMETHEUS_ANNOTATIONS`.
    pub prometheus: Option<String>,
    /// `PILOT_AGENT_MERGE_ENVOY_STATS`: whether the proxy's metrics are among ours.
    pub merges_proxy_stats: bool,
    /// `ISTIO_META_DNS_CAPTURE`.
    pub dns_capture: bool,
    /// `ISTIO_META_ENABLE_DNS_SERVER`.
    pub dns_at_gateway: bool,
    /// `DNS_PROXY_ADDR`, where names are resolved; `localhost:15053` by default.
    pub dns_address: String,
    /// `DNS_FORWARD_PARALLEL`.
    pub dns_parallel: bool,
    /// `DNS_FORWARD_TIMEOUT`.
    pub dns_timeout: Duration,
    /// `HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED`.
    pub strips_fragments: bool,
    /// All variables, for the metadata of the node.
    pub variables: BTreeMap<String, String>,
    /// The labels of the Pod by the downward API, if it is there.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its annotations.
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Environment {
    /// Reads the variables, and the files below a folder (`.`, as a rule).
    ///
    /// # Errors
    /// All that is wrong, and all that is asked for and not supported.
    pub fn read(
        variables: impl IntoIterator<Item = (String, String)>,
        folder: &Path,
    ) -> Result<Environment, Vec<String>> {
        let variables: BTreeMap<String, String> = variables.into_iter().collect();
        let mut read = Read { variables: &variables, faults: Vec::new() };
        for (name, harmless) in REFUSED {
            if let Some(value) = variables.get(name)
                && !harmless.contains(&value.as_str())
            {
                read.faults.push(format!("{name}={value}: not supported yet"));
            }
        }
        for name in WITHOUT_EFFECT.iter().filter(|name| variables.contains_key(**name)) {
            tracing::warn!("{name} has no effect");
        }
        let path = |read: &Read<'_>, name: &str| read.given(name).map(PathBuf::from);
        let roots = |read: &Read<'_>, name: &str| {
            read.given(name).map(|value| match value {
                "SYSTEM" => Roots::System,
                file => Roots::File(file.into()),
            })
        };
        let downward = |file: &str, read: &mut Read<'_>| {
            let path = folder.join(file);
            match std::fs::read_to_string(&path) {
                Ok(text) => match parse_downward(&text) {
                    Ok(map) => Some(map),
                    Err(error) => {
                        read.faults.push(format!("{}: {error}", path.display()));
                        None
                    }
                },
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => {
                    read.faults.push(format!("{}: {error}", path.display()));
                    None
                }
            }
        };
        let environment = Environment {
            pod_name: read.text("POD_NAME", ""),
            namespace: read.text("POD_NAMESPACE", ""),
            instance_ip: read.optional("INSTANCE_IP"),
            host_ip: read.text("HOST_IP", ""),
            service_account: read.text("SERVICE_ACCOUNT", ""),
            proxy_config: read.text("PROXY_CONFIG", ""),
            cpu_limit: read.parsed("ISTIO_CPU_LIMIT", 0),
            trust_domain: read.text("TRUST_DOMAIN", "cluster.local"),
            cluster_id: read.text("ISTIO_META_CLUSTER_ID", ""),
            cert_signer: read.given("ISTIO_META_CERT_SIGNER").map(str::to_owned),
            ca_address: read.given("CA_ADDR").map(str::to_owned),
            ca_roots: roots(&read, "CA_ROOT_CA"),
            xds_roots: roots(&read, "XDS_ROOT_CA"),
            cert_provider: read.text("PILOT_CERT_PROVIDER", "istiod"),
            istiod_san: read.given("ISTIOD_SAN").map(str::to_owned),
            provisioned: path(&read, "PROV_CERT"),
            output: path(&read, "OUTPUT_CERTS"),
            file_mounted: read.truth("FILE_MOUNTED_CERTS", false),
            ttl: read.duration("SECRET_TTL", Duration::from_secs(24 * 3600)),
            grace: read.ratio("SECRET_GRACE_PERIOD_RATIO", 0.5),
            jitter: read.ratio("SECRET_GRACE_PERIOD_RATIO_JITTER", 0.01),
            key: read.key(),
            ca_headers: read.headers("CA_HEADER_"),
            xds_headers: read.headers("XDS_HEADER_"),
            dynamic_proxy_config: read.truth("PROXY_CONFIG_XDS_AGENT", false),
            delta: read.truth("ISTIO_DELTA_XDS", true),
            dual_stack: read.truth("ISTIO_DUAL_STACK", false),
            status_port: read.parsed("ENVOY_STATUS_PORT", 15021),
            status_proxy_protocol: read.truth("ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL", false),
            prometheus_port: read.parsed("ENVOY_PROMETHEUS_PORT", 15090),
            secure_metrics_port: read.parsed("ENVOY_SECURE_METRICS_PORT", 0),
            secure_merged_metrics_port: read.parsed("ENVOY_SECURE_MERGED_METRICS_PORT", 0),
            metrics_localhost_only: read.truth("METRICS_LOCALHOST_ACCESS_ONLY", false),
            skip_deprecated_logs: read.truth("ENVOY_SKIP_DEPRECATED_LOGS", true),
            minimum_drain: read.duration("MINIMUM_DRAIN_DURATION", Duration::from_secs(5)),
            exit_when_idle: read.truth("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", false),
            bootstrap_override: path(&read, "ISTIO_BOOTSTRAP_OVERRIDE"),
            app_probers: read.text("ISTIO_KUBE_APP_PROBERS", ""),
            probe_localhost: read.truth("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", false),
            probe_h2: read.truth("ISTIO_ENABLE_HTTP2_PROBING", true),
            identity_socket: read.text("WORKLOAD_IDENTITY_SOCKET_FILE", sds::SOCKET_NAME),
            prometheus: variables.get("ISTIO_PROMETHEUS_ANNOTATIONS").cloned(),
            merges_proxy_stats: read.truth("PILOT_AGENT_MERGE_ENVOY_STATS", true),
            dns_capture: read.truth("ISTIO_META_DNS_CAPTURE", false),
            dns_at_gateway: read.truth("ISTIO_META_ENABLE_DNS_SERVER", false),
            dns_address: read.text("DNS_PROXY_ADDR", "localhost:15053"),
            dns_parallel: read.truth("DNS_FORWARD_PARALLEL", false),
            dns_timeout: read.duration("DNS_FORWARD_TIMEOUT", Duration::from_secs(5)),
            strips_fragments: read.truth("HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED", true),
            labels: downward(LABELS, &mut read),
            annotations: downward(ANNOTATIONS, &mut read),
            variables: BTreeMap::new(),
        };
        if environment.identity_socket.contains('/') || [".", ".."].contains(&&*environment.identity_socket) {
            let name = &environment.identity_socket;
            read.faults.push(format!("WORKLOAD_IDENTITY_SOCKET_FILE={name}: it must be a name, not a path"));
        }
        if environment.provisioned.is_some() && environment.file_mounted {
            read.faults.push("PROV_CERT and FILE_MOUNTED_CERTS exclude each other".to_owned());
        }
        let faults = read.faults;
        if faults.is_empty() { Ok(Environment { variables, ..environment }) } else { Err(faults) }
    }

    /// An annotation of the Pod.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

struct Read<'e> {
    variables: &'e BTreeMap<String, String>,
    faults: Vec<String>,
}

impl<'e> Read<'e> {
    /// A value that says something.
    fn given(&self, name: &str) -> Option<&'e str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.given(name).unwrap_or(default).to_owned()
    }

    fn optional<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let text = self.given(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.faults.push(format!("{name}={text}: it is not understood"));
        }
        parsed
    }

    fn parsed<T: FromStr>(&mut self, name: &str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    /// As Go reads truth.
    fn truth(&mut self, name: &str, default: bool) -> bool {
        match self.given(name) {
            None => default,
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(other) => {
                self.faults.push(format!("{name}={other}: neither true nor false"));
                default
            }
        }
    }

    fn duration(&mut self, name: &str, default: Duration) -> Duration {
        let Some(text) = self.given(name) else { return default };
        parse_go(text).unwrap_or_else(|error| {
            self.faults.push(format!("{name}={text}: {error}"));
            default
        })
    }

    /// A part of a whole.
    fn ratio(&mut self, name: &str, default: f64) -> f64 {
        let ratio = self.parsed(name, default);
        if (0.0..=1.0).contains(&ratio) {
            return ratio;
        }
        self.faults.push(format!("{name}={ratio}: it must be from 0 to 1"));
        default
    }

    /// Headers, whose values are secrets as a rule: what is wrong with one is said without it.
    fn headers(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (variable, value) in self.variables {
            let Some(name) = variable.strip_prefix(prefix) else { continue };
            match header(name, value) {
                Ok(_) => drop(found.insert(name.to_owned(), value.clone())),
                Err(error) => self.faults.push(format!("{variable}: {error}")),
            }
        }
        found
    }

    /// Deviation: keys are ECDSA on P-256 unless an RSA size is given; pilot-agent's are RSA of 2048 bits.
    fn key(&mut self) -> KeyType {
        match (self.given("ECC_SIGNATURE_ALGORITHM"), self.given("WORKLOAD_RSA_KEY_SIZE")) {
            (Some("ECDSA"), _) => match self.given("ECC_CURVE") {
                None | Some("P256") => KeyType::P256,
                Some("P384") => KeyType::P384,
                Some(other) => {
                    self.faults.push(format!("ECC_CURVE={other}: it must be P256 or P384"));
                    KeyType::P256
                }
            },
            (Some(other), _) => {
                self.faults.push(format!("ECC_SIGNATURE_ALGORITHM={other}: it must be ECDSA"));
                KeyType::P256
            }
            (None, None) => KeyType::P256,
            (None, Some(bits)) => bits.parse().ok().and_then(KeyType::rsa).unwrap_or_else(|| {
                self.faults.push(format!("WORKLOAD_RSA_KEY_SIZE={bits}: it must be 2048, 3072 or 4096"));
                KeyType::P256
            }),
        }
    }
}

/// Reads a file of the downward API: lines of `name="value"`, the value quoted as Go does.
fn parse_downward(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, quoted)| {
            let value = unquote(quoted).ok_or_else(|| format!("{name}: {quoted} is no quoted text"))?;
            Ok((name.to_owned(), value))
        })
        .collect()
}

/// What Go's `strconv.Quote` has made.
fn unquote(quoted: &str) -> Option<String> {
    let inner = quoted.trim_end().strip_prefix('"')?.strip_suffix('"')?;
    String::from_utf8(leno_base::quote::unquote(inner)?).ok()
}

#[cfg(test)]
mod tests {
    use super::{Environment, parse_downward};

    #[test]
    fn files_of_the_downward_api() {
        let text = "app=\"web\"\nnote=\"a=\\\"b\\\"\\n\\u00e9\\x41\\\\\"\nnothing\n";
        let map = parse_downward(text).expect("it can be read");
        assert_eq!(map["app"], "web");
        assert_eq!(map["note"], "a=\"b\"\n\u{e9}A\\");
        assert_eq!(map.len(), 2);
        for bad in ["a=b", "a=\"b", "a=\"\\q\""] {
            assert!(parse_downward(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let variables = [
            ("SECRET_TTL", "soon"),
            ("ENVOY_STATUS_PORT", "99999"),
            ("CA_PROVIDER", "GoogleCA"),
            ("FILE_MOUNTED_CERTS", "perhaps"),
            ("ECC_SIGNATURE_ALGORITHM", "EDDSA"),
            ("SECRET_GRACE_PERIOD_RATIO", "NaN"),
            ("SECRET_GRACE_PERIOD_RATIO_JITTER", "-0.1"),
            ("ISTIO_BOOTSTRAP", "/etc/bootstrap.json"),
            ("CA_HEADER_a b", "secret"),
            ("XDS_HEADER_key", "secret\n"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let faults = Environment::read(variables, std::path::Path::new("/nowhere")).expect_err("faults");
        assert_eq!(faults.len(), 10, "{faults:?}");
        assert!(!faults.iter().any(|fault| fault.contains("secret")), "{faults:?}");
        assert!(faults.iter().any(|fault| fault.contains("XDS_HEADER_key")), "{faults:?}");
    }
}
