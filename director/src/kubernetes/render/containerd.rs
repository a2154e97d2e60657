//! containerd's configuration, version 3 (containerd 2.x).

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::facts::{ClusterFacts, MachineFacts};
use super::flags::Flags;

/// Its configuration file.
pub(super) const CONFIG_PATH: &str = "/etc/containerd/config.toml";

const COMPONENTS: &str = "/opt/windlass/components";

#[derive(Serialize)]
struct Config<'a> {
    version: u32,
    oom_score: i32,
    plugins: Plugins<'a>,
}

#[derive(Serialize)]
struct Plugins<'a> {
    #[serde(rename = "io.containerd.cri.v1.images")]
    images: Images<'a>,
    #[serde(rename = "io.containerd.cri.v1.runtime")]
    runtime: Runtime,
}

#[derive(Serialize)]
struct Images<'a> {
    snapshotter: &'static str,
    pinned_images: PinnedImages<'a>,
    registry: Registry,
}

#[derive(Serialize)]
struct PinnedImages<'a> {
    sandbox: &'a str,
}

/// Mirrors and their trust, one folder a registry; none is written yet.
#[derive(Serialize)]
struct Registry {
    config_path: &'static str,
}

#[derive(Serialize)]
struct Runtime {
    restrict_oom_score_adj: bool,
    /// A system container cannot load profiles into the host's kernel.
    disable_apparmor: bool,
    cni: Cni,
    containerd: Containerd,
}

#[derive(Serialize)]
struct Cni {
    bin_dirs: [String; 1],
    conf_dir: &'static str,
}

#[derive(Serialize)]
struct Containerd {
    default_runtime_name: &'static str,
    runtimes: BTreeMap<&'static str, OciRuntime>,
}

#[derive(Serialize)]
struct OciRuntime {
    runtime_type: &'static str,
    options: RuncOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RuncOptions {
    binary_name: String,
    systemd_cgroup: bool,
}

/// The configuration file.
pub(super) fn config(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    let restricted = machine.host.restrict_oom_score_adj;
    let runc = OciRuntime {
        runtime_type: "io.containerd.runc.v2",
        options: RuncOptions {
            binary_name: format!("{COMPONENTS}/runc/current/runc"),
            systemd_cgroup: true,
        },
    };
    let config = Config {
        version: 3,
        // Below every pod, so that an out-of-memory kill takes a pod and not the runtime.
        oom_score: if restricted { 0 } else { -999 },
        plugins: Plugins {
            images: Images {
                snapshotter: "overlayfs",
                pinned_images: PinnedImages {
                    sandbox: &cluster.images.pause,
                },
                registry: Registry {
                    config_path: "/etc/containerd/certs.d",
                },
            },
            runtime: Runtime {
                restrict_oom_score_adj: restricted,
                disable_apparmor: restricted,
                cni: Cni {
                    bin_dirs: [format!("{COMPONENTS}/cni-plugins/current")],
                    conf_dir: "/etc/cni/net.d",
                },
                containerd: Containerd {
                    default_runtime_name: "runc",
                    runtimes: BTreeMap::from([("runc", runc)]),
                },
            },
        },
    };
    // Tables come after plain values in every struct above, which is all that TOML asks for.
    toml::to_string(&config).expect("plain values serialise to TOML")
}

/// Its flags.
pub(super) fn flags() -> Flags {
    Flags::default().set("config", CONFIG_PATH)
}
