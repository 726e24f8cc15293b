//! Medians, ratios, tables and goals.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::session::{CaseResult, Figures, Taker, is_sized};

/// Columns of tables: figure, title, decimals.
pub(crate) const COLUMNS: &[(&str, &str, usize)] = &[
    ("rps", "req/s", 0),
    ("mbps", "MB/s", 0),
    ("core", "proxy core", 2),
    ("load_core", "load core", 2),
    ("cpu_sat", "CPU us/req", 1),
    ("cpu_fixed", "at fixed rate", 1),
    ("p50", "p50 us", 0),
    ("p99", "p99 us", 0),
    ("p999", "p99.9 us", 0),
    ("load_s", "load s", 2),
    ("load_cpu_s", "load CPU s", 2),
    ("kb_per_conn", "KB/connection", 1),
    ("rss_mb", "RSS MB", 0),
    ("rss_after_mb", "after", 0),
    ("peak_mb", "peak MB", 0),
];

/// Ratios to the base in the same round: name, figure, whether it is base / this (higher is
/// better) or this / base (lower is better).
pub(crate) const RATIOS: &[(&str, &str, bool)] = &[
    ("cpu_ratio_sat", "cpu_sat", true),
    ("cpu_ratio_fixed", "cpu_fixed", true),
    ("rps_ratio", "rps", false),
    ("p50_ratio", "p50", false),
    ("p99_ratio", "p99", false),
    ("p999_ratio", "p999", false),
    ("load_ratio", "load_s", true),
    ("rss_ratio", "rss_mb", true),
    ("kb_ratio", "kb_per_conn", true),
];

/// Median, lowest and highest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, lowest, highest })
    }

    pub(crate) fn text(&self, decimals: usize) -> String {
        let Self { median, lowest, highest } = self;
        if lowest == highest {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} ({lowest:.decimals$}-{highest:.decimals$})")
    }
}

/// The spread of a figure over the rounds.
pub(crate) fn figure(taker: &Taker, name: &str) -> Option<Spread> {
    Spread::of(taker.rounds.iter().filter_map(|round| round.0.get(name).copied()).collect())
}

/// The spread of a ratio over the rounds that both took part in.
fn ratio(taker: &Taker, base: &Taker, name: &str, inverted: bool) -> Option<Spread> {
    let of = |(own, other): (&Figures, &Figures)| {
        let (own, other) = (own.0.get(name)?, other.0.get(name)?);
        Some(if inverted { other / own } else { own / other })
    };
    Spread::of(taker.rounds.iter().zip(&base.rounds).filter_map(of).collect())
}

impl CaseResult {
    /// The proxy that ratios are taken to, in the same size.
    pub(crate) fn base(&self, taker: &Taker) -> Option<&Taker> {
        let first = self.takers.first()?.peer;
        let base = self.takers.iter().find(|other| other.peer == first && other.size == taker.size)?;
        (base.peer != taker.peer).then_some(base)
    }

    /// The same proxy in the smallest size.
    fn smallest(&self, taker: &Taker) -> Option<&Taker> {
        let own = self.takers.iter().filter(|other| other.peer == taker.peer);
        let smallest = own.min_by_key(|other| other.size)?;
        (smallest.size != taker.size).then_some(smallest)
    }

    /// Every metric of a proxy: figures, ratios and, for sizes, `growth`.
    pub(crate) fn metrics(&self, taker: &Taker) -> Vec<(&'static str, Spread)> {
        let figures = COLUMNS.iter().filter_map(|(name, ..)| Some((*name, figure(taker, name)?)));
        let mut all: Vec<(&'static str, Spread)> = figures.collect();
        if let Some(base) = self.base(taker) {
            let ratios = RATIOS.iter();
            all.extend(
                ratios.filter_map(|(name, of, inverted)| Some((*name, ratio(taker, base, of, *inverted)?))),
            );
        }
        if let Some(smallest) = self.smallest(taker).filter(|_| is_sized(&self.wanted.case)) {
            all.extend(ratio(taker, smallest, "cpu_sat", false).map(|growth| ("growth", growth)));
        }
        all
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("\n## {}: {}\n\n", self.wanted.case.name, self.wanted.case.summary);
        let present: Vec<&(&str, &str, usize)> = COLUMNS
            .iter()
            .filter(|(name, ..)| self.takers.iter().any(|taker| figure(taker, name).is_some()))
            .collect();
        if !present.is_empty() {
            let titles: Vec<&str> = present.iter().map(|(_, title, _)| *title).collect();
            let _ =
                writeln!(text, "| proxy | {} |\n|---|{}", titles.join(" | "), "---|".repeat(titles.len()));
        }
        for taker in &self.takers {
            if taker.refused.is_some() {
                continue;
            }
            let cells: Vec<String> = present
                .iter()
                .map(|(name, _, decimals)| {
                    figure(taker, name).map_or("-".to_owned(), |spread| spread.text(*decimals))
                })
                .collect();
            let _ = writeln!(text, "| {} | {} |", self.label(taker), cells.join(" | "));
        }
        text.push('\n');
        for taker in &self.takers {
            let ratios: Vec<String> = self
                .metrics(taker)
                .iter()
                .filter(|(name, _)| name.ends_with("ratio") || name.contains("_ratio_") || *name == "growth")
                .map(|(name, spread)| format!("{name} {}", spread.text(2)))
                .collect();
            if !ratios.is_empty() {
                let _ = writeln!(text, "- {}: {}", self.label(taker), ratios.join(", "));
            }
            if let Some(reason) = &taker.refused {
                let _ = writeln!(text, "- {}: refused: {reason}", self.label(taker));
            }
            if figure(taker, "core").is_some_and(|core| core.median < 0.9) && taker.rounds.len() > 1 {
                let _ = writeln!(
                    text,
                    "- {}: its core was not full: trust CPU us/req, not req/s",
                    self.label(taker)
                );
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "- note: {note}");
        }
        text
    }

    fn label(&self, taker: &Taker) -> String {
        if is_sized(&self.wanted.case) {
            format!("{} {}", taker.peer, taker.size)
        } else {
            taker.peer.to_owned()
        }
    }

    /// For programs: all rounds and all metrics.
    pub(crate) fn json(&self) -> Value {
        let takers = self.takers.iter().map(|taker| {
            let rounds: Vec<Value> = taker.rounds.iter().map(|round| json!(round.0)).collect();
            let metrics = self.metrics(taker).into_iter().map(|(name, spread)| {
                (
                    name.to_owned(),
                    json!({"median": spread.median, "lowest": spread.lowest, "highest": spread.highest}),
                )
            });
            json!({
                "proxy": taker.peer,
                "case": self.wanted.label(taker.size),
                "refused": taker.refused,
                "metrics": metrics.collect::<serde_json::Map<_, _>>(),
                "rounds": rounds,
            })
        });
        json!({"case": self.wanted.case.name, "takers": takers.collect::<Vec<_>>(), "notes": self.notes})
    }

    /// Whether any proxy answered wrongly.
    pub(crate) fn has_refused(&self) -> bool {
        self.takers.iter().any(|taker| taker.refused.is_some())
    }
}

/// Compares the medians of `leno` with goals: `{"h1": {"cpu_ratio_sat": {"at_least": 6, "floor": 4}}}`.
/// Bounds of cases that did not run are left out. Gives a line for each and whether all were met.
pub(crate) fn check(goals: &Value, results: &[CaseResult]) -> Result<(String, bool)> {
    let mut text = String::from("\n## Goals\n\n");
    let mut met = true;
    let goals = goals.as_object().context("goals are an object of cases")?;
    for (case, bounds) in goals {
        let takers = results.iter().flat_map(|result| result.takers.iter().map(move |taker| (result, taker)));
        let mut matching =
            takers.filter(|(result, taker)| taker.peer == "leno" && result.wanted.label(taker.size) == *case);
        let Some((result, taker)) = matching.next() else { continue };
        let metrics = result.metrics(taker);
        for (name, bound) in bounds.as_object().with_context(|| format!("{case}: bounds by metric"))? {
            let spread = metrics.iter().find(|(metric, _)| metric == name).map(|(_, spread)| *spread);
            let (line, fine) = judge(spread, bound).with_context(|| format!("{case}: {name}"))?;
            met &= fine;
            let _ = writeln!(text, "- {} {case} {name}: {line}", if fine { "met" } else { "MISSED" });
        }
    }
    Ok((text, met))
}

fn judge(spread: Option<Spread>, bound: &Value) -> Result<(String, bool)> {
    let bound = Bound::read(bound)?;
    let (goal, sign) = (bound.goal, if bound.higher { ">=" } else { "<=" });
    let Some(spread) = spread else { return Ok((format!("not measured, {sign} {goal}"), false)) };
    let met = bound.holds(goal, spread);
    let floor = match bound.floor {
        Some(floor) if !met => {
            format!(" (floor {floor}: {})", if bound.holds(floor, spread) { "met" } else { "missed" })
        }
        _ => String::new(),
    };
    Ok((format!("{}, {sign} {goal}{floor}", spread.text(2)), met))
}

/// A goal for one figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// What is wanted.
    pub(crate) goal: f64,
    /// What would still do.
    pub(crate) floor: Option<f64>,
    /// More is better.
    pub(crate) higher: bool,
}

impl Bound {
    /// Reads `{"at_least": 6, "floor": 4}` or `{"at_most": ...}`.
    pub(crate) fn read(bound: &Value) -> Result<Self> {
        let number = |name: &str| bound.get(name).and_then(Value::as_f64);
        let (goal, higher) = match (number("at_least"), number("at_most")) {
            (Some(goal), None) => (goal, true),
            (None, Some(goal)) => (goal, false),
            _ => bail!("a bound is at_least or at_most"),
        };
        Ok(Self { goal, floor: number("floor"), higher })
    }

    /// Whether the median is on the right side of a limit.
    pub(crate) fn holds(&self, limit: f64, spread: Spread) -> bool {
        if self.higher { spread.median >= limit } else { spread.median <= limit }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Spread, judge};

    #[test]
    fn medians_and_bounds() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!(spread, Some(Spread { median: 2.5, lowest: 1.0, highest: 10.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
        let check = |bound| judge(spread, &bound).map_err(|error| error.to_string());
        assert_eq!(check(json!({"at_least": 2.5})), Ok(("2.50 (1.00-10.00), >= 2.5".into(), true)));
        assert_eq!(
            check(json!({"at_most": 1.0, "floor": 3.0})),
            Ok(("2.50 (1.00-10.00), <= 1 (floor 3: met)".into(), false))
        );
        assert_eq!(check(json!({})), Err("a bound is at_least or at_most".into()));
        assert_eq!(judge(None, &json!({"at_least": 1})).ok(), Some(("not measured, >= 1".into(), false)));
    }
}
