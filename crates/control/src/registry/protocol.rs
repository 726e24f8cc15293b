//! What a port speaks, from its name, its `appProtocol` or its number, as Istio selects it.

/// What a port speaks, as far as a proxy's configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without negotiation, as gRPC.
    Http2,
    /// Bytes, TLS among them.
    Tcp,
    /// Not declared: the proxy looks at the first bytes.
    Auto,
    /// UDP or SCTP, which proxies do not carry.
    Datagram,
}

/// Ports whose servers speak first, so that looking at the client's first bytes would wait for ever.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// The protocol of a port of a Kubernetes Service.
    pub(crate) fn of_kubernetes(number: u16, name: &str, app_protocol: Option<&str>) -> Protocol {
        let declared = match app_protocol {
            Some("kubernetes.io/h2c") => Protocol::Http2,
            Some("kubernetes.io/ws") => Protocol::Http,
            Some("kubernetes.io/wss") => Protocol::Tcp,
            Some(protocol) => Protocol::of_name(protocol),
            None => Protocol::of_port_name(name),
        };
        if declared == Protocol::Auto && SERVER_FIRST.contains(&number) { Protocol::Tcp } else { declared }
    }

    /// The protocol that a name such as `HTTP2` stands for.
    pub(crate) fn of_name(name: &str) -> Protocol {
        match name.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" => Protocol::Http,
            "http2" | "grpc" | "grpc-web" => Protocol::Http2,
            "tcp" | "https" | "tls" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
            "udp" => Protocol::Datagram,
            _ => Protocol::Auto,
        }
    }

    /// The protocol that a port name such as `grpc-catalog` begins with.
    fn of_port_name(name: &str) -> Protocol {
        if name.to_ascii_lowercase().starts_with("grpc-web") {
            return Protocol::Http2;
        }
        Protocol::of_name(name.split('-').next().unwrap_or_default())
    }

    /// Whether routes by HTTP rules apply: declared HTTP, or possibly found to be.
    pub(crate) fn is_http_or_auto(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Auto)
    }

    /// Whether it is declared HTTP of either version.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2)
    }
}

#[cfg(test)]
mod tests {
    use super::Protocol;

    #[test]
    fn selects_by_name_app_protocol_and_number() {
        let check = |number, name, app, expected| {
            assert_eq!(Protocol::of_kubernetes(number, name, app), expected, "{number} {name} {app:?}");
        };
        check(9080, "http", None, Protocol::Http);
        check(9080, "http-web", None, Protocol::Http);
        check(9080, "httpx", None, Protocol::Auto);
        check(9080, "grpc-web-ui", None, Protocol::Http2);
        check(9080, "grpc", None, Protocol::Http2);
        check(9080, "GRPC-x", None, Protocol::Http2);
        check(443, "https", None, Protocol::Tcp);
        check(3306, "", None, Protocol::Tcp);
        check(3306, "http", None, Protocol::Http);
        check(80, "", None, Protocol::Auto);
        check(80, "tcp", Some("http"), Protocol::Http);
        check(80, "http", Some("kubernetes.io/h2c"), Protocol::Http2);
        check(80, "http", Some("example.com/x"), Protocol::Auto);
    }
}
