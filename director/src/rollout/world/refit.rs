//! Components that are changed in place: staged beside those that run, switched to by links, and judged by what runs
//! then.
//!
//! # Invariants
//! * Files of a version are written only while no link leads to it, and the links are switched after all of them are
//!   there.
//! * On the machine stay the version that runs and the one that is to run; older ones go before the next comes.
//! * What is rolled back runs from links to what was there before: nothing has to be fetched for it.
//!
//! # After a crash
//! Each step finds what is there already; which stemcells' components may be on a machine is written down before any
//! of them is.
//!
//! # Not here
//! Whether a machine is changed in place ([`crate::planner::refit`]), and the way back (`world/cancel.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;
use windlass_common::limits::COMPONENT_BYTES_MAX;
use windlass_common::stemcell::ROOTFS;
use windlass_common::step::{Configure, Fetch, FileContent, FileSpec, Outcome, Step};

use super::context::ClusterContext;
use super::node::succeeded;
use super::{Done, EffectError, RecordChange, StepOrder, World};
use crate::kubernetes::render;
use crate::model::{Inside, Machine};
use crate::planner::refit;

/// How long all of a machine may take to be healthy after units were started with other components. An API server is
/// ready within 10 s of its etcd; a database of 8 GiB is opened in 30 s.
const HEALTHY: Duration = Duration::from_secs(60);

impl World {
    /// Brings the components of a stemcell that a machine does not run yet beside those that it does.
    pub(super) async fn stage_components(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        stemcell: &str,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let to = context.stemcell_of(machine, stemcell)?;
        let runs = context.versions(machine, machine.runs())?;
        let versions = to.inside.versions();
        let staging = RecordChange::Staging(name.clone(), stemcell.to_owned());
        self.note(staging, &machine.cluster).await?;
        let mut files = Vec::new();
        for component in refit::switched(&runs, &versions).keys() {
            let Some(part) = to.inside.parts.get(component) else {
                continue;
            };
            order
                .progress
                .stage(format!("{component} {}", part.version));
            for (number, file) in part.files.iter().enumerate() {
                let from = to.path.join(ROOTFS).join(&file.path);
                let (artifacts, digest) = (self.artifacts.clone(), file.digest);
                let publish = move || artifacts.publish(&digest, &from, COMPONENT_BYTES_MAX);
                let bytes = tokio::task::spawn_blocking(publish)
                    .await
                    .map_err(|error| EffectError::of(ErrorClass::Bug, &error))?
                    .map_err(|error| EffectError::of(error.class(), &error))?;
                let fetch = Step::Fetch(Fetch { digest, bytes });
                let suffix = format!("/fetch-{component}-{number}");
                self.send(machine, order, &suffix, fetch).await?;
                files.push(FileSpec {
                    path: format!("/{}", file.path),
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    content: FileContent::Artifact(digest),
                });
            }
        }
        let stays = [machine.runs(), stemcell];
        let known = machine.staged.iter().chain([&machine.stemcell]);
        let former = known.filter(|known| !stays.contains(&known.as_str()));
        let former = former.filter_map(|known| context.stemcells.get(known));
        let step = Step::Configure(Configure {
            files,
            absent: left_over(former.map(|former| &former.inside), [&runs, &versions]),
            ..Configure::default()
        });
        let result = self.send(machine, order, "", step).await?;
        let staged = machine.staged.iter().filter(|staged| *staged != stemcell);
        // One whose stemcell is not known any more is tried again the next time.
        let staged = staged.filter(|staged| {
            stays.contains(&staged.as_str()) || !context.stemcells.contains_key(*staged)
        });
        let staged = staged.cloned().chain([stemcell.to_owned()]);
        Ok(Done {
            changes: result.changes,
            records: vec![RecordChange::Staged(name.clone(), staged.collect())],
        })
    }

    /// Waits until all that runs on a machine is healthy, where it has other components since it was started. That it
    /// is not is no reason to try again, but to go back.
    pub(super) async fn await_health(
        &self,
        context: &ClusterContext,
        machine: &Machine,
        order: &StepOrder,
    ) -> Result<(), EffectError> {
        if !machine.is_refitted() {
            return Ok(());
        }
        let gate = render::machine_gate(&context.machine_facts(&machine.name)?.role);
        let limited = StepOrder {
            limit: order.limit.min(HEALTHY),
            ..order.clone()
        };
        let mut result = self
            .deliver(machine, &limited, "/healthy", Step::Gate(gate))
            .await?;
        if let Outcome::Failed { class, message } = &mut result.outcome {
            *class = ErrorClass::Operator;
            *message = format!("with its new components it is not healthy: {message}");
        }
        succeeded(machine, result).map(drop)
    }
}

/// Files of former components, and then their directories, that neither of those has that stay.
fn left_over<'a>(
    former: impl Iterator<Item = &'a Inside>,
    stay: [&BTreeMap<String, String>; 2],
) -> Vec<String> {
    let stays = |name: &str, version: &str| {
        let mut of = stay.iter().filter_map(|versions| versions.get(name));
        of.any(|of| of == version)
    };
    let mut files = BTreeSet::new();
    let mut directories = BTreeSet::new();
    for (name, part) in former.flat_map(|inside| &inside.parts) {
        if stays(name, &part.version) {
            continue;
        }
        files.extend(part.files.iter().map(|file| format!("/{}", file.path)));
        directories.insert(format!(
            "{}/{name}/{}",
            render::COMPONENTS_DIRECTORY,
            part.version
        ));
    }
    files.into_iter().chain(directories).collect()
}

/// Links to the components that a machine runs, or is to run, otherwise than it was made with.
pub(super) fn switched(
    context: &ClusterContext,
    machine: &Machine,
) -> Result<BTreeMap<String, String>, EffectError> {
    if machine.is_to_run() == machine.stemcell {
        return Ok(BTreeMap::new());
    }
    let own = context.stemcell(machine)?.inside.versions();
    let runs = context.versions(machine, machine.is_to_run())?;
    let switched = refit::switched(&own, &runs).into_iter();
    Ok(switched
        .map(|(component, version)| (render::component_link(&component), version))
        .collect())
}

/// Links to all components that a machine runs, or is to run, once others were brought to it.
pub(super) fn links(
    context: &ClusterContext,
    machine: &Machine,
) -> Result<BTreeMap<String, String>, EffectError> {
    if machine.staged.is_empty() {
        return Ok(BTreeMap::new());
    }
    let stemcell = machine.is_to_run();
    if machine.is_refitted() && !machine.staged.iter().any(|staged| staged == stemcell) {
        let message = format!(
            "{} is to run the components of {stemcell}, which were not brought to it",
            machine.name
        );
        return Err(EffectError::new(ErrorClass::Bug, message));
    }
    let versions = context.versions(machine, stemcell)?.into_iter();
    Ok(versions
        .map(|(component, version)| (render::component_link(&component), version))
        .collect())
}

#[cfg(test)]
mod tests {
    use windlass_common::id::Digest;
    use windlass_common::stemcell::ComponentFile;

    use super::*;
    use crate::model::Part;

    fn inside(parts: &[(&str, &str)]) -> Inside {
        let part = |(name, version): &(&str, &str)| {
            let file = ComponentFile {
                path: format!("opt/windlass/components/{name}/{version}/{name}"),
                digest: Digest::of(version.as_bytes()),
                bytes: 1,
            };
            let part = Part {
                version: (*version).to_owned(),
                files: vec![file],
            };
            ((*name).to_owned(), part)
        };
        Inside {
            parts: parts.iter().map(part).collect(),
            ..Inside::default()
        }
    }

    #[test]
    fn what_neither_runs_nor_is_to_run_goes_file_by_file() {
        let first = inside(&[("etcd", "1"), ("runc", "1"), ("cni", "1")]);
        let second = inside(&[("etcd", "2"), ("runc", "1"), ("cni", "2")]);
        let third = inside(&[("etcd", "3"), ("runc", "2"), ("cni", "1")]);
        assert_eq!(
            left_over(
                [&first].into_iter(),
                [&second.versions(), &third.versions()]
            ),
            [
                "/opt/windlass/components/etcd/1/etcd",
                "/opt/windlass/components/etcd/1"
            ]
        );
        let none: [String; 0] = [];
        let versions = [&first.versions(), &second.versions()];
        assert_eq!(left_over([].into_iter(), versions), none);
    }
}
