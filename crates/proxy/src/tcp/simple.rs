//! Network filters that serve a connection by themselves: envoy.filters.network.echo and
//! envoy.filters.network.direct_response.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::io::Accepted;

/// Sends back what comes until the client ends.
pub(crate) async fn echo(mut accepted: Accepted) {
    let mut buffer = accepted.buffered;
    loop {
        if accepted.socket.write_all_buf(&mut buffer).await.is_err() {
            return;
        }
        buffer.reserve(16 * 1024);
        if !matches!(accepted.socket.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

/// How long a client may take to read a response and close.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);

/// Sends the response and ends the connection so that it arrives.
pub(crate) async fn respond(mut accepted: Accepted, response: &[u8]) {
    let told = async {
        accepted.socket.write_all(response).await?;
        accepted.socket.shutdown().await?;
        let mut rest = BytesMut::with_capacity(4096);
        while accepted.socket.read_buf(&mut rest).await? > 0 {
            rest.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, told).await;
}
