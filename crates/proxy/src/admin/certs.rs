//! `/certs`: the certificates of listeners and clusters in force.

use std::time::{SystemTime, UNIX_EPOCH};

use leno_tls::{AltName, Certificate};
use serde_json::{Value, json};

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Asking, Context, Endpoint, View};
use crate::telemetry::access_log::time::TimeFormat;

/// `/certs`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/certs",
    help: "print certs on machine",
    parameters: &[],
    mutates: false,
    answer: Answer::Asking(list),
};

fn list<'a>(context: &'a Context, _query: &'a Query) -> Asking<'a> {
    Box::pin(async {
        let Some(view) = context.view().await else { return Response::gone() };
        Response::json(&json!({"certificates": certificates(&view)}))
    })
}

fn certificates(view: &View) -> Vec<Value> {
    let mut all = Vec::new();
    let mut add = |trusted: Vec<std::sync::Arc<Certificate>>, chains: Vec<Vec<Value>>| {
        let ca: Vec<Value> = trusted.iter().map(|certificate| describe(certificate)).collect();
        let chain: Vec<Value> = chains.into_iter().flatten().collect();
        if !ca.is_empty() || !chain.is_empty() {
            all.push(json!({"ca_cert": ca, "cert_chain": chain}));
        }
    };
    let chain =
        |identity: &std::sync::Arc<leno_tls::Identity>| identity.chain().iter().map(describe).collect();
    for tls in view.snapshot.clusters.values().flat_map(|cluster| cluster.tls()) {
        add(tls.trusted(), tls.identities().iter().map(chain).collect());
    }
    for listener in view.snapshot.listeners.values() {
        for tls in listener.chains.all().filter_map(|chain| chain.transport.tls()) {
            add(tls.trusted(), tls.identities().iter().map(chain).collect());
        }
    }
    all
}

fn describe(certificate: &Certificate) -> Value {
    let (from, until) = certificate.validity();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let left = u64::try_from(until).unwrap_or(0).saturating_sub(now);
    let time = |seconds: i64| {
        let format = TimeFormat::parse("%Y-%m-%dT%H:%M:%SZ").unwrap_or_else(|_| TimeFormat::rfc3339_millis());
        format.format(UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    let names = certificate.alt_names().iter().filter_map(|name| match name {
        AltName::Dns(name) => Some(json!({"dns": name})),
        AltName::Uri(uri) => Some(json!({"uri": uri})),
        AltName::Ip(address) => Some(json!({"ip_address": address.to_string()})),
        _ => None,
    });
    json!({
        "path": "<inline>",
        "serial_number": certificate.serial(),
        "subject_alt_names": names.collect::<Vec<_>>(),
        "days_until_expiration": (left / 86_400).to_string(),
        "valid_from": time(from),
        "expiration_time": time(until),
    })
}
