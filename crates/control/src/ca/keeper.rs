//! The task that keeps the authority: it reads or makes it, and sees to it that it goes on.
//!
//! Files that somebody else makes are followed: they are looked at every few seconds, and what is wrong
//! with new ones is said while the last good ones stay in use. An authority of our own is looked at as
//! istiod does it, once an hour; replicas notice then what another has written.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use leno_tls::issue::{Authority, Material, certificates};

use super::rotation::{Kept, Schedule};
use super::vault::Vault;
use super::{Ca, CaSettings, now};
use crate::source::kube::Cluster;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Waits after faults.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Reads the authority's files, if somebody else makes them; they must be good for the control plane to
/// start.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn plugged(settings: &CaSettings) -> Result<Option<Authority>, String> {
    let Some(material) = Files::find(&settings.dir)? else { return Ok(None) };
    let authority = Authority::load(&material, now());
    authority.map(Some).map_err(|error| format!("{}: {error}", settings.dir.display()))
}

/// The files of an authority, under one of the names that Istio knows.
struct Files;

impl Files {
    /// `None`: there are none.
    ///
    /// # Errors
    /// If there are some, and not all.
    fn find(folder: &Path) -> Result<Option<Material>, String> {
        // A Secret of the type kubernetes.io/tls, as cert-manager makes them.
        if let Some(certificate) = read(&folder.join("tls.crt"))? {
            let (first, chain) = first_of(&certificate)?;
            let roots = required(&folder.join("ca.crt"))?;
            let key = required(&folder.join("tls.key"))?;
            return Ok(Some(Material { certificate: first, key, chain, roots, revocations: Vec::new() }));
        }
        let [certificate, key, roots] =
            ["ca-cert.pem", "ca-key.pem", "root-cert.pem"].map(|name| folder.join(name));
        // Roots alone are others to trust beside our own.
        if read(&certificate)?.is_none() && read(&key)?.is_none() {
            return Ok(None);
        }
        Ok(Some(Material {
            certificate: required(&certificate)?,
            key: required(&key)?,
            chain: read(&folder.join("cert-chain.pem"))?.unwrap_or_default(),
            roots: required(&roots)?,
            revocations: read(&folder.join("ca-crl.pem"))?.unwrap_or_default(),
        }))
    }
}

/// The first certificate of a text, and all.
fn first_of(pem: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let all = certificates(pem)?;
    let first = leno_tls::issue::certificates_to_pem(all.first());
    Ok((first.into_bytes(), pem.to_vec()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn required(path: &Path) -> Result<Vec<u8>, String> {
    read(path)?.ok_or_else(|| format!("{} is missing, and others of its kind are there", path.display()))
}

/// Follows the files of an authority that somebody else makes. Runs for ever.
pub(crate) async fn follow(ca: Arc<Ca>) {
    let mut told = None;
    let mut known = Files::find(&ca.settings.dir).ok().flatten();
    loop {
        tokio::time::sleep(LOOK).await;
        let found = match Files::find(&ca.settings.dir) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(error) => {
                complain(&mut told, error);
                continue;
            }
        };
        if known.as_ref() == Some(&found) {
            continue;
        }
        let authority = Authority::load(&found, now());
        match authority.and_then(|authority| succeeds(&ca, &authority).map(|()| authority)) {
            Ok(authority) => {
                ca.install(authority);
                (known, told) = (Some(found), None);
            }
            Err(error) => complain(&mut told, error),
        }
    }
}

/// Whether an authority may take the place of the one that we have: one must trust all that the other
/// trusts, or workloads with new certificates and those with old ones would refuse each other.
fn succeeds(ca: &Ca, new: &Authority) -> Result<(), String> {
    let Some(old) = ca.authority() else { return Ok(()) };
    let within = |a: &Authority, b: &Authority| {
        a.roots().iter().all(|root| b.roots().iter().any(|other| other.der() == root.der()))
    };
    if within(&old, new) || within(new, &old) {
        return Ok(());
    }
    Err("the new roots neither hold all old ones nor are held by them: add the new root first, and take the \
         old one away when all workloads have asked for certificates again"
        .to_owned())
}

fn complain(told: &mut Option<String>, error: String) {
    if told.as_ref() != Some(&error) {
        tracing::error!(error, "the certificate authority that was read before stays in use");
        *told = Some(error);
    }
}

/// Keeps an authority of our own. Runs for ever. `organization` is the name of new roots.
pub(crate) async fn keep(ca: Arc<Ca>, cluster: Option<Cluster>, organization: String) {
    let settings = &ca.settings;
    let vault = match cluster {
        Some(cluster) => Vault::Secret(cluster),
        None if settings.keeps => Vault::Folder(settings.dir.clone()),
        None => {
            tracing::warn!(
                "the certificate authority lives as long as this process: set ROOT_CA_DIR to keep it"
            );
            Vault::Memory(Mutex::default())
        }
    };
    let schedule = Schedule {
        organization,
        key: settings.root_key,
        ttl: settings.root_ttl,
        grace_percent: settings.grace_percent,
        leaf: settings.max_ttl,
        check_every: settings.check_every,
    };
    let mut rng = Rng::from_entropy();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1, rng.fork());
    let mut used: Option<Material> = None;
    loop {
        match look(&vault, &schedule).await {
            Ok(Some(kept)) => {
                backoff.reset();
                let more = read(&settings.dir.join("root-cert.pem")).unwrap_or_else(|error| {
                    tracing::error!(error, "other roots cannot be read");
                    None
                });
                let material = kept.material(&more.unwrap_or_default());
                if used.as_ref() != Some(&material) {
                    match Authority::load(&material, now()) {
                        Ok(authority) => {
                            ca.install(authority);
                            used = Some(material);
                        }
                        Err(error) => tracing::error!(error, "what is kept is no certificate authority"),
                    }
                }
            }
            // Another has been first: what it has written is what counts.
            Ok(None) => {
                tokio::time::sleep(backoff.next_wait()).await;
                continue;
            }
            Err(error) => {
                tracing::error!(error, "the certificate authority cannot be kept");
                tokio::time::sleep(backoff.next_wait()).await;
                continue;
            }
        }
        let Some(every) = settings.check_every else { return std::future::pending().await };
        let every = if settings.jitter { every.mul_f64(0.8 + 0.4 * rng.fraction()) } else { every };
        tokio::time::sleep(every).await;
    }
}

/// What is kept now, made or rotated if need be; `None`: another has written meanwhile.
async fn look(vault: &Vault, schedule: &Schedule) -> Result<Option<Kept>, String> {
    let now = now();
    let found = vault.read().await?;
    let wanted = match &found {
        None => Some(Kept::new(schedule, now)?),
        Some(found) if schedule.check_every.is_some() => found.kept.rotated(schedule, now)?,
        Some(_) => None,
    };
    let Some(wanted) = wanted else { return Ok(found.map(|found| found.kept)) };
    Ok(vault.write(&wanted, found).await?.then_some(wanted))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use leno_tls::issue::{Authority, KeyType};

    use super::{Ca, CaSettings, Files, Kept, Material, Schedule, Vault, look, now, succeeds};

    fn schedule() -> Schedule {
        Schedule {
            organization: "cluster.local".to_owned(),
            key: KeyType::P256,
            ttl: Duration::from_secs(86_400),
            grace_percent: 20,
            leaf: Duration::from_secs(3600),
            check_every: Some(Duration::from_secs(60)),
        }
    }

    fn ca() -> Arc<Ca> {
        Ca::new(CaSettings::read(|_| None).expect("fine").expect("an authority"))
    }

    #[test]
    fn roots_must_overlap() {
        let [a, b] = [(), ()].map(|()| Kept::new(&schedule(), now()).expect("a root"));
        let load = |kept: &Kept, more: &str| {
            Authority::load(&kept.material(more.as_bytes()), now()).expect("an authority")
        };
        let ca = ca();
        assert!(succeeds(&ca, &load(&a, "")).is_ok(), "the first");
        for (old, new, good) in [
            (load(&a, ""), load(&a, &b.roots), true),
            (load(&a, ""), load(&b, &a.roots), true),
            (load(&b, &a.roots), load(&b, ""), true),
            (load(&a, ""), load(&b, ""), false),
        ] {
            ca.install(old);
            assert_eq!(succeeds(&ca, &new).is_ok(), good);
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_used_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let vault = Vault::Folder(folder.path().to_owned());
        let first = look(&vault, &schedule()).await.expect("writable").expect("nobody else is there");
        let again = look(&vault, &schedule()).await.expect("readable").expect("it is there");
        assert_eq!(first, again);
    }

    #[test]
    fn files_by_both_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("writable");
        let find = || Files::find(folder.path());
        assert_eq!(find(), Ok(None));
        write("root-cert.pem", "r");
        assert_eq!(find(), Ok(None), "only others to trust");
        write("ca-cert.pem", "c");
        assert!(find().is_err_and(|why| why.contains("ca-key.pem is missing")));
        write("ca-key.pem", "k");
        write("ca-crl.pem", "x");
        let expected = Material {
            certificate: b"c".to_vec(),
            key: b"k".to_vec(),
            roots: b"r".to_vec(),
            revocations: b"x".to_vec(),
            ..Material::default()
        };
        assert_eq!(find(), Ok(Some(expected)));
        let kept = Kept::new(&schedule(), now()).expect("a root");
        write("tls.crt", &kept.roots);
        assert!(find().is_err());
        write("tls.key", &kept.current.key);
        write("ca.crt", &kept.roots);
        let found = find().expect("all are there").expect("some are there");
        assert!(Authority::load(&found, now()).is_ok());
    }
}
