//! Traffic is shifted by editing a file, under load: shares follow the weights at once, and no
//! request fails.

use std::time::{Duration, Instant};

use crate::load::{Answer, Load, ask_until};
use crate::mesh::{Mesh, Proxy, namespaces};

/// How long it may take until shares are as they should be; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn version(answer: &Answer) -> String {
    let found =
        ["v1", "v2", "v3"].into_iter().find(|version| answer.body.contains(&format!("reviews-{version}-")));
    found.unwrap_or("no reviews").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_followed_and_nothing_is_lost() {
    if !namespaces() {
        return;
    }
    let mesh = Mesh::up("bookinfo", &Proxy::Leno);
    mesh.apply("bookinfo/rules/destination-rules.yaml");
    let rules = |name: &str| {
        let path = crate::mesh::repository().join("samples/bookinfo/rules").join(name);
        mesh.write("reviews.yaml", &std::fs::read_to_string(path).unwrap());
    };
    rules("reviews-all-v1.yaml");
    let url = mesh.url("/productpage");
    ask_until(&url, &[], |answer| version(answer) == "v1").await;

    let whole = Load::start(&url, 4, version);
    for (file, expected) in [
        ("reviews-90-10.yaml", [("v1", 90.0), ("v2", 10.0), ("v3", 0.0)]),
        ("reviews-50-50.yaml", [("v1", 50.0), ("v2", 0.0), ("v3", 50.0)]),
        ("reviews-all-v3.yaml", [("v1", 0.0), ("v2", 0.0), ("v3", 100.0)]),
    ] {
        rules(file);
        // Proxies follow at their own pace; once all do the shares are those of the rule.
        let start = Instant::now();
        loop {
            let part = Load::start(&url, 2, version);
            part.more(1000).await;
            let counts = part.stop().await;
            assert!(counts.failures.is_empty(), "{file}: {:?}", counts.failures);
            // Four standard deviations of 1,000 draws are 6 points at most; 0 and 100 are exact.
            let fits = expected.iter().all(|&(version, percent): &(&str, f64)| {
                let slack = if percent == 0.0 || percent == 100.0 { 0.0 } else { 6.5 };
                (counts.share(version) - percent).abs() <= slack
            });
            if fits {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{file}: {counts:?}, not {expected:?}");
        }
    }
    let counts = whole.stop().await;
    assert!(counts.failures.is_empty(), "{:?}", counts.failures);
}
