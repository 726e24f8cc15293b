//! A mixed fleet agrees: our proxy and the real Envoy, with the same endpoints and the same
//! requests, choose the same endpoint for each request where its hash, its metadata or its
//! headers decide, and the same shares where chance does.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use serde_json::{Value, json};
use twox_hash::XxHash64;

#[path = "affinity/aggregate.rs"]
mod aggregate;
mod support;

use support::{PATIENCE, Proxy};

/// Endpoints of all clusters.
const COUNT: usize = 12;

/// A cluster, a route to it, and the requests that are sent there.
struct Case {
    name: &'static str,
    /// More of the cluster, on top of its assignment.
    cluster: Value,
    /// `endpoints` of its assignment; null: it has none.
    endpoints: Value,
    /// More of the route's action.
    route: Value,
    /// What requests have: lines of the head behind the first, and what follows the path.
    requests: Vec<(String, String)>,
    compare: Compare,
}

enum Compare {
    /// The endpoint of each request.
    Each,
    /// The share of each endpoint, within 6 per cent of all requests.
    Shares,
    /// Only that there are answers.
    Nothing,
}

/// A server that answers with its own number, to HTTP and to anything else that ends in an
/// empty line.
fn backends() -> Vec<SocketAddr> {
    let start = |index: usize| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while read_head(&mut stream).is_some() {
                        let body = index.to_string();
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        if stream.write_all(head.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    };
    (0..COUNT).map(start).collect()
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.extend_from_slice(&byte);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Asks once; (head, body) of the answer.
fn ask(stream: &mut TcpStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).expect("sent");
    let head = read_head(stream).expect("an answer");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).expect("the body");
    (head, String::from_utf8_lossy(&body).into_owned())
}

/// An endpoint by its number, with more of it.
fn endpoint(addresses: &[SocketAddr], index: usize, more: &Value) -> Value {
    let mut endpoint = json!({"endpoint": {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": addresses[index].port()}},
        "hostname": format!("host-{index}.test"),
    }});
    merge(&mut endpoint, more);
    endpoint
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// A locality in zone `zone` with these endpoints.
fn locality(
    addresses: &[SocketAddr],
    zone: &str,
    indexes: impl IntoIterator<Item = usize>,
    with: impl Fn(usize) -> Value,
    more: &Value,
) -> Value {
    let endpoints: Vec<Value> =
        indexes.into_iter().map(|index| endpoint(addresses, index, &with(index))).collect();
    let mut locality = json!({"locality": {"zone": zone}, "lb_endpoints": endpoints});
    merge(&mut locality, more);
    locality
}

fn extension(name: &str, config: &Value) -> Value {
    let kind = match name {
        "ring_hash" => "RingHash",
        "maglev" => "Maglev",
        "override_host" => "OverrideHost",
        "round_robin" => "RoundRobin",
        "subset" => "Subset",
        _ => panic!("{name}"),
    };
    let mut typed = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind}")
    });
    merge(&mut typed, config);
    json!({"policies": [{"typed_extension_config": {"name": name, "typed_config": typed}}]})
}

/// Requests that differ in the header `x-key`.
fn by_key(count: usize) -> Vec<(String, String)> {
    (0..count).map(|index| (format!("x-key: key-{index}\r\n"), String::new())).collect()
}

fn cases(to: &[SocketAddr]) -> Vec<Case> {
    let all = || json!([locality(to, "a", 0..COUNT, |_| json!({}), &json!({}))]);
    let weighted = || {
        json!([locality(
            to,
            "a",
            0..COUNT,
            |index| json!({"load_balancing_weight": index % 4 + 1}),
            &json!({})
        )])
    };
    let localities = || {
        let sick = |index| json!({"health_status": if index % 4 == 0 { "UNHEALTHY" } else { "HEALTHY" }});
        json!([
            locality(to, "a", 0..4, sick, &json!({"load_balancing_weight": 1})),
            locality(to, "c", 4..8, |_| json!({}), &json!({"load_balancing_weight": 3})),
            locality(to, "b", 8..10, |_| json!({}), &json!({"load_balancing_weight": 2})),
            locality(to, "d", 10..12, |_| json!({}), &json!({})),
        ])
    };
    let priorities = |sick: usize| {
        let health =
            move |index| json!({"health_status": if index < sick { "UNHEALTHY" } else { "HEALTHY" }});
        json!([
            locality(to, "a", 0..6, health, &json!({})),
            locality(to, "a", 6..12, health, &json!({"priority": 1})),
        ])
    };
    let labelled = || {
        let labels = |index: usize| {
            json!({"metadata": {"filter_metadata": {"envoy.lb": {
                "stage": if index < 8 { "prod" } else { "dev" }, "version": index % 2, "canary": index == 3,
            }}}})
        };
        json!([locality(to, "a", 0..COUNT, labels, &json!({}))])
    };
    let key = json!({"hash_policy": [{"header": {"header_name": "x-key"}}]});
    let case = |name, cluster, endpoints, route: &Value, requests| Case {
        name,
        cluster,
        endpoints,
        route: route.clone(),
        requests,
        compare: Compare::Each,
    };
    let ring = json!({"lb_policy": "RING_HASH"});
    let maglev = json!({"lb_policy": "MAGLEV"});
    let weighted_localities = json!({"common_lb_config": {"locality_weighted_lb_config": {}}});
    let with = |base: &Value, more: &Value| {
        let mut base = base.clone();
        merge(&mut base, more);
        base
    };
    let hosts_and_keys = |index: usize| match index % 3 {
        0 => json!({"metadata": {"filter_metadata": {"envoy.lb": {"hash_key": format!("own-{index}")}}}}),
        _ => json!({}),
    };
    let selectors =
        json!([{"keys": ["stage", "version"]}, {"keys": ["canary"], "fallback_policy": "NO_FALLBACK"}]);
    let subset = |fallback: &str| {
        json!({"lb_policy": "RING_HASH", "lb_subset_config": {
            "fallback_policy": fallback, "default_subset": {"stage": "dev"}, "subset_selectors": selectors,
        }})
    };
    let wants =
        |criteria: Value| with(&key, &json!({"metadata_match": {"filter_metadata": {"envoy.lb": criteria}}}));
    let mixed = |policies: Value| json!({"hash_policy": policies});
    let various: Vec<(String, String)> = (0..60)
        .map(|index| {
            let mut head = String::new();
            if index % 2 == 0 {
                head += &format!("x-key: {}-{}\r\n", index / 4, index % 7);
            }
            if index % 6 == 0 {
                head += &format!("x-key: z{index}\r\nx-key: a{index}\r\n");
            }
            if index % 3 == 0 {
                head += &format!("cookie: a=b; sid={}; c=d\r\n", index / 2);
            }
            let query = if index % 4 == 0 { format!("?x=1&q=v%20{}&q=2", index / 8) } else { String::new() };
            (head, query)
        })
        .collect();
    let sources = json!([
        {"header": {"header_name": "x-key"}},
        {"query_parameter": {"name": "q"}},
        {"cookie": {"name": "sid"}},
    ]);
    let named: Vec<(String, String)> = (0..COUNT)
        .map(|index| {
            (format!("x-hosts: 127.0.0.1:1, {},{}\r\nx-key: {index}\r\n", to[index], to[0]), String::new())
        })
        .collect();
    let mut cases = vec![
        case("ring", ring.clone(), all(), &key, by_key(150)),
        case(
            "ring-murmur",
            with(
                &ring,
                &json!({"ring_hash_lb_config": {
                    "hash_function": "MURMUR_HASH_2", "minimum_ring_size": 100, "maximum_ring_size": 130,
                }}),
            ),
            weighted(),
            &key,
            by_key(150),
        ),
        case("ring-weights", ring.clone(), weighted(), &key, by_key(150)),
        case(
            "ring-names",
            with(
                &ring,
                &json!({"type": "STRICT_DNS", "common_lb_config": {"consistent_hashing_lb_config": {
                    "use_hostname_for_hashing": true, "hash_balance_factor": 150,
                }}}),
            ),
            json!([locality(to, "a", 0..COUNT, hosts_and_keys, &json!({}))]),
            &key,
            by_key(150),
        ),
        case("ring-localities", with(&ring, &weighted_localities), localities(), &key, by_key(150)),
        case("ring-priorities", ring.clone(), priorities(4), &key, by_key(150)),
        case("ring-panic", ring.clone(), priorities(11), &key, by_key(100)),
        case("maglev", maglev.clone(), all(), &key, by_key(150)),
        case(
            "maglev-weights",
            with(&maglev, &json!({"maglev_lb_config": {"table_size": 997}})),
            weighted(),
            &key,
            by_key(150),
        ),
        case("maglev-localities", with(&maglev, &weighted_localities), localities(), &key, by_key(150)),
        case("maglev-priorities", maglev.clone(), priorities(4), &key, by_key(100)),
        case("sources", maglev.clone(), all(), &mixed(sources), hashed(&various)),
        case(
            "sources-rewritten",
            maglev.clone(),
            all(),
            &mixed(json!([
                {"header": {"header_name": "x-key", "regex_rewrite": {
                    "pattern": {"regex": "^([0-9]+)-.*$"}, "substitution": "\\1",
                }}},
                {"connection_properties": {"source_ip": true}},
            ])),
            various.clone(),
        ),
        case(
            "sources-terminal",
            maglev.clone(),
            all(),
            &mixed(json!([
                {"query_parameter": {"name": "q"}, "terminal": true},
                {"header": {"header_name": "x-key"}, "terminal": true},
                {"connection_properties": {"source_ip": true}},
            ])),
            various,
        ),
        case(
            "extension-ring",
            json!({"load_balancing_policy": extension("ring_hash", &json!({
                "minimum_ring_size": 64, "consistent_hashing_lb_config": {
                    "hash_policy": [{"header": {"header_name": "x-key"}}],
                },
            }))}),
            weighted(),
            &json!({}),
            by_key(80),
        ),
        case(
            "extension-maglev",
            json!({"load_balancing_policy": extension("maglev", &json!({"locality_weighted_lb_config": {}}))}),
            localities(),
            &key,
            by_key(80),
        ),
        case(
            "subset",
            subset("NO_FALLBACK"),
            labelled(),
            &wants(json!({"stage": "prod", "version": 1})),
            by_key(60),
        ),
        case("subset-any", subset("ANY_ENDPOINT"), labelled(), &wants(json!({"stage": "none"})), by_key(60)),
        case(
            "subset-default",
            subset("DEFAULT_SUBSET"),
            labelled(),
            &wants(json!({"version": 1})),
            by_key(60),
        ),
        case(
            "subset-selector",
            subset("ANY_ENDPOINT"),
            labelled(),
            &wants(json!({"canary": "x"})),
            by_key(3),
        ),
        case("subset-canary", subset("ANY_ENDPOINT"), labelled(), &wants(json!({"canary": true})), by_key(3)),
        case("subset-none", subset("NO_FALLBACK"), labelled(), &key, by_key(3)),
        case(
            "override",
            json!({"load_balancing_policy": extension("override_host", &json!({
                "override_host_sources": [{"header": "x-hosts"}],
                "fallback_policy": extension("maglev", &json!({})),
            }))}),
            all(),
            &key,
            named.into_iter().chain(by_key(20)).collect(),
        ),
    ];
    let plain = |count: usize| vec![(String::new(), String::new()); count];
    let shares = |name, cluster, endpoints, count| Case {
        name,
        cluster,
        endpoints,
        route: json!({}),
        requests: plain(count),
        compare: Compare::Shares,
    };
    cases.extend([
        shares("rr-weights", json!({}), weighted(), 900),
        shares("rr-localities", weighted_localities, localities(), 1500),
        shares("rr-priorities", json!({}), priorities(4), 1500),
        shares("rr-zones", json!({}), localities(), 1500),
        shares("least-request-weights", json!({"lb_policy": "LEAST_REQUEST"}), weighted(), 900),
        shares(
            "random-zones-unhealthy",
            json!({"lb_policy": "RANDOM", "common_lb_config": {"zone_aware_lb_config": {
                "routing_enabled": {"value": 50}, "min_cluster_size": 3,
            }}}),
            localities(),
            1500,
        ),
    ]);
    cases
}

/// Only requests that have something to hash: the others go anywhere.
fn hashed(requests: &[(String, String)]) -> Vec<(String, String)> {
    requests.iter().filter(|(head, query)| !head.is_empty() || !query.is_empty()).cloned().collect()
}

fn bootstrap(cases: &[Case], to: &[SocketAddr]) -> Value {
    let mut clusters: Vec<Value> = cases
        .iter()
        .map(|case| {
            let mut cluster = json!({"name": case.name, "connect_timeout": "2s"});
            if !case.endpoints.is_null() {
                let assignment = json!({"cluster_name": case.name, "endpoints": case.endpoints});
                merge(&mut cluster, &json!({"load_assignment": assignment}));
            }
            merge(&mut cluster, &case.cluster);
            cluster
        })
        .collect();
    // One proxy in each of a and b, two in c.
    let local = [("a", 0..1), ("b", 1..2), ("c", 2..4)]
        .map(|(zone, indexes)| locality(to, zone, indexes, |_| json!({}), &json!({})));
    clusters.push(json!({
        "name": "local", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": "local", "endpoints": local},
    }));
    let mut routes: Vec<Value> = cases
        .iter()
        .map(|case| {
            let mut action = json!({"cluster": case.name});
            merge(&mut action, &case.route);
            json!({"match": {"path": format!("/{}", case.name)}, "route": action})
        })
        .collect();
    routes.push(json!({"match": {"path": "/cookie"}, "route": {"cluster": "maglev", "hash_policy": [
        {"cookie": {"name": "sid", "ttl": "90s", "path": "/p", "attributes": [
            {"name": "SameSite", "value": "Strict"}, {"name": "Secure"},
        ]}},
        {"cookie": {"name": "other", "ttl": "0s"}},
    ]}}));
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    });
    let tcp = |cluster: &str| {
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "x", "cluster": cluster, "hash_policy": [{"source_ip": {}}],
        })
    };
    let listener = |name: &str, config: &Value| {
        json!({
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{"name": name, "typed_config": config}]}],
        })
    };
    json!({
        "node": {"id": "n", "cluster": "c", "locality": {"zone": "a"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "cluster_manager": {"local_cluster_name": "local"},
        "static_resources": {"listeners": [
            listener("http", &manager), listener("tcp", &tcp("ring")), listener("aggregate", &tcp("agg-ring")),
        ], "clusters": clusters},
    })
}

/// Connects from an address of this machine.
fn connect(to: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address");
    socket.connect(&to.into()).expect("the proxy listens");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("an option");
    stream
}

/// Which endpoint each request of each case got, as `status endpoint`.
fn play(proxy: &Proxy, cases: &[Case]) -> Vec<Vec<String>> {
    let http = proxy.port("http");
    let mut stream = connect(http, Ipv4Addr::LOCALHOST);
    let play = |case: &Case| {
        let one = |(head, behind): &(String, String)| {
            let request = format!("GET /{}{behind} HTTP/1.1\r\nhost: a\r\n{head}\r\n", case.name);
            let (head, body) = ask(&mut stream, &request);
            format!("{} {body}", head.get(9..12).unwrap_or_default())
        };
        case.requests.iter().map(one).collect()
    };
    cases.iter().map(play).collect()
}

/// By the client's address: a TCP session, one to an aggregate cluster, and a request that no other policy says anything of.
fn by_address(proxy: &Proxy) -> Vec<[String; 3]> {
    let [http, tcp, aggregate] = ["http", "tcp", "aggregate"].map(|name| proxy.port(name));
    let sources = (2..40).map(|last| Ipv4Addr::new(127, 0, 0, last));
    let ask_both = |from| {
        let [session, strung] = [tcp, aggregate].map(|to| ask(&mut connect(to, from), "hello\r\n\r\n").1);
        let request = "GET /sources-terminal HTTP/1.1\r\nhost: a\r\n\r\n";
        let (_, request) = ask(&mut connect(http, from), request);
        [session, strung, request]
    };
    sources.map(ask_both).collect()
}

/// Cookies that a request without gets, with what must be in them taken out; then the endpoint
/// for the first one, again and again.
fn cookies(proxy: &Proxy) -> Vec<String> {
    let http = proxy.port("http");
    let mut stream = connect(http, Ipv4Addr::LOCALHOST);
    let addresses = format!("{}{}", stream.local_addr().expect("one"), stream.peer_addr().expect("one"));
    let value = format!("{:016x}", XxHash64::oneshot(0, addresses.as_bytes()));
    let (head, first) = ask(&mut stream, "GET /cookie HTTP/1.1\r\nhost: a\r\n\r\n");
    let cookies = head.lines().filter(|line| line.starts_with("set-cookie: "));
    let mut seen: Vec<String> = cookies.map(|line| line.replace(&value, "VALUE")).collect();
    let with = format!("GET /cookie HTTP/1.1\r\nhost: a\r\ncookie: sid=\"{value}\"; other={value}\r\n\r\n");
    for _ in 0..3 {
        let (head, again) = ask(&mut connect(http, Ipv4Addr::new(127, 0, 0, 9)), &with);
        assert!(!head.contains("set-cookie"), "{head}");
        assert_eq!(again, first, "the cookie leads elsewhere");
    }
    seen.push(ask(&mut stream, "GET /cookie HTTP/1.1\r\nhost: a\r\ncookie: sid=abc; other=def\r\n\r\n").1);
    seen
}

fn share_of(answers: &[String]) -> BTreeMap<&str, f64> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        *shares.entry(answer.as_str()).or_insert(0.0) += 100.0 / answers.len() as f64;
    }
    shares
}

#[test]
fn a_mixed_fleet_agrees() {
    let Some(envoy) = leno_testkit::envoy::binary() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let to = backends();
    let mut cases = cases(&to);
    cases.extend(aggregate::cases(&to));
    let config = bootstrap(&cases, &to).to_string();
    let start = |name, envoy| Proxy::start(name, folder.path(), envoy, |_| config.clone());
    let (ours, theirs) = (start("ours", None), start("envoy", Some(envoy.as_path())));

    let mut failures = String::new();
    for ((case, ours), theirs) in cases.iter().zip(play(&ours, &cases)).zip(play(&theirs, &cases)) {
        match case.compare {
            Compare::Each => {
                let wrong = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).count();
                if wrong > 0 {
                    let first =
                        ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs).unwrap_or(0);
                    failures += &format!(
                        "{}: {wrong} of {} differ, first {:?}: {} instead of {}\n",
                        case.name,
                        ours.len(),
                        case.requests[first],
                        ours[first],
                        theirs[first]
                    );
                }
            }
            Compare::Nothing => assert_eq!(ours.len(), theirs.len(), "{}", case.name),
            Compare::Shares => {
                let (ours, theirs) = (share_of(&ours), share_of(&theirs));
                let names = ours.keys().chain(theirs.keys());
                let share =
                    |of: &BTreeMap<&str, f64>, name: &&str| of.get(*name).copied().unwrap_or_default();
                // Five standard deviations of the difference of two samples: chance alone fails one
                // run in a million.
                let differs = |name: &&str| {
                    let (ours, theirs) = (share(&ours, name), share(&theirs, name));
                    let mean = (ours + theirs) / 200.0;
                    let deviation = (2.0 * mean * (1.0 - mean) / case.requests.len() as f64).sqrt();
                    (ours - theirs).abs() > 500.0 * deviation + 0.5
                };
                if names.into_iter().any(differs) {
                    failures += &format!("{}: {ours:?} instead of {theirs:?}\n", case.name);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    for count in aggregate::COUNTS {
        let read = |proxy: &Proxy| {
            let stats = proxy.admin("GET", &format!("/stats?filter=cluster.{count}$"));
            stats.lines().find(|line| line.contains(count)).map(str::to_owned)
        };
        assert_eq!(read(&ours), read(&theirs), "{count}");
    }
    assert_eq!(by_address(&ours), by_address(&theirs));
    assert_eq!(cookies(&ours), cookies(&theirs));
    ours.stop();
    theirs.stop();
}
