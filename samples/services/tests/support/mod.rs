//! Services on ports of their own, and the plainest of clients to ask them.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use leno_samples::bookinfo::{details, productpage, ratings, reviews};
use leno_samples::{OutboundProxy, Peer, Shutdown, Trigger};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

/// A service that runs until this is dropped or stopped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    trigger: Trigger,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts what `serve` makes of a listener.
    pub(crate) async fn start<F, E>(serve: impl FnOnce(TcpListener, Shutdown) -> F) -> Running
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Debug,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        let served = serve(listener, shutdown);
        let task = tokio::spawn(async move { served.await.unwrap() });
        Running { address, trigger, task }
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::new(&self.address.ip().to_string(), "", self.address.port()).unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks for the end and waits for it.
    pub(crate) async fn stop(self) {
        self.trigger.fire();
        self.task.await.unwrap();
    }
}

/// A peer where nothing listens. The port is held for as long as this lives: bound, so that
/// nobody else gets it, but without listening, so that connections are refused.
pub(crate) struct Nobody {
    pub(crate) peer: Peer,
    _socket: TcpSocket,
}

impl Nobody {
    pub(crate) fn here() -> Nobody {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = Peer::new("127.0.0.1", "", socket.local_addr().unwrap().port()).unwrap();
        Nobody { peer, _socket: socket }
    }
}

pub(crate) async fn start_details() -> Running {
    Running::start(|listener, shutdown| details::serve(listener, "v1".to_owned(), shutdown)).await
}

pub(crate) async fn start_ratings() -> Running {
    Running::start(|listener, shutdown| ratings::serve(listener, "v1".to_owned(), shutdown)).await
}

/// Reviews whose stars have `color` and come from the peer; without stars if there is none.
pub(crate) async fn start_reviews(stars: Option<(Peer, &str)>) -> Running {
    let config = reviews::Config {
        version: "v9".to_owned(),
        pod_name: "reviews-v9-abc".to_owned(),
        cluster_name: None,
        ratings: stars.map(|(peer, color)| reviews::Ratings { peer, color: color.to_owned() }),
        proxy: OutboundProxy::default(),
    };
    Running::start(|listener, shutdown| reviews::serve(listener, config, shutdown)).await
}

pub(crate) async fn start_productpage(
    details: Peer,
    reviews: Peer,
    ratings: Peer,
    proxy: OutboundProxy,
) -> Running {
    let config = productpage::Config { version: "v1".to_owned(), details, reviews, ratings, proxy };
    Running::start(|listener, shutdown| productpage::serve(listener, config, shutdown)).await
}

/// The answer to one request on a connection of its own: status line fields and text.
pub(crate) async fn send(request: Request<String>) -> Response<String> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request.map(|body| Full::new(Bytes::from(body)))).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, String::from_utf8(body.to_vec()).unwrap())
}

/// GETs, with headers.
pub(crate) async fn get(url: String, headers: &[(&str, &str)]) -> Response<String> {
    let mut request = Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request.body(String::new()).unwrap()).await
}

/// Status and body in one text, for `expect!`.
pub(crate) fn show(response: &Response<String>) -> String {
    format!("{} {}", response.status().as_u16(), response.body())
}
