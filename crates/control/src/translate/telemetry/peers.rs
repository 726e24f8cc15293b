//! Who talks to whom: the filters `istio.metadata_exchange`, by which proxies tell each other, in
//! headers of requests or at the beginning of connections.

use leno_api::proto::udpa::r#type::v1::TypedStruct;
use leno_derive::Cx;
use prost_types::Value;

use crate::model::mesh::MeshConfig;
use crate::model::mesh::proxy::MetadataExchangeMode;
use crate::scope::Abilities;
use crate::scope::proxy_config::MeshOf;
use crate::translate::listener::filters::{Filled, FilterScope, Side, http_filter};
use crate::translate::listener::network_filter;
use crate::translate::proto::cluster;
use crate::translate::resource::{list, object, pack, structure, text, truth};

/// The filters' name.
const NAME: &str = "istio.metadata_exchange";

/// What they are configured by: of requests, and of connections.
const HTTP: &str = "type.googleapis.com/io.istio.http.peer_metadata.Config";
const BYTES: &str = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange";

/// What proxies agree on by ALPN that tell each other at the beginning of connections.
const PROTOCOL: &str = "istio-peer-exchange";

/// The filters that find out who the peer is.
pub(super) fn filled(cx: &Cx<'_>, scope: &FilterScope) -> Filled {
    let mut filled = Filled::default();
    if scope.abilities.has(Abilities::HTTP_PEERS) {
        filled.http.push(http_filter(NAME, &of_requests(&cx.get::<MeshOf>(&scope.overrides), scope.side)));
    }
    // Outbound the cluster has it.
    if scope.abilities.has(Abilities::TCP_PEERS) && scope.side != Side::Outbound {
        filled.network.push(network_filter(NAME, &of_connections()));
    }
    filled
}

/// The filter of connections to a cluster's endpoints.
pub(crate) fn upstream_filter() -> cluster::Filter {
    cluster::Filter {
        name: NAME.to_owned(),
        typed_config: Some(pack(&of_connections())),
        ..cluster::Filter::default()
    }
}

fn of_requests(mesh: &MeshConfig, side: Side) -> TypedStruct {
    let headers = |fields: Vec<(&'static str, Value)>| object([("istio_headers", object(fields))]);
    let discovery = || list(vec![headers(Vec::new()), object([("workload_discovery", object([]))])]);
    let fields = if side == Side::Inbound {
        [("downstream_discovery", discovery()), ("downstream_propagation", list(vec![headers(Vec::new())]))]
    } else {
        let proxy_headers = mesh.default_config.proxy_headers.as_ref();
        let exchanged = proxy_headers.and_then(|headers| headers.metadata_exchange_headers.as_ref());
        let in_mesh = exchanged.is_some_and(|headers| headers.mode == MetadataExchangeMode::InMesh);
        let only = in_mesh.then(|| ("skip_external_clusters", truth(true)));
        [
            ("upstream_discovery", discovery()),
            ("upstream_propagation", list(vec![headers(only.into_iter().collect())])),
        ]
    };
    TypedStruct { type_url: HTTP.to_owned(), value: structure(object(fields)) }
}

fn of_connections() -> TypedStruct {
    let fields = object([("enable_discovery", truth(true)), ("protocol", text(PROTOCOL))]);
    TypedStruct { type_url: BYTES.to_owned(), value: structure(fields) }
}
