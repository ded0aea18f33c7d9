//! Who is admitted, as rules that answer 403 and as clients of connections.

use super::{Converter, Within, all, condition, rule};
use crate::{
    envoy::{
        access::{self, Asks, OfRoute, Whose},
        tree::{Entry, Tree},
    },
    ledger::Verdict,
    program::{Clients, Condition, Reply, Rule, Then},
};

/// A filter that admits requests, and which it refuses where a route says nothing else.
#[derive(Debug, Clone)]
pub(super) struct Access<'c> {
    pub(super) filter: &'c Tree,
    refused: Condition,
    /// It cannot be said whom it refuses: all are, until somebody says it.
    is_unsaid: bool,
}

pub(super) const NEVER: Condition = Condition::Any(Vec::new());

impl<'c> Converter<'c> {
    /// Filters of a connection manager that ask who may; what cannot be said is noted.
    pub(super) fn access(&mut self, within: &Within<'c>) -> Vec<Access<'c>> {
        let mut known = Vec::new();
        for filter in within.hcm.messages("http_filters") {
            let asks = access::asks(filter).filter(|_| access::is_ever_on(filter, within.routes));
            let config = match asks {
                None => continue,
                Some(Asks::Rules(config)) => config,
                Some(Asks::Unread) => {
                    let refused = Condition::Always;
                    known.push(Access { filter, refused, is_unsaid: true });
                    continue;
                }
            };
            match refused(config, within) {
                Ok(refused) => known.push(Access { filter, refused, is_unsaid: false }),
                Err(cannot) => {
                    self.nobody_until_said(&cannot);
                    let refused = Condition::Always;
                    known.push(Access { filter, refused, is_unsaid: true });
                }
            }
        }
        known
    }

    /// Whether origins are asked for before who may.
    pub(super) fn asks_for_origins_first(&self, within: &Within<'_>) -> bool {
        let first = within.hcm.messages("http_filters").find_map(|filter| {
            match filter.msg("typed_config").map_or("", Tree::short) {
                "Cors" => Some(true),
                "RBAC" => Some(false),
                _ => None,
            }
        });
        first.unwrap_or(true)
    }

    /// Whether some route has rules of its own for one of the filters.
    pub(super) fn is_admitted_by_route(within: &Within<'c>, filters: &[Access<'_>]) -> bool {
        // What browsers ask first may be answered to those who are refused.
        let cors = Self::cors_filter(within).filter(|_| !filters.is_empty());
        let says = |level: &Tree| {
            let mut all = filters.iter().map(|one| one.filter).chain(cors);
            all.any(|filter| access::at_level(level, filter).is_some())
        };
        access::levels(within.routes).any(says)
    }

    /// Rules that refuse, before the one of a route.
    pub(super) fn refusals(
        &mut self,
        levels: [&'c Tree; 3],
        when: &Condition,
        within: &Within<'c>,
    ) -> Vec<Rule> {
        let mut rules = Vec::new();
        for mut one in self.access.clone() {
            let entry = access::of_route(levels, one.filter);
            let refused = match entry.map(access::said) {
                _ if self.is_said_by_cluster(levels[2], one.filter) => {
                    one.is_unsaid = true;
                    Condition::Always
                }
                _ if !access::is_on(one.filter, entry) => NEVER,
                Some(OfRoute::Own(own)) => match access::asks(one.filter) {
                    Some(Asks::Rules(_)) => self.own_rules(&mut one, own, within),
                    _ if own.is("disabled") => NEVER,
                    _ => one.refused.clone(),
                },
                _ => one.refused.clone(),
            };
            if entry.is_some() {
                self.said_by_route(levels, one.filter);
            }
            rules.extend(refusal(&one, all(vec![when.clone(), refused])));
        }
        rules
    }

    /// What a filter with rules refuses where a route has some of its own.
    fn own_rules(&mut self, one: &mut Access<'c>, own: &'c Tree, within: &Within<'c>) -> Condition {
        match own.msg("rbac").map_or(Ok(NEVER), |config| refused(config, within)) {
            Ok(refused) => {
                one.is_unsaid = false;
                refused
            }
            Err(cannot) => {
                self.nobody_until_said(&cannot);
                one.is_unsaid = true;
                Condition::Always
            }
        }
    }

    fn nobody_until_said(&mut self, cannot: &condition::Cannot<'_>) {
        let question = format!(
            "{}. Until it is said, requests are answered 501, so that nobody comes in who should not.",
            cannot.why
        );
        let choices = ["by a policy of ours", "leave it out", "keep Envoy before us"];
        self.notes.decision(&cannot.field.place, question, &choices);
    }

    /// Whether a cluster of a route with several has something of its own to say to a
    /// filter, which is noted.
    fn is_said_by_cluster(&mut self, route: &Tree, filter: &Tree) -> bool {
        let mut is = false;
        for cluster in access::clusters(route) {
            let field =
                access::at_level(cluster, filter).and(cluster.entry("typed_per_filter_config"));
            let Some(field) = field else { continue };
            is = true;
            let question = "Who may depends on the cluster that chance chooses, and a rule of ours does not know it. Until it is said, requests of this route are answered 501, so that nobody comes in who should not.";
            let choices = ["the same for all clusters of the route", "keep Envoy before us"];
            self.notes.once(&field.place, super::notes::decision(question.into(), &choices));
        }
        is
    }

    fn said_by_route(&mut self, levels: [&Tree; 3], filter: &Tree) {
        let level = levels.into_iter().rev().find(|l| access::at_level(l, filter).is_some());
        let field = level.and_then(|level| level.entry("typed_per_filter_config"));
        if let Some(field) = field {
            self.notes.once(&field.place, Verdict::Exact);
        }
    }
}

/// Rules for all requests alike, where no route says anything.
pub(super) fn for_all(access: &Access<'_>) -> Option<Rule> {
    refusal(access, access.refused.clone())
}

fn unsaid(filter: &Tree, when: Condition) -> Rule {
    let body = format!("who may is not converted: {}\n", filter.place);
    let reply = Reply { status: 501, body, ..Reply::default() };
    rule(&filter.place, when, Then::Reply(reply))
}

fn refusal(access: &Access<'_>, when: Condition) -> Option<Rule> {
    let Access { filter, is_unsaid, .. } = access;
    if *is_unsaid {
        return Some(unsaid(filter, when));
    }
    let never = match &when {
        Condition::Any(none) => none.is_empty(),
        Condition::All(all) => all.contains(&NEVER),
        _ => false,
    };
    let body = "RBAC: access denied".into();
    let reply = Reply { status: 403, body, ..Reply::default() };
    (!never).then(|| rule(&filter.place, when, Then::Reply(reply)))
}

/// Requests that a filter with this configuration refuses.
fn refused<'t>(config: &'t Tree, within: &Within<'_>) -> Result<Condition, condition::Cannot<'t>> {
    if let Some(field) = config.entry("matcher") {
        return Err(condition::Cannot {
            field,
            why: "a tree of matchers says who may, and it is not read",
        });
    }
    let Some(rules) = config.msg("rules") else { return Ok(NEVER) };
    let mut policies = Vec::new();
    for policy in access::policies(rules) {
        if let Some(field) = policy.one_of(&["condition", "checked_condition", "cel_config"]) {
            return Err(condition::Cannot {
                field,
                why: "an expression says who may, and it is not read",
            });
        }
        let permissions = policy.messages("permissions").map(|one| permission(one, within));
        let permissions = any(permissions.collect::<Result<_, _>>()?);
        let principals = policy.messages("principals").map(|one| principal(one, within));
        let principals = any(principals.collect::<Result<_, _>>()?);
        policies.push(both(vec![permissions, principals]));
    }
    Ok(match rules.text("action").unwrap_or("ALLOW") {
        "ALLOW" => not(any(policies)),
        "DENY" => any(policies),
        _ => NEVER,
    })
}

fn permission<'t>(one: &'t Tree, within: &Within<'_>) -> Result<Condition, condition::Cannot<'t>> {
    let each = |list: &'t Tree| {
        list.messages("rules").map(|one| permission(one, within)).collect::<Result<Vec<_>, _>>()
    };
    if let Some(list) = one.msg("and_rules") {
        return Ok(both(each(list)?));
    }
    if let Some(list) = one.msg("or_rules") {
        return Ok(any(each(list)?));
    }
    if let Some(other) = one.msg("not_rule") {
        return Ok(not(permission(other, within)?));
    }
    if let Some(port) = one.count("destination_port") {
        let is = port == u32::from(within.port);
        return Ok(if is { Condition::Always } else { NEVER });
    }
    common(one, within)
}

fn principal<'t>(one: &'t Tree, within: &Within<'_>) -> Result<Condition, condition::Cannot<'t>> {
    let each = |list: &'t Tree| {
        list.messages("ids").map(|one| principal(one, within)).collect::<Result<Vec<_>, _>>()
    };
    if let Some(list) = one.msg("and_ids") {
        return Ok(both(each(list)?));
    }
    if let Some(list) = one.msg("or_ids") {
        return Ok(any(each(list)?));
    }
    if let Some(other) = one.msg("not_id") {
        return Ok(not(principal(other, within)?));
    }
    if one.entry("authenticated").is_some() && !within.is_tls {
        return Ok(NEVER);
    }
    if let Some((whose, range)) = access::address(one) {
        let is_peer = within.hcm.is("use_remote_address")
            && within.hcm.count("xff_num_trusted_hops").unwrap_or(0) == 0;
        if whose == Whose::Client && !is_peer {
            let field = one.entry("remote_ip").or_else(|| one.fields.first());
            let why = "who may is asked of the address in X-Forwarded-For, and a rule of ours knows who has connected";
            return match field {
                Some(field) => Err(condition::Cannot { field, why }),
                None => Ok(NEVER),
            };
        }
        return Ok(Condition::Source(vec![access::block(range)]));
    }
    common(one, within)
}

/// What both can ask for.
fn common<'t>(one: &'t Tree, within: &Within<'_>) -> Result<Condition, condition::Cannot<'t>> {
    if one.is("any") {
        return Ok(Condition::Always);
    }
    if let Some(header) = one.msg("header") {
        return Ok(condition::header(header, within));
    }
    if let Some(path) = one.msg("url_path") {
        let text = path.msg("path").map(condition::text);
        return Ok(text.map_or(NEVER, Condition::Path));
    }
    match one.fields.first() {
        Some(field) => Err(unsayable(field)),
        None => Ok(NEVER),
    }
}

fn unsayable(field: &Entry) -> condition::Cannot<'_> {
    let why = match field.name.as_str() {
        "authenticated" => {
            "who may is asked of the client's certificate, and a rule of ours cannot"
        }
        "metadata" | "sourced_metadata" | "filter_state" => {
            "who may is asked of what other filters found out, and a rule of ours cannot"
        }
        _ => "who may is asked of what a rule of ours cannot ask for",
    };
    condition::Cannot { field, why }
}

fn not(condition: Condition) -> Condition {
    match condition {
        Condition::Always => NEVER,
        Condition::Any(none) if none.is_empty() => Condition::Always,
        Condition::Not(inner) => *inner,
        other => Condition::Not(Box::new(other)),
    }
}

fn both(conditions: Vec<Condition>) -> Condition {
    if conditions.contains(&NEVER) { NEVER } else { all(conditions) }
}

/// Blocks of addresses, which a rule of ours has one list of, together.
fn any(conditions: Vec<Condition>) -> Condition {
    if conditions.contains(&Condition::Always) {
        return Condition::Always;
    }
    let mut blocks = Vec::new();
    let mut others = Vec::new();
    for one in conditions {
        match one {
            Condition::Source(more) => blocks.extend(more),
            Condition::Any(more) => others.extend(more),
            other => others.push(other),
        }
    }
    if !blocks.is_empty() {
        others.push(Condition::Source(blocks));
    }
    if others.len() == 1 { others.remove(0) } else { Condition::Any(others) }
}

/// Clients that filters before the last of a chain admit; a filter that asks for more
/// comes back.
pub(super) fn clients(chain: &Tree) -> (Clients, Vec<&Tree>) {
    let mut clients = Clients::default();
    let mut others = Vec::new();
    let count = chain.messages("filters").count();
    for filter in chain.messages("filters").take(count.saturating_sub(1)) {
        let config = filter.msg("typed_config");
        let config =
            config.filter(|one| one.message == "envoy.extensions.filters.network.rbac.v3.RBAC");
        let found = config.filter(|one| one.entry("matcher").is_none()).and_then(|one| {
            let Some(rules) = one.msg("rules") else { return Some(Clients::default()) };
            admitted(rules)
        });
        match found {
            // One list of those within, at most.
            Some(found) if clients.within.is_empty() || found.within.is_empty() => {
                clients.within.extend(found.within);
                clients.outside.extend(found.outside);
            }
            _ => {
                others.push(filter);
                // Nobody, until it is said who may.
                let asks = filter.msg("typed_config").map_or("", Tree::short);
                if matches!(asks, "RBAC" | "ExtAuthz") {
                    clients.outside.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()]);
                }
            }
        }
    }
    (clients, others)
}

fn admitted(rules: &Tree) -> Option<Clients> {
    let action = rules.text("action").unwrap_or("ALLOW");
    let (mut within, mut outside) = (Vec::new(), Vec::new());
    let mut everybody = false;
    for policy in access::policies(rules) {
        let is_plain = policy.one_of(&["condition", "checked_condition", "cel_config"]).is_none();
        if !is_plain || !policy.messages("permissions").any(|one| one.is("any")) {
            return None;
        }
        let principals: Vec<&Tree> = policy.messages("principals").collect();
        if principals.iter().any(|one| one.is("any")) {
            everybody = true;
            continue;
        }
        for one in principals {
            let alternatives: Vec<&Tree> = match one.msg("or_ids") {
                Some(list) => list.messages("ids").collect(),
                None => vec![one],
            };
            for one in alternatives {
                match one.msg("not_id").and_then(access::address) {
                    Some((_, range)) => outside.push(access::block(range)),
                    None => within.push(access::block(access::address(one)?.1)),
                }
            }
        }
    }
    // Either list alone is said so; outside of several is anybody.
    let nobody =
        || Clients { within: Vec::new(), outside: vec!["0.0.0.0/0".into(), "::/0".into()] };
    match (action, everybody, within.as_slice(), outside.as_slice()) {
        ("LOG", ..) | ("ALLOW", true, ..) | ("DENY", false, [], []) => Some(Clients::default()),
        ("DENY", true, ..) | ("ALLOW", false, [], []) => Some(nobody()),
        ("ALLOW", false, _, []) => Some(Clients { within, outside }),
        ("ALLOW", false, [], [_]) => Some(Clients { within, outside }),
        ("DENY", false, _, []) => Some(Clients { within: Vec::new(), outside: within }),
        ("DENY", false, [], [_]) => Some(Clients { within: outside, outside: Vec::new() }),
        _ => None,
    }
}
