//! What a change costs proxies under a Sidecar.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::yaml::{self, Dialect};
use leno_derive::{Batch, Graph};

use super::{Imported, ImportedRules, Seen};
use crate::model::read::{self, Read};
use crate::model::{Change, inputs};
use crate::scope::client::ClientOf;
use crate::scope::patches::Patching;
use crate::scope::{self, Families, Interception, ProxyFacts, ProxyKey, ProxyOptions, Role, Site};
use crate::source::Origin;
use crate::translate::cluster::SharedClusters;
use crate::translate::listener::SharedListeners;
use crate::translate::name_table::NameTable;
use crate::translate::route::Route;

fn commit(graph: &mut Graph, objects: &[&str]) {
    let mut batch = Batch::new();
    for text in objects {
        let documents = yaml::parse(text, Dialect::Kubernetes).expect("YAML");
        let Read::Object { reference, object, .. } = read::read(&documents[0]) else { panic!("{text}") };
        inputs::apply(Change::Set(reference, object, Origin::nowhere()), &mut batch);
    }
    graph.commit(batch);
}

fn service(name: &str, namespace: &str, ip: u8) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{clusterIP: 10.96.0.{ip}, ports: [{{name: http, port: 80}}, {{name: tcp, port: 81}}]}}}}"
    )
}

#[test]
fn what_is_not_imported_costs_nothing() {
    let key = ProxyKey::from(ProxyFacts {
        role: Role::Sidecar,
        namespace: "one".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), "a".to_owned())]),
        interception: Interception::Redirect,
        families: Families::V4,
        options: ProxyOptions::default(),
        site: Site::default(),
        identity: Arc::default(),
        sidecar: None,
        patching: Patching::default(),
    });
    let mut graph = Graph::new();
    scope::register(&mut graph);
    let sidecar = "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: s, namespace: one}, \
        spec: {egress: [{hosts: [./*, '*/x.example.com']}]}}";
    commit(&mut graph, &[&service("a", "one", 1), &service("b", "two", 2), sidecar]);
    let ask = |graph: &Graph| {
        let client = graph.get::<ClientOf>(&key);
        graph.get::<NameTable>(&client);
        graph.get::<SharedListeners>(&client);
        graph.get::<Route>(&(ProxyKey::clone(&client), "80".to_owned()));
        graph.get::<SharedClusters>(&client).iter().map(|cluster| cluster.name().to_owned()).collect()
    };
    let costs = |graph: &Graph| {
        [
            graph.recomputations::<Imported>(),
            graph.recomputations::<ImportedRules>(),
            graph.recomputations::<Seen>(),
            graph.recomputations::<NameTable>(),
            graph.recomputations::<SharedClusters>(),
            graph.recomputations::<SharedListeners>(),
            graph.recomputations::<Route>(),
        ]
    };
    let clusters: Vec<String> = ask(&graph);
    assert_eq!(
        clusters,
        [
            "outbound|80||a.one.svc.cluster.local",
            "outbound|81||a.one.svc.cluster.local",
            "BlackHoleCluster",
            "PassthroughCluster"
        ]
    );

    let before = costs(&graph);
    let rule = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: r, namespace: two}, \
        spec: {hosts: [b], http: [{route: [{destination: {host: b}}]}]}}";
    let policy = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d, namespace: two}, \
        spec: {host: b, subsets: [{name: v1}]}}";
    let entry = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: e, namespace: two}, \
        spec: {hosts: [y.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}}";
    commit(&mut graph, &[&service("c", "two", 3), rule, policy, entry]);
    assert_eq!(ask(&graph), clusters);
    assert_eq!(costs(&graph), before);

    // What is imported, by name or with its namespace, comes.
    commit(&mut graph, &[&entry.replace("y.example", "x.example"), &service("d", "one", 4)]);
    let mut news = ask(&graph);
    news.retain(|name| !clusters.contains(name));
    news.sort();
    assert_eq!(
        news,
        [
            "outbound|80||d.one.svc.cluster.local",
            "outbound|80||x.example.com",
            "outbound|81||d.one.svc.cluster.local"
        ]
    );
}
