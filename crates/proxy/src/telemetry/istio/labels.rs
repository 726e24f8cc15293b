//! The labels of Istio's metrics: what they depend on, and how they follow from it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::{Family, Settings};
use crate::http::headers::{HeaderMap, Known};
use crate::telemetry::access_log::command::short_flags;
use crate::telemetry::stream_info::{ClusterFacts, FilterState, FilterStates, MeshService, StreamInfo};
use crate::telemetry::workload::{DOWNSTREAM_PEER, NO_PEER, UPSTREAM_PEER, Workload};
use crate::tls::TlsInfo;

/// All labels, in the order in which Istio's proxy shows them.
pub(super) const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// Clusters that stand for no service; their names are shown in its place.
const NO_SERVICE: [&str; 5] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];

/// A label's name, shared by all that have it.
pub(super) fn name(label: &'static str) -> Arc<str> {
    static NAMES: LazyLock<HashMap<&str, Arc<str>>> =
        LazyLock::new(|| LABELS.into_iter().map(|label| (label, label.into())).collect());
    NAMES.get(label).map_or_else(|| label.into(), Arc::clone)
}

/// Whose view is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `source`: the proxy of the client.
    Client,
    /// `destination`: the proxy of the server.
    Server,
    /// `waypoint`: a gateway in front of servers.
    Gateway,
}

/// Where a request or session goes.
#[derive(Clone, Copy, Debug)]
enum Destination<'a> {
    Unknown,
    /// A cluster or route that stands for no service.
    Named(&'a str),
    Service(&'a MeshService),
}

/// What the labels of a request or session depend on.
#[derive(Clone, Debug)]
pub(crate) struct Seen<'a> {
    side: Side,
    /// Whom this proxy talks to.
    peer: Option<&'a FilterState>,
    /// What the control plane says of the endpoint, where the peer says nothing of itself.
    endpoint: Option<&'a str>,
    /// The server behind a gateway.
    server: Option<&'a FilterState>,
    /// The peer's identity, empty if there is none.
    peer_principal: Cow<'a, str>,
    /// This proxy's own.
    own_principal: Cow<'a, str>,
    /// The host header, if it may stand for a service; else empty.
    host: &'a [u8],
    destination: Destination<'a>,
    /// `http`, `grpc` or `tcp`.
    protocol: &'static str,
    /// 0: none.
    code: u16,
    grpc_status: Option<u32>,
    info: &'a StreamInfo,
}

/// Whether a peer has said, or will not say, who it is.
pub(crate) fn knows_peer(side: Side, info: &StreamInfo) -> bool {
    let (states, key) = states(side, info);
    states.contains(key) || states.contains(NO_PEER)
}

/// Where the facts of the peer are. Those of a TCP session's server are with its connection.
fn states(side: Side, info: &StreamInfo) -> (&FilterStates, &'static str) {
    match side {
        Side::Client if info.protocol.is_none() => (&info.upstream.filter_state, UPSTREAM_PEER),
        Side::Client => (&info.filter_state, UPSTREAM_PEER),
        Side::Server | Side::Gateway => (&info.filter_state, DOWNSTREAM_PEER),
    }
}

impl<'a> Seen<'a> {
    /// What is known of a stream or session now.
    pub(crate) fn new(
        settings: &Settings,
        info: &'a StreamInfo,
        request: Option<&'a HeaderMap>,
        protocol: &'static str,
        grpc_status: Option<u32>,
    ) -> Self {
        let side = settings.side;
        let (states, key) = states(side, info);
        let peer = states.get(key).filter(|state| state.peer.is_some());
        let endpoint = match (side, peer) {
            (Side::Client, None) => endpoint(info),
            _ => None,
        };
        let server = match side {
            Side::Gateway => info.filter_state.get(UPSTREAM_PEER),
            Side::Client | Side::Server => None,
        };
        let [peer_principal, own_principal] = match side {
            Side::Client => {
                let [peer_name, own] = principals(info.upstream.tls.as_deref());
                let identity = || peer.and_then(|state| state.peer.as_ref()).map(|peer| &*peer.identity);
                let named = if peer_name.is_empty() { identity().unwrap_or_default() } else { peer_name };
                [named.into(), own.into()]
            }
            Side::Server | Side::Gateway => {
                let left = |key| info.filter_state.get(key).map_or("", |state| state.text.as_str());
                match ["io.istio.peer_principal", "io.istio.local_principal"].map(left) {
                    ["", ""] => principals(info.connection.tls.as_deref()).map(Cow::Borrowed),
                    left => left.map(Cow::Borrowed),
                }
            }
        };
        let host = request.filter(|_| settings.host_fallback).and_then(|head| head.get(Known::Authority));
        Self {
            side,
            peer,
            endpoint,
            server,
            peer_principal,
            own_principal,
            host: host.unwrap_or_default(),
            destination: destination(info),
            protocol,
            code: info.response_code,
            grpc_status,
            info,
        }
    }

    /// Writes all that the labels depend on.
    pub(super) fn write(&self, key: &mut Vec<u8>) {
        let text = |state: Option<&'a FilterState>| state.map_or("", |state| state.text.as_str());
        put(key, text(self.peer).as_bytes());
        put(
            key,
            self.peer.and_then(|state| state.peer.as_ref()).map_or("", |peer| &*peer.identity).as_bytes(),
        );
        put(key, self.endpoint.unwrap_or_default().as_bytes());
        put(key, text(self.server).as_bytes());
        put(key, self.peer_principal.as_bytes());
        put(key, self.own_principal.as_bytes());
        put(key, self.host);
        match self.destination {
            Destination::Unknown => key.push(0),
            Destination::Named(name) => {
                key.push(1);
                put(key, name.as_bytes());
            }
            Destination::Service(MeshService { host, name, namespace }) => {
                key.push(2);
                [host, name, namespace].into_iter().for_each(|text| put(key, text.as_bytes()));
            }
        }
        put(key, self.protocol.as_bytes());
        key.extend_from_slice(&self.code.to_le_bytes());
        key.extend_from_slice(&self.grpc_status.map_or(u32::MAX, |status| status).to_le_bytes());
        key.extend_from_slice(&self.info.flags.bits().to_le_bytes());
    }

    /// The labels and their values.
    pub(super) fn labels(&self, family: Family, settings: &Settings) -> Vec<(&'static str, Cow<'_, str>)> {
        let told = self.peer.and_then(|state| state.peer.as_deref()).map(Cow::Borrowed);
        let peer = told.or_else(|| self.endpoint.and_then(Workload::of_endpoint).map(Cow::Owned));
        let peer = peer.unwrap_or_default();
        let own = &settings.own;
        let or = |text: &str, otherwise: &str| -> Cow<'_, str> {
            if text.is_empty() { otherwise.to_owned().into() } else { text.to_owned().into() }
        };
        let unknown = |text: &str| or(text, "unknown");
        let peer_namespace = match namespace_of(&self.peer_principal) {
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => &peer.namespace,
        };
        let (mut host, mut name, mut namespace) =
            (String::from_utf8_lossy(self.host), String::from_utf8_lossy(self.host), "");
        match self.destination {
            Destination::Unknown => {}
            Destination::Named(named) => name = named.into(),
            Destination::Service(service) => {
                host = if service.host.is_empty() { host } else { Cow::Borrowed(&*service.host) };
                (name, namespace) = (Cow::Borrowed(&*service.name), &*service.namespace);
            }
        }
        let reporter = match self.side {
            Side::Client => "source",
            Side::Server => "destination",
            Side::Gateway => "waypoint",
        };
        let mut values: Vec<Cow<'_, str>> = vec![reporter.into()];
        let peer_facts = |revision: &'static str| {
            [
                unknown(&peer.workload),
                unknown(&peer.canonical_name),
                or(&peer.canonical_revision, revision),
                unknown(peer_namespace),
                unknown(&self.peer_principal),
                unknown(&peer.app),
                unknown(&peer.version),
                unknown(&peer.cluster),
            ]
        };
        let own_text = |text: &str| -> Cow<'_, str> { text.to_owned().into() };
        match self.side {
            Side::Client => {
                let [workload, service, revision, of, principal, app, version, cluster] =
                    peer_facts("latest");
                values.extend([
                    own_text(&own.workload),
                    own_text(&own.canonical_name),
                    own_text(&own.canonical_revision),
                    own_text(&own.namespace),
                    unknown(&self.own_principal),
                    own_text(&own.app),
                    own_text(&own.version),
                    own_text(&own.cluster),
                ]);
                let namespace = if namespace.is_empty() { peer_namespace } else { namespace };
                values.extend([workload, of, principal, app, version, unknown(&host), service, revision]);
                values.extend([unknown(&name), unknown(namespace), cluster]);
            }
            Side::Server => {
                values.extend(peer_facts("latest"));
                values.extend([
                    own_text(&own.workload),
                    own_text(&own.namespace),
                    unknown(&self.own_principal),
                    own_text(&own.app),
                    own_text(&own.version),
                    or(&host, &own.canonical_name),
                    own_text(&own.canonical_name),
                    own_text(&own.canonical_revision),
                    or(&name, &own.canonical_name),
                    own_text(&own.namespace),
                    own_text(&own.cluster),
                ]);
            }
            Side::Gateway => {
                values.extend(peer_facts("latest"));
                let server = self.server.and_then(|state| state.peer.as_deref()).cloned().unwrap_or_default();
                values.extend([
                    unknown(&server.workload),
                    unknown(&server.namespace),
                    unknown(&server.identity),
                    unknown(&server.app),
                    unknown(&server.version),
                    unknown(&host),
                    unknown(&server.canonical_name),
                    unknown(&server.canonical_revision),
                    unknown(&name),
                    unknown(namespace),
                    unknown(&server.cluster),
                ]);
            }
        }
        if family != Family::Messages {
            let security = match self.side {
                Side::Client => "unknown",
                _ if self.peer_principal.is_empty() || self.own_principal.is_empty() => "none",
                _ => "mutual_tls",
            };
            let flags = match short_flags(self.info) {
                flags if flags.is_empty() => "-".to_owned(),
                flags => flags,
            };
            let status = self.grpc_status.map(|status| status.to_string()).unwrap_or_default();
            values.extend([self.protocol.into(), self.code.to_string().into(), status.into()]);
            values.extend([flags.into(), security.into()]);
        }
        let of_requests = |label: &&str| matches!(*label, "response_code" | "grpc_response_status");
        let labels = LABELS.into_iter().zip(values);
        labels.filter(|(label, _)| family != Family::Session || !of_requests(label)).collect()
    }
}

/// Appends a text so that what follows cannot be taken for a part of it.
pub(super) fn put(key: &mut Vec<u8>, text: &[u8]) {
    key.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    key.extend_from_slice(text);
}

/// What the control plane says of the chosen endpoint.
fn endpoint(info: &StreamInfo) -> Option<&str> {
    info.upstream.endpoint.as_ref()?.metadata.get("istio")?.get("workload")?.as_str()
}

fn destination(info: &StreamInfo) -> Destination<'_> {
    match info.route_name() {
        Some("block_all") => return Destination::Named("BlackHoleCluster"),
        Some("allow_any") => return Destination::Named("PassthroughCluster"),
        _ => {}
    }
    let Some(cluster) = info.upstream.cluster.as_deref() else { return Destination::Unknown };
    let ClusterFacts { name, .. } = cluster;
    match NO_SERVICE.into_iter().find(|known| **known == **name) {
        Some(known) => Destination::Named(known),
        None => cluster.service().map_or(Destination::Unknown, Destination::Service),
    }
}

/// The first URIs of the peer's certificate and of ours.
fn principals(tls: Option<&TlsInfo>) -> [&str; 2] {
    let peer = tls.and_then(|tls| tls.peer.as_ref()?.own()?.uris().next());
    let own = tls.and_then(|tls| tls.local.as_ref()?.certificate().uris().next());
    [peer.unwrap_or_default(), own.unwrap_or_default()]
}

/// Of `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
fn namespace_of(principal: &str) -> Option<&str> {
    let (_, rest) = principal.split_once("/ns/")?;
    rest.split('/').next()
}
