//! Goldens of injection: `tests/inject/THEME.yaml` has Pods and settings, one case a document, and
//! `THEME.expected` what becomes of them: of the first case all of it, of the others in which lines
//! they differ from the first. `UPDATE_GOLDENS=1` writes them.
//!
//! For each case: injecting the result again changes nothing, and the patch makes the result.

#[path = "support/difference.rs"]
mod difference;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use leno_control::inject::{
    BuiltIn, Config, Injector, MeshSettings, Owner, ProxyRules, ProxySelection, Refused, Request, Settings,
    patch,
};
use leno_testkit::kube::Cluster;
use serde_json::{Value as Json, json};

use self::difference::difference;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject")
}

/// The Pod that cases change.
fn base() -> Json {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "hello-5d4f8c7b9-",
            "namespace": "shop",
            "labels": {"app": "hello", "pod-template-hash": "5d4f8c7b9"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "hello-5d4f8c7b9", "controller": true, "uid": "1"}
            ],
        },
        "spec": {
            "containers": [{"name": "hello", "image": "example/hello:1", "ports": [{"name": "http", "containerPort": 80}]}],
        },
    })
}

/// Maps are merged, null takes away, all else replaces.
fn over(base: &mut Json, changes: &Json) {
    match (base, changes) {
        (Json::Object(base), Json::Object(changes)) => {
            for (key, value) in changes {
                match base.get_mut(key) {
                    _ if value.is_null() => drop(base.shift_remove(key)),
                    Some(old) => over(old, value),
                    None => drop(base.insert(key.clone(), value.clone())),
                }
            }
        }
        (base, changes) => *base = changes.clone(),
    }
}

struct Case {
    name: String,
    pod: Json,
    injector: Injector,
    request: Request,
}

fn read(document: &Json) -> Case {
    let text = |name: &str| document.get(name).and_then(Json::as_str).unwrap_or_default();
    for key in document.as_object().expect("a mapping").keys() {
        let known = ["case", "pod", "values", "config", "mesh", "revision", "native", "variables", "rules"];
        assert!(known.contains(&key.as_str()), "{}: {key} is not known", text("case"));
    }
    let mut pod = base();
    over(&mut pod, document.get("pod").unwrap_or(&json!({})));
    let mut settings = BuiltIn::settings(text("revision"));
    over(&mut settings.values, document.get("values").unwrap_or(&json!({})));
    if let Some(config) = document.get("config") {
        let mut read = Config::parse(&config.to_string()).expect("a configuration");
        for (name, template) in BuiltIn::templates() {
            read.templates.entry(name).or_insert(template);
        }
        settings = Settings { config: read, ..settings };
    }
    let mesh = MeshSettings::from_json(document.get("mesh").unwrap_or(&json!({})));
    let variables: BTreeMap<String, String> =
        serde_json::from_value(document.get("variables").cloned().unwrap_or_else(|| json!({})))
            .expect("variables");
    let rules =
        document.get("rules").and_then(Json::as_array).into_iter().flatten().map(|rule| ProxySelection {
            namespace: rule["namespace"].as_str().unwrap_or_default().to_owned(),
            labels: rule.get("labels").map(|labels| serde_json::from_value(labels.clone()).expect("labels")),
            spec: rule["spec"].clone(),
        });
    let request = Request {
        owner: None::<Owner>,
        variables,
        native: document.get("native") == Some(&json!(true)),
        rules: ProxyRules(rules.collect()),
    };
    let injector = Injector::new(settings, mesh).expect("an injector");
    Case { name: text("case").to_owned(), pod, injector, request }
}

/// What becomes of a case, as text.
fn outcome(case: &Case) -> String {
    if !case.injector.wants(&case.pod) {
        return "not injected\n".to_owned();
    }
    let injected = match case.injector.inject(&case.pod, &case.request) {
        Ok(injected) => injected,
        Err(Refused(message)) => return format!("refused: {message}\n"),
    };
    let mut patched = case.pod.clone();
    patch::apply(&mut patched, &patch::difference(&case.pod, &injected)).expect("the patch applies");
    assert_eq!(patched, injected, "{}: the patch makes the result", case.name);
    let again = case.injector.inject(&injected, &case.request).expect("what is injected can be injected");
    let (first, second) = (leno_gotemplate::yaml::text(&injected), leno_gotemplate::yaml::text(&again));
    assert_eq!(
        first,
        second,
        "{}: injecting again changes nothing\n{}",
        case.name,
        difference(&first, &second)
    );
    acceptable(&case.name, &case.pod, &injected);
    first
}

/// What an API server would refuse: fields that it does not know (unless its client has made them: it may
/// be newer than we) or that have another type, and what its rules for Pods forbid.
fn acceptable(case: &str, original: &Json, pod: &Json) {
    let unknown = |pod: &Json| -> Vec<String> {
        let typed: k8s_openapi::api::core::v1::Pod =
            serde_json::from_value(pod.clone()).unwrap_or_else(|error| panic!("{case}: not a Pod: {error}"));
        let known = serde_json::to_value(typed).expect("JSON");
        let mut found = Vec::new();
        lost("", pod, &known, &mut found);
        found
    };
    let theirs = unknown(original);
    let ours: Vec<String> = unknown(pod).into_iter().filter(|path| !theirs.contains(path)).collect();
    assert!(ours.is_empty(), "{case}: unknown fields: {ours:?}");
    assert_eq!(leno_testkit::kube::pod_faults(pod), [], "{case}");
}

/// The fields that are in `pod` and were not understood.
fn lost(at: &str, pod: &Json, known: &Json, found: &mut Vec<String>) {
    match (pod, known) {
        (Json::Object(pod), Json::Object(known)) => {
            for (key, value) in pod.iter().filter(|(_, value)| !value.is_null()) {
                match known.get(key) {
                    Some(known) => lost(&format!("{at}/{key}"), value, known, found),
                    None => found.push(format!("{at}/{key}")),
                }
            }
        }
        (Json::Array(pod), Json::Array(known)) if pod.len() == known.len() => {
            pod.iter().zip(known).for_each(|(pod, known)| lost(&format!("{at}/*"), pod, known, found));
        }
        (Json::Object(_) | Json::Array(_), _) => found.push(at.to_owned()),
        _ => {}
    }
}

/// The cases of each file, in order.
fn cases() -> Vec<(PathBuf, Vec<Case>)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    let of_file = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("a file");
        let documents = text.split("\n---\n").filter(|text| !text.trim().is_empty());
        let parse = |text: &str| {
            let document = leno_gotemplate::yaml::parse(text);
            read(&document.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        };
        documents.map(parse).collect()
    };
    paths.iter().map(|path| (path.clone(), of_file(path))).collect()
}

#[test]
fn pods_become_what_is_recorded() {
    let updates = std::env::var_os("UPDATE_GOLDENS").is_some();
    let mut count = 0;
    let mut wrong = Vec::new();
    for (path, cases) in cases() {
        let mut expected = String::new();
        let mut first: Option<String> = None;
        for case in cases {
            let outcome = outcome(&case);
            count += 1;
            let shown = match &first {
                Some(first) if outcome.lines().count() > 3 => difference(first, &outcome),
                _ => outcome.clone(),
            };
            first.get_or_insert(outcome);
            let _ = write!(expected, "== {}\n{shown}\n", case.name);
        }
        let golden = path.with_extension("expected");
        if updates {
            std::fs::write(&golden, &expected).expect("written");
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != expected {
            let known = std::fs::read_to_string(&golden).unwrap_or_default();
            wrong.push(format!("{}\n{}", golden.display(), difference(&known, &expected)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 120, "there are {count} cases");
}

/// Each result is created, without being stored, in the test API server or the real one that
/// `LENO_TEST_KUBECONFIG` names, which refuses fields that it does not know.
#[tokio::test]
async fn api_servers_accept_the_results() {
    let cluster = Cluster::start().await;
    // As it is sent: in a namespace and by accounts that exist, owned by nobody.
    let in_cluster = |pod: &Json| {
        let mut pod = pod.clone();
        pod["metadata"]["namespace"] = json!(cluster.namespace());
        pod["metadata"]["name"] = json!("hello");
        for field in ["generateName", "ownerReferences"] {
            pod["metadata"].as_object_mut().expect("a mapping").shift_remove(field);
        }
        pod
    };
    let (mut accounts, mut accepted, mut wrong) = (BTreeSet::new(), 0, Vec::new());
    for case in cases().into_iter().flat_map(|(_, cases)| cases) {
        if !case.injector.wants(&case.pod) {
            continue;
        }
        let Ok(injected) = case.injector.inject(&case.pod, &case.request) else { continue };
        if let Some(account) = case.pod.pointer("/spec/serviceAccountName").and_then(Json::as_str)
            && accounts.insert(account.to_owned())
        {
            cluster.account(account).await;
        }
        // What is refused as it came is not ours.
        if let Err(words) = cluster.dry_run(in_cluster(&case.pod)).await {
            println!("{}: refused before injection: {words}", case.name);
            continue;
        }
        match cluster.dry_run(in_cluster(&injected)).await {
            Ok(_) => accepted += 1,
            Err(words) => wrong.push(format!("{}: {words}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(accepted >= 120, "{accepted} were accepted");
}
