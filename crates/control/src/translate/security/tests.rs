//! What rules become for requests and for connections.

use expect_test::{Expect, expect};
use leno_api::encode::{self, Style};
use leno_api::proto::envoy::config::rbac::v3::{Rbac, rbac::Action};
use leno_api::yaml::{self, Dialect};
use prost::Message;

use super::authorization::rules;
use crate::model::authorization_policy::AuthorizationPolicy;
use crate::model::mesh::MeshConfig;
use crate::model::{Config, Meta};

/// Shows the rules of a policy with only some of them; `connections` asks for those of connections.
#[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
fn check(spec: &str, action: Action, connections: bool, expected: Expect) {
    let documents = yaml::parse(spec, Dialect::Kubernetes).unwrap();
    let (spec, unknown) = yaml::from_node::<AuthorizationPolicy>(&documents[0]).unwrap();
    assert!(unknown.is_empty());
    let meta = Meta { namespace: "a".to_owned(), name: "p".to_owned(), ..Meta::default() };
    let policy = Config { meta, spec };
    let message: Rbac = rules(&MeshConfig::default(), std::iter::once(&policy), action, connections, "");
    let value = encode::to_value("envoy.config.rbac.v3.RBAC", &message.encode_to_vec(), Style::default());
    expected.assert_eq(&serde_json::to_string(&value.unwrap()["policies"]).unwrap());
}

const MIXED: &str = "{rules: [
    {to: [{operation: {methods: [GET], ports: ['80']}}]},
    {to: [{operation: {ports: ['81']}}]},
    {from: [{source: {requestPrincipals: ['*']}}]}]}";

#[test]
fn what_lets_through_is_void_where_it_cannot_be_looked_at() {
    check(
        MIXED,
        Action::Allow,
        true,
        expect![[
            r#"{"ns[a]-policy[p]-rule[1]":{"permissions":[{"and_rules":{"rules":[{"or_rules":{"rules":[{"destination_port":81}]}}]}}],"principals":[{"and_ids":{"ids":[{"any":true}]}}]}}"#
        ]],
    );
}

#[test]
fn what_refuses_is_wider_where_it_cannot_be_looked_at() {
    check(
        MIXED,
        Action::Deny,
        true,
        expect![[
            r#"{"ns[a]-policy[p]-rule[0]":{"permissions":[{"and_rules":{"rules":[{"or_rules":{"rules":[{"destination_port":80}]}}]}}],"principals":[{"and_ids":{"ids":[{"any":true}]}}]},"ns[a]-policy[p]-rule[1]":{"permissions":[{"and_rules":{"rules":[{"or_rules":{"rules":[{"destination_port":81}]}}]}}],"principals":[{"and_ids":{"ids":[{"any":true}]}}]},"ns[a]-policy[p]-rule[2]":{"permissions":[{"and_rules":{"rules":[{"any":true}]}}],"principals":[{"and_ids":{"ids":[{"any":true}]}}]}}"#
        ]],
    );
}

#[test]
fn a_policy_without_rules_fits_nothing() {
    check(
        "{}",
        Action::Allow,
        false,
        expect![[
            r#"{"ns[a]-policy[p]-rule[0]":{"permissions":[{"not_rule":{"any":true}}],"principals":[{"not_id":{"any":true}}]}}"#
        ]],
    );
}
