//! The messages and enums of all compiled proto files, as static tables.
//!
//! The handles here ([`Message`], [`Field`], [`Enum`], ...) are indices into tables that build.rs
//! writes and the binary contains; they are read in place. So knowing 1,600 messages costs no
//! start-up time and no heap, and only the pages in use are ever loaded.

mod layout;
mod rules;

pub(crate) use layout::Op;
use layout::{
    DEEP, DEPRECATED, DISALLOWED, ENUM_WORDS, FIELD_WORDS, MAP, MAP_ENTRY, MESSAGE_WORDS, NONE, ONEOF_WORDS,
    PACKED, PRESENCE, REPEATED, SENSITIVE, UNCHECKED, VALUE_WORDS,
};
pub(crate) use rules::{Rule, Rules};

static WORDS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.words"));
static TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/schema.txt"));
include!(concat!(env!("OUT_DIR"), "/schema_index.rs"));

/// Where one kind of row is.
struct Table {
    /// Index of the first word.
    start: usize,
    rows: usize,
}

impl Table {
    fn get(&self, row: u32, width: usize, column: usize) -> u32 {
        word(self.start + row as usize * width + column)
    }

    /// The row whose first column is a name, in a table sorted by names.
    fn find(&self, width: usize, wanted: &str) -> Option<u32> {
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = usize::midpoint(low, high);
            match name(word(self.start + middle * width)).cmp(wanted) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return u32::try_from(middle).ok(),
            }
        }
        None
    }
}

/// A word of the tables; 0 beyond their end, which indices made by build.rs never are.
fn word(index: usize) -> u32 {
    match WORDS.get(index * 4..).and_then(<[u8]>::first_chunk) {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => 0,
    }
}

fn text(offset: u32, length: u32) -> &'static str {
    let start = offset as usize;
    TEXT.get(start..start + length as usize).unwrap_or("")
}

fn name(word: u32) -> &'static str {
    text(word >> 8, word & 0xff)
}

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message(u32);

/// A field of a message type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Field(u32);

/// A oneof of a message type; those that stand for a proto3 `optional` are left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Oneof(u32);

/// An enum type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Enum(u32);

/// A value of an enum type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnumValue(u32);

/// The type of a field, or of each element of a repeated field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `double`
    Double,
    /// `float`
    Float,
    /// `int32`
    Int32,
    /// `int64`
    Int64,
    /// `uint32`
    Uint32,
    /// `uint64`
    Uint64,
    /// `sint32`
    Sint32,
    /// `sint64`
    Sint64,
    /// `fixed32`
    Fixed32,
    /// `fixed64`
    Fixed64,
    /// `sfixed32`
    Sfixed32,
    /// `sfixed64`
    Sfixed64,
    /// `bool`
    Bool,
    /// `string`
    String,
    /// `bytes`
    Bytes,
    /// A message.
    Message(Message),
    /// An enum.
    Enum(Enum),
}

impl Message {
    /// The message of a full name, as `envoy.config.cluster.v3.Cluster`.
    pub fn find(full_name: &str) -> Option<Message> {
        MESSAGES.find(MESSAGE_WORDS, full_name).map(Message)
    }

    /// All messages, by name.
    pub fn all() -> impl Iterator<Item = Message> {
        (0..MESSAGES.rows).filter_map(|row| u32::try_from(row).ok()).map(Message)
    }

    fn get(self, column: usize) -> u32 {
        MESSAGES.get(self.0, MESSAGE_WORDS, column)
    }

    /// Its full name.
    pub fn full_name(self) -> &'static str {
        name(self.get(0))
    }

    /// The file that defines it, as `envoy/config/cluster/v3/cluster.proto`.
    pub fn file(self) -> &'static str {
        name(self.get(1))
    }

    /// Its fields, by number.
    pub fn fields(self) -> impl Iterator<Item = Field> {
        let first = self.get(2);
        (first..first + self.get(3)).map(Field)
    }

    /// Its oneofs, in the order of the file.
    pub fn oneofs(self) -> impl Iterator<Item = Oneof> {
        let first = self.get(4);
        (first..first + self.get(5)).map(Oneof)
    }

    /// The field of a number.
    pub fn field(self, number: u32) -> Option<Field> {
        let (first, count) = (self.get(2), self.get(3));
        // Most messages number their fields from 1 without gaps, or nearly so.
        if (1..=count).contains(&number) {
            let guess = Field(first + number - 1);
            if guess.number() == number {
                return Some(guess);
            }
        }
        let (mut low, mut high) = (first, first + count);
        while low < high {
            let middle = u32::midpoint(low, high);
            match Field(middle).number().cmp(&number) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(Field(middle)),
            }
        }
        None
    }

    /// The field of a proto name (`connect_timeout`) or JSON name (`connectTimeout`).
    pub fn field_by_name(self, wanted: &str) -> Option<Field> {
        let (mut low, mut high) = (self.get(2), self.get(2) + self.get(3));
        while low < high {
            let middle = u32::midpoint(low, high);
            let field = Field(FIELDS_BY_NAME.get(middle, 1, 0));
            match field.name().cmp(wanted) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(field),
            }
        }
        self.fields().find(|field| field.json_name() == wanted)
    }

    /// Whether it is the entry of a map field.
    pub fn is_map_entry(self) -> bool {
        self.get(6) & MAP_ENTRY != 0
    }

    /// Whether its constraints are switched off.
    pub(crate) fn is_unchecked(self) -> bool {
        self.get(6) & UNCHECKED != 0
    }

    /// Whether a rule, a deprecated field or an `Any` can be reached from it.
    pub(crate) fn is_deep(self) -> bool {
        self.get(6) & DEEP != 0
    }
}

impl Field {
    fn get(self, column: usize) -> u32 {
        FIELDS.get(self.0, FIELD_WORDS, column)
    }

    fn flag(self, flag: u32) -> bool {
        self.get(3) & flag != 0
    }

    /// Its name in the proto file.
    pub fn name(self) -> &'static str {
        name(self.get(0))
    }

    /// Its camelCase name.
    pub fn json_name(self) -> &'static str {
        name(self.get(1))
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.get(2)
    }

    /// Its type, or that of each element. A map's is the message of its entries.
    pub fn kind(self) -> Kind {
        let index = self.get(4);
        match self.get(3) & 0xff {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::Uint64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            11 => Kind::Message(Message(index)),
            12 => Kind::Bytes,
            13 => Kind::Uint32,
            14 => Kind::Enum(Enum(index)),
            15 => Kind::Sfixed32,
            16 => Kind::Sfixed64,
            17 => Kind::Sint32,
            _ => Kind::Sint64,
        }
    }

    /// The oneof that it belongs to.
    pub fn oneof(self) -> Option<OneofIndex> {
        let index = self.get(5);
        (index != NONE).then_some(OneofIndex(index))
    }

    /// Whether it is repeated; so are maps.
    pub fn is_repeated(self) -> bool {
        self.flag(REPEATED)
    }

    /// Whether its elements are packed on the wire.
    pub fn is_packed(self) -> bool {
        self.flag(PACKED)
    }

    /// Whether it is a map: a repeated message of a key (1) and a value (2).
    pub fn is_map(self) -> bool {
        self.flag(MAP)
    }

    /// Whether being unset differs from having the default value.
    pub fn has_presence(self) -> bool {
        self.flag(PRESENCE)
    }

    /// Whether it holds secrets.
    pub fn is_sensitive(self) -> bool {
        self.flag(SENSITIVE)
    }

    /// Whether it is deprecated.
    pub fn is_deprecated(self) -> bool {
        self.flag(DEPRECATED)
    }

    /// Whether Envoy rejects its use unless told otherwise.
    pub fn is_disallowed(self) -> bool {
        self.flag(DISALLOWED)
    }

    /// The version of the Envoy API that deprecated it, as `3.5`; empty if unknown.
    pub fn deprecated_at(self) -> &'static str {
        name(self.get(6))
    }

    /// Its constraints.
    pub(crate) fn rules(self) -> Option<Rules> {
        let offset = self.get(7);
        (offset != NONE).then_some(Rules::at(offset))
    }
}

/// The place of a oneof among those of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OneofIndex(u32);

impl OneofIndex {
    /// The oneof in the message that the field is of.
    pub fn of(self, message: Message) -> Oneof {
        Oneof(message.get(4) + self.0)
    }
}

impl Oneof {
    /// Its name.
    pub fn name(self) -> &'static str {
        name(ONEOFS.get(self.0, ONEOF_WORDS, 0))
    }

    /// Whether one of its fields must be set.
    pub fn is_required(self) -> bool {
        ONEOFS.get(self.0, ONEOF_WORDS, 1) != 0
    }
}

impl Enum {
    /// The enum of a full name.
    pub fn find(full_name: &str) -> Option<Enum> {
        ENUMS.find(ENUM_WORDS, full_name).map(Enum)
    }

    /// Its full name.
    pub fn full_name(self) -> &'static str {
        name(ENUMS.get(self.0, ENUM_WORDS, 0))
    }

    /// Its values, in the order of the file.
    pub fn values(self) -> impl Iterator<Item = EnumValue> {
        let first = ENUMS.get(self.0, ENUM_WORDS, 1);
        (first..first + ENUMS.get(self.0, ENUM_WORDS, 2)).map(EnumValue)
    }

    /// The (first) value of a number.
    pub fn value(self, number: i32) -> Option<EnumValue> {
        self.values().find(|value| value.number() == number)
    }
}

impl EnumValue {
    /// Its name.
    pub fn name(self) -> &'static str {
        name(VALUES.get(self.0, VALUE_WORDS, 0))
    }

    /// Its number.
    pub fn number(self) -> i32 {
        VALUES.get(self.0, VALUE_WORDS, 1).cast_signed()
    }

    /// Whether it is deprecated.
    pub fn is_deprecated(self) -> bool {
        VALUES.get(self.0, VALUE_WORDS, 2) & DEPRECATED != 0
    }

    /// Whether Envoy rejects its use unless told otherwise.
    pub fn is_disallowed(self) -> bool {
        VALUES.get(self.0, VALUE_WORDS, 2) & DISALLOWED != 0
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.full_name())
    }
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Debug for Enum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.full_name())
    }
}
