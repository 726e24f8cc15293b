//! What a client is given that asks for virtual hosts one by one, beside the whole tables of a client that
//! does not: each request must go the same way, in all goldens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use leno_api::yaml::{self, Dialect};
use leno_derive::Graph;
use prost::Message as _;

use super::{Proxy, find_routes, load, value};
use crate::scope::client::ClientOf;
use crate::scope::{Abilities, ProxyFacts, ProxyKey, Role, fit};
use crate::translate::listener::Listeners;
use crate::translate::proto::route as proto;
use crate::translate::route::Route;
use crate::translate::route::on_demand::NamedHost;

/// Which domain of some a host is found by.
fn found_by<'d>(domains: impl Iterator<Item = &'d String>, host: &str) -> Option<&'d String> {
    let fits = domains.filter_map(|domain| Some((fit(&domain.to_ascii_lowercase(), host)?, domain)));
    fits.max_by_key(|(width, _)| *width).map(|(_, domain)| domain)
}

/// The virtual host of a table that a host is found by.
fn find<'t>(table: &'t proto::RouteConfiguration, host: &str) -> Option<&'t proto::VirtualHost> {
    let domain = found_by(table.virtual_hosts.iter().flat_map(|host| &host.domains), host)?;
    table.virtual_hosts.iter().find(|host| host.domains.contains(domain))
}

fn table(graph: &Graph, client: &ProxyKey, name: &str) -> proto::RouteConfiguration {
    let found = graph.peek::<Route>(&(client.clone(), name.to_owned()));
    let found = found.as_ref().as_ref().expect("every route that a listener names exists");
    proto::RouteConfiguration::decode(found.wire.body.clone()).expect("it was encoded here")
}

/// Hosts that are found by a domain, as far as no other is nearer.
fn probes(domain: &str) -> Vec<String> {
    let domain = domain.to_ascii_lowercase();
    match domain.strip_prefix('*') {
        Some("") => vec!["unknown.example".to_owned(), "unknown".to_owned(), "192.0.2.7".to_owned()],
        Some(rest) => vec![format!("zz{rest}"), format!("zz.yy{rest}")],
        None => vec![domain],
    }
}

/// Compares one table; gives how many hosts were asked for.
fn compare(
    whole: &proto::RouteConfiguration,
    graph: &Graph,
    client: &ProxyKey,
    failures: &mut String,
) -> usize {
    let given = table(graph, client, &whole.name);
    if given.vhds.is_none() {
        assert_eq!(given, *whole);
        return 0;
    }
    let domains: Vec<&String> = whole.virtual_hosts.iter().flat_map(|host| &host.domains).collect();
    let mut hosts: BTreeMap<String, String> = BTreeMap::new();
    let mut names: BTreeMap<String, proto::VirtualHost> = BTreeMap::new();
    for host in domains.iter().flat_map(|domain| probes(domain)) {
        if whole.ignore_port_in_host_matching {
            hosts.insert(format!("{host}:{}", whole.name), host.clone());
        }
        hosts.insert(host.clone(), host);
    }
    for (asked, host) in &hosts {
        if find(&given, host).is_some() {
            // A patch has put it into the table itself.
            continue;
        }
        let key = format!("{}/{asked}", whole.name);
        let found = graph.peek::<NamedHost>(&(client.clone(), key.clone()));
        let found = found.as_ref().as_ref().expect("there is an answer");
        let answer = proto::VirtualHost::decode(found.wire.body.clone()).expect("it was encoded here");
        let expected = find(whole, host).expect("there is one for all others");
        let plain = |host: &proto::VirtualHost| proto::VirtualHost {
            name: String::new(),
            domains: Vec::new(),
            ..host.clone()
        };
        if plain(&answer) != plain(expected) {
            let _ = writeln!(failures, "{key}: {answer:?}, not {expected:?}");
        }
        if found_by(answer.domains.iter(), host).is_none() {
            let _ = writeln!(failures, "{key}: not among {:?}", answer.domains);
        }
        // Nobody may be hidden by it.
        for domain in &answer.domains {
            let domain = domain.to_ascii_lowercase();
            let hidden = domains.iter().map(|other| other.to_ascii_lowercase());
            let below = hidden.filter(|other| fit(&domain, other).is_some());
            for host in below.flat_map(|other| probes(&other)).chain(probes(&domain)) {
                if plain(find(whole, &host).expect("some")) != plain(expected) {
                    let _ = writeln!(failures, "{key}: {domain} hides {host}");
                }
            }
        }
        assert_eq!(found.name(), answer.name);
        // Who has it and says so is given it again.
        let again = graph.peek::<NamedHost>(&(client.clone(), answer.name.clone()));
        if again.as_ref().as_ref() != Some(found) {
            let _ = writeln!(failures, "{key}: {} is {again:?}", answer.name);
        }
        names.insert(answer.name.clone(), answer);
    }
    // Together they are a table that Envoy takes.
    let mut seen = BTreeSet::new();
    for domain in names.values().flat_map(|host| &host.domains) {
        if !seen.insert(domain.to_ascii_lowercase()) {
            let _ = writeln!(failures, "{}: {domain} twice", whole.name);
        }
    }
    hosts.len()
}

#[test]
fn what_is_asked_for_is_what_the_whole_has() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let (mut asked, mut failures) = (0, String::new());
    for case in fs::read_dir(&folder).expect("the folder of goldens") {
        let case = case.expect("an entry").path();
        if std::env::var("GOLDENS").is_ok_and(|prefix| {
            !case.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        }) {
            continue;
        }
        let (graph, _) = load(&case);
        let text = fs::read_to_string(case.join("proxies.yaml")).expect("proxies.yaml");
        let documents = yaml::parse(&text, Dialect::Kubernetes).expect("YAML");
        let (proxies, _) = yaml::from_node::<Vec<Proxy>>(&documents[0]).expect("proxies");
        for proxy in proxies {
            let key = proxy.key();
            if key.role != Role::Sidecar {
                continue;
            }
            let mut facts = ProxyFacts::clone(&key);
            facts.options.abilities.remove(Abilities::HOSTS_ON_DEMAND);
            let key = ProxyKey::from(facts.clone());
            let whole = ProxyKey::clone(&graph.peek::<ClientOf>(&key));
            let mut names = BTreeSet::new();
            let listeners = graph.peek::<Listeners>(&key);
            for listener in listeners.iter() {
                find_routes(&value("envoy.config.listener.v3.Listener", listener), &mut names);
            }
            facts.options.abilities.insert(Abilities::HOSTS_ON_DEMAND);
            let key = ProxyKey::from(facts);
            let client = ProxyKey::clone(&graph.peek::<ClientOf>(&key));
            for name in names {
                let mut found = String::new();
                asked += compare(&table(&graph, &whole, &name), &graph, &client, &mut found);
                if !found.is_empty() {
                    let _ = writeln!(failures, "{} {}:\n{found}", case.display(), proxy.name);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(asked > 1000 || std::env::var_os("GOLDENS").is_some(), "only {asked} hosts");
}
