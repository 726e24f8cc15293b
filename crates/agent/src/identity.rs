//! A workload's certificate: made, renewed in time, and kept while nobody signs.
//!
//! [`keep`] runs as long as somebody wants to know. A certificate is renewed when half of its life is
//! over, give or take a little, so that what began at the same moment does not ask at the same moment for
//! ever. With each comes a new key: one that has leaked is of no use for longer than a certificate.
//! When the authority does not answer, the last certificate stays in use, and it is asked again and again
//! at growing intervals. Roots are what the authority says: it gives old and new ones as long as both are
//! in use.

use std::time::Duration;

use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use leno_tls::Certificate;
use leno_tls::issue::{KeyPair, KeyType, SpiffeId, certificates, request};
use tokio::sync::watch;

use crate::authority::{Authority, Signed};

/// A certificate that can be used.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The certificate and those of authorities between it and the root, in PEM.
    pub chain: String,
    /// Its key, in PEM.
    pub key: String,
    /// Whom to trust, in PEM.
    pub roots: String,
    /// Its last second, seconds since the epoch.
    pub expires: i64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Secret")
            .field("chain", &self.chain)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// How certificates are asked for, as Istio's agent has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who we are, as far as we know: it is the authority that decides.
    pub identity: SpiffeId,
    /// The kind of key (`WORKLOAD_RSA_KEY_SIZE`, `ECC_SIGNATURE_ALGORITHM`, `ECC_CURVE`).
    pub key: KeyType,
    /// How long a certificate is to live (`SECRET_TTL`).
    pub ttl: Duration,
    /// In which last part of its life it is renewed, from 0 to 1 (`SECRET_GRACE_PERIOD_RATIO`).
    pub grace: f64,
    /// How far that may be off (`SECRET_GRACE_PERIOD_RATIO_JITTER`).
    pub jitter: f64,
    /// Waits after failures: at first, and in the end.
    pub retry: (Duration, Duration),
}

impl Settings {
    /// Istio's defaults, but that the key is ECDSA on P-256.
    pub fn new(identity: SpiffeId) -> Settings {
        Settings {
            identity,
            key: KeyType::P256,
            ttl: Duration::from_secs(24 * 3600),
            grace: 0.5,
            jitter: 0.01,
            retry: (Duration::from_millis(100), Duration::from_secs(30)),
        }
    }
}

/// Decides when to ask. It knows no clock: whoever drives it tells what has happened.
#[derive(Debug)]
pub struct Renewal {
    grace: f64,
    jitter: f64,
    rng: Rng,
    backoff: Backoff,
    shortest: Duration,
}

impl Renewal {
    /// One by these settings.
    pub fn new(settings: &Settings, mut rng: Rng) -> Renewal {
        let backoff = Backoff::new(settings.retry.0, settings.retry.1, rng.fork());
        Renewal { grace: settings.grace, jitter: settings.jitter, rng, backoff, shortest: settings.retry.0 }
    }

    /// A certificate has come that lives for so long. How long to wait with the next.
    pub fn on_signed(&mut self, life: Duration) -> Duration {
        self.backoff.reset();
        let grace = self.grace + self.jitter * (2.0 * self.rng.fraction() - 1.0);
        // An authority that signs for no time at all must not be asked all the time.
        life.mul_f64(1.0 - grace.clamp(0.0, 1.0)).max(self.shortest)
    }

    /// None has come. How long to wait before it is asked again.
    pub fn on_failed(&mut self) -> Duration {
        self.backoff.next_wait()
    }
}

/// Keeps a certificate until nobody wants to know of it. `now` tells the time in seconds since the epoch.
pub async fn keep(
    authority: impl Authority,
    settings: Settings,
    say: watch::Sender<Option<Secret>>,
    rng: Rng,
    now: impl Fn() -> i64,
) {
    let mut renewal = Renewal::new(&settings, rng);
    loop {
        let obtained = tokio::select! {
            obtained = obtain(&authority, &settings, &now) => obtained,
            () = say.closed() => return,
        };
        let wait = match obtained {
            Ok(secret) => {
                let life = u64::try_from(secret.expires - now()).unwrap_or(0);
                let wait = renewal.on_signed(Duration::from_secs(life));
                tracing::info!(expires = secret.expires, renewal = ?wait, "a certificate");
                say.send_replace(Some(secret));
                wait
            }
            Err(error) => {
                let left = say.borrow().as_ref().map(|last| last.expires - now());
                match left {
                    None => tracing::warn!(error, "there is no certificate yet"),
                    Some(left @ ..=0) => {
                        tracing::error!(
                            error,
                            expired = -left,
                            "the certificate has expired and is not renewed"
                        );
                    }
                    Some(left) => {
                        tracing::warn!(error, left, "the certificate is not renewed; the last is used");
                    }
                }
                renewal.on_failed()
            }
        };
        tokio::select! {
            () = wait_for(wait, &now) => {}
            () = say.closed() => return,
        }
    }
}

/// Waits by the calendar: a machine that was asleep has no time to wait on.
async fn wait_for(wait: Duration, now: &impl Fn() -> i64) {
    const SLICE: Duration = Duration::from_secs(60);
    let until = now().saturating_add(i64::try_from(wait.as_secs()).unwrap_or(i64::MAX));
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if left.is_zero() || (wait > SLICE && now() >= until) {
            return;
        }
        tokio::time::sleep(left.min(SLICE)).await;
    }
}

async fn obtain(
    authority: &impl Authority,
    settings: &Settings,
    now: &impl Fn() -> i64,
) -> Result<Secret, String> {
    let key = KeyPair::generate(settings.key)?;
    let csr = request(&key, &settings.identity)?;
    let seconds = i64::try_from(settings.ttl.as_secs()).unwrap_or(i64::MAX);
    let signed = authority.sign(csr, seconds).await?;
    check(signed, &key, settings, now())
}

/// What has come must be ours and good for something.
fn check(signed: Signed, key: &KeyPair, settings: &Settings, now: i64) -> Result<Secret, String> {
    let Signed { chain, roots } = signed;
    let all = certificates(chain.as_bytes())?;
    let leaf = Certificate::parse(all.first().ok_or("there is no certificate in the answer")?)?;
    if leaf.public_key() != key.public().spki() {
        return Err("the certificate is for another key".to_owned());
    }
    let (from, expires) = leaf.validity();
    if expires <= now {
        return Err("the certificate has expired already".to_owned());
    }
    if from > now {
        tracing::warn!(seconds = from - now, "the certificate is not valid yet: clocks differ");
    }
    if certificates(roots.as_bytes())?.is_empty() {
        return Err("there are no roots in the answer".to_owned());
    }
    let given: Vec<String> = leaf.alt_names().iter().filter_map(leno_tls::AltName::text).collect();
    if given != [settings.identity.as_str()] {
        tracing::warn!(?given, expected = %settings.identity, "the authority says that we are somebody else");
    }
    Ok(Secret { chain, key: key.to_pem()?, roots, expires })
}
