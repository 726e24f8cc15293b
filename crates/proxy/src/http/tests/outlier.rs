//! Outlier detection from the answers of a host to the requests that others get instead.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use leno_testkit::http::{Action, Client, Scripted};
use tokio::sync::mpsc;

use super::{Proxy, run, until};
use crate::cluster::outlier::watch::{self, Task};

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
const ROUTE: &str = "[{match: {prefix: /}, route: {cluster: up}}]";

async fn host(status: u16) -> Scripted {
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").into_bytes();
    Scripted::start(move |_| Action::Send(answer.clone())).await.expect("an upstream")
}

/// A cluster of these ports with this outlier detection.
fn cluster(ports: &[u16], detection: &str) -> String {
    let address = |port| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    };
    let endpoints: Vec<String> = ports.iter().map(address).collect();
    format!(
        "name: up\ntype: STATIC\nconnect_timeout: 1s\noutlier_detection: {detection}\nload_assignment: \
         {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}\n",
        endpoints.join(", ")
    )
}

/// What the main thread does for its workers, and how often it told them something so far.
fn watch(proxy: &Proxy) -> (Task, Rc<std::cell::Cell<u32>>) {
    let config = Arc::clone(&proxy.worker.cluster("up").expect("the cluster").config);
    let (changed, mut changes) = mpsc::unbounded_channel();
    let tell = move || changed.send(()).expect("the test listens");
    let task = watch::start(&config, &proxy.stats.thread(), None, tell).expect("a detector");
    let told = Rc::new(std::cell::Cell::new(0));
    let (worker, count) = (Rc::clone(&proxy.worker), Rc::clone(&told));
    tokio::task::spawn_local(async move {
        while changes.recv().await.is_some() {
            worker.regroup(&config.name);
            count.set(count.get() + 1);
        }
    });
    (task, told)
}

async fn statuses(client: &mut Client, requests: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..requests {
        statuses.push(client.call(GET).await.expect("an answer").0);
    }
    statuses
}

#[test]
fn a_host_that_answers_with_errors_is_left_out_for_a_while() {
    run(async {
        let (bad, good) = (host(500).await, host(200).await);
        let up = cluster(&[bad.address.port(), good.address.port()], "{max_ejection_percent: 50}");
        let proxy = Proxy::start(ROUTE, "", &[up]).await;
        let (_task, told) = watch(&proxy);
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let mut failed = 0;
        while failed < 5 {
            failed += statuses(&mut client, 1).await.iter().filter(|status| **status == 500).count();
        }
        until(|| told.get() == 1).await;
        assert_eq!(statuses(&mut client, 10).await, [200; 10]);
        for (stat, value) in [
            ("ejections_active", 1),
            ("ejections_detected_consecutive_5xx", 1),
            ("ejections_enforced_consecutive_5xx", 1),
            ("ejections_enforced_total", 1),
            ("ejections_overflow", 0),
        ] {
            assert_eq!(proxy.stat(&format!("cluster.up.outlier_detection.{stat}")), value, "{stat}");
        }

        // At an interval's end after 30 s.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(40)).await;
        tokio::time::resume();
        until(|| told.get() == 2).await;
        assert_eq!(proxy.stat("cluster.up.outlier_detection.ejections_active"), 0);
        let mut after = statuses(&mut client, 4).await;
        after.sort_unstable();
        assert_eq!(after, [200, 200, 500, 500]);
    });
}

#[test]
fn a_host_that_cannot_be_reached_is_left_out_too() {
    run(async {
        let good = host(200).await;
        // Nobody listens on port 1.
        let detection = "{max_ejection_percent: 50, split_external_local_origin_errors: true, \
                         consecutive_local_origin_failure: 2}";
        let proxy = Proxy::start(ROUTE, "", &[cluster(&[1, good.address.port()], detection)]).await;
        let (_task, told) = watch(&proxy);
        let mut client = Client::connect(proxy.address).await.expect("a connection");
        let mut failed = 0;
        while failed < 2 {
            failed += statuses(&mut client, 1).await.iter().filter(|status| **status == 503).count();
        }
        until(|| told.get() == 1).await;
        assert_eq!(statuses(&mut client, 6).await, [200; 6]);
        let stat = "cluster.up.outlier_detection.ejections_enforced_consecutive_local_origin_failure";
        assert_eq!(proxy.stat(stat), 1);
    });
}
