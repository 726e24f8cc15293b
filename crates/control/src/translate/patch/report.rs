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

/// What patches do to what a client shares with its like, with the route configurations named.
pub(crate) struct SharedEffects;

impl Query for SharedEffects {
    type Key = (ProxyKey, Vec<String>);
    type Value = Effects;
    const NAME: &'static str = "shared-patch-effects";

    fn derive(cx: &Cx<'_>, (client, names): &(ProxyKey, Vec<String>)) -> Effects {
        let mut effects = Effects::default();
        let patches = &client.patching.patches;
        if patches.is_empty() {
            return effects;
        }
        let context = client.client_context();
        let subject = |_: &Resource| Subject::of(context);
        effects.add(cx, patches, Family::Cluster, context, cluster::shared(cx, client), &subject);
        effects.add(cx, patches, Family::Listener, context, listener::shared(cx, client), &subject);
        for name in names {
            let subject = |_: &Resource| route::subject(cx, client, name);
            let found = route::unpatched(cx, client, name).into_iter().collect();
            effects.add(cx, patches, Family::Route, context, found, &subject);
        }
        effects.add(cx, patches, Family::Extension, context, Vec::new(), &subject);
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
        if let Some(listener) = listener::explicit(cx, proxy) {
            let (shared, subject) = (proxy.shared_patches(cx), Subject::of(proxy.client_context()));
            effects.touch(cx, &shared, Family::Listener, subject, listener);
        }
        if patches.is_empty() {
            return effects;
        }
        let own = listener::own(cx, proxy);
        effects.add(cx, &patches, Family::ListenerWithRoutes, context, own, &|_| Subject::of(context));
        let subject = |found: &Resource| cluster::own_subject(cx, proxy, found);
        effects.add(cx, &patches, Family::Cluster, context, cluster::own(cx, proxy), &subject);
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

    fn add(
        &mut self,
        cx: &Cx<'_>,
        patches: &Patches,
        family: Family,
        context: PatchContext,
        resources: Vec<Arc<Resource>>,
        subject: &dyn Fn(&Resource) -> Subject,
    ) {
        let selected = cx.get::<Selected>(&(patches.clone(), family));
        if selected.is_empty() {
            return;
        }
        let mut present = std::collections::BTreeSet::new();
        for resource in resources {
            let kept = self.touch(cx, patches, family, subject(&resource), resource);
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

    /// Counts what patches do to a resource; gives what they make of it.
    fn touch(
        &mut self,
        cx: &Cx<'_>,
        patches: &Patches,
        family: Family,
        subject: Subject,
        resource: Arc<Resource>,
    ) -> Option<Arc<Resource>> {
        let selected = cx.get::<Selected>(&(patches.clone(), family));
        if selected.is_empty() {
            return Some(resource);
        }
        let name = resource.name().to_owned();
        let outcome = outcome(cx, &selected, family, subject, resource);
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
