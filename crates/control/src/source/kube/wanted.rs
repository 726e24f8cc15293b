//! Which Secrets and ConfigMaps are read: those that proxies ask for by SDS, and no others. So the
//! control plane holds, and needs to be allowed to read, what is used and not what there is.

use std::collections::BTreeSet;

use crate::model::credential::{Place, Reference};
use crate::model::{Key, Kind};

/// Secrets and ConfigMaps that are to be read, by their kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted(pub(crate) BTreeSet<(Kind, Key)>);

impl Wanted {
    /// Adds what a proxy in a namespace asks for under the name of an SDS resource. Of a Secret by
    /// its name alone a proxy gets that of its own namespace; another's is named by what was
    /// translated for a Gateway of the Gateway API, when a grant allows it.
    pub(crate) fn add(&mut self, namespace: &str, resource: &str) {
        let Some(reference) = Reference::parse(resource, namespace) else { return };
        if reference.place == Place::Secret && reference.key.namespace != namespace {
            return;
        }
        self.0.extend(reference.objects().map(|key| (reference.kind(), key)));
    }
}

#[cfg(test)]
mod tests {
    use super::Wanted;

    #[test]
    fn what_resources_ask_for() {
        for (resource, expected) in [
            ("kubernetes://web", vec!["Secret a/web"]),
            ("kubernetes://web-cacert", vec!["Secret a/web", "Secret a/web-cacert"]),
            ("kubernetes://a/web", vec!["Secret a/web"]),
            ("kubernetes://b/web", vec![]),
            ("kubernetes-gateway://b/web", vec!["Secret b/web"]),
            ("configmap://b/roots", vec!["ConfigMap b/roots"]),
            ("kubernetes://", vec![]),
            ("default", vec![]),
            ("ROOTCA", vec![]),
            ("builtin://", vec![]),
        ] {
            let mut wanted = Wanted::default();
            wanted.add("a", resource);
            let found: Vec<String> = wanted.0.iter().map(|(kind, key)| format!("{kind} {key}")).collect();
            assert_eq!(found, expected, "{resource}");
        }
    }
}
