//! Unary gRPC calls. Messages are bytes here: whoever calls encodes and decodes them.

use std::net::IpAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Answer, Call, CallError, Wanted, call};
use crate::http::headers::{HeaderMap, Known};
use crate::http::reply::grpc_status;
use crate::worker::Worker;

/// A unary call.
#[derive(Debug)]
pub(crate) struct Unary<'a> {
    /// The service's full name, e.g. `envoy.service.auth.v3.Authorization`.
    pub(crate) service: &'a str,
    /// The method, e.g. `Check`.
    pub(crate) method: &'a str,
    /// `:authority`; `None`: the cluster's name.
    pub(crate) authority: Option<&'a str>,
    /// Further headers (`initial_metadata`).
    pub(crate) metadata: &'a [(Box<str>, Box<str>)],
    /// The encoded request.
    pub(crate) message: Bytes,
    /// How long it may take; the service is told (`grpc-timeout`).
    pub(crate) timeout: Option<Duration>,
    /// The address that the client is connected to.
    pub(crate) local: IpAddr,
}

/// Why there is no answer: a status other than OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Its code.
    pub(crate) code: u32,
    /// What the service says of it.
    pub(crate) message: Box<str>,
}

const INTERNAL: u32 = 13;
/// Largest answer that is read.
const ANSWER_LIMIT: usize = 4 << 20;

/// Makes a unary call; gives the encoded answer.
///
/// # Errors
/// A status of the service's, or what stands for an exchange that failed.
pub(crate) async fn unary(worker: &Worker, cluster: &str, unary: &Unary<'_>) -> Result<Bytes, Status> {
    let path = format!("/{}/{}", unary.service, unary.method);
    let mut request = Call::new("POST", unary.authority.unwrap_or(cluster), &path, unary.local);
    request.head.append_known(Known::Te, b"trailers");
    if let Some(timeout) = unary.timeout {
        request.head.append_known(Known::GrpcTimeout, timeout_text(timeout).as_bytes());
    }
    request.head.append_known(Known::ContentType, b"application/grpc");
    for (name, value) in unary.metadata {
        request.head.append(name.as_bytes(), value.as_bytes());
    }
    if let Some(timeout) = unary.timeout {
        request.limit(timeout);
    }
    request.answer = Wanted::All(ANSWER_LIMIT);
    request.body = vec![frame(&unary.message)];
    let answer = call(worker, cluster, &request).await;
    read(answer)
}

/// At most eight digits, in the finest unit that holds them.
fn timeout_text(timeout: Duration) -> String {
    const UNITS: [(u128, char); 3] = [(1, 'm'), (1000, 'S'), (60_000, 'M')];
    let millis = timeout.as_millis();
    let fitting = UNITS.into_iter().find(|(unit, _)| millis / unit < 100_000_000);
    let (unit, letter) = fitting.unwrap_or((3_600_000, 'H'));
    format!("{}{letter}", (millis / unit).min(99_999_999))
}

/// A message with its prefix.
pub(super) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(message);
    frame.freeze()
}

/// The message, or the status, of what came back.
fn read(answer: Result<Answer, CallError>) -> Result<Bytes, Status> {
    let Answer { head, body, trailers } = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let code = if error == CallError::TooLong { 8 } else { grpc_status(error.status()) };
            return Err(Status { code, message: Box::default() });
        }
    };
    if head.status() != 200 {
        let code = status_of(&head).unwrap_or_else(|| grpc_status(head.status()));
        return Err(Status { code, message: message_of(&head) });
    }
    // Without messages, the status is in the head.
    let end = trailers.as_deref().unwrap_or(&head);
    match status_of(end) {
        Some(0) => {}
        Some(code) => return Err(Status { code, message: message_of(end) }),
        // Ended without status.
        None => return Err(Status { code: 2, message: Box::default() }),
    }
    let internal = || Status { code: INTERNAL, message: Box::default() };
    let (prefix, message) = body.split_at_checked(5).ok_or_else(internal)?;
    let [compressed, length @ ..] = prefix else { return Err(internal()) };
    let length = length.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte));
    if *compressed != 0 || length != message.len() {
        return Err(internal());
    }
    Ok(body.slice(5..))
}

fn status_of(head: &HeaderMap) -> Option<u32> {
    head.get_str(Known::GrpcStatus)?.parse().ok()
}

fn message_of(head: &HeaderMap) -> Box<str> {
    let text = head.get(Known::GrpcMessage).unwrap_or_default();
    String::from_utf8_lossy(&crate::matching::percent_decode(text)).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::{Answer, CallError, Status, frame, read, timeout_text};
    use crate::http::headers::{HeaderMap, Known};

    fn head(status: u16, fields: &[(Known, &str)]) -> HeaderMap {
        let mut head = HeaderMap::new();
        head.set_status(status);
        fields.iter().for_each(|(name, value)| head.set(*name, value.as_bytes()));
        head
    }

    #[test]
    fn an_answer_is_a_message_or_a_status() {
        let status = |code, message: &str| Err(Status { code, message: message.into() });
        let check =
            |head: HeaderMap, body: Bytes, trailers: Option<HeaderMap>, expected: Result<Bytes, Status>| {
                let answer = Answer { head, body, trailers: trailers.map(Box::new) };
                assert_eq!(read(Ok(answer)), expected);
            };
        let ok = head(200, &[(Known::GrpcStatus, "0")]);
        let message = Bytes::from_static(b"abc");
        check(head(200, &[]), frame(&message), Some(ok.clone()), Ok(message.clone()));
        let denied = head(200, &[(Known::GrpcStatus, "7"), (Known::GrpcMessage, "50%25 no")]);
        check(denied.clone(), Bytes::new(), None, status(7, "50% no"));
        check(head(200, &[]), Bytes::new(), Some(denied), status(7, "50% no"));
        check(head(503, &[]), Bytes::new(), None, status(14, ""));
        check(head(200, &[]), frame(&message), None, status(2, ""));
        // OK, but no message, or no whole one.
        check(ok.clone(), Bytes::new(), None, status(13, ""));
        check(head(200, &[]), frame(&message).slice(..7), Some(ok.clone()), status(13, ""));
        check(head(200, &[]), Bytes::from_static(b"\x01\0\0\0\x01a"), Some(ok), status(13, ""));
        assert_eq!(read(Err(CallError::Timeout)), status(14, ""));
        assert_eq!(read(Err(CallError::TooLong)), status(8, ""));
    }

    #[test]
    fn timeouts_fit_in_eight_digits() {
        assert_eq!(timeout_text(Duration::from_millis(250)), "250m");
        assert_eq!(timeout_text(Duration::from_secs(100_000)), "100000S");
    }
}
