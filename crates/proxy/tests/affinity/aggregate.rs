//! Aggregate clusters: shares over the strung priorities of the members, whatever their health.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Case, Compare, by_key, hashed, locality, merge};

/// What both proxies must have counted alike in the end: answers are the aggregate cluster's,
/// connections and requests the member's.
pub(super) const COUNTS: &[&str] = &[
    "agg-down.upstream_rq_completed",
    "agg-down.upstream_rq_total",
    "agg-down.upstream_cx_total",
    "agg-down.upstream_cx_none_healthy",
    "agg-nobody.upstream_cx_none_healthy",
    "member-alone.upstream_rq_completed",
    "member-alone.upstream_rq_total",
    "member-alone.upstream_cx_total",
    "member-panic.upstream_cx_none_healthy",
];

/// Members, which are asked too, and clusters of them.
pub(super) fn cases(to: &[SocketAddr]) -> Vec<Case> {
    let plain = |count: usize| vec![(String::new(), String::new()); count];
    let case = |name, cluster: Value, endpoints, route: Value, requests, compare| Case {
        name,
        cluster,
        endpoints,
        route,
        requests,
        compare,
    };
    // Endpoints from `first` on, by the letters of their health.
    let healths = |first: usize, healths: &'static str, more: Value| {
        let of = move |index: usize| match healths.as_bytes()[index - first] {
            b'u' => json!({"health_status": "UNHEALTHY"}),
            b'd' => json!({"health_status": "DEGRADED"}),
            _ => json!({}),
        };
        locality(to, "a", first..first + healths.len(), of, &more)
    };
    let member = |name, cluster: Value, endpoints: Vec<Value>| {
        case(name, cluster, json!(endpoints), json!({}), plain(20), Compare::Nothing)
    };
    let aggregate = |name, members: &[&str], more: Value, route: Value, requests, compare| {
        let mut cluster = json!({"lb_policy": "CLUSTER_PROVIDED", "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                "clusters": members,
            },
        }});
        merge(&mut cluster, &more);
        case(name, cluster, Value::Null, route, requests, compare)
    };
    let shares = |name, members: &[&str], more: Value| {
        aggregate(name, members, more, json!({}), plain(1500), Compare::Shares)
    };
    let none = || json!({});
    let by_header = || json!({"hash_policy": [{"header": {"header_name": "x-key"}}]});
    let factor = json!({"load_assignment": {"policy": {"overprovisioning_factor": 100}}});
    let no_panic = json!({"common_lb_config": {"healthy_panic_threshold": {"value": 0}}});
    let ejecting = json!({"outlier_detection": {
        "consecutive_5xx": 1, "base_ejection_time": "60s", "max_ejection_percent": 100,
    }});
    // Nobody listens there.
    let refusing =
        json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}});
    vec![
        member("member-half", none(), vec![healths(0, "hu", none())]),
        member(
            "member-steps",
            none(),
            vec![healths(2, "huu", none()), healths(5, "hh", json!({"priority": 1}))],
        ),
        member(
            "member-late",
            none(),
            vec![healths(2, "uu", json!({"priority": 1})), healths(5, "hu", json!({"priority": 3}))],
        ),
        member("member-factor", factor, vec![healths(7, "huh", none())]),
        member("member-down", none(), vec![healths(10, "uu", none())]),
        member("member-panic", no_panic.clone(), vec![healths(8, "uu", none())]),
        member("member-degraded", none(), vec![healths(0, "hudd", none())]),
        member("member-alone", none(), vec![healths(11, "h", none())]),
        member("member-ejected", ejecting, vec![json!({"lb_endpoints": [&refusing]})]),
        member("member-refusing", none(), vec![json!({"lb_endpoints": [&refusing]})]),
        member(
            "member-ring",
            json!({"lb_policy": "RING_HASH"}),
            vec![healths(0, "hhuh", none()), healths(4, "hh", json!({"priority": 1}))],
        ),
        member("member-weights", json!({"lb_policy": "LEAST_REQUEST"}), vec![healths(0, "hhh", none())]),
        shares("agg-spill", &["member-half", "missing", "member-steps"], none()),
        shares("agg-late", &["member-late", "member-weights"], none()),
        shares("agg-factor", &["member-factor", "member-weights"], none()),
        shares("agg-degraded", &["member-degraded", "member-half"], none()),
        shares("agg-in-panic", &["member-down", "member-panic"], none()),
        shares("agg-partly-panic", &["member-down", "member-steps"], none()),
        shares("agg-nobody", &["member-panic", "missing"], no_panic),
        shares("agg-ejected", &["member-ejected", "member-steps"], none()),
        shares("agg-nested", &["agg-spill"], none()),
        shares("agg-nested-too", &["agg-spill", "member-steps"], none()),
        aggregate("agg-down", &["missing", "member-alone"], none(), none(), plain(30), Compare::Each),
        // Only the second priority of both answers.
        aggregate(
            "agg-retries",
            &["member-refusing", "member-alone"],
            none(),
            json!({"retry_policy": {"retry_on": "connect-failure", "num_retries": 1, "retry_priority": {
                "name": "previous",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                    "update_frequency": 1,
                },
            }}}),
            plain(10),
            Compare::Each,
        ),
        aggregate(
            "agg-ring",
            &["member-ring", "member-half"],
            none(),
            by_header(),
            hashed(&by_key(80)),
            Compare::Each,
        ),
        aggregate(
            "agg-ring-second",
            &["member-half", "member-ring"],
            none(),
            by_header(),
            by_key(1500),
            Compare::Shares,
        ),
    ]
}
