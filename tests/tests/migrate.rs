//! `meshctl migrate` as people run it: every case of `tests/legacy`, and what is no
//! configuration.

#[path = "migrate/tls.rs"]
mod tls;

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path of this test");
    let path = test.ancestors().nth(2).expect("below target/<profile>/deps").join(name);
    assert!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

fn legacy() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/legacy")).to_owned()
}

fn migrate(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("meshctl"));
    command.current_dir(directory).arg("migrate").args(arguments).output().expect("meshctl runs")
}

fn json(directory: &Path, arguments: &[&str]) -> Value {
    let output = migrate(directory, &[arguments, &["-o", "json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("one document")
}

/// Files with cases, with the format of each.
fn configurations() -> Vec<(String, String)> {
    let files = std::fs::read_dir(legacy()).expect("tests/legacy is there");
    let names = files.map(|file| file.expect("a name").file_name().into_string().expect("text"));
    let mut found: Vec<_> = names
        .filter_map(|name| name.strip_suffix(".expect.md").map(str::to_owned))
        .map(|name| (name.split('-').next().unwrap_or_default().to_owned(), name))
        .collect();
    found.sort();
    assert!(found.len() >= 8, "{found:?}");
    found
}

fn cases(name: &str) -> Value {
    let text = std::fs::read_to_string(legacy().join(format!("{name}.expect.md")));
    let text = text.expect("cases beside the configuration");
    let block = text.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
    serde_json::from_str(block.expect("a block of JSON")).expect("cases")
}

/// Asks about one request, and says what of the legacy answer is not as expected.
fn asked(format: &str, name: &str, case: &Value, listener: &str, world: Option<&str>) -> Value {
    let text = |key: &str| case[key].as_str().unwrap_or_default().to_owned();
    let target = if case["path"].is_null() { text("uri") } else { text("path") };
    let request = match text("method").as_str() {
        "TCP" => "TCP".to_owned(),
        method => format!("{method} http://{}{target}", text("host")),
    };
    let mut arguments = vec!["explain", "--from", format, name, &request, "--listener", listener];
    arguments.extend(["--client", "10.20.0.1", "--hosts", "hosts"]);
    let headers = case["headers"].as_object().cloned().unwrap_or_default();
    let headers: Vec<String> = headers
        .iter()
        .filter(|(name, _)| !name.starts_with(':'))
        .map(|(name, value)| format!("{name}: {}", value.as_str().unwrap_or_default()))
        .collect();
    for header in &headers {
        arguments.extend(["-H", header]);
    }
    if case["headers"][":http10"].is_string() {
        arguments.push("--http10");
    }
    if let Some(world) = world {
        arguments.extend(["--discovery", world]);
    }
    json(&legacy(), &arguments)
}

#[test]
fn every_case_is_predicted() {
    let mut wrong = String::new();
    let mut total = 0;
    for (format, name) in configurations().iter().filter(|(format, _)| format != "linkerd1") {
        for case in cases(name).as_array().expect("a list") {
            total += 1;
            let listener = case["listener"].as_str().expect("a listener");
            let listener = listener.rsplit(' ').next().expect("an address");
            let said = asked(format, name, case, listener, None);
            if let Some(what) = difference(&said["legacy"], &case["expect"]) {
                let _ = writeln!(wrong, "{name} {}: {what}", case["id"]);
            }
        }
    }
    assert!(total >= 39, "{total} cases");
    assert!(wrong.is_empty(), "{wrong}");
}

fn difference(answer: &Value, expect: &Value) -> Option<String> {
    let outcome = &answer["outcome"];
    let Some(backends) = expect["backend"].as_array() else {
        let status = &outcome["answered"]["status"];
        return (*status != expect["status"]).then(|| format!("answers {outcome}"));
    };
    let forwarded = &outcome["forwarded"];
    let endpoints = forwarded["endpoints"].as_array().cloned().unwrap_or_default();
    let mut took: Vec<&Value> = endpoints.iter().map(|endpoint| &endpoint[0]).collect();
    // Names of tests/legacy/hosts are as good as their addresses.
    took.retain(|endpoint| !endpoint.as_str().is_some_and(|name| name.contains(".internal:")));
    let stranger = took.iter().find(|endpoint| !backends.contains(endpoint));
    let retried = "10.20.8.99:8080";
    match stranger {
        Some(stranger) if **stranger != retried => return Some(format!("{stranger} takes it")),
        _ => {}
    }
    if endpoints.is_empty() {
        return Some(format!("nobody takes it: {outcome}"));
    }
    if expect["sticky"] == true && forwarded["is_sticky"] != true {
        return Some("it is not sticky".to_owned());
    }
    let up = &expect["up"];
    if !up.is_null() && forwarded["target"] != *up {
        return Some(format!("target {}", forwarded["target"]));
    }
    None
}

#[test]
fn every_name_of_linkerd_is_predicted() {
    let mut wrong = String::new();
    let mut total = 0;
    for (format, name) in configurations().iter().filter(|(format, _)| format == "linkerd1") {
        let all = cases(name);
        let world = tempfile::NamedTempFile::new().unwrap();
        let names = all["world"].as_array().expect("names");
        let lines: String =
            names.iter().map(|name| format!("{}\n", name.as_str().unwrap())).collect();
        std::fs::write(world.path(), lines).unwrap();
        for case in all["cases"].as_array().expect("a list") {
            total += 1;
            let router = case["router"].as_str().expect("a router");
            let world = world.path().to_str();
            let said = asked(format, name, case, router, world);
            let outcome = &said["legacy"]["outcome"];
            let pools = outcome["forwarded"]["pools"].as_array().cloned().unwrap_or_default();
            let bound = case["bound"].as_array().cloned().unwrap_or_default();
            // Names that Linkerd answers itself have no pool.
            let is_pool =
                |name: &str| name.starts_with('/') && !name.contains("/io.buoyant.http.status/");
            let wanted = bound.iter().filter(|b| is_pool(b["client"].as_str().unwrap()));
            let wanted: Vec<_> =
                wanted.map(|b| (b["client"].clone(), b["share"].as_f64())).collect();
            let found: Vec<_> = pools.iter().map(|p| (p[0].clone(), p[1].as_f64())).collect();
            let status = &outcome["answered"]["status"];
            let same = if wanted.is_empty() { *status == case["status"] } else { found == wanted };
            if !same {
                let _ = writeln!(wrong, "{name} {}: {outcome}", case["id"]);
            }
        }
    }
    assert!(total >= 29, "{total} cases");
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn importing_twice_is_the_same_byte_by_byte() {
    for (format, name) in configurations() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&one, &two] {
            let out = directory.path().to_str().unwrap();
            let plan = ["plan", "--from", &format, &name, "--hosts", "hosts", "-o", out];
            let output = migrate(&legacy(), &plan);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let mut files: Vec<_> =
            std::fs::read_dir(one.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        files.sort();
        let names = [
            "host.yaml",
            "proxy.yaml",
            "report.html",
            "report.json",
            "report.md",
            "rules.yaml",
            "site.yaml",
        ];
        assert_eq!(files, names);
        for file in files {
            let read = |at: &tempfile::TempDir| std::fs::read(at.path().join(&file)).unwrap();
            assert!(read(&one) == read(&two), "{name}: {}", file.display());
        }
    }
}

#[test]
fn headers_that_go_on_otherwise_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let text = "events {}\nhttp { server { listen 10.0.0.1:80; location / {\n\
                proxy_set_header X-Plan gold; proxy_pass http://10.0.0.2:80; }\n\
                location /id { proxy_set_header X-Id $request_id; proxy_pass http://10.0.0.2:80; } } }\n";
    std::fs::write(directory.path().join("n.conf"), text).unwrap();
    for (path, headers, told) in [
        ("/", &[][..], "The same.\n"),
        ("/id", &["x-id"][..], "The same, but for headers: x-id.\n"),
    ] {
        let request = format!("GET http://a.example{path}");
        let arguments = ["explain", "--from", "nginx", "n.conf", &request];
        let said = json(directory.path(), &arguments);
        let named: Vec<&str> =
            said["headers"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
        assert_eq!((said["agree"].as_bool(), &*named), (Some(true), headers), "{path}");
        let text = String::from_utf8(migrate(directory.path(), &arguments).stdout).unwrap();
        assert!(text.ends_with(told), "{text}");
    }
}

#[test]
fn strict_takes_nothing_but_what_is_exact() {
    let directory = tempfile::tempdir().unwrap();
    let exact = "defaults\n    mode http\nfrontend f\n    bind 127.0.0.1:8000\n    default_backend b\n\
                 backend b\n    server s 10.0.0.1:80\n";
    std::fs::write(directory.path().join("a.cfg"), exact).unwrap();
    let plan = ["plan", "--from", "haproxy", "--strict"];
    let named = |file| migrate(directory.path(), &[&plan[..], &[file]].concat());
    let said = named("a.cfg");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let exact_alone = said.status.success();
    std::fs::write(directory.path().join("b.cfg"), format!("{exact}    http-reuse never\n"))
        .unwrap();
    let other = named("b.cfg");
    assert_eq!(other.status.code(), Some(1), "{}", String::from_utf8_lossy(&other.stdout));
    assert!(String::from_utf8_lossy(&other.stderr).contains("--strict: "));
    // Whatever else becomes of the shortest configuration: the exit code says it.
    assert_eq!(exact_alone, text.contains(" 0 approximated, 0 dropped, 0 to decide"), "{text}");
}

#[test]
fn what_is_no_configuration_is_told_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let large = "# a comment\n".repeat(50 * 1024 * 1024 / 12);
    let endless = "routers:\n- protocol: http\n  dtab: |\n    /svc => /svc/a ;\n";
    let table: [(&str, &str, &str, &str); 9] = [
        ("haproxy", "frontend f\n  bind \"unended\n", "a.cfg:2:", "quote"),
        ("nginx", "http {\n  server {\n", "a.cfg:", "}"),
        ("nginx", "include missing.conf;\n", "a.cfg:1:", "missing.conf"),
        ("envoy", "static_resources:\n  listeners: [\n", "a.cfg:", "YAML"),
        ("envoy", "static_resources:\n  listenrs: []\n", "a.cfg:2:3", "listeners"),
        ("linkerd1", "routers: []\n", "a.cfg:1:", "router"),
        (
            "linkerd1",
            "routers:\n- protocol: http\n  dtab: /svc = /x\n",
            "a.cfg:3:16",
            "expected '>'",
        ),
        ("haproxy", &large, "a.cfg:1:1", "longer than"),
        ("linkerd1", endless, "", ""),
    ];
    for (format, text, place, says) in table {
        let file = directory.path().join("a.cfg");
        std::fs::write(&file, text).unwrap();
        let out = directory.path().join("out");
        let plan = ["plan", "--from", format, "a.cfg", "--out", out.to_str().unwrap()];
        let output = migrate(directory.path(), &plan);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A table without an end: it is told, and planning ends.
        if says.is_empty() {
            assert!(output.status.success(), "{said}");
            continue;
        }
        assert_eq!(output.status.code(), Some(78), "{format}: {said}");
        assert!(said.contains(place) && said.contains(says), "{format}: {said:?} has no {says:?}");
        assert!(!out.exists(), "nothing is written");
    }
    let cycle = directory.path().join("cycle.conf");
    std::fs::write(&cycle, "include cycle.conf;\n").unwrap();
    let output = migrate(directory.path(), &["plan", "--from", "nginx", "cycle.conf"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cycle.conf:1:1"), "{said}");
}

/// An admin port that has `answers` for paths.
fn admin(answers: &'static [(&'static str, String)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).expect("a request");
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let path = asked.split(' ').nth(1).unwrap_or_default();
            let found = answers.iter().find(|(known, _)| *known == path);
            let (status, body) = found.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body));
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).expect("is taken");
        }
    });
    url
}

#[test]
fn a_running_linkerd_is_read_with_what_it_is_used_for() {
    let config = r#"{"routers": [{"protocol": "http", "servers": [{"port": 4140}], "dtab": "/svc => /$/inet/10.0.0.1"}]}"#;
    let figures = r#"{"rt/http/service/svc/8080/requests": 3}"#;
    let answers =
        vec![("/config.json", config.to_owned()), ("/admin/metrics.json", figures.to_owned())];
    let url = admin(Vec::leak(answers));
    let directory = tempfile::tempdir().unwrap();
    let plan = ["plan", "--from", "linkerd1", "--live", &url, "--out", "web-7"];
    let output = migrate(directory.path(), &plan);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let site = std::fs::read_to_string(directory.path().join("web-7/site.yaml")).unwrap();
    assert!(site.contains("10.0.0.1:8080"), "the port that is used: {site}");
    let output = migrate(directory.path(), &["plan", "--from", "envoy", "--live", &url]);
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/config_dump?include_eds: answers 404"), "{said}");
    let output = migrate(directory.path(), &["plan", "--from", "nginx", "--live", &url]);
    assert_eq!(output.status.code(), Some(2));
}
