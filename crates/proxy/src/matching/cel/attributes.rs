//! Envoy's attributes: what the names in an expression stand for.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use super::value::{Failed, Value};
use crate::http::headers::{HeaderMap, Known};
use crate::matching::facts::{Facts, PeerName};
use crate::telemetry::stream_info::FilterState;
use crate::tls::TlsInfo;

/// A group of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    Request,
    Source,
    Destination,
    Connection,
    Response,
    Upstream,
    Metadata,
    FilterState,
    UpstreamFilterState,
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
            "response" => Root::Response,
            "upstream" => Root::Upstream,
            "upstream_filter_state" => Root::UpstreamFilterState,
            "metadata" => Root::Metadata,
            "filter_state" => Root::FilterState,
            "xds" => Root::Xds,
            _ => return None,
        })
    }

    /// Whether an attribute that Envoy has can be told of here.
    pub(super) fn supports(self, field: &str) -> bool {
        match self {
            Root::Xds => matches!(
                field,
                "cluster_name"
                    | "cluster_metadata"
                    | "node"
                    | "route_metadata"
                    | "route_name"
                    | "upstream_host_metadata"
                    | "virtual_host_name"
            ),
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
            Root::Response => response(field, facts),
            Root::Upstream => upstream(field, facts),
            Root::Metadata => match field {
                "filter_metadata" => facts.metadata().map(Value::Namespaces).ok_or(Failed),
                _ => Err(Failed),
            },
            Root::FilterState => object(facts.filter_state(field)),
            Root::UpstreamFilterState => {
                object(facts.info().and_then(|info| info.upstream.filter_state.get(field)))
            }
            Root::Xds => xds(field, facts),
        }
    }
}

/// An object of a filter state: the facts of a peer have fields, all else is text.
fn object(state: Option<&FilterState>) -> Result<Value<'_>, Failed> {
    let state = state.ok_or(Failed)?;
    Ok(match &state.typed {
        Some(typed) if state.peer.is_some() => Value::json(typed),
        _ => Value::Bytes(Cow::Borrowed(state.text.as_bytes())),
    })
}

fn xds<'f>(field: &str, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
    let upstream = || facts.info().map(|info| &info.upstream).ok_or(Failed);
    match field {
        "node" => facts.node().map(Value::json).ok_or(Failed),
        "route_metadata" => facts.route_metadata().map(|all| Value::Message(all)).ok_or(Failed),
        "cluster_name" => {
            upstream()?.cluster.as_ref().map(|facts| Value::text_of(&*facts.name)).ok_or(Failed)
        }
        "cluster_metadata" => {
            upstream()?.cluster.as_ref().map(|facts| Value::Message(&facts.metadata)).ok_or(Failed)
        }
        "upstream_host_metadata" => {
            upstream()?.endpoint.as_ref().map(|endpoint| Value::Message(&endpoint.metadata)).ok_or(Failed)
        }
        "route_name" | "virtual_host_name" => {
            let info = facts.info().ok_or(Failed)?;
            let name = match field {
                "route_name" => info.route_name(),
                _ => info.route.as_ref().map(|names| &*names.virtual_host),
            };
            Ok(Value::text_of(name.unwrap_or_default()))
        }
        _ => Err(Failed),
    }
}

fn response<'f>(field: &str, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
    let info = facts.info().ok_or(Failed)?;
    let int = |number: u64| i64::try_from(number).map(Value::Int).map_err(|_| Failed);
    let size = |block: Option<&HeaderMap>| block.map_or(0, |block| block.byte_size() as u64);
    match field {
        "code" if info.response_code > 0 => Ok(Value::Int(info.response_code.into())),
        "code_details" => info.response_code_details.as_deref().map(Value::text_of).ok_or(Failed),
        "flags" => Ok(Value::Int(info.flags.bits().into())),
        "grpc_status" => facts.grpc_status().map(|status| Value::Int(status.into())).ok_or(Failed),
        "headers" => facts.response().map(Value::Headers).ok_or(Failed),
        "trailers" => facts.response_trailers().map(Value::Headers).ok_or(Failed),
        "size" => int(info.bytes_sent),
        "total_size" => int(info.bytes_sent + size(facts.response()) + size(facts.response_trailers())),
        "backend_latency" => {
            let (Some(sent), Some(received)) = (info.upstream.first_tx, info.upstream.last_rx) else {
                return Err(Failed);
            };
            duration(received.saturating_duration_since(sent))
        }
        _ => Err(Failed),
    }
}

fn duration(time: Duration) -> Result<Value<'static>, Failed> {
    i128::try_from(time.as_nanos()).map(Value::Duration).map_err(|_| Failed)
}

fn upstream<'f>(field: &str, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
    let info = facts.info().ok_or(Failed)?;
    let upstream = &info.upstream;
    let own = || upstream.tls.as_ref().and_then(|tls| tls.peer.as_ref()?.own()).ok_or(Failed);
    let text = |text: String| Value::Text(Cow::Owned(text.into_bytes()));
    match field {
        "address" | "port" => address(field, upstream.host),
        "local_address" => upstream.local.map(|address| text(address.to_string())).ok_or(Failed),
        "tls_version" => version(upstream.tls.as_deref()),
        "subject_peer_certificate" => Ok(text(own()?.subject_text())),
        "uri_san_peer_certificate" => own()?.uris().next().map(Value::text_of).ok_or(Failed),
        "dns_san_peer_certificate" => own()?.dns_names().next().map(Value::text_of).ok_or(Failed),
        "sha256_peer_certificate_digest" => {
            let peer = upstream.tls.as_ref().and_then(|tls| tls.peer.as_ref());
            peer.map(|peer| text(peer.sha256())).ok_or(Failed)
        }
        "transport_failure_reason" => {
            Ok(Value::text_of(upstream.transport_failure.as_deref().unwrap_or_default()))
        }
        "request_attempt_count" => Ok(Value::Uint(upstream.attempts.into())),
        "cx_pool_ready_duration" => {
            let ready = upstream.ready_at.ok_or(Failed)?;
            duration(ready.saturating_duration_since(info.started))
        }
        _ => Err(Failed),
    }
}

fn version(tls: Option<&TlsInfo>) -> Result<Value<'static>, Failed> {
    use rustls::ProtocolVersion;
    match tls.and_then(|tls| tls.version) {
        Some(ProtocolVersion::TLSv1_2) => Ok(Value::text_of("TLSv1.2")),
        Some(ProtocolVersion::TLSv1_3) => Ok(Value::text_of("TLSv1.3")),
        _ => Err(Failed),
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
        "duration" => {
            let end = facts.end().ok_or(Failed)?;
            duration(end.saturating_duration_since(info()?.started))
        }
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
        "tls_version" => version(facts.tls()),
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
