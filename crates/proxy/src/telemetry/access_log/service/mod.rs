//! Access logs that go to services: Envoy's access log service (`http_grpc`, `tcp_grpc`) and
//! OpenTelemetry collectors.
//!
//! An entry is encoded by the worker that logs, and waits in a buffer that all workers share. One
//! task sends what has come together, when there is enough of it or after some time. Logs with the
//! same configuration share one sender, as in Envoy. Nobody waits for it: what a slow or absent
//! service does not take is dropped and counted.
//! Reading order: this file, `entry` (what is said of a request), `otel`, `config`.

pub(crate) mod config;
mod entry;
mod otel;

use std::future::poll_fn;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use self::entry::Shape;
use self::otel::Record;
use crate::http::client::config::{GrpcTarget, HttpTarget};
use crate::http::client::grpc::{Unary, unary};
use crate::http::client::stream::GrpcStream;
use crate::http::client::{Call, Wanted, call};
use crate::http::filters::Background;
use crate::http::headers::Known;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::stats::stats_scope;
use crate::telemetry::trace::wire::present;
use crate::worker::Worker;

/// Calls are made in the name of the proxy.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Bytes that wait beyond `buffer_size_bytes` while a service does not take them.
const BACKLOG: usize = 1 << 20;
/// Fields of StreamAccessLogsMessage.
const HTTP_LOGS: u32 = 2;
const TCP_LOGS: u32 = 3;
/// How long a collector may take to answer where nothing is configured.
const PATIENCE: Duration = Duration::from_secs(10);

stats_scope! {
    /// `access_logs.grpc_access_log.`, `access_logs.open_telemetry_access_log.`
    struct ServiceStats {
        counter logs_dropped;
        counter logs_written;
    }
}

stats_scope! {
    /// The same, of those that speak gRPC. As in Envoy, calls of their own (Export) do not count here.
    struct FlushStats {
        counter grpc_entries_flush_failed;
        counter grpc_entries_flushed;
    }
}

/// A log that goes to a service.
#[derive(Debug)]
pub(crate) struct ServiceLog {
    what: What,
    sender: Arc<Sender>,
}

/// What is said of a request or session.
#[derive(Debug)]
enum What {
    /// An entry of the access log service.
    Entry(Shape),
    /// A log record of OpenTelemetry.
    Record(Record),
}

/// What sends the entries of all logs with one configuration.
#[derive(Debug)]
pub(crate) struct Sender {
    target: Target,
    /// What is in front of the entries in each message, or in the first one of a stream.
    first: Bytes,
    /// `buffer_size_bytes`: so many are not waited with.
    limit: usize,
    /// `buffer_flush_interval`
    interval: Duration,
    /// Scope of its stats.
    stats: Box<str>,
    waiting: Mutex<Waiting>,
    /// There is enough to be sent, or nobody logs any more.
    wake: Notify,
    written: AtomicU64,
    dropped: AtomicU64,
    claimed: AtomicBool,
}

/// Entries that wait.
#[derive(Debug, Default)]
struct Waiting {
    /// In wire form, each as a field.
    encoded: Vec<u8>,
    count: u64,
}

/// Where entries go.
#[derive(Debug)]
enum Target {
    /// A stream of StreamAccessLogs; its headers, and the number of the field that the entries are.
    Stream(GrpcTarget, Headers, u32),
    /// Calls of Export, with these headers.
    Export(GrpcTarget, Headers),
    /// The same over HTTP, with these headers.
    Post(HttpTarget, Headers),
}

/// Further headers of calls.
#[derive(Debug)]
struct Headers(Vec<(Box<str>, Box<str>)>);

impl ServiceLog {
    /// Logs.
    pub(super) fn log(&self, cx: &FormatContext<'_>) {
        let encoded = match &self.what {
            What::Entry(shape) => shape.encode(cx),
            What::Record(record) => record.encode(cx),
        };
        self.sender.take(&encoded);
    }

    /// What sends its entries.
    pub(super) fn sender(&self) -> &Arc<Sender> {
        &self.sender
    }
}

impl Drop for ServiceLog {
    fn drop(&mut self) {
        // Its sender may have nothing left to do.
        self.sender.wake.notify_one();
    }
}

impl Sender {
    fn take(&self, entry: &[u8]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.encoded.len() >= self.limit + BACKLOG {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        present(entry_field(&self.target), entry, &mut waiting.encoded);
        waiting.count += 1;
        // Envoy does not count TCP sessions here.
        if !matches!(self.target, Target::Stream(_, _, TCP_LOGS)) {
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        if waiting.encoded.len() >= self.limit {
            self.wake.notify_one();
        }
    }

    fn taken(&self) -> Waiting {
        mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends what comes together, for as long as somebody logs.
    async fn run(self: Arc<Self>, worker: Weak<Worker>) {
        let Some(stats) = worker.upgrade().map(|worker| ServiceStats::kept(worker.stats(), &self.stats))
        else {
            return;
        };
        let flushed = match &self.target {
            Target::Post(..) => None,
            Target::Stream(..) | Target::Export(..) => {
                worker.upgrade().map(|worker| FlushStats::kept(worker.stats(), &self.stats))
            }
        };
        let mut stream: Option<GrpcStream> = None;
        loop {
            {
                let ended = poll_fn(|cx| match &mut stream {
                    Some(stream) => stream.poll_ended(cx),
                    None => Poll::Pending,
                });
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(self.interval) => {}
                    () = ended => stream = None,
                }
            }
            stats.logs_written().add(self.written.swap(0, Ordering::Relaxed));
            stats.logs_dropped().add(self.dropped.swap(0, Ordering::Relaxed));
            // The logs' own, and this one.
            let last = Arc::strong_count(&self) == 1;
            let Waiting { encoded, count } = self.taken();
            let Some(worker) = worker.upgrade() else { return };
            if count > 0 {
                let sent = self.send(&worker, &encoded, &mut stream).await;
                match &flushed {
                    Some(flushed) if sent == Flush::Sent => flushed.grpc_entries_flushed().add(count),
                    Some(flushed) if sent == Flush::Failed => flushed.grpc_entries_flush_failed().add(count),
                    _ => {}
                }
            }
            if last {
                if let Some(stream) = stream {
                    let _ = tokio::time::timeout(PATIENCE, stream.finish()).await;
                }
                return;
            }
        }
    }

    async fn send(&self, worker: &Rc<Worker>, entries: &[u8], stream: &mut Option<GrpcStream>) -> Flush {
        let mut message = Vec::with_capacity(self.first.len() + entries.len() + 16);
        match &self.target {
            Target::Stream(target, Headers(metadata), field) => {
                if stream.is_none() {
                    const PATH: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
                    let GrpcTarget { cluster, authority, .. } = target;
                    let opened =
                        GrpcStream::open(worker, cluster, authority.as_deref(), PATH, metadata, LOCAL).await;
                    match opened {
                        Ok(opened) => *stream = Some(opened),
                        // As in Envoy, what cannot be sent is gone.
                        Err(error) => {
                            tracing::debug!(target: "grpc", ?error, cluster = &**cluster, "no access log service");
                            return Flush::Failed;
                        }
                    }
                    message.extend_from_slice(&self.first);
                }
                present(*field, entries, &mut message);
                if let Some(open) = stream {
                    open.send(&message);
                    let sent = poll_fn(|cx| match open.poll_ended(cx) {
                        Poll::Ready(()) => Poll::Ready(false),
                        Poll::Pending => open.poll_room(cx).map(|()| true),
                    });
                    if !tokio::time::timeout(PATIENCE, sent).await.unwrap_or(false) {
                        *stream = None;
                        return Flush::Failed;
                    }
                }
                Flush::Sent
            }
            Target::Export(target, Headers(metadata)) => {
                self.put_export(entries, &mut message);
                let request = Unary {
                    service: "opentelemetry.proto.collector.logs.v1.LogsService",
                    method: "Export",
                    authority: target.authority.as_deref(),
                    metadata,
                    message: message.into(),
                    timeout: Some(target.timeout.unwrap_or(PATIENCE)),
                    local: LOCAL,
                };
                if let Err(status) = unary(worker, &target.cluster, &request).await {
                    tracing::debug!(target: "grpc", ?status, "a collector does not take log records");
                }
                Flush::Uncounted
            }
            Target::Post(target, Headers(headers)) => {
                self.put_export(entries, &mut message);
                let mut request = Call::new("POST", &target.authority, &target.path, LOCAL);
                request.head.append_known(Known::ContentType, b"application/x-protobuf");
                for (name, value) in headers {
                    request.head.append(name.as_bytes(), value.as_bytes());
                }
                request.limit(target.timeout.unwrap_or(PATIENCE));
                request.answer = Wanted::Nothing;
                request.body = vec![message.into()];
                if let Err(error) = call(worker, &target.cluster, &request).await {
                    tracing::debug!(target: "http", ?error, "a collector does not take log records");
                }
                Flush::Uncounted
            }
        }
    }

    /// ExportLogsServiceRequest: one ResourceLogs, of its resource and one ScopeLogs of the records.
    fn put_export(&self, records: &[u8], message: &mut Vec<u8>) {
        let mut logs = self.first.to_vec();
        present(2, records, &mut logs);
        present(1, &logs, message);
    }
}

/// What became of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Sent,
    Failed,
    Uncounted,
}

/// The number of the field that an entry is, in the message of all entries.
fn entry_field(target: &Target) -> u32 {
    match target {
        Target::Stream(..) => 1,
        Target::Export(..) | Target::Post(..) => 2,
    }
}

/// Entries are sent beside requests.
impl Background for Sender {
    fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::Relaxed)
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn start(self: Arc<Self>, worker: &Rc<Worker>, _: &str, ready: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_local(self.run(Rc::downgrade(worker)));
        ready();
    }
}
