//! The server's machine as transcripts: requests and pushes, events and responses.

use std::fmt::Write;

use bytes::Bytes;
use expect_test::expect;

use super::*;
use crate::types::Resource;

/// Drives a stream and writes down all that it does.
struct Play {
    stream: Stream,
    log: String,
}

/// Resources from `name=version` texts.
fn resources(texts: &[&str]) -> Resources {
    let mut all: Resources = texts
        .iter()
        .map(|text| {
            let (name, version) = text.split_once('=').unwrap();
            Resource::new(Name::new(name), Name::new(version), Bytes::from(text.to_string()))
        })
        .collect();
    all.set_version(Name::new("v"));
    all
}

impl Play {
    fn new(mode: Mode) -> Self {
        Self { stream: Stream::new(mode, Name::default()), log: String::new() }
    }

    fn sotw(&mut self, type_url: &TypeUrl, names: &[&str], nonce: &str) {
        self.request(Request::Sotw(DiscoveryRequest {
            type_url: type_url.to_string(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            ..Default::default()
        }));
    }

    fn delta(&mut self, type_url: &TypeUrl, subscribe: &[&str], unsubscribe: &[&str], nonce: &str) {
        self.request(Request::Delta(DeltaDiscoveryRequest {
            type_url: type_url.to_string(),
            resource_names_subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            ..Default::default()
        }));
    }

    fn request(&mut self, request: Request) {
        self.log.push_str("request\n");
        for event in self.stream.on_request(request) {
            let text = match event {
                Event::Subscribed { type_url, names, wildcard, is_new } => {
                    let (new, all) = (if is_new { " new" } else { "" }, if wildcard { " *" } else { "" });
                    format!("subscribed {}{new}{all} {names:?}", type_url.short())
                }
                Event::Unsubscribed { type_url, names, wildcard } => {
                    format!("unsubscribed {}{} {names:?}", type_url.short(), if wildcard { " *" } else { "" })
                }
                Event::Ack { type_url, version, nonce } => {
                    format!("ack {} {version} {nonce}", type_url.short())
                }
                Event::Nack { type_url, version, nonce, message } => {
                    format!("nack {} {version} {nonce} {message:?}", type_url.short())
                }
            };
            writeln!(self.log, "  {text}").unwrap();
        }
    }

    fn push(&mut self, type_url: &TypeUrl, texts: &[&str], scope: Scope<'_>) {
        writeln!(self.log, "push {} {texts:?}", type_url.short()).unwrap();
        if let Some(response) = self.stream.push(type_url, &resources(texts), scope) {
            let added: Vec<String> = response
                .resources
                .iter()
                .map(|resource| format!("{}={}", resource.name, resource.version))
                .collect();
            writeln!(self.log, "  < {} {added:?} -{:?}", response.nonce, response.removed).unwrap();
        }
    }
}

#[test]
fn sotw_clusters_are_sent_whole() {
    let mut play = Play::new(Mode::Sotw);
    let cds = TypeUrl::Cluster;
    play.push(&cds, &["a=1"], Scope::All);
    play.sotw(&cds, &[], "");
    play.push(&cds, &["a=1", "b=1"], Scope::All);
    assert!(play.stream.is_outstanding(&cds));
    play.sotw(&cds, &[], "1");
    assert!(!play.stream.is_outstanding(&cds));
    play.push(&cds, &["a=1", "b=1"], Scope::All);
    play.push(&cds, &["a=1", "b=2"], Scope::All);
    play.push(&cds, &["b=2"], Scope::All);
    play.sotw(&cds, &[], "2");
    play.sotw(&cds, &[], "3");
    play.push(&cds, &[], Scope::All);
    expect![[r#"
        push CDS ["a=1"]
        request
          subscribed CDS new * []
        push CDS ["a=1", "b=1"]
          < 1 ["a=1", "b=1"] -[]
        request
          ack CDS v 1
        push CDS ["a=1", "b=1"]
        push CDS ["a=1", "b=2"]
          < 2 ["a=1", "b=2"] -[]
        push CDS ["b=2"]
          < 3 ["b=2"] -[]
        request
        request
          ack CDS v 3
        push CDS []
          < 4 [] -[]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn an_empty_state_is_an_answer_to_a_wildcard() {
    for mode in [Mode::Sotw, Mode::Delta] {
        let mut play = Play::new(mode);
        match mode {
            Mode::Sotw => play.sotw(&TypeUrl::Listener, &[], ""),
            Mode::Delta => play.delta(&TypeUrl::Listener, &[], &[], ""),
        }
        play.push(&TypeUrl::Listener, &[], Scope::Changed(&[]));
        play.push(&TypeUrl::Listener, &[], Scope::All);
        expect![[r#"
            request
              subscribed LDS new * []
            push LDS []
              < 1 [] -[]
            push LDS []
        "#]]
        .assert_eq(&play.log);
    }
}

#[test]
fn sotw_endpoints_are_sent_as_asked() {
    let mut play = Play::new(Mode::Sotw);
    let eds = TypeUrl::Endpoint;
    play.sotw(&eds, &["a", "missing"], "");
    play.push(&eds, &["a=1", "b=1", "c=1"], Scope::All);
    // A change of the names before the first response was seen.
    play.sotw(&eds, &["a", "missing", "b"], "");
    play.push(&eds, &["a=1", "b=1", "c=1"], Scope::Changed(&[]));
    play.sotw(&eds, &["a", "missing", "b"], "1");
    play.sotw(&eds, &["a", "missing", "b"], "2");
    let changed = [Name::new("a"), Name::new("c")];
    play.push(&eds, &["a=2", "b=2", "c=2"], Scope::Changed(&changed));
    play.sotw(&eds, &["a", "missing"], "3");
    play.push(&eds, &["a=2", "b=2", "missing=1"], Scope::All);
    expect![[r#"
        request
          subscribed EDS new ["a", "missing"]
        push EDS ["a=1", "b=1", "c=1"]
          < 1 ["a=1"] -[]
        request
          subscribed EDS ["b"]
        push EDS ["a=1", "b=1", "c=1"]
          < 2 ["b=1"] -[]
        request
        request
          ack EDS v 2
        push EDS ["a=2", "b=2", "c=2"]
          < 3 ["a=2"] -[]
        request
          ack EDS v 3
          unsubscribed EDS ["b"]
        push EDS ["a=2", "b=2", "missing=1"]
          < 4 ["missing=1"] -[]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn sotw_the_same_question_again_is_answered_again() {
    let mut play = Play::new(Mode::Sotw);
    let eds = TypeUrl::Endpoint;
    play.sotw(&eds, &["a"], "");
    play.push(&eds, &["a=1"], Scope::All);
    play.sotw(&eds, &["a"], "1");
    play.push(&eds, &["a=1"], Scope::All);
    play.sotw(&eds, &["a"], "1");
    play.push(&eds, &["a=1"], Scope::All);
    expect![[r#"
        request
          subscribed EDS new ["a"]
        push EDS ["a=1"]
          < 1 ["a=1"] -[]
        request
          ack EDS v 1
        push EDS ["a=1"]
        request
          subscribed EDS ["a"]
        push EDS ["a=1"]
          < 2 ["a=1"] -[]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn sotw_stale_requests_are_answered_with_the_next_one() {
    let mut play = Play::new(Mode::Sotw);
    let eds = TypeUrl::Endpoint;
    play.sotw(&eds, &["a"], "");
    play.push(&eds, &["a=1", "b=1"], Scope::All);
    play.sotw(&eds, &["a"], "1");
    play.push(&eds, &["a=2", "b=1"], Scope::All);
    play.sotw(&eds, &["b"], "1");
    play.sotw(&eds, &["a", "b"], "1");
    play.sotw(&eds, &["a", "b"], "2");
    play.push(&eds, &["a=2", "b=1"], Scope::All);
    expect![[r#"
        request
          subscribed EDS new ["a"]
        push EDS ["a=1", "b=1"]
          < 1 ["a=1"] -[]
        request
          ack EDS v 1
        push EDS ["a=2", "b=1"]
          < 2 ["a=2"] -[]
        request
          unsubscribed EDS ["a"]
        request
        request
          ack EDS v 2
          subscribed EDS ["a", "b"]
        push EDS ["a=2", "b=1"]
          < 3 ["a=2", "b=1"] -[]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn sotw_endpoints_follow_changed_clusters() {
    let (cds, eds) = (TypeUrl::Cluster, TypeUrl::Endpoint);
    let begin = || {
        let mut play = Play::new(Mode::Sotw);
        play.sotw(&cds, &[], "");
        play.push(&cds, &["a=1", "b=1"], Scope::All);
        play.sotw(&cds, &[], "1");
        play.sotw(&eds, &["a", "b"], "");
        play.push(&eds, &["a=1", "b=1"], Scope::All);
        play.log.clear();
        play
    };
    // The acknowledgement of the endpoints may be the question for them at the same time.
    let mut play = begin();
    play.push(&cds, &["a=2", "b=1"], Scope::All);
    play.sotw(&eds, &["a", "b"], "2");
    play.push(&eds, &["a=1", "b=1"], Scope::All);
    play.sotw(&eds, &["a", "b"], "4");
    // Endpoints that are sent behind the clusters are all sent: the question will be stale.
    let mut other = begin();
    other.sotw(&eds, &["a", "b"], "2");
    other.push(&cds, &["a=2", "b=1"], Scope::All);
    other.push(&eds, &["a=1", "b=1"], Scope::All);
    other.push(&eds, &["a=1", "b=2"], Scope::All);
    other.sotw(&eds, &["a", "b"], "2");
    other.sotw(&eds, &["a", "b"], "4");
    expect![[r#"
        push CDS ["a=2", "b=1"]
          < 3 ["a=2", "b=1"] -[]
        request
          ack EDS v 2
          subscribed EDS ["a", "b"]
        push EDS ["a=1", "b=1"]
          < 4 ["a=1", "b=1"] -[]
        request
          ack EDS v 4
    "#]]
    .assert_eq(&play.log);
    expect![[r#"
        request
          ack EDS v 2
        push CDS ["a=2", "b=1"]
          < 3 ["a=2", "b=1"] -[]
        push EDS ["a=1", "b=1"]
        push EDS ["a=1", "b=2"]
          < 4 ["a=1", "b=2"] -[]
        request
        request
          ack EDS v 4
    "#]]
    .assert_eq(&other.log);
}

#[test]
fn sotw_named_listeners_as_grpc_clients_ask_for_them() {
    let mut play = Play::new(Mode::Sotw);
    let lds = TypeUrl::Listener;
    play.sotw(&lds, &["server"], "");
    play.push(&lds, &["other=1"], Scope::All);
    play.sotw(&lds, &["server"], "1");
    play.push(&lds, &["other=2"], Scope::All);
    play.push(&lds, &["other=2", "server=1"], Scope::All);
    play.sotw(&lds, &[], "2");
    play.push(&lds, &["other=2", "server=2"], Scope::All);
    expect![[r#"
        request
          subscribed LDS new ["server"]
        push LDS ["other=1"]
          < 1 [] -[]
        request
          ack LDS v 1
        push LDS ["other=2"]
        push LDS ["other=2", "server=1"]
          < 2 ["server=1"] -[]
        request
          ack LDS v 2
          unsubscribed LDS ["server"]
        push LDS ["other=2", "server=2"]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn a_rejection_is_reported_and_nothing_is_sent_again() {
    let mut play = Play::new(Mode::Sotw);
    let lds = TypeUrl::Listener;
    play.sotw(&lds, &[], "");
    play.push(&lds, &["a=1"], Scope::All);
    play.request(Request::Sotw(DiscoveryRequest {
        type_url: lds.to_string(),
        response_nonce: "1".into(),
        error_detail: Some(leno_api::proto::google::rpc::Status {
            message: "bad".into(),
            ..Default::default()
        }),
        ..Default::default()
    }));
    assert_eq!(play.stream.subscription(&lds).unwrap().rejection(), Some("bad"));
    play.push(&lds, &["a=1"], Scope::All);
    play.push(&lds, &["a=2"], Scope::All);
    play.sotw(&lds, &[], "2");
    assert_eq!(play.stream.subscription(&lds).unwrap().rejection(), None);
    expect![[r#"
        request
          subscribed LDS new * []
        push LDS ["a=1"]
          < 1 ["a=1"] -[]
        request
          nack LDS v 1 "bad"
        push LDS ["a=1"]
        push LDS ["a=2"]
          < 2 ["a=2"] -[]
        request
          ack LDS v 2
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn delta_sends_changes_only() {
    let mut play = Play::new(Mode::Delta);
    let cds = TypeUrl::Cluster;
    play.delta(&cds, &[], &[], "");
    play.push(&cds, &["a=1", "b=1"], Scope::All);
    play.push(&cds, &["a=2", "b=1"], Scope::All);
    let changed = [Name::new("b"), Name::new("c")];
    play.push(&cds, &["c=1"], Scope::Changed(&changed));
    play.delta(&cds, &[], &[], "1");
    play.delta(&cds, &[], &[], "3");
    play.delta(&cds, &[], &[], "2");
    expect![[r#"
        request
          subscribed CDS new * []
        push CDS ["a=1", "b=1"]
          < 1 ["a=1", "b=1"] -[]
        push CDS ["a=2", "b=1"]
          < 2 ["a=2"] -[]
        push CDS ["c=1"]
          < 3 ["c=1"] -["b"]
        request
          ack CDS v 1
        request
          ack CDS v 3
        request
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn delta_names() {
    let mut play = Play::new(Mode::Delta);
    let rds = TypeUrl::Route;
    play.delta(&rds, &["a", "missing"], &[], "");
    play.push(&rds, &["a=1", "b=1"], Scope::All);
    // Wanted again although it was sent; and something new.
    play.delta(&rds, &["a", "b"], &[], "1");
    play.push(&rds, &["a=1", "b=1"], Scope::Changed(&[]));
    play.delta(&rds, &[], &["a"], "2");
    play.push(&rds, &["a=2", "b=1", "missing=1"], Scope::All);
    play.push(&rds, &["a=2"], Scope::All);
    play.push(&rds, &["a=2"], Scope::All);
    expect![[r#"
        request
          subscribed RDS new ["a", "missing"]
        push RDS ["a=1", "b=1"]
          < 1 ["a=1"] -["missing"]
        request
          ack RDS v 1
          subscribed RDS ["a", "b"]
        push RDS ["a=1", "b=1"]
          < 2 ["a=1", "b=1"] -[]
        request
          ack RDS v 2
          unsubscribed RDS ["a"]
        push RDS ["a=2", "b=1", "missing=1"]
          < 3 ["missing=1"] -[]
        push RDS ["a=2"]
          < 4 [] -["b", "missing"]
        push RDS ["a=2"]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn delta_wildcard_and_names_together() {
    let mut play = Play::new(Mode::Delta);
    let cds = TypeUrl::Cluster;
    play.delta(&cds, &[], &[], "");
    play.push(&cds, &["a=1", "b=1"], Scope::All);
    // Whether a client that spells the wildcard out kept what it has is not laid down: all again.
    play.delta(&cds, &["*", "b"], &[], "1");
    play.push(&cds, &["a=1", "b=1"], Scope::All);
    // The wildcard still covers b: the client is told where it stands.
    play.delta(&cds, &[], &["b"], "2");
    assert!(play.stream.is_owed(&cds));
    play.push(&cds, &["a=1", "b=1"], Scope::All);
    // Everything again, and what has gone meanwhile.
    play.delta(&cds, &["*"], &[], "3");
    play.push(&cds, &["a=1"], Scope::All);
    play.delta(&cds, &["a"], &[], "4");
    play.push(&cds, &["a=1"], Scope::All);
    play.delta(&cds, &[], &["*"], "5");
    play.push(&cds, &["a=1", "c=1"], Scope::All);
    expect![[r#"
        request
          subscribed CDS new * []
        push CDS ["a=1", "b=1"]
          < 1 ["a=1", "b=1"] -[]
        request
          ack CDS v 1
          subscribed CDS * ["b"]
        push CDS ["a=1", "b=1"]
          < 2 ["a=1", "b=1"] -[]
        request
          ack CDS v 2
          unsubscribed CDS ["b"]
        push CDS ["a=1", "b=1"]
          < 3 ["b=1"] -[]
        request
          ack CDS v 3
          subscribed CDS * []
        push CDS ["a=1"]
          < 4 ["a=1"] -["b"]
        request
          ack CDS v 4
          subscribed CDS ["a"]
        push CDS ["a=1"]
          < 5 ["a=1"] -[]
        request
          ack CDS v 5
          unsubscribed CDS * []
        push CDS ["a=1", "c=1"]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn delta_resumes_where_another_stream_ended() {
    let first = |names: &[&str]| DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
        initial_resource_versions: [("a", "1"), ("b", "1"), ("gone", "1")]
            .map(|(name, version)| (name.into(), version.into()))
            .into(),
        ..Default::default()
    };
    let mut play = Play::new(Mode::Delta);
    play.request(Request::Delta(DeltaDiscoveryRequest {
        type_url: TypeUrl::Cluster.to_string(),
        ..first(&[])
    }));
    play.push(&TypeUrl::Cluster, &["a=1", "b=2", "c=1"], Scope::Changed(&[]));
    let mut named = Play::new(Mode::Delta);
    let request =
        DeltaDiscoveryRequest { type_url: TypeUrl::Endpoint.to_string(), ..first(&["a", "b", "c"]) };
    named.request(Request::Delta(request));
    named.push(&TypeUrl::Endpoint, &["a=1", "b=2", "gone=2"], Scope::Changed(&[]));
    named.push(&TypeUrl::Endpoint, &["a=1", "b=2", "gone=2"], Scope::All);
    expect![[r#"
        request
          subscribed CDS new * []
        push CDS ["a=1", "b=2", "c=1"]
          < 1 ["b=2", "c=1"] -["gone"]
    "#]]
    .assert_eq(&play.log);
    expect![[r#"
        request
          subscribed EDS new ["a", "b", "c"]
        push EDS ["a=1", "b=2", "gone=2"]
          < 1 ["b=2"] -["c"]
        push EDS ["a=1", "b=2", "gone=2"]
    "#]]
    .assert_eq(&named.log);
}

#[test]
fn delta_endpoints_follow_changed_clusters() {
    let mut play = Play::new(Mode::Delta);
    play.delta(&TypeUrl::Cluster, &[], &[], "");
    play.push(&TypeUrl::Cluster, &["a=1", "b=1"], Scope::All);
    play.delta(&TypeUrl::Endpoint, &["a", "b"], &[], "");
    play.push(&TypeUrl::Endpoint, &["a=1", "b=1"], Scope::All);
    play.push(&TypeUrl::Cluster, &["a=2", "b=1", "new=1"], Scope::All);
    assert!(play.stream.is_owed(&TypeUrl::Endpoint));
    play.push(&TypeUrl::Endpoint, &["a=1", "b=1"], Scope::Changed(&[]));
    assert!(!play.stream.is_owed(&TypeUrl::Endpoint));
    expect![[r#"
        request
          subscribed CDS new * []
        push CDS ["a=1", "b=1"]
          < 1 ["a=1", "b=1"] -[]
        request
          subscribed EDS new ["a", "b"]
        push EDS ["a=1", "b=1"]
          < 2 ["a=1", "b=1"] -[]
        push CDS ["a=2", "b=1", "new=1"]
          < 3 ["a=2", "new=1"] -[]
        push EDS ["a=1", "b=1"]
          < 4 ["a=1"] -[]
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn a_client_that_never_answers_costs_a_bounded_amount() {
    let mut play = Play::new(Mode::Delta);
    play.delta(&TypeUrl::Cluster, &[], &[], "");
    for version in 0..1000 {
        let text = format!("a={version}");
        play.push(&TypeUrl::Cluster, &[&text], Scope::All);
    }
    play.log.clear();
    play.delta(&TypeUrl::Cluster, &[], &[], "1");
    play.delta(&TypeUrl::Cluster, &[], &[], "1000");
    assert_eq!(play.log, "request\nrequest\n  ack CDS v 1000\n");
}

#[test]
fn delta_takes_away_nothing_that_is_held() {
    let mut play = Play::new(Mode::Delta);
    let names = ["*", "b", "none"].map(str::to_owned).to_vec();
    let held =
        [("a", "1"), ("b", "1"), ("c", "1")].map(|(name, version)| (name.to_owned(), version.to_owned()));
    play.request(Request::Delta(DeltaDiscoveryRequest {
        type_url: TypeUrl::Cluster.to_string(),
        resource_names_subscribe: names,
        initial_resource_versions: held.into_iter().collect(),
        ..Default::default()
    }));
    play.stream.hold(&TypeUrl::Cluster, true);
    play.push(&TypeUrl::Cluster, &["a=2"], Scope::All);
    play.delta(&TypeUrl::Cluster, &[], &[], "1");
    play.push(&TypeUrl::Cluster, &["a=2"], Scope::All);
    play.stream.hold(&TypeUrl::Cluster, false);
    play.push(&TypeUrl::Cluster, &["a=2"], Scope::All);
    expect![[r#"
        request
          subscribed CDS new * ["b", "none"]
        push CDS ["a=2"]
          < 1 ["a=2"] -["none"]
        request
          ack CDS v 1
        push CDS ["a=2"]
        push CDS ["a=2"]
          < 2 [] -["b", "c"]
    "#]]
    .assert_eq(&play.log);
}
