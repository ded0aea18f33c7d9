//! Virtual addresses: one per service name, the same after every restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    str::FromStr,
};

use mesh_core::ServiceName;
use sha2::{Digest, Sha256};

/// A range of IPv4 addresses, `base/prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualRange {
    base: Ipv4Addr,
    prefix: u8,
}

/// Why a range was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range; write a.b.c.d/4 to a.b.c.d/28, e.g. 240.0.0.0/4")]
pub struct InvalidRange(String);

impl Default for VirtualRange {
    /// 240.0.0.0/4: reserved for future use (RFC 1112 section 4), so no network
    /// that a site has can collide with it, and so large that no two of a
    /// thousand names want one address, but once in five hundred sites.
    fn default() -> Self {
        Self { base: Ipv4Addr::new(240, 0, 0, 0), prefix: 4 }
    }
}

impl FromStr for VirtualRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let fail = || InvalidRange(text.chars().take(80).collect());
        let (base, prefix) = text.split_once('/').ok_or_else(fail)?;
        let base: Ipv4Addr = base.parse().map_err(|_| fail())?;
        let prefix: u8 = prefix.parse().map_err(|_| fail())?;
        let range = Self { base, prefix };
        if !(4..=28).contains(&prefix) || u32::from(base) & (range.size() - 1) != 0 {
            return Err(fail());
        }
        Ok(range)
    }
}

impl fmt::Display for VirtualRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl VirtualRange {
    /// Addresses in it, a power of two.
    fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The first choice of a name on its `attempt`th try; never the first or
    /// the last address of the range.
    fn candidate(self, name: &str, attempt: u32) -> Ipv4Addr {
        let digest =
            Sha256::new().chain_update(name).chain_update(attempt.to_be_bytes()).finalize();
        let hash = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Ipv4Addr::from(u32::from(self.base) + 1 + hash % (self.size() - 2))
    }
}

/// Attempts to find a free address for a name; with half of the range taken,
/// one in 2^64 names stays without.
const ATTEMPTS: u32 = 64;

/// Which name has which address.
#[derive(Debug)]
pub struct VirtualAddresses {
    range: VirtualRange,
    by_name: BTreeMap<ServiceName, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
}

impl VirtualAddresses {
    /// None is taken.
    pub fn new(range: VirtualRange) -> Self {
        Self { range, by_name: BTreeMap::new(), taken: BTreeSet::new() }
    }

    /// Gives every name an address. Names that had one keep it; names that are
    /// gone keep theirs too until a quarter of the range is taken.
    pub fn allocate<'a>(&mut self, names: impl Iterator<Item = &'a ServiceName> + Clone) {
        if self.taken.len() as u64 > u64::from(self.range.size() / 4) {
            let wanted: BTreeSet<&ServiceName> = names.clone().collect();
            self.by_name.retain(|name, _| wanted.contains(name));
            self.taken = self.by_name.values().copied().collect();
        }
        for name in names {
            if self.by_name.contains_key(name) {
                continue;
            }
            let free = (0..ATTEMPTS)
                .map(|attempt| self.range.candidate(name.as_str(), attempt))
                .find(|address| !self.taken.contains(address));
            if let Some(address) = free {
                self.taken.insert(address);
                self.by_name.insert(name.clone(), address);
            }
        }
    }

    /// The address of a name; `None` if the range is used up.
    pub fn of(&self, name: &ServiceName) -> Option<Ipv4Addr> {
        self.by_name.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<ServiceName> {
        (0..count).map(|i| format!("s{i}.shop").parse().unwrap()).collect()
    }

    #[test]
    fn an_address_depends_on_the_name_and_is_kept() {
        let names = names(1000);
        let mut first = VirtualAddresses::new(VirtualRange::default());
        first.allocate(names.iter());
        let mut again = VirtualAddresses::new(VirtualRange::default());
        again.allocate(names.iter());
        let all: BTreeSet<_> = names.iter().filter_map(|name| first.of(name)).collect();
        assert_eq!(all.len(), names.len(), "no two share one");
        for name in &names {
            assert_eq!(first.of(name), again.of(name));
            assert_eq!(first.of(name).map(|ip| ip.octets()[0] >> 4), Some(15));
        }
        first.allocate(names[..1].iter());
        first.allocate(names.iter());
        assert_eq!(first.of(&names[999]), again.of(&names[999]), "gone and back: the same");
    }

    #[test]
    fn a_full_range_leaves_names_without() {
        let mut addresses = VirtualAddresses::new("10.0.0.0/28".parse().unwrap());
        let names = names(40);
        addresses.allocate(names.iter());
        let given: BTreeSet<_> = names.iter().filter_map(|name| addresses.of(name)).collect();
        assert!(given.len() <= 14 && given.len() > 10, "{given:?}");
        assert!(!given.contains(&"10.0.0.0".parse().unwrap()));
        assert!(!given.contains(&"10.0.0.15".parse().unwrap()));
        addresses.allocate(names[..2].iter());
        assert!(addresses.of(&names[30]).is_none(), "given back");
    }

    #[test]
    fn ranges_are_checked() {
        let table = [
            ("240.240.0.0/16", true),
            ("10.1.2.0/24", true),
            ("10.1.2.3/24", false),
            ("10.1.2.0/29", false),
            ("240.0.0.0/4", true),
            ("224.0.0.0/3", false),
            ("10.1.2.0", false),
            ("fd00::/64", false),
            ("", false),
        ];
        for (text, ok) in table {
            assert_eq!(text.parse::<VirtualRange>().is_ok(), ok, "{text}");
        }
        assert_eq!(VirtualRange::default().to_string().parse(), Ok(VirtualRange::default()));
    }
}
