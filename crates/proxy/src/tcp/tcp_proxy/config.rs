//! Lowering of envoy.extensions.filters.network.tcp_proxy.v3.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;
use std::time::Duration;

use leno_api::proto::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use leno_api::proto::envoy::r#type::v3::hash_policy::{FilterState, PolicySpecifier, SourceIp};

use crate::cluster::lb::metadata::MetadataMatch;
use crate::config::address;
use crate::config::lower::Lower;
use crate::tcp::tcp_proxy::{Destination, TcpHash, TcpProxy};
use crate::telemetry::access_log::AccessLog;

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
        at.unsupported("on_demand", on_demand.is_some());
        at.unsupported("downstream_idle_timeout", downstream_idle_timeout.is_some());
        at.unsupported("upstream_idle_timeout", upstream_idle_timeout.is_some());
        at.unsupported("backoff_options", backoff_options.is_some());
        at.unsupported("tunneling_config", tunneling_config.is_some());
        at.unsupported(
            "max_downstream_connection_duration_jitter_percentage",
            max_downstream_connection_duration_jitter_percentage.is_some(),
        );
        at.unsupported("proxy_protocol_tlvs", !proxy_protocol_tlvs.is_empty());
        at.unsupported("proxy_protocol_tlv_merge_policy", proxy_protocol_tlv_merge_policy != 0);
        let immediate = proto::UpstreamConnectMode::Immediate as i32;
        at.unsupported("upstream_connect_mode", upstream_connect_mode != immediate);
        if upstream_connect_mode == immediate {
            at.unsupported("max_early_data_bytes", max_early_data_bytes.is_some());
        }
        at.unsupported("check_drain_close", check_drain_close == Some(true));
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
            at.unsupported("access_log_options.flush_access_log_on_start", flush_access_log_on_start);
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
