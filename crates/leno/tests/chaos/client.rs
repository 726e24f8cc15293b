//! A client of the control plane that holds what it is told, as a proxy does; some are slow, and some
//! ask for virtual hosts as they need them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use leno_api::encode::{self, Style};
use leno_api::proto::envoy::config::core::v3::{Extension, Node};
use leno_base::{Name, Rng};
use leno_xds::client::grpc::{self, Commander, Connection, Event, Target};
use leno_xds::client::{Client as State, Config, Interest, Update};
use leno_xds::{Mode, TypeUrl};
use prost_types::value::Kind;
use prost_types::{Struct, Value as Metadatum};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How fast a client takes what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Quick,
    /// It thinks about each message.
    Slow,
    /// It takes nothing until all is calm.
    Stuck,
}

/// What a client asks for of a table whose virtual hosts are given on demand.
const ASKED: [&str; 8] = [
    "s0.shop.svc.cluster.local",
    "s1.shop.svc.cluster.local:80",
    "s2.shop",
    "s3",
    "10.0.0.5",
    "last.shop.svc.cluster.local",
    "web.internal",
    "nowhere.example",
];

/// Which proxy a client is.
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) mode: Mode,
    /// It asks for virtual hosts, and with them clusters, when requests need them.
    pub(crate) lazy: bool,
}

impl Identity {
    fn node(&self) -> Node {
        let mut node = Node { id: self.id.clone(), ..Node::default() };
        if self.lazy {
            let text = |text: &str| Metadatum { kind: Some(Kind::StringValue(text.to_owned())) };
            let says = ["LENO_LAZY", "LENO_LAZY_ROUTES"].map(|name| (name.to_owned(), text("true")));
            node.metadata = Some(Struct { fields: says.into() });
            node.extensions.push(Extension {
                category: "envoy.filters.http".to_owned(),
                name: "envoy.filters.http.on_demand".to_owned(),
                type_urls: vec!["envoy.extensions.filters.http.on_demand.v3.OnDemand".to_owned()],
                ..Extension::default()
            });
        }
        node
    }
}

/// Resources by type and name.
pub(crate) type Held = BTreeMap<(TypeUrl, Name), Bytes>;

/// A client; dropping it ends it.
pub(crate) struct Client {
    held: Arc<Mutex<Held>>,
    task: JoinHandle<()>,
    stream: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
        self.stream.abort();
    }
}

impl Client {
    /// Connects, and again whenever the connection ends.
    pub(crate) fn start(
        identity: &Identity,
        pilot: SocketAddr,
        pace: Pace,
        calm: watch::Receiver<bool>,
    ) -> Client {
        let mode = identity.mode;
        let mut config = Config::new(mode, identity.node());
        config.backoff_base = Duration::from_millis(10);
        config.backoff_max = Duration::from_millis(200);
        let state = State::new(config, Rng::new(7));
        let (commander, commands) = grpc::commands();
        let (sender, events) = mpsc::channel(1);
        let connection = Connection {
            authority: "xds-grpc".into(),
            connect_timeout: Duration::from_secs(5),
            keepalive: None,
        };
        let target = Target::Tcp(pilot);
        let connector = move || {
            let (target, connection) = (target.clone(), connection.clone());
            async move { grpc::connect(&target, &connection).await }
        };
        let stream = tokio::spawn(async move {
            grpc::run(connector, mode.path(), http::HeaderMap::new(), state, commands, sender).await;
        });
        commander.subscribe(TypeUrl::Cluster, Interest::Wildcard, None);
        commander.subscribe(TypeUrl::Listener, Interest::Wildcard, None);
        let held = Arc::new(Mutex::new(Held::new()));
        let own = Own { held: Arc::clone(&held), commander, asked: BTreeSet::new() };
        Client { held, task: tokio::spawn(own.run(events, pace, calm)), stream }
    }

    /// What it holds now.
    pub(crate) fn held(&self) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The task's side.
struct Own {
    held: Arc<Mutex<Held>>,
    commander: Commander,
    /// What it has asked for by name.
    asked: BTreeSet<(TypeUrl, Name)>,
}

impl Own {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, pace: Pace, mut calm: watch::Receiver<bool>) {
        while let Some(event) = events.recv().await {
            let Event::Update(update) = event else { continue };
            if !*calm.borrow() {
                match pace {
                    Pace::Quick => {}
                    Pace::Slow => tokio::time::sleep(Duration::from_millis(150)).await,
                    Pace::Stuck => drop(calm.wait_for(|calm| *calm).await),
                }
            }
            self.take(update);
        }
    }

    fn take(&mut self, update: Update) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told_all = matches!(update.type_url, TypeUrl::Cluster | TypeUrl::Listener);
        for resource in update.added {
            let key = (update.type_url.clone(), resource.name);
            // What was under way when it was let go is of no interest, as to every proxy.
            let is_wanted =
                |key| self.asked.contains(key) || table(key).is_some_and(|it| self.asked.contains(&it));
            if is_told_all || is_wanted(&key) {
                held.insert(key, resource.body);
            }
        }
        for name in update.removed {
            held.remove(&(update.type_url.clone(), name));
        }
        self.commander.ack(update.receipt);
        // What clusters and listeners name is asked for; what they name no longer is let go.
        let wanted: BTreeSet<(TypeUrl, Name)> =
            held.iter().flat_map(|((type_url, name), body)| named(type_url, name, body)).collect();
        for (type_url, name) in wanted.difference(&self.asked) {
            self.commander.subscribe(type_url.clone(), Interest::name(name.clone()), None);
        }
        for gone in self.asked.difference(&wanted) {
            self.commander.unsubscribe(gone.0.clone(), Interest::name(gone.1.clone()));
            held.retain(|key, _| key != gone && table(key).as_ref() != Some(gone));
        }
        self.asked = wanted;
    }
}

/// By what the virtual hosts of a table are asked for, all that its proxy has, if it is one of them.
fn table((type_url, name): &(TypeUrl, Name)) -> Option<(TypeUrl, Name)> {
    let (table, _) = (*type_url == TypeUrl::VirtualHost).then(|| name.as_str().split_once('/'))??;
    Some((TypeUrl::VirtualHost, Name::from(format!("{table}/"))))
}

/// What a resource says that there is more of.
fn named(type_url: &TypeUrl, name: &Name, body: &Bytes) -> Vec<(TypeUrl, Name)> {
    let read = |message: &str| encode::to_value(message, body, Style::default()).expect("a message");
    let mut found = Vec::new();
    match type_url {
        TypeUrl::Cluster => {
            let cluster = read("envoy.config.cluster.v3.Cluster");
            if cluster["type"] == "EDS" {
                let service = cluster["eds_cluster_config"]["service_name"].as_str();
                found.push((TypeUrl::Endpoint, service.map_or_else(|| name.clone(), Name::from)));
            }
        }
        TypeUrl::Route => {
            let routes = read("envoy.config.route.v3.RouteConfiguration");
            if routes.get("vhds").is_some() {
                let names = ASKED.iter().chain(&[""]).map(|host| Name::from(format!("{name}/{host}")));
                found.extend(names.map(|name| (TypeUrl::VirtualHost, name)));
            }
        }
        TypeUrl::Listener => find_routes(&read("envoy.config.listener.v3.Listener"), &mut found),
        _ => {}
    }
    found
}

fn find_routes(value: &Value, found: &mut Vec<(TypeUrl, Name)>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields.get("route_config_name").and_then(Value::as_str) {
                found.push((TypeUrl::Route, Name::from(name)));
            }
            fields.values().for_each(|value| find_routes(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| find_routes(value, found)),
        _ => {}
    }
}
