//! Certificates: of servers outside of the mesh, of gateways, of clients, and of the mesh's workloads.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// The numbers of the client `revoked` and of the servers behind the proxies, in certificates.
const REVOKED: u64 = 4711;
const SERVER: u64 = 4712;

/// Revocation lists of the world, each in the file `NAME.crl`, by the numbers of what is in them.
const REVOCATIONS: [(&str, &[u64]); 2] = [("clients", &[REVOKED]), ("servers", &[SERVER])];

/// Certificates of gateways, each in the files `NAME.pem` and `NAME.key`.
const SERVERS: [(&str, &[&str]); 4] = [
    ("a", &["a.example.com"]),
    ("b", &["b.example.com"]),
    ("wild", &["*.wild.example.com"]),
    ("other", &["other.example.com"]),
];

/// What the servers behind the proxies show.
const BACK_END: [&str; 5] = [
    "*.example.com",
    "*.example.org",
    "*.default.svc.cluster.local",
    "*.shop.svc.cluster.local",
    "spiffe://cluster.local/ns/default/sa/server",
];

/// All authorities, and what they have issued.
pub(crate) struct Keys {
    /// Of the world: `root.pem`.
    root: Authority,
    /// Of the mesh: `mesh.pem`.
    mesh: Authority,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) chain: String,
    pub(crate) key: String,
    certificate: CertificateDer<'static>,
    secret: PrivateKeyDer<'static>,
}

impl Keys {
    /// Makes everything, and writes what configuration names into a folder.
    pub(crate) fn make(folder: &Path) -> Result<Keys, Box<dyn std::error::Error>> {
        let keys = Keys { root: authority("root")?, mesh: authority("mesh")? };
        fs::write(folder.join("root.pem"), keys.root.pem())?;
        fs::write(folder.join("mesh.pem"), keys.mesh.pem())?;
        let client = identity(&keys.root, "client", &["client.example.com"])?;
        for (name, names) in SERVERS {
            identity(&keys.root, name, names)?.write(folder, name)?;
        }
        client.write(folder, "client")?;
        for (name, numbers) in REVOCATIONS {
            fs::write(folder.join(format!("{name}.crl")), revocations(&keys.root, numbers)?)?;
        }
        Ok(keys)
    }

    /// The authority of the mesh.
    pub(crate) fn mesh_root(&self) -> String {
        self.mesh.pem()
    }

    /// A certificate of a workload.
    pub(crate) fn workload(&self, name: &str) -> Result<Identity, rcgen::Error> {
        identity(&self.mesh, "", &[name])
    }

    /// What a client shows: `client`, `revoked` (the same, taken back), `stranger` (of an authority that
    /// nobody trusts) or the identity of a workload.
    pub(crate) fn client(&self, name: &str) -> Result<Identity, rcgen::Error> {
        match name {
            "client" => identity(&self.root, "client", &["client.example.com"]),
            "revoked" => numbered(&self.root, "client", &["client.example.com"], REVOKED),
            "stranger" => identity(&authority("nobody")?, "client", &["client.example.com"]),
            name => self.workload(name),
        }
    }

    /// TLS of the servers behind the proxies: a certificate with many names, and any client.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
        let identity = numbered(&self.root, "server", &BACK_END, SERVER)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone())?;
        roots.add(self.mesh.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients.build()?)
            .with_single_cert(vec![identity.certificate], identity.secret)?;
        config.alpn_protocols = ["h2", "http/1.1"].map(|name| name.as_bytes().to_vec()).to_vec();
        Ok(Arc::new(config))
    }
}

impl Identity {
    fn write(&self, folder: &Path, name: &str) -> std::io::Result<()> {
        fs::write(folder.join(format!("{name}.pem")), &self.chain)?;
        fs::write(folder.join(format!("{name}.key")), &self.key)
    }

    /// As rustls takes them.
    pub(crate) fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate], self.secret)
    }
}

fn authority(name: &str) -> Result<Authority, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn revocations(issuer: &Authority, numbers: &[u64]) -> Result<String, rcgen::Error> {
    let revoked = |number: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*number),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(4096, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: numbers.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer)?.pem()
}

fn identity(issuer: &Authority, common: &str, names: &[&str]) -> Result<Identity, rcgen::Error> {
    issued(issuer, common, names, None)
}

/// One whose number is known.
fn numbered(issuer: &Authority, common: &str, names: &[&str], number: u64) -> Result<Identity, rcgen::Error> {
    issued(issuer, common, names, Some(number))
}

fn issued(
    issuer: &Authority,
    common: &str,
    names: &[&str],
    number: Option<u64>,
) -> Result<Identity, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.serial_number = number.map(SerialNumber::from);
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !common.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common);
    }
    for &name in names {
        params.subject_alt_names.push(match name.contains("://") {
            true => SanType::URI(name.try_into()?),
            false => SanType::DnsName(name.try_into()?),
        });
    }
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Identity {
        chain: certificate.pem(),
        key: key.serialize_pem(),
        certificate: certificate.der().clone(),
        secret: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    })
}
