//! Where a pod lives: a network namespace, or this one where there are none.

use std::net::SocketAddr;
use std::time::Duration;
use std::{io, net};

use leno_node::Pod;
use tokio::net::TcpStream;

/// The place of a pod.
#[derive(Clone, Debug)]
pub enum Place {
    /// Namespaces of its own.
    Namespace(Pod),
    /// Where this process is.
    Here,
}

/// The most that connecting from inside a pod may take.
const LIMIT: Duration = Duration::from_secs(2);

impl Place {
    /// The pod's namespaces.
    pub fn pod(&self) -> Option<&Pod> {
        match self {
            Place::Namespace(pod) => Some(pod),
            Place::Here => None,
        }
    }

    /// Connects from inside, as the pod's applications do: past its sidecar.
    ///
    /// # Errors
    /// As connecting fails, at the latest after two seconds.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Place::Here => TcpStream::connect(address).await,
            Place::Namespace(pod) => {
                let pod = pod.clone();
                // The connection belongs to the namespace that it was made in, whoever uses it.
                let connect = move || pod.within(|| net::TcpStream::connect_timeout(&address, LIMIT));
                let stream = tokio::task::spawn_blocking(connect).await.map_err(io::Error::other)?;
                let stream = stream.map_err(io::Error::other)??;
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream)
            }
        }
    }
}
