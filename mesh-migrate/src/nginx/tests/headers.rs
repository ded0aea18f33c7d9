//! Headers of requests and answers that rules of ours can have, and those they cannot.

use super::{config, convert, decide, get};
use crate::{
    ledger::{Ledger, Verdict},
    objects::headers::is_ours,
    program::{Accepts, Forward, Program, Reply, Then},
    request::Outcome,
};

fn converted(text: &str) -> (Program, Ledger) {
    let text = format!("http {{ server {{ listen 10.20.0.4:80;\n{text}\n}} }}");
    convert(&config(&text)).unwrap()
}

fn thens(program: &Program) -> Vec<&Then> {
    let Accepts::Http { rules, .. } = &program.listeners[0].accepts else { panic!() };
    rules.iter().map(|rule| &rule.then).collect()
}

/// Names and values of all headers that rules change.
fn changed(program: &Program) -> Vec<(String, String)> {
    let of_forward = |forward: &Forward| {
        let both = [&forward.set, &forward.set_answer, &forward.add_answer].into_iter().flatten();
        let removed = forward.remove.iter().chain(&forward.remove_answer);
        let told = forward.tell.iter().map(|(name, said)| (name.clone(), format!("{said:?}")));
        let removed = removed.map(|name| (name.clone(), String::new()));
        both.cloned().chain(told).chain(removed).collect()
    };
    let of_reply = |reply: &Reply| {
        let told = reply.told.iter().map(|(name, _)| (name.clone(), String::new()));
        reply.headers.iter().cloned().chain(told).collect()
    };
    let of = |then: &Then| -> Vec<(String, String)> {
        match then {
            Then::Forward(forward) => of_forward(forward),
            Then::Reply(reply) => of_reply(reply),
        }
    };
    thens(program).into_iter().flat_map(of).collect()
}

/// A plan with one of these is none that our proxy starts with.
#[test]
fn what_no_rule_can_change_is_left_out_and_told() {
    for line in [
        "add_header Content-Length 0;",
        "add_header Connection close;",
        "add_header Transfer-Encoding chunked always;",
        "add_header Trailer x;",
        "add_header Isthmus-Peer $host;",
        "add_header 'X A' b;",
        "add_header X-A 'b\nc';",
        "add_header X-A 'b\n$host';",
        "add_header X-A bücher;",
        "proxy_hide_header Content-Length;",
        "proxy_hide_header 'X A';",
        "proxy_set_header Trailer x;",
        "proxy_set_header X-Isthmus-Peer $host;",
        "proxy_set_header 'X A' b;",
        "proxy_set_header X-A 'b\nc';",
        "proxy_set_header X-A 'b\n$host';",
    ] {
        let text = format!(
            "{line}\nif ($request_method = OPTIONS) {{ return 204; }}\n\
             location / {{ proxy_pass http://10.20.1.1; }}\nlocation /to {{ return 301 /x; }}"
        );
        let (program, ledger) = converted(&text);
        for (name, value) in changed(&program) {
            assert!(!is_ours(&name) && !name.contains(' '), "{line}: {name}");
            assert!(value.is_ascii() && !value.contains(['\n']), "{line}: {value}");
            assert!(!value.contains(r"\n"), "{line}: {value}");
        }
        let said = ledger.entries().into_iter().filter(|entry| entry.place.line == 2);
        let said: Vec<Verdict> = said.map(|entry| entry.verdict).collect();
        assert!(!said.is_empty() && !said.contains(&Verdict::Exact), "{line}: {said:?}");
    }
}

/// The application may not set what the legacy proxy takes from requests.
#[test]
fn a_value_that_is_left_out_is_not_the_clients() {
    let text = "location / { proxy_set_header X-A bücher; proxy_pass http://10.20.1.1; }";
    let (program, _) = converted(text);
    let Then::Forward(forward) = thens(&program)[0] else { panic!() };
    assert_eq!(forward.remove, ["x-a"]);
}

#[test]
fn what_is_hidden_and_added_is_added() {
    let hidden = "proxy_hide_header X-Frame-Options; proxy_hide_header X-B; \
        add_header x-frame-options SAMEORIGIN; add_header X-Frame-Options two always; \
        add_header X-C $scheme; add_header ETag ''; add_header Last-Modified now; \
        location / { proxy_pass http://10.20.1.1; }";
    let (program, _) = converted(hidden);
    let Then::Forward(forward) = thens(&program)[0] else { panic!() };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut set = forward.set_answer.clone();
    set.sort();
    let expected = [
        pair("last-modified", "now"),
        pair("x-frame-options", "SAMEORIGIN"),
        pair("x-frame-options", "two"),
    ];
    assert_eq!(set, expected);
    assert_eq!(forward.add_answer, [pair("x-c", "http")]);
    assert_eq!(forward.remove_answer, ["x-b", "etag"]);
}

/// What nginx' manual has for other origins.
#[test]
fn preflights_are_answered() {
    let text = "location / { if ($request_method = OPTIONS) { \
        add_header Access-Control-Allow-Origin * always; add_header Content-Length 0; \
        add_header Content-Type text/plain; return 204; } proxy_pass http://10.20.1.1; }";
    let (program, _) = converted(text);
    let mut request = get("10.20.0.4:80", "a", "/");
    let crate::request::Kind::Http(http) = &mut request.kind else { panic!() };
    http.method = "OPTIONS".into();
    let Outcome::Answered { status, headers, .. } = decide(&program, &request).outcome else {
        panic!()
    };
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((status, names), (204, vec!["access-control-allow-origin", "content-type"]));
}

/// `add_header` is of answers of nginx' own, too, where their status is one of its list.
#[test]
fn headers_of_own_answers() {
    let text = "events {}\nhttp {\nadd_header X-A 1;\nserver {\nlisten 10.0.0.1:80;\n\
        location /ok { add_header X-B 2; return 200 ok; }\n\
        location /gone { return 410; }\n\
        location /json { default_type application/json; return 200 [1]; }\n\
        location /always { add_header X-C 3 always; return 410; }\n\
        location /d/ { add_header X-D 4; proxy_pass http://10.0.0.2:80; }\n\
        location /r { rewrite ^ /ok permanent; }\n}\n}\n";
    let (program, _) = convert(&config(text)).unwrap();
    for (path, status, headers) in [
        ("/ok", 200, vec![("x-b", "2")]),
        ("/gone", 410, vec![]),
        ("/json", 200, vec![("content-type", "application/json"), ("x-a", "1")]),
        ("/always", 410, vec![("x-c", "3")]),
        ("/d", 301, vec![("x-d", "4")]),
        ("/r", 301, vec![("x-a", "1")]),
    ] {
        let answer = decide(&program, &get("10.0.0.1:80", "a.example", path));
        let Outcome::Answered { status: got, headers: said, .. } = answer.outcome else {
            panic!("{path}");
        };
        let said: Vec<(&str, &str)> = said
            .iter()
            .filter(|(name, _)| name != "location")
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!((got, said), (status, headers), "{path}");
    }
}
