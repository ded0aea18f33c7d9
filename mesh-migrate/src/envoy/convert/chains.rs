//! Several filter chains of HTTP at one listener, which Envoy chooses by the name that a
//! client asks for (SNI). Ours chooses their certificates so, and their routes by Host.

use super::{Converter, Tree, Within, hosts, http, rule};
use crate::{
    envoy::parts,
    program::{Condition, Reply, Rule, ServerCertificate, ServerTls, Text, Then, is_asked_for},
};

/// What the names of a chain mean here.
const HOW: &str = "the certificate is chosen by the name of TLS, and the routes by Host: a client whose Host is the name of another chain gets to its routes, and Envoy looks for it here";

/// A chain, its HTTP, its TLS, and its names in lower case.
struct Chain<'c> {
    chain: &'c Tree,
    hcm: &'c Tree,
    tls: ServerTls,
    names: Vec<String>,
}

impl<'c> Converter<'c> {
    /// One set of rules for all chains, if names are all that chooses among them, and
    /// all ask clients for the same; `None` otherwise.
    pub(super) fn by_names(
        &mut self,
        listener: &'c Tree,
        chains: &[&'c Tree],
        port: u16,
    ) -> Option<(Vec<Rule>, ServerTls)> {
        if chains.len() < 2 || !parts::sees_tls(listener) {
            return None;
        }
        let names: Option<Vec<_>> = chains.iter().map(|chain| names(listener, chain)).collect();
        let names = names?;
        if names.iter().filter(|names| names.is_empty()).count() > 1 {
            return None;
        }
        let http: Option<Vec<_>> = chains.iter().map(|chain| http(chain)).collect();
        let http = http?;
        if http.iter().any(|(_, hcm)| super::paths(hcm) != super::paths(http[0].1)) {
            return None;
        }
        let mut all = Vec::new();
        for ((chain, hcm), names) in http.into_iter().zip(names) {
            parts::tls(chain, parts::DOWNSTREAM_TLS)?;
            all.push((chain, hcm, self.server_tls(chain)?, names));
        }
        let asks =
            |tls: &ServerTls| (tls.client_roots.clone(), tls.client_names.clone(), tls.crl.clone());
        let first = asks(&all[0].2);
        if all.iter().any(|(_, _, tls, _)| asks(tls) != first) {
            return None;
        }
        let all: Vec<_> = all
            .into_iter()
            .map(|(chain, hcm, tls, names)| Chain { chain, hcm, tls, names })
            .collect();
        let rules = self.of_chains(listener, &all, port)?;
        Some((rules, tls(&all)))
    }

    fn of_chains(&mut self, listener: &'c Tree, all: &[Chain<'c>], port: u16) -> Option<Vec<Rule>> {
        let mut of_chains = Vec::new();
        for Chain { chain, hcm, .. } in all {
            let routes = self.config.routes(hcm)?;
            let within = Within { hcm, routes, port, is_tls: true };
            of_chains.push((within, *chain));
        }
        let mut rules_of = Vec::new();
        for (within, chain) in of_chains {
            let rules = self.of_chain(listener, chain, &within);
            let field = chain.msg("filter_chain_match").and_then(|one| one.entry("server_names"));
            if let Some(field) = field {
                self.notes.approximated(&field.place, HOW);
            }
            rules_of.push(rules);
        }
        let mut rules = Vec::new();
        for (rank, at) in order(all) {
            let here = all[at].names.iter().filter(|name| hosts::rank(name) == rank);
            let when = below(here.map(String::as_str));
            for one in &rules_of[at] {
                let when = super::all(vec![when.clone(), one.when.clone()]);
                rules.push(Rule { when, ..one.clone() });
            }
            if when != Condition::Always {
                let reply = Reply { status: 404, ..Reply::default() };
                rules.push(rule(&all[at].chain.place, when, Then::Reply(reply)));
            }
        }
        Some(rules)
    }
}

/// Names that choose this chain; `None` where something else does.
fn names(listener: &Tree, chain: &Tree) -> Option<Vec<String>> {
    let is_default = listener.msg("default_filter_chain").is_some_and(|d| std::ptr::eq(d, chain));
    let Some(criteria) = chain.msg("filter_chain_match").filter(|_| !is_default) else {
        return Some(Vec::new());
    };
    let is_tls = |text: Option<&str>| text == Some("tls");
    let is_known = criteria.fields.iter().all(|field| match field.name.as_str() {
        "server_names" => true,
        "transport_protocol" => is_tls(criteria.text("transport_protocol")),
        _ => false,
    });
    let names: Vec<_> = criteria.texts("server_names").map(str::to_ascii_lowercase).collect();
    (is_known && names.iter().all(|name| is_asked_for(name))).then_some(names)
}

/// Chains once for each rank that some of their names have: exact names, the longest
/// `*.` first, none.
fn order(all: &[Chain<'_>]) -> Vec<((u8, usize), usize)> {
    let mut order: Vec<_> = (0..all.len())
        .flat_map(|at| {
            let ranks = all[at].names.iter().map(|name| hosts::rank(name));
            let none = all[at].names.is_empty().then_some((0, 0));
            ranks.chain(none).map(move |rank| (rank, at)).collect::<Vec<_>>()
        })
        .collect();
    order.sort_by_key(|(rank, at)| (std::cmp::Reverse(*rank), *at));
    order.dedup();
    order
}

/// Whether Host, without its port, is one of these names.
fn below<'n>(names: impl Iterator<Item = &'n str>) -> Condition {
    let pattern = |name: &str| match name.strip_prefix("*.") {
        Some(name) => format!(r"[^:]+\.{}", regex::escape(name)),
        None => regex::escape(name),
    };
    let all: Vec<_> = names.map(pattern).collect();
    if all.is_empty() {
        return Condition::Always;
    }
    let pattern = format!(r"(?i)(?:{})\.?(?::[0-9]*)?", all.join("|"));
    Condition::Header("host".into(), Text::Pattern(pattern))
}

/// The chain without names has the first certificate; without one Envoy closes
/// connections of all other names.
fn tls(all: &[Chain<'_>]) -> ServerTls {
    let nameless = all.iter().find(|one| one.names.is_empty());
    let base = &nameless.unwrap_or(&all[0]).tls;
    let mut tls = ServerTls { only_known_names: nameless.is_none(), ..base.clone() };
    if all.iter().any(|one| one.tls.versions != base.versions) {
        tls.versions.clear();
    }
    if all.iter().any(|one| one.tls.alpn != base.alpn) {
        tls.alpn = None;
    }
    for one in all.iter().filter(|one| !one.names.is_empty()) {
        let own = ServerCertificate {
            certificate: one.tls.certificate.clone(),
            key: one.tls.key.clone(),
            names: Vec::new(),
        };
        let certificates = std::iter::once(own).chain(one.tls.more.clone());
        let named = |own| ServerCertificate { names: one.names.clone(), ..own };
        tls.more.extend(certificates.map(named));
    }
    if nameless.is_none() {
        // All are there with their names.
        tls.more.retain(|one| !one.names.is_empty());
        tls.names.clone_from(&all[0].names);
    }
    tls
}
