//! Which connections are redirected, as a transaction of nf_tables.

use std::net::IpAddr;

use mesh_core::Cidr;
use mesh_inject::Ports;

use super::{
    netlink::{Hook, Set, SetType, Transaction},
    step::{Load, Step},
};

/// Our table, of family `inet`; no other is touched.
pub(super) const TABLE: &str = "isthmus";

const SKIP_OUTBOUND: &str = "skip_outbound_ports";
const SKIP_INBOUND: &str = "skip_inbound_ports";
const SKIP_IPV4: &str = "skip_outbound_ipv4";
const SKIP_IPV6: &str = "skip_outbound_ipv6";

const TCP: u8 = 6;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// As names of links are compared: all that one can have.
const LOOPBACK: [u8; 16] = *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What is redirected, and what is not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) proxy_uid: u32,
    pub(super) outbound_port: u16,
    pub(super) inbound_port: u16,
    pub(super) skip_outbound: Ports,
    pub(super) skip_inbound: Ports,
    pub(super) ipv4: Vec<Span>,
    pub(super) ipv6: Vec<Span>,
}

/// First and last address, as numbers.
pub(super) type Span = (u128, u128);

impl Rules {
    /// Leaves destinations of a block alone.
    pub(super) fn skip_block(&mut self, block: &Cidr) {
        let network = block.network();
        let (first, bits, spans) = match network.addr() {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32, &mut self.ipv4),
            IpAddr::V6(ip) => (u128::from(ip), 128, &mut self.ipv6),
        };
        let free = bits - u32::from(network.prefix());
        let rest = 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        spans.push((first, first | rest));
        // The kernel takes no two intervals that overlap.
        *spans = merged(std::mem::take(spans));
    }

    /// Everything anew, in place of what our table holds.
    pub(super) fn transaction(&self) -> Transaction {
        let ports = |ports: &Ports| -> Vec<Span> {
            ports.ranges().map(|range| ((*range.start()).into(), (*range.end()).into())).collect()
        };
        let sets = [
            (SKIP_OUTBOUND, SetType::Port, ports(&self.skip_outbound)),
            (SKIP_INBOUND, SetType::Port, ports(&self.skip_inbound)),
            (SKIP_IPV4, SetType::Ipv4, self.ipv4.clone()),
            (SKIP_IPV6, SetType::Ipv6, self.ipv6.clone()),
        ];
        let sets = sets.into_iter().filter(|(_, _, spans)| !spans.is_empty());
        Transaction {
            table: TABLE,
            sets: sets.map(|(name, of, spans)| Set { name, of, spans }).collect(),
            chains: vec![
                ("prerouting", Hook::Prerouting, self.prerouting()),
                ("output", Hook::Output, self.output()),
            ],
        }
    }

    fn prerouting(&self) -> Vec<Vec<Step>> {
        let mut rules = vec![
            vec![Step::Load(Load::Protocol), Step::IsNot(vec![TCP]), Step::Return],
            vec![Step::Load(Load::InLink), Step::Is(LOOPBACK.into()), Step::Return],
        ];
        rules.extend(skip_ports(&self.skip_inbound, SKIP_INBOUND));
        rules.push(redirect(self.inbound_port));
        rules
    }

    fn output(&self) -> Vec<Vec<Step>> {
        let uid = self.proxy_uid.to_ne_bytes().to_vec();
        let mut rules = vec![
            vec![Step::Load(Load::Protocol), Step::IsNot(vec![TCP]), Step::Return],
            vec![Step::Load(Load::SocketUser), Step::Is(uid), Step::Return],
            vec![Step::Load(Load::OutLink), Step::Is(LOOPBACK.into()), Step::Return],
        ];
        rules.extend(skip_ports(&self.skip_outbound, SKIP_OUTBOUND));
        for (spans, family, load, set) in [
            (&self.ipv4, IPV4, Load::Ipv4Destination, SKIP_IPV4),
            (&self.ipv6, IPV6, Load::Ipv6Destination, SKIP_IPV6),
        ] {
            if !spans.is_empty() {
                let family = [Step::Load(Load::Family), Step::Is(vec![family])];
                let skip = [Step::Load(load), Step::In(set), Step::Return];
                rules.push(family.into_iter().chain(skip).collect());
            }
        }
        rules.push(redirect(self.outbound_port));
        rules
    }
}

fn skip_ports(ports: &Ports, set: &'static str) -> Option<Vec<Step>> {
    let tcp = [Step::Load(Load::Protocol), Step::Is(vec![TCP])];
    let skip = [Step::Load(Load::DestinationPort), Step::In(set), Step::Return];
    (!ports.is_empty()).then(|| tcp.into_iter().chain(skip).collect())
}

fn redirect(port: u16) -> Vec<Step> {
    vec![Step::Load(Load::Protocol), Step::Is(vec![TCP]), Step::Redirect(port)]
}

/// In order, with at least one number between two of them.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for (first, last) in spans {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(blocks: &[&str]) -> Rules {
        let mut rules = Rules::default();
        blocks.iter().for_each(|block| rules.skip_block(&block.parse().unwrap()));
        rules
    }

    #[test]
    fn blocks_that_touch_are_one() {
        let rules = rules(&[
            "10.0.0.0/9",
            "10.128.0.0/9",
            "10.1.2.3/32",
            "192.0.2.0/24",
            "::/1",
            "8000::/1",
        ]);
        let ten = 10u128 << 24;
        assert_eq!(rules.ipv4, [(ten, ten | 0xff_ffff), (0xc000_0200, 0xc000_02ff)]);
        assert_eq!(rules.ipv6, [(0, u128::MAX)]);
        assert_eq!(super::tests::rules(&["0.0.0.0/0"]).ipv4, [(0, u128::from(u32::MAX))]);
    }

    #[test]
    fn what_is_not_skipped_has_no_set() {
        let transaction = rules(&[]).transaction();
        assert!(transaction.sets.is_empty());
        let [(_, _, prerouting), (_, _, output)] = &transaction.chains[..] else { panic!("two") };
        assert_eq!((prerouting.len(), output.len()), (3, 4));
        let transaction = rules(&["fd00::/8"]).transaction();
        assert_eq!(transaction.sets.len(), 1);
        assert_eq!(transaction.chains[1].2.len(), 5);
    }
}
