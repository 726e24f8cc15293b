//! Which encoding a response gets, of those that the compressors of a chain offer, by the request's
//! `accept-encoding` (RFC 9110 section 12.5.3, as Envoy reads it).

use smallvec::SmallVec;

/// What one compressor of a chain offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its `content-encoding`.
    pub(super) encoding: &'static str,
    /// It is preferred among those that the client likes alike (`choose_first`).
    pub(super) first: bool,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// `None`: it stays as it is.
    pub(super) encoding: Option<&'static str>,
    pub(super) because: Because,
}

/// How it came to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// By its name.
    Named,
    /// By an asterisk.
    Wildcard,
    /// The client likes it as it is.
    Identity,
    /// Nothing that the client accepts is offered.
    NotValid,
}

/// Chooses for this `accept-encoding`. `offered` are the compressors that take the response's content
/// type, in the order of the chain; of several of one encoding the first counts.
pub(super) fn choose(accepted: &[u8], offered: impl Iterator<Item = Candidate>) -> Choice {
    let mut allowed: SmallVec<[Candidate; 3]> = SmallVec::new();
    for candidate in offered {
        if allowed.iter().all(|known| known.encoding != candidate.encoding) {
            allowed.push(candidate);
        }
    }
    let mut asked: SmallVec<[(&[u8], f32); 4]> = SmallVec::new();
    for token in accepted.split(|byte| *byte == b',').filter(|token| !token.is_empty()) {
        let Some((name, weight)) = weighted(token) else { continue };
        if weight == 0.0 {
            allowed.retain(|known| known.encoding.as_bytes() != name);
        }
        asked.push((name, weight));
    }
    let none = Choice { encoding: None, because: Because::NotValid };
    let Some(first) = allowed.first() else { return none };
    let offer = |name: &[u8]| allowed.iter().find(|known| known.encoding.as_bytes() == name);
    let mut best: (&[u8], f32) = (b"identity", 0.0);
    for (name, weight) in asked {
        let preferred = match offer(name) {
            Some(candidate) => candidate.first,
            None if name == b"identity" || name == b"*" => false,
            None => continue,
        };
        if weight > best.1 || weight == best.1 && preferred {
            best = (name, weight);
        }
    }
    match best {
        (_, 0.0) => none,
        (b"identity", _) => Choice { encoding: None, because: Because::Identity },
        (b"*", _) => Choice { encoding: Some(first.encoding), because: Because::Wildcard },
        (name, _) => match offer(name) {
            Some(chosen) => Choice { encoding: Some(chosen.encoding), because: Because::Named },
            None => none,
        },
    }
}

/// The name and the weight of an entry; `None`: its weight is no number. As in Envoy a weight is only
/// seen as the first parameter.
fn weighted(token: &[u8]) -> Option<(&[u8], f32)> {
    let mut parts = token.splitn(2, |byte| *byte == b';');
    let name = parts.next().unwrap_or_default().trim_ascii();
    let Some(parameters) = parts.next() else { return Some((name, 1.0)) };
    let mut parameter = parameters.splitn(2, |byte| *byte == b'=');
    let key = parameter.next().unwrap_or_default().trim_ascii();
    let Some(value) = parameter.next().filter(|_| key.eq_ignore_ascii_case(b"q")) else {
        return Some((name, 1.0));
    };
    let weight: f32 = std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()?;
    Some((name, weight))
}
