//! Failures as Kubernetes tells them: objects of the kind `Status`.

use serde_json::{Value, json};

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status of the HTTP response.
    pub code: u16,
    /// The reason in one word, as `NotFound`.
    pub reason: &'static str,
    /// What is wrong.
    pub message: String,
    /// Name, group and kind of the object, as far as known.
    pub(super) about: Option<(String, String, String)>,
    /// Single faults: field and message.
    pub(super) causes: Vec<(String, String, &'static str)>,
}

impl Failure {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, reason, message: message.into(), about: None, causes: Vec::new() }
    }

    pub(super) fn about(mut self, name: &str, group: &str, kind: &str) -> Failure {
        self.about = Some((name.to_owned(), group.to_owned(), kind.to_owned()));
        self
    }

    pub(super) fn not_found(group: &str, plural: &str, name: &str) -> Failure {
        let resource = qualified(group, plural);
        Failure::new(404, "NotFound", format!("{resource} \"{name}\" not found")).about(name, group, plural)
    }

    pub(super) fn no_path() -> Failure {
        Failure::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(super) fn exists(group: &str, plural: &str, name: &str) -> Failure {
        let resource = qualified(group, plural);
        Failure::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
            .about(name, group, plural)
    }

    pub(super) fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Failure {
        let resource = qualified(group, plural);
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Failure::new(409, "Conflict", message).about(name, group, plural)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "BadRequest", message)
    }

    pub(super) fn expired(message: &str) -> Failure {
        Failure::new(410, "Expired", message)
    }

    pub(super) fn forbidden(user: &str, verb: &str, group: &str, plural: &str, namespace: &str) -> Failure {
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let resource = qualified(group, plural);
        let message = format!(
            "{resource} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API group \"{group}\" {place}"
        );
        Failure::new(403, "Forbidden", message).about("", group, plural)
    }

    /// Faults of fields: `(path, message)`.
    pub(super) fn invalid(group: &str, kind: &str, name: &str, faults: &[(String, String)]) -> Failure {
        let list: Vec<String> = faults.iter().map(|(path, message)| format!("{path}: {message}")).collect();
        let all = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let resource = qualified(group, kind);
        let mut failure = Failure::new(422, "Invalid", format!("{resource} \"{name}\" is invalid: {all}"));
        failure.causes = faults
            .iter()
            .map(|(path, message)| (path.clone(), message.clone(), "FieldValueInvalid"))
            .collect();
        failure.about(name, group, kind)
    }

    /// The object of the kind `Status` that the client is sent.
    pub(super) fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        let mut details = serde_json::Map::new();
        if let Some((name, group, kind)) = &self.about {
            for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
                if !value.is_empty() {
                    details.insert(key.to_owned(), Value::from(value.as_str()));
                }
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter();
            let causes: Value = causes
                .map(|(field, message, reason)| json!({ "field": field, "message": message, "reason": reason }))
                .collect();
            details.insert("causes".to_owned(), causes);
        }
        if let (false, Some(status)) = (details.is_empty(), status.as_object_mut()) {
            status.insert("details".to_owned(), Value::from(details));
        }
        status
    }
}

fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}
