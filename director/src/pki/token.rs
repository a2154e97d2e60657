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
