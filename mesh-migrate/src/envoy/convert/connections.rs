//! Listeners of connections: which chain takes one, by its name of TLS or by who it is.

use super::{Converter, rule};
use crate::{
    envoy::{
        access::block,
        parts::{self, Terminal},
        tree::Tree,
    },
    ledger::Verdict,
    program::{Accepts, Clients, Condition, Reply, Rule, TcpRule, Then},
};

/// A rule, and what comes before others: names of TLS, then blocks of addresses, the
/// narrowest first.
type Ranked = ((u32, u32), TcpRule);

impl<'c> Converter<'c> {
    pub(super) fn connections(
        &mut self,
        listener: &'c Tree,
        chains: &[&'c Tree],
    ) -> Option<Accepts> {
        let mut rules: Vec<Ranked> = Vec::new();
        let asks_for_names = chains.iter().any(|chain| {
            let criteria = chain.msg("filter_chain_match");
            criteria.is_some_and(|criteria| !criteria.list("server_names").is_empty())
        });
        for chain in chains {
            let admitted = self.other_filters(chain);
            let Terminal::Tcp(tcp) = parts::terminal(chain) else {
                let question = "What takes these connections is neither HTTP nor tcp_proxy.";
                self.notes.ask(chain, question, &["leave it out", "keep Envoy for it"]);
                continue;
            };
            if chain.entry("transport_socket").is_some() {
                let question =
                    "TLS of clients ends at Envoy, and bytes go on; here TLS goes on as it is.";
                self.notes.ask(
                    chain,
                    question,
                    &["the application takes TLS itself", "speak HTTP", "keep Envoy before us"],
                );
            }
            let default = listener.msg("default_filter_chain");
            let last = default.is_some_and(|default| std::ptr::eq(default, *chain));
            // The default one is for what no other takes, whatever it asks for.
            let criteria = chain.msg("filter_chain_match").filter(|_| !last);
            if let Some(criteria) =
                criteria.filter(|one| asks_of_tls(one) && !parts::sees_tls(listener))
            {
                let how = "without tls_inspector Envoy sees no TLS here, and this chain takes nothing: it is left out";
                self.notes.whole(criteria, Verdict::Approximated { how: how.into() });
                continue;
            }
            if criteria.is_some_and(|criteria| self.is_more_than_names(criteria, !asks_for_names)) {
                continue;
            }
            let pools = self.tcp_pools(tcp);
            let place = &chain.place;
            let of = |names: Vec<String>, within: Vec<String>, pools: &[(String, u32)]| TcpRule {
                place: place.clone(),
                server_names: names,
                clients: Clients { within, outside: Vec::new() },
                pools: pools.to_vec(),
            };
            let names: Vec<String> = criteria
                .into_iter()
                .flat_map(|one| one.texts("server_names"))
                .map(String::from)
                .collect();
            let mut taken = Vec::new();
            for name in names {
                let rank = if name.starts_with('*') { 2 + name.len() as u32 } else { u32::MAX };
                taken.push(((rank, 0), of(vec![name], Vec::new(), &pools)));
            }
            for range in criteria.into_iter().flat_map(sources) {
                let length = range.count("prefix_len").unwrap_or(0);
                taken.push(((2, length + 1), of(Vec::new(), vec![block(range)], &pools)));
            }
            if taken.is_empty() {
                taken.push(((if last { 1 } else { 2 }, 0), of(Vec::new(), Vec::new(), &pools)));
            }
            for (rank, rule) in taken {
                rules.extend(self.of_admitted(chain, rank, rule, &admitted));
            }
        }
        rules.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        (!rules.is_empty())
            .then(|| Accepts::Tcp { rules: rules.into_iter().map(|(_, rule)| rule).collect() })
    }

    /// The rule for those who are admitted, then one that closes the connections of others.
    fn of_admitted(
        &mut self,
        chain: &Tree,
        rank: (u32, u32),
        rule: TcpRule,
        admitted: &Clients,
    ) -> Vec<Ranked> {
        if *admitted == Clients::default() {
            return vec![(rank, rule)];
        }
        if !rule.server_names.is_empty()
            || !(rule.clients.within.is_empty() || admitted.within.is_empty())
        {
            let question = "Who may is asked of addresses here, and which chain it is of something else. Until it is said, these connections are closed, so that nobody comes in who should not.";
            let choices = ["a listener for each", "by a policy of ours", "keep Envoy before us"];
            self.notes.ask(chain, question, &choices);
            return vec![(rank, TcpRule { pools: Vec::new(), ..rule })];
        }
        let closed = TcpRule { pools: Vec::new(), ..rule.clone() };
        let mut rule = rule;
        rule.clients.within.extend(admitted.within.iter().cloned());
        rule.clients.outside.extend(admitted.outside.iter().cloned());
        vec![(rank, rule), (rank, closed)]
    }

    /// The same of a listener of HTTP: they are answered.
    pub(super) fn unadmitted(&mut self, chain: &Tree, admitted: &Clients) -> Option<Rule> {
        let Clients { within, outside } = admitted;
        let mut refused = Vec::new();
        if !within.is_empty() {
            refused.push(Condition::Not(Box::new(Condition::Source(within.clone()))));
        }
        if !outside.is_empty() {
            refused.push(Condition::Source(outside.clone()));
        }
        if refused.is_empty() {
            return None;
        }
        let how = "who is not admitted is answered 403, where Envoy closes the connection";
        self.notes.whole(chain, Verdict::Approximated { how: how.into() });
        let reply = Reply { status: 403, ..Reply::default() };
        let when = if refused.len() == 1 { refused.remove(0) } else { Condition::Any(refused) };
        Some(rule(&chain.place, when, Then::Reply(reply)))
    }

    /// Whom the only chain of a listener of HTTP is not for.
    pub(super) fn other_clients(&mut self, listener: &Tree, chain: &Tree) -> Option<Rule> {
        let criteria = asks_for_clients(listener)?;
        let within = sources(criteria).map(block).collect();
        self.unadmitted(chain, &Clients { within, outside: Vec::new() })
    }

    /// Whether a filter chain asks for more than names of TLS, or addresses if there are no
    /// names, which is noted.
    fn is_more_than_names(&mut self, criteria: &Tree, may_ask_for_clients: bool) -> bool {
        let mut more = false;
        for field in &criteria.fields {
            let is_known = match field.name.as_str() {
                "server_names" => true,
                "transport_protocol" => {
                    !criteria.list("server_names").is_empty()
                        && criteria.text("transport_protocol") == Some("tls")
                }
                "source_prefix_ranges" | "direct_source_prefix_ranges" => {
                    may_ask_for_clients
                        && sources(criteria).count() == criteria.list(&field.name).len()
                }
                _ => false,
            };
            if !is_known {
                more = true;
                let question = format!(
                    "{} chooses this filter chain, which a rule of ours cannot ask for. Until it is said, its connections go to other chains.",
                    field.name
                );
                self.notes.decision(
                    &field.place,
                    question,
                    &["give it an address of its own", "leave it out"],
                );
            }
        }
        more
    }
}

/// What the only chain of a listener asks for, if that is addresses of clients alone.
pub(super) fn asks_for_clients(listener: &Tree) -> Option<&Tree> {
    let mut chains = parts::chains(listener);
    let criteria = chains.next().filter(|_| listener.msg("default_filter_chain").is_none())?;
    let criteria = criteria.msg("filter_chain_match").filter(|_| chains.next().is_none())?;
    let is_one = ["source_prefix_ranges", "direct_source_prefix_ranges"];
    let mut fields = criteria.fields.iter();
    let only = criteria.fields.len() == 1 && fields.all(|f| is_one.contains(&f.name.as_str()));
    only.then_some(criteria)
}

/// Whose connections a chain is for.
fn sources(criteria: &Tree) -> impl Iterator<Item = &Tree> {
    let direct = criteria.messages("direct_source_prefix_ranges");
    criteria.messages("source_prefix_ranges").chain(direct)
}

/// Whether a chain is only for connections whose TLS is seen.
fn asks_of_tls(criteria: &Tree) -> bool {
    !criteria.list("server_names").is_empty() || criteria.text("transport_protocol") == Some("tls")
}
