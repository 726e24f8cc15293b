//! Bad input is reported with file, line and path, and everything else keeps serving.

use crate::load::{ask_until, client};
use crate::mesh::{Mesh, Proxy, namespaces};

const BROKEN_REGEX: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: ratings
spec:
  hosts: [ratings]
  http:
  - match:
    - uri:
        regex: '/ratings/(unclosed'
    route:
    - destination:
        host: ratings
";

const UNKNOWN_SUBSET: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: details
spec:
  hosts: [details]
  http:
  - match:
    - headers:
        x-none:
          exact: 'yes'
    route:
    - destination:
        host: details
        subset: v9
  - route:
    - destination:
        host: details
";

#[tokio::test(flavor = "multi_thread")]
async fn broken_rules_are_reported_and_the_rest_serves() {
    if !namespaces() {
        return;
    }
    let mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let url = mesh.url("/productpage");

    mesh.write("regex.yaml", BROKEN_REGEX);
    let line = mesh.wait_for_line("regex.yaml:10");
    assert!(line.contains("spec.http[0].match[0].uri.regex"), "{line}");

    mesh.write("subset.yaml", UNKNOWN_SUBSET);
    let line = mesh.wait_for_line("subset.yaml:15");
    assert!(line.contains("spec.http[0].route[0].destination.subset"), "{line}");

    mesh.write("unreadable.yaml", "kind: [\n");
    mesh.wait_for_line("unreadable.yaml:");

    ask_until(&url, &[], |answer| answer.status == 200 && answer.body.contains("Reviews")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_port_in_use_is_reported_and_the_others_serve() {
    if !namespaces() {
        return;
    }
    let mesh = Mesh::up("bookinfo", &Proxy::Leno);
    let taken = std::net::TcpListener::bind((mesh.address, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let gateway = format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: second
spec:
  selector:
    istio: ingressgateway
  servers:
  - port:
      number: {port}
      name: http-second
      protocol: HTTP
    hosts: ['*']
"
    );
    mesh.write("second.yaml", &gateway);
    let line = mesh.wait_for_line("second.yaml:10");
    assert!(line.contains("spec.servers[0].port.number"), "{line}");
    let answer = crate::load::ask(&client(), "GET", &mesh.url("/productpage"), &[]).await.unwrap();
    assert_eq!(answer.status, 200);
}
