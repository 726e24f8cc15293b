//! Issuers of tokens are asked where their keys are (OpenID Connect Discovery 1.0, section 4), for
//! RequestAuthentications that name an issuer and nothing else.
//!
//! An issuer is asked when the first policy names it, and every 20 minutes after that, as its keys may
//! move; one that does not answer is asked again at growing intervals, and what it said last stays.
//! Whoever may write a policy has us ask somebody, so some addresses are asked for nobody
//! ([`Blocked`]), and few at a time.
//!
//! Deviation: istiod 1.30 by default asks at every address, which lets who writes a policy reach the
//! metadata of the machine that the control plane is on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use leno_base::Rng;
use leno_base::backoff::Backoff;
use leno_base::cidr::Cidr;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fetch::Fetcher;
use crate::model::request_authentication::Place;

/// Where an issuer says where its keys are, below its own address.
const PATH: &str = "/.well-known/openid-configuration";

/// After how long an issuer is asked again that has answered.
const LIFETIME: Duration = Duration::from_secs(20 * 60);

/// First and longest wait after an issuer has not answered.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// How many are asked at a time: others may take as long as they like to answer.
const AT_A_TIME: usize = 8;

/// Addresses that nobody is asked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocked(Vec<Cidr>);

impl Blocked {
    /// Those of `BLOCKED_CIDRS_IN_JWKS_URIS`, ranges with commas between them, and always link-local
    /// ones, where clouds tell machines their secrets.
    ///
    /// # Errors
    /// If one of them is no range.
    pub(crate) fn read(ranges: &str) -> Result<Blocked, String> {
        let given = ranges.split(',').map(str::trim).filter(|range| !range.is_empty());
        let all = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128"].into_iter().chain(given);
        let parse = |range: &str| range.parse::<Cidr>().map_err(|error| format!("{range:?}: {error}"));
        all.map(parse).collect::<Result<_, _>>().map(Blocked)
    }

    /// Whether nobody is asked there.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address.to_canonical()))
    }
}

/// The address at which an issuer is asked; `None` if its name is none.
pub(crate) fn address(issuer: &str) -> Option<String> {
    Place::parse(issuer).map(|_| format!("{}{PATH}", issuer.trim_end_matches('/')))
}

/// What an issuer says of itself; the rest is for others.
#[derive(Deserialize)]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) issuer: String,
    pub(super) jwks_uri: String,
}

/// Asks an issuer at an address.
///
/// # Errors
/// Why there is no answer, or none of use.
pub(super) async fn ask(fetcher: &Fetcher, address: &str) -> Result<Metadata, String> {
    let found = fetcher.get(address).await?;
    let found: Metadata = serde_json::from_slice(&found).map_err(|error| format!("{address}: {error}"))?;
    // What comes of it goes to all proxies.
    if found.jwks_uri.parse::<http::Uri>().is_err() || Place::parse(&found.jwks_uri).is_none() {
        return Err(format!("{address}: jwks_uri: {:?} is no http or https URI with a host", found.jwks_uri));
    }
    Ok(found)
}

/// Asks issuers where their keys are as long as somebody wants to know, and says what they answer.
/// `roots`: whom to trust instead of the system's.
pub(crate) async fn discover(
    roots: Option<PathBuf>,
    blocked: Blocked,
    mut wanted: watch::Receiver<BTreeSet<String>>,
    say: mpsc::Sender<(String, String)>,
) {
    let mut known: BTreeMap<String, Asked> = BTreeMap::new();
    let mut rng = Rng::from_entropy();
    let mut asking = JoinSet::new();
    loop {
        let all = wanted.borrow_and_update().clone();
        known.retain(|issuer, _| all.contains(issuer));
        for issuer in all {
            known.entry(issuer).or_insert_with(|| Asked {
                next: Some(Instant::now()),
                retries: Backoff::new(RETRY.0, RETRY.1, rng.fork()),
            });
        }
        let now = Instant::now();
        for (issuer, asked) in &mut known {
            if asking.len() < AT_A_TIME && asked.next.is_some_and(|next| next <= now) {
                asked.next = None;
                let (issuer, roots, blocked) = (issuer.clone(), roots.clone(), blocked.clone());
                asking.spawn(async move {
                    let answer = one(&issuer, roots, blocked).await;
                    (issuer, answer)
                });
            }
        }
        let has_room = asking.len() < AT_A_TIME;
        let next = known.values().filter_map(|asked| asked.next).min().filter(|_| has_room);
        tokio::select! {
            Some(Ok((issuer, answer))) = asking.join_next() => {
                // Meanwhile nobody may want to know.
                let Some(asked) = known.get_mut(&issuer) else { continue };
                let wait = match answer {
                    Ok(uri) => {
                        asked.retries.reset();
                        if say.send((issuer, uri)).await.is_err() {
                            return;
                        }
                        LIFETIME
                    }
                    Err(error) => {
                        tracing::warn!(issuer, error, "an issuer does not say where its keys are");
                        asked.retries.next_wait()
                    }
                };
                asked.next = Some(Instant::now() + wait);
            }
            changed = wanted.changed() => if changed.is_err() { return },
            () = at(next) => {}
        }
    }
}

/// An issuer that somebody wants to know of.
struct Asked {
    /// When to ask; `None`: it is being asked.
    next: Option<Instant>,
    retries: Backoff,
}

async fn one(issuer: &str, roots: Option<PathBuf>, blocked: Blocked) -> Result<String, String> {
    let address = address(issuer).ok_or("its name is no address")?;
    let fetcher = Fetcher::new(roots)?.without(blocked);
    let found = ask(&fetcher, &address).await?;
    if found.issuer != issuer {
        // Some say a template, or leave a slash out. istiod does not look.
        tracing::debug!(issuer, says = found.issuer, "an issuer calls itself otherwise");
    }
    Ok(found.jwks_uri)
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, watch};

    use super::{Blocked, address, discover};

    #[test]
    fn some_are_not_asked() {
        let blocked = Blocked::read("10.0.0.0/8, 2001:db8::/32").expect("ranges");
        for (text, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.1.2.3", false),
            ("127.0.0.1", false),
            ("169.254.169.254", true),
            ("fe80::1", true),
            ("2001:db8::5", true),
            ("2001:db9::5", false),
        ] {
            assert_eq!(blocked.has(text.parse().expect("an address")), expected, "{text}");
        }
        assert!(Blocked::read("10.0.0.0/33").is_err_and(|why| why.contains("10.0.0.0/33")));
    }

    #[test]
    fn issuers_are_asked_at_their_own_address() {
        let expected = Some("https://a.b/c/.well-known/openid-configuration".to_owned());
        assert_eq!((address("https://a.b/c/"), address("https://a.b/c")), (expected.clone(), expected));
        assert_eq!(address("somebody"), None);
    }

    /// Answers with what is at hand each time; with 404 where there is nothing.
    async fn issuer(answers: Vec<Option<&'static str>>) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let name = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read_buf(&mut head).await, Ok(1..)) {}
                assert!(head.starts_with(b"GET /.well-known/openid-configuration HTTP/1.1\r\n"));
                let turn = counted.fetch_add(1, Ordering::Relaxed);
                let answer = answers.get(turn).or(answers.last()).copied().flatten();
                let (status, body) = answer.map_or(("404 No", ""), |body| ("200 OK", body));
                let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        (name, asked)
    }

    #[tokio::test]
    async fn issuers_are_asked_until_they_answer() {
        let keys = r#"{"issuer": "x", "jwks_uri": "https://a.b/keys"}"#;
        let (good, asked) =
            issuer(vec![None, Some("{"), Some(r#"{"jwks_uri": "file:///x"}"#), Some(keys)]).await;
        let (blocked, never) = issuer(vec![Some(keys)]).await;
        // It is where the other one is not.
        let blocked = blocked.replace("127.0.0.1", "localhost");
        let (want, wanted) = watch::channel(BTreeSet::from([good.clone(), "nobody".to_owned()]));
        let (say, mut said) = mpsc::channel(4);
        let nobody = Blocked::read("").expect("none");
        let task = tokio::spawn(discover(None, nobody, wanted, say));
        assert_eq!(said.recv().await, Some((good.clone(), "https://a.b/keys".to_owned())));
        assert_eq!(asked.load(Ordering::Relaxed), 4);
        // Nobody wants to know any more, and then again.
        want.send_replace(BTreeSet::new());
        tokio::task::yield_now().await;
        want.send_replace(BTreeSet::from([good.clone()]));
        assert_eq!(said.recv().await, Some((good, "https://a.b/keys".to_owned())));
        drop(want);
        task.await.expect("it ends");

        let ranges = Blocked::read("127.0.0.0/8,::1/128").expect("ranges");
        let why = super::one(&blocked, None, ranges).await.expect_err("it is not asked");
        assert!(why.contains("may not be asked"), "{why}");
        assert_eq!(never.load(Ordering::Relaxed), 0);
    }
}
