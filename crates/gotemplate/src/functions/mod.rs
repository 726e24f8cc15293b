//! What templates can call. Each file has a table of its functions with the numbers of arguments
//! that they take.

mod builtin;
mod dicts;
mod encode;
mod lists;
mod numbers;
mod render;
mod semver;
mod text;
mod values;

use std::{collections::HashMap, rc::Rc, sync::Arc};

use crate::{Heap, List, Map, Value, eval::Session};
pub use render::render_in;

/// Functions by their names.
#[derive(Clone, Default)]
pub struct Functions(HashMap<&'static str, Function>);

/// One function.
#[derive(Clone)]
pub struct Function {
    least: usize,
    most: usize,
    #[expect(clippy::type_complexity, reason = "there is no shorter way to say it")]
    body: Arc<dyn Fn(&mut Call<'_>) -> Result<Value, String> + Send + Sync>,
}

/// Any number of arguments.
pub const ANY: usize = usize::MAX;

/// A row of a table of functions: name, least and most arguments, what it does.
pub(crate) struct Row(&'static str, usize, usize, fn(&mut Call<'_>) -> Result<Value, String>);

impl Functions {
    /// What Go's text/template itself has.
    pub fn go() -> Functions {
        let mut functions = Functions::default();
        functions.table(builtin::TABLE);
        functions
    }

    /// Go's and sprig's (TxtFuncMap), without those that draw random numbers, tell the time, make
    /// keys or read the process's environment.
    pub fn sprig() -> Functions {
        let mut functions = Functions::go();
        for table in [text::TABLE, lists::TABLE, dicts::TABLE, numbers::TABLE, values::TABLE, encode::SPRIG] {
            functions.table(table);
        }
        functions
    }

    /// Those of Helm's charts.
    pub fn helm() -> Functions {
        let mut functions = Functions::sprig();
        functions.table(encode::HELM);
        functions.table(render::TABLE);
        functions
    }

    fn table(&mut self, rows: &[Row]) {
        for Row(name, least, most, body) in rows {
            self.add(name, *least, *most, *body);
        }
    }

    /// Adds a function, or takes the place of one.
    pub fn add(
        &mut self,
        name: &'static str,
        least: usize,
        most: usize,
        body: impl Fn(&mut Call<'_>) -> Result<Value, String> + Send + Sync + 'static,
    ) {
        self.0.insert(name, Function { least, most, body: Arc::new(body) });
    }

    /// Takes a function away.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Function> {
        self.0.get(name)
    }
}

impl Function {
    pub(crate) fn check_count(&self, name: &str, count: usize) -> Result<(), String> {
        if count < self.least || count > self.most {
            let want = match self.least == self.most {
                true => format!("want {}", self.least),
                false => format!("want at least {}", self.least),
            };
            return Err(format!("wrong number of args for {name}: {want} got {count}"));
        }
        Ok(())
    }

    pub(crate) fn run(&self, call: &mut Call<'_>) -> Result<Value, String> {
        (self.body)(call)
    }
}

/// One call of a function.
pub struct Call<'c> {
    name: &'c str,
    args: &'c [Value],
    session: Session<'c>,
}

impl<'c> Call<'c> {
    pub(crate) fn new(name: &'c str, args: &'c [Value], session: Session<'c>) -> Call<'c> {
        Call { name, args, session }
    }

    /// All arguments.
    pub fn args(&self) -> &'c [Value] {
        self.args
    }

    /// The arguments from one on.
    pub fn rest(&self, from: usize) -> &'c [Value] {
        self.args.get(from..).unwrap_or_default()
    }

    /// One argument; nil if there are fewer.
    pub fn arg(&self, index: usize) -> &'c Value {
        self.args.get(index).unwrap_or(&Value::Nil)
    }

    /// The name under which the function was called.
    pub fn name(&self) -> &'c str {
        self.name
    }

    /// What the rendering holds.
    pub fn heap(&self) -> &'c Heap {
        self.session.heap
    }

    pub(crate) fn session(&self) -> Session<'c> {
        self.session
    }

    /// An argument that must be text.
    pub fn text(&self, index: usize) -> Result<&'c str, String> {
        match self.arg(index) {
            Value::String(text) => Ok(text),
            other => Err(wrong(other, "string")),
        }
    }

    /// An argument that must be a whole number.
    pub fn int(&self, index: usize) -> Result<i64, String> {
        match self.arg(index) {
            Value::Int(number) => Ok(*number),
            other => Err(wrong(other, "int")),
        }
    }

    /// An argument that must be a map; nil is none.
    pub fn map(&self, index: usize) -> Result<Option<&'c Map>, String> {
        match self.arg(index) {
            Value::Map(map) => Ok(Some(map)),
            Value::Nil => Ok(None),
            other => Err(wrong(other, "map[string]interface {}")),
        }
    }

    /// An argument that must be a list.
    pub fn list(&self, index: usize) -> Result<&'c List, String> {
        match self.arg(index) {
            Value::List(list) => Ok(list),
            other => Err(format!("Cannot {} on type {}", self.name, other.kind())),
        }
    }

    /// Text as a result.
    pub fn reply(&self, text: impl AsRef<str>) -> Result<Value, String> {
        self.heap().text(text.as_ref())
    }

    /// A list as a result.
    pub fn reply_list(&self, items: Vec<Value>) -> Result<Value, String> {
        self.heap().list(items)
    }

    /// A map as a result.
    pub fn reply_map(&self, entries: impl IntoIterator<Item = (Rc<str>, Value)>) -> Result<Value, String> {
        let entries: std::collections::BTreeMap<_, _> = entries.into_iter().collect();
        self.heap().step(entries.len() + 1)?;
        Ok(Value::Map(self.heap().map(entries)))
    }
}

pub(crate) fn wrong(found: &Value, wanted: &str) -> String {
    match found {
        Value::Nil => format!("invalid value; expected {wanted}"),
        other => format!("wrong type for value; expected {wanted}; got {}", other.type_name()),
    }
}
