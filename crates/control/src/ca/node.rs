//! Proxies of whole nodes: ztunnel asks for certificates in the name of the workloads on its node.
//!
//! It may if its service account is trusted with that (`CA_TRUSTED_NODE_ACCOUNTS`), and if a Pod with
//! the wanted service account is on the node of the Pod that its token was issued to: one that was
//! broken into gives away the workloads of its node, and no others. The API server is asked, so that
//! what it says is new: a certificate is rare beside what watching all Pods for this would cost.

use std::time::Duration;

use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use leno_tls::issue::SpiffeId;
use leno_xds::server::listen::{Caller, Pod as PodOf};

use crate::access::Domains;
use crate::source::kube::Cluster;

/// How long the API server may think about it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Decides who may ask in whose name.
#[derive(Clone)]
pub(crate) struct Nodes {
    /// `NAMESPACE/NAME` of those that are trusted.
    pub(crate) accounts: Vec<String>,
    /// Where Pods are known.
    pub(crate) cluster: Option<Cluster>,
    /// The trust domains of the mesh.
    pub(crate) domains: Domains,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

impl Nodes {
    /// Whether a caller may have a certificate of another.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn authorize(&self, caller: &Caller, wanted: &str) -> Result<SpiffeId, String> {
        if self.accounts.is_empty() {
            return Err("impersonation is not allowed, as CA_TRUSTED_NODE_ACCOUNTS is not set".to_owned());
        }
        let [identity] = caller.identities.as_slice() else {
            return Err("the caller has not one identity".to_owned());
        };
        let identity = SpiffeId::parse(identity)?;
        let own = identity.account().ok_or("the caller is no service account")?;
        if !self.accounts.contains(&format!("{}/{}", own.0, own.1)) {
            return Err("the caller is not trusted to impersonate".to_owned());
        }
        let wanted = SpiffeId::parse(wanted)?;
        // Istiod does not look at the trust domain.
        if !self.domains.have(wanted.as_str()) {
            return Err("the identity is not of a trust domain of the mesh".to_owned());
        }
        let account = wanted.account().ok_or("the identity is not a service account's")?;
        let pod = caller.pod.as_ref().ok_or("it is not known in which Pod the caller is")?;
        let cluster = self.cluster.as_ref().ok_or("there is no cluster whose Pods are known")?;
        let late = |_| "the API server does not answer".to_owned();
        tokio::time::timeout(PATIENCE, share_node(cluster, pod, own, account)).await.map_err(late)??;
        Ok(wanted)
    }
}

/// Whether a Pod of a service account is on the same node as this one.
async fn share_node(
    cluster: &Cluster,
    pod: &PodOf,
    own: (&str, &str),
    (namespace, account): (&str, &str),
) -> Result<(), String> {
    if pod.namespace != own.0 {
        return Err("the token is not of the Pod's namespace".to_owned());
    }
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
    let found: Pod = fetch(cluster, &path).await?;
    if found.metadata.uid.as_deref() != Some(&pod.uid) {
        return Err("the Pod is another of the same name by now".to_owned());
    }
    let spec = found.spec.unwrap_or_default();
    if spec.service_account_name.as_deref() != Some(own.1) {
        return Err("the Pod has another service account".to_owned());
    }
    let node = spec.node_name.filter(|node| !node.is_empty()).ok_or("the Pod is on no node")?;
    let path = format!(
        "/api/v1/namespaces/{namespace}/pods?limit=500&fieldSelector=spec.nodeName%3D{node},\
         spec.serviceAccountName%3D{account},status.phase%21%3DFailed"
    );
    let on_node: List<Pod> = fetch(cluster, &path).await?;
    // What was asked for is looked at again: a server that does not know a selector may ignore it.
    let is_there = on_node.items.iter().any(|pod| {
        let failed = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
        let spec = pod.spec.as_ref();
        !failed
            && spec.is_some_and(|spec| {
                spec.node_name.as_ref() == Some(&node)
                    && spec.service_account_name.as_deref() == Some(account)
            })
    });
    if is_there { Ok(()) } else { Err(format!("no Pod of {namespace}/{account} is on the node {node}")) }
}

async fn fetch<T: serde::de::DeserializeOwned>(cluster: &Cluster, path: &str) -> Result<T, String> {
    let text = cluster.api().get(path, "application/json").await.map_err(|fault| fault.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}
