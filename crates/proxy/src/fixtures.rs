//! Small pieces of configuration for tests, lowered from YAML as if they came by xDS.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use leno_api::proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use leno_api::proto::envoy::config::listener::v3::Listener as ListenerProto;
use prost_types::Any;

use crate::cluster::{Assignment, Cluster, EndpointAddress, EndpointConfig, LocalityEndpoints};
use crate::config::lower::{Lower, Scope};
use crate::listener::Listener;
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, StreamInfo};

/// A cluster from YAML in flow style, without the outer braces.
pub(crate) fn cluster(text: &str) -> Cluster {
    lowered_cluster(text, true)
}

/// The same as if the bootstrap had it.
pub(crate) fn static_cluster(text: &str) -> Cluster {
    lowered_cluster(text, false)
}

fn lowered_cluster(text: &str, added_via_api: bool) -> Cluster {
    let proto: ClusterProto =
        leno_api::decode_text(&format!("{{{text}}}"), "cluster").unwrap_or_else(|errors| panic!("{errors}"));
    let source = leno_api::any::pack(&proto);
    let scope = Scope { added_via_api, ..Scope::default() };
    let lowered =
        Lower::resource_in(scope, |at| crate::cluster::config::lower_proto(proto, source.value.into(), at));
    lowered.unwrap_or_else(|why| panic!("{why}"))
}

/// The message of a listener from YAML in flow style, without the outer braces.
pub(crate) fn listener_message(text: &str) -> Any {
    let proto: ListenerProto =
        leno_api::decode_text(&format!("{{{text}}}"), "listener").unwrap_or_else(|errors| panic!("{errors}"));
    leno_api::any::pack(&proto)
}

/// A listener; filter chains that `previous` has too are taken over.
pub(crate) fn listener(text: &str, previous: Option<&Listener>) -> Arc<Listener> {
    let source = listener_message(text);
    let scope = Scope { added_via_api: true, ..Scope::default() };
    let lowered = Lower::resource_in(scope, |at| crate::listener::config::lower(&source, previous, at));
    Arc::new(lowered.unwrap_or_else(|why| panic!("{why}")))
}

/// `filters` of a chain with a connection manager that takes its routes by RDS.
pub(crate) fn rds_filters(name: &str) -> String {
    format!(
        "filters: [{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: x, rds: {{route_config_name: {name}, \
         config_source: {{ads: {{}}, initial_fetch_timeout: 3s}}}}, http_filters: [{{name: router, typed_config: \
         {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]"
    )
}

/// `filters` of a chain with a TCP proxy; `more` is further YAML of it.
pub(crate) fn tcp_filters(more: &str) -> String {
    format!(
        "filters: [{{name: tcp, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
         tcp_proxy.v3.TcpProxy, stat_prefix: t, {more}}}}}]"
    )
}

/// `address` on the loopback interface.
pub(crate) fn at_port(port: u16) -> String {
    format!("address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

/// Endpoints with these IP addresses.
pub(crate) fn assignment(addresses: &[&str]) -> Arc<Assignment> {
    let address =
        |text: &&str| EndpointAddress::Ip(text.parse().unwrap_or_else(|_| panic!("{text} is no address")));
    let endpoints = addresses.iter().map(|text| EndpointConfig::plain(address(text))).collect();
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    Arc::new(Assignment { localities, overprovisioning_factor: 140, ..Assignment::default() })
}

/// The facts of a connection from this peer to 127.0.0.1:80.
pub(crate) fn connection(peer: SocketAddr) -> ConnectionInfo {
    let local = SocketAddr::from(([127, 0, 0, 1], 80));
    ConnectionInfo::plain(1, peer, local, crate::http::stream::now())
}

/// The facts of a request on such a connection.
pub(crate) fn stream_info(connection: ConnectionInfo) -> StreamInfo {
    let wall = std::time::SystemTime::UNIX_EPOCH;
    StreamInfo::new(Rc::new(connection), Some(Protocol::Http11), crate::http::stream::now(), wall)
}

/// The facts of a request on a connection within this machine.
pub(crate) fn local_stream() -> StreamInfo {
    stream_info(connection(([127, 0, 0, 1], 80).into()))
}
