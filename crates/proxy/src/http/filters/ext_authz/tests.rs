//! Rules for changes, and what becomes of answers; `tests/filters` has the rest.

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::service::auth::v3 as auth;
use leno_api::proto::google::rpc;
use prost::Message;

use super::answer::{Action, Change, Verdict, decode};
use super::apply::{Check, MutationRules};
use super::check::Content;
use crate::http::headers::HeaderMap;

fn rules() -> MutationRules {
    MutationRules {
        allow_all_routing: false,
        allow_envoy: false,
        disallow_system: false,
        disallow_all: false,
        allow: None,
        disallow: None,
        disallow_is_error: false,
    }
}

#[test]
fn what_a_service_may_change() {
    let set =
        |rules: &MutationRules, name: &str, value: &str| rules.check(name, false, Some(value.as_bytes()));
    let default = rules();
    assert_eq!(set(&default, "x-a", "1"), Check::Ok);
    for name in ["host", ":authority", ":scheme", ":method", "x-envoy-a"] {
        assert_eq!(set(&default, name, "http"), Check::Ignore, "{name}");
    }
    assert_eq!(set(&default, ":path", "/x"), Check::Ok);
    assert_eq!(default.check(":path", true, Some(b"/x")), Check::Ignore, "nothing is appended to it");
    assert_eq!(default.check(":path", false, None), Check::Ignore);
    assert_eq!(default.check("x-a", false, None), Check::Ok);
    let open =
        MutationRules { allow_all_routing: true, allow_envoy: true, disallow_is_error: true, ..rules() };
    assert_eq!(set(&open, ":scheme", "http"), Check::Ok);
    assert_eq!(set(&open, ":scheme", "ftp"), Check::Fail);
    assert_eq!(set(&open, "x-envoy-a", ""), Check::Ok);
    let regex = |text| regex::bytes::Regex::new(text).ok();
    let narrow =
        MutationRules { disallow_all: true, allow: regex("^x-a.*$"), disallow: regex("^x-ab$"), ..rules() };
    let checks = ["x-a", "x-ab", "x-b"].map(|name| set(&narrow, name, "1"));
    assert_eq!(checks, [Check::Ok, Check::Ignore, Check::Ignore]);
}

#[test]
fn changes_of_headers() {
    let check = |action, expected: &[(&str, &str)]| {
        let mut head = HeaderMap::new();
        head.append(b"x-a", b"1");
        for name in ["x-a", "x-b"] {
            Change { name: name.to_owned(), value: b"2".to_vec(), action }.apply(&mut head);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields: Vec<_> = head.iter().map(|(name, value)| (text(name), text(value))).collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(fields, expected, "{action:?}");
    };
    check(Action::Add, &[("x-a", "1"), ("x-a", "2"), ("x-b", "2")]);
    check(Action::Append, &[("x-a", "1,2")]);
    check(Action::AddIfAbsent, &[("x-a", "1"), ("x-b", "2")]);
    check(Action::OverwriteOrAdd, &[("x-a", "2"), ("x-b", "2")]);
    check(Action::OverwriteIfExists, &[("x-a", "2")]);
}

#[test]
fn answers() {
    use auth::check_response::HttpResponse;
    let answer = |code: i32, http_response| {
        let status = Some(rpc::Status { code, ..Default::default() });
        let response = auth::CheckResponse { status, http_response, ..Default::default() };
        decode(&response.encode_to_vec()).expect("a message")
    };
    let denied = || auth::DeniedHttpResponse { body: "no".to_owned(), ..Default::default() };
    assert_eq!(answer(0, None).verdict, Verdict::Ok);
    assert_eq!(answer(7, None).verdict, Verdict::Denied);
    let ok = answer(0, Some(HttpResponse::OkResponse(auth::OkHttpResponse::default())));
    assert_eq!(ok.verdict, Verdict::Ok);
    let said = answer(7, Some(HttpResponse::DeniedResponse(denied())));
    assert_eq!((said.verdict, said.body), (Verdict::Denied, Bytes::from_static(b"no")));
    assert_eq!(answer(13, Some(HttpResponse::ErrorResponse(denied()))).verdict, Verdict::Error);
    let option =
        core::HeaderValueOption { append_action: 99, header: Some(Default::default()), ..Default::default() };
    let headers = auth::OkHttpResponse {
        headers: vec![option.clone()],
        response_headers_to_add: vec![option],
        ..Default::default()
    };
    let unknown = answer(0, Some(HttpResponse::OkResponse(headers)));
    assert!(unknown.unknown_action && unknown.response.is_empty());
    assert_eq!(unknown.request.len(), 1, "what the deprecated flag does not say is overwritten");
    assert!(decode(b"\xff").is_err());
}

#[test]
fn the_beginning_of_a_body() {
    let mut content = Content::default();
    assert_eq!(content.up_to(5), (Bytes::new(), false));
    content.push(&Bytes::from_static(b"abcd"));
    assert_eq!(content.up_to(3), (Bytes::from_static(b"abc"), true));
    content.push(&Bytes::from_static(b"efgh"));
    assert_eq!(content.up_to(6), (Bytes::from_static(b"abcdef"), true));
    assert_eq!(content.up_to(8), (Bytes::from_static(b"abcdefgh"), false));
}
