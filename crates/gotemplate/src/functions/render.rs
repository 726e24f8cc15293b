//! Helm's functions that render, and those that ask a cluster.

use super::{Call, Row};
use crate::{Error, Value, eval::Failure};

pub(super) const TABLE: &[Row] = &[
    Row("include", 2, 2, |call| {
        let output = call.session().execute(call.text(0)?, call.arg(1)).map_err(Failure::into_message)?;
        Ok(Value::text(&output))
    }),
    Row("tpl", 2, 2, |call| render_in(call, "gotpl", call.text(0)?, call.arg(1))),
    Row("required", 2, 2, |call| match call.arg(1) {
        Value::Nil => Err(call.text(0)?.to_owned()),
        Value::String(text) if text.is_empty() => Err(call.text(0)?.to_owned()),
        value => Ok(value.clone()),
    }),
    // Without a cluster, as `helm template`.
    Row("lookup", 4, 4, |call| call.reply_map([])),
    Row("getHostByName", 1, 1, |call| call.reply("")),
];

/// Renders text as a template that sees all templates of the rendering.
pub fn render_in(call: &Call<'_>, name: &str, text: &str, dot: &Value) -> Result<Value, String> {
    let session = call.session();
    call.heap().step(text.len() / 16 + session.templates.trees.len())?;
    let mut templates = session.templates.clone();
    templates.add(name, text).map_err(|error: Error| error.to_string())?;
    let output = session.with(&templates).execute(name, dot).map_err(Failure::into_message)?;
    Ok(Value::text(&output.replace("<no value>", "")))
}
