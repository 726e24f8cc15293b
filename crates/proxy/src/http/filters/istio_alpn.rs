//! `istio.alpn`: what the connection to the endpoint offers by ALPN, by the protocol that the request
//! is sent with, in place of what its transport socket says. Servers of an Istio mesh tell by this
//! that a sidecar is calling, and which HTTP it speaks.
//!
//! Clusters can opt out: by `alpn_override: "false"` in their metadata of `istio`.

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
    let mut overrides = AlpnOverrides::default();
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
        match protocol {
            // Requests of HTTP/1.0 are sent on as HTTP/1.1.
            Protocol::Http10 => {}
            Protocol::Http11 => overrides.http1 = names,
            Protocol::Http2 => overrides.http2 = names,
        }
        Some(())
    });
    Some(Arc::new(IstioAlpn(overrides)))
}
