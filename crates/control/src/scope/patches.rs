//! Which patches of EnvoyFilters apply to which proxies, and in which order.
//!
//! An EnvoyFilter of the mesh's root namespace is for all proxies, one of another namespace for those
//! there; a selector narrows it by labels, `targetRefs` to the gateway that they name, and each patch
//! by what the proxy says of itself. What results is part of a proxy as a client ([`Patching`]), so
//! that proxies for which the same patches apply share everything, and those for which none do share
//! it as if there were no EnvoyFilters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::{ProxyKey, Role, security};
use crate::model::envoy_filter::{
    ApplyTo, ConfigPatch, EnvoyFilter, PatchContext, ProxyMatch, VersionPattern,
};
use crate::model::inputs::{EnvoyFilters, EnvoyFiltersByNamespace};
use crate::model::{Config, Key};
use crate::registry::Mesh;

/// The metadata field with the version that patches may ask for.
pub(crate) const VERSION: &str = "ISTIO_VERSION";

/// What of a proxy decides on patches.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Patching {
    /// Of a proxy: those texts of its metadata that some patch asks for.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Of a client, which is without the former: the patches for what it shares with others.
    pub(crate) patches: Patches,
}

/// One patch of an EnvoyFilter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PatchId {
    pub(crate) filter: Key,
    /// Its place in `configPatches`.
    pub(crate) index: usize,
}

impl fmt::Display for PatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.filter, self.index)
    }
}

/// Patches in the order in which they apply. Mostly there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Patches(Option<Arc<[PatchId]>>);

impl Patches {
    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PatchId> {
        self.0.iter().flat_map(|patches| patches.iter())
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl FromIterator<PatchId> for Patches {
    fn from_iter<I: IntoIterator<Item = PatchId>>(patches: I) -> Patches {
        let patches: Vec<PatchId> = patches.into_iter().collect();
        Patches((!patches.is_empty()).then(|| patches.into()))
    }
}

/// The names of metadata of proxies that patches ask for. A root: proxies are known by the values.
pub(crate) struct MetadataNames;

impl Query for MetadataNames {
    type Key = ();
    type Value = BTreeSet<String>;
    const NAME: &'static str = "patches-metadata-names";

    fn derive(cx: &Cx<'_>, (): &()) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for key in cx.all::<EnvoyFilters>() {
            let Some(filter) = cx.input::<EnvoyFilters>(&key) else { continue };
            let matches = filter.spec.config_patches.iter().filter_map(|patch| patch.r#match.as_ref());
            for proxy in matches.filter_map(|found| found.proxy.as_ref()) {
                names.extend(proxy.metadata.keys().cloned());
                if !proxy.proxy_version.is_empty() {
                    names.insert(VERSION.to_owned());
                }
            }
        }
        names
    }
}

/// The EnvoyFilters that may be for proxies of a namespace, in the order in which they apply.
struct FiltersOfNamespace;

impl Query for FiltersOfNamespace {
    type Key = String;
    type Value = Vec<Arc<Config<EnvoyFilter>>>;
    const NAME: &'static str = "filters-of-namespace";

    fn derive(cx: &Cx<'_>, namespace: &String) -> Vec<Arc<Config<EnvoyFilter>>> {
        let root = &cx.get::<Mesh>(&()).root_namespace;
        let mut keys = cx.bucket::<EnvoyFiltersByNamespace>(root);
        if namespace != root {
            keys.extend(cx.bucket::<EnvoyFiltersByNamespace>(namespace));
        }
        let mut filters: Vec<Arc<Config<EnvoyFilter>>> =
            keys.iter().filter_map(|key| cx.input::<EnvoyFilters>(key)).collect();
        filters.sort_by(|a, b| order(a, root).cmp(&order(b, root)));
        filters
    }
}

/// By priority; then those of the root namespace first, the older first, by name.
fn order<'a>(filter: &'a Config<EnvoyFilter>, root: &str) -> (i32, bool, (&'a str, &'a str, &'a str)) {
    (filter.spec.priority, filter.meta.namespace != root, filter.meta.age())
}

impl ProxyKey {
    /// The patches for what a proxy shares with others: all of a gateway, what a sidecar's workload
    /// calls, and the configuration of extensions.
    pub(crate) fn shared_patches(&self, cx: &Cx<'_>) -> Patches {
        let context = self.client_context();
        self.patches(cx, |patch| patch.apply_to == ApplyTo::ExtensionConfig || is_for(patch, context))
    }

    /// The patches for what is a sidecar's own: what leads to its workload.
    pub(crate) fn own_patches(&self, cx: &Cx<'_>) -> Patches {
        match self.role {
            Role::Sidecar => self.patches(cx, |patch| is_for(patch, PatchContext::SidecarInbound)),
            Role::Router | Role::Grpc => Patches::default(),
        }
    }

    /// The context of what it has as a client.
    pub(crate) fn client_context(&self) -> PatchContext {
        match self.role {
            Role::Sidecar | Role::Grpc => PatchContext::SidecarOutbound,
            Role::Router => PatchContext::Gateway,
        }
    }

    /// The patches for a part of what a proxy has.
    fn patches(&self, cx: &Cx<'_>, wanted: impl Fn(&ConfigPatch) -> bool) -> Patches {
        let filters = cx.get::<FiltersOfNamespace>(&self.namespace);
        let mut found = Vec::new();
        for filter in filters.iter().filter(|filter| self.is_selected(filter)) {
            for (index, patch) in filter.spec.config_patches.iter().enumerate() {
                let proxy = patch.r#match.as_ref().and_then(|found| found.proxy.as_ref());
                if wanted(patch) && proxy.is_none_or(|proxy| self.is_met(proxy)) {
                    found.push(PatchId { filter: filter.meta.key(), index });
                }
            }
        }
        found.into_iter().collect()
    }

    fn is_selected(&self, filter: &Config<EnvoyFilter>) -> bool {
        if !filter.spec.target_refs.is_empty() {
            let labels = &self.labels;
            return security::is_targeted(&self.namespace, labels, &filter.meta, &filter.spec.target_refs);
        }
        let selector = filter.spec.workload_selector.as_ref();
        selector.is_none_or(|selector| selector.matches(&self.labels))
    }

    fn is_met(&self, proxy: &ProxyMatch) -> bool {
        let metadata = &self.patching.metadata;
        let version = match &proxy.version {
            VersionPattern::All => true,
            VersionPattern::None => false,
            // Who does not say its version has none.
            VersionPattern::Pattern(pattern) => {
                metadata.get(VERSION).is_some_and(|version| !version.is_empty() && pattern.is_match(version))
            }
        };
        version && proxy.metadata.iter().all(|(name, value)| metadata.get(name) == Some(value))
    }
}

/// Whether a patch is for resources of a context.
pub(crate) fn is_for(patch: &ConfigPatch, context: PatchContext) -> bool {
    let wanted = patch.r#match.as_ref().map(|found| found.context).unwrap_or_default();
    wanted == PatchContext::Any || wanted == context
}
