//! `/help` and `/`: what there is.

use std::fmt::Write;

use crate::admin::respond::Response;
use crate::admin::{Answer, ENDPOINTS, Endpoint};

/// `/help`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/help",
    help: "print out list of admin commands",
    parameters: &[],
    mutates: false,
    answer: Answer::Now(|_, _| Response::text(text())),
};

/// `/`
pub(super) const HOME: Endpoint = Endpoint {
    path: "/",
    help: "Admin home page",
    parameters: &[],
    mutates: false,
    answer: Answer::Now(|_, _| Response::html(page())),
};

/// The list of all endpoints.
pub(super) fn text() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for endpoint in ENDPOINTS {
        let post = if endpoint.mutates { " (POST)" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {}{post}: {}", endpoint.path, endpoint.help);
        for (name, help) in endpoint.parameters {
            let _ = writeln!(out, "      {name}: {help}");
        }
    }
    out
}

fn page() -> String {
    let mut out = concat!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Admin</title></head>\n<body>\n",
        "<h1>Admin</h1>\n<table>\n",
    )
    .to_owned();
    for endpoint in ENDPOINTS {
        let name = endpoint.path.trim_start_matches('/');
        if name.is_empty() {
            continue;
        }
        let control = match endpoint.mutates {
            true => format!("<form method=\"post\" action=\"{name}\"><button>{name}</button></form>"),
            false => format!("<a href=\"{name}\">{name}</a>"),
        };
        let _ = writeln!(out, "<tr><td>{control}</td><td>{}</td></tr>", endpoint.help);
    }
    out.push_str("</table>\n</body>\n</html>\n");
    out
}
