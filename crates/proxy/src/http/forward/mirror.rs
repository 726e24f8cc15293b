//! Mirroring: a copy of the request goes to a shadow cluster; nobody waits for its answer.
//!
//! Deviation: the copy is sent when the request is complete, and only if it fits in the
//! buffer; Envoy streams it along.

use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::worker_cluster::WorkerCluster;
use crate::http::client::{self, Answer, Call, CallError, Wanted};
use crate::http::forward::body::RequestBody;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::{ClusterChoice, Mirror};
use crate::http::stream::Stream;
use crate::telemetry::access_log::command::FormatContext;

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
        let body = body.pieces().to_vec();
        let worker = Rc::clone(&stream.worker);
        let call = Call {
            head,
            body,
            timeout: Some(LIMIT),
            answer: Wanted::Nothing,
            host: std::cell::Cell::default(),
        };
        tokio::task::spawn_local(async move {
            let _: Result<Answer, CallError> = client::send(&worker, &cluster, &call).await;
        });
    }
}

/// The head of a copy: another host, from inside, and as the policy changes it.
fn copied_head(mirror: &Mirror, stream: &Stream) -> HeaderMap {
    let mut head = stream.request.clone();
    if !mirror.sampled {
        stream.trace_unsampled(&mut head);
    }
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
    client::announce(&mut head, stream.info.connection.direct_local.ip());
    head
}

/// `-shadow` behind the host, in front of the port.
fn shadow_host(authority: &[u8]) -> Vec<u8> {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    let colon = colon.filter(|at| !authority.get(*at..).unwrap_or_default().contains(&b']'));
    let (host, port) = authority.split_at(colon.unwrap_or(authority.len()));
    [host, b"-shadow", port].concat()
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
