//! `stats_sinks`: what is counted is told to others, every `stats_flush_interval` or when somebody
//! looks at the stats (`stats_flush_on_admin`).
//!
//! The main thread looks at all stats, once for all sinks, and makes what each of them is told.
//! Datagrams it sends itself; all else is sent by a worker, as clusters are theirs ([`Courier`]).
//! What a slow or absent sink does not take is lost, and nobody waits for it.
//! Reading order: this file, `snapshot` (what is new), then the sinks.

mod metrics_service;
mod open_telemetry;
mod snapshot;
mod statsd;
#[cfg(test)]
mod tests;

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leno_api::proto::envoy::config::bootstrap::v3::bootstrap::{StatsEviction, StatsFlush};
use leno_api::proto::envoy::config::metrics::v3 as proto;
use leno_api::proto::envoy::extensions::stat_sinks::graphite_statsd::v3::GraphiteStatsdSink;
use leno_api::proto::envoy::extensions::stat_sinks::open_telemetry::v3::SinkConfig;
use tokio::sync::{Notify, mpsc};

use self::metrics_service::MetricsService;
use self::open_telemetry::OpenTelemetry;
use self::snapshot::{Snapshot, Told};
use self::statsd::{Datagrams, TcpStatsd};
use crate::config::lower::Lower;
use crate::http::filters::Background;
use crate::telemetry::scrape::scrape;
use crate::telemetry::server_stats::Sampled;
use crate::telemetry::stats::{StatsStore, ThreadStats};
use crate::telemetry::tags::StatsConfig;
use crate::worker::Worker;

/// `stats_flush_interval` where there is none.
const INTERVAL: Duration = Duration::from_secs(5);
/// Messages that wait for a courier; further ones are lost.
const WAITING: usize = 64;

/// Who is told of stats, and when; and which of them are given up.
#[derive(Debug)]
pub(crate) struct Sinks {
    when: When,
    /// `stats_eviction_interval`, in flushes.
    eviction: Option<u32>,
    sinks: Vec<Sink>,
    /// Which stats there are (`stats_config.stats_matcher`), and their labels.
    shown: StatsConfig,
}

/// When sinks are told.
#[derive(Debug)]
enum When {
    Every(Duration),
    /// When this is notified.
    Asked(Arc<Notify>),
}

/// One sink.
#[derive(Debug)]
enum Sink {
    /// statsd servers of any kind over UDP.
    Datagrams(Datagrams),
    Tcp(TcpStatsd),
    Metrics(MetricsService),
    OpenTelemetry(OpenTelemetry),
}

/// Fields of the bootstrap that are lowered together.
#[derive(Debug, Default)]
pub(crate) struct Proto {
    /// `stats_sinks`
    pub(crate) sinks: Vec<proto::StatsSink>,
    /// `stats_flush_interval`
    pub(crate) interval: Option<prost_types::Duration>,
    /// `stats_flush`
    pub(crate) flush: Option<StatsFlush>,
    /// `stats_eviction`
    pub(crate) eviction: Option<StatsEviction>,
}

impl Sinks {
    /// Lowers what the bootstrap says of flushing; none if there is nothing to be done.
    pub(crate) fn lower(proto: Proto, shown: &StatsConfig, at: &mut Lower) -> Option<Self> {
        let Proto { sinks, interval, flush, eviction } = proto;
        let given = at.duration("stats_flush_interval", interval);
        let interval = given.unwrap_or(INTERVAL);
        let when = match flush {
            Some(StatsFlush::StatsFlushOnAdmin(_)) => {
                if given.is_some() {
                    at.error("Only one of stats_flush_interval or stats_flush_on_admin should be set!");
                }
                When::Asked(Arc::default())
            }
            None => When::Every(interval),
        };
        let eviction = eviction.and_then(|StatsEviction::StatsEvictionInterval(eviction)| {
            let eviction = at.duration("stats_eviction_interval", Some(eviction))?;
            let (eviction, interval) = (eviction.as_millis(), interval.as_millis().max(1));
            if !eviction.is_multiple_of(interval) {
                at.error("stats_eviction_interval must be a multiple of stats_flush_interval");
                return None;
            }
            u32::try_from(eviction / interval).ok().filter(|flushes| *flushes > 0)
        });
        let sinks = at.each("stats_sinks", sinks, Sink::lower);
        (!sinks.is_empty() || eviction.is_some()).then(|| Self {
            when,
            eviction,
            sinks,
            shown: shown.clone(),
        })
    }

    /// What is to be notified when somebody looks at stats, if the sinks are told then.
    pub(crate) fn asked(&self) -> Option<Arc<Notify>> {
        match &self.when {
            When::Every(_) => None,
            When::Asked(asked) => Some(Arc::clone(asked)),
        }
    }

    /// Tells them until the runtime ends. Gives what has to go on on a worker, and what is to be told
    /// at the end.
    pub(crate) fn start(
        self,
        stats: Arc<StatsStore>,
        thread: Arc<ThreadStats>,
        sampled: Arc<Sampled>,
    ) -> (Vec<Arc<dyn Background>>, Option<LastFlush>) {
        let Sinks { when, eviction, sinks, shown } = self;
        let mut couriers: Vec<Arc<dyn Background>> = Vec::new();
        let sinks: Vec<Ready> = sinks.into_iter().filter_map(|sink| sink.open(&mut couriers)).collect();
        let teller = Teller { sinks, told: Told::default(), shown, stats, sampled };
        let teller = Arc::new(Mutex::new(teller));
        let last = matches!(when, When::Every(_)).then(|| LastFlush(Arc::clone(&teller)));
        let mut flushes = 0;
        // What was counted before the first time was counted lately.
        let mut active = None;
        let mut ticks = match &when {
            When::Every(interval) => {
                Some(tokio::time::interval_at(tokio::time::Instant::now() + *interval, *interval))
            }
            When::Asked(_) => None,
        };
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        tokio::spawn(async move {
            loop {
                match (&mut ticks, &when) {
                    (Some(ticks), _) => drop(ticks.tick().await),
                    (None, When::Asked(asked)) => asked.notified().await,
                    (None, When::Every(_)) => return,
                }
                teller.lock().unwrap_or_else(PoisonError::into_inner).flush();
                flushes += 1;
                if eviction.is_some_and(|eviction| flushes % eviction == 0) {
                    if let Some(before) = &active {
                        thread.retire_idle(before);
                    }
                    active = Some(thread.activity());
                }
            }
        });
        (couriers, last)
    }
}

/// What is told at the end of the proxy if sinks are told every now and then: what has been counted since.
pub(crate) struct LastFlush(Arc<Mutex<Teller>>);

impl LastFlush {
    /// Tells it, when the workers have ended. Only datagrams arrive: who brings others has ended with them.
    pub(crate) fn flush(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}

/// Those who are told, and what they know.
struct Teller {
    sinks: Vec<Ready>,
    told: Told,
    shown: StatsConfig,
    stats: Arc<StatsStore>,
    sampled: Arc<Sampled>,
}

impl Teller {
    fn flush(&mut self) {
        if self.sinks.is_empty() {
            return;
        }
        self.sampled.sample(&self.stats);
        let scraped = scrape(&self.stats, |name| self.shown.shows(name));
        let snapshot = self.told.snapshot(scraped, &self.shown);
        self.sinks.iter().for_each(|sink| sink.tell(&snapshot));
    }
}

impl Sink {
    fn lower(sink: proto::StatsSink, at: &mut Lower) -> Option<Self> {
        let proto::StatsSink { name, config_type } = sink;
        let Some(proto::stats_sink::ConfigType::TypedConfig(any)) = config_type else {
            at.error_at("typed_config", "value is required");
            return None;
        };
        at.field("typed_config", |at| {
            let any = at.extension(any)?;
            use leno_api::any::is;
            if is::<proto::StatsdSink>(&any) {
                statsd::lower(at.unpack(&any)?, at)
            } else if is::<proto::DogStatsdSink>(&any) {
                statsd::lower_dog(at.unpack(&any)?, at).map(Sink::Datagrams)
            } else if is::<GraphiteStatsdSink>(&any) {
                statsd::lower_graphite(at.unpack(&any)?, at).map(Sink::Datagrams)
            } else if is::<proto::MetricsServiceConfig>(&any) {
                MetricsService::lower(at.unpack(&any)?, at).map(Sink::Metrics)
            } else if is::<SinkConfig>(&any) {
                OpenTelemetry::lower(at.unpack(&any)?, at).map(Sink::OpenTelemetry)
            } else {
                at.unsupported_extension(&name, &any.type_url);
                None
            }
        })
    }

    /// Makes it ready; none if the system refuses that, which is said.
    fn open(self, couriers: &mut Vec<Arc<dyn Background>>) -> Option<Ready> {
        let mut courier = |task| {
            let (send, receive) = mpsc::channel(WAITING);
            couriers.push(Arc::new(Courier(Mutex::new(Some((task, receive))), AtomicBool::new(false))));
            send
        };
        match self {
            Sink::Datagrams(datagrams) => {
                let socket = datagrams.connect()?;
                Some(Ready::Datagrams(datagrams, socket))
            }
            Sink::Tcp(sink) => {
                let sink = Arc::new(sink);
                Some(Ready::Tcp(Arc::clone(&sink), courier(Task::Tcp(sink))))
            }
            Sink::Metrics(sink) => {
                let sink = Arc::new(sink);
                Some(Ready::Metrics(Arc::clone(&sink), courier(Task::Metrics(sink))))
            }
            Sink::OpenTelemetry(sink) => {
                let sink = Arc::new(sink);
                Some(Ready::OpenTelemetry(Arc::clone(&sink), courier(Task::OpenTelemetry(sink))))
            }
        }
    }
}

/// A message for a sink, encoded.
type Message = Vec<u8>;

/// A sink that can be told.
enum Ready {
    Datagrams(Datagrams, std::net::UdpSocket),
    Tcp(Arc<TcpStatsd>, mpsc::Sender<Message>),
    Metrics(Arc<MetricsService>, mpsc::Sender<Message>),
    OpenTelemetry(Arc<OpenTelemetry>, mpsc::Sender<Message>),
}

impl Ready {
    fn tell(&self, snapshot: &Snapshot) {
        let (messages, courier) = match self {
            Ready::Datagrams(datagrams, socket) => {
                for datagram in datagrams.datagrams(snapshot) {
                    // As with any datagram: nobody need be there.
                    let _ = socket.send(datagram.as_bytes());
                }
                return;
            }
            Ready::Tcp(sink, courier) => (vec![sink.lines(snapshot).into_bytes()], courier),
            Ready::Metrics(sink, courier) => (sink.messages(snapshot), courier),
            Ready::OpenTelemetry(sink, courier) => (sink.messages(snapshot), courier),
        };
        for message in messages.into_iter().filter(|message| !message.is_empty()) {
            if courier.try_send(message).is_err() {
                tracing::debug!(target: "stats_sinks", "a sink is too slow: what it is not told is lost");
            }
        }
    }
}

/// What brings messages to a sink.
enum Task {
    Tcp(Arc<TcpStatsd>),
    Metrics(Arc<MetricsService>),
    OpenTelemetry(Arc<OpenTelemetry>),
}

/// Brings messages to a sink, on a worker.
struct Courier(Mutex<Option<(Task, mpsc::Receiver<Message>)>>, AtomicBool);

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}

impl Background for Courier {
    fn claim(&self) -> bool {
        !self.1.swap(true, Ordering::Relaxed)
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn start(self: Arc<Self>, worker: &Rc<Worker>, _: &str, ready: Box<dyn FnOnce() + Send>) {
        ready();
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((task, messages)) = task else { return };
        let worker = Rc::downgrade(worker);
        tokio::task::spawn_local(async move {
            match task {
                Task::Tcp(sink) => sink.run(messages, worker).await,
                Task::Metrics(sink) => sink.run(messages, worker).await,
                Task::OpenTelemetry(sink) => sink.run(messages, worker).await,
            }
        });
    }
}
