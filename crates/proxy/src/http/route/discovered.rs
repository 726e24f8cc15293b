//! Virtual hosts that come one by one (VHDS), beside those of a route table's own message.
//!
//! They lie in maps that copies share, so that the table with one host more is made at a cost that
//! does not grow with the hosts: all that is copied is a list of shards and the shard that changes.
//! Wildcards are few, and are copied whole when one of them changes.

use std::sync::Arc;

use leno_api::proto::envoy::config::route::v3 as proto;
use leno_base::Name;
use prost::Name as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::Any;

use crate::config::lower::Lower;
use crate::config::source::ConfigSource;
use crate::http::route::config::{self, TableSettings};
use crate::http::route::domains::{Domains, Kind, Wildcards};
use crate::http::route::table::{Host, RouteTable, VIRTUAL_HOSTS, repeated};
use crate::snapshot::SharedMap;

/// What a table with `vhds` has beside its own virtual hosts.
#[derive(Clone, Debug)]
pub(super) struct Discovered {
    /// `vhds.config_source`.
    source: Arc<ConfigSource>,
    /// What the table says of all its virtual hosts.
    settings: Arc<TableSettings>,
    /// By the names that they came under (`TABLE/...`).
    by_name: SharedMap<DiscoveredHost>,
    exact: SharedMap<Host>,
    wildcards: Arc<Wildcards<Arc<Host>>>,
}

/// A virtual host, and what it was made from.
#[derive(Debug)]
struct DiscoveredHost {
    host: Arc<Host>,
    /// VirtualHost in wire form.
    wire: Box<[u8]>,
}

/// One that is good for a table, but not in it yet.
#[derive(Debug)]
pub(crate) struct NewHost(DiscoveredHost);

impl Discovered {
    pub(super) fn new(source: ConfigSource, settings: TableSettings) -> Self {
        Self {
            source: Arc::new(source),
            settings: Arc::new(settings),
            by_name: SharedMap::default(),
            exact: SharedMap::default(),
            wildcards: Arc::default(),
        }
    }

    /// The virtual host of a host name in lower case, among these and `own` as if they were one
    /// list.
    pub(super) fn find<'t>(
        &'t self,
        host: &str,
        own: &Domains,
        hosts: &'t [Arc<Host>],
    ) -> Option<&'t Arc<Host>> {
        let at = |place: usize| hosts.get(place);
        let any = || own.wildcards().any.and_then(at).or(self.wildcards.any.as_ref());
        if host.is_empty() {
            return any();
        }
        if let Some(place) = own.exact(host) {
            return at(place);
        }
        if let Some(found) = self.exact.get(host) {
            return Some(found);
        }
        // Two of the same length would be the same.
        let longer = |one: Option<(usize, &usize)>, other: Option<(usize, &'t Arc<Host>)>| match (one, other)
        {
            (Some((length, place)), other) if other.is_none_or(|(other, _)| length > other) => at(*place),
            (_, other) => other.map(|(_, host)| host),
        };
        longer(own.wildcards().suffix(host), self.wildcards.suffix(host))
            .or_else(|| longer(own.wildcards().prefix(host), self.wildcards.prefix(host)))
            .or_else(any)
    }

    /// Who has this very domain.
    fn owner(&self, domain: &str) -> Option<&Arc<Host>> {
        match Kind::of(domain) {
            Kind::Exact => self.exact.get(domain),
            _ => self.wildcards.get(domain),
        }
    }

    fn insert(&mut self, name: Name, host: DiscoveredHost) {
        self.remove(&name);
        for domain in &host.host.domains {
            match Kind::of(domain) {
                Kind::Exact => self.exact.insert(domain.clone(), Arc::clone(&host.host)),
                _ => Arc::make_mut(&mut self.wildcards).insert(domain, Arc::clone(&host.host)),
            }
        }
        self.by_name.insert(name, Arc::new(host));
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(before) = self.by_name.get(name).cloned() else { return false };
        for domain in &before.host.domains {
            match Kind::of(domain) {
                Kind::Exact => self.exact.remove(domain),
                _ => Arc::make_mut(&mut self.wildcards).remove(domain),
            }
        }
        self.by_name.remove(name);
        true
    }
}

impl RouteTable {
    /// Where further virtual hosts come from; `None`: there are none but its own.
    pub(crate) fn vhds(&self) -> Option<&ConfigSource> {
        self.discovered.as_deref().map(|discovered| &*discovered.source)
    }

    /// Whether a virtual host has come under this name.
    pub(crate) fn has_discovered(&self, name: &str) -> bool {
        self.discovered.as_deref().is_some_and(|discovered| discovered.by_name.contains_key(name))
    }

    /// Whether this very virtual host is there under a name.
    pub(crate) fn is_discovered(&self, name: &str, wire: &[u8]) -> bool {
        let known = self.discovered.as_deref().and_then(|discovered| discovered.by_name.get(name));
        known.is_some_and(|known| *known.wire == *wire)
    }

    /// Lowers a virtual host that came under a name. It may have domains of the one that it takes the
    /// place of, but of no others.
    pub(crate) fn lower_discovered(&self, name: &str, wire: &[u8], at: &mut Lower) -> Option<NewHost> {
        let discovered = self.discovered.as_deref()?;
        let any = Any { type_url: proto::VirtualHost::type_url(), value: wire.to_vec() };
        let host = config::virtual_host(at.decode(&any)?, &discovered.settings, at)?;
        let before = discovered.by_name.get(name).map(|before| &before.host);
        for (place, domain) in host.domains.iter().enumerate() {
            let twice = host.domains.iter().take(place).any(|earlier| earlier == domain);
            let owner = discovered.owner(domain);
            let others = owner.is_some_and(|owner| before.is_none_or(|before| !Arc::ptr_eq(owner, before)));
            if twice || others || self.domains.contains(domain) {
                at.error_at(&format!("domains[{place}]"), repeated(domain, &self.name));
            }
        }
        Some(NewHost(DiscoveredHost { host: Arc::new(host), wire: wire.into() }))
    }

    /// Takes it, in place of what came under the same name before.
    pub(crate) fn put_discovered(&mut self, name: Name, found: NewHost) {
        if let Some(discovered) = &mut self.discovered {
            discovered.insert(name, found.0);
        }
    }

    /// Takes out the virtual host that came under a name; false: there is none.
    pub(crate) fn remove_discovered(&mut self, name: &str) -> bool {
        self.discovered.as_mut().is_some_and(|discovered| discovered.remove(name))
    }

    /// Takes over what came for the table that this one takes the place of. Hosts whose domains this
    /// table has itself now are told to `at`.
    pub(crate) fn keep_discovered(&mut self, previous: &RouteTable, at: &mut Lower) {
        let (Some(discovered), Some(known)) = (&mut self.discovered, previous.discovered.as_deref()) else {
            return;
        };
        if self.common == previous.common {
            let known = known.clone();
            discovered.by_name = known.by_name;
            discovered.exact = known.exact;
            discovered.wildcards = known.wildcards;
            for (name, host) in discovered.by_name.iter() {
                let domains = host.host.domains.iter().enumerate();
                for (place, domain) in domains.filter(|(_, domain)| self.domains.contains(domain)) {
                    at.error_at(&format!("vhds[{name}].domains[{place}]"), repeated(domain, &self.name));
                }
            }
            return;
        }
        // What the table says of all of them may be something else now.
        for (name, host) in known.by_name.iter() {
            let lower = |at: &mut Lower| self.lower_discovered(name, &host.wire, at);
            if let Some(found) = at.field(&format!("vhds[{name}]"), lower) {
                self.put_discovered(name.clone(), found);
            }
        }
    }

    /// Writes the virtual hosts that came behind a RouteConfiguration in wire form, where they read as
    /// if they had been in it.
    pub(crate) fn append_discovered(&self, wire: &mut Vec<u8>) {
        let hosts = self.discovered.as_deref().into_iter().flat_map(|discovered| discovered.by_name.iter());
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort_unstable_by_key(|(name, _)| *name);
        for (_, host) in hosts {
            encode_key(VIRTUAL_HOSTS, WireType::LengthDelimited, wire);
            encode_varint(host.wire.len() as u64, wire);
            wire.extend_from_slice(&host.wire);
        }
    }
}
