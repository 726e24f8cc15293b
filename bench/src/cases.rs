//! The cases: what is sent through a proxy, how much of it, and at which rate.

use anyhow::{Context as _, Result, bail, ensure};

/// What a configuration has on its way from the client to the back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// HTTP/1.1 on both sides.
    Http1,
    /// HTTP/2 on both sides.
    Http2,
    /// gRPC streams, many tiny messages.
    Grpc,
    /// TCP proxy.
    Tcp,
}

/// What is special about a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Client certificates and TLS 1.3 downstream.
    pub(crate) mtls: bool,
    /// The filters rbac (allow all), fault and cors in front of the router.
    pub(crate) istio_filters: bool,
    /// An access log to a file.
    pub(crate) access_log: bool,
    /// `lb_policy` and 16 endpoints, for policies by hash.
    pub(crate) policy: Option<&'static str>,
    /// Filters that Istio's proxies have, and Envoy has not.
    pub(crate) mesh: Mesh,
}

/// What of Istio's own filters is in front of the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mesh {
    /// Nothing.
    #[default]
    None,
    /// `istio.stats`: requests are counted by who talks to whom.
    Stats,
    /// The same, and `istio.metadata_exchange`: clients say who they are.
    Peers,
}

/// How a case measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Requests at full speed, then at a fixed rate (a second; 0: no such phase).
    Load {
        /// Open connections.
        connections: usize,
        /// Streams of each.
        slots: usize,
        /// Bytes of each answer.
        body: usize,
        /// The fixed rate.
        rate: f64,
        /// A new connection for each request.
        fresh: bool,
    },
    /// Time to load a large configuration, and its memory.
    Scale,
    /// Memory of connections that do nothing.
    Idle,
}

/// What a case's size counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// It has none.
    None,
    /// Virtual hosts, all of which are asked for in turn.
    Hosts,
    /// Clusters with a virtual host each, all of which are asked for in turn.
    Clusters,
    /// Connections.
    Connections,
    /// Cores of the proxy, and its `--concurrency`.
    Cores,
}

/// A case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// As on the command line.
    pub(crate) name: &'static str,
    /// For the reader of the report.
    pub(crate) summary: &'static str,
    pub(crate) traffic: Traffic,
    pub(crate) config: Config,
    pub(crate) kind: Kind,
    pub(crate) size: Size,
    /// Sizes that are measured in turns if none is asked for.
    pub(crate) sizes: &'static [usize],
}

const PLAIN: Config =
    Config { mtls: false, istio_filters: false, access_log: false, policy: None, mesh: Mesh::None };
const MTLS: Config = Config { mtls: true, ..PLAIN };

const fn load(connections: usize, slots: usize, body: usize, rate: f64) -> Kind {
    Kind::Load { connections, slots, body, rate, fresh: false }
}

const fn fresh(connections: usize, body: usize) -> Kind {
    Kind::Load { connections, slots: 1, body, rate: 0.0, fresh: true }
}

const fn case(
    name: &'static str,
    summary: &'static str,
    traffic: Traffic,
    config: Config,
    kind: Kind,
) -> Case {
    Case { name, summary, traffic, config, kind, size: Size::None, sizes: &[1] }
}

const fn sized(case: Case, size: Size, sizes: &'static [usize]) -> Case {
    Case { size, sizes, ..case }
}

const KIB: usize = 1024;

/// What Envoy has not, and so is not measured beside it.
const OWN: &[Case] = &[
    case(
        "h1stats",
        "as h1istio, with istio.stats",
        Traffic::Http1,
        Config { istio_filters: true, mesh: Mesh::Stats, ..PLAIN },
        load(64, 1, KIB, 4000.0),
    ),
    case(
        "h1peers",
        "as h1stats, with metadata exchanged in headers",
        Traffic::Http1,
        Config { istio_filters: true, mesh: Mesh::Peers, ..PLAIN },
        load(64, 1, KIB, 4000.0),
    ),
];

/// A case by its name, those included that Envoy has not.
pub(crate) fn find(name: &str) -> Option<Case> {
    CASES.iter().chain(OWN).find(|case| case.name == name).copied()
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    case("h1", "HTTP/1.1 keep-alive, 1 KiB, 64 connections", Traffic::Http1, PLAIN, load(64, 1, KIB, 4000.0)),
    case(
        "h1istio",
        "as h1, with the rbac, fault and cors filters",
        Traffic::Http1,
        Config { istio_filters: true, ..PLAIN },
        load(64, 1, KIB, 4000.0),
    ),
    case(
        "h2",
        "HTTP/2 on both sides, 1 KiB, 8 connections x 100 streams",
        Traffic::Http2,
        PLAIN,
        load(8, 100, KIB, 4000.0),
    ),
    case(
        "mtls",
        "as h1, over TLS 1.3 with client certificates",
        Traffic::Http1,
        MTLS,
        load(64, 1, KIB, 4000.0),
    ),
    case(
        "h2mtls",
        "as h2, over TLS 1.3 with client certificates",
        Traffic::Http2,
        MTLS,
        load(8, 100, KIB, 4000.0),
    ),
    case(
        "handshake",
        "a full mutual TLS handshake for each request, 16 at a time",
        Traffic::Http1,
        MTLS,
        fresh(16, KIB),
    ),
    case(
        "body10k",
        "HTTP/1.1 keep-alive, 10 KiB, 64 connections",
        Traffic::Http1,
        PLAIN,
        load(64, 1, 10 * KIB, 3000.0),
    ),
    case(
        "body1m",
        "HTTP/1.1 keep-alive, 1 MiB, 16 connections",
        Traffic::Http1,
        PLAIN,
        load(16, 1, KIB * KIB, 150.0),
    ),
    case(
        "grpc",
        "gRPC streams, 16-byte messages back and forth, 8 connections x 32 streams",
        Traffic::Grpc,
        PLAIN,
        load(8, 32, 16, 4000.0),
    ),
    case(
        "tcp",
        "TCP proxy, 64 KiB back and forth, 16 connections",
        Traffic::Tcp,
        PLAIN,
        load(16, 1, 64 * KIB, 1000.0),
    ),
    case(
        "tcpconn",
        "TCP proxy, a new connection for each KiB, 16 at a time",
        Traffic::Tcp,
        PLAIN,
        fresh(16, KIB),
    ),
    case(
        "log",
        "as h1, with an access log to a file",
        Traffic::Http1,
        Config { access_log: true, ..PLAIN },
        load(64, 1, KIB, 4000.0),
    ),
    case(
        "ringhash",
        "as h1, RING_HASH by a header over 16 endpoints",
        Traffic::Http1,
        Config { policy: Some("RING_HASH"), ..PLAIN },
        load(64, 1, KIB, 4000.0),
    ),
    case(
        "maglev",
        "as h1, MAGLEV by a header over 16 endpoints",
        Traffic::Http1,
        Config { policy: Some("MAGLEV"), ..PLAIN },
        load(64, 1, KIB, 4000.0),
    ),
    sized(
        case(
            "hosts",
            "as h1, N virtual hosts, each asked in turn",
            Traffic::Http1,
            PLAIN,
            load(64, 1, KIB, 0.0),
        ),
        Size::Hosts,
        &[10, 10_000],
    ),
    sized(
        case(
            "clusters",
            "as h1, N clusters, each asked in turn",
            Traffic::Http1,
            PLAIN,
            load(64, 1, KIB, 0.0),
        ),
        Size::Clusters,
        &[10, 10_000],
    ),
    sized(
        case("conns", "as h1, N connections", Traffic::Http1, PLAIN, load(64, 1, KIB, 0.0)),
        Size::Connections,
        &[10, 1000, 10_000],
    ),
    sized(
        case("cores", "as h1, N cores and workers", Traffic::Http1, PLAIN, load(64, 1, KIB, 0.0)),
        Size::Cores,
        &[1, 2],
    ),
    sized(
        case(
            "scale",
            "time to load N clusters with a virtual host each, and memory",
            Traffic::Http1,
            PLAIN,
            Kind::Scale,
        ),
        Size::Clusters,
        &[10_000],
    ),
    sized(
        case("idle", "memory of N connections that had one answer each", Traffic::Http1, PLAIN, Kind::Idle),
        Size::Connections,
        &[4000],
    ),
];

/// A case with the sizes to measure.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The case.
    pub(crate) case: Case,
    /// Its sizes, smallest first; one for cases without.
    pub(crate) sizes: Vec<usize>,
}

impl Wanted {
    /// As in goals: `h1`, `idle:4000`.
    pub(crate) fn label(&self, size: usize) -> String {
        let name = self.case.name;
        if self.case.size == Size::None { name.to_owned() } else { format!("{name}:{size}") }
    }
}

/// Whether Envoy has what a case needs.
pub(crate) fn has_envoy(case: &Case) -> bool {
    OWN.iter().all(|own| own.name != case.name)
}

/// The cases of a list with commas: names, `name:size`, or `all` (that can be compared with Envoy).
pub(crate) fn parse(list: &str) -> Result<Vec<Wanted>> {
    if list == "all" {
        return Ok(CASES.iter().map(|case| Wanted { case: *case, sizes: case.sizes.to_vec() }).collect());
    }
    list.split(',').map(one).collect()
}

fn one(text: &str) -> Result<Wanted> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let Some(case) = find(name) else {
        let names: Vec<&str> = CASES.iter().chain(OWN).map(|case| case.name).collect();
        bail!("no case {name:?}; there are {} and all", names.join(", "));
    };
    let sizes: Result<Vec<usize>> =
        parts.map(|size| size.parse().with_context(|| format!("{text}: {size:?} is no size"))).collect();
    let sizes = sizes?;
    ensure!(sizes.is_empty() || case.size != Size::None, "case {name} has no size");
    ensure!(sizes.iter().all(|size| *size > 0), "{text}: sizes begin at 1");
    Ok(Wanted { case, sizes: if sizes.is_empty() { case.sizes.to_vec() } else { sizes } })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn cases_are_named_with_sizes() {
        let labels = |list: &str| -> Result<Vec<String>, String> {
            let wanted = parse(list).map_err(|error| error.to_string())?;
            Ok(wanted.iter().flat_map(|wanted| wanted.sizes.iter().map(|size| wanted.label(*size))).collect())
        };
        assert_eq!(
            labels("h1,hosts,idle:5"),
            Ok(["h1", "hosts:10", "hosts:10000", "idle:5"].map(String::from).to_vec())
        );
        assert_eq!(labels("h1:3"), Err("case h1 has no size".to_owned()));
        assert!(labels("nope").is_err_and(|error| error.starts_with("no case \"nope\"; there are h1, ")));
        assert!(labels("idle:x").is_err() && labels("idle:0").is_err());
        assert!(labels("all").is_ok_and(|labels| labels.len() == 25));
    }
}
