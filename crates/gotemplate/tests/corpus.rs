//! What the real things make of templates: Go's text/template with sprig (`go`) and Helm's engine
//! (`helm`), recorded in `corpus.json`. Outputs must be the same to the byte; where Go has an
//! error there must be one, in the same line of the template.
//!
//! `DIFFERENT` names the cases that differ on purpose, with the reason.

use std::{collections::BTreeMap, sync::Arc};

use leno_gotemplate::{
    Error, Functions, Limits, Numbers, Templates,
    helm::{self, Capabilities, Chart, Release},
};
use serde_json::{Value as Json, json};

/// Templates (their beginning) of which the result differs, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("{{.nil.a}}", "fields of what is null are nothing, as those of what is missing"),
    ("{{ toYaml (dict \"key: x\"", "keys of several lines are quoted, not written as `? |-`"),
    ("{{ (fromYaml \"a: 1\\nb: [1,2]", "what is wrong with YAML is said in our words"),
    ("{{ fromJson \"{", "what is wrong with JSON is said in our words"),
];

fn render(case: &Json) -> Result<String, Error> {
    let text = case["template"].as_str().unwrap_or_default();
    if case["mode"] == "go" {
        let mut templates = Templates::new(Arc::new(Functions::sprig()));
        templates.add("t", text)?;
        let heap = Limits::default().heap();
        let dot = heap.json(&case["values"], Numbers::Floats).expect("a value");
        return templates.render(&heap, "t", &dot);
    }
    let chart = Chart {
        metadata: json!({"name": "c", "version": "1.2.3", "appVersion": "4.5", "apiVersion": "v2"}),
        values: json!({}),
        templates: BTreeMap::from([("templates/t.yaml".to_owned(), text.to_owned())]),
        files: BTreeMap::from([
            ("files/a.yaml".to_owned(), "a: 1\nb: {{ .Values.x }}\n".to_owned()),
            ("files/b.txt".to_owned(), "one\ntwo\n".to_owned()),
        ]),
    };
    let release = Release { name: "rel".to_owned(), namespace: "ns".to_owned(), revision: 1, upgrade: false };
    let capabilities = Capabilities {
        kube_version: "v1.33.0".to_owned(),
        api_versions: vec!["v1".to_owned(), "apps/v1".to_owned()],
    };
    let mut files = helm::render(&chart, &case["values"], &release, &capabilities, Limits::default())?;
    Ok(files.remove("c/templates/t.yaml").unwrap_or_default())
}

/// The line that a message of Go says, as `t:3:`.
fn line(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("t.yaml:").or_else(|| message.split_once("t:"))?;
    rest.split(':').next()?.parse().ok()
}

#[test]
fn outputs_are_those_of_go_and_helm() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus.json");
    let corpus: Json =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the corpus")).expect("JSON");
    // Cases without values of their own have those of all.
    let mut cases = corpus["cases"].as_array().cloned().unwrap_or_default();
    for case in &mut cases {
        if case.get("values").is_none() {
            case["values"] = corpus["values"].clone();
        }
    }
    assert!(cases.len() > 280, "the corpus is whole");
    let mut wrong = Vec::new();
    for case in &cases {
        let template = case["template"].as_str().unwrap_or_default();
        let result = render(case);
        let known = DIFFERENT.iter().any(|(start, _)| template.starts_with(start));
        let same = match (&result, case["error"].as_str()) {
            (Ok(output), None) => case["output"] == output.as_str(),
            (Err(error), Some(message)) => line(message).is_none_or(|line| line == error.line),
            _ => false,
        };
        if same == known {
            let wanted = case["error"].as_str().or(case["output"].as_str()).unwrap_or_default();
            let found = result.unwrap_or_else(|error| format!("error {error}"));
            let known = if known { " (no longer different)" } else { "" };
            wrong
                .push(format!("{}{known} {template}\n  wanted {wanted:?}\n  found  {found:?}", case["name"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
