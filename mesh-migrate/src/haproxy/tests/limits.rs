//! What is no configuration, and what is too much of one.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::decide::decide;

const FRONT: &str = "frontend f\n  bind :80\n  ";

#[test]
fn what_is_wrong_has_a_place() {
    let table = [
        ("maxconn 1\n", "1:1: \"maxconn\", and expected was a section, as `global`"),
        ("frontend\n", "1:1: `frontend` ends where the name of the frontend was expected"),
        ("global\n  log 'x\n", "2:7: a quote `'` that does not end on this line"),
        ("global\n  x \"${A\"\n", "2:6: `${` without `}` on this line"),
        (".if true\nglobal\n", "1:1: `.if` without `.endif` in this file"),
        (".endif\n", "1:1: `.endif` without `.if`"),
        (".if true\n.else\n.else\n.endif\n", "3:1: `.else` after `.else`"),
        (".if nonsense(1)\n.endif\n", "1:1: \"nonsense\" is no predicate"),
        (".frob\n", "1:1: \".frob\", and expected was `.if`"),
        ("#F bind 1.2.3.4\n", "3:8: \"1.2.3.4\", and expected was an address with a port"),
        ("#F acl a\n", "3:3: `acl` ends where an expression was expected"),
        ("#F acl a hdr(host\n", "3:9: no `)` for hdr( in \"hdr(host\""),
        ("#F acl a path -m frob x\n", "3:17: \"frob\" is no method of `-m`"),
        ("#F acl a path -x y\n", "3:14: \"-x\", and expected was -i, -m"),
        ("#F use_backend b if x\n", "3:20: there is no ACL \"x\" in f"),
        ("#F use_backend b if\n", "3:17: `if` without an ACL at its end"),
        ("#F use_backend b if TRUE or\n", "3:17: `if` without an ACL at its end"),
        ("#F use_backend b if { path /a\n", "3:20: `{` without an expression and ` }`"),
        ("#F use_backend b when TRUE\n", "3:17: \"when\", and expected was `if`, `unless`"),
        ("#F use_backend b_%[path\n", "3:15: `%[` without `]` in \"b_%[path\""),
        ("#F use_backend 1%\n", "3:15: a `%` that begins nothing in \"1%\""),
        ("#F http-request deny deny_status 99\n", "3:33: \"99\", and expected was a status"),
        ("#F http-request redirect code 301\n", "3:3: `http-request` ends where location"),
        ("#F http-request set-header X\n", "3:3: `http-request` ends where a format"),
        ("#F mode ftp\n", "3:8: \"ftp\", and expected was `http` or `tcp`"),
        ("frontend f from d\n", "1:17: \"d\", and expected was the name of a defaults section"),
        ("backend b\nbackend b\n", "2:1: \"b\" is there already, at line 1"),
        ("backend b\n server s\n", "2:2: `server` ends where name and address was expected"),
        ("backend b\n server s a:1 weight x\n", "2:15: \"x\" for `weight`; a number"),
        ("backend b\n server s a:b\n", "2:11: \"a:b\", and expected was a port"),
    ];
    for (text, expected) in table {
        let text = text.replace("#F ", FRONT);
        let problem = from(&[("h.cfg", &text)]).err().map(|problem| problem.to_string());
        let problem = problem.unwrap_or_else(|| panic!("{text} was read"));
        assert!(problem.starts_with(&format!("h.cfg:{expected}")), "{text}: {problem}");
    }
}

fn ends_fast(text: &str) {
    let (done, finished) = std::sync::mpsc::sync_channel(1);
    let text = text.to_owned();
    std::thread::spawn(move || {
        if let Ok(config) = from(&[("h.cfg", &text)]) {
            let (program, ledger) = convert(&config);
            let source = Source::of("h.cfg", &text);
            assert!(ledger.silent_lines(&source, is_blank).is_empty());
            let http = Http {
                method: "GET".into(),
                host: Some("h".into()),
                target: "/".into(),
                headers: Vec::new(),
                is_http10: false,
            };
            let source = IpAddr::from([127, 0, 0, 1]);
            let request = Request { listener: None, source, kind: Kind::Http(http) };
            explain(&config, &request);
            decide(&program, &request);
        }
        let _ = done.send(());
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("it should have ended, and well");
}

#[test]
fn much_ends_fast() {
    let rules = |line: &str, times| format!("{FRONT}mode http\n{}", line.repeat(times));
    ends_fast(&"a".repeat(8 << 20));
    ends_fast(&format!("global\n x {}", "a ".repeat(2 << 20)));
    ends_fast(&format!("{FRONT}acl a path {}", "/a ".repeat(1 << 20)));
    ends_fast(&format!("{FRONT}acl a path{}", ",lower".repeat(100_000)));
    ends_fast(&format!(".if {}true{}\n.endif\n", "(".repeat(1 << 20), ")".repeat(1 << 20)));
    ends_fast(&".if true\n".repeat(100_000));
    ends_fast(&format!("{FRONT}http-request deny if {}", "!".repeat(1 << 20)));
    ends_fast(&format!("{FRONT}http-request deny if TRUE{}", " or TRUE".repeat(200_000)));
    ends_fast(&format!("{FRONT}acl a path_reg {}{}", "(".repeat(10_000), ")".repeat(10_000)));
    ends_fast(&format!(
        "{FRONT}mode http\n acl a path_reg (a{{1000}}){{1000}}\n http-request deny if a"
    ));
    ends_fast(&rules("  http-request set-header X y if { path /a }\n", 5_000));
    let mut many = rules("", 0);
    for n in 0..60 {
        many += &format!("  http-request set-header X{n} y if {{ path /{n} }}\n");
    }
    for n in 0..3_000 {
        many += &format!("  use_backend b{} if {{ path /{n} }}\n", n % 50);
    }
    for n in 0..50 {
        many += &format!("backend b{n}\n mode http\n server s 10.0.0.1:80\n");
        for m in 0..10 {
            many += &format!(" http-request set-header Y{m} y if {{ hdr(x) {m} }}\n");
        }
    }
    ends_fast(&many);
}

#[test]
fn too_many_statements_are_refused() {
    let text = format!("global\n{}", "x\n".repeat(500_001));
    let problem = from(&[("h.cfg", &text)]).err().unwrap().to_string();
    assert_eq!(problem, "h.cfg:500001:1: more than 500000 statements");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_text_is_read_or_refused(text in "(global|defaults|frontend f|backend b|listen l|acl|http-request|deny|if|\\{|\\}|!|path|hdr\\(|%\\[|[ -~]|\n|\n| | |\t|\"|'|\\\\|\\PC){0,80}") {
        if let Ok(config) = from(&[("h.cfg", &text)]) {
            let (_, ledger) = convert(&config);
            let source = Source::of("h.cfg", &text);
            prop_assert!(ledger.silent_lines(&source, is_blank).is_empty(), "{text:?}");
        }
    }
}
