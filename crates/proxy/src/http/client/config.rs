//! Where calls of filters go: lowering of GrpcService and HttpUri.

use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_base::Name;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::route::mutation::{Substitution, evaluate};
use crate::telemetry::access_log::format::{Format, Piece};

/// GrpcService.
#[derive(Debug)]
pub(crate) struct GrpcTarget {
    /// `envoy_grpc.cluster_name`
    pub(crate) cluster: Name,
    /// `envoy_grpc.authority`; `None`: the cluster's name.
    pub(crate) authority: Option<Box<str>>,
    /// `timeout`; `None`: it is not said.
    pub(crate) timeout: Option<Duration>,
    /// `initial_metadata`
    metadata: Vec<(Box<str>, Format)>,
}

impl GrpcTarget {
    /// The further headers of calls that are made for no request; `None`: they are made of one's.
    pub(crate) fn constant_metadata(&self) -> Option<Vec<(Box<str>, Box<str>)>> {
        let text = |format: &Format| {
            let pieces = format.0.iter().map(|piece| match piece {
                Piece::Text(text) => Some(&**text),
                Piece::Command(_) => None,
            });
            pieces.collect::<Option<String>>()
        };
        let all = self.metadata.iter().map(|(name, format)| Some((name.clone(), text(format)?.into())));
        all.collect()
    }

    /// The further headers of a call that is made for a request with this head.
    pub(crate) fn metadata(
        &self,
        head: &HeaderMap,
        substitution: &dyn Substitution,
    ) -> Vec<(Box<str>, Box<str>)> {
        let value = |format| evaluate(format, head, substitution);
        let all = self.metadata.iter().map(|(name, format)| (name, value(format)));
        // What comes out empty is left out.
        let there = all.filter(|(_, value)| !value.is_empty());
        there.map(|(name, value)| (name.clone(), String::from_utf8_lossy(&value).into())).collect()
    }
}

/// Lowers a GrpcService.
pub(crate) fn grpc(proto: core::GrpcService, at: &mut Lower) -> Option<GrpcTarget> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = proto;
    at.unsupported("retry_policy", retry_policy.is_some());
    let metadata = at.each("initial_metadata", initial_metadata, |header, at| {
        let core::HeaderValue { key, value, raw_value } = header;
        let value = if value.is_empty() { String::from_utf8_lossy(&raw_value).into_owned() } else { value };
        match Format::parse(&value) {
            Ok(format) => Some((key.to_ascii_lowercase().into(), format)),
            Err(error) => {
                at.error_at("value", error);
                None
            }
        }
    });
    let timeout = at.duration("timeout", timeout);
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(proto)) => at.field("envoy_grpc", |at| {
            let EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy,
                max_receive_message_length,
                skip_envoy_headers,
            } = proto;
            at.unsupported("retry_policy", retry_policy.is_some());
            at.unsupported("max_receive_message_length", max_receive_message_length.is_some());
            at.unsupported("skip_envoy_headers", skip_envoy_headers);
            let authority = (!authority.is_empty()).then(|| authority.into());
            Some(GrpcTarget { cluster: at.cluster_name(cluster_name), authority, timeout, metadata })
        }),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            at.unsupported("google_grpc", true);
            None
        }
        None => {
            at.error("one of envoy_grpc and google_grpc is required");
            None
        }
    }
}

/// HttpUri.
#[derive(Clone, Debug)]
pub(crate) struct HttpTarget {
    /// `cluster`
    pub(crate) cluster: Name,
    /// Of `uri`: `http` or `https`.
    pub(crate) scheme: &'static str,
    /// Of `uri`: host, and port if there is one.
    pub(crate) authority: Box<str>,
    /// Of `uri`: path and query.
    pub(crate) path: Box<str>,
    /// `timeout`; `None`: none.
    pub(crate) timeout: Option<Duration>,
}

/// Lowers an HttpUri.
pub(crate) fn http_uri(proto: core::HttpUri, at: &mut Lower) -> Option<HttpTarget> {
    let core::HttpUri { uri, timeout, http_upstream_type } = proto;
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        at.error_at("cluster", "value is required");
        return None;
    };
    let timeout = at.timeout("timeout", timeout, None);
    let Some((scheme, authority, path)) = split(&uri) else {
        at.error_at("uri", format!("'{uri}' is an invalid URI"));
        return None;
    };
    Some(HttpTarget { cluster: at.cluster_name(cluster), scheme, authority, path, timeout })
}

/// Scheme, authority and path of an absolute URI.
fn split(uri: &str) -> Option<(&'static str, Box<str>, Box<str>)> {
    let (scheme, rest) = uri.split_once("://")?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => "http",
        "https" => "https",
        _ => return None,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    if authority.is_empty() || uri.bytes().any(|byte| byte <= b' ') {
        return None;
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some((scheme, authority.into(), path.into()))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn uris() {
        let check = |uri: &str, expected: Option<(&'static str, &str, &str)>| {
            let parts = split(uri);
            let parts = parts.as_ref().map(|(scheme, authority, path)| (*scheme, &**authority, &**path));
            assert_eq!(parts, expected, "{uri}");
        };
        check("http://a.test:80/b?c#d", Some(("http", "a.test:80", "/b?c")));
        check("HTTPS://a", Some(("https", "a", "/")));
        check("http://a?b", Some(("http", "a", "/?b")));
        check("ftp://a", None);
        check("a.test/b", None);
        check("http:///b", None);
        check("http://a b", None);
    }
}
