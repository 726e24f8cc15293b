//! The header block of one message: request head, response head or trailers.
//!
//! A block is one byte buffer and a list of spans into it, so that parsing, matching, rewriting
//! and writing a message allocate nothing per header, and a block can be cleared and reused.
//! Names are lower case. Pseudo-headers (`:method`, `:path`, ...) are entries like all others,
//! as in Envoy, so that matchers, mutations and formatters need no special case; codecs write
//! them where their protocol wants them. `host` of HTTP/1 is stored as `:authority`.
//!
//! Names that the proxy itself reads are `Known`: they are recognised once, when the entry is
//! made, and found by one array look-up.

use std::fmt;

/// Declares the known names: enum, text and recognition in one table.
macro_rules! known_headers {
    ($($variant:ident = $text:literal,)*) => {
        /// A header name that the proxy itself reads or writes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub(crate) enum Known { $($variant,)* }

        impl Known {
            /// All of them, in order.
            pub(crate) const ALL: &'static [Known] = &[$(Known::$variant,)*];
            /// How many there are.
            pub(crate) const COUNT: usize = Known::ALL.len();

            /// The lower-case name.
            #[inline]
            pub(crate) const fn text(self) -> &'static str {
                match self { $(Known::$variant => $text,)* }
            }

            /// Recognises a lower-case name: a look-up in a table made at build time, and as a
            /// rule one comparison at most.
            pub(crate) fn find(name: &[u8]) -> Option<Known> {
                let mut slot = slot(name);
                loop {
                    let known = Known::ALL.get(usize::from(*SLOTS.get(slot)?)).copied()?;
                    if known.text().as_bytes() == name {
                        return Some(known);
                    }
                    slot = (slot + 1) % SLOTS.len();
                }
            }
        }
    };
}

/// Where the search for a name begins: of its length, and of bytes that tell names apart.
const fn slot(name: &[u8]) -> usize {
    let length = name.len();
    if length == 0 {
        return 0;
    }
    let (first, middle, last) = (name[0] as usize, name[length / 2] as usize, name[length - 1] as usize);
    let late = if length > 4 { name[length - 4] as usize } else { 0 };
    (length * 37 + first * 7 + middle * 131 + last * 61 + late * 17) % SLOTS_LEN
}

/// Four times as many as there are names, so that most searches end where they begin.
const SLOTS_LEN: usize = 1 << 8;

/// Known names by `slot`; those that collide follow each other. `OTHER`: none.
static SLOTS: [u8; SLOTS_LEN] = {
    let mut slots = [OTHER; SLOTS_LEN];
    let mut index = 0;
    while index < Known::COUNT {
        let mut at = slot(Known::ALL[index].text().as_bytes());
        while slots[at] != OTHER {
            at = (at + 1) % SLOTS_LEN;
        }
        slots[at] = index as u8;
        index += 1;
    }
    slots
};

known_headers! {
    Method = ":method",
    Path = ":path",
    Authority = ":authority",
    Scheme = ":scheme",
    Status = ":status",
    Protocol = ":protocol",
    AcceptEncoding = "accept-encoding",
    Authorization = "authorization",
    Connection = "connection",
    ContentLength = "content-length",
    ContentType = "content-type",
    Cookie = "cookie",
    Date = "date",
    Expect = "expect",
    GrpcMessage = "grpc-message",
    GrpcStatus = "grpc-status",
    GrpcTimeout = "grpc-timeout",
    Http2Settings = "http2-settings",
    KeepAlive = "keep-alive",
    Location = "location",
    Origin = "origin",
    ProxyConnection = "proxy-connection",
    Referer = "referer",
    Server = "server",
    SetCookie = "set-cookie",
    Te = "te",
    Trailer = "trailer",
    TransferEncoding = "transfer-encoding",
    Upgrade = "upgrade",
    UserAgent = "user-agent",
    Via = "via",
    XForwardedClientCert = "x-forwarded-client-cert",
    XForwardedFor = "x-forwarded-for",
    XForwardedHost = "x-forwarded-host",
    XForwardedPort = "x-forwarded-port",
    XForwardedProto = "x-forwarded-proto",
    XRequestId = "x-request-id",
    EnvoyAttemptCount = "x-envoy-attempt-count",
    EnvoyDecoratorOperation = "x-envoy-decorator-operation",
    EnvoyDegraded = "x-envoy-degraded",
    EnvoyDownstreamServiceCluster = "x-envoy-downstream-service-cluster",
    EnvoyDownstreamServiceNode = "x-envoy-downstream-service-node",
    EnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    EnvoyExternalAddress = "x-envoy-external-address",
    EnvoyForceTrace = "x-envoy-force-trace",
    EnvoyHedgeOnPerTryTimeout = "x-envoy-hedge-on-per-try-timeout",
    EnvoyImmediateHealthCheckFail = "x-envoy-immediate-health-check-fail",
    EnvoyInternal = "x-envoy-internal",
    EnvoyIpTags = "x-envoy-ip-tags",
    EnvoyIsTimeoutRetry = "x-envoy-is-timeout-retry",
    EnvoyLocalOverloaded = "x-envoy-local-overloaded",
    EnvoyMaxRetries = "x-envoy-max-retries",
    EnvoyOriginalHost = "x-envoy-original-host",
    EnvoyOriginalMethod = "x-envoy-original-method",
    EnvoyOriginalPath = "x-envoy-original-path",
    EnvoyOriginalUrl = "x-envoy-original-url",
    EnvoyOverloaded = "x-envoy-overloaded",
    EnvoyRateLimited = "x-envoy-ratelimited",
    EnvoyRetriableHeaderNames = "x-envoy-retriable-header-names",
    EnvoyRetriableStatusCodes = "x-envoy-retriable-status-codes",
    EnvoyRetryGrpcOn = "x-envoy-retry-grpc-on",
    EnvoyRetryOn = "x-envoy-retry-on",
    EnvoyUpstreamAltStatName = "x-envoy-upstream-alt-stat-name",
    EnvoyUpstreamCanary = "x-envoy-upstream-canary",
    EnvoyUpstreamHealthCheckedCluster = "x-envoy-upstream-healthchecked-cluster",
    EnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    EnvoyUpstreamRqTimeoutAltResponse = "x-envoy-upstream-rq-timeout-alt-response",
    EnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    EnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    EnvoyUpstreamStreamDurationMs = "x-envoy-upstream-stream-duration-ms",
}

/// A run of bytes in the buffer.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

/// No known name: the value of `Entry::known` for all other headers.
const OTHER: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
    known: u8,
}

/// Room for an ordinary message's names and values.
const ORDINARY_BYTES: usize = 1024;
/// Room for an ordinary message's headers.
const ORDINARY_ENTRIES: usize = 24;

/// The headers of one message, in order.
#[derive(Clone)]
pub(crate) struct HeaderMap {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// For each known name, one more than the index of its first entry; 0: absent.
    first: [u16; Known::COUNT],
    /// How HTTP/1 is to write the names, if not as they are stored.
    case: Option<Box<OriginalCase>>,
}

/// How the names of a message were written (`preserve_case`).
#[derive(Clone, Debug, Default)]
pub(crate) struct OriginalCase {
    names: Vec<Box<[u8]>>,
    /// `formatter_type_on_envoy_headers: PROPER_CASE`: names that the message did not have.
    pub(crate) proper_others: bool,
    /// `forward_reason_phrase`: the phrase behind the status.
    pub(crate) reason: Option<Box<str>>,
}

impl OriginalCase {
    /// A name as it was written, if the message had it.
    pub(crate) fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.names.iter().find(|written| written.eq_ignore_ascii_case(name)).map(|written| &**written)
    }

    /// Notes how a name was written, the first time that it was.
    pub(crate) fn remember(&mut self, name: &[u8]) {
        if self.find(name).is_none() {
            self.names.push(name.into());
        }
    }
}

impl Default for HeaderMap {
    fn default() -> Self {
        Self { bytes: Vec::new(), entries: Vec::new(), first: [0; Known::COUNT], case: None }
    }
}

impl HeaderMap {
    /// An empty block with room for an ordinary message.
    pub(crate) fn new() -> Self {
        let (bytes, entries) = (Vec::with_capacity(ORDINARY_BYTES), Vec::with_capacity(ORDINARY_ENTRIES));
        Self { bytes, entries, ..Self::default() }
    }

    /// Makes room for an ordinary message in a block that has none yet.
    pub(crate) fn prepare(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(ORDINARY_BYTES);
            self.entries.reserve_exact(ORDINARY_ENTRIES);
        }
    }

    /// Removes everything and keeps the allocations.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.first = [0; Known::COUNT];
        self.case = None;
    }

    /// How HTTP/1 is to write the names, if not as they are stored.
    pub(crate) fn case(&self) -> Option<&OriginalCase> {
        self.case.as_deref()
    }

    /// Sets how HTTP/1 is to write the names.
    pub(crate) fn set_case(&mut self, case: OriginalCase) {
        self.case = Some(Box::new(case));
    }

    /// Number of entries, pseudo-headers included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all names and values, as Envoy counts a header block (names, values, no separators).
    pub(crate) fn byte_size(&self) -> usize {
        self.entries.iter().map(|entry| entry.name.len as usize + entry.value.len as usize).sum()
    }

    /// Appends a header; `name` may be in any case.
    pub(crate) fn append(&mut self, name: &[u8], value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes[start..].make_ascii_lowercase();
        let known = Known::find(&self.bytes[start..]).map_or(OTHER, |known| known as u8);
        let name = Span { start: start as u32, len: name.len() as u32 };
        self.push(name, value, known);
    }

    /// Appends a known header.
    pub(crate) fn append_known(&mut self, name: Known, value: &[u8]) {
        let start = self.bytes.len() as u32;
        let text = name.text().as_bytes();
        self.bytes.extend_from_slice(text);
        self.push(Span { start, len: text.len() as u32 }, value, name as u8);
    }

    /// Appends a header whose lower-case name was looked up already.
    pub(crate) fn append_found(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        let name = Span { start: start as u32, len: name.len() as u32 };
        self.push(name, value, known.map_or(OTHER, |known| known as u8));
    }

    fn push(&mut self, name: Span, value: &[u8], known: u8) {
        let value = self.store(value);
        if let Some(first) = self.first.get_mut(usize::from(known))
            && *first == 0
        {
            *first = self.entries.len() as u16 + 1;
        }
        self.entries.push(Entry { name, value, known });
    }

    fn store(&mut self, value: &[u8]) -> Span {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        Span { start, len: value.len() as u32 }
    }

    fn slice(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        &self.bytes[start..start + span.len as usize]
    }

    /// The first value of a known header.
    pub(crate) fn get(&self, name: Known) -> Option<&[u8]> {
        let first = usize::from(self.first[name as usize]);
        let entry = self.entries.get(first.checked_sub(1)?)?;
        Some(self.slice(entry.value))
    }

    /// The first value of a known header as text; a value that is not UTF-8 reads as absent.
    pub(crate) fn get_str(&self, name: Known) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Whether a known header is present.
    pub(crate) fn contains(&self, name: Known) -> bool {
        self.first[name as usize] != 0
    }

    /// Whether one of these headers is present.
    pub(crate) fn contains_any(&self, names: &[Known]) -> bool {
        names.iter().any(|name| self.contains(*name))
    }

    /// The first value of the header with this lower-case name.
    pub(crate) fn find(&self, name: &str) -> Option<&[u8]> {
        self.find_all(name).next()
    }

    /// All values of the header with this lower-case name, in order.
    pub(crate) fn find_all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let known = Known::find(name.as_bytes());
        let from = match known {
            Some(known) => match self.first[known as usize] {
                0 => self.entries.len(),
                first => usize::from(first) - 1,
            },
            None => 0,
        };
        let known = known.map_or(OTHER, |known| known as u8);
        self.entries[from..].iter().filter_map(move |entry| {
            let same = entry.known == known && (known != OTHER || self.slice(entry.name) == name.as_bytes());
            same.then(|| self.slice(entry.value))
        })
    }

    /// All headers as (name, value), in order, pseudo-headers included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|entry| (self.slice(entry.name), self.slice(entry.value)))
    }

    /// All headers with their known name, in order, pseudo-headers included.
    pub(crate) fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &[u8], &[u8])> {
        self.entries.iter().map(|entry| {
            let known = Known::ALL.get(usize::from(entry.known)).copied();
            (known, self.slice(entry.name), self.slice(entry.value))
        })
    }

    /// Sets a known header to one value: the first entry is overwritten in place, others go.
    pub(crate) fn set(&mut self, name: Known, value: &[u8]) {
        let first = usize::from(self.first[name as usize]);
        if first == 0 {
            self.append_known(name, value);
            return;
        }
        let value = self.store(value);
        self.entries[first - 1].value = value;
        if self.entries[first..].iter().any(|entry| entry.known == name as u8) {
            let mut index = 0;
            self.entries.retain(|entry| {
                index += 1;
                index <= first || entry.known != name as u8
            });
            self.reindex();
        }
    }

    /// Sets the header with this name (any case) to one value.
    pub(crate) fn set_named(&mut self, name: &str, value: &[u8]) {
        let lower = name.to_ascii_lowercase();
        match Known::find(lower.as_bytes()) {
            Some(known) => self.set(known, value),
            None => {
                let place = self.entries.iter().position(|entry| self.slice(entry.name) == lower.as_bytes());
                let Some(place) = place else {
                    self.append(lower.as_bytes(), value);
                    return;
                };
                let value = self.store(value);
                self.entries[place].value = value;
                self.retain_from(place + 1, |entry_name| entry_name != lower.as_bytes());
            }
        }
    }

    /// Removes a known header; says whether it was there.
    pub(crate) fn remove(&mut self, name: Known) -> bool {
        if self.first[name as usize] == 0 {
            return false;
        }
        self.entries.retain(|entry| entry.known != name as u8);
        self.reindex();
        true
    }

    /// Removes all headers with this name (any case); says whether one was there.
    pub(crate) fn remove_named(&mut self, name: &str) -> bool {
        let lower = name.to_ascii_lowercase();
        match Known::find(lower.as_bytes()) {
            Some(known) => self.remove(known),
            None => self.retain_from(0, |entry_name| entry_name != lower.as_bytes()),
        }
    }

    /// Keeps the headers for which `keep(name, value)` holds.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let bytes = &self.bytes;
        let slice = |span: Span| &bytes[span.start as usize..][..span.len as usize];
        self.entries.retain(|entry| keep(slice(entry.name), slice(entry.value)));
        self.reindex();
    }

    fn retain_from(&mut self, from: usize, keep: impl Fn(&[u8]) -> bool) -> bool {
        let before = self.entries.len();
        let bytes = &self.bytes;
        let mut index = 0;
        self.entries.retain(|entry| {
            index += 1;
            index <= from || keep(&bytes[entry.name.start as usize..][..entry.name.len as usize])
        });
        let removed = self.entries.len() != before;
        if removed {
            self.reindex();
        }
        removed
    }

    fn reindex(&mut self) {
        self.first = [0; Known::COUNT];
        for (index, entry) in self.entries.iter().enumerate() {
            if let Some(first) = self.first.get_mut(usize::from(entry.known))
                && *first == 0
            {
                *first = index as u16 + 1;
            }
        }
    }

    /// `:method`, empty if absent.
    pub(crate) fn method(&self) -> &[u8] {
        self.get(Known::Method).unwrap_or_default()
    }

    /// `:path` with query, empty if absent.
    pub(crate) fn path(&self) -> &[u8] {
        self.get(Known::Path).unwrap_or_default()
    }

    /// `:authority`, empty if absent.
    pub(crate) fn authority(&self) -> &[u8] {
        self.get(Known::Authority).unwrap_or_default()
    }

    /// `:status` as a number; 0 if absent or malformed.
    pub(crate) fn status(&self) -> u16 {
        match self.get(Known::Status) {
            Some([a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
            None => 0,
        }
    }

    /// Sets `:status`.
    pub(crate) fn set_status(&mut self, status: u16) {
        let digits =
            [b'0' + (status / 100 % 10) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
        self.set(Known::Status, &digits);
    }

    /// Whether the message is gRPC: `content-type` is `application/grpc` or `application/grpc+...`.
    pub(crate) fn is_grpc(&self) -> bool {
        match self.get(Known::ContentType).and_then(|value| value.strip_prefix(b"application/grpc")) {
            Some(rest) => rest.is_empty() || rest[0] == b'+' || rest[0] == b';',
            None => false,
        }
    }
}

impl fmt::Debug for HeaderMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes);
        f.debug_map().entries(self.iter().map(|(name, value)| (text(name), text(value)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{HeaderMap, Known};

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
    fn all_known_names_are_found() {
        for known in Known::ALL {
            assert_eq!(Known::find(known.text().as_bytes()), Some(*known));
        }
        for other in ["", "a", ":", "x-envoy-", "hosts", "x-request-ie", "content-typf"] {
            assert_eq!(Known::find(other.as_bytes()), None, "{other}");
        }
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
    fn grpc_is_recognised_by_content_type() {
        for (value, grpc) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false)]
        {
            assert_eq!(block(&[("content-type", value)]).is_grpc(), grpc, "{value}");
        }
    }
}
