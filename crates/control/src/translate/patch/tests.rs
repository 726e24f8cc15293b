//! What goldens cannot show: filters that nobody here knows, which resources stay shared, and that
//! nothing is asked of proxies without patches.

use std::sync::Arc;

use leno_api::any::unpack;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::yaml::{self, Dialect};
use leno_derive::{Batch, Graph};
use prost::Message;

use super::Patched;
use super::report::{Asked, SharedEffects};
use crate::model::read::{self, Read};
use crate::model::{Change, inputs};
use crate::scope::client::ClientOf;
use crate::scope::patches::Patching;
use crate::scope::{self, Abilities, Families, Interception, ProxyFacts, ProxyKey, ProxyOptions, Role, Site};
use crate::source::Origin;
use crate::translate::cluster::lazy::{FixedClusters, NamedCluster};
use crate::translate::cluster::{OutboundPart, SharedClusters};
use crate::translate::listener::SharedListeners;
use crate::translate::proto::listener;
use crate::translate::resource::Resource;
use crate::translate::route::sidecar::OutboundRoute;

const SERVICES: &str = "
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}}
";

fn apply(graph: &mut Graph, text: &str) {
    let mut batch = Batch::new();
    for document in &yaml::parse(text, Dialect::Kubernetes).unwrap() {
        match read::read(document) {
            Read::Object { reference, object, .. } => {
                inputs::apply(Change::Set(reference, object, Origin::nowhere()), &mut batch);
            }
            other => panic!("{other:?}"),
        }
    }
    graph.commit(batch);
}

fn filter(name: &str, more: &str, patches: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {{name: {name}}}, \
         spec: {{{more}configPatches: [{patches}]}}}}"
    )
}

fn client(graph: &Graph, app: &str) -> ProxyKey {
    let key = ProxyKey::from(ProxyFacts {
        role: Role::Sidecar,
        namespace: "default".to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        interception: Interception::Redirect,
        families: Families::default(),
        options: ProxyOptions::default(),
        site: Site::default(),
        identity: Arc::default(),
        sidecar: None,
        patching: Patching::default(),
    });
    ProxyKey::clone(&graph.get::<ClientOf>(&key))
}

fn new_graph() -> Graph {
    let mut graph = Graph::new();
    scope::register(&mut graph);
    apply(&mut graph, SERVICES);
    graph
}

fn cluster(graph: &Graph, client: &ProxyKey, host: &str) -> Arc<Resource> {
    let clusters = graph.get::<SharedClusters>(client);
    let found = clusters.iter().find(|cluster| cluster.name().ends_with(host)).cloned();
    found.expect("a cluster")
}

#[test]
fn clients_with_the_same_patches_share_and_others_pay_nothing() {
    let mut graph = new_graph();
    let before = client(&graph, "x");
    let plain = cluster(&graph, &before, "a.default.svc.cluster.local");
    assert_eq!(graph.recomputations::<Patched>(), 0);
    let patch = "{applyTo: CLUSTER, match: {cluster: {service: a.default.svc.cluster.local}}, \
                 patch: {operation: MERGE, value: {connect_timeout: 3s}}}";
    apply(&mut graph, &filter("f", "workloadSelector: {labels: {app: x}}, ", patch));
    // Who is not selected is the client that all were before.
    assert_eq!(client(&graph, "other"), before);
    assert!(Arc::ptr_eq(&cluster(&graph, &before, "a.default.svc.cluster.local"), &plain));
    assert_eq!(graph.recomputations::<Patched>(), 0);
    // What is not touched stays what it is.
    let selected = client(&graph, "x");
    assert_ne!(selected, before);
    assert_ne!(cluster(&graph, &selected, "a.default.svc.cluster.local"), plain);
    let other = "b.default.svc.cluster.local";
    assert!(Arc::ptr_eq(&cluster(&graph, &selected, other), &cluster(&graph, &before, other)));
    // What is for the workload itself does not tell clients apart.
    let patch = "{applyTo: CLUSTER, match: {context: SIDECAR_INBOUND}, patch: {operation: REMOVE}}";
    apply(&mut graph, &filter("g", "workloadSelector: {labels: {app: other}}, ", patch));
    assert_eq!(client(&graph, "other"), before);
}

#[test]
fn a_change_of_one_service_patches_its_clusters_only() {
    let mut graph = new_graph();
    apply(
        &mut graph,
        &filter("f", "", "{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 3s}}}"),
    );
    let client = client(&graph, "x");
    let all = graph.get::<SharedClusters>(&client).len() as u64;
    assert_eq!(graph.recomputations::<Patched>(), all);
    apply(
        &mut graph,
        "{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.2, ports: [{name: grpc, port: 80}]}}",
    );
    assert_eq!(graph.get::<SharedClusters>(&client).len() as u64, all);
    assert_eq!(graph.recomputations::<Patched>(), all + 1);
}

#[test]
fn what_nobody_here_knows_passes_through() {
    let mut graph = new_graph();
    let url = "type.googleapis.com/com.example.Unknown";
    let patch = format!(
        "{{applyTo: HTTP_FILTER, match: {{context: SIDECAR_OUTBOUND}}, patch: {{operation: INSERT_FIRST, value: \
         {{name: unknown, typed_config: {{'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: {url}, \
         value: {{a: [1]}}}}}}}}}}"
    );
    apply(&mut graph, &filter("f", "", &patch));
    let listeners = graph.get::<SharedListeners>(&client(&graph, "x"));
    let found = listeners.iter().find(|found| found.name() == "0.0.0.0_80").expect("a listener");
    let message = listener::Listener::decode(found.wire.body.clone()).unwrap();
    let Some(listener::filter::ConfigType::TypedConfig(config)) =
        &message.filter_chains[0].filters[0].config_type
    else {
        panic!("no configuration");
    };
    let manager: hcm::HttpConnectionManager = unpack(config).unwrap();
    let Some(hcm::http_filter::ConfigType::TypedConfig(config)) = &manager.http_filters[0].config_type else {
        panic!("no configuration");
    };
    assert_eq!(config.type_url, "type.googleapis.com/xds.type.v3.TypedStruct");
    let wanted = url.as_bytes();
    assert!(config.value.windows(wanted.len()).any(|part| part == wanted));
}

#[test]
fn the_report_makes_nothing_that_proxies_do_not_have() {
    let patches = "{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 3s}}}, \
                   {applyTo: LISTENER, patch: {operation: MERGE, value: {reuse_port: false}}}";
    let resources = |graph: &Graph, client: &ProxyKey, clusters: &[&str]| -> Vec<usize> {
        let clusters = clusters.iter().map(|&name| name.to_owned()).collect();
        let asked = Asked { client: client.clone(), routes: Vec::new(), clusters, hosts: Vec::new() };
        graph.peek::<SharedEffects>(&asked).0.values().map(|effect| effect.resources).collect()
    };
    let mut graph = new_graph();
    apply(&mut graph, &filter("f", "", patches));
    let all = client(&graph, "x");
    let (clusters, listeners) = (graph.get::<SharedClusters>(&all), graph.get::<SharedListeners>(&all));
    let made = graph.recomputations::<Patched>();
    assert_eq!(resources(&graph, &all, &[]), [clusters.len(), listeners.len()]);
    assert_eq!(graph.recomputations::<Patched>(), made, "patches are not applied again");

    // Of a mesh's clusters a proxy that asks for each has two of its own and the one.
    let mut graph = new_graph();
    apply(&mut graph, &filter("f", "", patches));
    let mut lazy = ProxyFacts::clone(&client(&graph, "x"));
    lazy.options.abilities.insert(Abilities::ON_DEMAND);
    let lazy = ProxyKey::from(lazy);
    let name = "outbound|80||a.default.svc.cluster.local";
    let fixed = graph.get::<FixedClusters>(&lazy).len();
    assert!(graph.get::<NamedCluster>(&(lazy.clone(), name.to_owned())).is_some());
    assert_eq!(resources(&graph, &lazy, &[name]).first(), Some(&(fixed + 1)));
    assert_eq!(graph.recomputations::<OutboundPart>(), 0, "others are not made");
}

/// Of virtual hosts that are asked for one by one each is counted that a patch has changed, and what patches
/// do to the configuration once; the whole table is never made.
#[test]
fn the_report_knows_virtual_hosts_that_are_asked_for() {
    let patches = "{applyTo: VIRTUAL_HOST, patch: {operation: MERGE, value: {include_request_attempt_count: true}}}, \
                   {applyTo: ROUTE_CONFIGURATION, patch: {operation: MERGE, value: {max_direct_response_body_size_bytes: 7}}}";
    let mut graph = new_graph();
    apply(&mut graph, &filter("f", "", patches));
    let mut lazy = ProxyFacts::clone(&client(&graph, "x"));
    lazy.options.abilities.insert(Abilities::ON_DEMAND);
    lazy.options.abilities.insert(Abilities::HOSTS_ON_DEMAND);
    let hosts = ["80/a.default.svc.cluster.local", "80/nowhere.example", "80/*"];
    let asked = Asked {
        client: ProxyKey::from(lazy),
        routes: vec!["80".to_owned()],
        clusters: Vec::new(),
        hosts: hosts.map(str::to_owned).to_vec(),
    };
    let found = graph.peek::<SharedEffects>(&asked);
    let found: Vec<_> = found.0.values().map(|effect| (effect.resources, effect.faults.len())).collect();
    assert_eq!(found, [(2, 0), (1, 0)]);
    assert_eq!(graph.recomputations::<OutboundRoute>(), 0, "a whole table is not made");
}
