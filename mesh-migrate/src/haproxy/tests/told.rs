//! What is said of lines of backends.

use super::{
    edges::{LINE, said},
    kinds::{both, front},
};

/// A backend with these lines and servers, in this mode.
fn backend(mode: &str, lines: &str) -> String {
    format!(
        "defaults\n mode {mode}\nfrontend f\n bind 10.0.0.1:80\n default_backend b\nbackend b\n{lines}\n"
    )
}

/// The first line of that backend.
const BACKEND: u32 = 7;

#[test]
fn checks_are_told_as_they_are_made() {
    let connection = "decision: ours only asks whether a connection comes, and not over HTTP";
    for (mode, lines, expected) in [
        (
            "tcp",
            " option httpchk GET /primary\n http-check expect status 200\n server s 10.0.1.1:5432 check port 8008\n",
            vec![connection, connection, connection],
        ),
        ("tcp", " option httpchk\n server s 10.0.1.1:5432 check", vec![connection, connection]),
        (
            "http",
            " option httpchk\n server s 10.0.1.1:50 check proto h2",
            vec![connection, connection],
        ),
        ("tcp", " option httpchk\n server s 10.0.1.1:5432", vec!["", ""]),
        (
            "tcp",
            " server s 10.0.1.1:5432 check port 8008",
            vec!["decision: its checks go to the port of the traffic, and not to 8008"],
        ),
        ("http", " server s 10.0.1.1:80 check port 80", vec![""]),
        ("tcp", " server s 10.0.1.1:80 check port 80", vec![""]),
        (
            "tcp",
            " option tcp-check\n tcp-check connect port 9000\n tcp-check connect\n tcp-check expect string master",
            vec![
                "",
                "decision: it is asked whether a connection comes to the port of the traffic",
                "",
                "decision: it is only asked",
            ],
        ),
        (
            "http",
            " option httpchk GET /health\n http-check send hdr Host web.example\n server s 10.0.1.1:80 check",
            vec![
                "approximated: checks are made by HTTP/1.1 with the service's name as Host; HAProxy's are of HTTP/1.0 without Host",
                "decision: checks have the service's name as Host with us, and not web.example",
                "",
            ],
        ),
        (
            "http",
            " option httpchk OPTIONS * HTTP/1.1\\r\\nHost:\\ www\n server s 10.0.1.1:80 check maxconn 5",
            vec![
                "approximated: checks are made with GET by HTTP/1.1 with the service's name as Host, not with \"Host: www\"; approximated: checks ask for /, and not for \"*\"",
                "approximated: maxconn is no limit",
            ],
        ),
    ] {
        let (_, program, ledger) = both(&backend(mode, lines));
        for (line, expected) in (BACKEND..).zip(expected) {
            let told = said(&ledger, line);
            assert!(
                told.contains(expected) && told.is_empty() == expected.is_empty(),
                "{lines}: {told}"
            );
        }
        let check = program.pools.get("b").and_then(|pool| pool.check.as_ref());
        let path = check.and_then(|check| check.path.as_deref());
        let asks = mode == "http" && lines.contains("httpchk") && !lines.contains("h2");
        assert_eq!(path.is_some(), asks, "{lines}");
        assert!(path.is_none_or(|path| path.starts_with('/')), "{lines}");
    }
}

#[test]
fn what_cookies_and_sticks_lose_is_told() {
    let told = |lines: &str| {
        let text = backend("http", &format!("{lines}\n server s 10.0.1.1:80 cookie s"));
        let (_, _, ledger) = both(&text);
        [said(&ledger, BACKEND), said(&ledger, BACKEND + 1)]
    };
    let [all, _] = told(
        " cookie S insert indirect nocache secure domain .x.example maxlife 8h maxidle 1h postonly attr SameSite=None",
    );
    for words in [
        "not Secure",
        "not of .x.example",
        "has not SameSite=None",
        "HttpOnly",
        "when a browser is closed",
        "by maxidle",
        "whatever the method",
    ] {
        assert!(all.contains(words), "{words}: {all}");
    }
    let [few, _] = told(" cookie S insert indirect nocache httponly");
    let both = "another one; an application that sets S itself is heard, too: clients get its \
                cookie beside ours, and HAProxy sends its own alone";
    assert!(few.ends_with(both), "{few}");
    let [_, stick] = told(" cookie S prefix\n stick on src");
    assert_eq!(stick, "approximated: clients are assigned by the cookie alone, and not by this");
    let [first, second] = told(" stick on src\n stick on req.cook(a)");
    assert_eq!(first, "approximated: clients are assigned by hash of the same key");
    assert_eq!(second, "approximated: clients do not stick by this, but by src alone");
}

#[test]
fn targets_that_are_no_paths_are_told() {
    for (test, is_told) in [
        ("url_beg http://", true),
        ("url -m reg ^[^/:]*://", true),
        ("url_beg /api", false),
        ("path_beg http://", false),
    ] {
        let (_, _, ledger) = both(&front(&format!(" http-request deny if {{ {test} }}")));
        assert_eq!(said(&ledger, LINE).contains("seen as its path"), is_told, "{test}");
    }
}

#[test]
fn a_check_that_must_not_answer_so_is_not_one_that_must() {
    let lines =
        " option httpchk GET /h\n http-check expect ! status 500\n server s 10.0.1.1:80 check";
    let text = backend("http", lines);
    let (_, program, _) = both(&text);
    let check = program.pools.values().find_map(|pool| pool.check.as_ref()).unwrap();
    assert_eq!(check.statuses, Vec::<u16>::new());
    // However few are well; without checks there is nothing to believe.
    assert!(program.pools.values().all(|pool| pool.panic_percent == Some(0)));
    let (_, program, _) = both(&text.replace(" check", ""));
    assert!(program.pools.values().all(|pool| pool.panic_percent.is_none()));
}
