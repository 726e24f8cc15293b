//! The gRPC sample: one connection of the client, its calls spread evenly over the replicas.

use std::collections::BTreeMap;

use crate::mesh::{Mesh, Proxy, namespaces, repository};

/// Reads `echo: 60 calls, echo-abc 20, echo-def 20, ..., errors 0`: calls by replica, errors.
fn read(line: &str) -> Option<(BTreeMap<String, u64>, u64)> {
    let (_, rest) = line.split_once("echo: ")?;
    let mut replicas = BTreeMap::new();
    let mut errors = None;
    for part in rest.split(", ").skip(1) {
        let (name, count) = part.trim().rsplit_once(' ')?;
        let count = count.parse().ok()?;
        if name == "errors" {
            errors = Some(count);
        } else {
            replicas.insert(name.to_owned(), count);
        }
    }
    Some((replicas, errors?))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_connection_are_spread_over_all_replicas() {
    if !namespaces() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for file in ["namespace.yaml", "echo.yaml", "client.yaml"] {
        std::fs::copy(repository().join("samples/grpc").join(file), folder.path().join(file)).unwrap();
    }
    let mesh = Mesh::up_with(&[folder.path()], &Proxy::Leno, &[]);
    let even = |replicas: usize| {
        move |line: &str| {
            read(line).is_some_and(|(counts, errors)| {
                let (least, most) = (counts.values().min().copied(), counts.values().max().copied());
                errors == 0
                    && counts.len() == replicas
                    && least.zip(most).is_some_and(|(least, most)| most - least <= 4)
            })
        }
    };
    mesh.wait_for("even calls over three replicas", even(3));

    let text = std::fs::read_to_string(folder.path().join("echo.yaml")).unwrap();
    assert!(text.contains("replicas: 3"));
    std::fs::write(folder.path().join("echo.yaml"), text.replace("replicas: 3", "replicas: 4")).unwrap();
    mesh.wait_for("even calls over four replicas", even(4));

    // A replica that dies takes no call with it, and is back.
    mesh.kill("server");
    mesh.wait_for_next("even calls after a replica died", even(4));
    let failed = mesh.lines().iter().filter_map(|line| read(line)).any(|(_, errors)| errors > 0);
    assert!(!failed, "{}", mesh.text());
}
