//! `allow` and `deny` of `http`.

use super::{Clients, Condition, Directive, Reply, Rule, Then, Work, all, any, leaf::Here};

impl<'m, 'c> Work<'m, 'c> {
    /// `deny`, each with those whom it refuses.
    pub(super) fn refused(&mut self, chain: &[&'c Directive]) -> Vec<(&'c Directive, Clients)> {
        let mut allowed: Vec<String> = Vec::new();
        let mut refused = Vec::new();
        for rule in access_rules(chain) {
            self.exact(rule);
            let block = rule.arg(0);
            match (rule.name.as_str(), block) {
                (_, "unix:") => {}
                // Nobody is left for what comes after it.
                ("allow", "all") => break,
                ("allow", block) => allowed.push(block.to_owned()),
                (_, block) => {
                    let within = (block != "all").then(|| block.to_owned());
                    let within = within.into_iter().collect();
                    refused.push((rule, Clients { within, outside: allowed.clone() }));
                }
            }
        }
        refused
    }

    /// `allow` and `deny`.
    pub(super) fn access(&mut self, here: &Here<'m, 'c>, when: &Condition, rules: &mut Vec<Rule>) {
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for rule in access_rules(&here.chain) {
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

/// Those of the innermost block that has some.
fn access_rules<'c>(chain: &[&'c Directive]) -> impl Iterator<Item = &'c Directive> {
    let has =
        |block: &&&Directive| ["allow", "deny"].iter().any(|name| !block.named(name).is_empty());
    let of: Option<&'c Directive> = chain.iter().rev().find(has).copied();
    of.into_iter()
        .flat_map(|block| block.inside())
        .filter(|d| d.name == "allow" || d.name == "deny")
}
