//! reviews: what people say about a book, with stars from ratings if these are enabled.
//!
//! When ratings does not answer, the reviews come without stars and say so: a part that fails
//! must not take the whole with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;

use super::model::{self, REVIEWERS, Rating, Review, Reviews};
use crate::call::{CallFailed, Caller};
use crate::headers::propagated;
use crate::http_server::{self, healthy, json_reply, method_not_allowed, not_found, product_id};
use crate::{OutboundProxy, Peer, Shutdown};

/// What a replica of reviews is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The version that health checks report.
    pub version: String,
    /// The replica's name in answers.
    pub pod_name: String,
    /// The cluster's name in answers.
    pub cluster_name: Option<String>,
    /// Where stars come from; `None` for reviews without stars.
    pub ratings: Option<Ratings>,
    /// How to reach other services.
    pub proxy: OutboundProxy,
}

/// Where stars come from and what they look like.
#[derive(Clone, Debug)]
pub struct Ratings {
    pub peer: Peer,
    pub color: String,
}

impl Ratings {
    /// The version with black stars waits so long that productpage loses patience first when
    /// ratings is slow: a mistake made on purpose, which fault injection is there to find.
    fn patience(&self) -> Duration {
        if self.color == "black" { Duration::from_secs(10) } else { Duration::from_millis(2500) }
    }
}

/// Serves `/reviews/{id}` and `/health` until `shutdown`.
///
/// # Errors
///
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, config: Config, shutdown: Shutdown) -> io::Result<()> {
    let service = Arc::new(Service { caller: Caller::new(config.proxy.clone()), config });
    http_server::serve(listener, shutdown, move |request| {
        let service = Arc::clone(&service);
        async move { service.answer(request.method(), request.uri().path(), request.headers()).await }
    })
    .await
}

struct Service {
    config: Config,
    caller: Caller,
}

impl Service {
    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return method_not_allowed("GET, HEAD");
        }
        match path.strip_prefix("/reviews/") {
            Some(id) => match product_id(id) {
                Ok(id) => json_reply(StatusCode::OK, &self.reviews(id, headers).await),
                Err(refusal) => *refusal,
            },
            None if path == "/health" => healthy("reviews", &self.config.version),
            None => not_found(),
        }
    }

    async fn reviews(&self, id: u64, headers: &HeaderMap) -> Reviews {
        let texts = [
            "Read it aloud, and by the third act the neighbours will have joined in. Nobody is who \
             they were at the start of the night, and everybody is better for it.",
            "A tangle of four threads that I was sure could never come straight. They do. \
             Half a star withheld for the lion, who roars too gently.",
        ];
        let rating = self.ratings(id, headers).await;
        let reviews = REVIEWERS.iter().zip(texts).map(|(&reviewer, text)| Review {
            reviewer: reviewer.to_owned(),
            text: text.to_owned(),
            rating: rating(reviewer),
        });
        Reviews {
            id: id.to_string(),
            podname: self.config.pod_name.clone(),
            clustername: self.config.cluster_name.clone(),
            reviews: reviews.collect(),
        }
    }

    /// What to show beside each reviewer's text.
    async fn ratings(&self, id: u64, headers: &HeaderMap) -> impl Fn(&str) -> Option<Rating> {
        let answer = match &self.config.ratings {
            Some(ratings) => Some((ratings.color.clone(), self.ask(ratings, id, headers).await)),
            None => None,
        };
        move |reviewer| {
            let (color, answer) = answer.as_ref()?;
            match answer {
                Ok(answer) => {
                    let stars = *answer.ratings.get(reviewer)?;
                    Some(Rating::Stars { stars, color: color.clone() })
                }
                Err(_) => {
                    Some(Rating::Unavailable { error: "The ratings service does not answer".to_owned() })
                }
            }
        }
    }

    async fn ask(
        &self,
        ratings: &Ratings,
        id: u64,
        headers: &HeaderMap,
    ) -> Result<model::Ratings, CallFailed> {
        let path = format!("/ratings/{id}");
        let answer = self.caller.get(&ratings.peer, &path, propagated(headers), ratings.patience()).await;
        let answer = answer.and_then(|json| Ok(serde_json::from_value(json)?));
        answer.inspect_err(|error| eprintln!("{}{path}: {error}", ratings.peer))
    }
}
