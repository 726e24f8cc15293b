//! Finds the place of a field path in a tree, for errors that are found later than the syntax.

use super::{Entry, Node, Position};

impl<'t> Node<'t> {
    /// Where the field of a path begins, as `spec.http[0].match[1].uri` or `labels["a.b/c"]`:
    /// the place of its key, or of the element for an index. Proto names find camelCase keys.
    /// `None` if the text does not have the field.
    pub fn locate(&self, path: &str) -> Option<Position> {
        let (position, complete) = self.walk(path);
        complete.then_some(position)
    }

    /// [`Node::locate`], or else the place of the nearest enclosing field that the text has.
    pub fn locate_nearest(&self, path: &str) -> Position {
        self.walk(path).0
    }

    /// Follows a path as far as it goes; tells whether that was to its end.
    fn walk(&self, path: &str) -> (Position, bool) {
        let mut node = self;
        let mut position = self.position;
        for step in Steps(path) {
            match step {
                Step::Name(name) => {
                    let Some(entry) = find_entry(node, name) else { return (position, false) };
                    position = entry.position;
                    node = &entry.value;
                }
                Step::Index(index) => match node.items().get(index) {
                    Some(item) => {
                        position = item.position;
                        node = item;
                    }
                    // One element may stand for a list of one.
                    None if index == 0 && node.items().is_empty() => {}
                    None => return (position, false),
                },
            }
        }
        (position, true)
    }
}

fn find_entry<'n, 't>(node: &'n Node<'t>, name: &str) -> Option<&'n Entry<'t>> {
    let entries = node.entries();
    entries.iter().rev().find(|entry| entry.key == name).or_else(|| {
        entries.iter().rev().find(|entry| name.contains('_') && is_camel_case_of(&entry.key, name))
    })
}

/// Whether `camel` is the JSON name that protobuf gives to the field `name`.
fn is_camel_case_of(camel: &str, name: &str) -> bool {
    let mut expected = name.bytes();
    let mut upper = false;
    let mut next = || {
        loop {
            match expected.next() {
                Some(b'_') => upper = true,
                Some(byte) if upper => {
                    upper = false;
                    return Some(byte.to_ascii_uppercase());
                }
                other => return other,
            }
        }
    };
    camel.bytes().all(|byte| next() == Some(byte)) && next().is_none()
}

enum Step<'p> {
    Name(&'p str),
    Index(usize),
}

/// The steps of a path.
struct Steps<'p>(&'p str);

impl<'p> Iterator for Steps<'p> {
    type Item = Step<'p>;

    fn next(&mut self) -> Option<Step<'p>> {
        let path = self.0.strip_prefix('.').unwrap_or(self.0);
        if let Some(quoted) = path.strip_prefix("[\"") {
            let (key, rest) = quoted.split_once("\"]").unwrap_or((quoted, ""));
            self.0 = rest;
            return Some(Step::Name(key));
        }
        if let Some(index) = path.strip_prefix('[') {
            let (index, rest) = index.split_once(']').unwrap_or((index, ""));
            self.0 = rest;
            return Some(index.parse().map_or(Step::Name(index), Step::Index));
        }
        if path.is_empty() {
            return None;
        }
        let (name, rest) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
        self.0 = rest;
        Some(Step::Name(name))
    }
}
