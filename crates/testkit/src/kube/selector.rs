//! Label selectors and field selectors.

use serde_json::Value;

use super::status::Failure;

/// A label selector in the form of a query parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Labels {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// If it is malformed.
    pub(super) fn parse(text: &str) -> Result<Labels, Failure> {
        let mut requirements = Vec::new();
        for part in split_outside(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            let broken = || Failure::bad_request(format!("unable to parse requirement: {part:?}"));
            let set = |rest: &str| -> Option<Vec<String>> {
                let inner = rest.trim().strip_prefix('(')?.strip_suffix(')')?;
                Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
            };
            let requirement = if let Some((key, rest)) = part.split_once(" notin ") {
                Requirement::NotIn(key.trim().to_owned(), set(rest).ok_or_else(broken)?)
            } else if let Some((key, rest)) = part.split_once(" in ") {
                Requirement::In(key.trim().to_owned(), set(rest).ok_or_else(broken)?)
            } else if let Some((key, value)) = part.split_once("!=") {
                Requirement::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()])
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                Requirement::In(key.trim().to_owned(), vec![value.trim().to_owned()])
            } else if let Some(key) = part.strip_prefix('!') {
                Requirement::Absent(key.trim().to_owned())
            } else if part.contains([' ', '(', ')']) {
                return Err(broken());
            } else {
                Requirement::Exists(part.to_owned())
            };
            requirements.push(requirement);
        }
        Ok(Labels(requirements))
    }

    /// The `LabelSelector` of an API object.
    pub(super) fn from_value(selector: &Value) -> Labels {
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements
                .push(Requirement::In(key.clone(), vec![value.as_str().unwrap_or_default().to_owned()]));
        }
        for rule in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = rule.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
            let values = rule.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(match rule.get("operator").and_then(Value::as_str) {
                Some("In") => Requirement::In(key, values),
                Some("NotIn") => Requirement::NotIn(key, values),
                Some("DoesNotExist") => Requirement::Absent(key),
                _ => Requirement::Exists(key),
            });
        }
        Labels(requirements)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                label(key).is_some_and(|own| values.iter().any(|value| value == own))
            }
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|own| values.iter().all(|value| value != own))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        })
    }
}

/// The parts between commas that are not within parentheses.
fn split_outside(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// A field selector: `metadata.name=a,spec.nodeName!=b`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSelector(Vec<(String, bool, String)>);

/// The fields that can be selected beside name and namespace, of any kind.
const SELECTABLE: [&str; 16] = [
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.unschedulable",
    "spec.type",
    "spec.clusterIP",
    "status.phase",
    "status.podIP",
    "type",
    "reason",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
    "involvedObject.apiVersion",
];

impl FieldSelector {
    /// Reads a field selector.
    ///
    /// # Errors
    /// If it is malformed or names a field that cannot be selected.
    pub(super) fn parse(text: &str) -> Result<FieldSelector, Failure> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, equal, value) = if let Some((key, value)) = part.split_once("!=") {
                (key, false, value)
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (key, true, value)
            } else {
                return Err(Failure::bad_request(format!("invalid selector: {part:?}; can't understand it")));
            };
            let known = matches!(key, "metadata.name" | "metadata.namespace")
                || SELECTABLE.contains(&key)
                || key.starts_with("involvedObject.");
            if !known {
                return Err(Failure::bad_request(format!("field label not supported: {key}")));
            }
            terms.push((key.to_owned(), equal, value.to_owned()));
        }
        Ok(FieldSelector(terms))
    }

    /// The name that it asks for.
    pub(super) fn name(&self) -> Option<&str> {
        let (.., name) = self.0.iter().find(|(path, equal, _)| path == "metadata.name" && *equal)?;
        Some(name)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, equal, value)| {
            let found = path.split('.').try_fold(object, |at, key| at.get(key));
            let own = match found {
                Some(Value::String(text)) => text.clone(),
                None | Some(Value::Null) => String::new(),
                Some(other) => other.to_string(),
            };
            (own == *value) == *equal
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{FieldSelector, Labels};

    #[test]
    fn labels() {
        let object = json!({ "metadata": { "labels": { "app": "web", "v": "1" } } });
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,v!=2", true),
            ("app in (a, web),v notin (2,3)", true),
            ("app,!x", true),
            ("x", false),
            ("!app", false),
            ("app in (a,b)", false),
            ("x!=1", true),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(&object), expected, "{text}");
        }
        assert!(Labels::parse("a b").is_err());
        let selector = json!({ "matchLabels": { "app": "web" },
            "matchExpressions": [{ "key": "v", "operator": "NotIn", "values": ["1"] }] });
        assert!(!Labels::from_value(&selector).matches(&object));
    }

    #[test]
    fn fields() {
        let object = json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "n" } });
        for (text, expected) in
            [("metadata.name=a", true), ("metadata.name!=a", false), ("spec.nodeName=n,status.phase=", true)]
        {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(&object), expected, "{text}");
        }
        assert!(FieldSelector::parse("spec.foo=1").is_err());
    }
}
