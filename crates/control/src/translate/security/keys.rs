//! Where proxies find the keys of those who issue tokens.
//!
//! Deviation: istiod by default fetches `jwksUri` itself and sends proxies the keys. Here proxies fetch
//! them, as Istio's do with `PILOT_JWT_ENABLE_REMOTE_JWKS=envoy`: from the mesh's cluster for the host,
//! or from one made for the purpose, `jwks|PORT|SCHEME|HOST`, if the host is not a service that the
//! workload sees, or if the address says `https`, as the mesh's own cluster would send plain text there.
//! They keep keys for five minutes, unless `PILOT_JWT_PUB_KEY_REFRESH_INTERVAL` says otherwise.
//!
//! Where the keys of an issuer are that a rule names without an address, the control plane asks the issuer
//! ([`IssuersToAsk`], `access/discovery.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leno_api::proto::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use leno_derive::{Cx, Input, Query};
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::subject_alt_name_matcher::SanType;

use super::matcher;
use crate::access::address_of_issuer;
use crate::model::duration::Span;
use crate::model::inputs::RequestAuthentications;
use crate::model::request_authentication::{JwtRule, Place};
use crate::model::switches::SwitchInput;
use crate::model::{Kind, ObjectRef};
use crate::registry::protocol::Protocol;
use crate::registry::targets::Workload;
use crate::registry::{Mesh, Resolution};
use crate::scope::security::AuthenticationOf;
use crate::scope::sidecar::{self, Sight};
use crate::translate::proto::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily};
use crate::translate::proto::{cluster, core, endpoint};
use crate::translate::resource::{Resource, address, pack};
use crate::translate::{name, secret};

/// How long fetching may take if a rule does not say, and how long keys are good for.
const TIMEOUT: prost_types::Duration = prost_types::Duration { seconds: 5, nanos: 0 };
const LIFETIME: prost_types::Duration = prost_types::Duration { seconds: 300, nanos: 0 };

/// Keys that verify nothing: nobody has the private half of the one that Envoy insists on.
const NO_KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","x":"m-Y7UAFh4Cg9PBwYlZmW_YOZpwJHJfKXUPDuDEo0sHg","y":"99s9sWRWiijyIM72d6Cs4mEkw_eq0kUhWJM8a_C-yNM"}]}"#;

impl Place {
    /// The name of the cluster that leads there, if none of the mesh's does.
    fn cluster(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("jwks|{}|{scheme}|{}", self.port, self.host)
    }

    /// The mesh's cluster that leads there.
    fn in_mesh(&self, cx: &Cx<'_>, sight: &Sight) -> Option<String> {
        if self.secure {
            return None;
        }
        let visible = sidecar::visible(cx, sight);
        let service = visible.get(&self.host)?;
        let port = service.port(self.port)?;
        let usable = port.protocol != Protocol::Datagram
            && !matches!(service.resolution, Resolution::Alias | Resolution::Dynamic);
        usable.then(|| name::outbound(self.port, "", &self.host))
    }
}

/// The keys of a rule, for workloads that see so much.
pub(super) fn source(cx: &Cx<'_>, sight: &Sight, rule: &JwtRule) -> jwt::jwt_provider::JwksSourceSpecifier {
    use jwt::jwt_provider::JwksSourceSpecifier;
    let here = |keys: &str| {
        JwksSourceSpecifier::LocalJwks(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(keys.to_owned())),
            ..core::DataSource::default()
        })
    };
    // Keys that are given are not fetched.
    if !rule.jwks.is_empty() {
        return here(&rule.jwks);
    }
    // Until the issuer has said where they are, none of its tokens is good.
    let Some((uri, place)) = remote(cx, rule) else { return here(NO_KEYS) };
    let cluster = place.in_mesh(cx, sight).unwrap_or_else(|| place.cluster());
    let lifetime = cx.input::<SwitchInput>(&()).and_then(|switches| switches.keys_lifetime);
    let lifetime = lifetime.map_or(LIFETIME, Span::to_proto);
    JwksSourceSpecifier::RemoteJwks(jwt::RemoteJwks {
        http_uri: Some(core::HttpUri {
            uri,
            timeout: Some(rule.timeout.map_or(TIMEOUT, Span::to_proto)),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster)),
        }),
        cache_duration: Some(lifetime),
        ..jwt::RemoteJwks::default()
    })
}

/// Where the keys of a rule are to be fetched; `None`: it holds them, or it is not known yet.
fn remote(cx: &Cx<'_>, rule: &JwtRule) -> Option<(String, Place)> {
    if !rule.jwks.is_empty() {
        return None;
    }
    let uri = match rule.jwks_uri.as_str() {
        "" => cx.input::<KeyAddressInput>(&rule.issuer)?.as_ref().clone(),
        uri => uri.to_owned(),
    };
    let place = Place::parse(&uri)?;
    Some((uri, place))
}

/// Where issuers have said that their keys are.
#[derive(Debug)]
pub(crate) struct KeyAddressInput;

impl Input for KeyAddressInput {
    /// The issuer.
    type Key = String;
    /// The address of its JSON web key set.
    type Value = String;
    const NAME: &'static str = "key-addresses";
}

/// The issuers that are to be asked where their keys are. A root.
pub(crate) struct IssuersToAsk;

impl Query for IssuersToAsk {
    type Key = ();
    type Value = BTreeSet<String>;
    const NAME: &'static str = "issuers-to-ask";

    fn derive(cx: &Cx<'_>, (): &()) -> BTreeSet<String> {
        let all = cx.all::<RequestAuthentications>().into_iter();
        let all = all.filter_map(|key| cx.input::<RequestAuthentications>(&key));
        let mut issuers = BTreeSet::new();
        for policy in all {
            let rules = policy.spec.jwt_rules.iter();
            let asked = rules.filter(|rule| rule.jwks.is_empty() && rule.jwks_uri.is_empty());
            let asked = asked.filter(|rule| address_of_issuer(&rule.issuer).is_some());
            issuers.extend(asked.map(|rule| rule.issuer.clone()));
        }
        issuers
    }
}

/// The clusters that are made for the keys of a workload's issuers.
pub(crate) struct KeyClusters;

impl Query for KeyClusters {
    type Key = (Workload, Sight);
    type Value = Vec<Arc<Resource>>;
    const NAME: &'static str = "key-clusters";

    fn derive(cx: &Cx<'_>, (workload, sight): &(Workload, Sight)) -> Vec<Arc<Resource>> {
        let policies = cx.get::<AuthenticationOf>(workload);
        let mut places: BTreeMap<Place, Vec<ObjectRef>> = BTreeMap::new();
        for policy in policies.iter() {
            for (_, place) in policy.spec.jwt_rules.iter().filter_map(|rule| remote(cx, rule)) {
                if place.in_mesh(cx, sight).is_none() {
                    let object = policy.meta.key().of(Kind::RequestAuthentication);
                    places.entry(place).or_default().push(object);
                }
            }
        }
        let connect_timeout = cx.get::<Mesh>(&()).connect_timeout.to_proto();
        places
            .into_iter()
            .map(|(place, origins)| {
                let message = cluster(&place, connect_timeout);
                Arc::new(Resource::new(&message.name, &message, origins))
            })
            .collect()
    }
}

/// A cluster that leads to a place outside of the mesh.
#[expect(deprecated, reason = "Istio's configuration has these fields for clusters of names")]
fn cluster(place: &Place, connect_timeout: prost_types::Duration) -> cluster::Cluster {
    let name = place.cluster();
    let target = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address(&place.host, place.port)),
            ..endpoint::Endpoint::default()
        })),
        ..endpoint::LbEndpoint::default()
    };
    cluster::Cluster {
        alt_stat_name: format!("{name};"),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32)),
        dns_lookup_family: DnsLookupFamily::V4Preferred as i32,
        respect_dns_ttl: true,
        connect_timeout: Some(connect_timeout),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![endpoint::LocalityLbEndpoints {
                lb_endpoints: vec![target],
                ..endpoint::LocalityLbEndpoints::default()
            }],
            ..endpoint::ClusterLoadAssignment::default()
        }),
        transport_socket: place.secure.then(|| socket(&place.host)),
        name,
        ..cluster::Cluster::default()
    }
}

/// TLS with the roots of the operating system, and a certificate for the host.
fn socket(host: &str) -> core::TransportSocket {
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    let kind = if is_address { SanType::IpAddress } else { SanType::Dns };
    let validation = tls::CertificateValidationContext {
        match_typed_subject_alt_names: vec![tls::SubjectAltNameMatcher {
            san_type: kind as i32,
            matcher: Some(matcher::exact(host)),
            ..tls::SubjectAltNameMatcher::default()
        }],
        ..tls::CertificateValidationContext::default()
    };
    let context = tls::UpstreamTlsContext {
        sni: if is_address { String::new() } else { host.to_owned() },
        common_tls_context: Some(tls::CommonTlsContext {
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    validation_context_sds_secret_config: Some(secret::of_workload("file-root:system")),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..tls::CommonTlsContext::default()
        }),
        ..tls::UpstreamTlsContext::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn places_are_read_from_addresses() {
        let cluster = |uri: &str| Place::parse(uri).map(|place| place.cluster());
        let check = |uri: &str, expected: &str| assert_eq!(cluster(uri).as_deref(), Some(expected), "{uri}");
        check("https://a.b/keys", "jwks|443|https|a.b");
        check("HTTP://A.b", "jwks|80|http|a.b");
        check("http://u:p@a.b:8080/x?y=z:1", "jwks|8080|http|a.b");
        check("https://[2001:db8::1]:8443/", "jwks|8443|https|2001:db8::1");
        check("https://10.0.0.1?x", "jwks|443|https|10.0.0.1");
        for bad in ["", "a.b", "ftp://a.b", "https:///x", "http://a:0/", "http://a:x/", "http://[::1/"] {
            assert_eq!(cluster(bad), None, "{bad}");
        }
    }
}
