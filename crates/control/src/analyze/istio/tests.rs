//! For each code an input that raises it, and a near miss that does not.

mod cases;

use std::collections::BTreeSet;

use self::cases::{CASES, Case};
use crate::analyze::message::CODES;
use crate::analyze::run::{Options, Text, run};

/// Codes that nothing here raises; `message.rs` says why.
const NEVER: [&str; 9] =
    ["IST0001", "IST0141", "IST0142", "IST0143", "IST0168", "IST0169", "IST0170", "LENO0201", "LENO0004"];

/// What is said of a text.
async fn told(text: &str) -> Vec<String> {
    let files = vec![Text { name: "input.yaml".to_owned(), text: text.to_owned() }];
    let outcome = run(&Options { files, ..Options::default() }).await.expect("no cluster is asked");
    assert!(outcome.unreadable.is_empty(), "{:?}\n{text}", outcome.unreadable);
    outcome
        .messages
        .iter()
        .map(|it| format!("{} ({} {}) {}", it.code.code, it.object, it.line, it.text))
        .collect()
}

#[tokio::test]
async fn each_code_is_raised_and_not_by_a_near_miss() {
    let mut failures = Vec::new();
    for Case(code, common, raising, missing) in CASES {
        let whole = |part: &str| format!("{common}\n---\n{part}");
        let raised = told(&whole(raising)).await;
        if !raised.iter().any(|it| it.starts_with(code)) {
            failures.push(format!("{code} is not raised, but {raised:#?}"));
        }
        let raised = told(&whole(missing)).await;
        if raised.iter().any(|it| it.starts_with(code)) {
            failures.push(format!("{code} is raised by its near miss: {raised:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Of our own codes these have their tests beside what derives them.
const ELSEWHERE: [&str; 6] = ["LENO0003", "LENO0104", "LENO0105", "LENO0106", "LENO0110", "LENO0111"];

#[test]
fn each_code_has_a_case() {
    let cases: BTreeSet<&str> = CASES.iter().map(|case| case.0).collect();
    let missing = CODES.iter().map(|known| known.code);
    let missing =
        missing.filter(|code| !cases.contains(code) && !NEVER.contains(code) && !ELSEWHERE.contains(code));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(NEVER.iter().all(|code| !cases.contains(code)));
}

/// A destination that is exported to some namespaces only is none for a rule that is exported to others.
#[tokio::test]
async fn destinations_are_looked_for_where_a_rule_is_exported_to() {
    let check = async |service: &str, rule: &str, expected: bool| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: nn, annotations: \
             {{networking.istio.io/exportTo: '{service}'}}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: nn}}\n\
             spec: {{hosts: [a], exportTo: [{rule}], http: [{{route: [{{destination: {{host: a}}}}]}}]}}\n"
        );
        let files = vec![Text { name: "f.yaml".to_owned(), text }];
        let outcome = run(&Options { files, ..Options::default() }).await.unwrap();
        let found = outcome.messages.iter().any(|message| message.code.code == "IST0101");
        assert_eq!(found, expected, "{service} {rule}");
    };
    check("one,.", "bogus", true).await;
    check("one,.", "one", false).await;
    check("one,.", "'.'", false).await;
    check("*", "bogus", false).await;
}
