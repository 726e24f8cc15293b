//! Which security policies apply to a workload, and what they come to.
//!
//! A policy of the mesh's root namespace is for all workloads, one of another namespace for those
//! there; a selector narrows it by labels, `targetRefs` to the gateway that they name. Of several
//! PeerAuthentications the narrowest says, and of equally narrow ones the oldest; of the other kinds
//! all count.

use std::collections::BTreeMap;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use crate::model::authorization_policy::{Action, AuthorizationPolicy};
use crate::model::inputs::{
    AuthorizationPolicies, AuthorizationPoliciesByNamespace, PeerAuthentications,
    PeerAuthenticationsByNamespace, RequestAuthentications, RequestAuthenticationsByNamespace,
};
use crate::model::label::GATEWAY_NAME;
use crate::model::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication};
use crate::model::request_authentication::RequestAuthentication;
use crate::model::selector::{PolicyTargetReference, WorkloadSelector, selects};
use crate::model::{Config, Kind, Meta, ObjectRef};
use crate::registry::Mesh;
use crate::registry::targets::Workload;

/// The API group of the Gateways that policies may name.
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a port of a workload takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum PeerMode {
    /// Plain text only; TLS of the mesh is not ended.
    Disable,
    /// Both.
    #[default]
    Permissive,
    /// The mesh's mutual TLS only.
    Strict,
}

impl PeerMode {
    /// What a policy says; `None` if it leaves it to wider ones.
    fn of(settings: Option<&MutualTls>) -> Option<PeerMode> {
        match settings?.mode {
            MutualTlsMode::Unset => None,
            MutualTlsMode::Disable => Some(PeerMode::Disable),
            MutualTlsMode::Permissive => Some(PeerMode::Permissive),
            MutualTlsMode::Strict => Some(PeerMode::Strict),
        }
    }
}

/// What the PeerAuthentications of a namespace and of the mesh say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NamespacePeers {
    /// For workloads that no policy selects.
    pub(crate) mode: PeerMode,
    /// The objects that say so.
    origins: Vec<ObjectRef>,
    /// Those that select workloads, oldest first.
    workloads: Vec<Arc<Config<PeerAuthentication>>>,
}

impl NamespacePeers {
    /// What a workload takes; `has` tells whether it carries all of some labels.
    pub(crate) fn of(&self, has: impl Fn(&BTreeMap<String, String>) -> bool) -> Peers {
        let mut peers = Peers { mode: self.mode, ports: BTreeMap::new(), origins: self.origins.clone() };
        let own = self
            .workloads
            .iter()
            .find(|policy| policy.spec.selector.as_ref().is_some_and(|selector| has(&selector.match_labels)));
        let Some(own) = own else { return peers };
        peers.origins.push(own.meta.key().of(Kind::PeerAuthentication));
        if let Some(mode) = PeerMode::of(own.spec.mtls.as_ref()) {
            peers.mode = mode;
        }
        for (port, settings) in &own.spec.port_level_mtls {
            let Ok(port) = u16::try_from(*port) else { continue };
            peers.ports.insert(port, PeerMode::of(Some(settings)).unwrap_or(peers.mode));
        }
        peers
    }

    /// Whether some workload may take no mutual TLS.
    pub(crate) fn may_disable(&self) -> bool {
        let disables = |settings: Option<&MutualTls>| PeerMode::of(settings) == Some(PeerMode::Disable);
        self.mode == PeerMode::Disable
            || self.workloads.iter().any(|policy| {
                disables(policy.spec.mtls.as_ref())
                    || policy.spec.port_level_mtls.values().any(|settings| disables(Some(settings)))
            })
    }
}

/// What a workload takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Peers {
    /// On ports that are not mentioned.
    pub(crate) mode: PeerMode,
    pub(crate) ports: BTreeMap<u16, PeerMode>,
    /// The objects that say so.
    pub(crate) origins: Vec<ObjectRef>,
}

impl Peers {
    /// What a port takes.
    pub(crate) fn mode(&self, port: u16) -> PeerMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// The PeerAuthentications of a namespace together with the mesh's.
pub(crate) struct PeersOfNamespace;

impl Query for PeersOfNamespace {
    type Key = String;
    type Value = NamespacePeers;
    const NAME: &'static str = "peers-of-namespace";

    fn derive(cx: &Cx<'_>, namespace: &String) -> NamespacePeers {
        let root = cx.get::<Mesh>(&()).root_namespace.clone();
        let mut peers = NamespacePeers::default();
        for place in [&root, namespace] {
            let policies = peer_policies(cx, place);
            let general = policies.iter().find(|policy| is_general(&policy.spec));
            if let Some(general) = general {
                let object = general.meta.key().of(Kind::PeerAuthentication);
                if !peers.origins.contains(&object) {
                    peers.origins.push(object);
                }
                peers.mode = PeerMode::of(general.spec.mtls.as_ref()).unwrap_or(peers.mode);
            }
            if place == namespace && *namespace != root {
                peers.workloads = policies.into_iter().filter(|policy| !is_general(&policy.spec)).collect();
            }
        }
        peers
    }
}

/// What a workload takes.
pub(crate) struct PeersOf;

impl Query for PeersOf {
    type Key = Workload;
    type Value = Peers;
    const NAME: &'static str = "peers-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Peers {
        let peers = cx.get::<PeersOfNamespace>(&workload.namespace);
        peers.of(|labels| selects(labels, &workload.labels))
    }
}

/// The PeerAuthentications of a namespace, oldest first.
pub(crate) fn peer_policies(cx: &Cx<'_>, namespace: &String) -> Vec<Arc<Config<PeerAuthentication>>> {
    let keys = cx.bucket::<PeerAuthenticationsByNamespace>(namespace);
    oldest_first(keys.iter().filter_map(|key| cx.input::<PeerAuthentications>(key)).collect())
}

/// Whether a policy is for a whole namespace, or the mesh.
pub(crate) fn is_general(policy: &PeerAuthentication) -> bool {
    policy.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
}

/// The AuthorizationPolicies that apply to a workload, by what they do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Authorization {
    pub(crate) custom: Vec<Arc<Config<AuthorizationPolicy>>>,
    pub(crate) audit: Vec<Arc<Config<AuthorizationPolicy>>>,
    pub(crate) deny: Vec<Arc<Config<AuthorizationPolicy>>>,
    pub(crate) allow: Vec<Arc<Config<AuthorizationPolicy>>>,
}

/// Finds them.
pub(crate) struct AuthorizationOf;

impl Query for AuthorizationOf {
    type Key = Workload;
    type Value = Authorization;
    const NAME: &'static str = "authorization-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Authorization {
        let mut found = Authorization::default();
        for place in places(cx, workload) {
            let keys = cx.bucket::<AuthorizationPoliciesByNamespace>(&place);
            let policies = keys.iter().filter_map(|key| cx.input::<AuthorizationPolicies>(key)).collect();
            for policy in oldest_first(policies) {
                let spec = &policy.spec;
                if !applies(
                    workload,
                    &policy.meta,
                    spec.selector.as_ref(),
                    targets(&spec.target_ref, &spec.target_refs),
                ) {
                    continue;
                }
                match spec.action {
                    Action::Allow => found.allow.push(policy),
                    Action::Deny => found.deny.push(policy),
                    Action::Audit => found.audit.push(policy),
                    Action::Custom => found.custom.push(policy),
                }
            }
        }
        found
    }
}

/// The RequestAuthentications that apply to a workload, those of its own namespace first.
pub(crate) struct AuthenticationOf;

impl Query for AuthenticationOf {
    type Key = Workload;
    type Value = Vec<Arc<Config<RequestAuthentication>>>;
    const NAME: &'static str = "authentication-of";

    fn derive(cx: &Cx<'_>, workload: &Workload) -> Vec<Arc<Config<RequestAuthentication>>> {
        let mut found = Vec::new();
        for place in places(cx, workload) {
            let keys = cx.bucket::<RequestAuthenticationsByNamespace>(&place);
            let policies = keys.iter().filter_map(|key| cx.input::<RequestAuthentications>(key)).collect();
            found.extend(oldest_first(policies).into_iter().filter(|policy| {
                let spec = &policy.spec;
                let targets = targets(&spec.target_ref, &spec.target_refs);
                applies(workload, &policy.meta, spec.selector.as_ref(), targets)
            }));
        }
        found
    }
}

/// All objects that have a say in who may call a workload, to be blamed for its listeners.
pub(crate) fn origins(cx: &Cx<'_>, workload: &Workload) -> Vec<ObjectRef> {
    let authorization = cx.get::<AuthorizationOf>(workload);
    let lists = [&authorization.custom, &authorization.audit, &authorization.deny, &authorization.allow];
    let policies = lists.into_iter().flatten();
    let mut all: Vec<ObjectRef> =
        policies.map(|policy| policy.meta.key().of(Kind::AuthorizationPolicy)).collect();
    let tokens = cx.get::<AuthenticationOf>(workload);
    all.extend(tokens.iter().map(|policy| policy.meta.key().of(Kind::RequestAuthentication)));
    all
}

/// The namespaces whose policies may apply to a workload.
fn places(cx: &Cx<'_>, workload: &Workload) -> Vec<String> {
    let root = cx.get::<Mesh>(&()).root_namespace.clone();
    let own = workload.namespace.clone();
    if own == root { vec![own] } else { vec![own, root] }
}

/// What a policy names; the field for one counts if the one for several is empty.
pub(super) fn targets<'p>(
    one: &'p Option<PolicyTargetReference>,
    several: &'p [PolicyTargetReference],
) -> &'p [PolicyTargetReference] {
    match one {
        Some(one) if several.is_empty() => std::slice::from_ref(one),
        _ => several,
    }
}

/// Whether a policy, of a namespace that concerns the workload, is for it.
pub(super) fn applies(
    workload: &Workload,
    meta: &Meta,
    selector: Option<&WorkloadSelector>,
    targets: &[PolicyTargetReference],
) -> bool {
    if targets.is_empty() {
        return selector.is_none_or(|selector| selector.matches(&workload.labels));
    }
    is_targeted(&workload.namespace, &workload.labels, meta, targets)
}

/// Whether something names the gateway that a workload is. Whatever is named must be a gateway: there
/// are no waypoints, for which the other kinds are.
pub(super) fn is_targeted(
    namespace: &str,
    labels: &BTreeMap<String, String>,
    meta: &Meta,
    targets: &[PolicyTargetReference],
) -> bool {
    let Some(gateway) = labels.get(GATEWAY_NAME) else { return false };
    meta.namespace == namespace
        && targets.iter().any(|target| {
            target.group == GATEWAY_GROUP
                && target.kind == "Gateway"
                && target.name == *gateway
                && (target.namespace.is_empty() || target.namespace == namespace)
        })
}

/// In the order in which Istio lets policies count.
pub(super) fn oldest_first<T>(mut policies: Vec<Arc<Config<T>>>) -> Vec<Arc<Config<T>>> {
    policies.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
    policies
}
