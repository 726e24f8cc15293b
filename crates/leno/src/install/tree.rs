//! Trees of settings (JSON values): merged, addressed by paths, set from the command line.
//!
//! A path is what istioctl's `--set` takes: names between dots (a dot in a name has `\` before it),
//! `[0]` for the element of a list, `[name:istio-ingressgateway]` for the one whose field has that
//! value, `[:value]` for the one that is that value. A dot before a bracket may be there or not.

use std::fmt;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The field of an object.
    Key(String),
    /// The element of a list.
    Index(usize),
    /// The first element of a list whose field has this value.
    Where(String, String),
    /// The first element of a list that is this value, or, for texts, matches it in front.
    Is(String),
}

/// A path into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path(pub(crate) Vec<Step>);

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// If a bracket is not closed, or a name is empty.
    pub(crate) fn parse(text: &str) -> Result<Path, String> {
        let mut steps = Vec::new();
        let mut letters = text.chars().peekable();
        while let Some(next) = letters.peek() {
            if *next == '[' {
                letters.next();
                let mut inner = String::new();
                let mut escaped = false;
                loop {
                    match letters.next() {
                        None => return Err(format!("{text:?}: a bracket is not closed")),
                        Some(']') if !escaped => break,
                        Some('\\') if !escaped => escaped = true,
                        Some(letter) => {
                            escaped = false;
                            inner.push(letter);
                        }
                    }
                }
                steps.push(match (inner.parse(), inner.split_once(':')) {
                    (Ok(index), _) => Step::Index(index),
                    (_, Some(("", value))) => Step::Is(value.to_owned()),
                    (_, Some((key, value))) => Step::Where(key.to_owned(), value.to_owned()),
                    (_, None) => return Err(format!("{text:?}: [{inner}] is neither [0] nor [key:value]")),
                });
                // What comes after a bracket needs no dot.
                if letters.peek() == Some(&'.') {
                    letters.next();
                    if letters.peek().is_none() {
                        return Err(format!("{text:?} ends with a dot"));
                    }
                }
                continue;
            }
            let mut name = String::new();
            let mut dot = false;
            while let Some(letter) = letters.peek().copied() {
                match letter {
                    '[' => break,
                    '.' => {
                        letters.next();
                        dot = true;
                        break;
                    }
                    '\\' => {
                        letters.next();
                        name.extend(letters.next());
                    }
                    letter => {
                        letters.next();
                        name.push(letter);
                    }
                }
            }
            if name.is_empty() || (dot && letters.peek().is_none()) {
                return Err(format!("{text:?}: a name is empty"));
            }
            steps.push(Step::Key(name));
        }
        if steps.is_empty() {
            return Err("a path is empty".to_owned());
        }
        Ok(Path(steps))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(name) => {
                    let dot = if at == 0 { "" } else { "." };
                    write!(f, "{dot}{}", name.replace('.', "\\."))?;
                }
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Where(key, value) => write!(f, "[{key}:{value}]")?,
                Step::Is(value) => write!(f, "[:{value}]")?,
            }
        }
        Ok(())
    }
}

/// What is at a path of plain names, as `spec.values.global`.
pub(crate) fn find<'v>(tree: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(tree, |at, name| at.get(name)).filter(|found| !found.is_null())
}

/// The text at a path of plain names; numbers as text. Empty if there is none.
pub(crate) fn text(tree: &Value, path: &str) -> String {
    match find(tree, path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Merges what comes over into what is below: objects key by key, everything else is replaced. What is
/// null goes away.
pub(crate) fn merge(below: &mut Value, over: &Value) {
    match (below, over) {
        (Value::Object(below), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    below.shift_remove(key);
                } else {
                    match below.get_mut(key) {
                        Some(there) => merge(there, value),
                        None => drop(below.insert(key.clone(), without_nulls(value))),
                    }
                }
            }
        }
        (below, over) => *below = without_nulls(over),
    }
}

/// The same without fields that are null.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        other => other.clone(),
    }
}

/// As [`merge`], where elements of the lists at `lists` (names between dots) are merged by their `name`.
pub(crate) fn merge_named(below: &mut Value, over: &Value, lists: &[&str]) {
    let mut over = over.clone();
    for list in lists {
        let Some(additions) = find(&over, list).and_then(Value::as_array).cloned() else { continue };
        let mut elements = find(below, list).and_then(Value::as_array).cloned().unwrap_or_default();
        for addition in additions {
            let name = addition.get("name").cloned().unwrap_or_default();
            match elements.iter_mut().find(|it| !name.is_null() && it.get("name") == Some(&name)) {
                Some(element) => merge(element, &addition),
                None => elements.push(addition),
            }
        }
        let keys: Vec<Step> = list.split('.').map(|key| Step::Key(key.to_owned())).collect();
        // The path is one of objects, which are made on the way.
        let _ = set(&mut over, &keys, Some(Value::Array(elements)));
    }
    merge(below, &over);
}

/// Sets what is at a path, making what is missing on the way; `None` takes it away.
///
/// # Errors
/// If there is something else on the way, or no such element.
pub(crate) fn set(tree: &mut Value, path: &[Step], value: Option<Value>) -> Result<(), String> {
    let Some((step, rest)) = path.split_first() else {
        *tree = value.unwrap_or_default();
        return Ok(());
    };
    if let Step::Key(name) = step {
        if tree.is_null() {
            *tree = Value::Object(Map::new());
        }
        let words = format!("{name:?} is looked for in what is no object");
        let Value::Object(object) = tree else { return Err(words) };
        if rest.is_empty() && value.is_none() {
            object.shift_remove(name);
            return Ok(());
        }
        let is_list = matches!(rest.first(), Some(Step::Index(_) | Step::Where(..) | Step::Is(_)));
        let empty = if is_list { Value::Array(Vec::new()) } else { Value::Null };
        let inner = object.entry(name.clone()).or_insert(empty);
        return set(inner, rest, value);
    }
    let Value::Array(items) = tree else {
        return Err("an element is looked for in what is no list".to_owned());
    };
    let at = match step {
        Step::Key(_) => None,
        Step::Index(index) => Some(*index).filter(|index| *index <= items.len()),
        Step::Where(key, wanted) => {
            let found = items.iter().position(|item| item.get(key).is_some_and(|it| is_text(it, wanted)));
            // The last step may make a new element, as `components.ingressGateways[name:x].enabled`.
            found.or_else(|| {
                let mut element = Map::new();
                element.insert(key.clone(), Value::from(wanted.as_str()));
                value.is_some().then(|| items.push(Value::Object(element))).map(|()| items.len() - 1)
            })
        }
        Step::Is(wanted) => items.iter().position(|item| {
            is_text(item, wanted) || item.as_str().is_some_and(|text| text.starts_with(wanted.as_str()))
        }),
    };
    let Some(at) = at else { return Err(format!("there is no element {}", Path(vec![step.clone()]))) };
    if rest.is_empty() && value.is_none() {
        if at < items.len() {
            items.remove(at);
        }
        return Ok(());
    }
    if at == items.len() {
        items.push(Value::Null);
    }
    match items.get_mut(at) {
        Some(item) => set(item, rest, value),
        None => Ok(()),
    }
}

fn is_text(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        // As it is written.
        other => format!("{other}") == wanted,
    }
}

/// What a text on the command line means: true, 1, 1.5, null, a JSON object or list, or text.
pub(crate) fn scalar(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ if text.starts_with(['{', '[']) => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        _ => {
            let is_plain = !text.starts_with('0') || text == "0" || text.starts_with("0.");
            let number = text.parse::<i64>().map(Value::from).ok();
            let fraction = || text.parse::<f64>().ok().filter(|it| it.is_finite() && text.contains('.'));
            let number = number.or_else(|| fraction().map(Value::from)).filter(|_| is_plain);
            number.unwrap_or_else(|| Value::from(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Path, merge, merge_named, scalar, set};

    #[test]
    fn paths() {
        for (text, expected) in [
            ("a.b", "a.b"),
            (r"a.b\.c/d", r"a.b\.c/d"),
            ("a[0].b", "a[0].b"),
            ("a.[name:x].b", "a[name:x].b"),
            (
                "spec.containers.[name:discovery].args.[:--domain]",
                "spec.containers[name:discovery].args[:--domain]",
            ),
        ] {
            assert_eq!(Path::parse(text).map(|path| path.to_string()).as_deref(), Ok(expected));
        }
        for bad in ["", ".a", "a..b", "a.", "a[0", "a[x]", "a[0]."] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_set() {
        let mut tree =
            json!({ "gateways": [{ "name": "a", "on": true }, { "name": "b" }], "args": ["--x=1", "y"] });
        for (path, value) in [
            ("values.global.hub", Some(json!("h"))),
            ("gateways[name:b].on", Some(json!(false))),
            ("gateways[name:c].on", Some(json!(true))),
            ("gateways[0].on", None),
            ("args[:--x]", Some(json!("--x=2"))),
            ("args[2]", Some(json!("z"))),
            ("missing.deep", None),
        ] {
            set(&mut tree, &Path::parse(path).unwrap().0, value).unwrap();
        }
        let gateways = json!([{ "name": "a" }, { "name": "b", "on": false }, { "name": "c", "on": true }]);
        assert_eq!(tree["gateways"], gateways);
        assert_eq!(tree["args"], json!(["--x=2", "y", "z"]));
        assert_eq!(tree["values"], json!({ "global": { "hub": "h" } }));
        for bad in ["args.x", "gateways[9]", "gateways[name:zz]", "values[0]"] {
            assert!(set(&mut tree, &Path::parse(bad).unwrap().0, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_merged() {
        let mut below = json!({ "a": { "b": 1, "c": [1] }, "g": [{ "name": "x", "on": true }] });
        merge(&mut below, &json!({ "a": { "b": null, "c": [2], "d": { "e": null, "f": 1 } } }));
        assert_eq!(below["a"], json!({ "c": [2], "d": { "f": 1 } }));
        merge_named(&mut below, &json!({ "g": [{ "name": "y" }, { "name": "x", "on": false }] }), &["g"]);
        assert_eq!(below["g"], json!([{ "name": "x", "on": false }, { "name": "y" }]));
    }

    #[test]
    fn scalars() {
        for (text, expected) in [
            ("true", json!(true)),
            ("12", json!(12)),
            ("-1", json!(-1)),
            ("0", json!(0)),
            ("007", json!("007")),
            ("1.5", json!(1.5)),
            ("1.2.3", json!("1.2.3")),
            ("nan", json!("nan")),
            ("{\"a\":1}", json!({ "a": 1 })),
            ("{x", json!("{x")),
            ("", json!("")),
        ] {
            assert_eq!(scalar(text), expected, "{text}");
        }
    }
}
