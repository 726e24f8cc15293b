//! Answers to those who look over xDS: `istioctl proxy-status` and `istioctl x internal-debug`.
//!
//! They say in the metadata of their node that they are no proxy (`GENERATOR: event`), and ask for
//! types that begin with `istio.io/debug`: `istio.io/debug/syncz` is answered with one `ClientConfig`
//! of Envoy's status service for each proxy, `istio.io/debug/config_dump` with the parts of a dump,
//! and `istio.io/debug` with the page that the resource's name names.

use std::collections::{BTreeMap, VecDeque};

use leno_api::any::pack;
use leno_api::proto::envoy::admin::v3::UpdateFailureState;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::Name;
use leno_xds::server::grpc::{Connected, Sender, StreamEvent, StreamId};
use leno_xds::wire::{Request, Response};
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use prost_types::{Any, Struct, Timestamp, Value, value};
use tonic::Status;

use super::{Answer, Look, Question, Viewer, answer, proxies};
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
    sender: Sender,
    viewer: Result<Viewer, &'static str>,
    waiting: VecDeque<Response>,
    next_nonce: u64,
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
                let viewer = viewer(&connected);
                let Connected { id, mode, sender, .. } = *connected;
                let looker = Looker { mode, sender, viewer, waiting: VecDeque::new(), next_nonce: 1 };
                self.0.insert(id, looker);
            }
            StreamEvent::Request { id, request } => {
                let Some(looker) = self.0.get_mut(&id) else { return };
                if let Err(status) = looker.on_request(look, &request)
                    && let Some(looker) = self.0.remove(&id)
                {
                    looker.sender.close(status);
                }
            }
            StreamEvent::Ready { id } => {
                if let Some(looker) = self.0.get_mut(&id) {
                    looker.pump();
                }
            }
            StreamEvent::Closed { id, .. } => drop(self.0.remove(&id)),
        }
    }
}

/// Whether a stream is one of those who look.
fn is_looker(connected: &Connected) -> bool {
    let metadata = connected.node.as_ref().and_then(|node| node.metadata.as_ref());
    let generator = metadata.and_then(|metadata| metadata.fields.get("GENERATOR"));
    matches!(generator.and_then(|it| it.kind.as_ref()), Some(value::Kind::StringValue(name)) if name == "event")
}

/// Who looks: somebody on this machine may see everything, as may whoever has proven to be of the root
/// namespace; who has not proven anything may not see anything.
fn viewer(connected: &Connected) -> Result<Viewer, &'static str> {
    if connected.peer.is_none_or(|peer| peer.ip().to_canonical().is_loopback()) {
        return Ok(Viewer::Anyone);
    }
    let identities = connected.caller.as_ref().map(|caller| caller.identities.as_slice()).unwrap_or_default();
    let namespace = identities.iter().find_map(|identity| namespace_of(identity));
    namespace.map(|namespace| Viewer::Namespace(namespace.to_owned())).ok_or("authentication required")
}

/// The namespace in an identity as `spiffe://cluster.local/ns/default/sa/reviews`.
pub(crate) fn namespace_of(identity: &str) -> Option<&str> {
    let (_, rest) = identity.strip_prefix("spiffe://")?.split_once("/ns/")?;
    rest.split_once("/sa/").map(|(namespace, _)| namespace).filter(|namespace| !namespace.is_empty())
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
        let resources = match &self.viewer {
            Ok(viewer) => resources(look, viewer, type_url, names)?,
            Err(why) => return Err(Status::unauthenticated(*why)),
        };
        if self.waiting.len() >= MOST_WAITING {
            return Err(Status::resource_exhausted("too many questions"));
        }
        let response = Response {
            mode: self.mode,
            type_url: TypeUrl::from(type_url),
            version: Name::from(look.graph.revision().to_string()),
            nonce: Name::from(self.next_nonce.to_string()),
            resources,
            removed: Vec::new(),
            control_plane: Name::from(control_plane()),
            packed: true,
        };
        self.next_nonce += 1;
        self.waiting.push_back(response);
        self.pump();
        Ok(())
    }

    fn pump(&mut self) {
        while self.sender.is_ready() {
            let Some(response) = self.waiting.pop_front() else { return };
            if self.sender.send(response).is_err() {
                return;
            }
        }
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

fn resources(
    look: Look<'_>,
    viewer: &Viewer,
    type_url: &str,
    names: &[String],
) -> Result<Vec<Resource>, Status> {
    let one = || match names {
        [name] => Ok(name.as_str()),
        _ => Err(Status::invalid_argument("exactly one debug request is required")),
    };
    let packed = |name: &str, any: &Any| Resource::hashed(Name::new(name), any.encode_to_vec().into());
    match type_url.strip_prefix(DEBUG) {
        Some("/syncz") => {
            let shown = look.push.sessions().filter(|session| match viewer {
                viewer if look.is_unrestricted(viewer) => true,
                Viewer::Namespace(namespace) => session.key.namespace == *namespace,
                Viewer::Anyone => true,
            });
            Ok(shown.map(|session| packed(&session.node, &pack(&client_config(session)))).collect())
        }
        Some("/config_dump") => {
            let query = format!("proxyID={}", one()?);
            let question = Question { path: String::new(), query, viewer: viewer.clone() };
            // Who is not here may be at another replica: istioctl asks all.
            let Ok(session) = look.proxy(&question) else { return Ok(Vec::new()) };
            let parts = proxies::dump(look, session, false);
            Ok(parts.iter().map(|part| packed("", part)).collect())
        }
        Some("") => {
            let name = one()?;
            let (page, query) = name.split_once('?').unwrap_or((name, ""));
            let question =
                Question { path: format!("/debug/{page}"), query: query.to_owned(), viewer: viewer.clone() };
            let value = match answer(look, &question) {
                Answer::Json(value) => serde_json::to_vec(&value).unwrap_or_default(),
                Answer::Text(text) | Answer::Html(text) | Answer::Fault(_, text) => text.into_bytes(),
            };
            Ok(vec![packed(name, &Any { type_url: DEBUG.to_owned(), value })])
        }
        _ => Err(Status::invalid_argument(format!("{type_url} is no type for those who only look"))),
    }
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

#[cfg(test)]
mod tests {
    use super::namespace_of;

    #[test]
    fn namespaces_of_identities() {
        assert_eq!(namespace_of("spiffe://cluster.local/ns/a/sa/b"), Some("a"));
        assert_eq!(namespace_of("spiffe://cluster.local/ns//sa/b"), None);
        assert_eq!(namespace_of("spiffe://cluster.local/ns/a"), None);
        assert_eq!(namespace_of("cluster.local/ns/a/sa/b"), None);
    }
}
