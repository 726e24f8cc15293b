//! Calls of the proxy's own.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use leno_testkit::http::{Action, Scripted, Seen};

use super::h2::echo;
use super::{HTTP2, Proxy, cluster, run};
use crate::http::client::grpc::{Status, Unary, unary};
use crate::http::client::{Call, CallError, Wanted, call};
use crate::http::codec::ResetReason;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn get(path: &str) -> Call {
    Call::new("GET", "service", path, LOCAL)
}

#[test]
fn a_call_is_answered_and_counted() {
    run(async {
        let upstream = Scripted::start(|seen: &Seen| {
            if seen.head.starts_with("GET /close") {
                return Action::SendAndClose(Vec::new());
            }
            Action::ok(&"x".repeat(10))
        });
        let upstream = upstream.await.expect("an upstream");
        let empty = "name: empty\ntype: STATIC\nload_assignment: {cluster_name: empty}\n".to_owned();
        let proxy = Proxy::start("[]", "", &[cluster("up", upstream.address, ""), empty]).await;
        let worker = &*proxy.worker;
        let mut post = Call::new("POST", "service", "/a", LOCAL);
        post.body = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
        let answer = call(worker, "up", &post).await.expect("an answer");
        assert_eq!((answer.head.status(), &answer.body[..]), (200, &b"xxxxxxxxxx"[..]));
        let seen = upstream.seen();
        assert_eq!(seen[0].body, b"abc");
        assert_eq!(seen[0].header("x-envoy-internal"), Some("true"));
        assert_eq!(seen[0].header("x-forwarded-for"), Some("10.0.0.1"));
        assert_eq!(seen[0].header("host"), Some("service"));
        let short = Call { answer: Wanted::All(9), ..get("/") };
        assert_eq!(call(worker, "up", &short).await.map(drop), Err(CallError::TooLong));
        let nothing = Call { answer: Wanted::Nothing, ..get("/") };
        assert_eq!(call(worker, "up", &nothing).await.map(|answer| answer.body), Ok(Bytes::new()));
        assert_eq!(call(worker, "none", &get("/")).await.map(drop), Err(CallError::NoCluster));
        assert_eq!(call(worker, "empty", &get("/")).await.map(drop), Err(CallError::NoHost));
        let broken = Err(CallError::Failed(ResetReason::ConnectionTermination));
        assert_eq!(call(worker, "up", &get("/close")).await.map(drop), broken);
        for (stat, value) in [
            ("http.async-client.rq_total", 6),
            ("http.async-client.no_cluster", 1),
            ("cluster.empty.upstream_cx_none_healthy", 1),
            ("cluster.empty.internal.upstream_rq_5xx", 1),
            ("cluster.up.internal.upstream_rq_2xx", 2),
            ("cluster.up.upstream_rq_2xx", 2),
            ("cluster.up.upstream_rq_active", 0),
        ] {
            assert_eq!(proxy.stat(stat), value, "{stat}");
        }
    });
}

#[test]
fn a_call_ends_in_time_and_leaves_nothing_behind() {
    run(async {
        let upstream = Scripted::start(|_: &Seen| Action::Hang).await.expect("an upstream");
        let proxy = Proxy::start("[]", "", &[cluster("up", upstream.address, "")]).await;
        // Long enough for a connection on a busy machine.
        let late = Call { timeout: Some(Duration::from_millis(300)), ..get("/") };
        let outcome = call(&proxy.worker, "up", &late).await;
        assert_eq!(outcome.map(drop), Err(CallError::Timeout));
        assert_eq!(proxy.stat("cluster.up.upstream_rq_timeout"), 1);
        assert_eq!(proxy.stat("cluster.up.upstream_rq_active"), 0);
        assert_eq!(proxy.stat("cluster.up.upstream_cx_active"), 0);
    });
}

#[test]
fn a_unary_call_carries_a_message_each_way() {
    run(async {
        let proxy = Proxy::start("[]", "", &[cluster("up", echo().await, HTTP2)]).await;
        let ask = |method: &'static str, cluster: &'static str| {
            let worker = Rc::clone(&proxy.worker);
            async move {
                let message = Bytes::from_static(b"message");
                let timeout = Some(Duration::from_secs(5));
                let call = Unary {
                    service: "a.B",
                    method,
                    authority: None,
                    metadata: &[],
                    message,
                    timeout,
                    local: LOCAL,
                };
                unary(&worker, cluster, &call).await
            }
        };
        assert_eq!(ask("Call", "up").await, Ok(Bytes::from_static(b"message")));
        let unavailable = Err(Status { code: 14, message: "".into() });
        assert_eq!(ask("Call", "none").await, unavailable);
        assert_eq!(proxy.stat("cluster.up.internal.upstream_rq_2xx"), 1);
    });
}
