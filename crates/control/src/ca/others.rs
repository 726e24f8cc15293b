//! Roots of other meshes, which are trusted beside a root of our own: `root-cert.pem` in the folder of the
//! authority.
//!
//! What is wrong with them must neither keep us from signing nor make workloads refuse the others: the last
//! good ones stay in use until there are other good ones, or the file has been away for a while (whoever
//! replaces a file may take it away first).

use std::path::PathBuf;
use std::time::Duration;

use leno_tls::TrustBundle;
use tokio::time::Instant;

use super::keeper::{Complaint, read};

/// How long the file must have been away before its roots are not trusted any more.
const AWAY: Duration = Duration::from_secs(60);

/// The roots of others.
pub(super) struct Others {
    path: PathBuf,
    /// The last good ones, in PEM; empty: none.
    good: Vec<u8>,
    away_since: Option<Instant>,
    complaint: Complaint,
}

impl Others {
    /// None yet; they are in this file, if there is one.
    pub(super) fn new(path: PathBuf) -> Others {
        let complaint = Complaint::new("the roots of others that were read before stay in use");
        Others { path, good: Vec::new(), away_since: None, complaint }
    }

    /// Reads the file. The last good roots, in PEM.
    pub(super) fn look(&mut self) -> &[u8] {
        match self.read() {
            Ok(Some(roots)) => {
                self.complaint.is_over();
                self.good = roots;
                self.away_since = None;
            }
            Ok(None) => {
                let since = *self.away_since.get_or_insert_with(Instant::now);
                if !self.good.is_empty() && since.elapsed() >= AWAY {
                    tracing::warn!(path = %self.path.display(), "the roots of others are gone");
                    self.good.clear();
                }
            }
            Err(error) => {
                self.away_since = None;
                self.complaint.tell(error);
            }
        }
        &self.good
    }

    fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(text) = read(&self.path)? else { return Ok(None) };
        if text.trim_ascii().is_empty() {
            return Ok(Some(Vec::new()));
        }
        TrustBundle::parse(&text).map_err(|error| format!("{}: {error}", self.path.display()))?;
        Ok(Some(text))
    }
}
