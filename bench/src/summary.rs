//! The goals with what was measured, as Markdown tables that can be pasted into a page.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::record::Facts;
use crate::report::{Bound, COLUMNS, RATIOS, Spread, figure};
use crate::session::{CaseResult, Taker, is_sized};

/// What figures mean, where the name does not say: metric, text.
const MEANINGS: &[(&str, &str)] = &[
    ("cpu_ratio_sat", "CPU per request, saturated"),
    ("cpu_ratio_fixed", "CPU per request, fixed rate"),
    ("p50_ratio", "p50 at the fixed rate"),
    ("p99_ratio", "p99 at the fixed rate"),
    ("p999_ratio", "p99.9 at the fixed rate"),
    ("rss_mb", "resident, MB"),
    ("peak_mb", "peak, MB"),
    ("load_s", "first answer after, s"),
    ("kb_per_conn", "KB a connection"),
    ("growth", "CPU per request by that of the smallest size"),
];

/// All tables: goals, sizes, and the figures behind them.
pub(crate) fn markdown(goals: &Value, facts: &Facts, results: &[CaseResult]) -> Result<String> {
    let Facts { machine, rounds, seconds: [saturated, fixed], rate: _, proxies } = facts;
    let mut text = format!(
        "{machine}; {}. Medians of {rounds} rounds (lowest–highest), {saturated} s at full speed and {fixed} s at \
         the fixed rate each.\n\n",
        proxies.join("; ")
    );
    text +=
        "| case | figure | Envoy | Leno | measured | floor | goal | |\n|---|---|---|---|---|---|---|---|\n";
    for (case, bounds) in goals.as_object().context("goals are an object of cases")? {
        let takers = results.iter().flat_map(|result| result.takers.iter().map(move |taker| (result, taker)));
        let mut ours =
            takers.filter(|(result, taker)| taker.peer == "leno" && result.wanted.label(taker.size) == *case);
        let Some((result, taker)) = ours.next() else { continue };
        for (name, bound) in bounds.as_object().with_context(|| format!("{case}: bounds by metric"))? {
            let bound = Bound::read(bound).with_context(|| format!("{case}: {name}"))?;
            let row = goal_row(result, taker, name, bound);
            let _ = writeln!(text, "| {case} | {} | {row} |", meaning(name));
        }
    }
    let mut growth = String::new();
    for result in results.iter().filter(|result| is_sized(&result.wanted.case)) {
        for taker in &result.takers {
            let metrics = result.metrics(taker);
            let grown = metrics.iter().find(|(metric, _)| *metric == "growth").map(|(_, spread)| *spread);
            if let Some(cpu) = figure(taker, "cpu_sat") {
                let grown = grown.map_or_else(|| "1".to_owned(), |grown| grown.text(2));
                let label = result.wanted.label(taker.size);
                let _ = writeln!(growth, "| {label} | {} | {} | {grown} |", taker.peer, cpu.text(1));
            }
        }
    }
    if !growth.is_empty() {
        text += "\n| case | proxy | CPU us/request | by that of the smallest size |\n|---|---|---|---|\n";
        text += &growth;
    }
    let mut figures = String::new();
    for result in results {
        for taker in result.takers.iter().filter(|taker| taker.peer == "leno") {
            if let Some(row) = figures_row(result, taker) {
                let _ = writeln!(figures, "| {} | {row} |", result.wanted.label(taker.size));
            }
        }
    }
    if !figures.is_empty() {
        text += "\n| case | us/request, saturated: Envoy / Leno | ratio | fixed rate: Envoy / Leno | ratio | p50, p99 us: Envoy | Leno |\n|---|---|---|---|---|---|---|\n";
        text += &figures;
    }
    Ok(text)
}

fn meaning(metric: &str) -> &str {
    MEANINGS.iter().find(|(name, _)| *name == metric).map_or(metric, |(_, text)| *text)
}

/// The cells behind the case and the figure.
fn goal_row(result: &CaseResult, taker: &Taker, metric: &str, bound: Bound) -> String {
    let sign = if bound.higher { "≥" } else { "≤" };
    let floor = bound.floor.map_or("–".to_owned(), |floor| format!("{sign} {floor}"));
    let goal = format!("{sign} {}", bound.goal);
    let of = RATIOS.iter().find(|(name, ..)| *name == metric).map_or(metric, |(_, of, _)| *of);
    let decimals = COLUMNS.iter().find(|(name, ..)| *name == of).map_or(2, |(_, _, decimals)| *decimals);
    let cell = |taker: Option<&Taker>| {
        let median = taker.and_then(|taker| figure(taker, of)).map(|spread| spread.median);
        median.map_or("–".to_owned(), |median| format!("{median:.decimals$}"))
    };
    let metrics = result.metrics(taker);
    let spread = metrics.iter().find(|(name, _)| *name == metric).map(|(_, spread)| *spread);
    let (measured, verdict) = match (&taker.refused, spread) {
        (Some(reason), _) => (format!("refused: {reason}"), "missed"),
        (None, None) => ("not measured".to_owned(), "?"),
        (None, Some(spread)) => (spread.text(2), verdict(bound, spread)),
    };
    format!(
        "{} | {} | {measured} | {floor} | {goal} | {verdict}",
        cell(result.base(taker)),
        cell(Some(taker))
    )
}

fn verdict(bound: Bound, spread: Spread) -> &'static str {
    if bound.holds(bound.goal, spread) {
        "met"
    } else if bound.floor.is_some_and(|floor| bound.holds(floor, spread)) {
        "floor met"
    } else {
        "missed"
    }
}

/// Figures of a case under load; `None`: it has none.
fn figures_row(result: &CaseResult, taker: &Taker) -> Option<String> {
    let base = result.base(taker)?;
    let metrics = result.metrics(taker);
    let ratio = |name: &str| {
        let spread = metrics.iter().find(|(metric, _)| *metric == name).map(|(_, spread)| *spread);
        spread.map_or("–".to_owned(), |spread| spread.text(2))
    };
    let median = |taker: &Taker, name: &str, decimals: usize| {
        figure(taker, name).map_or("–".to_owned(), |spread| format!("{:.decimals$}", spread.median))
    };
    let both = |name: &str| match figure(taker, name) {
        Some(_) => format!("{} / {}", median(base, name, 1), median(taker, name, 1)),
        None => "–".to_owned(),
    };
    let latency = |taker: &Taker| match figure(taker, "p50") {
        Some(_) => format!("{}, {}", median(taker, "p50", 0), median(taker, "p99", 0)),
        None => "–".to_owned(),
    };
    figure(taker, "cpu_sat")?;
    let (full, fixed) = (ratio("cpu_ratio_sat"), ratio("cpu_ratio_fixed"));
    Some(format!(
        "{} | {full} | {} | {fixed} | {} | {}",
        both("cpu_sat"),
        both("cpu_fixed"),
        latency(base),
        latency(taker)
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::markdown;
    use crate::cases;
    use crate::record::Facts;
    use crate::session::{CaseResult, Figures, Taker};

    #[test]
    fn goals_are_shown_with_verdicts() {
        let wanted = cases::parse("h1,hosts:10:20").unwrap_or_default();
        let taker = |peer, size, cpu: &[f64]| Taker {
            peer,
            size,
            rounds: cpu.iter().map(|cpu| Figures(BTreeMap::from([("cpu_sat", *cpu)]))).collect(),
            refused: None,
        };
        let results = [
            CaseResult {
                wanted: wanted[0].clone(),
                takers: vec![taker("envoy", 1, &[40.0, 44.0, 42.0]), taker("leno", 1, &[10.0, 10.0, 7.0])],
                notes: Vec::new(),
            },
            CaseResult {
                wanted: wanted[1].clone(),
                takers: vec![taker("leno", 10, &[10.0]), taker("leno", 20, &[13.0])],
                notes: Vec::new(),
            },
        ];
        let facts = Facts {
            machine: "2 cores".to_owned(),
            rounds: 3,
            seconds: [1.0, 2.0],
            rate: None,
            proxies: vec!["envoy: 1".to_owned(), "leno: 2".to_owned()],
        };
        let goals = json!({
            "h1": {"cpu_ratio_sat": {"at_least": 6.0, "floor": 4.0}, "rss_mb": {"at_most": 10}},
            "hosts:20": {"growth": {"at_most": 1.2}},
            "idle:4000": {"kb_per_conn": {"at_most": 6}},
        });
        let text = markdown(&goals, &facts, &results).expect("tables");
        assert_eq!(
            text,
            "2 cores; envoy: 1; leno: 2. Medians of 3 rounds (lowest–highest), 1 s at full speed and 2 s at the \
             fixed rate each.\n\n\
             | case | figure | Envoy | Leno | measured | floor | goal | |\n|---|---|---|---|---|---|---|---|\n\
             | h1 | CPU per request, saturated | 42.0 | 10.0 | 4.40 (4.00-6.00) | ≥ 4 | ≥ 6 | floor met |\n\
             | h1 | resident, MB | – | – | not measured | – | ≤ 10 | ? |\n\
             | hosts:20 | CPU per request by that of the smallest size | – | – | 1.30 | – | ≤ 1.2 | missed |\n\n\
             | case | proxy | CPU us/request | by that of the smallest size |\n|---|---|---|---|\n\
             | hosts:10 | leno | 10.0 | 1 |\n\
             | hosts:20 | leno | 13.0 | 1.30 |\n\n\
             | case | us/request, saturated: Envoy / Leno | ratio | fixed rate: Envoy / Leno | ratio | p50, p99 us: \
             Envoy | Leno |\n|---|---|---|---|---|---|---|\n\
             | h1 | 42.0 / 10.0 | 4.40 (4.00-6.00) | – | – | – | – |\n"
        );
    }
}
