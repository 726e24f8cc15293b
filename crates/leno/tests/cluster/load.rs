//! Constant load on the mesh from outside: clients that keep their connection, and clients that make a new one for
//! each request. Every answer is counted, and every failure kept with what is known of it.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a client waits between two requests: the load is constant, not heavy.
const PACE: Duration = Duration::from_millis(20);
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many requests of each client are between the end of an event and the end of its phase.
const AFTERWARDS: u64 = 5;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// One hop, gateway to productpage, with Istio's default retries.
    Default,
    /// Two hops, gateway to productpage to details, both with retries that suit requests which may be repeated.
    Retried,
}

impl Route {
    fn path(self) -> &'static str {
        match self {
            Route::Default => "/api/v1/products",
            Route::Retried => "/api/v1/products/0",
        }
    }
}

/// A request that was not answered with 200.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) route: Route,
    /// The status; `None`: the connection failed.
    pub(crate) status: Option<u16>,
    /// The body, or what is wrong with the connection.
    pub(crate) what: String,
}

/// What came of the requests of one phase.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) good: u64,
    pub(crate) failed: Vec<Failed>,
}

impl Tally {
    /// Nothing failed.
    pub(crate) fn none(&self) -> Result<(), Box<dyn Error>> {
        self.only("no request may fail", |_| false)
    }

    /// Nothing failed but what is excused.
    pub(crate) fn only(
        &self,
        rule: &str,
        is_excused: impl Fn(&Failed) -> bool,
    ) -> Result<(), Box<dyn Error>> {
        let wrong: Vec<_> = self.failed.iter().filter(|it| !is_excused(it)).collect();
        if wrong.is_empty() && self.good > 0 {
            return Ok(());
        }
        let some: Vec<String> =
            wrong.iter().take(10).map(|it| format!("{:?} {:?}: {}", it.route, it.status, it.what)).collect();
        Err(format!("{rule}; {} of {} did:\n{}", wrong.len(), self.good, some.join("\n")).into())
    }
}

/// Clients that run. They end with it.
pub(crate) struct Load {
    tally: Arc<Mutex<Tally>>,
    clients: Vec<(watch::Receiver<u64>, JoinHandle<()>)>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.clients.iter().for_each(|(_, task)| task.abort());
    }
}

/// How many clients of each route there are.
pub(crate) const CLIENTS: usize = 3;

impl Load {
    /// Starts the clients: of each route two that keep their connection, and one that does not.
    pub(crate) fn start(to: SocketAddr) -> Load {
        let tally = Arc::<Mutex<Tally>>::default();
        let mut clients = Vec::new();
        for route in [Route::Default, Route::Retried] {
            for number in 0..CLIENTS {
                let (done, count) = watch::channel(0);
                let client = Client { to, route, keeps: number > 0, tally: tally.clone(), done };
                clients.push((count, tokio::spawn(client.run())));
            }
        }
        Load { tally, clients }
    }

    /// Ends a phase: what came of its requests, once each client has had some more answers.
    pub(crate) async fn phase(&self) -> Tally {
        for (count, _) in &self.clients {
            let mut count = count.clone();
            let enough = *count.borrow_and_update() + AFTERWARDS;
            // A client ends with the load only.
            let _ = count.wait_for(|count| *count >= enough).await;
        }
        std::mem::take(&mut lock(&self.tally))
    }
}

struct Client {
    to: SocketAddr,
    route: Route,
    keeps: bool,
    tally: Arc<Mutex<Tally>>,
    done: watch::Sender<u64>,
}

impl Client {
    async fn run(self) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut kept: Option<SendRequest<Empty<Bytes>>> = None;
        loop {
            pace.tick().await;
            let asking = tokio::time::timeout(PATIENCE, self.ask(&mut kept));
            let answer = asking.await.unwrap_or_else(|_| Err("no answer in time".into()));
            if !self.keeps || answer.is_err() {
                kept = None;
            }
            let failed = |status, what| Failed { route: self.route, status, what };
            let mut tally = lock(&self.tally);
            match answer {
                Ok((200, _)) => tally.good += 1,
                Ok((status, body)) => tally.failed.push(failed(Some(status), body)),
                Err(error) => {
                    let kind = if self.keeps { "kept" } else { "new" };
                    tally.failed.push(failed(None, format!("{kind} connection: {error}")));
                }
            }
            drop(tally);
            self.done.send_modify(|count| *count += 1);
        }
    }

    async fn ask(
        &self,
        kept: &mut Option<SendRequest<Empty<Bytes>>>,
    ) -> Result<(u16, String), Box<dyn Error + Send + Sync>> {
        // What the other side has closed, as it had announced, is no failure.
        if let Some(sender) = kept
            && sender.ready().await.is_err()
        {
            *kept = None;
        }
        if kept.is_none() {
            let stream = TcpStream::connect(self.to).await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            *kept = Some(sender);
        }
        let sender = kept.as_mut().ok_or("no connection")?;
        let request = Request::get(self.route.path()).header("host", "bookinfo.test").body(Empty::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
