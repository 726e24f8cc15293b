//! How the authority behaves: the environment variables that istiod has for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use leno_tls::issue::KeyType;

use crate::model::check::is_subdomain;
use crate::model::duration::Span;

/// How the authority behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSettings {
    /// The folder with `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and `cert-chain.pem` of an authority
    /// that somebody else makes (`ROOT_CA_DIR`).
    pub dir: PathBuf,
    /// Without such files and without a cluster, whether an authority of our own is kept in the folder;
    /// else it lives as long as the process.
    pub keeps: bool,
    /// Where the control plane serves TLS with a certificate of its own, if it is given none.
    pub address: Option<SocketAddr>,
    /// What that certificate is for, host names and addresses.
    pub hosts: Vec<String>,
    /// Whether only TLS 1.3 is spoken there; otherwise 1.2 too.
    pub only_1_3: bool,
    /// The suites of TLS 1.2 by their names in OpenSSL; empty for all.
    pub suites: Vec<String>,
    /// How long a root of our own is valid (`CITADEL_SELF_SIGNED_CA_CERT_TTL`).
    pub root_ttl: Duration,
    /// Its key: ECDSA on P-256, or RSA of `CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE` bits.
    // Deviation: istiod's root has an RSA key by default; ours is ECDSA unless that variable is set,
    // which signs at a thirtieth of the cost and is shorter in every handshake.
    pub root_key: KeyType,
    /// How often to look whether it must be followed by another
    /// (`CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL`); `None`: never.
    pub check_every: Option<Duration>,
    /// In which last part of its life, in hundredths
    /// (`CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE`).
    pub grace_percent: u8,
    /// Whether replicas look at different moments (`CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR`).
    pub jitter: bool,
    /// How long a certificate is valid for which nobody has said it (`DEFAULT_WORKLOAD_CERT_TTL`); never
    /// longer than `max_ttl`.
    pub default_ttl: Duration,
    /// How long it may be (`MAX_WORKLOAD_CERT_TTL`).
    pub max_ttl: Duration,
    /// Service accounts, as `NAMESPACE/NAME`, of proxies that may ask for the workloads of their node
    /// (`CA_TRUSTED_NODE_ACCOUNTS`).
    pub node_accounts: Vec<String>,
    /// Whether a root of our own is kept in the Secret `cacerts` (`USE_CACERTS_FOR_SELF_SIGNED_CA`), unless there
    /// is one in `istio-ca-secret` already.
    pub keeps_in_cacerts: bool,
    /// Who signs the certificates of workloads in our place (`EXTERNAL_CA`).
    pub external: Option<External>,
    /// Who signs the control plane's own certificate (`PILOT_CERT_PROVIDER`).
    pub provider: CertProvider,
}

/// Signers behind Kubernetes' API for certificates (`EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The signer of workloads that name none (`K8S_SIGNER`); empty: they get nothing.
    pub signer: String,
    /// In front of the names that workloads give (`CERT_SIGNER_DOMAIN`); empty: they may give none.
    pub domain: String,
    /// The file with the root of all signers, if it is there.
    pub roots: PathBuf,
    /// The file with the cluster's root, which counts if that is not there and there is no domain.
    pub cluster_roots: PathBuf,
    /// How long a signer may take.
    pub patience: Duration,
}

/// Who signs the control plane's own certificate, if it is not given one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CertProvider {
    /// The authority of the mesh.
    #[default]
    Istiod,
    /// A signer of Kubernetes (`k8s.io/NAME`), whose root is that of the mesh then.
    Signer(String),
    /// Nobody: it must be given one (`custom`).
    Custom,
    /// Nobody, and workloads are told no roots by ConfigMaps (`none`).
    None,
}

impl CertProvider {
    fn parse(text: &str) -> Result<CertProvider, String> {
        match text {
            "istiod" => Ok(CertProvider::Istiod),
            "custom" => Ok(CertProvider::Custom),
            "none" => Ok(CertProvider::None),
            // As istiod, which refuses to start.
            "kubernetes" => {
                Err("PILOT_CERT_PROVIDER=kubernetes: Kubernetes has no signer for it any more".to_owned())
            }
            _ => match text.strip_prefix("k8s.io/") {
                Some(signer) => signer_name("PILOT_CERT_PROVIDER", signer).map(CertProvider::Signer),
                // Deviation: istiod warns of a PILOT_CERT_PROVIDER that it does not know, and serves no TLS.
                None => Err(format!(
                    "PILOT_CERT_PROVIDER: {text:?} is none of istiod, custom, none and k8s.io/SIGNER"
                )),
            },
        }
    }
}

/// A signer by its full name, as `example.com/signer`.
fn signer_name(variable: &str, text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((domain, path)) if is_subdomain(domain) && is_subdomain(path) => Ok(text.to_owned()),
        _ => Err(format!("{variable}: {text:?} is not the name of a signer, DOMAIN/NAME")),
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl CaSettings {
    /// Whether signers sign everything, so that there is no authority of our own.
    pub(super) fn is_external_only(&self) -> bool {
        matches!(self.provider, CertProvider::Signer(_))
    }

    /// Reads the variables. `None`: there is to be no authority (`ENABLE_CA_SERVER`).
    ///
    /// # Errors
    /// Which variable cannot be used.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<CaSettings>, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let flag = |name: &str, default: bool| match set(name).as_deref() {
            None => Ok(default),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => Err(format!("{name}: {other:?} is neither true nor false")),
        };
        // A negative interval is none, as with istiod.
        let time = |name: &str, default: Duration| match set(name).as_deref() {
            None => Ok(default),
            Some(text) if text.starts_with('-') => Ok(Duration::ZERO),
            Some(text) => Span::parse(text)
                .map(|span| span.0)
                .ok_or_else(|| format!("{name}: {text:?} is no duration such as 24h or 1h30m")),
        };
        let provider =
            CertProvider::parse(&set("PILOT_CERT_PROVIDER").unwrap_or_else(|| "istiod".to_owned()))?;
        let external = match set("EXTERNAL_CA").as_deref() {
            None => None,
            Some("ISTIOD_RA_KUBERNETES_API") => Some(External::read(set)?),
            Some(other) => {
                return Err(format!("EXTERNAL_CA: {other:?} is not ISTIOD_RA_KUBERNETES_API"));
            }
        };
        if external.is_none() && matches!(provider, CertProvider::Signer(_)) {
            return Err(
                "PILOT_CERT_PROVIDER: a signer of Kubernetes needs EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API"
                    .to_owned(),
            );
        }
        if !flag("ENABLE_CA_SERVER", true)? {
            return Ok(None);
        }
        let root_key = match set("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE") {
            None => KeyType::P256,
            Some(text) => text.parse().ok().and_then(KeyType::rsa).ok_or_else(|| {
                format!("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE: {text:?} is none of 2048, 3072 and 4096")
            })?,
        };
        let percent = "CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE";
        let grace_percent = match set(percent) {
            None => 20,
            Some(text) => text
                .parse()
                .ok()
                .filter(|percent| (1..=99).contains(percent))
                .ok_or_else(|| format!("{percent}: {text:?} is no number from 1 to 99"))?,
        };
        let max_ttl = time("MAX_WORKLOAD_CERT_TTL", 90 * DAY)?;
        let default_ttl = time("DEFAULT_WORKLOAD_CERT_TTL", DAY.min(max_ttl))?;
        if default_ttl > max_ttl {
            // A root is taken away when what it has signed has expired by the longest life.
            return Err(format!(
                "DEFAULT_WORKLOAD_CERT_TTL: {default_ttl:?} is more than MAX_WORKLOAD_CERT_TTL, {max_ttl:?}"
            ));
        }
        let every = time("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", HOUR)?;
        let settings = CaSettings {
            dir: set("ROOT_CA_DIR").unwrap_or_else(|| "./etc/cacerts".to_owned()).into(),
            keeps: set("ROOT_CA_DIR").is_some(),
            address: None,
            hosts: Vec::new(),
            only_1_3: false,
            suites: Vec::new(),
            root_ttl: time("CITADEL_SELF_SIGNED_CA_CERT_TTL", 3650 * DAY)?,
            root_key,
            check_every: Some(every).filter(|every| !every.is_zero()),
            grace_percent,
            jitter: flag("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", true)?,
            default_ttl,
            max_ttl,
            node_accounts: set("CA_TRUSTED_NODE_ACCOUNTS")
                .map(|all| all.split(',').map(|one| one.trim().to_owned()).collect())
                .unwrap_or_default(),
            keeps_in_cacerts: flag("USE_CACERTS_FOR_SELF_SIGNED_CA", false)?,
            external,
            provider,
        };
        for (name, ttl) in [
            ("CITADEL_SELF_SIGNED_CA_CERT_TTL", settings.root_ttl),
            ("MAX_WORKLOAD_CERT_TTL", settings.max_ttl),
            ("DEFAULT_WORKLOAD_CERT_TTL", settings.default_ttl),
        ] {
            if ttl.as_secs() == 0 {
                return Err(format!("{name} must be a second at least"));
            }
        }
        if let Some(account) = settings.node_accounts.iter().find(|account| {
            !account.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains('/'))
        }) {
            return Err(format!("CA_TRUSTED_NODE_ACCOUNTS: {account:?} is not NAMESPACE/NAME"));
        }
        Ok(Some(settings))
    }
}

impl External {
    /// Istio's places and patience.
    fn read(set: impl Fn(&str) -> Option<String>) -> Result<External, String> {
        let (signer, domain) = (set("K8S_SIGNER"), set("CERT_SIGNER_DOMAIN"));
        if signer.is_none() && domain.is_none() {
            return Err("EXTERNAL_CA: which signer it is must be said, by K8S_SIGNER or CERT_SIGNER_DOMAIN"
                .to_owned());
        }
        if let Some(domain) = domain.as_ref().filter(|domain| !is_subdomain(domain)) {
            return Err(format!("CERT_SIGNER_DOMAIN: {domain:?} is no domain of signers"));
        }
        let signer = signer.map(|signer| signer_name("K8S_SIGNER", &signer)).transpose()?;
        Ok(External {
            signer: signer.unwrap_or_default(),
            domain: domain.unwrap_or_default(),
            roots: "./etc/external-ca-cert/root-cert.pem".into(),
            cluster_roots: "./var/run/secrets/kubernetes.io/serviceaccount/ca.crt".into(),
            patience: Duration::from_secs(60),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leno_tls::issue::KeyType;

    use super::{CaSettings, CertProvider};

    fn read(set: &[(&str, &str)]) -> Result<Option<CaSettings>, String> {
        CaSettings::read(|name| {
            set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables() {
        let plain = read(&[]).expect("fine").expect("an authority");
        assert_eq!(
            (plain.default_ttl, plain.max_ttl),
            (Duration::from_secs(86_400), 90 * Duration::from_secs(86_400))
        );
        assert_eq!((plain.keeps, plain.root_key, plain.grace_percent), (false, KeyType::P256, 20));
        assert_eq!(read(&[("ENABLE_CA_SERVER", "false")]), Ok(None));
        let set = read(&[
            ("ROOT_CA_DIR", "/ca"),
            ("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE", "4096"),
            ("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "-1s"),
            ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel, kube-system/ztunnel"),
        ]);
        let set = set.expect("fine").expect("an authority");
        assert_eq!((set.keeps, set.root_key, set.check_every), (true, KeyType::Rsa4096, None));
        assert_eq!(set.node_accounts, ["istio-system/ztunnel", "kube-system/ztunnel"]);
        let short = read(&[("MAX_WORKLOAD_CERT_TTL", "1h")]).expect("fine").expect("an authority");
        assert_eq!(
            (short.default_ttl, short.max_ttl),
            (Duration::from_secs(3600), Duration::from_secs(3600))
        );
        for (name, value) in [
            ("DEFAULT_WORKLOAD_CERT_TTL", "2161h"),
            ("ENABLE_CA_SERVER", "maybe"),
            ("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API"),
            ("EXTERNAL_CA", "ISTIOD_RA_ISTIO_API"),
            ("USE_CACERTS_FOR_SELF_SIGNED_CA", "maybe"),
            ("PILOT_CERT_PROVIDER", "kubernetes"),
            ("PILOT_CERT_PROVIDER", "Istiod"),
            ("PILOT_CERT_PROVIDER", "k8s.io/example.com"),
            ("PILOT_CERT_PROVIDER", "k8s.io/example.com/mesh"),
            ("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE", "1024"),
            ("CITADEL_SELF_SIGNED_CA_CERT_TTL", "1 year"),
            ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "100"),
            ("DEFAULT_WORKLOAD_CERT_TTL", "0s"),
            ("MAX_WORKLOAD_CERT_TTL", "-1h"),
            ("CA_TRUSTED_NODE_ACCOUNTS", "ztunnel"),
        ] {
            let found = read(&[(name, value)]);
            assert!(found.as_ref().is_err_and(|why| why.contains(name)), "{name}: {found:?}");
        }
    }

    #[test]
    fn signers() {
        let api = ("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API");
        let set = read(&[api, ("K8S_SIGNER", "example.com/mesh"), ("PILOT_CERT_PROVIDER", "k8s.io/a.b/c.d")]);
        let set = set.expect("fine").expect("an authority");
        assert_eq!(set.provider, CertProvider::Signer("a.b/c.d".to_owned()));
        let external = set.external.expect("there is one");
        assert_eq!((external.signer.as_str(), external.domain.as_str()), ("example.com/mesh", ""));
        assert!(!read(&[]).expect("fine").expect("an authority").keeps_in_cacerts);
        for (name, value, good) in [
            ("K8S_SIGNER", "example.com/mesh", true),
            ("K8S_SIGNER", "example.com", false),
            ("K8S_SIGNER", "example.com/a/b", false),
            ("K8S_SIGNER", "example.com/", false),
            ("CERT_SIGNER_DOMAIN", "clusterissuers.cert-manager.io", true),
            ("CERT_SIGNER_DOMAIN", "a/b", false),
            ("CERT_SIGNER_DOMAIN", "-a", false),
            ("CERT_SIGNER_DOMAIN", "a..b", false),
        ] {
            let found = read(&[api, (name, value)]);
            assert_eq!(found.is_ok(), good, "{name}={value}: {found:?}");
        }
    }
}
