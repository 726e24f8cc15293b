//! Which clusters workloads use, as far as their proxies have shown it.
//!
//! A sidecar that asks for clusters when something is first sent there is told of those that it or
//! its like have asked for, so that the first request after a restart, or of a new replica, need not
//! wait. What is known is not kept by the control plane alone: a proxy that connects says what it holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;

use crate::scope::ProxyKey;

/// How long a cluster is known that no proxy asks for by its name. One that is still used then is
/// asked for once more, and does not go before that.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// Labels in which replicas of one workload differ, or its revisions.
const PASSING: [&str; 6] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// Those who are taken to call the same services: the proxies of a workload, whatever its revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kin {
    namespace: String,
    labels: BTreeMap<String, String>,
}

impl Kin {
    /// Those that a proxy belongs to.
    pub(crate) fn of(key: &ProxyKey) -> Kin {
        let labels = key.labels.iter().filter(|(name, _)| !PASSING.contains(&name.as_str()));
        let labels = labels.map(|(name, value)| (name.clone(), value.clone()));
        Kin { namespace: key.namespace.clone(), labels: labels.collect() }
    }
}

/// What is known of all.
#[derive(Debug, Default)]
pub(crate) struct Learnt {
    all: HashMap<Kin, Known>,
    /// Those whose proxies may not ask for something any more.
    untidy: HashSet<Kin>,
}

/// What is known of some.
#[derive(Debug, Default)]
struct Known {
    groups: HashSet<Arc<ProxyKey>>,
    /// The clusters, and since when nobody asks for them by their names, if nobody does.
    clusters: BTreeMap<Name, Option<Instant>>,
}

impl Learnt {
    /// Proxies of a group belong to some.
    pub(crate) fn join(&mut self, kin: &Kin, group: &Arc<ProxyKey>) {
        self.all.entry(kin.clone()).or_default().groups.insert(Arc::clone(group));
    }

    /// The group has gone.
    pub(crate) fn leave(&mut self, kin: &Kin, group: &Arc<ProxyKey>) {
        if let Some(known) = self.all.get_mut(kin) {
            known.groups.remove(group);
        }
    }

    /// A proxy asks for clusters; true if some were not known.
    pub(crate) fn on_asked(&mut self, kin: &Kin, names: &[Name]) -> bool {
        let Some(known) = self.all.get_mut(kin).filter(|_| !names.is_empty()) else { return false };
        let insert = |name: &Name| known.clusters.insert(name.clone(), None).is_none();
        names.iter().map(insert).fold(false, |some, is_new| some | is_new)
    }

    /// A proxy has clusters, from an earlier stream; true if some were not known.
    pub(crate) fn on_held(&mut self, kin: &Kin, names: &[Name], now: Instant) -> bool {
        let Some(known) = self.all.get_mut(kin) else { return false };
        let mut some = false;
        for name in names {
            known.clusters.entry(name.clone()).or_insert_with(|| {
                some = true;
                Some(now)
            });
        }
        some
    }

    /// Proxies of these may not ask for something any more.
    pub(crate) fn on_changed(&mut self, kin: &Kin) {
        if !self.untidy.contains(kin) {
            self.untidy.insert(kin.clone());
        }
    }

    /// The clusters that are known to be used by some.
    pub(crate) fn clusters(&self, kin: &Kin) -> impl Iterator<Item = &Name> + use<'_> {
        self.all.get(kin).into_iter().flat_map(|known| known.clusters.keys())
    }

    /// The groups of these.
    pub(crate) fn groups(&self, kin: &Kin) -> Vec<Arc<ProxyKey>> {
        self.all.get(kin).map(|known| known.groups.iter().cloned().collect()).unwrap_or_default()
    }

    /// Forgets what nobody has asked for in a long time; gives the groups that this concerns.
    /// `is_named`: whether a proxy of a group asks for a cluster by its name. `exists`: whether there is
    /// such a cluster for it.
    pub(crate) fn tidy(
        &mut self,
        now: Instant,
        is_named: impl Fn(&Arc<ProxyKey>, &Name) -> bool,
        exists: impl Fn(&Arc<ProxyKey>, &Name) -> bool,
    ) -> Vec<Arc<ProxyKey>> {
        for kin in std::mem::take(&mut self.untidy) {
            let Some(known) = self.all.get_mut(&kin) else { continue };
            for (name, unnamed) in &mut known.clusters {
                if known.groups.iter().any(|group| is_named(group, name)) {
                    *unnamed = None;
                } else {
                    unnamed.get_or_insert(now);
                }
            }
            // Of what there is not nobody need be told.
            let groups = &known.groups;
            known.clusters.retain(|name, unnamed| {
                unnamed.is_none() || groups.is_empty() || groups.iter().any(|group| exists(group, name))
            });
        }
        let mut concerned = Vec::new();
        let is_over =
            |since: &Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) >= KEEP);
        self.all.retain(|_, known| {
            let before = known.clusters.len();
            known.clusters.retain(|_, unnamed| !is_over(unnamed));
            if known.clusters.len() != before {
                concerned.extend(known.groups.iter().cloned());
            }
            !(known.groups.is_empty() && known.clusters.is_empty())
        });
        concerned
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use leno_base::Name;
    use leno_derive::Graph;

    use super::{KEEP, Kin, Learnt};
    use crate::push::node;
    use crate::scope::ProxyKey;
    use crate::translate::resource::{object, text};

    fn proxy(labels: [(&'static str, &'static str); 2]) -> Arc<ProxyKey> {
        let labels = object(labels.map(|(name, value)| (name, text(value))));
        let node = leno_api::proto::envoy::config::core::v3::Node {
            id: "sidecar~10.0.0.5~web-1.a~a.svc.cluster.local".to_owned(),
            metadata: Some(prost_types::Struct { fields: [("LABELS".to_owned(), labels)].into() }),
            ..Default::default()
        };
        Arc::new(node::parse(&Graph::new(), &node).expect("a good node").key)
    }

    fn names(learnt: &Learnt, kin: &Kin) -> Vec<String> {
        learnt.clusters(kin).map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_learnt_outlives_revisions_and_not_for_ever() {
        let [first, second] = ["1", "2"].map(|hash| proxy([("app", "web"), ("pod-template-hash", hash)]));
        let other = proxy([("app", "db"), ("pod-template-hash", "1")]);
        let kin = Kin::of(&first);
        assert_eq!(kin, Kin::of(&second));
        assert_ne!(kin, Kin::of(&other));
        let (a, b, none) = (Name::new("a"), Name::new("b"), Name::new("none"));
        let start = Instant::now();
        let mut learnt = Learnt::default();
        learnt.join(&kin, &first);
        assert!(learnt.on_asked(&kin, &[a.clone(), none]));
        assert!(!learnt.on_asked(&kin, std::slice::from_ref(&a)) && !learnt.on_asked(&kin, &[]));
        assert!(learnt.on_held(&kin, &[a, b], start));
        assert_eq!(names(&learnt, &kin), ["a", "b", "none"]);
        assert!(learnt.clusters(&Kin::of(&other)).next().is_none());
        // Who asks for them by name has them for as long as he does, and what does not exist no longer.
        let exists = |_: &Arc<ProxyKey>, name: &Name| name.as_str() != "none";
        learnt.on_changed(&kin);
        assert!(learnt.tidy(start, |_, name| name.as_str() != "b", exists).is_empty());
        assert_eq!(names(&learnt, &kin), ["a", "b", "none"]);
        learnt.on_changed(&kin);
        assert!(learnt.tidy(start, |_, name| name.as_str() == "a", exists).is_empty());
        assert_eq!(names(&learnt, &kin), ["a", "b"]);
        // The next revision profits.
        learnt.join(&kin, &second);
        learnt.leave(&kin, &first);
        let later = start + KEEP;
        assert_eq!(learnt.tidy(later - Duration::from_secs(1), |_, _| true, exists), []);
        assert_eq!(learnt.tidy(later, |_, _| true, exists), [Arc::clone(&second)]);
        assert_eq!(names(&learnt, &kin), ["a"]);
        // Nobody asks for it any more.
        learnt.leave(&kin, &second);
        learnt.on_changed(&kin);
        assert_eq!(learnt.tidy(later, |_, _| true, exists), []);
        assert_eq!(names(&learnt, &kin), ["a"]);
        assert_eq!(learnt.tidy(later + KEEP, |_, _| true, exists), []);
        assert!(learnt.all.is_empty());
    }
}
