//! Frames of a network as segments of TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::heads::{Flow, Segment};

const TCP: u8 = 6;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// 802.1Q and 802.1ad.
const VLANS: [u16; 2] = [0x8100, 0x88a8];
const MAX_VLANS: usize = 2;
/// Extension headers of IPv6 that are passed over: as many as anybody sends, and more.
const MAX_EXTENSIONS: usize = 8;

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linktype {
    /// `LINKTYPE_ETHERNET`.
    Ethernet,
    /// `LINKTYPE_RAW`: with the header of IP.
    Raw,
}

/// The segment of TCP in a frame; `None` if there is none, or one of a datagram that is
/// fragmented (RFC 791, RFC 8200). A frame may be captured in part: the payload is what
/// there is of it. Checksums are not looked at, for what a machine itself sends has none
/// yet where it is captured.
pub fn segment(linktype: Linktype, frame: &[u8]) -> Option<Segment<'_>> {
    match linktype {
        Linktype::Raw => ip(frame),
        Linktype::Ethernet => ethernet(frame),
    }
}

fn ethernet(frame: &[u8]) -> Option<Segment<'_>> {
    let mut rest = frame.get(12..)?;
    for _ in 0..=MAX_VLANS {
        let kind = number(rest, 0)?;
        match kind {
            IPV4 | IPV6 => return ip(rest.get(2..)?),
            kind if VLANS.contains(&kind) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    None
}

fn ip(packet: &[u8]) -> Option<Segment<'_>> {
    match packet.first()? >> 4 {
        4 => ipv4(packet),
        6 => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Segment<'_>> {
    let head = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(number(packet, 2)?);
    let is_fragment = number(packet, 6)? & 0x3fff != 0;
    if head < 20 || is_fragment || *packet.get(9)? != TCP {
        return None;
    }
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    // Ethernet pads short frames. Segments that a device is to cut may be too large to
    // tell their length.
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
    tcp(packet.get(head..end)?, source.into(), destination.into())
}

fn ipv6(packet: &[u8]) -> Option<Segment<'_>> {
    let length = usize::from(number(packet, 4)?);
    let mut next = *packet.get(6)?;
    let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
    let mut rest = packet.get(40..end)?;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            TCP => {
                let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
                return tcp(rest, source.into(), destination.into());
            }
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                next = *rest.first()?;
                rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
            }
            _ => return None,
        }
    }
    None
}

fn tcp(bytes: &[u8], source: IpAddr, destination: IpAddr) -> Option<Segment<'_>> {
    let sequence = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    let head = usize::from(*bytes.get(12)? >> 4) * 4;
    let flags = *bytes.get(13)?;
    if head < 20 {
        return None;
    }
    Some(Segment {
        flow: Flow {
            client: SocketAddr::new(source, number(bytes, 0)?),
            server: SocketAddr::new(destination, number(bytes, 2)?),
        },
        sequence,
        payload: bytes.get(head..)?,
        fin: flags & 0x01 != 0,
        syn: flags & 0x02 != 0,
        rst: flags & 0x04 != 0,
    })
}

/// Two bytes at `at`, most significant first.
fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
