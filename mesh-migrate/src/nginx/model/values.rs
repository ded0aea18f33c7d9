//! `geo` and `split_clients`.

use std::net::IpAddr;

use super::{Directive, Problem};
use crate::nginx::template::Template;

/// `split_clients`: by a hash of a text so many percent of all get a value.
#[derive(Debug)]
pub(in crate::nginx) struct Split<'c> {
    pub(in crate::nginx) directive: &'c Directive,
    /// In hundredths of a percent.
    pub(in crate::nginx) parts: Vec<(u32, Template, &'c Directive)>,
}

impl<'c> Split<'c> {
    pub(super) fn of(directive: &'c Directive) -> Result<Self, Problem> {
        let mut parts = Vec::new();
        let mut rest: u32 = 10_000;
        for inner in directive.inside().iter().filter(|inner| inner.name != "include") {
            let bad = |what: String| Problem::at(&inner.place, what);
            let share = match inner.name.as_str() {
                "*" => rest,
                percent => hundredths(percent).filter(|share| *share <= rest).ok_or_else(|| {
                    bad(format!(
                        "{percent:?}: a share was expected (10%, 0.5%, *), 100% together at most"
                    ))
                })?,
            };
            rest -= share;
            parts.push((share, Template::of(inner.arg(0)).map_err(bad)?, inner));
        }
        Ok(Self { directive, parts })
    }

    /// The value of those whose text this is.
    pub(in crate::nginx) fn of_text(&self, text: &[u8]) -> Option<(&Template, &'c Directive)> {
        let hash = u64::from(murmur2(text));
        let mut sum = 0;
        let part = self.parts.iter().find(|(share, _, directive)| {
            sum += u64::from(*share) * u64::from(u32::MAX) / 10_000;
            hash < sum || directive.name == "*"
        });
        part.map(|(_, value, directive)| (value, *directive))
    }
}

/// MurmurHash2 (A. Appleby), 32 bits, seed 0.
fn murmur2(text: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let (blocks, rest) = text.as_chunks::<4>();
    for block in blocks {
        let mut k = u32::from_le_bytes(*block).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        let bytes = rest.iter().rev().fold(0, |bytes, byte| bytes << 8 | u32::from(*byte));
        hash = (hash ^ bytes).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

fn hundredths(percent: &str) -> Option<u32> {
    let number = percent.strip_suffix('%')?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part = match part.len() {
        1 => part.parse::<u32>().ok()? * 10,
        2 => part.parse().ok()?,
        _ => return None,
    };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)
}

/// `geo`: the longest block that has the client's address gives the value.
#[derive(Debug)]
pub(in crate::nginx) struct Geo<'c> {
    pub(in crate::nginx) directive: &'c Directive,
    /// Block, length of its prefix, value; longer prefixes first.
    pub(in crate::nginx) blocks: Vec<(String, u32, String, &'c Directive)>,
    pub(in crate::nginx) default: Option<(String, &'c Directive)>,
    /// It uses what is not followed: `ranges`, `proxy`, another address than the client's.
    pub(in crate::nginx) is_odd: bool,
}

impl<'c> Geo<'c> {
    pub(super) fn of(directive: &'c Directive) -> Self {
        let is_odd = directive.args.len() > 1 && directive.arg(0) != "$remote_addr";
        let mut geo = Self { directive, blocks: Vec::new(), default: None, is_odd };
        for inner in directive.inside() {
            let value = inner.arg(0).to_owned();
            match (inner.name.as_str(), inner.args.len()) {
                ("include", _) => {}
                ("default", 1) => geo.default = Some((value, inner)),
                (block, 1) => match prefix(block) {
                    Some(length) => geo.blocks.push((block.to_owned(), length, value, inner)),
                    None => geo.is_odd = true,
                },
                _ => geo.is_odd = true,
            }
        }
        geo.blocks.sort_by_key(|(_, length, ..)| std::cmp::Reverse(*length));
        geo
    }
}

fn prefix(block: &str) -> Option<u32> {
    let (address, length) = block.split_once('/').unwrap_or((block, ""));
    let all = if address.parse::<IpAddr>().ok()?.is_ipv4() { 32 } else { 128 };
    if length.is_empty() { Some(all) } else { length.parse().ok().filter(|length| *length <= all) }
}
