//! Faults of a path that the kernel makes: a gateway and an agent in network namespaces of their own, with two ends of
//! one cable between them. Packets are lost by nftables, the cable carries 1280 bytes, addresses change.
//!
//! Needs root, `ip` and `nft`; fails with the name of what is missing. Late and reordered packets are the relay's
//! ([`crate::faults`]).

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use windlass_director::gateway::Total;

use crate::world::{Director, Machine, runs_once, wait_for, wait_long};

pub(crate) const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const AGENT: &str = "10.99.0.2";
const MOVED: &str = "10.99.0.3";

/// Runs a program of the host, which has to succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}, which takes root: {said}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two namespaces with a cable between them, gone when this is dropped.
pub(crate) struct Cable {
    pub(crate) near: String,
    pub(crate) far: String,
    home: File,
}

impl Cable {
    pub(crate) fn new(name: &str, mtu: &str) -> Cable {
        let id = std::process::id();
        let cable = Cable {
            near: format!("wl-{id}-{name}-d"),
            far: format!("wl-{id}-{name}-a"),
            home: File::open("/proc/thread-self/ns/net").unwrap(),
        };
        let (near, far) = (cable.near.as_str(), cable.far.as_str());
        run("ip", &["netns", "add", near]);
        run("ip", &["netns", "add", far]);
        let peer = ["type", "veth", "peer", "name", "cable", "netns", far];
        let link = ["-n", near, "link", "add", "cable"];
        run("ip", &[&link[..], &peer[..]].concat());
        for (end, address) in [
            (near, format!("{DIRECTOR}/24")),
            (far, format!("{AGENT}/24")),
        ] {
            run(
                "ip",
                &["-n", end, "address", "add", &address, "dev", "cable"],
            );
            run("ip", &["-n", end, "link", "set", "cable", "mtu", mtu, "up"]);
            run("ip", &["-n", end, "link", "set", "lo", "up"]);
        }
        cable
    }

    /// From here on this thread, and what it opens, is at this end.
    fn enter(end: &str) {
        let file = File::open(format!("/run/netns/{end}")).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Drops of what comes in at an end what a rule says, in place of what was dropped before.
    pub(crate) fn drops(end: &str, rule: Option<&str>) {
        let rules = match rule {
            Some(rule) => format!(
                "table inet wl {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}"
            ),
            None => String::new(),
        };
        let all = format!("table inet wl {{ }}; delete table inet wl; {rules}");
        run("ip", &["netns", "exec", end, "nft", &all]);
    }

    /// Packets that were dropped at an end by a rule that counts them.
    fn dropped(end: &str) -> u64 {
        let shown = run(
            "ip",
            &["netns", "exec", end, "nft", "list", "table", "inet", "wl"],
        );
        let (_, counted) = shown.split_once("counter packets ").unwrap();
        counted.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = setns(&self.home, CloneFlags::CLONE_NEWNET);
        for end in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", end]).output();
        }
    }
}

/// A director at one end, a machine at the other.
pub(crate) struct Ends {
    pub(crate) director: Director,
    pub(crate) machine: Machine,
    _dir: tempfile::TempDir,
}

impl Ends {
    /// `fault` is there before the machine is. The thread stays at the machine's end: its link opens sockets again and
    /// again, the director's one is open.
    pub(crate) async fn start(cable: &Cable, fault: Option<&str>) -> Ends {
        Cable::enter(&cable.near);
        let director =
            Director::start_with(|config| config.listen = SocketAddr::from((DIRECTOR, 0))).await;
        Cable::enter(&cable.far);
        if fault.is_some() {
            Cable::drops(&cable.near, fault);
            Cable::drops(&cable.far, fault);
        }
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
        let ends = Ends {
            director,
            machine,
            _dir: dir,
        };
        ends.comes_back().await;
        ends
    }

    pub(crate) fn is_connected(&self) -> bool {
        !self.director.gateway().connected().is_empty()
    }

    pub(crate) async fn comes_back(&self) {
        wait_long("the session", || self.is_connected().then_some(())).await;
    }

    async fn ends(&self) {
        wait_long("its end", || (!self.is_connected()).then_some(())).await;
    }

    /// A step runs once with output of some packets, and heartbeats go on.
    pub(crate) async fn works(&self, id: &str) {
        runs_once(&self.director, &self.machine, id, 2000).await;
        let count = || self.director.gateway().counters().total(Total::Heartbeats);
        let before = count();
        wait_long("heartbeats", || (count() > before + 5).then_some(())).await;
    }
}

#[tokio::test]
async fn a_cable_that_loses_a_third_costs_time_alone() {
    let cable = Cable::new("loss", "1500");
    let third = "meta l4proto udp numgen random mod 100 < 30 counter drop";
    let ends = Ends::start(&cable, Some(third)).await;
    for number in 0..3 {
        ends.works(&format!("lossy/{number}")).await;
    }
    for end in [&cable.near, &cable.far] {
        assert!(Cable::dropped(end) > 0, "nothing was lost at {end}");
    }
    ends.machine.stop().await;
}

#[tokio::test]
async fn a_cable_of_1280_bytes_carries_the_link() {
    let cable = Cable::new("narrow", "1280");
    let ends = Ends::start(&cable, None).await;
    ends.works("narrow").await;
    let sessions = ends.director.gateway().counters().total(Total::Sessions);
    assert_eq!(sessions, 1, "the connection was lost");
    ends.machine.stop().await;
}

#[tokio::test]
async fn a_cable_cut_in_one_direction_is_noticed_and_comes_back() {
    let cable = Cable::new("cut", "1500");
    let ends = Ends::start(&cable, None).await;
    ends.works("before").await;
    for (number, deaf) in [&cable.near, &cable.far].into_iter().enumerate() {
        Cable::drops(deaf, Some("meta l4proto udp drop"));
        ends.ends().await;
        Cable::drops(deaf, None);
        ends.comes_back().await;
        ends.works(&format!("healed/{number}")).await;
    }
    ends.machine.stop().await;
}

#[tokio::test]
async fn a_machine_that_gets_another_address_keeps_its_connection() {
    let cable = Cable::new("moved", "1500");
    let ends = Ends::start(&cable, None).await;
    ends.works("before").await;
    let view = || {
        ends.director
            .gateway()
            .connected()
            .remove(&ends.machine.name)
    };
    let since = view().unwrap().since;
    let address = |verb: &str, address: &str| {
        let address = format!("{address}/24");
        run(
            "ip",
            &["-n", &cable.far, "address", verb, &address, "dev", "cable"],
        );
    };
    // The other way round, the kernel takes the second address of the subnet away with the first.
    address("del", AGENT);
    address("add", MOVED);
    wait_for("the new address", || {
        (view()?.address.ip().to_string() == MOVED).then_some(())
    })
    .await;
    ends.works("after").await;
    assert_eq!(view().unwrap().since, since, "the connection was lost");
    let sessions = ends.director.gateway().counters().total(Total::Sessions);
    assert_eq!(sessions, 1, "the connection was lost");
    ends.machine.stop().await;
}
