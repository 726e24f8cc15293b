//! Kinds that say where requests go.

use expect_test::expect;

use super::check;

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
