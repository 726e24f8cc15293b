//! The file source under the hands of editors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use expect_test::{Expect, expect};

use super::files::{Files, Look};
use crate::model::{Change, Object};

/// A folder, its source and a clock.
struct Fixture {
    folder: tempfile::TempDir,
    files: Files,
    now: Instant,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::new(vec![folder.path().to_owned()]);
        Fixture { folder, files, now: Instant::now() }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("writable");
    }

    fn delete(&self, name: &str) {
        fs::remove_file(self.folder.path().join(name)).expect("removable");
    }

    /// Scans after some time and compares the changes.
    fn check(&mut self, after_millis: u64, expected: &Expect) {
        self.now += Duration::from_millis(after_millis);
        let changes = self.files.scan(Look::Inside, self.now);
        let text: String = changes.iter().map(describe).collect();
        expected.assert_eq(&text);
    }

    fn diagnostics(&self, expected: &Expect) {
        let folder = format!("{}/", self.folder.path().display());
        let text: String = self
            .files
            .diagnostics()
            .iter()
            .map(|diagnostic| format!("{diagnostic}\n").replace(&folder, ""))
            .collect();
        expected.assert_eq(&text);
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Set(reference, object, _) => match object.as_ref() {
            Object::Gateway(gateway) => {
                let hosts: Vec<&String> =
                    gateway.spec.servers.iter().flat_map(|server| &server.hosts).collect();
                format!("set {reference} {hosts:?}\n")
            }
            _ => format!("set {reference}\n"),
        },
        Change::Remove(reference) => format!("remove {reference}\n"),
    }
}

fn gateway(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\nspec:\n  servers:\n  \
         - port: {{number: 80, name: http, protocol: HTTP}}\n    hosts: [{host}]\n"
    )
}

#[test]
fn changes_are_told_once() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &gateway("a", "one.example.com"));
    fixture.write("b.yml", &format!("{}---\n{}", gateway("b", "x.y"), gateway("c", "x.y")));
    fixture.write("notes.txt", "not: yaml");
    fixture.write(".hidden.yaml", &gateway("hidden", "x.y"));
    fixture.check(
        0,
        &expect![[r#"
            set Gateway default/a ["one.example.com"]
            set Gateway default/b ["x.y"]
            set Gateway default/c ["x.y"]
        "#]],
    );
    fixture.check(10, &expect![""]);
    fixture.write("a.yaml", &gateway("a", "two.example.com"));
    fixture.check(
        10,
        &expect![[r#"
            set Gateway default/a ["two.example.com"]
        "#]],
    );
    fixture.diagnostics(&expect![""]);
}

#[test]
fn a_broken_file_keeps_its_last_good_version() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &gateway("a", "one.example.com"));
    fixture.check(
        0,
        &expect![[r#"
            set Gateway default/a ["one.example.com"]
        "#]],
    );
    fixture.write("a.yaml", "kind: [Gateway\nfoo");
    fixture.check(10, &expect![""]);
    let diagnostics = fixture.files.diagnostics();
    assert_eq!(diagnostics.len(), 1);
    assert_eq!(diagnostics[0].code, "parse-error");
    assert!(diagnostics[0].line > 0, "{:?}", diagnostics[0]);
    assert!(diagnostics[0].message.ends_with("the last good version stays in use"), "{:?}", diagnostics[0]);
    fixture.write("a.yaml", &gateway("a", "three.example.com"));
    fixture.check(
        10,
        &expect![[r#"
            set Gateway default/a ["three.example.com"]
        "#]],
    );
    fixture.diagnostics(&expect![""]);
}

#[test]
fn a_broken_object_keeps_its_last_good_version_and_others_change() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &format!("{}---\n{}", gateway("a", "one.example.com"), gateway("b", "x.y")));
    fixture.files.scan(Look::Inside, fixture.now);
    fixture.write("a.yaml", &format!("{}---\n{}", gateway("a", "bad_host!"), gateway("b", "z.y")));
    fixture.check(
        10,
        &expect![[r#"
            set Gateway default/a ["one.example.com"]
            set Gateway default/b ["z.y"]
        "#]],
    );
    fixture.diagnostics(&expect![[r#"
        a.yaml:7:13: Gateway default/a: spec.servers[0].hosts[0]: "bad_host!" is a short name; use a fully qualified one [invalid-value]
    "#]]);
    // Gone is gone, even where only a broken version was left.
    fixture.write("a.yaml", &gateway("b", "z.y"));
    fixture.check(
        10,
        &expect![[r#"
            remove Gateway default/a
            set Gateway default/b ["z.y"]
        "#]],
    );
}

#[test]
fn editors_may_rename_truncate_and_replace() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &gateway("a", "one.example.com"));
    fixture.files.scan(Look::Inside, fixture.now);
    // As vim does: the old version is moved away, the new one is written.
    fixture.delete("a.yaml");
    fixture.check(10, &expect![""]);
    assert!(fixture.files.is_doubtful());
    fixture.write("new", &gateway("a", "two.example.com"));
    let rename = |from: &Path| fs::rename(from.join("new"), from.join("a.yaml")).expect("renamable");
    rename(fixture.folder.path());
    fixture.check(
        10,
        &expect![[r#"
            set Gateway default/a ["two.example.com"]
        "#]],
    );
    assert!(!fixture.files.is_doubtful());
    // As a shell's `>` does: nothing, then the text.
    fixture.write("a.yaml", "");
    fixture.check(10, &expect![""]);
    fixture.write("a.yaml", &gateway("a", "three.example.com"));
    fixture.check(
        50,
        &expect![[r#"
            set Gateway default/a ["three.example.com"]
        "#]],
    );
    // Empty for good.
    fixture.write("a.yaml", "# nothing\n");
    fixture.check(
        10,
        &expect![[r#"
            remove Gateway default/a
        "#]],
    );
}

#[test]
fn what_stays_gone_is_removed() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &gateway("a", "one.example.com"));
    fixture.write("b.yaml", &gateway("b", "one.example.com"));
    fixture.files.scan(Look::Inside, fixture.now);
    fixture.delete("a.yaml");
    fixture.write("b.yaml", "");
    fixture.check(10, &expect![""]);
    fixture.check(
        100,
        &expect![[r#"
            remove Gateway default/a
            remove Gateway default/b
        "#]],
    );
}

#[test]
fn the_later_folder_counts_and_within_one_the_first_file() {
    let [first, second] = [tempfile::tempdir(), tempfile::tempdir()].map(|folder| folder.expect("a folder"));
    let mut files = Files::new(vec![first.path().to_owned(), second.path().to_owned()]);
    let now = Instant::now();
    let mut scan = |millis| -> String {
        files.scan(Look::Inside, now + Duration::from_millis(millis)).iter().map(describe).collect()
    };
    let write = |path: &Path, name: &str, text: String| fs::write(path.join(name), text).expect("writable");
    write(first.path(), "a.yaml", gateway("a", "first.a"));
    write(first.path(), "b.yaml", gateway("a", "first.b"));
    assert_eq!(scan(0), "set Gateway default/a [\"first.a\"]\n");
    write(second.path(), "c.yaml", gateway("a", "second.c"));
    assert_eq!(scan(10), "set Gateway default/a [\"second.c\"]\n");
    fs::remove_file(second.path().join("c.yaml")).expect("removable");
    assert_eq!(scan(20), "");
    assert_eq!(scan(200), "set Gateway default/a [\"first.a\"]\n");
    let diagnostics = files.diagnostics();
    assert_eq!(diagnostics.len(), 1);
    assert_eq!(diagnostics[0].code, "duplicate-object");
    assert!(diagnostics[0].file.ends_with("b.yaml"), "{}", diagnostics[0]);
}

#[test]
fn a_missing_folder_is_reported_and_may_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("later");
    let mut files = Files::new(vec![missing.clone()]);
    let now = Instant::now();
    assert!(files.scan(Look::Inside, now).is_empty());
    assert_eq!(files.diagnostics()[0].code, "unreadable");
    fs::create_dir(&missing).expect("creatable");
    fs::write(missing.join("a.yaml"), gateway("a", "x.y")).expect("writable");
    assert_eq!(files.scan(Look::Outside, now).len(), 1);
    assert!(files.diagnostics().is_empty());
}

#[test]
fn looking_at_what_has_changed_finds_what_looking_at_all_does() {
    let mut rng = leno_base::Rng::new(7);
    for _ in 0..20 {
        let first = tempfile::tempdir().expect("a folder");
        let second = tempfile::tempdir().expect("a folder");
        let roots = vec![first.path().to_owned(), second.path().to_owned()];
        let (mut all, mut some) = (Files::new(roots.clone()), Files::new(roots.clone()));
        let (mut held, mut held_by_some) = (BTreeMap::new(), BTreeMap::new());
        let mut now = Instant::now();
        for _ in 0..40 {
            let root = &roots[rng.below(2) as usize];
            let path = root.join(format!("{}.yaml", rng.below(3)));
            let mut paths = BTreeSet::from([path.clone()]);
            match rng.below(8) {
                0 => drop(fs::remove_file(&path)),
                1 => fs::write(&path, "kind: [").expect("writable"),
                2 => fs::write(&path, "").expect("writable"),
                // Not a file of ours.
                3 => {
                    let other = root.join("notes.txt");
                    fs::write(&other, "x").expect("writable");
                    paths = BTreeSet::from([other]);
                }
                _ => {
                    let objects = (0..=rng.below(3)).map(|_| {
                        let (name, host) = (rng.below(3), rng.below(3));
                        format!(
                            "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g{name}}}\n\
                             spec: {{selector: {{a: b}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, \
                             hosts: [h{host}.example]}}]}}\n"
                        )
                    });
                    let draft = root.join("draft");
                    fs::write(&draft, objects.collect::<String>()).expect("writable");
                    fs::rename(&draft, &path).expect("renamable");
                    paths.insert(draft);
                }
            }
            now += Duration::from_millis(rng.below(150));
            let mut found = some.scan_some(&paths, now);
            if some.is_doubtful() {
                found.extend(some.scan(Look::Outside, now));
            }
            apply(&mut held, all.scan(Look::Inside, now));
            apply(&mut held_by_some, found);
            assert_eq!(held_by_some, held);
            assert_eq!(some.diagnostics(), all.diagnostics());
        }
    }
}

fn apply(held: &mut BTreeMap<String, String>, changes: Vec<Change>) {
    for change in changes {
        let name = change.object().to_string();
        match &change {
            Change::Set(..) => drop(held.insert(name, describe(&change))),
            Change::Remove(_) => drop(held.remove(&name)),
        }
    }
}
