//! `/listeners`: names and the addresses that they really have.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::admin::json::listen_address;
use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Asking, Context, Endpoint};
use crate::listener::ListenAddress;

/// `/listeners`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/listeners",
    help: "print listener info",
    parameters: &[("format", "File format to use; One of (text, json)")],
    mutates: false,
    answer: Answer::Asking(list),
};

fn list<'a>(context: &'a Context, query: &'a Query) -> Asking<'a> {
    Box::pin(async {
        let Some(view) = context.view().await else { return Response::gone() };
        if query.find("format") != Some("json") {
            let mut out = String::new();
            for (name, addresses) in &view.bound {
                for address in addresses {
                    let _ = match address {
                        ListenAddress::Ip(address) => writeln!(out, "{name}::{address}"),
                        ListenAddress::Pipe(path, _) => writeln!(out, "{name}::{path}"),
                    };
                }
            }
            return Response::text(out);
        }
        let listeners = view.bound.iter().map(|(name, addresses)| {
            let mut status = serde_json::Map::new();
            status.insert("name".to_owned(), json!(name.as_str()));
            let mut addresses = addresses.iter().map(listen_address);
            if let Some(first) = addresses.next() {
                status.insert("local_address".to_owned(), first);
            }
            let others: Vec<Value> = addresses.collect();
            if !others.is_empty() {
                status.insert("additional_local_addresses".to_owned(), Value::Array(others));
            }
            Value::Object(status)
        });
        let listeners: Vec<Value> = listeners.collect();
        Response::json(&match listeners.is_empty() {
            true => json!({}),
            false => json!({"listener_statuses": listeners}),
        })
    })
}
