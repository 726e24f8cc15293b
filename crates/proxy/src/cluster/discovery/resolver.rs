//! Who is asked for a name's addresses: the system, or the DNS servers that are configured.
//!
//! The system's way (getaddrinfo) honours /etc/hosts, nsswitch and all their changes, and
//! knows no TTL. Servers given by `resolvers` are asked directly.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use crate::cluster::{DnsDiscovery, DnsFamily};

/// What was found for a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Addresses in the order given; empty if the name does not exist or has none.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long they are good, if known.
    pub(crate) ttl: Option<Duration>,
}

/// Nobody could say; what was known before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LookupError(pub(crate) String);

/// Something that finds addresses.
pub(crate) trait Resolve: Sync {
    /// The addresses of a name that the family asks for.
    fn lookup(
        &self,
        name: &str,
        family: DnsFamily,
    ) -> impl Future<Output = Result<Found, LookupError>> + Send;
}

/// The resolver of a cluster.
pub(crate) enum Resolver {
    /// getaddrinfo.
    System,
    /// These servers.
    Servers(Box<TokioResolver>),
    /// Servers that cannot be asked, and why.
    Broken(String),
}

impl Resolver {
    /// The resolver that the settings ask for.
    pub(crate) fn new(settings: &DnsDiscovery) -> Self {
        if settings.resolvers.is_empty() {
            return Resolver::System;
        }
        let servers = settings.resolvers.iter().map(|server| server_config(*server, settings.tcp)).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        // Refreshing is ours: an answer from a cache would only make it late.
        options.cache_size = 0;
        options.ip_strategy = match settings.family {
            DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
            DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
            DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
            DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
            DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
        };
        match builder.build() {
            Ok(resolver) => Resolver::Servers(Box::new(resolver)),
            Err(error) => Resolver::Broken(error.to_string()),
        }
    }
}

fn server_config(server: SocketAddr, tcp_only: bool) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::tcp()];
    if !tcp_only {
        connections.insert(0, ConnectionConfig::udp());
    }
    for connection in &mut connections {
        connection.port = server.port();
    }
    NameServerConfig::new(server.ip(), true, connections)
}

impl Resolve for Resolver {
    async fn lookup(&self, name: &str, family: DnsFamily) -> Result<Found, LookupError> {
        match self {
            Resolver::System => match tokio::net::lookup_host((name, 0)).await {
                Ok(found) => {
                    let addresses = select(family, found.map(|address| address.ip()));
                    Ok(Found { addresses, ttl: None })
                }
                Err(error) => system_error(&error.to_string()),
            },
            Resolver::Servers(resolver) => match resolver.lookup_ip(name).await {
                Ok(found) => {
                    let ttl = found.valid_until().saturating_duration_since(Instant::now());
                    Ok(Found { addresses: select(family, found.iter()), ttl: Some(ttl) })
                }
                Err(error) if error.is_no_records_found() => Ok(Found::default()),
                Err(error) => Err(LookupError(error.to_string())),
            },
            Resolver::Broken(error) => Err(LookupError(error.clone())),
        }
    }
}

/// A failure of getaddrinfo: that there is no such name is an answer, as for Envoy. The C
/// library's texts are all that the standard library leaves of its codes.
pub(crate) fn system_error(error: &str) -> Result<Found, LookupError> {
    const NO_NAME: [&str; 3] =
        ["Name or service not known", "No address associated with hostname", "Name does not resolve"];
    match NO_NAME.iter().any(|text| error.contains(text)) {
        true => Ok(Found::default()),
        false => Err(LookupError(error.to_owned())),
    }
}

/// The addresses that a family asks for, each once, in order.
pub(crate) fn select(family: DnsFamily, addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let of = |v4: bool| all.iter().copied().filter(|address| address.is_ipv4() == v4).collect::<Vec<_>>();
    let either = |first: Vec<IpAddr>, second: Vec<IpAddr>| if first.is_empty() { second } else { first };
    match family {
        DnsFamily::V4Only => of(true),
        DnsFamily::V6Only => of(false),
        DnsFamily::Auto => either(of(false), of(true)),
        DnsFamily::V4Preferred => either(of(true), of(false)),
        DnsFamily::All => all,
    }
}
