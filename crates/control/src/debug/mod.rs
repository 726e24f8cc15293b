//! What the control plane says of itself: JSON over HTTP, on Istio's port (15014) and under Istio's
//! paths, with the fields that `istioctl` and people know from istiod; and the same over xDS.
//!
//! [`PAGES`] lists the pages; `proxies.rs`, `registry.rs`, `config.rs` and `cache.rs` make them: on the
//! control loop they take hold of what they show, and what takes long is written elsewhere
//! ([`Answer::Later`]). `http.rs` is the
//! HTTP server: it asks the control loop, which answers with [`answer`]. `stream.rs` answers those who
//! ask over xDS, as `istioctl proxy-status` does. `viewer.rs` decides who may see what.

mod cache;
pub(crate) mod config;
pub(crate) mod http;
mod proxies;
mod registry;
pub(crate) mod stream;
mod viewer;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::{Instant, SystemTime};

use ::http::StatusCode;
use leno_derive::Graph;
use serde_json::Value;

use self::viewer::Viewer;
use crate::access::Refusals;
use crate::ca::Ca;
use crate::inject::webhook::Webhook;
use crate::metrics;
use crate::model::ObjectRef;
use crate::model::diagnostic::Diagnostic;
use crate::model::switches::SwitchInput;
use crate::push::Push;
use crate::push::session::Session;
use crate::registry::Mesh;
use crate::source::Origin;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// As `/debug/syncz`.
    pub(crate) path: String,
    /// What follows the `?`, not decoded.
    pub(crate) query: String,
    /// Who asks.
    pub(crate) viewer: Viewer,
}

/// The answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Json(Value),
    Text(String),
    Html(String),
    Fault(StatusCode, String),
    /// It is known, and has yet to be written.
    Later(Later),
}

/// What is left to do for an answer when the control loop has been looked at: writing large pages takes
/// long, and is nothing that proxies should wait for. To be done where a thread may be busy for a while.
pub(crate) struct Later(Box<dyn FnOnce() -> Answer + Send>);

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

impl Answer {
    /// An answer that is written elsewhere, of handles of what was seen.
    fn later(write: impl FnOnce() -> Answer + Send + 'static) -> Answer {
        Answer::Later(Later(Box::new(write)))
    }

    /// The answer, written.
    pub(crate) fn written(mut self) -> Answer {
        while let Answer::Later(Later(write)) = self {
            self = write();
        }
        self
    }
}

/// What there is to be seen.
#[derive(Clone, Copy)]
pub(crate) struct Look<'l> {
    pub(crate) graph: &'l Graph,
    pub(crate) push: &'l Push,
    pub(crate) origins: &'l BTreeMap<ObjectRef, Origin>,
    pub(crate) diagnostics: &'l [Diagnostic],
    pub(crate) ca: Option<&'l Ca>,
    pub(crate) webhook: Option<&'l Webhook>,
    pub(crate) refusals: &'l Refusals,
    pub(crate) now: Instant,
    pub(crate) wall: SystemTime,
}

/// A page.
struct Page {
    path: &'static str,
    help: &'static str,
    /// Whether workloads of any namespace may ask it, about proxies of theirs.
    open: bool,
    show: fn(Look<'_>, &Question) -> Answer,
}

const fn page(path: &'static str, help: &'static str, show: fn(Look<'_>, &Question) -> Answer) -> Page {
    Page { path, help, open: false, show }
}

const fn open(path: &'static str, help: &'static str, show: fn(Look<'_>, &Question) -> Answer) -> Page {
    Page { path, help, open: true, show }
}

/// The pages.
const PAGES: &[Page] = &[
    page("/debug/adsz", "The connected proxies and what each asks for", proxies::adsz),
    page("/debug/authorizationz", "The authorization policies", config::authorizationz),
    page("/debug/cachez", "What is made for whom, and shared (?sizes=true: how large it is)", cache::cachez),
    page("/debug/clusterz", "The clusters that are read", registry::clusterz),
    open(
        "/debug/config_dump",
        "What a proxy (?proxyID=) should have, as its own dump has it",
        proxies::config_dump,
    ),
    page("/debug/configz", "The objects in use", config::configz),
    page("/debug/connections", "The connected proxies", proxies::connections),
    page("/debug/diagnostics", "All that is wrong with the configuration", config::diagnostics),
    page("/debug/ecdsz", "The extension configurations of a proxy (?proxyID=)", proxies::ecdsz),
    open("/debug/edsz", "The endpoints of a proxy (?proxyID=)", proxies::edsz),
    page("/debug/endpointShardz", "The endpoints of all services", registry::endpointz),
    page("/debug/endpointz", "The endpoints of all services", registry::endpointz),
    page("/debug/gatewayz", "What became of the Gateway API's objects", config::gatewayz),
    page("/debug/inject", "The templates of injection", config::inject),
    page(
        "/debug/instancesz",
        "The services in front of each connected proxy's workload",
        registry::instancesz,
    ),
    page("/debug/krtz", "The inputs that everything is derived from", cache::krtz),
    page("/debug/list", "The names of these pages", list),
    page("/debug/mcsz", "Services of Kubernetes' Multi-Cluster API: there are none", registry::mcsz),
    page("/debug/mesh", "The settings of the mesh", config::mesh),
    open("/debug/ndsz", "The name table of a proxy (?proxyID=)", proxies::ndsz),
    page("/debug/networkz", "The gateways between networks", registry::networkz),
    page("/debug/push_status", "What is noteworthy about what was sent", config::push_status),
    page("/debug/pushcontext", "What is derived for the whole mesh", config::pushcontext),
    page("/debug/registryz", "The services and their endpoints", registry::registryz),
    page("/debug/resourcesz", "The kinds that are read", config::resourcesz),
    page("/debug/sidecarz", "What a proxy's (?proxyID=) configuration is made of", proxies::sidecarz),
    page("/debug/syncz", "What each proxy was sent and has taken", proxies::syncz),
    page("/debug/telemetryz", "The Telemetry objects", config::telemetryz),
    page("/metrics", "What is counted, for Prometheus", prometheus),
];

/// Answers a question that comes over HTTP.
pub(crate) fn answer_over_http(look: Look<'_>, question: &Question) -> Answer {
    let is_off = look.graph.input::<SwitchInput>(&()).is_some_and(|switches| !switches.debug_on_http);
    if is_off && question.path.starts_with("/debug") {
        let text = "the debug pages are not served over HTTP: ENABLE_DEBUG_ON_HTTP\n".to_owned();
        return Answer::Fault(StatusCode::NOT_FOUND, text);
    }
    answer(look, question)
}

/// Answers a question.
pub(crate) fn answer(look: Look<'_>, question: &Question) -> Answer {
    if matches!(question.path.as_str(), "/debug" | "/debug/") {
        return index();
    }
    let Some(page) = PAGES.iter().find(|page| page.path == question.path) else {
        let mut text =
            format!("there is no {}; there are:\n/ready\n/healthz\n/version\n/debug\n", question.path);
        PAGES.iter().for_each(|page| text.extend([page.path, "\n"]));
        return Answer::Fault(StatusCode::NOT_FOUND, text);
    };
    if !page.open && page.path != "/metrics" && !look.is_unrestricted(&question.viewer) {
        let text = "only workloads of the root namespace may ask this\n".to_owned();
        return Answer::Fault(StatusCode::FORBIDDEN, text);
    }
    (page.show)(look, question)
}

/// Whether a question is about what is wrong, which is looked for only now and then.
pub(crate) fn needs_analysis(question: &Question) -> bool {
    matches!(question.path.as_str(), "/debug/diagnostics" | "/debug/push_status")
}

impl<'l> Look<'l> {
    /// Whether somebody may see everything.
    fn is_unrestricted(self, viewer: &Viewer) -> bool {
        match viewer {
            Viewer::Anyone => true,
            Viewer::Namespace(namespace) => {
                let switches = self.graph.input::<SwitchInput>(&());
                *namespace == self.graph.peek::<Mesh>(&()).root_namespace
                    || switches.is_some_and(|switches| switches.debug_namespaces.contains(namespace))
            }
        }
    }

    /// Whether somebody may see what is about a proxy.
    fn may_see(self, viewer: &Viewer, session: &Session) -> bool {
        self.is_unrestricted(viewer)
            || matches!(viewer, Viewer::Namespace(namespace) if session.key.namespace == *namespace)
    }

    /// The session of the proxy that `proxyID` names: by name (`pod.namespace`) or identifier, whole
    /// or in part.
    fn proxy(self, question: &Question) -> Result<&'l Session, Answer> {
        let Some(wanted) = parameter(&question.query, "proxyID").filter(|wanted| !wanted.is_empty()) else {
            let text = "You must provide a proxyID in the query string\n".to_owned();
            return Err(Answer::Fault(StatusCode::BAD_REQUEST, text));
        };
        let is_whole = |session: &&Session| session.node == wanted || session.node_id == wanted;
        let is_part = |session: &&Session| proxies::connection(session).contains(&wanted);
        // What somebody may not see must not hide from him what he may.
        let seen = || self.push.sessions().filter(|session| self.may_see(&question.viewer, session));
        let found = seen().find(is_whole).or_else(|| seen().find(is_part));
        found.ok_or_else(|| {
            let text =
                "Proxy not connected to this Pilot instance. It may be connected to another instance.\n";
            Answer::Fault(StatusCode::NOT_FOUND, text.to_owned())
        })
    }
}

fn index() -> Answer {
    let mut text = String::from(
        "<html><head><title>Leno: the control plane</title></head><body><h1>The control plane</h1><table>\n",
    );
    for page in PAGES {
        // Writing to a string does not fail.
        let _ = writeln!(text, "<tr><td><a href=\"{0}\">{0}</a></td><td>{1}</td></tr>", page.path, page.help);
    }
    text.push_str("</table></body></html>\n");
    Answer::Html(text)
}

fn list(_: Look<'_>, _: &Question) -> Answer {
    let names = PAGES.iter().filter_map(|page| page.path.strip_prefix("/debug/"));
    Answer::Json(names.filter(|name| *name != "list").map(Value::from).collect())
}

fn prometheus(look: Look<'_>, question: &Question) -> Answer {
    let seen = metrics::Seen {
        graph: look.graph,
        push: look.push,
        diagnostics: look.diagnostics,
        ca: look.ca,
        webhook: look.webhook,
        refusals: look.refusals,
        names: look.is_unrestricted(&question.viewer),
    };
    Answer::Text(metrics::page(seen))
}

/// The value of a query parameter, percent-decoded; `None` if it is not there.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| {
        let rest = pair.strip_prefix(name)?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('=') }
    })?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::parameter;

    #[test]
    fn parameters_are_decoded() {
        assert_eq!(parameter("proxyID=a.b", "proxyID").as_deref(), Some("a.b"));
        assert_eq!(parameter("x=1&proxyID=a%7Eb+c", "proxyID").as_deref(), Some("a~b c"));
        assert_eq!(parameter("pretty&x=1", "pretty").as_deref(), Some(""));
        assert_eq!(parameter("proxyIDx=1", "proxyID"), None);
        assert_eq!(parameter("proxyID=%7", "proxyID"), None);
    }
}
