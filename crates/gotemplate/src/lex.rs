//! Templates' text as tokens, by the rules of Go's text/template/parse.

use crate::error::Span;

/// One token and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Text outside of actions: the part of the source that is left after trimming.
    Text,
    /// `{{`.
    Open,
    /// `}}`.
    Close,
    Space,
    /// A word: a function's name or a keyword.
    Word(String),
    /// `.name`.
    Field(String),
    /// `.` alone.
    Dot,
    /// `$name`, `$`.
    Variable(String),
    Int(i64),
    Float(f64),
    String(String),
    Bool(bool),
    Pipe,
    LeftParen,
    RightParen,
    Declare,
    Assign,
    Comma,
    End,
}

/// Cuts a template into tokens; the last is `End`.
pub(crate) fn tokens(source: &str) -> Result<Vec<Token>, (Span, String)> {
    let mut lexer = Lexer { source, at: 0, tokens: Vec::new(), parens: 0 };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    tokens: Vec<Token>,
    parens: usize,
}

const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];

impl<'s> Lexer<'s> {
    fn run(&mut self) -> Result<(), (Span, String)> {
        // Whether the action before ended in a trim marker.
        let mut trim = false;
        loop {
            let rest = self.rest();
            let end = rest.find("{{").unwrap_or(rest.len());
            let (text, after) = rest.split_at(end);
            let start = self.at;
            let mut text = text;
            let mut offset = 0;
            if trim {
                let trimmed = text.trim_start_matches(BLANK);
                offset = text.len() - trimmed.len();
                text = trimmed;
            }
            // `{{- ` trims what stands before.
            let trims = after.strip_prefix("{{-").is_some_and(|rest| rest.starts_with(BLANK));
            if trims {
                text = text.trim_end_matches(BLANK);
            }
            if !text.is_empty() {
                self.tokens.push(Token {
                    kind: Kind::Text,
                    span: Span::new(start + offset, start + offset + text.len()),
                });
            }
            self.at = start + end;
            if after.is_empty() {
                self.push(Kind::End, self.at);
                return Ok(());
            }
            let open = self.at;
            self.at += if trims { 4 } else { 2 };
            // After a trim marker more blanks may precede a comment.
            let comment = if trims { self.rest().trim_start_matches(BLANK) } else { self.rest() };
            if comment.starts_with("/*") {
                self.at = self.source.len() - comment.len();
                trim = self.comment(open)?;
            } else {
                self.tokens.push(Token { kind: Kind::Open, span: Span::new(open, self.at) });
                trim = self.action(open)?;
            }
        }
    }

    /// A comment; whether it ends in a trim marker.
    fn comment(&mut self, open: usize) -> Result<bool, (Span, String)> {
        let Some(end) = self.rest().find("*/") else {
            return Err((Span::new(open, self.at), "unclosed comment".to_owned()));
        };
        self.at += end + 2;
        let rest = self.rest();
        if rest.starts_with("}}") {
            self.at += 2;
            return Ok(false);
        }
        if let Some(after) = rest.strip_prefix(BLANK)
            && after.trim_start_matches(BLANK).starts_with("-}}")
        {
            self.at += rest.len() - after.trim_start_matches(BLANK).len() + 3;
            return Ok(true);
        }
        Err((Span::new(open, self.at), "comment ends before closing delimiter".to_owned()))
    }

    /// What stands between the delimiters; whether it ends in a trim marker.
    fn action(&mut self, open: usize) -> Result<bool, (Span, String)> {
        self.parens = 0;
        loop {
            let rest = self.rest();
            let start = self.at;
            let trims = rest.starts_with(BLANK) && rest.trim_start_matches(BLANK).starts_with("-}}");
            if trims || rest.starts_with("}}") {
                if self.parens > 0 {
                    return Err((Span::new(start, start), "unclosed left paren".to_owned()));
                }
                if trims {
                    self.at = self.source.len() - rest.trim_start_matches(BLANK).len() + 3;
                } else {
                    self.at += 2;
                }
                self.push(Kind::Close, start);
                return Ok(trims);
            }
            let Some(first) = rest.chars().next() else {
                return Err((Span::new(open, open + 2), "unclosed action".to_owned()));
            };
            self.token(first, start)?;
        }
    }

    fn token(&mut self, first: char, start: usize) -> Result<(), (Span, String)> {
        let rest = self.rest();
        let simple = match first {
            '|' => Some(Kind::Pipe),
            '(' => Some(Kind::LeftParen),
            ')' => Some(Kind::RightParen),
            ',' => Some(Kind::Comma),
            '=' => Some(Kind::Assign),
            _ => None,
        };
        if let Some(kind) = simple {
            self.at += 1;
            match kind {
                Kind::LeftParen => self.parens += 1,
                Kind::RightParen => {
                    let Some(left) = self.parens.checked_sub(1) else {
                        return Err((Span::new(start, self.at), "unexpected right paren".to_owned()));
                    };
                    self.parens = left;
                }
                _ => {}
            }
            self.push(kind, start);
            return Ok(());
        }
        match first {
            _ if BLANK.contains(&first) => {
                // The blank before a trim marker belongs to the marker.
                let blank = rest.len() - rest.trim_start_matches(BLANK).len();
                self.at += blank;
                self.push(Kind::Space, start);
                Ok(())
            }
            ':' if rest.starts_with(":=") => {
                self.at += 2;
                self.push(Kind::Declare, start);
                Ok(())
            }
            '"' => self.quoted(start),
            '`' => {
                let Some(end) = rest[1..].find('`') else {
                    return Err((Span::new(start, start + 1), "unterminated raw quoted string".to_owned()));
                };
                let text = rest[1..=end].to_owned();
                self.at += end + 2;
                self.push(Kind::String(text), start);
                Ok(())
            }
            '\'' => self.character(start),
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                self.at += 1;
                let name = self.take_word();
                let kind = if name.is_empty() { Kind::Dot } else { Kind::Field(name) };
                self.terminated(start)?;
                self.push(kind, start);
                Ok(())
            }
            '$' => {
                self.at += 1;
                let name = format!("${}", self.take_word());
                self.terminated(start)?;
                self.push(Kind::Variable(name), start);
                Ok(())
            }
            '+' | '-' | '.' | '0'..='9' => self.number(start),
            _ if first == '_' || first.is_alphabetic() => {
                let word = self.take_word();
                self.terminated(start)?;
                let kind = match word.as_str() {
                    "true" => Kind::Bool(true),
                    "false" => Kind::Bool(false),
                    _ => Kind::Word(word),
                };
                self.push(kind, start);
                Ok(())
            }
            _ => Err((Span::new(start, start + first.len_utf8()), format!("unexpected {first:?} in action"))),
        }
    }

    fn take_word(&mut self) -> String {
        let rest = self.rest();
        let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    /// Names end where something follows that cannot be part of a value.
    fn terminated(&self, start: usize) -> Result<(), (Span, String)> {
        let rest = self.rest();
        match rest.chars().next() {
            None | Some(' ' | '\t' | '\r' | '\n' | '.' | ',' | '|' | ':' | ')' | '(' | '=') => Ok(()),
            _ if rest.starts_with("}}") => Ok(()),
            Some(other) => Err((Span::new(start, self.at), format!("bad character {other:?}"))),
        }
    }

    fn number(&mut self, start: usize) -> Result<(), (Span, String)> {
        let rest = self.rest();
        let mut end = rest.len();
        let mut before = ' ';
        for (index, letter) in rest.char_indices() {
            let sign = matches!(letter, '+' | '-') && (index == 0 || matches!(before, 'e' | 'E' | 'p' | 'P'));
            if !sign && !letter.is_ascii_alphanumeric() && letter != '.' && letter != '_' {
                end = index;
                break;
            }
            before = letter;
        }
        self.at += end;
        let text = &rest[..end];
        let Some(kind) = number(text) else {
            return Err((Span::new(start, self.at), format!("bad number syntax: {text:?}")));
        };
        self.terminated(start)?;
        self.push(kind, start);
        Ok(())
    }

    fn quoted(&mut self, start: usize) -> Result<(), (Span, String)> {
        let mut escaped = false;
        let end = self.rest().char_indices().skip(1).find_map(|(index, letter)| match letter {
            '\n' => Some(None),
            _ if escaped => {
                escaped = false;
                None
            }
            '\\' => {
                escaped = true;
                None
            }
            '"' => Some(Some(index)),
            _ => None,
        });
        let Some(Some(end)) = end else {
            return Err((Span::new(start, start + 1), "unterminated quoted string".to_owned()));
        };
        let inner = &self.rest()[1..end];
        self.at += end + 1;
        let Some(text) = unquote(inner) else {
            return Err((Span::new(start, self.at), "invalid syntax in quoted string".to_owned()));
        };
        self.push(Kind::String(text), start);
        Ok(())
    }

    fn character(&mut self, start: usize) -> Result<(), (Span, String)> {
        let bad = || (Span::new(start, start + 1), "malformed character constant".to_owned());
        let rest = &self.rest()[1..];
        let from = if rest.starts_with('\\') {
            rest.char_indices().nth(2).map_or(rest.len(), |(at, _)| at)
        } else {
            0
        };
        let end = from + rest[from..].find('\'').ok_or_else(bad)?;
        let text = unquote(&rest[..end]).ok_or_else(bad)?;
        let mut letters = text.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else { return Err(bad()) };
        self.at += end + 2;
        self.push(Kind::Int(i64::from(u32::from(letter))), start);
        Ok(())
    }

    fn rest(&self) -> &'s str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn push(&mut self, kind: Kind, start: usize) {
        self.tokens.push(Token { kind, span: Span::new(start, self.at) });
    }
}

/// A number constant: decimal, hexadecimal, octal or binary, with underscores, or a float.
fn number(text: &str) -> Option<Kind> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    let plain = lower.replace('_', "");
    let radix = |radix: u32, digits: &str| i128::from_str_radix(digits, radix).ok();
    let integer = if let Some(hex) = plain.strip_prefix("0x") {
        radix(16, hex)
    } else if let Some(binary) = plain.strip_prefix("0b") {
        radix(2, binary)
    } else if let Some(octal) = plain.strip_prefix("0o") {
        radix(8, octal)
    } else if plain.len() > 1 && plain.starts_with('0') && plain.bytes().all(|b| b.is_ascii_digit()) {
        radix(8, &plain)
    } else {
        radix(10, &plain)
    };
    if let Some(integer) = integer {
        return i64::try_from(if negative { -integer } else { integer }).ok().map(Kind::Int);
    }
    let float: f64 = plain.parse().ok().filter(|float: &f64| float.is_finite())?;
    let float = if negative { -float } else { float };
    // A float that is whole can be used as one: Go decides by the way it is written.
    Some(Kind::Float(float))
}

/// What Go's strconv.Unquote makes of the text between quotes.
pub(crate) fn unquote(text: &str) -> Option<String> {
    leno_base::quote::unquote(text).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
