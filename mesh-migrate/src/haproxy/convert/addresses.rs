//! The client's address as a text, compared by blocks of addresses.

use std::net::IpAddr;

use super::super::acl::{self, Method};
use super::{
    logic::NEVER,
    text::{Leaf, Unsaid},
};
use crate::program::Condition;

/// When the client's address, as it is written, is like this.
pub(super) fn of_client(leaf: &Leaf) -> Result<Condition, Unsaid> {
    let unsaid = || Err("the client's address compared so has no counterpart".to_owned());
    let pattern = leaf.pattern.as_str();
    // What is in no address, however it is written.
    let is_other = pattern.contains(|c: char| !c.is_ascii_hexdigit() && c != ':' && c != '.');
    match leaf.method {
        Method::Found => Ok(Condition::Always),
        Method::Ip => match acl::block(pattern) {
            Some((ip, length)) => Ok(Condition::Source(vec![format!("{ip}/{length}")])),
            None => Err(format!("{pattern:?} is no network")),
        },
        Method::Regex if !leaf.ignores_case => match beginning(pattern) {
            Some((text, true)) => {
                of_client(&Leaf { method: Method::Exact, pattern: text, ..*leaf })
            }
            Some((text, false)) => {
                of_client(&Leaf { method: Method::Beginning, pattern: text, ..*leaf })
            }
            None => unsaid(),
        },
        Method::Exact => Ok(exactly(pattern, leaf.ignores_case).unwrap_or(NEVER)),
        Method::Beginning | Method::End | Method::Part if is_other => Ok(NEVER),
        Method::Beginning | Method::End | Method::Part if pattern.is_empty() => {
            Ok(Condition::Always)
        }
        Method::Beginning => match networks(pattern) {
            Some(blocks) if blocks.is_empty() => Ok(NEVER),
            Some(blocks) => Ok(Condition::Source(blocks)),
            None => unsaid(),
        },
        _ => unsaid(),
    }
}

/// One address, where the text is how it is written.
fn exactly(text: &str, ignores_case: bool) -> Option<Condition> {
    let address: IpAddr = text.parse().ok()?;
    let written = address.to_string();
    let is_so = if ignores_case { written.eq_ignore_ascii_case(text) } else { written == text };
    let length = if address.is_ipv4() { 32 } else { 128 };
    is_so.then(|| Condition::Source(vec![format!("{address}/{length}")]))
}

/// Networks of version 4 whose addresses begin so; `None` where others may, too.
fn networks(text: &str) -> Option<Vec<String>> {
    let (whole, last) = text.rsplit_once('.')?;
    if text.contains(':') {
        return None;
    }
    let octets: Vec<&str> = whole.split('.').collect();
    let is_octet = |text: &str| text.parse::<u8>().is_ok_and(|octet| octet.to_string() == text);
    if octets.len() > 3 || !octets.iter().all(|octet| is_octet(octet)) {
        return Some(Vec::new());
    }
    let rest = ".0".repeat(3 - octets.len());
    let length = 8 * octets.len();
    if last.is_empty() {
        return Some(vec![format!("{whole}.0{rest}/{length}")]);
    }
    let begins = (0..=u8::MAX).filter(|octet| octet.to_string().starts_with(last));
    Some(begins.map(|octet| format!("{whole}.{octet}{rest}/{}", length + 8)).collect())
}

/// The text that an expression begins with, and whether it is all of it.
fn beginning(pattern: &str) -> Option<(String, bool)> {
    let text = pattern.strip_prefix('^')?;
    let (text, is_all) = match text.strip_suffix('$') {
        Some(text) => (text, true),
        None => (text.strip_suffix(".*").unwrap_or(text), false),
    };
    let plain = text.replace("\\.", "");
    let is_plain = plain.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    is_plain.then(|| (text.replace("\\.", "."), is_all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_networks() {
        let of = |method, pattern: &str| {
            of_client(&Leaf { method, ignores_case: false, pattern: pattern.to_owned() })
        };
        let source = |blocks: &[&str]| {
            Ok(Condition::Source(blocks.iter().map(|block| (*block).to_owned()).collect()))
        };
        assert_eq!(of(Method::Exact, "10.0.0.1"), source(&["10.0.0.1/32"]));
        assert_eq!(of(Method::Exact, "10.0.0.01"), Ok(NEVER));
        assert_eq!(of(Method::Exact, "::1"), source(&["::1/128"]));
        assert_eq!(of(Method::Exact, "0:0::1"), Ok(NEVER));
        assert_eq!(of(Method::Beginning, "10."), source(&["10.0.0.0/8"]));
        assert_eq!(of(Method::Regex, r"^10\.1\."), source(&["10.1.0.0/16"]));
        assert_eq!(of(Method::Regex, r"^10\.0\.0\.1$"), source(&["10.0.0.1/32"]));
        assert_eq!(
            of(Method::Beginning, "10.0.0.25").map(|one| match one {
                Condition::Source(blocks) => blocks.len(),
                _ => 0,
            }),
            Ok(7)
        );
        assert_eq!(
            of(Method::Beginning, "10.25").map(|one| match one {
                Condition::Source(blocks) => blocks[1].clone(),
                _ => String::new(),
            }),
            Ok("10.250.0.0/16".to_owned())
        );
        assert_eq!(of(Method::Beginning, "unknown"), Ok(NEVER));
        assert_eq!(of(Method::Found, ""), Ok(Condition::Always));
        for (method, pattern) in [
            (Method::Beginning, "10"),
            (Method::Part, ".66."),
            (Method::Regex, "^10."),
            (Method::Beginning, "::ffff:10."),
        ] {
            assert!(of(method, pattern).is_err(), "{pattern}");
        }
    }
}
