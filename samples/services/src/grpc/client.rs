//! The echo client: unary calls at a steady rate and one open stream, all over one connection.
//!
//! [`run`] is the story: wait until the service answers, then one loop over ticks, answers and
//! stream events, which keeps all the counts; no task shares state with another.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use http::Uri;
use serde::Serialize;
use tokio::time::{Instant, interval, interval_at, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::echo::echo_client::EchoClient;
use super::echo::{EchoReply, EchoRequest, WatchRequest};
use crate::proxy::Connector;
use crate::{OutboundProxy, Shutdown};

/// The most unary calls in flight: if answers come slower than asked for, the rate drops.
const MOST_IN_FLIGHT: usize = 1000;
/// Pause before a stream that ended is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// What the client does.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The service to call
    #[arg(long, env = "ECHO_ADDRESS", default_value = "http://echo:7070")]
    pub address: Uri,
    /// Unary calls a second
    #[arg(long, default_value_t = 20.0, value_parser = rate)]
    pub rps: f64,
    /// End after this many unary calls; without it, go on until stopped
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// The stream to keep open beside the calls
    #[arg(long, value_enum, default_value_t = StreamKind::Chat)]
    pub stream: StreamKind,
    /// How long one call may take, in seconds
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub timeout: Duration,
    /// How long to wait for the service's first answer, in seconds; calls count from then on
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub wait: Duration,
}

/// Which of the service's streams.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum StreamKind {
    /// Both sides send: a message each second, answered each time
    Chat,
    /// Only the server sends
    Watch,
    /// No stream
    None,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let sensible = (0.001..=100_000.0).contains(&rate);
    sensible.then_some(rate).ok_or_else(|| "between 0.001 and 100000, please".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let sensible = (0.001..=86_400.0).contains(&seconds);
    sensible
        .then(|| Duration::from_secs_f64(seconds))
        .ok_or_else(|| "between 0.001 and 86400, please".to_owned())
}

/// Why a run could not start.
#[derive(Debug, thiserror::Error)]
pub enum CannotStart {
    #[error("{address} did not answer within {} s: {last}", .wait.as_secs_f64())]
    NoAnswer { address: String, wait: Duration, last: String },
    #[error("{address}: only http:// addresses with a host can be called")]
    Address { address: String },
}

/// What a run counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Unary calls that ended, well or not.
    pub calls: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Those that succeeded, by the replica that answered.
    pub replicas: BTreeMap<String, u64>,
    pub stream: StreamTotals,
}

/// What became of the stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StreamTotals {
    /// How often it was opened, that is, brought a first message.
    pub opened: u64,
    /// Messages that came over it.
    pub messages: u64,
    /// How often it failed, or could not be opened. A replica that ends well closes its streams
    /// without this; one that is killed cannot.
    pub broken: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls", self.calls)?;
        for (replica, calls) in &self.replicas {
            write!(f, ", {replica} {calls}")?;
        }
        write!(f, ", errors {}", self.errors)
    }
}

impl Totals {
    fn count(&mut self, outcome: &Result<String, Status>) {
        self.calls += 1;
        match outcome {
            Ok(replica) => *self.replicas.entry(replica.clone()).or_default() += 1,
            Err(_) => self.errors += 1,
        }
    }
}

/// Calls until the wanted number is reached or `shutdown`, and returns what was counted. `say`
/// gets a line each second with the calls of that second by replica, and one for each failure.
///
/// # Errors
///
/// When the address cannot be called, or nothing answered within [`Options::wait`].
pub async fn run(
    options: &Options,
    proxy: OutboundProxy,
    mut say: impl FnMut(&str),
    shutdown: Shutdown,
) -> Result<Totals, CannotStart> {
    let name = options.address.host().unwrap_or_default().to_owned();
    let client = EchoClient::new(channel(options, proxy)?);
    let end = shutdown.requested();
    tokio::pin!(end);
    tokio::select! {
        () = &mut end => return Ok(Totals::default()),
        ready = first_answer(options, &client, &mut say) => ready?,
    }

    let mut totals = Totals::default();
    let mut this_second = Totals::default();
    let mut started = 0;
    let mut in_flight = FuturesUnordered::new();
    let mut stream_events = keep_open(options.stream, client.clone());
    let mut calls = interval(Duration::from_secs_f64(1.0 / options.rps));
    let mut seconds = interval_at(Instant::now() + Duration::from_secs(1), Duration::from_secs(1));
    let wanted = options.requests.unwrap_or(u64::MAX);
    while totals.calls < wanted {
        tokio::select! {
            _ = calls.tick(), if started < wanted && in_flight.len() < MOST_IN_FLIGHT => {
                started += 1;
                in_flight.push(call(client.clone(), format!("call {started}"), options.timeout));
            }
            Some(outcome) = in_flight.next() => {
                totals.count(&outcome);
                this_second.count(&outcome);
                if let Err(status) = outcome {
                    say(&format!("{name}: call failed: {:?}: {}", status.code(), status.message()));
                }
            }
            Some(event) = stream_events.next() => {
                totals.stream.count(&event);
                if let Some(line) = event.line() {
                    say(&format!("{name}: {line}"));
                }
            }
            _ = seconds.tick() => say(&format!("{name}: {}", std::mem::take(&mut this_second))),
            () = &mut end => break,
        }
    }
    Ok(totals)
}

/// One connection, made on the first call and made again when it breaks.
fn channel(options: &Options, proxy: OutboundProxy) -> Result<Channel, CannotStart> {
    if options.address.scheme_str() != Some("http") || options.address.host().is_none_or(str::is_empty) {
        return Err(CannotStart::Address { address: options.address.to_string() });
    }
    let endpoint = Endpoint::from(options.address.clone())
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        // Notices within 15 s when the other end vanished without a word.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    Ok(endpoint.connect_with_connector_lazy(Connector::new(proxy)))
}

/// Waits until one call succeeds. At the start of a mesh, the service may come after its clients.
async fn first_answer(
    options: &Options,
    client: &EchoClient<Channel>,
    say: &mut impl FnMut(&str),
) -> Result<(), CannotStart> {
    let started = Instant::now();
    let mut last_said = None;
    loop {
        let left = options.wait.saturating_sub(started.elapsed());
        let outcome = call(client.clone(), "hello".to_owned(), options.timeout.min(left)).await;
        let Err(status) = outcome else { return Ok(()) };
        let reason = format!("{:?}: {}", status.code(), status.message());
        if started.elapsed() + REOPEN_AFTER >= options.wait {
            let (address, wait) = (options.address.to_string(), options.wait);
            return Err(CannotStart::NoAnswer { address, wait, last: reason });
        }
        if last_said.is_none_or(|said: Instant| said.elapsed() >= Duration::from_secs(1)) {
            say(&format!("waiting for {}: {reason}", options.address));
            last_said = Some(Instant::now());
        }
        sleep(REOPEN_AFTER).await;
    }
}

/// One unary call: the replica that answered.
async fn call(mut client: EchoClient<Channel>, message: String, limit: Duration) -> Result<String, Status> {
    let mut request = Request::new(EchoRequest { message });
    request.set_timeout(limit);
    // Watched here too: a proxy may answer late, and the caller must not hang on it.
    match timeout(limit, client.echo(request)).await {
        Ok(answer) => answer.map(|reply| reply.into_inner().hostname),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// What happens on the stream.
#[derive(Debug)]
enum StreamEvent {
    Opened { replica: String },
    Message,
    Ended,
    Broken(Status),
}

impl StreamEvent {
    fn line(&self) -> Option<String> {
        match self {
            StreamEvent::Opened { replica } => Some(format!("stream open on {replica}")),
            StreamEvent::Message => None,
            StreamEvent::Ended => Some("stream ended by the server, opening another".to_owned()),
            StreamEvent::Broken(status) => {
                Some(format!("stream broken, opening another: {:?}: {}", status.code(), status.message()))
            }
        }
    }
}

impl StreamTotals {
    fn count(&mut self, event: &StreamEvent) {
        match event {
            StreamEvent::Opened { .. } => (self.opened, self.messages) = (self.opened + 1, self.messages + 1),
            StreamEvent::Message => self.messages += 1,
            StreamEvent::Ended => {}
            StreamEvent::Broken(_) => self.broken += 1,
        }
    }
}

/// The events of one stream after the other, without end.
fn keep_open(kind: StreamKind, client: EchoClient<Channel>) -> BoxStream<'static, StreamEvent> {
    if kind == StreamKind::None {
        return stream::pending().boxed();
    }
    stream::iter(0_u64..)
        .then(move |turn| {
            let client = client.clone();
            async move {
                if turn > 0 {
                    sleep(REOPEN_AFTER).await;
                }
                match open(kind, client).await {
                    Ok(replies) => events(replies),
                    Err(status) => stream::iter([StreamEvent::Broken(status)]).boxed(),
                }
            }
        })
        .flatten()
        .boxed()
}

async fn open(
    kind: StreamKind,
    mut client: EchoClient<Channel>,
) -> Result<tonic::Streaming<EchoReply>, Status> {
    let opened = match kind {
        StreamKind::Watch => {
            client.watch(WatchRequest { message: "watch".to_owned(), ..Default::default() }).await?
        }
        StreamKind::Chat | StreamKind::None => {
            let messages =
                stream::unfold((interval(Duration::from_secs(1)), 1_u64), |(mut ticks, number)| async move {
                    ticks.tick().await;
                    Some((EchoRequest { message: format!("chat {number}") }, (ticks, number + 1)))
                });
            client.chat(messages).await?
        }
    };
    Ok(opened.into_inner())
}

/// The events of one stream: its messages, then either its plain end or what broke it.
fn events(replies: tonic::Streaming<EchoReply>) -> BoxStream<'static, StreamEvent> {
    let start = Some((replies, false));
    stream::unfold(start, |state| async move {
        let (mut replies, opened) = state?;
        Some(match replies.message().await {
            Ok(Some(_)) if opened => (StreamEvent::Message, Some((replies, true))),
            Ok(Some(EchoReply { hostname, .. })) => {
                (StreamEvent::Opened { replica: hostname }, Some((replies, true)))
            }
            Ok(None) => (StreamEvent::Ended, None),
            Err(status) => (StreamEvent::Broken(status), None),
        })
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::{Totals, rate, seconds};
    use tonic::Status;

    #[test]
    fn the_line_of_a_second() {
        let mut totals = Totals::default();
        for replica in ["echo-b", "echo-a", "echo-b"] {
            totals.count(&Ok(replica.to_owned()));
        }
        totals.count(&Err(Status::unavailable("gone")));
        assert_eq!(totals.to_string(), "4 calls, echo-a 1, echo-b 2, errors 1");
    }

    #[test]
    fn rates_and_times_have_limits() {
        for (text, fine) in
            [("20", true), ("0.5", true), ("0", false), ("-1", false), ("NaN", false), ("x", false)]
        {
            assert_eq!(rate(text).is_ok(), fine, "{text}");
            assert_eq!(seconds(text).is_ok(), fine, "{text}");
        }
    }
}
