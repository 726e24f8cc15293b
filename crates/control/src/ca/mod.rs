//! The mesh's certificate authority: who workloads are, signed.
//!
//! - `settings.rs`: Istio's environment variables;
//! - `vault.rs`: where an authority of our own is kept: a Secret, a file, or memory;
//! - `rotation.rs`: when its root is followed by another, so that at every moment everybody trusts what
//!   everybody shows (decides only, and knows no I/O);
//! - `keeper.rs`: the task that reads, makes and rotates it, or follows files that somebody else makes;
//! - `others.rs`: roots of other meshes, to be trusted beside our own;
//! - `service.rs`: Istio's certificate service, which signs for whoever has proven who he is;
//! - `node.rs`: which workloads a proxy of a whole node may ask for;
//! - `serving.rs`: the control plane's own certificate, for the port with TLS;
//! - `publish.rs`: the roots as a ConfigMap in every namespace, and revocations beside them.
//!
//! START HERE: [`Ca`], what they share. Signing itself is in `leno_tls::issue`.

mod keeper;
pub(crate) mod node;
mod others;
mod publish;
mod rotation;
mod service;
mod serving;
mod settings;
mod vault;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use leno_base::clock::{Clock, System};
use leno_tls::issue::{self, Validity};
use tokio::sync::watch;

pub(crate) use self::keeper::{follow, keep, plugged};
pub(crate) use self::publish::{Namespaces, spawn as spawn_publisher};
pub(crate) use self::service::Service;
pub(crate) use self::serving::OwnServer;
pub use self::settings::CaSettings;
use crate::model::duration::seconds;

/// How long before it was signed a certificate is valid: clocks differ.
pub(crate) const CLOCK_SKEW: i64 = 120;

/// The authority as it is at the moment, and what it has done.
#[derive(Debug)]
pub(crate) struct Ca {
    settings: CaSettings,
    current: watch::Sender<Option<Arc<issue::Authority>>>,
    counts: Counts,
}

/// What has happened since the start.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    authentication_failures: AtomicU64,
    parsing_errors: AtomicU64,
    issued: AtomicU64,
    /// By istiod's names of what went wrong.
    signing_errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Ca {
    /// One that is not ready yet.
    pub(crate) fn new(settings: CaSettings) -> Arc<Ca> {
        Arc::new(Ca { settings, current: watch::Sender::new(None), counts: Counts::default() })
    }

    /// The authority; `None` as long as it has not been read.
    pub(crate) fn authority(&self) -> Option<Arc<issue::Authority>> {
        self.current.borrow().clone()
    }

    /// Where TLS is served with a certificate of our own.
    pub(crate) fn address(&self) -> Option<std::net::SocketAddr> {
        self.settings.address
    }

    /// The service accounts of proxies that may ask for the workloads of their node.
    pub(crate) fn node_accounts(&self) -> &[String] {
        &self.settings.node_accounts
    }

    /// From now on this one signs.
    pub(crate) fn install(&self, authority: issue::Authority) {
        let (serial, last) = (authority.certificate().serial(), authority.not_after());
        let roots = authority.roots().len();
        tracing::info!(serial, expires = last, roots, "the certificate authority is ready");
        self.current.send_replace(Some(Arc::new(authority)));
    }

    /// From when until when a certificate is valid that is signed now.
    fn validity(&self, now: i64, seconds: i64) -> Validity {
        Validity { not_before: now.saturating_sub(CLOCK_SKEW), not_after: now.saturating_add(seconds) }
    }

    /// What there is to be told, for the page of metrics.
    pub(crate) fn seen(&self) -> CaSeen {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let authority = self.authority();
        let signing = self.counts.signing_errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        CaSeen {
            requests: load(&self.counts.requests),
            authentication_failures: load(&self.counts.authentication_failures),
            parsing_errors: load(&self.counts.parsing_errors),
            issued: load(&self.counts.issued),
            signing_errors: signing,
            root_expires: authority.as_ref().and_then(|it| Some(it.roots().first()?.validity().1)),
            chain_expires: authority.filter(|it| !it.chain().is_empty()).map(|it| it.not_after()),
            now: now(),
        }
    }
}

/// The authority in numbers. Times are seconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct CaSeen {
    /// Requests for certificates.
    pub(crate) requests: u64,
    /// Requests of nobody who is known.
    pub(crate) authentication_failures: u64,
    /// Requests that cannot be read.
    pub(crate) parsing_errors: u64,
    /// Certificates signed.
    pub(crate) issued: u64,
    /// Requests that were not granted, by istiod's names of why.
    pub(crate) signing_errors: BTreeMap<&'static str, u64>,
    /// When the first root expires.
    pub(crate) root_expires: Option<i64>,
    /// When the first certificate below the root expires, if there is any.
    pub(crate) chain_expires: Option<i64>,
    pub(crate) now: i64,
}

/// Seconds since the epoch.
fn now() -> i64 {
    seconds(System.wall())
}
