//! What rate limits tell requests apart by (RateLimit): actions make a descriptor of a request.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use leno_api::proto::envoy::config::route::v3 as proto;
use leno_api::proto::envoy::r#type::metadata::v3 as metadata;
use leno_base::Name;
use proto::rate_limit::action::ActionSpecifier;
use proto::rate_limit::action::meta_data::Source;
use serde_json::Value as Json;

use crate::config::lower::Lower;
use crate::http::headers::HeaderMap;
use crate::http::route::matcher::{self, HeaderMatcher, QueryMatcher, header_name, query_value};
use crate::http::route::mutation::evaluate;
use crate::http::stream::Stream;
use crate::telemetry::access_log::command::FormatContext;
use crate::telemetry::access_log::format::Format;

/// RateLimit.
#[derive(Debug)]
pub(crate) struct RateLimit {
    /// `stage`: it is for filters of this stage.
    pub(crate) stage: u32,
    actions: Vec<Action>,
    hits: Hits,
    /// It counts when the stream is done, and not before.
    pub(crate) at_end: bool,
}

/// `hits_addend`: how many requests one stands for.
#[derive(Debug)]
enum Hits {
    Number(u64),
    Format(Format),
}

/// One entry of a descriptor.
#[derive(Debug)]
enum Action {
    /// The cluster of this proxy.
    SourceCluster(Arc<str>),
    DestinationCluster,
    Header {
        name: Name,
        key: Box<str>,
        skip_if_absent: bool,
    },
    Parameter {
        name: Box<str>,
        key: Box<str>,
        skip_if_absent: bool,
    },
    RemoteAddress,
    /// Lengths of prefixes of IPv4 and IPv6 addresses.
    MaskedRemoteAddress(u8, u8),
    GenericKey(Described),
    HeaderMatch {
        what: Described,
        expected: bool,
        headers: Vec<HeaderMatcher>,
    },
    ParameterMatch {
        what: Described,
        expected: bool,
        parameters: Vec<QueryMatcher>,
    },
    Metadata {
        key: Box<str>,
        filter: Box<str>,
        path: Vec<Box<str>>,
        default: Box<str>,
        of_route: bool,
        skip: bool,
    },
}

/// A key, and a value that may be made of the request.
#[derive(Debug)]
struct Described {
    key: Box<str>,
    value: Format,
    default: Box<str>,
}

/// What a request is counted as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Keys and values.
    pub(crate) entries: Vec<(String, String)>,
    /// How many requests it stands for.
    pub(crate) hits: u64,
}

impl RateLimit {
    /// The descriptor of a request; `None`: there is none, as one of its entries is missing.
    pub(crate) fn descriptor(&self, stream: &Stream, head: &HeaderMap) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(stream, head) {
                Entry::There(key, value) => entries.push((key.to_owned(), value.into_owned())),
                Entry::Skipped => {}
                Entry::Missing => return None,
            }
        }
        if entries.is_empty() {
            return None;
        }
        let hits = match &self.hits {
            Hits::Number(hits) => *hits,
            Hits::Format(format) => {
                let text = text(format, stream, head);
                text.parse().unwrap_or(1)
            }
        };
        Some(Descriptor { entries, hits })
    }
}

/// What an action makes of a request.
enum Entry<'a> {
    There(&'a str, Cow<'a, str>),
    /// The descriptor does without.
    Skipped,
    /// Without it there is no descriptor.
    Missing,
}

impl Action {
    fn entry<'a>(&'a self, stream: &'a Stream, head: &'a HeaderMap) -> Entry<'a> {
        let absent = |skip: bool| if skip { Entry::Skipped } else { Entry::Missing };
        match self {
            Action::SourceCluster(name) => Entry::There("source_cluster", Cow::Borrowed(name)),
            Action::DestinationCluster => {
                match stream.selected.as_ref().and_then(|selected| selected.cluster(head)) {
                    Some(name) => Entry::There("destination_cluster", Cow::Borrowed(name)),
                    None => Entry::Missing,
                }
            }
            Action::Header { name, key, skip_if_absent } => match head.find(name) {
                Some(value) => Entry::There(key, String::from_utf8_lossy(value)),
                None => absent(*skip_if_absent),
            },
            Action::Parameter { name, key, skip_if_absent } => {
                match query_value(query(head), name.as_bytes()) {
                    Some(value) => Entry::There(key, String::from_utf8_lossy(value)),
                    None => absent(*skip_if_absent),
                }
            }
            Action::RemoteAddress => {
                let address = stream.info.connection.remote.ip();
                Entry::There("remote_address", Cow::Owned(address.to_string()))
            }
            Action::MaskedRemoteAddress(v4, v6) => {
                let masked = masked(stream.info.connection.remote.ip(), *v4, *v6);
                Entry::There("masked_remote_address", Cow::Owned(masked))
            }
            Action::GenericKey(what) => what.entry(stream, head),
            Action::HeaderMatch { what, expected, headers } => {
                match headers.iter().all(|header| header.matches(head)) == *expected {
                    true => what.entry(stream, head),
                    false => Entry::Missing,
                }
            }
            Action::ParameterMatch { what, expected, parameters } => {
                let query = query(head);
                match parameters.iter().all(|parameter| parameter.matches(query)) == *expected {
                    true => what.entry(stream, head),
                    false => Entry::Missing,
                }
            }
            Action::Metadata { key, filter, path, default, of_route, skip } => {
                let found = match of_route {
                    true => {
                        let route =
                            stream.selected.as_ref().and_then(|selected| selected.route.metadata.as_ref());
                        route.and_then(|metadata| metadata.get(&**filter)).and_then(Json::as_object)
                    }
                    false => stream.info.metadata.get(filter),
                };
                let Some((last, steps)) = path.split_last() else { return Entry::Missing };
                let object = found.and_then(|found| {
                    steps.iter().try_fold(found, |object, step| object.get(&**step)?.as_object())
                });
                let value = object.and_then(|object| object.get(&**last)?.as_str());
                match value.filter(|value| !value.is_empty()) {
                    Some(value) => Entry::There(key, Cow::Borrowed(value)),
                    None if !default.is_empty() => Entry::There(key, Cow::Borrowed(default)),
                    None => absent(*skip),
                }
            }
        }
    }
}

impl Described {
    fn entry<'a>(&'a self, stream: &Stream, head: &HeaderMap) -> Entry<'a> {
        let value = text(&self.value, stream, head);
        match (value.is_empty(), self.default.is_empty()) {
            (false, _) => Entry::There(&self.key, Cow::Owned(value)),
            (true, false) => Entry::There(&self.key, Cow::Borrowed(&self.default)),
            (true, true) => Entry::Missing,
        }
    }
}

fn text(format: &Format, stream: &Stream, head: &HeaderMap) -> String {
    let context = FormatContext { request: Some(head), ..FormatContext::new(&stream.info) };
    String::from_utf8_lossy(&evaluate(format, head, &context)).into_owned()
}

fn query(head: &HeaderMap) -> &[u8] {
    let path = head.path();
    path.iter().position(|byte| *byte == b'?').and_then(|mark| path.get(mark + 1..)).unwrap_or_default()
}

/// The prefix of an address, as text.
fn masked(address: IpAddr, v4: u8, v6: u8) -> String {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4)).unwrap_or(0);
            format!("{}/{v4}", std::net::Ipv4Addr::from(u32::from(address) & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6)).unwrap_or(0);
            format!("{}/{v6}", std::net::Ipv6Addr::from(u128::from(address) & mask))
        }
    }
}

/// Lowers a RateLimit.
pub(crate) fn lower(proto: proto::RateLimit, at: &mut Lower) -> Option<RateLimit> {
    let proto::RateLimit {
        stage,
        // These two are for filters that ask a service; those that would are refused.
        disable_key: _,
        limit: _,
        actions,
        hits_addend,
        apply_on_stream_done,
        x_ratelimit_option,
    } = proto;
    at.unsupported("x_ratelimit_option", x_ratelimit_option != 0);
    let hits = match hits_addend {
        None => Hits::Number(1),
        Some(proto::rate_limit::HitsAddend { number, format, is_negative_hits }) => {
            at.unsupported("hits_addend.is_negative_hits", is_negative_hits);
            match format.is_empty() {
                true => Hits::Number(number.unwrap_or(1)),
                false => Hits::Format(parse("hits_addend.format", &format, at)?),
            }
        }
    };
    let actions = at.each("actions", actions, |proto::rate_limit::Action { action_specifier }, at| {
        match action_specifier {
            Some(specifier) => action(specifier, at),
            None => {
                at.error("an action is required");
                None
            }
        }
    });
    Some(RateLimit { stage: stage.unwrap_or(0), actions, hits, at_end: apply_on_stream_done })
}

fn parse(field: &str, text: &str, at: &mut Lower) -> Option<Format> {
    match Format::parse(text) {
        Ok(format) => Some(format),
        Err(error) => {
            at.error_at(field, error);
            None
        }
    }
}

fn described(key: String, or: &str, value: &str, default: String, at: &mut Lower) -> Option<Described> {
    let key = if key.is_empty() { or.into() } else { key.into() };
    Some(Described { key, value: parse("descriptor_value", value, at)?, default: default.into() })
}

fn action(specifier: ActionSpecifier, at: &mut Lower) -> Option<Action> {
    use proto::rate_limit::action as actions;
    Some(match specifier {
        ActionSpecifier::SourceCluster(actions::SourceCluster {}) => {
            Action::SourceCluster(Arc::clone(&at.scope().node_cluster))
        }
        ActionSpecifier::DestinationCluster(actions::DestinationCluster {}) => Action::DestinationCluster,
        ActionSpecifier::RequestHeaders(actions::RequestHeaders {
            header_name: name,
            descriptor_key,
            skip_if_absent,
        }) => Action::Header { name: header_name(&name), key: descriptor_key.into(), skip_if_absent },
        ActionSpecifier::QueryParameters(actions::QueryParameters {
            query_parameter_name,
            descriptor_key,
            skip_if_absent,
        }) => Action::Parameter {
            name: query_parameter_name.into(),
            key: descriptor_key.into(),
            skip_if_absent,
        },
        ActionSpecifier::RemoteAddress(actions::RemoteAddress {}) => Action::RemoteAddress,
        ActionSpecifier::MaskedRemoteAddress(actions::MaskedRemoteAddress {
            v4_prefix_mask_len,
            v6_prefix_mask_len,
        }) => {
            let length = |value: Option<u32>, max: u8| {
                u8::try_from(value.unwrap_or(max.into())).unwrap_or(max).min(max)
            };
            Action::MaskedRemoteAddress(length(v4_prefix_mask_len, 32), length(v6_prefix_mask_len, 128))
        }
        ActionSpecifier::GenericKey(actions::GenericKey {
            descriptor_value,
            default_value,
            descriptor_key,
        }) => at.field("generic_key", |at| {
            described(descriptor_key, "generic_key", &descriptor_value, default_value, at)
                .map(Action::GenericKey)
        })?,
        ActionSpecifier::HeaderValueMatch(matched) => at.field("header_value_match", |at| {
            let actions::HeaderValueMatch {
                descriptor_value,
                default_value,
                descriptor_key,
                expect_match,
                headers,
            } = matched;
            let headers = at.each("headers", headers, matcher::header);
            let what = described(descriptor_key, "header_match", &descriptor_value, default_value, at)?;
            Some(Action::HeaderMatch { what, expected: expect_match.unwrap_or(true), headers })
        })?,
        ActionSpecifier::QueryParameterValueMatch(matched) => {
            at.field("query_parameter_value_match", |at| {
                let actions::QueryParameterValueMatch {
                    descriptor_value,
                    default_value,
                    descriptor_key,
                    expect_match,
                    query_parameters,
                } = matched;
                let parameters = at.each("query_parameters", query_parameters, matcher::query);
                let what = described(descriptor_key, "query_match", &descriptor_value, default_value, at)?;
                Some(Action::ParameterMatch { what, expected: expect_match.unwrap_or(true), parameters })
            })?
        }
        ActionSpecifier::Metadata(actions::MetaData {
            descriptor_key,
            metadata_key,
            default_value,
            source,
            skip_if_absent,
        }) => at.field("metadata", |at| {
            let (filter, path) = at.required("metadata_key", metadata_key, metadata_key_of)?;
            let of_route = match at.value::<Source>("source", source)? {
                Source::Dynamic => false,
                Source::RouteEntry => true,
                Source::ClusterEntry | Source::ClusterLocalityEntry => {
                    at.unsupported("source", true);
                    return None;
                }
            };
            Some(Action::Metadata {
                key: descriptor_key.into(),
                filter,
                path,
                default: default_value.into(),
                of_route,
                skip: skip_if_absent,
            })
        })?,
        ActionSpecifier::DynamicMetadata(_) => {
            at.error_at("dynamic_metadata", "disallowed: use metadata");
            return None;
        }
        ActionSpecifier::RemoteAddressMatch(_) => {
            at.unsupported("remote_address_match", true);
            return None;
        }
        ActionSpecifier::Extension(extension) => {
            let type_url = extension.typed_config.map(|any| any.type_url).unwrap_or_default();
            at.field("extension", |at| at.unsupported_extension(&extension.name, &type_url));
            return None;
        }
    })
}

/// Lowers a MetadataKey: the namespace, and the way in it.
#[allow(clippy::type_complexity, reason = "a name for it would say no more")]
pub(crate) fn metadata_key_of(
    proto: metadata::MetadataKey,
    at: &mut Lower,
) -> Option<(Box<str>, Vec<Box<str>>)> {
    let metadata::MetadataKey { key, path } = proto;
    let path = at.each("path", path, |metadata::metadata_key::PathSegment { segment }, at| match segment {
        Some(metadata::metadata_key::path_segment::Segment::Key(key)) => Some(key.into()),
        Some(metadata::metadata_key::path_segment::Segment::Index(_)) => {
            at.unsupported("index", true);
            None
        }
        None => {
            at.error("value is required");
            None
        }
    });
    Some((key.into(), path))
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn prefixes_of_addresses() {
        let check = |address: &str, v4, v6, expected: &str| {
            assert_eq!(masked(address.parse().expect("an address"), v4, v6), expected);
        };
        check("10.1.2.3", 16, 64, "10.1.0.0/16");
        check("10.1.2.3", 0, 64, "0.0.0.0/0");
        check("10.1.2.3", 32, 64, "10.1.2.3/32");
        check("2001:db8:1:2:3::1", 16, 64, "2001:db8:1:2::/64");
        check("2001:db8::1", 16, 0, "::/0");
    }
}
