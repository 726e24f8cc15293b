//! Certificates in files: those that somebody else renews, and those that we write for others.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::control_plane::validity;
use crate::identity::Secret;

/// How often files are looked at: whoever mounts them replaces them in ways that no watch sees.
const LOOK: Duration = Duration::from_secs(1);

/// The names in a folder of certificates.
const NAMES: [&str; 3] = ["cert-chain.pem", "key.pem", "root-cert.pem"];

/// The files of a workload's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The certificate, and those of authorities between it and the root.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whom to trust.
    pub roots: PathBuf,
}

impl Mounted {
    /// Those in a folder, under the names that Istio gives them.
    pub fn in_folder(folder: &Path) -> Mounted {
        let [chain, key, roots] = NAMES.map(|name| folder.join(name));
        Mounted { chain, key, roots }
    }

    /// Whether all are there.
    pub fn exist(&self) -> bool {
        [&self.chain, &self.key, &self.roots].into_iter().all(|path| path.is_file())
    }

    fn read(&self) -> Result<Secret, String> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let (chain, key, roots) = (read(&self.chain)?, read(&self.key)?, read(&self.roots)?);
        let failed = |path: &Path, error: String| format!("{}: {error}", path.display());
        let (_, expires) = validity(chain.as_bytes()).map_err(|error| failed(&self.chain, error))?;
        fit(chain.as_bytes(), key.as_bytes()).map_err(|error| failed(&self.key, error))?;
        leno_tls::issue::certificates(roots.as_bytes()).map_err(|error| failed(&self.roots, error))?;
        Ok(Secret { chain, key, roots, expires })
    }
}

/// Whether a key is that of a certificate: between two writes it is another's.
pub(crate) fn fit(chain: &[u8], key: &[u8]) -> Result<(), String> {
    let all = leno_tls::issue::certificates(chain)?;
    let leaf = leno_tls::Certificate::parse(all.first().ok_or("there is no certificate")?)?;
    let key = leno_tls::issue::KeyPair::from_pem(key)?;
    if leaf.public_key() == key.public().spki() {
        Ok(())
    } else {
        Err("the key is not the certificate's".to_owned())
    }
}

/// How far a certificate is from its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Age {
    #[default]
    Good,
    /// In the last fifth of its life: who renews it should have done so.
    Late,
    Expired,
}

impl Age {
    /// Times are seconds since the epoch.
    fn of((from, to): (i64, i64), now: i64) -> Age {
        let left = to.saturating_sub(now);
        match left {
            ..0 => Age::Expired,
            _ if left < to.saturating_sub(from) / 5 => Age::Late,
            _ => Age::Good,
        }
    }

    /// Says so once.
    fn tell(self, told: &mut Age, path: &Path, expires: i64) {
        if self != *told {
            let path = path.display();
            match self {
                Age::Good => {}
                Age::Late => {
                    tracing::warn!(%path, expires, "the mounted certificate expires soon, and is not renewed");
                }
                Age::Expired => {
                    tracing::error!(%path, expires, "the mounted certificate has expired");
                }
            }
            *told = self;
        }
    }
}

/// Says what is in the files, until nobody wants to know. Files that are wrong change nothing. `now` tells the
/// time in seconds since the epoch.
pub async fn follow(files: Mounted, say: watch::Sender<Option<Secret>>, now: impl Fn() -> i64) {
    let mut told = None;
    let mut age = Age::default();
    loop {
        match files.read() {
            Ok(secret) => {
                told = None;
                if let Ok(validity) = validity(secret.chain.as_bytes()) {
                    Age::of(validity, now()).tell(&mut age, &files.chain, secret.expires);
                }
                let say = &say;
                say.send_if_modified(move |known| {
                    let is_new = known.as_ref() != Some(&secret);
                    *known = Some(secret);
                    is_new
                });
            }
            Err(error) => {
                if told.as_ref() != Some(&error) {
                    tracing::warn!(error, "the mounted certificate cannot be used");
                    told = Some(error);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = say.closed() => return,
        }
    }
}

/// Writes each certificate into a folder (`OUTPUT_CERTS`).
pub async fn write(folder: PathBuf, mut secrets: watch::Receiver<Option<Secret>>) {
    loop {
        let secret = secrets.borrow_and_update().clone();
        if let Some(secret) = secret
            && let Err(error) = write_one(&folder, &secret)
        {
            tracing::error!(folder = %folder.display(), %error, "the certificate cannot be written");
        }
        if secrets.changed().await.is_err() {
            return;
        }
    }
}

fn write_one(folder: &Path, secret: &Secret) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let texts = [(&secret.chain, 0o644), (&secret.key, 0o600), (&secret.roots, 0o644)];
    for (name, (text, mode)) in NAMES.into_iter().zip(texts) {
        // In one step: nobody reads half a file.
        let draft = folder.join(format!(".{name}.new"));
        let mut file =
            std::fs::File::options().create(true).write(true).truncate(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&draft, folder.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Age;

    #[test]
    fn certificates_grow_old() {
        for (now, expected) in
            [(0, Age::Good), (80, Age::Good), (81, Age::Late), (100, Age::Late), (101, Age::Expired)]
        {
            assert_eq!(Age::of((0, 100), now), expected, "{now}");
        }
    }
}
