//! What each patch has touched, and what kept it from doing so: for the status of EnvoyFilters, for
//! the debug interface and for those who write them.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::{AddedKey, Family, Selected, Subject, additions, outcome};
use crate::model::envoy_filter::PatchContext;
use crate::scope::ProxyKey;
use crate::scope::patches::{PatchId, Patches};
use crate::translate::resource::Resource;
use crate::translate::{cluster, listener, route};

/// What has become of one patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// How many resources it has changed, removed or added.
    pub(crate) resources: usize,
    /// The resources in which it could not be applied, and why; an empty name for one that it adds.
    pub(crate) faults: Vec<(String, String)>,
}

/// What has become of patches. All that apply to the proxy are here, also those without effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects(pub(crate) BTreeMap<PatchId, Effect>);

/// A client, and what it and its like have asked for by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) client: ProxyKey,
    pub(crate) routes: Vec<String>,
    /// Only of one that asks for each; others have all.
    pub(crate) clusters: Vec<String>,
    /// Only of one that asks for virtual hosts: some of each kind that it has.
    pub(crate) hosts: Vec<String>,
}

/// What patches do to what a client shares with its like.
pub(crate) struct SharedEffects;

impl Query for SharedEffects {
    type Key = Asked;
    type Value = Effects;
    const NAME: &'static str = "shared-patch-effects";

    fn derive(cx: &Cx<'_>, Asked { client, routes, clusters, hosts }: &Asked) -> Effects {
        let mut effects = Effects::default();
        let patches = &client.patching.patches;
        if patches.is_empty() {
            return effects;
        }
        let context = client.client_context();
        let subject = |_: &Resource| Subject::of(context);
        if client.is_lazy() {
            // It has no others, and nothing is derived for the report alone.
            let fixed = || cluster::lazy::fixed(cx, client);
            effects.add(cx, patches, Family::Cluster, context, fixed, &subject);
            for name in clusters {
                let found = || cluster::lazy::named(cx, client, name);
                effects.touch(cx, patches, Family::Cluster, |_| Subject::of(context), found);
            }
        } else {
            let shared = || cluster::shared(cx, client);
            effects.add(cx, patches, Family::Cluster, context, shared, &subject);
        }
        effects.add(cx, patches, Family::Listener, context, || listener::shared(cx, client), &subject);
        for name in routes {
            let found = || route::unpatched(cx, client, name);
            effects.touch(cx, patches, Family::Route, |_| route::subject(cx, client, name), found);
        }
        effects.add_hosts(cx, client, hosts);
        effects.add(cx, patches, Family::Extension, context, Vec::new, &subject);
        effects
    }
}

/// What patches do to what is a proxy's own.
pub(crate) struct OwnEffects;

impl Query for OwnEffects {
    type Key = ProxyKey;
    type Value = Effects;
    const NAME: &'static str = "own-patch-effects";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Effects {
        let mut effects = Effects::default();
        let (patches, context) = (proxy.own_patches(cx), PatchContext::SidecarInbound);
        let explicit = || listener::explicit(cx, proxy);
        let subject = |_: &Resource| Subject::of(proxy.client_context());
        effects.touch(cx, &proxy.shared_patches(cx), Family::Listener, subject, explicit);
        if patches.is_empty() {
            return effects;
        }
        let own = || listener::own(cx, proxy);
        effects.add(cx, &patches, Family::ListenerWithRoutes, context, own, &|_| Subject::of(context));
        let subject = |found: &Resource| cluster::own_subject(cx, proxy, found);
        effects.add(cx, &patches, Family::Cluster, context, || cluster::own(cx, proxy), &subject);
        effects
    }
}

impl Effects {
    /// Takes in what others have found.
    pub(crate) fn absorb(&mut self, other: &Effects) {
        for (patch, more) in &other.0 {
            let effect = self.0.entry(patch.clone()).or_default();
            effect.resources += more.resources;
            for fault in &more.faults {
                if !effect.faults.contains(fault) {
                    effect.faults.push(fault.clone());
                }
            }
        }
    }

    /// Counts what patches do to all resources of a kind, and what they add. The resources are made only
    /// if some patch is for the kind.
    fn add(
        &mut self,
        cx: &Cx<'_>,
        patches: &Patches,
        family: Family,
        context: PatchContext,
        resources: impl FnOnce() -> Vec<Arc<Resource>>,
        subject: &dyn Fn(&Resource) -> Subject,
    ) {
        let selected = cx.get::<Selected>(&(patches.clone(), family));
        if selected.is_empty() {
            return;
        }
        let mut present = std::collections::BTreeSet::new();
        for resource in resources() {
            let kept = self.count(cx, &selected, family, subject(&resource), resource);
            present.extend(kept.map(|resource| resource.wire.name.clone()));
        }
        let patches = Patches::clone(&selected);
        let key = AddedKey { patches: patches.clone(), family, context, present };
        let found = additions(cx, &key);
        let ids: Vec<PatchId> = patches.iter().cloned().collect();
        for (index, _) in found.added {
            if let Some(id) = ids.get(index) {
                self.0.entry(id.clone()).or_default().resources += 1;
            }
        }
        for (index, fault) in found.faults {
            if let Some(id) = ids.get(index) {
                self.0.entry(id.clone()).or_default().faults.push((String::new(), fault));
            }
        }
    }

    /// Counts what patches do to a resource if there is one, which is made only if some patch is for its
    /// kind.
    fn touch(
        &mut self,
        cx: &Cx<'_>,
        patches: &Patches,
        family: Family,
        subject: impl FnOnce(&Resource) -> Subject,
        resource: impl FnOnce() -> Option<Arc<Resource>>,
    ) {
        let selected = cx.get::<Selected>(&(patches.clone(), family));
        if !selected.is_empty()
            && let Some(resource) = resource()
        {
            self.count(cx, &selected, family, subject(&resource), resource);
        }
    }

    /// Counts what patches do to virtual hosts that are asked for one by one, each of which is patched in a
    /// configuration of its own: without what they do to this in any case, which is counted with the
    /// configuration.
    fn add_hosts(&mut self, cx: &Cx<'_>, client: &ProxyKey, hosts: &[String]) {
        let selected = cx.get::<Selected>(&(client.patching.patches.clone(), Family::Route));
        if selected.is_empty() {
            return;
        }
        let ids: Vec<&PatchId> = selected.iter().collect();
        let patch = |table: &str, found| {
            outcome(cx, &selected, Family::Route, route::subject(cx, client, table), found)
        };
        for asked in hosts {
            let Some((table, _)) = asked.rsplit_once('/') else { continue };
            let Some(without) = route::unpatched(cx, client, table) else { continue };
            let Some(with) = route::on_demand::unpatched(cx, client, asked) else { continue };
            let (without, with) = (patch(table, without), patch(table, with));
            for index in with.touched.iter().filter(|index| !without.touched.contains(index)) {
                if let Some(id) = ids.get(*index) {
                    self.0.entry(PatchId::clone(id)).or_default().resources += 1;
                }
            }
            for (index, fault) in &with.faults {
                if !without.faults.contains_key(index)
                    && let Some(id) = ids.get(*index)
                {
                    self.0.entry(PatchId::clone(id)).or_default().faults.push((asked.clone(), fault.clone()));
                }
            }
        }
    }

    /// Counts what the patches that are for its kind do to a resource; gives what they make of it, which
    /// is what proxies have been sent.
    fn count(
        &mut self,
        cx: &Cx<'_>,
        selected: &Patches,
        family: Family,
        subject: Subject,
        resource: Arc<Resource>,
    ) -> Option<Arc<Resource>> {
        let name = resource.name().to_owned();
        let outcome = outcome(cx, selected, family, subject, resource);
        for (index, id) in selected.iter().enumerate() {
            let effect = self.0.entry(id.clone()).or_default();
            effect.resources += usize::from(outcome.touched.contains(&index));
            if let Some(fault) = outcome.faults.get(&index) {
                effect.faults.push((name.clone(), fault.clone()));
            }
        }
        outcome.resource.clone()
    }
}
