//! Lowering of envoy.config.listener.v3.Listener.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::config::listener::v3 as proto;
use leno_api::proto::envoy::extensions::filters::listener as filters;
use leno_api::proto::envoy::extensions::filters::network as network_filters;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use leno_base::Name;
use prost::Message;
use prost_types::Any;

use crate::config::address::{self, Address};
use crate::config::lower::Lower;
use crate::config::wire::Fingerprint;
use crate::config::{runtime, token_bucket};
use crate::http::config::HttpConnectionManager;
use crate::http::filters::Background;
use crate::listener::accept::GlobalConnections;
use crate::listener::filter_chain::{FilterChains, Ports};
use crate::listener::inspect::TlsInspection;
use crate::listener::network::NetworkFilterConfig;
use crate::listener::proxy_protocol::ProxyProtocol;
use crate::listener::{
    Direction, FilterChain, ListenAddress, Listener, ListenerFilter, ListenerFilterKind, ListenerPredicate,
    ListenerRateLimit, NetworkFilters, OriginalSource, network,
};
use crate::tcp::tcp_proxy::TcpProxy;
use crate::telemetry::access_log::AccessLog;

/// Lowers a listener from its wire form. Filter chains that are as in `previous` are taken over
/// from there, so that their connections need not end.
pub(crate) fn lower(source: &Any, previous: Option<&Listener>, at: &mut Lower) -> Option<Listener> {
    let proto = at.decode(source)?;
    lower_proto(proto, Bytes::copy_from_slice(&source.value), previous, at)
}

/// Lowers a decoded listener; `source` is its wire form.
pub(crate) fn lower_proto(
    proto: proto::Listener,
    source: Bytes,
    previous: Option<&Listener>,
    at: &mut Lower,
) -> Option<Listener> {
    let proto::Listener {
        name,
        address,
        additional_addresses,
        stat_prefix,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        // Read by extensions that we do not have.
        metadata: _,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        // Deprecated, and without effect: enable_reuse_port decides.
        reuse_port: _,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = proto;
    at.unsupported("stats_matcher", stats_matcher.is_some());
    at.unsupported("fcds_config", fcds_config.is_some());
    at.unsupported(
        "per_connection_buffer_high_watermark_timeout",
        per_connection_buffer_high_watermark_timeout.is_some(),
    );
    at.unsupported("udp_listener_config", udp_listener_config.is_some());
    at.unsupported("api_listener", api_listener.is_some());
    at.unsupported("enable_mptcp", enable_mptcp);
    at.scope_mut().outbound = traffic_direction == core::TrafficDirection::Outbound as i32;
    let internal = listener_specifier.is_some();
    if internal {
        internal_only(&address, &additional_addresses, &socket_options, at);
    }

    let mut addresses: Vec<ListenAddress> = Vec::new();
    let mut ipv4_compatible = false;
    let mut listen_address = |address, at: &mut Lower| listen_address(address, &mut ipv4_compatible, at);
    if !internal {
        addresses.extend(at.required("address", address, &mut listen_address));
    }
    addresses.extend(at.each("additional_addresses", additional_addresses, |additional, at| {
        let proto::AdditionalAddress { address, socket_options, tcp_keepalive } = additional;
        at.unsupported("socket_options", socket_options.is_some());
        at.unsupported("tcp_keepalive", tcp_keepalive.is_some());
        at.required("address", address, &mut listen_address)
    }));
    let first = match internal {
        true => format!("envoy://{name}/"),
        false => addresses.first().map(ToString::to_string).unwrap_or_default(),
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        at.error_at("filter_chains", format!("error adding listener '{first}': no filter chains specified"));
    }
    let direction = match at.value::<core::TrafficDirection>("traffic_direction", traffic_direction)? {
        core::TrafficDirection::Unspecified => Direction::Unspecified,
        core::TrafficDirection::Inbound => Direction::Inbound,
        core::TrafficDirection::Outbound => Direction::Outbound,
    };
    at.scope_mut().direction = direction;
    let use_proxy_proto = filter_chains.first().is_some_and(|chain| chain.use_proxy_proto == Some(true));
    let old_bind = deprecated_v1.and_then(|proto::listener::DeprecatedV1 { bind_to_port }| bind_to_port);
    let bind_to_port = bind_to_port.or(old_bind).unwrap_or(true) && !internal;
    let with_matcher = filter_chain_matcher.is_some();
    let mut chains =
        lower_chains(filter_chains, default_filter_chain, with_matcher, bind_to_port, previous, at);
    if let Some(matcher) = filter_chain_matcher {
        at.field("filter_chain_matcher", |at| chains.set_matcher(matcher, at));
    }
    let mut listener_filters = at.each("listener_filters", listener_filters, listener_filter);
    if use_original_dst == Some(true) {
        // It brings the filter that finds the destination with it.
        listener_filters.push(ListenerFilter { kind: ListenerFilterKind::OriginalDst, disabled: None });
    }
    if use_proxy_proto {
        let filter = ProxyProtocol::lower(Default::default(), at)?;
        listener_filters
            .push(ListenerFilter { kind: ListenerFilterKind::ProxyProtocol(filter), disabled: None });
    }
    let mut options = address::socket_options("socket_options", socket_options, at);
    if let Some(length) = tcp_fast_open_queue_length {
        let length = at.narrow("tcp_fast_open_queue_length", length)?;
        options.push(address::int_option(libc::SOL_TCP, libc::TCP_FASTOPEN, length));
    }
    // SO_REUSEPORT spreads connections over the workers; `exact_balance` asks for no more than
    // that. How many connections are accepted at once is our own business.
    let _: Option<u32> = max_connections_to_accept_per_socket_event;
    let _: Option<()> = at.optional("connection_balance_config", connection_balance_config, |proto, at| {
        use proto::listener::connection_balance_config::BalanceType;
        match proto.balance_type {
            Some(BalanceType::ExactBalance(_)) => None,
            Some(BalanceType::ExtendBalance(_)) => {
                at.unsupported("extend_balance", true);
                None
            }
            Some(BalanceType::CpuLocalityBalance(_)) => {
                at.unsupported("cpu_locality_balance", true);
                None
            }
            None => {
                at.error("a balance type is required");
                None
            }
        }
    });
    let drain_type = at.value::<proto::listener::DrainType>("drain_type", drain_type)?;
    let stat_prefix = address::name(stat_prefix).unwrap_or_else(|| Name::from(first.replace(':', "_")));
    let name = address::name(name).unwrap_or_else(|| Name::from(first));
    let limit =
        at.scope().runtime.integer(&format!("envoy.resource_limits.listener.{name}.connection_limit"));
    let counted =
        previous.map(|previous| &previous.connections).filter(|counted| counted.is_limited_to(limit));
    let access_logs = at.each("access_log", access_log, AccessLog::lower);
    let background = background(&chains, &access_logs);
    Some(Listener {
        background,
        connections: counted.map_or_else(|| GlobalConnections::new(limit), Arc::clone),
        name,
        stat_prefix,
        addresses,
        internal,
        bind_to_port,
        use_original_dst: use_original_dst.unwrap_or(false),
        listener_filters,
        listener_filters_timeout: at.timeout(
            "listener_filters_timeout",
            listener_filters_timeout,
            Some(Duration::from_secs(15)),
        ),
        continue_on_timeout: continue_on_listener_filters_timeout,
        chains,
        access_logs,
        buffer_limit: per_connection_buffer_limit_bytes.map_or(1 << 20, |limit| limit as usize),
        transparent: transparent.unwrap_or(false),
        ipv4_compatible,
        freebind: freebind.unwrap_or(false),
        options,
        backlog: tcp_backlog_size,
        reuse_port: enable_reuse_port.unwrap_or(true),
        keepalive: tcp_keepalive.map(address::keepalive),
        direction,
        bypass_overload: bypass_overload_manager,
        ignore_global_limit: ignore_global_conn_limit,
        drain_modify_only: drain_type == proto::listener::DrainType::ModifyOnly,
        added_via_api: at.scope().added_via_api,
        source,
        version: at.scope().version.clone(),
    })
}

/// What goes on beside connections: for the filters of all chains, and for all access logs.
pub(super) fn background(chains: &FilterChains, logs: &[Arc<AccessLog>]) -> Vec<(Arc<dyn Background>, Name)> {
    fn senders(logs: &[Arc<AccessLog>]) -> impl Iterator<Item = (Arc<dyn Background>, Name)> {
        let all = logs.iter().filter_map(|log| log.sender());
        all.map(|sender| -> (Arc<dyn Background>, Name) { (sender, Name::default()) })
    }
    let of_chain = |chain: &Arc<FilterChain>| {
        let mut work = match &chain.network {
            NetworkFilters::Http(manager) => manager.background(),
            NetworkFilters::Tcp(proxy) => senders(&proxy.access_logs).collect(),
            NetworkFilters::Echo | NetworkFilters::Direct(_) | NetworkFilters::Close => Vec::new(),
        };
        let of_filters = chain.filters.iter().flat_map(|filter| filter.background());
        work.extend(of_filters.map(|work| (work, Name::default())));
        work
    };
    chains.all().flat_map(of_chain).chain(senders(logs)).collect()
}

/// Refuses what makes no sense without a socket, as Envoy does.
fn internal_only(
    address: &Option<core::Address>,
    additional: &[proto::AdditionalAddress],
    socket_options: &[core::SocketOption],
    at: &mut Lower,
) {
    if at.scope().internal_buffer.is_none() {
        at.error_at(
            "internal_listener",
            "error adding listener: internal listener not enabled: bootstrap extension envoy.bootstrap.internal_listener is missing",
        );
    }
    if address.is_some() {
        at.error_at("address", "error adding listener: internal listeners must not have an address");
    }
    if !additional.is_empty() {
        at.error_at(
            "additional_addresses",
            "error adding listener: internal listeners must not have addresses",
        );
    }
    at.unsupported("socket_options", !socket_options.is_empty());
}

/// Lowers an address to listen at; sets the flag for one that takes IPv4 too.
fn listen_address(mut proto: core::Address, ipv4: &mut bool, at: &mut Lower) -> Option<ListenAddress> {
    if let Some(core::address::Address::SocketAddress(socket)) = &mut proto.address {
        *ipv4 |= std::mem::take(&mut socket.ipv4_compat);
    }
    match address::address(proto, at)? {
        Address::Ip(address) => Some(ListenAddress::Ip(address)),
        Address::Pipe(path, mode) => Some(ListenAddress::Pipe(path, mode)),
        Address::Name(host, _) => {
            at.error(format!("malformed IP address: {host}"));
            None
        }
    }
}

fn lower_chains(
    protos: Vec<proto::FilterChain>,
    default: Option<proto::FilterChain>,
    with_matcher: bool,
    binds: bool,
    previous: Option<&Listener>,
    at: &mut Lower,
) -> FilterChains {
    let (mut chains, mut ports) = (FilterChains::default(), Ports::new());
    let lower = |proto: proto::FilterChain, at: &mut Lower| {
        let wire = Fingerprint::of(&proto.encode_to_vec());
        let criteria = proto.filter_chain_match.clone();
        let chain = match previous.and_then(|listener| listener.chains.kept(wire)) {
            Some(chain) => Arc::clone(chain),
            None => Arc::new(filter_chain(proto, at)?),
        };
        Some((criteria, wire, chain))
    };
    at.each("filter_chains", protos, |proto, at| {
        let (criteria, wire, chain) = lower(proto, at)?;
        if with_matcher {
            chains.add_named(wire, &chain, at);
        } else {
            chains.add(criteria, wire, &chain, &mut ports, at);
        }
        None::<()>
    });
    if let Some((_, wire, chain)) = at.optional("default_filter_chain", default, lower) {
        chains.add_default(wire, &chain);
    }
    chains.finish(ports, binds);
    chains
}

fn filter_chain(proto: proto::FilterChain, at: &mut Lower) -> Option<FilterChain> {
    let proto::FilterChain {
        filter_chain_match,
        filters,
        // Of the listener's first chain; it brings a listener filter with it.
        use_proxy_proto: _,
        // Read by extensions that we do not have.
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = proto;
    let transport = crate::tls::config::downstream(transport_socket, at);
    let last = filters.len().checked_sub(1);
    let mut network: Option<NetworkFilters> = None;
    let mut before = Vec::new();
    let mut index = 0;
    at.each("filters", filters, |filter, at| {
        let is_last = Some(index) == last;
        index += 1;
        let proto::Filter { name, config_type } = filter;
        let any = match config_type {
            Some(proto::filter::ConfigType::TypedConfig(any)) => any,
            Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
                at.unsupported("config_discovery", true);
                return None;
            }
            None => {
                at.error_at("typed_config", format!("filter '{name}' must have a typed config"));
                return None;
            }
        };
        let mut terminal = true;
        let lowered = at.field("typed_config", |at| {
            let any = at.extension(any)?;
            if leno_api::any::is::<hcm::HttpConnectionManager>(&any) {
                return Some(NetworkFilters::Http(HttpConnectionManager::lower_wire(any, at)?));
            }
            if leno_api::any::is::<tcp_proxy::TcpProxy>(&any) {
                return Some(NetworkFilters::Tcp(TcpProxy::lower(at.unpack(&any)?, at)?));
            }
            if leno_api::any::is::<network_filters::echo::v3::Echo>(&any) {
                let network_filters::echo::v3::Echo {} = at.unpack(&any)?;
                return Some(NetworkFilters::Echo);
            }
            if leno_api::any::is::<network_filters::direct_response::v3::Config>(&any) {
                let network_filters::direct_response::v3::Config { response } = at.unpack(&any)?;
                let bytes = at.optional("response", response, address::data_source);
                return Some(NetworkFilters::Direct(bytes.unwrap_or_default()));
            }
            match network::lower(&any, at) {
                Some(filter) => {
                    before.extend(filter);
                    terminal = false;
                }
                None => at.unsupported_extension(&name, &any.type_url),
            }
            None
        });
        if terminal && !is_last {
            at.error(format!(
                "terminal filter named {name} must be the last filter in a network filter chain."
            ));
        } else if !terminal && is_last {
            at.error(format!(
                "non-terminal filter named {name} is the last filter in a network filter chain."
            ));
        }
        network = network.take().or(lowered);
        None::<()>
    });
    let network = match last {
        Some(_) => network?,
        None => NetworkFilters::Close,
    };
    if !matches!(network, NetworkFilters::Tcp(_))
        && let Some(place) =
            before.iter().position(|filter: &Arc<dyn NetworkFilterConfig>| filter.counts_sessions())
    {
        at.unsupported(&format!("filters[{place}]: in front of another filter than tcp_proxy"), true);
    }
    let handshake_timeout =
        at.timeout("transport_socket_connect_timeout", transport_socket_connect_timeout, None);
    let criteria = filter_chain_match.map(|criteria| criteria.encode_to_vec()).unwrap_or_default();
    Some(FilterChain {
        name: name.into(),
        criteria: criteria.into(),
        transport: transport?,
        handshake_timeout,
        filters: before,
        network,
    })
}

fn listener_filter(proto: proto::ListenerFilter, at: &mut Lower) -> Option<ListenerFilter> {
    let proto::ListenerFilter { name, filter_disabled, config_type } = proto;
    let disabled = match filter_disabled {
        Some(predicate) => Some(at.field("filter_disabled", |at| lower_predicate(predicate, at))?),
        None => None,
    };
    let any = match config_type {
        Some(proto::listener_filter::ConfigType::TypedConfig(any)) => any,
        Some(proto::listener_filter::ConfigType::ConfigDiscovery(_)) => {
            at.unsupported("config_discovery", true);
            return None;
        }
        None => {
            at.error_at("typed_config", format!("listener filter '{name}' must have a typed config"));
            return None;
        }
    };
    let kind = at.field("typed_config", |at| {
        let any = at.extension(any)?;
        match leno_api::any::type_name(&any.type_url) {
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => at
                .unpack(&any)
                .map(|filters::original_dst::v3::OriginalDst {}| ListenerFilterKind::OriginalDst),
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => at
                .unpack(&any)
                .map(|filters::http_inspector::v3::HttpInspector {}| ListenerFilterKind::HttpInspector),
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                let filters::tls_inspector::v3::TlsInspector {
                    enable_ja3_fingerprinting,
                    enable_ja4_fingerprinting,
                    // How much is read at first; reading is by what there is here.
                    initial_read_buffer_size: _,
                    close_connection_on_client_hello_parsing_errors,
                    max_client_hello_size,
                } = at.unpack(&any)?;
                at.unsupported("enable_ja3_fingerprinting", enable_ja3_fingerprinting == Some(true));
                at.unsupported("enable_ja4_fingerprinting", enable_ja4_fingerprinting == Some(true));
                let limit = max_client_hello_size.map_or(16 << 10, |limit| limit as usize);
                Some(ListenerFilterKind::TlsInspector(TlsInspection {
                    limit,
                    only_tls: close_connection_on_client_hello_parsing_errors,
                }))
            }
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                ProxyProtocol::lower(at.unpack(&any)?, at).map(ListenerFilterKind::ProxyProtocol)
            }
            "envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit" => {
                let filters::local_ratelimit::v3::LocalRateLimit {
                    stat_prefix,
                    token_bucket,
                    runtime_enabled,
                } = at.unpack(&any)?;
                if stat_prefix.is_empty() {
                    at.error_at("stat_prefix", "value length must be at least 1 characters");
                }
                Some(ListenerFilterKind::LocalRateLimit(Arc::new(ListenerRateLimit {
                    prefix: format!("listener_local_ratelimit.{stat_prefix}.").into(),
                    bucket: at.required("token_bucket", token_bucket, token_bucket::lower)?,
                    enabled: runtime::flag(runtime_enabled, at),
                })))
            }
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
                let filters::original_src::v3::OriginalSrc { bind_port, mark } = at.unpack(&any)?;
                Some(ListenerFilterKind::OriginalSrc(OriginalSource { mark, port: bind_port }))
            }
            _ => {
                at.unsupported_extension(&name, &any.type_url);
                None
            }
        }
    })?;
    Some(ListenerFilter { kind, disabled })
}

fn lower_predicate(
    proto: proto::ListenerFilterChainMatchPredicate,
    at: &mut Lower,
) -> Option<ListenerPredicate> {
    use proto::listener_filter_chain_match_predicate::Rule;
    Some(match proto.rule {
        Some(Rule::OrMatch(set)) => {
            ListenerPredicate::Or(at.field("or_match", |at| at.each("rules", set.rules, lower_predicate)))
        }
        Some(Rule::AndMatch(set)) => {
            ListenerPredicate::And(at.field("and_match", |at| at.each("rules", set.rules, lower_predicate)))
        }
        Some(Rule::NotMatch(rule)) => {
            ListenerPredicate::Not(Box::new(at.field("not_match", |at| lower_predicate(*rule, at))?))
        }
        Some(Rule::AnyMatch(_)) => ListenerPredicate::Any,
        Some(Rule::DestinationPortRange(range)) => {
            // The end is exclusive; what is no port never matches.
            let start = range.start.max(0);
            match (u16::try_from(start), u16::try_from(range.end)) {
                (Ok(start), Ok(end)) => ListenerPredicate::DestinationPort(start, end),
                (Ok(start), Err(_)) if range.end > 0 => {
                    ListenerPredicate::Not(Box::new(ListenerPredicate::DestinationPort(0, start)))
                }
                _ => ListenerPredicate::DestinationPort(0, 0),
            }
        }
        None => {
            at.error("a rule is required");
            return None;
        }
    })
}
