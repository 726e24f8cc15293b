//! details: facts about a book. Calls nobody.

use std::io;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;

use super::model::Details;
use crate::Shutdown;
use crate::http_server::{self, healthy, json_reply, method_not_allowed, not_found, product_id};

/// Serves `/details/{id}` and `/health` until `shutdown`.
///
/// # Errors
///
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, version: String, shutdown: Shutdown) -> io::Result<()> {
    http_server::serve(listener, shutdown, move |request| {
        let response = answer(request.method(), request.uri().path(), &version);
        async { response }
    })
    .await
}

fn answer(method: &Method, path: &str, version: &str) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return method_not_allowed("GET, HEAD");
    }
    match path.strip_prefix("/details/") {
        Some(id) => match product_id(id) {
            Ok(id) => json_reply(StatusCode::OK, &details(id)),
            Err(refusal) => *refusal,
        },
        None if path == "/health" => healthy("details", version),
        None => not_found(),
    }
}

/// The first quarto; the numbers are nobody's.
fn details(id: u64) -> Details {
    Details {
        id,
        author: "William Shakespeare".to_owned(),
        year: 1600,
        binding: "paperback".to_owned(),
        pages: 64,
        publisher: "Thomas Fisher".to_owned(),
        language: "English".to_owned(),
        isbn_10: "0000000000".to_owned(),
        isbn_13: "000-0000000000".to_owned(),
    }
}
