//! Pages about connected proxies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ::http::StatusCode;
use bytes::Bytes;
use leno_api::any::pack;
use leno_api::encode::{self, Style};
use leno_api::proto::envoy::admin::v3 as admin;
use leno_base::Name;
use leno_xds::server::Resources;
use leno_xds::{Mode, Resource, TypeUrl};
use prost::Message;
use prost_types::Any;
use serde_json::{Map, Value, json};

use super::{Answer, Look, Question, parameter};
use crate::model::duration::rfc3339;
use crate::push::about::About;
use crate::push::session::Session;
use crate::scope::{ProxyKey, Role};
use crate::translate::name_table;

/// The types of a dump, in its order.
const DUMPED: [TypeUrl; 6] = [
    TypeUrl::Cluster,
    TypeUrl::Endpoint,
    TypeUrl::Listener,
    TypeUrl::Route,
    TypeUrl::Secret,
    TypeUrl::ExtensionConfig,
];

/// What a connection is called: the proxy's name and the number of its stream.
pub(super) fn connection(session: &Session) -> String {
    format!("{}-{}", session.node, session.id.0)
}

/// `/debug/syncz[?namespace=]`: what each proxy has been sent and has taken.
pub(super) fn syncz(look: Look<'_>, question: &Question) -> Answer {
    let namespace = parameter(&question.query, "namespace").unwrap_or_default();
    let wanted = look.push.sessions().filter(|it| namespace.is_empty() || it.key.namespace == namespace);
    let all: Vec<Sync> = wanted.map(Sync::of).collect();
    Answer::later(move || Answer::Json(all.iter().map(Sync::to_json).collect()))
}

/// How much of a type a proxy has taken, in Envoy's words for that.
pub(super) fn status(session: &Session, type_url: &TypeUrl) -> &'static str {
    let Some(subscription) = session.stream().subscription(type_url) else { return "NOT SENT" };
    if subscription.rejection().is_some() {
        "ERROR"
    } else if subscription.nonce().is_empty() {
        "NOT SENT"
    } else if session.is_behind(type_url) {
        "STALE"
    } else {
        "SYNCED"
    }
}

/// What a proxy was sent, and what of it it has taken.
struct Sync {
    node: String,
    node_id: String,
    role: &'static str,
    cluster: String,
    version: String,
    mode: Mode,
    types: Vec<TypeSync>,
}

/// The same of one type.
struct TypeSync {
    type_url: TypeUrl,
    status: &'static str,
    /// What was sent last, and what was taken last: versions and nonces.
    version: Name,
    acked_version: Name,
    nonce: Name,
    acked_nonce: Name,
    sent_at: Option<SystemTime>,
    resources: usize,
    rejection: Option<String>,
}

impl Sync {
    fn of(session: &Session) -> Sync {
        let types = session.stream().subscriptions().map(|(type_url, subscription)| TypeSync {
            type_url: type_url.clone(),
            status: status(session, type_url),
            version: subscription.version().clone(),
            acked_version: subscription.acked_version().clone(),
            nonce: subscription.nonce().clone(),
            acked_nonce: subscription.acked_nonce().clone(),
            sent_at: session.sent_at(type_url),
            resources: subscription.sent_count(),
            rejection: subscription.rejection().map(str::to_owned),
        });
        Sync {
            node: session.node.clone(),
            node_id: session.node_id.clone(),
            role: role(session),
            cluster: session.about.cluster.clone(),
            version: session.about.version.clone(),
            mode: session.stream().mode(),
            types: types.collect(),
        }
    }

    fn to_json(&self) -> Value {
        let mut types = Map::new();
        let mut resources = Map::new();
        for one in &self.types {
            let mut fields = json!({
                "status": one.status,
                "sent": one.version.as_str(),
                "acked": one.acked_version.as_str(),
                "resources": one.resources,
            });
            let mut nonces = json!({
                "sent": one.nonce.as_str(),
                "acked": one.acked_nonce.as_str(),
                "sentTime": rfc3339(one.sent_at.unwrap_or(SystemTime::UNIX_EPOCH)),
            });
            if let Some(message) = &one.rejection {
                set(&mut fields, "error", message);
                set(&mut nonces, "lastError", message);
            }
            types.insert(one.type_url.short().to_owned(), fields);
            resources.insert(one.type_url.as_str().to_owned(), nonces);
        }
        let mut sync = json!({
            "proxy": self.node,
            "id": self.node_id,
            "proxy_type": self.role,
            "cluster_id": self.cluster,
            "istio_version": self.version,
            "protocol": if self.mode == Mode::Delta { "delta" } else { "sotw" },
            "types": types,
            "resources": resources,
        });
        for (type_url, name) in [
            (TypeUrl::Cluster, "cluster"),
            (TypeUrl::Listener, "listener"),
            (TypeUrl::Route, "route"),
            (TypeUrl::Endpoint, "endpoint"),
            (TypeUrl::ExtensionConfig, "extensionconfig"),
        ] {
            let Some(one) = self.types.iter().find(|one| one.type_url == type_url) else { continue };
            for (suffix, nonce) in [("sent", &one.nonce), ("acked", &one.acked_nonce)] {
                if !nonce.is_empty() {
                    set(&mut sync, &format!("{name}_{suffix}"), nonce);
                }
            }
        }
        sync
    }
}

fn set(object: &mut Value, name: &str, value: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), Value::from(value));
    }
}

fn role(session: &Session) -> &'static str {
    match session.key.role {
        Role::Sidecar => "sidecar",
        Role::Router => "router",
        // A node of this kind calls itself a sidecar.
        Role::Grpc => "sidecar",
    }
}

/// `/debug/connections`: who is connected.
pub(super) fn connections(look: Look<'_>, _: &Question) -> Answer {
    let all: Vec<Connected> = look.push.sessions().map(|session| Connected::of(look, session)).collect();
    Answer::later(move || Answer::Json(clients(&all.iter().map(Connected::to_json).collect::<Vec<Value>>())))
}

/// `/debug/adsz[?proxyID=]`: who is connected, and asks for what.
pub(super) fn adsz(look: Look<'_>, question: &Question) -> Answer {
    if parameter(&question.query, "push").is_some() {
        let text = "there is nothing to push: proxies are always sent what is newest\n".to_owned();
        return Answer::Fault(StatusCode::BAD_REQUEST, text);
    }
    let sessions: Vec<&Session> = if parameter(&question.query, "proxyID").is_some() {
        match look.proxy(question) {
            Ok(session) => vec![session],
            Err(fault) => return fault,
        }
    } else {
        look.push.sessions().collect()
    };
    let all: Vec<Asking> = sessions.into_iter().map(|session| Asking::of(look, session)).collect();
    Answer::later(move || Answer::Json(clients(&all.iter().map(Asking::to_json).collect::<Vec<Value>>())))
}

/// Who is connected, and since when.
struct Connected {
    id: String,
    at: SystemTime,
    peer: Option<SocketAddr>,
}

impl Connected {
    fn of(look: Look<'_>, session: &Session) -> Connected {
        let since = look.now.saturating_duration_since(session.about.connected);
        let at = look.wall.checked_sub(since).unwrap_or(look.wall);
        Connected { id: connection(session), at, peer: session.about.peer }
    }

    fn to_json(&self) -> Value {
        json!({
            "connectionId": self.id,
            "connectedAt": rfc3339(self.at),
            "address": self.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        })
    }
}

/// The same, with what it says of itself and asks for: handles of what is kept.
struct Asking {
    connected: Connected,
    about: Box<About>,
    key: Arc<ProxyKey>,
    watches: Vec<(TypeUrl, Vec<Name>)>,
}

impl Asking {
    fn of(look: Look<'_>, session: &Session) -> Asking {
        let watches = session.stream().subscriptions();
        let watches = watches.map(|(type_url, wanted)| (type_url.clone(), wanted.names().cloned().collect()));
        Asking {
            connected: Connected::of(look, session),
            about: session.about.clone(),
            key: Arc::clone(&session.key),
            watches: watches.collect(),
        }
    }

    fn to_json(&self) -> Value {
        let mut client = self.connected.to_json();
        let node = self.about.node();
        let watches: Map<String, Value> = self
            .watches
            .iter()
            .map(|(type_url, names)| {
                (type_url.as_str().to_owned(), names.iter().map(|name| Value::from(name.as_str())).collect())
            })
            .collect();
        if let Some(fields) = client.as_object_mut() {
            fields.insert("labels".to_owned(), json!(self.key.labels));
            let metadata = node.metadata.as_ref().map(|metadata| {
                encode::to_value("google.protobuf.Struct", &metadata.encode_to_vec(), Style::default())
                    .unwrap_or_default()
            });
            fields.insert("metadata".to_owned(), metadata.unwrap_or_default());
            if let Some(locality) = &node.locality {
                fields.insert("locality".to_owned(), encode::value(locality, Style::default()));
            }
            fields.insert("watches".to_owned(), Value::from(watches));
        }
        client
    }
}

fn clients(all: &[Value]) -> Value {
    json!({ "totalClients": all.len(), "clients": all })
}

/// `/debug/config_dump?proxyID=[&types=][&include_eds]`: all that a proxy should have.
pub(super) fn config_dump(look: Look<'_>, question: &Question) -> Answer {
    let session = match look.proxy(question) {
        Ok(session) => session,
        Err(fault) => return fault,
    };
    if let Some(types) = parameter(&question.query, "types").filter(|types| !types.is_empty()) {
        return of_types(look, session, types.split(',').map(type_of));
    }
    let mut types = DUMPED.to_vec();
    if parameter(&question.query, "include_eds").is_none() {
        types.retain(|type_url| *type_url != TypeUrl::Endpoint);
    }
    let held = held(look, session, types);
    Answer::later(move || configs(dump(&held)))
}

/// `/debug/edsz?proxyID=`.
pub(super) fn edsz(look: Look<'_>, question: &Question) -> Answer {
    of_one(look, question, TypeUrl::Endpoint)
}

/// `/debug/ecdsz?proxyID=`.
pub(super) fn ecdsz(look: Look<'_>, question: &Question) -> Answer {
    of_one(look, question, TypeUrl::ExtensionConfig)
}

/// `/debug/ndsz?proxyID=`.
pub(super) fn ndsz(look: Look<'_>, question: &Question) -> Answer {
    of_one(look, question, TypeUrl::from(name_table::TYPE_URL))
}

fn of_one(look: Look<'_>, question: &Question, type_url: TypeUrl) -> Answer {
    match look.proxy(question) {
        Ok(session) => of_types(look, session, std::iter::once(type_url)),
        Err(fault) => fault,
    }
}

fn of_types(look: Look<'_>, session: &Session, types: impl Iterator<Item = TypeUrl>) -> Answer {
    let held = held(look, session, types);
    Answer::later(move || configs(held.iter().flat_map(Held::resources).map(|(_, any)| any).collect()))
}

/// What istiod's abbreviation of a type stands for; else it is taken for the type.
fn type_of(name: &str) -> TypeUrl {
    let known = TypeUrl::KNOWN.into_iter().find(|known| known.short().eq_ignore_ascii_case(name));
    known.unwrap_or_else(|| match name.to_ascii_lowercase().as_str() {
        "nds" => TypeUrl::from(name_table::TYPE_URL),
        _ => TypeUrl::from(name),
    })
}

/// The resources of a type that a proxy should have of those that it has asked for.
pub(super) struct Held {
    type_url: TypeUrl,
    version: Name,
    resources: Vec<Resource>,
}

/// What a proxy should have of some types.
pub(super) fn held(look: Look<'_>, session: &Session, types: impl IntoIterator<Item = TypeUrl>) -> Vec<Held> {
    let of_type = |type_url: TypeUrl| {
        let all = look.push.resources(session, &type_url);
        let wanted = all.into_iter().flat_map(Resources::iter);
        let wanted = wanted.filter(|resource| session.wants(&type_url, &resource.name)).cloned();
        let wanted = match look.push.resources(session, &TypeUrl::VirtualHost) {
            Some(hosts) if type_url == TypeUrl::Route && session.key.asks_for_hosts() => {
                wanted.map(|table| with_hosts(&table, hosts)).collect()
            }
            _ => wanted.collect(),
        };
        let version = all.map(|all| all.version().clone()).unwrap_or_default();
        Held { type_url, version, resources: wanted }
    };
    types.into_iter().map(of_type).collect()
}

/// A route configuration with the virtual hosts that the proxy has for it besides.
fn with_hosts(table: &Resource, hosts: &Resources) -> Resource {
    use prost::encoding::{WireType, encode_key, encode_varint};
    /// `RouteConfiguration.virtual_hosts`, of which an encoded message may have more behind the rest.
    const VIRTUAL_HOSTS: u32 = 2;
    let mut body = table.body.to_vec();
    let is_its =
        |host: &&Resource| host.name.rsplit_once('/').is_some_and(|(own, _)| own == table.name.as_str());
    for host in hosts.iter().filter(is_its) {
        encode_key(VIRTUAL_HOSTS, WireType::LengthDelimited, &mut body);
        encode_varint(host.body.len() as u64, &mut body);
        body.extend_from_slice(&host.body);
    }
    Resource::new(table.name.clone(), table.version.clone(), body.into())
}

/// The same for what a dump shows without being asked for endpoints.
pub(super) fn held_for_dump(look: Look<'_>, session: &Session) -> Vec<Held> {
    held(look, session, DUMPED.into_iter().filter(|type_url| *type_url != TypeUrl::Endpoint))
}

impl Held {
    fn resources(&self) -> impl Iterator<Item = (String, Any)> {
        self.resources.iter().map(|resource| {
            let any = Any { type_url: self.type_url.as_str().to_owned(), value: resource.body.to_vec() };
            // Nobody need see what is secret, in whichever form he asks.
            let any = if self.type_url == TypeUrl::Secret { redacted(any) } else { any };
            (resource.name.to_string(), any)
        })
    }
}

/// What a proxy should have, as the parts of the dump of Envoy's administration interface.
pub(super) fn dump(all: &[Held]) -> Vec<Any> {
    let mut parts = vec![pack(&admin::BootstrapConfigDump::default())];
    for one in all {
        let version_info = one.version.to_string();
        let held = one.resources();
        let part = match &one.type_url {
            TypeUrl::Cluster => pack(&admin::ClustersConfigDump {
                version_info: version_info.clone(),
                dynamic_active_clusters: held
                    .map(|(_, cluster)| admin::clusters_config_dump::DynamicCluster {
                        version_info: version_info.clone(),
                        cluster: Some(cluster),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            TypeUrl::Endpoint => pack(&admin::EndpointsConfigDump {
                dynamic_endpoint_configs: held
                    .map(|(_, endpoints)| admin::endpoints_config_dump::DynamicEndpointConfig {
                        version_info: version_info.clone(),
                        endpoint_config: Some(endpoints),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            TypeUrl::Listener => pack(&admin::ListenersConfigDump {
                version_info: version_info.clone(),
                dynamic_listeners: held
                    .map(|(name, listener)| admin::listeners_config_dump::DynamicListener {
                        name,
                        active_state: Some(admin::listeners_config_dump::DynamicListenerState {
                            version_info: version_info.clone(),
                            listener: Some(listener),
                            ..Default::default()
                        }),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            TypeUrl::Route => {
                parts.push(pack(&admin::ScopedRoutesConfigDump::default()));
                pack(&admin::RoutesConfigDump {
                    dynamic_route_configs: held
                        .map(|(_, route)| admin::routes_config_dump::DynamicRouteConfig {
                            version_info: version_info.clone(),
                            route_config: Some(route),
                            ..Default::default()
                        })
                        .collect(),
                    ..Default::default()
                })
            }
            TypeUrl::Secret => pack(&admin::SecretsConfigDump {
                dynamic_active_secrets: held
                    .map(|(name, secret)| admin::secrets_config_dump::DynamicSecret {
                        name,
                        version_info: version_info.clone(),
                        secret: Some(secret),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            TypeUrl::ExtensionConfig => pack(&admin::EcdsConfigDump {
                ecds_filters: held
                    .map(|(_, filter)| admin::ecds_config_dump::EcdsFilterConfig {
                        version_info: version_info.clone(),
                        ecds_filter: Some(filter),
                        ..Default::default()
                    })
                    .collect(),
            }),
            _ => continue,
        };
        parts.push(part);
    }
    parts
}

/// A secret without what is secret in it.
fn redacted(secret: Any) -> Any {
    use leno_api::proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
    use leno_api::proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
    let Ok(mut read) = leno_api::any::unpack::<Secret>(&secret) else {
        // What cannot be read is not shown either.
        return Any { type_url: secret.type_url, value: Vec::new() };
    };
    let hidden = || {
        let specifier = Some(Specifier::InlineBytes(Bytes::from_static(b"[redacted]")));
        DataSource { specifier, ..DataSource::default() }
    };
    match &mut read.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            certificate.private_key = Some(hidden());
            certificate.private_key_provider = None;
            certificate.pkcs12 = certificate.pkcs12.take().map(|_| hidden());
            certificate.password = certificate.password.take().map(|_| hidden());
        }
        Some(Type::SessionTicketKeys(keys)) => keys.keys.iter_mut().for_each(|key| *key = hidden()),
        Some(Type::GenericSecret(secret)) => {
            secret.secret = secret.secret.take().map(|_| hidden());
            secret.secrets.values_mut().for_each(|secret| *secret = hidden());
        }
        // What is public.
        Some(Type::ValidationContext(_)) | None => {}
    }
    pack(&read)
}

fn configs(parts: Vec<Any>) -> Answer {
    // What was encoded here can be read; if not, the page should show that, not fail.
    let style = Style { redact: true, ..Style::default() };
    let values = parts.into_iter().map(|part| {
        let bytes = Bytes::from(part.encode_to_vec());
        encode::to_value("google.protobuf.Any", &bytes, style)
            .unwrap_or_else(|error| Value::from(error.to_string()))
    });
    Answer::Json(json!({ "configs": values.collect::<Vec<Value>>() }))
}

/// `/debug/sidecarz?proxyID=`: what the configuration of a proxy is made of: names of one proxy's
/// resources, which cost less than to hand them over.
pub(super) fn sidecarz(look: Look<'_>, question: &Question) -> Answer {
    let session = match look.proxy(question) {
        Ok(session) => session,
        Err(fault) => return fault,
    };
    let mut objects = std::collections::BTreeSet::new();
    let mut resources = Map::new();
    for type_url in &DUMPED {
        let mut names = Vec::new();
        for (name, origins) in look.push.origins(session, type_url) {
            objects.extend(origins.iter().map(ToString::to_string));
            names.push(Value::from(name));
        }
        if !names.is_empty() {
            resources.insert(type_url.short().to_owned(), Value::from(names));
        }
    }
    Answer::Json(json!({
        "name": session.node,
        "namespace": session.key.namespace,
        "labels": session.key.labels,
        "objects": objects,
        "resources": resources,
    }))
}
