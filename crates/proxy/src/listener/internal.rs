//! Internal listeners: connections from a cluster of this proxy to a listener of this proxy, on
//! the same worker (envoy.bootstrap.internal_listener, `envoy_internal_address`).
//!
//! The two ends are a pair of connected Unix sockets: the kernel brings backpressure, half-close
//! and readiness, and every codec works on them as on any other connection. What the upstream
//! side passes on (envoy.transport_sockets.internal_upstream) becomes the downstream side's
//! dynamic metadata, from which listener filter original_dst reads the destination.
//!
// Deviation: Envoy's internal connections are buffers in memory; `buffer_size_kb` is the size of
// the socket's send buffer here.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use serde_json::Value;
use tokio::net::UnixStream;

use crate::io::Socket;
use crate::listener::accept;
use crate::listener::inspect::Inspected;
use crate::telemetry::stream_info::{DynamicMetadata, Found};
use crate::worker::Worker;

thread_local! {
    /// The worker of this thread, whose listeners internal connections lead to.
    static WORKER: RefCell<Weak<Worker>> = const { RefCell::new(Weak::new()) };
}

/// Makes this worker's listeners reachable from this thread.
pub(crate) fn register(worker: &Rc<Worker>) {
    WORKER.with_borrow_mut(|registered| *registered = Rc::downgrade(worker));
}

/// Connects to the internal listener with this name, which finds `metadata` in its connection.
///
/// # Errors
/// There is no such listener (on the main thread there is none at all), it is full, or the system
/// has no more sockets.
pub(crate) fn connect(name: &str, metadata: DynamicMetadata) -> io::Result<Socket> {
    let worker = WORKER.with_borrow(Weak::upgrade);
    let listener = worker.as_ref().and_then(|worker| worker.listener(name));
    let (Some(worker), Some(listener)) = (worker, listener.filter(|listener| listener.config.internal))
    else {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "no internal listener"));
    };
    let (near, far) = UnixStream::pair()?;
    if let Some(bytes) = worker.internal_buffer() {
        for end in [&near, &far] {
            socket2::SockRef::from(end).set_send_buffer_size(bytes)?;
        }
    }
    let found = Found { metadata, ..Found::default() };
    if !accept::take_internal(&worker, &listener, Socket::Unix(far), found) {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "refused by the internal listener"));
    }
    Ok(Socket::Unix(near))
}

/// Where metadata of an upstream host says that its connections go.
pub(crate) const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// Restores the destination that the upstream side passed on.
pub(super) fn restore(found: &mut Inspected) {
    let object = found.found.metadata.get(ORIGINAL_DST);
    let address =
        |key: &str| -> Option<SocketAddr> { object?.get(key).and_then(Value::as_str)?.parse().ok() };
    let (local, remote) = (address("local"), address("remote"));
    if let Some(local) = local {
        found.local = local;
        found.restored = true;
    }
    if let Some(remote) = remote {
        found.remote = remote;
    }
}
