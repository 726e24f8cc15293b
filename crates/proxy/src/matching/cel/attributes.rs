//! Envoy's attributes: what the names in an expression stand for.

use std::borrow::Cow;
use std::time::UNIX_EPOCH;

use super::value::{Failed, Value};
use crate::http::headers::{HeaderMap, Known};
use crate::matching::facts::{Facts, PeerName};

/// A group of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    Request,
    Source,
    Destination,
    Connection,
    /// Nothing of it is known where requests are judged.
    Upstream,
    Metadata,
    FilterState,
    Xds,
}

impl Root {
    /// By its name.
    pub(super) fn of(name: &str) -> Option<Root> {
        Some(match name {
            "request" => Root::Request,
            "source" => Root::Source,
            "destination" => Root::Destination,
            "connection" => Root::Connection,
            "upstream" | "upstream_filter_state" => Root::Upstream,
            "metadata" => Root::Metadata,
            "filter_state" => Root::FilterState,
            "xds" => Root::Xds,
            _ => return None,
        })
    }

    /// Whether an attribute that Envoy has can be told of here.
    pub(super) fn supports(self, field: &str) -> bool {
        match self {
            Root::Xds => matches!(field, "route_name" | "virtual_host_name"),
            Root::Connection => {
                field != "subject_local_certificate" && !field.ends_with("_local_certificate")
            }
            _ => true,
        }
    }

    /// An attribute's value.
    pub(super) fn attribute<'f>(self, field: &str, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
        match self {
            Root::Request => request(field, facts),
            Root::Source => address(field, facts.connection_source()),
            Root::Destination => address(field, facts.destination()),
            Root::Connection => connection(field, facts),
            Root::Upstream => Err(Failed),
            Root::Metadata => match field {
                "filter_metadata" => facts.metadata().map(Value::Namespaces).ok_or(Failed),
                _ => Err(Failed),
            },
            Root::FilterState => {
                let state = facts.filter_state(field).ok_or(Failed)?;
                Ok(Value::Bytes(Cow::Borrowed(state.text.as_bytes())))
            }
            Root::Xds => {
                let info = facts.info().ok_or(Failed)?;
                let name = match field {
                    "route_name" => info.route_name(),
                    "virtual_host_name" => info.route.as_ref().map(|names| &*names.virtual_host),
                    _ => return Err(Failed),
                };
                Ok(Value::text_of(name.unwrap_or_default()))
            }
        }
    }
}

fn request<'f>(field: &str, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
    let head: &'f HeaderMap = facts.request().ok_or(Failed)?;
    let of = |name: Known| head.get(name).map(Value::text_of).ok_or(Failed);
    let path = || {
        let path = head.get(Known::Path).ok_or(Failed)?;
        Ok((path, path.iter().position(|byte| *byte == b'?')))
    };
    let info = || facts.info().ok_or(Failed);
    let int = |number: u64| i64::try_from(number).map(Value::Int).map_err(|_| Failed);
    match field {
        "headers" => Ok(Value::Headers(head)),
        "path" => of(Known::Path),
        "url_path" => {
            let (path, query) = path()?;
            Ok(Value::text_of(path.get(..query.unwrap_or(path.len())).unwrap_or(path)))
        }
        "query" => {
            let (path, query) = path()?;
            let query = query.and_then(|at| path.get(at + 1..)).unwrap_or_default();
            Ok(Value::text_of(query.split(|byte| *byte == b'#').next().unwrap_or_default()))
        }
        "host" => of(Known::Authority),
        "scheme" => of(Known::Scheme),
        "method" => of(Known::Method),
        "referer" => Ok(head.find("referer").map(Value::text_of).ok_or(Failed)?),
        "useragent" => of(Known::UserAgent),
        "id" => of(Known::XRequestId),
        "protocol" => info()?.protocol.map(|protocol| Value::text_of(protocol.text())).ok_or(Failed),
        "time" => {
            let since = info()?.start_time.duration_since(UNIX_EPOCH).map_err(|_| Failed)?;
            i128::try_from(since.as_nanos()).map(Value::Timestamp).map_err(|_| Failed)
        }
        "size" => {
            let declared = head.get_str(Known::ContentLength).and_then(|text| text.parse().ok());
            int(declared.map_or_else(|| info().map(|info| info.bytes_received), Ok)?)
        }
        "total_size" => int(info()?.bytes_received + head.byte_size() as u64),
        // What is known when the request has ended only, and what does not exist.
        _ => Err(Failed),
    }
}

fn address(field: &str, address: Option<std::net::SocketAddr>) -> Result<Value<'static>, Failed> {
    let address = address.ok_or(Failed)?;
    match field {
        "address" => Ok(Value::Text(Cow::Owned(address.to_string().into_bytes()))),
        "port" => Ok(Value::Int(address.port().into())),
        _ => Err(Failed),
    }
}

fn connection<'f>(field: &str, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
    let info = facts.connection().ok_or(Failed)?;
    let peer = |kind: PeerName| {
        // The first one.
        let mut name = None;
        facts.find_peer_name(kind, &mut |found| {
            name = Some(found.as_bytes().to_vec());
            true
        });
        name.map(|name| Value::Text(Cow::Owned(name))).ok_or(Failed)
    };
    match field {
        "id" => Ok(Value::Uint(info.id)),
        "mtls" => Ok(Value::Bool(facts.tls().is_some_and(|tls| tls.peer.is_some()))),
        "requested_server_name" => Ok(Value::text_of(facts.server_name())),
        "tls_version" => {
            use rustls::ProtocolVersion;
            match facts.tls().and_then(|tls| tls.version) {
                Some(ProtocolVersion::TLSv1_2) => Ok(Value::text_of("TLSv1.2")),
                Some(ProtocolVersion::TLSv1_3) => Ok(Value::text_of("TLSv1.3")),
                _ => Err(Failed),
            }
        }
        "subject_peer_certificate" => peer(PeerName::Subject),
        "uri_san_peer_certificate" => peer(PeerName::Uri),
        "dns_san_peer_certificate" => peer(PeerName::Dns),
        "sha256_peer_certificate_digest" => {
            let digest = facts.tls().and_then(|tls| tls.peer.as_ref()).map(|peer| peer.sha256());
            digest.map(|text| Value::Text(Cow::Owned(text.into_bytes()))).ok_or(Failed)
        }
        "transport_failure_reason" => info.transport_failure.as_deref().map(Value::text_of).ok_or(Failed),
        _ => Err(Failed),
    }
}
