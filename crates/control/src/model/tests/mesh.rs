//! Settings of the mesh and its policies, and the Gateway API.

use expect_test::{Expect, expect};
use leno_api::yaml::{self, Dialect};

use super::check;

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
        let (config, _) = yaml::from_node::<crate::model::MeshConfig>(&documents[0]).unwrap();
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
