//! Header names that the proxy itself reads or writes, and how they are recognised.
//!
//! A name is recognised by its length, its first eight bytes and its last eight: two words, which
//! are lowered and compared as such. Only long names need a look at what is between.

/// Declares the known names: enum and text in one table.
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
        }

        /// Their texts, in order, for what is computed at build time.
        const NAMES: [&str; Known::COUNT] = [$($text,)*];

        /// The same, for look-ups.
        static TEXTS: [&str; Known::COUNT] = NAMES;

        /// The same with what stands between name and value of a line.
        static LINES: [Line; Known::COUNT] = [$(Line::of(concat!($text, ": ")),)*];
    };
}

known_headers! {
    Method = ":method",
    Path = ":path",
    Authority = ":authority",
    Scheme = ":scheme",
    Status = ":status",
    Protocol = ":protocol",
    AcceptEncoding = "accept-encoding",
    Authorization = "authorization",
    B3 = "b3",
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
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    Trailer = "trailer",
    TransferEncoding = "transfer-encoding",
    Upgrade = "upgrade",
    UserAgent = "user-agent",
    Via = "via",
    XB3Parentspanid = "x-b3-parentspanid",
    XB3Sampled = "x-b3-sampled",
    XB3Spanid = "x-b3-spanid",
    XB3Traceid = "x-b3-traceid",
    XClientTraceId = "x-client-trace-id",
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
    EnvoyPeerMetadata = "x-envoy-peer-metadata",
    EnvoyPeerMetadataId = "x-envoy-peer-metadata-id",
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

/// Known names that are looked for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownSet([u64; 2]);

impl KnownSet {
    /// None.
    pub(crate) const EMPTY: KnownSet = KnownSet([0; 2]);

    /// These.
    pub(crate) const fn of(names: &[Known]) -> Self {
        let mut set = KnownSet::EMPTY;
        let mut index = 0;
        while index < names.len() {
            let name = names[index] as usize;
            set.0[name / 64] |= 1 << (name % 64);
            index += 1;
        }
        set
    }

    /// Those of both.
    #[inline]
    pub(crate) const fn and(self, other: KnownSet) -> KnownSet {
        KnownSet([self.0[0] & other.0[0], self.0[1] & other.0[1]])
    }

    /// Whether there is none.
    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.0[0] | self.0[1] == 0
    }

    /// Whether this one is in it.
    #[inline]
    pub(crate) const fn contains(self, name: Known) -> bool {
        self.0[name as usize / 64] >> (name as usize % 64) & 1 != 0
    }

    /// Puts it in.
    #[inline]
    pub(crate) fn insert(&mut self, name: Known) {
        self.0[name as usize / 64] |= 1 << (name as usize % 64);
    }

    /// Takes it out.
    #[inline]
    pub(crate) fn remove(&mut self, name: Known) {
        self.0[name as usize / 64] &= !(1 << (name as usize % 64));
    }

    /// Those in it, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Known> {
        let mut left = u128::from(self.0[1]) << 64 | u128::from(self.0[0]);
        std::iter::from_fn(move || {
            let known = Known::ALL.get(left.trailing_zeros() as usize).copied()?;
            left &= left - 1;
            Some(known)
        })
    }
}

const _: () = assert!(Known::COUNT <= 128, "a set is 128 bits");

impl Known {
    /// The lower-case name.
    #[inline]
    pub(crate) const fn text(self) -> &'static str {
        TEXTS[self as usize]
    }

    /// The lower-case name, a colon and a space.
    #[inline]
    pub(crate) fn line(self) -> &'static [u8] {
        let Line { text, length } = &LINES[self as usize];
        text.get(..usize::from(*length)).unwrap_or_default()
    }

    /// The same, in room that is as large for all names: so it is quick to copy. Its length.
    #[inline]
    pub(crate) fn wide_line(self) -> (&'static [u8; WIDE], usize) {
        let Line { text, length } = &LINES[self as usize];
        (text, usize::from(*length))
    }

    /// Whether it is a pseudo-header.
    #[inline]
    pub(crate) const fn is_pseudo(self) -> bool {
        (self as u8) <= Known::Protocol as u8
    }

    /// Recognises a lower-case name.
    #[inline]
    pub(crate) fn find(name: &[u8]) -> Option<Known> {
        let (first, last) = ends(name)?;
        search(name, first, last).filter(|known| name.len() <= 16 || name == known.text().as_bytes())
    }

    /// Recognises a name in any case, and says whether it was written with capitals.
    #[inline]
    pub(crate) fn find_in_any_case(name: &[u8]) -> Option<(Known, bool)> {
        let (first, last) = ends(name)?;
        let (lower_first, lower_last) = (lower(first), lower(last));
        let known = search(name, lower_first, lower_last)?;
        let capitals = if name.len() <= 16 {
            lower_first != first || lower_last != last
        } else {
            name != known.text().as_bytes()
        };
        Some((known, capitals))
    }
}

/// Room for the longest name, a colon and a space.
pub(crate) const WIDE: usize = 48;

/// A name, a colon and a space.
struct Line {
    text: [u8; WIDE],
    length: u8,
}

impl Line {
    const fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut line = Line { text: [0; WIDE], length: bytes.len() as u8 };
        let mut at = 0;
        while at < bytes.len() {
            line.text[at] = bytes[at];
            at += 1;
        }
        line
    }
}

/// Longest of the names.
const LONGEST: usize = {
    let (mut longest, mut index) = (0, 0);
    while index < Known::COUNT {
        if NAMES[index].len() > longest {
            longest = NAMES[index].len();
        }
        index += 1;
    }
    longest
};

/// The first and the last eight bytes of a name, which may overlap; of a short one all of it,
/// twice. `None`: no name is so short, or so long.
#[inline]
const fn ends(name: &[u8]) -> Option<(u64, u64)> {
    if name.len() > LONGEST {
        return None;
    }
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        return Some((u64::from_le_bytes(*first), u64::from_le_bytes(*last)));
    }
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        let word = (u32::from_le_bytes(*last) as u64) << 32 | u32::from_le_bytes(*first) as u64;
        return Some((word, word));
    }
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        let word = (u16::from_le_bytes(*last) as u64) << 16 | u16::from_le_bytes(*first) as u64;
        return Some((word, word));
    }
    None
}

/// The bytes of a word in lower case.
#[inline]
const fn lower(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * EACH);
    // The top bit of each byte: from 'A' on; behind 'Z'.
    let letters = low + (0x80 - b'A' as u64) * EACH;
    let behind = low + (0x7f - b'Z' as u64) * EACH;
    let capitals = (letters ^ behind) & !word & (0x80 * EACH);
    word | capitals >> 2
}

/// Finds the name of which these are the ends, in lower case; what is between is in any case.
#[inline]
fn search(name: &[u8], first: u64, last: u64) -> Option<Known> {
    let mut slot = slot(name.len(), first, last);
    loop {
        let index = usize::from(SLOTS[slot]);
        let shape = SHAPES.get(index)?;
        if shape.first == first && shape.last == last && shape.len as usize == name.len() {
            let known = Known::ALL[index];
            if name.len() <= 16 || name.eq_ignore_ascii_case(known.text().as_bytes()) {
                return Some(known);
            }
        }
        slot = (slot + 1) % SLOTS_LEN;
    }
}

/// What a name is recognised by.
struct Shape {
    first: u64,
    last: u64,
    len: u8,
}

const ALL_SHAPES: [Shape; Known::COUNT] = {
    let mut shapes = [const { Shape { first: 0, last: 0, len: 0 } }; Known::COUNT];
    let mut index = 0;
    while index < Known::COUNT {
        let text = NAMES[index].as_bytes();
        let Some((first, last)) = ends(text) else { panic!("too short") };
        shapes[index] = Shape { first, last, len: text.len() as u8 };
        index += 1;
    }
    shapes
};

static SHAPES: [Shape; Known::COUNT] = ALL_SHAPES;

/// Many times as many as there are names, so that most searches end where they begin.
const SLOTS_LEN: usize = 1 << 10;

/// An empty slot.
const FREE: u8 = u8::MAX;

/// Where the search for a name begins.
#[inline]
const fn slot(len: usize, first: u64, last: u64) -> usize {
    let mixed = (first ^ last.rotate_left(29)).wrapping_add(len as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 54) as usize % SLOTS_LEN
}

/// Known names by `slot`; those that collide follow each other.
static SLOTS: [u8; SLOTS_LEN] = {
    let mut slots = [FREE; SLOTS_LEN];
    let mut index = 0;
    while index < Known::COUNT {
        let shape = &ALL_SHAPES[index];
        let mut at = slot(shape.len as usize, shape.first, shape.last);
        while slots[at] != FREE {
            at = (at + 1) % SLOTS_LEN;
        }
        slots[at] = index as u8;
        index += 1;
    }
    slots
};

#[cfg(test)]
mod tests {
    use super::{Known, KnownSet, lower};

    #[test]
    fn all_known_names_are_found_in_any_case() {
        for known in Known::ALL {
            let name = known.text();
            assert_eq!(Known::find(name.as_bytes()), Some(*known));
            let upper = name.to_ascii_uppercase();
            assert_eq!(Known::find_in_any_case(upper.as_bytes()), Some((*known, true)), "{upper}");
            assert_eq!(Known::find(upper.as_bytes()), None, "{upper}");
            let found = Known::find_in_any_case(name.as_bytes());
            assert_eq!(found.map(|(known, _)| known), Some(*known), "{name}");
            let line = format!("{name}: ");
            assert_eq!(known.line(), line.as_bytes());
            let (wide, length) = known.wide_line();
            assert_eq!((wide.get(..length), length), (Some(known.line()), line.len()));
            assert_eq!(known.is_pseudo(), name.starts_with(':'));
        }
    }

    #[test]
    fn names_that_differ_in_one_byte_are_others() {
        for known in Known::ALL {
            for at in 0..known.text().len() {
                for change in [1, 0x10, 0x20, 0x80] {
                    let mut name = known.text().as_bytes().to_vec();
                    name[at] ^= change;
                    assert_eq!(Known::find(&name), None, "{}", name.escape_ascii());
                    let same = name.eq_ignore_ascii_case(known.text().as_bytes());
                    let found = Known::find_in_any_case(&name).map(|(known, _)| known);
                    assert_eq!(found, same.then_some(*known), "{}", name.escape_ascii());
                }
            }
        }
        for other in ["", "a", ":", "x-envoy-", "hosts", "x-request-ie", "content-typf"] {
            assert_eq!(Known::find(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn words_are_lowered_as_bytes_are() {
        for byte in 0..=u8::MAX {
            let expected = u64::from_le_bytes([byte.to_ascii_lowercase(); 8]);
            assert_eq!(lower(u64::from_le_bytes([byte; 8])), expected);
        }
    }

    #[test]
    fn sets_list_what_they_have() {
        let mut set = KnownSet::of(&[Known::Te, Known::Method, Known::EnvoyUpstreamStreamDurationMs]);
        set.remove(Known::Te);
        set.insert(Known::Via);
        assert!(set.contains(Known::Via) && !set.contains(Known::Te));
        let listed: Vec<Known> = set.iter().collect();
        assert_eq!(listed, [Known::Method, Known::Via, Known::EnvoyUpstreamStreamDurationMs]);
        assert!(set.and(KnownSet::of(&[Known::Te])).is_empty());
        assert_eq!(KnownSet::EMPTY.iter().next(), None);
    }
}
