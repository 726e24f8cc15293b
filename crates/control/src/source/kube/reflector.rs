//! Keeps [`Objects`] of one resource up to date: a list, then a watch from it, then a watch from
//! there, and a new list only where the server has forgotten too much (410).

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use leno_api::yaml::{JsonNode, Node};
use leno_base::backoff::Backoff;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokio::sync::{mpsc, watch};

use super::client::{Api, Fault};
use super::discovery::Served;
use super::objects::{Objects, reference};
use crate::model::diagnostic::Diagnostic;
use crate::model::{Change, Kind, ObjectRef};

/// How many objects a page of a list has.
const PAGE: usize = 500;

/// How long a watch is asked to last, in seconds.
const WATCH_SECONDS: u64 = 300;

/// A watch that lived for so long was not in vain: the next one need not wait.
const LIVELY: Duration = Duration::from_secs(1);

/// How many changes are gathered before they are told, while more are there to be read.
const BATCH: usize = 1000;

/// What is passed over in every object: who changed which field, which is often half of it.
const JSON: JsonNode = JsonNode { skip: &["managedFields"] };

/// Which objects of a resource are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scope {
    /// The namespace; empty is all.
    pub(super) namespace: String,
    /// The one object; empty is all.
    pub(super) name: String,
}

/// What a reflector has to say.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Which reflector.
    pub(super) from: usize,
    pub(super) changes: Vec<Change>,
    /// Objects that have a status of ours and are gone, good or not, whatever has come under their names.
    pub(super) gone: Vec<ObjectRef>,
    /// What is wrong with the objects, if that has changed.
    pub(super) diagnostics: Option<Vec<Diagnostic>>,
    /// How it goes.
    pub(super) state: State,
}

/// How watching goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// As it should. What has been told is all there is.
    #[default]
    Watching,
    /// The kind is not served: there are no objects.
    Idle,
    /// It does not; what was told is the last that is known.
    Failing(Fault),
}

pub(super) struct Reflector {
    pub(super) index: usize,
    pub(super) api: Api,
    pub(super) scope: Scope,
    /// As what the objects are read, if it matters that one is another than the last of its name: their
    /// status is ours to write, or, of namespaces, what is in them.
    pub(super) tells: Option<Kind>,
    /// Where the objects are; `None` while the kind is not served.
    pub(super) served: watch::Receiver<Option<Served>>,
    pub(super) tell: mpsc::Sender<Told>,
    pub(super) backoff: Backoff,
    pub(super) objects: Objects,
    /// Whether a fault was told last.
    pub(super) failing: bool,
}

/// Why a reflector stops what it does: what is served has changed, or nobody listens.
struct Interrupted;

type Outcome<T> = Result<Result<T, Fault>, Interrupted>;

impl Reflector {
    /// Runs until nobody listens.
    pub(super) async fn run(mut self) {
        while !self.tell.is_closed() {
            let served = self.served.borrow_and_update().clone();
            match served {
                Some(served) => drop(self.serve(&served).await),
                None => {
                    self.objects.clear();
                    if self.told(State::Idle).await.is_err() || self.served.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn serve(&mut self, served: &Served) -> Result<(), Interrupted> {
        loop {
            let mut version = match self.list(served).await? {
                Ok(version) => version,
                Err(fault) => {
                    self.wait_after(fault).await?;
                    continue;
                }
            };
            self.told(State::Watching).await?;
            loop {
                let since = Instant::now();
                let outcome = self.watch(served, &mut version).await?;
                let lived = since.elapsed() >= LIVELY;
                if lived {
                    self.backoff.reset();
                }
                match outcome {
                    Ok(()) if lived => {}
                    Ok(()) => self.pause(None).await?,
                    Err(fault) if fault.code() == 410 => {
                        tracing::info!(
                            kind = served.kind,
                            "the server has forgotten what changed: listing again"
                        );
                        if !lived {
                            self.pause(None).await?;
                        }
                        break;
                    }
                    Err(fault) => {
                        let again = is_refused(&fault);
                        self.wait_after(fault).await?;
                        if again {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Reads all objects; returns the version to watch from.
    async fn list(&mut self, served: &Served) -> Outcome<String> {
        let base = format!("{}?limit={PAGE}{}", served.path(&self.scope.namespace), self.selector(served));
        self.objects.begin();
        let mut token = String::new();
        loop {
            let path = match token.as_str() {
                "" => base.clone(),
                token => format!("{base}&continue={}", encode(token)),
            };
            let text = tokio::select! {
                answer = self.api.get(&path, "application/json") => match answer {
                    Ok(text) => text,
                    Err(fault) => return Ok(Err(fault)),
                },
                changed = self.served.changed() => return Err(interrupted(changed)),
            };
            let page = Page { each: |node: Node<'_>| self.objects.set(served, node) };
            let page = page.deserialize(&mut serde_json::Deserializer::from_str(&text));
            let meta = match page {
                Ok(meta) => meta,
                Err(error) => return Ok(Err(Fault::broken(&error))),
            };
            token = meta.token;
            if token.is_empty() {
                self.objects.finish();
                return Ok(Ok(meta.version));
            }
        }
    }

    /// Follows what happens after a version, and moves it.
    async fn watch(&mut self, served: &Served, version: &mut String) -> Outcome<()> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}{}",
            served.path(&self.scope.namespace),
            encode(version),
            self.selector(served)
        );
        let mut lines = tokio::select! {
            answer = self.api.lines(&path, "application/json") => match answer {
                Ok(lines) => lines,
                Err(fault) => return Ok(Err(fault)),
            },
            changed = self.served.changed() => return Err(interrupted(changed)),
        };
        if self.failing {
            // An open watch knows of everything, though nothing may happen for long.
            self.told(State::Watching).await?;
        }
        let mut settled = false;
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                changed = self.served.changed() => return Err(interrupted(changed)),
            };
            let mut line = match line {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(Ok(())),
                Err(fault) => return Ok(Err(fault)),
            };
            let mut count = 0;
            let end = loop {
                let event = self.event(served, &line);
                match event {
                    ControlFlow::Continue(moved) => {
                        if let Some(moved) = moved {
                            *version = moved;
                        }
                    }
                    ControlFlow::Break(fault) => break Some(fault),
                }
                count += 1;
                match lines.ready() {
                    Some(next) if count < BATCH => line = next,
                    Some(next) => {
                        // Told below, and gone on with.
                        self.told(State::Watching).await?;
                        (line, count) = (next, 0);
                    }
                    None => break None,
                }
            };
            self.told(State::Watching).await?;
            if let Some(fault) = end {
                return Ok(Err(fault));
            }
            if !settled {
                settled = true;
                self.backoff.reset();
            }
        }
    }

    /// Takes in one line of a watch; the version that it brings, or why the watch is over.
    fn event(&mut self, served: &Served, line: &[u8]) -> ControlFlow<Fault, Option<String>> {
        let mut reader = serde_json::Deserializer::from_slice(line);
        let event = match JSON.deserialize(&mut reader) {
            Ok(event) => event,
            // A line that is no JSON was cut: what came after is unknown.
            Err(error) => return ControlFlow::Break(Fault::broken(&error)),
        };
        let Some(object) = event.find("object").cloned() else {
            return ControlFlow::Break(Fault::Broken("an event without an object".to_owned()));
        };
        let version =
            object.find("metadata").and_then(|it| it.find("resourceVersion")).and_then(Node::as_str);
        let version = version.map(str::to_owned);
        match event.find("type").and_then(Node::as_str) {
            Some("ADDED" | "MODIFIED") => self.objects.set(served, object),
            Some("DELETED") => self.objects.remove(&object),
            Some("BOOKMARK") => {}
            Some("ERROR") => {
                let text = |name| object.find(name).and_then(Node::as_str).unwrap_or_default().to_owned();
                let code = object.find("code").map(Node::to_json).and_then(|code| code.as_u64());
                let code = code.and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
                return ControlFlow::Break(Fault::Status {
                    code,
                    message: text("message"),
                    cause: None,
                    retry_after: None,
                });
            }
            other => tracing::debug!(?other, "an event of a type that is not known"),
        }
        ControlFlow::Continue(version)
    }

    /// The rest of a query that selects the objects of this reflector.
    fn selector(&self, served: &Served) -> String {
        let fields = if !self.scope.name.is_empty() {
            format!("metadata.name={}", self.scope.name)
        } else if served.kind == "Pod" {
            // Jobs leave many behind that nobody will call again.
            "status.phase!=Succeeded,status.phase!=Failed".to_owned()
        } else {
            return String::new();
        };
        format!("&fieldSelector={}", encode(&fields))
    }

    async fn wait_after(&mut self, fault: Fault) -> Result<(), Interrupted> {
        let longer = match &fault {
            Fault::Status { retry_after, .. } => *retry_after,
            Fault::Broken(_) => None,
        };
        self.told(State::Failing(fault)).await?;
        self.pause(longer).await
    }

    /// Waits a little, longer each time.
    async fn pause(&mut self, at_least: Option<Duration>) -> Result<(), Interrupted> {
        let wait = self.backoff.next_wait().max(at_least.unwrap_or_default());
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            changed = self.served.changed() => Err(interrupted(changed)),
        }
    }

    async fn told(&mut self, state: State) -> Result<(), Interrupted> {
        self.failing = matches!(state, State::Failing(_));
        let gone = self.objects.take_gone();
        let told = Told {
            from: self.index,
            changes: self.objects.take(),
            gone: self
                .tells
                .map_or_else(Vec::new, |kind| gone.iter().map(|key| reference(kind, key)).collect()),
            diagnostics: self.objects.take_diagnostics(),
            state,
        };
        self.tell.send(told).await.map_err(|_| Interrupted)
    }
}

/// Whether a fault is about the watch that was asked for, so that asking for it again would not help: a
/// version that the server cannot make sense of, as it may be after its data were restored.
fn is_refused(fault: &Fault) -> bool {
    matches!(fault.code(), 400..=599) && !matches!(fault.code(), 401 | 403 | 404 | 429 | 502 | 503)
}

fn interrupted(_: Result<(), watch::error::RecvError>) -> Interrupted {
    Interrupted
}

/// Percent-encodes what may not stand in a query.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A page of a list, whose objects are given away one by one as they are read.
struct Page<F> {
    each: F,
}

/// What a page says about the list.
#[derive(Default)]
struct PageMeta {
    version: String,
    token: String,
}

impl<'de, F: FnMut(Node<'de>)> DeserializeSeed<'de> for Page<F> {
    type Value = PageMeta;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<PageMeta, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Node<'de>)> Visitor<'de> for Page<F> {
    type Value = PageMeta;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<PageMeta, A::Error> {
        let mut meta = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match key.as_ref() {
                "metadata" => {
                    let node = map.next_value_seed(JSON)?;
                    let text = |name| node.find(name).and_then(Node::as_str).unwrap_or_default().to_owned();
                    meta = Some(PageMeta { version: text("resourceVersion"), token: text("continue") });
                }
                "items" => map.next_value_seed(Items { each: &mut self.each })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        meta.filter(|meta| !meta.version.is_empty())
            .ok_or_else(|| A::Error::custom("a list without a version"))
    }
}

struct Items<'f, F> {
    each: &'f mut F,
}

impl<'de, F: FnMut(Node<'de>)> DeserializeSeed<'de> for Items<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Node<'de>)> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the items of a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(node) = items.next_element_seed(JSON)? {
            (self.each)(node);
        }
        Ok(())
    }
}

/// The fault of a kind as its author should see it.
pub(super) fn diagnostic(kind: &str, scope: &Scope, fault: &Fault) -> Diagnostic {
    Diagnostic {
        severity: crate::model::diagnostic::Severity::Error,
        code: "unwatchable".to_owned(),
        file: String::new(),
        line: 0,
        column: 0,
        kind: kind.to_owned(),
        namespace: scope.namespace.clone(),
        name: scope.name.clone(),
        path: String::new(),
        message: format!("cannot be watched: {fault}; what was known last stays in use"),
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeSeed;

    use super::{Page, encode};

    #[test]
    fn a_page_is_read_object_by_object() {
        let text = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x y"},
            "items":[{"metadata":{"name":"a","managedFields":[{}]}},{"metadata":{"name":"b"}}]}"#;
        let mut names = Vec::new();
        let page = Page { each: |node: leno_api::yaml::Node<'_>| names.push(node.to_json().to_string()) };
        let meta = page.deserialize(&mut serde_json::Deserializer::from_str(text)).unwrap();
        assert_eq!((meta.version.as_str(), encode(&meta.token).as_str()), ("7", "x%20y"));
        assert_eq!(names, [r#"{"metadata":{"name":"a"}}"#, r#"{"metadata":{"name":"b"}}"#]);
        for text in [r#"{"items":null}"#, r#"{"metadata":{"resourceVersion":"1"},"items":3}"#, "[]"] {
            let page = Page { each: |_: leno_api::yaml::Node<'_>| {} };
            assert!(page.deserialize(&mut serde_json::Deserializer::from_str(text)).is_err(), "{text}");
        }
        let page = Page { each: |_: leno_api::yaml::Node<'_>| {} };
        let empty = r#"{"metadata":{"resourceVersion":"1"},"items":null}"#;
        assert!(page.deserialize(&mut serde_json::Deserializer::from_str(empty)).is_ok());
    }
}
