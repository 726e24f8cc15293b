//! Request targets (RFC 9112 section 3.2) and authorities, as strict as Envoy is about them.

use std::ops::Range;

use super::head::HeadLimits;
use crate::http::codec::{CODEC_ERROR, CodecError};

/// What a request's target says, as parts of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Target {
    pub(super) path: Option<Range<usize>>,
    /// Of the absolute and the authority form.
    pub(super) authority: Option<Range<usize>>,
    /// The path begins with a slash, or needs none.
    pub(super) rooted: bool,
}

/// Reads the request target (RFC 9112 section 3.2), which is ASCII, or will be refused.
#[inline]
pub(super) fn target(method: &[u8], target: &[u8], limits: &HeadLimits) -> Result<Target, CodecError> {
    if target.first() == Some(&b'/') && method != b"CONNECT" {
        return Ok(Target { path: Some(0..target.len()), authority: None, rooted: true });
    }
    odd_target(method, target, limits)
}

#[cold]
fn odd_target(method: &[u8], target: &[u8], limits: &HeadLimits) -> Result<Target, CodecError> {
    const INVALID: CodecError = CodecError::bad("http1.invalid_url");
    let Ok(target) = std::str::from_utf8(target) else { return Err(CODEC_ERROR) };
    if method == b"CONNECT" {
        // Authority form: host and port, no path (RFC 9112 section 3.2.3).
        let port = target.rsplit_once(':').map(|(_, port)| port).ok_or(INVALID)?;
        if port.parse::<u16>().is_err() || !valid_authority(target.as_bytes()) {
            return Err(INVALID);
        }
        return Ok(Target { path: None, authority: Some(0..target.len()), rooted: true });
    }
    if target == "*" {
        if method != b"OPTIONS" {
            return Err(INVALID);
        }
        return Ok(Target { path: Some(0..1), authority: None, rooted: true });
    }
    let scheme = target.get(..8).unwrap_or(target);
    let start = if scheme.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
        Some(7)
    } else if scheme.eq_ignore_ascii_case("https://") {
        Some(8)
    } else {
        None
    };
    if start.is_none() && limits.absolute_url && target.contains("://") {
        return Err(CodecError::bad("http1.invalid_scheme"));
    }
    let (Some(start), true) = (start, limits.absolute_url) else { return Err(CODEC_ERROR) };
    let rest = target.get(start..).unwrap_or_default();
    let length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(length);
    let host = url_authority(authority).ok_or(INVALID)?;
    let end = start + length;
    Ok(Target {
        path: Some(end..target.len()),
        // The user in front of it goes.
        authority: Some(end - host.len()..end),
        rooted: path.starts_with('/'),
    })
}

/// Host and port of a URL's authority, without the user in front, if they are well-formed: a name
/// of letters, digits, dots and hyphens, or an IPv6 address in brackets, then perhaps a port. As
/// strict as Envoy; a `host` header may have more.
pub(crate) fn url_authority(authority: &str) -> Option<&str> {
    let authority = match authority.split_once('@') {
        Some((user, rest)) if valid_authority(user.as_bytes()) => rest,
        Some(_) => return None,
        None => authority,
    };
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (None, rest)
    } else {
        let at = authority.find(':').unwrap_or(authority.len());
        let (host, port) = authority.split_at(at);
        (Some(host), port)
    };
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if host.is_some_and(|host| host.is_empty() || !host.bytes().all(name)) {
        return None;
    }
    if !port.is_empty() {
        let digits = port.strip_prefix(':')?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) || digits.parse::<u16>().is_err() {
            return None;
        }
    }
    Some(authority)
}

/// Characters of a host and port (RFC 3986 section 3.2, without user information).
pub(crate) fn valid_authority(value: &[u8]) -> bool {
    // Without a way out in the middle: that would cost more than it saves.
    value.iter().fold(true, |valid, byte| valid & AUTHORITY[usize::from(*byte)])
}

/// The characters that `valid_authority` lets pass, by their codes.
static AUTHORITY: [bool; 256] = {
    let mut allowed = [false; 256];
    let others = b"-._~%!$&'()*+,;=:[]@";
    let mut code = 0;
    while code < allowed.len() {
        allowed[code] = (code as u8).is_ascii_alphanumeric();
        code += 1;
    }
    let mut index = 0;
    while index < others.len() {
        allowed[others[index] as usize] = true;
        index += 1;
    }
    allowed
};
