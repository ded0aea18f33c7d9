//! The format as a whole: the checked-in cases, malformed files, bounds.

use std::{path::Path, sync::Arc};

use super::{Config, Reader, convert, disk, explain, is_blank, parse};
use crate::{
    decide::decide,
    ledger::Verdict,
    program::{Accepts, Forwarded, Pool},
    request::{Answer, Endpoint, Http, Kind, Outcome, Request},
    source::Source,
};

mod conditions;
mod headers;
mod listeners;
mod redirects;
mod words;

const NOTHING: Reader<'static> = &|_| Err("there are no other files".into());

pub(super) fn config(text: &str) -> Config {
    parse(&Source::of("nginx.conf", text), NOTHING).unwrap()
}

pub(super) fn get(listener: &str, host: &str, target: &str) -> Request {
    Request {
        listener: Some(listener.into()),
        source: "10.20.0.1".parse().unwrap(),
        kind: Kind::Http(Http {
            method: "GET".into(),
            host: Some(host.into()),
            target: target.into(),
            headers: Vec::new(),
            is_http10: false,
        }),
    }
}

/// Names of `tests/legacy/hosts`.
fn resolved(endpoint: &Endpoint) -> String {
    let hosts = include_str!("../../../tests/legacy/hosts");
    let Endpoint::Name(name) = endpoint else {
        return match endpoint {
            Endpoint::Address(address) => address.to_string(),
            Endpoint::Name(name) => name.clone(),
        };
    };
    let (host, port) = name.rsplit_once(':').unwrap();
    let line = hosts.lines().find(|line| line.split_whitespace().skip(1).any(|name| name == host));
    format!("{}:{port}", line.unwrap().split_whitespace().next().unwrap())
}

#[test]
fn the_checked_in_cases() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/legacy");
    let path = format!("{folder}/nginx-01-reverse-proxy.conf");
    let source = Source::read(Path::new(&path)).unwrap();
    let config = parse(&source, &disk(Path::new(&path))).unwrap();
    let expected = std::fs::read_to_string(format!("{path}.expect.md")).unwrap();
    let json = expected.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
    assert_eq!(cases.len(), 11);
    let (program, ledger) = convert(&config).unwrap();
    assert_eq!(ledger.silent_lines(&source, is_blank), [0u32; 0]);
    for case in cases {
        let text = |name: &str| case[name].as_str().unwrap();
        let request = get(text("listener"), text("host"), text("path"));
        let answer = explain(&config, &request).unwrap();
        check(&case, &answer);
        let mut of_ours = case.clone();
        // What the ledger says of these lines is below.
        of_ours["expect"]["uph"] = serde_json::Value::Null;
        check(&of_ours, &decide(&program, &request));
    }
    let said: Vec<String> = ledger
        .entries()
        .into_iter()
        .filter(|entry| !matches!(entry.verdict, Verdict::Exact | Verdict::Dropped { .. }))
        .map(|entry| entry.place.line.to_string())
        .collect();
    // Times, failures that count otherwise, ip_hash, HTTP/1.0, Host, a rewrite with a
    // query.
    assert_eq!(said.join(" "), "10 11 13 15 16 17 20 21 25 33 35 43 50");
}

fn check(case: &serde_json::Value, answer: &Answer) {
    let expect = &case["expect"];
    let id = &case["id"];
    let Outcome::Forwarded(forwarded) = &answer.outcome else {
        let Outcome::Answered { status, .. } = answer.outcome else { panic!("{id}: {answer:?}") };
        assert!(expect["backend"].is_null(), "{id}: {answer:?}");
        assert_eq!(expect["status"], status, "{id}");
        return;
    };
    if id == "n1" {
        let shares: Vec<f64> = forwarded.endpoints.iter().map(|(_, share)| *share).collect();
        assert_eq!(shares, [0.75, 0.25]);
    }
    let mut endpoints: Vec<String> =
        forwarded.endpoints.iter().map(|(endpoint, _)| resolved(endpoint)).collect();
    // The one that always answers 503 is not among those that have answered.
    endpoints.retain(|endpoint| endpoint != "10.20.8.99:8080");
    assert_eq!(serde_json::json!(endpoints), expect["backend"], "{id}");
    if let Some(target) = expect["up"].as_str() {
        assert_eq!(forwarded.target.as_deref(), Some(target), "{id}");
    }
    for (name, value) in expect["uph"].as_object().into_iter().flatten() {
        let found = forwarded.headers.iter().find(|(known, _)| known == name);
        let found = match found {
            Some((_, found)) => found.as_deref(),
            None if name == "host" => case["host"].as_str(),
            None => None,
        };
        assert_eq!(found, value.as_str(), "{id} {name}");
    }
}

#[test]
fn what_is_wrong_has_a_place() {
    let deep = "a {".repeat(100);
    let long = format!("a {};", "x".repeat(5000));
    for (text, problem) in [
        ("a b", "nginx.conf:1:4: the file ends within a statement; `;` or `{` was expected"),
        (
            "a {\n b;\n",
            "nginx.conf:3:1: the file ends within the block of line 1; `}` was expected",
        ),
        ("a;\n}", "nginx.conf:2:1: found `}` where no block is open"),
        ("a {\n b }", "nginx.conf:2:4: found `}` within \"b\"; `;` was expected"),
        (";", "nginx.conf:1:1: found `;` where a directive was expected"),
        ("a { {", "nginx.conf:1:5: found `{` where a directive was expected"),
        ("a \"b\nc;", "nginx.conf:1:3: the quote \" does not end"),
        (
            "a 'b'c;",
            "nginx.conf:1:6: found 'c' right after a quote; a space, `;` or `{` was expected",
        ),
        (&deep, "nginx.conf:1:193: blocks deeper than 64"),
        (&long, "nginx.conf:1:3: an argument longer than 4096 bytes; does a quote not end?"),
        ("\ninclude x;", "nginx.conf:2:1: include x: there are no other files"),
        ("include a b;", "nginx.conf:1:1: include has 2 arguments; one was expected"),
        (
            "a_by_lua_block {\n '}' }\nb_by_lua_block { {}",
            "nginx.conf:3:17: the file ends within this block of Lua; `}` was expected",
        ),
    ] {
        let found = parse(&Source::of("nginx.conf", text), NOTHING).unwrap_err().to_string();
        assert_eq!(found, problem);
    }
    for (text, problem) in [
        ("upstream a {}", "nginx.conf:1:1: upstream \"a\" has no server"),
        ("upstream a { server; }", "nginx.conf:1:14: server has no address"),
        ("upstream a { server b weight=x; }", "nginx.conf:1:14: weight: a number was expected"),
        ("server { listen 99999; }", "nginx.conf:1:10: listen \"99999\": a port was expected"),
        ("server { location ! /a {} }", "nginx.conf:1:10: found \"!\" where"),
        (
            "server { location /a {} location /a {} }",
            "nginx.conf:1:25: location \"/a\" is there twice",
        ),
        ("map $a b { }", "nginx.conf:1:1: map has no variable"),
        ("map $a $b { x y z; }", "nginx.conf:1:13: \"x\" has 2 values"),
        ("http {}\nhttp {}", "nginx.conf:2:1: http is there twice"),
    ] {
        let found = convert(&config(text)).unwrap_err().to_string();
        assert!(found.starts_with(problem), "{found}");
    }
}

#[test]
fn includes_are_bounded() {
    let read = |name: &str| -> Result<Vec<Source>, String> {
        let text = match name {
            "a" => "include b;",
            "b" => "x;\ninclude a;",
            "many" => "include one; include one;",
            "one" => "y;",
            _ => return Err("is not there".into()),
        };
        Ok(vec![Source::of(name, text)])
    };
    let wrong = |text: &str| parse(&Source::of("nginx.conf", text), &read).unwrap_err().to_string();
    assert_eq!(wrong("include a;"), "b:2:1: a includes itself: nginx.conf -> a -> b -> a");
    assert_eq!(wrong("http { include c; }"), "nginx.conf:1:8: include c: is not there");
    let many = "include many;".repeat(1000);
    assert!(wrong(&many).contains("too much is included"), "{}", wrong(&many));
    let config = parse(&Source::of("nginx.conf", "include many;"), &read).unwrap();
    assert_eq!(config.sources.len(), 3);
    assert_eq!(config.root.inside().iter().filter(|d| d.name == "y").count(), 2);
}

fn many(count: usize, one: impl Fn(usize) -> String) -> String {
    (0..count).map(one).collect()
}

#[test]
fn huge_files_end_fast() {
    let begin = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    for text in [
        "a".repeat(1 << 24),
        "\"".repeat(1 << 20),
        "a;".repeat(1 << 20),
        "a ".repeat(1 << 20),
        "a_by_lua_block { [[".repeat(1 << 16),
        format!("server {{ {} }}", "location ~ (a|b)*c { return 200; }".repeat(1 << 12)),
        format!(
            "server {{ {} }}",
            many(20_000, |n| format!(
                "location ^~ /{}{n} {{ proxy_pass http://a; }}",
                "x".repeat(n % 60)
            ))
        ),
        many(10_000, |n| format!("server {{ listen {}; server_name s{n}; }}", 1 + n % 20)),
        many(20_000, |n| format!("upstream u{n} {{ server a; }}")),
        format!(
            "map $http_a $m {{ {} }} server {{ {} }}",
            many(900, |n| format!("a{n} b{n};")),
            many(1000, |n| format!("location /{n} {{ proxy_pass http://$m; }}"))
        ),
        many(40, |n| format!("server {{ listen {}-{}; }}", 1 + n * 1000, 1000 + n * 1000)),
    ] {
        if let Ok(config) = parse(&Source::of("nginx.conf", &text), NOTHING) {
            let _ = convert(&config);
        }
    }
    let took = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - begin;
    assert!(took < std::time::Duration::from_secs(60), "{took:?}");
}

#[test]
fn quotes_escapes_and_blocks_of_lua() {
    let text = r#"a "b c" 'd"e' f\ g \"h ${i}j k#l "m
n" \t "";# comment } {
b{c;}d_by_lua_block { local x = "}" -- }
  --[==[ } ]==] x = [[}]] { } }e;"#;
    let config = config(text);
    let [a, b, d, e] = config.root.inside() else { panic!("{:?}", config.root) };
    assert_eq!(a.args, ["b c", "d\"e", "f\\ g", "\"h", "${i}j", "k#l", "m\nn", "\t", ""]);
    assert_eq!((a.head_last, b.place.line, b.place.column), (2, 3, 1));
    assert_eq!(b.inside()[0].name, "c");
    assert_eq!((d.place.line, d.last_line, e.place.line, e.place.column), (3, 4, 4, 32));
    assert!(is_blank("  } } # x") && is_blank("") && is_blank("\t# a") && !is_blank("} a;"));
}

#[test]
fn output_of_nginx_t() {
    let dump = "nginx: the configuration file /etc/nginx/nginx.conf syntax is ok\n\
        # configuration file /etc/nginx/nginx.conf:\nhttp {\n  include conf.d/*.conf;\n}\n\n\
        # configuration file /etc/nginx/conf.d/a.conf:\nserver {\n  listen 81;\n  location / { return 200 a; }\n}\n\n\
        # configuration file /etc/nginx/conf.d/b.conf:\nserver {\n  bad }\n";
    let source = Source::of("dump", dump);
    let wrong = parse(&source, NOTHING).unwrap_err().to_string();
    assert!(wrong.starts_with("/etc/nginx/conf.d/b.conf:2:7: "), "{wrong}");
    let source = Source::of("dump", &dump.replace("bad }", "listen 82; }"));
    let config = parse(&source, NOTHING).unwrap();
    let names: Vec<Arc<str>> = config.sources.iter().map(|source| source.name.clone()).collect();
    assert_eq!(
        names.iter().map(|n| &**n).collect::<Vec<_>>(),
        ["/etc/nginx/nginx.conf", "/etc/nginx/conf.d/a.conf", "/etc/nginx/conf.d/b.conf"]
    );
    let answer = explain(&config, &get("*:81", "x", "/")).unwrap();
    let last = answer.why.last().unwrap().place.as_ref().unwrap();
    assert_eq!(last.to_string(), "/etc/nginx/conf.d/a.conf:3:16");
}

#[test]
fn files_of_a_disk() {
    let folder = std::env::temp_dir().join(format!("mesh-migrate-nginx-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("conf.d")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("conf.d/b.conf", "b;");
    write("conf.d/a.conf", "a;");
    write("conf.d/.hidden.conf", "hidden;");
    write("conf.d/c.txt", "c;");
    write("nginx.conf", "include conf.d/[ab]*.conf;\ninclude none/*.conf;\n include conf.d/c.txt;");
    let main = folder.join("nginx.conf");
    let source = Source::read(&main).unwrap();
    let config = parse(&source, &disk(&main)).unwrap();
    let names: Vec<&str> = config.root.inside().iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["include", "a", "b", "include", "include", "c"]);
    write("nginx.conf", "a;\n  include conf.d/none.conf;");
    let source = Source::read(&main).unwrap();
    let wrong = parse(&source, &disk(&main)).unwrap_err();
    assert_eq!((wrong.place.line, wrong.place.column), (2, 3));
    assert!(wrong.problem.starts_with("include conf.d/none.conf: "), "{wrong}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Statuses and targets of both, for requests to one server.
fn told(text: &str, host: &str, target: &str) -> [String; 2] {
    told_of(text, &get("10.20.0.4:80", host, target))
}

fn told_of(text: &str, request: &Request) -> [String; 2] {
    let text = format!("http {{ {text} }}");
    let config = config(&text);
    let (program, _) = convert(&config).unwrap();
    [explain(&config, request).unwrap(), decide(&program, request)].map(|answer| {
        match answer.outcome {
            Outcome::Forwarded(to) => {
                let name = to.headers.iter().find(|(name, _)| name == "x-to");
                let name = name.and_then(|(_, value)| value.clone()).unwrap_or_default();
                format!("{} {name}", to.target.unwrap_or_default())
            }
            Outcome::Answered { status, headers, .. } => {
                let to = headers.iter().find(|(name, _)| name == "location");
                format!("{status} {}", to.map_or("", |(_, value)| value))
            }
            Outcome::Closed => "closed".to_owned(),
        }
    })
}

/// HTTP/1.0 without `Host`: the server's name stands in for it.
#[test]
fn nobody_names_a_host() {
    let text = r#"
        map $host $code { default ""; a.example here; }
        upstream u { server 10.20.1.1:80; }
        server {
            listen 10.20.0.4:80;
            server_name a.example b.example;
            if ($host = b.example) { return 410; }
            if ($host ~ ^c\.) { return 411; }
            location / { proxy_set_header X-To "$host $code"; proxy_pass http://u; }
            location /is { if ($host = a.example) { return 402; } proxy_pass http://u; }
            location /to { return 302 https://$host/x; }
        }"#;
    for (target, expected) in
        [("/", "/ a.example here"), ("/is", "402 "), ("/to", "302 https://a.example/x")]
    {
        let mut request = get("10.20.0.4:80", "", target);
        let Kind::Http(http) = &mut request.kind else { panic!() };
        (http.host, http.is_http10) = (None, true);
        assert_eq!(told_of(text, &request), [expected; 2], "{target}");
    }
}

#[test]
fn what_was_rewritten_is_looked_for_again() {
    let text = r#"
        map $uri $moved { default ""; /old /new; ~^/blog/(?<slug>[a-z]+)$ /news/$slug; }
        map $http_x_plan $plan { default free; ~^gold 1; }
        map $request_method $writes { default 0; POST 1; }
        map "$writes:$plan" $refused { default 0; "0:free" 1; }
        upstream app { server 10.20.1.11:8080; }
        server {
            listen 10.20.0.4:80;
            if ($moved) { return 301 $moved; }
            rewrite ^/v4/(.*)$ /v1/$1 last;
            rewrite ^/p/(\d+)$ /v1/item?id=$1 last;
            location /v1/ { proxy_set_header X-To $scheme://$host/$plan; proxy_pass http://app/; }
            location /inv { set $pool app; rewrite ^ /_in last; }
            location = /_in { internal; proxy_pass http://$pool$request_uri; }
            location /tried { try_files $uri $uri/ @app; }
            location /index { try_files $uri /v1/all?$args; }
            location /none { try_files $uri =410; }
            location /gated { if ($refused) { return 402; } proxy_pass http://app; }
            location /token { if ($arg_token = "") { return 403; } proxy_pass http://app; }
            location /get { return 302 /got$uri; }
            location ~ ^/re/(\d+)$ { proxy_pass http://app/id/$1; }
            location @app { proxy_set_header X-To named; proxy_pass http://app; }
            location ^~ /twin/ { proxy_pass http://app; }
            location = /twin/ { internal; }
            location = /both/ { proxy_pass http://app; }
            rewrite ^/v5/(.*)$ /moved/$1 last;
            location ~* \.(png|css)$ { return 206; }
            location ^~ /moved/ { return 205; location ~ ^/(moved|old)/ { return 207; } }
            location ~ ^/not { return 403; }
            location /git { error_page 418 = @app; if ($http_x_plan = "") { return 418; } return 200; }
            location /loop { error_page 418 419 = @again; return 419; }
            location @again { error_page 418 = @app; return 418; }
            location ~ /no$ { return 406; }
            location /both/ { return 200; }
        }"#;
    let table = [
        ("/v4/a?b=c", "/a?b=c http://a.example/free"),
        ("/p/7", "/item?id=7 http://a.example/free"),
        ("/inv/7?x", "/inv/7?x "),
        ("/_in", "404 "),
        ("/tried/x?y", "/tried/x?y named"),
        ("/index?y=1", "/all?y=1 http://a.example/free"),
        ("/none", "410 "),
        ("/gated", "402 "),
        ("/token?token=", "403 "),
        ("/token?token=1", "/token?token=1 "),
        ("/get?x", "302 http://a.example/got/get"),
        ("/re/7?x=1", "/id/7 "),
        // The redirect is of the exact one, and so is `internal`.
        ("/twin", "404 "),
        ("/both", "301 http://a.example/both/"),
        ("/git?x", "/git?x named"),
        ("/loop", "418 "),
        ("/v5/a", "207 "),
        ("/v4/a.png", "206 "),
        ("/not%0Ax", "403 "),
        ("/x/no%0A", "406 "),
        ("/old", "301 http://a.example/new"),
        ("/blog/abc", "301 http://a.example/news/abc"),
    ];
    for (target, expected) in table {
        let expected = expected.to_owned();
        assert_eq!(told(text, "a.example", target), [expected.clone(), expected], "{target}");
    }
}

#[test]
fn values_are_made_of_the_request() {
    let text = r#"
        map "$http_a:$cookie_b" $both { default none; "~^x:[0-9]+$" yes; }
        map $host $code { default ""; de.example german; ~^fr\. french; }
        upstream u { server 10.20.1.1:80 fail_timeout=0; server 10.20.1.2:80 fail_timeout=0; }
        server {
            listen 10.20.0.4:80;
            server_name de.example www.de.example fr.example;
            set $site plain;
            if ($code) { set $site $code; }
            set $mode a;
            if ($args ~ "debug") { set $mode "${mode}b"; }
            if ($request_uri ~ "^/old/[a-z]+\?") { return 410; }
            if ($host ~* ^www\.(.+)$) { return 301 http://$1$request_uri; }
            proxy_set_header X-To "$site $mode $both";
            location / { proxy_pass http://u; }
            location ~ ^/t/(?<tenant>[^/]+)/(\d+) { proxy_set_header X-To "$tenant-$2"; proxy_pass http://u; }
            location ~ /\.(?!well-known) { return 302 /hidden?u=$request_uri; }
            location /any { satisfy any; allow all; proxy_pass http://u; }
        }"#;
    let cases = [
        ("de.example", "/x", "/x german a none"),
        ("fr.example", "/x?debug", "/x?debug french ab none"),
        ("fr.example", "/old/a?x", "410 "),
        ("fr.example", "/old/a", "/old/a french a none"),
        ("WWW.de.example", "/x?y", "301 http://de.example/x?y"),
        ("de.example", "/t/acme/77/x", "/t/acme/77/x acme-77"),
        ("de.example", "/.git?a", "302 http://de.example/hidden?u=/.git?a"),
        ("de.example", "/.well-known/x", "/.well-known/x german a none"),
        ("de.example", "/any", "/any german a none"),
    ];
    for (host, target, expected) in cases {
        assert_eq!(told(text, host, target), [expected; 2], "{host} {target}");
    }
    let (program, _) = convert(&config(&format!("http {{ {text} }}"))).unwrap();
    let never = |pool: &Pool| pool.outlier.as_ref().is_none_or(|outlier| outlier.failures == 0);
    assert!(program.pools.values().all(never), "nobody is left alone");
}

/// Who says a thing twice, or otherwise, does not get past what is asked of it.
#[test]
fn what_is_repeated_or_odd_is_as_nginx_has_it() {
    let text = r#"
        map $http_x_role $role { default guest; admin root; }
        upstream u { server 10.20.1.1:80; }
        server {
            listen 10.20.0.4:80;
            proxy_set_header X-To $role;
            location /token { if ($http_x_token != secret) { return 403; } proxy_pass http://u; }
            location /cookie { if ($cookie_s != v) { return 403; } proxy_pass http://u; }
            location /trace { if ($request_method ~* "^(TRACE|TRACK)$") { return 405; } proxy_pass http://u; }
            location /arg { if ($arg_key = v) { return 403; } proxy_pass http://u; }
            location /none { if ($arg_key = "") { return 403; } proxy_pass http://u; }
            location / { proxy_pass http://u; }
        }"#;
    let (token, cookie, role) = ("x-token", "cookie", "x-role");
    let cases: [(&str, &str, &[(&str, &str)], &str); 17] = [
        ("GET", "/token", &[(token, "bad"), (token, "secret")], "403 "),
        ("GET", "/token", &[(token, "secret"), (token, "bad")], "/token guest"),
        ("GET", "/token", &[], "403 "),
        ("GET", "/cookie", &[(cookie, "s=w; s=v")], "403 "),
        ("GET", "/cookie", &[(cookie, "a=b,s=v")], "/cookie guest"),
        ("GET", "/cookie", &[(cookie, "a=b"), (cookie, "S=v")], "/cookie guest"),
        ("GET", "/cookie", &[(cookie, "xs=v; s=")], "403 "),
        ("GET", "/cookie", &[(cookie, "s=v,x=y; a=b")], "403 "),
        ("GET", "/", &[(role, "x"), (role, "admin")], "/ guest"),
        ("TRACK", "/trace", &[], "405 "),
        ("TRACKS", "/trace", &[], "/trace guest"),
        ("GET", "/arg?KEY=v", &[], "403 "),
        ("GET", "/arg?key=x&key=v", &[], "/arg?key=x&key=v guest"),
        ("GET", "/arg?key=%76", &[], "/arg?key=%76 guest"),
        ("GET", "/arg?xkey=v", &[], "/arg?xkey=v guest"),
        ("GET", "/none?key", &[], "403 "),
        ("GET", "/none?a=b&key=1", &[], "/none?a=b&key=1 guest"),
    ];
    for (method, target, headers, expected) in cases {
        let mut request = get("10.20.0.4:80", "a", target);
        let Kind::Http(http) = &mut request.kind else { panic!() };
        http.method = method.into();
        http.headers = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        assert_eq!(told_of(text, &request), [expected; 2], "{method} {target} {headers:?}");
    }
}

/// Where all locations agree the listener does it; what another header says stays.
#[test]
fn addresses_of_clients_are_told_as_each_location_has_it() {
    let location = |path: &str, value: &str| {
        format!(
            "location {path} {{ proxy_set_header X-Forwarded-For {value}; proxy_pass http://10.20.1.1; }}\n"
        )
    };
    let (added, edge) = ("$proxy_add_x_forwarded_for", "$http_x_edge_client");
    for (locations, listener) in [
        (location("/", added) + &location("/b", added), Forwarded::Append),
        (location("/", "$remote_addr"), Forwarded::Replace),
        (location("/", edge), Forwarded::Keep),
        (location("/", added) + &location("/b", edge), Forwarded::Keep),
    ] {
        let config = config(&format!("http {{ server {{ listen 10.20.0.4:80; {locations} }} }}"));
        let (program, _) = convert(&config).unwrap();
        let Accepts::Http { forwarded, .. } = program.listeners[0].accepts else { panic!() };
        assert_eq!(forwarded, listener, "{locations}");
        for path in ["/a", "/b"] {
            let mut request = get("10.20.0.4:80", "a", path);
            let Kind::Http(http) = &mut request.kind else { panic!() };
            let sent = [("x-forwarded-for", "6.6.6.6"), ("x-edge-client", "7.7.7.7")];
            http.headers.extend(sent.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let both = [explain(&config, &request).unwrap(), decide(&program, &request)];
            let [legacy, ours] = both.map(|answer| {
                let Outcome::Forwarded(to) = answer.outcome else { panic!("{answer:?}") };
                let told = to.headers.into_iter().find(|(name, _)| name == "x-forwarded-for");
                told.and_then(|(_, value)| value)
            });
            assert_eq!(legacy, ours, "{path}: {locations}");
            assert!(legacy.is_some(), "{path}: {locations}");
        }
    }
}
