//! `windlass cluster …`.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use windlass_common::maintenance::FreezeSpec;
use windlass_director::api::RotateSecrets;
use windlass_director::client::Client;
use windlass_director::config::write_atomic;
use windlass_director::maintenance::{self, WindowView};
use windlass_director::model::{Action, Cluster, Plan, RotationKind, Task};
use windlass_director::spec::{
    INPUT_BYTES_MAX, RawClusterSpec, RawControlPlane, RawNetwork, RawPool,
};

use crate::args::{ClusterCommand, SpecArgs};
use crate::failure::{Failure, NOT_FOUND, USAGE};
use crate::output::{age, note, table};
use crate::plan::explain;
use crate::{Session, agents, change, cluster_backup, progress, renewal as renew, restore, shown};

pub(crate) async fn run(session: &Session, command: ClusterCommand) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    match command {
        ClusterCommand::Create { spec, wait } => create(session, &client, &spec, wait).await,
        ClusterCommand::List => list(session, &client).await,
        ClusterCommand::Show { name } => shown::run(session, &client, &name).await,
        ClusterCommand::Apply {
            file,
            stemcell,
            change,
        } => change::apply(session, &client, &file, stemcell, &change).await,
        ClusterCommand::Scale {
            name,
            pool,
            control_plane,
            change,
        } => {
            let sizes = change::Sizes {
                pools: &pool,
                control_plane,
            };
            change::scale(session, &client, &name, sizes, &change).await
        }
        ClusterCommand::Upgrade {
            name,
            to,
            stemcell,
            change,
        } => change::upgrade(session, &client, &name, to.as_deref(), stemcell, &change).await,
        ClusterCommand::UpgradeAgents {
            name,
            machine,
            at_a_time,
            upgrade,
        } => agents::upgrade(session, &client, &name, machine, at_a_time, upgrade).await,
        ClusterCommand::Restore { name, restore } => {
            restore::restore(session, &client, &name, restore).await
        }
        ClusterCommand::Backup { name, to } => {
            cluster_backup::back_up(session, &client, &name, to.as_deref()).await
        }
        ClusterCommand::Backups(command) => cluster_backup::run(session, &client, command).await,
        ClusterCommand::RenewCertificates {
            name,
            machine,
            renewal,
        } => renew::certificates(session, &client, &name, machine, renewal).await,
        ClusterCommand::RotateCa {
            name,
            prepare,
            accept_downtime,
            renewal,
        } => {
            let what = RotateSecrets {
                what: RotationKind::Authorities,
                prepare,
                accept_downtime,
            };
            renew::rotate(session, &client, &name, what, renewal).await
        }
        ClusterCommand::RotateEncryptionKey {
            name,
            accept_downtime,
            renewal,
        } => {
            let what = RotateSecrets {
                what: RotationKind::EncryptionKey,
                prepare: false,
                accept_downtime,
            };
            renew::rotate(session, &client, &name, what, renewal).await
        }
        ClusterCommand::Plan { spec, delete } => plan(session, &client, &spec, delete).await,
        ClusterCommand::Credentials {
            name,
            write,
            via_director,
        } => credentials(session, &client, &name, write.as_deref(), via_director).await,
        ClusterCommand::Delete { name, yes, wait } => {
            delete(session, &client, &name, yes, wait).await
        }
    }
}

async fn create(
    session: &Session,
    client: &Client,
    spec: &SpecArgs,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let answer = client.post("/v1/clusters", body(spec)?).await?;
    ordered(session, client, &answer, wait).await
}

/// Shows the task that was ordered, or waits for its end.
pub(crate) async fn ordered(
    session: &Session,
    client: &Client,
    answer: &Value,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let task: Task = client.typed(answer)?;
    if wait {
        return progress::wait(session, client, &task.id).await;
    }
    session.output.answer(answer, || {
        let id = &task.id;
        format!(
            "task {id} ({}) of cluster {}: `windlass task watch {id}` follows it",
            task.kind, task.cluster
        )
    });
    Ok(ExitCode::SUCCESS)
}

async fn list(session: &Session, client: &Client) -> Result<ExitCode, Failure> {
    let answer = client.get("/v1/clusters").await?;
    let clusters: Vec<Cluster> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let rows = clusters.iter().map(|cluster| {
            let workers: u32 = cluster.spec.pools.values().map(|pool| pool.count).sum();
            vec![
                cluster.spec.name.to_string(),
                cluster.phase.to_string(),
                cluster.spec.kubernetes_version.clone(),
                cluster.spec.control_plane.count.to_string(),
                workers.to_string(),
                format!("{}:{}", cluster.endpoint.address, cluster.endpoint.port),
                age(cluster.created_at),
            ]
        });
        table(
            &[
                "NAME",
                "PHASE",
                "KUBERNETES",
                "CONTROL PLANE",
                "WORKERS",
                "ENDPOINT",
                "AGE",
            ],
            rows,
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// A cluster in full; `freezes` are those of its director.
pub(crate) fn describe(cluster: &Cluster, freezes: &[FreezeSpec]) -> String {
    let spec = &cluster.spec;
    let mut rows = vec![
        ("Name", spec.name.to_string()),
        ("Phase", cluster.phase.to_string()),
        ("Kubernetes", spec.kubernetes_version.clone()),
        ("Stemcell", cluster.stemcell.clone()),
        (
            "Endpoint",
            format!(
                "https://{}:{} ({})",
                cluster.endpoint.name, cluster.endpoint.port, cluster.endpoint.address
            ),
        ),
        (
            "Control plane",
            format!(
                "{} × {}",
                spec.control_plane.count,
                size(&spec.control_plane.size)
            ),
        ),
    ];
    for (name, pool) in &spec.pools {
        rows.push((
            "Pool",
            format!("{name}: {} × {}", pool.count, size(&pool.size)),
        ));
    }
    if let Some(upgrade) = &cluster.upgrade {
        rows.push(("Upgrade", upgrade.to_string()));
    }
    if let Some(minor) = cluster.emulates {
        let says = format!(
            "1.{minor}: API servers and controllers are no more than that until they are raised"
        );
        rows.push(("Emulates", says));
    }
    if let Some(rotation) = &cluster.rotation {
        let (stage, since) = (rotation.stage, rotation.since);
        let waits = match rotation.tokens_until() {
            Some(until) => format!("; the former key for tokens goes after {until}"),
            None => String::new(),
        };
        let says = stage.says();
        rows.push(("Rotation", format!("{stage} since {since}: {says}{waits}")));
    }
    if let Some(at) = cluster.authorities_expire_at {
        rows.push(("Authorities", format!("expire {at}")));
    }
    rows.push(("Pods", spec.network.pod_cidr.to_string()));
    rows.push(("Services", spec.network.service_cidr.to_string()));
    rows.push((
        "Created",
        format!("{} ({} ago)", cluster.created_at, age(cluster.created_at)),
    ));
    if !spec.labels.is_empty() {
        let labels = spec
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        rows.push(("Labels", labels.collect::<Vec<_>>().join(", ")));
    }
    let windows = spec.maintenance.with_freezes(freezes);
    if !windows.is_empty() {
        let window = maintenance::outlook(&windows, jiff::Timestamp::now());
        rows.push(("Window", WindowView::from(window).to_string()));
    }
    if let Some(message) = &cluster.message {
        rows.push(("Message", message.clone()));
    }
    if let Some(task) = &cluster.task {
        rows.push(("Task", format!("{task} (`windlass task watch {task}`)")));
    }
    pairs(rows)
}

fn size(size: &windlass_common::cluster::MachineSize) -> String {
    format!("{}m CPU, {} MiB memory", size.cpu_millis, size.memory_mib)
}

/// Names and values, one pair a line.
pub(crate) fn pairs(rows: Vec<(&str, String)>) -> String {
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{:<15} {value}", format!("{name}:")));
    lines.collect::<Vec<_>>().join("\n")
}

async fn plan(
    session: &Session,
    client: &Client,
    spec: &SpecArgs,
    delete: bool,
) -> Result<ExitCode, Failure> {
    let answer = match &spec.name {
        Some(name) if delete => {
            client
                .delete(&format!("/v1/clusters/{}?dry_run=true", segment(name)))
                .await?
        }
        _ => {
            let (name, body) = planned(client, spec).await?;
            change::dry_run(client, &name, body).await?
        }
    };
    let plan: Plan = client.typed(&answer)?;
    session.output.answer(&answer, || explain(&plan));
    Ok(ExitCode::SUCCESS)
}

/// What to plan: the cluster that has this name with what else is said, or a new one.
async fn planned(client: &Client, spec: &SpecArgs) -> Result<(String, String), Failure> {
    let Some(name) = &spec.name else {
        let text = body(spec)?;
        return Ok((change::name_in(&text)?, text));
    };
    let found = client.get(&format!("/v1/clusters/{}", segment(name))).await;
    let mut cluster = match found.map_err(Failure::from) {
        Ok(cluster) => cluster,
        Err(failure) if failure.code == NOT_FOUND => return Ok((name.clone(), body(spec)?)),
        Err(failure) => return Err(failure),
    };
    let wanted = &mut cluster["spec"];
    if let Some(version) = &spec.kubernetes_version {
        wanted["kubernetesVersion"] = json!(version);
    }
    if let Some(count) = spec.control_plane {
        wanted["controlPlane"]["count"] = json!(count);
    }
    let workers = spec.workers.map(|count| ("workers".to_owned(), count));
    for (pool, count) in spec.pool.iter().cloned().chain(workers) {
        wanted["pools"][pool]["count"] = json!(count);
    }
    if let Some(cidr) = &spec.pod_cidr {
        wanted["network"]["podCidr"] = json!(cidr);
    }
    if let Some(cidr) = &spec.service_cidr {
        wanted["network"]["serviceCidr"] = json!(cidr);
    }
    Ok((name.clone(), wanted.to_string()))
}

async fn credentials(
    session: &Session,
    client: &Client,
    name: &str,
    write: Option<&Path>,
    via_director: bool,
) -> Result<ExitCode, Failure> {
    let answer = if via_director {
        // A cluster that is not there is told here, not by kubectl.
        client
            .get(&format!("/v1/clusters/{}", segment(name)))
            .await?;
        let kubeconfig = windlass_director::client::via_director(&session.context_path()?, name)?;
        json!({"kubeconfig": kubeconfig.expose()})
    } else {
        let path = format!("/v1/clusters/{}/credentials", segment(name));
        client.post(&path, String::new()).await?
    };
    let kubeconfig: String = client.typed(&answer["kubeconfig"])?;
    let Some(write) = write else {
        session.output.answer(&answer, || kubeconfig);
        return Ok(ExitCode::SUCCESS);
    };
    write_atomic(write, kubeconfig.as_bytes(), 0o600)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", write.display())))?;
    let written = json!({"path": write, "expiresAt": answer["expiresAt"]});
    session.output.answer(&written, || {
        let path = write.display();
        format!("wrote {path}: `export KUBECONFIG={path}` and use kubectl")
    });
    Ok(ExitCode::SUCCESS)
}

async fn delete(
    session: &Session,
    client: &Client,
    name: &str,
    yes: bool,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let mut path = format!("/v1/clusters/{}", segment(name));
    if !yes {
        let answer = client.delete(&format!("{path}?dry_run=true")).await?;
        let plan: Plan = client.typed(&answer)?;
        if !confirm_deletion(name, &plan)? {
            return Err(Failure::failed("not deleted"));
        }
        // Only what was shown is deleted.
        path = format!("{path}?disks={}", disks(&plan).join(","));
    }
    let answer = client.delete(&path).await?;
    ordered(session, client, &answer, wait).await
}

fn disks(plan: &Plan) -> Vec<String> {
    let disk = |action: &Action| match action {
        Action::DeleteDisk { disk } => Some(disk.to_string()),
        _ => None,
    };
    plan.steps
        .iter()
        .filter_map(|step| disk(&step.action))
        .collect()
}

fn confirm_deletion(name: &str, plan: &Plan) -> Result<bool, Failure> {
    note(&explain(plan));
    let disks = disks(plan);
    if !disks.is_empty() {
        note(&format!("\nDestroys the data on {}.", disks.join(", ")));
    }
    confirm(
        &format!("Type the name of the cluster ({name}) to delete it: "),
        name,
    )
}

/// Asks a person to type a word; `--yes` is for programs.
pub(crate) fn confirm(question: &str, word: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            USAGE,
            "nobody is there to be asked: add --yes",
        ));
    }
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    Ok(answer.trim() == word)
}

/// The cluster that is asked for, as the API takes it.
fn body(spec: &SpecArgs) -> Result<String, Failure> {
    if let Some(path) = &spec.file {
        return read(path);
    }
    let mut pools: std::collections::BTreeMap<String, RawPool> = std::collections::BTreeMap::new();
    let counted = |count| RawPool {
        count: Some(count),
        ..RawPool::default()
    };
    for (name, count) in &spec.pool {
        if pools.insert(name.clone(), counted(*count)).is_some() {
            return Err(Failure::new(USAGE, format!("--pool {name} is given twice")));
        }
    }
    if let Some(count) = spec.workers {
        pools.insert("workers".to_owned(), counted(count));
    }
    let network = RawNetwork {
        pod_cidr: spec.pod_cidr.clone(),
        service_cidr: spec.service_cidr.clone(),
    };
    let raw = RawClusterSpec {
        name: spec.name.clone().unwrap_or_default(),
        kubernetes_version: spec.kubernetes_version.clone(),
        control_plane: spec.control_plane.map(|count| RawControlPlane {
            count: Some(count),
            ..RawControlPlane::default()
        }),
        pools: (!pools.is_empty()).then_some(pools),
        network: (network != RawNetwork::default()).then_some(network),
        drain: None,
        gates: None,
        maintenance: None,
        labels: None,
        backup: None,
    };
    serde_json::to_string(&raw).map_err(|error| Failure::of(&error))
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let failure = |error: std::io::Error| {
        Failure::new(USAGE, format!("cannot read {}: {error}", path.display()))
    };
    let mut text = String::new();
    // One byte more than is allowed, so that the server sees that it is too long.
    let limit = INPUT_BYTES_MAX as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(failure)?;
    } else {
        let file = std::fs::File::open(path).map_err(failure)?;
        file.take(limit)
            .read_to_string(&mut text)
            .map_err(failure)?;
    }
    Ok(text)
}

/// A name as one segment of a path; what no name may hold is percent-encoded.
pub(crate) fn segment(name: &str) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}
