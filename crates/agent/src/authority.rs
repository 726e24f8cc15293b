//! A client of Istio's certificate service.
//!
//! It connects anew for each certificate, which is twice a day.

use std::time::Duration;

use leno_api::proto::istio::v1::auth::IstioCertificateRequest;
use leno_api::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_types::value::Kind;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::control_plane::ControlPlane;

/// What an authority has answered, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signed {
    /// The certificate, and those of authorities between it and the root.
    pub chain: String,
    /// Whom to trust.
    pub roots: String,
}

/// Signs certificates.
pub trait Authority: Send + Sync {
    /// Has a request (PKCS #10, PEM) signed, for so many seconds.
    fn sign(&self, request: String, seconds: i64) -> impl Future<Output = Result<Signed, String>> + Send;
}

/// How much longer than it takes to connect an answer may take: a signer behind the authority may need a minute.
const PATIENCE: Duration = Duration::from_secs(65);

/// Istio's key of the metadata that names the signer.
const CERT_SIGNER: &str = "CertSigner";

/// Istio's certificate service (`CA_ADDR`).
#[derive(Clone, Debug, Default)]
pub struct IstioAuthority {
    /// Where it is, and how we show who we are.
    pub at: ControlPlane,
    /// Which of its signers is to sign; `None` leaves it to the authority.
    pub signer: Option<String>,
}

impl Authority for IstioAuthority {
    async fn sign(&self, request: String, seconds: i64) -> Result<Signed, String> {
        let ControlPlane { address, timeout, .. } = &self.at;
        let most = *timeout + PATIENCE;
        let late = |_| format!("{address}: no answer within {most:?}");
        tokio::time::timeout(most, Box::pin(self.call(request, seconds))).await.map_err(late)?
    }
}

impl IstioAuthority {
    async fn call(&self, csr: String, seconds: i64) -> Result<Signed, String> {
        let address = &self.at.address;
        let (channel, headers) = self.at.connect().await?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let metadata = self.signer.as_ref().map(|signer| {
            let value = prost_types::Value { kind: Some(Kind::StringValue(signer.clone())) };
            prost_types::Struct { fields: [(CERT_SIGNER.to_owned(), value)].into() }
        });
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: seconds, metadata });
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        let words = |status: Status| format!("{address}: {:?}: {}", status.code(), status.message());
        let mut chain = client.create_certificate(request).await.map_err(words)?.into_inner().cert_chain;
        // The last element is the roots, and without one of our own there is nothing to use.
        let roots = chain.pop().filter(|_| !chain.is_empty());
        let roots = roots.ok_or_else(|| format!("{address}: there is no certificate in the answer"))?;
        let whole = |mut text: String| {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        };
        Ok(Signed { chain: chain.into_iter().map(whole).collect(), roots: whole(roots) })
    }
}
