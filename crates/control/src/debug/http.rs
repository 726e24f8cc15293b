//! The HTTP server of the debug interface.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_xds::server::listen::{Authenticator, Credentials};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::viewer::{Viewer, is_here, is_passed_on};
use super::{Answer, Question};
use crate::server::Event;

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    events: mpsc::Sender<Event>,
    ready: Arc<AtomicBool>,
    /// Who may look from elsewhere; nobody without one.
    authenticator: Option<Arc<dyn Authenticator>>,
}

/// Serves until the future is dropped. Whoever is not on this machine must prove to `authenticator`
/// who he is before he sees a debug page, as with istiod.
pub(crate) async fn serve(
    listener: TcpListener,
    events: mpsc::Sender<Event>,
    ready: Arc<AtomicBool>,
    authenticator: Option<Arc<dyn Authenticator>>,
) {
    let shared = Shared { events, ready, authenticator };
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: waiting a little is all that can be done.
                tracing::warn!(%error, "debug interface: accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = shared.clone();
        let is_here = is_here(Some(peer), stream.local_addr().ok());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(&request, &shared, peer, is_here).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away is no concern of ours.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    shared: &Shared,
    peer: SocketAddr,
    is_here: bool,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    let path = request.uri().path();
    let is_ready = shared.ready.load(Ordering::Acquire);
    match path {
        "/ready" | "/healthz/ready" if is_ready => return text(StatusCode::OK, "ready\n"),
        "/ready" | "/healthz/ready" => return text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        // That it answers is what is asked.
        "/healthz" | "/health" => return text(StatusCode::OK, "ok\n"),
        "/version" => return text(StatusCode::OK, concat!(env!("CARGO_PKG_VERSION"), "\n")),
        _ => {}
    }
    let viewer = if path == "/metrics" {
        Viewer::Anyone
    } else {
        match viewer(request, shared, peer, is_here).await {
            Ok(viewer) => viewer,
            Err(why) => return text(StatusCode::UNAUTHORIZED, &format!("{why}\n")),
        }
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let question = Question { path: path.to_owned(), query, viewer };
    let (reply, answer) = oneshot::channel();
    if shared.events.send(Event::Ask(question, reply)).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    let Ok(answer) = answer.await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    };
    // A large page keeps a thread busy, and others are served by this one.
    let written = tokio::task::spawn_blocking(move || write(answer.written())).await;
    written.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n"))
}

fn write(answer: Answer) -> Response<Full<Bytes>> {
    match answer {
        Answer::Json(value) => {
            let mut body = serde_json::to_vec_pretty(&value).unwrap_or_default();
            body.push(b'\n');
            respond(StatusCode::OK, "application/json", body)
        }
        Answer::Html(page) => respond(StatusCode::OK, "text/html; charset=utf-8", page.into_bytes()),
        Answer::Text(page) => {
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page.into_bytes())
        }
        Answer::Fault(status, message) => text(status, &message),
        // It was written before.
        Answer::Later(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the page was not written\n"),
    }
}

/// Who asks; from elsewhere, if he can prove it.
async fn viewer(
    request: &Request<Incoming>,
    shared: &Shared,
    peer: SocketAddr,
    is_here: bool,
) -> Result<Viewer, &'static str> {
    let is_here = is_here && !is_passed_on(request.headers());
    let caller = match &shared.authenticator {
        Some(authenticator) if !is_here => {
            let credentials =
                Credentials { certificate: &[], headers: request.headers(), address: Some(peer) };
            // What is wrong with it is in the log; a stranger need not know.
            authenticator.authenticate(credentials).await.ok().flatten()
        }
        _ => None,
    };
    Viewer::of(is_here, caller.as_ref())
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
