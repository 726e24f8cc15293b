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

use std::mem;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use self::entry::Shape;
use self::otel::Record;
use crate::http::client::stream::{LastingStream, Service};
use crate::http::filters::Background;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::collector::{Collector, PATIENCE};
use crate::telemetry::stats::stats_scope;
use crate::telemetry::trace::wire::present;
use crate::worker::Worker;

/// Bytes that wait beyond `buffer_size_bytes` while a service does not take them.
const BACKLOG: usize = 1 << 20;
/// Fields of StreamAccessLogsMessage.
const HTTP_LOGS: u32 = 2;
const TCP_LOGS: u32 = 3;

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
    /// A stream of StreamAccessLogs, and the number of the field that the entries are.
    Stream(Service, u32),
    /// Calls of Export.
    Export(Collector),
}

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
        if !matches!(self.target, Target::Stream(_, TCP_LOGS)) {
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
        let counts = match &self.target {
            Target::Stream(..) => true,
            Target::Export(collector) => collector.is_grpc(),
        };
        let flushed = worker.upgrade().filter(|_| counts);
        let flushed = flushed.map(|worker| FlushStats::kept(worker.stats(), &self.stats));
        let mut stream = match &self.target {
            Target::Stream(service, _) => Some(LastingStream::new(service)),
            Target::Export(_) => None,
        };
        loop {
            {
                let ended = async {
                    match &mut stream {
                        Some(stream) => stream.ended().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(self.interval) => {}
                    () = ended => {}
                }
            }
            stats.logs_written().add(self.written.swap(0, Ordering::Relaxed));
            stats.logs_dropped().add(self.dropped.swap(0, Ordering::Relaxed));
            // The logs' own, and this one.
            let last = Arc::strong_count(&self) == 1;
            let Waiting { encoded, count } = self.taken();
            let Some(worker) = worker.upgrade() else { return };
            if count > 0 {
                match (&self.target, &mut stream) {
                    (Target::Stream(_, field), Some(stream)) => {
                        let mut message = Vec::with_capacity(encoded.len() + 16);
                        present(*field, &encoded, &mut message);
                        let sent = stream.send(&worker, &self.first, &message).await;
                        match &flushed {
                            Some(flushed) if sent => flushed.grpc_entries_flushed().add(count),
                            Some(flushed) => flushed.grpc_entries_flush_failed().add(count),
                            None => {}
                        }
                    }
                    (Target::Export(collector), _) => {
                        const SERVICE: &str = "opentelemetry.proto.collector.logs.v1.LogsService";
                        collector.export(&worker, SERVICE, self.export(&encoded)).await;
                    }
                    (Target::Stream(..), None) => {}
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

    /// ExportLogsServiceRequest: one ResourceLogs, of its resource and one ScopeLogs of the records.
    fn export(&self, records: &[u8]) -> Vec<u8> {
        let mut logs = self.first.to_vec();
        present(2, records, &mut logs);
        let mut message = Vec::with_capacity(logs.len() + 16);
        present(1, &logs, &mut message);
        message
    }
}

/// The number of the field that an entry is, in the message of all entries.
fn entry_field(target: &Target) -> u32 {
    match target {
        Target::Stream(..) => 1,
        Target::Export(_) => 2,
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
