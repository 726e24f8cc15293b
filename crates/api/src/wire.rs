//! The protobuf wire format: reading a message's fields without a Rust type, and writing them.

use crate::schema::{Field, Kind, Message};

/// How deep messages may nest, as in prost and the C++ implementation.
pub(crate) const MAX_DEPTH: usize = 100;

/// Bytes that are not protobuf, or not of the type that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A value as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Raw<'w> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'w [u8]),
}

/// A value of a scalar kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar<'w> {
    Signed(i64),
    Unsigned(u64),
    Double(f64),
    Float(f32),
    Bool(bool),
    Enum(i32),
    String(&'w str),
    Bytes(&'w [u8]),
}

/// A field of a message as set on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'w> {
    pub(crate) field: Field,
    pub(crate) raw: Raw<'w>,
}

/// What is set in a message.
#[derive(Debug, Default)]
pub(crate) struct Fields<'w> {
    /// By field number; the occurrences of one field in the order of the wire.
    pub(crate) known: Vec<Set<'w>>,
    /// Numbers that the schema does not have.
    pub(crate) unknown: Vec<u32>,
}

impl<'w> Fields<'w> {
    /// Splits a message into its fields. A oneof keeps only the field that was set last.
    pub(crate) fn read(message: Message, wire: &'w [u8]) -> Result<Fields<'w>, Malformed> {
        let mut fields = Fields::default();
        let mut reader = Reader(wire);
        while let Some((number, raw)) = reader.next()? {
            match message.field(number) {
                Some(field) => fields.known.push(Set { field, raw }),
                None => fields.unknown.push(number),
            }
        }
        if !fields.known.is_sorted_by_key(|set| set.field) {
            fields.keep_last_of_oneofs();
            fields.known.sort_by_key(|set| set.field);
        } else {
            fields.keep_last_of_oneofs();
        }
        Ok(fields)
    }

    fn keep_last_of_oneofs(&mut self) {
        let overridden = |index: usize, set: &Set<'_>| {
            set.field.oneof().is_some_and(|oneof| {
                self.known
                    .iter()
                    .skip(index + 1)
                    .any(|later| later.field.oneof() == Some(oneof) && later.field != set.field)
            })
        };
        let lost: Vec<bool> =
            self.known.iter().enumerate().map(|(index, set)| overridden(index, set)).collect();
        if lost.contains(&true) {
            let mut lost = lost.into_iter();
            self.known.retain(|_| !lost.next().unwrap_or(false));
        }
    }

    /// The fields that are set, each with all its occurrences.
    pub(crate) fn by_field(&self) -> impl Iterator<Item = &[Set<'w>]> {
        self.known.chunk_by(|a, b| a.field == b.field)
    }
}

/// Several occurrences of a message field stand for one message: its parts, concatenated.
pub(crate) fn join_message<'w>(sets: &[Set<'w>]) -> Result<std::borrow::Cow<'w, [u8]>, Malformed> {
    match sets {
        [one] => Ok(std::borrow::Cow::Borrowed(one.raw.bytes()?)),
        many => {
            let mut joined = Vec::new();
            for set in many {
                joined.extend_from_slice(set.raw.bytes()?);
            }
            Ok(std::borrow::Cow::Owned(joined))
        }
    }
}

impl<'w> Raw<'w> {
    pub(crate) fn bytes(self) -> Result<&'w [u8], Malformed> {
        match self {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// The value as one of a scalar kind.
    pub(crate) fn scalar(self, kind: Kind) -> Result<Scalar<'w>, Malformed> {
        let scalar = match (kind, self) {
            (Kind::Int32, Raw::Varint(value)) => Scalar::Signed(i64::from(value as i32)),
            (Kind::Int64, Raw::Varint(value)) => Scalar::Signed(value.cast_signed()),
            (Kind::Uint32, Raw::Varint(value)) => Scalar::Unsigned(u64::from(value as u32)),
            (Kind::Uint64, Raw::Varint(value)) | (Kind::Fixed64, Raw::Fixed64(value)) => {
                Scalar::Unsigned(value)
            }
            (Kind::Sint32, Raw::Varint(value)) => Scalar::Signed(i64::from(unzigzag(value) as i32)),
            (Kind::Sint64, Raw::Varint(value)) => Scalar::Signed(unzigzag(value)),
            (Kind::Bool, Raw::Varint(value)) => Scalar::Bool(value != 0),
            (Kind::Enum(_), Raw::Varint(value)) => Scalar::Enum(value as i32),
            (Kind::Fixed32, Raw::Fixed32(value)) => Scalar::Unsigned(u64::from(value)),
            (Kind::Sfixed32, Raw::Fixed32(value)) => Scalar::Signed(i64::from(value.cast_signed())),
            (Kind::Sfixed64, Raw::Fixed64(value)) => Scalar::Signed(value.cast_signed()),
            (Kind::Float, Raw::Fixed32(value)) => Scalar::Float(f32::from_bits(value)),
            (Kind::Double, Raw::Fixed64(value)) => Scalar::Double(f64::from_bits(value)),
            (Kind::String, Raw::Bytes(value)) => {
                Scalar::String(std::str::from_utf8(value).map_err(|_| Malformed)?)
            }
            (Kind::Bytes, Raw::Bytes(value)) => Scalar::Bytes(value),
            _ => return Err(Malformed),
        };
        Ok(scalar)
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// All scalars of a repeated field, packed or not.
pub(crate) fn scalars<'w>(sets: &[Set<'w>]) -> Result<Vec<Scalar<'w>>, Malformed> {
    let mut scalars = Vec::with_capacity(sets.len());
    for set in sets {
        let kind = set.field.kind();
        match (set.raw, kind) {
            (Raw::Bytes(packed), _) if !matches!(kind, Kind::String | Kind::Bytes | Kind::Message(_)) => {
                let mut reader = Reader(packed);
                while !reader.0.is_empty() {
                    scalars.push(reader.value(wire_type(kind))?.scalar(kind)?);
                }
            }
            (raw, _) => scalars.push(raw.scalar(kind)?),
        }
    }
    Ok(scalars)
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// The wire type of an element of this kind.
pub(crate) fn wire_type(kind: Kind) -> u8 {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => FIXED64,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => FIXED32,
        Kind::String | Kind::Bytes | Kind::Message(_) => DELIMITED,
        _ => VARINT,
    }
}

/// Reads fields one after the other.
pub(crate) struct Reader<'w>(pub(crate) &'w [u8]);

impl<'w> Reader<'w> {
    /// The next field's number and value; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Raw<'w>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(Malformed);
        }
        let raw = self.value((tag & 7) as u8)?;
        Ok(Some((number, raw)))
    }

    fn value(&mut self, wire_type: u8) -> Result<Raw<'w>, Malformed> {
        match wire_type {
            VARINT => self.varint().map(Raw::Varint),
            FIXED64 => self.fixed().map(|bytes| Raw::Fixed64(u64::from_le_bytes(bytes))),
            FIXED32 => self.fixed().map(|bytes| Raw::Fixed32(u32::from_le_bytes(bytes))),
            DELIMITED => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
                self.0 = rest;
                Ok(Raw::Bytes(bytes))
            }
            // Groups; no proto3 file has them.
            _ => Err(Malformed),
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && *byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field's tag.
pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number << 3 | u32::from(wire_type)));
}

/// Appends a field of bytes, text or an encoded message.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Puts the length of what was written since `start` in front of it.
pub(crate) fn close_delimited(out: &mut Vec<u8>, start: usize) {
    let length = out.len() - start;
    let mut prefix = Vec::with_capacity(10);
    put_varint(&mut prefix, length as u64);
    out.extend_from_slice(&prefix);
    if let Some(written) = out.get_mut(start..) {
        written.rotate_right(prefix.len());
    }
}

/// Appends a scalar's value, without tag.
pub(crate) fn put_scalar(out: &mut Vec<u8>, kind: Kind, scalar: Scalar<'_>) {
    match (kind, scalar) {
        (Kind::Sint32 | Kind::Sint64, Scalar::Signed(value)) => {
            put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
        }
        (Kind::Sfixed32, Scalar::Signed(value)) => out.extend_from_slice(&(value as i32).to_le_bytes()),
        (Kind::Fixed32, Scalar::Unsigned(value)) => out.extend_from_slice(&(value as u32).to_le_bytes()),
        (Kind::Sfixed64, Scalar::Signed(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (Kind::Fixed64, Scalar::Unsigned(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (_, Scalar::Signed(value)) => put_varint(out, value.cast_unsigned()),
        (_, Scalar::Unsigned(value)) => put_varint(out, value),
        (_, Scalar::Double(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (_, Scalar::Float(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (_, Scalar::Bool(value)) => out.push(u8::from(value)),
        (_, Scalar::Enum(value)) => put_varint(out, i64::from(value).cast_unsigned()),
        (_, Scalar::String(value)) => {
            put_varint(out, value.len() as u64);
            out.extend_from_slice(value.as_bytes());
        }
        (_, Scalar::Bytes(value)) => {
            put_varint(out, value.len() as u64);
            out.extend_from_slice(value);
        }
    }
}

impl Scalar<'_> {
    /// Whether this is what an unset field without presence reads as.
    pub(crate) fn is_default(&self) -> bool {
        match self {
            Scalar::Signed(value) => *value == 0,
            Scalar::Unsigned(value) => *value == 0,
            // Minus zero is not the default.
            Scalar::Double(value) => value.to_bits() == 0,
            Scalar::Float(value) => value.to_bits() == 0,
            Scalar::Bool(value) => !value,
            Scalar::Enum(value) => *value == 0,
            Scalar::String(value) => value.is_empty(),
            Scalar::Bytes(value) => value.is_empty(),
        }
    }

    /// The default of a scalar kind.
    pub(crate) fn default_of(kind: Kind) -> Scalar<'static> {
        match kind {
            Kind::Double => Scalar::Double(0.0),
            Kind::Float => Scalar::Float(0.0),
            Kind::Int32 | Kind::Int64 | Kind::Sint32 | Kind::Sint64 | Kind::Sfixed32 | Kind::Sfixed64 => {
                Scalar::Signed(0)
            }
            Kind::Uint32 | Kind::Uint64 | Kind::Fixed32 | Kind::Fixed64 => Scalar::Unsigned(0),
            Kind::Bool => Scalar::Bool(false),
            Kind::Enum(_) => Scalar::Enum(0),
            Kind::String => Scalar::String(""),
            Kind::Bytes | Kind::Message(_) => Scalar::Bytes(&[]),
        }
    }
}

/// Adds the step to a field to a path.
pub(crate) fn push_field(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// Adds the step to an element to a path.
pub(crate) fn push_index(path: &mut String, index: usize) {
    use std::fmt::Write;
    // Writing to a String cannot fail.
    let _ = write!(path, "[{index}]");
}

/// Adds the step to a map's value to a path.
pub(crate) fn push_key(path: &mut String, key: &str) {
    path.push_str("[\"");
    path.push_str(key);
    path.push_str("\"]");
}
