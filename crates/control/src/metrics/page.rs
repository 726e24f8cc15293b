//! The page of metrics: what was counted, and what there is now.
//!
//! It is made on the control loop, as it costs little there: sums over services are derived and kept up to
//! date (`sums.rs`), and what is left is a walk over the connected proxies and over the faults.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use leno_derive::Graph;
use leno_xds::TypeUrl;

use super::faults::FAULTS;
use super::sums::AllSums;
use super::text::Text;
use super::{Counts, Histogram, type_label};
use crate::access::Refusals;
use crate::analyze::validity::Validities;
use crate::ca::{Ca, CaSeen};
use crate::inject::{self, webhook::Webhook};
use crate::model::diagnostic::{Diagnostic, Severity};
use crate::model::inputs::{DestinationRules, VirtualServices};
use crate::model::read::known;
use crate::model::{Kind, ObjectRef};
use crate::push::Push;

/// What there is to be seen.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'s> {
    pub(crate) graph: &'s Graph,
    pub(crate) push: &'s Push,
    /// All that is wrong with objects.
    pub(crate) diagnostics: &'s [Diagnostic],
    /// The certificate authority, if there is one.
    pub(crate) ca: Option<&'s Ca>,
    /// The webhooks, if they are served.
    pub(crate) webhook: Option<&'s Webhook>,
    pub(crate) refusals: &'s Refusals,
    /// Whether who asks may see which credentials there are.
    pub(crate) names: bool,
}

/// The page.
pub(crate) fn page(seen: Seen<'_>) -> String {
    let mut text = Text::default();
    about_build(&mut text);
    about_pushes(&mut text, seen.push.counts());
    about_changes(&mut text, seen.push.counts());
    about_proxies(&mut text, seen.push);
    about_registry(&mut text, seen.graph);
    about_certificates(&mut text, seen.graph, seen.names);
    about_faults(&mut text, seen.diagnostics);
    if let Some(ca) = seen.ca {
        about_ca(&mut text, &ca.seen());
    }
    if let Some(webhook) = seen.webhook {
        about_webhooks(&mut text, &webhook.counts);
    }
    about_refusals(&mut text, seen.refusals, seen.webhook);
    about_process(&mut text);
    text.finish()
}

fn about_build(text: &mut Text) {
    let version = env!("CARGO_PKG_VERSION");
    text.family("pilot_info", "gauge", "Pilot version and build information.");
    text.sample("pilot_info", &[("version", version)], 1.0);
    text.family("istio_build", "gauge", "Istio component build info");
    text.sample("istio_build", &[("component", "pilot"), ("tag", version)], 1.0);
}

fn about_pushes(text: &mut Text, counts: &Counts) {
    let by_type = |text: &mut Text, name: &str, help: &str, values: &BTreeMap<TypeUrl, u64>| {
        text.family(name, "counter", help);
        for (type_url, value) in values {
            text.sample(name, &[("type", &type_label(type_url))], *value as f64);
        }
    };
    by_type(text, "pilot_xds_pushes", "Responses sent to proxies, by type.", &counts.pushes);
    by_type(text, "pilot_total_xds_rejects", "Responses that proxies have refused.", &counts.rejects);
    by_type(text, "pilot_xds_expired_nonce", "Requests with an expired nonce.", &counts.expired);
    let spread = |text: &mut Text, name: &str, help: &str, values: &BTreeMap<TypeUrl, Histogram>| {
        text.family(name, "histogram", help);
        for (type_url, histogram) in values {
            text.histogram(name, &[("type", &type_label(type_url))], histogram);
        }
    };
    let help = "Time in seconds to make and send one response.";
    spread(text, "pilot_xds_push_time", help, &counts.push_time);
    let help = "Bytes of the resources of a response.";
    spread(text, "pilot_xds_config_size_bytes", help, &counts.sizes);
    let mut single = |name: &str, help: &str, histogram: &Histogram| {
        text.family(name, "histogram", help);
        text.histogram(name, &[], histogram);
    };
    let help = "Time in seconds that a proxy has something to get before it was sent all of it.";
    single("pilot_proxy_queue_time", help, &counts.queue);
    let help = "Delay in seconds between a change and a proxy having taken all that follows from it.";
    single("pilot_proxy_convergence_time", help, &counts.convergence);
    let help = "Delay in seconds by which changes were held back to come together.";
    single("pilot_debounce_time", help, &counts.debounce);
    let name = "leno_propagation_seconds";
    let help = "From the arrival of a change until the last proxy that it concerns has taken it, by the kind \
                of the objects.";
    text.family(name, "histogram", help);
    for (kind, histogram) in &counts.propagation {
        text.histogram(name, &[("kind", &kind.to_string())], histogram);
    }
}

fn about_webhooks(text: &mut Text, counts: &inject::webhook::Counts) {
    let counters = [
        ("sidecar_injection_requests_total", "Total number of sidecar injection requests.", &counts.requests),
        (
            "sidecar_injection_success_total",
            "Total number of successful sidecar injection requests.",
            &counts.successes,
        ),
        (
            "sidecar_injection_failure_total",
            "Total number of failed sidecar injection requests.",
            &counts.failures,
        ),
        (
            "sidecar_injection_skip_total",
            "Total number of skipped sidecar injection requests.",
            &counts.skips,
        ),
        ("galley_validation_passed", "Resource is valid", &counts.validated),
        ("galley_validation_failed", "Resource validation failed", &counts.rejected),
        ("webhook_patch_attempts_total", "Webhook patching attempts", &counts.patched),
        (
            "leno_injection_configuration_errors_total",
            "Configurations of injection that could not be used.",
            &counts.bad_configurations,
        ),
    ];
    for (name, help, value) in counters {
        text.family(name, "counter", help);
        text.sample(name, &[], value.load(Ordering::Relaxed) as f64);
    }
    let by_status = [
        ("galley_validation_http_error", "Resource validation http serve errors", &counts.validation_errors),
        ("leno_webhook_http_errors_total", "Requests that webhooks have refused.", &counts.http_errors),
    ];
    for (name, help, values) in by_status {
        text.family(name, "counter", help);
        for (status, value) in &*values.lock().unwrap_or_else(PoisonError::into_inner) {
            text.sample(name, &[("status", &status.to_string())], *value as f64);
        }
    }
}

/// Who was not let in.
fn about_refusals(text: &mut Text, refusals: &Refusals, webhook: Option<&Webhook>) {
    let name = "leno_refused_total";
    text.family(name, "counter", "Connections, callers and requests that were refused, by port and reason.");
    let xds = &refusals.xds;
    let mut counts = vec![
        ("xds", "handshake", &xds.handshakes),
        ("xds", "unauthenticated", &xds.callers),
        ("xds", "crowded", &xds.crowds),
        ("xds", "silent", &xds.silent),
        ("xds", "message", &xds.messages),
        ("xds", "identity", &refusals.identities),
        ("debug", "unauthenticated", &refusals.viewers),
        ("debug", "crowded", &refusals.pages),
    ];
    if let Some(webhook) = webhook {
        let counts_of = &webhook.counts;
        counts.push(("webhooks", "handshake", &counts_of.handshakes));
        counts.push(("webhooks", "crowded", &counts_of.crowds));
    }
    for (port, reason, value) in counts {
        text.sample(name, &[("port", port), ("reason", reason)], value.load(Ordering::Relaxed) as f64);
    }
}

fn about_ca(text: &mut Text, seen: &CaSeen) {
    let counters = [
        ("citadel_server_csr_count", "The number of CSRs received by Citadel server.", seen.requests),
        (
            "citadel_server_authentication_failure_count",
            "The number of authentication failures.",
            seen.authentication_failures,
        ),
        (
            "citadel_server_csr_parsing_err_count",
            "The number of errors occurred when parsing the CSR.",
            seen.parsing_errors,
        ),
        (
            "citadel_server_success_cert_issuance_count",
            "The number of certificates issuances that have succeeded.",
            seen.issued,
        ),
    ];
    for (name, help, value) in counters {
        text.family(name, "counter", help);
        text.sample(name, &[], value as f64);
    }
    let name = "citadel_server_csr_sign_err_count";
    text.family(name, "counter", "The number of errors occurred when signing the CSR.");
    for (error, value) in &seen.signing_errors {
        text.sample(name, &[("error", error)], *value as f64);
    }
    let times = [
        ("root_cert", "the root cert", seen.root_expires),
        ("cert_chain", "the certificate chain", seen.chain_expires),
        // Not istiod's.
        ("crl", "the first certificate revocation list", seen.revocations_expire),
    ];
    for (which, words, expires) in times {
        let Some(expires) = expires else { continue };
        let name = format!("citadel_server_{which}_expiry_timestamp");
        text.family(&name, "gauge", &format!("The unix timestamp, in seconds, when {words} will expire."));
        text.sample(&name, &[], expires as f64);
        let name = format!("citadel_server_{which}_expiry_seconds");
        let help = format!(
            "The time remaining, in seconds, before {words} will expire. A negative value indicates that it \
             is expired."
        );
        text.family(&name, "gauge", &help);
        text.sample(&name, &[], (expires - seen.now) as f64);
    }
}

fn about_changes(text: &mut Text, counts: &Counts) {
    let by_type = |text: &mut Text, name: &str, help: &str, values: &BTreeMap<&'static str, u64>| {
        text.family(name, "counter", help);
        for (r#type, value) in values {
            text.sample(name, &[("type", r#type)], *value as f64);
        }
    };
    by_type(text, "pilot_push_triggers", "Pushes, by what has caused them.", &counts.triggers);
    by_type(text, "pilot_inbound_updates", "Changes received, by sort.", &counts.inbound);
    about_validation(text, counts);
    let families = [
        ("pilot_k8s_cfg_events", "Changes of configuration, by kind and event.", false),
        ("pilot_k8s_reg_events", "Changes of what is behind services, by kind and event.", true),
    ];
    for (name, help, of_registry) in families {
        text.family(name, "counter", help);
        for ((kind, event), value) in &counts.events {
            if kind.is_registry() == of_registry {
                let labels = [("type", kind.to_string()), ("event", (*event).to_owned())];
                let labels: Vec<(&str, &str)> =
                    labels.iter().map(|(name, value)| (*name, &**value)).collect();
                text.sample(name, &labels, *value as f64);
            }
        }
    }
}

/// Istiod counts what its webhook is asked about; here all that is read is looked at, wherever it comes
/// from.
fn about_validation(text: &mut Text, counts: &Counts) {
    let labels = |kind: Kind| {
        let row = known().find(|row| row.reads == Some(kind));
        let version = row.as_ref().and_then(|row| row.versions.first().copied()).unwrap_or_default();
        let name = row.as_ref().map(|row| row.kind.to_ascii_lowercase()).unwrap_or_default();
        let plural = name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
        (row.map_or("", |row| row.group), version, plural)
    };
    text.family("galley_validation_passed", "counter", "Objects that were read and are valid.");
    for (kind, count) in &counts.passed {
        let (group, version, resource) = labels(*kind);
        let labels = [("group", group), ("version", version), ("resource", &resource)];
        text.sample("galley_validation_passed", &labels, *count as f64);
    }
    text.family("galley_validation_failed", "counter", "Objects that were read and are not valid.");
    for ((kind, reason), count) in &counts.failed {
        let (group, version, resource) = labels(*kind);
        let labels = [("group", group), ("version", version), ("resource", &resource), ("reason", *reason)];
        text.sample("galley_validation_failed", &labels, *count as f64);
    }
}

fn about_proxies(text: &mut Text, push: &Push) {
    let mut versions: BTreeMap<&str, u32> = BTreeMap::new();
    for session in push.sessions() {
        *versions.entry(session.about.version.as_str()).or_default() += 1;
    }
    text.family("pilot_xds", "gauge", "Number of endpoints connected to this pilot using XDS.");
    for (version, count) in &versions {
        let version = if version.is_empty() { "unknown" } else { version };
        text.sample("pilot_xds", &[("version", version)], f64::from(*count));
    }
    let rejecting = [
        (TypeUrl::Cluster, "pilot_xds_cds_reject", "Pilot rejected CDS configs."),
        (TypeUrl::Endpoint, "pilot_xds_eds_reject", "Pilot rejected EDS."),
        (TypeUrl::Listener, "pilot_xds_lds_reject", "Pilot rejected LDS."),
        (TypeUrl::Route, "pilot_xds_rds_reject", "Pilot rejected RDS."),
    ];
    for (wanted, name, help) in rejecting {
        text.family(name, "gauge", help);
        for session in push.refusing() {
            for (_, message) in session.refusals().filter(|(type_url, _)| **type_url == wanted) {
                text.sample(name, &[("node", session.node.as_str()), ("err", message)], 1.0);
            }
        }
    }
    let flying = push.propagation().flying();
    let help = "Changes that not all proxies concerned have taken yet.";
    text.single("leno_changes_under_way", "gauge", help, flying as f64);
}

fn about_registry(text: &mut Text, graph: &Graph) {
    let sum = graph.get::<AllSums>(&());
    let gauges = [
        ("pilot_services", "Total services known to pilot.", sum.services),
        (
            "pilot_virt_services",
            "Total virtual services known to pilot.",
            graph.keys::<VirtualServices>().len(),
        ),
        // Istiod does not tell.
        ("leno_destination_rules", "Total destination rules.", graph.keys::<DestinationRules>().len()),
        ("endpoint_no_pod", "Endpoints without an associated pod.", sum.without_pod),
        ("pilot_no_ip", "Pods not found in the endpoint table, possibly invalid.", sum.without_address),
        ("pilot_endpoint_not_ready", "Endpoint found in unready state.", sum.not_ready),
        ("pilot_eds_no_instances", "Number of services without instances.", sum.empty),
        ("pilot_dns_cluster_without_endpoints", "DNS clusters without endpoints.", sum.empty_dns),
        (
            "pilot_duplicate_envoy_clusters",
            "Duplicate envoy clusters caused by service entries with same hostname",
            sum.duplicates,
        ),
    ];
    for (name, help, value) in gauges {
        text.single(name, "gauge", help, value as f64);
    }
}

/// Istiod does not tell; its agents do, of what they hold. Everybody may ask for metrics: who is on this machine
/// is told of each credential, others only when the first of a kind ends.
fn about_certificates(text: &mut Text, graph: &Graph, names: bool) {
    let validities = graph.get::<Validities>(&());
    let mut first: BTreeMap<Kind, i64> = BTreeMap::new();
    for one in validities.iter() {
        let earliest = first.entry(one.object.kind).or_insert(one.to);
        *earliest = one.to.min(*earliest);
    }
    let name = "leno_first_certificate_expiry_timestamp";
    let help = "The unix timestamp, in seconds, when the first of the certificates that proxies are given will \
                expire, by the kind of objects that hold them.";
    text.family(name, "gauge", help);
    for (kind, to) in first {
        text.sample(name, &[("kind", &kind.to_string())], to as f64);
    }
    if !names {
        return;
    }
    let name = "leno_certificate_expiry_timestamp";
    let help = "The unix timestamp, in seconds, when a certificate that proxies are given will expire.";
    text.family(name, "gauge", help);
    for one in validities.iter() {
        let kind = one.object.kind.to_string();
        let ObjectRef { namespace, name: object, .. } = &one.object;
        let labels = [("kind", kind.as_str()), ("namespace", namespace), ("name", object), ("key", one.key)];
        text.sample(name, &labels, one.to as f64);
    }
}

/// Faults that istiod counts, found by analysis.
fn about_faults(text: &mut Text, diagnostics: &[Diagnostic]) {
    for fault in FAULTS {
        let count = diagnostics.iter().filter(|it| fault.is(it)).count();
        text.single(fault.metric, "gauge", fault.help, count as f64);
    }
    let name = "pilot_total_rejected_configs";
    text.family(name, "gauge", "Objects that are not used, as they are not valid.");
    let mut rejected: BTreeMap<&str, usize> = BTreeMap::new();
    for diagnostic in diagnostics.iter().filter(|it| it.severity == Severity::Error && it.code != "nack") {
        *rejected.entry(&diagnostic.kind).or_default() += 1;
    }
    for (kind, count) in rejected {
        text.sample(name, &[("type", kind)], count as f64);
    }
}

/// What Prometheus' clients say of their processes.
fn about_process(text: &mut Text) {
    // Where there is no such file there are no such numbers.
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()
    };
    if let Some(resident) = kilobytes("VmRSS:") {
        let help = "Resident memory size in bytes.";
        text.single("process_resident_memory_bytes", "gauge", help, resident * 1024.0);
    }
    if let Some(size) = kilobytes("VmSize:") {
        text.single("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", size * 1024.0);
    }
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The name of the program, in parentheses, may contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // Linux counts in hundredths of a second for everybody outside the kernel.
    let seconds = (ticks(11) + ticks(12)) / 100.0;
    let help = "Total user and system CPU time spent in seconds.";
    text.single("process_cpu_seconds_total", "counter", help, seconds);
}
