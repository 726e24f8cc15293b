//! Outgoing connections, straight or through the proxy that `http_proxy` names.
//!
//! Where traffic cannot be redirected below the application's feet, a mesh on one machine
//! announces its sidecar with `http_proxy`; requests then go to it in absolute form
//! (RFC 9112, section 3.2.2). Over HTTP/2 the same is said by `:scheme` and `:authority`, so the
//! gRPC client uses the connector unchanged.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

/// What the environment says about proxies for plain HTTP.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutboundProxy {
    proxy: Option<Uri>,
    exempt: Vec<Exempt>,
}

/// A proxy setting that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: `{value}`: {reason}")]
pub struct InvalidProxy {
    variable: &'static str,
    value: String,
    reason: &'static str,
}

/// One entry of `no_proxy`.
#[derive(Clone, Debug, PartialEq)]
enum Exempt {
    Everything,
    /// A name and everything below it, with a port or for all ports.
    Domain {
        name: String,
        port: Option<u16>,
    },
    Network {
        address: IpAddr,
        prefix: u8,
    },
}

impl OutboundProxy {
    /// Reads `http_proxy` and `no_proxy`, and their upper-case spellings where these are unset.
    ///
    /// # Errors
    ///
    /// When the proxy is no `http://HOST:PORT`, or `no_proxy` holds a malformed network.
    pub fn from_env() -> Result<OutboundProxy, InvalidProxy> {
        let read = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok());
        OutboundProxy::new(
            read(["http_proxy", "HTTP_PROXY"]).as_deref(),
            read(["no_proxy", "NO_PROXY"]).as_deref(),
        )
    }

    /// The same from values: `http_proxy` is `http://HOST:PORT` or `HOST:PORT`, `no_proxy` a list
    /// of names, addresses, networks or `*`, separated by commas. Empty is the same as unset.
    ///
    /// # Errors
    ///
    /// As for [`OutboundProxy::from_env`].
    pub fn new(http_proxy: Option<&str>, no_proxy: Option<&str>) -> Result<OutboundProxy, InvalidProxy> {
        let proxy = match http_proxy.map(str::trim) {
            None | Some("") => None,
            Some(value) => Some(parse_proxy(value).map_err(|reason| InvalidProxy {
                variable: "http_proxy",
                value: value.to_owned(),
                reason,
            })?),
        };
        let entries =
            no_proxy.unwrap_or_default().split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let exempt = entries
            .map(|entry| {
                Exempt::parse(entry).ok_or_else(|| InvalidProxy {
                    variable: "no_proxy",
                    value: entry.to_owned(),
                    reason: "is neither a name, nor an address, nor a network",
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(OutboundProxy { proxy, exempt })
    }

    /// The proxy for requests to `target`, if one is to be used.
    fn for_target(&self, target: &Uri) -> Option<&Uri> {
        let proxy = self.proxy.as_ref()?;
        let host = target.host()?.trim_start_matches('[').trim_end_matches(']');
        let port = target.port_u16().unwrap_or(80);
        (!self.exempt.iter().any(|exempt| exempt.covers(host, port))).then_some(proxy)
    }
}

fn parse_proxy(value: &str) -> Result<Uri, &'static str> {
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) if authority.as_str().contains('@') => {
            Err("credentials for a proxy are not supported")
        }
        (Some("http"), Some(_)) => Ok(uri),
        _ => Err("only http:// proxies are supported"),
    }
}

impl Exempt {
    fn parse(entry: &str) -> Option<Exempt> {
        if entry == "*" {
            return Some(Exempt::Everything);
        }
        if let Ok(address) = entry.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            return Some(Exempt::Network { address, prefix });
        }
        if let Some((address, prefix)) = entry.split_once('/') {
            let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
            let longest = if address.is_ipv4() { 32 } else { 128 };
            return (prefix <= longest).then_some(Exempt::Network { address, prefix });
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let name = name.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        (!name.is_empty()).then_some(Exempt::Domain { name, port })
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        match self {
            Exempt::Everything => true,
            Exempt::Domain { name, port: only } => {
                let host = host.to_ascii_lowercase();
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                only.is_none_or(|only| only == port) && (host == *name || below)
            }
            Exempt::Network { address, prefix } => match (address, host.parse::<IpAddr>()) {
                (IpAddr::V4(network), Ok(IpAddr::V4(host))) => {
                    let differ = network.to_bits() ^ host.to_bits();
                    differ.leading_zeros() >= u32::from(*prefix)
                }
                (IpAddr::V6(network), Ok(IpAddr::V6(host))) => {
                    let differ = network.to_bits() ^ host.to_bits();
                    differ.leading_zeros() >= u32::from(*prefix)
                }
                _ => false,
            },
        }
    }
}

/// Connects to a request's target, or to the proxy for it.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    proxy: OutboundProxy,
}

impl Connector {
    pub(crate) fn new(proxy: OutboundProxy) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Duration::from_secs(2)));
        Connector { tcp, proxy }
    }
}

impl Service<Uri> for Connector {
    type Response = Outbound;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Outbound, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let proxy = self.proxy.for_target(&target).cloned();
        let proxied = proxy.is_some();
        let connecting = self.tcp.call(proxy.unwrap_or(target));
        Box::pin(async move { Ok(Outbound { tcp: connecting.await?, proxied }) })
    }
}

/// An outgoing connection that knows whether a proxy is at its other end: hyper writes request
/// targets in absolute form if so.
#[derive(Debug)]
pub(crate) struct Outbound {
    tcp: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Outbound {
    fn connected(&self) -> Connected {
        self.tcp.connected().proxy(self.proxied)
    }
}

impl Read for Outbound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl Write for Outbound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::OutboundProxy;

    #[test]
    fn no_proxy_decides_per_target() {
        let cases = [
            ("", "http://details:9080/", true),
            ("*", "http://details:9080/", false),
            ("details", "http://details:9080/", false),
            ("details:9080", "http://details:9080/", false),
            ("details:80", "http://details:9080/", true),
            ("details:80", "http://details/", false),
            ("tails", "http://details:9080/", true),
            (".svc.cluster.local", "http://Details.default.svc.cluster.local/", false),
            ("*.local, other", "http://details.default.svc.cluster.local/", false),
            ("127.0.0.1", "http://127.0.0.1:8080/", false),
            ("127.0.0.0/8", "http://127.9.9.9:8080/", false),
            ("127.0.0.0/8", "http://128.0.0.1:8080/", true),
            ("0.0.0.0/0", "http://128.0.0.1:8080/", false),
            ("::1", "http://[::1]:8080/", false),
            ("fd00::/8", "http://[fd12::1]:8080/", false),
            ("fd00::/8", "http://[fe80::1]:8080/", true),
        ];
        for (no_proxy, target, proxied) in cases {
            let proxy = OutboundProxy::new(Some("127.0.0.1:15080"), Some(no_proxy)).unwrap();
            let target = target.parse().unwrap();
            assert_eq!(proxy.for_target(&target).is_some(), proxied, "{no_proxy} {target}");
        }
    }

    #[test]
    fn settings_that_cannot_be_followed_are_refused() {
        let cases = [
            (Some("https://proxy:3128"), None),
            (Some("socks5://proxy:3128"), None),
            (Some("http://me:secret@proxy:3128"), None),
            (Some("http://"), None),
            (Some("two words"), None),
            (Some("http://proxy:3128"), Some("10.0.0.0/33")),
            (Some("http://proxy:3128"), Some("host:port")),
        ];
        for (http_proxy, no_proxy) in cases {
            assert!(OutboundProxy::new(http_proxy, no_proxy).is_err(), "{http_proxy:?} {no_proxy:?}");
        }
        assert_eq!(OutboundProxy::new(Some(""), None).unwrap(), OutboundProxy::default());
        assert_eq!(OutboundProxy::new(None, None).unwrap(), OutboundProxy::default());
    }
}
