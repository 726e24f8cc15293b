//! EnvoyFilters: changes that users make to finished resources, in Envoy's own terms.
//!
//! Which patches are for which proxies is said by [`crate::scope::patches`]; here they are applied. A
//! resource with the patches that are for it makes another one, once for all proxies for which both
//! are the same ([`Patched`]); resources that no patch touches stay what they are, to the byte.
//!
//! - `matcher.rs`: which part of a resource a patch is for;
//! - `listener.rs` with `filters.rs`, `route.rs`, `cluster.rs`: what it does there;
//! - `run.rs`: one pass of patches over a resource, and what all operations share;
//! - `sound.rs`: whether what results can be used. A patch that spoils a resource is left out of it,
//!   and said to be at fault;
//! - `report.rs`: what each patch has touched, for people.

mod cluster;
mod filters;
mod listener;
mod matcher;
pub(crate) mod report;
mod route;
mod run;
mod sound;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use leno_derive::{Cx, Query};
use prost::{Message, Name};

use self::run::Run;
use super::needs;
use super::proto::{cluster as clusters, core, listener as listeners, route as routes};
use super::resource::Resource;
use crate::model::envoy_filter::{ApplyTo, ConfigPatch, EnvoyFilter, Operation, PatchContext};
use crate::model::inputs::EnvoyFilters;
use crate::model::{Config, Kind};
use crate::scope::patches::{PatchId, Patches, is_for};

/// What a resource is, and so which patches are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    Listener,
    /// One that contains its routes, which are patched too.
    ListenerWithRoutes,
    Route,
    Cluster,
    Extension,
}

impl Family {
    fn includes(self, apply_to: ApplyTo) -> bool {
        match apply_to {
            ApplyTo::Listener
            | ApplyTo::FilterChain
            | ApplyTo::NetworkFilter
            | ApplyTo::HttpFilter
            | ApplyTo::ListenerFilter => matches!(self, Family::Listener | Family::ListenerWithRoutes),
            ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
                matches!(self, Family::Route | Family::ListenerWithRoutes)
            }
            ApplyTo::Cluster => self == Family::Cluster,
            ApplyTo::ExtensionConfig => self == Family::Extension,
            ApplyTo::Invalid | ApplyTo::Bootstrap => false,
        }
    }
}

/// What a resource does not say of itself and patches may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    pub(crate) context: PatchContext,
    /// Of an inbound cluster: the services that lead to it.
    pub(crate) hosts: Vec<String>,
    /// Of a gateway's route configuration: the ports that authors of Gateways wrote.
    pub(crate) ports: Vec<u16>,
}

impl Subject {
    /// A resource of which there is nothing else to say.
    pub(crate) fn of(context: PatchContext) -> Subject {
        Subject { context, ..Subject::default() }
    }
}

/// A patch with its object.
#[derive(Clone, Debug, PartialEq)]
struct Resolved {
    id: PatchId,
    filter: Arc<Config<EnvoyFilter>>,
}

impl Resolved {
    fn patch(&self) -> Option<&ConfigPatch> {
        self.filter.spec.config_patches.get(self.id.index)
    }
}

/// Patches with their objects.
struct Table;

impl Query for Table {
    type Key = Patches;
    type Value = Vec<Resolved>;
    const NAME: &'static str = "patch-table";

    fn derive(cx: &Cx<'_>, patches: &Patches) -> Vec<Resolved> {
        let resolve = |id: &PatchId| {
            let filter = cx.input::<EnvoyFilters>(&id.filter)?;
            Some(Resolved { id: id.clone(), filter })
        };
        patches.iter().filter_map(resolve).collect()
    }
}

/// Those of some patches that are for resources of a kind.
struct Selected;

impl Query for Selected {
    type Key = (Patches, Family);
    type Value = Patches;
    const NAME: &'static str = "selected-patches";

    fn derive(cx: &Cx<'_>, (patches, family): &(Patches, Family)) -> Patches {
        let table = cx.get::<Table>(patches);
        let wanted =
            table.iter().filter(|row| row.patch().is_some_and(|patch| family.includes(patch.apply_to)));
        wanted.map(|row| row.id.clone()).collect()
    }
}

/// A resource as a key: known by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content(Arc<Resource>);

impl Hash for Content {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.wire.name.hash(state);
        self.0.wire.version.hash(state);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PatchedKey {
    patches: Patches,
    family: Family,
    subject: Subject,
    resource: Content,
}

/// What has become of a resource.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    /// `None` if it was removed.
    resource: Option<Arc<Resource>>,
    /// Which patches of the table have touched it.
    touched: BTreeSet<usize>,
    /// Which patches of the table could not be applied, and why.
    faults: BTreeMap<usize, String>,
}

/// A resource as patches make it.
struct Patched;

impl Query for Patched {
    type Key = PatchedKey;
    type Value = Outcome;
    const NAME: &'static str = "patched";

    fn derive(cx: &Cx<'_>, key: &PatchedKey) -> Outcome {
        let table = cx.get::<Table>(&key.patches);
        let resource = &key.resource.0;
        match key.family {
            Family::Listener | Family::ListenerWithRoutes => {
                apply::<listeners::Listener>(&table, &key.subject, resource, listener::patch)
            }
            Family::Route => {
                apply::<routes::RouteConfiguration>(&table, &key.subject, resource, route::patch)
            }
            Family::Cluster => apply::<clusters::Cluster>(&table, &key.subject, resource, cluster::patch),
            Family::Extension => Outcome {
                resource: Some(Arc::clone(resource)),
                touched: BTreeSet::new(),
                faults: BTreeMap::new(),
            },
        }
    }
}

/// A message that can be patched and then be a resource.
trait Subjected: Message + Name + Default + PartialEq + Clone {
    fn name(&self) -> &str;

    /// What is wrong with it that its schema does not know.
    fn faults(&self) -> Vec<String>;

    /// Sets what is noted of a resource beside its bytes.
    fn annotate(&self, _resource: &mut Resource) {}
}

impl Subjected for listeners::Listener {
    fn name(&self) -> &str {
        &self.name
    }

    fn faults(&self) -> Vec<String> {
        sound::listener(self)
    }

    fn annotate(&self, resource: &mut Resource) {
        resource.needs = needs::of_listener(self);
    }
}

impl Subjected for routes::RouteConfiguration {
    fn name(&self) -> &str {
        &self.name
    }

    fn faults(&self) -> Vec<String> {
        sound::route(self)
    }

    fn annotate(&self, resource: &mut Resource) {
        (resource.clusters, resource.needs) = (super::route::clusters(self), super::route::mirrors(self));
    }
}

impl Subjected for clusters::Cluster {
    fn name(&self) -> &str {
        &self.name
    }

    fn faults(&self) -> Vec<String> {
        sound::cluster(self)
    }

    fn annotate(&self, resource: &mut Resource) {
        resource.needs_endpoints = self.eds_cluster_config.is_some();
    }
}

impl Subjected for core::TypedExtensionConfig {
    fn name(&self) -> &str {
        &self.name
    }

    fn faults(&self) -> Vec<String> {
        Vec::new()
    }

    fn annotate(&self, resource: &mut Resource) {
        resource.needs = needs::of_extension(self);
    }
}

/// Whether a message cannot be used: what its schema or its other rules say first.
fn fault<T: Subjected>(message: &T, wire: &[u8]) -> Option<String> {
    let violations = leno_api::validate::inspect(&T::full_name(), wire).violations;
    violations.first().map(ToString::to_string).or_else(|| message.faults().into_iter().next())
}

/// Applies the patches of a table to a resource. Those that would spoil it are left out.
fn apply<T: Subjected>(
    table: &[Resolved],
    subject: &Subject,
    resource: &Arc<Resource>,
    patch: fn(&mut Run<'_>, &mut T) -> bool,
) -> Outcome {
    let unchanged =
        |faults| Outcome { resource: Some(Arc::clone(resource)), touched: BTreeSet::new(), faults };
    // It was encoded here.
    let Ok(original) = T::decode(resource.wire.body.clone()) else { return unchanged(BTreeMap::new()) };
    let mut spoiling: BTreeMap<usize, String> = BTreeMap::new();
    loop {
        let attempt = |only: Option<&BTreeSet<usize>>| {
            let mut run = Run::new(table, subject, &spoiling, only);
            let mut message = original.clone();
            let is_kept = patch(&mut run, &mut message);
            (run.touched, run.failed, message, is_kept)
        };
        let (touched, failed, message, is_kept) = attempt(None);
        let mut faults = spoiling.clone();
        faults.extend(failed);
        if touched.is_empty() {
            return unchanged(faults);
        }
        if !is_kept {
            return Outcome { resource: None, touched, faults };
        }
        let wire = message.encode_to_vec();
        let Some(why) = fault(&message, &wire) else {
            let origins = touched.iter().filter_map(|index| table.get(*index));
            let origins = origins.map(|row| row.id.filter.of(Kind::EnvoyFilter));
            let origins = resource.origins.iter().cloned().chain(origins).collect();
            let mut patched = Resource::new(message.name(), &message, origins);
            message.annotate(&mut patched);
            return Outcome { resource: Some(Arc::new(patched)), touched, faults };
        };
        // The first patch with which it is not sound any more is the one at fault.
        let mut some = BTreeSet::new();
        let culprit = touched.iter().find(|index| {
            some.insert(**index);
            let (_, _, message, is_kept) = attempt(Some(&some));
            is_kept && fault(&message, &message.encode_to_vec()).is_some()
        });
        // Each round finds another, so that this ends.
        let Some(culprit) = culprit.or(touched.last()) else { return unchanged(faults) };
        spoiling.insert(*culprit, why);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AddedKey {
    patches: Patches,
    family: Family,
    context: PatchContext,
    /// The names that there are already.
    present: BTreeSet<leno_base::Name>,
}

/// What patches add, or why they cannot.
#[derive(Clone, Debug, Default, PartialEq)]
struct Additions {
    added: Vec<(usize, Arc<Resource>)>,
    faults: BTreeMap<usize, String>,
}

/// The resources that patches add.
fn additions(cx: &Cx<'_>, key: &AddedKey) -> Additions {
    let table = cx.get::<Table>(&key.patches);
    let mut found = Additions::default();
    let mut names = key.present.clone();
    for (index, row) in table.iter().enumerate() {
        let Some(patch) = row.patch().filter(|patch| key.adds(patch)) else { continue };
        let Some(change) = &patch.patch else { continue };
        let origin = row.id.filter.of(Kind::EnvoyFilter);
        let wire = &change.wire;
        let made = match key.family {
            Family::Listener | Family::ListenerWithRoutes => added::<listeners::Listener>(wire, origin),
            Family::Cluster => added::<clusters::Cluster>(wire, origin),
            Family::Extension => added::<core::TypedExtensionConfig>(wire, origin),
            Family::Route => continue,
        };
        match made {
            Ok(resource) if names.insert(resource.wire.name.clone()) => {
                found.added.push((index, Arc::new(resource)));
            }
            Ok(resource) => {
                found.faults.insert(index, format!("there is another one with the name {}", resource.name()));
            }
            Err(fault) => drop(found.faults.insert(index, fault)),
        }
    }
    found
}

impl AddedKey {
    /// Whether a patch adds a resource here.
    fn adds(&self, patch: &ConfigPatch) -> bool {
        let wanted = match self.family {
            Family::Listener | Family::ListenerWithRoutes => ApplyTo::Listener,
            Family::Cluster => ApplyTo::Cluster,
            // Extensions have no context.
            Family::Extension => return patch.apply_to == ApplyTo::ExtensionConfig && is_addition(patch),
            Family::Route => return false,
        };
        // What is for no context in particular is added once, where clients find it.
        let given = patch.r#match.as_ref().map(|found| found.context).unwrap_or_default();
        let here = given != PatchContext::Any || self.context != PatchContext::SidecarInbound;
        patch.apply_to == wanted && is_addition(patch) && here && is_for(patch, self.context)
    }
}

/// Whether a patch adds something. As in Istio, an insertion into what has no order is an addition.
fn is_addition(patch: &ConfigPatch) -> bool {
    patch.patch.as_ref().is_some_and(|change| {
        matches!(
            change.operation,
            Operation::Add | Operation::InsertBefore | Operation::InsertAfter | Operation::InsertFirst
        )
    })
}

fn added<T: Subjected>(wire: &[u8], origin: crate::model::ObjectRef) -> Result<Resource, String> {
    let message = T::decode(wire).map_err(|error| error.to_string())?;
    if message.name().is_empty() {
        return Err("a name is needed".to_owned());
    }
    match fault(&message, wire) {
        Some(fault) => Err(fault),
        None => {
            let mut resource = Resource::new(message.name(), &message, vec![origin]);
            message.annotate(&mut resource);
            // There are none but its own.
            resource.needs_endpoints = false;
            Ok(resource)
        }
    }
}

/// Resources of one kind as patches make them, with those that are added.
pub(crate) fn all(
    cx: &Cx<'_>,
    patches: &Patches,
    family: Family,
    context: PatchContext,
    resources: Vec<Arc<Resource>>,
    subject: impl Fn(&Resource) -> Subject,
) -> Vec<Arc<Resource>> {
    if patches.is_empty() {
        return resources;
    }
    let patches = cx.get::<Selected>(&(patches.clone(), family));
    if patches.is_empty() {
        return resources;
    }
    let patch = |resource: Arc<Resource>| {
        let subject = subject(&resource);
        outcome(cx, &patches, family, subject, resource).resource.clone()
    };
    let mut all: Vec<Arc<Resource>> = resources.into_iter().filter_map(patch).collect();
    let present = all.iter().map(|resource| resource.wire.name.clone()).collect();
    let added = additions(cx, &AddedKey { patches: Patches::clone(&patches), family, context, present });
    all.extend(added.added.into_iter().map(|(_, resource)| resource));
    all
}

/// Whether some of the patches are for resources of a kind.
pub(crate) fn concerns(cx: &Cx<'_>, patches: &Patches, family: Family) -> bool {
    !patches.is_empty() && !cx.get::<Selected>(&(patches.clone(), family)).is_empty()
}

/// One resource as patches make it; `None` if they remove it.
pub(crate) fn one(
    cx: &Cx<'_>,
    patches: &Patches,
    family: Family,
    subject: Subject,
    resource: Arc<Resource>,
) -> Option<Arc<Resource>> {
    if patches.is_empty() {
        return Some(resource);
    }
    let patches = cx.get::<Selected>(&(patches.clone(), family));
    if patches.is_empty() {
        return Some(resource);
    }
    outcome(cx, &patches, family, subject, resource).resource.clone()
}

fn outcome(
    cx: &Cx<'_>,
    patches: &Patches,
    family: Family,
    subject: Subject,
    resource: Arc<Resource>,
) -> Arc<Outcome> {
    cx.get::<Patched>(&PatchedKey { patches: patches.clone(), family, subject, resource: Content(resource) })
}

/// The configurations of extensions that patches define for a client, by name. A root.
pub(crate) struct Extensions;

impl Query for Extensions {
    type Key = crate::scope::ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "patched-extensions";

    fn derive(cx: &Cx<'_>, client: &crate::scope::ProxyKey) -> Vec<Arc<Resource>> {
        let patches = &client.patching.patches;
        all(cx, patches, Family::Extension, PatchContext::Any, Vec::new(), |_| Subject::default())
    }
}
