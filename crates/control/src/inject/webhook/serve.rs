//! The server of the webhooks: HTTPS, with bounds on connections, times and bodies.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use leno_xds::server::listen::Handshake;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Webhook, review};

/// How many connections there may be; others wait.
const MOST_CONNECTIONS: usize = 256;

/// How many reviews are answered at a time; others wait.
const MOST_REVIEWS: usize = 16;

/// The largest body: twice what etcd stores, as API servers allow.
const MOST_BYTES: usize = 6 << 20;

/// How long a handshake, a request's head or its body may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(600);

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, handshake: Arc<dyn Handshake>, webhook: Arc<Webhook>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let reviews = Arc::new(Semaphore::new(MOST_REVIEWS));
    loop {
        // It is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "webhooks: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handshake, webhook, reviews) =
            (Arc::clone(&handshake), Arc::clone(&webhook), Arc::clone(&reviews));
        tokio::spawn(async move {
            let stream = match tokio::time::timeout(PATIENCE, handshake.shake(Box::new(stream))).await {
                Ok(Ok((stream, _))) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "webhooks: TLS handshake"),
                Err(_) => return tracing::debug!("webhooks: the TLS handshake takes too long"),
            };
            let service = service_fn(move |request| {
                let (webhook, reviews) = (Arc::clone(&webhook), Arc::clone(&reviews));
                async move { Ok::<_, Infallible>(answer(request, webhook, reviews).await) }
            });
            let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            server.http2().timer(TokioTimer::new()).max_concurrent_streams(64);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // A client that goes away is no concern of ours.
            let _ = tokio::time::timeout(LIFE, connection).await;
            drop(permit);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    webhook: Arc<Webhook>,
    reviews: Arc<Semaphore>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if path == "/ready" {
        return respond(StatusCode::OK, "text/plain", String::new());
    }
    if request.method() != Method::POST {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "use POST\n".to_owned());
    }
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let Ok(_permit) = reviews.acquire().await else {
        return respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "shutting down\n".to_owned());
    };
    let body = Limited::new(request.into_body(), MOST_BYTES).collect();
    let body = match tokio::time::timeout(PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let words = format!("limit is {MOST_BYTES}\n");
            return respond(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", words);
        }
        Ok(Err(_)) => {
            return respond(StatusCode::BAD_REQUEST, "text/plain", "the body breaks off\n".to_owned());
        }
        Err(_) => {
            return respond(
                StatusCode::REQUEST_TIMEOUT,
                "text/plain",
                "the body takes too long\n".to_owned(),
            );
        }
    };
    // Templates may take a while, and others are served by this thread.
    let answered =
        tokio::task::spawn_blocking(move || review::answer(&webhook, &path, &content_type, &body)).await;
    match answered {
        Ok((StatusCode::OK, body)) => respond(StatusCode::OK, "application/json", body),
        Ok((status, body)) => respond(status, "text/plain", body),
        Err(_) => {
            respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "no answer could be made\n".to_owned())
        }
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
