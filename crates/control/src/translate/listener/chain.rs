//! Filter chains of outbound listeners and gateways before they are encoded: what they match, and
//! whether two of them could be told apart.

use std::collections::BTreeSet;
use std::net::IpAddr;

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;

use crate::translate::proto::{core, listener};
use crate::translate::resource::{cidr, pack};

/// How long a TLS handshake may take; Istio's `PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT`.
const HANDSHAKE_TIMEOUT: prost_types::Duration = prost_types::Duration { seconds: 15, nanos: 0 };

/// The server name that stands for all.
const ANY: &str = "*";

/// One chain.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chain {
    /// Server names; `*` for all.
    pub(super) sni: Vec<String>,
    /// Original destinations, as `10.0.0.0/8` or `10.0.0.1`.
    pub(super) ranges: Vec<String>,
    pub(super) application_protocols: &'static [&'static str],
    pub(super) transport_protocol: &'static str,
    pub(super) metadata: Option<core::Metadata>,
    pub(super) tls: Option<Box<tls::DownstreamTlsContext>>,
    pub(super) filters: Vec<listener::Filter>,
}

impl Chain {
    /// Whether it matches every connection.
    pub(super) fn is_match_all(&self) -> bool {
        (self.sni.is_empty() || self.sni.iter().any(|name| name == ANY))
            && self.ranges.is_empty()
            && self.application_protocols.is_empty()
            && self.transport_protocol.is_empty()
    }

    /// Whether it needs the server name of a TLS handshake, or its protocols.
    pub(super) fn needs_tls_inspector(&self) -> bool {
        let alpn = self.tls.as_ref().and_then(|tls| tls.common_tls_context.as_ref());
        !self.sni.is_empty() || alpn.is_some_and(|common| !common.alpn_protocols.is_empty())
    }

    /// Whether Envoy could not tell it from another, and would refuse both.
    pub(super) fn conflicts_with(&self, other: &Chain) -> bool {
        let names = |chain: &Chain| -> BTreeSet<String> {
            chain.sni.iter().filter(|name| *name != ANY).cloned().collect()
        };
        let ranges = |chain: &Chain| -> BTreeSet<String> {
            chain.ranges.iter().filter_map(|range| masked(range)).collect()
        };
        self.transport_protocol == other.transport_protocol
            && self.application_protocols == other.application_protocols
            && names(self) == names(other)
            && ranges(self) == ranges(other)
    }

    /// The message; a chain that matches everything has no condition.
    pub(super) fn build(self) -> listener::FilterChain {
        let all = self.is_match_all();
        let mut names = self.sni;
        names.sort();
        names.dedup();
        if names.iter().any(|name| name == ANY) {
            names.clear();
        }
        let mut ranges = self.ranges;
        ranges.sort();
        ranges.dedup();
        let found = listener::FilterChainMatch {
            server_names: names,
            prefix_ranges: ranges.iter().filter_map(|range| cidr(range)).collect(),
            application_protocols: self.application_protocols.iter().map(|&name| name.to_owned()).collect(),
            transport_protocol: self.transport_protocol.to_owned(),
            ..listener::FilterChainMatch::default()
        };
        listener::FilterChain {
            filter_chain_match: (!all).then_some(found),
            filters: self.filters,
            metadata: self.metadata,
            transport_socket: self.tls.map(|tls| core::TransportSocket {
                name: "envoy.transport_sockets.tls".to_owned(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(tls.as_ref()))),
            }),
            transport_socket_connect_timeout: Some(HANDSHAKE_TIMEOUT),
            ..listener::FilterChain::default()
        }
    }
}

/// Adds chains to others, but for those that could not be told from them: the older ones count.
pub(super) fn merge(present: &mut Vec<Chain>, more: Vec<Chain>) {
    for chain in more {
        if present.iter().all(|other| !other.conflicts_with(&chain)) {
            present.push(chain);
        }
    }
}

/// A range of addresses without the bits that do not count; `None` for all addresses and for what
/// is no range.
fn masked(range: &str) -> Option<String> {
    let (address, length) = match range.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, Some(length.parse::<u32>().ok()?)),
        None => (range.parse::<IpAddr>().ok()?, None),
    };
    if address.is_unspecified() {
        return None;
    }
    let masked = |bits: u128, width: u32| {
        let length = length.unwrap_or(width).min(width);
        let kept = if length == 0 { 0 } else { u128::MAX << (width - length) };
        format!("{:x}/{length}", bits & kept)
    };
    Some(match address {
        IpAddr::V4(address) => masked(u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => masked(u128::from(address), 128),
    })
}

#[cfg(test)]
mod tests {
    use super::{Chain, masked, merge};

    #[test]
    fn ranges_are_alike_if_what_counts_is() {
        assert_eq!(masked("10.1.2.3/8"), masked("10.9.9.9/8"));
        assert_ne!(masked("10.1.2.3/8"), masked("10.1.2.3/16"));
        assert_eq!(masked("10.1.2.3"), masked("10.1.2.3/32"));
        assert_ne!(masked("10.1.2.3"), masked("::a01:203"));
        assert_eq!(masked("0.0.0.0/0"), None);
        assert_eq!(masked("x"), None);
    }

    #[test]
    fn the_older_of_chains_that_are_alike_counts() {
        let chain = |sni: &str, range: &str| Chain {
            sni: vec![sni.to_owned()],
            ranges: vec![range.to_owned()],
            ..Chain::default()
        };
        let mut chains = vec![chain("a", "10.0.0.1/8")];
        merge(
            &mut chains,
            vec![chain("a", "10.0.0.2/8"), chain("b", "10.0.0.1/8"), chain("a", "10.0.0.1/9")],
        );
        assert_eq!(chains.len(), 3);
        assert!(Chain { sni: vec!["*".to_owned()], ..Chain::default() }.is_match_all());
        assert!(!chain("*", "10.0.0.1").is_match_all());
    }
}
