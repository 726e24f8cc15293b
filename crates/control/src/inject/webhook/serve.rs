//! The server of the webhooks: HTTPS, with bounds on connections, times and bodies.
//!
//! Everybody in the cluster can connect, as API servers show no certificate. So what is slow holds up
//! nobody: a body is read before it takes one of the places for reviews, the bytes of all bodies together
//! are bounded, and where connections are too many the one goes that has asked for nothing for longest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use leno_xds::server::listen::Handshake;
use leno_xds::server::room::Room;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Webhook, review};

/// How many connections there may be at a time; then the longest idle goes.
const MOST_CONNECTIONS: usize = 256;

/// How many requests a connection may have at a time.
const MOST_STREAMS: u32 = 64;

/// How many reviews are answered at a time; others wait.
const MOST_REVIEWS: usize = 16;

/// The largest body: twice what etcd stores, as API servers allow.
const MOST_BYTES: usize = 6 << 20;

/// The bytes of all bodies that are being read or wait for their review; more are refused.
const MOST_OF_ALL: usize = 128 << 20;

/// How long a handshake, a request's head or its body may take: as long as API servers wait for an answer,
/// unless they are told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(600);

/// What all connections share.
struct Shared {
    handshake: Arc<dyn Handshake>,
    webhook: Arc<Webhook>,
    /// Places for reviews.
    reviews: Semaphore,
    /// Bytes that bodies may still take.
    bytes: Arc<Semaphore>,
}

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, handshake: Arc<dyn Handshake>, webhook: Arc<Webhook>) {
    let shared = Arc::new(Shared {
        handshake,
        webhook,
        reviews: Semaphore::new(MOST_REVIEWS),
        bytes: Arc::new(Semaphore::new(MOST_OF_ALL)),
    });
    let mut room = Room::counting(MOST_CONNECTIONS, Arc::clone(&shared.webhook.counts.crowds));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "webhooks: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        room.seat(peer.ip().into(), |of| async move {
            let shaking = shared.handshake.shake(Box::new(stream));
            let stream = match tokio::time::timeout(PATIENCE, shaking).await {
                Ok(Ok((stream, _))) => stream,
                Ok(Err(error)) => {
                    shared.webhook.counts.on_handshake_failed();
                    return tracing::info!(%peer, %error, "webhooks: TLS handshake");
                }
                Err(_) => {
                    shared.webhook.counts.on_handshake_failed();
                    return tracing::info!(%peer, "webhooks: the TLS handshake takes too long");
                }
            };
            let service = service_fn(move |request| {
                let (shared, of) = (Arc::clone(&shared), Arc::clone(&of));
                async move {
                    let path = request.uri().path().to_owned();
                    let answered = match read(request, &shared).await {
                        Ok(asked) => {
                            // Who sends a body slowly is as good as idle.
                            let _busy = of.begin();
                            answer(asked, &shared).await
                        }
                        Err(refused) => Err(refused),
                    };
                    let response = answered.unwrap_or_else(|Refused(status, words)| {
                        tracing::warn!(%peer, path, %status, words, "webhooks: a request is refused");
                        shared.webhook.counts.on_http_error(&path, status);
                        respond(status, "text/plain", format!("{words}\n"))
                    });
                    Ok::<_, Infallible>(response)
                }
            });
            let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            server.http2().timer(TokioTimer::new()).max_concurrent_streams(MOST_STREAMS);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // A client that goes away is no concern of ours.
            let _ = tokio::time::timeout(LIFE, connection).await;
        });
    }
}

/// A request that was read.
struct Asked {
    path: String,
    content_type: String,
    body: Bytes,
    /// The body's part of what all may take.
    room: Option<OwnedSemaphorePermit>,
}

/// Why a request has no answer, and the words for it.
struct Refused(StatusCode, String);

async fn read(request: Request<Incoming>, shared: &Shared) -> Result<Asked, Refused> {
    let path = request.uri().path().to_owned();
    let is_ready = path == "/ready";
    if request.method() != Method::POST && !is_ready {
        return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "use POST".to_owned()));
    }
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    if is_ready {
        return Ok(Asked { path, content_type, body: Bytes::new(), room: None });
    }
    if !review::is_served(&path) {
        return Err(Refused(StatusCode::NOT_FOUND, "404 page not found".to_owned()));
    }
    let late = |_| Refused(StatusCode::REQUEST_TIMEOUT, "the body takes too long".to_owned());
    let body = tokio::time::timeout(PATIENCE, read_body(request.into_body(), &shared.bytes));
    let (body, room) = body.await.map_err(late)??;
    Ok(Asked { path, content_type, body, room })
}

/// A body, and what it takes of the room for all.
async fn read_body(
    mut body: Incoming,
    bytes: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Refused> {
    let too_large = || Refused(StatusCode::PAYLOAD_TOO_LARGE, format!("limit is {MOST_BYTES}"));
    if body.size_hint().lower() > MOST_BYTES as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    let mut room: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let broken = |_| Refused(StatusCode::BAD_REQUEST, "the body breaks off".to_owned());
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if whole.len() + data.len() > MOST_BYTES {
            return Err(too_large());
        }
        // Only what has come takes room: what a client says of its length costs it nothing.
        let more = u32::try_from(data.len()).map_err(|_| too_large())?;
        let more = Arc::clone(bytes).try_acquire_many_owned(more).map_err(|_| {
            Refused(StatusCode::SERVICE_UNAVAILABLE, "too many reviews are being sent".to_owned())
        })?;
        match &mut room {
            Some(room) => room.merge(more),
            None => room = Some(more),
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.freeze(), room))
}

async fn answer(asked: Asked, shared: &Shared) -> Result<Response<Full<Bytes>>, Refused> {
    let Asked { path, content_type, body, room } = asked;
    if path == "/ready" {
        return Ok(respond(StatusCode::OK, "text/plain", String::new()));
    }
    let ends = |_| Refused(StatusCode::SERVICE_UNAVAILABLE, "shutting down".to_owned());
    let _review = shared.reviews.acquire().await.map_err(ends)?;
    let webhook = Arc::clone(&shared.webhook);
    // Templates may take a while, and others are served by this thread.
    let answered = tokio::task::spawn_blocking(move || {
        let answered = review::answer(&webhook, &path, &content_type, &body);
        drop((body, room));
        answered
    });
    match answered.await {
        Ok(Ok(text)) => Ok(respond(StatusCode::OK, "application/json", text)),
        Ok(Err((status, words))) => Err(Refused(status, words)),
        Err(_) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, "no answer could be made".to_owned())),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
