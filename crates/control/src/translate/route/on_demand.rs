//! Virtual hosts that proxies ask for when they first need them (VHDS), for those that would otherwise be
//! told of every service's.
//!
//! Their route configurations ([`Table`]) have no virtual hosts, only the word that there are some.
//! What a proxy asks for is `CONFIGURATION/HOST`, the host as a request has it, and there is an answer to
//! each ([`NamedHost`]): the virtual host that the whole table would lead the request to (`owner.rs`
//! finds it without making the table, `standing.rs` without a look at what else there could be), with the
//! domains that are its in the whole table; where the whole table has nothing but the one for all others,
//! a virtual host of this one domain that does what that one does.
//!
//! A domain that is a wildcard is told of only if nothing else in the table is below it: who has it asks
//! for nothing below it. Otherwise a virtual host of one domain is the answer here too.
//!
//! Resources are called `CONFIGURATION/DOMAIN`, and so are their virtual hosts: Envoy keeps them by their
//! own names and removes them by those of resources.

mod owner;
mod standing;

use std::collections::HashSet;
use std::sync::Arc;

use leno_derive::{Cx, Graph, Query};
use prost::Message as _;

use self::owner::Here;
use super::{Hosts, clusters, mirrors, sidecar as tables, subject};
use crate::model::ObjectRef;
use crate::scope::proxy_config::MeshOf;
use crate::scope::rules::{self, RuleId};
use crate::scope::sidecar::{self, EgressOf, UNIX, egress_on};
use crate::scope::{ProxyKey, Viewer};
use crate::translate::name;
use crate::translate::patch::{self, Family};
use crate::translate::proto::{core, route};
use crate::translate::resource::{Resource, ads};

/// How long a listener waits for the first virtual hosts of its routes. To Envoy an answer without any
/// is none, so that it waits for this time if its workload is not known to use any.
const FIRST: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 100_000_000 };

/// A route configuration without virtual hosts; `None` if there is none of this name, or it is one for a
/// single service, which has nothing to leave out.
pub(super) struct Table;

impl Query for Table {
    type Key = (Viewer, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "on-demand-table";

    fn derive(cx: &Cx<'_>, (viewer, name): &(Viewer, String)) -> Option<Arc<Resource>> {
        let place = Place::find(cx, viewer, name)?;
        let message = empty(cx, viewer, name, place);
        Some(Arc::new(Resource::new(name, &message, sidecar::origin(&viewer.sight()).into_iter().collect())))
    }
}

fn empty(cx: &Cx<'_>, viewer: &Viewer, name: &str, place: Place) -> route::RouteConfiguration {
    let hosts = Hosts::new(&cx.get::<MeshOf>(&viewer.options.overrides));
    let source = core::ConfigSource { initial_fetch_timeout: Some(FIRST), ..ads() };
    route::RouteConfiguration {
        vhds: Some(route::Vhds { config_source: Some(source) }),
        ..hosts.configuration(name, place.port.is_some())
    }
}

/// What a route configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Which listener of the client's sight; `None` if there is none, so that all hosts are unknown.
    listener: Option<usize>,
    /// `None`: for all, told apart by the port in the host.
    port: Option<u16>,
    rest: Rest,
}

/// What becomes of unknown hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// What the client's policy says; whether it is known where they are.
    Policy {
        captured: bool,
    },
    Refused,
}

impl Place {
    /// `None` if there is no such configuration.
    fn find(cx: &Cx<'_>, viewer: &Viewer, name: &str) -> Option<Place> {
        *cx.get::<PlaceOf>(&(viewer.clone(), name.to_owned()))
    }
}

/// Finds it by the name of the configuration.
struct PlaceOf;

impl Query for PlaceOf {
    type Key = (Viewer, String);
    type Value = Option<Place>;
    const NAME: &'static str = "on-demand-place";

    fn derive(cx: &Cx<'_>, (viewer, name): &(Viewer, String)) -> Option<Place> {
        let all = cx.get::<EgressOf>(&viewer.sight());
        if name == name::HTTP_PROXY {
            let listener = all.iter().position(|egress| egress.port.is_none());
            return Some(Place { listener, port: None, rest: Rest::Refused });
        }
        if !viewer.captures && viewer.sidecar.is_none() {
            return None;
        }
        if name.starts_with(UNIX) {
            let listener = all.iter().position(|egress| egress.bind == *name)?;
            return Some(Place {
                listener: Some(listener),
                port: None,
                rest: Rest::Policy { captured: false },
            });
        }
        let port: u16 = name.parse().ok()?;
        let listener = egress_on(&all, port)?;
        let egress = all.get(listener)?;
        let captured = viewer.captures && !egress.bound;
        let port = (!egress.serves_all_ports()).then_some(port);
        Some(Place { listener: Some(listener), port, rest: Rest::Policy { captured } })
    }
}

/// Whose virtual host it is in the whole table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    Service {
        host: String,
        port: u16,
    },
    /// That of a host that is no service's but a rule's.
    Rule {
        id: RuleId,
        /// In lower case.
        host: String,
        port: u16,
    },
    /// That for all hosts that are not known.
    Rest,
    /// None: no virtual host could have this domain and no other.
    Nobody,
}

/// The answer to a host that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Answer {
    owner: Owner,
    /// The only domain, if it is not to have all that are its; of nobody's, what was asked for.
    only: Option<String>,
}

impl Answer {
    fn nobody(asked: &str) -> Answer {
        Answer { owner: Owner::Nobody, only: Some(asked.to_owned()) }
    }

    /// Finds it; `asked` is `CONFIGURATION/HOST`, the host in lower case.
    fn find(cx: &Cx<'_>, viewer: &Viewer, asked: &str) -> Answer {
        let (table, asked_host) = asked.rsplit_once('/').unwrap_or(("", asked));
        let Some(place) = Place::find(cx, viewer, table) else { return Answer::nobody(asked) };
        let (host, given) = split(asked_host);
        let port = place.port.or(given).unwrap_or(tables::PLAIN_HTTP);
        // Where ports do not tell hosts apart they are left out when one is looked for.
        let domain = if place.port.is_some() { host } else { asked_host };
        if domain.is_empty() {
            return Answer::nobody(asked);
        }
        if let Some(here) = place.listener.and_then(|listener| Here::new(cx, viewer, listener, port)) {
            if let Some(owner) = here.owner(host) {
                let hides = host.starts_with('*') && !here.is_alone(host, &owner);
                return if hides { Answer::nobody(asked) } else { Answer { owner, only: None } };
            }
            if !domain.contains('*') {
                for pattern in here.patterns(host) {
                    if let Some(owner) = here.owner(&pattern) {
                        let only = (!here.is_alone(&pattern, &owner)).then(|| domain.to_owned());
                        return Answer { owner, only };
                    }
                }
            }
        }
        // Deviation: a host with an asterisk would be a wildcard if it were a domain. It gets a 404, where a
        // whole table has it passed on as any other that is not known.
        if domain.contains('*') {
            return Answer::nobody(asked);
        }
        Answer { owner: Owner::Rest, only: Some(domain.to_owned()) }
    }
}

/// A host and the port behind it, if there is one.
fn split(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        // Without brackets these are parts of an address.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

/// A virtual host as it is in the whole table.
#[derive(Clone, Debug, PartialEq)]
struct Whole {
    message: route::VirtualHost,
    /// Its domains when it is told of by itself; the first is what it is called by.
    domains: Vec<String>,
    origins: Vec<ObjectRef>,
}

impl Whole {
    /// Makes it; `None` if it has no domains or routes, as when it is gone. Which of its domains are told of
    /// is found out if it is to have `all`.
    fn make(cx: &Cx<'_>, viewer: &Viewer, table: &str, owner: &Owner, all: bool) -> Option<Whole> {
        let place = Place::find(cx, viewer, table)?;
        let here = |port| place.listener.and_then(|listener| Here::new(cx, viewer, listener, port));
        let mut hosts = Hosts::new(&cx.get::<MeshOf>(&viewer.options.overrides));
        let spelt = |domains: Vec<String>, port| match place.port {
            Some(_) => domains,
            None => domains.into_iter().flat_map(|domain| tables::with_port(domain, port)).collect(),
        };
        hosts.origins.extend(sidecar::origin(&viewer.sight()));
        let domains = match owner {
            Owner::Service { host, port } => {
                let here = here(*port)?;
                let service = here.service(host)?;
                let standing = here.standing(&service);
                hosts.origins.push(service.id.object.clone());
                let name = name::virtual_host(host, *port);
                if standing.alone {
                    let found = here.undisputed_routes(&service, standing.ruled);
                    hosts.origins.extend(found.origins);
                    let domains = spelt(here.undisputed_domains(&service), *port);
                    hosts.add(name, domains.clone(), found.routes);
                    domains
                } else {
                    let found = here.routes(&service);
                    hosts.origins.extend(found.origins.iter().cloned());
                    let known = here.domains(&service);
                    let own = known.iter().filter(|domain| all && here.may_tell(domain, owner));
                    let own = spelt(own.cloned().collect(), *port);
                    hosts.add(name, spelt(known, *port), found.routes.clone());
                    own
                }
            }
            Owner::Rule { id, host, port } => {
                let here = here(*port)?;
                let rule = rules::find(cx, id)?;
                hosts.origins.extend(rule.origins.iter().cloned());
                let routes = here.routes_of(&rule);
                let domains = spelt(vec![tables::bracketed(host)], *port);
                hosts.add(name::virtual_host(host, *port), domains.clone(), routes.as_ref().clone());
                domains
            }
            Owner::Rest => {
                let (name, message) = match place.rest {
                    Rest::Policy { captured } => tables::rest(cx, viewer, captured),
                    Rest::Refused => tables::block_all(),
                };
                hosts.add(name, vec!["*".to_owned()], vec![message]);
                Vec::new()
            }
            Owner::Nobody => return None,
        };
        let message = hosts.hosts.pop()?;
        Some(Whole { message, domains, origins: hosts.origins })
    }
}

/// The virtual host that is an answer, by the configuration; `None` if there is none (any more), or if
/// patches have left nothing of it. All hosts with the answer share it.
struct HostOf;

impl Query for HostOf {
    type Key = (ProxyKey, String, Answer);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "on-demand-host";

    fn derive(cx: &Cx<'_>, (client, table, answer): &(ProxyKey, String, Answer)) -> Option<Arc<Resource>> {
        let all = answer.only.is_none();
        let whole = match answer.owner {
            Owner::Nobody => {
                Whole { message: route::VirtualHost::default(), domains: Vec::new(), origins: Vec::new() }
            }
            _ => {
                let whole = Whole::make(cx, client.known_viewer(), table, &answer.owner, all)?;
                patched(cx, client, table, whole, answer.only.as_deref())?
            }
        };
        let Whole { mut message, domains, origins } = whole;
        // That of nobody has what was asked for: no host has a slash.
        message.domains = answer.only.clone().map_or(domains, |only| vec![only]);
        let first = message.domains.first()?;
        message.name = match answer.owner {
            Owner::Nobody => first.clone(),
            _ => format!("{table}/{}", first.to_ascii_lowercase()),
        };
        let configuration = route::RouteConfiguration {
            virtual_hosts: vec![message],
            ..route::RouteConfiguration::default()
        };
        let message = configuration.virtual_hosts.first()?;
        let mut resource = Resource::new(&message.name, message, origins);
        (resource.clusters, resource.needs) = (clusters(&configuration), mirrors(&configuration));
        resource.is_made_up = !all;
        Some(Arc::new(resource))
    }
}

/// The virtual host that a client is given when it asks for a host: `CONFIGURATION/HOST`, the host in
/// lower case.
/// A root. There always is one for clients that ask; one whose domain no request can have, if there is no
/// such configuration or no such host. `None` for other clients.
pub(crate) struct NamedHost;

impl Query for NamedHost {
    type Key = (ProxyKey, String);
    type Value = Option<Arc<Resource>>;
    const NAME: &'static str = "named-host";

    fn derive(cx: &Cx<'_>, (client, asked): &(ProxyKey, String)) -> Option<Arc<Resource>> {
        if !client.asks_for_hosts() {
            return None;
        }
        let viewer = client.known_viewer();
        let (table, host) = asked.rsplit_once('/').unwrap_or(("", asked));
        let is_by_port = Place::find(cx, viewer, table).is_some_and(|place| place.port.is_some());
        let plain = if is_by_port { split(host).0 } else { host };
        if plain != host {
            return cx.get::<NamedHost>(&(client.clone(), format!("{table}/{plain}"))).as_ref().clone();
        }
        let answer = Answer::find(cx, viewer, asked);
        let ask =
            |answer: Answer| cx.get::<HostOf>(&(client.clone(), table.to_owned(), answer)).as_ref().clone();
        let rest = match answer.owner {
            Owner::Rest | Owner::Nobody => None,
            // A patch may have removed it: what is left is that for all others.
            _ => {
                let only = answer.only.clone().or_else(|| Some(host.to_owned()));
                Some(Answer { owner: Owner::Rest, only })
            }
        };
        ask(answer).or_else(|| ask(rest?)).or_else(|| ask(Answer::nobody(asked)))
    }
}

/// What a virtual host is learnt by that is asked for: `asked` with its host in lower case, and without a
/// port where ports do not tell hosts apart.
pub(crate) fn learnt_by(graph: &Graph, client: &ProxyKey, asked: &str) -> String {
    let (table, host) = asked.rsplit_once('/').unwrap_or(("", asked));
    let mut asked = asked.to_owned();
    let host_at = asked.len() - host.len();
    if let Some(host) = asked.get_mut(host_at..) {
        host.make_ascii_lowercase();
    }
    if !table.is_empty() {
        let plain = host_at + split(host).0.len();
        if plain < asked.len() {
            let place = graph.peek::<PlaceOf>(&(client.known_viewer().clone(), table.to_owned()));
            if place.is_some_and(|place| place.port.is_some()) {
                asked.truncate(plain);
            }
        }
    }
    asked
}

/// The configuration that the virtual host of a host that is asked for is patched in, before it is; `None` if
/// the mesh knows nothing of such a host. `asked` as for [`NamedHost`].
pub(in crate::translate) fn unpatched(cx: &Cx<'_>, client: &ProxyKey, asked: &str) -> Option<Arc<Resource>> {
    let viewer = client.known_viewer();
    let (table, _) = asked.rsplit_once('/')?;
    let answer = Answer::find(cx, viewer, asked);
    let whole = Whole::make(cx, viewer, table, &answer.owner, answer.only.is_none())?;
    let empty = empty(cx, viewer, table, Place::find(cx, viewer, table)?);
    Some(Arc::new(Resource::new(table, &alone(empty, whole.message), whole.origins)))
}

/// A configuration with this virtual host only.
fn alone(empty: route::RouteConfiguration, host: route::VirtualHost) -> route::RouteConfiguration {
    route::RouteConfiguration { virtual_hosts: vec![host], ..empty }
}

/// A virtual host as patches make it: as if it were the only one of its table. `None` if they remove it, or
/// have put its domains, or the `only` one that it is to have, into the table itself.
fn patched(cx: &Cx<'_>, client: &ProxyKey, table: &str, whole: Whole, only: Option<&str>) -> Option<Whole> {
    let patches = &client.patching.patches;
    if !patch::concerns(cx, patches, Family::Route) {
        return Some(whole);
    }
    let viewer = client.known_viewer();
    let empty = empty(cx, viewer, table, Place::find(cx, viewer, table)?);
    let apply = |message: &route::RouteConfiguration| {
        let resource = Arc::new(Resource::new(table, message, Vec::new()));
        let resource = patch::one(cx, patches, Family::Route, subject(cx, client, table), resource)?;
        let message = route::RouteConfiguration::decode(resource.wire.body.clone()).ok()?;
        Some((message, resource.origins.clone()))
    };
    let (added, _) = apply(&empty)?;
    let taken: HashSet<String> = added
        .virtual_hosts
        .iter()
        .flat_map(|host| &host.domains)
        .map(|domain| domain.to_ascii_lowercase())
        .collect();
    let is_free = |domain: &str| !taken.contains(&domain.to_ascii_lowercase());
    if !only.is_none_or(is_free) {
        return None;
    }
    let added: HashSet<&str> = added.virtual_hosts.iter().map(|host| host.name.as_str()).collect();
    let (patched, origins) = apply(&alone(empty, whole.message.clone()))?;
    let message = patched.virtual_hosts.into_iter().find(|host| !added.contains(host.name.as_str()))?;
    // One that has got others has these.
    let same = message.domains == whole.message.domains;
    let mut domains = if same { whole.domains } else { message.domains.clone() };
    domains.retain(|domain| is_free(domain));
    let origins = whole.origins.into_iter().chain(origins).collect();
    Some(Whole { message, domains, origins })
}
