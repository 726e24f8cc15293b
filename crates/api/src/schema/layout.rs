//! Layout of the schema tables, shared by their writer (build/schema.rs) and reader (schema.rs).
//!
//! The tables are one array of little-endian 32-bit words and one text. A reference to text is one
//! word: offset << 8 | length. Rows have a fixed number of words, in the order given here.

/// Words per message: name, file, first field, fields, first oneof, oneofs, flags.
pub(crate) const MESSAGE_WORDS: usize = 7;
/// Words per field: name, JSON name, number, kind and flags, type, oneof, deprecated at, rules.
pub(crate) const FIELD_WORDS: usize = 8;
/// Words per oneof: name, required.
pub(crate) const ONEOF_WORDS: usize = 2;
/// Words per enum: name, first value, values.
pub(crate) const ENUM_WORDS: usize = 3;
/// Words per enum value: name, number, flags.
pub(crate) const VALUE_WORDS: usize = 3;

/// Stands for "none" where zero is an index.
pub(crate) const NONE: u32 = u32::MAX;

/// Message flag: the entry of a map field.
pub(crate) const MAP_ENTRY: u32 = 1;
/// Message flag: `validate.disabled` or `validate.ignored`.
pub(crate) const UNCHECKED: u32 = 1 << 1;
/// Message flag: some rule, deprecated field or `Any` can be reached from it.
pub(crate) const DEEP: u32 = 1 << 2;

/// Field flags, above the kind (the low byte: the number of `FieldDescriptorProto.Type`).
pub(crate) const REPEATED: u32 = 1 << 8;
pub(crate) const PACKED: u32 = 1 << 9;
pub(crate) const MAP: u32 = 1 << 10;
pub(crate) const PRESENCE: u32 = 1 << 11;
pub(crate) const SENSITIVE: u32 = 1 << 12;

/// Flags of fields (shifted as the above) and of enum values.
pub(crate) const DEPRECATED: u32 = 1 << 16;
pub(crate) const DISALLOWED: u32 = 1 << 17;

/// One constraint. In the tables: count of rules, then for each (operation | payload words << 8)
/// and its payload. Numbers and text have two words each, nested rules one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Required = 1,
    Skip,
    IgnoreEmpty,
    Const,
    Lt,
    Lte,
    Gt,
    Gte,
    In,
    NotIn,
    DefinedOnly,
    TextConst,
    TextIn,
    TextNotIn,
    Len,
    MinLen,
    MaxLen,
    LenBytes,
    MinBytes,
    MaxBytes,
    Pattern,
    Prefix,
    Suffix,
    Contains,
    NotContains,
    HeaderName,
    HeaderValue,
    LooseHeaderName,
    LooseHeaderValue,
    MinItems,
    MaxItems,
    Unique,
    Items,
    Keys,
    Values,
}

impl Op {
    /// All operations, in the order of their numbers.
    pub(crate) const ALL: [Op; 35] = [
        Op::Required,
        Op::Skip,
        Op::IgnoreEmpty,
        Op::Const,
        Op::Lt,
        Op::Lte,
        Op::Gt,
        Op::Gte,
        Op::In,
        Op::NotIn,
        Op::DefinedOnly,
        Op::TextConst,
        Op::TextIn,
        Op::TextNotIn,
        Op::Len,
        Op::MinLen,
        Op::MaxLen,
        Op::LenBytes,
        Op::MinBytes,
        Op::MaxBytes,
        Op::Pattern,
        Op::Prefix,
        Op::Suffix,
        Op::Contains,
        Op::NotContains,
        Op::HeaderName,
        Op::HeaderValue,
        Op::LooseHeaderName,
        Op::LooseHeaderValue,
        Op::MinItems,
        Op::MaxItems,
        Op::Unique,
        Op::Items,
        Op::Keys,
        Op::Values,
    ];
}
