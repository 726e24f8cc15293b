//! The data path as a whole: a worker with lowered configuration between scripted peers.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use leno_api::proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as Proto;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use crate::cluster::Discovery;
use crate::cluster::config::lower_proto;
use crate::config::lower::Lower;
use crate::drain::Drain;
use crate::http::config::HttpConnectionManager;
use crate::io::{Accepted, Socket};
use crate::listener::accept::GlobalConnections;
use crate::snapshot::Snapshot;
use crate::telemetry::stats::StatsStore;
use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo};
use crate::worker::Worker;

mod bulk;
mod client;
mod dynamic_forward_proxy;
mod failures;
mod filters;
mod h1;
mod h2;
mod h2_conformance;
mod outlier;
mod seam;

/// A proxy with one listener, on the test's own thread.
struct Proxy {
    address: SocketAddr,
    worker: Rc<Worker>,
    drain: Rc<Drain>,
    stats: Arc<StatsStore>,
}

/// Runs a test on a worker-like runtime.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// A cluster at `address`; `more` is further YAML of it.
fn cluster(name: &str, address: SocketAddr, more: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "name: {name}\ntype: STATIC\nconnect_timeout: 1s\nload_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}\n{more}\n"
    )
}

/// A cluster that is spoken to by HTTP/2.
const HTTP2: &str = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}
"#;

impl Proxy {
    /// Starts it with these routes (YAML list in flow style), further YAML of the connection
    /// manager, and these clusters.
    async fn start(routes: &str, manager: &str, clusters: &[String]) -> Proxy {
        Self::start_with("", routes, manager, clusters).await
    }

    /// The same with HTTP filters (YAML list) in front of the router.
    async fn start_with(filters: &str, routes: &str, manager: &str, clusters: &[String]) -> Proxy {
        let text = format!(
            "stat_prefix: t\nroute_config:\n  name: r\n  validate_clusters: false\n  virtual_hosts:\n  - {{name: v, domains: ['*'], \
             include_request_attempt_count: true, routes: {routes}}}\nhttp_filters:\n{filters}\n- name: router\n  typed_config: \
             {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n{manager}\n"
        );
        let proto: Proto =
            leno_api::decode_text(&text, "manager").unwrap_or_else(|errors| panic!("{errors}"));
        let manager = Lower::resource(|at| HttpConnectionManager::lower(&proto, at))
            .unwrap_or_else(|why| panic!("{why}"));
        let mut snapshot = Snapshot::default();
        for text in clusters {
            let proto: ClusterProto =
                leno_api::decode_text(text, "cluster").unwrap_or_else(|errors| panic!("{errors}"));
            let lowered = Lower::resource(|at| lower_proto(proto, bytes::Bytes::new(), at));
            let lowered = lowered.unwrap_or_else(|why| panic!("{why}"));
            if let Discovery::Static(assignment) = &lowered.discovery {
                snapshot.endpoints.insert(lowered.name.clone(), Arc::clone(assignment));
            }
            snapshot.clusters.insert(lowered.name.clone(), Arc::new(lowered));
        }
        crate::cluster::outlier::follow(&Snapshot::default(), &snapshot);
        let stats = Arc::new(StatsStore::default());
        let worker = Rc::new(Worker::new(stats.thread(), GlobalConnections::new(None)));
        worker.adopt(Arc::new(snapshot), Vec::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let drain = Rc::new(Drain::default());
        let proxy = Proxy { address, worker: Rc::clone(&worker), drain: Rc::clone(&drain), stats };
        tokio::task::spawn_local(async move {
            while let Ok((stream, remote)) = listener.accept().await {
                let info = Rc::new(ConnectionInfo::plain(1, remote, address, crate::http::stream::now()));
                let accepted = Accepted {
                    socket: Socket::Tcp(stream),
                    buffered: BytesMut::new(),
                    buffer_limit: 1 << 20,
                };
                let serving = super::connection::serve(
                    Rc::clone(&worker),
                    Arc::clone(&manager),
                    accepted,
                    info,
                    drain.watch(),
                );
                tokio::task::spawn_local(serving);
            }
        });
        proxy
    }

    /// The value of a counter or gauge, by full name.
    fn stat(&self, name: &str) -> u64 {
        let blocks = self.stats.blocks();
        let cells = blocks.iter().flat_map(|block| {
            let names = block.schema().0.iter().enumerate();
            let named = names.filter(|(_, (stat, _))| format!("{}{stat}", block.prefix()) == name);
            named.map(|(index, _)| block.cell(index).value())
        });
        cells.sum()
    }
}

/// Lets other tasks run until the condition holds; a test that hangs here has failed.
async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waiting)
        .await
        .expect("the condition comes true");
}

/// A stream lies in the future of its request: all of it is written for each.
#[test]
fn streams_stay_small() {
    let (stream, info) = (size_of::<crate::http::stream::Stream>(), size_of::<StreamInfo>());
    println!("a stream has {stream} bytes, {info} of them are what is known of it");
    assert!(stream <= 930, "{stream}");
}
