//! The cluster as a source, over the wire: of testkit's API server, or of the real one that
//! `LENO_TEST_KUBECONFIG` names.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use leno_testkit::kube;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::discovery::Catalog;
use super::tests::{Fixture, PATIENCE, World, client, has};
use super::writer::Statuses;
use super::{Cluster, Wanted, lease, writer};
use crate::model::identity::Account;
use crate::model::{Key, Kind, ObjectRef};
use crate::push::clearance::Verdict;
use crate::source::Update;
use crate::source::files::{Files, Look};

const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

async fn start() -> Fixture<kube::Cluster> {
    let cluster = kube::Cluster::start().await;
    for (kind, plural) in [("VirtualService", "virtualservices"), ("Gateway", "gateways")] {
        cluster.put(definition(kind, plural, &VERSIONS)).await;
    }
    let source = source(&cluster, "").await;
    Fixture::of(source, cluster)
}

async fn source(cluster: &kube::Cluster, identity: &str) -> Cluster {
    client(cluster.kubeconfig(), identity).await
}

fn definition(kind: &str, plural: &str, versions: &[&str]) -> Value {
    kube::definition("networking.istio.io", plural, kind, "Namespaced", versions)
}

#[allow(clippy::needless_pass_by_value, reason = "values are written where it is called")]
fn object(version: &str, kind: &str, metadata: Value, rest: Value) -> Value {
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata });
    if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
        object.extend(rest);
    }
    object
}

fn service(cluster: &kube::Cluster, name: &str, port: u16) -> Value {
    object(
        "v1",
        "Service",
        cluster.metadata(name),
        json!({ "spec": { "selector": { "app": name },
        "ports": [{ "name": "http", "port": port, "targetPort": 8080, "protocol": "TCP" }] } }),
    )
}

fn slice(cluster: &kube::Cluster, name: &str, address: &str) -> Value {
    let mut metadata = cluster.metadata(name);
    metadata["labels"] = json!({ "kubernetes.io/service-name": name });
    object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        metadata,
        json!({ "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }] }),
    )
}

/// A Pod that no node runs, so that its status is what is said here.
fn pod(cluster: &kube::Cluster, name: &str, address: &str) -> Value {
    object(
        "v1",
        "Pod",
        cluster.metadata(name),
        json!({
        "spec": { "serviceAccountName": "default", "automountServiceAccountToken": false,
            "nodeSelector": { "of": "nobody" }, "containers": [{ "name": "app", "image": "app:1" }] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } }),
    )
}

fn gateway(cluster: &kube::Cluster, name: &str, servers: &Value) -> Value {
    object(
        "networking.istio.io/v1",
        "Gateway",
        cluster.metadata(name),
        json!({
        "spec": { "selector": { "istio": "ingressgateway" }, "servers": servers } }),
    )
}

fn hosts(host: &str) -> Value {
    json!([{ "port": { "number": 80, "name": "http", "protocol": "HTTP" }, "hosts": [host] }])
}

fn rule(cluster: &kube::Cluster, name: &str, host: &str) -> Value {
    object(
        "networking.istio.io/v1",
        "VirtualService",
        cluster.metadata(name),
        json!({
        "spec": { "hosts": [host], "http": [{ "route": [{ "destination": { "host": host } }] }] } }),
    )
}

enum Step {
    Put(&'static str, Value),
    Delete(&'static str),
}

#[tokio::test]
async fn a_cluster_tells_what_a_folder_tells() {
    let mut fixture = start().await;
    fixture.until_known().await;
    let on = fixture.server();
    let namespace = on.namespace().to_owned();
    let web = format!("web.{namespace}.svc.cluster.local");
    let mut warned = rule(on, "r", &web);
    warned["spec"]["htpp"] = json!([]);
    let steps = vec![
        Step::Put("web", service(on, "web", 80)),
        Step::Put("slice", slice(on, "web", "10.1.0.1")),
        Step::Put("pod", pod(on, "web-1", "10.1.0.1")),
        Step::Put("g", gateway(on, "g", &hosts("shop.example.com"))),
        Step::Put("r", rule(on, "r", &web)),
        Step::Put("web", service(on, "web", 81)),
        Step::Put("g", gateway(on, "g", &json!("none"))),
        Step::Put("other", gateway(on, "other", &hosts("x.example.com"))),
        Step::Put("g", gateway(on, "g", &hosts("not a host"))),
        Step::Put("g", gateway(on, "g", &hosts("new.example.com"))),
        Step::Put("r", warned),
        Step::Put("g", gateway(on, "g", &json!("none"))),
        Step::Delete("g"),
        Step::Delete("r"),
        Step::Delete("pod"),
        Step::Put("slice", slice(on, "web", "10.1.0.2")),
        Step::Delete("web"),
        Step::Delete("slice"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut files = Files::new(vec![folder.path().to_owned()]);
    let (mut now, mut world) = (Instant::now(), World::default());
    let mut objects: BTreeMap<&str, Value> = BTreeMap::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Put(file, object) => {
                // The file has what the server made of it.
                let stored = fixture.server().put(object).await;
                fs::write(folder.path().join(format!("{file}.json")), stored.to_string()).unwrap();
                objects.insert(file, stored);
            }
            Step::Delete(file) => {
                fs::remove_file(folder.path().join(format!("{file}.json"))).unwrap();
                fixture.server().remove(&objects[file]).await;
            }
        }
        // Twice, as a file that is gone is believed to be so after a moment only.
        for _ in 0..2 {
            now += Duration::from_secs(1);
            let changes = files.scan(Look::Inside, now);
            world.take(Update { changes, diagnostics: files.diagnostics(), ..Update::default() });
        }
        let of_namespace =
            |world: &World| world.diagnostics.iter().filter(|it| it.contains(&namespace)).count();
        let (expected, faults) = (world.of(&namespace), of_namespace(&world));
        let same = |cluster: &World| cluster.of(&namespace) == expected && of_namespace(cluster) == faults;
        fixture.until(&format!("step {number}"), same).await;
    }
}

#[tokio::test]
async fn kinds_come_and_go_and_change_their_version() {
    let mut fixture = start().await;
    fixture.until_known().await;
    let sidecar = |version: &str, name: &str, on: &kube::Cluster| {
        object(version, "Sidecar", on.metadata(name), json!({ "spec": { "outboundTrafficPolicy": {} } }))
    };
    let only_old = definition("Sidecar", "sidecars", &["v1alpha3"]);
    fixture.server().put(only_old).await;
    fixture.server().put(sidecar("networking.istio.io/v1alpha3", "late", fixture.server())).await;
    fixture.until("a late kind", |world| has(world, "late")).await;
    let both = definition("Sidecar", "sidecars", &["v1", "v1alpha3"]);
    fixture.server().put(both.clone()).await;
    fixture.server().put(sidecar("networking.istio.io/v1", "later", fixture.server())).await;
    fixture.until("a new version", |world| has(world, "later")).await;
    fixture.server().remove(&both).await;
    fixture.until("gone", |world| !has(world, "late") && !has(world, "later")).await;
}

#[tokio::test]
async fn one_of_the_same_name_is_another() {
    let mut fixture = start().await;
    let first = gateway(fixture.server(), "g", &hosts("a.example.com"));
    let namespace = fixture.server().namespace().to_owned();
    let reference = ObjectRef { kind: Kind::Gateway, namespace, name: "g".to_owned() };
    fixture.server().put(first.clone()).await;
    fixture.until("the first", |world| world.objects.contains_key(&reference)).await;
    fixture.server().put(gateway(fixture.server(), "g", &hosts("b.example.com"))).await;
    fixture
        .until("a change", |world| {
            world.objects.get(&reference).is_some_and(|it| it.contains("b.example.com"))
        })
        .await;
    assert!(!fixture.world.gone.contains(&reference));
    fixture.server().remove(&first).await;
    fixture.server().put(first).await;
    fixture
        .until("another", |world| {
            world.gone.contains(&reference)
                && world.objects.get(&reference).is_some_and(|object| object.contains("a.example.com"))
        })
        .await;
}

#[tokio::test]
async fn secrets_are_read_one_by_one() {
    let mut fixture = start().await;
    fixture.until_known().await;
    let namespace = fixture.server().namespace().to_owned();
    let secret = |on: &kube::Cluster, name: &str, data: &str| {
        object("v1", "Secret", on.metadata(name), json!({ "type": "Opaque", "data": { "tls.key": data } }))
    };
    fixture.server().put(secret(fixture.server(), "wanted", "QQ==")).await;
    fixture.server().put(secret(fixture.server(), "other", "QQ==")).await;
    let key = |name: &str| Key { namespace: namespace.clone(), name: name.to_owned() };
    let want = |names: &[&str]| Wanted(names.iter().map(|name| (Kind::Secret, key(name))).collect());
    let has = |world: &World, name: &str| world.objects.contains_key(&key(name).of(Kind::Secret));
    fixture.want.send_replace(want(&["wanted", "later"]));
    fixture.until("the one", |world| has(world, "wanted")).await;
    let before = fixture.world.objects[&key("wanted").of(Kind::Secret)].clone();
    fixture.server().put(secret(fixture.server(), "wanted", "Qg==")).await;
    fixture.server().put(secret(fixture.server(), "later", "Qg==")).await;
    fixture
        .until("a change", |world| has(world, "later") && world.removed.is_empty() && !has(world, "other"))
        .await;
    assert!(!before.contains("QQ"), "a Secret must not be shown: {before}");
    fixture.want.send_replace(want(&["later"]));
    fixture.until("no longer", |world| !has(world, "wanted") && has(world, "later")).await;
    // One that is wanted again at once stays.
    fixture.want.send_replace(want(&[]));
    fixture.want.send_replace(want(&["later", "wanted"]));
    fixture.until("again", |world| has(world, "wanted") && has(world, "later")).await;
    let seen = fixture.server().server().map(|server| server.take_seen()).unwrap_or_default();
    let reads = seen.iter().filter(|seen| seen.path.contains("/secrets") && seen.method == "GET");
    assert!(reads.into_iter().all(|seen| seen.query.contains("fieldSelector=metadata.name%3D")));
}

#[tokio::test]
async fn service_accounts_are_reviewed() {
    let on = kube::Cluster::start().await;
    let cluster = source(&on, "").await;
    let namespace = on.namespace();
    for name in ["web", "other"] {
        on.account(name).await;
    }
    let audiences = ["istio-ca".to_owned()];
    let good = on.token("web", "istio-ca").await;
    let (account, _) = cluster.review_token(&good, &audiences).await.unwrap();
    assert_eq!(account.to_string(), format!("{namespace}/web"));
    for (token, audiences) in [
        (on.token("web", "somebody-else").await, &audiences[..]),
        (on.token("web", "").await, &audiences[..]),
        (good.clone(), &["somebody-else".to_owned()][..]),
        (format!("{good}x"), &audiences[..]),
        ("nonsense".to_owned(), &audiences[..]),
        (String::new(), &audiences[..]),
    ] {
        let words = cluster.review_token(&token, audiences).await.unwrap_err();
        assert!(words.contains("refused"), "{words}");
    }
    let metadata = on.metadata("read-secrets");
    on.put(object(
        "rbac.authorization.k8s.io/v1",
        "Role",
        metadata.clone(),
        json!({
        "rules": [{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["list"] }] }),
    ))
    .await;
    on.put(object(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        metadata,
        json!({
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "read-secrets" },
        "subjects": [{ "kind": "ServiceAccount", "name": "web", "namespace": namespace }] }),
    ))
    .await;
    if let Some(server) = on.server() {
        // It knows no roles.
        server.deny(&format!("system:serviceaccount:{namespace}:other"), "list", "", "secrets");
    }
    let mut tasks = JoinSet::new();
    let (ask, mut told) = cluster.spawn_reviewer(&mut tasks);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for (name, expected) in [("web", Verdict::May), ("other", Verdict::MayNot)] {
        let account = Account { namespace: namespace.to_owned(), name: name.to_owned() };
        loop {
            ask.send(account.clone()).unwrap();
            let (about, found) = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
            assert_eq!(about, account);
            if found == expected {
                break;
            }
            // A binding takes a moment to count.
            assert!(tokio::time::Instant::now() < deadline && expected == Verdict::May, "{name}: {found:?}");
        }
    }
}

#[tokio::test]
async fn one_of_two_replicas_leads_and_the_other_follows() {
    let on = kube::Cluster::start().await;
    // Leases are in the root namespace, which all tests share.
    let name: &'static str = on.namespace().to_owned().leak();
    let candidate = async |identity: &str| {
        let cluster = source(&on, identity).await;
        let (leads, leading) = watch::channel(false);
        let task = tokio::spawn(async move { lease::run(cluster, name, leads).await });
        (leading, task)
    };
    let (mut first, one) = candidate("one").await;
    tokio::time::timeout(PATIENCE, first.wait_for(|leads| *leads)).await.unwrap().unwrap();
    let (mut second, two) = candidate("two").await;
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": "istio-system" } });
    let spec = async || on.find(&lease).await["spec"].clone();
    // It is renewed, and stays where it is.
    let begun = spec().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while spec().await["renewTime"] == begun["renewTime"] {
        assert!(tokio::time::Instant::now() < deadline, "{begun}");
    }
    let renewed = spec().await;
    assert_eq!((&renewed["acquireTime"], &renewed["holderIdentity"]), (&begun["acquireTime"], &json!("one")));
    assert!(*first.borrow() && !*second.borrow());
    // It is given back in order, so that nobody has to wait.
    drop(first);
    tokio::time::timeout(PATIENCE, one).await.unwrap().unwrap();
    tokio::time::timeout(PATIENCE, second.wait_for(|leads| *leads)).await.unwrap().unwrap();
    let taken = spec().await;
    assert_eq!((&taken["holderIdentity"], &taken["leaseTransitions"]), (&json!("two"), &json!(2)));
    two.abort();
}

#[tokio::test]
async fn status_is_written_by_the_leader_and_to_each_object_anew() {
    let on = kube::Cluster::start().await;
    on.put(definition("Gateway", "gateways", &VERSIONS)).await;
    let gateway = gateway(&on, "g", &hosts("shop.example.com"));
    on.put(gateway.clone()).await;
    let cluster = source(&on, "one").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let known = || super::watched().find(|known| known.reads == Some(Kind::Gateway)).unwrap();
    while cluster.catalog.borrow().find(&known()).is_none() {
        assert!(tokio::time::Instant::now() < deadline);
        cluster.catalog.send_replace(Catalog::fetch(&cluster.api).await.unwrap());
    }
    let (lead, leading) = watch::channel(false);
    let (say, statuses) = mpsc::unbounded_channel();
    tokio::spawn(writer::run(cluster, leading, statuses));
    let namespace = on.namespace().to_owned();
    let object = ObjectRef { kind: Kind::Gateway, namespace, name: "g".to_owned() };
    let gone = ObjectRef { name: "gone".to_owned(), ..object.clone() };
    let status = |message: &str| json!({ "observedGeneration": 1, "conditions": [{ "type": "Reconciled", "status": "True", "message": message }] });
    let say = |all: &[(&ObjectRef, &str)], forget: bool| {
        let want = all.iter().map(|(object, message)| ((*object).clone(), status(message)));
        let forget = all.iter().filter(|_| forget).map(|(object, _)| (*object).clone()).collect();
        say.send(Statuses { forget, want: want.collect() }).unwrap();
    };
    let until = async |message: &str| {
        loop {
            let found = on.find(&gateway).await;
            if found["status"]["conditions"][0]["message"] == message {
                assert_eq!(found["spec"]["servers"][0]["hosts"][0], "shop.example.com");
                let managers = found["metadata"]["managedFields"].as_array().unwrap().iter();
                let managers: Vec<_> = managers.filter(|by| by["manager"] == "leno-status").collect();
                assert_eq!((managers.len(), &managers[0]["subresource"]), (1, &json!("status")));
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found}");
        }
    };
    say(&[(&object, "one"), (&gone, "one")], false);
    tokio::task::yield_now().await;
    assert_eq!(on.find(&gateway).await["status"], Value::Null);
    lead.send_replace(true);
    until("one").await;
    say(&[(&object, "two")], false);
    until("two").await;
    // Another of the same name has none, whatever was written to the first.
    on.remove(&gateway).await;
    on.put(gateway.clone()).await;
    assert_eq!(on.find(&gateway).await["status"], Value::Null);
    say(&[(&object, "two")], true);
    until("two").await;
}

#[tokio::test]
async fn of_a_folder_and_a_cluster_the_cluster_counts() {
    let on = kube::Cluster::start().await;
    on.put(definition("Gateway", "gateways", &VERSIONS)).await;
    let both = on.put(gateway(&on, "both", &hosts("cluster.example.com"))).await;
    let folder = tempfile::tempdir().unwrap();
    for (file, name) in [("a.json", "both"), ("b.json", "file")] {
        fs::write(folder.path().join(file), gateway(&on, name, &hosts("folder.example.com")).to_string())
            .unwrap();
    }
    let (_want, wanted) = watch::channel(Wanted::default());
    let mut tasks = JoinSet::new();
    let source = source(&on, "one").await;
    let mut updates = crate::source::spawn(vec![folder.path().to_owned()], Some(source), wanted, &mut tasks);
    let mut world = World::default();
    let mut until = async |holds: &dyn Fn(&World) -> bool| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match tokio::time::timeout_at(deadline, updates.recv()).await {
                Ok(Some(update)) => world.take(update),
                _ => panic!("{:#?} {:#?}", world.objects, world.diagnostics),
            }
            if holds(&world) {
                return;
            }
        }
    };
    let shows =
        |world: &World, text: &str| world.of(on.namespace()).values().any(|object| object.contains(text));
    // The first update is that of both.
    until(&|world| {
        assert!(has(world, "kubernetes") && has(world, "file") && has(world, "both"));
        shows(world, "cluster.example.com")
    })
    .await;
    let hidden = |world: &World| {
        world.diagnostics.iter().any(|text| text.contains("the cluster has an object of this name"))
    };
    until(&|world| hidden(world)).await;
    on.remove(&both).await;
    until(&|world| !shows(world, "cluster.example.com") && !hidden(world)).await;
}
