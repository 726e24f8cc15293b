//! Lowering of envoy.config.core.v3: addresses, sockets, locality, metadata, data sources.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::{Cidr, CidrSet, Name};

use crate::cluster::{BindConfig, Locality, Metadata, TcpKeepalive};
use crate::config::lower::Lower;

/// An address, not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// IP and port.
    Ip(SocketAddr),
    /// A host name and a port.
    Name(Arc<str>, u16),
    /// A Unix socket's path (`@...` is abstract) and mode.
    Pipe(Arc<str>, u32),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Ip(address) => write!(f, "{address}"),
            Address::Name(name, port) => write!(f, "{name}:{port}"),
            Address::Pipe(path, _) => f.write_str(path),
        }
    }
}

/// Lowers an Address of any supported kind.
pub(crate) fn address(proto: core::Address, at: &mut Lower) -> Option<Address> {
    let core::Address { address } = proto;
    match address {
        Some(core::address::Address::SocketAddress(socket)) => at.field("socket_address", |at| {
            let (host, port) = socket_address(socket, at)?;
            Some(match host.parse::<IpAddr>() {
                Ok(ip) => Address::Ip(SocketAddr::new(ip, port)),
                Err(_) => Address::Name(host.into(), port),
            })
        }),
        Some(core::address::Address::Pipe(core::Pipe { path, mode })) => {
            if let Some(name) = path.strip_prefix('@') {
                if mode != 0 {
                    at.error_at("pipe.mode", "cannot set mode for abstract AF_UNIX sockets");
                    return None;
                }
                if name.is_empty() {
                    at.error_at(
                        "pipe.path",
                        "an abstract socket with a name chosen by the system is not supported yet",
                    );
                    return None;
                }
            }
            // sun_path of sockaddr_un, with the terminating zero.
            if path.len() > 107 {
                at.error_at(
                    "pipe.path",
                    format!("path '{path}' exceeds maximum UNIX domain socket path size of 108"),
                );
                return None;
            }
            Some(Address::Pipe(path.into(), mode))
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            at.unsupported("envoy_internal_address", true);
            None
        }
        None => {
            at.error("address is required");
            None
        }
    }
}

/// Lowers a SocketAddress to its host, as written, and port.
pub(crate) fn socket_address(proto: core::SocketAddress, at: &mut Lower) -> Option<(String, u16)> {
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = proto;
    at.unsupported("protocol", protocol == core::socket_address::Protocol::Udp as i32);
    at.unsupported("resolver_name", !resolver_name.is_empty());
    at.unsupported("ipv4_compat", ipv4_compat);
    at.unsupported("network_namespace_filepath", !network_namespace_filepath.is_empty());
    let port = match port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => at.narrow("port_value", port)?,
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
            at.error_at("named_port", "no resolver can handle a named port");
            return None;
        }
        None => 0,
    };
    Some((address, port))
}

/// Lowers a SocketAddress that must be an IP address.
pub(crate) fn ip_address(proto: core::SocketAddress, at: &mut Lower) -> Option<SocketAddr> {
    let (host, port) = socket_address(proto, at)?;
    match host.parse() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => {
            at.error_at("address", format!("malformed IP address: {host}"));
            None
        }
    }
}

/// Lowers a CidrRange; its address must be given, its length is 0 by default.
pub(crate) fn cidr(proto: core::CidrRange, at: &mut Lower) -> Option<Cidr> {
    let core::CidrRange { address_prefix, prefix_len } = proto;
    let Ok(ip) = address_prefix.parse::<IpAddr>() else {
        at.error_at("address_prefix", format!("malformed IP address: {address_prefix}"));
        return None;
    };
    match Cidr::new(ip, prefix_len.unwrap_or(0)) {
        Ok(cidr) => Some(cidr),
        // As Envoy: a length that is too large means the whole address.
        Err(_) => Some(Cidr::host(ip)),
    }
}

/// Lowers a list of CidrRange to a set.
pub(crate) fn cidrs(field: &str, protos: Vec<core::CidrRange>, at: &mut Lower) -> CidrSet {
    at.each(field, protos, cidr).into_iter().collect()
}

/// A raw socket option: (level, name, value).
pub(crate) type RawOption = (i32, i32, Vec<u8>);

/// Lowers socket options of stream sockets; those for datagram sockets only are left out, as
/// Envoy leaves them out.
pub(crate) fn socket_options(field: &str, protos: Vec<core::SocketOption>, at: &mut Lower) -> Vec<RawOption> {
    at.each(field, protos, |proto, at| {
        let core::SocketOption { description: _, level, name, state, r#type, ip_version, value } = proto;
        if let Some(core::socket_option::SocketType { stream: None, datagram: Some(_) }) = r#type {
            return None;
        }
        at.unsupported("state", state != core::socket_option::SocketState::StatePrebind as i32);
        at.unsupported("ip_version", ip_version != core::socket_option::SocketIpVersion::Unspecified as i32);
        let value = match value {
            Some(core::socket_option::Value::IntValue(value)) => {
                at.narrow::<i64, i32>("int_value", value)?.to_ne_bytes().to_vec()
            }
            Some(core::socket_option::Value::BufValue(value)) => value.to_vec(),
            None => {
                at.error_at("value", "is required");
                return None;
            }
        };
        Some((at.narrow("level", level)?, at.narrow("name", name)?, value))
    })
}

/// A boolean or whole-numbered option of the system.
pub(crate) fn int_option(level: i32, name: i32, value: i32) -> RawOption {
    (level, name, value.to_ne_bytes().to_vec())
}

const DEFAULT_SELECTOR: &str = "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector";

/// Lowers `upstream_bind_config`.
pub(crate) fn bind_config(proto: core::BindConfig, at: &mut Lower) -> Option<BindConfig> {
    let core::BindConfig {
        source_address,
        freebind,
        socket_options: options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = proto;
    at.optional("local_address_selector", local_address_selector, |selector, at| {
        let core::TypedExtensionConfig { name, typed_config } = selector;
        let any = at.required("typed_config", typed_config, |any, at| at.extension(any))?;
        // What it says of itself is what is done: the first source address of the endpoint's family.
        if leno_api::any::type_name(&any.type_url) != DEFAULT_SELECTOR {
            at.field("typed_config", |at| at.unsupported_extension(&name, &any.type_url));
        }
        None::<()>
    });
    at.unsupported("validate_network_namespaces", validate_network_namespaces);
    if !extra_source_addresses.is_empty() && !additional_source_addresses.is_empty() {
        at.error("cannot specify both extra_source_addresses and additional_source_addresses");
    }
    if source_address.is_none()
        && (!extra_source_addresses.is_empty() || !additional_source_addresses.is_empty())
    {
        at.error_at("source_address", "is required where extra source addresses are given");
    }
    let mut sources = Vec::new();
    sources.extend(at.optional("source_address", source_address, ip_address));
    sources.extend(at.each("extra_source_addresses", extra_source_addresses, |extra, at| {
        let core::ExtraSourceAddress { address, socket_options } = extra;
        at.unsupported("socket_options", socket_options.is_some());
        at.required("address", address, ip_address)
    }));
    sources.extend(at.each("additional_source_addresses", additional_source_addresses, ip_address));
    let families = |v4: bool| sources.iter().filter(|address| address.is_ipv4() == v4).count();
    if families(true) > 1 || families(false) > 1 {
        at.error("only one source address of each family is supported");
    }
    let mut options = socket_options("socket_options", options, at);
    if freebind == Some(true) {
        options.push(int_option(libc::SOL_IP, libc::IP_FREEBIND, 1));
    }
    Some(BindConfig { sources, options })
}

/// Lowers TcpKeepalive.
pub(crate) fn keepalive(proto: core::TcpKeepalive) -> TcpKeepalive {
    let core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = proto;
    TcpKeepalive { probes: keepalive_probes, time: keepalive_time, interval: keepalive_interval }
}

/// Lowers a Locality.
pub(crate) fn locality(proto: Option<core::Locality>) -> Locality {
    let core::Locality { region, zone, sub_zone } = proto.unwrap_or_default();
    Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() }
}

/// Lowers Metadata.
pub(crate) fn metadata(field: &str, proto: Option<core::Metadata>, at: &mut Lower) -> Metadata {
    let core::Metadata { filter_metadata, typed_filter_metadata } = proto.unwrap_or_default();
    at.field(field, |at| at.unsupported("typed_filter_metadata", !typed_filter_metadata.is_empty()));
    Metadata::new(&core::Metadata { filter_metadata, ..core::Metadata::default() })
}

/// A Struct as a JSON object.
pub(crate) fn object(proto: prost_types::Struct) -> serde_json::Value {
    let prost_types::Struct { fields } = proto;
    serde_json::Value::Object(fields.into_iter().map(|(key, value)| (key, json(value))).collect())
}

fn json(proto: prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    match proto.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        // Whole numbers print without a fraction.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => (value as i64).into(),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StructValue(value)) => object(value),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect::<Vec<_>>().into(),
    }
}

/// Reads a DataSource: inline, from a file or from the environment.
pub(crate) fn data_source(proto: core::DataSource, at: &mut Lower) -> Option<Bytes> {
    let core::DataSource { watched_directory, specifier } = proto;
    at.unsupported("watched_directory", watched_directory.is_some());
    match specifier {
        Some(core::data_source::Specifier::Filename(path)) => match std::fs::read(&path) {
            Ok(content) => Some(content.into()),
            Err(error) => {
                at.error_at("filename", format!("cannot read '{path}': {error}"));
                None
            }
        },
        Some(core::data_source::Specifier::InlineBytes(bytes)) => Some(bytes),
        Some(core::data_source::Specifier::InlineString(text)) => Some(text.into()),
        Some(core::data_source::Specifier::EnvironmentVariable(name)) => match std::env::var(&name) {
            Ok(value) => Some(value.into()),
            Err(_) => {
                at.error_at("environment_variable", format!("environment variable '{name}' doesn't exist"));
                None
            }
        },
        None => {
            at.error("one of filename, inline_bytes, inline_string and environment_variable is required");
            None
        }
    }
}

/// A name, if the text is not empty.
pub(crate) fn name(text: String) -> Option<Name> {
    (!text.is_empty()).then(|| text.into())
}
