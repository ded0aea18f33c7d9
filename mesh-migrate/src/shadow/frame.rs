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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::same_each_time;

    const MACS: [u8; 12] = [2; 12];

    /// 20 bytes of header, 4 of options, SYN and FIN, and what it carries.
    fn tcp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9c, 0x40, 0x1f, 0x90, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 0x03];
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    fn v4(total: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x46, 0];
        bytes.extend((total as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1]);
        bytes.extend(payload);
        bytes
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        bytes.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend(payload);
        bytes
    }

    fn framed(tags: &[u8], kind: u16, packet: &[u8]) -> Vec<u8> {
        [&MACS, tags, &kind.to_be_bytes(), packet].concat()
    }

    #[test]
    fn segments_are_found() {
        let whole = v4(24 + 24 + 2, 0x4000, &tcp(b"hi"));
        let padded = [whole.as_slice(), &[0; 6]].concat();
        let vlan: &[u8] = &[0x81, 0, 0, 7];
        let two: &[u8] = &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8];
        let options =
            v6(0, &[&[60, 0, 0, 0, 0, 0, 0, 0, 6, 0], [0; 6].as_slice(), &tcp(b"hi")].concat());
        let frames = [
            (Linktype::Raw, whole.clone()),
            (Linktype::Raw, v4(0, 0, &tcp(b"hi"))),
            (Linktype::Ethernet, framed(&[], IPV4, &padded)),
            (Linktype::Ethernet, framed(vlan, IPV4, &padded)),
            (Linktype::Ethernet, framed(two, IPV4, &padded)),
            (Linktype::Ethernet, framed(&[], IPV6, &v6(6, &tcp(b"hi")))),
            (Linktype::Raw, options),
        ];
        for (linktype, frame) in &frames {
            let found = segment(*linktype, frame).unwrap();
            let is_v4 = found.flow.client.is_ipv4();
            let ends = if is_v4 { ("10.0.0.1", "10.0.0.2") } else { ("::1", "2001:db8::2") };
            assert_eq!(found.flow.client, SocketAddr::new(ends.0.parse().unwrap(), 40_000));
            assert_eq!(found.flow.server, SocketAddr::new(ends.1.parse().unwrap(), 8080));
            assert_eq!((found.sequence, found.payload), (0x0102_0304, b"hi".as_slice()));
            assert!(found.syn && found.fin && !found.rst);
        }
    }

    #[test]
    fn what_was_captured_in_part_has_a_part() {
        let frame = v4(24 + 24 + 500, 0, &tcp(b"hi"));
        assert_eq!(segment(Linktype::Raw, &frame).unwrap().payload, b"hi");
    }

    #[test]
    fn all_else_is_none() {
        let mut udp = v4(50, 0, &tcp(b"hi"));
        udp[9] = 17;
        let mut short = v4(50, 0, &tcp(b"hi"));
        short[0] = 0x44;
        let mut offset = v4(50, 0, &tcp(b"hi"));
        offset[24 + 12] = 0x40;
        let frames = [
            (Linktype::Raw, v4(50, 0x2000, &tcp(b"hi"))),
            (Linktype::Raw, v4(50, 0x0001, &tcp(b"hi"))),
            (Linktype::Raw, v4(40, 0, &tcp(b"hi"))),
            (Linktype::Raw, v6(44, &tcp(b"hi"))),
            (Linktype::Raw, v6(60, &[60, 255, 0])),
            (Linktype::Raw, vec![0x50; 60]),
            (Linktype::Ethernet, framed(&[], 0x0806, &v4(50, 0, &tcp(b"hi")))),
            (Linktype::Ethernet, framed(&[0x81, 0, 0, 1].repeat(3), IPV4, &v4(50, 0, &tcp(b"hi")))),
            (Linktype::Raw, udp),
            (Linktype::Raw, short),
            (Linktype::Raw, offset),
        ];
        for (linktype, frame) in &frames {
            assert_eq!(segment(*linktype, frame), None, "{frame:02x?}");
        }
        let whole = framed(&[], IPV6, &v6(6, &tcp(b"")));
        for end in 0..whole.len() {
            assert_eq!(segment(Linktype::Ethernet, &whole[..end]), None, "{end}");
        }
    }

    proptest! {
        #![proptest_config(same_each_time(2000))]

        #[test]
        fn nothing_panics(
            mut frame in prop::collection::vec(any::<u8>(), 0..120),
            kind in 0_usize..6,
        ) {
            let kinds: [&[u8]; 5] = [&[8, 0, 0x45], &[8, 0, 0x4f], &[0x86, 0xdd, 0x60], &[0x81, 0], &[]];
            if let (Some(start), Some(at)) = (kinds.get(kind), frame.get_mut(12..))
                && start.len() <= at.len()
            {
                at[..start.len()].copy_from_slice(start);
            }
            if frame.len() > 23 && kind % 2 == 0 {
                frame[23] = 6;
                frame[20] = 6;
            }
            let _ = segment(Linktype::Ethernet, &frame);
            let _ = segment(Linktype::Raw, frame.get(14..).unwrap_or_default());
        }
    }
}
