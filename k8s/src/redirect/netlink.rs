//! One transaction of nf_tables over netlink, as in `linux/netlink.h`,
//! `linux/netfilter/nfnetlink.h` and `nf_tables.h`: all of it is in force, or
//! nothing.

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

use super::{
    attributes::Attributes,
    step::{NFTA_DATA_VALUE, Step},
};

const NLMSG_ERROR: u16 = 2;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFPROTO_INET: u8 = 1;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NF_ACCEPT: u32 = 1;
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY: i32 = -100;

/// Of what the kernel answers; more is not ours.
const MAX_ANSWER: usize = 64 * 1024;

/// Why the kernel does not have the rules.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no way to tell it.
    #[error("no netlink socket: {0}")]
    Socket(io::Error),
    /// It refuses.
    #[error("the kernel refuses {what}: {problem}{}", remedy(.problem, .what))]
    Refused {
        /// Which part of the transaction.
        what: String,
        /// What it says.
        problem: io::Error,
    },
    /// It says nothing.
    #[error("the kernel does not answer")]
    Silent,
}

fn remedy(problem: &io::Error, what: &str) -> &'static str {
    match problem.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            "; the container needs the capability NET_ADMIN and user 0"
        }
        Some(
            rustix::io::Errno::OPNOTSUPP
            | rustix::io::Errno::NOENT
            | rustix::io::Errno::AFNOSUPPORT,
        ) => {
            if what.starts_with("chain") {
                "; the node needs Linux 5.2 with nf_tables and nft_chain_nat"
            } else {
                "; the node needs the modules nf_tables, nft_redir and nf_conntrack"
            }
        }
        _ => "",
    }
}

/// A table of family `inet` and everything in it.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) table: &'static str,
    pub(super) sets: Vec<Set>,
    /// Name, hook and rules, each of them steps.
    pub(super) chains: Vec<(&'static str, Hook, Vec<Vec<Step>>)>,
}

/// Of a chain of type `nat`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    Prerouting = 0,
    Output = 3,
}

/// A set of intervals, in order and without overlap.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) of: SetType,
    pub(super) spans: Vec<(u128, u128)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum SetType {
    Ipv4,
    Ipv6,
    Port,
}

impl SetType {
    /// As nft(8) numbers them, and their length in bytes.
    fn numbers(self) -> (u32, usize) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Port => (13, 2),
        }
    }
}

/// Puts a table in force, in the place of one of its name.
pub(super) fn commit(transaction: &Transaction) -> Result<(), NetlinkError> {
    let batch = Batch::of(transaction);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::RAW;
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::NETFILTER))
        .map_err(|error| NetlinkError::Socket(error.into()))?;
    sendto(&socket, &batch.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        .map_err(|error| NetlinkError::Socket(error.into()))?;
    // It has been done, or refused, when the call returns.
    let mut answer = vec![0; MAX_ANSWER];
    let mut done = false;
    loop {
        match recv(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(rustix::io::Errno::AGAIN) => break,
            Ok((length, _)) => done |= batch.read(answer.get(..length).unwrap_or_default())?,
            Err(error) => return Err(NetlinkError::Socket(error.into())),
        }
    }
    if done { Ok(()) } else { Err(NetlinkError::Silent) }
}

/// Messages of one transaction; the sequence number of each is its place.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    parts: Vec<String>,
}

impl Batch {
    fn of(transaction: &Transaction) -> Self {
        let mut batch = Self::default();
        let table = Attributes::default().text(NFTA_TABLE_NAME, transaction.table);
        batch.frame(NFNL_MSG_BATCH_BEGIN);
        // Made before it is deleted: one that is not there cannot be.
        batch.push("the table", NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        batch.push("the table", NFT_MSG_DELTABLE, 0, &table);
        batch.push("the table", NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        for (id, set) in (1..).zip(&transaction.sets) {
            let what = format!("set {}", set.name);
            let (new, elements) =
                (set.definition(transaction.table, id), set.elements(transaction.table));
            batch.push(&what, NFT_MSG_NEWSET, NLM_F_CREATE, &new);
            batch.push(&what, NFT_MSG_NEWSETELEM, NLM_F_CREATE, &elements);
        }
        for (name, hook, rules) in &transaction.chains {
            let chain = chain(transaction.table, name, *hook);
            batch.push(&format!("chain {name}"), NFT_MSG_NEWCHAIN, NLM_F_CREATE, &chain);
            for (number, steps) in rules.iter().enumerate() {
                let what = format!("rule {} of chain {name}", number + 1);
                let rule = rule(transaction.table, name, steps);
                let flags = NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK;
                batch.push(&what, NFT_MSG_NEWRULE, flags, &rule);
            }
        }
        batch.frame(NFNL_MSG_BATCH_END);
        batch
    }

    /// What begins and ends a batch says which subsystem it is for.
    fn frame(&mut self, kind: u16) {
        self.message("the transaction", kind, 0, (0, NFNL_SUBSYS_NFTABLES), &[]);
    }

    fn push(&mut self, what: &str, kind: u16, flags: u16, attributes: &Attributes) {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        self.message(what, kind, flags, (NFPROTO_INET, 0), &attributes.0);
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn message(&mut self, what: &str, kind: u16, flags: u16, of: (u8, u16), attributes: &[u8]) {
        const HEADERS: usize = 16 + 4;
        let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
        let sequence = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        self.parts.push(what.to_owned());
        let to = &mut self.bytes;
        to.extend(length.to_ne_bytes());
        to.extend(kind.to_ne_bytes());
        to.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        to.extend([0; 4]);
        to.extend([of.0, 0]);
        to.extend(of.1.to_be_bytes());
        to.extend(attributes);
    }

    /// Whether something was acknowledged; an error if something was refused.
    fn read(&self, mut answer: &[u8]) -> Result<bool, NetlinkError> {
        let number = |at: usize, answer: &[u8]| -> Option<u32> {
            Some(u32::from_ne_bytes(*answer.get(at..)?.first_chunk()?))
        };
        let mut done = false;
        while let Some(length) = number(0, answer) {
            let kind = answer.get(4..).and_then(|rest| rest.first_chunk());
            let kind = kind.map(|kind| u16::from_ne_bytes(*kind));
            if let (Some(NLMSG_ERROR), Some(code)) = (kind, number(16, answer)) {
                if code != 0 {
                    return Err(self.refused(number(8, answer), code.cast_signed()));
                }
                done = true;
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            match answer.get(length.next_multiple_of(4)..) {
                Some(next) if length >= 16 => answer = next,
                _ => break,
            }
        }
        Ok(done)
    }

    fn refused(&self, sequence: Option<u32>, code: i32) -> NetlinkError {
        let part = sequence.and_then(|sequence| usize::try_from(sequence).ok());
        let what = part.and_then(|part| self.parts.get(part)).cloned();
        NetlinkError::Refused {
            what: what.unwrap_or_else(|| "the transaction".into()),
            problem: io::Error::from_raw_os_error(code.saturating_neg()),
        }
    }
}

impl Set {
    fn definition(&self, table: &str, id: u32) -> Attributes {
        let (key_type, key_len) = self.of.numbers();
        Attributes::default()
            .text(NFTA_SET_TABLE, table)
            .text(NFTA_SET_NAME, self.name)
            .number(NFTA_SET_FLAGS, NFT_SET_INTERVAL)
            .number(NFTA_SET_KEY_TYPE, key_type)
            .number(NFTA_SET_KEY_LEN, u32::try_from(key_len).unwrap_or_default())
            .number(NFTA_SET_ID, id)
    }

    /// An interval is its first key and the first behind it, unless it goes to
    /// the end.
    fn elements(&self, table: &str) -> Attributes {
        let (_, length) = self.of.numbers();
        let end = u128::MAX >> (128 - 8 * length);
        let key = |number: u128| {
            let bytes = number.to_be_bytes();
            let value = bytes.get(bytes.len() - length..).unwrap_or_default();
            Attributes::default().bytes(NFTA_DATA_VALUE, value)
        };
        let mut list = Attributes::default();
        for (first, last) in &self.spans {
            let begins = Attributes::default().nested(NFTA_SET_ELEM_KEY, &key(*first));
            list = list.nested(NFTA_LIST_ELEM, &begins);
            if *last < end {
                let ends = Attributes::default()
                    .nested(NFTA_SET_ELEM_KEY, &key(last + 1))
                    .number(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                list = list.nested(NFTA_LIST_ELEM, &ends);
            }
        }
        Attributes::default()
            .text(NFTA_SET_ELEM_LIST_TABLE, table)
            .text(NFTA_SET_ELEM_LIST_SET, self.name)
            .nested(NFTA_SET_ELEM_LIST_ELEMENTS, &list)
    }
}

fn chain(table: &str, name: &str, hook: Hook) -> Attributes {
    let place = Attributes::default()
        .number(NFTA_HOOK_HOOKNUM, hook as u32)
        .number(NFTA_HOOK_PRIORITY, PRIORITY.cast_unsigned());
    Attributes::default()
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, name)
        .nested(NFTA_CHAIN_HOOK, &place)
        .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, "nat")
}

fn rule(table: &str, chain: &str, steps: &[Step]) -> Attributes {
    let all = steps.iter().flat_map(Step::expressions);
    let list = all.fold(Attributes::default(), |list, (name, data)| {
        let expression =
            Attributes::default().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, &data);
        list.nested(NFTA_LIST_ELEM, &expression)
    });
    Attributes::default()
        .text(NFTA_RULE_TABLE, table)
        .text(NFTA_RULE_CHAIN, chain)
        .nested(NFTA_RULE_EXPRESSIONS, &list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::step::Load;

    fn transaction() -> Transaction {
        let steps = vec![Step::Load(Load::DestinationPort), Step::In("ports"), Step::Return];
        let spans = vec![(25, 25), (60_000, 65_535)];
        Transaction {
            table: "t",
            sets: vec![Set { name: "ports", of: SetType::Port, spans }],
            chains: vec![("output", Hook::Output, vec![steps, vec![Step::Redirect(4141)]])],
        }
    }

    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn a_batch_is_whole_messages() {
        let batch = Batch::of(&transaction());
        let mut kinds = Vec::new();
        let mut rest = &batch.bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(*rest.first_chunk().unwrap()) as usize;
            kinds.push(u16::from_ne_bytes([rest[4], rest[5]]) & 0xff);
            rest = &rest[length..];
        }
        assert_eq!(kinds, [16, 0, 2, 0, 9, 12, 3, 6, 6, 17]);
        assert_eq!(kinds.len(), batch.parts.len());
    }

    #[test]
    fn an_interval_to_the_end_has_none() {
        let [set] = &transaction().sets[..] else { panic!("one") };
        let elements = set.elements("t").0;
        let ends = elements.windows(4).filter(|bytes| *bytes == 1u32.to_be_bytes()).count();
        assert_eq!(ends, 1);
    }

    #[test]
    fn what_is_refused_is_named() {
        let batch = Batch::of(&transaction());
        assert!(batch.read(&answer(8, 0)).unwrap());
        let error = batch.read(&[answer(7, 0), answer(6, -1)].concat()).unwrap_err().to_string();
        assert!(
            error.starts_with("the kernel refuses chain output: Operation not permitted"),
            "{error}"
        );
        assert!(error.ends_with("needs the capability NET_ADMIN and user 0"), "{error}");
        let error = batch.read(&answer(8, -2)).unwrap_err().to_string();
        assert!(error.contains("rule 2 of chain output") && error.contains("nft_redir"), "{error}");
        assert!(!batch.read(&[]).unwrap());
        assert!(
            batch.read(&answer(9999, -22)).unwrap_err().to_string().contains("the transaction")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(0u8.., 0..80)) {
            let _ = Batch::of(&transaction()).read(&bytes);
        }
    }
}
