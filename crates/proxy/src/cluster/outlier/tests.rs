//! Verdicts on scripted hosts; time is what the script says.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use expect_test::{Expect, expect};
use leno_api::proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use leno_base::rng::Rng;

use super::judge::{Action, Judge, OutlierStats, Verdict};
use super::{Report, watch};
use crate::cluster::{Assignment, Cluster, Discovery, EndpointAddress};
use crate::config::lower::Lower;
use crate::telemetry::stats::StatsStore;

/// A cluster with this outlier detection and this many hosts, the ports being 0, 1, 2...
fn cluster(detection: &str, hosts: u16) -> Result<Cluster, String> {
    let host = |port| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}}}")
    };
    let hosts: Vec<String> = (0..hosts).map(host).collect();
    let text = format!(
        "name: c\nconnect_timeout: 1s\noutlier_detection: {detection}\nload_assignment: {{cluster_name: c, endpoints: \
         [{{lb_endpoints: [{}]}}]}}\n",
        hosts.join(", ")
    );
    let proto: ClusterProto = leno_api::decode_text(&text, "cluster").map_err(|errors| errors.to_string())?;
    let lowered = Lower::resource(|at| crate::cluster::config::lower_proto(proto, bytes::Bytes::new(), at));
    lowered.map_err(|why| why.to_string())
}

fn address(port: u16) -> EndpointAddress {
    EndpointAddress::Ip(([10, 0, 0, 1], port).into())
}

/// Plays a script, and says what came of it. Its words are `HOSTS:REPORTxTIMES` (hosts `0` or
/// `1-4`; a report is a status, `connected`, `session`, `failed` or `late`), `+N`: N seconds
/// later an interval ends, and `hosts=N`: from now on there are so many.
fn play(detection: &str, hosts: u16, script: &str) -> String {
    let cluster = cluster(detection, hosts).unwrap_or_else(|why| panic!("{why}"));
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("a static cluster") };
    let detector = cluster.outlier.as_ref().expect("a detector");
    detector.follow(assignment);
    let mut inbox = detector.inbox.lock().unwrap().take().expect("nobody else listens");
    let store = StatsStore::default();
    let stats = OutlierStats::new(&store.thread(), "");
    let mut judge = Judge::new(Arc::clone(detector), stats.clone(), Rng::new(1));
    let start = Instant::now();
    let mut now = start;
    let mut out = String::new();
    for word in script.split_whitespace() {
        let mut verdicts: Vec<Verdict> = Vec::new();
        if let Some(seconds) = word.strip_prefix('+') {
            now += Duration::from_secs(seconds.parse().expect("seconds"));
            verdicts = judge.interval(now);
        } else if let Some(count) = word.strip_prefix("hosts=") {
            let mut fewer: Assignment = (**assignment).clone();
            fewer.localities[0].endpoints.truncate(count.parse().expect("a number"));
            detector.follow(&fewer);
        } else {
            let (hosts, report) = word.split_once(':').expect("HOSTS:REPORTxTIMES");
            let (report, times) = report.split_once('x').unwrap_or((report, "1"));
            let (first, last) = hosts.split_once('-').unwrap_or((hosts, hosts));
            if report == "degraded" {
                let host = detector.watched(&address(first.parse().expect("a host"))).expect("a host");
                host.note_degraded();
                while let Ok(notice) = inbox.try_recv() {
                    for verdict in judge.notice(&notice, now) {
                        writeln!(
                            out,
                            "{} s: {} {:?}",
                            now.duration_since(start).as_secs(),
                            verdict.address,
                            verdict.action
                        )
                        .unwrap();
                    }
                }
                continue;
            }
            let report = match report {
                "connected" => Report::Connected,
                "session" => Report::ConnectedForGood,
                "failed" => Report::Failed,
                "late" => Report::TimedOut,
                status => Report::Answered(status.parse().expect("a status")),
            };
            for port in first.parse().expect("a host")..=last.parse::<u16>().expect("a host") {
                let host = detector.watched(&address(port)).expect("a host");
                (0..times.parse().expect("times")).for_each(|_: u32| host.report(report));
            }
        }
        while let Ok(notice) = inbox.try_recv() {
            verdicts.extend(judge.notice(&notice, now));
        }
        for verdict in verdicts {
            if let Action::Degrade(_) = verdict.action {
                writeln!(
                    out,
                    "{} s: {} {:?}",
                    now.duration_since(start).as_secs(),
                    verdict.address,
                    verdict.action
                )
                .unwrap();
                continue;
            }
            let event = watch::event("c", &verdict, UNIX_EPOCH);
            let text = |field: &str| {
                event.get(field).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
            };
            let kind = if text("action") == "EJECT" { format!(" {}", text("type")) } else { String::new() };
            let enforced =
                if event["enforced"] == true || text("action") == "UNEJECT" { "" } else { " (not enforced)" };
            let at = now.duration_since(start).as_secs();
            writeln!(out, "{at} s: {} {}{kind}{enforced}", text("upstream_url"), text("action")).unwrap();
        }
    }
    for (index, (name, _)) in OutlierStats::SCHEMA.0.iter().enumerate() {
        let value = stats.block().cell(index).value();
        if value > 0 {
            writeln!(out, "{name}: {value}").unwrap();
        }
    }
    out
}

fn check(detection: &str, hosts: u16, script: &str, expected: &Expect) {
    expected.assert_eq(&play(detection, hosts, script));
}

#[test]
fn consecutive_errors() {
    check("{max_ejection_percent: 50}", 2, "0:500x4 0:200 0:500x4", &expect![[""]]);
    check(
        "{max_ejection_percent: 50}",
        2,
        "0:500x5",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_total: 1
    "#]],
    );
    check(
        "{consecutive_5xx: 2, max_ejection_percent: 50}",
        2,
        "0:404x9 0:failed 0:late",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_total: 1
    "#]],
    );
    let gateway = "{max_ejection_percent: 100, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100}";
    check(
        gateway,
        3,
        "0:502 0:500 0:503 1:504x2",
        &expect![[r#"
        0 s: 10.0.0.1:1 EJECT CONSECUTIVE_GATEWAY_FAILURE
        ejections_active: 1
        ejections_detected_consecutive_gateway_failure: 1
        ejections_enforced_consecutive_gateway_failure: 1
        ejections_enforced_total: 1
    "#]],
    );
    check(
        "{max_ejection_percent: 100}",
        2,
        "0:503x5",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_GATEWAY_FAILURE (not enforced)
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_detected_consecutive_gateway_failure: 1
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_total: 1
    "#]],
    );
    check(
        "{max_ejection_percent: 100, enforcing_consecutive_5xx: 0}",
        2,
        "0:500x10",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX (not enforced)
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_total: 1
    "#]],
    );
}

#[test]
fn local_origin_is_apart_if_split() {
    let split = "{split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, max_ejection_percent: 100}";
    check(
        split,
        2,
        "0:failed 0:connected 0:late 0:500x4 1:failed 1:late",
        &expect![[r#"
        0 s: 10.0.0.1:1 EJECT CONSECUTIVE_LOCAL_ORIGIN_FAILURE
        ejections_active: 1
        ejections_detected_consecutive_local_origin_failure: 1
        ejections_enforced_consecutive_local_origin_failure: 1
        ejections_enforced_total: 1
    "#]],
    );
    check(
        "{max_ejection_percent: 100}",
        2,
        "0:failedx4 0:connected 0:failed 1:failedx4 1:session 1:failed",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_GATEWAY_FAILURE (not enforced)
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_detected_consecutive_gateway_failure: 1
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_total: 1
    "#]],
    );
}

#[test]
fn so_many_at_most() {
    check(
        "{}",
        2,
        "0:500x5",
        &expect![[r#"
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_overflow: 1
    "#]],
    );
    check(
        "{}",
        10,
        "0:500x5 1:500x5",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 2
        ejections_detected_consecutive_5xx: 2
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_overflow: 1
        ejections_total: 1
    "#]],
    );
    check(
        "{always_eject_one_host: true}",
        2,
        "0:500x5 1:500x5",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 2
        ejections_detected_consecutive_5xx: 2
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_overflow: 1
        ejections_total: 1
    "#]],
    );
    check(
        "{max_ejection_percent: 0}",
        1,
        "0:500x5",
        &expect![[r#"
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_overflow: 1
    "#]],
    );
}

#[test]
fn ejections_end_and_grow() {
    let half = "{max_ejection_percent: 50}";
    check(
        half,
        2,
        "0:500x5 +10 +10 +9 +1 0:500x5 +30 +20 +10",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        30 s: 10.0.0.1:0 UNEJECT
        30 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        90 s: 10.0.0.1:0 UNEJECT
        ejections_consecutive_5xx: 2
        ejections_detected_consecutive_5xx: 2
        ejections_enforced_consecutive_5xx: 2
        ejections_enforced_total: 2
        ejections_total: 2
    "#]],
    );
    // A good interval takes one off the multiplier.
    check(
        half,
        2,
        "0:500x5 +30 +10 0:500x5 +30",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        30 s: 10.0.0.1:0 UNEJECT
        40 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        70 s: 10.0.0.1:0 UNEJECT
        ejections_consecutive_5xx: 2
        ejections_detected_consecutive_5xx: 2
        ejections_enforced_consecutive_5xx: 2
        ejections_enforced_total: 2
        ejections_total: 2
    "#]],
    );
    let short = "{max_ejection_percent: 50, base_ejection_time: 10s, max_ejection_time: 15s}";
    check(
        short,
        2,
        "0:500x5 +10 0:500x5 +15 0:500x5 +15",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        10 s: 10.0.0.1:0 UNEJECT
        10 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        25 s: 10.0.0.1:0 UNEJECT
        25 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        40 s: 10.0.0.1:0 UNEJECT
        ejections_consecutive_5xx: 3
        ejections_detected_consecutive_5xx: 3
        ejections_enforced_consecutive_5xx: 3
        ejections_enforced_total: 3
        ejections_total: 3
    "#]],
    );
    // Streaks begin anew after an ejection.
    check(
        half,
        2,
        "0:500x9 +30 0:500x4",
        &expect![[r#"
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        30 s: 10.0.0.1:0 UNEJECT
        ejections_consecutive_5xx: 1
        ejections_detected_consecutive_5xx: 1
        ejections_enforced_consecutive_5xx: 1
        ejections_enforced_total: 1
        ejections_total: 1
    "#]],
    );
}

#[test]
fn hosts_that_leave_are_not_ejected_any_more() {
    check(
        "{max_ejection_percent: 50}",
        3,
        "2:500x5 hosts=2 0:500x5",
        &expect![[r#"
        0 s: 10.0.0.1:2 EJECT CONSECUTIVE_5XX
        0 s: 10.0.0.1:0 EJECT CONSECUTIVE_5XX
        ejections_active: 1
        ejections_consecutive_5xx: 2
        ejections_detected_consecutive_5xx: 2
        ejections_enforced_consecutive_5xx: 2
        ejections_enforced_total: 2
        ejections_total: 2
    "#]],
    );
}

#[test]
fn success_rates() {
    let odd = "{max_ejection_percent: 50, consecutive_5xx: 1000, success_rate_stdev_factor: 1000}";
    // 0 of 100 against 100 of 100: the mean is 80, one deviation is 40.
    check(
        odd,
        5,
        "1-4:200x100 0:500x100 +10",
        &expect![[r#"
        10 s: 10.0.0.1:0 EJECT SUCCESS_RATE
        ejections_active: 1
        ejections_detected_failure_percentage: 1
        ejections_detected_success_rate: 1
        ejections_enforced_success_rate: 1
        ejections_enforced_total: 1
        ejections_success_rate: 1
        ejections_total: 1
    "#]],
    );
    // One of four is never more than 1.73 deviations away, which the default factor allows for.
    let four = "max_ejection_percent: 50, consecutive_5xx: 1000, success_rate_minimum_hosts: 4";
    check(&format!("{{{four}}}"), 4, "1-3:200x100 0:500x100 +10", &expect![[""]]);
    check(
        &format!("{{{four}, success_rate_stdev_factor: 1700}}"),
        4,
        "1-3:200x100 0:500x100 +10",
        &expect![[r#"
            10 s: 10.0.0.1:0 EJECT SUCCESS_RATE
            ejections_active: 1
            ejections_detected_success_rate: 1
            ejections_enforced_success_rate: 1
            ejections_enforced_total: 1
            ejections_success_rate: 1
            ejections_total: 1
        "#]],
    );
    // Too few answers, too few hosts, another interval.
    check(
        odd,
        5,
        "1-4:200x100 0:500x99 +10",
        &expect![[r#"
        10 s: 10.0.0.1:0 EJECT FAILURE_PERCENTAGE (not enforced)
        ejections_detected_failure_percentage: 1
    "#]],
    );
    check(odd, 4, "1-3:200x100 0:500x100 +10", &expect![[""]]);
    check(
        odd,
        5,
        "1-4:200x100 0:500x60 +10 1-4:200x100 0:500x60 +10",
        &expect![[r#"
        10 s: 10.0.0.1:0 EJECT FAILURE_PERCENTAGE (not enforced)
        20 s: 10.0.0.1:0 EJECT FAILURE_PERCENTAGE (not enforced)
        ejections_detected_failure_percentage: 2
    "#]],
    );
    let local = "{split_external_local_origin_errors: true, consecutive_local_origin_failure: 1000, \
                 max_ejection_percent: 50, success_rate_stdev_factor: 1000}";
    check(
        local,
        5,
        "1-4:connectedx100 0:failedx100 +10",
        &expect![[r#"
        10 s: 10.0.0.1:0 EJECT SUCCESS_RATE_LOCAL_ORIGIN
        ejections_active: 1
        ejections_detected_local_origin_failure_percentage: 1
        ejections_detected_local_origin_success_rate: 1
        ejections_enforced_local_origin_success_rate: 1
        ejections_enforced_total: 1
        ejections_success_rate: 1
    "#]],
    );
}

#[test]
fn failure_percentages() {
    let some = "{max_ejection_percent: 100, consecutive_5xx: 1000, enforcing_failure_percentage: 100, \
                failure_percentage_minimum_hosts: 1, failure_percentage_threshold: 50}";
    check(
        some,
        2,
        "0:500x25 0:200x25 1:500x24 1:200x26 +10",
        &expect![[r#"
        10 s: 10.0.0.1:0 EJECT FAILURE_PERCENTAGE
        ejections_active: 1
        ejections_detected_failure_percentage: 1
        ejections_enforced_failure_percentage: 1
        ejections_enforced_total: 1
    "#]],
    );
    check(some, 2, "0:500x49 +10", &expect![[""]]);
    check(
        "{max_ejection_percent: 100, consecutive_5xx: 1000}",
        5,
        "0-4:500x50 +10",
        &expect![[r#"
        10 s: 10.0.0.1:0 EJECT FAILURE_PERCENTAGE (not enforced)
        10 s: 10.0.0.1:1 EJECT FAILURE_PERCENTAGE (not enforced)
        10 s: 10.0.0.1:2 EJECT FAILURE_PERCENTAGE (not enforced)
        10 s: 10.0.0.1:3 EJECT FAILURE_PERCENTAGE (not enforced)
        10 s: 10.0.0.1:4 EJECT FAILURE_PERCENTAGE (not enforced)
        ejections_detected_failure_percentage: 5
    "#]],
    );
}

#[test]
fn rates_are_shown() {
    let cluster =
        cluster("{max_ejection_percent: 50, success_rate_request_volume: 1}", 5).expect("a cluster");
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("a static cluster") };
    let detector = cluster.outlier.as_ref().expect("a detector");
    detector.follow(assignment);
    let stats = OutlierStats::new(&StatsStore::default().thread(), "");
    let mut judge = Judge::new(Arc::clone(detector), stats, Rng::new(1));
    assert_eq!(detector.averages(), [None; 4]);
    for port in 0..5 {
        let host = detector.watched(&address(port)).expect("a host");
        host.report(Report::Answered(if port == 0 { 500 } else { 200 }));
    }
    judge.interval(Instant::now());
    assert_eq!(detector.averages(), [Some(80.0), Some(80.0 - 1.9 * 40.0), None, None]);
    let rates = |port| detector.monitor(&address(port)).expect("a host").success_rates();
    assert_eq!((rates(0), rates(1)), ([Some(0.0), None], [Some(100.0), None]));
    judge.interval(Instant::now());
    assert_eq!((rates(0), detector.averages()), ([None; 2], [None; 4]));
}

#[test]
fn events_are_logged_as_envoy_does() {
    let cluster = cluster("{max_ejection_percent: 100}", 1).expect("a cluster");
    let Discovery::Static(assignment) = &cluster.discovery else { panic!("a static cluster") };
    let detector = cluster.outlier.as_ref().expect("a detector");
    detector.follow(assignment);
    let mut inbox = detector.inbox.lock().unwrap().take().expect("nobody else listens");
    let stats = OutlierStats::new(&StatsStore::default().thread(), "");
    let mut judge = Judge::new(Arc::clone(detector), stats, Rng::new(1));
    let host = detector.watched(&address(7));
    assert!(host.is_none(), "no such host");
    let host = detector.watched(&address(0)).expect("a host");
    (0..5).for_each(|_| host.report(Report::Answered(500)));
    let now = Instant::now();
    let notice = inbox.try_recv().expect("a notice");
    let mut lines = String::new();
    let later = now + Duration::from_secs(31);
    for verdict in judge.notice(&notice, now).into_iter().chain(judge.interval(later)) {
        writeln!(lines, "{}", watch::event("c", &verdict, UNIX_EPOCH)).unwrap();
    }
    expect![[r#"
        {"type":"CONSECUTIVE_5XX","timestamp":"1970-01-01T00:00:00.000Z","cluster_name":"c","upstream_url":"10.0.0.1:0","action":"EJECT","num_ejections":1,"enforced":true,"eject_consecutive_event":{}}
        {"type":"CONSECUTIVE_5XX","timestamp":"1970-01-01T00:00:00.000Z","secs_since_last_action":"31","cluster_name":"c","upstream_url":"10.0.0.1:0","action":"UNEJECT","num_ejections":1,"enforced":false}
    "#]].assert_eq(&lines);
}

#[test]
fn grpc_statuses_stand_for_http_ones() {
    for (grpc, http) in [("0", 200), ("4", 504), ("12", 501), ("14", 503), ("13", 500), ("x", 500)] {
        assert_eq!(super::http_status(grpc), http, "{grpc}");
    }
}

#[test]
fn what_is_refused() {
    let refused = |detection: &str| cluster(detection, 1).err().unwrap_or_default();
    expect![
        "outlier_detection: outlier detector's max_ejection_time cannot be smaller than base_ejection_time"
    ]
    .assert_eq(&refused("{base_ejection_time: 10s, max_ejection_time: 9s}"));
    expect!["outlier_detection.monitors: not supported yet"].assert_eq(&refused(
        "{monitors: [{name: m, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}], detect_degraded_hosts: true}",
    ));
    assert_eq!(refused("{base_ejection_time: 400s}"), "", "the longest ejection grows with it");
}

#[test]
fn a_degraded_host_recovers_later_each_time() {
    let detection =
        "{detect_degraded_hosts: true, base_ejection_time: 10s, interval: 5s, max_ejection_time: 25s}";
    let said = play(detection, 2, "0:degraded 0:degraded +5 +5 0:degraded +5 +5 +5 +5 1:degraded");
    expect![[r#"
        0 s: 10.0.0.1:0 Degrade(true)
        10 s: 10.0.0.1:0 Degrade(false)
        10 s: 10.0.0.1:0 Degrade(true)
        30 s: 10.0.0.1:0 Degrade(false)
        30 s: 10.0.0.1:1 Degrade(true)
        ejections_detected_degradation: 3
    "#]]
    .assert_eq(&said);
    assert_eq!(play("{}", 1, "0:degraded +5"), "", "not asked for");
}
