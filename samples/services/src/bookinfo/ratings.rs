//! ratings: stars by reviewer. Calls nobody.

use std::io;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;

use super::model::{REVIEWERS, Ratings};
use crate::Shutdown;
use crate::http_server::{self, healthy, json_reply, method_not_allowed, not_found, product_id};

/// The stars that each of [`REVIEWERS`] gives, in their order.
const STARS: [u8; 2] = [5, 4];

/// Serves `/ratings/{id}` and `/health` until `shutdown`.
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
    match path.strip_prefix("/ratings/") {
        Some(id) => match product_id(id) {
            Ok(id) => {
                let ratings = REVIEWERS.map(str::to_owned).into_iter().zip(STARS).collect();
                json_reply(StatusCode::OK, &Ratings { id, ratings })
            }
            Err(refusal) => *refusal,
        },
        None if path == "/health" => healthy("ratings", version),
        None => not_found(),
    }
}
