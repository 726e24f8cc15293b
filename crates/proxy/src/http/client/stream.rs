//! gRPC calls to which messages are sent as they come, as long as the call lives (client streaming),
//! and services that are called so again and again.

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;

use super::config::GrpcTarget;
use super::grpc::frame;
use super::{Call, CallError};
use crate::cluster::PickContext;
use crate::cluster::aggregate::Picked;
use crate::cluster::outlier::Report;
use crate::cluster::pool;
use crate::cluster::worker_cluster::Asker;
use crate::config::lower::Lower;
use crate::http::codec::Frame;
use crate::http::codec::h1::client::Answer as Head;
use crate::http::codec::side::Upstream;
use crate::http::forward::active::Active;
use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::collector::{Headers, LOCAL, PATIENCE, check_cluster, grpc_service};
use crate::worker::Worker;

/// A service that is told something all the time.
#[derive(Debug)]
pub(crate) struct Service {
    target: GrpcTarget,
    /// Further headers of calls.
    headers: Headers,
    /// `/service/method`
    path: &'static str,
}

impl Service {
    /// Lowers a GrpcService whose method is called.
    pub(crate) fn lower(proto: core::GrpcService, path: &'static str, at: &mut Lower) -> Option<Self> {
        let (target, headers) = grpc_service(proto, at)?;
        Some(Self { target, headers, path })
    }

    /// Refuses one whose cluster is not there, where all that is is known, as Envoy does of some.
    pub(crate) fn check(&self, at: &mut Lower) {
        check_cluster(&self.target, at);
    }
}

/// A call of a service that is begun when there is something to be said, and anew when it has ended.
pub(crate) struct LastingStream<'s> {
    service: &'s Service,
    call: Option<GrpcStream>,
}

impl<'s> LastingStream<'s> {
    /// Begins nothing yet.
    pub(crate) fn new(service: &'s Service) -> Self {
        Self { service, call: None }
    }

    /// Reads what comes, until the call has ended; for ever if there is none.
    pub(crate) async fn ended(&mut self) {
        match &mut self.call {
            Some(call) => poll_fn(|cx| call.poll_ended(cx)).await,
            None => std::future::pending().await,
        }
        self.call = None;
    }

    /// Sends a message, behind what the first one of a call begins with; false: it is lost.
    pub(crate) async fn send(&mut self, worker: &Worker, first: &[u8], message: &[u8]) -> bool {
        let mut call = match self.call.take() {
            Some(mut call) => {
                call.send(message);
                call
            }
            None => {
                let Service { target, headers, path } = self.service;
                let authority = target.authority.as_deref();
                match GrpcStream::open(worker, &target.cluster, authority, path, headers, LOCAL).await {
                    Ok(mut call) => {
                        call.send(&[first, message].concat());
                        call
                    }
                    // As in Envoy, what cannot be sent is gone.
                    Err(error) => {
                        tracing::debug!(target: "grpc", ?error, cluster = &*target.cluster, path, "there is no service");
                        return false;
                    }
                }
            }
        };
        let sent = poll_fn(|cx| match call.poll_ended(cx) {
            Poll::Ready(()) => Poll::Ready(false),
            Poll::Pending => call.poll_room(cx).map(|()| true),
        });
        let sent = tokio::time::timeout(PATIENCE, sent).await.unwrap_or(false);
        if sent {
            self.call = Some(call);
        }
        sent
    }

    /// Ends the call, if there is one, and waits until the service has ended it too.
    pub(crate) async fn finish(self) {
        if let Some(call) = self.call {
            call.finish().await;
        }
    }
}

/// A call under way. Dropping it ends it.
pub(crate) struct GrpcStream {
    up: Upstream,
    active: Active,
    head: HeaderMap,
    /// The answer's head was read.
    answered: bool,
}

impl GrpcStream {
    /// Begins a call to `/service/method` at a host of the cluster.
    ///
    /// # Errors
    /// There is no such cluster, host or connection.
    pub(crate) async fn open(
        worker: &Worker,
        cluster: &str,
        authority: Option<&str>,
        path: &str,
        metadata: &[(Box<str>, Box<str>)],
        local: IpAddr,
    ) -> Result<Self, CallError> {
        let mut request = Call::new("POST", authority.unwrap_or(cluster), path, local);
        request.head.append_known(Known::Te, b"trailers");
        request.head.append_known(Known::ContentType, b"application/grpc");
        for (name, value) in metadata {
            request.head.append(name.as_bytes(), value.as_bytes());
        }
        let cluster = worker.cluster(cluster).ok_or(CallError::NoCluster)?;
        let context = PickContext { headers: Some(&request.head), ..PickContext::default() };
        let Some(Picked { cluster: member, host, .. }) = worker.pick(&cluster, &context) else {
            cluster.stats.upstream_cx_none_healthy().inc();
            return Err(CallError::NoHost);
        };
        let mut up = match pool::acquire(&member, &host, true, false).await {
            Ok(upstream) => upstream,
            Err(failure) => {
                host.report(Report::Failed);
                count(worker, &cluster, 503);
                return Err(CallError::Failed(failure.reason));
            }
        };
        host.report(Report::Connected);
        let Some(active) = Active::new(&member, &host, false) else {
            cluster.stats.upstream_rq_active_overflow().inc();
            return Err(CallError::Failed(crate::http::codec::ResetReason::Overflow));
        };
        up.send_head(&request.head, false).map_err(CallError::Failed)?;
        count(worker, &cluster, 200);
        Ok(Self { up, active, head: HeaderMap::new(), answered: false })
    }

    /// Sends a message, as soon as the peer takes it.
    pub(crate) fn send(&mut self, message: &[u8]) {
        self.up.send_data(frame(message), false);
    }

    /// Ready when the peer takes more.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.up.poll_flush(cx);
        self.up.poll_room(cx)
    }

    /// Writes what waits, and reads what comes; ready when the call has ended.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.up.poll_flush(cx);
        while !self.answered {
            match ready!(self.up.poll_head(cx, &mut self.head)) {
                Ok(Head::Interim) => {}
                Ok(Head::Final { end: false }) => self.answered = true,
                Ok(Head::Final { end: true }) => {
                    self.active.answered(self.head.status());
                    return Poll::Ready(());
                }
                Err(_) => {
                    self.active.failed();
                    return Poll::Ready(());
                }
            }
        }
        loop {
            match ready!(self.up.poll_frame(cx)) {
                Ok(Frame::Data { end: false, data: _ }) => {}
                Ok(Frame::Data { end: true, .. } | Frame::Trailers(_) | Frame::End) => {
                    self.active.answered(self.head.status());
                    return Poll::Ready(());
                }
                Err(_) => {
                    self.active.failed();
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Ends the call from this side, and waits until the peer has ended it too.
    pub(crate) async fn finish(mut self) {
        self.up.send_data(Bytes::new(), true);
        poll_fn(|cx| self.poll_ended(cx)).await;
    }
}

/// Counts that a call was begun, or could not be.
fn count(worker: &Worker, cluster: &Rc<crate::cluster::worker_cluster::WorkerCluster>, status: u16) {
    cluster.stats.count_response(status, true);
    cluster.answers(worker.stats(), Asker::Internal).count_response(status, true);
}
