//! Answers to those who look over xDS: `istioctl proxy-status` and `istioctl x internal-debug`.
//!
//! They say in the metadata of their node that they are no proxy (`GENERATOR: event`), and ask for
//! types that begin with `istio.io/debug`: `istio.io/debug/syncz` is answered with one `ClientConfig`
//! of Envoy's status service for each proxy, `istio.io/debug/config_dump` with the parts of a dump,
//! and `istio.io/debug` with the page that the resource's name names.
//!
//! What is to be shown is taken hold of on the control loop; a task for each of those who look writes
//! and sends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_api::any::pack;
use leno_api::proto::envoy::admin::v3::UpdateFailureState;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::Name;
use leno_xds::server::grpc::{Connected, Sender, StreamEvent, StreamId};
use leno_xds::wire::{Request, Response};
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use prost_types::{Any, Struct, Timestamp, Value, value};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tonic::Status;

use super::viewer::{Viewer, is_here, is_passed_on};
use super::{Answer, Look, Question, answer, proxies};
use crate::push::session::Session;

/// What all types begin with.
const DEBUG: &str = "istio.io/debug";

/// How many answers may wait to be sent on a stream.
const MOST_WAITING: usize = 16;

/// Those who look, by stream.
#[derive(Debug, Default)]
pub(crate) struct Lookers(BTreeMap<StreamId, Looker>);

/// One who looks.
#[derive(Debug)]
struct Looker {
    mode: Mode,
    viewer: Result<Viewer, &'static str>,
    next_nonce: u64,
    tell: mpsc::Sender<Tell>,
    /// That the stream may take another answer.
    ready: Arc<Notify>,
    /// What writes and sends the answers, until this is dropped.
    _task: JoinSet<()>,
}

/// What is to be told to one who looks.
enum Tell {
    /// An answer, and what writes its resources.
    Answer(Response, Write),
    /// That this is the end.
    Close(Status),
}

/// Writes the resources of an answer, where a thread may be busy for a while.
struct Write(Box<dyn FnOnce() -> Vec<Resource> + Send>);

impl Write {
    fn new(write: impl FnOnce() -> Vec<Resource> + Send + 'static) -> Write {
        Write(Box::new(write))
    }
}

impl Lookers {
    /// Whether an event is about one who looks, or who begins to.
    pub(crate) fn concerns(&self, event: &StreamEvent) -> bool {
        match event {
            StreamEvent::Connected(connected) => is_looker(connected),
            StreamEvent::Request { id, .. } | StreamEvent::Ready { id } | StreamEvent::Closed { id, .. } => {
                self.0.contains_key(id)
            }
        }
    }

    /// Acts on an event that concerns one who looks.
    pub(crate) fn on_stream(&mut self, look: Look<'_>, event: StreamEvent) {
        match event {
            StreamEvent::Connected(connected) => {
                let is_here = is_here(connected.peer, None) && !is_passed_on(connected.metadata.as_ref());
                let viewer = Viewer::of(is_here, connected.caller.as_ref());
                let Connected { id, mode, sender, .. } = *connected;
                let (tell, told) = mpsc::channel(MOST_WAITING);
                let ready = Arc::new(Notify::new());
                let mut task = JoinSet::new();
                task.spawn(serve(sender, told, Arc::clone(&ready)));
                self.0.insert(id, Looker { mode, viewer, next_nonce: 1, tell, ready, _task: task });
            }
            StreamEvent::Request { id, request } => {
                let Some(looker) = self.0.get_mut(&id) else { return };
                if let Err(status) = looker.on_request(look, &request) {
                    // If that cannot be told, nothing can: he asks faster than he listens.
                    if looker.tell.try_send(Tell::Close(status)).is_err() {
                        self.0.remove(&id);
                    }
                }
            }
            StreamEvent::Ready { id } => {
                if let Some(looker) = self.0.get_mut(&id) {
                    looker.ready.notify_one();
                }
            }
            StreamEvent::Closed { id, .. } => drop(self.0.remove(&id)),
        }
    }
}

/// Writes answers and sends them, in the order of the questions.
async fn serve(sender: Sender, mut told: mpsc::Receiver<Tell>, ready: Arc<Notify>) {
    while let Some(tell) = told.recv().await {
        let (mut response, write) = match tell {
            Tell::Answer(response, write) => (response, write),
            Tell::Close(status) => return sender.close(status),
        };
        let Ok(resources) = tokio::task::spawn_blocking(write.0).await else {
            return sender.close(Status::internal("the answer could not be made"));
        };
        response.resources = resources;
        while !sender.is_ready() {
            ready.notified().await;
        }
        if sender.send(response).is_err() {
            return;
        }
    }
}

/// Whether a stream is one of those who look.
fn is_looker(connected: &Connected) -> bool {
    let metadata = connected.node.as_ref().and_then(|node| node.metadata.as_ref());
    let generator = metadata.and_then(|metadata| metadata.fields.get("GENERATOR"));
    matches!(generator.and_then(|it| it.kind.as_ref()), Some(value::Kind::StringValue(name)) if name == "event")
}

impl Looker {
    fn on_request(&mut self, look: Look<'_>, request: &Request) -> Result<(), Status> {
        let (names, nonce) = match request {
            Request::Sotw(request) => (&request.resource_names, &request.response_nonce),
            Request::Delta(request) => (&request.resource_names_subscribe, &request.response_nonce),
        };
        // An answer to what we have sent asks nothing; istioctl's first request has a nonce of its own.
        if nonce.parse::<u64>().is_ok_and(|nonce| nonce < self.next_nonce) {
            return Ok(());
        }
        let type_url = request.type_url();
        let write = match &self.viewer {
            Ok(viewer) => resources(look, viewer, type_url, names)?,
            Err(why) => return Err(Status::unauthenticated(*why)),
        };
        let response = Response {
            mode: self.mode,
            type_url: TypeUrl::from(type_url),
            version: Name::from(look.graph.revision().to_string()),
            nonce: Name::from(self.next_nonce.to_string()),
            resources: Vec::new(),
            removed: Vec::new(),
            aliases: BTreeMap::new(),
            control_plane: Name::from(control_plane()),
            packed: true,
        };
        self.next_nonce += 1;
        let told = self.tell.try_send(Tell::Answer(response, write));
        told.map_err(|_| Status::resource_exhausted("too many questions"))
    }
}

/// Who answers, in the form that istioctl reads.
fn control_plane() -> String {
    let id = std::env::var("POD_NAME").unwrap_or_else(|_| "leno".to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let info = serde_json::json!({
        "version": version,
        "revision": "unknown",
        "golang_version": "",
        "status": "Clean",
        "tag": version,
    });
    serde_json::json!({ "Component": "istiod", "ID": id, "Info": info }).to_string()
}

fn resources(look: Look<'_>, viewer: &Viewer, type_url: &str, names: &[String]) -> Result<Write, Status> {
    let one = || match names {
        [name] => Ok(name.as_str()),
        _ => Err(Status::invalid_argument("exactly one debug request is required")),
    };
    match type_url.strip_prefix(DEBUG) {
        Some("/syncz") => {
            let shown = look.push.sessions().filter(|session| look.may_see(viewer, session));
            let shown: Vec<(String, ClientConfig)> =
                shown.map(|session| (session.node.clone(), client_config(session))).collect();
            Ok(Write::new(move || shown.iter().map(|(name, config)| packed(name, &pack(config))).collect()))
        }
        Some("/config_dump") => {
            let query = format!("proxyID={}", one()?);
            let question = Question { path: String::new(), query, viewer: viewer.clone() };
            // Who is not here may be at another replica: istioctl asks all.
            let Ok(session) = look.proxy(&question) else { return Ok(Write::new(Vec::new)) };
            let held = proxies::held_for_dump(look, session);
            Ok(Write::new(move || proxies::dump(&held).iter().map(|part| packed("", part)).collect()))
        }
        Some("") => {
            let name = one()?.to_owned();
            let (page, query) = name.split_once('?').unwrap_or((&name, ""));
            let question =
                Question { path: format!("/debug/{page}"), query: query.to_owned(), viewer: viewer.clone() };
            let answer = answer(look, &question);
            Ok(Write::new(move || {
                let value = match answer.written() {
                    Answer::Json(value) => serde_json::to_vec(&value).unwrap_or_default(),
                    Answer::Text(text) | Answer::Html(text) | Answer::Fault(_, text) => text.into_bytes(),
                    // It was written before.
                    Answer::Later(_) => Vec::new(),
                };
                vec![packed(&name, &Any { type_url: DEBUG.to_owned(), value })]
            }))
        }
        _ => Err(Status::invalid_argument(format!("{type_url} is no type for those who only look"))),
    }
}

fn packed(name: &str, any: &Any) -> Resource {
    Resource::hashed(Name::new(name), any.encode_to_vec().into())
}

/// `envoy.service.status.v3.ClientConfig`, as far as istiod fills it in.
#[derive(Clone, PartialEq, Message)]
struct ClientConfig {
    #[prost(message, optional, tag = "1")]
    node: Option<core::Node>,
    #[prost(message, repeated, tag = "3")]
    generic_xds_configs: Vec<GenericXdsConfig>,
}

impl prost::Name for ClientConfig {
    const NAME: &'static str = "ClientConfig";
    const PACKAGE: &'static str = "envoy.service.status.v3";

    fn full_name() -> String {
        "envoy.service.status.v3.ClientConfig".to_owned()
    }

    fn type_url() -> String {
        "type.googleapis.com/envoy.service.status.v3.ClientConfig".to_owned()
    }
}

/// `envoy.service.status.v3.ClientConfig.GenericXdsConfig`, likewise.
#[derive(Clone, PartialEq, Message)]
struct GenericXdsConfig {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "5")]
    last_updated: Option<Timestamp>,
    /// `ConfigStatus`: 0 unknown, 1 synced, 2 not sent, 3 stale, 4 error.
    #[prost(int32, tag = "6")]
    config_status: i32,
    #[prost(message, optional, tag = "8")]
    error_state: Option<UpdateFailureState>,
}

fn client_config(session: &Session) -> ClientConfig {
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let fields = [
        ("CLUSTER_ID", session.about.cluster.as_str()),
        ("NAMESPACE", session.key.namespace.as_str()),
        ("ISTIO_VERSION", session.about.version.as_str()),
    ];
    let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
    let fields = fields.map(|(name, value)| (name.to_owned(), text(value))).collect();
    let mut configs: Vec<GenericXdsConfig> = session
        .stream()
        .subscriptions()
        .map(|(type_url, subscription)| {
            let last_updated = session.sent_at(type_url).map(Timestamp::from);
            GenericXdsConfig {
                type_url: type_url.as_str().to_owned(),
                last_updated,
                config_status: match proxies::status(session, type_url) {
                    "SYNCED" => 1,
                    "NOT SENT" => 2,
                    "STALE" => 3,
                    "ERROR" => 4,
                    _ => 0,
                },
                error_state: subscription.rejection().map(|message| UpdateFailureState {
                    last_update_attempt: last_updated,
                    details: message.to_owned(),
                    ..UpdateFailureState::default()
                }),
            }
        })
        .collect();
    configs.sort_by(|a, b| a.type_url.cmp(&b.type_url));
    ClientConfig {
        node: Some(core::Node {
            id: session.node.clone(),
            metadata: Some(Struct { fields }),
            ..core::Node::default()
        }),
        generic_xds_configs: configs,
    }
}
