//! `istio.stats` of TCP: counts sessions and their bytes by who talks to whom (`telemetry::istio`).
//!
//! A session is counted as opened when it is known who its peer is, or when it ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::stats as proto;
use prost_types::Any;

use super::{NetworkFilter, NetworkFilterConfig};
use crate::config::lower::Lower;
use crate::http::filters::Background;
use crate::matching::facts::LogFacts;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::istio::{Seen, Series, Settings, Spoken, config, knows_peer};
use crate::telemetry::stream_info::StreamInfo;
use crate::worker::Worker;

/// PluginConfig.
#[derive(Debug)]
struct IstioStats(Arc<Settings>);

impl NetworkFilterConfig for IstioStats {
    fn open(&self, worker: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        let (settings, worker) = (Arc::clone(&self.0), Rc::clone(worker));
        Some(Box::new(Counting { settings, worker, series: None, counted: [0; 2] }))
    }

    fn counts_sessions(&self) -> bool {
        true
    }

    fn background(&self) -> Vec<Arc<dyn Background>> {
        vec![self.0.background()]
    }
}

/// The filter at work on one session.
struct Counting {
    settings: Arc<Settings>,
    worker: Rc<Worker>,
    /// Where it is counted, since it is known where.
    series: Option<Rc<Series>>,
    /// Bytes counted so far: sent to the client, received of it.
    counted: [u64; 2],
}

impl NetworkFilter for Counting {
    fn report_interval(&self) -> Option<Duration> {
        self.settings.interval
    }

    fn on_report(&mut self, info: &StreamInfo, end: bool) {
        let facts = LogFacts { context: FormatContext::new(info), node: None };
        let seen = || Seen::new(&self.settings, info, None, Spoken::Tcp, None);
        let series = match &self.series {
            Some(series) if !series.is_retired() => Rc::clone(series),
            // It was quiet for long: what was counted is not shown any more.
            Some(_) => self.settings.session(&self.worker, &seen(), facts),
            None if end || knows_peer(self.settings.side, info) => {
                self.settings.open_session(&self.worker, &seen(), facts)
            }
            None => return,
        };
        let series = &*self.series.insert(series);
        let (received, sent) = info.wire_bytes();
        let [sent_before, received_before] = self.counted;
        let new = [sent.saturating_sub(sent_before), received.saturating_sub(received_before)];
        self.settings.session_bytes(series, new[0], new[1]);
        self.counted = [sent, received];
        if end {
            self.settings.close_session(series, facts);
        }
    }
}

/// Lowers PluginConfig.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto: proto::PluginConfig = at.unpack(any)?;
    Some(Arc::new(IstioStats(config::lower(proto, at)?)))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::{Instant, SystemTime};

    use super::{Counting, NetworkFilter, config, proto};
    use crate::config::lower::Lower;
    use crate::listener::accept::GlobalConnections;
    use crate::telemetry::scrape::{Sample, scrape};
    use crate::telemetry::stats::StatsStore;
    use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo};
    use crate::telemetry::workload::{NO_PEER, Workload};
    use crate::worker::Worker;

    #[test]
    fn a_session_that_was_quiet_is_counted_on() {
        let settings = Lower::resource(|at| config::lower(proto::PluginConfig::default(), at));
        let store = StatsStore::default();
        let worker = Rc::new(Worker::new(store.thread(), GlobalConnections::new(None)));
        let settings = settings.expect("a configuration");
        let mut session = Counting { settings, worker: Rc::clone(&worker), series: None, counted: [0; 2] };
        let (remote, local) = ("10.0.0.9:5".parse(), "10.0.0.1:80".parse());
        let connection =
            ConnectionInfo::plain(1, remote.expect("an address"), local.expect("an address"), Instant::now());
        let mut info = StreamInfo::new(Rc::new(connection), None, Instant::now(), SystemTime::now());
        // What was not counted yet is not shown.
        let shown = || {
            let count = |name: &str| match scrape(&store, |known| known.contains(name)).as_slice() {
                [] => None,
                [one] => match one.value {
                    Sample::Counter(count) => Some(count),
                    _ => None,
                },
                more => panic!("{more:?}"),
            };
            ["tcp_connections_opened", "tcp_connections_closed", "tcp_sent_bytes"].map(count)
        };
        info.bytes_sent = 10;
        session.on_report(&info, false);
        assert_eq!(shown(), [None; 3], "not before it is known who the peer is");
        info.upstream.filter_state.insert(NO_PEER, Workload::default().into_state());
        session.on_report(&info, false);
        assert_eq!(shown(), [Some(1), None, Some(10)]);
        // Nothing happens for long: what was counted is given up.
        let before = worker.stats().activity();
        worker.stats().retire_idle(&before);
        worker.istio().clean_up();
        assert_eq!(shown(), [None; 3]);
        info.bytes_sent = 15;
        session.on_report(&info, false);
        assert_eq!(shown(), [None, None, Some(5)], "it is not opened again");
        session.on_report(&info, true);
        assert_eq!(shown(), [None, Some(1), Some(5)]);
    }
}
