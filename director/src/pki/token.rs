//! Enrollment tokens: 256 random bits, of which the director keeps the SHA-256 alone.

use std::fmt::Write;

use windlass_common::id::Digest;
use windlass_common::secret::Secret;

use super::IssueError;

/// A new token and what to store of it.
#[derive(Debug)]
pub struct EnrollmentToken {
    /// For the machine's settings: 64 hex digits.
    pub token: Secret,
    /// For the store.
    pub hash: Digest,
}

impl EnrollmentToken {
    /// Makes a token.
    pub fn generate() -> Result<EnrollmentToken, IssueError> {
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| IssueError::Random)?;
        let mut text = String::with_capacity(64);
        for byte in *bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        let token = Secret::new(text);
        let hash = EnrollmentToken::hash_of(&token);
        Ok(EnrollmentToken { token, hash })
    }

    /// What the store knows a token by: the SHA-256 of its hex digits.
    pub fn hash_of(token: &Secret) -> Digest {
        Digest::of(token.expose().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_256_bits_and_is_known_by_its_digest() {
        let (one, two) = (EnrollmentToken::generate(), EnrollmentToken::generate());
        let (one, two) = (one.unwrap(), two.unwrap());
        for token in [&one, &two] {
            let text = token.token.expose();
            assert_eq!(text.len() * 4, 256);
            assert!(text.bytes().all(|digit| digit.is_ascii_hexdigit()));
            assert_eq!(token.hash, Digest::of(text.as_bytes()));
            assert_eq!(token.hash, EnrollmentToken::hash_of(&token.token));
        }
        // No part of it is the same each time.
        let shared = one.token.expose().bytes().zip(two.token.expose().bytes());
        let shared = shared.filter(|(one, two)| one == two).count();
        assert!(shared < 32, "{shared} of 64 digits");
    }
}
