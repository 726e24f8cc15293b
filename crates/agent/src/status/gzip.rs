//! Answers in gzip (RFC 1952), made piece by piece as they are taken.

use bytes::Bytes;
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Method, Status, Strategy};

/// Shorter answers are sent as they are, as pilot-agent does.
pub(super) const LEAST: usize = 1024;
/// How much room there is at a time.
const CHUNK: usize = 16 << 10;

/// Whether a caller takes gzip.
pub(super) fn is_taken(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        is_it && weight.is_none_or(|weight| weight.trim().parse::<f64>().is_ok_and(|weight| weight > 0.0))
    })
}

/// Makes gzip of what comes.
pub(super) struct Gzip(Box<Deflate>);

impl Gzip {
    pub(super) fn new() -> Gzip {
        Gzip(Box::new(Deflate::new_with_config(DeflateConfig {
            // Metrics repeat themselves: more than that makes them hardly shorter.
            level: 1,
            method: Method::Deflated,
            // With 16 the frame is that of gzip.
            window_bits: 16 + 15,
            mem_level: 8,
            strategy: Strategy::Default,
        })))
    }

    /// What a piece adds, which may be nothing yet; `is_last`: nothing follows it.
    pub(super) fn add(&mut self, mut piece: &[u8], is_last: bool) -> Result<Bytes, &'static str> {
        const FAILED: &str = "it cannot be compressed";
        let flush = if is_last { DeflateFlush::Finish } else { DeflateFlush::NoFlush };
        let mut out = Vec::new();
        loop {
            let (start, taken, made) = (out.len(), self.0.total_in(), self.0.total_out());
            out.resize(start + CHUNK, 0);
            let room = out.get_mut(start..).unwrap_or_default();
            let status = self.0.compress(piece, room, flush).map_err(|_| FAILED)?;
            let count = |after: u64, before: u64| usize::try_from(after - before).map_err(|_| FAILED);
            let (taken, made) = (count(self.0.total_in(), taken)?, count(self.0.total_out(), made)?);
            out.truncate(start + made);
            piece = piece.get(taken..).ok_or(FAILED)?;
            match status {
                Status::StreamEnd => return Ok(out.into()),
                // Room was left: there is no more for now.
                Status::Ok | Status::BufError if made < CHUNK && !is_last => return Ok(out.into()),
                Status::Ok | Status::BufError if made == 0 && taken == 0 => return Err(FAILED),
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT_ENCODING;
    use http::{HeaderMap, HeaderValue};

    use super::is_taken;

    #[test]
    fn who_takes_it() {
        for (value, expected) in [
            ("gzip", true),
            ("br, GZip;q=0.5", true),
            ("deflate,gzip ; q=1", true),
            ("gzip;q=0", false),
            ("gzip;q=many", false),
            ("identity", false),
            ("x-gzip", false),
            ("*", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(is_taken(&headers), expected, "{value}");
        }
        assert!(!is_taken(&HeaderMap::new()));
    }
}
