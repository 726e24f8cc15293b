//! What objects of all kinds must look like: each table is objects, and what is said of them.

use expect_test::{Expect, expect};
use leno_api::yaml::{self, Dialect};

use super::diagnostic::Severity;
use super::read::{Read, read};

/// Reads `specs` (one document each) as objects of a kind, and compares what is said.
fn check(api_version: &str, kind: &str, specs: &str, expected: Expect) {
    let mut told = String::new();
    for spec in specs.split("---\n") {
        let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: it}}\nspec:\n{spec}");
        let documents = yaml::parse(&text, Dialect::Kubernetes).unwrap();
        let (verdict, findings) = match read(&documents[0]) {
            Read::Object { findings, .. } => ("good", findings),
            Read::Rejected { findings, .. } => ("refused", findings),
            Read::Skipped { findings, .. } => ("skipped", findings),
        };
        // Whether a field is honoured yet is not asked here.
        let own: Vec<_> =
            findings.iter().filter(|finding| !finding.code.starts_with("unsupported")).collect();
        let refused = own.iter().any(|finding| finding.severity == Severity::Error);
        let verdict = if verdict == "refused" && !refused { "good" } else { verdict };
        told.push_str(verdict);
        told.push('\n');
        for finding in own {
            told.push_str(&format!(
                "  {:?} {}: {} [{}]\n",
                finding.severity, finding.path, finding.message, finding.code
            ));
        }
    }
    expected.assert_eq(&told);
}

#[test]
fn virtual_services() {
    check(
        "networking.istio.io/v1",
        "VirtualService",
        "\
hosts: [a.example.com, '*.b.example.com', x.b.example.com]
gateways: [ns/gw, name.ns.svc.cluster.local, a/b/c]
http:
- match:
  - {headers: {'@request.auth.claims.sub': {exact: me}, ok: {prefix: ''}}, sourceNamespace: a.b, scheme: {regex: ''}}
  redirect: {prefixRewrite: /x, redirectCode: 299}
  rewrite: {uri: /}
- redirect: {redirectCode: 301}
- route: [{destination: {host: a, subset: _}}]
  rewrite: {authority: x, uriRegexRewrite: {match: a}}
  headers: {request: {set: {host: y, ':path': z}, remove: [host]}, response: {add: {':status': 1}}}
  timeout: 1500us
  mirrorPercent: 10
  fault: {delay: {exponentialDelay: 1s}, abort: {http2Error: x}}
  corsPolicy: {allowMethods: [GET, get], allowHeaders: ['a b'], maxAge: 1.5s, allowOrigins: [{exact: ''}]}
  retries: {attempts: 2, perTryTimeout: 1ns, retryOn: '5xx,nonsense,503', backoff: 0s}
- directResponse: {status: 200}
  fault: {abort: {percentage: {value: 1}}}
---
hosts: []
gateways: [a]
tcp: [{route: [{destination: {host: a}}]}]
http: [{delegate: {name: x}}]
---
hosts: ['*']
http: [{match: [{headers: {'@request.auth.claims.sub': {exact: me}}}], route: [{destination: {host: a}}]}]
---
hosts: ['*.example.com']
gateways: [gw]
tls:
- match: [{sniHosts: [a.example.com, b.other.com, 10.0.0.1], destinationSubnets: [10.0.0.0/99]}, {port: 443}]
  route: [{destination: {host: a}}]
- route: []
",
        expect![[r#""#]],
    );
}

#[test]
fn destination_rules() {
    check(
        "networking.istio.io/v1beta1",
        "DestinationRule",
        "\
host: a
trafficPolicy:
  loadBalancer:
    consistentHash: {httpCookie: {attributes: [{name: a}, {name: a}, {}]}, maglev: {tableSize: 10}, minimumRingSize: 3}
    localityLbSetting:
      distribute:
      - {from: a/b, to: {c: 50, c/d: 40, '*/e': 200}}
      - {from: a/*, to: {c: 100}}
      failover: [{from: a, to: a}, {from: a/b, to: '*'}]
      failoverPriority: [topology.kubernetes.io/zone]
    warmup: {minimumPercent: 101, aggression: 0}
  connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true, http2KeepAlive: {interval: 1s}, maxRetries: -1}}
  outlierDetection: {consecutiveErrors: 1, consecutiveLocalOriginFailures: 3, interval: 0s, maxEjectionPercent: 101}
  tunnel: {protocol: GET, targetHost: '*.x'}
  proxyProtocol: {}
  retryBudget: {percent: 101}
  portLevelSettings: [{port: {number: 80}}, {port: {number: 80}, tls: {mode: MUTUAL, clientCertificate: /c}}]
---
host: a
exportTo: ['*', '.', '.']
workloadSelector: {matchLabels: {app: 'a*'}}
subsets:
- {name: a, trafficPolicy: {}}
- {name: b, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c, caCertificates: /ca, insecureSkipVerify: true}}}
- {name: c, trafficPolicy: {connectionPool: {}}}
---
host: a.example.com
trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}}}
",
        expect![[r#""#]],
    );
}

#[test]
fn gateways() {
    check(
        "networking.istio.io/v1",
        "Gateway",
        "\
selector: {app: gw}
servers:
- {port: {number: 443, name: a, protocol: HTTPS}, hosts: ['*']}
- {port: {number: 444, name: b, protocol: TLS}, hosts: [short, '*-a.example.com', ns/a.example.com, 'a b/c.d'], tls: {mode: MUTUAL}}
- {port: {number: 445, name: c, protocol: HTTPS, targetPort: 1}, hosts: ['*'], tls: {mode: ISTIO_MUTUAL, credentialName: x}}
- port: {number: 446, name: d, protocol: HTTPS}
  hosts: ['*']
  tls: {mode: SIMPLE, credentialName: x, credentialNames: [y], cipherSuites: [AES128-SHA, AES128-SHA, NONE], minProtocolVersion: TLSV1_0}
- {port: {number: 447, name: e, protocol: TLS}, hosts: ['*'], tls: {mode: PASSTHROUGH, httpsRedirect: true, serverCertificate: /c}}
- {port: {number: 80, name: f, protocol: HTTP}, hosts: ['*'], tls: {mode: SIMPLE}}
- {port: {number: 81, name: g, protocol: TCP}, hosts: ['*'], tls: {httpsRedirect: true}, bind: nowhere}
- {port: {number: 448, name: h, protocol: HTTPS}, hosts: ['*'], tls: {mode: OPTIONAL_MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /a, caCrl: /r}}
",
        expect![[r#""#]],
    );
}

#[test]
fn services_and_workloads() {
    check(
        "networking.istio.io/v1",
        "ServiceEntry",
        "\
hosts: [a.example.com, b.example.com]
ports: [{number: 1, name: tcp, protocol: TCP}, {number: 2, name: 'a.b', protocol: QUIC}]
resolution: DNS
addresses: [10.0.0.0/8]
workloadSelector: {labels: {}}
---
hosts: ['*.example.com']
ports: [{number: 1, name: tcp, protocol: TCP}]
resolution: DYNAMIC_DNS
addresses: [10.0.0.1]
---
hosts: [a.example.com]
ports: [{number: 1, name: tcp}]
resolution: STATIC
endpoints: [{address: unix:///x, ports: {tcp: 1}}, {address: unix://x/}, {address: b.example.com}, {network: n}, {}]
",
        expect![[r#""#]],
    );
    check(
        "networking.istio.io/v1",
        "WorkloadEntry",
        "address: vm.example.com\nports: {a_b: 0}\nlabels: {a: b c}\n---\nnetwork: n\n---\nweight: 1\n",
        expect![[r#""#]],
    );
    check(
        "networking.istio.io/v1",
        "WorkloadGroup",
        "\
probe: {httpGet: {scheme: FTP, httpHeaders: [{name: 'a b'}]}, exec: {}, periodSeconds: -1}
---
template: {}
probe: {grpc: {port: 80}}
",
        expect![[r#""#]],
    );
}

#[test]
fn sidecars() {
    check(
        "networking.istio.io/v1",
        "Sidecar",
        "\
ingress:
- {port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: '10.0.0.1:80'}
- {port: {number: 80, protocol: QUIC, targetPort: 1}, defaultEndpoint: 'unix:///x', bind: x}
- {port: {number: 81, protocol: TCP}, tls: {mode: ISTIO_MUTUAL, credentialName: x}, connectionPool: {http: {maxRetries: 1}}}
- {}
egress:
- {hosts: []}
- {port: {number: 0, protocol: TCP}, bind: 'unix:///x', captureMode: IPTABLES, hosts: [a.example.com, 'x/short']}
- {port: {number: 9080}, hosts: ['./*', './a.example.com', '*/*', '~/*', '~ns/a.example.com']}
outboundTrafficPolicy: {egressProxy: {host: a.example.com}}
---
workloadSelector: {labels: {}}
---
egress: [{hosts: ['./*', 'istio-system/*']}]
",
        expect![[r#""#]],
    );
}

#[test]
fn security() {
    check(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "\
action: DENY
rules:
- to: [{operation: {paths: ['/a/{*}', '/{**}/{*}', '/{x}', ''], ports: ['80', x]}}]
- to: [{operation: {methods: [GET]}}]
- from: [{source: {requestPrincipals: ['*']}}, {source: {}}, {}]
- from: [{source: {serviceAccounts: [a, a/b, a/b/c, 'x*'], namespaces: [n], ipBlocks: [x], trustDomains: ['a*b', a/b]}}]
- when: [{key: x}, {key: 'request.headers[a]'}, {key: source.ip, values: [x]}, {key: 'request.auth.claims[]', values: [a]}, {values: [a]}]
---
action: CUSTOM
rules: [{from: [{source: {principals: [a]}}], when: [{key: source.namespace, values: [a]}]}]
---
action: DENY
provider: {name: x}
selector: {matchLabels: {}}
targetRefs: [{kind: Pod, name: x}, {kind: Gateway, group: gateway.networking.k8s.io, namespace: x}]
---
{}
",
        expect![[r#""#]],
    );
    check(
        "security.istio.io/v1",
        "PeerAuthentication",
        "portLevelMtls: {80: {mode: STRICT}, 0: {mode: DISABLE}}\n---\nmtls: {mode: ON}\n---\nselector: {matchLabels: {a: b}}\nportLevelMtls: {80: {mode: STRICT}}\n",
        expect![[r#""#]],
    );
    check(
        "security.istio.io/v1beta1",
        "RequestAuthentication",
        "\
jwtRules:
- {}
- {issuer: a, audiences: [''], jwksUri: 'ftp://x', fromHeaders: [{}, {name: 'a b'}], fromParams: [''], fromCookies: ['']}
- {issuer: a, jwks: '{\"keys\": [{\"kty\": \"RSA\", \"d\": \"secret\"}, {}]}', outputClaimToHeaders: [{header: 'x:y', claim: a}, {}], timeout: 0s}
- {issuer: a, jwks: '{\"secret'}
- {issuer: a, jwksUri: 'https://example.com/keys'}
",
        expect![[r#""#]],
    );
}

#[test]
fn telemetry_and_proxies() {
    check(
        "telemetry.istio.io/v1",
        "Telemetry",
        "\
tracing:
- {randomSamplingPercentage: 101, providers: [{}, {name: a}], customTags: {a: {literal: {}}, b: {}, c: {header: {name: x}, literal: {value: y}}}}
- {}
metrics: [{overrides: [{match: {metric: REQUEST_COUNT, customMetric: ''}, tagOverrides: {a: {}, b: {operation: REMOVE, value: x}}}]}]
accessLogging: [{filter: {}}]
",
        expect![[r#""#]],
    );
    check(
        "networking.istio.io/v1beta1",
        "ProxyConfig",
        "concurrency: -1\nselector: {matchLabels: {a: '*'}}\n---\nconcurrency: 0\nimage: {imageType: debug}\n",
        expect![[r#""#]],
    );
}

#[test]
fn envoy_filters() {
    check(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "\
configPatches:
- applyTo: CLUSTER
  match: {listener: {}, proxy: {proxyVersion: 'a('}}
  patch: {operation: MERGE, value: {connect_timeout: 5s, lb_policy: NONE, nonsense: 1, circuitBreakers: {thresholds: {max_connections: 1}}}}
- applyTo: HTTP_FILTER
  match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.tcp_proxy, subFilter: {}}}}}
  patch:
    operation: INSERT_BEFORE
    value:
      name: a
      typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, inlineCode: 1, other: x}
- applyTo: HTTP_FILTER
  patch: {operation: ADD, value: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.filter.http.lua.v2.Lua}}}
- applyTo: NETWORK_FILTER
  patch: {operation: ADD}
- applyTo: LISTENER
  match: {listener: {filterChain: {filter: {name: x}}}}
  patch: {operation: REMOVE}
- {}
- applyTo: CLUSTER
  patch: {operation: MERGE, value: {connect_timeout: 5s, upstream_connection_options: {tcp_keepalive: {keepalive_time: 300}}}}
",
        expect![[r#""#]],
    );
}

#[test]
fn gateway_api() {
    check(
        "gateway.networking.k8s.io/v1",
        "Gateway",
        "\
listeners:
- {name: a, port: 80, protocol: HTTP, hostname: '*'}
- {name: a, port: 80, protocol: HTTP, tls: {}}
- {name: b, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}
- {name: c, port: 0, protocol: TCP, hostname: a.b}
- {name: d, port: 444, protocol: TLS}
",
        expect![[r#""#]],
    );
    check(
        "gateway.networking.k8s.io/v1beta1",
        "HTTPRoute",
        "\
parentRefs: [{name: gw}, {name: gw}]
rules:
- matches: [{path: {type: Exact, value: a//b}, headers: [{name: a, type: RegularExpression, value: '('}]}]
  filters:
  - {type: RequestRedirect, requestRedirect: {statusCode: 299, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
  - {type: URLRewrite, cors: {}}
  backendRefs: [{name: a}, {name: b, port: 80, weight: 1000001}]
  timeouts: {request: 1s, backendRequest: 2s}
---
rules: [{filters: [{requestMirror: {backendRef: {name: a, port: 1}}}]}]
",
        expect![[r#""#]],
    );
    check(
        "gateway.networking.k8s.io/v1alpha2",
        "TLSRoute",
        "rules: []\n---\nhostnames: [a.example.com]\nrules: [{backendRefs: [{name: a, port: 443}]}]\n",
        expect![[r#""#]],
    );
    check(
        "gateway.networking.k8s.io/v1",
        "BackendTLSPolicy",
        "targetRefs: [{kind: Service, name: a}]\nvalidation: {hostname: '*.x', subjectAltNames: [{type: URI, hostname: x}]}\n",
        expect![[r#""#]],
    );
    check(
        "networking.k8s.io/v1",
        "Ingress",
        "defaultBackend: {}\nrules: [{http: {paths: [{path: a, pathType: Prefix, backend: {service: {name: x, port: {}}}}]}}]\n",
        expect![[r#""#]],
    );
}
