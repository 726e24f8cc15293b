//! Subsets: hosts by the values that their metadata has for a selector's keys. A request that
//! asks for these values (`metadata_match`) gets a host of that subset, by a balancer of its own,
//! which is built when the subset is first picked of.
//!
//! A request that asks for anything else falls back: to what its selector says, if it names the
//! keys of one, else to what is said for all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::hosts::{Hosts, LocalityHosts};
use super::metadata::{MetadataMatch, NAMESPACE, fingerprint, has_all};
use super::settings::{Balancing, Fallback, Localities, Selector, SelectorFallback, Subsets};
use super::{Balancer, Surroundings, Turn, build};
use crate::cluster::PickContext;
use crate::cluster::stats::ClusterStats;
use crate::cluster::worker_cluster::Host;

/// The criterion that holds a list of criteria to try (`metadata_fallback_policy`).
const FALLBACK_LIST: &str = "fallback_list";

pub(super) struct SubsetBalancer {
    settings: Arc<Subsets>,
    hosts: Hosts,
    any: Option<Child>,
    default: Option<Child>,
    /// By the fingerprint of their criteria.
    subsets: HashMap<u64, Vec<Subset>>,
    /// What selectors say of requests that name all their keys.
    fallbacks: Vec<(Vec<String>, SelectorFallback)>,
    stats: ClusterStats,
    count: u64,
    seed: u64,
}

/// The hosts that have the same values.
struct Subset {
    criteria: Vec<(String, Value)>,
    members: Members,
}

enum Members {
    /// `single_host_per_subset`: the first of them.
    One(Rc<Host>),
    /// Their balancer, once it is used.
    Many(Vec<Rc<Host>>, Option<Child>),
}

/// Some of the hosts with a balancer.
struct Child {
    is_empty: bool,
    balancer: Box<dyn Balancer>,
}

impl SubsetBalancer {
    pub(super) fn new(settings: Arc<Subsets>, hosts: Hosts, around: &Surroundings, seed: u64) -> Self {
        let mut balancer = Self {
            fallbacks: selector_fallbacks(&settings.selectors),
            settings,
            hosts,
            any: None,
            default: None,
            subsets: HashMap::new(),
            stats: around.stats.clone(),
            count: 0,
            seed,
        };
        balancer.group();
        let stats = &balancer.stats;
        stats.lb_subsets_created().add(balancer.count);
        stats.lb_subsets_active().add(balancer.count);
        balancer
    }

    /// Puts every host into its subsets.
    fn group(&mut self) {
        let mut duplicates = 0;
        for host in self.hosts.all() {
            let metadata = host.config.metadata.get(NAMESPACE).and_then(Value::as_object);
            let Some(metadata) = metadata else { continue };
            for selector in &self.settings.selectors {
                for criteria in combinations(&selector.keys, metadata, self.settings.list_as_any) {
                    let print = fingerprint(criteria.iter().map(|(name, value)| (name.as_str(), value)));
                    let alike = self.subsets.entry(print).or_default();
                    match alike.iter_mut().find(|subset| subset.criteria == criteria) {
                        Some(Subset { members: Members::Many(members, _), .. }) => {
                            // Two selectors may have the same keys.
                            if !members.last().is_some_and(|last| Rc::ptr_eq(last, host)) {
                                members.push(Rc::clone(host));
                            }
                        }
                        Some(_) => duplicates += 1,
                        None => {
                            self.count += 1;
                            let members = if selector.single_host {
                                Members::One(Rc::clone(host))
                            } else {
                                Members::Many(vec![Rc::clone(host)], None)
                            };
                            alike.push(Subset { criteria, members });
                        }
                    }
                }
            }
        }
        if self.settings.selectors.iter().any(|selector| selector.single_host) {
            self.stats.lb_subsets_single_host_per_subset_duplicate().set(duplicates);
        }
    }

    /// One round: the subset that is asked for, or a fallback.
    fn pick_for(&mut self, criteria: Option<&MetadataMatch>, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let mut criteria = criteria.map(std::borrow::Cow::Borrowed);
        // A selector's fallback may ask once more with fewer keys; each time there are fewer.
        while let Some(wanted) = criteria.take() {
            let wanted =
                if self.settings.allow_redundant_keys { self.without_redundant(wanted) } else { wanted };
            if let Some(host) = self.pick_of_subset(&wanted, turn) {
                return host;
            }
            let fallback =
                self.fallbacks.iter().find(|(keys, _)| wanted.names().eq(keys.iter().map(String::as_str)));
            match fallback.map(|(_, fallback)| fallback.clone()) {
                None => break,
                Some(SelectorFallback::Common(Fallback::None)) => return None,
                Some(SelectorFallback::Common(Fallback::Any)) => return self.any(turn),
                Some(SelectorFallback::Common(Fallback::Default)) => return self.default(turn),
                Some(SelectorFallback::Keys(keys)) => {
                    criteria = Some(std::borrow::Cow::Owned(wanted.filtered(|name| keys.contains(name))));
                }
            }
        }
        let found = match self.settings.fallback {
            Fallback::None => return None,
            Fallback::Any => self.any(turn),
            Fallback::Default => self.default(turn),
        };
        if found.is_some() {
            self.stats.lb_subsets_fallback().inc();
            return found;
        }
        if self.settings.panic_mode_any {
            let found = self.any(turn);
            if found.is_some() {
                self.stats.lb_subsets_fallback_panic().inc();
            }
            return found;
        }
        None
    }

    fn without_redundant<'m>(
        &self,
        wanted: std::borrow::Cow<'m, MetadataMatch>,
    ) -> std::borrow::Cow<'m, MetadataMatch> {
        let whole = |selector: &&Selector| selector.keys.iter().all(|key| wanted.get(key).is_some());
        match self.settings.selectors.iter().find(whole) {
            Some(selector) if selector.keys.len() < wanted.names().len() => {
                std::borrow::Cow::Owned(wanted.filtered(|name| selector.keys.contains(name)))
            }
            _ => wanted,
        }
    }

    /// A host of the very subset; `None`: there is no such subset.
    fn pick_of_subset(
        &mut self,
        wanted: &MetadataMatch,
        turn: &mut Turn<'_, '_>,
    ) -> Option<Option<Rc<Host>>> {
        let alike = self.subsets.get_mut(&wanted.fingerprint())?;
        let same = |subset: &&mut Subset| {
            wanted.iter().eq(subset.criteria.iter().map(|(name, value)| (name.as_str(), value)))
        };
        let subset = alike.iter_mut().find(same)?;
        self.stats.lb_subsets_selected().inc();
        Some(match &mut subset.members {
            Members::One(host) => Some(Rc::clone(host)),
            Members::Many(members, child) => {
                let child = child.get_or_insert_with(|| {
                    let members: HashSet<*const Host> = members.iter().map(Rc::as_ptr).collect();
                    let keep = |host: &Host| members.contains(&std::ptr::from_ref(host));
                    Child::new(&self.settings, &self.hosts, keep, turn.around, self.seed)
                });
                child.balancer.pick(turn)
            }
        })
    }

    fn any(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let (settings, hosts, seed) = (&self.settings, &self.hosts, self.seed);
        let any = self.any.get_or_insert_with(|| Child::new(settings, hosts, |_| true, turn.around, seed));
        any.balancer.pick(turn)
    }

    fn default(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let (settings, hosts, seed) = (&self.settings, &self.hosts, self.seed);
        let default = self.default.get_or_insert_with(|| {
            let keep =
                |host: &Host| has_all(&host.config.metadata, &settings.default_subset, settings.list_as_any);
            Child::new(settings, hosts, keep, turn.around, seed)
        });
        if default.is_empty { None } else { default.balancer.pick(turn) }
    }
}

impl Balancer for SubsetBalancer {
    fn pick(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        let context: &PickContext<'_> = turn.context;
        let criteria = context.metadata_match;
        let list = match criteria {
            Some(criteria) if self.settings.fallback_list => criteria.get(FALLBACK_LIST),
            _ => None,
        };
        let (Some(criteria), Some(list)) = (criteria, list) else { return self.pick_for(criteria, turn) };
        let others = criteria.filtered(|name| name != FALLBACK_LIST);
        let list = list.as_array().map_or(&[][..], Vec::as_slice);
        if list.is_empty() {
            return self.pick_for(Some(&others), turn);
        }
        list.iter().find_map(|over| {
            let over = over.as_object().map_or_else(|| others.clone(), |over| others.merged(over));
            self.pick_for(Some(&over), turn)
        })
    }
}

impl Drop for SubsetBalancer {
    fn drop(&mut self) {
        // The next balancer of the cluster counts its own.
        let active = self.stats.lb_subsets_active();
        (0..self.count).for_each(|_| active.dec());
        self.stats.lb_subsets_removed().add(self.count);
    }
}

impl Child {
    fn new(
        settings: &Subsets,
        hosts: &Hosts,
        keep: impl Fn(&Host) -> bool,
        around: &Surroundings,
        seed: u64,
    ) -> Self {
        let mut own = hosts.filtered(keep);
        weigh_localities(settings, hosts, &mut own);
        Self { is_empty: own.is_empty(), balancer: build(&settings.inner, own, around, seed) }
    }
}

/// Localities' weights in a subset: none, the same, or less by how many hosts were left out.
fn weigh_localities(settings: &Subsets, all: &Hosts, own: &mut Hosts) {
    let weighted = match &settings.inner {
        Balancing::Spread(spread) => spread.localities == Localities::Weighted,
        Balancing::Hash(hashing) => hashing.locality_weighted,
        _ => false,
    };
    if !weighted {
        return;
    }
    for (own, all) in own.priorities.iter_mut().zip(&all.priorities) {
        if !settings.locality_weight_aware {
            own.localities.clear();
        } else if settings.scale_locality_weight {
            own.localities.iter_mut().zip(&all.localities).for_each(|(own, all)| scale(own, all));
        }
    }
}

fn scale(own: &mut LocalityHosts, all: &LocalityHosts) {
    own.weight = match all.hosts.all.len() {
        0 => 0,
        count => (f64::from(own.weight) * own.hosts.all.len() as f64 / count as f64).round() as u32,
    };
}

/// What hosts with this metadata have for the keys: nothing if one is missing; more than one
/// combination if a list counts as each of its items.
fn combinations<'k>(
    keys: impl IntoIterator<Item = &'k String>,
    metadata: &Map<String, Value>,
    list_as_any: bool,
) -> Vec<Vec<(String, Value)>> {
    let mut found: Vec<Vec<(String, Value)>> = Vec::new();
    for (index, key) in keys.into_iter().enumerate() {
        let Some(value) = metadata.get(key) else { return Vec::new() };
        let values = match value {
            Value::Array(items) if list_as_any => items.as_slice(),
            value => std::slice::from_ref(value),
        };
        if index == 0 {
            found = values.iter().map(|value| vec![(key.clone(), value.clone())]).collect();
            continue;
        }
        let with = |before: &Vec<(String, Value)>| {
            let before = before.clone();
            values.iter().map(move |value| [before.as_slice(), &[(key.clone(), value.clone())]].concat())
        };
        found = found.iter().flat_map(with).collect();
    }
    found
}

/// What selectors say of requests that name all their keys and no others. As in Envoy the first
/// selector with some keys counts, and none whose keys begin those of an earlier one.
fn selector_fallbacks(selectors: &[Selector]) -> Vec<(Vec<String>, SelectorFallback)> {
    let mut known: BTreeMap<Vec<String>, Option<SelectorFallback>> = BTreeMap::new();
    for selector in selectors {
        let keys: Vec<String> = selector.keys.iter().cloned().collect();
        for count in 1..=keys.len() {
            let (beginning, _) = keys.split_at(count);
            let fallback = if count == keys.len() { selector.fallback.clone() } else { None };
            known.entry(beginning.to_vec()).or_insert(fallback);
        }
    }
    known.into_iter().filter_map(|(keys, fallback)| Some((keys, fallback?))).collect()
}
