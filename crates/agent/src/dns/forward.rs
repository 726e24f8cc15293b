//! Lookups of which the mesh knows nothing: passed to the machine's servers, byte by byte.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use leno_base::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// The part of `resolv.conf` that we go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    /// The servers.
    pub servers: Vec<SocketAddr>,
    /// Domains that resolvers put behind a name.
    pub search: Vec<String>,
}

impl Resolv {
    /// Reads it. What is not known or not understood is passed over, as resolvers do.
    pub fn parse(text: &str) -> Resolv {
        let mut found = Resolv::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone (`fe80::1%eth0`) is more than an address says.
                    let address =
                        words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok());
                    found.servers.extend(address.map(|address| SocketAddr::new(address, 53)));
                }
                Some("search") => found.search = words.map(str::to_owned).collect(),
                Some("domain") => found.search = words.take(1).map(str::to_owned).collect(),
                _ => {}
            }
        }
        found
    }
}

/// The machine's servers.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    /// How long each may take (`DNS_FORWARD_TIMEOUT`).
    timeout: Duration,
    /// Whether all are asked at once (`DNS_FORWARD_PARALLEL`).
    parallel: bool,
    rng: Mutex<Rng>,
}

impl Upstream {
    /// Asks these, one after the other, beginning with any, or all at once.
    pub fn new(servers: Vec<SocketAddr>, timeout: Duration, parallel: bool, rng: Rng) -> Upstream {
        Upstream { servers, timeout, parallel, rng: Mutex::new(rng) }
    }

    /// The first answer to a query.
    ///
    /// # Errors
    /// Why the last server has not answered.
    pub async fn ask(&self, query: &[u8], by_stream: bool) -> Result<Vec<u8>, String> {
        let mut servers = self.servers.clone();
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).shuffle(&mut servers);
        let mut last = "there are no servers".to_owned();
        if self.parallel {
            let mut asked = JoinSet::new();
            for server in servers {
                let (query, timeout) = (query.to_vec(), self.timeout);
                asked.spawn(async move { one(server, &query, by_stream, timeout).await });
            }
            while let Some(answered) = asked.join_next().await {
                match answered {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => last = error,
                    Err(error) => last = error.to_string(),
                }
            }
            return Err(last);
        }
        for server in servers {
            match one(server, query, by_stream, self.timeout).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn one(
    server: SocketAddr,
    query: &[u8],
    by_stream: bool,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    let asking =
        async { if by_stream { stream(server, query).await } else { datagram(server, query).await } };
    match tokio::time::timeout(timeout, asking).await {
        Ok(answer) => answer.map_err(|error| format!("{server}: {error}")),
        Err(_) => Err(format!("{server}: no answer within {timeout:?}")),
    }
}

async fn datagram(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv6() { IpAddr::from([0u16; 8]) } else { IpAddr::from([0u8; 4]) };
    // A port of its own for each: answers are hard to forge then.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut answer).await?;
        let came = answer.get(..length).unwrap_or_default();
        if came.get(..2).is_some_and(|id| query.get(..2) == Some(id)) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn stream(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::Resolv;

    #[test]
    fn resolv_conf() {
        let text = "# a comment\nnameserver 10.96.0.10\nnameserver fe80::1%eth0 ; x\nnameserver nonsense\n\
            domain a.b\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n";
        let found = Resolv::parse(text);
        let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10:53", "[fe80::1]:53"]);
        assert_eq!(found.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
    }
}
