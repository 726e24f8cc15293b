//! Lowering of compression libraries.

use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::compression::brotli::compressor::v3 as brotli;
use leno_api::proto::envoy::extensions::compression::brotli::decompressor::v3 as unbrotli;
use leno_api::proto::envoy::extensions::compression::gzip::compressor::v3 as gzip;
use leno_api::proto::envoy::extensions::compression::gzip::decompressor::v3 as gunzip;
use leno_api::proto::envoy::extensions::compression::zstd::compressor::v3 as zstd;
use leno_api::proto::envoy::extensions::compression::zstd::decompressor::v3 as unzstd;
use zlib_rs::{DeflateConfig, Method, Strategy as GzipStrategy};
use zstd_safe::Strategy as ZstdStrategy;

use super::decoder::{DecoderKind, DecoderLibrary};
use super::{Brotli, Library, Mode, Settings, Zstd};
use crate::config::address::data_source;
use crate::config::lower::Lower;

/// Lowers a `compressor_library`; gives its name too.
pub(crate) fn library(proto: core::TypedExtensionConfig, at: &mut Lower) -> Option<(String, Arc<Library>)> {
    let core::TypedExtensionConfig { name, typed_config } = proto;
    let library = at.required("typed_config", typed_config, |any, at| {
        let any = at.extension(any)?;
        if leno_api::any::is::<gzip::Gzip>(&any) {
            lower_gzip(at.unpack(&any)?, at)
        } else if leno_api::any::is::<brotli::Brotli>(&any) {
            lower_brotli(at.unpack(&any)?, at)
        } else if leno_api::any::is::<zstd::Zstd>(&any) {
            lower_zstd(at.unpack(&any)?, at)
        } else {
            at.unsupported_extension(&name, &any.type_url);
            None
        }
    })?;
    Some((name, Arc::new(library)))
}

/// Lowers a `decompressor_library`; gives its name too.
pub(crate) fn decoder_library(
    proto: core::TypedExtensionConfig,
    at: &mut Lower,
) -> Option<(String, DecoderLibrary)> {
    let core::TypedExtensionConfig { name, typed_config } = proto;
    let library = at.required("typed_config", typed_config, |any, at| {
        let any = at.extension(any)?;
        if leno_api::any::is::<gunzip::Gzip>(&any) {
            let gunzip::Gzip { window_bits, chunk_size, max_inflate_ratio } = at.unpack(&any)?;
            let kind = DecoderKind::Gzip {
                // With 16 the frame is that of gzip.
                window_bits: 16 + at.narrow::<_, u8>("window_bits", window_bits.unwrap_or(15))?,
                ratio: max_inflate_ratio.unwrap_or(100) as usize,
            };
            Some(DecoderLibrary { chunk: chunk(chunk_size), kind })
        } else if leno_api::any::is::<unbrotli::Brotli>(&any) {
            // How a decoder comes by its window is its own business.
            let unbrotli::Brotli { disable_ring_buffer_reallocation: _, chunk_size } = at.unpack(&any)?;
            Some(DecoderLibrary { chunk: chunk(chunk_size), kind: DecoderKind::Brotli })
        } else if leno_api::any::is::<unzstd::Zstd>(&any) {
            let unzstd::Zstd { dictionaries, chunk_size } = at.unpack(&any)?;
            let dictionaries = at.each("dictionaries", dictionaries, |source, at| {
                // Envoy reads such a file anew whenever it changes.
                let file = matches!(source.specifier, Some(core::data_source::Specifier::Filename(_)));
                at.unsupported("filename", file);
                let dictionary = if file { None } else { data_source(source, at) }?;
                let Some(id) = zstd_safe::get_dict_id_from_dict(&dictionary) else {
                    at.error("Illegal Zstd dictionary");
                    return None;
                };
                Some((id.get(), dictionary))
            });
            Some(DecoderLibrary { chunk: chunk(chunk_size), kind: DecoderKind::Zstd { dictionaries } })
        } else {
            at.unsupported_extension(&name, &any.type_url);
            None
        }
    })?;
    Some((name, library))
}

/// `chunk_size`.
fn chunk(size: Option<u32>) -> usize {
    size.unwrap_or(4096) as usize
}

fn lower_gzip(proto: gzip::Gzip, at: &mut Lower) -> Option<Library> {
    let gzip::Gzip { memory_level, compression_level, compression_strategy, window_bits, chunk_size } = proto;
    use gzip::gzip::CompressionStrategy as Strategy;
    let level = match compression_level {
        // zlib's own default.
        0 => 6,
        level => level,
    };
    let strategy = match at.value("compression_strategy", compression_strategy)? {
        Strategy::DefaultStrategy => GzipStrategy::Default,
        Strategy::Filtered => GzipStrategy::Filtered,
        Strategy::HuffmanOnly => GzipStrategy::HuffmanOnly,
        Strategy::Rle => GzipStrategy::Rle,
        Strategy::Fixed => GzipStrategy::Fixed,
    };
    let config = DeflateConfig {
        level,
        method: Method::Deflated,
        // With 16 the frame is that of gzip.
        window_bits: 16 + at.narrow::<_, i32>("window_bits", window_bits.unwrap_or(12))?,
        mem_level: at.narrow("memory_level", memory_level.unwrap_or(5))?,
        strategy,
    };
    Some(Library { chunk: chunk(chunk_size), settings: Settings::Gzip(config) })
}

fn lower_brotli(proto: brotli::Brotli, at: &mut Lower) -> Option<Library> {
    let brotli::Brotli {
        quality,
        encoder_mode,
        window_bits,
        input_block_bits,
        chunk_size,
        disable_literal_context_modeling,
    } = proto;
    use brotli::brotli::EncoderMode;
    let settings = Brotli {
        quality: at.narrow("quality", quality.unwrap_or(3))?,
        mode: match at.value("encoder_mode", encoder_mode)? {
            EncoderMode::Default | EncoderMode::Generic => Mode::Generic,
            EncoderMode::Text => Mode::Text,
            EncoderMode::Font => Mode::Font,
        },
        window_bits: at.narrow("window_bits", window_bits.unwrap_or(18))?,
        block_bits: at.narrow("input_block_bits", input_block_bits.unwrap_or(24))?,
        no_context: disable_literal_context_modeling,
    };
    Some(Library { chunk: chunk(chunk_size), settings: Settings::Brotli(settings) })
}

fn lower_zstd(proto: zstd::Zstd, at: &mut Lower) -> Option<Library> {
    let zstd::Zstd { compression_level, enable_checksum, strategy, dictionary, chunk_size } = proto;
    use zstd::zstd::Strategy;
    let settings = Zstd {
        level: at.narrow("compression_level", compression_level.filter(|level| *level != 0).unwrap_or(3))?,
        checksum: enable_checksum,
        strategy: match at.value("strategy", strategy)? {
            Strategy::Default => None,
            Strategy::Fast => Some(ZstdStrategy::ZSTD_fast),
            Strategy::Dfast => Some(ZstdStrategy::ZSTD_dfast),
            Strategy::Greedy => Some(ZstdStrategy::ZSTD_greedy),
            Strategy::Lazy => Some(ZstdStrategy::ZSTD_lazy),
            Strategy::Lazy2 => Some(ZstdStrategy::ZSTD_lazy2),
            Strategy::Btlazy2 => Some(ZstdStrategy::ZSTD_btlazy2),
            Strategy::Btopt => Some(ZstdStrategy::ZSTD_btopt),
            Strategy::Btultra => Some(ZstdStrategy::ZSTD_btultra),
            Strategy::Btultra2 => Some(ZstdStrategy::ZSTD_btultra2),
        },
        dictionary: at.optional("dictionary", dictionary, |source, at| {
            // Envoy reads such a file anew whenever it changes.
            let file = matches!(source.specifier, Some(core::data_source::Specifier::Filename(_)));
            at.unsupported("filename", file);
            if file { None } else { data_source(source, at) }
        }),
    };
    Some(Library { chunk: chunk(chunk_size), settings: Settings::Zstd(settings) })
}
