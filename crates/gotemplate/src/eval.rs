//! Trees and values into text, by the rules of Go's text/template.

use std::{cell::Cell, sync::Arc};

use crate::{
    Error, Heap, Templates, Value,
    error::Span,
    functions::Call,
    print,
    tree::{Branch, Command, Node, Pipe, Term, Tree, Word},
};

/// How deep templates, actions and parentheses may be nested while rendering.
const MAX_CALLS: u32 = 200;

/// Renders one template.
pub(crate) fn render(templates: &Templates, heap: &Heap, name: &str, dot: &Value) -> Result<String, Error> {
    let calls = Cell::new(0);
    let session = Session { templates, heap, calls: &calls };
    session.execute(name, dot).map_err(|failure| failure.into_error(name))
}

/// What a rendering works with; `tpl` makes another one with more templates.
#[derive(Clone, Copy)]
pub(crate) struct Session<'r> {
    pub(crate) templates: &'r Templates,
    pub(crate) heap: &'r Heap,
    calls: &'r Cell<u32>,
}

/// An error, with its place once that is known.
pub(crate) enum Failure {
    Plain(String),
    Located(Error),
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Plain(message)
    }
}

impl Failure {
    fn into_error(self, name: &str) -> Error {
        match self {
            Failure::Located(error) => error,
            Failure::Plain(message) => {
                Error { template: name.to_owned(), line: 1, column: 0, at: None, message }
            }
        }
    }

    /// The message, with the place if there is one.
    pub(crate) fn into_message(self) -> String {
        match self {
            Failure::Plain(message) => message,
            Failure::Located(error) => error.to_string(),
        }
    }
}

impl<'r> Session<'r> {
    /// The output of a template.
    pub(crate) fn execute(&self, name: &str, dot: &Value) -> Result<String, Failure> {
        let Some(tree) = self.templates.trees.get(name) else {
            return Err(Failure::Plain(format!("template {name:?} not defined")));
        };
        let mut run = Run {
            session: *self,
            tree: Arc::clone(tree),
            variables: vec![("$".to_owned(), dot.clone())],
            out: String::new(),
        };
        let tree = Arc::clone(tree);
        run.list(&tree.nodes, dot)?;
        Ok(run.out)
    }

    /// The same session with other templates.
    pub(crate) fn with<'n>(&self, templates: &'n Templates) -> Session<'n>
    where
        'r: 'n,
    {
        Session { templates, heap: self.heap, calls: self.calls }
    }
}

/// One template that is being rendered.
struct Run<'r> {
    session: Session<'r>,
    tree: Arc<Tree>,
    variables: Vec<(String, Value)>,
    out: String,
}

/// Where to go on after a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl Run<'_> {
    fn list(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, Failure> {
        let depth = self.session.calls.get();
        if depth >= MAX_CALLS {
            return Err(Failure::Plain("exceeded maximum template depth".to_owned()));
        }
        self.session.calls.set(depth + 1);
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.session.calls.set(depth);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, Failure> {
        match node {
            Node::Text(span) => {
                let tree = Arc::clone(&self.tree);
                self.write(span.of(&tree.source)).map_err(|message| self.located(*span, message.into()))?;
            }
            Node::Action(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if pipe.variables.is_empty() {
                    let text = print::value(&value);
                    text.and_then(|text| self.write(&text))
                        .map_err(|message| self.located(pipe.span, message.into()))?;
                }
            }
            Node::If(branch) | Node::With(branch) => {
                let declared = self.variables.len();
                let value = self.pipe(&branch.pipe, dot)?;
                let flow = if value.truth() {
                    let dot = if matches!(node, Node::With(_)) { &value } else { dot };
                    self.list(&branch.then, dot)
                } else {
                    self.list(&branch.otherwise, dot)
                };
                self.variables.truncate(declared);
                return flow;
            }
            Node::Range(branch) => return self.range(branch, dot),
            Node::Template { span, name, pipe } => {
                let value = match pipe {
                    Some(pipe) => self.pipe(pipe, dot)?,
                    None => Value::Nil,
                };
                let output =
                    self.session.execute(name, &value).map_err(|failure| self.located(*span, failure))?;
                self.write(&output).map_err(|message| self.located(*span, message.into()))?;
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Result<Flow, Failure> {
        let declared = self.variables.len();
        let value = self.pipe_value(&branch.pipe, dot)?;
        let span = branch.pipe.span;
        let mut ran = false;
        let mut flow = Flow::Next;
        let mut each = |run: &mut Self, key: Value, element: Value| -> Result<bool, Failure> {
            ran = true;
            run.session.heap.step(1).map_err(|message| run.located(span, message.into()))?;
            let (index, item) = match branch.pipe.variables.as_slice() {
                [] => (None, None),
                [item] => (None, Some(item)),
                [index, item, ..] => (Some(index), Some(item)),
            };
            let mark = run.variables.len();
            for (variable, value) in [(index, key), (item, element.clone())] {
                let Some(variable) = variable else { continue };
                if branch.pipe.assign {
                    run.assign(variable, value);
                } else {
                    run.variables.push((variable.clone(), value));
                }
            }
            let result = run.list(&branch.then, &element);
            run.variables.truncate(mark);
            Ok(result? != Flow::Break)
        };
        match &value {
            Value::List(list) => {
                for (index, item) in list.items().iter().enumerate() {
                    let index = Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
                    if !each(self, index, item.clone())? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for (key, item) in map.entries() {
                    if !each(self, Value::String(key), item)? {
                        break;
                    }
                }
            }
            Value::Int(count) => {
                for index in 0..*count {
                    if !each(self, Value::Int(index), Value::Int(index))? {
                        break;
                    }
                }
            }
            Value::Nil => {}
            Value::Object(object) if object.entries().is_some() => {
                for (key, item) in object.entries().into_iter().flatten() {
                    if !each(self, Value::text(&key), item)? {
                        break;
                    }
                }
            }
            other => {
                let message = format!("range can't iterate over {}", print::value(other)?);
                return Err(self.located(span, message.into()));
            }
        }
        if !ran {
            flow = self.list(&branch.otherwise, dot)?;
        }
        self.variables.truncate(declared);
        Ok(flow)
    }

    fn write(&mut self, text: &str) -> Result<(), String> {
        self.session.heap.spend(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// The value of a pipeline, after setting the variables that it names.
    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Failure> {
        let value = self.pipe_value(pipe, dot)?;
        for variable in &pipe.variables {
            if pipe.assign {
                self.assign(variable, value.clone());
            } else {
                self.variables.push((variable.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    fn pipe_value(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, Failure> {
        let depth = self.session.calls.get();
        if depth >= MAX_CALLS {
            return Err(self.located(pipe.span, "exceeded maximum template depth".to_owned().into()));
        }
        self.session.calls.set(depth + 1);
        let mut value = None;
        for command in &pipe.commands {
            self.session.heap.step(1).map_err(|message| self.located(command.span, message.into()))?;
            value = Some(self.command(command, dot, value)?);
        }
        self.session.calls.set(depth);
        Ok(value.unwrap_or(Value::Nil))
    }

    fn assign(&mut self, name: &str, value: Value) {
        if let Some((_, old)) = self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            *old = value;
        }
    }

    /// A command; `last` is the value of the one before it, which becomes the last argument.
    fn command(&mut self, command: &Command, dot: &Value, last: Option<Value>) -> Result<Value, Failure> {
        let Some((first, rest)) = command.words.split_first() else { return Ok(Value::Nil) };
        match &first.term {
            Term::Field(names) => self.fields(first, dot.clone(), names, rest, dot, last),
            Term::Variable(name, names) => {
                let value = self.variable(name, first.span)?;
                self.fields(first, value, names, rest, dot, last)
            }
            Term::Chain(inner, names) => {
                let value = self.word(inner, dot)?;
                self.fields(first, value, names, rest, dot, last)
            }
            Term::Function(name) => self.function(command.span, name, rest, dot, last),
            Term::Nil => Err(self.located(first.span, "nil is not a command".to_owned().into())),
            _ => {
                if !rest.is_empty() || last.is_some() {
                    let message =
                        format!("can't give argument to non-function {}", first.span.of(&self.tree.source));
                    return Err(self.located(first.span, message.into()));
                }
                self.word(first, dot)
            }
        }
    }

    /// One word as a value (an argument, or alone).
    fn word(&mut self, word: &Word, dot: &Value) -> Result<Value, Failure> {
        Ok(match &word.term {
            Term::Dot => dot.clone(),
            Term::Nil => Value::Nil,
            Term::Bool(value) => Value::Bool(*value),
            Term::Int(value) => Value::Int(*value),
            Term::Float(value) => Value::Float(*value),
            Term::String(text) => {
                self.session.heap.text(text).map_err(|message| self.located(word.span, message.into()))?
            }
            Term::Field(names) => self.fields(word, dot.clone(), names, &[], dot, None)?,
            Term::Variable(name, names) => {
                let value = self.variable(name, word.span)?;
                self.fields(word, value, names, &[], dot, None)?
            }
            Term::Function(name) => self.function(word.span, name, &[], dot, None)?,
            Term::Pipe(pipe) => self.pipe(pipe, dot)?,
            Term::Chain(inner, names) => {
                let value = self.word(inner, dot)?;
                self.fields(word, value, names, &[], dot, None)?
            }
        })
    }

    fn variable(&self, name: &str, span: Span) -> Result<Value, Failure> {
        match self.variables.iter().rev().find(|(known, _)| known == name) {
            Some((_, value)) => Ok(value.clone()),
            None => Err(self.located(span, format!("undefined variable: {name}").into())),
        }
    }

    /// Fields of a value, one after the other; the last may be a method and gets the arguments.
    fn fields(
        &mut self,
        word: &Word,
        mut value: Value,
        names: &[String],
        rest: &[Word],
        dot: &Value,
        last: Option<Value>,
    ) -> Result<Value, Failure> {
        let mut args = rest.iter().map(|word| self.word(word, dot)).collect::<Result<Vec<_>, _>>()?;
        args.extend(last);
        let Some((method, fields)) = names.split_last() else {
            if args.is_empty() {
                return Ok(value);
            }
            let message = format!("can't give argument to non-function {}", word.span.of(&self.tree.source));
            return Err(self.located(word.span, message.into()));
        };
        for name in fields {
            value = self.field(&value, name, &[], word.span)?;
        }
        self.field(&value, method, &args, word.span)
    }

    fn field(&self, value: &Value, name: &str, args: &[Value], span: Span) -> Result<Value, Failure> {
        let fail = |message: String| self.located(span, message.into());
        match value {
            Value::Object(object) => match object.field(self.session.heap, name, args) {
                Ok(Some(value)) => Ok(value),
                Ok(None) => Err(fail(format!("can't evaluate field {name} in type {}", object.type_name()))),
                Err(message) => Err(fail(format!("error calling {name}: {message}"))),
            },
            Value::Map(map) if args.is_empty() => Ok(map.value(name)),
            Value::Map(_) => Err(fail(format!("{name} is not a method but has arguments"))),
            Value::Nil if self.session.templates.lenient => Ok(Value::Nil),
            Value::Nil => Err(fail(format!("nil pointer evaluating interface {{}}.{name}"))),
            other => Err(fail(format!("can't evaluate field {name} in type {}", other.type_name()))),
        }
    }

    fn function(
        &mut self,
        span: Span,
        name: &str,
        rest: &[Word],
        dot: &Value,
        last: Option<Value>,
    ) -> Result<Value, Failure> {
        let functions = Arc::clone(&self.session.templates.functions);
        let Some(function) = functions.find(name) else {
            return Err(self.located(span, format!("{name:?} is not a defined function").into()));
        };
        if let Err(message) = function.check_count(name, rest.len() + usize::from(last.is_some())) {
            return Err(self.located(span, message.into()));
        }
        // These two do not evaluate more than they need.
        if matches!(name, "and" | "or") {
            let mut value = Value::Nil;
            for word in rest {
                value = self.word(word, dot)?;
                if value.truth() == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(last.unwrap_or(value));
        }
        let mut args = rest.iter().map(|word| self.word(word, dot)).collect::<Result<Vec<_>, _>>()?;
        args.extend(last);
        let mut call = Call::new(name, &args, self.session);
        function
            .run(&mut call)
            .map_err(|message| self.located(span, format!("error calling {name}: {message}").into()))
    }

    /// The failure with its place, unless it has one: the innermost place is the one to show.
    fn located(&self, span: Span, failure: Failure) -> Failure {
        match failure {
            Failure::Plain(message) => {
                Failure::Located(Error::new(&self.tree.file, &self.tree.source, span, true, message))
            }
            located => located,
        }
    }
}
