//! What HAProxy (2.6.12, asked) does at edges, and what ours makes of it.

use super::{
    kinds::{both, endpoint, front, get},
    *,
};
use crate::{
    decide::decide,
    ledger::{Ledger, Verdict},
    program::{Accepts, Condition, Program, Rule, Text, Then},
};

/// A request with these headers; `*` and the like stand behind a host and a blank.
fn with(url: &str, headers: &[(&str, &str)]) -> Request {
    let mut request = get(url);
    let Kind::Http(http) = &mut request.kind else { unreachable!("it is one of HTTP") };
    http.headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    request
}

fn status(outcome: &Outcome) -> u16 {
    match outcome {
        Outcome::Answered { status, .. } => *status,
        Outcome::Forwarded(_) => 200,
        Outcome::Closed => 0,
    }
}

/// What both answer with.
fn statuses(text: &str, url: &str, headers: &[(&str, &str)]) -> [u16; 2] {
    let (config, program, _) = both(text);
    let request = with(url, headers);
    [explain(&config, &request), decide(&program, &request)].map(|answer| status(&answer.outcome))
}

/// The value of a header that both send.
#[expect(dead_code)]
fn sent(text: &str, url: &str, headers: &[(&str, &str)], name: &str) -> [Option<String>; 2] {
    let (config, program, _) = both(text);
    let request = with(url, headers);
    [explain(&config, &request), decide(&program, &request)].map(|answer| match answer.outcome {
        Outcome::Forwarded(to) => to.headers.into_iter().find(|(known, _)| known == name)?.1,
        other => panic!("{other:?}"),
    })
}

/// All that is said of a line.
fn said(ledger: &Ledger, line: u32) -> String {
    let here = ledger.entries().into_iter().filter(|entry| entry.place.line == line);
    let said = here.map(|entry| match entry.verdict {
        Verdict::Exact => String::new(),
        Verdict::Approximated { how } => format!("approximated: {how}"),
        Verdict::Dropped { meaning } => format!("dropped: {meaning}"),
        Verdict::Decision { question, .. } => format!("decision: {question}"),
    });
    said.collect::<Vec<_>>().join("; ")
}

fn rules(program: &Program) -> &[Rule] {
    match &program.listeners[0].accepts {
        Accepts::Http { rules, .. } => rules,
        Accepts::Tcp { .. } => panic!("it takes connections"),
    }
}

/// The first line of a frontend's own lines.
const LINE: u32 = 5;

#[test]
fn answers_have_no_headers_that_rules_cannot_write() {
    for (arguments, words) in [
        ("hdr Connection close", "connection is written by each proxy itself"),
        ("hdr Content-Length 0", "content-length is written by each proxy itself"),
        ("hdr \"X B\" v", "\"x b\" is no name of a header"),
        ("hdr X-C \"a\\nb\"", "the value of x-c has line feeds"),
        ("hdr X-C a\\nb hdr X-D \" d \"", "the value of x-c has line feeds"),
    ] {
        for action in ["return status 200", "deny", "return status 200 string x"] {
            let text = front(&format!(" http-request {action} {arguments}"));
            let (_, program, ledger) = both(&text);
            let Then::Reply(reply) = &rules(&program)[0].then else { panic!() };
            let own = ["cache-control", "content-type"];
            let written = reply.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
            let written: Vec<_> = written.map(|(n, value)| (n.as_str(), value.as_str())).collect();
            let expected = if arguments.contains("X-D") { vec![("x-d", "d")] } else { vec![] };
            assert_eq!(written, expected, "{text}");
            assert!(said(&ledger, LINE).contains(words), "{}", said(&ledger, LINE));
        }
    }
}

#[test]
fn what_no_path_is_is_no_condition() {
    let deny = |test: &str| front(&format!(" acl a {test}\n http-request deny if a"));
    for (test, path, expected) in [
        ("path health", "h/health", 200),
        ("path favicon.ico /favicon.ico", "h/favicon.ico", 403),
        ("path *", "h/x", 200),
        ("path /c -i /E", "h/c", 403),
        ("path /c -i /E", "h/e", 200),
        ("path_beg api", "h/api", 200),
        ("path_beg api /api", "h/api", 403),
        ("url_beg http://", "h/api", 200),
        ("method \"G T\"", "h/x", 200),
        ("hdr(a\\ b) -m found", "h/x", 200),
        ("hdr_cnt(a\\ b) 0", "h/x", 403),
    ] {
        let text = deny(test);
        assert_eq!(statuses(&text, path, &[]), [expected, expected], "{test} {path}");
        let (_, program, _) = both(&text);
        for rule in rules(&program) {
            let parts = match &rule.when {
                Condition::Any(any) => any.clone(),
                one => vec![one.clone()],
            };
            let is_none = |one: &Condition| match one {
                Condition::Path(Text::Exact(path)) => !path.starts_with('/'),
                _ => false,
            };
            assert!(!parts.iter().any(is_none), "{test}: {:?}", rule.when);
        }
    }
}

#[test]
fn port_0_is_that_of_the_client() {
    let (config, program, _) = both(&front("").replace("10.0.1.1:80", "10.0.1.1:0"));
    let request = get("h/");
    for answer in [explain(&config, &request), decide(&program, &request)] {
        assert_eq!(endpoint(&answer.outcome).as_deref(), Some("10.0.1.1:80"));
    }
}
