//! `Gateway`: the ports and hosts that a gateway proxy exposes.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::check::{Check, is_dns_label};
use super::diagnostic::Finding;

/// The `spec` of a Gateway (Istio's, not the Gateway API's).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Gateway {
    /// List of listeners.
    pub(crate) servers: Vec<Server>,
    /// Labels of gateway pods (any ns unless scoped).
    pub(crate) selector: BTreeMap<String, String>,
}

/// One port with the hosts that it serves.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
    pub(crate) fn validate(&self) -> Vec<Finding> {
        let mut check = Check::spec();
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
        check.into_findings()
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
        }
    });
    if server.hosts.is_empty() {
        check.at("hosts", |check| check.invalid("at least one host is needed"));
    }
    check.each("hosts", &server.hosts, |check, host| {
        let (namespace, host) =
            host.split_once('/').map_or((None, host.as_str()), |(ns, host)| (Some(ns), host));
        check.host(host);
        if namespace.is_some_and(|ns| !matches!(ns, "*" | ".") && !is_dns_label(ns)) {
            check.invalid("the part before / must be a namespace, '.' or '*'");
        }
    });
    if !server.bind.is_empty() && server.bind.parse::<std::net::IpAddr>().is_err() {
        check.at("bind", |check| check.error("unsupported-field", "only addresses can be bound so far"));
    }
    if server.protocol() == ServerProtocol::Tls {
        check.at("tls", |check| match &server.tls {
            None => check.invalid("a server of HTTPS or TLS needs it"),
            Some(tls) => tls_settings(check, tls),
        });
    } else if let Some(tls) = &server.tls {
        let rest = ServerTls { https_redirect: tls.https_redirect, ..ServerTls::default() };
        if *tls != rest {
            check.at("tls", |check| check.invalid("a server without TLS can have httpsRedirect only"));
        }
    }
}

/// The certificates that a mode needs, and what else must agree.
fn tls_settings(check: &mut Check, tls: &ServerTls) {
    let named = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    let files = !tls.server_certificate.is_empty() || !tls.private_key.is_empty();
    if !tls.credential_name.is_empty() && !tls.credential_names.is_empty() {
        check.at("credentialNames", |check| {
            check.invalid("only one of credentialName and credentialNames may be given");
        });
    }
    if named && (files || !tls.tls_certificates.is_empty()) {
        check.at("credentialName", |check| check.invalid("only one of credentials and files may be given"));
    }
    check.each("tlsCertificates", &tls.tls_certificates, |check, certificate| {
        if certificate.server_certificate.is_empty() || certificate.private_key.is_empty() {
            check.invalid("serverCertificate and privateKey are needed");
        }
    });
    let several = tls.credential_names.len().max(tls.tls_certificates.len());
    if several > MOST_CERTIFICATES {
        check.invalid(format!(
            "{several} certificates are more than {MOST_CERTIFICATES}: one RSA and one ECDSA"
        ));
    }
    let mode = tls.mode.unwrap_or(ServerTlsMode::Passthrough);
    let certificates = named || !tls.tls_certificates.is_empty();
    match mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {}
        ServerTlsMode::IstioMutual => {
            if certificates || files || !tls.ca_certificates.is_empty() {
                check.at("mode", |check| check.invalid("ISTIO_MUTUAL has the certificates of the workload"));
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            if !certificates && (tls.server_certificate.is_empty() || tls.private_key.is_empty()) {
                check.invalid("credentialName, or serverCertificate and privateKey, are needed");
            }
            if mode != ServerTlsMode::Simple && !named && tls.ca_certificates.is_empty() {
                check.at("caCertificates", |check| check.invalid("are needed to verify clients"));
            }
        }
    }
    let number = |version: Option<TlsVersion>| match version {
        None | Some(TlsVersion::Auto) => None,
        Some(TlsVersion::V1_0) => Some(0),
        Some(TlsVersion::V1_1) => Some(1),
        Some(TlsVersion::V1_2) => Some(2),
        Some(TlsVersion::V1_3) => Some(3),
    };
    if let (Some(least), Some(most)) = (number(tls.min_protocol_version), number(tls.max_protocol_version))
        && least > most
    {
        check.at("maxProtocolVersion", |check| check.invalid("is less than minProtocolVersion"));
    }
}
