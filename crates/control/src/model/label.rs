//! Names of labels, and of what else objects are told apart by, that several parts of the control plane
//! look at. Those that only one looks at are there.

/// On pods that are made for a Gateway of the Gateway API: its name.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// On workloads: `istio` if they can speak mutual TLS.
pub(crate) const TLS_MODE: &str = "security.istio.io/tlsMode";

/// On namespaces, pods and webhooks: the revision of the control plane that looks after them.
pub(crate) const REVISION: &str = "istio.io/rev";

/// Of a GatewayClass: who looks after its Gateways; we, if it is this.
pub(crate) const GATEWAY_CONTROLLER: &str = "istio.io/gateway-controller";

/// The same of a GatewayClass whose gateways are in another cluster: nobody runs or configures them here.
pub(crate) const REMOTE_CONTROLLER: &str = "istio.io/unmanaged-gateway";

/// On objects that are made for a Gateway: by whom.
pub(crate) const GATEWAY_MANAGED: &str = "gateway.istio.io/managed";
