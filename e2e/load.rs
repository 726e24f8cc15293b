//! Requests to a mesh: one, until an answer is as hoped, or many at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

type Connections = Client<HttpConnector, Empty<Bytes>>;

/// A client that keeps its connections.
pub(crate) fn client() -> Connections {
    Client::builder(TokioExecutor::new()).build_http()
}

/// One request.
pub(crate) async fn ask(
    client: &Connections,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(30), client.request(request)).await;
    let answer =
        answer.map_err(|_| "no answer within 30 s".to_owned())?.map_err(|error| format!("{error:?}"))?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}

/// How many good answers in a row show that it is not luck: without a rule, one of three
/// versions of a service answers at random.
const IN_A_ROW: u32 = 10;

/// Asks again and again until answers are `good`, and stay so; panics with the last one after a
/// minute.
pub(crate) async fn ask_until(url: &str, headers: &[(&str, &str)], good: impl Fn(&Answer) -> bool) {
    let client = client();
    let start = Instant::now();
    let mut in_a_row = 0;
    while in_a_row < IN_A_ROW {
        let answer = ask(&client, "GET", url, headers).await;
        in_a_row = if answer.as_ref().is_ok_and(&good) { in_a_row + 1 } else { 0 };
        assert!(start.elapsed() < Duration::from_secs(60), "{url}: still {answer:?}");
    }
}

/// Requests that go on in the background until stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Counts>>,
}

/// What a load has seen: answers by class of body, failures by text.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answers: BTreeMap<String, u64>,
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Load {
    /// Starts `connections` that each ask `url` as fast as they get answers; `classify` names
    /// what an answer is. An answer that is not 200 is a failure.
    pub(crate) fn start(url: &str, connections: usize, classify: fn(&Answer) -> String) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let tasks = (0..connections).map(|_| {
            let (stop, done, url) = (Arc::clone(&stop), Arc::clone(&done), url.to_owned());
            tokio::spawn(async move {
                let client = client();
                let mut counts = Counts::default();
                while !stop.load(Ordering::Relaxed) {
                    match ask(&client, "GET", &url, &[]).await {
                        Ok(answer) if answer.status == 200 => {
                            *counts.answers.entry(classify(&answer)).or_default() += 1;
                        }
                        Ok(answer) => {
                            *counts
                                .failures
                                .entry(format!("{} {}", answer.status, answer.body))
                                .or_default() += 1;
                        }
                        Err(error) => *counts.failures.entry(error).or_default() += 1,
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                counts
            })
        });
        Load { stop: Arc::clone(&stop), done: Arc::clone(&done), tasks: tasks.collect() }
    }

    /// Waits until so many more requests were answered.
    pub(crate) async fn more(&self, requests: u64) {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        while self.done.load(Ordering::Relaxed) < goal {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it and sums up.
    pub(crate) async fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Counts::default();
        for task in self.tasks {
            let counts = task.await.unwrap();
            for (class, count) in counts.answers {
                *sum.answers.entry(class).or_default() += count;
            }
            for (text, count) in counts.failures {
                *sum.failures.entry(text).or_default() += count;
            }
        }
        sum
    }
}

impl Counts {
    /// Share of a class among the answers, in percent.
    pub(crate) fn share(&self, class: &str) -> f64 {
        let total: u64 = self.answers.values().sum();
        100.0 * self.answers.get(class).copied().unwrap_or(0) as f64 / total.max(1) as f64
    }
}
