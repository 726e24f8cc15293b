//! Property: after any sequence of events, what was derived step by step is what deriving from the
//! final state gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::yaml::{self, Dialect};
use leno_derive::{Batch, Graph, Mode};
use proptest::prelude::{Strategy, prop_oneof};
use proptest::{collection, proptest};

use super::whole;
use crate::model::read::{self, Read};
use crate::model::{Change, ObjectRef, inputs};
use crate::scope::patches::Patching;
use crate::scope::{
    self, Abilities, Families, Identity, Interception, ProxyFacts, ProxyKey, ProxyOptions, Role, Site,
};
use crate::source::Origin;

/// An event: an object in some form, or its end.
#[derive(Clone, Debug)]
enum Step {
    Set(String),
    Remove(String),
    /// Everything so far becomes one revision, and proxies ask.
    Commit,
}

/// Objects that meet in all ways: hosts, subsets, gateways, selectors.
fn object() -> impl Strategy<Value = String> {
    let name = 0..3_u8;
    let service = (name.clone(), 0..3_u8, 0..2_u8).prop_map(|(name, port, headless)| {
        let port = ["http", "tcp", "auto"][usize::from(port)];
        let ip = if headless == 1 { "clusterIP: None, " } else { "" };
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{name}}}, spec: {{{ip}selector: {{app: a{name}}}, \
             ports: [{{name: {port}, port: 80, targetPort: 8080}}]}}}}"
        )
    });
    let pod = (name.clone(), name.clone(), 1..3_u8, proptest::bool::ANY).prop_map(|(pod, app, version, ready)| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{pod}, labels: {{app: a{app}, version: v{version}}}}}, \
             spec: {{nodeName: n{pod}, containers: []}}, status: {{podIP: 10.0.0.{}, conditions: [{{type: Ready, status: \"{}\"}}]}}}}",
            pod + 1,
            if ready { "True" } else { "False" }
        )
    });
    let rule = (name.clone(), name.clone(), 1..3_u8, 0..3_u8).prop_map(|(rule, host, version, gateway)| {
        let gateways = ["[mesh]", "[g0]", "[mesh, g1]"][usize::from(gateway)];
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: r{rule}}}, \
             spec: {{hosts: [s{host}], gateways: {gateways}, http: [{{match: [{{sourceLabels: {{app: a0}}}}], \
             route: [{{destination: {{host: s{host}, subset: v{version}}}}}]}}, {{route: [{{destination: \
             {{host: s{rule}}}}}]}}]}}}}"
        )
    });
    let policy = (name.clone(), name.clone(), 1..3_u8, 0..5_u8).prop_map(|(policy, host, version, kind)| {
        let more = [
            "",
            "trafficPolicy: {outlierDetection: {}},",
            "trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r0/*, to: {r0/*: 80, r1/*: 20}}]}}},",
            "workloadSelector: {matchLabels: {app: a0}}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}},",
            "exportTo: ['.'], trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}},",
        ][usize::from(kind)];
        let host = if kind == 4 { "'*.cluster.local'".to_owned() } else { format!("s{host}") };
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: d{policy}}}, \
             spec: {{host: {host}, {more} subsets: [{{name: v{version}, labels: {{version: v{version}}}}}]}}}}"
        )
    });
    let node = (0..2_u8, 0..2_u8).prop_map(|(node, region)| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n{node}, \
             labels: {{topology.kubernetes.io/region: r{region}, topology.kubernetes.io/zone: z}}}}}}"
        )
    });
    let machine = (0..2_u8, name, 0..3_u8).prop_map(|(machine, app, network)| {
        let network = ["", "network: m, ", "network: other, "][usize::from(network)];
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: w{machine}}}, \
             spec: {{address: 10.1.0.{}, {network}serviceAccount: w, labels: {{app: a{app}}}}}}}",
            machine + 1
        )
    });
    let alias = (0..2_u8, 0..3_u8, 0..2_u8).prop_map(|(alias, host, local)| {
        let target = match local {
            0 => format!("s{host}.default.svc.cluster.local"),
            _ => format!("x{host}.default.svc.cluster.local"),
        };
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: x{alias}}}, spec: {{type: ExternalName, \
             externalName: {target}, ports: [{{name: http, port: 80}}]}}}}"
        )
    });
    let entrance = (0..2_u8).prop_map(|address| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: between, labels: {{topology.istio.io/network: other}}}}, \
             spec: {{type: LoadBalancer, externalIPs: [1.1.1.{address}], ports: [{{name: tls, port: 15443}}]}}}}"
        )
    });
    let gateway = (0..2_u8, 0..2_u8).prop_map(|(gateway, protocol)| {
        let protocol = ["HTTP", "TCP"][usize::from(protocol)];
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {{name: g{gateway}}}, \
             spec: {{selector: {{app: a2}}, servers: [{{port: {{number: 80, name: p, protocol: {protocol}}}, \
             hosts: [\"*\"]}}]}}}}"
        )
    });
    let entry = (0..2_u8, 0..2_u8).prop_map(|(entry, resolution)| {
        let resolution = ["DNS", "NONE"][usize::from(resolution)];
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: e{entry}}}, \
             spec: {{hosts: [e{entry}.example.com], resolution: {resolution}, \
             ports: [{{number: 80, name: http, protocol: HTTP}}]}}}}"
        )
    });
    let telemetry = (0..2_u8, 0..3_u8, 0..4_u8).prop_map(|(telemetry, app, kind)| {
        let selector = if app == 0 { String::new() } else { format!("selector: {{matchLabels: {{app: a{app}}}}}, ") };
        let more = [
            "accessLogging: [{providers: [{name: envoy}]}]",
            "metrics: [{providers: [{name: prometheus}], overrides: [{match: {metric: REQUEST_COUNT}, disabled: true}]}]",
            "tracing: [{providers: [{name: z}]}]",
            "tracing: [{match: {mode: SERVER}, disableSpanReporting: true}]",
        ][usize::from(kind)];
        format!(
            "{{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {{name: t{telemetry}}}, \
             spec: {{{selector}{more}}}}}"
        )
    });
    let mesh = (0..3_u8).prop_map(|kind| {
        let more = ["", "defaultProviders: {tracing: [z]}", "defaultConfig: {tracing: {}}"][usize::from(kind)];
        format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: istio, namespace: istio-system}}, data: {{mesh: \
             \"extensionProviders: [{{name: z, zipkin: {{service: s0.default.svc.cluster.local, port: 80}}}}]\\n{more}\"}}}}"
        )
    });
    let sidecar = (0..2_u8, 0..3_u8, 0..6_u8).prop_map(|(sidecar, app, kind)| {
        let selector = if app == 2 { String::new() } else { format!("workloadSelector: {{labels: {{app: a{app}}}}}, ") };
        let spec = [
            "egress: [{hosts: [./s0.default.svc.cluster.local]}]",
            "egress: [{hosts: ['./*', '~./s1.default.svc.cluster.local']}]",
            "egress: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*/*.example.com']}, {hosts: ['*/*']}]",
            "egress: [{port: {number: 80, name: tcp, protocol: TCP}, captureMode: NONE, hosts: ['*/*']}]",
            "outboundTrafficPolicy: {mode: REGISTRY_ONLY}, inboundConnectionPool: {tcp: {maxConnections: 7}}",
            "ingress: [{port: {number: 8080, name: http, protocol: HTTP}, defaultEndpoint: '0.0.0.0:8081'}]",
        ][usize::from(kind)];
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {{name: i{sidecar}}}, spec: {{{selector}{spec}}}}}"
        )
    });
    let filter = (0..3_u8, 0..5_u8, -1..2_i8).prop_map(|(filter, what, priority)| {
        let what = [
            "applyTo: CLUSTER, match: {cluster: {portNumber: 80}}, patch: {operation: MERGE, value: {connect_timeout: 7s}}",
            "applyTo: CLUSTER, match: {context: SIDECAR_INBOUND}, patch: {operation: REMOVE}",
            "applyTo: LISTENER, match: {proxy: {metadata: {TIER: gold}}}, patch: {operation: MERGE, value: {tcp_backlog_size: 5}}",
            "applyTo: HTTP_ROUTE, patch: {operation: INSERT_FIRST, value: {match: {path: /x}, direct_response: {status: 200}}}",
            // Spoils what it is for.
            "applyTo: VIRTUAL_HOST, patch: {operation: ADD, value: {name: x, domains: ['*']}}",
        ][usize::from(what)];
        let selector = if filter == 0 { "workloadSelector: {labels: {app: a0}}, " } else { "" };
        format!(
            "{{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {{name: f{filter}}}, \
             spec: {{priority: {priority}, {selector}configPatches: [{{{what}}}]}}}}"
        )
    });
    prop_oneof![
        service, pod, rule, policy, gateway, entry, node, machine, alias, entrance, telemetry, mesh, sidecar,
        filter
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => object().prop_map(Step::Set),
        2 => object().prop_map(Step::Remove),
        2 => proptest::strategy::Just(Step::Commit),
    ]
}

fn read_one(text: &str) -> (ObjectRef, crate::model::Object, Origin) {
    let documents = yaml::parse(text, Dialect::Kubernetes).expect("YAML");
    match read::read(&documents[0]) {
        Read::Object { reference, object, .. } => (reference, *object, Origin::nowhere()),
        other => panic!("{text}: {other:?}"),
    }
}

fn keys() -> Vec<ProxyKey> {
    let labels = |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned())]);
    let key = |role, app: &str, interception| ProxyFacts {
        role,
        namespace: "default".to_owned(),
        labels: labels(app),
        interception,
        families: Families::default(),
        options: ProxyOptions::default(),
        site: Site::default(),
        identity: Arc::new(Identity { service: app.to_owned(), ..Identity::default() }),
        sidecar: None,
        patching: Patching::default(),
    };
    let mut able = ProxyOptions::default();
    able.abilities.insert(Abilities::HTTP_STATS);
    able.abilities.insert(Abilities::TCP_PEERS);
    let explicit = Interception::Explicit { address: [127, 0, 0, 9].into(), port: 15080 };
    let site = Site {
        locality: "r0/z/s".to_owned(),
        network: "m".to_owned(),
        node: "n0".to_owned(),
        certificates: true,
    };
    let metadata = BTreeMap::from([("TIER".to_owned(), "gold".to_owned())]);
    let patching = Patching { metadata, ..Patching::default() };
    [
        ProxyFacts { patching, ..key(Role::Sidecar, "a0", Interception::Redirect) },
        ProxyFacts { site, ..key(Role::Sidecar, "a0", Interception::Redirect) },
        key(Role::Sidecar, "a0", Interception::Redirect),
        key(Role::Sidecar, "a1", Interception::Redirect),
        ProxyFacts { options: able, ..key(Role::Sidecar, "a1", Interception::Redirect) },
        key(Role::Sidecar, "a1", explicit),
        key(Role::Router, "a2", Interception::Redirect),
    ]
    .map(ProxyKey::from)
    .into()
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, ..Default::default() })]
    #[test]
    fn incremental_is_from_scratch(steps in collection::vec(step(), 1..40)) {
        let keys = keys();
        let mut graph = Graph::new();
        scope::register(&mut graph);
        let mut batch = Batch::new();
        let mut state: BTreeMap<ObjectRef, String> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Commit]) {
            match step {
                Step::Set(text) => {
                    let (reference, object, origin) = read_one(&text);
                    state.insert(reference.clone(), text);
                    inputs::apply(Change::Set(reference, Box::new(object), origin), &mut batch);
                }
                Step::Remove(text) => {
                    let (reference, ..) = read_one(&text);
                    state.remove(&reference);
                    inputs::apply(Change::Remove(reference), &mut batch);
                }
                Step::Commit => {
                    graph.commit(std::mem::take(&mut batch));
                    let found = whole(&graph, &keys);
                    let mut fresh = Graph::with_mode(Mode::FromScratch);
                    let mut all = Batch::new();
                    for text in state.values() {
                        let (reference, object, origin) = read_one(text);
                        inputs::apply(Change::Set(reference, Box::new(object), origin), &mut all);
                    }
                    fresh.commit(all);
                    proptest::prop_assert_eq!(found, whole(&fresh, &keys));
                }
            }
        }
    }
}
