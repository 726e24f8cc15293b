//! Webhooks of injection and validation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leno_derive::Cx;
use serde_json::Value;

use super::injection::selector_fits;
use crate::analyze::message::{Message, words};
use crate::analyze::raw::{Labels, Raw, all, at, find, list, text, texts};
use crate::model::label::REVISION;

/// Webhooks that inject twice, or whose service is not there: IST0139.
pub(super) fn injectors(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let mut configurations = all(cx, "MutatingWebhookConfiguration");
    configurations.retain(|configuration| {
        let is_istios = |webhook: &Value| text(webhook, "/name").ends_with("istio.io");
        !revisions(configuration).is_empty() || list(configuration.at("/webhooks")).iter().any(is_istios)
    });
    let revisions: BTreeSet<String> = configurations.iter().flat_map(revisions).collect();
    let revisions: Vec<Option<&str>> =
        std::iter::once(None).chain(revisions.iter().map(|revision| Some(revision.as_str()))).collect();
    let with = |name: &'static str, values: [Option<&'static str>; 3]| -> Vec<Labels<'_>> {
        let mut sets = Vec::new();
        for revision in &revisions {
            for value in values {
                let revision = revision.map(|revision| (REVISION, revision));
                let own = value.map(|value| (name, value));
                sets.push(Labels(revision.into_iter().chain(own).collect::<BTreeMap<_, _>>()));
            }
        }
        sets
    };
    let namespaces = with("istio-injection", [None, Some("enabled"), Some("disabled")]);
    let objects = with("sidecar.istio.io/inject", [None, Some("true"), Some("false")]);
    let mut told = BTreeSet::new();
    for namespace in &namespaces {
        for object in &objects {
            let mut matches: BTreeMap<String, &Raw> = BTreeMap::new();
            for configuration in &configurations {
                for webhook in list(configuration.at("/webhooks")) {
                    if selector_fits(at(webhook, "/namespaceSelector"), namespace)
                        && selector_fits(at(webhook, "/objectSelector"), object)
                    {
                        let name = format!("{}/{}", configuration.key.name, text(webhook, "/name"));
                        matches.insert(name, configuration);
                    }
                }
            }
            for (name, configuration) in &matches {
                let others: Vec<&String> = matches.keys().filter(|other| *other != name).collect();
                if others.is_empty() || !told.insert((name.clone(), words(&others))) {
                    continue;
                }
                let message = format!(
                    "Webhook overlaps with others: {}. This may cause injection to occur twice.",
                    words(&others)
                );
                out.push(Message::new("IST0139", &configuration.key, message));
            }
        }
    }
    for configuration in &configurations {
        for webhook in list(configuration.at("/webhooks")) {
            let service = at(webhook, "/clientConfig/service");
            let (namespace, name) = (text(service, "/namespace"), text(service, "/name"));
            if service.is_object() && find(cx, "Service", namespace, name).is_none() {
                let message = format!(
                    "Injector refers to a control plane service that does not exist: {namespace}/{name}."
                );
                out.push(Message::new("IST0139", &configuration.key, message));
            }
        }
    }
}

/// The revisions that a configuration is about.
fn revisions(configuration: &Raw) -> Vec<String> {
    let mut found: Vec<String> =
        configuration.labels().find(REVISION).map(str::to_owned).into_iter().collect();
    for webhook in list(configuration.at("/webhooks")) {
        for selector in [at(webhook, "/namespaceSelector"), at(webhook, "/objectSelector")] {
            let labels = at(selector, "/matchLabels").get(REVISION).and_then(Value::as_str);
            found.extend(labels.map(str::to_owned));
            for expression in list(at(selector, "/matchExpressions")) {
                if text(expression, "/key") == REVISION {
                    found.extend(texts(at(expression, "/values")).into_iter().map(str::to_owned));
                }
            }
        }
    }
    found
}

/// Webhooks at addresses outside the cluster: IST0163, IST0164.
pub(super) fn external(cx: &Cx<'_>, out: &mut Vec<Message>) {
    let validating = all(cx, "ValidatingWebhookConfiguration").into_iter().filter(|configuration| {
        let name = &configuration.key.name;
        name == "istiod-default-validator" || name.starts_with("istio-validator")
    });
    let mutating = all(cx, "MutatingWebhookConfiguration").into_iter();
    let mutating = mutating.filter(|it| it.key.name.starts_with("istio-sidecar-injector"));
    for configuration in validating.chain(mutating) {
        for (index, webhook) in list(configuration.at("/webhooks")).iter().enumerate() {
            let name = text(webhook, "/name");
            let path = format!("webhooks[{index}].clientConfig");
            let bad = |url: &str, why: &str| {
                let message = format!(
                    "The hostname ({url}) that was provided for the webhook ({name}) to reach the ingress \
                     gateway on the external control plane cluster {why}. Traffic may not flow properly."
                );
                Message::new("IST0163", &configuration.key, message).at(path.clone())
            };
            match at(webhook, "/clientConfig/url").as_str() {
                None if at(webhook, "/clientConfig/service").is_object() => {}
                None => out.push(bad("", "is blank")),
                Some(url) => match host_of(url) {
                    None => out.push(bad(url, "was provided in an invalid format")),
                    Some(host) if host.parse::<IpAddr>().is_ok() => {
                        let message = format!(
                            "The address ({url}) that was provided for the webhook ({name}) to reach the ingress \
                             gateway on the external control plane cluster is an IP address. This is not \
                             recommended for a production environment."
                        );
                        out.push(Message::new("IST0164", &configuration.key, message).at(path.clone()));
                    }
                    Some(_) => {}
                },
            }
        }
    }
}

/// The host of a URL; `None` if it is not one.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let host = uri.host()?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}
