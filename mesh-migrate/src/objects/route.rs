//! Rules of a listener as an HTTPRoute and its TrafficPolicy, or as routes of
//! connections.

use serde_json::{Map, Value, json};

use super::{MAX_RULES, Making, REQUESTS, clause, duration, headers::modifier, object, some_list};
use crate::{
    program::{
        Condition, Forward, Location, PathChange, Reply, Retry, Rule, Said, SaidChange, Then,
    },
    source::Place,
};

/// Rules of one listener, and what our policy says of them.
#[derive(Default)]
struct Rules {
    route: Vec<Value>,
    policy: Vec<Value>,
}

impl Making<'_> {
    pub(super) fn http_rules(
        &mut self,
        name: &str,
        port: u16,
        place: &Place,
        rules: &[Rule],
        otherwise: &Reply,
    ) {
        let mut made = Rules::default();
        let mut last = false;
        for (number, rule) in (1..).zip(rules) {
            self.rule(&format!("r{number}"), rule, &mut made);
            last = rule.when == Condition::Always;
        }
        if !last {
            let then = Then::Reply(otherwise.clone());
            let rule = Rule { place: place.clone(), when: Condition::Always, then };
            self.rule("otherwise", &rule, &mut made);
        }
        if made.route.len() > MAX_RULES {
            self.ledger.decision(
                place,
                format!(
                    "it needs {} rules, and a listener of ours has {MAX_RULES}",
                    made.route.len()
                ),
                &["divide the listener"],
            );
            made.route.truncate(MAX_RULES);
        }
        let parent = json!({ "kind": "Service", "name": name, "port": port });
        self.documents.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": self.metadata(name),
            "spec": { "parentRefs": [parent], "rules": made.route },
        }));
        let mut spec = json!({
            "targetRef": { "kind": "Service", "name": name },
            "ruleOrder": "Listed",
        });
        if !made.policy.is_empty() {
            spec["rules"] = made.policy.into();
        }
        self.documents.push(json!({
            "apiVersion": "isthmus.io/v1",
            "kind": "TrafficPolicy",
            "metadata": self.metadata(name),
            "spec": spec,
        }));
    }

    /// A rule is one of ours for each clause that cannot share one.
    fn rule(&mut self, name: &str, rule: &Rule, made: &mut Rules) {
        let clauses = match clause::clauses(&rule.when) {
            Ok(clauses) => clauses,
            Err(unsayable) => {
                let question = format!(
                    "{}: what it takes goes on to the rules after it with us",
                    unsayable.why()
                );
                self.ledger.decision(&rule.place, question, &["write the condition otherwise"]);
                return;
            }
        };
        let (plain, more): (Vec<_>, Vec<_>) =
            clauses.into_iter().partition(|clause| clause.more().is_empty());
        let mut number = 0;
        let next = |number: &mut u32| {
            *number += 1;
            if *number == 1 { name.to_owned() } else { format!("{name}-{number}") }
        };
        let mut matches = Vec::new();
        let mut everything = false;
        for clause in &plain {
            match clause.matching() {
                Some(one) => matches.push(one),
                None => everything = true,
            }
        }
        if everything {
            matches.clear();
        }
        // In order, whatever the clause: they lead to the same.
        let chunks: Vec<Vec<Value>> = match (everything, matches.is_empty()) {
            (true, _) => vec![Vec::new()],
            (false, true) => Vec::new(),
            (false, false) => matches.chunks(64).map(<[Value]>::to_vec).collect(),
        };
        for chunk in chunks {
            let name = next(&mut number);
            self.one(&name, rule, some_list(chunk), Vec::new(), made);
        }
        if everything {
            return;
        }
        for clause in &more {
            let name = next(&mut number);
            let matches = clause.matching().map(|one| json!([one]));
            self.one(&name, rule, matches, clause.more(), made);
        }
    }

    fn one(
        &mut self,
        name: &str,
        rule: &Rule,
        matches: Option<Value>,
        more: Vec<(&'static str, Value)>,
        made: &mut Rules,
    ) {
        let mut route = Map::new();
        let mut policy = Map::new();
        route.insert("name".into(), name.into());
        if let Some(matches) = matches {
            route.insert("matches".into(), matches);
        }
        policy.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        match &rule.then {
            Then::Reply(reply) => self.answered(&rule.place, reply, &mut route, &mut policy),
            Then::Forward(forward) => self.forwarded_to(rule, forward, &mut route, &mut policy),
        }
        made.route.push(route.into());
        if !policy.is_empty() {
            policy.insert("name".into(), name.into());
            made.policy.push(policy.into());
        }
    }

    fn forwarded_to(
        &mut self,
        rule: &Rule,
        forward: &Forward,
        route: &mut Map<String, Value>,
        policy: &mut Map<String, Value>,
    ) {
        let forward = &self.sayable(&rule.place, forward);
        let said = |(name, said): &(String, Said)| json!({ "name": name, "value": template(said) });
        let told = object([
            ("set", some_list(forward.tell.iter().map(said).collect())),
            ("add", some_list(forward.tell_more.iter().map(said).collect())),
        ]);
        if told != json!({}) {
            policy.insert("requestHeaders".into(), told);
        }
        let sometimes = self.sometimes(&rule.place, &forward.sometimes);
        if !sometimes.is_empty() {
            policy.insert("conditionalHeaders".into(), sometimes.into());
        }
        if let Some(change) = forward.path.as_ref().filter(|change| full(change).is_none()) {
            policy.insert("rewrite".into(), rewrite(change));
            if may_end_without_slash(change) {
                let how = "a path that does not begin with / after this is answered 500 with us";
                self.ledger.approximated(&rule.place, how);
            }
        }
        if forward.strip_query {
            policy.insert("stripQuery".into(), true.into());
        }
        let filters = self.filters(&rule.place, forward);
        if !filters.is_empty() {
            route.insert("filters".into(), filters.into());
        }
        let mut backends = self.backends(&rule.place, &forward.pools, REQUESTS);
        let is_whole = backends.as_array().is_some_and(|all| all.len() == forward.pools.len());
        for own in forward.own.iter().filter(|_| is_whole) {
            let modifiers = [
                ("request", &own.set, &own.add, &own.remove),
                ("response", &own.set_answer, &own.add_answer, &own.remove_answer),
            ];
            let filters: Vec<Value> = modifiers.into_iter().filter_map(modifier).collect();
            backends[own.at]["filters"] = filters.into();
        }
        route.insert("backendRefs".into(), backends);
        // One attempt that may take longer than all of them has no limit of its own.
        let attempt = forward.attempt_timeout.filter(|attempt| {
            forward.request_timeout.is_none_or(|all| all.is_zero() || *attempt <= all)
        });
        let timeouts = object([
            ("request", forward.request_timeout.map(duration)),
            ("backendRequest", attempt.map(duration)),
        ]);
        if timeouts != json!({}) {
            route.insert("timeouts".into(), timeouts);
        }
        let retry = forward.retry.as_ref().map(|retry| self.retry(&rule.place, retry));
        // Without it what broke off is asked for once more.
        policy.insert("retry".into(), retry.unwrap_or_else(|| json!({ "attempts": 0 })));
    }

    fn filters(&mut self, place: &Place, forward: &Forward) -> Vec<Value> {
        let mut filters = Vec::new();
        let modifiers = [
            ("request", &forward.set, &forward.add, &forward.remove),
            ("response", &forward.set_answer, &forward.add_answer, &forward.remove_answer),
        ];
        filters.extend(modifiers.into_iter().filter_map(modifier));
        let whole = forward.path.as_ref().and_then(full);
        let name = |host: &&str| {
            let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
            is_name(name) && port.parse::<u16>().is_ok()
        };
        let host = forward.host.as_deref().filter(name);
        if let (Some(wanted), None) = (&forward.host, host) {
            let question = format!("{wanted:?} is no name of a host: the client's Host stays");
            self.ledger.decision(place, question, &["another name", "it may stay"]);
        }
        let url = object([("hostname", host.map(Into::into)), ("path", whole)]);
        if url != json!({}) {
            filters.push(json!({ "type": "URLRewrite", "urlRewrite": url }));
        }
        for (pool, percent) in &forward.mirrors {
            if let Some(pool) = self.names.of_pool(pool) {
                let parts = (percent * 100.0).round();
                filters.push(json!({ "type": "RequestMirror", "requestMirror": {
                    "backendRef": { "name": pool, "port": REQUESTS },
                    "fraction": { "numerator": parts as u32, "denominator": 10_000 },
                }}));
            }
        }
        filters
    }

    fn retry(&mut self, place: &Place, retry: &Retry) -> Value {
        if retry.attempts > 10 {
            let how = format!("{} repetitions of a request; with us at most 10", retry.attempts);
            self.ledger.approximated(place, how);
        }
        let answers = !retry.statuses.is_empty() || !retry.grpc_statuses.is_empty();
        if !answers && !retry.on_reset {
            // What was never processed is repeated anyway.
            return json!({ "attempts": 0 });
        }
        object([
            ("codes", some_list(retry.statuses.iter().map(|code| json!(code)).collect())),
            ("grpcCodes", some_list(retry.grpc_statuses.iter().map(|code| json!(code)).collect())),
            ("attempts", Some(retry.attempts.min(10).into())),
            ("backoff", retry.backoff.map(duration)),
            ("anyMethod", retry.any_method.then_some(true.into())),
            ("unanswered", (!retry.on_reset).then_some(false.into())),
        ])
    }

    pub(super) fn backends(&mut self, place: &Place, pools: &[(String, u32)], port: u16) -> Value {
        let one = |(pool, weight): &(String, u32)| {
            let name = self.names.of_pool(pool)?;
            Some(if pools.len() == 1 {
                json!({ "name": name, "port": port })
            } else {
                json!({ "name": name, "port": port, "weight": weight })
            })
        };
        let backends: Vec<Value> = pools.iter().filter_map(one).collect();
        if backends.len() != pools.len() {
            self.ledger.decision(
                place,
                "it leads to something that is not in the configuration",
                &["write it there and import it again"],
            );
        }
        backends.into()
    }

    /// What the proxy itself answers.
    fn answered(
        &mut self,
        place: &Place,
        reply: &Reply,
        route: &mut Map<String, Value>,
        policy: &mut Map<String, Value>,
    ) {
        match &reply.location {
            Some(Location { host: Some(host), .. }) if !is_name(host) => {
                let question = format!(
                    "{host:?} is no name of a host to send clients to: until decided such \
                     requests are answered 501"
                );
                self.ledger.decision(place, question, &["another name"]);
                policy.insert("reply".into(), json!({ "status": 501 }));
            }
            Some(location) => self.redirected(place, reply, location, (route, policy)),
            None => {
                let has_templates = !reply.told.is_empty() || reply.text.is_some();
                let literal = |text: &str| match has_templates {
                    true => text.replace('%', "%%"),
                    false => text.to_owned(),
                };
                let plain = reply.headers.iter().map(|(name, value)| (name, literal(value)));
                let told = reply.told.iter().map(|(name, said)| (name, template(said)));
                let headers = plain.chain(told);
                let headers = headers.map(|(name, value)| json!({ "name": name, "value": value }));
                let body = reply.text.as_ref().map_or_else(|| literal(&reply.body), template);
                let reply = object([
                    ("status", Some(reply.status.into())),
                    ("headers", some_list(headers.collect())),
                    ("body", (!body.is_empty()).then(|| body.into())),
                    ("templates", has_templates.then(|| true.into())),
                ]);
                policy.insert("reply".into(), reply);
            }
        }
    }
}

/// As our policy writes what a request says.
pub(super) fn template(said: &Said) -> String {
    match said {
        Said::Headers(name) => format!("%{{headers:{name}}}"),
        Said::Cookie(name) => format!("%{{cookie:{name}}}"),
        Said::Parameter(name) => format!("%{{query:{name}}}"),
        Said::Changed(of, change) => {
            let of = template(of);
            let of = of.strip_suffix('}').unwrap_or(&of);
            match change {
                SaidChange::Lower => format!("{of}|lower}}"),
                SaidChange::Replace { pattern, substitution, all } => {
                    let all = if *all { "g" } else { "" };
                    format!("{of}|s~{pattern}~{substitution}~{all}}}")
                }
            }
        }
        Said::Client => "%{client_ip}".to_owned(),
        Said::ForwardedFor => "%{forwarded_for}".to_owned(),
        Said::Host => "%{host}".to_owned(),
        Said::Hostname => "%{hostname}".to_owned(),
        Said::Scheme => "%{scheme}".to_owned(),
        Said::Method => "%{method}".to_owned(),
        Said::Path => "%{path}".to_owned(),
        Said::Target => "%{target}".to_owned(),
        Said::Query => "%{query}".to_owned(),
        Said::Header(name) => format!("%{{header:{name}}}"),
        Said::Text(text) => text.replace('%', "%%"),
        Said::Joined(parts) => parts.iter().map(template).collect(),
    }
}

/// As our policy has it: a pattern and what takes its place.
pub(super) fn rewrite(change: &PathChange) -> Value {
    match change {
        PathChange::Whole(path) => {
            json!({ "pattern": "(?s)^.*$", "substitution": path.replace('$', "$$") })
        }
        PathChange::Prefix { from, to } => json!({
            "pattern": format!("^{}", regex::escape(from)),
            "substitution": to.replace('$', "$$"),
        }),
        PathChange::Pattern { pattern, substitution, all } => {
            let mut value = json!({ "pattern": pattern, "substitution": substitution });
            if *all {
                value["all"] = true.into();
            }
            value
        }
    }
}

/// Whether the path, which begins with /, may be changed to one that does not.
fn may_end_without_slash(change: &PathChange) -> bool {
    match change {
        PathChange::Whole(path) => !path.starts_with('/'),
        PathChange::Prefix { from, to } => !to.starts_with('/') && !from.is_empty(),
        PathChange::Pattern { pattern, substitution, .. } => {
            let begins_later = pattern.starts_with(|first: char| first.is_ascii_alphanumeric())
                && !pattern.contains(['|', '?', '*', '{']);
            !substitution.starts_with('/') && !begins_later
        }
    }
}

/// The path if a filter of Gateway API can put it there as it is.
pub(super) fn full(change: &PathChange) -> Option<Value> {
    let PathChange::Whole(path) = change else { return None };
    (path.starts_with('/') && !path.contains('?'))
        .then(|| json!({ "type": "ReplaceFullPath", "replaceFullPath": path }))
}

/// As rules take it.
fn is_name(host: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !host.is_empty() && host.bytes().all(is_good)
}
