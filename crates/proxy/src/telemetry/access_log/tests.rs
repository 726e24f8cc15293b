//! Lines as they come out, compared with what Envoy 1.40 wrote for the same streams.

use std::rc::Rc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::accesslog::v3 as accesslog;
use leno_api::proto::envoy::config::core::v3 as core;
use prost::Message;

use super::command::FormatContext;
use super::format::Format;
use super::{AccessLog, Filter, LogFormat, LogType, Output};
use crate::cluster::{EndpointAddress, EndpointConfig};
use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::telemetry::stream_info::{
    ClusterFacts, ConnectionInfo, FilterState, HeadSize, Protocol, ResponseFlags, RouteNames, StreamInfo,
};

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name.as_bytes(), value.as_bytes());
    }
    headers
}

/// `GET /some/path?a=1&b=2`, answered 200 by 127.0.0.1:19802 after 3 ms.
struct Sample {
    info: StreamInfo,
    request: HeaderMap,
    response: HeaderMap,
}

impl Sample {
    fn new() -> Self {
        let started = Instant::now();
        let connection = ConnectionInfo {
            id: 7,
            remote: "10.0.0.1:38818".parse().unwrap(),
            direct_remote: "127.0.0.1:38818".parse().unwrap(),
            local: "[::1]:19801".parse().unwrap(),
            direct_local: "127.0.0.1:19801".parse().unwrap(),
            local_restored: false,
            server_name: None,
            tls: None,
            transport_failure: None,
            started,
            found: crate::telemetry::stream_info::Found::default(),
        };
        let wall = UNIX_EPOCH + Duration::from_micros(1_795_297_293_399_141);
        let mut info = StreamInfo::new(Rc::new(connection), Some(Protocol::Http11), started, wall);
        let at = |micros| Some(started + Duration::from_micros(micros));
        info.response_code = 200;
        info.response_code_details = Some("via upstream".into());
        info.bytes_sent = 2;
        info.request_head = HeadSize { wire: 171, fields: 71 };
        info.response_head = HeadSize { wire: 231, fields: 131 };
        info.request_complete = at(100);
        info.first_downstream_tx = at(3500);
        info.last_downstream_tx = at(3927);
        info.route = Some(Rc::new(RouteNames { route: "r".into(), virtual_host: "v".into() }));
        info.request_id = Some("75f28955-9d59-40b8-8a84-953b2f99b311".into());
        info.upstream.host = Some("127.0.0.1:19802".parse().unwrap());
        let endpoint = EndpointConfig::plain(EndpointAddress::Ip("127.0.0.1:19802".parse().unwrap()));
        info.upstream.endpoint = Some(Rc::new(EndpointConfig { hostname: Some("hn:80".into()), ..endpoint }));
        info.upstream.first_tx = at(400);
        info.upstream.first_rx = at(3400);
        info.upstream.last_rx = at(3450);
        info.upstream.attempts = 1;
        let metadata =
            [("ns".to_owned(), serde_json::json!({"k": "v", "l": [1, "a"], "o": {"x": 1.5, "b": true}}))];
        let metadata = metadata.into_iter().collect::<std::collections::BTreeMap<_, _>>().into();
        info.upstream.cluster = Some(Rc::new(ClusterFacts::new("c1".into(), "c1".into(), metadata)));
        info.filter_state.insert("io.x", FilterState { text: "fs".into(), typed: None, peer: None });
        let typed = Some(serde_json::json!({"count": "2"}));
        info.filter_state.insert("io.z", FilterState { text: "2".into(), typed, peer: None });
        Self {
            info,
            request: headers(&[
                (":method", "GET"),
                (":path", "/some/path?a=1&b=2"),
                (":authority", "127.0.0.1:19801"),
                ("user-agent", "curl/7.88.1"),
                ("x-request-id", "75f28955-9d59-40b8-8a84-953b2f99b311"),
                ("x-q", "he\"l\\lo"),
                ("x-q", "2"),
            ]),
            response: headers(&[
                (":status", "200"),
                ("content-type", "text/plain"),
                ("x-envoy-upstream-service-time", "3"),
            ]),
        }
    }

    fn context(&self) -> FormatContext<'_> {
        FormatContext {
            request: Some(&self.request),
            response: Some(&self.response),
            log_type: LogType::DownstreamEnd,
            end: Some(self.info.started + Duration::from_micros(3927)),
            ..FormatContext::new(&self.info)
        }
    }
}

fn check(format: &str, expected: &Expect) {
    let sample = Sample::new();
    let shown = match Format::parse(format) {
        Ok(format) => {
            let mut out = Vec::new();
            format.format(&sample.context(), "-", &mut out);
            String::from_utf8(out).unwrap()
        }
        Err(error) => error,
    };
    expected.assert_eq(&shown);
}

#[test]
fn commands() {
    check("%START_TIME% %START_TIME(%s.%3f)%", &expect!["2026-11-21T21:41:33.399Z 1795297293.399"]);
    check(
        "%REQ(X-A?:PATH):3% %REQ(nope)% %RESP(Content-Type)% %TRAILER(x)% %REQ(x-q)%",
        &expect![[r#"/so - text/plain - he"l\lo"#]],
    );
    check(
        "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)% %CONNECTION_TERMINATION_DETAILS%",
        &expect!["HTTP/1.1 200 via_upstream via upstream -"],
    );
    check("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %BYTES_RECEIVED% %BYTES_SENT%", &expect!["- - 0 2"]);
    check(
        "%DURATION% %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION% %REQUEST_TX_DURATION%",
        &expect!["3 0 3 0 -"],
    );
    check(
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)% %COMMON_DURATION(US_TX_BEG:US_RX_END:ms)% %COMMON_DURATION(US_TX_END:US_RX_END)%",
        &expect!["3927 3 -"],
    );
    check(
        "%UPSTREAM_HOST% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT% %UPSTREAM_CLUSTER% %UPSTREAM_REMOTE_PORT% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        &expect!["127.0.0.1:19802 hn:80 hn c1 19802 127.0.0.1 - 1"],
    );
    check(
        "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%",
        &expect!["10.0.0.1:38818 10.0.0.1 127.0.0.1:38818 [::1]:19801 19801"],
    );
    check(
        "%CLUSTER_METADATA(ns:k)% %CLUSTER_METADATA(ns)% %METADATA(CLUSTER:ns:l)% %UPSTREAM_METADATA(ns:k)% %DYNAMIC_METADATA(a:b)% %CLUSTER_METADATA(ns:k:x)%",
        &expect![[r#"v {"k":"v","l":[1,"a"],"o":{"b":true,"x":1.5}} [1,"a"] - - -"#]],
    );
    check(
        "%FILTER_STATE(io.x:PLAIN)% %FILTER_STATE(io.x)% %FILTER_STATE(y:PLAIN)% %FILTER_STATE(io.z)% %FILTER_STATE(io.z:PLAIN)%",
        &expect![[r#"fs "fs" - {"count":"2"} 2"#]],
    );
    check(
        "%STREAM_ID% %CONNECTION_ID% %ROUTE_NAME% %ACCESS_LOG_TYPE% %REQUESTED_SERVER_NAME%",
        &expect!["75f28955-9d59-40b8-8a84-953b2f99b311 7 r DownstreamEnd -"],
    );
    check(
        "%PATH% %PATH(NQ)% %PATH(WQ:ORIG)% %PATH(NQ:PATH)% %QUERY_PARAM(b)% %QUERY_PARAM(c)% %QUERY_PARAMS%",
        &expect!["/some/path?a=1&b=2 /some/path - /some/path 2 - a=1&b=2"],
    );
    check(
        "%GRPC_STATUS% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_CERT_V_START(%Y)% %RESPONSE_TRAILERS_BYTES%",
        &expect!["- - - 0"],
    );
    check("%ENVIRONMENT(LENO_NO_SUCH_VARIABLE)%%%", &expect!["-%"]);
}

#[test]
fn refused() {
    check("%START_TIME(%Q)%", &expect!["time format '%Q': '%Q' is not supported"]);
    check("%PATH(X)%", &expect!["Invalid PATH option: 'X', only 'WQ'/'NQ' are allowed"]);
    check("%COMMON_DURATION(DS_RX_BEG)%", &expect!["Invalid common duration configuration: DS_RX_BEG."]);
    check("%COMMON_DURATION(DS_RX_BEG:X)%", &expect!["Invalid common duration time point: X."]);
    check("%BYTES_RETRANSMITTED%", &expect!["BYTES_RETRANSMITTED is not supported yet"]);
    check("%METADATA(ROUTE:a)%", &expect!["METADATA(ROUTE) is not supported yet"]);
    check(
        "%GRPC_STATUS(X)%",
        &expect!["GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER, not 'X'"],
    );
}

fn lowered(log: accesslog::AccessLog) -> Result<std::sync::Arc<AccessLog>, String> {
    Lower::resource(|at| AccessLog::lower(log, at)).map_err(|error| error.to_string())
}

fn stdout_log(format: Option<core::SubstitutionFormatString>) -> accesslog::AccessLog {
    use leno_api::proto::envoy::extensions::access_loggers::stream::v3::{
        StdoutAccessLog, stdout_access_log,
    };
    let message =
        StdoutAccessLog { access_log_format: format.map(stdout_access_log::AccessLogFormat::LogFormat) };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog".into(),
        value: message.encode_to_vec(),
    };
    accesslog::AccessLog {
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any)),
        ..accesslog::AccessLog::default()
    }
}

fn lines(log: &AccessLog) -> &LogFormat {
    match &log.output {
        Output::Lines(lines) => &lines.format,
        Output::Service(log) => panic!("{log:?}"),
    }
}

fn line(format: &LogFormat) -> String {
    let sample = Sample::new();
    let mut out = Vec::new();
    format.format(&sample.context(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_default_format_is_envoys() {
    let log = lowered(stdout_log(None)).unwrap();
    expect![[r#"
        [2026-11-21T21:41:33.399Z] "GET /some/path?a=1&b=2 HTTP/1.1" 200 - 0 2 3 3 "-" "curl/7.88.1" "75f28955-9d59-40b8-8a84-953b2f99b311" "127.0.0.1:19801" "127.0.0.1:19802"
    "#]]
    .assert_eq(&line(lines(&log)));
}

fn json_struct(json: &serde_json::Value) -> prost_types::Struct {
    fn value(json: &serde_json::Value) -> prost_types::Value {
        use prost_types::value::Kind;
        let kind = match json {
            serde_json::Value::Null => Kind::NullValue(0),
            serde_json::Value::Bool(value) => Kind::BoolValue(*value),
            serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            serde_json::Value::String(text) => Kind::StringValue(text.clone()),
            serde_json::Value::Array(items) => {
                Kind::ListValue(prost_types::ListValue { values: items.iter().map(value).collect() })
            }
            serde_json::Value::Object(_) => Kind::StructValue(json_struct(json)),
        };
        prost_types::Value { kind: Some(kind) }
    }
    let fields = json.as_object().unwrap().iter().map(|(key, item)| (key.clone(), value(item)));
    prost_types::Struct { fields: fields.collect() }
}

#[test]
fn json_keeps_types_and_order() {
    let template = serde_json::json!({
        "z": "%RESPONSE_CODE%", "a": "x %RESPONSE_CODE% y",
        "nested": {"b": "%DURATION%", "l": ["%PROTOCOL%", 5, true, null, "%REQ(nope)%", "a%REQ(nope)%b"]},
        "q": "%REQ(X-Q):8%", "cm": "%CLUSTER_METADATA(ns)%", "none": "%REQ(nope)%", "n": null,
    });
    let show = |omit_empty_values| {
        let format = core::substitution_format_string::Format::JsonFormat(json_struct(&template));
        let proto =
            core::SubstitutionFormatString { omit_empty_values, format: Some(format), ..Default::default() };
        line(lines(&lowered(stdout_log(Some(proto))).unwrap()))
    };
    expect![[r#"
        {"a":"x 200 y","cm":{"k":"v","l":[1,"a"],"o":{"b":true,"x":1.5}},"n":null,"nested":{"b":3,"l":["HTTP/1.1",5,true,null,null,"a-b"]},"none":null,"q":"he\"l\\lo","z":200}
    "#]]
    .assert_eq(&show(false));
    expect![[r#"
        {"a":"x 200 y","cm":{"k":"v","l":[1,"a"],"o":{"b":true,"x":1.5}},"nested":{"b":3,"l":["HTTP/1.1",5,true,"ab"]},"q":"he\"l\\lo","z":200}
    "#]]
    .assert_eq(&show(true));
}

#[test]
fn filters() {
    use super::{Comparison, ComparisonOp};
    let mut sample = Sample::new();
    let at_least = |value| Comparison { op: ComparisonOp::AtLeast, value };
    let passes = |sample: &Sample, filter: &Filter| filter.passes(&sample.context());
    assert!(passes(&sample, &Filter::Status(at_least(200))));
    assert!(!passes(&sample, &Filter::Status(at_least(201))));
    assert!(passes(&sample, &Filter::Duration(at_least(3))));
    assert!(!passes(&sample, &Filter::Duration(at_least(4))));
    assert!(!passes(&sample, &Filter::Flags(None)));
    sample.info.flags.insert(ResponseFlags::NO_ROUTE_FOUND);
    assert!(passes(&sample, &Filter::Flags(None)));
    assert!(passes(&sample, &Filter::Flags(Some(ResponseFlags::NO_ROUTE_FOUND))));
    assert!(!passes(&sample, &Filter::Flags(Some(ResponseFlags::DELAY_INJECTED))));
    assert!(passes(&sample, &Filter::Types(vec![LogType::DownstreamEnd], false)));
    assert!(!passes(&sample, &Filter::Types(vec![LogType::DownstreamEnd], true)));
    // 0x75f28955 is 1978829141: 41 of 100.
    let share = |numerator| Filter::Sampled { numerator, denominator: 100, independent: false };
    assert!(passes(&sample, &share(42)));
    assert!(!passes(&sample, &share(41)));
    assert!(passes(&sample, &Filter::GrpcStatus(vec![2], false)));
    sample.request.append(b"content-type", b"application/grpc");
    sample.response.append(b"grpc-status", b"4");
    assert!(passes(&sample, &Filter::GrpcStatus(vec![4], false)));
    assert!(!passes(&sample, &Filter::GrpcStatus(vec![4], true)));
    let both = vec![Filter::Traceable, Filter::NotHealthCheck];
    assert!(!passes(&sample, &Filter::And(both.clone())));
    assert!(passes(&sample, &Filter::Or(both)));
}
