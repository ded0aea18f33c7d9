//! Blocks of addresses.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::address::virtual_ipv6;

/// A block of addresses (RFC 4632).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, prefix) = text.split_once('/').unwrap_or((text, ""));
        let addr: IpAddr =
            addr.parse().map_err(|_| format!("{text:?}: not an address or CIDR block"))?;
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            "" if !text.contains('/') => longest,
            digits => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| format!("{text:?}: the prefix must be 0 to {longest}"))?,
        };
        Ok(Self { addr, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl Cidr {
    /// Whether it is a block of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// As it was written, or the first one, of [`Cidr::network`].
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// How many bits all of its addresses have in common.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The same block by its first address.
    pub fn network(&self) -> Self {
        let addr = match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(addr) & mask).into())
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(addr) & mask).into())
            }
        };
        Self { addr, prefix: self.prefix }
    }

    /// Of a block of virtual addresses of IPv4, the block of those of IPv6 that
    /// stand for them.
    pub fn virtual_ipv6(&self) -> Option<Self> {
        match self.addr {
            IpAddr::V4(ip) => {
                Some(Self { addr: virtual_ipv6(ip).into(), prefix: 96 + self.prefix })
            }
            IpAddr::V6(_) => None,
        }
    }

    /// Whether all of another block lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4()
            && self.prefix <= other.prefix
            && Self { prefix: self.prefix, ..*other }.network() == self.network()
    }

    /// Whether an address lies in the block; IPv4-mapped IPv6 counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        use IpAddr::{V4, V6};
        match (self.addr, addr.to_canonical()) {
            (V4(block), V4(addr)) => {
                let shift = 32 - u32::from(self.prefix);
                (u32::from(block) ^ u32::from(addr)).checked_shr(shift).unwrap_or(0) == 0
            }
            (V6(block), V6(addr)) => {
                let shift = 128 - u32::from(self.prefix);
                (u128::from(block) ^ u128::from(addr)).checked_shr(shift).unwrap_or(0) == 0
            }
            (V4(_), V6(_)) | (V6(_), V4(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_virtual_addresses_have_some_of_ipv6() {
        let block = |text: &str| text.parse::<Cidr>().unwrap();
        for (v4, v6) in [
            ("240.0.0.0/4", "fd69:7374:686d::f000:0/100"),
            ("10.9.0.0/16", "fd69:7374:686d::a09:0/112"),
            ("0.0.0.0/0", "fd69:7374:686d::/96"),
        ] {
            assert_eq!(block(v4).virtual_ipv6(), Some(block(v6)), "{v4}");
        }
        assert_eq!(block("fd00::/8").virtual_ipv6(), None);
    }

    #[test]
    fn blocks_cover_blocks() {
        let cases = [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.9.9.9/8", "10.1.2.3/32", true),
            ("0.0.0.0/0", "255.255.255.255/32", true),
            ("0.0.0.0/0", "::/0", false),
            ("::/0", "2001:db8::/32", true),
            ("fd00::/8", "fe80::/10", false),
        ];
        for (block, other, wanted) in cases {
            let (block, other): (Cidr, Cidr) = (block.parse().unwrap(), other.parse().unwrap());
            assert_eq!(block.covers(&other), wanted, "{block} {other}");
        }
        let network = |text: &str| text.parse::<Cidr>().unwrap().network().to_string();
        assert_eq!(network("10.9.8.7/8"), "10.0.0.0/8");
        assert_eq!(network("2001:db8:1::7/32"), "2001:db8::/32");
        assert_eq!((network("1.2.3.4/0"), network("::1")), ("0.0.0.0/0".into(), "::1/128".into()));
    }

    #[test]
    fn blocks_hold_what_they_say() {
        let cases = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1/32", "192.0.2.1", true),
        ];
        for (block, addr, wanted) in cases {
            let block: Cidr = block.parse().unwrap();
            assert_eq!(block.contains(addr.parse().unwrap()), wanted, "{block:?} {addr}");
            assert_eq!(block.to_string().parse(), Ok(block));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/x", "10.0.0/8", "host/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
