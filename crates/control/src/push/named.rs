//! Resources that proxies ask for one by one.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use leno_base::Name;
use leno_xds::server::Resources;

use crate::model::ObjectRef;
use crate::translate::resource::Resource;

/// The resources of a type that were asked for, as far as they exist.
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
        self.asked.insert(name.clone())
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

    fn remove(&mut self, name: &str) {
        self.resources.remove(name);
        self.list.remove(name);
    }

    /// All there are.
    pub(crate) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Their names, and the objects that each comes from.
    pub(crate) fn origins(&self) -> Vec<(&str, &[ObjectRef])> {
        self.list.values().map(|resource| (resource.name(), resource.origins.as_slice())).collect()
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
