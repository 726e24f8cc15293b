//! `forward_proto_config`: `x-forwarded-proto` by the port that a PROXY protocol header names.

use leno_api::proto::envoy::extensions::filters::network::http_connection_manager::v3::ForwardProtoConfig;

use crate::telemetry::stream_info::ConnectionInfo;

/// ForwardProtoConfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardProto {
    https: Vec<u32>,
    http: Vec<u32>,
}

impl ForwardProto {
    pub(super) fn lower(proto: ForwardProtoConfig) -> Box<Self> {
        let ForwardProtoConfig { https_destination_ports, http_destination_ports } = proto;
        Box::new(Self { https: https_destination_ports, http: http_destination_ports })
    }

    /// The scheme of a connection whose PROXY protocol header names one of the ports; `None`: its
    /// own.
    pub(crate) fn scheme(&self, connection: &ConnectionInfo) -> Option<&'static [u8]> {
        let port = u32::from(connection.found.origin.as_ref()?.destination.port());
        if self.https.contains(&port) {
            Some(b"https")
        } else if self.http.contains(&port) {
            Some(b"http")
        } else {
            None
        }
    }
}
