//! Who may do what, by the Roles, ClusterRoles and bindings that are stored, as the real server's RBAC authorizer
//! decides it. It is asked if [`super::ApiServer::authorize`] was called.
//!
//! Not there: aggregated ClusterRoles, rules of paths (discovery is for everybody), and the check that who writes a
//! role has all that it grants.

use serde_json::Value;

use super::object::text;
use super::state::{State, User};

const GROUP: &str = "rbac.authorization.k8s.io";

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes<'a> {
    /// As `get`, `list`, `create`.
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    /// The plural.
    pub(super) resource: &'a str,
    pub(super) subresource: &'a str,
    /// Empty: all, or the resource has none.
    pub(super) namespace: &'a str,
    /// Empty: not one object alone, or one that has no name yet.
    pub(super) name: &'a str,
}

/// Whether a binding gives somebody a role that allows it.
pub(super) fn allows(state: &State, user: &User, wanted: &Attributes<'_>) -> bool {
    if user.groups.iter().any(|group| group == "system:masters") {
        return true;
    }
    // Everybody may ask about himself (`system:basic-user`).
    if wanted.resource.starts_with("self") && wanted.resource.ends_with("reviews") && wanted.verb == "create"
    {
        return true;
    }
    let bound = |plural: &str, namespace: &str| {
        let bindings = state.store.list(&(GROUP.to_owned(), plural.to_owned()), namespace);
        bindings.filter(|binding| is_subject(binding, user)).any(|binding| {
            let (kind, name) = (text(binding, &["roleRef", "kind"]), text(binding, &["roleRef", "name"]));
            let role = match kind {
                "ClusterRole" => state.find_raw(GROUP, "clusterroles", "", name),
                _ => state.find_raw(GROUP, "roles", namespace, name),
            };
            let rules = role.as_ref().and_then(|role| role.get("rules")?.as_array());
            rules.into_iter().flatten().any(|rule| covers(rule, wanted))
        })
    };
    bound("clusterrolebindings", "")
        || (!wanted.namespace.is_empty() && bound("rolebindings", wanted.namespace))
}

fn is_subject(binding: &Value, user: &User) -> bool {
    let namespace = text(binding, &["metadata", "namespace"]);
    let subjects = binding.get("subjects").and_then(Value::as_array);
    subjects.into_iter().flatten().any(|subject| {
        let name = text(subject, &["name"]);
        match text(subject, &["kind"]) {
            "User" => user.name == name,
            "Group" => user.groups.iter().any(|group| group == name),
            "ServiceAccount" => {
                let own = text(subject, &["namespace"]);
                let of = if own.is_empty() { namespace } else { own };
                user.name == format!("system:serviceaccount:{of}:{name}")
            }
            _ => false,
        }
    })
}

fn covers(rule: &Value, wanted: &Attributes<'_>) -> bool {
    let list = |field: &str| {
        let values = rule.get(field).and_then(Value::as_array).into_iter().flatten();
        values.filter_map(Value::as_str)
    };
    let resource = match wanted.subresource {
        "" => wanted.resource.to_owned(),
        subresource => format!("{}/{subresource}", wanted.resource),
    };
    let any_of = |known: &str| known.strip_prefix("*/").is_some_and(|it| it == wanted.subresource);
    let mut names = list("resourceNames").peekable();
    list("verbs").any(|it| it == "*" || it == wanted.verb)
        && list("apiGroups").any(|it| it == "*" || it == wanted.group)
        && list("resources").any(|it| it == "*" || it == resource || any_of(it))
        && (names.peek().is_none() || names.any(|it| it == wanted.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Attributes, allows};
    use crate::kube::state::{Shared, User, lock};

    #[test]
    fn who_may_do_what() {
        let shared = Shared::new();
        let mut state = lock(&shared.state);
        let role = |kind: &str, name: &str, rules: serde_json::Value| {
            json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": { "name": name, "namespace": "a" }, "rules": rules })
        };
        let binding = |kind: &str, role: &str, subject: serde_json::Value| {
            json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": { "name": role, "namespace": "a" },
                "roleRef": { "kind": if kind == "RoleBinding" { "Role" } else { "ClusterRole" }, "name": role },
                "subjects": [subject] })
        };
        let account = json!({ "kind": "ServiceAccount", "name": "x", "namespace": "a" });
        for object in [
            role(
                "ClusterRole",
                "reads",
                json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] }]),
            ),
            binding("ClusterRoleBinding", "reads", account.clone()),
            role(
                "Role",
                "writes",
                json!([
                    { "apiGroups": [""], "resources": ["secrets"], "verbs": ["create"] },
                    { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["key"], "verbs": ["update"] },
                    { "apiGroups": ["apps"], "resources": ["*/status"], "verbs": ["*"] },
                ]),
            ),
            binding("RoleBinding", "writes", account),
            role("ClusterRole", "all", json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }])),
            binding("ClusterRoleBinding", "all", json!({ "kind": "Group", "name": "admins" })),
        ] {
            state.put_raw(object).expect("it is good");
        }
        let user = |name: &str, group: &str| User { name: name.to_owned(), groups: vec![group.to_owned()] };
        let own = user("system:serviceaccount:a:x", "system:authenticated");
        let of = |verb, group, resource, namespace, name| Attributes {
            verb,
            group,
            resource,
            namespace,
            name,
            ..Attributes::default()
        };
        for (wanted, expected) in [
            (of("get", "", "pods", "b", "p"), true),
            (of("list", "", "pods", "", ""), true),
            (of("watch", "", "pods", "", ""), false),
            (of("get", "apps", "pods", "b", "p"), false),
            (of("create", "", "secrets", "a", ""), true),
            (of("create", "", "secrets", "b", ""), false),
            (of("update", "", "secrets", "a", "key"), true),
            (of("update", "", "secrets", "a", "other"), false),
            (of("list", "", "secrets", "a", ""), false),
            (Attributes { subresource: "status", ..of("patch", "apps", "deployments", "a", "d") }, true),
            (Attributes { subresource: "scale", ..of("patch", "apps", "deployments", "a", "d") }, false),
            (of("patch", "apps", "deployments", "a", "d"), false),
            (of("create", "authorization.k8s.io", "selfsubjectaccessreviews", "", ""), true),
            (of("create", "authorization.k8s.io", "subjectaccessreviews", "", ""), false),
        ] {
            assert_eq!(allows(&state, &own, &wanted), expected, "{wanted:?}");
        }
        let wanted = of("delete", "x", "y", "z", "w");
        assert!(allows(&state, &user("u", "admins"), &wanted));
        assert!(allows(&state, &user("u", "system:masters"), &wanted));
        assert!(!allows(&state, &user("u", "others"), &wanted));
    }
}
