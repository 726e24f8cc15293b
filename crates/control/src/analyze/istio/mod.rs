//! istioctl's analyzers: they raise its messages, with its codes, about the same objects.
//!
//! Each is a function over the objects as they were written ([`super::raw`]); together they are the
//! derivation [`Analyzed`], one value for each analyzer, which is derived anew when an object of a kind
//! that it has looked at changes.

mod annotation;
mod deployment;
mod destination_rule;
mod envoy_filter;
mod gateway;
mod hosts;
mod injection;
mod mesh;
mod policy;
mod selector;
mod service;
#[cfg(test)]
mod tests;
mod virtual_service;
mod webhook;

use leno_derive::{Cx, Query};

use super::message::Message;

/// An analyzer.
pub(crate) struct Analyzer {
    /// As `istioctl analyze --list-analyzers` calls it.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    run: fn(&Cx<'_>, &mut Vec<Message>),
}

const fn analyzer(name: &'static str, help: &'static str, run: fn(&Cx<'_>, &mut Vec<Message>)) -> Analyzer {
    Analyzer { name, help, run }
}

/// All analyzers.
pub(crate) const ANALYZERS: &[Analyzer] = &[
    analyzer("annotations.AlphaAnalyzer", "Annotations of alpha features", annotation::alpha),
    analyzer("annotations.K8sAnalyzer", "Misplaced, unknown and invalid annotations", annotation::placed),
    analyzer("applicationUID.Analyzer", "Workloads with the proxy's user", deployment::user),
    analyzer(
        "auth.AuthorizationPoliciesAnalyzer",
        "What authorization policies refer to",
        policy::authorization,
    ),
    analyzer("authn.BlockedCIDRsAnalyzer", "Unrestricted fetches of keys", policy::blocked_ranges),
    analyzer("conditions.ConditionAnalyzer", "Negative conditions in status", policy::conditions),
    analyzer(
        "deployment.MultiServiceAnalyzer",
        "Deployments behind services that differ",
        deployment::services,
    ),
    analyzer("deprecation.DeprecationAnalyzer", "Deprecated kinds and fields", mesh::deprecation),
    analyzer(
        "destinationrule.CaCertificateAnalyzer",
        "TLS without verification",
        destination_rule::certificates,
    ),
    analyzer(
        "destinationrule.SubsetSelectPodAnalyzer",
        "Hosts and subsets of nothing",
        destination_rule::subsets,
    ),
    analyzer("envoyfilter.EnvoyPatchAnalyzer", "Operations of patches", envoy_filter::patches),
    analyzer(
        "externalcontrolplane.ExternalControlPlaneAnalyzer",
        "Webhooks of external control planes",
        webhook::external,
    ),
    analyzer("gateway.CertificateAnalyzer", "Gateways with the same certificate", gateway::certificates),
    analyzer(
        "gateway.ConflictingGatewayAnalyzer",
        "Gateways with the same port and hosts",
        gateway::conflicts,
    ),
    analyzer("gateway.IngressGatewayPortAnalyzer", "Ports of gateways and of their services", gateway::ports),
    analyzer("gateway.SecretAnalyzer", "Secrets that gateways refer to", gateway::secrets),
    analyzer("injection.Analyzer", "Namespaces and pods without proxies", injection::injected),
    analyzer("injection.ImageAnalyzer", "Proxies of another version than is injected", injection::images),
    analyzer("injection.ImageAutoAnalyzer", "`image: auto` that nobody replaces", injection::auto),
    analyzer("k8sgateway.CRDVersionAnalyzer", "Versions of the Gateway API", mesh::definitions),
    analyzer("k8sgateway.SelectorAnalyzer", "Selectors that gateways do not heed", selector::gateway_api),
    analyzer("meshnetworks.MeshNetworksAnalyzer", "Registries of networks", mesh::networks),
    analyzer("precheck.GatewayAPIAnalyzer", "Versions in which the Gateway API is served", mesh::served),
    analyzer("service.PortNameAnalyzer", "Names of ports", service::port_names),
    analyzer("serviceentry.Analyzer", "Addresses of TCP services", service::addresses),
    analyzer(
        "serviceentry.ConflictingServiceEntryProtocolAnalyzer",
        "Entries that disagree on protocols",
        service::protocols,
    ),
    analyzer("sidecar.SelectorAnalyzer", "Selectors of Sidecars", selector::sidecars),
    analyzer(
        "telemetry.DefaultSelectorAnalyzer",
        "Telemetries without selector",
        selector::telemetry_defaults,
    ),
    analyzer("telemetry.LightstepAnalyzer", "Providers that are deprecated", mesh::lightstep),
    analyzer("telemetry.ProviderAnalyzer", "Telemetries without provider", mesh::providers),
    analyzer("telemetry.SelectorAnalyzer", "Selectors of Telemetries", selector::telemetries),
    analyzer(
        "virtualservice.ConflictingMeshGatewayHostsAnalyzer",
        "Rules for the same host",
        virtual_service::conflicts,
    ),
    analyzer(
        "virtualservice.DestinationHostAnalyzer",
        "Destinations that are not there",
        virtual_service::destinations,
    ),
    analyzer(
        "virtualservice.DestinationRuleAnalyzer",
        "Subsets that are not there",
        virtual_service::subsets,
    ),
    analyzer("virtualservice.GatewayAnalyzer", "Gateways that are not there", virtual_service::gateways),
    analyzer(
        "virtualservice.JWTClaimRouteAnalyzer",
        "Routes by claims that nobody checks",
        virtual_service::claims,
    ),
    analyzer(
        "virtualservice.UnreachableRuleAnalyzer",
        "Rules that are never reached",
        virtual_service::unreachable,
    ),
    analyzer("webhook.Analyzer", "Webhooks that overlap", webhook::injectors),
];

/// What an analyzer, by its place in the list, has to say.
pub(crate) struct Analyzed;

impl Query for Analyzed {
    type Key = usize;
    type Value = Vec<Message>;
    const NAME: &'static str = "analyzed";

    fn derive(cx: &Cx<'_>, place: &usize) -> Vec<Message> {
        let mut messages = Vec::new();
        if let Some(analyzer) = ANALYZERS.get(*place) {
            (analyzer.run)(cx, &mut messages);
        }
        messages
    }
}
