//! Lowering of envoy.extensions.filters.network.tcp_proxy.v3.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use leno_api::proto::envoy::r#type::v3::hash_policy::{FilterState, PolicySpecifier, SourceIp};

use crate::cluster::lb::metadata::MetadataMatch;
use crate::cluster::on_demand::OnDemand;
use crate::config::address;
use crate::config::lower::Lower;
use crate::http::route::mutation;
use crate::proxy_protocol::Tlv;
use crate::tcp::tcp_proxy::tunnel::Tunneling;
use crate::tcp::tcp_proxy::{Destination, TcpHash, TcpProxy, TlvMerge};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::access_log::format::Format;

/// How long an unknown cluster is waited for unless something else is said.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(60);

impl TcpProxy {
    /// Lowers a TcpProxy.
    pub(crate) fn lower(proto: proto::TcpProxy, at: &mut Lower) -> Option<Arc<TcpProxy>> {
        let proto::TcpProxy {
            stat_prefix,
            on_demand,
            metadata_match,
            idle_timeout,
            downstream_idle_timeout,
            upstream_idle_timeout,
            access_log,
            max_connect_attempts,
            backoff_options,
            hash_policy,
            tunneling_config,
            max_downstream_connection_duration,
            max_downstream_connection_duration_jitter_percentage,
            access_log_flush_interval,
            flush_access_log_on_connected,
            access_log_options,
            proxy_protocol_tlvs,
            proxy_protocol_tlv_merge_policy,
            upstream_connect_mode,
            max_early_data_bytes,
            check_drain_close,
            cluster_specifier,
        } = proto;
        let on_demand = at.optional("on_demand", on_demand, |proto, at| {
            let proto::tcp_proxy::OnDemand { odcds_config, resources_locator, timeout } = proto;
            // Without a source nothing is asked for, as in Envoy.
            odcds_config.as_ref()?;
            OnDemand::lower("odcds_config", odcds_config, &resources_locator, timeout, DISCOVERY_TIMEOUT, at)
        });
        at.unsupported("downstream_idle_timeout", downstream_idle_timeout.is_some());
        at.unsupported("upstream_idle_timeout", upstream_idle_timeout.is_some());
        let tunneling = at.optional("tunneling_config", tunneling_config, lower_tunneling);
        let backoff = at.optional("backoff_options", backoff_options, |proto, at| {
            let core::BackoffStrategy { base_interval, max_interval } = proto;
            let base = at.required("base_interval", base_interval, |base, at| at.duration("", Some(base)))?;
            let max = at.duration("max_interval", max_interval).unwrap_or(base * 10);
            if max < base {
                at.error_at("max_interval", "max_interval must be greater or equal to base_interval");
            }
            Some((base, max))
        });
        let tlvs = at.each("proxy_protocol_tlvs", proxy_protocol_tlvs, |tlv, at| {
            let core::TlvEntry { r#type, value, format_string } = tlv;
            at.unsupported("format_string", format_string.is_some());
            Some(Tlv { kind: at.narrow("type", r#type)?, value })
        });
        use proto::ProxyProtocolTlvMergePolicy as Policy;
        let tlv_merge =
            at.value::<Policy>("proxy_protocol_tlv_merge_policy", proxy_protocol_tlv_merge_policy)?;
        use proto::UpstreamConnectMode as Mode;
        let mode = at.value::<Mode>("upstream_connect_mode", upstream_connect_mode)?;
        if mode != Mode::Immediate && max_early_data_bytes.is_none() {
            at.error_at(
                "upstream_connect_mode",
                "max_early_data_bytes must be set when upstream_connect_mode is not IMMEDIATE",
            );
        }
        let mut log_on_start = false;
        let mut log_on_connected = flush_access_log_on_connected;
        let mut log_interval = at.duration("access_log_flush_interval", access_log_flush_interval);
        if let Some(options) = access_log_options {
            let proto::tcp_proxy::TcpAccessLogOptions {
                access_log_flush_interval,
                flush_access_log_on_connected,
                flush_access_log_on_start,
            } = options;
            if log_on_connected || log_interval.is_some() {
                at.error_at(
                    "access_log_options",
                    "only one of access_log_options or access_log_flush_interval and flush_access_log_on_connected can be specified",
                );
            }
            log_on_start = flush_access_log_on_start;
            log_on_connected = flush_access_log_on_connected;
            log_interval =
                at.duration("access_log_options.access_log_flush_interval", access_log_flush_interval);
        }
        let metadata = address::metadata("metadata_match", metadata_match, at);
        let above = MetadataMatch::merge(None, &metadata);
        let clusters = match cluster_specifier {
            Some(proto::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                vec![Destination { cluster: name.into(), weight: 1, metadata_match: above.clone() }]
            }
            Some(proto::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                at.each("weighted_clusters.clusters", weighted.clusters, |cluster, at| {
                    let proto::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } =
                        cluster;
                    let metadata = address::metadata("metadata_match", metadata_match, at);
                    Some(Destination {
                        cluster: name.into(),
                        weight: u64::from(weight),
                        metadata_match: MetadataMatch::merge(above.as_deref(), &metadata),
                    })
                })
            }
            None => {
                at.error("one of cluster and weighted_clusters is required");
                return None;
            }
        };
        let hash = at.each("hash_policy", hash_policy, |policy, at| match policy.policy_specifier {
            Some(PolicySpecifier::SourceIp(SourceIp {})) => Some(TcpHash::SourceIp),
            Some(PolicySpecifier::FilterState(FilterState { key })) => Some(TcpHash::FilterState(key.into())),
            None => {
                at.error("a policy is required");
                None
            }
        });
        Some(Arc::new(TcpProxy {
            stat_prefix: stat_prefix.into(),
            clusters,
            // There is one at most.
            hash: hash.into_iter().next(),
            backoff,
            tlvs,
            tlv_merge: match tlv_merge {
                Policy::AddIfAbsent => TlvMerge::AddIfAbsent,
                Policy::OverwriteByTypeIfExistsOrAdd => TlvMerge::OverwriteByType,
                Policy::AppendIfExistsOrAdd => TlvMerge::Append,
            },
            // The handshake is over when a session begins.
            early_data: (mode == Mode::OnDownstreamData)
                .then_some(max_early_data_bytes.unwrap_or(0) as usize),
            closes_on_drain: check_drain_close == Some(true),
            on_demand,
            duration_jitter: max_downstream_connection_duration_jitter_percentage
                .map_or(0.0, |jitter| jitter.value / 100.0),
            log_on_start,
            tunneling,
            idle_timeout: at.timeout("idle_timeout", idle_timeout, Some(Duration::from_secs(3600))),
            max_connect_attempts: max_connect_attempts.unwrap_or(1).max(1),
            max_duration: at.timeout(
                "max_downstream_connection_duration",
                max_downstream_connection_duration,
                None,
            ),
            access_logs: at.each("access_log", access_log, AccessLog::lower),
            log_on_connected,
            log_interval,
        }))
    }
}

fn lower_tunneling(proto: proto::tcp_proxy::TunnelingConfig, at: &mut Lower) -> Option<Tunneling> {
    let proto::tcp_proxy::TunnelingConfig {
        hostname,
        use_post,
        headers_to_add,
        propagate_response_headers,
        post_path,
        propagate_response_trailers,
        request_id_extension,
        request_id_header,
        request_id_metadata_key,
        formatters,
    } = proto;
    at.unsupported("request_id_extension", request_id_extension.is_some());
    at.unsupported("request_id_header", !request_id_header.is_empty());
    at.unsupported("request_id_metadata_key", !request_id_metadata_key.is_empty());
    at.unsupported("formatters", !formatters.is_empty());
    if !use_post && !post_path.is_empty() {
        at.error_at("post_path", "Can't set a post path when POST method isn't used");
    }
    if hostname.is_empty() {
        at.error_at("hostname", "value length must be at least 1 characters");
    }
    let headers = mutation::lower_added("headers_to_add", headers_to_add, at);
    match Format::parse(&hostname) {
        Ok(hostname) => Some(Tunneling {
            hostname,
            post_path: use_post.then(|| if post_path.is_empty() { "/".into() } else { post_path.into() }),
            headers,
            keep_headers: propagate_response_headers,
            keep_trailers: propagate_response_trailers,
        }),
        Err(error) => {
            at.error_at("hostname", error);
            None
        }
    }
}
