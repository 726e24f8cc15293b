//! Which encoding is chosen; `tests/filters/compressor` has the rest, beside Envoy.

use super::negotiate::{Because, Candidate, Choice, choose};

#[test]
fn what_the_client_likes_most() {
    let check = |accepted: &str, offered: &[(&'static str, bool)], expected: (Option<&str>, Because)| {
        let offered = offered.iter().map(|(encoding, first)| Candidate { encoding, first: *first });
        let Choice { encoding, because } = choose(accepted.as_bytes(), offered);
        assert_eq!((encoding, because), expected, "{accepted}");
    };
    let all = [("br", false), ("zstd", false), ("gzip", false)];
    check("gzip", &all, (Some("gzip"), Because::Named));
    check(" gzip ; q = 0.5 , br;q=0.7", &all, (Some("br"), Because::Named));
    check("gzip, br", &all, (Some("gzip"), Because::Named));
    check("gzip, br", &[("br", true), ("gzip", false)], (Some("br"), Because::Named));
    check("gzip, br", &[("br", true), ("gzip", true)], (Some("br"), Because::Named));
    check("br, gzip", &[("br", false), ("gzip", true), ("gzip", false)], (Some("gzip"), Because::Named));
    check("gzip;q=x, br;q=0.1", &all, (Some("br"), Because::Named));
    check("gzip;a=b;q=0", &all, (Some("gzip"), Because::Named));
    check("*", &all, (Some("br"), Because::Wildcard));
    check("br;q=0, *", &all, (Some("zstd"), Because::Wildcard));
    check("gzip;q=0, *", &[("gzip", false)], (None, Because::NotValid));
    check("*;q=0, gzip", &[("gzip", false)], (Some("gzip"), Because::Named));
    check("identity, gzip;q=0.5", &all, (None, Because::Identity));
    check("deflate", &all, (None, Because::NotValid));
    check("GZIP", &all, (None, Because::NotValid));
    check("", &all, (None, Because::NotValid));
    check("gzip", &[], (None, Because::NotValid));
    check("gzip;q=-1", &all, (None, Because::NotValid));
}
