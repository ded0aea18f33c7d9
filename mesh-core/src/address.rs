//! Which addresses an endpoint may have.
//!
//! A gateway dials them for others, with the reach of its own host. A machine
//! that registers an address must not turn it into a door to that host, to what
//! the mesh itself serves, or to what a cloud answers only its own machines.
//! Federation asks before it keeps a registration, and a gateway asks again
//! before it dials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Services that clouds offer each of their machines at addresses that look
/// like any other; the rest of them are link-local.
const METADATA: [IpAddr; 3] = [
    // Alibaba Cloud.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure: WireServer.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Google Cloud.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Where a cloud or the link itself answers: nothing of it belongs to a mesh.
/// As [`check`] has it, as blocks.
pub const NEVER: [&str; 9] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "::1/128",
    "fe80::/10",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
    "ff00::/8",
];

/// What all virtual addresses of IPv6 begin with: `fd69:7374:686d::/96` (RFC 4193;
/// its 40 bits are "isthm", the same in every site). An IPv4 one follows.
const VIRTUAL_IPV6: u128 = 0xfd69_7374_686d << 80;

/// Of IPv6, what stands for a virtual address of IPv4: what has one has the
/// other, for as long.
pub fn virtual_ipv6(ip: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(VIRTUAL_IPV6 | u128::from(u32::from(ip)))
}

/// Whether it is such an address.
pub fn is_virtual_ipv6(ip: Ipv6Addr) -> bool {
    u128::from(ip) >> 32 == VIRTUAL_IPV6 >> 32
}

/// What is known of the place from which an address would be dialled.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Loopback is the network of the site: all of it runs on one host
    /// ([`is_on_loopback`]).
    pub loopback: bool,
    /// Where the mesh itself listens. An unspecified IP stands for every
    /// address that the host has.
    pub listens: &'a [SocketAddr],
    /// Whether the host has this address.
    pub has: &'a dyn Fn(IpAddr) -> bool,
}

/// Why an address must not be dialled for an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Port 0, or an address that names no host (RFC 1122 section 3.2.1.3).
    #[error("it names no host and port that can be dialled")]
    Nowhere,
    /// Multicast or broadcast.
    #[error("it names more than one host")]
    Group,
    /// RFC 3927, RFC 4291 section 2.5.6.
    #[error("it is link-local, where clouds keep their metadata services")]
    LinkLocal,
    /// Another address of such a service.
    #[error("it is a metadata service of a cloud")]
    Metadata,
    /// The gateway's own host.
    #[error("it is loopback, which is another host for everyone who dials it")]
    Loopback,
    /// Our own port.
    #[error("the mesh itself listens there")]
    Own,
}

/// Whether an endpoint may have this address. IPv4 addresses that are written
/// as IPv6 are what they mean.
pub fn check(addr: SocketAddr, place: Place<'_>) -> Result<(), Forbidden> {
    let ip = addr.ip().to_canonical();
    match ip {
        _ if addr.port() == 0 || is_nowhere(ip) => Err(Forbidden::Nowhere),
        _ if ip.is_multicast() || ip == Ipv4Addr::BROADCAST => Err(Forbidden::Group),
        _ if is_link_local(ip) => Err(Forbidden::LinkLocal),
        _ if is_metadata(ip) => Err(Forbidden::Metadata),
        _ if ip.is_loopback() && !place.loopback => Err(Forbidden::Loopback),
        _ if is_ours(SocketAddr::new(ip, addr.port()), place) => Err(Forbidden::Own),
        _ => Ok(()),
    }
}

/// Whether a site is all on one host, as demos and tests are: each of its
/// gateways is reached at loopback addresses and nowhere else. `addresses` are
/// those of all of them, `host:port`; a name is no loopback address.
pub fn is_on_loopback<'a>(addresses: impl IntoIterator<Item = &'a str>) -> bool {
    let mut addresses = addresses.into_iter().peekable();
    let is_loopback = |text: &str| {
        let addr = text.parse::<SocketAddr>();
        addr.is_ok_and(|addr| addr.ip().to_canonical().is_loopback())
    };
    addresses.peek().is_some() && addresses.all(is_loopback)
}

/// `0.0.0.0/8` is this network (RFC 6890); Linux takes some of it for this
/// host.
fn is_nowhere(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unspecified(),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// `fd00:ec2::/32` is AWS's: metadata, resolver, time.
fn is_metadata(ip: IpAddr) -> bool {
    let of_aws = match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0xec2],
    };
    of_aws || METADATA.contains(&ip)
}

fn is_ours(addr: SocketAddr, place: Place<'_>) -> bool {
    place.listens.iter().filter(|own| own.port() == addr.port()).any(|own| {
        let own = own.ip().to_canonical();
        own == addr.ip() || own.is_unspecified() && (place.has)(addr.ip())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ask(text: &str, loopback: bool, listens: &[&str]) -> Result<(), Forbidden> {
        let listens: Vec<SocketAddr> = listens.iter().map(|text| addr(text)).collect();
        let host = [addr("10.0.0.1:1").ip(), addr("[2001:db8::1]:1").ip()];
        let has = |ip: IpAddr| host.contains(&ip);
        check(addr(text), Place { loopback, listens: &listens, has: &has })
    }

    #[test]
    fn a_virtual_address_has_one_of_ipv6() {
        let v6 = virtual_ipv6([240, 1, 2, 3].into());
        assert_eq!(v6.to_string(), "fd69:7374:686d::f001:203");
        assert!(is_virtual_ipv6(v6) && v6.is_unique_local());
        for other in ["fd69:7374:686d::1:f001:203", "fd69:7374:686e::f001:203", "::f001:203"] {
            assert!(!is_virtual_ipv6(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn blocks_are_those_that_are_never_dialled() {
        for text in NEVER {
            let first: IpAddr = text.split_once('/').unwrap().0.parse().unwrap();
            assert!(ask(&SocketAddr::new(first, 80).to_string(), false, &[]).is_err(), "{text}");
        }
        let blocks = || NEVER.iter().map(|text| text.parse::<crate::Cidr>().unwrap());
        assert!(METADATA.iter().all(|ip| blocks().any(|block| block.contains(*ip))));
    }

    #[test]
    fn hosts_may_be_dialled() {
        for text in [
            "10.0.0.1:4143",
            "192.0.2.7:1",
            "100.100.100.201:80",
            "168.63.129.15:80",
            "240.240.0.1:80",
            "[2001:db8::7]:4143",
            "[fd00:ec3::254]:80",
            "[fd00::1]:80",
            "[fd20:ce::253]:80",
            "[::ffff:10.0.0.7]:4143",
        ] {
            assert_eq!(ask(text, false, &[]), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_of_the_site_is_refused_whatever_the_site_is() {
        use Forbidden::{Group, LinkLocal, Metadata, Nowhere};
        let cases = [
            ("10.0.0.1:0", Nowhere),
            ("0.0.0.0:4143", Nowhere),
            ("0.1.2.3:4143", Nowhere),
            ("[::]:4143", Nowhere),
            ("[::ffff:0.0.0.0]:4143", Nowhere),
            ("224.0.0.1:4143", Group),
            ("255.255.255.255:4143", Group),
            ("[ff02::1]:4143", Group),
            ("[::ffff:224.0.0.1]:4143", Group),
            ("[::ffff:255.255.255.255]:4143", Group),
            ("169.254.169.254:80", LinkLocal),
            ("[::ffff:169.254.169.254]:80", LinkLocal),
            ("[fe80::1]:4143", LinkLocal),
            ("100.100.100.200:80", Metadata),
            ("168.63.129.16:80", Metadata),
            ("[::ffff:168.63.129.16]:80", Metadata),
            ("[fd00:ec2::254]:80", Metadata),
            ("[fd00:ec2::253]:53", Metadata),
            ("[fd20:ce::254]:80", Metadata),
        ];
        for (text, problem) in cases {
            for loopback in [false, true] {
                assert_eq!(ask(text, loopback, &[]), Err(problem), "{text}");
            }
        }
    }

    #[test]
    fn loopback_is_for_sites_that_live_there() {
        for text in ["127.0.0.1:4143", "127.9.9.9:1", "[::1]:4143", "[::ffff:127.0.0.1]:4143"] {
            assert_eq!(ask(text, false, &[]), Err(Forbidden::Loopback), "{text}");
            assert_eq!(ask(text, true, &[]), Ok(()), "{text}");
        }
    }

    #[test]
    fn our_own_ports_are_refused_under_every_address_that_is_ours() {
        let exact = ["10.0.0.9:8443", "[::ffff:127.0.0.1]:4191"];
        let any = ["0.0.0.0:8443"];
        let any6 = ["[::]:8443"];
        let cases: [(&str, &[&str], bool); 11] = [
            ("10.0.0.9:8443", &exact, true),
            ("[::ffff:10.0.0.9]:8443", &exact, true),
            ("127.0.0.1:4191", &exact, true),
            ("10.0.0.9:8444", &exact, false),
            ("10.0.0.8:8443", &exact, false),
            ("10.0.0.1:8443", &exact, false),
            ("10.0.0.1:8443", &any, true),
            ("[::ffff:10.0.0.1]:8443", &any6, true),
            ("[2001:db8::1]:8443", &any6, true),
            ("10.0.0.2:8443", &any, false),
            ("10.0.0.1:4143", &any, false),
        ];
        for (text, listens, ours) in cases {
            let expected = if ours { Err(Forbidden::Own) } else { Ok(()) };
            assert_eq!(ask(text, true, listens), expected, "{text} {listens:?}");
        }
    }

    #[test]
    fn a_site_is_on_loopback_if_nobody_else_can_reach_it() {
        let cases: [(&[&str], bool); 7] = [
            (&["127.0.0.1:8443", "[::1]:8443"], true),
            (&["127.77.0.12:8443"], true),
            (&["[::ffff:127.0.0.1]:8443"], true),
            (&["127.0.0.1:8443", "10.0.0.1:8443"], false),
            (&["localhost:8443"], false),
            (&["gw.example:8443"], false),
            (&[], false),
        ];
        for (addresses, expected) in cases {
            assert_eq!(is_on_loopback(addresses.iter().copied()), expected, "{addresses:?}");
        }
    }
}
