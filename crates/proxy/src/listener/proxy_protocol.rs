//! envoy.filters.listener.proxy_protocol: a connection begins with a PROXY protocol header,
//! which says between which addresses it really is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::listener::proxy_protocol::v3 as proto;
use leno_base::{Name, base64};
use serde_json::Value;

use crate::config::lower::Lower;
use crate::proxy_protocol::read::Header;
use crate::proxy_protocol::{Origin, PassThrough, Tlv, Version, version_of};
use crate::telemetry::stats::stats_scope;
use crate::telemetry::stream_info::{FilterState, Found};

stats_scope! {
    /// `proxy_proto.[STAT_PREFIX.]`
    pub(crate) struct ProxyProtocolStats {
        counter not_found_allowed;
        counter not_found_disallowed;
        counter v1_found = "versions.v1.found";
        counter v1_disallowed = "versions.v1.disallowed";
        counter v1_error = "versions.v1.error";
        counter v2_found = "versions.v2.found";
        counter v2_disallowed = "versions.v2.disallowed";
        counter v2_error = "versions.v2.error";
    }
}

/// The filter as configured, lowered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProxyProtocol {
    /// `rules`.
    rules: Vec<Rule>,
    /// `allow_requests_without_proxy_protocol`.
    pub(super) optional: bool,
    /// `pass_through_tlvs`: what upstream headers may pass on.
    pass_through: PassThrough,
    /// `disallowed_versions`.
    disallowed: Vec<Version>,
    /// The scope of its stats: `proxy_proto.` and `stat_prefix`.
    pub(super) stats: Name,
    /// `tlv_location`: filter state instead of dynamic metadata.
    filter_state: bool,
}

/// Where the value of one type goes.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    kind: u8,
    namespace: Name,
    key: Name,
    base64: bool,
}

/// The default namespace of values in dynamic metadata.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";
/// The object of values in filter state.
const FILTER_STATE: &str = "envoy.network.proxy_protocol.tlv";

impl ProxyProtocol {
    /// Lowers a ProxyProtocol.
    pub(crate) fn lower(proto: proto::ProxyProtocol, at: &mut Lower) -> Option<Arc<Self>> {
        let proto::ProxyProtocol {
            rules,
            allow_requests_without_proxy_protocol,
            pass_through_tlvs,
            disallowed_versions,
            stat_prefix,
            tlv_location,
        } = proto;
        let rules = at.each("rules", rules, |rule, at| {
            let proto::proxy_protocol::Rule { tlv_type, on_tlv_present } = rule;
            let proto::proxy_protocol::KeyValuePair { metadata_namespace, key, value_string_encoding } =
                on_tlv_present?;
            use proto::proxy_protocol::key_value_pair::ValueStringEncoding;
            let encoding = at.value::<ValueStringEncoding>(
                "on_tlv_present.value_string_encoding",
                value_string_encoding,
            )?;
            let namespace = if metadata_namespace.is_empty() { NAMESPACE } else { &metadata_namespace };
            Some(Rule {
                kind: at.narrow("tlv_type", tlv_type)?,
                namespace: Name::from(namespace),
                key: key.into(),
                base64: encoding == ValueStringEncoding::Base64,
            })
        });
        let pass_through = at.optional("pass_through_tlvs", pass_through_tlvs, PassThrough::lower);
        let disallowed =
            at.each("disallowed_versions", disallowed_versions, |version, at| version_of("", version, at));
        if disallowed.contains(&Version::V1) && disallowed.contains(&Version::V2) {
            at.error_at(
                "disallowed_versions",
                "Proxy Protocol filter is misconfigured: all proxy protocol versions are disallowed.",
            );
        }
        let location = at.value::<proto::proxy_protocol::TlvLocation>("tlv_location", tlv_location)?;
        let dot = if stat_prefix.is_empty() { "" } else { "." };
        Some(Arc::new(Self {
            rules,
            optional: allow_requests_without_proxy_protocol,
            pass_through: pass_through.unwrap_or_default(),
            disallowed,
            stats: Name::from(format!("proxy_proto.{stat_prefix}{dot}")),
            filter_state: location == proto::proxy_protocol::TlvLocation::FilterState,
        }))
    }

    /// Whether connections with a header of this version are closed.
    pub(super) fn disallows(&self, version: Version) -> bool {
        self.disallowed.contains(&version)
    }

    /// Keeps what a header says: the rules' values, and what may be passed on upstream.
    pub(super) fn keep(&self, header: Header, remote: SocketAddr, local: SocketAddr, found: &mut Found) {
        let mut objects = serde_json::Map::new();
        for tlv in &header.tlvs {
            for rule in self.rules.iter().filter(|rule| rule.kind == tlv.kind) {
                let value = Value::String(if rule.base64 {
                    base64::encode(&tlv.value)
                } else {
                    sanitized(&tlv.value)
                });
                // Of several values of one type, the last one stays in filter state and the first in
                // dynamic metadata, as in Envoy.
                if self.filter_state {
                    objects.insert(rule.key.to_string(), value);
                } else {
                    let values = found.metadata.values_mut(&rule.namespace);
                    values.entry(rule.key.to_string()).or_insert(value);
                }
            }
        }
        if !objects.is_empty() {
            let typed = Value::Object(objects);
            let state = FilterState { text: typed.to_string(), typed: Some(typed), peer: None };
            found.filter_state.insert(FILTER_STATE.to_owned(), state);
        }
        let tlvs = header.tlvs.into_iter().filter(|tlv| self.pass_through.passes(tlv.kind)).collect();
        let (source, destination) = header.addresses.unwrap_or((remote, local));
        found.origin = Some(Box::new(Origin { source, destination, tlvs }));
    }
}

impl ProxyProtocolStats {
    pub(super) fn found(&self, version: Version) {
        match version {
            Version::V1 => self.v1_found().inc(),
            Version::V2 => self.v2_found().inc(),
        }
    }

    pub(super) fn invalid(&self, version: Version) -> io::Error {
        match version {
            Version::V1 => self.v1_error().inc(),
            Version::V2 => self.v2_error().inc(),
        }
        io::ErrorKind::InvalidData.into()
    }

    pub(super) fn disallowed(&self, version: Version) -> io::Error {
        self.found(version);
        match version {
            Version::V1 => self.v1_disallowed().inc(),
            Version::V2 => self.v2_disallowed().inc(),
        }
        io::ErrorKind::InvalidData.into()
    }
}

/// Text as Envoy makes it of any bytes: `!` for each that is no part of UTF-8.
fn sanitized(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

/// A value that is to be passed on, for tests and further headers.
impl From<(u8, &'static str)> for Tlv {
    fn from((kind, value): (u8, &'static str)) -> Self {
        Self { kind, value: value.as_bytes().into() }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Map, Value};

    use super::{ProxyProtocol, sanitized};
    use crate::config::lower::Lower;
    use crate::proxy_protocol::Version;
    use crate::proxy_protocol::read::Header;
    use crate::telemetry::stream_info::Found;

    fn check(config: &str, expected: &Expect) {
        let proto =
            leno_api::decode_text(&format!("{{{config}}}"), "filter").unwrap_or_else(|e| panic!("{e}"));
        let filter = Lower::resource(|at| ProxyProtocol::lower(proto, at)).unwrap_or_else(|e| panic!("{e}"));
        let address = |text: &str| text.parse().expect("an address");
        let mut found = Found::default();
        let header = Header {
            version: Version::V2,
            length: 0,
            addresses: None,
            tlvs: vec![(0xe0, "a").into(), (0xe1, "b").into(), (0xe0, "c").into()],
        };
        filter.keep(header, address("1.1.1.1:1"), address("2.2.2.2:2"), &mut found);
        let state: Vec<_> =
            found.filter_state.iter().map(|(key, state)| format!("{key}={}", state.text)).collect();
        let origin = found.origin.expect("an origin");
        let tlvs: Vec<_> = origin.tlvs.iter().map(|tlv| tlv.kind).collect();
        let metadata: Map<String, Value> =
            found.metadata.iter().map(|(name, values)| (name.to_owned(), values.clone().into())).collect();
        let metadata = Value::Object(metadata);
        expected.assert_eq(&format!(
            "{metadata} {} {} {} {tlvs:?}",
            state.join(","),
            origin.source,
            origin.destination
        ));
    }

    #[test]
    fn values_go_where_the_rules_say() {
        check(
            "rules: [{tlv_type: 224, on_tlv_present: {key: k}}, {tlv_type: 225, on_tlv_present: {key: l, \
             metadata_namespace: ns, value_string_encoding: BASE64}}]",
            &expect![[
                r#"{"envoy.filters.listener.proxy_protocol":{"k":"a"},"ns":{"l":"Yg=="}}  1.1.1.1:1 2.2.2.2:2 []"#
            ]],
        );
        check(
            "tlv_location: FILTER_STATE, pass_through_tlvs: {match_type: INCLUDE, tlv_type: [225]}, \
             rules: [{tlv_type: 224, on_tlv_present: {key: k}}]",
            &expect![[r#"{} envoy.network.proxy_protocol.tlv={"k":"c"} 1.1.1.1:1 2.2.2.2:2 [225]"#]],
        );
    }

    #[test]
    fn bytes_as_text() {
        assert_eq!(sanitized(b"a\xff\xc3\xa4\xc3"), "a!\u{e4}!");
    }
}
