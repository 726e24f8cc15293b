//! Packet rules as typed data: what [`crate::redirect`] and [`crate::services`] produce, and the back ends
//! ([`crate::nft`], [`crate::iptables`]) encode. `Display` writes them in the syntax of `nft list ruleset`, for
//! people and for tests.
//!
//! The names of tables and what they do are those of iptables, since Istio's rules are written for it: `nat`
//! decides where a connection goes, `mangle` sets marks, `raw` comes before connections are tracked.

use std::fmt;
use std::net::SocketAddrV4;

use leno_base::cidr::Cidr;

/// IPv4 or IPv6: each has tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// A set of tables that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables, at most one of each family and kind.
    pub tables: Vec<Table>,
}

/// A table of chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Whose packets it sees.
    pub family: Family,
    /// What it does with them.
    pub kind: Kind,
    /// The chains; a jump may only name one of these.
    pub chains: Vec<Chain>,
}

/// What a table is for, and when its chains are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Marks are set, before anything is decided.
    Mangle,
    /// It is decided where a connection goes; only its first packet gets here.
    Nat,
    /// Before connections are tracked.
    Raw,
}

/// A chain of rules, tried in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's name.
    pub name: &'static str,
    /// Where the kernel enters the chain; `None`: only jumps enter it.
    pub hook: Option<Hook>,
    /// Tried in order, until one whose matches all hold gives a verdict that ends it.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in from a link.
    Prerouting,
    /// Packets that local processes send.
    Output,
    /// Packets that leave through a link, wherever they come from.
    Postrouting,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet is TCP.
    Tcp,
    /// The packet is UDP.
    Udp,
    /// The destination port is this one; [`Match::Tcp`] or [`Match::Udp`] must stand before it, as with all ports.
    Port(u16),
    /// The destination port is another one.
    NotPort(u16),
    /// The destination port is none of these.
    NotPorts(Vec<u16>),
    /// The source port is this one.
    SourcePort(u16),
    /// The source address is in the range.
    From(Cidr),
    /// The destination address is in the range.
    To(Cidr),
    /// The destination address is outside the range.
    NotTo(Cidr),
    /// The packet came in through this link.
    In(Interface),
    /// The packet leaves through this link.
    Out(Interface),
    /// The packet was sent by this one.
    Owner(Owner),
    /// The packet was sent by another one.
    NotOwner(Owner),
    /// The packet's mark is this one.
    Mark(u32),
    /// The packet's mark is another one.
    NotMark(u32),
    /// The mark of the packet's connection is this one.
    ConnectionMark(u32),
    /// The packet belongs to a connection that is there, or is related to one.
    Established,
    /// The packet belongs to no connection and starts none.
    Invalid,
    /// One connection in so many, at random.
    OneIn(u32),
}

/// The name of a link, or with a `+` at its end, of all links whose names begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

/// Why a text is not the name of a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of an interface")]
pub struct NotAnInterface(String);

/// How packets are told by who sends them.
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
    /// Back to the chain that jumped here; in a hooked chain: leave the packet as it is.
    Return,
    /// No more rules of this table.
    Accept,
    /// The packet is gone.
    Drop,
    /// Go on in another chain, and come back.
    Jump(&'static str),
    /// Send the connection to this port of this network namespace.
    Redirect(u16),
    /// Send the connection to another address (destination NAT).
    Forward(SocketAddrV4),
    /// Let the connection come from the address of the link that it leaves through (source NAT).
    Masquerade,
    /// Give the packet to the transparent socket that listens on the port, and a mark; without one it is gone.
    Tproxy {
        /// The port.
        port: u16,
        /// The mark.
        mark: u32,
    },
    /// Give the packet a mark, and go on.
    SetMark(u32),
    /// Give the packet's mark to its connection, and go on.
    SaveMark,
    /// Give the connection's mark to the packet, and go on.
    RestoreMark,
    /// Track the packet's connection in this zone, and go on.
    Zone(u16),
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Whether a range is of the family.
    pub fn has(self, cidr: &Cidr) -> bool {
        cidr.address().is_ipv4() == (self == Family::V4)
    }

    fn word(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }
}

impl Kind {
    /// All, in the order of `iptables-save`.
    pub const ALL: [Kind; 3] = [Kind::Mangle, Kind::Nat, Kind::Raw];

    /// What iptables calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mangle => "mangle",
            Kind::Nat => "nat",
            Kind::Raw => "raw",
        }
    }

    /// The name of the table of nf_tables.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Kind::Mangle => "leno-mangle",
            Kind::Nat => "leno-nat",
            Kind::Raw => "leno-raw",
        }
    }

    /// The type of its hooked chains in nf_tables. In a `route` chain a new mark leads to a new route.
    pub(crate) fn chain_type(self, hook: Hook) -> &'static str {
        match (self, hook) {
            (Kind::Nat, _) => "nat",
            (Kind::Mangle, Hook::Output) => "route",
            (Kind::Mangle | Kind::Raw, _) => "filter",
        }
    }

    /// The priority of the chain among those of the hook, as for iptables' tables.
    pub(crate) fn priority(self, hook: Hook) -> i32 {
        match (self, hook) {
            (Kind::Nat, Hook::Postrouting) => 100,
            (Kind::Nat, Hook::Prerouting | Hook::Output) => -100,
            (Kind::Mangle, _) => -150,
            (Kind::Raw, _) => -300,
        }
    }
}

impl Hook {
    /// What iptables calls its chain there.
    pub fn chain(self) -> &'static str {
        match self {
            Hook::Prerouting => "PREROUTING",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

impl Interface {
    /// The loopback link.
    pub fn loopback() -> Interface {
        Interface("lo".to_owned())
    }

    /// The name, as it was given.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Interface {
    type Err = NotAnInterface;

    /// As the kernel has it: 1 to 15 bytes without spaces, slashes and colons, and not `.` or `..`. Quotes and
    /// backslashes would be read otherwise by iptables-restore.
    fn from_str(text: &str) -> Result<Interface, NotAnInterface> {
        let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '"' | '\'' | '\\' | '!');
        if text.is_empty() || text.len() > 15 || !text.chars().all(fine) || matches!(text, "." | ".." | "+") {
            return Err(NotAnInterface(text.to_owned()));
        }
        Ok(Interface(text.to_owned()))
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.word(), self.kind.table())?;
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(hook) = chain.hook {
                let (kind, priority) = (self.kind.chain_type(hook), self.kind.priority(hook));
                let word = hook.word();
                writeln!(f, "\t\ttype {kind} hook {word} priority {priority}; policy accept;")?;
            }
            for rule in &chain.rules {
                f.write_str("\t\t")?;
                rule.write(self.family, f)?;
                f.write_str("\n")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl Rule {
    fn write(&self, family: Family, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = family.word();
        let mut protocol = "tcp";
        for condition in &self.matches {
            match condition {
                Match::Tcp => {
                    protocol = "tcp";
                    write!(f, "meta l4proto tcp")?;
                }
                Match::Udp => {
                    protocol = "udp";
                    write!(f, "meta l4proto udp")?;
                }
                Match::Port(port) => write!(f, "{protocol} dport {port}")?,
                Match::NotPort(port) => write!(f, "{protocol} dport != {port}")?,
                Match::NotPorts(ports) => {
                    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                    write!(f, "{protocol} dport != {{ {} }}", ports.join(", "))?;
                }
                Match::SourcePort(port) => write!(f, "{protocol} sport {port}")?,
                Match::From(net) => write!(f, "{word} saddr {net}")?,
                Match::To(net) => write!(f, "{word} daddr {net}")?,
                Match::NotTo(net) => write!(f, "{word} daddr != {net}")?,
                Match::In(link) => write!(f, "iifname \"{}\"", link.name().replace('+', "*"))?,
                Match::Out(link) => write!(f, "oifname \"{}\"", link.name().replace('+', "*"))?,
                Match::Owner(owner) => write!(f, "{} {}", owner.key(), owner.value())?,
                Match::NotOwner(owner) => write!(f, "{} != {}", owner.key(), owner.value())?,
                Match::Mark(mark) => write!(f, "meta mark {mark}")?,
                Match::NotMark(mark) => write!(f, "meta mark != {mark}")?,
                Match::ConnectionMark(mark) => write!(f, "ct mark {mark}")?,
                Match::Established => write!(f, "ct state established,related")?,
                Match::Invalid => write!(f, "ct state invalid")?,
                Match::OneIn(many) => write!(f, "numgen random mod {many} 0")?,
            }
            f.write_str(" ")?;
        }
        match self.verdict {
            Verdict::Return => write!(f, "return"),
            Verdict::Accept => write!(f, "accept"),
            Verdict::Drop => write!(f, "drop"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
            Verdict::Forward(to) => write!(f, "dnat to {to}"),
            Verdict::Masquerade => write!(f, "masquerade"),
            Verdict::Tproxy { port, mark } => write!(f, "tproxy to :{port} meta mark set {mark} accept"),
            Verdict::SetMark(mark) => write!(f, "meta mark set {mark}"),
            Verdict::SaveMark => write!(f, "ct mark set meta mark"),
            Verdict::RestoreMark => write!(f, "meta mark set ct mark"),
            Verdict::Zone(zone) => write!(f, "ct zone set {zone}"),
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
