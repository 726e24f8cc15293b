//! `/stats`: all stats as text or JSON.

use std::fmt::Write;

use regex::bytes::Regex;
use serde_json::{Value, json};

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Context, Endpoint, prometheus};
use crate::config::re2;
use crate::telemetry::scrape::{BOUNDS, Distribution, QUANTILES, Sample, Stat, scrape};

/// `/stats`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/stats",
    help: "print server stats",
    parameters: &[
        ("usedonly", "Only include stats that have been written by system since restart"),
        ("filter", "Regular expression (Google re2) for filtering stats"),
        ("invert_filter", "Invert the filter regex"),
        ("format", "Format to use; One of (text, json, prometheus)"),
        ("type", "Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
        (
            "histogram_buckets",
            "Histogram bucket display mode; One of (cumulative, disjoint, detailed, summary)",
        ),
    ],
    mutates: false,
    answer: Answer::Now(|context, query| answer(context, query).unwrap_or_else(Response::bad_request)),
};

/// How histograms are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buckets {
    Summary,
    Cumulative,
    Disjoint,
    Detailed,
}

/// Which stats are wanted.
pub(super) struct Wanted {
    filter: Option<Regex>,
    inverted: bool,
    used_only: bool,
}

impl Wanted {
    pub(super) fn new(query: &Query) -> Result<Self, String> {
        let filter = query.find("filter").filter(|filter| !filter.is_empty()).map(re2::compile);
        let filter = filter.transpose().map_err(|error| format!("Invalid re2 regex: {error}\n"))?;
        Ok(Self { filter, inverted: query.has("invert_filter"), used_only: query.has("usedonly") })
    }

    /// The stats, sampled ones brought up to date.
    pub(super) fn scrape(&self, context: &Context) -> Vec<Stat> {
        if let Some(flush) = &context.flush {
            flush.notify_one();
        }
        context.sampled.sample(&context.stats);
        let mut stats = scrape(&context.stats, |name| {
            let matches =
                self.filter.as_ref().is_none_or(|filter| filter.is_match(name.as_bytes()) != self.inverted);
            matches && context.stats_config.shows(name)
        });
        if self.used_only {
            stats.retain(|stat| stat.used);
        }
        stats
    }
}

fn answer(context: &Context, query: &Query) -> Result<Response, String> {
    let buckets = match query.find("histogram_buckets") {
        None | Some("" | "summary" | "none") => Buckets::Summary,
        Some("cumulative") => Buckets::Cumulative,
        Some("disjoint") => Buckets::Disjoint,
        Some("detailed") => Buckets::Detailed,
        Some(_) => {
            return Err(
                "usage: /stats?histogram_buckets=(summary|cumulative|disjoint|detailed)\n\n".to_owned()
            );
        }
    };
    let kind: fn(&Sample) -> bool = match query.find("type") {
        None | Some("" | "All") => |_| true,
        Some("Counters") => |value| matches!(value, Sample::Counter(_)),
        Some("Gauges") => |value| matches!(value, Sample::Gauge(_)),
        Some("Histograms") => |value| matches!(value, Sample::Histogram(_)),
        // There are none.
        Some("TextReadouts") => |_| false,
        Some(_) => {
            return Err("usage: /stats?type=(All|Counters|Gauges|Histograms|TextReadouts)\n\n".to_owned());
        }
    };
    let is_json = match query.find("format") {
        None | Some("" | "text") => false,
        Some("json") => true,
        Some("prometheus") => return prometheus::answer(context, query),
        Some(_) => return Err("usage: /stats?format=(json|prometheus|text)\n\n".to_owned()),
    };
    let mut stats = Wanted::new(query)?.scrape(context);
    stats.retain(|stat| kind(&stat.value));
    Ok(match is_json {
        true => Response::json_text(as_json(context, &stats, buckets).to_string()),
        false => Response::text(as_text(context, &stats, buckets)),
    })
}

/// Numbers first, then histograms, each in the order of names.
fn as_text(context: &Context, stats: &[Stat], buckets: Buckets) -> String {
    let mut out = String::new();
    let mut histograms = String::new();
    for Stat { name, value, .. } in stats {
        // Writing to a String cannot fail.
        let _ = match value {
            Sample::Counter(value) | Sample::Gauge(value) => writeln!(out, "{name}: {value}"),
            Sample::Histogram(all) if all.is_empty() => writeln!(histograms, "{name}: No recorded values"),
            Sample::Histogram(all) => match buckets {
                Buckets::Summary => writeln!(histograms, "{name}: {}", summary(all)),
                Buckets::Detailed => {
                    let totals: Vec<String> = all
                        .buckets()
                        .map(|(lower, width, count)| format!("{lower},{width}:{count}"))
                        .collect();
                    writeln!(
                        histograms,
                        "{name}:\n  totals={}\n  intervals=\n  summary={}",
                        totals.join(", "),
                        summary(all)
                    )
                }
                Buckets::Cumulative | Buckets::Disjoint => {
                    let counts = bounded(context, name, all, buckets);
                    // As C's %g prints it.
                    let shown = counts.iter().map(|(bound, count)| format!("B{}(0,{count})", short(*bound)));
                    writeln!(histograms, "{name}: {}", shown.collect::<Vec<_>>().join(" "))
                }
            },
        };
    }
    out + &histograms
}

/// Quantiles of the interval and of all values. Deviation: no intervals are kept, so theirs
/// are `nan`, which Envoy prints for an interval without values.
fn summary(all: &Distribution) -> String {
    let quantiles = QUANTILES.iter().map(|share| {
        // 99.9 is not 99.9 in binary.
        let percent = (share * 1000.0).round() / 10.0;
        format!("P{percent}(nan,{})", all.quantile(*share))
    });
    quantiles.collect::<Vec<_>>().join(" ")
}

/// Counts by bound: below it, or between it and the one before.
fn bounded(context: &Context, name: &str, all: &Distribution, buckets: Buckets) -> Vec<(f64, u64)> {
    let mut before = 0;
    let bounds = context.stats_config.bounds(name).unwrap_or(&BOUNDS);
    let counts = bounds.iter().map(|bound| {
        let below = all.below(*bound);
        let count = if buckets == Buckets::Disjoint { below - before } else { below };
        before = below;
        (*bound, count)
    });
    counts.collect()
}

/// A number with six significant digits, as C's `%g` has it.
fn short(value: f64) -> String {
    if value >= 1_000_000.0 {
        let exponent = value.log10().floor();
        let mantissa = (value / 10f64.powf(exponent) * 1e5).round() / 1e5;
        return format!("{mantissa}e+{exponent:02}");
    }
    format!("{value}")
}

fn as_json(context: &Context, stats: &[Stat], buckets: Buckets) -> Value {
    let mut list = Vec::new();
    let mut histograms = Vec::new();
    for Stat { name, value, .. } in stats {
        match value {
            Sample::Counter(value) | Sample::Gauge(value) => list.push(json!({"name": name, "value": value})),
            Sample::Histogram(all) => histograms.push((name, all)),
        }
    }
    let percents =
        || QUANTILES.iter().map(|share| number((share * 1000.0).round() / 10.0)).collect::<Vec<_>>();
    let quantiles = |all: &Distribution| {
        let values = QUANTILES
            .iter()
            .map(|share| json!({"cumulative": number(all.quantile(*share)), "interval": null}));
        values.collect::<Vec<_>>()
    };
    let shown = match buckets {
        Buckets::Summary => {
            let computed: Vec<Value> = histograms
                .iter()
                .map(|(name, all)| json!({"name": name, "values": quantiles(all)}))
                .collect();
            json!({"supported_quantiles": percents(), "computed_quantiles": computed})
        }
        Buckets::Detailed => {
            let details = histograms.iter().map(|(name, all)| {
                let totals = all.buckets().map(|(lower, width, count)| {
                    json!({"lower_bound": lower, "width": number(width), "count": count})
                });
                json!({
                    "name": name,
                    "totals": totals.collect::<Vec<_>>(),
                    "intervals": [],
                    "percentiles": quantiles(all),
                })
            });
            json!({"supported_percentiles": percents(), "details": details.collect::<Vec<_>>()})
        }
        Buckets::Cumulative | Buckets::Disjoint => {
            let shown = histograms.iter().map(|(name, all)| {
                let counts = bounded(context, name, all, buckets);
                let counts = counts.iter().map(|(bound, count)| {
                    json!({"upper_bound": number(*bound), "interval": 0, "cumulative": count})
                });
                json!({"name": name, "buckets": counts.collect::<Vec<_>>()})
            });
            shown.collect()
        }
    };
    if !histograms.is_empty() {
        list.push(json!({"histograms": shown}));
    }
    json!({"stats": list})
}

/// A number, whole ones without a fraction; null if it is none.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}
