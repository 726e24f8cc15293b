//! Which Telemetries apply to a workload, and what they come to.
//!
//! The oldest Telemetry without a selector of the mesh's root namespace comes first, then that of the
//! workload's own, then all of the latter that select the workload, oldest first. Later ones say
//! over: each of the three parts has its own way of merging, and all of them Istio's
//! (`mergeLogs`, `mergeMetrics`, `Telemetries.Tracing`). What a workload sends and what it is sent
//! are observed apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::proxy_config::{MeshOf, Overrides};
use super::security::{applies, oldest_first, targets};
use crate::model::duration::Span;
use crate::model::inputs::{Telemetries, TelemetriesByNamespace};
use crate::model::mesh::MeshConfig;
use crate::model::telemetry::{
    AccessLogging, CustomTag, MetricSelector, Metrics, ProviderRef, TagOperation, TagOverride, Telemetry,
    Tracing, WorkloadMode,
};
use crate::model::{Config, Kind, ObjectRef};
use crate::registry::Mesh;
use crate::registry::targets::Workload;

/// The side of a workload that is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// What it sends; all that a gateway does.
    Client,
    /// What it is sent.
    Server,
}

impl Side {
    /// Whether a rule for a mode is for this side.
    fn is_of(self, mode: WorkloadMode) -> bool {
        match mode {
            WorkloadMode::ClientAndServer => true,
            WorkloadMode::Client => self == Side::Client,
            WorkloadMode::Server => self == Side::Server,
        }
    }
}

/// What is observed of one side of a workload, and by whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    /// Who is told of every request and connection, in the order of their names; `None` if no
    /// Telemetry and no default provider says, so that the mesh's older settings count.
    pub(crate) logs: Option<Vec<LogTo>>,
    /// Who counts, in the order of their names.
    pub(crate) metrics: Vec<CountFor>,
    /// How requests are traced; `None` as for logs.
    pub(crate) tracing: Option<Traced>,
}

/// Access logs for a provider.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogTo {
    pub(crate) provider: String,
    /// Whether it is switched off, which is more than not being there: the mesh's older settings do
    /// not take its place.
    pub(crate) disabled: bool,
    /// The CEL expression that holds for what is logged.
    pub(crate) filter: Option<String>,
}

/// Metrics for a provider.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CountFor {
    pub(crate) provider: String,
    /// How often open connections are counted.
    pub(crate) interval: Option<Span>,
    /// Changes to metrics, in the order of their names as the Telemetry writes them.
    pub(crate) changes: Vec<MetricChange>,
}

/// What becomes of a metric.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MetricChange {
    /// Its name in Istio's filter, without the prefix.
    pub(crate) name: String,
    pub(crate) dropped: bool,
    /// Tags with the CEL expressions that give their values.
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) removed: Vec<String>,
}

/// How requests are traced.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Traced {
    /// Who gets the spans; nobody, if no provider is named.
    pub(crate) provider: Option<String>,
    pub(crate) disabled: bool,
    /// In percent.
    pub(crate) sampling: Option<f64>,
    pub(crate) tags: BTreeMap<String, CustomTag>,
    pub(crate) by_request_id: bool,
    pub(crate) istio_tags: bool,
    /// Whether servers are told nothing of the trace.
    pub(crate) not_propagated: bool,
}

/// The Telemetries that apply to a workload, those that say over others last.
pub(crate) struct TelemetriesOf;

impl Query for TelemetriesOf {
    type Key = Workload;
    type Value = Vec<Arc<Config<Telemetry>>>;
    const NAME: &'static str = "telemetries-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Vec<Arc<Config<Telemetry>>> {
        let root = cx.get::<Mesh>(&()).root_namespace.clone();
        let first_general = |namespace: &String| {
            of_namespace(cx, namespace).into_iter().find(|telemetry| is_general(&telemetry.spec))
        };
        let mut found: Vec<_> = first_general(&root).into_iter().collect();
        if workload.namespace != root {
            found.extend(first_general(&workload.namespace));
        }
        found.extend(of_namespace(cx, &workload.namespace).into_iter().filter(|telemetry| {
            let spec = &telemetry.spec;
            let targets = targets(&spec.target_ref, &spec.target_refs);
            !is_general(spec) && applies(workload, &telemetry.meta, spec.selector.as_ref(), targets)
        }));
        found
    }
}

/// The Telemetries of a namespace, oldest first.
pub(crate) fn of_namespace(cx: &Cx<'_>, namespace: &String) -> Vec<Arc<Config<Telemetry>>> {
    let keys = cx.bucket::<TelemetriesByNamespace>(namespace);
    oldest_first(keys.iter().filter_map(|key| cx.input::<Telemetries>(key)).collect())
}

/// Whether a Telemetry is for a whole namespace, or the mesh.
pub(crate) fn is_general(telemetry: &Telemetry) -> bool {
    telemetry.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
        && targets(&telemetry.target_ref, &telemetry.target_refs).is_empty()
}

/// The labels, with their values, by which Telemetries of a namespace select workloads.
pub(super) struct SelectingPairs;

impl Query for SelectingPairs {
    type Key = String;
    type Value = BTreeSet<(String, String)>;
    const NAME: &'static str = "telemetry-selecting-pairs";

    fn derive(cx: &Cx<'_>, namespace: &String) -> BTreeSet<(String, String)> {
        let keys = cx.bucket::<TelemetriesByNamespace>(namespace);
        let telemetries = keys.iter().filter_map(|key| cx.input::<Telemetries>(key));
        let mut pairs = BTreeSet::new();
        for selector in telemetries.filter_map(|telemetry| telemetry.spec.selector.clone()) {
            pairs.extend(selector.match_labels);
        }
        pairs
    }
}

/// What is observed of a side of a workload.
pub(crate) struct ObservedOf;

impl Query for ObservedOf {
    type Key = (Workload, Side);
    type Value = Observed;
    const NAME: &'static str = "observed-of";

    fn derive(cx: &Cx<'_>, (workload, side): &(Workload, Side)) -> Observed {
        let mesh = cx.get::<Mesh>(&());
        let defaults = &mesh.default_providers;
        let telemetries = cx.get::<TelemetriesOf>(workload);
        let specs = || telemetries.iter().map(|telemetry| &telemetry.spec);
        let logs: Vec<&[AccessLogging]> =
            specs().map(|spec| spec.access_logging.as_slice()).filter(|list| !list.is_empty()).collect();
        let silent = logs.is_empty() && defaults.access_logging.is_empty();
        let metrics: Vec<&Metrics> = specs().flat_map(|spec| &spec.metrics).collect();
        let tracing: Vec<&Tracing> = specs().flat_map(|spec| &spec.tracing).collect();
        let untraced = tracing.is_empty() && defaults.tracing.is_empty();
        Observed {
            logs: (!silent).then(|| merge_logs(&logs, &defaults.access_logging, *side)),
            metrics: merge_metrics(&metrics, &defaults.metrics, *side),
            tracing: (!untraced).then(|| merge_tracing(&tracing, defaults.tracing.first(), *side)),
        }
    }
}

/// Whether spans are made of a workload's requests, which then tell who it is.
pub(crate) fn is_traced(cx: &Cx<'_>, workload: Workload, side: Side, overrides: &Overrides) -> bool {
    let mesh = cx.get::<MeshOf>(overrides);
    match &cx.get::<ObservedOf>(&(workload, side)).tracing {
        Some(traced) => {
            let provider = traced.provider.as_ref().and_then(|name| mesh.provider(name));
            !traced.disabled && provider.is_some()
        }
        None => traces_by_bootstrap(&mesh),
    }
}

/// Whether the mesh's older settings ask for traces, to where a proxy's bootstrap says.
///
/// Deviation: in Istio `enableTracing`, the default, is enough. But a proxy whose bootstrap has no
/// tracer makes no spans, and would only have a listener of its own for its tags.
pub(crate) fn traces_by_bootstrap(mesh: &MeshConfig) -> bool {
    mesh.enable_tracing && mesh.default_config.tracing.is_some()
}

/// The objects that have a say in what is observed of a workload.
pub(crate) fn origins(cx: &Cx<'_>, workload: &Workload) -> Vec<ObjectRef> {
    let telemetries = cx.get::<TelemetriesOf>(workload);
    telemetries.iter().map(|telemetry| telemetry.meta.key().of(Kind::Telemetry)).collect()
}

fn names(providers: &[ProviderRef]) -> Vec<String> {
    providers.iter().map(|provider| provider.name.clone()).collect()
}

/// The providers that count, by the lists that the parts of a kind give: the last that is not empty.
fn merge_logs(levels: &[&[AccessLogging]], defaults: &[String], side: Side) -> Vec<LogTo> {
    let log = |provider: &str, disabled, filter| LogTo { provider: provider.to_owned(), disabled, filter };
    let mut found: BTreeMap<String, LogTo> = BTreeMap::new();
    if levels.is_empty() {
        found.extend(defaults.iter().map(|name| (name.clone(), log(name, false, None))));
        return found.into_values().collect();
    }
    let is_for =
        |rule: &AccessLogging| rule.r#match.as_ref().is_none_or(|selector| side.is_of(selector.mode));
    let mut in_scope: BTreeSet<String> = defaults.iter().cloned().collect();
    let mut filters: BTreeMap<String, Option<String>> = BTreeMap::new();
    for level in levels {
        let mut named = BTreeSet::new();
        for rule in level.iter().filter(|rule| is_for(rule)) {
            for name in names(&rule.providers) {
                filters.insert(name.clone(), rule.filter.as_ref().map(|filter| filter.expression.clone()));
                named.insert(name);
            }
        }
        if !named.is_empty() {
            in_scope = named;
        }
    }
    let mut inherited = defaults.to_vec();
    for rule in levels.iter().flat_map(|level| level.iter()) {
        if !rule.providers.is_empty() {
            inherited = names(&rule.providers);
        }
        for name in inherited.iter().filter(|name| in_scope.contains(*name)) {
            if !is_for(rule) {
                continue;
            }
            let disabled = rule.disabled == Some(true);
            let filter = filters.get(name).cloned().flatten().filter(|_| !disabled);
            found.insert(name.clone(), log(name, disabled, filter));
        }
    }
    found.into_values().collect()
}

/// What several overrides say of one metric.
#[derive(Clone, Debug, Default)]
struct Override {
    disabled: bool,
    tags: BTreeMap<String, TagOverride>,
}

/// What is known of a provider of metrics.
#[derive(Clone, Debug, Default)]
struct Counting {
    interval: Option<Span>,
    /// Whether all metrics are off, and so the whole filter.
    off: bool,
    /// By the names that Telemetries use.
    metrics: BTreeMap<&'static str, Override>,
    custom: BTreeMap<String, Override>,
}

fn merge_metrics(rules: &[&Metrics], defaults: &[String], side: Side) -> Vec<CountFor> {
    let mut found: BTreeMap<String, Counting> = BTreeMap::new();
    if rules.is_empty() {
        found.extend(defaults.iter().map(|name| (name.clone(), Counting::default())));
    }
    let last = rules.iter().rev().find(|rule| !rule.providers.is_empty());
    let in_scope = last.map_or_else(|| defaults.to_vec(), |rule| names(&rule.providers));
    let mut inherited = defaults.to_vec();
    for rule in rules {
        if !rule.providers.is_empty() {
            inherited = names(&rule.providers);
        }
        for provider in inherited.iter().filter(|name| in_scope.contains(name)) {
            let counting = found.entry(provider.clone()).or_default();
            counting.interval = rule.reporting_interval.or(counting.interval);
            for change in &rule.overrides {
                let selector = change.r#match.clone().unwrap_or_default();
                if !side.is_of(selector.mode) {
                    continue;
                }
                if is_all(&selector) && change.disabled == Some(true) {
                    counting.off = true;
                    continue;
                }
                // What is switched off above can be switched on again below.
                counting.off = false;
                let apply = |present: &mut Override| {
                    present.disabled = change.disabled.unwrap_or(present.disabled);
                    present.tags.extend(change.tag_overrides.clone());
                };
                match &selector.custom_metric {
                    Some(name) => apply(counting.custom.entry(name.clone()).or_default()),
                    None => {
                        for (name, _) in METRICS.iter().filter(|(name, _)| is_named(&selector, name)) {
                            apply(counting.metrics.entry(name).or_default());
                        }
                    }
                }
            }
        }
    }
    let counted = found.into_iter().filter(|(_, counting)| !counting.off);
    counted.map(|(provider, counting)| counting.finish(provider)).collect()
}

impl Counting {
    fn finish(self, provider: String) -> CountFor {
        let standard = self.metrics.into_iter().map(|(name, found)| (name.to_owned(), found));
        let mut all: Vec<(String, Override)> = standard.chain(self.custom).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let changes = all.into_iter().map(|(name, found)| {
            let (removed, tags): (Vec<_>, Vec<_>) =
                found.tags.into_iter().partition(|(_, tag)| tag.operation == TagOperation::Remove);
            let own = METRICS.iter().find(|(known, _)| *known == name);
            MetricChange {
                name: own.map_or(name, |(_, own)| (*own).to_owned()),
                dropped: found.disabled,
                tags: tags.into_iter().map(|(name, tag)| (name, tag.value)).collect(),
                removed: removed.into_iter().map(|(name, _)| name).collect(),
            }
        });
        CountFor { provider, interval: self.interval, changes: changes.collect() }
    }
}

/// The standard metrics: as Telemetries name them, and as Istio's filter does.
const METRICS: [(&str, &str); 10] = [
    ("GRPC_REQUEST_MESSAGES", "request_messages_total"),
    ("GRPC_RESPONSE_MESSAGES", "response_messages_total"),
    ("REQUEST_COUNT", "requests_total"),
    ("REQUEST_DURATION", "request_duration_milliseconds"),
    ("REQUEST_SIZE", "request_bytes"),
    ("RESPONSE_SIZE", "response_bytes"),
    ("TCP_CLOSED_CONNECTIONS", "tcp_connections_closed_total"),
    ("TCP_OPENED_CONNECTIONS", "tcp_connections_opened_total"),
    ("TCP_RECEIVED_BYTES", "tcp_received_bytes_total"),
    ("TCP_SENT_BYTES", "tcp_sent_bytes_total"),
];

fn is_all(selector: &MetricSelector) -> bool {
    use crate::model::telemetry::IstioMetric::AllMetrics;
    selector.custom_metric.is_none() && selector.metric.is_none_or(|metric| metric == AllMetrics)
}

/// Whether a selector of standard metrics means the one with a name.
fn is_named(selector: &MetricSelector, name: &str) -> bool {
    use crate::model::telemetry::IstioMetric as Metric;
    let wanted = match selector.metric.unwrap_or_default() {
        Metric::AllMetrics => return true,
        Metric::RequestCount => "REQUEST_COUNT",
        Metric::RequestDuration => "REQUEST_DURATION",
        Metric::RequestSize => "REQUEST_SIZE",
        Metric::ResponseSize => "RESPONSE_SIZE",
        Metric::TcpOpenedConnections => "TCP_OPENED_CONNECTIONS",
        Metric::TcpClosedConnections => "TCP_CLOSED_CONNECTIONS",
        Metric::TcpSentBytes => "TCP_SENT_BYTES",
        Metric::TcpReceivedBytes => "TCP_RECEIVED_BYTES",
        Metric::GrpcRequestMessages => "GRPC_REQUEST_MESSAGES",
        Metric::GrpcResponseMessages => "GRPC_RESPONSE_MESSAGES",
    };
    wanted == name
}

fn merge_tracing(rules: &[&Tracing], default: Option<&String>, side: Side) -> Traced {
    let mut traced = Traced {
        provider: default.cloned(),
        disabled: false,
        sampling: None,
        tags: BTreeMap::new(),
        by_request_id: true,
        istio_tags: true,
        not_propagated: false,
    };
    let is_for = |rule: &&&Tracing| rule.r#match.as_ref().is_none_or(|selector| side.is_of(selector.mode));
    for rule in rules.iter().filter(is_for) {
        if let Some(first) = rule.providers.first() {
            traced.provider = Some(first.name.clone());
        }
        traced.disabled = rule.disable_span_reporting.unwrap_or(traced.disabled);
        // The tags of one level replace those of another as a whole.
        if !rule.custom_tags.is_empty() {
            traced.tags.clone_from(&rule.custom_tags);
        }
        traced.sampling = rule.random_sampling_percentage.or(traced.sampling);
        traced.by_request_id = rule.use_request_id_for_trace_sampling.unwrap_or(traced.by_request_id);
        traced.istio_tags = rule.enable_istio_tags.unwrap_or(traced.istio_tags);
        traced.not_propagated = rule.disable_context_propagation.unwrap_or(traced.not_propagated);
    }
    traced
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};
    use leno_api::yaml::{self, Dialect};

    use super::{Side, merge_logs, merge_metrics};
    use crate::model::telemetry::{AccessLogging, Metrics, Telemetry};

    /// Telemetries, the widest first.
    fn telemetries(text: &str) -> Vec<Telemetry> {
        let documents = yaml::parse(text, Dialect::Kubernetes).expect("YAML");
        documents.iter().map(|one| yaml::from_node::<Telemetry>(one).expect("a Telemetry").0).collect()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
    fn check_logs(defaults: &[&str], text: &str, expected: Expect) {
        let all = telemetries(text);
        let levels: Vec<&[AccessLogging]> = all.iter().map(|one| one.access_logging.as_slice()).collect();
        let defaults: Vec<String> = defaults.iter().map(|&name| name.to_owned()).collect();
        let mut found = String::new();
        for side in [Side::Client, Side::Server] {
            let _ = write!(found, "{side:?}:");
            for log in merge_logs(&levels, &defaults, side) {
                let _ = write!(found, " {}", log.provider);
                if log.disabled {
                    found.push_str(" off");
                }
                if let Some(filter) = log.filter {
                    let _ = write!(found, " if {filter}");
                }
                found.push(';');
            }
            found.push('\n');
        }
        expected.assert_eq(&found);
    }

    #[test]
    fn logs_merge_as_in_istio() {
        check_logs(
            &["a"],
            "accessLogging: [{}]",
            expect![[r#"
            Client: a;
            Server: a;
        "#]],
        );
        // A narrower level's providers replace those of a wider one.
        check_logs(
            &["a"],
            "accessLogging: [{providers: [{name: b}]}]\n---\naccessLogging: [{providers: [{name: c}], filter: {expression: x}}]",
            expect![[r#"
                Client: c if x;
                Server: c if x;
            "#]],
        );
        // Off for one side only.
        check_logs(
            &["a"],
            "accessLogging: [{providers: [{name: b}]}]\n---\naccessLogging: [{match: {mode: SERVER}, disabled: true}]",
            expect![[r#"
                Client: b;
                Server: b off;
            "#]],
        );
        // Providers for one side leave the other alone.
        check_logs(
            &[],
            "accessLogging: [{match: {mode: CLIENT}, providers: [{name: b}, {name: a}]}]",
            expect![[r#"
                Client: a; b;
                Server:
            "#]],
        );
        // Two rules of one level add up.
        check_logs(
            &[],
            "accessLogging: [{providers: [{name: a}], filter: {expression: x}}, {providers: [{name: b}]}]",
            expect![[r#"
                Client: a if x; b;
                Server: a if x; b;
            "#]],
        );
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
    fn check_metrics(defaults: &[&str], text: &str, expected: Expect) {
        let all = telemetries(text);
        let rules: Vec<&Metrics> = all.iter().flat_map(|one| &one.metrics).collect();
        let defaults: Vec<String> = defaults.iter().map(|&name| name.to_owned()).collect();
        let mut found = String::new();
        for side in [Side::Client, Side::Server] {
            let _ = writeln!(found, "{side:?}:");
            for counted in merge_metrics(&rules, &defaults, side) {
                let _ = writeln!(found, "  {} {:?}", counted.provider, counted.interval.map(|span| span.0));
                for change in counted.changes {
                    let dropped = if change.dropped { " dropped" } else { "" };
                    let _ = writeln!(
                        found,
                        "    {}{dropped} {:?} -{:?}",
                        change.name, change.tags, change.removed
                    );
                }
            }
        }
        expected.assert_eq(&found);
    }

    #[test]
    fn metrics_merge_as_in_istio() {
        check_metrics(
            &["prometheus"],
            "metrics: []",
            expect![[r#"
            Client:
              prometheus None
            Server:
              prometheus None
        "#]],
        );
        check_metrics(
            &["prometheus"],
            "metrics: [{overrides: [{disabled: true}]}]\n---\nmetrics: [{reportingInterval: 5s, overrides: [{match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {x: {value: why}, z: {operation: REMOVE}}}]}]",
            expect![[r#"
                Client:
                  prometheus Some(5s)
                    requests_total {"x": "why"} -["z"]
                Server:
            "#]],
        );
        check_metrics(
            &["prometheus"],
            "metrics: [{providers: [{name: other}]}]\n---\nmetrics: [{overrides: [{match: {customMetric: mine}, disabled: true}]}]",
            expect![[r#"
                Client:
                  other None
                    mine dropped {} -[]
                Server:
                  other None
                    mine dropped {} -[]
            "#]],
        );
    }
}
