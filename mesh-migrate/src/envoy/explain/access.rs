//! Whether a filter admits a request or a connection.

use std::net::IpAddr;

use super::{
    Asked,
    matching::{Seen, text_holds},
    within,
};
use crate::envoy::{
    access::{self, Whose},
    tree::Tree,
};

/// What is known when somebody is admitted.
pub(super) struct Asking<'a> {
    /// Of HTTP.
    pub(super) seen: Option<&'a Seen<'a>>,
    pub(super) hcm: Option<&'a Tree>,
    pub(super) is_tls: bool,
}

impl Asked<'_> {
    /// Whether it is refused; `None` if that hangs on more than what is known here.
    pub(super) fn refuses(&self, config: &Tree, asking: &Asking<'_>) -> Option<bool> {
        if config.entry("matcher").is_some() {
            return None;
        }
        let Some(rules) = config.msg("rules") else { return Some(false) };
        let one = |policy: &Tree| {
            if policy.one_of(&["condition", "checked_condition", "cel_config"]).is_some() {
                return None;
            }
            let permitted =
                some(policy.messages("permissions").map(|one| self.permits(one, asking)));
            let is_meant =
                some(policy.messages("principals").map(|one| self.is_meant(one, asking)));
            every([permitted, is_meant].into_iter())
        };
        let matches = some(access::policies(rules).map(one));
        match rules.text("action").unwrap_or("ALLOW") {
            "ALLOW" => matches.map(|matches| !matches),
            "DENY" => matches,
            _ => Some(false),
        }
    }

    fn permits(&self, one: &Tree, asking: &Asking<'_>) -> Option<bool> {
        let each = |list: &Tree| {
            list.messages("rules").map(|one| self.permits(one, asking)).collect::<Vec<_>>()
        };
        if let Some(list) = one.msg("and_rules") {
            return every(each(list).into_iter());
        }
        if let Some(list) = one.msg("or_rules") {
            return some(each(list).into_iter());
        }
        if let Some(other) = one.msg("not_rule") {
            return self.permits(other, asking).map(|permits| !permits);
        }
        if let Some(port) = one.count("destination_port") {
            return Some(port == u32::from(self.local.port()));
        }
        if let Some(range) = one.msg("destination_ip") {
            return Some(is_in(range, self.local.ip()));
        }
        common(one, asking)
    }

    fn is_meant(&self, one: &Tree, asking: &Asking<'_>) -> Option<bool> {
        let each = |list: &Tree| {
            list.messages("ids").map(|one| self.is_meant(one, asking)).collect::<Vec<_>>()
        };
        if let Some(list) = one.msg("and_ids") {
            return every(each(list).into_iter());
        }
        if let Some(list) = one.msg("or_ids") {
            return some(each(list).into_iter());
        }
        if let Some(other) = one.msg("not_id") {
            return self.is_meant(other, asking).map(|is_meant| !is_meant);
        }
        if one.entry("authenticated").is_some() {
            return (!asking.is_tls).then_some(false);
        }
        if let Some((whose, range)) = access::address(one) {
            let address = match whose {
                Whose::Peer => self.source,
                Whose::Client => self.client(asking),
            };
            return Some(is_in(range, address));
        }
        common(one, asking)
    }

    /// The client, by `use_remote_address` and `xff_num_trusted_hops`.
    fn client(&self, asking: &Asking<'_>) -> IpAddr {
        let (Some(hcm), Some(seen)) = (asking.hcm, asking.seen) else { return self.source };
        let hops = hcm.count("xff_num_trusted_hops").unwrap_or(0) as usize;
        let from_end = match (hcm.is("use_remote_address"), hops) {
            (true, 0) => return self.source,
            (true, hops) => hops - 1,
            (false, hops) => hops,
        };
        let sent = seen.http.header("x-forwarded-for").unwrap_or_default();
        let address = sent.rsplit(',').nth(from_end).and_then(|one| one.trim().parse().ok());
        address.unwrap_or(self.source)
    }
}

fn is_in(range: &Tree, address: IpAddr) -> bool {
    let base = range.text("address_prefix").and_then(|base| base.parse().ok());
    base.is_some_and(|base| within(base, range.count("prefix_len").unwrap_or(0), address))
}

fn common(one: &Tree, asking: &Asking<'_>) -> Option<bool> {
    if one.is("any") {
        return Some(true);
    }
    if let Some(header) = one.msg("header") {
        return asking.seen.map(|seen| seen.header_holds(header));
    }
    let path = one.msg("url_path")?.msg("path")?;
    asking.seen.map(|seen| text_holds(path, seen.path()))
}

/// Whether one of them holds, if that is known.
fn some(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut found = Some(false);
    for one in all {
        match one {
            Some(true) => return one,
            Some(false) => {}
            None => found = None,
        }
    }
    found
}

fn every(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    some(all.map(|one| one.map(|holds| !holds))).map(|fails| !fails)
}
