//! `/drain_listeners`

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Command, Context, Endpoint};

/// `/drain_listeners`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/drain_listeners",
    help: "drain listeners",
    parameters: &[
        ("graceful", "drain for the drain time before listeners are closed"),
        ("skip_exit", "drain connections and never close the listeners; graceful has no effect then"),
        ("inboundonly", "only listeners with traffic_direction INBOUND"),
    ],
    mutates: true,
    answer: Answer::Now(drain),
};

fn drain(context: &Context, query: &Query) -> Response {
    context.order(Command::DrainListeners {
        inbound_only: query.has("inboundonly"),
        graceful: query.has("graceful"),
        skip_exit: query.has("skip_exit"),
    })
}
