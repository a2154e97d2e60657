//! What a certificate says: its one URI name and when it is valid.
//!
//! Reading is not trusting: whoever calls this has verified the chain, or made the certificate.

use jiff::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{IdentityError, MachineIdentity, OperatorIdentity};
use crate::error::ErrorClass;

/// The parts of an end-entity certificate that this project reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The one URI name.
    pub uri: String,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
}

/// Why a certificate cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// Not an X.509 certificate in DER.
    #[error("the certificate is malformed")]
    Malformed,
    /// No URI name, or several.
    #[error("the certificate has {count} URI names, an identity needs exactly one")]
    Names {
        /// How many.
        count: usize,
    },
    /// The name is of another kind.
    #[error("the certificate is for somebody else")]
    Identity(#[source] IdentityError),
}

impl LeafError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl Leaf {
    /// Reads a certificate.
    pub fn parse(der: &[u8]) -> Result<Leaf, LeafError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| LeafError::Malformed)?;
        if !rest.is_empty() {
            return Err(LeafError::Malformed);
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| LeafError::Malformed)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(LeafError::Names { count: uris.len() });
        };
        let validity = certificate.validity();
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| LeafError::Malformed);
        Ok(Leaf {
            uri: uri.to_owned(),
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }

    /// Whose certificate it is, if a machine's.
    pub fn machine(&self) -> Result<MachineIdentity, LeafError> {
        self.uri.parse().map_err(LeafError::Identity)
    }

    /// Whose certificate it is, if an operator's.
    pub fn operator(&self) -> Result<OperatorIdentity, LeafError> {
        self.uri.parse().map_err(LeafError::Identity)
    }

    /// When a new one is due: at two thirds of its life.
    pub fn renew_at(&self) -> Timestamp {
        let (from, to) = (self.not_before.as_second(), self.not_after.as_second());
        let at = from + (to - from) / 3 * 2;
        // Between two valid timestamps.
        Timestamp::from_second(at).unwrap_or(self.not_after)
    }
}
