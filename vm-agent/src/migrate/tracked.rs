//! The kernel's table of connections (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! A connection goes where its first packet was led. An entry that outlives its
//! connection takes the next one from the same address and port the same way: to a
//! listener that has closed meanwhile. Where the kernel has seen a connection end it
//! begins anew by itself. It has not where tracking began within one, as it does when
//! the first rule is loaded: the last packet of such a connection leaves an entry for
//! five minutes.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{self, SocketAddrNetlink},
        recv, sendto, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::{
    record::Listener,
    sockets::{self, covers},
};
use crate::capture::netlink::{NLM_F_ACK, NLMSG_ERROR, attribute, message, read_answer};

const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP: u16 = 0x300;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

// `linux/netfilter/nf_conntrack_tcp.h`.
/// With SYN cookies there is no socket yet.
const SYN_RECEIVED: u8 = 2;
/// The kernel begins anew by itself.
const TIME_WAIT: u8 = 7;

/// Of one answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// Answers that are read.
const MAX_ANSWERS: usize = 1 << 16;
/// Entries that are looked at, and those that are forgotten at once.
const MAX_SUSPECTS: usize = 1 << 18;
const MAX_FORGOTTEN: usize = 10_000;
/// For one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A connection over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// `CTA_TUPLE_ORIG`, as the kernel wrote it.
    original: Vec<u8>,
    /// `CTA_ID`: who comes again in the same way is another one.
    id: Vec<u8>,
    /// Where the client wanted to go.
    wanted: SocketAddr,
    /// The socket that it was led to.
    socket: Pair,
    state: u8,
}

/// The two ends of a socket: its own and the peer's.
type Pair = (SocketAddr, SocketAddr);

/// Forgets entries of connections to these listeners that no socket of this machine
/// has any more, wherever they were led to. The answer is how many.
///
/// # Errors
///
/// The kernel does not say what it tracks, or there is too much of it.
pub fn forget_dead(listeners: &[Listener]) -> io::Result<usize> {
    let netlink = open()?;
    let mut local = HashMap::new();
    let mut dead = dump(&netlink, |entry| {
        !matches!(entry.state, SYN_RECEIVED | TIME_WAIT)
            && listeners.iter().any(|listener| covers(listener.address, entry.wanted))
            && *local.entry(entry.socket.0.ip()).or_insert_with_key(|ip| is_local(*ip))
    })?;
    // Two looks: a table that changes while it is read may lack a line.
    for _ in 0..2 {
        if dead.is_empty() {
            return Ok(0);
        }
        let there: HashSet<Pair> =
            sockets::whole_table()?.iter().map(|line| (line.local, line.remote)).collect();
        dead.retain(|entry| !there.contains(&entry.socket));
    }
    dead.truncate(MAX_FORGOTTEN);
    let mut forgotten = 0;
    for entry in &dead {
        match forget(&netlink, entry) {
            Ok(()) => forgotten += 1,
            // It has ended, or there is another one by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

/// Whether packets to it end here: its route comes from itself.
fn is_local(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = || {
        let socket = UdpSocket::bind((any, 0))?;
        // Sends nothing; any port does.
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    ip.is_loopback() || from().is_ok_and(|from| from.ip() == ip)
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::RAW;
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::NETFILTER))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
    Ok(socket)
}

/// All that is tracked and wanted.
fn dump(netlink: &OwnedFd, mut is_wanted: impl FnMut(&Entry) -> bool) -> io::Result<Vec<Entry>> {
    ask(netlink, IPCTNL_MSG_CT_GET, NLM_F_DUMP, AF_UNSPEC, &[])?;
    let mut found = Vec::new();
    let mut answer = vec![0; MAX_ANSWER];
    for _ in 0..MAX_ANSWERS {
        let (length, _) = recv(netlink, answer.as_mut_slice(), RecvFlags::empty())?;
        for (kind, body) in messages(answer.get(..length).unwrap_or_default()) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => {
                    // Without an error a dump does not end this way.
                    read_answer(answer.get(..length).unwrap_or_default())?;
                    return Err(io::ErrorKind::InvalidData.into());
                }
                IPCTNL_MSG_CT_NEW => found.extend(read(body).filter(&mut is_wanted)),
                _ => {}
            }
        }
        if found.len() > MAX_SUSPECTS {
            break;
        }
    }
    Err(io::Error::other("too many connections are tracked to look at all of them"))
}

fn forget(netlink: &OwnedFd, entry: &Entry) -> io::Result<()> {
    let mut which = Vec::new();
    attribute(&mut which, CTA_TUPLE_ORIG | NLA_F_NESTED, &entry.original);
    attribute(&mut which, CTA_ID, &entry.id);
    let family = if entry.wanted.is_ipv4() { AF_INET } else { AF_INET6 };
    ask(netlink, IPCTNL_MSG_CT_DELETE, NLM_F_ACK, family, &which)?;
    let mut answer = vec![0; MAX_ANSWER];
    let (length, _) = recv(netlink, answer.as_mut_slice(), RecvFlags::empty())?;
    match read_answer(answer.get(..length).unwrap_or_default())? {
        true => Ok(()),
        false => Err(io::Error::other("conntrack does not answer")),
    }
}

fn ask(netlink: &OwnedFd, kind: u16, flags: u16, family: u8, which: &[u8]) -> io::Result<()> {
    let mut asked = Vec::new();
    message(&mut asked, kind, flags, family, which);
    sendto(netlink, &asked, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}

/// Their kinds, and what is behind their headers.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Their kinds and values.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn one(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(has, _)| *has == kind).map(|(_, value)| value)
}

/// `None` if it is not over TCP, or in a zone, which somebody else has made.
fn read(body: &[u8]) -> Option<Entry> {
    let all = body.get(4..)?;
    let original = one(all, CTA_TUPLE_ORIG)?;
    if one(all, CTA_ZONE).or(one(original, CTA_TUPLE_ZONE)).is_some() {
        return None;
    }
    let (_, wanted) = tuple(original)?;
    let socket = tuple(one(all, CTA_TUPLE_REPLY)?)?;
    let tcp = one(one(all, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
    Some(Entry {
        original: original.to_vec(),
        id: one(all, CTA_ID)?.to_vec(),
        wanted,
        socket,
        state: *one(tcp, CTA_PROTOINFO_TCP_STATE)?.first()?,
    })
}

/// From where, and where to.
fn tuple(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, protocol) = (one(bytes, CTA_TUPLE_IP)?, one(bytes, CTA_TUPLE_PROTO)?);
    if one(protocol, CTA_PROTO_NUM)? != [IPPROTO_TCP] {
        return None;
    }
    let end = |v4: u16, v6: u16, port: u16| {
        let ip: IpAddr = match one(ip, v4) {
            Some(v4) => Ipv4Addr::from(*v4.first_chunk::<4>()?).into(),
            None => Ipv6Addr::from(*one(ip, v6)?.first_chunk::<16>()?).into(),
        };
        let port = u16::from_be_bytes(*one(protocol, port)?.first_chunk()?);
        Some(SocketAddr::new(ip, port))
    };
    Some((
        end(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
        end(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(to: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = Vec::new();
        fill(&mut inner);
        attribute(to, kind | NLA_F_NESTED, &inner);
    }

    fn write_tuple(to: &mut Vec<u8>, kind: u16, from: &str, at: &str, protocol: u8) {
        let (from, at): (SocketAddr, SocketAddr) = (from.parse().unwrap(), at.parse().unwrap());
        nested(to, kind, |tuple| {
            nested(tuple, CTA_TUPLE_IP, |ip| {
                for (end, v4, v6) in
                    [(from, CTA_IP_V4_SRC, CTA_IP_V6_SRC), (at, CTA_IP_V4_DST, CTA_IP_V6_DST)]
                {
                    match end.ip() {
                        IpAddr::V4(end) => attribute(ip, v4, &end.octets()),
                        IpAddr::V6(end) => attribute(ip, v6, &end.octets()),
                    }
                }
            });
            nested(tuple, CTA_TUPLE_PROTO, |proto| {
                attribute(proto, CTA_PROTO_NUM, &[protocol]);
                attribute(proto, CTA_PROTO_SRC_PORT, &from.port().to_be_bytes());
                attribute(proto, CTA_PROTO_DST_PORT, &at.port().to_be_bytes());
            });
        });
    }

    fn entry(client: &str, wanted: &str, socket: &str, protocol: u8) -> Vec<u8> {
        let mut body = vec![AF_INET, 0, 0, 0];
        write_tuple(&mut body, CTA_TUPLE_ORIG, client, wanted, protocol);
        write_tuple(&mut body, CTA_TUPLE_REPLY, socket, client, protocol);
        nested(&mut body, CTA_PROTOINFO, |info| {
            nested(info, CTA_PROTOINFO_TCP, |tcp| attribute(tcp, CTA_PROTOINFO_TCP_STATE, &[3]));
        });
        attribute(&mut body, CTA_ID, &[1, 2, 3, 4]);
        body
    }

    #[test]
    fn an_entry_says_where_a_client_wanted_to_go_and_where_it_was_led() {
        for (client, wanted, socket) in [
            ("10.0.0.9:41514", "10.0.0.7:80", "10.0.0.7:20080"),
            ("[2001:db8::9]:4000", "[2001:db8::7]:80", "[2001:db8::7]:80"),
        ] {
            let found = read(&entry(client, wanted, socket, IPPROTO_TCP)).unwrap();
            assert_eq!(found.wanted, wanted.parse().unwrap());
            assert_eq!(found.socket, (socket.parse().unwrap(), client.parse().unwrap()));
            assert_eq!((found.state, found.id), (3, vec![1, 2, 3, 4]));
        }
        const UDP: u8 = 17;
        assert_eq!(read(&entry("10.0.0.9:1", "10.0.0.7:80", "10.0.0.7:80", UDP)), None);
        let mut zoned = entry("10.0.0.9:1", "10.0.0.7:80", "10.0.0.7:80", IPPROTO_TCP);
        attribute(&mut zoned, CTA_ZONE, &[0, 1]);
        assert_eq!(read(&zoned), None);
    }

    #[test]
    fn what_is_local_is_known() {
        assert!(is_local(Ipv4Addr::LOCALHOST.into()));
        assert!(is_local(Ipv4Addr::new(127, 3, 2, 1).into()));
        assert!(!is_local(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(0u8.., 0..200)) {
            for (_, body) in messages(&bytes) {
                let _ = read(body);
            }
            let _ = read(&bytes);
        }
    }
}
