//! How a signer of Kubernetes is asked for a certificate: a CertificateSigningRequest is made, approved by us,
//! waited for, and deleted whatever becomes of it and of who asked.

use std::any::Any;
use std::time::Duration;

use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leno_base::backoff::Backoff;
use leno_base::rng::Rng;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::source::kube::Cluster;
use crate::source::kube::client::Fault;

/// Where requests are.
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

const JSON: &str = "application/json";

/// Waits between looks, where requests cannot be watched.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often something is tried that another disturbs.
const ATTEMPTS: usize = 5;

/// A certificate that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    /// The request (PKCS #10), PEM.
    pub(super) request: &'a str,
    /// The signer's full name.
    pub(super) signer: &'a str,
    /// What it is for, in Kubernetes' words.
    pub(super) usages: &'a [&'a str],
    /// How long it is to be valid, in seconds; signers may decide otherwise.
    pub(super) lifetime: i64,
    /// For whom, in words.
    pub(super) whom: &'a str,
}

/// Has a certificate signed: it and those above it, PEM. Nothing of it was verified. What is `held` is let go of when
/// nothing of the request is left.
///
/// # Errors
/// Why there is none, in istiod's words where it has some.
pub(super) async fn sign(
    cluster: &Cluster,
    order: &Order<'_>,
    patience: Duration,
    held: Box<dyn Any + Send>,
) -> Result<Vec<u8>, String> {
    let body = draft(order)?;
    let deadline = Instant::now() + patience;
    // Whoever asks may go while it is being made, and it is to be deleted even so.
    let making = tokio::spawn(create(cluster.clone(), body, held));
    let made = tokio::time::timeout_at(deadline, making).await;
    let made = made.map_err(|_| "failed to create CSR: no answer in time".to_owned())?;
    let made = made.map_err(|error| error.to_string())?;
    let (made, cleanup) = made.map_err(|fault| format!("failed to create CSR: {fault}"))?;
    let whole = async {
        let approved = approve(cluster, made, order.whom).await?;
        wait(cluster, &cleanup.name, approved).await
    };
    let late = |_| format!("timeout when watching CSR {}", cleanup.name);
    tokio::time::timeout_at(deadline, whole).await.map_err(late)?
}

/// A request as it is sent.
fn draft(order: &Order<'_>) -> Result<Vec<u8>, String> {
    let request = CertificateSigningRequest {
        // Istiod's name for them.
        metadata: ObjectMeta { generate_name: Some("csr-workload-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(order.request.as_bytes().to_vec()),
            signer_name: order.signer.to_owned(),
            usages: Some(order.usages.iter().map(|usage| (*usage).to_owned()).collect()),
            expiration_seconds: Some(i32::try_from(order.lifetime).unwrap_or(i32::MAX)),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    serde_json::to_vec(&request).map_err(|error| error.to_string())
}

async fn create(
    cluster: Cluster,
    body: Vec<u8>,
    held: Box<dyn Any + Send>,
) -> Result<(CertificateSigningRequest, Cleanup), Fault> {
    let made = read(&cluster.api().call(Method::POST, PATH, JSON, JSON, body).await?)?;
    let name = made.metadata.name.clone().unwrap_or_default();
    let uid = made.metadata.uid.clone();
    Ok((made, Cleanup { cluster, name, uid, held: Some(held) }))
}

fn read(text: &str) -> Result<CertificateSigningRequest, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::Broken(error.to_string()))
}

async fn fetch(cluster: &Cluster, name: &str) -> Result<CertificateSigningRequest, Fault> {
    read(&cluster.api().get(&format!("{PATH}/{name}"), JSON).await?)
}

/// Says yes to our own request, whose sender was authenticated and asks for nothing but his identity.
async fn approve(
    cluster: &Cluster,
    mut request: CertificateSigningRequest,
    whom: &str,
) -> Result<CertificateSigningRequest, String> {
    let name = request.metadata.name.clone().unwrap_or_default();
    let path = format!("{PATH}/{name}/approval");
    let words = |fault: Fault| format!("failed to approve CSR request: {fault}");
    for _ in 0..ATTEMPTS {
        // Somebody may have decided before us.
        if let Some(outcome) = outcome(&request) {
            return outcome.map(|_| request);
        }
        let conditions = request.status.get_or_insert_default().conditions.get_or_insert_default();
        if !conditions.iter().any(|condition| condition.type_ == "Approved") {
            conditions.push(CertificateSigningRequestCondition {
                type_: "Approved".to_owned(),
                status: "True".to_owned(),
                reason: Some("IdentityProven".to_owned()),
                message: Some(format!("CSR ({name}) for the certificate ({whom}) is approved")),
                ..CertificateSigningRequestCondition::default()
            });
        }
        let body = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        match cluster.api().call(Method::PUT, &path, JSON, JSON, body).await {
            Ok(text) => return read(&text).map_err(words),
            Err(fault) if fault.code() == 409 => request = fetch(cluster, &name).await.map_err(words)?,
            Err(fault) => return Err(words(fault)),
        }
    }
    Err("failed to approve CSR request: others change it all the time".to_owned())
}

/// What has become of a request; `None`: nothing yet.
fn outcome(request: &CertificateSigningRequest) -> Option<Result<Vec<u8>, String>> {
    let status = request.status.as_ref()?;
    let no = status.conditions.iter().flatten();
    // Deviation: istiod does not see that a request was denied or has failed, and waits for a minute.
    let mut no = no.filter(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
    if let Some(condition) = no.next() {
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let what = condition.type_.to_lowercase();
        let [reason, message] =
            [&condition.reason, &condition.message].map(|text| text.as_deref().unwrap_or_default());
        return Some(Err(format!("CSR {name} was {what}: {reason}: {message}")));
    }
    let certificate = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty())?;
    Some(Ok(certificate.0.clone()))
}

/// One event of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// Waits for what becomes of a request that was in this state.
async fn wait(cluster: &Cluster, name: &str, mut seen: CertificateSigningRequest) -> Result<Vec<u8>, String> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1, Rng::from_entropy());
    loop {
        if let Some(outcome) = outcome(&seen) {
            return outcome;
        }
        let since = seen.metadata.resource_version.as_deref().unwrap_or_default();
        let path = format!("{PATH}?watch=true&fieldSelector=metadata.name%3D{name}&resourceVersion={since}");
        match cluster.api().lines(&path, JSON).await {
            Ok(mut lines) => {
                while let Ok(Some(line)) = lines.next().await {
                    let Ok(event) = serde_json::from_slice::<Event>(&line) else { break };
                    match event.kind.as_str() {
                        "ADDED" | "MODIFIED" => {
                            let Ok(object) = serde_json::from_value(event.object) else { break };
                            if let Some(outcome) = outcome(&object) {
                                return outcome;
                            }
                        }
                        "BOOKMARK" => {}
                        // Deleted, or an error.
                        _ => break,
                    }
                }
            }
            Err(fault) => tracing::debug!(%fault, name, "the request cannot be watched"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
        match fetch(cluster, name).await {
            Ok(object) => seen = object,
            Err(fault) if fault.code() == 404 => return Err(format!("CSR {name} was deleted by somebody")),
            Err(fault) => tracing::debug!(%fault, name, "the request cannot be read"),
        }
    }
}

/// Deletes a request when nobody waits for it any more.
struct Cleanup {
    cluster: Cluster,
    name: String,
    uid: Option<String>,
    held: Option<Box<dyn Any + Send>>,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let (cluster, name) = (self.cluster.clone(), std::mem::take(&mut self.name));
        let held = self.held.take();
        let body =
            json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": self.uid } });
        // Without a runtime the process ends, and Kubernetes deletes it within a day.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let _held = held;
            let path = format!("{PATH}/{name}");
            let mut backoff = Backoff::new(RETRY.0, RETRY.1, Rng::from_entropy());
            for _ in 0..ATTEMPTS {
                let body = body.to_string().into_bytes();
                match cluster.api().call(Method::DELETE, &path, JSON, JSON, body).await {
                    Ok(_) => return,
                    Err(fault) if matches!(fault.code(), 404 | 409) => return,
                    Err(fault) => {
                        tracing::warn!(%fault, name, "a CertificateSigningRequest cannot be deleted");
                    }
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        });
    }
}
