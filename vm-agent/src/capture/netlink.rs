//! Renews the one element of a set of our table, as `nft flush set` and `add
//! element` in one transaction would: once a second, a process is too much for
//! that. Netlink, as in `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
//! `nf_tables.h`.

use std::{io, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

use super::rules::TABLE;

pub(crate) const NLMSG_ERROR: u16 = 2;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;
pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
const NFPROTO_INET: u8 = 1;
const IPPROTO_TCP: u8 = 6;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_DATA_VALUE: u16 = 1;

/// Of what the kernel answers to one batch; more is not ours.
const MAX_ANSWER: usize = 16 * 1024;

/// Puts "tcp" into a set, whatever was in it; the kernel takes it out again
/// after `timeout`.
///
/// # Errors
///
/// The kernel says no: `NotFound` if there is no such table or set.
pub fn put_tcp(set: &str, timeout: Option<Duration>) -> io::Result<()> {
    let kind = SocketType::RAW;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::NETFILTER))?;
    sendto(&socket, &batch(set, timeout), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    // It has been done, or refused, when the call returns.
    let mut answer = vec![0; MAX_ANSWER];
    let mut done = false;
    loop {
        match recv(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(rustix::io::Errno::AGAIN) => break,
            Ok((length, _)) => done |= read_answer(answer.get(..length).unwrap_or_default())?,
            Err(error) => return Err(error.into()),
        }
    }
    if done { Ok(()) } else { Err(io::Error::other("nftables does not answer")) }
}

fn batch(set: &str, timeout: Option<Duration>) -> Vec<u8> {
    let mut batch = Vec::new();
    let named = || {
        let mut names = Vec::new();
        attribute(&mut names, NFTA_SET_ELEM_LIST_TABLE, &[TABLE.as_bytes(), &[0]].concat());
        attribute(&mut names, NFTA_SET_ELEM_LIST_SET, &[set.as_bytes(), &[0]].concat());
        names
    };
    let mut add = named();
    attribute(&mut add, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, &elements(timeout));
    message(&mut batch, NFNL_MSG_BATCH_BEGIN, 0, 0, &[]);
    message(&mut batch, NFT_MSG_DELSETELEM, 0, NFPROTO_INET, &named());
    message(&mut batch, NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_ACK, NFPROTO_INET, &add);
    message(&mut batch, NFNL_MSG_BATCH_END, 0, 0, &[]);
    batch
}

fn elements(timeout: Option<Duration>) -> Vec<u8> {
    let (mut value, mut element, mut list) = (Vec::new(), Vec::new(), Vec::new());
    attribute(&mut value, NFTA_DATA_VALUE, &[IPPROTO_TCP]);
    attribute(&mut element, NFTA_SET_ELEM_KEY | NLA_F_NESTED, &value);
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        attribute(&mut element, NFTA_SET_ELEM_TIMEOUT, &millis.to_be_bytes());
    }
    attribute(&mut list, NFTA_LIST_ELEM | NLA_F_NESTED, &element);
    list
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes. What begins and ends a
/// batch says which subsystem it is for.
pub(crate) fn message(to: &mut Vec<u8>, kind: u16, flags: u16, family: u8, attributes: &[u8]) {
    const HEADERS: usize = 16 + 4;
    let is_frame = matches!(kind, NFNL_MSG_BATCH_BEGIN | NFNL_MSG_BATCH_END);
    let resource = if is_frame { NFNL_SUBSYS_NFTABLES } else { 0 };
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    to.extend([0; 8]);
    to.extend([family, 0]);
    to.extend(resource.to_be_bytes());
    to.extend(attributes);
}

/// `struct nlattr`, padded to four bytes.
pub(crate) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Whether something was acknowledged; an error if something was refused.
pub(crate) fn read_answer(mut answer: &[u8]) -> io::Result<bool> {
    let mut done = false;
    while let Some((length, rest)) = answer.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let kind = rest.first_chunk::<2>().map(|kind| u16::from_ne_bytes(*kind));
        let code = rest.get(12..).and_then(|rest| rest.first_chunk::<4>());
        if let (Some(NLMSG_ERROR), Some(code)) = (kind, code) {
            match i32::from_ne_bytes(*code) {
                0 => done = true,
                code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            }
        }
        match answer.get(length.next_multiple_of(4)..) {
            Some(next) if length >= 16 => answer = next,
            _ => break,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    /// As `nft --debug=all` shows them for the same command, but for numbers
    /// that tell messages apart.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_batch_is_what_nft_sends() {
        let sent = batch("alive", Some(Duration::from_secs(5)));
        let hex: String = sent.iter().map(|byte| format!("{byte:02x}")).collect();
        let table = "0c000100697374686d757300";
        let set = "0a000200616c6976650000 00".replace(' ', "");
        let key = "0c0001800500010006000000";
        let timeout = "0c0004000000000000001388";
        let wanted = [
            "14000000 1000 0100 0000000000000000 0000000a".replace(' ', ""),
            format!("2c000000 0e0a 0100 0000000000000000 01000000 {table}{set}").replace(' ', ""),
            format!(
                "4c000000 0c0a 0504 0000000000000000 01000000 {table}{set} 20000380 1c000180 \
                 {key}{timeout}"
            )
            .replace(' ', ""),
            "14000000 1100 0100 0000000000000000 0000000a".replace(' ', ""),
        ];
        assert_eq!(hex, wanted.concat());
    }

    #[test]
    fn the_kernel_says_yes_or_no_or_nothing() {
        assert!(read_answer(&answer(0)).unwrap());
        let error = read_answer(&[answer(0), answer(-2)].concat()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!read_answer(&[]).unwrap());
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(0u8.., 0..80)) {
            let _ = read_answer(&bytes);
        }
    }
}
