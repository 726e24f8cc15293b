//! Which services a host in a rule may mean.

use std::collections::{BTreeMap, BTreeSet};

use leno_derive::Cx;
use serde_json::Value;

use crate::analyze::raw::{all, at, labels, list, texts};
use crate::registry::{full_name, kubernetes_host};
use crate::scope::fit;

/// A service: its ports, and whom it selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) ports: Vec<u64>,
    /// Labels of the workloads of a ServiceEntry.
    pub(super) selector: BTreeMap<String, String>,
}

/// All services: by the namespace that sees them (`*`: all) and host.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<(String, String), Known>);

/// The namespaces that an `exportTo` of an object names, `*` for all.
pub(super) fn scopes(export_to: &[&str], namespace: &str) -> BTreeSet<String> {
    if export_to.is_empty() || export_to.contains(&"*") {
        return BTreeSet::from(["*".to_owned()]);
    }
    export_to.iter().map(|to| if *to == "." { namespace } else { to }.to_owned()).collect()
}

impl Hosts {
    /// Gathers all services.
    pub(super) fn gather(cx: &Cx<'_>) -> Hosts {
        let mut hosts = Hosts::default();
        for entry in all(cx, "ServiceEntry") {
            let numbers =
                list(entry.at("/spec/ports")).iter().filter_map(|port| at(port, "/number").as_u64());
            let selector = labels(entry.at("/spec/workloadSelector/labels"));
            let known = Known {
                ports: numbers.collect(),
                selector: selector.0.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            };
            for scope in scopes(&texts(entry.at("/spec/exportTo")), &entry.key.namespace) {
                for host in texts(entry.at("/spec/hosts")) {
                    hosts.0.insert((scope.clone(), full_name(host, &entry.key.namespace)), known.clone());
                }
            }
        }
        for service in all(cx, "Service") {
            let ports = list(service.at("/spec/ports")).iter().filter_map(|port| at(port, "/port").as_u64());
            let known = Known { ports: ports.collect(), selector: BTreeMap::new() };
            let annotation = service.annotations().find("networking.istio.io/exportTo").unwrap_or_default();
            let named: Vec<&str> = annotation.split(',').map(str::trim).filter(|to| !to.is_empty()).collect();
            for scope in scopes(&named, &service.key.namespace) {
                let host = kubernetes_host(&service.key.name, &service.key.namespace);
                hosts.0.insert((scope, host), known.clone());
            }
        }
        hosts
    }

    /// The service that a host means in an object of a namespace.
    pub(super) fn find(&self, host: &str, namespace: &str, export_to: &Value) -> Option<&Known> {
        let host = full_name(host, namespace);
        let mut seen = vec!["*".to_owned()];
        match texts(export_to) {
            named if named.is_empty() => seen.push(namespace.to_owned()),
            named => seen.extend(named.iter().map(|to| if *to == "." { namespace } else { to }.to_owned())),
        }
        let exact = seen.iter().find_map(|scope| self.0.get(&(scope.clone(), host.clone())));
        exact.or_else(|| {
            let visible = self.0.iter().filter(|((scope, _), _)| scope == "*" || scope == namespace);
            let any = |known: &str| known.starts_with('*') && fit(known, &host).is_some();
            visible.filter(|((_, known), _)| any(known)).map(|(_, known)| known).next()
        })
    }
}
