//! sprig's functions for any value: defaults, kinds, choices, failures, versions.

use super::{ANY, Call, Row, semver};
use crate::{Value, print};

pub(super) const TABLE: &[Row] = &[
    Row("default", 1, 2, |call| {
        let given = call.rest(1).first().filter(|value| !empty(value));
        Ok(given.unwrap_or(call.arg(0)).clone())
    }),
    Row("empty", 1, 1, |call| Ok(Value::Bool(empty(call.arg(0))))),
    Row("coalesce", 0, ANY, |call| {
        Ok(call.args().iter().find(|value| !empty(value)).cloned().unwrap_or(Value::Nil))
    }),
    Row("all", 0, ANY, |call| Ok(Value::Bool(!call.args().iter().any(empty)))),
    Row("any", 0, ANY, |call| Ok(Value::Bool(call.args().iter().any(|value| !empty(value))))),
    Row("ternary", 3, 3, |call| match call.arg(2) {
        Value::Bool(true) => Ok(call.arg(0).clone()),
        Value::Bool(false) => Ok(call.arg(1).clone()),
        other => Err(super::wrong(other, "bool")),
    }),
    Row("fail", 1, 1, |call| Err(call.text(0)?.to_owned())),
    Row("toString", 1, 1, |call| call.reply(print::default(call.arg(0))?)),
    Row("typeOf", 1, 1, |call| call.reply(call.arg(0).type_name())),
    Row("typeIs", 2, 2, |call| Ok(Value::Bool(call.arg(1).type_name() == call.text(0)?))),
    Row("typeIsLike", 2, 2, |call| {
        let (name, wanted) = (call.arg(1).type_name(), call.text(0)?);
        Ok(Value::Bool(name == wanted || name.strip_prefix('*') == Some(wanted)))
    }),
    Row("kindOf", 1, 1, |call| call.reply(call.arg(0).kind())),
    Row("kindIs", 2, 2, |call| Ok(Value::Bool(call.arg(1).kind() == call.text(0)?))),
    Row("deepEqual", 2, 2, |call| Ok(Value::Bool(call.arg(0).deep_equal(call.arg(1))))),
    Row("hello", 0, 0, |call| call.reply("Hello!")),
    Row("semver", 1, 1, |call| {
        let version = semver::Version::parse(call.text(0)?).ok_or("Invalid Semantic Version")?;
        let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        call.reply_map([
            ("Major".into(), number(version.numbers[0])),
            ("Minor".into(), number(version.numbers[1])),
            ("Patch".into(), number(version.numbers[2])),
            ("Prerelease".into(), Value::text(&version.before)),
            ("Metadata".into(), Value::text(&version.build)),
            ("Original".into(), Value::text(call.text(0)?)),
        ])
    }),
    Row("semverCompare", 2, 2, |call: &mut Call<'_>| {
        let version = semver::Version::parse(call.text(1)?).ok_or("Invalid Semantic Version")?;
        semver::matches(call.text(0)?, &version).map(Value::Bool)
    }),
];

/// sprig's notion of empty: Go's zero values.
fn empty(value: &Value) -> bool {
    !value.truth()
}
