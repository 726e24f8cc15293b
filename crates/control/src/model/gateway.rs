//! `Gateway`: the ports and hosts that a gateway proxy exposes.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use serde::Deserialize;

use super::Meta;
use super::check::{Check, is_dns_label};
use super::diagnostic::Finding;

/// The `spec` of a Gateway (Istio's, not the Gateway API's).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Gateway {
    /// List of listeners.
    pub(crate) servers: Vec<Server>,
    /// Labels of gateway pods (any ns unless scoped).
    pub(crate) selector: BTreeMap<String, String>,
}

/// One port with the hosts that it serves.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Server {
    /// Port to listen on.
    pub(crate) port: Option<Port>,
    /// IP or unix socket to bind.
    pub(crate) bind: String,
    /// [ns/]host exposed, wildcard prefix.
    pub(crate) hosts: Vec<String>,
    /// TLS settings.
    pub(crate) tls: Option<ServerTls>,
    /// Loopback or unix endpoint fallback.
    pub(crate) default_endpoint: String,
    /// Server name for stats.
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Port {
    /// Port number.
    pub(crate) number: u32,
    /// HTTP/HTTPS/GRPC/GRPC-WEB/HTTP2/MONGO/TCP/TLS.
    pub(crate) protocol: String,
    /// Label of the port.
    pub(crate) name: String,
    /// Deprecated.
    pub(crate) target_port: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServerTls {
    /// 301 to https.
    pub(crate) https_redirect: bool,
    /// PASSTHROUGH/SIMPLE/MUTUAL/AUTO_PASSTHROUGH/ISTIO_MUTUAL/OPTIONAL_MUTUAL.
    pub(crate) mode: Option<ServerTlsMode>,
    /// Cert path.
    pub(crate) server_certificate: String,
    /// Key path.
    pub(crate) private_key: String,
    /// Client CA path.
    pub(crate) ca_certificates: String,
    /// CRL path.
    pub(crate) ca_crl: String,
    /// Secret name (cert,key[,ca]).
    pub(crate) credential_name: String,
    /// Several secrets (RSA+ECDSA).
    pub(crate) credential_names: Vec<String>,
    /// Secret/configmap with CA only.
    pub(crate) ca_cert_credential_name: String,
    /// Several file certificates.
    pub(crate) tls_certificates: Vec<TlsCertificate>,
    /// Accepted client SANs.
    pub(crate) subject_alt_names: Vec<String>,
    /// Pinned SPKI hashes.
    pub(crate) verify_certificate_spki: Vec<String>,
    /// Pinned cert hashes.
    pub(crate) verify_certificate_hash: Vec<String>,
    /// TLS_AUTO..TLSV1_3; default 1.2.
    pub(crate) min_protocol_version: Option<TlsVersion>,
    /// TLS_AUTO..TLSV1_3.
    pub(crate) max_protocol_version: Option<TlsVersion>,
    /// Cipher list.
    pub(crate) cipher_suites: Vec<String>,
    /// Accept unverified client cert (Gateway API).
    pub(crate) insecure_skip_verify: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsCertificate {
    /// Cert path.
    pub(crate) server_certificate: String,
    /// Key path.
    pub(crate) private_key: String,
    /// CA path.
    pub(crate) ca_certificates: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ServerTlsMode {
    Passthrough,
    Simple,
    Mutual,
    AutoPassthrough,
    IstioMutual,
    OptionalMutual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum TlsVersion {
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_0")]
    V1_0,
    #[serde(rename = "TLSV1_1")]
    V1_1,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

/// How many certificates a server may have.
const MOST_CERTIFICATES: usize = 2;

/// What a server's `port.protocol` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerProtocol {
    /// HTTP, HTTP2, GRPC, GRPC-WEB in plain text.
    Http,
    /// TCP or a protocol treated as such.
    Tcp,
    /// HTTPS or TLS.
    Tls,
    /// No known protocol.
    Unknown,
}

impl Server {
    /// What its port asks for.
    pub(crate) fn protocol(&self) -> ServerProtocol {
        let protocol = self.port.as_ref().map_or("", |port| port.protocol.as_str());
        match protocol.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => ServerProtocol::Http,
            "TCP" | "MONGO" | "REDIS" | "MYSQL" => ServerProtocol::Tcp,
            "HTTPS" | "TLS" => ServerProtocol::Tls,
            _ => ServerProtocol::Unknown,
        }
    }

    /// Its hosts, each with the namespace that a `ns/` prefix restricts it to.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.hosts.iter().map(|host| match host.split_once('/') {
            Some(("*", host)) => (None, host),
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, host.as_str()),
        })
    }
}

impl Gateway {
    /// Everything that is wrong with it.
    pub(crate) fn validate(&self, meta: &Meta) -> Vec<Finding> {
        let mut check = Check::default();
        if !is_dns_label(&meta.name) {
            check.at("metadata", |check| {
                check.invalid_at("name", format!("{:?} must be letters, digits and -", meta.name));
            });
        }
        check.at("spec", |check| self.check(check));
        check.into_findings()
    }

    fn check(&self, check: &mut Check) {
        if self.servers.is_empty() {
            check.at("servers", |check| check.invalid("at least one server is needed"));
        }
        check.at("selector", |check| check.labels(&self.selector));
        let mut names = HashSet::new();
        check.each("servers", &self.servers, |check, server| {
            server_fields(check, server);
            let name = server.port.as_ref().map_or("", |port| port.name.as_str());
            if !name.is_empty() && !names.insert(name.to_owned()) {
                check.at("port", |check| {
                    check.at("name", |check| check.invalid(format!("there is another port {name:?}")));
                });
            }
        });
    }
}

fn server_fields(check: &mut Check, server: &Server) {
    check.at("port", |check| match &server.port {
        None => check.invalid("a port is needed"),
        Some(port) => {
            check.at("number", |check| check.port(port.number));
            if server.protocol() == ServerProtocol::Unknown {
                check.at("protocol", |check| {
                    check.invalid(format!(
                        "{:?} is none of HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP",
                        port.protocol
                    ));
                });
            }
            if port.name.is_empty() {
                check.at("name", |check| check.invalid("must not be empty"));
            }
            if port.target_port != 0 {
                check.invalid_at("targetPort", "has no effect in Gateways");
            }
        }
    });
    if server.hosts.is_empty() {
        check.at("hosts", |check| check.invalid("at least one host is needed"));
    }
    check.each("hosts", &server.hosts, |check, host| check.scoped_host(host, true));
    match server.bind.strip_prefix("unix://") {
        Some(_) => check.at("bind", |check| {
            check.error("unsupported-field", "sockets of the file system cannot be bound so far");
        }),
        None if !server.bind.is_empty() && server.bind.parse::<IpAddr>().is_err() => {
            check.invalid_at("bind", format!("{:?} is no address", server.bind));
        }
        None => {}
    }
    server_tls(check, server);
}

/// A server with TLS says how; one without can only redirect to one with.
fn server_tls(check: &mut Check, server: &Server) {
    let Some(tls) = &server.tls else {
        if server.protocol() == ServerProtocol::Tls {
            check.invalid_at("tls", "is needed for the protocols HTTPS and TLS");
        }
        return;
    };
    check.at("tls", |check| match server.protocol() {
        ServerProtocol::Tls => {
            tls.check(check);
            if tls.https_redirect {
                check.warn_at("httpsRedirect", "no-effect", "is for HTTP only");
            }
        }
        ServerProtocol::Http => {
            let only_redirect = matches!(tls.mode, None | Some(ServerTlsMode::Passthrough));
            if !only_redirect || tls.has_certificates() {
                check.invalid("a server without TLS can have httpsRedirect only");
            }
        }
        ServerProtocol::Tcp | ServerProtocol::Unknown => {
            check.invalid("is for the protocols HTTPS and TLS only");
        }
    });
}

fn is_https(protocol: &str) -> bool {
    protocol.eq_ignore_ascii_case("HTTPS")
}

impl ServerTls {
    /// The mode; `PASSTHROUGH` if none is given.
    pub(crate) fn mode(&self) -> ServerTlsMode {
        self.mode.unwrap_or(ServerTlsMode::Passthrough)
    }

    fn has_certificates(&self) -> bool {
        !self.server_certificate.is_empty()
            || !self.private_key.is_empty()
            || !self.ca_certificates.is_empty()
            || !self.credential_name.is_empty()
            || !self.credential_names.is_empty()
            || !self.tls_certificates.is_empty()
    }

    /// Checks the settings of a port that has TLS.
    pub(crate) fn check(&self, check: &mut Check) {
        let mode = self.mode();
        self.check_parameters(check);
        if mode == ServerTlsMode::IstioMutual {
            let own = [
                ("serverCertificate", !self.server_certificate.is_empty()),
                ("privateKey", !self.private_key.is_empty()),
                ("caCertificates", !self.ca_certificates.is_empty()),
                ("tlsCertificates", !self.tls_certificates.is_empty()),
                ("credentialName", !self.credential_name.is_empty()),
                ("credentialNames", !self.credential_names.is_empty()),
            ];
            for (field, _) in own.into_iter().filter(|(_, given)| *given) {
                check.invalid_at(field, "ISTIO_MUTUAL takes the mesh's own certificates");
            }
            return;
        }
        let passes = matches!(mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough);
        if passes && (self.has_certificates() || !self.ca_crl.is_empty()) {
            check.warn("no-effect", "TLS that passes through needs no certificates");
        }
        check.at_most_one(&[
            ("credentialName", !self.credential_name.is_empty()),
            ("credentialNames", !self.credential_names.is_empty()),
            ("serverCertificate", !self.server_certificate.is_empty() && !self.private_key.is_empty()),
            ("tlsCertificates", !self.tls_certificates.is_empty()),
        ]);
        if passes {
            return;
        }
        let several = self.credential_names.len().max(self.tls_certificates.len());
        if several > MOST_CERTIFICATES {
            check.invalid(format!(
                "{several} certificates are more than {MOST_CERTIFICATES}: one RSA and one ECDSA"
            ));
        }
        if !self.ca_crl.is_empty() && !self.credential_name.is_empty() {
            check.invalid_at("caCrl", "stands in the credential if there is a credentialName");
        }
        if !self.ca_crl.is_empty() && mode == ServerTlsMode::Simple {
            check.invalid_at("caCrl", "has no effect, as SIMPLE asks for no certificates of clients");
        }
        if self.credential_name.is_empty() && self.credential_names.is_empty() {
            self.check_files(check, mode);
        }
    }

    fn check_parameters(&self, check: &mut Check) {
        let old = matches!(self.min_protocol_version, Some(TlsVersion::V1_0 | TlsVersion::V1_1));
        if old && self.cipher_suites.is_empty() {
            check.warn_at("minProtocolVersion", "no-effect", "TLS below 1.2 needs cipherSuites that fit it");
        }
        let number = |version: Option<TlsVersion>| match version {
            None | Some(TlsVersion::Auto) => None,
            Some(TlsVersion::V1_0) => Some(0),
            Some(TlsVersion::V1_1) => Some(1),
            Some(TlsVersion::V1_2) => Some(2),
            Some(TlsVersion::V1_3) => Some(3),
        };
        if let (Some(least), Some(most)) =
            (number(self.min_protocol_version), number(self.max_protocol_version))
            && least > most
        {
            check.invalid_at("maxProtocolVersion", "is less than minProtocolVersion");
        }
        let mut seen = HashSet::new();
        check.each("cipherSuites", &self.cipher_suites, |check, suite| {
            let is_operator = suite.starts_with(|first: char| !first.is_alphanumeric());
            if !suite.is_empty() && suite != "ALL" && !is_operator && !CIPHER_SUITES.contains(&suite.as_str())
            {
                check.warn("no-effect", format!("{suite:?} is not known, has no effect"));
            } else if !seen.insert(suite.clone()) {
                check.warn("duplicate", format!("{suite:?} is there twice"));
            }
        });
    }

    /// Certificates in files of the gateway.
    fn check_files(&self, check: &mut Check, mode: ServerTlsMode) {
        if matches!(mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)
            && self.ca_certificates.is_empty()
        {
            check.invalid_at("caCertificates", "is needed to check certificates of clients");
        }
        let needed = |check: &mut Check, field: &str, value: &str| {
            if value.is_empty() {
                check.invalid_at(field, "is needed, or a credentialName");
            }
        };
        if self.tls_certificates.is_empty() {
            needed(check, "serverCertificate", &self.server_certificate);
            needed(check, "privateKey", &self.private_key);
        }
        check.each("tlsCertificates", &self.tls_certificates, |check, certificate| {
            needed(check, "serverCertificate", &certificate.server_certificate);
            needed(check, "privateKey", &certificate.private_key);
        });
    }

    /// Checks the settings of a port of a sidecar.
    pub(crate) fn check_inbound(&self, check: &mut Check, protocol: &str) {
        // Fields that only gateways have are in `support.rs`.
        if matches!(self.mode(), ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough) {
            check.invalid_at("mode", "is not possible in a Sidecar");
        }
        if !is_https(protocol) && !protocol.eq_ignore_ascii_case("TLS") {
            check.invalid("is for the protocols HTTPS and TLS only");
        }
        self.check(check);
    }
}

/// Names of cipher suites that proxies know; those of TLS 1.3 cannot be chosen.
const CIPHER_SUITES: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];
