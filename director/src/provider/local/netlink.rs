//! Links, addresses and routes, asked of the kernel directly (rtnetlink).
//!
//! A machine's network is a handful of messages; a process for each would cost more than the rest of
//! its creation. A socket acts in the network namespace of the thread that opened it. Each request
//! waits for the kernel's acknowledgement and converges when repeated.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long the kernel may take for one request, in seconds. It answers at once; only a lock it holds
/// while it takes down many namespaces can delay it.
const ANSWER_SECONDS: i64 = 10;
/// `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A conversation with the kernel about the network of one namespace.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A veth pair to be made: one end here, on a bridge; the other in another namespace.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    pub(super) name: &'a str,
    pub(super) bridge: u32,
    pub(super) peer: &'a str,
    pub(super) peer_mac: [u8; 6],
    pub(super) peer_netns: BorrowedFd<'a>,
}

impl Netlink {
    /// Opens a conversation about the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Netlink> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(ANSWER_SECONDS),
        )?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// Makes a bridge with a fixed hardware address (else it changes with the ports, and with it what
    /// machines have in their ARP caches). One that is there is left alone.
    pub(super) fn create_bridge(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::link(0, 0);
        message.text(libc::IFLA_IFNAME, name);
        message.attribute(libc::IFLA_ADDRESS, &mac);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attribute(libc::IFLA_INFO_KIND, b"bridge")
        });
        ignore(libc::EEXIST, self.create(libc::RTM_NEWLINK, message))
    }

    /// Makes a veth pair, its end here up and on the bridge.
    pub(super) fn create_veth(&mut self, veth: &Veth<'_>) -> io::Result<()> {
        let mut message = Message::link(0, IFF_UP);
        message.text(libc::IFLA_IFNAME, veth.name);
        message.attribute(libc::IFLA_MASTER, &veth.bridge.to_ne_bytes());
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attribute(libc::IFLA_INFO_KIND, b"veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&link_body(0, 0));
                    peer.text(libc::IFLA_IFNAME, veth.peer);
                    peer.attribute(libc::IFLA_ADDRESS, &veth.peer_mac);
                    peer.attribute(
                        libc::IFLA_NET_NS_FD,
                        &veth.peer_netns.as_raw_fd().to_ne_bytes(),
                    );
                });
            });
        });
        self.create(libc::RTM_NEWLINK, message)
    }

    /// Gives a link a note of up to 255 bytes.
    pub(super) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut message = Message::link(index, 0);
        message.attribute(libc::IFLA_IFALIAS, alias.as_bytes());
        self.request(libc::RTM_NEWLINK, 0, message)
    }

    /// Brings a link up.
    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.request(libc::RTM_NEWLINK, 0, Message::link(index, IFF_UP))
    }

    /// Removes a link; one that is not there is fine.
    pub(super) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = Message::link(0, 0);
        message.text(libc::IFLA_IFNAME, name);
        ignore(libc::ENODEV, self.request(libc::RTM_DELLINK, 0, message))
    }

    /// Gives a link an address; one that is there is fine.
    pub(super) fn add_address(&mut self, index: u32, ip: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.request(
            libc::RTM_NEWADDR,
            flags,
            Message::address(index, ip, prefix),
        )
    }

    /// Takes an address from a link; one that is not there is fine.
    pub(super) fn delete_address(
        &mut self,
        index: u32,
        ip: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let message = Message::address(index, ip, prefix);
        ignore(
            libc::EADDRNOTAVAIL,
            self.request(libc::RTM_DELADDR, 0, message),
        )
    }

    /// Sends everything that has no better route through `gateway`.
    pub(super) fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::route(0, libc::RTN_UNICAST);
        message.attribute(libc::RTA_GATEWAY, &gateway.octets());
        ignore(libc::EEXIST, self.create(libc::RTM_NEWROUTE, message))
    }

    /// Refuses packets to `address` at once instead of letting their sender wait.
    pub(super) fn add_prohibit_route(&mut self, address: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::route(32, libc::RTN_PROHIBIT);
        message.attribute(libc::RTA_DST, &address.octets());
        ignore(libc::EEXIST, self.create(libc::RTM_NEWROUTE, message))
    }

    fn create(&mut self, kind: u16, message: Message) -> io::Result<()> {
        self.request(kind, libc::NLM_F_CREATE | libc::NLM_F_EXCL, message)
    }

    fn request(&mut self, kind: u16, flags: i32, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let bytes = message.finish(kind, flags, self.sequence);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = [0u8; 8192];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            if let Some(result) = acknowledgement(&answer[..length], self.sequence) {
                return result;
            }
        }
    }
}

/// The kernel's verdict on request `sequence`, if `answer` holds it.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let word = |at: usize| -> Option<[u8; 4]> { answer.get(at..at + 4)?.try_into().ok() };
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if i32::from(kind) != libc::NLMSG_ERROR || u32::from_ne_bytes(word(8)?) != sequence {
        return None;
    }
    match i32::from_ne_bytes(word(HEADER)?) {
        0 => Some(Ok(())),
        code => Some(Err(io::Error::from_raw_os_error(code.wrapping_neg()))),
    }
}

fn ignore(code: i32, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(code) => Ok(()),
        other => other,
    }
}

/// The number of the calling thread's namespace's link of this name; `None` if there is none.
pub(super) fn link_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

const IFF_UP: u32 = libc::IFF_UP as u32;

/// `struct ifinfomsg`: family, padding, type, index, flags, mask of the flags to change.
fn link_body(index: u32, up: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&up.to_ne_bytes());
    body[12..16].copy_from_slice(&up.to_ne_bytes());
    body
}

/// A request under construction: room for the header, then the fixed part, then attributes.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(body: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(body);
        Message(bytes)
    }

    fn link(index: u32, up: u32) -> Message {
        Message::new(&link_body(index, up))
    }

    /// `struct ifaddrmsg` and the address as both local and peer.
    fn address(index: u32, ip: Ipv4Addr, prefix: u8) -> Message {
        let mut body = [libc::AF_INET as u8, prefix, 0, 0, 0, 0, 0, 0];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(&body);
        message.attribute(libc::IFA_LOCAL, &ip.octets());
        message.attribute(libc::IFA_ADDRESS, &ip.octets());
        message
    }

    /// `struct rtmsg` for the main table.
    fn route(prefix: u8, kind: u8) -> Message {
        let table = libc::RT_TABLE_MAIN;
        let body = [
            libc::AF_INET as u8,
            prefix,
            0,
            0,
            table,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            kind,
            0,
            0,
            0,
            0,
        ];
        Message::new(&body)
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Values are names of at most 255 bytes and numbers: the sum always fits 16 bits.
        let length = (value.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(mut self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut message = Message::link(0, 0);
        message.text(libc::IFLA_IFNAME, "wl0");
        message.nest(libc::IFLA_LINKINFO, |m| {
            m.attribute(libc::IFLA_INFO_KIND, b"bridge")
        });
        let bytes = message.finish(libc::RTM_NEWLINK, 5, 7);
        assert_eq!(bytes.len(), 16 + 16 + 8 + (4 + 4 + 8));
        assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(bytes[32..34], 8u16.to_ne_bytes(), "name attribute");
        assert_eq!(
            bytes[40..42],
            16u16.to_ne_bytes(),
            "nest covers its padded content"
        );
    }

    #[test]
    fn only_the_answer_to_the_request_counts() {
        let mut answer = vec![0u8; 36];
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        answer[8..12].copy_from_slice(&3u32.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert!(acknowledgement(&answer, 4).is_none());
        let error = acknowledgement(&answer, 3).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        assert!(
            acknowledgement(&answer[..10], 3).is_none(),
            "a torn answer is no answer"
        );
    }
}
