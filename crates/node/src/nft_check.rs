//! Whether the kernel has the rules that it should have: what it lists is compared, message by message, with what
//! we would send. Pure.
//!
//! The kernel lists more than it was told (counters, handles, defaults), so each attribute of ours must be there
//! with our value, in the same order of rules and of expressions, and what is more is not looked at.

use std::fmt;

use crate::netlink::{Attribute, Message, attributes};
use crate::nft::{CHAIN_NAME, CHAIN_TABLE, RULE_CHAIN, RULE_TABLE, contents};
use crate::rules::{Family, Kind, Ruleset};

/// struct nfgenmsg
const FAMILY_HEADER: usize = 4;

/// What the kernel lists of one family: chains and rules, each from its family's header on.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) chains: Vec<Vec<u8>>,
    pub(crate) rules: Vec<Vec<u8>>,
}

/// How the kernel's state differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// There is nothing of ours at all, of any family.
    Nothing,
    /// There is something else; in words.
    Other(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Nothing => f.write_str("there are no rules"),
            Difference::Other(words) => f.write_str(words),
        }
    }
}

/// Compares what is listed of some families with what is wanted.
///
/// # Errors
/// The first difference.
pub(crate) fn check(listed: &[(Family, Listed)], wanted: &Ruleset) -> Result<(), Difference> {
    let ours = |entry: &&Vec<u8>, kind: u16| {
        text(entry, kind).is_some_and(|table| Kind::ALL.iter().any(|kind| kind.table() == table))
    };
    if listed.iter().all(|(_, listed)| !listed.chains.iter().any(|entry| ours(&entry, CHAIN_TABLE))) {
        return if wanted.tables.is_empty() { Ok(()) } else { Err(Difference::Nothing) };
    }
    for (family, listed) in listed {
        let mut chains = 0;
        let mut rules = 0;
        for table in wanted.tables.iter().filter(|table| table.family == *family) {
            for wanted in contents(table) {
                let place = format!("{}, {}, {}", words(*family), table.kind.table(), wanted.name);
                let of = |entry: &&Vec<u8>, table_kind: u16, chain_kind: u16| {
                    text(entry, table_kind) == Some(table.kind.table())
                        && text(entry, chain_kind) == Some(wanted.name)
                };
                let chain = listed.chains.iter().find(|entry| of(entry, CHAIN_TABLE, CHAIN_NAME));
                let Some(chain) = chain else {
                    return Err(Difference::Other(format!("{place}: the chain is missing")));
                };
                chains += 1;
                if !within(body(&wanted.chain), listed_body(chain)) {
                    return Err(Difference::Other(format!("{place}: the chain is entered elsewhere")));
                }
                let there: Vec<_> =
                    listed.rules.iter().filter(|entry| of(entry, RULE_TABLE, RULE_CHAIN)).collect();
                rules += there.len();
                if there.len() != wanted.rules.len() {
                    let (has, should) = (there.len(), wanted.rules.len());
                    return Err(Difference::Other(format!("{place}: {has} rules instead of {should}")));
                }
                for (index, (wanted, there)) in wanted.rules.iter().zip(there).enumerate() {
                    if !within(body(wanted), listed_body(there)) {
                        let number = index + 1;
                        return Err(Difference::Other(format!("{place}: rule {number} is another one")));
                    }
                }
            }
        }
        let more_chains = listed.chains.iter().filter(|entry| ours(entry, CHAIN_TABLE)).count() > chains;
        let more_rules = listed.rules.iter().filter(|entry| ours(entry, RULE_TABLE)).count() > rules;
        if more_chains || more_rules {
            let place = words(*family);
            return Err(Difference::Other(format!("{place}: there are chains that should not be there")));
        }
    }
    Ok(())
}

fn words(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn body(message: &Message) -> &[u8] {
    message.attributes(FAMILY_HEADER)
}

fn listed_body(entry: &[u8]) -> &[u8] {
    entry.get(FAMILY_HEADER..).unwrap_or_default()
}

/// The string of an attribute.
fn text(entry: &[u8], kind: u16) -> Option<&str> {
    let value = attributes(listed_body(entry)).find(|attribute| attribute.kind == kind)?.value;
    str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// Whether all of our attributes are among theirs. Several of one kind (the elements of a list) must be as many, in
/// the same order.
fn within(ours: &[u8], theirs: &[u8]) -> bool {
    let ours: Vec<Attribute<'_>> = attributes(ours).collect();
    let theirs: Vec<Attribute<'_>> = attributes(theirs).collect();
    ours.iter().enumerate().all(|(index, attribute)| {
        let of_kind =
            |list: &[Attribute<'_>]| list.iter().filter(|other| other.kind == attribute.kind).count();
        let before = of_kind(ours.get(..index).unwrap_or_default());
        if of_kind(&ours) != of_kind(&theirs) {
            return false;
        }
        let Some(other) = theirs.iter().filter(|other| other.kind == attribute.kind).nth(before) else {
            return false;
        };
        if attribute.nested { within(attribute.value, other.value) } else { attribute.value == other.value }
    })
}

#[cfg(test)]
mod tests {
    use super::{Difference, Listed, check};
    use crate::netlink::Message;
    use crate::nft::contents;
    use crate::redirect::Redirect;
    use crate::rules::{Family, Ruleset};

    fn entry(message: &Message) -> Vec<u8> {
        let mut entry = vec![2, 0, 0, 0];
        entry.extend_from_slice(message.attributes(4));
        // What the kernel adds: a handle.
        entry.extend_from_slice(&[12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        entry
    }

    fn list(ruleset: &Ruleset) -> Listed {
        let mut listed = Listed::default();
        for contents in ruleset.tables.iter().flat_map(contents) {
            let mut chain = vec![2, 0, 0, 0];
            chain.extend_from_slice(contents.chain.attributes(4));
            listed.chains.push(chain);
            listed.rules.extend(contents.rules.iter().map(entry));
        }
        listed
    }

    #[test]
    fn what_differs_is_found() {
        let wanted = Redirect::default().rules();
        let check = |listed: Listed| check(&[(Family::V4, listed)], &wanted).map_err(|d| d.to_string());
        assert_eq!(check(list(&wanted)), Ok(()));
        assert_eq!(check(Listed::default()), Err("there are no rules".to_owned()));

        let mut fewer = list(&wanted);
        fewer.rules.pop();
        assert!(check(fewer).unwrap_err().contains("rules instead of"));
        let mut swapped = list(&wanted);
        swapped.rules.swap(1, 2);
        assert!(check(swapped).is_err());
        let mut more = list(&wanted);
        more.rules.push(more.rules[0].clone());
        assert!(check(more).is_err());
        let other = Redirect { inbound_port: 15007, ..Redirect::default() };
        assert!(check(list(&other.rules())).unwrap_err().contains("ISTIO_IN_REDIRECT: rule 1"));
        assert_eq!(super::check(&[(Family::V4, Listed::default())], &Ruleset::default()), Ok(()));
        assert_ne!(
            super::check(&[(Family::V4, list(&wanted))], &Ruleset::default()),
            Err(Difference::Nothing)
        );
    }
}
