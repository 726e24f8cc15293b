//! `leno proxy --mode validate` against the real Envoy: the same configurations are accepted
//! and refused, apart from those that only what we do not have yet makes us refuse.
//!
//! The corpus is in `corpus/`: valid configurations, and mutations of them. What Envoy says of
//! each is recorded in `corpus/verdicts.txt`:
//!   - `ok`: accepted by both; `no`: refused by both, with Envoy's reason;
//!   - `later`: accepted by Envoy, refused by us as "not supported yet", and for no other reason.
//!
//! Where there is an Envoy the recording is checked too, and written anew with `UPDATE_VERDICTS=1`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use leno_api::yaml::{Dialect, parse};
use leno_proxy::{Options, validate};
use serde_json::Value;

/// A configuration and what it is called.
struct Case {
    name: String,
    /// The file's extension decides the dialect.
    extension: &'static str,
    text: String,
}

/// What a proxy says of a configuration; a refusal has reasons.
type Verdict = Result<(), Vec<String>>;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All cases, in a fixed order, by unique names.
fn cases() -> Vec<Case> {
    let mut bases = BTreeMap::new();
    let folder = std::fs::read_dir(corpus().join("valid")).expect("the corpus is there");
    for path in folder.map(|entry| entry.expect("readable").path()) {
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        bases.insert(name, read(&path));
    }
    let mut cases: Vec<Case> = Vec::new();
    for (name, text) in &bases {
        cases.push(Case { name: name.clone(), extension: "yaml", text: text.clone() });
    }
    let mutations = read(&corpus().join("mutations.txt"));
    let mut base = "";
    for line in mutations.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("= ") {
            base = name;
            continue;
        }
        let text = bases.get(base).unwrap_or_else(|| panic!("no valid configuration is called {base}"));
        let name = format!("{base}: {line}");
        let case = if let Some(replacement) = line.strip_prefix("s ") {
            let (from, to) = replacement.split_once(" => ").expect("s TEXT => TEXT");
            assert!(text.contains(from), "{name}: the text is not there");
            Case { name, extension: "yaml", text: text.replacen(from, to, 1) }
        } else {
            let (path, value) = line.split_once(' ').expect("PATH VALUE");
            let document = parse(text, Dialect::Envoy).expect("valid YAML");
            let mut tree = document.first().expect("one document").to_json();
            mutate(&mut tree, &steps(path), value, &name);
            Case { name, extension: "json", text: tree.to_string() }
        };
        cases.push(case);
    }
    cases
}

/// A step of a path into a configuration.
#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
    Append,
}

fn steps(path: &str) -> Vec<Step> {
    const LISTENER: &str = "static_resources.listeners[0]";
    let chain = format!("{LISTENER}.filter_chains[0]");
    let filter = format!("{chain}.filters[0].typed_config");
    let table = format!("{filter}.route_config");
    let host = format!("{table}.virtual_hosts[0]");
    let cluster = "static_resources.clusters[0]".to_owned();
    let endpoint = format!("{cluster}.load_assignment.endpoints[0].lb_endpoints[0]");
    let end = path.find('.').unwrap_or(path.len());
    let (first, rest) = path.split_at(end);
    let whole = match first {
        "L" => LISTENER.to_owned() + rest,
        "FC" => chain + rest,
        "HCM" | "TCP" => filter + rest,
        "RC" => table + rest,
        "VH" => host + rest,
        "R" => host + ".routes[0]" + rest,
        "C" => cluster + rest,
        "EP" => endpoint + rest,
        _ => path.to_owned(),
    };
    let mut steps = Vec::new();
    let mut rest = whole.as_str();
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, behind) = quoted.split_once("\"]").expect("a closed quote");
            steps.push(Step::Key(key.to_owned()));
            rest = behind;
        } else if let Some(index) = rest.strip_prefix('[') {
            let (index, behind) = index.split_once(']').expect("a closed bracket");
            steps.push(if index == "+" {
                Step::Append
            } else {
                Step::Index(index.parse().expect("an index"))
            });
            rest = behind;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(Step::Key(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    steps
}

/// Sets what lies at the path, or removes it if the value is `-`.
fn mutate(node: &mut Value, steps: &[Step], value: &str, name: &str) {
    let (step, rest) = steps.split_first().expect("a path has a step");
    let parsed = || serde_json::from_str::<Value>(value).unwrap_or_else(|error| panic!("{name}: {error}"));
    let last = rest.is_empty();
    match (step, node) {
        (Step::Key(key), Value::Object(map)) if last && value == "-" => {
            assert!(map.remove(key).is_some(), "{name}: there is no {key} to remove");
        }
        (Step::Key(key), Value::Object(map)) if last => {
            map.insert(key.clone(), parsed());
        }
        (Step::Key(key), Value::Object(map)) => {
            mutate(
                map.entry(key.clone()).or_insert_with(|| Value::Object(Default::default())),
                rest,
                value,
                name,
            );
        }
        (Step::Append, Value::Array(list)) if last => list.push(parsed()),
        (Step::Index(index), Value::Array(list)) if last && value == "-" => {
            list.remove(*index);
        }
        (Step::Index(index), Value::Array(list)) => {
            let item = list.get_mut(*index).unwrap_or_else(|| panic!("{name}: no item {index}"));
            if last { *item = parsed() } else { mutate(item, rest, value, name) }
        }
        (step, node) => panic!("{name}: {step:?} does not fit {node}"),
    }
}

/// What we say.
fn ours(path: &Path) -> Verdict {
    let options = Options { config_path: Some(path.to_owned()), ..Options::default() };
    validate(&options).map(drop)
}

/// What Envoy says. The file is named relative to its folder, so that reasons name no paths.
fn envoys(binary: &Path, path: &Path) -> Verdict {
    let (folder, file) = (path.parent().expect("in a folder"), path.file_name().expect("a file"));
    let output = Command::new(binary)
        .args(["--mode", "validate", "--log-format", "%v", "-l", "critical", "-c"])
        .arg(file)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("Envoy can be started");
    if output.status.success() {
        return Ok(());
    }
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let start = text.find("error initializing").unwrap_or(0);
    let reason = text.get(start..).unwrap_or_default();
    let reason = reason.split_once("': ").map_or(reason, |(_, reason)| reason);
    Err(vec![reason.to_owned()])
}

/// Asks for all cases, two at a time.
fn ask(paths: &[PathBuf], who: impl Fn(&Path) -> Verdict + Sync) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let answers: Mutex<BTreeMap<usize, Verdict>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(index) else { return };
                    let verdict = who(path);
                    answers.lock().expect("no panics").insert(index, verdict);
                }
            });
        }
    });
    answers.into_inner().expect("no panics").into_values().collect()
}

fn is_only_missing_support(reasons: &[String]) -> bool {
    reasons.iter().all(|reason| reason.contains("not supported yet"))
}

/// Envoy's reason in one short line, without the text that differs from run to run.
fn shortened(reason: &str) -> String {
    let words: Vec<&str> = reason.split_whitespace().collect();
    let line = words.join(" ");
    let line = match line.find("failed (") {
        // A violated constraint, behind a dump of the message.
        Some(place) => line.get(place + "failed (".len()..).unwrap_or_default(),
        None => line.split("): {").next().unwrap_or_default(),
    };
    let line = line.split(" goo.gle/").next().unwrap_or_default();
    line.chars().take(120).collect()
}

#[test]
fn the_same_is_accepted_and_refused_as_by_envoy() {
    let cases = cases();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut paths = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let path = folder.path().join(format!("{index}.{}", case.extension));
        std::fs::write(&path, &case.text).expect("writable");
        paths.push(path);
    }
    let ours = ask(&paths, ours);
    let envoy = leno_testkit::envoy::binary();
    let verdicts = corpus().join("verdicts.txt");
    match &envoy {
        Some(binary) => {
            let theirs = ask(&paths, |path| envoys(binary, path));
            let mut recording = String::new();
            for ((case, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
                let name = &case.name;
                match (theirs, ours) {
                    (Ok(()), Err(reasons)) if is_only_missing_support(reasons) => {
                        writeln!(recording, "later {name}")
                    }
                    (Ok(()), _) => writeln!(recording, "ok {name}"),
                    (Err(reasons), _) => {
                        writeln!(recording, "no {name}\n    {}", shortened(&reasons.join(" ")))
                    }
                }
                .expect("a String takes all");
            }
            if std::env::var_os("UPDATE_VERDICTS").is_some() {
                std::fs::write(&verdicts, &recording).expect("writable");
            }
            // Reasons are for readers, and not the same in each run.
            let verdicts_only = |text: &str| -> Vec<String> {
                text.lines().filter(|line| !line.starts_with(' ')).map(str::to_owned).collect()
            };
            let (now, then) = (verdicts_only(&recording), verdicts_only(&read(&verdicts)));
            let differing = now.iter().zip(&then).find(|(now, then)| now != then);
            assert_eq!(differing, None, "Envoy says something else than recorded: UPDATE_VERDICTS=1");
            assert_eq!(now.len(), then.len(), "UPDATE_VERDICTS=1");
        }
        None => println!("skipped: the recorded verdicts are not checked against an Envoy"),
    }
    let recorded = read(&verdicts);
    let recorded: BTreeMap<&str, &str> = recorded
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_once(' '))
        .map(|(verdict, name)| (name, verdict))
        .collect();
    let mut differences = String::new();
    for (case, ours) in cases.iter().zip(&ours) {
        let agrees = match (recorded.get(case.name.as_str()).copied(), ours) {
            (Some("ok"), Ok(())) | (Some("no"), Err(_)) => true,
            (Some("later"), Err(reasons)) => is_only_missing_support(reasons),
            _ => false,
        };
        if !agrees {
            let verdict = recorded.get(case.name.as_str()).copied().unwrap_or("nothing");
            let _ = writeln!(differences, "{}\n  Envoy: {verdict}\n  ours: {ours:?}", case.name);
        }
    }
    assert!(differences.is_empty(), "\n{differences}");
}

#[test]
fn errors_say_where() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("envoy.yaml");
    let text = "static_resources:\n  clusters:\n  - name: a\n    type: EDS\n  - name: a\n";
    std::fs::write(&path, text).expect("writable");
    let options = Options { config_path: Some(path.clone()), ..Options::default() };
    let errors = validate(&options).map(drop).expect_err("refused");
    let file = path.display();
    assert_eq!(
        errors,
        [
            format!(
                "{file}:3:5: static_resources.clusters[0].eds_cluster_config: cannot create an EDS cluster without an EDS config"
            ),
            format!("{file}:5:5: static_resources.clusters[1].name: cluster manager: duplicate cluster 'a'"),
        ]
    );
}

#[test]
fn the_command_line_is_merged_over_the_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("envoy.yaml");
    std::fs::write(&path, "static_resources: {clusters: [{name: a}]}").expect("writable");
    let overlay = "{node: {id: x}, static_resources: {clusters: [{name: b}]}}";
    let mut options =
        Options { config_path: Some(path), config_yaml: Some(overlay.to_owned()), ..Options::default() };
    assert_eq!(validate(&options).expect("valid").clusters, 2);
    options.config_yaml = Some("{static_resources: {clusters: [{nam: b}]}}".to_owned());
    let errors = validate(&options).map(drop).expect_err("refused");
    assert_eq!(
        errors,
        ["--config-yaml:1:33: static_resources.clusters[0].nam: unknown field, did you mean 'name'?"]
    );
    options.allow_unknown_static_fields = true;
    options.config_yaml = Some("{static_resources: {clusters: [{name: b, nonsense: 5}]}}".to_owned());
    assert_eq!(validate(&options).expect("valid").clusters, 2);
}
