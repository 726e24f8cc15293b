//! Which VirtualServices apply to which proxies, in the order in which they count.
//!
//! Nobody walks all of them for one host: two orders over the objects (by host, by gateway) lead to
//! the few that matter, so that a change of one VirtualService reaches only what its hosts and
//! gateways have to do with. `delegate.rs` puts the rules of delegates in their roots' places.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_derive::{Cx, Index, Query};

use super::gateway_api::{ListenerRules, ServiceRules};
use super::{delegate, fit, ingress};
use crate::model::inputs::{VirtualServices, VirtualServicesByNamespace};
use crate::model::virtual_service::{Destination, MESH, VirtualService};
use crate::model::{Config, Key, Kind, Meta, ObjectRef};
use crate::registry::{Export, Mesh, full_name, kubernetes_name};

/// Names a rule: a VirtualService, or what routes of the Gateway API were merged into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RuleId {
    VirtualService(Key),
    /// Those of a listener, by the name of the Gateway that was derived from it, for a host.
    Listener {
        gateway: String,
        host: String,
    },
    /// Those of a Service, by the namespace of the routes.
    Service {
        service: Key,
        route: String,
    },
    /// Those of Ingresses, for a host.
    Ingress {
        host: String,
    },
}

/// Whose rules of matching and failing hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Semantics {
    Istio,
    /// Prefixes end at slashes, and what cannot be had answers 500.
    GatewayApi,
    /// Prefixes end at slashes.
    Ingress,
}

/// A VirtualService with all names in full, or what has the same effect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub(crate) id: RuleId,
    pub(crate) meta: Meta,
    /// Hosts and destinations are full names; gateways are `mesh` or `namespace/name`.
    pub(crate) spec: VirtualService,
    pub(crate) export_to: Export,
    pub(crate) semantics: Semantics,
    /// The objects that it is made of: itself and its delegates, or routes.
    pub(crate) origins: Vec<ObjectRef>,
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

/// A VirtualService by name with full names, roots and delegates alike, each as it was written.
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
        Some(Arc::new(Rule {
            id: RuleId::VirtualService(key.clone()),
            meta: object.meta.clone(),
            spec,
            export_to,
            semantics: Semantics::Istio,
            origins: vec![key.of(Kind::VirtualService)],
        }))
    }
}

/// A VirtualService as proxies get it: with the rules of its delegates. `None` for delegates
/// themselves, which have no hosts.
pub(crate) struct Whole;

impl Query for Whole {
    type Key = Key;
    type Value = Option<Arc<Rule>>;
    const NAME: &'static str = "whole-rule";

    fn derive(cx: &Cx<'_>, key: &Key) -> Option<Arc<Rule>> {
        let rule = cx.get::<Named>(key).as_ref().clone()?;
        if rule.spec.hosts.is_empty() {
            return None;
        }
        if rule.spec.http.iter().all(|http| http.delegate.is_none()) {
            return Some(rule);
        }
        Some(Arc::new(delegate::merged(cx, &rule)))
    }
}

/// VirtualServices by the gateways that they apply to, `mesh` among them.
pub(crate) struct ByGateway;

impl Index for ByGateway {
    type Of = VirtualServices;
    type Bucket = String;
    const NAME: &'static str = "virtual-services-by-gateway";

    fn buckets(key: &Key, object: &Config<VirtualService>) -> Vec<String> {
        object.spec.gateways().map(|gateway| full_gateway(gateway, &key.namespace)).collect()
    }
}

/// VirtualServices for sidecars by their hosts: exact ones by themselves and, so that a wildcard
/// service finds them, by each wildcard that includes them; wildcards by themselves.
pub(crate) struct ByHost;

impl Index for ByHost {
    type Of = VirtualServices;
    type Bucket = HostBucket;
    const NAME: &'static str = "virtual-services-by-host";

    fn buckets(key: &Key, object: &Config<VirtualService>) -> Vec<HostBucket> {
        if !object.spec.gateways().any(|gateway| gateway == MESH) {
            return Vec::new();
        }
        let mut buckets = Vec::new();
        for host in &object.spec.hosts {
            let host = full_name(host, &key.namespace).to_ascii_lowercase();
            if host.starts_with('*') {
                buckets.push(HostBucket::Named(wildcard_bucket(&host)));
            } else {
                buckets.extend(parents(&host).map(HostBucket::Below));
                buckets.push(HostBucket::Named(host));
            }
        }
        buckets
    }
}

/// A group of VirtualServices in the order by hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum HostBucket {
    /// Those that name the host, or a wildcard by its own spelling.
    Named(String),
    /// Those that name a host below a wildcard.
    Below(String),
}

/// The wildcards that include a host, but for `*`, nearest first.
fn parents(host: &str) -> impl Iterator<Item = String> + '_ {
    host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]))
}

/// Where a wildcard is looked for: `*-x.com` has no place among the parents of a host, so it is
/// kept with those that include everything.
fn wildcard_bucket(host: &str) -> String {
    if host.starts_with("*.") { host.to_owned() } else { "*".to_owned() }
}

/// The rules that apply to a gateway (`namespace/name`), or to sidecars (`mesh`), as far as a
/// namespace sees them: those that only it sees first, then those exported to it by name, then those
/// for all; oldest first.
pub(crate) struct GatewayRules;

impl Query for GatewayRules {
    type Key = (String, String);
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "gateway-rules";

    fn derive(cx: &Cx<'_>, (namespace, gateway): &(String, String)) -> Vec<Arc<Rule>> {
        let ingresses = ingress::rules_of(cx, gateway);
        let mut rules = ordered(cx, namespace, cx.bucket::<ByGateway>(gateway), ingresses);
        rules.extend(cx.get::<ListenerRules>(gateway).iter().cloned());
        rules
    }
}

/// A rule by its name.
pub(crate) fn find(cx: &Cx<'_>, id: &RuleId) -> Option<Arc<Rule>> {
    let found = |rules: &[Arc<Rule>]| rules.iter().find(|rule| rule.id == *id).cloned();
    match id {
        RuleId::VirtualService(key) => cx.get::<Whole>(key).as_ref().clone(),
        RuleId::Listener { gateway, .. } => found(&cx.get::<ListenerRules>(gateway)),
        RuleId::Service { service, .. } => found(&cx.get::<ServiceRules>(service)),
        RuleId::Ingress { host } => cx.get::<ingress::HostRule>(host).as_ref().clone(),
    }
}

/// The rules for the sidecars of a namespace.
pub(crate) fn mesh_rules(cx: &Cx<'_>, namespace: &str) -> Arc<Vec<Arc<Rule>>> {
    cx.get::<GatewayRules>(&(namespace.to_owned(), MESH.to_owned()))
}

/// Those of the rules for the sidecars of a namespace that are declared in some namespaces, or have to
/// do with some hosts.
pub(crate) fn for_mesh(
    cx: &Cx<'_>,
    namespace: &str,
    declared_in: &BTreeSet<&str>,
    hosts: &BTreeSet<&str>,
) -> Vec<Arc<Rule>> {
    let mut keys: BTreeSet<Key> = BTreeSet::new();
    for declared_in in declared_in {
        keys.extend(cx.bucket::<VirtualServicesByNamespace>(&(*declared_in).to_owned()));
    }
    for host in hosts {
        keys.extend(host_buckets(host).iter().flat_map(|bucket| cx.bucket::<ByHost>(bucket)));
    }
    let mut rules = ordered(cx, namespace, keys, Vec::new());
    rules.retain(|rule| rule.applies_to(MESH));
    rules
}

/// The groups of rules that may have to do with a host.
fn host_buckets(host: &str) -> Vec<HostBucket> {
    let mut buckets = BTreeSet::from(["*".to_owned(), host.to_owned()]);
    buckets.extend(parents(host));
    let mut buckets: Vec<HostBucket> = buckets.into_iter().map(HostBucket::Named).collect();
    if host.starts_with('*') {
        buckets.push(HostBucket::Below(host.to_owned()));
    }
    buckets
}

/// The rules for the sidecars of a namespace that have to do with a host: that name it or a
/// wildcard that includes it, or, if it is a wildcard itself, that name a host below it. Ordered as
/// [`GatewayRules`] are.
pub(crate) struct HostRules;

impl Query for HostRules {
    type Key = (String, String);
    type Value = Vec<Arc<Rule>>;
    const NAME: &'static str = "host-rules";

    fn derive(cx: &Cx<'_>, (namespace, host): &(String, String)) -> Vec<Arc<Rule>> {
        let keys: BTreeSet<Key> =
            host_buckets(host).iter().flat_map(|bucket| cx.bucket::<ByHost>(bucket)).collect();
        let mut rules = ordered(cx, namespace, keys, service_rules(cx, namespace, host));
        let meets = |pattern: &String| {
            let pattern = pattern.to_ascii_lowercase();
            fit(&pattern, host).is_some() || fit(host, &pattern).is_some()
        };
        rules.retain(|rule| rule.spec.hosts.iter().any(meets));
        rules
    }
}

/// Whether some rule for sidecars names a host, in lower case, wherever the client is.
pub(crate) fn is_named_by_any(cx: &Cx<'_>, host: &str) -> bool {
    !cx.bucket::<ByHost>(&HostBucket::Named(host.to_owned())).is_empty()
}

/// Whether there are rules that [`HostRules`] may have for a host, wherever the client is.
pub(crate) fn are_any_for(cx: &Cx<'_>, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let service = kubernetes_name(&host);
    let service = service.map(|(name, own)| Key { namespace: own.to_owned(), name: name.to_owned() });
    host_buckets(&host).iter().any(|bucket| !cx.bucket::<ByHost>(bucket).is_empty())
        || service.is_some_and(|service| !cx.get::<ServiceRules>(&service).is_empty())
}

/// The rules of routes of the Gateway API for a service that count for clients in a namespace:
/// those of its own routes, and of routes beside the service.
fn service_rules(cx: &Cx<'_>, namespace: &str, host: &str) -> Vec<Arc<Rule>> {
    let Some((name, own)) = kubernetes_name(host) else { return Vec::new() };
    let service = Key { namespace: own.to_owned(), name: name.to_owned() };
    let rules = cx.get::<ServiceRules>(&service);
    let counts = |rule: &&Arc<Rule>| rule.meta.namespace == own || rule.meta.namespace == namespace;
    rules.iter().filter(counts).cloned().collect()
}

/// The rules of the given names that a namespace sees and others, in the order in which they count.
fn ordered(
    cx: &Cx<'_>,
    namespace: &str,
    keys: impl IntoIterator<Item = Key>,
    more: Vec<Arc<Rule>>,
) -> Vec<Arc<Rule>> {
    let rules = keys.into_iter().filter_map(|key| cx.get::<Whole>(&key).as_ref().clone());
    let mut rules: Vec<(Order, Arc<Rule>)> =
        rules.chain(more).filter_map(|rule| Some((Order::of(&rule, namespace)?, rule))).collect();
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    rules.into_iter().map(|(_, rule)| rule).collect()
}

/// Where a rule stands among those that a namespace sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order(u8, bool, (bool, std::cmp::Reverse<usize>), String, String, String);

impl Order {
    /// `None` if the namespace does not see the rule.
    pub(crate) fn of(rule: &Rule, namespace: &str) -> Option<Order> {
        let rank = rule.export_to.rank(namespace)?;
        // Whoever writes routes for others' services means it for themselves.
        let own = rule.semantics == Semantics::GatewayApi && rule.meta.namespace == namespace;
        // Listeners share a port's routes, where the narrower of the hosts that routes ask for counts.
        let width = match &rule.id {
            RuleId::Listener { .. } => rule.spec.hosts.first().map_or("*", String::as_str),
            _ => "",
        };
        let width = (width.starts_with('*'), std::cmp::Reverse(width.len()));
        let (created, name, namespace) = rule.meta.age();
        Some(Order(rank, !own, width, created.to_owned(), name.to_owned(), namespace.to_owned()))
    }
}

/// Of rules in the order in which they count, those whose HTTP rules may be the ones for a host:
/// all that name it; else the one that names the narrowest wildcard, of equals the first.
pub(crate) fn candidates<'r>(rules: &'r [Arc<Rule>], host: &str) -> Vec<&'r Arc<Rule>> {
    let mut exact = Vec::new();
    let mut best: Option<(usize, &Arc<Rule>)> = None;
    for rule in rules {
        for pattern in &rule.spec.hosts {
            if pattern.eq_ignore_ascii_case(host) {
                exact.push(rule);
                break;
            }
            let found = fit(&pattern.to_ascii_lowercase(), host);
            if let Some(found) = found.filter(|found| best.is_none_or(|(most, _)| *found > most)) {
                best = Some((found, rule));
            }
        }
    }
    if exact.is_empty() { best.into_iter().map(|(_, rule)| rule).collect() } else { exact }
}

/// Replaces short names by full ones.
fn complete(spec: &mut VirtualService, namespace: &str) {
    for host in &mut spec.hosts {
        *host = full_name(host, namespace);
    }
    let gateways = |gateways: &mut Vec<String>| {
        gateways.iter_mut().for_each(|gateway| *gateway = full_gateway(gateway, namespace));
    };
    gateways(&mut spec.gateways);
    let destination =
        |destination: &mut Destination| destination.host = full_name(&destination.host, namespace);
    for rule in &mut spec.http {
        rule.route.iter_mut().for_each(|target| destination(&mut target.destination));
        rule.mirror.iter_mut().for_each(destination);
        rule.mirrors.iter_mut().for_each(|mirror| destination(&mut mirror.destination));
        rule.r#match.iter_mut().for_each(|found| gateways(&mut found.gateways));
    }
    for rule in &mut spec.tcp {
        rule.route.iter_mut().for_each(|target| destination(&mut target.destination));
        rule.r#match.iter_mut().for_each(|found| gateways(&mut found.gateways));
    }
    for rule in &mut spec.tls {
        rule.route.iter_mut().for_each(|target| destination(&mut target.destination));
        rule.r#match.iter_mut().for_each(|found| gateways(&mut found.gateways));
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

#[cfg(test)]
mod tests {
    use super::{parents, wildcard_bucket};

    #[test]
    fn a_host_has_the_wildcards_above_it_for_parents() {
        assert_eq!(parents("a.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c"]);
        assert_eq!(parents("a").count(), 0);
        assert_eq!(wildcard_bucket("*.b"), "*.b");
        assert_eq!(wildcard_bucket("*-a.b"), "*");
    }
}
