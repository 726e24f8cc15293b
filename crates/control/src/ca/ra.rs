//! The registration authority: signers of Kubernetes sign for workloads in our place
//! (`EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API`).
//!
//! They sign what a request asks for, on our word. So nothing but the caller's proven identity may be in it, and
//! what they answer is believed only if it is that, for the caller's key, by the root that is trusted for them:
//! that of the file for all of them, that of the MeshConfig for this one, or the one at the end of what it answers.
//! Who asks much takes nothing from others: there is room for so many of one identity.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leno_tls::issue::{
    CertificateRequest, KeyPair, KeyType, SpiffeId, Wanted, certificates, certificates_to_pem, request_for,
};
use leno_tls::{AltName, Certificate, TrustBundle};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::Code;

use super::expiry::{Ends, Warnings};
use super::keeper::{Complaint, LOOK};
use super::service::Refused;
use super::serving::{Shown, name};
use super::settings::{CertProvider, External};
use super::signer::{self, Order};
use super::{Ca, State, now};
use crate::model::check::is_subdomain;
use crate::source::kube::Cluster;

/// How many requests wait for signers at a time.
const MOST: usize = 128;

/// How many of them are one identity's.
const MOST_OF_ONE: usize = 32;

/// How long to wait until the control plane's own certificate is asked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// What Istio wants certificates of workloads for.
const FOR_WORKLOADS: &[&str] = &["digital signature", "key encipherment", "server auth", "client auth"];

/// And that of the control plane.
const FOR_SERVERS: &[&str] = &["digital signature", "key encipherment", "server auth"];

/// Has signers sign.
pub(super) struct Ra {
    settings: External,
    cluster: Cluster,
    room: Arc<Semaphore>,
    /// How many requests of an identity wait.
    waiting: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl fmt::Debug for Ra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ra").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a workload asks for.
pub(super) struct Asked<'a> {
    pub(super) request: &'a CertificateRequest,
    /// Who he has proven to be.
    pub(super) identity: &'a SpiffeId,
    /// For how many seconds.
    pub(super) lifetime: i64,
    /// Which signer he wants.
    pub(super) signer: Option<&'a str>,
}

impl Ra {
    /// # Errors
    /// If there is no cluster.
    pub(super) fn new(settings: External, cluster: Option<Cluster>) -> Result<Ra, String> {
        let cluster = cluster.ok_or("EXTERNAL_CA: the signers are those of a cluster, and there is none")?;
        Ok(Ra { settings, cluster, room: Arc::new(Semaphore::new(MOST)), waiting: Arc::default() })
    }

    /// How long a request may take.
    pub(super) fn patience(&self) -> Duration {
        // For room, and for the signer.
        2 * self.settings.patience
    }

    /// The roots of all signers, in PEM, if there is a file with them.
    ///
    /// # Errors
    /// If it is not good, or there must be one.
    pub(super) fn read_roots(&self) -> Result<Option<Arc<str>>, String> {
        let External { roots, cluster_roots, domain, .. } = &self.settings;
        if roots.exists() {
            return read_roots(roots).map(Some);
        }
        // As istiod: with a domain each signer has its own.
        if domain.is_empty() { read_roots(cluster_roots).map(Some) } else { Ok(None) }
    }

    /// The signer that is to be asked.
    fn signer_of(&self, wanted: Option<&str>) -> Result<String, Refused> {
        let refused = |code, words: String| Refused { label: "CERT_GEN_ERROR", code, words };
        let External { signer, domain, .. } = &self.settings;
        match wanted {
            None if signer.is_empty() => {
                Err(refused(Code::Internal, "no signer is named, and there is none by default".to_owned()))
            }
            None => Ok(signer.clone()),
            Some(wanted) if domain.is_empty() => {
                Err(refused(Code::Internal, format!("certSignerDomain is required for signer {wanted}")))
            }
            Some(wanted) if is_subdomain(wanted) => Ok(format!("{domain}/{wanted}")),
            Some(wanted) => {
                let words = format!("{wanted:?} cannot be the name of a signer");
                Err(Refused { label: "CSR_ERROR", code: Code::InvalidArgument, words })
            }
        }
    }

    /// Has a certificate signed. The answer: it, those between it and the root, and the roots.
    pub(super) async fn sign(&self, state: &State, asked: &Asked<'_>) -> Result<Vec<String>, Refused> {
        let refused = |label, code, words: String| Refused { label, code, words };
        // Deviation: istiod passes on requests without a name, too.
        asked.request.asks_only_for(asked.identity).map_err(|why| {
            let words = format!("unable to validate SAN Identities in CSR: {why}");
            refused("CSR_ERROR", Code::InvalidArgument, words)
        })?;
        let signer = self.signer_of(asked.signer)?;
        let full = || {
            let words = "too many requests wait for signers".to_owned();
            refused("CERT_GEN_ERROR", Code::Unavailable, words)
        };
        let turn = Turn::take(&self.waiting, asked.identity.as_str()).ok_or_else(full)?;
        let acquiring = tokio::time::timeout(self.settings.patience, Arc::clone(&self.room).acquire_owned());
        let Ok(Ok(room)) = acquiring.await else { return Err(full()) };
        let order = Order {
            request: &asked.request.to_pem(),
            signer: &signer,
            usages: FOR_WORKLOADS,
            lifetime: asked.lifetime,
            whom: asked.identity.as_str(),
        };
        let failed = |words: String| refused("CERT_GEN_ERROR", Code::Internal, words);
        let answer =
            signer::sign(&self.cluster, &order, self.settings.patience, Box::new((turn, room))).await;
        let answer = answer.map_err(failed)?;
        let names = [AltName::Uri(asked.identity.as_str().to_owned())];
        let wanted = Wanted { key: asked.request.key(), names: &names, is_for_clients: true };
        let roots = state.signers_root.as_deref().or(state.by_signer.get(&signer).map(String::as_str));
        let signed = Signed::read(&answer, roots).ok_or_else(|| {
            let words = "failed to find root cert from either signed cert-chain or mesh config".to_owned();
            refused("CSR_ERROR", Code::InvalidArgument, words)
        });
        let signed = signed?.map_err(failed)?;
        // Deviation: istiod looks only at the chain, and only where a workload has named the signer.
        let words = |why| failed(format!("signer {signer}: {why}"));
        wanted.check(&signed.chain, &signed.trust, now()).map_err(words)?;
        let mut all: Vec<String> = signed.chain.iter().map(|one| certificates_to_pem([one])).collect();
        // All roots in one: clients take the last element for them.
        all.push(signed.roots);
        Ok(all)
    }

    /// Has the control plane's own certificate signed, by a signer with these roots.
    async fn sign_own(
        &self,
        signer: &str,
        roots: &str,
        hosts: &[String],
        lifetime: i64,
    ) -> Result<Shown, String> {
        let key = KeyPair::generate(KeyType::P256)?;
        let hosts: BTreeSet<&String> = hosts.iter().collect();
        let names: Vec<AltName> = hosts.iter().map(|host| name(host)).collect();
        let request = request_for(&key, &names)?;
        let whom = hosts.into_iter().cloned().collect::<Vec<_>>().join(",");
        let order = Order { request: &request, signer, usages: FOR_SERVERS, lifetime, whom: &whom };
        let answer = signer::sign(&self.cluster, &order, self.settings.patience, Box::new(())).await?;
        let signed = Signed::read(&answer, Some(roots)).ok_or("there is no certificate in the answer")??;
        let wanted = Wanted { key: key.public(), names: &names, is_for_clients: false };
        let (from, to) = wanted.check(&signed.chain, &signed.trust, now())?.validity();
        let renew = (from + (to - from) / 2).max(now() + 1);
        Ok(Shown { chain: certificates_to_pem(&signed.chain), key: key.to_pem()?, until: renew })
    }
}

/// What a signer has answered.
struct Signed {
    /// Without roots.
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    /// In PEM.
    roots: String,
    trust: TrustBundle,
}

impl Signed {
    /// Takes it apart; without `roots` that at the end counts. `None`: there is none.
    fn read(answer: &[u8], roots: Option<&str>) -> Option<Result<Signed, String>> {
        let mut chain = match certificates(answer) {
            Ok(chain) => chain,
            Err(error) => return Some(Err(format!("decoding certificate failed: {error}"))),
        };
        let roots = match roots {
            Some(roots) => roots.to_owned(),
            None => {
                let last = chain.last().filter(|_| chain.len() > 1)?;
                let is_root = Certificate::parse(last).is_ok_and(|last| last.self_issued());
                is_root.then(|| certificates_to_pem([last]))?
            }
        };
        let trust = match TrustBundle::parse(roots.as_bytes()) {
            Ok(trust) => trust,
            Err(error) => return Some(Err(error)),
        };
        chain.retain(|one| !trust.certificates().iter().any(|root| root.der() == one));
        Some(Ok(Signed { chain, roots, trust }))
    }
}

/// One of the requests of an identity that may wait at a time.
struct Turn {
    waiting: Arc<Mutex<BTreeMap<String, usize>>>,
    identity: String,
}

impl Turn {
    fn take(waiting: &Arc<Mutex<BTreeMap<String, usize>>>, identity: &str) -> Option<Turn> {
        let mut all = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(identity.to_owned()).or_default();
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Turn { waiting: Arc::clone(waiting), identity: identity.to_owned() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.identity);
            }
        }
    }
}

fn read_roots(path: &Path) -> Result<Arc<str>, String> {
    let words = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let bytes = fs::read(path).map_err(|error| words(&error))?;
    let bundle = TrustBundle::parse(&bytes).map_err(|error| words(&error))?;
    Ok(certificates_to_pem(bundle.certificates().iter().map(|root| root.der())).into())
}

/// Follows the file with the roots of signers, and keeps the control plane's own certificate if a signer signs it.
/// Runs for ever; does nothing if there are no signers.
pub(crate) async fn follow_signers(ca: Arc<Ca>) {
    let Some(ra) = &ca.ra else { return };
    let mut unread = Complaint::new("the roots of signers that were read before stay in use");
    let mut unsigned = Complaint::new("the control plane's own certificate cannot be signed");
    let mut warnings = Warnings::default();
    let mut changes = ca.state.subscribe();
    let mut own = Own::default();
    loop {
        match ra.read_roots() {
            Ok(roots) => {
                unread.is_over();
                if changes.borrow().signers_root != roots {
                    ca.change(|state| state.signers_root = roots);
                }
            }
            Err(error) => unread.tell(error),
        }
        if let CertProvider::Signer(signer) = &ca.settings.provider {
            match own.look(&ca, ra, signer, &mut changes).await {
                Ok(()) => unsigned.is_over(),
                Err(error) => unsigned.tell(error),
            }
            warnings.look(&Ends::of(&ca), now());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// The control plane's own certificate, by a signer.
#[derive(Default)]
struct Own {
    /// By which roots it is known.
    roots: String,
    /// When it is to be signed anew, seconds since the epoch.
    until: i64,
    /// Why it could not be signed, and until when it is not tried again.
    failed: Option<(Instant, String)>,
}

impl Own {
    /// Has it signed if need be.
    async fn look(
        &mut self,
        ca: &Ca,
        ra: &Ra,
        signer: &str,
        changes: &mut watch::Receiver<State>,
    ) -> Result<(), String> {
        let roots = changes.borrow_and_update().by_signer.get(signer).cloned();
        let roots = roots.ok_or_else(|| {
            format!("there is no root for the signer {signer} in the MeshConfig's caCertificates")
        })?;
        if self.roots == roots && now() < self.until {
            return Ok(());
        }
        if let Some((_, error)) = self.failed.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return Err(error.clone());
        }
        let lifetime = i64::try_from(ca.settings.default_ttl.as_secs()).unwrap_or(i64::MAX);
        let hosts = &ca.settings.hosts;
        match ra.sign_own(signer, &roots, hosts, lifetime).await {
            Ok(shown) => {
                tracing::info!(names = ?hosts, signer, "our own certificate was signed");
                *self = Own { roots, until: shown.until, failed: None };
                ca.change(|state| state.own = Some(Arc::new(shown)));
                Ok(())
            }
            Err(error) => {
                let error = format!("signer {signer}: {error}");
                self.failed = Some((Instant::now() + AGAIN, error.clone()));
                Err(error)
            }
        }
    }
}
