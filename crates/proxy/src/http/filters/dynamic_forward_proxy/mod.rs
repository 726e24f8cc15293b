//! `envoy.filters.http.dynamic_forward_proxy`: requests go to the host that they name.
//!
//! Where the route's cluster is a dynamic forward proxy, the filter has the host of the request
//! resolved before the request goes on; the cluster then finds it in its DNS cache. The route's
//! settings may name another host. Tests are in `http/tests/dynamic_forward_proxy.rs`.

mod config;

use std::sync::Arc;

use crate::cluster::Discovery;
use crate::cluster::dns_cache::Load;
use crate::cluster::dns_cache::config::Settings;
use crate::http::filters::{FilterConfig, Opening, Outcome, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::stream::Stream;
use crate::telemetry::stream_info::ResponseFlags;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.dynamic_forward_proxy",
    config_type: "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig"),
    lower_route: Some(config::lower_route),
};

/// FilterConfig.
#[derive(Debug)]
struct DynamicForwardProxy {
    /// `dns_cache_config`: clusters with another cache never find what this filter asks for.
    cache: Arc<Settings>,
}

/// PerRouteConfig: which host is asked for instead.
#[derive(Debug)]
enum HostRewrite {
    /// `host_rewrite_literal`
    Literal(Box<str>),
    /// `host_rewrite_header`, lower case; the first of its values.
    Header(leno_base::Name),
}

impl FilterConfig for DynamicForwardProxy {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let cluster = stream.selected.as_ref().and_then(|selected| selected.cluster(head));
        let Some(cluster) = cluster.and_then(|name| stream.worker.cluster(name)) else {
            return Opening::PASS;
        };
        let Discovery::DynamicForwardProxy(cache) = &cluster.config.discovery else { return Opening::PASS };
        if let Some(rewrite) = settings.and_then(RouteSettings::first::<HostRewrite>) {
            rewrite.apply(head);
        }
        if cache.settings.name != self.cache.name || cluster.knows(cache, head.authority()) {
            return Opening::PASS;
        }
        let stats = || cache.stats(stream.worker.stats());
        let Some(waiting) = cache.wait() else {
            stats().dns_rq_pending_overflow().inc();
            return Opening::Done(Step::Reply(overflow(
                "dynamic_forward_proxy_pending_request_overflow",
                "Dynamic forward proxy pending request overflow",
            )));
        };
        let load = std::str::from_utf8(head.authority()).ok().and_then(|authority| cache.load(authority));
        Opening::Done(match load {
            None => Step::Reply(unresolved()),
            Some(Load::Overflow) => {
                stats().host_overflow().inc();
                Step::Reply(overflow("dns_cache_overflow", "DNS cache overflow"))
            }
            Some(Load::Ready(entry)) if entry.addresses().is_empty() => Step::Reply(unresolved()),
            Some(Load::Ready(_)) => Step::Continue,
            Some(Load::Loading(entry)) => Step::wait(async move {
                let addresses = entry.wait().await;
                drop(waiting);
                if addresses.is_empty() { Outcome::Reply(unresolved()) } else { Outcome::Continue }
            }),
        })
    }
}

impl HostRewrite {
    fn apply(&self, head: &mut HeaderMap) {
        match self {
            HostRewrite::Literal(host) => head.set(Known::Authority, host.as_bytes()),
            HostRewrite::Header(name) => {
                if let Some(host) = head.find(name).map(<[u8]>::to_vec) {
                    head.set(Known::Authority, &host);
                }
            }
        }
    }
}

fn overflow(details: &'static str, body: &'static str) -> Reply {
    Reply::new(503, details, body)
}

fn unresolved() -> Reply {
    Reply::new(503, "dns_resolution_failure", "DNS resolution failure")
        .flag(ResponseFlags::DNS_RESOLUTION_FAILED)
}
