//! Tokens into trees, by the rules of Go's text/template/parse.

use std::sync::Arc;

use crate::{
    error::{Error, Span},
    functions::Functions,
    lex::{Kind, Token, tokens},
    tree::{Branch, Command, Node, Pipe, Term, Tree, Word},
};

/// How deep actions and parentheses may be nested in the text.
const MAX_NESTING: usize = 60;

/// Parses a text; the first tree is the text itself, the others those that it defines.
pub(crate) fn parse(name: &str, source: &str, functions: &Functions) -> Result<Vec<Tree>, Error> {
    let located = |(span, message)| Error::new(name, source, span, false, message);
    let tokens = tokens(source).map_err(located)?;
    let mut parser = Parser {
        tokens,
        at: 0,
        source,
        functions,
        variables: vec!["$".to_owned()],
        loops: 0,
        nesting: 0,
        defined: Vec::new(),
    };
    let (nodes, end) = parser.list(true).map_err(located)?;
    if !matches!(end, Ending::Eof) {
        let span = parser.span();
        return Err(Error::new(name, source, span, false, format!("unexpected {end}")));
    }
    let (file, text): (Arc<str>, Arc<str>) = (name.into(), source.into());
    let tree = |name: String, nodes| Tree { name, file: Arc::clone(&file), source: Arc::clone(&text), nodes };
    let mut trees = vec![tree(name.to_owned(), nodes)];
    trees.extend(parser.defined.into_iter().map(|(name, nodes)| tree(name, nodes)));
    Ok(trees)
}

struct Parser<'p> {
    tokens: Vec<Token>,
    at: usize,
    source: &'p str,
    functions: &'p Functions,
    /// Variables that are declared here.
    variables: Vec<String>,
    /// How many loops are around.
    loops: usize,
    nesting: usize,
    defined: Vec<(String, Vec<Node>)>,
}

/// What ended a list of nodes.
enum Ending {
    Eof,
    End,
    /// `else`, and the keyword after it (`if`, `with`), if any.
    Else(Option<&'static str>),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ending::Eof => "EOF",
            Ending::End => "{{end}}",
            Ending::Else(_) => "{{else}}",
        })
    }
}

impl Parser<'_> {
    /// Nodes until the end of the text, `end` or `else`.
    fn list(&mut self, top: bool) -> Result<(Vec<Node>, Ending), (Span, String)> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err((self.span(), "actions are nested too deep".to_owned()));
        }
        let mut nodes = Vec::new();
        let ending = loop {
            let token = self.next();
            match token.kind {
                Kind::End => break Ending::Eof,
                Kind::Text => nodes.push(Node::Text(token.span)),
                _ => {
                    if let Some(ending) = self.action(&mut nodes, top, token.span)? {
                        break ending;
                    }
                }
            }
        };
        self.nesting -= 1;
        Ok((nodes, ending))
    }

    /// What stands after `{{`. An ending if it ends the list that it stands in.
    fn action(
        &mut self,
        nodes: &mut Vec<Node>,
        top: bool,
        open: Span,
    ) -> Result<Option<Ending>, (Span, String)> {
        self.skip_space();
        let Kind::Word(word) = self.peek().kind.clone() else {
            nodes.push(Node::Action(self.pipeline("command", true)?));
            return Ok(None);
        };
        let span = self.span();
        match word.as_str() {
            "if" | "with" | "range" => {
                self.next();
                let node = self.branch(&word)?;
                nodes.push(node);
            }
            "end" => {
                self.next();
                self.close("end")?;
                return Ok(Some(Ending::End));
            }
            "else" => {
                self.next();
                self.skip_space();
                if let Kind::Word(word) = &self.peek().kind {
                    let keyword = match word.as_str() {
                        "if" => "if",
                        "with" => "with",
                        _ => return Err((self.span(), format!("unexpected <{word}> in else"))),
                    };
                    self.next();
                    return Ok(Some(Ending::Else(Some(keyword))));
                }
                self.close("else")?;
                return Ok(Some(Ending::Else(None)));
            }
            "template" => {
                self.next();
                let name = self.name("template clause")?;
                let pipe = self.optional_pipeline("template clause")?;
                nodes.push(Node::Template { span: open.to(self.before()), name, pipe });
            }
            "define" => {
                if !top || self.nesting != 1 {
                    return Err((span, "unexpected {{define}}".to_owned()));
                }
                self.next();
                let name = self.name("define clause")?;
                self.close("define clause")?;
                let body = self.definition("define")?;
                self.define(name, body, span)?;
            }
            "block" => {
                self.next();
                let name = self.name("block clause")?;
                let pipe = Some(self.pipeline("block clause", true)?);
                let body = self.definition("block")?;
                nodes.push(Node::Template { span: open.to(self.before()), name: name.clone(), pipe });
                self.define(name, body, span)?;
            }
            // Names of functions win over these two, as in Go.
            "break" | "continue" if !self.functions.has(&word) => {
                self.next();
                if self.loops == 0 {
                    return Err((span, format!("{{{{{word}}}}} outside {{{{range}}}}")));
                }
                self.close(&word)?;
                nodes.push(if word == "break" { Node::Break } else { Node::Continue });
            }
            _ => nodes.push(Node::Action(self.pipeline("command", true)?)),
        }
        Ok(None)
    }

    /// `if`, `with` and `range`, up to their end.
    fn branch(&mut self, keyword: &str) -> Result<Node, (Span, String)> {
        let declared = self.variables.len();
        let range = keyword == "range";
        let pipe = self.pipeline(keyword, true)?;
        self.loops += usize::from(range);
        let body = self.list(false);
        self.loops -= usize::from(range);
        let (then, ending) = body?;
        let otherwise = match ending {
            Ending::End => Vec::new(),
            Ending::Else(None) => match self.list(false)? {
                (otherwise, Ending::End) => otherwise,
                (_, other) => return Err((self.span(), format!("expected end; found {other}"))),
            },
            // `else if` shares the end with what it stands in.
            Ending::Else(Some(next)) if next == keyword => {
                self.nesting += 1;
                if self.nesting > MAX_NESTING {
                    return Err((self.span(), "actions are nested too deep".to_owned()));
                }
                let nested = self.branch(next)?;
                self.nesting -= 1;
                vec![nested]
            }
            Ending::Else(Some(next)) => {
                return Err((self.span(), format!("unexpected <{next}> in {keyword}")));
            }
            Ending::Eof => return Err((self.span(), "unexpected EOF".to_owned())),
        };
        self.variables.truncate(declared);
        let branch = Branch { pipe, then, otherwise };
        Ok(match keyword {
            "if" => Node::If(branch),
            "with" => Node::With(branch),
            _ => Node::Range(branch),
        })
    }

    /// The body of a definition: it sees no variables but `$`.
    fn definition(&mut self, what: &str) -> Result<Vec<Node>, (Span, String)> {
        let outer = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let loops = std::mem::take(&mut self.loops);
        let body = self.list(false)?;
        self.variables = outer;
        self.loops = loops;
        match body {
            (nodes, Ending::End) => Ok(nodes),
            (_, other) => Err((self.span(), format!("unexpected {other} in {what} clause"))),
        }
    }

    /// Adds a definition; an empty one may be followed by another.
    fn define(&mut self, name: String, body: Vec<Node>, span: Span) -> Result<(), (Span, String)> {
        let source = self.source;
        let is_empty = |nodes: &[Node]| {
            nodes.iter().all(|node| matches!(node, Node::Text(span) if span.of(source).trim().is_empty()))
        };
        if let Some((_, known)) = self.defined.iter_mut().find(|(known, _)| *known == name) {
            if !is_empty(known) && !is_empty(&body) {
                return Err((span, format!("template: multiple definition of template {name:?}")));
            }
            if !is_empty(&body) {
                *known = body;
            }
            return Ok(());
        }
        self.defined.push((name, body));
        Ok(())
    }

    fn name(&mut self, context: &str) -> Result<String, (Span, String)> {
        self.skip_space();
        let token = self.next();
        match token.kind {
            Kind::String(text) => Ok(text),
            _ => Err((token.span, format!("unexpected {:?} in {context}", token.span.of(self.source)))),
        }
    }

    fn close(&mut self, context: &str) -> Result<(), (Span, String)> {
        self.skip_space();
        let token = self.next();
        match token.kind {
            Kind::Close => Ok(()),
            _ => Err((token.span, format!("unexpected {:?} in {context}", token.span.of(self.source)))),
        }
    }

    fn optional_pipeline(&mut self, context: &str) -> Result<Option<Pipe>, (Span, String)> {
        self.skip_space();
        if self.peek().kind == Kind::Close {
            self.next();
            return Ok(None);
        }
        self.pipeline(context, true).map(Some)
    }

    /// A pipeline and what ends it: the delimiter (`top`) or a parenthesis.
    fn pipeline(&mut self, context: &str, top: bool) -> Result<Pipe, (Span, String)> {
        self.skip_space();
        let start = self.span();
        let (variables, assign) = self.declarations(context)?;
        let mut commands = Vec::new();
        loop {
            self.skip_space();
            let token = self.peek();
            match token.kind {
                Kind::Close | Kind::RightParen => {
                    if (token.kind == Kind::Close) != top {
                        let what = if top { "unexpected right paren" } else { "unclosed left paren" };
                        return Err((token.span, what.to_owned()));
                    }
                    let end = self.before();
                    self.next();
                    if commands.is_empty() {
                        return Err((start, format!("missing value for {context}")));
                    }
                    check_commands(&commands)?;
                    // Variables are seen only after the pipeline that declares them.
                    if !assign {
                        self.variables.extend(variables.iter().cloned());
                    }
                    return Ok(Pipe { span: start.to(end), assign, variables, commands });
                }
                Kind::Pipe | Kind::Comma | Kind::Declare | Kind::Assign | Kind::End => {
                    let found = token.span.of(self.source).to_owned();
                    return Err((token.span, format!("unexpected {found:?} in {context}")));
                }
                _ => {
                    let command = self.command(context)?;
                    commands.push(command);
                }
            }
        }
    }

    /// `$x :=`, `$x =`, and with `range` `$i, $x :=`.
    fn declarations(&mut self, context: &str) -> Result<(Vec<String>, bool), (Span, String)> {
        let start = self.at;
        let mut variables = Vec::new();
        loop {
            let Kind::Variable(name) = self.peek().kind.clone() else {
                self.at = start;
                return Ok((Vec::new(), false));
            };
            let span = self.span();
            self.next();
            self.skip_space();
            match self.peek().kind {
                Kind::Declare | Kind::Assign => {
                    let assign = self.next().kind == Kind::Assign;
                    if assign && !self.variables.contains(&name) {
                        return Err((span, format!("undefined variable {name:?}")));
                    }
                    variables.push(name);
                    return Ok((variables, assign));
                }
                Kind::Comma if context == "range" && variables.is_empty() => {
                    self.next();
                    variables.push(name);
                    self.skip_space();
                    if !matches!(self.peek().kind, Kind::Variable(_)) {
                        return Err((self.span(), "range can only initialize variables".to_owned()));
                    }
                }
                Kind::Comma if context == "range" => {
                    return Err((span, format!("too many declarations in {context}")));
                }
                _ => {
                    self.at = start;
                    return Ok((Vec::new(), false));
                }
            }
        }
    }

    /// Words up to a pipe or the end of the pipeline.
    fn command(&mut self, context: &str) -> Result<Command, (Span, String)> {
        let start = self.span();
        let mut words = Vec::new();
        loop {
            self.skip_space();
            if let Some(word) = self.operand()? {
                words.push(word);
            }
            let token = self.peek().clone();
            match token.kind {
                Kind::Space => {
                    self.next();
                }
                Kind::Close | Kind::RightParen => break,
                Kind::Pipe => {
                    if words.is_empty() {
                        return Err((token.span, format!("unexpected \"|\" in {context}")));
                    }
                    self.next();
                    self.skip_space();
                    let span = start.to(words.last().map_or(start, |word| word.span));
                    return Ok(Command { span, words });
                }
                _ => {
                    return Err((
                        token.span,
                        format!("unexpected {:?} in operand", token.span.of(self.source)),
                    ));
                }
            }
        }
        if words.is_empty() {
            return Err((start, "empty command".to_owned()));
        }
        let span = start.to(words.last().map_or(start, |word| word.span));
        Ok(Command { span, words })
    }

    /// One word, with the fields asked of it.
    fn operand(&mut self) -> Result<Option<Word>, (Span, String)> {
        let Some(mut word) = self.term()? else { return Ok(None) };
        let mut fields = Vec::new();
        while let Kind::Field(name) = self.peek().kind.clone() {
            fields.push(name);
            self.next();
        }
        if fields.is_empty() {
            return Ok(Some(word));
        }
        let span = word.span.to(self.before());
        word.term = match word.term {
            Term::Field(mut names) => {
                names.extend(fields);
                Term::Field(names)
            }
            Term::Variable(name, mut names) => {
                names.extend(fields);
                Term::Variable(name, names)
            }
            Term::Bool(_) | Term::String(_) | Term::Int(_) | Term::Float(_) | Term::Nil | Term::Dot => {
                let found = word.span.of(self.source);
                return Err((span, format!("unexpected . after term {found:?}")));
            }
            term @ (Term::Function(_) | Term::Pipe(_) | Term::Chain(..)) => {
                Term::Chain(Box::new(Word { span: word.span, term }), fields)
            }
        };
        word.span = span;
        Ok(Some(word))
    }

    fn term(&mut self) -> Result<Option<Word>, (Span, String)> {
        let token = self.peek().clone();
        let term = match token.kind {
            Kind::Word(name) if name == "nil" => Term::Nil,
            Kind::Word(name) => {
                if !self.functions.has(&name) {
                    return Err((token.span, format!("function {name:?} not defined")));
                }
                Term::Function(name)
            }
            Kind::Dot => Term::Dot,
            Kind::Field(name) => Term::Field(vec![name]),
            Kind::Variable(name) => {
                if !self.variables.contains(&name) {
                    return Err((token.span, format!("undefined variable {name:?}")));
                }
                Term::Variable(name, Vec::new())
            }
            Kind::Bool(value) => Term::Bool(value),
            Kind::Int(value) => Term::Int(value),
            Kind::Float(value) => Term::Float(value),
            Kind::String(text) => Term::String(text.into()),
            Kind::LeftParen => {
                self.next();
                self.nesting += 1;
                if self.nesting > MAX_NESTING {
                    return Err((token.span, "parentheses are nested too deep".to_owned()));
                }
                let pipe = self.pipeline("parenthesized pipeline", false)?;
                self.nesting -= 1;
                let span = token.span.to(self.before());
                return Ok(Some(Word { span, term: Term::Pipe(Box::new(pipe)) }));
            }
            _ => return Ok(None),
        };
        self.next();
        Ok(Some(Word { span: token.span, term }))
    }

    fn skip_space(&mut self) {
        while self.peek().kind == Kind::Space {
            self.at += 1;
        }
    }

    fn peek(&self) -> &Token {
        // The last token is `End`, and `next` never goes beyond it.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn span(&self) -> Span {
        self.peek().span
    }

    /// Where the token before stands, blanks not counted.
    fn before(&self) -> Span {
        let before = self.tokens.get(..self.at).unwrap_or_default();
        before.iter().rfind(|token| token.kind != Kind::Space).map_or(Span::default(), |token| token.span)
    }
}

/// Only the first command of a pipeline can be a mere value.
fn check_commands(commands: &[Command]) -> Result<(), (Span, String)> {
    for (index, command) in commands.iter().enumerate().skip(1) {
        if let Some(Word {
            term: Term::Bool(_) | Term::Dot | Term::Nil | Term::Int(_) | Term::Float(_) | Term::String(_),
            span,
        }) = command.words.first()
        {
            return Err((*span, format!("non executable command in pipeline stage {}", index + 1)));
        }
    }
    Ok(())
}
