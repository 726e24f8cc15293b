//! What EnvoyFilters ask of the proxies that are connected, and what has become of their patches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use leno_derive::Graph;
use leno_xds::TypeUrl;
use leno_xds::server::grpc::StreamId;

use super::{Push, Touched, node, version};
use crate::model::diagnostic::{Finding, Severity};
use crate::model::inputs::EnvoyFilters;
use crate::model::{Kind, ObjectRef};
use crate::scope::ProxyKey;
use crate::scope::patches::PatchId;
use crate::translate::patch::report::{Effect, Effects, OwnEffects, SharedEffects};

/// What has become of a patch of an EnvoyFilter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PatchEffect {
    /// At how many proxies it applies.
    pub(crate) proxies: usize,
    /// What it has touched, where resources that proxies share count once.
    pub(crate) effect: Effect,
}

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
            let metadata = node::asked_for(&session.texts, names);
            if metadata != session.key.patching.metadata {
                let mut key = ProxyKey::clone(&session.key);
                key.patching.metadata = metadata;
                moving.push((session.id, key));
            }
        }
        let version = version(graph);
        for (id, key) in moving {
            let key = match self.groups.get_key_value(&key) {
                Some((key, _)) => Arc::clone(key),
                None => self.add_group(graph, Arc::new(key)),
            };
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let before = std::mem::replace(&mut session.key, Arc::clone(&key));
            let wanted = session.wanted();
            for (type_url, _) in &wanted {
                session.on_changed(type_url, None, touched.cause);
            }
            touched.ids.insert(id);
            if let Some(group) = self.groups.get_mut(&before) {
                group.members.remove(&id);
                if group.members.is_empty() {
                    group.empty_since = Some(now);
                }
                self.untidy.insert(Arc::clone(&group.client));
            }
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.members.insert(id);
            group.empty_since = None;
            let Some(view) = self.views.get_mut(&group.client) else { continue };
            for (type_url, names) in wanted {
                view.load(graph, &group.client, &type_url, &names, &version);
                group.load(graph, &key, &type_url);
            }
            for type_url in [TypeUrl::Cluster, TypeUrl::Listener] {
                for key in &view.groups {
                    if let Some(group) = self.groups.get_mut(key) {
                        group.combine(view, &type_url, &version);
                    }
                }
            }
        }
    }

    /// What has become of the patches of EnvoyFilters at the proxies that are connected, and at how
    /// many of these each applies.
    pub(crate) fn patch_effects(&self, graph: &Graph) -> BTreeMap<PatchId, PatchEffect> {
        let mut all: BTreeMap<PatchId, PatchEffect> = BTreeMap::new();
        if graph.keys::<EnvoyFilters>().is_empty() {
            return all;
        }
        let mut found: BTreeMap<StreamId, Effects> = BTreeMap::new();
        let mut total = Effects::default();
        let mut note = |effects: &Effects, members: &mut dyn Iterator<Item = StreamId>| {
            total.absorb(effects);
            if !effects.0.is_empty() {
                members.for_each(|id| found.entry(id).or_default().absorb(effects));
            }
        };
        for (client, view) in &self.views {
            if client.patching.patches.is_empty() {
                continue;
            }
            let effects = graph.peek::<SharedEffects>(&(ProxyKey::clone(client), view.route_names()));
            let groups = view.groups.iter().filter_map(|key| self.groups.get(key));
            note(&effects, &mut groups.flat_map(|group| group.members.iter().copied()));
        }
        for (key, group) in &self.groups {
            note(&graph.peek::<OwnEffects>(key), &mut group.members.iter().copied());
        }
        for (id, effect) in total.0 {
            let proxies = found.values().filter(|effects| effects.0.contains_key(&id)).count();
            all.insert(id, PatchEffect { proxies, effect });
        }
        all
    }

    /// The patches that could not be applied somewhere, by their objects.
    pub(crate) fn patch_faults(&self, graph: &Graph) -> Vec<(ObjectRef, Finding)> {
        let effects = self.patch_effects(graph).into_iter();
        effects.filter_map(|(id, found)| patch_fault(&id, &found.effect)).collect()
    }
}
