//! The service of the back ends that is asked whether requests may pass (envoy.service.auth.v3).
//!
//! The request itself says in its header `check` what the judgement is to be: `deny`, `deny-with`
//! (status, header and body), `allow-with` (headers added and removed), `fail` (the call fails). What
//! has no such header may pass.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use leno_api::proto::envoy::config::core::v3::{HeaderValue as Field, HeaderValueOption};
use leno_api::proto::envoy::service::auth::v3 as auth;
use leno_api::proto::envoy::r#type::v3::HttpStatus;
use leno_api::proto::google::rpc::Status;
use prost::Message;

/// The path of calls.
pub(crate) const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Codes of google.rpc.Code.
const OK: i32 = 0;
const PERMISSION_DENIED: i32 = 7;
/// The length of what precedes a message of gRPC.
const PREFIX: usize = 5;

/// A call.
pub(crate) struct Call {
    request: auth::CheckRequest,
}

impl Call {
    /// From the body of the call.
    pub(crate) fn read(body: &[u8]) -> Option<Call> {
        let request = auth::CheckRequest::decode(body.get(PREFIX..)?).ok()?;
        Some(Call { request })
    }

    fn http(&self) -> Option<&auth::attribute_context::HttpRequest> {
        self.request.attributes.as_ref()?.request.as_ref()?.http.as_ref()
    }

    /// A header of the request that is judged.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.http()?.headers.get(name).map(String::as_str)
    }

    /// All of them.
    pub(crate) fn headers(&self) -> HeaderMap {
        let all = self.http().into_iter().flat_map(|http| &http.headers);
        all.filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?)))
            .collect()
    }

    /// What else is said of it.
    pub(crate) fn facts(&self) -> BTreeMap<&'static str, String> {
        let http = self.http().cloned().unwrap_or_default();
        let source = self.request.attributes.as_ref().and_then(|all| all.source.clone()).unwrap_or_default();
        let body = if http.body.is_empty() {
            String::from_utf8_lossy(&http.raw_body).into_owned()
        } else {
            http.body
        };
        BTreeMap::from([
            ("path", http.path),
            ("host", http.host),
            ("method", http.method),
            ("peer", source.principal),
            ("sent", body),
        ])
    }

    /// The body of the answer, and its trailers.
    pub(crate) fn answer(&self) -> (Bytes, HeaderMap) {
        use auth::check_response::HttpResponse;
        let (code, response) = match self.header("check") {
            Some("deny") => (PERMISSION_DENIED, None),
            Some("deny-with") => {
                let denied = auth::DeniedHttpResponse {
                    status: Some(HttpStatus { code: 401 }),
                    headers: vec![field("x-reason", "policy")],
                    body: "who are you?".to_owned(),
                };
                (PERMISSION_DENIED, Some(HttpResponse::DeniedResponse(denied)))
            }
            Some("allow-with") => {
                let allowed = auth::OkHttpResponse {
                    headers: vec![field("x-checked", "yes")],
                    headers_to_remove: vec!["x-secret".to_owned()],
                    response_headers_to_add: vec![field("x-answer", "checked")],
                    ..auth::OkHttpResponse::default()
                };
                (OK, Some(HttpResponse::OkResponse(allowed)))
            }
            Some("fail") => return (Bytes::new(), status("13")),
            _ => (OK, None),
        };
        let message = auth::CheckResponse {
            status: Some(Status { code, ..Status::default() }),
            http_response: response,
            ..auth::CheckResponse::default()
        };
        let message = message.encode_to_vec();
        let mut body = BytesMut::with_capacity(PREFIX + message.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        body.extend_from_slice(&message);
        (body.freeze(), status("0"))
    }
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
}

fn field(name: &str, value: &str) -> HeaderValueOption {
    let header = Field { key: name.to_owned(), value: value.to_owned(), ..Field::default() };
    HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }
}
