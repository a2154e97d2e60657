//! The only user of the serializer: bincode 2, standard configuration, with a byte limit.
//!
//! A body is decoded whole: left-over bytes are an error, and no length inside a body can make the
//! decoder reserve more than the limit.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::FRAME_BYTES_MAX;

/// Why a body could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value cannot be represented, or is longer than the limit.
    #[error("cannot encode a {what} in {max} bytes")]
    Encode {
        /// Type.
        what: &'static str,
        /// Limit in bytes.
        max: usize,
        /// Cause.
        #[source]
        source: Box<bincode::error::EncodeError>,
    },
    /// The bytes are not a value of the type.
    #[error("these {bytes} bytes are no {what}; the peer runs another release or is broken")]
    Decode {
        /// Type.
        what: &'static str,
        /// Length of the body.
        bytes: usize,
        /// Cause.
        #[source]
        source: Box<bincode::error::DecodeError>,
    },
    /// Bytes were left over.
    #[error("a {what} of {bytes} bytes has {left} bytes left over; the peer runs another release")]
    Leftover {
        /// Type.
        what: &'static str,
        /// Length of the body.
        bytes: usize,
        /// Bytes that no field took.
        left: usize,
    },
    /// Longer than the limit.
    #[error("a {what} has {bytes} bytes, {max} are allowed")]
    TooLong {
        /// Type.
        what: &'static str,
        /// Length of the body.
        bytes: usize,
        /// Limit in bytes.
        max: usize,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// Encodes one body.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let what = short_name::<T>();
    let bytes =
        bincode::serde::encode_to_vec(value, config()).map_err(|source| CodecError::Encode {
            what,
            max: FRAME_BYTES_MAX,
            source: Box::new(source),
        })?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong {
            what,
            bytes: bytes.len(),
            max: FRAME_BYTES_MAX,
        });
    }
    Ok(bytes)
}

/// Decodes one body, all of it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = short_name::<T>();
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong {
            what,
            bytes: bytes.len(),
            max: FRAME_BYTES_MAX,
        });
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(|source| {
        CodecError::Decode {
            what,
            bytes: bytes.len(),
            source: Box::new(source),
        }
    })?;
    if used != bytes.len() {
        return Err(CodecError::Leftover {
            what,
            bytes: bytes.len(),
            left: bytes.len() - used,
        });
    }
    Ok(value)
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_and_short_bodies_are_refused() {
        let bytes = encode(&(7u32, "seven".to_owned())).unwrap();
        assert_eq!(
            decode::<(u32, String)>(&bytes).unwrap(),
            (7, "seven".to_owned())
        );
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(
            decode::<(u32, String)>(&longer),
            Err(CodecError::Leftover { left: 1, .. })
        ));
        assert!(matches!(
            decode::<(u32, String)>(&bytes[..bytes.len() - 1]),
            Err(CodecError::Decode { .. })
        ));
    }

    #[test]
    fn a_claimed_length_reserves_nothing() {
        // 0xfd announces a u64 length; the claim is 2^60 bytes.
        let claim = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];
        assert!(decode::<String>(&claim).is_err());
        assert!(decode::<Vec<u8>>(&claim).is_err());
        assert!(decode::<Vec<String>>(&claim).is_err());
    }
}
