//! `leno token`: tokens with which machines come into a mesh without Kubernetes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use leno_control::server::{create_join_token, parse_duration};

use crate::cli::Failure;
use crate::out::outln;

#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a token that is good once, and print it
    Create(Create),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The folder that `leno pilot --joinTokens` has
    #[arg(long = "dir", value_name = "DIR")]
    folder: PathBuf,
    /// The namespace of the workload
    #[arg(short = 'n', long = "namespace", value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Its service account
    #[arg(long = "service-account", value_name = "NAME", default_value = "default")]
    account: String,
    /// How long the token can be used
    #[arg(long = "ttl", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

impl Token {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Verb::Create(Create { folder, namespace, account, ttl }) = self.verb;
        let token = create_join_token(&folder, &namespace, &account, ttl).map_err(anyhow::Error::msg)?;
        outln!("{token}");
        Ok(ExitCode::SUCCESS)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("{text:?} is no duration such as 30m or 1h"))
}
