//! The PROXY protocol, versions 1 and 2: a header in front of a connection's bytes that says
//! between which addresses it really is (haproxy's proxy-protocol.txt).
//!
//! `read` takes one off the front of a downstream connection (the listener filter is in
//! `listener::proxy_protocol`), `write` makes one for an upstream connection
//! (envoy.transport_sockets.upstream_proxy_protocol, lowered here).

use std::net::SocketAddr;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::transport_sockets::proxy_protocol::v3 as proto;

use crate::config::lower::Lower;

pub(crate) mod read;
pub(crate) mod write;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// A type-length-value of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tlv {
    /// Its type.
    pub(crate) kind: u8,
    /// Its value.
    pub(crate) value: Bytes,
}

/// What a header says, or is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Where the connection comes from.
    pub(crate) source: SocketAddr,
    /// Where it goes.
    pub(crate) destination: SocketAddr,
    /// Further values, as far as they are passed on.
    pub(crate) tlvs: Vec<Tlv>,
}

/// `pass_through_tlvs`: which values are passed on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum PassThrough {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those of these types.
    Some(Vec<u8>),
}

impl PassThrough {
    /// Lowers ProxyProtocolPassThroughTLVs.
    pub(crate) fn lower(proto: core::ProxyProtocolPassThroughTlVs, at: &mut Lower) -> Option<Self> {
        use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType;
        let core::ProxyProtocolPassThroughTlVs { match_type, tlv_type } = proto;
        let kinds = at.each("tlv_type", tlv_type, |kind, at| at.narrow("", kind));
        Some(match at.value("match_type", match_type)? {
            PassTlVsMatchType::IncludeAll => PassThrough::All,
            PassTlVsMatchType::Include => PassThrough::Some(kinds),
        })
    }

    /// Whether values of this type are passed on.
    pub(crate) fn passes(&self, kind: u8) -> bool {
        match self {
            PassThrough::None => false,
            PassThrough::All => true,
            PassThrough::Some(kinds) => kinds.contains(&kind),
        }
    }
}

/// The header that a cluster's connections begin with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UpstreamHeader {
    /// `config.version`.
    pub(crate) version: Version,
    /// `config.pass_through_tlvs`.
    pub(crate) pass_through: PassThrough,
    /// `config.added_tlvs`.
    pub(crate) added: Vec<Tlv>,
}

impl UpstreamHeader {
    /// Lowers a ProxyProtocolUpstreamTransport to its header and the transport socket inside.
    pub(crate) fn lower(
        proto: proto::ProxyProtocolUpstreamTransport,
        at: &mut Lower,
    ) -> Option<(Self, Option<core::TransportSocket>)> {
        let proto::ProxyProtocolUpstreamTransport {
            config,
            transport_socket,
            allow_unspecified_address,
            tlv_as_pool_key,
        } = proto;
        at.unsupported("allow_unspecified_address", allow_unspecified_address);
        at.unsupported("tlv_as_pool_key", tlv_as_pool_key);
        if transport_socket.is_none() {
            at.error_at("transport_socket", "value is required");
        }
        let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config.unwrap_or_default();
        let header = at.field("config", |at| {
            let pass_through = at.optional("pass_through_tlvs", pass_through_tlvs, PassThrough::lower);
            let added = at.each("added_tlvs", added_tlvs, |tlv, at| {
                let core::TlvEntry { r#type, value, format_string } = tlv;
                at.unsupported("format_string", format_string.is_some());
                Some(Tlv { kind: at.narrow("type", r#type)?, value })
            });
            Some(Self {
                version: version_of("version", version, at)?,
                pass_through: pass_through.unwrap_or_default(),
                added,
            })
        })?;
        Some((header, transport_socket))
    }
}

/// Lowers ProxyProtocolConfig.Version.
pub(crate) fn version_of(field: &str, value: i32, at: &mut Lower) -> Option<Version> {
    use core::proxy_protocol_config::Version as Proto;
    Some(match at.value(field, value)? {
        Proto::V1 => Version::V1,
        Proto::V2 => Version::V2,
    })
}
