//! Renewals and rotations that die at every point there is, and end the same.

use super::*;
use crate::kubernetes::pki::AuthorityName;
use crate::model::{Rotation, RotationKind, Stage};
use crate::planner::renewal;

impl Rig {
    /// A cluster in service, and the order to renew all of its certificates.
    pub(super) async fn order_renewal(&self) -> TaskId {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = self.immortal().await;
        let mut commit = Commit::default();
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let mut machines = director.records.machines_of("demo").await.unwrap();
        for machine in &mut machines {
            // As if they had been issued long ago.
            let certified = machine.certified.as_mut().unwrap();
            certified.issued_at = Timestamp::from_unix_ms(0);
            commit.put(machine).unwrap();
            commit.delete_value(Kind::Certificates, machine.name.as_str());
        }
        let desired = director.world.desired(&cluster, &machines).unwrap();
        let observed = director.world.observe(&name()).await.unwrap();
        let names: Vec<MachineName> = machines.iter().map(|m| m.name.clone()).collect();
        let plan = renewal::plan(&desired, &observed, &names);
        place(
            &director,
            TaskKind::RenewCertificates,
            plan,
            cluster,
            commit,
            2,
        )
        .await
    }

    /// A cluster in service, and the order to rotate something of it.
    pub(super) async fn order_rotation(&self, kind: RotationKind) -> TaskId {
        let create = self.order_create().await;
        self.run(&create, usize::MAX, Stop::No).await.unwrap();
        let director = self.immortal().await;
        let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        let rotation = Rotation::new(kind, false, "ann".to_owned());
        let turn = director
            .world
            .begin_rotation(cluster.clone(), rotation)
            .await
            .unwrap();
        let mut commit = Commit::default();
        let written = turn.cluster.clone();
        director
            .world
            .put_turn(&mut commit, &written, &turn)
            .unwrap();
        let plan = turn.plan.unwrap();
        place(
            &director,
            TaskKind::RotateSecrets,
            plan,
            turn.cluster,
            commit,
            2,
        )
        .await
    }

    async fn document(&self) -> ClusterPki {
        let director = self.immortal().await;
        let document = director.records.secret(&cluster_pki_name(&name())).await;
        let document = document.unwrap().unwrap().to_vec();
        ClusterPki::from_bytes(&windlass_common::secret::SecretBytes::new(document)).unwrap()
    }
}

pub(super) async fn place(
    director: &Director,
    kind: TaskKind,
    plan: Plan,
    mut cluster: Cluster,
    mut commit: Commit,
    number: u64,
) -> TaskId {
    let id = TaskId::new(number, [0; 3]);
    cluster.task = Some(id.clone());
    commit.put(&cluster).unwrap();
    let task = Task::ordered(id.clone(), kind, plan, "ann".into(), Timestamp::now());
    commit.put(&task).unwrap();
    director.records.commit(commit).await.unwrap();
    id
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_renewal().await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let error = &task.error;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {error:?}"
        );
        let (_, machines) = rig.settled().await;
        for machine in machines {
            let certified = machine.certified.unwrap();
            assert!(
                certified.issued_at > Timestamp::from_unix_ms(0),
                "{}",
                machine.name
            );
        }
        through
    })
    .await;
    assert!(points > 20, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_of_the_encryption_key_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_rotation(RotationKind::EncryptionKey).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let error = &task.error;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {error:?}"
        );
        let (cluster, _) = rig.settled().await;
        assert_eq!(
            (cluster.phase, cluster.rotation),
            (ClusterPhase::Ready, None)
        );
        let names: Vec<String> = rig
            .document()
            .await
            .encryption
            .into_iter()
            .map(|k| k.name)
            .collect();
        assert_eq!(names, ["key2"], "died at {dies_at}");
        through
    })
    .await;
    assert!(points > 40, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_of_authorities_that_dies_at_any_point_ends_the_same() {
    let points = at_every_point(async |dies_at| {
        let rig = Rig::new();
        let task = rig.order_rotation(RotationKind::Authorities).await;
        let (through, task) = rig.through_death(&task, dies_at, Stop::No).await;
        let error = &task.error;
        assert_eq!(
            task.state,
            TaskState::Succeeded,
            "died at {dies_at}: {error:?}"
        );
        let (cluster, machines) = rig.settled().await;
        // What is left is the former key for tokens, which is in use still.
        let stage = cluster.rotation.map(|rotation| rotation.stage);
        assert_eq!(
            (cluster.phase, stage),
            (ClusterPhase::Ready, Some(Stage::TrustNew))
        );
        let pki = rig.document().await;
        let trusted = pki.trusted(AuthorityName::Kubernetes);
        assert_eq!(trusted, pki.kubernetes.certificate_pem, "one generation");
        assert_ne!(pki.token_keys(), pki.service_account.public_pem);
        let director = rig.immortal().await;
        for machine in machines {
            let issued: Option<(_, (u32, crate::kubernetes::pki::Certificates))> = director
                .records
                .value(Kind::Certificates, machine.name.as_str())
                .await
                .unwrap();
            let (_, (_, certificates)) = issued.unwrap();
            assert!(
                pki.signed(&certificates),
                "{}: died at {dies_at}",
                machine.name
            );
        }
        through
    })
    .await;
    assert!(points > 80, "only {points} points");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_rotation_leaves_a_cluster_that_serves_and_goes_on_later() {
    for kind in [RotationKind::EncryptionKey, RotationKind::Authorities] {
        for head_start in [1, 8, 20, 40, 60, 90] {
            let rig = Rig::new();
            let task = rig.order_rotation(kind).await;
            if rig.run(&task, head_start, Stop::No).await.is_some() {
                continue;
            }
            let task = rig.run(&task, usize::MAX, Stop::CleanUp).await.unwrap();
            let error = &task.error;
            assert_eq!(
                task.state,
                TaskState::Cancelled,
                "{kind:?} {head_start}: {error:?}"
            );
            let (cluster, _) = rig.settled().await;
            assert_eq!(cluster.phase, ClusterPhase::Ready, "{kind:?} {head_start}");
            let message = cluster.message.clone().unwrap();
            assert!(message.contains(kind.command()), "{message}");
            // It is ordered again.
            let director = rig.immortal().await;
            let turn = director
                .world
                .continue_rotation(cluster.clone())
                .await
                .unwrap();
            let mut commit = Commit::default();
            let written = turn.cluster.clone();
            director
                .world
                .put_turn(&mut commit, &written, &turn)
                .unwrap();
            // All that is left may be a key that is in use for a day.
            let Some(plan) = turn.plan else { continue };
            let again = place(
                &director,
                TaskKind::RotateSecrets,
                plan,
                turn.cluster,
                commit,
                3,
            )
            .await;
            drop(director);
            let task = rig.run(&again, usize::MAX, Stop::No).await.unwrap();
            let error = &task.error;
            assert_eq!(
                task.state,
                TaskState::Succeeded,
                "{kind:?} {head_start}: {error:?}"
            );
        }
    }
}
