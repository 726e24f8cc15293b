//! The static table of HPACK (RFC 7541 appendix A).

use crate::http::headers::Known;

/// Names and values; HPACK counts from 1.
#[rustfmt::skip]
pub(super) static ENTRIES: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""),
    ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""),
    ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""),
    ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""),
    ("retry-after", ""), ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""),
    ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

/// The known names of the entries, recognised when compiling.
pub(super) static KNOWN: [Option<Known>; 61] = {
    let mut known = [None; 61];
    let mut index = 0;
    while index < 61 {
        let mut candidate = 0;
        while candidate < Known::ALL.len() {
            if same(ENTRIES[index].0.as_bytes(), Known::ALL[candidate].text().as_bytes()) {
                known[index] = Some(Known::ALL[candidate]);
            }
            candidate += 1;
        }
        index += 1;
    }
    known
};

/// By known name: the first entry of that name, counted from 1; 0: there is none.
static BY_KNOWN: [u8; Known::COUNT] = {
    let mut first = [0; Known::COUNT];
    let mut index = 61;
    while index > 0 {
        if let Some(known) = KNOWN[index - 1] {
            first[known as usize] = index as u8;
        }
        index -= 1;
    }
    first
};

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// The first entry of this name, counted from 1; 0: there is none.
pub(super) fn find_name(known: Option<Known>, name: &[u8]) -> usize {
    if let Some(known) = known {
        return usize::from(BY_KNOWN[known as usize]);
    }
    // Only names that are not known are looked for one by one, and only among such.
    match name.len() {
        3..=27 => {
            let place = ENTRIES.iter().zip(&KNOWN).position(|((entry, _), known)| {
                known.is_none() && entry.len() == name.len() && entry.as_bytes() == name
            });
            place.map_or(0, |place| place + 1)
        }
        _ => 0,
    }
}

/// The entry of this name and value, if `first` (see `find_name`) begins a run of such names.
pub(super) fn find_value(first: usize, value: &[u8]) -> Option<usize> {
    let run = match first {
        2 | 4 | 6 => first..=first + 1,
        8 => 8..=14,
        16 => 16..=16,
        _ => return None,
    };
    run.into_iter().find(|index| ENTRIES.get(index - 1).is_some_and(|(_, text)| text.as_bytes() == value))
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES, KNOWN, find_name, find_value};

    #[test]
    fn every_entry_is_found() {
        for (index, (name, value)) in ENTRIES.iter().enumerate() {
            let first = find_name(KNOWN[index], name.as_bytes());
            assert_eq!(ENTRIES[first - 1].0, *name);
            if !value.is_empty() {
                assert_eq!(find_value(first, value.as_bytes()), Some(index + 1));
            }
        }
        assert_eq!(find_name(None, b"x-own"), 0);
        assert_eq!(find_value(1, b""), None);
    }
}
