//! Clusters for gRPC clients that do without a proxy: what gRPC takes of them (gRFC A27, A32, A42,
//! A50), as istiod's generator for these makes them.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_derive::{Cx, Query};

use super::draft::Draft;
use super::{balancer, find, policy, service_of};
use crate::model::Kind;
use crate::model::destination_rule::{ClientTlsMode, Simple};
use crate::registry::accounts::ServiceAccounts;
use crate::scope::ProxyKey;
use crate::scope::policy::EffectivePolicy;
use crate::translate::endpoint::{self, Endpoints};
use crate::translate::proto::{cluster, core, ty};
use crate::translate::resource::{Resource, pack};
use cluster::cluster::{DiscoveryType, LbPolicy};

/// The name of the certificate provider in the bootstraps of Istio's agents, and of its certificates.
const PROVIDER: &str = "default";
const CERTIFICATE: &str = "default";
const ROOT: &str = "ROOTCA";

/// The only name of a transport socket that gRPC takes.
pub(crate) const TLS: &str = "envoy.transport_sockets.tls";

/// A cluster that a gRPC client asks for by its name; `None` if there is none. A root.
pub(crate) struct GrpcCluster;

impl Query for GrpcCluster {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "grpc-cluster";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        let client = proxy.as_client(cx);
        let key = find(cx, &client.viewer(cx), name).filter(|key| !key.sni)?;
        let service = service_of(cx, &key)?;
        let effective = cx.get::<EffectivePolicy>(&key.policy());
        let by_name = service.resolution.is_dns();
        let kind = if by_name { DiscoveryType::LogicalDns } else { DiscoveryType::Eds };
        let mut draft = Draft::new(name, kind);
        if by_name {
            // Deviation: istiod would have these asked for as endpoints, of which gRPC takes addresses
            // only; of names it takes one (gRFC A37).
            let key = key.endpoints();
            let mut assignment = endpoint::assignment(cx, &key, &client.view(cx, &key));
            assignment.endpoints.truncate(1);
            assignment.endpoints.iter_mut().for_each(|place| place.lb_endpoints.truncate(1));
            draft.cluster.load_assignment = Some(assignment);
        } else {
            draft.cluster.eds_cluster_config = Some(cluster::cluster::EdsClusterConfig {
                service_name: name.clone(),
                eds_config: Some(ads()),
            });
        }
        if let Some(balancing) = &effective.load_balancer {
            if let Some(hash) = &balancing.consistent_hash {
                balancer::consistent_hash(&mut draft.cluster, hash);
            } else if matches!(balancing.simple, Some(Simple::LeastRequest | Simple::LeastConn)) {
                draft.cluster.lb_policy = LbPolicy::LeastRequest as i32;
            }
        }
        let http = effective.connection_pool.as_ref().and_then(|pool| pool.http.as_ref());
        let most = http.and_then(|http| u32::try_from(http.http2_max_requests).ok()).filter(|most| *most > 0);
        draft.cluster.circuit_breakers = most.map(|most| cluster::CircuitBreakers {
            thresholds: vec![cluster::circuit_breakers::Thresholds {
                max_requests: Some(most),
                ..cluster::circuit_breakers::Thresholds::default()
            }],
            ..cluster::CircuitBreakers::default()
        });
        if let Some(outliers) = &effective.outlier_detection {
            draft.cluster.outlier_detection = Some(policy::outlier_message(outliers));
        }
        if effective.tls.as_ref().and_then(|tls| tls.mode) == Some(ClientTlsMode::IstioMutual) {
            let identities = cx.get::<ServiceAccounts>(&service.id);
            draft.cluster.transport_socket = Some(socket(&tls::UpstreamTlsContext {
                common_tls_context: Some(common_tls(&identities)),
                ..tls::UpstreamTlsContext::default()
            }));
        }
        let rules = key.rules.iter().map(|rule| rule.of(Kind::DestinationRule));
        let origins = rules.chain([service.id.object.clone()]).collect();
        Some(Arc::new(Resource::new(name, &draft.finish(), origins)))
    }
}

/// The endpoints that a gRPC client asks for by a cluster's name. A root.
pub(crate) struct GrpcEndpoints;

impl Query for GrpcEndpoints {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "grpc-endpoints";

    fn derive(cx: &Cx<'_>, (proxy, name): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        cx.get::<Endpoints>(&(proxy.as_client(cx), name.clone())).as_ref().clone()
    }
}

/// "From the stream on which this came", as gRPC knows it.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..core::ConfigSource::default()
    }
}

/// A transport socket with a context of TLS.
pub(crate) fn socket<T: prost::Message + prost::Name>(context: &T) -> core::TransportSocket {
    core::TransportSocket {
        name: TLS.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(context))),
    }
}

/// Certificates and roots from the provider of the client's bootstrap. Older gRPC knows the
/// deprecated fields only.
#[allow(deprecated, reason = "gRPC reads this field, and not what is to come in its place")]
pub(crate) fn common_tls(identities: &[String]) -> tls::CommonTlsContext {
    use tls::common_tls_context::{
        CertificateProviderInstance, CombinedCertificateValidationContext, ValidationContextType,
    };
    use ty::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
    let old = |name: &str| CertificateProviderInstance {
        instance_name: PROVIDER.to_owned(),
        certificate_name: name.to_owned(),
    };
    let new = |name: &str| tls::CertificateProviderPluginInstance {
        instance_name: PROVIDER.to_owned(),
        certificate_name: name.to_owned(),
    };
    let matcher = |identity: &String| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(identity.clone())),
        ..StringMatcher::default()
    };
    tls::CommonTlsContext {
        tls_certificate_provider_instance: Some(new(CERTIFICATE)),
        tls_certificate_certificate_provider_instance: Some(old(CERTIFICATE)),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(tls::CertificateValidationContext {
                    match_subject_alt_names: identities.iter().map(matcher).collect(),
                    ca_certificate_provider_instance: Some(new(ROOT)),
                    ..tls::CertificateValidationContext::default()
                }),
                validation_context_certificate_provider_instance: Some(old(ROOT)),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        ..tls::CommonTlsContext::default()
    }
}
