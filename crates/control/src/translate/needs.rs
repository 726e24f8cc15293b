//! Which clusters configuration needs beforehand.
//!
//! A proxy that asks for clusters when they are first used ([`crate::scope::Abilities::ON_DEMAND`]) does
//! so for what routes and TCP proxies lead to. Nobody waits where a logger, a tracer or a filter calls
//! somebody: Envoy refuses the listener, or drops the call. As users can bring any filter with an
//! EnvoyFilter, clusters are found by the form of their names, wherever these occur.

use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use leno_base::Name;
use prost::Message as _;
use prost::Name as _;

use super::name;
use super::proto::{core, listener};

/// How names of outbound clusters begin.
const OUTBOUND: &[u8] = b"outbound|";

/// Those that a listener needs, sorted.
pub(crate) fn of_listener(message: &listener::Listener) -> Vec<Name> {
    use listener::filter::ConfigType;
    let mut names = Vec::new();
    let chains = message.filter_chains.iter().chain(&message.default_filter_chain);
    for filter in chains.flat_map(|chain| &chain.filters) {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        match fetches(any) {
            // Where it leads is asked for.
            Some(proxy) => {
                let rest = TcpProxy { cluster_specifier: None, stat_prefix: String::new(), ..proxy };
                find(&rest.encode_to_vec(), &mut names);
            }
            None => find(&any.value, &mut names),
        }
    }
    for filter in &message.listener_filters {
        if let Some(listener::listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type {
            find(&any.value, &mut names);
        }
    }
    message.access_log.iter().for_each(|log| find(&log.encode_to_vec(), &mut names));
    sorted(names)
}

/// Those that the configuration of an extension needs, sorted.
pub(crate) fn of_extension(message: &core::TypedExtensionConfig) -> Vec<Name> {
    let mut names = Vec::new();
    message.typed_config.iter().for_each(|any| find(&any.value, &mut names));
    sorted(names)
}

/// A TCP proxy that asks for its cluster.
fn fetches(any: &prost_types::Any) -> Option<TcpProxy> {
    let is_proxy = any.type_url.ends_with(TcpProxy::full_name().as_str());
    let proxy = is_proxy.then(|| TcpProxy::decode(any.value.as_slice()).ok())??;
    proxy.on_demand.is_some().then_some(proxy)
}

/// Finds names of outbound clusters in an encoded message: as whole texts, which have their length in
/// front, or within a longer one, such as a script.
fn find(bytes: &[u8], names: &mut Vec<Name>) {
    let starts = bytes.windows(OUTBOUND.len()).enumerate().filter(|(_, window)| *window == OUTBOUND);
    for (at, _) in starts {
        let rest = bytes.get(at..).unwrap_or_default();
        let longest = rest.iter().take_while(|byte| is_of_name(**byte)).count();
        let length = at.checked_sub(1).and_then(|before| bytes.get(before)).copied().map_or(0, usize::from);
        // A length of 128 and more takes two bytes, of which this is the second.
        let low = at.checked_sub(2).and_then(|before| bytes.get(before)).copied().map_or(0, usize::from);
        let long = (length << 7) | (low & 0x7f);
        let whole = [length, long].into_iter().find(|length| (OUTBOUND.len()..=longest).contains(length));
        let Some(text) = rest.get(..whole.unwrap_or(longest)).and_then(|text| str::from_utf8(text).ok())
        else {
            continue;
        };
        if name::parse_outbound(text).is_some() {
            names.push(Name::new(text));
        }
    }
}

/// Whether a byte may occur in the name of a cluster.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'|' | b'.' | b'-' | b'_' | b'*' | b':')
}

fn sorted(mut names: Vec<Name>) -> Vec<Name> {
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
    use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
        ClusterSpecifier, OnDemand,
    };
    use prost::Message as _;

    use super::of_listener;
    use crate::translate::listener::network_filter;
    use crate::translate::proto::{accesslog, listener};
    use crate::translate::provider;
    use crate::translate::resource::{object, pack, text};

    fn needed(filters: Vec<listener::Filter>) -> Vec<String> {
        let chain = listener::FilterChain { filters, ..listener::FilterChain::default() };
        let message =
            listener::Listener { default_filter_chain: Some(chain), ..listener::Listener::default() };
        of_listener(&message).iter().map(ToString::to_string).collect()
    }

    fn proxy(on_demand: bool) -> TcpProxy {
        let cluster = "outbound|3306||db.a.svc.cluster.local";
        TcpProxy {
            stat_prefix: cluster.to_owned(),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            on_demand: on_demand.then(OnDemand::default),
            ..TcpProxy::default()
        }
    }

    #[test]
    fn clusters_that_nobody_would_ask_for_are_found() {
        let filter = |proxy: &TcpProxy| network_filter("tcp", proxy);
        assert_eq!(needed(vec![filter(&proxy(false))]), ["outbound|3306||db.a.svc.cluster.local"]);
        assert!(needed(vec![filter(&proxy(true))]).is_empty());
        // Of names of any length, whatever field comes next.
        for length in 1..300 {
            let name = format!("outbound|9090||{}.b", "l".repeat(length));
            let logs = provider::grpc(&name, "*****");
            let any = prost_types::Any { type_url: "x".to_owned(), value: logs.encode_to_vec() };
            let log = accesslog::AccessLog {
                config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any)),
                ..accesslog::AccessLog::default()
            };
            let proxy = TcpProxy { access_log: vec![log], ..proxy(true) };
            assert_eq!(needed(vec![filter(&proxy)]), [name]);
        }
        // In the middle of something else.
        let script = "call('outbound|80||a.b', 'outbound|81|v1|c.d');".repeat(9);
        let script = object([("script", text(script))]);
        let filter = listener::Filter {
            config_type: Some(listener::filter::ConfigType::TypedConfig(prost_types::Any {
                type_url: "x".to_owned(),
                value: pack(&prost_types::Any { type_url: "y".to_owned(), value: script.encode_to_vec() })
                    .value,
            })),
            ..listener::Filter::default()
        };
        assert_eq!(needed(vec![filter]), ["outbound|80||a.b", "outbound|81|v1|c.d"]);
    }
}
