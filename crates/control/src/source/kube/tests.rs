//! The cluster as a source, whatever the API server goes through meanwhile: what it tells in the end is
//! what a folder of the same objects tells. What needs no faults is in `wire.rs`, which a real API
//! server can be asked too.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use leno_base::rng::Rng;
use leno_testkit::kube::{ApiServer, Fault, Options, User};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::discovery::Catalog;
use super::writer::Statuses;
use super::{Cluster, Kubernetes, Wanted, run, writer};
use crate::model::diagnostic::Diagnostic;
use crate::model::identity::Account;
use crate::model::{Change, Kind, ObjectRef};
use crate::push::clearance::Verdict;
use crate::source::Update;
use crate::source::files::{Files, Look};

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What the updates of a source amount to.
#[derive(Default)]
pub(super) struct World {
    pub(super) objects: BTreeMap<ObjectRef, String>,
    pub(super) diagnostics: Vec<String>,
    pub(super) removed: Vec<ObjectRef>,
    /// Those that are gone, whatever has come under their names.
    pub(super) gone: Vec<ObjectRef>,
}

impl World {
    pub(super) fn take(&mut self, update: Update) {
        for change in update.changes {
            match change {
                Change::Set(reference, object, _) => {
                    drop(self.objects.insert(reference, format!("{object:?}")));
                }
                Change::Remove(reference) => {
                    self.objects.remove(&reference);
                    self.removed.push(reference);
                }
            }
        }
        self.gone.extend(update.gone);
        self.diagnostics = update.diagnostics.iter().map(Diagnostic::to_string).collect();
    }

    /// The objects of the namespace of the tests.
    fn shop(&self) -> BTreeMap<ObjectRef, String> {
        self.of("shop")
    }

    pub(super) fn of(&self, namespace: &str) -> BTreeMap<ObjectRef, String> {
        let own = self.objects.iter().filter(|(reference, _)| reference.namespace == namespace);
        own.map(|(reference, object)| (reference.clone(), object.clone())).collect()
    }
}

/// A cluster and its source.
pub(super) struct Fixture<S = ApiServer> {
    server: Option<S>,
    pub(super) world: World,
    pub(super) want: watch::Sender<Wanted>,
    updates: mpsc::Receiver<Update>,
}

impl Fixture {
    async fn new() -> Fixture {
        let server = ApiServer::start().await.unwrap();
        server.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
        definitions(&server);
        Fixture::on(server).await
    }

    async fn on(server: ApiServer) -> Fixture {
        Fixture::of(cluster(&server, "").await, server)
    }

    /// Waits until the server has been asked so often for paths with this in them.
    async fn until_asked(&self, count: usize, path: &str) {
        let mut asked = 0;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while asked < count {
            assert!(tokio::time::Instant::now() < deadline, "asked {asked} times for {path:?}");
            asked += self.server().take_seen().iter().filter(|seen| seen.path.contains(path)).count();
            tokio::task::yield_now().await;
        }
    }
}

impl<S> Fixture<S> {
    pub(super) fn of(source: Cluster, server: S) -> Fixture<S> {
        let (want, wanted) = watch::channel(Wanted::default());
        let (sender, updates) = mpsc::channel(4);
        tokio::spawn(run(source, wanted, sender));
        Fixture { server: Some(server), world: World::default(), want, updates }
    }

    pub(super) fn server(&self) -> &S {
        self.server.as_ref().unwrap()
    }

    /// Takes updates until something holds.
    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds(&self.world) {
            match tokio::time::timeout_at(deadline, self.updates.recv()).await {
                Ok(Some(update)) => self.world.take(update),
                _ => panic!("{what}: {:#?} {:#?}", self.world.objects.keys(), self.world.diagnostics),
            }
        }
    }

    pub(super) async fn until_known(&mut self) {
        let update = tokio::time::timeout(PATIENCE, self.updates.recv()).await.unwrap().unwrap();
        self.world.take(update);
    }
}

pub(super) fn has(world: &World, name: &str) -> bool {
    world.objects.keys().any(|reference| reference.name == name)
}

/// The kinds of Istio that the tests use, without schemas.
fn definitions(server: &ApiServer) {
    for (kind, plural) in [
        ("VirtualService", "virtualservices"),
        ("DestinationRule", "destinationrules"),
        ("Gateway", "gateways"),
        ("ServiceEntry", "serviceentries"),
    ] {
        server.put(definition(kind, plural, &["v1", "v1beta1", "v1alpha3"]));
    }
}

fn definition(kind: &str, plural: &str, versions: &[&str]) -> Value {
    leno_testkit::kube::definition("networking.istio.io", plural, kind, "Namespaced", versions)
}

/// What all objects of the tests have, so that both sources read the same.
fn metadata(name: &str) -> Value {
    json!({ "name": name, "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": { "app": name } })
}

fn service(name: &str, port: u16) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata(name), "spec": {
        "type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "selector": { "app": name },
        "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{ "name": "http", "port": port, "targetPort": 8080, "protocol": "TCP" }] } })
}

fn pod(name: &str, address: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata(name),
        "spec": { "serviceAccountName": "default", "containers": [{ "name": "app", "image": "app:1" }] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } })
}

fn gateway(name: &str, host: &str) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": metadata(name), "spec": {
        "selector": { "istio": "ingressgateway" },
        "servers": [{ "port": { "number": 80, "name": "http", "protocol": "HTTP" }, "hosts": [host] }] } })
}

fn rule(name: &str, host: &str) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata(name),
        "spec": { "hosts": [host], "http": [{ "route": [{ "destination": { "host": host } }] }] } })
}

/// The folder of some objects, read by the other source from nothing.
fn from_files(objects: &BTreeMap<String, Value>) -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Files::new(vec![folder.path().to_owned()]);
    for (name, object) in objects {
        fs::write(folder.path().join(format!("{name}.json")), object.to_string()).unwrap();
    }
    let mut world = World::default();
    let changes = files.scan(Look::Inside, Instant::now());
    world.take(Update { changes, diagnostics: files.diagnostics(), ..Update::default() });
    world
}

#[tokio::test]
async fn everything_is_in_the_first_update() {
    let server = ApiServer::start().await.unwrap();
    server.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    definitions(&server);
    for number in 0..1200 {
        server.put(pod(&format!("p{number}"), "10.1.0.1"));
    }
    server.put(gateway("g", "shop.example.com"));
    server.put(gateway("broken", "not a host"));
    server.put(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio", "namespace": "istio-system" },
        "data": { "mesh": "rootNamespace: istio-system" } }));
    server.put(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "other", "namespace": "istio-system" } }));
    server.put(
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "shop" } }),
    );
    let mut done = pod("done", "10.1.0.9");
    done["status"]["phase"] = Value::from("Succeeded");
    server.put(done);
    let mut fixture = Fixture::on(server).await;
    fixture.until_known().await;
    let count = |kind| fixture.world.objects.keys().filter(|it| it.kind == kind).count();
    assert_eq!((count(Kind::Pod), count(Kind::Gateway), count(Kind::MeshConfig)), (1200, 1, 1));
    assert_eq!((count(Kind::ConfigMap), count(Kind::Secret)), (0, 0));
    assert_eq!(fixture.world.diagnostics.len(), 1, "{:?}", fixture.world.diagnostics);
    // Nobody has asked for Secrets at all.
    let seen = fixture.server().take_seen();
    assert!(seen.iter().all(|seen| !seen.path.contains("secrets")));
    assert!(seen.iter().any(|seen| seen.query.contains("continue=")));
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let server = ApiServer::start().await.unwrap();
    definitions(&server);
    server.put(gateway("g", "shop.example.com"));
    server.fail(Fault::on(503, |_| true));
    let mut fixture = Fixture::on(server).await;
    // Some kinds can be had, but not what matters most: not a state to serve.
    fixture.until_asked(3, "").await;
    fixture.server().heal();
    fixture.server().fail(Fault::on(500, |seen| seen.path.contains("services")));
    fixture.until_asked(3, "services").await;
    assert!(fixture.updates.try_recv().is_err());
    fixture.server().heal();
    fixture.until_known().await;
    assert!(has(&fixture.world, "g") && has(&fixture.world, "kubernetes"));
    assert_eq!(fixture.world.diagnostics, Vec::<String>::new());
}

#[tokio::test]
async fn forbidden_kinds_are_reported_and_hold_up_nothing() {
    let server = ApiServer::start().await.unwrap();
    definitions(&server);
    server.put(gateway("g", "shop.example.com"));
    server.deny("*", "list", "networking.k8s.io", "ingresses");
    let mut fixture = Fixture::on(server).await;
    fixture.until_known().await;
    assert!(has(&fixture.world, "g"));
    let said = fixture.world.diagnostics.join("\n");
    assert!(
        said.contains("Ingress") && said.contains("cannot list resource") && said.contains("[unwatchable]"),
        "{said}"
    );
    fixture.server().allow_all();
    fixture.until("allowed", |world| world.diagnostics.is_empty()).await;
}

#[tokio::test]
async fn what_the_server_forgets_takes_nothing_away() {
    let mut fixture = Fixture::new().await;
    fixture.server().put(gateway("stays", "a.example.com"));
    fixture.server().put(gateway("goes", "a.example.com"));
    fixture.until("both", |world| has(world, "stays") && has(world, "goes")).await;
    // While nothing listens things change and are forgotten.
    fixture.server().fail(Fault::on(503, |_| true));
    fixture.server().drop_watches();
    assert!(fixture.server().remove("networking.istio.io", "gateways", "shop", "goes"));
    fixture.server().put(gateway("comes", "a.example.com"));
    fixture.server().compact();
    fixture.until("told", |world| world.diagnostics.iter().any(|text| text.contains("unwatchable"))).await;
    fixture.server().heal();
    fixture
        .until("new", |world| has(world, "comes") && !has(world, "goes") && world.diagnostics.is_empty())
        .await;
    let removed: Vec<&str> = fixture.world.removed.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(removed, ["goes"]);
    // Bookmarks move a watch on, so that it survives what is forgotten before them.
    fixture.server().put(service("web", 80));
    fixture.until("web", |world| has(world, "web")).await;
    fixture.server().bookmark();
    fixture.server().put(gateway("more", "a.example.com"));
    fixture.until("more", |world| has(world, "more")).await;
}

#[tokio::test]
async fn service_accounts_are_reviewed() {
    let server = ApiServer::start().await.unwrap();
    let mut cluster = cluster(&server, "").await;
    cluster.retry = (Duration::from_millis(1), Duration::from_millis(2));
    let user = |name: &str, groups: &[&str]| User {
        name: name.to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
    };
    server.add_token("web", user("system:serviceaccount:shop:web", &["system:serviceaccounts"]));
    server.add_token("false", user("system:serviceaccount:shop:web", &[]));
    server.add_token("human", user("alice", &["system:serviceaccounts"]));
    let audiences = ["istio-ca".to_owned()];
    for (token, expected) in [
        ("web", Ok("shop/web")),
        ("false", Err("not a service account's")),
        ("human", Err("not a service account's")),
        ("unknown", Err("invalid bearer token")),
    ] {
        match (cluster.review_token(token, &audiences).await, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.0.to_string(), expected),
            (Err(words), Err(expected)) => assert!(words.contains(expected), "{words}"),
            (found, expected) => panic!("{token}: {found:?}, not {expected:?}"),
        }
    }
    let mut tasks = tokio::task::JoinSet::new();
    let (ask, mut told) = cluster.spawn_reviewer(&mut tasks);
    server.deny("system:serviceaccount:shop:other", "list", "", "secrets");
    let mut answered = async |name: &str| {
        let account = Account { namespace: "shop".to_owned(), name: name.to_owned() };
        ask.send(account.clone()).unwrap();
        let (about, verdict) = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        assert_eq!(about, account);
        verdict
    };
    assert_eq!(answered("web").await, Verdict::May);
    assert_eq!(answered("other").await, Verdict::MayNot);
    // One fault is no answer yet; that there is none is not said to be one.
    for (fault, expected) in [
        (Fault::next(2, 500), Verdict::May),
        (Fault::on(503, |_| true), Verdict::Silence),
        (Fault::on(429, |_| true), Verdict::Silence),
        (Fault::on(401, |_| true), Verdict::Silence),
        (Fault::on(403, |_| true), Verdict::Refused),
    ] {
        server.fail(fault);
        assert_eq!(answered("web").await, expected);
        server.heal();
    }
    server.drop_connections();
    drop(server);
    assert_eq!(answered("web").await, Verdict::Silence);
}

/// What disturbs a cluster in the course of its life.
async fn disturb(fixture: &mut Fixture, rng: &mut Rng) {
    match rng.below(8) {
        0 => fixture.server().drop_watches(),
        1 => fixture.server().drop_connections(),
        2 => fixture.server().compact(),
        3 => fixture.server().bookmark(),
        4 => {
            let status =
                [500, 503, 410, 429, 403, 404].get(rng.index(6).unwrap_or(0)).copied().unwrap_or(500);
            let count = usize::try_from(rng.below(20)).unwrap_or(1);
            fixture.server().fail(Fault::next(count, status));
        }
        5 => fixture.server().slow_down(Duration::from_millis(rng.below(20))),
        6 => {
            fixture.server().compact();
            fixture.server().drop_watches();
        }
        _ => {
            let server = fixture.server.take().unwrap();
            fixture.server = Some(server.restart().await.unwrap());
        }
    }
}

#[tokio::test]
async fn after_any_chaos_it_is_what_a_read_from_nothing_gives() {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut fixture = Fixture::new().await;
        let constant = gateway("constant", "constant.example.com");
        fixture.server().put(constant.clone());
        fixture.until("constant", |world| has(world, "constant")).await;
        let mut objects = BTreeMap::from([("constant".to_owned(), constant)]);
        for round in 0..60_u16 {
            let number = rng.below(5);
            let (group, plural, name) = match rng.below(4) {
                0 => ("", "services", format!("s{number}")),
                1 => ("", "pods", format!("p{number}")),
                2 => ("networking.istio.io", "gateways", format!("g{number}")),
                _ => ("networking.istio.io", "virtualservices", format!("v{number}")),
            };
            let object = match plural {
                "services" => service(&name, 80 + round),
                "pods" => pod(&name, &format!("10.1.0.{round}")),
                "gateways" if rng.chance(1, 3) => gateway(&name, "not a host"),
                "gateways" => gateway(&name, &format!("h{round}.example.com")),
                _ => rule(&name, &format!("h{round}.example.com")),
            };
            if rng.chance(1, 4) {
                fixture.server().remove(group, plural, "shop", &name);
                objects.remove(&name);
            } else {
                fixture.server().put(object.clone());
                objects.insert(name, object);
            }
            if rng.chance(1, 3) {
                disturb(&mut fixture, &mut rng).await;
            }
            while let Ok(update) = fixture.updates.try_recv() {
                fixture.world.take(update);
            }
            tokio::task::yield_now().await;
        }
        // In the end all is well, and no object is broken: last good versions are not comparable.
        for (name, object) in &mut objects {
            if name.starts_with('g') {
                *object = gateway(name, "end.example.com");
                fixture.server().put(object.clone());
            }
        }
        fixture.server().heal();
        fixture.server().slow_down(Duration::ZERO);
        let expected = from_files(&objects).shop();
        fixture
            .until(&format!("seed {seed}"), |world| world.shop() == expected && world.diagnostics.is_empty())
            .await;
        assert!(fixture.world.removed.iter().all(|it| it.name != "constant"), "seed {seed}");
    }
}

#[tokio::test]
async fn the_catalogue_is_asked_over_tls_with_a_token() {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let tls = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let options = Options { tls: Some(tls), authenticate: true, ..Options::default() };
    let mut fixture = Fixture::on(ApiServer::start_with(options).await.unwrap()).await;
    fixture.until_known().await;
    assert!(has(&fixture.world, "kubernetes"));
}

/// A client of a server, as a source has it.
async fn cluster(server: &ApiServer, identity: &str) -> Cluster {
    client(&server.kubeconfig(), identity).await
}

pub(super) async fn client(kubeconfig: &str, identity: &str) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    fs::write(&path, kubeconfig).unwrap();
    let config =
        Kubernetes { kubeconfig: Some(path), identity: identity.to_owned(), ..Kubernetes::default() };
    let mut cluster = Cluster::new(&config).await.unwrap();
    cluster.retry = (Duration::from_millis(2), Duration::from_millis(50));
    cluster
}

#[tokio::test]
async fn status_is_written_again_after_a_fault() {
    let mut fixture = Fixture::new().await;
    fixture.server().put(gateway("g", "shop.example.com"));
    fixture.until("known", |world| has(world, "g")).await;
    let cluster = cluster(fixture.server(), "one").await;
    cluster.catalog.send_replace(Catalog::fetch(&cluster.api).await.unwrap());
    let (lead, leading) = watch::channel(false);
    let (say, statuses) = mpsc::unbounded_channel();
    tokio::spawn(writer::run(cluster, leading, statuses));
    let object = ObjectRef { kind: Kind::Gateway, namespace: "shop".to_owned(), name: "g".to_owned() };
    let gone = ObjectRef { name: "gone".to_owned(), ..object.clone() };
    let status = |generation: i64| json!({ "observedGeneration": generation });
    let all = BTreeMap::from([(object.clone(), status(1)), (gone, status(1))]);
    say.send(Statuses { want: all, ..Statuses::default() }).unwrap();
    tokio::task::yield_now().await;
    let find = || fixture.server().find("networking.istio.io", "gateways", "shop", "g").unwrap();
    assert_eq!(find()["status"], Value::Null);
    fixture.server().fail(Fault::next(3, 500));
    lead.send_replace(true);
    let until = async |generation: i64| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while find()["status"]["observedGeneration"] != generation {
            assert!(tokio::time::Instant::now() < deadline, "{}", find());
            tokio::task::yield_now().await;
        }
    };
    until(1).await;
    assert_eq!(find()["metadata"]["managedFields"][0]["manager"], "leno-status");
    assert_eq!(find()["spec"]["servers"][0]["hosts"][0], "shop.example.com");
    say.send(Statuses { want: BTreeMap::from([(object, status(2))]), ..Statuses::default() }).unwrap();
    until(2).await;
}
