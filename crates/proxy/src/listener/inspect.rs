//! Listener filters: what can be learnt of a connection before its filter chain is chosen.
//!
//! Bytes that had to be read stay in `Accepted::buffered`, from where the network filters
//! take them first. The inspectors are pure functions of the bytes seen so far; the only
//! I/O is in `run`.

use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncReadExt;

use crate::io::Accepted;
use crate::listener::{Listener, ListenerFilterKind, ListenerPredicate, accept};

pub(crate) mod http;
pub(crate) mod tls;

/// What the listener filters found out.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    /// The connection begins with a TLS ClientHello.
    pub(crate) tls: bool,
    /// Its server name (SNI).
    pub(crate) server_name: Option<Box<str>>,
    /// ALPN of the ClientHello, or what plain HTTP looks like: `http/1.0`, `http/1.1`, `h2c`.
    pub(crate) application_protocols: Vec<Box<str>>,
}

/// What an inspector says of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    /// Cannot tell yet.
    NeedMore,
    /// It is.
    Yes(T),
    /// It is not.
    No,
}

/// Bytes that an inspector looks at, at most (the largest ClientHello that is read).
const LIMIT: usize = 64 * 1024;

/// Runs the listener's filters in order on one connection.
pub(crate) async fn run(
    listener: &Listener,
    accepted: &mut Accepted,
    found: &mut Inspected,
    local: &mut SocketAddr,
    restored: &mut bool,
) -> io::Result<()> {
    for filter in &listener.listener_filters {
        if filter.disabled.as_ref().is_some_and(|predicate| predicate.matches(local.port())) {
            continue;
        }
        match filter.kind {
            ListenerFilterKind::OriginalDst => accept::restore(&accepted.socket, local, restored),
            ListenerFilterKind::TlsInspector => {
                if let Verdict::Yes(hello) = read_until(accepted, tls::inspect).await? {
                    found.tls = true;
                    found.server_name = hello.server_name;
                    found.application_protocols = hello.application_protocols;
                }
            }
            ListenerFilterKind::HttpInspector => {
                if found.tls {
                    continue;
                }
                if let Verdict::Yes(protocol) = read_until(accepted, http::inspect).await? {
                    found.application_protocols = vec![protocol.into()];
                }
            }
        }
    }
    Ok(())
}

/// Reads until `inspect` has a verdict; the end of the stream or the limit means no.
async fn read_until<T>(
    accepted: &mut Accepted,
    inspect: impl Fn(&[u8]) -> Verdict<T>,
) -> io::Result<Verdict<T>> {
    loop {
        match inspect(&accepted.buffered) {
            Verdict::NeedMore if accepted.buffered.len() < LIMIT => {
                if accepted.socket.read_buf(&mut accepted.buffered).await? == 0 {
                    return Ok(Verdict::No);
                }
            }
            Verdict::NeedMore => return Ok(Verdict::No),
            verdict => return Ok(verdict),
        }
    }
}

impl ListenerPredicate {
    /// Whether it holds for a connection to this destination port.
    fn matches(&self, port: u16) -> bool {
        match self {
            ListenerPredicate::Or(rules) => rules.iter().any(|rule| rule.matches(port)),
            ListenerPredicate::And(rules) => rules.iter().all(|rule| rule.matches(port)),
            ListenerPredicate::Not(rule) => !rule.matches(port),
            ListenerPredicate::Any => true,
            ListenerPredicate::DestinationPort(start, end) => (*start..*end).contains(&port),
        }
    }
}
