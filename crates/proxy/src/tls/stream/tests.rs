use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::BytesMut;
use leno_tls::Findings;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::UnixStream;

use super::{Session, TlsStream};
use crate::http::codec::buffer::Transport;
use crate::io::Socket;
use crate::turn;

/// Two ends of a session: a server's and a client's.
async fn pair() -> (Transport, Transport) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = issued.cert.der().clone();
    let key = issued.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
    let client = UnbufferedClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let mut near = TlsStream::new(Socket::Unix(near), Session::Server(server), Vec::new());
    let mut far = TlsStream::new(Socket::Unix(far), Session::Client(client), Vec::new());
    let (mut ours, mut theirs) = (Findings::default(), Findings::default());
    let (one, other) = tokio::join!(near.handshake(&mut ours), far.handshake(&mut theirs));
    one.unwrap();
    other.unwrap();
    let transport = |stream| Transport::new(Socket::Tls(Box::new(stream)), BytesMut::new());
    (transport(near), transport(far))
}

fn write(transport: &mut Transport, text: &str) {
    transport.output.text().bytes().extend_from_slice(text.as_bytes());
}

async fn leave(transport: &mut Transport, text: &str) {
    write(transport, text);
    poll_fn(|cx| transport.poll_flush_soon(cx)).await.unwrap();
}

async fn read(transport: &mut Transport) -> String {
    poll_fn(|cx| transport.poll_fill(cx)).await.unwrap();
    let text = transport.input.split();
    String::from_utf8(text.to_vec()).unwrap()
}

#[tokio::test]
async fn a_sealed_message_waits_for_the_end_of_the_turn() {
    let (mut near, mut far) = pair().await;
    let mut cx = Context::from_waker(Waker::noop());
    // The client may yet have to read tickets.
    assert!(far.poll_fill(&mut cx).is_pending());
    let _kept = turn::Kept::new();
    leave(&mut near, "hello").await;
    assert!(near.is_sending() && !near.is_stuck());
    assert_eq!(near.sent, 5);
    assert!(far.poll_fill(&mut cx).is_pending());
    turn::end();
    assert!(!near.is_sending());
    assert_eq!(read(&mut far).await, "hello");
    // What is sealed later is sent later, whether it may wait or not.
    leave(&mut near, "one ").await;
    leave(&mut near, "two ").await;
    leave(&mut near, "three ").await;
    write(&mut near, "four");
    poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
    assert!(!near.is_sending());
    assert_eq!(read(&mut far).await, "one two three four");
    assert_eq!(near.sent, 23);
}

#[tokio::test]
async fn a_message_goes_before_what_reading_may_send() {
    let (mut near, mut far) = pair().await;
    let _kept = turn::Kept::new();
    leave(&mut near, "hello").await;
    write(&mut far, "and you?");
    poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
    assert_eq!(read(&mut near).await, "and you?");
    // Nothing ends the turn here.
    assert_eq!(read(&mut far).await, "hello");
    // The end of the session goes behind it, too.
    leave(&mut near, "bye").await;
    poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
    assert_eq!(read(&mut far).await, "bye");
    assert_eq!(read(&mut far).await, "");
}

#[tokio::test]
async fn a_sealed_message_that_the_peer_does_not_take_comes_back() {
    for reads in [false, true] {
        let (mut near, mut far) = pair().await;
        let _kept = turn::Kept::new();
        let mut sent = String::new();
        while !near.is_sending() {
            let text = format!("{:1000}", sent.len());
            leave(&mut near, &text).await;
            turn::end();
            sent.push_str(&text);
        }
        let mut cx = Context::from_waker(Waker::noop());
        if reads {
            // It is found by whoever reads first.
            assert!(near.poll_fill(&mut cx).is_pending());
        }
        assert!(near.poll_flush_soon(&mut cx).is_pending());
        assert!(near.is_stuck());
        // What follows waits behind it.
        write(&mut near, "end");
        sent.push_str("end");
        assert!(near.poll_flush_soon(&mut cx).is_pending());
        let mut received = String::new();
        let receive = async {
            while received.len() < sent.len() {
                received.push_str(&read(&mut far).await);
            }
        };
        let (flushed, ()) = tokio::join!(poll_fn(|cx| near.poll_flush_soon(cx)), receive);
        flushed.unwrap();
        assert!(received == sent);
        assert!(!near.is_stuck() && !near.is_sending());
        assert_eq!(near.sent, sent.len() as u64);
    }
}

#[tokio::test]
async fn a_session_that_is_dropped_sends_it() {
    let (mut near, mut far) = pair().await;
    let _kept = turn::Kept::new();
    leave(&mut near, "hello").await;
    drop(near);
    assert_eq!(read(&mut far).await, "hello");
    assert_eq!(read(&mut far).await, "");
}
