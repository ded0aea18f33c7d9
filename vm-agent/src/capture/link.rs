//! A link of our own, and the route to virtual addresses. Netlink, as in
//! `linux/rtnetlink.h`, `if_link.h` and `if_addr.h`.
//!
//! The link carries nothing. systemd-resolved asks a server for some domains
//! alone where a link has that server, and only while the link is up.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_core::Cidr;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice::name_to_index,
        netlink::SocketAddrNetlink, recv, sendto, socket_with,
    },
};

use super::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, attribute, read_answer};

/// Its name.
pub const LINK: &str = "isthmus0";
/// What can be up and carries nothing; the second where a kernel lacks the first.
const KINDS: [&str; 2] = ["dummy", "ifb"];
/// Tells our routes from others': no other is taken out.
const PROTOCOL: u8 = 141;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const NLM_F_EXCL: u16 = 0x200;
const NLA_F_NESTED: u16 = 0x8000;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Of what the kernel answers to one request; more is not ours.
const MAX_ANSWER: usize = 16 * 1024;

/// Makes the link, down, with an address that makes it count as one; a link of
/// that name is taken as it is.
///
/// # Errors
///
/// The kernel says no, or has no such links.
pub fn add(address: Ipv4Addr) -> io::Result<()> {
    let make = |kind| unless(Errno::EXIST, request(RTM_NEWLINK, NEW, &new_link(kind)));
    let [first, second] = KINDS;
    match make(first) {
        Err(error) if is(&error, Errno::OPNOTSUPP) => make(second)?,
        other => other?,
    }
    let address = new_address(index(LINK)?, address);
    unless(Errno::EXIST, request(RTM_NEWADDR, NEW, &address))
}

/// Up, or down.
///
/// # Errors
///
/// The kernel says no; `NotFound` where there is no link.
pub fn set(up: bool) -> io::Result<()> {
    request(RTM_NEWLINK, 0, &link(index(LINK)?, if up { IFF_UP } else { 0 }))
}

/// Takes the link out; one that is not there is fine.
///
/// # Errors
///
/// The kernel says no.
pub fn remove() -> io::Result<()> {
    match index(LINK) {
        Ok(index) => unless(Errno::NODEV, request(RTM_DELLINK, 0, &link(index, 0))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets connections to a block get as far as the rules that redirect them, also
/// where there is no default route. Somebody else's route does that, too.
///
/// # Errors
///
/// The kernel says no, e.g. where IPv6 is off.
pub fn add_route(block: &Cidr) -> io::Result<()> {
    unless(Errno::EXIST, request(RTM_NEWROUTE, NEW, &route(block, index("lo")?)))
}

/// Takes that out; one that is not there is fine.
///
/// # Errors
///
/// The kernel says no.
pub fn remove_route(block: &Cidr) -> io::Result<()> {
    unless(Errno::SRCH, request(RTM_DELROUTE, 0, &route(block, index("lo")?)))
}

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

fn unless(expected: Errno, result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if is(&error, expected) { Ok(()) } else { Err(error) })
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn index(name: &str) -> io::Result<u32> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    match name_to_index(&socket, name) {
        Err(Errno::NODEV) => Err(io::ErrorKind::NotFound.into()),
        other => Ok(other?),
    }
}

/// `struct ifinfomsg`.
fn link(index: u32, up: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(up.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body
}

fn new_link(kind: &str) -> Vec<u8> {
    let (mut body, mut info) = (link(0, 0), Vec::new());
    attribute(&mut body, IFLA_IFNAME, &[LINK.as_bytes(), &[0]].concat());
    attribute(&mut info, IFLA_INFO_KIND, kind.as_bytes());
    attribute(&mut body, IFLA_LINKINFO | NLA_F_NESTED, &info);
    body
}

/// `struct ifaddrmsg`; of a scope that resolvers count.
fn new_address(index: u32, address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 32, 0, RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &address.octets());
    attribute(&mut body, IFA_ADDRESS, &address.octets());
    body
}

/// `struct rtmsg`. By loopback, where nothing leaves the machine if it is not
/// redirected.
fn route(block: &Cidr, loopback: u32) -> Vec<u8> {
    let network = block.network();
    let (family, bytes) = match network.addr() {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    };
    let scope = if family == AF_INET { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
    let mut body =
        vec![family, network.prefix(), 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, RTN_UNICAST];
    body.extend([0; 4]);
    attribute(&mut body, RTA_DST, &bytes);
    attribute(&mut body, RTA_OIF, &loopback.to_ne_bytes());
    match family {
        AF_INET => attribute(&mut body, RTA_PREFSRC, &Ipv4Addr::LOCALHOST.octets()),
        _ => attribute(&mut body, RTA_PREFSRC, &Ipv6Addr::LOCALHOST.octets()),
    }
    body
}

/// `struct nlmsghdr` and what follows it; done, or refused, on return.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::new();
    message.extend(u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; MAX_ANSWER];
    let (length, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT)?;
    match read_answer(answer.get(..length).unwrap_or_default())? {
        true => Ok(()),
        false => Err(io::Error::other("the kernel does not answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_link_has_a_name_and_a_kind() {
        let wanted = "00000000000000000000000001000000 0d000300697374686d75733000000000 \
                      100012800900010064756d6d79000000";
        assert_eq!(hex(&new_link("dummy")), wanted.replace(' ', ""));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_route_is_ours_and_by_loopback() {
        let v4 = route(&"240.1.2.3/4".parse().unwrap(), 1);
        let wanted = "02040000fe8dfd0100000000 08000100f0000000 0800040001000000 080007007f000001";
        assert_eq!(hex(&v4), wanted.replace(' ', ""));
        let v6 = route(&"fd00:1::/32".parse().unwrap(), 1);
        let wanted = "0a200000fe8d000100000000 14000100fd00000100000000 0000000000000000 \
                      0800040001000000 1400070000000000000000000000000000000001";
        assert_eq!(hex(&v6), wanted.replace(' ', ""));
    }
}
