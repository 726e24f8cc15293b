//! CDS: what each proxy can send traffic to.
//!
//! A cluster is derived once per service port, subset, set of rules and what it depends on of its
//! client, and shared by all proxies for which these are the same. `outbound.rs` builds it from a
//! `draft.rs`; `policy.rs`, `balancer.rs` and `tls.rs` apply the rules; `inbound.rs` has the
//! clusters that lead to the workload itself, `lazy.rs` what proxies are told that ask for the clusters
//! they use, `any_name.rs` the one for unknown destinations by name.

mod any_name;
mod balancer;
mod draft;
pub(crate) mod grpc;
mod inbound;
pub(crate) mod lazy;
mod outbound;
mod policy;
mod tls;

use std::sync::Arc;

use leno_derive::{Cx, Query};

use self::draft::Draft;
use self::outbound::Outbound;
pub(crate) use self::outbound::lookup_family;
use super::name;
use super::patch::{self, Family, Subject};
use super::proto::cluster::cluster::{DiscoveryType, LbPolicy};
use super::resource::{Resource, pipe};
use super::secret::{self, Sockets};
use super::security::keys::KeyClusters;
use super::telemetry::upstream_filter;
use crate::model::Key;
use crate::model::destination_rule::ConnectionPool;
use crate::model::envoy_filter::PatchContext;
use crate::model::mesh::MeshConfig;
use crate::registry::protocol::Protocol;
use crate::registry::targets::Targets;
use crate::registry::{self, PARTS, Resolution, Service, ServiceId, VisiblePart};
#[cfg(test)]
use crate::scope::client::ClientOf;
use crate::scope::gateways::AttachedGateways;
use crate::scope::locality::{EndpointsOf, View};
pub(crate) use crate::scope::policy::policies;
use crate::scope::policy::{EffectiveKey, MergedPolicy};
use crate::scope::proxy_config::{MeshOf, Overrides};
use crate::scope::sidecar::{self, Sight};
use crate::scope::{Abilities, Families, ProxyKey, Role, Viewer};

/// How long connections to nowhere in particular may be idle.
const PASSTHROUGH_IDLE: prost_types::Duration = prost_types::Duration { seconds: 300, nanos: 0 };

/// All that an outbound cluster depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClusterKey {
    pub(crate) service: ServiceId,
    pub(crate) port: u16,
    /// Empty for the whole service.
    pub(crate) subset: String,
    /// The DestinationRules that apply, in the order of merging.
    pub(crate) rules: Vec<Key>,
    /// Whether it is for a gateway between networks, which passes on what it does not decrypt.
    pub(crate) sni: bool,
    pub(crate) client: Client,
}

/// What a cluster depends on of its client. Where something makes no difference it is as if the
/// client did not have it, so that more proxies share the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Client {
    /// Whether the address that the caller wanted is known.
    direct: bool,
    gateway: bool,
    families: Families,
    certificates: bool,
    /// Whether it tells servers who it is at the beginning of connections.
    exchanges: bool,
    /// Where secrets come from that its rules name.
    sockets: Sockets,
    /// What it was started with.
    overrides: Overrides,
    /// For clusters that contain their endpoints.
    view: View,
}

impl ClusterKey {
    /// The cluster's name.
    pub(crate) fn name(&self) -> String {
        name_of(self.sni, self.port, &self.subset, &self.service.host)
    }

    /// What its endpoints depend on.
    pub(crate) fn endpoints(&self) -> EndpointsOf {
        EndpointsOf { service: self.service.clone(), policy: self.policy(), sni: self.sni }
    }

    /// Names what the rules say for it.
    fn policy(&self) -> EffectiveKey {
        EffectiveKey { rules: self.rules.clone(), port: self.port, subset: self.subset.clone() }
    }
}

/// A cluster of a client, or what is left to be said to have it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    Ready(Arc<Resource>),
    /// It contains its endpoints, which may depend on the client's place.
    Placed(Box<ClusterKey>),
}

/// The name of a cluster, for clients or for gateways between networks.
pub(crate) fn name_of(sni: bool, port: u16, subset: &str, host: &str) -> String {
    if sni { name::outbound_sni(port, subset, host) } else { name::outbound(port, subset, host) }
}

/// The outbound clusters of a client, for one part of the services; the flag asks for those of
/// gateways between networks.
pub(super) struct OutboundPart;

impl Query for OutboundPart {
    type Key = (Viewer, bool, u8);
    type Value = Vec<Entry>;
    const NAME: &'static str = "outbound-part";

    fn derive(cx: &Cx<'_>, (viewer, sni, part): &(Viewer, bool, u8)) -> Vec<Entry> {
        let mut entries = Vec::new();
        for service in cx.get::<VisiblePart>(&(viewer.sight(), *part)).iter() {
            if service.resolution == Resolution::Alias || (*sni && service.external) {
                continue;
            }
            let rules = policies(cx, viewer, service);
            let merged = cx.get::<MergedPolicy>(&rules);
            // Nothing tells the endpoints of a part of a name that is looked up for each request.
            let divided = service.resolution != Resolution::Dynamic;
            let subsets = merged.subsets.iter().filter(|_| divided).map(|subset| subset.name.clone());
            let subsets: Vec<String> = std::iter::once(String::new()).chain(subsets).collect();
            for port in service.ports.iter().filter(|port| is_carried(service, port.protocol)) {
                for subset in &subsets {
                    let mut key = key(viewer, service, port.number, subset, rules.clone());
                    key.sni = *sni;
                    if service.resolution.is_dns() {
                        entries.push(Entry::Placed(Box::new(key)));
                    } else {
                        entries.extend(cx.get::<Outbound>(&key).as_ref().clone().map(Entry::Ready));
                    }
                }
            }
        }
        entries
    }
}

/// A client's cluster by its name.
pub(crate) fn find(cx: &Cx<'_>, viewer: &Viewer, name: &str) -> Option<ClusterKey> {
    let (parsed, sni) = match name::parse_outbound(name) {
        Some(parsed) => (parsed, false),
        None => (name::parse_outbound_sni(name)?, true),
    };
    let service = sidecar::visible_host(cx, &viewer.sight(), parsed.host);
    let service = &service.filter(|service| service.resolution != Resolution::Alias)?;
    service.port(parsed.port).filter(|port| is_carried(service, port.protocol))?;
    let rules = policies(cx, viewer, service);
    if !parsed.subset.is_empty() {
        cx.get::<MergedPolicy>(&rules).subset(parsed.subset)?;
    }
    Some(ClusterKey { sni, ..key(viewer, service, parsed.port, parsed.subset, rules) })
}

/// Whether there are clusters for a port with this protocol.
fn is_carried(service: &Service, protocol: Protocol) -> bool {
    match service.resolution {
        // Only what names its destination can be looked up by that name.
        Resolution::Dynamic => protocol.is_http() || protocol == Protocol::Tls,
        _ => protocol != Protocol::Datagram,
    }
}

/// Names a client's cluster.
fn key(viewer: &Viewer, service: &Service, port: u16, subset: &str, rules: Vec<Key>) -> ClusterKey {
    let gateway = viewer.role == Role::Router;
    let auto = service.port(port).is_some_and(|port| port.protocol == Protocol::Auto);
    let by_name = service.resolution.is_dns() || service.resolution == Resolution::Dynamic;
    let client = Client {
        // It makes a difference where the service has no known endpoints, or where a rule may ask
        // for PASSTHROUGH.
        direct: viewer.captures || (service.resolution != Resolution::OriginalDst && rules.is_empty()),
        gateway: gateway && (auto || !rules.is_empty()),
        families: if by_name { viewer.families } else { Families::default() },
        // What is outside of the mesh knows nothing of its certificates.
        certificates: viewer.certificates && !(service.external && rules.is_empty()),
        exchanges: viewer.options.abilities.has(Abilities::TCP_PEERS),
        sockets: if rules.is_empty() { Sockets::default() } else { viewer.options.abilities.into() },
        overrides: viewer.options.overrides.clone(),
        view: View::default(),
    };
    ClusterKey { service: service.id.clone(), port, subset: subset.to_owned(), rules, sni: false, client }
}

/// All clusters of a proxy.
#[cfg(test)] // proxies are told of the two parts one by one
pub(crate) struct Clusters;

#[cfg(test)]
impl Query for Clusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "clusters";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        let mut clusters = cx.get::<SharedClusters>(&cx.get::<ClientOf>(proxy)).as_ref().clone();
        // In the order in which people look for them.
        clusters.sort_by_key(|cluster| {
            let parsed = name::parse_outbound(cluster.name());
            let sni = name::parse_outbound_sni(cluster.name());
            let host = parsed.or(sni).map(|parsed| parsed.host.to_owned());
            (host.is_none(), sni.is_some(), host)
        });
        clusters.extend(cx.get::<OwnClusters>(proxy).iter().cloned());
        clusters
    }
}

/// The clusters that a proxy has as a client, see [`crate::scope::client::ClientOf`]. A root.
pub(crate) struct SharedClusters;

impl Query for SharedClusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "shared-clusters";

    fn derive(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
        let context = client.client_context();
        let patches = &client.patching.patches;
        patch::all(cx, patches, Family::Cluster, context, shared(cx, client), |_| Subject::of(context))
    }
}

/// The clusters of a client before EnvoyFilters.
pub(super) fn shared(cx: &Cx<'_>, client: &ProxyKey) -> Vec<Arc<Resource>> {
    let viewer = client.viewer(cx);
    let mut clusters = Vec::new();
    let part = |sni, part| cx.get::<OutboundPart>(&(viewer.clone(), sni, part));
    let mut lists: Vec<_> = (0..PARTS).map(|number| part(false, number)).collect();
    if client.role == Role::Router && cx.get::<AttachedGateways>(&client.workload()).passes_on() {
        lists.extend((0..PARTS).map(|number| part(true, number)));
    }
    for entry in lists.iter().flat_map(|list| list.iter()) {
        match entry {
            Entry::Ready(resource) => clusters.push(Arc::clone(resource)),
            Entry::Placed(key) => {
                let mut key = ClusterKey::clone(key);
                key.client.view = client.view(cx, &key.endpoints());
                clusters.extend(cx.get::<Outbound>(&key).as_ref().clone());
            }
        }
    }
    clusters.extend(fixed(cx, client, &viewer));
    clusters
}

/// The clusters of a client that are no service's, before EnvoyFilters.
fn fixed(cx: &Cx<'_>, client: &ProxyKey, viewer: &Viewer) -> Vec<Arc<Resource>> {
    let mut clusters = Vec::new();
    let mesh = cx.get::<MeshOf>(&client.options.overrides);
    let exchanges = client.options.abilities.has(Abilities::TCP_PEERS);
    clusters.push(Arc::new(encode(black_hole(&mesh))));
    if client.captures() {
        let mut passthrough = passthrough(&mesh, name::PASSTHROUGH_CLUSTER);
        passthrough.cluster.filters.extend(exchanges.then(upstream_filter));
        clusters.push(Arc::new(encode(passthrough)));
    }
    let any_name = any_name::cluster(cx, viewer, &mesh, exchanges);
    clusters.extend(any_name.map(|draft| Arc::new(encode(draft))));
    if client.role == Role::Router {
        let key = (client.workload(), Sight::whole(&client.namespace));
        clusters.extend(cx.get::<KeyClusters>(&key).iter().cloned());
    }
    if client.options.abilities.has(Abilities::CREDENTIALS) {
        clusters.push(Arc::new(encode(credentials(&mesh))));
    }
    clusters
}

/// The cluster that leads to who gives credentials beside the proxy.
fn credentials(mesh: &MeshConfig) -> Draft {
    let mut draft = Draft::new(secret::CREDENTIALS_CLUSTER, DiscoveryType::Static);
    draft.cluster.connect_timeout = Some(policy::connect_timeout(mesh));
    draft.cluster.alt_stat_name = format!("{};", secret::CREDENTIALS_CLUSTER);
    draft.cluster.load_assignment =
        Some(inbound::single(secret::CREDENTIALS_CLUSTER, pipe(secret::CREDENTIALS_PATH)));
    draft.speak_http2();
    draft
}

/// The clusters that lead to a proxy's own workload, or that its policies need. A root.
pub(crate) struct OwnClusters;

impl Query for OwnClusters {
    type Key = ProxyKey;
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "own-clusters";

    fn derive(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
        let (patches, context) = (proxy.own_patches(cx), PatchContext::SidecarInbound);
        let subject = |cluster: &Resource| own_subject(cx, proxy, cluster);
        patch::all(cx, &patches, Family::Cluster, context, own(cx, proxy), subject)
    }
}

/// The clusters that are a proxy's own before EnvoyFilters.
pub(super) fn own(cx: &Cx<'_>, proxy: &ProxyKey) -> Vec<Arc<Resource>> {
    if proxy.role == Role::Router {
        return Vec::new();
    }
    let workload = proxy.workload();
    let key = inbound::InboundKey {
        workload,
        families: proxy.families,
        address: proxy.address(),
        overrides: proxy.options.overrides.clone(),
    };
    let mut clusters = cx.get::<inbound::InboundClusters>(&key).to_vec();
    // Without listeners for what comes in there is nobody who looks at tokens.
    if !clusters.is_empty() {
        let sight = Sight::of(cx, &key.workload);
        clusters.extend(cx.get::<KeyClusters>(&(key.workload, sight)).iter().cloned());
    }
    clusters
}

/// What patches may ask of an inbound cluster: the services that lead to it.
pub(super) fn own_subject(cx: &Cx<'_>, proxy: &ProxyKey, cluster: &Resource) -> Subject {
    let targets = cx.get::<Targets>(&proxy.workload());
    let leading = targets.iter().filter(|target| name::inbound(target.target) == cluster.name());
    let mut hosts: Vec<String> = leading.map(|target| target.service.id.host.clone()).collect();
    hosts.sort();
    hosts.dedup();
    Subject { hosts, ..Subject::of(PatchContext::SidecarInbound) }
}

/// The cluster without endpoints: whatever is sent there is refused.
fn black_hole(mesh: &MeshConfig) -> Draft {
    let mut draft = Draft::new(name::BLACK_HOLE_CLUSTER, DiscoveryType::Static);
    draft.cluster.connect_timeout = Some(policy::connect_timeout(mesh));
    draft
}

/// A cluster that leads where the caller wanted to go.
fn passthrough(mesh: &MeshConfig, name: &str) -> Draft {
    let mut draft = Draft::new(name, DiscoveryType::OriginalDst);
    draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    speak_to_any(&mut draft, mesh);
    let default = mesh.default_traffic_policy.as_ref().and_then(|policy| policy.connection_pool.as_ref());
    policy::connection_pool(&mut draft, mesh, default.unwrap_or(&ConnectionPool::default()), None);
    draft
}

/// Speaks whatever the client speaks, to somebody of whom nothing is known.
fn speak_to_any(draft: &mut Draft, mesh: &MeshConfig) {
    draft.common_http().idle_timeout = Some(PASSTHROUGH_IDLE);
    outbound::preserve_case(draft, mesh);
    draft.speak_as_client();
}

fn encode(draft: Draft) -> Resource {
    let message = draft.finish();
    Resource::new(&message.name, &message, Vec::new())
}

/// The service of a cluster that still exists.
fn service_of(cx: &Cx<'_>, key: &ClusterKey) -> Option<Arc<Service>> {
    registry::find(cx, &key.service)
}
