//! The bookinfo sample, request by request, under both proxies.

use std::time::Duration;

use leno_testkit::envoy;

use crate::load::{Answer, ask, ask_until, client};
use crate::mesh::{Mesh, Proxy, namespaces};

/// One request and what must come of it.
struct Case {
    name: &'static str,
    /// Rule files to apply before.
    rules: &'static [&'static str],
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    status: u16,
    /// Texts that the body must hold, and texts that it must not.
    with: &'static [&'static str],
    without: &'static [&'static str],
}

const GET: Case = Case {
    name: "",
    rules: &[],
    method: "GET",
    path: "/",
    headers: &[],
    status: 200,
    with: &[],
    without: &[],
};

const SUBSETS: &str = "bookinfo/rules/destination-rules.yaml";

/// In order: rules stay applied.
const CASES: &[Case] = &[
    Case { name: "the page has all its parts", path: "/productpage", with: &["Reviews", "Publisher"], ..GET },
    Case { name: "a path that no route takes", path: "/admin", status: 404, ..GET },
    Case { name: "exact matches are exact", path: "/productpage/", status: 404, ..GET },
    Case { name: "a prefix match", path: "/api/v1/products/0", with: &["\"id\""], ..GET },
    Case { name: "a query does not disturb the match", path: "/productpage?u=normal", ..GET },
    Case {
        name: "all reviews from v1",
        rules: &[SUBSETS, "bookinfo/rules/reviews-all-v1.yaml"],
        path: "/productpage",
        with: &["reviews-v1-"],
        without: &["★"],
        ..GET
    },
    Case {
        name: "all reviews from v3",
        rules: &["bookinfo/rules/reviews-all-v3.yaml"],
        path: "/productpage",
        with: &["reviews-v3-", "★"],
        ..GET
    },
    Case {
        name: "jason gets v2",
        rules: &["bookinfo/rules/reviews-by-header.yaml"],
        path: "/productpage",
        headers: &[("end-user", "jason")],
        with: &["reviews-v2-"],
        ..GET
    },
    Case { name: "others get v1", path: "/productpage", with: &["reviews-v1-"], without: &["★"], ..GET },
];

async fn run(proxy: &Proxy) {
    let mesh = Mesh::up("bookinfo", proxy);
    let client = client();
    for case in CASES {
        // All rule files are about the one VirtualService: the newest replaces the others.
        for rules in case.rules {
            if *rules == SUBSETS {
                mesh.apply(rules);
            } else {
                let text =
                    std::fs::read_to_string(crate::mesh::repository().join("samples").join(rules)).unwrap();
                mesh.write("reviews.yaml", &text);
            }
        }
        let url = mesh.url(case.path);
        let good = |answer: &Answer| {
            answer.status == case.status
                && case.with.iter().all(|text| answer.body.contains(text))
                && !case.without.iter().any(|text| answer.body.contains(text))
        };
        ask_until(&url, case.headers, good).await;
        // Once it is so it stays so.
        for _ in 0..5 {
            let answer = ask(&client, case.method, &url, case.headers).await.unwrap();
            assert!(good(&answer), "{}: {answer:?}", case.name);
        }
    }
    assert_eq!(mesh.count_lines("rejected"), 0, "{}", mesh.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_answers_with_our_proxy() {
    if namespaces() {
        run(&Proxy::Leno).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_answers_with_the_real_envoy() {
    if let (true, Some(envoy)) = (namespaces(), envoy::binary()) {
        run(&Proxy::Envoy(envoy)).await;
    }
}

/// A Gateway of the Gateway API has a gateway deployed for it, which follows its ports and goes with it.
async fn ways_of_the_gateway_api(proxy: &Proxy) {
    let mesh = Mesh::up("bookinfo", proxy);
    let sample = crate::mesh::repository().join("samples/bookinfo/gateway-api/bookinfo-gateway.yaml");
    let sample = std::fs::read_to_string(sample).unwrap();
    let client = client();
    for port in [8081, 8082] {
        let text = sample.replace("port: 80\n", &format!("port: {port}\n"));
        assert_ne!(text, sample);
        mesh.write("way.yaml", &text);
        let url = |path: &str| format!("http://{}:{port}{path}", mesh.address);
        ask_until(&url("/productpage"), &[], |it| it.status == 200 && it.body.contains("Reviews")).await;
        assert_eq!(ask(&client, "GET", &url("/admin"), &[]).await.unwrap().status, 404);
    }
    assert!(mesh.verb(&["ps"]).contains("bookinfo-gateway-istio-"), "{}", mesh.verb(&["ps"]));
    assert!(std::net::TcpStream::connect((mesh.address, 8081)).is_err());
    mesh.write("way.yaml", "---\n");
    let gone = async {
        while mesh.verb(&["ps"]).contains("bookinfo-gateway-istio-") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it goes with its Gateway");
    assert!(std::net::TcpStream::connect((mesh.address, 8082)).is_err());
    assert_eq!(ask(&client, "GET", &mesh.url("/productpage"), &[]).await.unwrap().status, 200);
    assert_eq!(mesh.count_lines("rejected"), 0, "{}", mesh.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_of_the_gateway_api_with_our_proxy() {
    if namespaces() {
        ways_of_the_gateway_api(&Proxy::Leno).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_of_the_gateway_api_with_the_real_envoy() {
    if let (true, Some(envoy)) = (namespaces(), envoy::binary()) {
        ways_of_the_gateway_api(&Proxy::Envoy(envoy)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_those_of_istio() {
    if !namespaces() {
        return;
    }
    let mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let answer = ask(&client(), "GET", &mesh.url("/productpage"), &[]).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["server"], "istio-envoy");
    assert!(answer.headers.contains_key("x-envoy-upstream-service-time"), "{:?}", answer.headers);
}
