//! Entry points for micro-benchmarks: small parts of a request's way, each run a number of times.
//! No interface: `leno-bench micro` counts the instructions of one run of each. Whole requests
//! are measured there too, from outside.

use std::hint::black_box;
use std::sync::Arc;

use leno_api::proto::envoy::config::cluster::v3::Cluster as ClusterProto;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::route::v3::RouteConfiguration;

use crate::cluster::worker_cluster::WorkerCluster;
use crate::cluster::{Discovery, PickContext};
use crate::config::lower::Lower;
use crate::fuzzing::{LIMITS, head, stream_info};
use crate::http::codec::h1::head::{parse_request, parse_response};
use crate::http::codec::h1::write::{ResponseShape, WriteStyle, write_request, write_response};
use crate::http::codec::h2::hpack::decoder::Decoder;
use crate::http::codec::h2::hpack::encoder::Encoder;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::{MatchContext, RouteTable, mutation};
use crate::http::stats::HttpStats;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::Format;
use crate::telemetry::stats::StatsStore;

/// A part that can be measured.
pub struct Part {
    /// Its name in tables.
    pub name: &'static str,
    /// How often it must run for its start not to matter.
    pub times: u64,
    /// Prepares it and runs it so many times.
    pub run: fn(u64),
}

/// All parts.
pub const PARTS: &[Part] = &[
    Part { name: "h1_parse_request", times: 20_000, run: parse },
    Part { name: "h1_parse_response", times: 20_000, run: parse_answer },
    Part { name: "h1_write_request", times: 20_000, run: write },
    Part { name: "h1_forward_response", times: 20_000, run: forward_answer },
    Part { name: "hpack_decode_first", times: 20_000, run: |times| decode_block(1, times) },
    Part { name: "hpack_decode_known", times: 20_000, run: |times| decode_block(3, times) },
    Part { name: "hpack_encode_known", times: 20_000, run: encode_block },
    Part { name: "route_10", times: 20_000, run: |times| find_route(10, times) },
    Part { name: "route_10000", times: 20_000, run: |times| find_route(10_000, times) },
    Part { name: "pick_round_robin", times: 20_000, run: |times| pick("ROUND_ROBIN", times) },
    Part { name: "pick_least_request", times: 20_000, run: |times| pick("LEAST_REQUEST", times) },
    Part { name: "pick_random", times: 20_000, run: |times| pick("RANDOM", times) },
    Part { name: "pick_ring_hash", times: 20_000, run: |times| pick("RING_HASH", times) },
    Part { name: "pick_maglev", times: 20_000, run: |times| pick("MAGLEV", times) },
    Part { name: "header_mutation", times: 20_000, run: mutate },
    Part { name: "stats_increment", times: 100_000, run: count },
    Part { name: "access_log_line", times: 20_000, run: log },
];

const REQUEST: &[u8] =
    b"GET /productpage?u=normal HTTP/1.1\r\nhost: reviews.default.svc.cluster.local:9080\r\n\
    user-agent: Mozilla/5.0 (X11; Linux x86_64)\r\naccept: text/html,application/xhtml+xml\r\n\
    accept-encoding: gzip, deflate\r\ncookie: session=eyJ1c2VyIjoiamFzb24ifQ\r\n\
    x-request-id: 463ac35c-9f64-413a-9d48-485a3953bb61\r\nx-b3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\n\
    content-length: 0\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 357\r\n\
    date: Sat, 21 Nov 2026 00:00:00 GMT\r\nserver: app\r\nx-powered-by: Servlet/3.1\r\n\r\n";

const ANSWER_SHAPE: ResponseShape =
    ResponseShape { end: false, to_head: false, tunnel: false, http10: false, close: false };

fn parse(times: u64) {
    let mut map = HeaderMap::new();
    for _ in 0..times {
        black_box(parse_request(black_box(REQUEST), &LIMITS, &mut map).is_ok());
    }
}

fn parse_answer(times: u64) {
    let mut map = HeaderMap::new();
    for _ in 0..times {
        black_box(parse_response(black_box(ANSWER), &LIMITS, false, &mut map).is_ok());
    }
}

fn write(times: u64) {
    let mut map = HeaderMap::new();
    black_box(parse_request(REQUEST, &LIMITS, &mut map).is_ok());
    let mut out = Vec::with_capacity(4096);
    for _ in 0..times {
        out.clear();
        black_box(write_request(&mut out, black_box(&map), true, WriteStyle::default()));
    }
}

/// A response head on its way: parsed, what the proxy adds put in, and written.
fn forward_answer(times: u64) {
    let mut map = HeaderMap::new();
    let mut out = Vec::with_capacity(4096);
    for _ in 0..times {
        black_box(parse_response(black_box(ANSWER), &LIMITS, false, &mut map).is_ok());
        map.set(Known::EnvoyUpstreamServiceTime, b"3");
        map.set(Known::Server, b"envoy");
        out.clear();
        black_box(write_response(&mut out, black_box(&map), ANSWER_SHAPE, WriteStyle::default()));
    }
}

/// A request as a block that this encoder makes of it now.
fn block(encoder: &mut Encoder, out: &mut Vec<u8>) {
    let request = head(
        b"/productpage?u=normal\nreviews.default.svc.cluster.local:9080\n\
          user-agent: Mozilla/5.0 (X11; Linux x86_64)\naccept: text/html,application/xhtml+xml\n\
          accept-encoding: gzip, deflate\nx-request-id: 463ac35c-9f64-413a-9d48-485a3953bb61\n\
          x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124",
    );
    out.clear();
    encoder.begin(out);
    for (known, name, value) in request.iter_known() {
        encoder.field(out, known, name, value);
    }
}

/// Decodes the block of a connection's first request, or of a later one, whose fields are in the
/// dynamic table.
fn decode_block(of: usize, times: u64) {
    let (mut encoder, mut decoder) = (Encoder::new(4096, true), Decoder::default());
    let mut bytes = Vec::new();
    for _ in 0..of {
        block(&mut encoder, &mut bytes);
        assert!(decoder.decode(&bytes, |_| {}).is_ok(), "what was encoded can be decoded");
    }
    for _ in 0..times {
        let decoded = decoder.decode(black_box(&bytes), |field| {
            black_box((field.known, field.name, field.value));
        });
        black_box(decoded.is_ok());
    }
}

/// Encodes a request of which the dynamic table has everything that it keeps.
fn encode_block(times: u64) {
    let mut encoder = Encoder::new(4096, true);
    let mut out = Vec::with_capacity(4096);
    for _ in 0..3 {
        block(&mut encoder, &mut out);
    }
    let request = head(b"/productpage?u=normal\nreviews.default.svc.cluster.local:9080\naccept: text/html");
    for _ in 0..times {
        out.clear();
        encoder.begin(&mut out);
        for (known, name, value) in black_box(&request).iter_known() {
            encoder.field(&mut out, known, name, value);
        }
        black_box(out.len());
    }
}

fn find_route(hosts: usize, times: u64) {
    let hosts = (0..hosts).map(|index| {
        format!(
            "{{name: v{index}, domains: [svc-{index}.ns.svc.cluster.local], routes: [{{match: {{path: /x}}, route: \
             {{cluster: c}}}}, {{match: {{prefix: /}}, route: {{cluster: c}}}}]}}"
        )
    });
    let hosts: Vec<String> = hosts.collect();
    let text = format!("{{name: r, virtual_hosts: [{}]}}", hosts.join(", "));
    let proto: RouteConfiguration = leno_api::decode_text(&text, "r").unwrap_or_default();
    let any = leno_api::any::pack(&proto);
    let table = Lower::resource(|at| RouteTable::lower(&any, None, false, at));
    let table = table.unwrap_or_else(|why| panic!("{why}"));
    let map = head(b"/productpage\nsvc-7.ns.svc.cluster.local\nuser-agent: x\naccept: */*");
    assert!(table.find(&map, &MatchContext::default()).is_some(), "there is a route");
    for _ in 0..times {
        black_box(table.find(black_box(&map), &MatchContext::default()).is_some());
    }
}

/// Picks among 16 endpoints.
fn pick(policy: &str, times: u64) {
    let endpoint = |index| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}",
            1000 + index
        )
    };
    let endpoints: Vec<String> = (0..16).map(endpoint).collect();
    let text = format!(
        "{{name: c, type: STATIC, lb_policy: {policy}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: \
         [{}]}}]}}}}",
        endpoints.join(", ")
    );
    let proto: ClusterProto = leno_api::decode_text(&text, "c").unwrap_or_default();
    let any = leno_api::any::pack(&proto);
    let Ok(config) = Lower::resource(|at| crate::cluster::config::lower(&any, at)) else {
        panic!("not supported yet: {policy}");
    };
    let Discovery::Static(assignment) = &config.discovery else { return };
    let assignment = Arc::clone(assignment);
    let stats = Arc::new(StatsStore::default());
    let cluster = WorkerCluster::new(Arc::new(config), &stats.thread(), 1, &Default::default());
    cluster.update_hosts(&assignment);
    for hash in 0..times {
        let context =
            PickContext { hash: Some(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)), ..PickContext::default() };
        black_box(cluster.pick(&context).is_some());
    }
}

fn mutate(times: u64) {
    let rule = |key: &str, value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append_action: 2,
        ..Default::default()
    };
    let add = vec![
        rule("x-a", "plain"),
        rule("x-path", "%REQ(:path)%"),
        rule("x-from", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ];
    let lowered = Lower::resource(|at| Some(mutation::lower("request", add, vec!["cookie".to_owned()], at)));
    let mutations = lowered.unwrap_or_else(|why| panic!("{why}"));
    let mut map = head(b"/productpage\na.test\nuser-agent: x\naccept: */*");
    let info = stream_info();
    for _ in 0..times {
        mutations.apply(black_box(&mut map), &FormatContext::new(&info));
    }
}

fn count(times: u64) {
    let store = Arc::new(StatsStore::default());
    let stats = HttpStats::new(&store.thread(), "http.x.");
    for _ in 0..times {
        black_box(&stats).downstream_rq_total().inc();
    }
}

fn log(times: u64) {
    let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
                %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \"%REQ(USER-AGENT)%\" \"%UPSTREAM_HOST%\"\n";
    let format = Format::parse(text).unwrap_or_default();
    let request = head(b"/productpage\na.test\nuser-agent: x\naccept: */*");
    let info = stream_info();
    let mut cx = FormatContext::new(&info);
    cx.request = Some(&request);
    let mut out = Vec::with_capacity(4096);
    for _ in 0..times {
        out.clear();
        format.format(black_box(&cx), "-", &mut out);
    }
}
