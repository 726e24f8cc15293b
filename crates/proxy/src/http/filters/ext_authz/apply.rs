//! What an answer does to a request.

use std::time::Duration;

use bytes::Bytes;
use leno_base::Name;
use regex::bytes::Regex;
use serde_json::Value;

use super::answer::{Action, Answer, Change, Verdict};
use super::{AuthzStats, NAMESPACE, Settings, refusal};
use crate::cluster::worker_cluster::Asker;
use crate::http::filters::Step;
use crate::http::filters::header_mutation::query;
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::Reply;
use crate::http::stream::Stream;
use crate::telemetry::stream_info::ResponseFlags;

/// HeaderMutationRules: what a service may change.
#[derive(Debug)]
pub(super) struct MutationRules {
    pub(super) allow_all_routing: bool,
    pub(super) allow_envoy: bool,
    pub(super) disallow_system: bool,
    pub(super) disallow_all: bool,
    pub(super) allow: Option<Regex>,
    pub(super) disallow: Option<Regex>,
    pub(super) disallow_is_error: bool,
}

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Ok,
    Ignore,
    Fail,
}

impl MutationRules {
    /// What becomes of the change of this header. `append`: at the end of what is there; no value:
    /// it is removed.
    pub(super) fn check(&self, name: &str, append: bool, value: Option<&[u8]>) -> Check {
        let system = name.starts_with(':');
        let good = match value {
            Some(value) => self.allows(name, system) && !(append && system) && is_valid(name, value),
            // Without them there is no request.
            None => !system && name != "host" && self.allows(name, system),
        };
        match (good, self.disallow_is_error) {
            (true, _) => Check::Ok,
            (false, true) => Check::Fail,
            (false, false) => Check::Ignore,
        }
    }

    fn allows(&self, name: &str, system: bool) -> bool {
        let matches =
            |regex: &Option<Regex>| regex.as_ref().is_some_and(|regex| regex.is_match(name.as_bytes()));
        if matches(&self.disallow) {
            return false;
        }
        if matches(&self.allow) {
            return true;
        }
        let routing = matches!(name, "host" | ":authority" | ":scheme" | ":method");
        !(self.disallow_all
            || self.disallow_system && system
            || routing && !self.allow_all_routing
            || name.starts_with("x-envoy-") && !self.allow_envoy)
    }
}

/// Whether a pseudo-header may have this value.
fn is_valid(name: &str, value: &[u8]) -> bool {
    match name {
        ":authority" | "host" => !value.is_empty() && value.iter().all(|byte| *byte > b' ' && *byte != 0x7f),
        ":scheme" => matches!(value, b"http" | b"https"),
        ":method" => !value.is_empty() && value.iter().all(u8::is_ascii_alphabetic),
        ":status" => value.len() == 3 && value.iter().all(u8::is_ascii_digit),
        _ => true,
    }
}

/// An answer that is being followed.
pub(super) struct Applying<'a> {
    pub(super) settings: &'a Settings,
    pub(super) stats: &'a AuthzStats,
    pub(super) stream: &'a mut Stream,
    pub(super) head: &'a mut HeaderMap,
    /// For the response's head.
    pub(super) later: &'a mut Vec<Change>,
    /// The cluster that the request was to go to when the service was asked, as stats know it.
    pub(super) cluster: Option<Name>,
}

/// The service wants what it may not.
struct Invalid;

impl Applying<'_> {
    /// Does what the answer says, which took so long.
    pub(super) fn follow(mut self, mut answer: Answer, took: Duration) -> Step {
        if answer.unknown_action && self.settings.validate_mutations {
            return self.reject();
        }
        if !answer.metadata.is_empty() {
            if self.settings.takes_metadata {
                if answer.verdict == Verdict::Ok {
                    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                    answer.metadata.insert("ext_authz_duration".to_owned(), Value::from(millis));
                }
                let values = std::mem::take(&mut answer.metadata);
                self.stream.info.metadata.values_mut(NAMESPACE).extend(values);
            } else {
                self.stats.ignored_dynamic_metadata().inc();
            }
        }
        match answer.verdict {
            Verdict::Ok => match self.change(answer) {
                Ok(malformed) => {
                    self.count("ok");
                    self.stats.ok().inc();
                    malformed.map_or(Step::Continue, |change| Step::Reply(unsendable(&change)))
                }
                Err(Invalid) => self.reject(),
            },
            Verdict::Denied => self.deny(answer),
            Verdict::Error => self.fail(answer),
        }
    }

    /// Changes the request; the first change that makes it one that cannot be sent.
    fn change(&mut self, answer: Answer) -> Result<Option<Change>, Invalid> {
        let mut malformed = None;
        let changes = !answer.request.is_empty()
            || !answer.removed.is_empty()
            || !answer.set_parameters.is_empty()
            || !answer.removed_parameters.is_empty();
        for change in &answer.request {
            match self.check(change)? {
                Check::Ok if change.is_good() => change.apply(self.head),
                Check::Ok => malformed = malformed.or_else(|| Some(change.clone())),
                Check::Ignore | Check::Fail => {}
            }
        }
        for name in &answer.removed {
            let name = name.to_ascii_lowercase();
            let check = match &self.settings.rules {
                Some(rules) => rules.check(&name, false, None),
                None if name.starts_with(':') || name == "host" => Check::Ignore,
                None => Check::Ok,
            };
            match check {
                Check::Ok => {
                    self.head.remove_named(&name);
                }
                Check::Ignore => {}
                Check::Fail => return Err(Invalid),
            }
        }
        if self.settings.validate_mutations && !answer.response.iter().all(Change::is_good) {
            return Err(Invalid);
        }
        *self.later = answer.response;
        if !answer.set_parameters.is_empty() || !answer.removed_parameters.is_empty() {
            // What needs no encoding, as Envoy has it here.
            let encoded =
                |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte));
            let all_encoded =
                || answer.set_parameters.iter().all(|(key, value)| encoded(key) && encoded(value));
            if self.settings.validate_mutations && !all_encoded() {
                return Err(Invalid);
            }
            let path = query::edited(self.head.path(), &answer.set_parameters, &answer.removed_parameters);
            self.head.set(Known::Path, &path);
        }
        if changes && self.settings.clear_route_cache {
            self.stream.refresh_route(self.head);
        }
        Ok(malformed)
    }

    fn check(&self, change: &Change) -> Result<Check, Invalid> {
        if self.settings.validate_mutations && !change.is_good() {
            return Err(Invalid);
        }
        let append = change.action == Action::Append;
        match &self.settings.rules {
            None => Ok(Check::Ok),
            Some(rules) => match rules.check(&change.name, append, Some(&change.value)) {
                Check::Fail => Err(Invalid),
                check => Ok(check),
            },
        }
    }

    fn deny(&mut self, answer: Answer) -> Step {
        let status = answer.status.unwrap_or(403);
        self.stats.denied().inc();
        self.count("denied");
        if self.settings.charge_cluster {
            self.charge(status);
        }
        if self.settings.validate_mutations && !answer.local.iter().all(Change::is_good) {
            return self.reject();
        }
        let body = self.shortened(answer.body);
        Step::Reply(reply(status, "ext_authz_denied", body, &answer.local))
    }

    fn fail(&mut self, answer: Answer) -> Step {
        self.count("error");
        self.stats.error().inc();
        if self.settings.failure_mode_allow {
            self.stats.failure_mode_allowed().inc();
            self.count("failure_mode_allowed");
            if self.settings.failure_mode_allow_header {
                self.head.append(b"x-envoy-auth-failure-mode-allowed", b"true");
            }
            return Step::Continue;
        }
        if self.settings.validate_mutations && !answer.local.iter().all(Change::is_good) {
            return self.reject();
        }
        let status = answer.status.unwrap_or(self.settings.status_on_error);
        let body = self.shortened(answer.body);
        Step::Reply(reply(status, "ext_authz_error", body, &answer.local))
    }

    fn shortened(&self, mut body: Bytes) -> Bytes {
        if self.settings.longest_denial > 0 {
            body.truncate(self.settings.longest_denial);
        }
        body
    }

    fn reject(&mut self) -> Step {
        self.count("invalid");
        self.stats.invalid().inc();
        Step::Reply(refusal(500, "ext_authz_invalid"))
    }

    /// Counts in the cluster that the request goes to.
    fn count(&self, what: &str) {
        if let Some(cluster) = &self.cluster {
            let prefix = &self.settings.stat_prefix;
            self.stream.worker.stats().count(&format!("cluster.{cluster}.ext_authz.{prefix}{what}"), 1);
        }
    }

    /// Counts the denial as an answer of that cluster.
    fn charge(&self, status: u16) {
        let selected = self.stream.selected.as_ref();
        let name = selected.and_then(|selected| selected.cluster(self.head));
        if let Some(cluster) = name.and_then(|name| self.stream.worker.cluster(name)) {
            cluster.stats.count_response(status, true);
            cluster.answers(self.stream.worker.stats(), Asker::Internal).count_response(status, true);
        }
    }
}

/// The answer to a request that has become one that cannot be sent on; Envoy finds that out when it
/// is sent.
fn unsendable(change: &Change) -> Reply {
    let name = &change.name;
    let why = match change.has_good_value() {
        true => format!("invalid header name: {name}"),
        false => format!("invalid header value for: {name}"),
    };
    let details = format!("filter_removed_required_request_headers{{{}}}", why.replace(' ', "_"));
    Reply::new(503, details, why).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR)
}

fn reply(status: u16, details: &'static str, body: Bytes, changes: &[Change]) -> Reply {
    let mut made = HeaderMap::new();
    changes.iter().for_each(|change| change.apply_to_response(&mut made));
    let mut reply = Reply::new(status, details, body).flag(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
    for (name, value) in made.iter() {
        reply = reply.header(String::from_utf8_lossy(name).into_owned(), value.to_vec());
    }
    reply
}
