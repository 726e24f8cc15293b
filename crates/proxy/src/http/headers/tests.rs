use crate::http::headers::{HeaderMap, Known, KnownSet};

fn block(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(name.as_bytes(), value.as_bytes());
    }
    map
}

fn text(map: &HeaderMap) -> String {
    let line =
        |(n, v): (&[u8], &[u8])| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v));
    map.iter().map(line).collect::<Vec<_>>().join(" ")
}

#[test]
fn names_are_lower_case_and_known_ones_are_recognised() {
    let map = block(&[(":Method", "GET"), ("X-Request-ID", "7"), ("X-Own", "a")]);
    assert_eq!(map.get(Known::XRequestId), Some(&b"7"[..]));
    assert_eq!(text(&map), ":method=GET x-request-id=7 x-own=a");
}

#[test]
fn set_keeps_the_first_place_and_drops_the_others() {
    let mut map = block(&[("server", "a"), ("x", "1"), ("server", "b"), ("x", "2"), ("date", "d")]);
    map.set(Known::Server, b"c");
    map.set_named("X", b"3");
    assert_eq!(text(&map), "server=c x=3 date=d");
    assert_eq!(map.get(Known::Date), Some(&b"d"[..]));
}

#[test]
fn remove_reindexes_what_follows() {
    let mut map = block(&[("via", "a"), ("x", "1"), ("date", "d")]);
    assert!(map.remove(Known::Via));
    assert!(map.remove_named("x"));
    assert!(!map.remove_named("x"));
    assert_eq!(map.get(Known::Date), Some(&b"d"[..]));
    assert_eq!(map.get(Known::Via), None);
}

#[test]
fn find_all_lists_repeated_headers_in_order() {
    let map = block(&[("set-cookie", "a"), ("x", "1"), ("set-cookie", "b"), ("x", "2")]);
    let all = |name| map.find_all(name).map(String::from_utf8_lossy).collect::<Vec<_>>().join(",");
    assert_eq!(all("set-cookie"), "a,b");
    assert_eq!(all("x"), "1,2");
    assert_eq!(all("absent"), "");
}

#[test]
fn values_are_replaced_in_place_if_there_is_room() {
    let mut map = block(&[("via", "long value"), ("x", "1"), ("te", "t")]);
    map.set(Known::Via, b"new");
    map.set(Known::Te, b"trailers");
    map.set_named("x", b"22");
    assert_eq!(text(&map), "via=new x=22 te=trailers");
    map.retain(|name, _| name != b"via");
    assert_eq!(text(&map), "x=22 te=trailers");
    assert_eq!((map.get(Known::Via), map.get(Known::Te)), (None, Some(&b"trailers"[..])));
    assert_eq!((map.len(), map.byte_size()), (2, 13));
}

#[test]
fn what_was_removed_can_come_again() {
    let mut map = block(&[("te", "a"), ("te", "b"), ("x", "1")]);
    assert!(map.remove(Known::Te));
    assert!(!map.remove(Known::Te));
    map.append(b"Te", b"c");
    map.append(b"te", b"d");
    assert_eq!(text(&map), "x=1 te=c te=d");
    assert_eq!(map.find_all("te").count(), 2);
    map.clear();
    assert_eq!((map.find("x"), map.get(Known::Te)), (None, None));
}

#[test]
fn lines_are_written_as_they_came_unless_they_were_changed() {
    let head = b"skip\r\nA: 1\r\nte:2\r\nserver: old\r\nB: 3\r\nc: 4\r\n\r\n";
    let mut map = HeaderMap::new();
    let mut lines = map.lines();
    lines.push(Known::Method, 0..4);
    lines.push_line(None, 6..7, 9..10, true, true);
    lines.push_line(Some(Known::Te), 12..14, 15..16, false, false);
    lines.push_line(Some(Known::Server), 18..24, 26..29, true, false);
    lines.push_line(None, 31..32, 34..35, true, true);
    lines.push_line(None, 37..38, 40..41, true, false);
    lines.finish(head);
    drop(lines);
    let written = |map: &HeaderMap, without: &[Known]| {
        let mut out = Vec::new();
        map.write_lines(&mut out, KnownSet::of(without));
        String::from_utf8(out).expect("text").replace("\r\n", "|")
    };
    assert_eq!(text(&map), ":method=skip a=1 te=2 server=old b=3 c=4");
    assert_eq!(written(&map, &[]), "a: 1|te: 2|server: old|b: 3|c: 4|");
    assert_eq!(written(&map, &[Known::Server]), "a: 1|te: 2|b: 3|c: 4|");
    map.set(Known::Server, b"own");
    assert_eq!(written(&map, &[]), "a: 1|te: 2|server: own|b: 3|c: 4|");
    map.set(Known::Server, b"x");
    map.set_named("b", b"long");
    map.append_known(Known::Date, b"now");
    map.append_known(Known::Path, b"/");
    map.append_known(Known::Via, b"1");
    map.set(Known::Via, b"own");
    map.set(Known::Via, b"our");
    assert_eq!(written(&map, &[Known::Te]), "a: 1|server: x|b: long|c: 4|date: now|via: our|");
    assert_eq!((map.get(Known::Via), map.get(Known::Path)), (Some(&b"our"[..]), Some(&b"/"[..])));
    map.remove(Known::Via);
    map.remove(Known::Path);
    map.remove_named("C");
    map.remove(Known::Server);
    assert_eq!(written(&map, &[]), "a: 1|te: 2|b: long|date: now|");
}

#[test]
fn a_head_that_is_not_finished_leaves_the_map_empty() {
    let mut map = block(&[("x", "1")]);
    map.lines().push(Known::Method, 0..4);
    assert_eq!((map.len(), map.get(Known::Method)), (0, None));
}

#[test]
fn grpc_is_recognised_by_content_type() {
    for (value, grpc) in
        [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false)]
    {
        assert_eq!(block(&[("content-type", value)]).is_grpc(), grpc, "{value}");
    }
}
