//! The client's machine as transcripts: what happens on the left, what it asks for on the right.

use std::fmt::Write;

use bytes::Bytes;
use expect_test::expect;
use leno_base::Clock;
use leno_base::clock::Manual;

use super::*;
use crate::wire::{Any, ReceivedResource};

/// Drives a client and writes down all that it does.
struct Play {
    client: Client,
    clock: Manual,
    log: String,
}

impl Play {
    fn new(mode: Mode) -> Self {
        let node = Node { id: "me".into(), ..Node::default() };
        let mut config = Config::new(mode, node);
        config.node_on_first_message_only = true;
        let client = Client::new(config, Rng::new(1));
        Self { client, clock: Manual::default(), log: String::new() }
    }

    fn connect(&mut self) {
        self.log.push_str("connected\n");
        self.client.on_connected();
        self.requests();
    }

    fn disconnect(&mut self) {
        self.client.on_disconnected();
        self.log.push_str("disconnected\n");
    }

    fn subscribe(&mut self, type_url: &TypeUrl, names: &[&str]) {
        let interest = match names {
            ["*"] => Interest::Wildcard,
            names => Interest::Names(names.iter().map(|name| Name::new(name)).collect()),
        };
        let timeout = Some(Duration::from_secs(15));
        writeln!(self.log, "subscribe {} {names:?}", type_url.short()).unwrap();
        self.client.subscribe(self.clock.now(), type_url, &interest, timeout);
        self.requests();
    }

    fn unsubscribe(&mut self, type_url: &TypeUrl, names: &[&str]) {
        let interest = match names {
            ["*"] => Interest::Wildcard,
            names => Interest::Names(names.iter().map(|name| Name::new(name)).collect()),
        };
        writeln!(self.log, "unsubscribe {} {names:?}", type_url.short()).unwrap();
        self.client.unsubscribe(type_url, &interest);
        self.requests();
    }

    /// Delivers a response and returns the receipt, if there is an update.
    fn respond(
        &mut self,
        type_url: &TypeUrl,
        nonce: &str,
        version: &str,
        added: &[&str],
        removed: &[&str],
    ) -> Option<Receipt> {
        let any = |name: &str| Any { type_url: type_url.to_string(), value: named(name) };
        let response = match self.client.mode() {
            Mode::Sotw => Received::Sotw(ReceivedSotw {
                version_info: version.into(),
                resources: added.iter().map(|name| any(name)).collect(),
                type_url: type_url.to_string(),
                nonce: nonce.into(),
            }),
            Mode::Delta => Received::Delta(ReceivedDelta {
                system_version_info: version.into(),
                resources: added
                    .iter()
                    .map(|name| ReceivedResource {
                        version: version.into(),
                        resource: Some(any(name)),
                        name: (*name).into(),
                        aliases: Vec::new(),
                        ttl: None,
                    })
                    .collect(),
                type_url: type_url.to_string(),
                nonce: nonce.into(),
                removed_resources: removed.iter().map(|name| (*name).into()).collect(),
            }),
        };
        writeln!(self.log, "response {} {nonce} {version} {added:?} -{removed:?}", type_url.short()).unwrap();
        self.deliver(response)
    }

    fn deliver(&mut self, response: Received) -> Option<Receipt> {
        let update = self.client.on_response(self.clock.now(), response);
        if let Some(update) = &update {
            let names: Vec<&str> = update.added.iter().map(|resource| resource.name.as_str()).collect();
            let full = if update.full { " full" } else { "" };
            writeln!(self.log, "  update {}{full} {names:?} -{:?}", update.version, update.removed).unwrap();
        }
        self.requests();
        update.map(|update| update.receipt)
    }

    fn ack(&mut self, receipt: Option<Receipt>) {
        let receipt = receipt.expect("an update");
        writeln!(self.log, "ack {}", receipt.type_url.short()).unwrap();
        self.client.ack(&receipt);
        self.requests();
    }

    fn nack(&mut self, receipt: Option<Receipt>, rejection: &Rejection) {
        let receipt = receipt.expect("an update");
        writeln!(self.log, "nack {}", receipt.type_url.short()).unwrap();
        self.client.nack(&receipt, rejection);
        self.requests();
    }

    fn requests(&mut self) {
        while let Some(request) = self.client.next_request() {
            self.log.push_str("  > ");
            self.log.push_str(&show(&request));
            self.log.push('\n');
        }
    }
}

fn named(name: &str) -> Bytes {
    let mut body = vec![0x0a, u8::try_from(name.len()).unwrap()];
    body.extend_from_slice(name.as_bytes());
    body.into()
}

/// A request in one line; empty parts are left out.
fn show(request: &Request) -> String {
    let mut text = TypeUrl::from(request.type_url()).short().to_owned();
    let (node, nonce, error) = match request {
        Request::Sotw(request) => {
            write!(text, " {:?}", request.resource_names).unwrap();
            if !request.version_info.is_empty() {
                write!(text, " version {}", request.version_info).unwrap();
            }
            (&request.node, &request.response_nonce, &request.error_detail)
        }
        Request::Delta(request) => {
            write!(text, " +{:?}", request.resource_names_subscribe).unwrap();
            write!(text, " -{:?}", request.resource_names_unsubscribe).unwrap();
            let known: BTreeMap<_, _> = request.initial_resource_versions.iter().collect();
            if !known.is_empty() {
                write!(text, " has {known:?}").unwrap();
            }
            (&request.node, &request.response_nonce, &request.error_detail)
        }
    };
    if !nonce.is_empty() {
        write!(text, " nonce {nonce}").unwrap();
    }
    if let Some(error) = error {
        write!(text, " error {} {:?}", error.code, error.message).unwrap();
    }
    if let Some(node) = node {
        write!(text, " node {}", node.id).unwrap();
    }
    text
}

#[test]
fn sotw_story() {
    let mut play = Play::new(Mode::Sotw);
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    play.subscribe(&TypeUrl::Listener, &["*"]);
    play.connect();
    let clusters = play.respond(&TypeUrl::Cluster, "c1", "1", &["a", "b"], &[]);
    play.subscribe(&TypeUrl::Endpoint, &["a"]);
    play.subscribe(&TypeUrl::Endpoint, &["b"]);
    play.ack(clusters);
    let endpoints = play.respond(&TypeUrl::Endpoint, "e1", "1", &["a", "b", "unasked"], &[]);
    play.ack(endpoints);
    let listeners = play.respond(&TypeUrl::Listener, "l1", "1", &["in"], &[]);
    play.nack(listeners, &Rejection::of_resources(vec![(Name::new("in"), "no filter".into())]));
    let clusters = play.respond(&TypeUrl::Cluster, "c2", "2", &["b"], &[]);
    play.unsubscribe(&TypeUrl::Endpoint, &["a"]);
    play.ack(clusters);
    play.disconnect();
    play.connect();
    expect![[r#"
        subscribe CDS ["*"]
        subscribe LDS ["*"]
        connected
          > CDS [] node me
          > LDS []
        response CDS c1 1 ["a", "b"] -[]
          update 1 full ["a", "b"] -[]
        subscribe EDS ["a"]
        subscribe EDS ["b"]
        ack CDS
          > CDS [] version 1 nonce c1
          > EDS ["a", "b"]
        response EDS e1 1 ["a", "b", "unasked"] -[]
          update 1 ["a", "b"] -[]
        ack EDS
          > EDS ["a", "b"] version 1 nonce e1
        response LDS l1 1 ["in"] -[]
          update 1 full ["in"] -[]
        nack LDS
          > LDS [] nonce l1 error 13 "in: no filter"
        response CDS c2 2 ["b"] -[]
          update 2 full ["b"] -["a"]
        unsubscribe EDS ["a"]
        ack CDS
          > CDS [] version 2 nonce c2
          > EDS ["b"] version 1 nonce e1
        disconnected
        connected
          > CDS [] version 2 node me
          > EDS ["b"] version 1
          > LDS []
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn delta_story() {
    let mut play = Play::new(Mode::Delta);
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    play.connect();
    let first = play.respond(&TypeUrl::Cluster, "c1", "1", &["a", "b"], &[]);
    play.subscribe(&TypeUrl::Endpoint, &["a", "b"]);
    play.ack(first);
    let second = play.respond(&TypeUrl::Cluster, "c2", "2", &["bad"], &["b"]);
    play.unsubscribe(&TypeUrl::Endpoint, &["b"]);
    play.nack(second, &Rejection::whole("cannot be"));
    let endpoints = play.respond(&TypeUrl::Endpoint, "e1", "1", &["a"], &["b"]);
    play.ack(endpoints);
    play.subscribe(&TypeUrl::Cluster, &["on-demand"]);
    play.unsubscribe(&TypeUrl::Cluster, &["*"]);
    play.disconnect();
    play.connect();
    expect![[r#"
        subscribe CDS ["*"]
        connected
          > CDS +[] -[] node me
        response CDS c1 1 ["a", "b"] -[]
          update 1 ["a", "b"] -[]
        subscribe EDS ["a", "b"]
        ack CDS
          > CDS +[] -[] nonce c1
          > EDS +["a", "b"] -[]
        response CDS c2 2 ["bad"] -["b"]
          update 2 ["bad"] -["b"]
        unsubscribe EDS ["b"]
        nack CDS
          > CDS +[] -[] nonce c2 error 13 "cannot be"
          > EDS +[] -["b"]
        response EDS e1 1 ["a"] -["b"]
          update 1 ["a"] -["b"]
        ack EDS
          > EDS +[] -[] nonce e1
        subscribe CDS ["on-demand"]
          > CDS +["*", "on-demand"] -[]
        unsubscribe CDS ["*"]
          > CDS +[] -["*"]
        disconnected
        connected
          > CDS +["on-demand"] -[] node me
          > EDS +["a"] -[] has {"a": "1"}
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn a_subscription_change_waits_for_the_verdict_in_sotw_only() {
    let story = |mode| {
        let mut play = Play::new(mode);
        play.connect();
        play.subscribe(&TypeUrl::Route, &["a"]);
        let routes = play.respond(&TypeUrl::Route, "r1", "1", &["a"], &[]);
        play.subscribe(&TypeUrl::Route, &["b"]);
        play.ack(routes);
        play.log
    };
    expect![[r#"
        connected
        subscribe RDS ["a"]
          > RDS ["a"] node me
        response RDS r1 1 ["a"] -[]
          update 1 ["a"] -[]
        subscribe RDS ["b"]
        ack RDS
          > RDS ["a", "b"] version 1 nonce r1
    "#]]
    .assert_eq(&story(Mode::Sotw));
    expect![[r#"
        connected
        subscribe RDS ["a"]
          > RDS +["a"] -[] node me
        response RDS r1 1 ["a"] -[]
          update 1 ["a"] -[]
        subscribe RDS ["b"]
          > RDS +["b"] -[]
        ack RDS
          > RDS +[] -[] nonce r1
    "#]]
    .assert_eq(&story(Mode::Delta));
}

#[test]
fn verdicts_that_come_late() {
    for mode in [Mode::Sotw, Mode::Delta] {
        let mut play = Play::new(mode);
        play.connect();
        play.subscribe(&TypeUrl::Route, &["a"]);
        play.log.clear();
        let first = play.respond(&TypeUrl::Route, "r1", "1", &["a"], &[]);
        let second = play.respond(&TypeUrl::Route, "r2", "2", &["a"], &[]);
        play.ack(first.clone());
        play.client.ack(&first.unwrap());
        play.disconnect();
        play.connect();
        play.ack(second);
        let expected = match mode {
            // r1 is history once r2 has come; r2 belongs to a stream that is gone.
            Mode::Sotw => expect![[r#"
                response RDS r1 1 ["a"] -[]
                  update 1 ["a"] -[]
                response RDS r2 2 ["a"] -[]
                  update 2 ["a"] -[]
                ack RDS
                disconnected
                connected
                  > RDS ["a"] version 1 node me
                ack RDS
            "#]],
            Mode::Delta => expect![[r#"
                response RDS r1 1 ["a"] -[]
                  update 1 ["a"] -[]
                response RDS r2 2 ["a"] -[]
                  update 2 ["a"] -[]
                ack RDS
                  > RDS +[] -[] nonce r1
                disconnected
                connected
                  > RDS +["a"] -[] has {"a": ""} node me
                ack RDS
            "#]],
        };
        expected.assert_eq(&play.log);
        assert_eq!(play.client.accepted_version(&TypeUrl::Route).unwrap(), "2");
    }
}

#[test]
fn a_rejected_resource_is_stated_without_a_version_after_reconnect() {
    let mut play = Play::new(Mode::Delta);
    play.subscribe(&TypeUrl::Listener, &["*"]);
    play.connect();
    let first = play.respond(&TypeUrl::Listener, "1", "1", &["bad", "good", "old"], &[]);
    play.ack(first);
    let second = play.respond(&TypeUrl::Listener, "2", "2", &["bad", "good"], &[]);
    play.log.clear();
    play.nack(second, &Rejection::of_resources(vec![(Name::new("bad"), "port in use".into())]));
    play.connect();
    expect![[r#"
        nack LDS
          > LDS +[] -[] nonce 2 error 13 "bad: port in use"
        connected
          > LDS +[] -[] has {"bad": "", "good": "2", "old": "1"} node me
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn malformed_responses_are_rejected_at_once() {
    let mut play = Play::new(Mode::Sotw);
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    play.connect();
    play.log.clear();
    play.respond(&TypeUrl::Cluster, "1", "1", &["a", "a"], &[]);
    let bare = |type_url: &TypeUrl, value: &'static [u8]| {
        let any = Any { type_url: type_url.to_string(), value: Bytes::from_static(value) };
        Received::Sotw(ReceivedSotw {
            version_info: "2".into(),
            resources: vec![any],
            type_url: TypeUrl::Cluster.to_string(),
            nonce: "2".into(),
        })
    };
    play.deliver(bare(&TypeUrl::Listener, b""));
    play.deliver(bare(&TypeUrl::Cluster, b"\xff"));
    assert!(play.respond(&TypeUrl::Runtime, "3", "3", &["never asked for"], &[]).is_none());
    let good = play.respond(&TypeUrl::Cluster, "4", "4", &["a"], &[]);
    play.ack(good);
    expect![[r#"
        response CDS 1 1 ["a", "a"] -[]
          > CDS [] nonce 1 error 13 "duplicate resource a found in response"
          > CDS [] nonce 2 error 13 "type URL type.googleapis.com/envoy.config.listener.v3.Listener of a resource does not match the response's type URL type.googleapis.com/envoy.config.cluster.v3.Cluster"
          > CDS [] nonce 2 error 13 "malformed type.googleapis.com/envoy.config.cluster.v3.Cluster in response"
        response RTDS 3 3 ["never asked for"] -[]
        response CDS 4 4 ["a"] -[]
          update 4 full ["a"] -[]
        ack CDS
          > CDS [] version 4 nonce 4
    "#]]
    .assert_eq(&play.log);

    let mut play = Play::new(Mode::Delta);
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    play.connect();
    play.log.clear();
    play.respond(&TypeUrl::Cluster, "1", "1", &["a", "a"], &[]);
    play.respond(&TypeUrl::Cluster, "2", "2", &["a"], &["a"]);
    expect![[r#"
        response CDS 1 1 ["a", "a"] -[]
          > CDS +[] -[] nonce 1 error 13 "duplicate name a found among added/updated resources"
        response CDS 2 2 ["a"] -["a"]
          > CDS +[] -[] nonce 2 error 13 "duplicate name a found in the union of added and removed resources"
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn wrapped_resources_and_heartbeats() {
    use prost::Message;
    let mut play = Play::new(Mode::Sotw);
    let start = play.clock.now();
    play.subscribe(&TypeUrl::Listener, &["*"]);
    play.connect();
    play.log.clear();
    let wrap = |resource: Option<Any>| Any {
        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".into(),
        value: ReceivedResource {
            version: "9".into(),
            resource,
            name: "outer".into(),
            aliases: Vec::new(),
            ttl: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        }
        .encode_to_vec()
        .into(),
    };
    let inner = Any { type_url: TypeUrl::Listener.to_string(), value: named("inner") };
    let receipt = play.deliver(Received::Sotw(ReceivedSotw {
        version_info: "1".into(),
        resources: vec![wrap(Some(inner)), wrap(None)],
        type_url: TypeUrl::Listener.to_string(),
        nonce: "1".into(),
    }));
    play.ack(receipt);
    expect![[r#"
          update 1 full ["outer"] -[]
        ack LDS
          > LDS [] version 1 nonce 1
    "#]]
    .assert_eq(&play.log);
    // A heartbeat two seconds later prolongs it; then nothing comes any more.
    let beat = |play: &mut Play, nonce: &str, content: Vec<Any>| {
        let receipt = play.deliver(Received::Sotw(ReceivedSotw {
            version_info: "1".into(),
            resources: content,
            type_url: TypeUrl::Listener.to_string(),
            nonce: nonce.into(),
        }));
        play.ack(receipt);
    };
    let seconds = |seconds| start + Duration::from_secs(seconds);
    play.clock.advance(Duration::from_secs(2));
    play.log.clear();
    beat(&mut play, "2", vec![wrap(None)]);
    expect![[r#"
          update 1 full [] -[]
        ack LDS
          > LDS [] version 1 nonce 2
    "#]]
    .assert_eq(&play.log);
    assert_eq!(play.client.deadline(), Some(seconds(7)));
    assert!(play.client.outlived(seconds(6)).is_empty());
    assert_eq!(play.client.outlived(seconds(7)), [(TypeUrl::Listener, vec![Name::new("outer")])]);
    assert_eq!(play.client.accepted(&TypeUrl::Listener).count(), 0);
    assert_eq!(play.client.deadline(), None);
    // Without a time to live it stays.
    let inner = Any { type_url: TypeUrl::Listener.to_string(), value: named("plain") };
    beat(&mut play, "3", vec![inner]);
    assert_eq!(play.client.deadline(), None);
}

#[test]
fn refresh_asks_again_even_when_an_answer_is_due() {
    let mut play = Play::new(Mode::Sotw);
    play.connect();
    play.subscribe(&TypeUrl::Endpoint, &["a"]);
    let receipt = play.respond(&TypeUrl::Endpoint, "1", "1", &["a"], &[]);
    play.log.clear();
    play.client.refresh(&TypeUrl::Endpoint, &[Name::new("a"), Name::new("unknown")]);
    play.ack(receipt);
    expect![[r#"
        ack EDS
          > EDS ["a"] version 1 nonce 1
          > EDS ["a"] version 1 nonce 1
    "#]]
    .assert_eq(&play.log);
    let mut play = Play::new(Mode::Delta);
    play.connect();
    play.subscribe(&TypeUrl::Endpoint, &["a"]);
    play.log.clear();
    play.client.refresh(&TypeUrl::Endpoint, &[Name::new("a"), Name::new("unknown")]);
    play.requests();
    assert_eq!(play.log, "  > EDS +[\"a\"] -[]\n");
}

#[test]
fn what_was_dropped_and_is_wanted_again_is_asked_for_again() {
    let story = |mode| {
        let mut play = Play::new(mode);
        play.connect();
        play.subscribe(&TypeUrl::Endpoint, &["a", "b"]);
        play.client.pause(&TypeUrl::Endpoint);
        play.unsubscribe(&TypeUrl::Endpoint, &["a"]);
        play.subscribe(&TypeUrl::Endpoint, &["a", "c"]);
        play.client.resume(&TypeUrl::Endpoint);
        play.requests();
        play.log
    };
    expect![[r#"
        connected
        subscribe EDS ["a", "b"]
          > EDS ["a", "b"] node me
        unsubscribe EDS ["a"]
        subscribe EDS ["a", "c"]
          > EDS ["b", "c"]
          > EDS ["a", "b", "c"]
    "#]]
    .assert_eq(&story(Mode::Sotw));
    expect![[r#"
        connected
        subscribe EDS ["a", "b"]
          > EDS +["a", "b"] -[] node me
        unsubscribe EDS ["a"]
        subscribe EDS ["a", "c"]
          > EDS +["a", "c"] -[]
    "#]]
    .assert_eq(&story(Mode::Delta));
}

#[test]
fn paused_types_merge_their_requests() {
    let mut play = Play::new(Mode::Sotw);
    play.connect();
    play.client.pause(&TypeUrl::Endpoint);
    play.client.pause(&TypeUrl::Endpoint);
    play.subscribe(&TypeUrl::Endpoint, &["a"]);
    play.client.resume(&TypeUrl::Endpoint);
    play.subscribe(&TypeUrl::Endpoint, &["b"]);
    play.client.resume(&TypeUrl::Endpoint);
    play.client.resume(&TypeUrl::Endpoint);
    play.requests();
    expect![[r#"
        connected
        subscribe EDS ["a"]
        subscribe EDS ["b"]
          > EDS ["a", "b"] node me
    "#]]
    .assert_eq(&play.log);
}

#[test]
fn subscriptions_expire_once_unless_answered() {
    let mut play = Play::new(Mode::Delta);
    let seconds = |value| play.clock.now() + Duration::from_secs(value);
    let (early, late) = (seconds(14), seconds(15));
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    play.subscribe(&TypeUrl::Route, &["a", "b", "c", "d"]);
    play.connect();
    play.respond(&TypeUrl::Route, "1", "1", &["a"], &["b"]);
    play.unsubscribe(&TypeUrl::Route, &["d"]);
    assert_eq!(play.client.deadline(), Some(late));
    assert_eq!(play.client.on_deadline(early), []);
    let expired = [
        Expired { type_url: TypeUrl::Cluster, interest: Interest::Wildcard },
        Expired { type_url: TypeUrl::Route, interest: Interest::name("c") },
    ];
    assert_eq!(play.client.on_deadline(late), expired);
    assert_eq!(play.client.on_deadline(late), []);
    assert_eq!(play.client.deadline(), None);
    play.client.subscribe(early, &TypeUrl::Secret, &Interest::Wildcard, Some(Duration::ZERO));
    assert_eq!(play.client.deadline(), None);
}

#[test]
fn waits_grow_until_the_server_answers() {
    let mut play = Play::new(Mode::Sotw);
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    for _ in 0..12 {
        assert!(play.client.on_disconnected() < Duration::from_secs(30));
    }
    assert_eq!(play.client.backoff.ceiling(), Duration::from_secs(30));
    play.connect();
    assert_eq!(play.client.backoff.ceiling(), Duration::from_secs(30));
    play.respond(&TypeUrl::Cluster, "1", "1", &[], &[]);
    assert!(play.client.on_disconnected() < Duration::from_millis(500));
}

#[test]
fn error_texts_are_cut_between_characters() {
    let mut play = Play::new(Mode::Sotw);
    play.subscribe(&TypeUrl::Cluster, &["*"]);
    play.client.on_connected();
    play.client.next_request();
    let receipt = play
        .client
        .on_response(
            play.clock.now(),
            Received::Sotw(ReceivedSotw { type_url: TypeUrl::Cluster.to_string(), ..Default::default() }),
        )
        .unwrap()
        .receipt;
    play.client.nack(&receipt, &Rejection::whole("ü".repeat(5000)));
    let Some(Request::Sotw(request)) = play.client.next_request() else { panic!("a request") };
    let message = request.error_detail.unwrap().message;
    assert!(message.len() <= MAX_ERROR_LEN && message.ends_with("...truncated"), "{}", message.len());
}
