//! Several replicas: roots that follow each other while workloads are connected, who of them leads, and
//! namespaces that end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use leno_tls::Certificate;
use leno_tls::issue::{KeyPair, KeyType, Material, certificates};
use serde_json::{Value, json};

use super::{Cluster, Own, REVIEWS, ask, connect, csr, intermediate, now, own, start, until};

/// A workload, from when it has asked for a certificate until that is over.
struct Workload {
    own: Own,
    roots: String,
    expires: i64,
}

fn count(pem: &str) -> usize {
    certificates(pem.as_bytes()).expect("PEM").len()
}

/// Roots that live for seconds: at every moment a workload is taken for what it is by both replicas,
/// and takes them for what they are, whichever of them it has asked, and when.
#[tokio::test]
async fn roots_follow_each_other_and_nobody_is_refused() {
    let cluster = Cluster::start(&[
        ("CITADEL_SELF_SIGNED_CA_CERT_TTL", "30s"),
        // Counted from two minutes before, so it is announced after 7 s, signs after 13, and is alone
        // after 19.
        ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "23"),
        ("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "1s"),
        ("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", "false"),
        ("MAX_WORKLOAD_CERT_TTL", "4s"),
    ])
    .await;
    let pilots = [start(cluster.config.clone()).await, start(cluster.config.clone()).await];
    let first = cluster.roots("default").await;
    for pilot in &pilots {
        until("a replica", async || connect(pilot.secure, &first, None).await.ok()).await;
    }
    // By the ConfigMap, as agents begin.
    let mut roots = first.clone();
    let mut workloads: Vec<Workload> = Vec::new();
    let (mut most, mut met) = (0, 0);
    let begun = Instant::now();
    for round in 0_usize.. {
        for (index, pilot) in pilots.iter().enumerate() {
            for workload in &workloads {
                let refused = connect(pilot.secure, &workload.roots, Some(&workload.own)).await.err();
                // Whoever is late has no claim to anything.
                if now() < workload.expires {
                    assert!(refused.is_none(), "replica {index}, round {round}: {refused:?}");
                    met += 1;
                }
            }
        }
        workloads.retain(|workload| now() < workload.expires);
        let asked = &pilots[round % 2];
        let channel = connect(asked.secure, &roots, None).await.expect("it is known");
        let (key, request) = csr(REVIEWS);
        let answer = ask(channel, Some("of reviews"), request).await.expect("a certificate");
        let leaf = certificates(answer.cert_chain[0].as_bytes()).expect("PEM");
        let expires = Certificate::parse(&leaf[0]).expect("a certificate").validity().1;
        answer.cert_chain.last().expect("roots").clone_into(&mut roots);
        most = most.max(count(&roots));
        workloads.push(Workload { own: own(&answer, &key), roots: roots.clone(), expires });
        // All that there was at the beginning is over, and so is what came after it.
        let is_over = certificates(first.as_bytes()).expect("PEM");
        let is_over = !certificates(roots.as_bytes()).expect("PEM").iter().any(|root| is_over.contains(root));
        if is_over && workloads.iter().all(|workload| !workload.roots.contains(first.trim())) {
            break;
        }
        assert!(begun.elapsed() < super::LIMIT, "{} roots", count(&roots));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(most >= 2 && met > 100, "{most} roots at a time, {met} meetings");
    // Who comes later is told of the new ones alone.
    until("the roots", async || {
        let told = cluster.roots("default").await;
        (!told.contains(first.trim()) && connect(pilots[0].secure, &told, None).await.is_ok()).then_some(())
    })
    .await;
}

/// Who has lost the lease writes nothing, and who gets it writes all.
#[tokio::test]
async fn who_leads_writes_the_roots() {
    let cluster = Cluster::start(&[]).await;
    let _pilots = [start(cluster.config.clone()).await, start(cluster.config.clone()).await];
    let roots = cluster.roots("default").await;
    let lease = || {
        cluster
            .api
            .find("coordination.k8s.io", "leases", "istio-system", "leno-root-cert-leader")
            .expect("somebody leads")
    };
    let holder = || lease().pointer("/spec/holderIdentity").and_then(Value::as_str).map(str::to_owned);
    let first = holder().expect("one of them");
    let mut renewals = 0;
    let mut steal = || {
        renewals += 1;
        let mut stolen = lease();
        stolen["spec"] = json!({
            "holderIdentity": "somebody else", "leaseDurationSeconds": 3, "leaseTransitions": renewals,
        });
        cluster.api.put(stolen);
    };
    // Both have looked when each has looked twice, whoever of them it was.
    steal();
    cluster.api.take_seen();
    let mut looks = 0;
    let begun = Instant::now();
    while looks < 6 {
        let seen = cluster.api.take_seen();
        looks +=
            seen.iter().filter(|seen| seen.method == "GET" && seen.path.ends_with("-cert-leader")).count();
        steal();
        assert!(begun.elapsed() < super::LIMIT, "nobody looks");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "new" } }));
    let told = |namespace: &str| cluster.api.find("", "configmaps", namespace, "istio-ca-root-cert");
    while looks < 10 {
        let seen = cluster.api.take_seen();
        looks +=
            seen.iter().filter(|seen| seen.method == "GET" && seen.path.ends_with("-cert-leader")).count();
        steal();
        assert!(told("new").is_none(), "nobody leads");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The other one goes without a word.
    assert_eq!(cluster.roots("new").await, roots);
    let last = holder().expect("one of them");
    assert!(last != "somebody else", "{first} and then {last}");
}

/// A namespace that ends, and one of the same name that comes at once: nothing is left of what was
/// written into the other.
#[tokio::test]
async fn a_namespace_that_comes_again_is_told_again() {
    let cluster = Cluster::start(&[]).await;
    let _pilot = start(cluster.config.clone()).await;
    let roots = cluster.roots("default").await;
    let namespace = |uid: &str, ending: bool| {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": "team", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z" },
        });
        if ending {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
            object["metadata"]["finalizers"] = json!(["example.com/waits"]);
            object["status"] = json!({ "phase": "Terminating" });
        }
        object
    };
    cluster.api.put(namespace("1", false));
    assert_eq!(cluster.roots("team").await, roots);
    // It ends, which takes its time; its ConfigMap has gone.
    cluster.api.put(namespace("1", true));
    assert!(cluster.api.remove("", "configmaps", "team", "istio-ca-root-cert"));
    cluster.api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "other" } }));
    assert_eq!(cluster.roots("other").await, roots);
    // Gone and there again, before anybody can have looked in between.
    cluster.api.remove("", "namespaces", "", "team");
    cluster.api.put(namespace("2", false));
    assert_eq!(cluster.roots("team").await, roots);
}

/// Puts files into a folder as a kubelet mounts a Secret: all at once, behind a link.
fn mount(folder: &Path, name: &str, material: &Material) {
    let place = folder.join(name);
    fs::create_dir(&place).expect("writable");
    for (file, text) in [
        ("ca-cert.pem", &material.certificate),
        ("ca-key.pem", &material.key),
        ("cert-chain.pem", &material.chain),
        ("root-cert.pem", &material.roots),
    ] {
        fs::write(place.join(file), text).expect("writable");
        // They are there from the first time on.
        let _ = symlink(Path::new("..data").join(file), folder.join(file));
    }
    symlink(name, folder.join("..data_tmp")).expect("writable");
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("renamable");
}

/// The Secret `cacerts` is replaced step by step, and kubelets are not equally fast: workloads that have
/// asked since the step before are taken by both replicas, and take both.
#[tokio::test]
async fn a_mounted_root_is_followed_by_another() {
    let [old, new] = [(), ()].map(|()| intermediate(&KeyPair::generate(KeyType::P256).expect("a key"), b""));
    let both = [&old.roots[..], &new.roots].concat();
    let with = |material: &Material, roots: &[u8]| Material { roots: roots.to_vec(), ..material.clone() };
    let steps = [with(&old, &both), with(&new, &both), with(&new, &new.roots)];
    let folders = [(), ()].map(|()| tempfile::tempdir().expect("a folder"));
    let cluster = Cluster::start(&[]).await;
    let mut pilots = Vec::new();
    for folder in &folders {
        mount(folder.path(), "..0", &old);
        let mut config = super::config(&[("ROOT_CA_DIR", folder.path().to_str().expect("text"))]);
        config.kubernetes.clone_from(&cluster.config.kubernetes);
        pilots.push(start(config).await);
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    // Who knows this much, and asks one of them.
    let certified = async |pilot: &super::Pilot, roots: &str| {
        let channel = until("a replica", async || connect(pilot.secure, roots, None).await.ok()).await;
        let (key, request) = csr(REVIEWS);
        let answer = ask(channel, Some("of reviews"), request).await.expect("a certificate");
        let roots = answer.cert_chain.last().expect("roots").clone();
        (answer.cert_chain[1].clone(), Workload { own: own(&answer, &key), roots, expires: i64::MAX })
    };
    let mut roots = text(&old.roots);
    for (number, step) in steps.iter().enumerate() {
        let mut workloads = Vec::new();
        for pilot in &pilots {
            workloads.push(certified(pilot, &roots).await.1);
        }
        for (pilot, folder) in pilots.iter().zip(&folders) {
            mount(folder.path(), &format!("..{}", number + 1), step);
            until("the step", async || {
                let (signer, workload) = certified(pilot, &roots).await;
                let is_taken = signer.trim() == text(&step.certificate).trim()
                    && count(&workload.roots) == count(&text(&step.roots));
                workloads.push(workload);
                is_taken.then_some(())
            })
            .await;
            for (index, pilot) in pilots.iter().enumerate() {
                for workload in &workloads {
                    let met = connect(pilot.secure, &workload.roots, Some(&workload.own)).await;
                    assert!(met.is_ok(), "step {number}, replica {index}: {:?}", met.err());
                }
            }
        }
        roots = workloads.pop().expect("somebody").roots;
    }
    assert_eq!(count(&roots), 1);
    let refused = connect(pilots[0].secure, &text(&old.roots), None).await;
    assert!(refused.is_err(), "nothing is left of the old one");
}
