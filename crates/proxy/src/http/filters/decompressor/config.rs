//! Lowering of Decompressor.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::decompressor::v3 as proto;
use proto::decompressor::{CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig};

use super::{Decompressor, Direction, Filter};
use crate::compression::config::decoder_library;
use crate::config::lower::Lower;
use crate::config::runtime::flag;
use crate::http::filters::FilterConfig;
use crate::telemetry::per_thread::PerThread;

/// Lowers Decompressor.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::Decompressor { decompressor_library, request_direction_config, response_direction_config } =
        at.unpack(any)?;
    let (name, library) = at.required("decompressor_library", decompressor_library, decoder_library)?;
    let RequestDirectionConfig { common_config: request, advertise_accept_encoding } =
        request_direction_config.unwrap_or_default();
    let ResponseDirectionConfig { common_config: response } = response_direction_config.unwrap_or_default();
    Some(Arc::new(Filter(Arc::new(Decompressor {
        name: name.into(),
        library,
        request: direction(request, at),
        response: direction(response, at),
        advertises: advertise_accept_encoding != Some(false),
        stats: PerThread::default(),
    }))))
}

fn direction(proto: Option<CommonDirectionConfig>, at: &Lower) -> Direction {
    let CommonDirectionConfig { enabled, ignore_no_transform_header } = proto.unwrap_or_default();
    Direction { enabled: flag(enabled, at), always: ignore_no_transform_header }
}
