//! What objects of all kinds must look like: each table is objects, and what is said of them.

use expect_test::{Expect, expect};
use leno_api::yaml::{self, Dialect};

use super::diagnostic::Severity;
use super::read::{Read, read};

/// Reads `specs` (one document each) as objects of a kind, and compares what is said.
#[expect(clippy::needless_pass_by_value, reason = "reads better at the many calls")]
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
  headers: {request: {set: {host: who, ':path': z}, remove: [host]}, response: {add: {':status': '1'}}}
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
        expect![[r#"
            refused
              Error spec.hosts[2]: "x.b.example.com" overlaps with "*.b.example.com" [invalid-value]
              Warning spec.gateways[1]: "name.ns.svc.cluster.local" is an old form, use NAMESPACE/NAME [deprecated]
              Error spec.gateways[2]: a/b/c is no gateway: use NAMESPACE/NAME [invalid-value]
              Error spec.http[0].match[0].scheme.regex: must not be empty [invalid-value]
              Error spec.http[0].match[0].headers.ok.prefix: must not be empty [invalid-value]
              Error spec.http[0].match[0].sourceNamespace: "a.b" is no namespace [invalid-value]
              Error spec.http[0].redirect.redirectCode: 299 is none of 301, 302, 303, 307, 308 [invalid-value]
              Error spec.http[0].rewrite: is for requests that are forwarded [invalid-value]
              Error spec.http[1].redirect: one of uri, prefixRewrite, authority, scheme and port is needed [invalid-value]
              Error spec.http[2].route[0].destination.subset: "_" is no subset name [invalid-value]
              Error spec.http[2].rewrite.uriRegexRewrite.rewrite: must not be empty [invalid-value]
              Error spec.http[2].timeout: must be a multiple of 1ms [invalid-value]
              Error spec.http[2].headers.request: the authority is set more than once [invalid-value]
              Error spec.http[2].retries.perTryTimeout: must be 1ms or more [invalid-value]
              Error spec.http[2].retries.backoff: must be 1ms or more [invalid-value]
              Error spec.http[2].retries.retryOn: "nonsense" is no retry condition [invalid-value]
              Warning spec.http[2].mirrorPercent: is deprecated, use mirrorPercentage [deprecated]
              Error spec.http[2].headers.request.set[":path"]: ":path" is no header that can be set [invalid-value]
              Error spec.http[2].headers.request.remove[0]: "host" is no header that can be removed [invalid-value]
              Error spec.http[2].headers.response.add[":status"]: ":status" is no header that can be set [invalid-value]
              Error spec.http[2].fault.delay.exponentialDelay: exists in name only, use fixedDelay [invalid-value]
              Warning spec.http[2].fault.delay: without percentage no request is delayed [no-effect]
              Error spec.http[2].fault.abort.http2Error: exists in name only, use httpStatus [invalid-value]
              Error spec.http[2].corsPolicy.allowOrigins[0]: an origin needs one of exact, prefix and regex [invalid-value]
              Error spec.http[2].corsPolicy.allowMethods[1]: "get" is none of GET, HEAD, POST, PUT, PATCH, DELETE, CONNECT, OPTIONS, TRACE, * [invalid-value]
              Error spec.http[2].corsPolicy.allowHeaders[0]: "a b" is no header name [invalid-value]
              Error spec.http[2].corsPolicy.maxAge: must be a number of seconds [invalid-value]
              Error spec.http[3].fault: is for requests that are forwarded [invalid-value]
              Warning spec.http[3].fault.abort: without httpStatus or grpcStatus nothing is aborted [no-effect]
            refused
              Error spec.gateways: without hosts it is a delegate, which has http only [invalid-value]
              Error spec.tcp: without hosts it is a delegate, which has http only [invalid-value]
              Error spec.http[0].delegate: a delegate cannot delegate [invalid-value]
            refused
              Error spec.hosts[0]: a full wildcard * needs a gateway, not the mesh [invalid-value]
              Error spec.http[0].match[0].headers["@request.auth.claims.sub"]: claims of tokens are known at gateways only [invalid-value]
            refused
              Error spec.tls[0].match[0].sniHosts[1]: "b.other.com" is within none of the hosts of the VirtualService [invalid-value]
              Warning spec.tls[0].match[0].sniHosts[2]: clients do not send addresses as SNI [no-effect]
              Error spec.tls[0].match[0].destinationSubnets[0]: "10.0.0.0/99" is neither an address nor a CIDR range [invalid-value]
              Error spec.tls[0].match[1].sniHosts: at least one host is needed [invalid-value]
              Error spec.tls[1].match: a match is needed [invalid-value]
              Error spec.tls[1].route: a route is needed [invalid-value]
        "#]],
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
        expect![[r#"
            refused
              Error spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name: must not be empty [invalid-value]
              Error spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[1].name: there is another attribute "a" [invalid-value]
              Error spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[2].name: must not be empty [invalid-value]
              Warning spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: is deprecated, use ringHash.minimumRingSize [deprecated]
              Error spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: must not be given beside ringHash or maglev [invalid-value]
              Error spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 10 is no prime number up to 5000011 [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting: only one of distribute and failover may be given [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority: topology.kubernetes.io/zone must not be given beside failover, which goes by places already [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to["*/e"]: "*/e" is no place such as region/zone/subzone or region/* [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to["*/e"]: weight 200 is not between 1 and 100 [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the weights add up to 290, not to 100 [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: c and */e overlap [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: c/d and */e overlap [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute: a/* and a/b overlap [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0]: from and to must be different regions [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.failover[1].from: "a/b" is no region [invalid-value]
              Error spec.trafficPolicy.loadBalancer.localityLbSetting.failover[1].to: "*" is no region [invalid-value]
              Error spec.trafficPolicy.loadBalancer.warmup.duration: must be given, and be more than 0 [invalid-value]
              Error spec.trafficPolicy.loadBalancer.warmup.minimumPercent: must be between 0 and 100 [invalid-value]
              Error spec.trafficPolicy.loadBalancer.warmup.aggression: must be more than 0 [invalid-value]
              Error spec.trafficPolicy.connectionPool.http.maxRetries: -1 is negative [invalid-value]
              Error spec.trafficPolicy.connectionPool.http.useClientProtocol: contradicts h2UpgradePolicy UPGRADE [invalid-value]
              Error spec.trafficPolicy.connectionPool.http.http2KeepAlive.timeout: is needed [invalid-value]
              Error spec.trafficPolicy.outlierDetection.interval: must be 1ms or more [invalid-value]
              Error spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is not between 0 and 100 [invalid-value]
              Warning spec.trafficPolicy.outlierDetection.consecutiveErrors: is deprecated, use consecutiveGatewayErrors [deprecated]
              Error spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures: needs splitExternalLocalOriginErrors [invalid-value]
              Error spec.trafficPolicy.portLevelSettings[0]: must have a field besides port [invalid-value]
              Error spec.trafficPolicy.portLevelSettings[1].port: there is another setting for port 80 [invalid-value]
              Error spec.trafficPolicy.portLevelSettings[1].tls.privateKey: is needed for MUTUAL, or a credentialName [invalid-value]
              Error spec.trafficPolicy: only one of tunnel and proxyProtocol may be given [invalid-value]
              Error spec.trafficPolicy.tunnel.protocol: "GET" is neither CONNECT nor POST [invalid-value]
              Error spec.trafficPolicy.tunnel.targetHost: wildcards are not possible here [invalid-value]
              Error spec.trafficPolicy.tunnel.targetPort: port 0 is not between 1 and 65535 [invalid-value]
              Error spec.trafficPolicy.retryBudget.percent: 101 is not between 0 and 100 [invalid-value]
            refused
              Error spec.subsets[0].trafficPolicy: must have a field [invalid-value]
              Error spec.subsets[1].trafficPolicy.tls.insecureSkipVerify: contradicts what says whom to believe [invalid-value]
              Error spec.subsets[1].trafficPolicy.tls.caCertificates: cannot stand beside credentialName [invalid-value]
              Error spec.subsets[2].trafficPolicy.connectionPool: one of tcp and http is needed [invalid-value]
              Error spec.exportTo: "*" cannot stand beside others [invalid-value]
              Error spec.exportTo[2]: "." is there twice [invalid-value]
              Error spec.workloadSelector.matchLabels.app: wildcards are not possible here [invalid-value]
              Error spec.workloadSelector.matchLabels.app: "a*" is no label value [invalid-value]
              Error spec.exportTo: a rule for some workloads cannot be for other namespaces [invalid-value]
            good
        "#]],
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
  tls: {mode: SIMPLE, credentialName: x, credentialNames: [z], cipherSuites: [AES128-SHA, AES128-SHA, NONE], minProtocolVersion: TLSV1_0}
- {port: {number: 447, name: e, protocol: TLS}, hosts: ['*'], tls: {mode: PASSTHROUGH, httpsRedirect: true, serverCertificate: /c}}
- {port: {number: 80, name: f, protocol: HTTP}, hosts: ['*'], tls: {mode: SIMPLE}}
- {port: {number: 81, name: g, protocol: TCP}, hosts: ['*'], tls: {httpsRedirect: true}, bind: nowhere}
- {port: {number: 448, name: h, protocol: HTTPS}, hosts: ['*'], tls: {mode: OPTIONAL_MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /a, caCrl: /r}}
",
        expect![[r#"
            refused
              Error spec.servers[0].tls: is needed for the protocols HTTPS and TLS [invalid-value]
              Error spec.servers[1].hosts[0]: "short" is a short name; use a fully qualified one [invalid-value]
              Error spec.servers[1].hosts[1]: "*-a.example.com": a wildcard must be the whole first part [invalid-value]
              Error spec.servers[1].hosts[3]: the part before / must be a namespace, '.' or '*' [invalid-value]
              Error spec.servers[1].tls.caCertificates: is needed to check certificates of clients [invalid-value]
              Error spec.servers[1].tls.serverCertificate: is needed, or a credentialName [invalid-value]
              Error spec.servers[1].tls.privateKey: is needed, or a credentialName [invalid-value]
              Error spec.servers[2].port.targetPort: has no effect in Gateways [invalid-value]
              Error spec.servers[2].tls.credentialName: ISTIO_MUTUAL takes the mesh's own certificates [invalid-value]
              Warning spec.servers[3].tls.cipherSuites[1]: "AES128-SHA" is there twice [duplicate]
              Warning spec.servers[3].tls.cipherSuites[2]: "NONE" is not known, has no effect [no-effect]
              Error spec.servers[3].tls: only one of credentialName, credentialNames, serverCertificate and tlsCertificates may be given [invalid-value]
              Warning spec.servers[4].tls: TLS that passes through needs no certificates [no-effect]
              Warning spec.servers[4].tls.httpsRedirect: is for HTTP only [no-effect]
              Error spec.servers[5].tls: a server without TLS can have httpsRedirect only [invalid-value]
              Error spec.servers[6].bind: "nowhere" is no address [invalid-value]
              Error spec.servers[6].tls: is for the protocols HTTPS and TLS only [invalid-value]
        "#]],
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
endpoints: [{address: unix:///x, ports: {tcp: 1}}, {address: unix://x/}, {address: b.example.com}, {network: net}, {}]
",
        expect![[r#"
            refused
              Error spec.addresses[0]: CIDR ranges need resolution NONE or STATIC [invalid-value]
              Error spec.ports[1].name: "a.b" is no port name: use letters, digits and - [invalid-value]
              Error spec.ports[1].protocol: "QUIC" is none of HTTP, HTTP2, HTTPS, HTTP_PROXY, GRPC, GRPC-WEB, TCP, TLS, UDP, MONGO, REDIS, MYSQL, HBONE, DOUBLE-HBONE [invalid-value]
              Error spec.hosts: several hosts cannot be told apart on ports that are neither HTTP nor TLS [invalid-value]
              Warning spec.workloadSelector: without labels it selects all workloads of the namespace [no-effect]
            refused
              Error spec.addresses: DYNAMIC_DNS goes by host names only [invalid-value]
              Error spec.ports[0].protocol: DYNAMIC_DNS is for HTTP, HTTP2, GRPC and TLS [invalid-value]
            refused
              Error spec.endpoints[0].address: a socket of the file system has no ports [invalid-value]
              Error spec.endpoints[1].address: "x/" is no absolute path of a file [invalid-value]
              Error spec.endpoints[2].address: "b.example.com" is no address, which resolution STATIC needs [invalid-value]
              Warning spec.endpoints[3].address: is empty: the workload is reached by the gateway of its network [no-address]
              Error spec.endpoints[4].address: must not be empty [invalid-value]
        "#]],
    );
    check(
        "networking.istio.io/v1",
        "WorkloadEntry",
        "address: vm.example.com\nports: {a_b: 0}\nlabels: {a: b c}\n---\nnetwork: net\n---\nweight: 1\n",
        expect![[r#"
            refused
              Error spec.ports.a_b: "a_b" is no port name: use letters, digits and - [invalid-value]
              Error spec.ports.a_b: port 0 is not between 1 and 65535 [invalid-value]
              Error spec.labels.a: "b c" is no label value [invalid-value]
            good
              Warning spec.address: is empty: the workload is reached by the gateway of its network [no-address]
            refused
              Error spec.address: must not be empty [invalid-value]
        "#]],
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
        expect![[r#"
            refused
              Error spec.template: is needed [invalid-value]
              Error spec.probe.periodSeconds: -1 is negative [invalid-value]
              Error spec.probe: only one of httpGet, tcpSocket, exec and grpc may be given [invalid-value]
              Error spec.probe.httpGet.port: port 0 is not between 1 and 65535 [invalid-value]
              Error spec.probe.httpGet.scheme: "FTP" is neither HTTP nor HTTPS [invalid-value]
              Error spec.probe.httpGet.httpHeaders[0].name: "a b" is no header name [invalid-value]
              Error spec.probe.exec.command: must not be empty [invalid-value]
            good
        "#]],
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
        expect![[r#"
            refused
              Error spec.ingress[0].defaultEndpoint: "10.0.0.1:80" is none of 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT and unix://PATH [invalid-value]
              Error spec.ingress[1].port.protocol: "QUIC" is none of HTTP, HTTP2, HTTPS, HTTP_PROXY, GRPC, GRPC-WEB, TCP, TLS, UDP, MONGO, REDIS, MYSQL, HBONE, DOUBLE-HBONE [invalid-value]
              Error spec.ingress[1].port.targetPort: has no effect in Sidecars [invalid-value]
              Error spec.ingress[1].port.number: there is another listener with port 80 [invalid-value]
              Error spec.ingress[1].bind: "x" is no address [invalid-value]
              Error spec.ingress[2].tls.mode: is not possible in a Sidecar [invalid-value]
              Error spec.ingress[2].tls: is for the protocols HTTPS and TLS only [invalid-value]
              Error spec.ingress[2].tls.credentialName: ISTIO_MUTUAL takes the mesh's own certificates [invalid-value]
              Warning spec.ingress[2].connectionPool.http: the port's protocol is not HTTP [no-effect]
              Error spec.ingress[3].port: is needed [invalid-value]
              Error spec.egress[0]: only the last listener may be without a port [invalid-value]
              Error spec.egress[0].hosts: at least one host is needed [invalid-value]
              Error spec.egress[1].captureMode: a socket of the file system cannot be captured [invalid-value]
              Error spec.egress[1].hosts[0]: "a.example.com" must be NAMESPACE/HOST, with * or . for NAMESPACE [invalid-value]
              Error spec.egress[1].hosts[1]: "short" is a short name; use a fully qualified one [invalid-value]
              Warning spec.egress[2].hosts[1]: "./a.example.com" overlaps with others [duplicate]
              Warning spec.egress[2].hosts: */* stands for all hosts, so the others have no effect [duplicate]
              Error spec.outboundTrafficPolicy.egressProxy: needs the mode ALLOW_ANY [invalid-value]
              Error spec.outboundTrafficPolicy.egressProxy.port: is needed [invalid-value]
            refused
              Warning spec.workloadSelector: without labels it selects all workloads of the namespace [no-effect]
              Error spec: is empty: one of ingress, egress, inboundConnectionPool and outboundTrafficPolicy is needed [invalid-value]
            good
        "#]],
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
- from: [{source: {serviceAccounts: [a, a/b, a/b/c, 'x*'], namespaces: [ns], ipBlocks: [x], trustDomains: ['a*b', a/b]}}]
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
        expect![[r#"
            refused
              Error spec.rules[0].to[0].operation.ports[1]: "x" is no port [invalid-value]
              Error spec.rules[0].to[0].operation.paths[3]: must not be empty [invalid-value]
              Error spec.rules[0].to[0].operation.paths[1]: "/{**}/{*}": {**} must be the last of the templates [invalid-value]
              Error spec.rules[0].to[0].operation.paths[2]: "/{x}": {*} and {**} must be whole segments [invalid-value]
              Warning spec.rules[1]: has attributes of HTTP only, so it denies all traffic to TCP ports; name the ports that are meant [denies-tcp]
              Error spec.rules[2].from[1].source: must not be empty [invalid-value]
              Error spec.rules[2].from[2].source: is needed [invalid-value]
              Warning spec.rules[2]: has attributes of HTTP only, so it denies all traffic to TCP ports; name the ports that are meant [denies-tcp]
              Error spec.rules[3].from[0].source.serviceAccounts[2]: "a/b/c" must be SERVICEACCOUNT or NAMESPACE/SERVICEACCOUNT [invalid-value]
              Error spec.rules[3].from[0].source.serviceAccounts[3]: wildcards are not possible here [invalid-value]
              Error spec.rules[3].from[0].source.trustDomains[0]: "a*b": one wildcard is possible, in front or at the end [invalid-value]
              Error spec.rules[3].from[0].source.trustDomains[1]: "a/b" is no trust domain: it contains '/' [invalid-value]
              Error spec.rules[3].from[0].source.ipBlocks[0]: "x" is neither an address nor a CIDR range [invalid-value]
              Error spec.rules[3].from[0].source: serviceAccounts cannot stand beside namespaces or principals [invalid-value]
              Error spec.rules[4].when[0]: one of values and notValues is needed [invalid-value]
              Error spec.rules[4].when[0].key: "x" is not known [invalid-value]
              Error spec.rules[4].when[1]: one of values and notValues is needed [invalid-value]
              Error spec.rules[4].when[2].values[0]: "x" is neither an address nor a CIDR range [invalid-value]
              Error spec.rules[4].when[3].key: "request.auth.claims[]" must look like a[b] [invalid-value]
              Error spec.rules[4].when[4].key: must not be empty [invalid-value]
            refused
              Error spec.provider.name: is needed for the action CUSTOM [invalid-value]
              Error spec.rules[0].from[0].source.principals: is not possible with the action CUSTOM [invalid-value]
              Error spec.rules[0].when[0].key: source.namespace is not possible with the action CUSTOM [invalid-value]
            refused
              Error spec: only one of selector, targetRef and targetRefs may be given [invalid-value]
              Warning spec.selector: without labels it selects all workloads of the namespace [no-effect]
              Error spec.targetRefs[0].kind: /Pod is none of core/Service, networking.istio.io/ServiceEntry, gateway.networking.k8s.io/Gateway, gateway.networking.k8s.io/GatewayClass [invalid-value]
              Error spec.targetRefs[1].name: must not be empty [invalid-value]
              Error spec.targetRefs[1].namespace: objects of other namespaces cannot be referred to [invalid-value]
              Error spec.rules: without rules it is for no request; the rule {} is for every request [invalid-value]
              Error spec.provider: is for the action CUSTOM only [invalid-value]
            good
        "#]],
    );
    check(
        "security.istio.io/v1",
        "PeerAuthentication",
        "portLevelMtls: {80: {mode: STRICT}, 0: {mode: DISABLE}}\n---\nmtls: {mode: STRIKT}\n---\nselector: {matchLabels: {a: b}}\nportLevelMtls: {80: {mode: STRICT}}\n",
        expect![[r#"
            refused
              Error spec.portLevelMtls: needs a selector: a policy for all workloads cannot be for some ports [invalid-value]
              Error spec.portLevelMtls.0: port 0 is not between 1 and 65535 [invalid-value]
            refused
              Error spec.mtls.mode: unknown value "STRIKT", expected UNSET, DISABLE, PERMISSIVE, STRICT, did you mean 'STRICT'? [invalid-value]
            good
        "#]],
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
        expect![[r#"
            refused
              Error spec.jwtRules[0]: one of issuer and jwksUri is needed [invalid-value]
              Error spec.jwtRules[1].audiences[0]: must not be empty [invalid-value]
              Error spec.jwtRules[1].jwksUri: "ftp://x" is no http or https URI with a host [invalid-value]
              Error spec.jwtRules[1].fromHeaders[0].name: must not be empty [invalid-value]
              Error spec.jwtRules[1].fromHeaders[1].name: "a b" is no header name [invalid-value]
              Error spec.jwtRules[1].fromParams[0]: must not be empty [invalid-value]
              Error spec.jwtRules[1].fromCookies[0]: must not be empty [invalid-value]
              Error spec.jwtRules[2].jwks: has no key that could verify a token [invalid-value]
              Warning spec.jwtRules[2].jwks: key 0 is a private one; only public keys are needed to verify tokens [private-key]
              Error spec.jwtRules[2].jwks: key 1 has no "kty" [invalid-value]
              Error spec.jwtRules[2].outputClaimToHeaders[0].header: "x:y" is no header that can be set [invalid-value]
              Error spec.jwtRules[2].outputClaimToHeaders[1].claim: must not be empty [invalid-value]
              Error spec.jwtRules[2].outputClaimToHeaders[1].header: must not be empty [invalid-value]
              Error spec.jwtRules[2].timeout: must be 1ms or more [invalid-value]
              Error spec.jwtRules[3].jwks: no JSON (line 1, column 8) [invalid-value]
        "#]],
    );
}

#[test]
fn telemetry_and_proxies() {
    check(
        "telemetry.istio.io/v1",
        "Telemetry",
        "\
tracing:
- {randomSamplingPercentage: 101, providers: [{}, {name: a}], customTags: {a: {literal: {}}, b: {}, c: {header: {name: x}, literal: {value: z}}}}
- {}
metrics: [{overrides: [{match: {metric: REQUEST_COUNT, customMetric: ''}, tagOverrides: {a: {}, b: {operation: REMOVE, value: x}}}]}]
accessLogging: [{filter: {}}]
",
        expect![[r#"
            refused
              Warning spec.tracing: Istio promises nothing of more than one; the later ones say over the earlier ones [several]
              Error spec.tracing[0].providers[0].name: must not be empty [invalid-value]
              Warning spec.tracing[0].providers: only the first one counts [no-effect]
              Error spec.tracing[0].randomSamplingPercentage: 101 is not between 0 and 100 [invalid-value]
              Error spec.tracing[0].customTags.a.literal.value: must not be empty [invalid-value]
              Error spec.tracing[0].customTags.b: one of literal, environment, header and formatter is needed [invalid-value]
              Error spec.tracing[0].customTags.c: only one of literal, environment, header and formatter may be given [invalid-value]
              Error spec.metrics[0].overrides[0].match: only one of metric and customMetric may be given [invalid-value]
              Error spec.metrics[0].overrides[0].match.customMetric: must not be empty [invalid-value]
              Error spec.metrics[0].overrides[0].tagOverrides.a.value: is needed unless the operation is REMOVE [invalid-value]
              Error spec.metrics[0].overrides[0].tagOverrides.b.value: a tag that is removed has no value [invalid-value]
              Error spec.accessLogging[0].filter.expression: must not be empty [invalid-value]
        "#]],
    );
    check(
        "networking.istio.io/v1beta1",
        "ProxyConfig",
        "concurrency: -1\nselector: {matchLabels: {a: '*'}}\n---\nconcurrency: 0\nimage: {imageType: debug}\n",
        expect![[r#"
            refused
              Error spec.selector.matchLabels.a: wildcards are not possible here [invalid-value]
              Error spec.selector.matchLabels.a: "*" is no label value [invalid-value]
              Error spec.concurrency: -1 is negative [invalid-value]
            good
        "#]],
    );
}

#[test]
fn mesh_configs() {
    let check = |mesh: &str, expected: Expect| {
        let documents = yaml::parse(mesh, Dialect::Kubernetes).unwrap();
        let (config, _) = yaml::from_node::<super::MeshConfig>(&documents[0]).unwrap();
        let told: String = config
            .validate()
            .iter()
            .map(|finding| format!("{:?} {}: {}\n", finding.severity, finding.path, finding.message))
            .collect();
        expected.assert_eq(&told);
    };
    check("{accessLogFile: /dev/stdout}", expect![""]);
    check(
        "\
accessLogEncoding: JSON
accessLogFormat: '[%PROTOCOL%]'
proxyListenPort: 0
connectTimeout: 2h
trustDomain: a_b
trustDomainAliases: [c.d, '']
caCertificates: [{}]
meshMTLS: {ecdhCurves: [P-256]}
tlsDefaults: {ecdhCurves: [P-256, P-256, P-1]}
defaultHttpRetryPolicy: {attempts: -1}
defaultTrafficPolicy: {connectionPool: {}}
localityLbSetting: {distribute: [{from: a, to: {b: 1}}]}
defaultConfig:
  drainDuration: 1.5s
  discoveryAddress: nowhere
  concurrency: -1
  statusPort: 70000
  tracing: {sampling: 101, zipkin: {address: x}, datadog: {address: '$(HOST_IP):8126'}, customTags: {a: {}}}
  privateKeyProvider: {cryptomb: {}}
  connectionSettings: {listenerConnectionLimit: -1}
extensionProviders:
- {name: a, zipkin: {service: 'b c', port: 0}, prometheus: {}}
- {name: a, envoyExtAuthzHttp: {service: ns/a.example.com, port: 80, statusOnError: x, includeRequestBodyInCheck: {}}}
- {}
",
        expect![[r#"
            Error accessLogFormat: must be a JSON object when the encoding is JSON
            Error proxyListenPort: port 0 is not between 1 and 65535
            Error connectTimeout: is not between 1ms and 1h
            Error defaultConfig.drainDuration: must be a number of seconds
            Error defaultConfig.discoveryAddress: "nowhere" must be HOST:PORT
            Error defaultConfig.statusPort: port 70000 is not between 1 and 65535
            Error defaultConfig.concurrency: -1 is negative
            Error defaultConfig.tracing: only one of zipkin, lightstep, datadog, stackdriver and openCensusAgent may be given
            Error defaultConfig.tracing.zipkin.address: "x" must be HOST:PORT
            Error defaultConfig.tracing.sampling: 101 is not between 0 and 100
            Error defaultConfig.tracing.customTags.a: one of literal, environment and header is needed
            Error defaultConfig.privateKeyProvider.cryptomb.pollDelay: must be more than 0
            Error defaultConfig.connectionSettings.listenerConnectionLimit: -1 is negative
            Error localityLbSetting.distribute[0].to: the weights add up to 1, not to 100
            Error trustDomain: "a_b" is no trust domain
            Error trustDomainAliases[1]: "" is no trust domain
            Error caCertificates[0]: one of pem and spiffeBundleUrl is needed
            Error meshMTLS.ecdhCurves: cannot be chosen inside the mesh
            Warning tlsDefaults.ecdhCurves[1]: "P-256" is there twice
            Warning tlsDefaults.ecdhCurves[2]: "P-1" is not known, has no effect
            Error defaultTrafficPolicy.connectionPool: one of tcp and http is needed
            Error defaultHttpRetryPolicy.attempts: -1 is negative
            Error extensionProviders[0]: only one sort of provider may be given
            Warning extensionProviders[0].zipkin.service: must be HOST or NAMESPACE/HOST
            Warning extensionProviders[0].zipkin.port: is not between 1 and 65535
            Error extensionProviders[1].name: there is another provider "a"
            Warning extensionProviders[1].envoyExtAuthzHttp.statusOnError: is no status code
            Warning extensionProviders[1].envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes: must be more than 0
            Error extensionProviders[2].name: must not be empty
            Warning extensionProviders[2]: says not what it is
        "#]],
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
        expect![[r#"
            refused
              Error spec.configPatches[0].match.proxy.proxyVersion: regular expression "a(": unclosed group [invalid-regex]
              Error spec.configPatches[0].match.listener: what is patched is found by cluster [invalid-value]
              Error spec.configPatches[0].patch.value.lb_policy: unknown value "NONE" of envoy.config.cluster.v3.Cluster.LbPolicy [invalid-value]
              Warning spec.configPatches[0].patch.value.nonsense: unknown field [unknown-field]
              Error spec.configPatches[1].match.listener.filterChain.filter.subFilter: is one of the filter envoy.filters.network.http_connection_manager [invalid-value]
              Error spec.configPatches[1].match.listener.filterChain.filter.subFilter.name: is needed [invalid-value]
              Error spec.configPatches[1].patch.value.typed_config.inlineCode: expected text, found the number 1; put it in quotes [invalid-value]
              Warning spec.configPatches[1].patch.value.typed_config.other: unknown field [unknown-field]
              Error spec.configPatches[2].patch.value.typed_config: unknown type "type.googleapis.com/envoy.config.filter.http.lua.v2.Lua", did you mean 'envoy.extensions.filters.http.lua.v3.Lua'? [invalid-value]
              Error spec.configPatches[3].patch.value: is needed [invalid-value]
              Warning spec.configPatches[4].match.listener.filterChain.filter: has no effect on listeners and filter chains [no-effect]
              Error spec.configPatches[5].applyTo: is needed [invalid-value]
              Error spec.configPatches[5].patch: is needed [invalid-value]
        "#]],
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
        expect![[r#"
            refused
              Error spec.gatewayClassName: must not be empty [invalid-value]
              Error spec.listeners[0].hostname: "*": a wildcard must be the first part of a longer name [invalid-value]
              Error spec.listeners[1].name: there is another listener "a" [invalid-value]
              Error spec.listeners[1].tls: is not possible with HTTP [invalid-value]
              Error spec.listeners[2].tls.mode: HTTPS cannot be passed through, use TLS [invalid-value]
              Error spec.listeners[3].port: port 0 is not between 1 and 65535 [invalid-value]
              Error spec.listeners[3].hostname: TCP knows no host names [invalid-value]
              Error spec.listeners[4].tls: is needed for TLS [invalid-value]
        "#]],
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
        expect![[r#"
            refused
              Error spec.parentRefs[1]: is there twice [invalid-value]
              Error spec.rules[0].matches[0].path.value: "a//b" is no path in its normal form [invalid-value]
              Error spec.rules[0].matches[0].headers[0].value: regular expression "(": unclosed group [invalid-regex]
              Error spec.rules[0].filters[0].requestRedirect.statusCode: is none of 301, 302, 303, 307, 308 [invalid-value]
              Error spec.rules[0].filters[0].requestRedirect.path: replacing a prefix needs matches of the path by prefix [invalid-value]
              Error spec.rules[0].filters[1].urlRewrite: is needed for this type [invalid-value]
              Error spec.rules[0].filters[1].cors: is not what type says [invalid-value]
              Error spec.rules[0].filters: only one of RequestRedirect and URLRewrite may be given [invalid-value]
              Error spec.rules[0].backendRefs: a rule that redirects has no backends [invalid-value]
              Error spec.rules[0].backendRefs[1].weight: is more than 1000000 [invalid-value]
              Error spec.rules[0].timeouts.backendRequest: is longer than request [invalid-value]
            refused
              Error spec.rules[0].filters[0]: missing field 'type' [invalid-value]
        "#]],
    );
    check(
        "gateway.networking.k8s.io/v1alpha2",
        "TLSRoute",
        "rules: []\n---\nhostnames: [a.example.com]\nrules: [{backendRefs: [{name: a, port: 443}]}]\n",
        expect![[r#"
            refused
              Error spec.hostnames: at least one is needed [invalid-value]
              Error spec.rules: exactly one rule is needed [invalid-value]
            good
        "#]],
    );
    check(
        "gateway.networking.k8s.io/v1",
        "BackendTLSPolicy",
        "targetRefs: [{kind: Service, name: a}]\nvalidation: {hostname: '*.x', subjectAltNames: [{type: URI, hostname: x}]}\n",
        expect![[r#"
            refused
              Error spec.validation: one of caCertificateRefs and wellKnownCACertificates is needed [invalid-value]
              Error spec.validation.hostname: "*.x" is no DNS name [invalid-value]
              Error spec.validation.subjectAltNames[0].uri: is needed for this type [invalid-value]
              Error spec.validation.subjectAltNames[0].hostname: is not what type says [invalid-value]
        "#]],
    );
    check(
        "networking.k8s.io/v1",
        "Ingress",
        "defaultBackend: {}\nrules: [{http: {paths: [{path: a, pathType: Prefix, backend: {service: {name: x, port: {}}}}]}}]\n",
        expect![[r#"
            refused
              Error spec.defaultBackend: exactly one of service and resource is needed [invalid-value]
              Error spec.rules[0].http.paths[0].path: must begin with / [invalid-value]
              Error spec.rules[0].http.paths[0].backend.service.port: exactly one of name and number is needed [invalid-value]
        "#]],
    );
}
