//! Who may: `allow`, `deny`, `limit_except`.

use std::net::IpAddr;

use super::{Directive, Problem, Run, bad};

impl<'c> Run<'_, 'c> {
    /// The block of `limit_except` that takes the method: what is around it gives no
    /// directives of `ngx_http_rewrite_module` then.
    pub(super) fn limit(&mut self) -> Option<&'c Directive> {
        let is_named = |method: &String| {
            method.eq_ignore_ascii_case(&self.method)
                || method.eq_ignore_ascii_case("GET") && self.method == "HEAD"
        };
        let mut limits = self.location?.directive.inside().iter();
        let limit = limits.find(|d| d.name == "limit_except" && !d.args.iter().any(is_named))?;
        self.step(&limit.place, format!("{} is none of them", self.method));
        self.chain.push(limit);
        self.handlers.push(limit);
        Some(limit)
    }

    /// The status of a refusal by address.
    pub(super) fn access(&mut self) -> Result<Option<u16>, Problem> {
        let Some(rule) = rule(&self.chain, self.source)? else { return Ok(None) };
        self.step(&rule.place, format!("{} {} takes {}", rule.name, rule.arg(0), self.source));
        Ok((rule.name == "deny").then_some(403))
    }
}

/// The first `allow` or `deny` that takes an address.
pub(super) fn rule<'c>(
    chain: &[&'c Directive],
    source: IpAddr,
) -> Result<Option<&'c Directive>, Problem> {
    let is_rule = |directive: &&Directive| directive.name == "allow" || directive.name == "deny";
    let of = chain.iter().rev().find(|block| block.inside().iter().any(|d| is_rule(&d)));
    for rule in of.iter().flat_map(|block| block.inside()).filter(is_rule) {
        let takes = match rule.arg(0) {
            "all" => true,
            "unix:" => false,
            block => within(block, source).ok_or_else(|| {
                bad(&rule.place, format!("{block:?} is no address or block: 10.0.0.0/8"))
            })?,
        };
        if takes {
            return Ok(Some(rule));
        }
    }
    Ok(None)
}

/// Whether an address is in a block (`10.0.0.0/8`, or an address alone).
pub(in crate::nginx) fn within(block: &str, address: IpAddr) -> Option<bool> {
    let (base, length) = block.split_once('/').unwrap_or((block, "128"));
    let (base, length) = (base.parse::<IpAddr>().ok()?, length.parse::<u32>().ok()?);
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let length = length.min(if base.is_ipv4() { 32 } else { 128 });
    let cut = |bits: u128| bits.checked_shr(128 - length).unwrap_or(0);
    Some(base.is_ipv4() == address.is_ipv4() && cut(bits(base)) == cut(bits(address)))
}
