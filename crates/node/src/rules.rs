//! Packet rules as typed data: what [`crate::redirect`] and [`crate::services`] produce and [`crate::nft`]
//! encodes. `Display` writes
//! them in the syntax of `nft list ruleset`, for people and for tests.

use std::fmt;
use std::net::SocketAddrV4;

use crate::redirect::Ipv4Net;

/// A table of chains, named [`Ruleset::TABLE`], of the `ip` family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The chains; a jump may only name one of these.
    pub chains: Vec<Chain>,
}

impl Ruleset {
    /// The name of the nf_tables table.
    pub const TABLE: &str = "leno";
}

/// A chain of rules, tried in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's name.
    pub name: &'static str,
    /// Where the kernel enters the chain; `None`: only jumps enter it.
    pub hook: Option<Hook>,
    /// Tried in order, until one whose matches all hold gives a verdict.
    pub rules: Vec<Rule>,
}

/// Where connections enter a nat chain, at the usual priority of destination NAT (-100) or source NAT (100).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Connections that come in from a link.
    Prerouting,
    /// Connections that local processes open.
    Output,
    /// Connections that leave through a link, wherever they come from.
    Postrouting,
}

impl Hook {
    /// The priority of the chain among those of the hook.
    pub(crate) fn priority(self) -> i32 {
        match self {
            Hook::Prerouting | Hook::Output => -100,
            Hook::Postrouting => 100,
        }
    }
}

/// A verdict and the conditions for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
}

/// A condition on a packet or on the socket that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet is TCP.
    Tcp,
    /// The TCP destination port is this one.
    Port(u16),
    /// The TCP destination port is another one.
    NotPort(u16),
    /// The source address is in the prefix.
    From(Ipv4Net),
    /// The destination address is in the prefix.
    To(Ipv4Net),
    /// The destination address is outside the prefix.
    NotTo(Ipv4Net),
    /// The packet leaves through the loopback link.
    OutLoopback,
    /// The packet was sent by the proxy.
    Owner(Owner),
    /// The packet was not sent by the proxy.
    NotOwner(Owner),
    /// One connection in so many, at random.
    OneIn(u32),
}

/// How a packet of the proxy is told from those of applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By the user of the process that opened the socket.
    Uid(u32),
    /// By its group.
    Gid(u32),
    /// By the mark that the proxy set on the socket (`SO_MARK`).
    Mark(u32),
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Back to the chain that jumped here; in a hooked chain: leave the connection as it is.
    Return,
    /// Go on in another chain, and come back.
    Jump(&'static str),
    /// Send the connection to this port of this network namespace.
    Redirect(u16),
    /// Send the connection to another address (destination NAT).
    Forward(SocketAddrV4),
    /// Let the connection come from the address of the link that it leaves through (source NAT).
    Masquerade,
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table ip {} {{", Ruleset::TABLE)?;
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(hook) = chain.hook {
                let name = match hook {
                    Hook::Prerouting => "prerouting",
                    Hook::Output => "output",
                    Hook::Postrouting => "postrouting",
                };
                writeln!(f, "\t\ttype nat hook {name} priority {}; policy accept;", hook.priority())?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        match self.verdict {
            Verdict::Return => write!(f, "return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
            Verdict::Forward(to) => write!(f, "dnat to {to}"),
            Verdict::Masquerade => write!(f, "masquerade"),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Tcp => write!(f, "meta l4proto tcp"),
            Match::Port(port) => write!(f, "tcp dport {port}"),
            Match::NotPort(port) => write!(f, "tcp dport != {port}"),
            Match::From(net) => write!(f, "ip saddr {net}"),
            Match::To(net) => write!(f, "ip daddr {net}"),
            Match::NotTo(net) => write!(f, "ip daddr != {net}"),
            Match::OutLoopback => write!(f, "oifname \"lo\""),
            Match::Owner(owner) => write!(f, "{} {}", owner.key(), owner.value()),
            Match::NotOwner(owner) => write!(f, "{} != {}", owner.key(), owner.value()),
            Match::OneIn(many) => write!(f, "numgen random mod {many} 0"),
        }
    }
}

impl Owner {
    fn key(self) -> &'static str {
        match self {
            Owner::Uid(_) => "meta skuid",
            Owner::Gid(_) => "meta skgid",
            Owner::Mark(_) => "meta mark",
        }
    }

    /// The number to compare with.
    pub fn value(self) -> u32 {
        match self {
            Owner::Uid(value) | Owner::Gid(value) | Owner::Mark(value) => value,
        }
    }
}
