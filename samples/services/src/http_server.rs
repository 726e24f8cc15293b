//! The HTTP side of every bookinfo service: accept, serve, drain; and the few shapes of answer.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::Shutdown;

/// How long requests in flight may take once the end was asked for. Longer than the slowest
/// answer of the samples, shorter than the 30 s that Kubernetes waits before it kills.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// Serves `handler` on `listener`, HTTP/1.1 and HTTP/2 with prior knowledge, until `shutdown`:
/// then takes no more connections, closes the idle ones, and lets the rest finish.
pub(crate) async fn serve<H, F>(listener: TcpListener, shutdown: Shutdown, handler: H) -> io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    // No timer on purpose: with one, hyper would close connections on which no request came for a
    // while, and a proxy that just picked such a connection from its pool would lose a request.
    let builder = auto::Builder::new(TokioExecutor::new());
    let connections = GracefulShutdown::new();
    let end = shutdown.requested();
    tokio::pin!(end);
    loop {
        let stream = tokio::select! {
            () = &mut end => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: wait for some to come back.
                    eprintln!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let handler = handler.clone();
        let service = service_fn(move |request| {
            let answer = handler(request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // A client that goes away in the middle is no news.
            let _ = connection.await;
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, connections.shutdown()).await.is_err() {
        eprintln!("some requests did not finish within {} s", DRAIN.as_secs());
    }
    Ok(())
}

/// An answer with a body of the given content type.
pub(crate) fn reply(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer in JSON.
pub(crate) fn json_reply(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => reply(status, "application/json", body),
        Err(error) => {
            reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string())
        }
    }
}

/// A refusal or failure in JSON: `{"error": ...}`.
pub(crate) fn error_reply(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    json_reply(status, &json!({ "error": error }))
}

/// The answer to a path that nothing serves.
pub(crate) fn not_found() -> Response<Full<Bytes>> {
    error_reply(StatusCode::NOT_FOUND, "no such page")
}

/// The answer to a method that the path does not take.
pub(crate) fn method_not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = error_reply(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The answer to a health check.
pub(crate) fn healthy(service: &str, version: &str) -> Response<Full<Bytes>> {
    json_reply(StatusCode::OK, &json!({ "status": format!("{service} is healthy"), "version": version }))
}

/// The product's number in a path, or the answer that refuses it.
pub(crate) fn product_id(segment: &str) -> Result<u64, Box<Response<Full<Bytes>>>> {
    segment.parse().map_err(|_| {
        Box::new(error_reply(StatusCode::BAD_REQUEST, "a product is named by its number, like 0"))
    })
}
