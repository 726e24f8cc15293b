//! Text to nodes: drives the YAML parser and builds the tree without recursion.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::scalar::resolve;
use super::{Dialect, Entry, Kind, Node, Position, Scalar, Value};
use crate::Error;

/// How deep lists and mappings may nest: protobuf's own limit, beyond which no message goes.
pub const MAX_DEPTH: usize = 100;

/// How many nodes aliases may add to a stream. Each alias is a copy, so that a few lines of
/// aliases to aliases would otherwise fill the memory.
const MAX_ALIASED: usize = 250_000;

/// Reads all documents of a stream. Empty documents are left out.
///
/// # Errors
/// If the text is not YAML, nests deeper than [`MAX_DEPTH`], has keys that are not scalars, or its
/// aliases multiply beyond reason.
pub fn parse(text: &str, dialect: Dialect) -> Result<Vec<Node<'_>>, Error> {
    let options = granit_parser::options! {
        emit_comments: false,
        // Keys are short; JSON keys may be longer than YAML allows on one line.
        simple_key_max_lookahead: 64 * 1024,
        flow_nesting_limit: MAX_DEPTH + 1,
        block_nesting_limit: MAX_DEPTH + 1,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder::new(dialect);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let info = error.info();
            Error::new(
                position(error.marker()),
                "",
                if info.is_empty() { "invalid YAML".to_owned() } else { info },
            )
        })?;
        builder.event(event, position(&span.start))?;
    }
    Ok(builder.documents)
}

fn position(marker: &Marker) -> Position {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Position { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
}

/// A collection that is not closed yet.
struct Open<'t> {
    position: Position,
    anchor: usize,
    kind: OpenKind<'t>,
}

enum OpenKind<'t> {
    /// Its elements are on the stack of nodes, from this index.
    Sequence(usize),
    /// Its entries are on the stack of entries, from `start`.
    Mapping {
        start: usize,
        /// The key whose value is next.
        pending: Option<Key<'t>>,
        /// Entries of mappings merged into this one.
        merged: Vec<Entry<'t>>,
    },
}

struct Key<'t> {
    text: Cow<'t, str>,
    position: Position,
    /// `!ignore`d or merged (`<<`): not an entry of its own.
    role: Role,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Entry,
    Ignored,
    Merge,
}

/// What an alias stands for.
struct Anchored<'t> {
    node: Node<'t>,
    nodes: usize,
    depth: usize,
}

/// Builds nodes from events. Finished elements wait on two stacks for their collection to close,
/// which then takes exactly the room that it needs.
struct Builder<'t> {
    dialect: Dialect,
    documents: Vec<Node<'t>>,
    open: Vec<Open<'t>>,
    nodes: Vec<Node<'t>>,
    entries: Vec<Entry<'t>>,
    anchors: HashMap<usize, Anchored<'t>>,
    aliased: usize,
}

impl<'t> Builder<'t> {
    fn new(dialect: Dialect) -> Builder<'t> {
        Builder {
            dialect,
            documents: Vec::new(),
            open: Vec::new(),
            nodes: Vec::new(),
            entries: Vec::new(),
            anchors: HashMap::new(),
            aliased: 0,
        }
    }

    fn event(&mut self, event: Event<'t>, position: Position) -> Result<(), Error> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.scalar(text, style, anchor, tag.as_deref(), position)
            }
            Event::SequenceStart(_, anchor, _) => {
                let kind = OpenKind::Sequence(self.nodes.len());
                self.push(Open { position, anchor, kind })
            }
            Event::MappingStart(_, anchor, _) => {
                let kind = OpenKind::Mapping { start: self.entries.len(), pending: None, merged: Vec::new() };
                self.push(Open { position, anchor, kind })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => self.alias(id, position),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, open: Open<'t>) -> Result<(), Error> {
        if self.expects_key() {
            return Err(Error::new(open.position, "", "a key must be text, not a list or mapping"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(Error::new(open.position, "", format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(open);
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { kind: OpenKind::Mapping { pending: None, .. }, .. }))
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.kind {
            OpenKind::Sequence(start) => Value::Sequence(self.nodes.drain(start..).collect()),
            OpenKind::Mapping { start, merged, .. } => {
                for entry in merged {
                    if !self.entries.iter().skip(start).any(|own| own.key == entry.key) {
                        self.entries.push(entry);
                    }
                }
                Value::Mapping(self.entries.drain(start..).collect())
            }
        };
        self.finish(Node { value, position: open.position }, open.anchor)
    }

    fn scalar(
        &mut self,
        text: Cow<'t, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        position: Position,
    ) -> Result<(), Error> {
        let plain = style == ScalarStyle::Plain;
        if self.expects_key() {
            let role = match tag {
                Some(tag)
                    if self.dialect == Dialect::Envoy && tag.handle() == "!" && tag.suffix() == "ignore" =>
                {
                    Role::Ignored
                }
                _ if self.dialect == Dialect::Kubernetes && plain && text == "<<" => Role::Merge,
                _ => Role::Entry,
            };
            if anchor != 0 {
                let scalar = Scalar { text: text.clone(), kind: Kind::String, plain };
                self.anchor(anchor, &Node { value: Value::Scalar(scalar), position });
            }
            self.key(Key { text, position, role });
            return Ok(());
        }
        let quoted = |text| Scalar { text, kind: Kind::String, plain };
        let scalar = match (plain, tag.filter(|_| self.dialect != Dialect::Json)) {
            (true, Some(tag)) if tag.handle().len() + tag.suffix().len() == 1 => quoted(text),
            // yaml-cpp's conversions, and so Envoy's, do not look at the core tags.
            (_, Some(tag)) if self.dialect == Dialect::Kubernetes => match tag.core_suffix() {
                Some("str") => quoted(text),
                Some("int" | "float" | "bool" | "null") => self.resolve(text, position)?,
                _ if plain => self.resolve(text, position)?,
                _ => quoted(text),
            },
            (true, _) => self.resolve(text, position)?,
            (false, _) => quoted(text),
        };
        self.finish(Node { value: Value::Scalar(scalar), position }, anchor)
    }

    fn resolve(&self, text: Cow<'t, str>, position: Position) -> Result<Scalar<'t>, Error> {
        resolve(text, self.dialect).map_err(|message| Error::new(position, "", message))
    }

    fn key(&mut self, key: Key<'t>) {
        if let Some(Open { kind: OpenKind::Mapping { pending, .. }, .. }) = self.open.last_mut() {
            *pending = Some(key);
        }
    }

    fn alias(&mut self, id: usize, position: Position) -> Result<(), Error> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(Error::new(position, "", "an alias cannot refer to a collection that contains it"));
        };
        self.aliased = self.aliased.saturating_add(anchored.nodes);
        if self.aliased > MAX_ALIASED {
            return Err(Error::new(position, "", "aliases expand to too many nodes"));
        }
        if self.open.len() + anchored.depth > MAX_DEPTH {
            return Err(Error::new(position, "", format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let node = Node { value: anchored.node.value.clone(), position };
        if !self.expects_key() {
            return self.finish(node, 0);
        }
        match node.value {
            Value::Scalar(scalar) => {
                self.key(Key { text: scalar.text, position, role: Role::Entry });
                Ok(())
            }
            _ => Err(Error::new(position, "", "a key must be text, not a list or mapping")),
        }
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node<'t>, anchor: usize) -> Result<(), Error> {
        if anchor != 0 {
            self.anchor(anchor, &node);
        }
        match self.open.last_mut() {
            None if node.is_null() => {}
            None => self.documents.push(node),
            Some(Open { kind: OpenKind::Sequence(_), .. }) => self.nodes.push(node),
            Some(Open { kind: OpenKind::Mapping { pending, .. }, .. }) => match pending.take() {
                Some(Key { text, position, role: Role::Entry }) => {
                    self.entries.push(Entry { key: text, position, value: node });
                }
                Some(Key { role: Role::Merge, position, .. }) => self.merge(node, position)?,
                // A value always follows a key.
                Some(Key { role: Role::Ignored, .. }) | None => {}
            },
        }
        Ok(())
    }

    /// `<<: *other`: the entries of the other mapping. They yield to the mapping's own, wherever
    /// these come, and earlier ones yield not to later ones, so they wait until it closes.
    fn merge(&mut self, node: Node<'t>, position: Position) -> Result<(), Error> {
        let sources = match node.value {
            Value::Sequence(items) => items,
            value => vec![Node { value, position }],
        };
        let Some(Open { kind: OpenKind::Mapping { merged, .. }, .. }) = self.open.last_mut() else {
            return Ok(());
        };
        for source in sources {
            let Value::Mapping(entries) = source.value else {
                return Err(Error::new(source.position, "", "only mappings can be merged"));
            };
            for entry in entries {
                if !merged.iter().any(|present| present.key == entry.key) {
                    merged.push(Entry { position, ..entry });
                }
            }
        }
        Ok(())
    }

    fn anchor(&mut self, anchor: usize, node: &Node<'t>) {
        let (nodes, depth) = measure(node);
        self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, depth });
    }
}

/// Number of nodes in a tree, and its depth.
fn measure(node: &Node<'_>) -> (usize, usize) {
    let children = |values: &mut dyn Iterator<Item = &Node<'_>>| {
        values.map(measure).fold((1, 0), |(nodes, depth), (n, d)| (nodes + n, depth.max(d + 1)))
    };
    match &node.value {
        Value::Scalar(_) => (1, 0),
        Value::Sequence(items) => children(&mut items.iter()),
        Value::Mapping(entries) => children(&mut entries.iter().map(|entry| &entry.value)),
    }
}
