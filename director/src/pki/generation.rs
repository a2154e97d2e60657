//! One generation of the director's CA: a root, the issuers below it, and what they issue.

use std::fmt;

use jiff::Timestamp;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use windlass_common::id::{Digest, DirectorId};
use windlass_common::pki::profile::{self, Usage};
use windlass_common::pki::{PrivateKey, pem};
use windlass_common::secret::SecretBytes;

use super::issuer::{CaError, Issuer, is_valid};

/// CAs in a record: root, agents, operators, servers.
const ISSUERS: usize = 4;

/// A root and its three issuers. The first has the number 1; a rotation makes the next one.
pub struct Generation {
    pub(super) number: u32,
    pub(super) root: Issuer,
    pub(super) agents: Issuer,
    pub(super) operators: Issuer,
    pub(super) servers: Issuer,
    /// The servers' issuer once more, signed by the root before this one: who trusts that root alone
    /// verifies this generation's servers by it. The first generation has none.
    pub(super) bridge: Option<CertificateDer<'static>>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generation({})[keys redacted]", self.number)
    }
}

impl Generation {
    /// The first of a director, with new keys.
    pub(super) fn first(director: &DirectorId, now: Timestamp) -> Result<Generation, CaError> {
        Generation::make(director, 1, None, now)
    }

    /// The one after `older`, with new keys and a bridge from it.
    pub(super) fn after(
        older: &Generation,
        director: &DirectorId,
        now: Timestamp,
    ) -> Result<Generation, CaError> {
        let number = older.number.saturating_add(1);
        Generation::make(director, number, Some(&older.root), now)
    }

    fn make(
        director: &DirectorId,
        number: u32,
        older: Option<&Issuer>,
        now: Timestamp,
    ) -> Result<Generation, CaError> {
        let params = |what: &str, usage| {
            profile::issuer(&name(director, what, number), usage, now).map_err(CaError::Profile)
        };
        let root = profile::root(&name(director, "root", number), now).map_err(CaError::Profile)?;
        let root = Issuer::root(root)?;
        let servers = params("servers", Usage::Server)?;
        let (servers, bridge) = Issuer::below_both(&root, older, servers)?;
        Ok(Generation {
            number,
            agents: Issuer::below(&root, params("agents", Usage::Client)?)?,
            operators: Issuer::below(&root, params("operators", Usage::Client)?)?,
            servers,
            root,
            bridge,
        })
    }

    /// Which one it is.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// SHA-256 of the root's DER.
    pub fn root_digest(&self) -> Digest {
        Digest::of(&self.root.certificate)
    }

    /// Everything, keys included, as one PEM text for the caller to seal: each CA with its key, then the
    /// bridge if there is one.
    pub fn to_pem(&self) -> SecretBytes {
        let parts = [&self.root, &self.agents, &self.operators, &self.servers];
        let mut parts: Vec<SecretBytes> = parts.into_iter().map(Issuer::to_pem).collect();
        if let Some(bridge) = &self.bridge {
            parts.push(SecretBytes::new(pem::certificate(bridge).into_bytes()));
        }
        // Allocated once, so that no copy of a key is left behind by growing.
        let length = parts.iter().map(|part| part.expose().len()).sum();
        let mut text = Vec::with_capacity(length);
        for part in &parts {
            text.extend_from_slice(part.expose());
        }
        SecretBytes::new(text)
    }

    /// Reads back what [`Generation::to_pem`] wrote.
    ///
    /// # Errors
    /// [`CaError`] when the text is no record of this generation of this director, or not valid at `now`.
    pub fn from_pem(
        director: &DirectorId,
        number: u32,
        text: &SecretBytes,
        now: Timestamp,
    ) -> Result<Generation, CaError> {
        let mut certificates =
            pem::certificates(text.expose()).map_err(|_| CaError::Damaged("it is no PEM"))?;
        let keys: Vec<PrivatePkcs8KeyDer<'static>> =
            PrivatePkcs8KeyDer::pem_slice_iter(text.expose())
                .collect::<Result<_, _>>()
                .map_err(|_| CaError::Damaged("it is no PEM"))?;
        if !(ISSUERS..=ISSUERS + 1).contains(&certificates.len()) || keys.len() != ISSUERS {
            return Err(CaError::Damaged(
                "it does not hold four CAs with their keys",
            ));
        }
        let valid = |certificate: &CertificateDer<'_>| is_valid(certificate, now);
        if !certificates.iter().all(valid) {
            return Err(CaError::Damaged("a CA certificate is not valid now"));
        }
        let bridge = certificates.split_off(ISSUERS).pop();
        let mut issuers = certificates
            .into_iter()
            .zip(&keys)
            .map(|(certificate, key)| {
                let key = PrivateKey::from_der(key.secret_pkcs8_der()).map_err(CaError::Key)?;
                Issuer::load(certificate, key)
            });
        let mut next = || {
            let missing = Err(CaError::Damaged("a CA is missing"));
            issuers.next().unwrap_or(missing)
        };
        let (root, agents, operators, servers) = (next()?, next()?, next()?, next()?);
        if !root.has_common_name(&name(director, "root", number)) {
            return Err(CaError::OtherDirector(director.to_string()));
        }
        Ok(Generation {
            number,
            root,
            agents,
            operators,
            servers,
            bridge,
        })
    }
}

/// The subject of a CA. The first generation carries no number: there was none when it was made.
fn name(director: &DirectorId, what: &str, number: u32) -> String {
    match number {
        1 => format!("Windlass {director} {what}"),
        number => format!("Windlass {director} {what} {number}"),
    }
}
