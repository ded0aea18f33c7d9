//! What is said of lines that ours does otherwise, and what comes with answers.

use super::{
    edges::{LINE, said, with},
    kinds::{both, endpoint, front},
    *,
};
use crate::decide::decide;

#[test]
fn closed_connections_are_told() {
    for (option, words) in [
        ("http-server-close", "connections to applications are kept"),
        ("httpclose", "connections of clients and those to applications are kept"),
    ] {
        let (_, _, ledger) = both(&front(&format!(" option {option}")));
        assert!(said(&ledger, LINE).contains(words), "{}", said(&ledger, LINE));
    }
}

#[test]
fn redirects_that_are_not_for_good_are_not_kept() {
    for kind in ["location /x", "location /x%[path]", "prefix https://b.example", "scheme https"] {
        for (code, is_kept) in [(301, true), (302, false), (303, false), (307, false), (308, true)]
        {
            let text = front(&format!(" http-request redirect {kind} code {code}"));
            let (config, program, _) = both(&text);
            let request = with("a.example/a", &[]);
            for answer in [explain(&config, &request), decide(&program, &request)] {
                let Outcome::Answered { status, headers, .. } = answer.outcome else {
                    panic!("{kind}");
                };
                let cached = headers.iter().any(|(n, v)| n == "cache-control" && v == "no-cache");
                assert_eq!((status, cached), (code, !is_kept), "{kind}");
            }
        }
    }
}

#[test]
fn a_monitor_that_fails_has_a_page() {
    let (config, program, _) =
        both(&front(" monitor-uri /up\n monitor fail if { nbsrv(none) lt 1 }"));
    let request = with("a.example/up", &[]);
    let answers = [explain(&config, &request), decide(&program, &request)];
    let [
        Outcome::Answered { status: 503, body: Some(one), .. },
        Outcome::Answered { status: 503, body: Some(other), .. },
    ] = answers.map(|answer| answer.outcome)
    else {
        panic!("no pages");
    };
    assert!(one == other && one.contains("No server is available"), "{other}");
}

#[test]
fn who_refuses_everybody_says_so() {
    let text = front(
        " acl off env(V) -m str on\n http-request deny if off\n use_backend b if { path /x }",
    );
    let (_, program, ledger) = both(&text);
    let answer = decide(&program, &with("a.example/", &[]));
    assert!(matches!(answer.outcome, Outcome::Answered { status: 403, .. }));
    let told = said(&ledger, LINE + 1);
    assert!(told.contains("environment of HAProxy (V)"), "{told}");
    assert!(told.contains("all requests that come to this line are refused"), "{told}");
    assert!(said(&ledger, LINE + 2).contains("whom line 6 refuses"));
    let some = front(" http-request deny if { path /a } { env(V) -m str on }");
    let (_, _, ledger) = both(&some);
    assert!(!said(&ledger, LINE).contains("all requests"), "{}", said(&ledger, LINE));
}

#[test]
fn paths_that_are_not_rewritten_go_as_they_did() {
    let text = "defaults\n mode http\nfrontend f\n bind 10.0.0.1:80\n acl www hdr(host) a.example\n \
                http-request set-path /portal%[path] if www { path_beg /my/ }\n \
                http-request replace-path ^/~([a-z0-9]+)/?(.*) /people/\\1/\\2 if www\n \
                http-request set-header x-user %[path,field(3,/)] if { path_beg /people/ }\n \
                use_backend people if { path_beg /people/ } www\n \
                use_backend portal if www { path_beg /portal }\n default_backend b\n\
                backend b\n server s 10.0.1.1:80\nbackend people\n server s 10.0.1.2:80\n\
                backend portal\n server s 10.0.1.3:80\n";
    let (config, program, ledger) = both(text);
    for path in ["/my/x", "/portal/x", "/~joe/x", "/people/joe/x", "/other"] {
        let request = with(&format!("a.example{path}"), &[]);
        let [a, b] =
            [explain(&config, &request), decide(&program, &request)].map(|answer| answer.outcome);
        assert_eq!(endpoint(&a), endpoint(&b), "{path}");
        let (Outcome::Forwarded(a), Outcome::Forwarded(b)) = (a, b) else { panic!("{path}") };
        assert_eq!(a.target, b.target, "{path}");
    }
    assert_eq!(said(&ledger, 10), "");
}

#[test]
fn a_prefix_may_be_what_the_request_says() {
    let text = front(
        " http-request set-header Host b.example if { hdr(host) a.example }\n \
         http-request redirect prefix https://%[req.hdr(host)] if { path_beg /r }",
    );
    let (config, program, ledger) = both(&text);
    for (host, expected) in [("a.example", "https://b.example/r?x"), ("c", "https://c/r?x")] {
        let request = with(&format!("{host}/r?x"), &[]);
        for answer in [explain(&config, &request), decide(&program, &request)] {
            let Outcome::Answered { status: 302, headers, .. } = answer.outcome else { panic!() };
            assert_eq!(headers.last().map(|(_, to)| to.as_str()), Some(expected), "{host}");
        }
    }
    assert_eq!(said(&ledger, LINE + 1), "");
}
