//! What was measured, as a file: for programs, and to go on with where a run was interrupted.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cases::Wanted;
use crate::peers::Peer;
use crate::report::COLUMNS;
use crate::session::{CaseResult, Figures, Taker};

/// What all figures of a run have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Cores, kernel and the like.
    pub(crate) machine: String,
    /// Rounds of each case.
    pub(crate) rounds: usize,
    /// Seconds at full speed and at the fixed rate.
    pub(crate) seconds: [f64; 2],
    /// `--rate`.
    pub(crate) rate: Option<f64>,
    /// What each proxy says of its version.
    pub(crate) proxies: Vec<String>,
}

impl Facts {
    fn json(&self) -> Value {
        let Self { machine, rounds, seconds, rate, proxies } = self;
        json!({"machine": machine, "rounds": rounds, "seconds": seconds, "rate": rate, "proxies": proxies})
    }
}

/// Writes all figures, so that what is there is whole at any time.
pub(crate) fn write(path: &Path, facts: &Facts, results: &[CaseResult]) -> Result<()> {
    let results: Vec<Value> = results.iter().map(CaseResult::json).collect();
    let text = format!("{:#}\n", json!({"facts": facts.json(), "results": results}));
    let draft = path.with_extension("part");
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path).with_context(|| path.display().to_string())
}

/// Reads those of the wanted cases that were measured in the wanted sizes, and not refused. Other
/// facts than now are an error: figures of two set-ups are not comparable.
pub(crate) fn read(path: &Path, facts: &Facts, wanted: &[Wanted], peers: &[Peer]) -> Result<Vec<CaseResult>> {
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let before = file.get("facts").cloned().unwrap_or_default();
    ensure!(before == facts.json(), "was measured otherwise: {before}; now {}", facts.json());
    let results = file.get("results").and_then(Value::as_array).context("no results")?;
    let known = |wanted: &Wanted| {
        let name = wanted.case.name;
        let result =
            results.iter().find(|result| result.get("case").and_then(Value::as_str) == Some(name))?;
        case(result, wanted, peers)
    };
    Ok(wanted.iter().filter_map(known).collect())
}

/// One case; `None`: it lacks something.
fn case(result: &Value, wanted: &Wanted, peers: &[Peer]) -> Option<CaseResult> {
    let list = result.get("takers")?.as_array()?;
    let mut takers = Vec::new();
    for peer in peers {
        for size in &wanted.sizes {
            let label = wanted.label(*size);
            let is =
                |value: &&Value, key: &str, text: &str| value.get(key).and_then(Value::as_str) == Some(text);
            let taker = list
                .iter()
                .filter(|taker| is(taker, "proxy", peer.name))
                .find(|taker| is(taker, "case", &label))?;
            if !taker.get("refused")?.is_null() {
                return None;
            }
            let rounds = taker.get("rounds")?.as_array()?.iter().map(figures).collect::<Option<Vec<_>>>()?;
            takers.push(Taker { peer: peer.name, size: *size, rounds, refused: None });
        }
    }
    let notes = result.get("notes")?.as_array()?.iter().filter_map(|note| Some(note.as_str()?.to_owned()));
    Some(CaseResult { wanted: wanted.clone(), takers, notes: notes.collect() })
}

fn figures(round: &Value) -> Option<Figures> {
    let known = |name: &str| COLUMNS.iter().find(|(column, ..)| *column == name).map(|(column, ..)| *column);
    let one = |(name, value): (&String, &Value)| Some((known(name)?, value.as_f64()?));
    Some(Figures(round.as_object()?.iter().map(one).collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::{Facts, read, write};
    use crate::cases;
    use crate::peers::Peer;
    use crate::session::{CaseResult, Figures, Taker};

    #[test]
    fn what_is_written_is_gone_on_with() {
        let wanted = cases::parse("h1,hosts:10:20").unwrap_or_default();
        let peers = [Peer::envoy(PathBuf::new()), Peer::leno(PathBuf::new())];
        let taker = |peer, size| Taker {
            peer,
            size,
            rounds: vec![Figures(BTreeMap::from([("cpu_sat", 1.5), ("rps", 2.0)]))],
            refused: None,
        };
        let result = |index: usize, takers| CaseResult {
            wanted: wanted[index].clone(),
            takers,
            notes: vec!["a note".to_owned()],
        };
        let results = [
            result(0, vec![taker("envoy", 1), taker("leno", 1)]),
            // One size is missing.
            result(1, vec![taker("envoy", 10), taker("leno", 10)]),
        ];
        let facts = Facts {
            machine: "m".to_owned(),
            rounds: 1,
            seconds: [1.0, 2.0],
            rate: None,
            proxies: vec!["envoy: 1".to_owned()],
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("figures.json");
        write(&path, &facts, &results).expect("written");
        let known = read(&path, &facts, &wanted, &peers).expect("read");
        let shown: Vec<String> = known.iter().map(|result| result.json().to_string()).collect();
        assert_eq!(shown, [results[0].json().to_string()]);
        let other = Facts { rounds: 2, ..facts };
        let error = read(&path, &other, &wanted, &peers).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.starts_with("was measured otherwise: ")));
    }
}
