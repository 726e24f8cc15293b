//! What clients keep; `tests/filters` has the rest.

use std::time::{Duration, SystemTime};

use leno_base::Name;
use prost::Message;

use super::session::{Address, Session, SessionCookie};
use crate::http::headers::HeaderMap;
use leno_base::base64;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn cookie(path: &str, ttl: u64) -> Session {
    let (ttl, attributes) = (Duration::from_secs(ttl), "; SameSite=Lax".into());
    Session::Cookie(SessionCookie { name: "s".into(), path: path.into(), ttl, attributes })
}

fn head(fields: &[(&str, &str)]) -> HeaderMap {
    let mut head = HeaderMap::new();
    fields.iter().for_each(|(name, value)| head.append(name.as_bytes(), value.as_bytes()));
    head
}

#[test]
fn cookies() {
    let session = cookie("/a", 10);
    let mut response = HeaderMap::new();
    session.write("10.0.0.1:80", true, at(100), &mut response);
    let line = String::from_utf8_lossy(response.find("set-cookie").expect("a cookie")).into_owned();
    let (value, rest) = line.split_once("; ").expect("attributes");
    assert_eq!(rest, "Max-Age=10; Path=/a; SameSite=Lax; HttpOnly");
    let read = |value: &str, session: &Session, seconds| {
        session.read(&mut head(&[("cookie", &format!("x=y; {value}"))]), at(seconds))
    };
    assert_eq!(read(value, &session, 110).as_deref(), Some("10.0.0.1:80"));
    assert_eq!(read(value, &session, 111), None, "it has expired");
    let endless = Address { address: "h:1".into(), expires: 0 }.encode_to_vec();
    let endless = format!("s={}", base64::encode(&endless));
    assert_eq!(read(&endless, &session, 0), None, "one that never expires is not ours");
    assert_eq!(read(&endless, &cookie("", 0), 0).as_deref(), Some("h:1"));
    assert_eq!(
        read(&format!("s={}", base64::encode(b"10.2.3.4:50")), &session, 0).as_deref(),
        Some("10.2.3.4:50")
    );
    assert_eq!(read("s=**", &session, 0), None);
    session.write("10.0.0.1:80", false, at(100), &mut HeaderMap::new());
}

#[test]
fn paths_of_cookies() {
    let check = |own: &str, path: &str, expected: bool| {
        assert_eq!(cookie(own, 0).covers(&head(&[(":path", path)])), expected, "{own} {path}");
    };
    for path in ["/", "/a?b"] {
        check("", path, true);
        check("/", path, true);
    }
    check("/a", "/a", true);
    check("/a", "/a/b", true);
    check("/a", "/a?b", true);
    check("/a", "/ab", false);
    check("/a/", "/a", false);
    check("/a/", "/a/b", true);
}

#[test]
fn headers_and_envelopes() {
    let header = Session::Header(Name::new("x-s"));
    let mut response = HeaderMap::new();
    header.write("h:1", false, at(0), &mut response);
    assert!(response.find("x-s").is_none());
    header.write("h:1", true, at(0), &mut response);
    assert_eq!(header.read(&mut response, at(0)).as_deref(), Some("h:1"));
    let envelope = Session::Envelope(Name::new("x-s"));
    let mut response = head(&[("x-s", "inner")]);
    envelope.write("h:1", false, at(0), &mut response);
    let mut request = response.clone();
    assert_eq!(envelope.read(&mut request, at(0)).as_deref(), Some("h:1"));
    assert_eq!(request.find("x-s"), Some(b"inner".as_slice()));
    let mut without = HeaderMap::new();
    envelope.write("h:1", true, at(0), &mut without);
    assert!(without.find("x-s").is_none());
    assert_eq!(envelope.read(&mut head(&[("x-s", "aDox")]), at(0)), None);
}
