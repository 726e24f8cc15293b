//! Endpoints asked as a client would, with a main loop that answers from a fixed view.

use std::sync::Arc;
use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use hyper::Method;
use leno_api::proto::envoy::config::bootstrap::v3 as bootstrap;
use leno_api::proto::envoy::config::core::v3 as core;
use prost::{Message, Name as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::json::masked;
use super::respond::{Query, Response};
use super::{AdminConfig, Command, Context, HostTable, RefusedResource, ResourceKind, ServerState, View};
use crate::cluster::{Assignment, EndpointAddress, EndpointConfig, LocalityEndpoints};
use crate::listener::ListenAddress;
use crate::options::Options;
use crate::snapshot::Snapshot;
use crate::telemetry::server_stats::Sampled;
use crate::telemetry::stats::{StatsStore, stats_scope};
use crate::worker::HostReport;

stats_scope! {
    struct Sample {
        counter total = "upstream_rq_total";
        counter class = "upstream_rq_2xx";
        gauge active = "upstream_cx_active";
        histogram time = "upstream_rq_time";
        counter never = "upstream_rq_never";
    }
}

/// A context whose main loop has the given view; and the orders that it was given.
fn context(view: View) -> (Arc<Context>, mpsc::UnboundedReceiver<String>, Sample) {
    let (commands, mut asked) = mpsc::unbounded_channel();
    let (orders, ordered) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            match command {
                Command::View(reply) => drop(reply.send(view.clone())),
                Command::Hosts(reply) => {
                    let mut table = HostTable::default();
                    let report = HostReport {
                        cluster: "c".into(),
                        address: EndpointAddress::Ip("10.0.0.1:80".parse().unwrap()),
                        connections: [1, 2, 0],
                        requests: [0, 5, 4, 1, 0],
                    };
                    table.add(&[report.clone(), report]);
                    drop(reply.send(table));
                }
                order => drop(orders.send(format!("{order:?}"))),
            }
        }
    });
    let message = bootstrap::Bootstrap {
        node: Some(core::Node { id: "n1".into(), ..core::Node::default() }),
        ..bootstrap::Bootstrap::default()
    };
    let config = AdminConfig {
        bootstrap: message.encode_to_vec().into(),
        runtime_layers: vec![
            ("low".into(), json!({"a": {"b": 1}, "c": "x"})),
            ("high".into(), json!({"a.b": 2})),
        ],
        ..AdminConfig::default()
    };
    let stats = Arc::new(StatsStore::default());
    let sample = Sample::new(&stats.thread(), "cluster.c.");
    sample.total().add(5);
    sample.class().add(5);
    sample.block().count_status(200);
    sample.active().inc();
    sample.time().record(3);
    let sampled = Arc::new(Sampled::new(&stats.thread()));
    let context = Context::new(&Options::default(), config, stats, 2, commands, Instant::now(), sampled);
    (Arc::new(context), ordered, sample)
}

fn view() -> View {
    let endpoint = EndpointConfig {
        hostname: Some("hn".into()),
        ..EndpointConfig::plain(EndpointAddress::Ip("10.0.0.1:80".parse().unwrap()))
    };
    let place = LocalityEndpoints { endpoints: vec![endpoint], priority: 1, ..LocalityEndpoints::default() };
    let assignment =
        Assignment { localities: vec![place], overprovisioning_factor: 140, ..Assignment::default() };
    let mut snapshot = Snapshot::default();
    let cluster = leno_api::proto::envoy::config::cluster::v3::Cluster {
        name: "c".into(),
        connect_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let source = prost_types::Any {
        type_url: leno_api::proto::envoy::config::cluster::v3::Cluster::type_url(),
        value: cluster.encode_to_vec(),
    };
    let lowered = crate::config::lower::Lower::resource(|at| crate::cluster::config::lower(&source, at));
    snapshot.clusters.insert("c".into(), Arc::new(lowered.unwrap()));
    snapshot.endpoints.insert("c".into(), Arc::new(assignment));
    View {
        state: ServerState::Live,
        snapshot: Arc::new(snapshot),
        refused: vec![RefusedResource {
            kind: ResourceKind::Listener,
            name: "bad".into(),
            source: None,
            version: "7".into(),
            details: "no".into(),
            at: std::time::UNIX_EPOCH + Duration::from_secs(1),
        }],
        bound: [("l".into(), vec![ListenAddress::Ip("127.0.0.1:8080".parse().unwrap())])].into(),
        lds_version: "6".into(),
        ..View::default()
    }
}

async fn ask(context: &Context, method: Method, target: &str) -> Response {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    super::http::answer(&method, path, &Query::parse(query), context).await
}

async fn check(context: &Context, target: &str, expected: &Expect) {
    let response = ask(context, Method::GET, target).await;
    let body = String::from_utf8_lossy(&response.body).into_owned();
    expected.assert_eq(&format!("{}\n{body}", response.status));
}

#[tokio::test]
async fn state_and_lists() {
    let (context, _orders, _sample) = context(view());
    check(
        &context,
        "/ready",
        &expect![[r#"
        200
        LIVE
    "#]],
    )
    .await;
    check(
        &context,
        "/listeners",
        &expect![[r#"
        200
        l::127.0.0.1:8080
    "#]],
    )
    .await;
    check(
        &context,
        "/certs",
        &expect![[r#"
        200
        {
         "certificates": []
        }
    "#]],
    )
    .await;
    check(
        &context,
        "/runtime",
        &expect![[r#"
        200
        {
         "layers": [
          "low",
          "high"
         ],
         "entries": {
          "a.b": {
           "final_value": "2",
           "layer_values": [
            "1",
            "2"
           ]
          },
          "c": {
           "final_value": "x",
           "layer_values": [
            "x",
            ""
           ]
          }
         }
        }
    "#]],
    )
    .await;
    check(
        &context,
        "/clusters",
        &expect![[r#"
        200
        c::observability_name::c
        c::default_priority::max_connections::1024
        c::default_priority::max_pending_requests::1024
        c::default_priority::max_requests::1024
        c::default_priority::max_retries::3
        c::high_priority::max_connections::1024
        c::high_priority::max_pending_requests::1024
        c::high_priority::max_requests::1024
        c::high_priority::max_retries::3
        c::added_via_api::false
        c::10.0.0.1:80::cx_active::2
        c::10.0.0.1:80::cx_connect_fail::0
        c::10.0.0.1:80::cx_total::4
        c::10.0.0.1:80::rq_active::0
        c::10.0.0.1:80::rq_error::2
        c::10.0.0.1:80::rq_success::8
        c::10.0.0.1:80::rq_timeout::0
        c::10.0.0.1:80::rq_total::10
        c::10.0.0.1:80::hostname::hn
        c::10.0.0.1:80::health_flags::healthy
        c::10.0.0.1:80::weight::1
        c::10.0.0.1:80::region::
        c::10.0.0.1:80::zone::
        c::10.0.0.1:80::sub_zone::
        c::10.0.0.1:80::canary::false
        c::10.0.0.1:80::priority::1
        c::10.0.0.1:80::success_rate::-1
        c::10.0.0.1:80::local_origin_success_rate::-1
    "#]],
    )
    .await;
    check(
        &context,
        "/clusters?filter=x",
        &expect![[r#"
        200
    "#]],
    )
    .await;
    check(
        &context,
        "/clusters?filter=[",
        &expect![[r#"
        400
        Invalid re2 regex: invalid regex '[': unclosed character class
    "#]],
    )
    .await;
    check(
        &context,
        "/clusters?format=json",
        &expect![[r#"
        200
        {
         "cluster_statuses": [
          {
           "name": "c",
           "host_statuses": [
            {
             "address": {
              "socket_address": {
               "address": "10.0.0.1",
               "port_value": 80
              }
             },
             "stats": [
              {
               "name": "cx_connect_fail"
              },
              {
               "value": "4",
               "name": "cx_total"
              },
              {
               "value": "2",
               "name": "rq_error"
              },
              {
               "value": "8",
               "name": "rq_success"
              },
              {
               "name": "rq_timeout"
              },
              {
               "value": "10",
               "name": "rq_total"
              },
              {
               "type": "GAUGE",
               "value": "2",
               "name": "cx_active"
              },
              {
               "type": "GAUGE",
               "name": "rq_active"
              }
             ],
             "health_status": {
              "eds_health_status": "HEALTHY"
             },
             "weight": 1,
             "hostname": "hn",
             "priority": 1,
             "locality": {}
            }
           ],
           "circuit_breakers": {
            "thresholds": [
             {
              "max_connections": 1024,
              "max_pending_requests": 1024,
              "max_requests": 1024,
              "max_retries": 3
             },
             {
              "priority": "HIGH",
              "max_connections": 1024,
              "max_pending_requests": 1024,
              "max_requests": 1024,
              "max_retries": 3
             }
            ]
           },
           "observability_name": "c"
          }
         ]
        }
    "#]],
    )
    .await;
    let not_ready = View { state: ServerState::Initializing, ..View::default() };
    let (context, _orders, _sample) = self::context(not_ready);
    check(
        &context,
        "/ready",
        &expect![[r#"
        503
        INITIALIZING
    "#]],
    )
    .await;
}

#[tokio::test]
async fn stats_as_text_and_json() {
    let (context, _orders, sample) = context(view());
    check(&context, "/stats?filter=%5Ecluster", &expect![[r#"
        200
        cluster.c.upstream_cx_active: 1
        cluster.c.upstream_rq_200: 1
        cluster.c.upstream_rq_2xx: 5
        cluster.c.upstream_rq_never: 0
        cluster.c.upstream_rq_total: 5
        cluster.c.upstream_rq_time: P0(nan,3.05) P25(nan,3.05) P50(nan,3.05) P75(nan,3.05) P90(nan,3.05) P95(nan,3.05) P99(nan,3.05) P99.5(nan,3.05) P99.9(nan,3.05) P100(nan,3.05)
    "#]]).await;
    check(
        &context,
        "/stats?filter=%5Ecluster&usedonly&type=Counters",
        &expect![[r#"
        200
        cluster.c.upstream_rq_200: 1
        cluster.c.upstream_rq_2xx: 5
        cluster.c.upstream_rq_total: 5
    "#]],
    )
    .await;
    check(&context, "/stats?filter=%5Ecluster&type=Histograms&histogram_buckets=cumulative", &expect![[r#"
        200
        cluster.c.upstream_rq_time: B0.5(0,0) B1(0,0) B5(0,1) B10(0,1) B25(0,1) B50(0,1) B100(0,1) B250(0,1) B500(0,1) B1000(0,1) B2500(0,1) B5000(0,1) B10000(0,1) B30000(0,1) B60000(0,1) B300000(0,1) B600000(0,1) B1.8e+06(0,1) B3.6e+06(0,1)
    "#]]).await;
    check(&context, "/stats?filter=%5Ecluster&type=Histograms&histogram_buckets=detailed", &expect![[r#"
        200
        cluster.c.upstream_rq_time:
          totals=3,0.1:1
          intervals=
          summary=P0(nan,3.05) P25(nan,3.05) P50(nan,3.05) P75(nan,3.05) P90(nan,3.05) P95(nan,3.05) P99(nan,3.05) P99.5(nan,3.05) P99.9(nan,3.05) P100(nan,3.05)
    "#]]).await;
    check(&context, "/stats?filter=rq_t&format=json", &expect![[r#"
        200
        {"stats":[{"name":"cluster.c.upstream_rq_total","value":5},{"histograms":{"supported_quantiles":[0,25,50,75,90,95,99,99.5,99.9,100],"computed_quantiles":[{"name":"cluster.c.upstream_rq_time","values":[{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null},{"cumulative":3.05,"interval":null}]}]}}]}"#]]).await;
    check(
        &context,
        "/stats?format=yaml",
        &expect![[r#"
        400
        usage: /stats?format=(json|prometheus|text)

    "#]],
    )
    .await;
    let server = ask(&context, Method::GET, "/stats?filter=memory_allocated").await;
    assert!(
        server.body.starts_with(b"server.memory_allocated: ")
            && server.body != "server.memory_allocated: 0\n"
    );
    ask(&context, Method::POST, "/reset_counters").await;
    sample.total().inc();
    check(
        &context,
        "/stats?filter=rq_(total|200)|cx_active",
        &expect![[r#"
        200
        cluster.c.upstream_cx_active: 1
        cluster.c.upstream_rq_200: 0
        cluster.c.upstream_rq_total: 1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn prometheus_text() {
    let (context, _orders, _sample) = context(view());
    check(
        &context,
        "/stats/prometheus?filter=%5Ecluster&usedonly",
        &expect![[r#"
        200
        # TYPE envoy_cluster_upstream_rq counter
        envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="c"} 1
        # TYPE envoy_cluster_upstream_rq_total counter
        envoy_cluster_upstream_rq_total{envoy_cluster_name="c"} 5
        # TYPE envoy_cluster_upstream_rq_xx counter
        envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="c"} 5
        # TYPE envoy_cluster_upstream_cx_active gauge
        envoy_cluster_upstream_cx_active{envoy_cluster_name="c"} 1
        # TYPE envoy_cluster_upstream_rq_time histogram
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="0.5"} 0
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="1"} 0
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="5"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="10"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="25"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="50"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="100"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="250"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="500"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="1000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="2500"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="5000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="10000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="30000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="60000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="300000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="600000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="1800000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="3600000"} 1
        envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="c",le="+Inf"} 1
        envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="c"} 3
        envoy_cluster_upstream_rq_time_count{envoy_cluster_name="c"} 1
    "#]],
    )
    .await;
    check(
        &context,
        "/stats?format=prometheus&filter=rq_time&histogram_buckets=summary",
        &expect![[r#"
        200
        # TYPE envoy_cluster_upstream_rq_time summary
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.25"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.5"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.75"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.9"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.95"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.99"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.995"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="0.999"} 3.05
        envoy_cluster_upstream_rq_time{envoy_cluster_name="c",quantile="1"} 3.05
        envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="c"} 3
        envoy_cluster_upstream_rq_time_count{envoy_cluster_name="c"} 1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn orders_want_post() {
    let (context, mut orders, _sample) = context(view());
    check(
        &context,
        "/quitquitquit",
        &expect![[r#"
        405
        Method GET not allowed, POST required."#]],
    )
    .await;
    for target in [
        "/quitquitquit",
        "/drain_listeners?inboundonly&graceful",
        "/healthcheck/fail",
        "/healthcheck/ok",
        "/logging?paths=http:debug,pool:trace",
    ] {
        let response = ask(&context, Method::POST, target).await;
        assert_eq!(response.status, 200, "{target}");
    }
    for expected in [
        "Quit",
        "DrainListeners { inbound_only: true, graceful: true, skip_exit: false }",
        "FailHealthChecks(true)",
        "FailHealthChecks(false)",
    ] {
        assert_eq!(orders.recv().await.unwrap(), expected);
    }
    let filter = orders.recv().await.unwrap();
    assert!(
        filter.contains(",http=debug,")
            && filter.contains(",pool=trace,")
            && filter.contains(",router=info,")
    );
    let refused = ask(&context, Method::POST, "/logging?nope=info").await;
    assert!(refused.status == 400 && refused.body.starts_with(b"error: unknown logger name\n"));
    let shown = ask(&context, Method::POST, "/logging").await;
    assert!(String::from_utf8_lossy(&shown.body).contains("  http: debug\n"));
    assert!(orders.try_recv().is_err());
}

#[tokio::test]
async fn configuration() {
    let (context, _orders, _sample) = context(view());
    let response = ask(&context, Method::GET, "/config_dump?include_eds").await;
    let mut dump: Value = serde_json::from_slice(&response.body).unwrap();
    hide_dates(&mut dump);
    expect![[r#"
        {
          "configs": [
            {
              "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
              "bootstrap": {
                "node": {
                  "id": "n1"
                }
              },
              "last_updated": "DATE"
            },
            {
              "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
              "static_clusters": [
                {
                  "cluster": {
                    "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                    "name": "c",
                    "connect_timeout": "1s"
                  },
                  "last_updated": "DATE"
                }
              ]
            },
            {
              "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
              "static_endpoint_configs": [
                {
                  "endpoint_config": {
                    "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                    "cluster_name": "c",
                    "endpoints": [
                      {
                        "locality": {},
                        "lb_endpoints": [
                          {
                            "endpoint": {
                              "address": {
                                "socket_address": {
                                  "address": "10.0.0.1",
                                  "port_value": 80
                                }
                              },
                              "health_check_config": {},
                              "hostname": "hn"
                            },
                            "health_status": "HEALTHY",
                            "load_balancing_weight": 1
                          }
                        ],
                        "load_balancing_weight": 0,
                        "priority": 1
                      }
                    ],
                    "policy": {
                      "overprovisioning_factor": 140
                    }
                  }
                }
              ]
            },
            {
              "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
              "version_info": "6",
              "dynamic_listeners": [
                {
                  "name": "bad",
                  "error_state": {
                    "last_update_attempt": "1970-01-01T00:00:01.000Z",
                    "details": "no",
                    "version_info": "7"
                  }
                }
              ]
            },
            {
              "@type": "type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump"
            },
            {
              "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump"
            },
            {
              "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump"
            }
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&dump).unwrap());
    check(
        &context,
        "/config_dump?resource=static_clusters&mask=cluster.name",
        &expect![[r#"
        200
        {
         "configs": [
          {
           "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
           "cluster": {
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "c"
           }
          }
         ]
        }
    "#]],
    )
    .await;
    check(
        &context,
        "/config_dump?resource=static_clusters&mask=name",
        &expect![[r#"
        400
        FieldMask 'name' could not be successfully used.
    "#]],
    )
    .await;
    check(
        &context,
        "/config_dump?resource=nope",
        &expect![[r#"
        404
        nope not found in config dump"#]],
    )
    .await;
    check(
        &context,
        "/config_dump?mask=bootstrap.node",
        &expect![[r#"
        200
        {
         "configs": [
          {
           "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
           "bootstrap": {
            "node": {
             "id": "n1"
            }
           }
          }
         ]
        }
    "#]],
    )
    .await;
    check(
        &context,
        "/config_dump?name_regex=x&resource=static_clusters",
        &expect![[r#"
        200
        {}
    "#]],
    )
    .await;
    let info = ask(&context, Method::GET, "/server_info").await;
    let info: Value = serde_json::from_slice(&info.body).unwrap();
    assert_eq!((&info["state"], &info["node"]["id"]), (&json!("LIVE"), &json!("n1")));
    assert_eq!(info["command_line_options"]["drain_time"], "600s");
}

fn hide_dates(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match name.as_str() {
                    "last_updated" => *field = "DATE".into(),
                    _ => hide_dates(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_dates),
        _ => {}
    }
}

#[test]
fn masks_and_queries() {
    let value = json!({"@type": "t", "a": [{"b": 1, "c": 2}, {"c": 3}], "d": {"e": 1}});
    assert_eq!(
        masked(&value, "a.b,d", &["a", "d"]),
        Some(json!({"@type": "t", "a": [{"b": 1}, {}], "d": {"e": 1}}))
    );
    assert_eq!(masked(&value, "x", &["a"]), None);
    let query = Query::parse("a=1%2B2&b&c=x+y&d=%zz");
    assert_eq!(query.find("a"), Some("1+2"));
    assert_eq!((query.find("b"), query.find("c"), query.find("d")), (Some(""), Some("x y"), Some("%zz")));
    assert!(!query.has("e"));
}

#[tokio::test]
async fn the_address_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin");
    let options = Options { admin_address_path: Some(path.clone()), ..Options::default() };
    let address = Some(crate::config::address::Address::Ip("127.0.0.1:0".parse().unwrap()));
    let config = AdminConfig { address, ..AdminConfig::default() };
    let (commands, _asked) = mpsc::unbounded_channel();
    let stats = Arc::<StatsStore>::default();
    let sampled = Arc::new(Sampled::new(&stats.thread()));
    let context = Context::new(&options, config, stats, 1, commands, Instant::now(), sampled);
    let socket = context.bind().unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), socket.local_address().unwrap().to_string());
}

#[tokio::test]
async fn requests_over_tcp() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (context, mut orders, _sample) = context(view());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(super::serve(super::http::Socket::Tcp(listener), context));
    let attempt = async |request: &str| -> std::io::Result<String> {
        let mut client = tokio::net::TcpStream::connect(address).await?;
        client.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        client.read_to_string(&mut response).await?;
        Ok(response)
    };
    let exchange = async |request: &str| attempt(request).await.unwrap();
    let ready = exchange("GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 200 OK\r\n") && ready.ends_with("\r\n\r\nLIVE\n"), "{ready}");
    assert!(
        ready.contains("content-type: text/plain; charset=UTF-8\r\n") && ready.contains("server: envoy\r\n")
    );
    let form = "POST /logging HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 10\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\nhttp=error";
    assert!(exchange(form).await.contains("  http: error\n"));
    assert!(orders.try_recv().is_ok(), "that was an order");
    let unknown = exchange("GET /nope HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(
        unknown.starts_with("HTTP/1.1 404")
            && unknown.contains("invalid path. admin commands are:\n  /: Admin home")
    );
    // A page of the web that speaks through a browser on this machine, and paths that mean others.
    for headers in [
        "host: example.com:15000",
        "host: localhost.example.com",
        "host: localhost\r\norigin: http://example.com",
        "host: localhost\r\norigin: null",
    ] {
        for (line, status) in [
            ("GET /config_dump", 403),
            ("POST /quitquitquit", 403),
            ("POST /logging?level=off", 403),
            ("GET /ready", 200),
            ("GET /stats/prometheus", 200),
        ] {
            let answer =
                exchange(&format!("{line} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line} {headers}: {answer}");
        }
    }
    for path in [
        "/ready/../quitquitquit",
        "/ready/%2e%2e/quitquitquit",
        "//quitquitquit",
        "/%71uitquitquit",
        "/quitquitquit/",
    ] {
        let answer = exchange(&format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let line = format!("{method} /quitquitquit HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        assert!(exchange(&line).await.starts_with("HTTP/1.1 405"), "{method}");
    }
    let long = format!("GET /ready HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(300_000));
    // As the rest is not read, the answer may be lost with the connection.
    let refused = attempt(&long).await;
    assert!(refused.as_ref().map_or(true, |answer| answer.starts_with("HTTP/1.1 431")), "{refused:?}");
    assert!(orders.try_recv().is_err(), "none of them was an order");
    server.abort();
}
