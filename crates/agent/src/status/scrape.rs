//! Metrics: ours, the proxy's, and the application's (`ISTIO_PROMETHEUS_ANNOTATIONS`), one after the
//! other in one answer.
//!
//! Whoever cannot be had is left out, and counted: half of the metrics are better than none. The
//! application's come last, because in the OpenMetrics format they say that nothing follows; they decide
//! the format of the whole.
//!
//! An answer is in memory until it has been taken, so a few are made at a time. Who takes long takes it from
//! himself: of each caller one scrape is answered, a few wait for it, and more are refused.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT, VARY};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::gzip::{self, Gzip};
use super::text;
use crate::http::{Answer, Reads, Target, call, request};
use crate::metrics::Metrics;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: [&str; 2] = [
    "application/openmetrics-text; version=0.0.1; charset=utf-8",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
];
const TIMEOUT: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
/// How much of the proxy's metrics is read.
const MOST_PROXY: usize = 256 << 20;
/// How much of an application's.
const MOST_APPLICATION: usize = 10 << 20;
/// How long it may take at most, and if Prometheus does not say.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of an answer is given to a connection at a time.
const PIECE: usize = 64 << 10;

/// How many scrapes are answered at a time.
const MOST_AT_ONCE: usize = 4;
/// How many of one caller wait.
const MOST_WAITING: usize = 8;

/// Ports of the mesh, which are no application's.
const RESERVED: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// The annotations of the application, as injection writes them down.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Annotations {
    scrape: String,
    path: String,
    port: String,
    targets: Vec<Annotated>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Annotated {
    port: String,
    path: String,
}

/// Where metrics come from.
#[derive(Debug)]
pub struct Scrape {
    /// The port of the proxy's metrics; absent if they are not merged.
    proxy: Option<u16>,
    /// Ports and paths of the application's.
    applications: Vec<(u16, String)>,
    host: String,
    /// For few at a time.
    room: Arc<Semaphore>,
    /// Those who are being answered, or wait.
    callers: Mutex<BTreeMap<IpAddr, Weak<Caller>>>,
}

/// Somebody who scrapes.
#[derive(Debug)]
struct Caller {
    /// One at a time.
    turn: Arc<Semaphore>,
    /// For those that wait.
    queue: Semaphore,
}

/// That a scrape may be answered.
struct Turn {
    _own: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
    /// Known as long as somebody is.
    _caller: Arc<Caller>,
}

impl Scrape {
    /// `annotations`: absent for gateways. `host` is where everything is.
    ///
    /// # Errors
    /// If the annotations make no sense, or lead back here.
    pub fn read(
        proxy: Option<u16>,
        annotations: Option<&str>,
        status_port: u16,
        host: &str,
    ) -> Result<Scrape, String> {
        const NAME: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
        let annotations = match annotations {
            None => None,
            Some(text) => {
                Some(serde_json::from_str::<Annotations>(text).map_err(|error| format!("{NAME}: {error}"))?)
            }
        };
        let mut applications = Vec::new();
        if let Some(Annotations { path, port, mut targets, .. }) =
            annotations.filter(|annotations| annotations.scrape != "false")
        {
            if targets.is_empty() {
                let port = if port.is_empty() { "80".to_owned() } else { port };
                targets.push(Annotated { port, path });
            }
            for Annotated { port, path } in targets {
                let number: u16 = port
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or(format!("{NAME}: {port:?} is no port"))?;
                if number == status_port || RESERVED.contains(&number) {
                    return Err(format!("{NAME}: port {number} is the mesh's own, not the application's"));
                }
                applications.push((number, if path.is_empty() { "/metrics".to_owned() } else { path }));
            }
        }
        let room = Arc::new(Semaphore::new(MOST_AT_ONCE));
        Ok(Scrape { proxy, applications, host: host.to_owned(), room, callers: Mutex::default() })
    }

    fn caller(&self, address: IpAddr) -> Arc<Caller> {
        // Whoever has an address of IPv6 has 2^64 of them.
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            address => address,
        };
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.retain(|_, caller| caller.strong_count() > 0);
        if let Some(caller) = callers.get(&address).and_then(Weak::upgrade) {
            return caller;
        }
        let caller = Caller { turn: Arc::new(Semaphore::new(1)), queue: Semaphore::new(MOST_WAITING) };
        let caller = Arc::new(caller);
        callers.insert(address, Arc::downgrade(&caller));
        caller
    }

    /// Waits for it; none if too many do, or until it is late.
    async fn turn(&self, address: IpAddr, late: Instant) -> Option<Turn> {
        let caller = self.caller(address);
        let waits = caller.queue.try_acquire().ok()?;
        let own = tokio::time::timeout_at(late, Arc::clone(&caller.turn).acquire_owned()).await.ok()?.ok()?;
        let room = tokio::time::timeout_at(late, Arc::clone(&self.room).acquire_owned()).await.ok()?.ok()?;
        drop(waits);
        Some(Turn { _own: own, _room: room, _caller: caller })
    }

    pub(super) async fn answer(
        &self,
        caller: IpAddr,
        headers: &HeaderMap,
        query: Option<&str>,
        metrics: &Metrics,
        now: u64,
    ) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        let patience = patience(headers);
        let late = Instant::now() + patience;
        let Some(turn) = self.turn(caller, late).await else {
            let busy = text(StatusCode::SERVICE_UNAVAILABLE, "others are being answered\n");
            return busy.map(|body| body.map_err(|never| match never {}).boxed_unsync());
        };
        // What there is has to come in time as well, whoever does not answer.
        let (format, left) = self.gather(headers, query, metrics, now, late - patience / 10).await;
        let gzip = (left.len() >= gzip::LEAST && gzip::is_taken(headers)).then(Gzip::new);
        let is_gzip = gzip.is_some();
        let answered = Answered { left, gzip, late: Instant::now() + PATIENCE, _turn: turn };
        let mut response = Response::new(answered.boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        if is_gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    /// All metrics that can be had before it is late, and in which format they are.
    async fn gather(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        metrics: &Metrics,
        now: u64,
        late: Instant,
    ) -> (&'static str, Bytes) {
        let proxy = async {
            let port = self.proxy?;
            let path = match query {
                None => "/stats/prometheus".to_owned(),
                Some(query) => format!("/stats/prometheus?{query}"),
            };
            let accept = HeaderValue::from_static("text/plain;version=0.0.4");
            let got = self.get(port, &path, headers, accept, late, MOST_PROXY).await;
            got.inspect_err(|error| {
                metrics.proxy_scrape_failures.add(1);
                tracing::error!(error, "the proxy's metrics cannot be had");
            })
            .ok()
        };
        let applications = async {
            let mut got = Vec::with_capacity(self.applications.len());
            let mut left = u32::try_from(self.applications.len()).unwrap_or(u32::MAX);
            for (port, path) in &self.applications {
                // Each has its part of the time.
                let began = Instant::now();
                let late = began + late.saturating_duration_since(began) / left.max(1);
                left = left.saturating_sub(1);
                match self.get(*port, path, headers, accepted(headers), late, MOST_APPLICATION).await {
                    Ok(answer) => got.push(answer),
                    Err(error) => {
                        metrics.application_scrape_failures.add(1);
                        tracing::error!(error, "the application's metrics cannot be had");
                    }
                }
            }
            got
        };
        let (proxy, applications) = tokio::join!(proxy, applications);
        let mut formats = applications.iter().map(|answer| format(&answer.headers));
        let first = formats.next().unwrap_or(TEXT);
        // If they do not agree there is only the oldest.
        let format = if formats.all(|format| format == first) { first } else { TEXT };
        let mut out = metrics.text(now).into_bytes();
        if let Some(proxy) = proxy {
            append(&mut out, &proxy.body);
        }
        for application in &applications {
            append(&mut out, without_end(&application.body));
        }
        if format != TEXT {
            out.extend_from_slice(b"# EOF\n");
        }
        (format, out.into())
    }

    async fn get(
        &self,
        port: u16,
        path: &str,
        headers: &HeaderMap,
        accept: HeaderValue,
        late: Instant,
        most: usize,
    ) -> Result<Answer, String> {
        let target = Target::new(self.host.clone(), port);
        let mut request = request(Method::GET, path, &target)?;
        for name in [USER_AGENT, TIMEOUT] {
            if let Some(value) = headers.get(&name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        request.headers_mut().insert(ACCEPT, accept);
        let left = late.saturating_duration_since(Instant::now());
        let answer = call(&target, request, left, Reads::All(most)).await?;
        let coded = answer.headers.get(CONTENT_ENCODING).filter(|coding| *coding != "identity");
        if let Some(coding) = coded {
            // Nobody asked for it, and it would spoil all the rest.
            return Err(format!("{}{path}: it is in {coding:?}", target.authority()));
        }
        if answer.status != StatusCode::OK {
            return Err(format!("{}{path}: {}", target.authority(), answer.status));
        }
        Ok(answer)
    }
}

/// How long Prometheus waits; nobody waits for longer than we do.
fn patience(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(&TIMEOUT).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let asked = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    asked.filter(|asked| !asked.is_zero()).map_or(PATIENCE, |asked| asked.min(PATIENCE))
}

/// An answer that must be taken before it is late. The caller's next scrape waits until then.
struct Answered {
    left: Bytes,
    /// What makes gzip of it, until all of it is.
    gzip: Option<Gzip>,
    late: Instant,
    _turn: Turn,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        loop {
            if this.left.is_empty() {
                return Poll::Ready(None);
            }
            if Instant::now() >= this.late {
                return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
            }
            let piece = this.left.split_to(this.left.len().min(PIECE));
            let made = match &mut this.gzip {
                None => Ok(piece),
                Some(gzip) => gzip.add(&piece, this.left.is_empty()).map_err(io::Error::other),
            };
            // The first pieces may make nothing yet.
            if !matches!(&made, Ok(made) if made.is_empty()) {
                return Poll::Ready(Some(made.map(Frame::data)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.gzip {
            None => SizeHint::with_exact(self.left.len() as u64),
            Some(_) => SizeHint::default(),
        }
    }
}

/// Of what Prometheus takes, what can be merged.
fn accepted(headers: &HeaderMap) -> HeaderValue {
    let asked = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = asked.split(',').map(str::trim).filter(|one| {
        let kind = one.split(';').next().unwrap_or_default().trim();
        ["text/plain", "text/*", "application/openmetrics-text"].contains(&kind)
    });
    let known: Vec<&str> = known.collect();
    let text = if known.is_empty() { "text/plain;version=0.0.4".to_owned() } else { known.join(",") };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("text/plain;version=0.0.4"))
}

fn format(headers: &HeaderMap) -> &'static str {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = kind.split(';').map(str::trim);
    if parts.next() != Some("application/openmetrics-text") {
        return TEXT;
    }
    let [old, new] = OPEN_METRICS;
    match parts.find_map(|part| part.strip_prefix("version=")).map(|version| version.trim_matches('"')) {
        Some("1.0.0") => new,
        None | Some("0.0.1") => old,
        Some(_) => TEXT,
    }
}

/// Without the line that says that nothing follows.
fn without_end(body: &[u8]) -> &[u8] {
    let trimmed = body.trim_ascii_end();
    trimmed.strip_suffix(b"# EOF").unwrap_or(body)
}

fn append(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(body);
    if !body.is_empty() && !body.ends_with(b"\n") {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::{Scrape, without_end};

    #[test]
    fn annotations() {
        for (text, expected) in [
            (None, Ok(vec![])),
            (Some("{}"), Ok(vec![(80, "/metrics")])),
            (Some(r#"{"scrape":"false","port":"9080"}"#), Ok(vec![])),
            (Some(r#"{"scrape":"true","port":"9080","path":"/m"}"#), Ok(vec![(9080, "/m")])),
            (
                Some(r#"{"targets":[{"port":"1"},{"port":"2","path":"/b"}]}"#),
                Ok(vec![(1, "/metrics"), (2, "/b")]),
            ),
            (Some(r#"{"port":"015020"}"#), Err("port 15020 is the mesh's own")),
            (Some(r#"{"port":"15030"}"#), Err("port 15030 is the mesh's own")),
            (Some(r#"{"port":"http"}"#), Err("\"http\" is no port")),
            (Some("nonsense"), Err("ISTIO_PROMETHEUS_ANNOTATIONS: ")),
        ] {
            match (Scrape::read(None, text, 15030, "localhost"), expected) {
                (Ok(scrape), Ok(expected)) => {
                    let found: Vec<_> =
                        scrape.applications.iter().map(|(port, path)| (*port, path.as_str())).collect();
                    assert_eq!(found, expected, "{text:?}");
                }
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{text:?}: {error}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn ends() {
        assert_eq!(without_end(b"a 1\n# EOF\n"), b"a 1\n");
        assert_eq!(without_end(b"a 1\n# EOF\r\n "), b"a 1\n");
        assert_eq!(without_end(b"a 1\n"), b"a 1\n");
    }
}
