//! Constants, variables and addresses that are put together.

use super::{
    edges::{LINE, said, with},
    kinds::{both, front},
    *,
};
use crate::decide::decide;

/// What both do: a status, or the header that is sent on.
fn done(text: &str, url: &str, headers: &[(&str, &str)], name: &str) -> [String; 2] {
    let (config, program, _) = both(text);
    let request = with(url, headers);
    [explain(&config, &request), decide(&program, &request)].map(|answer| match answer.outcome {
        Outcome::Forwarded(to) => {
            let sent = to.headers.into_iter().find(|(known, _)| known == name);
            sent.and_then(|(_, value)| value).unwrap_or_default()
        }
        Outcome::Answered { status, headers, .. } => {
            let location = headers.into_iter().find(|(known, _)| known == "location");
            location.map_or(status.to_string(), |(_, location)| location)
        }
        Outcome::Closed => "closed".to_owned(),
    })
}

const SEGMENT: &str = " http-request set-var(txn.seg) path,field(2,/)\n";

#[test]
fn constants_take_variables_behind_them() {
    let deny = front(&format!(
        "{SEGMENT} http-request deny if {{ str(x-),concat(,txn.seg) -m str x-internal }}"
    ));
    assert_eq!(done(&deny, "a.example/internal", &[], "x-a"), ["403", "403"]);
    assert_eq!(done(&deny, "a.example/other", &[], "x-a"), ["", ""]);
    for (rule, expected) in [
        ("http-request set-header x-a %[str(a-),concat(,txn.seg,-z)]", "a-one-z"),
        ("http-request set-header x-a %[req.hdr(x-b),concat(-)]", ""),
        ("http-request set-header x-a %[path,field(2,/),concat(-,txn.seg)]", "one-one"),
        ("http-request redirect location %[str(/r/),concat(,txn.seg),concat(-,txn.q)]", "/r/one-"),
        ("http-request set-header x-a %[int(3),add(txn.none)]", ""),
    ] {
        let text = front(&format!("{SEGMENT} {rule}"));
        let both = done(&text, "a.example/one/two", &[], "x-a");
        assert_eq!(both, [expected, expected], "{rule}");
    }
    let constant =
        " http-request set-var(txn.l) int(4)\n http-request set-header x-a %[int(3),add(txn.l)]";
    assert_eq!(done(&front(constant), "a.example/", &[], "x-a"), ["7", "7"]);
    let suffix = front(" http-request set-header x-a %[req.hdr(x-b),concat(-$)]");
    assert_eq!(done(&suffix, "a.example/", &[("x-b", "c")], "x-a"), ["c-$", "c-$"]);
}

#[test]
fn sums_with_variables_are_compared() {
    let length = " http-request set-var(txn.l) path,length\n";
    for (test, url) in [
        ("int(10),sub(txn.l) lt 4", "a.example/123456"),
        ("int(10),sub(txn.l) lt 4", "a.example/12345"),
        ("int(2),add(txn.l) 5:6", "a.example/12"),
        ("int(2),add(txn.l) 5:6", "a.example/1234"),
        ("path,length,sub(2) gt 3", "a.example/12345"),
        ("path,length,sub(2) gt 3", "a.example/1234"),
    ] {
        let text = front(&format!("{length} http-request deny if {{ {test} }}"));
        let [explained, decided] = done(&text, url, &[], "x-a");
        assert_eq!(explained, decided, "{test} {url}");
    }
    let text = front(&format!("{length} http-request deny if {{ int(10),sub(txn.l) lt 4 }}"));
    assert_eq!(done(&text, "a.example/123456", &[], "x-a"), ["403", "403"]);
    assert_eq!(done(&text, "a.example/12345", &[], "x-a"), ["", ""]);
    // A number that each request has is not told.
    let told = front(&format!("{length} http-request set-header x-a %[int(3),add(txn.l)]"));
    let (_, _, ledger) = both(&told);
    assert!(said(&ledger, LINE + 1).contains("x-a is removed and not set"));
}

#[test]
fn what_is_joined_to_nothing_is_refused() {
    let text = front(" http-request deny if { req.fhdr(x-b),concat(_c) -m str _c }");
    let (_, _, ledger) = both(&text);
    assert!(said(&ledger, LINE).contains("refused"), "{}", said(&ledger, LINE));
}

#[test]
fn backends_are_named_by_variables() {
    let text = "defaults\n mode http\nfrontend f\n bind 10.0.0.1:80\n http-request set-var(txn.s) path,field(2,/)\n use_backend %[str(b_),concat(,txn.s)]\n default_backend b1\nbackend b1\n server s 10.0.1.1:80\nbackend b_two\n server s 10.0.1.2:80\n";
    let (config, program, ledger) = both(text);
    for (url, endpoint) in [("a.example/two/x", "10.0.1.2:80"), ("a.example/one", "10.0.1.1:80")] {
        let request = super::kinds::get(url);
        for answer in [explain(&config, &request), decide(&program, &request)] {
            assert_eq!(super::kinds::endpoint(&answer.outcome).as_deref(), Some(endpoint), "{url}");
        }
    }
    assert_eq!(said(&ledger, 6), "");
}

/// What both do with a client of this address: a status, or the header that is sent.
fn from_client(lines: &str, client: &str, headers: &[(&str, &str)]) -> [String; 2] {
    let (config, program, _) = both(&front(lines));
    let mut request = with("a.example/", headers);
    request.source = client.parse().unwrap();
    [explain(&config, &request), decide(&program, &request)].map(|answer| match answer.outcome {
        Outcome::Forwarded(to) => {
            let sent = to.headers.into_iter().find(|(known, _)| known == "x-real-ip");
            sent.and_then(|(_, value)| value).unwrap_or_default()
        }
        Outcome::Answered { status, .. } => status.to_string(),
        Outcome::Closed => "closed".to_owned(),
    })
}

#[test]
fn headers_that_are_the_clients_address_are_compared_by_sources() {
    let set = " http-request set-header x-real-ip %[src]\n";
    let variable = " http-request set-var(txn.ip) req.hdr(x-real-ip)\n";
    for (test, is_of) in [
        ("req.hdr(x-real-ip) -m found", ["10.0.0.1", "192.0.2.1", "::1"].as_slice()),
        ("req.hdr(x-real-ip) -m str 10.0.0.1", &["10.0.0.1"]),
        ("req.hdr(x-real-ip) -m beg 10. 192.", &["10.0.0.1", "192.0.2.1"]),
        ("req.fhdr(x-real-ip) -m reg ^10[.]|^1", &[]),
        ("req.hdr_ip(x-real-ip) 10.0.0.0/8 ::/0", &["10.0.0.1", "::1"]),
        ("var(txn.ip) -m str ::1", &["::1"]),
        ("src -m str 192.0.2.1", &["192.0.2.1"]),
    ] {
        let lines = format!("{set}{variable} http-request deny unless {{ {test} }}");
        for client in ["10.0.0.1", "192.0.2.1", "::1"] {
            let [explained, decided] = from_client(&lines, client, &[]);
            let expected = if is_of.contains(&client) { client } else { "403" };
            assert_eq!(decided, expected, "{test} {client}");
            assert!(is_of.is_empty() || explained == decided, "{test} {client}: {explained}");
        }
    }
}

#[test]
fn addresses_are_appended_or_set() {
    let pair = " http-request set-header x-real-ip \"%[req.hdr(x-real-ip)], %[src]\" if { req.hdr(x-real-ip) -m found }\n \
                http-request set-header x-real-ip %[src] unless { req.hdr(x-real-ip) -m found }";
    assert_eq!(from_client(pair, "10.0.0.1", &[]), ["10.0.0.1", "10.0.0.1"]);
    let before = [("x-real-ip", "192.0.2.1")];
    assert_eq!(from_client(pair, "10.0.0.1", &before), ["192.0.2.1, 10.0.0.1"; 2]);
    // What has both in it is no address.
    let lines = format!("{pair}\n http-request deny if {{ req.hdr(x-real-ip) -m str 10.0.0.1 }}");
    assert_eq!(from_client(&lines, "10.0.0.1", &before), ["403", "403"]);
    assert_eq!(from_client(&lines, "10.0.0.2", &[]), ["10.0.0.2", "10.0.0.2"]);
    let (_, _, ledger) = both(&front(&lines));
    assert!(said(&ledger, LINE + 2).contains("is not compared"), "{}", said(&ledger, LINE + 2));
}

#[test]
fn each_value_of_a_header_that_is_set_is_compared() {
    let set = " http-request set-header x-a %[req.fhdr(x-b)]\n";
    for test in ["req.hdr(x-a) -m str evil", "req.hdr(x-a) -m beg evi", "req.hdr(x-a) -m end vil"] {
        let text = front(&format!("{set} http-request deny if {{ {test} }}"));
        for (value, expected) in
            [("good, evil", "403"), ("evil,good", "403"), ("evil", "403"), ("bad evil good", "")]
        {
            let got = done(&text, "a.example/", &[("x-b", value)], "x-c");
            assert_eq!(got, [expected, expected], "{test} {value}");
        }
    }
}

#[test]
fn who_takes_requests_that_are_not_told_apart_is_said() {
    for (default, words) in [(" default_backend b1\n", "they go to b1"), ("", "answered 503")] {
        let text = format!(
            "defaults\n mode http\nfrontend f\n bind 10.0.0.1:80\n use_backend %[path,crc32]\n{default}\
             backend b1\n server s 10.0.1.1:80\n"
        );
        let (_, _, ledger) = both(&text);
        assert!(said(&ledger, LINE).contains(words), "{}", said(&ledger, LINE));
    }
}

#[test]
fn maps_know_the_clients_address() {
    let text = "defaults\n mode http\nfrontend f\n bind 10.0.0.1:80\n http-request set-header x-ip %[src]\n \
                use_backend %[req.hdr(x-ip),map(ips.map,b1)]\n default_backend b2\n\
                backend b1\n server s 10.0.1.1:80\nbackend b2\n server s 10.0.1.2:80\nbackend b3\n server s 10.0.1.3:80\n";
    for text in [text.to_owned(), text.replace("req.hdr(x-ip),map(", "src,map_ip(")] {
        let file = |name: &str| Ok(Source::of(name, "10.0.0.1 b3\n192.0.2.1 b2\n"));
        let outside = Outside { file: &file, variable: &|_| None };
        let config = read(&[Source::of("h.cfg", &text)], &outside).unwrap();
        let (program, ledger) = convert(&config);
        assert_eq!(said(&ledger, 6), "");
        for (client, endpoint) in
            [("10.0.0.1", "10.0.1.3:80"), ("192.0.2.1", "10.0.1.2:80"), ("::1", "10.0.1.1:80")]
        {
            let mut request = super::kinds::get("a.example/");
            request.source = client.parse().unwrap();
            for answer in [explain(&config, &request), decide(&program, &request)] {
                let got = super::kinds::endpoint(&answer.outcome);
                assert_eq!(got.as_deref(), Some(endpoint), "{client}");
            }
        }
    }
}
