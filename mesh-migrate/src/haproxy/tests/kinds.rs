//! What HAProxy does, kind by kind, where the generator does not write it.

use super::*;
use crate::{
    decide::decide,
    ledger::{Ledger, Verdict},
    program::{Accepts, Balance, Forwarded, Key, Program},
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

fn both(text: &str) -> (Config, Program, Ledger) {
    let config = from(&[("h.cfg", text)]).unwrap();
    let (program, ledger) = convert(&config);
    (config, program, ledger)
}

fn endpoint(outcome: &Outcome) -> Option<String> {
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

fn get(url: &str) -> Request {
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
fn front(lines: &str) -> String {
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
    let table = [
        (" option forwardfor", Forwarded::Append),
        (" http-request set-header X-Forwarded-For %[src]", Forwarded::Replace),
        (" http-request set-header X-Forwarded-For %ci", Forwarded::Replace),
        (" option forwardfor header X-Client", Forwarded::Keep),
        ("", Forwarded::Keep),
    ];
    for (lines, expected) in table {
        let (_, program, _) = both(&front(lines));
        let Accepts::Http { forwarded, .. } = program.listeners[0].accepts else { panic!() };
        assert_eq!(forwarded, expected, "{lines}");
    }
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
    let pool = &program.pools["c"];
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
    assert!(questions.contains("there are several"), "{questions}");
    assert!(questions.contains("/run/u is no address"), "{questions}");
}
