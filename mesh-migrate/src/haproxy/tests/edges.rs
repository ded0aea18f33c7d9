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
pub(super) fn with(url: &str, headers: &[(&str, &str)]) -> Request {
    let mut request = get(url);
    let Kind::Http(http) = &mut request.kind else { unreachable!("it is one of HTTP") };
    http.headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    request
}

pub(super) fn status(outcome: &Outcome) -> u16 {
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
fn sent(text: &str, url: &str, headers: &[(&str, &str)], name: &str) -> [Option<String>; 2] {
    let (config, program, _) = both(text);
    let request = with(url, headers);
    [explain(&config, &request), decide(&program, &request)].map(|answer| match answer.outcome {
        Outcome::Forwarded(to) => to.headers.into_iter().find(|(known, _)| known == name)?.1,
        other => panic!("{other:?}"),
    })
}

/// All that is said of a line.
pub(super) fn said(ledger: &Ledger, line: u32) -> String {
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
pub(super) const LINE: u32 = 5;

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

#[test]
fn converters_put_a_keywords_own_comparison_off() {
    for (test, url, expected) in [
        ("path_beg,lower /api", "h/API", 403),
        ("path_beg,lower /api", "h/api/x", 200),
        ("path_beg,lower -m beg /api", "h/API/x", 403),
        ("path_end,lower .php", "h/x.php", 200),
        ("url_beg,lower /api", "h/api/x", 200),
        ("hdr_end(host),lower .end", ".END/", 403),
        ("hdr_end(host),lower .end", "x.end/", 200),
        ("hdr_dom(host),lower end", "x.end/", 200),
        ("hdr_reg(host),lower ^reg", "reg/", 200),
    ] {
        let text = front(&format!(" http-request deny if {{ {test} }}"));
        assert_eq!(statuses(&text, url, &[]), [expected, expected], "{test} {url}");
    }
}

#[test]
fn the_last_value_of_a_header_is_told() {
    let cases: [&[(&str, &str)]; 11] = [
        &[("x-q", "a, b , c")],
        &[("x-q", "a,b"), ("X-Q", "c, d")],
        &[("x-q", "a, \"b, c\"")],
        &[("x-q", "\"a\\\",b\",c")],
        &[("x-q", "\"b, c")],
        &[("x-q", "a\\\"b,c\"")],
        &[("x-q", "a,,")],
        &[("x-q", ",a")],
        &[("x-q", "one")],
        &[],
        &[("x-q", "a\t,\tb")],
    ];
    let last =
        ["c", "d", "\"b, c\"", "c", "\"b, c", "a\\\"b,c\"", "", "a", "one", "", "b"].map(Some);
    let first =
        ["a", "a", "a", "\"a\\\",b\"", "\"b, c", "a\\\"b,c\"", "a", "", "one", "", "a"].map(Some);
    let second = ["b", "b", "\"b, c\"", "c", "", "", "", "a", "", "", "b"].map(Some);
    for (value, expected) in [
        ("req.hdr(x-q)", last),
        ("req.hdr(X-Q,-1)", last),
        ("hdr(x-q,1)", first),
        ("hdr(x-q,2)", second),
    ] {
        let text = front(&format!(" http-request set-header X-Real-IP %[{value}]"));
        let (_, _, ledger) = both(&text);
        assert_eq!(said(&ledger, LINE), "", "{value}");
        for (headers, expected) in cases.iter().zip(expected) {
            // What is set to nothing is not sent by ours.
            let got = sent(&text, "h/", headers, "x-real-ip");
            let got = got.map(|value| value.unwrap_or_default());
            let expected = expected.unwrap_or_default();
            assert_eq!(got, [expected, expected], "{value} {headers:?}");
        }
    }
    let text = front(" http-request set-header X-Ip %[req.hdr(x-q),field(1,:)]");
    let got = sent(&text, "h/", &[("x-q", "1:2, 3:4")], "x-ip");
    assert_eq!(got.map(Option::unwrap_or_default), ["3", "3"]);
}

#[test]
fn variables_have_the_last_value() {
    let text = front(
        " http-request set-var(txn.r) req.hdr(x-role)\n http-request set-var(txn.c) req.cook(c)\n \
         http-request deny deny_status 410 if { var(txn.c) -m str x }\n \
         http-request deny unless { var(txn.r) -m str admin }",
    );
    for (headers, expected) in [
        (&[("x-role", "admin, user")][..], 403),
        (&[("x-role", "user, admin")], 200),
        (&[("x-role", "user"), ("x-role", "admin")], 200),
        (&[], 403),
        (&[("cookie", "c=x; c=y")], 403),
        (&[("cookie", "c=y; c=x")], 410),
    ] {
        assert_eq!(statuses(&text, "h/", headers), [expected, expected], "{headers:?}");
    }
}

#[test]
fn values_of_headers_are_numbers() {
    let values = ["6", "5", "4", "2", "0", "abc", "12abc", "6, 1", "1, 6", " 7", "-7", "", "07"];
    let more = ["99999999999999999999", "4x", "2 ", "1e3", "6.5", "3, x", "-1, 9"];
    for fetch in ["hdr(x-n) -m int", "req.hdr_val(x-n)"] {
        for test in ["gt 5", "lt 3", "4", "ge 0", "le 4", "0:3", "2:5 9"] {
            let text = front(&format!(" http-request deny if {{ {fetch} {test} }}"));
            let (_, _, ledger) = both(&text);
            assert_eq!(said(&ledger, LINE), "");
            for value in values.iter().chain(&more) {
                let [a, b] = statuses(&text, "h/", &[("x-n", value)]);
                assert_eq!(a, b, "{fetch} {test}: {value:?}");
            }
            let [a, b] = statuses(&text, "h/", &[]);
            assert_eq!((a, b), (200, 200), "{fetch} {test}");
        }
    }
    let text =
        front(" http-request deny deny_status 413 if { hdr(content-length) -m int gt 5000 }");
    assert_eq!(statuses(&text, "h/", &[("content-length", "5001")]), [413, 413]);
    assert_eq!(statuses(&text, "h/", &[("content-length", "5000")]), [200, 200]);
    assert_eq!(statuses(&text, "h/", &[]), [200, 200]);
}

#[test]
fn cookies_that_come_twice() {
    let text = front(
        " http-request deny if { cook(n) -m reg ^(b|c)$ }\n \
         http-request deny deny_status 410 if { cook(n) -m reg x.z }\n \
         http-request deny deny_status 411 if { cook_len(n) gt 6 }\n \
         http-request set-header X-C <%[req.cook(n)]>",
    );
    for (cookie, expected, value) in [
        ("n=a; n=b", 403, ""),
        ("n=b; n=a", 403, ""),
        ("n=a; n=xyz; n=c2", 410, ""),
        ("n=a; n=d", 200, "<d>"),
        ("n = d ; m=c", 200, "<d>"),
        ("n=bb", 200, "<bb>"),
        ("n=1; n=1234567; n=1", 411, ""),
        ("m=b; n=x; m=z", 200, "<x>"),
        ("n=\"q;r\"; m=1", 200, "<\"q;r\">"),
    ] {
        let headers = [("cookie", cookie)];
        assert_eq!(statuses(&text, "h/", &headers), [expected, expected], "{cookie}");
        if expected == 200 {
            let got = sent(&text, "h/", &headers, "x-c").map(Option::unwrap_or_default);
            assert_eq!(got, [value, value], "{cookie}");
        }
    }
}

#[test]
fn a_question_mark_stands_before_a_query() {
    let text = front(" http-request redirect location https://x/y%[query,regsub(^,?)]");
    let (config, program, ledger) = both(&text);
    assert_eq!(said(&ledger, LINE), "");
    for (url, expected) in [("h/a", "https://x/y"), ("h/a?b=1", "https://x/y?b=1")] {
        let request = get(url);
        for answer in [explain(&config, &request), decide(&program, &request)] {
            let Outcome::Answered { headers, .. } = answer.outcome else { panic!() };
            assert_eq!(headers.last().map(|(_, value)| value.as_str()), Some(expected), "{url}");
        }
    }
}

#[test]
fn what_is_not_to_be_repeated_is_not() {
    let retries = |lines: &str| {
        let backend = format!("backend b\n retries 2\n retry-on 503\n{lines}\n");
        let (_, program, ledger) =
            both(&front("").replace("backend b\n s", &format!("{backend} s")));
        let rules = rules(&program).iter().filter_map(|rule| match &rule.then {
            Then::Forward(forward) => Some((rule.when.clone(), forward.retry.is_some())),
            Then::Reply(_) => None,
        });
        (rules.collect::<Vec<_>>(), said(&ledger, LINE + 5))
    };
    let post = Condition::Method(vec!["POST".to_owned()]);
    for (line, expected, words) in [
        ("", vec![(Condition::Always, true)], ""),
        (" http-request disable-l7-retry", vec![(Condition::Always, false)], ""),
        (
            " http-request disable-l7-retry if METH_POST",
            vec![(post, false), (Condition::Always, true)],
            "",
        ),
        (
            " http-request disable-l7-retry if { lua.x -m found }",
            vec![(Condition::Always, false)],
            "nothing that this line may be about is repeated",
        ),
    ] {
        let (rules, told) = retries(line);
        assert_eq!(rules, expected, "{line}");
        assert!(told.contains(words) && told.is_empty() == words.is_empty(), "{line}: {told}");
    }
}

#[test]
fn headers_that_nothing_looks_at_split_no_rules() {
    let mut lines = String::from(" capture request header User-Agent len 64\n");
    lines += " http-request deny if { path /hdr/my_hdr }\n";
    lines += " log-format %[capture.foo]%[var(txn.log0)]%[hdr(x-0)]\n";
    lines += " http-request return status 200 hdr X-Answer 1 if { path /x }\n";
    for n in 0..20 {
        lines += &format!(" http-request set-header X-{n} a if {{ path_beg /{n} }}\n");
        lines += &format!(" http-request add-header X-{n} b if {{ path_end {n} }}\n");
        lines += &format!(" http-request set-var(txn.log{n}) str(a) if {{ path_sub {n} }}\n");
    }
    lines +=
        " http-request del-header X-3\n http-request set-header User-Agent a if { path_beg /1 }";
    let text = front(&lines);
    let (config, program, ledger) = both(&text);
    // Two answers, and what goes on.
    assert_eq!(rules(&program).len(), 3);
    let told = ledger.entries().into_iter().filter(|entry| {
        matches!(entry.verdict, Verdict::Decision { .. } | Verdict::Approximated { .. })
    });
    assert_eq!(told.count(), 0);
    for url in ["h/1", "h/13", "h/3", "h/x", "h/7/7", "h/19/5"] {
        let request = get(url);
        let headers = [explain(&config, &request), decide(&program, &request)].map(|answer| {
            let Outcome::Forwarded(to) = answer.outcome else { return Vec::new() };
            to.headers.into_iter().filter(|(_, value)| value.is_some()).collect::<Vec<_>>()
        });
        assert_eq!(headers[0], headers[1], "{url}");
    }
}

#[test]
fn blanks_at_the_end_of_patterns_count() {
    let text = front(
        " http-request deny if { path -f paths }\n http-request deny if { hdr(x-l) -f values }\n \
         http-request deny deny_status 410 if { hdr(host),map(map) -m str be }",
    );
    let file = |name: &str| {
        let text = match name {
            "paths" => "/trail \n /lead\n/cr\r\n",
            "values" => "one \n  two\n\tthree\t\n",
            _ => "k1 be \nk2\tbe\t\n",
        };
        Ok(Source::of(name, text))
    };
    let config = read(&[Source::of("h.cfg", &text)], &Outside { file: &file, variable: &|_| None });
    let config = config.unwrap();
    let (program, _) = convert(&config);
    for (url, value, expected) in [
        ("h/trail", "", 200),
        ("h/lead", "", 403),
        ("h/cr", "", 403),
        ("h/", "one", 200),
        ("h/", "one ,x", 200),
        ("h/", "x, two", 403),
        ("h/", "three", 200),
        ("k1/", "", 410),
        ("k2/", "", 410),
    ] {
        let request = with(url, &[("x-l", value)]);
        let got = [explain(&config, &request), decide(&program, &request)];
        assert_eq!(got.map(|answer| status(&answer.outcome)), [expected; 2], "{url} {value}");
    }
}

#[test]
fn the_line_of_the_backend_says_who_is_told_of_clients() {
    let text = |front_line: &str, line: &str| {
        front(front_line).replace(" server s", &format!(" {line}\n server s"))
    };
    for (front_line, line, expected) in [
        (" option forwardfor", "option forwardfor header X-Other", [None, Some("10.0.0.9")]),
        (" option forwardfor header X-Other", "option forwardfor", [Some("10.0.0.9"), None]),
        (" option forwardfor", "option forwardfor", [Some("10.0.0.9"), None]),
        (" option forwardfor header X-Other", "balance source", [None, Some("10.0.0.9")]),
    ] {
        let text = text(front_line, line);
        for (name, expected) in ["x-forwarded-for", "x-other"].into_iter().zip(expected) {
            let (config, program, _) = both(&text);
            let request = get("h/");
            for answer in [explain(&config, &request), decide(&program, &request)] {
                let Outcome::Forwarded(to) = answer.outcome else { panic!() };
                let got = to.headers.into_iter().find(|(known, _)| known == name);
                let got = got.and_then(|(_, value)| value);
                assert_eq!(got.as_deref(), expected, "{front_line} {line} {name}");
            }
        }
    }
}

#[test]
fn refusals_with_headers_have_no_page() {
    let text = front(" http-request deny deny_status 429 hdr Retry-After 10");
    let (config, program, _) = both(&text);
    let request = get("h/");
    for answer in [explain(&config, &request), decide(&program, &request)] {
        let headers = vec![("retry-after".to_owned(), "10".to_owned())];
        assert_eq!(answer.outcome, Outcome::Answered { status: 429, headers, body: None });
    }
}

#[test]
fn names_are_in_lower_case_where_a_pattern_removes_them() {
    let config = |line: &str| from(&[("h.cfg", &front(line))]).unwrap();
    for (line, is_there) in [
        (" http-request del-header ^X-(Org|Section)$ -m reg", true),
        (" http-request del-header ^x-(org|section)$ -m reg", false),
        (" http-request del-header X-Or -m beg", false),
    ] {
        let answer = explain(&config(line), &with("h/", &[("X-Org", "1")]));
        let Outcome::Forwarded(to) = answer.outcome else { panic!() };
        let is_removed = to.headers.contains(&("x-org".to_owned(), None));
        assert_eq!(!is_removed, is_there, "{line}");
    }
}

#[test]
fn groups_that_are_not_there_are_nothing() {
    for (line, name, expected) in [
        (r#" http-request set-header X-A '%[path,regsub("^/(a)","\2x\1")]'"#, "x-a", "xab"),
        (r#" http-request set-header X-A '%[path,regsub("^/a","\1x")]'"#, "x-a", "xb"),
    ] {
        let got = sent(&front(line), "h/ab", &[], name);
        assert_eq!(got.map(Option::unwrap_or_default), [expected, expected], "{line}");
    }
    for line in [
        r" http-request replace-path /a(.*) /\\1\\2",
        r#" http-request set-path '%[path,regsub("^/a","/\1")]'"#,
    ] {
        let (config, program, _) = both(&front(line));
        for answer in [explain(&config, &get("h/ab")), decide(&program, &get("h/ab"))] {
            let Outcome::Forwarded(to) = answer.outcome else { panic!() };
            assert_eq!(to.target.as_deref(), Some("/b"), "{line}");
        }
        let Then::Forward(forward) = &rules(&program)[0].then else { panic!() };
        let path = format!("{:?}", forward.path);
        assert!(
            !path.contains("{2}") && (line.contains("(.*)") || !path.contains("{1}")),
            "{path}"
        );
    }
}

#[test]
fn dispatch_and_passwords_of_statistics() {
    let text = front("").replace(" server s 10.0.1.1:80", " dispatch 10.0.1.9:80");
    let (config, program, ledger) = both(&text);
    for answer in [explain(&config, &get("h/")), decide(&program, &get("h/"))] {
        assert_eq!(endpoint(&answer.outcome).as_deref(), Some("10.0.1.9:80"));
    }
    assert_eq!(said(&ledger, LINE + 3), "");
    let config = from(&[("h.cfg", &front(" stats uri /st\n stats auth a:b"))]).unwrap();
    assert_eq!(status(&explain(&config, &get("h/st")).outcome), 401);
    let known = with("h/st", &[("authorization", "Basic YTpi")]);
    assert_eq!(status(&explain(&config, &known).outcome), 200);
}

#[test]
fn what_asks_for_no_single_header_keeps_everybody_out() {
    for condition in
        ["req.hdrs -m reg (?i)jndi:", "req.fhdr_cnt gt 100", "req.hdr_names -m sub x-evil"]
    {
        let text = front(&format!(" http-request deny if {{ {condition} }}"));
        let (_, program, ledger) = both(&text);
        let answer = decide(&program, &get("h/"));
        assert_eq!(status(&answer.outcome), 403, "{condition}");
        assert!(said(&ledger, 5).contains("decision: "), "{condition}: {}", said(&ledger, 5));
    }
}

#[test]
fn a_header_that_is_looked_at_in_quotes_is_looked_at() {
    let text = front(
        " http-request del-header X-Role unless { src 10.0.0.0/8 }\n \
         http-request deny if { req.hdr('X-Role') -m str admin }",
    );
    let admin =
        |source: [u8; 4]| Request { source: source.into(), ..with("h/", &[("x-role", "admin")]) };
    let (config, program, _) = both(&text);
    for (source, expected) in [([10, 0, 0, 9], 403), ([192, 0, 2, 1], 200)] {
        let request = admin(source);
        let both = [explain(&config, &request), decide(&program, &request)];
        assert_eq!(both.map(|answer| status(&answer.outcome)), [expected; 2], "{source:?}");
    }
}

#[test]
fn numbers_of_headers_are_those_that_rules_have_left() {
    let text = front(
        " http-request del-header X-Level\n \
         http-request deny unless { req.hdr_val(X-Level) gt 5 }",
    );
    assert_eq!(statuses(&text, "h/", &[("x-level", "9")]), [403; 2]);
    let set = text.replace("del-header X-Level", "set-header X-Level 7");
    assert_eq!(statuses(&set, "h/", &[("x-level", "1")]), [200; 2]);
}

#[test]
fn a_header_is_added_once_whichever_condition_holds() {
    let text = front(
        " acl inside src 10.0.0.0/8\n acl inside hdr(x-int) -m found\n \
         http-request add-header X-Tag v if inside",
    );
    let value = || Some("v".to_owned());
    assert_eq!(sent(&text, "h/", &[("x-int", "1")], "x-tag"), [value(), value()]);
    let (_, program, _) = both(&text);
    let of = |rule: &Rule| match &rule.then {
        Then::Forward(forward) => forward.sometimes.len(),
        Then::Reply(_) => 0,
    };
    assert!(rules(&program).iter().all(|rule| of(rule) == 0), "it would be added for each");
}

#[test]
fn more_conditions_than_a_rule_has_room_for_split_it() {
    let paths: String = (0..100).map(|n| format!(" /p{n}/")).collect();
    let text = front(&format!(" http-request del-header X-Internal if {{ path_beg{paths} }}"));
    for (path, expected) in [("h/p99/x", None), ("h/q", Some("1".to_owned()))] {
        let [theirs, ours] = sent_or_kept(&text, path, "x-internal");
        assert_eq!(theirs, expected, "{path}");
        assert_eq!(ours, expected, "{path}");
    }
}

/// What of a header goes on that is sent with `1`.
fn sent_or_kept(text: &str, url: &str, name: &str) -> [Option<String>; 2] {
    let (config, program, _) = both(text);
    let request = with(url, &[(name, "1")]);
    [explain(&config, &request), decide(&program, &request)].map(|answer| match answer.outcome {
        Outcome::Forwarded(to) => match to.headers.into_iter().find(|(known, _)| known == name) {
            Some((_, value)) => value,
            None => Some("1".to_owned()),
        },
        other => panic!("{other:?}"),
    })
}
