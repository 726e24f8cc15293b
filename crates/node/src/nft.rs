//! Rules as nf_tables netlink messages: one batch, which the kernel applies as a whole or not at all, for both
//! families and all tables. Pure. What the kernel then has is compared with it by [`crate::nft_check`].
//!
//! Numbers from `linux/netfilter/nf_tables.h`; numbers in attributes are in network order, while the data
//! that expressions compare is as the kernel holds it in its registers: ports and addresses in network order,
//! users and marks in the machine's.

use std::net::IpAddr;

use leno_base::Cidr;

use crate::netlink::{Message, Request};
use crate::rules::{Chain, Family, Hook, Interface, Kind, Match, Owner, Rule, Ruleset, Table, Verdict};

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DUMP_CHAINS: u16 = 4;
const NEW_RULE: u16 = 6;
const DUMP_RULES: u16 = 7;

const TABLE_NAME: u16 = 1;
pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
pub(crate) const RULE_TABLE: u16 = 1;
pub(crate) const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const INET_PREROUTING: u32 = 0;
const INET_LOCAL_OUT: u32 = 3;
const INET_POSTROUTING: u32 = 4;

const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
const ACCEPT: i32 = 1;
const DROP: i32 = 0;
const JUMP: i32 = -3;
const RETURN: i32 = -5;
const CMP_EQUAL: u32 = 0;
const CMP_UNEQUAL: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED: u32 = 2;
const STATE_RELATED: u32 = 4;
const RANGE_PROTO_SPECIFIED: u32 = 2;
const NAT_DESTINATION: u32 = 1;
const NUMBERS_RANDOM: u32 = 1;

/// The batch that replaces all tables of these families, those that are not wanted by nothing.
pub(crate) fn replace(families: &[Family], ruleset: &Ruleset) -> Request {
    let mut messages = clear(families);
    for table in &ruleset.tables {
        messages.push(table_message(NEW_TABLE, libc::NLM_F_CREATE, table.family, table.kind));
        let (chains, rules): (Vec<_>, Vec<_>) =
            contents(table).into_iter().map(|contents| (contents.chain, contents.rules)).unzip();
        // A rule may jump to a chain that comes later.
        messages.extend(chains);
        messages.extend(rules.into_iter().flatten());
    }
    batch(messages)
}

/// The batch that removes all tables of these families; it succeeds without any, too.
pub(crate) fn remove(families: &[Family]) -> Request {
    batch(clear(families))
}

/// What asks for all chains, and all rules, of a family.
pub(crate) fn dumps(family: Family) -> [Request; 2] {
    [DUMP_CHAINS, DUMP_RULES].map(|kind| {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        Request::of(&Message::new(SUBSYSTEM << 8 | kind, flags, &[protocol(family), 0, 0, 0]))
    })
}

/// A chain with its rules, as messages.
pub(crate) struct ContentsOfChain {
    pub(crate) name: &'static str,
    pub(crate) chain: Message,
    pub(crate) rules: Vec<Message>,
}

/// The chains of a table.
pub(crate) fn contents(table: &Table) -> Vec<ContentsOfChain> {
    table
        .chains
        .iter()
        .map(|chain| ContentsOfChain {
            name: chain.name,
            chain: add_chain(table, chain),
            rules: chain.rules.iter().flat_map(|rule| add_rule(table, chain.name, rule)).collect(),
        })
        .collect()
}

fn clear(families: &[Family]) -> Vec<Message> {
    let mut messages = Vec::new();
    for &family in families {
        for kind in Kind::ALL {
            // Added first so that deleting it cannot fail.
            messages.push(table_message(NEW_TABLE, libc::NLM_F_CREATE, family, kind));
            messages.push(table_message(DELETE_TABLE, 0, family, kind));
        }
    }
    messages
}

/// One transaction. The kernel tells of every message that fails; that all is well it shall say once, at the last
/// one, so that many messages do not fill the socket with answers.
fn batch(mut messages: Vec<Message>) -> Request {
    if let Some(last) = messages.last_mut() {
        last.ask_for_acknowledgement();
    }
    let mut request = Request::default();
    request.push(&edge(BATCH_BEGIN));
    messages.iter().for_each(|message| request.push(message));
    request.push(&edge(BATCH_END));
    request
}

fn edge(kind: u16) -> Message {
    // struct nfgenmsg: family, version, resource u16 in network order
    let subsystem = SUBSYSTEM.to_be_bytes();
    Message::new(kind, libc::NLM_F_REQUEST as u16, &[0, 0, subsystem[0], subsystem[1]])
}

fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}

fn message(kind: u16, flags: i32, family: Family) -> Message {
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    Message::new(SUBSYSTEM << 8 | kind, flags, &[protocol(family), 0, 0, 0])
}

fn table_message(kind: u16, flags: i32, family: Family, table: Kind) -> Message {
    let mut message = message(kind, flags, family);
    message.text(TABLE_NAME, table.table());
    message
}

fn add_chain(table: &Table, chain: &Chain) -> Message {
    let mut message = message(NEW_CHAIN, libc::NLM_F_CREATE, table.family);
    message.text(CHAIN_TABLE, table.kind.table()).text(CHAIN_NAME, chain.name);
    if let Some(hook) = chain.hook {
        let number = match hook {
            Hook::Prerouting => INET_PREROUTING,
            Hook::Output => INET_LOCAL_OUT,
            Hook::Postrouting => INET_POSTROUTING,
        };
        message.nest(CHAIN_HOOK, |m| {
            m.be32(HOOK_NUMBER, number).attr(HOOK_PRIORITY, &table.kind.priority(hook).to_be_bytes());
        });
        message.text(CHAIN_TYPE, table.kind.chain_type(hook));
    }
    message
}

/// A rule; of TPROXY two, as the kernel's expression lets packets pass if nobody listens, while iptables' target
/// drops them: nothing may come to the application because its proxy is not there.
fn add_rule(table: &Table, chain: &str, rule: &Rule) -> Vec<Message> {
    let one = |rule: &Rule| {
        let mut message = message(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, table.family);
        message.text(RULE_TABLE, table.kind.table()).text(RULE_CHAIN, chain);
        message.nest(RULE_EXPRESSIONS, |list| {
            for condition in &rule.matches {
                add_match(list, table.family, condition);
            }
            add_verdict(list, table.family, rule.verdict);
        });
        message
    };
    let mut messages = vec![one(rule)];
    if let Verdict::Tproxy { .. } = rule.verdict {
        messages.push(one(&Rule { matches: rule.matches.clone(), verdict: Verdict::Drop }));
    }
    messages
}

fn add_match(list: &mut Message, family: Family, condition: &Match) {
    let source = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    let destination = match family {
        Family::V4 => 16,
        Family::V6 => 24,
    };
    match condition {
        Match::Tcp => {
            meta(list, META_L4PROTO);
            compare(list, CMP_EQUAL, &[libc::IPPROTO_TCP as u8]);
        }
        Match::Udp => {
            meta(list, META_L4PROTO);
            compare(list, CMP_EQUAL, &[libc::IPPROTO_UDP as u8]);
        }
        Match::Port(port) => {
            payload(list, TRANSPORT_HEADER, 2, 2);
            compare(list, CMP_EQUAL, &port.to_be_bytes());
        }
        Match::NotPort(port) => {
            payload(list, TRANSPORT_HEADER, 2, 2);
            compare(list, CMP_UNEQUAL, &port.to_be_bytes());
        }
        Match::NotPorts(ports) => {
            payload(list, TRANSPORT_HEADER, 2, 2);
            for port in ports {
                compare(list, CMP_UNEQUAL, &port.to_be_bytes());
            }
        }
        Match::SourcePort(port) => {
            payload(list, TRANSPORT_HEADER, 0, 2);
            compare(list, CMP_EQUAL, &port.to_be_bytes());
        }
        Match::From(net) => address(list, source, CMP_EQUAL, net),
        Match::To(net) => address(list, destination, CMP_EQUAL, net),
        Match::NotTo(net) => address(list, destination, CMP_UNEQUAL, net),
        Match::In(link) => interface(list, META_IIFNAME, link),
        Match::Out(link) => interface(list, META_OIFNAME, link),
        Match::Owner(owner) => {
            meta(list, owner_key(*owner));
            compare(list, CMP_EQUAL, &owner.value().to_ne_bytes());
        }
        Match::NotOwner(owner) => {
            meta(list, owner_key(*owner));
            compare(list, CMP_UNEQUAL, &owner.value().to_ne_bytes());
        }
        Match::Mark(mark) => {
            meta(list, META_MARK);
            compare(list, CMP_EQUAL, &mark.to_ne_bytes());
        }
        Match::NotMark(mark) => {
            meta(list, META_MARK);
            compare(list, CMP_UNEQUAL, &mark.to_ne_bytes());
        }
        Match::ConnectionMark(mark) => {
            connection(list, CT_MARK);
            compare(list, CMP_EQUAL, &mark.to_ne_bytes());
        }
        Match::Established => state(list, STATE_ESTABLISHED | STATE_RELATED),
        Match::Invalid => state(list, STATE_INVALID),
        Match::OneIn(many) => {
            expression(list, "numgen", |m| {
                m.be32(1, REGISTER).be32(2, *many).be32(3, NUMBERS_RANDOM);
            });
            compare(list, CMP_EQUAL, &0_u32.to_ne_bytes());
        }
    }
}

fn add_verdict(list: &mut Message, family: Family, verdict: Verdict) {
    match verdict {
        Verdict::Return => immediate_verdict(list, RETURN, None),
        Verdict::Accept => immediate_verdict(list, ACCEPT, None),
        Verdict::Drop => immediate_verdict(list, DROP, None),
        Verdict::Jump(chain) => immediate_verdict(list, JUMP, Some(chain)),
        Verdict::Redirect(port) => {
            immediate(list, REGISTER, &port.to_be_bytes());
            expression(list, "redir", |m| {
                m.be32(1, REGISTER).be32(3, RANGE_PROTO_SPECIFIED);
            });
        }
        Verdict::Forward(to) => {
            immediate(list, REGISTER, &to.ip().octets());
            immediate(list, SECOND_REGISTER, &to.port().to_be_bytes());
            expression(list, "nat", |m| {
                m.be32(1, NAT_DESTINATION).be32(2, libc::NFPROTO_IPV4 as u32);
                m.be32(3, REGISTER).be32(5, SECOND_REGISTER);
            });
        }
        Verdict::Masquerade => expression(list, "masq", |_| {}),
        Verdict::Tproxy { port, mark } => {
            immediate(list, REGISTER, &port.to_be_bytes());
            expression(list, "tproxy", |m| {
                m.be32(1, u32::from(protocol(family))).be32(3, REGISTER);
            });
            set_mark(list, mark);
            immediate_verdict(list, ACCEPT, None);
        }
        Verdict::SetMark(mark) => set_mark(list, mark),
        Verdict::SaveMark => {
            meta(list, META_MARK);
            expression(list, "ct", |m| {
                m.be32(2, CT_MARK).be32(4, REGISTER);
            });
        }
        Verdict::RestoreMark => {
            connection(list, CT_MARK);
            expression(list, "meta", |m| {
                m.be32(2, META_MARK).be32(3, REGISTER);
            });
        }
        Verdict::Zone(zone) => {
            immediate(list, REGISTER, &zone.to_ne_bytes());
            expression(list, "ct", |m| {
                m.be32(2, CT_ZONE).be32(4, REGISTER);
            });
        }
    }
}

fn owner_key(owner: Owner) -> u32 {
    match owner {
        Owner::Uid(_) => META_SKUID,
        Owner::Gid(_) => META_SKGID,
        Owner::Mark(_) => META_MARK,
    }
}

fn interface(list: &mut Message, key: u32, link: &Interface) {
    meta(list, key);
    match link.name().strip_suffix('+') {
        Some(prefix) => compare(list, CMP_EQUAL, prefix.as_bytes()),
        None => {
            let mut name = [0; libc::IFNAMSIZ];
            for (to, from) in name.iter_mut().zip(link.name().bytes()) {
                *to = from;
            }
            compare(list, CMP_EQUAL, &name);
        }
    }
}

fn address(list: &mut Message, offset: u32, operation: u32, net: &Cidr) {
    let (bytes, mask) = match net.address() {
        IpAddr::V4(address) => (address.octets().to_vec(), mask(net.length(), 4)),
        IpAddr::V6(address) => (address.octets().to_vec(), mask(net.length(), 16)),
    };
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    payload(list, NETWORK_HEADER, offset, length);
    if mask.iter().any(|&byte| byte != 255) {
        bitwise(list, &mask);
    }
    compare(list, operation, &bytes);
}

/// The mask of a prefix, in so many bytes.
fn mask(prefix: u8, bytes: u8) -> Vec<u8> {
    let left = |byte: u8| u32::from(prefix.saturating_sub(byte * 8).min(8));
    (0..bytes).map(|byte| 255_u8.checked_shl(8 - left(byte)).unwrap_or(0)).collect()
}

fn state(list: &mut Message, bits: u32) {
    connection(list, CT_STATE);
    bitwise(list, &bits.to_ne_bytes());
    compare(list, CMP_UNEQUAL, &[0; 4]);
}

fn set_mark(list: &mut Message, mark: u32) {
    immediate(list, REGISTER, &mark.to_ne_bytes());
    expression(list, "meta", |m| {
        m.be32(2, META_MARK).be32(3, REGISTER);
    });
}

fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    expression(list, "immediate", |m| {
        m.be32(1, register).nest(2, |m| {
            m.attr(DATA_VALUE, value);
        });
    });
}

fn immediate_verdict(list: &mut Message, code: i32, chain: Option<&str>) {
    expression(list, "immediate", |m| {
        m.be32(1, VERDICT_REGISTER).nest(2, |m| {
            m.nest(DATA_VERDICT, |m| {
                m.attr(VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    m.text(VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

fn meta(list: &mut Message, key: u32) {
    expression(list, "meta", |m| {
        m.be32(1, REGISTER).be32(2, key);
    });
}

fn connection(list: &mut Message, key: u32) {
    expression(list, "ct", |m| {
        m.be32(1, REGISTER).be32(2, key);
    });
}

fn payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |m| {
        m.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
    });
}

/// Keeps the bits of the mask.
fn bitwise(list: &mut Message, mask: &[u8]) {
    expression(list, "bitwise", |m| {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        m.be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
        m.nest(4, |m| {
            m.attr(DATA_VALUE, mask);
        });
        m.nest(5, |m| {
            m.attr(DATA_VALUE, &vec![0; mask.len()]);
        });
    });
}

fn compare(list: &mut Message, operation: u32, value: &[u8]) {
    expression(list, "cmp", |m| {
        m.be32(1, REGISTER).be32(2, operation).nest(3, |m| {
            m.attr(DATA_VALUE, value);
        });
    });
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEMENT, |m| {
        m.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, fill);
    });
}

#[cfg(test)]
mod tests {
    use super::{mask, replace};
    use crate::redirect::Redirect;
    use crate::rules::Family;

    /// Walks the batch as the kernel does: lengths add up, it begins and ends as one, and the last message in
    /// between asks for an acknowledgement.
    #[test]
    fn a_batch_is_well_formed() {
        let request = replace(&[Family::V4], &Redirect::default().rules());
        let mut rest = request.bytes();
        let mut kinds = Vec::new();
        let mut acknowledged = Vec::new();
        while let Some((&[l0, l1, l2, l3, k0, k1, f0, f1], _)) = rest.split_first_chunk::<8>() {
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            assert_eq!(length % 4, 0);
            acknowledged.push(u16::from_ne_bytes([f0, f1]) & 4 != 0);
            kinds.push(u16::from_ne_bytes([k0, k1]));
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        assert_eq!(kinds.first(), Some(&0x10));
        assert_eq!(kinds.last(), Some(&0x11));
        assert_eq!(acknowledged.iter().position(|&yes| yes), Some(kinds.len() - 2));
        assert_eq!(kinds.iter().filter(|&&kind| kind == 0xa00).count(), 4, "tables");
        assert_eq!(kinds.iter().filter(|&&kind| kind == 0xa03).count(), 6, "chains");
        let tables = Redirect::default().rules().tables;
        let rules: usize = tables.iter().flat_map(|table| &table.chains).map(|c| c.rules.len()).sum();
        assert_eq!(kinds.iter().filter(|&&kind| kind == 0xa06).count(), rules);
    }

    #[test]
    fn masks() {
        assert_eq!(mask(0, 4), [0, 0, 0, 0]);
        assert_eq!(mask(12, 4), [255, 240, 0, 0]);
        assert_eq!(mask(32, 4), [255; 4]);
        assert_eq!(mask(33, 16)[..6], [255, 255, 255, 255, 128, 0]);
    }
}
