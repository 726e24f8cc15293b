//! The services that are asked.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{Answer, Verdict, decode, read};
use super::check::Question;
use crate::http::client::config::{GrpcTarget, HttpTarget};
use crate::http::client::grpc::{Unary, unary};
use crate::http::client::{self, Call, CallError, Wanted, call};
use crate::http::codec::h1::write::reason;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::matcher::StringMatcher;
use crate::http::route::mutation::HeaderMutations;
use crate::http::stream::Stream;
use crate::telemetry::access_log::command::FormatContext;

/// How long a service may take where nothing is configured.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(200);
/// Who is asked by gRPC.
const SERVICE: &str = "envoy.service.auth.v3.Authorization";
/// The whole name of what it is asked.
const METHOD: &str = "envoy.service.auth.v3.Authorization.Check";
/// Longest body of an HTTP service's answer.
const LONGEST: usize = 1 << 20;
/// Headers that an HTTP service is told in any case.
const ALWAYS: [&str; 4] = ["authorization", ":method", ":path", ":authority"];

/// A service.
#[derive(Debug)]
pub(super) enum Service {
    Grpc(Arc<GrpcTarget>),
    Http(Arc<HttpService>),
}

/// HttpService.
#[derive(Debug)]
pub(super) struct HttpService {
    pub(super) target: HttpTarget,
    pub(super) path_prefix: Box<str>,
    pub(super) path_override: Box<str>,
    /// `authorization_request.headers_to_add`
    pub(super) added: HeaderMutations,
    /// `allowed_upstream_headers`, `allowed_upstream_headers_to_append`
    pub(super) to_upstream: Vec<StringMatcher>,
    pub(super) to_upstream_appended: Vec<StringMatcher>,
    /// `allowed_client_headers`; none: all but `host`.
    pub(super) to_client: Vec<StringMatcher>,
    pub(super) to_client_on_success: Vec<StringMatcher>,
    pub(super) to_metadata: Vec<StringMatcher>,
}

impl HttpService {
    /// Whether one of them matches the name of a header.
    pub(super) fn any(&self, matchers: &[StringMatcher], name: &str) -> bool {
        matchers.iter().any(|matcher| matcher.matches(name.as_bytes()))
    }

    /// Whether a client that is denied is told this header of the answer.
    pub(super) fn tells_client(&self, name: &str) -> bool {
        match self.to_client.as_slice() {
            [] => name != Known::Authority.text(),
            matchers => {
                self.any(matchers, name) || matches!(name, "content-length" | "www-authenticate" | "location")
            }
        }
    }
}

impl Service {
    /// Asks; the answer comes when the service has said something, or has not in time.
    /// `emits_span`: a call by HTTP has a span, if the request has one.
    pub(super) fn ask(
        &self,
        question: &Question<'_>,
        stream: &Stream,
        head: &HeaderMap,
        emits_span: bool,
    ) -> Pin<Box<dyn Future<Output = Answer>>> {
        let worker = Rc::clone(&stream.worker);
        let context = FormatContext { request: Some(head), ..FormatContext::new(&stream.info) };
        match self {
            Service::Grpc(target) => {
                let target = Arc::clone(target);
                let mut metadata = target.metadata(head, &context);
                let mut told = HeaderMap::new();
                // As in Envoy 1.40, `emit_client_span` is about calls by HTTP only.
                let span = stream.trace_call(head, &mut told, true);
                let text = |text: &[u8]| String::from_utf8_lossy(text).into();
                metadata.extend(told.iter().map(|(name, value)| (text(name), text(value))));
                let message = question.message(stream, head);
                let local = stream.info.connection.local.ip();
                Box::pin(async move {
                    let request = Unary {
                        service: SERVICE,
                        method: "Check",
                        authority: target.authority.as_deref(),
                        metadata: &metadata,
                        message,
                        timeout: target.timeout.or(Some(TIMEOUT)).filter(|timeout| !timeout.is_zero()),
                        local,
                    };
                    let said = unary(&worker, &target.cluster, &request).await;
                    let status = said.as_ref().map_or_else(|status| status.code, |_| 0);
                    let answer = said.ok().and_then(|message| decode(&message).ok()).unwrap_or_default();
                    if let Some(span) = span {
                        let host = target.authority.as_deref().unwrap_or(&target.cluster);
                        let own = traced(answer.verdict);
                        span.end_unary(METHOD, &target.cluster, host, status, own.as_slice());
                    }
                    answer
                })
            }
            Service::Http(service) => {
                let service = Arc::clone(service);
                let mut request = service.request(question, stream, head, &context);
                let span = stream.trace_call(head, &mut request.head, emits_span);
                Box::pin(async move {
                    if worker.cluster(&service.target.cluster).is_none() {
                        return Answer::default();
                    }
                    let outcome = call(&worker, &service.target.cluster, &request).await;
                    if let Some(span) = span {
                        let own = traced_http(&outcome);
                        span.end(&request, &service.target.cluster, &outcome, &own);
                    }
                    match outcome {
                        Ok(answer) => read(answer, &service),
                        Err(_) => Answer::default(),
                    }
                })
            }
        }
    }
}

/// What spans of calls by gRPC say of their outcome.
fn traced(verdict: Verdict) -> Option<(&'static str, &'static str)> {
    match verdict {
        Verdict::Ok => Some(("ext_authz_status", "ext_authz_ok")),
        Verdict::Denied => Some(("ext_authz_status", "ext_authz_unauthorized")),
        Verdict::Error => None,
    }
}

/// The same by HTTP: no answer counts as the one that is given in its place.
fn traced_http(outcome: &Result<client::Answer, CallError>) -> [(&'static str, &'static str); 2] {
    let status = match outcome {
        Ok(answer) => answer.head.status(),
        Err(error) => error.status(),
    };
    let verdict = if status == 200 { "ext_authz_ok" } else { "ext_authz_unauthorized" };
    [("ext_authz_status", verdict), ("ext_authz_http_status", reason(status))]
}

impl HttpService {
    fn request(
        &self,
        question: &Question<'_>,
        stream: &Stream,
        head: &HeaderMap,
        context: &FormatContext<'_>,
    ) -> Call {
        let text = |known| String::from_utf8_lossy(head.get(known).unwrap_or_default()).into_owned();
        let told = |known: Known| question.settings.tells(known.text(), &ALWAYS);
        let path = match (&*self.path_override, &*self.path_prefix) {
            ("", prefix) => format!("{prefix}{}", text(Known::Path)),
            (path, _) => path.to_owned(),
        };
        let method = if told(Known::Method) { text(Known::Method) } else { "GET".to_owned() };
        let local = stream.info.connection.local.ip();
        let mut call = Call::new(&method, &text(Known::Authority), &path, local);
        let (body, partial) = match question.content {
            Some((content, max)) => {
                let (body, partial) = content.up_to(max);
                (body, Some(partial))
            }
            None => Default::default(),
        };
        // Envoy does not tell these services whom it asks for.
        call.head.remove(Known::XForwardedFor);
        let own = [Known::ContentLength, Known::Method, Known::Path, Known::Authority, Known::Scheme];
        let raw = question.settings.settings.raw_headers;
        for (known, name, value) in head.iter_known() {
            let Ok(name) = std::str::from_utf8(name) else { continue };
            if known.is_some_and(|known| own.contains(&known)) || !question.settings.tells(name, &ALWAYS) {
                continue;
            }
            match call.head.find(name) {
                // Lines of the same name become one.
                Some(before) if !raw => {
                    let joined = [before, b",", value].concat();
                    call.head.set_named(name, &joined);
                }
                _ => call.head.append(name.as_bytes(), value),
            }
        }
        if let Some(partial) = partial {
            let partial: &[u8] = if partial { b"true" } else { b"false" };
            call.head.append(super::check::PARTIAL_BODY.as_bytes(), partial);
        }
        call.head.set(Known::ContentLength, body.len().to_string().as_bytes());
        if !body.is_empty() {
            call.body = vec![body];
        }
        self.added.apply(&mut call.head, context);
        call.answer = Wanted::All(LONGEST);
        if let Some(limit) = self.target.timeout {
            call.limit(limit);
        }
        call
    }
}
