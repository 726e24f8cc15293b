//! Resources of one type as proxies of a kind are told of them: of some types one by one, of others
//! all there are.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use leno_base::Name;
use leno_xds::server::Resources;

use crate::model::ObjectRef;
use crate::translate::resource::Resource;

/// The resources of a type that were asked for by their names, as far as they exist.
#[derive(Debug, Default)]
pub(crate) struct Named {
    resources: Resources,
    /// As they were derived.
    list: BTreeMap<Name, Arc<Resource>>,
    asked: HashSet<Name>,
}

impl Named {
    /// Notes that a resource is asked for; true if it was not before.
    pub(crate) fn ask(&mut self, name: &Name) -> bool {
        !self.asked.contains(name) && self.asked.insert(name.clone())
    }

    /// A new state of a resource; `None` if it does not exist.
    pub(crate) fn set(&mut self, name: &str, resource: Option<&Arc<Resource>>, version: Name) {
        match resource {
            Some(resource) => {
                self.resources.insert(resource.wire.clone());
                self.list.insert(resource.wire.name.clone(), Arc::clone(resource));
            }
            None => self.remove(name),
        }
        self.resources.set_version(version);
    }

    /// The resources are as they were, in a later version.
    pub(crate) fn keep(&mut self, version: Name) {
        self.resources.set_version(version);
    }

    fn remove(&mut self, name: &str) {
        self.resources.remove(name);
        self.list.remove(name);
    }

    /// All there are.
    pub(crate) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// One of them.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Resource>> {
        self.list.get(name)
    }

    /// All there are, as they were derived.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.list.values()
    }

    /// The names that were asked for, in any order.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &Name> {
        self.asked.iter()
    }

    /// Lets go of what is not wanted any more, and gives its names.
    pub(crate) fn release_unwanted(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<Name> {
        let unwanted: Vec<Name> = self.asked.extract_if(|name| !wanted(name)).collect();
        for name in &unwanted {
            self.remove(name);
        }
        unwanted
    }
}

/// The resources of a type of which proxies are told of all.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    resources: Resources,
    /// As they were derived.
    list: Arc<Vec<Arc<Resource>>>,
    asked: bool,
}

impl Whole {
    /// Notes that they are asked for; true if they were not before.
    pub(crate) fn ask(&mut self) -> bool {
        !std::mem::replace(&mut self.asked, true)
    }

    /// Whether they were asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked
    }

    /// A new state.
    pub(crate) fn set(&mut self, list: Arc<Vec<Arc<Resource>>>, version: Name) {
        self.resources.replace(list.iter().map(|resource| resource.wire.clone()));
        self.resources.set_version(version);
        self.list = list;
    }

    /// All there are.
    pub(crate) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// All there are, as they were derived.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.list.iter()
    }
}

/// The names of resources, and the objects that each comes from.
pub(crate) fn origins<'r>(
    resources: impl IntoIterator<Item = &'r Arc<Resource>>,
) -> impl Iterator<Item = (&'r str, &'r [ObjectRef])> {
    resources.into_iter().map(|resource| (resource.name(), resource.origins.as_slice()))
}
