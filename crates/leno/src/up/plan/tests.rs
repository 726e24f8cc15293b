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
fn gateways_of_the_gateway_api() {
    let gateway = |name: &str, more: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, annotations: \
             {{gateway.istio.io/name-override: ''}}}}\nspec: {{{more}}}\n---\n"
        )
    };
    let (http, tls) =
        ("listeners: [{name: http, port: 80, protocol: HTTP}", "{name: a.b, port: 443, protocol: TLS}");
    let set = |namespace: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: more, namespace: \
             {namespace}}}\nspec: {{parentRef: {{name: one, namespace: default}}, listeners: [{{name: m, port: \
             {port}, protocol: TCP}}]}}\n---\n"
        )
    };
    let allowed = "allowedListeners: {namespaces: {from: Same}}";
    let class = |name: &str, controller: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: \
             {{controllerName: {controller}}}\n---\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: mine}\nspec: {selector: {istio: mine}, \
                   ports: [{port: 82, targetPort: 8082}]}\n---\n";
    let text = [
        gateway("one", &format!("gatewayClassName: istio, {allowed}, {http}, {tls}]")),
        set("default", 9000),
        set("elsewhere", 9001),
        gateway("two", &format!("gatewayClassName: ours, {http}]")),
        class("ours", "istio.io/gateway-controller"),
        gateway("strange", &format!("gatewayClassName: theirs, {http}]")),
        class("theirs", "example.com/controller"),
        gateway("unknown", &format!("gatewayClassName: nobodys, {http}]")),
        gateway(
            "manual",
            "gatewayClassName: istio, addresses: [{type: Hostname, value: mine.default.svc.cluster.local}], \
             listeners: [{name: h, port: 82, protocol: HTTP}]",
        ),
        service.to_owned(),
        gateway("taken", "gatewayClassName: istio, infrastructure: {parametersRef: {name: x}}, listeners: []"),
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: taken-istio}\nspec: {replicas: 0, selector: {}, \
         template: {spec: {containers: []}}}\n"
            .to_owned(),
    ];
    check(
        &text.concat(),
        &expect![[r#"
            pod default/one-istio-h7z9x6pwbc-6qt98 10.244.216.48 gateway []
            pod default/two-ours-jbtxb65pmp-4jhnb 10.244.92.18 gateway []
            service default/mine 10.96.69.167
            service default/one-istio 10.96.234.242
            service default/taken-istio 10.96.180.1
            service default/two-ours 10.96.3.47
            port 80 -> default/one-istio-h7z9x6pwbc-6qt98:80 HTTP
            port 443 -> default/one-istio-h7z9x6pwbc-6qt98:443 TLS
            port 9000 -> default/one-istio-h7z9x6pwbc-6qt98:9000 TCP
            mesh.yaml:54:50: spec.infrastructure.parametersRef: leno up has one way to run gateways, so this has no effect
            mesh.yaml:53:12: metadata.name: there is a Deployment default/taken-istio already, so none is made for this Gateway
            mesh.yaml:19:57: spec.listeners[0].port: port 80 is published for default/one, so not for this gateway
        "#]],
    );
    let objects = read_text(&gateway("one", &format!("gatewayClassName: istio, {http}, {tls}]")));
    let made = objects.services.values().map(|service| serde_json::to_value(&service.object).unwrap());
    let made: Vec<_> = made.collect();
    expect![[r#"
        [
          {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
              "annotations": {},
              "labels": {
                "gateway.istio.io/managed": "istio.io-gateway-controller",
                "gateway.networking.k8s.io/gateway-class-name": "istio",
                "gateway.networking.k8s.io/gateway-name": "one"
              },
              "name": "one-istio",
              "namespace": "default"
            },
            "spec": {
              "ports": [
                {
                  "appProtocol": "tcp",
                  "name": "status-port",
                  "port": 15021
                },
                {
                  "appProtocol": "http",
                  "name": "http",
                  "port": 80
                },
                {
                  "appProtocol": "tls",
                  "name": "a-b",
                  "port": 443
                }
              ],
              "selector": {
                "gateway.networking.k8s.io/gateway-name": "one"
              },
              "type": "LoadBalancer"
            }
          }
        ]"#]]
    .assert_eq(&serde_json::to_string_pretty(&made).unwrap());
    let pods = objects.workloads.iter().map(|it| format!("{} {:?} {:?}", it.key, it.labels, it.annotations));
    expect![[r#"default/one-istio {"gateway.istio.io/managed": "istio.io-gateway-controller", "gateway.networking.k8s.io/gateway-class-name": "istio", "gateway.networking.k8s.io/gateway-name": "one", "service.istio.io/canonical-name": "one-istio", "service.istio.io/canonical-revision": "latest", "sidecar.istio.io/inject": "false"} {"inject.istio.io/templates": "gateway"}"#]].assert_eq(&pods.collect::<Vec<_>>().join("\n"));
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
