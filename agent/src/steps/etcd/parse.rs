//! What `etcdctl -w json` and `etcdutl -w json` say (etcd 3.5 to 3.7), as a report and as decisions.
//!
//! Numbers are those of etcd's API: what is zero is left out. Ids are 64 bits; as arguments they are
//! hexadecimal.

use std::collections::BTreeMap;

use serde::Deserialize;
use windlass_common::step::{EtcdDataReport, EtcdMemberReport, EtcdPeer, EtcdReport, EtcdStatus};

#[derive(Debug, Deserialize)]
struct Header {
    #[serde(default)]
    cluster_id: u64,
    #[serde(default)]
    member_id: u64,
    #[serde(default)]
    revision: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct MemberList {
    header: Header,
    #[serde(default)]
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    #[serde(rename = "ID")]
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default)]
    learner: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointStatus {
    #[serde(rename = "Status")]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    header: Header,
    #[serde(default)]
    version: String,
    #[serde(default)]
    db_size: u64,
    #[serde(default)]
    db_size_in_use: u64,
    #[serde(default)]
    leader: u64,
    #[serde(default)]
    raft_term: u64,
    #[serde(default)]
    raft_index: u64,
    #[serde(default)]
    raft_applied_index: u64,
    #[serde(default)]
    errors: Vec<String>,
}

impl EndpointStatus {
    /// Adds what a member says of its data.
    pub(super) fn add_to(&self, report: &mut EtcdDataReport) {
        let status = &self.status;
        report.running = true;
        report.revision = Some(status.header.revision);
        report.raft_term = Some(status.raft_term);
        report.raft_index = Some(status.raft_index);
        report.leader = Some(status.leader != 0);
        report.db_bytes = Some(status.db_size);
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct AlarmList {
    #[serde(default)]
    alarms: Vec<Alarm>,
}

#[derive(Debug, Deserialize)]
struct Alarm {
    #[serde(rename = "memberID", default)]
    member: u64,
    #[serde(default)]
    alarm: u32,
}

/// What `etcdutl snapshot status` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotStatus {
    /// Over all keys and values.
    #[serde(default)]
    pub(super) hash: u32,
    /// Revision of the keyspace.
    #[serde(default)]
    pub(super) revision: u64,
    /// Keys, all their kept revisions counted.
    #[serde(default)]
    pub(super) total_key: u64,
    /// Version of etcd whose format it has.
    #[serde(default)]
    pub(super) version: String,
}

/// A report out of a list of members, and of what those that answered say of themselves.
pub(super) fn report(
    list: MemberList,
    statuses: &[EndpointStatus],
    alarms: &AlarmList,
) -> EtcdReport {
    let by_id: BTreeMap<u64, &Status> = statuses
        .iter()
        .map(|of| (of.status.header.member_id, &of.status))
        .collect();
    let member = |member: Member| EtcdMemberReport {
        id: hex(member.id),
        name: member.name,
        peer_urls: member.peer_urls,
        learner: member.learner,
        alarms: alarms_of(member.id, alarms),
        status: by_id.get(&member.id).map(|status| EtcdStatus {
            version: status.version.clone(),
            leader: status.leader == member.id,
            db_bytes: status.db_size,
            db_used_bytes: status.db_size_in_use,
            raft_term: status.raft_term,
            raft_index: status.raft_index,
            raft_applied: status.raft_applied_index,
            errors: status.errors.clone(),
        }),
    };
    let mut members: Vec<_> = list.members.into_iter().map(member).collect();
    members.sort_by(|a, b| a.peer_urls.cmp(&b.peer_urls));
    EtcdReport {
        cluster_id: hex(list.header.cluster_id),
        member_id: hex(list.header.member_id),
        members,
    }
}

fn alarms_of(id: u64, list: &AlarmList) -> Vec<String> {
    let of = list.alarms.iter().filter(|alarm| alarm.member == id);
    of.map(|alarm| match alarm.alarm {
        1 => "NOSPACE".to_owned(),
        2 => "CORRUPT".to_owned(),
        other => format!("alarm {other}"),
    })
    .collect()
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

/// The member with this peer URL.
pub(super) fn find<'a>(report: &'a EtcdReport, peer: &EtcdPeer) -> Option<&'a EtcdMemberReport> {
    report
        .members
        .iter()
        .find(|member| member.peer_urls.contains(&peer.url))
}

/// Whether the voting members are exactly these.
pub(super) fn are_voting(report: &EtcdReport, peers: &[EtcdPeer]) -> bool {
    let voting: Vec<_> = report.members.iter().filter(|m| !m.learner).collect();
    voting.len() == peers.len()
        && peers.iter().all(|peer| {
            let of = |member: &&EtcdMemberReport| member.peer_urls.contains(&peer.url);
            voting.iter().any(of)
        })
}

/// Who takes over the leadership: a voting member that answers and finds nothing wrong with itself, the
/// one that has applied the most.
pub(super) fn successor(report: &EtcdReport) -> Option<&EtcdMemberReport> {
    report
        .members
        .iter()
        .filter(|member| !member.learner && member.id != report.member_id)
        .filter_map(|member| {
            let status = member.status.as_ref()?;
            // While there is no space each member says so of itself, and each can lead.
            let well = status.errors.iter().all(|error| error.contains("NOSPACE"));
            well.then_some((status.raft_applied, std::cmp::Reverse(&member.id), member))
        })
        .max_by_key(|(applied, id, _)| (*applied, *id))
        .map(|(_, _, member)| member)
}

#[cfg(test)]
mod tests {
    use super::*;

    // As etcdctl 3.6.16 says it, of three members of which the third was stopped, and a learner was added
    // that has not started.
    const MEMBERS: &str = r#"{"header":{"cluster_id":6660360254337417718,"member_id":15803648178628663679,"raft_term":3},"members":[{"ID":10094610447938198833,"peerURLs":["http://127.0.0.1:3480"],"isLearner":true},{"ID":12702441217754224102,"name":"m2","peerURLs":["http://127.0.0.1:3280"],"clientURLs":["http://127.0.0.1:3279"]},{"ID":15023255354651218625,"name":"m3","peerURLs":["http://127.0.0.1:3380"],"clientURLs":["http://127.0.0.1:3379"]},{"ID":15803648178628663679,"name":"m1","peerURLs":["http://127.0.0.1:3180"],"clientURLs":["http://127.0.0.1:3179"]}]}"#;
    const STATUSES: &str = r#"[{"Endpoint":"http://127.0.0.1:3279","Status":{"header":{"cluster_id":6660360254337417718,"member_id":12702441217754224102,"revision":2,"raft_term":3},"version":"3.6.16","dbSize":20480,"leader":15803648178628663679,"raftIndex":12,"raftTerm":3,"raftAppliedIndex":12,"dbSizeInUse":16384,"storageVersion":"3.6.0","dbSizeQuota":2147483648,"downgradeInfo":{}}},{"Endpoint":"http://127.0.0.1:3179","Status":{"header":{"cluster_id":6660360254337417718,"member_id":15803648178628663679,"revision":2,"raft_term":3},"version":"3.6.16","dbSize":20480,"leader":15803648178628663679,"raftIndex":12,"raftTerm":3,"raftAppliedIndex":12,"dbSizeInUse":16384,"storageVersion":"3.6.0","dbSizeQuota":2147483648,"downgradeInfo":{}}}]"#;

    fn peer(port: u16) -> EtcdPeer {
        EtcdPeer {
            name: format!("m{port}"),
            url: format!("http://127.0.0.1:{port}"),
        }
    }

    fn parsed(statuses: &str, alarms: &str) -> EtcdReport {
        report(
            serde_json::from_str(MEMBERS).unwrap(),
            &serde_json::from_str::<Vec<EndpointStatus>>(statuses).unwrap(),
            &serde_json::from_str(alarms).unwrap(),
        )
    }

    #[test]
    fn a_report_has_members_that_answer_and_those_that_do_not() {
        let report = parsed(
            STATUSES,
            r#"{"header":{},"alarms":[{"memberID":12702441217754224102,"alarm":1}]}"#,
        );
        assert_eq!(report.cluster_id, "5c6e5a5cfbe981f6");
        assert_eq!(report.member_id, "db51d6498269197f");
        let shown: Vec<_> = report
            .members
            .iter()
            .map(|m| {
                (
                    m.name.as_str(),
                    m.learner,
                    m.status.is_some(),
                    m.alarms.len(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("m1", false, true, 0),
                ("m2", false, true, 1),
                ("m3", false, false, 0),
                ("", true, false, 0),
            ]
        );
        let status = report.members[0].status.as_ref().unwrap();
        assert_eq!(status.version, "3.6.16");
        assert_eq!((status.db_bytes, status.db_used_bytes), (20_480, 16_384));
        assert_eq!((status.raft_index, status.raft_applied), (12, 12));
        assert_eq!(report.members[1].alarms, ["NOSPACE"]);
    }

    #[test]
    fn a_member_says_how_far_its_data_goes() {
        let statuses: Vec<EndpointStatus> = serde_json::from_str(STATUSES).unwrap();
        let mut report = EtcdDataReport::default();
        statuses[0].add_to(&mut report);
        assert_eq!((report.running, report.leader), (true, Some(true)));
        assert_eq!(
            (report.revision, report.raft_index, report.raft_term),
            (Some(2), Some(12), Some(3))
        );
        // What is zero is left out: it sees no leader.
        let alone = STATUSES.replace(r#""leader":15803648178628663679,"#, "");
        let statuses: Vec<EndpointStatus> = serde_json::from_str(&alone).unwrap();
        statuses[0].add_to(&mut report);
        assert_eq!(report.leader, Some(false));
    }

    #[test]
    fn members_are_found_by_their_peer_url() {
        let report = parsed(STATUSES, "{}");
        assert_eq!(find(&report, &peer(3380)).unwrap().id, "d07d5325fff892c1");
        assert!(find(&report, &peer(3480)).unwrap().learner);
        assert_eq!(find(&report, &peer(3580)), None);
        assert!(are_voting(&report, &[peer(3280), peer(3180), peer(3380)]));
        assert!(!are_voting(&report, &[peer(3280), peer(3180)]));
        assert!(!are_voting(&report, &[peer(3280), peer(3180), peer(3480)]));
    }

    #[test]
    fn leadership_goes_to_a_voting_member_that_is_well() {
        let mut report = parsed(STATUSES, "{}");
        assert!(report.leads());
        assert_eq!(successor(&report).unwrap().name, "m2");
        // One that finds something wrong with itself gets it from nobody.
        let errors = |report: &mut EtcdReport, error: &str| {
            report.members[1].status.as_mut().unwrap().errors = vec![error.to_owned()];
        };
        errors(&mut report, "memberID:1 alarm:CORRUPT");
        assert_eq!(successor(&report), None);
        // That there is no space all of them say.
        errors(&mut report, "memberID:10787774325113848146 alarm:NOSPACE ");
        assert_eq!(successor(&report).unwrap().name, "m2");
        // Of two, the one that has applied more.
        report.members[1].status.as_mut().unwrap().errors.clear();
        let mut ahead = report.members[1].status.clone().unwrap();
        ahead.raft_applied += 1;
        report.members[2].status = Some(ahead.clone());
        assert_eq!(successor(&report).unwrap().name, "m3");
        // A learner has no vote, however far it is.
        ahead.raft_applied += 1;
        report.members[3].status = Some(ahead);
        assert_eq!(successor(&report).unwrap().name, "m3");
    }

    #[test]
    fn what_a_snapshot_holds() {
        let text =
            r#"{"hash":1972613272,"revision":2,"totalKey":1,"totalSize":20480,"version":"3.6.0"}"#;
        let status: SnapshotStatus = serde_json::from_str(text).unwrap();
        assert_eq!((status.hash, status.revision), (1_972_613_272, 2));
        assert_eq!((status.total_key, status.version.as_str()), (1, "3.6.0"));
    }
}
