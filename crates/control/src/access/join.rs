//! Join tokens: how a machine comes into a mesh for which no Kubernetes vouches.
//!
//! Whoever runs the mesh makes a token for a service account and carries it to the machine, whose agent
//! shows it once, gets a certificate, and lives by that from then on. A folder holds one file for each
//! token that has not been used, named by the token's hash: who can read it learns no token. Using a token
//! is deleting its file, which only one can do, so that a token that was copied shows when it is used
//! twice. That is done by who has the certificate in his hands (`ca/service.rs`) and nowhere else: whatever
//! is wrong with a request, the token is good for the next one.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use http::HeaderMap;
use leno_base::base64;
use leno_base::clock::{Clock, System};
use leno_tls::issue::SpiffeId;
use serde::{Deserialize, Serialize};

use super::token::bearer;
use crate::model::duration::seconds;
use crate::model::identity::Account;

/// What tokens begin with.
const PREFIX: &str = "leno-join-";

/// Bytes of chance in a token.
const CHANCE: usize = 32;

/// The words for a token that has no file.
const UNKNOWN: &str = "the join token is not known, or was used already";

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

/// The tokens that have not been used.
#[derive(Clone, Debug)]
pub(crate) struct JoinTokens(PathBuf);

/// What a token is good for, which it is until [`Ticket::use_up`].
#[derive(Debug)]
pub(crate) struct Ticket {
    account: Account,
    path: PathBuf,
}

/// Whether a token is one of these by its form.
pub(super) fn is_one(token: &str) -> bool {
    token.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == (CHANCE * 4).div_ceil(3))
}

impl JoinTokens {
    /// Those in this folder, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(crate) fn open(folder: &Path) -> Result<JoinTokens, String> {
        let at = |error: io::Error| format!("--joinTokens: {}: {error}", folder.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
        fs::read_dir(folder).map_err(at)?;
        // Who cannot delete there can use up no token.
        let trial = folder.join(format!(".trial.{}", std::process::id()));
        fs::write(&trial, "").and_then(|()| fs::remove_file(&trial)).map_err(at)?;
        Ok(JoinTokens(folder.to_owned()))
    }

    /// What the token in these headers is good for; `None`: there is none of this kind.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<Result<Ticket, String>> {
        let token = bearer(headers).filter(|token| is_one(token))?;
        let path = file_of(&self.0, token);
        let grant = read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UNKNOWN.to_owned(),
            _ => format!("the join token cannot be looked up: {}: {error}", path.display()),
        });
        Some(grant.and_then(|grant| {
            if grant.expires <= now() {
                return Err("the join token has expired".to_owned());
            }
            Ok(Ticket { account: Account { namespace: grant.namespace, name: grant.service_account }, path })
        }))
    }
}

impl Ticket {
    /// Whose it is.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Uses it up.
    ///
    /// # Errors
    /// If another was faster, or the file cannot be deleted: it is good for nothing then.
    pub(crate) fn use_up(self) -> Result<(), String> {
        fs::remove_file(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UNKNOWN.to_owned(),
            _ => format!("the join token cannot be used up: {}: {error}", self.path.display()),
        })?;
        tracing::info!(account = %self.account, "a join token was used");
        Ok(())
    }
}

fn forget_expired(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && read(&path).is_ok_and(|grant| grant.expires <= now())
        {
            // Somebody may be doing the same.
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Grant> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn file_of(folder: &Path, token: &str) -> PathBuf {
    let hash = digest(&SHA256, token.as_bytes());
    let name: String = hash.as_ref().iter().map(|octet| format!("{octet:02x}")).collect();
    folder.join(format!("{name}.json"))
}

/// Seconds since the epoch.
fn now() -> u64 {
    seconds(System.wall()).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use http::HeaderMap;

    use super::{JoinTokens, Ticket, create_join_token, file_of};

    fn find(tokens: &JoinTokens, token: &str) -> Option<Result<Ticket, String>> {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().expect("a value"));
        tokens.find(&headers)
    }

    #[test]
    fn a_token_is_good_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("tokens");
        let tokens = JoinTokens::open(&folder).expect("it is made");
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
        // It is good until it is used up, which one of two can do.
        let [first, second] =
            [(), ()].map(|()| find(&tokens, &good).expect("it is one").expect("it is good"));
        assert_eq!(first.account().to_string(), "vms/legacy");
        assert_eq!(first.use_up(), Ok(()));
        assert!(second.use_up().is_err_and(|why| why.contains("used already")));
        for (token, words) in [
            (&good, "used already"),
            (&old, "expired"),
            (&format!("{}x", &other[..other.len() - 1]), "not known"),
        ] {
            let refused = find(&tokens, token).expect("it is one").map(|ticket| ticket.account().clone());
            assert!(refused.clone().is_err_and(|why| why.contains(words)), "{refused:?}");
        }
        for token in
            ["", "leno-join-", "leno-join-x", "a.b.c", "leno-join-../../../../../../../../../../etc/passwd/x"]
        {
            assert!(find(&tokens, token).is_none_or(|refused| refused.is_err()), "{token}");
        }
        // What has expired goes when the next is made.
        let _ = (create(0), create(60));
        assert_eq!(files().count(), 2, "the other and the last");
        for (namespace, account) in [("", "a"), ("a", ""), ("a/b", "c"), ("a", "b,c"), ("..", "a")] {
            assert!(create_join_token(&folder, namespace, account, Duration::ZERO).is_err());
        }
    }

    /// What cannot be read is not what was used.
    #[test]
    fn faults_of_files_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = JoinTokens::open(folder.path()).expect("it is there");
        let token = create_join_token(folder.path(), "vms", "legacy", Duration::from_secs(60));
        let token = token.expect("a token");
        let path = file_of(folder.path(), &token);
        fs::remove_file(&path).expect("it is there");
        fs::create_dir(&path).expect("writable");
        let found = find(&tokens, &token).expect("it is one").map(|ticket| ticket.account().clone());
        assert!(found.clone().is_err_and(|why| why.contains("cannot be looked up")), "{found:?}");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("writable");
        let refused = JoinTokens::open(&file).map(|_| ()).expect_err("it is no folder");
        assert!(refused.contains("--joinTokens"), "{refused}");
    }
}
