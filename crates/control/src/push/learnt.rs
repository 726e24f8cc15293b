//! Which clusters and virtual hosts workloads use, as far as their proxies have shown it.
//!
//! A sidecar that asks for these when something is first sent there is told of those that it or
//! its like have asked for, so that the first request after a restart, or of a new replica, need not
//! wait. What is known is not kept by the control plane alone: a proxy that connects says what it holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leno_base::Name;

use crate::scope::ProxyKey;

/// How long something is known that no proxy asks for by its name. One that is still used then is
/// asked for once more, and does not go before that.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// Labels in which replicas of one workload differ, or its revisions.
const PASSING: [&str; 10] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    // Each run of a CronJob is a Job of its own.
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
];

/// How many names of virtual hosts are kept that nobody asks for any more and that somebody may have made
/// up: a workload that calls the whole of the internet must not fill its proxies.
const MOST_MADE_UP: usize = 1000;

/// How many names of virtual hosts, or of clusters, are known to be used by a workload, those that exist
/// aside: what one sidecar asks for, all of its workload have.
const MOST_USED: usize = 20_000;

/// How much is kept of workloads that have no proxy here any more, names and workloads together: whoever
/// connects may say that he is another each time.
const MOST_ABSENT: usize = 100_000;

/// What is learnt of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// By their names.
    Clusters,
    /// By the names of the resources.
    Hosts,
}

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
    clusters: Uses,
    hosts: Uses,
}

/// What is used.
#[derive(Debug, Default)]
struct Uses {
    all: BTreeMap<Name, Use>,
    /// Counts what was asked for.
    last: u64,
    /// What was forgotten, and when: a proxy that has it from another replica, which knows it yet, does
    /// not bring it back.
    forgotten: BTreeMap<Name, Instant>,
}

/// One of them.
#[derive(Debug)]
struct Use {
    /// Since when nobody asks for it by its name, if nobody does.
    unnamed: Option<Instant>,
    /// When it came to be known, by the count.
    since: u64,
}

impl Known {
    /// How much is known to be used.
    fn count(&self) -> usize {
        self.clusters.all.len() + self.hosts.all.len()
    }

    /// How many names are kept.
    fn size(&self) -> usize {
        self.count() + self.clusters.forgotten.len() + self.hosts.forgotten.len()
    }

    /// Until when something was asked for, of those that have no proxies.
    fn last_used(&self) -> Option<Instant> {
        self.clusters.all.values().chain(self.hosts.all.values()).filter_map(|one| one.unnamed).max()
    }

    fn uses(&self, what: What) -> &Uses {
        match what {
            What::Clusters => &self.clusters,
            What::Hosts => &self.hosts,
        }
    }

    fn uses_mut(&mut self, what: What) -> &mut Uses {
        match what {
            What::Clusters => &mut self.clusters,
            What::Hosts => &mut self.hosts,
        }
    }
}

impl Uses {
    /// Notes that something is used; true if that was not known.
    fn note(&mut self, name: &Name, unnamed: Option<Instant>) -> bool {
        if let Some(known) = self.all.get_mut(name) {
            if unnamed.is_none() {
                known.unnamed = None;
            }
            return false;
        }
        let is_asked = unnamed.is_none();
        if is_asked {
            self.forgotten.remove(name);
        } else if self.forgotten.contains_key(name) {
            return false;
        }
        self.last += 1;
        self.all.insert(name.clone(), Use { unnamed, since: self.last });
        true
    }

    /// Forgets what nobody has asked for in a long time.
    fn forget_old(&mut self, now: Instant) {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= KEEP;
        self.forgotten.retain(|_, at| !is_over(*at));
        let old = self.all.extract_if(.., |_, one| one.unnamed.is_some_and(is_over));
        self.forgotten.extend(old.map(|(name, _)| (name, now)));
    }
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

    /// A proxy asks for some; gives those that were not known. If very many are known, those that do not
    /// exist are not learnt.
    pub(crate) fn on_asked(
        &mut self,
        kin: &Kin,
        what: What,
        names: &[Name],
        exists: impl Fn(&Name) -> bool,
    ) -> Vec<Name> {
        let Some(known) = self.all.get_mut(kin) else { return Vec::new() };
        let uses = known.uses_mut(what);
        let mut fresh = Vec::new();
        for name in names {
            if (uses.all.len() < MOST_USED || uses.all.contains_key(name) || exists(name))
                && uses.note(name, None)
            {
                fresh.push(name.clone());
            }
        }
        fresh
    }

    /// A proxy has some, from an earlier stream; true if some were not known. If very many are known, what
    /// has no room is not learnt.
    pub(crate) fn on_held(&mut self, kin: &Kin, what: What, names: &[Name], now: Instant) -> bool {
        let Some(known) = self.all.get_mut(kin) else { return false };
        let uses = known.uses_mut(what);
        let note = |name| uses.all.len() < MOST_USED && uses.note(name, Some(now));
        names.iter().map(note).fold(false, |some, is_new| some | is_new)
    }

    /// Forgets the oldest of the virtual hosts that are made up and not asked for, if there are too many.
    pub(crate) fn limit(&mut self, kin: &Kin, is_made_up: impl Fn(&Name) -> bool) {
        let Some(known) = self.all.get_mut(kin) else { return };
        let hosts = &mut known.hosts.all;
        if hosts.len() <= MOST_MADE_UP {
            return;
        }
        let made_up = hosts.iter().filter(|(name, one)| one.unnamed.is_some() && is_made_up(name));
        let mut made_up: Vec<(u64, Name)> = made_up.map(|(name, one)| (one.since, name.clone())).collect();
        made_up.sort_unstable();
        for (_, name) in made_up.iter().take(made_up.len().saturating_sub(MOST_MADE_UP)) {
            hosts.remove(name);
        }
    }

    /// Proxies of these may not ask for something any more.
    pub(crate) fn on_changed(&mut self, kin: &Kin) {
        if !self.untidy.contains(kin) {
            self.untidy.insert(kin.clone());
        }
    }

    /// What is known to be used by some.
    pub(crate) fn uses(&self, kin: &Kin, what: What) -> impl Iterator<Item = &Name> + use<'_> {
        self.all.get(kin).into_iter().flat_map(move |known| known.uses(what).all.keys())
    }

    /// Whether something is known to be used by some.
    pub(crate) fn has(&self, kin: &Kin, what: What, name: &str) -> bool {
        self.all.get(kin).is_some_and(|known| known.uses(what).all.contains_key(name))
    }

    /// Whether any of several is.
    pub(crate) fn has_any(&self, kin: &Kin, what: What, names: &[String]) -> bool {
        let uses = self.all.get(kin).map(|known| &known.uses(what).all);
        uses.is_some_and(|uses| names.iter().any(|name| uses.contains_key(name.as_str())))
    }

    /// The groups of these.
    pub(crate) fn groups(&self, kin: &Kin) -> Vec<Arc<ProxyKey>> {
        self.all.get(kin).map(|known| known.groups.iter().cloned().collect()).unwrap_or_default()
    }

    /// Forgets what nobody has asked for in a long time; gives the groups that this concerns.
    /// `is_named`: whether a proxy of a group asks for something by its name. `exists`: whether there is
    /// such a thing for it.
    pub(crate) fn tidy(
        &mut self,
        now: Instant,
        is_named: impl Fn(&Arc<ProxyKey>, What, &Name) -> bool,
        exists: impl Fn(&Arc<ProxyKey>, What, &Name) -> bool,
    ) -> Vec<Arc<ProxyKey>> {
        let mut concerned = Vec::new();
        for kin in std::mem::take(&mut self.untidy) {
            let Some(known) = self.all.get_mut(&kin) else { continue };
            let Known { groups, clusters, hosts } = known;
            for (what, uses) in [(What::Clusters, clusters), (What::Hosts, hosts)] {
                for (name, one) in &mut uses.all {
                    if groups.iter().any(|group| is_named(group, what, name)) {
                        one.unnamed = None;
                    } else {
                        one.unnamed.get_or_insert(now);
                    }
                }
                // Of what there is not nobody need be told.
                let before = uses.all.len();
                uses.all.retain(|name, one| {
                    let exists = || groups.iter().any(|group| exists(group, what, name));
                    one.unnamed.is_none() || groups.is_empty() || exists()
                });
                // A virtual host that says so is there to be taken away.
                if what == What::Hosts && uses.all.len() != before {
                    concerned.extend(groups.iter().cloned());
                }
            }
        }
        self.all.retain(|_, known| {
            let before = known.count();
            known.clusters.forget_old(now);
            known.hosts.forget_old(now);
            if known.count() != before {
                concerned.extend(known.groups.iter().cloned());
            }
            !(known.groups.is_empty() && known.size() == 0)
        });
        self.forget_absent();
        concerned
    }

    /// Forgets the workloads that have been away for the longest, if there are too many.
    fn forget_absent(&mut self) {
        let absent = || self.all.iter().filter(|(_, known)| known.groups.is_empty());
        let size: usize = absent().map(|(_, known)| known.size() + 1).sum();
        if size <= MOST_ABSENT {
            return;
        }
        let mut all: Vec<(Option<Instant>, usize, Kin)> =
            absent().map(|(kin, known)| (known.last_used(), known.size() + 1, kin.clone())).collect();
        all.sort_unstable_by_key(|(last, ..)| *last);
        let mut left = size;
        for (_, size, kin) in all {
            if left <= MOST_ABSENT {
                return;
            }
            self.all.remove(&kin);
            left -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use leno_base::Name;
    use leno_derive::Graph;

    use super::{KEEP, Kin, Learnt, MOST_ABSENT, MOST_MADE_UP, MOST_USED, What};
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
        learnt.uses(kin, What::Clusters).map(ToString::to_string).collect()
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
        assert_eq!(
            learnt.on_asked(&kin, What::Clusters, &[a.clone(), none.clone()], |_| false),
            [a.clone(), none]
        );
        assert_eq!(
            learnt.on_asked(&kin, What::Clusters, std::slice::from_ref(&a), |_| false),
            Vec::<Name>::new()
        );
        assert!(learnt.on_held(&kin, What::Clusters, &[a, b], start));
        assert_eq!(names(&learnt, &kin), ["a", "b", "none"]);
        assert!(learnt.uses(&Kin::of(&other), What::Clusters).next().is_none());
        // Who asks for them by name has them for as long as he does, and what does not exist no longer.
        let exists = |_: &Arc<ProxyKey>, _: What, name: &Name| name.as_str() != "none";
        learnt.on_changed(&kin);
        assert!(learnt.tidy(start, |_, _, name| name.as_str() != "b", exists).is_empty());
        assert_eq!(names(&learnt, &kin), ["a", "b", "none"]);
        learnt.on_changed(&kin);
        assert!(learnt.tidy(start, |_, _, name| name.as_str() == "a", exists).is_empty());
        assert_eq!(names(&learnt, &kin), ["a", "b"]);
        // The next revision profits.
        learnt.join(&kin, &second);
        learnt.leave(&kin, &first);
        let later = start + KEEP;
        assert_eq!(learnt.tidy(later - Duration::from_secs(1), |_, _, _| true, exists), []);
        assert_eq!(learnt.tidy(later, |_, _, _| true, exists), [Arc::clone(&second)]);
        assert_eq!(names(&learnt, &kin), ["a"]);
        // Nobody asks for it any more.
        learnt.leave(&kin, &second);
        learnt.on_changed(&kin);
        assert_eq!(learnt.tidy(later, |_, _, _| true, exists), []);
        assert_eq!(names(&learnt, &kin), ["a"]);
        assert_eq!(learnt.tidy(later + KEEP, |_, _, _| true, exists), []);
        // That it was forgotten is known as long again.
        assert!(names(&learnt, &kin).is_empty() && !learnt.all.is_empty());
        assert_eq!(learnt.tidy(later + 2 * KEEP, |_, _, _| true, exists), []);
        assert!(learnt.all.is_empty());
    }
    #[test]
    fn what_is_made_up_is_limited() {
        let proxy = proxy([("app", "web"), ("pod-template-hash", "1")]);
        let kin = Kin::of(&proxy);
        let mut learnt = Learnt::default();
        learnt.join(&kin, &proxy);
        let real = Name::new("80/a.real");
        assert_eq!(learnt.on_asked(&kin, What::Hosts, std::slice::from_ref(&real), |_| false).len(), 1);
        let made_up = |index: usize| Name::from(format!("80/x{index}"));
        assert_eq!(learnt.on_asked(&kin, What::Hosts, &[made_up(0)], |_| false).len(), 1);
        for index in 1..MOST_MADE_UP + 3 {
            assert!(learnt.on_held(&kin, What::Hosts, &[made_up(index)], Instant::now()));
            learnt.limit(&kin, |name| *name != real);
        }
        assert_eq!(learnt.uses(&kin, What::Hosts).count(), MOST_MADE_UP + 2);
        let has = |name: &Name| learnt.has(&kin, What::Hosts, name);
        // What is asked for stays.
        assert!(has(&real) && has(&made_up(0)) && has(&made_up(3)));
        assert!(!has(&made_up(1)) && !has(&made_up(2)) && !learnt.has(&kin, What::Clusters, &real));
    }

    #[test]
    fn what_a_workload_uses_is_limited() {
        let proxy = proxy([("app", "web"), ("pod-template-hash", "1")]);
        let kin = Kin::of(&proxy);
        let mut learnt = Learnt::default();
        learnt.join(&kin, &proxy);
        let names: Vec<Name> = (0..MOST_USED + 5).map(|index| Name::from(format!("80/x{index}"))).collect();
        let (held, asked) = names.split_at(MOST_USED - 1);
        assert!(learnt.on_held(&kin, What::Hosts, held, Instant::now()));
        // What exists, and what is known, has room at any time.
        let fresh = learnt.on_asked(&kin, What::Hosts, asked, |name| name.ends_with("3"));
        assert_eq!(fresh, [asked[0].clone(), asked[4].clone()]);
        assert_eq!(learnt.on_asked(&kin, What::Hosts, &fresh, |_| false), Vec::<Name>::new());
        assert!(!learnt.on_held(&kin, What::Hosts, asked, Instant::now()));
        assert_eq!(learnt.uses(&kin, What::Hosts).count(), MOST_USED + 1);
    }

    /// A proxy that wanders between replicas does not teach each what it has forgotten.
    #[test]
    fn what_was_forgotten_is_not_learnt_from_who_only_holds_it() {
        let proxy = proxy([("app", "web"), ("pod-template-hash", "1")]);
        let kin = Kin::of(&proxy);
        let (start, mut learnt) = (Instant::now(), Learnt::default());
        learnt.join(&kin, &proxy);
        let one = [Name::new("a")];
        assert!(learnt.on_held(&kin, What::Clusters, &one, start));
        let later = start + KEEP;
        assert_eq!(learnt.tidy(later, |_, _, _| false, |_, _, _| true), [Arc::clone(&proxy)]);
        assert!(!learnt.on_held(&kin, What::Clusters, &one, later));
        assert!(names(&learnt, &kin).is_empty());
        // Who asks for it uses it.
        assert_eq!(learnt.on_asked(&kin, What::Clusters, &one, |_| false), one);
        assert_eq!(names(&learnt, &kin), ["a"]);
    }

    #[test]
    fn who_is_another_each_time_is_forgotten() {
        let (start, mut learnt) = (Instant::now(), Learnt::default());
        let named: Vec<Name> = (0..MOST_ABSENT / 10).map(|index| Name::from(format!("c{index}"))).collect();
        let mut all = Vec::new();
        for app in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
            let proxy = proxy([("app", app), ("pod-template-hash", "1")]);
            let kin = Kin::of(&proxy);
            learnt.join(&kin, &proxy);
            assert!(learnt.on_held(
                &kin,
                What::Clusters,
                &named,
                start + Duration::from_secs(all.len() as u64)
            ));
            learnt.leave(&kin, &proxy);
            all.push(kin);
        }
        assert_eq!(learnt.tidy(start, |_, _, _| false, |_, _, _| true), []);
        let known = all.iter().map(|kin| learnt.all.contains_key(kin));
        assert!(known.eq((0..12).map(|index| index > 2)), "the last nine are left");
    }
}
