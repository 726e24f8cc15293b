//! Service addresses that no pod has, as kube-proxy makes them work in its iptables mode: rules on the node that
//! send each connection to one of the service's endpoints. Pure; [`crate::Node::services`] installs them.
//!
//! TCP only, and without session affinity. A service without endpoints has no rules: as its address has no
//! route, connecting fails at once.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use leno_base::Cidr;

use crate::rules::{Chain, Family, Hook, Kind, Match, Rule, Ruleset, Table, Verdict};

const SERVICES: &str = "SERVICES";

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's address and port.
    pub address: SocketAddrV4,
    /// The endpoints that are ready: addresses of pods, and the ports that they listen on.
    pub endpoints: Vec<SocketAddrV4>,
}

/// The node's rules for all its services.
pub(crate) fn rules(services: &[Service]) -> Ruleset {
    let jump = || vec![Rule { matches: vec![Match::Tcp], verdict: Verdict::Jump(SERVICES) }];
    let hooked = |hook: Hook, rules| Chain { name: hook.chain(), hook: Some(hook), rules };
    let chains = vec![
        Chain { name: SERVICES, hook: None, rules: services.iter().flat_map(to_endpoints).collect() },
        hooked(Hook::Prerouting, jump()),
        hooked(Hook::Output, jump()),
        hooked(Hook::Postrouting, to_oneself(services)),
    ];
    Ruleset { tables: vec![Table { family: Family::V4, kind: Kind::Nat, chains }] }
}

/// Of n endpoints the first gets one connection in n, the second one in n-1 of the others, and so on.
fn to_endpoints(service: &Service) -> impl Iterator<Item = Rule> {
    let many = service.endpoints.len();
    service.endpoints.iter().enumerate().map(move |(index, &endpoint)| {
        let mut matches =
            vec![Match::To(Cidr::host((*service.address.ip()).into())), Match::Port(service.address.port())];
        let left = u32::try_from(many - index).unwrap_or(u32::MAX);
        if left > 1 {
            matches.push(Match::OneIn(left));
        }
        Rule { matches, verdict: Verdict::Forward(endpoint) }
    })
}

/// A pod that reaches itself through a service would see a packet with its own address come in from outside,
/// and drop it; so that one comes from the node.
fn to_oneself(services: &[Service]) -> Vec<Rule> {
    let pods: BTreeSet<Ipv4Addr> =
        services.iter().flat_map(|service| service.endpoints.iter().map(|endpoint| *endpoint.ip())).collect();
    pods.into_iter()
        .map(|pod| Cidr::host(pod.into()))
        .map(|pod| Rule { matches: vec![Match::From(pod), Match::To(pod)], verdict: Verdict::Masquerade })
        .collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{Service, rules};

    #[test]
    fn endpoints_share_a_service() {
        let service = |address: &str, endpoints: &[&str]| Service {
            address: address.parse().unwrap(),
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        };
        let rules = rules(&[
            service("10.96.0.10:80", &["10.244.0.2:9080", "10.244.0.3:9080", "10.244.0.4:9080"]),
            service("10.96.0.10:443", &["10.244.0.2:9443"]),
            service("10.96.0.11:80", &[]),
        ]);
        expect![[r#"
            table ip leno-nat {
            	chain SERVICES {
            		ip daddr 10.96.0.10/32 tcp dport 80 numgen random mod 3 0 dnat to 10.244.0.2:9080
            		ip daddr 10.96.0.10/32 tcp dport 80 numgen random mod 2 0 dnat to 10.244.0.3:9080
            		ip daddr 10.96.0.10/32 tcp dport 80 dnat to 10.244.0.4:9080
            		ip daddr 10.96.0.10/32 tcp dport 443 dnat to 10.244.0.2:9443
            	}
            	chain PREROUTING {
            		type nat hook prerouting priority -100; policy accept;
            		meta l4proto tcp jump SERVICES
            	}
            	chain OUTPUT {
            		type nat hook output priority -100; policy accept;
            		meta l4proto tcp jump SERVICES
            	}
            	chain POSTROUTING {
            		type nat hook postrouting priority 100; policy accept;
            		ip saddr 10.244.0.2/32 ip daddr 10.244.0.2/32 masquerade
            		ip saddr 10.244.0.3/32 ip daddr 10.244.0.3/32 masquerade
            		ip saddr 10.244.0.4/32 ip daddr 10.244.0.4/32 masquerade
            	}
            }
        "#]]
        .assert_eq(&rules.to_string());
    }
}
