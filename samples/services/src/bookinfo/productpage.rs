//! productpage: the page that people see, put together from details and reviews; and the same
//! as a JSON API.
//!
//! The two calls go out at the same time. A part that does not come is replaced by a sentence
//! that says so, and the page is served all the same.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, COOKIE, HeaderValue, LOCATION, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpListener;

use super::model::{DESCRIPTION, Product, TITLE};
use super::page;
use crate::call::{CallFailed, Caller};
use crate::headers::propagated;
use crate::http_server::{
    self, error_reply, healthy, json_reply, method_not_allowed, not_found, product_id, reply,
};
use crate::{OutboundProxy, Peer, Shutdown};

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often reviews is asked before the page goes without. Together with [`PATIENCE`] less than
/// what reviews v2 allows ratings, on purpose (see `reviews.rs`).
const REVIEWS_ATTEMPTS: usize = 2;
/// The cookie that remembers who signed in.
const SESSION: &str = "bookinfo-user";
/// The header that tells the other services who that is.
const END_USER: &str = "end-user";
/// The most of a sign-in form that is read, in bytes.
const LARGEST_FORM: usize = 4096;
const HTML: &str = "text/html; charset=utf-8";

/// What productpage is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The version that health checks report.
    pub version: String,
    pub details: Peer,
    pub reviews: Peer,
    /// Only for the API: the page has its stars from reviews.
    pub ratings: Peer,
    /// How to reach other services.
    pub proxy: OutboundProxy,
}

/// Serves the page, the API, sign-in and `/health` until `shutdown`.
///
/// # Errors
///
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, config: Config, shutdown: Shutdown) -> io::Result<()> {
    let service = Arc::new(Service { caller: Caller::new(config.proxy.clone()), config });
    http_server::serve(listener, shutdown, move |request| {
        let service = Arc::clone(&service);
        async move { service.answer(request).await }
    })
    .await
}

struct Service {
    config: Config,
    caller: Caller,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match segments.as_slice() {
            ["login"] if *request.method() == Method::POST => sign_in(request.into_body()).await,
            ["login"] if !reads => method_not_allowed("GET, HEAD, POST"),
            _ if !reads => method_not_allowed("GET, HEAD"),
            ["login"] => see_page(),
            ["logout"] => sign_out(),
            [""] => reply(StatusCode::OK, HTML, page::index(&self.peers())),
            ["productpage"] => self.page(request.headers()).await,
            ["health"] => healthy("productpage", &self.config.version),
            ["static", "bookinfo.css"] => stylesheet(),
            ["api", "v1", "products"] => json_reply(StatusCode::OK, &[product()]),
            ["api", "v1", "products", id, rest @ ..] => self.api(id, rest, request.headers()).await,
            _ => not_found(),
        }
    }

    fn peers(&self) -> [(&'static str, String); 3] {
        let Config { details, reviews, ratings, .. } = &self.config;
        [("details", details.to_string()), ("reviews", reviews.to_string()), ("ratings", ratings.to_string())]
    }

    async fn page(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let user = signed_in(headers);
        let outgoing = outgoing(headers, user);
        let (details, reviews) = tokio::join!(self.details(0, outgoing.clone()), self.reviews(0, outgoing));
        let (details, reviews) = (part(details), part(reviews));
        let html = page::product(&product(), user, details.as_ref(), reviews.as_ref());
        reply(StatusCode::OK, HTML, html)
    }

    async fn api(&self, id: &str, rest: &[&str], headers: &HeaderMap) -> Response<Full<Bytes>> {
        let id = match product_id(id) {
            Ok(id) => id,
            Err(refusal) => return *refusal,
        };
        let outgoing = outgoing(headers, signed_in(headers));
        let (what, answer) = match rest {
            [] => ("details", self.details(id, outgoing).await),
            ["reviews"] => ("reviews", self.reviews(id, outgoing).await),
            ["ratings"] => ("ratings", self.ratings(id, outgoing).await),
            _ => return not_found(),
        };
        match answer {
            Ok(json) => json_reply(StatusCode::OK, &json),
            Err(error) => error_reply(error.status(), &format!("No {what} for this product: {error}")),
        }
    }

    async fn details(&self, id: u64, headers: HeaderMap) -> Result<Value, CallFailed> {
        self.get(&self.config.details, &format!("/details/{id}"), headers).await
    }

    async fn reviews(&self, id: u64, headers: HeaderMap) -> Result<Value, CallFailed> {
        let path = format!("/reviews/{id}");
        let mut answer = self.get(&self.config.reviews, &path, headers.clone()).await;
        for _ in 1..REVIEWS_ATTEMPTS {
            if answer.is_ok() {
                break;
            }
            answer = self.get(&self.config.reviews, &path, headers.clone()).await;
        }
        answer
    }

    async fn ratings(&self, id: u64, headers: HeaderMap) -> Result<Value, CallFailed> {
        self.get(&self.config.ratings, &format!("/ratings/{id}"), headers).await
    }

    async fn get(&self, peer: &Peer, path: &str, headers: HeaderMap) -> Result<Value, CallFailed> {
        let answer = self.caller.get(peer, path, headers, PATIENCE).await;
        answer.inspect_err(|error| eprintln!("{peer}{path}: {error}"))
    }
}

fn product() -> Product {
    Product { id: 0, title: TITLE.to_owned(), description_html: format!("<p>{DESCRIPTION}</p>") }
}

/// A part of the page, if it came and can be read.
fn part<T: DeserializeOwned>(answer: Result<Value, CallFailed>) -> Option<T> {
    let part = serde_json::from_value(answer.ok()?);
    part.inspect_err(|error| eprintln!("an answer that the page cannot show: {error}")).ok()
}

/// The headers for the other services. Who signed in here is who they are told about; without a
/// sign-in, an `end-user` header of the request goes on as it is, which is handy with curl.
fn outgoing(incoming: &HeaderMap, user: Option<&str>) -> HeaderMap {
    let mut headers = propagated(incoming);
    if let Some(user) = user.and_then(|user| HeaderValue::from_str(user).ok()) {
        headers.insert(END_USER, user);
    }
    headers
}

fn signed_in(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION).map(|(_, user)| user).filter(|user| is_name(user))
}

/// Names are such that they need no quoting in a form, a cookie or a header.
fn is_name(user: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&user.len()) && user.bytes().all(allowed)
}

/// Takes any name at its word: this is a sample.
async fn sign_in(body: Incoming) -> Response<Full<Bytes>> {
    let Ok(form) = Limited::new(body, LARGEST_FORM).collect().await else {
        return error_reply(StatusCode::BAD_REQUEST, "the form did not arrive, or is too long");
    };
    let form = form.to_bytes();
    let fields = std::str::from_utf8(&form).unwrap_or_default().split('&');
    match fields.filter_map(|field| field.strip_prefix("username=")).find(|user| is_name(user)) {
        Some(user) => with_cookie(&format!("{SESSION}={user}; Path=/; HttpOnly; SameSite=Lax")),
        None => error_reply(
            StatusCode::BAD_REQUEST,
            "the form needs a username of letters, digits, dots, dashes and underscores",
        ),
    }
}

fn sign_out() -> Response<Full<Bytes>> {
    with_cookie(&format!("{SESSION}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"))
}

fn with_cookie(cookie: &str) -> Response<Full<Bytes>> {
    let mut response = see_page();
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

/// Sends the browser to the page, with GET.
fn see_page() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/productpage"));
    response
}

fn stylesheet() -> Response<Full<Bytes>> {
    let mut response = reply(StatusCode::OK, "text/css; charset=utf-8", page::STYLE);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    response
}

#[cfg(test)]
mod tests {
    use super::{is_name, outgoing, signed_in};
    use http::{HeaderMap, HeaderValue};

    fn cookies(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (http::header::COOKIE, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_session_is_found_among_cookies() {
        let cases: [(&[&'static str], Option<&str>); 6] = [
            (&[], None),
            (&["bookinfo-user=jason"], Some("jason")),
            (&["theme=dark; bookinfo-user=jason; x=y"], Some("jason")),
            (&["theme=dark", "bookinfo-user=jason"], Some("jason")),
            (&["bookinfo-user="], None),
            (&["bookinfo-user=<b>"], None),
        ];
        for (lines, user) in cases {
            assert_eq!(signed_in(&cookies(lines)), user, "{lines:?}");
        }
    }

    #[test]
    fn who_signed_in_wins_over_the_header() {
        let mut headers = cookies(&["bookinfo-user=jason"]);
        headers.insert("end-user", HeaderValue::from_static("anna"));
        assert_eq!(outgoing(&headers, signed_in(&headers))["end-user"], "jason");
        headers.remove("cookie");
        assert_eq!(outgoing(&headers, signed_in(&headers))["end-user"], "anna");
    }

    #[test]
    fn names() {
        for (name, fine) in [("jason", true), ("a.b-c_9", true), ("", false), ("a b", false), ("a;b", false)]
        {
            assert_eq!(is_name(name), fine, "{name}");
        }
        assert!(is_name(&"x".repeat(64)) && !is_name(&"x".repeat(65)));
    }
}
