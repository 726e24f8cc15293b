//! The route table: finds the virtual host and the route of a request.
//!
//! Hosts are found by their `domains`; routes of a virtual host are tried in order, as the
//! configuration demands. `discovered` adds hosts that come one by one.

use std::collections::HashMap;
use std::sync::Arc;

use leno_api::proto::envoy::config::route::v3 as proto;
use leno_base::Name;
use leno_xds::Mode;
use prost::{Message, Name as _};
use prost_types::Any;
use regex::bytes::Regex;

use crate::config::address;
use crate::config::lower::Lower;
use crate::config::source::{self, ConfigSource, Origin};
use crate::config::wire::{Fingerprint, split};
use crate::http::filters::RouteOverrides;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::config::{self, TableSettings};
use crate::http::route::discovered::Discovered;
use crate::http::route::domains::Domains;
use crate::http::route::matcher::{CookieMatcher, HeaderMatcher, QueryMatcher, header_name, starts_with};
use crate::http::route::{
    Action, ClusterChoice, Found, PathRewrite, Redirect, RequireTls, Route, VirtualHost, filters, mutation,
};
use crate::matching::Matcher;
use crate::matching::facts::RouteFacts;
use crate::matching::value::{FilterStateMatcher, MetadataMatcher};

/// The number of the field `virtual_hosts`.
pub(super) const VIRTUAL_HOSTS: u32 = 2;
use crate::telemetry::stream_info::StreamInfo;
use crate::text;

/// What a look-up may know apart from the request's headers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MatchContext<'a> {
    /// A random number that stays the same for all look-ups of one request.
    pub(crate) random: u64,
    /// Whether the request comes from inside (`x-envoy-internal`).
    pub(crate) is_internal: bool,
    /// The stream, for its dynamic metadata and filter state; `None`: it has none.
    pub(crate) info: Option<&'a StreamInfo>,
}

/// A RouteConfiguration, lowered. A copy shares what is large.
#[derive(Clone, Debug)]
pub(crate) struct RouteTable {
    /// `name`.
    pub(super) name: Name,
    /// `ignore_port_in_host_matching`.
    ignore_port: bool,
    /// `ignore_path_parameters_in_path_matching`.
    ignore_path_parameters: bool,
    /// `vhost_header`: the header that decides instead of `:authority`.
    host_header: Option<Name>,
    hosts: Arc<[Arc<Host>]>,
    pub(super) domains: Arc<Domains>,
    /// `vhds`: what comes beside those.
    pub(super) discovered: Option<Box<Discovered>>,
    /// What requests get that must use TLS and do not.
    https_redirect: Arc<Route>,
    /// The message without its virtual hosts, and each of these: for finding what an update changes.
    pub(super) common: Fingerprint,
    prints: Arc<[Fingerprint]>,
}

/// A virtual host with its routes.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) virtual_host: Arc<VirtualHost>,
    /// Lower case.
    pub(super) domains: Box<[Name]>,
    pub(super) entries: Vec<Entry>,
    /// `matcher`: chooses the routes that are tried, in place of `entries`.
    pub(super) matcher: Option<Box<Matcher<Vec<Entry>>>>,
}

/// A route and when it applies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) condition: Condition,
    pub(super) route: Arc<Route>,
}

/// RouteMatch, lowered: all parts must match.
#[derive(Debug)]
pub(crate) struct Condition {
    pub(super) path: PathRule,
    /// Whatever else is asked for; most routes ask for nothing else.
    pub(super) more: Option<Box<More>>,
}

/// What a RouteMatch asks for beside the path.
#[derive(Debug)]
pub(super) struct More {
    pub(super) headers: Vec<HeaderMatcher>,
    pub(super) query: Vec<QueryMatcher>,
    pub(super) cookies: Vec<CookieMatcher>,
    pub(super) grpc: bool,
    /// `runtime_fraction`: (numerator, denominator).
    pub(super) fraction: Option<(u32, u32)>,
    pub(super) metadata: Vec<MetadataMatcher>,
    pub(super) filter_state: Vec<FilterStateMatcher>,
}

/// Path specifier of a RouteMatch; the flag ignores case. Query and fragment do not count.
#[derive(Debug)]
pub(super) enum PathRule {
    Prefix(Box<str>, bool),
    Path(Box<str>, bool),
    /// A prefix that ends where a path segment does.
    SeparatedPrefix(Box<str>, bool),
    Regex(Regex),
    /// CONNECT requests.
    Connect,
}

impl RouteTable {
    /// Finds the route of a request; `None`: there is none (`NR`).
    pub(crate) fn find(&self, head: &HeaderMap, context: &MatchContext<'_>) -> Option<Found<'_>> {
        let host = &**self.find_host(head)?;
        let tls_required = match host.virtual_host.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => !context.is_internal,
            RequireTls::All => true,
        };
        let route = if tls_required && head.get(Known::Scheme) != Some(b"https") {
            &self.https_redirect
        } else {
            let request = RequestPath::new(head, self.ignore_path_parameters);
            let entries = match &host.matcher {
                None => &host.entries,
                Some(matcher) => matcher.find(&RouteFacts { info: context.info, request: head })?,
            };
            &entries.iter().find(|entry| entry.condition.matches(&request, head, context))?.route
        };
        let weighted = route.choose(context.random, head);
        Some(Found { virtual_host: &host.virtual_host, route, weighted })
    }

    fn find_host(&self, head: &HeaderMap) -> Option<&Arc<Host>> {
        let host = match &self.host_header {
            Some(header) => head.find(header).unwrap_or_default(),
            None => head.authority(),
        };
        // What is no text has no domain but `*`.
        let host = text::from_bytes(host).unwrap_or_default();
        let host = if self.ignore_port { without_port(host) } else { host };
        if text::has_capitals(host.as_bytes()) {
            self.find_domain(&host.to_ascii_lowercase())
        } else {
            self.find_domain(host)
        }
    }

    fn find_domain(&self, host: &str) -> Option<&Arc<Host>> {
        match &self.discovered {
            None => self.hosts.get(self.domains.find(host)?),
            Some(discovered) => discovered.find(host, &self.domains, &self.hosts),
        }
    }

    /// Lowers a RouteConfiguration. Virtual hosts that are byte for byte as in `previous` are
    /// taken over from there, if nothing that concerns all of them has changed.
    /// `validate_clusters` is the default of the field with this name: true for inline tables.
    pub(crate) fn lower(
        source: &Any,
        previous: Option<&RouteTable>,
        validate_clusters: bool,
        at: &mut Lower,
    ) -> Option<RouteTable> {
        let wire = source.value.as_slice();
        let Some((ranges, rest)) = split(wire, VIRTUAL_HOSTS) else {
            at.error(format!("cannot decode {}", proto::RouteConfiguration::full_name()));
            return None;
        };
        let print = Fingerprint::of(&rest);
        let common = Any { type_url: source.type_url.clone(), value: rest };
        let proto::RouteConfiguration {
            name,
            virtual_hosts: _,
            vhds,
            internal_only_headers,
            response_headers_to_add,
            response_headers_to_remove,
            request_headers_to_add,
            request_headers_to_remove,
            most_specific_header_mutations_wins,
            validate_clusters: validate,
            max_direct_response_body_size_bytes,
            cluster_specifier_plugins,
            request_mirror_policies,
            ignore_port_in_host_matching,
            vhost_header,
            ignore_path_parameters_in_path_matching,
            typed_per_filter_config,
            metadata,
            route_specifiers,
        } = at.decode(&common)?;
        // What comes by discovery does not check clusters, so `validate_clusters` tells who asks.
        at.unsupported("vhds: of a table that does not come by RDS", vhds.is_some() && validate_clusters);
        let vhds = at.optional("vhds", vhds, lower_vhds);
        at.unsupported("internal_only_headers", !internal_only_headers.is_empty());
        at.unsupported("cluster_specifier_plugins", !cluster_specifier_plugins.is_empty());
        at.unsupported("route_specifiers", !route_specifiers.is_empty());
        let settings = TableSettings {
            request_headers: Arc::new(mutation::lower(
                "request",
                request_headers_to_add,
                request_headers_to_remove,
                at,
            )),
            response_headers: Arc::new(mutation::lower(
                "response",
                response_headers_to_add,
                response_headers_to_remove,
                at,
            )),
            mirrors: config::mirrors(request_mirror_policies, &[], at),
            overrides: filters::overrides(&RouteOverrides::default(), typed_per_filter_config, at),
            most_specific_wins: most_specific_header_mutations_wins,
            max_direct_response: max_direct_response_body_size_bytes.map_or(4096, |limit| limit as usize),
        };
        let reusable = previous.filter(|previous| previous.common == print);
        let reusable = reusable.map(RouteTable::hosts_by_print).unwrap_or_default();
        let mut prints = Vec::with_capacity(ranges.len());
        let hosts = at.each("virtual_hosts", ranges, |range, at| {
            let slice = wire.get(range)?;
            let print = Fingerprint::of(slice);
            prints.push(print);
            if let Some(host) = reusable.get(&print) {
                return Some(Arc::clone(host));
            }
            let any = Any { type_url: proto::VirtualHost::type_url(), value: slice.to_vec() };
            config::virtual_host(at.decode(&any)?, &settings, at).map(Arc::new)
        });
        let domains = domains(&hosts, &name, at);
        if validate.unwrap_or(validate_clusters) {
            check_clusters(&hosts, at);
        }
        // It is for logs that can show it, and none can.
        address::metadata("metadata", metadata, at);
        Some(RouteTable {
            name: name.into(),
            ignore_port: ignore_port_in_host_matching,
            ignore_path_parameters: ignore_path_parameters_in_path_matching,
            host_header: (!vhost_header.is_empty()).then(|| header_name(&vhost_header)),
            hosts: hosts.into(),
            domains: Arc::new(domains),
            discovered: vhds.map(|source| Box::new(Discovered::new(source, settings))),
            https_redirect: Arc::new(https_redirect()),
            common: print,
            prints: prints.into(),
        })
    }

    fn hosts_by_print(&self) -> HashMap<Fingerprint, &Arc<Host>> {
        self.prints.iter().copied().zip(&*self.hosts).collect()
    }
}

/// Refuses routes to clusters that do not exist, as far as the scope knows which do.
fn check_clusters(hosts: &[Arc<Host>], at: &mut Lower) {
    let Some(known) = at.scope().clusters.clone() else { return };
    for (host_index, host) in hosts.iter().enumerate() {
        for (route_index, entry) in host.entries.iter().enumerate() {
            for (field, kind, name) in config::cluster_references(&entry.route.action) {
                if !known.contains(name) {
                    let path = format!("virtual_hosts[{host_index}].routes[{route_index}].{field}");
                    at.error_at(&path, format!("route: unknown {kind} '{name}'"));
                }
            }
        }
        for entry in host.matcher.iter().flat_map(|matcher| matcher.actions()).flatten() {
            for (field, kind, name) in config::cluster_references(&entry.route.action) {
                if !known.contains(name) {
                    let path = format!("virtual_hosts[{host_index}].matcher");
                    at.error_at(&path, format!("{field}: route: unknown {kind} '{name}'"));
                }
            }
        }
    }
}

fn https_redirect() -> Route {
    let redirect = Redirect {
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: None,
        rewrite: PathRewrite::None,
        status: 301,
        strip_query: false,
    };
    Route {
        name: Name::default(),
        action: Action::Redirect(redirect),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        overrides: RouteOverrides::default(),
        buffer_limit: None,
        metadata: None,
        stat_scope: None,
        tracing: None,
        decorator: None,
    }
}

impl Route {
    /// Which of the weighted clusters a random number stands for.
    fn choose(&self, random: u64, head: &HeaderMap) -> Option<usize> {
        let Action::Forward(forward) = &self.action else { return None };
        let ClusterChoice::Weighted { clusters, total, random_header } = &forward.cluster else {
            return None;
        };
        let named = random_header.as_ref().and_then(|name| {
            // As Envoy reads it: one header, a decimal number.
            let mut values = head.find_all(name);
            let value = values.next().filter(|_| values.next().is_none())?;
            std::str::from_utf8(value).ok()?.parse::<u64>().ok()
        });
        let random = named.unwrap_or(random);
        let mut rest = random % total;
        for (index, cluster) in clusters.iter().enumerate() {
            if rest < cluster.weight {
                return Some(index);
            }
            rest -= cluster.weight;
        }
        clusters.len().checked_sub(1)
    }
}

/// The parts of a request's path that are matched.
struct RequestPath<'h> {
    path: &'h [u8],
    query: &'h [u8],
}

impl<'h> RequestPath<'h> {
    fn new(head: &'h HeaderMap, ignore_parameters: bool) -> Self {
        let whole = head.path();
        let (mut path, query) = match text::find_either(whole, b'?', b'#') {
            None => (whole, &b""[..]),
            Some(end) if whole[end] == b'#' => (&whole[..end], &b""[..]),
            Some(end) => {
                let query = &whole[end + 1..];
                (&whole[..end], memchr::memchr(b'#', query).map_or(query, |end| &query[..end]))
            }
        };
        if ignore_parameters && let Some(end) = memchr::memchr(b';', path) {
            path = &path[..end];
        }
        Self { path, query }
    }
}

impl Condition {
    /// Whether a request matches, for others than routes.
    pub(crate) fn matches_request(&self, head: &HeaderMap, context: &MatchContext<'_>) -> bool {
        self.matches(&RequestPath::new(head, false), head, context)
    }

    fn matches(&self, request: &RequestPath<'_>, head: &HeaderMap, context: &MatchContext<'_>) -> bool {
        // What is cheap and most selective first.
        self.path.matches(request.path, head)
            && self.more.as_ref().is_none_or(|more| more.matches(request, head, context))
    }
}

impl More {
    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        let More { headers, query, cookies, grpc, fraction, metadata, filter_state } = self;
        headers.is_empty()
            && query.is_empty()
            && cookies.is_empty()
            && !grpc
            && fraction.is_none()
            && metadata.is_empty()
            && filter_state.is_empty()
    }

    fn matches(&self, request: &RequestPath<'_>, head: &HeaderMap, context: &MatchContext<'_>) -> bool {
        self.fraction.is_none_or(|(share, of)| context.random % u64::from(of) < u64::from(share))
            && (!self.grpc || head.is_grpc())
            && self.headers.iter().all(|header| header.matches(head))
            && self.query.iter().all(|parameter| parameter.matches(request.query))
            && self.cookies.iter().all(|cookie| cookie.matches(head))
            && self.matches_stream(context)
    }

    fn matches_stream(&self, context: &MatchContext<'_>) -> bool {
        if self.metadata.is_empty() && self.filter_state.is_empty() {
            return true;
        }
        let Some(info) = context.info else { return false };
        self.metadata.iter().all(|matcher| matcher.matches(&info.metadata))
            && self.filter_state.iter().all(|matcher| matcher.matches(info.filter_state.get(&matcher.key)))
    }
}

impl PathRule {
    fn matches(&self, path: &[u8], head: &HeaderMap) -> bool {
        match self {
            PathRule::Prefix(prefix, ignore_case) => starts_with(path, prefix.as_bytes(), *ignore_case),
            PathRule::Path(exact, ignore_case) => {
                path.len() == exact.len() && starts_with(path, exact.as_bytes(), *ignore_case)
            }
            PathRule::SeparatedPrefix(prefix, ignore_case) => {
                starts_with(path, prefix.as_bytes(), *ignore_case)
                    && path.get(prefix.len()).is_none_or(|next| *next == b'/')
            }
            PathRule::Regex(regex) => regex.is_match(path),
            PathRule::Connect => head.method() == b"CONNECT",
        }
    }
}

/// Where virtual hosts are found; a domain that two of them have is told.
fn domains(hosts: &[Arc<Host>], table: &str, at: &mut Lower) -> Domains {
    let mut domains = Domains::default();
    for (index, host) in hosts.iter().enumerate() {
        for (place, domain) in host.domains.iter().enumerate() {
            if !domains.insert(domain, index) {
                at.error_at(&format!("virtual_hosts[{index}].domains[{place}]"), repeated(domain, table));
            }
        }
    }
    domains
}

/// What is said of a domain that two virtual hosts have.
pub(super) fn repeated(domain: &str, table: &str) -> String {
    if domain == "*" {
        return format!("Only a single wildcard domain is permitted in route {table}");
    }
    format!(
        "Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {table}"
    )
}

/// Where further virtual hosts come from: from a stream that can be asked for some of them.
fn lower_vhds(proto: proto::Vhds, at: &mut Lower) -> Option<ConfigSource> {
    let proto::Vhds { config_source } = proto;
    let source = at.required("config_source", config_source, source::config_source)?;
    let ads = at.scope().ads;
    let refused = match &source.origin {
        Origin::Grpc(server) if server.delta => None,
        Origin::Ads if ads == Some(Mode::Delta) => None,
        Origin::Ads if ads.is_none() => {
            Some("vhds: ADS config source specified but no ADS configured in bootstrap.")
        }
        Origin::Ads => Some("vhds: ADS must use DELTA_GRPC api_type when used as VHDS config source."),
        Origin::Grpc(_) | Origin::File(_) => {
            Some("vhds: only 'DELTA_GRPC' or 'ADS' (which uses Delta xDS) is supported as a config source.")
        }
    };
    if let Some(refused) = refused {
        at.error_at("config_source", refused);
    }
    Some(source)
}

/// A host without its port, if it has one.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty()
                && port.bytes().all(|byte| byte.is_ascii_digit())
                // Not the last group of an IPv6 address without brackets.
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// A message in wire form from its parts, for tests and for tables made here.
pub(crate) fn pack(table: &proto::RouteConfiguration) -> Any {
    Any { type_url: proto::RouteConfiguration::type_url(), value: table.encode_to_vec() }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
