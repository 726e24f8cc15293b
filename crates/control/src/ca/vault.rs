//! Where an authority of our own is kept.
//!
//! In a cluster it is istiod's Secret `istio-ca-secret` of the root namespace, so that one that istiod
//! has made goes on under us and the other way round; the `resourceVersion` decides between replicas
//! that write at once. With `USE_CACERTS_FOR_SELF_SIGNED_CA` it is the Secret `cacerts`, marked as made by a
//! control plane, unless the other is there already. On a machine it is a file that only its owner may read, and a lock decides. Both hold
//! the same names.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::rotation::{Kept, Root};
use crate::source::kube::Cluster;
use crate::source::kube::client::Fault;

/// The Secret.
const SECRET: &str = "istio-ca-secret";

/// The Secret with the name of those that people make.
const CACERTS: &str = "cacerts";

/// What is in that one if a control plane has made it: its key, or the file where it is mounted.
pub(super) const GENERATED: &str = "istio-generated";

/// What istiod's Secrets have too, empty for a root.
const CHAIN: &str = "cert-chain.pem";

/// The type of the Secret.
const TYPE: &str = "istio.io/ca-root";

/// The file with what is trusted, for whoever is to trust it.
const PUBLIC: &str = "roots.pem";

/// The file.
const FILE: &str = "self-signed-ca.json";

/// The file that who writes holds the lock of.
const LOCK: &str = ".self-signed-ca.lock";

/// Names of what is kept; the first three are istiod's.
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOTS: &str = "root-cert.pem";
const NEXT_CERTIFICATE: &str = "next-ca-cert.pem";
const NEXT_KEY: &str = "next-ca-key.pem";

/// A place for what is kept.
pub(super) enum Vault {
    /// It goes with the process.
    Memory(Mutex<Option<Kept>>),
    /// A folder.
    Folder(PathBuf),
    /// A cluster; whether it is to be in `cacerts`.
    Secret(Cluster, bool),
}

/// What was found, and what tells it from what others write in its place.
pub(super) struct Found {
    pub(super) kept: Kept,
    version: Version,
}

enum Version {
    None,
    /// The Secret, with all that is in it.
    Secret(Box<Secret>),
}

impl Vault {
    /// What is kept; `None`: nothing yet.
    ///
    /// # Errors
    /// If it cannot be read now, or is malformed.
    pub(super) async fn read(&self) -> Result<Option<Found>, String> {
        match self {
            Vault::Memory(kept) => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Ok(kept.map(|kept| Found { kept, version: Version::None }))
            }
            Vault::Folder(folder) => {
                let kept = read_file(&folder.join(FILE))?;
                Ok(kept.map(|kept| Found { kept, version: Version::None }))
            }
            Vault::Secret(cluster, in_cacerts) => read_secret(cluster, *in_cacerts).await,
        }
    }

    /// Keeps this in place of what was found. Whether it is kept: another may have been first, and then
    /// it is to be read again.
    ///
    /// # Errors
    /// If it cannot be written now.
    pub(super) async fn write(&self, kept: &Kept, before: Option<Found>) -> Result<bool, String> {
        match self {
            Vault::Memory(place) => {
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept.clone());
                Ok(true)
            }
            Vault::Folder(folder) => replace(folder, kept, before.as_ref().map(|found| &found.kept)),
            Vault::Secret(cluster, in_cacerts) => write_secret(cluster, *in_cacerts, kept, before).await,
        }
    }

    /// Sees to it that what goes with what is kept is there too.
    pub(super) fn mend(&self, kept: &Kept) {
        let Vault::Folder(folder) = self else { return };
        let path = folder.join(PUBLIC);
        if !fs::read_to_string(&path).is_ok_and(|text| text == kept.roots)
            && let Err(error) = lock(folder).and_then(|_lock| write_file(folder, PUBLIC, 0o644, &kept.roots))
        {
            tracing::error!(%error, path = %path.display(), "the roots cannot be written");
        }
    }
}

fn to_map(kept: &Kept) -> BTreeMap<String, String> {
    let mut map = BTreeMap::from([
        (CERTIFICATE.to_owned(), kept.current.certificate.clone()),
        (KEY.to_owned(), kept.current.key.clone()),
        (ROOTS.to_owned(), kept.roots.clone()),
    ]);
    if let Some(next) = &kept.next {
        map.insert(NEXT_CERTIFICATE.to_owned(), next.certificate.clone());
        map.insert(NEXT_KEY.to_owned(), next.key.clone());
    }
    map
}

fn from_map(mut map: BTreeMap<String, String>) -> Result<Kept, String> {
    let mut take = |name: &str| map.remove(name).filter(|text| !text.trim().is_empty());
    let missing = |name: &str| format!("it has no {name}");
    let current = Root {
        certificate: take(CERTIFICATE).ok_or_else(|| missing(CERTIFICATE))?,
        key: take(KEY).ok_or_else(|| missing(KEY))?,
    };
    let next = match (take(NEXT_CERTIFICATE), take(NEXT_KEY)) {
        (Some(certificate), Some(key)) => Some(Root { certificate, key }),
        _ => None,
    };
    let mut roots = take(ROOTS).unwrap_or_default();
    // Istiod, if it has written here, has put only the first name in place.
    for certificate in std::iter::once(&current).chain(&next).map(|root| &root.certificate) {
        if !roots.contains(certificate.trim()) {
            roots = format!("{}\n{certificate}", roots.trim_end());
        }
    }
    Ok(Kept { current, next, roots })
}

fn read_file(path: &Path) -> Result<Option<Kept>, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let map = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    from_map(map).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

/// Keeps this in place of what was there before, unless another has written meanwhile.
fn replace(folder: &Path, kept: &Kept, before: Option<&Kept>) -> Result<bool, String> {
    let words = |error: io::Error| format!("{}: {error}", folder.join(FILE).display());
    let _lock = lock(folder).map_err(words)?;
    if read_file(&folder.join(FILE))?.as_ref() != before {
        return Ok(false);
    }
    write_files(folder, kept).map(|()| true).map_err(words)
}

/// Lets nobody else write into the folder before this is dropped.
fn lock(folder: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(folder)?;
    let lock = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(LOCK))?;
    lock.lock()?;
    Ok(lock)
}

/// Writes the files.
fn write_files(folder: &Path, kept: &Kept) -> io::Result<()> {
    let text = serde_json::to_string_pretty(&to_map(kept)).map_err(io::Error::other)?;
    write_file(folder, FILE, 0o600, &text)?;
    write_file(folder, PUBLIC, 0o644, &kept.roots)
}

/// Writes a file so that at every moment there is a whole one.
fn write_file(folder: &Path, name: &str, mode: u32, text: &str) -> io::Result<()> {
    let draft = folder.join(format!(".{name}.{}", std::process::id()));
    // What an earlier process with our number has left behind may have been made readable.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(name))
}

fn path(cluster: &Cluster) -> String {
    format!("/api/v1/namespaces/{}/secrets", cluster.root_namespace())
}

async fn read_secret(cluster: &Cluster, in_cacerts: bool) -> Result<Option<Found>, String> {
    for name in std::iter::once(SECRET).chain(in_cacerts.then_some(CACERTS)) {
        let words = |error: &dyn std::fmt::Display| format!("Secret {name}: {error}");
        let text = match cluster.api().get(&format!("{}/{name}", path(cluster)), "application/json").await {
            Ok(text) => text,
            Err(fault) if fault.code() == 404 => continue,
            Err(fault) => return Err(words(&fault)),
        };
        let secret: Secret = serde_json::from_str(&text).map_err(|error| words(&error))?;
        // Deviation: istiod takes a `cacerts` that people have made for its own, and writes its next root over it.
        if name == CACERTS && !secret.data.iter().flatten().any(|(name, _)| name == GENERATED) {
            return Err(words(&"no control plane has made it; it must be mounted to be used"));
        }
        let map = secret.data.iter().flatten().filter_map(|(name, value)| {
            let text = String::from_utf8(value.0.clone()).ok()?;
            Some((name.clone(), text))
        });
        let kept = from_map(map.collect()).map_err(|error| words(&error))?;
        return Ok(Some(Found { kept, version: Version::Secret(Box::new(secret)) }));
    }
    Ok(None)
}

async fn write_secret(
    cluster: &Cluster,
    in_cacerts: bool,
    kept: &Kept,
    before: Option<Found>,
) -> Result<bool, String> {
    let found = before.and_then(|found| match found.version {
        Version::Secret(secret) => Some(*secret),
        Version::None => None,
    });
    let is_new = found.is_none();
    let mut secret = found.unwrap_or_else(|| {
        let name = if in_cacerts { CACERTS } else { SECRET };
        Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        }
    });
    let name = secret.metadata.name.clone().unwrap_or_default();
    let words = |error: &dyn std::fmt::Display| format!("Secret {name}: {error}");
    let (method, path) = match is_new {
        false => (Method::PUT, format!("{}/{name}", path(cluster))),
        true => (Method::POST, path(cluster)),
    };
    let data = secret.data.get_or_insert_default();
    if name == CACERTS {
        for empty in [GENERATED, CHAIN] {
            data.entry(empty.to_owned()).or_default();
        }
    }
    let map = to_map(kept);
    for name in [CERTIFICATE, KEY, ROOTS, NEXT_CERTIFICATE, NEXT_KEY] {
        match map.get(name) {
            Some(text) => drop(data.insert(name.to_owned(), ByteString(text.clone().into_bytes()))),
            None => drop(data.remove(name)),
        }
    }
    let body = serde_json::to_vec(&secret).map_err(|error| words(&error))?;
    match cluster.api().call(method, &path, "application/json", "application/json", body).await {
        Ok(_) => Ok(true),
        Err(Fault::Status { code: 409, .. }) => Ok(false),
        Err(fault) => Err(words(&fault)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;

    use super::{FILE, Kept, PUBLIC, Root, Vault, from_map, to_map};

    fn kept(name: &str) -> Kept {
        let root = |name: &str| Root { certificate: format!("{name}\n"), key: format!("key of {name}") };
        Kept { current: root(name), next: Some(root("next")), roots: format!("{name}\nnext\nold\n") }
    }

    #[test]
    fn what_istiod_has_written() {
        let map = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let istiod = map(&[
            ("ca-cert.pem", "a\n"),
            ("ca-key.pem", "k"),
            ("root-cert.pem", "before"),
            ("cert-chain.pem", ""),
            ("key.pem", ""),
        ]);
        let found = from_map(istiod).expect("enough");
        assert!(found.next.is_none());
        assert_eq!(found.roots, "before\na\n");
        assert!(from_map(map(&[("ca-cert.pem", "a")])).is_err());
        assert!(from_map(map(&[("ca-cert.pem", ""), ("ca-key.pem", "k")])).is_err());
        assert_eq!(from_map(to_map(&kept("a"))), Ok(kept("a")));
    }

    #[tokio::test]
    async fn a_file_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let vault = Vault::Folder(folder.path().join("ca"));
        assert!(vault.read().await.expect("readable").is_none());
        for name in ["a", "b"] {
            let before = vault.read().await.expect("readable");
            assert_eq!(vault.write(&kept(name), before).await, Ok(true));
            assert_eq!(vault.read().await.expect("readable").map(|found| found.kept), Some(kept(name)));
        }
        let file = folder.path().join("ca").join(FILE);
        let mode = std::fs::metadata(&file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path().join("ca")).expect("a folder").count(), 3);
        let roots = std::fs::read_to_string(folder.path().join("ca").join(PUBLIC));
        assert_eq!(roots.expect("readable"), kept("b").roots);
        std::fs::write(&file, "{").expect("writable");
        assert!(vault.read().await.is_err());
    }

    /// Of two that begin at once, and of two that go on at once, the first counts.
    #[tokio::test]
    async fn two_writers_agree() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, other] = [(), ()].map(|()| Vault::Folder(folder.path().to_owned()));
        let mut last = None;
        for names in [["a", "b"], ["c", "d"]] {
            let [seen, seen_too] = [one.read().await, other.read().await].map(|it| it.expect("readable"));
            assert_eq!(seen.as_ref().map(|found| &found.kept), last.as_ref());
            let [first, second] = names.map(kept);
            assert_eq!(one.write(&first, seen).await, Ok(true));
            assert_eq!(other.write(&second, seen_too).await, Ok(false));
            assert_eq!(other.read().await.expect("readable").map(|it| it.kept), Some(first.clone()));
            last = Some(first);
        }
    }
}
