//! The agent's own port, 15020: readiness, probes of the application, metrics, and orders.
//!
//! Kubelet's probes come here, because the application's ports take only mTLS ([`probes`]). Whether the
//! proxy is ready is known by its stats ([`ready`]). Metrics are the application's, the proxy's and ours,
//! one after the other ([`scrape`]). What changes anything is for callers on the machine alone. Others can
//! connect as well, so all that they may take is bounded: connections ([`leno_xds::server::room`]), the time in which
//! an answer must be taken, and memory, as few scrapes are answered at a time, and one of each caller.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_api::proto::istio::networking::nds::v1::name_table::NameInfo;
use leno_xds::server::room::{Room, Taken};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::lifecycle::Order;
use crate::metrics::Metrics;

mod gzip;
pub mod probes;
mod ready;
pub mod scrape;

pub use probes::Probes;
pub use ready::Readiness;
pub use scrape::Scrape;

/// How long a client may take to say what it wants, and may take nothing of what it is sent.
const SLOW: Duration = Duration::from_secs(10);
/// The most connections at a time.
const MOST: usize = 256;

/// What there is to say.
#[derive(Debug)]
pub struct Status {
    /// Whether the proxy is ready.
    pub readiness: Readiness,
    /// The application's probes.
    pub probes: Probes,
    /// Where metrics come from.
    pub scrape: Scrape,
    /// What we count.
    pub metrics: Arc<Metrics>,
    /// Names, if they are resolved here.
    pub names: Option<watch::Receiver<Option<Arc<NameTable>>>>,
    /// Where orders go.
    pub orders: mpsc::Sender<Order>,
    /// Whether only callers on the machine get metrics (`METRICS_LOCALHOST_ACCESS_ONLY`).
    pub metrics_are_local: bool,
    /// Whether the agent is about to end.
    pub terminated: watch::Receiver<bool>,
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let mut room = Room::new(MOST);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let status = Arc::clone(&status);
                room.seat(peer.ip().into(), |of| async move {
                    let ordered = OnceLock::new();
                    let service = service_fn(|request| {
                        let (status, of, ordered) = (&status, &of, &ordered);
                        async move {
                            let _busy = of.begin();
                            Ok::<_, Infallible>(status.answer(request, peer, ordered).await)
                        }
                    });
                    let mut server = hyper::server::conn::http1::Builder::new();
                    server.timer(TokioTimer::new()).header_read_timeout(SLOW);
                    let _ = server.serve_connection(TokioIo::new(Taken::new(stream, SLOW)), service).await;
                    // Only now, because the process may end by it and its caller has to be answered.
                    if let Some(order) = ordered.into_inner() {
                        tracing::info!(?order, "an order on the status port");
                        // If nobody takes orders any more, the end is near anyway.
                        let _ = status.orders.send(order).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the status port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// An answer in plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Status {
    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        ordered: &OnceLock<Order>,
    ) -> Response<UnsyncBoxBody<Bytes, std::io::Error>> {
        let is_local = is_local(peer.ip()) && !is_foreign(&request);
        let path = request.uri().path();
        let denied = || {
            tracing::warn!(%peer, path, "refused on the status port");
            self.metrics.refused.add(1);
            text(StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n")
        };
        let answer = match path {
            "/healthz/ready" => self.ready().await,
            "/metrics" | "/stats/prometheus" if self.metrics_are_local && !is_local => denied(),
            "/metrics" | "/stats/prometheus" => {
                self.metrics.scrapes.add(1);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                return self
                    .scrape
                    .answer(peer.ip(), request.headers(), request.uri().query(), &self.metrics, now)
                    .await;
            }
            "/quitquitquit" | "/drain" | "/debug/ndsz" if !is_local => denied(),
            "/quitquitquit" => order(request.method(), Order::Quit, ordered),
            "/drain" => order(request.method(), Order::Drain, ordered),
            "/debug/ndsz" => self.names(),
            path if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                self.probes.answer(path, request.headers()).await
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        };
        answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    }

    async fn ready(&self) -> Response<Full<Bytes>> {
        let verdict = if *self.terminated.borrow() {
            Err("server is terminated".to_owned())
        } else if self.names.as_ref().is_some_and(|names| names.borrow().is_none()) {
            Err("DNS capture is on and the table of names has not come yet".to_owned())
        } else {
            self.readiness.check().await
        };
        match verdict {
            Ok(()) => {
                self.metrics.ready();
                text(StatusCode::OK, "")
            }
            Err(error) => {
                tracing::warn!(error, "the proxy is not ready");
                text(StatusCode::SERVICE_UNAVAILABLE, "")
            }
        }
    }

    fn names(&self) -> Response<Full<Bytes>> {
        let table = self.names.as_ref().and_then(|names| names.borrow().clone());
        let json = |status, value: Value| {
            let mut response = text(status, value.to_string());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        };
        let Some(table) = table else { return json(StatusCode::NOT_FOUND, json!({})) };
        let info = |info: &NameInfo| {
            let fields = [
                ("registry", &info.registry),
                ("shortname", &info.shortname),
                ("namespace", &info.namespace),
            ];
            let mut value = Map::new();
            value.insert("ips".to_owned(), json!(info.ips));
            value.extend(
                fields
                    .into_iter()
                    .filter(|(_, text)| !text.is_empty())
                    .map(|(name, text)| (name.to_owned(), json!(text))),
            );
            Value::Object(value)
        };
        let names: Map<String, Value> =
            table.table.iter().map(|(name, it)| (name.clone(), info(it))).collect();
        json(StatusCode::OK, json!({ "table": names }))
    }
}

/// Takes down what is to be done when the connection has ended, which it does with this answer.
fn order(method: &Method, order: Order, ordered: &OnceLock<Order>) -> Response<Full<Bytes>> {
    if method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    let _ = ordered.set(order);
    let mut response = text(StatusCode::OK, "OK");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Whether a page of the web speaks through a browser on the machine.
// Deviation: pilot-agent takes orders that a page of the web makes a browser on the machine send.
fn is_foreign(request: &Request<Incoming>) -> bool {
    let text = |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?."));
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text(HOST));
    leno_base::origin::is_foreign(host, text(ORIGIN))
}

/// Whether a caller is on the machine.
fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
