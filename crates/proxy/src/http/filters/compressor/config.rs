//! Lowering of Compressor and CompressorPerRoute.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::compressor::v3 as proto;
use proto::compressor::{CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig};

use super::{Compressor, Direction, Etags, Filter, RouteCompressor, Types};
use crate::compression::config::library;
use crate::config::lower::Lower;
use crate::config::runtime::flag;
use crate::http::filters::FilterConfig;
use crate::http::route::matcher::string;
use crate::telemetry::per_thread::PerThread;

/// `min_content_length` where there is none, or 0, in bytes.
const SHORTEST: u32 = 30;

/// What is compressed where no type is given.
const TYPES: &[&str] = &[
    "application/ecmascript",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/javascript",
    "application/json",
    "application/x-javascript",
    "application/x-json",
    "application/xhtml+xml",
    "application/xml",
    "image/svg+xml",
    "text/css",
    "text/ecmascript",
    "text/html",
    "text/javascript",
    "text/js",
    "text/jscript",
    "text/plain",
    "text/x-javascript",
    "text/x-js",
    "text/xml",
];

/// Lowers Compressor.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::Compressor {
        content_length,
        content_type,
        disable_on_etag_header,
        remove_accept_encoding_header,
        runtime_enabled,
        compressor_library,
        request_direction_config,
        response_direction_config,
        choose_first,
    } = at.unpack(any)?;
    let (name, library) = at.required("compressor_library", compressor_library, library)?;
    let request = match request_direction_config {
        Some(RequestDirectionConfig { common_config }) => {
            Some(at.field("request_direction_config", |at| {
                at.field("common_config", |at| direction(common_config.unwrap_or_default(), at))
            })?)
        }
        None => None,
    };
    let apart = response_direction_config.is_some();
    // The old fields count only where the new ones are not there.
    let config = response_direction_config.unwrap_or_else(|| ResponseDirectionConfig {
        common_config: Some(CommonDirectionConfig {
            enabled: runtime_enabled,
            min_content_length: content_length,
            content_type,
            content_type_matcher: Vec::new(),
        }),
        disable_on_etag_header,
        remove_accept_encoding_header,
        ..ResponseDirectionConfig::default()
    });
    let ResponseDirectionConfig {
        common_config,
        disable_on_etag_header,
        weaken_etag_on_compress,
        remove_accept_encoding_header,
        uncompressible_response_codes,
        status_header_enabled,
    } = config;
    let response = at.field("response_direction_config", |at| {
        at.field("common_config", |at| direction(common_config.unwrap_or_default(), at))
    })?;
    let codes = at.field("response_direction_config", |at| {
        at.each("uncompressible_response_codes", uncompressible_response_codes, |code, at| {
            at.narrow("", code)
        })
    });
    Some(Arc::new(Filter(Arc::new(Compressor {
        name: name.into(),
        library,
        request,
        response,
        apart,
        etags: match (weaken_etag_on_compress, disable_on_etag_header) {
            (true, _) => Etags::Weaken,
            (false, true) => Etags::Leave,
            (false, false) => Etags::Remove,
        },
        hides: remove_accept_encoding_header,
        codes,
        tells: status_header_enabled,
        first: choose_first,
        stats: PerThread::default(),
    }))))
}

fn direction(proto: CommonDirectionConfig, at: &mut Lower) -> Option<Direction> {
    let CommonDirectionConfig { enabled, min_content_length, content_type, content_type_matcher } = proto;
    let matchers = at.each("content_type_matcher", content_type_matcher, string);
    Some(Direction {
        enabled: flag(enabled, at),
        shortest: min_content_length.filter(|length| *length > 0).unwrap_or(SHORTEST).into(),
        types: if !matchers.is_empty() {
            Types::Matching(matchers)
        } else if content_type.is_empty() {
            Types::Of(TYPES.iter().map(|kind| Box::from(*kind)).collect())
        } else {
            Types::Of(content_type.into_iter().map(Into::into).collect())
        },
    })
}

/// Lowers CompressorPerRoute.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::CompressorPerRoute { r#override } = at.unpack(any)?;
    use proto::compressor_per_route::Override;
    let route = match r#override {
        Some(Override::Disabled(disabled)) => {
            if !disabled {
                at.error_at("disabled", "value must equal true");
            }
            RouteCompressor { enabled: Some(false), ..RouteCompressor::default() }
        }
        Some(Override::Overrides(proto::CompressorOverrides {
            response_direction_config: response,
            compressor_library,
        })) => {
            let library =
                at.field("overrides", |at| at.optional("compressor_library", compressor_library, library));
            RouteCompressor {
                // That it is there enables it.
                enabled: response.is_some().then_some(true),
                hides: response.and_then(
                    |proto::ResponseDirectionOverrides { remove_accept_encoding_header }| {
                        remove_accept_encoding_header
                    },
                ),
                library: library.map(|(_, library)| library),
            }
        }
        None => {
            at.error("one of disabled and overrides is required");
            return None;
        }
    };
    Some(Arc::new(route))
}
