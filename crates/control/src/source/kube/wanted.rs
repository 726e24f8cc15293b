//! Which Secrets and ConfigMaps are read: those that proxies ask for by SDS, and no others. So the
//! control plane holds, and needs to be allowed to read, what is used and not what there is.

use std::collections::BTreeSet;

use crate::model::{Key, Kind};

/// Marks the name of the roots that belong to a credential; they may be in a Secret of this name, or
/// beside the certificate in the one without it.
const CA_SUFFIX: &str = "-cacert";

/// Secrets and ConfigMaps that are to be read, by their kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted(pub(crate) BTreeSet<(Kind, Key)>);

impl Wanted {
    /// Adds what a proxy in a namespace asks for under the name of an SDS resource. Of a Secret by
    /// its name alone a proxy gets that of its own namespace; another's is named by what was
    /// translated for a Gateway of the Gateway API, when a grant allows it.
    pub(crate) fn add(&mut self, namespace: &str, resource: &str) {
        let (kind, rest, foreign) = if let Some(rest) = resource.strip_prefix("kubernetes://") {
            (Kind::Secret, rest, false)
        } else if let Some(rest) = resource.strip_prefix("kubernetes-gateway://") {
            (Kind::Secret, rest, true)
        } else if let Some(rest) = resource.strip_prefix("configmap://") {
            (Kind::ConfigMap, rest, true)
        } else {
            return;
        };
        let (place, name) = rest.split_once('/').unwrap_or((namespace, rest));
        if name.is_empty() || place.is_empty() || (!foreign && place != namespace) {
            return;
        }
        for name in [Some(name), name.strip_suffix(CA_SUFFIX)].into_iter().flatten() {
            self.0.insert((kind, Key { namespace: place.to_owned(), name: name.to_owned() }));
        }
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
