//! Ports of the host that lead into pods: a listener on the host, and for each connection a second
//! one into the pod, with bytes copied between them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leno_kubelet::Place;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::site::Site;

/// How long a connection waits for a pod that does not accept, as one that is being started again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
/// Enough for a batch of requests; two of them per connection.
const BUFFER: usize = 16 * 1024;

/// Where connections go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) place: Place,
    pub(crate) address: SocketAddr,
}

/// A published port. Dropping it closes the port; connections go on.
#[derive(Debug)]
pub(crate) struct Published {
    /// The address on the host.
    pub(crate) address: SocketAddr,
    target: watch::Sender<Arc<Target>>,
    task: JoinHandle<()>,
}

impl Published {
    /// Publishes a target on an address of the host.
    pub(crate) async fn start(site: &Site, address: SocketAddr, target: Target) -> io::Result<Published> {
        let listener = site.listen(address).await?;
        let address = listener.local_addr()?;
        let (target, receiver) = watch::channel(Arc::new(target));
        Ok(Published { address, target, task: tokio::spawn(accept(listener, receiver)) })
    }

    /// Leads new connections elsewhere.
    pub(crate) fn aim(&self, target: Target) {
        self.target.send_replace(Arc::new(target));
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: watch::Receiver<Arc<Target>>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(forward(client, target.clone()));
            }
            Err(e) => {
                // Out of files, mostly: others must end first.
                tracing::warn!("cannot accept: {e}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn forward(mut client: TcpStream, target: watch::Receiver<Arc<Target>>) {
    let start = Instant::now();
    let mut server = loop {
        let target = target.borrow().clone();
        match target.place.connect(target.address).await {
            Ok(server) => break server,
            Err(e) if start.elapsed() > PATIENCE => {
                tracing::debug!("cannot connect to {}: {e}", target.address);
                return;
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    // Small answers must not wait for more to come.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // Either side's end or failure ends both; there is nobody to tell.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await;
}

#[cfg(test)]
mod tests {
    use leno_kubelet::Place;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;

    use super::{Target, accept};

    #[tokio::test]
    async fn copies_both_ways_and_keeps_half_closed_connections() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Target { place: Place::Here, address: server.local_addr().unwrap() };
        let (_sender, receiver) = watch::channel(target.into());
        tokio::spawn(accept(listener, receiver));

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }
}
