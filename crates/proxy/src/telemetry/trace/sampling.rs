//! Whether a request is traced: what its client asks for, what others have decided before, and
//! what chance says. The decision is written into the request's id, whose thirteenth digit is the
//! version of a UUID otherwise, so that all who see the request decide alike.

use crate::http::headers::{HeaderMap, Known};

/// Why a request is traced, or that it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is not.
    #[default]
    NotTraceable,
    /// By chance.
    Sampling,
    /// The service wants it (`x-envoy-force-trace`).
    ServiceForced,
    /// The client wants it (`x-client-trace-id`).
    ClientForced,
}

impl Reason {
    /// Whether it is traced.
    pub(crate) fn is_traced(self) -> bool {
        self != Reason::NotTraceable
    }

    /// The digit of a request's id that says so.
    fn digit(self) -> u8 {
        match self {
            Reason::NotTraceable => b'4',
            Reason::Sampling => b'9',
            Reason::ServiceForced => b'a',
            Reason::ClientForced => b'b',
        }
    }
}

/// A share of requests: numerator and denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(pub(crate) u32, pub(crate) u32);

impl Share {
    /// All of them.
    pub(crate) const ALL: Share = Share(100, 100);

    /// Whether a number falls into it.
    pub(crate) fn has(self, number: u64) -> bool {
        number % u64::from(self.1.max(1)) < u64::from(self.0)
    }
}

/// How many requests are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampling {
    /// Of those whose clients want it: `client_sampling`.
    pub(crate) client: Share,
    /// Of those that nobody asks for: `random_sampling`.
    pub(crate) random: Share,
    /// Of those chosen so far: `overall_sampling`.
    pub(crate) overall: Share,
}

/// UuidRequestIdConfig: what a request's id has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestIds {
    /// `pack_trace_reason`: the decision is written into it.
    pub(crate) pack: bool,
    /// `use_request_id_for_trace_sampling`: it decides; else the tracer does.
    pub(crate) decide: bool,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { pack: true, decide: true }
    }
}

/// Where a UUID has its version.
const PLACE: usize = 14;
/// How long a UUID is.
const LENGTH: usize = 36;

/// Decides about a request, and says so in its id; `random` is a number of its own.
pub(crate) fn decide(
    head: &mut HeaderMap,
    sampling: &Sampling,
    ids: RequestIds,
    random: impl FnOnce() -> u64,
) -> Reason {
    if !ids.decide {
        return Reason::Sampling;
    }
    let Some(number) = request_number(head) else { return Reason::NotTraceable };
    // What it says counts only where it is written.
    let said = if ids.pack { said(head) } else { Reason::NotTraceable };
    let mut reason = said;
    if reason == Reason::NotTraceable {
        if head.contains(Known::XClientTraceId) && sampling.client.has(random()) {
            reason = Reason::ClientForced;
        } else if head.contains(Known::EnvoyForceTrace) {
            reason = Reason::ServiceForced;
        } else if sampling.random.has(number) {
            reason = Reason::Sampling;
        }
    }
    if reason.is_traced() && !sampling.overall.has(number) {
        reason = Reason::NotTraceable;
    }
    if reason != said {
        say(reason, ids, head);
    }
    reason
}

/// The number that a request's id stands for, below 10,000: its first eight hexadecimal digits.
fn request_number(head: &HeaderMap) -> Option<u64> {
    let digits = head.get(Known::XRequestId)?.get(..8)?;
    Some(super::context::number64(digits)? % 10_000)
}

/// What a request's id says.
fn said(head: &HeaderMap) -> Reason {
    let id = head.get(Known::XRequestId).filter(|id| id.len() == LENGTH);
    match id.and_then(|id| id.get(PLACE)) {
        Some(b'9') => Reason::Sampling,
        Some(b'a') => Reason::ServiceForced,
        Some(b'b') => Reason::ClientForced,
        _ => Reason::NotTraceable,
    }
}

fn say(reason: Reason, ids: RequestIds, head: &mut HeaderMap) {
    if !ids.pack {
        return;
    }
    let id: Option<[u8; LENGTH]> = head.get(Known::XRequestId).and_then(|id| id.try_into().ok());
    if let Some(mut id) = id
        && let Some(digit) = id.get_mut(PLACE)
    {
        *digit = reason.digit();
        head.set(Known::XRequestId, &id);
    }
}
