use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::route::v3 as route;
use leno_api::proto::envoy::extensions::filters::common::fault::v3 as common;
use leno_api::proto::envoy::extensions::filters::http::fault::v3 as proto;
use leno_api::proto::envoy::r#type::v3::FractionalPercent;
use prost_types::Any;
use tokio::time::Instant;

use super::pace::Pace;
use super::{Fault, FaultSettings, FaultStats, Injecting, Scope, config};
use crate::config::lower::Lower;
use crate::config::runtime::Runtime;
use crate::fixtures::local_stream;
use crate::http::filters::{Outcome, Step};
use crate::http::headers::HeaderMap;
use crate::telemetry::scrape::{Sample, scrape};
use crate::telemetry::stats::StatsStore;
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};

use common::fault_delay::{FaultDelaySecifier, HeaderDelay};
use common::fault_rate_limit::{FixedLimit, HeaderLimit, LimitType};
use proto::fault_abort::{ErrorType, HeaderAbort};

fn percent(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}

fn delay(specifier: FaultDelaySecifier, share: u32) -> Option<common::FaultDelay> {
    Some(common::FaultDelay { percentage: percent(share), fault_delay_secifier: Some(specifier) })
}

fn fixed(millis: i32) -> FaultDelaySecifier {
    FaultDelaySecifier::FixedDelay(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 })
}

fn abort(error: ErrorType, share: u32) -> Option<proto::FaultAbort> {
    Some(proto::FaultAbort {
        percentage: percent(share),
        error_type: Some(error),
        response_body: String::new(),
    })
}

fn rate(limit: LimitType) -> Option<common::FaultRateLimit> {
    Some(common::FaultRateLimit { percentage: percent(100), limit_type: Some(limit) })
}

fn lower(fault: &proto::HttpFault, runtime: serde_json::Value) -> Result<Arc<Fault>, String> {
    let any = Any::from_msg(fault).unwrap();
    let mut layers = Runtime::default();
    layers.add_layer(runtime);
    let mut at = Lower::default();
    at.scope_mut().runtime = Arc::new(layers);
    let lowered = config::lower_route(&any, &mut at);
    let settings: Arc<FaultSettings> =
        at.finish(lowered).map_err(|rejected| rejected.to_string())?.downcast().unwrap();
    Ok(Arc::clone(&settings.0))
}

/// Non-zero stats without `http.in.fault.`.
fn stats(store: &StatsStore) -> String {
    let shown = scrape(store, |_| true).into_iter().filter_map(|stat| match stat.value {
        Sample::Counter(value) | Sample::Gauge(value) if value > 0 => {
            Some(format!(" {}={value}", stat.name.trim_start_matches("http.in.fault.")))
        }
        _ => None,
    });
    shown.collect()
}

fn flags(info: &StreamInfo) -> String {
    let set = ResponseFlags::ALL.iter().filter(|(flag, ..)| info.flags.intersects(*flag));
    set.map(|(_, short, _)| *short).collect::<Vec<_>>().join(",")
}

/// What a request leads to if all random numbers are this one.
fn begin(
    filter: &mut Injecting,
    head: &HeaderMap,
    info: &mut StreamInfo,
    scope: &Scope<'_>,
    random: u64,
) -> Step {
    let fault = Arc::clone(&filter.fault);
    match fault.decide(head, &mut || random) {
        Some(decided) => filter.begin(decided, head, info, scope),
        None => Step::Continue,
    }
}

/// Shows what becomes of a request whose random numbers are all 50: waiting, answer, stats
/// while the stream lives.
async fn run(fault: Arc<Fault>, request: &[(&str, &str)]) -> String {
    let mut head = HeaderMap::new();
    for (name, value) in request {
        head.append(name.as_bytes(), value.as_bytes());
    }
    let store = StatsStore::default();
    let (thread, mut info) = (store.thread(), local_stream());
    let stats_of_filter = FaultStats::kept(&thread, "http.in.fault.");
    let scope = Scope { thread: &thread, stats: &stats_of_filter, name: "envoy.filters.http.fault" };
    let mut filter = Injecting::new(fault, Arc::default());
    let begun = Instant::now();
    let outcome = match begin(&mut filter, &head, &mut info, &scope, 50) {
        Step::Continue | Step::Hold => Outcome::Continue,
        Step::Reply(reply) => Outcome::Reply(reply),
        Step::Await(step) | Step::AwaitBuffering(step) => step.await,
    };
    let mut shown = match begun.elapsed() {
        Duration::ZERO => String::new(),
        waited => format!("{} ms, ", waited.as_millis()),
    };
    match outcome {
        Outcome::Continue | Outcome::Again => shown.push_str("goes on"),
        Outcome::Reply(reply) => {
            info.flags.insert(reply.flags);
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            shown.push_str(&format!("{} {:?} {} '{body}'", reply.status, reply.grpc_status, reply.details));
        }
    }
    shown.push_str(&format!(" [{}]{}", flags(&info), stats(&store)));
    for (namespace, values) in info.metadata.iter() {
        shown.push_str(&format!(" {namespace}={}", serde_json::Value::Object(values.clone())));
    }
    drop(filter);
    assert!(!stats(&store).contains("active_faults"), "a fault stays active behind its stream");
    shown
}

async fn check(fault: proto::HttpFault, request: &[(&str, &str)], expected: Expect) {
    expected.assert_eq(&run(lower(&fault, serde_json::json!({})).unwrap(), request).await);
}

fn with_delay(specifier: FaultDelaySecifier, share: u32) -> proto::HttpFault {
    proto::HttpFault { delay: delay(specifier, share), ..Default::default() }
}

fn with_abort(error: ErrorType, share: u32) -> proto::HttpFault {
    proto::HttpFault { abort: abort(error, share), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn delays() {
    check(with_delay(fixed(200), 51), &[], expect!["200 ms, goes on [DI] delays_injected=1"]).await;
    check(with_delay(fixed(200), 50), &[], expect!["goes on []"]).await;
    let by_header = || with_delay(FaultDelaySecifier::HeaderDelay(HeaderDelay {}), 100);
    check(by_header(), &[], expect!["goes on []"]).await;
    check(
        by_header(),
        &[("x-envoy-fault-delay-request", "150")],
        expect!["150 ms, goes on [DI] delays_injected=1"],
    )
    .await;
    check(by_header(), &[("x-envoy-fault-delay-request", "0")], expect!["goes on []"]).await;
    check(by_header(), &[("x-envoy-fault-delay-request", "soon")], expect!["goes on []"]).await;
    let less = [("x-envoy-fault-delay-request", "150"), ("x-envoy-fault-delay-request-percentage", "0")];
    check(by_header(), &less, expect!["goes on []"]).await;
    // Fixed delays do not listen to headers.
    check(with_delay(fixed(200), 100), &less, expect!["200 ms, goes on [DI] delays_injected=1"]).await;
}

#[tokio::test(start_paused = true)]
async fn aborts() {
    check(
        with_abort(ErrorType::HttpStatus(418), 51),
        &[],
        expect!["418 None fault_filter_abort 'fault filter abort' [FI] aborts_injected=1 active_faults=1"],
    )
    .await;
    check(with_abort(ErrorType::HttpStatus(418), 50), &[], expect!["goes on []"]).await;
    check(
        with_abort(ErrorType::GrpcStatus(14), 100),
        &[],
        expect![
            "200 Some(14) fault_filter_abort 'fault filter abort' [FI] aborts_injected=1 active_faults=1"
        ],
    )
    .await;
    let by_header = || with_abort(ErrorType::HeaderAbort(HeaderAbort {}), 100);
    check(by_header(), &[], expect!["goes on []"]).await;
    let both = [("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-grpc-request", "5")];
    check(
        by_header(),
        &both,
        expect!["503 None fault_filter_abort 'fault filter abort' [FI] aborts_injected=1 active_faults=1"],
    )
    .await;
    check(
        by_header(),
        &both[1..],
        expect!["200 Some(5) fault_filter_abort 'fault filter abort' [FI] aborts_injected=1 active_faults=1"],
    )
    .await;
    check(by_header(), &[("x-envoy-fault-abort-request", "199")], expect!["goes on []"]).await;
    let body = Some(proto::FaultAbort {
        response_body: "tea".into(),
        ..abort(ErrorType::HttpStatus(418), 100).unwrap()
    });
    check(
        proto::HttpFault { abort: body, ..Default::default() },
        &[],
        expect!["418 None fault_filter_abort 'tea' [FI] aborts_injected=1 active_faults=1"],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn together() {
    let fields =
        [("a".to_owned(), prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) })];
    let fault = || proto::HttpFault {
        delay: delay(fixed(100), 100),
        abort: abort(ErrorType::HttpStatus(500), 100),
        filter_metadata: Some(prost_types::Struct { fields: fields.clone().into() }),
        ..Default::default()
    };
    check(fault(), &[], expect![[r#"100 ms, 500 None fault_filter_abort 'fault filter abort' [DI,FI] aborts_injected=1 active_faults=1 delays_injected=1 envoy.filters.http.fault={"a":1}"#]]).await;
    let from = [("x-envoy-downstream-service-cluster", "web")];
    check(fault(), &from, expect![[r#"100 ms, 500 None fault_filter_abort 'fault filter abort' [DI,FI] aborts_injected=1 active_faults=1 delays_injected=1 web.aborts_injected=1 web.delays_injected=1 envoy.filters.http.fault={"a":1}"#]]).await;
    let quiet = proto::HttpFault { disable_downstream_cluster_stats: true, ..with_delay(fixed(1), 100) };
    check(quiet, &from, expect!["1 ms, goes on [DI] delays_injected=1"]).await;
    let none = proto::HttpFault { max_active_faults: Some(0), ..fault() };
    check(none, &[], expect!["goes on [] faults_overflow=2"]).await;
    // A limited rate keeps the fault active behind the delay.
    let slow = proto::HttpFault {
        response_rate_limit: rate(LimitType::FixedLimit(FixedLimit { limit_kbps: 10 })),
        ..with_delay(fixed(1), 100)
    };
    check(slow, &[], expect!["1 ms, goes on [DI] active_faults=1 delays_injected=1 response_rl_injected=1"])
        .await;
}

#[tokio::test(start_paused = true)]
async fn only_some_requests() {
    let matcher = route::HeaderMatcher { name: "x-fail".into(), ..Default::default() };
    let fault = || proto::HttpFault {
        headers: vec![matcher.clone()],
        downstream_nodes: vec!["n1".into(), "n2".into()],
        ..with_abort(ErrorType::HttpStatus(500), 100)
    };
    check(
        fault(),
        &[("x-fail", "1"), ("x-envoy-downstream-service-node", "n2")],
        expect!["500 None fault_filter_abort 'fault filter abort' [FI] aborts_injected=1 active_faults=1"],
    )
    .await;
    check(fault(), &[("x-fail", "1"), ("x-envoy-downstream-service-node", "n3")], expect!["goes on []"])
        .await;
    check(fault(), &[("x-fail", "1")], expect!["goes on []"]).await;
    check(fault(), &[("x-envoy-downstream-service-node", "n1")], expect!["goes on []"]).await;
}

#[tokio::test(start_paused = true)]
async fn runtime() {
    let fault = proto::HttpFault {
        delay: delay(fixed(100), 100),
        abort: abort(ErrorType::HttpStatus(500), 0),
        delay_percent_runtime: "my.delay".into(),
        ..Default::default()
    };
    let layer = serde_json::json!({
        "my.delay": 0,
        "fault.http.abort.abort_percent": 100,
        "fault.http.abort.http_status": 429,
        "fault.http.web.delay.fixed_delay_percent": 100,
        "fault.http.web.delay.fixed_duration_ms": 7,
    });
    let lowered = lower(&fault, layer).unwrap();
    let shown = run(Arc::clone(&lowered), &[]).await;
    expect!["429 None fault_filter_abort 'fault filter abort' [FI] aborts_injected=1 active_faults=1"]
        .assert_eq(&shown);
    // Keys of the downstream cluster take the place of the general ones.
    let shown = run(lowered, &[("x-envoy-downstream-service-cluster", "web")]).await;
    expect!["7 ms, goes on [DI] delays_injected=1 web.delays_injected=1"].assert_eq(&shown);
    let fault = proto::HttpFault { max_active_faults: Some(5), ..Default::default() };
    assert_eq!(lower(&fault, serde_json::json!({"fault.http.max_active_faults": 3})).unwrap().max_active, 3);
}

#[tokio::test(start_paused = true)]
async fn active_faults_are_limited_over_streams() {
    let fault =
        proto::HttpFault { max_active_faults: Some(1), ..with_abort(ErrorType::HttpStatus(500), 100) };
    let (fault, in_all) = (lower(&fault, serde_json::json!({})).unwrap(), Arc::default());
    let store = StatsStore::default();
    let thread = store.thread();
    let stats_of_filter = FaultStats::kept(&thread, "http.in.fault.");
    let scope = Scope { thread: &thread, stats: &stats_of_filter, name: "envoy.filters.http.fault" };
    let mut info = local_stream();
    let mut filters = [(); 2].map(|()| Injecting::new(Arc::clone(&fault), Arc::clone(&in_all)));
    let hit = filters
        .each_mut()
        .map(|filter| matches!(begin(filter, &HeaderMap::new(), &mut info, &scope, 0), Step::Reply(_)));
    assert_eq!(hit, [true, false]);
    drop(filters);
    let mut next = Injecting::new(fault, in_all);
    assert!(matches!(begin(&mut next, &HeaderMap::new(), &mut info, &scope, 0), Step::Reply(_)));
    assert_eq!(stats(&store), " aborts_injected=2 active_faults=1 faults_overflow=1");
}

#[tokio::test(start_paused = true)]
async fn rates() {
    let limited = |limit, head: &[(&str, &str)]| {
        let fault = proto::HttpFault { response_rate_limit: rate(limit), ..Default::default() };
        let mut map = HeaderMap::new();
        head.iter().for_each(|(name, value)| map.append(name.as_bytes(), value.as_bytes()));
        let fault = lower(&fault, serde_json::json!({})).unwrap();
        fault.rate_limit.as_ref().and_then(|limit| limit.decide(&map, &mut || 0))
    };
    assert_eq!(limited(LimitType::FixedLimit(FixedLimit { limit_kbps: 10 }), &[]), Some(10));
    let by_header = LimitType::HeaderLimit(HeaderLimit {});
    assert_eq!(limited(by_header, &[("x-envoy-fault-throughput-response", "7")]), Some(7));
    assert_eq!(limited(by_header, &[("x-envoy-fault-throughput-response", "0")]), None);
    assert_eq!(limited(by_header, &[]), None);

    let begun = Instant::now();
    let mut pace = Pace::new(10, begun);
    let mut due = |bytes, at: Duration| {
        let due = pace.pass(bytes, begun + at).map(|due| due - begun);
        due.map_or(0, |due| due.as_millis())
    };
    // 512 bytes each 50 ms, the first at once.
    assert_eq!(due(512, Duration::ZERO), 0);
    assert_eq!(due(0, Duration::ZERO), 0);
    assert_eq!(due(512, Duration::ZERO), 50);
    assert_eq!(due(513, Duration::from_millis(50)), 150);
    // No more than a second is saved up: 20 ticks at once, then one by one.
    assert_eq!(due(20 * 512, Duration::from_secs(60)), 0);
    assert_eq!(due(1, Duration::from_secs(60)), 60_050);
}

#[test]
fn refused() {
    let refuse = |fault: &proto::HttpFault| lower(fault, serde_json::json!({})).map(drop).unwrap_err();
    let empty = proto::HttpFault {
        delay: Some(common::FaultDelay::default()),
        abort: Some(proto::FaultAbort::default()),
        response_rate_limit: Some(common::FaultRateLimit::default()),
        ..Default::default()
    };
    expect!["delay.fault_delay_secifier: value is required; abort.error_type: value is required; response_rate_limit.limit_type: value is required"].assert_eq(&refuse(&empty));
    let odd = proto::HttpFault {
        delay: delay(fixed(0), 100),
        abort: Some(proto::FaultAbort {
            percentage: Some(FractionalPercent { numerator: 1, denominator: 9 }),
            ..abort(ErrorType::HttpStatus(600), 1).unwrap()
        }),
        response_rate_limit: rate(LimitType::FixedLimit(FixedLimit { limit_kbps: 0 })),
        ..Default::default()
    };
    expect!["delay.fixed_delay: value must be greater than 0s; abort.http_status: value must be inside range [200, 600); abort.percentage.denominator: value must be one of the defined enum values; response_rate_limit.fixed_limit.limit_kbps: value must be greater than or equal to 1"].assert_eq(&refuse(&odd));
}
