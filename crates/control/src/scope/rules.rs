//! Which VirtualServices apply to whom.

use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::fit;
use crate::model::inputs::VirtualServices;
use crate::model::virtual_service::{Destination, MESH, VirtualService};
use crate::model::{Key, Kind, Meta, ObjectRef};
use crate::registry::{Export, Mesh, full_name};

/// A VirtualService with all names in full.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub(crate) meta: Meta,
    /// Hosts and destinations are full names; gateways are `mesh` or `namespace/name`.
    pub(crate) spec: VirtualService,
    pub(crate) export_to: Export,
}

impl Rule {
    /// Names the object.
    pub(crate) fn object(&self) -> ObjectRef {
        self.meta.key().of(Kind::VirtualService)
    }

    /// Whether it applies to sidecars or to a gateway, going by its list as a whole.
    pub(crate) fn applies_to(&self, gateway: &str) -> bool {
        self.spec.gateways().any(|name| name == gateway)
    }
}

/// A VirtualService by name, with full names.
pub(crate) struct Named;

impl Query for Named {
    type Key = Key;
    type Value = Option<Arc<Rule>>;
    const NAME: &'static str = "rule";

    fn derive(cx: &Cx<'_>, key: &Key) -> Option<Arc<Rule>> {
        let object = cx.input::<VirtualServices>(key)?;
        let mesh = cx.get::<Mesh>(&());
        let mut spec = object.spec.clone();
        complete(&mut spec, &key.namespace);
        let default = &mesh.default_virtual_service_export_to;
        let export_to = Export::new(&key.namespace, &spec.export_to, default);
        Some(Arc::new(Rule { meta: object.meta.clone(), spec, export_to }))
    }
}

/// All rules that a namespace sees, oldest first.
pub(crate) struct VisibleRules;

impl Query for VisibleRules {
    type Key = String;
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "visible-rules";

    fn derive(cx: &Cx<'_>, namespace: &String) -> Vec<Arc<Rule>> {
        let keys = cx.all::<VirtualServices>();
        let mut rules: Vec<Arc<Rule>> = keys
            .iter()
            .filter_map(|key| cx.get::<Named>(key).as_ref().clone())
            .filter(|rule| rule.export_to.reaches(namespace))
            .collect();
        rules.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
        rules
    }
}

/// The rules that apply to the sidecars of a namespace, oldest first.
pub(crate) struct MeshRules;

impl Query for MeshRules {
    type Key = String;
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "mesh-rules";

    fn derive(cx: &Cx<'_>, namespace: &String) -> Vec<Arc<Rule>> {
        cx.get::<VisibleRules>(namespace).iter().filter(|rule| rule.applies_to(MESH)).cloned().collect()
    }
}

/// Of rules ordered by age, the one that a host belongs to: the one that names it most exactly, and
/// of equals the oldest.
pub(crate) fn owner<'r>(
    rules: &'r [Arc<Rule>],
    host: &str,
    of: impl Fn(&Rule) -> bool,
) -> Option<&'r Arc<Rule>> {
    let mut best: Option<(usize, &Arc<Rule>)> = None;
    for rule in rules.iter().filter(|rule| of(rule)) {
        let Some(found) = rule.spec.hosts.iter().filter_map(|pattern| fit(pattern, host)).max() else {
            continue;
        };
        if best.is_none_or(|(most, _)| found > most) {
            best = Some((found, rule));
        }
    }
    best.map(|(_, rule)| rule)
}

/// Replaces short names by full ones.
fn complete(spec: &mut VirtualService, namespace: &str) {
    for host in &mut spec.hosts {
        *host = full_name(host, namespace);
    }
    for gateway in &mut spec.gateways {
        *gateway = full_gateway(gateway, namespace);
    }
    let destination =
        |destination: &mut Destination| destination.host = full_name(&destination.host, namespace);
    for rule in &mut spec.http {
        rule.route.iter_mut().for_each(|target| destination(&mut target.destination));
        rule.mirror.iter_mut().for_each(destination);
        rule.mirrors.iter_mut().for_each(|mirror| destination(&mut mirror.destination));
        for gateway in rule.r#match.iter_mut().flat_map(|found| &mut found.gateways) {
            *gateway = full_gateway(gateway, namespace);
        }
    }
    for rule in &mut spec.tcp {
        rule.route.iter_mut().for_each(|target| destination(&mut target.destination));
        for gateway in rule.r#match.iter_mut().flat_map(|found| &mut found.gateways) {
            *gateway = full_gateway(gateway, namespace);
        }
    }
    for rule in &mut spec.tls {
        rule.route.iter_mut().for_each(|target| destination(&mut target.destination));
    }
}

/// `namespace/name` of a gateway named in an object of a namespace.
pub(crate) fn full_gateway(gateway: &str, namespace: &str) -> String {
    if gateway == MESH {
        return gateway.to_owned();
    }
    match gateway.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(_) => gateway.to_owned(),
        None => format!("{namespace}/{gateway}"),
    }
}
