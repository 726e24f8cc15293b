//! Request and response heads on their way through the router: rewriting, timeouts, the
//! `x-envoy-*` headers.

use std::time::Duration;

use crate::cluster::ClusterHttp;
use crate::cluster::worker_cluster::Host;
use crate::http::config::RouterConfig;
use crate::http::headers::{HeaderMap, Known, KnownSet};
use crate::http::route::mutation::evaluate;
use crate::http::route::{Forward, HostRewrite, PathRewrite, RetryPolicy, Selected};
use crate::http::stream::Stream;
use crate::telemetry::access_log::command::FormatContext;

/// Request headers that change timeouts.
const REQUEST_HEADERS: KnownSet = KnownSet::of(&[
    Known::EnvoyExpectedRqTimeoutMs,
    Known::EnvoyHedgeOnPerTryTimeout,
    Known::EnvoyUpstreamRqPerTryTimeoutMs,
    Known::EnvoyUpstreamRqTimeoutAltResponse,
    Known::EnvoyUpstreamRqTimeoutMs,
    Known::EnvoyUpstreamStreamDurationMs,
]);

/// The timeouts of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// For the whole response; `None`: none.
    pub(crate) global: Option<Duration>,
    /// For each attempt.
    pub(crate) per_try: Option<Duration>,
    /// Between bytes of an attempt.
    pub(crate) per_try_idle: Option<Duration>,
    /// For each attempt, from its first byte to its last: the cluster's `max_stream_duration`.
    pub(crate) upstream: Option<Duration>,
    /// An attempt that is late goes on beside the next one.
    pub(crate) hedge: bool,
    /// `x-envoy-upstream-rq-timeout-alt-response`: who is late is answered with 204.
    pub(crate) alternative: bool,
}

impl Timeouts {
    /// From the route, as overridden by the request's own headers, which are consumed.
    pub(crate) fn read(
        route: &Forward,
        retry: Option<&RetryPolicy>,
        cluster: &ClusterHttp,
        config: &RouterConfig,
        grpc: bool,
        head: &mut HeaderMap,
    ) -> Self {
        let mut timeouts = Timeouts {
            global: route.timeout,
            per_try: retry.and_then(|retry| retry.per_try_timeout),
            per_try_idle: retry.and_then(|retry| retry.per_try_idle_timeout),
            upstream: cluster.max_stream_duration,
            hedge: route.hedge_on_per_try_timeout,
            alternative: false,
        };
        if let Some(max) = route.max_grpc_timeout.filter(|_| grpc) {
            timeouts.global = old_grpc_timeout(max, route.grpc_timeout_offset, grpc_timeout(head));
        }
        // Few requests say anything of the kind.
        if !head.contains_any(REQUEST_HEADERS) {
            return timeouts.bounded();
        }
        match head.get(Known::EnvoyHedgeOnPerTryTimeout) {
            Some(b"true") => timeouts.hedge = true,
            Some(b"false") => timeouts.hedge = false,
            _ => {}
        }
        timeouts.alternative = head.remove(Known::EnvoyUpstreamRqTimeoutAltResponse);
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
        if let Some(limit) = head.get_str(Known::EnvoyUpstreamStreamDurationMs) {
            let limit = limit.parse().ok().filter(|limit| *limit > 0).map(Duration::from_millis);
            timeouts.upstream = limit.or(timeouts.upstream);
            head.remove(Known::EnvoyUpstreamStreamDurationMs);
        }
        head.remove(Known::EnvoyUpstreamRqTimeoutMs);
        head.remove(Known::EnvoyUpstreamRqPerTryTimeoutMs);
        timeouts.bounded()
    }

    /// An attempt cannot take longer than all of them.
    fn bounded(mut self) -> Self {
        if let (Some(per_try), Some(global)) = (self.per_try, self.global)
            && per_try >= global
        {
            self.per_try = None;
        }
        self
    }

    /// The status of an answer to who is late.
    pub(crate) fn late_status(&self) -> u16 {
        if self.alternative { 204 } else { 504 }
    }

    /// What the endpoint is told to keep to, `left` of the global timeout being left.
    pub(crate) fn expected(&self, left: Option<Duration>) -> Option<Duration> {
        // Attempts that go on beside each other have all of the time.
        match (self.per_try.filter(|_| !self.hedge), left) {
            (Some(per_try), Some(left)) => Some(per_try.min(left)),
            (per_try, left) => per_try.or(left),
        }
    }
}

/// Tells the endpoint how long it has and which attempt this is.
pub(crate) fn announce_attempt(
    stream: &Stream,
    selected: &Selected,
    route: &Forward,
    timeouts: &Timeouts,
    left: Option<Duration>,
    attempt: u32,
    head: &mut HeaderMap,
) {
    if let Some(expected) = timeouts.expected(left) {
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX).max(1);
        if !stream.manager.router.suppress_envoy_headers {
            set_number(head, Known::EnvoyExpectedRqTimeoutMs, millis);
        }
        if route.max_grpc_timeout.is_some() && stream.is_grpc() {
            set_grpc_timeout(head, millis);
        }
    }
    if selected.virtual_host.include_request_attempt_count {
        set_number(head, Known::EnvoyAttemptCount, attempt.into());
    }
}

/// The route's idle timeout and stream duration replace the connection manager's.
pub(crate) fn apply_stream_limits(stream: &mut Stream, route: &Forward, head: &mut HeaderMap) {
    if let Some(idle) = route.idle_timeout {
        stream.deadlines.idle = idle.filter(|limit| !limit.is_zero());
    }
    let started = stream.info.started;
    if let Some(limit) = route.max_stream_duration {
        stream.deadlines.duration = limit.map(|limit| started + limit);
    }
    if let Some(max) = route.grpc_timeout_max
        && let Some(wanted) = grpc_timeout(head)
    {
        let limit = max.map_or(wanted, |max| wanted.min(max));
        let limit = limit.saturating_sub(route.grpc_header_offset);
        stream.deadlines.duration = Some(started + limit);
        set_grpc_timeout(head, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    }
    if let Some(limit) = route.flush_timeout {
        stream.deadlines.flush = Some(limit);
    }
}

/// The deprecated `max_grpc_timeout` (`None`: unlimited) and `grpc_timeout_offset`: the timeout of
/// a gRPC request that asks for `wanted`.
fn old_grpc_timeout(max: Option<Duration>, offset: Duration, wanted: Option<Duration>) -> Option<Duration> {
    let wanted = wanted.filter(|wanted| !wanted.is_zero());
    let wanted = wanted.map(|wanted| if offset < wanted { wanted - offset } else { wanted });
    match (wanted, max) {
        (Some(wanted), Some(max)) => Some(wanted.min(max)),
        (wanted, max) => wanted.or(max),
    }
}

/// Writes `grpc-timeout`: at most 8 digits, in the smallest unit from milliseconds on.
fn set_grpc_timeout(head: &mut HeaderMap, millis: u64) {
    const MOST: u64 = 99_999_999;
    let units = [(1, b'm'), (1_000, b'S'), (60_000, b'M'), (3_600_000, b'H')];
    let (amount, unit) = units
        .iter()
        .map(|(size, unit)| (millis / size, *unit))
        .find(|(amount, _)| *amount <= MOST)
        .unwrap_or((MOST, b'H'));
    set_number(head, Known::GrpcTimeout, amount);
    let mut text = head.get(Known::GrpcTimeout).unwrap_or_default().to_vec();
    text.push(unit);
    head.set(Known::GrpcTimeout, &text);
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
    if let PathRewrite::None = rewrite {
        return None;
    }
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
        // Needs the whole request; see `new_path`.
        PathRewrite::Format(_) => return None,
    };
    new.extend_from_slice(query);
    Some(new)
}

/// The path that a rewrite makes of a request's.
pub(crate) fn new_path(
    rewrite: &PathRewrite,
    head: &HeaderMap,
    context: &FormatContext<'_>,
) -> Option<Vec<u8>> {
    let PathRewrite::Format(format) = rewrite else { return rewritten_path(rewrite, head.path()) };
    let path = evaluate(format, head, context);
    // As in Envoy: what comes out empty rewrites nothing, and the query stays.
    if path.is_empty() {
        return None;
    }
    let original = head.path();
    let query = original.iter().position(|byte| *byte == b'?').and_then(|at| original.get(at..));
    Some([&path, query.unwrap_or_default()].concat())
}

/// Changes a request's head as the route says: header rules, host, path.
pub(crate) fn prepare_request(stream: &Stream, selected: &Selected, route: &Forward, head: &mut HeaderMap) {
    let weighted = selected.weighted_cluster();
    let plain = weighted.is_none()
        && selected.route.request_headers.is_empty()
        && matches!(route.host_rewrite, HostRewrite::None | HostRewrite::Auto)
        && matches!(route.path_rewrite, PathRewrite::None);
    if plain {
        return;
    }
    let context = FormatContext::new(&stream.info);
    for rules in
        weighted.map(|cluster| &cluster.request_headers).into_iter().chain(&selected.route.request_headers)
    {
        rules.apply(head, &context);
    }
    let host = match (&route.host_rewrite, weighted.and_then(|cluster| cluster.host_rewrite.as_deref())) {
        (_, Some(literal)) => Some(literal.as_bytes().to_vec()),
        (HostRewrite::Literal(literal), None) => Some(literal.as_bytes().to_vec()),
        (HostRewrite::Header(name), None) => {
            head.find(name).filter(|value| !value.is_empty()).map(<[u8]>::to_vec)
        }
        (HostRewrite::PathRegex { pattern, with }, None) => {
            let plain = head.path().split(|byte| *byte == b'?').next().unwrap_or_default();
            Some(pattern.replace_all(plain, with.as_bytes()).into_owned())
        }
        (HostRewrite::Format(format), None) => {
            let context = FormatContext { request: Some(head), ..context };
            let mut host = Vec::new();
            format.format(&context, "-", &mut host);
            Some(host).filter(|host| !host.is_empty())
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
    if let Some(path) = new_path(&route.path_rewrite, head, &context) {
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

    use super::{grpc_timeout, old_grpc_timeout, rewritten_path, set_grpc_timeout, set_number};
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
    fn grpc_timeouts_are_written_with_8_digits() {
        let mut head = HeaderMap::new();
        let cases = [(0, "0m"), (1500, "1500m"), (100_000_000, "100000S"), (u64::MAX, "99999999H")];
        for (millis, text) in cases {
            set_grpc_timeout(&mut head, millis);
            assert_eq!(head.get_str(Known::GrpcTimeout), Some(text));
        }
    }

    #[test]
    fn the_old_grpc_timeouts() {
        let seconds = |limit: u64| Some(Duration::from_secs(limit));
        let check = |max, offset, wanted, expected| {
            assert_eq!(old_grpc_timeout(max, Duration::from_secs(offset), wanted), expected);
        };
        check(None, 0, None, None);
        check(None, 0, seconds(5), seconds(5));
        check(seconds(3), 0, seconds(5), seconds(3));
        check(seconds(3), 0, None, seconds(3));
        check(seconds(9), 1, seconds(5), seconds(4));
        check(seconds(9), 5, seconds(5), seconds(5));
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
