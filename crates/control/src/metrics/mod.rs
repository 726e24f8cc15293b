//! What the control plane counts, as `/metrics` shows it: under istiod's names where they mean the
//! same, under `leno_` where istiod has nothing like it.
//!
//! What happens is counted as it happens, in [`Counts`] (a number more for what was done anyway);
//! what there is, is asked for when somebody looks, in `page.rs`, with what `sums.rs` sums up of
//! services and the faults of `faults.rs`. `text.rs` writes Prometheus' format.

pub(crate) mod faults;
mod page;
mod sums;
mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use leno_base::Name;
use leno_xds::TypeUrl;

use crate::model::diagnostic::{Diagnostic, Severity};
use crate::model::read::known;
use crate::model::{Change, Kind, ObjectRef};
use crate::translate::{name_table, trust_bundle};

pub(crate) use self::page::{Seen, page};

/// Istiod's bounds of `pilot_xds_push_time`, seconds.
const PUSH_TIME: &[f64] = &[0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// Istiod's bounds of what a proxy waits, seconds.
const WAIT: &[f64] = &[0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// Istiod's bounds of `pilot_xds_config_size_bytes`.
const SIZE: &[f64] = &[1.0, 10_000.0, 1_000_000.0, 4_000_000.0, 10_000_000.0, 40_000_000.0];

/// Bounds of `leno_propagation_seconds`.
const PROPAGATION: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The types that we make beside those that have names of their own in xDS.
const MADE: [&str; 2] = [name_table::TYPE_URL, trust_bundle::TYPE_URL];

/// How often values lay in which range.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    /// Upper bounds, inclusive, ascending.
    bounds: &'static [f64],
    /// How many lay at or below each bound and above the one before; the last: above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Counts a value.
    pub(crate) fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
    }

    /// Counts a time, in seconds.
    fn observe_time(&mut self, time: Duration) {
        self.observe(time.as_secs_f64());
    }
}

/// What has happened since the start.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Responses sent.
    pushes: BTreeMap<TypeUrl, u64>,
    /// How long it took to make a response.
    push_time: BTreeMap<TypeUrl, Histogram>,
    /// Bytes of a response's resources.
    sizes: BTreeMap<TypeUrl, Histogram>,
    /// From a proxy's having something to get until it was sent all of it.
    queue: Histogram,
    /// From a change until a proxy has taken all that follows from it.
    convergence: Histogram,
    /// Refusals.
    rejects: BTreeMap<TypeUrl, u64>,
    /// Requests that answer an older response than the last.
    expired: BTreeMap<TypeUrl, u64>,
    /// From a change's arrival until the last proxy that it concerns has taken it, by the kinds of
    /// the objects that have changed.
    propagation: BTreeMap<Kind, Histogram>,
    /// Why something was to be pushed.
    triggers: BTreeMap<&'static str, u64>,
    /// What came in, as istiod sorts it.
    inbound: BTreeMap<&'static str, u64>,
    /// Changes of objects, by kind and by what became of them.
    events: BTreeMap<(Kind, &'static str), u64>,
    /// Objects of Istio's that were read and are valid.
    passed: BTreeMap<Kind, u64>,
    /// Those that are not, by why.
    failed: BTreeMap<(Kind, &'static str), u64>,
    /// How long changes were held back to come together.
    debounce: Histogram,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            pushes: BTreeMap::new(),
            push_time: BTreeMap::new(),
            sizes: BTreeMap::new(),
            queue: Histogram::new(WAIT),
            convergence: Histogram::new(WAIT),
            rejects: BTreeMap::new(),
            expired: BTreeMap::new(),
            propagation: BTreeMap::new(),
            triggers: BTreeMap::new(),
            inbound: BTreeMap::new(),
            events: BTreeMap::new(),
            passed: BTreeMap::new(),
            failed: BTreeMap::new(),
            debounce: Histogram::new(PUSH_TIME),
        }
    }
}

impl Counts {
    /// A response was made and sent.
    pub(crate) fn on_push(&mut self, type_url: &TypeUrl, took: Duration, bytes: usize) {
        let type_url = counted(type_url);
        count(&mut self.pushes, &type_url, 1);
        entry(&mut self.push_time, &type_url, PUSH_TIME).observe_time(took);
        // More than 2^52 bytes do not fit into a message.
        entry(&mut self.sizes, &type_url, SIZE).observe(bytes as f64);
    }

    /// A proxy was sent all that it was to get.
    pub(crate) fn on_sent(&mut self, waited: Duration) {
        self.queue.observe_time(waited);
    }

    /// A proxy has taken all that it was to get.
    pub(crate) fn on_converged(&mut self, took: Duration) {
        self.convergence.observe_time(took);
    }

    /// A proxy has refused a response.
    pub(crate) fn on_reject(&mut self, type_url: &TypeUrl) {
        count(&mut self.rejects, &counted(type_url), 1);
    }

    /// A proxy has answered a response that is not the last.
    pub(crate) fn on_expired(&mut self, type_url: &TypeUrl) {
        count(&mut self.expired, &counted(type_url), 1);
    }

    /// Proxies have asked for something.
    pub(crate) fn on_asked(&mut self) {
        count(&mut self.triggers, &"proxyrequest", 1);
    }

    /// All proxies that a change concerns have taken it.
    pub(crate) fn on_propagated(&mut self, kind: Kind, took: Duration) {
        entry(&mut self.propagation, &kind, PROPAGATION).observe_time(took);
    }

    /// The sources have found faults, other ones than before perhaps.
    pub(crate) fn on_faults(&mut self, before: &[Diagnostic], now: &[Diagnostic]) {
        for fault in now.iter().filter(|it| it.severity == Severity::Error && !before.contains(it)) {
            let mut kinds = known().filter(|row| row.kind == fault.kind).filter_map(|row| row.reads);
            let Some(kind) = kinds.find(|kind| is_istios(*kind)) else { continue };
            let reason = if fault.code == "parse-error" { "yaml_decode_error" } else { "invalid_resource" };
            count(&mut self.failed, &(kind, reason), 1);
        }
    }

    /// Changes have come; `is_known` tells whether an object was there before.
    pub(crate) fn on_changes(
        &mut self,
        changes: &[Change],
        waited: Duration,
        is_known: impl Fn(&ObjectRef) -> bool,
    ) {
        let mut triggers: Vec<&'static str> = Vec::new();
        for change in changes {
            let object = change.object();
            let event = match change {
                Change::Remove(_) => "delete",
                Change::Set(..) if is_known(object) => "update",
                Change::Set(..) => "add",
            };
            count(&mut self.events, &(object.kind, event), 1);
            if event != "delete" && is_istios(object.kind) {
                count(&mut self.passed, &object.kind, 1);
            }
            let inbound = match (object.kind, event) {
                (kind, _) if kind.is_endpoint() => "eds",
                (Kind::Service, "delete") => "svcdelete",
                (Kind::Service, _) => "svc",
                _ => "config",
            };
            count(&mut self.inbound, &inbound, 1);
            let trigger = match object.kind {
                kind if kind.is_endpoint() => "endpoint",
                Kind::Service | Kind::ServiceEntry => "service",
                Kind::Secret | Kind::ConfigMap => "secret",
                Kind::Namespace => "namespace",
                Kind::MeshConfig => "global",
                _ => "config",
            };
            if !triggers.contains(&trigger) {
                triggers.push(trigger);
            }
        }
        triggers.iter().for_each(|trigger| count(&mut self.triggers, trigger, 1));
        if !changes.is_empty() {
            self.debounce.observe_time(waited);
        }
    }
}

/// Whether istiod's webhook would look at objects of the kind.
fn is_istios(kind: Kind) -> bool {
    let row = known().find(|row| row.reads == Some(kind));
    row.is_some_and(|row| row.group.ends_with(".istio.io"))
}

fn count<K: Ord + Clone>(counts: &mut BTreeMap<K, u64>, key: &K, by: u64) {
    match counts.get_mut(key) {
        Some(count) => *count += by,
        None => drop(counts.insert(key.clone(), by)),
    }
}

fn entry<'m, K: Ord + Clone>(
    all: &'m mut BTreeMap<K, Histogram>,
    key: &K,
    bounds: &'static [f64],
) -> &'m mut Histogram {
    all.entry(key.clone()).or_insert_with(|| Histogram::new(bounds))
}

/// Under which type something is counted: whoever connects may ask for types of any name, and what is
/// counted is never forgotten.
fn counted(type_url: &TypeUrl) -> Cow<'_, TypeUrl> {
    match type_url {
        TypeUrl::Other(url) if !MADE.contains(&url.as_str()) => {
            Cow::Owned(TypeUrl::Other(Name::new("other")))
        }
        known => Cow::Borrowed(known),
    }
}

/// What istiod's metrics call a type.
pub(crate) fn type_label(type_url: &TypeUrl) -> String {
    match type_url {
        TypeUrl::Other(url) if url.ends_with(".NameTable") => "nds".to_owned(),
        TypeUrl::Other(url) if url.ends_with(".ProxyConfig") => "pcds".to_owned(),
        TypeUrl::Other(url) => url.to_string(),
        known => known.short().to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leno_xds::TypeUrl;

    use super::{Counts, Histogram, WAIT, type_label};
    use crate::translate::name_table;

    #[test]
    fn values_fall_into_the_range_that_ends_with_them() {
        let mut histogram = Histogram::new(WAIT);
        [0.0, 0.1, 0.2, 30.0, 31.0].into_iter().for_each(|value| histogram.observe(value));
        assert_eq!(histogram.counts, [2, 1, 0, 0, 0, 0, 0, 1, 1]);
        assert!((histogram.sum - 61.3).abs() < 1e-9);
    }

    #[test]
    fn types_that_strangers_make_up_are_counted_as_one() {
        let mut counts = Counts::default();
        for index in 0..100 {
            let made_up = TypeUrl::from(format!("type.googleapis.com/x{index}").as_str());
            counts.on_push(&made_up, Duration::ZERO, 0);
            counts.on_reject(&made_up);
            counts.on_expired(&made_up);
        }
        counts.on_push(&TypeUrl::Cluster, Duration::ZERO, 0);
        counts.on_push(&TypeUrl::from(name_table::TYPE_URL), Duration::ZERO, 0);
        let mut pushes: Vec<_> = counts.pushes.iter().map(|(it, count)| (type_label(it), *count)).collect();
        pushes.sort();
        let expected = [("cds", 1), ("nds", 1), ("other", 100)];
        assert_eq!(pushes, expected.map(|(name, count)| (name.to_owned(), count)));
        let sizes = [counts.push_time.len(), counts.sizes.len(), counts.rejects.len(), counts.expired.len()];
        assert_eq!(sizes, [3, 3, 1, 1]);
    }
}
