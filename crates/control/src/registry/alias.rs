//! Services that are other names of others: Services of type ExternalName whose name is that of a
//! service of the mesh.
//!
//! Such a service has no clusters and listeners. Clients that ask for it by name get what the
//! service itself would give them: its virtual hosts carry the names of its aliases too, and rules
//! that lead to the alias lead to the service.

use leno_derive::{Cx, Index, Query};

use super::{ServicesOf, is_declared, kubernetes_name};
use crate::model::inputs::{ServiceEntries, Services};
use crate::model::service_entry::ServiceEntry;
use crate::model::{Config, Key, Kind, kube};
use crate::registry::{DOMAIN, Service};

/// How many names may stand for one another in a row.
const MOST_HOPS: usize = 8;

/// Services by the name that they stand for.
pub(crate) struct ServicesByExternalName;

impl Index for ServicesByExternalName {
    type Of = Services;
    type Bucket = String;
    const NAME: &'static str = "services-by-external-name";

    fn buckets(_: &Key, service: &kube::Service) -> Vec<String> {
        service.external_name.iter().map(|name| normal(name).to_owned()).collect()
    }
}

/// ServiceEntries by all names that a client, wherever it is, may know one of their hosts by: in lower case
/// and without a dot at the end.
pub(crate) struct EntriesByName;

impl Index for EntriesByName {
    type Of = ServiceEntries;
    type Bucket = String;
    const NAME: &'static str = "service-entries-by-name";

    fn buckets(_: &Key, entry: &Config<ServiceEntry>) -> Vec<String> {
        let mut names = Vec::new();
        for host in &entry.spec.hosts {
            let host = host.to_ascii_lowercase();
            let host = host.strip_suffix('.').unwrap_or(&host);
            if let Some((name, namespace)) = kubernetes_name(host) {
                let base = format!("{name}.{namespace}");
                names.extend([name.to_owned(), format!("{base}.svc"), base]);
            }
            names.push(host.to_owned());
        }
        names
    }
}

/// The host of the mesh that a Service is another name of, over several names if need be.
pub(super) fn target(cx: &Cx<'_>, service: &kube::Service) -> Option<String> {
    let mut host = normal(service.external_name.as_deref()?).to_owned();
    for _ in 0..MOST_HOPS {
        match of_host(cx, &host).map(|next| next.external_name.clone()) {
            Some(Some(name)) => normal(&name).clone_into(&mut host),
            Some(None) => return Some(host),
            None => return is_declared(cx, &host).then_some(host),
        }
    }
    // A circle, which leads nowhere.
    None
}

/// The hosts of all aliases of a host, in order, with their namespaces: `(host, namespace)`.
pub(crate) struct AliasesOf;

impl Query for AliasesOf {
    type Key = String;
    type Value = Vec<(String, String)>;
    const NAME: &'static str = "aliases-of";

    fn derive(cx: &Cx<'_>, host: &String) -> Vec<(String, String)> {
        let mut aliases = Vec::new();
        let mut names = vec![host.clone()];
        while let Some(name) = names.pop() {
            for key in cx.bucket::<ServicesByExternalName>(&name) {
                for service in cx.get::<ServicesOf>(&key.of(Kind::Service)).iter() {
                    let alias = (service.id.host.clone(), service.namespace().to_owned());
                    if service.alias_of.as_ref() == Some(host) && !aliases.contains(&alias) {
                        names.push(alias.0.clone());
                        aliases.push(alias);
                    }
                }
            }
        }
        aliases.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
        aliases
    }
}

/// The host that stands behind a service: its own, or that which it is an alias of.
pub(crate) fn concrete(service: &Service) -> &str {
    service.alias_of.as_deref().unwrap_or(&service.id.host)
}

fn of_host(cx: &Cx<'_>, host: &str) -> Option<std::sync::Arc<kube::Service>> {
    let (name, namespace) = host.strip_suffix(&format!(".svc.{DOMAIN}"))?.split_once('.')?;
    cx.input::<Services>(&Key { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn normal(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}
