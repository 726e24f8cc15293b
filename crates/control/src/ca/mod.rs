//! The mesh's certificate authority: who workloads are, signed.
//!
//! - `settings.rs`: Istio's environment variables;
//! - `vault.rs`: where an authority of our own is kept: a Secret, a file, or memory;
//! - `rotation.rs`: when its root is followed by another, so that at every moment everybody trusts what
//!   everybody shows (decides only, and knows no I/O);
//! - `keeper.rs`: the task that reads, makes and rotates it, or follows files that somebody else makes;
//! - `others.rs`: roots of other meshes, to be trusted beside our own;
//! - `service.rs`: Istio's certificate service, which signs for whoever has proven who he is;
//! - `ra.rs`: the signers of Kubernetes that sign in our place, and whom they are trusted for;
//!   `signer.rs`: how one of them is asked;
//! - `node.rs`: which workloads a proxy of a whole node may ask for;
//! - `serving.rs`: the control plane's own certificate, for the port with TLS;
//! - `expiry.rs`: what is said before something runs out;
//! - `publish.rs`: the roots as a ConfigMap in every namespace, and revocations beside them.
//!
//! START HERE: [`Ca`], what they share. Signing itself is in `leno_tls::issue`.

mod expiry;
mod keeper;
pub(crate) mod node;
mod others;
mod publish;
mod ra;
mod rotation;
mod service;
mod serving;
mod settings;
mod signer;
mod vault;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use leno_base::clock::{Clock, System};
use leno_tls::issue::{self, Validity};
use tokio::sync::watch;

pub(crate) use self::keeper::{follow, keep, plugged};
pub(crate) use self::publish::{Namespaces, spawn as spawn_publisher};
use self::ra::Ra;
pub(crate) use self::ra::follow_signers;
pub(crate) use self::service::Service;
pub(crate) use self::serving::OwnServer;
use self::serving::Shown;
pub use self::settings::{CaSettings, CertProvider, External as ExternalSigners};
use crate::model::duration::seconds;
use crate::source::kube::Cluster;

/// How long before it was signed a certificate is valid: clocks differ.
pub(crate) const CLOCK_SKEW: i64 = 120;

/// The authority as it is at the moment, and what it has done.
#[derive(Debug)]
pub(crate) struct Ca {
    settings: CaSettings,
    state: watch::Sender<State>,
    /// Who signs for workloads in its place.
    ra: Option<Ra>,
    counts: Counts,
}

/// What changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Another with each change.
    version: u64,
    /// What signs; `None` as long as it has not been read, or there is none.
    authority: Option<Arc<issue::Authority>>,
    /// The roots of all signers, in PEM, by the file that is for them; `None`: each has its own.
    signers_root: Option<Arc<str>>,
    /// The roots of the MeshConfig, in PEM, by the signers they are for.
    by_signer: Arc<BTreeMap<String, String>>,
    /// What the control plane shows, if a signer has signed it.
    own: Option<Arc<Shown>>,
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
    ///
    /// # Errors
    /// If signers of a cluster are to sign and there is none, or the file with their root is not good.
    pub(crate) fn new(settings: CaSettings, cluster: Option<Cluster>) -> Result<Arc<Ca>, String> {
        let ra = settings.external.clone().map(|external| Ra::new(external, cluster)).transpose()?;
        let mut state = State::default();
        if let Some(ra) = &ra {
            state.signers_root = ra.read_roots()?;
        }
        Ok(Arc::new(Ca { settings, state: watch::Sender::new(state), ra, counts: Counts::default() }))
    }

    /// The authority; `None` as long as it has not been read, or if there is none.
    pub(crate) fn authority(&self) -> Option<Arc<issue::Authority>> {
        self.state.borrow().authority.clone()
    }

    /// Whether certificates can be signed, and connections accepted.
    pub(crate) fn is_ready(&self) -> bool {
        let state = self.state.borrow();
        match self.settings.provider {
            CertProvider::Signer(_) => state.own.is_some(),
            _ => state.authority.is_some(),
        }
    }

    /// By which roots the control plane is known, and, if it signs by itself, workloads: in PEM. `None`: they are
    /// not known yet, or nobody is to be told.
    pub(crate) fn published_roots(&self) -> Option<String> {
        let state = self.state.borrow();
        match &self.settings.provider {
            CertProvider::Signer(signer) => state.by_signer.get(signer).cloned(),
            CertProvider::Istiod | CertProvider::Custom => Some(state.authority.as_ref()?.roots_pem()),
            CertProvider::None => None,
        }
    }

    /// By which roots workloads are known, in PEM.
    pub(crate) fn workload_roots(&self) -> String {
        let state = self.state.borrow();
        let mut roots = state.authority.as_ref().map(|authority| authority.roots_pem()).unwrap_or_default();
        let signers = state.by_signer.values().map(String::as_str);
        signers.chain(state.signers_root.as_deref()).for_each(|more| roots.push_str(more));
        roots
    }

    /// Where TLS is served with a certificate of our own.
    pub(crate) fn address(&self) -> Option<std::net::SocketAddr> {
        self.settings.address
    }

    /// Whether the control plane has a certificate of its own by this.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.settings.provider, CertProvider::Istiod | CertProvider::Signer(_))
    }

    /// Whether signers sign everything, so that there is no authority of our own.
    pub(crate) fn is_external_only(&self) -> bool {
        self.settings.is_external_only()
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
        self.change(|state| state.authority = Some(Arc::new(authority)));
    }

    /// From now on these are the roots of the MeshConfig, in PEM, with the signers that they are for.
    pub(crate) fn set_signers<'r>(&self, roots: impl IntoIterator<Item = (&'r str, &'r [String])>) {
        if self.ra.is_none() {
            return;
        }
        let mut by_signer: BTreeMap<String, String> = BTreeMap::new();
        for (pem, signers) in roots {
            // What cannot be read was reported with the MeshConfig.
            let Ok(bundle) = leno_tls::TrustBundle::parse(pem.as_bytes()) else { continue };
            let pem = issue::certificates_to_pem(bundle.certificates().iter().map(|root| root.der()));
            signers.iter().for_each(|signer| by_signer.entry(signer.clone()).or_default().push_str(&pem));
        }
        if *self.state.borrow().by_signer != by_signer {
            self.change(|state| state.by_signer = Arc::new(by_signer));
        }
    }

    /// Tells of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    fn change(&self, edit: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            edit(state);
            state.version += 1;
        });
    }

    /// From when until when a certificate is valid that is signed now.
    fn validity(&self, now: i64, seconds: i64) -> Validity {
        Validity { not_before: now.saturating_sub(CLOCK_SKEW), not_after: now.saturating_add(seconds) }
    }

    /// What there is to be told, for the page of metrics.
    pub(crate) fn seen(&self) -> CaSeen {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let ends = expiry::Ends::of(self);
        let signing = self.counts.signing_errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        CaSeen {
            requests: load(&self.counts.requests),
            authentication_failures: load(&self.counts.authentication_failures),
            parsing_errors: load(&self.counts.parsing_errors),
            issued: load(&self.counts.issued),
            signing_errors: signing,
            root_expires: ends.root.map(|(_, to)| to),
            chain_expires: ends.chain.map(|(_, to)| to),
            revocations_expire: ends.revocations.map(|(_, to)| to),
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
    /// When the first revocation list is too old to be believed, if there is any.
    pub(crate) revocations_expire: Option<i64>,
    pub(crate) now: i64,
}

/// Seconds since the epoch.
fn now() -> i64 {
    seconds(System.wall())
}
