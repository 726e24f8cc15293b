//! The hosts that a listener of a Sidecar imports: `NAMESPACE/HOST`, where the namespace may be `.`,
//! `*`, or begin with `~` for what is not imported after all.

use std::collections::BTreeMap;

use super::super::rules::{Rule, Semantics};
use super::super::{fit, intersection};
use crate::registry::Service;

/// The namespace that stands for all.
const ANY: &str = "*";

/// What is imported, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Imports {
    by_namespace: BTreeMap<String, Hosts>,
}

/// Hosts, which may be wildcards, in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hosts {
    wanted: Vec<String>,
    excluded: Vec<String>,
}

impl Hosts {
    fn have(&self, host: &str) -> bool {
        self.wanted.iter().any(|wanted| fit(wanted, host).is_some())
    }

    fn exclude(&self, host: &str) -> bool {
        self.excluded.iter().any(|excluded| fit(excluded, host).is_some())
    }
}

impl Imports {
    /// Reads a list for clients in a namespace. What is malformed, which validation has refused, is
    /// passed over.
    pub(super) fn new(hosts: &[String], own: &str) -> Imports {
        let mut imports = Imports::default();
        for text in hosts {
            let Some((namespace, host)) = text.split_once('/') else { continue };
            let (namespace, excluded) = match namespace.strip_prefix('~') {
                Some("") => (ANY, true),
                Some(namespace) => (namespace, true),
                None => (namespace, false),
            };
            let namespace = if namespace == "." { own } else { namespace };
            let hosts = imports.by_namespace.entry(namespace.to_owned()).or_default();
            let list = if excluded { &mut hosts.excluded } else { &mut hosts.wanted };
            list.push(host.to_ascii_lowercase());
        }
        imports
    }

    /// All there is.
    pub(super) fn everything() -> Imports {
        let all = Hosts { wanted: vec![ANY.to_owned()], excluded: Vec::new() };
        Imports { by_namespace: BTreeMap::from([(ANY.to_owned(), all)]) }
    }

    /// The hosts with their namespaces; `None` stands for all.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.by_namespace.iter().flat_map(|(namespace, hosts)| {
            let namespace = (namespace != ANY).then_some(namespace.as_str());
            hosts.wanted.iter().map(move |host| (namespace, host.as_str()))
        })
    }

    /// What is said of a namespace, by its name and for all.
    fn about(&self, namespace: &str) -> impl Iterator<Item = &Hosts> {
        [namespace, ANY].into_iter().filter_map(|namespace| self.by_namespace.get(namespace))
    }

    fn exclude(&self, namespace: &str, host: &str) -> bool {
        self.about(namespace).any(|hosts| hosts.exclude(host))
    }

    /// Whether a host of a namespace is imported.
    pub(crate) fn has(&self, namespace: &str, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        !self.exclude(namespace, &host) && self.about(namespace).any(|hosts| hosts.have(&host))
    }

    /// Whether a service is.
    pub(super) fn has_service(&self, service: &Service) -> bool {
        self.has(service.namespace(), &service.id.host)
    }

    /// Whether a rule is: one of its hosts is enough. As in Istio a rule for a wildcard is imported
    /// with any host that the wildcard includes, but for rules of the Gateway API.
    pub(super) fn has_rule(&self, rule: &Rule) -> bool {
        let namespace = rule.meta.namespace.as_str();
        rule.spec.hosts.iter().any(|host| {
            let host = host.to_ascii_lowercase();
            let meets = |wanted: &String| match rule.semantics {
                Semantics::Istio | Semantics::Ingress => intersection(wanted, &host).is_some(),
                Semantics::GatewayApi => fit(wanted, &host).is_some(),
            };
            !self.exclude(namespace, &host)
                && self.about(namespace).any(|hosts| hosts.wanted.iter().any(meets))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Imports;

    #[test]
    fn hosts_are_imported_by_namespace() {
        let check = |hosts: &[&str], namespace: &str, host: &str, expected: bool| {
            let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
            assert_eq!(
                Imports::new(&hosts, "own").has(namespace, host),
                expected,
                "{hosts:?} {namespace}/{host}"
            );
        };
        check(&["*/*"], "a", "x.y", true);
        check(&["./*"], "own", "x.y", true);
        check(&["./*"], "a", "x.y", false);
        check(&["a/*"], "a", "x.y", true);
        check(&["a/*.y"], "a", "x.y", true);
        check(&["a/*.y"], "a", "X.Y", true);
        check(&["a/*.y"], "a", "x.z", false);
        check(&["a/x.y"], "a", "x.y", true);
        check(&["a/x.y"], "b", "x.y", false);
        check(&["*/x.y"], "b", "x.y", true);
        // What is said of a namespace adds to what is said of all.
        check(&["a/x.y", "*/x.z"], "a", "x.z", true);
        check(&["a/*.y"], "a", "*.y", true);
        check(&["a/*.y"], "a", "*.x.y", true);
        check(&["a/x.y"], "a", "*.y", false);
        check(&["~/*"], "own", "x.y", false);
        check(&["*/*", "~a/*"], "a", "x.y", false);
        check(&["*/*", "~a/*"], "b", "x.y", true);
        check(&["*/*", "~/x.y"], "b", "x.y", false);
        check(&["*/*", "~./x.y"], "own", "x.y", false);
        check(&["*/*", "~./x.y"], "a", "x.y", true);
    }
}
