//! The identities that the agents have got, read as their links read them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use windlass_common::pki::{PrivateKey, pem};
use windlass_common::secret::SecretBytes;
use windlass_common::settings::Settings;
use windlass_common::tls;

/// Where an agent of the fleet keeps its identity.
pub(crate) fn dir(fleet: &Path, settings: &Settings) -> PathBuf {
    fleet.join(settings.machine.as_str())
}

/// TLS of an enrolled agent.
pub(crate) fn tls(fleet: &Path, settings: &Settings) -> Result<rustls::ClientConfig> {
    let dir = dir(fleet, settings);
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let identity = SecretBytes::new(read("identity.pem")?);
    let key = PrivateKey::from_pem(&identity).context("the saved key is of no use")?;
    let chain = pem::certificates(identity.expose()).context("the saved chain is of no use")?;
    let roots = pem::certificates(&read("roots.pem")?).context("the saved roots are of no use")?;
    tls::agent_client(&roots, chain, key.to_der()).context("TLS does not take the saved identity")
}
