//! The answer: of a gRPC service envoy.service.auth.v3.CheckResponse, of an HTTP service a response.

#![allow(deprecated, reason = "deprecated fields are read like all others")]

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::service::auth::v3 as auth;
use prost::Message;
use serde_json::{Map, Value};

use super::service::HttpService;
use crate::config::address;
use crate::http::client;
use crate::http::headers::{HeaderMap, Known};

/// Names headers that an HTTP service wants to be removed.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// What a service says of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may go on.
    Ok,
    /// It may not.
    Denied,
    /// Nothing: it cannot be reached, or has failed.
    #[default]
    Error,
}

/// All that a service says.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    /// Of the answer to the client, if it says one.
    pub(super) status: Option<u16>,
    pub(super) body: Bytes,
    /// Changes of the request, of the response, and of the answer in the service's name.
    pub(super) request: Vec<Change>,
    pub(super) response: Vec<Change>,
    pub(super) local: Vec<Change>,
    /// Headers of the request that are removed.
    pub(super) removed: Vec<String>,
    pub(super) set_parameters: Vec<(String, String)>,
    pub(super) removed_parameters: Vec<String>,
    pub(crate) metadata: Map<String, Value>,
    /// A change of the response is of no kind that is known.
    pub(super) unknown_action: bool,
}

/// A change of a header.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// In lower case.
    pub(super) name: String,
    pub(super) value: Vec<u8>,
    pub(super) action: Action,
}

/// How a header is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// One more line.
    Add,
    /// At the end of the line that is there, behind a comma; nothing where there is none.
    Append,
    AddIfAbsent,
    OverwriteOrAdd,
    OverwriteIfExists,
}

impl Change {
    /// Makes the change in a head.
    pub(super) fn apply(&self, head: &mut HeaderMap) {
        let there = head.find(&self.name);
        match self.action {
            Action::Add => head.append(self.name.as_bytes(), &self.value),
            Action::AddIfAbsent if there.is_none() => head.append(self.name.as_bytes(), &self.value),
            Action::OverwriteOrAdd => head.set_named(&self.name, &self.value),
            Action::OverwriteIfExists if there.is_some() => head.set_named(&self.name, &self.value),
            Action::Append => {
                if let Some(before) = there {
                    let value = [before, b",", &self.value].concat();
                    head.set_named(&self.name, &value);
                }
            }
            Action::AddIfAbsent | Action::OverwriteIfExists => {}
        }
    }

    /// Whether it is one of a header that can be.
    pub(super) fn is_good(&self) -> bool {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let name = self.name.strip_prefix(':').unwrap_or(&self.name);
        !name.is_empty() && name.bytes().all(token) && self.has_good_value()
    }

    /// Whether a header can have this value.
    pub(super) fn has_good_value(&self) -> bool {
        self.value.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f)
    }

    /// The same in the response's head.
    // Deviation: without `validate_mutations`, what cannot be a header is left out of responses.
    // Envoy writes it, so that a service can split responses.
    pub(super) fn apply_to_response(&self, head: &mut HeaderMap) {
        if self.is_good() {
            self.apply(head);
        }
    }
}

/// Reads a gRPC service's answer.
///
/// # Errors
/// It is no such message.
pub(crate) fn decode(message: &[u8]) -> Result<Answer, prost::DecodeError> {
    use auth::check_response::HttpResponse;
    let auth::CheckResponse { status, dynamic_metadata, http_response } =
        auth::CheckResponse::decode(message)?;
    let ok = status.is_none_or(|status| status.code == 0);
    let mut answer = Answer { metadata: object(dynamic_metadata), ..Answer::default() };
    match http_response {
        Some(HttpResponse::OkResponse(said)) => {
            let auth::OkHttpResponse {
                headers,
                headers_to_remove,
                dynamic_metadata,
                response_headers_to_add,
                query_parameters_to_set,
                query_parameters_to_remove,
            } = said;
            if dynamic_metadata.is_some() {
                answer.metadata = object(dynamic_metadata);
            }
            if ok {
                // Of changes of the request only the deprecated flag says how, as in Envoy.
                answer.request = all(headers, |option| match option.append {
                    Some(true) => Some(Action::Append),
                    _ => Some(Action::OverwriteOrAdd),
                });
                answer.response = all(response_headers_to_add, |option| {
                    let action = action(option);
                    answer.unknown_action |= action.is_none();
                    action
                });
                answer.removed = headers_to_remove;
                let pair = |parameter: core::QueryParameter| (parameter.key, parameter.value);
                answer.set_parameters = query_parameters_to_set.into_iter().map(pair).collect();
                answer.removed_parameters = query_parameters_to_remove;
            }
            answer.verdict = if ok { Verdict::Ok } else { Verdict::Denied };
        }
        _ if ok => answer.verdict = Verdict::Ok,
        Some(HttpResponse::ErrorResponse(said)) => answer.refuse(said, true),
        Some(HttpResponse::DeniedResponse(said)) => {
            answer.verdict = Verdict::Denied;
            answer.refuse(said, false);
        }
        None => answer.verdict = Verdict::Denied,
    }
    Ok(answer)
}

impl Answer {
    /// `appended`: those of which the deprecated flag says so are there too (Envoy drops them from
    /// denials, and not from errors).
    fn refuse(&mut self, said: auth::DeniedHttpResponse, appended: bool) {
        let auth::DeniedHttpResponse { status, headers, body } = said;
        let status = status.and_then(|status| u16::try_from(status.code).ok());
        self.status = status.filter(|status| *status > 0);
        self.local = all(headers, |option| (appended || option.append != Some(true)).then_some(Action::Add));
        self.body = body.into();
    }
}

/// All changes, each as `action` says; `None`: it is left out.
fn all(
    protos: Vec<core::HeaderValueOption>,
    mut action: impl FnMut(&core::HeaderValueOption) -> Option<Action>,
) -> Vec<Change> {
    let changes = protos.into_iter().filter_map(|proto| {
        let action = action(&proto)?;
        let core::HeaderValue { key, value, raw_value } = proto.header?;
        let value = if value.is_empty() { raw_value.to_vec() } else { value.into_bytes() };
        Some(Change { name: key.to_ascii_lowercase(), value, action })
    });
    changes.collect()
}

/// How an option changes a header; `None`: in no way that is known.
fn action(option: &core::HeaderValueOption) -> Option<Action> {
    use core::header_value_option::HeaderAppendAction;
    Some(match (option.append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => Action::Add,
        (Some(false), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => Action::OverwriteOrAdd,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => Action::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => Action::OverwriteIfExists,
        (None, Err(_)) => return None,
    })
}

fn object(proto: Option<prost_types::Struct>) -> Map<String, Value> {
    match proto.map(address::object) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// Reads an HTTP service's answer.
pub(super) fn read(said: client::Answer, service: &HttpService) -> Answer {
    let status = said.head.status();
    if status >= 500 {
        return Answer::default();
    }
    let mut answer = Answer { status: Some(status), ..Answer::default() };
    let matches = |matchers: &[_], name: &str| service.any(matchers, name);
    for (name, value) in said.head.iter() {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name == REMOVE {
            if status == 200 {
                let names = String::from_utf8_lossy(value).to_ascii_lowercase();
                let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
                answer.removed.extend(names.map(str::to_owned));
            }
            continue;
        }
        let change = |action| Change { name: name.to_owned(), value: value.to_vec(), action };
        if matches(&service.to_metadata, name) {
            let text = String::from_utf8_lossy(value).into_owned();
            answer.metadata.insert(name.to_owned(), text.into());
        }
        if status == 200 {
            if matches(&service.to_upstream, name) {
                answer.request.push(change(Action::OverwriteOrAdd));
            }
            if matches(&service.to_client_on_success, name) {
                answer.response.push(change(Action::Add));
            }
        } else if name != Known::Status.text() && service.tells_client(name) {
            answer.local.push(change(Action::Add));
        }
    }
    if status == 200 {
        // Those that are added come behind all that are set.
        for (name, value) in said.head.iter() {
            if let Ok(name) = std::str::from_utf8(name)
                && name != REMOVE
                && matches(&service.to_upstream_appended, name)
            {
                answer.request.push(Change {
                    name: name.to_owned(),
                    value: value.to_vec(),
                    action: Action::Add,
                });
            }
        }
        answer.verdict = Verdict::Ok;
    } else {
        answer.verdict = Verdict::Denied;
        answer.body = said.body;
    }
    answer
}
