//! The SPIFFE Workload API (the profile X509-SVID), on the socket of SDS: who the workload is, for programs that
//! ask themselves.
//!
//! Every message is the whole of what there is, and one comes whenever something of it changes: the certificate
//! is renewed, roots come or go, something is revoked. Nobody has to show who he is: whoever may open the socket
//! is the workload. What must be there is the header that a request forged by somebody else's hand does not have.
//! There is no authority for JSON web tokens, so the profiles with these (JWT-SVID, WIT-SVID) are not implemented,
//! which is what their callers are told.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use leno_tls::issue::{SpiffeId, certificates};
use leno_tls::{AltName, Certificate};
use leno_xds::server::listen::{Beside, Caller};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use self::proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use self::proto::{X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse};
use crate::identity::Secret;

/// The messages, and a client.
pub mod proto {
    #![allow(missing_docs, clippy::all, rustdoc::all, unreachable_pub, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

/// In front of all paths of the service.
const PREFIX: &str = "/SpiffeWorkloadAPI/";

/// The header that every request must have, with the value `true` (SPIFFE Workload Endpoint section 3).
pub const HEADER: &str = "workload.spiffe.io";

/// How long a request may be: it says nothing.
const MOST_MESSAGE: usize = 4 << 10;

/// All that a workload is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    svid: X509svid,
    revoked: Vec<Bytes>,
    /// Roots of other trust domains, by their SPIFFE IDs.
    federated: BTreeMap<String, Bytes>,
}

impl Identity {
    /// Makes it of a certificate, of what was revoked (PEM), and of the mesh's other names for its trust domain.
    ///
    /// # Errors
    /// Why a workload has no identity by that.
    pub(crate) fn new(secret: &Secret, revoked: &[u8], aliases: &[String]) -> Result<Identity, String> {
        let chain = certificates(secret.chain.as_bytes())?;
        let leaf = Certificate::parse(chain.first().ok_or("there is no certificate")?)?;
        let id = id_of(&leaf).ok_or("the certificate has no SPIFFE identity")?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(secret.key.as_bytes());
        let key = match key {
            Ok(key) => key,
            // Files of others have older forms.
            Err(_) => {
                let pem = leno_tls::issue::KeyPair::from_pem(secret.key.as_bytes())?.to_pem()?;
                PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?
            }
        };
        let own = domain(id.domain());
        let mut bundles = BTreeMap::<String, BytesMut>::from([(own.clone(), BytesMut::new())]);
        for root in certificates(secret.roots.as_bytes())? {
            // One that says whose it is may be another domain's; all others are the mesh's.
            let of = Certificate::parse(&root).ok().and_then(|root| id_of(&root));
            let of = of.map_or_else(|| own.clone(), |id| domain(id.domain()));
            bundles.entry(of).or_default().extend_from_slice(&root);
        }
        let mut bundles: BTreeMap<String, Bytes> =
            bundles.into_iter().map(|(of, roots)| (of, roots.freeze())).collect();
        let bundle = bundles.remove(&own).filter(|bundle| !bundle.is_empty());
        let bundle = bundle.ok_or("there are no roots of the workload's trust domain")?;
        // The mesh's authority speaks for these as well.
        for alias in aliases.iter().map(|alias| domain(alias)).filter(|alias| *alias != own) {
            bundles.entry(alias).or_insert_with(|| bundle.clone());
        }
        let lists = CertificateRevocationListDer::pem_slice_iter(revoked);
        let revoked = lists.map(|list| list.map(|list| Bytes::copy_from_slice(&list)));
        let svid = X509svid {
            spiffe_id: id.as_str().to_owned(),
            x509_svid: joined(&chain),
            x509_svid_key: Bytes::copy_from_slice(key.secret_pkcs8_der()),
            bundle,
            // There is one.
            hint: String::new(),
        };
        let revoked = revoked.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        Ok(Identity { svid, revoked, federated: bundles })
    }

    fn svids(&self) -> X509svidResponse {
        X509svidResponse {
            svids: vec![self.svid.clone()],
            crl: self.revoked.clone(),
            federated_bundles: self.federated.clone(),
        }
    }

    fn bundles(&self) -> X509BundlesResponse {
        let mut bundles = self.federated.clone();
        if let Ok(id) = SpiffeId::parse(&self.svid.spiffe_id) {
            bundles.insert(domain(id.domain()), self.svid.bundle.clone());
        }
        X509BundlesResponse { crl: self.revoked.clone(), bundles }
    }
}

/// The SPIFFE ID of a trust domain.
fn domain(name: &str) -> String {
    format!("spiffe://{name}")
}

/// The SPIFFE ID in a certificate: its only URI (X509-SVID section 2).
fn id_of(certificate: &Certificate) -> Option<SpiffeId> {
    let mut uris = certificate.alt_names().iter().filter_map(|name| match name {
        AltName::Uri(uri) => Some(uri),
        _ => None,
    });
    let only = uris.next().filter(|_| uris.next().is_none())?;
    SpiffeId::parse(only).ok()
}

fn joined(certificates: &[CertificateDer<'_>]) -> Bytes {
    certificates.iter().flat_map(|der| der.iter().copied()).collect()
}

/// What is known: the identity, or why there is none.
pub(crate) type Known = Result<Arc<Identity>, String>;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct WorkloadApi(pub(crate) watch::Receiver<Known>);

impl WorkloadApi {
    /// A message now, and one whenever it is another, until there is no identity any more.
    fn follow<M>(&self, message: impl Fn(&Identity) -> M + Send + 'static) -> Messages<M>
    where
        M: Clone + PartialEq + Send + Sync + 'static,
    {
        let mut known = self.0.clone();
        let (say, messages) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut told = None;
            // Who is slow is told the newest only.
            while let Ok(place) = say.reserve().await {
                let now = match &*known.borrow_and_update() {
                    Ok(identity) => Ok(message(identity)),
                    Err(why) => Err(Status::permission_denied(format!("no identity issued: {why}"))),
                };
                match now {
                    Err(denied) => {
                        place.send(Err(denied));
                        return;
                    }
                    Ok(now) if told.as_ref() != Some(&now) => {
                        told = Some(now.clone());
                        place.send(Ok(now));
                    }
                    Ok(_) => drop(place),
                }
                tokio::select! {
                    changed = known.changed() => if changed.is_err() { return },
                    () = say.closed() => return,
                }
            }
        });
        ReceiverStream::new(messages)
    }
}

/// What comes on a stream.
type Messages<M> = ReceiverStream<Result<M, Status>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Messages<X509svidResponse>>, Status> {
        Ok(Response::new(self.follow(Identity::svids)))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Messages<X509BundlesResponse>>, Status> {
        Ok(Response::new(self.follow(Identity::bundles)))
    }
}

impl Beside for WorkloadApi {
    fn answers(&self, path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    fn answer(
        &self,
        request: http::Request<Incoming>,
        _: Result<Option<Caller>, String>,
    ) -> Pin<Box<dyn Future<Output = http::Response<Body>> + Send>> {
        let service = self.clone();
        Box::pin(async move {
            if !request.headers().get_all(HEADER).iter().eq(["true"]) {
                let words = format!("security header missing from request: {HEADER}: true");
                return Status::invalid_argument(words).into_http();
            }
            let mut server = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(MOST_MESSAGE);
            match server.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use leno_tls::issue::certificates;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
        KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
    };

    use super::Identity;
    use crate::identity::Secret;

    #[test]
    fn what_was_revoked_is_told() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let root = CertifiedIssuer::self_signed(params, key()).expect("a root");
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&root).expect("signed");
        let own = key();
        let secret = |names: &[&str]| {
            let mut params = CertificateParams::default();
            let uri = |name: &&str| SanType::URI((*name).try_into().expect("ASCII"));
            params.subject_alt_names = names.iter().map(uri).collect();
            let chain = params.signed_by(&own, &root).expect("signed").pem();
            Secret { chain, key: own.serialize_pem(), roots: root.pem(), expires: 0 }
        };
        let good = secret(&["spiffe://cluster.local/ns/a/sa/b"]);
        let lists = list.pem().expect("PEM").repeat(2);
        let identity = Identity::new(&good, lists.as_bytes(), &["cluster.local".to_owned()]).expect("one");
        assert_eq!(identity.revoked, [list.der().to_vec(), list.der().to_vec()]);
        assert_eq!((identity.svids().crl, identity.bundles().crl.len()), (identity.revoked.clone(), 2));
        // The mesh's own name is no other name of it.
        assert!(identity.federated.is_empty() && identity.bundles().bundles.len() == 1);
        assert_eq!(Identity::new(&good, b"", &[]).expect("one").revoked.len(), 0);

        // What gives nobody an identity.
        let mut bad = vec![
            secret(&[]),
            secret(&["spiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/c"]),
            secret(&["https://cluster.local"]),
            Secret { key: String::new(), ..good.clone() },
            Secret { roots: String::new(), ..good.clone() },
            Secret { chain: String::new(), ..good.clone() },
        ];
        // Roots of others alone.
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://far.example".try_into().expect("ASCII"))];
        let far = params.self_signed(&key()).expect("signed").pem();
        assert_eq!(certificates(far.as_bytes()).expect("PEM").len(), 1);
        bad.push(Secret { roots: far, ..good });
        for secret in bad {
            assert!(Identity::new(&secret, b"", &[]).is_err(), "{secret:?}");
        }
    }
}
