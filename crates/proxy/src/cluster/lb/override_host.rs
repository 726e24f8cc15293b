//! The override_host extension: the request names its endpoints, in a header or in its dynamic
//! metadata, as a list of which each attempt takes the next one that the cluster has. Where none
//! is left, the fallback policy chooses.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::hosts::Hosts;
use super::settings::{OverrideHosts, OverrideSource};
use super::{Balancer, Surroundings, Turn, build};
use crate::cluster::worker_cluster::Host;
use crate::cluster::{EndpointAddress, PickContext};
use crate::telemetry::stream_info::DynamicMetadata;

pub(super) struct OverrideHostBalancer {
    settings: Arc<OverrideHosts>,
    hosts: HashMap<EndpointAddress, Rc<Host>>,
    inner: Box<dyn Balancer>,
}

impl OverrideHostBalancer {
    pub(super) fn new(settings: Arc<OverrideHosts>, hosts: Hosts, around: &Surroundings, seed: u64) -> Self {
        let by_address = hosts.all().map(|host| (host.config.address.clone(), Rc::clone(host))).collect();
        let inner = build(&settings.inner, hosts, around, seed);
        Self { settings, hosts: by_address, inner }
    }

    /// The host that this attempt is meant for.
    fn named(&self, context: &PickContext<'_>) -> Option<Rc<Host>> {
        let lists = self.settings.sources.iter().filter_map(|source| match source {
            OverrideSource::Header(name) => std::str::from_utf8(context.headers?.find(name)?).ok(),
            OverrideSource::Metadata(namespace, path) => text_at(context.metadata?, namespace, path),
        });
        let named = lists.flat_map(|list| list.split(',')).map(str::trim).filter(|name| !name.is_empty());
        let mut known = named.filter_map(|name| self.hosts.get(&address(name)));
        known.nth(context.earlier_picks as usize).cloned()
    }
}

impl Balancer for OverrideHostBalancer {
    fn pick(&mut self, turn: &mut Turn<'_, '_>) -> Option<Rc<Host>> {
        self.named(turn.context).or_else(|| self.inner.pick(turn))
    }
}

/// An endpoint's address, as it is written for people.
pub(crate) fn address(text: &str) -> EndpointAddress {
    match text.parse::<SocketAddr>() {
        Ok(address) => EndpointAddress::Ip(address),
        Err(_) => EndpointAddress::Pipe(text.into()),
    }
}

fn text_at<'m>(metadata: &'m DynamicMetadata, namespace: &str, path: &[String]) -> Option<&'m str> {
    let (first, rest) = path.split_first()?;
    let value = metadata.get(namespace)?.get(first)?;
    rest.iter().try_fold(value, |value, key| value.get(key)).and_then(Value::as_str)
}
