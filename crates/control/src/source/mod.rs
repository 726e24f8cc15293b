//! Where configuration comes from. Nothing beyond this folder knows whether it was Kubernetes or
//! files: a source is something that sends [`Update`]s.
//!
//! - `files.rs`: folders of YAML, as a state that is brought up to date by scanning;
//! - `watch.rs`: the task that knows when to scan;
//! - `fold.rs`: merges changes, and holds those of configuration back for a moment.

pub(crate) mod files;
pub(crate) mod fold;
#[cfg(test)]
mod tests;
pub(crate) mod watch;

use std::collections::HashMap;
use std::sync::Arc;

use leno_api::yaml::{self, Dialect, Node, Position};

use crate::model::Change;
use crate::model::diagnostic::Diagnostic;

/// What a source has to say: changes that take effect together, and the state of what it could not
/// use.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) changes: Vec<Change>,
    /// All faults found in reading, in place of those said before.
    pub(crate) diagnostics: Arc<Vec<Diagnostic>>,
}

/// Where an object was read, so that a finding about it can be given a place. Keeps the text, and
/// looks the place up in it when asked: that is rare, and a tree of every object would be large.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The file, as people call it.
    pub(crate) file: Arc<str>,
    text: Arc<str>,
    /// Which document of the file.
    document: usize,
    /// Which item, if the document is a list of objects.
    item: Option<usize>,
}

impl Origin {
    /// No place at all, for tests.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Origin {
        Origin { file: Arc::from(""), text: Arc::from(""), document: 0, item: None }
    }

    /// Where a field is, or the nearest field around it.
    pub(crate) fn locate(&self, path: &str) -> Position {
        Places::default().locate(self, path)
    }
}

/// Looks up several places, and parses each text once.
#[derive(Debug, Default)]
pub(crate) struct Places<'o> {
    /// By the address of the text.
    parsed: HashMap<*const u8, Vec<Node<'o>>>,
}

impl<'o> Places<'o> {
    /// Where a field of an object is, or the nearest field around it.
    pub(crate) fn locate(&mut self, origin: &'o Origin, path: &str) -> Position {
        // The text was parsed before, so this does not fail.
        let parse = || yaml::parse(&origin.text, Dialect::Kubernetes).unwrap_or_default();
        let documents = self.parsed.entry(origin.text.as_ptr()).or_insert_with(parse);
        match object_node(documents, origin.document, origin.item) {
            Some(node) => node.locate_nearest(path),
            None => Position::default(),
        }
    }
}

/// An object among the documents of a file.
fn object_node<'n, 't>(
    documents: &'n [Node<'t>],
    document: usize,
    item: Option<usize>,
) -> Option<&'n Node<'t>> {
    let node = documents.get(document)?;
    let Some(item) = item else { return Some(node) };
    match &node.find("items")?.value {
        yaml::Value::Sequence(items) => items.get(item),
        _ => None,
    }
}
