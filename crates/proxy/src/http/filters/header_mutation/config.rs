//! Lowering of HeaderMutation and HeaderMutationPerRoute.

use std::any::Any;
use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::filters::http::header_mutation::v3 as proto;
use prost_types::value::Kind;

use super::{HeaderMutation, Mutations, QueryAction, QueryChange};
use crate::config::lower::Lower;
use crate::http::filters::FilterConfig;
use crate::http::route::mutation::change;
use crate::telemetry::access_log::format::Format;

/// Lowers HeaderMutation.
pub(super) fn lower(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn FilterConfig>> {
    let proto::HeaderMutation { mutations, most_specific_header_mutations_wins } = at.unpack(any)?;
    let mutations = at.field("mutations", |at| lower_mutations(mutations.unwrap_or_default(), at));
    Some(Arc::new(HeaderMutation {
        mutations: Arc::new(mutations),
        most_specific_wins: most_specific_header_mutations_wins,
    }))
}

/// Lowers HeaderMutationPerRoute.
pub(super) fn lower_route(any: &prost_types::Any, at: &mut Lower) -> Option<Arc<dyn Any + Send + Sync>> {
    let proto::HeaderMutationPerRoute { mutations } = at.unpack(any)?;
    let mutations = at.field("mutations", |at| lower_mutations(mutations.unwrap_or_default(), at));
    Some(Arc::new(mutations))
}

fn lower_mutations(proto: proto::Mutations, at: &mut Lower) -> Mutations {
    let proto::Mutations {
        request_mutations,
        query_parameter_mutations,
        response_mutations,
        response_trailers_mutations,
        request_trailers_mutations,
    } = proto;
    Mutations {
        request: at.each("request_mutations", request_mutations, change),
        query: at.each("query_parameter_mutations", query_parameter_mutations, query_change),
        response: at.each("response_mutations", response_mutations, change),
        request_trailers: at.each("request_trailers_mutations", request_trailers_mutations, change),
        response_trailers: at.each("response_trailers_mutations", response_trailers_mutations, change),
    }
}

fn query_change(proto: core::KeyValueMutation, at: &mut Lower) -> Option<QueryChange> {
    let core::KeyValueMutation { append, remove } = proto;
    match append {
        Some(_) if !remove.is_empty() => {
            at.error("only one of 'append'/'remove' can be specified");
            None
        }
        Some(append) => at.field("append", |at| query_append(append, at)),
        None if remove.is_empty() => {
            at.error("one of 'append'/'remove' must be specified");
            None
        }
        None => Some(QueryChange::Remove(remove.into())),
    }
}

fn query_append(proto: core::KeyValueAppend, at: &mut Lower) -> Option<QueryChange> {
    #[allow(deprecated, reason = "named to be refused: Envoy reads `record` only")]
    let core::KeyValueAppend { record, entry, action } = proto;
    at.unsupported("entry", entry.is_some());
    use core::key_value_append::KeyValueAppendAction as Action;
    let action = match at.value::<Action>("action", action)? {
        Action::AppendIfExistsOrAdd => QueryAction::Append,
        Action::AddIfAbsent => QueryAction::AddIfAbsent,
        Action::OverwriteIfExistsOrAdd => QueryAction::OverwriteOrAdd,
        Action::OverwriteIfExists => QueryAction::OverwriteIfExists,
    };
    at.required("record", record, |record, at| {
        let core::KeyValuePair { key, value } = record;
        let Some(Kind::StringValue(text)) = value.and_then(|value| value.kind) else {
            at.error_at("value", "only string value is allowed for record value");
            return None;
        };
        match Format::parse(&text) {
            Ok(value) => Some(QueryChange::Set { key: key.into(), value, action }),
            Err(error) => {
                at.error_at("value", error);
                None
            }
        }
    })
}
