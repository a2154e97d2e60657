//! `cargo xtask demo`: from a clean clone to a cluster that runs pods, and back.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::build::{self, Binaries, Profile};
use crate::prerequisites;
use crate::shell::{capture, step};

/// The cluster that the demo creates.
const CLUSTER: &str = "demo";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Remove everything that the demo made: processes, machines, networks, mounts, state.
    #[arg(long)]
    down: bool,
    /// How the director is compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Workers of the cluster.
    #[arg(long, default_value_t = 2)]
    workers: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let demo = Demo {
        dir: build::state().join("demo"),
        binaries: None,
    };
    if options.down {
        demo.down(options)
    } else {
        demo.up(options)
    }?;
    println!("\ndone in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

struct Demo {
    dir: PathBuf,
    binaries: Option<Binaries>,
}

impl Demo {
    fn up(mut self, options: &Options) -> Result<()> {
        prerequisites::install()?;
        let binaries = build::binaries(options.profile)?;
        let stemcells = build::stemcell(&binaries, build::KUBERNETES[0])?;
        self.binaries = Some(binaries);
        if !self.dir.join("director.toml").is_file() {
            step(
                "setting up a director",
                self.windlass()?
                    .args(["director", "init", "--stemcells"])
                    .arg(&stemcells),
            )?;
        }
        step(
            "starting the director",
            self.windlass()?.args(["director", "start"]),
        )?;
        if capture(self.windlass()?.args(["cluster", "show", CLUSTER])).is_err() {
            step(
                &format!("creating cluster {CLUSTER}"),
                self.windlass()?
                    .args(["cluster", "create", CLUSTER, "--wait", "--workers"])
                    .arg(options.workers.to_string()),
            )?;
        }
        let kubeconfig = self.dir.join("kubeconfig");
        step(
            "writing a kubeconfig",
            self.windlass()?
                .args(["cluster", "credentials", CLUSTER, "--write"])
                .arg(&kubeconfig),
        )?;
        let kubectl = build::kubectl(&build::newest_stemcell(build::KUBERNETES[0])?);
        let ask = |what: &[&str]| -> Result<String> {
            capture(
                crate::shell::privileged(&kubectl)
                    .arg("--kubeconfig")
                    .arg(&kubeconfig)
                    .args(what),
            )
        };
        step(
            "waiting for cluster DNS",
            crate::shell::privileged(&kubectl)
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                .args([
                    "-n",
                    "kube-system",
                    "rollout",
                    "status",
                    "deployment/coredns",
                ])
                .arg("--timeout=120s"),
        )?;
        println!(
            "\n$ kubectl get nodes -o wide\n{}",
            ask(&["get", "nodes", "-o", "wide"])?
        );
        println!(
            "$ kubectl get pods -A -o wide\n{}",
            ask(&["get", "pods", "-A", "-o", "wide"])?
        );
        self.next_steps(&kubeconfig)
    }

    fn next_steps(&self, kubeconfig: &std::path::Path) -> Result<()> {
        let bin = &self
            .binaries
            .as_ref()
            .context("binaries are built by now")?
            .dir;
        println!("Try next:");
        println!("  export PATH={}:$PATH", bin.display());
        println!("  export WINDLASS_DIR={}", self.dir.display());
        println!("  export KUBECONFIG={}", kubeconfig.display());
        println!("  windlass node list");
        println!("  windlass cluster show {CLUSTER}");
        println!("  windlass cluster delete {CLUSTER}");
        println!("  cargo xtask demo --down     # removes everything");
        Ok(())
    }

    fn down(mut self, options: &Options) -> Result<()> {
        if !self.dir.exists() {
            println!("nothing to remove: {} is not there", self.dir.display());
            return Ok(());
        }
        // A demo that was cut off before its director was set up has nothing but a directory.
        if self.dir.join("director.toml").is_file() {
            self.binaries = Some(build::binaries(options.profile)?);
            step(
                "removing the director and its machines",
                self.windlass()?.args(["director", "reset", "--yes"]),
            )?;
        }
        step(
            "removing its directory",
            crate::shell::privileged("rm").arg("-rf").arg(&self.dir),
        )
    }

    fn windlass(&self) -> Result<std::process::Command> {
        let binaries = self
            .binaries
            .as_ref()
            .context("binaries are built before they are used")?;
        let mut windlass = binaries.privileged("windlass");
        windlass.arg("--data-dir").arg(&self.dir);
        Ok(windlass)
    }
}
