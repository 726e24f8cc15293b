//! Lowering of google.api.expr.v1alpha1 expressions.

use leno_api::proto::envoy::config::core::v3::CelExpressionConfig;
use leno_api::proto::google::api::expr::v1alpha1 as proto;
use proto::constant::ConstantKind;
use proto::expr::create_struct::Entry;
use proto::expr::create_struct::entry::KeyKind;
use proto::expr::{Call, CreateList, CreateStruct, ExprKind, Ident, Select};

use super::attributes::Root;
use super::value::Constant;
use super::{Comparison, Condition, Conversion, Expr, Expression, Operator, TextTest};
use crate::config::lower::Lower;
use crate::config::re2;

/// Lowers a condition.
pub(crate) fn lower(
    proto: proto::Expr,
    config: Option<CelExpressionConfig>,
    at: &mut Lower,
) -> Option<Condition> {
    let CelExpressionConfig { enable_string_conversion, enable_string_concat, enable_string_functions } =
        config.unwrap_or_default();
    let language = Language {
        conversion: enable_string_conversion,
        concat: enable_string_concat,
        functions: enable_string_functions,
    };
    language.expr(proto, at).map(Condition)
}

/// Lowers an expression whose value is wanted, with the conversions and concatenations that CEL has
/// by itself.
pub(crate) fn expression(proto: proto::Expr, at: &mut Lower) -> Option<Expression> {
    let language = Language { conversion: true, concat: true, functions: false };
    language.expr(proto, at).map(Expression)
}

/// What CelExpressionConfig adds to the language.
#[derive(Clone, Copy, Debug)]
struct Language {
    conversion: bool,
    concat: bool,
    functions: bool,
}

impl Language {
    fn expr(self, proto: proto::Expr, at: &mut Lower) -> Option<Expr> {
        // `id` is a place in the source.
        let proto::Expr { id: _, expr_kind } = proto;
        Some(match expr_kind {
            Some(ExprKind::ConstExpr(constant)) => {
                Expr::Constant(at.field("const_expr", |at| self::constant(constant, at))?)
            }
            Some(ExprKind::IdentExpr(Ident { name })) => match Root::of(&name) {
                Some(root) => Expr::Root(root),
                None => match name.as_str() {
                    // What Istio's proxy has at the top as well.
                    "downstream_peer" | "upstream_peer" => Expr::Attribute(Root::FilterState, name.into()),
                    _ => Expr::Unknown,
                },
            },
            Some(ExprKind::SelectExpr(select)) => at.field("select_expr", |at| self.select(*select, at))?,
            Some(ExprKind::CallExpr(call)) => at.field("call_expr", |at| self.call(*call, at))?,
            Some(ExprKind::ListExpr(CreateList { elements, optional_indices })) => {
                at.unsupported("list_expr.optional_indices", !optional_indices.is_empty());
                Expr::List(
                    at.field("list_expr", |at| at.each("elements", elements, |item, at| self.expr(item, at))),
                )
            }
            Some(ExprKind::StructExpr(CreateStruct { message_name, entries })) => {
                at.unsupported("struct_expr.message_name", !message_name.is_empty());
                Expr::Map(at.field("struct_expr", |at| {
                    at.each("entries", entries, |entry, at| self.entry(entry, at))
                }))
            }
            Some(ExprKind::ComprehensionExpr(_)) => {
                at.error("failed to create an expression: Comprehension support is disabled");
                return None;
            }
            None => {
                at.error("failed to create an expression: Invalid empty expression");
                return None;
            }
        })
    }

    fn entry(self, entry: Entry, at: &mut Lower) -> Option<[Expr; 2]> {
        let Entry { id: _, value, optional_entry, key_kind } = entry;
        at.unsupported("optional_entry", optional_entry);
        let Some(KeyKind::MapKey(key)) = key_kind else {
            at.unsupported("field_key", true);
            return None;
        };
        let key = at.field("map_key", |at| self.expr(key, at));
        let value = at.required("value", value, |value, at| self.expr(value, at));
        Some([key?, value?])
    }

    fn select(self, proto: Select, at: &mut Lower) -> Option<Expr> {
        let Select { operand, field, test_only } = proto;
        let operand = at.required("operand", operand, |operand, at| self.expr(*operand, at))?;
        let select = match operand {
            Expr::Root(root) => {
                at.unsupported(&format!("field '{field}'"), !root.supports(&field));
                Expr::Attribute(root, field.into())
            }
            operand => Expr::Select(Box::new(operand), field.into()),
        };
        Some(if test_only { Expr::Has(Box::new(select)) } else { select })
    }

    fn call(self, proto: Call, at: &mut Lower) -> Option<Expr> {
        let Call { target, function, args } = proto;
        let target = at.optional("target", target, |target, at| self.expr(*target, at));
        let given = args.len();
        let mut all: Vec<Expr> = target.into_iter().collect();
        // What `matches` is asked for is compiled here.
        let pattern = args.last().and_then(constant_text);
        all.extend(at.each("args", args, |arg, at| self.expr(arg, at)));
        let wrong = |at: &mut Lower| {
            at.error(format!(
                "failed to create an expression: No overload found in reference resolve step for {function}"
            ));
        };
        let two = |all: Vec<Expr>, at: &mut Lower| match <[Expr; 2]>::try_from(all) {
            Ok(two) => Some(Box::new(two)),
            Err(_) => {
                wrong(at);
                None
            }
        };
        let one = |all: Vec<Expr>, at: &mut Lower| match <[Expr; 1]>::try_from(all) {
            Ok([one]) => Some(Box::new(one)),
            Err(_) => {
                wrong(at);
                None
            }
        };
        let arithmetic = |operator, all, at: &mut Lower| Some(Expr::Arithmetic(operator, two(all, at)?));
        let compare = |comparison, all, at: &mut Lower| Some(Expr::Compare(comparison, two(all, at)?));
        let text = |test, all, at: &mut Lower| Some(Expr::Text(test, two(all, at)?));
        let convert = |conversion, all, at: &mut Lower| Some(Expr::Convert(conversion, one(all, at)?));
        match function.as_str() {
            "_&&_" => Some(Expr::And(two(all, at)?)),
            "_||_" => Some(Expr::Or(two(all, at)?)),
            "!_" => Some(Expr::Not(one(all, at)?)),
            "_?_:_" => match <[Expr; 3]>::try_from(all) {
                Ok(parts) => Some(Expr::If(Box::new(parts))),
                Err(_) => {
                    wrong(at);
                    None
                }
            },
            "_==_" => Some(Expr::Equal(two(all, at)?, true)),
            "_!=_" => Some(Expr::Equal(two(all, at)?, false)),
            "_<_" => compare(Comparison::Less, all, at),
            "_<=_" => compare(Comparison::LessOrEqual, all, at),
            "_>_" => compare(Comparison::Greater, all, at),
            "_>=_" => compare(Comparison::GreaterOrEqual, all, at),
            "_+_" => arithmetic(Operator::Add { texts: self.concat }, all, at),
            "_-_" => arithmetic(Operator::Subtract, all, at),
            "_*_" => arithmetic(Operator::Multiply, all, at),
            "_/_" => arithmetic(Operator::Divide, all, at),
            "_%_" => arithmetic(Operator::Modulo, all, at),
            "-_" => Some(Expr::Negate(one(all, at)?)),
            "_[_]" => Some(Expr::Index(two(all, at)?)),
            "in" | "_in_" | "@in" => Some(Expr::In(two(all, at)?)),
            "size" => Some(Expr::Size(one(all, at)?)),
            "contains" => text(TextTest::Contains, all, at),
            "startsWith" => text(TextTest::StartsWith, all, at),
            "endsWith" => text(TextTest::EndsWith, all, at),
            "matches" => {
                let [of, _] = *two(all, at)?;
                let Some(pattern) = pattern else {
                    // One that is made while requests are judged.
                    at.unsupported("args[1]", given > 0);
                    return None;
                };
                match re2::compile(&pattern) {
                    Ok(regex) => Some(Expr::Matches(Box::new(of), regex)),
                    Err(error) => {
                        at.error(format!("failed to create an expression: {error}"));
                        None
                    }
                }
            }
            "int" => convert(Conversion::Int, all, at),
            "uint" => convert(Conversion::Uint, all, at),
            "double" => convert(Conversion::Double, all, at),
            "dyn" => convert(Conversion::None, all, at),
            "string" if self.conversion => convert(Conversion::Text, all, at),
            "lowerAscii" if self.functions => convert(Conversion::Lower, all, at),
            "upperAscii" if self.functions => convert(Conversion::Upper, all, at),
            "bytes" | "duration" | "timestamp" | "type" | "getDate" | "getDayOfMonth" | "getDayOfWeek"
            | "getDayOfYear" | "getFullYear" | "getHours" | "getMilliseconds" | "getMinutes" | "getMonth"
            | "getSeconds" => {
                at.unsupported(&format!("function '{function}'"), true);
                None
            }
            "charAt" | "format" | "indexOf" | "join" | "lastIndexOf" | "replace" | "reverse" | "split"
            | "strings.quote" | "substring" | "trim"
                if self.functions =>
            {
                at.unsupported(&format!("function '{function}'"), true);
                None
            }
            _ => {
                wrong(at);
                None
            }
        }
    }
}

fn constant_text(expr: &proto::Expr) -> Option<String> {
    let Some(ExprKind::ConstExpr(proto::Constant { constant_kind: Some(ConstantKind::StringValue(text)) })) =
        &expr.expr_kind
    else {
        return None;
    };
    Some(text.clone())
}

fn constant(proto: proto::Constant, at: &mut Lower) -> Option<Constant> {
    let nanos = |seconds: i64, nanos: i32| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some(match proto.constant_kind {
        Some(ConstantKind::NullValue(_)) => Constant::Null,
        Some(ConstantKind::BoolValue(value)) => Constant::Bool(value),
        Some(ConstantKind::Int64Value(value)) => Constant::Int(value),
        Some(ConstantKind::Uint64Value(value)) => Constant::Uint(value),
        Some(ConstantKind::DoubleValue(value)) => Constant::Double(value),
        Some(ConstantKind::StringValue(text)) => Constant::Text(text.into_bytes().into()),
        Some(ConstantKind::BytesValue(bytes)) => Constant::Bytes(bytes.to_vec().into()),
        #[allow(deprecated, reason = "it is lowered like all others")]
        Some(ConstantKind::DurationValue(value)) => Constant::Duration(nanos(value.seconds, value.nanos)),
        #[allow(deprecated, reason = "it is lowered like all others")]
        Some(ConstantKind::TimestampValue(value)) => Constant::Timestamp(nanos(value.seconds, value.nanos)),
        None => {
            at.error("failed to create an expression: Unsupported constant type");
            return None;
        }
    })
}
