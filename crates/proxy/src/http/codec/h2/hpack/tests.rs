//! The examples of RFC 7541 appendix C, and the two halves against each other.

use proptest::prelude::{any, proptest};

use super::decoder::{CompressionError, Decoder};
use super::encoder::Encoder;
use super::{read_integer, write_integer};
use crate::http::headers::Known;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a digit") as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, CompressionError> {
    let mut fields = Vec::new();
    decoder.decode(block, |field| {
        let (name, value) = (String::from_utf8_lossy(field.name), String::from_utf8_lossy(field.value));
        fields.push(format!("{name}: {value}"));
    })?;
    Ok(fields)
}

#[test]
fn integers() {
    // C.1.1 to C.1.3.
    for (value, bits, code) in [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")] {
        let mut out = Vec::new();
        write_integer(&mut out, value, bits, 0);
        assert_eq!(out, bytes(code));
        assert_eq!(read_integer(&out, bits), Some((value, &[][..])));
    }
    assert_eq!(read_integer(&bytes("1fffffffffff01"), 5), None, "too large");
    assert_eq!(read_integer(&bytes("1f9a"), 5), None, "cut off");
}

#[test]
fn literal_representations() {
    // C.2.1 to C.2.4.
    for (code, field, size) in [
        ("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key: custom-header", 55),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", 0),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", 0),
        ("82", ":method: GET", 0),
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(decode(&mut decoder, &bytes(code)), Ok(vec![field.to_owned()]));
        assert_eq!(decoder.table().0, size);
    }
}

/// The dynamic table: size, number of entries, newest entry.
#[derive(Debug, PartialEq)]
struct Table<'a>(usize, usize, &'a str);

/// Blocks of one connection, with the fields and the table behind each.
fn check(limit: usize, blocks: &[(&str, &[&str], Table<'_>)]) {
    let mut decoder = Decoder::with_limit(limit);
    for (code, fields, expected) in blocks {
        assert_eq!(decode(&mut decoder, &bytes(code)).expect("a valid block"), *fields);
        let (size, entries) = decoder.table();
        assert_eq!(Table(size, entries.len(), &entries[0]), *expected);
    }
}

const REQUESTS: [&[&str]; 3] = [
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"],
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"],
    &[
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ],
];

#[test]
fn requests_without_huffman() {
    // C.3.1 to C.3.3.
    check(
        4096,
        &[
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                REQUESTS[0],
                Table(57, 1, ":authority: www.example.com"),
            ),
            ("8286 84be 5808 6e6f 2d63 6163 6865", REQUESTS[1], Table(110, 2, "cache-control: no-cache")),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                REQUESTS[2],
                Table(164, 3, "custom-key: custom-value"),
            ),
        ],
    );
}

#[test]
fn requests_with_huffman() {
    // C.4.1 to C.4.3.
    check(
        4096,
        &[
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                REQUESTS[0],
                Table(57, 1, ":authority: www.example.com"),
            ),
            ("8286 84be 5886 a8eb 1064 9cbf", REQUESTS[1], Table(110, 2, "cache-control: no-cache")),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                REQUESTS[2],
                Table(164, 3, "custom-key: custom-value"),
            ),
        ],
    );
}

const RESPONSES: [&[&str]; 3] = [
    &[
        ":status: 302",
        "cache-control: private",
        "date: Mon, 21 Oct 2013 20:13:21 GMT",
        "location: https://www.example.com",
    ],
    &[
        ":status: 307",
        "cache-control: private",
        "date: Mon, 21 Oct 2013 20:13:21 GMT",
        "location: https://www.example.com",
    ],
    &[
        ":status: 200",
        "cache-control: private",
        "date: Mon, 21 Oct 2013 20:13:22 GMT",
        "location: https://www.example.com",
        "content-encoding: gzip",
        "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    ],
];

#[test]
fn responses_without_huffman() {
    // C.5.1 to C.5.3, with a table of 256 bytes.
    check(
        256,
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a \
                 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                RESPONSES[0],
                Table(222, 4, "location: https://www.example.com"),
            ),
            ("4803 3330 37c1 c0bf", RESPONSES[1], Table(222, 4, ":status: 307")),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 \
                 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 \
                 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
                RESPONSES[2],
                Table(215, 3, "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
            ),
        ],
    );
}

#[test]
fn responses_with_huffman() {
    // C.6.1 to C.6.3.
    check(
        256,
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e \
                 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                RESPONSES[0],
                Table(222, 4, "location: https://www.example.com"),
            ),
            ("4883 640e ffc1 c0bf", RESPONSES[1], Table(222, 4, ":status: 307")),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 \
                 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed \
                 4ee5 b106 3d50 07",
                RESPONSES[2],
                Table(215, 3, "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
            ),
        ],
    );
}

#[test]
fn blocks_that_cannot_be_decoded() {
    for (code, why) in [
        ("80", "index 0"),
        ("be", "an index beyond the table"),
        ("7f 00 01 61", "the same for a name"),
        ("41", "no value"),
        ("41 05 61", "a value cut off"),
        ("41 81 00", "padding of zeros"),
        ("3f e2 1f", "a table above the limit"),
        ("82 20", "a table size behind a field"),
        ("ff ff ff ff ff ff", "an index without end"),
    ] {
        assert_eq!(decode(&mut Decoder::default(), &bytes(code)), Err(CompressionError), "{why}");
    }
}

#[test]
fn a_lowered_table_must_be_confirmed() {
    let mut decoder = Decoder::default();
    decoder.acknowledged(100);
    assert_eq!(decode(&mut decoder, &bytes("82")), Err(CompressionError));
    let mut decoder = Decoder::default();
    decoder.acknowledged(100);
    assert!(decode(&mut decoder, &bytes("3f 45 82")).is_ok());
    assert_eq!(decode(&mut decoder, &bytes("3f 46")), Err(CompressionError), "101 bytes");
}

fn encode(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.begin(&mut out);
    for (name, value) in fields {
        encoder.field(&mut out, Known::find(name.as_bytes()), name.as_bytes(), value.as_bytes());
    }
    out
}

#[test]
fn what_comes_again_becomes_one_byte() {
    let mut encoder = Encoder::new(4096, true);
    let fields = [(":method", "GET"), (":path", "/a.b/C"), (":authority", "up:80"), ("x-own", "1")];
    let lengths: Vec<usize> = (0..4).map(|_| encode(&mut encoder, &fields).len()).collect();
    assert!(lengths[0] >= lengths[1] && lengths[1] > lengths[2], "{lengths:?}");
    assert_eq!(lengths[2..], [4, 4]);
}

#[test]
fn what_does_not_come_again_fills_no_table() {
    let mut encoder = Encoder::new(4096, true);
    for number in 0..1000 {
        encode(&mut encoder, &[("x-request-id", &format!("{number}-{number}"))]);
    }
    assert_eq!(encoder.entries(), 1, "its name only");
}

#[test]
fn secrets_are_never_indexed() {
    let mut encoder = Encoder::new(4096, false);
    for _ in 0..3 {
        let block = encode(&mut encoder, &[("authorization", "Basic eA=="), ("cookie", "a=1")]);
        assert_eq!((block[0], block[1]), (0x1f, 23 - 15));
    }
    assert_eq!(encoder.entries(), 0);
    for _ in 0..3 {
        encode(&mut encoder, &[("cookie", "session=0123456789abcdef0123456789abcdef")]);
    }
    assert_eq!(encoder.entries(), 1, "a long cookie cannot be guessed");
}

#[test]
fn table_sizes_are_announced() {
    let mut encoder = Encoder::new(4096, false);
    encode(&mut encoder, &[("x-a", "1")]);
    encoder.allow(0);
    assert_eq!(encoder.entries(), 0);
    encoder.allow(8192);
    // Down to 0, then to what is wanted.
    assert_eq!(encode(&mut encoder, &[(":method", "GET")]), bytes("20 3fe11f 82"));
    assert_eq!(encode(&mut encoder, &[(":method", "GET")]), bytes("82"));
    let mut encoder = Encoder::new(100, false);
    assert_eq!(encode(&mut encoder, &[(":method", "GET")]), bytes("3f45 82"));
}

proptest! {
    #[test]
    fn the_decoder_reads_what_the_encoder_writes(
        messages in proptest::collection::vec(
            proptest::collection::vec(("[a-c]{1,3}|:path|cookie|via|date", "[ -~]{0,30}|x|y"), 0..8),
            1..30,
        ),
        sizes in proptest::collection::vec(0usize..5000, 30),
        huffman: bool,
    ) {
        let mut encoder = Encoder::new(4096, huffman);
        let mut decoder = Decoder::default();
        for (message, size) in messages.iter().zip(sizes) {
            if size % 3 == 0 {
                encoder.allow(size.min(4096));
            }
            let fields: Vec<(&str, &str)> = message.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let block = encode(&mut encoder, &fields);
            let expected: Vec<String> = message.iter().map(|(n, v)| format!("{n}: {v}")).collect();
            assert_eq!(decode(&mut decoder, &block), Ok(expected));
        }
    }

    #[test]
    fn no_block_panics(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 1..5)) {
        let mut decoder = Decoder::default();
        for block in blocks {
            if decode(&mut decoder, &block).is_err() {
                break;
            }
        }
    }
}
