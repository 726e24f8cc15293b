//! The names under which proxies ask for credentials by SDS, and what each means.
//!
//! `kubernetes://NAME` and `kubernetes://NAMESPACE/NAME` are Secrets, `kubernetes-gateway://NAMESPACE/NAME`
//! Secrets that a Gateway of the Gateway API names, `configmap://NAMESPACE/NAME` ConfigMaps, of which
//! only the roots are given. With the suffix `-cacert` only the roots of a Secret are meant. What a
//! rule may write as a `credentialName` is made into such a name in `translate/secret.rs`.

use super::{Key, Kind};

/// Marks the name of the roots that belong to a credential; they may be in a Secret of this name, or
/// beside the certificate in the one without it.
pub(crate) const CA_SUFFIX: &str = "-cacert";

/// Credentials of the proxy's own namespace.
pub(crate) const SECRET: &str = "kubernetes://";

/// Credentials that a Gateway of the Gateway API names, of any namespace that allows it.
pub(crate) const GATEWAY: &str = "kubernetes-gateway://";

/// Credentials that anybody may read.
pub(crate) const CONFIG_MAP: &str = "configmap://";

/// Where a credential comes from, and so who may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// A Secret in the proxy's namespace.
    Secret,
    /// A Secret that a Gateway of the Gateway API names.
    Gateway,
    /// A ConfigMap.
    ConfigMap,
}

/// What the name of an SDS resource means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    pub(crate) place: Place,
    /// The object, with the suffix if the name has it.
    pub(crate) key: Key,
}

impl Reference {
    /// What a proxy in a namespace means by a name; `None` if that is nothing that is served here.
    pub(crate) fn parse(name: &str, namespace: &str) -> Option<Reference> {
        let (place, rest) = if let Some(rest) = name.strip_prefix(SECRET) {
            (Place::Secret, rest)
        } else if let Some(rest) = name.strip_prefix(GATEWAY) {
            (Place::Gateway, rest)
        } else {
            (Place::ConfigMap, name.strip_prefix(CONFIG_MAP)?)
        };
        let (namespace, name) = match rest.split_once('/') {
            Some((namespace, name)) => (namespace, name),
            None if place == Place::Secret => (namespace, rest),
            None => return None,
        };
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return None;
        }
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        Some(Reference { place, key })
    }

    /// The kind of its object.
    pub(crate) fn kind(&self) -> Kind {
        match self.place {
            Place::Secret | Place::Gateway => Kind::Secret,
            Place::ConfigMap => Kind::ConfigMap,
        }
    }

    /// Whether only roots are asked for, which are no secret.
    pub(crate) fn is_roots(&self) -> bool {
        self.place == Place::ConfigMap || self.key.name.ends_with(CA_SUFFIX)
    }

    /// The objects that it may be found in, the first that there is counts.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Key> {
        let bare = self.key.name.strip_suffix(CA_SUFFIX).filter(|bare| !bare.is_empty());
        // Nobody calls a ConfigMap so: there the suffix is only what was added to its name.
        let whole = (self.place != Place::ConfigMap || bare.is_none()).then_some(self.key.name.as_str());
        let names = [whole, bare].into_iter().flatten();
        names.map(|name| Key { namespace: self.key.namespace.clone(), name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn what_names_mean() {
        for (name, expected) in [
            ("kubernetes://web", Some("Secret a/web")),
            ("kubernetes://web-cacert", Some("Secret a/web-cacert, a/web")),
            ("kubernetes://b/web", Some("Secret b/web")),
            ("kubernetes-gateway://b/web", Some("Secret b/web")),
            ("kubernetes-gateway://b/web-cacert", Some("Secret b/web-cacert, b/web")),
            ("configmap://b/roots", Some("ConfigMap b/roots")),
            ("configmap://b/roots-cacert", Some("ConfigMap b/roots")),
            ("kubernetes-gateway://web", None),
            ("configmap://roots", None),
            ("kubernetes://", None),
            ("kubernetes:///web", None),
            ("kubernetes://a/b/c", None),
            ("default", None),
            ("ROOTCA", None),
            ("builtin://", None),
        ] {
            let found = Reference::parse(name, "a").map(|reference| {
                let objects: Vec<String> = reference.objects().map(|key| key.to_string()).collect();
                format!("{} {}", reference.kind(), objects.join(", "))
            });
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }
}
