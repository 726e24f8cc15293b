//! Which filter chain serves a connection: Envoy's matching, one criterion after the other.
//!
//! At each step only the best value that any chain names goes on (the exact port, the longest
//! range, the exact or longest wildcard server name, ...); there is no way back from a step to a
//! less specific value, and where a step finds nothing the default chain serves. Chains lie in
//! maps nested in the order of the steps, so that finding one takes a look-up per step however
//! many chains there are.
//!
//! The maps of a single chain are several kilobytes, and a sidecar has a thousand listeners to which
//! hardly anything comes: a chain that serves whatever comes needs no maps, and those of listeners
//! without sockets are made when the first connection asks.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use leno_api::proto::envoy::config::listener::v3 as proto;
use leno_api::proto::xds::r#type::matcher::v3 as xds;
use leno_base::{Cidr, CidrMap};
use prost::Message as _;
use proto::filter_chain_match::ConnectionSourceType;

use crate::config::address;
use crate::config::lower::Lower;
use crate::config::wire::Fingerprint;
use crate::io::is_localhost;
use crate::listener::FilterChain;
use crate::matching::{self, Matcher, Place};

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionFacts<'a> {
    /// The (restored) local address.
    pub(crate) destination: SocketAddr,
    /// The (restored) remote address.
    pub(crate) source: SocketAddr,
    /// The peer of the socket itself.
    pub(crate) direct_source: SocketAddr,
    /// SNI, lower case; empty: none.
    pub(crate) server_name: &'a str,
    /// `tls` or `raw_buffer`, as listener filters found.
    pub(crate) transport: &'a str,
    /// ALPN, or what the HTTP inspector found.
    pub(crate) application_protocols: &'a [Box<str>],
}

/// All chains of a listener. How one is found says its place among them, so that chains can be
/// exchanged (`renewed`) without making that anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterChains {
    /// Where chains are found by their criteria; made when first asked, unless it is there.
    by_port: Arc<OnceLock<Box<Ports>>>,
    /// The only chain beside the default one, if it has no criteria.
    only: Option<usize>,
    default: Option<usize>,
    /// `filter_chain_matcher`, which chooses instead of the chains' own criteria; `None` inside:
    /// it names a chain that does not exist.
    matcher: Option<Arc<Matcher<Option<usize>>>>,
    /// All chains, the default one last, with the fingerprints of their messages, by which the next
    /// version of the listener recognises what it can keep.
    chains: Vec<(Fingerprint, Arc<FilterChain>)>,
}

// The steps, last one first. A key of `Default::default()` (0, "") means: whatever it is.
type SourcePorts = HashMap<u16, usize>;
type SourceRanges = CidrMap<SourcePorts>;
/// By ConnectionSourceType.
type SourceTypes = [SourceRanges; 3];
type DirectSources = CidrMap<SourceTypes>;
type ApplicationProtocols = HashMap<String, DirectSources>;
type Transports = HashMap<String, ApplicationProtocols>;
type ServerNames = HashMap<String, Transports>;
type Destinations = CidrMap<ServerNames>;
/// The first step.
pub(super) type Ports = HashMap<u16, Destinations>;

impl FilterChains {
    /// The chain that serves a connection; `None`: it is closed.
    pub(crate) fn find(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        let place = match self.matcher.as_ref().map(|matcher| matcher.find(facts)) {
            Some(Some(chosen)) => *chosen,
            Some(None) => self.default,
            None => self.matched(facts).or(self.default),
        };
        self.at(place?)
    }

    /// The same chains, but for those in whose place another one is given.
    ///
    /// # Errors
    /// What `renew` says.
    pub(crate) fn renewed<E>(
        &self,
        mut renew: impl FnMut(&Arc<FilterChain>) -> Result<Option<Arc<FilterChain>>, E>,
    ) -> Result<Option<Self>, E> {
        let mut renewed: Option<Self> = None;
        for (place, (_, chain)) in self.chains.iter().enumerate() {
            if let Some(next) = renew(chain)?
                && let Some((_, chain)) = renewed.get_or_insert_with(|| self.clone()).chains.get_mut(place)
            {
                *chain = next;
            }
        }
        Ok(renewed)
    }

    fn at(&self, place: usize) -> Option<&Arc<FilterChain>> {
        self.chains.get(place).map(|(_, chain)| chain)
    }

    /// All chains, the default one included.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().map(|(_, chain)| chain)
    }

    /// All chains but the default one, with their places.
    fn matching(&self) -> impl Iterator<Item = (usize, &Arc<FilterChain>)> {
        self.all().enumerate().filter(|(place, _)| self.default != Some(*place))
    }

    /// Which chain of `next`, a later version of the listener, goes on for each chain of these:
    /// the same one, or the one with the same match, else the same name, that serves
    /// connections in the same way. Chains without are to be drained.
    pub(crate) fn successors<'n>(
        &self,
        next: &'n FilterChains,
    ) -> Vec<(&Arc<FilterChain>, Option<&'n Arc<FilterChain>>)> {
        let same: HashMap<_, _> = next.all().map(|chain| (Arc::as_ptr(chain), chain)).collect();
        let by_match: HashMap<_, _> = next.matching().map(|(_, chain)| (&*chain.criteria, chain)).collect();
        let named = next.matching().filter(|(_, chain)| !chain.name.is_empty());
        let by_name: HashMap<_, _> = named.map(|(_, chain)| (&*chain.name, chain)).collect();
        let find = |place: usize, chain: &Arc<FilterChain>| {
            let like = |other: &&Arc<FilterChain>| chain.network.is_like(&other.network);
            if let Some(same) = same.get(&Arc::as_ptr(chain)) {
                return Some(*same);
            }
            if self.default == Some(place) {
                return next.default.and_then(|place| next.at(place)).filter(like);
            }
            // With a matcher they have no criteria, only names.
            let by_criteria = self.matcher.is_none() && next.matcher.is_none();
            let matched = by_match.get(&*chain.criteria).copied().filter(|_| by_criteria).filter(like);
            matched.or_else(|| by_name.get(&*chain.name).copied().filter(like))
        };
        self.all().enumerate().map(|(place, chain)| (chain, find(place, chain))).collect()
    }

    /// The chain of this message, if there is one.
    pub(super) fn kept(&self, wire: Fingerprint) -> Option<&Arc<FilterChain>> {
        self.chains.iter().find(|(other, _)| *other == wire).map(|(_, chain)| chain)
    }

    fn matched(&self, facts: &ConnectionFacts<'_>) -> Option<usize> {
        if self.only.is_some() {
            return self.only;
        }
        let by_port = self.by_port.get_or_init(|| Box::new(self.ports()));
        let destinations = exact_or_any(by_port, &facts.destination.port())?;
        let (_, names) = destinations.longest(facts.destination.ip())?;
        let transports = by_server_name(names, facts.server_name)?;
        let protocols = transports.get(facts.transport).or_else(|| transports.get(""))?;
        let named = facts.application_protocols.iter().find_map(|protocol| protocols.get(&**protocol));
        let direct = named.or_else(|| protocols.get(""))?;
        let (_, types) = direct.longest(facts.direct_source.ip())?;
        let (_, ports) = by_source_type(types, facts)?.longest(facts.source.ip())?;
        exact_or_any(ports, &facts.source.port()).copied()
    }

    /// Adds a chain that `filter_chain_matcher` may name.
    pub(super) fn add_named(&mut self, wire: Fingerprint, chain: &Arc<FilterChain>, at: &mut Lower) {
        if chain.name.is_empty() {
            at.error_at("name", "\"name\" field is required when using a listener matcher");
        } else if self.chains.iter().any(|(_, other)| other.name == chain.name) {
            at.error_at("name", format!("\"name\" field is duplicated with value '{}'", chain.name));
        }
        self.chains.push((wire, Arc::clone(chain)));
    }

    /// Lowers `filter_chain_matcher`, which names chains that are there already.
    pub(super) fn set_matcher(&mut self, proto: xds::Matcher, at: &mut Lower) {
        let chains: HashMap<_, _> =
            self.matching().map(|(place, chain)| (chain.name.clone(), place)).collect();
        let matcher = matching::lower(proto, Place::CONNECTION, at, &mut |action, at| {
            let any = at.required("typed_config", action.typed_config, |any, _| Some(any))?;
            let name: String = at.field("typed_config", |at| at.unpack(&any))?;
            Some(chains.get(name.as_str()).copied())
        });
        self.matcher = matcher.map(Arc::new);
    }

    /// Adds a chain that serves what matches, to `ports` too: all chains are added to the same ones.
    pub(super) fn add(
        &mut self,
        proto: Option<proto::FilterChainMatch>,
        wire: Fingerprint,
        chain: &Arc<FilterChain>,
        ports: &mut Ports,
        at: &mut Lower,
    ) {
        let criteria = at.field("filter_chain_match", |at| Criteria::lower(proto.unwrap_or_default(), at));
        let place = self.chains.len();
        self.chains.push((wire, Arc::clone(chain)));
        let Some(criteria) = criteria else { return };
        if let Err(other) = criteria.insert(ports, place) {
            let other = self.at(other).map(|other| &*other.name).unwrap_or_default();
            at.error(format!(
                "filter chain '{}' has the same matching rules defined as '{other}': multiple filter chains with overlapping matching rules are defined",
                chain.name
            ));
        }
    }

    /// Sets the chain that serves what no other does.
    pub(super) fn add_default(&mut self, wire: Fingerprint, chain: &Arc<FilterChain>) {
        self.default = Some(self.chains.len());
        self.chains.push((wire, Arc::clone(chain)));
    }

    /// All chains are there; `ports` are kept if they are likely to be used soon.
    pub(super) fn finish(&mut self, ports: Ports, soon: bool) {
        self.chains.shrink_to_fit();
        let mut matching = self.matching();
        let only = match (matching.next(), matching.next()) {
            (Some((only, chain)), None) if chain.criteria.is_empty() => Some(only),
            _ => None,
        };
        drop(matching);
        self.only = only;
        if only.is_none() && soon {
            self.by_port = Arc::new(OnceLock::from(Box::new(ports)));
        }
    }

    /// Where all chains are found by their criteria. These are kept in wire form, a tenth of what they
    /// are lowered, and were lowered before, when the chains were added: nothing is refused here.
    fn ports(&self) -> Ports {
        let mut ports = Ports::new();
        for (place, chain) in self.matching() {
            let proto = proto::FilterChainMatch::decode(&*chain.criteria).unwrap_or_default();
            if let Some(criteria) = Criteria::lower(proto, &mut Lower::default()) {
                let _ = criteria.insert(&mut ports, place);
            }
        }
        ports
    }
}

fn range<T: Default>(map: &mut CidrMap<T>, key: Cidr) -> &mut T {
    if map.find(&key).is_none() {
        map.insert(key, T::default());
    }
    map.find_mut(&key).expect("just inserted")
}

fn exact_or_any<'m, K: Eq + Hash + Default, V>(map: &'m HashMap<K, V>, key: &K) -> Option<&'m V> {
    map.get(key).or_else(|| map.get(&K::default()))
}

/// The exact name, else the longest wildcard (kept as `.example.com`), else whatever name.
fn by_server_name<'m>(names: &'m ServerNames, name: &str) -> Option<&'m Transports> {
    if let Some(found) = names.get(name) {
        return Some(found);
    }
    let dots =
        name.match_indices('.').map(|(place, _)| place).filter(|place| *place > 0 && place + 1 < name.len());
    let wildcard = dots.filter_map(|place| name.get(place..)).find_map(|suffix| names.get(suffix));
    wildcard.or_else(|| names.get(""))
}

fn by_source_type<'m>(types: &'m SourceTypes, facts: &ConnectionFacts<'_>) -> Option<&'m SourceRanges> {
    let [any, local, external] = types;
    let source = facts.source.ip();
    let is_local = is_localhost(source) || source == facts.destination.ip();
    let specific = if is_local { local } else { external };
    [specific, any].into_iter().find(|ranges| !ranges.is_empty())
}

/// FilterChainMatch, lowered: every list has at least one entry.
struct Criteria {
    port: u16,
    destinations: Vec<Cidr>,
    server_names: Vec<String>,
    transport: String,
    application_protocols: Vec<String>,
    direct_sources: Vec<Cidr>,
    /// Index into `SourceTypes`.
    source_type: usize,
    sources: Vec<Cidr>,
    source_ports: Vec<u16>,
}

impl Criteria {
    fn lower(proto: proto::FilterChainMatch, at: &mut Lower) -> Option<Criteria> {
        let proto::FilterChainMatch {
            destination_port,
            prefix_ranges,
            address_suffix,
            suffix_len,
            direct_source_prefix_ranges,
            source_type,
            source_prefix_ranges,
            source_ports,
            server_names,
            transport_protocol,
            application_protocols,
        } = proto;
        // Envoy has never implemented these.
        if !address_suffix.is_empty() {
            at.error_at("address_suffix", "contains unimplemented fields");
        }
        if suffix_len.is_some() {
            at.error_at("suffix_len", "contains unimplemented fields");
        }
        let server_names = at.each("server_names", server_names, |name, at| {
            let lower = name.to_ascii_lowercase();
            let stored = match lower.strip_prefix('*') {
                Some(suffix) if suffix.starts_with('.') => suffix.to_owned(),
                _ => lower,
            };
            if stored.contains('*') {
                at.error(format!(
                    "error adding filter chain: partial wildcards are not supported in server_names: {name}"
                ));
                return None;
            }
            Some(stored)
        });
        let source_type = at.value::<ConnectionSourceType>("source_type", source_type)?;
        Some(Criteria {
            port: at.narrow("destination_port", destination_port.unwrap_or(0))?,
            destinations: ranges("prefix_ranges", prefix_ranges, at),
            server_names: or_any(server_names),
            transport: transport_protocol,
            application_protocols: or_any(application_protocols),
            direct_sources: ranges("direct_source_prefix_ranges", direct_source_prefix_ranges, at),
            source_type: match source_type {
                ConnectionSourceType::Any => 0,
                ConnectionSourceType::SameIpOrLoopback => 1,
                ConnectionSourceType::External => 2,
            },
            sources: ranges("source_prefix_ranges", source_prefix_ranges, at),
            source_ports: or_any(at.each("source_ports", source_ports, |port, at| at.narrow("", port))),
        })
    }

    /// Puts a chain to all combinations of its criteria; the error is the place of one that is there.
    fn insert(&self, ports: &mut Ports, chain: usize) -> Result<(), usize> {
        let destinations = ports.entry(self.port).or_default();
        for destination in &self.destinations {
            let names = range(destinations, *destination);
            for name in &self.server_names {
                let protocols =
                    names.entry(name.clone()).or_default().entry(self.transport.clone()).or_default();
                for protocol in &self.application_protocols {
                    let direct = protocols.entry(protocol.clone()).or_default();
                    for direct_source in &self.direct_sources {
                        let Some(sources) = range(direct, *direct_source).get_mut(self.source_type) else {
                            continue;
                        };
                        for source in &self.sources {
                            let ports = range(sources, *source);
                            for port in &self.source_ports {
                                if let Some(other) = ports.insert(*port, chain) {
                                    return Err(other);
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// No value at all means: whatever it is.
fn or_any<T: Default>(values: Vec<T>) -> Vec<T> {
    if values.is_empty() { vec![T::default()] } else { values }
}

fn ranges(
    field: &str,
    protos: Vec<leno_api::proto::envoy::config::core::v3::CidrRange>,
    at: &mut Lower,
) -> Vec<Cidr> {
    if protos.is_empty() {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        return all.iter().filter_map(|ip| Cidr::new(*ip, 0).ok()).collect();
    }
    at.each(field, protos, address::cidr)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::{Expect, expect};
    use leno_api::proto::envoy::config::core::v3::CidrRange;
    use prost::Message as _;

    use super::{ConnectionFacts, FilterChains, Ports, proto};
    use crate::config::lower::Lower;
    use crate::config::wire::Fingerprint;
    use crate::listener::{FilterChain, NetworkFilters};

    fn cidr(text: &str) -> CidrRange {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        CidrRange { address_prefix: address.to_owned(), prefix_len: length.parse().ok() }
    }

    /// Reads `port=80 ip=10.0.0.0/8 sni=*.a.com tls alpn=h2 type=1 src=10.0.0.0/8 sport=7`.
    fn criteria(text: &str) -> proto::FilterChainMatch {
        let mut criteria = proto::FilterChainMatch::default();
        for word in text.split_whitespace() {
            match word.split_once('=').unwrap_or((word, "")) {
                ("port", value) => criteria.destination_port = value.parse().ok(),
                ("ip", value) => criteria.prefix_ranges.push(cidr(value)),
                ("sni", value) => criteria.server_names.push(value.to_owned()),
                ("alpn", value) => criteria.application_protocols.push(value.to_owned()),
                ("type", value) => criteria.source_type = value.parse().unwrap_or(0),
                ("src", value) => criteria.source_prefix_ranges.push(cidr(value)),
                ("direct", value) => criteria.direct_source_prefix_ranges.push(cidr(value)),
                ("sport", value) => criteria.source_ports.extend(value.parse::<u32>()),
                (transport, _) => criteria.transport_protocol = transport.to_owned(),
            }
        }
        criteria
    }

    fn chain(name: &str) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            name: name.into(),
            criteria: Box::default(),
            filters: Vec::new(),
            transport: crate::tls::Transport::Raw,
            handshake_timeout: None,
            network: NetworkFilters::Close,
        })
    }

    fn chains(matches: &[&str], soon: bool) -> Result<FilterChains, String> {
        let lowered = Lower::resource(|at| {
            let (mut chains, mut ports) = (FilterChains::default(), Ports::new());
            for text in matches {
                let criteria = criteria(text);
                let chain = Arc::new(FilterChain {
                    criteria: criteria.encode_to_vec().into(),
                    ..Arc::into_inner(chain(text)).expect("just made")
                });
                chains.add(Some(criteria), Fingerprint::of(b""), &chain, &mut ports, at);
            }
            chains.finish(ports, soon);
            Some(chains)
        });
        lowered.map_err(|rejected| rejected.to_string())
    }

    /// A connection: destination, source, SNI, transport, ALPN.
    fn check(matches: &[&str], connection: [&str; 5], expected: &Expect) {
        let [found, later] = [true, false].map(|soon| find(matches, connection, soon));
        assert_eq!(found, later, "whenever the maps are made");
        expected.assert_eq(&found.unwrap_or_else(|error| error));
    }

    fn find(matches: &[&str], connection: [&str; 5], soon: bool) -> Result<String, String> {
        chains(matches, soon).map(|chains| {
            let [destination, source, server_name, transport, protocols] = connection;
            let protocols: Vec<Box<str>> = protocols.split_whitespace().map(Box::from).collect();
            let address = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text}"));
            let facts = ConnectionFacts {
                destination: address(destination),
                source: address(source),
                direct_source: address(source),
                server_name,
                transport,
                application_protocols: &protocols,
            };
            chains.find(&facts).map_or("none".to_owned(), |chain| chain.name.to_string())
        })
    }

    #[test]
    fn a_chain_for_whatever_comes_needs_no_maps() {
        let chains = |matches: &[&str]| chains(matches, false).expect("nothing is wrong");
        let (only, two) = (chains(&[""]), chains(&["", "port=80"]));
        assert!(only.only.is_some() && only.by_port.get().is_none());
        assert!(two.only.is_none() && two.by_port.get().is_none());
        assert!(chains(&["port=80"]).only.is_none());
    }

    #[test]
    fn the_most_specific_value_of_each_step_wins() {
        let plain = ["10.1.2.3:80", "10.9.9.9:1000", "", "raw_buffer", ""];
        check(&["port=80", "ip=10.0.0.0/8", ""], plain, &expect!["port=80"]);
        check(&["ip=10.0.0.0/8", "ip=10.1.0.0/16", ""], plain, &expect!["ip=10.1.0.0/16"]);
        check(&["raw_buffer", ""], plain, &expect!["raw_buffer"]);
        check(&["tls", ""], plain, &expect![""]);
        check(&["type=2", "type=1", ""], plain, &expect!["type=2"]);
        check(&["src=10.0.0.0/8 sport=1000", "src=10.0.0.0/8"], plain, &expect!["src=10.0.0.0/8 sport=1000"]);
        check(&["direct=10.9.0.0/16", ""], plain, &expect!["direct=10.9.0.0/16"]);
    }

    #[test]
    fn server_names_and_protocols() {
        let tls = |sni, alpn| ["10.1.2.3:443", "10.1.2.3:1000", sni, "tls", alpn];
        let names = ["sni=a.b.com", "sni=*.b.com", "sni=*.com", "tls alpn=h2", "tls"];
        check(&names, tls("a.b.com", ""), &expect!["sni=a.b.com"]);
        check(&names, tls("x.y.b.com", ""), &expect!["sni=*.b.com"]);
        check(&names, tls("b.com", ""), &expect!["sni=*.com"]);
        check(&names, tls("", "h2 http/1.1"), &expect!["tls alpn=h2"]);
        check(&names, tls("x.org", "http/1.1"), &expect!["tls"]);
        check(&["type=1", ""], tls("", ""), &expect!["type=1"]);
    }

    #[test]
    fn there_is_no_way_back() {
        // The port decides before the range does not match.
        check(
            &["port=80 ip=11.0.0.0/8", ""],
            ["10.1.2.3:80", "10.9.9.9:1", "", "raw_buffer", ""],
            &expect!["none"],
        );
        check(
            &["ip=10.1.0.0/16 tls", "ip=10.0.0.0/8"],
            ["10.1.2.3:80", "10.9.9.9:1", "", "raw_buffer", ""],
            &expect!["none"],
        );
    }

    #[test]
    fn overlapping_chains_are_refused() {
        let plain = ["10.1.2.3:80", "10.9.9.9:1000", "", "raw_buffer", ""];
        check(
            &["sni=a.com sni=b.com", "sni=b.com"],
            plain,
            &expect![
                "filter chain 'sni=b.com' has the same matching rules defined as 'sni=a.com sni=b.com': multiple filter chains with overlapping matching rules are defined"
            ],
        );
        check(
            &["sni=a*.com"],
            plain,
            &expect![
                "filter_chain_match.server_names[0]: error adding filter chain: partial wildcards are not supported in server_names: a*.com"
            ],
        );
    }

    #[test]
    fn chains_are_exchanged_where_they_are_found() {
        let before = chains(&["port=80", "port=81"], true).expect("nothing is wrong");
        assert!(before.renewed(|_| Ok::<_, ()>(None)).is_ok_and(|renewed| renewed.is_none()));
        let renewed = before.renewed(|old| Ok::<_, ()>((&*old.name == "port=80").then(|| chain("new"))));
        let renewed = renewed.expect("nothing is refused").expect("one is another");
        let source = "127.0.0.1:1".parse().expect("an address");
        let found = [80, 81].map(|port| {
            let destination = ([127, 0, 0, 1], port).into();
            let facts = ConnectionFacts {
                destination,
                source,
                direct_source: source,
                server_name: "",
                transport: "raw_buffer",
                application_protocols: &[],
            };
            [&before, &renewed].map(|chains| chains.find(&facts).map_or("none", |chain| &*chain.name))
        });
        assert_eq!(found, [["port=80", "new"], ["port=81", "port=81"]]);
    }

    #[test]
    fn a_matcher_chooses_by_name() {
        let lowered = Lower::resource(|at| {
            let mut chains = FilterChains::default();
            for name in ["a", "b", "other"] {
                chains.add_named(Fingerprint::of(b""), &chain(name), at);
            }
            chains.add_default(Fingerprint::of(b""), &chain("default"));
            let text = "matcher_tree: {input: {name: port, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.\
                        common_inputs.network.v3.DestinationPortInput}}, exact_match_map: {map: {'80': {action: {name: a, typed_config: \
                        {'@type': type.googleapis.com/google.protobuf.StringValue, value: a}}}, '81': {action: {name: a, typed_config: \
                        {'@type': type.googleapis.com/google.protobuf.StringValue, value: nobody}}}}}}";
            chains.set_matcher(leno_api::decode_text(text, "matcher").unwrap_or_else(|e| panic!("{e}")), at);
            Some(chains)
        });
        let chains = lowered.unwrap_or_else(|why| panic!("{why}"));
        let found = [80, 81, 82].map(|port| {
            let source = "127.0.0.1:1".parse().expect("an address");
            let facts = ConnectionFacts {
                destination: format!("127.0.0.1:{port}").parse().expect("an address"),
                source,
                direct_source: source,
                server_name: "",
                transport: "raw_buffer",
                application_protocols: &[],
            };
            chains.find(&facts).map(|chain| chain.name.to_string())
        });
        assert_eq!(found, [Some("a".to_owned()), None, Some("default".to_owned())]);
    }
}
