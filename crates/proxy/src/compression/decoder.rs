//! Decompression libraries: gzip, brotli and zstd as decoders of a stream that comes in pieces.
//!
//! What cannot be decoded ends what comes of a piece, and does not end the stream, as in Envoy: who
//! reads it sees that it is cut off. So does a piece that becomes too long, a bomb.

use std::fmt;

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use bytes::Bytes;
use zlib_rs::{Inflate, InflateError, InflateFlush, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, zstd_sys};

use super::ZSTD_WINDOW_BITS;

/// What brotli makes of a piece at most, as many times as long as it is.
const BROTLI_RATIO: usize = 100;
/// Deviation: Envoy decodes zstd without bounds. Here a piece becomes at most so many times as long,
/// or so many bytes.
const ZSTD_RATIO: usize = 100;
const ZSTD_MOST: usize = 1 << 20;

/// A library as configured, which makes decoders.
#[derive(Clone, Debug)]
pub(crate) struct DecoderLibrary {
    /// `chunk_size`: how much room a decoder takes at a time, in bytes.
    pub(super) chunk: usize,
    pub(super) kind: DecoderKind,
}

#[derive(Clone, Debug)]
pub(super) enum DecoderKind {
    Gzip {
        /// The base-two logarithm of the largest window, with what says that the frame is gzip's.
        window_bits: u8,
        /// `max_inflate_ratio`
        ratio: usize,
    },
    Brotli,
    Zstd {
        /// By their identifiers, as the frames name them.
        dictionaries: Vec<(u32, Bytes)>,
    },
}

/// Why a piece was not decoded, or not all of it; the names of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `brotli_error`
    Brotli,
    /// `zlib_data_error`, of bombs too.
    ZlibData,
    /// `zlib_mem_error`
    ZlibMemory,
    /// `zlib_stream_error`
    ZlibStream,
    /// `zstd_checksum_wrong_error`
    ZstdChecksum,
    /// `zstd_dictionary_error`
    ZstdDictionary,
    /// `zstd_generic_error`, of bombs too.
    ZstdGeneric,
    /// `zstd_memory_error`
    ZstdMemory,
}

impl DecoderLibrary {
    /// The `content-encoding` that it undoes.
    pub(crate) fn encoding(&self) -> &'static str {
        match self.kind {
            DecoderKind::Gzip { .. } => "gzip",
            DecoderKind::Brotli => "br",
            DecoderKind::Zstd { .. } => "zstd",
        }
    }

    /// Its part of the names of stats.
    pub(crate) fn stat_name(&self) -> &'static str {
        match self.kind {
            DecoderKind::Gzip { .. } => "gzip",
            DecoderKind::Brotli => "brotli",
            DecoderKind::Zstd { .. } => "zstd",
        }
    }

    /// A decoder for one stream.
    pub(crate) fn decoder(&self) -> Decoder {
        let state = match &self.kind {
            DecoderKind::Gzip { window_bits, ratio } => State::Gzip {
                inflate: Box::new(Inflate::new(true, *window_bits)),
                ratio: *ratio,
                ended: false,
            },
            DecoderKind::Brotli => {
                let state = BrotliState::new_strict(
                    StandardAlloc::default(),
                    StandardAlloc::default(),
                    StandardAlloc::default(),
                );
                State::Brotli(Some(Box::new(state)))
            }
            DecoderKind::Zstd { dictionaries } => {
                let dictionaries = (!dictionaries.is_empty()).then(|| dictionaries.clone());
                // Deviation: Envoy takes windows of 128 MiB, for which a few bytes ask.
                let window = DParameter::WindowLogMax(ZSTD_WINDOW_BITS);
                let context = DCtx::try_create().and_then(|mut context| {
                    context.set_parameter(window).ok()?;
                    Some(context)
                });
                State::Zstd { context, dictionaries }
            }
        };
        Decoder { chunk: self.chunk, state }
    }
}

/// Decodes one stream.
pub(crate) struct Decoder {
    chunk: usize,
    state: State,
}

enum State {
    Gzip {
        inflate: Box<Inflate>,
        ratio: usize,
        ended: bool,
    },
    /// `None`: it has ended, well or not.
    Brotli(Option<Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>>),
    Zstd {
        /// `None`: there is no memory for it.
        context: Option<DCtx<'static>>,
        /// Those to choose from when the first bytes come; `None`: that was done, or there are none.
        dictionaries: Option<Vec<(u32, Bytes)>>,
    },
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// What a piece becomes, and what is wrong with it.
    pub(crate) fn decode(&mut self, piece: &[u8]) -> (Bytes, Option<Fault>) {
        let mut out = Vec::new();
        if piece.is_empty() {
            return (Bytes::new(), None);
        }
        let decoded = match &mut self.state {
            State::Gzip { inflate, ratio, ended } => {
                let limit = piece.len().saturating_mul(*ratio);
                gunzip(inflate, ended, piece, self.chunk, limit, &mut out)
            }
            State::Brotli(state) => unbrotli(state, piece, self.chunk, &mut out),
            State::Zstd { context, dictionaries } => match context {
                Some(context) => unzstd(context, dictionaries.take(), piece, self.chunk, &mut out),
                None => Err(Fault::ZstdMemory),
            },
        };
        (out.into(), decoded.err())
    }
}

fn gunzip(
    inflate: &mut Inflate,
    ended: &mut bool,
    mut piece: &[u8],
    chunk: usize,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    // What comes behind the end of a stream is passed over.
    while !*ended {
        let (start, taken, made) = (out.len(), inflate.total_in(), inflate.total_out());
        out.resize(start + chunk, 0);
        let status = inflate.decompress(piece, &mut out[start..], InflateFlush::NoFlush);
        let count = |after: u64, before: u64| usize::try_from(after - before).unwrap_or(usize::MAX);
        let (taken, made) = (count(inflate.total_in(), taken), count(inflate.total_out(), made));
        out.truncate(start + made.min(chunk));
        piece = piece.get(taken..).unwrap_or_default();
        match status {
            Ok(Status::StreamEnd) => *ended = true,
            Ok(Status::Ok | Status::BufError) if made < chunk && piece.is_empty() => break,
            Ok(Status::Ok | Status::BufError) if made == 0 && taken == 0 => break,
            Ok(Status::Ok | Status::BufError) => {}
            Err(InflateError::NeedDict { .. } | InflateError::DataError) => return Err(Fault::ZlibData),
            Err(InflateError::StreamError) => return Err(Fault::ZlibStream),
            Err(InflateError::MemError) => return Err(Fault::ZlibMemory),
        }
        // Of whole chunks, as Envoy counts.
        if made == chunk && out.len() > limit {
            return Err(Fault::ZlibData);
        }
    }
    Ok(())
}

/// Deviation: what is no brotli counts once; Envoy counts it again with every further piece of the message.
fn unbrotli(
    state: &mut Option<Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>>,
    piece: &[u8],
    chunk: usize,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let Some(mut decoder) = state.take() else { return Ok(()) };
    let limit = piece.len().saturating_mul(BROTLI_RATIO);
    let (mut left, mut taken) = (piece.len(), 0);
    loop {
        let start = out.len();
        out.resize(start + chunk, 0);
        let (mut room, mut made, mut total) = (chunk, 0, 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut taken,
            piece,
            &mut room,
            &mut made,
            &mut out[start..],
            &mut total,
            &mut decoder,
        );
        out.truncate(start + made);
        match result {
            BrotliResult::ResultFailure => return Err(Fault::Brotli),
            // What comes behind the end of a stream is passed over.
            BrotliResult::ResultSuccess => return Ok(()),
            _ if start > limit => return Err(Fault::Brotli),
            BrotliResult::NeedsMoreInput => break,
            BrotliResult::NeedsMoreOutput => {}
        }
    }
    *state = Some(decoder);
    Ok(())
}

fn unzstd(
    context: &mut DCtx<'static>,
    dictionaries: Option<Vec<(u32, Bytes)>>,
    piece: &[u8],
    chunk: usize,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    if let Some(dictionaries) = dictionaries
        && let Some(wanted) = zstd_safe::get_dict_id_from_frame(piece)
    {
        let known = dictionaries.iter().find(|(id, _)| *id == wanted.get());
        let (_, dictionary) = known.ok_or(Fault::ZstdDictionary)?;
        context.load_dictionary(dictionary).map_err(zstd_fault)?;
    }
    let limit = piece.len().saturating_mul(ZSTD_RATIO).max(ZSTD_MOST);
    let mut input = InBuffer::around(piece);
    loop {
        let start = out.len();
        out.resize(start + chunk, 0);
        let mut output = OutBuffer::around(&mut out[start..]);
        let decoded = context.decompress_stream(&mut output, &mut input);
        let made = output.pos();
        out.truncate(start + made);
        decoded.map_err(zstd_fault)?;
        // All was taken, and what it became had room.
        if input.pos() >= piece.len() && made < chunk {
            return Ok(());
        }
        if out.len() > limit {
            return Err(Fault::ZstdGeneric);
        }
    }
}

fn zstd_fault(code: zstd_safe::ErrorCode) -> Fault {
    use zstd_sys::ZSTD_ErrorCode as Code;
    // The library's codes are negative numbers, as sizes.
    let code = code.wrapping_neg();
    let is = |known: Code| code == known as usize;
    if is(Code::ZSTD_error_memory_allocation) {
        Fault::ZstdMemory
    } else if is(Code::ZSTD_error_dictionary_corrupted) || is(Code::ZSTD_error_dictionary_wrong) {
        Fault::ZstdDictionary
    } else if is(Code::ZSTD_error_checksum_wrong) {
        Fault::ZstdChecksum
    } else {
        Fault::ZstdGeneric
    }
}

/// Takes the number of a library, the length of pieces, and what is to be decoded: nothing becomes longer than it may,
/// and in pieces it is the same as at once.
pub(crate) fn fuzz(data: &[u8]) {
    let [kind, length, data @ ..] = data else { return };
    let kind = match kind % 3 {
        0 => DecoderKind::Gzip { window_bits: 16 + 15, ratio: 100 },
        1 => DecoderKind::Brotli,
        _ => DecoderKind::Zstd { dictionaries: Vec::new() },
    };
    let library = DecoderLibrary { chunk: 4096, kind };
    let decode = |decoder: &mut Decoder, piece: &[u8]| {
        let (out, fault) = decoder.decode(piece);
        let most = piece.len().saturating_mul(100).max(ZSTD_MOST) + 2 * library.chunk;
        assert!(out.len() <= most, "{} of {}", out.len(), piece.len());
        (out, fault)
    };
    let (whole, fault) = decode(&mut library.decoder(), data);
    let (mut decoder, mut joined) = (library.decoder(), Vec::new());
    for piece in data.chunks(usize::from(*length).max(1)) {
        let (out, fault) = decode(&mut decoder, piece);
        joined.extend_from_slice(&out);
        if fault.is_some() || joined.len() > 16 * ZSTD_MOST {
            return;
        }
    }
    // Brotli may keep back what is made until there is more to read: with a stream that is cut off, it is kept.
    let same = joined == whole || (matches!(library.kind, DecoderKind::Brotli) && joined.starts_with(&whole));
    assert!(fault.is_some() || same, "{} at once, {} in pieces", whole.len(), joined.len());
}
