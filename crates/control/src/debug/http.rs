//! The HTTP server of the debug interface.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::server::Event;

/// What can be asked of the control loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Sync,
    Config,
    Registry,
    Gateways,
    Diagnostics,
    /// The configuration of a proxy, by its name or identifier.
    Dump(String),
}

/// The paths that lead to an answer of the control loop.
const PATHS: [(&str, Question); 5] = [
    ("/debug/syncz", Question::Sync),
    ("/debug/configz", Question::Config),
    ("/debug/registryz", Question::Registry),
    ("/debug/gatewayz", Question::Gateways),
    ("/debug/diagnostics", Question::Diagnostics),
];

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, events: mpsc::Sender<Event>, ready: Arc<AtomicBool>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: waiting a little is all that can be done.
                tracing::warn!(%error, "debug interface: accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (events, ready) = (events.clone(), Arc::clone(&ready));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (events, ready) = (events.clone(), Arc::clone(&ready));
                async move { Ok::<_, Infallible>(answer(&request, &events, &ready).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away is no concern of ours.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    events: &mpsc::Sender<Event>,
    ready: &AtomicBool,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    let path = request.uri().path();
    if path == "/ready" {
        return if ready.load(Ordering::Acquire) {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        };
    }
    let question = if path == "/debug/config_dump" {
        let Some(proxy) = parameter(request.uri().query().unwrap_or_default(), "proxyID") else {
            return text(StatusCode::BAD_REQUEST, "which proxy? ?proxyID=NAME.NAMESPACE\n");
        };
        Question::Dump(proxy)
    } else {
        match PATHS.iter().find(|(known, _)| *known == path) {
            Some((_, question)) => question.clone(),
            None => {
                let known: Vec<&str> = PATHS.iter().map(|(path, _)| *path).collect();
                let known = format!("/ready\n{}\n/debug/config_dump?proxyID=\n", known.join("\n"));
                return text(StatusCode::NOT_FOUND, &known);
            }
        }
    };
    let (reply, answer) = oneshot::channel();
    if events.send(Event::Ask(question, reply)).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match answer.await {
        Ok(Some(value)) => json(&value),
        Ok(None) => text(StatusCode::NOT_FOUND, "no such proxy is connected\n"),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
    }
}

/// The value of a query parameter, percent-decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    respond(StatusCode::OK, "application/json", body)
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
    use super::parameter;

    #[test]
    fn parameters_are_decoded() {
        assert_eq!(parameter("proxyID=a.b", "proxyID").as_deref(), Some("a.b"));
        assert_eq!(parameter("x=1&proxyID=a%7Eb+c", "proxyID").as_deref(), Some("a~b c"));
        assert_eq!(parameter("proxyIDx=1", "proxyID"), None);
        assert_eq!(parameter("proxyID=%7", "proxyID"), None);
    }
}
