//! Where configuration comes from. Nothing beyond this folder knows whether it was Kubernetes or
//! files: a source is something that sends [`Update`]s.
//!
//! - `files.rs`: folders of YAML, as a state that is brought up to date by scanning;
//! - `scan.rs`: the task that knows when to scan;
//! - `kube/`: a Kubernetes cluster, by lists and watches;
//! - `merge.rs`: several sources as one: which version of an object counts;
//! - `fold.rs`: merges changes, and holds those of configuration back for a moment.
//!
//! Sources have an order, and of an object in several the one in the last counts: of two folders
//! the later, and a cluster before all folders, since it is what everybody sees with `kubectl`.
//!
//! Other clusters (Secrets with the label `istio/multiCluster=true`) will be sources too, of which
//! only what is about workloads counts: Services, EndpointSlices, Pods, Nodes and Namespaces. These
//! do not hide one another, as configuration does, but stand side by side. So what will change is
//! `ObjectRef` of these kinds, which gets the name of its cluster; `merge.rs` compares names, and
//! needs no change; `kube::run` is started once for each cluster with a list of kinds, and ends,
//! with all its objects removed, when its Secret goes.

pub(crate) mod files;
pub(crate) mod fold;
pub(crate) mod kube;
pub(crate) mod located;
pub(crate) mod merge;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use leno_api::yaml::{self, Dialect, Node, Position};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::files::Files;
use self::kube::{Cluster, Wanted};
use self::merge::Input;
use crate::model::diagnostic::Diagnostic;
use crate::model::{Change, ObjectRef};

/// What a source has to say: changes that take effect together, and the state of what it could not
/// use.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) changes: Vec<Change>,
    /// Objects of the cluster that are gone since the last update: what now has their name, if anything,
    /// is another object, whose status nobody has written yet.
    pub(crate) gone: Vec<ObjectRef>,
    /// All faults found in reading, in place of those said before.
    pub(crate) diagnostics: Arc<Vec<Diagnostic>>,
    /// When the first of the changes came; none if that was just now.
    pub(crate) since: Option<Instant>,
}

/// Starts all sources; their updates come merged. `wanted` says which Secrets and ConfigMaps of the
/// cluster are to be read.
pub(crate) fn spawn(
    dirs: Vec<PathBuf>,
    cluster: Option<Cluster>,
    wanted: watch::Receiver<Wanted>,
    tasks: &mut JoinSet<()>,
) -> mpsc::Receiver<Update> {
    let mut inputs = Vec::new();
    if !dirs.is_empty() || cluster.is_none() {
        let (updates, told) = mpsc::channel(16);
        let (retell, asked) = mpsc::unbounded_channel();
        tasks.spawn(scan::run(Files::new(dirs), asked, updates));
        inputs.push(Input { updates: told, retell });
    }
    if let Some(cluster) = cluster {
        let (updates, told) = mpsc::channel(16);
        // The last source has nothing behind it that would hide its objects, so it is never asked.
        let (retell, _) = mpsc::unbounded_channel();
        tasks.spawn(kube::run(cluster, wanted, updates));
        inputs.push(Input { updates: told, retell });
    }
    if inputs.len() == 1
        && let Some(input) = inputs.pop()
    {
        return input.updates;
    }
    let (updates, told) = mpsc::channel(16);
    tasks.spawn(merge::run(inputs, updates));
    told
}

/// Where an object was read, so that a finding about it can be given a place. Keeps the text, and
/// looks the place up in it when asked: that is rare, and a tree of every object would be large.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The file, as people call it; empty for an object of a cluster, which has no other place than
    /// its name.
    pub(crate) file: Arc<str>,
    text: Arc<str>,
    /// Which document of the file.
    document: usize,
    /// Which item, if the document is a list of objects.
    item: Option<usize>,
    /// `metadata.generation` of an object of a cluster; `None` if it is not one.
    pub(crate) generation: Option<i64>,
}

impl Origin {
    /// An object of a cluster, which version of what is wanted of it this is, and its text as JSON,
    /// for people to look at; empty if nobody will.
    pub(crate) fn object(generation: i64, text: Arc<str>) -> Origin {
        Origin { generation: Some(generation), text, ..Origin::nowhere() }
    }

    /// The object as it was read, as far as its text was kept.
    pub(crate) fn to_json(&self) -> Option<serde_json::Value> {
        Places::default().json_of(self)
    }

    /// An object of a file: which of its documents, and which item if that is a list.
    pub(crate) fn file(name: &str, text: Arc<str>, document: usize, item: Option<usize>) -> Origin {
        Origin { file: Arc::from(name), text, document, item, generation: None }
    }

    /// No place at all.
    pub(crate) fn nowhere() -> Origin {
        static NOTHING: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));
        Origin {
            file: Arc::clone(&NOTHING),
            text: Arc::clone(&NOTHING),
            document: 0,
            item: None,
            generation: None,
        }
    }

    /// Whether it is the same text, read once, and the same place in it.
    fn is_same(&self, other: &Origin) -> bool {
        Arc::ptr_eq(&self.text, &other.text) && (self.document, self.item) == (other.document, other.item)
    }

    /// Where a field is, or the nearest field around it.
    pub(crate) fn locate(&self, path: &str) -> Position {
        Places::default().locate(self, path)
    }
}

/// Looks up several places or objects, and parses each text once.
#[derive(Debug, Default)]
pub(crate) struct Places<'o> {
    /// By the address of the text.
    parsed: HashMap<*const u8, Vec<Node<'o>>>,
}

impl<'o> Places<'o> {
    /// Where a field of an object is, or the nearest field around it.
    pub(crate) fn locate(&mut self, origin: &'o Origin, path: &str) -> Position {
        if origin.file.is_empty() {
            return Position::default();
        }
        match self.node(origin) {
            Some(node) => node.locate_nearest(path),
            None => Position::default(),
        }
    }

    /// An object as it was read, as far as its text was kept.
    pub(crate) fn json_of(&mut self, origin: &'o Origin) -> Option<serde_json::Value> {
        Some(self.node(origin)?.to_json())
    }

    fn node(&mut self, origin: &'o Origin) -> Option<&Node<'o>> {
        // The text was parsed before, so this does not fail.
        let parse = || yaml::parse(&origin.text, Dialect::Kubernetes).unwrap_or_default();
        let documents = self.parsed.entry(origin.text.as_ptr()).or_insert_with(parse);
        object_node(documents, origin.document, origin.item)
    }
}

/// An object among the documents of a file.
pub(crate) fn object_node<'n, 't>(
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
