//! Go's text/template with the functions of sprig and Helm, for values that are trees.
//!
//! Templates come from users (ConfigMaps, charts), so everything is bounded: how deep trees and
//! calls are nested, how many steps a rendering takes, how much text it makes ([`Limits`]).
//! Nothing panics; errors say the template, line and column in the form of Go's messages.
//!
//! Text becomes tokens (`lex`), a tree (`parse`, `tree`), and output (`eval`); values are in
//! `value`, how they print in `print` and `yaml`, functions in `functions/`. Charts are rendered
//! by [`helm`].

mod error;
mod eval;
pub mod functions;
pub mod helm;
mod lex;
mod parse;
pub mod print;
#[cfg(test)]
mod tests;
mod tree;
mod value;
pub mod yaml;

use std::{collections::HashMap, sync::Arc};

pub use error::Error;
pub use functions::{Call, Functions};
pub use value::{Heap, List, MAX_DEPTH, Map, Numbers, Object, Value};

/// A set of templates that can call each other.
#[derive(Clone)]
pub struct Templates {
    functions: Arc<Functions>,
    trees: HashMap<String, Arc<tree::Tree>>,
    /// Whether fields of nothing are nothing (Go's default) or an error (Helm: missingkey=zero).
    pub lenient: bool,
}

/// How much a rendering may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes evaluated and elements made.
    pub steps: u64,
    /// Bytes of all texts made, the output included.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { steps: 2_000_000, bytes: 64 << 20 }
    }
}

impl Limits {
    /// A heap with these limits.
    pub fn heap(self) -> Heap {
        Heap::new(self.steps, self.bytes)
    }
}

impl Templates {
    /// No templates, with functions that those to come may call.
    pub fn new(functions: Arc<Functions>) -> Templates {
        Templates { functions, trees: HashMap::new(), lenient: true }
    }

    /// Parses a text and adds it and what it defines.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), Error> {
        for tree in parse::parse(name, text, &self.functions)? {
            // A text that only defines does not take away what its name stands for.
            let empty = tree.nodes.iter().all(|node| match node {
                tree::Node::Text(span) => span.of(&tree.source).trim().is_empty(),
                _ => false,
            });
            if !empty || !self.trees.contains_key(&tree.name) {
                self.trees.insert(tree.name.clone(), Arc::new(tree));
            }
        }
        Ok(())
    }

    /// Whether there is a template of that name.
    pub fn has(&self, name: &str) -> bool {
        self.trees.contains_key(name)
    }

    /// Renders a template for a value (`.`) that belongs to `heap`.
    pub fn render(&self, heap: &Heap, name: &str, dot: &Value) -> Result<String, Error> {
        eval::render(self, heap, name, dot)
    }
}

// Templates are kept by servers and rendered on any thread.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Templates>();
};
