//! Services with which nobody disputes a domain, wherever a client is and whatever it sees: nearly all.
//!
//! Whose virtual host has a domain depends on all that could have it too: short names, other spellings,
//! shared addresses, hosts of rules. That is looked at once for each service here and not once for each
//! client of it, so that a client's virtual host depends on little, and costs little.

use std::net::IpAddr;
use std::sync::Arc;

use leno_derive::{Cx, Query};

use super::super::sidecar::short_names;
use crate::model::inputs::{EntriesByAddress, Services, ServicesByAddress};
use crate::model::{Key, Kind};
use crate::registry::alias::{AliasesOf, EntriesByName};
use crate::registry::{self, Resolution, Service, ServicesOf, address, kubernetes_name};
use crate::scope::rules;

/// What is known of a service's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// No other service and no rule could have one of its domains, and none of these is a wildcard or
    /// another name of it.
    pub(super) alone: bool,
    /// There may be rules that have to do with it.
    pub(super) ruled: bool,
}

/// Finds it.
pub(super) struct StandingOf;

impl Query for StandingOf {
    type Key = String;
    type Value = Standing;
    const NAME: &'static str = "on-demand-standing";

    fn derive(cx: &Cx<'_>, host: &String) -> Standing {
        Standing { alone: is_alone(cx, host), ruled: rules::are_any_for(cx, host) }
    }
}

fn is_alone(cx: &Cx<'_>, host: &str) -> bool {
    // One without a dot may be the short name of another, in whose namespace the client is; one that ends
    // with a dot is the same as another.
    let is_plain = host.contains('.') && !host.contains('*') && !host.ends_with('.');
    if !is_plain || host.parse::<IpAddr>().is_ok() || host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return false;
    }
    let services = registry::of_host(cx, host);
    let has_other_names = |service: &Arc<Service>| match service.resolution {
        Resolution::Alias => true,
        // Its pods have names of their own.
        Resolution::OriginalDst => service.is_kubernetes(),
        _ => false,
    };
    if services.iter().any(has_other_names) || !cx.get::<AliasesOf>(&host.to_owned()).is_empty() {
        return false;
    }
    let is_own = |key: &Key, kind| services.iter().any(|service| service.id.object == key.of(kind));
    let are_own = |entries: Vec<Key>| entries.iter().all(|key| is_own(key, Kind::ServiceEntry));
    let mut names = vec![host.to_owned()];
    let base = kubernetes_name(host);
    names.extend(base.map(|(_, namespace)| short_names(host, namespace)).into_iter().flatten());
    for service in &services {
        for address in service.vips() {
            let others = cx.bucket::<ServicesByAddress>(&address);
            if !others.iter().all(|key| is_own(key, Kind::Service))
                || !are_own(cx.bucket::<EntriesByAddress>(&address))
            {
                return false;
            }
            // One that was given belongs to nobody else, unless he says so; one that could be is hardly ever
            // asked for.
            let is_given = service.given_v6.is_some() && service.addresses.len() == 1;
            if address::is_to_give(address) && !is_given {
                return false;
            }
            names.push(address.to_string());
        }
        if let Some(given) = service.given_v6
            && !cx.bucket::<EntriesByAddress>(&IpAddr::V6(given)).is_empty()
        {
            return false;
        }
    }
    if services.iter().any(|service| has_rival(cx, service))
        || rules::is_named_by_any(cx, &format!("{host}."))
    {
        return false;
    }
    names.iter().all(|name| {
        // Rules name Services by their full names.
        let is_ruled = || *name != host && name.contains(['.', ':']) && rules::is_named_by_any(cx, name);
        are_own(cx.bucket::<EntriesByName>(name)) && !is_ruled() && !is_kubernetes(cx, name, host)
    })
}

/// Whether the object that declares a service declares another that could have one of its domains.
fn has_rival(cx: &Cx<'_>, service: &Service) -> bool {
    let host = &service.id.host;
    let is_rival = |other: &Service| {
        let other = other.id.host.to_ascii_lowercase();
        // They have the same addresses.
        !service.addresses.is_empty() || other.starts_with(host.as_str()) || host.starts_with(&other)
    };
    service.id.object.kind == Kind::ServiceEntry
        && cx
            .get::<ServicesOf>(&service.id.object)
            .iter()
            .any(|other| other.id.host != *host && is_rival(other))
}

/// Whether a name is a short one of a Kubernetes Service with another host.
fn is_kubernetes(cx: &Cx<'_>, name: &str, host: &str) -> bool {
    let short = name.strip_suffix(".svc").unwrap_or(name);
    let Some((service, namespace)) = short.split_once('.') else { return false };
    // No namespace has a dot in its name.
    if namespace.contains('.') || kubernetes_name(host) == Some((service, namespace)) {
        return false;
    }
    let key = Key { namespace: namespace.to_owned(), name: service.to_owned() };
    cx.input::<Services>(&key).is_some()
}
