//! Conditions and values in CEL (Common Expression Language) over Envoy's attributes: `request.*`,
//! `response.*`, `connection.*`, `upstream.*`, `source.*`, `destination.*`, `metadata`,
//! `filter_state` and some of `xds.*`.
//!
//! Configuration brings expressions parsed already (google.api.expr.v1alpha1), or as text
//! (`parse`). They are lowered to a tree whose functions are known, and evaluated without state. As in Envoy there are no
//! comprehensions, and what cannot be evaluated (an absent attribute, a wrong type) is an error
//! that makes the condition not hold, unless `&&` or `||` is decided by its other side.
//! Reading order: this file, `value`, `attributes`, `lower`, `parse`.

use std::borrow::Cow;

use regex::bytes::Regex;

use self::attributes::Root;
use self::value::{Constant, Failed, Value};
use super::facts::Facts;

mod attributes;
mod lower;
mod parse;
mod value;

pub(crate) use self::lower::{expression, lower};
pub(crate) use self::parse::parse;

/// A condition.
#[derive(Debug)]
pub(crate) struct Condition(Expr);

impl Condition {
    /// Whether it holds. What cannot be evaluated does not.
    pub(crate) fn holds(&self, facts: &impl Facts) -> bool {
        matches!(self.0.value(facts), Ok(Value::Bool(true)))
    }
}

/// An expression of which a text is wanted.
#[derive(Debug)]
pub(crate) struct Expression(Expr);

impl Expression {
    /// Its value as Envoy prints it; `None`: it cannot be evaluated.
    pub(crate) fn text(&self, facts: &impl Facts) -> Option<String> {
        self.0.value(facts).ok().map(|value| value.print())
    }

    /// Whether configuration alone says what it can be: nobody who sends requests makes up values.
    pub(crate) fn is_configured(&self) -> bool {
        self.0.is_configured()
    }
}

/// An expression.
#[derive(Debug)]
enum Expr {
    Constant(Constant),
    /// A group of attributes as a whole.
    Root(Root),
    Attribute(Root, Box<str>),
    /// A name that nothing is known by.
    Unknown,
    /// `a.b`
    Select(Box<Expr>, Box<str>),
    /// `has(a.b)`
    Has(Box<Expr>),
    /// `a[b]`
    Index(Box<[Expr; 2]>),
    List(Vec<Expr>),
    Map(Vec<[Expr; 2]>),
    Not(Box<Expr>),
    And(Box<[Expr; 2]>),
    Or(Box<[Expr; 2]>),
    /// `a ? b : c`
    If(Box<[Expr; 3]>),
    Equal(Box<[Expr; 2]>, bool),
    Compare(Comparison, Box<[Expr; 2]>),
    Arithmetic(Operator, Box<[Expr; 2]>),
    Negate(Box<Expr>),
    /// `a in b`
    In(Box<[Expr; 2]>),
    Size(Box<Expr>),
    Text(TextTest, Box<[Expr; 2]>),
    Matches(Box<Expr>, Regex),
    Convert(Conversion, Box<Expr>),
}

/// An order that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// An operator on two numbers, or on times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    /// Whether texts may be concatenated (`enable_string_concat`).
    Add {
        texts: bool,
    },
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

/// What is asked of a text with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

/// What a value is made of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conversion {
    Int,
    Uint,
    Double,
    Text,
    Lower,
    Upper,
    /// `dyn`
    None,
}

impl Expr {
    /// See [`Expression::is_configured`]; of what is rare in labels it is not known.
    fn is_configured(&self) -> bool {
        match self {
            Expr::Constant(_) | Expr::Unknown | Expr::Attribute(Root::Xds, _) => true,
            // These have one of two values.
            Expr::Has(_)
            | Expr::Not(_)
            | Expr::And(_)
            | Expr::Or(_)
            | Expr::Equal(..)
            | Expr::Compare(..)
            | Expr::In(_)
            | Expr::Text(..)
            | Expr::Matches(..) => true,
            Expr::Select(of, _) | Expr::Convert(_, of) | Expr::Negate(of) | Expr::Size(of) => {
                of.is_configured()
            }
            Expr::Index(of) | Expr::Arithmetic(_, of) => of.iter().all(Expr::is_configured),
            Expr::If(parts) => {
                let [_, then, otherwise] = &**parts;
                then.is_configured() && otherwise.is_configured()
            }
            Expr::Root(_) | Expr::Attribute(..) | Expr::List(_) | Expr::Map(_) => false,
        }
    }

    fn value<'f>(&'f self, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
        let both = |of: &'f [Expr; 2]| Ok((of[0].value(facts)?, of[1].value(facts)?));
        Ok(match self {
            Expr::Constant(constant) => constant.value(),
            Expr::Root(root) => Value::Root(*root),
            Expr::Attribute(root, field) => root.attribute(field, facts)?,
            Expr::Unknown => return Err(Failed),
            Expr::Select(of, field) => of.value(facts)?.field(field, facts)?,
            Expr::Has(select) => match &**select {
                Expr::Select(of, field) => Value::Bool(of.value(facts)?.field(field, facts).is_ok()),
                select => Value::Bool(select.value(facts).is_ok()),
            },
            Expr::Index(of) => {
                let (of, index) = both(of)?;
                of.index(&index, facts)?
            }
            Expr::List(items) => {
                let items: Result<Vec<Value<'f>>, Failed> =
                    items.iter().map(|item| item.value(facts)).collect();
                Value::List(items?)
            }
            Expr::Map(entries) => {
                let entries: Result<Vec<(Value<'f>, Value<'f>)>, Failed> = entries.iter().map(both).collect();
                Value::Map(entries?)
            }
            Expr::Not(of) => Value::Bool(!of.value(facts)?.bool()?),
            Expr::And(of) => decide(of, false, facts)?,
            Expr::Or(of) => decide(of, true, facts)?,
            Expr::If(parts) => {
                let [condition, then, otherwise] = &**parts;
                if condition.value(facts)?.bool()? { then.value(facts)? } else { otherwise.value(facts)? }
            }
            Expr::Equal(of, wanted) => {
                let (left, right) = both(of)?;
                Value::Bool((left == right) == *wanted)
            }
            Expr::Compare(comparison, of) => {
                let (left, right) = both(of)?;
                let order = left.partial_cmp(&right).ok_or(Failed)?;
                Value::Bool(match comparison {
                    Comparison::Less => order.is_lt(),
                    Comparison::LessOrEqual => order.is_le(),
                    Comparison::Greater => order.is_gt(),
                    Comparison::GreaterOrEqual => order.is_ge(),
                })
            }
            Expr::Arithmetic(operator, of) => {
                let (left, right) = both(of)?;
                value::calculate(*operator, left, right)?
            }
            Expr::Negate(of) => match of.value(facts)? {
                Value::Int(number) => Value::Int(number.checked_neg().ok_or(Failed)?),
                Value::Double(number) => Value::Double(-number),
                _ => return Err(Failed),
            },
            Expr::In(of) => {
                let (item, of) = both(of)?;
                Value::Bool(of.contains(&item)?)
            }
            Expr::Size(of) => Value::Int(of.value(facts)?.size()?),
            Expr::Text(test, of) => {
                let (text, part) = both(of)?;
                let (text, part) = (text.text()?, part.text()?);
                Value::Bool(match test {
                    TextTest::Contains => memchr::memmem::find(text, part).is_some(),
                    TextTest::StartsWith => text.starts_with(part),
                    TextTest::EndsWith => text.ends_with(part),
                })
            }
            Expr::Matches(of, regex) => Value::Bool(regex.is_match(of.value(facts)?.text()?)),
            Expr::Convert(conversion, of) => convert(*conversion, of.value(facts)?)?,
        })
    }
}

/// `&&` and `||`: the side that decides does, whatever the other one is.
fn decide<'f>(of: &'f [Expr; 2], decisive: bool, facts: &'f impl Facts) -> Result<Value<'f>, Failed> {
    let left = of[0].value(facts).and_then(|value| value.bool());
    if left == Ok(decisive) {
        return Ok(Value::Bool(decisive));
    }
    let right = of[1].value(facts).and_then(|value| value.bool());
    match right {
        Ok(right) if right == decisive => Ok(Value::Bool(decisive)),
        Ok(_) => left.map(Value::Bool),
        Err(Failed) => Err(Failed),
    }
}

fn convert(conversion: Conversion, value: Value<'_>) -> Result<Value<'_>, Failed> {
    fn parsed<T: std::str::FromStr>(text: &[u8]) -> Result<T, Failed> {
        std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Failed)
    }
    Ok(match (conversion, value) {
        (Conversion::None, value) => value,
        (Conversion::Int, Value::Int(number)) => Value::Int(number),
        (Conversion::Int, Value::Uint(number)) => Value::Int(number.try_into().map_err(|_| Failed)?),
        (Conversion::Int, Value::Double(number)) if number.abs() < 9.2e18 => Value::Int(number as i64),
        (Conversion::Int, Value::Text(text)) => Value::Int(parsed(&text)?),
        (Conversion::Int, Value::Timestamp(at)) => {
            Value::Int(at.div_euclid(1_000_000_000).try_into().map_err(|_| Failed)?)
        }
        (Conversion::Uint, Value::Int(number)) => Value::Uint(number.try_into().map_err(|_| Failed)?),
        (Conversion::Uint, Value::Uint(number)) => Value::Uint(number),
        (Conversion::Uint, Value::Double(number)) if (0.0..1.8e19).contains(&number) => {
            Value::Uint(number as u64)
        }
        (Conversion::Uint, Value::Text(text)) => Value::Uint(parsed(&text)?),
        (Conversion::Double, Value::Int(number)) => Value::Double(number as f64),
        (Conversion::Double, Value::Uint(number)) => Value::Double(number as f64),
        (Conversion::Double, Value::Double(number)) => Value::Double(number),
        (Conversion::Double, Value::Text(text)) => Value::Double(parsed(&text)?),
        (Conversion::Text, Value::Text(text)) => Value::Text(text),
        (Conversion::Text, Value::Bytes(bytes)) if std::str::from_utf8(&bytes).is_ok() => Value::Text(bytes),
        (Conversion::Text, Value::Int(number)) => owned(number.to_string()),
        (Conversion::Text, Value::Uint(number)) => owned(number.to_string()),
        (Conversion::Text, Value::Bool(value)) => owned(value.to_string()),
        (Conversion::Lower, Value::Text(text)) => Value::Text(Cow::Owned(text.to_ascii_lowercase())),
        (Conversion::Upper, Value::Text(text)) => Value::Text(Cow::Owned(text.to_ascii_uppercase())),
        _ => return Err(Failed),
    })
}

fn owned(text: String) -> Value<'static> {
    Value::Text(Cow::Owned(text.into_bytes()))
}
