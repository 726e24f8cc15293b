//! CEL as text: what `istio.stats` and some formatters are configured with. It is read into the
//! same messages that other configuration brings parsed already (google.api.expr.v1alpha1), so
//! that there is one way to lower expressions.
//!
//! The grammar is that of the language definition, without messages (`Type{...}`); of the macros,
//! `has` alone is one here: the others are comprehensions, which are not evaluated.

use leno_api::proto::google::api::expr::v1alpha1 as proto;
use proto::constant::ConstantKind;
use proto::expr::create_struct::Entry;
use proto::expr::create_struct::entry::KeyKind;
use proto::expr::{Call, Comprehension, CreateList, CreateStruct, ExprKind, Ident, Select};

/// How deep expressions may be nested, and how many operators may follow each other: so deep the
/// tree is at most that lowering and evaluation walk.
const MAX_DEPTH: usize = 48;
const MAX_STEPS: usize = 400;
/// Macros that stand for comprehensions.
const COMPREHENSIONS: [&str; 5] = ["all", "exists", "exists_one", "filter", "map"];

/// Reads an expression.
///
/// # Errors
/// What is no expression, or one that is too deep, in words.
pub(crate) fn parse(text: &str) -> Result<proto::Expr, String> {
    let mut parser = Parser { text, at: 0, depth: 0, steps: 0 };
    let expr = parser.ternary()?;
    parser.space();
    match parser.rest().is_empty() {
        true => Ok(expr),
        false => Err(parser.unexpected()),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    /// Operators so far.
    steps: usize,
}

fn expr(kind: ExprKind) -> proto::Expr {
    proto::Expr { id: 0, expr_kind: Some(kind) }
}

fn call(function: &str, args: Vec<proto::Expr>) -> proto::Expr {
    expr(ExprKind::CallExpr(Box::new(Call { target: None, function: function.to_owned(), args })))
}

fn constant(kind: ConstantKind) -> proto::Expr {
    expr(ExprKind::ConstExpr(proto::Constant { constant_kind: Some(kind) }))
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn unexpected(&self) -> String {
        match self.rest().chars().next() {
            Some(c) => format!("unexpected '{c}' at {} of the expression", self.at),
            None => "the expression ends too early".to_owned(),
        }
    }

    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// Takes a sign, if it comes next.
    fn takes(&mut self, sign: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// Another operator follows.
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > MAX_STEPS { Err("the expression is too long".to_owned()) } else { Ok(()) }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        if self.depth == MAX_DEPTH {
            return Err("the expression is nested too deeply".to_owned());
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// `a ? b : c`
    fn ternary(&mut self) -> Result<proto::Expr, String> {
        self.deeper(|parser| {
            let condition = parser.or()?;
            if !parser.takes("?") {
                return Ok(condition);
            }
            let yes = parser.or()?;
            parser.expect(":")?;
            let no = parser.ternary()?;
            Ok(call("_?_:_", vec![condition, yes, no]))
        })
    }

    fn or(&mut self) -> Result<proto::Expr, String> {
        let mut left = self.and()?;
        while self.takes("||") {
            self.step()?;
            left = call("_||_", vec![left, self.and()?]);
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<proto::Expr, String> {
        let mut left = self.relation()?;
        while self.takes("&&") {
            self.step()?;
            left = call("_&&_", vec![left, self.relation()?]);
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<proto::Expr, String> {
        const OPERATORS: [(&str, &str); 6] =
            [("<=", "_<=_"), (">=", "_>=_"), ("==", "_==_"), ("!=", "_!=_"), ("<", "_<_"), (">", "_>_")];
        let mut left = self.sum()?;
        loop {
            let function = match OPERATORS.into_iter().find(|(sign, _)| self.takes(sign)) {
                Some((_, function)) => function,
                None if self.takes_word("in") => "@in",
                None => return Ok(left),
            };
            self.step()?;
            left = call(function, vec![left, self.sum()?]);
        }
    }

    fn sum(&mut self) -> Result<proto::Expr, String> {
        let mut left = self.product()?;
        loop {
            let function = match () {
                () if self.takes("+") => "_+_",
                () if self.takes("-") => "_-_",
                () => return Ok(left),
            };
            self.step()?;
            left = call(function, vec![left, self.product()?]);
        }
    }

    fn product(&mut self) -> Result<proto::Expr, String> {
        let mut left = self.unary()?;
        loop {
            let function = match () {
                () if self.takes("*") => "_*_",
                () if self.takes("/") => "_/_",
                () if self.takes("%") => "_%_",
                () => return Ok(left),
            };
            self.step()?;
            left = call(function, vec![left, self.unary()?]);
        }
    }

    fn unary(&mut self) -> Result<proto::Expr, String> {
        if self.takes("!") {
            return Ok(call("!_", vec![self.deeper(Self::unary)?]));
        }
        if self.takes("-") {
            if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
                let number = self.number(true)?;
                return self.members(number);
            }
            return Ok(call("-_", vec![self.deeper(Self::unary)?]));
        }
        let primary = self.primary()?;
        self.members(primary)
    }

    /// `a.b`, `a.b(c)`, `a[b]`
    fn members(&mut self, mut of: proto::Expr) -> Result<proto::Expr, String> {
        loop {
            self.step()?;
            if self.takes(".") {
                let name = self.word()?;
                if !self.takes("(") {
                    of = expr(ExprKind::SelectExpr(Box::new(Select {
                        operand: Some(Box::new(of)),
                        field: name.to_owned(),
                        test_only: false,
                    })));
                    continue;
                }
                let args = self.list(")")?;
                of = match COMPREHENSIONS.contains(&name) && args.len() > 1 {
                    true => expr(ExprKind::ComprehensionExpr(Box::<Comprehension>::default())),
                    false => expr(ExprKind::CallExpr(Box::new(Call {
                        target: Some(Box::new(of)),
                        function: name.to_owned(),
                        args,
                    }))),
                };
            } else if self.takes("[") {
                let index = self.ternary()?;
                self.expect("]")?;
                of = call("_[_]", vec![of, index]);
            } else {
                return Ok(of);
            }
        }
    }

    fn primary(&mut self) -> Result<proto::Expr, String> {
        if self.takes("(") {
            let inner = self.ternary()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.takes("[") {
            let elements = self.list("]")?;
            return Ok(expr(ExprKind::ListExpr(CreateList { elements, optional_indices: Vec::new() })));
        }
        if self.takes("{") {
            return self.map();
        }
        let rest = self.rest();
        let first = rest.chars().next();
        if rest.starts_with(['"', '\'']) {
            return self.text_literal(false, false);
        }
        if first.is_some_and(|c| c.is_ascii_digit())
            || rest.starts_with('.')
                && rest.get(1..).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        {
            return self.number(false);
        }
        if let Some((raw, bytes)) = literal_prefix(rest) {
            self.at += usize::from(raw) + usize::from(bytes);
            return self.text_literal(raw, bytes);
        }
        // A leading dot says that a name is absolute, which all are.
        self.takes(".");
        let name = self.word()?;
        match name {
            "true" | "false" => return Ok(constant(ConstantKind::BoolValue(name == "true"))),
            "null" => return Ok(constant(ConstantKind::NullValue(0))),
            _ => {}
        }
        if !self.takes("(") {
            return Ok(expr(ExprKind::IdentExpr(Ident { name: name.to_owned() })));
        }
        let mut args = self.list(")")?;
        if name != "has" {
            return Ok(call(name, args));
        }
        match (args.pop().and_then(|arg| arg.expr_kind), args.is_empty()) {
            (Some(ExprKind::SelectExpr(mut select)), true) => {
                select.test_only = true;
                Ok(expr(ExprKind::SelectExpr(select)))
            }
            _ => Err("invalid argument to has() macro".to_owned()),
        }
    }

    /// Expressions up to the closing sign.
    fn list(&mut self, end: &str) -> Result<Vec<proto::Expr>, String> {
        let mut items = Vec::new();
        while !self.takes(end) {
            items.push(self.ternary()?);
            if !self.takes(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(items)
    }

    fn map(&mut self) -> Result<proto::Expr, String> {
        let mut entries = Vec::new();
        while !self.takes("}") {
            let key = self.ternary()?;
            self.expect(":")?;
            let value = Some(self.ternary()?);
            let key_kind = Some(KeyKind::MapKey(key));
            entries.push(Entry { id: 0, value, optional_entry: false, key_kind });
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(expr(ExprKind::StructExpr(CreateStruct { message_name: String::new(), entries })))
    }

    /// A name.
    fn word(&mut self) -> Result<&'t str, String> {
        self.space();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        match rest.get(..end) {
            Some(name) if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) => {
                self.at += end;
                Ok(name)
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Takes this name, if it comes next.
    fn takes_word(&mut self, wanted: &str) -> bool {
        let before = self.at;
        let found = self.word().is_ok_and(|word| word == wanted);
        if !found {
            self.at = before;
        }
        found
    }

    fn number(&mut self, negative: bool) -> Result<proto::Expr, String> {
        let rest = self.rest();
        let wrong = |text: &str| format!("'{text}' is no number");
        if let Some(digits) = rest.strip_prefix("0x") {
            let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
            let digits = digits.get(..end).unwrap_or_default();
            self.at += 2 + end;
            if self.takes_suffix() {
                let number = u64::from_str_radix(digits, 16).map_err(|_| wrong(digits))?;
                return Ok(constant(ConstantKind::Uint64Value(number)));
            }
            let number = i64::from_str_radix(digits, 16).map_err(|_| wrong(digits))?;
            return Ok(constant(ConstantKind::Int64Value(if negative { -number } else { number })));
        }
        let digits = |from: usize| {
            let rest = rest.get(from..).unwrap_or_default();
            from + rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())
        };
        let next = |at: usize| rest.as_bytes().get(at).copied();
        let mut end = digits(0);
        let mut whole = true;
        if next(end) == Some(b'.') && next(end + 1).is_some_and(|byte| byte.is_ascii_digit()) {
            (whole, end) = (false, digits(end + 1));
        }
        if matches!(next(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(next(end + 1), Some(b'+' | b'-')));
            (whole, end) = (false, digits(end + 1 + sign));
        }
        let text = rest.get(..end).unwrap_or_default();
        self.at += end;
        if !whole {
            let number: f64 = text.parse().map_err(|_| wrong(text))?;
            return Ok(constant(ConstantKind::DoubleValue(if negative { -number } else { number })));
        }
        if !negative && self.takes_suffix() {
            return Ok(constant(ConstantKind::Uint64Value(text.parse().map_err(|_| wrong(text))?)));
        }
        let signed = if negative { format!("-{text}") } else { text.to_owned() };
        Ok(constant(ConstantKind::Int64Value(signed.parse().map_err(|_| wrong(text))?)))
    }

    /// `u` behind a number.
    fn takes_suffix(&mut self) -> bool {
        let found = self.rest().starts_with(['u', 'U']);
        self.at += usize::from(found);
        found
    }

    /// A text in quotes, single or threefold.
    fn text_literal(&mut self, raw: bool, bytes: bool) -> Result<proto::Expr, String> {
        let rest = self.rest();
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| rest.starts_with(quote));
        let quote = quote.ok_or_else(|| self.unexpected())?;
        self.at += quote.len();
        let mut text = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            let c = rest.chars().next().ok_or_else(|| self.unexpected())?;
            self.at += c.len_utf8();
            if c == '\n' && quote.len() == 1 {
                return Err("a text ends with its line".to_owned());
            }
            if c == '\\' && !raw {
                self.escape(bytes, &mut text)?;
            } else {
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(constant(ConstantKind::BytesValue(text.into())));
        }
        let text = String::from_utf8(text).map_err(|_| "a text is not UTF-8".to_owned())?;
        Ok(constant(ConstantKind::StringValue(text)))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let wrong = || "a text has an unknown escape".to_owned();
        let c = self.rest().chars().next().ok_or_else(wrong)?;
        self.at += c.len_utf8();
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '"' | '\'' | '`' | '?' => c as u8,
            'x' | 'X' | 'u' | 'U' | '0'..='3' => {
                let (digits, radix) = match c {
                    'x' | 'X' => (2, 16),
                    'u' => (4, 16),
                    'U' => (8, 16),
                    _ => (3, 8),
                };
                let start = if radix == 8 { self.at - 1 } else { self.at };
                let code = self.text.get(start..start + digits).ok_or_else(wrong)?;
                let code = u32::from_str_radix(code, radix).map_err(|_| wrong())?;
                self.at = start + digits;
                if bytes {
                    out.push(u8::try_from(code).map_err(|_| wrong())?);
                } else {
                    let c = char::from_u32(code).ok_or_else(wrong)?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                return Ok(());
            }
            _ => return Err(wrong()),
        };
        out.push(plain);
        Ok(())
    }
}

/// Whether a literal begins with `r` (raw), `b` (bytes) or both.
fn literal_prefix(text: &str) -> Option<(bool, bool)> {
    let quote = text.find(['"', '\''])?;
    match text.get(..quote)?.to_ascii_lowercase().as_str() {
        "r" => Some((true, false)),
        "b" => Some((false, true)),
        "rb" | "br" => Some((true, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use leno_api::proto::google::api::expr::v1alpha1 as proto;
    use proto::constant::ConstantKind;
    use proto::expr::ExprKind;

    /// An expression in prefix notation.
    fn show(expr: &proto::Expr) -> String {
        let all = |items: &[proto::Expr]| items.iter().map(show).collect::<Vec<_>>().join(" ");
        match &expr.expr_kind {
            Some(ExprKind::ConstExpr(constant)) => match &constant.constant_kind {
                Some(ConstantKind::StringValue(text)) => format!("{text:?}"),
                Some(ConstantKind::BytesValue(bytes)) => format!("b{bytes:?}"),
                Some(ConstantKind::Int64Value(number)) => number.to_string(),
                Some(ConstantKind::Uint64Value(number)) => format!("{number}u"),
                Some(ConstantKind::DoubleValue(number)) => format!("{number:?}"),
                Some(ConstantKind::BoolValue(value)) => value.to_string(),
                other => format!("{other:?}"),
            },
            Some(ExprKind::IdentExpr(ident)) => ident.name.clone(),
            Some(ExprKind::SelectExpr(select)) => {
                let of = select.operand.as_deref().map(show).unwrap_or_default();
                format!("({}.{} {of})", if select.test_only { "has" } else { "" }, select.field)
            }
            Some(ExprKind::CallExpr(call)) => {
                let target = call.target.as_deref().map(|target| format!("{}.", show(target)));
                format!("({}{} {})", target.unwrap_or_default(), call.function, all(&call.args))
            }
            Some(ExprKind::ListExpr(list)) => format!("[{}]", all(&list.elements)),
            other => format!("{other:?}").chars().take(20).collect(),
        }
    }

    fn check(text: &str, expected: &Expect) {
        let shown = super::parse(text).map_or_else(|error| format!("error: {error}"), |expr| show(&expr));
        expected.assert_eq(&shown);
    }

    #[test]
    fn expressions() {
        check(
            "request.method == 'GET' && !has(request.headers.x) || response.code >= 500",
            &expect![[
                r#"(_||_ (_&&_ (_==_ (.method request) "GET") (!_ (has.x (.headers request)))) (_>=_ (.code response) 500))"#
            ]],
        );
        check(
            r#"has(filter_state.upstream_peer) ? filter_state["upstream_peer"].labels['a'] : "unknown""#,
            &expect![[
                r#"(_?_:_ (has.upstream_peer filter_state) (_[_] (.labels (_[_] filter_state "upstream_peer")) "a") "unknown")"#
            ]],
        );
        check("1 + 2 * -3 - 4u / 0x1F % 2.5e1", &expect!["(_-_ (_+_ 1 (_*_ 2 -3)) (_%_ (_/_ 4u 31) 25.0))"]);
        check(
            "x.startsWith('a') && y in ['b', 'c',]",
            &expect![[r#"(_&&_ (x.startsWith "a") (@in y ["b" "c"]))"#]],
        );
        check(
            "string(destination.port) + r'\\d' + \"\\x41\\n\\u00e9\"",
            &expect![[r#"(_+_ (_+_ (string (.port destination)) "\\d") "A\né")"#]],
        );
        check("b'\\xff' == .null_ // end", &expect![[r#"(_==_ bb"\xff" null_)"#]]);
        check("-x.y", &expect!["(-_ (.y x))"]);
        check("a ? b : c ? d : e", &expect!["(_?_:_ a b (_?_:_ c d e))"]);
        check("[1].all(x, x > 0)", &expect!["Some(ComprehensionEx"]);
    }

    #[test]
    fn what_is_no_expression() {
        check("", &expect!["error: the expression ends too early"]);
        check("a b", &expect!["error: unexpected 'b' at 2 of the expression"]);
        check("has(a)", &expect!["error: invalid argument to has() macro"]);
        check("'abc", &expect!["error: the expression ends too early"]);
        check("99999999999999999999", &expect!["error: '99999999999999999999' is no number"]);
        check(&"(".repeat(500), &expect!["error: the expression is nested too deeply"]);
        check(&"!".repeat(500), &expect!["error: the expression is nested too deeply"]);
        check(&"a+".repeat(500), &expect!["error: the expression is too long"]);
        check("'\\q'", &expect!["error: a text has an unknown escape"]);
    }
}
