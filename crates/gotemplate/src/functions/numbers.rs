//! sprig's functions for numbers.

use super::{ANY, Call, Row};
use crate::{Value, print};

pub(super) const TABLE: &[Row] = &[
    Row("int", 1, 1, |call| Ok(Value::Int(int(call.arg(0))))),
    Row("int64", 1, 1, |call| Ok(Value::Int(int(call.arg(0))))),
    Row("float64", 1, 1, |call| Ok(Value::Float(float(call.arg(0))))),
    Row("atoi", 1, 1, |call| Ok(Value::Int(call.text(0)?.parse().unwrap_or(0)))),
    Row("toDecimal", 1, 1, |call| {
        Ok(Value::Int(i64::from_str_radix(&print::default(call.arg(0))?, 8).unwrap_or(0)))
    }),
    Row("add", 0, ANY, |call| Ok(Value::Int(all(call).fold(0, i64::wrapping_add)))),
    Row("add1", 1, 1, |call| Ok(Value::Int(int(call.arg(0)).wrapping_add(1)))),
    Row("sub", 2, 2, |call| Ok(Value::Int(int(call.arg(0)).wrapping_sub(int(call.arg(1)))))),
    Row("mul", 1, ANY, |call| Ok(Value::Int(all(call).fold(1, i64::wrapping_mul)))),
    Row("div", 2, 2, |call| match int(call.arg(0)).checked_div(int(call.arg(1))) {
        Some(quotient) => Ok(Value::Int(quotient)),
        None => Err("runtime error: integer divide by zero".to_owned()),
    }),
    Row("mod", 2, 2, |call| match int(call.arg(0)).checked_rem(int(call.arg(1))) {
        Some(rest) => Ok(Value::Int(rest)),
        None => Err("runtime error: integer divide by zero".to_owned()),
    }),
    Row("max", 1, ANY, |call| Ok(Value::Int(all(call).max().unwrap_or(0)))),
    Row("biggest", 1, ANY, |call| Ok(Value::Int(all(call).max().unwrap_or(0)))),
    Row("min", 1, ANY, |call| Ok(Value::Int(all(call).min().unwrap_or(0)))),
    Row("maxf", 1, ANY, |call| Ok(Value::Float(floats(call).fold(f64::MIN, f64::max)))),
    Row("minf", 1, ANY, |call| Ok(Value::Float(floats(call).fold(f64::MAX, f64::min)))),
    Row("addf", 0, ANY, |call| Ok(Value::Float(floats(call).sum()))),
    Row("mulf", 1, ANY, |call| Ok(Value::Float(floats(call).product()))),
    Row("subf", 2, ANY, |call| Ok(Value::Float(floats(call).reduce(|a, b| a - b).unwrap_or(0.0)))),
    Row("divf", 2, ANY, |call| Ok(Value::Float(floats(call).reduce(|a, b| a / b).unwrap_or(0.0)))),
    Row("floor", 1, 1, |call| Ok(Value::Float(float(call.arg(0)).floor()))),
    Row("ceil", 1, 1, |call| Ok(Value::Float(float(call.arg(0)).ceil()))),
    Row("round", 2, 3, |call| {
        let digits = i32::try_from(call.int(1)?).unwrap_or(0).clamp(-300, 300);
        let scale = 10_f64.powi(digits);
        let on = call.rest(2).first().map_or(0.5, float);
        let scaled = float(call.arg(0)) * scale;
        let rest = scaled.abs().fract();
        let whole = if rest >= on { scaled.abs().ceil() } else { scaled.abs().floor() };
        Ok(Value::Float(whole.copysign(scaled) / scale))
    }),
];

fn all<'c>(call: &Call<'c>) -> impl Iterator<Item = i64> + use<'c> {
    call.args().iter().map(int)
}

fn floats<'c>(call: &Call<'c>) -> impl Iterator<Item = f64> + use<'c> {
    call.args().iter().map(float)
}

/// What sprig takes for a whole number: anything, 0 if it is none.
pub(super) fn int(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        #[expect(clippy::cast_possible_truncation, reason = "as Go converts; `as` saturates")]
        Value::Float(number) => *number as i64,
        Value::Bool(value) => i64::from(*value),
        Value::String(text) => text_int(text),
        _ => 0,
    }
}

/// spf13/cast: a number in Go's notation (`0x`, a leading 0 for octal), a fraction cut off.
fn text_int(text: &str) -> i64 {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|byte| byte.is_ascii_digit()) => whole,
        Some(_) => return 0,
        None => text,
    };
    let (sign, digits) = match whole.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, whole.strip_prefix('+').unwrap_or(whole)),
    };
    let lower = digits.to_ascii_lowercase();
    let parsed = if let Some(hex) = lower.strip_prefix("0x") {
        i64::from_str_radix(hex, 16)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        i64::from_str_radix(binary, 2)
    } else if let Some(octal) =
        lower.strip_prefix("0o").or_else(|| lower.strip_prefix('0').filter(|it| !it.is_empty()))
    {
        i64::from_str_radix(octal, 8)
    } else {
        digits.parse()
    };
    parsed.map_or(0, |number: i64| number.saturating_mul(sign))
}

fn float(value: &Value) -> f64 {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "as Go converts")]
        Value::Int(number) => *number as f64,
        Value::Float(number) => *number,
        Value::Bool(value) => f64::from(u8::from(*value)),
        Value::String(text) => text.parse().unwrap_or(0.0),
        _ => 0.0,
    }
}
