//! Who may call a workload, as filters and transport sockets of its listeners.
//!
//! - `authorization.rs`: AuthorizationPolicy as the filters `rbac`, of requests and of connections,
//!   with `rule.rs`, one rule of a policy, and `matcher.rs`, the conditions that these consist of;
//! - `authorizer.rs`: the action CUSTOM, which asks a provider by the filters `ext_authz`;
//! - `token.rs`: RequestAuthentication as the filter `jwt_authn`, with `keys.rs`, where the keys of
//!   issuers come from;
//! - `peer.rs`: PeerAuthentication as the chains of the inbound listener.
//!
//! Which policies apply is the matter of [`crate::scope::security`].

mod authorization;
pub(crate) mod authorizer;
pub(crate) mod keys;
mod matcher;
pub(crate) mod peer;
mod rule;
#[cfg(test)]
mod tests;
mod token;

use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_derive::Cx;
use prost::{Message, Name};

use super::listener::filters::{Filled, FilterScope, Side, Slot};
use super::proto::listener;
use super::resource::pack;
use crate::registry::targets::Workload;

/// What the security policies put into a slot of a workload's chains. They say nothing of what the
/// workload calls.
pub(crate) fn filled(cx: &Cx<'_>, slot: Slot, scope: &FilterScope) -> Filled {
    if scope.side == Side::Outbound {
        return Filled::default();
    }
    let workload = Workload { namespace: scope.namespace.clone(), labels: scope.labels.clone() };
    match slot {
        Slot::CustomAuthorization => authorizer::filters(cx, &workload, &scope.sight()),
        Slot::Authentication => Filled {
            http: token::filter(cx, &workload, &scope.sight(), scope.side == Side::Gateway)
                .into_iter()
                .collect(),
            network: Vec::new(),
        },
        Slot::Authorization => authorization::filters(cx, &workload),
        Slot::PeerMetadata | Slot::Telemetry => Filled::default(),
    }
}

/// The filters of a gRPC server that does without a proxy, which know of the actions DENY and ALLOW
/// only; `None` if there is a policy that they cannot enforce.
pub(crate) fn of_grpc(cx: &Cx<'_>, workload: &Workload) -> Option<Vec<hcm::HttpFilter>> {
    authorization::of_grpc(cx, workload)
}

fn http_filter<T: Message + Name>(name: &str, config: &T) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(config))),
        ..hcm::HttpFilter::default()
    }
}

fn network_filter<T: Message + Name>(name: &str, config: &T) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pack(config))),
    }
}
