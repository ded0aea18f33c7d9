//! Listeners at all addresses, and at one of them.

use super::{config, convert, told_of};
use crate::{
    ledger::Verdict,
    nginx::tests::get,
    program::Program,
    request::{Kind, Request},
};

fn converted(text: &str) -> (Program, Vec<u32>) {
    let (program, ledger) = convert(&config(text)).unwrap();
    let decided = ledger.entries().into_iter();
    let decided = decided.filter(|entry| matches!(entry.verdict, Verdict::Decision { .. }));
    (program, decided.map(|entry| entry.place.line).collect())
}

fn addresses(program: &Program) -> Vec<String> {
    let all = program.listeners.iter().flat_map(|listener| &listener.addresses);
    all.map(ToString::to_string).collect()
}

/// Our proxy cannot listen on both.
#[test]
fn one_of_all_addresses_is_not_listened_on() {
    let text = "http {\n\
        server { listen 80; listen [::]:80; return 206; }\n\
        server { listen 10.20.0.4:80; server_name b; return 207; }\n\
        server { listen 10.20.0.4:81; return 208; }\n}\n\
        stream {\n\
        server { listen 82; proxy_pass 10.20.1.1:80; }\n\
        server { listen 10.20.0.4:82; proxy_pass 10.20.1.2:80; }\n}";
    let (program, decided) = converted(text);
    assert_eq!(addresses(&program), ["0.0.0.0:80", "10.20.0.4:81", "[::]:80", "0.0.0.0:82"]);
    assert_eq!(decided, [3, 8]);
}

#[test]
fn servers_that_are_the_same_everywhere_serve_at_all_addresses() {
    let text = "server { listen 80; listen 10.20.0.4:80; server_name a; return 302 /to; }\n\
        server { listen 80; listen 10.20.0.4:80; server_name b; return 206; }";
    let (program, decided) = converted(&format!("http {{\n{text}\n}}"));
    assert_eq!((addresses(&program), decided), (vec!["0.0.0.0:80".to_owned()], vec![]));
    for (host, expected) in [("a", "302 http://a/to"), ("b", "206 ")] {
        let request = get("10.20.0.4:80", host, "/");
        assert_eq!(told_of(text, &request), [expected; 2], "{host}");
    }
}

/// One server more at all addresses, or another that takes all others there.
#[test]
fn servers_that_are_others_are_asked_about() {
    for rest in ["listen 80;", "listen 80 default_server; listen 10.20.0.4:80;"] {
        let text = format!(
            "http {{\nserver {{ listen 80; listen 10.20.0.4:80; return 206; }}\n\
             server {{ {rest} server_name b; return 207; }}\n}}"
        );
        let (program, decided) = converted(&text);
        assert_eq!(addresses(&program), ["0.0.0.0:80"], "{rest}");
        assert!(!decided.is_empty(), "{rest}");
    }
    let request =
        Request { kind: Kind::Connection { server_name: None }, ..get("10.20.0.4:82", "", "/") };
    let text = "stream { server { listen 82; listen 10.20.0.4:82; proxy_pass 10.20.1.1:80; } }";
    let (program, decided) = converted(text);
    assert_eq!((addresses(&program), decided), (vec!["0.0.0.0:82".to_owned()], vec![]));
    assert!(matches!(
        crate::decide::decide(&program, &request).outcome,
        crate::request::Outcome::Forwarded(_)
    ));
}
