//! The SPIFFE Workload API: what a client of ours is told, and one that others have written.

use std::path::Path;
use std::process::{Command, Stdio};

use leno_agent::identity::Secret;
use leno_agent::workload_api::HEADER;
use leno_agent::workload_api::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use leno_agent::workload_api::proto::{X509BundlesRequest, X509svidRequest, X509svidResponse};
use leno_tls::issue::{Validity, certificates};
use leno_xds::client::grpc::{Connection, Target, connect};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

use super::{IDENTITY, LIMIT, made, root_of, serve, wall};

async fn channel(folder: &Path) -> Channel {
    let connection = Connection { authority: "workload".to_owned(), connect_timeout: LIMIT, keepalive: None };
    connect(&Target::Unix(folder.join("uds/socket")), &connection).await.expect("it listens")
}

/// A request with this header as often as there are values.
fn request<M>(message: M, values: &[&'static str]) -> Request<M> {
    let mut request = Request::new(message);
    for value in values {
        request.metadata_mut().append(HEADER, MetadataValue::from_static(value));
    }
    request
}

async fn next<M>(messages: &mut Streaming<M>) -> M {
    let message = tokio::time::timeout(LIMIT, messages.message()).await.expect("in time");
    message.expect("no error").expect("not the end")
}

/// The only error, of a call or on its stream.
async fn refused<M>(answer: Result<tonic::Response<Streaming<M>>, tonic::Status>) -> Code {
    match answer {
        Err(status) => status.code(),
        Ok(messages) => messages.into_inner().message().await.err().expect("an error").code(),
    }
}

fn der(pem: &str) -> Vec<u8> {
    certificates(pem.as_bytes()).expect("PEM").iter().flat_map(|der| der.to_vec()).collect()
}

/// That a message is this certificate, and can be used as it is.
fn assert_is(message: &X509svidResponse, secret: &Secret) {
    let [svid] = message.svids.as_slice() else { panic!("one: {message:?}") };
    assert_eq!((svid.spiffe_id.as_str(), svid.hint.as_str()), (IDENTITY, ""));
    assert_eq!(svid.x509_svid, der(&secret.chain));
    assert_eq!(svid.bundle, der(&secret.roots));
    let chain: Vec<_> = certificates(secret.chain.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(svid.x509_svid_key.to_vec()));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = rustls::sign::CertifiedKey::from_der(chain, key, &provider).expect("a key");
    certified.keys_match().expect("the certificate's");
    assert_eq!(message.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://other.example"]);
    assert_eq!(message.federated_bundles["spiffe://other.example"], svid.bundle);
}

#[tokio::test]
async fn workloads_are_told_who_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let (say, _end) = serve(folder.path());
    let mut client = SpiffeWorkloadApiClient::new(channel(folder.path()).await);
    // What somebody makes a program send in his stead has no such header.
    for values in [&[][..], &["True"], &["false"], &["true", "true"]] {
        let code = refused(client.fetch_x509svid(request(X509svidRequest {}, values)).await).await;
        assert_eq!(code, Code::InvalidArgument, "{values:?}");
        let code = refused(client.fetch_x509_bundles(request(X509BundlesRequest {}, values)).await).await;
        assert_eq!(code, Code::InvalidArgument, "{values:?}");
    }
    let asked = || request(X509svidRequest {}, &["true"]);
    assert_eq!(refused(client.fetch_x509svid(asked()).await).await, Code::PermissionDenied, "not yet");

    let signer = root_of(wall());
    let first = made(&signer);
    say.send_replace(Some(first.clone()));
    let mut svids = loop {
        match client.fetch_x509svid(asked()).await {
            Ok(mut messages) => match messages.get_mut().message().await {
                Ok(message) => {
                    assert_is(&message.expect("not the end"), &first);
                    break messages.into_inner();
                }
                Err(status) => assert_eq!(status.code(), Code::PermissionDenied),
            },
            Err(status) => panic!("{status}"),
        }
    };
    let bundles = client.fetch_x509_bundles(request(X509BundlesRequest {}, &["true"])).await;
    let mut bundles = bundles.expect("a stream").into_inner();
    let known = next(&mut bundles).await.bundles;
    assert_eq!(known.keys().collect::<Vec<_>>(), ["spiffe://cluster.local", "spiffe://other.example"]);
    assert_eq!(known["spiffe://cluster.local"], der(&first.roots));

    // Renewed, which is nothing new to who asks for roots only.
    let renewed = made(&signer);
    say.send_replace(Some(renewed.clone()));
    assert_is(&next(&mut svids).await, &renewed);
    let mut rotated = made(&root_of(wall()));
    rotated.roots = format!("{}{}", renewed.roots, rotated.roots);
    say.send_replace(Some(rotated.clone()));
    assert_is(&next(&mut svids).await, &rotated);
    let known = next(&mut bundles).await.bundles;
    assert_eq!(known["spiffe://cluster.local"], der(&rotated.roots));
}

/// Roots that say whose they are are those of other trust domains.
#[tokio::test]
async fn roots_of_others_are_federated() {
    let folder = tempfile::tempdir().expect("a folder");
    let (say, _end) = serve(folder.path());
    let (signer, now) = (root_of(wall()), wall());
    let named = leno_tls::AltName::Uri("spiffe://far.example".to_owned());
    let validity = Validity { not_before: now - 600, not_after: now + 3600 };
    let far = signer.issue(signer.key().public(), &[named], validity).expect("signed");
    let own = made(&signer);
    let roots = format!("{}{}", leno_tls::issue::certificates_to_pem([&far]), own.roots);
    say.send_replace(Some(Secret { roots, ..own.clone() }));
    let mut client = SpiffeWorkloadApiClient::new(channel(folder.path()).await);
    let message = loop {
        let messages = client.fetch_x509svid(request(X509svidRequest {}, &["true"])).await;
        match messages.expect("a stream").get_mut().message().await {
            Ok(message) => break message.expect("not the end"),
            Err(status) => assert_eq!(status.code(), Code::PermissionDenied),
        }
    };
    assert_eq!(message.svids[0].bundle, der(&own.roots));
    assert_eq!(message.federated_bundles["spiffe://far.example"], far.to_vec());
    // A certificate without a SPIFFE identity gives nobody one.
    let nameless = signer.issue(signer.key().public(), &[leno_tls::AltName::Dns("a".to_owned())], validity);
    let chain = leno_tls::issue::certificates_to_pem([&nameless.expect("signed")]);
    let key = signer.key().to_pem().expect("a key");
    say.send_replace(Some(Secret { chain, key, ..own }));
    while refused(client.fetch_x509svid(request(X509svidRequest {}, &["true"])).await).await
        != Code::PermissionDenied
    {}
}

/// There is no authority for tokens, which their callers are told, if they have the header.
#[tokio::test]
async fn tokens_are_not_implemented() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_say, _end) = serve(folder.path());
    for method in
        ["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID", "FetchWITSVID", "FetchWITBundles", "Other"]
    {
        for (values, expected) in [(&[][..], Code::InvalidArgument), (&["true"][..], Code::Unimplemented)] {
            let mut client = tonic::client::Grpc::new(channel(folder.path()).await);
            client.ready().await.expect("it is there");
            let path = PathAndQuery::try_from(format!("/SpiffeWorkloadAPI/{method}")).expect("a path");
            let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidResponse>::default();
            let answer = client.unary(request(X509svidRequest {}, values), path, codec).await;
            assert_eq!(answer.expect_err("an error").code(), expected, "{method} {values:?}");
        }
    }
}

/// What a client of the SPIFFE project makes of it.
const CLIENT: &str = r#"
import sys
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import WorkloadApiClient

client = WorkloadApiClient()
contexts = []

def told(context):
    svid = context.default_svid
    own = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    of = lambda key: key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fits = of(svid.private_key.public_key()) == of(svid.leaf.public_key())
    print("told", svid.spiffe_id, svid.leaf.serial_number, len(svid.cert_chain), fits,
          len(own.x509_authorities), len(context.x509_bundle_set.bundles), flush=True)

stream = client.stream_x509_contexts(told, lambda error: print("error", error, flush=True))
print("bundles", len(client.fetch_x509_bundles().bundles), flush=True)
try:
    client.fetch_jwt_svid(audience={"a"})
except Exception as error:
    print("tokens", error, flush=True)
sys.stdin.read()
"#;

#[tokio::test]
async fn a_client_of_others_is_told_who_it_is() {
    let venv = match leno_testkit::wheels::venv("py-spiffe-0.3.2", &["spiffe==0.3.2"]) {
        Ok(venv) => venv,
        Err(error) => return eprintln!("skipped: no client of the SPIFFE Workload API: {error}"),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (say, _end) = serve(folder.path());
    let signer = root_of(wall());
    let serial = |secret: &Secret| {
        let chain = certificates(secret.chain.as_bytes()).expect("PEM");
        let leaf = leno_tls::Certificate::parse(&chain[0]).expect("a certificate");
        u128::from_str_radix(&leaf.serial(), 16).expect("a number")
    };
    let first = made(&signer);
    say.send_replace(Some(first.clone()));
    let mut command = Command::new(venv.join("bin/python"));
    command.args(["-c", CLIENT]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let socket = folder.path().join("uds/socket");
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()));
    let mut child = super::Killed(command.spawn().expect("it starts"));
    let output = child.0.stdout.take().expect("it is piped");
    let (line, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(output));
        lines.map_while(Result::ok).for_each(|said| drop(line.send(said)));
    });
    let mut said = Vec::new();
    let mut until = async |wanted: String| {
        while !said.iter().any(|line: &String| line.starts_with(&wanted)) {
            let line = tokio::time::timeout(LIMIT, lines.recv()).await;
            said.push(line.unwrap_or_else(|_| panic!("{wanted}: {said:?}")).expect("it goes on"));
        }
    };
    until(format!("told {IDENTITY} {} 1 True 1 2", serial(&first))).await;
    until("bundles 2".to_owned()).await;
    until("tokens ".to_owned()).await;
    let renewed = made(&signer);
    say.send_replace(Some(renewed.clone()));
    until(format!("told {IDENTITY} {} 1 True 1 2", serial(&renewed))).await;
    let mut rotated = made(&root_of(wall()));
    rotated.roots = format!("{}{}", renewed.roots, rotated.roots);
    say.send_replace(Some(rotated.clone()));
    until(format!("told {IDENTITY} {} 1 True 2 2", serial(&rotated))).await;
    let answer = said.iter().find(|line| line.starts_with("tokens")).expect("it was said");
    assert!(
        answer.contains("UNIMPLEMENTED") || answer.to_lowercase().contains("not implemented"),
        "{answer}"
    );
}
