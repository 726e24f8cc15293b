//! What comes in: typed, validated resources, one file or folder per kind.
//!
//! `read.rs` has the list of kinds and reads an object from a YAML node; START HERE to add a kind.
//! An object with an error is refused as a whole (its last good version stays); what is only not
//! supported yet is a warning. Nothing is ignored in silence.

pub(crate) mod check;
pub(crate) mod destination_rule;
pub(crate) mod diagnostic;
pub(crate) mod duration;
pub(crate) mod gateway;
pub(crate) mod inputs;
pub(crate) mod kube;
pub(crate) mod mesh;
pub(crate) mod read;
pub(crate) mod service_entry;
pub(crate) mod string_match;
pub(crate) mod switches;
pub(crate) mod virtual_service;

use std::collections::BTreeMap;
use std::fmt;

use self::destination_rule::DestinationRule;
use self::gateway::Gateway;
use self::mesh::MeshConfig;
use self::service_entry::ServiceEntry;
use self::virtual_service::VirtualService;
use crate::source::Origin;

/// The kinds that are read. Others are tolerated or reported, see `read.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Kubernetes' Service.
    Service,
    /// Kubernetes' EndpointSlice.
    EndpointSlice,
    /// Kubernetes' Pod.
    Pod,
    /// The ConfigMap `istio` with the MeshConfig.
    MeshConfig,
    /// Istio's ServiceEntry.
    ServiceEntry,
    /// Istio's VirtualService.
    VirtualService,
    /// Istio's DestinationRule.
    DestinationRule,
    /// Istio's Gateway.
    Gateway,
}

impl Kind {
    /// Whether a change of such an object is a change of endpoints, which must not wait.
    pub(crate) fn is_endpoint(self) -> bool {
        matches!(self, Kind::Pod | Kind::EndpointSlice)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// The name without the kind.
    pub(crate) fn key(&self) -> Key {
        Key { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Names one object among those of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    /// The name with a kind.
    pub(crate) fn of(&self, kind: Kind) -> ObjectRef {
        ObjectRef { kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What all objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// RFC 3339, so that text order is time order; empty if unknown. Older objects win conflicts.
    pub(crate) created: String,
}

impl Meta {
    /// The object's name among those of its kind.
    pub(crate) fn key(&self) -> Key {
        Key { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// What Istio orders competing objects by.
    pub(crate) fn age(&self) -> (&str, &str, &str) {
        (&self.created, &self.name, &self.namespace)
    }
}

/// An Istio object: what all have, and the part of its kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config<T> {
    pub(crate) meta: Meta,
    pub(crate) spec: T,
}

/// An object that was read and found good.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "it travels in a box, and then only its content does")]
pub(crate) enum Object {
    Service(kube::Service),
    EndpointSlice(kube::EndpointSlice),
    Pod(kube::Pod),
    MeshConfig(MeshConfig),
    ServiceEntry(Config<ServiceEntry>),
    VirtualService(Config<VirtualService>),
    DestinationRule(Config<DestinationRule>),
    Gateway(Config<Gateway>),
}

/// One difference between what the sources held before and hold now.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The object is new or different, or at least read again.
    Set(ObjectRef, Box<Object>, Origin),
    /// The object is gone.
    Remove(ObjectRef),
}

impl Change {
    /// The object that it is about.
    pub(crate) fn object(&self) -> &ObjectRef {
        match self {
            Change::Set(object, ..) | Change::Remove(object) => object,
        }
    }
}
