//! What is told and read in headers; the way through whole proxies is in tests/istio.rs.

use std::sync::Arc;

use expect_test::expect;
use leno_api::proto::io::istio::http::peer_metadata as proto;
use leno_base::base64;
use prost::Message;
use prost_types::Struct;
use serde_json::json;

use super::config::config;
use super::{PeerMetadata, Propagation};
use crate::config::lower::{Lower, Scope};
use crate::http::headers::HeaderMap;
use crate::listener::accept::GlobalConnections;
use crate::telemetry::stats::StatsStore;
use crate::telemetry::stream_info::ClusterFacts;
use crate::worker::Worker;

fn lowered(text: &str) -> Result<PeerMetadata, String> {
    let node = json!({"NAME": "pod-1", "NAMESPACE": "ns", "LABELS": {"app": "a", "role": "r"}});
    let scope = Scope { node_id: "id-1".into(), node_metadata: Arc::new(node), ..Scope::default() };
    let proto: proto::Config =
        leno_api::decode_text(&format!("{{{text}}}"), "filter").unwrap_or_else(|error| panic!("{error}"));
    Lower::resource_in(scope, |at| Some(config(proto, at))).map_err(|error| error.to_string())
}

#[test]
fn what_is_told_is_read() {
    let filter = lowered("additional_labels: [role]").expect("a configuration");
    let worker = Worker::new(StatsStore::default().thread(), GlobalConnections::new(None));
    let mut head = HeaderMap::new();
    assert!(filter.read(&worker, &head).is_none());
    filter.tell(&mut head, [true, true]);
    let told = head.find("x-envoy-peer-metadata").and_then(base64::decode).expect("base64");
    assert_eq!(head.find("x-envoy-peer-metadata-id"), Some(b"id-1".as_slice()));
    assert!(Struct::decode(told.as_slice()).expect("a message").fields.contains_key("NAMESPACE"));
    let peer = filter.read(&worker, &head).expect("a peer");
    expect!["name=pod-1,namespace=ns,app=a,labels[]role=r"].assert_eq(&peer.text);
    // The same is not read again.
    assert!(std::rc::Rc::ptr_eq(&peer, &filter.read(&worker, &head).expect("a peer")));
    head.set_named("x-envoy-peer-metadata", b"no base64");
    assert!(filter.read(&worker, &head).is_none());
}

#[test]
fn who_is_told() {
    let cluster = |name: &str, istio: serde_json::Value| {
        ClusterFacts::new(
            "c".into(),
            name.into(),
            std::collections::BTreeMap::from([("istio".to_owned(), istio)]).into(),
        )
    };
    let skips = |skip_external| {
        let way = Propagation { skip_external };
        [
            cluster("PassthroughCluster", json!({})),
            cluster("c", json!({"external": true})),
            cluster("c", json!({"disable_mx": true})),
            cluster("c", json!({})),
        ]
        .map(|cluster| way.skips(&cluster))
    };
    assert_eq!(skips(true), [true, true, true, false]);
    assert_eq!(skips(false), [false, false, true, false]);
}

#[test]
fn what_is_not_there_yet_is_refused() {
    let refused = lowered(
        "shared_with_upstream: true, downstream_discovery: [{baggage: {}}, {workload_discovery: {}}], \
         upstream_discovery: [{baggage: {}}], downstream_propagation: [{baggage: {}}]",
    );
    expect!["shared_with_upstream: not supported yet; downstream_discovery[0].baggage: not supported yet; downstream_propagation[0].baggage: not supported yet"]
        .assert_eq(&refused.expect_err("it is refused"));
}
