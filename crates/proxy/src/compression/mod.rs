//! Compression libraries (`envoy.compression.*`): gzip, brotli and zstd as encoders of a stream
//! that comes in pieces. Each piece is flushed, so that who reads the stream has all of what came so
//! far, as with Envoy. `decoder` is the other way.

pub(crate) mod config;
pub(crate) mod decoder;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Write as _;

use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, Strategy};

/// The base-two logarithm of zstd's largest window in HTTP (RFC 9659 section 3).
const ZSTD_WINDOW_BITS: u32 = 23;

/// A library as configured, which makes encoders.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    /// `chunk_size`: how much room an encoder takes at a time, in bytes.
    chunk: usize,
    settings: Settings,
}

#[derive(Clone, Debug)]
enum Settings {
    Gzip(DeflateConfig),
    Brotli(Brotli),
    Zstd(Zstd),
}

/// Brotli.
#[derive(Clone, Copy, Debug)]
struct Brotli {
    quality: i32,
    mode: Mode,
    /// Base-two logarithms of the sizes of window and input block.
    window_bits: i32,
    block_bits: i32,
    /// `disable_literal_context_modeling`.
    no_context: bool,
}

/// What brotli's input is.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Generic,
    Text,
    Font,
}

/// Zstd.
#[derive(Clone, Debug)]
struct Zstd {
    level: i32,
    checksum: bool,
    strategy: Option<Strategy>,
    dictionary: Option<Bytes>,
}

impl Library {
    /// The `content-encoding` of what it makes.
    pub(crate) fn encoding(&self) -> &'static str {
        match self.settings {
            Settings::Gzip(_) => "gzip",
            Settings::Brotli(_) => "br",
            Settings::Zstd(_) => "zstd",
        }
    }

    /// Its part of the names of stats.
    pub(crate) fn stat_name(&self) -> &'static str {
        match self.settings {
            Settings::Gzip(_) => "gzip",
            Settings::Brotli(_) => "brotli",
            Settings::Zstd(_) => "zstd",
        }
    }

    /// An encoder for one stream.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn encoder(&self) -> Result<Encoder, Failed> {
        let state = match &self.settings {
            Settings::Gzip(config) => State::Gzip(Box::new(Deflate::new_with_config(*config))),
            Settings::Brotli(brotli) => {
                let writer = CompressorWriter::with_params(Vec::new(), self.chunk, &brotli.params());
                State::Brotli(Some(Box::new(writer)))
            }
            Settings::Zstd(zstd) => State::Zstd(zstd.context()?),
        };
        Ok(Encoder { chunk: self.chunk, state })
    }
}

impl Brotli {
    fn params(self) -> BrotliEncoderParams {
        use brotli::enc::backward_references::BrotliEncoderMode;
        BrotliEncoderParams {
            quality: self.quality,
            lgwin: self.window_bits,
            lgblock: self.block_bits,
            mode: match self.mode {
                Mode::Generic => BrotliEncoderMode::BROTLI_MODE_GENERIC,
                Mode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
                Mode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
            },
            disable_literal_context_modeling: i32::from(self.no_context),
            ..BrotliEncoderParams::default()
        }
    }
}

impl Zstd {
    fn context(&self) -> Result<CCtx<'static>, Failed> {
        let mut context = CCtx::try_create().ok_or(Failed)?;
        context.set_parameter(CParameter::CompressionLevel(self.level))?;
        if self.level > 19 {
            // Deviation: Envoy's windows are larger then, which clients refuse.
            context.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_BITS))?;
        }
        context.set_parameter(CParameter::ChecksumFlag(self.checksum))?;
        if let Some(strategy) = self.strategy {
            context.set_parameter(CParameter::Strategy(strategy))?;
        }
        if let Some(dictionary) = &self.dictionary {
            context.load_dictionary(dictionary)?;
        }
        Ok(context)
    }
}

/// Encodes one stream.
pub(crate) struct Encoder {
    chunk: usize,
    state: State,
}

enum State {
    Gzip(Box<Deflate>),
    /// `None`: it has ended.
    Brotli(Option<Box<CompressorWriter<Vec<u8>>>>),
    Zstd(CCtx<'static>),
}

/// A stream that cannot go on: there is no memory, or its encoder was used after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed;

impl From<zstd_safe::ErrorCode> for Failed {
    fn from(_: zstd_safe::ErrorCode) -> Self {
        Failed
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// What a piece becomes, flushed; `end`: it is the last.
    ///
    /// # Errors
    /// There is no memory, or the stream has ended before.
    pub(crate) fn encode(&mut self, piece: &[u8], end: bool) -> Result<Bytes, Failed> {
        if piece.is_empty() && !end {
            return Ok(Bytes::new());
        }
        let mut out = Vec::new();
        match &mut self.state {
            State::Gzip(deflate) => gzip(deflate, piece, end, self.chunk, &mut out)?,
            State::Brotli(state) => {
                let mut writer = state.take().ok_or(Failed)?;
                writer.write_all(piece).map_err(|_| Failed)?;
                if end {
                    out = writer.into_inner();
                } else {
                    writer.flush().map_err(|_| Failed)?;
                    out = std::mem::take(writer.get_mut());
                    *state = Some(writer);
                }
            }
            State::Zstd(context) => zstd(context, piece, end, self.chunk, &mut out)?,
        }
        Ok(out.into())
    }
}

fn gzip(
    deflate: &mut Deflate,
    mut piece: &[u8],
    end: bool,
    chunk: usize,
    out: &mut Vec<u8>,
) -> Result<(), Failed> {
    let flush = if end { DeflateFlush::Finish } else { DeflateFlush::SyncFlush };
    loop {
        let (start, taken, made) = (out.len(), deflate.total_in(), deflate.total_out());
        out.resize(start + chunk, 0);
        let status = deflate.compress(piece, &mut out[start..], flush).map_err(|_| Failed)?;
        let count = |after: u64, before: u64| usize::try_from(after - before).map_err(|_| Failed);
        let (taken, made) = (count(deflate.total_in(), taken)?, count(deflate.total_out(), made)?);
        out.truncate(start + made);
        piece = piece.get(taken..).ok_or(Failed)?;
        match status {
            Status::StreamEnd => return Ok(()),
            // Room was left: there is no more.
            Status::Ok | Status::BufError if made < chunk && !end => return Ok(()),
            Status::Ok | Status::BufError if made == 0 && taken == 0 => return Err(Failed),
            Status::Ok | Status::BufError => {}
        }
    }
}

fn zstd(
    context: &mut CCtx<'static>,
    piece: &[u8],
    end: bool,
    chunk: usize,
    out: &mut Vec<u8>,
) -> Result<(), Failed> {
    let mut input = InBuffer::around(piece);
    while input.pos() < piece.len() {
        out.reserve(chunk);
        let start = out.len();
        context.compress_stream(&mut OutBuffer::around_pos(out, start), &mut input)?;
    }
    loop {
        out.reserve(chunk);
        let start = out.len();
        let mut output = OutBuffer::around_pos(out, start);
        let left = if end { context.end_stream(&mut output)? } else { context.flush_stream(&mut output)? };
        if left == 0 {
            return Ok(());
        }
    }
}
