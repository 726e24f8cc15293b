//! Tests of the route table: matching by tables, and against a linear scan.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use prost::Message as _;

use super::{MatchContext, RouteTable, proto};
use crate::config::lower::{Lower, Scope};
use crate::http::headers::HeaderMap;
use crate::http::route::Action;
use crate::http::route::discovered::Coming;

fn decode(yaml: &str) -> proto::RouteConfiguration {
    leno_api::decode::decode_text(yaml, "table.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn lower(yaml: &str) -> RouteTable {
    let table = super::pack(&decode(yaml));
    Lower::resource(|at| RouteTable::lower(&table, None, false, at))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// Headers of `METHOD HOST PATH [name=value]...`.
fn request(text: &str) -> HeaderMap {
    let mut head = HeaderMap::new();
    let mut words = text.split(' ');
    let names = [":method", ":authority", ":path"];
    for (name, value) in names.into_iter().zip(words.by_ref()) {
        head.append(name.as_bytes(), value.as_bytes());
    }
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        head.append(name.as_bytes(), value.as_bytes());
    }
    head
}

/// What a request finds: `VIRTUAL_HOST/ROUTE`, and the weighted cluster's index.
fn find(table: &RouteTable, text: &str, context: MatchContext<'_>) -> String {
    match table.find(&request(text), &context) {
        Some(found) => {
            let route = match &found.route.action {
                Action::Redirect(redirect) if found.route.name.is_empty() => {
                    format!("to {}", redirect.scheme.as_deref().unwrap_or_default())
                }
                _ => found.route.name.to_string(),
            };
            let weighted = found.weighted.map_or(String::new(), |index| format!("#{index}"));
            format!("{}/{route}{weighted}", found.virtual_host.name)
        }
        None => "none".to_owned(),
    }
}

fn check(table: &RouteTable, request: &str, expected: &Expect) {
    expected.assert_eq(&find(table, request, MatchContext::default()));
}

#[test]
fn hosts() {
    let table = lower(
        r#"
        virtual_hosts:
        - {name: exact, domains: [a.example.com, "b.example.com:8080"], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        - {name: long, domains: ["*.b.example.com"], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        - {name: short, domains: ["*.example.com"], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        - {name: prefix, domains: ["example.*"], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        - {name: any, domains: ["*"], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        "#,
    );
    check(&table, "GET a.example.com /", &expect!["exact/"]);
    check(&table, "GET A.Example.COM /", &expect!["exact/"]);
    check(&table, "GET a.example.com:80 /", &expect!["any/"]);
    check(&table, "GET b.example.com:8080 /", &expect!["exact/"]);
    check(&table, "GET x.b.example.com /", &expect!["long/"]);
    check(&table, "GET b.example.com /", &expect!["short/"]);
    check(&table, "GET .example.com /", &expect!["any/"]);
    check(&table, "GET example.org /", &expect!["prefix/"]);
    check(&table, "GET example. /", &expect!["any/"]);
    check(&table, "GET  /", &expect!["any/"]);
}

#[test]
fn ports_of_hosts_can_be_ignored() {
    let table = lower(
        r#"
        ignore_port_in_host_matching: true
        virtual_hosts:
        - {name: v4, domains: [a.com], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        - {name: v6, domains: ["[::1]"], routes: [{match: {prefix: /}, non_forwarding_action: {}}]}
        "#,
    );
    check(&table, "GET a.com:80 /", &expect!["v4/"]);
    check(&table, "GET a.com /", &expect!["v4/"]);
    check(&table, "GET [::1]:80 /", &expect!["v6/"]);
    check(&table, "GET [::1] /", &expect!["v6/"]);
    check(&table, "GET a.com:x /", &expect!["none"]);
}

#[test]
fn paths() {
    let table = lower(
        r#"
        virtual_hosts:
        - name: h
          domains: ["*"]
          routes:
          - {name: path, match: {path: /exact}, non_forwarding_action: {}}
          - {name: nocase, match: {path: /NoCase, case_sensitive: false}, non_forwarding_action: {}}
          - {name: segment, match: {path_separated_prefix: /api/v1}, non_forwarding_action: {}}
          - {name: regex, match: {safe_regex: {regex: "/[a-z]+\\.png"}}, non_forwarding_action: {}}
          - {name: prefix, match: {prefix: /pre}, non_forwarding_action: {}}
          - {name: connect, match: {connect_matcher: {}}, non_forwarding_action: {}}
        "#,
    );
    check(&table, "GET h /exact", &expect!["h/path"]);
    check(&table, "GET h /exact?a=b", &expect!["h/path"]);
    check(&table, "GET h /exact/", &expect!["none"]);
    check(&table, "GET h /nocase", &expect!["h/nocase"]);
    check(&table, "GET h /api/v1", &expect!["h/segment"]);
    check(&table, "GET h /api/v1/x?y", &expect!["h/segment"]);
    check(&table, "GET h /api/v1x", &expect!["none"]);
    check(&table, "GET h /abc.png?x", &expect!["h/regex"]);
    check(&table, "GET h /abc.pngx", &expect!["none"]);
    check(&table, "GET h /prefix", &expect!["h/prefix"]);
    check(&table, "GET h /PREfix", &expect!["none"]);
    check(&table, "CONNECT h:443", &expect!["h/connect"]);
}

#[test]
fn headers_query_and_cookies() {
    let one = |conditions: &str| {
        lower(&format!(
            "{{virtual_hosts: [{{name: h, domains: ['*'], routes: [{{name: r, match: {{prefix: /, {conditions}}}, non_forwarding_action: {{}}}}]}}]}}"
        ))
    };
    let matches =
        |conditions: &str, request: &str| find(&one(conditions), request, MatchContext::default()) == "h/r";
    for (conditions, request, expected) in [
        ("headers: [{name: A, string_match: {exact: x}}]", "GET h / a=x", true),
        ("headers: [{name: a, string_match: {exact: x}}]", "GET h / a=y", false),
        ("headers: [{name: a, string_match: {exact: 'x,y'}}]", "GET h / a=x a=y", true),
        ("headers: [{name: a, string_match: {prefix: X, ignore_case: true}}]", "GET h / a=xyz", true),
        ("headers: [{name: a, string_match: {contains: 'Y', ignore_case: true}}]", "GET h / a=xYz", true),
        ("headers: [{name: a, string_match: {suffix: z}}]", "GET h / a=z", true),
        ("headers: [{name: a, string_match: {suffix: zz}}]", "GET h / a=z", false),
        ("headers: [{name: a, string_match: {safe_regex: {regex: 'x|y'}}}]", "GET h / a=xy", false),
        ("headers: [{name: a, range_match: {start: -5, end: 5}}]", "GET h / a=-5", true),
        ("headers: [{name: a, range_match: {start: -5, end: 5}}]", "GET h / a=5", false),
        ("headers: [{name: a, range_match: {start: 0, end: 5}, invert_match: true}]", "GET h / a=x", true),
        ("headers: [{name: a, present_match: true}]", "GET h / a=", true),
        ("headers: [{name: a, present_match: false}]", "GET h /", true),
        ("headers: [{name: a, present_match: true, invert_match: true}]", "GET h /", true),
        ("headers: [{name: a}]", "GET h / a=x", true),
        // A missing header matches nothing, inverted or not, unless it counts as empty.
        ("headers: [{name: a, string_match: {exact: x}, invert_match: true}]", "GET h /", false),
        (
            "headers: [{name: a, string_match: {exact: x}, invert_match: true, treat_missing_header_as_empty: true}]",
            "GET h /",
            true,
        ),
        ("headers: [{name: host, string_match: {exact: h}}]", "GET h /", true),
        ("query_parameters: [{name: q, string_match: {exact: '1'}}]", "GET h /?p=2&q=1", true),
        ("query_parameters: [{name: q, string_match: {exact: '1'}}]", "GET h /?q=2&q=1", false),
        ("query_parameters: [{name: q, string_match: {exact: '1'}}]", "GET h /?qq=1", false),
        ("query_parameters: [{name: q}]", "GET h /?q", true),
        ("query_parameters: [{name: q, present_match: false}]", "GET h /", true),
        ("cookies: [{name: c, string_match: {exact: v}}]", "GET h / cookie=b=1;c=v", true),
        ("cookies: [{name: c, string_match: {exact: v}, invert_match: true}]", "GET h /", true),
        ("grpc: {}", "POST h / content-type=application/grpc+proto", true),
        ("grpc: {}", "POST h / content-type=application/json", false),
    ] {
        assert_eq!(matches(conditions, request), expected, "{conditions} {request}");
    }
}

#[test]
fn shares_and_weights() {
    let table = lower(
        r#"
        virtual_hosts:
        - name: h
          domains: ["*"]
          routes:
          - name: some
            match: {prefix: /, runtime_fraction: {default_value: {numerator: 30}}}
            non_forwarding_action: {}
          - name: rest
            match: {prefix: /}
            route: {weighted_clusters: {clusters: [{name: a, weight: 0}, {name: b, weight: 70}, {name: c, weight: 30}]}}
        "#,
    );
    let at = |random| find(&table, "GET h /", MatchContext { random, ..MatchContext::default() });
    assert_eq!([at(0), at(29), at(100)], ["h/some", "h/some", "h/some"]);
    assert_eq!([at(30), at(69), at(70), at(199)], ["h/rest#1", "h/rest#1", "h/rest#2", "h/rest#2"]);
}

#[test]
fn tls_is_required_of_all_or_of_strangers() {
    let table = lower(
        r#"
        virtual_hosts:
        - {name: all, domains: [all], require_tls: ALL, routes: [{name: r, match: {prefix: /}, non_forwarding_action: {}}]}
        - {name: ext, domains: [ext], require_tls: EXTERNAL_ONLY, routes: [{name: r, match: {prefix: /}, non_forwarding_action: {}}]}
        "#,
    );
    let at = |text, is_internal| find(&table, text, MatchContext { is_internal, ..MatchContext::default() });
    assert_eq!(at("GET all /", true), "all/to https");
    assert_eq!(at("GET all / :scheme=https", false), "all/r");
    assert_eq!(at("GET ext /", false), "ext/to https");
    assert_eq!(at("GET ext /", true), "ext/r");
}

#[test]
fn clusters_are_checked_where_they_are_known() {
    let table = super::pack(&decode(
        r#"
        virtual_hosts:
        - name: h
          domains: ["*"]
          routes:
          - {match: {prefix: /a}, route: {cluster: there}}
          - {match: {prefix: /b}, route: {cluster: nowhere, request_mirror_policies: [{cluster: lost}]}}
        "#,
    ));
    let scope = Scope { clusters: Some(std::sync::Arc::new(["there".into()].into())), ..Scope::default() };
    let check = |validate| {
        let lowered = Lower::resource_in(scope.clone(), |at| RouteTable::lower(&table, None, validate, at));
        lowered.map(drop).map_err(|rejected| rejected.to_string())
    };
    assert_eq!(check(false), Ok(()));
    assert_eq!(
        check(true),
        Err("virtual_hosts[0].routes[1].route.cluster: route: unknown cluster 'nowhere'; \
             virtual_hosts[0].routes[1].route.request_mirror_policies[0].cluster: route: unknown shadow cluster 'lost'"
            .to_owned())
    );
}

#[test]
fn unchanged_virtual_hosts_are_kept() {
    let table = |second: &str, common: &str| {
        super::pack(&decode(&format!(
            "{{{common} virtual_hosts: [{{name: a, domains: [a], routes: []}}, {{name: b, domains: ['{second}'], routes: []}}]}}"
        )))
    };
    let lower = |source, previous: Option<&RouteTable>| {
        Lower::resource(|at| RouteTable::lower(&source, previous, false, at))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let first = lower(table("b", ""), None);
    let kept = |next: &RouteTable| -> Vec<bool> {
        first.hosts.iter().zip(&*next.hosts).map(|(a, b)| std::sync::Arc::ptr_eq(a, b)).collect()
    };
    let second = lower(table("c", ""), Some(&first));
    assert_eq!(kept(&second), [true, false]);
    check(&second, "GET c /", &expect!["none"]);
    let third = lower(table("b", "request_headers_to_remove: [x],"), Some(&first));
    assert_eq!(kept(&third), [false, false]);
}

#[test]
fn malformed_tables_are_refused() {
    for wire in [&b"\x12\xff"[..], &b"\x12\x05\x0a"[..], &b"\x0b"[..], &b"\xff\xff\xff\xff\xff\xff"[..]] {
        let source = prost_types::Any { type_url: super::pack(&decode("{}")).type_url, value: wire.to_vec() };
        assert!(Lower::resource(|at| RouteTable::lower(&source, None, false, at)).is_err(), "{wire:?}");
    }
}

/// The virtual host of a host by trying all domains, most specific first.
fn scan(domains: &[Vec<String>], host: &str) -> Option<usize> {
    let host = host.to_ascii_lowercase();
    let all = || {
        domains.iter().enumerate().flat_map(|(index, list)| list.iter().map(move |domain| (index, domain)))
    };
    let longest = |length: &dyn Fn(&str) -> Option<usize>| {
        all().filter_map(|(index, domain)| Some((length(domain)?, index))).max_by_key(|(length, _)| *length)
    };
    all()
        .find(|(_, domain)| **domain == host && *domain != "*")
        .map(|(index, _)| (0, index))
        .or_else(|| {
            longest(&|domain| {
                let suffix = domain.strip_prefix('*').filter(|suffix| !suffix.is_empty())?;
                (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len())
            })
        })
        .or_else(|| {
            longest(&|domain| {
                let prefix = domain.strip_suffix('*').filter(|prefix| !prefix.is_empty())?;
                let is_suffix = domain.starts_with('*');
                (!is_suffix && host.len() > prefix.len() && host.starts_with(prefix)).then_some(prefix.len())
            })
        })
        .or_else(|| all().find(|(_, domain)| *domain == "*").map(|(index, _)| (0, index)))
        .map(|(_, index)| index)
}

fn domain() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]{1,3}(\\.[ab]{1,2}){0,2}",
        "\\*(\\.[ab]{1,2}){1,2}",
        "\\*-[ab]{1,2}",
        "([ab]{1,2}\\.){1,2}\\*",
        "\\*"
    ]
}

proptest! {
    #[test]
    fn a_host_is_found_as_by_trying_all(
        lists in prop::collection::vec(prop::collection::vec(domain(), 1..4), 1..6),
        hosts in prop::collection::vec("[abAB]{1,3}(\\.[ab]{1,2}){0,3}|[ab]-[ab]{1,2}", 1..20),
        own in 0_usize..6,
        come_again: bool,
    ) {
        // Each domain once.
        let mut seen = std::collections::HashSet::new();
        let lists: Vec<Vec<String>> =
            lists.into_iter().map(|list| list.into_iter().filter(|domain| seen.insert(domain.clone())).collect()).collect();
        let lists: Vec<Vec<String>> = lists.into_iter().filter(|list: &Vec<String>| !list.is_empty()).collect();
        let virtual_hosts = lists.iter().enumerate().map(|(index, domains)| proto::VirtualHost {
            name: index.to_string(),
            domains: domains.clone(),
            ..Default::default()
        });
        let mut virtual_hosts: Vec<_> = virtual_hosts.collect();
        // Some come with the table, some one by one.
        let discovered = virtual_hosts.split_off(own.min(virtual_hosts.len()));
        let mut table = with_vhds(proto::RouteConfiguration { virtual_hosts, ..Default::default() });
        for (index, host) in discovered.iter().enumerate() {
            // Under the name of another one, whose place it takes.
            discover(&mut table, &format!("r/{index}"), &proto::VirtualHost {
                name: "another".to_owned(), domains: vec![format!("{index}.other"), format!("*.{index}")], ..Default::default()
            });
            discover(&mut table, &format!("r/{index}"), host);
            discover(&mut table, "r/gone", &proto::VirtualHost {
                name: "gone".to_owned(), domains: vec!["gone".to_owned(), "*.gone".to_owned()], ..Default::default()
            });
            prop_assert!(table.remove_discovered("r/gone"));
        }
        if come_again {
            // What the table says of all of them has changed: they are lowered anew.
            let common = proto::RouteConfiguration { request_headers_to_remove: vec!["x".into()], ..Default::default() };
            let virtual_hosts = lists.iter().enumerate().take(own).map(|(index, domains)| proto::VirtualHost {
                name: index.to_string(),
                domains: domains.clone(),
                ..Default::default()
            });
            let next = with_vhds(proto::RouteConfiguration { virtual_hosts: virtual_hosts.collect(), ..common });
            let kept = Lower::resource(|at| {
                let mut next = next;
                next.keep_discovered(&table, at);
                Some(next)
            });
            table = kept.unwrap_or_else(|errors| panic!("{errors}"));
        }
        for host in hosts {
            let found = table.find_host(&request(&format!("GET {host} /")));
            let found = found.map(|host| host.virtual_host.name.parse::<usize>().expect("an index"));
            prop_assert_eq!(found, scan(&lists, &host), "{} in {:?}, {} of the table", host, lists, own);
        }
    }
}

fn with_vhds(mut table: proto::RouteConfiguration) -> RouteTable {
    table.name = "r".into();
    table.vhds = leno_api::decode_text("{config_source: {ads: {}}}", "vhds").ok();
    let scope = Scope { ads: Some(leno_xds::Mode::Delta), ..Scope::default() };
    Lower::resource_in(scope, |at| RouteTable::lower(&super::pack(&table), None, false, at))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn discover(table: &mut RouteTable, name: &str, host: &proto::VirtualHost) {
    try_discover(table, name, host).unwrap_or_else(|errors| panic!("{errors}"));
}

fn try_discover(
    table: &mut RouteTable,
    name: &str,
    host: &proto::VirtualHost,
) -> Result<(), crate::config::lower::Rejected> {
    let (name, wire) = (name.into(), host.encode_to_vec());
    let coming = Coming { name: &name, wire: &wire, scope: Scope::default() };
    table.put_discovered(&[coming]).into_iter().try_for_each(|became| became.map(drop))
}

#[test]
fn a_domain_belongs_to_one_virtual_host() {
    let host = |domains: &[&str]| proto::VirtualHost {
        name: "host".to_owned(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        ..Default::default()
    };
    let own =
        proto::RouteConfiguration { virtual_hosts: vec![host(&["own", "*.own", "*"])], ..Default::default() };
    let mut table = with_vhds(own);
    discover(&mut table, "r/a", &host(&["a", "*.a"]));
    // It may keep its own domains.
    discover(&mut table, "r/a", &host(&["A", "a.*"]));
    let refused = |table: &mut RouteTable, domains: &[&str], expected: Expect| {
        let error = try_discover(table, "r/b", &host(domains)).expect_err("a conflict");
        expected.assert_eq(&error.to_string());
    };
    refused(
        &mut table,
        &["b", "own"],
        expect![
            "domains[1]: Only unique values for domains are permitted. Duplicate entry of domain own in route r"
        ],
    );
    refused(
        &mut table,
        &["*.own", "a.*"],
        expect![
            "domains[0]: Only unique values for domains are permitted. Duplicate entry of domain *.own in route r"
        ],
    );
    refused(
        &mut table,
        &["b", "a.*"],
        expect![
            "domains[1]: Only unique values for domains are permitted. Duplicate entry of domain a.* in route r"
        ],
    );
    refused(&mut table, &["*"], expect!["domains[0]: Only a single wildcard domain is permitted in route r"]);
    refused(
        &mut table,
        &["b", "B"],
        expect![
            "domains[1]: Only unique values for domains are permitted. Duplicate entry of domain b in route r"
        ],
    );
    discover(&mut table, "r/b", &host(&["*.a"]));
    assert_eq!(table.find_host(&request("GET b /")).map(|host| host.domains.len()), Some(3), "none came");
    // A table whose own domains are others' now has them itself, also if these are lowered anew.
    for remove in [Vec::new(), vec!["x".to_owned()]] {
        let own = proto::VirtualHost { name: "own".to_owned(), ..host(&["a", "a.*"]) };
        let mut next = with_vhds(proto::RouteConfiguration {
            virtual_hosts: vec![own],
            request_headers_to_remove: remove,
            ..Default::default()
        });
        let kept = Lower::resource(|at| {
            next.keep_discovered(&table, at);
            Some(())
        });
        kept.unwrap_or_else(|errors| panic!("{errors}"));
        let found = |asked: &str| {
            next.find_host(&request(&format!("GET {asked} /"))).map(|host| host.virtual_host.name.clone())
        };
        assert_eq!(
            ["a", "a.x", "x.a"].map(|asked| found(asked).map(|name| name.to_string())),
            ["own", "own", "host"].map(|name| Some(name.to_owned()))
        );
    }
    // What came reads as if it had been in the table.
    let mut wire = super::pack(&proto::RouteConfiguration { name: "r".into(), ..Default::default() }).value;
    table.append_discovered(&mut wire);
    let shown = proto::RouteConfiguration::decode(&*wire).expect("a table");
    assert_eq!(shown.virtual_hosts, [host(&["A", "a.*"]), host(&["*.a"])]);
}
