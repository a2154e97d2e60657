//! A virtual machine for what only a whole machine has: the kernel's watchdog, which restarts it.
//!
//! A stock Debian kernel under QEMU's own processor, with `i6300esb`, the watchdog that QEMU and most clouds give their
//! machines. Its first process runs one test of the agent, whose words on the console are what is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::shell::{capture, command, has, privileged, step};

/// The test that restarts the machine it runs on.
const TEST: &str = "fence::watchdog::tests::a_kernels_watchdog_restarts_the_machine";
/// Programs that it takes, and their packages.
const PROGRAMS: [(&str, &str); 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio")];
/// Modules of the kernel, in the order in which they are loaded.
const MODULES: [&str; 2] = ["watchdog.ko", "i6300esb.ko"];
/// A boot takes ten seconds, the test twenty.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs that test in a virtual machine, which its watchdog has to restart when it should, and not before.
pub(crate) fn watchdog() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !has(program))
        .collect();
    if !missing.is_empty() {
        let packages = missing.iter().map(|(_, package)| package);
        let mut apt = privileged("apt-get");
        apt.args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages);
        step("installing a virtual machine", &mut apt)?;
    }
    let dir = build::state().join("vm");
    let (kernel, modules) = kernel(&dir)?;
    let busybox = package(&dir, "busybox-static")?.join("bin/busybox");
    let image = image(&dir, &modules, &busybox)?;
    let began = Instant::now();
    let console = boot(&dir, &kernel, &image)?;
    let said = |what: &str| console.contains(&format!("WATCHDOG: {what}"));
    let (late, early) = (
        "nothing restarted what was not",
        "nothing restarted what was taken back",
    );
    ensure!(
        said("counts") && said(early) && !said(late),
        "the kernel's watchdog did not do what it was told; the console:\n{console}"
    );
    println!(
        "    a kernel's watchdog: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A package of the distribution, unpacked; it is fetched once.
fn package(dir: &Path, name: &str) -> Result<PathBuf> {
    let unpacked = dir.join(name);
    if unpacked.is_dir() {
        return Ok(unpacked);
    }
    let fetched = dir.join(format!("{name}.fetched"));
    fs::create_dir_all(&fetched).with_context(|| format!("cannot make {}", fetched.display()))?;
    step(
        &format!("fetching {name}"),
        command("apt-get")
            .current_dir(&fetched)
            .args(["download", "-qq", name]),
    )?;
    let found = fs::read_dir(&fetched)?
        .next()
        .context("apt-get has downloaded nothing")??;
    let partial = dir.join(format!("{name}.partial"));
    capture(
        command("dpkg-deb")
            .arg("-x")
            .arg(found.path())
            .arg(&partial),
    )?;
    fs::rename(&partial, &unpacked)
        .with_context(|| format!("cannot make {}", unpacked.display()))?;
    fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
    Ok(unpacked)
}

/// Debian's kernel, and the directory of its watchdogs' modules.
fn kernel(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let depends = capture(command("apt-cache").args(["depends", "linux-image-amd64"]))
        .context("a kernel for the virtual machine: package linux-image-amd64 of Debian")?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    let name = name.context("linux-image-amd64 depends on no kernel")?;
    let unpacked = package(dir, name)?;
    let release = name.strip_prefix("linux-image-").unwrap_or(name);
    let modules = unpacked.join(format!("lib/modules/{release}/kernel/drivers/watchdog"));
    Ok((unpacked.join(format!("boot/vmlinuz-{release}")), modules))
}

/// The root of the machine: the test, what it is linked to, and a shell that starts it.
fn image(dir: &Path, modules: &Path, busybox: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    let put = |from: &Path, to: &str| -> Result<()> {
        let to = root.join(to.trim_start_matches('/'));
        let parent = to.parent().context("a file has a directory")?;
        fs::create_dir_all(parent)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    };
    let test = build::agent_tests()?;
    put(&test, "test")?;
    put(busybox, "bin/busybox")?;
    for module in MODULES {
        put(&modules.join(module), module)?;
    }
    for library in capture(command("ldd").arg(&test))?
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        put(Path::new(library), library)?;
    }
    let load = MODULES.map(|module| format!("insmod /{module}")).join("\n");
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\nmkdir -p /dev /proc /sys\n\
         mount -t devtmpfs dev /dev\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n\
         exec </dev/console >/dev/console 2>&1\n{load}\n\
         /test --ignored --exact {TEST} --nocapture\npoweroff -f\n"
    );
    let path = root.join("init");
    fs::write(&path, init).with_context(|| format!("cannot write {}", path.display()))?;
    capture(command("chmod").arg("755").arg(&path))?;
    let image = dir.join("root.cpio");
    let script = format!(
        "cd '{}' && find . | cpio --quiet --create --format=newc > '{}'",
        root.display(),
        image.display()
    );
    capture(command("sh").args(["-e", "-c", &script]))?;
    Ok(image)
}

/// Runs the machine until it is off or restarted; returns its console.
fn boot(dir: &Path, kernel: &Path, image: &Path) -> Result<String> {
    let log = dir.join("console.log");
    let mut machine = command("qemu-system-x86_64");
    machine
        .args([
            "-accel",
            "tcg",
            "-m",
            "768",
            "-nic",
            "none",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args([
            "-no-user-config",
            "-device",
            "i6300esb",
            "-action",
            "watchdog=reset",
        ])
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdout(Stdio::null());
    let mut machine = machine.spawn().context("cannot start qemu-system-x86_64")?;
    let began = Instant::now();
    loop {
        if let Some(status) = machine.try_wait()? {
            ensure!(status.success(), "the virtual machine failed: {status}");
            return fs::read_to_string(&log)
                .with_context(|| format!("cannot read {}", log.display()));
        }
        if began.elapsed() > LIMIT {
            machine.kill()?;
            machine.wait()?;
            bail!(
                "the virtual machine did not end in {} s; see {}",
                LIMIT.as_secs(),
                log.display()
            );
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
