//! A client of Istio's certificate service.
//!
//! It connects anew for each certificate, which is twice a day.

use leno_api::proto::istio::v1::auth::IstioCertificateRequest;
use leno_api::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
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

/// Istio's certificate service (`CA_ADDR`), and how we show who we are.
#[derive(Clone, Debug, Default)]
pub struct IstioAuthority(pub ControlPlane);

impl Authority for IstioAuthority {
    async fn sign(&self, request: String, seconds: i64) -> Result<Signed, String> {
        let ControlPlane { address, timeout, .. } = &self.0;
        let late = |_| format!("{address}: no answer within {timeout:?}");
        tokio::time::timeout(*timeout, Box::pin(self.call(request, seconds))).await.map_err(late)?
    }
}

impl IstioAuthority {
    async fn call(&self, csr: String, seconds: i64) -> Result<Signed, String> {
        let address = &self.0.address;
        let (channel, headers) = self.0.connect().await?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let mut request =
            Request::new(IstioCertificateRequest { csr, validity_duration: seconds, metadata: None });
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
