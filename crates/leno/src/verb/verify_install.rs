//! `leno verify-install`: whether what was installed is there, as it should be, and runs.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

use crate::cli::Failure;
use crate::install::cluster::{Cluster, Where};
use crate::install::manifest::{self, Id, Rendered};
use crate::install::operator::Operator;
use crate::install::{What, apply, block_on, tree, wait};
use crate::out::outln;

/// Checks what was installed, or what files and settings ask for. The exit code is 1 if something is
/// missing, was changed, or does not run.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyInstall {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    place: Where,
}

impl VerifyInstall {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        Ok(block_on(self.go())?)
    }

    async fn go(self) -> anyhow::Result<ExitCode> {
        let cluster = Cluster::new(&self.place).await?;
        let operator = if self.what.is_empty() {
            let revision = self.what.revision().unwrap_or_default();
            match apply::installed(&cluster, self.what.namespace(), revision).await? {
                Some(operator) => operator,
                None => bail!(
                    "no installation of revision {:?} was found in {}: name what is to be checked with -f or --set",
                    if revision.is_empty() { "default" } else { revision },
                    self.what.namespace(),
                ),
            }
        } else {
            Operator::read(&self.what.inputs()?)?
        };
        verify(&cluster, &manifest::render(&operator)?).await
    }
}

/// Checks objects and says what it found.
///
/// # Errors
/// If the cluster cannot be asked.
pub(super) async fn verify(cluster: &Cluster, rendered: &[Rendered]) -> anyhow::Result<ExitCode> {
    let (mut definitions, mut deployments, mut faults) = (0, 0, 0);
    for object in rendered.iter().flat_map(|one| &one.objects) {
        let id = Id::of(object);
        let found = cluster.find(&tree::text(object, "apiVersion"), &id).await?;
        let mut wrong = wait::state(found.as_ref()).err().into_iter().collect::<Vec<_>>();
        if let Some(found) = &found {
            changed(object, found, "", &mut wrong);
        }
        match id.kind.as_str() {
            "CustomResourceDefinition" => definitions += 1,
            "Deployment" | "DaemonSet" => deployments += 1,
            _ => {}
        }
        let place = if id.namespace.is_empty() { String::new() } else { format!(".{}", id.namespace) };
        if wrong.is_empty() {
            outln!("\u{2714} {}: {}{place} checked successfully", id.kind, id.name);
        } else {
            faults += 1;
            outln!("\u{2718} {}: {}{place}: {}", id.kind, id.name, wrong.join("; "));
        }
    }
    outln!("Checked {definitions} custom resource definitions");
    outln!("Checked {deployments} Leno Deployments");
    if faults > 0 {
        eprintln!("Error: {faults} objects are not as they should be");
        return Ok(ExitCode::FAILURE);
    }
    outln!("\u{2714} Leno is installed and verified successfully");
    Ok(ExitCode::SUCCESS)
}

/// What of an object is other than it was installed. What others may change is left out: who scales, who
/// signs.
fn changed(wanted: &Value, found: &Value, path: &str, out: &mut Vec<String>) {
    if path.ends_with("failurePolicy") || path.ends_with("caBundle") || out.len() >= 5 {
        return;
    }
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            for (name, value) in wanted {
                let dot = if path.is_empty() { "" } else { "." };
                let at = format!("{path}{dot}{name}");
                match found.get(name) {
                    Some(found) => changed(value, found, &at, out),
                    // The server leaves out what is empty.
                    None if is_empty(value) => {}
                    None => out.push(format!("{at} is missing")),
                }
            }
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() <= found.len() => {
            for (at, (wanted, found)) in wanted.iter().zip(found).enumerate() {
                changed(wanted, found, &format!("{path}[{at}]"), out);
            }
        }
        (Value::Number(wanted), Value::Number(found)) if wanted.as_f64() == found.as_f64() => {}
        (Value::String(wanted), Value::String(found)) if same_quantity(wanted, found) => {}
        (Value::String(_), Value::Number(_)) | (Value::Number(_), Value::String(_)) => {}
        _ if wanted == found || is_empty(wanted) => {}
        _ => out.push(format!("{path} is {found} and not {wanted}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Object(object) => object.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

/// Whether two texts are the same amount, as `2000m` and `2`.
fn same_quantity(one: &str, other: &str) -> bool {
    let amount = |text: &str| {
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let scale = match text.get(digits.len()..)? {
            "" => 1.0,
            "m" => 0.001,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "Ki" => 1024.0,
            "Mi" => 1_048_576.0,
            "Gi" => 1_073_741_824.0,
            _ => return None,
        };
        digits.parse::<f64>().ok().map(|number| number * scale)
    };
    one == other
        || matches!((amount(one), amount(other)), (Some(one), Some(other)) if (one - other).abs() < 1e-9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::changed;

    #[test]
    fn what_was_changed() {
        let wanted = json!({ "a": 1, "b": { "cpu": "2000m", "memory": "1024Mi" }, "c": [1, { "d": "x" }], "e": {}, "f": "y",
            "webhooks": [{ "failurePolicy": "Ignore" }] });
        let mut out = Vec::new();
        let good = json!({ "a": 1.0, "b": { "cpu": "2", "memory": "1Gi" }, "c": [1, { "d": "x", "more": 1 }], "f": "y", "g": 1,
            "webhooks": [{ "failurePolicy": "Fail", "clientConfig": { "caBundle": "x" } }] });
        changed(&wanted, &good, "", &mut out);
        assert!(out.is_empty(), "{out:?}");
        changed(
            &wanted,
            &json!({ "a": 2, "b": { "cpu": "1" }, "c": [1], "f": "y", "webhooks": [{}] }),
            "",
            &mut out,
        );
        let expected = [
            "a is 2 and not 1",
            "b.cpu is \"1\" and not \"2000m\"",
            "b.memory is missing",
            "c is [1] and not [1,{\"d\":\"x\"}]",
            "webhooks[0].failurePolicy is missing",
        ];
        assert_eq!(out, expected);
    }
}
