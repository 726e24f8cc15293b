//! A client of Istio's certificate service.
//!
//! It connects anew for each certificate, which is twice a day, and reads its files anew for each: the
//! token and the roots are replaced by whoever mounts them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::istio::v1::auth::IstioCertificateRequest;
use leno_api::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use leno_tls::issue::certificates;
use leno_xds::client::grpc::{Connection, over};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

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

/// Where Istio's certificate service is, and how we show who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IstioAuthority {
    /// `HOST:PORT` (`CA_ADDR`), `istiod.istio-system.svc:15012` by default.
    pub address: String,
    /// The name that its certificate must be for; the host of the address unless it is given.
    pub name: Option<String>,
    /// The file with the roots that its certificate comes from.
    pub roots: PathBuf,
    /// The file with our token, if we have one.
    pub token: Option<PathBuf>,
    /// The files with our certificate and its key, if we have one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name of our cluster, which istiod wants to know.
    pub cluster: String,
    /// How long it may take.
    pub timeout: Duration,
}

impl Authority for IstioAuthority {
    async fn sign(&self, request: String, seconds: i64) -> Result<Signed, String> {
        let signing = self.call(request, seconds);
        let late = |_| format!("{}: no answer within {:?}", self.address, self.timeout);
        tokio::time::timeout(self.timeout, Box::pin(signing)).await.map_err(late)?
    }
}

impl IstioAuthority {
    async fn call(&self, csr: String, seconds: i64) -> Result<Signed, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.address);
        let (host, _) = self.address.rsplit_once(':').ok_or_else(|| failed(&"it is not HOST:PORT"))?;
        let name = self.name.as_deref().unwrap_or(host);
        let config = self.config()?;
        let name =
            ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|error| failed(&error))?;
        let stream = TcpStream::connect(&self.address).await.map_err(|error| failed(&error))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let connection =
            Connection { authority: host.to_owned(), connect_timeout: self.timeout, keepalive: None };
        let channel = over(stream.map_err(|error| failed(&error))?, &connection).await;
        let mut client = IstioCertificateServiceClient::new(channel.map_err(|error| failed(&error))?);
        let asked = IstioCertificateRequest { csr, validity_duration: seconds, metadata: None };
        let mut request = Request::new(asked);
        let metadata = request.metadata_mut();
        if let Some(path) = &self.token {
            let token = String::from_utf8(read(path)?).map_err(|_| format!("{}: no text", path.display()))?;
            let value = format!("Bearer {}", token.trim());
            let mut value: MetadataValue<_> =
                value.parse().map_err(|_| format!("{}: there is no token in it", path.display()))?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        if let Ok(cluster) = self.cluster.parse()
            && !self.cluster.is_empty()
        {
            metadata.insert("clusterid", cluster);
        }
        let words = |status: Status| format!("{}: {:?}: {}", self.address, status.code(), status.message());
        let mut chain = client.create_certificate(request).await.map_err(words)?.into_inner().cert_chain;
        // The last element is the roots, and without one of our own there is nothing to use.
        let roots = chain.pop().filter(|_| !chain.is_empty());
        let roots = roots.ok_or_else(|| failed(&"there is no certificate in the answer"))?;
        let whole = |mut text: String| {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        };
        Ok(Signed { chain: chain.into_iter().map(whole).collect(), roots: whole(roots) })
    }

    fn config(&self) -> Result<ClientConfig, String> {
        let mut store = RootCertStore::empty();
        let at = |path: &PathBuf, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        for root in certificates(&read(&self.roots)?).map_err(|error| at(&self.roots, &error))? {
            store.add(root).map_err(|error| at(&self.roots, &error))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(store);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| at(key, &error))?;
                let own = certificates(&read(chain)?).map_err(|error| at(chain, &error))?;
                builder.with_client_auth_cert(own, private).map_err(|error| at(chain, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
