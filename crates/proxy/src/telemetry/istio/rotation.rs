//! What goes on beside requests: `istio_build` is shown, and label sets that nothing was counted
//! with for long are given up (`rotation_interval`). One task does it for all settings that ask for
//! the same.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::NAMESPACE;
use crate::config::lower::Lower;
use crate::http::filters::Background;
use crate::telemetry::stats::{Kind, Labels};
use crate::worker::Worker;

/// See the module.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// `ISTIO_VERSION` of the node.
    version: Box<str>,
    /// `rotation_interval` and `graceful_deletion_interval`.
    times: Option<(Duration, Duration)>,
    /// Somebody does it.
    claimed: AtomicBool,
}

impl Rotation {
    /// The one of this proxy with this version and these times.
    pub(super) fn shared(version: &str, times: Option<(Duration, Duration)>, at: &Lower) -> Arc<Self> {
        let key = format!("{version} {times:?}");
        let all = &at.scope().shared;
        all.find(0, key.as_bytes()).unwrap_or_else(|| {
            let new = Arc::new(Rotation { version: version.into(), times, claimed: AtomicBool::new(false) });
            all.add(0, key.as_bytes(), &new);
            new
        })
    }
}

impl Background for Rotation {
    fn claim(&self) -> bool {
        // Nearly always somebody has: looking takes no lock.
        !self.claimed.load(Ordering::Relaxed) && !self.claimed.swap(true, Ordering::Relaxed)
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn start(self: Arc<Self>, worker: &Rc<Worker>, _: &str, ready: Box<dyn FnOnce() + Send>) {
        let version = if self.version.is_empty() { "unknown" } else { &*self.version };
        let pairs = vec![("component".into(), "proxy".into()), ("tag".into(), version.into())];
        let labels = Labels { name: format!("{NAMESPACE}istio_build").into(), pairs };
        worker.stats().labelled(Kind::Gauge, labels).cell(0).set(1);
        ready();
        let Some((interval, grace)) = self.times else { return };
        let (rotation, stats) = (Arc::downgrade(&self), worker.shared_stats());
        tokio::task::spawn_local(async move {
            while rotation.strong_count() > 0 {
                tokio::time::sleep(interval).await;
                let before = stats.activity();
                tokio::time::sleep(grace).await;
                stats.retire_idle(&before);
            }
        });
    }
}
