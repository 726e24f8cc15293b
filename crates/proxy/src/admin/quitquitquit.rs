//! `/quitquitquit`: ends the proxy.

use crate::admin::{Answer, Command, Endpoint};

/// `/quitquitquit`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/quitquitquit",
    help: "exit the server",
    parameters: &[],
    mutates: true,
    answer: Answer::Now(|context, _| context.order(Command::Quit)),
};
