//! Checking folders without serving them: what the control plane would say about them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use leno_derive::{Batch, Graph};

use crate::analyze::Analysis;
use crate::analyze::run::Text;
use crate::model::diagnostic::Diagnostic;
use crate::model::{Change, inputs};
use crate::scope;
use crate::source::files::{Files, Look, read_text};

/// Reads folders (or files) of YAML, and texts that are in no file, and returns all that is wrong with them, in the order of files
/// and lines: what the readers refuse, and what only shows when all objects are seen together.
///
/// # Errors
/// If a path does not exist.
pub fn validate(paths: &[PathBuf], texts: &[Text]) -> io::Result<Vec<Diagnostic>> {
    for path in paths {
        std::fs::metadata(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    }
    let mut files = Files::new(paths.to_vec());
    let mut changes = files.scan(Look::Inside, Instant::now());
    let mut diagnostics = files.diagnostics().as_ref().clone();
    for text in texts {
        let (more, found) = read_text(&text.name, &text.text);
        changes.extend(more);
        diagnostics.extend(found);
    }
    let mut graph = Graph::new();
    scope::register(&mut graph);
    let mut batch = Batch::new();
    let mut origins = BTreeMap::new();
    for change in changes {
        if let Change::Set(object, _, origin) = &change {
            origins.insert(object.clone(), origin.clone());
        }
        inputs::apply(change, &mut batch);
    }
    graph.commit(batch);
    for (object, finding) in graph.get::<Analysis>(&()).iter() {
        let mut diagnostic = Diagnostic::about(object, finding);
        if let Some(origin) = origins.get(object) {
            let position = origin.locate(&diagnostic.path);
            diagnostic.file = origin.file.to_string();
            diagnostic.line = position.line;
            diagnostic.column = position.column;
        }
        diagnostics.push(diagnostic);
    }
    diagnostics
        .sort_by(|a, b| (&a.file, a.line, a.column, &a.path).cmp(&(&b.file, b.line, b.column, &b.path)));
    Ok(diagnostics)
}

#[cfg(test)]
mod tests {
    use super::{Text, validate};

    #[test]
    fn finds_faults_of_single_objects_and_of_several_together() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let rule = |name: &str, host: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  \
                 hosts: [a]\n  http: [{{route: [{{destination: {{host: {host}}}}}]}}]\n---\n"
            )
        };
        std::fs::write(&file, rule("one", "nowhere") + &rule("two", "''")).unwrap();
        let found = validate(&[folder.path().to_owned()], &[]).unwrap();
        assert!(found.iter().any(|it| it.name == "one" && it.line > 0), "{found:?}");
        assert!(found.iter().any(|it| it.name == "two" && it.line > 6), "{found:?}");
        assert!(validate(&[folder.path().join("absent")], &[]).is_err());
        let text = Text { name: "-".to_owned(), text: rule("one", "nowhere") + &rule("two", "''") };
        let piped = validate(&[], &[text]).unwrap();
        let lines =
            |all: &[crate::Diagnostic]| all.iter().map(|it| (it.line, it.name.clone())).collect::<Vec<_>>();
        assert_eq!(lines(&piped), lines(&found));
    }
}
