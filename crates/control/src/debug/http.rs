//! The HTTP server of the debug interface.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_xds::server::listen::{Authenticator, Credentials};
use leno_xds::server::room::Room;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};

use super::viewer::{Viewer, is_here, is_others};
use super::{Answer, Question};
use crate::access::Refusals;
use crate::ca::Ca;
use crate::inject::webhook::Webhook;
use crate::server::Event;

/// How many connections there may be at a time; then the longest idle goes. Descriptors are for proxies.
const MOST_CONNECTIONS: usize = 512;

/// How long the first request of a connection may take to come: istiod's `ReadHeaderTimeout`.
const FIRST: Duration = Duration::from_secs(30);

/// How long nothing may happen afterwards, istiod's `IdleTimeout`: neither a request nor, while a page is
/// sent, its being taken.
const IDLE: Duration = Duration::from_secs(90);

/// How much of a page is given to the connection at a time, bytes.
const PIECE: usize = 64 << 10;

/// What there must be for proxies to be served.
#[derive(Clone)]
pub(crate) struct Ready {
    /// That the sources are known.
    pub(crate) known: Arc<AtomicBool>,
    /// The certificate authority, if there is to be one: without it nobody comes in by TLS, and a rollout
    /// must not go on that replaces those where it works.
    pub(crate) ca: Option<Arc<Ca>>,
    /// The webhooks, if they are served.
    pub(crate) webhook: Option<Arc<Webhook>>,
}

impl Ready {
    fn is_ready(&self) -> bool {
        self.known.load(Ordering::Acquire)
            && self.ca.as_ref().is_none_or(|ca| ca.is_ready())
            && self.webhook.as_ref().is_none_or(|webhook| webhook.is_ready())
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    events: mpsc::Sender<Event>,
    ready: Ready,
    /// Who may look from elsewhere; nobody without one.
    authenticator: Option<Arc<dyn Authenticator>>,
    refusals: Arc<Refusals>,
}

/// Serves until the future is dropped. Whoever is not on this machine must prove to `authenticator`
/// who he is before he sees a debug page, as with istiod.
pub(crate) async fn serve(
    listener: TcpListener,
    events: mpsc::Sender<Event>,
    ready: Ready,
    authenticator: Option<Arc<dyn Authenticator>>,
    refusals: Arc<Refusals>,
) {
    let shared = Shared { events, ready, authenticator, refusals };
    let mut room = Room::counting(MOST_CONNECTIONS, Arc::clone(&shared.refusals.pages));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: waiting a little is all that can be done.
                tracing::warn!(%error, "debug interface: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = shared.clone();
        let is_here = is_here(Some(peer), stream.local_addr().ok());
        room.seat(peer.ip().into(), |of| async move {
            let progress = Arc::new(Progress::default());
            let seen = Arc::clone(&progress);
            let service = service_fn(move |request| {
                let (shared, busy, of) = (shared.clone(), Busy::new(&seen), Arc::clone(&of));
                async move {
                    let _answering = of.begin();
                    let response = answer(&request, &shared, peer, is_here).await;
                    Ok::<_, Infallible>(response.map(|rest| Page { rest, busy }))
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::select! {
                // A client that goes away is no concern of ours.
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
                () = progress.ceases() => tracing::debug!(%peer, "debug interface: nothing happens"),
            }
        });
    }
}

/// Whether anything happens on a connection.
#[derive(Debug, Default)]
struct Progress {
    happened: Notify,
    /// Requests that are being answered.
    answering: AtomicUsize,
}

impl Progress {
    /// Waits until nothing has happened for too long.
    async fn ceases(&self) {
        let mut patience = FIRST;
        loop {
            let happened = tokio::time::timeout(patience, self.happened.notified()).await.is_ok();
            if !happened && self.answering.load(Ordering::Acquire) == 0 {
                return;
            }
            patience = IDLE;
        }
    }
}

/// A request that is there, until it has been answered and the answer was taken.
#[derive(Debug)]
struct Busy {
    progress: Arc<Progress>,
    /// Whether it is we who take long.
    is_answering: bool,
}

impl Busy {
    fn new(progress: &Arc<Progress>) -> Busy {
        progress.answering.fetch_add(1, Ordering::AcqRel);
        progress.happened.notify_one();
        Busy { progress: Arc::clone(progress), is_answering: true }
    }

    /// The client takes a part of the answer.
    fn taken(&mut self) {
        if std::mem::take(&mut self.is_answering) {
            self.progress.answering.fetch_sub(1, Ordering::AcqRel);
        }
        self.progress.happened.notify_one();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.taken();
    }
}

/// A page on its way, piece by piece, so that it shows whether it is taken.
struct Page {
    rest: Bytes,
    busy: Busy,
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.busy.taken();
        let length = self.rest.len().min(PIECE);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

async fn answer(
    request: &Request<Incoming>,
    shared: &Shared,
    peer: SocketAddr,
    is_here: bool,
) -> Response<Bytes> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    let path = request.uri().path();
    let is_ready = shared.ready.is_ready();
    match path {
        "/ready" | "/healthz/ready" if is_ready => return text(StatusCode::OK, "ready\n"),
        "/ready" | "/healthz/ready" => return text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        // That it answers is what is asked.
        "/healthz" | "/health" => return text(StatusCode::OK, "ok\n"),
        "/version" => return text(StatusCode::OK, concat!(env!("CARGO_PKG_VERSION"), "\n")),
        _ => {}
    }
    let viewer = if path == "/metrics" {
        // Everybody may ask, and who does not from here is of no namespace.
        let is_here = is_here && !is_others(request);
        if is_here { Viewer::Anyone } else { Viewer::Namespace(String::new()) }
    } else {
        match viewer(request, shared, peer, is_here).await {
            Ok(viewer) => viewer,
            Err(why) => {
                shared.refusals.viewers.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%peer, path, why, "a debug page is refused");
                return text(StatusCode::UNAUTHORIZED, &format!("{why}\n"));
            }
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

fn write(answer: Answer) -> Response<Bytes> {
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
    let is_here = is_here && !is_others(request);
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

fn text(status: StatusCode, body: &str) -> Response<Bytes> {
    respond(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::{FIRST, IDLE, MOST_CONNECTIONS, Ready, serve};
    use crate::ca::{Ca, CaSettings};

    /// A server, of whose loop nothing is answered.
    async fn start(ca: Option<Arc<Ca>>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let ready = Ready { known: Arc::new(AtomicBool::new(true)), ca, webhook: None };
        tokio::spawn(serve(listener, mpsc::channel(1).0, ready, None, Arc::default()));
        address
    }

    async fn send(address: std::net::SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(text.as_bytes()).await.expect("it reads");
        stream
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that is cut off is at its end too.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).expect("text")
    }

    const GET: &str = "GET /ready HTTP/1.1\r\nHost: x\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn nobody_may_be_silent_for_ever() {
        let address = start(None).await;
        for (text, patience) in [
            ("", FIRST),
            ("G", FIRST),
            ("PRI * HT", FIRST),
            ("GET /ready HTTP/1.1\r\nHost:", FIRST),
            (GET, IDLE),
        ] {
            let begun = Instant::now();
            let mut stream = send(address, text).await;
            let answer = rest(&mut stream).await;
            assert!(
                begun.elapsed() >= patience && begun.elapsed() < patience * 2,
                "{text}: {:?}",
                begun.elapsed()
            );
            assert_eq!(answer.is_empty(), text != GET, "{answer}");
        }
        // Those that wait for their turn get it.
        let mut silent = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        let mut stream = send(address, &GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn ready_with_an_authority_only() {
        let settings = CaSettings::read(|_| None).expect("fine").expect("an authority");
        let address = start(Some(Ca::new(settings, None).expect("it is ours"))).await;
        let mut stream = send(address, &GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 503"));
    }
}
