//! Discovery with a resolver that is told what to say, on a paused clock.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_base::rng::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::resolver::{Found, LookupError, Resolve, Resolver, select};
use super::run;
use crate::cluster::{
    Assignment, DnsDiscovery, DnsFamily, EndpointAddress, EndpointConfig, LocalityEndpoints,
};

/// Says the next of its answers; the last one for ever.
struct Scripted {
    script: Arc<Mutex<Script>>,
    start: Instant,
}

/// Answers to come, and when lookups were made.
struct Script {
    answers: Vec<Result<Found, LookupError>>,
    times: Vec<Duration>,
}

impl Resolve for Scripted {
    async fn lookup(&self, _: &str, _: DnsFamily) -> Result<Found, LookupError> {
        let mut script = self.script.lock().unwrap();
        script.times.push(self.start.elapsed());
        if script.answers.len() > 1 { script.answers.remove(0) } else { script.answers[0].clone() }
    }
}

fn found(addresses: &[&str], ttl: Option<u64>) -> Result<Found, LookupError> {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Ok(Found { addresses, ttl: ttl.map(Duration::from_secs) })
}

fn settings(names: &[&str]) -> DnsDiscovery {
    let endpoints = names.iter().map(|name| EndpointConfig::plain(EndpointAddress::Name((*name).into(), 80)));
    let localities =
        vec![LocalityEndpoints { endpoints: endpoints.collect(), ..LocalityEndpoints::default() }];
    DnsDiscovery {
        assignment: Assignment { localities, overprovisioning_factor: 140, ..Assignment::default() },
        refresh: Duration::from_secs(5),
        failure_refresh: None,
        respect_ttl: false,
        min_refresh: Duration::ZERO,
        tcp: false,
        jitter: Duration::ZERO,
        family: DnsFamily::Auto,
        resolvers: Vec::new(),
    }
}

fn show(assignment: &Assignment) -> String {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    let shown = endpoints.map(|endpoint| match &endpoint.address {
        EndpointAddress::Ip(address) => {
            let others: String = endpoint.others.iter().map(|other| format!("+{other}")).collect();
            format!("{address}{others} {}", endpoint.hostname.as_deref().unwrap_or("?"))
        }
        other => format!("{other:?}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Runs for a while: what was handed over and when, and when lookups were made (ms).
async fn play(
    settings: DnsDiscovery,
    logical: bool,
    answers: Vec<Result<Found, LookupError>>,
    seconds: u64,
) -> (Vec<String>, Vec<u128>) {
    let start = Instant::now();
    let script = Arc::new(Mutex::new(Script { answers, times: Vec::new() }));
    let scripted = Scripted { script: Arc::clone(&script), start };
    let (send, mut receive) = mpsc::unbounded_channel();
    let tell = move |name: leno_base::Name, assignment: Arc<Assignment>| {
        assert_eq!(name.as_str(), "c");
        send.send(format!("{}s {}", start.elapsed().as_secs(), show(&assignment))).unwrap();
    };
    let task = run("c".into(), Arc::new(settings), logical, scripted, Rng::new(1), tell);
    let _ = tokio::time::timeout(Duration::from_secs(seconds), task).await;
    let mut told = Vec::new();
    while let Ok(text) = receive.try_recv() {
        told.push(text);
    }
    let times = script.lock().unwrap().times.iter().map(Duration::as_millis).collect();
    (told, times)
}

#[tokio::test(start_paused = true)]
async fn all_addresses_are_endpoints_and_changes_are_told() {
    let answers = vec![
        found(&["10.0.0.1", "10.0.0.2"], None),
        found(&["10.0.0.1", "10.0.0.2"], None),
        Err(LookupError("timeout".into())),
        found(&["10.0.0.3"], None),
        found(&[], None),
    ];
    let (told, times) = play(settings(&["a"]), false, answers, 22).await;
    assert_eq!(told, ["0s 10.0.0.1:80 a, 10.0.0.2:80 a", "15s 10.0.0.3:80 a", "20s "]);
    assert_eq!(times, [0, 5000, 10_000, 15_000, 20_000]);
}

#[tokio::test(start_paused = true)]
async fn logical_dns_makes_one_host_of_all_addresses_and_keeps_it() {
    let answers = vec![
        found(&["10.0.0.1", "10.0.0.2"], None),
        found(&["10.0.0.1", "10.0.0.4"], None),
        found(&[], None),
    ];
    let (told, times) = play(settings(&["a"]), true, answers, 12).await;
    assert_eq!(told, ["0s 10.0.0.1:80+10.0.0.2:80 a", "5s 10.0.0.1:80+10.0.0.4:80 a"]);
    assert_eq!(times.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_first_is_told_and_tried_again_with_back_off() {
    let mut settings = settings(&["a"]);
    settings.failure_refresh = Some((Duration::from_millis(100), Duration::from_secs(1)));
    let (told, times) = play(settings, false, vec![Err(LookupError("no".into()))], 3).await;
    assert_eq!(told, ["0s "]);
    // Full jitter: at most 100, 200, 400, 800, 1000 ms apart.
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        gaps.len() > 3 && gaps[0] <= 100 && gaps[1] <= 200 && gaps.iter().all(|gap| *gap <= 1000),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_ttl_counts_where_it_is_respected() {
    let answers = || vec![found(&["10.0.0.1"], Some(2)), found(&["10.0.0.1"], Some(0))];
    let mut respecting = settings(&["a"]);
    respecting.respect_ttl = true;
    assert_eq!(play(respecting, false, answers(), 8).await.1, [0, 2000, 7000]);
    assert_eq!(play(settings(&["a"]), false, answers(), 8).await.1, [0, 5000]);
    let mut at_least = settings(&["a"]);
    (at_least.respect_ttl, at_least.min_refresh) = (true, Duration::from_secs(3));
    assert_eq!(play(at_least, false, answers(), 8).await.1, [0, 3000, 8000]);
}

#[tokio::test(start_paused = true)]
async fn names_are_resolved_once_and_addresses_need_no_lookup() {
    let mut two_ports = settings(&["a", "a"]);
    two_ports.assignment.localities[0].endpoints[1].address = EndpointAddress::Name("a".into(), 81);
    let (told, times) = play(two_ports, false, vec![found(&["10.0.0.1"], None)], 1).await;
    assert_eq!((told, times.len()), (vec!["0s 10.0.0.1:80 a, 10.0.0.1:81 a".to_owned()], 1));
    let mut fixed = settings(&["a"]);
    fixed.assignment.localities[0].endpoints[0].address = EndpointAddress::Ip("10.0.0.9:80".parse().unwrap());
    let (told, times) = play(fixed, false, vec![found(&[], None)], 1).await;
    assert_eq!((told, times.len()), (vec!["0s 10.0.0.9:80 ?".to_owned()], 0));
}

#[test]
fn families() {
    let all: Vec<IpAddr> = ["10.0.0.1", "::1", "10.0.0.1"].map(|text| text.parse().unwrap()).to_vec();
    let pick = |family| {
        let picked = select(family, all.iter().copied());
        picked.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let families =
        [DnsFamily::Auto, DnsFamily::V4Only, DnsFamily::V6Only, DnsFamily::V4Preferred, DnsFamily::All]
            .map(pick);
    assert_eq!(families, ["::1", "10.0.0.1", "::1", "10.0.0.1", "10.0.0.1 ::1"]);
}

#[tokio::test]
async fn the_system_knows_localhost_and_its_own_ignorance() {
    let local = Resolver::System.lookup("localhost", DnsFamily::All).await.unwrap();
    assert!(local.addresses.iter().all(IpAddr::is_loopback) && !local.addresses.is_empty());
    let unknown = "failed to lookup address information: Name or service not known";
    assert_eq!(super::resolver::system_error(unknown), Ok(Found::default()));
    assert!(super::resolver::system_error("Temporary failure in name resolution").is_err());
}
