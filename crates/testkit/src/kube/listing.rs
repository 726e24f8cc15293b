//! Lists and watches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::http::{Call, Format, Reply, Selection};
use super::object::{Target, text};
use super::state::{Shared, lock};
use super::status::Failure;
use super::store::{Kind, Page};
use super::table;

/// How long a watch goes on if the client does not say.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// The annotation of the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// GET of a collection.
pub(super) fn list(shared: &Shared, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let selection = call.selection()?;
    let limit = call.query.number("limit")?.unwrap_or(0);
    let token = call.query.text("continue");
    let asked = call.query.number("resourceVersion")?.unwrap_or(0);
    let mut state = lock(&shared.state);
    if asked > state.store.revision() {
        return Err(Failure::new(
            504,
            "Timeout",
            format!("Too large resource version: {asked}, current: {}", state.store.revision()),
        ));
    }
    let (revision, mut rest) = if token.is_empty() {
        let all = state.store.list(&target.resource.name(), &target.namespace);
        (state.store.revision(), all.filter(|object| selection.matches(object)).cloned().collect())
    } else {
        let page = state.store.take_page(token)?;
        (page.revision, page.rest)
    };
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    let count = usize::try_from(limit).unwrap_or(usize::MAX);
    if count > 0 && rest.len() > count {
        let left = rest.split_off(count);
        metadata["remainingItemCount"] = Value::from(left.len());
        metadata["continue"] = Value::from(state.store.keep_page(Page { revision, rest: left }));
    }
    let items: Vec<Value> = rest.iter().map(|object| target.present(object)).collect();
    if call.format == Format::Table {
        let items: Vec<&Value> = items.iter().collect();
        let table = table::render(&state, target, &items, &metadata, call.query.text("includeObject"), true);
        return Ok(Reply::json(200, &table));
    }
    if call.format == Format::Metadata {
        let items: Vec<Value> = items.iter().map(table::partial).collect();
        let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items });
        return Ok(Reply::json(200, &list));
    }
    Ok(Reply::json(
        200,
        &json!({
            "kind": target.resource.list_kind,
            "apiVersion": target.api_version(),
            "metadata": metadata,
            "items": items,
        }),
    ))
}

/// What a watch is told and remembers.
struct Watch {
    shared: Arc<Shared>,
    target: Target,
    selection: Selection,
    format: Format,
    include: String,
    bookmarks: bool,
    cursor: u64,
    /// Whether the columns of the table have been sent.
    headed: bool,
    sink: mpsc::Sender<Bytes>,
}

/// GET of a collection with `watch=true`.
pub(super) fn watch(shared: &Arc<Shared>, call: &Call, target: &Target) -> Result<Reply, Failure> {
    let mut selection = call.selection()?;
    if !target.name.is_empty() {
        // A watch of one object in the old style.
        selection.name = Some(target.name.clone());
    }
    let asked = call.query.number("resourceVersion")?;
    let streams = call.query.flag("sendInitialEvents");
    let bookmarks = call.query.flag("allowWatchBookmarks");
    if !call.query.text("sendInitialEvents").is_empty()
        && call.query.text("resourceVersionMatch") != "NotOlderThan"
    {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents \
                       requires setting resourceVersionMatch to NotOlderThan";
        return Err(Failure::new(422, "Invalid", message));
    }
    let timeout = call.query.number("timeoutSeconds")?.map_or(TIMEOUT, Duration::from_secs);
    let wants_all = streams || (asked.unwrap_or(0) == 0 && call.query.text("sendInitialEvents").is_empty());
    let (sink, receiver) = mpsc::channel(256);
    let (initial, cursor) = {
        let state = lock(&shared.state);
        let now = state.store.revision();
        if wants_all {
            let all = state.store.list(&target.resource.name(), &target.namespace);
            let all: Vec<Arc<Value>> = all.filter(|object| selection.matches(object)).cloned().collect();
            (Some(all), now)
        } else {
            (None, asked.filter(|it| *it > 0).unwrap_or(now))
        }
    };
    let watch = Watch {
        shared: Arc::clone(shared),
        target: target.clone(),
        selection,
        format: call.format,
        include: call.query.text("includeObject").to_owned(),
        bookmarks,
        cursor,
        headed: false,
        sink,
    };
    tokio::spawn(watch.run(initial, streams && bookmarks, timeout));
    Ok(Reply::stream(receiver))
}

impl Watch {
    async fn run(mut self, initial: Option<Vec<Arc<Value>>>, ends_initial: bool, timeout: Duration) {
        let _open = self.shared.count_watch();
        let deadline = tokio::time::Instant::now() + timeout;
        let mut signals = self.shared.signals();
        let started = *signals.borrow_and_update();
        let mut changed = lock(&self.shared.state).store.subscribe();
        for object in initial.into_iter().flatten() {
            if !self.send("ADDED", &object).await {
                return;
            }
        }
        if ends_initial && !self.bookmark(true).await {
            return;
        }
        let mut told = started.bookmarks;
        loop {
            if !self.catch_up().await {
                return;
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(deadline) => {
                    // The last word of a watch that ends in order.
                    if self.bookmarks {
                        self.bookmark(false).await;
                    }
                    return;
                }
                signal = signals.changed() => {
                    let now = *signals.borrow_and_update();
                    if signal.is_err() || now.drops != started.drops || now.hang_ups != started.hang_ups {
                        return;
                    }
                    if now.bookmarks != told {
                        told = now.bookmarks;
                        if self.bookmarks && !(self.catch_up().await && self.bookmark(false).await) {
                            return;
                        }
                    }
                }
                () = self.sink.closed() => return,
            }
        }
    }

    /// Tells what has happened since; `false`: the watch is over.
    async fn catch_up(&mut self) -> bool {
        let (events, now) = {
            let state = lock(&self.shared.state);
            (state.store.events_after(&self.target.resource.name(), self.cursor), state.store.revision())
        };
        let events = match events {
            Ok(events) => events,
            Err(failure) => {
                let error = json!({ "type": "ERROR", "object": failure.to_value() });
                self.line(&error).await;
                return false;
            }
        };
        for event in events {
            let in_place = |object: &Value| {
                let namespace = text(object, &["metadata", "namespace"]);
                (self.target.namespace.is_empty() || namespace == self.target.namespace)
                    && self.selection.matches(object)
            };
            let was = event.before.as_ref().is_some_and(|before| in_place(before));
            let is = event.kind != Kind::Deleted && in_place(&event.object);
            let word = match (was, is) {
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
                (false, false) => continue,
            };
            if !self.send(word, &event.object).await {
                return false;
            }
            self.cursor = event.revision;
        }
        self.cursor = self.cursor.max(now);
        true
    }

    async fn send(&mut self, word: &str, object: &Value) -> bool {
        let object = self.target.present(object);
        let object = match self.format {
            Format::Whole => object,
            Format::Metadata => table::partial(&object),
            Format::Table => {
                let metadata = json!({ "resourceVersion": text(&object, &["metadata", "resourceVersion"]) });
                let state = lock(&self.shared.state);
                let headed = std::mem::replace(&mut self.headed, true);
                table::render(&state, &self.target, &[&object], &metadata, &self.include, !headed)
            }
        };
        self.line(&json!({ "type": word, "object": object })).await
    }

    async fn bookmark(&self, ends_initial: bool) -> bool {
        let mut metadata = json!({ "resourceVersion": self.cursor.to_string(), "creationTimestamp": null });
        if ends_initial {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = match self.format {
            Format::Whole => {
                json!({ "kind": self.target.resource.kind, "apiVersion": self.target.api_version(), "metadata": metadata })
            }
            Format::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            Format::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": self.cursor.to_string() },
                "columnDefinitions": [],
                "rows": [{ "cells": [], "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata } }],
            }),
        };
        self.line(&json!({ "type": "BOOKMARK", "object": object })).await
    }

    async fn line(&self, value: &Value) -> bool {
        self.sink.send(Bytes::from(format!("{value}\n"))).await.is_ok()
    }
}
