//! `local_reply_config`: how answers that the proxy makes itself are changed, and its lowering.

use std::sync::Arc;

use bytes::Bytes;
use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

use crate::config::address::data_source;
use crate::config::lower::Lower;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::BodyFormat;
use crate::http::route::config::body_format_string;
use crate::http::route::mutation::{self, HeaderMutations};
use crate::telemetry::access_log::Filter;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::config::lower_filter;
use crate::telemetry::stream_info::StreamInfo;

/// LocalReplyConfig.
#[derive(Debug)]
pub(crate) struct LocalReplies {
    /// The first whose filter passes is applied.
    mappers: Vec<Mapper>,
    /// `body_format`, where the mapper has none of its own.
    format: Option<BodyFormat>,
}

/// ResponseMapper.
#[derive(Debug)]
struct Mapper {
    filter: Filter,
    status: Option<u16>,
    body: Option<Bytes>,
    format: Option<BodyFormat>,
    headers: HeaderMutations,
}

/// What an answer became.
#[derive(Debug)]
pub(crate) struct Rewritten {
    /// Its status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: Bytes,
    /// The content type that goes with a body that was changed.
    pub(crate) content_type: Option<Box<str>>,
}

impl LocalReplies {
    /// Changes an answer of ours; `head` is its head so far.
    pub(crate) fn rewrite(
        &self,
        info: &mut StreamInfo,
        request: &HeaderMap,
        head: &mut HeaderMap,
        status: u16,
        body: Bytes,
    ) -> Rewritten {
        // Filters and formats read the status there.
        info.response_code = status;
        let mut rewritten = Rewritten { status, body, content_type: None };
        let matched = self.mappers.iter().find(|mapper| {
            let end = Some(crate::http::stream::now());
            let context = FormatContext {
                request: Some(request),
                response: Some(head),
                end,
                ..FormatContext::new(info)
            };
            mapper.filter.passes(&context)
        });
        if let Some(mapper) = matched {
            if let Some(body) = &mapper.body {
                rewritten.body = body.clone();
            }
            mapper.headers.apply(head, &FormatContext { request: Some(request), ..FormatContext::new(info) });
            if let Some(status) = mapper.status {
                rewritten.status = status;
                info.response_code = status;
                head.set(Known::Status, status.to_string().as_bytes());
            }
        }
        let format = matched.and_then(|mapper| mapper.format.as_ref()).or(self.format.as_ref());
        if let Some(format) = format {
            let context = FormatContext {
                request: Some(request),
                response: Some(head),
                local_reply_body: Some(&rewritten.body),
                end: Some(crate::http::stream::now()),
                ..FormatContext::new(info)
            };
            let mut text = Vec::new();
            format.format.format(&context, &mut text);
            rewritten.body = text.into();
            rewritten.content_type = Some(format.content_type.clone());
        }
        rewritten
    }
}

/// Lowers a LocalReplyConfig.
pub(super) fn lower(proto: hcm::LocalReplyConfig, at: &mut Lower) -> Option<Arc<LocalReplies>> {
    let hcm::LocalReplyConfig { mappers, body_format } = proto;
    let mappers = at.each("mappers", mappers, |proto, at| {
        let hcm::ResponseMapper { filter, status_code, body, body_format_override, headers_to_add } = proto;
        let headers = headers_to_add;
        Some(Mapper {
            filter: at.required("filter", filter, lower_filter)?,
            status: status_code.and_then(|status| u16::try_from(status).ok()),
            body: at.optional("body", body, data_source),
            format: at.optional("body_format_override", body_format_override, body_format_string),
            headers: mutation::lower_added("headers_to_add", headers, at),
        })
    });
    let format = at.optional("body_format", body_format, body_format_string);
    Some(Arc::new(LocalReplies { mappers, format }))
}
