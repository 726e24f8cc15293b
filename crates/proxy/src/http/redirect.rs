//! Redirects: the new location that a route's RedirectAction gives.

use crate::http::forward::head::{new_path, rewritten_path};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::route::Redirect;
use crate::telemetry::access_log::command::FormatContext;

/// The answer to a request that is redirected.
pub(crate) fn reply(rule: &Redirect, head: &HeaderMap, context: &FormatContext<'_>) -> Reply {
    let location = location(rule, head, rewritten(rule, head, context));
    Reply::new(rule.status, "direct_response", "").header("location", location)
}

/// The URL of a request, as it came.
pub(crate) fn own_location(head: &HeaderMap) -> Vec<u8> {
    let scheme = head.get(Known::Scheme).unwrap_or(b"http");
    [scheme, b"://", head.authority(), head.path()].concat()
}

/// The path that a redirect makes of a request's.
fn rewritten(rule: &Redirect, head: &HeaderMap, context: &FormatContext<'_>) -> Option<Vec<u8>> {
    if rule.path.is_some() { None } else { new_path(&rule.rewrite, head, context) }
}

/// A redirect that rewrites the path rewrites the request's own: access logs show it.
pub(crate) fn note_rewritten(rule: &Redirect, head: &mut HeaderMap) {
    if rule.path.is_none()
        && let Some(path) = rewritten_path(&rule.rewrite, head.path())
    {
        let original = head.path().to_vec();
        head.set(Known::EnvoyOriginalPath, &original);
        head.set(Known::Path, &path);
    }
}

fn location(rule: &Redirect, head: &HeaderMap, rewritten: Option<Vec<u8>>) -> Vec<u8> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let came_by = match head.get(Known::Scheme) {
        Some(b"https") => "https",
        _ => "http",
    };
    let scheme = rule.scheme.as_deref().unwrap_or(came_by);
    let authority = text(head.authority());
    let (host, port) = split_port(&authority);
    // A port that is the default of the scheme the request came by goes with that scheme.
    let default = if came_by == "https" { ":443" } else { ":80" };
    let port = match rule.port {
        Some(port) => format!(":{port}"),
        None if rule.scheme.as_deref().is_some_and(|scheme| scheme != came_by) && port == default => {
            String::new()
        }
        None if rule.host.is_some() => String::new(),
        None => port.to_owned(),
    };
    let host = rule.host.as_deref().unwrap_or(host);
    let original = head.path();
    let query_at = original.iter().position(|byte| *byte == b'?').unwrap_or(original.len());
    let (_, query) = original.split_at(query_at);
    let mut path = match &rule.path {
        Some(path) => path.as_bytes().to_vec(),
        None => rewritten.unwrap_or_else(|| original.to_vec()),
    };
    if rule.strip_query {
        let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
        // A query that the redirect itself brings stays.
        if rule.path.is_none() {
            path.truncate(end);
        }
    } else if rule.path.is_some() && !path.contains(&b'?') {
        path.extend_from_slice(query);
    }
    let mut location = format!("{scheme}://{host}{port}").into_bytes();
    // As Envoy does for a path that the configuration gives without its slash.
    if path.first() != Some(&b'/') {
        location.push(b'/');
    }
    location.extend_from_slice(&path);
    location
}

fn split_port(authority: &str) -> (&str, &str) {
    match authority.rfind(':').filter(|at| !authority.get(*at..).unwrap_or_default().contains(']')) {
        Some(at) => authority.split_at(at),
        None => (authority, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::{location, rewritten_path};
    use crate::http::headers::{HeaderMap, Known};
    use crate::http::route::{PathRewrite, Redirect};

    fn rule() -> Redirect {
        Redirect {
            scheme: None,
            host: None,
            port: None,
            path: None,
            rewrite: PathRewrite::None,
            status: 301,
            strip_query: false,
        }
    }

    fn check(rule: &Redirect, authority: &str, expected: &str) {
        let mut head = HeaderMap::new();
        head.append_known(Known::Authority, authority.as_bytes());
        head.append_known(Known::Path, b"/old/x?q=1");
        head.append_known(Known::Scheme, b"http");
        let path = rewritten_path(&rule.rewrite, head.path()).filter(|_| rule.path.is_none());
        assert_eq!(String::from_utf8_lossy(&location(rule, &head, path)), expected);
    }

    #[test]
    fn each_part_is_replaced_on_its_own() {
        check(&rule(), "a.b:8080", "http://a.b:8080/old/x?q=1");
        check(&Redirect { scheme: Some("https".into()), ..rule() }, "a.b:80", "https://a.b/old/x?q=1");
        check(&Redirect { scheme: Some("https".into()), ..rule() }, "a.b:8080", "https://a.b:8080/old/x?q=1");
        check(&Redirect { host: Some("c".into()), ..rule() }, "a.b:8080", "http://c/old/x?q=1");
        check(&Redirect { port: Some(81), ..rule() }, "[::1]:80", "http://[::1]:81/old/x?q=1");
        check(&Redirect { path: Some("/new".into()), ..rule() }, "a", "http://a/new?q=1");
        check(&Redirect { path: Some("/new?z".into()), ..rule() }, "a", "http://a/new?z");
        check(&Redirect { path: Some("/new".into()), strip_query: true, ..rule() }, "a", "http://a/new");
        check(&Redirect { path: Some("new/x".into()), ..rule() }, "a", "http://a/new/x?q=1");
        let rewrite = PathRewrite::Prefix { matched: 4, with: "n".into() };
        check(&Redirect { rewrite, ..rule() }, "a", "http://a/n/x?q=1");
        let rewrite = PathRewrite::Prefix { matched: 4, with: "/n".into() };
        check(&Redirect { rewrite, strip_query: true, ..rule() }, "a", "http://a/n/x");
    }
}
