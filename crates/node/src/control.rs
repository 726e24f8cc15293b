//! The control socket between the inner and the outer process: a Unix socket pair of whole messages
//! (`SOCK_SEQPACKET`), each one JSON object. The inner one says once whether its node stands, and then asks for
//! host ports; the outer one answers each request in order, with the listening socket attached (`SCM_RIGHTS`).
//!
//! A socket belongs to the network namespace in which it was created, whoever holds it: that is the point.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::error::NodeError;

const LARGEST: usize = 4096;

/// From the inner process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    /// The node stands, or why it does not. Not answered.
    Entered { failure: Option<Failure> },
    /// A listening socket on this address of the host.
    Bind { address: SocketAddr },
}

/// From the outer process, to a `Bind`.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    failure: Option<Failure>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    step: String,
    /// The operating system's number, so that EADDRINUSE stays one; the text if there is none.
    errno: Option<i32>,
    text: String,
}

impl Failure {
    fn of(step: &str, error: &io::Error) -> Failure {
        Failure { step: step.into(), errno: error.raw_os_error(), text: error.to_string() }
    }

    fn into_error(self) -> io::Error {
        self.errno.map_or_else(|| io::Error::other(self.text), io::Error::from_raw_os_error)
    }
}

/// The inner process's way to the ports of the host. Clones share one socket.
#[derive(Clone, Debug)]
pub struct Publisher {
    socket: Arc<Mutex<OwnedFd>>,
}

impl Publisher {
    pub(crate) fn new(socket: OwnedFd) -> Publisher {
        Publisher { socket: Arc::new(Mutex::new(socket)) }
    }

    /// Binds a TCP address of the host, IPv4 or IPv6, and listens on it. Port 0 takes any free one:
    /// `local_addr` tells which. The listener is non-blocking (for `tokio::net::TcpListener::from_std`); its
    /// connections come from the host, and the port is free again once it is dropped.
    ///
    /// # Errors
    ///
    /// The outer process's own, with the number it had: `AddrInUse`, `PermissionDenied` (ports below 1024),
    /// `AddrNotAvailable`.
    pub async fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let publisher = self.clone();
        tokio::task::spawn_blocking(move || publisher.bind_blocking(address))
            .await
            .map_err(|e| io::Error::other(e.to_string()))?
    }

    /// The same for callers that may block; the outer process answers at once.
    pub fn bind_blocking(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send(socket.as_fd(), &Request::Bind { address }, None)?;
        let Some((answer, file)) = receive::<Answer>(socket.as_fd())? else {
            return Err(Errno::PIPE.into());
        };
        if let Some(failure) = answer.failure {
            return Err(failure.into_error());
        }
        let listener = TcpListener::from(file.ok_or_else(|| io::Error::other("an answer without a socket"))?);
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    pub(crate) fn entered(&self, result: Result<(), &NodeError>) -> io::Result<()> {
        let failure = result.err().map(|error| Failure::of(&error.step, &error.source));
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send(socket.as_fd(), &Request::Entered { failure }, None)
    }
}

/// Answers the requests of the inner process, on a thread of its own until the other end is closed. What is
/// returned resolves once the node stands or has failed; it is dropped if the inner process just ends.
pub(crate) fn serve(socket: OwnedFd) -> io::Result<oneshot::Receiver<Result<(), NodeError>>> {
    let (sender, ready) = oneshot::channel();
    thread::Builder::new().name("publisher".into()).spawn(move || {
        let mut ready = Some(sender);
        loop {
            match receive::<Request>(socket.as_fd()) {
                Ok(None) => return,
                Ok(Some((Request::Entered { failure }, _))) => {
                    let result = match failure {
                        None => Ok(()),
                        Some(failure) => {
                            Err(NodeError { step: failure.step.clone(), source: failure.into_error() })
                        }
                    };
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(result);
                    }
                }
                Ok(Some((Request::Bind { address }, _))) => {
                    let sent = match TcpListener::bind(address) {
                        Ok(listener) => {
                            send(socket.as_fd(), &Answer { failure: None }, Some(listener.as_fd()))
                        }
                        Err(e) => {
                            send(socket.as_fd(), &Answer { failure: Some(Failure::of("bind", &e)) }, None)
                        }
                    };
                    if sent.is_err() {
                        return;
                    }
                }
                Err(e) => {
                    tracing::error!("the control socket of the node failed: {e}");
                    return;
                }
            }
        }
    })?;
    Ok(ready)
}

fn send(socket: BorrowedFd<'_>, message: &impl Serialize, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files;
    if let Some(file) = file {
        files = [file];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::Error::other("no room for a file"));
        }
    }
    loop {
        let slices = [IoSlice::new(&bytes)];
        match rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The next message, with its file if it has one. `None`: the other end is closed.
fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = [0; LARGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message.bytes,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    };
    if received == 0 {
        return Ok(None);
    }
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let message = serde_json::from_slice(bytes.get(..received).unwrap_or_default())?;
    Ok(Some((message, file)))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::TcpStream;

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::{Publisher, serve};
    use crate::error::NodeError;

    fn pair() -> (Publisher, tokio::sync::oneshot::Receiver<Result<(), NodeError>>) {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Publisher::new(theirs), serve(ours).unwrap())
    }

    #[tokio::test]
    async fn binds_and_reports_a_port_in_use() {
        let (publisher, _ready) = pair();
        let listener = publisher.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect(address).unwrap();
        let error = publisher.bind(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        // Unless another program's connection took the port meanwhile.
        let mut again = publisher.bind(address).await;
        for _ in 0..20 {
            if again.is_ok() {
                break;
            }
            let listener = publisher.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            drop(listener);
            again = publisher.bind(address).await;
        }
        again.unwrap();
    }

    #[tokio::test]
    async fn says_whether_the_node_stands() {
        let (publisher, ready) = pair();
        publisher.entered(Ok(())).unwrap();
        ready.await.unwrap().unwrap();

        let (publisher, ready) = pair();
        let failure = NodeError::new("cannot dance", io::Error::from_raw_os_error(1));
        publisher.entered(Err(&failure)).unwrap();
        assert_eq!(ready.await.unwrap().unwrap_err().to_string(), failure.to_string());

        let (publisher, ready) = pair();
        drop(publisher);
        assert!(ready.await.is_err());
    }
}
