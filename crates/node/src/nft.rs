//! Rules as nf_tables netlink messages: one batch, which the kernel applies as a whole or not at all. Pure.
//!
//! Numbers from `linux/netfilter/nf_tables.h`; numbers in attributes are in network order, while the data
//! that expressions compare is as the kernel holds it in its registers: ports and addresses in network order,
//! users and marks in the machine's.

use crate::netlink::{Message, Request};
use crate::rules::{Chain, Hook, Match, Owner, Rule, Ruleset, Verdict};

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
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
const JUMP: i32 = -3;
const RETURN: i32 = -5;
const CMP_EQUAL: u32 = 0;
const CMP_UNEQUAL: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_MARK: u32 = 3;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_L4PROTO: u32 = 16;
const RANGE_PROTO_SPECIFIED: u32 = 2;
const NAT_DESTINATION: u32 = 1;
const NUMBERS_RANDOM: u32 = 1;

/// The batch that replaces the table by these rules.
pub(crate) fn replace(ruleset: &Ruleset) -> Request {
    let mut request = Request::default();
    request.push(&batch(BATCH_BEGIN));
    // Added first so that deleting it cannot fail, then added anew.
    request.push(&table(NEW_TABLE, libc::NLM_F_CREATE));
    request.push(&table(DELETE_TABLE, 0));
    request.push(&table(NEW_TABLE, libc::NLM_F_CREATE));
    for chain in &ruleset.chains {
        request.push(&add_chain(chain));
    }
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            request.push(&add_rule(chain.name, rule));
        }
    }
    request.push(&batch(BATCH_END));
    request
}

/// The batch that removes the table; it succeeds without one, too.
pub(crate) fn remove() -> Request {
    let mut request = Request::default();
    request.push(&batch(BATCH_BEGIN));
    request.push(&table(NEW_TABLE, libc::NLM_F_CREATE));
    request.push(&table(DELETE_TABLE, 0));
    request.push(&batch(BATCH_END));
    request
}

fn batch(kind: u16) -> Message {
    // struct nfgenmsg: family, version, resource u16 in network order
    let subsystem = SUBSYSTEM.to_be_bytes();
    Message::new(kind, libc::NLM_F_REQUEST as u16, &[0, 0, subsystem[0], subsystem[1]])
}

fn message(kind: u16, flags: i32) -> Message {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
    Message::new(SUBSYSTEM << 8 | kind, flags, &[libc::NFPROTO_IPV4 as u8, 0, 0, 0])
}

fn table(kind: u16, flags: i32) -> Message {
    let mut message = message(kind, flags);
    message.text(TABLE_NAME, Ruleset::TABLE);
    message
}

fn add_chain(chain: &Chain) -> Message {
    let mut message = message(NEW_CHAIN, libc::NLM_F_CREATE);
    message.text(CHAIN_TABLE, Ruleset::TABLE).text(CHAIN_NAME, chain.name);
    if let Some(hook) = chain.hook {
        let number = match hook {
            Hook::Prerouting => INET_PREROUTING,
            Hook::Output => INET_LOCAL_OUT,
            Hook::Postrouting => INET_POSTROUTING,
        };
        message.nest(CHAIN_HOOK, |m| {
            m.be32(HOOK_NUMBER, number).attr(HOOK_PRIORITY, &hook.priority().to_be_bytes());
        });
        message.text(CHAIN_TYPE, "nat");
    }
    message
}

fn add_rule(chain: &str, rule: &Rule) -> Message {
    let mut message = message(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND);
    message.text(RULE_TABLE, Ruleset::TABLE).text(RULE_CHAIN, chain);
    message.nest(RULE_EXPRESSIONS, |list| {
        for condition in &rule.matches {
            add_match(list, *condition);
        }
        add_verdict(list, rule.verdict);
    });
    message
}

fn add_match(list: &mut Message, condition: Match) {
    match condition {
        Match::Tcp => {
            meta(list, META_L4PROTO);
            compare(list, CMP_EQUAL, &[libc::IPPROTO_TCP as u8]);
        }
        Match::Port(port) => {
            payload(list, TRANSPORT_HEADER, 2, 2);
            compare(list, CMP_EQUAL, &port.to_be_bytes());
        }
        Match::NotPort(port) => {
            payload(list, TRANSPORT_HEADER, 2, 2);
            compare(list, CMP_UNEQUAL, &port.to_be_bytes());
        }
        Match::From(net) => {
            payload(list, NETWORK_HEADER, 12, 4);
            mask(list, net.mask().octets());
            compare(list, CMP_EQUAL, &net.network().octets());
        }
        Match::To(net) => {
            payload(list, NETWORK_HEADER, 16, 4);
            mask(list, net.mask().octets());
            compare(list, CMP_EQUAL, &net.network().octets());
        }
        Match::NotTo(net) => {
            payload(list, NETWORK_HEADER, 16, 4);
            mask(list, net.mask().octets());
            compare(list, CMP_UNEQUAL, &net.network().octets());
        }
        Match::OutLoopback => {
            let mut name = [0; libc::IFNAMSIZ];
            name[..2].copy_from_slice(b"lo");
            meta(list, META_OIFNAME);
            compare(list, CMP_EQUAL, &name);
        }
        Match::Owner(owner) => {
            meta(list, owner_key(owner));
            compare(list, CMP_EQUAL, &owner.value().to_ne_bytes());
        }
        Match::NotOwner(owner) => {
            meta(list, owner_key(owner));
            compare(list, CMP_UNEQUAL, &owner.value().to_ne_bytes());
        }
        Match::OneIn(many) => {
            expression(list, "numgen", |m| {
                m.be32(1, REGISTER).be32(2, many).be32(3, NUMBERS_RANDOM);
            });
            compare(list, CMP_EQUAL, &0_u32.to_ne_bytes());
        }
    }
}

fn add_verdict(list: &mut Message, verdict: Verdict) {
    match verdict {
        Verdict::Return => immediate_verdict(list, RETURN, None),
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
    }
}

fn owner_key(owner: Owner) -> u32 {
    match owner {
        Owner::Uid(_) => META_SKUID,
        Owner::Gid(_) => META_SKGID,
        Owner::Mark(_) => META_MARK,
    }
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

fn payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |m| {
        m.be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
    });
}

fn mask(list: &mut Message, mask: [u8; 4]) {
    if mask == [255; 4] {
        return;
    }
    expression(list, "bitwise", |m| {
        m.be32(1, REGISTER).be32(2, REGISTER).be32(3, 4);
        m.nest(4, |m| {
            m.attr(DATA_VALUE, &mask);
        });
        m.nest(5, |m| {
            m.attr(DATA_VALUE, &[0; 4]);
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
    use crate::nft::replace;
    use crate::redirect::Redirect;

    /// Walks the batch as the kernel does: lengths add up, it begins and ends as one, and each message in
    /// between asks for an acknowledgement.
    #[test]
    fn a_batch_is_well_formed() {
        let request = replace(&Redirect::default().rules());
        let mut rest = request.bytes();
        let mut kinds = Vec::new();
        while let Some((&[l0, l1, l2, l3, k0, k1, f0, f1], _)) = rest.split_first_chunk::<8>() {
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let kind = u16::from_ne_bytes([k0, k1]);
            assert_eq!(length % 4, 0);
            assert_eq!(u16::from_ne_bytes([f0, f1]) & 4 != 0, kind >= 0x100, "acknowledged: {kind:#x}");
            kinds.push(kind);
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        assert_eq!(kinds.first(), Some(&0x10));
        assert_eq!(kinds.last(), Some(&0x11));
        assert_eq!(kinds.iter().filter(|&&kind| kind == 0xa03).count(), 6, "chains");
        let rules: usize = Redirect::default().rules().chains.iter().map(|c| c.rules.len()).sum();
        assert_eq!(kinds.iter().filter(|&&kind| kind == 0xa06).count(), rules);
    }
}
