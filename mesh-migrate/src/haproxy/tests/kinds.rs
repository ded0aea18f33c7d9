//! What HAProxy does, kind by kind, where the generator does not write it.

use super::*;
use crate::{
    decide::decide,
    ledger::{Ledger, Verdict},
    program::{Accepts, Balance, Forwarded, Key, Program, Said, Then},
};

const TCP: &str = "
defaults
  mode tcp
frontend f
  bind 10.0.0.1:443
  tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend a if { req.ssl_sni -i a.example www.a.example }
  use_backend b if { req_ssl_sni -m end .b.example }
  default_backend c
backend a
  server s 10.0.1.1:443
backend b
  server s 10.0.1.2:443
backend c
  server s 10.0.1.3:443
";

pub(super) fn both(text: &str) -> (Config, Program, Ledger) {
    let config = from(&[("h.cfg", text)]).unwrap();
    let (program, ledger) = convert(&config);
    (config, program, ledger)
}

pub(super) fn endpoint(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Forwarded(to) => to.endpoints.first().map(|(endpoint, _)| match endpoint {
            Endpoint::Address(address) => address.to_string(),
            Endpoint::Name(name) => name.clone(),
        }),
        Outcome::Answered { .. } | Outcome::Closed => None,
    }
}

#[test]
fn connections_go_by_server_name() {
    let (config, program, ledger) = both(TCP);
    let table = [
        (Some("A.example"), "10.0.1.1:443"),
        (Some("www.a.example"), "10.0.1.1:443"),
        (Some("x.b.example"), "10.0.1.2:443"),
        (Some("b.example"), "10.0.1.3:443"),
        (None, "10.0.1.3:443"),
    ];
    for (name, expected) in table {
        let kind = Kind::Connection { server_name: name.map(str::to_owned) };
        let source = IpAddr::from([10, 0, 0, 9]);
        let request = Request { listener: Some("10.0.0.1:443".into()), source, kind };
        for answer in [explain(&config, &request), decide(&program, &request)] {
            assert_eq!(endpoint(&answer.outcome).as_deref(), Some(expected), "{name:?}");
        }
    }
    assert!(ledger.entries().iter().all(|e| !matches!(e.verdict, Verdict::Decision { .. })));
}

pub(super) fn get(url: &str) -> Request {
    let (host, path) = url.split_at(url.find('/').unwrap());
    Request {
        listener: None,
        source: IpAddr::from([10, 0, 0, 9]),
        kind: Kind::Http(Http {
            method: "GET".into(),
            host: Some(host.into()),
            target: path.into(),
            headers: Vec::new(),
            is_http10: false,
        }),
    }
}

/// A frontend with these lines, and a backend that takes the rest.
pub(super) fn front(lines: &str) -> String {
    format!(
        "defaults\n mode http\nfrontend f\n bind 10.0.0.1:80\n{lines}\n default_backend b\n\
         backend b\n server s 10.0.1.1:80\n"
    )
}

#[test]
fn conditional_blocks_choose_lines() {
    let text = ".if defined(HOST) && !streq(\"$HOST\",x)\nglobal\n.else\nnonsense 'open\n.endif\n\
                defaults\n mode http\nfrontend f\n bind \"${HOST}:80\"\n";
    let (config, program, ledger) = both(text);
    assert_eq!(program.listeners[0].addresses, ["10.0.0.1:80".parse().unwrap()]);
    assert_eq!(ledger.silent_lines(&Source::of("h.cfg", text), is_blank), Vec::<u32>::new());
    let answer = explain(&config, &get("h/")).outcome;
    assert!(matches!(answer, Outcome::Answered { status: 503, .. }));
}

#[test]
fn several_files_are_one_configuration() {
    let one = "defaults d\n mode http\nfrontend f from d\n bind :80\n default_backend b\n";
    let two = "backend b from d\n server s 10.0.1.1:80\n";
    let config = from(&[("1.cfg", one), ("2.cfg", two)]).unwrap();
    let answer = explain(&config, &get("h/"));
    assert_eq!(endpoint(&answer.outcome).as_deref(), Some("10.0.1.1:80"));
    assert!(answer.why.iter().any(|s| s.place.as_ref().is_some_and(|p| &*p.file == "2.cfg")));
    let open = ".if true\ndefaults\n";
    assert!(from(&[("1.cfg", open), ("2.cfg", ".endif\n")]).is_err());
}

#[test]
fn what_cannot_be_asked_refuses_all() {
    let lines = " http-request auth if { path_beg /a } !{ http_auth(u) }\n \
                 http-request deny if { path_beg /b } { lua.check -m found }\n \
                 use_backend b if { lua.check -m found }";
    let (_, program, ledger) = both(&front(lines));
    for (url, status) in [("h/a", Some(401)), ("h/b", Some(403)), ("h/c", None)] {
        let status_of = match decide(&program, &get(url)).outcome {
            Outcome::Answered { status, .. } => Some(status),
            Outcome::Forwarded(_) | Outcome::Closed => None,
        };
        assert_eq!(status_of, status, "{url}");
    }
    for line in 5..=7 {
        let is_asked = |e: &crate::ledger::Entry| {
            e.place.line == line && matches!(e.verdict, Verdict::Decision { .. })
        };
        assert!(ledger.entries().iter().any(is_asked), "{line}");
    }
}

#[test]
fn a_missing_map_is_told() {
    let lines = " use_backend %[req.hdr(host),map_str(no.map,b)]";
    let (_, _, ledger) = both(&front(lines));
    let told = ledger.entries().into_iter().any(|entry| match entry.verdict {
        Verdict::Decision { question, .. } => question.contains("no.map"),
        _ => false,
    });
    assert!(told);
}

#[test]
fn addresses_of_clients_are_passed_on() {
    let client = |name: &str| vec![(name.to_owned(), Said::Client)];
    let table = [
        (" option forwardfor", vec![], client("x-forwarded-for")),
        (" http-request set-header X-Forwarded-For %[src]", client("x-forwarded-for"), vec![]),
        (" http-request set-header X-Forwarded-For %ci", client("x-forwarded-for"), vec![]),
        (
            " http-request del-header X-Forwarded-For\n option forwardfor",
            client("x-forwarded-for"),
            vec![],
        ),
        (" option forwardfor header X-Client", client("x-client"), vec![]),
        ("", vec![], vec![]),
    ];
    for (lines, told, more) in table {
        let (_, program, _) = both(&front(lines));
        let Accepts::Http { rules, forwarded: Forwarded::Keep, .. } = &program.listeners[0].accepts
        else {
            panic!()
        };
        let Then::Forward(forward) = &rules[0].then else { panic!() };
        assert_eq!((&forward.tell, &forward.tell_more), (&told, &more), "{lines}");
    }
}

/// What of the request is compared and sent is the same with both, line by line.
#[test]
fn texts_of_requests_are_changed_and_compared() {
    let text = front(
        " option httplog\n http-request set-var(req.p) path\n \
         http-request set-var(req.base) hdr(host),field(1,:),lower,concat(\\#,req.p)\n \
         http-request return status 404 if { var(req.base) -m reg ^x[.]example\\#/(a|b)/ }\n \
         http-request deny deny_status 410 if { url /old }\n \
         http-request deny if { query -m found } { query -m sub ab }\n \
         http-request deny deny_status 429 if { base -m reg ^[^/]+[.]wild(:80)?/.*x$ }\n \
         http-request redirect location https://%[hdr(host)]/n?p=%[path,field(2,/)] if { path_beg /go }\n \
         http-request return status 200 content-type a/b lf-string %[path,word(-1,/)] if { path_end /w }\n \
         http-request set-header X-T %[req.hdr(host),field(1,.),regsub(^c,k)]\n \
         http-request add-header X-A <%[url_param(q)]%[req.cook(s)]>\n \
         http-request set-path /p%[path,bytes(1)] if { path_len gt 6 }\n \
         http-request deny if { path_end .bad }",
    );
    let (config, program, ledger) = both(&text);
    let targets = [
        "/a/1",
        "/old",
        "/old?x",
        "/z?",
        "/z?xab",
        "/z?q=1&q=2",
        "/zx",
        "/go/a",
        "/1/w",
        "/w",
        "/longer/x.bad",
        "/longer?q=",
        "/x.ba",
        "/b/",
    ];
    for target in targets {
        for host in ["X.example:80", "c.wild:80", "c.wild"] {
            let headers = vec![("Cookie".to_owned(), "a=b; s=7".to_owned())];
            let http = Http {
                method: "GET".into(),
                host: Some(host.into()),
                target: target.into(),
                headers,
                is_http10: false,
            };
            let source = IpAddr::from([10, 0, 0, 9]);
            let kind = Kind::Http(http);
            let request = Request { listener: Some("10.0.0.1:80".into()), source, kind };
            let [a, b] = [explain(&config, &request), decide(&program, &request)];
            assert_eq!(a.outcome, b.outcome, "{host} {target}");
        }
    }
    let not_exact = ledger.entries().into_iter().filter(|entry| {
        let is_rule = text.lines().nth(entry.place.line as usize - 1);
        is_rule.is_some_and(|line| line.contains("http-request")) && entry.verdict != Verdict::Exact
    });
    assert_eq!(not_exact.count(), 0);
}

#[test]
fn backends_are_pools() {
    let text = front(
        "backend c\n balance hash req.cook(s)\n timeout connect 5\n timeout server 2m\n \
         option httpchk HEAD /h\n http-check expect status 200,204\n \
         default-server check inter 5s rise 4 ssl verify none sni str(n)\n \
         server a 10.0.2.1 backup\n server b 10.0.2.2:8080 maxconn 9 weight 5\n \
         server-template t 1-3 d.example:81\n server u /run/u\n\
         frontend g\n bind 10.0.0.1:99",
    );
    let text = text.replace("default_backend b", "default_backend c");
    let text = text.replace("\nbackend b\n server s 10.0.1.1:80\n", "\n");
    let (_, program, ledger) = both(&text);
    // A server without a port has that of the listener, of which there are two.
    let pool = &program.pools["c-99"];
    let members: Vec<_> =
        pool.members.iter().map(|m| (m.weight, m.priority, m.max_requests)).collect();
    assert_eq!(members, [(1, 1, 0), (5, 0, 9), (3, 0, 0)]);
    assert_eq!(pool.balance, Balance::Hash(Key::Cookie("s".into(), None)));
    assert_eq!(pool.connect_timeout.unwrap().as_millis(), 5);
    assert_eq!(pool.idle_timeout.unwrap().as_secs(), 120);
    let check = pool.check.as_ref().unwrap();
    assert_eq!((check.path.as_deref(), check.rise), (Some("/h"), 4));
    assert_eq!(check.statuses, [200, 204]);
    let tls = pool.tls.as_ref().unwrap();
    assert_eq!((tls.server_name.as_deref(), tls.roots.as_deref()), (Some("n"), None));
    let questions = ledger.entries().into_iter().filter_map(|entry| match entry.verdict {
        Verdict::Decision { question, .. } => Some(question),
        _ => None,
    });
    let questions = questions.collect::<Vec<_>>().join("\n");
    assert!(questions.contains("/run/u is no address"), "{questions}");
}

/// What both would do with a connection from this client, by this TLS name.
fn connected(text: &str, client: [u8; 4], name: Option<&str>) -> [Option<String>; 2] {
    let (config, program, _) = both(text);
    let kind = Kind::Connection { server_name: name.map(str::to_owned) };
    let request = Request { listener: Some("10.0.0.1:443".into()), source: client.into(), kind };
    [explain(&config, &request), decide(&program, &request)].map(|a| endpoint(&a.outcome))
}

#[test]
fn connections_go_by_client() {
    let text = TCP.replace(
        "  use_backend a",
        "  tcp-request connection reject if { src 192.0.2.0/24 }\n  use_backend b if { src 10.9.0.0/16 } !{ src 10.9.1.0/24 }\n  use_backend a",
    );
    for (client, expected) in [
        ([10, 9, 0, 1], Some("10.0.1.2:443")),
        ([10, 9, 1, 1], Some("10.0.1.3:443")),
        ([192, 0, 2, 7], None),
    ] {
        let expected = expected.map(str::to_owned);
        assert_eq!(connected(&text, client, None), [expected.clone(), expected], "{client:?}");
    }
}

#[test]
fn what_does_not_begin_tls_may_be_rejected() {
    let text = TCP.replace("  use_backend a", "  tcp-request content reject\n  use_backend a");
    let expected = Some("10.0.1.1:443".to_owned());
    assert_eq!(connected(&text, [10, 0, 0, 9], Some("a.example")), [expected.clone(), expected]);
}

const HTTP: &str = "
defaults
  mode http
frontend f
  bind 10.0.0.1:80,10.0.0.1:81
  http-request set-header X-Port %[dst_port]
  http-request set-header X-Url http://%[req.hdr(host)]%[capture.req.uri]
  http-request set-header X-Name %[req.hdr(host),field(1,:),lower]
  http-request set-header X-Agent %[req.hdr(user-agent)]
  http-request deny deny_status 413 if { req.hdr_val(content-length) gt 1000 }
  http-request deny deny_status 400 if { req.hdr_cnt(x-key) gt 1 }
  http-request deny deny_status 416 if { req.hdr(range) -m reg ^bytes=0-$ }
  http-request deny deny_status 401 if { path_beg /key } !{ req.hdr(x-key) -m len 8:16 }
  http-request redirect location /users/?%[query] code 302 if { path /users }
  use_backend %[base,map_reg(haproxy-tests.map,b)]
backend a
  http-request set-query a=1
  server s 10.0.1.1
backend b
  http-request replace-pathq ^/v2(/.*)$ \\1
  server s 10.0.1.2:8080
";

fn http_of(text: &str) -> (Config, Program) {
    let file = |name: &str| Ok(Source::of(name, "^img[0-9]*\\.example/.*\\.(png|gif)$ a\n"));
    let sources = [Source::of("h.cfg", text)];
    let config = read(&sources, &Outside { file: &file, variable: &|_| None }).unwrap();
    let (program, _) = convert(&config);
    (config, program)
}

fn asked(listener: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> Request {
    let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let kind = Kind::Http(Http {
        method: "GET".into(),
        host: Some(host.into()),
        target: target.into(),
        headers: headers.collect(),
        is_http10: false,
    });
    Request { listener: Some(listener.into()), source: IpAddr::from([10, 0, 0, 9]), kind }
}

#[test]
fn values_are_made_of_the_request() {
    let (config, program) = http_of(&HTTP.replace("\\\\1", "\\1"));
    let request = asked("10.0.0.1:81", "A.Example:81", "/v2/x?y=1", &[("user-agent", "curl")]);
    for answer in [explain(&config, &request), decide(&program, &request)] {
        let Outcome::Forwarded(to) = &answer.outcome else { panic!("{answer:?}") };
        assert_eq!(to.target.as_deref(), Some("/x?y=1"));
        let value = |name: &str| to.headers.iter().find(|(n, _)| n == name)?.1.clone();
        assert_eq!(value("x-port").as_deref(), Some("81"));
        assert_eq!(value("x-name").as_deref(), Some("a.example"));
        assert_eq!(value("x-agent").as_deref(), Some("curl"));
    }
    // Each port leads to the same of a server that has none.
    let request = asked("10.0.0.1:80", "img7.example", "/a.png", &[]);
    for answer in [explain(&config, &request), decide(&program, &request)] {
        let Outcome::Forwarded(to) = &answer.outcome else { panic!("{answer:?}") };
        assert_eq!(endpoint(&answer.outcome).as_deref(), Some("10.0.1.1:80"));
        assert_eq!(to.target.as_deref(), Some("/a.png?a=1"));
    }
}

#[test]
fn numbers_and_parts_of_headers_refuse() {
    let (config, program) = http_of(HTTP);
    let table: [(&str, &[(&str, &str)], u16); 9] = [
        ("/", &[("content-length", "1001")], 413),
        ("/", &[("content-length", "1000")], 200),
        ("/", &[("x-key", "a, b")], 400),
        ("/", &[("x-key", "a")], 200),
        ("/", &[("range", "bytes=0-")], 416),
        ("/", &[("range", "bytes=0-5")], 200),
        ("/key", &[("x-key", "12345678")], 200),
        ("/key", &[("x-key", "1234567")], 401),
        ("/users?a=b", &[], 302),
    ];
    for (target, headers, expected) in table {
        let request = asked("10.0.0.1:80", "a.example", target, headers);
        for answer in [explain(&config, &request), decide(&program, &request)] {
            let status = match &answer.outcome {
                Outcome::Answered { status, .. } => *status,
                _ => 200,
            };
            assert_eq!(status, expected, "{target} {headers:?} {:?}", answer.why);
        }
    }
}

#[test]
fn a_redirect_may_have_no_path() {
    // Nothing in the frontend has the request kept.
    let text = "defaults\n  mode http\nfrontend f\n  bind 10.0.0.1:80\n  default_backend b\nbackend b\n  \
                http-request redirect location https://%[hdr(host),field(1,:)]%[capture.req.uri]\n";
    let (_, program, _) = both(text);
    let answer = decide(&program, &asked("f", "a.example:80", "/x?y", &[]));
    let Outcome::Answered { status: 302, headers, .. } = answer.outcome else {
        panic!("{answer:?}")
    };
    let location = headers.last().map(|(_, value)| value.as_str());
    assert_eq!(location, Some("https://a.example"));
}

/// Who says a thing twice does not get past what is asked of it.
#[test]
fn what_is_said_twice_is_asked_of_each() {
    let lines = " http-request deny if { hdr_cnt(x-c) ge 2 }\n http-request deny if { urlp(b) -m str x }\n\
                 http-request deny if { hdr_val(x-v) gt 5 }";
    let (_, program, _) = both(&front(lines));
    let cases: [(&str, &[(&str, &str)], bool); 7] = [
        ("h/", &[("x-c", "1"), ("x-c", "2")], true),
        ("h/", &[("x-c", "1")], false),
        ("h/?b=y&b=x", &[], true),
        ("h/?b=%78", &[], false),
        ("h/?bb=x", &[], false),
        ("h/", &[("x-v", "1, 9x")], true),
        ("h/", &[("x-v", "1, 5")], false),
    ];
    for (url, headers, is_denied) in cases {
        let mut request = get(url);
        let Kind::Http(http) = &mut request.kind else { panic!() };
        http.headers = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let denied =
            matches!(decide(&program, &request).outcome, Outcome::Answered { status: 403, .. });
        assert_eq!(denied, is_denied, "{url} {headers:?}");
    }
}

#[test]
fn redirects_know_the_host_that_was_put_in_lower_case() {
    let text = front(
        " http-request set-header Host %[req.hdr(Host),lower]\n \
         http-request redirect location https://%[req.hdr(host)]%[path] code 302 if { path /Go }",
    );
    let (config, program, ledger) = both(&text);
    let request = get("WWW.Example:8080/Go");
    let to = [explain(&config, &request), decide(&program, &request)].map(|answer| {
        let Outcome::Answered { status: 302, headers, .. } = answer.outcome else { panic!() };
        headers.into_iter().find(|(name, _)| name == "location").unwrap().1
    });
    assert_eq!(to, ["https://www.example:8080/Go", "https://WWW.Example:8080/Go"]);
    let verdicts: Vec<_> = ledger.entries().iter().map(|e| format!("{:?}", e.verdict)).collect();
    assert!(verdicts.join("").contains("Host stays as the client writes it"), "{verdicts:?}");
}

#[test]
fn clients_stay_by_cookies_of_ours_and_of_the_application() {
    let second = std::time::Duration::from_secs;
    for (lines, life, asked) in [
        ("cookie S insert indirect nocache", Some(second(0)), "clients with a cookie of HAProxy"),
        ("cookie S insert maxlife 1h", Some(second(3600)), "clients with a cookie of HAProxy"),
        ("cookie S prefix", None, "names of servers in it reach the application"),
        ("stick on req.cook(S)", None, ""),
        (
            "stick match req.cook(S)\n stick store-response res.cook(S)",
            None,
            "who answered is not remembered",
        ),
    ] {
        let text = format!("{} {lines}\n server t 10.0.1.2:80 cookie t\n", front(""));
        let (_, program, ledger) = both(&text);
        let expected = Balance::Hash(Key::Cookie("S".into(), life));
        assert_eq!(program.pools["b"].balance, expected, "{lines}");
        let questions = ledger.entries().into_iter().filter_map(|entry| match entry.verdict {
            Verdict::Decision { question, .. } => Some(question),
            _ => None,
        });
        let questions: Vec<_> = questions.collect();
        assert_eq!(questions.is_empty(), asked.is_empty(), "{lines}: {questions:?}");
        assert!(questions.iter().all(|question| question.contains(asked)), "{questions:?}");
    }
}
