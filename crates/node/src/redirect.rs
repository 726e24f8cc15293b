//! Which connections of a pod go through its proxy: the rules that Istio's `istio-iptables` installs in its
//! REDIRECT mode, chain by chain under the same names, as a pure function to a [`Ruleset`].
//!
//! One difference: where only one user exists (user namespaces) a proxy cannot be told from applications by
//! its user, so it may be told by a socket mark instead. UDP is left alone (no DNS capture).

use std::net::{AddrParseError, Ipv4Addr};
use std::str::FromStr;
use std::{fmt, num};

use crate::rules::{Chain, Hook, Match, Owner, Rule, Ruleset, Verdict};

const INBOUND: &str = "ISTIO_INBOUND";
const IN_REDIRECT: &str = "ISTIO_IN_REDIRECT";
const OUTPUT: &str = "ISTIO_OUTPUT";
const REDIRECT: &str = "ISTIO_REDIRECT";

/// The ports and addresses to redirect. The defaults are Istio's, with the proxy known by user and group 1337.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Where the proxy takes connections to the pod (`PROXY_INBOUND_PORT`, 15006).
    pub inbound_port: u16,
    /// Where the proxy takes connections from the pod (`PROXY_PORT`, 15001).
    pub outbound_port: u16,
    /// The port of HBONE tunnels, which are never redirected (`INBOUND_TUNNEL_PORT`, 15008).
    pub tunnel_port: u16,
    /// The proxy's user. Of the three, those given: a packet with any of them is the proxy's.
    pub proxy_uid: Option<u32>,
    /// The proxy's group.
    pub proxy_gid: Option<u32>,
    /// The `SO_MARK` of the proxy's sockets. Setting it takes `CAP_NET_ADMIN` (or `CAP_NET_RAW`).
    pub proxy_mark: Option<u32>,
    /// `traffic.sidecar.istio.io/includeInboundPorts`.
    pub include_inbound_ports: Ports,
    /// `traffic.sidecar.istio.io/excludeInboundPorts`; as in Istio it counts only where all are included.
    pub exclude_inbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/includeOutboundPorts`: redirected whatever the address.
    pub include_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/excludeOutboundPorts`.
    pub exclude_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/includeOutboundIPRanges`.
    pub include_outbound_cidrs: Cidrs,
    /// `traffic.sidecar.istio.io/excludeOutboundIPRanges`; it wins over the included ones.
    pub exclude_outbound_cidrs: Vec<Ipv4Net>,
}

/// A set of ports as Istio's annotations give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `*`
    All,
    /// A list, which may be empty.
    Only(Vec<u16>),
}

/// A set of address ranges as Istio's annotations give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cidrs {
    /// `*`
    All,
    /// A list, which may be empty.
    Only(Vec<Ipv4Net>),
}

/// An IPv4 prefix, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The address; bits after the prefix are ignored.
    pub address: Ipv4Addr,
    /// The number of bits that count, 0 to 32.
    pub prefix: u8,
}

impl Default for Redirect {
    fn default() -> Redirect {
        Redirect {
            inbound_port: 15006,
            outbound_port: 15001,
            tunnel_port: 15008,
            proxy_uid: Some(1337),
            proxy_gid: Some(1337),
            proxy_mark: None,
            include_inbound_ports: Ports::All,
            exclude_inbound_ports: vec![15090, 15021, 15020, 22],
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_cidrs: Cidrs::All,
            exclude_outbound_cidrs: Vec::new(),
        }
    }
}

impl Redirect {
    /// Istio's defaults for a proxy that is known by the mark 1337 of its sockets.
    pub fn by_mark() -> Redirect {
        Redirect { proxy_uid: None, proxy_gid: None, proxy_mark: Some(1337), ..Redirect::default() }
    }

    /// The rules.
    pub fn rules(&self) -> Ruleset {
        let chain = |name, hook, rules| Chain { name, hook, rules };
        Ruleset {
            chains: vec![
                chain(IN_REDIRECT, None, vec![rule([Match::Tcp], Verdict::Redirect(self.inbound_port))]),
                chain(REDIRECT, None, vec![rule([Match::Tcp], Verdict::Redirect(self.outbound_port))]),
                chain(INBOUND, None, self.inbound()),
                chain(OUTPUT, None, self.outbound()),
                chain("prerouting", Some(Hook::Prerouting), vec![rule([Match::Tcp], Verdict::Jump(INBOUND))]),
                chain("output", Some(Hook::Output), vec![rule([Match::Tcp], Verdict::Jump(OUTPUT))]),
            ],
        }
    }

    fn inbound(&self) -> Vec<Rule> {
        let mut rules = vec![rule([Match::Port(self.tunnel_port)], Verdict::Return)];
        match &self.include_inbound_ports {
            Ports::All => {
                rules.extend(
                    self.exclude_inbound_ports.iter().map(|&port| rule([Match::Port(port)], Verdict::Return)),
                );
                rules.push(rule([], Verdict::Jump(IN_REDIRECT)));
            }
            Ports::Only(ports) => {
                rules.extend(ports.iter().map(|&port| rule([Match::Port(port)], Verdict::Jump(IN_REDIRECT))));
            }
        }
        rules
    }

    fn outbound(&self) -> Vec<Rule> {
        let localhost = Ipv4Net::host(Ipv4Addr::LOCALHOST);
        let owners: Vec<Owner> = [
            self.proxy_uid.map(Owner::Uid),
            self.proxy_gid.map(Owner::Gid),
            self.proxy_mark.map(Owner::Mark),
        ]
        .into_iter()
        .flatten()
        .collect();

        let mut rules = Vec::new();
        // The proxy hands inbound connections to the application from 127.0.0.6, so that they stay as they are
        // even if the application answers on an address that would be redirected.
        let inbound_source = Ipv4Net::host(Ipv4Addr::new(127, 0, 0, 6));
        rules.push(rule([Match::From(inbound_source), Match::OutLoopback], Verdict::Return));
        rules.extend(
            self.exclude_outbound_ports.iter().map(|&port| rule([Match::Port(port)], Verdict::Return)),
        );
        // A service that calls itself: application → proxy (outbound) → own address → proxy (inbound).
        rules.extend(owners.iter().map(|&owner| {
            rule(
                [
                    Match::OutLoopback,
                    Match::NotTo(localhost),
                    Match::NotPort(self.tunnel_port),
                    Match::Owner(owner),
                ],
                Verdict::Jump(IN_REDIRECT),
            )
        }));
        // Applications that talk to each other, or to themselves, over loopback.
        let mut applications = vec![Match::OutLoopback];
        applications.extend(owners.iter().map(|&owner| Match::NotOwner(owner)));
        rules.push(Rule { matches: applications, verdict: Verdict::Return });
        rules.extend(owners.iter().map(|&owner| rule([Match::Owner(owner)], Verdict::Return)));
        rules.push(rule([Match::To(localhost)], Verdict::Return));
        rules.extend(self.exclude_outbound_cidrs.iter().map(|&net| rule([Match::To(net)], Verdict::Return)));
        rules.extend(
            self.include_outbound_ports
                .iter()
                .map(|&port| rule([Match::Port(port)], Verdict::Jump(REDIRECT))),
        );
        match &self.include_outbound_cidrs {
            Cidrs::All => rules.push(rule([], Verdict::Jump(REDIRECT))),
            Cidrs::Only(nets) => {
                rules.extend(nets.iter().map(|&net| rule([Match::To(net)], Verdict::Jump(REDIRECT))));
            }
        }
        rules
    }
}

fn rule<const N: usize>(matches: [Match; N], verdict: Verdict) -> Rule {
    Rule { matches: matches.to_vec(), verdict }
}

impl Ipv4Net {
    /// The prefix that holds one address.
    pub fn host(address: Ipv4Addr) -> Ipv4Net {
        Ipv4Net { address, prefix: 32 }
    }

    /// The mask, for example 255.255.0.0 for a prefix of 16.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The first address: the given one without the bits after the prefix.
    pub fn network(self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// Whether an address is in the prefix.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network()
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

/// Why a text is not an IPv4 prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotANet {
    /// The part before the slash.
    #[error("not an IPv4 address")]
    Address(#[from] AddrParseError),
    /// The part after the slash.
    #[error("the prefix length is not a number from 0 to 32")]
    Prefix,
}

impl From<num::ParseIntError> for NotANet {
    fn from(_: num::ParseIntError) -> NotANet {
        NotANet::Prefix
    }
}

impl FromStr for Ipv4Net {
    type Err = NotANet;

    /// Reads `10.0.0.0/8` or a single address.
    fn from_str(text: &str) -> Result<Ipv4Net, NotANet> {
        let Some((address, prefix)) = text.split_once('/') else { return Ok(Ipv4Net::host(text.parse()?)) };
        let prefix = prefix.parse()?;
        if prefix > 32 {
            return Err(NotANet::Prefix);
        }
        Ok(Ipv4Net { address: address.parse()?, prefix })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{Cidrs, Ipv4Net, Ports, Redirect};

    fn check(redirect: &Redirect, expected: &Expect) {
        expected.assert_eq(&redirect.rules().to_string());
    }

    #[test]
    fn istio_defaults() {
        check(
            &Redirect::default(),
            &expect![[r#"
            table ip leno {
            	chain ISTIO_IN_REDIRECT {
            		meta l4proto tcp redirect to :15006
            	}
            	chain ISTIO_REDIRECT {
            		meta l4proto tcp redirect to :15001
            	}
            	chain ISTIO_INBOUND {
            		tcp dport 15008 return
            		tcp dport 15090 return
            		tcp dport 15021 return
            		tcp dport 15020 return
            		tcp dport 22 return
            		jump ISTIO_IN_REDIRECT
            	}
            	chain ISTIO_OUTPUT {
            		ip saddr 127.0.0.6/32 oifname "lo" return
            		oifname "lo" ip daddr != 127.0.0.1/32 tcp dport != 15008 meta skuid 1337 jump ISTIO_IN_REDIRECT
            		oifname "lo" ip daddr != 127.0.0.1/32 tcp dport != 15008 meta skgid 1337 jump ISTIO_IN_REDIRECT
            		oifname "lo" meta skuid != 1337 meta skgid != 1337 return
            		meta skuid 1337 return
            		meta skgid 1337 return
            		ip daddr 127.0.0.1/32 return
            		jump ISTIO_REDIRECT
            	}
            	chain prerouting {
            		type nat hook prerouting priority -100; policy accept;
            		meta l4proto tcp jump ISTIO_INBOUND
            	}
            	chain output {
            		type nat hook output priority -100; policy accept;
            		meta l4proto tcp jump ISTIO_OUTPUT
            	}
            }
        "#]],
        );
    }

    #[test]
    fn proxy_known_by_mark_and_everything_listed() {
        check(
            &Redirect {
                inbound_port: 16006,
                outbound_port: 16001,
                include_inbound_ports: Ports::Only(vec![80, 9080]),
                include_outbound_ports: vec![3306],
                exclude_outbound_ports: vec![5432],
                include_outbound_cidrs: Cidrs::Only(vec!["10.96.0.0/16".parse().unwrap()]),
                exclude_outbound_cidrs: vec!["10.96.7.9".parse().unwrap(), "10.97.1.1/12".parse().unwrap()],
                ..Redirect::by_mark()
            },
            &expect![[r#"
                table ip leno {
                	chain ISTIO_IN_REDIRECT {
                		meta l4proto tcp redirect to :16006
                	}
                	chain ISTIO_REDIRECT {
                		meta l4proto tcp redirect to :16001
                	}
                	chain ISTIO_INBOUND {
                		tcp dport 15008 return
                		tcp dport 80 jump ISTIO_IN_REDIRECT
                		tcp dport 9080 jump ISTIO_IN_REDIRECT
                	}
                	chain ISTIO_OUTPUT {
                		ip saddr 127.0.0.6/32 oifname "lo" return
                		tcp dport 5432 return
                		oifname "lo" ip daddr != 127.0.0.1/32 tcp dport != 15008 meta mark 1337 jump ISTIO_IN_REDIRECT
                		oifname "lo" meta mark != 1337 return
                		meta mark 1337 return
                		ip daddr 127.0.0.1/32 return
                		ip daddr 10.96.7.9/32 return
                		ip daddr 10.96.0.0/12 return
                		tcp dport 3306 jump ISTIO_REDIRECT
                		ip daddr 10.96.0.0/16 jump ISTIO_REDIRECT
                	}
                	chain prerouting {
                		type nat hook prerouting priority -100; policy accept;
                		meta l4proto tcp jump ISTIO_INBOUND
                	}
                	chain output {
                		type nat hook output priority -100; policy accept;
                		meta l4proto tcp jump ISTIO_OUTPUT
                	}
                }
            "#]],
        );
    }

    #[test]
    fn prefixes() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let got = text.parse::<Ipv4Net>().map(|net| net.to_string()).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text}");
        };
        check("10.1.2.3/8", Ok("10.0.0.0/8"));
        check("10.1.2.3/0", Ok("0.0.0.0/0"));
        check("10.1.2.3", Ok("10.1.2.3/32"));
        check("10.1.2.3/33", Err("the prefix length is not a number from 0 to 32"));
        check("10.1.2.3/", Err("the prefix length is not a number from 0 to 32"));
        check("10.1.2/8", Err("not an IPv4 address"));
        let net: Ipv4Net = "10.244.0.0/16".parse().unwrap();
        assert!(net.contains("10.244.255.1".parse().unwrap()));
        assert!(!net.contains("10.245.0.1".parse().unwrap()));
    }
}
