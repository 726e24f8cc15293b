//! Mirroring: a copy of the request goes to a shadow cluster; nobody waits for its answer.
//!
//! Deviation: the copy is sent when the request is complete, and only if it fits in the
//! buffer; Envoy streams it along.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::PickContext;
use crate::cluster::aggregate::Picked;
use crate::cluster::outlier::Report;
use crate::cluster::pool;
use crate::cluster::worker_cluster::WorkerCluster;
use crate::http::codec::ResetReason;
use crate::http::codec::h1::client::Answer;
use crate::http::forward::active::Active;
use crate::http::forward::body::RequestBody;
use crate::http::headers::{HeaderMap, Known};
use crate::http::normalize::{append_list, own_address};
use crate::http::route::{ClusterChoice, Mirror};
use crate::http::stream::{Stream, now};
use crate::telemetry::access_log::command::FormatContext;
use crate::worker::Worker;

/// How long a shadow request may take; Envoy uses the route's timeout.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(15);

/// A copy of a request that is to be made.
pub(crate) struct Copy {
    cluster: Rc<WorkerCluster>,
    mirror: Arc<Mirror>,
}

/// The copies that are made of this request.
pub(crate) fn chosen(stream: &Stream, mirrors: &[Arc<Mirror>], head: &HeaderMap) -> Vec<Copy> {
    let worker = &stream.worker;
    let mut copies = Vec::new();
    for mirror in mirrors {
        let (numerator, denominator) = mirror.fraction;
        // The same number for all, as in Envoy: shares of several mirrors overlap.
        if stream.random % u64::from(denominator.max(1)) >= u64::from(numerator) {
            continue;
        }
        let cluster = match &mirror.cluster {
            ClusterChoice::Name(name) => worker.cluster(name),
            ClusterChoice::Header(name) => {
                let name = head.find(name).and_then(|name| std::str::from_utf8(name).ok());
                name.and_then(|name| worker.cluster(name))
            }
            ClusterChoice::Weighted { .. } => None,
        };
        copies.extend(cluster.map(|cluster| Copy { cluster, mirror: Arc::clone(mirror) }));
    }
    copies
}

/// Sends copies of a complete request.
pub(crate) fn send(copies: Vec<Copy>, stream: &Stream, body: &RequestBody) {
    for Copy { cluster, mirror } in copies {
        if !body.complete || !body.can_replay() {
            cluster.stats.retry_or_shadow_abandoned().inc();
            continue;
        }
        let head = copied_head(&mirror, stream);
        let pieces = body.pieces().to_vec();
        let worker = Rc::clone(&stream.worker);
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(LIMIT, exchange(&worker, &cluster, head, pieces)).await;
        });
    }
}

/// The head of a copy: another host, from inside, and as the policy changes it.
fn copied_head(mirror: &Mirror, stream: &Stream) -> HeaderMap {
    let mut head = stream.request.clone();
    let host = match &mirror.host_rewrite {
        Some(host) => host.as_bytes().to_vec(),
        None if mirror.host_suffix => shadow_host(head.authority()),
        None => head.authority().to_vec(),
    };
    head.set(Known::Authority, &host);
    let context = FormatContext::new(&stream.info);
    for change in &mirror.changes {
        change.apply(&mut head, &context);
    }
    head.set(Known::EnvoyInternal, b"true");
    let own = own_address(stream.info.connection.direct_local.ip());
    append_list(&mut head, Known::XForwardedFor, own.to_string().as_bytes(), b",");
    head
}

/// `-shadow` behind the host, in front of the port.
fn shadow_host(authority: &[u8]) -> Vec<u8> {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    let colon = colon.filter(|at| !authority.get(*at..).unwrap_or_default().contains(&b']'));
    let (host, port) = authority.split_at(colon.unwrap_or(authority.len()));
    [host, b"-shadow", port].concat()
}

async fn exchange(
    worker: &Worker,
    cluster: &Rc<WorkerCluster>,
    head: HeaderMap,
    pieces: Vec<bytes::Bytes>,
) -> Option<()> {
    let context = PickContext { headers: Some(&head), ..PickContext::default() };
    let Picked { cluster: member, host, .. } = worker.pick(cluster, &context)?;
    let mut upstream = match pool::acquire(&member, &host, false, false).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            if failure.reason != ResetReason::Overflow {
                host.report(Report::Failed);
            }
            return None;
        }
    };
    host.report(Report::Connected);
    let _active = Active::new(&member, &host, false)?;
    let grpc = head.is_grpc();
    let started = now();
    let end = pieces.is_empty();
    upstream.send_head(&head, end).ok()?;
    let last = pieces.len();
    for (index, piece) in pieces.into_iter().enumerate() {
        upstream.send_data(piece, index + 1 == last);
    }
    let mut response = HeaderMap::new();
    loop {
        let answer = poll_fn(|cx| {
            let _ = upstream.poll_flush(cx);
            upstream.poll_head(cx, &mut response)
        });
        let Ok(answer) = answer.await else {
            host.report(Report::Failed);
            return None;
        };
        match answer {
            Answer::Interim => {}
            Answer::Final { end } => {
                host.report(Report::answer(&response, grpc));
                if end {
                    break;
                }
                while !poll_fn(|cx| upstream.poll_frame(cx)).await.ok()?.is_last() {}
                break;
            }
        }
    }
    cluster.stats.count_response(response.status(), true);
    cluster.stats.upstream_rq_time().record_ms(now().saturating_duration_since(started));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::shadow_host;

    #[test]
    fn the_shadow_suffix_goes_in_front_of_the_port() {
        for (host, expected) in [("a.b", "a.b-shadow"), ("a:80", "a-shadow:80"), ("[::1]", "[::1]-shadow")] {
            assert_eq!(String::from_utf8_lossy(&shadow_host(host.as_bytes())), expected);
        }
    }
}
