//! `/init_dump`: what initialisation still waits for.

use serde_json::{Value, json};

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Asking, Context, Endpoint};

/// `/init_dump`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/init_dump",
    help: "dump what initialization still waits for",
    parameters: &[("mask", "only what belongs to this component, e.g. listener")],
    mutates: false,
    answer: Answer::Asking(dump),
};

fn dump<'a>(context: &'a Context, query: &'a Query) -> Asking<'a> {
    Box::pin(async {
        let Some(view) = context.view().await else { return Response::gone() };
        let mask = query.find("mask").unwrap_or_default();
        let wanted = view.unready.iter().filter(|(manager, targets)| {
            !targets.is_empty()
                && (mask.is_empty() || manager.to_ascii_lowercase().contains(&mask.to_ascii_lowercase()))
        });
        let dumps: Vec<Value> =
            wanted.map(|(name, targets)| json!({"name": name, "target_names": targets})).collect();
        Response::json(&if dumps.is_empty() { json!({}) } else { json!({"unready_targets_dumps": dumps}) })
    })
}
