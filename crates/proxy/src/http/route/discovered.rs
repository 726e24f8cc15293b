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

use crate::config::lower::{Lower, Rejected, Scope};
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

/// One that came for a table.
pub(crate) struct Coming<'c> {
    /// The name that it came under.
    pub(crate) name: &'c Name,
    /// VirtualHost in wire form.
    pub(crate) wire: &'c [u8],
    /// What lowering needs to know.
    pub(crate) scope: Scope,
}

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
        // Two of the same length are the same, of which the table's own counts.
        let longer = |one: Option<(usize, &usize)>, other: Option<(usize, &'t Arc<Host>)>| match (one, other)
        {
            (Some((length, place)), other) if other.is_none_or(|(other, _)| length >= other) => at(*place),
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

    /// Puts one into a table in place of what came under the same name, unless it has domains of another.
    fn put(&mut self, table: &str, name: &Name, host: Arc<DiscoveredHost>, at: &mut Lower) -> Option<()> {
        let before = self.by_name.get(name).map(|before| &before.host);
        let is_taken = |domain: &Name| {
            let owner = self.owner(domain);
            owner.is_some_and(|owner| before.is_none_or(|before| !Arc::ptr_eq(owner, before)))
        };
        let taken: Vec<_> =
            host.host.domains.iter().enumerate().filter(|(_, domain)| is_taken(domain)).collect();
        for (place, domain) in &taken {
            at.error_at(&format!("domains[{place}]"), repeated(domain, table));
        }
        if !taken.is_empty() {
            return None;
        }
        self.take(name);
        for domain in &host.host.domains {
            match Kind::of(domain) {
                Kind::Exact => self.exact.insert(domain.clone(), Arc::clone(&host.host)),
                _ => Arc::make_mut(&mut self.wildcards).insert(domain, Arc::clone(&host.host)),
            }
        }
        self.by_name.insert(name.clone(), host);
        Some(())
    }

    fn take(&mut self, name: &str) -> Option<Arc<DiscoveredHost>> {
        let before = self.by_name.get(name).cloned()?;
        for domain in &before.host.domains {
            match Kind::of(domain) {
                Kind::Exact => self.exact.remove(domain),
                _ => Arc::make_mut(&mut self.wildcards).remove(domain),
            }
        }
        self.by_name.remove(name);
        Some(before)
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

    /// Takes virtual hosts that came together, each in place of what came under its name before. What
    /// became of each: whether it is another one, or why it is refused; then the one before stays. Who has
    /// which domain is judged when all that they take the place of is out, so that a domain may go from one
    /// to another.
    pub(crate) fn put_discovered(&mut self, coming: &[Coming<'_>]) -> Vec<Result<bool, Rejected>> {
        let lower = |host: &Coming<'_>| {
            let lower = |at: &mut Lower| self.lower_discovered(host.wire, at);
            let is_known = self.is_discovered(host.name, host.wire);
            (!is_known).then(|| Lower::resource_in(host.scope.clone(), lower)).transpose()
        };
        let found: Vec<_> = coming.iter().map(lower).collect();
        let (table, Some(discovered)) = (&self.name, &mut self.discovered) else { return Vec::new() };
        let take = |(host, found): (&Coming<'_>, &Result<Option<_>, _>)| match found {
            Ok(Some(_)) => discovered.take(host.name),
            _ => None,
        };
        let before: Vec<_> = coming.iter().zip(&found).map(take).collect();
        let put = |(host, found): (&Coming<'_>, Result<Option<_>, _>)| match found? {
            Some(found) => {
                let put = |at: &mut Lower| discovered.put(table, host.name, found, at);
                Lower::resource_in(host.scope.clone(), put).map(|()| true)
            }
            None => Ok(false),
        };
        let outcomes: Vec<_> = coming.iter().zip(found).map(put).collect();
        for ((host, outcome), before) in coming.iter().zip(&outcomes).zip(before) {
            if outcome.is_err()
                && let Some(before) = before
            {
                // One of its domains may have gone to another.
                let _ = Lower::resource(|at| discovered.put(table, host.name, before, at));
            }
        }
        outcomes
    }

    /// Lowers a virtual host that came. It may have no domain twice, and none of the table's own.
    fn lower_discovered(&self, wire: &[u8], at: &mut Lower) -> Option<Arc<DiscoveredHost>> {
        self.lower_unless(wire, |domain| self.domains.contains(domain), at)
    }

    /// The same, but that it may not have domains that are `taken`.
    fn lower_unless(
        &self,
        wire: &[u8],
        taken: impl Fn(&str) -> bool,
        at: &mut Lower,
    ) -> Option<Arc<DiscoveredHost>> {
        let discovered = self.discovered.as_deref()?;
        let any = Any { type_url: proto::VirtualHost::type_url(), value: wire.to_vec() };
        let host = config::virtual_host(at.decode(&any)?, &discovered.settings, at)?;
        for (place, domain) in host.domains.iter().enumerate() {
            let twice = host.domains.iter().take(place).any(|earlier| earlier == domain);
            if twice || taken(domain) {
                at.error_at(&format!("domains[{place}]"), repeated(domain, &self.name));
            }
        }
        Some(Arc::new(DiscoveredHost { host: Arc::new(host), wire: wire.into() }))
    }

    /// Takes out the virtual host that came under a name; false: there is none.
    pub(crate) fn remove_discovered(&mut self, name: &str) -> bool {
        self.discovered.as_mut().is_some_and(|discovered| discovered.take(name).is_some())
    }

    /// Takes over what came for the table that this one takes the place of. What cannot be used any more is
    /// told to `at`.
    ///
    /// Deviation: a table may have domains of virtual hosts that came, and then has them itself, until those
    /// that came change. Envoy refuses it, and would refuse it for ever if the virtual hosts go by the same
    /// change that has brought it the domains, as they come behind it.
    pub(crate) fn keep_discovered(&mut self, previous: &RouteTable, at: &mut Lower) {
        let (Some(discovered), Some(known)) = (&mut self.discovered, previous.discovered.as_deref()) else {
            return;
        };
        if self.common == previous.common {
            let known = known.clone();
            discovered.by_name = known.by_name;
            discovered.exact = known.exact;
            discovered.wildcards = known.wildcards;
            return;
        }
        // What the table says of all of them may be something else now.
        for (name, host) in known.by_name.iter() {
            at.field(&format!("vhds[{name}]"), |at| {
                let found = self.lower_unless(&host.wire, |_| false, at)?;
                self.discovered.as_mut()?.put(&self.name, name, found, at)
            });
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
