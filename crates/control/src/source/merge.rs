//! Several sources as one. Of an object in several, the one in the last source counts; if that one
//! goes, the one before counts again.
//!
//! Nothing is kept of a version that does not count but that there is one: its source is asked to
//! tell it again (*retell*) when it is needed, or to say where it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Update;
use crate::model::diagnostic::{Diagnostic, Finding, Severity};
use crate::model::{Change, ObjectRef};

/// The state: which source has what.
#[derive(Debug)]
pub(crate) struct Merge {
    /// In which sources each object is, a bit for each source.
    places: HashMap<ObjectRef, u32>,
    /// What each source could not use.
    faults: Vec<Arc<Vec<Diagnostic>>>,
    /// Versions that do not count, by their source.
    hidden: BTreeMap<(usize, ObjectRef), Diagnostic>,
}

/// What follows from an update of one source.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    pub(crate) changes: Vec<Change>,
    pub(crate) gone: Vec<ObjectRef>,
    /// What sources are to tell again.
    pub(crate) retell: Vec<(usize, ObjectRef)>,
}

impl Merge {
    /// For so many sources, at most 32.
    pub(crate) fn new(sources: usize) -> Merge {
        Merge { places: HashMap::new(), faults: vec![Arc::default(); sources], hidden: BTreeMap::new() }
    }

    /// Takes in what a source says.
    pub(crate) fn take(&mut self, source: usize, update: Update) -> Merged {
        if let Some(faults) = self.faults.get_mut(source) {
            *faults = update.diagnostics;
        }
        let mut merged = Merged { gone: update.gone, ..Merged::default() };
        for change in update.changes {
            match change {
                Change::Set(reference, object, origin) => {
                    let places = self.places.entry(reference.clone()).or_default();
                    let is_new = *places & bit(source) == 0;
                    *places |= bit(source);
                    let first = last(*places);
                    if first == Some(source) {
                        self.hidden.remove(&(source, reference.clone()));
                        // Those before it do not count from now on; where they are, they say.
                        let before = (0..source).filter(|before| is_new && *places & bit(*before) != 0);
                        merged.retell.extend(before.map(|before| (before, reference.clone())));
                        merged.changes.push(Change::Set(reference, object, origin));
                    } else {
                        let position = origin.locate("");
                        let finding = Finding {
                            severity: Severity::Warning,
                            code: "duplicate-object",
                            path: String::new(),
                            message: "is not used, as the cluster has an object of this name".to_owned(),
                        };
                        let diagnostic = Diagnostic {
                            file: origin.file.to_string(),
                            line: position.line,
                            column: position.column,
                            ..Diagnostic::about(&reference, &finding)
                        };
                        self.hidden.insert((source, reference), diagnostic);
                    }
                }
                Change::Remove(reference) => {
                    let Some(places) = self.places.get_mut(&reference) else { continue };
                    let counted = last(*places) == Some(source);
                    *places &= !bit(source);
                    self.hidden.remove(&(source, reference.clone()));
                    match last(*places) {
                        None => {
                            self.places.remove(&reference);
                            merged.changes.push(Change::Remove(reference));
                        }
                        // The old version stays until the one before is told.
                        Some(before) if counted => merged.retell.push((before, reference)),
                        Some(_) => {}
                    }
                }
            }
        }
        merged
    }

    /// What all sources could not use, and which objects do not count.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        self.faults.iter().flat_map(|faults| faults.iter()).chain(self.hidden.values()).cloned().collect()
    }
}

fn bit(source: usize) -> u32 {
    1 << source.min(31)
}

/// The last source that has an object.
fn last(places: u32) -> Option<usize> {
    (0..32).rev().find(|source| places & bit(*source) != 0)
}

/// One source: its updates, and by what it is asked to tell an object again.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) updates: mpsc::Receiver<Update>,
    pub(crate) retell: mpsc::UnboundedSender<ObjectRef>,
}

/// Merges until all sources or the receiver are gone. The first update is that of all sources: half
/// of what there is is not a state to serve.
pub(crate) async fn run(inputs: Vec<Input>, updates: mpsc::Sender<Update>) {
    let mut merge = Merge::new(inputs.len());
    let (gather, mut gathered) = mpsc::channel(16);
    let mut asks = Vec::new();
    for (source, mut input) in inputs.into_iter().enumerate() {
        asks.push(input.retell);
        let gather = gather.clone();
        tokio::spawn(async move {
            while let Some(update) = input.updates.recv().await {
                if gather.send((source, update)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(gather);
    let mut missing: Vec<bool> = vec![true; asks.len()];
    let (mut early, mut gone) = (Vec::new(), Vec::new());
    let mut told = Arc::new(Vec::new());
    loop {
        let (source, update) = tokio::select! {
            next = gathered.recv() => match next {
                Some(next) => next,
                None => return,
            },
            () = updates.closed() => return,
        };
        let since = update.since;
        let merged = merge.take(source, update);
        for (source, reference) in merged.retell {
            if let Some(ask) = asks.get(source) {
                // A source that is gone has nothing to tell.
                let _ = ask.send(reference);
            }
        }
        if let Some(missing) = missing.get_mut(source) {
            *missing = false;
        }
        early.extend(merged.changes);
        gone.extend(merged.gone);
        if missing.contains(&true) {
            continue;
        }
        let diagnostics = merge.diagnostics();
        if *told != diagnostics {
            told = Arc::new(diagnostics);
        }
        let update = Update {
            changes: std::mem::take(&mut early),
            gone: std::mem::take(&mut gone),
            diagnostics: Arc::clone(&told),
            since,
        };
        if updates.send(update).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Merge, Merged};
    use crate::model::{Change, Config, Kind, Meta, Object, ObjectRef};
    use crate::source::{Origin, Update};

    fn reference(name: &str) -> ObjectRef {
        ObjectRef { kind: Kind::Gateway, namespace: "n".to_owned(), name: name.to_owned() }
    }

    fn set(name: &str) -> Change {
        let config = Config { meta: Meta::default(), spec: crate::model::gateway::Gateway::default() };
        Change::Set(
            reference(name),
            Box::new(Object::Gateway(config)),
            Origin::object(0, std::sync::Arc::from("")),
        )
    }

    fn told(merged: &Merged) -> Vec<String> {
        let changes = merged.changes.iter().map(|change| match change {
            Change::Set(reference, ..) => format!("set {}", reference.name),
            Change::Remove(reference) => format!("remove {}", reference.name),
        });
        let retell =
            merged.retell.iter().map(|(source, reference)| format!("{source} retell {}", reference.name));
        changes.chain(retell).collect()
    }

    #[test]
    fn the_last_source_counts_and_the_one_before_follows() {
        let mut merge = Merge::new(2);
        let mut take = |source, changes| {
            let merged = merge.take(source, Update { changes, ..Update::default() });
            (told(&merged), merge.diagnostics().len())
        };
        let strings = |list: &[&str]| -> Vec<String> { list.iter().map(|it| (*it).to_owned()).collect() };
        assert_eq!(take(0, vec![set("a"), set("b")]), (strings(&["set a", "set b"]), 0));
        assert_eq!(take(1, vec![set("a")]), (strings(&["set a", "0 retell a"]), 0));
        assert_eq!(take(0, vec![set("a")]), (strings(&[]), 1));
        assert_eq!(take(1, vec![set("a")]), (strings(&["set a"]), 1));
        assert_eq!(take(1, vec![Change::Remove(reference("a"))]), (strings(&["0 retell a"]), 1));
        assert_eq!(take(0, vec![set("a")]), (strings(&["set a"]), 0));
        // Both go, in whatever order.
        take(1, vec![set("a")]);
        assert_eq!(take(0, vec![Change::Remove(reference("a"))]).0, strings(&[]));
        assert_eq!(take(1, vec![Change::Remove(reference("a"))]).0, strings(&["remove a"]));
        assert_eq!(take(0, vec![Change::Remove(reference("b"))]).0, strings(&["remove b"]));
        assert_eq!(take(0, vec![Change::Remove(reference("b"))]).0, strings(&[]));
    }
}
