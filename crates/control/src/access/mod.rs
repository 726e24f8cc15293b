//! The door: how proxies connect, and how they prove who they are.
//!
//! - `tls.rs`: the port with TLS, whose certificate is renewed by changing its files;
//! - `token.rs`: tokens of service accounts, judged by the API server, or by an issuer's keys, which
//!   `fetch.rs` may have to fetch;
//! - `discovery.rs`: where issuers say that their keys are, which is for proxies too;
//! - `join.rs`: tokens that are good once, for the certificate of a machine without Kubernetes;
//! - `forwarded.rs`: certificates that a proxy in front of us has verified;
//! - `made.rs`: things made of files, made anew when these change.
//!
//! As in istiod whoever comes by TLS must be authenticated by one of these, in this order: the
//! certificate of the connection, a token, a header of a trusted proxy. Who comes in plain text is
//! nobody (unless he is asked too), and gets no credentials. Whoever vouches, only identities of the
//! mesh's trust domains count. What an identity is worth is decided in `push/clearance.rs`, and for
//! those who look at debug pages in `debug/viewer.rs`.

mod discovery;
mod fetch;
mod forwarded;
mod join;
mod made;
mod tls;
mod token;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use leno_base::cidr::Cidr;
use leno_tls::issue::{Material, SpiffeId};
use leno_xds::server::grpc::DiscoveryService;
use leno_xds::server::listen::{
    Authenticated, Authenticator, Beside, Caller, Credentials, Handshake, Listen, Options, Pod,
};
use tokio::sync::Semaphore;

pub(crate) use self::discovery::{Blocked, address as address_of_issuer, discover};
pub use self::join::create_join_token;
pub(crate) use self::join::{JoinTokens, Ticket};
pub use self::tls::Secure;
pub(crate) use self::tls::{WEBHOOKS, XDS, parameters, server_context, shake};
pub use self::token::Issuer;
use crate::ca::node::Nodes;
use crate::ca::{self, Ca, CaSettings, OwnServer, Service};
use crate::model::identity::{Account, TRUST_DOMAIN};
use crate::source::kube::Cluster;

/// How long the API server may think about a token, and others before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many tokens the API server is asked about at a time: strangers may send as many as they like.
const MOST_REVIEWS: usize = 32;

/// The words for who shows a join token for anything else.
const ONLY_JOINS: &str = "a join token is for a certificate, and for nothing else";

/// The audience of tokens for the control plane, unless it is told another: Istio's.
const AUDIENCE: &str = "istio-ca";

/// Who may connect, and how that is shown.
#[derive(Clone, Debug)]
pub struct Access {
    /// Whether there is a port without TLS.
    pub plaintext: bool,
    /// The port with TLS, and its files; `None`: there is none.
    pub secure: Option<(SocketAddr, Secure)>,
    /// Whether those who come in plain text must be authenticated too (`XDS_AUTH_PLAINTEXT`).
    pub authenticates_plaintext: bool,
    /// Whether proxies that are not authenticated are believed to be who they say, and given the
    /// credentials of their namespace: for a machine of one's own, where nobody else can connect.
    pub believes_all: bool,
    /// Whom tokens must be for (`TOKEN_AUDIENCES`).
    pub audiences: Vec<String>,
    /// An issuer of tokens beside the API server.
    pub issuer: Option<Issuer>,
    /// The roots by which its keys are fetched (`SSL_CERT_FILE`); `None`: those of the system.
    pub system_roots: Option<PathBuf>,
    /// The folder of join tokens; `None`: there are none.
    pub join_tokens: Option<PathBuf>,
    /// Proxies that are believed what they say of the certificates of others.
    pub trusted_proxies: Vec<Cidr>,
    /// The mesh's certificate authority; `None`: certificates come from elsewhere.
    pub authority: Option<CaSettings>,
}

impl Default for Access {
    /// In plain text only, where nobody is believed.
    fn default() -> Access {
        Access {
            plaintext: true,
            secure: None,
            authenticates_plaintext: false,
            believes_all: false,
            audiences: vec![AUDIENCE.to_owned()],
            issuer: None,
            system_roots: None,
            join_tokens: None,
            trusted_proxies: Vec::new(),
            authority: None,
        }
    }
}

/// The trust domains of the mesh, its own first, as they are at the moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Domains(Arc<RwLock<Vec<String>>>);

impl Domains {
    /// New ones.
    pub(crate) fn set(&self, domains: Vec<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = domains;
    }

    /// The mesh's own.
    pub(crate) fn own(&self) -> String {
        let domains = self.0.read().unwrap_or_else(PoisonError::into_inner);
        domains.first().cloned().unwrap_or_else(|| TRUST_DOMAIN.to_owned())
    }

    /// Whether an identity is well-formed and of one of them.
    pub(crate) fn have(&self, identity: &str) -> bool {
        let domains = self.0.read().unwrap_or_else(PoisonError::into_inner);
        SpiffeId::parse(identity).is_ok_and(|identity| domains.iter().any(|known| known == identity.domain()))
    }

    /// The identity of a service account.
    pub(crate) fn identity(&self, account: &Account) -> String {
        account.identity(&self.own())
    }
}

/// How often somebody was refused, and why.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Where proxies connect.
    pub(crate) xds: Arc<leno_xds::server::listen::Refusals>,
    /// Proxies that are not who they say.
    pub(crate) identities: AtomicU64,
    /// Who may not see a debug page.
    pub(crate) viewers: AtomicU64,
    /// Connections to debug pages that had to go for others.
    pub(crate) pages: Arc<AtomicU64>,
}

/// What is built of [`Access`].
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) refusals: Arc<Refusals>,
    /// For connections in plain text.
    pub(crate) plain: Listen,
    /// For those with TLS.
    pub(crate) secure: Option<Listen>,
    /// TLS for webhooks, if there is a certificate.
    pub(crate) webhooks: Option<Arc<dyn Handshake>>,
    /// Finds out who calls, whoever asks.
    pub(crate) callers: Arc<dyn Authenticator>,
    pub(crate) domains: Domains,
    /// The certificate authority, and what it was made of if somebody else makes its files.
    pub(crate) ca: Option<(Arc<Ca>, Option<Material>)>,
}

impl Door {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which.
    pub(crate) fn new(
        access: &Access,
        options: &Options,
        service: DiscoveryService,
        cluster: Option<Cluster>,
    ) -> Result<Door, String> {
        let domains = Domains::default();
        domains.set(vec![TRUST_DOMAIN.to_owned()]);
        let audiences: Vec<String> =
            access.audiences.iter().filter(|audience| !audience.is_empty()).cloned().collect();
        let keys = |issuer| token::Keys::read(issuer, &audiences, access.system_roots.clone());
        let callers: Arc<dyn Authenticator> = Arc::new(Callers {
            domains: domains.clone(),
            issuer: access.issuer.clone().map(keys).transpose()?,
            audiences,
            cluster: cluster.clone(),
            reviews: Semaphore::new(MOST_REVIEWS),
            trusted_proxies: access.trusted_proxies.clone(),
        });
        let ca = access.authority.clone().map(|settings| open_ca(settings, cluster.clone())).transpose()?;
        let joins = access.join_tokens.as_deref().map(JoinTokens::open).transpose()?;
        let refusals = Refusals { xds: Arc::clone(service.refusals()), ..Refusals::default() };
        let plain = Listen { options: options.clone(), ..Listen::new(service) };
        let handshake: Option<Arc<dyn Handshake>> = match (&access.secure, &ca) {
            (Some((_, secure)), _) => Some(Arc::new(tls::Server::read(secure.clone(), XDS)?)),
            (None, Some((ca, _))) if ca.address().is_some() && ca.serves() => {
                Some(Arc::new(OwnServer::new(Arc::clone(ca))))
            }
            (None, _) => None,
        };
        // API servers show no certificate that we could know.
        let webhooks: Option<Arc<dyn Handshake>> = match (&access.secure, &ca) {
            (Some((_, secure)), _) => {
                let secure = Secure { roots: None, ..secure.clone() };
                Some(Arc::new(tls::Server::read(secure, WEBHOOKS)?))
            }
            (None, Some((ca, _))) if ca.serves() => Some(Arc::new(OwnServer::for_webhooks(Arc::clone(ca)))),
            (None, _) => None,
        };
        // Tokens and certificates are for nobody else to see.
        let beside = ca.as_ref().map(|(ca, _)| {
            let accounts = ca.node_accounts().to_vec();
            let nodes = Nodes { accounts, cluster, domains: domains.clone() };
            let joins = joins.map(|tokens| (tokens, domains.clone()));
            Arc::new(Service::new(Arc::clone(ca), nodes, joins)) as Arc<dyn Beside>
        });
        let secure = handshake.map(|handshake| Listen {
            authenticator: Arc::clone(&callers),
            handshake: Some(handshake),
            beside,
            ..plain.clone()
        });
        let plain = match access.authenticates_plaintext {
            true => Listen { authenticator: Arc::clone(&callers), ..plain },
            false => plain,
        };
        Ok(Door { refusals: Arc::new(refusals), plain, secure, webhooks, callers, domains, ca })
    }
}

/// Makes an authority, whose files are read now if there are any.
fn open_ca(settings: CaSettings, cluster: Option<Cluster>) -> Result<(Arc<Ca>, Option<Material>), String> {
    let plugged = ca::plugged(&settings)?;
    let ca = Ca::new(settings, cluster)?;
    let made_of = plugged.map(|(authority, material)| {
        ca.install(authority);
        material
    });
    Ok((ca, made_of))
}

/// Finds out who calls.
struct Callers {
    domains: Domains,
    audiences: Vec<String>,
    issuer: Option<token::Keys>,
    cluster: Option<Cluster>,
    /// Room for questions to the API server.
    reviews: Semaphore,
    trusted_proxies: Vec<Cidr>,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}

impl Authenticator for Callers {
    fn authenticate<'c>(&'c self, credentials: Credentials<'c>) -> Authenticated<'c> {
        Box::pin(async move {
            let caller = self.identify(credentials).await.inspect_err(|why| match why.as_str() {
                // He may yet be, by the authority.
                ONLY_JOINS => tracing::debug!(peer = ?credentials.address, "a join token was shown"),
                _ => tracing::warn!(peer = ?credentials.address, why, "a caller is not authenticated"),
            })?;
            Ok(Some(caller))
        })
    }
}

impl Callers {
    async fn identify(&self, credentials: Credentials<'_>) -> Result<Caller, String> {
        // The roots may have signed for other meshes too.
        let of_the_mesh = |identities: &[String]| -> Option<Caller> {
            let own = identities.iter().filter(|identity| self.domains.have(identity));
            let identities: Vec<String> = own.cloned().collect();
            (!identities.is_empty()).then_some(Caller { identities, pod: None })
        };
        if let Some(own) = of_the_mesh(credentials.certificate) {
            return Ok(own);
        }
        if let Some(token) = token::bearer(credentials.headers) {
            let (account, pod) = self.account(token).await?;
            return Ok(Caller { identities: vec![self.domains.identity(&account)], pod });
        }
        if !self.trusted_proxies.is_empty()
            && let Some(forwarded) = forwarded::identities(credentials.headers)
        {
            let address = credentials.address.map(|address| address.ip().to_canonical());
            let is_trusted =
                |address| self.trusted_proxies.iter().any(|trusted: &Cidr| trusted.contains(address));
            if !address.is_some_and(is_trusted) {
                return Err("a certificate was forwarded by a proxy that is not trusted".to_owned());
            }
            return of_the_mesh(&forwarded)
                .ok_or_else(|| "the certificate that was forwarded is not of the mesh".to_owned());
        }
        Err("authentication failure: neither a certificate of the mesh nor a token".to_owned())
    }

    /// Whose a token is, and to which Pod it was issued.
    async fn account(&self, token: &str) -> Result<(Account, Option<Pod>), String> {
        if let Some(keys) = &self.issuer
            && let Some(account) = keys.account(token).await
        {
            return account.map(|account| (account, None));
        }
        if join::is_one(token) {
            return Err(ONLY_JOINS.to_owned());
        }
        let Some(cluster) = &self.cluster else {
            return Err("the token is of an issuer that is not known".to_owned());
        };
        let review = async {
            // It is never closed.
            let _room = self.reviews.acquire().await;
            cluster.review_token(token, &self.audiences).await
        };
        let late = |_| "the token cannot be reviewed now".to_owned();
        tokio::time::timeout(PATIENCE, review).await.map_err(late)?
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::HeaderMap;
    use leno_base::cidr::Cidr;
    use leno_xds::server::listen::Credentials;

    use super::{Callers, Domains};

    fn callers() -> Callers {
        let domains = Domains::default();
        domains.set(vec!["mesh".to_owned(), "old".to_owned()]);
        Callers {
            domains,
            audiences: Vec::new(),
            issuer: None,
            cluster: None,
            reviews: tokio::sync::Semaphore::new(1),
            trusted_proxies: vec![Cidr::new([10, 0, 0, 0].into(), 8).expect("a range")],
        }
    }

    #[tokio::test]
    async fn certificates_come_first_and_must_be_the_meshs() {
        let forwarded = "x-forwarded-client-cert";
        for (certificate, header, address, expected) in [
            (&["spiffe://mesh/ns/a/sa/b"][..], None, "1.2.3.4:5", Ok("spiffe://mesh/ns/a/sa/b")),
            (&["spiffe://old/ns/a/sa/b"], None, "1.2.3.4:5", Ok("spiffe://old/ns/a/sa/b")),
            (
                &["spiffe://x/ns/a/sa/b", "spiffe://mesh/ns/a/sa/b"],
                None,
                "1.2.3.4:5",
                Ok("spiffe://mesh/ns/a/sa/b"),
            ),
            (&["spiffe://x/ns/a/sa/b"], None, "1.2.3.4:5", Err("neither a certificate")),
            (&["mesh"], None, "1.2.3.4:5", Err("neither a certificate")),
            (&[], None, "10.0.0.1:5", Err("neither a certificate")),
            (
                &[],
                Some((forwarded, "URI=spiffe://mesh/ns/a/sa/b")),
                "10.0.0.1:5",
                Ok("spiffe://mesh/ns/a/sa/b"),
            ),
            (&[], Some((forwarded, "URI=spiffe://mesh/ns/a/sa/b")), "11.0.0.1:5", Err("not trusted")),
            (&[], Some((forwarded, "URI=spiffe://mesh/ns/a/sa/b")), "[::1]:5", Err("not trusted")),
            (
                &[],
                Some((forwarded, "URI=spiffe://mesh/ns/a/sa/b")),
                "[::ffff:10.0.0.1]:5",
                Ok("spiffe://mesh/ns/a/sa/b"),
            ),
            // What another mesh's roots vouch for is not ours, whoever forwards it.
            (&[], Some((forwarded, "URI=spiffe://x/ns/a/sa/b")), "10.0.0.1:5", Err("not of the mesh")),
            (
                &[],
                Some((forwarded, "URI=spiffe://x/ns/a/sa/b;URI=spiffe://mesh/ns/a/sa/b")),
                "10.0.0.1:5",
                Ok("spiffe://mesh/ns/a/sa/b"),
            ),
            (&[], Some((forwarded, "DNS=mesh")), "10.0.0.1:5", Err("not of the mesh")),
            // One's own certificate comes before what others are said to have.
            (
                &["spiffe://mesh/ns/a/sa/b"],
                Some((forwarded, "URI=spiffe://mesh/ns/z/sa/b")),
                "10.0.0.1:5",
                Ok("spiffe://mesh/ns/a/sa/b"),
            ),
            (&[], Some(("authorization", "Bearer x")), "10.0.0.1:5", Err("issuer that is not known")),
            (
                &[],
                Some(("authorization", "Bearer leno-join-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
                "10.0.0.1:5",
                Err("for a certificate, and for nothing else"),
            ),
            (&[], Some(("authorization", "Basic x")), "10.0.0.1:5", Err("neither a certificate")),
        ] {
            let certificate: Vec<String> = certificate.iter().map(|&it| it.to_owned()).collect();
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = header {
                headers.insert(name, value.parse().expect("a value"));
            }
            let address: SocketAddr = address.parse().expect("an address");
            let credentials =
                Credentials { certificate: &certificate, headers: &headers, address: Some(address) };
            match (callers().identify(credentials).await, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.identities, [expected]),
                (Err(words), Err(expected)) => assert!(words.contains(expected), "{words}"),
                (found, expected) => panic!("{certificate:?}: {found:?}, not {expected:?}"),
            }
        }
    }
}
