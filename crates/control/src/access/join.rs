//! Join tokens: how a machine comes into a mesh for which no Kubernetes vouches.
//!
//! Whoever runs the mesh makes a token for a service account and carries it to the machine, whose agent
//! shows it once, gets a certificate, and lives by that from then on. A folder holds one file for each
//! token that has not been used, named by the token's hash: who can read it learns no token. Using a token
//! is deleting its file, which only one can do, so that a token that was copied shows when it is used
//! twice.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use leno_base::base64;
use leno_base::clock::{Clock, System};
use leno_tls::issue::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::model::identity::Account;

/// What tokens begin with.
const PREFIX: &str = "leno-join-";

/// Bytes of chance in a token.
const CHANCE: usize = 32;

/// What a token is good for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Grant {
    namespace: String,
    service_account: String,
    /// Until when, seconds since the epoch.
    expires: u64,
}

/// Makes a token for a service account, which can be used once within this time, and forgets those that
/// have expired.
///
/// # Errors
/// If one of the names is none, or the folder cannot be written.
pub fn create_join_token(
    folder: &Path,
    namespace: &str,
    account: &str,
    ttl: Duration,
) -> Result<String, String> {
    SpiffeId::of_account("mesh", namespace, account).map_err(str::to_owned)?;
    let at = |error: io::Error| format!("{}: {error}", folder.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
    forget_expired(folder).map_err(at)?;
    let mut chance = [0; CHANCE];
    SystemRandom::new().fill(&mut chance).map_err(|_| "there is no randomness")?;
    let token = format!("{PREFIX}{}", base64::encode_url(&chance));
    let grant = Grant {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        expires: now().saturating_add(ttl.as_secs()),
    };
    let text = serde_json::to_vec(&grant).map_err(|error| error.to_string())?;
    let path = file_of(folder, &token);
    let draft = path.with_extension("draft");
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(at)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(at)?;
    fs::rename(&draft, &path).map_err(at)?;
    Ok(token)
}

/// Whose a token is, which is used up by that; `None`: it is another kind of token.
pub(super) fn redeem(folder: &Path, token: &str) -> Option<Result<Account, String>> {
    let is_one = token.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == (CHANCE * 4).div_ceil(3));
    is_one.then(|| {
        let path = file_of(folder, token);
        let unknown = || "the join token is not known, or was used already".to_owned();
        let grant = read(&path).ok_or_else(unknown)?;
        match fs::remove_file(&path) {
            Ok(()) => {}
            // Another was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(format!("the join token cannot be used up: {error}")),
        }
        if grant.expires <= now() {
            return Err("the join token has expired".to_owned());
        }
        tracing::info!(namespace = grant.namespace, account = grant.service_account, "a join token was used");
        Ok(Account { namespace: grant.namespace, name: grant.service_account })
    })
}

fn forget_expired(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && read(&path).is_some_and(|grant| grant.expires <= now())
        {
            // Somebody may be doing the same.
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Option<Grant> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn file_of(folder: &Path, token: &str) -> PathBuf {
    let hash = digest(&SHA256, token.as_bytes());
    let name: String = hash.as_ref().iter().map(|octet| format!("{octet:02x}")).collect();
    folder.join(format!("{name}.json"))
}

fn now() -> u64 {
    System.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::{create_join_token, redeem};

    #[test]
    fn a_token_is_good_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("tokens");
        let create =
            |ttl| create_join_token(&folder, "vms", "legacy", Duration::from_secs(ttl)).expect("a token");
        let (good, other, old) = (create(60), create(60), create(0));
        assert_ne!(good, other);
        let files = || fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        for path in files() {
            assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
            let text = fs::read_to_string(&path).expect("readable") + &path.display().to_string();
            assert!(![&good, &other, &old].into_iter().any(|token| text.contains(&token[10..])));
        }
        let used = redeem(&folder, &good).expect("it is one").expect("it is good");
        assert_eq!(used.to_string(), "vms/legacy");
        for (token, words) in [
            (&good, "used already"),
            (&old, "expired"),
            (&format!("{}x", &other[..other.len() - 1]), "not known"),
        ] {
            let refused = redeem(&folder, token).expect("it is one");
            assert!(refused.clone().is_err_and(|why| why.contains(words)), "{refused:?}");
        }
        for token in
            ["", "leno-join-", "leno-join-x", "a.b.c", "leno-join-../../../../../../../../../../etc/passwd/x"]
        {
            assert!(redeem(&folder, token).is_none_or(|refused| refused.is_err()), "{token}");
        }
        // What has expired goes when the next is made.
        let _ = (create(0), create(60));
        assert_eq!(files().count(), 2, "the other and the last");
        for (namespace, account) in [("", "a"), ("a", ""), ("a/b", "c"), ("a", "b,c"), ("..", "a")] {
            assert!(create_join_token(&folder, namespace, account, Duration::ZERO).is_err());
        }
    }
}
