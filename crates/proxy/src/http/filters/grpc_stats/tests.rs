use std::sync::Arc;
use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::grpc_stats::v3 as proto;
use prost_types::Any;

use super::frames::Frames;
use super::{Call, Methods, Settings, config, service_and_method};
use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::telemetry::scrape::{Sample, scrape};
use crate::telemetry::stats::StatsStore;
use crate::telemetry::stream_info::StreamInfo;

fn info() -> StreamInfo {
    let mut info = crate::fixtures::local_stream();
    let now = Instant::now();
    info.upstream.last_tx = Some(now);
    info.upstream.last_rx = Some(now + Duration::from_millis(12));
    info
}

fn head(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut head = HeaderMap::new();
    pairs.iter().for_each(|(name, value)| head.append(name.as_bytes(), value.as_bytes()));
    head
}

/// Two messages, of 2 bytes and of 1.
const TWO: &[u8] = b"\0\0\0\0\x02ab\0\0\0\0\x01c";

fn settings(methods: Methods) -> Settings {
    Settings { methods, emit_filter_state: true, upstream_stats: true, replace_dots: false }
}

/// Shows the stats of a call with two messages each way.
fn check(
    settings: Settings,
    path: &str,
    response: &[(&str, &str)],
    trailers: Option<&[(&str, &str)]>,
    expected: &Expect,
) {
    let store = StatsStore::default();
    let (thread, mut info) = (store.thread(), info());
    let mut call = Call::new(Arc::new(settings));
    call.request(&head(&[(":path", path)]), Some("up"));
    call.request_data(&TWO[..6], &mut info, &thread);
    call.request_data(&TWO[6..], &mut info, &thread);
    call.response(&head(response), trailers.is_none(), &thread);
    if let Some(trailers) = trailers {
        call.response_data(TWO, &mut info, &thread);
        call.response_trailers(&head(trailers), &thread);
    }
    call.finish(&info, &thread);
    let mut shown = String::new();
    for stat in scrape(&store, |_| true) {
        let value = match stat.value {
            Sample::Counter(value) | Sample::Gauge(value) => value,
            Sample::Histogram(all) => all.sum,
        };
        shown.push_str(&format!("{}={value} ", stat.name));
    }
    shown.push_str(&info.filter_state.iter().map(|(_, state)| state.text.as_str()).collect::<String>());
    expected.assert_eq(&shown);
}

const GRPC: &[(&str, &str)] = &[(":status", "200"), ("content-type", "application/grpc")];

#[test]
fn calls() {
    let good = Some([("grpc-status", "0")].as_slice());
    check(
        settings(Methods::All),
        "/pkg.Svc/Do?x",
        GRPC,
        good,
        &expect![
            "cluster.up.grpc.pkg.Svc.Do.0=1 cluster.up.grpc.pkg.Svc.Do.request_message_count=2 cluster.up.grpc.pkg.Svc.Do.response_message_count=2 cluster.up.grpc.pkg.Svc.Do.success=1 cluster.up.grpc.pkg.Svc.Do.total=1 cluster.up.grpc.pkg.Svc.Do.upstream_rq_time=12 2,2"
        ],
    );
    // Answered by the head alone.
    let failed = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14")];
    let quiet = Settings {
        upstream_stats: false,
        emit_filter_state: false,
        replace_dots: true,
        methods: Methods::All,
    };
    check(
        quiet,
        "/pkg.Svc/Do",
        &failed,
        None,
        &expect![
            "cluster.up.grpc.pkg_Svc.Do.14=1 cluster.up.grpc.pkg_Svc.Do.failure=1 cluster.up.grpc.pkg_Svc.Do.request_message_count=2 cluster.up.grpc.pkg_Svc.Do.total=1 "
        ],
    );
    // No gRPC in the response.
    check(
        settings(Methods::All),
        "/s/m",
        &[(":status", "503")],
        Some(&[]),
        &expect!["cluster.up.grpc.s.m.request_message_count=2 cluster.up.grpc.s.m.upstream_rq_time=12 2,0"],
    );
    // Not the path of a call: messages are counted for the log only.
    check(settings(Methods::All), "/s/m/more", GRPC, good, &expect!["2,2"]);
    let odd = Some([("grpc-status", "many")].as_slice());
    check(
        settings(Methods::All),
        "/s/m",
        GRPC,
        odd,
        &expect![
            "cluster.up.grpc.s.m.failure=1 cluster.up.grpc.s.m.request_message_count=2 cluster.up.grpc.s.m.response_message_count=2 cluster.up.grpc.s.m.total=1 cluster.up.grpc.s.m.upstream_rq_time=12 2,2"
        ],
    );
}

#[test]
fn listed_methods_only() {
    let listed = || settings(Methods::Listed(vec![("a.S".into(), "M".into())]));
    let good = Some([("grpc-status", "0")].as_slice());
    check(
        listed(),
        "/a.S/M",
        GRPC,
        good,
        &expect![
            "cluster.up.grpc.a.S.M.0=1 cluster.up.grpc.a.S.M.request_message_count=2 cluster.up.grpc.a.S.M.response_message_count=2 cluster.up.grpc.a.S.M.success=1 cluster.up.grpc.a.S.M.total=1 cluster.up.grpc.a.S.M.upstream_rq_time=12 2,2"
        ],
    );
    check(
        listed(),
        "/a.S/N",
        GRPC,
        good,
        &expect![
            "cluster.up.grpc.0=1 cluster.up.grpc.request_message_count=2 cluster.up.grpc.response_message_count=2 cluster.up.grpc.success=1 cluster.up.grpc.total=1 cluster.up.grpc.upstream_rq_time=12 2,2"
        ],
    );
}

#[test]
fn paths() {
    assert_eq!(service_and_method(b"/a.S/M"), Some(("a.S", "M")));
    assert_eq!(service_and_method(b"//a.S//M/?q=/x/y"), Some(("a.S", "M")));
    assert_eq!(service_and_method(b"/a.S"), None);
    assert_eq!(service_and_method(b"/a/b/c"), None);
    assert_eq!(service_and_method(b"/a/\xff"), None);
}

#[test]
fn messages_are_counted_however_they_are_cut() {
    let mut body = TWO.to_vec();
    body.extend_from_slice(b"\x01\0\0\x01\0");
    body.extend_from_slice(&[b'x'; 256]);
    body.extend_from_slice(b"\0\0\0\0\0");
    for size in [1, 2, 3, 5, 7, 64, body.len()] {
        let mut frames = Frames::default();
        let counted: u64 = body.chunks(size).map(|piece| frames.inspect(piece)).sum();
        assert_eq!((counted, frames.count), (4, 4), "in pieces of {size}");
    }
    let mut frames = Frames::default();
    assert_eq!(frames.inspect(b"\0\0\0\0\0{\"no\": \"grpc\"}"), 1);
    assert_eq!(frames.inspect(TWO), 0);
}

#[test]
fn lowering() {
    use proto::filter_config::PerMethodStatSpecifier as Specifier;
    let lower = |specifier| {
        let proto = proto::FilterConfig { per_method_stat_specifier: specifier, ..Default::default() };
        let any = Any::from_msg(&proto).unwrap();
        match Lower::resource(|at| config::lower(&any, at)) {
            Ok(config) => format!("{config:?}"),
            Err(rejected) => rejected.to_string(),
        }
    };
    let service = |name: &str, methods: &[&str]| core::grpc_method_list::Service {
        name: name.into(),
        method_names: methods.iter().map(|method| (*method).to_owned()).collect(),
    };
    let list = |services| Some(Specifier::IndividualMethodStatsAllowlist(core::GrpcMethodList { services }));
    expect!["GrpcStats(Settings { methods: Listed([]), emit_filter_state: false, upstream_stats: false, replace_dots: false })"].assert_eq(&lower(None));
    expect!["GrpcStats(Settings { methods: All, emit_filter_state: false, upstream_stats: false, replace_dots: false })"].assert_eq(&lower(Some(Specifier::StatsForAllMethods(true))));
    expect![[r#"GrpcStats(Settings { methods: Listed([("s", "a"), ("s", "b"), ("t", "c")]), emit_filter_state: false, upstream_stats: false, replace_dots: false })"#]].assert_eq(&lower(list(vec![service("s", &["a", "b"]), service("t", &["c"])])));
    expect!["individual_method_stats_allowlist.services[0].name: value length must be at least 1 characters; individual_method_stats_allowlist.services[0].method_names: value must contain at least 1 item(s)"].assert_eq(&lower(list(vec![service("", &[])])));
}
