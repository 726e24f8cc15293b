//! Who sees what: which proxies there are to the eyes of translation, and what applies to each.
//!
//! - [`ProxyKey`]: everything that translation may know of a proxy. Proxies with the same key share
//!   every derivation and every encoded byte; `shared.rs` keeps it small as a key;
//! - `client.rs`: what of a proxy matters to what it calls: nearly all proxies share that;
//! - `rules.rs`: which VirtualServices apply; `policy.rs`: which DestinationRules, merged;
//!   `sidecar/`: which services and rules a workload's proxy knows at all, if a Sidecar says;
//!   `locality.rs`: what endpoints depend on of a client; `gateways.rs`: which servers a gateway
//!   proxy has; `security.rs`: which policies say who may call a workload; `telemetry.rs`: what is
//!   observed of it; `proxy_config.rs`: what a proxy was started with; `patches.rs`: which patches of
//!   EnvoyFilters apply; `ingress.rs`: Ingresses as Gateways and rules.

pub(crate) mod client;
pub(crate) mod delegate;
pub(crate) mod gateway_api;
pub(crate) mod gateways;
pub(crate) mod ingress;
pub(crate) mod locality;
pub(crate) mod mutual_tls;
pub(crate) mod outbound;
pub(crate) mod patches;
pub(crate) mod policy;
pub(crate) mod proxy_config;
pub(crate) mod rules;
pub(crate) mod security;
mod shared;
pub(crate) mod sidecar;
pub(crate) mod telemetry;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use leno_derive::{Cx, Graph, Index, Query};

use self::proxy_config::Overrides;
use self::shared::Shared;
use crate::model::destination_rule::DestinationRule;
use crate::model::duration::Span;
use crate::model::inputs::{DestinationRules, VirtualServices};
use crate::model::virtual_service::VirtualService;
use crate::model::{Config, Key};
use crate::registry;
use crate::registry::targets::Workload;

/// Tells a graph of all secondary orders, of this layer and of those below; to be called once, before
/// the first commit.
pub(crate) fn register(graph: &mut Graph) {
    registry::register(graph);
    graph.register::<SelectingRules>();
    graph.register::<SelectingPolicies>();
    graph.register::<ingress::IngressesByHost>();
    graph.register::<locality::PlacingPolicies>();
    graph.register::<policy::RulesByHost>();
    graph.register::<rules::ByGateway>();
    graph.register::<rules::ByHost>();
    gateway_api::register(graph);
}

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    /// Beside a workload.
    Sidecar,
    /// At the edge of the mesh.
    Router,
    /// None at all: the workload is a gRPC application that asks for itself.
    Grpc,
}

/// How a sidecar gets hold of its workload's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Interception {
    /// By iptables, with the original destination at hand.
    Redirect,
    /// By iptables, with the client's address kept as well.
    Tproxy,
    /// Not at all: the workload uses the proxy as its HTTP proxy at this address.
    Explicit { address: IpAddr, port: u16 },
}

/// [`ProxyFacts`], shared by all that is derived of them.
#[derive(Clone)]
pub(crate) struct ProxyKey {
    facts: Shared<ProxyFacts>,
    /// The viewer that it is as a client, when it has been asked for.
    viewer: Arc<OnceLock<Viewer>>,
}

/// Everything that translation may know of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProxyFacts {
    pub(crate) role: Role,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) interception: Interception,
    pub(crate) families: Families,
    pub(crate) options: ProxyOptions,
    pub(crate) site: Site,
    pub(crate) identity: Arc<Identity>,
    /// The Sidecar that narrows what it sees; only of proxies as clients, in which nothing is left of
    /// the labels that it was chosen by.
    pub(crate) sidecar: Option<Key>,
    pub(crate) patching: patches::Patching,
}

/// What a proxy asks for by the metadata of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProxyOptions {
    /// `HTTP10`: to accept HTTP/1.0.
    pub(crate) http10: bool,
    /// `IDLE_TIMEOUT`: how long connections may be idle.
    pub(crate) idle_timeout: Option<Span>,
    /// `DNS_CAPTURE`: names are looked up by its agent, which answers with the addresses that
    /// ServiceEntries without any are given. Nobody else ever connects to these.
    pub(crate) dns_capture: bool,
    /// What it has that not every proxy has.
    pub(crate) abilities: Abilities,
    /// What it was started with other than the mesh's `defaultConfig`.
    pub(crate) overrides: Overrides,
}

/// A set of extensions that not every proxy has: Istio's own, which an Envoy that was not built by
/// Istio refuses, and some of Envoy's that Leno's proxies do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Abilities(u16);

impl Abilities {
    /// `istio.stats` among the filters of requests.
    pub(crate) const HTTP_STATS: Abilities = Abilities(1);
    /// `istio.stats` among the filters of connections.
    pub(crate) const TCP_STATS: Abilities = Abilities(1 << 1);
    /// `istio.metadata_exchange` among the filters of requests.
    pub(crate) const HTTP_PEERS: Abilities = Abilities(1 << 2);
    /// `istio.metadata_exchange` among the filters of connections, from clients and to servers.
    pub(crate) const TCP_PEERS: Abilities = Abilities(1 << 3);
    /// `istio.alpn`.
    pub(crate) const ALPN: Abilities = Abilities(1 << 4);
    /// `envoy.tracers.datadog`.
    pub(crate) const DATADOG: Abilities = Abilities(1 << 5);
    /// `envoy.tracers.skywalking`.
    pub(crate) const SKYWALKING: Abilities = Abilities(1 << 6);
    /// Clusters are asked for when they are first used: `envoy.filters.http.on_demand`, and the will
    /// to do so.
    pub(crate) const ON_DEMAND: Abilities = Abilities(1 << 7);
    /// So are virtual hosts. Not without the one above.
    pub(crate) const HOSTS_ON_DEMAND: Abilities = Abilities(1 << 8);
    /// Another agent gives it its certificate, its own agent what is in files, on a socket of its own
    /// (`file-credential` in the node's metadata).
    pub(crate) const FILES_APART: Abilities = Abilities(1 << 9);
    /// Somebody beside it gives credentials on a socket (`credential` in the node's metadata).
    pub(crate) const CREDENTIALS: Abilities = Abilities(1 << 10);

    /// Adds what another set has.
    pub(crate) fn insert(&mut self, other: Abilities) {
        self.0 |= other.0;
    }

    /// Takes away what another set has.
    pub(crate) fn remove(&mut self, other: Abilities) {
        self.0 &= !other.0;
    }

    /// Whether all of another set is there.
    pub(crate) fn has(self, other: Abilities) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Who a proxy is to those who look at what it reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    /// `node.cluster`, which its spans are filed under.
    pub(crate) cluster: String,
    /// The same by the conventions of OpenTelemetry.
    pub(crate) otel_name: String,
    /// Istio's canonical service and revision; empty if unknown.
    pub(crate) service: String,
    pub(crate) revision: String,
    /// `MESH_ID` and `CLUSTER_ID`; empty if unknown.
    pub(crate) mesh: String,
    pub(crate) registry: String,
}

/// Where a proxy runs, and what it finds there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Site {
    /// `region/zone/subzone`, of which the end may be missing; empty if unknown.
    pub(crate) locality: String,
    /// The network that it can reach others in directly; empty if unknown.
    pub(crate) network: String,
    /// The machine; empty if unknown, or if nothing in the mesh depends on it.
    pub(crate) node: String,
    /// Whether an agent beside it gives it the mesh's certificates.
    pub(crate) certificates: bool,
}

/// The kinds of addresses that a proxy can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Families {
    #[default]
    V4,
    V6,
    Both,
}

impl Families {
    /// What a proxy with these addresses can reach.
    pub(crate) fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Families {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.into_iter().partition(|address| address.to_canonical().is_ipv4());
        match (v4.is_empty(), v6.is_empty()) {
            (_, true) => Families::V4,
            (true, false) => Families::V6,
            (false, false) => Families::Both,
        }
    }

    /// Whether such an address can be reached.
    pub(crate) fn includes(self, address: IpAddr) -> bool {
        match self {
            Families::V4 => address.to_canonical().is_ipv4(),
            Families::V6 => address.to_canonical().is_ipv6(),
            Families::Both => true,
        }
    }
}

impl From<ProxyFacts> for ProxyKey {
    fn from(facts: ProxyFacts) -> ProxyKey {
        ProxyKey { facts: Shared::from(facts), viewer: Arc::default() }
    }
}

impl Deref for ProxyKey {
    type Target = ProxyFacts;

    fn deref(&self) -> &ProxyFacts {
        &self.facts
    }
}

impl PartialEq for ProxyKey {
    fn eq(&self, other: &ProxyKey) -> bool {
        self.facts == other.facts
    }
}

impl Eq for ProxyKey {}

impl PartialOrd for ProxyKey {
    fn partial_cmp(&self, other: &ProxyKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ProxyKey {
    fn cmp(&self, other: &ProxyKey) -> Ordering {
        self.facts.cmp(&other.facts)
    }
}

impl Hash for ProxyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.facts.hash(state);
    }
}

impl fmt::Debug for ProxyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts.fmt(f)
    }
}

impl ProxyFacts {
    /// The workload that it stands beside, or is.
    pub(crate) fn workload(&self) -> Workload {
        Workload { namespace: self.namespace.clone(), labels: self.labels.clone() }
    }

    /// Whether it is told of the clusters only that workloads like its own use, and asks for others.
    pub(crate) fn is_lazy(&self) -> bool {
        self.options.abilities.has(Abilities::ON_DEMAND)
    }

    /// Whether it is told of the virtual hosts only that these use.
    pub(crate) fn asks_for_hosts(&self) -> bool {
        self.options.abilities.has(Abilities::HOSTS_ON_DEMAND)
    }

    /// Whether it gets connections that were meant for others, with the original destination.
    pub(crate) fn captures(&self) -> bool {
        self.role == Role::Sidecar && !matches!(self.interception, Interception::Explicit { .. })
    }

    /// Its own address, where it matters: without capture it listens there.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self.interception {
            Interception::Explicit { address, .. } => Some(address),
            Interception::Redirect | Interception::Tproxy => None,
        }
    }

    /// What it is as a client with a Sidecar and some labels.
    fn as_viewer(&self, sidecar: Option<Key>, labels: BTreeMap<String, String>) -> ViewerFacts {
        ViewerFacts {
            role: self.role,
            captures: self.captures(),
            families: self.families,
            options: self.options.clone(),
            identity: Arc::default(),
            certificates: self.site.certificates,
            namespace: self.namespace.clone(),
            sidecar,
            labels,
        }
    }
}

impl ProxyKey {
    /// The proxy as a client, as its listeners know it: with what is only observed.
    pub(crate) fn listening(&self, cx: &Cx<'_>) -> Viewer {
        let viewer = ViewerFacts::clone(&self.viewer(cx));
        let (labels, identity) = (self.labels.clone(), Arc::clone(&self.identity));
        Viewer::from(ViewerFacts { labels, identity, ..viewer })
    }

    /// What a gRPC application calls is what a sidecar beside it would: the proxy that shares it.
    pub(crate) fn as_client(&self, cx: &Cx<'_>) -> ProxyKey {
        ProxyKey::clone(&cx.get::<client::ClientOf>(&ProxyKey::from(ProxyFacts {
            role: Role::Sidecar,
            interception: Interception::Redirect,
            ..ProxyFacts::clone(self)
        })))
    }

    /// The viewer that a proxy as a client (what [`client::ClientOf`] gives) is, perhaps with a label or two
    /// more than [`ProxyKey::viewer`] gives it: there is nothing left to look up, so that what is derived for
    /// each of the many things that clients ask for does not depend on which labels rules select by.
    pub(crate) fn known_viewer(&self) -> &Viewer {
        self.viewer.get_or_init(|| Viewer::from(self.as_viewer(self.sidecar.clone(), self.labels.clone())))
    }

    /// The proxy as a client.
    pub(crate) fn viewer(&self, cx: &Cx<'_>) -> Viewer {
        let names = cx.get::<SelectingLabels>(&());
        let labels = self.labels.iter().filter(|(name, _)| names.contains(*name));
        let sidecar = match self.role {
            Role::Router => None,
            Role::Sidecar | Role::Grpc => {
                self.sidecar.clone().or_else(|| sidecar::narrowing(cx, &self.workload()))
            }
        };
        let labels = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
        if sidecar == self.sidecar && labels == self.labels {
            return self.known_viewer().clone();
        }
        Viewer::from(self.as_viewer(sidecar, labels))
    }
}

/// A proxy as a client: what outbound configuration may depend on. Of the labels only those that
/// some rule selects clients by, so that all clients of a namespace usually share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Viewer(Shared<ViewerFacts>);

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ViewerFacts {
    pub(crate) role: Role,
    /// Whether the address that the caller wanted is known.
    pub(crate) captures: bool,
    pub(crate) families: Families,
    pub(crate) options: ProxyOptions,
    /// Who it is; unknown but to its listeners, and there too unless it is said in spans.
    pub(crate) identity: Arc<Identity>,
    /// Whether it has the mesh's certificates.
    pub(crate) certificates: bool,
    pub(crate) namespace: String,
    /// The Sidecar that narrows what it sees, see [`sidecar::Sight`].
    pub(crate) sidecar: Option<Key>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl From<ViewerFacts> for Viewer {
    fn from(facts: ViewerFacts) -> Viewer {
        Viewer(Shared::from(facts))
    }
}

impl Deref for Viewer {
    type Target = ViewerFacts;

    fn deref(&self) -> &ViewerFacts {
        &self.0
    }
}

/// The names of the labels that rules select clients by.
struct SelectingLabels;

impl Query for SelectingLabels {
    type Key = ();
    type Value = BTreeSet<String>;
    const NAME: &'static str = "selecting-labels";

    fn derive(cx: &Cx<'_>, (): &()) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for key in cx.bucket::<SelectingRules>(&()) {
            names.extend(cx.input::<VirtualServices>(&key).iter().flat_map(|rule| selecting(rule)));
        }
        for key in cx.bucket::<SelectingPolicies>(&()) {
            let Some(rule) = cx.input::<DestinationRules>(&key) else { continue };
            if let Some(selector) = &rule.spec.workload_selector {
                names.extend(selector.match_labels.keys().cloned());
            }
        }
        names.extend(cx.get::<locality::SiteMatters>(&()).labels.iter().cloned());
        names
    }
}

/// The names of the labels that a rule selects clients by.
fn selecting(rule: &Config<VirtualService>) -> impl Iterator<Item = String> {
    let http = rule.spec.http.iter().flat_map(|rule| &rule.r#match).map(|found| &found.source_labels);
    let tcp = rule.spec.tcp.iter().flat_map(|rule| &rule.r#match).map(|found| &found.source_labels);
    let tls = rule.spec.tls.iter().flat_map(|rule| &rule.r#match).map(|found| &found.source_labels);
    http.chain(tcp).chain(tls).flat_map(|labels| labels.keys().cloned())
}

/// The VirtualServices that select clients: all others change without all that is asked of clients being
/// looked at again.
pub(crate) struct SelectingRules;

impl Index for SelectingRules {
    type Of = VirtualServices;
    type Bucket = ();
    const NAME: &'static str = "selecting-virtual-services";

    fn buckets(_: &Key, rule: &Config<VirtualService>) -> Vec<()> {
        selecting(rule).next().into_iter().map(drop).collect()
    }
}

/// The same of DestinationRules.
pub(crate) struct SelectingPolicies;

impl Index for SelectingPolicies {
    type Of = DestinationRules;
    type Bucket = ();
    const NAME: &'static str = "selecting-destination-rules";

    fn buckets(_: &Key, rule: &Config<DestinationRule>) -> Vec<()> {
        rule.spec.workload_selector.iter().map(drop).collect()
    }
}

/// How well a host of a rule, perhaps a wildcard, fits a host: longer is better, exact is best;
/// `None` if not at all.
pub(crate) fn fit(pattern: &str, host: &str) -> Option<usize> {
    if pattern == host {
        return Some(usize::MAX);
    }
    let suffix = pattern.strip_prefix('*')?;
    // `*.example.com` fits `*.api.example.com` and `www.example.com`, not `example.com`.
    (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len())
}

/// The narrower of two hosts, if one includes the other.
pub(crate) fn intersection<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    if fit(a, b).is_some() {
        Some(b)
    } else if fit(b, a).is_some() {
        Some(a)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{fit, intersection};

    #[test]
    fn hosts_fit() {
        assert_eq!(fit("a.b", "a.b"), Some(usize::MAX));
        assert_eq!(fit("*", "a.b"), Some(0));
        assert_eq!(fit("*.b", "a.b"), Some(2));
        assert_eq!(fit("*.b", "b"), None);
        assert_eq!(fit("*.b", ".b"), None);
        assert_eq!(fit("*.b", "*.a.b"), Some(2));
        assert_eq!(fit("a.b", "*.b"), None);
        assert_eq!(intersection("*.b", "a.b"), Some("a.b"));
        assert_eq!(intersection("a.b", "*"), Some("a.b"));
        assert_eq!(intersection("*.b", "*.a.b"), Some("*.a.b"));
        assert_eq!(intersection("x.b", "a.b"), None);
    }
}
