//! Scalars of YAML and JSON as scalars of protobuf, with their ranges.

use std::borrow::Cow;

use super::Decoder;
use crate::Error;
use crate::error::nearest;
use crate::schema::{Enum, EnumValue, Kind};
use crate::wire::{self, put_scalar, put_tag, wire_type};
use crate::yaml::{self, Entry, Node, Scalar, Value};

/// A scalar that may own what the text only has in another form.
pub(super) enum Decoded<'n> {
    Plain(wire::Scalar<'n>),
    Bytes(Vec<u8>),
}

impl Decoded<'_> {
    pub(super) fn borrow(&self) -> wire::Scalar<'_> {
        match self {
            Decoded::Plain(scalar) => *scalar,
            Decoded::Bytes(bytes) => wire::Scalar::Bytes(bytes),
        }
    }
}

impl Decoder {
    /// Reads a scalar of some kind; reports why it is none.
    pub(super) fn scalar<'n>(&mut self, kind: Kind, node: &'n Node<'_>) -> Option<Decoded<'n>> {
        let result = match &node.value {
            Value::Scalar(scalar) if scalar.kind == yaml::Kind::Null => {
                Ok(Decoded::Plain(wire::Scalar::default_of(kind)))
            }
            Value::Scalar(scalar) => {
                if let (Kind::Enum(descriptor), yaml::Kind::String) = (kind, scalar.kind) {
                    return self.enum_name(descriptor, node, &scalar.text);
                }
                read(kind, scalar)
            }
            _ => Err(expected(kind)),
        };
        match result {
            Ok(scalar) => Some(scalar),
            Err(wanted) => {
                let message = match wanted {
                    Fault::Expected(wanted) => {
                        let hint = match (&node.value, kind) {
                            (Value::Scalar(_), Kind::String) => "; put it in quotes",
                            _ => "",
                        };
                        format!("expected {wanted}, found {}{hint}", node.describe())
                    }
                    Fault::OutOfRange(kind) => format!("{} is out of range for {kind}", bare(node)),
                    Fault::Fraction => format!("expected a whole number, found {}", bare(node)),
                    Fault::Other(message) => message.to_owned(),
                };
                self.error(node.position, message);
                None
            }
        }
    }

    /// The value of an enum by name, in any case as Envoy has it, or by number.
    fn enum_name<'n>(&mut self, descriptor: Enum, node: &Node<'_>, name: &str) -> Option<Decoded<'n>> {
        let found = descriptor
            .values()
            .find(|value| value.name() == name)
            .or_else(|| descriptor.values().find(|value| value.name().eq_ignore_ascii_case(name)))
            .map(EnumValue::number);
        match found.or_else(|| name.parse().ok()) {
            Some(number) => Some(Decoded::Plain(wire::Scalar::Enum(number))),
            None => {
                let suggestion = nearest(name, descriptor.values().map(EnumValue::name));
                let message = format!("unknown value {name:?} of {}", descriptor.full_name());
                self.errors.push(Error::new(node.position, self.path.clone(), message).suggest(suggestion));
                None
            }
        }
    }

    /// Writes the key of a map's entry.
    pub(super) fn key(&mut self, kind: Kind, entry: &Entry<'_>) {
        let scalar =
            Scalar { text: Cow::Borrowed(entry.key.as_ref()), kind: yaml::Kind::String, plain: true };
        match read(kind, &scalar) {
            Ok(value) => {
                let value = value.borrow();
                if !value.is_default() {
                    put_tag(&mut self.out, 1, wire_type(kind));
                    put_scalar(&mut self.out, kind, value);
                }
            }
            Err(_) => self.error(entry.position, format!("the key is no {}", kind_name(kind))),
        }
    }
}

/// Why a scalar cannot be read.
enum Fault {
    Expected(Cow<'static, str>),
    OutOfRange(&'static str),
    Fraction,
    Other(&'static str),
}

fn expected(kind: Kind) -> Fault {
    Fault::Expected(match kind {
        Kind::String => "text".into(),
        Kind::Bytes => "bytes in base64".into(),
        Kind::Bool => "true or false".into(),
        Kind::Enum(descriptor) => format!("a value of {}", descriptor.full_name()).into(),
        _ => "a number".into(),
    })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "double",
        Kind::Float => "float",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "int32",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "int64",
        Kind::Uint32 | Kind::Fixed32 => "uint32",
        Kind::Uint64 | Kind::Fixed64 => "uint64",
        Kind::Bool => "bool",
        Kind::String => "string",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "enum",
        Kind::Message(_) => "message",
    }
}

/// The text of a scalar as it stands.
fn bare<'n>(node: &'n Node<'_>) -> &'n str {
    match &node.value {
        Value::Scalar(scalar) => &scalar.text,
        _ => "",
    }
}

fn read<'n>(kind: Kind, scalar: &'n Scalar<'_>) -> Result<Decoded<'n>, Fault> {
    let value = match kind {
        Kind::String => match scalar.kind {
            yaml::Kind::String => wire::Scalar::String(&scalar.text),
            _ => return Err(expected(kind)),
        },
        Kind::Bytes => match scalar.kind {
            yaml::Kind::String => {
                let bytes = leno_base::base64::decode_json(scalar.text.as_bytes());
                return bytes.map(Decoded::Bytes).ok_or(Fault::Other("invalid base64"));
            }
            _ => return Err(expected(kind)),
        },
        Kind::Bool => match (scalar.kind, scalar.text.as_ref()) {
            (yaml::Kind::Bool(value), _) => wire::Scalar::Bool(value),
            // Envoy's JSON reader takes what Abseil takes for a boolean.
            (yaml::Kind::String, text) => match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "1" => wire::Scalar::Bool(true),
                "false" | "f" | "no" | "n" | "0" => wire::Scalar::Bool(false),
                _ => return Err(expected(kind)),
            },
            _ => return Err(expected(kind)),
        },
        Kind::Double => wire::Scalar::Double(float(kind, scalar)?),
        Kind::Float => {
            let wide = float(kind, scalar)?;
            let narrow = wide as f32;
            if narrow.is_infinite() && wide.is_finite() {
                return Err(Fault::OutOfRange("float"));
            }
            wire::Scalar::Float(narrow)
        }
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            wire::Scalar::Signed(i64::from(narrow::<i32>(integer(kind, scalar)?, kind)?))
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            wire::Scalar::Signed(narrow(integer(kind, scalar)?, kind)?)
        }
        Kind::Uint32 | Kind::Fixed32 => {
            wire::Scalar::Unsigned(u64::from(narrow::<u32>(integer(kind, scalar)?, kind)?))
        }
        Kind::Uint64 | Kind::Fixed64 => wire::Scalar::Unsigned(narrow(integer(kind, scalar)?, kind)?),
        Kind::Enum(_) => match scalar.kind {
            yaml::Kind::Integer => wire::Scalar::Enum(narrow(integer(kind, scalar)?, kind)?),
            _ => return Err(expected(kind)),
        },
        Kind::Message(_) => return Err(expected(kind)),
    };
    Ok(Decoded::Plain(value))
}

fn narrow<T: TryFrom<i128>>(value: i128, kind: Kind) -> Result<T, Fault> {
    T::try_from(value).map_err(|_| Fault::OutOfRange(kind_name(kind)))
}

/// A whole number, also as text and with a fraction of zeros (`5.0`, `1e3`), as protobuf allows.
fn integer(kind: Kind, scalar: &Scalar<'_>) -> Result<i128, Fault> {
    let text = match scalar.kind {
        yaml::Kind::Integer => match scalar.integer() {
            Some(integer) => return Ok(integer),
            None => return Err(Fault::OutOfRange(kind_name(kind))),
        },
        yaml::Kind::Float | yaml::Kind::String => scalar.text.as_ref(),
        _ => return Err(expected(kind)),
    };
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hexadecimal) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let value = u64::from_str_radix(hexadecimal, 16).map_err(|_| expected(kind))?;
        return Ok(if text.starts_with('-') { -i128::from(value) } else { i128::from(value) });
    }
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| Fault::OutOfRange(kind_name(kind)));
    }
    let Some(value) = decimal(text) else { return Err(expected(kind)) };
    if value.fract() != 0.0 {
        return Err(Fault::Fraction);
    }
    // Beyond 2^63 doubles are too coarse to name an integer; those that fit are exact.
    if value.abs() >= 1.9e19 {
        return Err(Fault::OutOfRange(kind_name(kind)));
    }
    Ok(value as i128)
}

fn float(kind: Kind, scalar: &Scalar<'_>) -> Result<f64, Fault> {
    let value = match (scalar.kind, scalar.text.as_ref()) {
        (yaml::Kind::Integer | yaml::Kind::Float, _) => scalar.float(),
        (yaml::Kind::String, "NaN" | "nan") => return Ok(f64::NAN),
        (yaml::Kind::String, "Infinity" | "inf") => return Ok(f64::INFINITY),
        (yaml::Kind::String, "-Infinity" | "-inf") => return Ok(f64::NEG_INFINITY),
        (yaml::Kind::String, text) => decimal(text),
        _ => None,
    };
    let value = value.ok_or_else(|| expected(kind))?;
    if value.is_infinite() && !scalar.text.contains("nf") {
        return Err(Fault::OutOfRange("double"));
    }
    Ok(value)
}

/// A decimal number with nothing around it, and none of the names that Rust also parses.
fn decimal(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    text.parse().ok()
}
