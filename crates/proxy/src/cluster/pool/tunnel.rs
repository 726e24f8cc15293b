//! A connection of bytes alone: what is behind a CONNECT that ends here (`connect_config`).

use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::{Count, PoolFailure, Protocols, Target, connect, now};
use crate::cluster::pool::ConnectError;
use crate::cluster::stats::{Permit, Resource};
use crate::cluster::worker_cluster::{Host, WorkerCluster};
use crate::http::codec::buffer::Transport;
use crate::http::codec::h1::client::Answer;
use crate::http::codec::{Frame, ResetReason};
use crate::http::headers::HeaderMap;
use crate::tls::TlsInfo;

/// An open connection, for one request alone.
pub(crate) struct Tunnel {
    transport: Transport,
    count: Count,
    local: Option<SocketAddr>,
    /// Our direction ends when all is written.
    ending: bool,
    /// The endpoint's direction has ended.
    ended: bool,
    broken: bool,
}

/// Opens a connection.
pub(crate) async fn open(
    cluster: &WorkerCluster,
    host: &Host,
    high_priority: bool,
) -> Result<Box<Tunnel>, PoolFailure> {
    let stats = &cluster.stats;
    let Some(permit) = Permit::take(&cluster.config, Resource::Connections, high_priority) else {
        stats.upstream_cx_overflow().inc();
        return Err(PoolFailure { reason: ResetReason::Overflow, detail: None });
    };
    let protocols = Protocols::of(&cluster.config, false);
    let target = Rc::new(Target::new(cluster, host, &host.pool, protocols));
    stats.upstream_cx_total().inc();
    stats.upstream_rq_pending_total().inc();
    let started = now();
    let mut count = Count::new(&target, permit);
    let via = host.pool.borrow().via.clone();
    match connect::open(target.peer(via.as_deref())).await {
        Ok((socket, tls)) => {
            count.tls = tls;
            stats.upstream_cx_connect_ms().record_ms(now().saturating_duration_since(started));
            let local = socket.local_address();
            let transport = Transport::new(socket, BytesMut::new());
            Ok(Box::new(Tunnel { transport, count, local, ending: false, ended: false, broken: false }))
        }
        Err(error) => {
            stats.upstream_cx_connect_fail().inc();
            stats.upstream_rq_pending_failure_eject().inc();
            host.counts.cx_connect_fail.set(host.counts.cx_connect_fail.get() + 1);
            if error == ConnectError::Timeout {
                stats.upstream_cx_connect_timeout().inc();
                stats.upstream_cx_destroy_local().inc();
            } else {
                stats.upstream_cx_destroy_remote().inc();
            }
            Err(PoolFailure { reason: error.reason(), detail: error.detail() })
        }
    }
}

impl Tunnel {
    /// Its TLS session.
    pub(crate) fn tls(&self) -> Option<&Rc<TlsInfo>> {
        self.count.tls.as_ref()
    }

    /// Our address on it.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The connection's number.
    pub(crate) fn connection_id(&self) -> u64 {
        self.count.id
    }

    /// Bytes sent and received.
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        (self.transport.sent, self.transport.received)
    }

    /// Writes bytes.
    pub(crate) fn send_data(&mut self, data: Bytes, end: bool) {
        if !data.is_empty() {
            self.transport.output.push(data);
        }
        self.ending |= end;
    }

    /// The answer to the CONNECT: the connection is there.
    pub(crate) fn head(map: &mut HeaderMap) -> Answer {
        map.clear();
        map.set_status(200);
        Answer::Final { end: false }
    }

    /// The next bytes.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ResetReason>> {
        loop {
            if !self.transport.input.is_empty() {
                let data = self.transport.input.split().freeze();
                return Poll::Ready(Ok(Frame::Data { data, end: false }));
            }
            if self.ended {
                return Poll::Pending;
            }
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) => {
                    self.ended = true;
                    return Poll::Ready(Ok(Frame::End));
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(Err(ResetReason::ConnectionTermination)),
            }
        }
    }

    /// Writes what waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.broken {
            return Poll::Ready(());
        }
        if ready!(self.transport.poll_flush(cx)).is_err() {
            self.broken = true;
        } else if self.ending {
            self.ending = false;
            let _: Poll<std::io::Result<()>> = self.transport.poll_shutdown(cx);
        }
        Poll::Ready(())
    }

    /// Ready when more may be written.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.broken && ready!(self.transport.poll_room(cx)).is_err() {
            self.broken = true;
        }
        Poll::Ready(())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let stats = &self.count.target.stats;
        stats.upstream_cx_rx_bytes_total().add(self.transport.received);
        stats.upstream_cx_tx_bytes_total().add(self.transport.sent);
        if self.ended {
            stats.upstream_cx_destroy_remote().inc();
        } else {
            stats.upstream_cx_destroy_local().inc();
        }
    }
}
