//! Endpoints as the trait sees them: an address on the bridge, a spec file, a process that serves it.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

use nix::libc;
use windlass_common::id::ClusterName;

use super::files::{What, list, make_dir, read_json, read_small, remove_file, write_json};
use super::sys::PidFd;
use super::{Inner, network};
use crate::provider::{EndpointRequest, EndpointView, ProviderError};

/// How long the process may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end: it gives open connections a moment.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at its lock.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Most backends of an endpoint: control-plane machines, old and new during a replacement.
const BACKENDS_MAX: usize = 64;

impl Inner {
    /// See [`crate::provider::Provider::ensure_endpoint`].
    pub(super) fn ensure_endpoint(
        &self,
        request: &EndpointRequest,
    ) -> Result<EndpointView, ProviderError> {
        self.check_address("endpoint address", request.address)?;
        if request.backends.len() > BACKENDS_MAX {
            return Err(ProviderError::Invalid {
                what: "number of backends",
                value: request.backends.len().to_string(),
                allowed: format!("at most {BACKENDS_MAX}"),
            });
        }
        self.busy
            .alone(format!("endpoint/{}", request.cluster), || {
                self.refuse_taken_endpoint(request)?;
                let spec = self.layout.endpoint_file(&request.cluster, "json");
                let before: Option<EndpointRequest> = read_json(&spec)?;
                let moved = before
                    .as_ref()
                    .filter(|b| (b.address, b.port) != (request.address, request.port));
                if let Some(before) = moved {
                    self.end_endpoint(&request.cluster)?;
                    network::delete_host_address(&self.layout, before.address)?;
                }
                self.ensure_host(|| {
                    make_dir(&self.layout.endpoints(), 0o700)?;
                    write_json(&spec, request)
                })?;
                network::add_host_address(&self.layout, request.address)?;
                match self.endpoint_process(&request.cluster) {
                    Some(process) if before.as_ref() != Some(request) => {
                        process
                            .signal(libc::SIGHUP)
                            .what(|| "cannot signal an endpoint".to_owned())?;
                    }
                    Some(_) => {}
                    None => self.start_endpoint(&request.cluster)?,
                }
                Ok(self.endpoint_view(request.clone()))
            })
    }

    fn refuse_taken_endpoint(&self, request: &EndpointRequest) -> Result<(), ProviderError> {
        let machine = self
            .machines()?
            .into_iter()
            .find(|m| m.address == request.address);
        let other = self
            .endpoints()?
            .into_iter()
            .find(|e| e.address == request.address && e.cluster != request.cluster);
        let found = match (machine, other) {
            (Some(machine), _) => format!("held by machine {}", machine.name),
            (None, Some(other)) => format!("held by the endpoint of cluster {}", other.cluster),
            (None, None) => return Ok(()),
        };
        Err(ProviderError::Conflict {
            kind: "address",
            name: request.address.to_string(),
            found,
            wanted: format!("the endpoint of cluster {}", request.cluster),
        })
    }

    fn start_endpoint(&self, cluster: &ClusterName) -> Result<(), ProviderError> {
        let spec = self.layout.endpoint_file(cluster, "json");
        let args = [
            OsStr::new("endpoint"),
            OsStr::new("--spec"),
            spec.as_os_str(),
        ];
        let log = self.layout.endpoint_file(cluster, "log");
        // Only what the present process says is of interest.
        remove_file(&log)?;
        self.children.start(
            &self.director_exe,
            &args,
            &log,
            Instant::now() + START_LIMIT,
        )
    }

    /// The process that serves the endpoint, if one lives.
    fn endpoint_process(&self, cluster: &ClusterName) -> Option<PidFd> {
        let path = self.layout.endpoint_file(cluster, "lock");
        let text = String::from_utf8(read_small(&path).ok()??).ok()?;
        let pidfd = PidFd::open(text.trim().parse().ok()?).ok()?;
        // Looked at after the descriptor is open: a held lock proves that its signer lives.
        let file = File::open(&path).ok()?;
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)).then_some(pidfd)
    }

    fn end_endpoint(&self, cluster: &ClusterName) -> Result<(), ProviderError> {
        let deadline = Instant::now() + END_LIMIT;
        let mut signal = libc::SIGTERM;
        while let Some(process) = self.endpoint_process(cluster) {
            process
                .signal(signal)
                .what(|| "cannot end an endpoint".to_owned())?;
            let waited = process
                .wait(deadline)
                .what(|| "cannot wait for an endpoint".to_owned())?;
            if !waited && signal == libc::SIGKILL {
                return Err(ProviderError::Deadline {
                    what: format!("the end of the endpoint of cluster {cluster}"),
                    limit_ms: END_LIMIT.as_millis() as u64,
                });
            }
            signal = libc::SIGKILL;
            std::thread::sleep(LOOK_AGAIN);
        }
        self.children.reap();
        Ok(())
    }

    /// See [`crate::provider::Provider::delete_endpoint`].
    pub(super) fn delete_endpoint(&self, cluster: &ClusterName) -> Result<(), ProviderError> {
        self.busy.alone(format!("endpoint/{cluster}"), || {
            self.end_endpoint(cluster)?;
            let spec = self.layout.endpoint_file(cluster, "json");
            if let Some(found) = read_json::<EndpointRequest>(&spec)? {
                network::delete_host_address(&self.layout, found.address)?;
            }
            for extension in ["log", "lock", "json"] {
                remove_file(&self.layout.endpoint_file(cluster, extension))?;
            }
            Ok(())
        })?;
        self.release_host()
    }

    fn endpoint_view(&self, spec: EndpointRequest) -> EndpointView {
        EndpointView {
            running: self.endpoint_process(&spec.cluster).is_some(),
            cluster: spec.cluster,
            address: spec.address,
            port: spec.port,
            backends: spec.backends,
        }
    }

    /// The clusters of which any file of an endpoint is left.
    pub(super) fn endpoint_names(&self) -> Result<Vec<ClusterName>, ProviderError> {
        let files = list(&self.layout.endpoints())?;
        let mut names: Vec<ClusterName> = files
            .iter()
            .filter_map(|f| f.rsplit_once('.'))
            .filter_map(|(name, _)| ClusterName::new(name).ok())
            .collect();
        names.dedup();
        Ok(names)
    }

    /// See [`crate::provider::Provider::endpoints`].
    pub(super) fn endpoints(&self) -> Result<Vec<EndpointView>, ProviderError> {
        let mut views = Vec::new();
        for name in self.endpoint_names()? {
            if let Some(spec) = read_json(&self.layout.endpoint_file(&name, "json"))? {
                views.push(self.endpoint_view(spec));
            }
        }
        Ok(views)
    }
}
