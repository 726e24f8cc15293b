//! The HTTP server of the debug interface.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
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

use super::stream::namespace_of;
use super::{Answer, Question, Viewer};
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
        let is_here = is_here(peer.ip(), stream.local_addr().ok());
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

/// Whether a client is on this machine: it comes from the loopback address, or from the address that
/// it has connected to.
fn is_here(peer: IpAddr, local: Option<SocketAddr>) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || local.is_some_and(|local| local.ip().to_canonical() == peer)
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
    let viewer = if is_here || path == "/metrics" {
        Some(Viewer::Anyone)
    } else {
        viewer(request, shared, peer).await
    };
    let Some(viewer) = viewer else { return text(StatusCode::UNAUTHORIZED, "who are you?\n") };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let question = Question { path: path.to_owned(), query, viewer };
    let (reply, answer) = oneshot::channel();
    if shared.events.send(Event::Ask(question, reply)).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match answer.await {
        Ok(Answer::Json(value)) => {
            let mut body = serde_json::to_vec_pretty(&value).unwrap_or_default();
            body.push(b'\n');
            respond(StatusCode::OK, "application/json", body)
        }
        Ok(Answer::Html(page)) => respond(StatusCode::OK, "text/html; charset=utf-8", page.into_bytes()),
        Ok(Answer::Text(page)) => {
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page.into_bytes())
        }
        Ok(Answer::Fault(status, message)) => text(status, &message),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
    }
}

/// Who asks from elsewhere, if he can prove it.
async fn viewer(request: &Request<Incoming>, shared: &Shared, peer: SocketAddr) -> Option<Viewer> {
    let credentials = Credentials { certificate: &[], headers: request.headers(), address: Some(peer) };
    let caller = shared.authenticator.as_ref()?.authenticate(credentials).await.ok()??;
    let namespace = caller.identities.iter().find_map(|identity| namespace_of(identity))?;
    Some(Viewer::Namespace(namespace.to_owned()))
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

#[cfg(test)]
mod tests {
    use super::is_here;

    #[test]
    fn who_is_on_this_machine() {
        for (peer, local, expected) in [
            ("127.0.0.1", "127.0.0.1:15014", true),
            ("::ffff:127.0.0.1", "[::1]:15014", true),
            ("10.0.0.5", "10.0.0.5:15014", true),
            ("10.0.0.6", "10.0.0.5:15014", false),
        ] {
            assert_eq!(is_here(peer.parse().unwrap(), local.parse().ok()), expected, "{peer}");
        }
    }
}
