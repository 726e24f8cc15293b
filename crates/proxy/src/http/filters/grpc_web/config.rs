//! Lowering of GrpcWeb.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::grpc_web::v3 as proto;

use super::GrpcWeb;
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;

/// Lowers GrpcWeb.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::GrpcWeb {} = at.unpack(any)?;
    Some(Arc::new(GrpcWeb))
}
