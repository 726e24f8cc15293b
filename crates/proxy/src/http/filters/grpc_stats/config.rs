//! Lowering of FilterConfig (of grpc_stats).

use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::grpc_stats::v3 as proto;

use super::{GrpcStats, Methods, Settings};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;

/// Lowers FilterConfig.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::FilterConfig {
        emit_filter_state,
        enable_upstream_stats,
        replace_dots_in_grpc_service_name,
        per_method_stat_specifier,
    } = at.unpack(any)?;
    use proto::filter_config::PerMethodStatSpecifier as Specifier;
    let methods = match per_method_stat_specifier {
        Some(Specifier::IndividualMethodStatsAllowlist(core::GrpcMethodList { services })) => {
            let listed =
                at.field("individual_method_stats_allowlist", |at| at.each("services", services, service));
            Methods::Listed(listed.into_iter().flatten().collect())
        }
        Some(Specifier::StatsForAllMethods(true)) => Methods::All,
        Some(Specifier::StatsForAllMethods(false)) | None => Methods::Listed(Vec::new()),
    };
    Some(Arc::new(GrpcStats(Arc::new(Settings {
        methods,
        emit_filter_state,
        upstream_stats: enable_upstream_stats,
        replace_dots: replace_dots_in_grpc_service_name,
    }))))
}

fn service(proto: core::grpc_method_list::Service, at: &mut Lower) -> Option<Vec<(Box<str>, Box<str>)>> {
    let core::grpc_method_list::Service { name, method_names } = proto;
    if name.is_empty() {
        at.error_at("name", "value length must be at least 1 characters");
    }
    if method_names.is_empty() {
        at.error_at("method_names", "value must contain at least 1 item(s)");
    }
    Some(method_names.into_iter().map(|method| (name.as_str().into(), method.into())).collect())
}
