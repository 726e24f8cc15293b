//! What objects of all kinds must look like: each table is objects, and what is said of them.

mod mesh;
mod traffic;

use expect_test::Expect;
use leno_api::yaml::{self, Dialect};

use super::diagnostic::Severity;
use super::read::{Read, read};

/// Reads `specs` (one document each) as objects of a kind, and compares what is said.
#[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
fn check(api_version: &str, kind: &str, specs: &str, expected: Expect) {
    let mut told = String::new();
    for spec in specs.split("---\n") {
        let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: it}}\nspec:\n{spec}");
        let documents = yaml::parse(&text, Dialect::Kubernetes).unwrap();
        let (verdict, findings) = match read(&documents[0]) {
            Read::Object { findings, .. } => ("good", findings),
            Read::Rejected { findings, .. } => ("refused", findings),
            Read::Skipped { findings, .. } => ("skipped", findings),
        };
        // Whether a field is honoured yet is not asked here.
        let own: Vec<_> =
            findings.iter().filter(|finding| !finding.code.starts_with("unsupported")).collect();
        let refused = own.iter().any(|finding| finding.severity == Severity::Error);
        let verdict = if verdict == "refused" && !refused { "good" } else { verdict };
        told.push_str(verdict);
        told.push('\n');
        for finding in own {
            told.push_str(&format!(
                "  {:?} {}: {} [{}]\n",
                finding.severity, finding.path, finding.message, finding.code
            ));
        }
    }
    expected.assert_eq(&told);
}
