//! `/stats/prometheus`: all stats in Prometheus' text format, with Envoy's names and labels.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::admin::respond::{Query, Response};
use crate::admin::stats::Wanted;
use crate::admin::{Answer, Context, Endpoint};
use crate::telemetry::scrape::{BOUNDS, Distribution, QUANTILES, Sample, Stat};
use crate::telemetry::tags::StatsConfig;

/// `/stats/prometheus`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/stats/prometheus",
    help: "print server stats in prometheus format",
    parameters: &[
        ("usedonly", "Only include stats that have been written by system since restart"),
        ("filter", "Regular expression (Google re2) for filtering stats"),
        ("invert_filter", "Invert the filter regex"),
        ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, summary)"),
    ],
    mutates: false,
    answer: Answer::Now(|context, query| answer(context, query).unwrap_or_else(Response::bad_request)),
};

/// Renders what a query asks for.
pub(super) fn answer(context: &Context, query: &Query) -> Result<Response, String> {
    let summaries = match query.find("histogram_buckets") {
        None | Some("" | "cumulative") => false,
        Some("summary") => true,
        Some(_) => return Err("unsupported prometheus histogram bucket mode\n".to_owned()),
    };
    let stats = Wanted::new(query)?.scrape(context);
    Ok(Response::text(render(&stats, &context.stats_config, summaries)))
}

/// Names that begin with this are shown without it, and without `envoy_`: Istio's metrics.
const CUSTOM: &str = "istiocustom.";

/// One series: labels without braces, and the stat.
struct Series<'a> {
    labels: String,
    stat: &'a Stat,
}

/// Counters, then gauges, then histograms; each kind in the order of metric names.
pub(super) fn render(stats: &[Stat], config: &StatsConfig, summaries: bool) -> String {
    let mut families: [BTreeMap<String, Vec<Series<'_>>>; 3] = Default::default();
    for stat in stats {
        let label = |(tag, value): (&str, &str)| format!("{}=\"{}\"", sanitized(tag), escaped(value));
        let (name, labels): (String, Vec<String>) = match &stat.labels {
            Some(given) => {
                let name = given.name.strip_prefix(CUSTOM);
                let name = name.map_or_else(|| format!("envoy_{}", sanitized(&given.name)), sanitized);
                (name, given.pairs.iter().map(|(tag, value)| label((tag, value))).collect())
            }
            None => {
                let tagged = config.tag(&stat.name);
                let labels = tagged.tags.iter().map(|(tag, value)| label((tag, value))).collect();
                (format!("envoy_{}", sanitized(&tagged.name)), labels)
            }
        };
        let series = Series { labels: labels.join(","), stat };
        let [counters, gauges, histograms] = &mut families;
        let family = match stat.value {
            Sample::Counter(_) => counters,
            Sample::Gauge(_) => gauges,
            Sample::Histogram(_) => histograms,
        };
        family.entry(name).or_default().push(series);
    }
    let mut out = String::new();
    let histogram = if summaries { "summary" } else { "histogram" };
    for (kind, metrics) in ["counter", "gauge", histogram].iter().zip(&families) {
        for (metric, all) in metrics {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# TYPE {metric} {kind}");
            for series in all {
                let _ = write_series(metric, series, config, summaries, &mut out);
            }
        }
    }
    out
}

fn write_series(
    metric: &str,
    series: &Series<'_>,
    config: &StatsConfig,
    summaries: bool,
    out: &mut String,
) -> std::fmt::Result {
    let labels = &series.labels;
    let all: &Distribution = match &series.stat.value {
        Sample::Counter(value) | Sample::Gauge(value) => {
            return writeln!(out, "{metric}{{{labels}}} {value}");
        }
        Sample::Histogram(all) => all,
    };
    let comma = if labels.is_empty() { "" } else { "," };
    if summaries {
        for share in QUANTILES {
            writeln!(out, "{metric}{{{labels}{comma}quantile=\"{share}\"}} {}", all.quantile(share))?;
        }
    } else {
        for bound in config.bounds(&series.stat.name).unwrap_or(&BOUNDS) {
            writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"{bound}\"}} {}", all.below(*bound))?;
        }
        writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", all.count())?;
    }
    writeln!(out, "{metric}_sum{{{labels}}} {}", all.sum)?;
    writeln!(out, "{metric}_count{{{labels}}} {}", all.count())
}

/// What Prometheus does not allow in names becomes an underscore.
fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('\n', r"\n").replace('"', "\\\"")
}
