//! How the authority behaves: the environment variables that istiod has for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use leno_tls::issue::KeyType;

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
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl CaSettings {
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
        if !flag("ENABLE_CA_SERVER", true)? {
            return Ok(None);
        }
        if set("EXTERNAL_CA").is_some() {
            return Err("EXTERNAL_CA: other authorities are not supported yet".to_owned());
        }
        if flag("USE_CACERTS_FOR_SELF_SIGNED_CA", false)? {
            return Err("USE_CACERTS_FOR_SELF_SIGNED_CA is not supported yet".to_owned());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leno_tls::issue::KeyType;

    use super::CaSettings;

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
            ("USE_CACERTS_FOR_SELF_SIGNED_CA", "true"),
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
}
