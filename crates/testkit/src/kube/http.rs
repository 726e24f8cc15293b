//! The HTTP server: connections, and where each request goes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT, WARNING};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use leno_api::yaml::{self, Dialect};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::object::{Target, text};
use super::path::{Query, ResourcePath};
use super::rbac::Attributes;
use super::resource::REVIEWS;
use super::selector::{FieldSelector, Labels};
use super::state::{Seen, Shared, State, User, lock};
use super::status::Failure;
use super::{discovery, listing, protobuf, review, table, verb};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How objects are to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Whole,
    /// Their metadata alone.
    Metadata,
    Table,
}

/// A request to resources.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) query: Query,
    pub(super) format: Format,
    pub(super) user: User,
    pub(super) user_agent: String,
    content_type: String,
    body: Bytes,
}

/// Which objects of a list are wanted.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    labels: Labels,
    fields: FieldSelector,
    pub(super) name: Option<String>,
}

impl Selection {
    pub(super) fn matches(&self, object: &Value) -> bool {
        self.name.as_ref().is_none_or(|name| text(object, &["metadata", "name"]) == name)
            && self.labels.matches(object)
            && self.fields.matches(object)
    }
}

impl Call {
    pub(super) fn content_type(&self) -> &str {
        &self.content_type
    }

    pub(super) fn has_body(&self) -> bool {
        !self.body.is_empty()
    }

    /// The body, JSON or YAML, or protobuf of a few kinds.
    pub(super) fn body(&self) -> Result<Value, Failure> {
        if self.content_type == "application/vnd.kubernetes.protobuf" {
            return protobuf::read(&self.body);
        }
        if self.content_type.contains("cbor") {
            let message = "the body of the request was in an unknown format: CBOR is not read";
            return Err(Failure::new(415, "UnsupportedMediaType", message));
        }
        if let Ok(value) = serde_json::from_slice(&self.body) {
            return Ok(value);
        }
        let text =
            std::str::from_utf8(&self.body).map_err(|error| Failure::bad_request(error.to_string()))?;
        let documents = yaml::parse(text, Dialect::Kubernetes);
        let documents = documents.map_err(|error| Failure::bad_request(error.to_string()))?;
        documents.first().map(yaml::Node::to_json).ok_or_else(|| Failure::bad_request("the body is empty"))
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.query.text("dryRun") == "All"
    }

    pub(super) fn selection(&self) -> Result<Selection, Failure> {
        Ok(Selection {
            labels: Labels::parse(self.query.text("labelSelector"))?,
            fields: FieldSelector::parse(self.query.text("fieldSelector"))?,
            name: None,
        })
    }

    /// What becomes of fields that the schema does not know: warnings, or a failure if the client
    /// wants validation to be strict.
    pub(super) fn validated(&self, unknown: &[String]) -> Result<Vec<String>, Failure> {
        let each: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
        match self.query.text("fieldValidation") {
            "Strict" if !each.is_empty() => {
                Err(Failure::bad_request(format!("strict decoding error: {}", each.join(", "))))
            }
            "Ignore" => Ok(Vec::new()),
            _ => Ok(each),
        }
    }

    /// One object in the format that was asked for.
    pub(super) fn show(&self, state: &State, target: &Target, object: &Value) -> Reply {
        let include = self.query.text("includeObject");
        Reply::json(
            200,
            &match self.format {
                Format::Whole => object.clone(),
                Format::Metadata => table::partial(object),
                Format::Table => {
                    let revision = text(object, &["metadata", "resourceVersion"]);
                    let metadata = serde_json::json!({ "resourceVersion": revision });
                    table::render(state, target, &[object], &metadata, include, true)
                }
            },
        )
    }
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    content_type: &'static str,
    content: Content,
    warnings: Vec<String>,
}

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    Stream(mpsc::Receiver<Bytes>),
}

impl Reply {
    pub(super) fn json(status: u16, value: &Value) -> Reply {
        Reply::typed(status, "application/json", value.to_string())
    }

    pub(super) fn typed(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
        Reply { status, content_type, content: Content::Whole(body.into()), warnings: Vec::new() }
    }

    pub(super) fn stream(receiver: mpsc::Receiver<Bytes>) -> Reply {
        Reply {
            status: 200,
            content_type: "application/json",
            content: Content::Stream(receiver),
            warnings: Vec::new(),
        }
    }

    pub(super) fn with_warnings(mut self, warnings: Vec<String>) -> Reply {
        self.warnings = warnings;
        self
    }

    fn into_response(self) -> Response<Body> {
        let body = match self.content {
            Content::Whole(bytes) => Full::new(bytes).boxed_unsync(),
            Content::Stream(receiver) => {
                let frames = ReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
                StreamBody::new(frames).boxed_unsync()
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(self.content_type));
        for warning in self.warnings {
            let text = format!("299 - \"{}\"", warning.replace('\\', "\\\\").replace('"', "\\\""));
            if let Ok(value) = http::HeaderValue::try_from(text) {
                response.headers_mut().append(WARNING, value);
            }
        }
        response
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Reply {
        Reply::json(failure.code, &failure.to_value())
    }
}

/// What speaks TLS with a certificate chain and a key, both PEM.
pub(super) fn acceptor(certificate: &str, key: &str) -> io::Result<TlsAcceptor> {
    let bad = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| bad(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| bad(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| bad(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts connections until it is dropped.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        // Out of descriptors: the next connection may fare better.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => connection(stream, shared).await,
                Some(tls) => {
                    // Who cannot shake hands is no concern of ours.
                    if let Ok(stream) = tls.accept(stream).await {
                        connection(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let mut signals = shared.signals();
    let began = signals.borrow_and_update().hang_ups;
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        // What was begun is done, whether somebody waits for it or not.
        let answering = tokio::spawn(async move { answer(&shared, request).await });
        async move {
            let reply = answering.await.unwrap_or_else(|_| Failure::no_path().into());
            Ok::<_, Infallible>(reply.into_response())
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let serving = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            // A client that goes away is no concern of ours.
            _ = &mut serving => return,
            changed = signals.changed() => {
                if changed.is_err() || signals.borrow_and_update().hang_ups != began {
                    return;
                }
            }
        }
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    let header = |name: &http::HeaderName| header(&parts.headers, name);
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        user_agent: header(&USER_AGENT).to_owned(),
    };
    let user_agent = seen.user_agent.clone();
    let (failure, delay, user) = {
        let mut state = lock(&shared.state);
        let authorization = Some(header(&AUTHORIZATION)).filter(|it| !it.is_empty());
        let user = review::authenticate(&state, authorization);
        (state.observe(seen), state.delay, user)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if let Some(failure) = failure {
        return failure.into();
    }
    let path = parts.uri.path();
    if matches!(path, "/healthz" | "/livez" | "/readyz") {
        return Reply::typed(200, "text/plain", "ok");
    }
    let Some(user) = user else {
        return Failure::new(401, "Unauthorized", "Unauthorized").into();
    };
    let Ok(body) = body.collect().await else {
        return Failure::bad_request("the body ended early").into();
    };
    let call = Call {
        query: Query::parse(parts.uri.query().unwrap_or_default()),
        format: format(header(&ACCEPT)),
        user,
        user_agent,
        content_type: header(&CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned(),
        body: body.to_bytes(),
    };
    if let Some(path) = ResourcePath::parse(path) {
        return dispatch(shared, &call, &parts.method, path).await.unwrap_or_else(Reply::from);
    }
    let state = lock(&shared.state);
    discovery::answer(&state, path, header(&ACCEPT)).unwrap_or_else(|| Failure::no_path().into())
}

fn header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What the first acceptable format of ours is.
fn format(accept: &str) -> Format {
    for part in accept.split(',') {
        if part.contains("application/json") {
            if part.contains("as=Table") {
                return Format::Table;
            }
            return if part.contains("as=PartialObjectMetadata") { Format::Metadata } else { Format::Whole };
        }
    }
    Format::Whole
}

async fn dispatch(
    shared: &Arc<Shared>,
    call: &Call,
    method: &Method,
    path: ResourcePath,
) -> Result<Reply, Failure> {
    if let Some((group, plural, kind, _)) =
        REVIEWS.iter().find(|it| it.0 == path.group && it.1 == path.plural)
    {
        if *method != Method::POST {
            return Err(Failure::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ));
        }
        let mut review = call.body()?;
        if let Some(map) = review.as_object_mut() {
            map.insert("apiVersion".to_owned(), Value::from(format!("{group}/v1")));
            map.insert("kind".to_owned(), Value::from(*kind));
        }
        let mut state = lock(&shared.state);
        let wanted = Attributes { verb: "create", group, resource: plural, ..Attributes::default() };
        state.check(&call.user, &wanted)?;
        return Ok(Reply::json(201, &review::answer(&state, &call.user, kind, review)));
    }
    let resource = lock(&shared.state).resource(&path.group, &path.version, &path.plural);
    let resource = resource.ok_or_else(Failure::no_path)?;
    let target = Target {
        resource,
        version: path.version,
        namespace: path.namespace,
        name: path.name,
        subresource: path.subresource,
    };
    let on_collection = target.name.is_empty();
    let needs_namespace = target.resource.namespaced && target.namespace.is_empty();
    let watches = call.query.flag("watch");
    let word = match (method, on_collection) {
        (&Method::GET, _) if watches => "watch",
        (&Method::GET, true) => "list",
        (&Method::GET, false) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, false) => "update",
        (&Method::PATCH, false) => "patch",
        (&Method::DELETE, false) => "delete",
        (&Method::DELETE, true) => "deletecollection",
        _ => {
            let message = "the server does not allow this method on the requested resource";
            return Err(Failure::new(405, "MethodNotAllowed", message));
        }
    };
    if (needs_namespace && !matches!(word, "list" | "watch" | "deletecollection"))
        || (!target.resource.namespaced && !target.namespace.is_empty())
    {
        return Err(Failure::no_path());
    }
    {
        let (group, plural) = (&target.resource.group, &target.resource.plural);
        // A list of one object asks for that one.
        let selected = FieldSelector::parse(call.query.text("fieldSelector"))?;
        let name = if on_collection { selected.name().unwrap_or_default() } else { &target.name };
        let wanted = Attributes {
            verb: word,
            group,
            resource: plural,
            subresource: &target.subresource,
            namespace: &target.namespace,
            name,
        };
        lock(&shared.state).check(&call.user, &wanted)?;
    }
    match word {
        "watch" => listing::watch(shared, call, &target),
        "list" => listing::list(shared, call, &target),
        "get" => verb::read(shared, call, &target),
        "create" if on_collection => verb::create(shared, call, target).await,
        "create" => verb::act(shared, call, &target),
        "update" => verb::update(shared, call, &target).await,
        "patch" => verb::patch(shared, call, &target).await,
        "deletecollection" => verb::delete_collection(shared, call, &target),
        _ => verb::delete(shared, call, &target).await,
    }
}
