//! Folders of YAML and JSON as a source: what `kubectl apply -f FOLDER` would apply.
//!
//! [`Files`] is brought up to date by [`Files::scan`] and says what changed. It is forgiving, as
//! files are edited by hand while they are in use:
//!
//! - a file that cannot be parsed, and an object that is not valid, keep their last good version;
//! - a file that is gone or empty is believed to be so only after a moment, as editors save by
//!   truncating and writing, or by renaming twice;
//! - of an object that occurs twice, the one in the later folder counts (the second folder holds
//!   what was found out at run time), and within a folder the first, with a diagnostic.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use leno_api::yaml::{self, Dialect, Node, Value};

use super::{Origin, object_node};
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::model::read::{self, Read};
use crate::model::{Change, Object, ObjectRef};

/// How long a file must be gone or empty to be believed.
const GRACE: Duration = Duration::from_millis(100);

/// The folders, and what was read from them.
#[derive(Debug)]
pub(crate) struct Files {
    roots: Vec<PathBuf>,
    /// By place in `roots` and path.
    files: BTreeMap<(usize, PathBuf), File>,
    /// The files that have each object, in their order, one as often as it has it.
    holders: HashMap<ObjectRef, Vec<(usize, PathBuf)>>,
    /// Which file's version of each object is in effect.
    winners: HashMap<ObjectRef, (usize, PathBuf)>,
    /// Objects of files that were read or have gone, and these files, since changes were last told.
    touched: BTreeSet<ObjectRef>,
    read: Vec<(usize, PathBuf)>,
    /// Folders and files that cannot be read.
    unreadable: BTreeMap<PathBuf, Diagnostic>,
    /// What is said of objects that are declared more than once.
    duplicates: BTreeMap<ObjectRef, Vec<Diagnostic>>,
    diagnostics: Arc<Vec<Diagnostic>>,
}

/// One file.
#[derive(Debug, Default)]
struct File {
    text: Arc<str>,
    signature: Option<Signature>,
    /// Its good objects, in the order of the file.
    objects: Vec<Slot>,
    diagnostics: Vec<Diagnostic>,
    /// Since when it looks gone or empty.
    doubtful: Option<Instant>,
    /// Whether its objects must be told again.
    fresh: bool,
}

/// A good object of a file, perhaps from an earlier version of it.
#[derive(Clone, Debug)]
struct Slot {
    reference: ObjectRef,
    origin: Origin,
    /// The object, until it is told.
    object: Option<Box<Object>>,
}

/// What tells that a file has changed without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    modified: Option<SystemTime>,
    length: u64,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Read every file.
    Inside,
    /// Read those that look changed.
    Outside,
}

impl Files {
    /// A source for folders (or single files), of which nothing was read yet.
    pub(crate) fn new(roots: Vec<PathBuf>) -> Files {
        Files {
            roots,
            files: BTreeMap::new(),
            holders: HashMap::new(),
            winners: HashMap::new(),
            touched: BTreeSet::new(),
            read: Vec::new(),
            unreadable: BTreeMap::new(),
            duplicates: BTreeMap::new(),
            diagnostics: Arc::default(),
        }
    }

    /// The folders.
    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// What was found wrong by the last scan.
    pub(crate) fn diagnostics(&self) -> Arc<Vec<Diagnostic>> {
        Arc::clone(&self.diagnostics)
    }

    /// Whether a file looks gone or empty and must be looked at again soon.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.files.values().any(|file| file.doubtful.is_some())
    }

    /// The version of an object that is in effect here, told again.
    pub(crate) fn retell(&mut self, reference: &ObjectRef) -> Option<Change> {
        let file = self.files.get_mut(self.winners.get(reference)?)?;
        let slot = file.objects.iter_mut().find(|slot| slot.reference == *reference)?;
        let object = slot.take()?;
        Some(Change::Set(slot.reference.clone(), object, slot.origin.clone()))
    }

    /// Looks at the folders and returns what has changed since the last time.
    pub(crate) fn scan(&mut self, look: Look, now: Instant) -> Vec<Change> {
        self.unreadable.clear();
        let mut present = Vec::new();
        for (root, folder) in self.roots.clone().iter().enumerate() {
            match list(folder) {
                Ok(paths) => present.extend(paths.into_iter().map(|path| (root, path))),
                Err(error) => drop(self.unreadable.insert(folder.clone(), io_fault(folder, &error))),
            }
        }
        for key in &present {
            if let Err(error) = self.visit(key, look, now) {
                self.unreadable.insert(key.1.clone(), io_fault(&key.1, &error));
            }
        }
        let is_gone = |key: &(usize, PathBuf), file: &mut File| {
            if present.binary_search(key).is_ok() {
                return false;
            }
            let since = *file.doubtful.get_or_insert(now);
            now.saturating_duration_since(since) >= GRACE
        };
        let gone: Vec<((usize, PathBuf), File)> = self.files.extract_if(.., is_gone).collect();
        for (key, file) in gone {
            self.let_go(&key, &file.objects);
        }
        self.tell()
    }

    /// Looks at some files only, and returns what has changed in them: costs what they are, however
    /// many others there are. Whatever is no file of ours, or has gone, makes it look at all.
    pub(crate) fn scan_some(&mut self, paths: &BTreeSet<PathBuf>, now: Instant) -> Vec<Change> {
        for path in paths {
            let found = fs::symlink_metadata(path);
            if !is_config(path) && found.as_ref().map_or(true, fs::Metadata::is_file) {
                // The draft of an editor, say, perhaps gone by now.
                continue;
            }
            let owners: Vec<usize> = (self.roots.iter().enumerate())
                .filter(|(_, root)| path.parent() == Some(root.as_path()) || path == *root)
                .map(|(root, _)| root)
                .collect();
            let is_plain = is_config(path) && found.is_ok_and(|found| found.is_file());
            let [root] = owners[..] else { return self.scan(Look::Inside, now) };
            if !is_plain || self.visit(&(root, path.clone()), Look::Inside, now).is_err() {
                return self.scan(Look::Inside, now);
            }
            self.unreadable.remove(path);
        }
        self.tell()
    }

    /// Reads one file if need be.
    fn visit(&mut self, key: &(usize, PathBuf), look: Look, now: Instant) -> std::io::Result<()> {
        let metadata = fs::metadata(&key.1)?;
        let signature = Signature { modified: metadata.modified().ok(), length: metadata.len() };
        let file = self.files.entry(key.clone()).or_default();
        if look == Look::Outside && file.doubtful.is_none() && file.signature.as_ref() == Some(&signature) {
            return Ok(());
        }
        let bytes = fs::read(&key.1)?;
        file.signature = Some(signature);
        let text = String::from_utf8_lossy(&bytes);
        if text.trim().is_empty() && !file.objects.is_empty() {
            let since = *file.doubtful.get_or_insert(now);
            if now.duration_since(since) < GRACE {
                return Ok(());
            }
        }
        file.doubtful = None;
        if *file.text != *text || file.signature.is_none() {
            let before: Vec<ObjectRef> = file.objects.iter().map(|slot| slot.reference.clone()).collect();
            file.read(&display(&key.1), &text);
            let after: Vec<ObjectRef> = file.objects.iter().map(|slot| slot.reference.clone()).collect();
            self.read.push(key.clone());
            self.hold(key, before, after);
        }
        Ok(())
    }

    /// Notes which objects a file has in place of others.
    fn hold(&mut self, key: &(usize, PathBuf), before: Vec<ObjectRef>, after: Vec<ObjectRef>) {
        for reference in before {
            if let Some(holders) = self.holders.get_mut(&reference) {
                if let Some(at) = holders.iter().position(|holder| holder == key) {
                    holders.remove(at);
                }
                if holders.is_empty() {
                    self.holders.remove(&reference);
                }
            }
            self.touched.insert(reference);
        }
        for reference in after {
            let holders = self.holders.entry(reference.clone()).or_default();
            let at = holders.partition_point(|holder| holder < key);
            holders.insert(at, key.clone());
            self.touched.insert(reference);
        }
    }

    fn let_go(&mut self, key: &(usize, PathBuf), objects: &[Slot]) {
        self.hold(key, objects.iter().map(|slot| slot.reference.clone()).collect(), Vec::new());
    }

    /// Decides which version of each object is in effect, as far as that may have changed, and
    /// returns what changes by it.
    fn tell(&mut self) -> Vec<Change> {
        let mut told: BTreeMap<(usize, PathBuf), HashSet<ObjectRef>> = BTreeMap::new();
        let mut changes: Vec<Change> = Vec::new();
        for reference in std::mem::take(&mut self.touched) {
            self.note_duplicates(&reference);
            // The first file of the last folder.
            let winner = self.holders.get(&reference).and_then(|holders| {
                let (root, _) = holders.last()?;
                holders.iter().find(|holder| holder.0 == *root).cloned()
            });
            let Some(winner) = winner else {
                if self.winners.remove(&reference).is_some() {
                    changes.push(Change::Remove(reference));
                }
                continue;
            };
            let fresh = self.files.get(&winner).is_some_and(|file| file.fresh);
            let moved = self.winners.get(&reference) != Some(&winner);
            if fresh || moved {
                told.entry(winner.clone()).or_default().insert(reference.clone());
            }
            self.winners.insert(reference, winner);
        }
        for (key, mut wanted) in told {
            let Some(file) = self.files.get_mut(&key) else { continue };
            for slot in &mut file.objects {
                // Of an object that occurs twice in the file, the first counts.
                if wanted.remove(&slot.reference)
                    && let Some(object) = slot.take()
                {
                    changes.push(Change::Set(slot.reference.clone(), object, slot.origin.clone()));
                }
            }
        }
        changes.sort_by(|a, b| a.object().cmp(b.object()));
        for key in std::mem::take(&mut self.read) {
            if let Some(file) = self.files.get_mut(&key) {
                file.fresh = false;
            }
        }
        self.gather_diagnostics();
        changes
    }

    /// Says of which versions of an object another takes the place in the same folder.
    fn note_duplicates(&mut self, reference: &ObjectRef) {
        self.duplicates.remove(reference);
        let Some(holders) = self.holders.get(reference).filter(|holders| holders.len() > 1) else { return };
        let mut keys = holders.clone();
        keys.dedup();
        let mut first: Option<(usize, &Slot)> = None;
        let mut found = Vec::new();
        for key in &keys {
            let objects = self.files.get(key).map(|file| file.objects.as_slice()).unwrap_or_default();
            for slot in objects.iter().filter(|slot| slot.reference == *reference) {
                match first {
                    Some((root, first)) if root == key.0 => found.push(duplicate(slot, first)),
                    // The files come in the order of their folders, so this is of a later one.
                    _ => first = Some((key.0, slot)),
                }
            }
        }
        if !found.is_empty() {
            self.duplicates.insert(reference.clone(), found);
        }
    }

    fn gather_diagnostics(&mut self) {
        let mut faults: Vec<Diagnostic> = self.unreadable.values().cloned().collect();
        faults.extend(self.duplicates.values().flatten().cloned());
        faults.extend(self.files.values().flat_map(|file| file.diagnostics.iter().cloned()));
        faults
            .sort_by(|a, b| (&a.file, a.line, a.column, &a.path).cmp(&(&b.file, b.line, b.column, &b.path)));
        if *self.diagnostics != faults {
            self.diagnostics = Arc::new(faults);
        }
    }
}

impl File {
    /// Reads a new text; what is not good in it keeps its last good version.
    fn read(&mut self, name: &str, text: &str) {
        let text: Arc<str> = Arc::from(text);
        self.text = Arc::clone(&text);
        self.fresh = true;
        self.diagnostics.clear();
        let documents = match yaml::parse(&text, Dialect::Kubernetes) {
            Ok(documents) => documents,
            Err(error) => {
                let kept = if self.objects.is_empty() { "" } else { "; the last good version stays in use" };
                self.diagnostics.push(Diagnostic {
                    line: error.line,
                    column: error.column,
                    path: error.path.clone(),
                    ..fault(name, "parse-error", format!("{}{kept}", error.message))
                });
                // Nothing has changed after all.
                self.fresh = false;
                return;
            }
        };
        let name: Arc<str> = Arc::from(name);
        let mut objects = Vec::new();
        for (document, item) in places(&documents) {
            let Some(node) = object_node(&documents, document, item) else { continue };
            let origin =
                Origin { file: Arc::clone(&name), text: Arc::clone(&text), document, item, generation: None };
            self.read_object(node, origin, &mut objects);
        }
        self.objects = objects;
    }

    fn read_object(&mut self, node: &Node<'_>, origin: Origin, objects: &mut Vec<Slot>) {
        match read::read(node) {
            Read::Object { reference, object, findings } => {
                self.report(node, &origin, &reference, &findings);
                objects.push(Slot { reference, origin, object: Some(object) });
            }
            Read::Rejected { reference, findings } => {
                self.report(node, &origin, &reference, &findings);
                // Its last good version, from an earlier text, stays.
                let last = self.objects.iter().find(|slot| slot.reference == reference);
                objects.extend(last.cloned());
            }
            Read::Skipped { kind, namespace, name, findings } => {
                for finding in findings {
                    let position = node.locate_nearest(&finding.path);
                    self.diagnostics.push(Diagnostic {
                        severity: finding.severity,
                        line: position.line,
                        column: position.column,
                        kind: kind.clone(),
                        namespace: namespace.clone(),
                        name: name.clone(),
                        path: finding.path,
                        ..fault(&origin.file, finding.code, finding.message)
                    });
                }
            }
        }
    }

    fn report(&mut self, node: &Node<'_>, origin: &Origin, reference: &ObjectRef, findings: &[Finding]) {
        for finding in findings {
            let position = node.locate_nearest(&finding.path);
            self.diagnostics.push(Diagnostic {
                file: origin.file.to_string(),
                line: position.line,
                column: position.column,
                ..Diagnostic::about(reference, finding)
            });
        }
    }
}

impl Slot {
    /// The object; if it was told before, read again from the text that it was found good in.
    fn take(&mut self) -> Option<Box<Object>> {
        if let Some(object) = self.object.take() {
            return Some(object);
        }
        let documents = yaml::parse(&self.origin.text, Dialect::Kubernetes).ok()?;
        match read::read(object_node(&documents, self.origin.document, self.origin.item)?) {
            Read::Object { object, .. } => Some(object),
            Read::Rejected { .. } | Read::Skipped { .. } => None,
        }
    }
}

/// Reads one text as a file, once: its good objects, and what is wrong.
pub(crate) fn read_text(name: &str, text: &str) -> (Vec<Change>, Vec<Diagnostic>) {
    let mut file = File::default();
    file.read(name, text);
    let changes = file.objects.into_iter().filter_map(|mut slot| {
        let object = slot.take()?;
        Some(Change::Set(slot.reference.clone(), object, slot.origin.clone()))
    });
    (changes.collect(), file.diagnostics)
}

/// Where the objects of a file are: its documents, or the items of those that are lists.
pub(crate) fn places(documents: &[Node<'_>]) -> Vec<(usize, Option<usize>)> {
    let mut places = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let is_list = document.find("kind").and_then(Node::as_str).is_some_and(|kind| kind.ends_with("List"));
        match document.find("items").map(|items| &items.value) {
            Some(Value::Sequence(items)) if is_list => {
                places.extend((0..items.len()).map(|item| (index, Some(item))));
            }
            _ => places.push((index, None)),
        }
    }
    places
}

/// The configuration files of folders, in their order; what cannot be read has none.
pub(crate) fn configuration_files(folders: &[PathBuf]) -> Vec<PathBuf> {
    folders.iter().filter_map(|folder| list(folder).ok()).flatten().collect()
}

/// The configuration files directly in a folder, sorted; or the file itself.
fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    if fs::metadata(folder)?.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Follows links: a mounted ConfigMap consists of them.
        if is_config(&path) && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a file's name is that of configuration.
fn is_config(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|extension| {
        ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    });
    !hidden && known
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn io_fault(path: &Path, error: &std::io::Error) -> Diagnostic {
    fault(&display(path), "unreadable", format!("cannot be read: {error}"))
}

fn fault(file: &str, code: &str, message: String) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        code: code.to_owned(),
        file: file.to_owned(),
        line: 0,
        column: 0,
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        path: String::new(),
        message,
    }
}

fn duplicate(slot: &Slot, first: &Slot) -> Diagnostic {
    let other = first.origin.locate("");
    let message = format!("is not used, as it is declared before at {}:{}", first.origin.file, other.line);
    let finding =
        Finding { severity: Severity::Error, code: "duplicate-object", path: String::new(), message };
    let position = slot.origin.locate("");
    Diagnostic {
        file: slot.origin.file.to_string(),
        line: position.line,
        column: position.column,
        ..Diagnostic::about(&slot.reference, &finding)
    }
}
