//! Listeners for gRPC applications that do without a proxy (gRFC A27, A36): by `host:port` what a
//! client calls, by `xds.istio.io/grpc/lds/inbound/ADDRESS` where a server is called.

use std::net::SocketAddr;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http as filters;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_derive::{Cx, Query};

use super::filters::http_filter;
use crate::model::label::TLS_MODE;
use crate::model::selector::selects;
use crate::registry::targets::Targets;
use crate::registry::{Service, full_name};
use crate::scope::security::{PeerMode, PeersOfNamespace};
use crate::scope::{ProxyKey, sidecar};
use crate::translate::cluster::grpc::{ads, common_tls, socket};
use crate::translate::name;
use crate::translate::proto::{listener, route};
use crate::translate::resource::{Resource, address, pack};
use crate::translate::security;

/// Begins the names of the listeners of servers, in the bootstraps of Istio's agents.
const INBOUND: &str = "xds.istio.io/grpc/lds/inbound/";

/// A listener that a gRPC application asks for by its name; `None` if there is none. A root.
pub(crate) struct GrpcListener;

impl Query for GrpcListener {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "grpc-listener";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        match name.strip_prefix(INBOUND) {
            Some(rest) => inbound(cx, proxy, name, rest.parse().ok()?),
            None => outbound(cx, proxy, name),
        }
    }
}

fn outbound(cx: &Cx<'_>, proxy: &ProxyKey, name: &str) -> Option<Arc<Resource>> {
    let (host, port) = name.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let visible = sidecar::visible(cx, &proxy.as_client(cx).viewer(cx).sight());
    let service = find(&visible, host, &proxy.namespace).filter(|service| service.port(port).is_some())?;
    let manager = hcm::HttpConnectionManager {
        http_filters: vec![
            http_filter("envoy.filters.http.fault", &filters::fault::v3::HttpFault::default()),
            router(),
        ],
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(ads()),
            route_config_name: name::outbound(port, "", &service.id.host),
        })),
        ..hcm::HttpConnectionManager::default()
    };
    let own = service.addresses.first().filter(|own| !own.contains('/')).map_or("0.0.0.0", String::as_str);
    let message = listener::Listener {
        name: name.to_owned(),
        address: Some(address(own, port)),
        api_listener: Some(listener::ApiListener { api_listener: Some(pack(&manager)) }),
        ..listener::Listener::default()
    };
    Some(Arc::new(Resource::new(name, &message, vec![service.id.object.clone()])))
}

/// The service that a client means: by its full name, or one that its own DNS would complete.
fn find<'v>(
    visible: &'v std::collections::BTreeMap<String, Arc<Service>>,
    host: &str,
    namespace: &str,
) -> Option<&'v Arc<Service>> {
    let names = [
        host.to_owned(),
        full_name(host, namespace),
        format!("{host}.svc.cluster.local"),
        format!("{host}.cluster.local"),
    ];
    names.iter().find_map(|name| visible.get(name))
}

fn inbound(cx: &Cx<'_>, proxy: &ProxyKey, name: &str, at: SocketAddr) -> Option<Arc<Resource>> {
    let workload = proxy.workload();
    let targets = cx.get::<Targets>(&workload);
    let target = targets.iter().find(|target| target.target == at.port())?;
    let peers = cx.get::<PeersOfNamespace>(&proxy.namespace);
    let peers = peers.of(|labels| selects(labels, &proxy.labels));
    // gRPC cannot tell TLS from plain text: who can speak mutual TLS is called with it.
    let speaks = proxy.labels.get(TLS_MODE).is_some_and(|mode| mode == "istio");
    let mutual = match peers.mode(at.port()) {
        PeerMode::Strict => true,
        PeerMode::Permissive => speaks,
        PeerMode::Disable => false,
    };
    let mut http_filters = security::of_grpc(cx, &workload)?;
    http_filters.push(router());
    let manager = hcm::HttpConnectionManager {
        http_filters,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            route::RouteConfiguration {
                name: "inbound".to_owned(),
                virtual_hosts: vec![route::VirtualHost {
                    name: "inbound".to_owned(),
                    domains: vec!["*".to_owned()],
                    routes: vec![route::Route {
                        r#match: Some(route::RouteMatch {
                            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
                            ..route::RouteMatch::default()
                        }),
                        action: Some(route::route::Action::NonForwardingAction(
                            route::NonForwardingAction::default(),
                        )),
                        ..route::Route::default()
                    }],
                    ..route::VirtualHost::default()
                }],
                ..route::RouteConfiguration::default()
            },
        )),
        ..hcm::HttpConnectionManager::default()
    };
    let suffix = if mutual { "mtls" } else { "plaintext" };
    let chain = listener::FilterChain {
        name: format!("inbound-{suffix}"),
        filters: vec![listener::Filter {
            name: format!("inbound-hcm{suffix}"),
            config_type: Some(listener::filter::ConfigType::TypedConfig(pack(&manager))),
        }],
        transport_socket: mutual.then(|| {
            socket(&tls::DownstreamTlsContext {
                common_tls_context: Some(common_tls(&[])),
                require_client_certificate: Some(true),
                ..tls::DownstreamTlsContext::default()
            })
        }),
        ..listener::FilterChain::default()
    };
    let message = listener::Listener {
        name: name.to_owned(),
        address: Some(address(&at.ip().to_string(), at.port())),
        filter_chains: vec![chain],
        ..listener::Listener::default()
    };
    let mut origins = peers.origins;
    origins.push(target.service.id.object.clone());
    Some(Arc::new(Resource::new(name, &message, origins)))
}

fn router() -> hcm::HttpFilter {
    http_filter("envoy.filters.http.router", &filters::router::v3::Router::default())
}
