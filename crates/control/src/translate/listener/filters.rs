//! Which filters stand before the last one of a chain, in Istio's order.
//!
//! The filters of other features than routing come from [`Slots`]: one query per place and scope, so
//! that a feature plugs in here, and its changes reach only the listeners whose filters differ.
//!
//! Deviation: `istio.metadata_exchange`, `istio.alpn` and `istio.stats` go to proxies only that say that
//! they have them, as an Envoy that was not built by Istio refuses them; and
//! `envoy.filters.network.mongo_proxy`, which only counts, is left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http as filters;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::istio::envoy::config::filter::http::alpn::v2alpha1 as alpn;
use leno_derive::{Cx, Query};
use prost::{Message, Name};

use super::proxy_config;
use crate::model::Key;
use crate::model::mesh::{MeshConfig, OutboundMode};
use crate::registry::protocol::Protocol;
use crate::scope::proxy_config::Overrides;
use crate::scope::sidecar::Sight;
use crate::scope::{Abilities, Families, Identity, ProxyOptions, Viewer};
use crate::translate::proto::listener;
use crate::translate::resource::{ads, pack};
use crate::translate::{any_name, security, telemetry};

/// How long something waits for a cluster that was asked for; then it goes on without. Envoy's default
/// for requests (that for connections is a minute).
pub(super) const ON_DEMAND_PATIENCE: prost_types::Duration = prost_types::Duration { seconds: 5, nanos: 0 };

/// On which side of the mesh a chain works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Inbound,
    Outbound,
    Gateway,
}

/// Whose filters: what rules select workloads by, and the side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FilterScope {
    pub(crate) side: Side,
    pub(crate) namespace: String,
    /// On the outbound side those that some rule looks at, on the others all.
    pub(crate) labels: BTreeMap<String, String>,
    /// For unknown destinations by name: the addresses that clients can reach.
    pub(crate) families: Families,
    pub(crate) abilities: Abilities,
    pub(crate) overrides: Overrides,
    /// Unknown where it makes no difference, as it does in spans only.
    pub(crate) identity: Arc<Identity>,
    /// The Sidecar that narrows what the proxy sees.
    pub(crate) sidecar: Option<Key>,
}

impl Viewer {
    /// Whose filters its chains have.
    pub(crate) fn filter_scope(&self, side: Side) -> FilterScope {
        let scope = FilterScope::new(side, &self.namespace, &self.labels, &self.options, &self.identity);
        FilterScope { sidecar: self.sidecar.clone(), families: self.families, ..scope }
    }
}

impl FilterScope {
    pub(crate) fn new(
        side: Side,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        options: &ProxyOptions,
        identity: &Arc<Identity>,
    ) -> FilterScope {
        FilterScope {
            side,
            namespace: namespace.to_owned(),
            labels: labels.clone(),
            families: Families::default(),
            abilities: options.abilities,
            overrides: options.overrides.clone(),
            identity: Arc::clone(identity),
            sidecar: None,
        }
    }

    /// Whether clusters that the proxy does not have are asked for when something is sent there.
    pub(crate) fn asks_on_demand(&self) -> bool {
        self.side == Side::Outbound && self.abilities.has(Abilities::ON_DEMAND)
    }

    /// Which services of the mesh the proxy knows, which filters may refer to.
    pub(crate) fn sight(&self) -> Sight {
        Sight { namespace: self.namespace.clone(), sidecar: self.sidecar.clone() }
    }
}

/// A place among the filters that another feature fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    /// Who the peer is, for all that follow.
    PeerMetadata,
    /// Authorization by a provider (CUSTOM).
    CustomAuthorization,
    /// Tokens of requests.
    Authentication,
    /// Authorization by rules.
    Authorization,
    /// What connections and requests are counted by.
    Telemetry,
}

/// The filters of one slot, for HTTP and for bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Filled {
    pub(crate) http: Vec<hcm::HttpFilter>,
    pub(crate) network: Vec<listener::Filter>,
}

/// What features put into a slot.
pub(crate) struct Slots;

impl Query for Slots {
    type Key = (Slot, FilterScope);
    type Value = Filled;
    const NAME: &'static str = "filter-slots";

    fn derive(cx: &Cx<'_>, (slot, scope): &(Slot, FilterScope)) -> Filled {
        match slot {
            Slot::CustomAuthorization | Slot::Authentication | Slot::Authorization => {
                security::filled(cx, *slot, scope)
            }
            Slot::PeerMetadata | Slot::Telemetry => telemetry::filled(cx, *slot, scope),
        }
    }
}

/// The HTTP filters of a connection manager.
pub(super) fn http(
    cx: &Cx<'_>,
    mesh: &MeshConfig,
    scope: &FilterScope,
    protocol: Option<Protocol>,
) -> Vec<hcm::HttpFilter> {
    let slot = |slot| fill(cx, slot, scope).http.clone();
    let mut all = slot(Slot::PeerMetadata);
    all.extend(slot(Slot::CustomAuthorization));
    all.extend(slot(Slot::Authentication));
    all.extend(slot(Slot::Authorization));
    if protocol == Some(Protocol::GrpcWeb) {
        all.push(http_filter("envoy.filters.http.grpc_web", &filters::grpc_web::v3::GrpcWeb::default()));
    }
    all.push(grpc_stats());
    if scope.side != Side::Inbound && scope.abilities.has(Abilities::ALPN) {
        all.push(alpn());
    }
    all.push(http_filter("envoy.filters.http.fault", &filters::fault::v3::HttpFault::default()));
    all.push(http_filter("envoy.filters.http.cors", &filters::cors::v3::Cors::default()));
    all.extend(slot(Slot::Telemetry));
    if scope.asks_on_demand() {
        // Without its virtual host a request has no route yet, whose settings the other filters need.
        let is_first = scope.abilities.has(Abilities::HOSTS_ON_DEMAND);
        all.insert(if is_first { 0 } else { all.len() }, on_demand());
    }
    // In all of them, as the routes of each have the one for unknown hosts.
    if scope.side == Side::Outbound && mesh.outbound_traffic_policy.mode == OutboundMode::AllowAnyDynamicDns {
        all.push(any_name::lookup(scope.families));
    }
    let router = filters::router::v3::Router {
        suppress_envoy_headers: proxy_config::hides_debug_headers(mesh),
        ..filters::router::v3::Router::default()
    };
    all.push(http_filter("envoy.filters.http.router", &router));
    all
}

/// The network filters of a chain that carries bytes, before the one that forwards them. `peers` says
/// whether the client may tell who it is at the beginning of the connection.
pub(super) fn network(cx: &Cx<'_>, scope: &FilterScope, peers: bool) -> Vec<listener::Filter> {
    let slot = |slot| fill(cx, slot, scope).network.clone();
    let mut all = if peers { self::peers(cx, scope) } else { Vec::new() };
    all.extend(slot(Slot::CustomAuthorization));
    all.extend(slot(Slot::Authorization));
    all.extend(slot(Slot::Telemetry));
    all
}

/// Those by which the client may tell who it is, in front of whatever else there is.
pub(super) fn peers(cx: &Cx<'_>, scope: &FilterScope) -> Vec<listener::Filter> {
    fill(cx, Slot::PeerMetadata, scope).network.clone()
}

/// Those for connections that are not let through to anybody.
pub(super) fn counting(cx: &Cx<'_>, scope: &FilterScope) -> Vec<listener::Filter> {
    fill(cx, Slot::Telemetry, scope).network.clone()
}

/// What is in a slot; who the proxy is does not matter there.
fn fill(cx: &Cx<'_>, slot: Slot, scope: &FilterScope) -> Arc<Filled> {
    cx.get::<Slots>(&(slot, FilterScope { identity: Arc::default(), ..scope.clone() }))
}

/// Lets servers of the mesh know by ALPN which HTTP it is.
fn alpn() -> hcm::HttpFilter {
    use alpn::filter_config::{AlpnOverride, Protocol};
    let offered = |protocol: Protocol, names: [&str; 3]| AlpnOverride {
        upstream_protocol: protocol as i32,
        alpn_override: names.map(str::to_owned).to_vec(),
    };
    let config = alpn::FilterConfig {
        alpn_override: vec![
            offered(Protocol::Http10, ["istio-http/1.0", "istio", "http/1.0"]),
            offered(Protocol::Http11, ["istio-http/1.1", "istio", "http/1.1"]),
            offered(Protocol::Http2, ["istio-h2", "istio", "h2"]),
        ],
    };
    http_filter("istio.alpn", &config)
}

/// Holds a request to a cluster that the proxy does not have until it has come, or it is known that
/// there is none.
fn on_demand() -> hcm::HttpFilter {
    let config = filters::on_demand::v3::OnDemand {
        odcds: Some(filters::on_demand::v3::OnDemandCds {
            source: Some(ads()),
            timeout: Some(ON_DEMAND_PATIENCE),
            ..filters::on_demand::v3::OnDemandCds::default()
        }),
    };
    http_filter("envoy.filters.http.on_demand", &config)
}

fn grpc_stats() -> hcm::HttpFilter {
    use filters::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
    let config = filters::grpc_stats::v3::FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(false)),
        ..filters::grpc_stats::v3::FilterConfig::default()
    };
    http_filter("envoy.filters.http.grpc_stats", &config)
}

pub(crate) fn http_filter<T: Message + Name>(name: &str, config: &T) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(config))),
        ..hcm::HttpFilter::default()
    }
}
