//! A published port whose connections go to a server in the node, such as a gateway's pod.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::control::Publisher;

/// How long to rest when no connection can be accepted, as when this process has too many open files.
const REST: Duration = Duration::from_millis(100);

/// A host port that leads into the node. Dropping it closes the port and its connections.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    task: JoinHandle<()>,
}

impl Forward {
    /// The address on the host.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Publisher {
    /// Binds a TCP address of the host, as [`Publisher::bind`] does, and relays its connections to an address in
    /// the node, where they come from the node's own address. A server that cannot be reached ends the
    /// connection; it need not be there yet.
    ///
    /// # Errors
    ///
    /// As for [`Publisher::bind`].
    pub async fn forward(&self, address: SocketAddr, to: SocketAddr) -> io::Result<Forward> {
        let listener = TcpListener::from_std(self.bind(address).await?)?;
        Ok(Forward { local: listener.local_addr()?, task: tokio::spawn(relay_all(listener, to)) })
    }
}

async fn relay_all(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new(); // ends with this task
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                connections.spawn(async move {
                    if let Err(e) = relay(client, to).await {
                        tracing::debug!("a published connection to {to} ended: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept a published connection to {to}: {e}");
                tokio::time::sleep(REST).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
