//! Internal redirects: a redirect of the endpoint's is followed here instead of passed on.
//!
//! The request is changed to what the redirect asks for and goes its way again, as a stream of
//! its own, from the look-up of its route on (`Ended::Redirected`).

use std::collections::VecDeque;

use super::Router;
use crate::http::codec::Frame;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::{Forward, InternalRedirects, RedirectPredicate};
use crate::http::stream::Redirected;

/// Whether the route follows this response.
pub(super) fn wanted(route: &Forward, response: &HeaderMap) -> bool {
    route.redirects.as_ref().is_some_and(|policy| policy.codes.contains(&response.status()))
}

/// Makes the request that a redirect asks for out of the one that was sent. False: it is not
/// followed, and the request stays as it was.
pub(super) fn set_up(router: &mut Router<'_, '_, '_>, response: &HeaderMap) -> bool {
    let followed = follow(router, response);
    let stats = &router.cluster.stats;
    if followed {
        stats.upstream_internal_redirect_succeeded_total().inc();
    } else {
        stats.upstream_internal_redirect_failed_total().inc();
    }
    followed
}

fn follow(router: &mut Router<'_, '_, '_>, response: &HeaderMap) -> bool {
    let Some(policy) = router.route.redirects.as_deref() else { return false };
    if !router.body.complete || !router.body.can_replay() {
        return false;
    }
    let Some(location) = response.get(Known::Location) else { return false };
    let stream = &mut *router.exchange.stream;
    let Some(target) = Target::parse(location) else {
        stream.stats.passthrough_internal_redirect_bad_location().inc();
        return false;
    };
    let from_http = stream.request.get(Known::Scheme) != Some(b"https");
    if !policy.cross_scheme && from_http != target.http {
        stream.stats.passthrough_internal_redirect_unsafe_scheme().inc();
        return false;
    }
    let mut redirected = stream.redirected.take().unwrap_or_default();
    if redirected.count >= policy.max {
        stream.stats.passthrough_internal_redirect_too_many_redirects().inc();
        stream.redirected = Some(redirected);
        return false;
    }
    let mut head = stream.request.clone();
    copy_headers(policy, response, &mut head);
    let original =
        [if from_http { &b"http://"[..] } else { b"https://" }, head.authority(), head.path()].concat();
    head.set(Known::Scheme, if target.http { b"http" } else { b"https" });
    head.set(Known::Authority, target.authority);
    head.set(Known::Path, &target.path);
    stream.route(&head);
    // The log shows where the request would go, as in Envoy, followed or not.
    let sent = std::mem::replace(&mut stream.request, head);
    stream.note_target();
    let mut head = std::mem::replace(&mut stream.request, sent);
    let accepted = match &stream.selected {
        None => {
            stream.stats.passthrough_internal_redirect_no_route().inc();
            false
        }
        Some(selected) => {
            let (from, to) = (&router.selected.route.name, &selected.route.name);
            let accepted = policy.predicates.iter().all(|predicate| match predicate {
                RedirectPredicate::Previous => redirected.note_route(from, to),
                RedirectPredicate::Listed(names) => names.contains(to),
                RedirectPredicate::SafeCrossScheme => !from_http || target.http,
            });
            if !accepted {
                stream.stats.passthrough_internal_redirect_predicate().inc();
            }
            accepted
        }
    };
    if !accepted {
        stream.redirected = Some(redirected);
        return false;
    }
    let mut body: VecDeque<_> = router.body.pieces().iter().cloned().collect();
    if response.status() == 303 && !matches!(head.method(), b"GET" | b"HEAD") {
        // RFC 9110 section 15.4.4.
        head.set(Known::Method, b"GET");
        head.remove(Known::ContentLength);
        body.clear();
    }
    head.set(Known::EnvoyOriginalUrl, &original);
    redirected.count += 1;
    redirected.body = body;
    stream.request.clone_from(&head);
    redirected.head = head;
    redirected.internal = stream.internal;
    redirected.connection = Some(std::rc::Rc::clone(&stream.info.connection));
    stream.redirected = Some(redirected);
    stream.info.response_code_details = Some("internal_redirect".into());
    true
}

/// `response_headers_to_copy`: what the response does not have goes from the request too.
fn copy_headers(policy: &InternalRedirects, response: &HeaderMap, head: &mut HeaderMap) {
    for name in &policy.copied {
        head.remove_named(name);
        for value in response.find_all(name) {
            head.append(name.as_bytes(), value);
        }
    }
}

impl Redirected {
    /// The length of its body.
    pub(crate) fn body_len(&self) -> u64 {
        self.body.iter().map(|piece| piece.len() as u64).sum()
    }

    /// The next piece of its body, once.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        let data = self.body.pop_front()?;
        Some(Frame::Data { data, end: self.body.is_empty() })
    }

    /// Notes that a redirect goes from one route to another; false: one did before.
    fn note_route(&mut self, from: &leno_base::Name, to: &leno_base::Name) -> bool {
        let pair = (from.clone(), to.clone());
        let new = !self.routes.contains(&pair);
        if new {
            self.routes.push(pair);
        }
        new
    }
}

/// An absolute URL, without its fragment.
#[derive(Debug, PartialEq, Eq)]
struct Target<'l> {
    http: bool,
    authority: &'l [u8],
    /// With query.
    path: Vec<u8>,
}

impl<'l> Target<'l> {
    fn parse(location: &'l [u8]) -> Option<Self> {
        let scheme = |scheme: &str| {
            let (first, rest) = location.split_at_checked(scheme.len())?;
            first.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
        };
        let (http, rest) = match scheme("http://") {
            Some(rest) => (true, rest),
            None => (false, scheme("https://")?),
        };
        let rest = rest.split(|byte| *byte == b'#').next().unwrap_or_default();
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.is_empty() || !crate::http::codec::h1::target::valid_authority(authority) {
            return None;
        }
        if path.iter().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        let mut whole = if path.first() == Some(&b'/') { Vec::new() } else { vec![b'/'] };
        whole.extend_from_slice(path);
        Some(Target { http, authority, path: whole })
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn only_absolute_locations_are_followed() {
        let check = |location: &str, expected: Option<(bool, &str, &str)>| {
            let target = Target::parse(location.as_bytes());
            let expected = expected.map(|(http, authority, path)| Target {
                http,
                authority: authority.as_bytes(),
                path: path.as_bytes().to_vec(),
            });
            assert_eq!(target, expected, "{location}");
        };
        check("http://a.b/c?d#e", Some((true, "a.b", "/c?d")));
        check("HTTPS://a:1", Some((false, "a:1", "/")));
        check("http://a?b", Some((true, "a", "/?b")));
        for wrong in ["/a", "", "ftp://a/", "http:///a", "http://a b/"] {
            check(wrong, None);
        }
    }
}
