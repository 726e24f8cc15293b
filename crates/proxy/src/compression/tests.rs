//! What is encoded in pieces is what was put in, and has come over with each piece.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use leno_api::proto::envoy::config::core::v3::TypedExtensionConfig;
use zlib_rs::{Inflate, InflateFlush};

use super::Library;
use super::config::{decoder_library, library};
use super::decoder::{DecoderKind, DecoderLibrary, Fault};
use crate::config::lower::Lower;

/// The library of this configuration, as YAML.
fn lowered(kind: &str, fields: &str) -> Result<Arc<Library>, String> {
    let text = format!(
        "name: lib\ntyped_config: {{\"@type\": type.googleapis.com/envoy.extensions.compression.{kind}{}{fields}}}",
        if fields.is_empty() { "" } else { ", " }
    );
    let proto: TypedExtensionConfig = leno_api::decode_text(&text, "library").expect("it is a message");
    let lowered = Lower::resource(|at| library(proto, at));
    lowered.map(|(_, library)| library).map_err(|rejected| rejected.to_string())
}

/// What the beginning of an encoded stream says.
fn decoded(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 1 << 20];
    let length = match encoding {
        "gzip" => {
            let mut inflate = Inflate::new(true, 16 + 15);
            inflate.decompress(bytes, &mut out, InflateFlush::SyncFlush).expect("gzip");
            usize::try_from(inflate.total_out()).expect("short")
        }
        "br" => {
            let mut length = 0;
            let mut reader = brotli::Decompressor::new(bytes, 4096);
            // A stream that has not ended yet is an error at its end.
            while let Ok(read @ 1..) = reader.read(&mut out[length..]) {
                length += read;
            }
            length
        }
        _ => {
            let mut context = zstd_safe::DCtx::create();
            let mut output = zstd_safe::OutBuffer::around(&mut out[..]);
            context.decompress_stream(&mut output, &mut zstd_safe::InBuffer::around(bytes)).expect("zstd");
            output.pos()
        }
    };
    out.truncate(length);
    out
}

#[test]
fn pieces_come_over_as_they_were() {
    let kinds = [
        ("gzip.compressor.v3.Gzip", ""),
        (
            "gzip.compressor.v3.Gzip",
            "memory_level: 9, window_bits: 15, compression_level: BEST_COMPRESSION, chunk_size: 65536",
        ),
        (
            "gzip.compressor.v3.Gzip",
            "memory_level: 1, window_bits: 9, compression_level: BEST_SPEED, compression_strategy: HUFFMAN_ONLY",
        ),
        ("brotli.compressor.v3.Brotli", ""),
        (
            "brotli.compressor.v3.Brotli",
            "quality: 0, window_bits: 10, input_block_bits: 16, encoder_mode: TEXT",
        ),
        (
            "brotli.compressor.v3.Brotli",
            "quality: 11, window_bits: 24, disable_literal_context_modeling: true",
        ),
        ("zstd.compressor.v3.Zstd", ""),
        ("zstd.compressor.v3.Zstd", "compression_level: 19, enable_checksum: true, strategy: BTULTRA2"),
    ];
    // Text that compresses, and bytes that do not, longer than any chunk.
    let text = "metric{label=\"value\"} 1\n".repeat(800);
    let mut seed = 7_u32;
    let noise: Vec<u8> = (0..90_000)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        })
        .collect();
    for (kind, fields) in kinds {
        let library = lowered(kind, fields).expect("it is taken");
        for pieces in [
            vec![text.as_bytes()],
            vec![&noise[..]],
            text.as_bytes().chunks(1000).collect(),
            vec![b"a", b"", &noise[..4096], b"b", b""],
            vec![b""],
        ] {
            let mut encoder = library.encoder().expect("an encoder");
            let (mut wire, mut sent) = (Vec::new(), Vec::new());
            for (index, piece) in pieces.iter().enumerate() {
                let end = index + 1 == pieces.len();
                wire.extend_from_slice(&encoder.encode(piece, end).expect("it goes on"));
                sent.extend_from_slice(piece);
                let got = decoded(library.encoding(), &wire);
                assert!(got == sent, "{kind} {fields}: {} of {} after {index}", got.len(), sent.len());
            }
        }
        let mut encoder = library.encoder().expect("an encoder");
        let short = encoder.encode(text.as_bytes(), true).expect("it ends").len();
        // Huffman codes alone find no repetition.
        let bound = if fields.contains("HUFFMAN") { text.len() } else { text.len() / 10 };
        assert!(short < bound, "{kind} {fields}: {short} of {}", text.len());
    }
}

#[test]
fn a_dictionary_is_used() {
    let plain = lowered("zstd.compressor.v3.Zstd", "").expect("it is taken");
    let with =
        lowered("zstd.compressor.v3.Zstd", "dictionary: {inline_string: some text that all know well}");
    let with = with.expect("it is taken");
    let length = |library: &Library| {
        let mut encoder = library.encoder().expect("an encoder");
        encoder.encode(b"some text that all know well", true).expect("it ends").len()
    };
    assert!(length(&with) < length(&plain));
}

#[test]
fn what_is_refused() {
    let check = |kind: &str, fields: &str, expected: &str| {
        let refused = lowered(kind, fields).expect_err("it is refused");
        assert!(refused.contains(expected), "{refused}");
    };
    check("zstd.compressor.v3.Zstd", "dictionary: {filename: /d}", "dictionary.filename: not supported yet");
    check("gzip.decompressor.v3.Gzip", "", "is not supported yet");
}

/// The decoder of this configuration, as YAML.
fn undoing(kind: &str, fields: &str) -> Result<DecoderLibrary, String> {
    let text = format!(
        "name: lib\ntyped_config: {{\"@type\": type.googleapis.com/envoy.extensions.compression.{kind}{}{fields}}}",
        if fields.is_empty() { "" } else { ", " }
    );
    let proto: TypedExtensionConfig = leno_api::decode_text(&text, "library").expect("it is a message");
    let lowered = Lower::resource(|at| decoder_library(proto, at));
    lowered.map(|(_, library)| library).map_err(|rejected| rejected.to_string())
}

const BOTH_WAYS: [(&str, &str); 3] = [
    ("gzip.compressor.v3.Gzip", "gzip.decompressor.v3.Gzip"),
    ("brotli.compressor.v3.Brotli", "brotli.decompressor.v3.Brotli"),
    ("zstd.compressor.v3.Zstd", "zstd.decompressor.v3.Zstd"),
];

#[test]
fn what_was_encoded_is_decoded_however_it_is_cut() {
    let text: String = (0..20_000).map(|number| format!("{number} ")).collect();
    for (there, back) in BOTH_WAYS {
        let library = lowered(there, "").expect("it is taken");
        let encoded = library.encoder().and_then(|mut encoder| encoder.encode(text.as_bytes(), true));
        let encoded = encoded.expect("it is encoded");
        let undoing = undoing(back, "").expect("it is taken");
        assert_eq!(undoing.encoding(), library.encoding());
        for size in [1, 7, 1000, encoded.len()] {
            let mut decoder = undoing.decoder();
            let mut decoded = Vec::new();
            for piece in encoded.chunks(size) {
                let (part, fault) = decoder.decode(piece);
                assert_eq!(fault, None, "{back} in pieces of {size}");
                decoded.extend_from_slice(&part);
            }
            assert!(decoded == text.as_bytes(), "{back} in pieces of {size}");
        }
    }
}

#[test]
fn bombs_and_nonsense_end_what_comes_of_a_piece() {
    let bomb = vec![b'0'; 5 << 20];
    for ((there, back), fault) in
        BOTH_WAYS.into_iter().zip([Fault::ZlibData, Fault::Brotli, Fault::ZstdGeneric])
    {
        let encoded = lowered(there, "").expect("it is taken").encoder();
        let encoded = encoded.and_then(|mut encoder| encoder.encode(&bomb, true)).expect("it is encoded");
        let undoing = undoing(back, "").expect("it is taken");
        let (decoded, found) = undoing.decoder().decode(&encoded);
        assert_eq!(found, Some(fault), "{back}");
        let limit = (encoded.len() * 100).max(1 << 20) + (1 << 18);
        assert!(decoded.len() <= limit, "{back}: {} of {}", decoded.len(), encoded.len());
        assert!(decoded.iter().all(|byte| *byte == b'0'));
        assert_eq!(undoing.decoder().decode(b"no such thing at all").1, Some(fault), "{back}");
        assert_eq!(undoing.decoder().decode(b"").1, None);
    }
}

/// Whoever sends a few bytes must not make us hold a window of many megabytes.
#[test]
fn windows_of_zstd_are_those_of_http() {
    let library = DecoderLibrary { chunk: 4096, kind: DecoderKind::Zstd { dictionaries: Vec::new() } };
    // A frame with such a window, and in it one block, "a" as it is.
    let frame = |bits: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (bits - 10) << 3, 9, 0, 0, b'a'];
    assert_eq!(library.decoder().decode(&frame(23)), (Bytes::from("a"), None));
    let (out, fault) = library.decoder().decode(&frame(24));
    assert!(out.is_empty() && fault == Some(Fault::ZstdGeneric), "{out:?} {fault:?}");
    // Nor do we ask others for that.
    for level in [19, 22] {
        let library =
            lowered("zstd.compressor.v3.Zstd", &format!("compression_level: {level}")).expect("taken");
        let wire = library.encoder().expect("an encoder").encode(&[b'a'; 100_000], false).expect("encoded");
        assert!(wire[4] & 0x20 == 0 && wire[5] >> 3 <= 13, "{:x?}", &wire[..6]);
    }
}
