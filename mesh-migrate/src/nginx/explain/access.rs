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
        let is_rule = |name: &str| name == "allow" || name == "deny";
        let of =
            self.chain.iter().rev().find(|block| block.inside().iter().any(|d| is_rule(&d.name)));
        let Some(block) = of else { return Ok(None) };
        for rule in block.inside().iter().filter(|rule| is_rule(&rule.name)) {
            let block = rule.arg(0);
            let takes = block == "all"
                || block != "unix:"
                    && within(block, self.source).ok_or_else(|| {
                        bad(&rule.place, format!("{block:?} is no address or block: 10.0.0.0/8"))
                    })?;
            if takes {
                let what = format!("{} {block} takes {}", rule.name, self.source);
                let refuses = rule.name == "deny";
                self.step(&rule.place, what);
                return Ok(refuses.then_some(403));
            }
        }
        Ok(None)
    }
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
