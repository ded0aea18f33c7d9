//! Where redirects lead, and hosts as patterns see them.

use super::{config, convert, get, told, told_of};
use crate::program::{Accepts, PathChange, Then};

#[test]
fn groups_that_are_empty() {
    let text = r"
        server {
            listen 10.20.0.4:80;
            rewrite ^/1(/.*)?$ http://y.org$1 permanent;
            rewrite ^/2(/.*)?$ /new$1 permanent;
            rewrite ^/3(/.*)?$ http://y.org$1? redirect;
            location ~ ^/4(/.*)?$ { return 301 https://y.org$1; }
            location ~ ^/6(/.*)?$ { return 301 https://y.org$1$is_args$args; }
            rewrite ^/7/?(.*)$ https://y.org/$1 permanent;
            rewrite ^/8(/.*)?$ http://y.org$1?a=b permanent;
            location / { return 200; }
        }";
    for (target, expected) in [
        ("/1", "301 http://y.org"),
        ("/1/a", "301 http://y.org/a"),
        ("/1?q", "301 http://y.org?q"),
        ("/2", "301 http://a.example/new"),
        ("/2/a?q", "301 http://a.example/new/a?q"),
        ("/3?q", "302 http://y.org"),
        ("/4", "301 https://y.org"),
        ("/4?q", "301 https://y.org"),
        ("/6?q", "301 https://y.org?q"),
        ("/6/a", "301 https://y.org/a"),
        ("/7", "301 https://y.org/"),
        ("/7/a?q", "301 https://y.org/a?q"),
        ("/8", "301 http://y.org?a=b"),
        ("/8/c?q", "301 http://y.org/c?a=b&q"),
    ] {
        assert_eq!(told(text, "a.example", target), [expected; 2], "{target}");
    }
    // A change of the path that leaves nothing of it is answered 500 with us.
    let (program, _) = convert(&config(&format!("http {{ {text} }}"))).unwrap();
    let Accepts::Http { rules, .. } = &program.listeners[0].accepts else { panic!() };
    for rule in rules {
        let Then::Reply(reply) = &rule.then else { continue };
        let path = reply.location.as_ref().and_then(|to| to.path.as_ref());
        let Some(PathChange::Pattern { substitution, .. }) = path else { continue };
        assert!(substitution.starts_with('/'), "{rule:?}");
    }
}

#[test]
fn patterns_see_hosts_in_lower_case() {
    let text = r#"
        map $host $r { default 0; "~^x\.org$" 1; }
        map $host $any { default 0; "~*^X\.org$" 1; }
        server {
            listen 10.20.0.4:80;
            location /1 { if ($host !~ ^(www\.x\.org|x\.org)$) { return 421; } return 206; }
            location /2 { if ($r) { return 206; } return 421; }
            location /3 { if ($any) { return 206; } return 421; }
            location /4 { if ($host ~ ^X) { return 421; } return 206; }
            location /5 { if ($host ~ "org") { return 206; } return 421; }
        }"#;
    for host in ["x.org", "X.org", "x.ORG.", "X.org:8080"] {
        for path in ["/1", "/2", "/3", "/4", "/5"] {
            assert_eq!(told(text, host, path), ["206 "; 2], "{host} {path}");
        }
    }
    for path in ["/1", "/2", "/3"] {
        assert_eq!(told(text, "xx.org", path), ["421 "; 2], "{path}");
    }
}

#[test]
fn redirects_to_paths_are_told_as_it_is_written() {
    let text = |settings: &str| {
        format!(
            "server {{
            listen 10.20.0.4:8080;
            server_name www.x.org;
            {settings}
            location /a {{ return 301 /b; }}
            location /s/ {{ proxy_pass http://10.20.1.1; }}
            location ~ ^/g/(.*) {{ return 302 /h/$1?x=$arg_x; }}
            location /in {{ absolute_redirect on; return 301 /b$request_uri; }}
            rewrite ^/r/(.*)$ /q/$1 permanent;
        }}"
        )
    };
    let (port, host) = ("http://a.example:8080", "http://a.example");
    for (settings, before, inner) in [
        ("", port, port),
        ("absolute_redirect off;", "", port),
        ("port_in_redirect off;", host, host),
        ("server_name_in_redirect on;", "http://www.x.org:8080", "http://www.x.org:8080"),
    ] {
        let text = text(settings);
        for (target, expected) in [
            ("/a?x", format!("301 {before}/b")),
            ("/s?x", format!("301 {before}/s/?x")),
            ("/g/c?x=1", format!("302 {before}/h/c?x=1")),
            ("/in?x", format!("301 {inner}/b/in?x")),
            ("/r/a?x", format!("301 {before}/q/a?x")),
        ] {
            let request = get("10.20.0.4:8080", "a.example", target);
            assert_eq!(told_of(&text, &request), [&*expected; 2], "{settings} {target}");
        }
    }
}
