//! The labels of Istio's metrics: what they depend on, and how they follow from it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::rc::{Rc, Weak};
use std::sync::{Arc, LazyLock};

use super::{Family, Settings};
use crate::cluster::EndpointConfig;
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

/// The place of `BlackHoleCluster`.
const BLACK_HOLE: usize = 0;
/// The place of `PassthroughCluster`.
const PASSTHROUGH: usize = 1;

/// Filter states that say who the client of a waypoint is, and the waypoint itself.
const PRINCIPALS: [&str; 2] = ["io.istio.peer_principal", "io.istio.local_principal"];

/// A label's name, shared by all that have it.
pub(super) fn name(label: &'static str) -> Arc<str> {
    static NAMES: LazyLock<HashMap<&str, Arc<str>>> =
        LazyLock::new(|| LABELS.into_iter().map(|label| (label, label.into())).collect());
    NAMES.get(label).map_or_else(|| label.into(), Arc::clone)
}

/// Bytes of a text of a client's that is shown: the longest name of a host has 253, with a port 259.
pub(super) const TEXT: usize = 259;
/// Bytes of an identity that is shown (SPIFFE-ID section 2.3: implementations need not take more).
const PRINCIPAL: usize = 2_048;
/// The highest status that gRPC knows of.
const GRPC_STATUSES: u32 = 16;

/// Whose view is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// A cluster or route that stands for no service: one of `NO_SERVICE`, by its place there.
    Named(usize),
    Service(&'a MeshService),
}

/// What the other side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// `http`
    Http,
    /// `grpc`
    Grpc,
    /// `tcp`
    Tcp,
}

/// A request or session that is to be counted. What its labels depend on is in objects that it
/// shares with others like it ([`Seen::identity`]); what these say ([`Seen::facts`]) is read when
/// they meet for the first time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    side: Side,
    /// The host header, if it stands for the service that the control plane has not named; else
    /// empty. It is the client's, and may be anything.
    host: &'a [u8],
    destination: Destination<'a>,
    spoken: Spoken,
    grpc_status: Option<u32>,
    info: &'a StreamInfo,
}

/// What tells requests with different labels apart, in numbers: those of the settings, of what was
/// spoken and what came of it, and the addresses of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity([u64; 9]);

/// Identities are made of numbers that are not chosen by clients: mixing them is enough.
#[derive(Default)]
pub(super) struct IdentityHasher(u64);

/// The objects whose addresses are in an identity: as long as these are kept, no others are there.
#[derive(Debug)]
pub(super) struct Anchors {
    states: [Weak<FilterState>; 4],
    endpoint: Weak<EndpointConfig>,
    tls: Weak<TlsInfo>,
    cluster: Weak<ClusterFacts>,
}

/// What the labels of a request or session depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    side: Side,
    /// Whom this proxy talks to, as it says of itself.
    peer: Option<&'a FilterState>,
    /// Whether a certificate has proven who it is: then it may be believed.
    proven: bool,
    /// What the control plane says of the endpoint, where the peer says nothing of itself.
    endpoint: Option<&'a str>,
    /// The server behind a gateway.
    server: Option<&'a FilterState>,
    /// The peer's identity, empty if there is none.
    peer_principal: &'a str,
    /// This proxy's own.
    own_principal: &'a str,
    /// See [`Seen::host`].
    host: &'a [u8],
    destination: Destination<'a>,
    spoken: Spoken,
    /// 0: none.
    code: u16,
    grpc_status: Option<u32>,
    /// `None`: flags are not shown.
    info: Option<&'a StreamInfo>,
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

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|number| state.write_u64(*number));
    }
}

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

impl Spoken {
    fn text(self) -> &'static str {
        match self {
            Spoken::Http => "http",
            Spoken::Grpc => "grpc",
            Spoken::Tcp => "tcp",
        }
    }
}

/// The objects that a request or session has in common with those that have the same labels.
struct Objects<'a> {
    peer: Option<&'a Rc<FilterState>>,
    /// Where the peer says nothing of itself.
    endpoint: Option<&'a Rc<EndpointConfig>>,
    server: Option<&'a Rc<FilterState>>,
    /// The identities of the peer and of this proxy, as somebody has left them.
    principals: [Option<&'a Rc<FilterState>>; 2],
    /// The session that says who they are, where nobody has.
    tls: Option<&'a Rc<TlsInfo>>,
    cluster: Option<&'a Rc<ClusterFacts>>,
}

impl<'a> Seen<'a> {
    /// What is known of a stream or session now.
    pub(crate) fn new(
        settings: &Settings,
        info: &'a StreamInfo,
        request: Option<&'a HeaderMap>,
        spoken: Spoken,
        grpc_status: Option<u32>,
    ) -> Self {
        let destination = destination(info);
        let named = matches!(destination, Destination::Service(service) if !service.host.is_empty());
        let host = request.filter(|_| settings.host_fallback && !named);
        // What is longer than any name is as good as none.
        let host = host.and_then(|head| head.get(Known::Authority)).filter(|host| host.len() <= TEXT);
        let host = host.unwrap_or_default();
        Self { side: settings.side, host, destination, spoken, grpc_status, info }
    }

    /// The same, with what became of it.
    pub(crate) fn ended(self, grpc_status: Option<u32>) -> Self {
        Self { grpc_status, ..self }
    }

    fn objects(&self) -> Objects<'a> {
        let info = self.info;
        let (states, key) = states(self.side, info);
        let peer = states.shared(key).filter(|state| state.peer.is_some());
        let (server, principals) = match self.side {
            Side::Client => (None, [None; 2]),
            Side::Server | Side::Gateway if info.filter_state.is_empty() => (None, [None; 2]),
            Side::Server => (None, PRINCIPALS.map(|key| info.filter_state.shared(key))),
            Side::Gateway => {
                (info.filter_state.shared(UPSTREAM_PEER), PRINCIPALS.map(|key| info.filter_state.shared(key)))
            }
        };
        let tls = match self.side {
            Side::Client => info.upstream.tls.as_ref(),
            _ if principals.iter().flatten().any(|state| !state.text.is_empty()) => None,
            Side::Server | Side::Gateway => info.connection.tls.as_ref(),
        };
        Objects {
            peer,
            endpoint: match self.side {
                Side::Client if peer.is_none() => info.upstream.endpoint.as_ref(),
                _ => None,
            },
            server,
            principals,
            tls,
            cluster: info.upstream.cluster.as_ref(),
        }
    }

    /// What tells it from those with other labels; `None`: a text of the client's does.
    pub(super) fn identity(&self, settings: &Settings, family: Family) -> Option<Identity> {
        if !self.host.is_empty() || !settings.expressions.is_empty() {
            return None;
        }
        let Objects { peer, endpoint, server, principals: [theirs, ours], tls, cluster } = self.objects();
        let named = match self.destination {
            // What the route says stands above what the cluster is.
            Destination::Named(place) => place as u64 + 1,
            Destination::Unknown | Destination::Service(_) => 0,
        };
        let what = u64::from(self.info.response_code) | (family as u64) << 16 | (self.spoken as u64) << 24;
        let grpc = u64::from(self.grpc_status.is_some());
        Some(Identity([
            settings.number,
            what | named << 32 | grpc << 40,
            u64::from(self.info.flags.bits()) << 32 | u64::from(self.grpc_status.unwrap_or_default()),
            // Only one of them is there.
            if peer.is_some() { address(peer) } else { address(endpoint) },
            address(server),
            address(theirs),
            address(ours),
            address(tls),
            address(cluster),
        ]))
    }

    /// The objects whose addresses are in the identity.
    pub(super) fn anchors(&self) -> Anchors {
        fn weak<T>(object: Option<&Rc<T>>) -> Weak<T> {
            object.map_or_else(Weak::new, Rc::downgrade)
        }
        let Objects { peer, endpoint, server, principals: [theirs, ours], tls, cluster } = self.objects();
        Anchors {
            states: [peer, server, theirs, ours].map(weak),
            endpoint: weak(endpoint),
            tls: weak(tls),
            cluster: weak(cluster),
        }
    }

    /// What the labels depend on.
    pub(super) fn facts(&self) -> Facts<'a> {
        let info = self.info;
        let Objects { peer, endpoint, server, principals, tls, cluster: _ } = self.objects();
        let left = principals.map(|state| state.map_or("", |state| state.text.as_str()));
        let ([peer_principal, own_principal], trusted) = match left {
            ["", ""] => (principals_of(tls.map(|tls| &**tls)), tls.is_some_and(|tls| tls.trusted)),
            left => (left, true),
        };
        let [mut peer_principal, own_principal] = [peer_principal, own_principal].map(principal);
        let proven = trusted && !peer_principal.is_empty();
        if self.side == Side::Client && peer_principal.is_empty() {
            peer_principal = peer.and_then(|state| Some(&*state.peer.as_ref()?.identity)).unwrap_or_default();
        }
        Facts {
            side: self.side,
            peer: peer.map(|state| &**state),
            proven,
            endpoint: endpoint.and_then(|endpoint| workload_of(endpoint)),
            server: server.map(|state| &**state),
            peer_principal,
            own_principal,
            host: self.host,
            destination: self.destination,
            spoken: self.spoken,
            code: info.response_code,
            grpc_status: self.grpc_status,
            info: Some(info),
        }
    }
}

/// What the control plane says of an endpoint.
fn workload_of(endpoint: &EndpointConfig) -> Option<&str> {
    endpoint.metadata.get("istio")?.get("workload")?.as_str()
}

/// 0: there is none.
fn address<T>(object: Option<&Rc<T>>) -> u64 {
    object.map_or(0, |object| Rc::as_ptr(object).addr() as u64)
}

impl Anchors {
    /// Whether one of the objects is gone, so that nothing like it will come any more.
    pub(super) fn are_gone(&self) -> bool {
        fn gone<T>(object: &Weak<T>) -> bool {
            object.strong_count() == 0 && !object.ptr_eq(&Weak::new())
        }
        let Self { states, endpoint, tls, cluster } = self;
        states.iter().any(gone) || gone(endpoint) || gone(tls) || gone(cluster)
    }
}

impl<'a> Facts<'a> {
    /// Whether there is something among them which anybody can choose freely: the host that is asked
    /// for, what peers say of themselves, a status that gRPC does not know. The server behind a gateway
    /// is chosen by the control plane.
    pub(super) fn are_of_client(&self) -> bool {
        !self.host.is_empty()
            || (self.peer.is_some() || !self.peer_principal.is_empty()) && !self.proven
            || self.grpc_status.is_some_and(|status| status > GRPC_STATUSES)
    }

    /// The same without that.
    pub(super) fn believed(&self) -> Self {
        let Self { peer, proven, peer_principal, grpc_status, .. } = *self;
        let peer = peer.filter(|_| proven);
        // What the control plane says of the endpoint was not looked at while the peer spoke for itself.
        let endpoint = match (self.side, peer, self.info) {
            (Side::Client, None, Some(info)) => info.upstream.endpoint.as_deref().and_then(workload_of),
            _ => self.endpoint,
        };
        Self {
            peer,
            endpoint,
            peer_principal: if proven { peer_principal } else { "" },
            host: b"",
            grpc_status: grpc_status.filter(|status| *status <= GRPC_STATUSES),
            ..*self
        }
    }

    /// What is left if nothing is known of who talks to whom.
    pub(super) fn nobody(&self) -> Self {
        Self {
            peer: None,
            proven: false,
            endpoint: None,
            server: None,
            peer_principal: "",
            own_principal: "",
            host: b"",
            destination: Destination::Unknown,
            grpc_status: None,
            info: None,
            ..*self
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
            Destination::Named(place) => {
                key.push(1);
                key.extend_from_slice(&place.to_le_bytes());
            }
            Destination::Service(MeshService { host, name, namespace }) => {
                key.push(2);
                [host, name, namespace].into_iter().for_each(|text| put(key, text.as_bytes()));
            }
        }
        key.push(self.spoken as u8);
        key.extend_from_slice(&self.code.to_le_bytes());
        key.push(u8::from(self.grpc_status.is_some()));
        key.extend_from_slice(&self.grpc_status.unwrap_or_default().to_le_bytes());
        key.extend_from_slice(&self.info.map_or(0, |info| info.flags.bits()).to_le_bytes());
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
        let peer_namespace = match namespace_of(self.peer_principal) {
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => &peer.namespace,
        };
        let (mut host, mut name, mut namespace) =
            (String::from_utf8_lossy(self.host), String::from_utf8_lossy(self.host), "");
        match self.destination {
            Destination::Unknown => {}
            Destination::Named(place) => name = NO_SERVICE.get(place).copied().unwrap_or_default().into(),
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
                unknown(self.peer_principal),
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
                    unknown(self.own_principal),
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
                    unknown(self.own_principal),
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
            let flags = match self.info.map(short_flags).unwrap_or_default() {
                flags if flags.is_empty() => "-".to_owned(),
                flags => flags,
            };
            let status = self.grpc_status.map(|status| status.to_string()).unwrap_or_default();
            values.extend([self.spoken.text().into(), self.code.to_string().into(), status.into()]);
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

fn destination(info: &StreamInfo) -> Destination<'_> {
    match info.route_name() {
        Some("block_all") => return Destination::Named(BLACK_HOLE),
        Some("allow_any") => return Destination::Named(PASSTHROUGH),
        _ => {}
    }
    let Some(cluster) = info.upstream.cluster.as_deref() else { return Destination::Unknown };
    let ClusterFacts { name, .. } = cluster;
    match NO_SERVICE.into_iter().position(|known| *known == **name) {
        Some(place) => Destination::Named(place),
        None => cluster.service().map_or(Destination::Unknown, Destination::Service),
    }
}

/// The first URIs of the peer's certificate and of ours.
fn principals_of(tls: Option<&TlsInfo>) -> [&str; 2] {
    let peer = tls.and_then(|tls| tls.peer.as_ref()?.own()?.uris().next());
    let own = tls.and_then(|tls| tls.local.as_ref()?.certificate().uris().next());
    [peer.unwrap_or_default(), own.unwrap_or_default()]
}

/// What is shown of an identity: nothing if it is longer than any can be.
fn principal(text: &str) -> &str {
    if text.len() <= PRINCIPAL { text } else { "" }
}

/// Of `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
fn namespace_of(principal: &str) -> Option<&str> {
    let (_, rest) = principal.split_once("/ns/")?;
    rest.split('/').next()
}
