//! `allow` and `deny` of `http`.

use super::{Condition, Directive, Reply, Rule, Then, Work, all, any, leaf::Here};

impl<'m, 'c> Work<'m, 'c> {
    /// `allow` and `deny`.
    pub(super) fn access(&mut self, here: &Here<'m, 'c>, when: &Condition, rules: &mut Vec<Rule>) {
        let is_rule = |d: &&Directive| d.name == "allow" || d.name == "deny";
        let has = |block: &&&Directive| {
            ["allow", "deny"].iter().any(|name| !block.named(name).is_empty())
        };
        let of = here.chain.iter().rev().find(has);
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for rule in of.iter().flat_map(|block| block.inside()).filter(is_rule) {
            self.exact(rule);
            let takes = match rule.arg(0) {
                "all" => Condition::Always,
                "unix:" => continue,
                block => Condition::Source(vec![block.to_owned()]),
            };
            if rule.name == "allow" {
                allowed.push(takes);
                continue;
            }
            let unless = match allowed.is_empty() {
                true => Condition::Always,
                false => Condition::Not(Box::new(any(allowed.clone()))),
            };
            denied.push((rule, all([when.clone(), takes, unless])));
        }
        for (rule, when) in denied {
            let reply = Reply { status: 403, ..Reply::default() };
            rules.push(Rule { place: rule.place.clone(), when, then: Then::Reply(reply) });
        }
    }
}
