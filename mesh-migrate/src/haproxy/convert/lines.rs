//! What is said of every line.

use crate::{
    ledger::{Ledger, Verdict},
    source::Place,
};

use super::super::{
    Config,
    acl::{self, Condition, Method, Named, Test},
    list::List,
    proxy::Proxy,
    rules::Action,
    sample::{Call, Expression, Format, Part},
    seen,
    tree::Statement,
};
use super::{notes::Notes, settings};

pub(super) fn ledger(config: &Config, notes: &Notes, ledger: &mut Ledger) {
    let mut notes_of_samples = Notes::default();
    for proxy in &config.proxies {
        samples(proxy, &mut notes_of_samples);
    }
    for section in &config.tree.sections {
        let kind = section.head.at(0);
        say(ledger, &section.head, [notes, &notes_of_samples], head(config, kind, &section.head));
        for statement in &section.statements {
            let usual = match kind {
                "defaults" | "frontend" | "backend" | "listen" => settings::of_proxy(statement),
                "global" => settings::of_global(statement),
                "userlist" => settings::dropped("passwords are not asked for by ours"),
                "resolvers" => settings::dropped("names are resolved as the system does"),
                "peers" => settings::dropped("there are no stick tables to share"),
                other => settings::dropped(&format!("{other} sections have no counterpart")),
            };
            say(ledger, statement, [notes, &notes_of_samples], usual);
        }
    }
    for (place, said) in &config.tree.directives {
        let question = format!("the condition {said}, as HAProxy 2.6 would; is it so there?");
        ledger.decision(place, question, &["it is", "give only the lines that are read"]);
    }
    for place in &config.tree.skipped {
        ledger.dropped(place, "a false condition above leaves it out");
    }
    for (place, name) in &config.tree.unknown {
        let question = format!("the variable {name} is not known: it is empty here");
        ledger.decision(place, question, &["set it", "leave it so"]);
    }
}

fn say(ledger: &mut Ledger, of: &Statement, notes: [&Notes; 2], usual: Verdict) {
    let mut said = notes.into_iter().flat_map(|notes| notes.of(&of.place)).peekable();
    if said.peek().is_none() || usual != Verdict::Exact {
        ledger.say(&of.place, usual);
    }
    said.for_each(|verdict| ledger.say(&of.place, verdict.clone()));
}

fn head(config: &Config, kind: &str, head: &Statement) -> Verdict {
    match kind {
        "global" | "defaults" => Verdict::Exact,
        "frontend" | "backend" | "listen" => {
            let proxy = config.proxies.iter().find(|proxy| proxy.place == head.place);
            let Some(proxy) = proxy else { return Verdict::Exact };
            if proxy.is_disabled {
                return settings::dropped("it is disabled");
            }
            if proxy.is_backend && proxy.balance.is_empty() && proxy.servers.len() > 1 {
                let how = "no `balance`: roundrobin, as up to 3.2; later versions choose by chance";
                return Verdict::Approximated { how: how.to_owned() };
            }
            if proxy.is_backend && proxy.is_tcp && proxy.servers.is_empty() && !proxy.is_frontend {
                return settings::dropped("it has no servers: nothing is forwarded");
            }
            Verdict::Exact
        }
        other => settings::dropped(&format!("{other} sections have no counterpart")),
    }
}

/// ACLs and rules that hang on what is not asked of a request.
fn samples(proxy: &Proxy, notes: &mut Notes) {
    for (name, tests) in &proxy.acls {
        for test in tests {
            if acl::predefined(name).is_none() {
                of_test(test, &test.place, notes);
            }
        }
    }
    let rules = proxy.tcp_request.iter().flatten().chain(&proxy.http_request);
    for rule in rules.chain(&proxy.redirects).chain(&proxy.http_response) {
        rule.when.iter().for_each(|condition| of_condition(proxy, condition, notes));
        match &rule.action {
            Action::SetVar(_, expression) => of_expression(expression, &rule.place, notes),
            Action::SetHeader(_, format) | Action::AddHeader(_, format) => {
                of_format(format, &rule.place, notes);
            }
            Action::SetVarFormat(_, format) | Action::SetUri(_, format) => {
                of_format(format, &rule.place, notes);
            }
            Action::Redirect(redirect) => of_format(&redirect.to, &rule.place, notes),
            _ => {}
        }
    }
    for switch in proxy.switches.iter().chain(&proxy.use_servers) {
        switch.when.iter().for_each(|condition| of_condition(proxy, condition, notes));
        of_format(&switch.to, &switch.place, notes);
    }
}

fn of_format(format: &Format, place: &Place, notes: &mut Notes) {
    for part in &format.parts {
        if let Part::Sample(expression) = part {
            of_expression(expression, place, notes);
        }
    }
}

fn of_condition(proxy: &Proxy, condition: &Condition, notes: &mut Notes) {
    for literal in condition.any.iter().flatten() {
        match &literal.of {
            Named::Anonymous(test) => of_test(test, &condition.place, notes),
            Named::Acl(name) => {
                for test in proxy.acls.get(name).into_iter().flatten() {
                    of_test(test, &condition.place, notes);
                }
            }
        }
    }
}

fn of_test(test: &Test, place: &Place, notes: &mut Notes) {
    of_expression(&test.expression, place, notes);
    let is_name = test.expression.fetch.name == "req.ssl_sni";
    if is_name && !test.ignores_case && test.expression.converters.is_empty() {
        notes.approximated(place, "names of TLS are compared without case");
    }
    let is_uri = matches!(test.expression.fetch.name.as_str(), "url" | "capture.req.uri");
    if is_uri && test.all_patterns().any(|pattern| is_absolute(test.method, pattern)) {
        let how = "a target with scheme and host (`GET http://…`) is seen as its path with us";
        notes.approximated(place, how);
    }
    test.lists.iter().for_each(|list| of_list(list, place, notes));
}

/// Whether a pattern is about targets that are no paths.
fn is_absolute(method: Method, pattern: &str) -> bool {
    match method {
        Method::Exact | Method::Beginning => !pattern.starts_with('/') && pattern != "*",
        Method::Regex | Method::Part => pattern.contains("://"),
        _ => false,
    }
}

fn of_expression(expression: &Expression, place: &Place, notes: &mut Notes) {
    of_call(&expression.fetch, place, notes);
    for list in expression.converters.iter().filter_map(|call| call.map.as_ref()) {
        of_list(list, place, notes);
    }
}

fn of_list(list: &List, place: &Place, notes: &mut Notes) {
    if let Some(problem) = &list.problem {
        let question = format!("{problem}: {} is taken as empty", list.name);
        notes.decision(place, question, &["give the file", "leave it so"]);
    }
}

fn of_call(call: &Call, place: &Place, notes: &mut Notes) {
    let name = call.name.as_str();
    if acl::canonical(name) == "req.ver" {
        notes.approximated(place, "every request is taken to be of HTTP/1.1");
    } else if name == "nbsrv" {
        let question = "how many servers are well is not asked: all of them are taken to be";
        notes.decision(place, question, &["use backup servers instead", "leave it so"]);
    } else if seen::is_counter(name) {
        let question = format!("{name} is taken as 0: ours counts otherwise");
        notes.decision(place, question, &["limit rates by a TrafficPolicy", "leave it so"]);
    }
}
