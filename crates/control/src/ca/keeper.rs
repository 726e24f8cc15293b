//! The task that keeps the authority: it reads or makes it, and sees to it that it goes on.
//!
//! Files that somebody else makes are followed: they are looked at every few seconds, and what is wrong
//! with new ones is said while the last good ones stay in use. An authority of our own is looked at as
//! istiod does it, once an hour; replicas notice then what another has written. The roots of others that
//! are to be trusted beside it (`others.rs`) are files again.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use leno_tls::issue::{Authority, Material, certificates, certificates_to_pem};
use tokio::time::Instant;

use super::expiry::{Ends, Warnings};
use super::others::Others;
use super::rotation::{Kept, Schedule};
use super::vault::{GENERATED, Vault};
use super::{Ca, CaSettings, now};
use crate::source::kube::Cluster;

/// How often files are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);

/// Waits after faults.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Reads the authority's files, if somebody else makes them; they must be good for the control plane to
/// start. Also gives what was read, for [`follow`].
///
/// # Errors
/// What is wrong with them.
pub(crate) fn plugged(settings: &CaSettings) -> Result<Option<(Authority, Material)>, String> {
    if settings.is_external_only() {
        return Ok(None);
    }
    let Some(material) = find(settings)? else { return Ok(None) };
    match Authority::load(&material, now()) {
        Ok(authority) => Ok(Some((authority, material))),
        Err(error) => Err(format!("{}: {error}", settings.dir.display())),
    }
}

/// The files of an authority that somebody else makes; `None`: there are none.
///
/// # Errors
/// If there are some, and not all.
fn find(settings: &CaSettings) -> Result<Option<Material>, String> {
    if is_generated(settings) { Ok(None) } else { find_in(&settings.dir) }
}

/// Whether the folder is a Secret of our own, mounted (`USE_CACERTS_FOR_SELF_SIGNED_CA`).
fn is_generated(settings: &CaSettings) -> bool {
    settings.keeps_in_cacerts && settings.dir.join(GENERATED).exists()
}

/// The files in a folder, under one of the names that Istio knows.
fn find_in(folder: &Path) -> Result<Option<Material>, String> {
    let place = |name: &str| folder.join(name);
    let (certificate, key) = (place("ca-cert.pem"), place("ca-key.pem"));
    let revocations = read(&place("ca-crl.pem"))?.unwrap_or_default();
    let is_pem = read(&certificate)?.is_some() || read(&key)?.is_some();
    // A Secret of the type kubernetes.io/tls, as cert-manager makes them.
    if let Some(all) = read(&place("tls.crt"))? {
        if is_pem {
            return Err(format!(
                "{}: tls.crt and ca-cert.pem are both there: which is the authority?",
                folder.display()
            ));
        }
        let certificate =
            first_of(&all).map_err(|error| format!("{}: {error}", place("tls.crt").display()))?;
        let (key, roots) = (required(&place("tls.key"))?, required(&place("ca.crt"))?);
        return Ok(Some(Material { certificate, key, chain: all, roots, revocations }));
    }
    // Roots alone are others to trust beside our own.
    if !is_pem {
        return Ok(None);
    }
    Ok(Some(Material {
        certificate: required(&certificate)?,
        key: required(&key)?,
        chain: read(&place("cert-chain.pem"))?.unwrap_or_default(),
        roots: required(&place("root-cert.pem"))?,
        revocations,
    }))
}

/// The first certificate of a text.
fn first_of(pem: &[u8]) -> Result<Vec<u8>, String> {
    Ok(certificates_to_pem(certificates(pem)?.first()).into_bytes())
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn required(path: &Path) -> Result<Vec<u8>, String> {
    read(path)?.ok_or_else(|| format!("{} is missing, and others of its kind are there", path.display()))
}

/// A fault that stays, which is told once.
pub(super) struct Complaint {
    /// What follows from it.
    words: &'static str,
    told: Option<String>,
}

impl Complaint {
    /// Nothing is wrong yet.
    pub(super) fn new(words: &'static str) -> Complaint {
        Complaint { words, told: None }
    }

    /// Something is wrong.
    pub(super) fn tell(&mut self, error: String) {
        if self.told.as_ref() != Some(&error) {
            tracing::error!(error, "{}", self.words);
            self.told = Some(error);
        }
    }

    /// Nothing is wrong any more.
    pub(super) fn is_over(&mut self) {
        if let Some(error) = self.told.take() {
            tracing::info!(error, "no longer: {}", self.words);
        }
    }
}

/// Follows the files of an authority that somebody else makes. Runs for ever. `known` is what the one in
/// use was made of.
pub(crate) async fn follow(ca: Arc<Ca>, mut known: Material) {
    let mut complaint = Complaint::new("the certificate authority that was read before stays in use");
    let mut warnings = Warnings::default();
    loop {
        warnings.look(&Ends::of(&ca), now());
        tokio::time::sleep(LOOK).await;
        match news(&ca, &known) {
            Ok(None) => complaint.is_over(),
            Ok(Some((found, authority))) => {
                complaint.is_over();
                ca.install(authority);
                known = found;
            }
            Err(error) => complaint.tell(error),
        }
    }
}

/// What the files hold now, if that is something else.
fn news(ca: &Ca, known: &Material) -> Result<Option<(Material, Authority)>, String> {
    let folder = &ca.settings.dir;
    let found = find(&ca.settings)?.ok_or_else(|| format!("{}: the files are gone", folder.display()))?;
    if found == *known {
        return Ok(None);
    }
    let authority = Authority::load(&found, now())?;
    succeeds(ca, &authority)?;
    Ok(Some((found, authority)))
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

/// Keeps an authority of our own. Runs for ever. `organization` is the name of new roots.
pub(crate) async fn keep(ca: Arc<Ca>, cluster: Option<Cluster>, organization: String) {
    let settings = &ca.settings;
    let vault = match cluster {
        Some(cluster) => Vault::Secret(cluster, settings.keeps_in_cacerts),
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
    keep_in(&ca, &vault, &schedule).await;
}

/// Keeps an authority of our own in a vault. Runs for ever.
async fn keep_in(ca: &Ca, vault: &Vault, schedule: &Schedule) {
    let mut rng = Rng::from_entropy();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1, rng.fork());
    let mut others = Others::new(ca.settings.dir.join("root-cert.pem"));
    let mut warnings = Warnings::default();
    let mut unused = Complaint::new("a certificate authority was put beside our own, and is not used");
    // What is kept, and what was made of it and the others' roots.
    let (mut kept, mut used): (Option<Kept>, Option<Material>) = (None, None);
    // When to look at what is kept; never again: `None`.
    let mut look_at = Some(Instant::now());
    loop {
        if look_at.is_some_and(|at| at <= Instant::now()) {
            let found = look(vault, schedule).await;
            look_at = match found {
                Ok(Some(found)) => match Authority::load(&found.material(b""), now()) {
                    Ok(_) => {
                        backoff.reset();
                        kept = Some(found);
                        let jitter =
                            |rng: &mut Rng| if ca.settings.jitter { 0.8 + 0.4 * rng.fraction() } else { 1.0 };
                        schedule.check_every.map(|every| Instant::now() + every.mul_f64(jitter(&mut rng)))
                    }
                    Err(error) => {
                        tracing::error!(error, "what is kept is no certificate authority");
                        Some(Instant::now() + backoff.next_wait())
                    }
                },
                // Another has been first: what it has written is what counts.
                Ok(None) => Some(Instant::now() + backoff.next_wait()),
                Err(error) => {
                    tracing::error!(error, "the certificate authority cannot be kept");
                    Some(Instant::now() + backoff.next_wait())
                }
            };
        }
        if let Some(kept) = &kept {
            // What is mounted of our own is none of others.
            let others = if is_generated(&ca.settings) { b"" } else { others.look() };
            let material = kept.material(others);
            if used.as_ref() != Some(&material) {
                // Both are good by themselves.
                match Authority::load(&material, now()) {
                    Ok(authority) => ca.install(authority),
                    Err(error) => tracing::error!(error, "the roots of others do not go with our own"),
                }
                used = Some(material);
            }
        }
        match find(&ca.settings) {
            Ok(None) => unused.is_over(),
            Ok(Some(_)) => unused.tell("it takes over when the control plane is started again".to_owned()),
            Err(error) => unused.tell(error),
        }
        // Nobody follows it by another.
        if schedule.check_every.is_none() {
            warnings.look(&Ends::of(ca), now());
        }
        let next = Instant::now() + LOOK;
        tokio::time::sleep_until(look_at.map_or(next, |at| at.min(next))).await;
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
    if let Some(wanted) = wanted {
        return Ok(vault.write(&wanted, found).await?.then_some(wanted));
    }
    let kept = found.map(|found| found.kept);
    kept.iter().for_each(|kept| vault.mend(kept));
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use leno_tls::issue::{Authority, KeyType};

    use super::{
        Ca, CaSettings, Kept, Material, Schedule, Vault, find_in, follow, keep_in, look, now, plugged,
        succeeds,
    };
    use crate::ca::State;

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

    fn kept() -> Kept {
        Kept::new(&schedule(), now()).expect("a root")
    }

    /// One whose files are in a folder.
    fn ca(folder: &std::path::Path) -> Arc<Ca> {
        let folder = folder.to_str().expect("text").to_owned();
        let settings = CaSettings::read(|name| (name == "ROOT_CA_DIR").then(|| folder.clone()));
        Ca::new(settings.expect("fine").expect("an authority"), None).expect("it is ours")
    }

    /// How many roots it trusts when it is another one than before.
    async fn next(changes: &mut tokio::sync::watch::Receiver<State>) -> usize {
        changes.changed().await.expect("it is there");
        changes.borrow_and_update().authority.as_ref().map_or(0, |authority| authority.roots().len())
    }

    #[test]
    fn roots_must_overlap() {
        let [a, b] = [kept(), kept()];
        let load = |kept: &Kept, more: &str| {
            Authority::load(&kept.material(more.as_bytes()), now()).expect("an authority")
        };
        let ca = ca(std::path::Path::new("none"));
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
        // What a crash has left out is made up for.
        let public = folder.path().join("roots.pem");
        fs::remove_file(&public).expect("it is there");
        let again = look(&vault, &schedule()).await.expect("readable").expect("it is there");
        assert_eq!(first, again);
        assert_eq!(fs::read_to_string(public).expect("readable"), first.roots);
    }

    /// Files that change between the start and the first look are noticed, as are those that go.
    #[tokio::test(start_paused = true)]
    async fn no_change_of_files_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let [a, b] = [kept(), kept()];
        let plug = |kept: &Kept, roots: &str| {
            for (name, text) in [
                ("ca-cert.pem", &*kept.current.certificate),
                ("ca-key.pem", &kept.current.key),
                ("root-cert.pem", roots),
            ] {
                fs::write(folder.path().join(name), text).expect("writable");
            }
        };
        plug(&a, &a.roots);
        let ca = ca(folder.path());
        let (authority, known) = plugged(&ca.settings).expect("good files").expect("an authority");
        ca.install(authority);
        plug(&b, &format!("{}{}", a.roots, b.roots));
        let mut changes = ca.state.subscribe();
        let following = tokio::spawn(follow(Arc::clone(&ca), known));
        assert_eq!(next(&mut changes).await, 2);
        fs::remove_file(folder.path().join("ca-cert.pem")).expect("it is there");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!changes.has_changed().expect("it is there"));
        plug(&b, &b.roots);
        assert_eq!(next(&mut changes).await, 1);
        following.abort();
    }

    /// Others' roots come and go beside our own, which does not depend on them.
    #[tokio::test(start_paused = true)]
    async fn bad_roots_of_others_take_nothing_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("root-cert.pem");
        let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        fs::write(&file, broken).expect("writable");
        let ca = ca(folder.path());
        let mut changes = ca.state.subscribe();
        let (keeping, schedule) = (Arc::clone(&ca), Schedule { check_every: None, ..schedule() });
        let keeping =
            tokio::spawn(
                async move { keep_in(&keeping, &Vault::Memory(Default::default()), &schedule).await },
            );
        assert_eq!(next(&mut changes).await, 1, "ours is good");
        let other = kept().roots;
        fs::write(&file, &other).expect("writable");
        assert_eq!(next(&mut changes).await, 2);
        let signing = ca.authority().expect("it is there").certificate().serial().to_owned();
        // Broken, unreadable, or away for a moment: the last good ones stay.
        for spoil in [
            &|| fs::write(&file, broken).expect("writable") as (),
            &|| {
                fs::remove_file(&file).expect("it is there");
                fs::create_dir(&file).expect("a folder");
            },
            &|| fs::remove_dir(&file).expect("it is there"),
        ] as [&dyn Fn(); 3]
        {
            spoil();
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!changes.has_changed().expect("it is there"));
        }
        // Gone for good.
        assert_eq!(next(&mut changes).await, 1);
        assert_eq!(ca.authority().expect("it is there").certificate().serial(), signing);
        keeping.abort();
    }

    #[test]
    fn files_by_both_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("writable");
        let remove = |name: &str| fs::remove_file(folder.path().join(name)).expect("it is there");
        let find = || find_in(folder.path());
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
        let kept = kept();
        write("tls.crt", &kept.roots);
        assert!(find().is_err_and(|why| why.contains("both there")));
        remove("ca-cert.pem");
        assert!(find().is_err_and(|why| why.contains("both there")));
        remove("ca-key.pem");
        assert!(find().is_err_and(|why| why.contains("tls.key is missing")));
        write("tls.key", &kept.current.key);
        write("ca.crt", &kept.roots);
        let found = find().expect("all are there").expect("some are there");
        assert_eq!(found.revocations, b"x");
        remove("ca-crl.pem");
        let found = find().expect("all are there").expect("some are there");
        assert!(Authority::load(&found, now()).is_ok());
    }
}
