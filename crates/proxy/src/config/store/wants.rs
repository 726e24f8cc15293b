//! What clusters and listeners refer to, and how they want it.

use std::sync::Arc;
use std::time::Duration;

use leno_base::Name;

use crate::cluster::{Cluster, Discovery, DnsDiscovery};
use crate::config::source::ResourceKey;
use crate::config::store::table::{Reference, Versioned, Want};
use crate::http::config::RouteSource;
use crate::listener::{Listener, NetworkFilters};
use crate::tls::secrets::{self, SecretRef};

impl Versioned for Cluster {
    fn name(&self) -> &Name {
        &self.name
    }

    fn source(&self) -> &[u8] {
        &self.source
    }

    fn added_via_api(&self) -> bool {
        self.added_via_api
    }

    fn wants(&self) -> Vec<Want> {
        let endpoints = match &self.discovery {
            Discovery::Eds { service, initial_fetch_timeout } => Some(Want {
                reference: Reference::endpoints(service),
                timeout: *initial_fetch_timeout,
                user: self.stat_name.clone(),
            }),
            _ => None,
        };
        endpoints.into_iter().chain(secrets::of_cluster(self).map(secret)).collect()
    }
}

impl Versioned for Listener {
    fn name(&self) -> &Name {
        &self.name
    }

    fn source(&self) -> &[u8] {
        &self.source
    }

    fn added_via_api(&self) -> bool {
        self.added_via_api
    }

    fn takes_same(&self, other: &Self) -> bool {
        self.discovered().map(|filter| filter.seen()).eq(other.discovered().map(|filter| filter.seen()))
    }

    fn wants(&self) -> Vec<Want> {
        let routes = rds(self).map(|(table, timeout, prefix)| Want {
            reference: Reference::routes(table),
            timeout,
            user: prefix.clone(),
        });
        let extensions = self.discovered().map(|filter| Want {
            reference: Reference::extension(filter.key()),
            timeout: filter.timeout(),
            user: Name::default(),
        });
        routes.chain(secrets::of_listener(self).map(secret)).chain(extensions).collect()
    }
}

pub(super) fn dns_settings(cluster: &Cluster) -> Option<&Arc<DnsDiscovery>> {
    match &cluster.discovery {
        Discovery::StrictDns(settings) | Discovery::LogicalDns(settings) => Some(settings),
        Discovery::Static(_)
        | Discovery::Eds { .. }
        | Discovery::OriginalDst { .. }
        | Discovery::DynamicForwardProxy(_)
        | Discovery::Aggregate(_) => None,
    }
}

/// What a cluster asks of EDS.
pub(super) fn eds(cluster: &Cluster) -> Option<&ResourceKey> {
    match &cluster.discovery {
        Discovery::Eds { service, .. } => Some(service),
        _ => None,
    }
}

fn secret(secret: &SecretRef) -> Want {
    Want { reference: Reference::secret(&secret.key), timeout: secret.timeout, user: Name::default() }
}

/// What a listener's connection managers ask of RDS, how long each waits for it, and its
/// `stat_prefix`.
pub(super) fn rds(listener: &Listener) -> impl Iterator<Item = (&ResourceKey, Option<Duration>, &Name)> {
    listener.chains.all().filter_map(|chain| match &chain.network {
        NetworkFilters::Http(manager) => match &manager.routes {
            RouteSource::Rds { table, initial_fetch_timeout } => {
                Some((table, *initial_fetch_timeout, &manager.stat_prefix))
            }
            RouteSource::Static(_) | RouteSource::Scoped(_) => None,
        },
        NetworkFilters::Tcp(_) | NetworkFilters::Echo | NetworkFilters::Direct(_) | NetworkFilters::Close => {
            None
        }
    })
}
