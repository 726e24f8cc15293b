//! The names of the mesh, as the control plane tells them: Istio's `istio.networking.nds.v1.NameTable`.

use std::collections::BTreeMap;

/// The type of the resource.
pub const TYPE_URL: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// The names that a proxy's workload may look up.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameTable {
    /// By host; some begin with `*.`.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// What is known of a name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameInfo {
    /// Its addresses, of both families.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// Who knows it: `Kubernetes`, or others.
    #[prost(string, tag = "2")]
    pub registry: String,
    /// The name of a Kubernetes Service.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Its namespace.
    #[prost(string, tag = "4")]
    pub namespace: String,
}
