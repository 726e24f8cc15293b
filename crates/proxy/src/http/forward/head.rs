//! Request and response heads on their way through the router: rewriting, timeouts, the
//! `x-envoy-*` headers.

use std::time::Duration;

use crate::cluster::worker_cluster::Host;
use crate::http::config::RouterConfig;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::{ClusterChoice, Forward, HostRewrite, PathRewrite, Selected};
use crate::http::stream::Stream;
use crate::telemetry::access_log::command::FormatContext;

/// The timeouts of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// For the whole response; `None`: none.
    pub(crate) global: Option<Duration>,
    /// For each attempt.
    pub(crate) per_try: Option<Duration>,
    /// Between bytes of an attempt.
    pub(crate) per_try_idle: Option<Duration>,
}

impl Timeouts {
    /// From the route, as overridden by the request's own headers, which are consumed.
    pub(crate) fn read(route: &Forward, config: &RouterConfig, head: &mut HeaderMap) -> Self {
        let retry = route.retry.as_deref();
        let mut timeouts = Timeouts {
            global: route.timeout,
            per_try: retry.and_then(|retry| retry.per_try_timeout),
            per_try_idle: retry.and_then(|retry| retry.per_try_idle_timeout),
        };
        if config.suppress_envoy_headers {
            return timeouts;
        }
        let millis = |name| head.get_str(name).and_then(|text| text.parse::<u64>().ok());
        let global = match millis(Known::EnvoyExpectedRqTimeoutMs).filter(|_| config.respect_expected_timeout)
        {
            Some(expected) => Some(expected),
            None => millis(Known::EnvoyUpstreamRqTimeoutMs),
        };
        let per_try = millis(Known::EnvoyUpstreamRqPerTryTimeoutMs);
        if let Some(limit) = global {
            timeouts.global = Some(Duration::from_millis(limit)).filter(|limit| !limit.is_zero());
        }
        if let Some(limit) = per_try {
            timeouts.per_try = Some(Duration::from_millis(limit)).filter(|limit| !limit.is_zero());
        }
        head.remove(Known::EnvoyUpstreamRqTimeoutMs);
        head.remove(Known::EnvoyUpstreamRqPerTryTimeoutMs);
        // An attempt cannot take longer than all of them.
        if let (Some(per_try), Some(global)) = (timeouts.per_try, timeouts.global)
            && per_try >= global
        {
            timeouts.per_try = None;
        }
        timeouts
    }

    /// What the endpoint is told to keep to, `left` of the global timeout being left.
    pub(crate) fn expected(&self, left: Option<Duration>) -> Option<Duration> {
        match (self.per_try, left) {
            (Some(per_try), Some(left)) => Some(per_try.min(left)),
            (per_try, left) => per_try.or(left),
        }
    }
}

/// Tells the endpoint how long it has and which attempt this is.
pub(crate) fn announce_attempt(
    stream: &Stream,
    selected: &Selected,
    timeouts: &Timeouts,
    left: Option<Duration>,
    attempt: u32,
    head: &mut HeaderMap,
) {
    if !stream.manager.router.suppress_envoy_headers
        && let Some(expected) = timeouts.expected(left)
    {
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX).max(1);
        set_number(head, Known::EnvoyExpectedRqTimeoutMs, millis);
    }
    if selected.virtual_host.include_request_attempt_count {
        set_number(head, Known::EnvoyAttemptCount, attempt.into());
    }
}

/// The route's idle timeout and stream duration replace the connection manager's.
pub(crate) fn apply_stream_limits(stream: &mut Stream, route: &Forward, head: &HeaderMap) {
    if let Some(idle) = route.idle_timeout {
        stream.deadlines.idle = idle.filter(|limit| !limit.is_zero());
    }
    let started = stream.info.started;
    if let Some(limit) = route.max_stream_duration {
        stream.deadlines.duration = limit.map(|limit| started + limit);
    }
    if let Some(max) = route.grpc_timeout_max
        && head.is_grpc()
        && let Some(wanted) = grpc_timeout(head)
    {
        let limit = max.filter(|max| !max.is_zero()).map_or(wanted, |max| wanted.min(max));
        let limit =
            limit.checked_sub(route.grpc_timeout_offset).filter(|left| !left.is_zero()).unwrap_or(limit);
        stream.deadlines.duration = Some(started + limit);
    }
}

/// `grpc-timeout`: at most 8 digits and a unit.
pub(crate) fn grpc_timeout(head: &HeaderMap) -> Option<Duration> {
    let text = head.get_str(Known::GrpcTimeout)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The path that a rewrite makes of this one; `None`: it stays.
pub(crate) fn rewritten_path(rewrite: &PathRewrite, path: &[u8]) -> Option<Vec<u8>> {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let (plain, query) = path.split_at(end);
    let mut new = match rewrite {
        PathRewrite::None => return None,
        PathRewrite::Prefix { matched, with } => {
            let rest = plain.get((*matched).min(plain.len())..).unwrap_or_default();
            let mut new = with.as_bytes().to_vec();
            new.extend_from_slice(rest);
            new
        }
        PathRewrite::Regex { pattern, with } => pattern.replace_all(plain, with.as_bytes()).into_owned(),
    };
    new.extend_from_slice(query);
    Some(new)
}

/// Changes a request's head as the route says: header rules, host, path.
pub(crate) fn prepare_request(stream: &Stream, selected: &Selected, route: &Forward, head: &mut HeaderMap) {
    let weighted = match (&route.cluster, selected.weighted) {
        (ClusterChoice::Weighted { clusters, .. }, Some(index)) => clusters.get(index),
        _ => None,
    };
    let context = FormatContext::new(&stream.info);
    for rules in
        weighted.map(|cluster| &cluster.request_headers).into_iter().chain(&selected.route.request_headers)
    {
        rules.apply(head, &context);
    }
    let path_end = head.path().iter().position(|byte| *byte == b'?').unwrap_or(head.path().len());
    let host = match (&route.host_rewrite, weighted.and_then(|cluster| cluster.host_rewrite.as_deref())) {
        (_, Some(literal)) => Some(literal.as_bytes().to_vec()),
        (HostRewrite::Literal(literal), None) => Some(literal.as_bytes().to_vec()),
        (HostRewrite::Header(name), None) => {
            head.find(name).filter(|value| !value.is_empty()).map(<[u8]>::to_vec)
        }
        (HostRewrite::PathRegex { pattern, with }, None) => {
            let plain = head.path().get(..path_end).unwrap_or_default();
            Some(pattern.replace_all(plain, with.as_bytes()).into_owned())
        }
        (HostRewrite::None | HostRewrite::Auto, None) => None,
    };
    if let Some(host) = host {
        set_authority(
            head,
            &host,
            route.append_forwarded_host,
            !stream.manager.router.suppress_envoy_headers,
        );
    }
    if let Some(path) = rewritten_path(&route.path_rewrite, head.path()) {
        if !stream.manager.router.suppress_envoy_headers && !head.contains(Known::EnvoyOriginalPath) {
            let original = head.path().to_vec();
            head.set(Known::EnvoyOriginalPath, &original);
        }
        head.set(Known::Path, &path);
    }
}

/// `auto_host_rewrite`: the name of the endpoint that was chosen.
pub(crate) fn rewrite_for_host(route: &Forward, host: &Host, tell_original: bool, head: &mut HeaderMap) {
    if let (HostRewrite::Auto, Some(name)) = (&route.host_rewrite, &host.config.hostname)
        && head.authority() != name.as_bytes()
    {
        set_authority(head, name.as_bytes(), route.append_forwarded_host, tell_original);
    }
}

fn set_authority(head: &mut HeaderMap, host: &[u8], append_forwarded: bool, tell_original: bool) {
    if append_forwarded {
        let mut list: Vec<u8> =
            head.find_all(Known::XForwardedHost.text()).collect::<Vec<_>>().join(&b","[..]);
        let original = head.authority();
        if list != original && !list.ends_with(&[b",", original].concat()) {
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(original);
        }
        head.set(Known::XForwardedHost, &list);
    }
    if tell_original {
        let original = head.authority().to_vec();
        head.set(Known::EnvoyOriginalHost, &original);
    }
    head.set(Known::Authority, host);
}

/// Writes a number as a header value.
pub(crate) fn set_number(head: &mut HeaderMap, name: Known, number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut number = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    head.set(name, &digits[at..]);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{grpc_timeout, rewritten_path, set_number};
    use crate::http::headers::{HeaderMap, Known};
    use crate::http::route::PathRewrite;

    #[test]
    fn rewriting_keeps_the_query() {
        let check = |rewrite: &PathRewrite, path: &str, expected: &str| {
            let new = rewritten_path(rewrite, path.as_bytes()).unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&new), expected);
        };
        check(&PathRewrite::Prefix { matched: 2, with: "/b".into() }, "/a/x?q=/a", "/b/x?q=/a");
        check(&PathRewrite::Prefix { matched: usize::MAX, with: "/b".into() }, "/a/x?q", "/b?q");
        let pattern = regex::bytes::Regex::new("/v([0-9]+)/").expect("a valid pattern");
        check(&PathRewrite::Regex { pattern, with: "/${1}/".into() }, "/v12/x?/v3/", "/12/x?/v3/");
        assert_eq!(rewritten_path(&PathRewrite::None, b"/"), None);
    }

    #[test]
    fn grpc_timeouts() {
        let check = |text: &str, expected: Option<Duration>| {
            let mut head = HeaderMap::new();
            head.append_known(Known::GrpcTimeout, text.as_bytes());
            assert_eq!(grpc_timeout(&head), expected, "{text}");
        };
        check("100m", Some(Duration::from_millis(100)));
        check("2H", Some(Duration::from_secs(7200)));
        check("5u", Some(Duration::from_micros(5)));
        for wrong in ["", "m", "5", "5x", "123456789m", "-5m"] {
            check(wrong, None);
        }
    }

    #[test]
    fn numbers() {
        let mut head = HeaderMap::new();
        for (number, text) in [(0, "0"), (15_000, "15000"), (u64::MAX, "18446744073709551615")] {
            set_number(&mut head, Known::EnvoyAttemptCount, number);
            assert_eq!(head.get_str(Known::EnvoyAttemptCount), Some(text));
        }
    }
}
