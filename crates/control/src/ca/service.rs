//! Istio's certificate service (`istio.v1.auth.IstioCertificateService`), on the port of xDS.
//!
//! Who asks has proven who he is before (`access/`), and gets a certificate for that and nothing else:
//! of the request only the key is used, or signers of Kubernetes are asked who sign for us (`ra.rs`). A proxy that serves a whole node may ask for the workloads on it
//! (`node.rs`). Nobody who came without proof gets anything, however he came. What went wrong is said in
//! istiod's words and counted under its names.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, Request as HttpRequest};
use hyper::body::Incoming;
use leno_api::proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use leno_api::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use leno_tls::AltName;
use leno_tls::issue::{CertificateRequest, MOST_BYTES, SpiffeId, certificates_to_pem};
use leno_xds::server::listen::{Beside, Caller};
use prost_types::value::Kind;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::{Code, Request, Response, Status};

use super::node::Nodes;
use super::ra::{Asked, Ra};
use super::{Ca, now};
use crate::access::{Domains, JoinTokens, Ticket};

/// How long a call may be: a request, the names in its metadata, and what protobuf adds.
const MOST_MESSAGE: usize = MOST_BYTES + (4 << 10);

/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// In front of all paths of the service.
const PREFIX: &str = "/istio.v1.auth.IstioCertificateService/";

/// Istiod's key of the metadata that names the workload a node asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    ca: Arc<Ca>,
    nodes: Nodes,
    /// Tokens that are good for one certificate, and what the mesh is called.
    joins: Option<(JoinTokens, Domains)>,
}

/// Istiod's key of the metadata that names the signer who is to sign.
const CERT_SIGNER: &str = "CertSigner";

/// Why there is no certificate, as istiod calls it.
pub(super) struct Refused {
    /// The label `error` of `citadel_server_csr_sign_err_count`.
    pub(super) label: &'static str,
    pub(super) code: Code,
    pub(super) words: String,
}

/// A text of a request's metadata, if it is not empty.
fn metadata<'r>(request: &'r IstioCertificateRequest, key: &str) -> Option<&'r str> {
    match request.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

impl Service {
    pub(crate) fn new(ca: Arc<Ca>, nodes: Nodes, joins: Option<(JoinTokens, Domains)>) -> Service {
        Service { ca, nodes, joins }
    }

    /// Signs what a caller has asked for. Only identities that are proven may be given.
    async fn sign(
        &self,
        request: &IstioCertificateRequest,
        identity: &SpiffeId,
    ) -> Result<Vec<String>, Refused> {
        let refused = |label, code, words: String| Refused { label, code, words };
        // Deviation: istiod says Internal, which clients do not try again.
        let not_ready = || refused("CA_NOT_READY", Code::Unavailable, "Istio CA is not ready".to_owned());
        let authority = match &self.ca.ra {
            Some(_) => None,
            None => Some(self.ca.authority().ok_or_else(not_ready)?),
        };
        let csr = CertificateRequest::parse(request.csr.as_bytes()).map_err(|error| {
            self.ca.counts.parsing_errors.fetch_add(1, Ordering::Relaxed);
            refused("CSR_ERROR", Code::InvalidArgument, error.to_string())
        })?;
        let settings = &self.ca.settings;
        let most = i64::try_from(settings.max_ttl.as_secs()).unwrap_or(i64::MAX);
        let lifetime = match request.validity_duration {
            ..=0 => i64::try_from(settings.default_ttl.as_secs()).unwrap_or(i64::MAX),
            wanted if wanted > most => {
                let words = format!("requested TTL {wanted}s is greater than the max allowed TTL {most}s");
                return Err(refused("TTL_ERROR", Code::InvalidArgument, words));
            }
            wanted => wanted,
        };
        let Some(authority) = authority else {
            let ra = self.ca.ra.as_ref().ok_or_else(not_ready)?;
            let signer = metadata(request, CERT_SIGNER);
            let asked = Asked { request: &csr, identity, lifetime, signer };
            let state = self.ca.state.borrow().clone();
            return ra.sign(&state, &asked).await;
        };
        let names = [AltName::Uri(identity.as_str().to_owned())];
        // Deviation: with a common name in the request istiod repeats the identity as the subject.
        let leaf = authority.issue(csr.key(), &names, self.ca.validity(now(), lifetime));
        let leaf = leaf.map_err(|error| refused("CERT_GEN_ERROR", Code::Internal, error))?;
        let chain = std::iter::once(&leaf).chain(authority.chain());
        let mut all: Vec<String> = chain.map(|one| certificates_to_pem([one])).collect();
        // All roots in one: clients take the last element for them.
        all.push(authority.roots_pem());
        Ok(all)
    }

    /// The identity that a certificate is for.
    async fn identity(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
        if let Some(wanted) = metadata(request, IMPERSONATED) {
            return self.nodes.authorize(caller, wanted).await.map_err(|why| {
                // The caller is not told what he might learn of the node from.
                self.count(&self.ca.counts.authentication_failures);
                tracing::warn!(caller = ?caller.identities, wanted, why, "may not ask for another");
                Status::unauthenticated("request impersonation authentication failure")
            });
        }
        // Deviation: istiod puts all identities of a caller into one certificate, which is no SVID then.
        let [identity] = caller.identities.as_slice() else {
            let words =
                format!("a certificate is for one identity, and you have {}", caller.identities.len());
            return Err(Status::permission_denied(words));
        };
        SpiffeId::parse(identity).map_err(|why| {
            Status::permission_denied(format!("{identity:?} cannot be in a certificate: {why}"))
        })
    }

    fn count(&self, count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn count_refusal(&self, label: &'static str) {
        let mut all = self.ca.counts.signing_errors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *all.entry(label).or_default() += 1;
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let proven = request.extensions().get::<Proven>().cloned();
        let Some(proven) = proven else { return Err(self.nobody()) };
        let request = request.into_inner();
        let (identity, ticket) = match proven {
            Proven::Caller(caller) => (self.identity(&caller, &request).await?, None),
            Proven::Joins(headers) => {
                let (identity, ticket) = self.joining(&headers)?;
                (identity, Some(ticket))
            }
        };
        match self.sign(&request, &identity).await {
            Ok(cert_chain) => {
                // It is used up when there is something to be had for it, and what two have got for it is
                // for the first.
                ticket.map_or(Ok(()), Ticket::use_up).map_err(|why| self.no_ticket(&why))?;
                self.count(&self.ca.counts.issued);
                tracing::debug!(%identity, "a certificate was signed");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(Refused { label, code, words }) => {
                self.count_refusal(label);
                tracing::warn!(%identity, error = words, "a certificate was not signed");
                Err(Status::new(code, format!("CSR signing error ({words})")))
            }
        }
    }
}

/// Who asks, in the request's extensions.
#[derive(Clone, Debug)]
enum Proven {
    Caller(Caller),
    /// Somebody with a join token, whose headers these are.
    Joins(HeaderMap),
}

impl Service {
    /// Whose join token is shown.
    fn joining(&self, headers: &HeaderMap) -> Result<(SpiffeId, Ticket), Status> {
        let found = self.joins.as_ref().and_then(|(tokens, domains)| Some((tokens.find(headers)?, domains)));
        let Some((ticket, domains)) = found else { return Err(self.nobody()) };
        let ticket = ticket.map_err(|why| self.no_ticket(&why))?;
        let identity = domains.identity(ticket.account());
        SpiffeId::parse(&identity).map(|identity| (identity, ticket)).map_err(|why| self.no_ticket(why))
    }

    /// Why somebody is not let in is in our log, and not for him.
    fn no_ticket(&self, why: &str) -> Status {
        tracing::warn!(why, "a machine is not let in");
        self.nobody()
    }

    fn nobody(&self) -> Status {
        self.count(&self.ca.counts.authentication_failures);
        Status::unauthenticated("request authenticate failure")
    }
}

impl Beside for Service {
    fn answers(&self, path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    fn answer(
        &self,
        mut request: HttpRequest<Incoming>,
        caller: Result<Option<Caller>, String>,
    ) -> Pin<Box<dyn Future<Output = http::Response<Body>> + Send>> {
        let service = self.clone();
        Box::pin(async move {
            service.count(&service.ca.counts.requests);
            let proven = match caller {
                Ok(Some(caller)) => Proven::Caller(caller),
                // Why somebody is not known is in our log, and not for him.
                _ if service.joins.is_none() => return service.nobody().into_http(),
                _ => Proven::Joins(request.headers().clone()),
            };
            request.extensions_mut().insert(proven);
            let patience = PATIENCE + service.ca.ra.as_ref().map(Ra::patience).unwrap_or_default();
            let mut server = IstioCertificateServiceServer::new(service)
                .max_decoding_message_size(MOST_MESSAGE)
                .max_encoding_message_size(usize::MAX);
            match tokio::time::timeout(patience, server.call(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => Status::deadline_exceeded("the request took too long to come").into_http(),
            }
        })
    }
}
