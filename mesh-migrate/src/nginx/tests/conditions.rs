//! Conditions on what no rule sees, or sees otherwise.

use super::{config, convert, decide, explain, get, told};
use crate::{ledger::Verdict, request::Outcome};

/// The switch of a maintenance page is not thrown; what a file refuses else is refused.
#[test]
fn files_are_not_asked_for() {
    let text = "http { server { listen 10.20.0.4:80;\n\
        if (-f /var/www/maintenance.on) { return 503; }\n\
        if (!-e /var/www/up) { return 502; }\n\
        location / { return 206; }\n\
        location /gate { if (!-f /etc/open) { return 403; } return 206; }\n} }";
    let (program, ledger) = convert(&config(text)).unwrap();
    for (path, expected) in [("/", 206), ("/gate", 403)] {
        let answer = decide(&program, &get("10.20.0.4:80", "a", path));
        let Outcome::Answered { status, .. } = answer.outcome else { panic!("{answer:?}") };
        assert_eq!(status, expected, "{path}");
    }
    let decided: Vec<u32> = ledger
        .entries()
        .into_iter()
        .filter(|entry| matches!(entry.verdict, Verdict::Decision { .. }))
        .map(|entry| entry.place.line)
        .collect();
    assert_eq!(decided, [2, 3, 5]);
}

#[test]
fn groups_of_server_names() {
    let text = r#"
        upstream u { server 10.20.1.1:80; }
        server {
            listen 10.20.0.4:80;
            server_name www.y.org ~^(?<tenant>[a-z0-9-]+)\.x\.org$;
            if ($tenant = suspended) { return 402; }
            location / { proxy_set_header X-To $tenant; proxy_pass http://u; }
            location /to { return 301 https://$tenant.y.org$request_uri; }
            location /map { if ($tenant ~ ^a) { return 406; } return 206; }
        }"#;
    for (host, target, expected) in [
        ("acme.x.org", "/", "/ acme"),
        ("ACME.x.org:8080", "/", "/ acme"),
        ("suspended.x.org", "/", "402 "),
        ("www.y.org", "/", "/ "),
        ("other", "/", "/ "),
        ("acme.x.org.", "/to?a", "301 https://acme.y.org/to?a"),
        ("acme.x.org", "/map", "406 "),
        ("bcme.x.org", "/map", "206 "),
    ] {
        assert_eq!(told(text, host, target), [expected; 2], "{host} {target}");
    }
}

/// What cannot be known of one path is no reason to know nothing of others.
#[test]
fn only_who_comes_by_is_told_that_it_cannot_be_known() {
    let text = r#"
        geo $ranged { ranges; 10.0.0.0-10.0.0.9 1; default 0; }
        map $uri $unread { default 0; "~^/m(?!x)/.$" 1; }
        server {
            listen 10.20.0.4:80;
            valid_referers none blocked *.x.org;
            rewrite ^/(?!old)b/(.*)\.gif$ /x last;
            if ($uri ~ "^/c(?!d)/e") { return 410; }
            location / { return 206; }
            location ~* ^/(?!api|static).*\.HTML$ { return 207; }
            location /geo { if ($ranged) { return 403; } return 206; }
            location /referer { if ($invalid_referer) { return 403; } return 206; }
            location /file { if (-f /x) { return 503; } return 206; }
            location /m { if ($unread) { return 403; } return 206; }
        }"#;
    let config = config(&format!("http {{ {text} }}"));
    let known = |path: &str| explain(&config, &get("10.20.0.4:80", "a", path));
    for path in ["/", "/login", "/api/x.htm", "/m", "/c/x", "/b/x.png"] {
        let answer = known(path).unwrap();
        assert!(matches!(answer.outcome, Outcome::Answered { status: 206, .. }), "{path}");
    }
    for path in ["/a/x.html", "/geo", "/referer", "/file", "/m/x", "/c/e", "/b/x.gif"] {
        assert!(known(path).is_err(), "{path}");
    }
}

/// What a location sets under conditions is nothing to the others.
#[test]
fn variables_that_another_location_sets() {
    let text = r#"
        upstream a { server 10.20.1.1:80; }
        upstream b { server 10.20.1.2:80; }
        server {
            listen 10.20.0.4:80;
            location /a { set $v a; if ($arg_v) { set $v b; } proxy_pass http://$v; }
            location / { proxy_pass http://$v; }
        }"#;
    for target in ["/a", "/a?v=1"] {
        let expected = format!("{target} ");
        assert_eq!(told(text, "a", target), [&*expected; 2], "{target}");
    }
    // nginx answers 500: there it is empty.
    for target in ["/", "/?v=1"] {
        assert_eq!(told(text, "a", target), ["500 ", "501 "], "{target}");
    }
}

/// Of paths that a pattern may take, and no others, where it decides who may.
#[test]
fn patterns_that_cannot_be_read_refuse_whom_they_may_mean() {
    let text = r#"
        server {
            listen 10.20.0.4:80;
            if ($uri ~ "^/c(?!d)/e") { return 403; }
            location ~ ^/(?!open)[a-z]+/secret$ { deny all; }
            location ~* ^/(?!api)[a-z]+\.HTML$ { return 207; }
            location / { return 206; }
        }"#;
    let (program, _) = convert(&config(&format!("http {{ {text} }}"))).unwrap();
    for (path, expected) in [
        ("/", 206),
        ("/c/e", 403),
        ("/c/f", 206),
        ("/a/secret", 501),
        ("/a/secrets", 206),
        ("/a.html", 206),
    ] {
        let answer = decide(&program, &get("10.20.0.4:80", "a", path));
        let Outcome::Answered { status, .. } = answer.outcome else { panic!("{answer:?}") };
        assert_eq!(status, expected, "{path}");
    }
}

#[test]
fn nobody_comes_in_by_a_pattern_that_cannot_be_read_at_all() {
    let text = r"
        server {
            listen 10.20.0.4:80;
            location ~ ^/in/(.)\1/x { if ($remote_addr != 10.0.0.1) { return 403; } return 206; }
            location ~ ^/open/(.)\1/x { return 207; }
            location / { return 208; }
        }";
    let (program, _) = convert(&config(&format!("http {{ {text} }}"))).unwrap();
    let status = |target| match decide(&program, &get("10.20.0.4:80", "a", target)).outcome {
        Outcome::Answered { status, .. } => status,
        other => panic!("{other:?}"),
    };
    for (target, expected) in [("/in/aa/x", 501), ("/in/b", 501), ("/open/aa/x", 208), ("/c", 208)]
    {
        assert_eq!(status(target), expected, "{target}");
    }
}

#[test]
fn a_file_that_hangs_on_the_request_is_no_switch() {
    let text = "server {
            listen 10.20.0.4:80;
            if (-f /etc/blocked/$remote_addr) { return 503; }
            return 206;
        }";
    let (program, _) = convert(&config(&format!("http {{ {text} }}"))).unwrap();
    let answer = decide(&program, &get("10.20.0.4:80", "a", "/")).outcome;
    assert!(matches!(answer, Outcome::Answered { status: 503, .. }), "{answer:?}");
}
