//! Tables of sampling and of propagation, and what the differential test cannot compare.

use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use expect_test::{Expect, expect};

use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::trace::context::SpanContext;
use crate::telemetry::trace::provider::dynatrace;
use crate::telemetry::trace::sampling::{Reason, RequestIds, Sampling, Share, decide};
use crate::telemetry::trace::tags::Tags;
use crate::telemetry::trace::tracer::{Sampler, Zipkin};
use crate::telemetry::trace::{ActiveSpan, Ended, Kind, b3, otlp, w3c, zipkin};

fn head(fields: &[(&str, &str)]) -> HeaderMap {
    let mut head = HeaderMap::new();
    for (name, value) in fields {
        head.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn text(head: &HeaderMap) -> String {
    let fields = head.iter().map(|(name, value)| {
        format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
    });
    fields.collect::<Vec<_>>().join(", ")
}

/// A UUID whose number is 1,234 and whose version is this.
fn uuid(version: char) -> String {
    format!("000004d2-0000-{version}000-8000-000000000000")
}

#[test]
fn decisions() {
    let all = Sampling { client: Share::ALL, random: Share::ALL, overall: Share::ALL };
    let none = Share(0, 100);
    let mut table = String::new();
    let mut check = |what: &str, sampling: Sampling, ids: RequestIds, fields: &[(&str, &str)]| {
        let mut head = head(fields);
        let reason = decide(&mut head, &sampling, ids, || 50);
        let id = head.get_str(Known::XRequestId).unwrap_or("none").to_owned();
        let _ = writeln!(table, "{what}: {reason:?} {id}");
    };
    let usual = RequestIds::default();
    for version in ['4', '1', '9', 'a', 'b'] {
        check("all", all, usual, &[("x-request-id", &uuid(version))]);
        check("no chance", Sampling { random: none, ..all }, usual, &[("x-request-id", &uuid(version))]);
        check("none at all", Sampling { overall: none, ..all }, usual, &[("x-request-id", &uuid(version))]);
    }
    let id = uuid('4');
    let by_chance = |random| Sampling { random, ..all };
    // 1,234 of 10,000.
    check("12.34 %", by_chance(Share(1234, 10_000)), usual, &[("x-request-id", &id)]);
    check("12.35 %", by_chance(Share(1235, 10_000)), usual, &[("x-request-id", &id)]);
    check("34 %", by_chance(Share(34, 100)), usual, &[("x-request-id", &id)]);
    check("35 %", by_chance(Share(35, 100)), usual, &[("x-request-id", &id)]);
    check("1,235 of a million", by_chance(Share(1235, 1_000_000)), usual, &[("x-request-id", &id)]);
    let asked = [("x-request-id", &*id), ("x-client-trace-id", "")];
    check("asked for", by_chance(none), usual, &asked);
    check("asked for in vain", Sampling { client: Share(50, 100), ..by_chance(none) }, usual, &asked);
    let forced = [("x-request-id", &*id), ("x-envoy-force-trace", "")];
    check("forced", by_chance(none), usual, &forced);
    check("no number", all, usual, &[("x-request-id", "zzzzzzzz-0000-4000-8000-000000000000")]);
    check("no UUID", all, usual, &[("x-request-id", "000004d2")]);
    check("no id", all, usual, &[]);
    let unpacked = RequestIds { pack: false, ..usual };
    check("unpacked", all, unpacked, &[("x-request-id", &id)]);
    check("unpacked, by chance", by_chance(none), unpacked, &[("x-request-id", &uuid('9'))]);
    check("undecided", by_chance(none), RequestIds { decide: false, ..usual }, &[]);
    expect![[r#"
        all: Sampling 000004d2-0000-9000-8000-000000000000
        no chance: NotTraceable 000004d2-0000-4000-8000-000000000000
        none at all: NotTraceable 000004d2-0000-4000-8000-000000000000
        all: Sampling 000004d2-0000-9000-8000-000000000000
        no chance: NotTraceable 000004d2-0000-1000-8000-000000000000
        none at all: NotTraceable 000004d2-0000-1000-8000-000000000000
        all: Sampling 000004d2-0000-9000-8000-000000000000
        no chance: Sampling 000004d2-0000-9000-8000-000000000000
        none at all: NotTraceable 000004d2-0000-4000-8000-000000000000
        all: ServiceForced 000004d2-0000-a000-8000-000000000000
        no chance: ServiceForced 000004d2-0000-a000-8000-000000000000
        none at all: NotTraceable 000004d2-0000-4000-8000-000000000000
        all: ClientForced 000004d2-0000-b000-8000-000000000000
        no chance: ClientForced 000004d2-0000-b000-8000-000000000000
        none at all: NotTraceable 000004d2-0000-4000-8000-000000000000
        12.34 %: NotTraceable 000004d2-0000-4000-8000-000000000000
        12.35 %: Sampling 000004d2-0000-9000-8000-000000000000
        34 %: NotTraceable 000004d2-0000-4000-8000-000000000000
        35 %: Sampling 000004d2-0000-9000-8000-000000000000
        1,235 of a million: Sampling 000004d2-0000-9000-8000-000000000000
        asked for: ClientForced 000004d2-0000-b000-8000-000000000000
        asked for in vain: NotTraceable 000004d2-0000-4000-8000-000000000000
        forced: ServiceForced 000004d2-0000-a000-8000-000000000000
        no number: NotTraceable zzzzzzzz-0000-4000-8000-000000000000
        no UUID: Sampling 000004d2
        no id: NotTraceable none
        unpacked: Sampling 000004d2-0000-4000-8000-000000000000
        unpacked, by chance: NotTraceable 000004d2-0000-9000-8000-000000000000
        undecided: Sampling none
    "#]]
    .assert_eq(&table);
}

#[test]
fn b3_is_read_and_written() {
    let check = |fields: &[(&str, &str)], expected: Expect| {
        let told = b3::read(&head(fields));
        let text = match told {
            Err(invalid) => format!("{invalid:?}"),
            Ok(told) => {
                let context = told.context.map(|context| {
                    let mut out = HeaderMap::new();
                    b3::write(SpanContext { sampled: true, ..context }, told.single, &mut out);
                    text(&out)
                });
                format!("{:?} {:?} single {}", told.sampled, context, told.single)
            }
        };
        expected.assert_eq(&text);
    };
    let (trace, span, parent) = ("000000000000000a000000000000000b", "000000000000000c", "000000000000000d");
    check(&[], expect!["None None single false"]);
    check(&[("x-b3-sampled", "1")], expect!["Some(true) None single false"]);
    check(&[("x-b3-traceid", trace)], expect!["None None single false"]);
    check(
        &[
            ("x-b3-traceid", trace),
            ("x-b3-spanid", span),
            ("x-b3-parentspanid", parent),
            ("x-b3-sampled", "0"),
        ],
        expect![[
            r#"Some(false) Some("x-b3-traceid: 000000000000000a000000000000000b, x-b3-spanid: 000000000000000c, x-b3-parentspanid: 000000000000000d, x-b3-sampled: 1") single false"#
        ]],
    );
    check(
        &[("x-b3-traceid", "b"), ("x-b3-spanid", "c"), ("x-b3-sampled", "true")],
        expect![[
            r#"Some(true) Some("x-b3-traceid: 000000000000000b, x-b3-spanid: 000000000000000c, x-b3-sampled: 1") single false"#
        ]],
    );
    check(
        &[("x-b3-traceid", "0000000000000000b"), ("x-b3-spanid", "c")],
        expect![[
            r#"None Some("x-b3-traceid: 000000000000000b, x-b3-spanid: 000000000000000c, x-b3-sampled: 1") single false"#
        ]],
    );
    check(&[("x-b3-traceid", "1000000000000000b"), ("x-b3-spanid", "c")], expect!["Invalid"]);
    check(&[("x-b3-traceid", ""), ("x-b3-spanid", "c")], expect!["Invalid"]);
    check(&[("b3", "0")], expect!["Some(false) None single true"]);
    check(&[("b3", "2")], expect!["Invalid"]);
    check(
        &[("b3", &format!("{trace}-{span}"))],
        expect![[r#"None Some("b3: 000000000000000a000000000000000b-000000000000000c-1") single true"#]],
    );
    check(
        &[("b3", &format!("{trace}-{span}-d-{parent}"))],
        expect![[
            r#"Some(true) Some("b3: 000000000000000a000000000000000b-000000000000000c-1-000000000000000d") single true"#
        ]],
    );
    check(&[("b3", &format!("{trace}-{span}-{parent}"))], expect!["Invalid"]);
    check(
        &[("b3", &format!("{parent}-{span}-0"))],
        expect![[r#"Some(false) Some("b3: 000000000000000d-000000000000000c-1") single true"#]],
    );
}

#[test]
fn traceparent_is_read_and_written() {
    let check = |parent: &str, expected: Expect| {
        let read = w3c::read(&head(&[("traceparent", parent)]));
        let text = match read {
            Err(invalid) => format!("{invalid:?}"),
            Ok(context) => {
                let mut out = HeaderMap::new();
                context.into_iter().for_each(|context| w3c::write_parent(context, &mut out));
                text(&out)
            }
        };
        expected.assert_eq(&text);
    };
    check(
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        expect!["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    );
    check(
        "fe-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-02",
        expect!["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"],
    );
    check("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", expect!["Invalid"]);
    check("00-00000000000000000000000000000000-b7ad6b7169203331-01", expect!["Invalid"]);
    check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g", expect!["Invalid"]);
    check("00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", expect!["Invalid"]);
    check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-", expect!["Invalid"]);
    check("", expect!["Invalid"]);
    let mut state = head(&[("tracestate", "a=1"), ("x", "y"), ("tracestate", "b=2")]);
    w3c::write_state(true, &mut state);
    expect!["tracestate: a=1,b=2, x: y"].assert_eq(&text(&state));
    w3c::write_state(false, &mut state);
    expect!["tracestate: , x: y"].assert_eq(&text(&state));
}

#[test]
fn samplers() {
    let ratio = Sampler::Ratio(Share(50, 100));
    // As Envoy has it.
    for (trace, sampled) in [
        (0xb8a1_abcd_1a69_16c7_4da4_f9fc_3c6d_a5d7, true),
        (0x8ca5_9966_66ce_ab36_0512_bd13_1107_2231, false),
        (0xfd72_4452_ccea_71ff_4a14_876a_eaff_1a09, false),
        (0x8534_f457_38d0_48ec_0f10_99c6_c3e1_b258, true),
    ] {
        assert_eq!(ratio.samples(trace, Some(!sampled)), sampled, "{trace:x}");
    }
    let parent = Sampler::Parent(Box::new(Sampler::Ratio(Share(0, 100))));
    assert!(parent.samples(1, Some(true)) && !parent.samples(1, Some(false)) && !parent.samples(1, None));
    assert!(Sampler::AlwaysOn.samples(0, Some(false)));
}

fn ended<R>(tags: &[(&str, &str)], kind: Kind, look: impl FnOnce(&Ended<'_>) -> R) -> R {
    let mut all = Tags::default();
    tags.iter().for_each(|(name, value)| all.set(name, value));
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let events = [(start + Duration::from_millis(1), "event")];
    look(&Ended {
        context: SpanContext {
            trace: 0xa << 64 | 0xb,
            span: 0xc,
            parent: NonZeroU64::new(0xd),
            sampled: true,
        },
        kind,
        name: "a \"name\"",
        remote_parent: true,
        state: "a=b",
        start,
        end: start + Duration::from_micros(2500),
        tags: &all,
        events: &events,
    })
}

fn shared_zipkin(proto: bool) -> Zipkin {
    let service = "service".into();
    Zipkin { wide: true, shared: true, split: false, w3c: false, timestamps: false, proto, service }
}

#[test]
fn zipkin_in_protobuf_has_all_that_json_has() {
    // Field by field: number, wire type, value.
    let mut batch = Vec::new();
    ended(&[("a", "b"), ("empty", "")], Kind::Server, |span| {
        zipkin::proto(&shared_zipkin(true), span, &mut batch);
    });
    let (prefix, span) = batch.split_at(2);
    assert_eq!((prefix[0], usize::from(prefix[1])), (1 << 3 | 2, span.len()));
    let mut text = String::new();
    let mut rest = span;
    while let [key, tail @ ..] = rest {
        let (length, tail) = match key & 7 {
            0 => (1 + tail.iter().position(|byte| byte & 0x80 == 0).expect("an end"), tail),
            1 => (8, tail),
            _ => (usize::from(tail[0]), &tail[1..]),
        };
        let (value, tail) = tail.split_at(length);
        // The address is this machine's.
        let value = if key >> 3 == 8 { &value[..9] } else { value };
        let _ = writeln!(text, "{}: {}", key >> 3, value.escape_ascii());
        rest = tail;
    }
    expect![[r#"
        1: \x00\x00\x00\x00\x00\x00\x00\n\x00\x00\x00\x00\x00\x00\x00\x0b
        2: \x00\x00\x00\x00\x00\x00\x00\r
        3: \x00\x00\x00\x00\x00\x00\x00\x0c
        4: \x02
        5: a \"name\"
        6: @B\x0f\x00\x00\x00\x00\x00
        7: \xc4\x13
        8: \n\x07service
        10: \t(F\x0f\x00\x00\x00\x00\x00\x12\x05event
        10: \t\x04L\x0f\x00\x00\x00\x00\x00\x12\x02ss
        11: \n\x01a\x12\x01b
        13: \x01
    "#]]
    .assert_eq(&text);
}

#[test]
fn zipkin_in_json_is_json() {
    let mut batch = Vec::new();
    ended(&[("a\n", "b\""), ("a\n", "c\""), ("empty", "")], Kind::Client, |span| {
        zipkin::json(&shared_zipkin(false), span, &mut batch);
        zipkin::json(&shared_zipkin(false), span, &mut batch);
    });
    let list: Vec<serde_json::Value> =
        serde_json::from_slice(&[b"[".as_slice(), &batch, b"]"].concat()).expect("JSON");
    assert_eq!(list.len(), 2);
    let mut span = list[0].clone();
    span["localEndpoint"]["ipv4"] = "here".into();
    span.sort_all_objects();
    expect![[r#"
        {
          "annotations": [
            {
              "timestamp": 1001000,
              "value": "event"
            },
            {
              "timestamp": 1002500,
              "value": "cr"
            }
          ],
          "duration": 2500,
          "id": "000000000000000c",
          "kind": "CLIENT",
          "localEndpoint": {
            "ipv4": "here",
            "port": 0,
            "serviceName": "service"
          },
          "name": "a \"name\"",
          "parentId": "000000000000000d",
          "tags": {
            "a\n": "c\""
          },
          "timestamp": 1000000,
          "traceId": "000000000000000a000000000000000b"
        }"#]]
    .assert_eq(&format!("{span:#}"));
}

#[test]
fn lengths_of_nested_messages_are_right() {
    let long = "x".repeat(300);
    let mut batch = Vec::new();
    ended(&[("a", &long)], Kind::Server, |span| otlp::span(span, &mut batch));
    let report = otlp::report(b"", b"", &batch);
    // 2 << 3 is the field of spans in a scope, of a scope in a resource, and so on.
    let varint = |bytes: &[u8]| {
        let low = usize::from(bytes[0] & 0x7f);
        if bytes[0] & 0x80 == 0 { (low, 1) } else { (low | usize::from(bytes[1]) << 7, 2) }
    };
    let (whole, size) = varint(&report[1..]);
    assert_eq!((report[0], whole), (1 << 3 | 2, report.len() - 1 - size));
    let inner = &report[1 + size..];
    // An empty resource comes first.
    assert_eq!(&inner[..2], &[1 << 3 | 2, 0]);
    let (scope, size) = varint(&inner[3..]);
    assert_eq!((inner[2], scope), (2 << 3 | 2, inner.len() - 3 - size));
    assert_eq!(&inner[3 + size..], batch);
}

#[test]
fn spans_of_attempts_follow_that_of_their_request() {
    let zipkin = shared_zipkin(false);
    let told = head(&[("x-b3-traceid", "b"), ("x-b3-spanid", "c"), ("x-b3-sampled", "0")]);
    let start = |kind| -> ActiveSpan {
        let mut next = 0;
        zipkin
            .start(&told, kind, true, || {
                next += 1;
                next
            })
            .expect("it makes sense")
    };
    let (server, client) = (start(Kind::Server), start(Kind::Client));
    assert_eq!((server.context.span, server.context.parent), (0xc, None));
    assert_eq!((client.context.span, client.context.parent), (1, NonZeroU64::new(0xc)));
    assert!(!server.context.sampled && !server.local && server.remote_parent);
    assert_eq!(Reason::default(), Reason::NotTraceable);
}

#[test]
fn dynatrace_says_where_the_proxy_runs() {
    let read = |path: &str| match path {
        "dt_metadata_e617c525669e072eebe3d0f08212e8f2.properties" => Some("/elsewhere\n".to_owned()),
        "/elsewhere" => Some("a=b\n\nno pair\n=c\nd=\n".to_owned()),
        "/var/lib/dynatrace/enrichment/dt_host_metadata.properties" => Some("e = f=g".to_owned()),
        _ => None,
    };
    let pairs = [("a", "b"), ("e", "f=g")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(dynatrace(read), pairs);
    assert_eq!(dynatrace(|_| None), []);
}
