//! Targets outside the data plane: YAML and JSON, the codec between text and messages, names,
//! addresses and durations.

use leno_api::encode::Style;
use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap;
use leno_api::proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use leno_api::proto::envoy::config::route::v3::VirtualHost;
use leno_api::yaml::{self, Dialect};
use leno_api::{decode_text, encode, validate};
use leno_base::duration;
use leno_proxy::fuzzing::Target;
use prost::{Message, Name};

/// The targets of this file.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "yaml", run: yaml, dictionary: YAML },
    Target { name: "message_text", run: message_text, dictionary: YAML },
    Target { name: "message_wire", run: message_wire, dictionary: &["type.googleapis.com/", "\u{a}\u{1}a"] },
    Target {
        name: "validate_wire",
        run: validate_wire,
        dictionary: &["type.googleapis.com/", "\u{a}\u{1}a"],
    },
    Target { name: "cidr", run: cidr, dictionary: &["/", "::", ".", "255", "127.0.0.1/8", "fe80::1%eth0"] },
    Target {
        name: "durations",
        run: durations,
        dictionary: &["1.5s", "1h2m", "-", "ns", "us", "315576000000s"],
    },
];

const YAML: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ": ",
    ", ",
    "\n",
    "\n  ",
    "- ",
    "&a ",
    "*a",
    "!!str ",
    "!!binary ",
    "'",
    "\"",
    "|\n  ",
    ">-\n",
    "? ",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "<<: ",
    "0x1f",
    "1e400",
    ".nan",
    "true",
    "null",
    "~",
    "\\u0000",
    "#",
    "name: a",
    "domains: ['*']",
    "match: {prefix: /}",
    "'@type': type.googleapis.com/",
    "0.1s",
    "1.000000001s",
];

/// Any text is a tree or an error, in both dialects; the tree becomes JSON.
fn yaml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for dialect in [Dialect::Envoy, Dialect::Kubernetes] {
        if let Ok(documents) = yaml::parse(text, dialect) {
            for document in &documents {
                drop(document.to_json());
            }
        }
    }
}

/// What decodes encodes, and decodes again to the same.
fn round_trip<T: Message + Name + Default + PartialEq + std::fmt::Debug>(message: &T) {
    let text = encode::json(message, Style::default());
    // What the wire may hold and text may not (constraints, `Any` of unknown type) is refused.
    if let Ok(again) = decode_text::<T>(&text, "again") {
        assert_eq!(*message, again, "{text}");
    }
}

/// A message in YAML.
fn message_text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(host) = decode_text::<VirtualHost>(text, "fuzz") {
        let encoded = encode::json(&host, Style::default());
        let again = decode_text::<VirtualHost>(&encoded, "again");
        match again {
            Ok(again) => assert_eq!(host, again, "{encoded}"),
            Err(errors) => panic!("what was encoded does not decode: {errors}\n{encoded}"),
        }
    }
    drop(decode_text::<Bootstrap>(text, "fuzz"));
}

/// A message from the wire.
fn message_wire(input: &[u8]) {
    if let Ok(message) = ClusterLoadAssignment::decode(input) {
        round_trip(&message);
    }
    if let Ok(message) = VirtualHost::decode(input) {
        round_trip(&message);
    }
}

/// Constraints and unknown fields of wire bytes.
fn validate_wire(input: &[u8]) {
    for name in [VirtualHost::full_name(), Bootstrap::full_name(), ClusterLoadAssignment::full_name()] {
        drop(validate::inspect(&name, input));
    }
}

/// CIDR ranges: what parses prints as what parses to the same.
fn cidr(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(range) = text.parse::<leno_base::Cidr>() {
        assert_eq!(range.to_string().parse(), Ok(range));
        assert!(range.contains(range.address()) && range.covers(&range));
    }
}

/// Durations in both notations.
fn durations(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(parsed) = duration::parse_go(text) {
        assert_eq!(duration::parse_go(&duration::format_go(parsed)), Ok(parsed), "{text}");
    }
    if let Ok(parsed) = duration::parse_proto(text) {
        assert_eq!(duration::parse_proto(&duration::format_proto(parsed)), Ok(parsed), "{text}");
    }
}
