//! `/ready`: whether traffic may come.

use crate::admin::respond::Response;
use crate::admin::{Answer, Asking, Context, Endpoint, ServerState};

/// `/ready`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/ready",
    help: "print server state, return 200 if LIVE, otherwise return 503",
    parameters: &[],
    mutates: false,
    answer: Answer::Asking(|context, _| ready(context)),
};

fn ready(context: &Context) -> Asking<'_> {
    Box::pin(async {
        let Some(view) = context.view().await else { return Response::gone() };
        let status = if view.state == ServerState::Live { 200 } else { 503 };
        Response { status, ..Response::text(format!("{}\n", view.state.text())) }
    })
}
