//! The scenarios inside the node.

use std::error::Error;
use std::future::pending;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use leno_node::{
    Backoff, Capabilities, Exit, Line, Mode, Network, Node, Pod, PodSpec, Process, ProcessSpec, Redirect,
    Restart, Service, Supervisor,
};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::{FOLDER, LIMIT, TAKEN, publish_file, say_alive, until_closed};

pub(crate) fn run(scenario: &str) -> Result<(), Box<dyn Error>> {
    if scenario == "refuse" {
        Node::enter(Network { prefix: 99, ..Network::default() })?;
        return Ok(());
    }
    if scenario == "leave" {
        return Err("as it should".into());
    }
    let node = Node::enter(Network::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match scenario {
            "pods" => pods(&node).await,
            "ports" => ports(&node).await,
            "linger" => linger(&node).await,
            _ => Err("unknown scenario".into()),
        }
    })
}

fn folder() -> Result<PathBuf, Box<dyn Error>> {
    Ok(std::env::var(FOLDER)?.into())
}

/// A pod with the number as the end of its address.
fn pod(node: &Node, number: u8) -> Result<Pod, Box<dyn Error>> {
    let address = [10, 244, 0, number].into();
    Ok(Pod::create(
        node,
        &PodSpec { name: format!("pod-{number}"), address, hosts: None, resolv_conf: None },
    )?)
}

/// A server in a pod, or on the node, that tells each client its own name, the original destination if the
/// connection was redirected, and the client's address.
fn serve(pod: Option<&Pod>, address: &str, name: &'static str) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = match pod {
        Some(pod) => pod.within(|| TcpListener::bind(address))??,
        None => TcpListener::bind(address)?,
    };
    let bound = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // Where connections are tracked, one that was not redirected was meant for where it arrived.
            let original = rustix::net::sockopt::ip_original_dst(&stream).map(SocketAddr::V4).ok();
            let original = original
                .filter(|original| stream.local_addr().is_ok_and(|local| local != *original))
                .map_or_else(|| "nothing".to_owned(), |original| original.to_string());
            let peer = stream.peer_addr().map_or_else(|e| e.to_string(), |peer| peer.ip().to_string());
            let _ = stream.read(&mut [0]);
            let _ = write!(stream, "{name}, meant for {original}, from {peer}");
        }
    });
    Ok(bound)
}

/// Who runs a program.
#[derive(Clone, Copy)]
enum As {
    App,
    Proxy,
}

fn program(node: &Node, who: As, arguments: &[&str]) -> ProcessSpec {
    let mut argv: Vec<String> = ["/proc/self/exe", "program"].map(str::to_owned).to_vec();
    argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let mut spec = ProcessSpec {
        name: "program".into(),
        argv,
        environment: std::env::var(FOLDER).map(|folder| (FOLDER.to_owned(), folder)).into_iter().collect(),
        capabilities: Some(Capabilities::NONE),
        ..ProcessSpec::default()
    };
    if let As::Proxy = who {
        match node.mode() {
            Mode::Root => (spec.uid, spec.gid) = (Some(1337), Some(1337)),
            Mode::User => spec.capabilities = Some(Capabilities::NET_ADMIN),
        }
        if arguments.first() == Some(&"connect") && node.mode() == Mode::User {
            spec.argv.extend(["mark".to_owned(), "1337".to_owned()]);
        }
    }
    spec
}

async fn finish(pod: Option<&Pod>, spec: &ProcessSpec) -> Result<(Exit, String), Box<dyn Error>> {
    let (sender, mut lines) = mpsc::channel::<Line>(64);
    let process = Process::spawn(pod, spec, &sender).await?;
    drop(sender);
    let mut output = Vec::new();
    while let Some(line) = lines.recv().await {
        output.push(line.text);
    }
    Ok((process.wait().await, output.join("\n")))
}

/// Runs a program in a pod; its output must be as expected.
async fn check(
    node: &Node,
    pod: &Pod,
    who: As,
    arguments: &[&str],
    expected: &str,
) -> Result<(), Box<dyn Error>> {
    let (exit, output) = finish(Some(pod), &program(node, who, arguments)).await?;
    if output == expected && exit.success() {
        return Ok(());
    }
    Err(format!("{}: {}: {exit}: {output:?} instead of {expected:?}", pod.name(), arguments.join(" ")).into())
}

async fn pods(node: &Node) -> Result<(), Box<dyn Error>> {
    addresses(node).await.map_err(|e| format!("addresses: {e}"))?;
    outbound(node).await.map_err(|e| format!("outbound: {e}"))?;
    inbound(node).await.map_err(|e| format!("inbound: {e}"))?;
    exclusions(node).await.map_err(|e| format!("exclusions: {e}"))?;
    files_and_names(node).await.map_err(|e| format!("files and names: {e}"))?;
    services(node).await.map_err(|e| format!("services: {e}"))?;
    identities(node).await.map_err(|e| format!("identities: {e}"))?;
    orphans(node).await.map_err(|e| format!("orphans: {e}"))?;
    supervised(node).await.map_err(|e| format!("supervised: {e}"))?;
    Ok(())
}

/// Pods and the node reach each other; an address that nobody has is refused at once; one that was given back
/// can be had again.
async fn addresses(node: &Node) -> Result<(), Box<dyn Error>> {
    let (a, b) = (pod(node, 2)?, pod(node, 3)?);
    serve(Some(&b), "10.244.0.3:80", "b")?;
    check(node, &a, As::App, &["connect", "10.244.0.3:80"], "b, meant for nothing, from 10.244.0.2").await?;
    serve(None, "10.244.0.1:15010", "node")?;
    let at_node = "node, meant for nothing, from 10.244.0.3";
    check(node, &b, As::App, &["connect", "10.244.0.1:15010"], at_node).await?;
    let from_node = finish(None, &program(node, As::App, &["connect", "10.244.0.3:80"])).await?.1;
    if from_node != "b, meant for nothing, from 10.244.0.1" {
        return Err(from_node.into());
    }
    let start = Instant::now();
    let (exit, output) = finish(Some(&a), &program(node, As::App, &["connect", "10.96.0.10:80"])).await?;
    if exit.success() || !output.contains("unreachable") || start.elapsed() > Duration::from_secs(5) {
        return Err(format!("a service without a proxy: {exit}: {output}").into());
    }

    for address in ["10.244.0.1", "10.245.0.2"] {
        let spec = PodSpec { name: "bad".into(), address: address.parse()?, hosts: None, resolv_conf: None };
        if Pod::create(node, &spec).is_ok() {
            return Err(format!("a pod got {address}").into());
        }
    }
    b.remove();
    let again = pod(node, 3)?;
    serve(Some(&again), "0.0.0.0:80", "another b")?;
    check(node, &a, As::App, &["connect", "10.244.0.3:80"], "another b, meant for nothing, from 10.244.0.2")
        .await
}

fn redirect(node: &Node) -> Redirect {
    match node.mode() {
        Mode::Root => Redirect::default(),
        Mode::User => Redirect::by_mark(),
    }
}

/// A pod with a proxy (two listeners) and an application on 9080 and on 127.0.0.1:7000.
fn meshed(node: &Node, number: u8, redirect: &Redirect) -> Result<Pod, Box<dyn Error>> {
    let pod = pod(node, number)?;
    serve(Some(&pod), "0.0.0.0:15001", "outbound")?;
    serve(Some(&pod), "0.0.0.0:15006", "inbound")?;
    serve(Some(&pod), "0.0.0.0:9080", "app")?;
    serve(Some(&pod), "0.0.0.0:15021", "health")?;
    serve(Some(&pod), "127.0.0.1:7000", "local")?;
    pod.redirect(redirect)?;
    Ok(pod)
}

async fn outbound(node: &Node) -> Result<(), Box<dyn Error>> {
    let a = meshed(node, 4, &redirect(node))?;
    let b = pod(node, 5)?;
    serve(Some(&b), "0.0.0.0:9080", "b")?;

    // The application's way out, to a service and to a pod.
    let service = "outbound, meant for 10.96.0.10:80, from 10.244.0.4";
    check(node, &a, As::App, &["connect", "10.96.0.10:80"], service).await?;
    let other = "outbound, meant for 10.244.0.5:9080, from 10.244.0.4";
    check(node, &a, As::App, &["connect", "10.244.0.5:9080"], other).await?;
    // The proxy's own.
    check(node, &a, As::Proxy, &["connect", "10.244.0.5:9080"], "b, meant for nothing, from 10.244.0.4")
        .await?;
    // Over loopback nothing of the application's is redirected, whatever the address.
    check(node, &a, As::App, &["connect", "127.0.0.1:7000"], "local, meant for nothing, from 127.0.0.1")
        .await?;
    check(node, &a, As::App, &["connect", "10.244.0.4:9080"], "app, meant for nothing, from 10.244.0.4")
        .await?;
    check(node, &a, As::Proxy, &["connect", "127.0.0.1:7000"], "local, meant for nothing, from 127.0.0.1")
        .await?;
    // A pod that calls itself: from the proxy's outbound to its inbound side ...
    let own = "inbound, meant for 10.244.0.4:9080, from 10.244.0.4";
    check(node, &a, As::Proxy, &["connect", "10.244.0.4:9080"], own).await?;
    // ... and from there, by its source address, to the application.
    let handed_over = "app, meant for nothing, from 127.0.0.6";
    check(node, &a, As::App, &["connect", "10.244.0.4:9080", "from", "127.0.0.6"], handed_over).await?;

    a.remove_redirect(&redirect(node))?;
    a.remove_redirect(&redirect(node))?;
    check(node, &a, As::App, &["connect", "10.244.0.5:9080"], "b, meant for nothing, from 10.244.0.4").await
}

async fn inbound(node: &Node) -> Result<(), Box<dyn Error>> {
    let client = pod(node, 6)?;
    let server = meshed(node, 7, &redirect(node))?;
    let app = "inbound, meant for 10.244.0.7:9080, from 10.244.0.6";
    check(node, &client, As::App, &["connect", "10.244.0.7:9080"], app).await?;
    let health = "health, meant for nothing, from 10.244.0.6";
    check(node, &client, As::App, &["connect", "10.244.0.7:15021"], health).await?;

    // Both ends: the client's proxy takes the connection, and its own arrives at the server's.
    let client = meshed(node, 8, &redirect(node))?;
    let out = "outbound, meant for 10.244.0.7:9080, from 10.244.0.8";
    check(node, &client, As::App, &["connect", "10.244.0.7:9080"], out).await?;
    let arrived = "inbound, meant for 10.244.0.7:9080, from 10.244.0.8";
    check(node, &client, As::Proxy, &["connect", "10.244.0.7:9080"], arrived).await?;
    drop(server);
    Ok(())
}

async fn exclusions(node: &Node) -> Result<(), Box<dyn Error>> {
    let other = pod(node, 9)?;
    for address in ["0.0.0.0:9080", "0.0.0.0:5432"] {
        serve(Some(&other), address, "other")?;
    }
    let a = meshed(
        node,
        10,
        &Redirect {
            exclude_inbound_ports: vec![9080],
            exclude_outbound_ports: vec![5432],
            exclude_outbound_cidrs: vec!["10.244.0.1/32".parse()?, "10.244.0.128/25".parse()?],
            ..redirect(node)
        },
    )?;
    let direct = "app, meant for nothing, from 10.244.0.9";
    check(node, &other, As::App, &["connect", "10.244.0.10:9080"], direct).await?;
    let inbound = "inbound, meant for 10.244.0.10:15021, from 10.244.0.9";
    check(node, &other, As::App, &["connect", "10.244.0.10:15021"], inbound).await?;

    let direct = "other, meant for nothing, from 10.244.0.10";
    check(node, &a, As::App, &["connect", "10.244.0.9:5432"], direct).await?;
    let proxied = "outbound, meant for 10.244.0.9:9080, from 10.244.0.10";
    check(node, &a, As::App, &["connect", "10.244.0.9:9080"], proxied).await?;
    let far = pod(node, 200)?;
    serve(Some(&far), "0.0.0.0:9080", "far")?;
    check(node, &a, As::App, &["connect", "10.244.0.200:9080"], "far, meant for nothing, from 10.244.0.10")
        .await?;

    // Rules are replaced as a whole.
    a.redirect(&Redirect { include_outbound_cidrs: leno_node::Cidrs::Only(Vec::new()), ..redirect(node) })?;
    check(node, &a, As::App, &["connect", "10.244.0.9:9080"], direct).await?;
    a.redirect(&Redirect {
        include_outbound_cidrs: leno_node::Cidrs::Only(vec!["10.244.0.8/30".parse()?]),
        ..redirect(node)
    })?;
    check(node, &a, As::App, &["connect", "10.244.0.9:9080"], proxied).await?;
    check(node, &a, As::App, &["connect", "10.244.0.200:9080"], "far, meant for nothing, from 10.244.0.10")
        .await
}

async fn files_and_names(node: &Node) -> Result<(), Box<dyn Error>> {
    let hosts = folder()?.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n10.96.0.10 reviews.default\n")?;
    publish_file(&hosts)?;
    let spec = PodSpec {
        name: "named".into(),
        address: "10.244.1.1".parse()?,
        hosts: Some(hosts.clone()),
        resolv_conf: Some(hosts.clone()),
    };
    let pod = Pod::create(node, &spec)?;
    check(node, &pod, As::App, &["resolve", "reviews.default"], "10.96.0.10").await?;
    std::fs::write(&hosts, "10.96.0.77 reviews.default\n")?;
    check(node, &pod, As::App, &["resolve", "reviews.default"], "10.96.0.77").await?;
    // Nobody else sees it.
    let (exit, output) = finish(None, &program(node, As::App, &["resolve", "reviews.default"])).await?;
    if exit.success() {
        return Err(format!("the node knows the pod's names: {output}").into());
    }
    if std::fs::read("/etc/hosts")? == std::fs::read(&hosts)? {
        return Err("the node's /etc/hosts changed".into());
    }
    let missing = PodSpec { hosts: Some("/nowhere/hosts".into()), address: "10.244.1.2".parse()?, ..spec };
    match Pod::create(node, &missing) {
        Ok(_) => Err("a hosts file that is missing".into()),
        Err(e)
            if e.to_string().starts_with("pod named: cannot mount /nowhere/hosts on /etc/hosts: No such") =>
        {
            Ok(())
        }
        Err(e) => Err(format!("unexpected: {e}").into()),
    }
}

/// Services without a proxy, from a pod, from the node and from an endpoint of its own.
async fn services(node: &Node) -> Result<(), Box<dyn Error>> {
    let (a, b) = (pod(node, 20)?, pod(node, 21)?);
    serve(Some(&a), "0.0.0.0:9080", "a")?;
    serve(Some(&b), "0.0.0.0:9080", "b")?;
    let service = |address: &str, endpoints: &[&str]| -> Result<Service, Box<dyn Error>> {
        let endpoints = endpoints.iter().map(|endpoint| endpoint.parse()).collect::<Result<_, _>>()?;
        Ok(Service { address: address.parse()?, endpoints })
    };
    node.services(&[
        service("10.96.0.1:80", &["10.244.0.20:9080"])?,
        service("10.96.0.2:80", &["10.244.0.21:9080"])?,
        service("10.96.0.3:80", &["10.244.0.20:9080", "10.244.0.21:9080"])?,
    ])?;
    check(node, &a, As::App, &["connect", "10.96.0.2:80"], "b, meant for nothing, from 10.244.0.20").await?;
    check(node, &a, As::App, &["connect", "10.96.0.1:80"], "a, meant for nothing, from 10.244.0.1").await?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        seen.insert(finish(None, &program(node, As::App, &["connect", "10.96.0.3:80"])).await?.1);
    }
    let expected = ["a, meant for nothing, from 10.244.0.1", "b, meant for nothing, from 10.244.0.1"];
    if !seen.iter().eq(expected) {
        return Err(format!("{seen:?}").into());
    }
    node.services(&[service("10.96.0.1:80", &["10.244.0.21:9080"])?])?;
    check(node, &a, As::App, &["connect", "10.96.0.1:80"], "b, meant for nothing, from 10.244.0.20").await?;
    let (exit, _) = finish(Some(&a), &program(node, As::App, &["connect", "10.96.0.2:80"])).await?;
    if exit.success() {
        return Err("a service that was removed".into());
    }
    node.services(&[])?;
    Ok(())
}

async fn identities(node: &Node) -> Result<(), Box<dyn Error>> {
    let pod = pod(node, 11)?;
    check(node, &pod, As::App, &["whoami"], "uid 0 on pod-11 with 0000000000000000").await?;
    // Without the capability an application cannot pass for the proxy.
    serve(Some(&pod), "0.0.0.0:15001", "outbound")?;
    pod.redirect(&Redirect::by_mark())?;
    let disguised = program(node, As::App, &["connect", "10.96.0.10:80", "mark", "1337"]);
    let (exit, output) = finish(Some(&pod), &disguised).await?;
    if exit.success() || !output.contains("not permitted") {
        return Err(format!("an application set a mark: {exit}: {output}").into());
    }
    let mut proxy = program(node, As::App, &["whoami"]);
    proxy.capabilities = Some(Capabilities::NET_ADMIN);
    let mut expected = "uid 0 on pod-11 with 0000000000001000";
    if node.mode() == Mode::Root {
        (proxy.uid, proxy.gid) = (Some(1337), Some(1337));
        expected = "uid 1337 on pod-11 with 0000000000001000";
    }
    let (_, output) = finish(Some(&pod), &proxy).await?;
    if output != expected {
        return Err(output.into());
    }
    if node.mode() == Mode::User {
        proxy.uid = Some(1337);
        if finish(Some(&pod), &proxy).await.is_ok() {
            return Err("user 1337 in a user namespace".into());
        }
    }
    Ok(())
}

/// A daemon that outlives its parent is this process's to bury, and processes of its own keep their status.
async fn orphans(node: &Node) -> Result<(), Box<dyn Error>> {
    let socket = std::os::unix::net::UnixListener::bind(folder()?.join("socket"))?;
    let pod = pod(node, 12)?;
    let leaver = program(node, As::App, &["leave-daemon", "orphan"]);
    let (exit, output) = finish(Some(&pod), &leaver).await?;
    let stat = PathBuf::from(format!("/proc/{}/stat", output.trim()));
    let (stream, _) = socket.accept()?;
    if !exit.success() || !stat.exists() {
        return Err(format!("no daemon: {exit}: {output}").into());
    }
    drop(stream); // which ends it
    let deadline = Instant::now() + LIMIT;
    while stat.exists() {
        if Instant::now() > deadline {
            return Err(format!("not buried: {}", std::fs::read_to_string(stat)?).into());
        }
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        check(node, &pod, As::App, &["whoami"], "uid 0 on pod-12 with 0000000000000000").await?;
    }
    Ok(())
}

async fn supervised(node: &Node) -> Result<(), Box<dyn Error>> {
    let pod = pod(node, 13)?;
    let (sender, mut lines) = mpsc::channel(64);
    let backoff = Backoff { first: Duration::from_millis(1), ..Backoff::default() };
    let spec = program(node, As::App, &["whoami"]);
    let supervisor = Supervisor::start(Some(pod), spec, Restart::Always, backoff, sender);
    let mut status = supervisor.status();
    status.wait_for(|status| status.restarts == 3).await?;
    for _ in 0..3 {
        let line = lines.recv().await.ok_or("no line")?;
        if line.text != "uid 0 on pod-13 with 0000000000000000" {
            return Err(line.text.into());
        }
    }
    supervisor.stop(LIMIT).await;
    Ok(())
}

/// Publishes a port of the host for a server in a pod.
async fn ports(node: &Node) -> Result<(), Box<dyn Error>> {
    let publisher = node.publisher();
    let taken: SocketAddr = std::env::var(TAKEN)?.parse()?;
    match publisher.bind(taken).await {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
        other => return Err(format!("a port in use: {other:?}").into()),
    }
    let pod = pod(node, 2)?;
    let server = pod.within(|| TcpListener::bind("10.244.0.2:80"))??;
    thread::spawn(move || {
        let (mut stream, _) = server.accept()?;
        stream.write_all(b"from a pod")
    });
    let listener = tokio::net::TcpListener::from_std(publisher.bind("127.0.0.1:0".parse()?).await?)?;
    let forward = publisher.forward("127.0.0.1:0".parse()?, "10.244.0.2:80".parse()?).await?;
    let runner = UnixStream::connect(folder()?.join("socket"))?;
    writeln!(&runner, "{}\n{}", listener.local_addr()?, forward.local_addr())?;
    let (mut client, _) = listener.accept().await?;
    client.write_all(b"from the node").await?;
    drop(client);
    // The runner closes its end when it has tried both.
    tokio::task::spawn_blocking(move || until_closed(&runner)).await?;
    Ok(())
}

/// A node with a process in a pod and a daemon, until it is killed.
async fn linger(node: &Node) -> Result<(), Box<dyn Error>> {
    let pod = pod(node, 2)?;
    let (sender, _lines) = mpsc::channel(64);
    let _app = Process::spawn(Some(&pod), &program(node, As::App, &["alive", "app"]), &sender).await?;
    let (exit, output) = finish(Some(&pod), &program(node, As::App, &["leave-daemon", "daemon"])).await?;
    if !exit.success() {
        return Err(output.into());
    }
    let _alive = say_alive("inner")?;
    pending::<()>().await;
    Ok(())
}
