//! `istio.alpn`: what the connection to the endpoint offers by ALPN, by the protocol that the request
//! is sent with, in place of what its transport socket says. Servers of an Istio mesh tell by this
//! that a sidecar is calling, and which HTTP it speaks.
//!
//! Clusters can opt out: by `alpn_override: "false"` in their metadata of `istio`.
//!
//! Of several entries for one protocol the first counts, as in Istio's proxy; an empty one leaves the
//! transport socket's.

use std::sync::Arc;

use leno_api::proto::istio::envoy::config::filter::http::alpn::v2alpha1 as proto;
use leno_api::proto::istio::envoy::config::filter::http::alpn::v2alpha1::filter_config::{
    AlpnOverride, Protocol,
};

use crate::cluster::pool::via::AlpnOverrides;
use crate::config::lower::Lower;
use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings};
use crate::http::headers::HeaderMap;
use crate::http::stream::Stream;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "istio.alpn",
    config_type: "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    lower,
    route_type: None,
    lower_route: None,
};

/// FilterConfig.
#[derive(Debug)]
struct IstioAlpn(AlpnOverrides);

impl FilterConfig for IstioAlpn {
    fn on_request(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        Opening::PASS
    }

    fn alpn(&self) -> Option<&AlpnOverrides> {
        Some(&self.0)
    }
}

fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::FilterConfig { alpn_override } = at.unpack(any)?;
    Some(Arc::new(IstioAlpn(overrides(alpn_override, at))))
}

fn overrides(alpn_override: Vec<AlpnOverride>, at: &mut Lower) -> AlpnOverrides {
    let [mut http1, mut http2] = [None, None];
    at.each("alpn_override", alpn_override, |one, at| {
        let AlpnOverride { upstream_protocol, alpn_override } = one;
        let Ok(protocol) = Protocol::try_from(upstream_protocol) else {
            at.error_at("upstream_protocol", format!("{upstream_protocol} is no protocol"));
            return None;
        };
        let names: Vec<Vec<u8>> = alpn_override.into_iter().map(String::into_bytes).collect();
        if let Some(index) = names.iter().position(|name| name.is_empty() || name.len() > 255) {
            at.error_at(&format!("alpn_override[{index}]"), "a protocol's name has 1 to 255 bytes");
            return None;
        }
        let names = (!names.is_empty()).then(|| names.into());
        let known = match protocol {
            // Deviation: requests of HTTP/1.0 are sent on as HTTP/1.1 and offer what these do; Istio's
            // proxy has connections of HTTP/1.0 too, where a cluster uses the client's protocol.
            Protocol::Http10 => return None,
            Protocol::Http11 => &mut http1,
            Protocol::Http2 => &mut http2,
        };
        match known {
            None => *known = Some(names),
            Some(_) => {
                let protocol = protocol.as_str_name();
                tracing::warn!(target: "config", protocol, "istio.alpn: another entry for it has no effect");
            }
        }
        Some(())
    });
    AlpnOverrides { http1: http1.flatten(), http2: http2.flatten() }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::overrides;
    use crate::config::lower::Lower;

    /// What is offered for HTTP/1.1 and for HTTP/2.
    fn check(config: &str, expected: &Expect) {
        let proto: super::proto::FilterConfig =
            leno_api::decode_text(config, "filter").unwrap_or_else(|errors| panic!("{errors}"));
        let lowered = Lower::resource(|at| Some(overrides(proto.alpn_override, at)));
        let shown = lowered.map_or_else(
            |error| error.to_string(),
            |all| {
                let shown = [all.http1, all.http2].map(|names| {
                    let names =
                        names.map(|names| names.iter().map(|name| name.escape_ascii().to_string()).collect());
                    names.map_or("-".to_owned(), |names: Vec<_>| names.join(" "))
                });
                shown.join(" | ")
            },
        );
        expected.assert_eq(&shown);
    }

    #[test]
    fn the_first_entry_of_a_protocol_counts() {
        check(
            "{alpn_override: [{upstream_protocol: HTTP10, alpn_override: [istio-http/1.0]}, \
             {upstream_protocol: HTTP11, alpn_override: [istio-http/1.1, istio]}, \
             {upstream_protocol: HTTP2, alpn_override: [istio-h2]}, \
             {upstream_protocol: HTTP11, alpn_override: [other]}, {upstream_protocol: HTTP2}]}",
            &expect!["istio-http/1.1 istio | istio-h2"],
        );
        check(
            "{alpn_override: [{upstream_protocol: HTTP2}, {upstream_protocol: HTTP2, alpn_override: [h2]}]}",
            &expect!["- | -"],
        );
        check(
            "{alpn_override: [{upstream_protocol: HTTP2, alpn_override: [h2, '']}]}",
            &expect!["alpn_override[0].alpn_override[1]: a protocol's name has 1 to 255 bytes"],
        );
    }
}
