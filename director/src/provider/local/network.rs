//! The private network: a bridge on the host, one link for each machine, NAT to the outside.
//!
//! A machine's network namespace is made anew at each start and has no name, so a machine that died
//! leaves nothing behind but its port, which the kernel takes away with the namespace. Hardware
//! addresses follow from IP addresses: a machine reborn under the same address is found at once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};

use super::files::What;
use super::layout::Layout;
use super::netlink::{Netlink, Veth, link_index};
use super::process::run;
use crate::provider::ProviderError;

/// Where clouds publish instance metadata; here nobody answers, and asking must fail at once.
const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The machine's own name for its link.
pub(crate) const MACHINE_LINK: &str = "eth0";
/// How long nft may take.
const NFT_LIMIT: Duration = Duration::from_secs(10);

/// A locally administered hardware address that follows from an IP address.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x57, a, b, c, d]
}

/// What marks the bridge as ours: its alias names the data directory.
fn bridge_alias(layout: &Layout) -> String {
    let mut alias = format!("windlass {}", layout.dir.display());
    // IFALIASZ: 255 bytes. Cutting on a character boundary keeps it text.
    while alias.len() > 255 {
        alias.pop();
    }
    alias
}

/// Whose bridge it is, if the bridge exists.
pub(crate) fn bridge_owner(layout: &Layout) -> Option<BridgeOwner> {
    let sys = PathBuf::from(format!("/sys/class/net/{}", layout.bridge()));
    let read = |file: &str| fs::read_to_string(sys.join(file)).ok();
    let alias = read("ifalias")?.trim_end().to_owned();
    let half_made = alias.is_empty() && {
        // We were killed between making and marking it: its hardware address is the one we give.
        let own = mac(layout.gateway()).map(|b| format!("{b:02x}")).join(":");
        read("address").is_some_and(|address| address.trim() == own)
    };
    Some(if half_made || alias == bridge_alias(layout) {
        BridgeOwner::Ours
    } else {
        BridgeOwner::Other(alias)
    })
}

/// See [`bridge_owner`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BridgeOwner {
    Ours,
    Other(String),
}

/// Makes the bridge with the host's address on it. One that is there is brought to that state.
pub(crate) fn ensure_bridge(layout: &Layout) -> Result<(), ProviderError> {
    let name = layout.bridge();
    let make = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        let gateway = layout.gateway();
        netlink.create_bridge(&name, mac(gateway))?;
        let index = link_index(&name).ok_or_else(|| io::Error::other("it vanished"))?;
        netlink.set_alias(index, &bridge_alias(layout))?;
        netlink.add_address(index, gateway, layout.cidr.prefix_len())?;
        netlink.set_up(index)
    };
    make().what(|| format!("cannot make bridge {name} with network {}", layout.cidr))
}

/// Adds an address of the network to the host, for an endpoint.
pub(crate) fn add_host_address(layout: &Layout, address: Ipv4Addr) -> Result<(), ProviderError> {
    let add = || -> io::Result<()> {
        let index = link_index(&layout.bridge())
            .ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENODEV))?;
        Netlink::open()?.add_address(index, address, 32)
    };
    add().what(|| format!("cannot add address {address} to bridge {}", layout.bridge()))
}

/// Takes an endpoint's address from the host again.
pub(crate) fn delete_host_address(layout: &Layout, address: Ipv4Addr) -> Result<(), ProviderError> {
    let delete = || -> io::Result<()> {
        match link_index(&layout.bridge()) {
            Some(index) => Netlink::open()?.delete_address(index, address, 32),
            None => Ok(()),
        }
    };
    delete().what(|| {
        format!(
            "cannot take address {address} from bridge {}",
            layout.bridge()
        )
    })
}

/// Removes a link of the host; one that is not there is fine.
pub(crate) fn delete_link(name: &str) -> Result<(), ProviderError> {
    if link_index(name).is_none() {
        return Ok(());
    }
    let delete = || Netlink::open()?.delete_link(name);
    delete().what(|| format!("cannot remove network link {name}"))
}

/// The links of the host whose names begin so.
pub(crate) fn links(prefix: &str) -> Result<Vec<String>, ProviderError> {
    let names = super::files::list("/sys/class/net".as_ref())?;
    Ok(names
        .into_iter()
        .filter(|n| n.starts_with(prefix))
        .collect())
}

/// The host's IPv4 networks, by link: its addresses and its routes, the default route excepted.
pub(crate) fn host_networks() -> io::Result<Vec<(String, Ipv4Net)>> {
    let mut found = Vec::new();
    for line in fs::read_to_string("/proc/net/route")?.lines().skip(1) {
        // Link, destination and further down the mask, in the kernel's byte order.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [link, destination, _, _, _, _, _, mask, ..] = fields.as_slice() else {
            continue;
        };
        let number =
            |hex: &str| u32::from_str_radix(hex, 16).map(|n| Ipv4Addr::from(n.to_ne_bytes()));
        let (Ok(destination), Ok(mask)) = (number(destination), number(mask)) else {
            continue;
        };
        if let Ok(network) = Ipv4Net::with_netmask(destination, mask)
            && network.prefix_len() > 0
        {
            found.push(((*link).to_owned(), network));
        }
    }
    Ok(found)
}

/// Makes a machine's network namespace: loopback, `eth0` on the bridge, routes. Nothing of the calling
/// thread changes.
pub(crate) fn machine_namespace(
    layout: &Layout,
    address: Ipv4Addr,
) -> Result<OwnedFd, ProviderError> {
    let port = layout.port(address);
    // A port of an earlier start may linger until the kernel has taken its namespace down.
    delete_link(&port)?;
    let build = || -> io::Result<OwnedFd> {
        let bridge = link_index(&layout.bridge())
            .ok_or_else(|| io::Error::other(format!("bridge {} is not there", layout.bridge())))?;
        let mut host = Netlink::open()?;
        in_new_namespace(|namespace| {
            host.create_veth(&Veth {
                name: &port,
                bridge,
                peer: MACHINE_LINK,
                peer_mac: mac(address),
                peer_netns: namespace.as_fd(),
            })?;
            let mut inside = Netlink::open()?;
            let missing = || io::Error::other("a link of the new namespace is missing");
            inside.set_up(link_index("lo").ok_or_else(missing)?)?;
            let link = link_index(MACHINE_LINK).ok_or_else(missing)?;
            inside.add_address(link, address, layout.cidr.prefix_len())?;
            inside.set_up(link)?;
            inside.add_default_route(layout.gateway())?;
            inside.add_prohibit_route(METADATA_ADDRESS)
        })
    };
    build().what(|| format!("cannot make the network of the machine with address {address}"))
}

/// Runs `work` in a new network namespace, on a thread of its own, and returns the namespace.
fn in_new_namespace(work: impl FnOnce(&OwnedFd) -> io::Result<()> + Send) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
            work(&namespace)?;
            Ok(namespace)
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the network thread panicked")))
    })
}

/// Tries a bridge and a veth pair in a throw-away namespace: what the host's kernel can do.
pub(crate) fn probe_links() -> io::Result<()> {
    let namespace = in_new_namespace(|namespace| {
        let mut netlink = Netlink::open()?;
        netlink.create_bridge("wl-probe", mac(Ipv4Addr::LOCALHOST))?;
        let bridge = link_index("wl-probe").ok_or_else(|| io::Error::other("no bridge came"))?;
        netlink.create_veth(&Veth {
            name: "w-probe",
            bridge,
            peer: MACHINE_LINK,
            peer_mac: mac(Ipv4Addr::UNSPECIFIED),
            peer_netns: namespace.as_fd(),
        })
    })?;
    drop(namespace);
    Ok(())
}

/// Lets machines reach the outside under the host's addresses, with a table of our own.
pub(crate) fn ensure_nat(layout: &Layout) -> Result<(), ProviderError> {
    let (table, cidr, bridge) = (layout.nft_table(), layout.cidr.trunc(), layout.bridge());
    // Declaring, deleting and declaring again in one transaction makes it idempotent.
    let rules = format!(
        "table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n  \
         chain postrouting {{\n    type nat hook postrouting priority srcnat;\n    \
         ip saddr {cidr} ip daddr != {cidr} oifname != \"{bridge}\" masquerade\n  }}\n}}\n"
    );
    nft(&rules, "making the NAT table")
}

/// Removes the table of [`ensure_nat`].
pub(crate) fn remove_nat(layout: &Layout) -> Result<(), ProviderError> {
    let table = layout.nft_table();
    nft(
        &format!("table ip {table} {{}}\ndelete table ip {table}\n"),
        "removing the NAT table",
    )
}

/// Whether this host can do NAT for a machine, tried in a throw-away namespace.
pub(crate) fn probe_nat(layout: &Layout) -> Result<(), ProviderError> {
    let mut result = Ok(());
    let ran = in_new_namespace(|_| {
        result = ensure_nat(layout);
        Ok(())
    });
    ran.what(|| "cannot make a network namespace".to_owned())?;
    result
}

fn nft(rules: &str, doing: &str) -> Result<(), ProviderError> {
    let (reader, mut writer) = io::pipe().what(|| "cannot make a pipe".to_owned())?;
    // A few hundred bytes: they fit the pipe whole, so writing before reading cannot block.
    writer
        .write_all(rules.as_bytes())
        .what(|| "cannot write to a pipe".to_owned())?;
    drop(writer);
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::from(reader));
    run(&mut command, doing, Instant::now() + NFT_LIMIT).map(|_| ())
}
