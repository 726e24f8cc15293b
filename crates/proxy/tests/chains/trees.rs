//! Random `filter_chain_matcher`s.

use leno_base::Rng;
use serde_json::{Map, Value, json};

use crate::{NAMES, once_in, one};

/// Inputs that are texts, with values that connections have or nearly have.
const TEXTS: [(&str, &[&str]); 4] = [
    ("ServerNameInput", &["a.test", "b.a.test", "x.org", "test", "c."]),
    ("TransportProtocolInput", &["tls", "raw_buffer", "t"]),
    ("ApplicationProtocolInput", &["'h2','http/1.1'", "'h2c'", "'http/1.1'", "'", "'other'"]),
    ("SourceTypeInput", &["local", "loc"]),
];

/// Inputs that are numbers.
const NUMBERS: [(&str, &[&str]); 2] =
    [("DestinationPortInput", &["80", "443", "9090"]), ("SourcePortInput", &["1000", "2000", "4000"])];

/// Inputs that are addresses.
const ADDRESSES: [(&str, &[&str]); 3] = [
    ("DestinationIPInput", &["10.1.2.3", "10.1.9.9", "2001:db8:1::1", "127.0.0.1"]),
    ("SourceIPInput", &["192.168.1.7", "1.1.1.1", "3000::1", "127.0.0.1"]),
    ("DirectSourceIPInput", &["127.0.0.1", "127.0.0.5"]),
];

/// Ranges, some within others.
const RANGES: [&str; 8] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "192.168.0.0/16",
    "192.168.1.0/24",
    "127.0.0.0/8",
    "127.0.1.0/24",
    "2001:db8::/32",
    "0.0.0.0/0",
];

fn input(name: &str) -> Value {
    json!({"name": name, "typed_config": {
        "@type": format!("type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{name}"),
    }})
}

/// What follows from a match: a chain's name, now and then of none, or another matcher.
fn outcome(depth: usize, random: &mut Rng) -> Value {
    if depth > 0 && once_in(3, random) {
        return json!({"matcher": matcher(depth - 1, random)});
    }
    let name = if once_in(20, random) { "nobody" } else { *one(&NAMES[..9], random) };
    json!({"action": {"name": "chain", "typed_config": {
        "@type": "type.googleapis.com/google.protobuf.StringValue", "value": name,
    }}})
}

/// A matcher with at most so many below it.
pub(crate) fn matcher(depth: usize, random: &mut Rng) -> Value {
    let mut matcher = match random.next_u64() % 4 {
        0 => json!({"matcher_list": list(depth, random)}),
        1 => json!({"matcher_tree": exact(depth, random)}),
        2 => json!({"matcher_tree": prefix(depth, random)}),
        _ => json!({"matcher_tree": ranges(depth, random)}),
    };
    if once_in(2, random) {
        matcher["on_no_match"] = outcome(depth, random);
    }
    matcher
}

fn entries(keys: &[&str], depth: usize, random: &mut Rng) -> Map<String, Value> {
    let mut map = Map::new();
    for _ in 0..=random.next_u64() % 3 {
        map.insert((*one(keys, random)).to_owned(), outcome(depth, random));
    }
    map
}

fn exact(depth: usize, random: &mut Rng) -> Value {
    let (name, keys) = match random.next_u64() % 3 {
        0 => one(&TEXTS, random),
        1 => one(&NUMBERS, random),
        _ => one(&ADDRESSES, random),
    };
    json!({"input": input(name), "exact_match_map": {"map": entries(keys, depth, random)}})
}

fn prefix(depth: usize, random: &mut Rng) -> Value {
    let (name, keys) = one(&TEXTS, random);
    json!({"input": input(name), "prefix_match_map": {"map": entries(keys, depth, random)}})
}

fn ranges(depth: usize, random: &mut Rng) -> Value {
    let (name, _) = one(&ADDRESSES, random);
    let matchers: Vec<Value> = (0..=random.next_u64() % 3)
        .map(|_| {
            let ranges: Vec<Value> = (0..=random.next_u64() % 2)
                .map(|_| {
                    let (address, length) = one(&RANGES, random).split_once('/').expect("a range");
                    json!({"address_prefix": address, "prefix_len": length.parse::<u32>().expect("a length")})
                })
                .collect();
            json!({"ranges": ranges, "on_match": outcome(depth, random), "exclusive": once_in(4, random)})
        })
        .collect();
    json!({"input": input(name), "custom_match": {"name": "ip", "typed_config": {
        "@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher", "range_matchers": matchers,
    }}})
}

fn list(depth: usize, random: &mut Rng) -> Value {
    let matchers: Vec<Value> = (0..=random.next_u64() % 3)
        .map(|_| json!({"predicate": predicate(2, random), "on_match": outcome(depth, random)}))
        .collect();
    json!({"matchers": matchers})
}

fn predicate(depth: usize, random: &mut Rng) -> Value {
    if depth > 0 && once_in(3, random) {
        return match random.next_u64() % 3 {
            0 => json!({"not_matcher": predicate(depth - 1, random)}),
            kind => {
                let both = [predicate(depth - 1, random), predicate(depth - 1, random)];
                let name = if kind == 1 { "and_matcher" } else { "or_matcher" };
                json!({name: {"predicate": both}})
            }
        };
    }
    let (name, values) = match random.next_u64() % 3 {
        0 => one(&NUMBERS, random),
        1 => one(&ADDRESSES, random),
        _ => one(&TEXTS, random),
    };
    let value = *one(values, random);
    // Of ports of this machine nobody knows more than that they are not these.
    let kind = if name.ends_with("PortInput") { 0 } else { random.next_u64() % 6 };
    let test = match kind {
        0 => json!({"exact": value}),
        1 => json!({"prefix": value.get(..2).unwrap_or(value)}),
        2 => json!({"suffix": value.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(value)}),
        3 => json!({"contains": value}),
        4 => json!({"exact": value.to_uppercase(), "ignore_case": true}),
        _ => {
            json!({"safe_regex": {"google_re2": {}, "regex": format!("{}.*", value.get(..1).unwrap_or("."))}})
        }
    };
    json!({"single_predicate": {"input": input(name), "value_match": test}})
}
