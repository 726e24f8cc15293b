//! Bookinfo: productpage → details, and reviews v1, v2 or v3 → ratings.
//!
//! The application that the Istio documentation's tasks are written for, in our own words: the same
//! services, ports, paths, variables, headers and JSON fields, so that those tasks can be followed.
//! The versions of reviews are one program: v1 has ratings switched off, v2 draws black stars and
//! v3 red ones, by the environment that the manifest gives.

pub mod details;
pub mod model;
mod page;
pub mod productpage;
pub mod ratings;
pub mod reviews;

use clap::{Args, Subcommand};

use crate::pod::pod_name;
use crate::{InvalidPeer, Listen, OutboundProxy, Peer, Shutdown};

/// A service of the bookshop.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// The page that people see; calls details and reviews
    Productpage {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        peers: Peers,
    },
    /// Facts about a book
    Details {
        #[command(flatten)]
        common: Common,
    },
    /// What people say about a book; calls ratings if these are enabled
    Reviews {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        peers: Peers,
        /// Whether to ask the ratings service for stars
        #[arg(long, env = "ENABLE_RATINGS", default_value_t = false, action = clap::ArgAction::Set)]
        enable_ratings: bool,
        /// The stars' colour
        #[arg(long, env = "STAR_COLOR", default_value = "black")]
        star_color: String,
        /// The cluster that the answers name
        #[arg(long, env = "CLUSTER_NAME")]
        cluster_name: Option<String>,
    },
    /// Stars by reviewer
    Ratings {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Common {
    /// The port to listen on
    #[arg(env = "PORT", default_value_t = 9080)]
    port: u16,
    #[command(flatten)]
    listen: Listen,
    /// The version that health checks report
    #[arg(long, env = "SERVICE_VERSION", default_value = "v1")]
    service_version: String,
}

/// Where the other services are. The port variables are those that Kubernetes sets for Services.
#[derive(Args, Debug)]
pub(crate) struct Peers {
    #[arg(long, env = "DETAILS_HOSTNAME", default_value = "details")]
    details_hostname: String,
    #[arg(long, env = "DETAILS_SERVICE_PORT", default_value_t = 9080)]
    details_service_port: u16,
    #[arg(long, env = "REVIEWS_HOSTNAME", default_value = "reviews")]
    reviews_hostname: String,
    #[arg(long, env = "REVIEWS_SERVICE_PORT", default_value_t = 9080)]
    reviews_service_port: u16,
    #[arg(long, env = "RATINGS_HOSTNAME", default_value = "ratings")]
    ratings_hostname: String,
    #[arg(long, env = "RATINGS_SERVICE_PORT", default_value_t = 9080)]
    ratings_service_port: u16,
    /// Appended to the three names, as in `shop.svc.cluster.local`
    #[arg(long, env = "SERVICES_DOMAIN", default_value = "")]
    services_domain: String,
}

impl Peers {
    fn details(&self) -> Result<Peer, InvalidPeer> {
        Peer::new(&self.details_hostname, &self.services_domain, self.details_service_port)
    }

    fn reviews(&self) -> Result<Peer, InvalidPeer> {
        Peer::new(&self.reviews_hostname, &self.services_domain, self.reviews_service_port)
    }

    fn ratings(&self) -> Result<Peer, InvalidPeer> {
        Peer::new(&self.ratings_hostname, &self.services_domain, self.ratings_service_port)
    }
}

pub(crate) async fn run(command: Command, shutdown: Shutdown) -> anyhow::Result<()> {
    match command {
        Command::Productpage { common, peers } => {
            let config = productpage::Config {
                version: common.service_version,
                details: peers.details()?,
                reviews: peers.reviews()?,
                ratings: peers.ratings()?,
                proxy: OutboundProxy::from_env()?,
            };
            let listener = common.listen.bind("productpage", common.port).await?;
            productpage::serve(listener, config, shutdown).await?;
        }
        Command::Details { common } => {
            let listener = common.listen.bind("details", common.port).await?;
            details::serve(listener, common.service_version, shutdown).await?;
        }
        Command::Reviews { common, peers, enable_ratings, star_color, cluster_name } => {
            let ratings = if enable_ratings {
                Some(reviews::Ratings { peer: peers.ratings()?, color: star_color })
            } else {
                None
            };
            let config = reviews::Config {
                version: common.service_version,
                pod_name: pod_name(),
                cluster_name,
                ratings,
                proxy: OutboundProxy::from_env()?,
            };
            let listener = common.listen.bind("reviews", common.port).await?;
            reviews::serve(listener, config, shutdown).await?;
        }
        Command::Ratings { common } => {
            let listener = common.listen.bind("ratings", common.port).await?;
            ratings::serve(listener, common.service_version, shutdown).await?;
        }
    }
    Ok(())
}
