//! sprig's functions for lists.

use super::{ANY, Call, Row, text::whole};
use crate::{Value, print};

pub(super) const TABLE: &[Row] = &[
    Row("list", 0, ANY, |call| call.reply_list(call.args().to_vec())),
    Row("tuple", 0, ANY, |call| call.reply_list(call.args().to_vec())),
    Row("append", 2, 2, |call| push(call, false)),
    Row("push", 2, 2, |call| push(call, false)),
    Row("mustAppend", 2, 2, |call| push(call, false)),
    Row("prepend", 2, 2, |call| push(call, true)),
    Row("mustPrepend", 2, 2, |call| push(call, true)),
    Row("concat", 0, ANY, |call| {
        let mut all = Vec::new();
        for index in 0..call.args().len() {
            all.extend_from_slice(call.list(index)?.items());
        }
        call.reply_list(all)
    }),
    Row("first", 1, 1, |call| Ok(call.list(0)?.items().first().cloned().unwrap_or(Value::Nil))),
    Row("mustFirst", 1, 1, |call| Ok(call.list(0)?.items().first().cloned().unwrap_or(Value::Nil))),
    Row("last", 1, 1, |call| Ok(call.list(0)?.items().last().cloned().unwrap_or(Value::Nil))),
    Row("mustLast", 1, 1, |call| Ok(call.list(0)?.items().last().cloned().unwrap_or(Value::Nil))),
    Row("rest", 1, 1, |call| call.reply_list(call.list(0)?.items().get(1..).unwrap_or_default().to_vec())),
    Row("mustRest", 1, 1, |call| {
        call.reply_list(call.list(0)?.items().get(1..).unwrap_or_default().to_vec())
    }),
    Row("initial", 1, 1, |call| {
        let items = call.list(0)?.items();
        call.reply_list(items.split_last().map_or(Vec::new(), |(_, rest)| rest.to_vec()))
    }),
    Row("reverse", 1, 1, |call| call.reply_list(call.list(0)?.items().iter().rev().cloned().collect())),
    Row("uniq", 1, 1, |call| {
        let items = call.list(0)?.items();
        call.heap().step(items.len().saturating_mul(items.len()) / 8)?;
        let mut seen: Vec<Value> = Vec::new();
        for item in items {
            if !seen.iter().any(|known| known.deep_equal(item)) {
                seen.push(item.clone());
            }
        }
        call.reply_list(seen)
    }),
    Row("compact", 1, 1, |call| {
        call.reply_list(call.list(0)?.items().iter().filter(|item| item.truth()).cloned().collect())
    }),
    Row("without", 1, ANY, |call| {
        let items = call.list(0)?.items();
        let without = |item: &&Value| !call.rest(1).iter().any(|other| other.deep_equal(item));
        call.reply_list(items.iter().filter(without).cloned().collect())
    }),
    Row("has", 2, 2, |call| match call.arg(1) {
        Value::Nil => Ok(Value::Bool(false)),
        _ => Ok(Value::Bool(call.list(1)?.items().iter().any(|item| item.deep_equal(call.arg(0))))),
    }),
    Row("mustHas", 2, 2, |call| {
        Ok(Value::Bool(call.list(1)?.items().iter().any(|item| item.deep_equal(call.arg(0)))))
    }),
    Row("slice", 1, 3, |call| {
        let items = call.list(0)?.items();
        let from = usize::try_from(call.rest(1).first().map_or(0, whole)).unwrap_or(usize::MAX);
        let to = match call.rest(1).get(1).map(whole) {
            None | Some(0) => items.len(),
            Some(to) => usize::try_from(to).unwrap_or(usize::MAX),
        };
        match items.get(from..to) {
            Some(part) => call.reply_list(part.to_vec()),
            None => Err("slice bounds out of range".to_owned()),
        }
    }),
    Row("sortAlpha", 1, 1, |call| {
        let mut texts = super::text::strings(call.arg(0))?;
        texts.sort();
        call.reply_list(texts.iter().map(|text| Value::text(text)).collect())
    }),
    Row("toStrings", 1, 1, |call| {
        call.reply_list(super::text::strings(call.arg(0))?.iter().map(|text| Value::text(text)).collect())
    }),
    Row("until", 1, 1, |call| {
        let end = whole(call.arg(0));
        count(call, 0, end, if end < 0 { -1 } else { 1 })
    }),
    Row("untilStep", 3, 3, |call| count(call, whole(call.arg(0)), whole(call.arg(1)), whole(call.arg(2)))),
    Row("seq", 0, 3, |call| {
        let at = |index| whole(call.arg(index));
        let (from, step, to) = match call.args().len() {
            0 => return call.reply(""),
            1 => (1, if at(0) < 1 { -1 } else { 1 }, at(0)),
            2 => (at(0), if at(1) < at(0) { -1 } else { 1 }, at(1)),
            _ => (at(0), at(1), at(2)),
        };
        let numbers = count(call, from, to.saturating_add(step.signum()), step)?;
        let Value::List(numbers) = numbers else { return Ok(Value::Nil) };
        let texts = numbers.items().iter().map(print::default).collect::<Result<Vec<_>, _>>()?;
        call.reply(texts.join(" "))
    }),
    Row("chunk", 2, 2, |call| {
        let size = usize::try_from(whole(call.arg(0))).unwrap_or(0).max(1);
        let Value::List(list) = call.arg(1) else {
            return Err(format!("Cannot chunk type {}", call.arg(1).kind()));
        };
        let chunks = list.items().chunks(size).map(|chunk| call.reply_list(chunk.to_vec()));
        call.reply_list(chunks.collect::<Result<_, _>>()?)
    }),
];

fn push(call: &mut Call<'_>, front: bool) -> Result<Value, String> {
    let Value::List(list) = call.arg(0) else {
        return Err(format!("Cannot push on type {}", call.arg(0).kind()));
    };
    let mut items = list.items().to_vec();
    if front {
        items.insert(0, call.arg(1).clone());
    } else {
        items.push(call.arg(1).clone());
    }
    call.reply_list(items)
}

/// Whole numbers from one up (or down) to another, without it.
fn count(call: &Call<'_>, from: i64, to: i64, step: i64) -> Result<Value, String> {
    if step == 0 || (to > from) != (step > 0) {
        return call.reply_list(Vec::new());
    }
    call.heap().step(
        usize::try_from((i128::from(to) - i128::from(from)).abs() / i128::from(step).abs())
            .unwrap_or(usize::MAX),
    )?;
    let mut numbers = Vec::new();
    let mut at = from;
    while if step > 0 { at < to } else { at > to } {
        numbers.push(Value::Int(at));
        let Some(next) = at.checked_add(step) else { break };
        at = next;
    }
    call.reply_list(numbers)
}
