//! The inputs: for each code what raises it, and a near miss.

/// A case: the code, what both inputs begin with, what raises it, and what does not.
pub(super) struct Case(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) &'static str,
);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: nn}
spec: {selector: {app: a}, ports: [{name: http, port: 80}]}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: nn, labels: {app: a}}
spec: {containers: [{name: c, image: i}, {name: istio-proxy, image: hub/proxyv2:1}]}
";

const GATEWAY: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: nn}
spec: {selector: {app: a}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [x.com]}]}
";

/// A VirtualService `r` of the namespace `n` with a spec.
macro_rules! rule {
    ($spec:literal) => {
        concat!(
            "\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: nn}\nspec: ",
            $spec,
            "\n"
        )
    };
}

/// A certificate that is valid until 2120, and one that was until 2021.
macro_rules! good {
    () => {
        "MIHtMIGVoAMCAQICAQEwCgYIKoZIzj0EAwIwADAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMW9jUi8Iy/TgOQM0r7E1OozwRbBSifY6x7Ol4VYgE1qtfDWwEA2oCvEoi6/fco7qgOzFxHnJLMVmeO6Ot9R1SUwCgYIKoZIzj0EAwIDRwAwRAIgA6kPYLNzCBdd+DfA40RDGftoqYZEMgYIWv0cxNrPjXICIDY8N1vkJaYC8sij9XCO89e3C3Db2YvRZLNfulgA7cq2"
    };
}
macro_rules! old {
    () => {
        "MIHtMIGToAMCAQICAQEwCgYIKoZIzj0EAwIwADAeFw0yMDAxMDEwMDAwMDBaFw0yMTAxMDEwMDAwMDBaMAAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQQs26qz4CV76FmeMJuJFTuzpjWS0JtXYWTJgqe05aV80/E5sApg+pHVWK+ayKQAhzDMrLZHef9K8Y8efblQXOhMAoGCCqGSM49BAMCA0kAMEYCIQDYYYhdeqUDKQExJHWQpI2638riRuV2XvMgXIz790JoggIhAM5JEwkrP2E/O5/A0IVbtC5Hq9UgeGTTgjio85vZU7/k"
    };
}

/// The Secret `c` with a certificate.
macro_rules! secret {
    ($certificate:expr) => {
        concat!(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: c, namespace: nn}\nstringData: {tls.key: k, tls.crt: '-----BEGIN CERTIFICATE----- ",
            $certificate,
            " -----END CERTIFICATE-----'}\n"
        )
    };
}

/// An object of Istio's networking kinds called `r` of the namespace `n`.
macro_rules! object {
    ($version:literal, $kind:literal, $name:literal, $spec:literal) => {
        concat!(
            "\n---\napiVersion: ",
            $version,
            "\nkind: ",
            $kind,
            "\nmetadata: {name: ",
            $name,
            ", namespace: nn}\nspec: ",
            $spec,
            "\n"
        )
    };
}

/// All cases, by code.
pub(super) const CASES: &[Case] = &[
    Case(
        "IST0002",
        "",
        rule!(
            "{hosts: [a], http: [{fault: {delay: {percent: 5, fixedDelay: 1s}}, route: [{destination: {host: a}}]}]}"
        ),
        rule!(
            "{hosts: [a], http: [{fault: {delay: {percentage: {value: 5}, fixedDelay: 1s}}, route: [{destination: {host: a}}]}]}"
        ),
    ),
    Case(
        "IST0101",
        SERVICE,
        rule!("{hosts: [a], http: [{route: [{destination: {host: b}}]}]}"),
        rule!("{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"),
    ),
    Case(
        "IST0102",
        "",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn}\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio-injection: disabled}}\n",
    ),
    Case(
        "IST0103",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio-injection: enabled}}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn}\nspec: {containers: [{name: c, image: i}]}\n",
        POD,
    ),
    Case(
        "IST0106",
        "",
        rule!("{hosts: 5}"),
        rule!("{hosts: [a.com], http: [{directResponse: {status: 200}}]}"),
    ),
    Case(
        "IST0107",
        "",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: nn, annotations: {proxy.istio.io/config: '{}'}}\nspec: {}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: s, namespace: nn, annotations: {proxy.istio.io/config: '{}'}}\nspec: {containers: []}\n",
    ),
    Case(
        "IST0108",
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: s, namespace: nn, annotations: {sidecar.istio.io/nothing: x}}\nspec: {containers: []}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: s, namespace: nn, annotations: {example.com/nothing: x}}\nspec: {containers: []}\n",
    ),
    Case(
        "IST0109",
        SERVICE,
        concat!(
            rule!("{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"
            )
        ),
        concat!(
            rule!("{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{hosts: [b], http: [{route: [{destination: {host: a}}]}]}"
            )
        ),
    ),
    Case(
        "IST0110",
        POD,
        concat!(
            object!(
                "networking.istio.io/v1",
                "Sidecar",
                "s",
                "{workloadSelector: {labels: {app: a}}, egress: [{hosts: ['*/*']}]}"
            ),
            object!(
                "networking.istio.io/v1",
                "Sidecar",
                "t",
                "{workloadSelector: {labels: {app: a}}, egress: [{hosts: ['*/*']}]}"
            )
        ),
        concat!(
            object!(
                "networking.istio.io/v1",
                "Sidecar",
                "s",
                "{workloadSelector: {labels: {app: a}}, egress: [{hosts: ['*/*']}]}"
            ),
            object!(
                "networking.istio.io/v1",
                "Sidecar",
                "t",
                "{workloadSelector: {labels: {app: b}}, egress: [{hosts: ['*/*']}]}"
            )
        ),
    ),
    Case(
        "IST0111",
        "",
        concat!(
            object!("networking.istio.io/v1", "Sidecar", "s", "{egress: [{hosts: ['*/*']}]}"),
            object!("networking.istio.io/v1", "Sidecar", "t", "{egress: [{hosts: ['*/*']}]}")
        ),
        concat!(
            object!("networking.istio.io/v1", "Sidecar", "s", "{egress: [{hosts: ['*/*']}]}"),
            object!(
                "networking.istio.io/v1",
                "Sidecar",
                "t",
                "{workloadSelector: {labels: {app: b}}, egress: [{hosts: ['*/*']}]}"
            )
        ),
    ),
    Case(
        "IST0112",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {ports: [{name: http, port: 80}, {name: http-b, port: 81}]}\n",
        rule!("{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"),
        rule!("{hosts: [a], http: [{route: [{destination: {host: a, port: {number: 81}}}]}]}"),
    ),
    Case(
        "IST0116",
        DEPLOYMENT,
        "apiVersion: v1\nkind: Service\nmetadata: {name: u, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: u, port: 80, protocol: UDP}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80}]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: u, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: u, port: 81, protocol: UDP}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80}]}\n",
    ),
    Case(
        "IST0118",
        "",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {ports: [{name: web, port: 80}]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {ports: [{name: web, port: 80, appProtocol: http}]}\n",
    ),
    Case(
        "IST0123",
        "",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio-injection: enabled, istio.io/rev: x}}\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio-injection: disabled, istio.io/rev: x}}\n",
    ),
    Case(
        "IST0125",
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn, annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: '*'}}\nspec: {containers: []}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn, annotations: {traffic.sidecar.istio.io/includeOutboundIPRanges: '*'}}\nspec: {containers: []}\n",
    ),
    Case(
        "IST0126",
        "",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '{}', meshNetworks: '{networks: {x: {endpoints: [{fromRegistry: Nomad}]}}}'}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '{}', meshNetworks: '{networks: {x: {endpoints: [{fromRegistry: Kubernetes}]}}}'}\n",
    ),
    Case(
        "IST0127",
        POD,
        object!("security.istio.io/v1", "AuthorizationPolicy", "p", "{selector: {matchLabels: {app: b}}}"),
        object!("security.istio.io/v1", "AuthorizationPolicy", "p", "{selector: {matchLabels: {app: a}}}"),
    ),
    Case(
        "IST0128",
        "",
        object!(
            "networking.istio.io/v1",
            "DestinationRule",
            "d",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}"
        ),
        object!(
            "networking.istio.io/v1",
            "DestinationRule",
            "d",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /a}}}"
        ),
    ),
    Case(
        "IST0129",
        "",
        object!(
            "networking.istio.io/v1",
            "DestinationRule",
            "d",
            "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}"
        ),
        object!(
            "networking.istio.io/v1",
            "DestinationRule",
            "d",
            "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]}}"
        ),
    ),
    Case(
        "IST0130",
        SERVICE,
        rule!(
            "{hosts: [a], http: [{route: [{destination: {host: a}}]}, {match: [{uri: {prefix: /x}}], route: [{destination: {host: a}}]}]}"
        ),
        rule!(
            "{hosts: [a], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: a}}]}, {route: [{destination: {host: a}}]}]}"
        ),
    ),
    Case(
        "IST0131",
        SERVICE,
        rule!(
            "{hosts: [a], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: a}}]}, {match: [{uri: {prefix: /x/y}}], route: [{destination: {host: a}}]}]}"
        ),
        rule!(
            "{hosts: [a], http: [{match: [{uri: {prefix: /x/y}}], route: [{destination: {host: a}}]}, {match: [{uri: {prefix: /x}}], route: [{destination: {host: a}}]}]}"
        ),
    ),
    Case(
        "IST0132",
        GATEWAY,
        concat!(
            "---",
            rule!("{hosts: [y.com], gateways: [gw], http: [{route: [{destination: {host: a}}]}]}")
        ),
        concat!(
            "---",
            rule!("{hosts: [x.com], gateways: [gw], http: [{route: [{destination: {host: a}}]}]}")
        ),
    ),
    Case(
        "IST0133",
        "",
        object!(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "p",
            "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"
        ),
        object!(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "p",
            "{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}"
        ),
    ),
    Case(
        "IST0134",
        "",
        object!(
            "networking.istio.io/v1",
            "ServiceEntry",
            "e",
            "{hosts: [x.com], ports: [{number: 5, name: t, protocol: TCP}], resolution: DNS}"
        ),
        object!(
            "networking.istio.io/v1",
            "ServiceEntry",
            "e",
            "{hosts: [x.com], addresses: [1.2.3.4], ports: [{number: 5, name: t, protocol: TCP}], resolution: DNS}"
        ),
    ),
    Case(
        "IST0135",
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn, annotations: {sidecar.istio.io/inject: 'true'}}\nspec: {containers: []}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn, labels: {sidecar.istio.io/inject: 'true'}, annotations: {sidecar.istio.io/inject: 'true'}}\nspec: {containers: []}\n",
    ),
    Case(
        "IST0136",
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn, annotations: {sidecar.istio.io/proxyCPU: 10m}}\nspec: {containers: []}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn, annotations: {sidecar.istio.io/proxyMemoryLimit: 10M}}\nspec: {containers: []}\n",
    ),
    Case(
        "IST0137",
        DEPLOYMENT,
        "apiVersion: v1\nkind: Service\nmetadata: {name: u, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 81, targetPort: 8080}]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: u, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: nn}\nspec: {selector: {app: b}, ports: [{name: http, port: 81, targetPort: 8080}]}\n",
    ),
    Case(
        "IST0138",
        POD,
        concat!(
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "g",
                "{selector: {app: a}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [x.com]}]}"
            ),
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "h",
                "{selector: {app: a}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [y.com]}]}"
            )
        ),
        concat!(
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "g",
                "{selector: {app: a}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [x.com]}]}"
            ),
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "h",
                "{selector: {app: a}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: d}, hosts: [y.com]}]}"
            )
        ),
    ),
    Case(
        "IST0139",
        "apiVersion: v1\nkind: Service\nmetadata: {name: istiod, namespace: istio-system}\nspec: {ports: [{name: https, port: 443}]}\n",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: w}\nwebhooks: [{name: a.istio.io, clientConfig: {service: {name: other, namespace: istio-system}}}]\n",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: w}\nwebhooks: [{name: a.istio.io, clientConfig: {service: {name: istiod, namespace: istio-system}}}]\n",
    ),
    Case(
        "IST0140",
        SERVICE,
        concat!(
            rule!("{hosts: [x.com], gateways: [gw], http: [{route: [{destination: {host: a}}]}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{hosts: [a], http: [{route: [{destination: {host: a, subset: v1}}]}]}"
            )
        ),
        concat!(
            rule!("{hosts: [x.com], gateways: [gw], http: [{route: [{destination: {host: a}}]}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"
            )
        ),
    ),
    Case(
        "IST0144",
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn}\nspec: {securityContext: {runAsUser: 1337}, containers: []}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn}\nspec: {containers: [{name: istio-proxy, securityContext: {runAsUser: 1337}}]}\n",
    ),
    Case(
        "IST0145",
        GATEWAY,
        object!(
            "networking.istio.io/v1",
            "Gateway",
            "other",
            "{selector: {app: a}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [x.com]}]}"
        ),
        object!(
            "networking.istio.io/v1",
            "Gateway",
            "other",
            "{selector: {app: a}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [y.com]}]}"
        ),
    ),
    Case(
        "IST0146",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: nn}\nspec: {template: {metadata: {labels: {app: a}}, spec: {containers: [{name: istio-proxy, image: auto}]}}}\n",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: w}\nwebhooks: [{name: a.istio.io, namespaceSelector: {matchLabels: {istio-injection: enabled}}}]\n",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: w}\nwebhooks: [{name: a.istio.io, objectSelector: {matchExpressions: [{key: app, operator: In, values: [a]}]}}]\n",
    ),
    Case(
        "IST0147",
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn}\nspec: {containers: [{name: istio-proxy, image: auto}]}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: nn}\nspec: {containers: [{name: other, image: auto}]}\n",
    ),
    Case(
        "IST0148",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-sidecar-injector, namespace: istio-system}\ndata: {values: '{\"sidecarInjectorWebhook\":{\"enableNamespacesByDefault\":true}}'}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-sidecar-injector, namespace: istio-system}\ndata: {values: '{\"sidecarInjectorWebhook\":{\"enableNamespacesByDefault\":false}}'}\n",
    ),
    Case(
        "IST0149",
        concat!(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn, labels: {app: a}}\nspec: {containers: []}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: nn}\nspec: {selector: {app: a}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [x.com]}]}\n---",
            rule!(
                "{hosts: [x.com], gateways: [gw], http: [{match: [{headers: {'@request.auth.claims.sub': {exact: a}}}], route: [{destination: {host: a}}]}]}"
            )
        ),
        object!("security.istio.io/v1", "RequestAuthentication", "w", "{selector: {matchLabels: {app: b}}}"),
        object!("security.istio.io/v1", "RequestAuthentication", "w", "{selector: {matchLabels: {app: a}}}"),
    ),
    Case(
        "IST0150",
        "",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {type: ExternalName, externalName: x.com, ports: [{name: tcp, port: 80}]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {type: ExternalName, externalName: x.com, ports: [{name: tcp-x, port: 80}]}\n",
    ),
    Case(
        "IST0151",
        "",
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: HTTP_FILTER, patch: {operation: INSERT_BEFORE, value: {name: x}}}]}"
        ),
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{priority: 10, configPatches: [{applyTo: HTTP_FILTER, patch: {operation: INSERT_BEFORE, value: {name: x}}}]}"
        ),
    ),
    Case(
        "IST0152",
        "",
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: CLUSTER, patch: {operation: REPLACE, value: {name: x}}}]}"
        ),
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: HTTP_FILTER, patch: {operation: REPLACE, value: {name: x}}}]}"
        ),
    ),
    Case(
        "IST0153",
        "",
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: HTTP_ROUTE, patch: {operation: ADD, value: {name: x}}}]}"
        ),
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: CLUSTER, patch: {operation: ADD, value: {name: x}}}]}"
        ),
    ),
    Case(
        "IST0154",
        "",
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: HTTP_ROUTE, patch: {operation: REMOVE}}]}"
        ),
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: CLUSTER, patch: {operation: REMOVE}}]}"
        ),
    ),
    Case(
        "IST0155",
        "",
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: HTTP_FILTER, match: {proxy: {proxyVersion: '1.*'}}, patch: {operation: INSERT_BEFORE, value: {name: x}}}, {applyTo: HTTP_FILTER, patch: {operation: INSERT_BEFORE, value: {name: x}}}]}"
        ),
        object!(
            "networking.istio.io/v1alpha3",
            "EnvoyFilter",
            "f",
            "{configPatches: [{applyTo: HTTP_FILTER, match: {proxy: {proxyVersion: '1.*'}}, patch: {operation: INSERT_BEFORE, value: {name: x}}}, {applyTo: HTTP_FILTER, patch: {operation: INSERT_BEFORE, value: {name: y}}}]}"
        ),
    ),
    Case(
        "IST0157",
        "",
        object!("telemetry.istio.io/v1", "Telemetry", "t", "{accessLogging: [{}]}"),
        object!("telemetry.istio.io/v1", "Telemetry", "t", "{accessLogging: [{providers: [{name: envoy}]}]}"),
    ),
    Case(
        "IST0158",
        concat!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio-injection: enabled}}\n---",
            "\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn}\nspec: {containers: [{name: istio-proxy, image: 'hub/proxyv2:1'}]}\n"
        ),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-sidecar-injector, namespace: istio-system}\ndata: {values: '{\"global\":{\"hub\":\"hub\",\"tag\":\"2\",\"proxy\":{\"image\":\"proxyv2\"}}}'}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-sidecar-injector, namespace: istio-system}\ndata: {values: '{\"global\":{\"hub\":\"hub\",\"tag\":\"1\",\"proxy\":{\"image\":\"proxyv2\"}}}'}\n",
    ),
    Case(
        "IST0159",
        POD,
        concat!(
            object!("telemetry.istio.io/v1", "Telemetry", "t", "{selector: {matchLabels: {app: a}}}"),
            object!("telemetry.istio.io/v1", "Telemetry", "u", "{selector: {matchLabels: {app: a}}}")
        ),
        concat!(
            object!("telemetry.istio.io/v1", "Telemetry", "t", "{selector: {matchLabels: {app: a}}}"),
            object!("telemetry.istio.io/v1", "Telemetry", "u", "{selector: {matchLabels: {app: b}}}")
        ),
    ),
    Case(
        "IST0160",
        "",
        concat!(
            object!("telemetry.istio.io/v1", "Telemetry", "t", "{}"),
            object!("telemetry.istio.io/v1", "Telemetry", "u", "{}")
        ),
        concat!(
            object!("telemetry.istio.io/v1", "Telemetry", "t", "{}"),
            object!("telemetry.istio.io/v1", "Telemetry", "u", "{selector: {matchLabels: {app: b}}}")
        ),
    ),
    Case(
        "IST0161",
        concat!(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn, labels: {app: a}}\nspec: {containers: []}\n",
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "g",
                "{selector: {app: a}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [x.com]}]}"
            )
        ),
        "apiVersion: v1\nkind: Secret\nmetadata: {name: c, namespace: nn}\nstringData: {tls.crt: '-----BEGIN CERTIFICATE----- MIIB -----END CERTIFICATE-----', tls.key: k}\n",
        secret!(good!()),
    ),
    Case(
        "IST0161",
        concat!(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn, labels: {app: a}}\nspec: {containers: []}\n",
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "g",
                "{selector: {app: a}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [x.com]}]}"
            )
        ),
        secret!(old!()),
        secret!(good!()),
    ),
    Case(
        "IST0156",
        "",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: g}\nspec: {group: gateway.networking.k8s.io, names: {kind: HTTPRoute}, versions: [{name: v1alpha2, served: true}]}\n",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: g}\nspec: {group: gateway.networking.k8s.io, names: {kind: HTTPRoute}, versions: [{name: v1, served: true}, {name: v1beta1, served: true}]}\n",
    ),
    Case(
        "IST0172",
        "",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: g}\nspec: {group: gateway.networking.k8s.io, names: {kind: GRPCRoute}, versions: [{name: v1alpha2, served: true}]}\n",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: g}\nspec: {group: gateway.networking.k8s.io, names: {kind: GRPCRoute}, versions: [{name: v1, served: true}]}\n",
    ),
    Case(
        "IST0165",
        "",
        rule!(
            "{hosts: [a], gateways: [n/gw~istio-autogenerated-k8s-gateway~http], http: [{directResponse: {status: 200}}]}"
        ),
        rule!(
            "{hosts: [a], gateways: [istio-autogenerated-k8s-gateway], http: [{directResponse: {status: 200}}]}"
        ),
    ),
    Case(
        "IST0131",
        SERVICE,
        rule!(
            "{hosts: [a], http: [{match: [{uri: {prefix: /x}, method: {exact: PUT}}, {uri: {prefix: /x/y}, method: {exact: PUT}}], route: [{destination: {host: a}}]}]}"
        ),
        rule!(
            "{hosts: [a], http: [{match: [{uri: {prefix: /x}, method: {exact: PUT}}, {uri: {prefix: /x/y}, method: {exact: POST}}], route: [{destination: {host: a}}]}]}"
        ),
    ),
    Case(
        "IST0162",
        concat!(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn, labels: {app: a}}\nspec: {containers: []}\n",
            object!(
                "networking.istio.io/v1",
                "Gateway",
                "g",
                "{selector: {app: a}, servers: [{port: {number: 8080, name: a, protocol: HTTP}, hosts: [x.com]}]}"
            )
        ),
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80}]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}]}\n",
    ),
    Case(
        "IST0163",
        "",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: istio-validator}\nwebhooks: [{name: v, clientConfig: {}}]\n",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: istio-validator}\nwebhooks: [{name: v, clientConfig: {url: 'https://x.com/v'}}]\n",
    ),
    Case(
        "IST0164",
        "",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: istio-validator}\nwebhooks: [{name: v, clientConfig: {url: 'https://1.2.3.4/v'}}]\n",
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: other}\nwebhooks: [{name: v, clientConfig: {url: 'https://1.2.3.4/v'}}]\n",
    ),
    Case(
        "IST0165",
        "",
        rule!(
            "{hosts: [a], gateways: [x-istio-autogenerated-k8s-gateway-y], http: [{directResponse: {status: 200}}]}"
        ),
        rule!("{hosts: [a], gateways: [x], http: [{directResponse: {status: 200}}]}"),
    ),
    Case(
        "IST0166",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn, labels: {app: a, gateway.networking.k8s.io/gateway-name: g}}\nspec: {containers: []}\n",
        object!("security.istio.io/v1", "AuthorizationPolicy", "p", "{selector: {matchLabels: {app: a}}}"),
        object!("security.istio.io/v1", "AuthorizationPolicy", "p", "{selector: {matchLabels: {app: b}}}"),
    ),
    Case(
        "IST0167",
        object!("networking.istio.io/v1", "Sidecar", "s", "{egress: [{hosts: ['*/*']}]}"),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio.io/dataplane-mode: ambient}}\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: nn, labels: {istio.io/dataplane-mode: ambient, istio-injection: enabled}}\n",
    ),
    Case(
        "IST0171",
        "",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: h, namespace: nn}\nspec: {}\nstatus: {parents: [{parentRef: {name: g}, controllerName: c, conditions: [{type: Accepted, status: 'False', reason: No}]}]}\n",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: h, namespace: nn}\nspec: {}\nstatus: {parents: [{parentRef: {name: g}, controllerName: c, conditions: [{type: Other, status: 'False', reason: No}]}]}\n",
    ),
    Case(
        "IST0173",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: nn, labels: {app: a}}\nspec: {containers: []}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: nn}\nspec: {selector: {app: a}, ports: [{name: http, port: 80}]}\n",
        object!(
            "networking.istio.io/v1",
            "DestinationRule",
            "d",
            "{host: a, subsets: [{name: x, labels: {app: b}}]}"
        ),
        object!(
            "networking.istio.io/v1",
            "DestinationRule",
            "d",
            "{host: a, subsets: [{name: x, labels: {app: a}}]}"
        ),
    ),
    Case(
        "IST0174",
        SERVICE,
        object!("networking.istio.io/v1", "DestinationRule", "d", "{host: b}"),
        object!("networking.istio.io/v1", "DestinationRule", "d", "{host: a}"),
    ),
    Case(
        "IST0175",
        object!("security.istio.io/v1", "RequestAuthentication", "w", "{}"),
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: istiod, namespace: istio-system, labels: {app: istiod}}\nspec: {template: {spec: {containers: [{name: discovery}]}}}\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: istiod, namespace: istio-system, labels: {app: istiod}}\nspec: {template: {spec: {containers: [{name: discovery, env: [{name: BLOCKED_CIDRS_IN_JWKS_URIS, value: 10.0.0.0/8}]}]}}}\n",
    ),
    Case(
        "IST0176",
        "",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: tlsroutes.gateway.networking.k8s.io, annotations: {gateway.networking.k8s.io/bundle-version: v1.4.1}}\nspec: {}\n",
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: tlsroutes.gateway.networking.k8s.io, annotations: {gateway.networking.k8s.io/bundle-version: v1.5.0-rc.1}}\nspec: {}\n",
    ),
    Case(
        "IST0177",
        object!(
            "networking.istio.io/v1",
            "ServiceEntry",
            "e",
            "{hosts: [x.com], ports: [{number: 80, name: h, protocol: HTTP}], resolution: DNS}"
        ),
        object!(
            "networking.istio.io/v1",
            "ServiceEntry",
            "f",
            "{hosts: [x.com], ports: [{number: 80, name: h, protocol: GRPC}], resolution: DNS}"
        ),
        object!(
            "networking.istio.io/v1",
            "ServiceEntry",
            "f",
            "{hosts: [x.com], ports: [{number: 80, name: h, protocol: http}], resolution: DNS}"
        ),
    ),
    Case(
        "LENO0001",
        "",
        "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: w, namespace: nn}\nspec: {}\n",
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: w, namespace: nn}\nspec: {}\n",
    ),
    Case(
        "LENO0002",
        "",
        "apiVersion: example.istio.io/v1\nkind: Strange\nmetadata: {name: w, namespace: nn}\nspec: {}\n",
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: w, namespace: nn}\nspec: {}\n",
    ),
    Case(
        "LENO0101",
        SERVICE,
        rule!("{hosts: [a], http: [{delegate: {name: q}}]}"),
        concat!(
            rule!("{hosts: [a], http: [{delegate: {name: q}}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{http: [{route: [{destination: {host: a}}]}]}"
            )
        ),
    ),
    Case(
        "LENO0102",
        SERVICE,
        concat!(
            rule!("{hosts: [a], http: [{match: [{uri: {prefix: /x}}], delegate: {name: q}}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{http: [{match: [{uri: {prefix: /y}}], route: [{destination: {host: a}}]}]}"
            )
        ),
        concat!(
            rule!("{hosts: [a], http: [{match: [{uri: {prefix: /x}}], delegate: {name: q}}]}"),
            object!(
                "networking.istio.io/v1",
                "VirtualService",
                "q",
                "{http: [{match: [{uri: {prefix: /x/y}}], route: [{destination: {host: a}}]}]}"
            )
        ),
    ),
    Case(
        "LENO0103",
        GATEWAY,
        object!(
            "networking.istio.io/v1",
            "Gateway",
            "other",
            "{selector: {app: a}, servers: [{port: {number: 80, name: t, protocol: TCP}, hosts: ['*']}]}"
        ),
        object!(
            "networking.istio.io/v1",
            "Gateway",
            "other",
            "{selector: {app: a}, servers: [{port: {number: 81, name: t, protocol: TCP}, hosts: ['*']}]}"
        ),
    ),
    Case(
        "LENO0107",
        "",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: istio-system}\nspec: {selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}\n",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n",
    ),
    Case(
        "LENO0108",
        object!("security.istio.io/v1", "PeerAuthentication", "p", "{mtls: {mode: STRICT}}"),
        object!("security.istio.io/v1", "PeerAuthentication", "q", "{mtls: {mode: STRICT}}"),
        object!(
            "security.istio.io/v1",
            "PeerAuthentication",
            "q",
            "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}"
        ),
    ),
    Case(
        "LENO0109",
        "",
        object!(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "p",
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}"
        ),
        object!("security.istio.io/v1", "AuthorizationPolicy", "p", "{action: DENY, rules: [{}]}"),
    ),
];

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, namespace: nn}
spec: {template: {metadata: {labels: {app: a, sidecar.istio.io/inject: 'true'}}, spec: {containers: [{name: c}]}}}
";
