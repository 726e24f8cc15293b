//! `envoy.filters.http.csrf`: answers 403 to requests that change something and come from a page of
//! another origin than the one that they go to.

mod config;

use crate::http::filters::{FilterConfig, Opening, Registration, RouteSettings, Step};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::matcher::StringMatcher;
use crate::http::stream::Stream;
use crate::telemetry::per_thread::PerThread;
use crate::telemetry::stats::stats_scope;

/// This filter.
pub(super) const REGISTRATION: Registration = Registration {
    name: "envoy.filters.http.csrf",
    config_type: "envoy.extensions.filters.http.csrf.v3.CsrfPolicy",
    lower: config::lower,
    route_type: Some("envoy.extensions.filters.http.csrf.v3.CsrfPolicy"),
    lower_route: Some(config::lower_route),
};

stats_scope! {
    /// `http.STAT_PREFIX.csrf.`
    struct CsrfStats {
        counter missing_source_origin;
        counter request_invalid;
        counter request_valid;
    }
}

/// The filter as configured in a chain.
#[derive(Debug)]
struct Csrf {
    policy: Policy,
    stats: PerThread<CsrfStats>,
}

/// CsrfPolicy, of the chain or of a route.
#[derive(Debug)]
struct Policy {
    /// `filter_enabled`, `shadow_enabled`: numerator and denominator.
    enabled: (u32, u32),
    shadow: (u32, u32),
    /// `additional_origins`
    origins: Vec<StringMatcher>,
}

impl FilterConfig for Csrf {
    fn on_request(
        &self,
        stream: &mut Stream,
        settings: Option<&RouteSettings>,
        head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        if !matches!(head.method(), b"POST" | b"PUT" | b"DELETE" | b"PATCH") {
            return Opening::PASS;
        }
        let policy = settings.and_then(RouteSettings::first::<Policy>).unwrap_or(&self.policy);
        let hit = |(share, of): (u32, u32)| {
            share > 0 && stream.worker.random() % u64::from(of.max(1)) < u64::from(share)
        };
        let enabled = hit(policy.enabled);
        if !enabled && !hit(policy.shadow) {
            return Opening::PASS;
        }
        let thread = stream.worker.stats();
        let stats = self
            .stats
            .of(thread, || CsrfStats::kept(thread, &format!("http.{}.csrf.", stream.manager.stat_prefix)));
        let source = source(head);
        if source.is_empty() {
            stats.missing_source_origin().inc();
        } else if source == head.authority() || policy.origins.iter().any(|origin| origin.matches(source)) {
            stats.request_valid().inc();
            return Opening::PASS;
        } else {
            stats.request_invalid().inc();
        }
        if !enabled {
            return Opening::PASS;
        }
        Opening::Done(Step::Reply(Reply::new(403, "csrf_origin_mismatch", "Invalid origin")))
    }
}

/// Host and port of the page that a request comes from; empty: it is not known.
fn source(head: &HeaderMap) -> &[u8] {
    let of = |known| host_and_port(head.get(known).unwrap_or_default());
    match of(Known::Origin) {
        // A page that tells nobody where it is from.
        b"null" => b"",
        b"" => of(Known::Referer),
        origin => origin,
    }
}

/// Host and port of an absolute URL; what is none is taken for them.
fn host_and_port(url: &[u8]) -> &[u8] {
    let absolute = url.strip_prefix(b"http://").or_else(|| url.strip_prefix(b"https://"));
    let Some(rest) = absolute else { return url };
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::source;
    use crate::http::headers::HeaderMap;

    #[test]
    fn where_requests_come_from() {
        let check = |fields: &[(&str, &str)], expected: &str| {
            let mut head = HeaderMap::new();
            fields.iter().for_each(|(name, value)| head.append(name.as_bytes(), value.as_bytes()));
            assert_eq!(String::from_utf8_lossy(source(&head)), expected, "{fields:?}");
        };
        check(&[], "");
        check(&[("origin", "http://a.test:80")], "a.test:80");
        check(&[("origin", "null"), ("referer", "https://b/x?y")], "");
        check(&[("referer", "https://b/x?y")], "b");
        check(&[("referer", "b/x")], "b/x");
    }
}
