//! Names, and what they resolve to.
//!
//! Made once of each table of the control plane, with all short forms under which a workload may know a
//! Service: `reviews`, `reviews.shop`, `reviews.shop.svc`. Resolvers try a name with their first search
//! domain first; such a name leads to the real one at once, which saves a walk through all of them. Names
//! are in lower case here and end in a dot.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use leno_api::proto::istio::networking::nds::v1::NameTable;
use leno_api::proto::istio::networking::nds::v1::name_table::NameInfo;

/// Where the workload is, as far as names go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// The domain of Services, without the namespace: `svc.cluster.local`.
    pub domain: String,
    /// The first search domain of its resolver.
    pub search: Option<String>,
}

impl Place {
    /// By the domain of the proxy, which has the namespace in front, as a rule.
    pub fn new(namespace: &str, domain: &str, search: Option<&str>) -> Place {
        let rest = domain.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('.'));
        let search = search.map(|search| search.trim_end_matches('.').to_ascii_lowercase());
        Place {
            namespace: namespace.to_owned(),
            domain: rest.unwrap_or(domain).to_owned(),
            search: search.filter(|search| !search.is_empty()),
        }
    }
}

/// The addresses of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of the one family.
    pub v4: Vec<Ipv4Addr>,
    /// Of the other.
    pub v6: Vec<Ipv6Addr>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'t> {
    /// The name that it stands for, if it is not a real one.
    pub alias_of: Option<&'t str>,
    /// Its addresses.
    pub addresses: &'t Addresses,
}

/// All names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    hosts: HashMap<String, Addresses>,
    /// Names with a search domain behind them.
    aliases: HashMap<String, String>,
}

impl Table {
    /// Makes it.
    pub fn new(names: &NameTable, place: &Place) -> Table {
        let mut table = Table::default();
        for (host, info) in &names.table {
            let mut addresses = Addresses::default();
            for ip in &info.ips {
                match ip.parse() {
                    Ok(IpAddr::V4(v4)) => addresses.v4.push(v4),
                    Ok(IpAddr::V6(v6)) => addresses.v6.push(v6),
                    Err(_) => tracing::debug!(host, ip, "no address"),
                }
            }
            if addresses == Addresses::default() {
                continue;
            }
            for name in variants(host, info, place) {
                table.hosts.insert(name, addresses.clone());
            }
        }
        if let Some(search) = &place.search {
            let end = format!("{search}.");
            let names = table.hosts.keys().filter(|name| !name.ends_with(&end));
            let aliases = names.map(|name| (format!("{name}{end}"), name.clone()));
            let aliases = aliases.filter(|(alias, _)| !table.hosts.contains_key(alias));
            table.aliases = aliases.collect();
        }
        table
    }

    /// What is known of a name, or of all names of a domain that it is in; `None`: others may know it.
    pub fn find(&self, name: &str) -> Option<Found<'_>> {
        if let Some(found) = self.exactly(name) {
            return Some(found);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if parent.is_empty() {
                return None;
            }
            if let Some(found) = self.exactly(&format!("*.{parent}")) {
                return Some(found);
            }
            rest = parent;
        }
        None
    }

    fn exactly(&self, name: &str) -> Option<Found<'_>> {
        if let Some(addresses) = self.hosts.get(name) {
            return Some(Found { alias_of: None, addresses });
        }
        let real = self.aliases.get(name)?;
        Some(Found { alias_of: Some(real), addresses: self.hosts.get(real)? })
    }
}

/// The names under which a host is known.
fn variants(host: &str, info: &NameInfo, place: &Place) -> Vec<String> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let mut names = vec![format!("{host}.")];
    // Short forms of another cluster's Services would be taken for our own.
    let is_ours = info.registry == "Kubernetes" && !place.domain.is_empty() && host.ends_with(&place.domain);
    if is_ours {
        let (name, namespace) = (info.shortname.to_ascii_lowercase(), &info.namespace);
        let svc = place.domain.split('.').next().unwrap_or_default();
        names.push(format!("{name}.{namespace}."));
        names.push(format!("{name}.{namespace}.{svc}."));
        if *namespace == place.namespace {
            names.push(format!("{name}."));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::{NameInfo, NameTable, Place, Table};

    fn table() -> Table {
        let kube = |name: &str, namespace: &str, ips: &[&str]| NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: "Kubernetes".to_owned(),
            shortname: name.to_owned(),
            namespace: namespace.to_owned(),
        };
        let external = |ips: &[&str]| NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: "External".to_owned(),
            ..NameInfo::default()
        };
        let names = [
            ("reviews.shop.svc.cluster.local", kube("reviews", "shop", &["10.0.0.1", "fd00::1"])),
            ("ratings.other.svc.cluster.local", kube("ratings", "other", &["10.0.0.2"])),
            ("far.shop.svc.cluster.remote", kube("far", "shop", &["10.0.0.3"])),
            ("API.example.com", external(&["240.240.0.1"])),
            ("*.wild.example.com", external(&["240.240.0.2", "2001:2::1"])),
            ("none.example.com", external(&[])),
        ];
        let table = names.into_iter().map(|(name, info)| (name.to_owned(), info)).collect();
        let place = Place::new("shop", "shop.svc.cluster.local", Some("shop.svc.cluster.local"));
        Table::new(&NameTable { table }, &place)
    }

    #[test]
    fn what_is_found() {
        let table = table();
        for (name, expected) in [
            ("reviews.shop.svc.cluster.local.", "10.0.0.1 fd00::1"),
            ("reviews.", "10.0.0.1 fd00::1"),
            ("reviews.shop.", "10.0.0.1 fd00::1"),
            ("reviews.shop.svc.", "10.0.0.1 fd00::1"),
            ("reviews.shop.svc.cluster.", "-"),
            ("ratings.", "-"),
            ("ratings.other.", "10.0.0.2"),
            ("ratings.other.shop.svc.cluster.local.", "ratings.other.: 10.0.0.2"),
            ("far.", "-"),
            ("far.shop.svc.cluster.remote.", "10.0.0.3"),
            ("api.example.com.", "240.240.0.1"),
            ("api.example.com.shop.svc.cluster.local.", "api.example.com.: 240.240.0.1"),
            ("api.example.com.svc.cluster.local.", "-"),
            ("a.wild.example.com.", "240.240.0.2 2001:2::1"),
            ("a.b.wild.example.com.", "240.240.0.2 2001:2::1"),
            ("wild.example.com.", "-"),
            ("a.wild.example.com.shop.svc.cluster.local.", "*.wild.example.com.: 240.240.0.2 2001:2::1"),
            ("none.example.com.", "-"),
            ("example.com.", "-"),
            (".", "-"),
        ] {
            let found = table.find(name).map_or_else(
                || "-".to_owned(),
                |found| {
                    let alias = found.alias_of.map(|alias| format!("{alias}:")).into_iter();
                    let v4 = found.addresses.v4.iter().map(ToString::to_string);
                    let v6 = found.addresses.v6.iter().map(ToString::to_string);
                    alias.chain(v4).chain(v6).collect::<Vec<_>>().join(" ")
                },
            );
            assert_eq!(found, expected, "{name}");
        }
    }
}
