//! What cannot be read, and where; and what is read however large it is.

use super::{
    super::{config::Config, convert::convert, dtab::Dtab, name::Name, world::World},
    no_files, now,
};
use crate::source::Source;

#[test]
fn what_is_wrong_has_a_place() {
    let cases = [
        ("", "l:1:1: expected `routers`, a list: is this a configuration of Linkerd 1.x?"),
        ("a: [", "l:2:1: no YAML"),
        ("routers: 1", "l:1:10: expected a list, and this is a number"),
        ("routers: [a]", "l:1:11: expected a mapping, and this is text"),
        ("routers:\n- label: x", "l:2:3: a router needs a `protocol`: http, h2 or another"),
        (
            "routers:\n- protocol: http\n- protocol: http",
            "l:3:3: a second router \"http\": each needs a label",
        ),
        ("routers:\n- protocol: http\n  protocol: h2", "l:3:3: \"protocol\" is there twice"),
        (
            "routers:\n- protocol: http\n  servers: [{port: x}]",
            "l:3:20: expected a number that is not out of range, and this is text",
        ),
        (
            "routers:\n- protocol: http\n  servers: [{port: 70000}]",
            "l:3:20: expected a number that is not out of range",
        ),
        (
            "routers:\n- protocol: http\n  servers: [{ip: host}]",
            "l:3:18: expected an IP address, and this is text",
        ),
        (
            "routers:\n- protocol: http\n  dstPrefix: svc",
            "l:3:14: \"svc\" is no path: it must begin with '/'",
        ),
        (
            "routers:\n- protocol: http\n  dtab: |\n    /a => /b ;\n    /c -> /d",
            "l:5:8: dtab: expected '=', found '-'",
        ),
        (
            "routers:\n- protocol: http\n  dtab: \"/a => /b ;\\\n    /c => (/d\"",
            "l:4:13: dtab: expected ')', found its end",
        ),
        ("routers:\n- protocol: http\n  identifier: {}", "l:3:15: an identifier needs a `kind`"),
        (
            "routers:\n- protocol: http\n  identifier: {kind: io.l5d.static}",
            "l:3:15: io.l5d.static needs a `path`",
        ),
        (
            "routers:\n- protocol: http\n  identifier: {kind: io.l5d.path, segments: -1}",
            "l:3:45: expected a number that is not out of range",
        ),
        (
            "routers:\n- protocol: http\n  interpreter: {kind: io.l5d.fs}",
            "l:3:16: io.l5d.fs needs a `dtabFile`",
        ),
        (
            "routers:\n- protocol: http\n  interpreter: {transformers: [{kind: io.l5d.port}]}",
            "l:3:32: io.l5d.port needs `port`",
        ),
        (
            "routers:\n- protocol: http\n  client: {kind: io.l5d.static, configs: [{}]}",
            "l:3:43: a configuration needs a `prefix`",
        ),
        ("namers: [{prefix: /x}]\nrouters: []", "l:1:10: a namer needs a `kind`"),
        ("namers: [{kind: io.l5d.fs, prefix: x}]\nrouters: []", "l:1:36: \"x\" is no path"),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let found = Config::read(&Source::of("l", text)).unwrap_err().to_string();
        if !found.starts_with(expected) {
            wrong.push(format!("{text}\n{found}\n{expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn large_tables_end_soon() {
    let start = now();
    let line = format!("/svc/{} => /#/io.l5d.fs ;", "a/".repeat(200_000).trim_end_matches('/'));
    assert_eq!(Dtab::read("d", &line).unwrap().entries.len(), 1);
    let names: String =
        (0..2_000).map(|n| format!("    /svc/s{n} => /#/io.l5d.fs/f{n} ;\n")).collect();
    let yaml = format!(
        "namers: [{{kind: io.l5d.fs, rootDir: d}}]\nrouters:\n- protocol: http\n  servers: [{{port: 1}}]\n  dtab: |\n{names}"
    );
    let source = Source::of("l", &yaml);
    let config = Config::read(&source).unwrap();
    let world = World::of_names((0..2_000).map(|n| format!("/#/io.l5d.fs/f{n}")));
    let asked = [Name::read("/svc/s7").unwrap()];
    let (program, ledger) = convert(&config, &world, &no_files, &asked);
    assert!(ledger.silent_lines(&source, |line| line.trim().is_empty()).is_empty());
    assert_eq!(program.listeners.len(), 1);
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn hostile_tables_are_converted_soon() {
    let wide = "/svc => /svc/x | /svc/y & /svc/z ;";
    let domains: String = (0..300)
        .map(|n| format!("/svc => /$/io.buoyant.http.subdomainOfPfx/d{n}.corp/p{n} ;"))
        .collect();
    let methods: String = (0..60)
        .map(|n: u8| {
            format!(
                "/svc/1.1/M{}{} => /#/x ;",
                char::from(b'A' + n % 26),
                char::from(b'A' + n / 26)
            )
        })
        .collect();
    for (table, identifier) in [
        (wide, "{kind: io.l5d.header.token}"),
        (&domains, "{kind: io.l5d.header.token}"),
        (&methods, "{kind: io.l5d.methodAndHost}"),
        (&methods, "{kind: io.l5d.path, segments: 100000}"),
        (&methods, "{kind: io.l5d.header.path}"),
    ] {
        let start = now();
        let yaml = format!(
            "routers: [{{protocol: http, servers: [{{port: 1}}], identifier: {identifier}, dtab: '{table}'}}]"
        );
        let config = Config::read(&Source::of("l", &yaml)).unwrap();
        let _ = convert(&config, &World::default(), &no_files, &[]);
        assert!(start.elapsed().as_secs() < 60, "{:?} {identifier} {table:.40}", start.elapsed());
    }
}
