//! sprig's functions for maps.

use std::rc::Rc;

use super::{ANY, Call, Row, wrong};
use crate::{
    Heap, Map, Value, print,
    value::{MAX_DEPTH, too_deep},
};

pub(super) const TABLE: &[Row] = &[
    Row("dict", 0, ANY, dict),
    Row("get", 2, 2, |call| {
        let found = call.map(0)?.and_then(|map| map.find(call.text(1).unwrap_or_default()));
        call.text(1)?;
        Ok(found.unwrap_or_else(|| Value::text("")))
    }),
    Row("set", 3, 3, |call| {
        let Value::Map(map) = call.arg(0) else { return Err(wrong(call.arg(0), "map[string]interface {}")) };
        call.heap().spend(call.text(1)?.len())?;
        map.insert(call.text(1)?, call.arg(2).clone());
        Ok(call.arg(0).clone())
    }),
    Row("unset", 2, 2, |call| {
        if let Some(map) = call.map(0)? {
            map.remove(call.text(1)?);
        }
        Ok(call.arg(0).clone())
    }),
    Row("hasKey", 2, 2, |call| {
        let key = call.text(1)?;
        Ok(Value::Bool(call.map(0)?.is_some_and(|map| map.find(key).is_some())))
    }),
    Row("keys", 0, ANY, |call| {
        let mut keys = Vec::new();
        for index in 0..call.args().len() {
            let entries = call.map(index)?.map(Map::entries).unwrap_or_default();
            keys.extend(entries.into_iter().map(|(key, _)| Value::String(key)));
        }
        call.reply_list(keys)
    }),
    Row("values", 1, 1, |call| {
        let entries = call.map(0)?.map(Map::entries).unwrap_or_default();
        call.reply_list(entries.into_iter().map(|(_, value)| value).collect())
    }),
    Row("pluck", 1, ANY, |call| {
        let key = call.text(0)?;
        let mut found = Vec::new();
        for index in 1..call.args().len() {
            found.extend(call.map(index)?.and_then(|map| map.find(key)));
        }
        call.reply_list(found)
    }),
    Row("pick", 1, ANY, |call| chosen(call, true)),
    Row("omit", 1, ANY, |call| chosen(call, false)),
    Row("merge", 1, ANY, |call| merge(call, false)),
    Row("mustMerge", 1, ANY, |call| merge(call, false)),
    Row("mergeOverwrite", 1, ANY, |call| merge(call, true)),
    Row("mustMergeOverwrite", 1, ANY, |call| merge(call, true)),
    Row("deepCopy", 1, 1, |call| copy(call.heap(), call.arg(0), 0)),
    Row("mustDeepCopy", 1, 1, |call| copy(call.heap(), call.arg(0), 0)),
    Row("dig", 3, ANY, |call| {
        let (Some(target), [keys @ .., default, _]) = (call.args().last(), call.args()) else {
            return Ok(Value::Nil);
        };
        let mut value = target.clone();
        for key in keys {
            let Value::String(key) = key else { return Err(wrong(key, "string")) };
            let Value::Map(map) = &value else { return Err(wrong(&value, "map[string]interface {}")) };
            match map.find(key) {
                Some(found) => value = found,
                None => return Ok(default.clone()),
            }
        }
        Ok(value)
    }),
];

fn dict(call: &mut Call<'_>) -> Result<Value, String> {
    let mut entries = Vec::new();
    for pair in call.args().chunks(2) {
        let (Some(key), value) = (pair.first(), pair.get(1)) else { continue };
        let key: Rc<str> = match key {
            Value::String(key) => Rc::clone(key),
            other => print::default(other)?.into(),
        };
        entries.push((key, value.cloned().unwrap_or_else(|| Value::text(""))));
    }
    call.reply_map(entries)
}

fn chosen(call: &mut Call<'_>, wanted: bool) -> Result<Value, String> {
    let mut keys = Vec::new();
    for index in 1..call.args().len() {
        keys.push(call.text(index)?);
    }
    let entries = call.map(0)?.map(Map::entries).unwrap_or_default();
    call.reply_map(entries.into_iter().filter(|(key, _)| keys.contains(&&**key) == wanted))
}

/// Merges maps into the first one, which is changed.
fn merge(call: &mut Call<'_>, overwrite: bool) -> Result<Value, String> {
    let Value::Map(target) = call.arg(0) else { return Err(wrong(call.arg(0), "map[string]interface {}")) };
    for index in 1..call.args().len() {
        if let Some(source) = call.map(index)? {
            merge_into(call.heap(), target, source, overwrite, 0)?;
        }
    }
    Ok(call.arg(0).clone())
}

fn merge_into(heap: &Heap, target: &Map, source: &Map, overwrite: bool, depth: u16) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    for (key, value) in source.entries() {
        heap.step(1)?;
        match (target.find(&key), &value) {
            (Some(Value::Map(inner)), Value::Map(other)) => {
                if !inner.is(other) {
                    merge_into(heap, &inner, other, overwrite, depth + 1)?;
                }
            }
            // Without overwriting only what is empty is replaced.
            (Some(old), _) => {
                if overwrite || !old.truth() {
                    target.insert(&key, value);
                }
            }
            (None, _) => target.insert(&key, value),
        }
    }
    Ok(())
}

fn copy(heap: &Heap, value: &Value, depth: u16) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    heap.step(1)?;
    match value {
        Value::List(list) => {
            heap.list(list.items().iter().map(|item| copy(heap, item, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Map(map) => {
            let entries = map.entries().into_iter();
            let entries = entries.map(|(key, item)| Ok::<_, String>((key, copy(heap, &item, depth + 1)?)));
            let entries = entries.collect::<Result<_, _>>()?;
            Ok(Value::Map(if map.is_strings() { heap.strings(entries) } else { heap.map(entries) }))
        }
        other => Ok(other.clone()),
    }
}
