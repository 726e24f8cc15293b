//! `--mode validate`: everything that a start would read and lower, without a start.

use std::fmt;

use crate::config::file;
use crate::options::Options;

/// What a valid configuration has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The file, or the flag that stands for one.
    pub source: String,
    /// Static listeners.
    pub listeners: usize,
    /// Static clusters.
    pub clusters: usize,
    /// Whether more of them come by xDS.
    pub dynamic: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration '{}' OK", self.source)
    }
}

/// Reads and lowers the configuration that the command line names.
///
/// # Errors
/// All reasons to refuse it, each with file, line, column and path where they are known.
pub fn validate(options: &Options) -> Result<Summary, Vec<String>> {
    let bootstrap = file::load(options)?;
    let source = options.config_path.as_ref().map_or_else(String::new, |path| path.display().to_string());
    Ok(Summary {
        source,
        listeners: bootstrap.listeners.len(),
        clusters: bootstrap.clusters.len(),
        dynamic: bootstrap.cds.is_some() || bootstrap.lds.is_some(),
    })
}
