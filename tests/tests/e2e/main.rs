//! Scenarios on real clusters: real kubelets, etcd, containerd and API servers.
//!
//! They run in two lanes at once, each in the order given: those that share a director and, where they can, its
//! clusters, with a health gate between two, since building a cluster is the expensive part; and those that have a
//! director of their own. The second lane is this program once more, whose output follows that of the first.
//! `cargo xtask test end-to-end` runs them.

mod agents;
mod anew;
mod apart;
mod backup;
mod catalogue;
mod changes;
mod crashes;
mod director_restore;
mod drains;
mod etcd;
mod faults;
mod gates;
mod health;
mod lifecycle;
mod load;
mod reach;
mod refit;
mod renewal;
mod repair;
mod restore;
mod rotation;
mod secrets;
mod workloads;
mod zombie;

use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use libtest_mimic::{Arguments, Failed, Trial};
use windlass_tests::world::LANE;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if std::env::var_os(LANE).is_some() {
        let ended = libtest_mimic::run(&arguments, with_directors_of_their_own());
        tell_failures();
        return ended.exit_code();
    }
    let second = match second_lane() {
        Ok(second) => second,
        Err(error) => {
            eprintln!("cannot start the second lane: {error}");
            return ExitCode::FAILURE;
        }
    };
    let first = libtest_mimic::run(&arguments, with_a_shared_director());
    lifecycle::forget_worlds();
    let passed = second.join().is_ok_and(|ended| ended.is_ok_and(shown));
    tell_failures();
    if first.has_failed() || !passed {
        return ExitCode::from(101);
    }
    ExitCode::SUCCESS
}

/// Starts this program for the second lane; both its outputs are kept until it has ended.
fn second_lane() -> std::io::Result<JoinHandle<std::io::Result<Output>>> {
    let second = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(LANE, "2")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(std::thread::spawn(move || second.wait_with_output()))
}

/// Shows what the second lane said; whether all of it passed.
fn shown(lane: Output) -> bool {
    eprint!("{}", String::from_utf8_lossy(&lane.stderr));
    print!("{}", String::from_utf8_lossy(&lane.stdout));
    lane.status.success()
}

fn with_a_shared_director() -> Vec<Trial> {
    vec![
        trial("a_cluster_of_three_machines_comes_up", lifecycle::comes_up),
        trial(
            "bad_input_is_refused_with_every_fault",
            lifecycle::bad_input,
        ),
        trial(
            "pods_talk_across_nodes_by_ip_service_and_name",
            workloads::pods_talk,
        ),
        trial(
            "exec_logs_and_port_forward_work",
            workloads::exec_logs_port_forward,
        ),
        trial(
            "a_validating_webhook_served_by_a_pod_is_called",
            workloads::webhook,
        ),
        trial(
            "kubelets_refuse_anonymous_callers",
            workloads::anonymous_kubelet,
        ),
        trial(
            "operators_see_logs_and_run_commands_on_a_node",
            lifecycle::node_logs_and_exec,
        ),
        trial(
            "reach_follows_logs_until_somebody_ends_it",
            reach::logs_follow,
        ),
        trial("reach_opens_a_shell_on_a_terminal", reach::shell),
        trial("reach_watches_usage", reach::top),
        trial("reach_collects_without_secrets", reach::collect),
        trial(
            "reach_runs_kubectl_through_the_director",
            reach::kubectl_through_the_director,
        ),
        trial("reach_lets_a_viewer_look", reach::a_viewer_looks),
        trial(
            "the_ca_is_rotated_while_a_workload_runs",
            rotation::the_ca_is_rotated,
        ),
        trial(
            "a_machine_without_its_identity_is_enrolled_again",
            rotation::enrolled_again,
        ),
        trial(
            "a_rebooted_machine_comes_back_to_service",
            lifecycle::reboot,
        ),
        trial("pods_still_talk_after_the_reboots", workloads::pods_talk),
        trial(
            "killed_endpoints_and_monitors_come_back",
            lifecycle::helpers_come_back,
        ),
        trial(
            "witnesses_tell_what_happened_to_a_machine",
            health::witnesses_agree,
        ),
        trial(
            "a_cluster_reboots_into_service_without_its_director",
            apart::without_a_director,
        ),
        trial("clients_notice_when_workers_go_undrained", load::undrained),
        trial("deleting_a_cluster_leaves_nothing_of_it", lifecycle::delete),
        trial(
            "a_director_without_a_route_reaches_its_cluster",
            apart::without_a_route,
        ),
        trial(
            "three_control_plane_machines_share_one_etcd",
            lifecycle::highly_available,
        ),
        trial("pools_grow_and_shrink_in_service", changes::scale),
        trial(
            "control_planes_grow_and_shrink_in_service",
            etcd::grows_and_shrinks,
        ),
        // The same restore as of a cluster that is gone, with three members.
        long("restores_go_back_to_a_snapshot", restore::from_a_snapshot),
        // Two machines are lost and made anew: a control plane of three, twice.
        long(
            "restores_begin_again_with_the_last_member",
            restore::from_the_last_member,
        ),
        trial(
            "one_control_plane_is_upgraded_with_consent",
            changes::upgrade_of_one,
        ),
        // Twelve machines' worth of drains, raises and restarts.
        long(
            "three_control_planes_are_upgraded_through_crashes",
            changes::upgrade_of_three,
        ),
        trial(
            "a_cancelled_upgrade_leaves_a_cluster_that_serves",
            changes::cancelled_upgrade,
        ),
        trial(
            "certificates_are_renewed_and_nothing_restarts",
            renewal::certificates,
        ),
        long(
            "keys_and_authorities_are_rotated_under_load",
            renewal::rotations,
        ),
        long("a_whole_cluster_is_upgraded_under_load", load::upgrade),
        long("a_whole_cluster_is_made_anew_under_load", load::replacement),
    ]
}

fn with_directors_of_their_own() -> Vec<Trial> {
    vec![
        trial(
            "a_member_of_etcd_whose_disk_is_gone_joins_again",
            etcd::lost_disk,
        ),
        // A hundred megabytes are written and removed, until an alarm goes off.
        long(
            "a_cluster_is_backed_up_and_its_etcd_cared_for",
            backup::backed_up_and_cared_for,
        ),
        trial("repair_replaces_a_worker_that_is_gone", repair::lost_worker),
        long(
            "repair_joins_the_upgrade_that_runs",
            repair::joins_an_upgrade,
        ),
        long("repair_leaves_alone_what_is_cut_off", repair::cut_off),
        trial(
            "a_director_is_restored_while_machines_have_changed",
            director_restore::while_machines_have_changed,
        ),
        trial("repair_brings_members_back", repair::control_plane),
        // A minute in which nothing may happen, and half a one until something does.
        long(
            "a_worker_that_alone_is_cut_off_ends_its_pods",
            repair::self_fence,
        ),
        trial("repair_gives_up_on_poison", repair::poison),
        trial(
            "faults_are_borne_healed_or_left_to_an_operator",
            faults::borne_or_healed,
        ),
        // Twenty faults, one after the other, on six machines.
        long(
            "each_fault_is_borne_by_three_and_three",
            catalogue::on_three_and_three,
        ),
        // Takes another build of the agent, and a minute for one that hangs.
        long(
            "agents_are_upgraded_in_place_and_rolled_back",
            agents::in_place,
        ),
        trial("components_are_changed_in_place", refit::of_one),
        trial(
            "a_worker_made_anew_that_fails_a_gate_goes_back",
            anew::goes_back,
        ),
        // Three control-plane machines.
        long(
            "a_control_plane_of_three_is_patched_in_place",
            refit::of_three,
        ),
        trial(
            "a_create_survives_five_crashes_of_the_director",
            crashes::director_five_times,
        ),
        trial(
            "a_create_survives_a_killed_agent",
            crashes::agent_during_configure,
        ),
        trial("a_cancelled_create_cleans_up", crashes::cancel),
        trial(
            "a_cluster_that_is_gone_is_made_again_from_its_backup",
            restore::made_again,
        ),
        trial("a_reset_leaves_nothing_on_the_host", lifecycle::reset),
    ]
}

/// A scenario that is too long for every change: it runs with `--full`, and is shown as ignored otherwise.
fn long(name: &'static str, scenario: fn() -> anyhow::Result<()>) -> Trial {
    let full = std::env::var_os("WINDLASS_TEST_FULL").is_some();
    trial(name, scenario).with_ignored_flag(!full)
}

fn trial(name: &'static str, scenario: fn() -> anyhow::Result<()>) -> Trial {
    Trial::test(name, move || {
        let started = std::time::Instant::now();
        let outcome = scenario();
        eprintln!("{name}: {:.1} s", started.elapsed().as_secs_f64());
        outcome.map_err(|error| {
            // What failed, without the way there: messages say which wait or claim it was.
            let reason = format!("{error:#}");
            let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push(format!("{name}: {}", shortened(&reason)));
            Failed::from(reason)
        })
    })
}

/// What failed in this lane.
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says once more what failed: replies of the API in the whole reasons are long.
fn tell_failures() {
    let failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    for failure in failures.iter() {
        println!("FAILED {failure}");
    }
}

/// The beginning of a reason.
fn shortened(reason: &str) -> String {
    const CHARACTERS: usize = 400;
    let mut begin: String = reason.chars().take(CHARACTERS).collect();
    if begin.len() < reason.len() {
        begin.push('…');
    }
    begin
}
