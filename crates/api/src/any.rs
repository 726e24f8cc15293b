//! Packing of messages into `google.protobuf.Any`, and back.

use prost::{Message, Name};
use prost_types::Any;

/// Why an `Any` is not the message that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The `Any` holds another type.
    #[error("expected {expected}, found {found:?}")]
    Type {
        /// Full name of the type asked for.
        expected: String,
        /// The type URL found.
        found: String,
    },
    /// The bytes are not such a message.
    #[error("{type_name}: {source}")]
    Decode {
        /// Full name of the type.
        type_name: String,
        /// What prost says.
        source: prost::DecodeError,
    },
}

/// Packs a message under the URL `type.googleapis.com/<full name>`.
pub fn pack<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

/// Whether the `Any` holds a message of this type.
pub fn is<T: Name>(any: &Any) -> bool {
    type_name(&any.type_url) == T::full_name()
}

/// Reads the message out of an `Any`.
///
/// # Errors
/// If it holds another type or bytes that are no such message.
pub fn unpack<T: Message + Name + Default>(any: &Any) -> Result<T, UnpackError> {
    if !is::<T>(any) {
        return Err(UnpackError::Type { expected: T::full_name(), found: any.type_url.clone() });
    }
    T::decode(any.value.as_slice())
        .map_err(|source| UnpackError::Decode { type_name: T::full_name(), source })
}

/// The full name in a type URL: all that follows the last `/`.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

#[cfg(test)]
mod tests {
    use super::{is, pack, type_name, unpack};
    use prost_types::{Any, Duration, Timestamp};

    #[test]
    fn there_and_back() {
        let packed = pack(&Duration { seconds: 5, nanos: 0 });
        assert_eq!(packed.type_url, "type.googleapis.com/google.protobuf.Duration");
        assert!(is::<Duration>(&packed));
        assert_eq!(unpack::<Duration>(&packed).unwrap().seconds, 5);
        let error = unpack::<Timestamp>(&packed).unwrap_err().to_string();
        assert!(error.starts_with("expected google.protobuf.Timestamp"), "{error}");
        let broken = Any { value: vec![0xff], ..packed };
        assert!(unpack::<Duration>(&broken).is_err());
        assert_eq!(type_name("bare"), "bare");
    }
}
