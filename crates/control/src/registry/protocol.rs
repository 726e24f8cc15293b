//! What a port speaks, from its name, its `appProtocol` or its number, as Istio selects it.

/// What a port speaks, as far as a proxy's configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without negotiation.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC as browsers speak it, over HTTP/2.
    GrpcWeb,
    /// Bytes.
    Tcp,
    /// TLS that is not ended here, HTTPS among it.
    Tls,
    /// MongoDB, whose server speaks first.
    Mongo,
    /// Redis.
    Redis,
    /// MySQL, whose server speaks first.
    MySql,
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
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "grpc-web" => Protocol::GrpcWeb,
            "tcp" => Protocol::Tcp,
            "https" | "tls" => Protocol::Tls,
            "mongo" => Protocol::Mongo,
            "redis" => Protocol::Redis,
            "mysql" => Protocol::MySql,
            "udp" => Protocol::Datagram,
            _ => Protocol::Auto,
        }
    }

    /// The protocol that a port name such as `grpc-catalog` begins with.
    fn of_port_name(name: &str) -> Protocol {
        if name.to_ascii_lowercase().starts_with("grpc-web") {
            return Protocol::GrpcWeb;
        }
        Protocol::of_name(name.split('-').next().unwrap_or_default())
    }

    /// Whether routes by HTTP rules apply: declared HTTP, or possibly found to be.
    pub(crate) fn is_http_or_auto(self) -> bool {
        self.is_http() || self == Protocol::Auto
    }

    /// Whether it is declared HTTP of either version.
    pub(crate) fn is_http(self) -> bool {
        self == Protocol::Http || self.is_http2()
    }

    /// Whether it is declared HTTP/2 of any kind.
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Whether it is declared gRPC of either kind.
    pub(crate) fn is_grpc(self) -> bool {
        matches!(self, Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Whether it is declared not to be HTTP, but still carried.
    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Protocol::Tcp | Protocol::Tls | Protocol::Mongo | Protocol::Redis | Protocol::MySql)
    }

    /// Whether its server speaks first, so that looking at the client's first bytes would wait for
    /// ever.
    pub(crate) fn is_server_first(self) -> bool {
        matches!(self, Protocol::Mongo | Protocol::MySql)
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
        check(9080, "http2-web", None, Protocol::Http2);
        check(9080, "grpc-web-ui", None, Protocol::GrpcWeb);
        check(9080, "grpc", None, Protocol::Grpc);
        check(9080, "GRPC-x", None, Protocol::Grpc);
        check(443, "https", None, Protocol::Tls);
        check(443, "tls-db", None, Protocol::Tls);
        check(27017, "mongo", None, Protocol::Mongo);
        check(3306, "mysql", None, Protocol::MySql);
        check(6379, "redis-x", None, Protocol::Redis);
        check(3306, "", None, Protocol::Tcp);
        check(3306, "http", None, Protocol::Http);
        check(80, "", None, Protocol::Auto);
        check(80, "tcp", Some("http"), Protocol::Http);
        check(80, "http", Some("kubernetes.io/h2c"), Protocol::Http2);
        check(80, "http", Some("example.com/x"), Protocol::Auto);
    }
}
