//! Plans as tables.

use std::fmt::Write;

use expect_test::{Expect, expect};

use super::{Given, Plan, ProxyRole, Settings, plan};
use crate::up::address::Addresses;
use crate::up::image::Images;
use crate::up::objects::read_text;

fn given() -> Given {
    Given { pods: Addresses::new(10, 244), services: Addresses::new(10, 96) }
}

fn plan_of(text: &str, given: &mut Given) -> Plan {
    let images = [("shop/web".to_owned(), "./web --fast".to_owned())];
    plan(&read_text(text), &Settings { images: Images::new(&images).unwrap(), mounts: true }, given)
}

fn render(plan: &Plan) -> String {
    let mut text = String::new();
    for (key, pod) in &plan.pods {
        let proxy = match pod.proxy {
            ProxyRole::None => "no proxy",
            ProxyRole::Sidecar => "sidecar",
            ProxyRole::Gateway => "gateway",
        };
        let containers: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
        writeln!(text, "pod {key} {} {proxy} [{}]", pod.address, containers.join(" ")).unwrap();
    }
    for (key, address) in &plan.services {
        writeln!(text, "service {key} {address}").unwrap();
    }
    for (port, publication) in &plan.publications {
        writeln!(text, "port {port} -> {}:{} {}", publication.pod, publication.target, publication.protocol)
            .unwrap();
    }
    for problem in &plan.problems {
        writeln!(text, "{problem}").unwrap();
    }
    text
}

fn check(text: &str, expected: &Expect) {
    expected.assert_eq(&render(&plan_of(text, &mut given())));
}

fn deployment(name: &str, image: &str, replicas: u32, extra: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{}}\n  template:\n    metadata: {{labels: {{app: {name}{extra}}}}}\n    spec:\n      \
         containers:\n      - name: {name}\n        image: {image}\n---\n"
    )
}

const INJECTED: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio-injection: enabled}}\n---\n";

const GATEWAY: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: way}\nspec:\n  \
     selector: {istio: ingressgateway}\n  servers:\n  - port: {number: 80, name: http, protocol: HTTP}\n    hosts: ['*']\n---\n";

#[test]
fn the_bookshop() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo");
    let objects = crate::up::objects::Folders::default().read(&[folder.into()]);
    let plan = plan(&objects, &Settings { images: Images::default(), mounts: true }, &mut given());
    let roles = |role| plan.pods.values().filter(|pod| pod.proxy == role).count();
    assert_eq!((roles(ProxyRole::Sidecar), roles(ProxyRole::Gateway), roles(ProxyRole::None)), (6, 1, 0));
    assert_eq!(plan.services.len(), 4);
    assert_eq!(plan.publications.keys().copied().collect::<Vec<_>>(), [8080]);
    assert_eq!(plan.problems, []);
}

#[test]
fn injection() {
    let text = [
        INJECTED,
        &deployment("web", "shop/web:1", 2, ""),
        &deployment("bare", "shop/web:1", 1, ", sidecar.istio.io/inject: 'false'"),
    ]
    .concat();
    check(
        &text,
        &expect![[r#"
        pod default/bare-xptnp4bl5w-kpmmr 10.244.134.136 no proxy [bare]
        pod default/web-6t8qx2h5ll-l9wgr 10.244.101.231 sidecar [web]
        pod default/web-6t8qx2h5ll-vn2cw 10.244.168.23 sidecar [web]
    "#]],
    );
}

#[test]
fn images_without_a_command() {
    check(
        &deployment("web", "shop/db:1", 1, ""),
        &expect![[r#"
        mesh.yaml:12:9: spec.template.spec.containers[0].image: no local command is known for "shop/db:1", so Deployment default/web is not run; name one with --image shop/db=COMMAND
    "#]],
    );
}

#[test]
fn gateways_of_the_runner() {
    check(
        GATEWAY,
        &expect![[r#"
        pod istio-system/istio-ingressgateway-22vfm 10.244.94.91 gateway []
        port 80 -> istio-system/istio-ingressgateway-22vfm:80 HTTP
    "#]],
    );
}

#[test]
fn gateways_of_the_user() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: mine, namespace: edge}\nspec:\n  selector: {}\n  \
         template:\n    metadata:\n      annotations: {inject.istio.io/templates: gateway}\n      \
         labels: {istio: ingressgateway}\n    spec:\n      containers: [{name: istio-proxy, image: auto}]\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: mine, namespace: edge}\nspec:\n  \
         selector: {istio: ingressgateway}\n  ports: [{port: 80, targetPort: 8080}]\n---\n";
    check(
        &[text, GATEWAY].concat(),
        &expect![[r#"
        pod edge/mine-9wtxsrs27d-ssqnr 10.244.23.167 gateway []
        service edge/mine 10.96.252.190
        port 80 -> edge/mine-9wtxsrs27d-ssqnr:8080 HTTP
    "#]],
    );
}

#[test]
fn other_kinds() {
    let text = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db}\nspec:\n  replicas: 2\n  serviceName: db\n  \
         selector: {}\n  template: {spec: {containers: [{name: db, image: shop/web}]}}\n---\n\
         apiVersion: batch/v1\nkind: Job\nmetadata: {name: once}\nspec:\n  \
         template: {spec: {restartPolicy: Never, containers: [{name: once, image: shop/web}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: alone}\nspec: {containers: [{name: a, image: shop/web}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: fixed}\nspec: {clusterIP: 10.96.7.7}\n---\n";
    check(
        text,
        &expect![[r#"
        pod default/alone 10.244.180.58 no proxy [a]
        pod default/db-0 10.244.82.77 no proxy [db]
        pod default/db-1 10.244.89.3 no proxy [db]
        pod default/once-hwpr7 10.244.170.165 no proxy [once]
        service default/fixed 10.96.7.7
    "#]],
    );
}

#[test]
fn names_and_addresses_stay_when_the_number_of_replicas_changes() {
    let mut given = given();
    let two = plan_of(&deployment("web", "shop/web", 2, ""), &mut given);
    let three = plan_of(&deployment("web", "shop/web", 3, ""), &mut given);
    assert!(two.pods.iter().all(|(key, pod)| three.pods.get(key) == Some(pod)));
    let changed = plan_of(&deployment("web", "shop/web:2", 3, ""), &mut given);
    assert!(three.pods.keys().all(|key| !changed.pods.contains_key(key)));
}
