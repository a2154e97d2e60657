//! A kubeconfig that leads through the director, made of a context: nothing in it is the cluster's.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use windlass_common::secret::Secret;
use zeroize::Zeroizing;

use super::{ContextError, ContextFile};
use crate::kubernetes::render::kubeconfig::{Credentials, Kubeconfig, Server, Source};

/// The kubeconfig of a cluster for whoever the context file at `path` is of: it names the director's API
/// and holds the operator's own certificate and key.
///
/// # Errors
/// See [`ContextError`].
pub fn via_director(path: &Path, cluster: &str) -> Result<Secret, ContextError> {
    let file = ContextFile::read(path)?;
    let beside = |name: &Path| path.parent().unwrap_or(Path::new("")).join(name);
    let encoded = |name: &Path| {
        let path = beside(name);
        let bytes = std::fs::read(&path).map_err(|source| ContextError::Read { path, source })?;
        Ok::<_, ContextError>(STANDARD.encode(Zeroizing::new(bytes)))
    };
    let url = file.url.trim_end_matches('/');
    let name = format!("{cluster}-via-director");
    let kubeconfig = Kubeconfig {
        cluster: &name,
        user: &name,
        server: Server::Url(format!("{url}/v1/clusters/{cluster}/kubernetes")),
        authority: Source::Inline(encoded(&file.ca)?),
        credentials: Credentials::Inline {
            certificate: encoded(&file.certificate)?,
            key: Secret::new(encoded(&file.key)?),
        },
    };
    Ok(Secret::new(kubeconfig.render()))
}
