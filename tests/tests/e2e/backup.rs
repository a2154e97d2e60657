//! A cluster is backed up, and its etcd cared for.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_director::backup::cluster;
use windlass_director::backup::envelope::Identity;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::s3::Store;
use windlass_tests::wait::until;
use windlass_tests::world::{World, required};

use crate::faults::is;
use crate::lifecycle::{healthy, items};

/// The cluster; its machines are `bkp-cp-0` and so on.
const NAME: &str = "bkp";
/// How long a backup, or an act of care, may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(240);

/// Backups, here in a bucket, hold what a cluster is made of and open; a director that is killed loses and doubles none.
/// Members of etcd are rewritten one at a time, the leader last, and an alarm is put out once there is room. The cluster
/// is made again from the bucket, although its encryption key was rotated since.
pub(crate) fn backed_up_and_cared_for() -> Result<()> {
    let store = Store::start()?;
    let world = World::start(NAME)?;
    world.extend(&store.section())?;
    let file = world.dir().join("cluster.yaml");
    std::fs::write(
        &file,
        "name: bkp\ncontrolPlane: {count: 3, size: {memoryMib: 1024, diskMib: 2048}}\n\
         pools: {workers: {count: 1, size: {memoryMib: 512}}}\n",
    )?;
    let path = file.to_string_lossy().into_owned();
    world.run(&["cluster", "create", "-f", &path, "--wait"])?;
    let kubectl = world.kubectl(NAME)?;
    healthy(&kubectl, 4)?;
    by_schedule(&world)?;
    let name = ordered(&world, &kubectl)?;
    through_a_crash(&world)?;
    defragmented(&world)?;
    alarm_put_out(&world, &kubectl)?;
    made_again(&world, &kubectl, &name)?;
    world.run(&["cluster", "delete", NAME, "--yes", "--wait"])?;
    // The one that was made again may have been backed up by itself.
    let left = names(&world)?;
    ensure!(
        left.len() >= 2 && left.contains(&name),
        "backups outlive their cluster: {left:?}"
    );
    ensure!(
        std::fs::read_dir(store.files().join(NAME))?.count() == 2 * left.len(),
        "each has an entry and an archive, and nothing else is there: {left:?}"
    );
    Ok(())
}

fn backups(world: &World) -> Result<Value> {
    world.json(&["cluster", "backups", "list", NAME])
}

fn names(world: &World) -> Result<Vec<String>> {
    let list = backups(world)?;
    let name = |item: &Value| item["name"].as_str().map(str::to_owned);
    Ok(items(&list)?.iter().filter_map(name).collect())
}

/// The first comes by itself; it is deleted by its name.
fn by_schedule(world: &World) -> Result<()> {
    let first = until("a backup comes by itself", PATIENCE, || {
        let list = backups(world)?;
        Ok(items(&list)?.first().cloned())
    })?;
    ensure!(first["reason"] == "scheduled", "{first}");
    let name = first["name"].as_str().context("it has a name")?;
    world.run(&["cluster", "backups", "delete", NAME, name, "--yes"])?;
    ensure!(names(world)?.is_empty(), "it is still listed");
    Ok(())
}

/// The cluster is made again from the bucket, by a backup of before its encryption key was rotated: what was written
/// under the old key is readable, since the backup has that key.
fn made_again(world: &World, kubectl: &Kubectl, backup: &str) -> Result<()> {
    let secret = || -> Result<String> {
        let secret = kubectl.get(&["secret", "kept"])?;
        let word = secret["data"]["word"].as_str().context("it has a word")?;
        Ok(word.to_owned())
    };
    let before = secret()?;
    let finished = |order: &[&str]| -> Result<()> {
        let task = world.json(&[&["cluster"], order].concat())?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        let task = world.task_ended(&task, 2 * PATIENCE)?;
        ensure!(task["state"] == "Succeeded", "{order:?}: {task:#}");
        Ok(())
    };
    finished(&["rotate-encryption-key", NAME])?;
    ensure!(secret()? == before, "it changed with the key");
    world.run(&["cluster", "delete", NAME, "--yes", "--wait"])?;
    let began = std::time::Instant::now();
    // Two tasks: it is made, and then has its data.
    world.run(&[
        "cluster",
        "restore",
        NAME,
        "--from-backup",
        backup,
        "--wait",
    ])?;
    healthy(kubectl, 4)?;
    eprintln!(
        "made again from the bucket: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(secret()? == before, "it is another one");
    // The key in service is the backup's, and the next one follows it.
    finished(&["rotate-encryption-key", NAME])?;
    ensure!(secret()? == before, "it changed with the key");
    Ok(())
}

/// One that is ordered holds what was written just before, and opens with the director's key alone. Returns its name.
fn ordered(world: &World, kubectl: &Kubectl) -> Result<String> {
    kubectl.run(&[
        "create",
        "secret",
        "generic",
        "kept",
        "--from-literal=word=plainly-visible",
    ])?;
    let copies = world.dir().join("copies");
    std::fs::create_dir(&copies)?;
    let to = copies.to_string_lossy().into_owned();
    let made = world.json(&["cluster", "backup", NAME, "--to", &to])?;
    let name = made["name"].as_str().context("it has a name")?;
    let archive = copies.join(format!("{NAME}-{name}.age"));
    eprintln!(
        "backup {name}: {} bytes of {} of etcd, from {}",
        made["archive"]["bytes"], made["snapshot"]["bytes"], made["takenFrom"]
    );
    let whole = std::fs::read(&archive)?;
    ensure!(!holds(&whole, b"CERTIFICATE"), "the archive is readable");
    let snapshot = world.dir().join("opened.db");
    let stranger = cluster::open(&archive, &Identity::generate(), &snapshot);
    ensure!(stranger.is_err(), "anybody opens it");
    let identity = Identity::load(&world.dir().join("backup.key"))?;
    let opened = cluster::open(&archive, &identity, &snapshot)?;
    let manifest = &opened.manifest;
    ensure!(manifest.spec.control_plane.count == 3, "{manifest:?}");
    ensure!(manifest.machines.len() == 4, "{manifest:?}");
    ensure!(
        opened
            .secrets
            .kubernetes
            .certificate_pem
            .contains("BEGIN CERTIFICATE"),
        "no CA"
    );
    // What the real tool says of it.
    let said = etcdutl(&["snapshot", "status", "-w", "json"], &snapshot)?;
    ensure!(
        said["revision"] == manifest.snapshot.revision,
        "{said} {manifest:?}"
    );
    ensure!(
        said["hash"] == manifest.snapshot.hash,
        "{said} {manifest:?}"
    );
    ensure!(
        said["totalKey"] == manifest.snapshot.keys,
        "{said} {manifest:?}"
    );
    ensure!(manifest.snapshot.restored, "{manifest:?}");
    let data = std::fs::read(&snapshot)?;
    ensure!(
        holds(&data, b"/registry/secrets/default/kept"),
        "the Secret is not in it"
    );
    ensure!(
        !holds(&data, b"plainly-visible"),
        "the Secret is readable in etcd"
    );
    let key = &opened.secrets.encryption.first().context("a key")?.name;
    let prefix = format!(":{key}:");
    ensure!(
        holds(&data, prefix.as_bytes()),
        "nothing is encrypted with {key}"
    );
    let restored = world.dir().join("restored");
    let to = format!("--data-dir={}", restored.display());
    etcdutl_runs(&["snapshot", "restore", &to], &snapshot)?;
    // The director opens it from where it is, and says what going back to it would do.
    let plan = ["cluster", "restore", NAME, "--from-backup", name];
    let plan = world.json(&[&plan[..], &["--dry-run"]].concat())?;
    let members = plan["restore"]["members"].as_array();
    ensure!(
        members.is_some_and(|members| members.len() == 3),
        "members: {plan:#}"
    );
    Ok(name.to_owned())
}

fn holds(data: &[u8], what: &[u8]) -> bool {
    data.windows(what.len()).any(|window| window == what)
}

fn etcdutl_runs(arguments: &[&str], file: &Path) -> Result<Vec<u8>> {
    let stemcells = required("WINDLASS_TEST_STEMCELLS")?;
    let program = "latest-1.37.2/rootfs/opt/windlass/components/etcd/current/etcdutl";
    let output = Command::new(stemcells.join(program))
        .args(arguments)
        .arg(file)
        .output()
        .context("cannot start etcdutl")?;
    ensure!(
        output.status.success(),
        "etcdutl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn etcdutl(arguments: &[&str], file: &Path) -> Result<Value> {
    let said = etcdutl_runs(arguments, file)?;
    serde_json::from_slice(&said).context("etcdutl said no JSON")
}

/// A director that is killed while it makes one goes on with it, under the same name and once.
fn through_a_crash(world: &World) -> Result<()> {
    let before = names(world)?;
    let mut ordering = world
        .command(&["cluster", "backup", NAME])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let running = until("one is under way", PATIENCE, || {
        let list = backups(world)?;
        Ok(list["state"]["running"]["name"].as_str().map(str::to_owned))
    })?;
    world.crash_director()?;
    ordering.wait()?;
    let after = until("it is in its place", PATIENCE, || {
        let found = names(world)?;
        Ok(found.contains(&running).then_some(found))
    })?;
    ensure!(
        after.len() == before.len() + 1,
        "{before:?}, then {after:?}"
    );
    let list = backups(world)?;
    ensure!(list["state"]["failed"].is_null(), "{list}");
    Ok(())
}

/// Runs a script on a control-plane machine, where `etcdctl` asks the machine's own member.
fn on(world: &World, machine: &str, script: &str) -> Result<String> {
    let script = format!(
        "cd /etc/kubernetes/pki && etcdctl() {{ /opt/windlass/components/etcd/current/etcdctl \
         --endpoints=https://127.0.0.1:2379 --cacert=etcd-ca.crt --cert=apiserver-etcd-client.crt \
         --key=apiserver-etcd-client.key \"$@\"; }}; {script}"
    );
    world.run(&["node", "exec", machine, "--", "sh", "-c", &script])
}

/// Puts so many values of a megabyte; ends at the first that is refused.
fn fill(count: u32) -> String {
    format!(
        "head -c 700000 /dev/urandom | base64 -w0 > /tmp/value; \
         for i in $(seq {count}); do etcdctl put /fill/$i < /tmp/value > /dev/null || break; done"
    )
}

/// Deletes them, and has all old revisions forgotten.
const EMPTY: &str = "etcdctl del /fill --prefix > /dev/null; \
    etcdctl compact $(etcdctl get x -w json | sed 's/.*\"revision\":\\([0-9]*\\).*/\\1/')";

/// The largest database of the members, bytes, and the name of the one that leads.
fn databases(world: &World) -> Result<u64> {
    let text = on(
        world,
        "bkp-cp-0",
        "etcdctl endpoint status --cluster -w json",
    )?;
    let list: Value = serde_json::from_str(text.trim()).context("etcdctl said no JSON")?;
    let all = list.as_array().context("a list")?;
    let sizes = all.iter().filter_map(|of| of["Status"]["dbSize"].as_u64());
    sizes.max().context("no member says how large it is")
}

/// The machines that the director acted on so, oldest first.
fn acts(world: &World, action: &str) -> Result<Vec<String>> {
    let log = world.json(&["audit", "--action", action, "--limit", "1000"])?;
    let of = |entry: &&Value| entry["action"] == action;
    let subject = |entry: &Value| entry["subject"].as_str().map(str::to_owned);
    let mut acts: Vec<String> = items(&log)?.iter().filter(of).filter_map(subject).collect();
    acts.reverse();
    Ok(acts)
}

fn defragmented(world: &World) -> Result<()> {
    on(world, "bkp-cp-0", &fill(130))?;
    let full = databases(world)?;
    ensure!(full > 110 << 20, "{full} bytes are too few");
    let leader = leader(world)?;
    on(world, "bkp-cp-0", EMPTY)?;
    until("all members are small", PATIENCE, || {
        Ok((databases(world)? < 60 << 20).then_some(()))
    })?;
    let done = acts(world, "etcd.defragment")?;
    ensure!(done.len() == 3, "each once: {done:?}");
    eprintln!(
        "{full} bytes, then {}; in this order: {done:?}, the leader was {leader}",
        databases(world)?
    );
    ensure!(
        done[2] == format!("machine/{leader}"),
        "the leader {leader} is not the last: {done:?}"
    );
    ensure!(
        acts(world, "etcd.move-leader")? == [format!("machine/{leader}")],
        "another leads first"
    );
    Ok(())
}

/// The machine whose member leads.
fn leader(world: &World) -> Result<String> {
    let text = on(
        world,
        "bkp-cp-0",
        "etcdctl endpoint status --cluster -w json",
    )?;
    let list: Value = serde_json::from_str(text.trim()).context("etcdctl said no JSON")?;
    let leader = list[0]["Status"]["leader"]
        .as_u64()
        .context("somebody leads")?;
    let members = crate::lifecycle::etcd_members(world, "bkp-cp-0")?;
    let found = members
        .iter()
        .find(|member| member["ID"].as_u64() == Some(leader));
    let name = found.and_then(|member| member["name"].as_str());
    name.map(str::to_owned).context("the leader is no member")
}

/// One member has a small quota: it takes no more writes, for all, until the director has made room.
fn alarm_put_out(world: &World, kubectl: &Kubectl) -> Result<()> {
    let small = "sed -i 's/--quota-backend-bytes=[0-9]*/--quota-backend-bytes=67108864/' /etc/windlass/units/etcd.env && \
        systemctl restart etcd";
    on(world, "bkp-cp-1", small)?;
    until("its member is back", PATIENCE, || {
        Ok(on(world, "bkp-cp-1", "etcdctl endpoint health").ok())
    })?;
    on(world, "bkp-cp-1", &fill(90))?;
    let alarms = on(world, "bkp-cp-0", "etcdctl alarm list")?;
    ensure!(alarms.contains("NOSPACE"), "no alarm: {alarms:?}");
    let refused = kubectl.refused(&["create", "configmap", "full"])?;
    ensure!(refused.contains("space"), "{refused}");
    is(world, "bkp-cp-1", ("etcd-alarm", ""), "bad")?;
    on(world, "bkp-cp-0", EMPTY)?;
    until("no alarm is left", PATIENCE, || {
        let alarms = on(world, "bkp-cp-0", "etcdctl alarm list")?;
        Ok(alarms.trim().is_empty().then_some(()))
    })?;
    is(world, "bkp-cp-1", ("etcd-alarm", ""), "good")?;
    kubectl.run(&["create", "configmap", "room"])?;
    let done = acts(world, "etcd.disarm")?;
    ensure!(!done.is_empty(), "nobody put the alarm out");
    eprintln!("alarm put out by {done:?}");
    Ok(())
}
