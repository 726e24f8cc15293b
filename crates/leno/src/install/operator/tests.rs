//! What people say, and what comes of it.

use std::io::Write as _;

use expect_test::{Expect, expect};
use serde_json::json;

use super::{Inputs, Operator};
use crate::install::tree;

fn read(files: &[&str], set: &[&str]) -> Result<Operator, String> {
    let files: Vec<tempfile::NamedTempFile> = files
        .iter()
        .map(|text| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        })
        .collect();
    let inputs = Inputs {
        files: files.iter().map(|file| file.path().to_owned()).collect(),
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        ..Inputs::default()
    };
    Operator::read(&inputs).map_err(|error| {
        let mut text = error.to_string();
        for (at, file) in files.iter().enumerate() {
            text = text.replace(&file.path().display().to_string(), &format!("file{at}"));
        }
        text
    })
}

fn refused(files: &[&str], set: &[&str], expected: &Expect) {
    expected.assert_eq(&read(files, set).expect_err("it must be refused"));
}

#[test]
fn later_wins() {
    let operator = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata:\n  name: mine\nspec:\n  profile: minimal\n  \
        hub: one\n  tag: 1.5\n  meshConfig:\n    accessLogFile: /dev/stdout\n  components:\n    ingressGateways:\n    - name: other\n      enabled: true\n";
    let values = "global:\n  hub: two\npilot:\n  replicaCount: 3\n";
    let found = read(
        &[operator, values],
        &[
            "values.global.hub=three",
            "meshConfig.enableTracing=true",
            "components.ingressGateways[name:other].enabled=false",
            "revision=1",
        ],
    )
    .unwrap();
    assert_eq!(
        (found.name.as_str(), found.profile.as_str(), found.revision.as_str()),
        ("mine", "minimal", "1")
    );
    assert_eq!(found.namespace, "istio-system");
    let text = |path: &str| tree::text(&found.spec, path);
    assert_eq!(text("values.global.hub"), "three");
    assert_eq!(text("values.global.tag"), "1.5");
    assert_eq!(
        found.values()["meshConfig"],
        json!({ "accessLogFile": "/dev/stdout", "enableTracing": true })
    );
    assert_eq!(found.values()["pilot"], json!({ "replicaCount": 3 }));
    let gateways =
        json!([{ "name": "istio-ingressgateway", "enabled": false }, { "name": "other", "enabled": false }]);
    assert_eq!(found.spec["components"]["ingressGateways"], gateways);
    assert_eq!(Operator::from_json(&found.to_json()), found);
}

#[test]
fn names_and_places() {
    for (set, name, namespace) in [
        (&[][..], "installed-state", "istio-system"),
        (&["revision=canary"], "installed-state-canary", "istio-system"),
        (&["revision=default"], "installed-state", "istio-system"),
        (&["values.global.istioNamespace=mesh"], "installed-state", "mesh"),
        (&["namespace=mesh"], "installed-state", "mesh"),
    ] {
        let found = read(&[], set).unwrap();
        assert_eq!((found.name.as_str(), found.namespace.as_str()), (name, namespace), "{set:?}");
        assert_eq!(tree::text(&found.spec, "values.global.istioNamespace"), namespace);
    }
}

#[test]
fn what_is_wrong_has_a_place() {
    let operator = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  hubs: x\n  values:\n    global:\n      \
        proxy:\n        logLevle: debug\n  components:\n    ztunnel:\n      enabled: true\n";
    refused(
        &[operator, "globl: {}\n", "kind: Service\n", "a: [\n"],
        &[],
        &expect![[r#"file3:1:4: unclosed bracket '['"#]],
    );
    refused(
        &[operator, "globl: {}\n", "kind: Service\n"],
        &[
            "profile=demi",
            "revision=A_B",
            "global.hub=x",
            "values.pilot.replicas=2",
            "values.meshConfig",
            "components.base.enabled=maybe",
        ],
        &expect![[r#"
            file0:4:3: spec.hubs: unknown field "hubs"
            file0:8:9: spec.values.global.proxy.logLevle: unknown value "logLevle"
            file0:11:7: spec.components.ztunnel.enabled: not supported yet
            file1:1:1: globl: unknown value "globl"
            file2:1:1: kind: "Service" is neither an IstioOperator nor values
            --set global.hub=x: global: unknown field "global"; did you mean values.global?
            --set values.pilot.replicas=2: values.pilot.replicas: unknown value "replicas"
            --set values.meshConfig: it is not PATH=VALUE
            --set components.base.enabled=maybe: components.base.enabled: "maybe" must be true or false
            profile "demi" is not known, use one of default, demo, empty, minimal, openshift, preview
            revision: "A_B" is no name such as `1-2` or `canary`"#]],
    );
}

#[test]
fn what_nobody_checks() {
    let operator = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  unvalidatedValues:\n    pilot:\n      any: thing\n";
    let found = read(&[operator], &["values.pilot.replicaCount=2"]).unwrap();
    assert_eq!(found.values()["pilot"], json!({ "replicaCount": 2, "any": "thing" }));
}
