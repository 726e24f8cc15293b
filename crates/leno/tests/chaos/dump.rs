//! The whole configuration of a proxy, as its admin interface shows it, in a form in which two can be
//! compared: without what is of the process (its bootstrap), of the moment (times) or of the stream
//! (versions), and in order.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What differs between any two; the static cluster is the control plane.
const PASSING: [&str; 8] = [
    "last_updated",
    "version_info",
    "last_update_attempt",
    "client_status",
    "error_state",
    "bootstrap",
    "static_clusters",
    "static_endpoint_configs",
];

/// What a proxy has; nothing while it cannot be asked.
pub(crate) async fn dump(admin_file: &Path) -> Option<Value> {
    let admin: SocketAddr = std::fs::read_to_string(admin_file).ok()?.trim().parse().ok()?;
    let page = fetch(admin, "/config_dump?include_eds").await.ok()?;
    Some(settled(serde_json::from_slice(&page).ok()?))
}

async fn fetch(admin: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n").as_bytes()).await?;
    let answer = leno_testkit::http::read_message(&mut stream, &mut Vec::new()).await;
    let (_, body) = answer.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_vec())
}

/// Without what passes, and in order.
fn settled(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(name, _)| !PASSING.contains(&name.as_str()));
            kept.map(|(name, value)| (name, settled(value))).collect()
        }
        Value::Array(items) => {
            let is_bootstrap = |item: &Value| {
                item["@type"].as_str().is_some_and(|name| name.ends_with("BootstrapConfigDump"))
            };
            let mut items: Vec<Value> =
                items.into_iter().filter(|item| !is_bootstrap(item)).map(settled).collect();
            items.sort_by_cached_key(ToString::to_string);
            Value::Array(items)
        }
        other => other,
    }
}

/// How many clusters, listeners, tables of routes and of endpoints there are.
pub(crate) fn counts(dump: &Value) -> [usize; 4] {
    let all = dump["configs"].as_array();
    ["dynamic_active_clusters", "dynamic_listeners", "dynamic_route_configs", "dynamic_endpoint_configs"].map(
        |field| {
            let lists = all.into_iter().flatten().filter_map(|config| config[field].as_array());
            lists.map(Vec::len).sum()
        },
    )
}

/// Where two differ first, for messages.
pub(crate) fn difference(path: &str, old: &Value, new: &Value) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
            let field = |name| (old.get(name).unwrap_or(&Value::Null), new.get(name).unwrap_or(&Value::Null));
            names
                .into_iter()
                .find_map(|name| difference(&format!("{path}.{name}"), field(name).0, field(name).1))
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => old
            .iter()
            .zip(new)
            .enumerate()
            .find_map(|(index, (old, new))| difference(&format!("{path}[{index}]"), old, new)),
        (old, new) if old == new => None,
        (Value::Array(old), Value::Array(new)) => {
            let names = |all: &[Value], other: &[Value]| {
                let only = all.iter().filter(|item| !other.contains(item));
                only.map(|item| item.to_string().chars().take(200).collect::<String>()).collect::<Vec<_>>()
            };
            Some(format!("{path}: only before: {:#?}; only anew: {:#?}", names(old, new), names(new, old)))
        }
        (old, new) => Some(format!("{path}: {old} before, {new} anew")),
    }
}
