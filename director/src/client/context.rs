//! Where the director is and who is asking: a small TOML file with paths of PEM files beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use windlass_common::error::ErrorClass;

/// How to reach one director as one operator.
#[derive(Debug, Clone)]
pub struct Context {
    pub(super) address: String,
    pub(super) server_name: ServerName<'static>,
    pub(super) tls: Arc<rustls::ClientConfig>,
}

/// The file. Paths are relative to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// `https://host:port`.
    pub url: String,
    /// PEM of the director's root CA.
    pub ca: PathBuf,
    /// PEM of the operator's certificate chain.
    pub certificate: PathBuf,
    /// PEM of the operator's key.
    pub key: PathBuf,
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// It cannot be read.
    #[error("cannot read {}; `windlass director init` makes it, `--data-dir` or WINDLASS_DIR names the director's directory, `--context` a context file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a context.
    #[error("{} is not a context file", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: toml::de::Error,
    },
    /// The URL is not one.
    #[error("{}: url is {url:?}, allowed: https://host:port", path.display())]
    Url {
        /// The file.
        path: PathBuf,
        /// What it says.
        url: String,
    },
    /// A PEM file cannot be used.
    #[error("cannot use {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("the certificate and key that {} names cannot be used", path.display())]
    Tls {
        /// The context file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl ContextError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl ContextFile {
    /// Reads a context file, not what it names.
    ///
    /// # Errors
    /// [`ContextError::Read`] and [`ContextError::Syntax`].
    pub fn read(path: &Path) -> Result<ContextFile, ContextError> {
        let text = std::fs::read_to_string(path).map_err(|source| ContextError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ContextError::Syntax {
            path: path.to_owned(),
            source,
        })
    }
}

impl Context {
    /// Reads a context file and the PEM files it names.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn load(path: &Path) -> Result<Context, ContextError> {
        Context::new(&ContextFile::read(path)?, path)
    }

    /// A context from what the file at `path` says.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn new(file: &ContextFile, path: &Path) -> Result<Context, ContextError> {
        let bad_url = || ContextError::Url {
            path: path.to_owned(),
            url: file.url.clone(),
        };
        let address = file.url.strip_prefix("https://").ok_or_else(bad_url)?;
        let address = address.trim_end_matches('/').to_owned();
        let (host, port) = address.rsplit_once(':').ok_or_else(bad_url)?;
        port.parse::<u16>().map_err(|_| bad_url())?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let server_name = ServerName::try_from(host).map_err(|_| bad_url())?;
        let tls = |source| ContextError::Tls {
            path: path.to_owned(),
            source,
        };
        let beside = |name: &Path| path.parent().unwrap_or(Path::new("")).join(name);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&beside(&file.ca))? {
            roots.add(certificate).map_err(tls)?;
        }
        let key_path = beside(&file.key);
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|source| ContextError::Pem {
            path: key_path,
            source,
        })?;
        let config = rustls::ClientConfig::builder_with_provider(windlass_common::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&beside(&file.certificate))?, key)
            .map_err(tls)?;
        Ok(Context {
            address,
            server_name,
            tls: Arc::new(config),
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ContextError> {
    let pem = |source| ContextError::Pem {
        path: path.to_owned(),
        source,
    };
    CertificateDer::pem_file_iter(path)
        .map_err(pem)?
        .collect::<Result<_, _>>()
        .map_err(pem)
}
