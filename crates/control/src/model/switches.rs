//! Switches of the control plane itself, read once at its start from environment variables under the
//! names that istiod gives them.

use leno_derive::Input;

use super::duration::Span;

/// The switches; all are off by default but where it says otherwise, as in istiod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switches {
    /// `PILOT_SCOPE_GATEWAY_TO_NAMESPACE`: a gateway workload takes Gateways of its own namespace
    /// only.
    pub(crate) scope_gateway_to_namespace: bool,
    /// `PILOT_HTTP10`: all proxies accept HTTP/1.0.
    pub(crate) http10: bool,
    /// `PILOT_SIDECAR_USE_REMOTE_ADDRESS`: sidecars trust the address of their workload's
    /// connections, so that it is in x-forwarded-for.
    pub(crate) sidecar_use_remote_address: bool,
    /// `ISTIO_DUAL_STACK`: proxies with addresses of both families listen on both.
    pub(crate) dual_stack: bool,
    /// `PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS`: AuthorizationPolicies with the action CUSTOM
    /// may name several providers for one workload.
    pub(crate) multiple_authorizers: bool,
    /// `K8S_INGRESS_NS`: where the gateways are that serve Ingresses; not a switch, and empty for
    /// `istio-system`.
    pub(crate) ingress_namespace: String,
    /// `PILOT_ENABLE_XDS_IDENTITY_CHECK`, on by default: an authenticated proxy must be of the
    /// namespace and service account that its node says. Without it nobody gets credentials.
    pub(crate) checks_identity: bool,
    /// `PILOT_JWT_PUB_KEY_REFRESH_INTERVAL`: after how long proxies fetch the keys of an issuer again.
    pub(crate) keys_lifetime: Option<Span>,
    /// `PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER`, on by default: gateways are deployed for Gateways of the
    /// Gateway API.
    pub(crate) deploys_gateways: bool,
    /// `PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER`, on by default: the GatewayClasses of Istio are made.
    pub(crate) makes_classes: bool,
    /// `ENABLE_GATEWAY_API_MANUAL_DEPLOYMENT`, on by default: a Gateway may name a Service that is there already in
    /// place of having one made.
    pub(crate) manual_gateways: bool,
    /// `PILOT_ENABLE_GATEWAY_API_COPY_LABELS_ANNOTATIONS`, on by default: what is made for a Gateway has its labels
    /// and annotations, unless its `infrastructure` has others.
    pub(crate) copies_metadata: bool,
    /// `LENO_LAZY`, on by default: sidecars that can ask for clusters when they first use them are
    /// told only of those that workloads like theirs have used.
    pub(crate) lazy: bool,
    /// `LENO_LAZY_ROUTES`, on by default: the same of the virtual hosts of their routes, of Leno's proxies.
    pub(crate) lazy_routes: bool,
    /// `ISTIO_MULTIROOT_MESH`: agents are told the roots of the MeshConfig (PCDS).
    pub(crate) multi_root: bool,
    /// `ENABLE_DEBUG_ON_HTTP`, on by default: the debug pages are served over HTTP too, not only over
    /// xDS.
    pub(crate) debug_on_http: bool,
    /// `DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES`, a list with commas: whose workloads may see all debug
    /// pages, besides those of the root namespace.
    pub(crate) debug_namespaces: Vec<String>,
}

impl Default for Switches {
    fn default() -> Switches {
        Switches::read(|_| None)
    }
}

impl Switches {
    /// Reads them; `variable` gives the value of an environment variable.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Switches {
        let on = |name: &str| {
            variable(name)
                .is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
        };
        let on_unless_off = |name: &str| variable(name).is_none() || on(name);
        let list = |name: &str| {
            let text = variable(name).unwrap_or_default();
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        Switches {
            scope_gateway_to_namespace: on("PILOT_SCOPE_GATEWAY_TO_NAMESPACE"),
            http10: on("PILOT_HTTP10"),
            sidecar_use_remote_address: on("PILOT_SIDECAR_USE_REMOTE_ADDRESS"),
            dual_stack: on("ISTIO_DUAL_STACK"),
            multiple_authorizers: on("PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS"),
            ingress_namespace: variable("K8S_INGRESS_NS").unwrap_or_default(),
            checks_identity: on_unless_off("PILOT_ENABLE_XDS_IDENTITY_CHECK"),
            keys_lifetime: variable("PILOT_JWT_PUB_KEY_REFRESH_INTERVAL")
                .and_then(|text| Span::parse(&text))
                .filter(|span| !span.0.is_zero()),
            deploys_gateways: on_unless_off("PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER"),
            makes_classes: on_unless_off("PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER"),
            manual_gateways: on_unless_off("ENABLE_GATEWAY_API_MANUAL_DEPLOYMENT"),
            copies_metadata: on_unless_off("PILOT_ENABLE_GATEWAY_API_COPY_LABELS_ANNOTATIONS"),
            lazy: on_unless_off("LENO_LAZY"),
            lazy_routes: on_unless_off("LENO_LAZY_ROUTES"),
            multi_root: on("ISTIO_MULTIROOT_MESH"),
            debug_on_http: on_unless_off("ENABLE_DEBUG_ON_HTTP"),
            debug_namespaces: list("DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES"),
        }
    }
}

/// The switches as an input of the derivation graph; without a value they are off.
#[derive(Debug)]
pub(crate) struct SwitchInput;

impl Input for SwitchInput {
    type Key = ();
    type Value = Switches;
    const NAME: &'static str = "switches";
}

/// The environment of the control plane, of which the headers of providers may name variables.
#[derive(Debug)]
pub(crate) struct VariableInput;

impl Input for VariableInput {
    /// The variable's name.
    type Key = String;
    type Value = String;
    const NAME: &'static str = "variables";
}
