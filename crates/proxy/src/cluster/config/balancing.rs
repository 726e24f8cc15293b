//! Lowering of how a cluster's endpoints are chosen.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use leno_api::proto::envoy::config::cluster::v3 as proto;
use leno_api::proto::envoy::config::core::v3::RuntimeDouble;
use leno_api::proto::envoy::extensions::load_balancing_policies as policies;
use policies::common::v3::LocalityLbConfig;
use policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
use proto::cluster::{CommonLbConfig, LbConfig, LbPolicy};

use crate::cluster::Balancing;
use crate::config::lower::Lower;

/// Envoy's number of choices where none is given.
const DEFAULT_CHOICES: u32 = 2;

/// Lowers `lb_policy` with its settings, or `load_balancing_policy`, which takes its place.
/// `provided`: the cluster's type names endpoints itself.
pub(super) fn lower(
    policy: LbPolicy,
    lb_config: Option<LbConfig>,
    extensions: Option<proto::LoadBalancingPolicy>,
    common: Option<&CommonLbConfig>,
    provided: bool,
    at: &mut Lower,
) -> Option<Balancing> {
    if extensions.is_some() || policy == LbPolicy::LoadBalancingPolicyConfig {
        if common.is_some_and(|common| {
            common.locality_config_specifier.is_some() || common.consistent_hashing_lb_config.is_some()
        }) {
            at.error_at(
                "load_balancing_policy",
                "cannot be combined with partial fields (zone_aware_lb_config, locality_weighted_lb_config, consistent_hashing_lb_config) of common_lb_config",
            );
        }
        let Some(extensions) = extensions else {
            at.error_at("load_balancing_policy", "cluster: field load_balancing_policy need to be set");
            return None;
        };
        return at.field("load_balancing_policy", |at| lower_extensions(extensions, at));
    }
    if provided != (policy == LbPolicy::ClusterProvided) {
        at.error_at(
            "lb_policy",
            if provided {
                format!(
                    "cluster: LB policy {} is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
                    policy.as_str_name()
                )
            } else {
                "cluster: LB policy CLUSTER_PROVIDED is allowed only with cluster types that choose endpoints themselves"
                    .to_owned()
            },
        );
        return None;
    }
    match policy {
        LbPolicy::ClusterProvided => Some(Balancing::ClusterProvided),
        LbPolicy::RoundRobin => {
            if let Some(LbConfig::RoundRobinLbConfig(proto::cluster::RoundRobinLbConfig {
                slow_start_config,
            })) = lb_config
            {
                at.unsupported("round_robin_lb_config.slow_start_config", slow_start_config.is_some());
            }
            Some(Balancing::RoundRobin)
        }
        LbPolicy::LeastRequest => {
            let Some(LbConfig::LeastRequestLbConfig(config)) = lb_config else {
                return Some(Balancing::LeastRequest { choices: DEFAULT_CHOICES, bias: 1.0 });
            };
            let proto::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } =
                config;
            at.unsupported("least_request_lb_config.slow_start_config", slow_start_config.is_some());
            let bias = bias(active_request_bias, at);
            Some(Balancing::LeastRequest { choices: choice_count.unwrap_or(DEFAULT_CHOICES), bias })
        }
        LbPolicy::Random => Some(Balancing::Random),
        LbPolicy::RingHash | LbPolicy::Maglev => {
            at.unsupported("lb_policy", true);
            None
        }
        LbPolicy::LoadBalancingPolicyConfig => None,
    }
}

fn bias(proto: Option<RuntimeDouble>, at: &Lower) -> f64 {
    let Some(RuntimeDouble { default_value, runtime_key }) = proto else { return 1.0 };
    at.scope().runtime.number(&runtime_key).unwrap_or(default_value)
}

/// Takes the first policy of the list that Envoy knows.
fn lower_extensions(proto: proto::LoadBalancingPolicy, at: &mut Lower) -> Option<Balancing> {
    for (index, policy) in proto.policies.into_iter().enumerate() {
        let proto::load_balancing_policy::Policy { typed_extension_config } = policy;
        let Some(extension) = typed_extension_config else {
            at.error_at(&format!("policies[{index}].typed_extension_config"), "is required");
            return None;
        };
        let Some(any) = extension.typed_config else { continue };
        let field = format!("policies[{index}].typed_extension_config.typed_config");
        let any = at.field(&field, |at| at.extension(any))?;
        let lowered = at.field(&field, |at| match leno_api::any::type_name(&any.type_url) {
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
                let policies::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } =
                    at.unpack(&any)?;
                at.unsupported("slow_start_config", slow_start_config.is_some());
                locality(locality_lb_config, at);
                Some(Some(Balancing::RoundRobin))
            }
            "envoy.extensions.load_balancing_policies.random.v3.Random" => {
                let policies::random::v3::Random { locality_lb_config } = at.unpack(&any)?;
                locality(locality_lb_config, at);
                Some(Some(Balancing::Random))
            }
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
                let policies::least_request::v3::LeastRequest {
                    choice_count,
                    active_request_bias,
                    slow_start_config,
                    locality_lb_config,
                    enable_full_scan,
                    selection_method,
                } = at.unpack(&any)?;
                at.unsupported("slow_start_config", slow_start_config.is_some());
                at.unsupported("enable_full_scan", enable_full_scan == Some(true));
                at.unsupported("selection_method", selection_method != 0);
                locality(locality_lb_config, at);
                let choices = choice_count.unwrap_or(DEFAULT_CHOICES);
                Some(Some(Balancing::LeastRequest { choices, bias: bias(active_request_bias, at) }))
            }
            name if name.starts_with("envoy.extensions.load_balancing_policies.") => {
                at.unsupported_extension(&extension.name, &any.type_url);
                None
            }
            // Not known to Envoy either: the next one is tried.
            _ => Some(None),
        })?;
        if lowered.is_some() {
            return lowered;
        }
    }
    at.error("cluster: didn't find a registered load balancer factory");
    None
}

fn locality(proto: Option<LocalityLbConfig>, at: &mut Lower) {
    let Some(LocalityLbConfig { locality_config_specifier }) = proto else { return };
    let weighted =
        matches!(locality_config_specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)));
    // Zone-aware routing needs a local cluster, which the bootstrap cannot name yet.
    at.unsupported("locality_lb_config.locality_weighted_lb_config", weighted);
}

/// Lowers CommonLbConfig to the panic threshold, percent.
pub(super) fn common(proto: Option<CommonLbConfig>, at: &mut Lower) -> f64 {
    const DEFAULT_PANIC: f64 = 50.0;
    let Some(proto) = proto else { return DEFAULT_PANIC };
    let CommonLbConfig {
        healthy_panic_threshold,
        // Updates are merged in our own way.
        update_merge_window: _,
        // Lowered with the health checks.
        ignore_new_hosts_until_first_hc: _,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = proto;
    at.field("common_lb_config", |at| {
        at.unsupported("close_connections_on_host_set_change", close_connections_on_host_set_change);
        at.unsupported("consistent_hashing_lb_config", consistent_hashing_lb_config.is_some());
        at.unsupported("override_host_status", override_host_status.is_some());
        use proto::cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
        // Zone-aware routing: see `locality`.
        let weighted = matches!(locality_config_specifier, Some(Specifier::LocalityWeightedLbConfig(_)));
        at.unsupported("locality_weighted_lb_config", weighted);
        healthy_panic_threshold.map_or(DEFAULT_PANIC, |percent| percent.value)
    })
}
