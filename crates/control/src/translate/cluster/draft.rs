//! A cluster on its way: the message, and the HTTP options that are packed into it at the end.

use leno_api::proto::envoy::extensions::upstreams::http::v3 as upstreams;
use upstreams::http_protocol_options as options;

use crate::translate::proto::{cluster, core};
use crate::translate::resource::pack;

/// Where Envoy looks for the options of an HTTP upstream.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Ends the part of a statistic's name that is the cluster's; Istio's bootstraps find it by this.
const STAT_DELIMITER: char = ';';

/// A cluster that is being built.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) cluster: cluster::Cluster,
    /// None are sent as long as nobody has asked for them.
    http: Option<upstreams::HttpProtocolOptions>,
}

impl Draft {
    /// A cluster of a kind that has a name of its own in statistics.
    pub(super) fn new(name: &str, kind: cluster::cluster::DiscoveryType) -> Draft {
        let mut draft = Draft {
            cluster: cluster::Cluster {
                name: name.to_owned(),
                cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(kind as i32)),
                ..cluster::Cluster::default()
            },
            http: None,
        };
        draft.set_stat_name(name);
        draft
    }

    /// Names the cluster in statistics.
    pub(super) fn set_stat_name(&mut self, name: &str) {
        self.cluster.alt_stat_name = format!("{name}{STAT_DELIMITER}");
    }

    /// How endpoints are found.
    pub(super) fn kind(&self) -> Option<cluster::cluster::DiscoveryType> {
        use cluster::cluster::ClusterDiscoveryType;
        match self.cluster.cluster_discovery_type.as_ref()? {
            ClusterDiscoveryType::Type(kind) => cluster::cluster::DiscoveryType::try_from(*kind).ok(),
            ClusterDiscoveryType::ClusterType(_) => None,
        }
    }

    /// Whether endpoints are found by the name that each request or connection asks for.
    pub(super) fn is_dynamic(&self) -> bool {
        use cluster::cluster::ClusterDiscoveryType;
        matches!(self.cluster.cluster_discovery_type, Some(ClusterDiscoveryType::ClusterType(_)))
    }

    /// The HTTP options, which from now on are sent.
    pub(super) fn http(&mut self) -> &mut upstreams::HttpProtocolOptions {
        self.http.get_or_insert_default()
    }

    /// The HTTP options that concern all versions.
    pub(super) fn common_http(&mut self) -> &mut core::HttpProtocolOptions {
        self.http().common_http_protocol_options.get_or_insert_default()
    }

    /// The HTTP options that concern the relation to the request, as which name is asked for.
    pub(super) fn upstream_http(&mut self) -> &mut core::UpstreamHttpProtocolOptions {
        self.http().upstream_http_protocol_options.get_or_insert_default()
    }

    /// Speaks HTTP/2 from the first byte, unless it has been said what is spoken.
    pub(super) fn speak_http2(&mut self) {
        self.http().upstream_protocol_options.get_or_insert_with(|| {
            options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                protocol_config: Some(options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                    core::Http2ProtocolOptions::default(),
                )),
            })
        });
    }

    /// Speaks HTTP/1.1 with the given options.
    pub(super) fn speak_http1(&mut self, settings: core::Http1ProtocolOptions) {
        self.http().upstream_protocol_options =
            Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                protocol_config: Some(options::explicit_http_config::ProtocolConfig::HttpProtocolOptions(
                    settings,
                )),
            }));
    }

    /// Speaks what the client speaks; options for HTTP/1.1 stay.
    pub(super) fn speak_as_client(&mut self) {
        use options::explicit_http_config::ProtocolConfig;
        let http = self.http();
        let http1 = match http.upstream_protocol_options.take() {
            Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(settings)),
            })) => settings,
            _ => core::Http1ProtocolOptions::default(),
        };
        http.upstream_protocol_options = Some(options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            options::UseDownstreamHttpConfig {
                http_protocol_options: Some(http1),
                http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
                ..options::UseDownstreamHttpConfig::default()
            },
        ));
    }

    /// The options of HTTP/2, if that is what is spoken whatever the client speaks.
    pub(super) fn http2(&mut self) -> Option<&mut core::Http2ProtocolOptions> {
        use options::explicit_http_config::ProtocolConfig;
        match self.http.as_mut()?.upstream_protocol_options.as_mut()? {
            options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(settings)),
            }) => Some(settings),
            _ => None,
        }
    }

    /// The finished message.
    pub(super) fn finish(mut self) -> cluster::Cluster {
        if let Some(mut http) = self.http {
            // Envoy insists on one; HTTP/1.1 is what it speaks otherwise.
            http.upstream_protocol_options.get_or_insert_with(|| {
                options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
                    protocol_config: Some(
                        options::explicit_http_config::ProtocolConfig::HttpProtocolOptions(
                            core::Http1ProtocolOptions::default(),
                        ),
                    ),
                })
            });
            self.cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), pack(&http));
        }
        self.cluster
    }
}
