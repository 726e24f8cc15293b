//! What EnvoyFilters ask of the proxies that are connected, and what has become of their patches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use leno_derive::Graph;
use leno_xds::TypeUrl;

use super::view::View;
use super::{Push, Touched, node};
use crate::model::diagnostic::{Finding, Severity};
use crate::model::inputs::EnvoyFilters;
use crate::model::{Key, Kind, ObjectRef};
use crate::scope::patches::PatchId;
use crate::scope::{ProxyFacts, ProxyKey};
use crate::source::kube::book::{Match, Matches};
use crate::translate::patch::report::{Asked, Effect, Effects, OwnEffects, SharedEffects};

/// What is told to the author of a patch that could not be applied; `None` if it could.
pub(crate) fn patch_fault(id: &PatchId, effect: &Effect) -> Option<(ObjectRef, Finding)> {
    let (resource, why) = effect.faults.first()?;
    let place = if resource.is_empty() { String::new() } else { format!(" to {resource}") };
    let others = match effect.faults.len() {
        0 | 1 => String::new(),
        several => format!(" (and {} others)", several - 1),
    };
    let finding = Finding {
        severity: Severity::Error,
        code: "patch-failed",
        path: format!("spec.configPatches[{}].patch", id.index),
        message: format!("cannot be applied{place}{others}, and is left out there: {why}"),
    };
    Some((id.filter.of(Kind::EnvoyFilter), finding))
}

/// A client and what is asked for by name.
fn asked(client: &ProxyKey, view: &View) -> Asked {
    Asked {
        client: client.clone(),
        routes: view.asked_names(&TypeUrl::Route),
        clusters: view.asked_names(&TypeUrl::Cluster),
        hosts: view.kinds_of_hosts(),
    }
}

impl Push {
    /// Patches ask for other metadata than before, by which proxies may have to be told apart.
    pub(super) fn rekey(
        &mut self,
        graph: &Graph,
        names: &BTreeSet<String>,
        now: Instant,
        touched: &mut Touched,
    ) {
        let mut moving = Vec::new();
        for session in self.sessions.values() {
            let metadata = node::asked_for(&session.about.node(), names);
            if metadata != session.key.patching.metadata {
                let mut facts = ProxyFacts::clone(&session.key);
                facts.patching.metadata = metadata;
                moving.push((session.id, ProxyKey::from(facts)));
            }
        }
        for (id, key) in moving {
            let key = self.group_of(graph, key);
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let before = std::mem::replace(&mut session.key, Arc::clone(&key));
            self.leave(id, &before, now);
            self.join(id, &key);
            self.reload(graph, &key, &[id], touched);
        }
    }

    /// What has become of the patches of EnvoyFilters at the proxies that are connected.
    fn patch_effects(&self, graph: &Graph) -> Effects {
        let mut total = Effects::default();
        if graph.keys::<EnvoyFilters>().is_empty() {
            return total;
        }
        for (client, view) in &self.views {
            if !client.patching.patches.is_empty() {
                total.absorb(&graph.peek::<SharedEffects>(&asked(client, view)));
            }
        }
        for key in self.groups.keys() {
            total.absorb(&graph.peek::<OwnEffects>(key));
        }
        total
    }

    /// What the patches of each EnvoyFilter have met with.
    pub(crate) fn patch_matches(&self, graph: &Graph) -> Vec<(ObjectRef, Matches)> {
        let filters = graph.keys::<EnvoyFilters>();
        if filters.is_empty() {
            return Vec::new();
        }
        let (effects, mut proxies) = (self.patch_effects(graph), BTreeMap::<PatchId, usize>::new());
        for (client, view) in &self.views {
            let shared = if client.patching.patches.is_empty() {
                BTreeSet::new()
            } else {
                let effects = graph.peek::<SharedEffects>(&asked(client, view));
                effects.0.keys().cloned().collect::<BTreeSet<PatchId>>()
            };
            for key in &view.groups {
                let members = self.groups.get(key).map_or(0, |group| group.members.len());
                if members == 0 {
                    continue;
                }
                let mut patches = shared.clone();
                patches.extend(graph.peek::<OwnEffects>(key).0.keys().cloned());
                patches.into_iter().for_each(|id| *proxies.entry(id).or_default() += members);
            }
        }
        let of_filter = |key: Key| {
            let filter = graph.input::<EnvoyFilters>(&key)?;
            let of_patch = |index| {
                let id = PatchId { filter: key.clone(), index };
                Match {
                    proxies: proxies.get(&id).copied().unwrap_or_default(),
                    resources: effects.0.get(&id).map_or(0, |found| found.resources),
                }
            };
            let matches = (0..filter.spec.config_patches.len()).map(of_patch).collect();
            Some((key.of(Kind::EnvoyFilter), Matches(matches)))
        };
        filters.into_iter().filter_map(of_filter).collect()
    }

    /// The patches that could not be applied somewhere, by their objects.
    pub(crate) fn patch_faults(&self, graph: &Graph) -> Vec<(ObjectRef, Finding)> {
        let effects = self.patch_effects(graph).0;
        effects.iter().filter_map(|(id, effect)| patch_fault(id, effect)).collect()
    }
}
