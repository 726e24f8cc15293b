//! Diagnostics with their places.
//!
//! To look a place up the text of a whole file is parsed. Faults are looked for after each batch of
//! changes, and most of them are where they were: what was found out of an object that has not been read
//! again since is remembered.

use std::collections::{BTreeMap, HashMap};

use leno_api::yaml::Position;

use super::{Origin, Places};
use crate::model::ObjectRef;
use crate::model::diagnostic::Diagnostic;

/// The places of diagnostics, as last looked up.
#[derive(Debug, Default)]
pub(crate) struct Located {
    /// By object: where it was read, and the places of fields.
    known: HashMap<ObjectRef, (Origin, HashMap<String, Position>)>,
    /// How many places had to be looked up.
    #[cfg(test)]
    looked_up: usize,
}

impl Located {
    /// Gives diagnostics the places of their objects, and forgets those of all others.
    pub(crate) fn locate(
        &mut self,
        origins: &BTreeMap<ObjectRef, Origin>,
        found: impl IntoIterator<Item = (Option<ObjectRef>, Diagnostic)>,
    ) -> Vec<Diagnostic> {
        let mut places = Places::default();
        let mut before = std::mem::take(&mut self.known);
        let mut all = Vec::new();
        for (object, mut diagnostic) in found {
            let origin = object.as_ref().and_then(|object| origins.get(object));
            if let (Some(object), Some(origin)) = (object, origin) {
                let entry = self.known.entry(object);
                let (_, known) = entry.or_insert_with_key(|object| match before.remove(object) {
                    Some((old, known)) if old.is_same(origin) => (old, known),
                    _ => (origin.clone(), HashMap::new()),
                });
                let position = match known.get(&diagnostic.path) {
                    Some(position) => *position,
                    None => {
                        #[cfg(test)]
                        (self.looked_up += 1);
                        let position = places.locate(origin, &diagnostic.path);
                        known.insert(diagnostic.path.clone(), position);
                        position
                    }
                };
                diagnostic.file = origin.file.to_string();
                diagnostic.line = position.line;
                diagnostic.column = position.column;
            }
            all.push(diagnostic);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::{Located, Origin};
    use crate::model::diagnostic::{Diagnostic, Finding, Severity};
    use crate::model::{Key, Kind, ObjectRef};

    #[test]
    fn what_was_not_read_again_is_not_looked_up_again() {
        let object = |name: &str| Key { namespace: "n".to_owned(), name: name.to_owned() }.of(Kind::Gateway);
        let finding = |object: &ObjectRef, path: &str| {
            let finding = Finding {
                severity: Severity::Warning,
                code: "c",
                path: path.to_owned(),
                message: String::new(),
            };
            (Some(object.clone()), Diagnostic::about(object, &finding))
        };
        let read = |text: &str| Origin::file("f.yaml", Arc::from(text), 0, None);
        let (a, b) = (object("a"), object("b"));
        let mut origins = BTreeMap::from([
            (a.clone(), read("kind: x\nspec: {x: 1}\n")),
            (b.clone(), read("kind: x\n\nspec: {y: 1}\n")),
        ]);
        let mut located = Located::default();
        let mut check =
            |origins: &BTreeMap<ObjectRef, Origin>, found: Vec<_>, lines: &[u32], looked_up: usize| {
                let all = located.locate(origins, found);
                assert_eq!(all.iter().map(|it| it.line).collect::<Vec<_>>(), lines);
                assert_eq!(std::mem::take(&mut located.looked_up), looked_up);
            };
        let both = || vec![finding(&a, "spec.x"), finding(&b, "spec.y"), finding(&b, "spec.y")];
        check(&origins, both(), &[2, 3, 3], 2);
        check(&origins, both(), &[2, 3, 3], 0);
        // Another field of one of them, and the other read again.
        origins.insert(b.clone(), read("kind: x\n\n\nspec: {y: 1}\n"));
        check(
            &origins,
            vec![finding(&a, "spec.x"), finding(&a, "kind"), finding(&b, "spec.y")],
            &[2, 1, 4],
            2,
        );
        // What was forgotten is looked up anew.
        check(&origins, vec![finding(&b, "spec.y")], &[4], 0);
        check(&origins, both(), &[2, 4, 4], 1);
        // An object that nobody has read has no place.
        check(&BTreeMap::new(), both(), &[0, 0, 0], 0);
    }
}
