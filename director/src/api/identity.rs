//! Who is calling: the operator named in the certificate that the handshake verified.

use rustls_pki_types::CertificateDer;
use windlass_common::error::ErrorClass;
use windlass_common::id::{DirectorId, OperatorName};
use windlass_common::pki::{Leaf, LeafError};

/// Why a verified certificate is no caller's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallerError {
    /// The certificate is not an operator's.
    #[error("the client's certificate is not an operator's")]
    Certificate(#[source] LeafError),
    /// The certificate is another director's.
    #[error("the client's certificate was issued by director {theirs}, this is {ours}")]
    OtherDirector {
        /// In the certificate.
        theirs: DirectorId,
        /// This one.
        ours: DirectorId,
    },
    /// The handshake ended without one.
    #[error("the client sent no certificate")]
    None,
}

impl CallerError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

/// The operator of a connection whose client chain, leaf first, was verified.
///
/// # Errors
/// When the leaf does not name an operator of this director.
pub fn operator_of(
    chain: Option<&[CertificateDer<'_>]>,
    ours: &DirectorId,
) -> Result<OperatorName, CallerError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(CallerError::None)?;
    let leaf = Leaf::parse(leaf).map_err(CallerError::Certificate)?;
    let identity = leaf.operator().map_err(CallerError::Certificate)?;
    if identity.director != *ours {
        return Err(CallerError::OtherDirector {
            theirs: identity.director,
            ours: ours.clone(),
        });
    }
    Ok(identity.name)
}
