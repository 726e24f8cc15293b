//! The echo server: each answer names the replica that gave it.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::echo::echo_server::{Echo, EchoServer};
use super::echo::{EchoReply, EchoRequest, WatchRequest};
use super::health::health_check_response::ServingStatus;
use super::health::health_server::{Health, HealthServer};
use super::health::{HealthCheckRequest, HealthCheckResponse};
use crate::Shutdown;
use crate::http_server::DRAIN;

/// The shortest time between two replies of a Watch, whatever is asked.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// What a replica says of itself in every reply.
#[derive(Clone, Debug)]
pub struct Config {
    pub hostname: String,
    pub version: String,
}

/// Serves the echo service and `grpc.health.v1.Health` until `shutdown`: then open streams end
/// with status OK, and calls in flight are answered.
///
/// # Errors
///
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let replica = Replica { config, shutdown: shutdown.clone() };
    let serving = tonic::transport::Server::builder()
        .add_service(EchoServer::new(replica.clone()))
        .add_service(HealthServer::new(replica))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().requested(),
        );
    tokio::select! {
        served = serving => served,
        () = async { shutdown.requested().await; tokio::time::sleep(DRAIN).await } => {
            eprintln!("some calls did not finish within {} s", DRAIN.as_secs());
            Ok(())
        }
    }
}

#[derive(Clone, Debug)]
struct Replica {
    config: Config,
    shutdown: Shutdown,
}

impl Replica {
    fn reply(&self, message: String) -> EchoReply {
        EchoReply { message, hostname: self.config.hostname.clone(), version: self.config.version.clone() }
    }

    /// A stream that ends when the server does: else it would hold the server up.
    fn until_shutdown<T>(
        &self,
        stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>> {
        Box::pin(stream.take_until(self.shutdown.clone().requested()))
    }
}

#[tonic::async_trait]
impl Echo for Replica {
    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        Ok(Response::new(self.reply(request.into_inner().message)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { message, interval_ms, count } = request.into_inner();
        let pause = match interval_ms {
            0 => Duration::from_secs(1),
            milliseconds => Duration::from_millis(milliseconds.into()).max(SHORTEST_INTERVAL),
        };
        let reply = self.reply(message);
        let replies = stream::unfold(tokio::time::interval(pause), move |mut ticks| {
            let reply = reply.clone();
            async move {
                ticks.tick().await;
                Some((Ok(reply), ticks))
            }
        });
        let replies = match count {
            0 => self.until_shutdown(replies),
            count => self.until_shutdown(replies.take(usize::try_from(count).unwrap_or(usize::MAX))),
        };
        Ok(Response::new(replies))
    }

    type ChatStream = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

    async fn chat(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let replica = self.clone();
        let replies = request.into_inner().map(move |message| Ok(replica.reply(message?.message)));
        Ok(Response::new(self.until_shutdown(replies)))
    }
}

/// Whether the health service knows of `service`. Empty stands for the server as a whole.
fn is_known(service: &str) -> bool {
    matches!(service, "" | "leno.samples.echo.v1.Echo" | "grpc.health.v1.Health")
}

fn health(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Replica {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if is_known(&service) {
            Ok(Response::new(health(ServingStatus::Serving)))
        } else {
            Err(Status::not_found(format!("no service `{service}` here")))
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let states = if is_known(&request.into_inner().service) {
            let end = self.shutdown.clone().requested();
            let ending = stream::once(async {
                end.await;
                Ok(health(ServingStatus::NotServing))
            });
            stream::iter([Ok(health(ServingStatus::Serving))]).chain(ending).boxed()
        } else {
            // The standard wants the stream kept open: the service may appear later.
            let unknown = stream::iter([Ok(health(ServingStatus::ServiceUnknown))]);
            self.until_shutdown(unknown.chain(stream::pending()))
        };
        Ok(Response::new(states))
    }
}
